"""``hotline serve public|staff``: the two web processes, each with its own secrets and no other's."""

import argparse
import asyncio
import hashlib
import os
import resource
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog
import uvicorn
from sqlmodel import Session

from commands.custody import refuse_foreign_secrets
from service import ceremony, logs, metrics, rulesets
from service.canonical import canonical
from service.config import ROOT, Settings, read_secret, settings_from_environment
from service.db import Sessions, Writer, open_database, write
from service.errors import BadCards, BadNote, HotlineError, Misconfigured
from service.history import NameKeys
from service.intake import Intake
from service.keyring import Keyring
from service.ledger import tree
from service.ledger.events import Ledger
from service.ledger.notes import Policy, parse_policy
from service.mailbox import Mailboxes, Receipt
from service.metrics import DatabaseMetrics
from service.numbers import Peppers, Source
from service.rulesets import Rulebook
from service.schema import require_schema
from service.triage import NO_RULES, Ruleset, Triage, load_ruleset
from service.vault import boxes
from service.vault.cards import Cards, RelayKey, check_usable, read_cards, read_relay_note

if TYPE_CHECKING:
    from webhooks.codes import Codes

log = structlog.get_logger()


def main(arguments: list[str]) -> int:
    """Run ``hotline serve``. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hotline serve",
        description="Run a web process. 'public' faces the internet behind a reverse proxy: webhooks and forms. "
        "'staff' faces your own network: the queue and the cases.",
        epilog="Settings come from HOTLINE_* variables or the file that HOTLINE_SETTINGS names; "
        "docs/operating.md lists them. Both processes need the database at this version: hotline migrate.",
    )
    parser.add_argument("process", choices=["public", "staff"])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port (default: 8000 public, 8001 staff)")
    parser.add_argument("--workers", type=int, default=1, help="processes; more than one needs PostgreSQL")
    options = parser.parse_args(arguments)
    leave_no_core()
    settings = settings_from_environment()
    if options.workers > 1 and settings.database_url.startswith("sqlite"):
        raise Misconfigured("more than one worker needs PostgreSQL: SQLite has one writer (HOTLINE_DATABASE_URL)")
    if options.workers > 1:  # return codes are looked up five times a second by all of them together
        os.environ["HOTLINE_CODE_RATE"] = str(settings.code_rate / options.workers)
    port = options.port or (settings.public_port if options.process == "public" else settings.staff_port)
    build: Callable[[], Any] = public if options.process == "public" else staff
    if options.process == "staff":
        serve_metrics(settings)
    uvicorn.run(
        f"commands.serve:{build.__name__}" if options.workers > 1 else build(),
        factory=options.workers > 1,
        host=options.host,
        port=port,
        workers=options.workers,
        loop="uvloop",
        http="httptools",
        access_log=False,  # an access log is a list of who came (threats.md T-16)
        server_header=False,
        log_config=None,
        timeout_keep_alive=30,
        proxy_headers=False,
        lifespan="on",
    )
    return 0


def public() -> Any:
    """Return the public ASGI app, ready to serve. Raises Misconfigured when it is not safe to start."""
    from webhooks.app import create_app  # each process loads its own app only: see tests/commands/test_serve.py
    from webhooks.cosignature import cosignature_route
    from webhooks.log import log_routes

    settings = settings_from_environment()
    logs.configure("public", level=settings.log_level)
    refuse_foreign_secrets(settings, "public")
    row_key = read_secret(settings.row_key_file, "row_key_file", length=32)
    peppers = read_peppers(settings)
    names = NameKeys(
        read_secret(settings.place_key_file, "place_key_file", length=32),
        read_secret(settings.sketch_key_file, "sketch_key_file", length=32),
    )
    sessions = open_ready_database(settings)
    cards = read_deck(settings, sessions)
    relay = read_relay(settings, cards)
    triage = Triage.load(settings.ruleset_file, settings.lexicon_dir)
    book = open_rules(sessions, triage.ruleset, triage.lexicon.content_hash)
    triage = replace(triage, ruleset=book.at(datetime.now(UTC)))
    ledger = Ledger(settings.origin, cards.monitor().public)
    say_started(settings, sessions, ledger, "public", cards)
    policy = read_policy_text(settings)
    writer = Writer(sessions, group_size=settings.group_size)
    intake = Intake(
        writer=writer,
        ledger=ledger,
        cards=cards,
        relay=relay,
        row_key=row_key,
        peppers=peppers.peppers(),
        names=names,
        triage=triage,
        claim_targets=settings.claim_targets,
        act_targets=settings.act_targets,
        source=Source(cards.relay or b"", relay, peppers),
    )

    def health() -> dict[str, bool | str]:
        return _database_health(sessions) | {
            "writer": writer.alive,
            "storing": writer.storing or _can_store(sessions),
            "relay_key": _is_valid(intake.desk.relay, datetime.now(UTC)),
        }

    codes = read_codes(settings)
    keeping: set[asyncio.Task[None]] = set()

    def notice(name: str) -> None:
        task = asyncio.get_running_loop().create_task(_keep_sign(writer, name))
        keeping.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(keeping.discard)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(follow_rules(book, intake))
        if codes is not None:
            codes.start()
        yield
        following.cancel()
        if codes is not None:
            await codes.stop()
        writer.close()
        sessions.close()

    return create_app(
        settings,
        intake=intake,
        form_key=boxes.keyed_name(row_key, b"form token", boxes.FORM),
        codes=codes,
        mailboxes=Mailboxes(sessions, writer, ledger, row_key, receipt),
        pass_key=boxes.keyed_name(row_key, b"return pass", boxes.FORM),
        health=health,
        notice=notice,
        lifespan=lifespan,
        log=[*log_routes(sessions, policy), cosignature_route(policy, writer.submit)],
    )


def _is_valid(relay: RelayKey | None, now: datetime) -> bool:
    return relay is not None and relay.start <= now.date() <= relay.until


def open_rules(sessions: Sessions, release: Ruleset, lexicon_hash: str = "") -> Rulebook:
    """Return the rules in force, read for the first time; what the release brings is kept for decisions to replay by.

    Rules that cannot be trusted stop no process: it says so, and by `NO_RULES` everything is P1.
    """
    now = datetime.now(UTC)
    try:
        write(sessions, partial(rulesets.keep, ruleset=release, now=now))
    except HotlineError as fault:  # a full disk: what it is kept for is later
        log.warning("ruleset_not_kept", error=type(fault).__name__)
    book = Rulebook(sessions, release, lexicon_hash)
    book.look(now)
    if book.at(now) is NO_RULES:
        print("The published rules cannot be trusted: everything is P1 until that is put right.", file=sys.stderr)
    return book


async def follow_rules(book: Rulebook, intake: Intake, every: float = rulesets.LOOK_EVERY.total_seconds()) -> None:
    """Have `intake` decide by the rules in force, looked for every few seconds beside the messages that come."""
    while True:
        try:
            now = datetime.now(UTC)
            await asyncio.to_thread(book.look, now)
            intake.use(book.at(now))
        except Exception as fault:  # noqa: BLE001 - without this task rules would never change again
            log.error("rules_not_followed", error=type(fault).__name__, place=logs.place(fault))
        await asyncio.sleep(every)


async def _keep_sign(writer: Writer, name: str) -> None:
    """Store when something was last seen. A database that is away must not turn that into an error."""
    with suppress(HotlineError):
        await writer.submit(partial(metrics.seen, name=name, at=datetime.now(UTC)))


def staff() -> Any:
    """Return the staff ASGI app, ready to serve. Raises Misconfigured when it is not safe to start."""
    from dashboards.app import create_app
    from dashboards.desk import Desk

    settings = settings_from_environment()
    logs.configure("staff", level=settings.log_level)
    refuse_foreign_secrets(settings, "staff")
    row_key = read_secret(settings.row_key_file, "row_key_file", length=32)
    release = load_ruleset(settings.ruleset_file)
    sessions = open_ready_database(settings)
    rules = open_rules(sessions, release)
    cards = read_deck(settings, sessions)
    ledger = Ledger(settings.origin, cards.monitor().public)
    say_started(settings, sessions, ledger, "staff", cards)
    return create_app(
        Desk(
            settings=settings,
            sessions=sessions,
            ledger=ledger,
            cards=cards,
            row_key=row_key,
            rules=rules,
            clock=lambda: datetime.now(UTC),
            health=lambda: _database_health(sessions),
            policy=read_policy(settings),
        )
    )


def _can_store(sessions: Sessions) -> bool:
    """Return whether a row can be stored: asked when the last group could not be, and nothing has come since."""
    try:
        write(sessions, partial(metrics.seen, name="storage", at=datetime.now(UTC)))
    except HotlineError:
        return False
    return True


def read_peppers(settings: Settings) -> Peppers:
    """Return the phone peppers, read again when their file changes. Raises Misconfigured."""
    return Peppers(Keyring(settings.phone_pepper_file, "phone_pepper_file"))


def read_codes(settings: Settings) -> "Codes | None":
    """Return the codes of this process; None without a code pepper: then numbers are neither given nor taken.

    Raises Misconfigured.
    """
    from webhooks.codes import Codes, start_child

    if settings.code_pepper_file is None:
        log.warning("return_codes_closed")
        return None
    pepper = read_secret(settings.code_pepper_file, "code_pepper_file", length=32)
    return Codes(partial(start_child, pepper, settings.origin), target=settings.code_pool, rate=settings.code_rate)


def open_ready_database(settings: Settings) -> Sessions:
    """Return the database of the settings, at this code's version. Raises Misconfigured or StorageUnavailable."""
    sessions = open_database(settings.database_url)
    require_schema(sessions)
    return sessions


