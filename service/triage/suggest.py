"""Text to facts (triage.md section 3): what a person may have meant, for a person to confirm. Pure."""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from service.triage.facts import FACTS, HARMS, NOW, Fact, Source, Value
from service.triage.language import spoken
from service.triage.lexicon import HOURS, Concept, Lexicon
from service.triage.matcher import bits, edged
from service.triage.numbers import ADULT, Amount
from service.triage.reading import TODAY_HOURS, Hit, Reading, read
from service.triage.text import REPEAT, Normalised, normalise, replaced_at

CLEAR_PLACE = 4  # the rank from which a word names a kind of place and no mere surroundings
MOST_SPANS = 8  # a few words show a person why; the account has the rest
# Kinds of message in which a place is only talked of: it is not where a child or a harm is.
_NO_PLACE = frozenset({"question", "offer", "thanks", "spam", "test", "abusive"})
_LABOUR = ("child_labour", "begging")
# What makes a report of a question, though it is no harm.
_CONCERNS = frozenset((*_LABOUR, "child_marriage_agreed", "home_conditions"))
# Facts that make a message a report, whatever else it says (triage.md section 3, "Message kind").
_REPORTS = frozenset(
    (*NOW, *HARMS, "retaliation_threat", "threat_to_share", "material_shared", "settlement", "official_complicity")
)
_COUNTED = frozenset((*NOW, *HARMS, "child_labour", "material_shared", "suspect_leaving"))
_ABOUT_CHILDREN = frozenset(("child_involved", "adult_survivor", "self_harm"))
_NOTHING = frozenset(("no", "none"))
# What stands before a place that somebody goes to, and one that somebody comes from.
_BOUND_FOR = ("ទៅ", " to", " towards", " toward", " tov", " vers", " nach", " đi", "去", "到", " в сторону")
_COMES_FROM = (
    "មកពី",
    "អ្នកស្រុក",
    "ស្រុកកំណើត",
    " come from",
    " comes from",
    " came from",
    " girls from",
    " are from",
    " is from",
    " mok pi",
    " aus",
    " quê",
    "来自",
    "มาจาก",
    " из",
)
_FROM = 2
_CARE = {"orphanage", "residential_care"}
_OVER = frozenset(("custody", "dead"))
# A question mark, but not after a hello into a bad line.
_ASKING = re.compile("(?<!hello)(?<!allo)(?<!alo)(?<!អាឡូ)(?<!អាឡូ )[?？](?!\\s?(?:\\.\\.|…))")
_BROKEN = ("...", "…")
# What stands between the ages of two children, and not between the bounds of one child's age.
_LISTED = re.compile(r"\s*(?:[,&+]|and|និង|et|und|và|y/?o|yo|yrs?|ឆ្នាំ)?(?:\s|[,&+]|and|និង)+")
# Facts without which a message that asks something is only a question.
_TOLD = _CONCERNS | {"orphanage_tourism", "registration", "adult_survivor", "child_safe_now", "tour_offered"}
_TOLD |= {"suspect_status", "suspect_leaving", "suspect_access", "reported_before", "second_hand"}
_RECENCY_RANK = {"past": 0, "historic": 1, "recent": 2, "now": 3}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a text suggests: facts, each with the positions of its words in the original text, and the language."""

    facts: tuple[Fact, ...]
    language: str


@dataclass
class _Draft:
    """Facts on the way: for each name and value the words that gave it, and which were said without doubt."""

    at: datetime | None
    message: str | None
    normal: Normalised
    words: dict[str, dict[Value, list[tuple[int, int]]]] = field(default_factory=dict)
    plain: set[tuple[str, Value]] = field(default_factory=set)

    def add(self, name: str, value: Value, start: int, end: int, *, hedged: bool = False) -> None:
        self.words.setdefault(name, {}).setdefault(value, []).append((start, end))
        if not hedged:
            self.plain.add((name, value))

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self.words.pop(name, None)

    def yes(self, name: str) -> bool:
        return "yes" in self.words.get(name, ())

    def values(self, name: str) -> Set[Value]:
        return self.words[name].keys() if name in self.words else frozenset()

    def stands(self, names: Set[str]) -> bool:
        """Whether one of the facts has a value other than no or none."""
        return any(self.words[name].keys() - _NOTHING for name in self.words.keys() & names)

    def facts(self) -> tuple[Fact, ...]:
        original = self.normal.original
        return tuple(
            [
                Fact(
                    name,
                    value,
                    Source.SUGGESTED,
                    self.at,
                    self.message,
                    tuple([original(start, end) for start, end in _outermost(spans)]),
                    (name, value) not in self.plain,
                )
                for name, values in self.words.items()
                for value, spans in values.items()
            ]
        )


def _outermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first spans, without those that lie in a longer one."""
    if len(spans) == 1:
        return spans
    kept: list[tuple[int, int]] = []
    for start, end in sorted(spans[: 4 * MOST_SPANS], key=lambda span: (span[0], -span[1])):
        if not kept or end > kept[-1][1]:
            kept.append((start, end))
    return kept[:MOST_SPANS]


