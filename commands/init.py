"""``./hotline init FOLDER``: a real installation's settings, keys, cards and first members, in order.

Each step leaves files or rows, and is skipped when they are there: interrupted, it goes on where it stopped.
"""

import argparse
import json
import shutil
import sys
from base64 import b32encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyotp
from sqlalchemy import select
from sqlmodel import col

from commands import offline
from commands.custody import PROCESSES, SECRETS
from commands.sequencing import make_signer
from commands.talk import Talk
from service import ceremony, recovering, staff
from service.ceremony import UnitPlan, write_secret
from service.config import Settings, read_settings
from service.db import Sessions, Tx, open_database, write
from service.errors import HotlineError, Invalid, Misconfigured
from service.ledger.events import Ledger
from service.models import Member, Role
from service.numbers import RELAY_DAYS
from service.schema import migrate
from service.vault import boxes, members, passwords
from service.vault.cards import Card, Cards, RelayKey, UnitKind, check_usable, read_cards, write_cards, write_relay_note
from service.vault.members import MemberKeys

EPILOG = """\
It asks what it needs, or reads it from --answers (JSON; the first run writes answers.json, which holds no secret).
Stop it whenever you like: run it again, and it goes on where it stopped.

Have ready: two officers of different organisations, in one room; the public keys of the three organisations that hold
the recovery (each makes its own: ./hotline keys custodian); two empty sticks; paper. Give --offline a folder on a stick
or an encrypted disk: what lies there must not stay on this machine.
Rehearse first: ./hotline keys rehearse
"""
GENERATED = ("row_key", "phone_pepper", "place_key", "sketch_key", "code_pepper", "cover_key")
TYPED = {"twilio_token": "Twilio auth token", "twilio_api_key": "Twilio API key secret, for the worker"}
SIGNER_SOCKET = "data/signer.sock"
SETTINGS = ("public_url", "database_url", "twilio_account_sid", "twilio_api_key_sid", "twilio_numbers")
QUESTIONS = {
    "public_url": "Public address, which the provider posts to, like https://HOST: ",
    "database_url": "Database (Enter for SQLite in this folder): ",
    "twilio_account_sid": "Twilio account SID, AC… (Enter for none yet): ",
    "twilio_api_key_sid": "Twilio API key SID, SK… (Enter for none yet): ",
    "twilio_numbers": "Our telephone numbers, with commas between (Enter for none yet): ",
}


@dataclass
class Installation:
    """What is being set up. plan: the answers. Secrets are read from their files when they are needed."""

    folder: Path
    offline: Path
    talk: Talk
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> list[UnitPlan]:
        """The units that are founded."""
        return [UnitPlan(**{**unit, "kind": UnitKind(unit["kind"])}) for unit in self.plan["units"]]

    @property
    def root_vkey(self) -> str:
        """The root's verifier key."""
        return offline.root_vkey(offline.read_key(self.offline / offline.ROOT_SEED))

    @property
    def cards(self) -> Cards:
        """The cards file."""
        return read_cards((self.folder / "cards.note").read_text(), self.root_vkey)

    @property
    def ledger(self) -> Ledger:
        """Where events go."""
        return Ledger(read_settings(self.folder / "staff.env").origin, self.cards.monitor().public)

    def secret(self, name: str) -> bytes:
        """Return a secret of the processes, from any of its files."""
        files = [self.folder / "keys" / process / file for process, file in places(name)]
        return offline.read_key(next(file for file in files if file.exists()))

    def open(self) -> Sessions:
        """Return the database."""
        return open_database(self.plan["database_url"])


def places(name: str) -> list[tuple[str, str]]:
    """Return where a secret lies: process and file name, from the table of custody."""
    [secret] = [secret for secret in SECRETS if secret.setting == f"{name}_file"]
    return [(process, secret.files[0]) for process in PROCESSES if process in secret.holders]


def main(arguments: list[str], talk: Talk | None = None) -> int:
    """Set up, or go on. Returns 0, or 1 with one line that says what was refused."""
    parser = argparse.ArgumentParser(
        prog="./hotline init",
        description="Set up a real installation: settings, keys, cards, the first organisations and two members.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where settings and the processes' keys go, like /etc/bamboo")
    parser.add_argument(
        "--offline", type=Path, help="where the root's and the units' keys go (default: FOLDER/offline)"
    )
    parser.add_argument("--answers", type=Path, metavar="FILE", help="answers to all questions but the secret ones")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    made = Installation(folder, (options.offline or folder / "offline").resolve(), talk or Talk())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)  # each folder of keys in it is for its own user alone
        (folder / "data").mkdir(exist_ok=True, mode=0o770)
        found(made, options.answers)
    except Misconfigured:
        raise
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    except HotlineError as fault:
        print(f"hotline init: {fault}", file=sys.stderr)
        return 1
    return 0


