"""Checkpoints, cosignatures, policies, promises and receipts: the known answers, and everything that is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import BadNote
from service.ledger import notes
from service.ledger.merkle import EMPTY_ROOT, RightEdge, leaf_hash, node_hash
from service.ledger.notes import Checkpoint, Policy, Receipt, Witnessed
from service.vault import boxes
from service.vault.note import COSIGNATURE, Verifier, parse_vkey, sign_note, signature_line, split_note, vkey

ORIGIN = "bamboo.example/log"
SEEDS = {name: bytes([n]) * 32 for n, name in enumerate(("log", "NGO", "COUNCIL", "UN", "INTL"), 1)}
LEAVES = [bytes([n]) * 112 for n in range(3)]


def name_of(word: str) -> str:
    return ORIGIN if word == "log" else f"{word.lower()}.example/w"


def key_of(word: str, kind: int | None = None) -> str:
    public = boxes.signing_public_of(SEEDS[word])
    return vkey(name_of(word), public, kind or (1 if word == "log" else COSIGNATURE))


def policy_text(*, quorum: str = "independent", group: str = "group independent 3 NGO COUNCIL UN INTL") -> str:
    witnesses = "".join(f"witness {w} {key_of(w)} https://{name_of(w)}/\n" for w in SEEDS if w != "log")
    return f"log {key_of('log')} https://{ORIGIN}/\n{witnesses}{group}\nquorum {quorum}\n"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return notes.parse_policy(policy_text())


def head(size: int = 3) -> Checkpoint:
    edge = RightEdge()
    edge.extend([leaf_hash(leaf) for leaf in LEAVES[:size]])
    return Checkpoint(ORIGIN, size, edge.root())


def cosigned(*words: str, size: int = 3, time: int = 1_800_000_000) -> str:
    lines = [notes.cosign(head(size), name_of(word), SEEDS[word], time) for word in words]
    return notes.add_lines(notes.sign_checkpoint(head(size), SEEDS["log"]), lines)


# --- known answers ---


@pytest.fixture(scope="module")
def known(vectors: Path) -> Any:
    return json.loads((vectors / "known-answers" / "ledger.json").read_text())


def test_our_notes_equal_the_known_ones_byte_for_byte(vectors: Path, known: Any) -> None:
    log = vectors / "known-answers" / "log"
    seeds = {name: bytes.fromhex(seed) for name, seed in known["keys"]["seeds"].items()}
    leaves = [bytes.fromhex(leaf) for leaf in known["log_leaves"]]
    edge = RightEdge()
    edge.extend([leaf_hash(leaf) for leaf in leaves])
    checkpoint = Checkpoint(ORIGIN, 3, edge.root())
    assert known["roots"]["3"] == edge.root().hex()
    signed = notes.sign_checkpoint(checkpoint, seeds["log"])
    assert signed == (log / "checkpoint").read_text().split("— ngo")[0]
    one = known["cosignature"]
    line = notes.cosign(checkpoint, one["witness"], seeds[one["witness"]], one["time"])
    assert line.strip() == one["line"].strip()
    for name, text in known["keys"]["vkeys"].items():
        assert text == (vkey(ORIGIN, boxes.signing_public_of(seeds["log"])) if name == "log" else text)
        assert parse_vkey(text).public == boxes.signing_public_of(seeds[name])
    receipt = (log / "0.tlog-proof").read_text()
    assert notes.parse_receipt(receipt).text == receipt


def test_the_known_log_is_taken_under_its_policy_and_no_changed_byte_is(vectors: Path) -> None:
    log = vectors / "known-answers" / "log"
    policy = notes.parse_policy((log / "policy").read_text())
    for name, size in (("checkpoint", 3), ("checkpoint.2", 2), ("checkpoint.3", 3)):
        opened = notes.open_witnessed((log / name).read_bytes(), policy)
        assert (opened.checkpoint.size, len(opened.cosigned), opened.quorum) == (size, 3, True)
    receipt = (log / "0.tlog-proof").read_bytes()
    assert notes.open_receipt(receipt, policy)[1].quorum
    for at in range(len(receipt)):
        changed = receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :]
        assert not is_good(changed, policy), at


def is_good(receipt: bytes, policy: Policy) -> bool:
    """Whether a receipt is taken with a quorum: a changed witness's name is one unknown key, and the quorum is gone."""
    try:
        return notes.open_receipt(receipt, policy)[1].quorum
    except BadNote:
        return False


