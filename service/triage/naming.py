"""The place and the suspect that a text names, in one spelling, so that two tips about them can meet (keys.md 2, 8).

Pure, in memory: only keyed names of what is found here are ever stored. A wrong name ties strangers together and a
missing one costs a count, so whatever is not clear gives none: two different names, a mere landmark, a word that may
as well describe.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from service.triage.facts import HARMS, NOW, Fact
from service.triage.places import PROVINCES, district_names
from service.triage.strict_yaml import load
from service.triage.text import KHMER_BASE, normalise

LONGEST = 4000  # characters that are looked at: a name stands where the account begins
MOST_WORDS = 3  # of a Latin name
MOST_CLUSTERS = 6  # of a Khmer name, or of each half of it

_DATA: Mapping[str, Any] = load(Path(__file__).with_name("naming.yaml"))


def _listed(key: str) -> tuple[str, ...]:
    return tuple(_DATA[key].split())


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(normalise(word).text) for word in sorted(words, key=len, reverse=True))


@dataclass(frozen=True, slots=True)
class _Kind:
    """Kinds of place that people do not tell apart: they bear one name together. The words for them, normalised."""

    name: str
    latin: frozenset[tuple[str, ...]]
    khmer: re.Pattern[str]


_KINDS: Mapping[str, _Kind] = {
    venue: kind
    for name, row in _DATA["kinds"].items()
    for kind in [
        _Kind(name, frozenset(tuple(each.split()) for each in row["latin"]), re.compile(_any_of(row["khmer"])))
    ]
    for venue in row["venue_types"]
}
_NAMED, _BESIDE, _WITHIN = (frozenset(_listed(key)) for key in ("named", "beside", "within"))
_ORDINARY, _OWN, _ADDRESSED = (frozenset(_listed(key)) for key in ("ordinary", "own", "addressed"))
_HELPS, _TITLES, _TEACHING = (frozenset(_listed(key)) for key in ("helps", "titles", "teaching"))
_DESCRIBING = frozenset(_listed("describing"))
_ROLES = _TITLES | frozenset(_listed("roles"))
_LOWER_TITLES = frozenset(("mr", "mister"))  # what follows them is a name however it is typed
_OWN_TOO = frozenset((("name", "is"), ("this", "is")))
_HARM = frozenset((*HARMS, *NOW, "child_labour", "material_shared", "threat_to_share", "retaliation_threat"))

_TITLE_SEEN = re.compile(
    rf"\b(?:{'|'.join(sorted(_TITLES))}|(?:{'|'.join(sorted(_ROLES))}) (?:{'|'.join(sorted(_NAMED))}))\b", re.IGNORECASE
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_QUOTED = re.compile(r"\W{0,3}[\"“«]([^\"“”«»\n]{2,40})[\"”»]")
_KHMER_RUN = re.compile(r"[\u1780-\u17d3\u17dd]+")
# Letters that phones and people put for one another: the lexicon's slips, taken all together.
_KHMER_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u17cb\u17c9\u17ca\u17cd\u17d0", None),
        **dict.fromkeys("\u17b8\u17b9\u17ba", "\u17b7"),
        "\u17bc": "\u17bb",
        "\u178e": "\u1793",
        "\u17a1": "\u179b",
    }
)
# casework.md section 10, 2: spellings of one Khmer sound in Latin letters.
_LATIN_ALIKE = tuple(
    (re.compile(pattern), same)
    for pattern, same in (
        ("ph", "p"),
        ("th", "t"),
        ("kh", "k"),
        ("ch|j", "c"),
        ("nh|ny", "n"),
        ("w", "v"),
        ("oeu|eu|oe", "e"),
        ("ou|oo", "u"),
        ("au|ao|or(?![aeiou])", "o"),
        ("ea|ie|y", "i"),
        (r"(.)\1+", r"\1"),
        ("[hr]$", ""),
    )
)


@dataclass(frozen=True, slots=True)
class Names:
    """What a text names, each in one spelling, or None.

    place: kind, name and province code, joined by ``|``; the province is empty when the tip tells none. place_anywhere:
    the same without its province, for tips that tell none. suspect: the parts of the name in the order of the alphabet;
    of a single one, which many bear, also what the person is and the province.
    """

    place: str | None = None
    place_anywhere: str | None = None
    suspect: str | None = None


NOTHING = Names()


def names_in(text: str, facts: Mapping[str, Fact], context: Mapping[str, str]) -> Names:
    """Return the place and the suspect that `text` names (triage.md section 2, history).

    facts: what else the tip says: a place counts only if it is of the kind that the tip is about, a person only beside
    a harm or a danger. context: `placement` is the code of a poster; it stands for the place it hangs in when the tip
    is about a place of that kind.
    """
    if len(text) > LONGEST:  # the last word may be cut
        text = text[:LONGEST].rpartition(" ")[0]
    venue = str(facts["venue_type"].value) if "venue_type" in facts else ""
    kind, province = _KINDS.get(venue), str(facts["province"].value) if "province" in facts else ""
    copy = normalise(text).text if _KHMER_RUN.search(text) else ""
    place = anywhere = None
    if (code := context.get("placement")) and venue and context.get("venue_type") == venue:
        place = anywhere = f"placement|{code}"
    elif kind is not None and (name := _only(_places(text, copy, kind))) is not None:
        place, anywhere = f"{kind.name}|{name}|{province}", f"{kind.name}|{name}|"
    harmed = any(fact.name in _HARM and fact.value == "yes" for fact in facts.values())
    return Names(place, anywhere, _only(_persons(text, copy, province)) if harmed else None)


def spelt(name: str) -> str:
    """Return `name` in the one spelling in which it is compared; spaces, case and easily mistaken letters are gone."""
    return "".join(_spelt(part) for part in normalise(name).text.split())


def _spelt(word: str) -> str:
    word = "".join(letter for letter in word if letter.isalnum() or "\u17b6" <= letter <= "\u17d3")
    if _KHMER_RUN.search(word):
        return word.translate(_KHMER_ALIKE)
    for pattern, same in _LATIN_ALIKE:
        word = pattern.sub(same, word)
    return word


def _only(names: Iterable[str]) -> str | None:
    """The name, if there is one and no other beside it, and it is long enough to tell anything."""
    found = set(names) - {""}
    name = found.pop() if len(found) == 1 else ""
    return name if len(name) > 2 else None


# --- Latin letters --------------------------------------------------------------------------------------


class _Word(NamedTuple):
    word: str  # lower case
    capital: bool
    start: int
    end: int
    joined: bool  # nothing but a blank or a hyphen stands between it and the word before

    @property
    def ordinary(self) -> bool:
        """Whether it can be no part of a name: a colour can, in large letters."""
        return self.word in _ORDINARY or (not self.capital and self.word in _DESCRIBING)


def _words(text: str) -> list[_Word]:
    letters = [letter for letter in text if "A" <= letter <= "z"]
    shouted = sum(map(str.isupper, letters)) * 2 > len(letters)
    words: list[_Word] = []
    for match in _WORD.finditer(text):
        gap = text[words[-1].end : match.start()] if words else "."
        plain = match[0].lower() if match[0].isascii() else normalise(match[0]).text
        capital = match[0][0].isupper() and not shouted
        words.append(_Word(plain, capital, *match.span(), gap in (" ", "-", " & ")))
    return words


def _places(text: str, copy: str, kind: _Kind) -> Iterable[str]:
    lowered = text.lower()
    if any(words[-1] in lowered for words in kind.latin):
        yield from _latin_places(text, _words(text), kind.latin)
    yield from _khmer_places(text, copy, kind.khmer)


def _latin_places(text: str, words: Sequence[_Word], kinds: frozenset[tuple[str, ...]]) -> Iterable[str]:
    """Names before a word for a kind of place ("Golden Lotus Hotel"), or after it ("hotel Lotus", "hotel called …")."""
    at = 0
    while at < len(words):
        two = tuple(each.word for each in words[at : at + 2])
        long = len(two) if two in kinds else int(two[:1] in kinds)
        if long:
            before = _before(words, at)
            name = before if before else _after(text, words, at + long)
            first = at - len(before)
            if name and not _beside(words, first):
                parts = _without_geography([each.word for each in name] if isinstance(name, list) else [name])
                if set(parts) - _DESCRIBING:
                    yield spelt(" ".join(parts))
        at += long or 1


def _before(words: Sequence[_Word], at: int) -> list[_Word]:
    name: list[_Word] = []
    first = at
    while first and words[first].joined and len(name) < MOST_WORDS and not words[first - 1].ordinary:
        first -= 1
        name.insert(0, words[first])
    capital = [each.capital for each in name]
    if all(capital):
        return name
    if any(capital):  # "Yesterday at Lotus": what stands before the first small letter is no part of it
        last_small = max(n for n, large in enumerate(capital) if not large)
        return name[last_small + 1 :]
    # In small letters only what is held between "at the" and the word: it names, or describes with an ordinary word.
    bound = first - 1 if first and words[first - 1].word != "the" else first - 2
    held = bound >= 0 and words[first].joined and words[bound].word in _WITHIN
    return name if held else []


def _after(text: str, words: Sequence[_Word], at: int) -> "list[_Word] | str":
    called = at < len(words) and words[at].joined and words[at].word in _NAMED
    at += called
    quoted = _QUOTED.match(text, words[at - 1].end)
    if quoted:
        return quoted[1]
    name: list[_Word] = []
    while at < len(words) and words[at].joined and len(name) < MOST_WORDS and not words[at].ordinary:
        if not (words[at].capital or called):
            break
        name.append(words[at])
        at += 1
    open_end = called and not all(each.capital for each in name) and at < len(words) and words[at].joined
    return [] if open_end and not words[at].ordinary else name


def _beside(words: Sequence[_Word], first: int) -> bool:
    """Whether what begins at `first` is where something else is near to."""
    before = [each.word for each in words[max(0, first - 3) : first]]
    while before and before[-1] in ("the", "a", "of", "to", "from"):
        before.pop()
    return bool(before) and before[-1] in _BESIDE


def _geography() -> frozenset[str]:
    districts = district_names().values()
    towns = {name for names in districts for name in names["name"]}
    khmer = {_spelt(name) for names in districts for name in names["km"]}
    khmer |= {_spelt(words.km) for words in PROVINCES.values()}
    latin = {words.en.lower() for words in PROVINCES.values()} | {"sihanoukville", "cambodia", "pp"}
    return frozenset(towns | khmer | latin)


_GEOGRAPHY = _geography()


def _without_geography(parts: list[str]) -> list[str]:
    """The parts of a name without a province or district at either end: that is where it is, not what it is."""
    for size in range(len(parts), 0, -1):
        if " ".join(parts[-size:]) in _GEOGRAPHY:
            return _without_geography(parts[:-size])
        if " ".join(parts[:size]) in _GEOGRAPHY:
            return _without_geography(parts[size:])
    return parts


def _persons(text: str, copy: str, province: str) -> Iterable[str]:
    yield from _khmer_persons(copy, province)
    words = _words(text) if _TITLE_SEEN.search(text) else []
    for at, title in enumerate(words):
        if title.word not in _ROLES or at + 1 >= len(words) or not _follows(text, title, words[at + 1]):
            continue
        called = words[at + 1].word in _NAMED
        begin = at + 2 if called and words[at + 1 : at + 3][-1].word != "is" else at + 1 + 2 * called
        if title.word not in _TITLES and not called:
            continue
        name = _person(words, begin, small=called or title.word in _LOWER_TITLES)
        said_by = words[at - 1].word if at else ""
        own = said_by in _OWN or tuple(each.word for each in words[max(0, at - 2) : at]) in _OWN_TOO
        after = words[begin + len(name)].word if begin + len(name) < len(words) else ""
        if name and not own and said_by not in _ADDRESSED and after not in _HELPS:
            yield _whole([each.word for each in name], "teacher" if title.word in _TEACHING else "", province)


def _follows(text: str, word: _Word, then: _Word) -> bool:
    return text[word.end : then.start] in ((" ", ". ", ".") if word.word == "mr" else (" ",))


def _person(words: Sequence[_Word], begin: int, *, small: bool) -> list[_Word]:
    name: list[_Word] = []
    at = begin
    while at < len(words) and len(name) < MOST_WORDS and (not name or words[at].joined):
        if words[at].ordinary or words[at].word in _DESCRIBING | _ADDRESSED or not words[at].word.isalpha():
            break
        if not words[at].capital and (not small or any(each.capital for each in name)):
            break
        name.append(words[at])
        at += 1
    # In small letters nobody can tell where a name of several words ends.
    return name if len(name) == 1 or all(each.capital for each in name) else []


def _whole(parts: Sequence[str], role: str, province: str) -> str:
    """A name whose parts stand in any order, the family's first or last (casework.md section 10); "" if it is none."""
    found = sorted(_spelt(part) for part in parts)
    if len(found) > 1:
        return "".join(found)
    return f"{found[0]}|{role}|{province}" if province and len(found[0]) > 2 and found[0] not in _FAMILY else ""


