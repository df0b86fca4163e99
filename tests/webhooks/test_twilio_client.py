"""Texts out through the provider's own client: what is known of a request that failed, and that nothing leaks.

The provider's fake stands behind a real socket; what it holds says whether a text was sent.
"""

import logging
import socket
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from twilio.http.http_client import TwilioHttpClient

from service.errors import CarrierFault, NotSent, Refused, Unclear
from tests.webhooks.simulator.builders import (
    ACCOUNT,
    BEGAN,
    KEY,
    NUMBER,
    PHONE,
    SECRET,
    Clock,
    Stage,
    a_provider,
    nobody,
    serving,
)
from webhooks.simulator.provider import Provider
from webhooks.simulator.rest import rest_app
from webhooks.twilio_client import Copy, TwilioCarrier

OTHER = "+85500000002"
TEXT = "ទទួលបានសារហើយ។ សូមអរគុណ។"
CALLBACK = "https://hotline.example/webhooks/twilio/sms/status"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(clock: Clock) -> Provider:
    return a_provider(clock)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage.open() as stage:
        yield stage


@pytest.fixture
def address(stage: Stage, provider: Provider) -> str:
    stage.app = rest_app(provider)
    return stage.address


@pytest.fixture
def carrier(address: str) -> TwilioCarrier:
    return a_carrier(address)


def a_carrier(address: str, *, timeout: float = 5.0, **more: Any) -> TwilioCarrier:
    known = {"account_sid": ACCOUNT, "api_key_sid": KEY, "api_key_secret": SECRET, "sender": NUMBER}
    return TwilioCarrier(**(known | {"status_callback": CALLBACK, "api_url": address, "timeout": timeout} | more))


def faults_of(ask: Callable[[], object]) -> CarrierFault:
    with pytest.raises(CarrierFault) as fault:
        ask()
    return fault.value


Says = Callable[..., TwilioCarrier]


