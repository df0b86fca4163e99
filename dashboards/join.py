"""A newcomer makes their own keys: the code they were handed, then a password and their phone's second factor."""

from base64 import b32decode
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import BaseModel, ConfigDict

from dashboards.desk import Address, InWords, OurDesk
from dashboards.pages import RETRY_AFTER, render
from dashboards.words import Words, mark
from service import invitations
from service.accounts import fingerprint
from service.errors import Busy, InvalidForm
from service.models import Invitation
from service.vault import boxes, members, totp

router = APIRouter()

# What the domain says of a field; its own words are English.
CORRECTIONS = (
    mark("This code is wrong, used or too old. Ask who invited you for a new one."),
    mark("This is not the code that your phone shows now."),
    mark("Load the page again, and enrol your phone anew."),
    mark("Use at least 15 characters. Four or five unrelated words are easy to remember."),
    mark("Use at most 1000 characters."),
    mark("Use more different characters."),
    mark("Common words, names, repeats and rows of keys are tried first. Use words that do not belong together."),
)


class JoinForm(BaseModel):
    """The code alone; or with it a password, twice, and the second factor as it was shown and as the phone has it."""

    model_config = ConfigDict(extra="forbid")
    code: str = ""
    password: str | None = None
    again: str = ""
    secret: str = ""
    totp_code: str = ""


@router.get("/join")
def ask(request: Request) -> Response:
    """Ask for the code: it never stands in an address, which browsers and proxies keep."""
    return render(request, "join_code.html", here="/join", error="")


@router.post("/join")
def join(
    request: Request, form: Annotated[JoinForm, Form()], desk: OurDesk, words: InWords, address: Address
) -> Response:
    """Show the second page, or make the keys."""
    now = desk.clock()
    try:
        with desk.sessions.read() as session:
            invitation = invitations.look_up(session, desk.row_key, form.code, now)
    except InvalidForm as fault:
        return render(request, "join_code.html", status=422, here="/join", error=words(str(fault)))
    if form.password is None:
        return _choose(request, words, invitation, form.code, boxes.random_bytes(members.TOTP))
    secret = _read_secret(form.secret)
    try:
        if form.password != form.again:
            raise InvalidForm("again", mark("The two passwords are not the same."))
        member = invitations.redeem(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            code=form.code,
            password=form.password,
            totp_secret=secret,
            totp_code=form.totp_code,
            now=now,
            turns=desk.turns,
            address=address,
        )
    except InvalidForm as fault:
        return _choose(request, words, invitation, form.code, secret, fault)
    except Busy:
        page = _choose(request, words, invitation, form.code, secret, InvalidForm("password", _BUSY), status=503)
        page.headers["Retry-After"] = RETRY_AFTER
        return page
    return render(request, "joined.html", here="/join", account=member.account, fingerprint=fingerprint(member))


_BUSY = mark("Too many tries at once. Try again in a minute.")


def _choose(
    request: Request,
    words: Words,
    invitation: Invitation,
    code: str,
    secret: bytes,
    fault: InvalidForm | None = None,
    *,
    status: int = 200,
) -> Response:
    """Ask for a password and the phone. `secret` stays the same when something else must be corrected."""
    secret = secret if len(secret) == members.TOTP else boxes.random_bytes(members.TOTP)
    return render(
        request,
        "join.html",
        status=422 if fault and status == 200 else status,
        here="/join",
        error=words(str(fault)) if fault else "",
        field=fault.field if fault else "",
        name=words.of_two(invitation.name, invitation.name_km),
        account=invitation.account,
        reset=invitation.member is not None,
        code=code,
        secret=totp.letters(secret),
        app=totp.address(secret, invitation.account),
    )


def _read_secret(letters: str) -> bytes:
    try:
        return b32decode("".join(letters.split()))
    except ValueError:
        return b""
