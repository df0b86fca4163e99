"""The page of the rules, and what a proposed version shows to whom."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from dashboards.desk import Desk
from service.cases import reference
from service.models import Role
from service.rulesets import Rulebook
from service.triage import build_ruleset
from tests.builders import NOW, World, a_number, a_tip, the_case, triage
from tests.dashboards.builders import Browser, Clockwork
from tests.ruling import BEGGING_TODAY, in_force, join, levelled, propose, publish, sign, told, variant, with_rule
from tests.service.test_intake import POLICE

SHIPPED = triage().ruleset
VAGUE = "Please look at the guesthouse."
BEGS = (told("begging", "yes"),)
REACHED = (told("violence", "yes"), told("suspect_access", "ongoing"))
FALLS_NOTHING = variant(BEGGING_TODAY)
FALLS = variant(BEGGING_TODAY, levelled("R026", "P3"))
Browse = Callable[..., Browser]


@pytest.fixture
def world(world: World) -> World:
    join(world, "supervisor", Role.SUPERVISOR, "org-police", "siem-reap")
    return world


def a_case_of(world: World, *facts: object, words: str = VAGUE) -> str:
    [receipt] = world.receive(a_tip(words, sender=a_number(), stated=facts))
    return str(the_case(world, receipt.tip).id)


def reference_of(case: str) -> str:
    return reference(UUID(case))


# --- in force ---


@pytest.mark.parametrize("who", ["screener", "investigator", "integrity", "oversight", "admin"])
def test_everyone_who_signed_in_reads_the_rules_in_force(browse: Browse, who: str) -> None:
    page = browse(who).open("/rules")

    assert page.status == 200
    for rule in SHIPPED.rules:
        assert rule.id in page.text
    assert SHIPPED.content_hash in page.text


def test_nobody_reads_them_without_an_account(browse: Browse) -> None:
    assert browse().open("/rules").status == 303


@pytest.mark.parametrize("lang", ["en", "km"])
def test_each_rule_has_its_reasons_condition_and_source_in_both_languages(browse: Browse, lang: str) -> None:
    page = browse("screener", lang).open("/rules")

    for rule in SHIPPED.rules:
        for reason in (rule.reason.en, rule.reason.km):
            for part in re.split(r"\{\w+\}", reason):
                assert part.strip() in page.text
        assert rule.source in page.text
    assert re.findall(r".{20}[{}].{20}", page.text) == []


def test_a_condition_is_read_in_words(browse: Browse) -> None:
    page = browse("screener").open("/rules")

    assert "Suspect leaves in: 48 h or less" in page.text
    assert "it may concern a child" in page.text
    assert "A child is concerned: Yes or not known" in page.text, "what the term means stands on the same page"
    assert re.search(r"Registration[^:]*: Not registered or Ordered to close", page.text)


def test_it_counts_the_khmer_that_waits_for_review(browse: Browse) -> None:
    page = browse("screener").open("/rules")

    waiting = 1 + sum(not rule.reviewed for rule in SHIPPED.rules)
    assert f"reasons of rules: {waiting} of {waiting}" in page.text
    assert "concepts with Khmer words: " in page.text
    assert "sentences of these pages: " in page.text


def test_a_term_without_words_is_shown_as_it_is(browse: Browse, desk: Desk, world: World, clock: Clockwork) -> None:
    data = dict(SHIPPED.data)
    terms = {**data["terms"], "quite_new": {"fact": "begging", "is": "yes"}}  # type: ignore[dict-item]
    odd = build_ruleset({**data, "terms": terms})
    other = replace(desk, rules=Rulebook(world.sessions, odd))

    assert "quite new" in Browser(other, world.cookie("screener", clock.now), "en").open("/rules").text


def test_after_a_publication_its_people_and_time_are_shown(browse: Browse, world: World) -> None:
    publish(world, FALLS_NOTHING)

    page = browse("screener").open("/rules")
    for shown in ("1.1.0", "Lim Sreymom", "Sok Dara", "9 March 2027, 14:21", FALLS_NOTHING.content_hash, "R900"):
        assert shown in page.text


def test_an_emergency_says_when_it_ends_and_lapses_by_itself(browse: Browse, world: World, clock: Clockwork) -> None:
    new = variant(BEGGING_TODAY, by=("u:supervisor", "u:oversight"))
    propose(world, new, emergency=True)
    sign(world, new, "supervisor")

    assert "ends 12 March 2027, 14:21, unless ratified" in browse("screener").open("/rules").text
    clock.now = NOW + timedelta(hours=73)
    page = browse("screener").open("/rules")
    assert "R900" not in page.text
    assert "it was not ratified" in page.text


def test_rules_that_do_not_fit_their_history_are_said_on_the_page(
    browse: Browse, desk: Desk, world: World, clock: Clockwork
) -> None:
    publish(world, FALLS_NOTHING)
    assert "do not fit" not in browse("screener").open("/rules").text
    with world.sessions.writing.begin() as connection:
        connection.execute(text("UPDATE ledger_field SET value = CAST('\"x\"' AS BLOB) WHERE name = 'lexicon'"))
    fresh = replace(desk, rules=Rulebook(world.sessions, SHIPPED))

    page = Browser(fresh, world.cookie("screener", clock.now), "en").open("/rules")
    assert page.status == 200
    assert "everything is P1" in page.text
    assert "everything is P1" in Browser(fresh, world.cookie("screener", clock.now), "en").open("/queue").text
    assert "do not fit" not in browse("screener").open("/queue").text, "a process that runs has seen nothing of it"


# --- proposed ---


@pytest.mark.parametrize("who", ["screener", "investigator", "integrity", "admin"])
def test_a_proposal_exists_for_supervisors_and_oversight_alone(browse: Browse, world: World, who: str) -> None:
    before = browse(who).open("/rules").text
    propose(world, FALLS)

    assert browse(who).open(f"/rules/{FALLS.content_hash}").status == 404
    assert browse(who).open("/rules").text == before
    assert browse("supervisor").open(f"/rules/{FALLS.content_hash}").status == 200
    assert FALLS.content_hash in browse("oversight").open("/rules").html


def test_who_signed_a_published_version_is_for_supervisors_and_oversight_too(browse: Browse, world: World) -> None:
    publish(world, FALLS_NOTHING)

    assert browse("screener").open(f"/rules/{FALLS_NOTHING.content_hash}").status == 404
    assert browse("supervisor").open(f"/rules/{FALLS_NOTHING.content_hash}").status == 200


@pytest.mark.parametrize("name", ["x", "00" * 32, "A" * 64])
def test_rules_that_are_not_there_are_not_found(browse: Browse, name: str) -> None:
    assert browse("oversight").open(f"/rules/{name}").status == 404


def test_a_proposal_shows_what_it_changes_and_moves_by_name_to_whoever_may_see_it(browse: Browse, world: World) -> None:
    rises, falls = a_case_of(world, *BEGS), a_case_of(world, *REACHED)
    propose(world, FALLS)

    page = browse("oversight").open(f"/rules/{FALLS.content_hash}")
    assert "R900" in page.text
    assert "changed: level" in page.text
    assert "A level could fall by it" in page.text
    assert reference_of(rises) in page.text
    assert reference_of(falls) in page.text
    assert "no longer: R026 (P2)" in page.text
    elsewhere = browse("supervisor").open(f"/rules/{FALLS.content_hash}")
    assert reference_of(falls) not in elsewhere.text
    assert "Cases of other units: 1" in elsewhere.text
    assert "Not ticked there yet: 1" in elsewhere.text


def test_from_tick_to_signature_by_hand(browse: Browse, world: World) -> None:
    falls = a_case_of(world, *REACHED)
    propose(world, FALLS)
    oversight, path = browse("oversight"), f"/rules/{FALLS.content_hash}"
    page = oversight.open(path)
    assert not page.has_form("/approve")
    assert "Still open: 1" in page.text

    assert oversight.submit(page, "/tick", **{f"case-{falls}": "1"}).status == 303
    page = oversight.open(path)
    assert "looked at by Lim Sreymom" in page.text
    assert oversight.submit(page, "/approve").status == 303

    assert in_force(world).content_hash == FALLS.content_hash
    page = oversight.open(path)
    assert "in force since" in page.text
    assert not page.has_form("/approve")
    assert FALLS.content_hash in oversight.open("/rules").text, "this process has it at once"


def test_nothing_is_ticked_by_an_empty_form_or_for_another_case(browse: Browse, world: World) -> None:
    falls = a_case_of(world, *REACHED)
    propose(world, FALLS)
    oversight, path = browse("oversight"), f"/rules/{FALLS.content_hash}"
    page = oversight.open(path)

    signed = {"t": page.form("/tick").fields["t"]}
    for fields, status in (({}, 422), ({"case-x": "1"}, 404), ({f"other-{falls}": "1"}, 422)):
        assert oversight.send(f"{path}/tick", signed | fields).status == status
    supervisor = browse("supervisor")
    theirs = {"t": supervisor.open("/rules").form("/sign-out").fields["t"], f"case-{falls}": "1"}
    assert supervisor.send(f"{path}/tick", theirs).status == 404, "it does not exist for them"
    assert "Still open: 1" in oversight.open(path).text


def test_an_author_and_whoever_is_not_named_are_told_why_they_cannot_sign(browse: Browse, world: World) -> None:
    new = variant(BEGGING_TODAY, authors=("u:supervisor",))
    propose(world, new)
    supervisor, path = browse("supervisor"), f"/rules/{new.content_hash}"

    page = supervisor.open(path)
    assert "Who wrote or proposed these rules cannot approve them." in page.text
    assert not page.has_form("/approve")
    refused = supervisor.send(f"{path}/approve", page.form("/refuse").fields)
    assert refused.status == 403
    assert "cannot approve them" in refused.text
    assert in_force(world) is SHIPPED


def test_whoever_is_named_hears_of_it_in_the_queue_until_they_have_signed(browse: Browse, world: World) -> None:
    new = variant(BEGGING_TODAY, by=("u:supervisor", "u:oversight"))
    propose(world, new)
    told_of = "Rules wait for your signature: 1.1.0"

    assert told_of in browse("supervisor").open("/queue").text
    assert told_of not in browse("screener").open("/queue").text
    sign(world, new, "supervisor")
    assert told_of not in browse("supervisor").open("/queue").text
    assert told_of in browse("oversight").open("/queue").text


def test_a_proposal_that_was_changed_is_not_shown_and_hurts_no_other_page(browse: Browse, world: World) -> None:
    propose(world, FALLS_NOTHING)
    with world.sessions.writing.begin() as connection:
        connection.execute(text("DROP TRIGGER ruleset_no_update"))
        connection.execute(text("UPDATE ruleset SET content = X'00'"))

    page = browse("oversight").open(f"/rules/{FALLS_NOTHING.content_hash}")
    assert page.status == 500
    assert "cannot be trusted" in page.text
    for path in ("/queue", "/rules"):
        assert browse("oversight").open(path).status == 200


def test_one_person_refuses(browse: Browse, world: World) -> None:
    propose(world, FALLS_NOTHING)
    supervisor, path = browse("supervisor"), f"/rules/{FALLS_NOTHING.content_hash}"

    assert supervisor.submit(supervisor.open(path), "/refuse").status == 303
    assert "refused 9 March 2027" in supervisor.open(path).text
    assert not browse("oversight").open(path).has_form("/approve")


def test_many_falls_are_ticked_in_several_forms(browse: Browse, world: World) -> None:
    cases = [a_case_of(world, *REACHED) for _ in range(14)]
    propose(world, FALLS)
    oversight, path = browse("oversight"), f"/rules/{FALLS.content_hash}"

    for left in (12, 2):
        page = oversight.open(path)
        names = set(re.findall(r'name="(case-[0-9a-f-]+)"', page.html))
        assert len(names) == left
        assert oversight.submit(page, "/tick", **dict.fromkeys(names, "1")).status == 303
    assert oversight.open(path).has_form("/approve")
    assert len(cases) == 14


@pytest.mark.parametrize("lang", ["en", "km"])
def test_a_walled_case_changes_no_byte_of_what_a_walled_person_sees(
    browse: Browse, world: World, clock: Clockwork, lang: str
) -> None:
    """DESIGN 12.5, with an unwalled case as the negative control: that one does change the page."""
    a_case_of(world, *REACHED)
    loosening = variant(levelled("R026", "P3"), with_rule(id="R900", level="P2", when={"fact": "begging", "is": "yes"}))
    propose(world, loosening)
    supervisor, path = browse("supervisor", lang), f"/rules/{loosening.content_hash}"
    before = [supervisor.open(one).html for one in (path, "/rules")]

    a_case_of(world, *REACHED, *BEGS, words=POLICE)
    assert [supervisor.open(one).html for one in (path, "/rules")] == before

    a_case_of(world, *BEGS)
    assert supervisor.open(path).html != before[0]


def test_opening_a_walled_case_decides_it_by_the_rules_in_force(browse: Browse, world: World) -> None:
    case = a_case_of(world, *BEGS, words=POLICE)
    publish(world, variant(with_rule(id="R900", level="P1", when={"fact": "begging", "is": "yes"})))
    integrity = browse("integrity")
    page = integrity.open(f"/cases/{case}")
    assert "P1 now, because" not in page.text

    opened = integrity.submit(page, "/open", reason="supervision")

    assert opened.status == 200
    assert "P1 now, because" in opened.text
    assert "R900" in opened.text


def test_the_pages_need_no_script(browse: Browse, world: World) -> None:
    propose(world, FALLS)
    for path in ("/rules", f"/rules/{FALLS.content_hash}"):
        assert "<script" not in browse("oversight").open(path).html


def test_a_case_that_somebody_is_taken_out_of_counts_no_more_for_them(browse: Browse, world: World) -> None:
    """DESIGN 12.5 for a wall before one person: the page is the one of a world without that case."""
    join(world, "overseer", Role.OVERSIGHT, "org-council", "oversight")  # somebody of oversight must be left
    a_case_of(world, *REACHED)
    propose(world, FALLS)
    somebody, path = browse("oversight"), f"/rules/{FALLS.content_hash}"
    before = somebody.open(path).html
    case = a_case_of(world, *REACHED)
    assert somebody.open(path).html != before, "the control: it counts for whoever may know of it"

    page = somebody.open(f"/cases/{case}")
    assert somebody.submit(page, "/recuse").status == 303
    assert somebody.open(path).html == before
