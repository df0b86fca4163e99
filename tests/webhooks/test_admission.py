"""Limits before parsing, shedding with reserved slots, and what stands on every answer. Each with its control."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.webhooks.builders import (
    CANARY,
    FORM_TYPE,
    SMS,
    Answer,
    a_scope,
    an_app,
    an_sms,
    drive,
    encode,
    exchange,
    sign,
    sms_headers,
)
from tests.webhooks.fakes import FakeIntake
from webhooks import admission
from webhooks.admission import Admission, Limits, Slots
from webhooks.alarms import Alarms

PAGES = {status: b"page %d" % status for status in (400, 405, 408, 413, 414, 431, 500, 503)}
SMALL = Limits(in_flight=10, receiving=40, webhook_body=64, form_body=256, fields=5, body_seconds=10)


class Echo:
    """An app that says what reached it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"a=b")]})
        await send({"type": "http.response.body", "body": b"echo"})


def admit(app: Any, limits: Limits = SMALL) -> Admission:
    return Admission(app, limits=limits, pages=PAGES, alarms=Alarms())


def post(app: Any, body: bytes, path: str = "/report", **more: Any) -> Answer:
    return drive(app, "POST", path, body=body, **more)


# --- size, fields, lies ---


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/report", 256, 200),
        ("/report", 257, 413),
        (SMS, 64, 200),
        (SMS, 65, 403),  # to a webhook, too large is not one of ours
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_has_a_size(path, size, status, declared):
    echo = Echo()
    messages = None if declared else [{"type": "http.request", "body": b"x" * size}]

    answer = post(admit(echo), b"x" * size, path, messages=messages)

    assert answer.status == status
    assert echo.bodies == ([b"x" * size] if status == 200 else [])


def test_a_body_that_is_declared_too_large_is_not_read():
    scope = a_scope("POST", "/report", length=10**9)

    answer = asyncio.run(exchange(admit(Echo()), scope, []))

    assert answer is not None
    assert answer.status == 413
    assert answer.header("connection") == "close"


def test_a_body_in_many_pieces_is_whole_inside():
    echo = Echo()
    pieces = [{"type": "http.request", "body": b"x", "more_body": n < 9} for n in range(10)]

    assert drive(admit(echo), "POST", "/report", messages=pieces).status == 200
    assert echo.bodies == [b"x" * 10]


def test_an_endless_body_is_cut_off():
    def endless() -> Any:
        while True:
            yield {"type": "http.request", "body": b"x" * 50, "more_body": True}

    stream = endless()
    pieces = (next(stream) for _ in range(10**6))
    received = 0

    async def receive() -> Any:
        nonlocal received
        received += 1
        return next(pieces)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(admit(Echo())(a_scope("POST", "/report"), receive, send))

    assert sent[0]["status"] == 413
    assert received == 6


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([(b"content-length", b"4")], b"1234", 200),
        ([(b"content-length", b"3")], b"1234", 400),
        ([(b"content-length", b"5")], b"1234", 400),
        ([(b"content-length", b"-4")], b"1234", 400),
        ([(b"content-length", b"+4")], b"1234", 400),
        ([(b"content-length", b"4.0")], b"1234", 400),
        ([(b"content-length", b"")], b"1234", 400),
        ([(b"content-length", "٤".encode())], b"1234", 400),
        ([(b"content-length", b"9" * 5000)], b"1234", 400),
        ([(b"content-length", b"4"), (b"content-length", b"4")], b"1234", 400),
        ([(b"content-length", b"4"), (b"transfer-encoding", b"chunked")], b"1234", 400),
        ([(b"transfer-encoding", b"chunked")], b"1234", 200),
    ],
)
def test_a_content_length_that_lies_is_refused(headers, body, status):
    answer = drive(admit(Echo()), "POST", "/report", headers=headers, messages=[{"type": "http.request", "body": body}])
    assert answer.status == status


def test_fields_are_counted_before_they_are_parsed():
    assert post(admit(Echo()), b"a&b&c&d&e").status == 200
    assert post(admit(Echo()), b"a&b&c&d&e&f").status == 413
    assert post(admit(Echo()), b"a&b&c&d&e&f", SMS).status == 403


def test_headers_have_a_number_and_a_size():
    many = [(b"x-%d" % n, b"") for n in range(100)]
    large = [(b"x", b"y" * (16 * 1024 - 1))]
    app = admit(Echo())

    assert drive(app, "GET", "/", headers=many).status == 200
    assert drive(app, "GET", "/", headers=[*many, (b"x", b"")]).status == 431
    assert drive(app, "GET", "/", headers=large).status == 200
    assert drive(app, "GET", "/", headers=[*large, (b"x", b"")]).status == 431


