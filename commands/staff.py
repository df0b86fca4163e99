"""``./hotline staff``: accounts from the terminal of the staff host, by the same people and rules as on the page."""

import argparse
import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from commands.serve import open_ready_database, read_deck
from service import accounts, invitations, register, staff
from service.config import read_secret, settings_from_environment
from service.db import Sessions, write
from service.errors import Busy, HotlineError, Misconfigured, Unauthenticated, VaultError
from service.ledger.events import Ledger
from service.models import Member, Role, Unit, UnitGrant
from service.rights import ChangeKind
from service.staff import SignedIn
from service.turns import Turns
from service.vault.cards import Cards

EPILOG = """\
Who acts signs in here, with account, password and the code of the phone; what takes two persons on the page takes two
here. Only "list" and "check" ask for nobody. Run it on the staff host, as the staff process's user: it reads the same
settings and the row key. No password, code or key is taken from the command line, where others could see it.

examples:
  ./hotline staff list                       who has an account, in which units, and who is barred
  ./hotline staff check                      was the list of people changed outside the system?
  ./hotline staff invite --account sokha --name "Sok Ha" --organisation org-ngo --role screener
                                             prints a code, good once and for three days: hand it over in person
  ./hotline staff reset sokha                a lost phone or password: two persons sign in, one after the other;
                                             the person then makes new keys, and sees nothing until let in again
  ./hotline staff end-sessions sokha         signs somebody out everywhere, at once
  ./hotline staff leave sokha                bars somebody at once and marks their units as needing a new key

Nobody is let into a unit from here: a member of the unit does that on the page, in person, comparing fingerprints.
exit code: 0 done, 1 refused or something is wrong, 2 wrong use or settings
"""


@dataclass(frozen=True)
class Office:
    """What the commands work with."""

    sessions: Sessions
    ledger: Ledger
    cards: Cards
    row_key: bytes
    turns: Turns


def main(arguments: list[str]) -> int:
    """Do what `arguments` ask for; return 0, or 1 with the reason."""
    options = _parser().parse_args(arguments)
    try:
        with _office() as office:
            code: int = options.act(office, options)
            return code
    except (Unauthenticated, Busy):
        print(
            "hotline staff: account, password or code is wrong, or too many try. Nothing was changed.", file=sys.stderr
        )
    except (Misconfigured, VaultError):
        raise
    except HotlineError as fault:
        print(f"hotline staff: {fault} Nothing was changed.", file=sys.stderr)
    return 1


@contextmanager
def _office() -> Iterator[Office]:
    settings = settings_from_environment()
    row_key = read_secret(settings.row_key_file, "row_key_file", length=32)
    sessions = open_ready_database(settings)
    try:
        cards = read_deck(settings, sessions)
        yield Office(sessions, Ledger(settings.origin, cards.monitor().public), cards, row_key, Turns())
    finally:
        sessions.close()


@contextmanager
def _person(office: Office, which: str) -> Iterator[SignedIn]:
    """Sign a person in for the length of one act. Raises Unauthenticated or Busy."""
    print(f"{which}:", file=sys.stderr)
    account = _ask("  account: ")
    password = getpass.getpass("  password: ")
    code = _ask("  code of the phone: ")
    proof = {"account": account, "password": password, "code": code}
    cookie = staff.sign_in(
        office.sessions, office.ledger, office.row_key, **proof, now=_now(), turns=office.turns, address="terminal"
    )
    who = staff.resume(office.sessions, office.row_key, office.cards, cookie, _now())
    try:
        yield who
    finally:
        staff.sign_out(office.sessions, office.ledger, who, _now())


