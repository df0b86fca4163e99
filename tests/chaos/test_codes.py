"""A return code in a running installation: it leads back, it stands in no file, and the child may die."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from urllib.parse import urlencode

from service.db import Sessions
from service.vault.mailbox import read_code
from tests.chaos.running import Forks, Installation, Process, wait_for
from tests.chaos.scan import Scanner
from tests.chaos.sending import Answer, Line, a_request, ask, form_request
from tests.webhooks.builders import FORM_TYPE

FORM = (b"content-type", FORM_TYPE.encode())
CODE = re.compile(r"\d{4} \d{4} \d{4} \d{4}")
CANARY = "kxgate7f3a91blue"


def exchange(port: int, request: bytes) -> Answer:
    async def once() -> Answer:
        async with Line(port) as line:
            return await line.ask(request)

    return asyncio.run(once())


def tell(public: Process, words: str) -> Answer:
    page = ask(public.port, "GET", "/report?lang=en").text
    return exchange(public.port, form_request(page, {"what": words, "back": "yes"}))


def come_back(public: Process, fields: dict[str, str]) -> Answer:
    return exchange(public.port, a_request("POST", "/return?lang=en", [FORM], urlencode(fields).encode()))


def with_codes(forks: Forks, installation: Installation, pool: int) -> Process:
    pepper = str(installation.folder / "keys" / "code.pepper")
    settings = {"HOTLINE_CODE_PEPPER_FILE": pepper, "HOTLINE_CODE_POOL": str(pool)}
    return Process(forks, installation, settings=settings).started()


def child_of(public: Process) -> int:
    children = Path(f"/proc/{public.pid}/task/{public.pid}/children").read_text().split()
    return next((int(child) for child in children if b"deriver" in Path(f"/proc/{child}/cmdline").read_bytes()), 0)


def a_number(public: Process) -> str:
    """Tell something until a number is given: the first takes two seconds to make."""

    def given() -> str | None:
        page = tell(public, "A child is at the guesthouse.").text
        found = CODE.search(page)
        if found is None:
            assert "យើងគ្មានលេខសម្រាប់ឱ្យទេ" in page
            time.sleep(0.2)  # what is told meanwhile takes the time in which it is made
        return found.group() if found else None

    return wait_for(given, "a finished code") or ""


def test_a_code_leads_back_and_stands_in_no_file(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions
) -> None:
    public = with_codes(forks, sqlite_installation, 1)
    shown = a_number(public)
    code = read_code(shown)
    assert code is not None
    opened = come_back(public, {"code": shown})
    assert "<h1>Received</h1>" in opened.text
    hidden = dict(re.findall(r'name="(pass|token)" value="([^"]+)"', opened.text))
    assert come_back(public, hidden | {"more": CANARY}).status == 200
    assert come_back(public, hidden | {"wrong": "1"}).status == 200
    slip = code[:-1] + str((int(code[-1]) + 1) % 10)
    assert come_back(public, {"code": slip}).status == 422
    scanner = Scanner([code, shown, slip, CANARY])
    assert scanner.find_below(sqlite_installation.folder) == {}
    public.stop()
    assert scanner.find_below(sqlite_installation.folder) == {}
    (sqlite_installation.folder / "a log").write_text(f"opened {shown}")  # the control
    assert set(scanner.find_below(sqlite_installation.folder)) == {"a log"}


def test_tips_are_taken_while_the_child_stands_still_or_is_gone(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions
) -> None:
    public = with_codes(forks, sqlite_installation, 5)
    child = wait_for(lambda: child_of(public), "the child")
    os.kill(child, signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(20):
        assert tell(public, "A child is at the guesthouse.").status == 200
    assert time.monotonic() - began < 20  # without waiting for codes, of which each takes more than a second
    os.kill(child, signal.SIGKILL)
    assert tell(public, "A child is at the guesthouse.").status == 200
    another = wait_for(lambda: child_of(public), "another child", until=lambda found: found not in (0, child))
    public.stop()
    wait_for(lambda: not Path(f"/proc/{another}").exists(), "the child to end with its parent")


def test_a_child_does_not_outlive_a_parent_that_was_killed(
    forks: Forks, sqlite_installation: Installation, sqlite_sessions: Sessions
) -> None:
    public = with_codes(forks, sqlite_installation, 5)
    child = wait_for(lambda: child_of(public), "the child")
    public.kill()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "the child to end")