def test_an_address_has_a_length():
    app = admit(Echo())

    assert drive(app, "GET", "/" + "x" * 2047).status == 200
    assert drive(app, "GET", "/" + "x" * 2048).status == 414
    assert drive(app, "GET", "/", query=b"x" * 2048).status == 414


def test_a_get_brings_no_body():
    app = admit(Echo())

    assert drive(app, "GET", "/", headers=[(b"content-length", b"0")]).status == 200
    assert drive(app, "GET", "/", headers=[(b"content-length", b"1")]).status == 400
    assert drive(app, "GET", "/", headers=[(b"transfer-encoding", b"chunked")]).status == 400


# --- time ---


def test_a_body_that_does_not_come_is_given_up():
    """No time passes: the limit is nothing, and the body is still on its way."""
    never = [{"type": "http.request", "body": b"a", "more_body": True}]
    hurried = admit(Echo(), replace(SMALL, body_seconds=0))

    answer = drive(hurried, "POST", "/report", messages=never)

    assert answer.status == 408
    assert answer.header("connection") == "close"


def test_a_body_that_has_come_is_taken_at_any_hour():
    assert post(admit(Echo(), replace(SMALL, body_seconds=0)), b"words").status == 200


def test_a_sender_who_leaves_gets_no_answer_and_stores_nothing():
    echo = Echo()
    gone = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]

    assert asyncio.run(exchange(admit(echo), a_scope("POST", "/report"), gone)) is None
    assert echo.bodies == []


# --- overload ---


class Busy:
    """A house with requests that wait for the same door."""

    def __init__(self, tmp_path: Any, in_flight: int = 10) -> None:
        self.intake = FakeIntake(gate=asyncio.Event())
        self.app = an_app(tmp_path, self.intake, limits=Limits(in_flight=in_flight, receiving=4 * in_flight))
        self.tasks: list[asyncio.Task[Answer | None]] = []

    async def form(self) -> None:
        body = encode({"what": f"words {len(self.tasks)}"})
        await self._start("/report", body, [(b"content-type", FORM_TYPE.encode())])

    async def sms(self) -> None:
        fields = an_sms(sid=f"SM{len(self.tasks)}")
        await self._start(SMS, encode(fields), sms_headers(sign(fields)))

    async def _start(self, path: str, body: bytes, headers: Any) -> None:
        scope = a_scope("POST", path, headers=headers, length=len(body))
        messages = [{"type": "http.request", "body": body}]
        self.tasks.append(asyncio.create_task(exchange(self.app, scope, messages)))
        await asyncio.sleep(0)

    async def open(self) -> list[int]:
        assert self.intake.gate
        self.intake.gate.set()
        return [answer.status for answer in await asyncio.gather(*self.tasks) if answer]


@pytest.mark.parametrize(("forms", "texts", "refused"), [(7, 3, 0), (8, 0, 1), (20, 3, 13), (0, 10, 0), (0, 12, 2)])
def test_webhooks_keep_their_share_when_forms_fill_the_house(tmp_path, forms, texts, refused):
    async def scene() -> tuple[list[int], Busy]:
        house = Busy(tmp_path)
        for _ in range(forms):
            await house.form()
        for _ in range(texts):
            await house.sms()
        return await house.open(), house

    statuses, house = asyncio.run(scene())

    assert statuses.count(503) == refused
    assert statuses.count(200) == forms + texts - refused
    assert len(house.intake.stored) == forms + texts - refused
    if forms:
        assert 503 not in statuses[forms:], "no webhook was refused for the sake of forms"


def test_without_a_share_of_their_own_webhooks_would_be_refused(tmp_path, monkeypatch):
    """The control."""
    monkeypatch.setattr(admission, "WEBHOOKS_SHARE", 0)

    async def scene() -> list[int]:
        house = Busy(tmp_path)
        for _ in range(10):
            await house.form()
        await house.sms()
        return await house.open()

    assert asyncio.run(scene())[-1] == 503


def test_a_refusal_under_overload_has_the_numbers_to_call_and_stores_nothing(tmp_path):
    async def scene() -> tuple[Answer | None, Answer | None, Answer | None, int]:
        house = Busy(tmp_path, in_flight=2)
        for _ in range(2):
            await house.sms()
        page = await exchange(house.app, a_scope("GET", "/report"), [])
        text = await exchange(house.app, a_scope("POST", SMS, length=0), [{"type": "http.request", "body": b""}])
        live = await exchange(house.app, a_scope("GET", "/health/live"), [])
        await house.open()
        return page, text, live, len(house.intake.stored)

    page, text, live, stored = asyncio.run(scene())

    assert page
    assert text
    assert live
    assert (page.status, text.status, live.status, stored) == (503, 503, 200, 2)
    assert page.header("retry-after")
    assert text.header("retry-after")
    assert text.body == b""
    assert 'href="tel:1280"' in page.text
    assert 'href="tel:117"' in page.text
    assert page.text.index('<section lang="km">') < page.text.index('<section lang="en">')


