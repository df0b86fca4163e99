"""Claims, hand-on, walls, the queue, and opening a file."""

import threading
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update

from service import cases, exclusions, queue, reading, staff, walls
from service.config import Settings
from service.db import Sessions, Tx, write
from service.errors import (
    AlreadyClaimed,
    CaseMoved,
    Conflict,
    Forbidden,
    NoSuchCase,
    StorageUnavailable,
)
from service.exclusions import Wallkeeper
from service.ledger.events import SYSTEM, EventType, NewEvent, StateClass
from service.models import Case, CaseSeal, Channel, Clock, LedgerEvent, Level, State
from service.queue import QueueFilter
from tests.builders import NOW, PLENTY, World, a_number, a_tip, a_world, the_case
from tests.service.test_events import stored
from tests.service.test_intake import LOCKED_IN, POLICE

LEASES = Settings().leases


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions)


def new_case(world: World, words: str = LOCKED_IN, **changed: Any) -> Case:
    [receipt] = world.receive(a_tip(words, **({"sender": a_number()} | changed)))
    case: Case = the_case(world, receipt.tip)
    return case


def again(world: World, case: Case) -> Case:
    with world.sessions.read() as session:
        found = session.get(Case, case.id)
        assert found is not None
        return found


def opened(world: World, name: str, case: Case, reason: str = "screening") -> Any:
    """Open a case as a person does: the event first, then the words."""
    who = world.signed_in(name)
    found = reading.record_opening(
        world.sessions,
        world.ledger,
        world.founding.row_key,
        who.viewer,
        case.id,
        reason=reason,
        note="",
        allowance=PLENTY,
        now=NOW,
    )
    with world.sessions.read() as session:
        return staff.open_keys(session, world.founding.row_key, world.founding.cards, who, found)


def keeper(world: World) -> Wallkeeper:
    return Wallkeeper(world.ledger, world.founding.cards, world.founding.row_key)


def hand_on(world: World, case: Case, *, name: str = "screener", unit: str = "siem-reap", answer: str = "no") -> str:
    who = world.signed_in(name)
    keys = opened(world, name, case)
    version = again(world, case).version
    return write(
        world.sessions,
        lambda tx: exclusions.hand_on(
            tx, keeper(world), who.viewer, keys, unit=unit, answer=answer, version=version, now=NOW
        ),
    )


def claim(world: World, case: Case, name: str = "investigator", *, version: int | None = None, at: Any = NOW) -> None:
    viewer = world.signed_in(name, at).viewer
    expected = again(world, case).version if version is None else version
    write(
        world.sessions,
        lambda tx: cases.claim(tx, world.ledger, viewer, case.id, version=expected, leases=LEASES, now=at),
    )


def page(world: World, name: str, now: Any = NOW, **filters: str) -> list[queue.QueueRow]:
    with world.sessions.read() as session:
        rows, _ = queue.queue(session, world.signed_in(name).viewer, QueueFilter(**filters), now)
        return rows


# --- no change without an event ---


def test_a_case_row_changes_only_with_its_event(world: World) -> None:
    case = new_case(world)
    for values in ({"level": "P4"}, {"level": "P4", "version": case.version + 1}):
        with pytest.raises(StorageUnavailable):
            write(world.sessions, lambda tx, v=values: tx.execute(update(Case).values(**v)))
    assert again(world, case).level == "P1"

    def with_event(tx: Tx) -> None:
        event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.OPEN)
        cases.change(tx, world.ledger, tx.get(Case, case.id), [event], level="P2")

    write(world.sessions, with_event)
    assert again(world, case).level == "P2"
    assert stored(world.sessions, case.chain)[-1].seq == again(world, case).version


def test_without_its_guard_a_case_changes_silently(world: World) -> None:
    """The negative control: with the trigger gone the same statement goes through."""
    case = new_case(world)
    drop = (
        ["DROP TRIGGER case_file_needs_event_update", "DROP TRIGGER case_file_moves_on"]
        if world.sessions.dialect == "sqlite"
        else ["DROP TRIGGER case_file_needs_event ON case_file"]
    )
    for statement in drop:
        write(world.sessions, lambda tx, s=statement: tx.execute(text(s)))
    write(world.sessions, lambda tx: tx.execute(update(Case).values(level="P4")))
    assert again(world, case).level == "P4"