_FAMILY = frozenset(_spelt(normalise(name).text) for name in (*_listed("families"), *_listed("families_khmer")))


# --- Khmer ----------------------------------------------------------------------------------------------


_PLACES_KHMER = [each for row in _DATA["kinds"].values() for each in row["khmer"]]
_END = re.compile(_any_of([*_listed("ends_khmer"), *_PLACES_KHMER]))
_DESCRIBES = re.compile(_any_of(_listed("describes_khmer")))
_TEACHING_KHMER = tuple(normalise(word).text for word in _TEACHING)
_CALLED = normalise("ឈ្មោះ").text
_BESIDES = tuple(normalise(word).text for word in _listed("beside_khmer"))
_I = "ខ្ញុំ"
_CHILDREN = _listed("children_khmer")


def _khmer_places(text: str, copy: str, kinds: re.Pattern[str]) -> Iterable[str]:
    for match in kinds.finditer(copy):
        if copy[: match.start()].rstrip().endswith(_BESIDES):
            continue
        after = copy[match.end() :].removeprefix(" ")
        called = after.startswith(_CALLED)
        after = after.removeprefix(_CALLED)
        quoted = _QUOTED.match(after)
        if quoted:
            yield spelt(quoted[1])
        elif (latin := _WORD.match(after.lstrip())) and latin[0].isascii():
            # The copy has no capitals: where a Latin name ends shows in the text itself.
            yield from _latin_after(text, latin[0])
        elif called or not copy[match.end() : match.end() + 1].isspace():
            name = _spelt(_khmer_name(after.lstrip()))
            yield "" if name in _GEOGRAPHY else name


