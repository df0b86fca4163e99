"""Every route for every role and every kind of case; two worlds with and without what is hidden (DESIGN section 12.5).

Routes are found, not listed: a new one without an expectation here fails.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import Request
from pysqlite3 import dbapi2
from sqlalchemy import delete, func, select, true
from sqlmodel import col
from starlette.testclient import TestClient

from dashboards import access
from dashboards.app import create_app
from service import exclusions, staff, walls
from service.cases import find
from service.db import Tx, open_database, write
from service.exclusions import Wallkeeper
from service.ledger.events import EventType, NewEvent, StateClass, append
from service.models import (
    Case,
    Clock,
    ClockKind,
    Closure,
    JobState,
    LedgerEvent,
    Lowering,
    Narrowing,
    OutboxJob,
    Reading,
    Role,
    StaffSession,
    metadata,
)
from service.outbox import RING, job
from service.reading import Allowance, record_opening
from service.vault.members import session_id
from tests.builders import NOW, World, a_world
from tests.dashboards.builders import HOST, Browser, Clockwork, a_case, a_desk
from tests.dashboards.test_gate import fields_of, routes
from tests.dashboards.watching import OF_CASES, watching

TEAM = "siem-reap"
PEOPLE = {
    "screener": (Role.SCREENER, "org-ngo", ("screening",), "Sok Dara", "សុខ តារា"),
    "investigator": (Role.INVESTIGATOR, "org-police", (TEAM,), "Heng Bopha", "ហេង បុប្ផា"),
    "supervisor": (Role.SUPERVISOR, "org-police", (TEAM,), "Keo Pisey", "កែវ ពិសី"),
    "advocate": (Role.ADVOCATE, "org-ngo", ("screening",), "Prum Nary", "ព្រំ ណារី"),
    "legal": (Role.LEGAL, "org-ngo", ("screening",), "Mao Sothea", "ម៉ៅ សុធា"),
    "oversight": (Role.OVERSIGHT, "org-council", ("oversight",), "Lim Sreymom", "លឹម ស្រីមុំ"),
    "auditor": (Role.AUDITOR, "org-ngo", ("screening",), "Kim Sopheap", "គឹម សុភាព"),
    "admin": (Role.ADMIN, "org-council", (), "Mao Vibol", "ម៉ៅ វិបុល"),
    "oversight-2": (Role.OVERSIGHT, "org-ngo", ("oversight-2",), "Chan Sreyleak", "ចាន់ ស្រីលក្ខណ៍"),
    # so that somebody of oversight is left, and that somebody of integrity sees to walls
    "oversight-too": (Role.OVERSIGHT, "org-council", ("oversight",), "Nuon Ratha", "នួន រដ្ឋា"),
    "integrity": (Role.INVESTIGATOR, "org-inspect", ("integrity",), "Chea Kunthea", "ជា គន្ធា"),
}
ROLES = tuple(PEOPLE)[:8]


@dataclass
class Place:
    """A world on its own file, and its desk."""

    world: World
    desk: Any

    def browser(self, name: str, cookie: str = "") -> Browser:
        return Browser(self.desk, cookie or self.world.cookie(name))


def at(world: World, path: Path) -> Place:
    world = replace(world, sessions=open_database(f"sqlite:///{path}"))
    return Place(world, a_desk(world, Clockwork()))


@pytest.fixture(scope="module")
def place(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One world for the module: each test makes cases of its own."""
    path = tmp_path_factory.mktemp("seen") / "hotline.db"
    shutil.copy(sqlite_template, path)
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions, people=PEOPLE)
    yield Place(world, a_desk(world, Clockwork()))
    sessions.close()


def keeper(world: World) -> Wallkeeper:
    return Wallkeeper(world.ledger, world.founding.cards, world.founding.row_key)


def unit_of(name: str) -> str:
    return next(iter(PEOPLE[name][2]), TEAM)


def own_case(world: World, name: str, **chosen: Any) -> UUID:
    unit = unit_of(name)
    return a_case(world, unit="screening" if unit == "oversight" else unit, **chosen)


def recuse(world: World, name: str, case: UUID) -> None:
    """Put a person behind a case's wall by their own word."""

    viewer = world.signed_in(name).viewer

    def use_case(tx: Tx) -> None:
        exclusions.recuse(tx, keeper(world), viewer, case, version=find(tx, viewer, case).version, now=NOW)

    write(world.sessions, use_case)


