"""The demo's cast: what its file says, what the rules make of it, and what the set-up plays from it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlmodel import col

from commands import demo, demo_cast, demo_setup
from commands.demo_cast import PEOPLE, PLANS, Story, Told
from service import ladder
from service.config import Settings
from service.db import Sessions, open_database
from service.errors import AlreadyClaimed, Forbidden, HotlineError, Misconfigured, NoSuchCase, WrongState
from service.ledger.events import EventType
from service.models import (
    Case,
    Channel,
    JobState,
    LedgerEvent,
    LedgerField,
    LedgerPending,
    Level,
    OutboxJob,
    Role,
    State,
)
from service.triage import assess, detect_language, facts_of
from service.vault.cards import UnitKind
from service.vault.passwords import Parameters
from tests.builders import CHEAP, NOW, triage
from webhooks.answers import Answers, e164
from webhooks.simulator.signing import segments

STORIES = demo_cast.read_stories()
TEXTS = [(story, scene) for story in STORIES for scene in story.story if isinstance(scene, Told)]

# The file: what it may say

SMALL = """
cases:
  - key: one
    sender: "+85500000901"
    story:
      - {ago: 2d3h, level: P3, says: A child of 12 works in a shop.}
      - {ago: 2d2h, who: screener, does: open, reason: screening}
      - {ago: 2d1h5m, who: screener, does: hand_on, unit: siem-reap, named: "no"}
      - {ago: 2d, who: investigator, does: claim}
  - key: two
    form: {province: KH-17}
    story:
      - {ago: 5m, level: P4, says: Thank you so much for the help.}
