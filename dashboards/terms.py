"""Words for the codes of the domain: levels, states, kinds of place, flags, facts, events.

The values are English messages of the catalogue. A code without words is shown as it is, never hidden; a test
finds it.
"""

from collections.abc import Mapping
from typing import Any

from dashboards.deed_words import BASES, KINDS, OVERLAYS
from dashboards.deed_words import REASONS as CLOSING
from dashboards.words import Words, mark
from service.cases import HOT_FLAGS
from service.ledger.events import EventType
from service.models import Channel, ClockKind, JobState, Level, Role, State
from service.outbox import ACKNOWLEDGE, RING
from service.reading import REASONS
from service.triage import FACTS as SCHEMA
from service.triage import PROVINCES

LEVELS: Mapping[str, str] = {
    Level.P1: mark("P1 now"),
    Level.P2: mark("P2 today"),
    Level.P3: mark("P3 week"),
    Level.P4: mark("P4 watch"),
}

STATES: Mapping[str, str] = {
    State.OPEN: mark("Open"),
    State.CLAIMED: mark("Claimed"),
    State.IN_ACTION: mark("In action"),
    State.REFERRED: mark("Referred"),
    State.WITH_AUTHORITY: mark("With an authority"),
    State.IN_COURT: mark("In court"),
    State.WITHDRAWAL_REVIEW: mark("Withdrawal under review"),
    State.CLOSURE_PROPOSED: mark("Closure proposed"),
    State.CLOSED: mark("Closed"),
    State.WATCH: mark("Kept and watched"),
}

ROLES: Mapping[str, str] = {
    Role.SCREENER: mark("screener"),
    Role.INVESTIGATOR: mark("investigator"),
    Role.SUPERVISOR: mark("supervisor"),
    Role.ADVOCATE: mark("advocate"),
    Role.LEGAL: mark("legal officer"),
    Role.OVERSIGHT: mark("oversight officer"),
    Role.AUDITOR: mark("auditor"),
    Role.ADMIN: mark("administrator"),
    "system": mark("the system"),
}

CHANNELS: Mapping[str, str] = {
    Channel.SMS: mark("text message"),
    Channel.VOICE: mark("call"),
    Channel.WEB: mark("web form"),
    Channel.ASSISTED: mark("told in person"),
}

NEXT: Mapping[str, str] = {
    ClockKind.CLAIM: mark("Someone claims it"),
    ClockKind.ACT: mark("A step that protects"),
    ClockKind.LEASE: mark("The owner enters a plan"),
    ClockKind.CHALLENGE: mark("Oversight answers the tipster"),
    ClockKind.STEP: mark("A step"),
    ClockKind.TAKEN: mark("The authority takes it"),
    ClockKind.PAPERS: mark("Their reference and paper"),
    ClockKind.HEARTBEAT: mark("An answer from the authority"),
    ClockKind.LETTER: mark("A letter to the next authority"),
    ClockKind.REVIEW: mark("Oversight reviews the withdrawal"),
    ClockKind.COOLING: mark("Time to object"),
    ClockKind.DECISION: mark("Closing is signed or refused"),
}

DUE: Mapping[str, str] = {
    ClockKind.CLAIM: mark("claim by {hour}"),
    ClockKind.ACT: mark("act by {hour}"),
    ClockKind.LEASE: mark("plan by {hour}"),
    ClockKind.CHALLENGE: mark("answer by {hour}"),
    ClockKind.STEP: mark("step by {hour}"),
    ClockKind.TAKEN: mark("taken by {hour}"),
    ClockKind.PAPERS: mark("papers by {hour}"),
    ClockKind.HEARTBEAT: mark("answer by {hour}"),
    ClockKind.LETTER: mark("letter by {hour}"),
    ClockKind.REVIEW: mark("review by {hour}"),
    ClockKind.COOLING: mark("objections until {hour}"),
    ClockKind.DECISION: mark("decide by {hour}"),
}
DUE_P4: Mapping[str, str] = {
    **DUE,
    ClockKind.CLAIM: mark("read by {hour}"),
    ClockKind.ACT: mark("review by {hour}"),
}

