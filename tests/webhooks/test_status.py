"""How far a text of ours came: signed, kept once whatever the order, and nothing kept of whom it went to."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.db import Sessions, Writer, write
from service.errors import Busy, StorageUnavailable
from service.models import Contact, JobState, OutboxJob, ProviderReport, metadata
from service.vault import boxes
from tests.builders import a_world
from tests.chaos.scan import Scanner
from tests.service.sending import Scene
from tests.webhooks.builders import (
    ACCOUNT,
    CANARY,
    FORM_KEY,
    FORM_TYPE,
    HOST,
    NUMBER,
    PREVIOUS_TOKEN,
    SMS,
    TOKEN,
    Answer,
    an_app,
    an_sms,
    drive,
    encode,
    settings,
    sign,
    sms_headers,
)
from tests.webhooks.fakes import FakeIntake
from webhooks.app import create_app
from webhooks.simulator.delivery import status_fields
from webhooks.simulator.provider import StatusChange
from webhooks.twilio import STATUSES

STATUS = "/webhooks/twilio/sms/status"
SID = "SM" + "a1" * 16
READER = "+85500000071"


class Reports(FakeIntake):
    """Keeps what is reported, or fails as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str, int | None]] = []

    async def report(self, delivery: str, status: str, code: int | None, at: datetime) -> None:
        """Keep it like ``service.intake.Intake``."""
        if self.failing is not None:
            raise self.failing
        assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
        self.told.append((delivery, status, code))


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def app(tmp_path: Path, reports: Reports) -> Any:
    return an_app(tmp_path, reports)


def a_status(status: str = "delivered", sid: str = SID, **more: str) -> dict[str, str]:
    """Return the fields of a status callback, as the fake provider sends them."""

    class Account:
        account_sid = ACCOUNT

    change = StatusChange(sid, NUMBER, READER, status, None, None, datetime.now(UTC))
    return status_fields(Account, change) | more  # type: ignore[arg-type]


def post(app: Any, fields: Mapping[str, str], *, token: bytes = TOKEN) -> Answer:
    """Post a signed status."""
    signature = sign(fields, url=HOST + STATUS, token=token)
    return drive(app, "POST", STATUS, headers=sms_headers(signature), body=encode(fields))


# --- what is taken ---


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_a_signed_status_is_kept_and_answered_with_nothing(app: Any, reports: Reports, status: str) -> None:
    answer = post(app, a_status(status))
    assert (answer.status, answer.body) == (204, b"")
    assert reports.told == [(SID, status, None)]


@pytest.mark.parametrize(
    ("typed", "code"), [("30003", 30003), ("21610", 21610), ("", None), ("x", None), ("-1", None), ("9" * 9, None)]
)
def test_its_error_is_a_number_or_none(app: Any, reports: Reports, typed: str, code: int | None) -> None:
    assert post(app, a_status("undelivered", ErrorCode=typed)).status == 204
    assert reports.told == [(SID, "undelivered", code)]


@pytest.mark.parametrize("status", ["", "Delivered", "receiving", "partially_delivered", CANARY, "received"])
def test_a_status_that_nobody_knows_is_answered_and_not_kept(app: Any, reports: Reports, status: str) -> None:
    """Twilio adds some without notice; a refusal would only bring it again."""
    assert post(app, a_status(status)).status == 204
    assert reports.told == []


@pytest.mark.parametrize("failing", [StorageUnavailable("The database is gone."), Busy("Too many.")])
def test_what_was_not_kept_is_not_answered_as_if_it_were(app: Any, reports: Reports, failing: Exception) -> None:
    reports.failing = failing
    answer = post(app, a_status())
    assert (answer.status, answer.body) == (503, b"")
    assert answer.header("retry-after")


def test_an_unexpected_error_is_empty_and_says_nothing_in_a_log(app: Any, reports: Reports, logged: Any) -> None:
    reports.failing = RuntimeError(f"{CANARY} {READER}")
    answer = post(app, a_status())
    assert (answer.status, answer.body) == (500, b"")
    assert CANARY not in (log := logged())
    assert READER not in log