"""


def stories_of(tmp_path: Path, text: str) -> tuple[Story, ...]:
    path = tmp_path / "tips.yaml"
    path.write_text(text)
    return demo_cast.read_stories(path)


def test_a_story_is_read_as_it_stands(tmp_path):
    one, two = stories_of(tmp_path, SMALL)

    assert one.sender == "+85500000901"
    assert [scene.ago for scene in one.story][2] == timedelta(days=2, hours=1, minutes=5)
    assert (two.form, two.story[0].level) == ({"province": "KH-17"}, Level.P4)
    assert [story.key for story, _ in demo_cast.timeline((two, one))] == ["one"] * 4 + ["two"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("key: two", "key: one"),
        ("form: {province: KH-17}", 'sender: "+85500000901"'),
        ("+85500000901", "+85512345678"),
        ('sender: "+85500000901"', 'sender: "+85500000901"\n    form: {province: KH-17}'),
        ('    sender: "+85500000901"\n', ""),
        ("province: KH-17", "what: words"),
        ("P3", "P5"),
        ("5m, level", "soon, level"),
        ("5m, level", '"", level'),
        ("says: Thank you so much for the help.", 'says: Thank you., media: "1"'),
        ("A child of 12 works in a shop.}", "A child of 12 works in a shop., media: many}"),
        ("who: screener, does: open", "who: nobody, does: open"),
        ("reason: screening", "reason: curious"),
        ("unit: siem-reap", "unit: oversight"),
        ('named: "no"', "named: perhaps"),
        ("who: screener, does: hand_on", "who: investigator, does: hand_on"),
        ("who: investigator, does: claim", "who: screener, does: claim"),
        ("does: claim}", "does: close}"),
        ("does: claim}", "does: claim, unit: siem-reap}"),
        ("ago: 2d, who", "ago: 2d2h, who"),
        ("      - {ago: 2d3h, level: P3, says: A child of 12 works in a shop.}\n", ""),
        ("    story:\n      - {ago: 5m", "    story: []\n    stories:\n      - {ago: 5m"),
        ("cases:", "tips:"),
        ("- key: two", "- &two\n    key: two"),
    ],
)
def test_what_is_missing_unknown_or_impossible_is_refused(old, new, tmp_path):
    assert old in SMALL

    with pytest.raises(Misconfigured, match=r"tips\.yaml"):
        stories_of(tmp_path, SMALL.replace(old, new, 1))


def test_a_form_is_sent_once(tmp_path):
    again = SMALL + "      - {ago: 1m, level: P4, says: Thanks again.}\n"

    with pytest.raises(Misconfigured, match="one message"):
        stories_of(tmp_path, again)


# The cast: accounts, units, numbers


def test_every_unit_that_works_cases_has_somebody_to_claim_them():
    working = {plan.id for plan in PLANS if plan.kind in (UnitKind.UNIT, UnitKind.INTEGRITY)}

    assert {person.unit for person in PEOPLE if person.role == Role.INVESTIGATOR} == working
    assert {person.role for person in PEOPLE} >= {Role.SCREENER, Role.SUPERVISOR, Role.OVERSIGHT}
    assert len({person.account for person in PEOPLE}) == len(PEOPLE)
    assert {person.unit for person in PEOPLE} < {plan.id for plan in PLANS}


def test_every_unit_has_somebody_on_duty():
    units = {plan.id for plan in PLANS if plan.kind != UnitKind.MONITOR}

    assert {post.removesuffix(ladder.SUPERVISOR) for post in demo_cast.DUTY} == units
    assert units <= set(demo_cast.DUTY)


def test_screening_police_oversight_and_inspectorate_are_different_organisations():
    kinds = {plan.kind: plan.organisation for plan in PLANS}

    assert len({kinds[k] for k in (UnitKind.SCREENING, UnitKind.UNIT, UnitKind.INTEGRITY, UnitKind.OVERSIGHT)}) == 4
    assert {plan.organisation for plan in PLANS} == set(demo_cast.ORGANISATIONS)


def test_no_number_of_the_cast_is_in_use_elsewhere():
    typed = [story.form["number"] for story in STORIES if story.form and "number" in story.form]
    on_duty = [number for numbers in demo_cast.DUTY.values() for number in numbers]
    numbers = [story.sender for story in STORIES if story.sender] + typed + on_duty
    to_try = re.findall(r"\+[0-9]+", demo.READY)

    assert to_try  # the line that a newcomer is told to try makes a case of its own
    assert not set(numbers) & {*to_try, *demo_setup.NUMBERS}
    assert len(set(numbers)) == len(numbers)
    assert all(e164(number) == number and number.startswith("+8550000") for number in numbers)


@pytest.mark.parametrize("story", [story for story in STORIES if story.form], ids=lambda story: story.key)
def test_every_answer_of_a_form_says_something(story):
    answers = Answers({"what": story.story[0].says, **story.form})
    told = {fact.name: fact.value for fact in answers.facts(NOW)}

    assert answers.wrong() == {}
    assert told.get("province") == story.form.get("province")
    assert told.get("venue_type") == story.form.get("kind")
    assert story.form.get("danger", "no") in ("yes", "no", "unknown")
    assert story.form.get("now", "yes") == "yes"
    assert story.form.get("answer", "no") in ("phone", "no")
    assert ("number" in story.form) is answers.wants_answer


# The words


def test_a_text_message_is_at_most_two_parts():
    long = [story.key for story, told in TEXTS if story.sender and segments(told.says) > 2]

    assert long == []
    assert segments("ក" * 135) == 3  # so that the check can fail


def test_both_languages_and_the_tourists_are_heard():
    spoken = [detect_language(told.says) for _, told in TEXTS]

    assert set(spoken) == {"km", "en", "zh", "ko", "vi", "th", "fr"}
    assert spoken.count("km") >= 15
    assert spoken.count("en") >= 15


def test_provinces_and_kinds_of_place_are_many():
    found = [assess(triage(), told.says, stated(story, told, NOW), NOW) for story, told in TEXTS]

    assert len({one.province for one in found} - {None}) >= 15
    assert len({one.venue_type for one in found} - {None}) >= 10


GRAPHIC = re.compile(
    r"\b(rap(e|es|ed|ing|ist)|sex\w*|nak(ed|edness)|nud(e|es|ity)|porn\w*|genital\w*|penetrat\w*|masturbat\w*|molest\w*|"
    r"breasts?|bleed\w*|blood\w*|bruis\w*|beat(s|en|ing)?|burn\w*|kill\w*|knife|knives|corpse|suicid\w*|"
    r"viol(er|ée?s?)?|sexuel\w*|nue?s?|hiếp|khỏa|dâm|máu)\b"
    r"|រំលោភ|អាក្រាត|ស្រាត|រួមភេទ|ផ្លូវភេទ|ប្រដាប់ភេទ|ឈាម|សម្លាប់|强奸|裸|性|血|杀|강간|나체|성폭|피가|ข่มขืน|เปลือย|เลือด|ฆ่า",
    re.IGNORECASE,
)
# The Luxembourg Guidelines say what to use instead.
TERMS = re.compile(r"child (prostitut|porn|sex)|sex tour|underage wom|street child|paedophil|pedophil", re.IGNORECASE)


def test_no_text_is_graphic_or_uses_a_term_to_avoid():
    found = [(story.key, hit[0]) for story, told in TEXTS for hit in GRAPHIC.finditer(told.says)]
    found += [(story.key, hit[0]) for story, told in TEXTS for hit in TERMS.finditer(told.says)]

    assert found == []


@pytest.mark.parametrize("text", ["he was Beaten", "គេរំលោភ", "裸照", "elle est nue", "ข่มขืนเด็ก", "bị hiếp", "sexual"])
def test_what_is_graphic_would_be_found(text):
    assert GRAPHIC.search(text)
    assert not GRAPHIC.search("Essex violence venue beating-free nuée".replace("beating", "heating"))
    assert TERMS.search("a site with child porn")


# The levels


def stated(story: Story, told: Told, at: datetime) -> tuple:
    return Answers({"what": told.says, **story.form}).facts(at) if story.form else ()


def judged(story: Story, now: datetime) -> list[str]:
    """The level that the case has with each of its messages, as intake decides it."""
    known: tuple = ()
    levels: list[str] = []
    for told in (scene for scene in story.story if isinstance(scene, Told)):
        at = now - told.ago
        found = assess(triage(), told.says, (*known, *stated(story, told, at)), at)
        known = tuple(facts_of(found.decision.record).values())
        levels.append(min([found.decision.level, *levels]))
    return levels


@pytest.mark.parametrize("hours", [0, 7, 13, 19], ids="{}h later".format)
@pytest.mark.parametrize("days", range(3))
def test_the_rules_judge_every_message_as_its_file_expects(days, hours):
    """Whatever the hour and the day of the set-up: "tonight" and "tomorrow" are said, days of the week are not."""
    now = NOW + timedelta(days=days, hours=hours)
    expected = {story.key: [told.level for other, told in TEXTS if other is story] for story in STORIES}

    assert {story.key: judged(story, now) for story in STORIES} == expected


def test_another_text_is_judged_otherwise():
    locked_in = next(story for story in STORIES if story.key == "locked-in")
    thanked = locked_in.story[0].model_copy(update={"says": "Thank you so much for the help."})

    assert judged(locked_in.model_copy(update={"story": (thanked,)}), NOW) == ["P4"] != ["P1"]


# The set-up: what is played from it


@dataclass
class Played:
    """A demo's database after a set-up, with the ids of its cases by their key."""

    database: Sessions
    ids: dict[str, UUID]

    def cases(self) -> list[Case]:
        with self.database.read() as session:
            return list(session.scalars(select(Case)))

    def events(self) -> list[LedgerEvent]:
        """All events in the order in which they were appended."""
        in_order = select(LedgerEvent).join(LedgerPending, col(LedgerPending.eid) == col(LedgerEvent.eid))
        with self.database.read() as session:
            return list(session.scalars(in_order.order_by(col(LedgerPending.id))))

    def wall_causes(self) -> dict[str, str]:
        """Chain to cause, of cases that went behind the wall after they were opened."""
        causes = (
            select(col(LedgerEvent.case), col(LedgerField.value))
            .join(LedgerField, col(LedgerField.eid) == col(LedgerEvent.eid))
            .where(col(LedgerEvent.type) == EventType.CASE_WALL_RAISED, col(LedgerField.name) == "cause")
        )
        with self.database.read() as session:
            return {chain: json.loads(value) for chain, value in session.execute(causes)}

    def shown(self) -> set[str]:
        """What of all that a case can be by now stands in the database."""
        causes, found = self.wall_causes(), set()
        happened = {(event.case, event.type) for event in self.events()}
        for case in self.cases():
            lapsed = (case.chain, EventType.CASE_LEASE_LAPSED) in happened
            cause = causes.get(case.chain)
            found |= {case.state, case.channel, case.level}
            found |= {"late" if case.due_at < NOW else "in time", f"{case.level} {case.due_at < NOW}"}
            found |= {"dropped"} if lapsed and case.state == State.OPEN else set()
            found |= {"walled at once"} if case.walled and cause is None else set()
            found |= {f"walled by {':'.join(cause.split(':')[:2])}"} if cause else set()
            found |= {what for chain, what in happened if chain == case.chain}
        return found


