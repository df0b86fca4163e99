"""Who is told of a case, and who next when nobody claims it: each step once, whoever takes it and however late."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlmodel import col

from commands.worker import SteadyTime
from service import cases, clocks, ladder, outbox
from service.clocks import RUNNING, Step
from service.db import Sessions, Tx, open_database, write
from service.errors import CaseMoved, Conflict
from service.models import Case, Clock, ClockKind, JobState, OutboxJob
from service.vault import boxes
from tests.builders import NOW, World, a_world
from tests.service.sending import DUTY, Scene, at_once, everything_logged
from tests.service.test_cases import LEASES, claim, hand_on
from tests.service.test_clocks import P2
from tests.service.test_intake import LOCKED_IN, POLICE
from tests.service.test_relay import break_chain

MINUTE = NOW.replace(second=0)
WALLED = f"{LOCKED_IN} {POLICE}"
UNIT, SUPERVISOR = list(DUTY["screening"]), list(DUTY["screening/supervisor"])
OVERSIGHT, SECOND = list(DUTY["oversight"]), list(DUTY["oversight-2"])
STEPS = ["clock:deadline:escalated"] * 3 + ["clock:deadline:lapsed"] + ["clock:deadline:escalated"] * 2


class ClaimScene(Scene):
    """The ladder of claiming alone: deadlines to act, which have the same steps, tell nobody here."""

    def tip(self, words: str = "Please look at the guesthouse.", **changed: Any) -> Case:
        case = super().tip(words, **changed)
        quiet = (
            update(Clock).where(col(Clock.case) == case.id, col(Clock.kind) == "act").values(span=None, next_at=None)
        )
        write(self.world.sessions, lambda tx: tx.execute(quiet))
        return case


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return ClaimScene(a_world(sessions))


def rung_by_minute(scene: Scene, minutes: int, every: int = 1, since: datetime = MINUTE) -> dict[int, list[str]]:
    """Let so many minutes pass from the receipt on, and return who got a text in which."""
    rung: dict[int, list[str]] = {}
    for minute in range(0, minutes + 1, every):
        at = since + timedelta(minutes=minute, seconds=30)
        if at < scene.now:
            continue
        scene.now = at
        if told := scene.rung():
            rung[minute] = told
    return rung


def clock_events(scene: Scene, case: Case) -> list[str]:
    return [event for event in scene.events(case) if event.startswith("clock:")]


# --- the steps ---


def test_a_p1_that_nobody_claims_is_paged_for_three_times_and_climbs(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    assert rung_by_minute(scene, 180) == {
        0: UNIT,
        5: UNIT,
        10: UNIT,
        15: sorted(UNIT + SUPERVISOR),
        30: OVERSIGHT,
        45: sorted(OVERSIGHT + SECOND),
    }
    assert clock_events(scene, case) == STEPS
    assert set(scene.states(outbox.RING)) == {JobState.DONE}
    assert scene.states(outbox.PAGE) == [JobState.DONE]


@pytest.mark.parametrize(("words", "hours"), [(P2, 1), ("Please look there.", 24), ("Thank you for your help.", 72)])
def test_the_others_climb_from_their_deadline_on(scene: Scene, words: str, hours: int) -> None:
    case = scene.tip(words)
    assert rung_by_minute(scene, 60 * hours * 4, every=30) == {
        60 * hours: sorted(UNIT + SUPERVISOR),
        120 * hours: OVERSIGHT,
        180 * hours: sorted(OVERSIGHT + SECOND),
    }
    assert clock_events(scene, case) == STEPS[3:]


def test_a_worker_that_was_away_makes_up_for_all_of_it_once(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    scene.later(hours=5)
    assert scene.rung() == sorted(UNIT + SUPERVISOR + OVERSIGHT + SECOND), "one text to each, whatever was missed"
    assert scene.rung() == []
    assert clock_events(scene, case) == STEPS


def test_who_reads_the_words_learns_nothing_but_the_time(scene: Scene) -> None:
    scene.tip(LOCKED_IN)
    scene.rung()
    words = {words for to, words in scene.carrier.sent if to in UNIT}
    assert words == {"សូមបើកបញ្ជី។ Please open the queue. 14:21"}


def test_a_case_that_was_handed_on_rings_its_new_unit(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    scene.rung()
    hand_on(scene.world, case)
    scene.later(minutes=6)
    assert scene.rung() == list(DUTY["siem-reap"])


def test_a_first_page_that_comes_after_the_claim_asks_for_nothing(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    claim(scene.world, case, at=scene.now)
    assert scene.rung() == []
    assert scene.states(outbox.PAGE) == [JobState.DROPPED]


def test_while_somebody_holds_a_case_nobody_is_told(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    scene.rung()
    claim(scene.world, case, at=scene.now)
    assert rung_by_minute(scene, 60) == {}


def test_a_claim_that_is_not_followed_up_goes_on_with_the_ladder_where_it_is(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    scene.rung()
    scene.later(minutes=6)
    assert scene.rung() == list(DUTY["siem-reap"])
    claim(scene.world, case, at=scene.now)
    scene.later(minutes=16)  # P1's lease
    cases.lapse_leases(scene.world.sessions, scene.world.ledger, scene.now)

    assert scene.rung() == list(DUTY["siem-reap"]), "the lapse; the reminder at ten minutes is not made up for"
    later = rung_by_minute(scene, 120)
    assert sorted(later.values()) == [OVERSIGHT, sorted(OVERSIGHT + SECOND)]
    claimed, *_ = [place for place, e in enumerate(scene.events(case)) if e == "case:owner:claimed"]
    assert clock_events(scene, case).count("clock:deadline:lapsed") == 1
    assert "clock:deadline:lapsed" in scene.events(case)[claimed:]


def test_claiming_and_dropping_again_and_again_repeats_no_step_and_skips_none(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    told: list[str] = []
    for _ in range(6):
        told += scene.rung()
        claim(scene.world, case, at=scene.now)
        scene.later(minutes=16)
        cases.lapse_leases(scene.world.sessions, scene.world.ledger, scene.now)
    told += scene.rung()
    assert Counter(told) == Counter([*DUTY["siem-reap"] * 2, *OVERSIGHT * 2, *SECOND])
    assert clock_events(scene, case).count("clock:deadline:lapsed") == 1


# --- a rise in level ---


def test_a_rise_before_the_deadline_pages_at_once_and_then_like_any_p1(scene: Scene) -> None:
    case = scene.tip(P2, sender="+85500000001")
    scene.now = MINUTE + timedelta(minutes=20, seconds=5)
    scene.follow_up(LOCKED_IN, "+85500000001")
    assert rung_by_minute(scene, 120) == {
        20: UNIT,
        25: UNIT,
        30: UNIT,
        35: sorted(UNIT + SUPERVISOR),
        50: OVERSIGHT,
        65: sorted(OVERSIGHT + SECOND),
    }
    assert clock_events(scene, case) == STEPS


def test_a_rise_after_the_lapse_pages_at_once_and_climbs_faster_without_repeating_it(scene: Scene) -> None:
    case = scene.tip(P2, sender="+85500000001")
    assert rung_by_minute(scene, 62) == {60: sorted(UNIT + SUPERVISOR)}
    scene.now = MINUTE + timedelta(minutes=63, seconds=5)
    scene.follow_up(LOCKED_IN, "+85500000001")
    assert rung_by_minute(scene, 240) == {63: UNIT, 75: OVERSIGHT, 90: sorted(OVERSIGHT + SECOND)}
    assert clock_events(scene, case).count("clock:deadline:lapsed") == 1


def test_a_rise_late_in_the_ladder_climbs_at_once(scene: Scene) -> None:
    scene.tip(P2, sender="+85500000001")
    rung_by_minute(scene, 80)
    scene.now = MINUTE + timedelta(minutes=100, seconds=5)
    scene.follow_up(LOCKED_IN, "+85500000001")
    assert rung_by_minute(scene, 240) == {100: sorted(UNIT + OVERSIGHT + SECOND)}


# --- nobody on duty ---


@pytest.mark.parametrize(
    ("duty", "told"),
    [
        (("screening/supervisor", "oversight"), SUPERVISOR),
        (("oversight", "oversight-2"), OVERSIGHT),
        (("oversight-2",), SECOND),
    ],
)
def test_where_nobody_is_on_duty_the_next_are_told(scene: Scene, duty: tuple[str, ...], told: list[str]) -> None:
    scene.duty = {post: DUTY[post] for post in duty} | {"screening": ()}
    scene.tip(LOCKED_IN)
    assert scene.rung() == told


def test_where_nobody_is_on_duty_at_all_each_step_stands_before_a_person(scene: Scene) -> None:
    scene.duty = {}
    case = scene.tip(LOCKED_IN)
    with everything_logged() as log:
        assert rung_by_minute(scene, 60, every=5) == {}
    assert scene.states(outbox.RING) == [JobState.FAILED] * 6
    assert clock_events(scene, case) == STEPS
    assert scene.in_front_of("screener") == {case.id}
    assert "nobody_on_duty" in log.getvalue()


# --- once, whoever takes it ---


def rounds_at_once(scene: Scene) -> None:
    """Let four workers answer pages and climb at once, until nothing is due."""

    def work() -> int:
        sessions, watch = scene.world.sessions, scene.watch
        return ladder.answer_pages(sessions, watch, scene.now) + ladder.climb(sessions, watch, scene.now)

    while sum(at_once(*[work] * 4)):
        pass


def test_four_workers_at_once_take_each_step_once(scene: Scene) -> None:
    told = [scene.tip(LOCKED_IN) for _ in range(5)]
    for minute in (0, 5, 10, 15, 30, 45, 200):
        scene.now = MINUTE + timedelta(minutes=minute, seconds=30)
        rounds_at_once(scene)
    assert [clock_events(scene, case) for case in told] == [STEPS] * 5
    for case in told:
        assert len(scene.rows(outbox.RING, case)) == 2 + 2 + 2 + 3 + 1 + 2


def test_without_the_look_at_the_step_it_is_taken_more_than_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control. Two things keep a step single, the clock's row and the key of what it sends: without
    both, workers that have read the same list double it.
    """
    case = scene.tip(LOCKED_IN)
    clock = scene.clock(case)
    write(scene.world.sessions, lambda tx: setattr(tx.get(Clock, clock.id), "step", Step.LAPSED))
    scene.later(minutes=20)

    def careless(tx: Tx, *, watch: Any, clock_id: Any, step: int, now: Any) -> bool:
        row = tx.get_one(Clock, clock_id)
        row.step, row.next_at = step + 1, None
        tx.flush()
        ladder._tell(tx, watch, tx.get_one(Case, row.case), boxes.random_bytes(4).hex(), step, now)
        return True

    step = partial(careless, watch=scene.watch, clock_id=clock.id, step=Step.LAPSED, now=scene.now)
    for _ in range(2):  # both had found it due
        write(scene.world.sessions, step)
    assert clock_events(scene, case).count("clock:deadline:lapsed") == 2


