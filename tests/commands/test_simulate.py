"""`./hotline simulate sms`: its signature is accepted by the provider's library and by the app; it says what came."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from commands import simulate
from service.errors import BadSignature, Misconfigured
from tests.webhooks.builders import an_app, drive, encode, sms_headers
from tests.webhooks.builders import settings as app_settings
from tests.webhooks.fakes import FakeIntake
from webhooks import signature
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
        keep = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                keep.append((self.path, self.headers["x-twilio-signature"], body))
                self.send_response(status)
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


@pytest.mark.parametrize("arguments", [["--help"], ["sms", "--help"]])
def test_help_teaches_with_examples(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        simulate.main(arguments)

    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert '  ./hotline simulate sms "' in shown
    assert "--from +855" in shown
