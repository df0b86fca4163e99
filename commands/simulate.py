"""``./hotline simulate``: play a phone or the provider's faults, against a running public app or the simulator."""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request

from commands import simulator
from commands.demo_cast import PEOPLE, totp_secret
from commands.demo_folder import DEFAULT, SETTINGS
from service.config import Settings, read_secret, read_settings, settings_from_environment
from service.errors import Misconfigured
from service.vault import totp
from webhooks.simulator.signing import SMS_PATH, new_sid, sign, sms_fields

PATIENCE = 15.0  # Twilio gives up then (twilio.md section 4)
SENDER = "+85500000001"

EPILOG = """\
examples:
  ./hotline simulate sms "A child is in danger now at the guesthouse by the old market"
  ./hotline simulate sms "សូមជួយផង ក្មេងស្រីម្នាក់ត្រូវគេចាក់សោឥឡូវនេះ" --from +85500000002
  ./hotline simulate sms "the same text, as a provider that retries delivers it" --repeat 3
  HOTLINE_SETTINGS=/etc/hotline/public.env ./hotline simulate sms "probe" --url https://hotline.example
  ./hotline simulate retry --last            the provider delivers the last text again
  ./hotline simulate outage --minutes 5      the provider answers nothing for five minutes
  ./hotline simulate outage --end            all is well again

A second text from the same number joins its open case; another --from makes another case.
While the demo runs, a text goes through its simulator, whose page shows the phone and the answer; with --url or --sid,
or without a simulator, it is posted straight to the public app. Account, token and addresses come from the file that
HOTLINE_SETTINGS names, or from var/demo.env, which ./hotline demo writes. Numbers like +8550000xxxx belong to nobody.
The exit code is 0 only if the text was taken.
"""

OUTAGE = """\
examples:
  ./hotline simulate outage                           nothing is answered, until --end
  ./hotline simulate outage --how "silent after" --times 1 --operation messages.create
                                                      a text goes out, and the app never hears of it
  ./hotline simulate outage --how 429 --minutes 2     too many at once, for two minutes
  ./hotline simulate outage --how 20009 --operation messages.delete --times 3
  ./hotline simulate outage --end                     all is well again

ways: silent before, silent after, hang up before, hang up after, 500 before, 500 after, garbled after, 429, 401, or one
of Twilio's codes such as 20009 or 21610. Before: nothing was done. After: it was done, and the app cannot know.
operations: messages.create, messages.list, messages.fetch, messages.update, messages.delete, and list, fetch and delete
of media, calls and recordings; * for all of them.
"""

RETRY = """\
examples:
  ./hotline simulate retry --last
  ./hotline simulate retry SM0123456789abcdef0123456789abcdef

A provider that heard no answer delivers again; a second delivery must change nothing.
"""

CODE = """\
example:
  ./hotline simulate code screener

Each code is good once, for about a minute. Real accounts have a phone, and nobody else can print their codes.
"""

