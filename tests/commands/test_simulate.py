"""`./hotline simulate`: signed as the provider's library signs, straight to the app or through the simulator."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qsl, urlencode
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from commands import demo, simulate, simulator
from commands.demo_cast import totp_secret
from service.config import ROOT, Settings, read_settings
from service.errors import BadSignature, Misconfigured
from service.vault import totp
from tests.commands.builders import running, soon
from tests.webhooks.builders import an_app, drive, encode, sms_headers
from tests.webhooks.builders import settings as app_settings
from tests.webhooks.fakes import FakeIntake
from webhooks import signature
from webhooks.simulator import page
from webhooks.simulator.provider import OPERATIONS
from webhooks.simulator.signing import SMS_PATH, new_sid, segments, sign, sms_fields

TOKEN = "0123456789abcdef0123456789abcdef"
ACCOUNT = "AC" + "1" * 32
HOST = "https://hotline.example"
BODIES = ["", "a child at 4 Elm St", "សូមជួយផង 🙏", "50% + more & more = x", "one\ntwo\r\nthree", " spaces "]


def an_sms(body: str) -> dict[str, str]:
    return sms_fields(body=body, sender="+85500000001", to="+85500000100", account_sid=ACCOUNT)


def checked(fields: dict[str, str], signed: str) -> dict[str, str]:
    return signature.check(
        urlencode(fields).encode(),
        sms_headers(signed.encode()),
        SMS_PATH,
        b"",
        public_urls=(HOST,),
        tokens=(TOKEN.encode(),),
        account_sid=ACCOUNT,
    )


# The signature


@pytest.mark.parametrize("body", BODIES)
def test_the_signature_is_accepted_by_the_providers_library_and_by_the_app(body):
    fields = an_sms(body)
    signed = sign(HOST + SMS_PATH, fields, TOKEN)

    assert RequestValidator(TOKEN).validate(HOST + SMS_PATH, fields, signed)
    assert checked(fields, signed)["Body"] == body


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_words_are_signed_as_the_providers_library_signs_them(body):
    fields = an_sms(body)

    assert sign(HOST + SMS_PATH, fields, TOKEN) == RequestValidator(TOKEN).compute_signature(HOST + SMS_PATH, fields)


@pytest.mark.parametrize(
    ("url", "token", "change"),
    [
        (HOST + SMS_PATH, TOKEN, {"Body": "other words"}),
        (HOST + SMS_PATH, "another token", {}),
        ("https://other.example" + SMS_PATH, TOKEN, {}),
    ],
)
def test_another_token_host_or_word_is_refused(url, token, change):
    """The control of the two tests above."""
    fields = an_sms("a child")
    signed = sign(url, fields, token)

    with pytest.raises(BadSignature):
        checked(fields | change, signed)


def test_a_token_may_be_text_or_bytes():
    assert sign(HOST, {}, TOKEN) == sign(HOST, {}, TOKEN.encode())


def test_the_real_app_takes_it_once(tmp_path):
    intake = FakeIntake()
    account = {"twilio_account_sid": ACCOUNT}
    app, token = an_app(tmp_path, intake, **account), app_settings(tmp_path, **account).twilio_token_file
    assert token is not None
    fields = an_sms("សូមជួយ")
    signed = sign(HOST + SMS_PATH, fields, token.read_text())

    answers = [
        drive(app, "POST", SMS_PATH, headers=sms_headers(signed.encode()), body=encode(fields)) for _ in range(2)
    ]

    assert [answer.status for answer in answers] == [200, 200]
    assert len(intake.stored) == 1
    assert intake.last.sender == "+85500000001"


def test_the_fields_are_twilios_and_one_that_nobody_knows():
    fields = sms_fields(
        body="x", sender="+85500000001", to="+85500000100", account_sid=ACCOUNT, sid="SM1", NumMedia="1"
    )

    assert {"MessageSid", "AccountSid", "From", "To", "Body", "SmsStatus", "ApiVersion"} <= fields.keys()
    assert fields["AddedWithoutNotice"]
    assert (fields["MessageSid"], fields["SmsSid"], fields["NumMedia"]) == ("SM1", "SM1", "1")


@pytest.mark.parametrize(
    ("body", "parts"),
    [("a" * 160, 1), ("a" * 161, 2), ("ក" * 70, 1), ("ក" * 71, 2), ("ក" * 134, 2), ("ក" * 135, 3), ("🙏" * 36, 2)],
)
def test_parts_are_counted_as_a_network_counts_them(body, parts):
    assert segments(body) == parts


def test_identifiers_are_new_each_time():
    first, second = new_sid(), new_sid()

    assert first != second
    assert (len(first), first[:2]) == (34, "SM")


# The command


class Public:
    """Something that answers on a port, and keeps what it was sent."""

    def __init__(self, status: int) -> None:
        self.posts: list[tuple[str, str, bytes]] = []
        self.status = status
        public = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                public.posts.append((self.path, self.headers["x-twilio-signature"], body))
                self.send_response(public.status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def public(request: pytest.FixtureRequest) -> Iterator[Public]:
    server = Public(getattr(request, "param", 200))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    token = tmp_path / "twilio.token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o400)
    path = tmp_path / "demo.env"
    path.write_text(
        f"HOTLINE_PUBLIC_URL='{HOST}'\nHOTLINE_TWILIO_ACCOUNT_SID='{ACCOUNT}'\n"
        f"HOTLINE_TWILIO_NUMBERS='+85500000100,+85500000101'\nHOTLINE_TWILIO_TOKEN_FILE='{token}'\n"
    )
    monkeypatch.setenv("HOTLINE_SETTINGS", str(path))
    monkeypatch.delenv("HOTLINE_TWILIO_TOKEN_FILE", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked about this machine
    return path


def test_a_text_is_posted_signed_for_the_public_address(public, capsys):
    assert simulate.main(["sms", "សូមជួយ", "--from", "+85500000002", "--url", public.url]) == 0

    assert capsys.readouterr().out == "taken: 200\n"
    [(path, signed, body)] = public.posts
    fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
    assert path == SMS_PATH
    assert checked(fields, signed)["From"] == "+85500000002"
    assert (fields["Body"], fields["To"]) == ("សូមជួយ", "+85500000100")


def test_to_and_sid_are_taken_over_and_a_repeat_is_the_same_message(public, capsys):
    sid = "SM" + "a" * 32

    assert simulate.main(["sms", "x", "--to", "+85500000101", "--sid", sid, "--repeat", "3", "--url", public.url]) == 0

    assert capsys.readouterr().out == "taken: 200\n" * 3
    assert len(public.posts) == 3
    assert len(set(public.posts)) == 1
    fields = dict(parse_qsl(public.posts[0][2].decode(), keep_blank_values=True))
    assert (fields["To"], fields["MessageSid"]) == ("+85500000101", sid)


@pytest.mark.parametrize(
    ("public", "words"),
    [
        (403, "refused: 403: the signature does not fit: token,"),
        (503, "not taken: 503: the app cannot store it now"),
        (418, "refused: 418: "),
        (303, "not taken: 303: "),
    ],
    indirect=["public"],
)
def test_any_other_answer_is_told_in_words_and_is_a_failure(public, words, capsys):
    assert simulate.main(["sms", "x", "--url", public.url]) == 1

    assert capsys.readouterr().err.startswith(words)
    assert len(public.posts) == 1


def test_nobody_there_says_how_to_start_the_demo(capsys):
    assert simulate.main(["sms", "x", "--url", "http://127.0.0.1:9"]) == 1

    assert "is the demo running?" in capsys.readouterr().err


def test_the_settings_of_the_demo_serve_when_none_are_named(public, settings_file, tmp_path, monkeypatch):
    monkeypatch.delenv("HOTLINE_SETTINGS")
    monkeypatch.setattr(simulate, "DEFAULT", tmp_path)
    with settings_file.open("a") as file:
        file.write(f"HOTLINE_PUBLIC_PORT='{public.server.server_port}'\n")

    assert simulate.main(["sms", "x"]) == 0
    assert len(public.posts) == 1


def test_without_any_settings_it_says_how_to_get_some(tmp_path, monkeypatch):
    monkeypatch.delenv("HOTLINE_SETTINGS")
    monkeypatch.setattr(simulate, "DEFAULT", tmp_path / "var")

    with pytest.raises(Misconfigured, match=r"is the demo running\?"):
        simulate.main(["sms", "x"])


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["retry"],
        ["retry", "SM1", "--last"],
        ["outage", "--times", "1", "--minutes", "1"],
        ["outage", "--minutes", "0"],
        ["outage", "--minutes", "nan"],
        ["outage", "--times", "often"],
        ["outage", "--times", "0"],
        ["serve", "--host", "0.0.0.0"],
        ["sms"],
        ["mail", "x"],
        ["sms", "x", "--sid", "SM1"],
        ["sms", "x", "--repeat", "0"],
        ["sms", "x", "--url", "ftp://here"],
        ["sms", "\udcff"],
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        simulate.main(wrong)

    assert stopped.value.code == 2
    assert "usage: ./hotline simulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (["--help"], 'simulate sms "'),
        (["sms", "--help"], "--from +855"),
        (["retry", "--help"], "simulate retry --last"),
        (["outage", "--help"], 'simulate outage --how "silent after" --times 1'),
    ],
)
def test_help_teaches_with_examples(arguments, example, capsys):
    with pytest.raises(SystemExit) as stopped:
        simulate.main(arguments)

    assert stopped.value.code == 0
    assert example in capsys.readouterr().out


def test_help_names_every_way_to_fail():
    said = " ".join(simulate.OUTAGE.split())
    ways, operations = said.partition("ways: ")[2].split("operations: ")

    assert all(way in ways for way in page.HOWS)
    for operation in OPERATIONS:
        kind, verb = operation.split(".")
        assert operation in operations or (kind in operations and verb in operations)


def test_the_text_to_try_is_among_the_ready_made_ones():
    assert demo.EXAMPLE in page.EXAMPLES


# The simulator

KEY_SID, KEY_SECRET = "SK" + "2" * 32, "a secret of the tests"
KEY = b64encode(f"{KEY_SID}:{KEY_SECRET}".encode()).decode()
LIST = f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json"


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text + "\n")
    path.chmod(0o400)
    return path


class Demo:
    """A simulator in a process of its own, the app that it posts to, and the settings of both."""

    def __init__(self, folder: Path) -> None:
        self.public = Public(200)
        self.values = {
            "HOTLINE_DEMO": "true",
            "HOTLINE_PUBLIC_URL": HOST,
            "HOTLINE_PUBLIC_PORT": str(self.public.server.server_port),
            "HOTLINE_SIMULATOR_PORT": str(port()),
            "HOTLINE_TWILIO_ACCOUNT_SID": ACCOUNT,
            "HOTLINE_TWILIO_NUMBERS": "+85500000100,+85500000101",
            "HOTLINE_TWILIO_TOKEN_FILE": str(secret(folder, "token", TOKEN)),
            "HOTLINE_TWILIO_API_KEY_SID": KEY_SID,
            "HOTLINE_TWILIO_API_KEY_FILE": str(secret(folder, "key", KEY_SECRET)),
            "HOTLINE_DUTY": '{"screening": ["+85500000301"]}',
        }
        self.settings_file = folder / "simulator.env"
        self.settings_file.write_text("".join(f"{name}='{value}'\n" for name, value in self.values.items()))
        self.process = self.run()
        if not soon(lambda: simulator.runs(read_settings(self.settings_file)), 30):
            self.close()
            raise AssertionError("the simulator did not start")

    def run(self) -> "subprocess.Popen[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HOTLINE_")}
        return subprocess.Popen(
            [sys.executable, "-m", "commands", "simulate", "serve"],
            cwd=ROOT,
            env={**clean, "HOTLINE_SETTINGS": str(self.settings_file), "http_proxy": "http://127.0.0.1:9"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def bodies(self) -> list[dict[str, str]]:
        """The texts that the app got."""
        return [dict(parse_qsl(body.decode(), keep_blank_values=True)) for path, _, body in self.public.posts]

    def ask(self, path: str, key: str = "") -> int:
        request = Request(f"http://127.0.0.1:{self.values['HOTLINE_SIMULATOR_PORT']}{path}")
        if key:
            request.add_header("Authorization", f"Basic {key}")
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=10) as answer:
                return int(answer.status)
        except HTTPError as refusal:
            return refusal.code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.public.close()


@pytest.fixture(scope="module")
def running_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    opened = Demo(tmp_path_factory.mktemp("demo"))
    yield opened
    opened.close()


@pytest.fixture
def simulated(running_demo: Demo, monkeypatch: pytest.MonkeyPatch) -> Demo:
    monkeypatch.setenv("HOTLINE_SETTINGS", str(running_demo.settings_file))
    running_demo.public.posts.clear()
    running_demo.public.status = 200
    return running_demo


def on_the_page(demo: Demo) -> str:
    address = f"http://127.0.0.1:{demo.values['HOTLINE_SIMULATOR_PORT']}/state?lang=en"
    with build_opener(ProxyHandler({})).open(address, timeout=10) as answer:
        return str(json.load(answer)["main"])


def test_a_text_goes_through_the_simulator_when_one_runs(simulated, capsys):
    words = "សូមជួយ through the simulator"

    assert simulate.main(["sms", words, "--from", "+85500000002", "--to", "+85500000101"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    [(path, signed, body)] = simulated.public.posts
    fields = checked(dict(parse_qsl(body.decode(), keep_blank_values=True)), signed)
    assert first == "taken: 200"
    assert second.startswith(fields["MessageSid"])
    assert (path, fields["From"], fields["To"], fields["Body"]) == (SMS_PATH, "+85500000002", "+85500000101", words)
    assert words in on_the_page(simulated)


def test_an_address_or_identifier_goes_past_the_simulator(simulated, capsys):
    sid = "SM" + "b" * 32

    assert simulate.main(["sms", "straight by its identifier", "--sid", sid]) == 0
    assert simulate.main(["sms", "straight by the address", "--url", simulated.public.url]) == 0

    assert capsys.readouterr().out == "taken: 200\n" * 2
    assert simulated.bodies[0]["MessageSid"] == sid
    assert "straight by" not in on_the_page(simulated)


def test_the_simulator_of_another_account_is_left_alone(simulated, monkeypatch, capsys):
    monkeypatch.setenv("HOTLINE_TWILIO_ACCOUNT_SID", "AC" + "9" * 32)

    assert simulate.main(["sms", "for another account"]) == 0
    assert simulate.main(["outage"]) == 1

    assert simulated.bodies[0]["AccountSid"] == "AC" + "9" * 32
    page_text = on_the_page(simulated)
    assert "for another account" not in page_text
    assert "All is well" in page_text


def test_repeat_and_retry_deliver_the_same_message_again(simulated, capsys):
    assert simulate.main(["sms", "one message", "--repeat", "2"]) == 0
    sid = simulated.bodies[0]["MessageSid"]
    assert simulate.main(["retry", sid]) == 0
    assert simulate.main(["retry", "--last"]) == 0

    assert [fields["MessageSid"] for fields in simulated.bodies] == [sid] * 4
    assert len({body for _, _, body in simulated.public.posts}) == 1
    assert capsys.readouterr().out.count("taken: 200\n") == 4


def test_a_text_that_is_not_taken_is_a_failure(simulated, capsys):
    simulated.public.status = 503

    assert simulate.main(["sms", "x", "--repeat", "2"]) == 1
    assert simulate.main(["retry", "--last"]) == 1

    assert capsys.readouterr().err.count("not taken: 503: the app cannot store it now") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry", "SM" + "0" * 32], "No phone has sent such a text."),
        (["sms", "x", "--from", "nobody at all"], "A number is written like +85500000001."),
        (["sms", "ក" * 1601], "A text has at most 1,600 characters."),
        (["outage", "--how", "softly"], "no such way to fail: softly; there are 401, 429,"),
        (["outage", "--operation", "messages.burn"], "no such operation: messages.burn; there are * calls.delete"),
    ],
)
def test_what_the_simulator_cannot_do_is_said(simulated, arguments, words, capsys):
    assert simulate.main(arguments) == 1

    assert capsys.readouterr().err.startswith(f"hotline simulate: {words}")
    assert not simulated.public.posts
    assert "All is well" in on_the_page(simulated)


def test_an_outage_begins_and_ends(simulated, capsys):
    assert simulated.ask(LIST) == 401
    assert simulated.ask(LIST, KEY) == 200

    assert simulate.main(["outage", "--how", "500 before", "--operation", "messages.list", "--times", "2"]) == 0
    assert capsys.readouterr().out == "from now on, for messages.list: 500 before, 2 times\n"
    assert [simulated.ask(LIST, KEY) for _ in range(3)] == [500, 500, 200]

    assert simulate.main(["outage", "--how", "429", "--minutes", "1.5"]) == 0
    assert "429, for 1.5 minutes" in capsys.readouterr().out
    assert simulated.ask(LIST, KEY) == 429
    assert simulate.main(["outage", "--end"]) == 0
    assert simulated.ask(LIST, KEY) == 200


def test_an_outage_is_silence_until_its_end_unless_it_is_told_otherwise(simulated):
    assert simulate.main(["outage"]) == 0

    assert "asks for anything, the provider does nothing and never answers: until all is well" in on_the_page(simulated)
    assert simulate.main(["outage", "--end"]) == 0


@pytest.mark.parametrize("arguments", [["retry", "--last"], ["outage"], ["outage", "--end"]])
def test_without_a_simulator_it_says_how_to_start_one(arguments, monkeypatch, capsys):
    monkeypatch.setenv("HOTLINE_SIMULATOR_PORT", str(port()))

    assert simulate.main(arguments) == 1
    assert "./hotline demo" in capsys.readouterr().err


def test_a_second_simulator_on_the_port_says_so(simulated):
    second = simulated.run()
    output, _ = second.communicate(timeout=60)

    assert second.returncode == 2
    port = simulated.values["HOTLINE_SIMULATOR_PORT"]
    assert output == f"hotline simulate: port {port} is taken (HOTLINE_SIMULATOR_PORT)\n"


def settings_of(running: Demo, **more: Any) -> Settings:
    return read_settings(running.settings_file).model_copy(update=more)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"demo": False}, "the simulator is for the demo only"),
        ({"twilio_account_sid": ""}, "HOTLINE_TWILIO_ACCOUNT_SID"),
        ({"twilio_numbers": ()}, "HOTLINE_TWILIO_NUMBERS"),
        ({"twilio_api_key_sid": ""}, "HOTLINE_TWILIO_API_KEY_SID"),
        ({"twilio_api_key_file": None}, "HOTLINE_TWILIO_API_KEY_FILE"),
        ({"twilio_token_file": None}, "HOTLINE_TWILIO_TOKEN_FILE"),
    ],
)
def test_it_does_not_start_outside_the_demo_or_without_its_account(simulated, wrong, words):
    assert simulator.build(settings_of(simulated)) is not None

    with pytest.raises(Misconfigured, match=words):
        simulator.serve(settings_of(simulated, **wrong))


def test_it_listens_on_this_machine_alone(simulated):
    """Where it listens, as the kernel tells; 0100007F is 127.0.0.1."""
    number = f"{int(simulated.values['HOTLINE_SIMULATOR_PORT']):04X}"
    rows = [row.split() for row in Path(f"/proc/{simulated.process.pid}/net/tcp").read_text().splitlines()[1:]]
    rows += [row.split() for row in Path(f"/proc/{simulated.process.pid}/net/tcp6").read_text().splitlines()[1:]]

    assert [row[1] for row in rows if row[3] == "0A" and row[1].endswith(":" + number)] == [f"0100007F:{number}"]


def test_it_ends_at_once_even_while_it_leaves_somebody_without_an_answer(tmp_path):
    demo = Demo(tmp_path)
    try:
        with socket.create_connection(("127.0.0.1", int(demo.values["HOTLINE_SIMULATOR_PORT"]))) as waiting:
            assert simulator.ask(settings_of(demo), "/faults", {"do": "fail", "how": "silent before"})
            waiting.sendall(f"GET {LIST} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {KEY}\r\n\r\n".encode())
            assert soon(lambda: "All is well" not in on_the_page(demo) and "no answer" in on_the_page(demo))
            demo.process.send_signal(signal.SIGTERM)
            output, _ = demo.process.communicate(timeout=5)
        assert not running(demo.process.pid)
        assert "Phones: http://127.0.0.1:" in output
        assert "Traceback" not in output
    finally:
        demo.close()


# The second factor of the demo


def test_the_code_of_a_demo_account_signs_it_in_and_only_demo_accounts_have_one(capsys):
    before = int(time.time()) // totp.STEP
    assert simulate.main(["code", "screener"]) == 0
    code = capsys.readouterr().out.strip()
    after = int(time.time()) // totp.STEP
    at = [datetime.fromtimestamp(step * totp.STEP, UTC) for step in range(before, after + 1)]
    assert code in {totp.code_at(totp_secret("screener"), moment) for moment in at}
    assert code not in {totp.code_at(totp_secret("oversight"), moment) for moment in at}
    with pytest.raises(SystemExit):
        simulate.main(["code", "somebody"])
