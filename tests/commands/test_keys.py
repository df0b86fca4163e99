"""The ceremonies: they can be rehearsed, show no private key, and what is refused changes nothing."""

import json
import os
import re
import shutil
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyotp
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from commands import init, keys, offline, rehearsal
from commands.__main__ import COMMANDS
from commands.custody import refuse_foreign_secrets
from commands.rehearsal import ANSWERS, CEREMONIES, Rehearsal
from commands.talk import Talk
from service.config import read_settings
from service.db import open_database, write
from service.errors import Misconfigured
from service.ledger.events import fixed_chain
from service.models import LedgerEvent, Member, Unit, UnitGrant
from service.vault import boxes, passwords
from tests.builders import CHEAP

OFFICERS = ["--officer", "Officer One", "--officer", "Officer Two"]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap Argon2, and no settings of this shell."""
    real = passwords.Parameters
    monkeypatch.setattr(passwords, "Parameters", lambda *a, **k: real(*a, **({} if a else CHEAP) | k))
    for name in [name for name in os.environ if name.startswith("HOTLINE_")]:
        monkeypatch.delenv(name)


def a_scene(folder: Path) -> tuple[Rehearsal, list[str]]:
    """An invented installation, and everything that is said."""
    said: list[str] = []
    return Rehearsal(folder, Talk(said.append)), said


@pytest.fixture
def scene(tmp_path: Path) -> Rehearsal:
    found, _ = a_scene(tmp_path)
    CEREMONIES["found"](found)
    return found


def ask(scene: Rehearsal, *arguments: str, as_process: str = "", answer: str = "same") -> int:
    """Run one ceremony, and return its exit code."""
    person = Talk(lambda _: None, lambda _: answer, scene.person().secret)
    with rehearsal._settings(scene.host / f"{as_process}.env" if as_process else None):
        return keys.main(list(arguments), person)


def events(scene: Rehearsal) -> list[str]:
    sessions = open_database(f"sqlite:///{scene.host / 'data' / 'hotline.db'}")
    with sessions.read() as session:
        chain = select(col(LedgerEvent.type)).where(col(LedgerEvent.case) == fixed_chain("keys"))
        found = list(session.scalars(chain.order_by(col(LedgerEvent.seq))).all())
    sessions.close()
    return found


# --- the whole of it ---


def test_every_ceremony_is_rehearsed_and_shows_no_private_key(tmp_path: Path) -> None:
    scene, said = a_scene(tmp_path)
    for name in CEREMONIES:
        CEREMONIES[name](scene)
    words = "\n".join(said)
    secrets = []
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix in (".key", ".seed", ".pepper", ".identity"):
            assert path.stat().st_mode & 0o777 == 0o400, path
            secrets += re.findall(r"[0-9a-f]{64}", path.read_text())
    assert len(secrets) > 15
    for secret in secrets:
        forms = secret, b64encode(bytes.fromhex(secret)).decode()
        assert not any(form in words for form in forms)
    custodian = bytes.fromhex(next((tmp_path / "office-beta").iterdir()).read_text().strip())
    assert b64encode(boxes.public_of(custodian)).decode() in words, "the control: its public half is said"
    assert events(scene) == [
        *("keys:cards:published", "keys:relay:rotated", "keys:relay:rotated", "keys:pepper:rotated"),
        *("keys:unit:rotated", "keys:cards:published", "keys:recovery:used"),
    ]


def test_a_rehearsal_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    assert keys.main(["rehearse"], Talk(said.append)) == 0
    assert list(tmp_path.iterdir()) == []
    assert "The folder and its keys are gone" in said[-1]


REHEARSED = sorted({*CEREMONIES, *(name for names in rehearsal.FOLLOWS.values() for name in names)} - {"found"})


def test_each_ceremony_has_its_rehearsal() -> None:
    actions = [action for action in keys.parser()._actions if action.dest == "ceremony"]
    assert sorted(set(actions[0].choices) - {"rehearse"}) == REHEARSED  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["relay", "unit-move", "recovery-give"])
def test_one_ceremony_is_rehearsed_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "unit-move": ["screening", "--account", "x"],
        "recovery-give": ["b", "n", "--unit", "u", "--cards", "c", "--root-vkey", "v", "--boxes", "x"],
    }
    said: list[str] = []
    assert keys.main([name, *given.get(name, []), "--rehearse"], Talk(said.append)) == 0
    words = "\n".join(said)
    assert f"$ ./hotline keys {name}" in words or name not in CEREMONIES
    assert "That was the rehearsal" in words


def test_a_rehearsal_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(rehearsal.ANSWERS, "officers", ["one alone"])
    said: list[str] = []
    assert keys.main(["rehearse"], Talk(said.append)) == 1
    assert "stopped" in said[-1]
    assert "two officers" in capsys.readouterr().err


def test_help_explains_each_ceremony(capsys: pytest.CaptureFixture[str]) -> None:
    for name in [*REHEARSED, None]:
        with pytest.raises(SystemExit) as end:
            keys.main([*([name] if name else []), "--help"])
        assert end.value.code == 0
        assert len(capsys.readouterr().out) > 200
    assert {"keys", "init"} <= set(COMMANDS)


# --- what is refused ---


def next_cards(scene: Rehearsal, *lines: str) -> Path:
    new, root = scene.folder / "next.note", scene.offline / offline.ROOT_SEED
    arguments = [word for line in lines for word in ("--line", line)]
    assert ask(scene, "cards", str(scene.host / "cards.note"), str(new), "--root", str(root), *arguments) == 0
    return new


@pytest.mark.parametrize(
    ("officers", "answer"),
    [([], "same"), (OFFICERS[:2], "same"), ([*OFFICERS[:2], *OFFICERS[:2]], "same"), (OFFICERS, "almost")],
)
def test_cards_are_published_by_two_who_compared_them(scene: Rehearsal, officers: list[str], answer: str) -> None:
    new, before = next_cards(scene), (scene.host / "cards.note").read_bytes()
    assert ask(scene, "publish", str(new), *officers, as_process="staff", answer=answer) == 1
    assert (scene.host / "cards.note").read_bytes() == before
    assert events(scene) == ["keys:cards:published"]
    assert ask(scene, "publish", str(new), *OFFICERS, as_process="staff") == 0, "the control"
    assert ask(scene, "publish", str(new), *OFFICERS, as_process="staff") == 1, "the same serial again"


def test_cards_of_another_root_or_an_older_file_are_refused(scene: Rehearsal, tmp_path: Path) -> None:
    old = tmp_path / "old.note"
    old.write_bytes((scene.host / "cards.note").read_bytes())
    assert ask(scene, "publish", str(next_cards(scene)), *OFFICERS, as_process="staff") == 0
    assert ask(scene, "publish", str(old), *OFFICERS, as_process="staff") == 1
    other, _ = a_scene(tmp_path / "another")
    other.folder.mkdir()
    CEREMONIES["found"](other)
    foreign = next_cards(other)
    assert ask(scene, "publish", str(foreign), *OFFICERS, as_process="staff") == 1


def a_line(generation: int, kind: str = "screening", organisation: str = "org-a") -> str:
    key = b64encode(boxes.keypair()[1]).decode()
    return f"unit screening {kind} {organisation} {generation} {key} 2026-11-22"


@pytest.mark.parametrize(
    "line",
    ["", "unit screening", a_line(1), a_line(3), a_line(2, kind="oversight"), a_line(2, organisation="org-b")],
    ids=["empty", "cut", "the same", "skips one", "another kind", "another organisation"],
)
def test_the_root_signs_only_a_units_next_line(scene: Rehearsal, line: str) -> None:
    new, root = scene.folder / "next.note", scene.offline / offline.ROOT_SEED
    present = str(scene.host / "cards.note")
    assert ask(scene, "cards", present, str(new), "--root", str(root), "--line", line) == 1
    assert not new.exists()
    next_cards(scene, a_line(2))


def test_one_custodian_recovers_nothing(scene: Rehearsal) -> None:
    bundle, given = scene.folder / "bundle", scene.folder / "given"
    assert ask(scene, "recovery-bundle", "first.screener", str(bundle), as_process="staff") == 0
    beta = f"{scene.folder}/office-beta/custodian-beta.key"
    common = ["recovery-give", str(bundle), str(given), "--unit", "oversight"]
    common += ["--cards", str(scene.host / "cards.note"), "--root-vkey", scene.root_vkey]
    common += ["--boxes", str(scene.offline / offline.RECOVERY_BOXES)]
    assert ask(scene, *common, "--key", f"beta={beta}") == 1
    assert ask(scene, *common, "--key", f"beta={beta}", "--key", f"gamma={beta}") == 1
    assert not given.exists()
    gamma = f"{scene.folder}/office-gamma/custodian-gamma.key"
    assert ask(scene, *common, "--key", f"beta={beta}", "--key", f"gamma={gamma}") == 0, "the control"
    assert ask(scene, "recovery-take", str(given), "--account", "first.overseer", as_process="staff") == 1
    assert "keys:recovery:used" not in events(scene)


def test_a_pepper_is_made_once_and_only_ahead(scene: Rehearsal) -> None:
    assert ask(scene, "pepper", "--start", "2020-01-01T00:00Z", as_process="public") == 1
    assert ask(scene, "pepper", as_process="public") == 0
    assert ask(scene, "pepper", as_process="public") == 1
    assert events(scene).count("keys:pepper:rotated") == 1


def test_a_relay_key_can_lie_on_all_hosts_before_it_is_used(scene: Rehearsal) -> None:
    ring = scene.host / "keys" / "worker" / "relay.key"
    assert ask(scene, "relay", "--make-only", as_process="worker") == 0
    made = ring.read_text()
    assert events(scene) == ["keys:cards:published"]
    assert ask(scene, "relay", as_process="worker") == 0
    assert ring.read_text() == made, "the key that was copied is the one that is used"
    assert events(scene)[1:] == ["keys:relay:rotated"]


def test_a_wrong_password_does_nothing(scene: Rehearsal, capsys: pytest.CaptureFixture[str]) -> None:
    for account in ("first.screener", "nobody"):
        person = Talk(lambda _: None, lambda _: "same", lambda _: "not the password at all")
        with rehearsal._settings(scene.host / "staff.env"):
            assert keys.main(["unit-next", "screening", "--account", account], person) == 1
    assert len(set(capsys.readouterr().err.splitlines())) == 1, "an unknown account reads the same"
    assert events(scene) == ["keys:cards:published"]


def test_a_units_next_key_wants_the_code_of_the_phone_and_each_code_once(scene: Rehearsal) -> None:
    person = scene.person()

    def next_key(code: str) -> int:
        talk = Talk(lambda _: None, lambda _: code, person.secret)
        with rehearsal._settings(scene.host / "staff.env"):
            return keys.main(["unit-next", "screening", "--account", "first.screener"], talk)

    def refusals() -> int:
        sessions = open_database(f"sqlite:///{scene.host / 'data' / 'hotline.db'}")
        with sessions.read() as session:
            told = select(col(LedgerEvent.type)).where(col(LedgerEvent.type) == "staff:session:refused")
            found = len(session.scalars(told).all())
        sessions.close()
        return found

    code = pyotp.TOTP(scene._factors["first.screener"]).now()
    wrong = f"{(int(code) + 1) % 10**6:06}"
    assert [next_key(given) for given in ("", wrong)] == [1, 1]
    assert events(scene) == ["keys:cards:published"]
    assert next_key(code) == 0
    assert events(scene) == ["keys:cards:published", "keys:unit:rotated"]
    with rehearsal._settings(scene.host / "staff.env"):
        again = Talk(lambda _: None, lambda _: code, person.secret)
        assert keys.main(["unit-move", "screening", "--account", "first.screener"], again) == 1
    assert refusals() == 3


def test_show_says_which_unit_needs_a_new_key_because_somebody_left(scene: Rehearsal) -> None:
    def shown() -> str:
        scene.run("show", as_process="worker")
        return "\n".join(scene.said)

    assert "has left" not in shown()
    sessions = open_database(f"sqlite:///{scene.host / 'data' / 'hotline.db'}")
    left = {"stale_generation": 1, "stale_since": datetime(2027, 3, 9, tzinfo=UTC)}
    write(sessions, lambda tx: tx.execute(update(Unit).where(col(Unit.id) == "screening").values(**left)))
    sessions.close()
    assert "somebody who knows this key has left on 2027-03-09  DUE: ./hotline keys unit-next screening" in shown()
    CEREMONIES["unit-next"](scene)
    assert "has left" not in shown()


def test_a_unit_key_of_another_unit_is_not_granted(scene: Rehearsal) -> None:
    key = scene.offline / "unit-oversight.key"
    given = ["unit-first", "monitor", "--account", "first.overseer", "--key"]
    assert ask(scene, *given, str(key), as_process="staff") == 1
    assert ask(scene, *given, str(scene.offline / "unit-monitor.key"), as_process="staff") == 0


# --- the founding ---


class Stop(Exception):
    """Somebody pulled the plug."""


def answers(tmp_path: Path, **changed: Any) -> Path:
    file = tmp_path / "given.json"
    public = {name: b64encode(boxes.keypair()[1]).decode() for name in rehearsal.CUSTODIANS}
    file.write_text(json.dumps(ANSWERS | {"custodians": public} | changed))
    return file


def found(tmp_path: Path, talk: Talk | None = None, **changed: Any) -> int:
    scene, _ = a_scene(tmp_path)
    file = tmp_path / "given.json"
    file = file if file.exists() and not changed else answers(tmp_path, **changed)
    arguments = [str(scene.host), "--offline", str(scene.offline), "--answers", str(file)]
    return init.main(arguments, talk or scene.person())


def test_a_founding_that_is_interrupted_anywhere_goes_on_and_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every file that is written and every row that is stored, once."""
    writes = {"count": 0, "limit": 10**9}

    def counted(real: Any) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            writes["count"] += 1
            if writes["count"] > writes["limit"]:
                raise Stop
            return real(*arguments, **more)

        return run

    template = tmp_path / "template.db"
    init.migrate(f"sqlite:///{template}")

    def migrate(url: str) -> None:
        target = Path(url.removeprefix("sqlite:///"))
        if not target.exists():
            shutil.copy(template, target)

    monkeypatch.setattr(init, "migrate", migrate)
    monkeypatch.setattr(init, "write", counted(init.write))
    monkeypatch.setattr(init, "write_secret", counted(init.write_secret))
    monkeypatch.setattr(offline, "write_secret", counted(offline.write_secret))
    monkeypatch.setattr(offline, "write_boxes", counted(offline.write_boxes))
    monkeypatch.setattr(init, "_publish", counted(init._publish))
    monkeypatch.setattr(init, "_confirm", counted(init._confirm))

    (tmp_path / "whole").mkdir()
    assert found(tmp_path / "whole") == 0
    total = writes["count"]
    assert total > 25
    folder = tmp_path / "halting"
    folder.mkdir()
    seen: set[str] = set()
    for _ in range(2 * total):
        writes.update(count=0, limit=1)  # one thing gets written, then somebody pulls the plug
        try:
            code = found(folder)
        except Stop:
            root = folder / "machine-without-a-network" / offline.ROOT_SEED
            seen |= {root.read_text()} if root.exists() else set()
            continue
        assert code == 0
        break
    else:
        pytest.fail("it never came to its end")
    assert len(seen) == 1, "the root was made once"
    check_whole(folder)
    check_whole(tmp_path / "whole")