def _ask(words: str) -> str:
    print(words, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")


def _now() -> datetime:
    return datetime.now(UTC)


def _find(office: Office, account: str) -> Member | None:
    with office.sessions.read() as session:
        name = staff.account_name(account)
        return session.scalars(select(Member).where(col(Member.account) == name)).one_or_none()


def _nobody(account: str) -> int:
    print(f"hotline staff: nobody has the account {account!r}; ./hotline staff list shows them.", file=sys.stderr)
    return 1


# --- what it does ---


def _list(office: Office, options: argparse.Namespace) -> int:
    with office.sessions.read() as session:
        seats: dict[Any, list[str]] = {}
        for unit, member in session.execute(select(col(UnitGrant.unit), col(UnitGrant.member)).distinct()).all():
            seats.setdefault(member, []).append(unit)
        for row in session.scalars(select(Member).order_by(col(Member.organisation), col(Member.account))).all():
            units = ",".join(sorted(seats.get(row.id, ()))) or "-"
            barred = f"  barred {row.disabled_at:%Y-%m-%d}" if row.disabled_at else ""
            print(f"{row.account:<20} {row.role:<13} {row.organisation:<16} {units:<24}{barred}".rstrip())
        for invitation in invitations.invitations(session, _now()):
            print(f"{invitation.account:<20} {invitation.role:<13} {invitation.organisation:<16} invited")
        for unit_row in session.scalars(select(Unit).order_by(col(Unit.id))).all():
            if accounts.needs_new_key(unit_row, office.cards):
                print(f"unit {unit_row.id} needs a new key: somebody who knew it has left", file=sys.stderr)
    return 0


def _check(office: Office, options: argparse.Namespace) -> int:
    if register.is_whole(office.sessions, office.row_key):
        print("members and grants are those of the newest event that changed them")
        return 0
    register.report(office.sessions, office.ledger, office.row_key, _now())
    print(
        "The register of people was changed outside the system. It is recorded. Only integrity and oversight see\n"
        "cases until two of them have compared the list with the paper one and accepted it on the page Staff.",
        file=sys.stderr,
    )
    return 1


def _invite(office: Office, options: argparse.Namespace) -> int:
    with _person(office, "Who invites") as who:
        asked = {name: getattr(options, name) for name in ("account", "name", "name_km", "organisation", "role")}
        code = write(
            office.sessions,
            lambda tx: invitations.invite(tx, office.ledger, office.row_key, who.viewer, **asked, now=_now()),
        )
    return _hand_over(code)


def _hand_over(code: invitations.OneTimeCode) -> int:
    print(code.code)
    print(
        f"For {code.account}: good once, until {code.expires_at:%Y-%m-%d %H:%M} UTC. Hand it over in person. They\n"
        "open the sign-in page and choose “I was given a code to join”. It is not shown again.",
        file=sys.stderr,
    )
    return 0


def _reset(office: Office, options: argparse.Namespace) -> int:
    member = _find(office, options.account)
    if member is None:
        return _nobody(options.account)
    with _person(office, "First person") as first:
        change = write(
            office.sessions,
            lambda tx: accounts.propose(
                tx,
                office.ledger,
                office.row_key,
                first.viewer,
                ChangeKind.RESET,
                now=_now(),
                member_id=member.id,
                last=options.last,
            ),
        )
    with _person(office, "Second person") as second:
        code = write(
            office.sessions,
            lambda tx: accounts.sign(tx, office.ledger, office.row_key, second.viewer, change, _now()),
        )
    return _hand_over(code) if code else 1


def _end_sessions(office: Office, options: argparse.Namespace) -> int:
    member = _find(office, options.account)
    if member is None:
        return _nobody(options.account)
    with _person(office, "Who ends them") as who:
        count = write(
            office.sessions, lambda tx: accounts.end_sessions(tx, office.ledger, who.viewer, member.id, _now())
        )
    print(f"{count} sessions ended")
    return 0


def _leave(office: Office, options: argparse.Namespace) -> int:
    member = _find(office, options.account)
    if member is None:
        return _nobody(options.account)
    with _person(office, "Who bars them") as who:
        write(
            office.sessions,
            lambda tx: accounts.leave(
                tx, office.ledger, office.row_key, who.viewer, member.id, _now(), last=options.last
            ),
        )
    print(f"{member.account} is barred; units of theirs need a new key: ./hotline staff list names them")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./hotline staff",
        description="Accounts: who has one, invite, reset, sign out, bar.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="what", required=True, metavar="ACT")
    _act(acts, "list", _list, "everybody with an account, and units that need a new key")
    _act(acts, "check", _check, "say whether the register of people is as its newest event left it")
    invite = _act(acts, "invite", _invite, "make a one-time code for a newcomer")
    invite.add_argument("--account", required=True, help="the name to sign in with: a to z, 0 to 9, dot, hyphen")
    invite.add_argument("--name", required=True, help="the person's name in Latin letters")
    invite.add_argument("--name-km", default="", help="and in Khmer")
    invite.add_argument("--organisation", required=True, help="the id of the organisation that employs them")
    invite.add_argument("--role", required=True, choices=[role.value for role in Role])
    for name, act, words in (
        ("reset", _reset, "new keys after a lost phone or password; two persons"),
        ("end-sessions", _end_sessions, "sign somebody out everywhere"),
        ("leave", _leave, "bar somebody at once"),
    ):
        command = _act(acts, name, act, words)
        command.add_argument("account", help="whose")
        if name != "end-sessions":
            command.add_argument("--last", action="store_true", help="also if nobody else holds the unit's key")
    return parser


def _act(acts: Any, name: str, act: Any, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = acts.add_parser(
        name,
        help=words,
        description=words[0].upper() + words[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(act=act)
    return parser
