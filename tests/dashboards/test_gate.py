"""What holds for every route: headers, a session, and forms from our own pages. Routes are found, not listed."""

import ast
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from sqlalchemy import text
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import dashboards
from dashboards import access, gate, pages
from dashboards.app import create_app
from dashboards.desk import Desk
from dashboards.gate import Gate
from service.errors import HotlineError, StepUpNeeded, StorageUnavailable, Unauthenticated
from service.models import metadata
from tests.builders import World, a_code
from tests.dashboards.builders import HOST, Browser, Clockwork, a_case, a_desk

Browse = Callable[..., Browser]

RULES = "ab" * 32  # the hash of a version that is not there
# All that is reached without a session. Whoever adds to it must say why here:
# signing in and joining have none yet; health is asked by machines; style and icon hold nothing.
WITHOUT_SESSION = {
    ("GET", "/sign-in"),
    ("POST", "/sign-in"),
    ("GET", "/join"),
    ("POST", "/join"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/static"),
}

SNAPSHOT = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "accelerometer=(), autoplay=(), camera=(), display-capture=(), fullscreen=(), "
    "geolocation=(), gyroscope=(), microphone=(), midi=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path of the app."""
    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        for method in context.methods or {"GET"}:
            yield method, context.path


def address(path: str, case: object) -> str:
    """A path with a case that exists in its place. A new kind of place must be added here."""
    filled = path
    places = ("case_id", "text_id", "lowering_id", "member_id", "invitation_id", "change_id")
    for place in (*places, "exclusion_id", "narrowing_id", "closure_id", "attachment_id"):
        filled = filled.replace("{" + place + "}", str(case))
    filled = filled.replace("{version_hash}", RULES).replace("{what}", "account").replace("{deed}", "settlement")
    assert "{" not in filled, path
    return "/static/staff.css" if filled == "/static" else filled


def fields_of(path: str) -> dict[str, str]:
    """What fills each form well, so that a refusal is the gate's."""
    return {
        "/sign-in": {"account": "screener", "password": "seven calm rivers of rice", "code": a_code()},
        "/sign-out": {},
        "/join": {"code": "AAAA"},
        "/step-up": {"password": "seven calm rivers of rice", "code": a_code(), "next": "/queue"},
        "/staff/sessions": {},
        "/staff/password": {"password": "seven calm rivers of rice", "code": a_code(), "new": "x", "again": "x"},
        "/staff/people/{member_id}/admit": {"unit": "screening", "fingerprint": "0" * 30},
        "/staff/people/{member_id}/end-sessions": {},
        "/staff/people/{member_id}/leave": {"last": "yes"},
        "/staff/people/{member_id}/role": {"role": "screener"},
        "/staff/people/{member_id}/reset": {},
        "/staff/register": {},
        "/staff/changes/{change_id}/sign": {},
        "/staff/changes/{change_id}/refuse": {},
        "/staff/invite": {"account": "sokha", "name": "Sok Ha", "organisation": "org-ngo", "role": "screener"},
        "/staff/invitations/{invitation_id}/take-back": {},
        "/cases/{case_id}/open": {"reason": "screening"},
        "/cases/{case_id}/recuse": {"version": "2"},
        "/cases/{case_id}/wall": {"version": "2", "whom": "unit:siem-reap", "why": "named"},
        "/cases/{case_id}/wall/{exclusion_id}/narrow": {"version": "2", "reason": "Another person of that name."},
        "/cases/{case_id}/narrowings/{narrowing_id}/agree": {"version": "2"},
        "/cases/{case_id}/narrowings/{narrowing_id}/refuse": {"version": "2", "reason": "It is the same person."},
        "/downloads/{case_id}/{what}": {},
        "/downloads/{case_id}/papers/{attachment_id}": {},
        "/cases/{case_id}/do/{deed}": {"version": "2", "kind": "money_offered", "what": "A man came with an envelope."},
        "/cases/{case_id}/close": {"version": "2", "code": "C3", "why": "x", "seen_by": "x", "seen_when": "x"},
        "/cases/{case_id}/close/{closure_id}/sign": {"version": "2"},
        "/cases/{case_id}/close/{closure_id}/refuse": {"version": "2", "reason": "A paper is missing."},
        "/cases/{case_id}/claim": {"version": "2"},
        "/cases/{case_id}/texts/{text_id}": {},
        "/cases/{case_id}/hand-on": {"version": "2", "unit": "siem-reap", "named": "no"},
        "/cases/{case_id}/facts": {"version": "2", "fact": "danger_now", "value": "yes"},
        "/cases/{case_id}/raise": {"version": "2", "level": "P1", "reason": "The tipster rang."},
        "/cases/{case_id}/lower": {"version": "2", "level": "P4", "fact": "confined_now", "reason": "x" * 40},
        "/cases/{case_id}/questions": {"mailbox": "0b0b0b0b0b0b4b0b8b0b0b0b0b0b0b0b", "words": "Is there a sign?"},
        "/cases/{case_id}/challenge": {"note": "It was looked into."},
        "/rules/{version_hash}/tick": {"case-0b0b0b0b-0b0b-4b0b-8b0b-0b0b0b0b0b0b": "1"},
        "/rules/{version_hash}/approve": {},
        "/rules/{version_hash}/refuse": {},
        "/cases/{case_id}/lower/{lowering_id}/agree": {"version": "2"},
        "/cases/{case_id}/lower/{lowering_id}/refuse": {"version": "2", "reason": "It did not change."},
    }[path]


def checksum(world: World) -> str:
    """One figure over all rows of all tables."""
    digest = sha256()
    with world.sessions.reading.connect() as connection:
        for table in sorted(metadata.tables):
            rows = connection.execute(text(f'SELECT * FROM "{table}"')).all()
            digest.update(repr((table, sorted(map(repr, rows)))).encode())
    return digest.hexdigest()


# --- who is let in ---


def test_every_route_but_the_listed_ones_needs_a_session(desk: Desk, browse: Browse, world: World) -> None:
    case = a_case(world)
    nobody = browse()
    reached = set()
    for method, path in routes(create_app(desk)):
        answer = nobody.client.request(method, address(path, case), headers={"origin": HOST})
        if (answer.status_code, answer.headers.get("location")) != (303, "/sign-in"):
            reached.add((method, path))

    assert reached == WITHOUT_SESSION


def test_a_new_route_is_behind_the_gate_without_saying_so(
    desk: Desk, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(desk)
    app.add_api_route("/new", lambda: {"secret": 1}, methods=["GET", "POST"])
    client = TestClient(app, base_url=HOST, follow_redirects=False)

    assert client.get("/new").headers["location"] == "/sign-in"
    assert client.post("/new", headers={"origin": HOST}).headers["location"] == "/sign-in"
    client.cookies.set("__Host-hl", world.cookie("screener"), domain="staff.example")
    assert client.get("/new").status_code == 404  # nobody has said who may
    monkeypatch.setitem(access.RULES, ("GET", "/new"), access.EVERYBODY)
    assert client.get("/new").json() == {"secret": 1}
    assert client.post("/new", headers={"origin": HOST}).status_code == 403


def test_the_crawler_finds_a_route_that_stands_in_front_of_the_gate(desk: Desk) -> None:
    app = create_app(desk)
    app.add_api_route("/static/leak", lambda: {"secret": 1}, methods=["GET"])

    assert set(routes(app)) - set(routes(create_app(desk))) == {("GET", "/static/leak")}


@pytest.mark.parametrize("path", ["/sign-in/", "/sign-in/../queue", "/static", "/health/live/x", "/health", "//queue"])
def test_what_only_looks_like_an_open_page_is_closed(browse: Browse, path: str) -> None:
    answer = browse().client.get(path)

    assert (answer.status_code, answer.headers.get("location")) == (303, "/sign-in")


def test_static_files_end_at_their_folder(browse: Browse) -> None:
    for path in ("/static/../gate.py", "/static/%2e%2e/gate.py", "/static/%2e%2e%2fgate.py", "/static/"):
        answer = browse().client.get(path)
        assert answer.status_code in (303, 404)
        assert "Middleware" not in answer.text


def test_a_socket_is_refused(desk: Desk) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        TestClient(create_app(desk), base_url=HOST).websocket_connect("/queue"),
    ):
        pass


# --- where forms come from ---

FORM = "application/x-www-form-urlencoded"
FORGED: dict[str, Callable[[str, str], tuple[dict[str, str], dict[str, str]]]] = {
    "no token": lambda mine, theirs: ({}, {"origin": HOST}),
    "a wrong token": lambda mine, theirs: ({"t": "0" * 32}, {"origin": HOST}),
    "an empty token": lambda mine, theirs: ({"t": ""}, {"origin": HOST}),
    "a token outside ASCII": lambda mine, theirs: ({"t": "é" * 32}, {"origin": HOST}),
    "the token of another session": lambda mine, theirs: ({"t": theirs}, {"origin": HOST}),
    "a foreign page": lambda mine, theirs: ({"t": mine}, {"origin": "https://elsewhere.example"}),
    "our host on another port": lambda mine, theirs: ({"t": mine}, {"origin": HOST + ":8443"}),
    "a host that ends like ours": lambda mine, theirs: ({"t": mine}, {"origin": "https://x.staff.example"}),
    "a host that begins like ours": lambda mine, theirs: ({"t": mine}, {"origin": HOST + ".elsewhere.example"}),
    "our host as a user name": lambda mine, theirs: ({"t": mine}, {"origin": HOST + "@elsewhere.example"}),
    "a sandboxed page": lambda mine, theirs: ({"t": mine}, {"origin": "null"}),
    "a page that says nothing of itself": lambda mine, theirs: ({"t": mine}, {}),
    "a page of a sister host": lambda mine, theirs: ({"t": mine}, {"sec-fetch-site": "same-site"}),
    "a page of another site": lambda mine, theirs: ({"t": mine}, {"sec-fetch-site": "cross-site"}),
    "a browser that contradicts itself": lambda mine, theirs: (
        {"t": mine},
        {"origin": HOST, "sec-fetch-site": "cross-site"},
    ),
    "a proxy's word": lambda mine, theirs: (
        {"t": mine},
        {"origin": "https://elsewhere.example", "x-forwarded-host": "elsewhere.example"},
    ),
}
WITHOUT_TOKEN = {"no token", "a wrong token", "an empty token", "a token outside ASCII", "the token of another session"}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_form_is_refused_and_changes_nothing(desk: Desk, browse: Browse, world: World, forgery: str) -> None:
    case = a_case(world)
    browser, other = browse("screener"), browse("screener")
    mine, theirs = (b.open("/queue").form("/sign-out").fields["t"] for b in (browser, other))
    changing = sorted({(m, p) for m, p in routes(create_app(desk)) if m not in ("GET", "HEAD")})
    before = checksum(world)

    statuses = {}
    for method, path in changing:
        token, headers = FORGED[forgery](mine, theirs)
        if path in ("/sign-in", "/join") and forgery in WITHOUT_TOKEN:
            continue  # they have no session yet, so no token: only where the form comes from counts
        if path in ("/sign-in", "/join"):
            token = {}
        answer = browser.client.request(
            method, address(path, case), data=fields_of(path) | token, headers={"content-type": FORM} | headers
        )
        statuses[path] = answer.status_code

    assert set(statuses.values()) == {403}
    assert len(statuses) >= 4
    assert checksum(world) == before


def test_the_forgeries_succeed_where_nothing_is_forged(desk: Desk, browse: Browse, world: World) -> None:
    """The negative control: the same forms, unforged, reach their routes."""
    case = a_case(world)
    browser = browse("screener")
    token = browser.open("/queue").form("/sign-out").fields["t"]

    for headers in ({"origin": HOST}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        answer = browser.client.post(f"/cases/{case}/open", data={"t": token, "reason": "screening"}, headers=headers)
        assert answer.status_code == 200


def test_a_method_nobody_offers_needs_a_token_too(browse: Browse, world: World) -> None:
    browser = browse("screener")

    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        assert browser.client.request(method, "/queue", headers={"origin": HOST}).status_code == 403


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ('{"t": "x"}', "application/json", 415),
        ("t=x", "text/plain", 415),
        ("--x\r\n", "multipart/form-data; boundary=x", 415),
        ("t=x&t=y", FORM, 422),
        ("t=%ff", FORM, 422),
        ("account=%00", FORM, 422),
        ("é=1", FORM, 422),
        ("&".join(f"f{n}=" for n in range(50)), FORM, 422),
        ("account=" + "a" * 40_000, FORM, 413),
        ("account=screener&password=x&more=1", FORM, 422),
    ],
)
def test_odd_bodies_are_refused_with_a_page(browse: Browse, body: str, kind: str, status: int) -> None:
    answer = browse().client.post("/sign-in", content=body.encode(), headers={"origin": HOST, "content-type": kind})

    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")


