"""What the provider's fake holds, how texts get on with time, and that it fails only as it is told."""

from datetime import timedelta

import pytest

from tests.webhooks.simulator.builders import BEGAN, NUMBER, PHONE, Clock, a_provider
from webhooks.simulator.provider import Callbacks, Message, Provider, RestFault, StatusChange

CALLBACK = "https://hotline.example/webhooks/twilio/sms/status"


def a_text(provider: Provider, to: str = PHONE, body: str = "message received") -> Message:
    return provider.create(to=to, sender=NUMBER, body=body, status_callback=CALLBACK)


def refused(provider: Provider, **more: str) -> int:
    """Return the code with which a text is refused."""
    fields = {"to": PHONE, "sender": NUMBER, "body": "message received", "status_callback": None}
    with pytest.raises(RestFault) as refusal:
        provider.create(**(fields | more))  # type: ignore[arg-type]
    return refusal.value.code


def seen(changes: list[StatusChange]) -> list[tuple[str, int | None]]:
    return [(change.status, change.error_code) for change in changes]


# -- texts in ----------------------------------------------------------------------------------------------------------


def test_a_text_from_a_phone_is_held(provider: Provider) -> None:
    message = provider.arrives(sender=PHONE, to=NUMBER, body="ជួយផង", media=2)

    assert provider.messages == {message.sid: message}
    assert (message.direction, message.status, message.final) == ("inbound", "received", True)
    assert (message.created_at, message.sent_at) == (BEGAN, BEGAN)
    assert message.sid.startswith("MM")
    assert len(set(message.media)) == 2
    assert provider.advance() == []


@pytest.mark.parametrize("word", ["STOP", "stop", " Stop\n", "QUIT", "optout"])
def test_a_reserved_word_blocks_the_number_until_it_is_taken_back(provider: Provider, word: str) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body=word)
    assert provider.opted_out == {PHONE}
    assert refused(provider) == 21610

    provider.arrives(sender=PHONE, to=NUMBER, body="start")
    assert a_text(provider).status == "queued"


@pytest.mark.parametrize("words", ["please stop him", "ឈប់", "stop.", "NO", "HELP"])
def test_no_other_word_blocks_a_number(provider: Provider, words: str) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body=words)

    assert provider.opted_out == set()


def test_the_english_answer_to_a_reserved_word_comes_only_where_it_is_switched_on(provider: Provider) -> None:
    provider.arrives(sender=PHONE, to=NUMBER, body="STOP")
    assert len(provider.messages) == 1

    provider.answers_keywords = True
    provider.arrives(sender=PHONE, to=NUMBER, body="STOP")
    reply = list(provider.messages.values())[-1]
    assert (reply.direction, reply.sender, reply.to) == ("outbound-reply", NUMBER, PHONE)


# -- texts out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"to": ""}, 21211),
        ({"to": "85500000001"}, 21211),
        ({"to": "+0123456789"}, 21211),
        ({"sender": "+85500000199"}, 21606),
        ({"to": NUMBER}, 21266),
        ({"body": ""}, 21602),
        ({"body": "x" * 1601}, 21617),
        ({"body": "ក" * 1601}, 21617),
        ({"body": "😀" * 801}, 21617),
    ],
)
def test_a_text_that_cannot_be_sent_is_refused_with_its_code_and_not_held(
    provider: Provider, fields: dict[str, str], code: int
) -> None:
    assert refused(provider, **fields) == code
    assert provider.messages == {}


@pytest.mark.parametrize("body", ["x" * 1600, "ក" * 1600, "😀" * 800])
def test_the_longest_text_is_taken(provider: Provider, body: str) -> None:
    assert a_text(provider, body=body).body == body


def test_a_text_gets_on_with_time_and_calls_back_after_the_first_status(provider: Provider, clock: Clock) -> None:
    message = a_text(provider)
    assert (message.status, provider.advance()) == ("queued", [])

    clock.forward(0.5)
    assert seen(provider.advance()) == [("sending", None)]
    assert message.sent_at is None
    clock.forward(10)
    assert seen(provider.advance()) == [("sent", None), ("delivered", None)]
    assert (message.final, message.sent_at) == (True, BEGAN + timedelta(seconds=1))
    clock.forward(1000)
    assert provider.advance() == []


