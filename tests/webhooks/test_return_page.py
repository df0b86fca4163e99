"""The return page: no code in any address, log or page; wrong, unknown and gone answer alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.errors import StorageUnavailable
from service.mailbox import STATUSES, Opened
from service.vault.mailbox import Address, grouped
from tests.webhooks.builders import FORM_TYPE, Answer, drive, encode, open_form, post_form
from tests.webhooks.builders import an_app as plain_app
from tests.webhooks.fakes import BOX, CODE, TIP, Boxes, Numbers
from webhooks import return_page
from webhooks.return_page import FLOOR, JITTER, Passes, ReturnPage

OTHER = "3141592653589795"
KHMER = "".join(chr(0x17E0 + int(digit)) for digit in CODE)


@dataclass
class Waits:
    """How long each answer waited, without waiting."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def boxes_() -> Boxes:
    return Boxes()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    whole = ReturnPage.__init__

    def init(self: ReturnPage, *parts: Any, **more: Any) -> None:
        whole(self, *parts, **more, clock=waits.clock, sleep=waits.sleep)

    monkeypatch.setattr(ReturnPage, "__init__", init)
    return waits


@pytest.fixture
def app(tmp_path: Path, intake: Any, numbers: Numbers, boxes_: Boxes, waits: Waits) -> Any:
    return plain_app(tmp_path, intake, codes=numbers, mailboxes=boxes_, pass_key=bytes(32))


def send(app: Any, fields: Mapping[str, str], query: bytes = b"") -> Answer:
    return drive(
        app, "POST", "/return", headers=[(b"content-type", FORM_TYPE.encode())], body=encode(fields), query=query
    )


def enter(app: Any, code: str = CODE, query: bytes = b"lang=en") -> Answer:
    return send(app, {"z": "x", "code-1a2b3c4d": code}, query)


def hidden(page: str) -> dict[str, str]:
    """The hidden fields of an opened page's first form."""
    return dict(re.findall(r'<input type="hidden" name="(pass|token)" value="([^"]+)"', page))


def without_names(page: bytes) -> bytes:
    return re.sub(rb'-[0-9a-f]{8}"|value="[A-Za-z0-9_=-]{40,}"', b"", page)


# --- a number on the form ---


def test_a_number_is_given_on_request_only_and_shown_once(app, intake, numbers) -> None:
    code = numbers.finish()
    token, nonce = open_form(app)
    asked = {"token": token, "nonce": nonce, "query": b"lang=en"}
    first = post_form(app, {"what": "words", "back": "yes"}, **asked)
    again = post_form(app, {"what": "words", "back": "yes"}, **asked)
    assert grouped(code) in first.text
    assert intake.received[0].mailbox is not None
    assert code not in again.text.replace(" ", "")
    assert "shown only the first time" in again.text


def test_who_does_not_ask_gets_none_and_leaves_the_pool_alone(app, intake, numbers) -> None:
    code = numbers.finish()
    page = post_form(app, {"what": "words"}, query=b"lang=en").text
    assert code not in page.replace(" ", "")
    assert "You do not need a number to be helped" in page
    assert intake.last.mailbox is None
    assert len(numbers.ready) == 1


def test_an_empty_pool_is_said_honestly_and_the_words_are_taken(app, intake) -> None:
    page = post_form(app, {"what": "words", "back": "yes"}, query=b"lang=en").text
    assert "We have no number to give now" in page
    assert intake.last.text == "words"
    assert intake.last.mailbox is None


def test_without_codes_nothing_offers_them(tmp_path: Path, intake: Any) -> None:
    app = plain_app(tmp_path, intake)
    assert drive(app, "GET", "/return").status == 404
    assert "/return" not in drive(app, "GET", "/").text
    assert "back-" not in drive(app, "GET", "/report").text
    post_form(app, {"what": "words", "back": "yes"})
    assert intake.last.mailbox is None


def test_a_tip_that_was_not_stored_shows_no_number(app, intake, numbers) -> None:
    code = numbers.finish()
    intake.failing = StorageUnavailable("gone")
    answer = post_form(app, {"what": "words", "back": "yes"})
    assert answer.status == 503
    assert code not in answer.text.replace(" ", "")


# --- a number that is typed ---


@pytest.mark.parametrize("typed", [CODE, grouped(CODE), KHMER, "-".join(KHMER)])
def test_a_right_number_opens_however_it_is_typed(app, typed: str) -> None:
    page = enter(app, typed)
    assert page.status == 200
    assert "<h1>Being read</h1>" in page.text
    assert CODE not in page.text
    assert grouped(CODE) not in page.text