def suggest(
    text: str,
    lexicon: Lexicon,
    received_at: datetime | None = None,
    context: Mapping[str, str] | None = None,
    message: str | None = None,
) -> Suggestion:
    """Return the facts that the words of `text` suggest.

    received_at: with a time zone; dates the facts and gives weekdays their distance. context: what the channel knows
    without reading; `form`: in the children's form "here" is the home it hangs in. `reporter`: whether a child writes.
    message: the id of the message, kept with each fact.
    """
    normal = normalise(text)
    words = edged(normal.text)
    language, latin = spoken(normal.text, frozenset(words.split()))
    if "en" in latin and (slips := lexicon.typos.correct(words, romanised="kmr" in latin)):
        normal = replaced_at(normal, slips)
        words = edged(normal.text)
    given = lexicon.venues.get((context or {}).get("venue_type", ""), 0)
    reading = read(normal.text, lexicon, received_at, latin, given, words)
    draft = _Draft(received_at, message, normal)
    for number in bits((reading.all_affirmed | reading.all_refused) & lexicon.setters):
        _apply(lexicon.concepts[number], reading.hits.get(number, ()), reading, draft)
    _ages(reading, draft)
    _count(reading, draft, text)
    _timing(reading, draft)
    _scope(reading, draft, of_child=(context or {}).get("reporter") == "self_child")
    _target(reading, draft, context or {})
    return Suggestion(draft.facts(), language)


def _apply(concept: Concept, hits: Iterable[Hit], reading: Reading, draft: _Draft) -> None:
    """Let one concept set its facts where what it needs stands near it."""
    yes, no = reading.all_affirmed, reading.all_refused
    for affirmed, refused in concept.anywhere:
        if not (yes & affirmed or no & refused):
            return
    if yes & concept.nowhere[0] or no & concept.nowhere[1]:
        return
    fits: dict[int, bool] = {}
    for hit in hits:
        if hit.under_if and not concept.under_if:
            continue
        if hit.clause not in fits:
            fits[hit.clause] = _fits(concept, *reading.near(hit.clause, concept.within))
        if not fits[hit.clause] or (concept.time != "any" and not _timely(concept, hit, reading)):
            continue
        if concept.close and not all(reading.close(hit, group) for group in concept.close):
            continue
        if concept.not_after and reading.led_by(hit, concept.not_after):
            continue
        if concept.after and not reading.led_by(hit, concept.after):
            continue
        if concept.does and not all(reading.does(hit, group) for group in concept.does):
            continue
        for name, value in concept.sets:
            if value == HOURS:
                hours = [when.hours for when in reading.when(hit, "text") if when.hours is not None]
                if hours and not hit.denied:
                    draft.add(name, min(hours), hit.start, hit.end, hedged=hit.hedged or concept.doubt)
            elif not hit.denied:
                draft.add(name, value, hit.start, hit.end, hedged=hit.hedged or concept.doubt)
            elif value == "yes" and "no" in FACTS[name].ranks and not concept.doubt:
                draft.add(name, "no", hit.start, hit.end, hedged=hit.hedged or concept.doubt)


def _fits(concept: Concept, yes: int, no: int) -> bool:
    """Whether everything a concept needs is affirmed or denied near it, and nothing that keeps it away."""
    for affirmed, refused in concept.needs:
        if not (yes & affirmed or no & refused):
            return False
    return not (yes & concept.unless[0] or no & concept.unless[1])


def _timely(concept: Concept, hit: Hit, reading: Reading) -> bool:
    whens = reading.when(hit, concept.within)
    tenses = {when.tense for when in whens}
    if concept.time == "now":
        return "now" in tenses
    if concept.time == "today":
        return bool(tenses & {"now", "today"}) or any(
            when.hours is not None and when.hours <= TODAY_HOURS for when in whens
        )
    if concept.time == "future":
        return bool(tenses & {"future", "today"})
    if concept.time == "past":
        return "past" in tenses
    return not tenses & {"past", "future"} or bool(tenses & {"now", "today", "habit", "since"})


