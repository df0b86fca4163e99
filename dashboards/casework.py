"""What people do with a case: each step that this person may take now, as a form that asks for its proof."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlmodel import Session

from dashboards import deed_words, terms
from dashboards.case_file import CaseFile, Reader
from dashboards.desk import Desk, OurDesk, Who
from dashboards.downloads import download
from dashboards.forms import AttachmentId, CaseId, read_version
from dashboards.words import Words, mark
from service import acts, attachments, cases, casework, closures, settlements, staff
from service.attachments import NewFile
from service.cases import ACTIVE, READERS, OpenedCase
from service.casework import Deed
from service.db import Tx, write
from service.errors import Forbidden, Invalid, InvalidForm, NotFound, WrongState
from service.ledger.events import EventType
from service.models import Case, ClockKind, Level, Member, State
from service.settlements import Offer
from service.staff import SignedIn
from service.walls import Viewer

router = APIRouter()

SHORT, LONG = 500, 2000  # characters of an answer; the gate takes 32 KB of all answers together


# --- the forms ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a form. choices: codes with their words; without, words are typed. label: where not `ASKED`'s."""

    name: str
    needed: bool = True
    long: bool = False
    label: str = ""
    hint: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    tick: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """A form as it came."""

    words: Mapping[str, str]
    papers: Sequence[NewFile] = field(repr=False)
    version: int

    def __getitem__(self, name: str) -> str:
        """Return an answer, empty where none was given."""
        return self.words.get(name, "")

    @property
    def deed(self) -> Deed:
        """The form as the service takes it."""
        said = {name: text for name, text in self.words.items() if name != "kind"}
        return Deed(self["kind"], said, self.papers[0] if self.papers else None)


Take = Callable[..., None]  # (tx, work, viewer, opened, given, *, version, now)


@dataclass(frozen=True, slots=True)
class DeedForm:
    """A step that a page offers. offered: whether to this person now; the service decides when it is taken.

    proof: a paper is needed; None where none is asked for.
    """

    title: str
    hint: str
    button: str
    asks: tuple[Ask, ...]
    event: EventType
    offered: Callable[[Viewer, Case], bool]
    take: Take
    proof: bool | None = None


def _owns(*states: State) -> Callable[[Viewer, Case], bool]:
    return lambda viewer, case: case.owner == viewer.member and case.state in states


def _moves(event: EventType) -> Callable[[Viewer, Case], bool]:
    """Return whether a row of the table of transitions starts here for this person."""

    def offered(viewer: Viewer, case: Case) -> bool:
        try:
            cases.transition(case, event, viewer.role, viewer.member)
        except (WrongState, Forbidden):
            return False
        return True

    return offered


def _urgent(viewer: Viewer, case: Case) -> bool:
    return case.level == Level.P1 and case.state != State.CLOSED


def _by_phone(viewer: Viewer, case: Case) -> bool:
    return _owns(State.REFERRED)(viewer, case) and case.level in (Level.P1, Level.P2)


def _deed(step: Any) -> Take:
    return lambda tx, work, viewer, opened, given, **seen: step(tx, work, viewer, opened, given.deed, **seen)


def _words(step: Any) -> Take:
    return lambda tx, work, viewer, opened, given, **seen: step(tx, work, viewer, opened, given.words, **seen)


def _reason(step: Any) -> Take:
    return lambda tx, work, viewer, opened, given, **seen: step(tx, work, viewer, opened, given["reason"], **seen)


def _plan(tx: Tx, work: casework.Casework, viewer: Viewer, opened: OpenedCase, given: Given, **seen: Any) -> None:
    acts.plan(tx, work, viewer, opened, given["plan"], given["guess"], **seen)


def _offer(tx: Tx, work: casework.Casework, viewer: Viewer, opened: OpenedCase, given: Given, **seen: Any) -> None:
    amount = given["amount"].replace(",", "").replace(" ", "")
    if amount and not amount.isdecimal():
        raise InvalidForm("amount", "Give a whole number and riel, dollar or baht.")
    told = {n: t for n, t in given.words.items() if n not in ("kind", "amount", "currency", "official")}
    offer = Offer(given["kind"], told, bool(given["official"]), int(amount) if amount else None, given["currency"])
    settlements.record(tx, work, viewer, opened, offer, **seen)


OUR_TIME = mark("Phnom Penh time")
WHO_TOOK = (Ask("taker"), Ask("rank"), Ask("taker_unit"))
WHY = Ask("reason", long=True)
WHAT = Ask("what", long=True)
MORE = Ask("what", needed=False, long=True, label=mark("Anything else"))