def test_what_was_typed_is_not_in_a_refusal(browse: Browse) -> None:
    answer = browse().client.post(
        "/sign-in", data={"account": "canary-one", "canary-two": "canary-three"}, headers={"origin": HOST}
    )

    assert answer.status_code == 422
    assert "canary" not in answer.text


# --- headers ---


def security_headers(answer) -> dict[str, str]:
    return {name: answer.headers.get(name, "") for name in SNAPSHOT}


def snapshot(path: str) -> dict[str, str]:
    """The headers of a path; where files are given out nothing would run even if a browser showed them."""
    inert = "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; sandbox"
    return SNAPSHOT | ({"content-security-policy": inert} if path.startswith("/downloads/") else {})


def test_every_answer_has_the_same_security_headers(desk: Desk, browse: Browse, world: World) -> None:
    case = a_case(world)
    for browser in (browse("screener"), browse()):
        for method, path in routes(create_app(desk)):
            for headers in ({}, {"origin": HOST}):
                answer = browser.client.request(method, address(path, case), headers=headers)
                assert security_headers(answer) == snapshot(path), (method, path, answer.status_code)


@pytest.mark.parametrize("path", ["/nothing", "/cases/x", "/static/nothing", "/sign-out", "/cases/x/open"])
def test_errors_have_them_too(browse: Browse, path: str) -> None:
    assert security_headers(browse("screener").client.get(path)) == SNAPSHOT


