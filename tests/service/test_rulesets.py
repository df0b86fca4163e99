"""Rulesets: who may propose and sign, what is in force when, and what is not believed (triage.md section 13)."""

import threading
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import exc, select, text
from sqlmodel import col

from service import publishing, rulesets
from service.db import Sessions, open_database, write
from service.errors import Forbidden, HotlineError, Invalid, NoSuchCase, NotFound, StorageUnavailable, WrongState
from service.ledger.events import EventType
from service.models import CaseDecision, KeptRuleset, LedgerEvent, Role, RulesetTick, Sign
from service.publishing import EMERGENCY
from service.rulesets import Rulebook
from service.triage import NO_RULES, BadRuleset, Ruleset, replay
from tests.builders import NOW, PEOPLE, World, a_number, a_tip, a_world, the_case, triage
from tests.ruling import (
    BEGGING_TODAY,
    in_force,
    join,
    levelled,
    propose,
    publish,
    replayed,
    sign,
    tick,
    told,
    variant,
    with_rule,
    without,
)

SHIPPED = triage().ruleset
MORE = {
    "supervisor": (Role.SUPERVISOR, "org-police", ("siem-reap",), "Ouk Samnang", "អ៊ុក សំណាង"),
    "oversight-2": (Role.OVERSIGHT, "org-ngo", ("oversight-2",), "Tep Sokha", "ទេព សុខា"),
}
BOTH = ("u:supervisor", "u:oversight")
VAGUE = "Please look at the guesthouse."
REACHED = (told("violence", "yes"), told("suspect_access", "ongoing"))  # P2 by R026 alone
SECOND = timedelta(seconds=1)


@pytest.fixture
def world(sessions: Sessions) -> World:
    return a_world(sessions, people=PEOPLE | MORE)


@pytest.fixture
def lite(sqlite_url: str) -> World:
    """A world on SQLite alone, for what no engine decides."""
    return a_world(open_database(sqlite_url), people=PEOPLE | MORE)


def a_case_of(world: World, *facts: Any) -> Any:
    [receipt] = world.receive(a_tip(VAGUE, sender=a_number(), stated=facts))
    return the_case(world, receipt.tip)


def types(world: World) -> list[str]:
    with world.sessions.read() as session:
        of_rules = col(LedgerEvent.case) == rulesets.CHAIN
        return list(session.scalars(select(col(LedgerEvent.type)).where(of_rules).order_by(col(LedgerEvent.seq))).all())


# --- the way of a version ---


def test_before_anything_is_published_the_release_decides(world: World) -> None:
    assert in_force(world) is SHIPPED


def test_a_proposal_is_in_force_when_all_whom_it_names_have_signed(world: World) -> None:
    new = variant(BEGGING_TODAY, by=BOTH)

    propose(world, new)
    assert in_force(world) is SHIPPED
    assert sign(world, new, "supervisor").published_at is None
    assert in_force(world) is SHIPPED, "one signature of two"
    published = sign(world, new, "oversight")

    assert in_force(world).content_hash == new.content_hash
    assert (published.published_at, published.until) == (NOW.replace(microsecond=0), None)
    assert [signature.role for signature in published.approved] == ["supervisor", "oversight"]
    kinds = ("PROPOSED", "APPROVED", "APPROVED", "PUBLISHED")
    assert types(world) == [EventType[f"RULES_{kind}"] for kind in kinds]


def test_a_version_is_in_force_from_the_time_it_names(lite: World) -> None:
    publish(lite, new := variant(BEGGING_TODAY, effective_from=(NOW + timedelta(days=3)).isoformat()))

    assert in_force(lite, NOW + timedelta(days=2)) is SHIPPED
    assert in_force(lite, NOW + timedelta(days=3)).content_hash == new.content_hash