def test_neither_the_text_nor_its_reader_is_logged(app: Any, logged: Any) -> None:
    post(app, a_status())
    post(app, a_status("nonsense"))
    post(app, a_status(), token=b"wrong")
    log = logged()
    assert "wrong signature" in log
    assert READER not in log
    assert SID not in log


# --- the signature ---


def forged() -> dict[str, dict[str, Any]]:
    """Requests that the provider did not sign for this address, by what is wrong with them."""
    fields = a_status()
    good = sign(fields, url=HOST + STATUS)
    one_bit = bytes([good[0] ^ 1]) + good[1:]
    body = encode(fields)

    def without(name: str) -> dict[str, Any]:
        left = {key: value for key, value in fields.items() if key != name}
        return {"headers": sms_headers(sign(left, url=HOST + STATUS)), "body": encode(left)}

    foreign = fields | {"AccountSid": "AC" + "1" * 32}
    empty = fields | {"MessageSid": ""}
    return {
        "no signature": {"headers": [(b"content-type", FORM_TYPE.encode())]},
        "an empty signature": {"headers": sms_headers(b"")},
        "two signatures": {"headers": [*sms_headers(good), (b"x-twilio-signature", good)]},
        "one bit changed": {"headers": sms_headers(one_bit)},
        "another token": {"headers": sms_headers(sign(fields, url=HOST + STATUS, token=b"x" * 32))},
        "signed for text messages": {"headers": sms_headers(sign(fields, url=HOST + SMS))},
        "signed for another host": {"headers": sms_headers(sign(fields, url="https://other.example" + STATUS))},
        "signed over http": {"headers": sms_headers(sign(fields, url="http://hotline.example" + STATUS))},
        "a query": {"query": b"a=b"},
        "another status": {"body": encode(fields | {"MessageStatus": "failed"})},
        "a repeated field": {"body": body + b"&MessageStatus=delivered"},
        "a repeated field that differs": {"body": body + b"&MessageStatus=failed"},
        "names run into values": {"body": body.replace(b"MessageStatus=delivered", b"MessageStatusdelivered=")},
        "no status": without("MessageStatus"),
        "no text": without("MessageSid"),
        "no account": without("AccountSid"),
        "another account": {"headers": sms_headers(sign(foreign, url=HOST + STATUS)), "body": encode(foreign)},
        "an empty text": {"headers": sms_headers(sign(empty, url=HOST + STATUS)), "body": encode(empty)},
        "no form": {"headers": sms_headers(good, content_type="application/json")},
    }


@pytest.mark.parametrize("wrong", sorted(forged()))
def test_what_the_provider_did_not_sign_is_refused_and_not_kept(app: Any, reports: Reports, wrong: str) -> None:
    fields = a_status()
    sent = {"headers": sms_headers(sign(fields, url=HOST + STATUS)), "body": encode(fields)} | forged()[wrong]
    answer = drive(app, "POST", STATUS, **sent)
    assert (answer.status, answer.body) == (403, b"")
    assert reports.told == []


@pytest.mark.parametrize("right", ["as it is", "previous token", "another order", "a new field", "no number"])
def test_what_the_provider_signed_is_taken(app: Any, reports: Reports, right: str) -> None:
    """The control of the test above."""
    fields = a_status()
    if right == "another order":
        fields = dict(reversed(fields.items()))
    if right == "a new field":
        fields |= {"ChannelStatusMessage": "ភាសាខ្មែរ + % 🙏\n"}
    if right == "no number":
        fields = {name: value for name, value in fields.items() if name not in ("To", "From")}
    token = PREVIOUS_TOKEN if right == "previous token" else TOKEN
    assert post(app, fields, token=token).status == 204
    assert len(reports.told) == 1


def test_without_a_token_the_endpoint_is_closed(tmp_path: Path, reports: Reports) -> None:
    known = settings(tmp_path, twilio_token_file=None, twilio_previous_token_file=None)
    app = create_app(known, intake=reports, health=dict, form_key=FORM_KEY)
    assert post(app, a_status(), token=b"").status == 403
    assert reports.told == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_only_a_post_is_a_status(app: Any, method: str) -> None:
    assert drive(app, method, STATUS).status == 405