def by_oversight(world: World, case: UUID, step: Callable[..., None], whom: Any) -> None:
    """Have oversight, who has read it, exclude somebody."""
    who = world.signed_in("oversight-too")
    given = partial(record_opening, world.sessions, world.ledger, world.founding.row_key, who.viewer, case)
    given(reason="oversight", note="", allowance=Allowance(1000, stepped_up=False), now=NOW)

    def use_case(tx: Tx) -> None:
        row = find(tx, who.viewer, case)
        opened = staff.open_keys(tx, world.founding.row_key, world.founding.cards, who, row)
        step(tx, keeper(world), who.viewer, opened, whom, "named", version=row.version, now=NOW)

    write(world.sessions, use_case)


# --- a rule for every route -----------------------------------------------------------------------------


def test_every_route_has_a_rule_and_no_rule_is_without_a_route(place: Place) -> None:
    assert set(access.RULES) == set(routes(create_app(place.desk)))


def test_a_route_that_nobody_gave_a_rule_is_found_and_reached_by_nobody(place: Place) -> None:
    app = create_app(place.desk)
    app.add_api_route("/static/leak", lambda: {"secret": 1})
    app.router.routes.insert(0, app.router.routes.pop())

    assert set(routes(app)) - set(access.RULES) == {("GET", "/static/leak")}
    assert TestClient(app, base_url=HOST).get("/static/leak").status_code == 404


def test_the_watch_knows_every_table_that_hangs_on_a_case() -> None:
    hanging = {
        name
        for name, table in metadata.tables.items()
        for key in table.foreign_keys
        if key.column.table.name in ("case_file", "tip", "ledger_event", "ledger_head")
    }

    assert hanging - {"ledger_pending"} | {"case_file", "ledger_head"} == OF_CASES


# --- the matrix -----------------------------------------------------------------------------------------

LEVEL_ROLES = {Role.SCREENER, Role.INVESTIGATOR, Role.SUPERVISOR, Role.OVERSIGHT, Role.ADVOCATE, Role.LEGAL}
CASE = "/cases/{case_id}"


def expected(method: str, path: str, role: Role) -> int:
    """The status of a case of one's own that one has opened, where one may, with the form filled in well."""
    readers, histories = LEVEL_ROLES, LEVEL_ROLES | {Role.AUDITOR}
    table: dict[tuple[str, str], int] = {
        ("GET", CASE): 200 if role in histories else 404,
        ("GET", f"{CASE}/open"): 303 if role in readers else 404,
        ("POST", f"{CASE}/open"): 200 if role in readers else 404,
        ("POST", f"{CASE}/claim"): 303 if role == Role.INVESTIGATOR else 403 if role in readers else 404,
        ("POST", f"{CASE}/hand-on"): 303 if role == Role.SCREENER else 403 if role in readers else 404,
        ("POST", f"{CASE}/texts/{{text_id}}"): 404,  # there is no such text, as in the lines below
        ("POST", f"{CASE}/questions"): 404,  # nor such a mailbox, nor anything that a tipster says is wrong
        ("POST", f"{CASE}/challenge"): 409 if role == Role.OVERSIGHT else 404,
        ("POST", f"{CASE}/facts"): 303 if role in readers else 404,
        ("POST", f"{CASE}/raise"): 303 if role in readers else 404,
        ("POST", f"{CASE}/lower"): 303 if role in readers else 404,
        ("POST", f"{CASE}/lower/{{lowering_id}}/agree"): 404,
        ("POST", f"{CASE}/lower/{{lowering_id}}/refuse"): 404,
        ("POST", f"{CASE}/recuse"): 303 if role in histories else 404,
        ("POST", f"{CASE}/wall"): {Role.OVERSIGHT: 303, Role.INVESTIGATOR: 403}.get(role, 404),
        ("POST", f"{CASE}/wall/{{exclusion_id}}/narrow"): 404,
        ("POST", f"{CASE}/narrowings/{{narrowing_id}}/agree"): 404,
        ("POST", f"{CASE}/narrowings/{{narrowing_id}}/refuse"): 404,
        ("POST", f"{CASE}/do/{{deed}}"): 303 if role in readers else 404,
        ("GET", f"{CASE}/close"): 200 if role in readers else 404,
        ("POST", f"{CASE}/close"): 403 if role in readers else 404,  # nobody owns it
        ("POST", f"{CASE}/close/{{closure_id}}/sign"): 404,
        ("POST", f"{CASE}/close/{{closure_id}}/refuse"): 404,
        ("POST", "/downloads/{case_id}/papers/{attachment_id}"): 404,
        ("POST", "/downloads/{case_id}/{what}"): 303 if role in readers else 404,  # to the step-up
    }
    return table[method, path]


