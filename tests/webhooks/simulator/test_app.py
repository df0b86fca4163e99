"""The simulator's page and process: phones that text, people on duty, faults, the log; for this machine alone."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import pytest
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from starlette.testclient import TestClient
from twilio.request_validator import RequestValidator

from tests.webhooks.builders import FORM_TYPE, Answer, a_scope, encode, exchange
from tests.webhooks.simulator.builders import ACCOUNT, KEY, NUMBER, SECRET, TOKEN, Clock
from tests.webhooks.test_pages import Page
from webhooks.simulator import app as app_module
from webhooks.simulator import delivery, page
from webhooks.simulator.app import create_app
from webhooks.simulator.delivery import NoConnection, Target
from webhooks.simulator.phones import EVERY, MOST, Phones
from webhooks.simulator.provider import OPERATIONS, Callbacks, Provider, RestFault

HOST = "https://hotline.example"
ONE, TWO, THREE = "+85500000001", "+85500000002", "+85500000003"
SCREENER, SUPERVISOR = "+85500000301", "+85500000302"
CALLBACK = f"{HOST}/webhooks/twilio/sms/status"
WORDS = "ក្មេងម្នាក់ត្រូវការជំនួយ <b>& more</b>"
REST = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
OWN = (b"host", b"127.0.0.1:8002")


class TheApp:
    """Stands where the public app stands: answers webhooks as it is told, and keeps them."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.posts: list[tuple[str, dict[str, str], str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, address: str, headers: Mapping[str, str], body: bytes, **_: float) -> delivery.Answer:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
        self.posts.append((address, fields, headers["X-Twilio-Signature"]))
        await self.open.wait()
        if self.status is None:
            raise NoConnection("refused")
        return delivery.Answer(self.status)

    @property
    def texts(self) -> list[dict[str, str]]:
        """The fields of the texts that came."""
        return [fields for _, fields, _ in self.posts if "Body" in fields]


class Desk:
    """The simulator in a loop of its own, which runs only while something is asked of it."""

    def __init__(self, provider: Provider, the_app: TheApp) -> None:
        self.loop = asyncio.new_event_loop()
        self.app = create_app(
            provider,
            target=Target(HOST, "http://127.0.0.1:8000"),
            duty={"screening": [SCREENER], "oversight/supervisor": [SUPERVISOR], "integrity": [SUPERVISOR]},
            elsewhere=((page.QUEUE, "http://127.0.0.1:8001/"),),
            transport=the_app,
        )

    def ask(self, method: str, path: str, *headers: tuple[bytes, bytes], body: bytes = b"", query: str = "") -> Answer:
        scope = a_scope(method, path, headers=headers, query=query.encode(), length=len(body) if body else None)
        message = {"type": "http.request", "body": body, "more_body": False}
        answer = self.loop.run_until_complete(exchange(self.app, scope, [message]))
        assert answer is not None
        return answer

    def get(self, path: str = "/", query: str = "lang=en") -> Answer:
        return self.ask("GET", path, OWN, query=query)

    def press(self, path: str, *headers: tuple[bytes, bytes], query: str = "lang=en", **fields: str) -> Answer:
        """Press a button, without a script."""
        named = {name.replace("_", " "): value for name, value in fields.items()}
        form = (b"content-type", FORM_TYPE.encode())
        return self.ask("POST", path, *(headers or (OWN,)), form, body=encode(named), query=query)

    def tell(self, path: str, **fields: str) -> dict[str, Any]:
        """Press it as the script and the command line do."""
        answer = self.press(path, OWN, (b"accept", b"application/json"), **fields)
        return {"code": answer.status, **json.loads(answer.body)}

    def settle(self) -> None:
        """Let what was begun come to its end."""
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))

    def section(self, name: str, query: str = "lang=en") -> str:
        """The words of the element with the id `name`."""
        found = re.search(rf'<(\w+)[^>]*id="{re.escape(name)}".*?</\1>', self.get(query=query).text, re.DOTALL)
        assert found, name
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", found[0]))

    def box(self, number: str) -> str:
        """What is typed on a phone."""
        drafts: dict[str, str] = self.tell("/look")["drafts"]
        return drafts[number]


