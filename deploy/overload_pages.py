"""What the proxy answers by itself: ``python -m deploy.overload_pages FOLDER``.

Written where the proxy starts, because the numbers to call are a setting (``HOTLINE_EMERGENCY_NUMBERS``). The words
are the app's own. What the proxy answers must not need the app: it is full, or down (threats.md R7).
"""

import sys
from http import HTTPStatus
from pathlib import Path

from service.config import settings_from_environment
from service.errors import Misconfigured
from webhooks.admission import NO_STORE, RETRY_AFTER, SECURITY_HEADERS
from webhooks.app import STATIC_AGE
from webhooks.pages import LANGUAGES, STATIC, Pages

# The statuses that the proxy answers with, and the words of the app's notice that fits.
WORDS = {
    400: "unreadable",
    404: "nothing",
    408: "slow",
    413: "long",
    500: "failed",
    502: "failed",
    503: "full",
    504: "failed",
}
Header = tuple[bytes, bytes]


def main(arguments: list[str]) -> int:
    """Write the answers for the settings below the folder named first; return the exit code.

    Whole HTTP answers, ``STATUS.http``, in three folders: ``pages`` as the app words them, ``neutral`` without the
    numbers to call, for a phone that may be watched, and ``webhooks`` without words. Beside them the style sheet.
    """
    if len(arguments) != 1:
        return _fail("usage: python -m deploy.overload_pages FOLDER")
    folder = Path(arguments[0])
    try:
        pages = Pages(settings_from_environment().emergency_numbers)
    except Misconfigured as fault:
        return _fail(f"overload pages: {fault}")
    texts = [(language, pages.translate(language)) for language in LANGUAGES]
    for status, words in WORDS.items():
        neutral = pages.render("notice", LANGUAGES[0], words=words, with_calls=False, texts=texts)
        _write(folder / "pages" / f"{status}.http", _page(status, pages.notices.get(status, pages.notices[500])))
        _write(folder / "neutral" / f"{status}.http", _page(status, neutral))
        # To a webhook, too large and malformed are the same: not one of ours (twilio.md section 3, point 2).
        _write(folder / "webhooks" / f"{status}.http", _answer(403 if status in (400, 413) else status, b"", NO_STORE))
    style = (STATIC / "public.css").read_bytes()
    cached = (b"cache-control", STATIC_AGE.encode())
    _write(folder / "style.http", _answer(200, style, cached, (b"content-type", b"text/css; charset=utf-8")))
    return 0


def _page(status: int, page: bytes) -> bytes:
    return _answer(status, page, NO_STORE, (b"content-type", b"text/html; charset=utf-8"))


def _answer(status: int, body: bytes, *headers: Header) -> bytes:
    """Return a whole HTTP answer, with the headers that every answer of the app has."""
    pairs = [*SECURITY_HEADERS, *headers, (b"content-length", str(len(body)).encode())]
    if status == 503:
        pairs.append((b"retry-after", RETRY_AFTER))
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    return first + b"".join(name + b": " + value + b"\r\n" for name, value in pairs) + b"\r\n" + body


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _fail(text: str) -> int:
    print(text, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
