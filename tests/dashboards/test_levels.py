"""The level of a case on its page: what would change it, correcting a fact, raising, and lowering by two units."""

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlmodel import col

from commands import serve
from dashboards.pages import DETAILS
from service import cases, levels
from service.errors import Misconfigured
from service.models import Case, Lowering, LoweringState
from service.triage import ASKS, FACTS
from tests.builders import NOW, World
from tests.commands.test_serve import for_staff, installed
from tests.dashboards.builders import ACCOUNT, Browser, Clockwork, Form, Page, a_case, a_record

__all__ = ["installed"]  # a fixture

Browse = Callable[..., Browser]
WHY = "The neighbour rang and says that nobody was locked in, the door has no lock."
BEGS = a_record(
    level="P3",
    asks=[],
    facts={"begging": {"source": "stated", "value": "yes", "at": NOW.isoformat()}},
    fired=[{"id": "R035", "reason_en": "A child begs", "reason_km": "កុមារសុំទាន"}],
)
DANGER = a_record(level="P1", facts={"danger_now": {"source": "stated", "value": "yes", "at": NOW.isoformat()}})


def shared(world: World, **chosen: Any) -> UUID:
    """A case that screening and a handling unit both hold, and oversight."""
    return a_case(world, **({"unit": "siem-reap", "also": ("screening",), "level": "P3", "record": BEGS} | chosen))


def opened(browser: Browser, case: UUID) -> Page:
    return browser.submit(browser.open(f"/cases/{case}"), "/open", reason="screening")


def fact_form(page: Page, fact: str) -> Form:
    return next(f for f in page.forms if f.action.endswith("/facts") and f.fields.get("fact") == fact)


def correct(browser: Browser, case: UUID, fact: str, value: str) -> Page:
    form = fact_form(opened(browser, case), fact)
    return browser.send(form.action, form.fields | {"value": value})


def propose(browser: Browser, case: UUID, level: str = "P4", fact: str = "begging") -> Page:
    return browser.submit(opened(browser, case), "/lower", level=level, fact=fact, reason=WHY)


def agree(browser: Browser, case: UUID) -> Page:
    return browser.submit(opened(browser, case), "/agree")


def row_of(world: World, case: UUID) -> Case:
    with world.sessions.read() as session:
        row = session.get(Case, case)
    assert row is not None
    return row


def state(world: World, case: UUID) -> str:
    with world.sessions.read() as session:
        found: str = session.scalars(select(Lowering.state).where(col(Lowering.case) == case)).one()  # type: ignore[call-overload]
    return found


# --- what would change it ---


def test_the_page_says_what_would_make_it_more_urgent_and_what_to_ask(browse: Browse, world: World) -> None:
    text = browse("screener").open(f"/cases/{a_case(world, record=BEGS | {'asks': ['danger_now']})}").text

    assert "It would be P1 now, if one of these is so:" in text
    assert f"Child in danger now: Yes Unknown. Ask: {ASKS['danger_now'].en}" in text


def test_what_would_change_it_stands_in_khmer_too(browse: Browse, world: World) -> None:
    text = browse("screener", "km").open(f"/cases/{a_case(world, record=BEGS | {'asks': ['danger_now']})}").text

    assert "វានឹងទៅជា P1 ឥឡូវ បើមានមួយក្នុងចំណោមនេះ៖" in text
    assert ASKS["danger_now"].km in text


def test_nobody_is_to_be_asked_where_the_rules_ask_nothing(browse: Browse, world: World) -> None:
    text = browse("screener").open(f"/cases/{a_case(world, record=BEGS)}").text

    assert "It would be P1 now" in text
    assert "Unknown. Ask" not in text


def test_nothing_makes_a_p1_more_urgent(browse: Browse, world: World) -> None:
    page = opened(browse("screener"), a_case(world, level="P1"))

    assert "It would be" not in page.text
    assert not page.has_form("/raise")


# --- what is offered, and to whom ---


