"""The ruleset and the lexicon in force, loaded once."""

from pathlib import Path

import pytest

from service.triage import Lexicon, Ruleset, Triage

FOLDER = Path(__file__).resolve().parents[3] / "service" / "triage"
RULESET_FILE = FOLDER / "rules" / "kh-hotline-triage.yaml"
LEXICON_DIR = FOLDER / "lexicon"


@pytest.fixture(scope="session")
def triage() -> Triage:
    return Triage.load(RULESET_FILE, LEXICON_DIR)


@pytest.fixture(scope="session")
def ruleset(triage: Triage) -> Ruleset:
    return triage.ruleset


@pytest.fixture(scope="session")
def lexicon(triage: Triage) -> Lexicon:
    return triage.lexicon