def test_a_text_message_is_no_status_and_a_status_no_text_message(app: Any, reports: Reports) -> None:
    """Each is signed for the other's address, so that only the fields are missing."""
    as_status, as_text = an_sms(), a_status()
    one = drive(app, "POST", STATUS, headers=sms_headers(sign(as_status, url=HOST + STATUS)), body=encode(as_status))
    other = drive(app, "POST", SMS, headers=sms_headers(sign(as_text)), body=encode(as_text))
    assert (one.status, other.status) == (403, 403)
    assert (reports.told, reports.stored) == ([], {})


# --- down to the row, on both databases ---


@pytest.fixture
def scene(sessions: Sessions) -> Scene:
    return Scene(a_world(sessions, people={}))


@pytest.fixture
def whole(scene: Scene, tmp_path: Path) -> Iterator[Any]:
    """The public app over the real intake."""
    writer = Writer(scene.world.sessions)
    yield an_app(tmp_path, scene.world.intake(writer))
    writer.close()


def a_sent_text(scene: Scene, sender: str) -> str:
    """Answer a tip of `sender`; return the provider's id of the answer."""
    scene.now = datetime.now(UTC)
    scene.tip(sender=sender)
    scene.send()
    return next(message.sid for message in scene.carrier.texts() if message.to == sender)


def row_of(scene: Scene, sid: str) -> OutboxJob:
    name = boxes.provider_name(scene.world.founding.row_key, sid)
    with scene.world.sessions.read() as session:
        return session.scalars(select(OutboxJob).where(OutboxJob.sid == name)).one()


def test_statuses_that_are_posted_in_any_order_and_twice_never_go_back(scene: Scene, whole: Any) -> None:
    for number, order in enumerate(permutations(["queued", "sent", "delivered"])):
        sid = a_sent_text(scene, f"+8550000008{number}")
        for status in (*order, *order):
            assert post(whole, a_status(status, sid)).status == 204
        scene.relay.take_reports()
        assert (row_of(scene, sid).state, row_of(scene, sid).report) == (JobState.DONE, "delivered")


def test_a_text_that_was_blocked_later_means_that_its_reader_wants_none(scene: Scene, whole: Any) -> None:
    sid = a_sent_text(scene, READER)
    post(whole, a_status("failed", sid, ErrorCode="21610"))
    scene.relay.take_reports()
    assert row_of(scene, sid).state == JobState.DROPPED
    with scene.world.sessions.read() as session:
        assert session.scalars(select(Contact.opted_out_at)).one() is not None


def test_a_status_is_kept_under_a_name_of_the_text_once(scene: Scene, whole: Any) -> None:
    for _ in range(3):
        assert post(whole, a_status()).status == 204
    with scene.world.sessions.read() as session:
        [kept] = session.scalars(select(ProviderReport)).all()
    assert kept.sid == boxes.provider_name(scene.world.founding.row_key, SID)


def everything(scene: Scene, url: str) -> bytes:
    """Return every value of every row and, on SQLite, the files themselves."""
    parts: list[bytes] = []
    with scene.world.sessions.read() as session:
        for table in metadata.sorted_tables:
            for row in session.execute(table.select()):
                parts += [value if isinstance(value, bytes) else str(value).encode() for value in row]
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        parts += [file.read_bytes() for file in path.parent.glob(path.name + "*")]
    return b"\n".join(parts)


def test_whom_a_text_went_to_stands_nowhere_in_the_database(scene: Scene, whole: Any, database_url: str) -> None:
    sid = a_sent_text(scene, READER)
    for status in ("sent", "undelivered"):
        post(whole, a_status(status, sid, ErrorCode="30003"))
    scanner = Scanner([READER, READER[1:], sid, NUMBER])
    assert scanner.find(everything(scene, database_url)) == set()
    scene.relay.take_reports()
    assert scanner.find(everything(scene, database_url)) == set()

    write(scene.world.sessions, lambda tx: setattr(tx.scalars(select(OutboxJob)).one(), "report", READER))
    assert scanner.find(everything(scene, database_url)) >= {READER}, "the negative control: what stands there is found"