@pytest.fixture
def the_app() -> TheApp:
    return TheApp()


@pytest.fixture
def desk(provider: Provider, the_app: TheApp) -> Iterator[Desk]:
    opened = Desk(provider, the_app)
    yield opened
    opened.loop.close()


# -- for this machine alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8002", "localhost:8002", "localhost", "[::1]:9002"])
@pytest.mark.parametrize("path", ["/", "/state", "/health/ready"])
def test_it_answers_to_the_names_of_this_machine(desk: Desk, host: str, path: str) -> None:
    assert desk.ask("GET", path, (b"host", host.encode())).status == 200


@pytest.mark.parametrize(
    "hosts",
    [[], ["evil.example"], ["evil.example:8002"], ["127.0.0.1.evil.example:8002"], ["localhost@evil.example"],
     ["127.0.0.1:8002", "evil.example"], ["localhost:evil"], [""]],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/state", "/static/simulator.css", REST])
def test_it_answers_to_no_other_name(desk: Desk, hosts: list[str], path: str) -> None:
    answer = desk.ask("GET", path, *((b"host", host.encode()) for host in hosts))

    assert answer.status == 403
    assert "127.0.0.1 and localhost only" in answer.text


FOREIGN = [
    (b"origin", b"http://evil.example"),
    (b"origin", b"http://127.0.0.1:9999"),
    (b"origin", b"https://127.0.0.1:8002"),
    (b"origin", b"null"),
    (b"sec-fetch-site", b"cross-site"),
    (b"sec-fetch-site", b"same-site"),
    (b"sec-fetch-site", b"none"),
]


@pytest.mark.parametrize("header", FOREIGN)
@pytest.mark.parametrize("path", ["/text", "/phone", "/faults", "/recover", "/again", "/look", REST])
def test_another_page_can_begin_nothing(desk: Desk, provider: Provider, path: str, header: tuple[bytes, bytes]) -> None:
    answer = desk.press(path, OWN, header, **{"from": ONE, "text": "x", "do": "fail", "how": "429", "To": ONE})

    assert answer.status == 403
    assert not provider.messages
    assert "fault-0" not in desk.get().text


def test_its_own_page_may(desk: Desk, provider: Provider) -> None:
    """The control of the test above."""
    own = (OWN, (b"origin", b"http://127.0.0.1:8002"), (b"sec-fetch-site", b"same-origin"))

    assert desk.press("/text", *own, **{"from": ONE, "text": "x"}).status == 303
    assert len(provider.messages) == 1


@pytest.mark.parametrize("path", ["/", "/state", "/static/simulator.js", "/nothing", "/text"])
def test_every_answer_forbids_what_the_page_does_not_need(desk: Desk, path: str) -> None:
    answer = desk.get(path)

    policy = dict(part.strip().split(" ", 1) for part in str(answer.header("content-security-policy")).split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "form-action")} == {"'self'"}
    assert answer.header("cache-control") == "no-store"
    assert answer.header("cross-origin-resource-policy") == "same-origin"


def test_the_rest_side_is_served_beside_the_page(desk: Desk, provider: Provider) -> None:
    def ask(key: str, *more: tuple[bytes, bytes], **fields: str) -> Answer:
        basic = (b"authorization", b"Basic " + base64.b64encode(key.encode()))
        form = (b"content-type", FORM_TYPE.encode())
        return desk.ask("POST", REST, OWN, basic, form, *more, body=encode(fields))

    assert ask("SK:wrong", To=ONE, From=NUMBER, Body="x").status == 401
    assert not provider.messages
    assert ask(f"{KEY}:{SECRET}", To=ONE, From=NUMBER, Body="x").status == 201
    assert [message.to for message in provider.messages.values()] == [ONE]