FORMS: Mapping[str, DeedForm] = {
    "act": DeedForm(
        mark("Record an act"),
        mark("Something that protects, with its paper. The first one takes the case into action."),
        mark("Record the act"),
        (
            Ask("kind", choices=deed_words.ACTS, label=mark("What was done")),
            Ask("when", hint=OUR_TIME),
            Ask("where"),
            Ask("present"),
            MORE,
        ),
        EventType.ACT_RECORDED,
        _owns(*ACTIVE),
        _deed(acts.act),
        proof=True,
    ),
    "emergency": DeedForm(
        mark("Ambulance, police or shelter was rung"),
        mark("Anybody who has read a P1 records it. It counts as the act that is due."),
        mark("Record the call"),
        (
            Ask("kind", choices=deed_words.EMERGENCIES, label=mark("Who was rung")),
            Ask("taker", label=mark("Name of the person reached")),
            Ask("taker_unit"),
            Ask("number"),
            Ask("when", hint=OUR_TIME),
            MORE,
        ),
        EventType.ACT_RECORDED,
        _urgent,
        _deed(acts.emergency),
    ),
    "refer": DeedForm(
        mark("Refer it to an authority"),
        mark("It stays ours until they have taken it: their reference, a name, their paper."),
        mark("Record the referral"),
        (
            Ask("recipient"),
            Ask("kind", choices=deed_words.BASES, label=mark("On what basis")),
            Ask(
                "reason",
                needed=False,
                long=True,
                hint=mark("Needed where the basis is the best interests of the child."),
            ),
            Ask("summary", long=True, hint=mark("All that they get. Leave out who told, how to reach them, and when.")),
        ),
        EventType.REFERRAL_SENT,
        _moves(EventType.REFERRAL_SENT),
        _deed(acts.refer),
    ),
    "taken": DeedForm(
        mark("The authority has taken it"),
        mark("With their own reference, who took it, and their paper."),
        mark("Record that they took it"),
        (Ask("reference", label=mark("Their reference number")), *WHO_TOOK),
        EventType.REFERRAL_TAKEN,
        _moves(EventType.REFERRAL_TAKEN),
        _deed(acts.taken),
        proof=True,
    ),
    "phone": DeedForm(
        mark("They took it by telephone"),
        mark("It stays referred: their reference and paper are due in 72 hours."),
        mark("Record the call"),
        (*WHO_TOOK, Ask("number"), Ask("when", hint=OUR_TIME)),
        EventType.STEP_RECORDED,
        _by_phone,
        _words(acts.taken_by_phone),
    ),
    "step": DeedForm(
        mark("Record a step"),
        mark("A letter, a hearing, an answer. A paper from outside also renews the reminder."),
        mark("Record the step"),
        (Ask("kind", choices=deed_words.STEPS, label=mark("What kind of step")), WHAT),
        EventType.STEP_RECORDED,
        _owns(*(ACTIVE - {State.CLAIMED})),
        _deed(acts.step),
        proof=False,
    ),
    "back": DeedForm(
        mark("They refused it, or let it lie"),
        mark("The case comes back into action; oversight gets a copy."),
        mark("Take it back"),
        (WHY,),
        EventType.REFERRAL_REFUSED,
        _moves(EventType.REFERRAL_REFUSED),
        _reason(acts.not_taken),
    ),
    "plan": DeedForm(
        mark("Enter the plan"),
        mark("After a claim it is due first. It can be changed later."),
        mark("Save the plan"),
        (
            Ask("plan", long=True),
            Ask(
                "guess",
                long=True,
                hint=mark("Asked before any visit: a visit may show the suspect that somebody spoke."),
            ),
        ),
        EventType.PLAN_RECORDED,
        _owns(*ACTIVE),
        _plan,
    ),
    "court": DeedForm(
        mark("It was brought to court"),
        mark("With the charge or docket number and its paper."),
        mark("Record the court"),
        (Ask("reference", label=mark("Charge or docket number")),),
        EventType.COURT_ENTERED,
        _moves(EventType.COURT_ENTERED),
        _deed(acts.to_court),
        proof=True,
    ),
    "court-back": DeedForm(
        mark("The court gave it back"),
        mark("With the court’s own paper."),
        mark("Record it"),
        (WHY,),
        EventType.COURT_RETURNED,
        _moves(EventType.COURT_RETURNED),
        _deed(acts.from_court),
        proof=True,
    ),
    "review": DeedForm(
        mark("Record the review of the withdrawal"),
        mark("Oversight with the advocate. The case goes on from where it was."),
        mark("Record the review"),
        (
            Ask("advocate"),
            Ask("heard", choices=deed_words.HEARD),
            Ask("who_proposed"),
            Ask("in_room"),
            Ask("pressure", hint=mark("What was asked about each, and what was answered.")),
            Ask("wish", hint=mark("Apart from what the guardian wishes.")),
            Ask("guardian"),
            Ask("next", choices=deed_words.OUTCOMES),
        ),
        EventType.REVIEW_HELD,
        _moves(EventType.REVIEW_HELD),
        _words(settlements.hold_review),
    ),
    "settlement": DeedForm(
        mark("Somebody speaks of settling"),
        mark("Record what happened. It closes nothing and tells oversight; nobody can delete it."),
        mark("Record it"),
        (
            Ask("kind", choices=deed_words.SETTLEMENTS, label=mark("What was offered or said")),
            WHAT,
            Ask("broker", needed=False),
            Ask("office", needed=False),
            Ask("rank", needed=False),
            Ask("unit", needed=False, label=mark("Their unit")),
            Ask("where", needed=False),
            Ask("when", needed=False, hint=OUR_TIME),
            Ask("present", needed=False),
            Ask("official", needed=False, tick=True, label=mark("An official was there")),
            Ask("amount", needed=False, hint=mark("Only if it was told. Never ask a family.")),
            Ask("currency", needed=False, choices=deed_words.CURRENCIES, label=mark("Currency")),
            Ask("told_by", needed=False),
        ),
        EventType.SETTLEMENT_SIGNALLED,
        lambda viewer, case: True,
        _offer,
    ),
    "withdrawal": DeedForm(
        mark("Somebody wants to stop"),
        mark("Oversight reviews it within five days. The case goes on by default."),
        mark("Record it"),
        (Ask("wanted_by"), Ask("where"), Ask("present"), MORE),
        EventType.WITHDRAWAL_RECORDED,
        _moves(EventType.WITHDRAWAL_RECORDED),
        _words(settlements.withdraw),
    ),
    "release": DeedForm(
        mark("Give the claim back"),
        mark("The case is open again, with its first deadline."),
        mark("Give it back"),
        (WHY,),
        EventType.CASE_RELEASED,
        _moves(EventType.CASE_RELEASED),
        _reason(acts.release),
    ),
    "reopen": DeedForm(
        mark("Open the case again"),
        mark("Whoever reads it may, at any time. It gets a new deadline to act."),
        mark("Open it again"),
        (WHY,),
        EventType.CASE_REOPENED,
        _moves(EventType.CASE_REOPENED),
        _reason(closures.reopen),
    ),
}
# The form that meets what is due next: it stands first, and open.
MEETS: Mapping[str, str] = {
    ClockKind.LEASE: "plan",
    ClockKind.ACT: "act",
    ClockKind.STEP: "step",
    ClockKind.TAKEN: "taken",
    ClockKind.PAPERS: "taken",
    ClockKind.HEARTBEAT: "step",
    ClockKind.LETTER: "step",
    ClockKind.REVIEW: "review",
}


