"""Oversight's page: walls that two of them narrow, and who read more than a day's quota."""

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Request, Response

from dashboards import terms
from dashboards.desk import InWords, OurDesk, Who, team, unit_names
from dashboards.pages import render, signed_in, watermark
from dashboards.words import Words
from service import exclusions, reading
from service.cases import reference
from service.models import NarrowingState

router = APIRouter()

SPAN = timedelta(days=30)


@router.get("/oversight")
def show(request: Request, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show what waits for oversight. Only cases that exist for the person count."""
    now = desk.clock()
    with desk.sessions.read() as session:
        units = unit_names(session, words)
        narrowings = exclusions.narrowings_for(session, who.viewer)
        beyond = reading.beyond_quota(session, who.viewer, now - SPAN)
    return render(
        request,
        "oversight.html",
        here="/oversight",
        **signed_in(request, words, team(who, units)),
        **watermark(words, now),
        page="oversight",
        hour=words.moment(now),
        narrowings=[_narrowing(words, case, state) for case, state in narrowings],
        quota=words.digits(desk.settings.readings_per_day),
        beyond=[
            {
                "who": words.of_two(person.name, person.name_km),
                "role": terms.term(words, terms.ROLES, person.role),
                "times": words.digits(person.times),
                "last": words.day_and_hour(person.last, now),
            }
            for person in beyond
        ],
    )


def _narrowing(words: Words, case: Any, state: NarrowingState) -> dict[str, str]:
    approved = state == NarrowingState.APPROVED
    return {
        "href": f"/cases/{case}#wall",
        "reference": reference(case),
        "state": words("signed by two; ends when witnessed") if approved else words("needs a second person"),
    }