@contextmanager
def played(folder: Path, stories: tuple[Story, ...]) -> Iterator[Played]:
    """Run the real set-up with `stories`, with passwords that are cheap to hash."""
    ids: dict[str, UUID] = {}
    play = demo_setup._play

    def watched(made: demo_setup.Installation, *rest: object) -> None:
        play(made, *rest)
        ids.update(made.cases)

    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.staff.passwords.Parameters", lambda: Parameters(**CHEAP))
        patch.setattr(demo_setup.Triage, "load", lambda *_: triage())
        patch.setattr(demo_setup, "_play", watched)
        patch.setattr(demo_cast, "read_stories", lambda: stories)
        said: list[str] = []
        settings = demo_setup.settle(folder, public_url="http://127.0.0.1:8000", now=NOW, say=said.append)
    assert len(said) == 3
    database = open_database(settings["HOTLINE_DATABASE_URL"])
    try:
        yield Played(database, ids)
    finally:
        database.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(tmp_path_factory.mktemp("demo") / "var", STORIES) as done:
        yield done


WANTED = {
    State.OPEN,
    State.CLAIMED,
    "dropped",
    "walled at once",
    "walled by words",
    "walled by screener:yes",
    "walled by screener:unsure",
    EventType.CASE_UNIT_SEALED,
    EventType.LEVEL_RAISED,
    EventType.TIP_MESSAGE,
    EventType.CLOCK_LAPSED,
    EventType.CLOCK_ESCALATED,
    EventType.REPLY_SENT,
    Channel.SMS,
    Channel.WEB,
    *(f"{level} {late}" for level in Level for late in (True, False)),
}