def check_whole(folder: Path) -> None:
    scene, _ = a_scene(folder)
    sessions = open_database(f"sqlite:///{scene.host / 'data' / 'hotline.db'}")
    with sessions.read() as session:
        assert sorted(session.scalars(select(Member.account)).all()) == ["first.overseer", "first.screener"]
        assert sorted(session.scalars(select(UnitGrant.unit)).all()) == ["oversight", "screening"]
    sessions.close()
    assert ask(scene, "show", as_process="worker") == 0
    rows = {(scene.host / "keys" / process / "row.key").read_text() for process in ("public", "staff", "worker")}
    assert len(rows) == 1, "the same in all processes"
    for path in [*(scene.host / "keys").rglob("*"), *scene.offline.glob("*.key"), *scene.offline.glob("*.seed")]:
        kept = 0o600 if path.name == "state.json" else 0o400  # what the signer remembers moves on with each head
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else kept), path


def test_each_process_is_named_only_its_own_column(scene: Rehearsal) -> None:
    from tests.commands.test_process_split import PROCESSES, TABLE

    for process in PROCESSES:
        settings = read_settings(scene.host / f"{process}.env")
        named = {name for name in TABLE if getattr(settings, f"{name.lower()}_file") is not None}
        wanted = {name for name, (_, who) in TABLE.items() if process in who}
        assert named == wanted - {"TWILIO_PREVIOUS_TOKEN", "LEDGER_KEY"}
        with rehearsal._settings(scene.host / f"{process}.env"), pytest.raises(Misconfigured, match="can read"):
            refuse_foreign_secrets(settings, process)