def test_a_step_that_two_have_found_due_is_taken_by_one(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    clock = scene.clock(case)
    scene.later(minutes=6)
    step = partial(ladder._step, watch=scene.watch, clock_id=clock.id, step=Step.REMINDED, now=scene.now)
    assert [write(scene.world.sessions, step) for _ in range(2)] == [True, False]
    assert len(clock_events(scene, case)) == 1


def test_a_step_is_not_taken_once_somebody_has_met_its_clock(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    scene.later(minutes=6)
    clock = scene.clock(case)
    claim(scene.world, case, at=scene.now)
    step = partial(ladder._step, watch=scene.watch, clock_id=clock.id, step=Step.REMINDED, now=scene.now)
    assert write(scene.world.sessions, step) is False
    assert clock_events(scene, case) == []


def test_a_step_that_was_brought_forward_meanwhile_is_counted_from_the_new_deadline(scene: Scene) -> None:
    """Whoever found the old step due must not write the one after it in the old, longer spans."""
    case = scene.tip(P2, sender="+85500000001")
    scene.now = MINUTE + timedelta(minutes=60, seconds=30)
    clock = scene.clock(case)
    scene.follow_up(LOCKED_IN, "+85500000001")
    step = partial(ladder._step, watch=scene.watch, clock_id=clock.id, step=Step.LAPSED, now=scene.now)
    assert write(scene.world.sessions, step)
    assert scene.clock(case).next_at == MINUTE + timedelta(minutes=75)


def test_a_rise_in_the_middle_of_a_step_is_not_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the clock and the case of a step a message comes that raises the case: it has to wait."""
    if scene.world.sessions.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    case = scene.tip(P2, sender="+85500000001")
    scene.now = MINUTE + timedelta(minutes=60, seconds=30)
    real, rising = Tx.get, [threading.Thread(target=scene.follow_up, args=(LOCKED_IN, "+85500000001"))]
    threads = list(rising)

    def get(self: Tx, entity: Any, *args: Any, **more: Any) -> Any:
        if entity is Case and rising:
            rising.pop().start()
            threads[0].join(0.5)
        return real(self, entity, *args, **more)

    monkeypatch.setattr(Tx, "get", get)
    step = partial(ladder._step, watch=scene.watch, clock_id=scene.clock(case).id, step=Step.LAPSED, now=scene.now)
    assert write(scene.world.sessions, step)
    threads[0].join()
    clock = scene.clock(case)
    assert (clock.step, clock.next_at) == (Step.OVERSIGHT, MINUTE + timedelta(minutes=75))
    assert clock_events(scene, case).count("clock:deadline:lapsed") == 1


def test_a_restart_between_any_two_steps_changes_nothing(scene: Scene, database_url: str) -> None:
    case = scene.tip(LOCKED_IN)
    for minute in range(0, 50, 5):
        scene.now = MINUTE + timedelta(minutes=minute, seconds=30)
        scene.rung()
        scene.world.sessions.close()
        scene.world.sessions = open_database(database_url)
    assert clock_events(scene, case) == STEPS
    assert len(scene.carrier.sent) == 1 + 2 + 2 + 2 + 3 + 1 + 2, "and the answer to the tipster"


def test_a_step_that_dies_before_its_commit_is_taken_again_whole(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    case = scene.tip(LOCKED_IN)
    scene.rung()
    scene.later(minutes=6)
    real = ladder.change

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "change", dies)
    with pytest.raises(KeyboardInterrupt):
        scene.climb()
    monkeypatch.setattr(ladder, "change", real)
    assert scene.rung() == UNIT
    assert len(clock_events(scene, case)) == 2


# --- clocks that jump (threats.md T-51) ---


class Host:
    """A host's two clocks."""

    def __init__(self, wall: datetime) -> None:
        self.wall, self.steady = wall, 1000.0

    def passes(self, **span: float) -> None:
        self.wall += timedelta(**span)
        self.steady += timedelta(**span).total_seconds()


@pytest.mark.parametrize("jump", [timedelta(0), timedelta(days=3650), timedelta(days=-1), timedelta(minutes=4)])
def test_a_jump_of_the_hosts_clock_takes_no_step_early_twice_or_late(scene: Scene, jump: timedelta) -> None:
    case = scene.tip(LOCKED_IN)
    minutes = minutes_told(scene, jump, steady=True)
    expected = [0, 5, 10, 15, 30, 45]
    if jump == timedelta(minutes=4):  # a small correction is followed
        expected = [0, 5, 7, 11, 26, 41]
    assert minutes == expected
    assert clock_events(scene, case) == STEPS


def minutes_told(scene: Scene, jump: timedelta, *, steady: bool) -> list[int]:
    """Let an hour pass on a host whose clock jumps in the eighth minute; return the true minutes of each step."""
    host = Host(MINUTE + timedelta(seconds=20))
    now: Callable[[], datetime] = SteadyTime(wall=lambda: host.wall, monotonic=lambda: host.steady)
    if not steady:
        now = lambda: host.wall  # noqa: E731
    told = []
    for minute in range(60):
        if minute == 7:
            host.wall += jump
        scene.now = now()
        if scene.climb():
            told.append(minute)
        host.passes(minutes=1)
    return told


def test_a_worker_that_follows_its_host_takes_all_steps_at_once(scene: Scene) -> None:
    """The negative control of the test above."""
    scene.tip(LOCKED_IN)
    assert minutes_told(scene, timedelta(days=3650), steady=False) == [0, 5, 7]


# --- the wall ---


def told_phones(world: World, *, walled: bool) -> dict[str, list[tuple[int, str]]]:
    """Let two hours pass with cases of other units, and one behind the wall or not; return each phone's texts."""
    scene = ClaimScene(world)
    scene.tip(LOCKED_IN, sender="+85500000011")
    hand_on(world, scene.tip(LOCKED_IN, sender="+85500000013"))
    texts: dict[str, list[tuple[int, str]]] = {number: [] for numbers in DUTY.values() for number in numbers}
    for minute in range(120):
        scene.now = MINUTE + timedelta(minutes=minute, seconds=30)
        if minute == 3 and walled:  # no step of another case comes in the same minute and hides one of its
            scene.tip(WALLED, sender="+85500000012")
        if minute == 7:
            scene.tip(LOCKED_IN, sender="+85500000014")
        scene.climb()
        for to, words in scene.send():
            texts.setdefault(to, []).append((minute, words))
    return texts


EXCLUDED = [*UNIT, *SUPERVISOR, *DUTY["siem-reap"], *SECOND]


@pytest.fixture
def other_world(tmp_path: Any, sqlite_template: Any) -> World:
    """A second installation, for the world in which the case does not exist."""
    import shutil

    path = tmp_path / "other.db"
    shutil.copy(sqlite_template, path)
    return a_world(open_database(f"sqlite:///{path}"))


def test_for_the_excluded_phones_a_walled_case_does_not_exist(scene: Scene, other_world: World) -> None:
    """The same texts at the same minutes, with and without it; those who hold it are told."""
    with_it, without = told_phones(scene.world, walled=True), told_phones(other_world, walled=False)
    assert {phone: with_it[phone] for phone in EXCLUDED} == {phone: without[phone] for phone in EXCLUDED}
    assert all(without[phone] for phone in EXCLUDED), "they are told of other cases"
    assert len(with_it[DUTY["integrity"][0]]) == 4
    assert without[DUTY["integrity"][0]] == []


def test_a_ladder_that_forgets_the_wall_is_noticed(
    scene: Scene, other_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    real = ladder._posts

    def everybody(session: Any, watch: Any, case: Case, step: int) -> list[str]:
        every = ["oversight", "oversight-2"] if step == Step.EVERY_OVERSIGHT else None
        return every or real(session, watch, case, step)

    monkeypatch.setattr(ladder, "_posts", everybody)
    with_it, without = told_phones(scene.world, walled=True), told_phones(other_world, walled=False)
    assert {phone: with_it[phone] for phone in EXCLUDED} != {phone: without[phone] for phone in EXCLUDED}


def told_alone(scene: Scene, words: str) -> set[str]:
    """Return all phones on duty that are told in the course of one case that nobody claims."""
    scene.tip(words, sender=None)
    return {phone for told in rung_by_minute(scene, 200).values() for phone in told}


def test_nobody_without_a_seal_is_ever_told_of_a_walled_case(scene: Scene) -> None:
    assert told_alone(scene, WALLED) == {*DUTY["integrity"], *OVERSIGHT}


@pytest.mark.parametrize("duty", [("screening", "siem-reap", "oversight-2"), ("screening", "screening/supervisor")])
def test_a_walled_case_rings_nobody_else_even_when_its_people_are_not_on_duty(
    scene: Scene, duty: tuple[str, ...]
) -> None:
    scene.duty = {post: DUTY[post] for post in duty}
    assert told_alone(scene, WALLED) == set()
    assert set(scene.states(outbox.RING)) == {JobState.FAILED}


def test_a_case_that_goes_behind_the_wall_climbs_behind_it(scene: Scene) -> None:
    scene.tip(LOCKED_IN, sender="+85500000001")
    assert scene.rung() == UNIT
    scene.later(minutes=2)
    scene.follow_up(POLICE, "+85500000001")
    told = [phone for phones in rung_by_minute(scene, 90).values() for phone in phones]
    assert sorted(told) == sorted([*DUTY["integrity"] * 3, *OVERSIGHT * 2])


# --- many at once, and broken ones ---


def test_fifty_urgent_tips_at_once_are_one_text_to_each_phone(scene: Scene) -> None:
    told = [scene.tip(LOCKED_IN, sender=None) for _ in range(50)]
    assert scene.rung() == UNIT
    assert scene.states(outbox.RING) == [JobState.DONE] * 100
    assert {row.case for row in scene.rows(outbox.RING)} == {case.id for case in told}
    assert sum(row.sid is not None for row in scene.rows(outbox.RING)) == 2
    assert scene.rung() == []


def test_tips_one_after_the_other_are_a_text_each(scene: Scene) -> None:
    """The control of the test above: nothing but what waits at the same time goes in one text."""
    for _ in range(3):
        scene.tip(LOCKED_IN, sender=None)
        assert scene.rung() == UNIT
        scene.later(seconds=30)


def test_a_text_for_many_that_is_unclear_is_so_for_all_of_them(scene: Scene) -> None:
    scene.duty = {"screening": ("+85500000201",)}
    for _ in range(4):
        scene.tip(LOCKED_IN, sender=None)
    scene.climb()
    scene.provider.fail("messages.create", "silent before")
    scene.send()
    scene.look(rounds=50, seconds=15)
    assert scene.states(outbox.RING) == [JobState.UNKNOWN] * 4
    assert len(scene.carrier.sent) == 1


@pytest.mark.parametrize("how", ["429", "silent after"])
def test_a_text_for_many_that_comes_through_later_is_done_for_all_of_them(scene: Scene, how: str) -> None:
    scene.duty = {"screening": ("+85500000201",)}
    for _ in range(4):
        scene.tip(LOCKED_IN, sender=None)
    scene.climb()
    scene.provider.fail("messages.create", how)
    scene.send()
    for _ in range(4):
        scene.look(seconds=15)
        scene.send()
    assert scene.states(outbox.RING) == [JobState.DONE] * 4
    assert len(scene.carrier.texts()) == 1


def test_a_broken_case_keeps_nobody_from_being_told_of_the_others(scene: Scene) -> None:
    broken = scene.tip(LOCKED_IN, sender=None)
    break_chain(scene, broken)
    scene.now = MINUTE + timedelta(minutes=2)
    good = scene.tip(LOCKED_IN, sender=None)
    with everything_logged() as log:
        rung_by_minute(scene, 60)
    assert clock_events(scene, good) == STEPS
    assert clock_events(scene, broken) == []
    assert "step_failed" in log.getvalue()


def test_a_planted_page_tells_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scene.tip("Please look there.", sender=None)
    scene.tip(LOCKED_IN, sender=None)
    [page] = scene.rows(outbox.PAGE)
    scene.change(page.id, case=other.id)
    with everything_logged() as log:
        assert scene.rung() == []
    assert scene.states(outbox.PAGE) == [JobState.FAILED]
    assert "outbox_row_is_not_ours" in log.getvalue()

    scene.change(page.id, state=JobState.WAITING)
    monkeypatch.setattr(boxes, "check_row_tag", lambda *_: None)  # the negative control
    assert scene.rung() == UNIT


def test_no_row_of_a_step_is_there_without_its_event_and_none_without_its_rows(scene: Scene) -> None:
    """Both, or neither: threats.md T-43."""
    case = scene.tip(LOCKED_IN)
    write(scene.world.sessions, lambda tx: tx.execute(text("ALTER TABLE outbox RENAME TO gone")))
    scene.later(minutes=6)
    assert ladder.climb(scene.world.sessions, scene.watch, scene.now) == 0
    assert clock_events(scene, case) == []
    assert scene.clock(case).step == Step.REMINDED


# --- a claim and what comes in between ---


def claim_of_version(scene: Scene, case: Case, version: int) -> None:
    viewer = scene.world.signed_in("investigator", scene.now).viewer
    write(
        scene.world.sessions,
        lambda tx: cases.claim(tx, scene.world.ledger, viewer, case.id, version=version, leases=LEASES, now=scene.now),
    )


def shown(scene: Scene, case: Case) -> int:
    """The version of a case that a page shows now."""
    with scene.world.sessions.read() as session:
        return session.get_one(Case, case.id).version


def test_a_page_at_five_minutes_does_not_refuse_the_claim_at_five_minutes(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    version = shown(scene, case)
    scene.later(minutes=5)
    scene.rung()
    assert shown(scene, case) > version
    assert scene.events(case)[-1].startswith(("message:", "clock:"))

    claim_of_version(scene, case, version)
    assert shown(scene, case) > version


def test_a_message_in_between_refuses_it(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN, sender="+85500000001")
    hand_on(scene.world, case)
    version = shown(scene, case)
    scene.follow_up("They are still there.", "+85500000001")
    with pytest.raises(CaseMoved):
        claim_of_version(scene, case, version)


def test_anothers_act_in_between_refuses_it(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    version = shown(scene, case)
    claim(scene.world, case, "investigator-2", at=scene.now)
    scene.later(minutes=20)
    cases.lapse_leases(scene.world.sessions, scene.world.ledger, scene.now)
    with pytest.raises(CaseMoved):
        claim_of_version(scene, case, version)


def test_a_claim_and_a_step_at_once_both_come_about(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    scene.climb()
    scene.later(minutes=5)
    version = shown(scene, case)

    at_once(
        lambda: claim_of_version(scene, case, version),
        lambda: ladder.climb(scene.world.sessions, scene.watch, scene.now),
    )

    with scene.world.sessions.read() as session:
        assert session.get_one(Case, case.id).state == "claimed"
        assert session.scalars(select(Clock).where(RUNNING, Clock.kind == "claim")).all() == []
    assert scene.events(case).count("case:owner:claimed") == 1


# --- acting ---


def test_a_deadline_to_act_that_goes_by_is_a_stall_and_climbs(sessions: Sessions) -> None:
    scene = Scene(a_world(sessions))
    case = scene.tip(LOCKED_IN)
    hand_on(scene.world, case)
    claim(scene.world, case, at=scene.now)
    write(sessions, lambda tx: tx.execute(text("UPDATE clock SET due_at = '2027-03-10 07:21:00' WHERE kind = 'lease'")))
    unit = list(DUTY["siem-reap"])
    rung = rung_by_minute(scene, 180)
    assert rung == {60: unit, 75: OVERSIGHT, 90: sorted(OVERSIGHT + SECOND)}
    with sessions.read() as session:
        assert cases.overlays(session, case) == {"stall"}
    assert scene.events(case).count("case:overlay:set") == 1


def test_a_deadline_to_act_that_was_met_tells_nobody(sessions: Sessions) -> None:
    scene = Scene(a_world(sessions))
    case = scene.tip(P2)
    write(sessions, lambda tx: clocks.meet(tx, case, ClockKind.ACT, scene.now))
    write(sessions, lambda tx: clocks.meet(tx, case, ClockKind.CLAIM, scene.now))
    assert rung_by_minute(scene, 60 * 40, every=60) == {}
    with sessions.read() as session:
        assert cases.overlays(session, case) == frozenset()


# --- about no case ---


def test_every_oversight_phone_is_rung_about_no_case_and_once_for_an_occasion(scene: Scene) -> None:
    def ring(about: str) -> None:
        write(scene.world.sessions, lambda tx: ladder.ring_oversight(tx, scene.watch, about, scene.now))

    ring("ledger:verify:1")
    assert scene.rung() == sorted(OVERSIGHT + SECOND)
    with pytest.raises(Conflict):
        ring("ledger:verify:1")
    assert scene.rung() == []
    ring("ledger:verify:2")
    assert scene.rung() == sorted(OVERSIGHT + SECOND)


def test_oversight_without_a_phone_on_duty_is_counted_as_not_told(scene: Scene) -> None:
    scene.duty = {"screening": DUTY["screening"]}
    with everything_logged() as log:
        write(scene.world.sessions, lambda tx: ladder.ring_oversight(tx, scene.watch, "ledger:verify:1", scene.now))
    assert "nobody_on_duty" in log.getvalue()
    assert scene.rung() == []
    with scene.world.sessions.read() as session:
        assert session.scalars(select(OutboxJob.state)).all() == [JobState.FAILED]
