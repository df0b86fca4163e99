"""A case is worked through its pages alone: who is offered which step, with which paper, and what is refused."""

import io
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlmodel import col

from dashboards import casework, uploads
from dashboards.desk import Desk
from service import attachments, closures
from service.db import open_database, write
from service.ledger.events import EventType
from service.models import Case, Closure, ClosureState, LedgerEvent, Role, State
from tests.builders import PEOPLE, World, a_code, a_world
from tests.dashboards.builders import HOST, Browser, Clockwork, Page, a_case
from tests.dashboards.test_gate import checksum

Browse = Callable[..., Browser]
CAST = PEOPLE | {
    "supervisor": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Ros Chan", "រស់ ចាន់"),
    "night-supervisor": (Role.SUPERVISOR, "org-ngo", ("screening",), "Yim Sokha", "យឹម សុខា"),
}
MET = {"when": "9 March, 15:00", "where": "At her aunt's house", "present": "The aunt"}
TAKEN = {"reference": "SR 412/27", "taker": "Captain Rath", "rank": "captain", "taker_unit": "Anti-trafficking"}
OFFER = {"kind": "money_offered", "what": "A man came with an envelope.", "amount": "2000", "currency": "USD"}
_papers = iter(range(10_000))


def a_paper() -> bytes:
    """A scanned paper, unlike every other."""
    return b"%PDF-1.7 paper " + str(next(_papers)).encode()


@pytest.fixture(scope="module")
def founded(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """As in conftest.py, with two supervisors."""
    path = tmp_path_factory.mktemp("casework") / "founded.db"
    shutil.copy(sqlite_template, path)
    sessions = open_database(f"sqlite:///{path}")
    world = a_world(sessions, people=CAST)
    sessions.close()
    return path, world


def give(browser: Browser, page: Page, end: str, *papers: bytes, **answers: str) -> Page:
    """Fill in a form of a page and send it as a browser does that has papers to send."""
    form = page.form(end)
    fields = {name: text for name, text in form.fields.items() if not name.startswith(("proof", "official"))}
    assert set(answers) <= _asked(page, form.action) | {"official"}, "only what the page asks for"
    files = [(name, content, "letter.pdf") for name, content in zip(("proof", "proof-2"), papers, strict=False)]
    if not papers and "proof" in form.fields:
        files = [("proof", b"", "")]  # as browsers say that no file was chosen
    parts = [part(name, text.encode()) for name, text in (fields | answers).items()]
    kind = {"origin": HOST, "content-type": "multipart/form-data; boundary=x"}
    content = body(*parts, *(part(*file) for file in files))
    return Page(browser.client.post(form.action, content=content, headers=kind))


def _asked(page: Page, action: str) -> set[str]:
    names: set[str] = set()
    inside = False
    for tag, given in page.elements:
        if tag == "form":
            inside = given.get("action") == action
        elif inside and tag in ("input", "select", "textarea"):
            names.add(given["name"])
    return names


def offered(page: Page) -> set[str]:
    return {form.action.rpartition("/do/")[2] for form in page.forms if "/do/" in form.action}


def read(browser: Browser, case: UUID, reason: str = "owner") -> Page:
    return browser.submit(browser.open(f"/cases/{case}"), "/open", reason=reason)


def row(world: World, case: UUID) -> Case:
    with world.sessions.read() as session:
        found = session.get_one(Case, case)
        session.expunge(found)
        return found


def events(world: World, case: UUID) -> list[str]:
    with world.sessions.read() as session:
        chain = session.get_one(Case, case).chain
        of_case = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == chain).order_by(col(LedgerEvent.seq))
        return list(session.scalars(of_case).all())


# --- an investigator's way ---


def claimed(world: World, browser: Browser, **chosen: Any) -> UUID:
    case = a_case(world, unit="siem-reap", also=("screening",), **chosen)
    browser.submit(browser.open(f"/cases/{case}"), "/claim")
    read(browser, case)
    return case


def in_action(world: World, browser: Browser, **chosen: Any) -> UUID:
    case = claimed(world, browser, **chosen)
    page = browser.open(f"/cases/{case}")
    assert give(browser, page, "/do/act", a_paper(), kind="contact", **MET).status == 303
    return case