def test_what_rests_on_having_read_the_account_is_offered_only_where_it_is_open(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)

    closed, page = browser.open(f"/cases/{case}"), opened(browser, case)

    assert [closed.has_form(end) for end in ("/facts", "/lower", "/raise")] == [False, False, True]
    assert [page.has_form(end) for end in ("/facts", "/lower", "/raise")] == [True, True, True]
    assert "Open the account to correct a fact." in closed.text
    assert "Open the account to propose lowering it." in closed.text
    assert page.form("/raise").choices["level"] == ["P1", "P2"]
    assert page.form("/lower").choices["level"] == ["P4"]
    assert page.form("/lower").choices["fact"] == ["", "begging"]


def test_each_fact_is_corrected_to_a_value_of_the_schema(browse: Browse, world: World) -> None:
    page = opened(browse("screener"), a_case(world))

    assert fact_form(page, "confined_now").choices["value"] == ["", *FACTS["confined_now"].values]
    number = next(g for t, g in page.elements if t == "input" and g.get("name") == "value" and g.get("max") == "100000")
    assert (number["type"], number["min"]) == ("number", "0")
    added = next(f for f in page.forms if f.action.endswith("/facts") and "danger_now:yes" in f.choices.get("fact", []))
    offered = {choice.partition(":")[0] for choice in added.choices["fact"] if choice}
    groups = {FACTS[name].group for name in FACTS} - {"count", "history"}
    assert {FACTS[name].group for name in offered} == groups
    assert "confined_now" not in offered


@pytest.mark.parametrize("name", ["screener", "oversight"])
def test_a_watched_case_can_only_rise(browse: Browse, world: World, name: str) -> None:
    page = opened(browse(name), a_case(world, level="P4"))

    assert page.form("/raise").choices["level"] == ["P1", "P2", "P3"]
    assert not page.has_form("/lower")


def test_the_choice_of_a_level_says_whether_oversight_must_sign(browse: Browse, world: World, clock: Clockwork) -> None:
    case = shared(world, level="P1", record=DANGER)
    browser = browse("screener")

    text = opened(browser, case).text

    assert "P2 today Oversight must sign as well: a locked rule holds a more urgent level." in text
    correct(browser, case, "danger_now", "no")
    assert "P2 today Oversight must sign as well: a locked rule" in opened(browser, case).text
    free = shared(world)
    assert "P4 watch Two people of different units sign." in opened(browser, free).text
    clock.pass_by(hours=25)
    assert "P4 watch Oversight must sign as well: the deadline to act" in opened(browse("screener"), free).text


# --- facts ---


def test_a_corrected_fact_names_who_corrected_it_and_who_said_otherwise(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)

    answer = correct(browser, case, "begging", "no")

    assert (answer.status, answer.headers["location"]) == (303, f"/cases/{case}#facts")
    page = browser.open(f"/cases/{case}")
    assert "Begging No Confirmed by Sok Dara, today 14:21 Yes: Said by the tipster, today 14:21" in page.text
    assert "Fact confirmed: Begging: No Sok Dara, screener" in page.text
    assert ACCOUNT not in page.html


def test_a_fact_that_nobody_had_said_is_added(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)
    page = opened(browser, case)
    token = page.form("/raise").fields

    for fields in ({"fact": "retaliation_threat:yes"}, {"fact": "age_min", "value": "7"}):
        version = str(row_of(world, case).version)
        opened(browser, case)
        assert browser.send(f"/cases/{case}/facts", token | {"version": version} | fields).status == 303

    text = browser.open(f"/cases/{case}").text
    assert "Threats for speaking Yes Confirmed by Sok Dara" in text
    assert "Youngest age 7 Confirmed by Sok Dara" in text
    assert row_of(world, case).level == "P2"


