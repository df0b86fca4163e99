"""The demo's set-up: keys, people and tips through the same functions that a real installation uses."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from secrets import token_hex
from uuid import UUID

from sqlalchemy import func, select
from sqlmodel import col

from commands import demo_cast as cast
from commands import demo_witnesses
from commands.demo_cast import Claimed, HandedOn, Opened, Person, Story, Told
from commands.demo_folder import DATABASE, KEYS, POLICY, WITNESSES
from commands.sequencing import make_signer
from service import cases, ceremony, exclusions, ladder, reading, staff
from service.ceremony import Founding
from service.clocks import RUNNING
from service.config import Settings
from service.db import Sessions, Tx, Writer, open_database, write
from service.exclusions import Wallkeeper
from service.history import NameKeys
from service.intake import IncomingTip, Intake, Pepper
from service.ladder import Watch
from service.ledger.events import Ledger
from service.models import Channel, Clock, Member, Role, Tip
from service.relay import Relay
from service.schema import migrate
from service.staff import SignedIn
from service.triage import Triage
from service.vault.members import MemberKeys
from service.walls import Seat, Viewer
from webhooks.answers import Answers

FOUNDED = timedelta(days=1)  # before the first tip, so that the history reads in order
NUMBERS = ("+85500000100", "+85500000101")

Say = Callable[[str], None]


@dataclass
class Installation:
    """What the set-up holds in memory while it runs: all keys at once, as only a demo does.

    pool: runs what sends a text. clock: the moment that the set-up has come to, from the founding to the present.
    """

    settings: Settings
    sessions: Sessions
    founding: Founding
    ledger: Ledger
    pool: Executor
    clock: datetime
    people: dict[str, tuple[Member, MemberKeys]] = field(default_factory=dict)
    cases: dict[str, UUID] = field(default_factory=dict)

    @cached_property
    def watch(self) -> Watch:
        """Who is told of a case."""
        return Watch(self.ledger, self.founding.row_key, self.founding.cards, cast.DUTY)

    @cached_property
    def relay(self) -> Relay:
        """What sends texts, to a provider that took all of them."""
        privates = {self.founding.relay.generation: self.founding.relay_private}
        row_key, provider = self.founding.row_key, PastProvider()
        return Relay(self.sessions, self.ledger, provider, row_key, privates, cast.DUTY, lambda: self.clock)


class PastProvider:
    """The provider of the last three weeks: every text arrived, and none is left there."""

    name = "twilio"

    def send(self, to: str, text: str) -> str:
        """Return the id of a text."""
        return "SM" + token_hex(16)

    def find(self, to: str, text: str, since: datetime) -> list[str]:
        """Return nothing: no text was ever in doubt."""
        return []


def settle(folder: Path, *, public_url: str, now: datetime, say: Say) -> dict[str, str]:
    """Make keys, database, people and tips in `folder`, which is empty, and return the ``HOTLINE_*`` settings.

    public_url: the ledger's name comes from it, so it stays for the life of the folder. say: tells how far it is.
    """
    # Defaults alone: what this shell has set for another installation has no place in the demo.
    settings = Settings.model_construct(public_url=public_url)
    say("keys of all units and processes")
    founding = ceremony.found(cast.PLANS, now=now)  # of today, for a relay key lives 30 days
    named = ceremony.write_files(founding, folder / KEYS, twilio_token=token_hex(16), twilio_api_key=token_hex(16))
    named |= ceremony.public_files(folder / KEYS) | ceremony.worker_files(folder / KEYS)
    named |= make_signer(folder / KEYS / "ledger", settings.origin)
    demo_witnesses.make(folder / WITNESSES, named["HOTLINE_LEDGER_VKEY"])
    named["HOTLINE_LEDGER_CENSUS_DIR"] = str(folder / "census")
    database_url = f"sqlite:///{folder / DATABASE}"
    migrate(database_url)
    stories = cast.read_stories()
    now = now.replace(second=0, microsecond=0)  # as intake writes what arrives, so that the ledger reads in order
    began = now - max(story.story[0].ago for story in stories) - FOUNDED
    sessions = open_database(database_url)
    try:
        with ThreadPoolExecutor(1) as pool:
            ledger = Ledger(settings.origin, founding.cards.monitor().public)
            made = Installation(settings, sessions, founding, ledger, pool, clock=began)
            say(f"{len(cast.PEOPLE)} accounts, each under a slow password hash as in earnest")
            _enrol(made)
            say(f"{len(stories)} invented cases, and three weeks of work on them")
            _play(made, stories, now)
    finally:
        sessions.close()
    return {
        "HOTLINE_DEMO": "true",
        "HOTLINE_DATABASE_URL": database_url,
        "HOTLINE_PUBLIC_URL": public_url,
        "HOTLINE_TWILIO_ACCOUNT_SID": "AC" + token_hex(16),
        "HOTLINE_TWILIO_API_KEY_SID": "SK" + token_hex(16),
        "HOTLINE_TWILIO_NUMBERS": ",".join(NUMBERS),
        "HOTLINE_DUTY": json.dumps(cast.DUTY),
        "HOTLINE_CODE_POOL": "10",
        "HOTLINE_LEDGER_POLICY_FILE": str(folder / POLICY),
        "HOTLINE_LEDGER_PUBLISH_SECONDS": str(demo_witnesses.PUBLISH_SECONDS),
        **named,
    }


# --- people ---------------------------------------------------------------------------------------------


def _enrol(made: Installation) -> None:
    register = partial(
        ceremony.register,
        ledger=made.ledger,
        organisations=cast.ORGANISATIONS,
        plans=cast.PLANS,
        deck=made.founding.cards,
        now=made.clock,
        text=made.founding.cards_note,
    )
    write(made.sessions, register)
    for person in cast.PEOPLE:
        made.people[person.account] = write(made.sessions, partial(_join, made=made, person=person))


def _join(tx: Tx, *, made: Installation, person: Person) -> tuple[Member, MemberKeys]:
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
        now=made.clock,
        totp_secret=cast.totp_secret(person.account),
    )
    if person.role != Role.ADMIN:
        private, row_key = made.founding.unit_privates[card.unit], made.founding.row_key
        staff.grant(tx, made.ledger, row_key, card, private, member, member, keys, made.clock)
    tx.flush()
    tx.refresh(member)
    tx.expunge(member)
    return member, keys


def _signed_in(made: Installation, account: str) -> SignedIn:
    """Return a person as if signed in: no session is stored, and no password hashed once more."""
    member, keys = made.people[account]
    unit = next(person.unit for person in cast.PEOPLE if person.account == account)
    card = made.founding.cards.unit(unit)
    # No wall stands in the demo's past, so nobody needs names for one.
    seat = Seat(card.unit, card.kind, card.organisation)
    who = member.id, member.chain, member.name, member.name_km, member.role, member.organisation
    viewer = Viewer(*who, seats=(seat,), names=frozenset())
    return SignedIn(viewer, keys, b"", "")


# --- three weeks ----------------------------------------------------------------------------------------


def _play(made: Installation, stories: tuple[Story, ...], now: datetime) -> None:
    """Let everything be told and done in the order of time, up to the present."""
    with _intake(made) as intake:
        for story, scene in cast.timeline(stories):
            _let_time_pass(made, now - scene.ago)
            match scene:
                case Told():
                    receipt = asyncio.run(intake.receive(_incoming(story, scene, made.clock)))
                    with made.sessions.read() as session:
                        made.cases[story.key] = session.get_one(Tip, receipt.tip).case
                case Opened():
                    _open(made, made.cases[story.key], scene)
                case HandedOn():
                    write(made.sessions, partial(_hand_on, made=made, case_id=made.cases[story.key], scene=scene))
                case Claimed():
                    write(made.sessions, partial(_claim, made=made, case_id=made.cases[story.key], scene=scene))
        _let_time_pass(made, now)


def _let_time_pass(made: Installation, until: datetime) -> None:
    """Move the clock to `until`. What a worker does at each deadline on the way is done then, and not at the end."""
    _work(made)  # what was asked for just now
    while (moment := _next_deadline(made, until)) is not None:
        made.clock = moment
        _work(made)
    made.clock = until


def _work(made: Installation) -> None:
    """Do what a worker does in a round (`commands.worker`)."""
    cases.lapse_leases(made.sessions, made.ledger, made.clock)
    while ladder.answer_pages(made.sessions, made.watch, made.clock):
        pass
    ladder.climb(made.sessions, made.watch, made.clock)
    while made.relay.send_due(made.pool):
        pass


def _next_deadline(made: Installation, until: datetime) -> datetime | None:
    """Return the second after the first deadline, or step of a ladder, between the clock and `until`; None for none."""
    due_at = func.coalesce(col(Clock.next_at), col(Clock.due_at))
    between = (due_at >= made.clock, due_at < until)
    with made.sessions.read() as session:
        first = session.scalar(select(func.min(due_at)).where(RUNNING, *between))
    return None if first is None else min(first + timedelta(seconds=1), until)


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
            peppers=[Pepper(1, founding.phone_pepper)],
            names=NameKeys(founding.place_key, founding.sketch_key),
            triage=Triage.load(settings.ruleset_file, settings.lexicon_dir),
            claim_targets=settings.claim_targets,
            act_targets=settings.act_targets,
        )
    finally:
        writer.close()


def _incoming(story: Story, told: Told, at: datetime) -> IncomingTip:
    """Return a message as its channel would hand it over."""
    if story.form is None:
        delivery = "SM" + token_hex(16)
        return IncomingTip(Channel.SMS, "twilio", "sms", delivery, told.says, at, sender=story.sender, media=told.media)
    answers = Answers({"what": told.says, **story.form})
    return IncomingTip(
        Channel.WEB,
        "web",
        "form",
        token_hex(16),
        told.says,
        at,
        sender=answers.sender,
        stated=answers.facts(at),
        context={"form": "public", "token": "good"},
        reply_allowed=answers.reply_allowed,
    )


# --- casework -------------------------------------------------------------------------------------------


def _open(made: Installation, case_id: UUID, scene: Opened) -> None:
    who = _signed_in(made, scene.who).viewer
    row_key = made.founding.row_key
    allowance = reading.Allowance(made.settings.readings_per_day, stepped_up=False)
    reading.record_opening(
        made.sessions,
        made.ledger,
        row_key,
        who,
        case_id,
        reason=scene.reason,
        note="",
        allowance=allowance,
        now=made.clock,
    )


def _hand_on(tx: Tx, *, made: Installation, case_id: UUID, scene: HandedOn) -> None:
    who, deck = _signed_in(made, scene.who), made.founding.cards
    case = cases.find(tx, who.viewer, case_id)
    opened = staff.open_keys(tx, made.founding.row_key, deck, who, case)
    keeper = Wallkeeper(made.ledger, deck, made.founding.row_key)
    step = partial(exclusions.hand_on, tx, keeper, who.viewer, opened)
    step(unit=scene.unit, answer=scene.named, version=case.version, now=made.clock)


def _claim(tx: Tx, *, made: Installation, case_id: UUID, scene: Claimed) -> None:
    who = _signed_in(made, scene.who).viewer
    case = cases.find(tx, who, case_id)
    cases.claim(tx, made.ledger, who, case_id, version=case.version, leases=made.settings.leases, now=made.clock)