def _latin_after(text: str, first: str) -> Iterable[str]:
    words = _words(text)
    for at, each in enumerate(words):
        if each.word == first and each.capital:
            name = [each]
            while at + 1 < len(words) and words[at + 1].joined and words[at + 1].capital and len(name) < MOST_WORDS:
                at += 1
                name.append(words[at])
            parts = _without_geography([one.word for one in name])
            if set(parts) - _DESCRIBING:
                yield spelt(" ".join(parts))
            return


def _khmer_name(text: str) -> str:
    """The Khmer letters that `text` begins with, up to an ordinary word; "" if that is no name."""
    run = _KHMER_RUN.match(text)
    if run is None or _DESCRIBES.match(text):
        return ""
    end = _END.search(run[0])
    name = run[0][: end.start()] if end else run[0]
    return name if 1 < _clusters(name) <= MOST_CLUSTERS and not text[len(name) : len(name) + 1].isdigit() else ""


def _clusters(text: str) -> int:
    return len(KHMER_BASE.findall(text))


def _khmer_persons(copy: str, province: str) -> Iterable[str]:
    """Names after a title or "called", of one or two words between blanks. A name that something is written on to is
    none: common syllables stand in names, and nobody can tell where it ends.
    """
    for match in _KHMER_TITLE.finditer(copy):
        if copy[: match.start()].rstrip().endswith((_I, *_CHILDREN, _KHMER_SAID)):
            continue
        parts: list[str] = []
        rest = copy[match.end() :].lstrip(" ")
        while (run := _KHMER_RUN.match(rest)) and not _begins_otherwise(run[0]):
            parts.append(run[0])
            rest = rest[run.end() :]
            if not rest.startswith(" "):
                break
            rest = rest[1:]
        clear = all(1 < _clusters(part) <= MOST_CLUSTERS and not _END.search(part) for part in parts)
        if len(parts) in (1, 2) and clear and not rest[:1].isdigit():
            yield _whole(parts, "teacher" if match[0].startswith(_TEACHING_KHMER) else "", province)


def _begins_otherwise(word: str) -> bool:
    return bool(_END.match(word) or _DESCRIBES.match(word))


_KHMER_SAID = "ប្រាប់"
_KHMER_TITLE = re.compile(
    f"(?:{_any_of((*_listed('titles_khmer'), *_listed('roles_khmer')))}) ?{_CALLED}|{_any_of(_listed('titles_khmer'))}"
)