OPENING: Mapping[str, str] = dict(
    zip(
        REASONS,
        (
            mark("Screening: I read it first"),
            mark("I am its owner"),
            mark("I supervise it"),
            mark("Oversight"),
            mark("It may belong to another case"),
        ),
        strict=True,
    )
)

TAKEN_OUT: Mapping[str, str] = {
    "account": mark("The account"),
    "decision": mark("The record of the rules"),
}

VENUES: Mapping[str, str] = {
    "residential_care": mark("Residential care"),
    "orphanage": mark("Orphanage"),
    "karaoke": mark("Karaoke"),
    "massage": mark("Massage shop"),
    "beer_garden": mark("Beer garden"),
    "bar": mark("Bar"),
    "guesthouse": mark("Guesthouse"),
    "hotel": mark("Hotel"),
    "factory": mark("Workplace"),
    "school": mark("School"),
    "home": mark("Home"),
    "street": mark("Street"),
    "beach": mark("Beach"),
    "border": mark("Border"),
    "online": mark("Online"),
    "other": mark("Another kind of place"),
}

FLAGS: Mapping[str, str] = {
    "settlement_attempt": mark("Settlement"),
    "child_self_report": mark("Child reports"),
    "leaving_country": mark("Leaving country"),
    "immediate_danger": mark("Immediate danger"),
    "confinement": mark("Confined"),
    "being_moved": mark("Being moved"),
    "official_complicity": mark("Official involved"),
    "position_of_trust": mark("Position of trust"),
    "multiple_victims": mark("Several children"),
    "young_child": mark("Young child"),
    "foreign_suspect": mark("Foreign suspect"),
    "repeat_report": mark("Reported before"),
    "trafficking": mark("Trafficking"),
    "unlawful_adoption": mark("Unlawful adoption"),
    "online_exploitation": mark("On the internet"),
    "witness_intimidation": mark("Threats to witnesses"),
    "medical_need": mark("Needs a doctor"),
    "suicide_risk": mark("May harm itself"),
    "child_labour": mark("Child labour"),
    "orphanage_tourism": mark("Orphanage tourism"),
    "unregistered_institution": mark("Unregistered"),
    "spam_or_prank": mark("Spam or prank"),
    "adult_only": mark("Adults only"),
    "information_request": mark("A question"),
}

SOURCES: Mapping[str, str] = {
    "stated": mark("Said by the tipster"),
    "derived": mark("Worked out from what is stored"),
    "suggested": mark("From words, not confirmed"),
    "confirmed": mark("Confirmed by staff"),
}