def test_all_that_a_case_can_be_is_there(whole):
    assert len(whole.ids) == len(whole.cases()) == len(STORIES) >= 40
    assert {str(one) for one in WANTED - whole.shown()} == set()
    assert EventType.ENGINE_FAILED not in whole.shown()


def test_the_work_is_spread_over_units_and_levels(whole):
    cases = whole.cases()

    assert {case.unit for case in cases} == {plan.id for plan in PLANS} - {"oversight", "oversight-2", "monitor"}
    assert {case.level for case in cases if case.state == State.CLAIMED} == set(Level)
    assert len({case.unit for case in cases if case.state == State.CLAIMED}) >= 4
    assert {case.unit for case in cases if case.walled} == {"integrity"}


def test_the_levels_stand_in_the_database_as_in_the_file(whole):
    last = {story.key: told.level for story, told in TEXTS}

    assert {key: next(c.level for c in whole.cases() if c.id == id_) for key, id_ in whole.ids.items()} == last


def out_of_order(done: Played) -> list[str]:
    """Events that were appended after one of a later time."""
    events = done.events()
    return [after.type for before, after in pairwise(events) if after.at < before.at]


def late_lapses(done: Played) -> list[timedelta]:
    """How long after the end of its lease each claim was ended, over a second."""
    leases = dict(zip(Level, Settings.model_fields["leases"].default, strict=True))
    levels = {case.chain: Level(case.level) for case in done.cases()}
    claimed: dict[str, datetime] = {}
    late = []
    for event in done.events():
        if event.type == EventType.CASE_CLAIMED:
            claimed[event.case] = event.at
        elif event.type == EventType.CASE_LEASE_LAPSED:
            late.append(event.at - claimed[event.case] - leases[levels[event.case]])
    return [by for by in late if not timedelta(0) < by <= timedelta(seconds=1)]


