"""The REST side of the fake, judged by the provider's own client over a real socket."""

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from starlette.applications import Starlette
from starlette.routing import Mount
from twilio.base.exceptions import TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from tests.webhooks.simulator.builders import ACCOUNT, BEGAN, KEY, NUMBER, PHONE, SECRET, TOKEN, Clock, serving
from webhooks.simulator.provider import OPERATIONS, Exchange, Provider
from webhooks.simulator.rest import rest_app

OTHER = "+85500000002"
CALLBACK = "https://hotline.example/webhooks/twilio/sms/status"


class Here(TwilioHttpClient):
    """The client's own HTTP part, with the provider at another address."""

    def __init__(self, address: str) -> None:
        super().__init__(timeout=5)
        self.session.trust_env = False
        self._address = address

    def request(self, method: str, url: str, *arguments: Any, **more: Any) -> Any:
        return super().request(method, url.replace("https://api.twilio.com", self._address), *arguments, **more)


def a_client(address: str, user: str = KEY, secret: str = SECRET, account: str = ACCOUNT) -> Client:
    return Client(user, secret, account, http_client=Here(address))


@pytest.fixture
def client(address: str) -> Client:
    return a_client(address)


def refused(ask: Callable[[], object]) -> tuple[int, int]:
    """Return status and code with which the client sees `ask` refused."""
    with pytest.raises(TwilioRestException) as refusal:
        ask()
    return refusal.value.status, refusal.value.code


def send(client: Client, body: str = "ទទួលបានសារហើយ។", to: str = PHONE) -> Any:
    return client.messages.create(to=to, from_=NUMBER, body=body, status_callback=CALLBACK)


# -- messages ----------------------------------------------------------------------------------------------------------


def test_the_client_sends_a_text_and_reads_all_of_the_answer(client: Client, provider: Provider) -> None:
    sent = send(client)

    assert (sent.sid, sent.to, sent.from_, sent.body) == (sent.sid, PHONE, NUMBER, "ទទួលបានសារហើយ។")
    assert (sent.status, sent.direction, sent.num_segments, sent.num_media) == ("queued", "outbound-api", "1", "0")
    assert (sent.date_created, sent.date_updated, sent.date_sent) == (BEGAN, BEGAN, None)
    assert (sent.error_code, sent.account_sid, sent.api_version) == (None, ACCOUNT, "2010-04-01")
    assert provider.messages[sent.sid].status_callback == CALLBACK


def test_a_text_gets_on_while_the_client_looks_and_its_callbacks_are_still_due(
    client: Client, provider: Provider, clock: Clock
) -> None:
    provider.outcomes[PHONE] = "undelivered"
    sent = send(client)
    clock.forward(5)

    (listed,) = client.messages.list()
    now = client.messages(sent.sid).fetch()

    assert listed.status == "undelivered"
    assert (now.status, now.error_code, now.date_sent) == ("undelivered", 30003, BEGAN + timedelta(seconds=1))
    assert [change.status for change in provider.advance()] == ["sending", "sent", "undelivered"]


def test_a_refusal_has_twilio_s_code(client: Client, provider: Provider) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="STOP")

    assert refused(lambda: send(client)) == (400, 21610)
    assert refused(lambda: send(client, to="12")) == (400, 21211)


def test_lists_are_filtered_as_asked(client: Client, provider: Provider, clock: Clock) -> None:
    first = provider.arrives(sender=PHONE, to=NUMBER, body="one")
    clock.forward(3600)
    second = provider.arrives(sender=OTHER, to=NUMBER, body="two")
    third = send(client)  # still queued: not sent at any date
    later, day = BEGAN + timedelta(hours=1), "2026-11-21"

    def listed(**only: Any) -> list[str]:
        return [message.sid for message in client.messages.list(**only)]

    assert listed() == [third.sid, second.sid, first.sid]
    assert listed(from_=PHONE) == [first.sid]
    assert listed(to=NUMBER) == [second.sid, first.sid]
    assert listed(to=NUMBER, from_=OTHER) == [second.sid]
    assert listed(date_sent_after=later) == [second.sid]
    assert listed(date_sent_before=BEGAN) == [first.sid]
    assert listed(date_sent_after=BEGAN, date_sent_before=later) == [second.sid, first.sid]
    assert listed(date_sent=day) == listed(date_sent_after=day) == [second.sid, first.sid]
    assert listed(date_sent="2026-11-20") == listed(date_sent_after="2026-11-22") == []