def test_pages_hold_no_script_no_style_and_no_other_host(desk: Desk, browse: Browse, world: World) -> None:
    case = a_case(world)
    browser = browse("screener")
    shown = [browser.open(path) for path in ("/queue", f"/cases/{case}", "/sign-in", "/nothing")]
    shown.append(browser.submit(shown[1], "/open", reason="screening"))

    for page in shown:
        for tag, given in page.elements:
            assert tag not in ("script", "style", "iframe", "object", "embed", "base")
            assert not {name for name in given if name == "style" or name.startswith("on")}
            for name in ("href", "src", "action"):
                assert given.get(name, "/").startswith(("/", "#"))
                assert not given.get(name, "/").startswith("//")


def test_templates_never_switch_escaping_off() -> None:
    for path in sorted(pages.HERE.rglob("*.html")) + sorted(pages.HERE.rglob("*.py")):
        source = path.read_text()
        for switch in ("|safe", "| safe", "Markup(", "autoescape false", "autoescape=False"):
            assert switch not in source, path


# --- refusals and health ---


def test_a_fault_is_a_page_without_its_words(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(desk)
    monkeypatch.setitem(access.RULES, ("GET", "/static/broken"), access.ANYONE)

    def broken(request: Request) -> None:
        raise RuntimeError("canary")

    app.add_api_route("/static/broken", broken)
    app.router.routes.insert(0, app.router.routes.pop())
    answer = TestClient(app, base_url=HOST).get("/static/broken", headers={"cookie": "lang=en"})

    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "canary" not in answer.text
    assert security_headers(answer) == SNAPSHOT


def test_a_database_that_does_not_answer_is_a_plain_page(browse: Browse, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise StorageUnavailable("The database does not answer.")

    browser = browse("screener")
    monkeypatch.setattr(gate.staff, "resume", gone)

    answer = browser.open("/queue")

    assert (answer.status, answer.headers["retry-after"]) == (503, pages.RETRY_AFTER)
    assert "This cannot be saved or shown now" in answer.text


def tree(kind: type[HotlineError]) -> Iterator[type[HotlineError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


@pytest.mark.parametrize("lang", ["en", "km"])
def test_every_refusal_of_the_domain_is_a_page_in_both_languages(
    desk: Desk, lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(desk)
    monkeypatch.setitem(access.RULES, ("GET", "/static/{name}"), access.ANYONE)

    def refuse(request: Request, name: str) -> None:
        kind = next(kind for kind in tree(HotlineError) if kind.__name__ == name)
        raise kind(*{"NoSuchCase": (), "InvalidForm": ("unit", "canary")}.get(name, ("canary",)))

    app.add_api_route("/static/{name}", refuse)
    app.router.routes.insert(0, app.router.routes.pop())
    client = TestClient(app, base_url=HOST, follow_redirects=False, cookies={"lang": lang})

    for kind in tree(HotlineError):
        answer = client.get(f"/static/{kind.__name__}")
        if issubclass(kind, Unauthenticated):
            assert answer.headers["location"] == "/sign-in"
            continue
        if kind is StepUpNeeded:
            assert answer.headers["location"] == "/step-up?next=%2Fstaff"
            continue
        assert 400 <= answer.status_code < 600, kind
        assert f'<html lang="{lang}">' in answer.text
        assert "canary" not in answer.text
        if lang == "km":
            assert "Nothing was changed" not in answer.text


def test_health_says_what_is_well(world: World, clock: Clockwork) -> None:
    health: dict[str, object] = {"database": True, "engine": "SQLite 3.53.0"}
    browser = Browser(a_desk(world, clock, lambda: health))

    assert browser.client.get("/health/live").json() == {"live": True}
    assert browser.client.get("/health/ready").json() == health
    assert browser.client.get("/health/ready").status_code == 200
    health["database"] = False
    assert browser.client.get("/health/ready").status_code == 503


def test_health_that_cannot_be_asked_is_not_ready(world: World, clock: Clockwork) -> None:
    def gone() -> dict[str, object]:
        raise StorageUnavailable("The database does not answer.")

    answer = Browser(a_desk(world, clock, gone)).client.get("/health/ready")

    assert (answer.status_code, answer.json()) == (503, {"StorageUnavailable": False})


# --- language ---


def test_khmer_is_the_default_and_english_is_remembered(desk: Desk) -> None:
    client = TestClient(create_app(desk), base_url=HOST)

    assert '<html lang="km">' in client.get("/sign-in").text
    chosen = client.get("/sign-in?lang=en")
    assert '<html lang="en">' in chosen.text
    assert '<html lang="en">' in client.get("/sign-in").text
    attributes = {part.strip().lower() for part in chosen.headers["set-cookie"].split(";")[1:]}
    assert {"samesite=strict", "secure", "path=/"} <= attributes
    assert "set-cookie" not in client.get("/sign-in").headers


def test_a_language_that_nobody_knows_is_khmer(desk: Desk) -> None:
    client = TestClient(create_app(desk), base_url=HOST, cookies={"lang": "xx"})

    assert '<html lang="km">' in client.get("/sign-in?lang=fr").text


def test_khmer_pages_hold_no_english(browse: Browse, world: World) -> None:
    """Names of products, codes and what people wrote aside, every letter of a Khmer page is Khmer."""
    case = a_case(world, account="ដំណើររឿង")
    browser = browse("screener", "km")
    shown = [browser.open(path) for path in ("/queue", f"/cases/{case}", "/sign-in", "/nothing", "/queue?level=P1")]
    shown.append(browser.submit(shown[1], "/open", reason="screening"))

    for page in shown:
        words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\b[0-9A-Z]{4}-[0-9A-Z]{4}\b", "", page.text))
        assert set(words) <= {"English", "SMS", "hotline", "triage"}, page.html


def test_the_package_imports_no_cryptography_and_no_other_entry_point() -> None:
    for path in Path(dashboards.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"nacl", "webhooks", "commands"}, path


def test_the_gate_is_the_only_middleware(desk: Desk) -> None:
    assert [entry.cls for entry in create_app(desk).user_middleware] == [Gate]
