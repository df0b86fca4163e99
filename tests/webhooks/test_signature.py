"""The matrix of twilio.md section 3, judged by the provider's own library where it is sound."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator

from service.errors import BadSignature
from tests.webhooks.builders import (
    ACCOUNT,
    CANARY,
    FORM_TYPE,
    HOST,
    NUMBER,
    PREVIOUS_TOKEN,
    SENDER,
    SMS,
    TOKEN,
    an_app,
    an_sms,
    drive,
    encode,
    sign,
    sms_headers,
)
from webhooks.signature import check, is_ours
from webhooks.signature import sign as own_sign

URL = HOST + SMS


@dataclass(frozen=True)
class Sent:
    """One request. `sdk`: what the provider's library says of it, None where it cannot be asked."""

    body: bytes
    headers: list[tuple[bytes, bytes]]
    passes: bool = False
    path: str = SMS
    query: bytes = b""
    sdk: bool | None = None
    sdk_params: Any = field(default=None, compare=False)


def signed(fields: Mapping[str, str], **more: Any) -> Sent:
    """Return a request of `fields` with their true signature."""
    url, token = more.pop("url", URL), more.pop("token", TOKEN)
    more.setdefault("sdk", True)
    return Sent(more.pop("body", encode(fields)), sms_headers(sign(fields, url=url, token=token)), **more)


def with_signature(*values: bytes) -> Sent:
    fields = an_sms()
    plain = [(name, value) for name, value in sms_headers(b"") if name != b"x-twilio-signature"]
    return Sent(encode(fields), plain + [(b"x-twilio-signature", value) for value in values])


def one_bit_changed() -> Sent:
    good = sign(an_sms())
    bad = good[:5] + bytes([good[5] ^ 1]) + good[6:]
    return Sent(encode(an_sms()), sms_headers(bad), sdk=False)


def last_bits_changed() -> Sent:
    """The last letter before the = carries bits that base64 readers ignore."""
    good = sign(an_sms())
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    bad = good[:-2] + letters[letters.index(good[-2]) ^ 1 :][:1] + b"="
    return Sent(encode(an_sms()), sms_headers(bad), sdk=False)


def smuggled(taken: set[str], put: dict[str, str]) -> Sent:
    """Return a signed request in which some names and values were cut elsewhere: the joined text stays the same."""
    fields = an_sms(body="hi")
    kept = {name: value for name, value in fields.items() if name not in taken}
    return signed(fields, body=encode(kept | put))


def repeated(value: str) -> Sent:
    fields = an_sms()
    return Sent(
        encode([*fields.items(), ("From", value)]),
        sms_headers(sign(fields)),
        sdk=value == fields["From"],
        sdk_params=MultiDict([*fields.items(), ("From", value)]),
    )


def signed_as_one() -> Sent:
    """``A=xAy`` was signed, ``A=x&A=y`` is sent."""
    fields = an_sms(A="xAy")
    pairs = [(name, value) for name, value in fields.items() if name != "A"] + [("A", "x"), ("A", "y")]
    return Sent(encode(pairs), sms_headers(sign(fields)), sdk=True, sdk_params=MultiDict(pairs))


def json_dict() -> Sent:
    body = json.dumps(an_sms()).encode()
    return Sent(body, sms_headers(sign(an_sms()), content_type="application/json"), sdk=True, sdk_params=an_sms())


def json_hash(body_hash: str) -> Sent:
    body = json.dumps(an_sms()).encode()
    query = f"bodySHA256={body_hash}"
    headers = sms_headers(sign({}, url=f"{URL}?{query}"), content_type="application/json")
    return Sent(body, headers, query=query.encode())


