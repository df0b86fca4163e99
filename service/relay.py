"""The relay: the only part that can open a phone number (DESIGN section 1; keys.md sections 2 and 6.4).

It sends the neutral acknowledgement to a tipster, once and only when it is safe (twilio.md section 5), and texts to
people on duty. It knows no provider: a `Carrier` takes number and words. What may have been sent is never sent again.
"""

import hmac
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from sqlalchemy import exists, or_, select
from sqlmodel import col

from service import outbox
from service.cases import change, state_class
from service.db import Sessions, Tx, write
from service.errors import CannotOpen, CarrierFault, HotlineError, NotSent, Refused
from service.ladder import RING_WITHIN
from service.ledger.events import SYSTEM, EventType, Ledger, NewEvent
from service.logs import place
from service.models import Case, Contact, JobState, OutboxJob, ProviderReport
from service.outbox import never
from service.vault import boxes
from service.vault.contacts import contact_row, quiet_tag
from service.vault.relaying import open_contact

T = TypeVar("T")

log = structlog.get_logger("relay")

OPTED_OUT = 21610  # Twilio's word for "this number has asked for no more texts"
QUIET = timedelta(seconds=60)  # never twice within this (twilio.md section 5)
LOOK_EVERY = timedelta(seconds=15)
LONGEST_PAUSE = 300.0  # seconds between two tries (twilio.md section 5: 1 s to 5 min)
RINGS = 500  # taken at once: what waits for one phone goes in one text
FINAL = (JobState.DONE, JobState.DROPPED, JobState.FAILED, JobState.UNKNOWN)
BATCH = 20
PHNOM_PENH = ZoneInfo("Asia/Phnom_Penh")

# Words on a phone that somebody else may hold: no name of a service, no link, nothing that explains itself. Drafts,
# not reviewed by native speakers. A Khmer text has at most 67 units (twilio.md section 5), as do these all.
ACKNOWLEDGEMENTS: Mapping[str, str] = {
    "km": "ទទួលបានសារហើយ។ សូមអរគុណ។",
    "en": "Message received. Thank you.",
    "zh": "信息已收到。谢谢。",
    "ko": "메시지를 받았습니다. 감사합니다.",
    "fr": "Message reçu. Merci.",
    "vi": "Đã nhận tin nhắn. Cảm ơn.",
    "th": "ได้รับข้อความแล้ว ขอบคุณ",
    "ja": "メッセージを受け取りました。ありがとうございます。",
    "ru": "Сообщение получено. Спасибо.",
    "de": "Nachricht erhalten. Danke.",
}
RING_WORDS = "សូមបើកបញ្ជី។ Please open the queue. {time}"


def _quiet_after(moment: datetime) -> datetime:
    """Return until when a contact gets no text: to the full minute, which does not tell when somebody wrote."""
    return (moment + QUIET).replace(second=0, microsecond=0) + timedelta(minutes=1)


def _check_quiet(row_key: bytes, contact: Contact) -> None:
    tag = quiet_tag(row_key, contact.id, contact.opted_out_at, contact.quiet_until)
    if not hmac.compare_digest(tag, contact.quiet_tag or b""):
        raise CannotOpen("the tag of when a contact may be written to does not fit")


_REPORTS = {"accepted": 0, "scheduled": 0, "queued": 1, "sending": 2, "sent": 3, "delivered": 4, "read": 5}
_LOST = {"undelivered": 4, "failed": 4, "canceled": 4}


class Carrier(Protocol):
    """A provider that takes texts."""

    name: str

    def send(self, to: str, text: str) -> str:
        """Send one text and return the provider's id of it. Raises NotSent, Refused or Unclear."""

    def find(self, to: str, text: str, since: datetime) -> list[str]:
        """Return the ids of texts with these words to this number, sent at or after `since`. Raises CarrierFault."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One text to one number, for one or more outbox rows. Number and words never leave this process but to send."""

    jobs: tuple[UUID, ...]
    until: datetime  # when the rows are somebody else's, if they were not begun
    since: datetime  # when it was begun
    to: str = field(repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True)