def test_a_rise_by_a_fact_stands_on_the_page_at_once(browse: Browse, world: World) -> None:
    browser = browse("investigator")
    case = shared(world, record=BEGS | {"asks": ["danger_now"]})

    correct(browser, case, "danger_now", "yes")

    text = browser.open(f"/cases/{case}").text
    assert "P1 now, because A child is in danger now R001" in text
    assert "Level raised from P3 week to P1 now the system" in text
    assert "It cannot fall below this level without oversight." in text


def test_a_fall_by_a_fact_only_says_what_the_rules_would_say(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world, level="P1", record=DANGER)

    correct(browser, case, "danger_now", "no")

    text = browser.open(f"/cases/{case}").text
    assert "P1 now, because A child is locked in now R009, as decided today 14:21 In the newest decision" in text
    assert "these reasons alone give P3 week. The level stays: lowering it takes two people. A report that" in text
    assert row_of(world, case).level == "P1"


def test_a_fact_that_ties_an_official_to_it_takes_the_case_from_the_page(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)
    fields = opened(browser, case).form("/raise").fields

    answer = browser.send(f"/cases/{case}/facts", fields | {"fact": "official_complicity:yes"})

    assert answer.headers["location"] == "/queue?done=walled"
    assert "The case is behind the wall now" in browser.open("/queue?done=walled").text
    unknown = browser.open(f"/cases/{uuid4()}")
    assert (browser.open(f"/cases/{case}").html, unknown.status) == (unknown.html, 404)
    page = opened(browse("integrity"), case)
    assert ACCOUNT in page.text
    assert "Fact confirmed: Official takes part or protects: Yes Sok Dara, screener" in page.text


def test_behind_the_wall_the_history_names_no_fact_until_the_account_is_open(browse: Browse, world: World) -> None:
    case = a_case(world, walled=True, level="P3", record=BEGS)
    browser = browse("integrity")

    correct(browser, case, "begging", "no")
    propose(browser, case)

    closed = browser.open(f"/cases/{case}")
    assert "Begging" not in closed.text
    assert "Fact confirmed: sealed" in closed.text
    assert "Proposed to lower it from P3 week to P4 watch; what changed: sealed" in closed.text
    assert WHY not in closed.html
    page = opened(browser, case)
    assert "Fact confirmed: Begging: No" in page.text
    assert f"What changed: Begging {WHY}" in page.text


# --- up ---


def test_one_person_raises_it_and_the_page_says_who_and_why(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)

    answer = browser.submit(browser.open(f"/cases/{case}"), "/raise", level="P1", reason="She rang and was cut off.")

    assert (answer.status, answer.headers["location"]) == (303, f"/cases/{case}")
    closed = browser.open(f"/cases/{case}")
    assert "P1 now, because Level raised from P3 week to P1 now Sok Dara, screener, today 14:21" in closed.text
    assert "She rang and was cut off." not in closed.html
    assert opened(browser, case).text.count("She rang and was cut off.") == 2


def test_a_reason_is_text_and_hides_nothing(browse: Browse, world: World) -> None:
    browser = browse("screener")
    pages = []
    for reason in ("She rang.", "<b>She</b> rang \u202etwice."):
        case = shared(world)
        browser.submit(browser.open(f"/cases/{case}"), "/raise", level="P1", reason=reason)
        pages.append(opened(browser, case))

    plain, page = pages
    assert "<b>She</b> rang ⟦U+202E⟧twice." in page.text
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]


# --- down ---