def test_ready_says_whose_simulator_it_is(desk: Desk) -> None:
    assert json.loads(desk.get("/health/ready").body) == {"ready": True, "simulator": ACCOUNT}


# -- a phone texts -----------------------------------------------------------------------------------------------------


def test_a_text_is_posted_to_the_app_as_the_provider_signs_it(desk: Desk, the_app: TheApp, provider: Provider) -> None:
    answer = desk.press("/text", **{"from": ONE, f"text_{ONE}": WORDS})

    assert (answer.status, answer.header("location")) == (303, "/?lang=en#phone-85500000001")
    [(address, fields, signature)] = the_app.posts
    assert address == "http://127.0.0.1:8000/webhooks/twilio/sms"
    assert RequestValidator(TOKEN).validate(f"{HOST}/webhooks/twilio/sms", fields, signature)
    assert (fields["From"], fields["To"], fields["Body"]) == (ONE, NUMBER, WORDS)
    assert fields["MessageSid"] in provider.messages


def test_the_phone_shows_the_text_and_that_it_was_taken(desk: Desk) -> None:
    desk.press("/text", **{"from": ONE, f"text_{ONE}": WORDS})

    shown = desk.section("talk-85500000001")
    assert "ក្មេងម្នាក់ត្រូវការជំនួយ &lt;b&gt;&amp; more&lt;/b&gt;" in shown
    assert "taken: 200" in shown
    assert "No text yet." in desk.section("talk-85500000002")
    assert desk.box(ONE) == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (503, "not taken: 503; Twilio would keep it, and the app fetch it later"),
        (403, "not taken: 403; Twilio"),
        (None, "nobody answered; Twilio would keep it, and the app fetch it later"),
    ],
)
def test_a_text_that_was_not_taken_says_what_becomes_of_it(
    desk: Desk, the_app: TheApp, provider: Provider, status: int | None, words: str
) -> None:
    the_app.status = status

    told = desk.tell("/text", wait="5", text="x", **{"from": ONE})

    assert (told["code"], told["status"]) == (200, status)
    assert words in desk.section("talk-85500000001")
    assert list(provider.messages) == [told["sid"]]


def test_nobody_waits_for_an_app_that_is_slow(desk: Desk, the_app: TheApp) -> None:
    the_app.open.clear()

    told = desk.tell("/text", text="x", **{"from": ONE})
    desk.settle()

    assert not told["answered"]
    assert "on its way to the app" in desk.section("talk-85500000001")
    the_app.open.set()
    desk.settle()
    assert "taken: 200" in desk.section("talk-85500000001")


def test_the_same_text_is_delivered_again_as_it_was(desk: Desk, the_app: TheApp, provider: Provider) -> None:
    sid = desk.tell("/text", wait="5", text=WORDS, **{"from": ONE})["sid"]
    provider.empty(sid)
    provider.delete("message", sid)

    by_sid, last = desk.tell("/again", again=sid, wait="5"), desk.tell("/again", wait="5")

    assert [told["sid"] for told in (by_sid, last)] == [sid, sid]
    first, *repeats = the_app.texts
    assert repeats == [first, first]
    assert desk.section("talk-85500000001").count("taken: 200") == 3


def test_there_is_nothing_to_deliver_again_before_the_first_text(desk: Desk, the_app: TheApp) -> None:
    assert desk.tell("/again")["wrong"] == {"phones": "No phone has sent a text yet."}
    assert desk.tell("/again", again="SM1")["wrong"] == {"phones": "No phone has sent such a text."}
    assert not the_app.posts


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({f"text_{ONE}": " \n"}, "Write something first."),
        ({"text": "ក" * 1601}, "A text has at most 1,600 characters."),
        ({"text": "🙏" * 801}, "A text has at most 1,600 characters."),
        ({"text": "x", "to": "nowhere to be found"}, "A number is written like +85500000001."),
        ({"text": "x", "wait": "a while"}, "The form cannot be read."),
    ],
)
def test_what_cannot_be_sent_is_said_at_the_phone(
    desk: Desk, the_app: TheApp, fields: dict[str, str], words: str
) -> None:
    answer = desk.press("/text", **{"from": ONE}, **fields)

    assert answer.status == 400
    assert re.search(rf'id="wrong-85500000001"[^>]*>{re.escape(words)}<', answer.text)
    assert desk.tell("/text", **{"from": ONE}, **fields)["wrong"] == {ONE: words}
    assert not the_app.posts