def elsewhere(method: str, path: str, role: Role) -> int:
    """The status of a case that is not there: 404, but for the address that leads back to the page."""
    return expected(method, path, role) if (method, path) == ("GET", f"{CASE}/open") else 404


def ask(browser: Browser, token: str, method: str, path: str, case: UUID, version: int) -> tuple[int, str, Any]:
    address = path.replace("{case_id}", str(case)).replace("{what}", "account").replace("{deed}", "settlement")
    for name in ("{text_id}", "{lowering_id}", "{exclusion_id}", "{narrowing_id}", "{closure_id}", "{attachment_id}"):
        address = address.replace(name, str(UUID(int=1)))
    if method == "GET":
        page = browser.open(address)
    else:
        fields = {**fields_of(path), "t": token}
        page = browser.send(address, fields | ({"version": str(version)} if "version" in fields else {}))
    headers = sorted((name, value.replace(str(case), "CASE")) for name, value in page.headers.items())
    return page.status, page.html.replace(str(case), "CASE"), headers


def version_of(world: World, case: UUID) -> int:
    with world.sessions.read() as session:
        row = session.get(Case, case)
        return row.version if row is not None else 2


@pytest.mark.parametrize("name", ROLES)
def test_a_case_that_is_hidden_is_no_byte_and_no_statement_away_from_one_that_never_was(
    place: Place, name: str
) -> None:
    world, browser = place.world, place.browser(name)
    role, viewer = PEOPLE[name][0], world.signed_in(name).viewer
    token = browser.open("/queue").form("/sign-out").fields["t"]
    other = a_case(world, unit="kandal", oversight="oversight-2")
    walled = own_case(world, name)
    if role != Role.ADMIN:
        recuse(world, name, walled)
    browser.open(f"/cases/{uuid4()}")  # the first refusal begins the person's own chain
    about_cases = sorted((m, p) for m, p in access.RULES if "{case_id}" in p)

    for method, path in about_cases:
        own = own_case(world, name)
        if role in LEVEL_ROLES:
            assert ask(browser, token, "POST", f"{CASE}/open", own, 2)[0] == 200
        seen = {}
        for case in (own, other, walled, uuid4()):
            version = version_of(world, case)
            with watching(world.sessions, viewer) as watched:
                answer = ask(browser, token, method, path, case, version)
            assert watched.past == [], (method, path)
            seen[case] = (*answer, watched.count)
        mine, *hidden = seen.values()
        assert mine[0] == expected(method, path, role), (method, path)
        assert hidden[0][0] == elsewhere(method, path, role), (method, path)
        assert hidden[0] == hidden[1] == hidden[2], (method, path)
        if mine[0] != hidden[0][0]:
            assert mine != hidden[0]


@pytest.mark.parametrize("name", ROLES)
def test_the_pages_that_are_of_no_case_are_those_of_the_role(place: Place, name: str) -> None:
    browser, viewer = place.browser(name), place.world.signed_in(name).viewer
    found = {}
    for path in ("/", "/queue", "/oversight", "/health/ready", "/sign-in", "/static/staff.css"):
        with watching(place.world.sessions, viewer) as watched:
            found[path] = browser.open(path).status
        assert watched.past == [], path

    oversight = 200 if PEOPLE[name][0] == Role.OVERSIGHT else 404
    others = {"/": 303, "/queue": 200, "/health/ready": 200, "/sign-in": 200, "/static/staff.css": 200}
    assert found == {"/oversight": oversight, **others}


def test_an_auditor_reads_the_history_and_is_offered_no_account(place: Place) -> None:
    page = place.browser("auditor").open(f"/cases/{own_case(place.world, 'auditor')}")

    assert "What happened" in page.text
    assert not page.has_form("/open")
    assert "Your role reads no account." in page.text


