"""What the provider still holds: deleted when it is stored here, tried again, and said aloud when it stays."""

import json
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select

from service import copies, outbox
from service.copies import KEPT_AT_MOST, STRANGER
from service.db import Sessions, write
from service.errors import CarrierFault, NotSent
from service.ledger.events import fixed_chain
from service.models import JobState, LedgerField, ProviderReport, Sign
from tests.builders import a_number, a_tip, a_world
from tests.service.sending import OURS, OneByOne, Scene, at_once, everything_logged
from tests.service.test_events import stored
from tests.service.test_intake import LOCKED_IN

PHONE = "+85500000001"


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions, people={}))


def arrives(scene: Scene, words: str = "Please look there.", sender: str | None = None, *, stored: bool = True) -> str:
    """Let a text arrive at the provider and, unless told otherwise, here; return the provider's id."""
    message = scene.provider.arrives(sender=sender or a_number(), to=OURS, body=words)
    if stored:
        scene.world.receive(a_tip(words, sender=message.sender, delivery=message.sid, received_at=scene.now))
    return message.sid


def held(scene: Scene) -> set[str]:
    scene.provider.refresh()
    return set(scene.provider.messages)


def clear(scene: Scene, round_: Any = None) -> int:
    """Let a new worker, or a known one, clear once."""
    return (round_ or scene.copies()).clear(scene.now)


# --- only what is stored ---


def test_what_is_stored_here_is_deleted_there(scene: Scene) -> None:
    arrives(scene)
    scene.send()
    scene.later(seconds=5)  # the answer is delivered by then
    assert len(held(scene)) == 2

    assert clear(scene) == 2
    assert held(scene) == set()


def test_what_is_not_stored_stays_as_the_second_chance(scene: Scene) -> None:
    known, strange = arrives(scene), arrives(scene, stored=False)
    clear(scene)
    assert held(scene) == {strange}
    assert known not in held(scene)
    for _ in range(13):
        scene.later(days=1)
        clear(scene)
    assert held(scene) == {strange}


def test_a_round_that_forgets_to_look_loses_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    arrives(scene, stored=False)
    monkeypatch.setattr(copies, "_stored", lambda _session, _provider, names: set(names))
    clear(scene)
    assert held(scene) == set()


def test_a_message_of_another_provider_with_the_same_id_is_not_ours(scene: Scene) -> None:
    strange = arrives(scene, stored=False)
    scene.world.receive(a_tip(provider="gateway", delivery=strange, received_at=scene.now))
    clear(scene)
    assert held(scene) == {strange}


def test_a_text_of_ours_without_a_row_stays_for_half_an_hour(scene: Scene) -> None:
    """It may be one of which nobody knows yet whether it was sent: deleted, it could not be found."""
    arrives(scene)
    scene.provider.fail("messages.create", "silent after")
    scene.send()
    scene.later(seconds=5)
    clear(scene)
    [text_] = held(scene)
    scene.later(seconds=STRANGER.total_seconds() - 5)
    clear(scene)
    assert held(scene) == {text_}
    scene.later(seconds=60)
    assert clear(scene) == 1
    assert held(scene) == set()


def test_a_text_that_is_found_is_deleted_like_any_other(scene: Scene) -> None:
    scene.tip()
    scene.provider.fail("messages.create", "silent after")
    scene.send()
    scene.look(rounds=2, seconds=15)
    assert clear(scene) == 1
    assert scene.states() == [JobState.DONE]


# --- how it ended is kept first ---


def test_how_a_text_ended_is_kept_before_its_copy_goes(scene: Scene) -> None:
    """The provider's own call may never have come."""
    sender = a_number()
    scene.provider.outcomes[sender] = "undelivered"
    scene.tip(sender=sender)
    scene.send()
    scene.later(seconds=5)
    clear(scene)

    assert held(scene) == set()
    scene.relay.take_reports()
    assert (scene.row().state, scene.row().report, scene.row().code) == (JobState.FAILED, "undelivered", 30003)