def test_the_longest_text_is_sent(desk: Desk, the_app: TheApp) -> None:
    """The control of the limit above."""
    desk.press("/text", **{"from": ONE, "text": "🙏" * 800})

    assert len(the_app.texts) == 1


def test_a_form_that_is_none_changes_nothing(desk: Desk, the_app: TheApp) -> None:
    for body in (b"text=%ff&from=" + ONE.encode(), b"a=b&" * 200, b"x" * (app_module.MAX_FORM + 1)):
        assert desk.ask("POST", "/text", OWN, body=body).status == 400
    assert not the_app.posts


# -- what is typed is not lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/look", "/phone", "/recover", "/faults", "/text", "/again"])
def test_every_button_keeps_what_is_typed_on_the_phones(desk: Desk, path: str) -> None:
    desk.press(path, **{"from": TWO, f"text_{ONE}": "half\r\nwritten", "text": "sent"})

    assert desk.box(ONE) == "half\nwritten"
    assert ">\nhalf\nwritten</textarea>" in desk.get().text


def test_a_ready_made_text_goes_into_the_box_and_not_over_what_is_there(desk: Desk, the_app: TheApp) -> None:
    stop = page.EXAMPLES.index("STOP")

    answer = desk.press("/example", example=f"{ONE} 0")
    assert answer.header("location") == "/?lang=en#phone-85500000001"
    assert desk.box(ONE) == page.EXAMPLES[0]

    desk.press("/example", example=f"{ONE} {stop}", **{f"text_{ONE}": page.EXAMPLES[0]})
    assert desk.box(ONE) == "STOP"

    desk.press("/example", example=f"{ONE} 0", **{f"text_{ONE}": "my own "})
    assert desk.box(ONE) == f"my own {page.EXAMPLES[0]}"
    assert not the_app.posts


@pytest.mark.parametrize("example", ["", ONE, f"{ONE} 99", f"{ONE} x", f"{THREE} 0"])
def test_a_ready_made_text_that_there_is_not_is_refused(desk: Desk, example: str) -> None:
    assert desk.press("/example", example=example).status == 400


# -- phones ------------------------------------------------------------------------------------------------------------


def test_two_phones_to_begin_with_and_more_when_asked_for(desk: Desk) -> None:
    def shown() -> list[str]:
        return [str(box["data-box"]) for box in Page(desk.get().text).all("textarea")]

    assert shown() == [ONE, TWO]
    assert desk.press("/phone").header("location") == "/?lang=en#phone-85500000003"
    assert shown() == [ONE, TWO, THREE]


def test_there_are_enough_phones_at_some_time(desk: Desk) -> None:
    for _ in range(MOST - 2):
        assert desk.tell("/phone")["code"] == 200
    assert desk.tell("/phone")["wrong"] == {"phones": "Twelve phones are enough for one table."}

    desk.tell("/text", text="x", **{"from": ONE})
    desk.tell("/text", text="x", **{"from": "+85500000999"})

    drafts = desk.tell("/look")["drafts"]
    assert len(drafts) == MOST
    assert {ONE, "+85500000999"} <= drafts.keys()
    assert TWO not in drafts  # the one that was used least recently makes room