def test_a_query_that_goes_past_the_wall_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a count over all cases on a page, and a wall that somebody forgot."""
    browser, viewer = place.browser("investigator"), place.world.signed_in("investigator").viewer
    app = browser.client.app

    def counting(request: Request) -> dict[str, int]:
        with place.desk.sessions.read() as session:
            return {"cases": session.scalar(select(func.count()).select_from(Case)) or 0}

    app.add_api_route("/counting", counting)  # type: ignore[attr-defined]
    monkeypatch.setitem(access.RULES, ("GET", "/counting"), access.EVERYBODY)  # type: ignore[arg-type]
    with watching(place.world.sessions, viewer) as watched:
        assert browser.open("/counting").status == 200
    assert len(watched.past) == 1

    monkeypatch.setattr(walls, "unwalled", lambda viewer: true())
    with watching(place.world.sessions, viewer) as watched:
        assert browser.open("/queue").status == 200
    assert watched.past


# --- two worlds -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Place, Place, list[UUID], Any]]:
    """Make two copies of one world, the cases that both have, and a cookie of each person that both know."""
    folder = tmp_path_factory.mktemp("two")
    base = at(place.world, _copy(place.world, folder / "base.db"))
    shared = [
        a_case(base.world, unit=TEAM, level=f"P{n % 4 + 1}", province="KH-17", flags=["settlement_attempt"][: n % 2])
        for n in range(60)
    ]
    cookies = {name: base.world.cookie(name) for name in ROLES}
    base.world.sessions.close()
    made = iter(range(100))

    def make() -> tuple[Place, Place, list[UUID], Any]:
        number = next(made)
        without, with_ = folder / f"{number}-without.db", folder / f"{number}-with.db"
        shutil.copy(folder / "base.db", without)
        shutil.copy(folder / "base.db", with_)
        return at(place.world, without), at(place.world, with_), shared, cookies

    return make


def _copy(world: World, path: Path) -> Path:
    with closing(dbapi2.connect(str(world.sessions.writing.url.database))) as connection:
        connection.execute(f"VACUUM INTO '{path}'")
    return path


def a_troubled_case(world: World) -> UUID:
    """A case of the team that stands wherever a page counts or lists something."""
    case = a_case(world, unit=TEAM, level="P1", province="KH-17", flags=["settlement_attempt"])
    member, screener = world.people["integrity"][0].id, world.signed_in("screener").viewer.actor
    investigator = world.people["investigator"][0].id

    def trouble(tx: Tx) -> None:
        row = tx.get_one(Case, case)
        failed = job(world.founding.row_key, RING, uuid4().hex, case=case, language="km", now=NOW, within=CLAIM_BY)
        stuck = job(world.founding.row_key, RING, uuid4().hex, case=case, language="km", now=NOW, within=CLAIM_BY)
        tx.insert(OutboxJob, [failed | {"state": JobState.FAILED, "done_at": NOW}])
        tx.insert(OutboxJob, [stuck | {"state": JobState.WAITING, "attempts": 9}])
        standing = {"case": case, "state": "proposed", "proposed_at": NOW, "proposer": member}
        told = {"before": "P1", "after": "P2", "floor": "P2", "proposer_unit": "integrity"}
        tx.insert(Lowering, [{"id": uuid4(), **standing, **told}])
        tx.insert(Narrowing, [{"id": uuid4(), "exclusion": uuid4(), **standing}])
        closing = {"reason": "C3", "papers": "[]", "cools_until": NOW, "proposer_organisation": "org-police"}
        tx.insert(Closure, [{"id": uuid4(), **standing, **closing, "overseen": True}])
        opened = NewEvent(EventType.CONTENT_OPENED, NOW, screener, StateClass.OPEN)
        seq = append(tx, world.ledger, row.chain, [opened])
        eid = tx.scalars(select(LedgerEvent.eid).where(col(LedgerEvent.case) == row.chain, col(LedgerEvent.seq) == seq))  # type: ignore[call-overload]
        tx.insert(Reading, [{"eid": eid.one(), "case": case, "member": investigator, "at": NOW, "over": True}])

    write(world.sessions, trouble)
    return case


def a_claim_that_lapsed(world: World, case: UUID) -> None:
    def lapse(tx: Tx) -> None:
        lease = {"id": uuid4(), "case": case, "kind": ClockKind.LEASE, "set_by": "x", "step": 0}
        tx.insert(Clock, [{**lease, "due_at": NOW - CLAIM_BY, "met_at": None, "lapsed_at": None}])

    write(world.sessions, lapse)


CLAIM_BY = Clockwork().now - Clockwork().now.replace(hour=0)


def only_sessions(world: World, cookies: Mapping[str, str]) -> None:
    """Take away the sessions that hiding needed: they are shown on the page about accounts, and no case's."""
    kept = [session_id(cookie) for cookie in cookies.values()]
    write(world.sessions, lambda tx: tx.execute(delete(StaffSession).where(col(StaffSession.id).not_in(kept))))


ASKED = {"mailbox": "00000000-0000-4000-8000-000000000000", "words": "Is somebody with you?"}


