"""The public form: one document, nothing lost, nothing promised too early."""

import re
from datetime import UTC, datetime
from html import unescape

import pytest

from service.errors import StorageUnavailable
from service.models import Channel
from service.triage.facts import FACTS, Source
from tests.webhooks.builders import (
    CANARY,
    FORM_KEY,
    FORM_TYPE,
    Answer,
    drive,
    encode,
    open_form,
    post_form,
)
from webhooks.answers import KINDS, Answers, e164, province_names, read_answers
from webhooks.form_token import FormTokens

FULL = {
    "what": "words with <b> & \"quotes\" and 'more'\nnew line",
    "province": "KH-12",
    "kind": "karaoke",
    "now": "yes",
    "danger": "yes",
    "answer": "phone",
    "number": "000 000 001",
}


def facts(tip) -> dict[str, object]:
    assert all(fact.source is Source.STATED and fact.at == tip.received_at for fact in tip.stated)
    return {fact.name: fact.value for fact in tip.stated}


def send(app, answers, **more) -> Answer:
    token, nonce = open_form(app)
    return post_form(app, answers, **({"token": token, "nonce": nonce} | more))


def test_answers_become_a_tip_with_stated_facts(app, intake):
    answer = send(app, FULL)

    assert answer.status == 200
    tip = intake.last
    assert (tip.channel, tip.provider, tip.kind, tip.text) == (Channel.WEB, "web", "form", FULL["what"])
    assert re.fullmatch("[0-9a-f]{32}", tip.delivery)
    assert (tip.sender, tip.reply_allowed) == ("+85500000001", True)
    assert facts(tip) == {
        "danger_now": "yes",
        "recency": "now",
        "province": "KH-12",
        "venue_type": "karaoke",
        "safe_to_contact": "yes",
    }


def test_words_alone_are_enough(app, intake):
    assert send(app, {"what": "ជួយ"}).status == 200
    tip = intake.last
    assert (tip.text, tip.stated, tip.sender, tip.reply_allowed) == ("ជួយ", (), None, None)


def test_not_knowing_states_nothing(app, intake):
    send(app, {"what": "w", "now": "unknown", "danger": "unknown", "province": "", "kind": ""})
    assert intake.last.stated == ()


def test_no_danger_is_said_and_an_end_is_not(app, intake):
    send(app, {"what": "w", "now": "no", "danger": "no"})
    assert facts(intake.last) == {"danger_now": "no"}


def test_what_nobody_offered_is_ignored(app, intake):
    odd = {
        "what": "w",
        "province": "KH-99",
        "kind": "<x>",
        "now": "maybe",
        "danger": "1",
        "answer": "all",
        "extra": "e",
    }
    assert send(app, odd).status == 200
    assert intake.last.stated == ()
    assert intake.last.reply_allowed is None


@pytest.mark.parametrize(
    ("answer", "number", "sender", "allowed"),
    [
        ("no", "", None, False),
        ("no", "000000001", None, False),
        ("phone", "000000001", "+85500000001", True),
        ("", "000000001", "+85500000001", True),
        ("", "", None, None),
    ],
)
def test_a_number_is_kept_only_to_answer(answer, number, sender, allowed, app, intake):
    assert send(app, {"what": "w", "answer": answer, "number": number}).status == 200
    assert (intake.last.sender, intake.last.reply_allowed) == (sender, allowed)
    assert ("safe_to_contact" in facts(intake.last)) is (allowed is True)


# --- sent twice, old, missing, forged ---


def test_the_same_form_twice_is_one_tip_and_the_same_page(app, intake):
    token, nonce = open_form(app)
    first, second = (post_form(app, FULL, token=token, nonce=nonce) for _ in range(2))
    assert first == second
    assert len(intake.stored) == 1


def test_more_words_under_the_same_token_are_not_lost(app, intake):
    token, nonce = open_form(app)
    for words in ("first", "first, and more"):
        post_form(app, {"what": words}, token=token, nonce=nonce)
    assert [tip.text for tip in intake.received] == ["first", "first, and more"]
    assert len(intake.stored) == 2


def test_two_loads_are_two_tips(app, intake):
    send(app, FULL)
    send(app, FULL)
    assert len(intake.stored) == 2


