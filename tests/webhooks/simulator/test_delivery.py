"""Webhooks as Twilio posts them: judged by its own validator, timed by a clock that only moves when told."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from starlette.types import Receive, Scope, Send
from twilio.request_validator import RequestValidator

from tests.webhooks import builders as public
from tests.webhooks.fakes import FakeIntake
from tests.webhooks.simulator.builders import BEGAN, NUMBER, PHONE, TOKEN, Clock, nobody, serving
from webhooks.simulator.delivery import (
    Answer,
    NoAnswer,
    NoConnection,
    Options,
    Target,
    deliver,
    deliver_callbacks,
    deliver_text,
    parse_options,
    post,
)
from webhooks.simulator.provider import Callbacks, Exchange, Provider
from webhooks.simulator.signing import SMS_PATH

HOST = "https://hotline.example"
HERE = "http://127.0.0.1:8000"
TARGET = Target(HOST, HERE)
EMPTY = b'<?xml version="1.0" encoding="UTF-8"?><Response/>'
FIELDS = {"Body": "ជួយផង +%&", "From": PHONE, "To": NUMBER, "Blank": ""}


@dataclass(frozen=True)
class Step:
    """How one attempt goes: seconds until the connection stands and until the answer is there, None for never."""

    connects: float | None = 0.0
    answers: float | None = 0.0
    status: int = 200
    kind: str = "text/xml"
    body: bytes = EMPTY


REFUSED, FULL, SILENT = Step(connects=None), Step(connects=60.0), Step(answers=None)


class Line:
    """A network that goes as its steps say, then well, and takes its time from the clock."""

    def __init__(self, clock: Clock, *steps: Step) -> None:
        self._clock = clock
        self._steps = list(steps)
        self.posted: list[tuple[str, dict[str, str], Mapping[str, str]]] = []

    async def __call__(
        self, address: str, headers: Mapping[str, str], body: bytes, *, connect: float, read: float, total: float
    ) -> Answer:
        self.posted.append((address, dict(parse_qsl(body.decode(), keep_blank_values=True)), headers))
        step = self._steps.pop(0) if self._steps else Step()
        if step.connects is None:
            raise NoConnection
        if step.connects > min(connect, total):
            self._clock.forward(min(connect, total))
            raise NoConnection
        self._clock.forward(step.connects)
        patience = min(read, total - step.connects)
        if step.answers is None or step.answers > patience:
            self._clock.forward(patience)
            raise NoAnswer
        self._clock.forward(step.answers)
        return Answer(step.status, step.kind, step.body)

    @property
    def addresses(self) -> list[str]:
        return [address for address, _, _ in self.posted]


@dataclass
class Outcome:
    """What came of one delivery."""

    last: Exchange
    line: Line
    seconds: float


Try = Callable[..., Outcome]


@pytest.fixture
def attempt(provider: Provider, clock: Clock) -> Try:
    """Deliver one webhook over a line that goes as the given steps say."""

    def deliver_one(*steps: Step, options: str = "", target: Target = TARGET, **more: str) -> Outcome:
        line, began = Line(clock, *steps), clock()
        goal = replace(target, options=options)
        last = asyncio.run(deliver(provider, goal, SMS_PATH, FIELDS | more, transport=line))
        return Outcome(last, line, (clock() - began).total_seconds())

    return deliver_one


def is_signed(url: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    return bool(RequestValidator(TOKEN).validate(url, dict(fields), headers["X-Twilio-Signature"]))


# -- signature and fields ----------------------------------------------------------------------------------------------


def test_a_webhook_is_signed_over_the_public_address_wherever_it_goes(attempt: Try) -> None:
    done = attempt()

    address, fields, headers = done.line.posted[0]
    assert (address, fields) == (HERE + SMS_PATH, FIELDS)
    assert is_signed(HOST + SMS_PATH, fields, headers)
    assert not is_signed(HERE + SMS_PATH, fields, headers)
    assert not is_signed(HOST + SMS_PATH, fields | {"Body": "other"}, headers)
    assert headers["Content-Type"] == "application/x-www-form-urlencoded; charset=UTF-8"
    assert headers["Host"] == "hotline.example"


def test_the_options_of_a_url_are_not_signed(attempt: Try) -> None:
    _, fields, headers = attempt(options="rc=3&rp=all").line.posted[0]

    assert is_signed(HOST + SMS_PATH, fields, headers)


def test_a_text_is_posted_with_the_fields_of_a_real_one(provider: Provider, clock: Clock) -> None:
    message = provider.arrives(sender=PHONE, to=NUMBER, body="ជួយផង", media=2)
    line = Line(clock)

    exchange = asyncio.run(deliver_text(provider, TARGET, message, transport=line))

    address, fields, headers = line.posted[0]
    assert (exchange.status, address) == (200, HERE + "/webhooks/twilio/sms")
    assert is_signed(HOST + "/webhooks/twilio/sms", fields, headers)
    assert {"MessageSid", "AccountSid", "From", "To", "Body", "AddedWithoutNotice"} <= fields.keys()
    assert (fields["MessageSid"], fields["From"], fields["Body"]) == (message.sid, PHONE, "ជួយផង")
    assert (fields["NumMedia"], fields["MediaContentType1"]) == ("2", "image/jpeg")
    assert fields["MediaUrl0"].endswith(f"/Messages/{message.sid}/Media/{message.media[0]}")


# -- patience ----------------------------------------------------------------------------------------------------------


def test_a_webhook_that_is_taken_is_posted_once(attempt: Try) -> None:
    done = attempt(Step(answers=14.9))

    assert (done.last.status, done.last.note, done.seconds) == (200, "", 14.9)
    assert len(done.line.posted) == 1


def test_a_handler_that_takes_16_seconds_is_given_up_after_15_and_not_asked_again(attempt: Try) -> None:
    done = attempt(Step(answers=16))

    assert (done.last.status, done.last.note, done.seconds) == (None, "11205: no answer", 15)
    assert len(done.line.posted) == 1


def test_a_late_answer_is_not_asked_for_again_even_if_there_is_time(attempt: Try) -> None:
    done = attempt(SILENT, options="rt=3000")

    assert (done.last.status, done.seconds, len(done.line.posted)) == (None, 3, 1)


def test_a_refused_connection_is_tried_once_more(attempt: Try) -> None:
    assert attempt(REFUSED).last.note == "attempt 2"
    done = attempt(REFUSED, REFUSED, Step())

    assert (done.last.status, done.last.note) == (None, "attempt 2, 11205: no connection")
    assert len(done.line.posted) == 2


def test_a_connection_is_waited_for_5_seconds(attempt: Try) -> None:
    assert attempt(Step(connects=4.9)).last.status == 200
    assert attempt(FULL, FULL).seconds == 10


@pytest.mark.parametrize("status", [301, 403, 429, 500, 503])
def test_a_bad_status_is_not_tried_again_by_default(attempt: Try, status: int) -> None:
    done = attempt(Step(status=status))

    assert (done.last.status, done.last.note) == (status, f"11200: status {status}")
    assert len(done.line.posted) == 1


def test_with_rc_3_and_rp_all_every_failure_is_tried_again(attempt: Try) -> None:
    done = attempt(REFUSED, Step(status=503), Step(status=404), options="rc=3&rp=all&tt=15000")
    assert (done.last.status, done.last.note) == (200, "attempt 4")

    done = attempt(*[Step(status=500)] * 5, options="rc=3&rp=all")
    assert (done.last.status, len(done.line.posted)) == (500, 4)


@pytest.mark.parametrize(
    ("policy", "tried_again"), [("ct", REFUSED), ("rt", SILENT), ("4xx", Step(status=403)), ("5xx", Step(status=500))]
)
def test_a_policy_tries_again_what_it_names_and_nothing_else(attempt: Try, policy: str, tried_again: Step) -> None:
    for step in (REFUSED, SILENT, Step(status=403), Step(status=500)):
        done = attempt(step, options=f"rp={policy}&rt=1000")
        assert len(done.line.posted) == (2 if step == tried_again else 1)


def test_several_policies_add_up(attempt: Try) -> None:
    done = attempt(Step(status=500), SILENT, options="rc=2&rp=5xx,rt&rt=1000")

    assert (done.last.status, done.seconds) == (200, 1)


def test_all_attempts_together_have_the_total_time(attempt: Try) -> None:
    done = attempt(*[SILENT] * 6, options="rc=5&rp=all&rt=4000&tt=10000")
    assert (done.seconds, len(done.line.posted)) == (10, 3)

    done = attempt(*[SILENT] * 6, options="rc=5&rp=all")
    assert (done.seconds, len(done.line.posted)) == (15, 1)

    done = attempt(FULL, FULL, SILENT, options="rc=5&rp=all&ct=2000&tt=5000")
    assert (done.seconds, len(done.line.posted)) == (5, 3)


def test_waiting_for_a_connection_counts_towards_the_total(attempt: Try) -> None:
    assert attempt(Step(connects=4, answers=11)).last.status == 200

    done = attempt(Step(connects=4, answers=12))
    assert (done.last.status, done.seconds) == (None, 15)


@pytest.mark.parametrize(
    ("fragment", "options"),
    [
        ("", Options()),
        ("e=singapore&sni=y", Options()),
        ("rc=0", Options(retries=0)),
        ("ct=100&rt=2500&tt=9000", Options(connect=0.1, read=2.5, total=9.0)),
        ("rp=4xx,5xx", Options(retry_on=frozenset({"4xx", "5xx"}))),
        ("rc=3&rp=ct,all", Options(retries=3, retry_on=frozenset({"ct", "rt", "4xx", "5xx"}))),
    ],
)
def test_options_are_read(fragment: str, options: Options) -> None:
    assert parse_options(fragment) == options


@pytest.mark.parametrize(
    "fragment", ["rp=5XX", "rp=", "rp=any", "rc=6", "rc=-1", "rc=", "ct=99", "ct=10001", "rt=15001", "tt=1.5", "tt=٩٠٠"]
)
def test_a_webhook_with_wrong_options_is_not_posted_but_to_its_fallback(attempt: Try, fragment: str) -> None:
    done = attempt(options=fragment)
    assert (done.line.posted, done.last.status) == ([], None)
    assert done.last.note.startswith("11243")

    done = attempt(options=fragment, target=replace(TARGET, fallback_address="http://127.0.0.1:9"))
    assert done.line.addresses == ["http://127.0.0.1:9" + SMS_PATH]


# -- fallback ----------------------------------------------------------------------------------------------------------

SECOND = replace(TARGET, fallback_address="http://127.0.0.1:9000", fallback_public_url="https://second.example")


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([REFUSED, REFUSED], "11205"),
        ([SILENT], "11205"),
        ([Step(status=500)], "11200"),
        ([Step(status=403)], "11200"),
        ([Step(body=b"<Response>")], "12100"),
        ([Step(body=b"<html/>")], "12100"),
        ([Step(body=b"ok", kind="text/plain")], "12300"),
        ([Step(body=EMPTY, kind="text/html; charset=utf-8")], "12300"),
    ],
)
def test_the_fallback_is_asked_when_the_first_has_failed(attempt: Try, steps: list[Step], code: str) -> None:
    done = attempt(*steps, target=SECOND)

    _, fields, headers = done.line.posted[-1]
    assert (done.last.status, done.last.note) == (200, "fallback")
    assert done.line.addresses == [HERE + SMS_PATH] * len(steps) + ["http://127.0.0.1:9000" + SMS_PATH]
    assert fields == FIELDS | {"ErrorCode": code, "ErrorUrl": HOST + SMS_PATH}
    assert is_signed("https://second.example" + SMS_PATH, fields, headers)


def test_the_fallback_has_the_default_patience_of_its_own(attempt: Try) -> None:
    done = attempt(SILENT, REFUSED, SILENT, target=SECOND)

    assert (done.seconds, len(done.line.posted), done.last.status) == (30, 3, None)
    assert done.last.note == "fallback, attempt 2, 11205: no answer"


@pytest.mark.parametrize("good", [Step(), Step(body=b""), Step(status=204, kind="", body=b""), Step(body=b" \n")])
def test_the_fallback_is_left_alone_when_the_first_has_answered(attempt: Try, good: Step) -> None:
    assert attempt(good, target=SECOND).line.addresses == [HERE + SMS_PATH]


def test_the_answer_to_a_report_is_not_read(attempt: Try) -> None:
    odd = Step(body=b"<html>", kind="text/html")

    assert attempt(odd, MessageStatus="sent").last.note == ""
    assert attempt(odd).last.note == "12300: not XML"


# -- the log -----------------------------------------------------------------------------------------------------------


def test_every_attempt_is_on_the_log(attempt: Try, provider: Provider) -> None:
    attempt(REFUSED, Step(answers=2, status=500), Step(answers=1), target=SECOND)

    assert [(one.side, one.method, one.path) for one in provider.log] == [("webhook", "POST", SMS_PATH)] * 3
    assert [(one.status, one.milliseconds, one.note) for one in provider.log] == [
        (None, 0, "11205: no connection"),
        (500, 2000, "attempt 2, 11200: status 500"),
        (200, 1000, "fallback"),
    ]
    assert [one.at for one in provider.log] == [BEGAN, BEGAN, BEGAN + timedelta(seconds=2)]
    assert provider.log[0].fields == FIELDS
    assert is_signed(HOST + SMS_PATH, provider.log[0].fields, {"X-Twilio-Signature": provider.log[0].signature})


def test_all_attempts_of_one_delivery_share_a_token_and_two_deliveries_do_not(attempt: Try) -> None:
    tokens = [
        [headers["I-Twilio-Idempotency-Token"] for _, _, headers in attempt(REFUSED).line.posted] for _ in range(2)
    ]

    assert tokens[0][0] == tokens[0][1] != tokens[1][0]


# -- status callbacks --------------------------------------------------------------------------------------------------


def called_back(provider: Provider, clock: Clock, *steps: Step) -> Line:
    """Post the callbacks that are due."""
    line = Line(clock, *steps)
    asyncio.run(deliver_callbacks(provider, TARGET, provider.advance(), transport=line))
    return line


def test_callbacks_go_to_the_url_of_their_text_signed_for_it(provider: Provider, clock: Clock) -> None:
    provider.outcomes[PHONE] = "blocked"
    sent = provider.create(to=PHONE, sender=NUMBER, body="hello", status_callback="https://other.example/status?a=1")
    clock.forward(60)

    line = called_back(provider, clock)

    assert line.addresses == [HERE + "/status?a=1"] * 2
    for _, fields, headers in line.posted:
        assert is_signed("https://other.example/status?a=1", fields, headers)
        assert (fields["MessageSid"], fields["SmsSid"], fields["To"], fields["From"]) == (
            sent.sid, sent.sid, PHONE, NUMBER,
        )  # fmt: skip
        assert "Body" not in fields
        assert "AddedWithoutNotice" in fields
    assert [(fields["MessageStatus"], fields.get("ErrorCode")) for _, fields, _ in line.posted] == [
        ("sending", None), ("failed", "21610"),
    ]  # fmt: skip


def test_a_callback_takes_its_options_from_its_url_and_has_no_fallback(provider: Provider, clock: Clock) -> None:
    provider.create(to=PHONE, sender=NUMBER, body="hello", status_callback=HOST + "/status#rc=2&rp=5xx")
    clock.forward(0.6)
    line = Line(clock, *[Step(status=500)] * 9)

    asyncio.run(deliver_callbacks(provider, SECOND, provider.advance(), transport=line))

    assert line.addresses == [HERE + "/status"] * 3
    assert is_signed(HOST + "/status", *line.posted[0][1:])


def test_callbacks_keep_the_disorder_that_they_were_given(provider: Provider, clock: Clock) -> None:
    provider.callbacks = Callbacks(shuffled=True, doubled=True)
    provider.create(to=PHONE, sender=NUMBER, body="hello", status_callback=HOST + "/status")
    clock.forward(60)

    statuses = [fields["MessageStatus"] for _, fields, _ in called_back(provider, clock).posted]

    assert sorted(statuses) == sorted(["sending", "sent", "delivered"] * 2)
    assert statuses != ["sending", "sending", "sent", "sent", "delivered", "delivered"]


# -- over a real connection --------------------------------------------------------------------------------------------


def asked(address: str, *, read: float = 5.0, total: float = 5.0) -> Answer:
    headers = {"Host": "hotline.example", "Content-Type": "text/plain"}
    return asyncio.run(post(address, headers, "ជួយ".encode(), connect=5.0, read=read, total=total))


@contextmanager
def answering(*parts: bytes, every: float = 0.0) -> Iterator[str]:
    """Serve one connection with raw bytes, part by part, then close it. No parts: never answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line:
                line.recv(65536)
                for part in parts:
                    if over.wait(every):
                        return
                    line.sendall(part)
                if not parts:
                    over.wait(10)

        over = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
        over.set()
        thread.join(10)