def test_of_two_who_sign_at_once_one_publishes(world: World) -> None:
    propose(world, new := variant(BEGGING_TODAY, by=BOTH))
    start = threading.Barrier(2)
    lost: list[HotlineError] = []

    def go(name: str) -> None:
        start.wait()
        try:
            sign(world, new, name)
        except HotlineError as fault:
            lost.append(fault)

    threads = [threading.Thread(target=go, args=(name,)) for name in ("supervisor", "oversight")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert lost == []
    assert types(world).count(EventType.RULES_PUBLISHED) == 1


@pytest.mark.parametrize(
    ("new", "by", "objection"),
    [
        (variant(version="1.0.0"), "screener", "higher version"),
        (variant(ruleset="another-ruleset"), "screener", "same name"),
        (variant(by=("u:nobody",)), "screener", "u:nobody"),
        (variant(authors=("Ana",)), "screener", "Ana"),
        (variant(by=("u:investigator",)), "screener", "supervisors and oversight"),
        (variant(by=("u:supervisor",)), "supervisor", "cannot be among those who approve"),
        (variant(by=("u:supervisor",)), "nobody", "no such account"),
        (variant(without("R034"), by=("u:supervisor",)), "screener", "must name oversight"),
    ],
)
def test_what_may_not_be_proposed(lite: World, new: Ruleset, by: str, objection: str) -> None:
    with pytest.raises(Invalid, match=objection):
        propose(lite, new, by=by)
    assert types(lite) == []


def test_a_change_that_lowers_nothing_needs_no_oversight(lite: World) -> None:
    publish(lite, new := variant(BEGGING_TODAY, by=("u:supervisor",)))

    assert in_force(lite).content_hash == new.content_hash


def test_an_author_is_no_approver_in_the_file_itself() -> None:
    with pytest.raises(BadRuleset, match="an author cannot approve"):
        variant(authors=("u:oversight",))


@pytest.mark.parametrize(("who", "why"), [("oversight-2", "do not name you"), ("supervisor", "wrote or proposed")])
def test_only_those_whom_it_names_sign(lite: World, who: str, why: str) -> None:
    propose(lite, new := variant(BEGGING_TODAY, authors=("u:supervisor",)))

    with pytest.raises(Forbidden, match=why):
        sign(lite, new, who)
    assert sign(lite, new, "oversight").published_at is not None, "whom it names can"


def test_nobody_signs_twice(lite: World) -> None:
    propose(lite, new := variant(BEGGING_TODAY, by=BOTH))
    sign(lite, new, "oversight")

    with pytest.raises(Forbidden, match="another person must"):
        sign(lite, new, "oversight")


def test_what_is_proposed_does_not_exist_for_other_roles(lite: World) -> None:
    propose(lite, new := variant(BEGGING_TODAY))

    with pytest.raises(NotFound):
        sign(lite, new, "screener")


def test_a_refused_proposal_has_ended(lite: World) -> None:
    propose(lite, new := variant(BEGGING_TODAY))
    viewer = lite.signed_in("supervisor").viewer
    write(lite.sessions, lambda tx: publishing.refuse(tx, lite.ledger, viewer, new.content_hash, NOW))

    with pytest.raises(Forbidden, match="has ended"):
        sign(lite, new, "oversight")
    with pytest.raises(Invalid, match="proposed before"):
        propose(lite, new)


def test_an_older_proposal_is_not_published_over_a_newer_one(lite: World) -> None:
    propose(lite, old := variant(BEGGING_TODAY))
    publish(lite, variant(levelled("R034", "P2"), version="1.2.0"))

    with pytest.raises(WrongState, match="Newer rules"):
        sign(lite, old, "oversight")


# --- what falls ---


def test_each_case_that_would_fall_is_ticked_by_name_first(world: World) -> None:
    case = a_case_of(world, *REACHED)
    propose(world, new := variant(levelled("R026", "P3")))
    with pytest.raises(WrongState, match="ticked by name"):
        sign(world, new, "oversight")

    tick(world, new, "oversight", case.id)
    tick(world, new, "oversight", case.id)

    assert sign(world, new, "oversight").published_at is not None
    with world.sessions.read() as session:
        assert [(row.case, row.after) for row in session.scalars(select(RulesetTick)).all()] == [(case.id, "P3")]


def test_a_tick_stands_for_the_fall_that_was_seen_alone(lite: World) -> None:
    case = a_case_of(lite, *REACHED)
    propose(lite, new := variant(levelled("R026", "P3")))
    tick(lite, new, "oversight", case.id)
    deeper = variant(levelled("R026", "P4"), levelled("R039", "P4"))

    with lite.sessions.read() as session:
        left = [
            publishing.unticked(session, new.content_hash, replayed(lite.sessions, SHIPPED, rules))
            for rules in (new, deeper)
        ]
    assert [[move.after for move in falls] for falls in left] == [[], ["P4"]]


def test_an_author_does_not_tick_and_nobody_ticks_what_they_cannot_see(lite: World) -> None:
    case = a_case_of(lite, *REACHED)
    propose(lite, new := variant(levelled("R026", "P3"), authors=("u:oversight-2",)))

    with pytest.raises(Forbidden, match="wrote or proposed"):
        tick(lite, new, "oversight-2", case.id)
    with pytest.raises(NoSuchCase):
        tick(lite, new, "supervisor", case.id)
    with pytest.raises(WrongState, match="ticked by name"):
        sign(lite, new, "oversight")


def test_below_a_locked_floor_none_may_fall(lite: World) -> None:
    case = a_case_of(lite, told("confined_now", "yes"))
    new = variant(without("R009"))

    with pytest.raises(Invalid, match="below a locked floor"):
        propose(lite, new)

    assert [move.case for move in replayed(lite.sessions, SHIPPED, new).falls if move.barred] == [case.id]
    assert not any(move.barred for move in replayed(lite.sessions, SHIPPED, variant(levelled("R026", "P3"))).falls)


# --- emergencies ---


def test_an_emergency_ends_by_itself_unless_ratified(world: World) -> None:
    propose(world, new := variant(BEGGING_TODAY, by=BOTH), emergency=True)
    published = sign(world, new, "supervisor")

    assert published.until == NOW.replace(microsecond=0) + EMERGENCY
    assert in_force(world, NOW + EMERGENCY - 2 * SECOND).content_hash == new.content_hash
    assert in_force(world, NOW + EMERGENCY) is SHIPPED
    with pytest.raises(Forbidden, match="has ended"):
        sign(world, new, "oversight", NOW + EMERGENCY)


def test_an_emergency_that_all_signed_stays(lite: World) -> None:
    propose(lite, new := variant(BEGGING_TODAY, by=BOTH), emergency=True)
    sign(lite, new, "oversight")
    ratified = sign(lite, new, "supervisor", NOW + timedelta(hours=1))

    assert ratified.ratified
    assert in_force(lite, NOW + timedelta(days=30)).content_hash == new.content_hash
    assert types(lite)[-1] == EventType.RULES_RATIFIED


def test_what_was_published_before_an_emergency_is_in_force_after_it(lite: World) -> None:
    publish(lite, before := variant(BEGGING_TODAY))
    propose(lite, during := variant(levelled("R034", "P1"), version="1.2.0", by=BOTH), emergency=True)
    tick(lite, during, "oversight")
    sign(lite, during, "supervisor")

    assert in_force(lite, NOW + timedelta(hours=71)).content_hash == during.content_hash
    assert in_force(lite, NOW + timedelta(hours=73)).content_hash == before.content_hash


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (("u:oversight",), "names two"),
        (("u:oversight", "u:Oversight "), "names two"),
        (("u:supervisor",), "must name oversight"),
    ],
)
def test_an_emergency_names_two_and_oversight(lite: World, by: Any, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        propose(lite, variant(BEGGING_TODAY, by=by), emergency=True)


def test_that_an_emergency_lapsed_is_written_down_once(world: World) -> None:
    propose(world, new := variant(BEGGING_TODAY, by=BOTH), emergency=True)
    sign(world, new, "supervisor")

    assert publishing.lapse(world.sessions, world.ledger, NOW + EMERGENCY - 2 * SECOND) == 0
    assert publishing.lapse(world.sessions, world.ledger, NOW + EMERGENCY) == 1
    assert publishing.lapse(world.sessions, world.ledger, NOW + EMERGENCY) == 0
    assert types(world)[-1] == EventType.RULES_LAPSED


# --- what is stored, and what is not believed ---


def tamper(world: World, *statements: str) -> None:
    """Change rows as somebody with the database would: without triggers."""
    with world.sessions.writing.begin() as connection:
        for trigger in ("ruleset_no_update", "ruleset_no_delete", "ledger_event_no_update", "ledger_event_no_delete"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS {trigger}"))
        for statement in statements:
            assert connection.execute(text(statement)).rowcount


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ruleset SET version = '9.9.9'",
        "UPDATE ruleset SET content = content",
        "DELETE FROM ruleset",
    ],
)
def test_a_stored_ruleset_is_never_changed(world: World, statement: str) -> None:
    publish(world, variant(BEGGING_TODAY))

    with pytest.raises(exc.DBAPIError, match="never changed"), world.sessions.writing.begin() as connection:
        connection.execute(text(statement))


