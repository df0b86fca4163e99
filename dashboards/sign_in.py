"""Sign in and out, and give password and code again. The password also opens the person's key."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict

from dashboards.desk import Address, Desk, InWords, OurDesk, Who
from dashboards.forms import StaffForm
from dashboards.pages import COOKIE, RETRY_AFTER, forget, local_path, remember, render, signed_in
from dashboards.words import Words
from service import staff
from service.errors import Busy, Unauthenticated, WrongCode

router = APIRouter()


class SignInForm(BaseModel):
    """What the sign-in page sends. Too long or missing is answered like wrong."""

    model_config = ConfigDict(extra="forbid")
    account: str = ""
    password: str = ""
    code: str = ""


@router.get("/sign-in")
def ask(request: Request, desk: OurDesk) -> Response:
    """Ask for account, password and code."""
    return render(request, "sign_in.html", here="/sign-in", error="", account="", demo=desk.settings.demo)


@router.post("/sign-in")
def sign_in(
    request: Request, form: Annotated[SignInForm, Form()], desk: OurDesk, words: InWords, address: Address
) -> Response:
    """Open a session, and end the one that this browser had."""
    try:
        cookie = staff.sign_in(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            account=form.account,
            password=form.password,
            code=form.code,
            now=desk.clock(),
            turns=desk.turns,
            address=address,
        )
    except (Unauthenticated, Busy) as fault:
        status = 503 if isinstance(fault, Busy) else 401
        values = {"error": told(words, fault), "account": form.account, "demo": desk.settings.demo}
        page = render(request, "sign_in.html", status=status, here="/sign-in", **values)
        if status == 503:
            page.headers["Retry-After"] = RETRY_AFTER
        return page
    _end(desk, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/queue", 303)
    remember(answer, cookie)
    return answer


def told(words: Words, fault: Unauthenticated | Busy) -> str:
    """Return why somebody was refused, in words that tell a stranger nothing about an account."""
    if isinstance(fault, Busy):
        return words("Too many tries at once. Try again in a minute.")
    if isinstance(fault, WrongCode) and fault.why == "skew":
        minutes = words.digits(abs(fault.minutes))
        if fault.minutes < 0:
            return words("Your phone's clock is about {minutes} min behind. Set it to network time.", minutes=minutes)
        return words("Your phone's clock is about {minutes} min ahead. Set it to network time.", minutes=minutes)
    return words("The account name, the password or the code is wrong.")


@router.post("/sign-out")
def sign_out(desk: OurDesk, who: Who) -> Response:
    """End the session; its cookie opens nothing any more."""
    staff.sign_out(desk.sessions, desk.ledger, who, desk.clock())
    answer = RedirectResponse("/sign-in", 303)
    forget(answer)
    return answer


def _end(desk: Desk, cookie: str) -> None:
    """End the session of `cookie`, if it is one."""
    try:
        who = staff.resume(desk.sessions, desk.row_key, desk.cards, cookie, desk.clock())
    except Unauthenticated:
        return
    staff.sign_out(desk.sessions, desk.ledger, who, desk.clock())


# --- once more ---


class StepUpForm(StaffForm):
    """Password and code, and the page to go back to."""

    password: str = ""
    code: str = ""
    next: str = ""


@router.get("/step-up")
def ask_again(request: Request, words: InWords, next: str = "") -> Response:
    """Ask for password and code before something that cannot be taken back."""
    return _ask_again(request, words, local_path(next), "")


@router.post("/step-up")
def step_up(
    request: Request,
    form: Annotated[StepUpForm, Form()],
    desk: OurDesk,
    who: Who,
    words: InWords,
    address: Address,
) -> Response:
    """Take them, for this session and ten minutes, and go back."""
    try:
        staff.step_up(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            who,
            password=form.password,
            code=form.code,
            now=desk.clock(),
            turns=desk.turns,
            address=address,
        )
    except (Unauthenticated, Busy) as fault:
        return _ask_again(
            request, words, local_path(form.next), told(words, fault), 503 if isinstance(fault, Busy) else 401
        )
    return RedirectResponse(local_path(form.next), 303)


def _ask_again(request: Request, words: Words, back: str, error: str, status: int = 200) -> Response:
    frame = signed_in(request, words, "")
    return render(request, "step_up.html", status=status, here="/step-up", error=error, next=back, **frame)
