"""A text message: answered only after it is stored, once, with nothing in the answer."""

import asyncio
from datetime import UTC, datetime

import pytest

from service.errors import Busy, Misconfigured, StorageUnavailable
from service.metrics import GOOD_SIGNATURE
from service.models import Channel
from tests.webhooks.builders import (
    CANARY,
    FORM_KEY,
    NUMBER,
    SENDER,
    SMS,
    a_scope,
    an_app,
    an_sms,
    drive,
    encode,
    exchange,
    post_sms,
    settings,
    sign,
    sms_headers,
)
from tests.webhooks.fakes import FakeIntake
from webhooks.app import create_app
from webhooks.twilio import sender_of

EMPTY = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'


def test_a_signed_text_becomes_a_tip_and_is_answered_with_nothing(app, intake):
    before = datetime.now(UTC)

    answer = post_sms(app, an_sms(sid="SM7", body="words", NumMedia="2"))

    assert (answer.status, answer.body) == (200, EMPTY)
    assert answer.header("content-type") == "text/xml; charset=utf-8"
    tip = intake.last
    assert (tip.channel, tip.provider, tip.kind, tip.delivery) == (Channel.SMS, "twilio", "sms", "SM7")
    assert (tip.text, tip.sender, tip.media) == ("words", SENDER, 2)
    assert (tip.stated, tip.reply_allowed, tip.late) == ((), None, False)
    assert before <= tip.received_at <= datetime.now(UTC)


def test_a_text_delivered_twice_is_stored_once_and_answered_alike(app, intake):
    form = an_sms(sid="SM1", body="a child at 4 Elm St")

    first, second = post_sms(app, form), post_sms(app, form)

    assert first == second
    assert len(intake.stored) == 1


def test_nothing_is_answered_before_it_is_stored(tmp_path):
    async def scene() -> tuple[bool, int]:
        intake = FakeIntake(gate=asyncio.Event())
        app = an_app(tmp_path, intake)
        scope = a_scope("POST", SMS, headers=sms_headers(sign(an_sms())))
        task = asyncio.create_task(exchange(app, scope, [{"type": "http.request", "body": encode(an_sms())}]))
        for _ in range(10):
            await asyncio.sleep(0)
        early = task.done()
        assert intake.gate
        intake.gate.set()
        answer = await task
        assert answer
        return early, answer.status

    assert asyncio.run(scene()) == (False, 200)


@pytest.mark.parametrize("failing", [StorageUnavailable("The database is gone."), Busy("Too many.")])
def test_what_was_not_stored_is_not_thanked_for(app, intake, failing, logged):
    intake.failing = failing

    answer = post_sms(app, an_sms())

    assert (answer.status, answer.body) == (503, b"")
    assert answer.header("retry-after")
    assert "tip_not_stored" in logged()


def test_an_unexpected_error_is_empty_and_says_nothing_in_a_log(app, intake, logged):
    intake.failing = RuntimeError(CANARY)

    answer = post_sms(app, an_sms(body=CANARY))

    assert (answer.status, answer.body) == (500, b"")
    assert CANARY not in logged()


def test_whatever_breaks_while_checking_is_a_refusal(app, intake, monkeypatch, logged):
    def broken(*_: object, **__: object) -> dict[str, str]:
        raise KeyError(CANARY)

    monkeypatch.setattr("webhooks.twilio.check", broken)

    assert (post_sms(app, an_sms()).status, len(intake.stored)) == (403, 0)
    assert CANARY not in logged()


@pytest.mark.parametrize(
    ("typed", "sender"),
    [
        ("+85500000001", "+85500000001"),
        ("whatsapp:+85500000001", "+85500000001"),
        ("+15005550006", "+15005550006"),
        ("anonymous", None),
        ("whatsapp:anonymous", None),
        ("", None),
        ("1280", None),
        ("85500000001", None),
        ("+123456", None),
        ("+1234567890123456", None),
        ("BANK", None),
        ("+855 00000001", None),
        ("+85500000001\n", None),
        ("+៨៥៥០០០០០០០១", None),
        ("+266696687", None),
        ("+7378742833", None),
    ],
)
def test_only_a_number_that_can_be_answered_is_a_sender(typed, sender, app, intake):
    assert sender_of(typed) == sender
    assert post_sms(app, an_sms(sender=typed)).status == 200
    assert intake.last.sender == sender


def test_hidden_callers_are_the_words_on_a_keypad():
    keys = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "22233344455566677778889999", strict=True))
    for word in ("ANONYMOUS", "BLOCKED", "PRIVATE", "RESTRICTED", "UNKNOWN", "UNAVAILABLE"):
        assert sender_of("+" + "".join(keys[letter] for letter in word)) is None


