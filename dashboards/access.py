"""Who may ask for which page: one rule a route, and a route without a rule is reached by nobody.

A rule only keeps roles out that have no business with a page at all; what a person may see of cases is
`service.walls`, and which step they may take is decided where it is taken. Whoever is kept out gets the page of what
does not exist, so that an address tells nothing.
"""

from collections.abc import Mapping

from fastapi import Request

from dashboards.desk import desk_of, noted
from dashboards.forms import read_id
from service.errors import NoSuchCase, NotFound
from service.models import Role

ANYONE = None  # also without a session: the gate's own list says which these are (`dashboards.gate.OPEN`)
EVERYBODY = frozenset(Role)  # whoever is signed in
HISTORIES = EVERYBODY - {Role.ADMIN}  # administrators administer and read no case (casework.md section 1)
READERS = HISTORIES - {Role.AUDITOR}  # auditors read event histories, and no content
WALLKEEPERS = frozenset({Role.OVERSIGHT, Role.INVESTIGATOR})  # of integrity, which `service.exclusions` decides
OVERSIGHT = frozenset({Role.OVERSIGHT})

RULES: Mapping[tuple[str, str], frozenset[Role] | None] = {
    ("GET", "/static"): ANYONE,
    ("GET", "/health/live"): ANYONE,
    ("GET", "/health/ready"): ANYONE,
    ("GET", "/sign-in"): ANYONE,
    ("POST", "/sign-in"): ANYONE,
    ("POST", "/sign-out"): EVERYBODY,
    ("GET", "/join"): ANYONE,
    ("POST", "/join"): ANYONE,
    ("GET", "/step-up"): EVERYBODY,
    ("POST", "/step-up"): EVERYBODY,
    ("GET", "/staff"): EVERYBODY,
    ("GET", "/staff/password"): EVERYBODY,
    ("POST", "/staff/password"): EVERYBODY,
    ("POST", "/staff/sessions"): EVERYBODY,
    # Who may change whose account is `service.rights`; a page of a person shows what any colleague may know.
    ("GET", "/staff/people/{member_id}"): EVERYBODY,
    ("POST", "/staff/people/{member_id}/admit"): EVERYBODY,
    ("POST", "/staff/people/{member_id}/end-sessions"): EVERYBODY,
    ("POST", "/staff/people/{member_id}/leave"): EVERYBODY,
    ("POST", "/staff/people/{member_id}/role"): EVERYBODY,
    ("POST", "/staff/people/{member_id}/reset"): EVERYBODY,
    ("POST", "/staff/register"): EVERYBODY,
    ("POST", "/staff/changes/{change_id}/sign"): EVERYBODY,
    ("POST", "/staff/changes/{change_id}/refuse"): EVERYBODY,
    ("GET", "/staff/invite"): EVERYBODY,
    ("POST", "/staff/invite"): EVERYBODY,
    ("POST", "/staff/invitations/{invitation_id}/take-back"): EVERYBODY,
    ("GET", "/rules"): EVERYBODY,
    ("GET", "/rules/{version_hash}"): EVERYBODY,  # who sees a proposal and signs it: `service.publishing`
    ("POST", "/rules/{version_hash}/tick"): EVERYBODY,
    ("POST", "/rules/{version_hash}/approve"): EVERYBODY,
    ("POST", "/rules/{version_hash}/refuse"): EVERYBODY,
    ("GET", "/"): EVERYBODY,
    ("GET", "/queue"): EVERYBODY,
    ("GET", "/oversight"): OVERSIGHT,
    ("GET", "/cases/{case_id}"): HISTORIES,
    ("GET", "/cases/{case_id}/open"): READERS,
    ("POST", "/cases/{case_id}/open"): READERS,
    ("POST", "/cases/{case_id}/claim"): READERS,
    ("POST", "/cases/{case_id}/hand-on"): READERS,
    ("POST", "/cases/{case_id}/texts/{text_id}"): READERS,
    ("POST", "/cases/{case_id}/questions"): READERS,
    ("POST", "/cases/{case_id}/challenge"): OVERSIGHT,
    ("POST", "/cases/{case_id}/facts"): READERS,
    ("POST", "/cases/{case_id}/raise"): READERS,
    ("POST", "/cases/{case_id}/lower"): READERS,
    ("POST", "/cases/{case_id}/lower/{lowering_id}/agree"): READERS,
    ("POST", "/cases/{case_id}/lower/{lowering_id}/refuse"): READERS,
    ("POST", "/cases/{case_id}/recuse"): HISTORIES,
    ("POST", "/cases/{case_id}/wall"): WALLKEEPERS,
    ("POST", "/cases/{case_id}/wall/{exclusion_id}/narrow"): OVERSIGHT,
    ("POST", "/cases/{case_id}/narrowings/{narrowing_id}/agree"): OVERSIGHT,
    ("POST", "/cases/{case_id}/narrowings/{narrowing_id}/refuse"): OVERSIGHT,
    # Which step whom is open to: `service.casework` and `service.closures`, by the table of `service.cases`.
    ("POST", "/cases/{case_id}/do/{deed}"): READERS,
    ("GET", "/cases/{case_id}/close"): READERS,
    ("POST", "/cases/{case_id}/close"): READERS,
    ("POST", "/cases/{case_id}/close/{closure_id}/sign"): READERS,
    ("POST", "/cases/{case_id}/close/{closure_id}/refuse"): READERS,
    ("POST", "/downloads/{case_id}/papers/{attachment_id}"): READERS,
    ("POST", "/downloads/{case_id}/{what}"): READERS,
}


def check(request: Request) -> None:
    """Return if this route has a rule and the person who asks is within it. Raises NotFound.

    A dependency of the whole app, so that no route can do without it. Whoever asks for a case without the role for it
    leaves an event, like anybody whom a case is refused.
    """
    method = "GET" if request.method == "HEAD" else request.method
    rule = RULES.get((method, request.scope["route"].path), frozenset())
    if rule is ANYONE:
        return
    who = getattr(request.state, "who", None)
    if who is not None and who.viewer.role in rule:
        return
    case, desk = request.path_params.get("case_id"), desk_of(request)
    if who is None or case is None:
        raise NotFound("There is nothing here.")
    with noted(desk, who, read_id(case), desk.clock()):
        raise NoSuchCase