def test_the_history_reads_in_the_order_of_time(whole):
    assert len(whole.events()) > 200
    assert out_of_order(whole) == []
    assert max(event.at for event in whole.events()) <= NOW


def left_over(done: Played) -> set[str]:
    """States of texts that a worker would still find, or a person have to look at."""
    with done.database.read() as session:
        return set(session.scalars(select(col(OutboxJob.state)))) - {JobState.DONE}


def test_every_text_of_the_last_weeks_was_sent_then(whole):
    """Otherwise the first worker would page everybody at once, for cases of weeks ago."""
    assert left_over(whole) == set()


def unanswered(done: Played) -> set[str]:
    """Cases that nobody has, past their deadline, of which nobody was told at the deadline."""
    events = done.events()
    told = {event.case for event in events if event.type == EventType.CLOCK_LAPSED}
    late = {case.chain for case in done.cases() if case.state == State.OPEN and case.due_at < NOW}
    return late - told


def test_what_nobody_claimed_in_time_has_climbed(whole):
    assert unanswered(whole) == set()


def test_a_claim_ends_with_its_lease_and_not_when_somebody_comes_by(whole):
    assert sum(event.type == EventType.CASE_LEASE_LAPSED for event in whole.events()) >= 10
    assert late_lapses(whole) == []


# ... and that these checks can fail


def test_what_one_case_does_not_show_is_missed(tmp_path):
    with played(tmp_path / "var", stories_of(tmp_path, SMALL)) as done:
        assert len(WANTED - done.shown()) > 10


def test_a_set_up_without_order_is_seen(tmp_path, monkeypatch):
    backwards = [(story, scene) for story in reversed(stories_of(tmp_path, SMALL)) for scene in story.story]
    monkeypatch.setattr(demo_cast, "timeline", lambda _: backwards)

    with played(tmp_path / "var", stories_of(tmp_path, SMALL)) as done:
        assert "case:file:opened" in out_of_order(done)


def test_three_weeks_without_a_worker_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_setup, "_work", lambda made: None)

    unclaimed = SMALL.replace("      - {ago: 2d, who: investigator, does: claim}\n", "")
    with played(tmp_path / "var", stories_of(tmp_path, unclaimed)) as done:
        assert left_over(done) == {JobState.WAITING}
        assert len(unanswered(done)) == 1


def test_a_clock_that_jumps_over_deadlines_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_setup, "_next_deadline", lambda made, until: until if made.clock < until else None)

    with played(tmp_path / "var", stories_of(tmp_path, SMALL)) as done:
        assert late_lapses(done)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("      - {ago: 2d2h, who: screener, does: open, reason: screening}\n", "", Forbidden),
        ("does: claim}", "does: claim}\n      - {ago: 1d23h59m, who: investigator, does: claim}", AlreadyClaimed),
        ("who: investigator, does: claim", "who: investigator2, does: claim", NoSuchCase),
        ("2d2h, who: screener, does: open", "2d2h, who: investigator, does: open", NoSuchCase),
        (
            "does: claim}",
            "does: claim}\n      - {ago: 1d23h, who: screener, does: hand_on, unit: care, named: unsure}",
            HotlineError,
        ),
        (
            '- {ago: 2d1h5m, who: screener, does: hand_on, unit: siem-reap, named: "no"}\n'
            "      - {ago: 2d, who: investigator, does: claim}",
            "- {ago: 2d, who: investigator, does: claim}",
            (NoSuchCase, WrongState),
        ),
    ],
)
def test_a_step_that_cannot_be_taken_stops_the_set_up(old, new, refusal, tmp_path):
    assert old in SMALL
    stories = stories_of(tmp_path, SMALL.replace(old, new, 1))

    with pytest.raises(refusal), played(tmp_path / "var", stories):
        pass
