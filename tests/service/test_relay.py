"""Texts out: the acknowledgement, everything that can go wrong with it, and what the provider says of it later."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from service import outbox, relay
from service.db import Sessions, Tx, write
from service.draft import asks_for_silence
from service.errors import NotSent, StorageUnavailable
from service.models import Channel, Contact, JobState, OutboxJob, ProviderReport
from service.relay import ACKNOWLEDGEMENTS, RING_WORDS, Relay
from service.vault import boxes
from service.vault.relaying import open_contact
from tests.builders import NOW, a_number, a_tip, a_world
from tests.service.sending import DUTY, OneByOne, Scene, at_once, everything_logged
from tests.service.test_intake import LOCKED_IN

QUIET = timedelta(seconds=60)
THANKS = ACKNOWLEDGEMENTS["en"]


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions))


# --- the acknowledgement: once, when it is safe, and neutral ---


def test_a_text_is_answered_once_in_its_own_language(scene: Scene) -> None:
    case = scene.tip(sender="+85500000001")

    assert scene.send() == [("+85500000001", THANKS)]
    row = scene.row()
    [there] = scene.carrier.texts()
    assert (row.state, row.sid, row.attempts) == (
        *(JobState.DONE, boxes.provider_name(scene.world.founding.row_key, there.sid)),
        1,
    )
    assert scene.events(case)[-1] == "message:reply:sent"
    scene.later(minutes=9)
    assert scene.send() == []


@pytest.mark.parametrize(
    ("words", "language"),
    [("មានក្មេងម្នាក់នៅផ្ទះសំណាក់ជិតផ្សារ។", "km"), ("Look at the guesthouse please.", "en"), ("12345", "km"), ("", "km")],
)
def test_what_is_no_language_that_we_answer_in_is_answered_in_khmer(scene: Scene, words: str, language: str) -> None:
    scene.tip(words)
    assert [words for _, words in scene.send()] == [ACKNOWLEDGEMENTS[language]]


def test_a_tip_is_answered_once_however_often_and_long_its_sender_writes(scene: Scene) -> None:
    first = a_tip(sender="+85500000001")
    scene.world.receive(first, first)
    assert len(scene.send()) == 1
    for minutes in range(3):
        scene.later(minutes=minutes + 2)
        scene.follow_up("And there is more.", "+85500000001")
        assert scene.send() == []
    assert scene.states() == [JobState.DONE]


def test_two_tips_of_a_number_are_answered_each(scene: Scene) -> None:
    """The control of the test above: a new tip of a number that was answered gets its own answer."""
    case = scene.tip(sender="+85500000001")
    scene.send()
    scene.close(case)
    scene.later(minutes=5)
    scene.follow_up("Please look again.", "+85500000001")
    assert len(scene.send()) == 1


@pytest.mark.parametrize(("seconds", "answered"), [(0, 1), (9 * 60, 1), (11 * 60, 0)])
def test_only_a_text_younger_than_ten_minutes_is_answered(scene: Scene, seconds: int, answered: int) -> None:
    case = scene.tip()
    scene.later(seconds=seconds)

    assert len(scene.send()) == answered
    assert scene.states() == [JobState.DONE if answered else JobState.DROPPED]
    assert scene.events(case)[-1] == ("message:reply:sent" if answered else "message:reply:failed")
    assert scene.in_front_of("screener") == set()


@pytest.mark.parametrize(
    "unwanted",
    [
        {"reply_allowed": False},
        {"late": True},
        {"sender": None},
        {"channel": Channel.WEB, "provider": "web", "kind": "form"},
        *({"text": word} for word in ("STOP", " stop. ", "Unsubscribe", "ឈប់", "បញ្ឈប់។", "REVOKE", "end\n")),
    ],
)
def test_who_must_not_be_answered_is_not_answered(scene: Scene, unwanted: dict[str, Any]) -> None:
    scene.world.receive(a_tip(**unwanted))
    assert scene.send() == []
    assert scene.rows(outbox.ACKNOWLEDGE) == []


@pytest.mark.parametrize("wanted", [{"reply_allowed": True}, {"reply_allowed": None}, {"text": "Please stop them."}])
def test_who_may_be_answered_is_answered(scene: Scene, wanted: dict[str, Any]) -> None:
    """The control of the test above."""
    scene.world.receive(a_tip(**wanted))
    assert len(scene.send()) == 1


def test_who_wants_no_texts_gets_none(scene: Scene) -> None:
    scene.tip()
    contact = scene.contact()
    write(scene.world.sessions, lambda tx: setattr(tx.get(Contact, contact.id), "opted_out_at", NOW))

    assert scene.send() == []
    assert scene.states() == [JobState.DROPPED]


def answers_of_one_contact(scene: Scene, rng: random.Random, tips: int = 12) -> list[float]:
    """Let one number begin tip after tip while the provider is slow, and return the seconds between its answers."""
    sender, moments = a_number(), []

    def is_slow() -> None:
        scene.later(seconds=rng.uniform(0, 20))
        moments.append(scene.now)

    scene.carrier.begun = is_slow
    for _ in range(tips):
        scene.close(scene.tip(sender=sender))
        scene.later(seconds=rng.uniform(0, 25))
        scene.relay.send_due(OneByOne())
    for _ in range(60):
        scene.later(seconds=10)
        scene.relay.send_due(OneByOne())
    return [(b - a).total_seconds() for a, b in pairwise(moments)]


def test_nobody_is_texted_twice_within_a_minute(scene: Scene) -> None:
    between = answers_of_one_contact(scene, random.Random(11))
    assert len(between) >= 5
    assert min(between) >= QUIET.total_seconds()


def test_without_the_quiet_minute_they_are(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(relay, "_quiet_after", lambda moment: moment - timedelta(days=1))
    assert min(answers_of_one_contact(scene, random.Random(11))) < QUIET.total_seconds()


def test_the_quiet_is_kept_to_the_minute_so_that_it_does_not_tell_when_somebody_wrote(scene: Scene) -> None:
    scene.tip()
    scene.send()
    quiet = scene.contact().quiet_until
    assert quiet is not None
    assert (quiet.second, quiet.microsecond) == (0, 0)
    assert QUIET <= quiet - NOW <= 2 * QUIET


# --- the words ---

# What a text on a phone that somebody else holds must not say: "report, child, police, hotline, help, abuse" and the
# project's name. The Khmer list is a draft that no native speaker has reviewed.
TELLING = re.compile(
    r"report|child|kid|girl|boy|police|hotline|help|abuse|bamboo|tip\b|case|secret|danger|safe|urgent|https?:|www|\d"
    r"|រាយការណ៍|ប្តឹង|កុមារ|ក្មេង|កូន|ប៉ូលីស|នគរបាល|ជំនួយ|ជួយ|រំលោភ|ឫស្សី|ឬស្សី|សម្ងាត់|គ្រោះថ្នាក់|ករណី|បន្ទាន់",
    re.IGNORECASE,
)
LONGEST = 67  # UTF-16 units of one part of a Khmer text (twilio.md section 5)


def units(words: str) -> int:
    """Return how many units a text takes when any letter of it is Khmer."""
    return len(words.encode("utf-16-le")) // 2


@pytest.mark.parametrize("language", sorted(ACKNOWLEDGEMENTS))
def test_every_answer_is_neutral_and_fits_one_part(language: str) -> None:
    words = ACKNOWLEDGEMENTS[language]
    assert units(words) <= LONGEST
    assert TELLING.search(words) is None
    assert not set(words) & {"\u200b", "\u200c", "\u200d", "\ufeff"}, "they cost a unit each"


def test_what_staff_are_told_says_nothing_either() -> None:
    words = RING_WORDS.format(time="23:59")
    assert units(words) <= LONGEST
    assert TELLING.search(RING_WORDS.replace("{time}", "")) is None


@pytest.mark.parametrize(
    "words", ["Your report was received.", "Call 1280", "យើងនឹងជួយអ្នក។", "The police know.", "Bamboo: thank you."]
)
def test_telling_words_are_noticed(words: str) -> None:
    """The negative control of the two tests above."""
    assert TELLING.search(words)


def test_everybody_is_answered_in_khmer_or_a_language_that_the_words_are_found_in() -> None:
    assert "km" in ACKNOWLEDGEMENTS
    assert all(re.fullmatch("[a-z]{2}", language) for language in ACKNOWLEDGEMENTS)
    assert len(set(ACKNOWLEDGEMENTS.values())) == len(ACKNOWLEDGEMENTS)


def words_of_answer(scene: Scene, words: str) -> str:
    """Return what the sender of `words` is answered."""
    sender = a_number()
    scene.world.receive(a_tip(words, sender=sender))
    while scene.relay.send_due(OneByOne()):
        pass
    [answer] = scene.got(sender)
    return answer


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("កខគមនុស្ស់ាិ្ក ផ្ទះ {}%s$\\\n0123456789")), max_size=80
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("{row.key} {0} %s ${text}")
@example("A girl of 12 at the guesthouse by the river. Message received.")
@given(words=TEXTS.filter(lambda words: not asks_for_silence(words)))
def test_an_answer_never_contains_a_word_of_the_tip(scene: Scene, words: str) -> None:
    """It is one of ten texts that stand in the code, whatever was written."""
    assert words_of_answer(scene, words) in ACKNOWLEDGEMENTS.values()


def test_an_answer_that_quotes_is_noticed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    real = Relay._tipster
    monkeypatch.setattr(
        Relay, "_tipster", lambda self, tx, row: (real(self, tx, row)[0], f"{THANKS} {row.language} {row.key[:8]}")
    )
    assert words_of_answer(scene, "A girl of 12.") not in ACKNOWLEDGEMENTS.values()


# --- what can go wrong ---


def test_what_was_not_sent_is_tried_again_later_and_later(scene: Scene) -> None:
    scene.carrier.away = True
    scene.tip(LOCKED_IN, sender=None)  # a page to two numbers, and nobody to answer
    scene.climb()
    pauses: dict[str, list[float]] = {}
    while JobState.WAITING in scene.states(outbox.RING):
        scene.send()
        for row in scene.rows(outbox.RING):
            if row.state == JobState.WAITING:
                pauses.setdefault(row.key, []).append((row.not_before - scene.now).total_seconds())
        scene.now = max(scene.now, *(row.not_before for row in scene.rows(outbox.RING)))

    assert scene.states(outbox.RING) == [JobState.FAILED] * 2
    assert scene.now - NOW > timedelta(minutes=50), "it was tried for as long as it was worth it"
    for tried in pauses.values():
        for attempt, pause in enumerate(tried):
            usual = min(300, 2**attempt)
            assert usual <= pause <= 1.25 * usual
        assert tried[-1] >= 300
    first, second = pauses.values()
    assert first != second, "without jitter all come back at the same moment"


def test_the_provider_is_asked_again_no_sooner_than_it_says(scene: Scene) -> None:
    scene.tip()
    scene.provider.fail("messages.create", "429", after=40)
    scene.send()

    row = scene.row()
    assert row.state == JobState.WAITING
    assert 40 <= (row.not_before - NOW).total_seconds() <= 50
    scene.later(seconds=39)
    assert scene.send() == []
    scene.later(seconds=12)
    assert len(scene.send()) == 1
    assert scene.states() == [JobState.DONE]


@pytest.mark.parametrize("how", ["429", "401"])
def test_an_answer_that_is_never_taken_is_dropped_and_a_page_stands_before_a_person(scene: Scene, how: str) -> None:
    scene.provider.fail("messages.create", how, times=None)
    case = scene.tip(LOCKED_IN)
    scene.climb()
    for _ in range(200):
        scene.later(seconds=20)
        scene.send()

    assert scene.states(outbox.ACKNOWLEDGE) == [JobState.DROPPED]
    assert scene.states(outbox.RING) == [JobState.FAILED] * 2
    assert scene.carrier.texts() == []
    assert scene.in_front_of("screener") == {case.id}
    assert "message:reply:failed" in scene.events(case)


def test_a_contact_is_not_quiet_because_of_what_was_not_sent(scene: Scene) -> None:
    scene.tip()
    scene.provider.fail("messages.create", "429")
    scene.send()
    assert scene.contact().quiet_until is None


def test_who_has_opted_out_at_the_provider_is_not_written_to_again(scene: Scene) -> None:
    sender = "+85500000001"
    scene.provider.outcomes[sender] = "blocked at create"
    case = scene.tip(sender=sender)
    scene.send()

    assert scene.states() == [JobState.DROPPED]
    assert scene.row().code == 21610
    assert scene.contact().opted_out_at == NOW
    assert scene.events(case)[-1] == "message:reply:failed"
    assert scene.in_front_of("screener") == set(), "it is their wish, and nothing went wrong"
    scene.provider.outcomes.clear()
    scene.close(case)
    scene.later(minutes=5)
    scene.follow_up("Please look again.", sender)
    assert scene.send() == []


def test_what_the_provider_refuses_stands_before_a_person_and_is_not_sent_again(scene: Scene) -> None:
    case = scene.tip()
    scene.provider.fail("messages.create", "21211")
    scene.send()

    assert (scene.row().state, scene.row().code) == (JobState.FAILED, 21211)
    assert scene.contact().opted_out_at is None
    assert scene.in_front_of("screener") == {case.id}
    scene.later(minutes=5)
    assert scene.send() == []


WAYS = ["500 before", "500 after", "silent before", "silent after", "hang up before", "hang up after", "garbled after"]


@pytest.mark.parametrize("how", WAYS)
def test_what_may_have_been_sent_is_looked_for_and_never_sent_again(scene: Scene, how: str) -> None:
    case = scene.tip(sender="+85500000001")
    scene.provider.fail("messages.create", how)
    assert len(scene.send()) == 1
    assert scene.states() == [JobState.CHECKING]
    assert scene.look(rounds=45, seconds=15) == 1

    was_sent = how.endswith("after")
    row = scene.row()
    assert row.state == (JobState.DONE if was_sent else JobState.UNKNOWN)
    assert (row.sid is not None) == was_sent
    assert scene.got("+85500000001") == ([THANKS] if was_sent else [])
    assert scene.events(case)[-1] == ("message:reply:sent" if was_sent else "message:reply:failed")
    assert scene.in_front_of("screener") == (set() if was_sent else {case.id})
    assert len(scene.carrier.sent) == 1


def test_it_is_looked_for_as_long_as_ten_minutes(scene: Scene) -> None:
    scene.tip()
    scene.provider.fail("messages.create", "silent before")
    scene.send()

    assert scene.look(rounds=39, seconds=15) == 0
    assert scene.states() == [JobState.CHECKING]
    assert scene.look(rounds=2, seconds=15) == 1
    assert scene.states() == [JobState.UNKNOWN]


def test_a_list_that_cannot_be_had_for_a_while_ends_nothing(scene: Scene) -> None:
    scene.tip()
    scene.provider.fail("messages.create", "silent after")
    scene.send()
    scene.provider.fail("messages.list", "500 before", times=20)

    assert scene.look(rounds=20, seconds=15) == 0
    assert scene.look(rounds=1, seconds=15) == 1
    assert scene.states() == [JobState.DONE]


def test_of_two_equal_texts_only_as_many_are_done_as_were_sent(scene: Scene) -> None:
    """Two pages to one number in one minute have the same words; one copy at the provider is one text."""
    scene.duty = {"screening": ("+85500000201",)}
    scene.tip(LOCKED_IN, sender=None)
    scene.climb()
    scene.provider.fail("messages.create", "silent after")
    scene.send()
    scene.tip(LOCKED_IN, sender=None)
    scene.climb()
    scene.provider.fail("messages.create", "silent before")
    scene.send()
    assert len({words for _, words in scene.carrier.sent}) == 1
    scene.look(rounds=45, seconds=15)

    assert scene.states(outbox.RING) == [JobState.DONE, JobState.UNKNOWN]
    assert len(scene.carrier.texts()) == 1


class Killed(BaseException):
    """The end of a process, as far as its own code can tell."""


@pytest.mark.parametrize("after", [False, True])
def test_a_worker_that_dies_while_sending_leaves_a_text_that_is_never_sent_again(scene: Scene, after: bool) -> None:
    scene.tip(sender="+85500000001")
    real = scene.carrier.send

    def dies(to: str, words: str) -> str:
        if after:
            real(to, words)
        raise Killed

    scene.carrier.send = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scene.send()
    scene.carrier.send = real  # type: ignore[method-assign]
    assert scene.states() == [JobState.SENDING]

    assert scene.look(rounds=5, seconds=15) == 0
    assert scene.states() == [JobState.SENDING], "it may still be at it"
    scene.look(rounds=60, seconds=15)
    assert scene.states() == [JobState.DONE if after else JobState.UNKNOWN]
    assert scene.send() == []
    assert scene.got("+85500000001") == ([THANKS] if after else [])


def test_what_another_took_back_while_it_waited_for_its_turn_is_not_sent(scene: Scene) -> None:
    for _ in range(4):
        scene.tip()

    def is_slow() -> None:
        scene.later(seconds=35)
        scene.relay.look_for_unclear()  # another worker, that finds leases to be over

    scene.carrier.begun = is_slow
    scene.relay.send_due(OneByOne())
    assert scene.states() == [JobState.DONE] * 3 + [JobState.WAITING]
    scene.carrier.begun = lambda: None
    scene.send()
    assert scene.states() == [JobState.DONE] * 4
    assert max(Counter(to for to, _ in scene.carrier.sent).values()) == 1


def test_nobody_is_texted_a_minute_after_a_text_whose_sender_died(scene: Scene) -> None:
    real = scene.carrier.send

    def dies(to: str, words: str) -> str:
        real(to, words)
        raise Killed

    scene.carrier.send = dies  # type: ignore[method-assign]
    scene.close(scene.tip(sender="+85500000001"))
    with pytest.raises(Killed):
        scene.send()
    scene.carrier.send = real  # type: ignore[method-assign]
    scene.follow_up("Please look again.", "+85500000001")
    for _ in range(14):
        assert scene.send() == []
        scene.later(seconds=10)
    scene.later(minutes=2)
    assert len(scene.send()) == 1


def test_a_worker_that_dies_before_it_begins_loses_nothing(scene: Scene) -> None:
    """Of what it had taken, only what it was sending is unknown; the rest is sent by another."""
    scene.duty = {"screening": ("+85500000201",)}
    for _ in range(6):
        scene.tip(LOCKED_IN)
    scene.climb()
    real = scene.carrier.send

    def dies(to: str, words: str) -> str:
        raise Killed

    scene.carrier.send = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        scene.send()
    scene.carrier.send = real  # type: ignore[method-assign]
    scene.look(rounds=7, seconds=15)
    assert scene.states(outbox.RING) == [JobState.CHECKING] * 6, "one text, which was begun"
    assert scene.states(outbox.ACKNOWLEDGE) == [JobState.WAITING] * 6
    scene.later(minutes=2)
    scene.send()
    assert scene.states(outbox.ACKNOWLEDGE) == [JobState.DONE] * 6


def test_a_worker_that_wakes_up_late_does_not_send_what_another_has_sent(scene: Scene) -> None:
    scene.tip()
    [errand] = write(scene.world.sessions, partial(scene.relay._take, now=scene.now))[2]
    asleep = replace(scene.relay, now=lambda: NOW)  # its clock stood still with it
    scene.look(rounds=10, seconds=15)
    scene.later(minutes=2)
    assert len(scene.send()) == 1

    asleep._send(errand, stopping=lambda: False)
    asleep._send(errand, stopping=lambda: True)
    assert scene.states() == [JobState.DONE]
    assert len(scene.carrier.sent) == 1


def test_a_worker_that_is_to_stop_begins_nothing_more(scene: Scene) -> None:
    for _ in range(5):
        scene.tip()
    scene.relay.send_due(OneByOne(), stopping=lambda: len(scene.carrier.sent) >= 2)
    assert scene.states() == [JobState.DONE] * 2 + [JobState.WAITING] * 3


def test_an_outcome_that_cannot_be_written_costs_no_other_text(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        scene.tip()
    real, failing = relay.write, [StorageUnavailable("gone for a moment")]

    def stumbles(sessions: Sessions, use_case: Any) -> Any:
        if failing and use_case.func.__name__ == "_sent":
            raise failing.pop()
        return real(sessions, use_case)

    monkeypatch.setattr(relay, "write", stumbles)
    with everything_logged() as log:
        scene.send()

    assert scene.states() == [JobState.DONE] * 3 + [JobState.SENDING]
    assert "outcome_not_written" in log.getvalue()
    scene.look(rounds=10, seconds=15)
    assert scene.states() == [JobState.DONE] * 4
    assert len(scene.carrier.texts()) == 4


def test_people_on_duty_are_told_before_a_flood_is_answered(scene: Scene) -> None:
    for _ in range(3 * relay.BATCH):
        scene.tip()
    scene.later(seconds=10)
    scene.tip(LOCKED_IN)
    scene.climb()
    scene.relay.send_due(OneByOne())
    assert sorted(to for to, _ in scene.carrier.sent[:2]) == sorted(DUTY["screening"])


# --- ten minutes in which everything goes wrong (threats.md R10) ---


def ten_bad_minutes(scene: Scene, rng: random.Random, jobs: int) -> None:
    """Send `jobs` answers and the pages of some while the provider fails at random, then until all is settled."""
    ways = ["429", *WAYS]

    def goes_wrong() -> None:
        scene.provider.recover()
        scene.carrier.away = rng.random() < 0.1
        if rng.random() < 0.6:
            way = rng.choice(ways)
            scene.provider.fail("*", way, after=rng.choice([None, 2, 20]) if way == "429" else None)

    scene.carrier.begun = goes_wrong
    for second in range(600):
        scene.now = NOW + timedelta(seconds=second)
        if second % 2 == 0 and second // 2 < jobs:
            scene.tip(LOCKED_IN if second % 20 == 0 else "Please look at the guesthouse.")
        scene.climb()
        scene.relay.send_due(OneByOne())
        if second % 5 == 0:
            scene.relay.look_for_unclear()
    scene.carrier.begun, scene.carrier.away = lambda: None, False
    scene.provider.recover()
    for _ in range(60):
        scene.later(seconds=15)
        scene.relay.send_due(OneByOne())
        scene.relay.look_for_unclear()


def number_of(scene: Scene, row: OutboxJob) -> str:
    """The tipster's number that a row is about."""
    with scene.world.sessions.read() as session:
        contact = session.get_one(Contact, row.contact)
    assert contact.key_sealed
    assert contact.number_sealed
    return open_contact(scene.world.founding.relay_private, 1, contact.id, contact.key_sealed, contact.number_sealed)