def test_a_bad_token_loses_no_tip(app, intake):
    good, _ = open_form(app)
    old = FormTokens(FORM_KEY).issue(datetime(2020, 1, 1, tzinfo=UTC)).text
    for token, mark in [
        ("", "missing"),
        (good[:-1] + "!", "forged"),
        ("x" * 5000, "forged"),
        (old, "old"),
        (good, "good"),
    ]:
        assert post_form(app, {"what": "words"}, token=token).status == 200
        assert intake.last.context["token"] == mark
        assert intake.last.text == "words"
    assert len(intake.stored) == 5


def test_an_old_form_sent_twice_is_still_one_tip(app, intake):
    old = FormTokens(FORM_KEY).issue(datetime(2020, 1, 1, tzinfo=UTC)).text
    for _ in range(2):
        post_form(app, {"what": "words"}, token=old)
    assert len(intake.stored) == 1


# --- corrections ---


def values(page: str) -> dict[str, str]:
    """Return what a browser would show in the controls of a page."""
    shown = {"what": re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)[1]}  # type: ignore[index]
    shown["number"] = re.search(r'<input[^>]*id="number"[^>]*value="([^"]*)"', page)[1]  # type: ignore[index]
    for name in ("province", "kind"):
        select = re.search(rf'<select[^>]*id="{name}".*?</select>', page, re.DOTALL)[0]  # type: ignore[index]
        chosen = re.search(r'value="([^"]*)" selected', select)
        shown[name] = chosen[1] if chosen else ""
    for name in ("now", "danger", "answer"):
        chosen = re.search(rf'name="{name}-[^"]*" value="([^"]*)" checked', page)
        shown[name] = chosen[1] if chosen else ""
    return {name: unescape(value) for name, value in shown.items()}


@pytest.mark.parametrize("blank", ["", "   ", "\r\n", "\u200b\u200c", "\x00"])
def test_no_words_is_corrected_and_keeps_the_rest(blank, app, intake):
    typed = FULL | {"what": blank}

    answer = send(app, typed, query=b"lang=en")

    assert answer.status == 422
    assert '<a href="#what">Write a few words' in answer.text
    assert 'id="what-error"' in answer.text
    assert 'aria-describedby="what-hint what-error" aria-invalid="true"' in answer.text
    assert "number-error" not in answer.text
    shown = values(answer.text)
    assert {name: shown[name] for name in shown if name != "what"} == {n: v for n, v in typed.items() if n != "what"}
    assert not intake.stored


@pytest.mark.parametrize("number", ["", "012 345", "117", "abc", "1" * 30, "+1 5", "000 000 001 ext 5", "012 house"])
def test_a_wrong_number_is_corrected_and_keeps_the_words(number, app, intake):
    typed = FULL | {"number": number}

    answer = send(app, typed, query=b"lang=en")

    assert answer.status == 422
    assert '<a href="#number">Write the whole number' in answer.text
    assert 'id="number-error"' in answer.text
    assert values(answer.text) == typed
    assert not intake.stored


def test_a_corrected_form_is_stored_once(app, intake):
    token, nonce = open_form(app)
    wrong = post_form(app, FULL | {"number": "1"}, token=token, nonce=nonce)
    assert re.search(r'name="token" value="([^"]+)"', wrong.text)[1] == token  # type: ignore[index]
    for _ in range(2):
        assert post_form(app, FULL, token=token, nonce=nonce).status == 200
    assert len(intake.stored) == 1


def test_two_corrections_are_both_named(app):
    page = send(app, {"answer": "phone"}, query=b"lang=en").text
    assert "Please check two answers" in page
    assert page.index('href="#what"') < page.index('href="#number"')


def test_what_was_typed_is_text_and_never_markup(app):
    nasty = '</textarea><script>x</script>"><img src=x>{{ 7*7 }}'
    page = send(app, {"what": nasty, "answer": "phone", "number": nasty}).text
    assert "<script" not in page
    assert "<img" not in page
    assert values(page)["what"] == nasty
    assert values(page)["number"] == nasty


def test_the_first_line_break_of_the_words_survives_a_correction(app):
    page = send(app, {"what": "\n\nwords", "answer": "phone"}).text
    assert values(page)["what"] == "\n\nwords"


# --- not stored ---


