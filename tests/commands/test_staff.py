"""``./hotline staff``: who acts signs in at the terminal, and the rules are those of the page."""

import getpass
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from commands import staff as command
from service import ceremony
from service.db import open_database, write
from service.models import LedgerEvent, Member, StaffSession, UnitGrant
from tests.builders import NOW, PASSWORD, PEOPLE, World, a_code, a_world

ADMIN_2 = {"admin-2": (PEOPLE["admin"][0], "org-ngo", (), "Ros Chenda", "រស់ ចិន្ដា")}


@pytest.fixture
def world(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    sessions = open_database(sqlite_url)
    world = a_world(sessions, people=PEOPLE | ADMIN_2)
    named = ceremony.write_files(world.founding, tmp_path / "keys", twilio_token="a token")
    kept = ("HOTLINE_CARDS_FILE", "HOTLINE_ROW_KEY_FILE", "HOTLINE_ROOT_VKEY")
    for name, value in {"HOTLINE_DATABASE_URL": sqlite_url, **{name: named[name] for name in kept}}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "_now", lambda: NOW)
    monkeypatch.setattr(command, "read_deck", lambda *_: world.founding.cards)
    yield world
    sessions.close()


@pytest.fixture
def persons(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say who sits down at the terminal, one after the other."""

    def sit_down(*accounts: str, password: str = PASSWORD) -> None:
        typed = "".join(f"{account}\n{a_code()}\n" for account in accounts)
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        monkeypatch.setattr(getpass, "getpass", lambda _words: password)

    return sit_down


def types(world: World) -> list[str]:
    with world.sessions.read() as session:
        return list(session.scalars(select(LedgerEvent.type)).all())


def test_the_list_says_who_has_an_account_and_asks_for_nobody(world: World, capsys: Any) -> None:
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PEOPLE) + 1
    assert any(line.split() == ["screener", "screener", "org-ngo", "screening"] for line in lines)


def test_an_invitation_prints_its_code_alone_on_standard_output(world: World, persons: Any, capsys: Any) -> None:
    persons("admin")
    asked = ["--account", "sokha", "--name", "Sok Ha", "--organisation", "org-ngo", "--role", "screener"]
    assert command.main(["invite", *asked]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.replace(" ", "").strip()) == 24
    assert "sokha" in shown.err
    assert "staff:invitation:made" in types(world)
    with world.sessions.read() as session:
        assert session.scalars(select(StaffSession)).all() == []  # nobody stays signed in


def test_who_may_not_or_cannot_sign_in_changes_nothing(world: World, persons: Any, capsys: Any) -> None:
    asked = ["invite", "--account", "sokha", "--name", "Sok Ha", "--organisation", "org-ngo", "--role", "screener"]
    persons("screener")
    assert command.main(asked) == 1
    persons("admin", password="not it at all, no")
    assert command.main(asked) == 1
    assert "Nothing was changed" in capsys.readouterr().err
    assert "staff:invitation:made" not in types(world)


def test_a_reset_takes_two_people_at_the_terminal(world: World, persons: Any, capsys: Any) -> None:
    persons("admin", "oversight")
    assert command.main(["reset", "screener"]) == 0
    assert len(capsys.readouterr().out.replace(" ", "").strip()) == 24
    with world.sessions.read() as session:
        assert session.scalars(select(Member).where(Member.account == "screener")).one().disabled_at == NOW
    assert command.main(["reset", "nobody"]) == 1


def test_one_person_alone_resets_nobody(world: World, persons: Any) -> None:
    persons("admin", "admin-2")
    assert command.main(["reset", "screener-2"]) == 1
    with world.sessions.read() as session:
        assert session.scalars(select(Member).where(Member.account == "screener-2")).one().disabled_at is None


def test_somebody_is_signed_out_or_barred_at_once(world: World, persons: Any, capsys: Any) -> None:
    world.cookie("screener")
    persons("admin")
    assert command.main(["end-sessions", "screener"]) == 0
    assert capsys.readouterr().out == "1 sessions ended\n"
    persons("admin-2")
    assert command.main(["leave", "screener"]) == 0
    command.main(["list"])
    shown = capsys.readouterr()
    assert "barred 2027-03-09" in shown.out
    assert "unit screening needs a new key" in shown.err


def test_check_says_whether_somebody_changed_the_register(world: World, capsys: Any) -> None:
    assert command.main(["check"]) == 0
    write(world.sessions, lambda tx: tx.execute(delete(UnitGrant).where(UnitGrant.unit == "kandal")))
    assert command.main(["check"]) == 1
    assert "staff:register:differs" in types(world)
    assert "outside the system" in capsys.readouterr().err


@pytest.mark.parametrize("act", ["", "list", "check", "invite", "reset", "end-sessions", "leave"])
def test_the_help_teaches(act: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*act.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "two" in shown