FACTS: Mapping[str, str] = {
    "child_involved": mark("A child is concerned"),
    "message_kind": mark("Kind of message"),
    "danger_now": mark("Child in danger now"),
    "child_with_suspect_now": mark("Child with this person now"),
    "confined_now": mark("Child stopped from leaving"),
    "moved_today": mark("Child moved today"),
    "injured_without_care": mark("Hurt and without care"),
    "self_harm": mark("May harm itself"),
    "harm_due_today": mark("Harm announced for today"),
    "live_stream_now": mark("Shown live on the internet now"),
    "suspect_leaving": mark("Suspect is leaving"),
    "suspect_leaving_hours": mark("Suspect leaves in"),
    "harm_due_hours": mark("Harm announced in"),
    "sexual_contact": mark("Sexual abuse with contact"),
    "paid_exploitation": mark("Exploited for payment"),
    "online_abuse": mark("Sexual abuse through the internet"),
    "violence": mark("Violence"),
    "severe_neglect": mark("Severe neglect"),
    "sale": mark("Sale of a child"),
    "unlawful_adoption": mark("Unlawful adoption"),
    "organ_removal": mark("Removal of organs"),
    "trafficking": mark("Trafficking"),
    "forced_marriage": mark("Forced marriage"),
    "harm_unspecified": mark("Harm, not said which"),
    "material_shared": mark("Child sexual abuse material passed on"),
    "threat_to_share": mark("Threat to share pictures"),
    "retaliation_threat": mark("Threats for speaking"),
    "child_labour": mark("Child labour"),
    "work_hazardous": mark("Dangerous work"),
    "begging": mark("Begging"),
    "child_marriage_agreed": mark("Marriage of minors planned"),
    "home_conditions": mark("Bad conditions in the home"),
    "visitors_alone_with_children": mark("Visitors alone with children"),
    "orphanage_tourism": mark("Orphanage tourism"),
    "tour_offered": mark("Travel offered for it"),
    "other_child_at_risk": mark("Another child at risk"),
    "evidence_perishes_hours": mark("Evidence is lost in"),
    "lesser_only": mark("Only light work, plans or conditions"),
    "child_safe_now": mark("Child safe now"),
    "second_hand": mark("Heard from others"),
    "adult_survivor": mark("Adult, harmed as a child"),
    "suspect_access": mark("Can still reach children"),
    "suspect_status": mark("Where the suspect is"),
    "suspect_foreign": mark("Suspect is a foreigner"),
    "suspect_role": mark("Suspect’s role"),
    "official_complicity": mark("Official takes part or protects"),
    "settlement": mark("Settlement"),
    "prior_report_ignored": mark("Reported, and nobody acted"),
    "reported_before": mark("Reported before"),
    "age_min": mark("Youngest age"),
    "age_max": mark("Oldest age"),
    "victims": mark("Number of children"),
    "reporter_is_child": mark("A child is telling"),
    "reporter_lives_at_place": mark("Tipster lives there"),
    "child_vulnerable": mark("Especially vulnerable"),
    "recency": mark("When it happened"),
    "last_incident_hours": mark("Last incident before"),
    "place_known": mark("Place is known"),
    "person_known": mark("Person is known"),
    "province": mark("Province"),
    "registration": mark("Registration of the place"),
    "venue_type": mark("Kind of place"),
    "safe_to_contact": mark("Safe to write back"),
    "venue_tips_90d": mark("Tips about the place, 90 days"),
    "suspect_tips_365d": mark("Tips about the person, a year"),
    "prior_closed_incomplete_12m": mark("Closed incomplete before, a year"),
    "silent_calls_24h": mark("Silent calls, a day"),
}
# Asked for the count only and sealed (triage.md section 2): no part of what a case is decided on.
COUNTED_ONLY = frozenset({"child_sex", "child_nationality", "child_ethnicity", "child_situation"})

VALUES: Mapping[str, str] = {
    "yes": mark("Yes"),
    "no": mark("No"),
    "message_kind.report": mark("Report"),
    "message_kind.question": mark("Question"),
    "message_kind.offer": mark("Offer"),
    "message_kind.thanks": mark("Thanks"),
    "message_kind.retraction": mark("Taken back"),
    "message_kind.other_matter": mark("Another matter"),
    "message_kind.spam": mark("Advertising"),
    "message_kind.test": mark("Test"),
    "message_kind.abusive": mark("Insults"),
    "message_kind.silent": mark("Nobody spoke"),
    "suspect_access.none": mark("No"),
    "suspect_access.ongoing": mark("Yes"),
    "suspect_status.dead": mark("Dead"),
    "suspect_status.custody": mark("In custody"),
    "suspect_status.gone": mark("Gone"),
    "suspect_status.free": mark("Free"),
    "suspect_role.relative": mark("Relative"),
    "suspect_role.teacher": mark("Teacher"),
    "suspect_role.coach": mark("Coach"),
    "suspect_role.clergy": mark("Clergy"),
    "suspect_role.director": mark("Director"),
    "suspect_role.staff": mark("Staff"),
    "suspect_role.volunteer": mark("Volunteer"),
    "suspect_role.employer": mark("Employer"),
    "suspect_role.police": mark("Police"),
    "suspect_role.military": mark("Military"),
    "suspect_role.court": mark("Court"),
    "suspect_role.local_chief": mark("Village or commune chief"),
    "suspect_role.other_official": mark("Another official"),
    "suspect_role.stranger": mark("Stranger"),
    "settlement.none": mark("None"),
    "settlement.offered": mark("Offered"),
    "settlement.pressured": mark("Pressed for"),
    "settlement.agreed": mark("Agreed"),
    "settlement.paid": mark("Paid"),
    "recency.historic": mark("More than a year ago"),
    "recency.past": mark("In the past year"),
    "recency.recent": mark("In the past month"),
    "recency.now": mark("Now"),
    "registration.registered": mark("Registered"),
    "registration.unregistered": mark("Not registered"),
    "registration.ordered_closed": mark("Ordered to close"),
    "safe_to_contact.hours": mark("At some hours"),
}