def test_the_published_log_opens_under_its_policy(vectors: Path) -> None:
    policy = notes.parse_policy((vectors / "tile-log" / "policy.txt").read_text())
    for name in ("checkpoint", *(f"checkpoint.{size}" for size in range(16))):
        opened = notes.open_witnessed((vectors / "tile-log" / name).read_bytes(), policy)
        assert opened.quorum  # none is needed


# --- checkpoints ---


@pytest.mark.parametrize(
    "text",
    [
        *("", "a\n1\n", f"{ORIGIN}\n3\n{{root}}", f"{ORIGIN}\n3\n{{root}}\n\n", f"{ORIGIN}\n3\n{{root}}\nextension\n"),
        *(
            f"{ORIGIN}\n03\n{{root}}\n",
            f"{ORIGIN}\n+3\n{{root}}\n",
            f"{ORIGIN}\n-3\n{{root}}\n",
            f"{ORIGIN}\n \n{{root}}\n",
        ),
        *(
            f"{ORIGIN}\n9223372036854775808\n{{root}}\n",
            f"{ORIGIN}\n٣\n{{root}}\n",
            f"{ORIGIN}\n{'1' * 5000}\n{{root}}\n",
        ),
        *("\n3\n{root}\n", "two words\n3\n{root}\n", "a+b\n3\n{root}\n", f"{ORIGIN}\n3\nAAAA\n"),
        *(f"{ORIGIN}\n0\n{{root}}\n", f"{ORIGIN}\n3\n{{root}} \n", f"{ORIGIN}\r\n3\n{{root}}\n"),
    ],
)
def test_a_text_that_is_not_quite_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(BadNote):
        notes.parse_checkpoint(text.replace("{root}", base64.b64encode(head().root).decode()))


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    assert notes.parse_checkpoint(head().text) == head()
    empty = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert notes.parse_checkpoint(empty.text) == empty
    log = parse_vkey(key_of("log"))
    assert notes.open_checkpoint(notes.sign_checkpoint(head(), SEEDS["log"]), log) == head()


def test_a_root_in_another_spelling_of_base64_is_refused() -> None:
    text = head().text
    spelt = text[:-3] + chr(ord(text[-3]) + 1) + "=\n"  # the same 32 bytes, other spare bits
    assert base64.b64decode(spelt.split("\n")[2]) == head().root
    with pytest.raises(BadNote):
        notes.parse_checkpoint(spelt)


def test_a_checkpoint_of_another_origin_by_the_same_key_is_refused() -> None:
    other = Checkpoint("bamboo.example/other", 3, head().root)
    note = sign_note(other.text, ORIGIN, SEEDS["log"])
    with pytest.raises(BadNote, match="another log"):
        notes.open_checkpoint(note, parse_vkey(key_of("log")))


# --- cosignatures and quorum ---


def test_three_of_four_are_a_quorum_and_two_are_none(policy: Policy) -> None:
    for words in (("NGO", "UN", "INTL"), ("COUNCIL", "UN", "INTL"), ("NGO", "COUNCIL", "UN", "INTL")):
        assert notes.open_witnessed(cosigned(*words), policy).quorum
    for words in (("NGO", "UN"), ("NGO",), ()):
        assert not notes.open_witnessed(cosigned(*words), policy).quorum


def test_a_key_counts_once_with_its_earliest_time(policy: Policy) -> None:
    note = cosigned("NGO", time=1_800_000_060)
    for time in (1_800_000_000, 1_800_000_120):
        note = notes.add_lines(note, [notes.cosign(head(), name_of("NGO"), SEEDS["NGO"], time)])
    opened = notes.open_witnessed(note, policy)
    assert opened == Witnessed(head(), {name_of("NGO"): 1_800_000_000}, quorum=False)
    assert note.count(name_of("NGO")) == 3


def test_a_stranger_is_ignored_and_a_bad_line_of_a_known_witness_refuses_the_note(policy: Policy) -> None:
    good = cosigned("NGO", "UN", "INTL")
    stranger = notes.cosign(head(), "stranger.example/w", bytes([9]) * 32, 5)
    assert notes.open_witnessed(notes.add_lines(good, [stranger]), policy).quorum
    elsewhere = notes.cosign(head(2), name_of("COUNCIL"), SEEDS["COUNCIL"], 5)  # a good line, of another checkpoint
    with pytest.raises(BadNote, match="known witness"):
        notes.open_witnessed(notes.add_lines(good, [elsewhere]), policy)


