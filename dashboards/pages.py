"""Pages: Jinja templates that get values and never query, and one page in plain words for every refusal."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from dashboards.desk import log, words_of
from dashboards.words import Language, Words, mark, read_catalogue
from service import errors
from service.models import Role
from service.problems import status_of

HERE = Path(__file__).parent
_LOCAL = re.compile(r"(?:/[a-z0-9-]+)+", re.ASCII)
COOKIE = "__Host-hl"
RETRY_AFTER = "60"

# What a refusal says: its heading, and what the person can do now. The nearest class in the tree counts.
REFUSALS: Mapping[type[Exception], tuple[str, str]] = {
    errors.HotlineError: (mark("Something went wrong"), mark("Nothing was changed. It was noted; try again.")),
    errors.Invalid: (mark("Something is missing in the form"), mark("Nothing was changed. Go back and fill it in.")),
    errors.Forbidden: (mark("This cannot be done from here"), mark("Nothing was changed.")),
    errors.NotFound: (mark("There is nothing here"), mark("The address may be wrong, or the page may be gone.")),
    errors.Conflict: (
        mark("Something else happened first"),
        mark("Nothing was changed. Look at the case again before you decide."),
    ),
    errors.AlreadyClaimed: (
        mark("Somebody else has claimed this case"),
        mark("Nothing was changed. Take the next one in the queue."),
    ),
    errors.LedgerHalted: (
        mark("This waits: the ledger is halted"),
        mark("Nothing was changed and nothing was shown. Oversight is told. Tips come in as always."),
    ),
    errors.Unavailable: (
        mark("This cannot be saved or shown now"),
        mark("Nothing was changed and nothing was shown. Try again in a minute."),
    ),
    errors.VaultError: (
        mark("Something here cannot be trusted"),
        mark("A sealed part does not fit its place. Nothing was shown; tell oversight."),
    ),
}
# What the domain says when it refuses a step that these pages offer; its own words are English.
DETAILS = (
    mark("Ask in at most 300 characters."),
    mark("Leave out addresses and telephone numbers: questions lead nowhere else."),
    mark("Leave out words that tell what this is about: somebody else may find the number."),
    mark("Nothing waits for an answer."),
    mark("Oversight answers this."),
    mark("This role asks tipsters nothing."),
    mark("Three questions wait for an answer. More would be too many."),
    mark("Write a question."),
    mark("Write what you found."),
    mark("A closed case is opened again first."),
    mark("An earlier case about this was closed incomplete: this one is not lowered."),
    mark("Choose a fact and a value that fits it."),
    mark("Choose a level above the present one."),
    mark("Choose a level below the present one."),
    mark("Choose somebody."),
    mark("Choose the fact that changed."),
    mark("Only the signature of oversight is missing."),
    mark("Open the account first: what you say of it rests on having read it."),
    mark("Say why."),
    mark("Somebody has proposed to lower it already."),
    mark("Somebody has proposed to take it back already."),
    mark("Somebody of oversight must be left to see the case."),
    mark("The rules cannot be applied now, so nothing is lowered."),
    mark("They are excluded already."),
    mark("This proposal has ended."),
    mark("This unit is behind the wall of this case."),
    mark("To take this out as a file, give your password and code again."),
    mark("Write at least 40 characters: what changed, and how you know."),
    mark("You have opened many accounts today. Give your password and code again to go on."),
    mark("You have signed this already: another person must."),
    mark("You sit in a unit of the proposer: somebody of another unit must agree."),
    mark("A case is handed on to a handling unit."),
    mark("Another unit works this case."),
    mark("Only an open case is handed on."),
    mark("Only the screener whose unit has the case hands it on."),
    mark("Open the account first: a machine cannot hear whom it names."),
    mark("Say why you open it."),
    mark("Somebody else has taken this case."),
    mark("The case has changed since this page was shown."),
    mark("The question needs an answer."),
    mark("This form is not from a page of this sign-in. Load the page again."),
    mark("This role may not take this step."),
    mark("A case would fall below a locked floor, and none may."),
    mark("Each case that would fall is ticked by name first."),
    mark("Newer rules are in force by now: propose it anew with a higher version."),
    mark("The rules in force have changed and a level could fall now: oversight must be named."),
    mark("These rules do not name you among those who approve them."),
    mark("Who wrote or proposed these rules cannot approve them."),
    mark("Who wrote or proposed these rules cannot tick what falls by them."),
    mark("Another person must sign this."),
    mark("Nobody else holds the key of a unit of theirs. Let somebody in first."),
    mark("Only somebody who sits in the unit lets others in."),
    mark("The same waits for its second person already."),
    mark("The register of people was changed outside the system. Nobody is let in until two have looked."),
    mark("There is nothing to change."),
    mark("This account cannot be let in."),
    mark("This account has left already."),
    mark("This account sits in the unit already."),
    mark("This role has no seat in such a unit."),
    mark("This role may not change that account."),
    mark("This role may not invite such a person."),
    mark("Open the account first: what is done rests on having read it."),
    mark("Only the owner of the case takes this step."),
    mark("This is needed."),
    mark("Attach the paper, or a photo of it."),
    mark("The file is larger than 20 MB. Scan it smaller."),
    mark("Attach a PDF, or a photo as JPEG or PNG."),
    mark("This file proves something already. Attach the paper of this step."),
    mark("A plan belongs to a case that somebody has claimed."),
    mark("Choose what was done."),
    mark("An act belongs to a case that somebody has claimed."),
    mark('Enter the plan first: it answers "who could guess who told?"'),
    mark("An emergency act belongs to a P1. Raise the level first."),
    mark("Choose who was rung."),
    mark("Choose what kind of step it was."),
    mark("A step comes after the first act."),
    mark("Choose what the referral rests on."),
    mark("Only a P1 or P2 that was referred is taken by telephone."),
    mark("It was taken by telephone already: now its reference and document are due."),
    mark("Choose what was offered or said."),
    mark("Give a whole number and riel, dollar or baht."),
    mark("Say how the child was heard, or that it would harm to hear it again."),
    mark("This closes no case. Record it as something that happened; the case goes on."),
    mark("This reason does not fit the state of the case."),
    mark("This reason needs 2 of its papers."),
    mark("This proposal is signed by all, or has ended."),
    mark("You stand in this closure already: another person must sign."),
    mark("Oversight has signed, or need not sign: a supervisor of another organisation approves."),
    mark("A supervisor has approved it already."),
    mark("You belong to the proposer's organisation: another one must sign."),
    mark("There is still time to object. It is signed afterwards."),
    mark("Open every paper first: what you sign rests on them."),
    mark("This step needs it."),
    mark("This is too long."),
    mark("Choose one of the answers."),
)
STATUSES: Mapping[int, tuple[str, str]] = {
    405: (mark("This cannot be done from here"), mark("Nothing was changed.")),
    413: (mark("This is too long"), mark("Nothing was changed. Go back and shorten it.")),
    415: (mark("This cannot be done from here"), mark("Nothing was changed.")),
}


@cache
def catalogue() -> Mapping[str, str]:
    """Return the Khmer catalogue, read once."""
    return read_catalogue()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


def speak(language: Language) -> Words:
    """Return the words of a language."""
    return Words(language, catalogue())


def render(request: Request, template: str, *, status: int = 200, here: str, **values: Any) -> HTMLResponse:
    """Return a page. here: path and query that show this page again in the other language."""
    words = words_of(request)
    other = Language.EN if words.language is Language.KM else Language.KM
    joint = "&" if "?" in here else "?"
    frame = {
        "_": words,
        "lang": words.language.value,
        "other": other.value,
        "toggle": f"{here}{joint}{urlencode({'lang': other.value})}",
        "who": None,
        "team": "",
        "token": "",
        "page": "",
        "register_differs": False,
        "oversees": False,
    }
    html = _environment().get_template(template).render(frame | values)
    return HTMLResponse(html, status)


def signed_in(request: Request, words: Words, team: str) -> dict[str, Any]:
    """Return the values that a page of a signed-in person needs for its frame."""
    who = request.state.who
    return {
        "who": words.of_two(who.viewer.name, who.viewer.name_km),
        "team": team,
        "token": who.csrf,
        "register_differs": not who.whole,
        "oversees": who.viewer.role == Role.OVERSIGHT,
    }


def watermark(words: Words, now: datetime) -> dict[str, Any]:
    """Return what a page about cases needs to say to whom and when it was shown, on the screen and on paper."""
    return {"now": words.stamp(now)}


def refusal(request: Request, error: Exception) -> Response:
    """Return the page for anything that was refused or failed; it names no case, no path and no exception.

    Who is not signed in is sent to sign in. What does not exist and what one may not see give the same bytes.
    """
    if isinstance(error, errors.Unauthenticated):
        return _to_sign_in(request)
    if isinstance(error, errors.StepUpNeeded):
        return RedirectResponse(f"/step-up?{urlencode({'next': _page_of(request)})}", 303)
    if isinstance(error, RequestValidationError):
        error = errors.Invalid("")
    if isinstance(error, HTTPException):
        status = error.status_code
        if status == 404:
            return refusal(request, errors.NoSuchCase())
        heading, advice = STATUSES.get(status, REFUSALS[errors.HotlineError])
        return _refused(request, status, heading, advice, "", dict(error.headers or {}))
    if not isinstance(error, errors.HotlineError):
        log.error("request_failed", exc_info=error)
        return _refused(request, 500, *REFUSALS[errors.HotlineError], "")
    status = status_of(error)
    heading, advice = next(REFUSALS[kind] for kind in type(error).__mro__ if kind in REFUSALS)
    detail = "" if isinstance(error, (errors.NotFound, errors.VaultError, errors.Unavailable)) else str(error)
    if status >= 500:
        log.error("request_failed", exc_info=error)
    return _refused(request, status, heading, advice, detail, {"Retry-After": RETRY_AFTER} if status == 503 else {})


def _refused(
    request: Request, status: int, heading: str, advice: str, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    words = words_of(request)
    told = words(detail) if detail in DETAILS and words.knows(detail) else ""
    page = render(
        request, "refused.html", status=status, here="/queue", heading=words(heading), advice=words(advice), detail=told
    )
    for name, value in (headers or {}).items():
        page.headers[name] = value
    return page


def _to_sign_in(request: Request) -> Response:
    answer = RedirectResponse("/sign-in", 303)
    if COOKIE in request.cookies:
        forget(answer)
    return answer


def _page_of(request: Request) -> str:
    """Return the page that a request came from: itself, or for a form the page that it stood on."""
    if request.method in ("GET", "HEAD"):
        return local_path(request.url.path)
    return local_path(urlsplit(request.headers.get("referer", "")).path)


def local_path(text: str) -> str:
    """Return `text` if it is a plain path of this app, else the page of one's account: a link leads nowhere else."""
    return text if _LOCAL.fullmatch(text) else "/staff"


def remember(answer: Response, cookie: str) -> None:
    """Give the browser its session, until it is closed."""
    answer.set_cookie(COOKIE, cookie, path="/", secure=True, httponly=True, samesite="strict")


def forget(answer: Response) -> None:
    """Take the session from the browser."""
    answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