BAD: dict[str, dict[str, Any]] = {
    "one officer": {"officers": ["A", "a "]},
    "one member": {"members": ANSWERS["members"][:1]},
    "a unit of nobody": {"units": [{**ANSWERS["units"][0], "organisation": "org-x"}, *ANSWERS["units"][1:]]},
    "no oversight of another": {"units": [{**unit, "organisation": "org-a"} for unit in ANSWERS["units"]]},
    "no monitor": {"units": ANSWERS["units"][:2]},
    "a kind that is none": {"units": [{**ANSWERS["units"][0], "kind": "police"}]},
    "two custodians": {"custodians": {"a": "x"}},
    "no address": {"public_url": "here"},
    "no list": {"organisations": None},
    "a password in an address": {"database_url": "postgresql://hotline:word@db/hotline"},
}


@pytest.mark.parametrize("what", BAD)
def test_answers_that_found_nothing_safe_are_refused_before_anything_is_made(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(tmp_path, **BAD[what]) == 1
    assert capsys.readouterr().err.startswith("hotline init: ")
    assert [path.name for path in (tmp_path / "host").rglob("*")] == ["data"]
    assert not (tmp_path / "machine-without-a-network").exists()


def test_weak_passwords_and_wrong_codes_are_asked_again(tmp_path: Path) -> None:
    scene, said = a_scene(tmp_path)
    person, typed = scene.person(), iter(["short", "seven calm rivers of rice", "another one entirely"])
    codes = iter(["000000x"])

    def secret(words: str) -> str:
        if "first.screener" in words or "once more" in words:
            found = next(typed, None)
            if found is not None:
                return found
        return person.secret(words)

    def question(words: str) -> str:
        return next(codes, None) or person.ask(words)

    assert found(tmp_path, Talk(person.say, question, secret)) == 0
    words = "\n".join(said)
    for expected in ("at least 15 characters", "two different ones", "That is not the code"):
        assert expected in words


def test_without_custodians_or_a_token_it_says_what_is_missing(tmp_path: Path) -> None:
    scene, said = a_scene(tmp_path)
    assert found(tmp_path, scene.person(), custodians={}, twilio_account_sid="") == 0
    words = "\n".join(said)
    assert "There is no recovery key" in words
    assert "There is no Twilio token" in words


def test_it_asks_for_everything_when_no_file_is_given(tmp_path: Path) -> None:
    scene, _ = a_scene(tmp_path)
    person = scene.person()
    lines = [ANSWERS["public_url"], "", "", "", ""]
    for name in ("organisations", "units", "members"):
        for entry in ANSWERS[name]:
            lines += ["yes", *entry.values()]
        lines.append("")
    lines += ["Officer One", "Officer Two", ""]
    typed = iter(lines)
    talk = Talk(person.say, lambda words: person.ask(words) if "digits" in words else next(typed), person.secret)
    assert init.main([str(scene.host), "--offline", str(scene.offline)], talk) == 0
    assert next(typed, None) is None
    check_whole(tmp_path)