def test_an_investigator_takes_a_case_from_the_queue_to_an_authority_through_the_pages_alone(
    browse: Browse, world: World
) -> None:
    case = a_case(world, unit="siem-reap", also=("screening",), level="P1")
    browser = browse("investigator")
    queue = browser.open("/queue")
    page = browser.open(next(href for href, _ in queue.links if str(case) in href))
    browser.submit(page, "/claim")
    page = browser.open(f"/cases/{case}")
    assert "Open the account first" in page.text
    assert offered(page) == set()
    page = read(browser, case)
    assert ("details", "do-plan") in [(tag, given.get("id")) for tag, given in page.elements if "open" in given]

    assert give(browser, page, "/do/plan", plan="See her alone at school.", guess="Nobody but the aunt.").status == 303
    page = browser.open(f"/cases/{case}")
    assert "Next A step that protects" in page.text
    assert give(browser, page, "/do/act", a_paper(), kind="contact", **MET).status == 303
    page = browser.open(f"/cases/{case}")
    assert "State In action" in page.text
    sent = {"recipient": "Provincial prosecutor", "kind": "law", "summary": "A girl is held."}
    assert give(browser, page, "/do/refer", **sent).status == 303
    page = browser.open(f"/cases/{case}")
    assert "Next The authority takes it" in page.text
    assert give(browser, page, "/do/taken", a_paper(), **TAKEN).status == 303

    assert row(world, case).state == State.WITH_AUTHORITY
    page = browser.open(f"/cases/{case}")
    assert "State With an authority" in page.text
    assert "Captain Rath" not in page.html, "what was written is sealed"
    opened = read(browser, case)
    for written in ("See her alone at school.", "Captain Rath", "SR 412/27", "Provincial prosecutor"):
        assert written in opened.text


def test_a_missing_paper_and_a_paper_that_proves_something_already_change_nothing(browse: Browse, world: World) -> None:
    browser = browse("investigator")
    case = claimed(world, browser)
    page, paper = browser.open(f"/cases/{case}"), a_paper()
    refused = give(browser, page, "/do/act", kind="contact", **MET)
    assert (refused.status, "Attach the paper" in refused.text) == (422, True)
    assert give(browser, page, "/do/act", b"<html>", kind="contact", **MET).status == 422
    assert row(world, case).state == State.CLAIMED
    assert events(world, case)[-1] == EventType.STEP_REFUSED
    assert give(browser, browser.open(f"/cases/{case}"), "/do/act", paper, kind="contact", **MET).status == 303
    again = give(browser, browser.open(f"/cases/{case}"), "/do/act", paper, kind="evidence", **MET)
    assert (again.status, "proves something already" in again.text) == (422, True)
    with world.sessions.read() as session:
        assert len(attachments.attached(session, row(world, case))) == 1


def test_a_paper_is_given_out_as_a_file_after_its_event(browse: Browse, world: World) -> None:
    browser, paper = browse("investigator"), a_paper()
    case = claimed(world, browser)
    give(browser, browser.open(f"/cases/{case}"), "/do/act", paper, kind="contact", **MET)
    page = browser.open(f"/cases/{case}")
    form = next(form for form in page.forms if "/papers/" in form.action)
    answer = browser.client.post(form.action, data=form.fields, headers={"origin": HOST})

    assert answer.content == paper
    assert answer.headers["content-disposition"].endswith('-letter.pdf"')
    assert "sandbox" in answer.headers["content-security-policy"]
    assert events(world, case)[-1] == EventType.ATTACHMENT_OPENED
    assert "you have opened it" in browser.open(f"/cases/{case}").text


# --- who is offered what ---


def test_who_does_not_own_a_case_is_offered_what_anybody_may_record_and_no_more(browse: Browse, world: World) -> None:
    owner = browse("investigator")
    case = in_action(world, owner)
    assert {"plan", "act", "step", "refer", "settlement", "withdrawal"} == offered(owner.open(f"/cases/{case}"))
    for name, reason in (("investigator-2", "link"), ("oversight", "oversight"), ("screener", "screening")):
        other = browse(name)
        assert offered(other.open(f"/cases/{case}")) == set(), "nothing before reading it"
        assert offered(read(other, case, reason)) == {"settlement", "withdrawal"}