def read_deck(settings: Settings, sessions: Sessions) -> Cards:
    """Return the cards file, checked against the root's key and what the history knows, with the cards before it."""
    if settings.cards_file is None:
        raise Misconfigured("HOTLINE_CARDS_FILE is not set")
    try:
        cards = read_cards(settings.cards_file.read_text(), settings.root_vkey)
        with sessions.read() as session:
            ceremony.check_published(session, cards)
            past = ceremony.past_cards(session, settings.root_vkey)
        cards = replace(cards.valid_on(datetime.now(UTC).date()), past=past)
        check_usable(cards)
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"HOTLINE_CARDS_FILE: cannot read {settings.cards_file}") from None
    except (BadCards, BadNote) as fault:
        raise Misconfigured(f"HOTLINE_CARDS_FILE: {fault}") from None
    return cards


def say_started(settings: Settings, sessions: Sessions, ledger: Ledger, process: str, cards: Cards) -> None:
    """Append that this process starts, with the hashes of its code, settings and cards. Raises StorageUnavailable."""
    known = settings.model_dump(mode="json", exclude={"duty"})  # a hash of few telephone numbers would tell them
    code, given = code_hash(), hashlib.sha256(canonical(_words(known))).hexdigest()
    now = datetime.now(UTC)
    write(
        sessions,
        partial(ceremony.started, ledger=ledger, process=process, deck=cards, code=code, settings=given, now=now),
    )


