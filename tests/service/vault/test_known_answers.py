"""Every value of keys.json, and of our own known answers, comes out of the vault."""

import json
from base64 import b64decode
from datetime import datetime
from uuid import UUID

import pytest

from service.vault import boxes, cards, envelope, passwords

un = bytes.fromhex


@pytest.fixture
def sealed_stream(answers, request):
    stream = answers["stream"]
    if "sealed_hex" in stream:
        return un(stream["sealed_hex"])
    return (request.getfixturevalue("vectors") / "known-answers" / stream["sealed"]).read_bytes()


def test_a_seal_opens_to_its_secret(answers):
    known = answers["seal"]
    assert boxes.unseal(un(known["private_key"]), known["context"], un(known["sealed"])) == un(known["secret"])


def test_a_context_is_its_parts_joined(answers):
    context = answers["seal"]["context"]
    assert boxes.context_of(*context.split("|")) == context


def test_a_header_is_written_in_its_known_bytes(answers):
    known = json.loads(answers["envelope"]["header"])
    hour = datetime.strptime(known["hour"].replace("Z", "+0000"), "%Y-%m-%dT%H%z")
    written = envelope.header(UUID(known["case"]), known["g"], hour, UUID(known["item"]), known["kind"])
    assert written.decode() == answers["envelope"]["header"]


def test_an_envelope_opens_to_its_text(answers):
    known = answers["envelope"]
    sealed = envelope.Envelope(known["header"].encode(), un(known["dek_sealed"]), un(known["body"]))
    assert envelope.open_text(un(known["case_private_key"]), sealed) == known["text"]
    assert boxes.unseal(un(known["case_private_key"]), known["header"], sealed.seal) == un(known["dek"])


def test_texts_are_padded_to_the_known_steps(answers):
    _, public = boxes.keypair()
    for length, step in answers["text_padding"].items():
        assert len(envelope.seal_text(public, b"h", "x" * int(length)).body) == 24 + step + 16


def test_padme_sizes_are_the_known_ones(answers):
    assert {length: envelope.padme(int(length)) for length in answers["padme"]} == answers["padme"]


def test_a_stream_opens_to_its_content(answers, sealed_stream):
    known = answers["stream"]
    size = int(known["content"].rpartition(", ")[2].removesuffix(" bytes"))
    content = bytes(i % 251 for i in range(size))
    private, public = boxes.keypair()
    header = known["header"].encode()
    seal = boxes.seal(public, header, un(known["key"]))

    opened = envelope.open_stream(private, header, seal, [un(known["stream_header"]), sealed_stream])

    assert b"".join(opened) == content
    assert envelope.padme(8 + size) == known["plain_size"]
    _, pieces = envelope.seal_stream(public, header, [content], size)
    assert sum(map(len, pieces)) == 24 + known["sealed_size"] == 24 + len(sealed_stream)


def test_a_password_gives_its_key_and_check(answers):
    known = answers["password"]
    parameters = passwords.Parameters(un(known["salt"]), known["passes"], known["mib"])
    kek, auth = passwords.derive(known["password"], parameters)
    assert kek == un(known["kek"])
    assert passwords.stored_auth(auth) == un(known["auth_stored"])


def test_phone_place_and_provider_names(answers):
    phone, place, provider = answers["phone"], answers["place"], answers["provider_id"]
    assert boxes.phone_name(un(phone["pepper"]), phone["number"]).hex() == phone["name"]
    assert boxes.place_name(un(place["key"]), place["place"]).hex() == place["name"]
    assert boxes.provider_name(un(provider["row_key"]), provider["sid"]).hex() == provider["name"]


def test_a_row_has_its_known_tag(answers):
    known = answers["row_tag"]
    row = json.loads(known["row"])
    row |= {"case": UUID(row["case"]), "pk": b64decode(row["pk"])}
    assert boxes.row_tag(un(known["row_key"]), row).hex() == known["tag"]
    boxes.check_row_tag(un(known["row_key"]), row, un(known["tag"]))


def test_a_return_code_leads_to_its_mailbox(answers):
    known = answers["mailbox"]
    named = boxes.keyed_name(un(known["code_pepper"]), known["code"].encode(), boxes.LOC)
    base = boxes.argon2id(named.hex().encode(), known["salt"].encode(), passes=3, mib=64)
    assert known["salt"] == boxes.H(b"bamboo/box/v1").hex()[:16]
    assert base == un(known["B"])
    assert boxes.keyed_name(base, b"locator", boxes.LOC) == un(known["locator"])
    assert boxes.keyed_name(base, b"kek", boxes.MBX) == un(known["kek"])


def test_cards_are_read_and_written_in_their_known_bytes(answers):
    known = answers["cards"]
    read = cards.read_cards(known["note"], known["root_vkey"])
    seed = boxes.random_bytes()
    name = known["root_vkey"].partition("+")[0]
    written = cards.write_cards(
        read.serial,
        read.day,
        read.units,
        relay=read.relay,
        recovery=read.recovery,
        backup=read.backup,
        root_name=name,
        root_seed=seed,
    )
    assert written.partition("\n\n")[0] == known["note"].partition("\n\n")[0]
