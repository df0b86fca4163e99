"""``hotline worker``: sends texts, climbs ladders, clears what the provider still holds. Listens on nothing."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import func, select
from sqlmodel import col

from commands.custody import refuse_foreign_secrets
from commands.sequencing import build_sequencer
from commands.serve import (
    leave_no_core,
    open_ready_database,
    open_rules,
    read_deck,
    read_peppers,
    read_relay,
    say_started,
)
from service import (
    cases,
    closures,
    erasing,
    exclusions,
    ladder,
    levels,
    logs,
    mailbox,
    metrics,
    publishing,
    settlements,
    shadow,
)
from service.carrying import Carrying
from service.casework import Casework
from service.config import Settings, read_secret, settings_from_environment
from service.copies import Copies
from service.db import Sessions, Tx, write
from service.errors import HotlineError, Misconfigured
from service.keyring import Keyring
from service.ladder import SUPERVISOR, Watch
from service.ledger.events import Ledger, utc_seconds
from service.ledger.sequencer import BATCH, Effect, Sequencer
from service.levels import Judge
from service.models import Sign
from service.nightly import Nightly
from service.numbers import relay_keys, sealing
from service.relay import Relay
from service.rulesets import Rulebook
from service.triage import NO_RULES, load_ruleset
from service.vault.boxes import public_of
from service.vault.cards import Cards, RelayKey, UnitKind

log = structlog.get_logger("worker")

SENDERS = 4
STATUS_PATH = "/webhooks/twilio/sms/status"
ALIVE_EVERY = timedelta(seconds=10)
STUCK = timedelta(minutes=2)  # longer than any round takes that gets through
JUMP = timedelta(minutes=5)  # threats.md T-51
READY = "worker_ready"

EPILOG = """\
It acknowledges texts, tells people on duty (HOTLINE_DUTY), ends claims that ran out, climbs the ladder when nobody
claims, and deletes at the provider what is stored here. Several may run at once, on one host or on many.

