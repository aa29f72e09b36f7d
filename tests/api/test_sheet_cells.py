"""Cells as people write them: read as what they say, or as unclear."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from api.sheet_cells import Reading, Unclear, facts_of, stated_time
from api.sheet_columns import Field
from domain.campaign import Share
from domain.sheet_rows import StatedTime

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROW: dict[Field, str] = {
    "secret": "#k9/Tz+example+of+a+code==",
    "video_id": "https://www.tiktok.com/@Ana.Creates/video/7312345678901234567?_r=1",
    "creator_id": "@Ana.Creates",
    "starts_at": "2026-04-01",
    "expires_at": "2026-04-30",
    "terms_version": "2026-01",
}


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type] # the parts of a time


@pytest.mark.parametrize(
    "text",
    [
        *(
            "2026-04-20",
            "2026/04/20",
            "2026.4.20",
            "2026年4月20日",
            "20.04.2026",
            "20.4.2026",
            "20/04/2026",
            "04/20/2026",
        ),
        *("20-04-2026", "Apr 20, 2026", "April 20 2026", "20 April 2026", "20. April 2026", "20-Apr-2026", "46132"),
        *("20 de abril de 2026", "20 avril 2026", "46132.0", "Apr. 20th, 2026"),
    ],
)
def test_a_day_is_read_in_the_ways_in_which_it_is_written(text: str) -> None:
    assert stated_time(text, None, UTC) == StatedTime(utc(2026, 4, 20), utc(2026, 4, 21))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-10-27 00:00:00", utc(2026, 10, 27)),
        ("2026-10-27T13:30:00Z", utc(2026, 10, 27, 13, 30)),
        ("2026-10-27T13:30:00+02:00", utc(2026, 10, 27, 11, 30)),
        ("27.10.2026 13:30", utc(2026, 10, 27, 13, 30)),
        ("46322.5", utc(2026, 10, 27, 12)),
    ],
)
def test_a_time_is_a_moment_and_no_day(text: str, moment: datetime) -> None:
    assert stated_time(text, None, UTC) == StatedTime(moment, moment)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("03/04/2026", "date_order"),
        ("3-4-2026", "date_order"),
        ("soon", "not_a_day"),
        ("2026-02-30", "not_a_day"),
        ("30.02.2026", "not_a_day"),
        ("20.04.26", "not_a_day"),
        ("1899-01-01", "not_a_day"),
        ("2026", "not_a_day"),
        ("20 Smarch 2026", "not_a_day"),
    ],
)
def test_what_is_ambiguous_or_no_day_is_not_guessed(text: str, why: str) -> None:
    assert stated_time(text, None, UTC) == why


def test_whoever_imports_states_the_order_of_day_and_month() -> None:
    april, march = utc(2026, 4, 3), utc(2026, 3, 4)
    assert stated_time("03/04/2026", "dmy", UTC) == StatedTime(april, april + DAY)
    assert stated_time("03/04/2026", "mdy", UTC) == StatedTime(march, march + DAY)
    assert stated_time("20/04/2026", "mdy", UTC) == "not_a_day"


def test_days_are_those_of_the_time_zone() -> None:
    zone = ZoneInfo("America/Los_Angeles")
    # On that day the clocks go forward.
    assert stated_time("2026-03-08", None, zone) == StatedTime(utc(2026, 3, 8, 8), utc(2026, 3, 9, 7))
    assert stated_time("2026-03-08 12:00:00", None, zone) == StatedTime(utc(2026, 3, 8, 19), utc(2026, 3, 8, 19))


def test_a_row_says_what_its_cells_say() -> None:
    facts = facts_of(
        ROW
        | {
            "permission": "✓",
            "brand_id": "acme",
            "channel": "E-Mail",
            "shared_at": "2026-04-02",
            "advertiser_id": "adv-7001",
            "note": "Paid",
        },
        Reading(),
        NOW,
    )
    assert (facts.secret, facts.video_id, facts.creator_id) == (ROW["secret"], "7312345678901234567", "Ana.Creates")
    assert (facts.begins, facts.ends) == (utc(2026, 4, 1), utc(2026, 5, 1))
    assert (facts.permission, facts.share, facts.shared_at) == (
        True,
        Share("acme", "email", "adv-7001"),
        StatedTime(utc(2026, 4, 2), utc(2026, 4, 3)),
    )
    assert (facts.terms_version, facts.terms_stated, str(facts.note)) == ("2026-01", True, "Paid")


def test_the_link_names_the_creator_where_the_row_does_not() -> None:
    assert facts_of({k: v for k, v in ROW.items() if k != "creator_id"}, Reading(), NOW).creator_id == "ana.creates"


def test_a_length_stands_in_its_own_column_or_in_that_of_the_end_or_is_stated_for_all() -> None:
    without: dict[Field, str] = {name: cell for name, cell in ROW.items() if name != "expires_at"}
    for facts in (
        facts_of(without | {"days": "30"}, Reading(), NOW),
        facts_of(without | {"expires_at": "30 days"}, Reading(), NOW),
        facts_of(without | {"expires_at": "30天"}, Reading(), NOW),
        facts_of(without, Reading(length=30 * DAY), NOW),
    ):
        assert (facts.begins, facts.ends) == (utc(2026, 4, 1), utc(2026, 5, 1))


def test_an_end_without_a_start_is_enough_while_the_code_may_still_be_used() -> None:
    row: dict[Field, str] = {name: cell for name, cell in ROW.items() if name != "starts_at"}
    assert facts_of(row | {"expires_at": "2026-07-01"}, Reading(), NOW).begins is None
    assert facts_of(row, Reading(length=30 * DAY), NOW).begins == utc(2026, 4, 1)
    assert facts_of(row | {"noted_at": "2026-04-03"}, Reading(), NOW).generated_by(NOW) == utc(2026, 4, 3)


def test_the_video_of_a_code_that_is_known_may_look_rounded() -> None:
    row: dict[Field, str] = {"code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20", "creator_id": "ana"}
    facts = facts_of(row | {"video_id": "7312345678901230000"}, Reading(), NOW)
    assert (facts.secret, facts.video_id, str(facts.code_id)) == (None, "7312345678901230000", row["code_id"])


UNCLEAR: list[tuple[dict[str, str | None], Field, str]] = [
    ({"secret": None}, "secret", "no_code"),
    ({"secret": "two codes"}, "secret", "sentence"),
    ({"secret": "#N/A"}, "secret", "too_short"),
    ({"secret": "https://www.tiktok.com/@a/video/7312345678901234567"}, "secret", "video_link"),
    ({"video_id": None}, "video_id", "no_video"),
    ({"video_id": "https://vm.tiktok.com/ZM1/"}, "video_id", "short_link"),
    ({"video_id": "7312345678901230000"}, "video_id", "rounded_by_spreadsheet"),
    ({"video_id": "7.31235E+18"}, "video_id", "rounded_by_spreadsheet"),
    ({"creator_id": "Ana Miller"}, "creator_id", "not_a_creator_id"),
    ({"creator_id": None, "video_id": "7312345678901234567"}, "creator_id", "no_creator"),
    ({"creator_id": "ben"}, "creator_id", "link_names_other"),
    ({"expires_at": None}, "expires_at", "no_end"),
    ({"expires_at": "03/04/2026"}, "expires_at", "date_order"),
    ({"expires_at": "2026-03-01"}, "expires_at", "ends_first"),
    ({"starts_at": None}, "starts_at", "no_start"),
    ({"days": "a month"}, "days", "not_a_length"),
    ({"days": "9999"}, "days", "not_a_length"),
    ({"noted_at": "2027-01-01"}, "noted_at", "in_the_future"),
    ({"permission": "✗"}, "permission", "permission_off"),
    ({"permission": "maybe"}, "permission", "not_yes_or_no"),
    ({"terms_version": None}, "terms_version", "no_terms"),
    ({"terms_version": "#k9/Tz+example+of+a+code=="}, "terms_version", "contains_secret"),
    ({"brand_id": "Acme Cosmetics"}, "brand_id", "not_an_id"),
    ({"brand_id": "acme", "channel": "pigeon"}, "channel", "not_a_channel"),
    ({"brand_id": "acme"}, "shared_at", "no_share_date"),
    ({"advertiser_id": "adv-1"}, "advertiser_id", "account_alone"),
    ({"redeemed_at": "2026-04-02"}, "advertiser_id", "no_account"),
    ({"reason": "Wrong post"}, "revoked_at", "no_revocation_date"),
    ({"note": "x" * 4_001}, "note", "too_long"),
]


@pytest.mark.parametrize(("changed", "field", "reason"), UNCLEAR)
def test_a_row_that_leaves_open_what_it_means_is_unclear(changed: dict[str, Any], field: Field, reason: str) -> None:
    cells = {name: cell for name, cell in (ROW | changed).items() if cell is not None}
    with pytest.raises(Unclear) as unclear:
        facts_of(cells, Reading(), NOW)  # type: ignore[arg-type] # the names are those of fields
    assert (unclear.value.field, unclear.value.reason) == (field, reason)
    assert unclear.value.sentence.endswith((".", "dmy or mdy."))
