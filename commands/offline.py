"""What is done on a machine without a network: root, cards, custodians, recovery. No database, no settings.

Private keys are written to files of mode 0400 and never printed.
"""

import argparse
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from commands.talk import Talk
from service import recovering
from service.ceremony import ROOT_NAME, write_secret
from service.config import read_secret
from service.errors import BadCards, Invalid
from service.rotation import with_cards
from service.vault import boxes, note, recovery
from service.vault.cards import Card, Cards, UnitKind, read_cards, write_cards

ROOT_SEED = "root.seed"
RECOVERY_BOXES = "recovery.boxes"
BOXES = "bamboo recovery boxes/v1"


def ensure_key(path: Path, secret: bytes | None = None) -> bytes:
    """Return the 32 bytes in a key file; where there is none yet, `secret` or random ones are written first."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(path, (secret or boxes.random_bytes()).hex())
    return read_secret(path, path.name, length=boxes.KEY)


def read_key(path: Path) -> bytes:
    """Return the 32 bytes in a key file. Raises Misconfigured for a missing file or one that others can read."""
    return read_secret(path, path.name, length=boxes.KEY)


def root_vkey(seed: bytes) -> str:
    """Return the root's verifier key, which stands in every host's settings and is compared by hand."""
    return note.vkey(ROOT_NAME, boxes.signing_public_of(seed))


def parse_card(line: str) -> Card:
    """Return the card of a line ``unit …`` as a member's session made it. Raises Invalid."""
    word, *rest = line.strip().split(" ")
    try:
        unit, kind, organisation, generation, key, start = rest
        card = Card(unit, UnitKind(kind), organisation, int(generation), b64decode(key), date.fromisoformat(start))
    except ValueError:
        raise Invalid("this is not a line for the cards file, like: unit ID KIND ORGANISATION 2 KEY DATE") from None
    if word != "unit":
        raise Invalid("a line for the cards file begins with: unit")
    return card


def next_cards(seed: bytes, present: str, lines: Sequence[str], day: date, *, recovery_key: bytes | None = None) -> str:
    """Return the next cards file: `present` with these lines in place, its serial one higher, signed by the root.

    Raises BadCards for a present file of another root, or lines that nobody may trust.
    """
    deck = read_cards(present, root_vkey(seed))
    cards = [parse_card(line) for line in lines]
    for card in cards:
        known = next((c for c in deck.units if c.unit == card.unit), None)
        if known is not None and card.generation != known.generation + 1:
            raise BadCards(f"unit {card.unit} is at generation {known.generation}: the next is {known.generation + 1}")
        if known is not None and (card.kind, card.organisation) != (known.kind, known.organisation):
            raise BadCards(f"unit {card.unit} is of another kind or organisation than before")
    return write_cards(
        deck.serial + 1,
        day,
        with_cards(deck, cards),
        relay=deck.relay,
        recovery=recovery_key or deck.recovery,
        backup=deck.backup,
        root_name=ROOT_NAME,
        root_seed=seed,
    )


def write_boxes(path: Path, recovery_private: bytes, custodians: Mapping[str, bytes]) -> None:
    """Write the three nested boxes of the recovery key, for the custodians to keep; it opens for two of them only."""
    lines = [BOXES]
    for (outer, inner), sealed in recovery.share(recovery_private, custodians).items():
        lines.append(f"{outer} {inner} {b64encode(sealed).decode()}")
    path.unlink(missing_ok=True)
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o444)


def read_boxes(path: Path) -> dict[tuple[str, str], bytes]:
    """Return the nested boxes of a file by (outer, inner) custodian. Raises Invalid."""
    try:
        head, *lines = path.read_text().splitlines()
        parts = [line.split(" ") for line in lines]
        found = {(outer, inner): b64decode(sealed, validate=True) for outer, inner, sealed in parts}
    except (OSError, ValueError):
        raise Invalid(f"{path} is not a file of recovery boxes") from None
    if head != BOXES:
        raise Invalid(f"{path} is not a file of recovery boxes")
    return found


def recover(bundle: str, boxes_file: Path, deck: Cards, keys: Mapping[str, Path], unit: str) -> str:
    """Return a unit's key, given to the bundle's member, with the keys of two custodians by name.

    Raises CannotOpen when these two do not open it, Invalid for another file.
    """
    if deck.recovery is None:
        raise Invalid("the cards file names no recovery key")
    privates = {name: read_key(path) for name, path in keys.items()}
    private = recovery.combine(read_boxes(boxes_file), privates, recovery_public=deck.recovery)
    first, second = sorted(privates)
    return recovering.give(bundle, private, deck, unit, (first, second))