def test_a_copy_whose_end_cannot_be_kept_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.tip()
    scene.send()
    scene.later(seconds=5)

    def fails(*_: Any, **__: Any) -> None:
        raise NotSent

    monkeypatch.setattr(outbox, "report", fails)
    with pytest.raises(CarrierFault):
        clear(scene)
    assert len(held(scene)) == 1


# --- again and again ---


def tries_of(scene: Scene) -> list[float]:
    """Note when deleting is tried, in seconds from now."""
    moments: list[float] = []
    real, began = scene.carrier.delete, scene.now

    def delete(copy: Any) -> bool:
        moments.append((scene.now - began).total_seconds())
        return real(copy)

    scene.carrier.delete = delete  # type: ignore[method-assign]
    return moments


def test_what_is_not_final_yet_is_tried_again_with_longer_and_longer_pauses(scene: Scene) -> None:
    arrives(scene)
    scene.provider.fail("messages.delete", "20009", times=6)
    moments, worker = tries_of(scene), scene.copies()
    for _ in range(200):
        clear(scene, worker)
        scene.later(minutes=1)

    pauses = [b - a for a, b in pairwise(moments)]
    assert pauses == [60, 120, 240, 480, 960, 1920]
    assert held(scene) == set()


def test_it_is_tried_for_a_fortnight_and_no_try_breaks_the_round(scene: Scene) -> None:
    stubborn = arrives(scene)
    moments, worker = tries_of(scene), scene.copies()
    scene.provider.fail("messages.delete", "20009", times=None)
    while scene.now - (began := scene.provider.messages[stubborn].created_at) < KEPT_AT_MOST:
        assert clear(scene, worker) == 0
        scene.later(hours=1)
    assert scene.now >= began + KEPT_AT_MOST
    assert len(moments) > 50
    assert max(b - a for a, b in pairwise(moments)) <= 7 * 3600
    scene.provider.recover()
    scene.provider.messages[stubborn].created_at = scene.now - timedelta(days=13)
    scene.later(hours=6)
    assert clear(scene, worker) == 1


@pytest.mark.parametrize("how", ["429", "500 before", "500 after", "silent before", "hang up after", "401"])
def test_a_provider_that_does_not_answer_is_not_asked_for_the_rest_of_the_round(scene: Scene, how: str) -> None:
    for _ in range(5):
        arrives(scene)
    scene.provider.fail("messages.delete", how, times=None)
    moments, worker = tries_of(scene), scene.copies()
    assert clear(scene, worker) == 0
    assert len(moments) == 1
    scene.provider.recover()
    scene.later(minutes=1)
    clear(scene, worker)
    scene.later(minutes=1)
    clear(scene, worker)
    assert held(scene) == set()


def test_one_that_is_refused_keeps_no_other(scene: Scene) -> None:
    for _ in range(5):
        arrives(scene)
    scene.provider.fail("messages.delete", "20001")
    assert clear(scene) == 4


def test_a_list_that_cannot_be_had_is_a_fault_of_this_round(scene: Scene) -> None:
    arrives(scene)
    scene.provider.fail("messages.list", "silent before")
    with pytest.raises(CarrierFault):
        clear(scene)
    scene.later(minutes=1)
    assert clear(scene) == 1


def test_a_worker_that_is_to_stop_deletes_nothing_more(scene: Scene) -> None:
    for _ in range(4):
        arrives(scene)
    moments = tries_of(scene)
    assert scene.copies().clear(scene.now, stopping=lambda: len(moments) >= 2) == 2


# --- one worker at a time ---


def test_of_several_workers_one_has_the_turn_each_minute(scene: Scene) -> None:
    write(scene.world.sessions, lambda tx: copies._turn(tx, now=scene.now - timedelta(minutes=1)))
    arrives(scene)
    moments = tries_of(scene)
    workers = [scene.copies() for _ in range(4)]
    deleted = at_once(*[lambda one=one: clear(scene, one) for one in workers])  # type: ignore[misc]
    assert sorted(deleted) == [0, 0, 0, 1]
    assert len(moments) == 1
    arrives(scene)
    scene.later(seconds=59)
    assert clear(scene) == 0
    scene.later(seconds=1)
    assert clear(scene) == 1