def test_a_webhook_reaches_a_real_server_whole() -> None:
    got: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got.update(path=scope["path"], headers=dict(scope["headers"]), body=(await receive())["body"])
        await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"text/xml")]})
        await send({"type": "http.response.body", "body": b"<Resp", "more_body": True})  # no length: in chunks
        await send({"type": "http.response.body", "body": b"onse/>"})

    with serving(app) as address:
        assert asked(address + "/a/b") == Answer(201, "text/xml", b"<Response/>")

    assert (got["path"], got["body"].decode()) == ("/a/b", "ជួយ")
    assert got["headers"][b"host"] == b"hotline.example"


def test_nobody_there_is_no_connection() -> None:
    with pytest.raises(NoConnection):
        asked(nobody())


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",),
        (b"SSH-2.0\r\n",),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70_000),
    ],
)
def test_a_broken_answer_is_none(parts: tuple[bytes, ...]) -> None:
    with answering(*parts) as address, pytest.raises(NoAnswer):
        asked(address)


def test_silence_is_given_up() -> None:
    with answering() as address, pytest.raises(NoAnswer):
        asked(address, read=0.1)


def test_an_answer_that_trickles_is_given_up_after_the_total_time() -> None:
    with answering(*[b"HTTP/1.1 200 OK\r\n"] * 50, every=0.02) as address, pytest.raises(NoAnswer):
        asked(address, read=0.2, total=0.1)
    with answering(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n\r\n", every=0.02) as address:
        assert asked(address, read=0.2, total=5).status == 200


# -- to the app itself -------------------------------------------------------------------------------------------------


def test_the_public_app_takes_what_the_provider_delivers(provider: Provider, tmp_path: Path) -> None:
    intake = FakeIntake()
    message = provider.arrives(sender=PHONE, to=NUMBER, body="ក្មេង 1 នាក់ + 100%")

    with serving(public.an_app(tmp_path, intake)) as address:
        taken = asyncio.run(deliver_text(provider, Target(public.HOST, address), message))
        forged = asyncio.run(deliver_text(provider, Target("https://else.example", address), message))

    assert (taken.status, taken.note, forged.status) == (200, "", 403)
    assert [(tip.delivery, tip.sender, tip.text) for tip in intake.received] == [(message.sid, PHONE, message.body)]