@pytest.mark.parametrize(
    ("count", "media"), [("0", 0), ("10", 10), ("", 0), ("-1", 0), ("x", 0), ("٣", 0), ("9" * 9, 0)]
)
def test_pictures_are_counted_and_never_fetched(count, media, app, intake):
    assert post_sms(app, an_sms(NumMedia=count, MediaUrl0="http://169.254.169.254/")).status == 200
    assert intake.last.media == media


def test_an_empty_text_is_a_tip(app, intake):
    assert post_sms(app, an_sms(body="")).status == 200
    assert intake.last.text == ""


def test_a_number_that_nobody_listed_loses_no_tip_and_rings(app, intake, logged):
    assert post_sms(app, an_sms(To="+85500000077", sid="SM9")).status == 200
    assert len(intake.stored) == 1
    log = logged()
    assert "webhook_unlisted_number" in log
    assert "SM9" in log
    assert "+855" not in log


def test_a_listed_number_rings_nothing(app, logged):
    assert post_sms(app, an_sms(To=f"whatsapp:{NUMBER}")).status == 200
    assert "webhook" not in logged()


def test_the_first_refusal_is_logged_with_its_reason_and_nothing_of_the_request(app, logged):
    fields = an_sms(body=CANARY)
    drive(app, "POST", SMS, headers=sms_headers(b"bad"), body=encode(fields))
    log = logged()
    assert "wrong signature" in log
    assert CANARY not in log


@pytest.mark.parametrize(("method", "status"), [("GET", 405), ("HEAD", 405), ("PUT", 405), ("OPTIONS", 204)])
def test_only_a_post_is_a_webhook(method, status, app):
    answer = drive(app, method, SMS)
    assert (answer.status, answer.body) == (status, b"")
    assert answer.header("allow")


@pytest.mark.parametrize("path", [SMS + "/", SMS + "x", "//webhooks/twilio/sms", "/webhooks/twilio/SMS"])
def test_a_neighbouring_address_is_nothing(path, app, intake):
    fields = an_sms()
    headers = sms_headers(sign(fields, url="https://hotline.example" + path))
    assert drive(app, "POST", path, headers=headers, body=encode(fields)).status == 404
    assert not intake.stored


def test_the_signed_address_is_the_raw_one(app, intake):
    """An escaped spelling of the path reaches the same endpoint, and must be signed as it was sent."""
    fields = an_sms()
    scope = a_scope("POST", SMS, headers=sms_headers(sign(fields)), length=len(encode(fields)))
    scope["raw_path"] = b"/webhooks/twilio/%73ms"
    answer = asyncio.run(exchange(app, scope, [{"type": "http.request", "body": encode(fields)}]))
    assert answer
    assert answer.status == 403


@pytest.mark.parametrize("name", [b"x-forwarded-host", b"x-forwarded-proto", b"x-original-url", b"forwarded", b"host"])
def test_headers_of_a_proxy_change_nothing(name, app):
    fields = an_sms()
    good, other = sign(fields), sign(fields, url="http://other.example" + SMS)
    for signature, status in ((good, 200), (other, 403)):
        headers = [(key, value) for key, value in sms_headers(signature) if key != name]
        headers += [(name, b"other.example"), (b"x-twilio-webhooks-signature-settings", b"key=k,algorithm=HMAC_SHA256")]
        assert drive(app, "POST", SMS, headers=headers, body=encode(fields)).status == status


def test_without_a_token_the_endpoint_is_closed(tmp_path, intake):
    known = settings(tmp_path, twilio_token_file=None, twilio_previous_token_file=None)
    app = create_app(known, intake=intake, health=dict, form_key=FORM_KEY)
    assert post_sms(app, an_sms(), token=b"").status == 403
    assert drive(app, "GET", "/").status == 200


def test_an_empty_token_and_a_token_without_account_are_refused_at_start(tmp_path, intake):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    empty.chmod(0o400)
    for wrong in ({"twilio_token_file": empty}, {"twilio_account_sid": ""}):
        with pytest.raises(Misconfigured):
            create_app(settings(tmp_path, **wrong), intake=intake, health=dict, form_key=FORM_KEY)


def test_a_good_signature_is_noted_for_the_metrics(tmp_path, intake):
    noticed: list[str] = []
    app = create_app(settings(tmp_path), intake=intake, health=dict, form_key=FORM_KEY, notice=noticed.append)
    post_sms(app, an_sms())
    post_sms(app, an_sms(sid="SM2"))
    assert noticed == [GOOD_SIGNATURE]