@pytest.mark.parametrize("number", ["whatsapp:+85500000007", "anonymous", "1280"])
def test_senders_that_are_no_numbers_get_a_phone_too(desk: Desk, the_app: TheApp, number: str) -> None:
    assert desk.tell("/text", text="x", wait="5", **{"from": number})["status"] == 200
    assert the_app.texts[0]["From"] == number
    assert "taken" in desk.section(f"talk-{page.key_of(number)}")


def a_text(provider: Provider, to: str = ONE, body: str = "ទទួលបានសារហើយ។") -> str:
    return provider.create(to=to, sender=NUMBER, body=body, status_callback=CALLBACK).sid


def test_a_text_of_the_app_comes_to_the_phone_and_the_app_hears_of_it(
    desk: Desk, the_app: TheApp, provider: Provider, clock: Clock
) -> None:
    sid = a_text(provider)
    assert "on its way: queued" in desk.section("talk-85500000001")

    clock.forward(10)
    assert "ទទួលបានសារហើយ។ delivered" in desk.section("talk-85500000001")

    desk.settle()
    statuses = [(fields["MessageSid"], fields["MessageStatus"]) for _, fields, _ in the_app.posts]
    assert statuses == [(sid, "sending"), (sid, "sent"), (sid, "delivered")]
    assert {address for address, _, _ in the_app.posts} == {"http://127.0.0.1:8000/webhooks/twilio/sms/status"}


def test_a_text_that_does_not_arrive_says_so(desk: Desk, provider: Provider, clock: Clock) -> None:
    desk.press("/faults", do="outcome", number=ONE, outcome="undelivered")
    a_text(provider)
    clock.forward(10)

    assert "not delivered: undelivered, 30003" in desk.section("talk-85500000001")


def test_a_text_to_a_stranger_is_seen_too(desk: Desk, provider: Provider) -> None:
    a_text(provider, to=THREE)

    assert "ទទួលបានសារហើយ។" in desk.section("talk-85500000003")


def test_pages_for_staff_stand_with_the_people_on_duty(desk: Desk, provider: Provider) -> None:
    a_text(provider, to=SCREENER, body="P1, 15 min")

    assert "P1, 15 min" in desk.section("talk-duty-85500000301")
    assert "P1, 15 min" not in desk.section("talk-duty-85500000302")
    assert "talk-85500000301" not in desk.get().text
    duty = desk.section("duty")
    assert "screening +855 0000 0301" in duty
    assert "oversight · supervisor, integrity +855 0000 0302" in duty


def test_what_twilio_deletes_stays_on_the_phone(desk: Desk, provider: Provider) -> None:
    sid = desk.tell("/text", wait="5", text=WORDS, **{"from": ONE})["sid"]
    assert "copy" not in desk.section("talk-85500000001")

    provider.empty(sid)
    assert "Twilio’s copy is emptied" in desk.section("talk-85500000001")
    provider.delete("message", sid)

    shown = desk.section("talk-85500000001")
    assert "ក្មេងម្នាក់ត្រូវការជំនួយ" in shown
    assert "Twilio’s copy is deleted" in shown


def test_a_phone_that_texted_stop_shows_it_until_start(desk: Desk, provider: Provider) -> None:
    def stopped() -> list[bool]:
        return [f'id="stopped-{key}"' in desk.get().text for key in ("85500000001", "85500000002")]

    assert stopped() == [False, False]
    desk.press("/text", **{"from": ONE, "text": "stop"})
    assert stopped() == [True, False]
    with pytest.raises(RestFault):
        a_text(provider)
    desk.press("/text", **{"from": ONE, "text": "START"})
    assert stopped() == [False, False]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_fault_is_set_shown_and_used_up(desk: Desk, provider: Provider) -> None:
    desk.press("/faults", do="fail", operation="messages.create", how="429", times="1")

    assert "asks for sending a text, the provider says: too many at once (429): once more." in desk.section("now")
    assert desk.ask("POST", REST, OWN, basic(), body=b"To=x").status == 429
    assert "All is well" in desk.section("now")
    assert desk.ask("POST", REST, OWN, basic(), body=b"To=x").status == 400