def test_a_line_moved_in_time_or_cut_short_is_no_cosignature(policy: Policy) -> None:
    witness = policy.witnesses[0].key
    text, (_, line) = split_note(cosigned("NGO"))
    assert notes.cosigned_at(text, line, witness) == 1_800_000_000
    later = (1_800_000_001).to_bytes(8, "big") + line.signature[8:]
    for signature in (later, line.signature[:-1], line.signature[8:], b"\xff" * 8 + line.signature[8:]):
        moved = signature_line(witness.name, witness.public, signature, COSIGNATURE)
        with pytest.raises(BadNote):
            notes.open_witnessed(notes.add_lines(cosigned(), [moved]), policy)


def test_a_cosignature_is_no_signature_of_the_log_and_a_logs_signature_no_cosignature(policy: Policy) -> None:
    only_witness = head().text + "\n" + notes.cosign(head(), name_of("NGO"), SEEDS["NGO"], 5)
    with pytest.raises(BadNote, match="not signed"):
        notes.open_witnessed(only_witness, policy)
    plain = sign_note(head().text, name_of("NGO"), SEEDS["NGO"]).split("\n\n")[1]  # as of kind 0x01: another key id
    assert notes.open_witnessed(notes.add_lines(cosigned(), [plain]), policy).cosigned == {}
    wrong_kind = Verifier(name_of("NGO"), policy.witnesses[0].key.key_id, 1, policy.witnesses[0].key.public)
    with pytest.raises(BadNote):
        notes.cosigned_at(head().text, split_note(cosigned("NGO"))[1][1], wrong_kind)


def test_a_note_takes_sixteen_lines_and_no_more(policy: Policy) -> None:
    lines = [notes.cosign(head(), f"w{n}.example/w", bytes([50 + n]) * 32, 5) for n in range(16)]
    assert notes.open_witnessed(notes.add_lines(cosigned(), lines[:15]), policy).checkpoint == head()
    with pytest.raises(BadNote, match="too many"):
        notes.add_lines(cosigned(), lines)


# --- policy ---


def test_a_policy_is_read_with_its_digest(policy: Policy) -> None:
    assert policy.log == parse_vkey(key_of("log"))
    assert policy.url == f"https://{ORIGIN}/"
    assert [witness.word for witness in policy.witnesses] == ["NGO", "COUNCIL", "UN", "INTL"]
    assert policy.sha256 == boxes.H(policy_text().encode()).hex()
    with_comment = notes.parse_policy("# printed on paper\n\n" + policy_text())
    assert with_comment == policy
    assert with_comment.sha256 != policy.sha256


def test_groups_of_groups_any_and_all() -> None:
    nested = (
        "group home any NGO COUNCIL\ngroup abroad all UN INTL\ngroup both all home abroad"  # one at home, both abroad
    )
    policy = notes.parse_policy(policy_text(group=nested, quorum="both"))
    assert notes.open_witnessed(cosigned("COUNCIL", "UN", "INTL"), policy).quorum
    assert not notes.open_witnessed(cosigned("NGO", "COUNCIL", "UN"), policy).quorum
    assert notes.open_witnessed(cosigned("UN"), notes.parse_policy(policy_text(quorum="UN"))).quorum


