"""``./hotline simulate sms``: play a phone, through a signed webhook like Twilio's to a running public app."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request

from commands.demo_folder import DEFAULT, SETTINGS
from service.config import Settings, read_secret, read_settings, settings_from_environment
from service.errors import Misconfigured
from webhooks.simulator.signing import SMS_PATH, new_sid, sign, sms_fields

PATIENCE = 15.0  # Twilio gives up then (twilio.md section 4)
SENDER = "+85500000001"

EPILOG = """\
examples:
  ./hotline simulate sms "A child is in danger now at the guesthouse by the old market"
  ./hotline simulate sms "សូមជួយផង ក្មេងស្រីម្នាក់ត្រូវគេចាក់សោឥឡូវនេះ" --from +85500000002
  ./hotline simulate sms "the same text, as a provider that retries delivers it" --repeat 3
  HOTLINE_SETTINGS=/etc/hotline/public.env ./hotline simulate sms "probe" --url https://hotline.example

A second text from the same number joins its open case; another --from makes another case.
Account, token and public address come from the file that HOTLINE_SETTINGS names, or from var/demo.env, which
./hotline demo writes. Numbers like +8550000xxxx belong to nobody. The exit code is 0 only if the text was taken.
"""

HELP = "is the demo running? Start it in another terminal: ./hotline demo"

MEANING: Mapping[int, str] = {
    403: "the signature does not fit: token, account or public address are not those of this app",
    404: "there is no such webhook at this address",
    413: "the text is too long for a webhook",
    429: "too many at once",
    500: "a fault in the app; its log says where",
    502: "the proxy does not reach the app",
    503: "the app cannot store it now; Twilio would keep the text and the app would fetch it later",
}


def main(arguments: list[str]) -> int:
    """Post what `arguments` ask for and say how it was answered; return 0 only if every answer was 200."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    settings = find_settings()
    token = read_secret(settings.twilio_token_file, "twilio_token_file")
    if not settings.twilio_account_sid:
        raise Misconfigured("HOTLINE_TWILIO_ACCOUNT_SID is not set")
    to = options.to or next(iter(settings.twilio_numbers), "+85500000100")
    sid = options.sid or new_sid()
    fields = sms_fields(
        body=options.text, sender=options.sender, to=to, account_sid=settings.twilio_account_sid, sid=sid
    )
    signature = sign(settings.public_url + SMS_PATH, fields, token)
    address = (options.url or f"http://127.0.0.1:{settings.public_port}").rstrip("/") + SMS_PATH
    taken = True
    for _ in range(options.repeat):
        try:
            status = post(address, fields, signature)
        except (OSError, ValueError, HTTPException) as fault:
            print(unreachable(address, fault), file=sys.stderr)
            return 1
        print(in_words(status), file=sys.stdout if status == 200 else sys.stderr, flush=True)
        taken = taken and status == 200
    return 0 if taken else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./hotline simulate",
        description="Play a phone: post a text message to a running public app, signed like Twilio signs it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="sms")
    sms = kinds.add_parser(
        "sms",
        help="a text message",
        description="Post a signed text message to a running public app.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sms.add_argument("text", help="what the message says, in any language")
    sms.add_argument("--from", dest="sender", default=SENDER, metavar="+855...", help=f"the phone (default: {SENDER})")
    sms.add_argument("--to", metavar="+855...", help="the hotline's number (default: the first of the settings)")
    sms.add_argument("--sid", metavar="SM...", help="the message's identifier (default: a new one)")
    sms.add_argument("--url", metavar="URL", help="where the public app listens (default: on this machine)")
    sms.add_argument("--repeat", type=int, default=1, metavar="N", help="deliver the same message N times")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what could only fail later, and less clearly. Exits with 2."""
    try:
        options.text.encode()
    except UnicodeEncodeError:
        parser.error("the text is not UTF-8; set a UTF-8 locale, for example LC_ALL=C.UTF-8")
    if options.sid is not None and not re.fullmatch(r"(SM|MM)[0-9a-fA-F]{32}", options.sid):
        parser.error("--sid is SM and 32 hex digits")
    if options.repeat < 1:
        parser.error("--repeat needs a number from 1")
    if options.url and urlsplit(options.url).scheme not in ("http", "https"):
        parser.error("--url begins with http:// or https://")


def find_settings() -> Settings:
    """Return the settings of ``HOTLINE_SETTINGS``, else the demo's, else the environment's. Raises Misconfigured."""
    demo = DEFAULT / SETTINGS
    if os.environ.get("HOTLINE_SETTINGS") or os.environ.get("HOTLINE_TWILIO_TOKEN_FILE"):
        return settings_from_environment()
    if demo.is_file():
        return read_settings(demo)
    raise Misconfigured(f"there are no settings: {_shown(demo)} is not there, and HOTLINE_SETTINGS names none; {HELP}")


def post(address: str, fields: Mapping[str, str], signature: str) -> int:
    """Post `fields` as a form to `address` and return the status of the answer.

    No proxy of the environment, and no redirect: what another address answers says nothing about this one.
    Raises OSError or HTTPException when nobody answers, ValueError for an address that is none.
    """
    request = Request(  # noqa: S310 - http or https: no other handler is there
        address,
        data=urlencode(fields).encode(),
        headers={
            "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8",
            "User-Agent": "TwilioProxy/1.1",
            "Accept": "*/*",
            "X-Twilio-Signature": signature,
        },
    )
    opener = OpenerDirector()
    opener.add_handler(HTTPHandler())
    opener.add_handler(HTTPSHandler())
    with opener.open(request, timeout=PATIENCE) as answer:
        return int(answer.status)


def in_words(status: int) -> str:
    """Return what an answer's status means for the message."""
    if status == 200:
        return "taken: 200"
    head = "refused" if 400 <= status < 500 else "not taken"
    return f"{head}: {status}: {MEANING.get(status, 'this is no answer to a webhook')}"


def unreachable(address: str, fault: Exception) -> str:
    """Return what to do when nobody answered."""
    reason = fault.reason if isinstance(fault, URLError) else fault
    where = urlsplit(address).netloc
    if isinstance(reason, ConnectionRefusedError):
        return f"hotline simulate: nobody listens on {where}: {HELP}"
    if isinstance(reason, TimeoutError):
        return f"hotline simulate: no answer from {where} within {PATIENCE:.0f} s; Twilio, too, gives up then"
    return f"hotline simulate: {where} cannot be reached ({type(reason).__name__}): {HELP}"


def _shown(path: Path) -> str:
    return os.path.relpath(path)