def test_a_turn_in_the_future_stops_nobody(scene: Scene) -> None:
    """A host whose clock was wrong for a moment must not keep all others from deleting."""
    clear(scene)
    write(scene.world.sessions, lambda tx: setattr(tx.get(Sign, copies.TURN), "at", scene.now + timedelta(days=1)))
    arrives(scene)
    assert clear(scene) == 1


# --- what is said of it ---


def test_what_stays_for_more_than_ten_minutes_is_said(scene: Scene) -> None:
    arrives(scene)
    scene.provider.fail("messages.delete", "20009", times=None)
    worker = scene.copies()
    with everything_logged() as log:
        for _ in range(10):
            clear(scene, worker)
            scene.later(minutes=1)
    assert "provider_still_holds" not in log.getvalue()
    assert clear_sign(scene) is not None
    seen = clear_sign(scene)
    with everything_logged() as log:
        scene.later(minutes=1)
        clear(scene, worker)
    said = json.loads(log.getvalue().splitlines()[-1])
    assert (said["event"], said["count"]) == ("provider_still_holds", 1)
    assert clear_sign(scene) == seen, "and the time since all was clear grows"


def clear_sign(scene: Scene) -> Any:
    with scene.world.sessions.read() as session:
        return session.scalar(select(Sign.at).where(Sign.name == copies.CLEAR))


def test_the_event_tells_how_many_and_nothing_else(scene: Scene) -> None:
    for _ in range(3):
        arrives(scene, LOCKED_IN, PHONE)
    clear(scene)
    scene.later(minutes=1)
    clear(scene)

    chain = fixed_chain("provider")
    [event] = stored(scene.world.sessions, chain)
    assert event.type == "provider:copy:deleted"
    with scene.world.sessions.read() as session:
        fields = session.execute(select(LedgerField.name, LedgerField.value).where(LedgerField.eid == event.eid)).all()
    assert {name: bytes(value) for name, value in fields} == {"count": b"3", "who": b'"system"'}


def test_nothing_that_the_provider_calls_a_message_is_kept_or_logged(scene: Scene) -> None:
    sid = arrives(scene, LOCKED_IN, PHONE)
    scene.provider.fail("messages.delete", "20001")
    with everything_logged() as log:
        clear(scene)
    assert "copy_not_deleted" in log.getvalue()
    for secret in (sid, PHONE, "locked", scene.world.founding.row_key.hex()):
        assert secret not in log.getvalue()
        assert secret not in repr(scene.copies())


def test_the_reports_of_copies_that_stay_do_not_pile_up(scene: Scene) -> None:
    scene.tip()
    scene.send()
    scene.later(seconds=5)
    scene.provider.fail("messages.delete", "20009", times=None)
    worker = scene.copies()
    for _ in range(20):
        clear(scene, worker)
        scene.relay.take_reports()
        scene.later(minutes=1)
    with scene.world.sessions.read() as session:
        assert session.scalars(select(ProviderReport)).all() == []
    assert scene.row().state == JobState.DONE


def test_hundreds_of_texts_leave_an_empty_store(scene: Scene) -> None:
    """More than one chunk, and both directions."""
    scene.world.receive(*(a_tip(f"Text {n}.", sender=a_number(), delivery=f"SM{n:032x}") for n in range(120)))
    while scene.relay.send_due(OneByOne()):
        pass
    for n in range(120):
        message = scene.provider.arrives(sender=PHONE, to=OURS, body="x")
        scene.provider.messages[f"SM{n:032x}"] = scene.provider.messages.pop(message.sid)
        scene.provider.messages[f"SM{n:032x}"].sid = f"SM{n:032x}"
    scene.later(seconds=5)
    assert clear(scene) == 240
    assert held(scene) == set()