def test_a_step_of_another_is_refused_in_plain_words_and_stands_in_the_history(browse: Browse, world: World) -> None:
    owner, other = browse("investigator"), browse("investigator-2")
    case = in_action(world, owner)
    form = owner.open(f"/cases/{case}").form("/do/refer")
    token = read(other, case, "link").form("/sign-out").fields["t"]
    sent = {"recipient": "A friend", "kind": "law", "summary": "Nothing."}
    refused = other.send(form.action, form.fields | sent | {"t": token, "version": str(row(world, case).version)})

    assert (refused.status, "Only the owner of the case takes this step." in refused.text) == (403, True)
    assert row(world, case).state == State.IN_ACTION
    assert events(world, case)[-1] == EventType.STEP_REFUSED
    assert "Refused by the rules: Referred to an authority" in owner.open(f"/cases/{case}").text


# --- what happened, and what it does not do ---


def test_a_settlement_closes_nothing_raises_and_stays(browse: Browse, world: World) -> None:
    browser = browse("investigator")
    case = in_action(world, browser, level="P3")
    done = give(browser, browser.open(f"/cases/{case}"), "/do/settlement", official="yes", **OFFER)
    assert done.status == 303
    assert (row(world, case).state, row(world, case).level) == (State.IN_ACTION, "P2")
    page = browser.open(f"/cases/{case}")
    assert "Settlement recorded" in page.text
    assert "An official was there: Yes" in page.text
    assert "envelope" not in page.html
    opened = read(browser, case).text
    assert "A man came with an envelope." in opened
    assert "2000 USD" in opened
    assert "Money or goods offered" in opened
    close = browser.open(f"/cases/{case}/close")
    assert "14 days to object." in close.text
    assert "Somebody spoke of settling" in close.text


def test_a_withdrawal_is_reviewed_by_oversight_and_the_case_goes_on(browse: Browse, world: World) -> None:
    browser, oversight = browse("investigator"), browse("oversight")
    case = in_action(world, browser)
    told = {"wanted_by": "An uncle", "where": "At the commune", "present": "The uncle and a clerk"}
    assert give(browser, browser.open(f"/cases/{case}"), "/do/withdrawal", **told).status == 303
    assert row(world, case).state == State.WITHDRAWAL_REVIEW
    assert "review" not in offered(browser.open(f"/cases/{case}"))
    page = read(oversight, case, "oversight")
    names = ("advocate", "who_proposed", "in_room", "pressure", "wish", "guardian")
    record = dict.fromkeys(names, "As asked.") | {"heard": "heard_alone", "next": "open"}
    assert give(oversight, page, "/do/review", **record).status == 303
    assert row(world, case).state == State.IN_ACTION
    assert "It goes on openly" in read(oversight, case, "oversight").text


# --- closing ---


SAFE = {"why": "She lives with her aunt.", "seen_by": "Advocate Lina", "seen_when": "11 March"}


def propose(browser: Browser, case: UUID) -> Page:
    page = browser.open(f"/cases/{case}/close")
    forms = [form for form in page.forms if form.fields.get("code") == "C3"]
    assert len(forms) == 1
    files = {"proof": ("report.pdf", io.BytesIO(a_paper()))}
    fields = {name: text for name, text in forms[0].fields.items() if name != "proof"}
    return Page(browser.client.post(forms[0].action, data=fields | SAFE, files=files, headers={"origin": HOST}))


def stepped_up(world: World, clock: Clockwork, browser: Browser) -> Browser:
    """Give password and code again, on the page that asks for them."""
    page = browser.open("/step-up")
    password = "seven calm rivers of rice"
    assert browser.submit(page, "/step-up", password=password, code=a_code(clock.now)).status == 303
    return browser


def signs(world: World, clock: Clockwork, browser: Browser, case: UUID) -> Page:
    read(browser, case, "oversight")
    page = browser.open(f"/cases/{case}/close")
    assert "Open every paper first" in page.text
    assert not page.has_form("/sign")
    for form in [form for form in page.forms if "/papers/" in form.action]:
        assert browser.client.post(form.action, data=form.fields, headers={"origin": HOST}).status_code == 200
    page = browser.open(f"/cases/{case}/close")
    asked = browser.submit(page, "/sign")
    assert asked.headers["location"].startswith("/step-up")
    stepped_up(world, clock, browser)
    return browser.submit(browser.open(f"/cases/{case}/close"), "/sign")