class Relay:
    """What the worker holds to send texts.

    privates: the relay's private keys by generation. duty: numbers by post. now: the worker's time.
    """

    sessions: Sessions
    ledger: Ledger
    carrier: Carrier = field(repr=False)
    row_key: bytes = field(repr=False)
    privates: Mapping[int, bytes] = field(repr=False)
    duty: Mapping[str, Sequence[str]] = field(repr=False)
    now: Callable[[], datetime]

    def send_due(self, pool: Executor, stopping: Callable[[], bool] = never) -> int:
        """Send what waits and may be sent now, a few at once, and return how many rows were taken.

        stopping: what has not been begun when this says so is left to the next who takes it.
        """
        taken, late, errands = write(self.sessions, partial(self._take, now=self.now()))
        list(pool.map(partial(self._send, stopping=stopping), errands))
        outbox.each(self.sessions, [partial(self._too_late, job=job, now=self.now()) for job in late])
        return taken

    # --- deciding, in one transaction with taking the row ---

    def _take(self, tx: Tx, *, now: datetime) -> tuple[int, list[UUID], list[Errand]]:
        # People on duty come first: a flood of tips must not have all its answers sent before anybody is told of it.
        rows = outbox.take(tx, outbox.waiting(outbox.RING, now).limit(RINGS), now)
        rows += outbox.take(tx, outbox.waiting(outbox.ACKNOWLEDGE, now).limit(BATCH), now)
        late: list[UUID] = []
        errands: dict[str, Errand] = {}
        for row in rows:
            if row.expires_at < now:
                late.append(row.id)
                continue
            errand = self._errand(tx, row)
            if errand is None:
                outbox.settle(tx, [row.id], JobState.FAILED, now)
            elif row.kind == outbox.RING:
                # Many urgent tips at once must not make a phone on duty useless: what waits for it goes in one text.
                first = errands.setdefault(errand.to, errand)
                if first is not errand:
                    row.joined = first.jobs[0]
                    errands[errand.to] = replace(first, jobs=(*first.jobs, row.id))
            else:
                errands[row.key] = errand
        tx.flush()
        return len(rows), late, list(errands.values())

    def _too_late(self, tx: Tx, *, job: UUID, now: datetime) -> bool:
        self._give_up(tx, tx.get_one(OutboxJob, job), now)
        return True

    def _errand(self, tx: Tx, row: OutboxJob) -> Errand | None:
        """Return number and words of a row, or None for a row that is not ours or whose number is gone."""
        try:
            outbox.check_tag(self.row_key, row)
            to, text = self._post(row) if row.kind == outbox.RING else self._tipster(tx, row)
        except CannotOpen:
            log.error("outbox_row_is_not_ours", kind=row.kind)
            return None
        if to is None:
            log.error("number_is_gone", kind=row.kind)
            return None
        now = self.now()
        return Errand((row.id,), row.until or now, row.tried_at or now, to, text)

    def _tipster(self, tx: Tx, row: OutboxJob) -> tuple[str | None, str]:
        contact = tx.get(Contact, row.contact) if row.contact else None
        if contact is None or contact.key_sealed is None or contact.number_sealed is None:
            return None, ""
        boxes.check_row_tag(self.row_key, contact_row(contact.model_dump()), contact.row_tag)
        private = self.privates.get(contact.relay_generation)
        if private is None:
            raise CannotOpen("the relay's key of that generation is not here")
        number = open_contact(private, contact.relay_generation, contact.id, contact.key_sealed, contact.number_sealed)
        return number, ACKNOWLEDGEMENTS.get(row.language, ACKNOWLEDGEMENTS["km"])

    def _post(self, row: OutboxJob) -> tuple[str | None, str]:
        post, _, number = (row.duty or "").rpartition("#")
        numbers = self.duty.get(post, ())
        asked_at = (row.expires_at - RING_WITHIN).astimezone(PHNOM_PENH)
        to = numbers[int(number)] if number.isdigit() and int(number) < len(numbers) else None
        return to, RING_WORDS.format(time=f"{asked_at:%H:%M}")

    # --- sending, outside any transaction ---

    def _send(self, errand: Errand, *, stopping: Callable[[], bool]) -> None:
        """Send one text and write what came of it. A crash in between leaves a row that is looked for."""
        if stopping():
            self._write(self._give_back, errand)
            return
        begun = self._write(self._begin, errand)
        if begun is None:
            return
        errand = begun
        try:
            sid = self.carrier.send(errand.to, errand.text)
        except NotSent as fault:
            self._write(self._try_again, errand, after=fault.after)
        except Refused as fault:
            self._write(self._refused, errand, code=fault.code)
        except Exception as fault:  # noqa: BLE001 - whatever it was, the text may have left: never again
            if not isinstance(fault, CarrierFault):
                log.error("carrier_failed", error=type(fault).__name__, place=place(fault))
            self._write(self._unclear, errand)
        else:
            self._write(self._sent, errand, sid=sid)

    def _write(self, what: Callable[..., T], errand: Errand, **more: object) -> T | None:
        """Write what is or was done, once: written twice it might put back what somebody else is sending by then.

        What cannot be written leaves rows to `outbox.recover`; the other texts go on.
        """
        try:
            return write(self.sessions, partial(what, errand=errand, now=self.now(), **more))
        except Exception as fault:  # noqa: BLE001 - see above
            log.error("outcome_not_written", error=type(fault).__name__, place=place(fault))
            return None

    def _begin(self, tx: Tx, *, errand: Errand, now: datetime) -> Errand | None:
        """Return the errand as it is sent now; None if its rows may be another's, or it must not be sent now."""
        until = outbox.begin(tx, errand.jobs, errand.until, now)
        if until is None:
            return None
        row = self._rows(tx, errand)[0]
        if row.contact is not None and not self._may_answer(tx, row, until, now):
            return None
        return replace(errand, until=until, since=now)

    def _may_answer(self, tx: Tx, row: OutboxJob, until: datetime, now: datetime) -> bool:
        """Return whether the tipster may get this text now; if so the contact is quiet while it may be on its way."""
        contact = tx.scalars(outbox.locked(select(Contact).where(col(Contact.id) == row.contact))).one_or_none()
        if contact is None:  # somebody else decides about it just now
            outbox.put_back(tx, [row.id], now + timedelta(seconds=1))
            return False
        try:
            _check_quiet(self.row_key, contact)
        except CannotOpen:  # whether this phone is safe to write to is not known: then it is not
            log.error("contact_row_is_not_ours", kind=row.kind)
            outbox.settle(tx, [row.id], JobState.DROPPED, now)
            return False
        if contact.opted_out_at is not None:
            outbox.settle(tx, [row.id], JobState.DROPPED, now)
            return False
        if contact.quiet_until is not None and contact.quiet_until > now:
            outbox.put_back(tx, [row.id], contact.quiet_until)
            return False
        self._quieten(tx, contact, quiet_until=_quiet_after(until))
        return True

    def _quieten(self, tx: Tx, contact: Contact, **columns: datetime | None) -> None:
        """Change when a contact may be written to, under its tag. One that is not ours stays as it is: silent."""
        try:
            _check_quiet(self.row_key, contact)
        except CannotOpen:
            return
        for name, value in columns.items():
            setattr(contact, name, value)
        contact.quiet_tag = quiet_tag(self.row_key, contact.id, contact.opted_out_at, contact.quiet_until)
        tx.flush()

    def _give_back(self, tx: Tx, *, errand: Errand, now: datetime) -> None:
        outbox.give_back(tx, errand.jobs, errand.until, now)

    def _try_again(self, tx: Tx, *, errand: Errand, now: datetime, after: float | None) -> None:
        for row in self._rows(tx, errand):
            pause = min(LONGEST_PAUSE, max(after or 0.0, 2.0 ** min(row.attempts - 1, 9)))
            at = now + timedelta(seconds=pause * random.uniform(1, 1.25))  # noqa: S311 - jitter
            if at < row.expires_at:
                outbox.put_back(tx, [row.id], at)
            else:
                self._give_up(tx, row, now)
            self._end_quiet(tx, row, errand)

    def _refused(self, tx: Tx, *, errand: Errand, now: datetime, code: int) -> None:
        for row in self._rows(tx, errand):
            self._lost(tx, row, code, now)

    def _unclear(self, tx: Tx, *, errand: Errand, now: datetime) -> None:
        self._be_quiet(tx, self._rows(tx, errand)[0], now)
        outbox.look_for(tx, errand.jobs, now)

    def _sent(self, tx: Tx, *, errand: Errand, now: datetime, sid: str) -> None:
        first = self._rows(tx, errand)[0]
        self._be_quiet(tx, first, now)
        if outbox.settle(tx, errand.jobs, JobState.DONE, now, sid=boxes.provider_name(self.row_key, sid)):
            self._tell(tx, first, EventType.REPLY_SENT, now)

    def _be_quiet(self, tx: Tx, row: OutboxJob, now: datetime) -> None:
        if row.contact is not None:
            self._quieten(tx, tx.get_one(Contact, row.contact), quiet_until=_quiet_after(now))

    def _end_quiet(self, tx: Tx, row: OutboxJob, errand: Errand) -> None:
        """Let a contact be written to that was quiet for a text which was not sent."""
        contact = tx.get_one(Contact, row.contact) if row.contact is not None else None
        if contact is not None and contact.quiet_until == _quiet_after(errand.until):
            self._quieten(tx, contact, quiet_until=None)

    @staticmethod
    def _rows(tx: Tx, errand: Errand) -> list[OutboxJob]:
        rows = {row.id: row for row in tx.scalars(select(OutboxJob).where(col(OutboxJob.id).in_(errand.jobs))).all()}
        return [rows[job] for job in errand.jobs]

    # --- what came of it ---

    def look_for_unclear(self, stopping: Callable[[], bool] = never) -> int:
        """Look at the provider's list for what may have been sent, and return how many rows were settled.

        Found: done. Not found until the time for looking is over: unknown, and a person decides.
        """
        now = self.now()
        write(self.sessions, partial(outbox.recover, now=now))
        with self.sessions.read() as session:
            waiting = session.scalars(
                select(col(OutboxJob.id))
                .where(col(OutboxJob.state) == JobState.CHECKING, col(OutboxJob.not_before) <= now)
                .order_by(col(OutboxJob.tried_at))
                .limit(10 * BATCH)
            ).all()
        settled, answers = 0, True
        for job in waiting:
            if stopping():
                break
            try:
                errand = write(self.sessions, partial(self._claim_look, job=job, now=self.now()))
                if errand is None:
                    continue
                found, answers = self._find(errand) if answers else ([], False)
                settled += write(self.sessions, partial(self._looked, errand=errand, found=found, now=self.now()))
            except HotlineError as fault:  # this row's alone, and it is looked for again
                log.error("look_failed", error=type(fault).__name__, place=place(fault))
        return settled

    def _find(self, errand: Errand) -> tuple[Sequence[str], bool]:
        """Return the ids of such texts, and whether the provider answers: if not, the next would wait in vain."""
        try:
            return self.carrier.find(errand.to, errand.text, errand.since), True
        except CarrierFault as fault:
            log.warning("provider_list_not_read", error=type(fault).__name__)
            return [], False

    def _claim_look(self, tx: Tx, *, job: UUID, now: datetime) -> Errand | None:
        due = (col(OutboxJob.state) == JobState.CHECKING, col(OutboxJob.not_before) <= now)
        row = tx.scalars(outbox.locked(select(OutboxJob).where(col(OutboxJob.id) == job, *due))).one_or_none()
        if row is None:
            return None
        row.not_before = now + LOOK_EVERY
        if row.joined is not None:
            first = tx.get_one(OutboxJob, row.joined)
            if first.state in FINAL:
                outbox.settle(tx, [row.id], JobState(first.state), now)
            tx.flush()
            return None
        errand = self._errand(tx, row)
        if errand is None:
            self._end(tx, row, JobState.UNKNOWN, now)
        tx.flush()
        return errand

    def _looked(self, tx: Tx, *, errand: Errand, found: Sequence[str], now: datetime) -> bool:
        row = tx.scalars(
            select(OutboxJob).where(col(OutboxJob.id) == errand.jobs[0]).with_for_update(key_share=True)
        ).one()
        if row.state != JobState.CHECKING:
            return False
        names = [boxes.provider_name(self.row_key, sid) for sid in found]
        taken = set(tx.scalars(select(col(OutboxJob.sid)).where(col(OutboxJob.sid).in_(names))).all())
        name = next((name for name in names if name not in taken), None)
        if name is not None:
            if outbox.settle(tx, [row.id], JobState.DONE, now, sid=name):
                self._tell(tx, row, EventType.REPLY_SENT, now)
            return True
        if row.until is not None and now < row.until:
            return False
        self._end(tx, row, JobState.UNKNOWN, now)
        return True

    def take_reports(self, stopping: Callable[[], bool] = never) -> int:
        """Bring what the provider told to the rows that it is about, and return how many reports were taken.

        A state never goes back: reports come in any order (twilio.md section 5). One without a row waits as long as
        rows are looked for: its row may not know its id yet.
        """
        now = self.now()
        known = exists().where(col(OutboxJob.sid) == col(ProviderReport.sid))
        with self.sessions.read() as session:
            reports = session.execute(
                select(col(ProviderReport.sid), col(ProviderReport.status))
                .where(or_(known, col(ProviderReport.at) <= now - outbox.LOOKING))
                .order_by(col(ProviderReport.at))
                .limit(10 * BATCH)
            ).all()
        steps = [partial(self._take_report, sid=sid, status=status, now=now) for sid, status in reports]
        return outbox.each(self.sessions, steps, stopping)

    def _take_report(self, tx: Tx, *, sid: bytes, status: str, now: datetime) -> bool:
        report = tx.get(ProviderReport, (sid, status), with_for_update={"skip_locked": True})
        if report is None:
            return False
        tx.delete(report)
        # With the lock: of two reports at once the later one must see what the earlier one said.
        first = tx.scalars(
            select(OutboxJob).where(col(OutboxJob.sid) == sid).with_for_update(key_share=True)
        ).one_or_none()
        rows = [first] if first is not None else []
        if first is not None and status in _LOST:  # what went in the same text is lost with it
            rows += tx.scalars(
                select(OutboxJob).where(col(OutboxJob.joined) == first.id).with_for_update(key_share=True)
            ).all()
        for row in rows:
            self._reported(tx, row, report, now)
        tx.flush()
        return True

    def _reported(self, tx: Tx, row: OutboxJob, report: ProviderReport, now: datetime) -> None:
        ranks = _REPORTS | _LOST
        if ranks.get(report.status, -1) <= ranks.get(row.report or "", -1):
            return
        row.report, row.code = report.status, report.code
        tx.flush()
        if report.status in _LOST:
            self._lost(tx, row, report.code or 0, now)

    def _lost(self, tx: Tx, row: OutboxJob, code: int, now: datetime) -> None:
        """The provider says that a text will not arrive: because its reader wants none, or for a person to look at."""
        unwanted = code == OPTED_OUT and row.contact is not None
        if unwanted:
            contact = tx.get_one(Contact, row.contact)
            self._quieten(tx, contact, opted_out_at=contact.opted_out_at or now)
        row.code = code
        self._end(tx, row, JobState.DROPPED if unwanted else JobState.FAILED, now)

    def _give_up(self, tx: Tx, row: OutboxJob, now: datetime) -> None:
        """End a row that was not sent while it was worth it: a tipster is better left alone, staff must be told."""
        self._end(tx, row, JobState.DROPPED if row.kind == outbox.ACKNOWLEDGE else JobState.FAILED, now)

    def _end(self, tx: Tx, row: OutboxJob, state: JobState, now: datetime) -> None:
        row.state, row.done_at, row.until = state, now, None
        tx.flush()
        if row.kind == outbox.RING:
            log.error("page_not_sent", status=str(state))
        self._tell(tx, row, EventType.REPLY_FAILED, now)

    def _tell(self, tx: Tx, row: OutboxJob, what: EventType, now: datetime) -> None:
        """Append what came of an answer to a tipster. Texts to staff are told of by their ladder's own event."""
        case = tx.get(Case, row.case) if row.case is not None and row.kind != outbox.RING else None
        if case is None:
            return
        fields = {"kind": row.kind, "outcome": JobState.DONE if what == EventType.REPLY_SENT else row.state}
        change(tx, self.ledger, case, [NewEvent(what, now, SYSTEM, state_class(case.state), case.due_at, fields)])