HELP = "is the demo running? Start it in another terminal: ./hotline demo"
NOBODY = "not taken: nobody answered; Twilio would keep the text and the app would fetch it later"

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
    """Do what `arguments` ask for and say how it went; return 0 only if every text was answered with 200."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    if options.kind == "code":
        return _code(options.account)
    settings = find_settings()
    if options.kind == "serve":
        return simulator.serve(settings)
    straight = options.kind == "sms" and (options.url or options.sid)
    if straight or not simulator.runs(settings):
        if options.kind == "sms":
            return _post_straight(settings, options)
        print(f"hotline simulate: no simulator answers on {simulator.address(settings)}: {HELP}", file=sys.stderr)
        return 1
    try:
        return {"sms": _text, "retry": _again, "outage": _outage}[options.kind](settings, options)
    except simulator.Failed as reason:
        print(f"hotline simulate: {reason}", file=sys.stderr)
        return 1


def _code(account: str) -> int:
    """Print what the phone of a demo account shows now: its secret is in the source, so this opens no other account."""
    now = datetime.now(UTC)
    print(totp.code_at(totp_secret(account), now))
    print(f"good for signing in once; a new one in {totp.STEP - int(now.timestamp()) % totp.STEP} s", file=sys.stderr)
    return 0


# --- through the simulator ------------------------------------------------------------------------------


def _text(settings: Settings, options: argparse.Namespace) -> int:
    """Let a phone of the simulator send the text, and the provider deliver it as often as asked."""
    fields = {"from": options.sender, "to": options.to or "", "text": options.text, "wait": str(simulator.PATIENCE)}
    told = simulator.ask(settings, "/text", fields)
    code = _say(told.get("status"))
    for _ in range(options.repeat - 1):
        code = _deliver(settings, str(told["sid"])) or code
    print(f"{told['sid']}; the phone, and what it gets: {simulator.address(settings)}/?lang=en")
    return code


def _again(settings: Settings, options: argparse.Namespace) -> int:
    return _deliver(settings, options.sid or "")


def _deliver(settings: Settings, sid: str) -> int:
    """Let the provider deliver a message again, the last of all if `sid` is empty."""
    told = simulator.ask(settings, "/again", {"again": sid, "wait": str(simulator.PATIENCE)})
    return _say(told.get("status"))


def _outage(settings: Settings, options: argparse.Namespace) -> int:
    if options.end:
        simulator.ask(settings, "/recover", {})
        print("the provider does what it is asked for again")
        return 0
    fields = {"do": "fail", "operation": options.operation, "how": options.how}
    lasting = "until ./hotline simulate outage --end"
    if options.times is not None:
        fields["times"], lasting = str(options.times), "once" if options.times == 1 else f"{options.times} times"
    elif options.minutes is not None:
        fields["minutes"], lasting = str(options.minutes), f"for {options.minutes:g} minutes"
    simulator.ask(settings, "/faults", fields)
    print(f"from now on, for {options.operation}: {options.how}, {lasting}")
    return 0


def _say(status: int | None) -> int:
    """Print how the app answered a delivery; return 0 if it took the text, else 1."""
    told = NOBODY if status is None else in_words(status)
    print(told, file=sys.stdout if status == 200 else sys.stderr, flush=True)
    return 0 if status == 200 else 1


# --- straight to the public app -------------------------------------------------------------------------


def _post_straight(settings: Settings, options: argparse.Namespace) -> int:
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
    code = 0
    for _ in range(options.repeat):
        try:
            status = post(address, fields, signature)
        except (OSError, ValueError, HTTPException) as fault:
            print(unreachable(address, fault), file=sys.stderr)
            return 1
        code = _say(status) or code
    return code


# --- the command line -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./hotline simulate",
        description="Play a phone: send a text signed like Twilio signs it. Or play the provider when it fails.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="sms|retry|outage|code|serve")
    sms = _kind(kinds, "sms", "a text message", "Send a text message, signed like Twilio signs it.", EPILOG)
    sms.add_argument("text", help="what the message says, in any language")
    sms.add_argument("--from", dest="sender", default=SENDER, metavar="+855...", help=f"the phone (default: {SENDER})")
    sms.add_argument("--to", metavar="+855...", help="the hotline's number (default: the first of the settings)")
    sms.add_argument("--sid", metavar="SM...", help="the message's identifier (default: a new one)")
    sms.add_argument("--url", metavar="URL", help="where the public app listens (default: on this machine)")
    sms.add_argument("--repeat", type=int, default=1, metavar="N", help="deliver the same message N times")
    retry = _kind(kinds, "retry", "the same message once more", "Let the provider deliver a message again.", RETRY)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("sid", nargs="?", metavar="SID", help="the message's identifier, from the simulator's page")
    which.add_argument("--last", action="store_true", help="the last message that any phone sent")
    outage = _kind(kinds, "outage", "a provider that fails", "Let the provider fail the app's requests.", OUTAGE)
    outage.add_argument("--how", default="silent before", help="in which way (default: silent before)")
    outage.add_argument("--operation", default="*", metavar="NAME", help="which requests (default: all)")
    lasting = outage.add_mutually_exclusive_group()
    lasting.add_argument("--times", type=int, metavar="N", help="the next N requests (default: until --end)")
    lasting.add_argument("--minutes", type=float, metavar="M", help="for M minutes; then all is well again")
    lasting.add_argument("--end", action="store_true", help="all is well again")
    code = _kind(kinds, "code", "the second factor of a demo account", "Print the code that a phone shows now.", CODE)
    code.add_argument("account", choices=[person.account for person in PEOPLE], help="the account's name")
    _kind(kinds, "serve", "the simulator itself", "Run the simulator (the demo does this): its page and REST side.", "")
    return parser


def _kind(kinds: Any, name: str, words: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = kinds.add_parser(
        name,
        help=words,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what could only fail later, and less clearly. Exits with 2."""
    if options.kind == "outage" and options.times is not None and options.times < 1:
        parser.error("--times needs a number from 1")
    if options.kind == "outage" and options.minutes is not None and not 0 < options.minutes <= 7 * 24 * 60:
        parser.error("--minutes needs a number above 0, and at most a week")
    if options.kind != "sms":
        return
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