def test_in_ten_bad_minutes_each_text_is_sent_once_or_nobody_knows(scene: Scene) -> None:
    scene.duty = {"screening": ("+85500000201",)}
    ten_bad_minutes(scene, random.Random(5), jobs=120)

    rows = scene.rows(outbox.ACKNOWLEDGE)
    outcomes = Counter(row.state for row in rows)
    assert set(outcomes) <= {JobState.DONE, JobState.UNKNOWN, JobState.DROPPED}
    assert len(rows) == 120
    assert outcomes[JobState.DONE] > 60
    assert outcomes[JobState.UNKNOWN] > 10
    texts = Counter(message.to for message in scene.carrier.texts())
    senders = {number_of(scene, row): row for row in rows}
    assert [number for number in senders if texts[number] > 1] == []
    for number, row in senders.items():
        if row.state == JobState.DONE:
            assert texts[number] == 1
        if row.state == JobState.DROPPED:
            assert texts[number] == 0
    rings = scene.rows(outbox.RING)
    assert {row.state for row in rings} <= {JobState.DONE, JobState.UNKNOWN, JobState.FAILED}
    done, unknown = ([r for r in rings if r.state == s and not r.joined] for s in (JobState.DONE, JobState.UNKNOWN))
    assert len(done) <= texts["+85500000201"] <= len(done) + len(unknown)