TEXTS: Mapping[str, str] = {
    ACKNOWLEDGE: mark("Neutral answer to the tipster"),
    RING: mark("Text to people on duty"),
}

# How far a text is: states of its outbox row, then what the provider may say of it.
OUTCOMES: Mapping[str, str] = {
    JobState.WAITING: mark("waits to be sent"),
    JobState.SENDING: mark("is being sent"),
    JobState.CHECKING: mark("perhaps sent; the provider is being asked"),
    JobState.DONE: mark("sent"),
    JobState.DROPPED: mark("not sent, because it was too late or not wanted"),
    JobState.FAILED: mark("did not arrive"),
    JobState.UNKNOWN: mark("nobody knows whether it was sent; it is never sent twice"),
    "delivered": mark("delivered"),
    "read": mark("read"),
}

# What a tipster sees on the return page (casework.md section 13).
STATUSES: Mapping[str, str] = {
    "received": mark("received"),
    "being_read": mark("being read"),
    "responsible": mark("someone is responsible"),
    "action": mark("action taken"),
    "authorities": mark("with the authorities"),
    "court": mark("in court"),
    "nearly_finished": mark("nearly finished"),
    "finished": mark("finished"),
    "kept": mark("kept and watched"),
}

EVENTS: Mapping[str, str] = {
    EventType.CASE_OPENED: mark("Case opened"),
    EventType.CASE_CLAIMED: mark("Claimed"),
    EventType.CASE_LEASE_LAPSED: mark("Claim lapsed without a plan; open again with its first deadline"),
    EventType.CASE_RELEASED: mark("Given back; open again with its first deadline"),
    EventType.CASE_UNIT_SEALED: mark("Handed on to {unit}"),
    EventType.CASE_WALL_RAISED: mark("Behind the wall: only integrity and oversight read it now"),
    EventType.CLOSURE_EFFECTIVE: mark("The case was closed"),
    EventType.PLAN_RECORDED: mark("Plan entered"),
    EventType.ACT_RECORDED: mark("Act: {kind}"),
    EventType.STEP_RECORDED: mark("Step: {kind}"),
    EventType.REFERRAL_SENT: mark("Referred to an authority: {basis}"),
    EventType.REFERRAL_TAKEN: mark("The authority has taken it"),
    EventType.REFERRAL_REFUSED: mark("The authority refused it, or let it lie; it is in action again"),
    EventType.HEARTBEAT_MISSED: mark("No answer from the authority in time"),
    EventType.COURT_ENTERED: mark("Brought to court"),
    EventType.COURT_RETURNED: mark("The court gave it back to the authority"),
    EventType.SETTLEMENT_SIGNALLED: mark("Somebody spoke of settling; it closes nothing, and oversight was told"),
    EventType.COMPENSATION_SIGNALLED: mark("Money or goods were paid; it closes nothing, and oversight was told"),
    EventType.WITHDRAWAL_RECORDED: mark(
        "Somebody wants to stop; oversight reviews it, and the case goes on by default"
    ),
    EventType.REVIEW_HELD: mark("The withdrawal was reviewed; the case goes on"),
    EventType.REVIEW_LAPSED: mark("Nobody reviewed the withdrawal in time; the case goes on, and the review is owed"),
    EventType.CLOSURE_PROPOSED: mark("Proposed to close it: {code}"),
    EventType.CLOSURE_APPROVED: mark("Signed to close it: {closing}"),
    EventType.CLOSURE_REFUSED: mark("Refused to close it"),
    EventType.CLOSURE_EXPIRED: mark("The proposal to close it was not decided in time; the case goes on"),
    EventType.CLOSURE_STOPPED: mark("The proposal to close it was stopped: something new came"),
    EventType.REASON_REJECTED: mark("Tried to close it for what is no reason"),
    EventType.CASE_REOPENED: mark("Opened again"),
    EventType.OWNER_CHANGED: mark("Another owner"),
    EventType.OVERLAY_SET: mark("Marked: {overlay}"),
    EventType.OVERLAY_ENDED: mark("Mark ended: {overlay}"),
    EventType.STEP_REFUSED: mark("Refused by the rules: {step}"),
    EventType.ATTACHMENT_OPENED: mark("Paper opened"),
    EventType.CASE_GRANTED: mark("The key of the case was given to a unit"),
    EventType.CASE_REMOVED: mark("The key of the case was taken from a unit"),
    EventType.UNIT_ROTATED: mark("A unit has new keys"),
    EventType.RELAY_ROTATED: mark("Intake has new keys"),
    EventType.PEPPER_ROTATED: mark("Contacts have a new key"),
    EventType.RECOVERY_USED: mark("The recovery key was used"),
    EventType.CASE_WALL_WIDENED: mark("Somebody was put behind the wall of this case"),
    EventType.CASE_WALL_NARROWED: mark("The wall was narrowed; it was witnessed"),
    EventType.NARROWING_PROPOSED: mark("Proposed to narrow the wall"),
    EventType.NARROWING_APPROVED: mark("A second person agreed to narrow the wall; takes effect when witnessed"),
    EventType.NARROWING_REFUSED: mark("Refused to narrow the wall"),
    EventType.TIP_SEALED: mark("First account sealed; it never changes"),
    EventType.TIP_MESSAGE: mark("A further message arrived"),
    EventType.DECISION_MADE: mark("Rules decided {level}"),
    EventType.LEVEL_RAISED: mark("Level raised from {before} to {after}"),
    EventType.FACTS_CONFIRMED: mark("Fact confirmed: {fact}"),
    EventType.STATUS_CHANGED: mark("The tipster sees now: {status}"),
    EventType.CHALLENGE_RAISED: mark("The tipster says that something is wrong; only oversight sees this"),
    EventType.CHALLENGE_ANSWERED: mark("Oversight has answered what the tipster said is wrong"),
    EventType.ASKS_SENT: mark("A neutral question was asked through the return page"),
    EventType.LOWERING_PROPOSED: mark("Proposed to lower it from {before} to {after}; what changed: {fact}"),
    EventType.LOWERING_APPROVED: mark("Agreed to lower it from {before} to {after}: {signed}"),
    EventType.LOWERING_REFUSED: mark("Refused to lower it from {before} to {after}"),
    EventType.LOWERING_LAPSED: mark("The proposal to lower it to {after} lapsed"),
    EventType.LOWERING_EFFECTIVE: mark("Level lowered from {before} to {after}: witnesses have seen that all agreed"),
    EventType.ENGINE_FAILED: mark("The rules could not be applied; P1 to be safe"),
    EventType.CLOCK_SET: mark("Deadline set"),
    EventType.CLOCK_MET: mark("Deadline met"),
    EventType.CLOCK_LAPSED: mark("Nobody claimed it in time; told: {told}"),
    EventType.CLOCK_ESCALATED: mark("Told: {told}"),
    EventType.REPLY_SENT: mark("The neutral answer was sent"),
    EventType.REPLY_FAILED: mark("The neutral answer: {outcome}"),
    EventType.REPLY_SEEN: mark("Seen, a text that went wrong: {outcome}"),
    EventType.COPY_DELETED: mark("Copies at the provider deleted"),
    EventType.CONTENT_OPENED: mark("Account opened: {reason}"),
    EventType.CONTENT_EXPORTED: mark("Taken out as a file: {what}"),
    EventType.QUOTA_EXCEEDED: mark("Read beyond the quota of a day"),
    EventType.ACCESS_DENIED: mark("Access refused"),
    EventType.SESSION_OPENED: mark("Signed in"),
    EventType.SESSION_REFUSED: mark("Sign-in refused"),
    EventType.SESSION_ENDED: mark("Signed out"),
    EventType.MEMBER_JOINED: mark("Member joined"),
    EventType.SESSION_STEPPED_UP: mark("Password and code given again"),
    EventType.INVITATION_MADE: mark("Invited"),
    EventType.INVITATION_ENDED: mark("Invitation taken back"),
    EventType.MEMBER_REFUSED: mark("Not let into a unit: the digits did not fit"),
    EventType.MEMBER_LEFT: mark("Member left"),
    EventType.ROLE_PROPOSED: mark("Another role proposed"),
    EventType.ROLE_CHANGED: mark("Role changed"),
    EventType.RESET_PROPOSED: mark("Account reset proposed"),
    EventType.RESET_APPROVED: mark("Account reset by two persons"),
    EventType.CHANGE_REFUSED: mark("Change of an account refused"),
    EventType.PASSWORD_CHANGED: mark("Password changed"),
    EventType.REGISTER_PROPOSED: mark("Accepting the register of people proposed"),
    EventType.REGISTER_ACCEPTED: mark("Register of people accepted"),
    EventType.REGISTER_DIFFERS: mark("Register of people was changed outside the system"),
    EventType.CARDS_PUBLISHED: mark("New cards of keys published"),
    EventType.RULES_PROPOSED: mark("New rules proposed"),
    EventType.RULES_APPROVED: mark("New rules approved"),
    EventType.RULES_PUBLISHED: mark("New rules published"),
    EventType.RULES_RATIFIED: mark("Emergency rules ratified"),
    EventType.RULES_REFUSED: mark("New rules refused"),
    EventType.RULES_LAPSED: mark("Emergency rules lapsed"),
    EventType.VALUE_ERASED: mark("A value was erased"),
    EventType.CENSUS_TAKEN: mark("All chains of the history were listed"),
    EventType.CHECK_FAILED: mark("The history does not fit together; it is halted"),
    EventType.SIGNER_REFUSED: mark("The signer refused a second history; it is halted"),
    EventType.WITNESS_REFUSED: mark("A witness refused"),
    EventType.WITNESS_BACK: mark("A witness answers again"),
    EventType.INCIDENT_OPENED: mark("The history was repaired; what was lost is named"),
    EventType.CODE_STARTED: mark("The program was started"),
    EventType.SCHEMA_MIGRATED: mark("The database was changed to a new version"),
}


