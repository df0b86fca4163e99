"""Outbox rows: written once, taken by one, ended once, and what became of them shown to those who may see it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from service import outbox
from service.db import Sessions, Tx, open_database, write
from service.errors import CannotOpen, HeadMoved, NoSuchCase, NotFound, Repeated, StorageUnavailable
from service.models import Case, JobState, OutboxJob
from tests.builders import NOW, World, a_world
from tests.service.sending import Scene, at_once, everything_logged
from tests.service.test_cases import hand_on
from tests.service.test_intake import LOCKED_IN, POLICE

KEY = bytes(range(32))
FINAL = [JobState.DONE, JobState.DROPPED, JobState.FAILED, JobState.UNKNOWN]


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions, people={})


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions))


def a_job(about: str = "", kind: str = outbox.RING, **changed: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"language": "km", "now": NOW, "within": timedelta(minutes=10)}
    return outbox.job(KEY, kind, about or uuid4().hex, **(known | changed))


def add(world: World, *rows: dict[str, Any]) -> list[UUID]:
    write(world.sessions, lambda tx: tx.insert(OutboxJob, rows))
    return [row["id"] for row in rows]


def take(world: World, limit: int = 100, at: Any = NOW) -> list[UUID]:
    waiting = outbox.waiting(outbox.RING, at).limit(limit)
    return write(world.sessions, lambda tx: [row.id for row in outbox.take(tx, waiting, at)])


def state(world: World, job: UUID) -> str:
    with world.sessions.read() as session:
        return session.get_one(OutboxJob, job).state


def set_state(world: World, job: UUID, value: str) -> None:
    write(world.sessions, lambda tx: setattr(tx.get(OutboxJob, job), "state", value))


# --- written once, by us ---


def test_a_job_is_asked_for_once(world: World) -> None:
    add(world, a_job("the same"))
    with pytest.raises(Repeated):
        add(world, a_job("the same"))
    add(world, a_job("the same", kind=outbox.PAGE))


@pytest.mark.parametrize("kind", [outbox.ACKNOWLEDGE, outbox.RING, outbox.PAGE])
@pytest.mark.parametrize("column", ["id", "key", "kind", "case", "contact", "duty", "expires_at"])
def test_whatever_decides_what_is_sent_to_whom_is_under_the_tag(kind: str, column: str) -> None:
    row = a_job(kind=kind, case=uuid4(), contact=uuid4(), duty="screening#0")
    other = {
        "id": uuid4(),
        "key": "x",
        "kind": outbox.RING if kind != outbox.RING else outbox.PAGE,
        "case": uuid4(),
        "contact": uuid4(),
        "duty": "screening#1",
        "expires_at": row["expires_at"] + timedelta(seconds=1),
    }
    outbox.check_tag(KEY, OutboxJob(**row))
    changed = OutboxJob(**(row | {column: other[column]}))
    if (kind, column) == (outbox.PAGE, "expires_at"):  # it rings whoever is on duty; the tags of before have no end
        outbox.check_tag(KEY, changed)
        return
    with pytest.raises(CannotOpen):
        outbox.check_tag(KEY, changed)


def test_a_tag_of_another_key_is_no_tag() -> None:
    with pytest.raises(CannotOpen):
        outbox.check_tag(bytes(32), OutboxJob(**a_job()))


def test_how_far_a_row_is_changes_nothing_of_its_tag(world: World) -> None:
    """It is read back from either database as it was written."""
    [job] = add(world, a_job(now=NOW.replace(microsecond=987654)))
    take(world, at=NOW + timedelta(seconds=2))
    with world.sessions.read() as session:
        outbox.check_tag(KEY, session.get_one(OutboxJob, job))


# --- taken by one ---


def test_rows_are_taken_in_the_order_of_their_time_and_not_before_it(world: World) -> None:
    later, first, second = add(
        world, a_job(now=NOW + timedelta(minutes=5)), a_job(now=NOW - timedelta(minutes=5)), a_job()
    )
    assert take(world, limit=1) == [first]
    assert take(world) == [second]
    assert take(world) == []
    assert take(world, at=NOW + timedelta(minutes=5)) == [later]


def test_of_several_takers_at_once_each_row_goes_to_one(world: World) -> None:
    jobs = add(world, *(a_job() for _ in range(60)))

    def work() -> list[UUID]:
        mine: list[UUID] = []
        for _ in range(12):
            mine += take(world, limit=5)
        return mine

    taken = [job for some in at_once(*[work] * 4) for job in some]
    assert len(taken) == len(set(taken))
    taken += take(world)  # on PostgreSQL all but one may have come away empty-handed at some moment
    assert sorted(taken) == sorted(jobs)


def test_a_taker_does_not_wait_for_another(world: World) -> None:
    if world.sessions.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    first, second = add(world, a_job(), a_job(now=NOW + timedelta(seconds=1)))
    waiting = outbox.waiting(outbox.RING, NOW + timedelta(seconds=2)).limit(1)
    with world.sessions.writing.connect() as connection, connection.begin(), Tx(bind=connection) as tx:
        assert [row.id for row in outbox.take(tx, waiting, NOW)] == [first]
        assert take(world, limit=1, at=NOW + timedelta(seconds=2)) == [second]


# --- ended once ---

ENDINGS: dict[str, Callable[[Tx, UUID], object]] = {
    "put back": lambda tx, job: outbox.put_back(tx, [job], NOW),
    "looked for": lambda tx, job: outbox.look_for(tx, [job], NOW),
    "settled": lambda tx, job: outbox.settle(tx, [job], JobState.DONE, NOW, sid=b"x"),
    "begun": lambda tx, job: outbox.begin(tx, [job], NOW + outbox.LEASE, NOW),
    "given back": lambda tx, job: outbox.give_back(tx, [job], NOW + outbox.LEASE, NOW),
    "left": lambda tx, _: outbox.recover(tx, NOW + timedelta(days=1)),
}


@pytest.mark.parametrize("ending", list(ENDINGS))
@pytest.mark.parametrize("final", FINAL)
def test_what_has_ended_is_neither_sent_nor_looked_for_again(world: World, ending: str, final: str) -> None:
    [job] = add(world, a_job())
    take(world)
    set_state(world, job, final)
    write(world.sessions, lambda tx: ENDINGS[ending](tx, job))
    assert state(world, job) == final
    assert take(world, at=NOW + timedelta(minutes=1)) == []


@pytest.mark.parametrize(
    ("ending", "after"),
    [
        *(("put back", "waiting"), ("looked for", "checking"), ("settled", "done")),
        *(("begun", "sending"), ("given back", "waiting"), ("left", "waiting")),
    ],
)
def test_what_is_being_sent_ends_in_each_way(world: World, ending: str, after: str) -> None:
    """The control of the test above."""
    [job] = add(world, a_job())
    take(world)
    write(world.sessions, lambda tx: ENDINGS[ending](tx, job))
    assert state(world, job) == after


def test_of_two_who_settle_one_row_one_has_done_so(world: World) -> None:
    [job] = add(world, a_job())
    take(world)
    settle = [
        lambda sid=sid: write(world.sessions, lambda tx: outbox.settle(tx, [job], JobState.DONE, NOW, sid=sid))
        for sid in (b"one", b"two", b"three")
    ]
    assert sorted(at_once(*settle)) == [False, False, True]


def test_one_text_at_the_provider_stands_for_one_row(world: World) -> None:
    first, second = add(world, a_job(), a_job())
    take(world)
    write(world.sessions, lambda tx: outbox.settle(tx, [first], JobState.DONE, NOW, sid=b"one"))
    with pytest.raises(Repeated):
        write(world.sessions, lambda tx: outbox.settle(tx, [second], JobState.DONE, NOW, sid=b"one"))
    assert state(world, second) == JobState.SENDING


def begin(world: World, *jobs: UUID, until: Any = NOW + outbox.LEASE, at: Any = NOW) -> Any:
    return write(world.sessions, lambda tx: outbox.begin(tx, jobs, until, at))


@pytest.mark.parametrize(("begun", "after"), [(True, JobState.CHECKING), (False, JobState.WAITING)])
def test_what_was_begun_is_looked_for_and_what_was_not_waits_again(world: World, begun: bool, after: str) -> None:
    """As soon as the lease of whoever took it is over, and not before."""
    [job] = add(world, a_job())
    take(world)
    until = NOW + outbox.LEASE
    if begun:
        until = begin(world, job, at=NOW + timedelta(seconds=30))
        assert until == NOW + timedelta(seconds=30) + outbox.LEASE
    write(world.sessions, lambda tx: outbox.recover(tx, until))
    assert state(world, job) == JobState.SENDING
    write(world.sessions, lambda tx: outbox.recover(tx, until + timedelta(seconds=1)))
    assert state(world, job) == after


def test_what_somebody_else_has_taken_since_is_not_begun(world: World) -> None:
    """A worker that slept through its lease must not send what another is sending."""
    [job] = add(world, a_job())
    take(world)
    later = NOW + outbox.LEASE + timedelta(seconds=1)
    write(world.sessions, lambda tx: outbox.recover(tx, later))
    assert begin(world, job) is None, "its own clock says that there is time; the row is not its any more"
    assert take(world, at=later) == [job]
    assert begin(world, job) is None
    write(world.sessions, lambda tx: outbox.give_back(tx, [job], NOW + outbox.LEASE, later))
    assert state(world, job) == JobState.SENDING, "and it gives nothing back that is another's"

    assert begin(world, job, until=later + outbox.LEASE, at=later) is not None


def test_what_is_begun_is_begun_once_and_whole(world: World) -> None:
    jobs = add(world, *(a_job() for _ in range(3)))
    take(world)
    assert begin(world, jobs[0])
    assert begin(world, jobs[0]) is None
    with pytest.raises(HeadMoved):
        begin(world, *jobs)
    assert begin(world, *jobs[1:]), "nothing of it was begun"


# --- each by itself ---


def test_a_step_that_fails_stops_no_other(world: World) -> None:
    jobs = add(world, *(a_job() for _ in range(3)))
    take(world)

    def settle(tx: Tx, job: UUID, good: bool) -> bool:
        outbox.settle(tx, [job], JobState.DONE, NOW)
        if not good:
            tx.execute(text("SELECT no_such_column FROM outbox"))
        return good

    with everything_logged() as log:
        steps = [lambda tx, j=job, g=job != jobs[1]: settle(tx, j, g) for job in jobs]
        assert outbox.each(world.sessions, steps) == 2
    assert [state(world, job) for job in jobs] == ["done", "sending", "done"]
    assert "step_failed" in log.getvalue()
    assert "no_such_column" not in log.getvalue()


def test_steps_end_when_the_database_is_away_or_somebody_says_so(world: World) -> None:
    tried: list[int] = []

    def step(tx: Tx, number: int) -> bool:
        tried.append(number)
        return True

    steps = [lambda tx, n=n: step(tx, n) for n in range(5)]
    assert outbox.each(world.sessions, steps, stopping=lambda: len(tried) >= 2) == 2

    away = open_database("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StorageUnavailable):
        outbox.each(away, steps)
    assert tried == [0, 1]


# --- what the staff see ---


def lost_text(scene: Scene, case: Case, value: str = JobState.UNKNOWN) -> UUID:
    """Let the answer to a case's tip be lost."""
    [row] = scene.rows(outbox.ACKNOWLEDGE, case)
    scene.change(row.id, state=value, done_at=scene.now)
    return row.id