STRANGER = vkey("stranger.example/w", boxes.signing_public_of(bytes([9]) * 32), COSIGNATURE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quorum independent\n", ""),
        ("quorum independent\n", "quorum independent\nquorum NGO\n"),
        ("quorum independent", "quorum nobody"),
        ("log bamboo", "lag bamboo"),
        ("group independent 3", "group independent 5"),
        ("group independent 3", "group independent 0"),
        ("group independent 3", "group independent 03"),
        ("group independent 3 NGO", "group independent 3 NGO NGO"),
        ("group independent 3 NGO", "group independent 3 WHO"),
        ("group independent 3 NGO", "group other any NGO\ngroup independent 3 NGO"),
        ("witness UN ", "witness NGO "),
        ("group independent", "group NGO"),
        ("group independent", "group none"),
        (key_of("UN"), key_of("INTL")),
        (key_of("UN"), key_of("log")),
        (key_of("UN"), vkey("un.example/w", boxes.signing_public_of(SEEDS["log"]), COSIGNATURE)),
        (key_of("UN"), vkey(name_of("NGO"), boxes.signing_public_of(bytes([9]) * 32), COSIGNATURE)),
        (key_of("log"), STRANGER),
        (key_of("UN"), key_of("UN").replace("+", "+0", 1)),
        ("quorum independent\n", "quorum independent"),
        ("quorum independent\n", "quorum independent\r\n"),
        ("quorum independent\n", "quorum independent\x00\n"),
        ("quorum independent\n", f"quorum independent\nlog {key_of('log')}\n"),
    ],
)
def test_a_policy_with_anything_wrong_is_refused_whole(old: str, new: str) -> None:
    assert old in policy_text()
    with pytest.raises(BadNote):
        notes.parse_policy(policy_text().replace(old, new, 1))


def test_a_weak_key_is_refused_when_it_is_configured() -> None:
    weak = bytes(32)  # a point of low order: it takes one signature for many texts
    text = f"weak.example/w+{boxes.H(b'weak.example/w' + bytes([10, 4]) + weak)[:4].hex()}+"
    with pytest.raises(BadNote, match="trusted"):
        notes.parse_policy(policy_text().replace(key_of("UN"), text + base64.b64encode(b"\x04" + weak).decode()))


# --- promises and receipts ---


def test_a_promise_is_kept_apart_from_checkpoints() -> None:
    log = parse_vkey(key_of("log"))
    note = notes.sign_promise(ORIGIN, leaf_hash(LEAVES[0]), 1_800_000_000, SEEDS["log"])
    promise = notes.open_promise(note, log)
    assert (promise.leaf_hash, promise.received, promise.due) == (leaf_hash(LEAVES[0]), 1_800_000_000, 1_800_086_400)
    with pytest.raises(BadNote):
        notes.open_checkpoint(note, log)
    with pytest.raises(BadNote):
        notes.open_promise(notes.sign_checkpoint(head(), SEEDS["log"]), log)
    for old, new in (("1800086400", "1800086401"), ("v1", "v2"), (ORIGIN, "bamboo.example/other"), ("=\n", "=\n\n")):
        changed = note.split("\n\n")[0].replace(old, new, 1) + "\n"
        with pytest.raises(BadNote):
            notes.open_promise(sign_note(changed, ORIGIN, SEEDS["log"]), log)


def receipt() -> Receipt:
    hashes = [leaf_hash(leaf) for leaf in LEAVES]
    return Receipt(LEAVES[2], 2, (node_hash(*hashes[:2]),), cosigned("NGO", "UN", "INTL"))


def test_a_receipt_is_checked_without_a_network(policy: Policy) -> None:
    opened, witnessed = notes.open_receipt(receipt().text, policy)
    assert opened == receipt()
    assert witnessed.quorum
    assert len(receipt().text) < 6_000


@pytest.mark.parametrize(
    "wrong",
    [
        Receipt(LEAVES[1], 2, receipt().proof, receipt().note),
        Receipt(LEAVES[2], 1, receipt().proof, receipt().note),
        Receipt(LEAVES[2], 2, (), receipt().note),
        Receipt(LEAVES[2], 2, receipt().proof * 2, receipt().note),
        Receipt(LEAVES[2], 2, receipt().proof, cosigned("NGO", size=2)),
        Receipt(LEAVES[2][:-1], 2, receipt().proof, receipt().note),
        Receipt(LEAVES[2], 2, (b"short",), receipt().note),
    ],
)
def test_a_receipt_that_proves_something_else_is_refused(policy: Policy, wrong: Receipt) -> None:
    with pytest.raises(BadNote):
        notes.open_receipt(wrong.text, policy)


@pytest.mark.parametrize(("old", "new"), [("@v1", "@v2"), ("extra ", "extra"), ("index 2", "index 02"), ("\n\n", "\n")])
def test_a_file_that_is_not_quite_a_receipt_is_refused(policy: Policy, old: str, new: str) -> None:
    with pytest.raises(BadNote):
        notes.open_receipt(receipt().text.replace(old, new, 1), policy)
    with pytest.raises(BadNote):
        notes.parse_receipt(receipt().text.encode() + b"\xff")