def test_a_lowering_is_proposed_agreed_to_and_waits_for_the_witnesses(browse: Browse, world: World) -> None:
    screener, investigator = browse("screener"), browse("investigator")
    case = shared(world)

    answer = propose(screener, case)
    assert (answer.status, answer.headers["location"]) == (303, f"/cases/{case}#lowering")
    closed = investigator.open(f"/cases/{case}")
    assert "Proposed: lower it to P4 watch Sok Dara, screener, Screening: proposed it, today 14:21" in closed.text
    assert "Somebody of another unit must agree." in closed.text
    assert "Open the account to read why, and to agree or refuse." in closed.text
    assert (WHY in closed.html, closed.has_form("/agree"), closed.has_form("/refuse")) == (False, False, False)
    assert f"What changed: Begging {WHY}" in opened(investigator, case).text

    assert agree(investigator, case).status == 303

    page = opened(screener, case)
    assert "Agreed by all who must; takes effect when witnessed. Until then the level and its clocks stay." in page.text
    assert "Heng Bopha, investigator, Siem Reap team: agreed, today 14:21" in page.text
    assert "Agreed to lower it from P3 week to P4 watch: all have signed" in page.text
    assert (page.has_form("/agree"), page.has_form("/refuse"), page.has_form("/lower")) == (False, True, False)
    assert (row_of(world, case).level, state(world, case)) == ("P3", LoweringState.APPROVED)


def test_who_may_not_sign_is_told_why(browse: Browse, world: World) -> None:
    case = shared(world)
    propose(browse("screener"), case)

    for name, told in (
        ("screener", "You have signed this already"),
        ("screener-2", "You sit in a unit of the proposer"),
    ):
        page = opened(browse(name), case)
        assert told in page.text
        assert not page.has_form("/agree")
        assert page.has_form("/refuse")


def test_below_a_locked_floor_the_page_waits_for_oversight(browse: Browse, world: World) -> None:
    case = shared(world, level="P1", record=DANGER)
    correct(browse("screener"), case, "danger_now", "no")
    propose(browse("screener"), case, "P3", "danger_now")

    agree(browse("investigator"), case)

    second = opened(browse("investigator-2"), case)
    assert "Oversight must sign as well: a locked rule holds a more urgent level." in second.text
    assert "Only the signature of oversight is missing." in second.text
    assert not second.has_form("/agree")
    assert state(world, case) == LoweringState.PROPOSED
    agree(browse("oversight"), case)
    assert state(world, case) == LoweringState.APPROVED


@pytest.mark.parametrize("name", ["screener", "investigator", "oversight"])
def test_a_refusal_ends_it_and_says_why(browse: Browse, world: World, name: str) -> None:
    case = shared(world)
    propose(browse("screener"), case)
    browser = browse(name)

    answer = browser.submit(opened(browser, case), "/refuse", reason="She begs there still.")

    assert (answer.status, state(world, case)) == (303, LoweringState.REFUSED)
    page = opened(browser, case)
    assert "Refused to lower it from P3 week to P4 watch She begs there still." in page.text
    assert page.has_form("/lower")


def test_what_is_not_lowered_says_so_in_place_of_the_form(browse: Browse, world: World) -> None:
    earlier = {"prior_closed_incomplete_12m": {"source": "derived", "value": "yes", "at": NOW.isoformat()}}
    page = opened(browse("screener"), shared(world, level="P2", record=a_record(facts=earlier)))
    assert "An earlier case about this was closed incomplete: this one is not lowered." in page.text
    assert not page.has_form("/lower")

    page = opened(browse("screener"), shared(world, record=a_record(facts={}, asks=[])))
    assert "Confirm a fact first: a proposal names the one that changed." in page.text
    assert not page.has_form("/lower")


# --- the queue ---

WAITS = "Lowering a level waits for your agreement:"
COPY = "Others have agreed to lower a level. Until it is witnessed you can refuse:"


def told_in_queue(browse: Browse) -> dict[str, list[str]]:
    names = ("screener", "screener-2", "investigator", "elsewhere", "integrity", "oversight", "admin")
    pages = {name: browse(name).open("/queue").text for name in names}
    return {what: [name for name in names if what in pages[name]] for what in (WAITS, COPY)}


def test_a_proposal_stands_in_the_queue_of_those_who_may_sign_it(browse: Browse, world: World) -> None:
    case = shared(world)
    assert told_in_queue(browse) == {WAITS: [], COPY: []}

    propose(browse("screener"), case)
    assert told_in_queue(browse) == {WAITS: ["investigator", "oversight"], COPY: []}
    page = browse("oversight").open("/queue")
    assert page.link(cases.reference(case)) == f"/cases/{case}#lowering"

    agree(browse("investigator"), case)
    assert told_in_queue(browse) == {WAITS: [], COPY: ["oversight"]}