def see(scene: Scene, name: str, case: UUID, job: UUID) -> None:
    viewer = scene.world.signed_in(name).viewer
    write(scene.world.sessions, lambda tx: outbox.see(tx, scene.world.ledger, viewer, case, job, scene.now))


@pytest.mark.parametrize("value", outbox.NEEDS_A_PERSON)
def test_what_needs_a_person_stands_there_until_one_has_seen_it(scene: Scene, value: str) -> None:
    case = scene.tip()
    job = lost_text(scene, case, value)
    assert scene.in_front_of("screener") == {case.id}

    see(scene, "screener", case.id, job)
    see(scene, "screener-2", case.id, job)

    assert scene.in_front_of("screener") == scene.in_front_of("screener-2") == set()
    assert scene.row().seen_by == scene.world.people["screener"][0].id
    assert scene.events(case).count("message:reply:seen") == 1


@pytest.mark.parametrize("value", [state for state in JobState if state not in outbox.NEEDS_A_PERSON])
def test_what_needs_nobody_stands_before_nobody(scene: Scene, value: str) -> None:
    case = scene.tip()
    job = lost_text(scene, case, value)
    assert scene.in_front_of("screener") == set()
    with pytest.raises(NotFound):
        see(scene, "screener", case.id, job)


@pytest.mark.parametrize("name", ["investigator", "elsewhere", "integrity", "admin"])
def test_a_text_of_a_case_that_does_not_exist_for_somebody_does_not_either(scene: Scene, name: str) -> None:
    case = scene.tip()
    job = lost_text(scene, case)
    assert scene.in_front_of(name) == set()
    for case_id, job_id in ((case.id, job), (uuid4(), job), (case.id, uuid4())):
        with pytest.raises(NoSuchCase):
            see(scene, name, case_id, job_id)
    assert scene.row().seen_by is None