def test_a_ruleset_of_another_content_does_not_take_its_place(lite: World) -> None:
    publish(lite, new := variant(BEGGING_TODAY))
    row = {"hash": new.content_hash, "now": "2027-03-09 07:00:00"}
    replace = text(
        "INSERT OR REPLACE INTO ruleset (hash, name, version, content, kept_at)"
        " VALUES (:hash, 'x', '1.1.0', X'00', :now)"
    )

    with pytest.raises(exc.DBAPIError, match="never changed"), lite.sessions.writing.begin() as connection:
        connection.execute(replace, row)


CHANGED = "UPDATE ruleset SET content = CAST(replace(content, 'invented', 'inventeD') AS BLOB) WHERE version = '{}'"


def test_a_changed_ruleset_leaves_the_older_one_in_force_and_is_reported(lite: World) -> None:
    publish(lite, older := variant(BEGGING_TODAY))
    publish(
        lite,
        variant(BEGGING_TODAY, with_rule(id="R901", level="P2", when={"fact": "sale", "is": "yes"}), version="1.2.0"),
    )
    tamper(lite, CHANGED.format("1.2.0"))
    book = Rulebook(lite.sessions, SHIPPED)

    assert book.current(NOW).content_hash == older.content_hash
    assert book.faulty
    with lite.sessions.read() as session:
        assert session.get(Sign, rulesets.REFUSED) is not None