def _messages() -> str:
    return f"/Accounts/{ACCOUNT}/Messages.json"


def test_a_date_that_is_none_is_refused(address: str, provider: Provider) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="one")
    asked = {"DateSent>": "yesterday"}

    answer = requests.get(f"{address}/2010-04-01{_messages()}", asked, auth=(KEY, SECRET), timeout=5)

    assert (answer.status_code, answer.json()["code"]) == (400, 20001)


def test_a_long_list_comes_in_pages(client: Client, provider: Provider) -> None:
    sids = [provider.arrives(sender=PHONE, to=NUMBER, body=str(i)).sid for i in range(7)]

    assert [message.sid for message in client.messages.list(page_size=3)] == sids[::-1]
    assert [message.sid for message in client.messages.list(page_size=3, from_=PHONE)] == sids[::-1]
    assert [message.sid for message in client.messages.list(limit=4)] == sids[:2:-1]
    pages = [exchange.fields for exchange in provider.log]
    assert [fields.get("Page") for fields in pages[:3]] == [None, "1", "2"]
    assert all(fields["From"] == PHONE for fields in pages[3:6])


def test_no_text_is_skipped_when_texts_are_deleted_between_two_pages(client: Client, provider: Provider) -> None:
    sids = [provider.arrives(sender=PHONE, to=NUMBER, body=str(i)).sid for i in range(9)]
    seen = []

    for message in client.messages.stream(page_size=2):
        seen.append(message.sid)
        message.delete()

    assert seen == sids[::-1]
    assert provider.messages == {}


def test_the_words_of_a_text_can_be_taken_away(client: Client, provider: Provider) -> None:
    held = provider.arrives(sender=PHONE, to=NUMBER, body="a child at 4 Elm St")

    assert refused(lambda: client.messages(held.sid).update(body="other words")) == (400, 20001)
    assert held.body == "a child at 4 Elm St"
    assert client.messages(held.sid).update(body="").body == ""
    assert held.body == ""


def test_a_text_is_deleted_once_it_is_final(client: Client, provider: Provider, clock: Clock) -> None:
    sent = send(client)
    clock.forward(1)
    assert refused(sent.delete) == (409, 20009)

    clock.forward(5)
    assert sent.delete() is True
    assert refused(sent.delete) == (404, 20404)
    assert refused(sent.fetch) == (404, 20404)
    assert provider.messages == {}


def test_pictures_are_listed_and_deleted_alone(client: Client, provider: Provider) -> None:
    held = provider.arrives(sender=PHONE, to=NUMBER, body="", media=3)
    message = client.messages(held.sid)
    media = message.media.list(page_size=2)

    assert sorted(picture.sid for picture in media) == sorted(held.media)
    assert message.media(media[0].sid).fetch().parent_sid == held.sid
    assert media[0].delete() is True
    assert refused(media[0].delete) == (404, 20404)
    assert len(held.media) == 2
    assert message.fetch().num_media == "2"


# -- calls and recordings ----------------------------------------------------------------------------------------------


def test_calls_are_listed_fetched_and_deleted(client: Client, provider: Provider) -> None:
    first = provider.rings(sender=PHONE, to=NUMBER, seconds=42)
    second = provider.rings(sender=OTHER, to=NUMBER, status="in-progress")

    assert [call.sid for call in client.calls.list()] == [second.sid, first.sid]
    assert [call.sid for call in client.calls.list(from_=PHONE)] == [first.sid]
    assert [call.sid for call in client.calls.list(status="in-progress")] == [second.sid]
    call = client.calls(first.sid).fetch()
    assert (call.duration, call.start_time, call.end_time) == ("42", BEGAN - timedelta(seconds=42), BEGAN)
    assert call.delete() is True
    assert refused(client.calls(second.sid).delete) == (409, 20009)
    assert list(provider.calls) == [second.sid]