def test_a_case_is_never_deleted(world: World) -> None:
    new_case(world)
    with pytest.raises((Conflict, StorageUnavailable)):
        write(world.sessions, lambda tx: tx.execute(text("DELETE FROM case_file")))


CASE_TABLES = ("case_file", "case_key", "case_seal", "tip", "message", "decision", "clock")


def test_whatever_writes_a_case_table_appends_an_event_in_the_same_transaction(world: World) -> None:
    """Every use case there is, watched at the driver: no transaction touches a case's tables without an event."""
    seen = watch(world)

    case = new_case(world)
    world.receive(a_tip("More words."), a_tip("And more."), a_tip(POLICE))
    hand_on(world, case)
    claim(world, case)
    cases.lapse_leases(world.sessions, world.ledger, NOW + timedelta(days=1))
    hand_on(world, new_case(world), answer="unsure")

    transactions = [t for t in seen if t & set(CASE_TABLES)]
    assert len(transactions) >= 8
    assert [t for t in transactions if "ledger_event" not in t] == []


def test_the_watcher_sees_a_silent_write(world: World) -> None:
    """The negative control of the test above."""
    new_case(world)
    seen = watch(world)
    write(world.sessions, lambda tx: tx.execute(update(Clock).values(due_at=NOW + timedelta(days=9))))
    assert [t for t in seen if t & set(CASE_TABLES) and "ledger_event" not in t] == [{"clock"}]


