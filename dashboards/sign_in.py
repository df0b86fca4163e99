"""Sign in and out. The password also opens the person's key, so nobody can be signed in without it."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict

from dashboards.desk import Desk, InWords, OurDesk, Who
from dashboards.pages import COOKIE, RETRY_AFTER, forget, remember, render
from service import staff
from service.errors import Busy, Unauthenticated

router = APIRouter()


class SignInForm(BaseModel):
    """What the sign-in page sends. Too long or missing is answered like wrong."""

    model_config = ConfigDict(extra="forbid")
    account: str = ""
    password: str = ""


@router.get("/sign-in")
def ask(request: Request) -> Response:
    """Ask for account and password."""
    return render(request, "sign_in.html", here="/sign-in", error="", account="")


@router.post("/sign-in")
def sign_in(request: Request, form: Annotated[SignInForm, Form()], desk: OurDesk, words: InWords) -> Response:
    """Open a session, and end the one that this browser had."""
    try:
        cookie = staff.sign_in(
            desk.sessions,
            desk.ledger,
            desk.row_key,
            account=form.account,
            password=form.password,
            now=desk.clock(),
        )
    except Unauthenticated:
        error = words("The account name or the password is wrong.")
        return render(request, "sign_in.html", status=401, here="/sign-in", error=error, account=form.account)
    except Busy:
        error = words("Too many people are signing in. Try again in a minute.")
        page = render(request, "sign_in.html", status=503, here="/sign-in", error=error, account=form.account)
        page.headers["Retry-After"] = RETRY_AFTER
        return page
    _end(desk, request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/queue", 303)
    remember(answer, cookie)
    return answer


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