def test_recordings_are_listed_fetched_and_deleted(client: Client, provider: Provider, clock: Clock) -> None:
    calls = [provider.rings(sender=PHONE, to=NUMBER, seconds=42) for _ in range(2)]
    first = provider.records(calls[0], seconds=20)
    clock.forward(60)
    second = provider.records(calls[1], seconds=30)

    assert [one.sid for one in client.recordings.list()] == [second.sid, first.sid]
    assert [one.sid for one in client.recordings.list(call_sid=calls[0].sid)] == [first.sid]
    assert [one.sid for one in client.recordings.list(date_created_after=clock())] == [second.sid]
    recording = client.recordings(first.sid).fetch()
    assert (recording.duration, recording.status, recording.call_sid) == ("20", "completed", calls[0].sid)
    assert recording.delete() is True
    assert list(provider.recordings) == [second.sid]


# -- who asks, and for what --------------------------------------------------------------------------------------------


def test_an_api_key_and_the_account_s_token_open_and_nothing_else_does(address: str) -> None:
    for user, secret in ((KEY, SECRET), (ACCOUNT, TOKEN)):
        assert send(a_client(address, user, secret)).status == "queued"
    for user, secret in ((KEY, TOKEN), (ACCOUNT, SECRET), (KEY, ""), ("SK" + "2" * 32, SECRET)):
        assert refused(lambda user=user, secret=secret: send(a_client(address, user, secret))) == (401, 20003)
    assert refused(lambda: send(a_client(address, account="AC" + "9" * 32))) == (401, 20003)


@pytest.mark.parametrize("header", [None, "Basic", "Basic !!!", "Bearer x", "Basic /w=="])
def test_other_credentials_are_refused_as_well(address: str, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}

    assert requests.get(f"{address}/2010-04-01{_messages()}", headers=headers, timeout=5).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/2010-04-01/Accounts/{}/Faxes.json", 404),
        ("GET", "/2010-04-01/Accounts/{}/Messages", 404),
        ("DELETE", "/2010-04-01/Accounts/{}/Messages.json", 405),
        ("POST", "/2010-04-01/Accounts/{}/Calls.json", 405),
        ("GET", "/2010-04-01/Accounts/{}/Calls/CA1/Media.json", 405),
    ],
)
def test_what_the_fake_does_not_have_is_not_there(address: str, method: str, path: str, status: int) -> None:
    answer = requests.request(method, address + path.format(ACCOUNT), auth=(KEY, SECRET), timeout=5)

    assert answer.status_code == status


def test_it_can_be_mounted_under_a_prefix(provider: Provider) -> None:
    with serving(Starlette(routes=[Mount("/twilio", rest_app(provider))])) as address:
        provider.fail("messages.create", "hang up after")
        with pytest.raises(requests.ConnectionError):
            send(a_client(address + "/twilio"))
        assert len(a_client(address + "/twilio").messages.list()) == 1


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(address: str) -> Iterator[Callable[[], bytes]]:
    """Send one text past every client, and return all that comes back before the connection closes."""
    parts = urlsplit(address)
    body = b"To=%2B85500000001&From=%2B85500000100&Body=hello"
    token = requests.auth._basic_auth_str(KEY, SECRET)
    head = f"POST /2010-04-01{_messages()} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: {len(body)}"
    with socket.create_connection((parts.hostname, parts.port)) as line:

        def ask() -> bytes:
            line.settimeout(0.3)
            line.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
            got = b""
            while part := line.recv(65536):
                got += part
            return got

        yield ask


@pytest.mark.parametrize("acted", ["before", "after"])
def test_a_500_can_come_before_or_after_the_text_was_taken(client: Client, provider: Provider, acted: str) -> None:
    provider.fail("messages.create", f"500 {acted}")

    assert refused(lambda: send(client)) == (500, 20500)
    assert len(provider.messages) == (acted == "after")
    assert send(client).status == "queued"