def test_a_relay_that_sends_again_when_nobody_knows_doubles(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""

    def sends_again(self: Relay, tx: Tx, *, errand: relay.Errand, now: Any) -> None:
        self._try_again(tx, errand=errand, now=now, after=None)

    monkeypatch.setattr(Relay, "_unclear", sends_again)
    ten_bad_minutes(scene, random.Random(5), jobs=40)

    texts = Counter(message.to for message in scene.carrier.texts())
    doubled = [row for row in scene.rows(outbox.ACKNOWLEDGE) if texts[number_of(scene, row)] > 1]
    assert len(doubled) > 5


# --- what the provider says later ---


def told(scene: Scene, sid: str, status: str, code: int | None = None) -> None:
    """Let the provider tell a status, as the public process keeps it."""
    name = boxes.provider_name(scene.world.founding.row_key, sid)
    rows = [{"sid": name, "status": status, "code": code, "at": scene.now}]
    write(scene.world.sessions, lambda tx: outbox.report(tx, rows))


def a_sent_text(scene: Scene, words: str = "Please look at the guesthouse.") -> tuple[Any, str]:
    """Return the case of a tip that was answered, and the provider's id of the answer."""
    case = scene.tip(words)
    before = {message.sid for message in scene.carrier.texts()}
    scene.send()
    return case, next(m.sid for m in scene.carrier.texts() if m.sid not in before)


def job_of(scene: Scene, case: Any) -> OutboxJob:
    [row] = scene.rows(outbox.ACKNOWLEDGE, case)
    return row


@pytest.mark.parametrize("taking", ["each at once", "all at the end"])
def test_statuses_come_in_any_order_and_twice_and_never_go_back(scene: Scene, taking: str) -> None:
    for order in permutations(["queued", "sent", "delivered"]):
        case, sid = a_sent_text(scene)
        for status in (*order, *order):
            told(scene, sid, status)
            if taking == "each at once":
                scene.relay.take_reports()
        scene.relay.take_reports()
        row = job_of(scene, case)
        assert (row.state, row.report) == (JobState.DONE, "delivered"), order
    with scene.world.sessions.read() as session:
        assert session.scalars(select(ProviderReport)).all() == []


def test_a_status_is_kept_once(scene: Scene) -> None:
    for _ in range(3):
        told(scene, "SM" + "0" * 32, "sent")
    told(scene, "SM" + "0" * 32, "delivered")
    with scene.world.sessions.read() as session:
        assert len(session.scalars(select(ProviderReport)).all()) == 2


@pytest.mark.parametrize("status", ["undelivered", "failed", "canceled"])
def test_what_did_not_arrive_stands_before_a_person(scene: Scene, status: str) -> None:
    case, sid = a_sent_text(scene)
    for one in ("sent", status, "sent", "delivered"):
        told(scene, sid, one, 30003 if one == status else None)
        scene.relay.take_reports()

    row = job_of(scene, case)
    assert (row.state, row.report, row.code) == (JobState.FAILED, status, 30003)
    assert scene.in_front_of("screener") == {case.id}
    assert scene.events(case).count("message:reply:failed") == 1


def test_a_delivered_text_is_not_lost_by_what_comes_late(scene: Scene) -> None:
    case, sid = a_sent_text(scene)
    for status in ("delivered", "undelivered", "failed"):
        told(scene, sid, status)
        scene.relay.take_reports()
    assert job_of(scene, case).state == JobState.DONE


def test_a_reader_who_turns_out_to_want_no_texts_has_opted_out(scene: Scene) -> None:
    case, sid = a_sent_text(scene)
    told(scene, sid, "failed", 21610)
    scene.relay.take_reports()

    assert job_of(scene, case).state == JobState.DROPPED
    assert scene.contact().opted_out_at == scene.now
    assert scene.in_front_of("screener") == set()


def test_a_status_that_comes_before_its_text_is_known_waits_for_it(scene: Scene) -> None:
    case = scene.tip()
    scene.provider.fail("messages.create", "silent after")
    scene.send()
    [message] = scene.carrier.texts()
    told(scene, message.sid, "delivered")
    assert scene.relay.take_reports() == 0

    scene.look(rounds=1, seconds=15)
    assert scene.relay.take_reports() == 1
    row = job_of(scene, case)
    assert (row.state, row.report) == (JobState.DONE, "delivered")


def test_a_status_of_a_strangers_text_is_forgotten_after_ten_minutes(scene: Scene) -> None:
    told(scene, "SM" + "0" * 32, "sent")
    scene.later(minutes=9, seconds=59)
    assert scene.relay.take_reports() == 0
    scene.later(seconds=1)
    assert scene.relay.take_reports() == 1


def test_many_statuses_of_strangers_keep_no_other_waiting(scene: Scene) -> None:
    for n in range(10 * relay.BATCH + 1):
        told(scene, f"SM{n:032x}", "sent")
    scene.later(seconds=1)
    case, sid = a_sent_text(scene)
    told(scene, sid, "undelivered")
    scene.relay.take_reports()
    assert job_of(scene, case).state == JobState.FAILED


def test_of_statuses_taken_at_once_the_furthest_stays(scene: Scene) -> None:
    sent = [a_sent_text(scene) for _ in range(8)]
    for _, sid in sent:
        for status in ("queued", "sending", "sent", "delivered"):
            told(scene, sid, status)

    at_once(*[scene.relay.take_reports] * 4)

    assert [job_of(scene, case).report for case, _ in sent] == ["delivered"] * 8


def test_pages_that_went_in_one_text_are_lost_with_it(scene: Scene) -> None:
    scene.duty = {"screening": ("+85500000201",)}
    cases = [scene.tip(LOCKED_IN, sender=None) for _ in range(3)]
    scene.rung()
    [message] = scene.carrier.texts()
    assert scene.states(outbox.RING) == [JobState.DONE] * 3
    told(scene, message.sid, "undelivered", 30003)
    scene.relay.take_reports()

    assert scene.states(outbox.RING) == [JobState.FAILED] * 3
    assert scene.in_front_of("screener") == {case.id for case in cases}


# --- rows that were not written by us ---


def plant(scene: Scene, what: str) -> None:
    """Change one thing of the waiting answer, or of the waiting page, as the database's administrator could."""
    other = scene.tip("Another account.", reply_allowed=False)
    with scene.world.sessions.read() as session:
        other_contact = session.scalars(select(Contact.id).where(Contact.tip.is_not(None))).all()  # type: ignore[union-attr]
    row = next(row for row in scene.rows() if row.kind == (outbox.RING if what == "duty" else outbox.ACKNOWLEDGE))
    changed: dict[str, dict[str, Any]] = {
        "key": {"key": row.key + "x"},
        "case": {"case": other.id},
        "contact": {"contact": next(c for c in other_contact if c != row.contact)},
        "duty": {"duty": "oversight#0"},
        "end": {"expires_at": row.expires_at + timedelta(hours=1)},
    }
    scene.change(row.id, **changed[what])


@pytest.mark.parametrize("what", ["key", "case", "contact", "duty", "end"])
def test_a_row_that_was_changed_sends_nothing(scene: Scene, what: str) -> None:
    a_case_with_answer_and_page(scene)
    plant(scene, what)
    with everything_logged() as log:
        sent = scene.send()

    kind = outbox.RING if what == "duty" else outbox.ACKNOWLEDGE
    assert [to for to, _ in sent] == ([] if what == "duty" else ["+85500000201"]) + (
        ["+85500000001"] if what == "duty" else []
    )
    assert scene.states(kind) == [JobState.FAILED]
    assert "outbox_row_is_not_ours" in log.getvalue()


@pytest.mark.parametrize("what", ["key", "case", "contact", "duty", "end"])
def test_without_the_row_tag_it_does(scene: Scene, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    a_case_with_answer_and_page(scene)
    plant(scene, what)
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)
    assert len(scene.send()) == 2


def a_case_with_answer_and_page(scene: Scene) -> None:
    scene.duty = {"screening": ("+85500000201",), "oversight": ("+85500000204",)}
    scene.tip(LOCKED_IN, sender="+85500000001")
    scene.climb()


def test_an_old_row_cannot_be_made_to_wait_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could would have a text sent at a moment of his choice, and see whose phone it comes to."""

    def arm_again() -> None:
        [row] = scene.rows(outbox.ACKNOWLEDGE)
        later = scene.now + timedelta(minutes=10)
        scene.change(row.id, state=JobState.WAITING, not_before=scene.now, expires_at=later, sid=None)

    scene.tip(sender="+85500000001")
    assert len(scene.send()) == 1
    scene.later(days=3)
    arm_again()
    assert scene.send() == []
    assert scene.states() == [JobState.FAILED]

    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)  # the negative control
    arm_again()
    assert len(scene.send()) == 1


def swap_contacts(scene: Scene) -> None:
    """Give the tipster's contact another's number, under the other's key."""
    scene.tip("Another account.", sender="+85500000002", reply_allowed=False)
    with scene.world.sessions.read() as session:
        first, second = session.scalars(select(Contact)).all()
        waiting = session.scalars(select(OutboxJob.contact)).one()
    mine, other = (first, second) if first.id == waiting else (second, first)

    def swap(tx: Tx) -> None:
        target = tx.get_one(Contact, mine.id)
        target.key_sealed, target.number_sealed = other.key_sealed, other.number_sealed

    write(scene.world.sessions, swap)


def test_a_contact_that_was_swapped_gets_nothing(scene: Scene) -> None:
    scene.tip(sender="+85500000001")
    swap_contacts(scene)
    with everything_logged() as log:
        assert scene.send() == []
    assert scene.states() == [JobState.FAILED]
    assert "outbox_row_is_not_ours" in log.getvalue()


def test_a_swapped_contact_does_not_even_open_without_its_tag(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seal itself is bound to its contact: the tag is not the only thing in the way."""
    scene.tip(sender="+85500000001")
    swap_contacts(scene)
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)
    assert scene.send() == []


def test_a_contact_with_anothers_name_is_refused_by_its_tag_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.tip(sender="+85500000001")
    write(scene.world.sessions, lambda tx: tx.execute(text("UPDATE contact SET epoch = 9")))
    assert scene.send() == []

    row = scene.row()
    scene.change(row.id, state=JobState.WAITING)
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)  # the negative control
    assert len(scene.send()) == 1


def test_a_broken_case_keeps_no_other_text_waiting(scene: Scene) -> None:
    """An event that cannot be appended to one case must not stop the relay."""
    broken = scene.tip()
    scene.later(minutes=11)  # its answer is too late, which is an event
    break_chain(scene, broken)
    good = scene.tip()

    for _ in range(3):
        scene.relay.send_due(OneByOne())
        scene.relay.look_for_unclear()
        scene.later(seconds=1)

    assert job_of(scene, good).state == JobState.DONE
    assert job_of(scene, broken).state != JobState.DONE


def break_chain(scene: Scene, case: Any) -> None:
    """Leave a case to which no event can be appended any more: its row and its chain disagree."""
    drop = (
        "DROP TRIGGER case_file_needs_event_update"
        if scene.world.sessions.dialect == "sqlite"
        else "ALTER TABLE case_file DISABLE TRIGGER USER"
    )
    on = None if scene.world.sessions.dialect == "sqlite" else "ALTER TABLE case_file ENABLE TRIGGER USER"
    id_ = case.id.hex if scene.world.sessions.dialect == "sqlite" else case.id

    def spoil(tx: Tx) -> None:
        tx.execute(text(drop))
        tx.execute(text("UPDATE case_file SET version = version + 1000 WHERE id = :c"), {"c": id_})
        if on:
            tx.execute(text(on))

    write(scene.world.sessions, spoil)


# --- nothing leaks ---


def test_no_number_word_or_key_reaches_a_log_or_a_repr(scene: Scene) -> None:
    sender = "+85500000001"
    scene.world.receive(a_tip("Canary words of an account. " + LOCKED_IN, sender=sender))
    faults = iter([RuntimeError(f"{sender} and words"), NotSent(f"no route to {sender}"), ValueError(THANKS)])
    real = scene.carrier.send

    def stumbles(to: str, words: str) -> str:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return real(to, words)

    scene.carrier.send = stumbles  # type: ignore[method-assign]
    with everything_logged() as log:
        scene.climb()
        for _ in range(50):
            scene.relay.send_due(OneByOne())
            scene.relay.look_for_unclear()
            scene.relay.take_reports()
            scene.copies().clear(scene.now)
            scene.later(seconds=20)
        scene.climb()
        plant_a_row(scene)
        scene.send()

    scene.tip(sender="+85500000002")
    [errand] = write(scene.world.sessions, partial(scene.relay._take, now=scene.now))[2]
    assert errand.to == "+85500000002"
    for event in ("carrier_failed", "page_not_sent", "outbox_row_is_not_ours"):
        assert event in log.getvalue()
    for shown in (log.getvalue(), repr(scene.relay), repr(scene.watch), repr(errand), repr(scene.copies())):
        assert leaks(scene, shown) == []


def plant_a_row(scene: Scene) -> None:
    row = scene.rows(outbox.ACKNOWLEDGE)[0]
    scene.change(row.id, state=JobState.WAITING, key="x", expires_at=scene.now + timedelta(hours=1))


def leaks(scene: Scene, shown: str) -> list[str]:
    """Return what of numbers, words and keys stands in `shown`."""
    founding = scene.world.founding
    secrets = [founding.row_key, founding.relay_private, founding.phone_pepper]
    forms = [form for secret in secrets for form in (secret.hex(), repr(secret)[2:-1])]
    words = ["+8550", "855000", "Canary", "received", "queue", "Thank"]
    return [word for word in [*forms, *words] if word in shown]


def test_a_leak_is_noticed(scene: Scene) -> None:
    """The negative control of the test above."""
    for shown in (repr(scene.duty), THANKS, repr(scene.world.founding.row_key), scene.world.founding.row_key.hex()):
        assert leaks(scene, shown)


# --- several at once ---


def test_two_workers_at_once_send_each_text_once(scene: Scene) -> None:
    for n in range(30):
        scene.tip(sender=f"+855000001{n:02d}")
    relays = [scene.relay, scene.relay, scene.relay]

    def work(one: Relay) -> None:
        with ThreadPoolExecutor(4) as pool:
            while one.send_due(pool):
                pass

    at_once(*[lambda one=one: work(one) for one in relays])  # type: ignore[misc]

    assert scene.states() == [JobState.DONE] * 30
    assert Counter(to for to, _ in scene.carrier.sent) == Counter({f"+855000001{n:02d}": 1 for n in range(30)})


def test_two_answers_to_one_number_are_not_sent_by_two_workers_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    senders = [f"+855000002{n:02d}" for n in range(10)]
    for sender in senders:
        scene.close(scene.tip(sender=sender))
        scene.follow_up("Please look again.", sender)
    monkeypatch.setattr(relay, "BATCH", 3)  # so that both rows of a number are taken by different workers

    def work() -> None:
        for _ in range(8):
            scene.relay.send_due(OneByOne())

    at_once(*[work] * 4)
    assert Counter(to for to, _ in scene.carrier.sent) == Counter(senders)
    assert scene.states() == [JobState.DONE] * 10 + [JobState.WAITING] * 10


# --- two transactions at once, on PostgreSQL; SQLite has one writer at a time ---


@contextmanager
def held_open(scene: Scene, work: Callable[[Tx], Any]) -> Iterator[None]:
    """Do `work` in a transaction that is committed only at the end of the context."""
    if scene.world.sessions.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with scene.world.sessions.writing.connect() as connection, connection.begin(), Tx(bind=connection) as tx:
        work(tx)
        tx.flush()
        yield


def somebody_waits(scene: Scene) -> bool:
    """Return whether a transaction waits for another within a second."""
    for _ in range(100):
        with scene.world.sessions.writing.connect() as connection:
            if connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar():
                return True
        time.sleep(0.01)
    return False


def test_while_one_begins_an_answer_another_does_not_begin_a_second(scene: Scene) -> None:
    sender = "+85500000001"
    scene.close(scene.tip(sender=sender))
    scene.follow_up("Please look again.", sender)
    first, second = write(scene.world.sessions, partial(scene.relay._take, now=scene.now))[2]
    begin = partial(scene.relay._begin, now=scene.now)
    with held_open(scene, partial(begin, errand=first)):
        assert write(scene.world.sessions, partial(begin, errand=second)) is None
    assert scene.states() == [JobState.SENDING, JobState.WAITING]


def test_of_two_statuses_at_once_the_later_sees_what_the_earlier_said(scene: Scene) -> None:
    case, sid = a_sent_text(scene)
    name = boxes.provider_name(scene.world.founding.row_key, sid)
    told(scene, sid, "delivered")
    told(scene, sid, "sent")
    take = partial(scene.relay._take_report, sid=name, now=scene.now)
    with ThreadPoolExecutor(1) as pool:
        with held_open(scene, partial(take, status="delivered")):
            behind = pool.submit(write, scene.world.sessions, partial(take, status="sent"))
            assert somebody_waits(scene)
        assert behind.result() is True
    assert job_of(scene, case).report == "delivered"
