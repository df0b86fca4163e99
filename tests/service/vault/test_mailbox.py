"""Return codes: slips are found, any script's digits count, and what is derived equals the known answers."""

import json
import subprocess
import sys
from uuid import uuid4

import pytest

from service.config import ROOT
from service.errors import CannotOpen
from service.vault import boxes, deriver, mailbox
from service.vault.mailbox import Cost, check_digit, grouped, new_code, read_code

CHEAP = Cost(1, 8)
ORIGIN = "bamboo.example/log"
PEPPER = bytes(32)
CODE = "4071925583640210"


# --- digits ---


@pytest.mark.parametrize(("digits", "check"), [("572", "4"), ("123456789012345", "0"), ("314159265358979", "5")])
def test_the_check_digit_is_the_known_one(digits, check):
    assert check_digit(digits) == check
    assert check_digit(digits + check) == "0"


def test_every_wrong_digit_and_every_swap_of_neighbours_is_found():
    for _ in range(200):
        code = new_code()
        assert read_code(code) == code
        for place, digit in enumerate(code):
            for other in "0123456789".replace(digit, ""):
                assert read_code(code[:place] + other + code[place + 1 :]) is None
            if place and code[place - 1] != digit:
                assert read_code(code[: place - 1] + digit + code[place - 1] + code[place + 1 :]) is None


@pytest.mark.parametrize("zero", ["0", "០", "٠", "०", "０", "๐"])
@pytest.mark.parametrize("between", ["", " ", "-", ".", "\u200b", "\u00a0", "–", "\t", "·"])
def test_digits_of_any_script_and_signs_between_them_are_one_code(zero, between):
    typed = between.join(chr(ord(zero) + int(digit)) for digit in CODE)
    assert read_code(f" {typed}\n") == CODE


def test_leading_zeros_stay():
    code = "000000000000000" + check_digit("0" * 15)
    assert read_code(code) == code == "0" * 16


@pytest.mark.parametrize(
    "typed", ["", CODE[:-1], CODE + "0", "x" + CODE, CODE.replace("4", "four"), "0" * 5000, "½" * 16]
)
def test_anything_else_is_no_code(typed):
    assert read_code(typed) is None


def test_a_code_is_shown_in_four_groups_and_no_two_are_alike():
    assert grouped(CODE) == "4071 9255 8364 0210"
    assert len({new_code() for _ in range(1000)}) == 1000


# --- derivations ---


def test_the_address_is_the_known_one_at_its_full_cost(answers):
    known = answers["mailbox"]
    found = mailbox.address(known["code"], bytes.fromhex(known["code_pepper"]))
    assert (found.locator.hex(), found.kek.hex()) == (known["locator"], known["kek"])


def test_the_tags_are_the_known_ones_at_their_full_cost(request):
    path = request.getfixturevalue("vectors") / "known-answers" / "ledger.json"
    known = json.loads(path.read_text())["code"]
    key = mailbox.tag_key(known["code"], known["origin"])
    assert key.hex() == known["K"]
    assert {number: mailbox.tag(key, int(number)).hex() for number in known["T"]} == known["T"]


def test_another_pepper_leads_elsewhere_and_another_log_has_other_tags():
    here = mailbox.address(CODE, PEPPER, CHEAP)
    assert here.locator != here.kek
    assert mailbox.address(CODE, bytes([1]) * 32, CHEAP).locator != here.locator
    assert mailbox.tag_key(CODE, ORIGIN, CHEAP) != mailbox.tag_key(CODE, "other.example/log", CHEAP)


# --- keys ---


def test_a_mailbox_opens_under_its_own_code_and_name_alone():
    name, kek = uuid4(), boxes.random_bytes()
    public, wrapped = mailbox.new_mailbox(kek, name)
    assert boxes.public_of(mailbox.open_mailbox(kek, name, public, wrapped)) == public
    other = mailbox.new_mailbox(kek, name)
    for wrong in (
        (boxes.random_bytes(), name, public, wrapped),
        (kek, uuid4(), public, wrapped),
        (kek, name, other[0], wrapped),
        (kek, name, public, bytes([wrapped[0] ^ 1]) + wrapped[1:]),
    ):
        with pytest.raises(CannotOpen):
            mailbox.open_mailbox(*wrong)


def test_nothing_of_a_code_shows_in_what_is_made_from_it():
    prepared = mailbox.Prepared(mailbox.address(CODE, PEPPER, CHEAP), mailbox.tag_key(CODE, ORIGIN, CHEAP))
    shown = repr(prepared) + repr(prepared.address)
    for secret in (prepared.tag_key, prepared.address.locator, prepared.address.kek):
        assert repr(secret) not in shown
        assert secret.hex() not in shown


# --- the child ---


def child(*requests: bytes) -> subprocess.CompletedProcess[bytes]:
    greeting = deriver.greeting(PEPPER, ORIGIN, CHEAP, CHEAP)
    command = [sys.executable, "-m", "service.vault.deriver"]
    process = subprocess.Popen(command, cwd=ROOT, env={}, stdin=-1, stdout=-1, stderr=-1)
    process.stdin.write(greeting + b"".join(requests))
    process.stdin.flush()
    lines = b"".join(process.stdout.readline() for _ in requests)
    process.stdin.close()
    process.wait(10)
    return subprocess.CompletedProcess(
        command, process.returncode, lines + process.stdout.read(), process.stderr.read()
    )


def test_the_child_derives_what_this_process_would_and_ends_with_its_input():
    ended = child(deriver.open_request(3, CODE), deriver.make_request())
    told = {("code" in line): line for line in map(json.loads, ended.stdout.splitlines())}
    assert (ended.returncode, ended.stderr) == (0, b"")
    expected = mailbox.address(CODE, PEPPER, CHEAP)
    assert told[False] == {"id": 3, "locator": expected.locator.hex(), "kek": expected.kek.hex()}
    made = told[True]
    assert read_code(made["code"]) == made["code"]
    assert made["locator"] == mailbox.address(made["code"], PEPPER, CHEAP).locator.hex()
    assert made["key"] == mailbox.tag_key(made["code"], ORIGIN, CHEAP).hex()


def test_a_child_that_is_told_nonsense_ends_and_says_nothing():
    process = subprocess.run(
        [sys.executable, "-m", "service.vault.deriver"],
        cwd=ROOT,
        env={},
        input=b"4071925583640210\n",
        capture_output=True,
        timeout=20,
    )
    assert (process.returncode, process.stdout, process.stderr) == (1, b"", b"")