@pytest.mark.parametrize("typed", ["", "4071925583640211", "12345", "words", CODE * 20])
def test_a_slip_is_told_at_once_and_derives_nothing(app, numbers, waits, typed: str) -> None:
    answer = enter(app, typed)
    assert answer.status == 422
    assert "One digit is not right" in answer.text
    assert (numbers.derived, waits.slept) == ([], [])


def test_a_right_and_an_unknown_number_take_the_same_steps_and_the_same_time(app, numbers, boxes_, waits) -> None:
    right, unknown = enter(app), enter(app, OTHER)
    assert right.status == unknown.status == 200
    assert numbers.derived == [CODE, OTHER]
    assert len(boxes_.looked) == 2
    assert [FLOOR <= slept <= FLOOR + JITTER for slept in waits.slept] == [True, True]


@pytest.mark.parametrize(("took", "until"), [(0.0, 1), (0.39, 1), (0.41, 2), (1.1, 3)])
def test_an_answer_comes_at_a_multiple_of_the_floor(app, boxes_, waits, monkeypatch, took: float, until: int) -> None:
    opened = boxes_.open

    def slow(address: Address) -> Any:
        waits.now += took
        return opened(address)

    monkeypatch.setattr(boxes_, "open", slow)
    enter(app)
    assert until * FLOOR <= took + waits.slept[0] <= until * FLOOR + JITTER


def test_wrong_unknown_and_gone_give_the_same_page(app, boxes_, monkeypatch) -> None:
    unknown = enter(app, OTHER)
    monkeypatch.setattr(boxes_, "open", lambda _address: None)
    gone = enter(app, CODE)
    assert without_names(unknown.body) == without_names(gone.body)
    assert {name for name, _ in unknown.headers} == {name for name, _ in gone.headers}
    assert without_names(enter(app, OTHER, b"").body) != without_names(unknown.body)  # the control: a page that differs


def test_too_many_at_once_is_said_and_locks_nobody_out(app, numbers) -> None:
    numbers.busy = True
    answer = enter(app)
    assert answer.status == 503
    assert answer.header("retry-after") == "10"
    numbers.busy = False
    assert enter(app).status == 200


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_has_its_words_in_both_languages(app, boxes_, status: str) -> None:
    boxes_.status = status
    english, khmer = enter(app).text, enter(app, query=b"").text
    assert re.search(r"<h1>[A-Z][A-Za-z .]+</h1>", english)
    assert re.search("<h1>[\u1780-\u17ff]", khmer)
    assert "9.3.2027" in english
    assert "៩.៣.២០២៧" in khmer


def test_the_address_never_says_more_and_get_shows_only_where_to_type(app) -> None:
    for query in (b"", b"lang=en", b"code=" + CODE.encode()):
        page = drive(app, "GET", "/return", query=query)
        assert page.status == 200
        assert "<title>Bamboo</title>" in page.text
        assert CODE not in page.text
        assert set(re.findall(r'action="([^"]+)"', page.text)) <= {"/return", "/return?lang=en"}
        assert page.header("cache-control") == "no-store"


def test_nothing_of_a_code_is_logged(app, numbers, boxes_, intake, logged) -> None:
    code = numbers.finish()
    post_form(app, {"what": "words", "back": "yes"})
    enter(app)
    enter(app, OTHER)
    enter(app, "4071925583640211")
    intake.failing = StorageUnavailable("gone")
    send(app, hidden(enter(app).text) | {"more-1": "a canary in words"})
    numbers.busy = True
    enter(app)
    lines = logged()
    for secret in (code, CODE, OTHER, "4071925583640211", grouped(CODE), "canary in words"):
        assert secret not in lines
    assert "tip_not_stored" in lines  # the control: this is where it would stand


# --- the page that it opens ---


def test_what_is_added_and_answered_goes_to_the_intake_alone(app, intake, boxes_) -> None:
    boxes_.questions = ((1, "Is there a sign?"), (3, "តើមានលេខផ្ទះទេ?"))
    page = enter(app).text
    assert "Is there a sign?" in page
    fields = hidden(page) | {"answer1-aa": "Yes, a blue one.", "answer3-aa": " ", "more-aa": "It is near the river."}
    for _ in range(2):
        assert "Sent. Thank you." in send(app, fields, b"lang=en").text
    assert len(intake.stored) == 2
    first, second = intake.received[:2]
    assert (first.text, first.returning, first.context["answer"]) == ("Yes, a blue one.", TIP, "1")
    assert (second.text, second.returning, second.context) == (
        "It is near the river.",
        TIP,
        {"form": "return", "token": "good"},
    )