Settings come from HOTLINE_* variables or the file that HOTLINE_SETTINGS names; docs/operating.md lists them.
It needs the database at this version: hotline migrate.
"""


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hotline worker",
        description="Run the worker: the one process that can open a phone number. It listens on nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    leave_no_core()
    settings = settings_from_environment()
    logs.configure("worker", level=settings.log_level)
    worker = build(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    worker.run(stopping)
    return 0


def _since_boot() -> float:
    """Return seconds that go on evenly, also while the host sleeps where its system knows that (Linux)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class SteadyTime:
    """The time that deadlines are compared with: it goes on evenly when the host's clock is set (threats.md T-51).

    It begins at the host's time. While it runs, a jump of the host's clock of more than five minutes is reported and
    not followed.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = _since_boot,
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._set = wall(), monotonic()  # read and written whole: many threads ask for the time
        self._warned = False

    def __call__(self) -> datetime:
        """Return the time in UTC."""
        base, mark = self._set
        now = base + timedelta(seconds=self._monotonic() - mark)
        wall = self._wall()
        if abs(wall - now) <= JUMP:
            self._warned = False
            if wall > now:  # small corrections are followed, and never backwards
                self._set = wall, self._monotonic()
                return wall
        elif not self._warned:
            self._warned = True
            log.error("clock_jumped", setting="host clock")
        return now


@dataclass(frozen=True)
class Worker:
    """Everything the worker does, each as one round that is safe to run twice and at once."""

    sessions: Sessions
    relay: Relay
    watch: Watch
    copies: Copies[Any]
    rules: Rulebook
    judge: Judge
    carrying: Carrying
    work: Casework
    now: Callable[[], datetime]
    sequencer: Sequencer | None = None  # None where the ledger does not run in this process
    nightly: Nightly | None = None  # likewise

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping`. What fails is logged and tried again: one broken duty does not stop the others."""
        pool = ThreadPoolExecutor(SENDERS, thread_name_prefix="sender")
        stop = stopping.is_set
        vital = {
            "pages": _Duty(partial(self.tell, stop), 1.0),
            "texts": _Duty(partial(self.relay.send_due, pool, stop), 0.5),
        }
        duties = vital | {
            "alive": _Duty(partial(self.alive, vital.values()), ALIVE_EVERY.total_seconds()),
            "leases": _Duty(self.end_claims, 1.0),
            "unclear": _Duty(partial(self.relay.look_for_unclear, stop), 5.0),
            "reports": _Duty(partial(self.relay.take_reports, stop), 1.0),
            "statuses": _Duty(partial(self.show_changes, stop), 60.0),
            "copies": _Duty(partial(self.clear_copies, stop), 20.0),
            "rules": _Duty(partial(self.follow_rules, stop), 5.0),
            "numbers": _Duty(self.carry_numbers, 20.0),
            "erasures": _Duty(self.erase, 3600.0),
        }
        if self.sequencer is not None:
            duties["ledger"] = _Duty(self.integrate, 1.0)
            duties["checkpoints"] = _Duty(self.publish, 1.0)
            duties["census"] = _Duty(self.count, 30.0)
            duties["verify"] = _Duty(self.check, 60.0)
        threads = [threading.Thread(target=duty.repeat, args=(name, stopping)) for name, duty in duties.items()]
        for thread in threads:
            thread.start()
        log.warning(READY)
        for thread in threads:
            thread.join()
        pool.shutdown()
        if self.sequencer is not None:
            self.sequencer.step_down()
        self.sessions.close()

    def integrate(self) -> int:
        """Take pending leaves into the ledger's tree; return how many, if there are certainly more: a full batch."""
        taken = self.sequencer.round() if self.sequencer is not None else 0
        return taken if taken >= BATCH else 0

    def publish(self) -> None:
        """Publish the ledger's head, have it witnessed, and run what then takes effect."""
        if self.sequencer is None:
            return
        if self.sequencer.publish_if_due():
            write(self.sessions, partial(metrics.seen, name=metrics.PUBLISHED, at=self.now()))
        else:
            self.sequencer.settle_if_new()

    def count(self) -> None:
        """Take the day's census."""
        if self.nightly is not None:
            self.nightly.count()

    def check(self) -> None:
        """Check the whole ledger, each night."""
        if self.nightly is not None:
            self.nightly.check()

    def alive(self, vital: Iterable["_Duty"]) -> None:
        """Leave a sign that a worker lives: that people are told and texts go out, not that there is a process."""
        if all(time.monotonic() - duty.done < STUCK.total_seconds() for duty in vital):
            write(self.sessions, partial(metrics.seen, name=metrics.WORKER, at=self.now()))

    def tell(self, stopping: Callable[[], bool]) -> int:
        """Tell whoever is on duty, and climb."""
        now = self.now()
        pages = ladder.answer_pages(self.sessions, self.watch, now, stopping)
        return pages + ladder.climb(self.sessions, self.watch, now, stopping)

    def end_claims(self) -> None:
        """End claims, withdrawal reviews and proposals to close that ran out."""
        now = self.now()
        cases.lapse_leases(self.sessions, self.watch.ledger, now)
        settlements.lapse_reviews(self.sessions, self.work, now)
        closures.expire(self.sessions, self.work, now)

    def show_changes(self, stopping: Callable[[], bool]) -> None:
        """Let tipsters with a return code see what has changed, when its time has come."""
        mailbox.show_changes(self.sessions, self.watch.ledger, self.watch.row_key, self.now(), stopping)

    def follow_rules(self, stopping: Callable[[], bool]) -> int:
        """Write down which emergency rules are over, and decide open cases by the rules in force.

        Only once rules were published: two releases side by side must not decide the same cases by turns.
        """
        now = self.now()
        ruleset = self.rules.current(now)
        if self.rules.ever_published and ruleset is not NO_RULES:
            publishing.lapse(self.sessions, self.watch.ledger, now)
            return shadow.decide_open_cases(self.sessions, replace(self.judge, ruleset=ruleset), now, stopping)
        return 0

    def carry_numbers(self) -> int:
        """Carry contacts to this generation's key and name, and destroy what they were under before."""
        return self.carrying.round(self.now())

    def erase(self) -> int:
        """Erase the cases whose time is over."""
        return erasing.erase_due(self.sessions, self.watch.ledger, self.now())

    def clear_copies(self, stopping: Callable[[], bool]) -> None:
        """Delete at the provider what is stored here."""
        self.copies.clear(self.now(), stopping)


@dataclass
class _Duty:
    """One round of work, done again after `pause` seconds, or at once while it finds something to do."""

    round: Callable[[], int | None]
    pause: float
    done: float = field(default_factory=time.monotonic)  # when it last got through

    def repeat(self, name: str, stopping: threading.Event) -> None:
        """Do it until `stopping`."""
        while not stopping.is_set():
            found = None
            try:
                found = self.round()
                self.done = time.monotonic()
            except HotlineError as fault:
                log.warning("duty_not_done", kind=name, error=type(fault).__name__)
            except Exception as fault:  # noqa: BLE001 - a fault in one duty must not end the others
                log.error("duty_failed", kind=name, error=type(fault).__name__, place=logs.place(fault))
            if not found:
                stopping.wait(self.pause)