# --- steps ----------------------------------------------------------------------------------------------


def read_given(request: Request, asks: Sequence[Ask], papers: Sequence[str]) -> Given:
    """Return a form that the gate has read, with exactly the answers and papers that it may have. Raises Invalid."""
    fields, files = request.state.form, request.state.files
    names = {ask.name for ask in asks}
    if set(fields) - names - {"t", "version"} or {file.field for file in files} - set(papers):
        raise Invalid("The form cannot be read.")
    for ask in asks:
        if len(fields.get(ask.name, "")) > (LONG if ask.long else SHORT):
            raise InvalidForm(ask.name, "This is too long.")
        if ask.choices and fields.get(ask.name) and fields[ask.name] not in ask.choices:
            raise InvalidForm(ask.name, "Choose one of the answers.")
    said = {name: fields[name] for name in names if name in fields}
    return Given(said, files, read_version(fields.get("version", "")))


@contextmanager
def refusals_noted(desk: Desk, who: SignedIn, case_id: UUID, what: EventType, now: datetime) -> Iterator[None]:
    """Leave an event of a step that the rules refuse, or whose paper they do; then the refusal goes on."""
    try:
        yield
    except (Forbidden, WrongState, InvalidForm) as refused:
        if not isinstance(refused, InvalidForm) or refused.field == "proof":
            casework.note_refused(desk.sessions, desk.ledger, who.viewer, case_id, what, now)
        raise


def opened_case(tx: Tx, desk: Desk, who: SignedIn, case_id: UUID) -> OpenedCase:
    """Return a case with the keys of this person's units."""
    return staff.open_keys(tx, desk.row_key, desk.cards, who, cases.find(tx, who.viewer, case_id))