def basic() -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(f"{KEY}:{SECRET}".encode())


def test_an_outage_of_some_minutes_ends_by_itself(desk: Desk, provider: Provider, clock: Clock) -> None:
    desk.press("/faults", do="fail", how="500 before", minutes="2")

    assert "anything, the provider does nothing and answers 500: until 15:02:00." in desk.section("now")
    clock.forward(119)
    desk.get()
    assert desk.ask("GET", REST, OWN, basic()).status == 500
    clock.forward(1)
    desk.get()
    assert desk.ask("GET", REST, OWN, basic()).status == 200


def test_all_is_well_again_ends_everything(desk: Desk, provider: Provider) -> None:
    desk.press("/faults", do="fail", how="401")
    desk.press("/faults", do="outcome", number=SCREENER, outcome="blocked")
    desk.press("/faults", do="callbacks", callbacks="missing")
    shown = desk.section("now")
    assert "refuses the key (401): until all is well again." in shown
    assert "Texts to +855 0000 0301 end as: accepted, then refused: opted out." in shown
    assert "Status callbacks come: never." in shown

    desk.press("/recover")

    assert "All is well" in desk.section("now")
    assert (provider.outcomes, provider.callbacks) == ({}, Callbacks())
    assert desk.ask("GET", REST, OWN, basic()).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do": "everything"},
        {"do": "fail", "how": "softly"},
        {"do": "fail", "how": "429", "operation": "messages.burn"},
        {"do": "fail", "how": "429", "times": "0"},
        {"do": "fail", "how": "429", "times": "often"},
        {"do": "fail", "how": "429", "minutes": "-1"},
        {"do": "fail", "how": "429", "minutes": "nan"},
        {"do": "fail", "how": "429", "minutes": "1e300"},
        {"do": "outcome", "number": ONE, "outcome": "eaten"},
        {"do": "outcome", "number": "+85512345678", "outcome": "failed"},
        {"do": "callbacks", "callbacks": "backwards"},
    ],
)
def test_a_fault_that_cannot_happen_is_refused(desk: Desk, fields: dict[str, str]) -> None:
    assert desk.press("/faults", **fields).status == 400
    assert desk.tell("/faults", **fields)["wrong"]["faults"]
    assert "All is well" in desk.section("now")


@pytest.mark.parametrize("how", page.HOWS)
@pytest.mark.parametrize("operation", page.OPERATIONS)
def test_every_choice_of_the_page_is_one_of_the_provider(desk: Desk, operation: str, how: str) -> None:
    assert desk.press("/faults", do="fail", operation=operation, how=how, times="3").status == 303


@pytest.mark.parametrize("outcome", page.OUTCOMES)
def test_every_outcome_of_the_page_happens(desk: Desk, provider: Provider, clock: Clock, outcome: str) -> None:
    desk.press("/faults", do="outcome", number=ONE, outcome=outcome)
    if outcome == "blocked at create":
        with pytest.raises(RestFault):
            a_text(provider)
        return
    sid = a_text(provider)
    clock.forward(10)
    provider.advance()

    wanted = {"delivered": "delivered", "undelivered": "undelivered", "no receipt": "sent"}.get(outcome, "failed")
    assert provider.messages[sid].status == wanted


# -- the log -----------------------------------------------------------------------------------------------------------


class Depths(Page):
    """Notes how many closed <details> each word lies in."""

    def __init__(self, text: str) -> None:
        self.depths: dict[str, int] = {}
        super().__init__(text)

    def handle_data(self, data: str) -> None:
        if data.strip():
            shut = [known for tag, known in self.open if tag == "details" and "open" not in known]
            self.depths[data.strip()] = len(shut)
        super().handle_data(data)


