"""Calendars as other programs read them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import icalendar

from infra.delivery.alerts.calendar_text import LINE_OCTETS, calendar_text, etag
from projections.codes import CodeRow

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOG = UUID(int=7)
ROW = CodeRow(
    ledger_id=1,
    code_id=UUID(int=1),
    creator_id="ana.creates",
    creator_stream=UUID(int=2),
    video_id="7312345678901234567",
    masked="…wxyz",
    terms_version="1",
    starts_at=NOW,
    start_stated=True,
    expires_at=NOW + timedelta(days=30),
    extended_at=None,
    rights_until=None,
    rights_at=None,
    rights=None,
    generated_at=NOW,
    generated_position=2,
    revoked_at=None,
    superseded_at=None,
    superseded_by=None,
    supersedes=None,
    version=1,
    stream_version=1,
    position=2,
    brand_ids=set(),
    advertiser_ids=set(),
    was_shared=False,
    was_redeemed=False,
    refusal_count=0,
)


def events(*rows: CodeRow, name: str = "Spark codes: main") -> list[dict[str, Any]]:
    """Return the events of a calendar as another program understands them."""
    calendar = icalendar.Calendar.from_ical(calendar_text(rows, name, LOG, "https://c.example"))
    assert calendar["VERSION"] == "2.0"
    assert calendar["X-WR-CALNAME"] == name
    return [
        {
            "uid": str(event["UID"]),
            "sequence": int(str(event["SEQUENCE"])),
            "status": str(event["STATUS"]),
            "start": event.decoded("DTSTART"),
            "stamp": event.decoded("DTSTAMP"),
            "summary": str(event["SUMMARY"]),
            "description": str(event["DESCRIPTION"]),
            "url": str(event["URL"]),
        }
        for event in calendar.walk("VEVENT")
    ]


def test_an_end_is_an_event_of_its_moment_with_a_link_to_the_video() -> None:
    code = f"https://c.example/codes/{ROW.code_id}"
    assert events(ROW) == [
        {
            "uid": f"{ROW.code_id}@{LOG}",
            "sequence": 1,
            "status": "CONFIRMED",
            "start": ROW.expires_at,
            "stamp": NOW,
            "summary": "Spark code of ana.creates ends",
            "description": "Video: https://www.tiktok.com/@ana.creates/video/7312345678901234567\n"
            f"Ends: 2026-03-31 12:00 UTC\nPage: {code}",
            "url": code,
        }
    ]


def test_an_extension_moves_the_same_event_and_a_revocation_takes_it_away() -> None:
    longer = replace(ROW, expires_at=NOW + timedelta(days=60), extended_at=NOW + timedelta(days=1), version=2)
    revoked = replace(longer, revoked_at=NOW + timedelta(days=2), version=3)
    (before,), (after,), (gone,) = events(ROW), events(longer), events(revoked)
    assert before["uid"] == after["uid"] == gone["uid"]
    assert (after["sequence"], after["start"]) == (2, NOW + timedelta(days=60))
    assert (gone["sequence"], gone["status"], gone["summary"]) == (
        *(3, "CANCELLED"),
        "Revoked: Spark code of ana.creates ends",
    )


def test_nothing_in_a_text_adds_a_line_and_long_lines_are_folded_between_characters() -> None:
    name = "Ümläute; commas, back\\slashes " * 6
    written = calendar_text([replace(ROW, creator_id=f"{name}\r\nX-BAD:1")], f"{name}\r\nX-BAD:1", LOG, None)
    lines = written.split(b"\r\n")
    assert all(len(line) <= LINE_OCTETS for line in lines)
    assert [line.decode() for line in lines if line.startswith(b"X-BAD")] == []
    (event,) = icalendar.Calendar.from_ical(written).walk("VEVENT")
    assert str(event["SUMMARY"]) == f"Spark code of {name}\nX-BAD:1 ends"


def test_no_secret_of_a_code_is_written_not_even_its_mask() -> None:
    assert "wxyz" not in calendar_text([ROW], "Spark codes", LOG, None).decode()


def test_a_tag_changes_with_what_is_written() -> None:
    tag = etag([ROW], "name", None)
    assert tag == etag([replace(ROW)], "name", None)
    for other in (
        etag([replace(ROW, version=2)], "name", None),
        etag([replace(ROW, expires_at=NOW)], "name", None),
        etag([replace(ROW, revoked_at=NOW)], "name", None),
        etag([], "name", None),
        etag([ROW], "other", None),
        etag([ROW], "name", "https://c.example"),
    ):
        assert other != tag


def test_usage_rights_that_end_before_the_code_move_its_event_and_say_so() -> None:
    rights = {"platforms": None, "edits_allowed": None}
    stated = replace(
        ROW, rights_until=NOW + timedelta(days=9), rights_at=NOW + timedelta(days=1), rights=rights, version=2
    )
    (event,) = events(stated)
    assert (event["start"], event["stamp"], event["sequence"]) == (stated.rights_until, stated.rights_at, 2)
    assert event["summary"] == "Usage rights to a Spark code of ana.creates end"
    assert event["description"].splitlines()[1:3] == [
        "Ends: 2026-03-10 12:00 UTC",
        "The code ends later: 2026-03-31 12:00 UTC",
    ]
    assert events(replace(stated, rights_until=NOW + timedelta(days=90)))[0]["start"] == ROW.expires_at