def code_hash() -> str:
    """Return the SHA-256 over the files of the code that runs: names and bytes, in order of name."""
    digest = hashlib.sha256()
    for package in ("service", "webhooks", "dashboards", "commands"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _words(value: Any) -> Any:
    """Return settings as canonical JSON can write them: fractions of a second as words."""
    if isinstance(value, dict):
        return {name: _words(part) for name, part in value.items()}
    return [_words(part) for part in value] if isinstance(value, (list, tuple)) else str(value)


def read_policy_text(settings: Settings) -> str | None:
    """Return the policy of the ledger's witnesses as it is served, None without one. Raises Misconfigured."""
    path = settings.ledger_policy_file
    if path is None:
        return None
    try:
        text = path.read_bytes().decode()
        parse_policy(text)
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"HOTLINE_LEDGER_POLICY_FILE: cannot read {path}") from None
    except BadNote as fault:
        raise Misconfigured(f"HOTLINE_LEDGER_POLICY_FILE: {fault}") from None
    return text


def read_policy(settings: Settings) -> Policy | None:
    """Return the policy of the ledger's witnesses, None without one. Raises Misconfigured."""
    text = read_policy_text(settings)
    return None if text is None else parse_policy(text)


def receipt(session: Session, eid: str) -> Receipt | None:
    """Return the best receipt of an event as the return page gives it; None while there is none.

    A log that does not hold together is told elsewhere: it must not keep a tipster from their page.
    """
    try:
        found = tree.receipt_of(session, eid)
    except (HotlineError, LookupError) as fault:
        log.error("receipt_not_made", error=type(fault).__name__)
        return None
    return None if found is None else Receipt(found[0], found[1].encode())


def read_relay(settings: Settings, cards: Cards) -> RelayKey:
    """Return the first relay key of this host, signed by the relay identity in the cards. Raises Misconfigured.

    Those after it are in the database, signed by the same identity (`numbers.relay_keys`).
    """
    if settings.relay_file is None:
        raise Misconfigured("HOTLINE_RELAY_FILE is not set")
    try:
        return read_relay_note(settings.relay_file.read_text(), cards.relay or b"")
    except (OSError, UnicodeDecodeError):
        raise Misconfigured(f"HOTLINE_RELAY_FILE: cannot read {settings.relay_file}") from None
    except BadNote as fault:
        raise Misconfigured(f"HOTLINE_RELAY_FILE: {fault}") from None


def serve_metrics(settings: Settings) -> None:
    """Serve ``/metrics`` on loopback. A taken port is said and does not stop the staff app."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(DatabaseMetrics(open_database(settings.database_url)))
    prometheus_client.ProcessCollector(registry=registry)
    try:
        prometheus_client.start_http_server(settings.metrics_port, addr="127.0.0.1", registry=registry)
    except OSError:
        print(f"Metrics are off: port {settings.metrics_port} is taken (HOTLINE_METRICS_PORT).", file=sys.stderr)


def leave_no_core() -> None:
    """Have the system write no memory of this process to a disk when it dies (threats.md T-12)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _database_health(sessions: Sessions) -> dict[str, bool | str]:
    try:
        require_schema(sessions)
    except HotlineError:
        return {"database": False}
    return {"database": True, "engine": sessions.engine_version()}