def test_a_process_that_starts_without_any_rules_to_trust_makes_everything_p1(lite: World) -> None:
    publish(lite, variant(BEGGING_TODAY))
    tamper(lite, CHANGED.format("1.1.0"))
    broken = in_force(lite)
    assert broken is NO_RULES, "not the release: something was published since"

    [receipt] = lite.receive(a_tip("Hello."), triage=type(triage())(broken, triage().lexicon))
    assert receipt.level == "P1"
    with lite.sessions.read() as session:
        [decision] = session.scalars(select(CaseDecision)).all()
    assert b'"engine"' in (decision.record or b"")


def test_a_process_that_runs_keeps_its_rules_when_the_new_ones_do_not_load(lite: World) -> None:
    book = Rulebook(lite.sessions, SHIPPED)
    assert book.current(NOW) is SHIPPED
    publish(lite, new := variant(BEGGING_TODAY))
    tamper(lite, CHANGED.format("1.1.0"))

    assert book.current(NOW + timedelta(minutes=1)) is SHIPPED
    tamper(lite, CHANGED.format("1.1.0").replace("'invented', 'inventeD'", "'inventeD', 'invented'"))
    assert book.current(NOW + timedelta(minutes=2)).content_hash == new.content_hash, "put right, it is taken up"
    assert not book.faulty