def transcript(place: Place, name: str, cookie: str, shared: list[UUID], hidden: list[UUID]) -> list[Any]:
    """All that one person sees of a working day, to the byte, with the number of statements behind each page."""
    browser, seen = place.browser(name, cookie), []

    def keep(load: Callable[[], Any]) -> Any:
        with watching(place.world.sessions) as watched:
            page = load()
        seen.append((page.status, page.html, sorted(page.headers.items()), watched.count))
        return page

    first = keep(lambda: browser.open("/queue"))
    if any("Show the next" in words for _, words in first.links):
        keep(lambda: browser.open(first.link("Show the next")))
    for query in ("level=P1", "owner=none", "clock=late", "province=KH-17", "flag=settlement_attempt", "lang=km"):
        keep(partial(browser.open, f"/queue?{query}"))
    browser.open("/queue?lang=en")
    keep(lambda: browser.open("/oversight"))
    keep(lambda: browser.open("/rules"))
    people = keep(lambda: browser.open("/staff"))
    for href in [href for href, _ in people.links if href.startswith("/staff/people/")]:
        keep(partial(browser.open, href))
    for case in shared[:10]:
        page = keep(partial(browser.open, f"/cases/{case}"))
        keep(partial(browser.submit, page, "/open", reason="link"))
    for case in hidden:
        keep(partial(browser.open, f"/cases/{case}"))
        keep(partial(browser.send, f"/cases/{case}/open", {"t": page.form("/open").fields["t"], "reason": "link"}))
    if page.has_form("/claim"):
        keep(partial(browser.submit, page, "/claim"))
    page = keep(partial(browser.open, f"/cases/{shared[1]}"))
    for case in hidden:
        token = page.form("/sign-out").fields["t"]
        keep(partial(browser.send, f"/cases/{case}/questions", {"t": token, **ASKED}))
    keep(partial(browser.submit, page, "/raise", level="P1", reason="The tipster rang."))
    keep(lambda: browser.open("/queue"))
    return seen


def hide(world: World, name: str) -> list[UUID]:
    """Hide a case from a person in every way there is."""
    hidden = [a_troubled_case(world) for _ in range(3)]
    recuse(world, name, hidden[0])
    others = world.people["supervisor" if name != "supervisor" else "investigator"][0].id
    hidden_unit = unit_of(name)
    if name in ("investigator", "supervisor"):
        by_oversight(world, hidden[1], exclusions.exclude_person, others)
    else:
        by_oversight(world, hidden[1], exclusions.exclude_person, world.people[name][0].id)
    by_oversight(world, hidden[2], exclusions.exclude_unit, hidden_unit)
    for case in hidden:
        a_claim_that_lapsed(world, case)
    hidden.append(a_case(world, walled=True, level="P1", oversight="oversight-2"))
    return hidden


@pytest.mark.parametrize("name", ["investigator", "supervisor", "oversight"])
def test_no_byte_and_no_statement_tells_of_a_case_behind_the_wall(two: Any, name: str) -> None:
    without, with_, shared, cookies = two()
    hidden = hide(with_.world, name)
    for place in (with_, without):
        only_sessions(place.world, cookies)

    there = transcript(with_, name, cookies[name], shared, hidden)
    nowhere = transcript(without, name, cookies[name], shared, hidden)

    assert len(there) == len(nowhere) >= 30
    for here, other in zip(there, nowhere, strict=True):
        assert here == other
    assert "60" in there[0][1]  # ten other cases are read, and more are counted and paged
    assert sum(status == 200 for status, *_ in there) >= 28


@pytest.mark.parametrize("name", ["investigator", "oversight"])
def test_without_the_wall_the_two_worlds_differ(two: Any, name: str) -> None:
    """The negative control: the same case, in the same trouble, with nobody behind its wall."""
    without, with_, shared, cookies = two()
    case = a_troubled_case(with_.world)

    there = transcript(with_, name, cookies[name], shared, [case])
    nowhere = transcript(without, name, cookies[name], shared, [case])

    differing = [number for number, pair in enumerate(zip(there, nowhere, strict=False)) if pair[0] != pair[1]]
    assert 0 in differing
    assert len(differing) >= 6


def test_one_count_over_all_cases_is_enough_for_the_two_worlds_to_differ(two: Any, monkeypatch: Any) -> None:
    without, with_, shared, cookies = two()
    hidden = hide(with_.world, "investigator")
    monkeypatch.setattr(walls, "unwalled", lambda viewer: true())

    there = transcript(with_, "investigator", cookies["investigator"], shared, hidden)
    nowhere = transcript(without, "investigator", cookies["investigator"], shared, hidden)

    assert there[0] != nowhere[0]