def test_requests_of_both_sides_are_logged(desk: Desk, the_app: TheApp) -> None:
    desk.press("/text", **{"from": ONE, "text": "one"})
    the_app.status = 503
    desk.press("/text", **{"from": ONE, "text": "two"})
    desk.ask("GET", REST, OWN, basic())

    shown = desk.section("log")
    newest = [shown.index(words) for words in ("GET …/Messages.json 200", "sms 503 0 ms", "sms 200 0 ms")]
    assert newest == sorted(newest)
    assert "app to Twilio" in shown
    assert "Twilio to app" in shown


def test_the_words_of_a_text_are_two_steps_away_in_the_log(desk: Desk, the_app: TheApp) -> None:
    desk.press("/text", **{"from": ONE, "text": "words of a text"})
    log = desk.get().text.partition('id="log"')[2]

    seen = Depths(f"<ol {log.partition('</ol>')[0]}</ol>").depths

    assert seen["words of a text"] == 2
    assert seen[the_app.posts[0][2]] == 1  # the signature
    assert seen["POST /webhooks/twilio/sms"] == 1
    assert seen["hidden, 15 characters; show"] == 2


# -- the page ----------------------------------------------------------------------------------------------------------


def used(desk: Desk, provider: Provider, the_app: TheApp) -> None:
    """Bring about everything that the page can show."""
    a_text(provider)
    a_text(provider, to=SCREENER, body="P1")
    desk.press("/text", **{"from": ONE, "text": WORDS})
    the_app.status = None
    desk.press("/text", **{"from": TWO, "text": "STOP"})
    desk.press("/faults", do="fail", how="429")
    desk.press("/faults", do="outcome", number=ONE, outcome="failed")


@pytest.fixture(params=["lang=km", "lang=en"])
def shown(request: pytest.FixtureRequest, desk: Desk, provider: Provider, the_app: TheApp) -> Page:
    used(desk, provider, the_app)
    return Page(desk.get(query=request.param).text)


def test_nothing_on_the_page_is_inline_or_from_elsewhere(shown: Page) -> None:
    for tag, known in shown.tags:
        assert tag not in ("style", "iframe", "img", "object", "embed"), tag
        assert not any(name.startswith("on") or name == "style" for name in known), (tag, known)
        for name in ("href", "src", "action", "formaction"):
            address = known.get(name)
            assert address is None or re.match(r"(/(?!/)|#|http://127\.0\.0\.1:8001/$)", address), (tag, address)
    assert [known.get("src") for known in shown.all("script")] == ["/static/simulator.js"]


def test_every_control_has_a_label_and_ids_are_single(shown: Page) -> None:
    ids = [known["id"] for _, known in shown.tags if known.get("id")]
    assert len(ids) == len(set(ids))
    labels = {known.get("for") for known in shown.all("label")}
    assert all(control.get("id") in labels for control in shown.all("select", "textarea"))
    for _, known in shown.tags:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert set((known.get(name) or "").split()) <= set(ids), known
        if (known.get("href") or "").startswith("#"):
            assert str(known["href"])[1:] in ids


def test_enter_in_a_field_presses_a_button_that_does_no_harm(shown: Page) -> None:
    assert str(shown.all("button")[0]["formaction"]).startswith("/look")


def test_each_entry_that_renews_itself_has_a_name(desk: Desk, provider: Provider, the_app: TheApp) -> None:
    used(desk, provider, the_app)
    html = desk.get().text
    parts = re.findall(r'id="([^"]+)"[^>]* data-live', html)

    assert {"phones", "talk-85500000001", "talk-duty-85500000301", "log", "now", "number"} <= set(parts)
    for entry in re.findall(r"<(?:li|option)\b([^>]*)>", html.partition('id="operation"')[0]):
        assert "id=" in entry


def test_every_class_has_a_style(shown: Page, desk: Desk) -> None:
    css = desk.get("/static/simulator.css").text
    for _, known in shown.tags:
        for name in (known.get("class") or "").split():
            assert f".{name}" in css, name


