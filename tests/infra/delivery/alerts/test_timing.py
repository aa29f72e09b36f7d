"""When messages are sent: at once, outside of quiet hours, or once a day; by the clock of a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, time

import pytest

from infra.delivery.alerts.schedule import Timing, is_zone, send_at, zone_named

BERLIN = "Europe/Berlin"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("timing", "found", "sent"),
    [
        (Timing("UTC"), "2026-03-01 12:00", "2026-03-01 12:00"),
        (Timing(BERLIN, digest_at=time(8)), "2026-03-01 06:59", "2026-03-01 07:00"),
        (Timing(BERLIN, digest_at=time(8)), "2026-03-01 07:00", "2026-03-01 07:00"),
        (Timing(BERLIN, digest_at=time(8)), "2026-03-01 07:01", "2026-03-02 07:00"),
        # The clocks go forward on 29 March 2026, at 01:00 UTC, and back on 25 October.
        (Timing(BERLIN, digest_at=time(8)), "2026-03-28 07:01", "2026-03-29 06:00"),
        (Timing(BERLIN, digest_at=time(2, 30)), "2026-03-29 00:00", "2026-03-29 01:30"),
        (Timing(BERLIN, digest_at=time(2, 30)), "2026-10-24 12:00", "2026-10-25 00:30"),
        (Timing(BERLIN, digest_at=time(2, 30)), "2026-10-25 00:31", "2026-10-26 01:30"),
        (Timing(BERLIN, None, time(20), time(7)), "2026-03-01 12:00", "2026-03-01 12:00"),
        (Timing(BERLIN, None, time(20), time(7)), "2026-03-01 19:00", "2026-03-02 06:00"),
        (Timing(BERLIN, None, time(20), time(7)), "2026-03-02 05:59", "2026-03-02 06:00"),
        (Timing(BERLIN, None, time(20), time(7)), "2026-03-02 06:00", "2026-03-02 06:00"),
        (Timing("UTC", None, time(12), time(13)), "2026-03-01 12:30", "2026-03-01 13:00"),
        (Timing("UTC", None, time(12), time(13)), "2026-03-01 11:59", "2026-03-01 11:59"),
        (Timing("Pacific/Kiritimati", digest_at=time(0)), "2026-03-01 10:00", "2026-03-01 10:00"),
    ],
)
def test_it_is_sent_when_the_clock_of_the_zone_says(timing: Timing, found: str, sent: str) -> None:
    assert send_at(timing, utc(found)) == utc(sent)


def test_a_zone_has_a_name_and_no_other_is_looked_for_on_the_disk() -> None:
    assert is_zone(BERLIN)
    for name in ("Nowhere/Land", "", "../../etc/passwd", "/etc/passwd", "Europe", "a\0b"):
        assert not is_zone(name)
    assert zone_named("Nowhere/Land").key == "UTC"
