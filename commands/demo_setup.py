"""The demo's set-up: keys, people and tips through the same functions that a real installation uses."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex

from commands import demo_cast as cast
from commands.demo_cast import Person, Step, Told
from commands.demo_folder import DATABASE, KEYS
from service import cases, ceremony, reading, staff
from service.ceremony import Founding
from service.config import Settings
from service.db import Sessions, Tx, Writer, open_database, write
from service.intake import IncomingTip, Intake, Pepper
from service.ledger.events import Ledger
from service.models import Case, Channel, Member, Tip
from service.schema import migrate
from service.staff import SignedIn
from service.triage import Triage
from service.vault.members import MemberKeys
from service.walls import Seat, Viewer
from webhooks.answers import Answers

FOUNDED = timedelta(days=2)  # before the first tip, so that the history reads in order
NUMBERS = ("+85500000100", "+85500000101")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Installation:
    """What the set-up holds in memory while it runs: all keys at once, as only a demo does."""

    settings: Settings
    sessions: Sessions
    founding: Founding
    ledger: Ledger
    now: datetime
    people: dict[str, tuple[Member, MemberKeys]] = field(default_factory=dict)
    tips: dict[str, Tip] = field(default_factory=dict)


def settle(folder: Path, *, public_url: str, now: datetime, say: Say) -> dict[str, str]:
    """Make keys, database, people and tips in `folder`, which is empty, and return the ``HOTLINE_*`` settings.

    public_url: the ledger's name comes from it, so it stays for the life of the folder. say: tells how far it is.
    """
    # Defaults alone: what this shell has set for another installation has no place in the demo.
    settings = Settings.model_construct(public_url=public_url)
    say("keys of all units and processes")
    founding = ceremony.found(cast.PLANS, now=now - FOUNDED)
    named = ceremony.write_files(founding, folder / KEYS, twilio_token=token_hex(16))
    database_url = f"sqlite:///{folder / DATABASE}"
    migrate(database_url)
    sessions = open_database(database_url)
    try:
        ledger = Ledger(settings.origin, founding.cards.monitor().public)
        made = Installation(settings, sessions, founding, ledger, now)
        say(f"{len(cast.PEOPLE)} accounts, each under a slow password hash as in earnest")
        _enrol(made)
        say(f"{len(cast.TOLD)} invented messages, and some work on them")
        _receive(made)
        for step in cast.STEPS:
            _take(made, step)
    finally:
        sessions.close()
    return {
        "HOTLINE_DEMO": "true",
        "HOTLINE_DATABASE_URL": database_url,
        "HOTLINE_PUBLIC_URL": public_url,
        "HOTLINE_TWILIO_ACCOUNT_SID": "AC" + token_hex(16),
        "HOTLINE_TWILIO_NUMBERS": ",".join(NUMBERS),
        **named,
    }


# --- people ---------------------------------------------------------------------------------------------


def _enrol(made: Installation) -> None:
    began = made.now - FOUNDED
    register = partial(
        ceremony.register,
        ledger=made.ledger,
        organisations=cast.ORGANISATIONS,
        plans=cast.PLANS,
        deck=made.founding.cards,
        now=began,
    )
    write(made.sessions, register)
    for person in cast.PEOPLE:
        made.people[person.account] = write(made.sessions, partial(_join, made=made, person=person, now=began))


def _join(tx: Tx, *, made: Installation, person: Person, now: datetime) -> tuple[Member, MemberKeys]:
    card = made.founding.cards.unit(person.unit)
    member, keys = staff.enrol(
        tx,
        made.ledger,
        made.founding.row_key,
        account=person.account,
        name=person.name,
        name_km=person.name_km,
        organisation=card.organisation,
        role=person.role,
        password=cast.PASSPHRASE,
        now=now,
    )
    staff.grant(tx, made.ledger, card, made.founding.unit_privates[card.unit], member, member, keys, now)
    tx.flush()
    tx.refresh(member)
    tx.expunge(member)
    return member, keys


def _signed_in(made: Installation, account: str) -> SignedIn:
    """Return a person as if signed in: no session is stored, and no password hashed once more."""
    member, keys = made.people[account]
    unit = next(person.unit for person in cast.PEOPLE if person.account == account)
    card = made.founding.cards.unit(unit)
    seat = Seat(card.unit, card.kind, card.organisation)
    viewer = Viewer(member.id, member.chain, member.name, member.name_km, member.role, member.organisation, (seat,))
    return SignedIn(viewer, keys, b"", "")


# --- tips -----------------------------------------------------------------------------------------------


def _receive(made: Installation) -> None:
    with _intake(made) as intake:
        for told in cast.TOLD:
            receipt = asyncio.run(intake.receive(_incoming(told, made.now)))
            with made.sessions.read() as session:
                made.tips[told.key] = session.get_one(Tip, receipt.tip)


@contextmanager
def _intake(made: Installation) -> Iterator[Intake]:
    settings, founding = made.settings, made.founding
    writer = Writer(made.sessions)
    try:
        yield Intake(
            writer=writer,
            ledger=made.ledger,
            cards=founding.cards,
            relay=founding.relay,
            row_key=founding.row_key,
            peppers=[Pepper(settings.phone_pepper_epoch, founding.phone_pepper)],
            triage=Triage.load(settings.ruleset_file, settings.lexicon_dir),
            claim_targets=settings.claim_targets,
            act_targets=settings.act_targets,
        )
    finally:
        writer.close()


def _incoming(told: Told, now: datetime) -> IncomingTip:
    """Return a message as its channel would hand it over."""
    at = now - timedelta(minutes=told.ago)
    if told.sender is not None:
        return IncomingTip(Channel.SMS, "twilio", "sms", "SM" + token_hex(16), told.text, at, sender=told.sender)
    answers = Answers({"what": told.text, **told.answers})
    return IncomingTip(
        Channel.WEB,
        "web",
        "form",
        token_hex(16),
        told.text,
        at,
        sender=answers.sender,
        stated=answers.facts(at),
        context={"form": "public", "token": "good"},
        reply_allowed=answers.reply_allowed,
    )


# --- casework -------------------------------------------------------------------------------------------


def _take(made: Installation, step: Step) -> None:
    """Take one step of the screenplay: open the account, hand the case on, or claim it."""
    who, now = _signed_in(made, step.account), made.now - timedelta(minutes=step.ago)
    case_id = made.tips[step.tip].case
    if step.unit is not None:
        write(made.sessions, partial(_hand_on, made=made, who=who, step=step, now=now))
    elif step.claims:
        write(made.sessions, partial(_claim, made=made, who=who, step=step, now=now))
    else:
        reason = "screening" if step.account == "screener" else "owner"
        reading.record_opening(
            made.sessions, made.ledger, made.founding.row_key, who.viewer, case_id, reason=reason, note="", now=now
        )


def _hand_on(tx: Tx, *, made: Installation, who: SignedIn, step: Step, now: datetime) -> None:
    deck = made.founding.cards
    case = cases.find(tx, who.viewer, made.tips[step.tip].case)
    opened = staff.open_keys(tx, made.founding.row_key, deck, who, case)
    unit = step.unit or ""
    cases.hand_on(tx, made.ledger, who.viewer, opened, deck, unit=unit, answer="no", version=case.version, now=now)


def _claim(tx: Tx, *, made: Installation, who: SignedIn, step: Step, now: datetime) -> None:
    case: Case = cases.find(tx, who.viewer, made.tips[step.tip].case)
    cases.claim(tx, made.ledger, who.viewer, case.id, version=case.version, leases=made.settings.leases, now=now)