ADDRESSES = ("/queue", "/queue?level=P1", "/queue?done=walled", "/nothing")


@pytest.mark.parametrize("name", ["screener", "investigator", "elsewhere", "admin"])
def test_for_whom_a_case_is_walled_its_proposals_do_not_exist(browse: Browse, world: World, name: str) -> None:
    shared(world)
    browser = browse(name)
    token = browser.open("/queue").form("/sign-out").fields["t"]

    def seen(case: object, lowering: object) -> list[tuple[int, str, list[tuple[str, str]]]]:
        below = f"/cases/{case}"
        version = {"t": token, "version": "2"}
        answers = [browser.open(address) for address in (*ADDRESSES, below)] + [
            browser.send(f"{below}/facts", version | {"fact": "danger_now", "value": "yes"}),
            browser.send(f"{below}/raise", version | {"level": "P1", "reason": WHY}),
            browser.send(f"{below}/lower", version | {"level": "P4", "fact": "begging", "reason": WHY}),
            browser.send(f"{below}/lower/{lowering}/agree", version),
            browser.send(f"{below}/lower/{lowering}/refuse", version | {"reason": WHY}),
        ]
        return [(a.status, a.html, sorted(a.headers.items())) for a in answers]

    without = seen(uuid4(), uuid4())
    walled = a_case(world, walled=True, level="P3", record=BEGS)
    propose(browse("integrity"), walled)
    with world.sessions.read() as session:
        lowering = session.scalars(select(col(Lowering.id))).one()
    assert seen(walled, lowering) == without

    # The negative control: the same of a case that exists for the viewer changes their pages.
    mine = shared(world, also=("screening", "kandal"))
    propose(browse("oversight"), mine)
    assert (seen(mine, uuid4()) == without) == (name == "admin")


# --- refusals ---


def test_every_refusal_of_the_domain_has_its_sentence(browse: Browse) -> None:
    """Found in the source, not listed: a new refusal without words fails here."""
    tree = ast.parse(inspect.getsource(levels))
    said: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            kind = node.exc.func.id if isinstance(node.exc.func, ast.Name) else ""
            given = [a.value for a in node.exc.args if isinstance(a, ast.Constant)]
            said |= {given[-1]} if given and kind in ("Forbidden", "WrongState", "InvalidForm") else set()
        if isinstance(node, ast.FunctionDef) and node.name == "may_not_sign":
            returns = [n.value for n in ast.walk(node) if isinstance(n, ast.Return)]
            said |= {c.value for r in returns for c in ast.walk(r) if isinstance(c, ast.Constant) and c.value}  # type: ignore[arg-type]
    assert len(said) > 12
    assert said - set(DETAILS) == set()
    assert f"at least {levels.SHORTEST_REASON} characters" in " ".join(said)


