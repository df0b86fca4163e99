"""``python -m service.vault.deriver``: the process that does all Argon2 work on return codes (keys.md section 7).

A child of the public app at low priority, with its own memory: what is derived here takes none of the time, and none
of the memory, in which tips are received. It speaks JSON lines over its pipes and writes nothing anywhere else; the
code pepper comes through the pipe, so that it stands in no list of processes. It ends when its standard input does.

First line in: ``{"pepper", "origin", "tag": [passes, MiB], "box": [passes, MiB]}``. Then each line asks for one thing:
``{"make": true}`` for a finished code, ``{"open": code, "id": n}`` for the address of one that was typed.
"""

import json
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from service.vault import mailbox
from service.vault.mailbox import Address, Cost

NICE = 10
OPENERS = 2
MAKERS = 1


def greeting(pepper: bytes, origin: str, tag: Cost, box: Cost) -> bytes:
    """Return the first line, which tells the process all it must know."""
    return _line({"pepper": pepper.hex(), "origin": origin, "tag": [tag.passes, tag.mib], "box": [box.passes, box.mib]})


def make_request() -> bytes:
    """Return the line that asks for a finished code."""
    return _line({"make": True})


def open_request(number: int, code: str) -> bytes:
    """Return the line that asks where the mailbox of `code` is. number: comes back with the answer."""
    return _line({"open": code, "id": number})


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer `requests` until they end. Openings never wait for the making of codes: each has its own threads."""
    known = json.loads(requests.readline())
    pepper, origin = bytes.fromhex(known["pepper"]), known["origin"]
    tag_cost, box_cost = Cost(*known["tag"]), Cost(*known["box"])
    writing = threading.Lock()

    def answer(told: dict[str, Any]) -> None:
        with writing:
            answers.write(_line(told))
            answers.flush()

    def opened(asked: dict[str, Any]) -> None:
        answer({"id": asked["id"], **_told(mailbox.address(asked["open"], pepper, box_cost))})

    def made(_asked: dict[str, Any]) -> None:
        code = mailbox.new_code()
        told = _told(mailbox.address(code, pepper, box_cost))
        answer({"code": code, "key": mailbox.tag_key(code, origin, tag_cost).hex(), **told})

    opening, making = _workers(opened, OPENERS), _workers(made, MAKERS)
    for line in requests:
        asked = json.loads(line)
        (opening if "open" in asked else making).put(asked)


def _workers(work: Callable[[dict[str, Any]], None], count: int) -> "queue.SimpleQueue[dict[str, Any]]":
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        while True:
            try:
                work(waiting.get())
            except BaseException:  # noqa: BLE001 - no memory, no pipe: the parent makes do without us, and begins anew
                os._exit(1)

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    return waiting


def _told(address: Address) -> dict[str, str]:
    return {"locator": address.locator.hex(), "kek": address.kek.hex()}


def _line(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode("ascii") + b"\n"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICE)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BaseException:  # noqa: BLE001 - its words would stand in the parent's log
        os._exit(1)
    os._exit(0)  # what is being derived is for nobody any more
