"""The ledger's signed files: checkpoints, cosignatures, policies, promises, receipts (ledger.md section 2).

Pure: no clock, no file, no settings. Every reader is strict: what has two spellings has two meanings for somebody.
Formats: c2sp.org/tlog-checkpoint, tlog-cosignature, tlog-policy, tlog-proof, on top of `service.vault.note`.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from service.errors import BadNote
from service.ledger.merkle import EMPTY_ROOT, HASH, is_included, leaf_hash
from service.ledger.tiles import LEAF
from service.vault import boxes
from service.vault.note import (
    COSIGNATURE,
    ED25519,
    MOST_BYTES,
    Signature,
    Verifier,
    decode,
    open_note,
    parse_vkey,
    sign_note,
    signature_line,
    split_note,
)

DUE = 86_400  # seconds from a promise to its leaf in the tree
MOST_PROOF = 63  # hashes
_LARGEST = 2**63 - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_WORD = re.compile(r"[^\s\x00-\x1f\x7f]+")
_PROMISE = "bamboo promise/v1"
_PROOF = "c2sp.org/tlog-proof@v1"


# --- checkpoints ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree's head: the log's origin, its size in leaves, its root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Return what the three lines of a checkpoint say. Raises BadNote for any other text, extension lines too.

    An empty tree has the root of nothing: a checkpoint that says otherwise contradicts itself.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not _WORD.fullmatch(lines[0]) or "+" in lines[0]:
        raise BadNote("a checkpoint has three lines: origin, size, root")
    checkpoint = Checkpoint(lines[0], decimal(lines[1]), _hash(lines[2]))
    if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
        raise BadNote("an empty tree with a root that is not its own")
    return checkpoint


def sign_checkpoint(checkpoint: Checkpoint, seed: bytes) -> str:
    """Return the note of `checkpoint` by the log's key, whose name is the origin. seed: Ed25519, 32 bytes."""
    return sign_note(checkpoint.text, checkpoint.origin, seed)


def open_checkpoint(note: str | bytes, log: Verifier) -> Checkpoint:
    """Return the checkpoint in a note that the log's key signed. Raises BadNote for any other."""
    text, _ = open_note(note, [log])
    checkpoint = parse_checkpoint(text)
    if checkpoint.origin != log.name:
        raise BadNote("a checkpoint of another log")
    return checkpoint


# --- cosignatures ---------------------------------------------------------------------------------------


def cosign(checkpoint: Checkpoint, name: str, seed: bytes, time: int) -> str:
    """Return a witness's line under `checkpoint`, with its newline. time: unix seconds at which it was seen."""
    signature = time.to_bytes(8, "big") + boxes.sign(seed, _cosigned(checkpoint.text, time))
    return signature_line(name, boxes.signing_public_of(seed), signature, COSIGNATURE)


def cosigned_at(text: str, line: Signature, witness: Verifier) -> int:
    """Return when `witness` saw the checkpoint `text`, unix seconds, by a line of its key.

    Raises BadNote if the line is not its signature under this text.
    """
    time, signature = int.from_bytes(line.signature[:8], "big"), line.signature[8:]
    good = (line.name, line.key_id, witness.kind) == (witness.name, witness.key_id, COSIGNATURE)
    if not good or time > _LARGEST or not boxes.verify(witness.public, _cosigned(text, time), signature):
        raise BadNote("a cosignature of a known witness is wrong")
    return time


