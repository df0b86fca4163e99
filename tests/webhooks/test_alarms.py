"""Alarms are loud once and never flood."""

from structlog.testing import capture_logs

from service.metrics import BAD_SIGNATURE, GOOD_SIGNATURE
from webhooks.alarms import REQUEST_SHED, WEBHOOK_REFUSED, Alarms


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_is_one_line_in_ten_seconds_which_says_how_many():
    clock, noticed = Clock(), []
    alarms = Alarms(noticed.append, clock=clock)

    with capture_logs() as lines:
        for second in range(100):
            clock.now = second / 5
            alarms.ring(WEBHOOK_REFUSED, "wrong signature")
        alarms.ring(WEBHOOK_REFUSED, "query string")
        alarms.ring(REQUEST_SHED, "page")

    assert [(line["event"], line["kind"], line["count"]) for line in lines] == [
        (BAD_SIGNATURE, "wrong signature", 1),
        (BAD_SIGNATURE, "wrong signature", 50),
        (BAD_SIGNATURE, "query string", 1),
        (REQUEST_SHED, "page", 1),
    ]
    assert noticed == [BAD_SIGNATURE] * 3 + [REQUEST_SHED]


def test_a_good_signature_is_noted_once_a_minute_and_not_logged():
    clock, noticed = Clock(), []
    alarms = Alarms(noticed.append, clock=clock)

    with capture_logs() as lines:
        for second in (0, 1, 59, 60, 61):
            clock.now = second
            alarms.good_signature()

    assert noticed == [GOOD_SIGNATURE] * 2
    assert lines == []