@pytest.mark.parametrize("acted", ["before", "after"])
def test_a_connection_can_close_without_an_answer(raw: Callable[[], bytes], provider: Provider, acted: str) -> None:
    provider.fail("messages.create", f"hang up {acted}")

    assert raw() == b""
    assert len(provider.messages) == (acted == "after")


@pytest.mark.parametrize("acted", ["before", "after"])
def test_it_can_stay_silent(raw: Callable[[], bytes], provider: Provider, acted: str) -> None:
    provider.fail("messages.create", f"silent {acted}")

    with pytest.raises(TimeoutError):
        raw()
    assert len(provider.messages) == (acted == "after")


def test_without_a_fault_it_answers(raw: Callable[[], bytes]) -> None:
    assert raw().startswith(b"HTTP/1.1 201")


def test_it_can_ask_for_patience(address: str, provider: Provider) -> None:
    provider.fail("messages.list", "429", after=6.2)

    answer = requests.get(f"{address}/2010-04-01{_messages()}", auth=(KEY, SECRET), timeout=5)

    assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (429, 20429, "7")


@pytest.mark.parametrize(("how", "status"), [("401", 401), ("20009", 409), ("20404", 404), ("30022", 400)])
def test_it_can_answer_with_any_code(client: Client, provider: Provider, how: str, status: int) -> None:
    provider.fail("messages.create", how)

    assert refused(lambda: send(client)) == (status, 20003 if how == "401" else int(how))
    assert provider.messages == {}


def test_each_operation_can_fail_by_itself(client: Client, provider: Provider) -> None:
    held = provider.arrives(sender=PHONE, to=NUMBER, body="", media=1)
    call = provider.rings(sender=PHONE, to=NUMBER)
    recording = provider.records(call, seconds=1)
    message, media = client.messages(held.sid), client.messages(held.sid).media(held.media[0])
    asked: dict[str, Callable[[], object]] = {
        "messages.create": lambda: send(client),
        "messages.list": client.messages.list,
        "messages.fetch": message.fetch,
        "messages.update": lambda: message.update(body=""),
        "media.list": message.media.list,
        "media.fetch": media.fetch,
        "media.delete": media.delete,
        "messages.delete": message.delete,
        "recordings.list": client.recordings.list,
        "recordings.fetch": client.recordings(recording.sid).fetch,
        "recordings.delete": client.recordings(recording.sid).delete,
        "calls.list": client.calls.list,
        "calls.fetch": client.calls(call.sid).fetch,
        "calls.delete": client.calls(call.sid).delete,
    }
    assert asked.keys() == OPERATIONS

    for operation, ask in asked.items():
        provider.fail(operation, "500 before")
        with pytest.raises(Exception, match=r"500|Unable to fetch page"):
            ask()
        assert provider.log[-1].note == "500 before"
        ask()
        assert provider.log[-1].note == ""


# -- the log -----------------------------------------------------------------------------------------------------------


def test_every_request_is_on_the_log_and_the_oldest_go(client: Client, provider: Provider, clock: Clock) -> None:
    provider.fail("messages.create", "silent after")
    with pytest.raises(requests.ReadTimeout):
        Client(KEY, SECRET, ACCOUNT, http_client=_hasty(client)).messages.create(to=PHONE, from_=NUMBER, body="a")
    client.messages.list()

    silent, listed = provider.log
    assert (silent.side, silent.method, silent.status, silent.note) == ("rest", "POST", None, "silent after")
    assert silent.path == f"/2010-04-01{_messages()}"
    assert dict(silent.fields) == {"To": PHONE, "From": NUMBER, "Body": "a"}
    assert (listed.method, listed.status, listed.note, listed.at) == ("GET", 200, "", clock())

    for i in range(600):
        provider.log.append(Exchange(clock(), "rest", "GET", f"/{i}", 200, 0, {}))
    assert (len(provider.log), provider.log[0].path, provider.log[-1].path) == (500, "/100", "/599")


def _hasty(client: Client) -> Any:
    client.http_client.timeout = 0.3
    return client.http_client
