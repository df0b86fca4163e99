"""Whose password is tried next: few at once, fair by address and account, nobody locked out."""

import threading
from contextlib import ExitStack
from datetime import timedelta

import pytest

from service.errors import Busy
from service.turns import FREE_FAILURES, LONGEST_PAUSE, Turns
from tests.builders import NOW


class Crowd:
    """People who wait for a turn, each in a thread of their own. `order` is who got one, by name."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self.sent_away: list[str] = []
        self._threads: list[threading.Thread] = []

    def come(self, name: str, address: str, account: str) -> None:
        """Somebody comes, and waits or is sent away before this returns."""
        before = len(self.turns._waiting), len(self.sent_away)

        def wait() -> None:
            try:
                with self.turns.turn(address, account, NOW):
                    self.order.append(name)
            except Busy:
                self.sent_away.append(name)

        thread = threading.Thread(target=wait)
        thread.start()
        self._threads.append(thread)
        while (len(self.turns._waiting), len(self.sent_away)) == before:
            thread.join(0.001)

    def go(self) -> None:
        for thread in self._threads:
            thread.join(5)


def test_no_more_than_the_slots_run_at_once() -> None:
    turns = Turns(slots=2, queue=0)
    with turns.turn("a", "x", NOW), turns.turn("b", "y", NOW), pytest.raises(Busy):
        turns.turn("c", "z", NOW).__enter__()
    with turns.turn("c", "z", NOW):
        pass


def test_who_fails_inside_gives_the_slot_back() -> None:
    turns = Turns(slots=1, queue=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.turn("a", "x", NOW):
            raise ZeroDivisionError


def test_a_flood_from_one_address_waits_behind_others() -> None:
    turns = Turns(slots=1, queue=20)
    crowd = Crowd(turns)
    with turns.turn("flood", "account-0", NOW):
        for n in range(1, 6):
            crowd.come(f"flood {n}", "flood", f"account-{n}")
        crowd.come("somebody", "elsewhere", "their-account")
    crowd.go()
    assert crowd.order[0] == "somebody"
    assert len(crowd.order) == 6


def test_without_a_flood_who_came_first_is_first() -> None:
    """The control: it is the flood's share that puts it behind."""
    turns = Turns(slots=1, queue=20)
    crowd = Crowd(turns)
    with turns.turn("first", "account-0", NOW):
        for n in range(1, 4):
            crowd.come(f"{n}", f"address-{n}", f"account-{n}")
    crowd.go()
    assert crowd.order == ["1", "2", "3"]


def test_a_flood_at_one_account_from_many_addresses_waits_behind_other_accounts() -> None:
    turns = Turns(slots=1, queue=20)
    crowd = Crowd(turns)
    with turns.turn("bot-0", "screener", NOW):
        for n in range(1, 6):
            crowd.come(f"bot {n}", f"bot-{n}", "screener")
        crowd.come("oversight", "office", "oversight")
    crowd.go()
    assert crowd.order[0] == "oversight"


def test_where_an_account_was_let_in_lately_others_do_not_delay_it() -> None:
    turns = Turns(slots=1, queue=20)
    turns.let_in("home", "screener", NOW)
    crowd = Crowd(turns)
    with turns.turn("bot-0", "screener", NOW):
        for n in range(1, 6):
            crowd.come(f"bot {n}", f"bot-{n}", "screener")
        crowd.come("owner", "home", "screener")
    crowd.go()
    assert crowd.order[0] == "owner"


def test_a_full_queue_sends_the_flood_away_and_not_who_comes_alone() -> None:
    turns = Turns(slots=1, queue=3)
    crowd = Crowd(turns)
    with turns.turn("flood", "account-0", NOW):
        for n in range(1, 4):
            crowd.come(f"flood {n}", "flood", f"account-{n}")
        crowd.come("flood 4", "flood", "account-4")
        assert crowd.sent_away == ["flood 4"]
        crowd.come("somebody", "elsewhere", "their-account")
    crowd.go()
    assert "somebody" in crowd.order
    assert sorted(crowd.sent_away) == ["flood 3", "flood 4"]


def test_wrong_tries_wait_longer_each_time_and_never_longer_than_half_a_minute() -> None:
    turns, now = Turns(), NOW
    for _ in range(FREE_FAILURES):
        with turns.turn("a", "x", now):
            turns.refused("a", "x", now)
    with pytest.raises(Busy):
        turns.turn("a", "x", now).__enter__()
    with turns.turn("b", "x", now), turns.turn("a", "y", now):
        pass  # from elsewhere, and for another account, at once

    for _ in range(20):
        turns.refused("a", "x", now)
    with pytest.raises(Busy):
        turns.turn("a", "x", now + timedelta(seconds=LONGEST_PAUSE - 1)).__enter__()
    with turns.turn("a", "x", now + timedelta(seconds=LONGEST_PAUSE)):
        turns.let_in("a", "x", now)
    with turns.turn("a", "x", now):
        pass


def test_nothing_is_remembered_for_ever_and_no_name_in_clear() -> None:
    with ExitStack() as stack:
        turns = Turns()
        for n in range(50):
            turns.refused(f"address-{n}", "screener", NOW)
        stack.enter_context(turns.turn("a", "screener", NOW + timedelta(hours=1)))
        assert turns._failures == {}
        assert len(turns._taken) == 2
    assert b"screener" not in repr(vars(turns)).encode()
