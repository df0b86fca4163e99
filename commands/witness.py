"""``hotline ledger witness``: cosigns the heads of a hotline's ledger, for an organisation that does not obey it.

It needs no database and no secret of the hotline, and loads nothing of it but the ledger's pure parts.
"""

import argparse
import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from commands.asking import NoAnswer, ask
from service import logs
from service.errors import BadNote, HotlineError, Misconfigured
from service.ledger.merkle import HASH, HEIGHT, WIDTH, prove_consistency
from service.ledger.notes import parse_checkpoint
from service.ledger.tiles import Tile, nodes_from
from service.ledger.witness import (
    MOST_REQUEST,
    REFUSED,
    Answer,
    Request,
    Witness,
    head_path,
    parse_request,
    submission_of,
)
from service.vault import boxes
from service.vault.note import COSIGNATURE, ED25519, MOST_BYTES, parse_vkey, split_note, vkey

log = structlog.get_logger("witness")

KEY, SETTINGS = "witness.key", "witness.json"
FOLDER = Path("witness")
PORT = 8010
SLOW = 10.0  # seconds for one request or answer
WHOLE = 300  # seconds for a pull, whatever the other side does
AT_ONCE = 64
RACES = 3

EPILOG = """\
A witness signs a head of the ledger only if its tree begins with the tree it signed before. It cannot see any report.

  init    once: makes the key and the memory. Give the hotline the line that it prints, on paper or by hand.
  serve   the hotline brings each head (a server with an address)
  pull    fetches the head, checks it, sends the signature back (a laptop; run it every minute, by a timer)
  pack, sign, add   the same over a USB stick, for a machine that has no network at all

Keep the folder. A key whose memory is lost must never sign again: make a new one, and tell the hotline.
What the log signed and was refused all the same is kept in the folder refused/. A file fork-… holds two heads of one
size that the log signed: proof, for anybody, of two histories. Show it to the other witnesses.

exit code: 0 done, 1 refused or not reached, 2 wrong use
"""


