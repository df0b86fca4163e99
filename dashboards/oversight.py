"""Oversight's page: how the history stands, which deadlines were missed, walls to narrow, who read beyond a quota."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request, Response

from dashboards import terms
from dashboards.desk import Desk, InWords, OurDesk, Who, team, unit_names
from dashboards.marks import visible
from dashboards.pages import render, signed_in, watermark
from dashboards.words import Words
from service import clocks, exclusions, reading
from service.cases import reference
from service.clocks import Missed
from service.ledger.notes import Policy
from service.ledger.standing import CENSUS_EVERY, LATE, Cosigner, Counted, Head, Standing, Told, standing
from service.models import NarrowingState

router = APIRouter()

SPAN = timedelta(days=30)
WEEK = timedelta(days=7)
MOST_MISSED = 1000
MOST_SHOWN = 100
SHOWN = 12  # signs of a hash: enough to tell two apart by eye


@router.get("/oversight")
def show(request: Request, desk: OurDesk, who: Who, words: InWords) -> Response:
    """Show what waits for oversight. Only cases that exist for the person count."""
    now = desk.clock()
    with desk.sessions.read() as session:
        units = unit_names(session, words)
        narrowings = exclusions.narrowings_for(session, who.viewer)
        beyond = reading.beyond_quota(session, who.viewer, now - SPAN)
        missed = clocks.missed(session, who.viewer, now - WEEK, now, MOST_MISSED)
        log = standing(session, desk.policy)
    return render(
        request,
        "oversight.html",
        here="/oversight",
        **signed_in(request, words, team(who, units)),
        **watermark(words, now),
        page="oversight",
        hour=words.moment(now),
        narrowings=[_narrowing(words, case, state) for case, state in narrowings],
        missed=[_missed(words, one, now) for one in missed[:MOST_SHOWN]],
        missed_counts=_missed_counts(words, missed, now),
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
        **_log(words, desk, log, now),
    )


def _narrowing(words: Words, case: Any, state: NarrowingState) -> dict[str, str]:
    approved = state == NarrowingState.APPROVED
    return {
        "href": f"/cases/{case}#wall",
        "reference": reference(case),
        "state": words("signed by two; ends when witnessed") if approved else words("needs a second person"),
    }


def _missed(words: Words, one: Missed, now: datetime) -> dict[str, Any]:
    how = words("lapsed unmet") if one.lapsed else words.left(one.due_at, one.met_at or now)
    return {
        "href": f"/cases/{one.case}",
        "reference": reference(one.case),
        "level": one.level,
        "level_words": terms.term(words, terms.LEVELS, one.level),
        "what": terms.term(words, terms.NEXT, one.kind),
        "due": words.day_and_hour(one.due_at, now),
        "how": words("met, {late}", late=how) if one.met_at is not None else how,
        "running": one.is_running,
    }


def _missed_counts(words: Words, missed: Sequence[Missed], now: datetime) -> list[dict[str, Any]]:
    """Return how many deadlines of each kind and level were missed, the most urgent level first."""
    kinds = sorted({(one.level, one.kind) for one in missed})
    told = []
    for level, kind in kinds:
        these = [one for one in missed if (one.level, one.kind) == (level, kind)]
        running = [one for one in these if one.is_running]
        longest = min((one.due_at for one in running), default=None)
        told.append(
            {
                "what": terms.term(words, terms.NEXT, kind),
                "level": level,
                "level_words": terms.term(words, terms.LEVELS, level),
                "count": words.digits(len(these)),
                "running": words.digits(len(running)) if running else "",
                "longest": words.left(longest, now) if longest is not None else "",
            }
        )
    return told


# --- the log --------------------------------------------------------------------------------------------


def _log(words: Words, desk: Desk, log: Standing, now: datetime) -> dict[str, Any]:
    halt = next((told for told in log.refusals if "reason" in told.fields), None)
    return {
        "halted": log.halted,
        "halt": _refusal(words, halt, now) if log.halted and halt is not None else None,
        "heads": [
            {"name": name, **_head(words, head, now)}
            for name, head in ((words("Published"), log.published), (words("Witnessed"), log.witnessed))
            if head is not None
        ],
        "quorum": _quorum(words, desk.policy, log, now),
        "demo": desk.settings.demo,
        "cosigners": [_cosigner(words, one, now) for one in log.cosigners],
        "censuses": [_census(words, one, now) for one in log.censuses],
        "census_late": _census_late(words, log.censuses, now),
        "refusals": [_refusal(words, told, now) for told in log.refusals],
    }


def _span(words: Words, since: datetime, now: datetime) -> str:
    """Return how long ago a moment is; a witness whose clock is ahead of ours has signed just now."""
    return words.left(max(since, now), since)


def _head(words: Words, head: Head, now: datetime) -> dict[str, Any]:
    late = now - head.at > LATE
    age = words("{span} ago", span=_span(words, head.at, now))
    return {
        "size": words.digits(head.size),
        "root": head.root[:SHOWN],
        "age": age if head.signed else words("not signed by the log"),
        "late": late or not head.signed,
    }


def _quorum(words: Words, policy: Policy | None, log: Standing, now: datetime) -> dict[str, Any]:
    """Return what the witnesses' signatures allow now: they are what closures wait for."""
    if policy is None or policy.quorum is None:
        return {
            "late": True,
            "words": words(
                "No witnesses are named: nothing is ever witnessed. Closing, merging, "
                "lowering and narrowing a wall wait; everything else goes on."
            ),
        }
    group = policy.groups.get(policy.quorum)
    need, of = (group.need, len(group.members)) if group is not None else (1, 1)
    if log.halted:
        return {"late": True, "words": words("While the history is halted no closure, lowering or merge takes effect.")}
    met = log.witnessed is not None and now - log.witnessed.at <= LATE
    values = {"need": words.digits(need), "of": words.digits(of)}
    if met:
        return {
            "late": False,
            "words": words("Quorum {need} of {of}, reached. Closures, lowerings and merges take effect.", **values),
        }
    return {
        "late": True,
        "words": words(
            "Quorum {need} of {of}, not reached in the last minutes. Closing, merging, "
            "lowering and narrowing a wall wait; everything else goes on.",
            **values,
        ),
    }