def _ages(reading: Reading, draft: _Draft) -> None:
    """The youngest age, and whether the writer gives an own age (triage.md section 3, "Age and number")."""
    survivor = reading.has("own_childhood")
    ages: list[Amount] = []
    for amount in reading.amounts:
        if amount.kind == "age" and amount.own and amount.value >= ADULT:
            draft.add("reporter_is_child", "no", amount.start, amount.end)
            if survivor:
                draft.add("adult_survivor", "yes", amount.start, amount.end)
        elif amount.kind == "age" and amount.value < ADULT:
            ages.append(amount)
        elif amount.kind == "grade":
            ages += (amount._replace(value=amount.value + 5), amount._replace(value=amount.value + 7))
        elif amount.kind == "under":
            draft.add("child_involved", "yes", amount.start, amount.end)
            draft.add("age_max", amount.value - 1, amount.start, amount.end)
    for hit in reading.of("baby"):
        if not hit.denied:
            ages.append(Amount("age", hit.start, hit.end, 0))
    if not ages:
        return
    youngest, oldest = min(ages, key=lambda age: age.value), max(ages, key=lambda age: age.value)
    draft.add("child_involved", "yes", youngest.start, youngest.end)
    if survivor and draft.yes("adult_survivor"):
        return
    draft.add("age_min", youngest.value, youngest.start, youngest.end)
    draft.add("age_max", oldest.value, oldest.start, oldest.end)
    for age in ages:
        if age.own and not survivor and not reading.has("other_persons_age"):
            draft.add("reporter_is_child", "yes", age.start, age.end)


def _count(reading: Reading, draft: _Draft, original: str) -> None:
    """How many children are harmed or held; children who are only mentioned are not counted."""
    if not draft.stands(_COUNTED):
        return
    counted = [amount for amount in reading.amounts if amount.kind == "persons" and amount.value > 1]
    for amount in counted:
        draft.add("victims", min(amount.value, 100_000), amount.start, amount.end)
    if counted:
        return
    ages = [amount for amount in reading.amounts if amount.kind == "age" and amount.value < ADULT]
    for first, second in pairwise(ages):
        listed = _LISTED.fullmatch(reading.text, first.end, second.start) is not None
        if listed or (first.own != second.own and first.value != second.value):
            draft.add("victims", 2, first.start, second.end)
    several = [hit for hit in reading.of("children") if not hit.denied]
    for hit in reading.of("child") if REPEAT in original else ():
        _, end = draft.normal.original(hit.start, hit.end)
        if REPEAT in original[end - 1 : end + 2]:
            several.append(hit)
    for hit in several:
        draft.add("victims", 2, hit.start, hit.end)


def _timing(reading: Reading, draft: _Draft) -> None:
    """When the harm was, and whether it goes on (triage.md section 3, "Time").

    A harm with no word of time is a recent one, unless it is told second-hand or whoever did it is gone.
    """
    best: tuple[int, str, Hit] | None = None
    untimed: Hit | None = None
    for number in bits((reading.all_affirmed | reading.all_refused) & reading.lexicon.harms):
        if not any(draft.yes(name) for name, _ in reading.lexicon.concepts[number].sets):
            continue
        for hit in reading.hits.get(number, ()):
            if hit.denied or hit.under_if:
                continue
            untimed = untimed or hit
            for when in reading.when(hit, "around") if reading.whens else ():
                if when.recency and (best is None or _RECENCY_RANK[when.recency] > best[0]):
                    best = (_RECENCY_RANK[when.recency], when.recency, hit)
                if when.access and "none" not in draft.values("suspect_access"):
                    draft.add("suspect_access", "ongoing", hit.start, hit.end)
    if best is not None:
        draft.add("recency", best[1], best[2].start, best[2].end)
    elif untimed is not None and not (
        draft.yes("second_hand")
        or draft.yes("adult_survivor")
        or "none" in draft.values("suspect_access")
        or draft.values("suspect_status") & _OVER
        or any(when.tense == "past" for found in reading.whens.values() for _, when in found)
    ):
        draft.add("recency", "recent", untimed.start, untimed.end, hedged=True)


def _scope(reading: Reading, draft: _Draft, *, of_child: bool) -> None:
    """Whether a child is concerned, and what kind of message it is.

    of_child: the channel knows that a child writes. What a child says of itself is never a mere test: somebody may
    have told it to take its words back.
    """
    children = [hit for hit in reading.of("child") if not hit.denied]
    if reading.has("adult_victim_only") and reading.has("children_away"):
        children = []
        draft.words.get("child_involved", {}).pop("yes", None)
    adults = [a for a in reading.amounts if a.kind == "age" and a.value >= ADULT]
    if children:
        draft.add("child_involved", "yes", children[0].start, children[0].end)
    elif adults and not draft.stands(_ABOUT_CHILDREN):
        draft.add("child_involved", "no", adults[0].start, adults[0].end)
    kinds = draft.values("message_kind")
    if "other_matter" in kinds and draft.values("child_involved") == {"no"}:
        draft.words["message_kind"].pop("other_matter")
    if _declared_test(reading) and not (of_child or draft.yes("reporter_is_child")):
        draft.drop((*NOW, *HARMS, *_LABOUR, *_REPORTS, *_CONCERNS, "venue_type", "recency"))
        draft.words["message_kind"] = {"test": draft.words["message_kind"].get("test", [])}
    if "retraction" in kinds:
        draft.drop(("suspect_foreign", "suspect_role"))
    if "retraction" in kinds or ("thanks" in kinds and _is_over(draft)):
        draft.drop((*HARMS, *_LABOUR, "recency"))
    if draft.stands(_REPORTS) or ("question" in kinds and draft.stands(_CONCERNS)):
        draft.drop(("message_kind",))
    elif not draft.values("message_kind") and (at := _asks(reading, draft)) is not None:
        draft.add("message_kind", "question", at, at + 1, hedged=True)