def term(words: Words, table: Mapping[str, str], code: str) -> str:
    """Return the words for `code`, or the code itself with spaces where `table` has none."""
    message = table.get(code)
    return words(message) if message is not None else code.replace("_", " ")


def due(words: Words, level: str, kind: str, hour: str) -> str:
    """Return what must happen by `hour`: ``claim by 14:30``. What is only watched is read and reviewed."""
    message = (DUE_P4 if level == Level.P4 else DUE).get(kind)
    return words(message, hour=hour) if message is not None else words("by {hour}", hour=hour)


def value(words: Words, fact: str, code: object) -> str:
    """Return a fact's value in words; numbers in the language's digits, hours with their unit."""
    if isinstance(code, (int, float)) and not isinstance(code, bool):
        number = words.digits(code)
        return words("{hours} h", hours=number) if fact.endswith("_hours") else number
    text = str(code)
    if fact == "province":
        return province(words, text)
    if fact == "venue_type":
        return term(words, VENUES, text)
    return term(words, VALUES, f"{fact}.{text}" if f"{fact}.{text}" in VALUES else text)


def condition(words: Words, fact: str, code: str | int) -> str:
    """Return a fact with a value that it might have; a number stands for all that are as urgent."""
    said = value(words, fact, code)
    if isinstance(code, int):
        less = SCHEMA[fact].low_is_urgent
        said = words("{number} or less", number=said) if less else words("{number} or more", number=said)
    return f"{term(words, FACTS, fact)}: {said}"