def build(settings: Settings) -> Worker:
    """Return the worker of these settings, ready to run. Raises Misconfigured when it is not safe to start."""
    from webhooks.twilio_client import TwilioCarrier  # the client takes a second to load, and only this needs it

    refuse_foreign_secrets(settings, "worker")
    row_key = read_secret(settings.row_key_file, "row_key_file", length=32)
    api_key = read_secret(settings.twilio_api_key_file, "twilio_api_key_file").decode()
    for name in ("twilio_account_sid", "twilio_api_key_sid", "twilio_numbers"):
        if not getattr(settings, name):
            raise Misconfigured(f"HOTLINE_{name.upper()} is not set")
    sessions = open_ready_database(settings)
    cards = read_deck(settings, sessions)
    first = read_relay(settings, cards)
    privates = Keyring(settings.relay_key_file, "relay_key_file", first=lambda: first.generation)
    names = read_peppers(settings)
    relay_key = newest_relay(sessions, cards, first, privates)
    warn_of_gaps(settings, cards, relay_key)
    ledger = Ledger(settings.origin, cards.monitor().public)
    carrier = TwilioCarrier(
        account_sid=settings.twilio_account_sid,
        api_key_sid=settings.twilio_api_key_sid,
        api_key_secret=api_key,
        sender=settings.twilio_numbers[0],
        status_callback=settings.public_url + STATUS_PATH,
        api_url=settings.twilio_api_url,
    )
    check_time(sessions, relay_key, datetime.now(UTC))
    release = load_ruleset(settings.ruleset_file)
    targets = settings.claim_targets, settings.act_targets
    say_started(settings, sessions, ledger, "worker", cards)
    work = Casework(ledger, cards, row_key, *targets)
    now = SteadyTime()
    watch = Watch(ledger, row_key, cards, settings.duty)

    def alarm(tx: Tx, reason: str) -> None:
        at = now()
        ladder.ring_oversight(tx, watch, f"ledger:{reason}:{utc_seconds(at)}", at)

    sequencer = build_sequencer(settings, sessions, ledger, now=now, effects=effects_of(work), alarm=alarm)
    nightly = None
    if sequencer is None:
        print("The ledger does not run in this worker: what happens is kept, and not yet provable.", file=sys.stderr)
    else:
        folder = settings.ledger_census_dir
        nightly = Nightly(sequencer, cards.monitor().public, cases.state_class, folder)
        if folder is None:
            print("HOTLINE_LEDGER_CENSUS_DIR is not set: no daily census is taken.", file=sys.stderr)
    return Worker(
        sessions=sessions,
        relay=Relay(sessions, ledger, carrier, row_key, privates, settings.duty, now),
        carrying=Carrying(sessions, ledger, row_key, cards.relay or b"", first, privates, names),
        watch=watch,
        copies=Copies(sessions, ledger, carrier, row_key),
        rules=open_rules(sessions, release),
        judge=Judge(ledger, cards, row_key, release, *targets),
        work=work,
        now=now,
        sequencer=sequencer,
        nightly=nightly,
    )


def effects_of(work: Casework) -> dict[str, Effect]:
    """Return what is done once it is witnessed, by its name in the action of an event."""
    claim, act = work.claim_targets, work.act_targets
    return {
        "lower": partial(levels.take_effect, ledger=work.ledger, claim_targets=claim, act_targets=act),
        "narrow": partial(exclusions.take_effect, ledger=work.ledger),
        "close": partial(closures.take_effect, work=work),
    }


def newest_relay(sessions: Sessions, cards: Cards, first: RelayKey, privates: Mapping[int, bytes]) -> RelayKey:
    """Return the newest relay key that has begun. Raises Misconfigured when its private half is not on this host."""
    with sessions.read() as session:
        keys = relay_keys(session, cards.relay or b"", first)
    newest = sealing(keys, datetime.now(UTC).date()) or first
    private = privates.get(newest.generation)
    if private is None or public_of(private) != newest.public:
        raise Misconfigured(
            f"HOTLINE_RELAY_KEY_FILE does not belong to HOTLINE_RELAY_FILE, or lacks generation {newest.generation}"
        )
    return newest


def check_time(sessions: Sessions, relay: RelayKey, now: datetime) -> None:
    """Refuse to start before the relay's key was made: that host has lost its clock, and no deadline would come.

    Raises Misconfigured. A time behind what others have written is reported: one of the hosts is wrong.
    """
    if now.date() < relay.start:
        raise Misconfigured(f"this host's clock says {now:%Y-%m-%d}, before {relay.start}: set it, then start again")
    with sessions.read() as session:
        newest = session.scalar(select(func.max(col(Sign.at))))
    if newest is not None and newest - now > JUMP:
        log.error("clock_is_behind", setting="host clock")


def warn_of_gaps(settings: Settings, cards: Cards, relay: RelayKey) -> None:
    """Say on standard error which units have nobody on duty: their steps go to whoever is next. Raises Misconfigured
    for a post of a unit that is not there: a typing error must not become a silent phone.
    """
    known = {card.unit for card in cards.units}
    strange = sorted(post for post in settings.duty if post.removesuffix(SUPERVISOR) not in known)
    if strange:
        raise Misconfigured(f"HOTLINE_DUTY names no unit of the cards: {', '.join(strange)}")
    working = [card.unit for card in cards.units if card.kind != UnitKind.MONITOR]
    silent = [unit for unit in working if not settings.duty.get(unit)]
    if silent:
        print(f"Nobody is on duty (HOTLINE_DUTY) for: {', '.join(silent)}. Others are told instead.", file=sys.stderr)
    if datetime.now(UTC).date() > relay.until:
        print(f"The relay's key was made to last until {relay.until}. Renew it.", file=sys.stderr)