def _asks(reading: Reading, draft: _Draft) -> int | None:
    """Where a text that tells of nobody and of nothing asks something; None if it does not.

    Who tells of a child speaks of a person, a harm, work or a place; who only asks the service speaks of none.
    """
    if draft.stands(_TOLD) or draft.yes("reporter_is_child") or any(mark in reading.text for mark in _BROKEN):
        return None
    if any(reading.has(name) for name in ("suspect_man", "help_word", "plea_now", "screams")):
        return None
    tones = [hit.start for hit in reading.of("question_tone") if not hit.denied]
    mark = _ASKING.search(reading.text)
    return min([*tones, mark.start()] if mark is not None else tones, default=None)


def _declared_test(reading: Reading) -> bool:
    """Whether the text calls itself a test that nobody need act upon: its alarming words are samples."""
    return reading.has("test_declared") and reading.has("disregard") and not reading.has("they_say_test")


def _is_over(draft: _Draft) -> bool:
    """Whether the child is safe or the suspect held, and nobody has access or presses anybody."""
    safe = draft.yes("child_safe_now") or bool(draft.values("suspect_status") & _OVER)
    return safe and "ongoing" not in draft.values("suspect_access") and not draft.stands(_REPORTS - set(HARMS))


def _target(reading: Reading, draft: _Draft, context: Mapping[str, str]) -> None:
    """Whether the place and the person can be found."""
    _choose("province", reading, draft, placed=bool(context.get("placement_code_province")))
    _choose("venue_type", reading, draft, context.get("venue_type"))
    if draft.values("message_kind") & _NO_PLACE:
        draft.drop(("venue_type",))
    places = draft.values("province") or draft.values("venue_type") - {"online"}
    if places and "no" not in draft.values("place_known"):
        words = next(iter(draft.words["province" if "province" in draft.words else "venue_type"].values()))
        draft.add("place_known", "yes", *words[0])
    if "no" in draft.values("person_known"):
        draft.words["person_known"].pop("yes", None)
    if context.get("form") == "child_residential" and reading.has("here"):
        here = reading.of("here")[0]
        draft.add("reporter_lives_at_place", "yes", here.start, here.end)


def _spans(reading: Reading, concepts: int) -> list[tuple[int, int]]:
    """Where the words of some concepts stand."""
    return [(hit.start, hit.end) for number in bits(concepts) for hit in reading.hits.get(number, ())[:MOST_SPANS]]


def _choose(name: str, reading: Reading, draft: _Draft, known: str | None = None, *, placed: bool = False) -> None:
    """Keep of several values of a fact that of the highest rank, then the first in the text.

    Where somebody goes or comes from comes after where they are; the name of a district is no kind of place. known:
    what the poster says. A word that only hints at a kind of place, or where somebody comes from, does not speak
    against it, and a home for children is called an orphanage or not.
    """
    if name not in draft.words:
        return
    text = draft.normal.text
    best: tuple[int, int, int, int, Value] | None = None
    present = reading.all_affirmed | reading.all_refused
    named = _spans(reading, present & reading.lexicon.districts) if name == "venue_type" else []
    for number in bits(present & reading.lexicon.places[name]):
        concept = reading.lexicon.concepts[number]
        value = concept.sets[0][1]
        if value in draft.words[name]:
            for hit in reading.hits.get(number, ()):
                if any(start <= hit.start and hit.end <= end for start, end in named):
                    continue
                before = text[max(0, hit.start - 12) : hit.start].rstrip() if name == "province" else ""
                bound = _FROM if before.endswith(_COMES_FROM) else int(before.endswith(_BOUND_FOR))
                order = (bound, -concept.rank, hit.start, hit.end, value)
                if not hit.denied and (best is None or order < best):
                    best = order
    draft.drop((name,))
    if best is None or (known is not None and (-best[1] < CLEAR_PLACE or {known, best[4]} == _CARE)):
        return
    if placed and best[0] == _FROM:
        return
    draft.add(name, best[4], best[2], best[3])