@pytest.fixture
def says(stage: Stage) -> Says:
    """Make a carrier whose provider always answers the same."""

    def always(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> TwilioCarrier:
        stage.app = answering(status, body, *headers)
        return a_carrier(stage.address)

    return always


def answering(status: int, body: bytes, *headers: tuple[bytes, bytes], asked: list[Scope] | None = None) -> ASGIApp:
    """Return an app that always says the same, and notes what it was asked."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if asked is not None:
            asked.append(scope)
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app


# -- sending -----------------------------------------------------------------------------------------------------------


def test_a_text_is_sent_with_its_callback(carrier: TwilioCarrier, provider: Provider) -> None:
    sid = carrier.send(PHONE, TEXT)

    held = provider.messages[sid]
    assert (held.to, held.sender, held.body, held.status_callback) == (PHONE, NUMBER, TEXT, CALLBACK)


def test_without_a_callback_none_is_asked_for(address: str, provider: Provider) -> None:
    sid = a_carrier(address, status_callback=None).send(PHONE, TEXT)

    assert provider.messages[sid].status_callback is None


@pytest.mark.parametrize("way", ["500", "hang up"])
@pytest.mark.parametrize("acted", ["before", "after"])
def test_after_an_answer_that_says_nothing_only_the_list_knows(
    carrier: TwilioCarrier, provider: Provider, way: str, acted: str
) -> None:
    provider.fail("messages.create", f"{way} {acted}")

    assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is Unclear

    assert carrier.find(PHONE, TEXT, BEGAN) == list(provider.messages)
    assert len(provider.messages) == (acted == "after")


@pytest.mark.parametrize("acted", ["before", "after"])
def test_after_silence_only_the_list_knows(address: str, provider: Provider, acted: str) -> None:
    provider.fail("messages.create", f"silent {acted}")
    carrier = a_carrier(address, timeout=0.3)

    assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is Unclear

    assert len(carrier.find(PHONE, TEXT, BEGAN)) == len(provider.messages) == (acted == "after")


def test_an_unclear_text_is_not_sent_a_second_time_by_anybody(carrier: TwilioCarrier, provider: Provider) -> None:
    provider.fail("messages.create", "hang up after", times=None)

    faults_of(lambda: carrier.send(PHONE, TEXT))

    assert [exchange.method for exchange in provider.log] == ["POST"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"), (201, b""), (201, b"[]"), (201, b"{}"), (201, b'{"sid": "x"}'), (201, b'{"sid": 5}'),
        (204, b""), (302, b""), (404, b"<html>not here</html>"), (400, b'{"message": "no code"}'),
        (400, b'{"code": "21610"}'), (408, b""), (502, b"<html>"), (503, b'{"code": 21610}'),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_the_provider_s_proves_nothing(says: Says, status: int, body: bytes) -> None:
    carrier = says(status, body)

    assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is Unclear


def test_a_sid_that_is_none_is_not_believed(says: Says) -> None:
    carrier = says(201, b'{"sid": "SM../../Accounts"}')
    assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is Unclear

    carrier = says(201, b'{"sid": "SM' + b"a" * 32 + b'"}')
    assert carrier.send(PHONE, TEXT) == "SM" + "a" * 32


@pytest.mark.parametrize("code", [21211, 21614, 21610, 30022])
def test_a_refusal_has_the_provider_s_code(carrier: TwilioCarrier, provider: Provider, code: int) -> None:
    provider.fail("messages.create", str(code))

    fault = faults_of(lambda: carrier.send(PHONE, TEXT))

    assert (type(fault), getattr(fault, "code", None)) == (Refused, code)


def test_a_number_that_said_stop_is_refused(carrier: TwilioCarrier, provider: Provider) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="STOP")

    fault = faults_of(lambda: carrier.send(PHONE, TEXT))

    assert (type(fault), getattr(fault, "code", None)) == (Refused, 21610)


def test_a_provider_that_asks_for_patience_has_sent_nothing(carrier: TwilioCarrier, provider: Provider) -> None:
    provider.fail("messages.create", "429", after=7)
    provider.fail("messages.create", "429")

    faults = [faults_of(lambda: carrier.send(PHONE, TEXT)) for _ in range(2)]

    assert [(type(fault), getattr(fault, "after", "")) for fault in faults] == [(NotSent, 7.0), (NotSent, None)]
    assert provider.messages == {}


@pytest.mark.parametrize("value", [b"soon", b"-1", b"1e9", b"nan", b"Sat, 21 Nov 2026 08:00:00 GMT", b"9999999"])
def test_a_wish_that_cannot_be_read_is_none(says: Says, value: bytes) -> None:
    carrier = says(429, b"", (b"retry-after", value))

    assert getattr(faults_of(lambda: carrier.send(PHONE, TEXT)), "after", "") is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_provider_that_does_not_know_us_has_sent_nothing_and_that_is_told(
    says: Says, logged: Callable[[], str], status: int
) -> None:
    carrier = says(status, b'{"code": 20003}')

    assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is NotSent
    assert "provider_refuses_us" in logged()


# -- reaching it -------------------------------------------------------------------------------------------------------


def test_when_nobody_listens_nothing_was_sent() -> None:
    assert type(faults_of(lambda: a_carrier(nobody()).send(PHONE, TEXT))) is NotSent


def test_when_the_name_is_unknown_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    assert type(faults_of(lambda: a_carrier("https://api.provider.example").send(PHONE, TEXT))) is NotSent


def test_when_no_connection_comes_about_in_time_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for line in waiting:  # the queue of a host that no longer takes connections
            line.setblocking(False)
            line.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}"
        try:
            assert type(faults_of(lambda: a_carrier(address, timeout=0.3).send(PHONE, TEXT))) is NotSent
        finally:
            for line in waiting:
                line.close()


def test_when_tls_does_not_come_about_nothing_was_sent(address: str) -> None:
    plain = address.replace("http:", "https:")  # whoever is there speaks no TLS
    assert type(faults_of(lambda: a_carrier(plain).send(PHONE, TEXT))) is NotSent

    with socket.create_server(("127.0.0.1", 0)) as silent:
        secure = f"https://127.0.0.1:{silent.getsockname()[1]}"
        assert type(faults_of(lambda: a_carrier(secure, timeout=0.3).send(PHONE, TEXT))) is NotSent


def test_when_a_connection_stood_and_broke_nobody_knows() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert type(faults_of(lambda: a_carrier(address, timeout=0.3).send(PHONE, TEXT))) is Unclear


def test_each_request_has_a_connection_of_its_own(stage: Stage) -> None:
    asked: list[Scope] = []
    stage.app = answering(500, b"", (b"content-length", b"0"), asked=asked)
    carrier = a_carrier(stage.address)

    for _ in range(3):
        faults_of(lambda: carrier.send(PHONE, TEXT))

    assert len({scope["client"] for scope in asked}) == 3


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(says: Says, status: int) -> None:
    asked: list[Scope] = []
    with serving(answering(200, b"{}", asked=asked)) as elsewhere:
        carrier = says(status, b"", (b"location", elsewhere.encode()))
        assert type(faults_of(lambda: carrier.send(PHONE, TEXT))) is Unclear
        assert type(faults_of(lambda: carrier.find(PHONE, TEXT, BEGAN))) is Unclear

    assert asked == []


def test_a_page_elsewhere_is_not_asked_for_with_our_key(stage: Stage) -> None:
    asked: list[Scope] = []
    with serving(answering(200, b'{"messages": []}', asked=asked)) as elsewhere:
        page = f'{{"messages": [], "meta": {{"key": "messages", "next_page_url": "{elsewhere}/stolen"}}}}'
        first, then = answering(200, page.encode()), answering(500, b"")

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await (then if scope["path"] == "/stolen" else first)(scope, receive, send)

        stage.app = app
        faults_of(lambda: a_carrier(stage.address).find(PHONE, TEXT, BEGAN))

    assert asked == []


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_no_proxy_stands_before_a_provider_on_this_host(
    carrier: TwilioCarrier, provider: Provider, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, nobody())

    assert carrier.send(PHONE, TEXT) in provider.messages


def test_the_proxy_of_the_environment_stands_before_a_provider_elsewhere(
    address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert a_carrier("http://api.provider.example").send(PHONE, TEXT) in provider.messages


def test_the_client_s_own_variables_change_nothing(
    address: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TWILIO_EDGE", "sydney"), ("TWILIO_REGION", "au1"), ("TWILIO_ACCOUNT_SID", "AC1")):
        monkeypatch.setenv(name, value)

    assert a_carrier(address).send(PHONE, TEXT) in provider.messages


def test_the_provider_may_stand_under_a_path(stage: Stage) -> None:
    asked: list[Scope] = []
    stage.app = answering(500, b"", asked=asked)

    faults_of(lambda: a_carrier(stage.address + "/twilio/").send(PHONE, TEXT))

    assert [scope["path"] for scope in asked] == [f"/twilio/2010-04-01/Accounts/{ACCOUNT}/Messages.json"]


# -- finding what may have been sent -----------------------------------------------------------------------------------


def test_only_the_very_text_to_the_very_number_since_then_is_found(
    carrier: TwilioCarrier, provider: Provider, clock: Clock
) -> None:
    carrier.send(PHONE, TEXT)
    clock.forward(3600)
    since = clock()
    clock.forward(30)
    first = carrier.send(PHONE, TEXT)
    for to, words in ((OTHER, TEXT), (PHONE, TEXT + " "), (PHONE, "other words")):
        carrier.send(to, words)
    provider.arrives(sender=PHONE, to=NUMBER, body=TEXT)
    second = carrier.send(PHONE, TEXT)

    assert carrier.find(PHONE, TEXT, since) == [first, second]
    assert carrier.find(PHONE, "no such words", since) == []


def test_a_minute_is_allowed_for_clocks_that_differ(carrier: TwilioCarrier) -> None:
    sid = carrier.send(PHONE, TEXT)

    assert carrier.find(PHONE, TEXT, BEGAN + timedelta(seconds=60)) == [sid]
    assert carrier.find(PHONE, TEXT, BEGAN + timedelta(seconds=61)) == []


def test_what_failed_before_it_was_sent_is_found_too(carrier: TwilioCarrier, provider: Provider, clock: Clock) -> None:
    provider.outcomes[PHONE] = "failed"
    sid = carrier.send(PHONE, TEXT)
    clock.forward(60)

    assert carrier.find(PHONE, TEXT, BEGAN) == [sid]
    assert provider.messages[sid].sent_at is None


def test_all_pages_are_searched(carrier: TwilioCarrier, provider: Provider) -> None:
    first = carrier.send(PHONE, TEXT)
    for i in range(1500):
        provider.create(to=OTHER, sender=NUMBER, body=str(i), status_callback=None)
    last = carrier.send(PHONE, TEXT)

    assert carrier.find(PHONE, TEXT, BEGAN) == [first, last]
    assert len([exchange for exchange in provider.log if exchange.method == "GET"]) == 2


@pytest.mark.parametrize(
    ("how", "kind"),
    [("429", NotSent), ("500 before", Unclear), ("hang up before", Unclear), ("garbled after", Unclear)],
)
def test_a_list_that_cannot_be_had_is_no_empty_list(
    carrier: TwilioCarrier, provider: Provider, how: str, kind: type[CarrierFault]
) -> None:
    provider.fail("messages.list", how, times=None)

    assert type(faults_of(lambda: carrier.find(PHONE, TEXT, BEGAN))) is kind
    assert type(faults_of(lambda: list(carrier.copies(BEGAN)))) is kind


def test_half_a_list_is_no_list(carrier: TwilioCarrier, provider: Provider) -> None:
    for _ in range(1001):
        provider.create(to=PHONE, sender=NUMBER, body=TEXT, status_callback=None)
    pages = iter([None, "500 before"])
    provider.next_fault = lambda operation: _fault(provider, operation, next(pages))  # type: ignore[method-assign]

    assert type(faults_of(lambda: carrier.find(PHONE, TEXT, BEGAN))) is Unclear


def _fault(provider: Provider, operation: str, how: str | None) -> Any:
    if how is None:
        return None
    provider.fail(operation, how)
    return Provider.next_fault(provider, operation)


# -- the provider's copies ---------------------------------------------------------------------------------------------


def test_copies_say_what_is_held_in_and_out(carrier: TwilioCarrier, provider: Provider, clock: Clock) -> None:
    provider.outcomes[OTHER] = "undelivered"
    picture = provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=2)
    clock.forward(0.7)
    lost = carrier.send(OTHER, TEXT)
    clock.forward(10)
    fresh = carrier.send(PHONE, TEXT)

    assert list(carrier.copies(BEGAN)) == [
        Copy(fresh, False, "queued", False, None, BEGAN + timedelta(seconds=10), 0),
        Copy(lost, False, "undelivered", True, 30003, BEGAN, 0),
        Copy(picture.sid, True, "received", True, None, BEGAN, 2),
    ]
    assert [copy.sid for copy in carrier.copies(BEGAN + timedelta(seconds=10.7))] == [fresh]
    assert list(carrier.copies(BEGAN + timedelta(seconds=11))) == []
    assert all(copy.at.tzinfo is UTC for copy in carrier.copies(BEGAN))


def only(carrier: TwilioCarrier) -> Copy:
    (copy,) = carrier.copies(datetime.min.replace(tzinfo=UTC))
    return copy


def test_a_copy_is_deleted_pictures_first(carrier: TwilioCarrier, provider: Provider) -> None:
    message = provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=2)

    assert carrier.delete(only(carrier)) is True

    assert provider.messages == {}
    assert [gone.kind for gone in provider.deletions] == ["media", "media", "message"]
    assert provider.deletions[-1].sid == message.sid
    assert sum(exchange.method == "DELETE" for exchange in provider.log) == 3


def test_a_copy_that_is_gone_already_is_gone(carrier: TwilioCarrier, provider: Provider) -> None:
    for media in (0, 2):
        provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=media)
        copy = only(carrier)
        provider.messages.clear()

        assert carrier.delete(copy) is True


def test_a_picture_that_is_gone_already_does_not_keep_the_text(carrier: TwilioCarrier, provider: Provider) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=2)
    provider.fail("media.delete", "20404")

    assert carrier.delete(only(carrier)) is True
    assert provider.messages == {}


def test_a_copy_that_is_not_final_stays_until_it_is(carrier: TwilioCarrier, provider: Provider, clock: Clock) -> None:
    carrier.send(PHONE, TEXT)
    clock.forward(1)
    assert carrier.delete(only(carrier)) is False
    assert len(provider.messages) == 1

    clock.forward(60)
    assert carrier.delete(only(carrier)) is True


@pytest.mark.parametrize(
    ("how", "kind"), [("429", NotSent), ("500 before", Unclear), ("401", NotSent), ("20001", Refused)]
)
@pytest.mark.parametrize("operation", ["media.list", "media.delete", "messages.delete"])
def test_a_copy_that_cannot_be_deleted_is_not_said_to_be_gone(
    carrier: TwilioCarrier, provider: Provider, operation: str, how: str, kind: type[CarrierFault]
) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=1)
    copy = only(carrier)
    provider.fail(operation, how)

    assert type(faults_of(lambda: carrier.delete(copy))) is kind
    assert len(provider.messages) == 1


@pytest.mark.parametrize("sid", ["", "SM1", "SM" + "0" * 31 + "/", "RE" + "0" * 32, "SM" + "0" * 32 + "\n", "../x"])
def test_an_identifier_that_is_none_is_never_part_of_an_address(
    carrier: TwilioCarrier, provider: Provider, sid: str
) -> None:
    copy = Copy(sid, True, "received", True, None, BEGAN, 1)

    assert type(faults_of(lambda: carrier.delete(copy))) is Unclear
    assert not provider.log


# -- nothing leaks -----------------------------------------------------------------------------------------------------

WAYS = ["", "429", "401", "21610", "500 after", "hang up after", "garbled after", "30022"]
LOGGERS = [
    "",
    "twilio",
    "twilio.http_client",
    "requests",
    "urllib3",
    "urllib3.connectionpool",
    "webhooks.twilio_client",
]


def test_neither_number_nor_words_nor_key_are_in_a_log_a_fault_or_an_address(
    carrier: TwilioCarrier, provider: Provider, logged: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in LOGGERS:
        caplog.set_level(0 if not name else 1, logger=name or None)
    canary, told, dragged = "canary-7f3a91", [], []
    provider.arrives(sender=PHONE, to=NUMBER, body=canary, media=1)

    for how in WAYS:
        for operation in ("messages.create", "messages.list", "messages.delete"):
            if how:
                provider.fail(operation, how)
        for ask in (
            lambda: carrier.send(PHONE, canary),
            lambda: carrier.send(PHONE + "x", canary),  # the refusal quotes the number
            lambda: carrier.find(PHONE, canary, BEGAN),
            lambda: carrier.delete(next(carrier.copies(BEGAN))),
        ):
            try:
                ask()
            except CarrierFault as fault:
                told += ["".join(traceback.format_exception(fault)), repr(fault), str(vars(fault))]
                dragged += [fault.__cause__, fault.__context__]
        provider.recover()

    text = "\n".join([logged(), *told, *(exchange.path for exchange in provider.log)])
    assert "connectionpool" in {record.name.rpartition(".")[2] for record in caplog.records}, "nothing was logged"
    assert len(told) > 30
    assert set(dragged) == {None}
    for secret in (canary, PHONE, PHONE[1:], SECRET):
        assert secret not in text
    queries = [exchange.fields for exchange in provider.log if exchange.method != "POST"]
    assert all(PHONE not in fields.values() and canary not in fields.values() for fields in queries)


def test_the_client_s_own_http_part_would_have_logged_the_number(
    address: str, logged: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    TwilioHttpClient().request("GET", f"{address}/2010-04-01", params={"To": PHONE})

    assert PHONE in logged() or PHONE.replace("+", "%2B") in "".join(record.getMessage() for record in caplog.records)


def test_only_this_module_loads_the_client() -> None:
    root = Path(__file__).resolve().parents[2]
    loading = [
        path.relative_to(root).as_posix()
        for folder in ("service", "webhooks", "dashboards", "commands")
        for path in (root / folder).rglob("*.py")
        if "twilio.rest" in path.read_text() and "import" in path.read_text()
    ]

    assert loading == ["webhooks/twilio_client.py"]