def measure(words: Words, fact: str) -> str:
    """Return what to write a fact's number under; hours say that they are."""
    label = term(words, FACTS, fact)
    return words("{fact}, in hours", fact=label) if fact.endswith("_hours") else label


def step(words: Words, kind: str, fields: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """Return an event of a case in words. fields: those of its fields that stand in clear."""
    unit = str(fields.get("unit", ""))
    values = {
        "unit": units.get(unit, unit),
        "reason": term(words, OPENING, str(fields.get("reason", ""))),
        **{name: term(words, LEVELS, str(fields.get(name, ""))) for name in ("level", "before", "after")},
    }
    values["told"] = ", ".join(post(words, duty, units) for duty in fields.get("told", [])) or words("nobody")
    values["what"] = term(words, TAKEN_OUT, str(fields.get("what", "")))
    values["fact"] = _fact(words, fields)
    signed = fields.get("signed", False)
    values["signed"] = words("all have signed") if signed else words("oversight must sign as well")
    values["status"] = term(words, STATUSES, str(fields.get("status", "")))
    values["kind"] = term(words, KINDS, str(fields.get("kind", "")))
    values["basis"] = term(words, BASES, str(fields.get("basis", "")))
    values["code"] = term(words, CLOSING, str(fields.get("code", "")))
    values["closing"] = words("all have signed") if signed else words("another signature is missing")
    values["overlay"] = term(words, OVERLAYS, str(fields.get("overlay", "")))
    values["step"] = _refused(words, str(fields.get("step", "")))
    values["outcome"] = term(words, OUTCOMES, str(fields.get("outcome", "")))
    message = EVENTS.get(kind)
    return words(message, **values) if message is not None else kind.replace(":", " ")


def _refused(words: Words, kind: str) -> str:
    """Return the step that the rules refused, without what its event would have told."""
    message = EVENTS.get(kind)
    return words(message).partition("{")[0].rstrip(" :：៖") if message is not None else kind.replace(":", " ")


def _fact(words: Words, fields: Mapping[str, Any]) -> str:
    """Return the fact of an event, with its value where it has one; behind the wall both are sealed."""
    if "fact" not in fields:
        return words("sealed")
    name = str(fields["fact"])
    label = term(words, FACTS, name)
    return f"{label}: {value(words, name, fields['value'])}" if "value" in fields else label


def flag_tags(words: Words, flags: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return flags in words, the three that order the queue first and marked."""
    ordered = [flag for flag in HOT_FLAGS if flag in flags] + [flag for flag in flags if flag not in HOT_FLAGS]
    return [{"words": term(words, FLAGS, flag), "hot": flag in HOT_FLAGS} for flag in ordered]


def post(words: Words, duty: str | None, units: Mapping[str, str]) -> str:
    """Return a post of the duty list in words: ``Siem Reap team, supervisor``. duty: as `OutboxJob.duty` has it."""
    if not duty:
        return words("nobody")
    unit, _, role = duty.partition("#")[0].partition("/")
    name = units.get(unit, unit)
    return words("{unit}, supervisor", unit=name) if role == "supervisor" else name


def notices(words: Words, codes: str | None) -> list[str]:
    """Return what a reader must know of a message besides its words (``Message.mark``)."""
    told = []
    for code in (codes or "").split():
        kind, _, number = code.partition(":")
        if kind == "media":
            told.append(
                words("Pictures or files announced: {number}. They were not fetched.", number=words.digits(number))
            )
        elif kind == "token":
            told.append(words("The form came without its token: it may not be from our own page."))
        elif kind == "answer":
            told.append(words("The answer to question {number}.", number=words.digits(number)))
        elif kind == "after":
            told.append(words("From the tipster of case {reference}, which is closed.", reference=number))
        else:
            told.append(code)
    return told


def provinces(words: Words) -> dict[str, str]:
    """Return the provinces' names by their code, in the order of the names."""
    named = {code: words.of_two(name.en, name.km) for code, name in PROVINCES.items()}
    return dict(sorted(named.items(), key=lambda entry: entry[1]))


def province(words: Words, code: str) -> str:
    """Return a province's name."""
    name = PROVINCES.get(code)
    return words.of_two(name.en, name.km) if name is not None else code
