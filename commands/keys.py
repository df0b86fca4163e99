"""``./hotline keys``: the ceremonies, one command each, in words that a careful person can follow."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from commands import offline
from commands.serve import open_ready_database, read_deck, read_peppers, read_relay
from commands.talk import Talk
from service import accounts, ceremony, numbers, recovering, rotation, staff
from service.config import Settings, read_secret, settings_from_environment
from service.db import Sessions, write
from service.errors import HotlineError, Invalid, Misconfigured
from service.keyring import BEGINNING, Generation, Keyring
from service.ledger.events import Ledger
from service.models import Member, Unit, UnitGrant
from service.staff import SignedIn
from service.turns import Turns
from service.vault import boxes, members, passwords
from service.vault.cards import Cards, read_cards
from service.vault.members import MemberKeys
from service.walls import Seat, viewer

DUE = timedelta(days=5)  # so long before its end a key is said to be due

EPILOG = """\
On the hosts, with their settings (HOTLINE_SETTINGS):
  show               what keys there are, and what is due
  relay              the next key that telephone numbers are sealed to (every 30 days, on the worker's host)
  pepper             the next secret that numbers are named under (every 30 days, on each host that has the file)
  publish            take a new cards file into use, with two officers
  unit-next          make a unit's next key, as one of its members (after somebody has left)
  unit-move          seal the unit's open cases to its new key, as one of its members
  unit-first         give a unit's key from its file to the unit's first member
  recovery-bundle    take what a recovery needs to the machine without a network
  recovery-take      bring a recovered key back to the member it was given to

On a machine without a network:
  root               make the root's key, once
  custodian          make an organisation's key, each organisation its own
  recovery-make      make the recovery key, of which any two of three organisations hold a half
  cards              sign the next cards file
  recovery-give      two organisations give a unit's key to a member

./hotline keys CEREMONY --help explains one. ./hotline keys CEREMONY --rehearse does it in a folder that is thrown away,
and ./hotline keys rehearse does them all. Rehearse before going live, and once a year.
"""


@dataclass(frozen=True)
class Host:
    """What a ceremony on a host works with."""

    settings: Settings
    sessions: Sessions
    cards: Cards

    @property
    def ledger(self) -> Ledger:
        """Where events go."""
        return Ledger(self.settings.origin, self.cards.monitor().public)

    @property
    def row_key(self) -> bytes:
        """The key of row tags."""
        return read_secret(self.settings.row_key_file, "row_key_file", length=boxes.KEY)


def main(arguments: list[str], talk: Talk | None = None) -> int:
    """Run one ceremony. Returns 0, or 1 with one line that says what was refused; then nothing has changed."""
    options = parser().parse_args(arguments)
    if options.ceremony == "rehearse" or options.rehearse:
        from commands.rehearsal import rehearse  # it founds a whole installation: not needed for a real ceremony

        return rehearse("" if options.ceremony == "rehearse" else options.ceremony, talk or Talk())
    try:
        options.run(options, talk or Talk())
    except Misconfigured:
        raise
    except HotlineError as fault:
        print(f"hotline keys {options.ceremony}: {fault}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of all ceremonies."""
    top = argparse.ArgumentParser(
        prog="./hotline keys",
        description="Make, change and recover keys. Nothing here prints a private key.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="ceremony", required=True, metavar="CEREMONY", title="ceremonies")

    def add(name: str, run: Callable[..., None] | None, words: str) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(name, description=words, formatter_class=form, prog=f"./hotline keys {name}")
        command.add_argument("--rehearse", action="store_true", help="only try it, in a folder that is thrown away")
        command.set_defaults(run=run)
        return command

    add("rehearse", None, "Found an invented installation in a folder that is thrown away, and do it all on it.")
    add("show", show, "Say what keys there are, their fingerprints, and what is due. It changes nothing.")
    relay = add("relay", next_relay, RELAY_WORDS)
    relay.add_argument("--make-only", action="store_true", help="write the key and do not use it yet")
    relay.add_argument("--start", type=date.fromisoformat, help="first day of use (default: today)")
    pepper = add("pepper", next_pepper, PEPPER_WORDS)
    pepper.add_argument(
        "--start", type=_moment, help="from when it is used, like 2027-03-01T00:00Z (default: tomorrow)"
    )
    publish = add("publish", publish_cards, PUBLISH_WORDS)
    publish.add_argument("file", type=Path, help="the cards file, as the root signed it")
    publish.add_argument(
        "--officer", action="append", default=[], metavar="NAME", help="who compared it; give it twice"
    )
    for name, run, words in (("unit-next", unit_next, NEXT_WORDS), ("unit-move", unit_move, MOVE_WORDS)):
        command = add(name, run, words)
        command.add_argument("unit")
        command.add_argument("--account", required=True, help="your own account")
    first = add("unit-first", unit_first, FIRST_WORDS)
    first.add_argument("unit")
    first.add_argument("--account", required=True, help="the member's own account")
    first.add_argument("--key", type=Path, required=True, metavar="FILE", help="the unit's key from the founding")
    bundle = add("recovery-bundle", recovery_bundle, BUNDLE_WORDS)
    bundle.add_argument("account", help="the member who shall get the unit's key")
    bundle.add_argument("file", type=Path, help="where to write it")
    take = add("recovery-take", recovery_take, "Bring a recovered key to the member it was given to, who signs in.")
    take.add_argument("file", type=Path, help="what recovery-give wrote")
    take.add_argument("--account", required=True)

    root = add("root", offline.make_root, offline.ROOT_WORDS)
    root.add_argument("folder", type=Path, help="on the machine without a network")
    custodian = add("custodian", offline.make_custodian, offline.CUSTODIAN_WORDS)
    custodian.add_argument("name", help="the organisation, in letters, digits and hyphens")
    custodian.add_argument("folder", type=Path)
    share = add("recovery-make", offline.recovery_make, offline.SHARE_WORDS)
    share.add_argument("folder", type=Path)
    share.add_argument("--custodian", action="append", default=[], metavar="NAME=KEY", help="three times")
    cards = add("cards", offline.sign_cards, offline.CARDS_WORDS)
    cards.add_argument("present", type=Path, help="the cards file in use")
    cards.add_argument("new", type=Path, help="where to write the next one")
    cards.add_argument("--root", type=Path, required=True, metavar="FILE", help=f"the root's key, {offline.ROOT_SEED}")
    cards.add_argument(
        "--line", action="append", default=[], metavar='"unit …"', help="a unit's new line, as often as needed"
    )
    cards.add_argument("--recovery", metavar="KEY", help="the public recovery key, when it is new")
    give = add("recovery-give", offline.recovery_give, offline.GIVE_WORDS)
    give.add_argument("bundle", type=Path)
    give.add_argument("new", type=Path, help="where to write what goes back to the host")
    give.add_argument("--unit", required=True)
    give.add_argument("--cards", type=Path, required=True)
    give.add_argument("--root-vkey", required=True, help="the root's verifier key, from paper")
    give.add_argument("--boxes", type=Path, required=True, help=f"the file {offline.RECOVERY_BOXES}")
    give.add_argument(
        "--key", action="append", default=[], metavar="NAME=FILE", help="a custodian's key; give it twice"
    )
    return top


# --- on the hosts ---------------------------------------------------------------------------------------


def open_host() -> Host:
    """Return what this host's settings name. Raises Misconfigured."""
    settings = settings_from_environment()
    sessions = open_ready_database(settings)
    return Host(settings, sessions, read_deck(settings, sessions))


def show(_options: argparse.Namespace, talk: Talk) -> None:
    """Say what keys there are, and what is due."""
    host, today = open_host(), datetime.now(UTC).date()
    cards = host.cards
    talk.say(f"Cards file {cards.serial} of {cards.day}, SHA-256 {cards.sha256}")
    with host.sessions.read() as session:
        how_far = {found.unit: found for found in rotation.progress(session, cards)}
        keys = numbers.relay_keys(session, cards.relay or b"", read_relay(host.settings, cards))
        stale = {row.id: row.stale_since for row in session.scalars(select(Unit)) if accounts.needs_new_key(row, cards)}
    for card in cards.units:
        found = how_far[card.unit]
        left = found.total - found.moved
        moving = f"; {left} of {found.total} open cases are still under an older key (unit-move)" if left else ""
        talk.say(f"  {card.unit}, {card.kind} of {card.organisation}, generation {card.generation}:")
        talk.say(f"    {recovering.fingerprint(card.public)}{moving}")
        if card.unit in stale:
            since = f" on {stale[card.unit]:%Y-%m-%d}" if stale[card.unit] else ""
            talk.say(f"    somebody who knows this key has left{since}  DUE: ./hotline keys unit-next {card.unit}")
    talk.say("  recovery: " + (recovering.fingerprint(cards.recovery) if cards.recovery else "NONE (recovery-make)"))
    for key in keys[:2]:
        due = "  DUE: ./hotline keys relay" if key == keys[0] and today > key.until - DUE else ""
        talk.say(f"Relay key {key.generation}, {key.start} to {key.until}{due}")
    if host.settings.phone_pepper_file is not None:
        newest = read_peppers(host.settings).ring.generations()[0]
        age = datetime.now(UTC) - newest.start
        due = "  DUE: ./hotline keys pepper" if newest.start == BEGINNING or age > numbers.PEPPER_DAYS - DUE else ""
        began = "the founding" if newest.start == BEGINNING else f"{newest.start:%Y-%m-%d %H:%M}Z"
        talk.say(f"Pepper {newest.number}, from {began}{due}")


RELAY_WORDS = """\
Begin the next key that telephone numbers are sealed to. Do this every 30 days, on the worker's host, as its user.

With several worker hosts: run it with --make-only on one, copy the relay key file to the others, then run it again
without. With one host, run it once. Nothing needs a restart.

The worker then carries every number over that is still needed, and destroys the old key a day later. Numbers in old
backups die with it. Never back up the relay key file."""


def next_relay(options: argparse.Namespace, talk: Talk) -> None:
    """Make the relay's next key, or use the one that lies in the file already."""
    host = open_host()
    first = read_relay(host.settings, host.cards)
    seed = read_secret(host.settings.relay_identity_file, "relay_identity_file", length=boxes.KEY)
    if boxes.signing_public_of(seed) != host.cards.relay:
        raise Misconfigured("HOTLINE_RELAY_IDENTITY_FILE is not the relay of the cards file")
    ring = Keyring(host.settings.relay_key_file, "relay_key_file", first=lambda: first.generation)
    with host.sessions.read() as session:
        keys = numbers.relay_keys(session, host.cards.relay or b"", first)
    wanted = max(key.generation for key in keys) + 1
    if wanted not in ring:
        new = Generation(wanted, datetime.now(UTC), boxes.random_bytes())
        ring.change(lambda held: [new, *held])
        talk.say(f"Relay key {wanted} is written to {ring.path}.")
    if options.make_only:
        talk.say("It is not used yet. Copy this file to the other worker hosts, then run: ./hotline keys relay")
        return
    start, now = options.start or datetime.now(UTC).date(), datetime.now(UTC)
    key = write(
        host.sessions,
        lambda tx: numbers.next_relay(tx, host.ledger, seed, ring[wanted], keys, start, now),
    )
    talk.say(f"Numbers are sealed to it from {key.start} on. The worker carries the rest over and destroys the old.")
    talk.say(f"Do this again before {key.until}.")


PEPPER_WORDS = """\
Begin the next secret that telephone numbers are named under. Do this every 30 days.

Run it on ONE host, then copy the file to every other host that has it (public and worker) before the moment it says.
All processes change to it at that moment by themselves. Numbers are looked up under it and the one before; those
before that are destroyed, here by this command: run it again there, or copy the file, on the other hosts."""


def next_pepper(options: argparse.Namespace, talk: Talk) -> None:
    """Write the next pepper before the others, and destroy those before the last."""
    host = open_host()
    ring = read_peppers(host.settings).ring
    now = datetime.now(UTC)
    held = ring.generations()
    if held[0].start > now:
        raise Invalid(f"pepper {held[0].number} begins only at {held[0].start:%Y-%m-%d %H:%M}Z")
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    new = Generation(held[0].number + 1, options.start or tomorrow, boxes.random_bytes())
    if new.start < now - timedelta(minutes=5):
        raise Invalid("it begins in the future: every host needs the file before")
    ring.change(lambda held: [new, *held[:2]])
    write(
        host.sessions,
        lambda tx: numbers.announce_pepper(tx, host.ledger, new.number, new.start, now),
    )
    talk.say(f"Pepper {new.number} is in {ring.path} and begins at {new.start:%Y-%m-%d %H:%M}Z.")
    talk.say("Copy this file to every other host that has it, before then. Mode 0400, the process's own user.")


PUBLISH_WORDS = """\
Take a new cards file into use. Two officers of different organisations compare its SHA-256, which the machine without
a network showed, with the one shown here, each from an own note. Their names are kept in the history.

Then copy the file to every host and restart its processes: each refuses a file that is older than the newest."""


def publish_cards(options: argparse.Namespace, talk: Talk) -> None:
    """Publish a cards file, and put it where this host's settings say."""
    host = open_host()
    try:
        text = options.file.read_text()
    except (OSError, UnicodeDecodeError):
        raise Invalid(f"cannot read {options.file}") from None
    deck = read_cards(text, host.settings.root_vkey)
    talk.say(f"Cards file {deck.serial} of {deck.day}. Compare, group by group:")
    talk.say("  " + " ".join(deck.sha256[at : at + 8] for at in range(0, 64, 8)))
    for card in deck.units:
        talk.say(f"  {card.unit}: {card.kind} of {card.organisation}, generation {card.generation}")
    if talk.ask('If every group is the same, type "same": ').strip() != "same":
        raise Invalid("nothing was changed")
    root = host.settings.root_vkey
    write(
        host.sessions,
        lambda tx: ceremony.publish(tx, host.ledger, text, root, officers=options.officer, now=datetime.now(UTC)),
    )
    target = host.settings.cards_file or Path("cards.note")
    if target.resolve() != options.file.resolve():
        draft = target.with_name(target.name + ".new")
        draft.write_text(text)
        draft.chmod(0o444)
        draft.replace(target)
    talk.say(f"Published, and written to {target}. Copy it to the other hosts, then restart all processes.")


NEXT_WORDS = """\
Make a unit's next key. Do this as soon as somebody has left the unit, as one of its members, on the staff host.

It is sealed to each member who stays. It is used once the root has signed the line that this prints: take the line to
the machine without a network (./hotline keys cards), and publish the cards file it signs, within 24 hours."""


def unit_next(options: argparse.Namespace, talk: Talk) -> None:
    """Make a unit's next key in its member's session, and print its line for the root."""
    host = open_host()
    who = _signed_in(host, options.account, talk)
    card = write(
        host.sessions,
        lambda tx: rotation.propose_generation(
            tx, host.ledger, host.row_key, host.cards, who, options.unit, datetime.now(UTC)
        ),
    )
    talk.say("Take this line to the machine without a network:")
    talk.say(rotation.request_line(card))
    talk.say(f"Its fingerprint: {recovering.fingerprint(card.public)}")


MOVE_WORDS = """\
Seal a unit's open cases to its new key, as one of its members. Stop it whenever you like; run it again to go on.
Until it is done, whoever left and copied the database and the old key could still open what was sealed before."""


def unit_move(options: argparse.Namespace, talk: Talk) -> None:
    """Move a unit's open cases, a hundred at a time, and say how far it is."""
    host = open_host()
    who = _signed_in(host, options.account, talk)
    before = -1
    while True:
        use = partial(
            rotation.move_cases,
            ledger=host.ledger,
            row_key=host.row_key,
            deck=host.cards,
            who=who,
            unit=options.unit,
            most=100,
            now=datetime.now(UTC),
        )
        found = write(host.sessions, use)
        talk.say(f"{found.moved} of {found.total} open cases are under generation {found.generation}.")
        if found.moved in (before, found.total):
            return
        before = found.moved


FIRST_WORDS = """\
Give a unit's key, from its file of the founding, to the unit's first member, who types the password here.
When every unit has two members, destroy these files: from then on members grant each other, and the recovery key is
what is left for the worst day."""


def unit_first(options: argparse.Namespace, talk: Talk) -> None:
    """Grant a unit's key to the member who signs in, from the unit's own file."""
    host = open_host()
    card, private = host.cards.unit(options.unit), offline.read_key(options.key)
    if boxes.public_of(private) != card.public:
        raise Invalid("this file does not hold the key that the cards name for this unit")
    member, keys = _member(host, options.account, talk)
    now = datetime.now(UTC)
    give = partial(staff.grant, ledger=host.ledger, row_key=host.row_key, card=card, unit_private=private, now=now)
    write(host.sessions, partial(give, member=member, granter=member, granter_keys=keys))
    talk.say(f"{member.account} holds the key of {card.unit}.")


BUNDLE_WORDS = """\
Write what a recovery needs: the units' keys as the recovery key's owners alone can open them, and the member who shall
get one. It opens nothing by itself. The member reads the fingerprint shown here to the custodians, in person."""


def recovery_bundle(options: argparse.Namespace, talk: Talk) -> None:
    """Write the bundle for a member."""
    host = open_host()
    with host.sessions.read() as session:
        text = recovering.bundle(session, host.row_key, host.cards, options.account)
        account = staff.account_name(options.account)
        member = session.scalars(select(Member).where(col(Member.account) == account)).one()
    options.file.write_text(text)
    talk.say(f"Written to {options.file}. The member's fingerprint: {recovering.fingerprint(member.box_public)}")


def recovery_take(options: argparse.Namespace, talk: Talk) -> None:
    """Grant a recovered key to the member who signs in."""
    host = open_host()
    given = recovering.read_given(options.file.read_text())
    member, keys = _member(host, options.account, talk)
    now = datetime.now(UTC)
    take = partial(recovering.take, ledger=host.ledger, row_key=host.row_key, deck=host.cards, now=now)
    write(host.sessions, partial(take, given=given, member=member, keys=keys))
    talk.say(f"{member.account} holds the key of {given.unit}. The use of the recovery key stands in the history.")


def _member(host: Host, account: str, talk: Talk) -> tuple[Member, MemberKeys]:
    """Return a member and the keys that the password opens. Raises Unauthenticated, CannotOpen."""
    name = staff.account_name(account)
    with host.sessions.read() as session:
        member = session.scalars(
            select(Member).where(col(Member.account) == name, col(Member.disabled_at).is_(None))
        ).one_or_none()
    password = talk.secret(f"Password of {name}: ")
    parameters = passwords.read_parameters(member.parameters) if member else passwords.Parameters()
    kek = passwords.check(password, parameters, member.auth if member else None)
    if member is None:
        raise Invalid("there is no such account")
    boxes.check_row_tag(host.row_key, staff.member_row(member), member.row_tag)
    known = {"box_public": member.box_public, "signing_public": member.signing_public}
    return member, members.unwrap_member(kek, member.id.hex, parameters, member.wrapped, **known)


def _signed_in(host: Host, account: str, talk: Talk) -> SignedIn:
    """Return a member by password and the code of the phone, as on the sign-in page. Raises Unauthenticated, WrongCode.

    What opens a unit's key asks for both, here as there: a password that somebody has watched is not enough.
    """
    name = staff.account_name(account)
    with host.sessions.read() as session:
        found = session.scalars(select(Member).where(col(Member.account) == name)).one_or_none()
    password = talk.secret(f"Password of {name}: ")
    code = talk.ask("The code that your phone shows now: ").strip()
    prove = partial(staff.prove, host.sessions, host.ledger, host.row_key, found, account, password, code)
    keys, step, member = prove(now=datetime.now(UTC), turns=Turns(), address="terminal")
    write(host.sessions, lambda tx: staff.use_code(tx, member, step))
    with host.sessions.read() as session:
        granted = set(
            session.execute(
                select(col(UnitGrant.unit), col(UnitGrant.generation)).where(col(UnitGrant.member) == member.id)
            ).all()
        )
        cards = [card for card in host.cards.units if (card.unit, card.generation) in granted]
        seats = tuple(Seat(card.unit, card.kind, card.organisation) for card in cards)
        return SignedIn(viewer(session, host.row_key, member, seats), keys, b"", "")


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)