def found(made: Installation, answers: Path | None = None) -> None:
    """Take every step that has not been taken, and say what to do next."""
    steps: list[tuple[str, Callable[[Installation], bool]]] = [
        ("Answers", lambda made: ask(made, answers)),
        ("The root's key, and one for each unit", make_offline_keys),
        ("The recovery key, of which two of three organisations hold a half each", make_recovery),
        ("The cards file, signed by the root", make_cards),
        ("The processes' secrets, each in its own folder", make_secrets),
        ("The ledger's key and its signer's memory", make_log),
        ("Settings of each process", write_settings),
        ("Database, organisations and units", fill_database),
        ("The first two members", enrol),
    ]
    for number, (title, step) in enumerate(steps, 1):
        new = step(made)
        made.talk.say(f"[{number}/{len(steps)}] {title}: {'done' if new else 'there already'}")
    made.talk.say(afterwards(made))


# --- the steps; each returns whether it had anything to do -----------------------------------------------


def ask(made: Installation, answers: Path | None) -> bool:
    """Read or ask what is to be set up, check it, and keep it."""
    kept = made.folder / "answers.json"
    if kept.exists():
        made.plan = checked(json.loads(kept.read_text()))
        return False
    try:
        given = json.loads(answers.read_text()) if answers else _asked(made.talk)
    except (OSError, ValueError):
        raise Invalid(f"{answers} is not a file of answers") from None
    given["database_url"] = given.get("database_url") or f"sqlite:///{made.folder / 'data' / 'hotline.db'}"
    made.plan = checked(given)
    draft = kept.with_name("answers.json.new")
    draft.write_text(json.dumps(given, ensure_ascii=False, indent=1) + "\n")
    draft.chmod(0o600)
    draft.replace(kept)
    return True


def checked(plan: Any) -> dict[str, Any]:
    """Return `plan` if an installation can be founded on it. Raises Invalid in words for whoever wrote it."""
    try:
        organisations = {o["id"]: (o["name"], o["name_km"]) for o in plan["organisations"]}
        units = [UnitPlan(**{**unit, "kind": UnitKind(unit["kind"])}) for unit in plan["units"]]
        accounts = [(m["account"], m["name"], m["name_km"], Role(m["role"]), m["unit"]) for m in plan["members"]]
        officers = {name.strip().casefold() for name in plan["officers"] if name.strip()}
        custodians = offline.custodians_of([f"{name}={key}" for name, key in plan.get("custodians", {}).items()])
        plan["public_url"].index("://")
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise Invalid(f"the answers lack something, or have it in another form: {fault}") from None
    if urlsplit(plan.get("database_url", "")).password:
        raise Invalid("no password in the database's address: name a file that holds it (passfile=…)")
    ids = [unit.id for unit in units]
    if any(unit.organisation not in organisations for unit in units) or len(set(ids)) != len(ids):
        raise Invalid("each unit has an id of its own, and an organisation of the list")
    if len(officers) < 2:
        raise Invalid("two officers of different organisations found an installation")
    if len({account for account, *_ in accounts}) < 2 or any(unit not in ids for *_, unit in accounts):
        raise Invalid("two members begin, each in a unit of the list")
    if custodians and len(set(custodians.values())) != 3:
        raise Invalid("three organisations hold the recovery key, each with a key of its own")
    day = datetime.now(UTC).date()
    check_usable(
        Cards(
            1,
            day,
            tuple(Card(u.id, u.kind, u.organisation, 1, b"", day) for u in units),
            relay=b"",
            recovery=None,
            backup=None,
            sha256="",
        )
    )
    return dict(plan)