def test_nothing_written_is_nothing_sent(app, intake) -> None:
    answer = send(app, hidden(enter(app).text) | {"more-aa": "  ", "code-aa": "1"}, b"lang=en")
    assert intake.received == []
    assert "nothing was sent" in answer.text
    assert "Thank you" not in answer.text


def test_an_old_or_bent_pass_loses_no_words(app, intake, monkeypatch) -> None:
    fields = hidden(enter(app).text) | {"more-aa": "near the river"}
    monkeypatch.setattr(return_page, "PASS_MINUTES", -1)
    old = hidden(enter(app).text) | {"more-aa": "near the bridge"}
    assert "Sent. Thank you." in send(app, old, b"lang=en").text
    assert "This page was open too long" in send(app, {"pass": old["pass"], "wrong": "1"}, b"lang=en").text
    assert "Sent. Thank you." in send(app, fields | {"pass": "bent"}, b"lang=en").text
    assert [(tip.text, tip.returning) for tip in intake.received] == [
        ("near the bridge", TIP),
        ("near the river", None),
    ]


def test_words_that_could_not_be_stored_stay_in_their_fields(app, intake) -> None:
    fields = hidden(enter(app).text) | {"more-aa": "near <the> river"}
    intake.failing = StorageUnavailable("gone")
    answer = send(app, fields, b"lang=en")
    assert answer.status == 503
    assert "near &lt;the&gt; river" in answer.text
    intake.failing = None
    send(app, hidden(answer.text) | {"more-bb": "near <the> river"})
    assert intake.last.returning == TIP


def test_something_is_wrong_goes_to_the_mailbox_and_not_to_the_intake(app, intake, boxes_) -> None:
    page = enter(app).text
    assert "Sent. Thank you." in send(app, {"pass": hidden(page)["pass"], "wrong": "1"}, b"lang=en").text
    assert (boxes_.challenged, intake.received) == ([TIP], [])
    boxes_.failing = StorageUnavailable("gone")
    assert send(app, {"pass": hidden(page)["pass"], "wrong": "1"}).status == 503


def test_the_proof_is_a_file_with_a_neutral_name_once_there_is_one(app, boxes_) -> None:
    assert "The proof is not available yet" in enter(app).text
    for grade in ("promise", "integrated", "witnessed"):
        boxes_.grade = grade
        page = enter(app).text
        assert 'name="proof"' in page
        file = send(app, {"pass": hidden(page)["pass"], "proof": "1"})
        assert file.body == b"c2sp.org/tlog-proof@v1\n"
        assert file.header("content-disposition") == 'attachment; filename="bamboo.txt"'


@pytest.mark.parametrize("forged", ["", "x", "A" * 200, "é"])
def test_a_pass_that_is_not_ours_opens_nothing(app, intake, boxes_, forged: str) -> None:
    boxes_.grade = "witnessed"
    for what in ("wrong", "proof"):
        assert "This page was open too long" in send(app, {"pass": forged, what: "1"}, b"lang=en").text
    assert (boxes_.challenged, intake.received) == ([], [])


def test_a_pass_ends_after_twenty_minutes_and_under_another_key() -> None:
    now = datetime(2027, 3, 9, 7, 0, tzinfo=UTC)
    opened = Opened(BOX, TIP, "received", now.date(), (), None)
    passes = Passes(bytes(32))
    text = passes.seal(opened, now)
    known = passes.open(text, now + timedelta(minutes=19))
    assert known is not None
    assert (known.mailbox, known.tip) == (BOX, TIP)
    assert known.fresh
    late = passes.open(text, now + timedelta(minutes=20))
    assert late is not None
    assert not late.fresh
    assert Passes(bytes([1]) * 32).open(text, now) is None
    assert TIP.hex not in text
    for place in range(0, len(text), 7):
        assert passes.open(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :], now) is None


def test_only_forms_are_read(app) -> None:
    assert drive(app, "POST", "/return", headers=[(b"content-type", b"application/json")], body=b"{}").status == 415
    assert return_page.PATH == "/return"


def test_no_page_of_it_is_larger_than_fourteen_thousand_bytes(app, boxes_, numbers) -> None:
    boxes_.questions = tuple((number, "តើមានលេខផ្ទះទេ?" * 20) for number in (1, 2, 3))
    boxes_.grade = "witnessed"
    numbers.finish()
    pages = [enter(app, query=b""), drive(app, "GET", "/return"), enter(app, OTHER, b"")]
    pages.append(post_form(app, {"what": "words", "back": "yes"}))
    for page in pages:
        assert sum(len(name) + len(value) + 4 for name, value in page.headers) + len(page.body) <= 14_000
        assert page.header("set-cookie") is None