FORGED = [
    "UPDATE ledger_field SET value = CAST('\"2020-01-01T00:00:00Z\"' AS BLOB) WHERE name = 'effective'",
    "UPDATE ledger_field SET value = CAST(replace(value, '1', '2') AS BLOB) WHERE name = 'hash'",
    "DELETE FROM ledger_field WHERE name = 'until'",
    "UPDATE ledger_field SET value = X'7B' WHERE name = 'hash'",
    "UPDATE ledger_event SET type = 'rules:version:refused' WHERE type = 'rules:version:published'",
    "UPDATE ledger_event SET body = CAST(replace(body, 'oversight', 'supervisor') AS BLOB) WHERE type LIKE 'rules:%'",
]


@pytest.mark.parametrize("statement", FORGED)
def test_a_forged_history_is_not_believed(lite: World, statement: str) -> None:
    publish(lite, variant(BEGGING_TODAY))
    book = Rulebook(lite.sessions, SHIPPED)
    before = book.current(NOW)
    tamper(lite, statement)

    assert in_force(lite) is NO_RULES
    assert book.at(NOW) is before, "who runs keeps what it has"
    with pytest.raises(BadRuleset), lite.sessions.read() as session:
        rulesets.versions(session)


def test_a_row_that_nobody_published_is_not_in_force(lite: World) -> None:
    """The negative control of the history: content alone, with its right hash, decides nothing."""
    write(lite.sessions, partial(rulesets.keep, ruleset=variant(BEGGING_TODAY), now=NOW))

    assert in_force(lite) is SHIPPED


def test_a_database_that_is_away_leaves_the_rules_as_they_are(lite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(lite, new := variant(BEGGING_TODAY))
    book = Rulebook(lite.sessions, SHIPPED)
    book.look(NOW)

    def away(_self: Sessions) -> Any:
        raise StorageUnavailable

    monkeypatch.setattr(Sessions, "read", away)
    assert book.current(NOW + timedelta(hours=1)).content_hash == new.content_hash


def test_another_lexicon_than_the_published_one_is_said(lite: World, capsys: pytest.CaptureFixture[str]) -> None:
    publish(lite, variant(BEGGING_TODAY))
    for lexicon in (triage().lexicon.content_hash, "another"):
        Rulebook(lite.sessions, SHIPPED, lexicon).look(NOW)
        assert ("lexicon_is_not_the_published_one" in capsys.readouterr().err) == (lexicon == "another")


def test_every_stored_decision_replays_to_its_bytes_by_the_ruleset_that_it_names(lite: World) -> None:
    write(lite.sessions, partial(rulesets.keep, ruleset=SHIPPED, now=NOW))
    a_case_of(lite, *REACHED)
    publish(lite, variant(BEGGING_TODAY))
    [receipt] = lite.receive(
        a_tip("A boy begs at the market.", sender=a_number()), triage=type(triage())(in_force(lite), triage().lexicon)
    )

    with lite.sessions.read() as session:
        decisions = session.scalars(select(CaseDecision)).all()
        assert len({decision.ruleset_hash for decision in decisions}) == 2
        for decision in decisions:
            ruleset = rulesets.by_hash(session, decision.ruleset_hash)
            assert replay(decision.record or b"", ruleset) == decision.record
        with pytest.raises(BadRuleset, match="not stored"):
            rulesets.by_hash(session, "00" * 32)
    assert receipt.level == "P2"


def test_keeping_a_ruleset_twice_keeps_one(world: World) -> None:
    for _ in range(2):
        write(world.sessions, partial(rulesets.keep, ruleset=SHIPPED, now=NOW))

    with world.sessions.read() as session:
        assert len(session.scalars(select(KeptRuleset)).all()) == 1


def test_somebody_who_joins_later_can_be_named(lite: World) -> None:
    join(lite, "supervisor-2", Role.SUPERVISOR, "org-ngo", "screening")
    publish(lite, new := variant(BEGGING_TODAY, by=("u:supervisor-2",)))

    assert in_force(lite).content_hash == new.content_hash