def _asked(talk: Talk) -> dict[str, Any]:
    plan: dict[str, Any] = {name: talk.ask(words).strip() for name, words in QUESTIONS.items()}
    parts = {
        "organisations": ("organisation", {"id": "  its short id: ", "name": "  name: ", "name_km": "  in Khmer: "}),
        "units": (
            "unit",
            {
                "id": "  its short id: ",
                "kind": "  kind (screening, unit, oversight, integrity, monitor): ",
                "organisation": "  its organisation's id: ",
                "name": "  name: ",
                "name_km": "  in Khmer: ",
            },
        ),
        "members": (
            "member",
            {
                "account": "  account: ",
                "name": "  name: ",
                "name_km": "  in Khmer: ",
                "role": f"  role ({', '.join(Role)}): ",
                "unit": "  unit's id: ",
            },
        ),
    }
    for name, (word, questions) in parts.items():
        plan[name] = []
        while talk.ask(f"Another {word}? (yes, or Enter to go on) ").strip().lower() in ("y", "yes"):
            plan[name].append({key: talk.ask(words).strip() for key, words in questions.items()})
    plan["officers"] = [talk.ask(f"Officer {number}, by name: ").strip() for number in (1, 2)]
    plan["custodians"] = {}
    while len(plan["custodians"]) < 3:
        line = talk.ask("Custodian, NAME=KEY (Enter for none yet): ").strip()
        if not line:
            plan["custodians"] = {}
            break
        custodian, _, key = line.partition("=")
        plan["custodians"][custodian] = key
    return plan


def make_offline_keys(made: Installation) -> bool:
    """Make the keys that never lie on a host: the root's, the backup's and each unit's."""
    names = [offline.ROOT_SEED, "backup.key", *(f"unit-{unit.id}.key" for unit in made.units)]
    missing = [name for name in names if not (made.offline / name).exists()]
    for name in missing:
        offline.ensure_key(made.offline / name)
    return bool(missing)


def make_recovery(made: Installation) -> bool:
    """Make the recovery key and its boxes. Its public half is written last: without it the boxes are made anew."""
    public = made.offline / "recovery.public"
    given = made.plan.get("custodians") or {}
    if public.exists() or not given:
        return False
    private, key = boxes.keypair()
    custodians = offline.custodians_of([f"{name}={text}" for name, text in given.items()])
    offline.write_boxes(made.offline / offline.RECOVERY_BOXES, private, custodians)
    draft = public.with_name("recovery.public.new")
    draft.write_text(key.hex() + "\n")
    draft.replace(public)
    return True


def make_cards(made: Installation) -> bool:
    """Sign the first cards file and the relay's first key."""
    note, relay_note = made.folder / "cards.note", made.folder / "relay.note"
    if note.exists() and relay_note.exists():
        return False
    identity, relay = _ensure(made, "relay_identity"), _ensure(made, "relay_key")
    day = datetime.now(UTC).date()
    if not relay_note.exists():
        first = RelayKey(1, boxes.public_of(relay), day, day + RELAY_DAYS)
        _publish(relay_note, write_relay_note(first, identity))
    if not note.exists():
        public = made.offline / "recovery.public"
        keys = {unit.id: offline.read_key(made.offline / f"unit-{unit.id}.key") for unit in made.units}
        text = write_cards(
            1,
            day,
            [Card(u.id, u.kind, u.organisation, 1, boxes.public_of(keys[u.id]), day) for u in made.units],
            relay=boxes.signing_public_of(identity),
            recovery=bytes.fromhex(public.read_text()) if public.exists() else None,
            backup=boxes.public_of(offline.read_key(made.offline / "backup.key")),
            root_name=ceremony.ROOT_NAME,
            root_seed=offline.read_key(made.offline / offline.ROOT_SEED),
        )
        _publish(note, text)
    return True


def make_secrets(made: Installation) -> bool:
    """Make each process's secrets in its own folder, mode 0400, and ask for those that the provider gave."""
    before = sum(1 for _ in (made.folder / "keys").rglob("*"))
    for name in GENERATED:
        if any(not (made.folder / "keys" / process / file).exists() for process, file in places(name)):
            _ensure(made, name)
    for name, words in TYPED.items():
        [(process, file)] = places(name)
        path = made.folder / "keys" / process / file
        if not path.exists() and made.plan.get("twilio_account_sid"):
            typed = made.talk.secret(f"{words} (Enter for none yet; it is not shown): ").strip()
            if typed:
                write_secret(path, typed)
    for process in PROCESSES:
        (made.folder / "keys" / process).chmod(0o700)
    return sum(1 for _ in (made.folder / "keys").rglob("*")) != before


