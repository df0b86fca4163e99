"""The whole public app: headers on every answer, no cookie, no echo, health."""

from typing import Any

import pytest

from service.errors import NoSuchCase, StorageUnavailable
from tests.webhooks.builders import (
    CANARY,
    FORM_KEY,
    FORM_TYPE,
    SMS,
    Answer,
    an_app,
    an_sms,
    drive,
    encode,
    open_form,
    post_form,
    post_sms,
    settings,
    sign,
    sms_headers,
)
from tests.webhooks.fakes import FakeIntake
from webhooks.admission import SECURITY_HEADERS
from webhooks.app import create_app

FORM = [(b"content-type", FORM_TYPE.encode())]


def everything(app: Any, intake: FakeIntake) -> dict[str, Answer]:
    """Return an answer of every kind that the app can give, each with a canary wherever a request has room."""
    agent = [(b"user-agent", CANARY.encode()), (b"cookie", CANARY.encode()), (b"referer", CANARY.encode())]
    fields = an_sms(body=CANARY, sender="+85500000042", FromCity=CANARY)
    typed = {"what": CANARY, "answer": "phone", "number": f"{CANARY} 000000042"}
    query = f"q={CANARY}".encode()
    shown = {
        "cover": drive(app, "GET", "/", headers=agent, query=query),
        "head": drive(app, "HEAD", "/", headers=agent),
        "form": drive(app, "GET", "/report", headers=agent, query=query),
        "sent": post_form(app, typed | {"number": "000000042"}, headers=agent),
        "415": drive(
            app, "POST", "/report", headers=[(b"content-type", CANARY.encode()), *agent], body=CANARY.encode()
        ),
        "413": drive(app, "POST", "/report", headers=FORM + agent, body=CANARY.encode() * 30_000),
        "413 fields": drive(app, "POST", "/report", headers=FORM + agent, body=(CANARY + "&").encode() * 101),
        "404": drive(app, "GET", f"/{CANARY}", headers=agent, query=query),
        "404 post": drive(app, "POST", f"/{CANARY}", headers=FORM + agent, body=CANARY.encode()),
        "405": drive(app, "POST", "/", headers=agent, body=CANARY.encode()),
        "405 closed": drive(app, CANARY, "/", headers=agent),
        "414": drive(app, "GET", f"/{CANARY}" * 300, headers=agent),
        "431": drive(app, "GET", "/", headers=agent * 40),
        "400": drive(app, "GET", "/", headers=[*agent, (b"content-length", CANARY.encode())]),
        "options": drive(app, "OPTIONS", "/report", headers=agent),
        "css": drive(app, "GET", "/static/public.css", headers=agent, query=query),
        "css 404": drive(app, "GET", f"/static/{CANARY}", headers=agent),
        "css up": drive(app, "GET", "/static/../app.py", headers=agent),
        "live": drive(app, "GET", "/health/live", headers=agent),
        "ready": drive(app, "GET", "/health/ready", headers=agent),
        "sms": post_sms(app, fields),
        "sms 403": drive(app, "POST", SMS, headers=sms_headers(CANARY.encode()), body=encode(fields)),
        "sms 403 json": drive(app, "POST", SMS, headers=[(b"content-type", b"application/json")], body=CANARY.encode()),
        "sms 405": drive(app, "GET", SMS, headers=agent, query=query),
        "webhook 404": drive(app, "POST", f"/webhooks/{CANARY}", headers=agent, body=CANARY.encode()),
    }
    for name, failing in [
        ("503", StorageUnavailable("gone")),
        ("500", RuntimeError(CANARY)),
        ("404 inside", NoSuchCase()),
    ]:
        intake.failing = failing
        shown[f"form {name}"] = post_form(app, {"what": "words"}, headers=agent)
        shown[f"sms {name}"] = post_sms(app, fields)
    intake.failing = None
    return shown


def test_the_tour_meets_every_status(app, intake):
    statuses = {answer.status for answer in everything(app, intake).values()}
    assert statuses == {200, 204, 400, 403, 404, 405, 413, 414, 415, 431, 500, 503}