def test_not_sent_keeps_the_words_and_shows_whom_to_call(app, intake):
    intake.failing = StorageUnavailable("The database is gone.")
    token, nonce = open_form(app)

    answer = post_form(app, FULL, token=token, nonce=nonce, query=b"lang=en")

    assert answer.status == 503
    assert answer.header("retry-after")
    assert "Not sent. Try again." in answer.text
    assert "Sent. Thank you." not in answer.text
    assert 'href="tel:1280"' in answer.text
    assert values(answer.text) == FULL

    intake.failing = None
    again = re.search(r'name="token" value="([^"]+)"', answer.text)[1]  # type: ignore[index]
    assert post_form(app, FULL, token=again, nonce=nonce).status == 200
    assert len(intake.stored) == 1


def test_an_unexpected_error_never_says_sent(app, intake, logged):
    intake.failing = RuntimeError(CANARY)

    answer = send(app, {"what": CANARY})

    assert answer.status == 500
    assert CANARY not in answer.text
    assert "Thank you" not in answer.text
    assert 'href="tel:1280"' in answer.text
    assert CANARY not in logged()


# --- what is no form ---


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=b", "application/json", "text/plain"])
def test_files_and_other_bodies_are_refused_with_a_clear_page(kind, app, intake):
    body = f'--b\r\nContent-Disposition: form-data; name="what"\r\n\r\n{CANARY}\r\n--b--\r\n'.encode()

    answer = drive(app, "POST", "/report", headers=[(b"content-type", kind.encode())], body=body)

    assert answer.status == 415
    assert "Please send words only." in answer.text
    assert CANARY not in answer.text
    assert not intake.stored


@pytest.mark.parametrize("headers", [[], [(b"content-type", b"Application/X-WWW-Form-Urlencoded ; charset=utf-8")]])
def test_an_odd_phone_still_gets_through(headers, app, intake):
    assert drive(app, "POST", "/report", headers=headers, body=b"what=help%&what=%E1%9E%87&now").status == 200
    assert intake.last.text == "help%\nជ"


def test_a_text_of_twenty_thousand_letters_fits(app, intake):
    assert send(app, {"what": "ជ" * 20_000}).status == 200
    assert len(intake.last.text) == 20_000


def test_a_text_that_is_too_long_is_not_sent_and_says_so(app, intake):
    answer = send(app, {"what": "ជ" * 40_000})
    assert answer.status == 413
    assert "Not sent. This is too long." in answer.text
    assert not intake.stored


# --- small parts ---


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("000 000 001", "+85500000001"),
        ("០០០ ០០០ ០០១", "+85500000001"),
        ("+855 0000 0001", "+85500000001"),
        ("00855 00000001", "+85500000001"),
        ("85500000001", "+85500000001"),
        ("0000-0000-01", "+855000000001"),
        ("\u200b000000001\u200b", "+85500000001"),
        ("+1 500 555 0006", "+15005550006"),
        ("123", None),
        ("", None),
        ("the blue one", None),
    ],
)
def test_a_number_is_read_as_people_write_it(typed, number):
    assert e164(typed) == number


def test_answers_say_nothing_about_themselves():
    answers = read_answers([("what-abc", CANARY), ("number", CANARY)])
    assert CANARY not in repr(answers)
    assert CANARY not in str(answers)
    with pytest.raises(AttributeError) as fault:
        answers.nothing  # noqa: B018
    assert CANARY not in str(fault.value)


def test_every_kind_of_place_and_province_of_the_schema_can_be_chosen():
    assert {kind for kind, _ in KINDS} == set(FACTS["venue_type"].values)
    assert {code for code, _, _ in province_names()} == set(FACTS["province"].values)


def test_equal_answers_have_equal_content_and_others_do_not():
    assert Answers({"what": "a"}).content == Answers({"what": "a", "token": "t"}).content
    assert Answers({"what": "a"}).content != Answers({"province": "a"}).content


def test_the_form_is_taken_from_whom_the_page_was_shown(app, intake):
    """What a browser does: fill in exactly the controls of the page, nonce and all."""
    page = drive(app, "GET", "/report", query=b"lang=en").text
    names = re.findall(r'name="([^"]+)"', page)
    filled = dict.fromkeys(names, "") | {name: "words" for name in names if name.startswith("what-")}
    filled["token"] = re.search(r'name="token" value="([^"]+)"', page)[1]  # type: ignore[index]
    action = re.search(r'<form method="post" action="([^"]+)"', page)[1]  # type: ignore[index]
    path, _, query = action.partition("?")
    headers = [(b"content-type", FORM_TYPE.encode())]
    assert drive(app, "POST", path, headers=headers, body=encode(filled), query=query.encode()).status == 200
    assert intake.last.text == "words"
    assert intake.last.context["token"] == "good"