def test_a_case_closes_through_two_organisations_and_only_with_oversight(
    browse: Browse, world: World, desk: Desk, clock: Clockwork
) -> None:
    investigator = browse("investigator")
    case = in_action(world, investigator)
    assert propose(investigator, case).status == 303
    assert row(world, case).state == State.CLOSURE_PROPOSED
    early = browse("night-supervisor")
    read(early, case, "supervision")
    assert "There is still time to object" in early.open(f"/cases/{case}/close").text
    assert "waits for your signature" not in early.open("/queue").text
    clock.now += timedelta(hours=73)
    own, night, oversight = (browse(name) for name in ("supervisor", "night-supervisor", "oversight"))
    assert "waits for your signature" not in own.open("/queue").text
    assert "waits for your signature" in night.open("/queue").text
    assert signs(world, clock, night, case).status == 303
    assert "Oversight must sign." in night.open(f"/cases/{case}/close").text
    assert signs(world, clock, oversight, case).status == 303
    assert "it closes when witnessed" in oversight.open(f"/cases/{case}").text
    assert row(world, case).state == State.CLOSURE_PROPOSED

    with world.sessions.read() as session:
        closure = session.scalars(select(Closure)).one()
        assert closure.state == ClosureState.SIGNED
    action = {"do": "close", "case": case.hex, "closure": closure.id.hex}
    write(world.sessions, lambda tx: closures.take_effect(tx, action, clock.now, work=desk.casework))
    page = browse("investigator").open(f"/cases/{case}")
    assert "State Closed" in page.text
    assert offered(page) == {"settlement", "reopen"}
    again = browse("investigator-2")
    page = read(again, case, "link")
    assert give(again, page, "/do/reopen", reason="She was seen there again.").status == 303
    assert row(world, case).state == State.CLAIMED


def test_the_proposers_own_supervisor_is_told_why_not_and_may_refuse(
    browse: Browse, world: World, clock: Clockwork
) -> None:
    investigator = browse("investigator")
    case = in_action(world, investigator)
    propose(investigator, case)
    clock.now += timedelta(hours=73)
    own = browse("supervisor")
    read(own, case, "supervision")
    page = own.open(f"/cases/{case}/close")
    assert "another one must sign" in page.text
    assert not page.has_form("/sign")
    assert own.submit(page, "/refuse", reason="The report is of another child.").status == 303
    assert row(world, case).state == State.IN_ACTION


@pytest.mark.parametrize("code", ["settled", "other", "C5", ""])
def test_what_is_no_reason_is_refused_in_plain_words_and_is_an_event(browse: Browse, world: World, code: str) -> None:
    browser = browse("investigator")
    case = in_action(world, browser)
    page = browser.open(f"/cases/{case}/close")
    form = next(form for form in page.forms if "code" in form.fields)
    fields = {name: text for name, text in form.fields.items() if not name.startswith("proof")}
    refused = browser.send(form.action, fields | SAFE | {"code": code})
    assert (refused.status, "This closes no case." in refused.text) == (422, True)
    assert events(world, case)[-1] == EventType.REASON_REJECTED
    assert row(world, case).state == State.IN_ACTION


def test_the_closing_page_offers_the_reasons_that_fit_and_says_what_stands_in_the_way(
    browse: Browse, world: World
) -> None:
    browser = browse("investigator")
    case = in_action(world, browser)
    page = browser.open(f"/cases/{case}/close")
    assert [form.fields["code"] for form in page.forms if "code" in form.fields] == ["C3", "C4", "C8", "C10"]
    assert "Conviction, final: from “In court”" in page.text
    other = browse("investigator-2")
    page = other.open(f"/cases/{case}/close")
    assert "Only the owner of the case proposes it." in page.text
    assert not [form for form in page.forms if "code" in form.fields]


# --- forms with papers ---