@router.post("/cases/{case_id}/do/{deed}")
def do(request: Request, case_id: CaseId, deed: str, desk: OurDesk, who: Who) -> Response:
    """Take a step with a case."""
    form = FORMS.get(deed)
    if form is None:
        raise NotFound("There is nothing here.")
    now = desk.clock()
    given = read_given(request, form.asks, [] if form.proof is None else ["proof"])

    def use_case(tx: Tx) -> None:
        opened = opened_case(tx, desk, who, case_id)
        form.take(tx, desk.casework, who.viewer, opened, given, version=given.version, now=now)

    with refusals_noted(desk, who, case_id, form.event, now):
        write(desk.sessions, use_case)
    return RedirectResponse(f"/cases/{case_id}?done={deed}", 303)


@router.post("/downloads/{case_id}/papers/{attachment_id}")
def give_paper(case_id: CaseId, attachment_id: AttachmentId, desk: OurDesk, who: Who) -> Response:
    """Give out a paper of a case, after writing who opens it."""
    attachments.record_opening(desk.sessions, desk.ledger, who.viewer, case_id, attachment_id, desk.clock())
    with desk.sessions.read() as session:
        case = cases.find(session, who.viewer, case_id)
        opened = staff.open_keys(session, desk.row_key, desk.cards, who, case)
        name, content = attachments.open_file(session, opened, attachment_id)
        return download(f"{cases.reference(case_id)}-{name}", b"".join(content))


# --- what the page of a case shows ----------------------------------------------------------------------


def work_values(session: Session, reader: Reader, file: CaseFile, done: str) -> dict[str, Any]:
    """Return what the page of a case shows of the work on it: what this person may do now, its marks, its papers."""
    case, viewer, words = file.case, reader.viewer, reader.words
    reads = viewer.role in READERS
    has_read = reads and cases.has_opened(session, case, viewer)
    offered = [name for name, form in FORMS.items() if has_read and form.offered(viewer, case)]
    first = MEETS.get(case.due_kind)
    if case.state == State.CLAIMED and case.due_kind == ClockKind.CLAIM:
        first = "plan"
    if first in offered:
        offered = [first, *(name for name in offered if name != first)]
    return {
        "deeds": [form_values(words, FORMS[name], name, first=name == first) for name in offered],
        "deeds_sealed": reads and not has_read,
        "may_close": has_read and closures.fits(case) and _moves(EventType.CLOSURE_PROPOSED)(viewer, case),
        "marks": [terms.term(words, deed_words.OVERLAYS, kind) for kind in sorted(cases.overlays(session, case))],
        "papers": papers(session, reader, file) if reads else [],
        "done": words("It is recorded. What is due next stands in this page.") if done in FORMS else "",
    }


def form_values(words: Words, form: DeedForm, name: str, *, first: bool = False) -> dict[str, Any]:
    """Return a form for its template."""
    return {
        "name": name,
        "title": words(form.title),
        "hint": words(form.hint),
        "button": words(form.button),
        "asks": [ask_values(words, ask, name) for ask in form.asks],
        "proof": form.proof,
        "first": first,
    }


def ask_values(words: Words, ask: Ask, form: str) -> dict[str, Any]:
    """Return a question of a form for its template."""
    return {
        "id": f"{form}-{ask.name}",
        "name": ask.name,
        "label": words(ask.label or deed_words.ASKED[ask.name]),
        "hint": words(ask.hint) if ask.hint else "",
        "needed": ask.needed,
        "long": ask.long,
        "tick": ask.tick,
        "most": LONG if ask.long else SHORT,
        "choices": [{"value": code, "label": words(text)} for code, text in ask.choices.items()],
    }


def papers(session: Session, reader: Reader, file: CaseFile) -> list[dict[str, Any]]:
    """Return the papers of a case: which event each proves, who filed it, and whether this person has opened it."""
    words = reader.words
    seen = attachments.opened_by(session, file.case, reader.viewer.member)
    proves = {
        item: step
        for step in file.steps
        if step.type != EventType.ATTACHMENT_OPENED
        for item in [step.fields.get("attachment"), *step.fields.get("attachments", [])]
    }
    found = []
    for row in attachments.attached(session, file.case):
        step, filed_by = proves.get(row.id.hex), session.get(Member, row.filed_by)
        found.append(
            {
                "id": str(row.id),
                "number": words.digits(row.number),
                "proves": terms.step(words, step.type, step.fields, reader.units) if step is not None else "",
                "who": words.of_two(filed_by.name, filed_by.name_km) if filed_by is not None else "",
                "when": words.hour_of(row.filed_hour),
                "seen": row.id in seen,
            }
        )
    return found