def _cosigned(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def add_lines(note: str, lines: Sequence[str]) -> str:
    """Return `note` with further signature lines, none of them twice. Raises BadNote if it then is none."""
    text, _ = split_note(note)
    there = note[len(text) + 1 :].splitlines(keepends=True)
    whole = f"{text}\n{''.join(dict.fromkeys([*there, *lines]))}"
    split_note(whole)
    return whole


# --- policy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Witness:
    """One who cosigns: the policy's word for it, its key, and where it listens; no address for one without."""

    word: str
    key: Verifier
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these words, each a witness or another group."""

    need: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Whose signatures count for one log (c2sp.org/tlog-policy). quorum: a word, None where no witness is needed."""

    log: Verifier
    url: str | None
    witnesses: tuple[Witness, ...]
    groups: Mapping[str, Group]
    quorum: str | None
    sha256: str = field(compare=False)

    def is_met_by(self, names: Collection[str]) -> bool:
        """Say whether cosignatures of the keys with these names are a quorum. Without witnesses it always is."""
        # A group's members stand in earlier lines, so one pass in order is enough.
        met = {witness.word for witness in self.witnesses if witness.key.name in names}
        for word, group in self.groups.items():
            if sum(member in met for member in group.members) >= group.need:
                met.add(word)
        return self.quorum is None or self.quorum in met


def parse_policy(text: str) -> Policy:
    """Return what a policy file says of its one log.

    Raises BadNote for a line that is not understood, a word used twice or too early, a key that is unfit or serves
    two roles, a group that can never be met, or a member of two groups.
    """
    logs: list[tuple[Verifier, str | None]] = []
    witnesses: dict[str, Witness] = {}
    groups: dict[str, Group] = {}
    quorums: list[str] = []
    taken: set[str] = set()
    if not text.endswith("\n") or len(text.encode()) > MOST_BYTES or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        raise BadNote("a policy is lines of text")
    for line in text.split("\n"):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        kind, *rest = words
        if kind == "log" and len(rest) in (1, 2):
            logs.append((_key(rest[0], ED25519), rest[1] if len(rest) == 2 else None))
        elif kind == "witness" and len(rest) in (2, 3):
            _new_word(rest[0], witnesses, groups)
            url = rest[2] if len(rest) == 3 else None
            witnesses[rest[0]] = Witness(rest[0], _key(rest[1], COSIGNATURE), url)
        elif kind == "group" and len(rest) >= 3:
            word, need, *members = rest
            _new_word(word, witnesses, groups)
            if taken & set(members) or len(set(members)) != len(members):
                raise BadNote("a member of two groups")
            if not set(members) <= witnesses.keys() | groups.keys():
                raise BadNote("a group of somebody unknown")
            taken |= set(members)
            groups[word] = Group(_threshold(need, len(members)), tuple(members))
        elif kind == "quorum" and len(rest) == 1:
            quorums.append(rest[0])
        else:
            raise BadNote("a line of the policy is not understood")
    if len(logs) != 1 or len(quorums) != 1:
        raise BadNote("a policy names one log and one quorum")
    quorum = None if quorums[0] == "none" else quorums[0]
    if quorum is not None and quorum not in witnesses.keys() | groups.keys():
        raise BadNote("a quorum of somebody unknown")
    keys = [logs[0][0], *(witness.key for witness in witnesses.values())]
    if len({key.public for key in keys}) != len(keys) or len({key.name for key in keys}) != len(keys):
        raise BadNote("a key or name that serves two roles")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Policy(logs[0][0], logs[0][1], tuple(witnesses.values()), groups, quorum, digest)


def _key(text: str, kind: int) -> Verifier:
    verifier = parse_vkey(text)
    if verifier.kind != kind:
        raise BadNote("a key of another kind than its line")
    return verifier


def _new_word(word: str, *taken: Mapping[str, object]) -> None:
    if word == "none" or any(word in words for words in taken):
        raise BadNote("a word of the policy is used twice")


def _threshold(text: str, members: int) -> int:
    need = {"any": 1, "all": members}.get(text)
    if need is None:
        need = decimal(text)
    if not 1 <= need <= members:
        raise BadNote("a group that can never be met, or always is")
    return need


@dataclass(frozen=True, slots=True)
class Witnessed:
    """A checkpoint opened under a policy: who cosigned it, name to unix seconds, and whether that is a quorum."""

    checkpoint: Checkpoint
    cosigned: Mapping[str, int]
    quorum: bool


def open_witnessed(note: str | bytes, policy: Policy) -> Witnessed:
    """Return a checkpoint signed by the policy's log, with the cosignatures of its witnesses.

    Lines of unknown keys are ignored, a bad line of a known key refuses the note, a key counts once, with the
    earliest time it gives. Raises BadNote; whether there is a quorum is in the answer.
    """
    checkpoint = open_checkpoint(note, policy.log)
    text, lines = split_note(note)
    keys = {(witness.key.name, witness.key.key_id): witness.key for witness in policy.witnesses}
    cosigned: dict[str, int] = {}
    for line in lines:
        key = keys.get((line.name, line.key_id))
        if key is not None:
            time = cosigned_at(text, line, key)
            cosigned[key.name] = min(time, cosigned.get(key.name, time))
    return Witnessed(checkpoint, cosigned, policy.is_met_by(cosigned))


# --- promises and receipts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promise:
    """The log's word that a leaf will be in its tree. received, due: unix seconds."""

    origin: str
    leaf_hash: bytes
    received: int
    due: int


def sign_promise(origin: str, leaf: bytes, received: int, seed: bytes) -> str:
    """Return the note that promises the leaf hash `leaf` within a day. Its first line can be no origin."""
    text = f"{_PROMISE}\n{origin}\n{_b64(leaf)}\n{received}\n{received + DUE}\n"
    return sign_note(text, origin, seed)


def open_promise(note: str | bytes, log: Verifier) -> Promise:
    """Return what a promise of the log says. Raises BadNote for any other note."""
    text, _ = open_note(note, [log])
    lines = text.split("\n")
    if len(lines) != 6 or lines[0] != _PROMISE or lines[1] != log.name:
        raise BadNote("this is no promise of this log")
    promise = Promise(lines[1], _hash(lines[2]), decimal(lines[3]), decimal(lines[4]))
    if promise.due != promise.received + DUE:
        raise BadNote("a promise with another term")
    return promise


@dataclass(frozen=True, slots=True)
class Receipt:
    """A leaf with its proof and the checkpoint that it leads to: needs no network to be checked."""

    leaf: bytes
    index: int
    proof: tuple[bytes, ...]
    note: str

    @property
    def text(self) -> str:
        """The file (c2sp.org/tlog-proof)."""
        hashes = "".join(f"{_b64(one)}\n" for one in self.proof)
        return f"{_PROOF}\nextra {_b64(self.leaf)}\nindex {self.index}\n{hashes}\n{self.note}"


def parse_receipt(text: str | bytes) -> Receipt:
    """Return what a receipt's file says, unchecked. Raises BadNote for any other file."""
    try:
        whole = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise BadNote("a receipt is UTF-8") from None
    head, gap, note = whole.partition("\n\n")
    lines = head.split("\n")
    known = lines[0] == _PROOF and len(lines) >= 3 and lines[1][:6] == "extra " and lines[2][:6] == "index "
    if len(whole) > MOST_BYTES or not gap or not known or len(lines) > 3 + MOST_PROOF:
        raise BadNote("this is no receipt")
    leaf = decode(lines[1][6:])
    if len(leaf) != LEAF:
        raise BadNote("a receipt of something that is no leaf of ours")
    return Receipt(leaf, decimal(lines[2][6:]), tuple(map(_hash, lines[3:])), note)


def open_receipt(text: str | bytes, policy: Policy) -> tuple[Receipt, Witnessed]:
    """Return a receipt whose leaf is in the tree of its checkpoint, and that checkpoint opened under the policy.

    Raises BadNote if anything of it is wrong; whether there is a quorum is in the answer.
    """
    receipt = parse_receipt(text)
    opened = open_witnessed(receipt.note, policy)
    head = opened.checkpoint
    if not is_included(head.root, head.size, receipt.index, leaf_hash(receipt.leaf), receipt.proof):
        raise BadNote("the receipt's leaf is not in the tree of its checkpoint")
    return receipt, opened


# --- words ----------------------------------------------------------------------------------------------


def decimal(text: str) -> int:
    """Return a number below 2^63 written without leading zeros. Raises BadNote for anything else."""
    number = int(text) if len(text) <= 19 and text.isascii() and _DECIMAL.fullmatch(text) else -1
    if not 0 <= number <= _LARGEST:
        raise BadNote("a number that is not written as one")
    return number


def _hash(text: str) -> bytes:
    found = decode(text)
    if len(found) != HASH:
        raise BadNote("a hash of another length")
    return found


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