def body(*parts: bytes, boundary: bytes = b"x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    told = f'; filename="{filename}"' if filename is not None else ""
    return f'Content-Disposition: form-data; name="{name}"{told}\r\n\r\n'.encode() + content


def sent(browser: Browser, path: str, content: bytes, kind: str = "multipart/form-data; boundary=x") -> int:
    headers = {"origin": HOST, "content-type": kind}
    return browser.client.post(path, content=content, headers=headers).status_code


def test_papers_are_taken_only_where_a_form_asks_for_them(browse: Browse, world: World) -> None:
    browser = browse("investigator")
    case = in_action(world, browser)
    token = browser.open("/queue").form("/sign-out").fields["t"]
    version = str(row(world, case).version).encode()
    filled = body(part("t", token.encode()), part("version", version))
    for path in (f"/cases/{case}/claim", "/staff/password", "/queue", f"/cases/{case}/do/act/x", "/downloads/x/y"):
        assert sent(browser, path, filled) == 415, path
    assert sent(browser, f"/cases/{case}/do/act", filled) == 422  # the control: it is read there


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (lambda t: body(part("version", b"2")), 403),
        (lambda t: body(part("t", b"0" * 32), part("proof", b"%PDF-", "a.pdf")), 403),
        (lambda t: body(part("t", t, "t.txt")), 403),
        (lambda t: body(part("t", t), part("t", t)), 422),
        (lambda t: body(part("t", t), part("kind", b"\x00")), 422),
        (lambda t: body(part("t", t), part("kind", b"\xff")), 422),
        (lambda t: body(part("t", t))[:-6], 422),
        (lambda t: b"nothing of the kind", 422),
        (lambda t: body(part("t", t), *(part(f"n{n}", b"") for n in range(30))), 422),
        (lambda t: body(part("t", t), part("what", b"a" * 40_000)), 413),
        (lambda t: body(part("t", t), part("more", b"x")), 422),
        (lambda t: body(part("t", t), part("attached", b"%PDF-", "a.pdf")), 422),
        (lambda t: body(part("t", t), part("proof", b"%PDF-" + b"a" * uploads.LONGEST_BODY, "a.pdf")), 413),
    ],
)
def test_odd_bodies_with_papers_are_refused_and_change_nothing(
    browse: Browse, world: World, content: Callable[[bytes], bytes], status: int
) -> None:
    browser = browse("investigator")
    case = in_action(world, browser)
    token = browser.open("/queue").form("/sign-out").fields["t"].encode()
    before = checksum(world)
    assert sent(browser, f"/cases/{case}/do/act", content(token)) == status
    assert checksum(world) == before


def test_nobody_without_a_session_makes_us_read_a_paper(desk: Desk, world: World, monkeypatch: Any) -> None:
    read: list[int] = []
    monkeypatch.setattr("dashboards.gate.read_papers", lambda *_: read.append(1))
    nobody = Browser(desk)
    case = a_case(world)
    big = body(part("proof", b"a" * 100_000, "a.pdf"))
    assert sent(nobody, f"/cases/{case}/do/act", big) == 303
    assert read == []


def test_a_paper_never_touches_a_disk(browse: Browse, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file anywhere below a request would raise here."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file on a disk")

    browser = browse("investigator")
    case = claimed(world, browser)
    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = b"%PDF-1.7 " + bytes(3_000_000) + a_paper()
    assert give(browser, browser.open(f"/cases/{case}"), "/do/act", large, kind="contact", **MET).status == 303


def test_every_form_meets_the_service_with_words_it_knows() -> None:
    for name, form in casework.FORMS.items():
        assert {ask.name for ask in form.asks if not ask.label} <= set(casework.deed_words.ASKED), name
    assert set(casework.MEETS.values()) <= set(casework.FORMS)
    assert set(casework.acts.ACTS) == set(casework.deed_words.ACTS)
    assert set(casework.acts.EMERGENCIES) == set(casework.deed_words.EMERGENCIES)
    assert set(casework.acts.STEPS) == set(casework.deed_words.STEPS)
    assert set(casework.acts.BASES) == set(casework.deed_words.BASES)
    assert set(casework.settlements.KINDS) == set(casework.deed_words.SETTLEMENTS)
    assert set(casework.settlements.HEARD) == set(casework.deed_words.HEARD)
    assert set(closures.REASONS) == set(casework.deed_words.REASONS) == set(casework.deed_words.PROOFS)