def make_log(made: Installation) -> bool:
    """Make the ledger's key and its signer's memory, in a folder for a user of its own; its public half comes last.

    What was left half done before the first event is made anew: nothing was signed with it.
    """
    public, folder = made.folder / "log.vkey", made.folder / "keys" / "signer"
    if public.exists():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    origin = Settings.model_construct(public_url=made.plan["public_url"]).origin
    draft = public.with_name("log.vkey.new")
    draft.write_text(make_signer(folder, origin)["HOTLINE_LEDGER_VKEY"] + "\n")
    draft.replace(public)
    return True


def _ensure(made: Installation, name: str) -> bytes:
    """Return a secret that lies in the folder of each of its processes, the same in all; made where there is none."""
    paths = [made.folder / "keys" / process / file for process, file in places(name)]
    there = next((path for path in paths if path.exists()), None)
    secret = offline.read_key(there) if there else boxes.random_bytes()
    for path in paths:
        offline.ensure_key(path, secret)
    return secret


def write_settings(made: Installation) -> bool:
    """Write the settings file of each process: what is common, and the files of its own column."""
    new = False
    for process in PROCESSES:
        text = "".join(f"HOTLINE_{name.upper()}={value}\n" for name, value in settings_of(made, process).items())
        path = made.folder / f"{process}.env"
        if not path.exists() or path.read_text() != text:
            _publish(path, text)
            read_settings(path)
            new = True
    return new


def settings_of(made: Installation, process: str) -> dict[str, str]:
    """Return the settings of one process, without ``HOTLINE_``."""
    found = {name: made.plan[name] for name in SETTINGS if made.plan.get(name)}
    found |= {"root_vkey": made.root_vkey, "cards_file": str(made.folder / "cards.note")}
    if process == "worker":
        found["ledger_vkey"] = (made.folder / "log.vkey").read_text().strip()
        found["ledger_signer_socket"] = str(made.folder / SIGNER_SOCKET)
    if process != "staff":
        found["relay_file"] = str(made.folder / "relay.note")
    if made.plan.get("emergency_numbers"):
        found["emergency_numbers"] = made.plan["emergency_numbers"]
    for secret in (one for one in SECRETS if one.files):
        path = made.folder / "keys" / process / secret.files[0]
        if secret.setting and process in secret.holders and path.exists():
            found[secret.setting] = str(path)
    return found | {"keys_dir": str(made.folder)}


def fill_database(made: Installation) -> bool:
    """Bring the database to this version, and write organisations, units and the cards file's event."""
    migrate(made.plan["database_url"])
    sessions = made.open()
    try:
        with sessions.read() as session:
            if ceremony.newest_serial(session):
                return False
        organisations = {o["id"]: (o["name"], o["name_km"]) for o in made.plan["organisations"]}
        text, deck = (made.folder / "cards.note").read_text(), made.cards
        keys = {unit.id: offline.read_key(made.offline / f"unit-{unit.id}.key") for unit in made.units}

        def register(tx: Tx) -> None:
            officers, now = made.plan["officers"], datetime.now(UTC)
            ceremony.register(tx, made.ledger, organisations, made.units, deck, now, text=text, officers=officers)
            recovering.keep(tx, deck, keys)

        write(sessions, register)
        return True
    finally:
        sessions.close()


def enrol(made: Installation) -> bool:
    """Let each first member choose a password and set up the second factor; grant the unit's key."""
    sessions = made.open()
    new = False
    try:
        for person in made.plan["members"]:
            confirmed = made.folder / f"confirmed-{person['account']}"
            if confirmed.exists():
                continue
            _confirm(made, *_enrolled(made, sessions, person))
            confirmed.write_text("")
            new = True
    finally:
        sessions.close()
    return new