# --- the ceremonies ---------------------------------------------------------------------------------------

ROOT_WORDS = """\
Make the root's key: it signs which units there are, and whoever has it can have new cases sealed to himself. Do this
once, on a machine that has no network and never gets one, with two persons of different organisations present. Copy the
file to two sticks, kept by two organisations in different places. Write the verifier key on paper."""


def make_root(options: argparse.Namespace, talk: Talk) -> None:
    """Make the root's key unless it is there, and print its verifier key."""
    seed = ensure_key(options.folder / ROOT_SEED)
    talk.say(f"The root's key is in {options.folder / ROOT_SEED}. It stays on this machine and its two copies.")
    talk.say(f"The verifier key, for every host's HOTLINE_ROOT_VKEY: {root_vkey(seed)}")


CUSTODIAN_WORDS = """\
Make an organisation's own key for the recovery. Each of the three does this by itself, on its own machine, and keeps
the file  Only the line that is printed is given away."""


def make_custodian(options: argparse.Namespace, talk: Talk) -> None:
    """Make a custodian's key unless it is there, and print its public half."""
    boxes.context_of("recovery", options.name)
    path = options.folder / f"custodian-{options.name}.key"
    public = boxes.public_of(ensure_key(path))
    talk.say(f"The key is in {path}. Keep it offline, with one copy elsewhere.")
    talk.say(f"Give away only this: {options.name}={b64encode(public).decode()}")


SHARE_WORDS = """\
Make the recovery key and box it so that any two of the three organisations open it together, and one alone does not.
The key itself is never written down. Give the file of boxes to all three; give the public key to ./hotline keys
cards."""


def recovery_make(options: argparse.Namespace, talk: Talk) -> None:
    """Make the recovery key, write its boxes, and print its public half."""
    path = options.folder / RECOVERY_BOXES
    if path.exists():
        raise Invalid(f"{path} is there already: a new recovery key needs a folder of its own")
    private, public = boxes.keypair()
    try:
        write_boxes(path, private, custodians_of(options.custodian))
    except ValueError as fault:
        raise Invalid(str(fault)) from None
    talk.say(f"The boxes are in {path}, for the three organisations.")
    talk.say(f"The public recovery key: {b64encode(public).decode()}")


def custodians_of(texts: Sequence[str]) -> dict[str, bytes]:
    """Return custodians' public keys by name from texts like ``NAME=KEY``. Raises Invalid."""
    found = {}
    for text in texts:
        name, _, key = text.partition("=")
        try:
            found[name] = b64decode(key, validate=True)
        except ValueError:
            raise Invalid("a custodian is written NAME=KEY, as ./hotline keys custodian printed it") from None
        if not name or not boxes.is_box_key(found[name]):
            raise Invalid("a custodian is written NAME=KEY, as ./hotline keys custodian printed it")
    return found


CARDS_WORDS = """\
Sign the next cards file. Check each line by its fingerprint with the person who brought it. Both officers write the
SHA-256 that is shown at the end on a note of their own, to compare it on the host (./hotline keys publish)."""


def sign_cards(options: argparse.Namespace, talk: Talk) -> None:
    """Sign the next cards file, and print its hash."""
    for line in options.line:
        card = parse_card(line)
        talk.say(f"{card.unit}, generation {card.generation}: {recovering.fingerprint(card.public)}")
    seed, present = read_key(options.root), options.present.read_text()
    new = b64decode(options.recovery) if options.recovery else None
    text = next_cards(seed, present, options.line, datetime.now(UTC).date(), recovery_key=new)
    options.new.write_text(text)
    deck = read_cards(text, root_vkey(seed))
    talk.say(f"Cards file {deck.serial} is in {options.new}. Its SHA-256, for both officers to write down:")
    talk.say("  " + " ".join(deck.sha256[at : at + 8] for at in range(0, 64, 8)))


GIVE_WORDS = """\
Two organisations give a unit's key to a named member. The member is present and reads out the fingerprint; compare it
with the one shown here. What is written opens for this member alone."""


def recovery_give(options: argparse.Namespace, talk: Talk) -> None:
    """Give a unit's key to the member of a bundle, with two custodians' keys."""
    deck = read_cards(options.cards.read_text(), options.root_vkey)
    pairs = [text.partition("=") for text in options.key]
    keys = {name: Path(file) for name, _, file in pairs}
    if len(keys) != 2:
        raise Invalid("the keys of two different custodians are needed, each as NAME=FILE")
    text = recover(options.bundle.read_text(), options.boxes, deck, keys, options.unit)
    options.new.write_text(text)
    talk.say(f"Written to {options.new}, for one member. On the host: ./hotline keys recovery-take {options.new.name}")