@pytest.mark.parametrize("lang", ["en", "km"])
@pytest.mark.parametrize(
    ("step", "fields", "status", "told"),
    [
        ("facts", {"fact": "danger_now", "value": "maybe"}, 422, "Choose a fact and a value that fits it."),
        ("facts", {"fact": "child_sex:girl"}, 422, "Choose a fact and a value that fits it."),
        ("raise", {"level": "P3", "reason": WHY}, 422, "Choose a level above the present one."),
        ("raise", {"level": "P1", "reason": " "}, 422, "Say why."),
        ("lower", {"level": "P3", "fact": "begging", "reason": WHY}, 422, "Choose a level below the present one."),
        ("lower", {"level": "P4", "fact": "sale", "reason": WHY}, 422, "Choose the fact that changed."),
        (
            "lower",
            {"level": "P4", "fact": "begging", "reason": "no"},
            422,
            "Write at least 40 characters: what changed, and how you know.",
        ),
        ("raise", {"level": "P1"}, 422, ""),
        ("lower", {"level": "P4", "fact": "begging", "reason": "x" * 2001}, 422, ""),
        ("raise", {"level": "P1", "reason": WHY, "version": "1"}, 409, ""),
    ],
)
def test_a_refusal_says_what_is_missing_and_changes_nothing(
    browse: Browse, world: World, step: str, fields: dict[str, str], status: int, told: str, lang: str
) -> None:
    browser = browse("screener", lang)
    case = shared(world)
    given = opened(browser, case).form("/raise").fields
    if fields.get("version"):
        correct(browse("screener"), case, "begging", "no")
        fields = fields | {"version": given["version"]}
    before = row_of(world, case).version

    answer = browser.send(f"/cases/{case}/{step}", given | fields)

    assert answer.status == status
    assert row_of(world, case).version == before
    if lang == "en":
        assert told in answer.text
    else:
        assert not re.search(r"[A-Za-z]{3,}", answer.text.replace("English", "")), answer.text


def test_a_proposal_that_is_not_there_is_the_page_of_nothing(browse: Browse, world: World) -> None:
    browser = browse("screener")
    case = shared(world)
    given = opened(browser, case).form("/raise").fields

    for lowering in (uuid4(), "x", "../raise"):
        for step, more in (("agree", {}), ("refuse", {"reason": WHY})):
            answer = browser.send(f"/cases/{case}/lower/{lowering}/{step}", given | more)
            assert answer.status == 404


# --- the pages themselves ---


def with_everything(browse: Browse, world: World, lang: str) -> list[Page]:
    """Pages with each part of this module on them."""
    case, other = shared(world, record=BEGS | {"asks": ["danger_now"]}), shared(world, level="P1", record=DANGER)
    propose(browse("screener"), case)
    screener, investigator = browse("screener", lang), browse("investigator", lang)
    correct(browse("screener"), other, "danger_now", "no")
    shown = [opened(investigator, case), opened(screener, case), investigator.open(f"/cases/{case}")]
    shown += [opened(screener, other), screener.open(f"/cases/{other}"), investigator.open("/queue")]
    agree(browse("investigator"), case)
    return [*shown, opened(screener, case), browse("oversight", lang).open("/queue")]


def test_khmer_pages_of_levels_hold_no_english(browse: Browse, world: World) -> None:
    for page in with_everything(browse, world, "km"):
        text = page.text.replace(ACCOUNT, "").replace(WHY, "")
        words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\b[0-9A-Z]{4}-[0-9A-Z]{4}\b", "", text))
        assert set(words) <= {"English", "SMS", "hotline", "triage"}, page.text


@pytest.mark.parametrize("lang", ["en", "km"])
def test_their_pages_are_plain_and_each_field_has_its_label(browse: Browse, world: World, lang: str) -> None:
    for page in with_everything(browse, world, lang):
        ids = [given["id"] for _, given in page.elements if "id" in given]
        assert len(ids) == len(set(ids))
        labelled = {given["for"] for tag, given in page.elements if tag == "label" and "for" in given}
        for tag, given in page.elements:
            assert tag not in ("script", "style")
            assert "style" not in given
            if tag == "textarea":
                assert given["id"] in labelled
            if tag == "form" and given.get("method") == "post":
                assert given["action"].startswith("/")


# --- starting ---


def test_the_staff_process_does_not_start_without_rules_that_it_can_load(
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for_staff(monkeypatch)
    assert serve.staff() is not None
    (tmp_path / "rules.yaml").write_text("ruleset: kh-hotline-triage\n")
    for name, told in (("rules.yaml", "missing approved_by"), ("nothing.yaml", "nothing.yaml: FileNotFoundError")):
        monkeypatch.setenv("HOTLINE_RULESET_FILE", str(tmp_path / name))
        with pytest.raises(Misconfigured, match=told):
            serve.staff()
