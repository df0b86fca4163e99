"""Words for what people do with a case: kinds of acts and steps, marks, reasons to close, and what forms ask for."""

from collections.abc import Mapping

from dashboards.words import mark
from service.models import OverlayKind

ACTS: Mapping[str, str] = {
    "contact": mark("Spoke with the child or a safe adult"),
    "visit": mark("Visited the place"),
    "safety_plan": mark("Agreed a safety plan"),
    "care": mark("Arranged care or shelter"),
    "evidence": mark("Secured evidence"),
    "border_notice": mark("Gave notice to a border post or airport"),
}
EMERGENCIES: Mapping[str, str] = {
    "ambulance": mark("Ambulance"),
    "police": mark("Police"),
    "shelter": mark("Shelter"),
}
STEPS: Mapping[str, str] = {
    "contact_attempt": mark("Tried to reach somebody"),
    "letter": mark("Wrote or received a letter"),
    "hearing": mark("Hearing"),
    "answer": mark("Answer from outside"),
}
BASES: Mapping[str, str] = {
    "law": mark("The law asks for it"),
    "best_interests": mark("Best interests of the child"),
}
SETTLEMENTS: Mapping[str, str] = {
    "money_offered": mark("Money or goods offered"),
    "compensated": mark("Money or goods paid"),
    "settled": mark("A paper of agreement signed"),
    "conciliated": mark("Apology or reconciliation"),
    "family_withdrew": mark("The family withdrew its complaint"),
    "victim_refused": mark("The child will not testify"),
    "victim_consented": mark("Somebody says that the child agreed"),
    "solved_at_commune": mark("“Solved” at the commune"),
    "threat": mark("A threat"),
    "other": mark("Something else of this kind"),
}
HEARD: Mapping[str, str] = {
    "heard_alone": mark("Heard alone, in its language"),
    "earlier_hearing": mark("An earlier hearing is enough"),
    "would_harm": mark("The advocate says: hearing it again would harm"),
}
OUTCOMES: Mapping[str, str] = {
    "open": mark("It goes on openly"),
    "quiet": mark("It goes on quietly: no contact with the family for now"),
    "protection": mark("Protection first; the prosecutor is informed"),
}
BY_TELEPHONE = "taken_by_phone"
CURRENCIES: Mapping[str, str] = {"KHR": mark("riel"), "USD": mark("dollar"), "THB": mark("baht")}

# All kinds of acts, steps and things that happened, for the history.
KINDS: Mapping[str, str] = {
    **ACTS,
    **EMERGENCIES,
    **STEPS,
    **SETTLEMENTS,
    BY_TELEPHONE: mark("Taken by telephone; reference and paper are due in 72 hours"),
}

OVERLAYS: Mapping[str, str] = {
    OverlayKind.SETTLEMENT: mark("Settlement recorded"),
    OverlayKind.STALL: mark("Stalled: no proven act or step in time"),
    OverlayKind.FLIGHT: mark("The suspect may leave"),
    OverlayKind.CHILD_REPORTER: mark("A child’s own report"),
    OverlayKind.SIGNAL: mark("An open signal"),
    OverlayKind.REVIEW_OWED: mark("The review of a withdrawal is owed"),
    OverlayKind.OVERSIGHT_HOLD: mark("Held by oversight"),
    OverlayKind.LEGAL_HOLD: mark("Kept for a court"),
    OverlayKind.SECOND_LOOK: mark("Drawn for a second look"),
}
# What each mark that stops closing waits for (casework.md section 4).
ENDS: Mapping[str, str] = {
    OverlayKind.STALL: mark("It ends with an act or step that a paper proves."),
    OverlayKind.FLIGHT: mark("Oversight ends it, with proof of stay or departure."),
    OverlayKind.SIGNAL: mark("It ends when somebody outside the unit has answered it."),
    OverlayKind.REVIEW_OWED: mark("It ends with the review, which oversight opens again."),
    OverlayKind.OVERSIGHT_HOLD: mark("Oversight ends it."),
}

REASONS: Mapping[str, str] = {
    "C1": mark("Conviction, final"),
    "C2": mark("Acquittal or dismissal, final"),
    "C3": mark("Child located and safe, no offence"),
    "C4": mark("Allegation disproved"),
    "C6": mark("Handed to another jurisdiction"),
    "C7": mark("Prosecutor takes no action"),
    "C8": mark("Legal end: death, limitation, amnesty, law repealed or already judged"),
    "C10": mark("Not a crime, welfare need met"),
}
PROOFS: Mapping[str, str] = {
    "C1": mark("The judgment and its number."),
    "C2": mark("The decision; the time to appeal is over."),
    "C3": mark("The advocate saw the child alone; the report."),
    "C4": mark("Two independent sources."),
    "C6": mark("Their acceptance and reference."),
    "C7": mark("The decision; when legal got it; whether it was appealed."),
    "C8": mark("The document, and the opinion of legal."),
    "C10": mark("The plan, completed; the child’s view."),
}

# What a form asks for, which is also what the history calls it.
ASKED: Mapping[str, str] = {
    "kind": mark("What was offered or said"),
    "plan": mark("What you will do, who does it, and by when"),
    "guess": mark("Who could guess who told, and what keeps them safe"),
    "when": mark("When"),
    "where": mark("Where"),
    "present": mark("Who was there"),
    "what": mark("What happened"),
    "taker": mark("Name of the person who took it"),
    "rank": mark("Rank or office"),
    "taker_unit": mark("Their unit"),
    "number": mark("Telephone number"),
    "recipient": mark("To whom"),
    "summary": mark("Summary for them"),
    "reason": mark("Why"),
    "reference": mark("Reference number"),
    "broker": mark("Who offered or brokered it"),
    "office": mark("Their office"),
    "unit": mark("Unit"),
    "amount": mark("Amount"),
    "told_by": mark("Who told us"),
    "wanted_by": mark("Who wants to stop"),
    "advocate": mark("The advocate who took part"),
    "heard": mark("How the child was heard"),
    "who_proposed": mark("Who proposed to stop"),
    "in_room": mark("Who was in the room"),
    "pressure": mark("Payment, debt, threat, moving house, lost work"),
    "wish": mark("What the child wishes"),
    "guardian": mark("What the guardian wishes"),
    "next": mark("How it goes on"),
    "why": mark("What was looked into, and how we know"),
    "appeal_window": mark("When the time to appeal ended"),
    "seen_by": mark("The advocate who saw the child alone"),
    "seen_when": mark("When and where"),
    "sources": mark("The two sources, and why they are independent"),
    "sent_to_legal": mark("When legal got the decision"),
    "appealed": mark("Whether it was appealed, and with what result"),
    "opinion": mark("The opinion of legal"),
    "plan_completed": mark("How the plan was completed"),
    "childs_view": mark("The child’s view"),
}
# Answers that are codes, by what was asked.
CODES: Mapping[str, Mapping[str, str]] = {"kind": KINDS, "heard": HEARD, "next": OUTCOMES}