def main(arguments: list[str]) -> int:
    """Run one of the actions below. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hotline ledger witness",
        description="Cosign the heads of a hotline's ledger, so that its operator cannot keep two histories.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (words, prepare, _) in ACTIONS.items():
        prepare(actions.add_parser(name, help=words, description=words[0].upper() + words[1:] + "."))
    options = parser.parse_args(arguments)
    logs.configure("witness", level="WARNING")
    try:
        return ACTIONS[options.action][2](options)
    except NoAnswer:
        print("No answer from the log. Nothing was signed that it has.", file=sys.stderr)
        return 1
    except BadNote as fault:
        print(f"Refused: {fault}.", file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError) as fault:
        raise Misconfigured(f"cannot use {getattr(fault, 'filename', None) or 'a file'}") from None


# --- init -----------------------------------------------------------------------------------------------


def _init_options(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--name", required=True, help="of the witness's key, like ngo.example/w; no space, no plus")
    parser.add_argument("--log", required=True, metavar="VKEY", help="the log's key, as the operator gave it to you")
    parser.add_argument("--origin", help="the log's first line, where it is not its key's name")


def _init(options: argparse.Namespace) -> int:
    try:
        made = make_witness(options.folder, options.name, options.log, options.origin)
    except BadNote as fault:
        raise Misconfigured(str(fault)) from None
    print(
        f"Key and memory lie in {options.folder}. Keep both together; a copy put back later would sign two histories."
    )
    print("The operator needs this line for the policy (WORD and the address are yours to choose):\n")
    print(f"witness WORD {made} https://{options.name}/")
    return 0


def make_witness(folder: Path, name: str, log_vkey: str, origin: str | None = None) -> str:
    """Make a witness of one log in `folder`, once, and return its key as policies name it.

    Raises Misconfigured where there is one, BadNote for a name or a log's key that must not be used.
    """
    if (folder / KEY).exists():
        raise Misconfigured(f"there is a witness already in {folder}")
    seed, public = boxes.signing_keypair()
    verifier = parse_vkey(log_vkey)
    if verifier.kind != ED25519:
        raise BadNote("this is no key of a log")
    made = vkey(name, public, COSIGNATURE)
    Witness(folder, name, origin or verifier.name, verifier, seed).create()
    settings = {"name": name, "origin": origin or verifier.name, "log": log_vkey}
    _write(folder / SETTINGS, json.dumps(settings, indent=1), 0o600)
    _write(folder / KEY, seed.hex(), 0o400)
    return made


def open_witness(folder: Path) -> Witness:
    """Return the witness in `folder`. Raises Misconfigured where it is not whole, or its key can be read by others."""
    path = folder / KEY
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Misconfigured(f"{path} can be read by others; run: chmod 400 {path}")
        seed = bytes.fromhex(path.read_text())
        settings = json.loads((folder / SETTINGS).read_text())
        witness = Witness(folder, settings["name"], settings["origin"], parse_vkey(settings["log"]), seed)
        if len(seed) != boxes.KEY:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, BadNote):
        raise Misconfigured(f"there is no whole witness in {folder}; one is made by: witness init") from None
    witness.size()  # refuses a memory that is lost before anything is signed
    return witness


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that must not be there, so that nobody else could ever read it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


# --- serve ----------------------------------------------------------------------------------------------


def _serve_options(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port (default: {PORT})")


def _serve(options: argparse.Namespace) -> int:
    witness = open_witness(options.folder)
    print(f"{witness.name} watches {witness.origin} on {options.host}:{options.port}", file=sys.stderr, flush=True)
    uvicorn.run(
        application(witness),
        host=options.host,
        port=options.port,
        access_log=False,
        server_header=False,
        log_config=None,
        limit_concurrency=AT_ONCE,
        timeout_keep_alive=30,
        proxy_headers=False,
        lifespan="off",
    )
    return 0


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def application(witness: Witness) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """Return a witness's ASGI app: ``POST /add-checkpoint``, ``GET /<hex H(origin)>/checkpoint``, its name at ``/``."""
    newest = f"/{head_path(witness.origin)}"

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = await respond(scope["method"], scope["path"], receive)
        headers = [(b"content-type", answer.media_type.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.text.encode()})

    async def respond(method: str, path: str, receive: Receive) -> Answer:
        try:
            if path == "/" and method == "GET":
                return Answer(200, f"{witness.name} witnesses {witness.origin}\n")
            if path == newest and method == "GET":
                note = await asyncio.to_thread(witness.newest)
                return Answer(404) if note is None else Answer(200, note)
            if path == "/add-checkpoint" and method == "POST":
                body = await _read(receive)
                return Answer(400) if body is None else await asyncio.to_thread(witness.add_checkpoint, body)
        except (HotlineError, OSError) as fault:  # nothing was signed: the log asks again
            log.error("not_witnessed", error=type(fault).__name__)
            return Answer(503)
        return Answer(405 if path in ("/", newest, "/add-checkpoint") else 404)

    return serve


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body; None for one that is too long or too slow, or whose sender went away."""
    body = bytearray()
    with suppress(TimeoutError):
        async with asyncio.timeout(SLOW):
            while len(body) <= MOST_REQUEST:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    return bytes(body)
    return None


# --- pull -----------------------------------------------------------------------------------------------


def _pull_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the log's address, like https://bamboo.example/log/")
    _folder(parser)


def _pull(options: argparse.Namespace) -> int:
    witness = open_witness(options.folder)
    with suppress(ValueError):  # only the main thread has an alarm
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(WHOLE)
    try:
        answer, note = check_newest(witness, options.url)
        if answer.status != 200:
            return _say_refused(answer, witness)
        return _bring(options.url, answer.text, note)
    finally:
        signal.alarm(0)


def _too_long(*_: Any) -> None:
    raise NoAnswer("it took too long")


def check_newest(witness: Witness, url: str) -> tuple[Answer, str]:
    """Fetch the log's newest head, build the proof from its tiles, and check it as if the log had brought it.

    Returns the witness's answer and the head's note. Raises NoAnswer; BadNote for what is no head.
    """
    note = fetch_head(url)
    answer = Answer(409)
    for _ in range(RACES):  # a process beside this one may sign meanwhile
        request = Request(old := witness.size(), prove(url, old, note), note)
        answer = witness.add_checkpoint(request.body)
        if answer.status != 409 or witness.size() == old:
            break
    return answer, note


def fetch_head(url: str) -> str:
    """Return the note that the log publishes. Raises NoAnswer; BadNote for what is no note."""
    note = _fetch(url, "checkpoint", MOST_BYTES)
    split_note(note)
    return note.decode()


def prove(url: str, old: int, note: str) -> Sequence[bytes]:
    """Return the consistency proof from `old` to the head in `note`, built from the log's tiles. Unchecked.

    [] where no proof is due, and where the head is smaller. Raises NoAnswer for tiles that are not there.
    """
    size = parse_checkpoint(split_note(note)[0]).size

    def read(names: Sequence[tuple[int, int]]) -> list[bytes]:
        return [_fetch_tile(url, level, n, size) for level, n in names]

    if not 0 < old < size:
        return []
    try:
        return prove_consistency(nodes_from(read), old, size)
    except LookupError:
        raise NoAnswer("a tile is not whole") from None


def _fetch_tile(url: str, level: int, n: int, size: int) -> bytes:
    """Return a tile, as wide as the tree of `size` has it; a narrow one may be gone once the full one is there."""
    width = min(WIDTH, (size >> (HEIGHT * level)) - n * WIDTH)
    try:
        return _fetch(url, Tile(level, n, width).path, WIDTH * HASH)
    except NoAnswer:
        if width == WIDTH:
            raise
        return _fetch(url, Tile(level, n).path, WIDTH * HASH)


def _fetch(url: str, path: str, most: int) -> bytes:
    status, body = ask(f"{url.rstrip('/')}/{path}", seconds=SLOW, most=most)
    if status != 200:
        raise NoAnswer("it is not there")
    return body


def _bring(url: str, line: str, note: str) -> int:
    """Send a line to the log, and say what became of it."""
    status, _ = ask(f"{url.rstrip('/')}/cosignature", submission_of(line, note), seconds=SLOW, most=MOST_BYTES)
    if status == 200:
        print(f"witnessed: {parse_checkpoint(split_note(note)[0]).size} leaves")
        return 0
    reasons = {400: "it does not know this key", 404: "it does not know this head", 429: "try again in a minute"}
    print(f"The log did not take the line: {reasons.get(status, f'it answered {status}')}.", file=sys.stderr)
    return 1


def _say_refused(answer: Answer, witness: Witness) -> int:
    words = {
        400: "This head is older than the one that was signed before, or the request is damaged.",
        403: "This head is not signed by the log.",
        404: "This is another log.",
        409: f"This witness stands at {answer.text.strip() or witness.size()} leaves, and the head does not follow.",
        422: "THE LOG SHOWS ANOTHER HISTORY than the one that was signed before. Tell the other witnesses.",
    }
    print(words.get(answer.status, "This is no request to a witness."), file=sys.stderr)
    if answer.status in (400, 409, 422):
        print(f"What the log signed and was refused is kept in {witness.folder / REFUSED}", file=sys.stderr)
    return 1


# --- pack, sign, add ------------------------------------------------------------------------------------


def _pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="where the request goes, such as a file on a USB stick")
    parser.add_argument("--url", required=True, help="the log's address")
    parser.add_argument(
        "--old", type=int, metavar="N", help="leaves that the witness has signed (default: see FILE.line)"
    )


def _pack(options: argparse.Namespace) -> int:
    note = fetch_head(options.url)
    old = _size_of(_answer_of(options.file)) if options.old is None else options.old
    request = Request(old, prove(options.url, old, note), note)
    options.file.write_bytes(request.body)
    print(
        f"{options.file}: from {old} leaves to {_size_of_note(note)}. On the other machine: witness sign {options.file}"
    )
    return 0


def _sign_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what witness pack wrote")
    _folder(parser)


def _sign(options: argparse.Namespace) -> int:
    witness = open_witness(options.folder)
    body = options.file.read_bytes()
    answer = witness.add_checkpoint(body)
    if answer.status != 200:
        if answer.status == 409:
            print(f"This machine stands elsewhere. Pack again, with --old {answer.text.strip()}", file=sys.stderr)
            return 1
        return _say_refused(answer, witness)
    target = _answer_of(options.file)
    target.write_bytes(submission_of(answer.text, parse_request(body).note))
    print(f"{target} is the answer. Bring it back: witness add {target}\n\n{answer.text}", end="")
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what witness sign wrote")
    parser.add_argument("--url", required=True, help="the log's address")


def _add(options: argparse.Namespace) -> int:
    line, gap, note = options.file.read_bytes().decode().partition("\n\n")
    if not gap:
        raise BadNote("this is no answer of witness sign")
    return _bring(options.url, f"{line}\n", note)


def _answer_of(file: Path) -> Path:
    return file.with_name(file.name + ".line")


def _size_of(answer: Path) -> int:
    """Return the size that the last answer on the stick was given for, 0 where there is none."""
    if not answer.exists():
        return 0
    return _size_of_note(answer.read_bytes().decode().partition("\n\n")[2])


def _size_of_note(note: str) -> int:
    return parse_checkpoint(split_note(note)[0]).size


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where key and memory lie (default: {FOLDER})")


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
ACTIONS: dict[str, Action] = {
    "init": ("make a witness's key and memory, once", _init_options, _init),
    "serve": ("answer a log that brings its heads", _serve_options, _serve),
    "pull": ("fetch the newest head, check it and send the signature back", _pull_options, _pull),
    "pack": ("write a request for a machine without a network", _pack_options, _pack),
    "sign": ("check and sign a request on that machine", _sign_options, _sign),
    "add": ("bring its answer back to the log", _add_options, _add),
}