@pytest.mark.parametrize(
    ("outcome", "statuses"),
    [
        ("delivered", [("sending", None), ("sent", None), ("delivered", None)]),
        ("undelivered", [("sending", None), ("sent", None), ("undelivered", 30003)]),
        ("failed", [("sending", None), ("failed", 30008)]),
        ("blocked", [("sending", None), ("failed", 21610)]),
        ("no receipt", [("sending", None), ("sent", None)]),
    ],
)
def test_each_outcome_ends_as_it_says(
    provider: Provider, clock: Clock, outcome: str, statuses: list[tuple[str, int | None]]
) -> None:
    provider.outcomes[PHONE] = outcome  # type: ignore[assignment]
    message = a_text(provider)

    clock.forward(60)
    changes = provider.advance()

    assert seen(changes) == statuses
    assert {(change.sid, change.to, change.callback) for change in changes} == {(message.sid, PHONE, CALLBACK)}
    assert (message.status, message.error_code) == statuses[-1]


def test_a_number_can_be_blocked_at_once(provider: Provider) -> None:
    provider.outcomes[PHONE] = "blocked at create"

    assert refused(provider) == 21610


@pytest.mark.parametrize(("seconds", "ending"), [(0.2, ("failed", 21610)), (1.5, ("delivered", None))])
def test_a_stop_catches_a_text_that_has_not_left_yet(
    provider: Provider, clock: Clock, seconds: float, ending: tuple[str, int | None]
) -> None:
    a_text(provider)
    clock.forward(seconds)
    provider.arrives(sender=PHONE, to=NUMBER, body="STOP")

    clock.forward(60)

    assert seen(provider.advance())[-1] == ending


def test_no_callback_is_made_for_a_text_that_asked_for_none(provider: Provider, clock: Clock) -> None:
    message = provider.create(to=PHONE, sender=NUMBER, body="hello", status_callback=None)
    clock.forward(60)

    assert provider.advance() == []
    assert message.status == "delivered"


# -- callbacks ---------------------------------------------------------------------------------------------------------


def statuses_with(habits: Callbacks, seed: int = 1, *, steps: int = 1, every: float = 60) -> list[list[str]]:
    """Return the statuses of one text's callbacks, step by step."""
    clock = Clock()
    provider = a_provider(clock, seed=seed)
    provider.callbacks = habits
    a_text(provider)
    found = []
    for _ in range(steps):
        clock.forward(every)
        found.append([change.status for change in provider.advance()])
    return found


def test_callbacks_can_come_twice_or_not_at_all() -> None:
    assert statuses_with(Callbacks()) == [["sending", "sent", "delivered"]]
    assert sorted(statuses_with(Callbacks(doubled=True))[0]) == sorted(["sending", "sent", "delivered"] * 2)
    assert statuses_with(Callbacks(missing=1.0)) == [[]]


def test_some_of_the_callbacks_can_be_missing() -> None:
    counts = {len(statuses_with(Callbacks(missing=0.5), seed)[0]) for seed in range(20)}

    assert counts == {0, 1, 2, 3}


def test_callbacks_can_come_in_any_order_which_a_seed_repeats() -> None:
    orders = [tuple(statuses_with(Callbacks(shuffled=True), seed)[0]) for seed in range(20)]

    assert len(set(orders)) > 3
    assert orders == [tuple(statuses_with(Callbacks(shuffled=True), seed)[0]) for seed in range(20)]
    assert all(sorted(order) == ["delivered", "sending", "sent"] for order in orders)


def test_callbacks_can_come_late_and_none_is_lost() -> None:
    steps = statuses_with(Callbacks(late=timedelta(seconds=100)), steps=12, every=10)

    assert steps[0] != ["sending", "sent", "delivered"]
    assert sorted(status for step in steps for status in step) == ["delivered", "sending", "sent"]