def test_slots_come_back_after_every_kind_of_end(tmp_path):
    intake = FakeIntake()
    app = an_app(tmp_path, intake, limits=Limits(in_flight=2, receiving=2))
    fields = an_sms()
    for failing in (None, RuntimeError(CANARY), None):
        intake.failing = failing
        for _ in range(5):
            drive(app, "GET", "/nothing")
            post(app, b"x" * 300_000)
            drive(app, "POST", SMS, headers=sms_headers(sign(fields)), body=encode(fields))
    assert drive(app, "GET", "/").status == 200


def test_slow_bodies_hold_no_slot_of_those_that_are_served(tmp_path):
    async def scene() -> int:
        app = an_app(tmp_path, FakeIntake(), limits=Limits(in_flight=10, receiving=40))
        slow = [{"type": "http.request", "body": b"a", "more_body": True}]
        waiting = [asyncio.create_task(exchange(app, a_scope("POST", "/report"), slow)) for _ in range(20)]
        await asyncio.sleep(0)
        answer = await exchange(
            app,
            a_scope("POST", "/report", headers=[(b"content-type", FORM_TYPE.encode())]),
            [{"type": "http.request", "body": b"what=words"}],
        )
        for task in waiting:
            task.cancel()
        assert answer
        return answer.status

    assert asyncio.run(scene()) == 200


def test_more_slow_bodies_than_may_be_received_are_refused_but_not_webhooks(tmp_path):
    async def scene() -> tuple[int, int]:
        app = an_app(tmp_path, FakeIntake(), limits=Limits(in_flight=10, receiving=10))
        slow = [{"type": "http.request", "body": b"a", "more_body": True}]
        waiting = [asyncio.create_task(exchange(app, a_scope("POST", "/report"), slow)) for _ in range(20)]
        await asyncio.sleep(0)
        form = await exchange(app, a_scope("POST", "/report"), [{"type": "http.request", "body": b"what=words"}])
        fields = an_sms()
        scope = a_scope("POST", SMS, headers=sms_headers(sign(fields)))
        text = await exchange(app, scope, [{"type": "http.request", "body": encode(fields)}])
        for task in waiting:
            task.cancel()
        assert form
        assert text
        return form.status, text.status

    assert asyncio.run(scene()) == (503, 200)


@pytest.mark.parametrize("total", range(1, 50))
def test_at_least_three_slots_in_ten_are_for_webhooks(total):
    slots = Slots(total)
    while slots.free(webhook=False):
        slots.take(webhook=False)
    left = 0
    while slots.free(webhook=True):
        slots.take(webhook=True)
        left += 1
    assert left >= 0.3 * total or total == 1


# --- methods, other protocols, failures ---


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_methods_are_a_closed_set(method):
    answer = drive(admit(Echo()), method, "/")
    assert (answer.status, answer.header("allow")) == (405, "GET, HEAD, POST, OPTIONS")
    assert drive(admit(Echo()), "GET", "/").status == 200


def test_options_says_what_is_allowed():
    answer = drive(admit(Echo()), "OPTIONS", "/anything")
    assert (answer.status, answer.body, answer.header("allow")) == (204, b"", "GET, HEAD, POST, OPTIONS")


def test_head_has_the_headers_and_no_body():
    answer = drive(admit(Echo()), "HEAD", "/" + "x" * 3000)
    assert (answer.status, answer.body, answer.header("content-length")) == (414, b"", "8")


def test_a_websocket_is_closed():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(admit(Echo())({"type": "websocket", "path": "/"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_cookie_passes_even_when_a_route_sets_one():
    assert drive(admit(Echo()), "GET", "/").header("set-cookie") is None


@pytest.mark.parametrize(("path", "body"), [("/report", b"page 500"), (SMS, b"")])
def test_an_unexpected_error_is_answered_without_its_text(path, body, logged):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(CANARY)

    answer = post(admit(broken), b"", path)

    assert (answer.status, answer.body) == (500, body)
    log = logged()
    assert "RuntimeError" in log
    assert CANARY not in log


def test_an_answer_that_began_is_not_answered_twice():
    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(CANARY)

    answer = drive(admit(breaks_off), "GET", "/")
    assert (answer.status, answer.body) == (200, b"")