def test_a_text_is_seen_through_its_own_case_alone(scene: Scene) -> None:
    """Whoever may see one case must not reach a text of another by its id."""
    mine, walled = scene.tip(), scene.tip(POLICE)
    job = lost_text(scene, walled)
    assert scene.in_front_of("screener") == set()
    assert scene.in_front_of("integrity") == {walled.id}
    with pytest.raises(NotFound):
        see(scene, "screener", mine.id, job)
    see(scene, "integrity", walled.id, job)


def test_behind_the_wall_a_lost_text_goes_with_its_case(scene: Scene) -> None:
    case = scene.tip(LOCKED_IN)
    lost_text(scene, case)
    assert scene.in_front_of("screener") == {case.id}
    hand_on(scene.world, case, answer="yes")
    assert scene.in_front_of("screener") == set()
    assert scene.in_front_of("integrity") == {case.id}


def test_the_texts_of_a_case_are_its_answers_and_pages_in_order(scene: Scene) -> None:
    case, _ = scene.tip(LOCKED_IN), scene.tip(LOCKED_IN)
    scene.rung()
    with scene.world.sessions.read() as session:
        viewer = scene.world.signed_in("screener").viewer
        kinds = [row.kind for row in outbox.texts_of(session, session.get_one(Case, case.id), viewer)]
        assert session.scalars(select(OutboxJob.id)).all()
    assert kinds == [outbox.ACKNOWLEDGE, outbox.RING, outbox.RING]