def test_a_late_callback_is_made_even_if_the_text_is_deleted_by_then(provider: Provider, clock: Clock) -> None:
    provider.callbacks = Callbacks(late=timedelta(seconds=100))
    message = a_text(provider)
    clock.forward(4)
    provider.delete("message", message.sid)

    clock.forward(200)

    assert {change.sid for change in provider.advance()} == {message.sid}


# -- what is held and deleted ------------------------------------------------------------------------------------------


def code_of(ask: object, *arguments: str) -> int:
    with pytest.raises(RestFault) as refusal:
        ask(*arguments)  # type: ignore[operator]
    return refusal.value.code


def test_what_is_deleted_is_gone_and_noted(provider: Provider, clock: Clock) -> None:
    message = provider.arrives(sender=PHONE, to=NUMBER, body="a child", media=2)
    call = provider.rings(sender=PHONE, to=NUMBER, seconds=30)
    recording = provider.records(call, seconds=20)
    first, second = message.media
    clock.forward(60)

    provider.delete_media(message.sid, first)
    provider.delete("message", message.sid)
    provider.delete("recording", recording.sid)
    provider.delete("call", call.sid)

    assert [(gone.kind, gone.sid) for gone in provider.deletions] == [
        ("media", first), ("media", second), ("message", message.sid), ("recording", recording.sid), ("call", call.sid),
    ]  # fmt: skip
    assert {gone.at for gone in provider.deletions} == {clock()}
    assert not provider.messages
    assert not provider.calls
    assert not provider.recordings
    assert code_of(provider.delete, "message", message.sid) == 20404
    assert code_of(provider.delete_media, message.sid, first) == 20404


def test_nothing_is_deleted_or_emptied_before_it_is_final(provider: Provider, clock: Clock) -> None:
    message, call = a_text(provider), provider.rings(sender=PHONE, to=NUMBER, status="in-progress")
    for seconds in (0, 0.6, 0.6):  # queued, sending, sent: its receipt has not come
        clock.forward(seconds)
        assert code_of(provider.delete, "message", message.sid) == 20009
        assert code_of(provider.empty, message.sid) == 20009
    assert code_of(provider.delete, "call", call.sid) == 20009

    clock.forward(2)
    assert provider.empty(message.sid).body == ""
    provider.delete("message", message.sid)
    assert not provider.messages


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def ways(provider: Provider, operation: str, count: int) -> list[str | None]:
    return [fault.how if (fault := provider.next_fault(operation)) else None for _ in range(count)]


def test_a_fault_happens_as_often_as_it_was_told(provider: Provider) -> None:
    provider.fail("messages.create", "429", times=2, after=7)
    provider.fail("messages.create", "500 after")

    assert ways(provider, "messages.list", 1) == [None]
    assert ways(provider, "messages.create", 4) == ["429", "429", "500 after", None]


def test_a_fault_can_last_until_recovery_and_be_everywhere(provider: Provider) -> None:
    provider.fail("*", "silent before", times=None)

    assert ways(provider, "messages.delete", 3) == ["silent before"] * 3
    provider.recover()
    assert ways(provider, "messages.delete", 1) == [None]


@pytest.mark.parametrize(
    ("operation", "how", "times"),
    [("messages.send", "429", 1), ("messages.create", "500", 1), ("*", "slow", 1), ("*", "123", 1), ("*", "429", 0)],
)
def test_a_fault_that_could_never_happen_is_refused(
    provider: Provider, operation: str, how: str, times: int | None
) -> None:
    with pytest.raises(ValueError, match=r"no such|a number from 1"):
        provider.fail(operation, how, times)


def test_a_seed_gives_the_same_identifiers_again() -> None:
    first, second, other = (a_provider(seed=seed).arrives(sender=PHONE, to=NUMBER, body="") for seed in (7, 7, 8))

    assert first.sid == second.sid != other.sid
