"""Contacts: a number opens for the relay, under its own contact and generation."""

from uuid import uuid4

import pytest

from service.errors import CannotOpen
from service.vault import boxes
from service.vault.contacts import new_contact
from service.vault.relaying import open_contact

PRIVATE, PUBLIC = boxes.keypair()
NUMBER = "+85500000001"


def test_the_relay_opens_the_number():
    contact = uuid4()
    key, number = new_contact(PUBLIC, 3, contact, NUMBER)
    assert open_contact(PRIVATE, 3, contact, key, number) == NUMBER
    assert len(boxes.unseal(PRIVATE, f"contact|{contact.hex}|3", key)) == 32


def test_two_contacts_of_one_number_have_nothing_in_common():
    contact = uuid4()
    assert not set(new_contact(PUBLIC, 3, contact, NUMBER)) & set(new_contact(PUBLIC, 3, contact, NUMBER))


def test_contacts_cannot_be_swapped():
    one, two = uuid4(), uuid4()
    key, number = new_contact(PUBLIC, 3, one, NUMBER)
    other_key, other_number = new_contact(PUBLIC, 3, two, "+85500000002")
    for contact, generation, wrong_key, wrong_number in (
        (two, 3, key, number),
        (one, 4, key, number),
        (one, 3, other_key, number),
        (one, 3, key, other_number),
        (two, 3, key, other_number),
    ):
        with pytest.raises(CannotOpen):
            open_contact(PRIVATE, generation, contact, wrong_key, wrong_number)


def test_another_or_destroyed_relay_key_opens_nothing():
    contact = uuid4()
    with pytest.raises(CannotOpen):
        open_contact(boxes.keypair()[0], 3, contact, *new_contact(PUBLIC, 3, contact, NUMBER))


def test_any_changed_byte_of_a_contact_is_refused():
    contact = uuid4()
    key, number = new_contact(PUBLIC, 3, contact, NUMBER)
    for at in range(len(key)):
        with pytest.raises(CannotOpen):
            open_contact(PRIVATE, 3, contact, key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :], number)
    for at in range(len(number)):
        with pytest.raises(CannotOpen):
            open_contact(PRIVATE, 3, contact, key, number[:at] + bytes([number[at] ^ 1]) + number[at + 1 :])


def test_a_contact_key_of_another_length_or_a_number_of_other_bytes_is_refused():
    contact, key = uuid4(), boxes.random_bytes()
    place = f"contact|{contact.hex}"
    for held, plain in ((key[:31], b"+85500000001"), (key, b"\xff")):
        sealed = boxes.seal(PUBLIC, f"{place}|3", held)
        with pytest.raises(CannotOpen):
            open_contact(PRIVATE, 3, contact, sealed, boxes.aead_seal(key, plain, place))


def test_a_number_that_is_not_ascii_is_refused_without_repeating_it():
    with pytest.raises(ValueError, match="ascii"):
        new_contact(PUBLIC, 3, uuid4(), "+៨៥៥")
