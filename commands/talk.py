"""How a ceremony speaks with the person at the terminal."""

import getpass
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Talk:
    """How a ceremony speaks with the person at the terminal. secret: what is typed is not shown."""

    say: Callable[[str], None] = print
    ask: Callable[[str], str] = input
    secret: Callable[[str], str] = getpass.getpass