def _enrolled(made: Installation, sessions: Sessions, person: Mapping[str, str]) -> tuple[Member, MemberKeys]:
    name = staff.account_name(person["account"])
    with sessions.read() as session:
        member = session.scalars(select(Member).where(col(Member.account) == name)).one_or_none()
    if member is not None:  # interrupted before the second factor was tried
        parameters = passwords.read_parameters(member.parameters)
        kek = passwords.check(made.talk.secret(f"{name}, your password once more: "), parameters, member.auth)
        known = {"box_public": member.box_public, "signing_public": member.signing_public}
        return member, members.unwrap_member(kek, member.id.hex, parameters, member.wrapped, **known)
    password = _chosen(made.talk, name)
    card = made.cards.unit(person["unit"])
    private = offline.read_key(made.offline / f"unit-{card.unit}.key")

    def join(tx: Tx) -> tuple[Member, MemberKeys]:
        now = datetime.now(UTC)
        joined, keys = staff.enrol(
            tx,
            made.ledger,
            made.secret("row_key"),
            account=person["account"],
            name=person["name"],
            name_km=person["name_km"],
            organisation=card.organisation,
            role=Role(person["role"]),
            password=password,
            now=now,
        )
        staff.grant(tx, made.ledger, made.secret("row_key"), card, private, joined, joined, keys, now)
        tx.flush()
        tx.refresh(joined)
        tx.expunge(joined)
        return joined, keys

    return write(sessions, join)


def _chosen(talk: Talk, account: str) -> str:
    while True:
        password = talk.secret(f"{account}, choose a password (four or five unrelated words): ")
        weak = passwords.too_weak(password)
        if weak:
            talk.say(weak)
        elif talk.secret("The same once more: ") == password:
            return password
        else:
            talk.say("These were two different ones.")


def _confirm(made: Installation, member: Member, keys: MemberKeys) -> None:
    """Show the second factor to its owner, this once, until a code of it was typed."""
    factor = pyotp.TOTP(b32encode(keys.totp).decode())
    made.talk.say(f"For {member.account} alone, to type into the authenticator app: {factor.secret}")
    while not factor.verify(made.talk.ask("The six digits that it shows: ").strip(), valid_window=1):
        made.talk.say("That is not the code. Is the phone's time right?")


def _publish(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.chmod(0o444)
    draft.replace(path)


def afterwards(made: Installation) -> str:
    """Return what to do next."""
    users = {"public": 10001, "staff": 10002, "worker": 10003, "signer": 10005}
    lines = ["", "What is left to do, in this order:", ""]
    lines += [f"1. Copy {made.offline} to two sticks for two organisations, in different places. Then remove it here."]
    lines += [f"   Write on paper, and compare on every host: {made.root_vkey}"]
    lines += [f"   Both officers write down the cards file's SHA-256: {made.cards.sha256}"]
    lines += ["2. Give each process a user of its own, who alone reads its folder:"]
    lines += [f"     chown -R {user} {made.folder / 'keys' / process}" for process, user in users.items()]
    if made.plan["database_url"].startswith("sqlite"):
        data = made.folder / "data"
        lines += ["   All three write the database, and nobody else: a group of theirs, and umask 007 for each."]
        lines += [f"     chgrp -R GROUP {data} && chmod 2770 {data} && chmod 660 {data}/hotline.db*"]
    lines += ["3. Start them, each as its user (docs/operating.md, docs/containers.md):"]
    for command in ("serve public", "serve staff", "worker"):
        name = command.split()[-1]
        lines += [f"     HOTLINE_SETTINGS={made.folder / f'{name}.env'} ./hotline {command}"]
    signer = made.folder / "keys" / "signer"
    lines += [
        "   And before the worker, as a user of its own, the ledger's signer; the worker's group opens its socket:"
    ]
    lines += [f"     ./hotline ledger signer {signer} {made.folder / SIGNER_SOCKET}"]
    lines += ["   Without witnesses nothing is closed or lowered: docs/witnesses.md, then HOTLINE_LEDGER_POLICY_FILE."]
    seated = {person["unit"] for person in made.plan["members"]}
    waiting = [unit.id for unit in made.units if unit.id not in seated]
    if waiting:
        lines += [f"4. Units without a member: {', '.join(waiting)}. Invite people, then: ./hotline keys unit-first"]
    if made.cards.recovery is None:
        lines += ["!  There is no recovery key: a unit whose members all lose their passwords has lost its cases."]
        lines += ["   Before any tip is taken: ./hotline keys custodian, recovery-make, cards, publish."]
    if not (made.folder / "keys" / "public" / "twilio.token").exists():
        lines += ["!  There is no Twilio token yet: text messages are refused. Run this command again when there is."]
    lines += ["5. Rehearse, before going live and once a year: ./hotline keys rehearse"]
    lines += ["   Put off nothing of ./hotline keys show that says DUE."]
    return "\n".join(lines)