def watch(world: World) -> list[set[str]]:
    """Collect the tables written by each transaction, from statements of SQLAlchemy and of `Tx.insert_all`."""
    import re

    from sqlalchemy import event

    import service.db as db

    transactions: list[set[str]] = []
    engine = world.sessions.writing
    pattern = re.compile(r'^\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+"?(\w+)', re.IGNORECASE)

    @event.listens_for(engine, "begin")
    def begin(_connection: Any) -> None:
        transactions.append(set())

    @event.listens_for(engine, "before_cursor_execute")
    def executed(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if found := pattern.match(statement):
            transactions[-1].add(found[1].lower())

    real = db.Tx.insert_all

    def inserted(self: Tx, batches: Any) -> None:
        batches = list(batches)
        transactions[-1].update(table.__tablename__ for table, rows in batches if rows)
        real(self, batches)

    world.sessions.writing.dispose()
    db.Tx.insert_all = inserted  # type: ignore[method-assign]
    _restore.append(lambda: setattr(db.Tx, "insert_all", real))
    return transactions


_restore: list[Any] = []


@pytest.fixture(autouse=True)
def restored() -> Any:
    yield
    while _restore:
        _restore.pop()()


# --- claims ---


def test_a_handed_on_case_is_claimed_and_read_by_its_investigator(world: World) -> None:
    case = new_case(world)
    assert hand_on(world, case) == "siem-reap"
    assert [row.id for row in page(world, "investigator")] == [case.id]
    claim(world, case)

    row = again(world, case)
    assert (row.state, row.owner) == ("claimed", world.people["investigator"][0].id)
    assert row.due_at == min(NOW + LEASES[0], NOW.replace(second=0) + timedelta(hours=1))
    keys = opened(world, "investigator", case, "owner")
    with world.sessions.read() as session:
        assert [a.text for a in reading.decrypt(session, row, keys.privates).accounts] == [LOCKED_IN]


def test_of_two_claims_at_once_one_wins(world: World) -> None:
    case = new_case(world)
    hand_on(world, case)
    version = again(world, case).version
    outcomes: list[Any] = []

    def take(name: str) -> None:
        try:
            claim(world, case, name, version=version)
            outcomes.append(name)
        except (AlreadyClaimed, CaseMoved) as fault:
            outcomes.append(type(fault))

    threads = [threading.Thread(target=take, args=(n,)) for n in ("investigator", "investigator-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len([o for o in outcomes if isinstance(o, str)]) == 1
    assert [e.type for e in stored(world.sessions, case.chain)].count("case:owner:claimed") == 1


def test_a_claim_that_is_not_followed_up_lapses_to_its_first_deadline(world: World) -> None:
    case = new_case(world)
    hand_on(world, case)
    claim(world, case)

    assert cases.lapse_leases(world.sessions, world.ledger, NOW + timedelta(minutes=14)) == 0
    assert cases.lapse_leases(world.sessions, world.ledger, NOW + timedelta(minutes=16)) == 1
    assert cases.lapse_leases(world.sessions, world.ledger, NOW + timedelta(minutes=16)) == 0

    row = again(world, case)
    assert (row.state, row.owner, row.due_at) == ("open", None, case.due_at)
    assert [e.type for e in stored(world.sessions, case.chain)].count("case:lease:lapsed") == 1
    claim(world, case, "investigator-2", at=NOW + timedelta(minutes=17))
    assert again(world, case).owner == world.people["investigator-2"][0].id


@pytest.mark.parametrize("name", ["screener", "elsewhere", "oversight", "integrity", "admin"])
def test_only_an_investigator_of_the_unit_claims(world: World, name: str) -> None:
    case = new_case(world)
    hand_on(world, case)
    with pytest.raises((Forbidden, NoSuchCase)):
        claim(world, case, name)
    assert again(world, case).state == "open"


def test_a_page_that_is_out_of_date_claims_nothing(world: World) -> None:
    case = new_case(world)
    hand_on(world, case)
    with pytest.raises(CaseMoved):
        claim(world, case, version=case.version)


# --- hand-on and walls ---


def test_a_case_is_handed_on_only_by_the_screener_who_read_it(world: World) -> None:
    case = new_case(world)
    keys = opened(world, "screener", case)
    other = world.signed_in("screener-2")
    version = again(world, case).version
    with pytest.raises(Forbidden, match="Open the account first"):
        write(
            world.sessions,
            lambda tx: exclusions.hand_on(
                tx, keeper(world), other.viewer, keys, unit="siem-reap", answer="no", version=version, now=NOW
            ),
        )
    for name in ("investigator", "oversight"):
        with pytest.raises((Forbidden, NoSuchCase)):
            hand_on(world, case, name=name)
    assert again(world, case).unit == "screening"


@pytest.mark.parametrize("unit", ["oversight", "integrity", "monitor", "screening", "nowhere"])
def test_a_case_is_handed_on_to_handling_units_only(world: World, unit: str) -> None:
    case = new_case(world)
    with pytest.raises(Forbidden):
        hand_on(world, case, unit=unit)


@pytest.mark.parametrize("answer", ["", "maybe", "NO"])
def test_the_question_must_be_answered(world: World, answer: str) -> None:
    case = new_case(world)
    with pytest.raises(Forbidden):
        hand_on(world, case, answer=answer)


@pytest.mark.parametrize("answer", ["yes", "unsure"])
def test_an_account_that_hints_at_the_unit_goes_to_integrity_and_is_gone_for_all_others(
    world: World, answer: str
) -> None:
    case = new_case(world)
    assert hand_on(world, case, answer=answer) == "integrity"

    for name in ("screener", "screener-2", "investigator", "elsewhere", "admin"):
        with world.sessions.read() as session, pytest.raises(NoSuchCase):
            cases.find(session, world.signed_in(name).viewer, case.id)
        assert page(world, name) == []
    assert [(r.walled, r.reasons, r.flags, r.province) for r in page(world, "integrity")] == [(True, (), (), None)]
    keys = opened(world, "integrity", case, "owner")
    with world.sessions.read() as session:
        file = reading.decrypt(session, again(world, case), keys.privates)
    assert [a.text for a in file.accounts] == [LOCKED_IN]
    assert "confinement" in file.facts["flags"]
    assert file.record["level"] == "P1"


@pytest.mark.parametrize("answer", ["yes", "unsure"])
def test_a_unit_that_the_screener_named_is_behind_the_wall_of_the_case_until_that_is_narrowed(
    world: World, answer: str
) -> None:
    case = new_case(world)
    hand_on(world, case, answer=answer)

    keys = opened(world, "integrity", case, "owner")
    assert keys.barred == {"siem-reap"}
    for unit in ("siem-reap", "kandal"):  # whatever seals them in later; the other unit is the control
        seal = cases.seal_row(world.founding.cards.unit(unit), case.id, 1, keys.privates[1])
        write(world.sessions, lambda tx, seal=seal: tx.insert(CaseSeal, [seal]))
    with world.sessions.read() as session:
        cases.find(session, world.signed_in("elsewhere").viewer, case.id)
        with pytest.raises(NoSuchCase):
            cases.find(session, world.signed_in("investigator").viewer, case.id)
    with world.sessions.read() as session:
        [row] = walls.walls_of(session, case.id)
        walls.check_wall(session, again(world, case))
    assert row.why == exclusions.NAMED[answer]
    with world.sessions.read() as session:
        told = select(LedgerEvent.type).where(LedgerEvent.case == case.chain).order_by(LedgerEvent.seq)
        types = session.scalars(told).all()
    assert [kind for kind in types if kind.startswith("case:wall:")] == ["case:wall:widened", "case:wall:raised"]


def test_an_exclusion_that_fails_leaves_no_wall_half_raised(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in one transaction: a unit that is walled out by the state alone could be sealed in later."""
    case = new_case(world)

    def fails(*_: object, **__: object) -> str:
        raise Forbidden("no")

    monkeypatch.setattr(exclusions, "wall", fails)
    with pytest.raises(Forbidden, match="no"):
        hand_on(world, case, answer="yes")
    with world.sessions.read() as session:
        assert walls.walls_of(session, case.id) == []
    assert not again(world, case).walled


def test_a_wall_drops_the_owner_and_keeps_the_clocks(world: World) -> None:
    [first] = world.receive(a_tip(LOCKED_IN))
    case = the_case(world, first.tip)
    hand_on(world, case)
    claim(world, case)
    world.receive(a_tip(POLICE))

    row = again(world, case)
    assert (row.unit, row.owner, row.state, row.due_at) == ("integrity", None, "open", case.due_at)
    with world.sessions.read() as session:
        assert set(session.scalars(select(CaseSeal.unit)).all()) == {"integrity", "oversight"}


# --- the queue ---


def test_the_queue_is_in_computed_order_and_pages_by_key(world: World) -> None:
    world.receive(
        *(
            a_tip(words, sender=a_number(), received_at=NOW - timedelta(minutes=n))
            for n in range(7)
            for words in (LOCKED_IN, "Thank you for your help.", "There is a child who begs at the market.")
        )
    )
    viewer = world.signed_in("screener").viewer
    seen: list[queue.QueueRow] = []
    after = None
    for _ in range(10):
        with world.sessions.read() as session:
            rows, after = queue.queue(session, viewer, QueueFilter(), NOW, after=after, size=4)
        seen += rows
        if after is None:
            break

    assert len(seen) == 21
    assert [row.key for row in seen] == sorted(row.key for row in seen)
    assert len({row.id for row in seen}) == 21
    assert seen[0].reasons[0][0].startswith("R")
    assert all(reason[1] and reason[2] for row in seen for reason in row.reasons)


def test_the_three_hot_flags_order_the_queue() -> None:
    flags = [("leaving_country",), ("young_child",), ("settlement_attempt",), ("child_self_report", "leaving_country")]
    assert [cases.flag_rank(f) for f in flags] == [6, 7, 3, 4]


def test_filters_and_counts_are_exact(world: World) -> None:
    world.receive(
        a_tip(LOCKED_IN, sender=a_number()),
        a_tip(LOCKED_IN, sender=a_number(), received_at=NOW - timedelta(hours=3)),
        a_tip("Thank you for your help.", sender=a_number(), channel=Channel.WEB),
    )
    case = page(world, "screener")[0]
    with world.sessions.read() as session:
        counts = queue.counts(session, world.signed_in("screener").viewer, NOW)
    assert (counts[Level.P1].all, counts[Level.P1].late, counts[Level.P1].unowned) == (2, 1, 2)
    assert counts[Level.P4].all == 1
    assert len(page(world, "screener", level="P1")) == 2
    assert [row.id for row in page(world, "screener", clock="late")] == [case.id]
    assert len(page(world, "screener", clock="hour")) == 2
    assert len(page(world, "screener", owner="none")) == 3
    assert page(world, "screener", owner="me") == []
    assert len(page(world, "screener", venue=str(case.venue))) == 2
    assert page(world, "screener", province="KH-25") == []
    assert page(world, "screener", flag="settlement_attempt") == []


def test_closed_cases_leave_the_queue(world: World) -> None:
    case = new_case(world)
    event = NewEvent(EventType.CLOCK_MET, NOW, SYSTEM, StateClass.CLOSED)
    write(
        world.sessions,
        lambda tx: cases.change(tx, world.ledger, tx.get(Case, case.id), [event], state=State.CLOSED),
    )
    assert page(world, "screener") == []


def test_nobody_sees_a_case_that_no_unit_of_theirs_holds(world: World) -> None:
    case = new_case(world)
    for name in ("investigator", "elsewhere", "integrity", "admin"):
        viewer = world.signed_in(name).viewer
        assert page(world, name) == []
        with world.sessions.read() as session:
            assert sum(c.all for c in queue.counts(session, viewer, NOW).values()) == 0
            for id_ in (case.id, uuid4()):
                with pytest.raises(NoSuchCase, match=r"^There is no such case\.$"):
                    cases.find(session, viewer, id_)


# --- opening ---


def test_opening_writes_who_and_why_before_the_words_are_shown(world: World) -> None:
    case = new_case(world)
    opened(world, "screener", case)
    with world.sessions.read() as session:
        newest = reading.history(session, again(world, case))[0]
    assert (newest.type, newest.who, newest.fields["reason"]) == ("content:file:opened", "Sok Dara", "screening")


def test_each_opening_is_an_event(world: World) -> None:
    case = new_case(world)
    for _ in range(5):
        opened(world, "screener", case)
    assert [e.type for e in stored(world.sessions, case.chain)].count("content:file:opened") == 5


def test_an_opening_that_cannot_be_written_shows_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = new_case(world)
    write(world.sessions, lambda tx: tx.execute(text("ALTER TABLE ledger_pending RENAME TO gone")))
    decrypted: list[UUID] = []
    real = reading.decrypt
    monkeypatch.setattr(reading, "decrypt", lambda s, c, p: decrypted.append(c.id) or real(s, c, p))
    with pytest.raises(StorageUnavailable):
        opened(world, "screener", case)
    assert decrypted == []


@pytest.mark.parametrize("reason", ["", "curious", "SCREENING"])
def test_a_reason_from_the_list_is_needed(world: World, reason: str) -> None:
    case = new_case(world)
    with pytest.raises(Forbidden):
        opened(world, "screener", case, reason)
    assert len(stored(world.sessions, case.chain)) == 3


def test_a_note_on_an_opening_is_sealed(world: World) -> None:
    case = new_case(world)
    who = world.signed_in("screener")
    reading.record_opening(
        world.sessions,
        world.ledger,
        world.founding.row_key,
        who.viewer,
        case.id,
        reason="screening",
        note="a canary word",
        allowance=PLENTY,
        now=NOW,
    )
    with world.sessions.read() as session:
        rows = session.execute(text("SELECT value FROM ledger_field")).scalars().all()
    assert not [v for v in rows if b"canary" in bytes(v)]


def test_a_message_that_lies_in_anothers_place_is_not_shown(world: World) -> None:
    from service.errors import CannotOpen

    first, second = new_case(world), new_case(world, "Another account.")
    keys = opened(world, "screener", first)

    def swap(tx: Tx) -> None:
        rows: Any = tx.execute(
            text('SELECT id, header, seal, body FROM message WHERE "case" = :c'), {"c": _id(world, second)}
        ).one()
        tx.execute(
            text('UPDATE message SET header = :h, seal = :s, body = :b WHERE "case" = :c'),
            {"h": rows.header, "s": rows.seal, "b": rows.body, "c": _id(world, first)},
        )

    write(world.sessions, swap)
    with world.sessions.read() as session, pytest.raises(CannotOpen):
        reading.decrypt(session, again(world, first), keys.privates)


def _id(world: World, case: Case) -> Any:
    return case.id.hex if world.sessions.dialect == "sqlite" else case.id


def test_references_are_eight_symbols_that_nobody_confuses() -> None:
    found = {cases.reference(uuid4()) for _ in range(200)}
    assert len(found) == 200
    assert all(len(r) == 9 and r[4] == "-" and not set(r) & set("ILOU") for r in found)


def test_end_of_day_is_midnight_in_phnom_penh() -> None:
    assert queue.end_of_day(NOW).isoformat() == "2027-03-09T17:00:00+00:00"
    assert queue.end_of_day(NOW.replace(hour=18)).isoformat() == "2027-03-10T17:00:00+00:00"