def test_every_answer_has_the_security_headers_and_no_cookie(app, intake):
    for name, answer in everything(app, intake).items():
        for header, value in SECURITY_HEADERS:
            assert answer.header(header.decode()) == value.decode(), name
        assert answer.header("cache-control") == ("public, max-age=86400" if name == "css" else "no-store"), name
        assert answer.header("set-cookie") is None, name
        assert answer.header("server") is None, name
        policy = answer.header("content-security-policy")
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_no_answer_repeats_a_word_of_its_request(app, intake):
    for name, answer in everything(app, intake).items():
        assert CANARY.encode() not in answer.body, name
        assert CANARY not in repr(answer.headers), name


def test_nothing_of_a_request_is_logged(app, intake, logged):
    everything(app, intake)
    log = logged()
    assert "tip_not_stored" in log, "the log was looked at"
    for word in (CANARY, CANARY.encode().hex(), "00000042"):
        assert word not in log


def test_the_scan_finds_what_is_printed(app, intake, logged):
    """The control: one line that prints a body."""
    receive = intake.receive

    async def printing(tip: Any) -> Any:
        print(tip.text)
        return await receive(tip)

    intake.receive = printing
    everything(app, intake)
    assert CANARY in logged()


def test_what_was_typed_comes_back_only_to_be_corrected_or_sent_again(app, intake, logged):
    """The exception to the rule, and no log has it either."""
    token, nonce = open_form(app)
    wrong = post_form(app, {"what": CANARY, "answer": "phone"}, token=token, nonce=nonce)
    intake.failing = StorageUnavailable("gone")
    lost = post_form(app, {"what": CANARY}, token=token, nonce=nonce)
    assert (wrong.status, lost.status) == (422, 503)
    assert CANARY in wrong.text
    assert CANARY in lost.text
    assert CANARY not in logged()


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/metrics", "/report/", "/sign-in", "/queue"])
def test_there_is_nothing_else(path, app):
    assert drive(app, "GET", path).status == 404


def test_static_files_do_not_leave_their_folder(app):
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/", "/static"):
        assert drive(app, "GET", path).status == 404


def test_a_known_style_sheet_is_not_sent_again(app):
    tag = drive(app, "GET", "/static/public.css").header("etag")
    assert tag
    again = drive(app, "GET", "/static/public.css", headers=[(b"if-none-match", tag.encode())])
    assert (again.status, again.body) == (304, b"")
    assert drive(app, "HEAD", "/static/public.css").body == b""


def broken_health() -> dict[str, bool | str]:
    raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    ("health", "status", "body"),
    [
        (lambda: {"database": True, "engine": "SQLite 3.53"}, 200, b'{"database":true,"engine":"SQLite 3.53"}'),
        (lambda: {"database": False, "engine": "x"}, 503, b'{"database":false,"engine":"x"}'),
        (broken_health, 503, b'{"health":false}'),
    ],
)
def test_ready_says_what_health_says_and_live_only_that_it_lives(health, status, body, tmp_path, intake, logged):
    app = an_app(tmp_path, intake, health=health)
    ready = drive(app, "GET", "/health/ready")
    assert (ready.status, ready.body) == (status, body)
    assert drive(app, "GET", "/health/live").status == 200
    assert CANARY not in logged()


def test_it_starts_and_stops_with_what_the_caller_opened(tmp_path, intake):
    from contextlib import asynccontextmanager

    from starlette.testclient import TestClient

    seen = []

    @asynccontextmanager
    async def lifespan(_app: Any) -> Any:
        seen.append("open")
        yield
        seen.append("closed")

    app = create_app(settings(tmp_path), intake=intake, health=dict, form_key=FORM_KEY, lifespan=lifespan)
    fields = an_sms()
    with TestClient(app) as client:
        headers = {"x-twilio-signature": sign(fields).decode()}
        assert client.post(SMS, data=fields, headers=headers).status_code == 200
        assert client.get("/report").headers["cache-control"] == "no-store"
    assert seen == ["open", "closed"]
    assert len(intake.stored) == 1


def test_a_refusal_of_the_domain_is_a_problem_to_a_machine_and_a_page_to_a_person(tmp_path, intake):
    """For the webhooks to come: whatever the domain raises there has its status."""
    app = an_app(tmp_path, intake)
    intake.failing = NoSuchCase()
    assert post_form(app, {"what": "words"}).status == 404
    assert "There is nothing here." in post_form(app, {"what": "words"}).text