def test_each_piece_says_its_language(shown: Page) -> None:
    whole = shown.all("html")[0]["lang"]
    khmer = re.compile("[\u1780-\u17ff]")
    for said, text in shown.words:
        if whole == "en" or said == "en":
            assert bool(khmer.search(text)) == (said == "km"), (said, text)


def test_khmer_comes_first(desk: Desk) -> None:
    assert 'lang="km"' in desk.get(query="").text.partition("<head>")[0]
    assert desk.press("/look", query="").header("location") == "/"


def test_the_state_is_told_only_when_it_is_new(desk: Desk) -> None:
    first = json.loads(desk.get("/state").body)
    same = json.loads(desk.get("/state", f"since={first['version']}&lang=en").body)
    desk.press("/text", **{"from": ONE, "text": "<script>x</script>"})
    other = json.loads(desk.get("/state", f"since={first['version']}&lang=en").body)

    assert same == {"version": first["version"]}
    assert other["version"] != first["version"]
    assert "&lt;script&gt;x" in other["main"]
    assert "<script>" not in other["main"]
    assert f'data-version="{other["version"]}"' in desk.get().text


# -- words -------------------------------------------------------------------------------------------------------------

KEYWORDS = {"_": None, "mark": None, "words": None, "Unsendable": None}


def messages() -> set[str]:
    """Return every English text of templates and code."""
    found: set[str] = set()
    for method, pattern in (("python", "*.py"), ("jinja2.ext:babel_extract", "templates/*.html")):
        for path in page.HERE.glob(pattern):
            with path.open("rb") as source:
                for _, text, _, _ in extract(method, source, keywords=KEYWORDS, options={"encoding": "utf-8"}):
                    found |= {text if isinstance(text, str) else text[0]} if text else set()
    return found


def test_every_text_is_translated_and_nothing_else() -> None:
    assert len(messages()) > 80
    assert set(page.read_catalogue()) == messages()


def test_translations_keep_the_placeholders_and_are_khmer() -> None:
    for english, khmer in page.read_catalogue().items():
        marks = [sorted(re.findall(r"\{\w*\}|[0-9]{2,}", text)) for text in (english, khmer)]
        assert marks[0] == marks[1], english
        assert re.search("[\u1780-\u17ff]", khmer) or english == "{ms} ms"


def test_khmer_is_marked_as_unreviewed() -> None:
    with page.CATALOGUE.open("rb") as source:
        assert "unreviewed" in read_po(source, locale="km").header_comment


# -- time --------------------------------------------------------------------------------------------------------------


def served(provider: Provider, the_app: TheApp) -> TestClient:
    app = create_app(provider, target=Target(HOST, "http://127.0.0.1:8000"), duty={}, transport=the_app)
    return TestClient(app, base_url="http://127.0.0.1:8002")


def soon(what: Any) -> bool:
    deadline = time.monotonic() + 20 * EVERY
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(what())


def test_the_providers_clock_goes_on_while_nobody_looks(provider: Provider, the_app: TheApp, clock: Clock) -> None:
    with served(provider, the_app):
        a_text(provider)
        clock.forward(10)
        assert soon(lambda: len(the_app.posts) == 3)


def test_without_a_server_nothing_moves(provider: Provider, the_app: TheApp, clock: Clock) -> None:
    """The control of the test above."""
    served(provider, the_app)
    a_text(provider)
    clock.forward(10)
    time.sleep(2 * EVERY)

    assert not the_app.posts


def test_a_fault_of_one_step_does_not_end_the_clock(
    provider: Provider, the_app: TheApp, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = []

    def step(phones: Phones, sound: Any = Phones.step) -> None:
        if not broken:
            broken.append(True)
            raise RuntimeError(WORDS)
        sound(phones)

    monkeypatch.setattr(Phones, "step", step)
    with served(provider, the_app):
        a_text(provider)
        clock.forward(10)
        assert soon(lambda: len(the_app.posts) == 3)
    assert broken


def test_operations_in_words_are_operations() -> None:
    assert set(page.OPERATIONS) <= {"*", *OPERATIONS}