def _cosigner(words: Words, one: Cosigner, now: datetime) -> dict[str, Any]:
    silent = one.is_silent(now)
    if one.at is None:
        state = words("has never signed")
    elif silent:
        state = words("silent for {span}", span=_span(words, one.at, now))
    else:
        state = words("signs")
    return {
        "word": one.word,
        "name": one.name,
        "last": words.day_and_hour(one.at, now) if one.at is not None else "",
        "ago": words("{span} ago", span=_span(words, one.at, now)) if one.at is not None else "",
        "size": words.digits(one.size) if one.size is not None else "",
        "state": state,
        "silent": silent,
    }


def _census(words: Words, one: Counted, now: datetime) -> dict[str, Any]:
    wrong = []
    if one.missing > 0:
        wrong.append(words("{count} missing before it", count=words.digits(one.missing)))
    if one.missing < 0:
        wrong.append(words("its number was used before"))
    if one.late is not None:
        wrong.append(words("{span} after the one before", span=_span(words, now - one.late, now)))
    if not one.fits:
        wrong.append(words("changed since it was taken"))
    return {
        "number": words.digits(one.number),
        "when": words.day_and_hour(one.at, now),
        "sha256": one.sha256[:SHOWN],
        "wrong": "; ".join(wrong),
    }


def _census_late(words: Words, censuses: Sequence[Counted], now: datetime) -> str:
    if not censuses:
        return words("No list was ever taken.")
    if now - censuses[0].at > CENSUS_EVERY:
        return words(
            "The newest list is {span} old; there should be one a day.", span=_span(words, censuses[0].at, now)
        )
    return ""


def _refusal(words: Words, told: Told, now: datetime) -> dict[str, Any]:
    """Return an event of the log's own chain. What it names are words of programs: keys' names, kinds of fault."""
    named = [str(told.fields[name]) for name in ("reason", "witness", "kind") if name in told.fields]
    return {
        "when": words.day_and_hour(told.at, now),
        "what": terms.step(words, told.type, {}, {}),
        "named": visible(" ".join(named)),
        "fits": told.fits,
    }