def multipart() -> Sent:
    fields = an_sms()
    parts = [f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
    body = ("".join(parts) + "--b--\r\n").encode()
    return Sent(body, sms_headers(sign(fields), content_type="multipart/form-data; boundary=b"))


def without(name: str) -> Sent:
    return signed({key: value for key, value in an_sms().items() if key != name})


class MultiDict(dict):
    """What Flask gives the library: ``getall`` returns every value of a name."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def getall(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]


KHMER = "ជួយផង 🙏 50% + 1\nនៅទីនេះ & there; a=b"
MATRIX: dict[str, Callable[[], Sent]] = {
    # only these pass
    "correct": lambda: signed(an_sms(), passes=True),
    "previous token": lambda: signed(an_sms(), token=PREVIOUS_TOKEN, passes=True, sdk=None),
    "field order changed": lambda: signed(an_sms(), body=encode(dict(reversed(an_sms().items()))), passes=True),
    "unknown extra signed field": lambda: signed(an_sms(BrandNew="yes"), passes=True),
    "empty body": lambda: signed(an_sms(body=""), passes=True),
    "khmer, emoji, plus, percent, newline": lambda: signed(an_sms(body=KHMER), passes=True),
    "unlisted number": lambda: signed(an_sms(To="+85500000099"), passes=True),
    "signed with the default port": lambda: signed(an_sms(), url=f"{HOST}:443{SMS}", passes=True),
    "charset not said": lambda: Sent(
        encode(an_sms()), sms_headers(sign(an_sms()), content_type=FORM_TYPE), passes=True, sdk=True
    ),
    # everything else does not
    "trailing slash": lambda: signed(an_sms(), url=URL + "/", sdk=False),
    "http": lambda: signed(an_sms(), url=URL.replace("https", "http"), sdk=False),
    "other host": lambda: signed(an_sms(), url=URL.replace("hotline", "other"), sdk=False),
    "host in capitals": lambda: signed(an_sms(), url=URL.replace("hotline", "HOTLINE"), sdk=False),
    "port 8443": lambda: signed(an_sms(), url=f"{HOST}:8443{SMS}", sdk=False),
    "query added": lambda: signed(an_sms(), query=b"x=1", sdk=False),
    "query added and signed": lambda: signed(an_sms(), url=f"{URL}?x=1", query=b"x=1"),
    "signature of another path": lambda: signed(an_sms(), url=HOST + "/webhooks/twilio/voice", sdk=False),
    "no header": lambda: with_signature(),
    "two headers": lambda: with_signature(sign(an_sms()), sign(an_sms())),
    "two headers, one wrong": lambda: with_signature(b"wrong", sign(an_sms())),
    "empty header": lambda: with_signature(b""),
    "non-ascii header": lambda: with_signature("ខ្មែរ".encode() + sign(an_sms())),
    "one bit changed": one_bit_changed,
    "ignored base64 bits changed": last_bits_changed,
    "signed with another token": lambda: signed(an_sms(), token=b"guessed", sdk=False),
    "signed with an empty token": lambda: signed(an_sms(), token=b"", sdk=False),
    "semicolons": lambda: signed(an_sms(), body=encode(an_sms()).replace(b"&", b";"), sdk=False),
    "repeated, same": lambda: repeated("+85500000001"),
    "repeated, different": lambda: repeated("+85500000002"),
    "one field sent as two": signed_as_one,
    "repeated under an escaped name": lambda: signed(
        an_sms(), body=encode(an_sms()) + b"&Fr%6Fm=%2B85500000001", sdk=True
    ),
    "BodyhiFrom": lambda: smuggled({"Body", "From"}, {"BodyhiFrom": SENDER}),
    "Body=hiFrom": lambda: smuggled({"From"}, {"Body": "hiFrom" + SENDER}),
    "Fr=om": lambda: smuggled({"From"}, {"Fr": "om" + SENDER}),
    "missing sender": lambda: without("From"),
    "missing identifier": lambda: without("MessageSid"),
    "empty identifier": lambda: signed(an_sms(sid="")),
    "another account": lambda: signed(an_sms(AccountSid="AC" + "1" * 32)),
    "multipart": multipart,
    "json with a dict": json_dict,
    "json with its hash": lambda: json_hash(sha256(json.dumps(an_sms()).encode()).hexdigest()),
    "json with a wrong hash": lambda: json_hash("0" * 64),
    "101 fields": lambda: signed(an_sms(**{f"Extra{n}": "" for n in range(79)})),
    "65 KB": lambda: signed(an_sms(body="x" * 65 * 1024)),
    "words changed after signing": lambda: signed(an_sms(), body=encode(an_sms(body="nothing here")), sdk=False),
    "another character set": lambda: Sent(
        encode(an_sms()), sms_headers(sign(an_sms()), content_type=f"{FORM_TYPE}; charset=utf-16"), sdk=True
    ),
}
SMUGGLED = {
    "repeated, same", "one field sent as two", "repeated under an escaped name", "BodyhiFrom", "Body=hiFrom", "Fr=om",
}  # fmt: skip


def run(sent: Sent, **more: Any) -> dict[str, str]:
    known = {"public_urls": (HOST,), "tokens": (TOKEN, PREVIOUS_TOKEN), "account_sid": ACCOUNT}
    return check(sent.body, sent.headers, sent.path, sent.query, **(known | more))


@pytest.mark.parametrize("name", MATRIX)
def test_only_the_starred_cases_pass(name):
    sent = MATRIX[name]()
    if sent.passes:
        assert run(sent) == dict(parse_qsl(sent.body.decode(), keep_blank_values=True))
    else:
        with pytest.raises(BadSignature):
            run(sent)


@pytest.mark.parametrize("name", MATRIX)
def test_over_http_a_refusal_is_empty_and_stores_nothing(name, tmp_path, intake):
    sent = MATRIX[name]()
    app = an_app(tmp_path, intake)

    answer = drive(app, "POST", sent.path, headers=sent.headers, body=sent.body, query=sent.query)

    assert (answer.status, len(intake.stored)) == ((200, 1) if sent.passes else (403, 0))
    if not sent.passes:
        assert answer.body == b""


@pytest.mark.parametrize("name", [name for name, sent in MATRIX.items() if sent().sdk is not None])
def test_the_library_is_the_judge_where_it_is_sound(name):
    sent = MATRIX[name]()
    url = URL + ("?" + sent.query.decode() if sent.query else "")
    params = sent.sdk_params
    if params is None:
        params = dict(parse_qsl(sent.body.decode(), keep_blank_values=True))
    signature = next(value for key, value in sent.headers if key == b"x-twilio-signature").decode()

    assert RequestValidator(TOKEN.decode()).validate(url, params, signature) is sent.sdk
    if sent.passes:
        assert sent.sdk, "what we take, it takes"


def test_the_library_takes_what_was_smuggled_and_we_do_not():
    """Why the library is not used: it joins names and values without a separator and reads values as a set."""
    assert all(MATRIX[name]().sdk for name in SMUGGLED)
    assert not any(MATRIX[name]().passes for name in SMUGGLED)


def test_the_library_raises_on_json_where_we_refuse():
    sent = json_hash("0" * 64)
    signature = sent.headers[-1][1].decode()
    with pytest.raises((TypeError, IndexError)):
        RequestValidator(TOKEN.decode()).validate(URL, sent.body, signature)
    with pytest.raises(BadSignature):
        run(sent)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8), st.text(st.characters(codec="utf-8"), max_size=30)
    )
)
def test_our_signature_is_the_librarys(fields):
    assert own_sign(URL, fields, TOKEN) == sign(fields)


@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_that_was_signed_comes_through(text):
    fields = an_sms(body=text)
    assert run(signed(fields)) == fields


@given(st.data())
def test_no_change_of_one_byte_passes(data):
    body = encode(an_sms())
    at = data.draw(st.integers(0, len(body) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != body[at]))
    changed = body[:at] + bytes([byte]) + body[at + 1 :]
    sent = Sent(changed, sms_headers(sign(an_sms())))
    try:
        fields = run(sent)
    except BadSignature:
        return
    assert fields == an_sms(), "only another spelling of the same fields may pass"


def test_the_port_of_the_configured_address_may_be_left_out_by_the_signer():
    for configured, signed_for, passes in [
        ("https://h.example:8443", "https://h.example", True),
        ("https://h.example", "https://h.example:443", True),
        ("http://h.example", "http://h.example:80", True),
        ("https://h.example/base", "https://h.example:443/base", True),
        ("https://h.example", "https://h.example:80", False),
        ("https://h.example:8443", "https://h.example:443", False),
    ]:
        sent = signed(an_sms(), url=signed_for + SMS)
        if passes:
            assert run(sent, public_urls=(configured,))
        else:
            with pytest.raises(BadSignature):
                run(sent, public_urls=(configured,))


def test_a_second_host_has_its_own_address():
    second = signed(an_sms(), url="https://second.example" + SMS)
    assert run(second, public_urls=(HOST, "https://second.example"))
    with pytest.raises(BadSignature):
        run(second)


def test_an_empty_token_signs_nothing():
    with pytest.raises(BadSignature):
        run(signed(an_sms(), token=b""), tokens=(b"",))
    with pytest.raises(BadSignature):
        run(signed(an_sms()), tokens=())


def test_no_account_is_not_the_empty_account():
    with pytest.raises(BadSignature):
        run(signed(an_sms(AccountSid="")), account_sid="")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/webhooks/twilio/sms/status", {"MessageSid": "SM1", "AccountSid": ACCOUNT, "MessageStatus": "sent"}),
        ("/webhooks/twilio/voice/danger/1", {"CallSid": "CA1", "AccountSid": ACCOUNT, "From": "+1", "To": NUMBER}),
        (
            "/webhooks/twilio/recording",
            {"RecordingSid": "RE1", "CallSid": "CA1", "AccountSid": ACCOUNT, "RecordingStatus": "completed"},
        ),
    ],
)
def test_each_webhook_has_its_own_required_fields(path, fields):
    assert run(signed(fields, url=HOST + path, path=path)) == fields
    for name in fields:
        fewer = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(BadSignature, match=r"missing field|another account"):
            run(signed(fewer, url=HOST + path, path=path))
    elsewhere = "/webhooks/elsewhere"
    with pytest.raises(BadSignature):
        run(signed(fields, url=HOST + elsewhere, path=elsewhere))


def test_the_number_may_come_with_the_prefix_of_whatsapp():
    assert is_ours({"To": f"whatsapp:{NUMBER}"}, (NUMBER,))
    assert is_ours({"To": NUMBER}, (NUMBER,))
    assert not is_ours({"To": "+85500000099"}, (NUMBER,))
    assert not is_ours({}, (NUMBER,))


@pytest.mark.parametrize("name", [name for name, sent in MATRIX.items() if not sent().passes])
def test_a_refusal_says_nothing_of_the_request(name):
    sent = MATRIX[name]()
    sent = Sent(sent.body + b"&" + CANARY.encode() + b"=%ff", sent.headers, path=sent.path, query=sent.query)
    with pytest.raises(BadSignature) as refused:
        run(sent)
    assert CANARY not in repr(refused.value)
    assert "Elm" not in repr(refused.value)
    assert refused.value.__cause__ is None
