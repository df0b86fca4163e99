"""What the staff app is given to work with, and the few look-ups that all its pages share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import Depends, Request
from sqlalchemy import select
from sqlmodel import Session

from dashboards.words import Words
from service.cases import lapse_leases
from service.casework import Casework
from service.config import Settings
from service.db import Sessions
from service.errors import Conflict, Forbidden, NotFound, Unavailable, VaultError
from service.exclusions import Wallkeeper
from service.ledger.events import Ledger
from service.ledger.notes import Policy
from service.levels import Judge
from service.models import Unit
from service.reading import record_refusal
from service.rulesets import Rulebook
from service.staff import SignedIn
from service.triage import Ruleset
from service.turns import Turns
from service.vault.cards import Cards

log = structlog.get_logger("dashboards")


@dataclass(frozen=True)
class Desk:
    """Everything the staff app holds. It keeps nothing between two requests but whose password is tried next.

    row_key: 32 bytes, the key of row tags. rules: judge the facts that staff confirm. clock: the present moment, aware.
    health: a name and whether it is well, for ``/health/ready``; a value that is False makes the app not ready.
    policy: whose signatures under the ledger count; None where nobody was named.
    """

    settings: Settings
    sessions: Sessions
    ledger: Ledger
    cards: Cards
    row_key: bytes = field(repr=False)
    rules: Rulebook
    clock: Callable[[], datetime]
    health: Callable[[], Mapping[str, Any]]
    policy: Policy | None = None
    turns: Turns = field(default_factory=Turns)

    @property
    def ruleset(self) -> Ruleset:
        """The rules in force now."""
        return self.rules.current(self.clock())

    @property
    def judge(self) -> Judge:
        """The rules, with what it takes to write what they say."""
        targets = self.settings.claim_targets, self.settings.act_targets
        return Judge(self.ledger, self.cards, self.row_key, self.ruleset, *targets)

    @property
    def casework(self) -> Casework:
        """What it takes to write what people do with a case."""
        targets = self.settings.claim_targets, self.settings.act_targets
        return Casework(self.ledger, self.cards, self.row_key, *targets)

    @property
    def keeper(self) -> Wallkeeper:
        """What widening a wall needs."""
        return Wallkeeper(self.ledger, self.cards, self.row_key)


def desk_of(request: Request) -> Desk:
    """Return the desk that the app was made with."""
    desk: Desk = request.app.state.desk
    return desk


def who_of(request: Request) -> SignedIn:
    """Return the person whom the gate let in (`dashboards.gate`)."""
    who: SignedIn = request.state.who
    return who


def words_of(request: Request) -> Words:
    """Return the words of the page's language."""
    words: Words = request.state.words
    return words


def address_of(request: Request) -> str:
    """Return the address that a request comes from, for a fair turn at signing in; headers of a proxy do not count."""
    return request.client.host if request.client else ""


OurDesk = Annotated[Desk, Depends(desk_of)]
Who = Annotated[SignedIn, Depends(who_of)]
InWords = Annotated[Words, Depends(words_of)]
Address = Annotated[str, Depends(address_of)]


def unit_names(session: Session, words: Words) -> dict[str, str]:
    """Return the units' names in the page's language, by id."""
    return {unit.id: words.of_two(unit.name, unit.name_km) for unit in session.scalars(select(Unit)).all()}


def team(who: SignedIn, units: Mapping[str, str]) -> str:
    """Return the names of the units that a person sits in."""
    return ", ".join(units.get(unit, unit) for unit in who.viewer.units)


def stepped_up(who: SignedIn, now: datetime) -> bool:
    """Say whether this person has given password and code again, and that still holds."""
    return who.stepped_up_until is not None and now < who.stepped_up_until


@contextmanager
def noted(desk: Desk, who: SignedIn, case_id: UUID, now: datetime) -> Iterator[None]:
    """Leave an event of a case that is refused, hidden, unknown or cannot be trusted; then the refusal goes on."""
    try:
        yield
    except (NotFound, Forbidden, VaultError) as refused:
        why = type(refused).__name__
        try:
            record_refusal(desk.sessions, desk.ledger, who.viewer, case_id, why, now)
        except (Conflict, Unavailable) as fault:  # nothing was shown, and that must not become an error
            log.warning("refusal_not_noted", exc_info=fault)
        raise


def renew_claims(desk: Desk, who: SignedIn, now: datetime) -> None:
    """Open again what was claimed and not planned in time. A page is shown even when that cannot be written now."""
    try:
        lapse_leases(desk.sessions, desk.ledger, now, who.viewer)
    except (Conflict, Unavailable) as fault:
        log.warning("leases_not_lapsed", exc_info=fault)
