"""The figures: how things stand by the clock, and how they went day by day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from api.stats import median_s
from projections import VIEWS
from tests.api.world import OTHER_ACCOUNT, World, campaign, days, refused, told

TODAY = "%Y-%m-%d"
NONE = {"generated": 0, "shared": 0, "redeemed": 0, "superseded": 0, "expired": 0, "revoked": 0}


def day(number: int) -> str:
    """Return the day so many days from today, in UTC."""
    return (datetime.now(UTC) + timedelta(days=number)).strftime(TODAY)


def read_days(world: World, **query: Any) -> dict[str, dict[str, Any]]:
    """Return the figures by day."""
    content = told(world.client.get("/v1/stats/days", params={"at_least": world.head()} | query), 200)
    return {entry.pop("day"): entry for entry in content["days"]}


def test_the_figures_count_what_is_there(world: World) -> None:
    world.redeem(world.generate())
    revoked = world.generate()
    told(world.client.post(f"/v1/codes/{revoked['code_id']}/revocation", json={"reason": "why"}), 200)
    body = {"secret": revoked["secret"], "advertiser_id": OTHER_ACCOUNT}
    assert refused(world.client.post("/v1/redemptions", json=body)) == (409, "code_revoked")
    world.generate(days=7)
    world.generate(starts_at=days(-60))
    old = world.generate()
    world.generate(video_id=old["video_id"], secret="#its/successor+0123456789", supersedes=old["code_id"])
    assert world.client.post("/v1/codes/lookup", json={"secret": "nobody-made-this"}).status_code == 404

    head = world.head()
    answer = world.client.get("/v1/stats", params={"at_least": head})
    figures = told(answer, 200)

    assert figures["codes"] == NONE | {"generated": 2, "redeemed": 1, "superseded": 1, "expired": 1, "revoked": 1}
    assert figures["expiring"] == {"within_7_days": 1, "within_14_days": 1, "within_30_days": 4}
    assert (figures["redemptions"], figures["refusals"]) == (1, {"code_revoked": 1})
    assert figures["refused_attempts"] == {"code_unknown": 1}
    assert head <= figures["position"] <= world.head(), "the clock may record the expiry meanwhile"
    assert {each.name for each in VIEWS} <= {view["view"] for view in figures["views"]}
    assert int(answer.headers["ledger-position"]) >= head


def test_a_view_that_lags_or_has_stopped_is_told_with_its_reason(world: World) -> None:
    position = world.generate()["position"]
    world.client.get("/v1/shares", params={"at_least": position})
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        ours = connection.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (world.server.ledger,)).fetchone()
        ledger_id = ours[0] if ours else None
        connection.execute(
            "INSERT INTO view_versions (view, version, state, error, failed_ledger_id, failed_position)"
            " VALUES ('of_this_test', 1, 'failed', 'KeyError: why', %s, 2)",
            (ledger_id,),
        )
        connection.execute(
            "INSERT INTO view_positions (view, version, ledger_id, position) VALUES ('of_this_test', 1, %s, 1)",
            (ledger_id,),
        )
        try:
            told_here = told(world.client.get("/v1/stats"), 200)["views"]
            told_elsewhere = told(world.another().client.get("/v1/stats"), 200)["views"]
        finally:
            connection.execute("DELETE FROM view_versions WHERE view = 'of_this_test'")
            connection.execute("DELETE FROM view_positions WHERE view = 'of_this_test'")

    (stopped,) = [view for view in told_here if view["view"] == "of_this_test"]
    assert stopped.pop("lag_seconds") > 0
    assert stopped == {
        "view": "of_this_test",
        "state": "failed",
        "position": 1,
        "lag": position - 1,
        "error": "KeyError: why",
        "stopped_before": 2,
    }
    (elsewhere,) = [view for view in told_elsewhere if view["view"] == "of_this_test"]
    assert (elsewhere["state"], elsewhere["error"], elsewhere["stopped_before"]) == ("failed", None, None)
    (shares,) = [view for view in told_here if view["view"] == "shares"]
    assert (shares["lag"], shares["lag_seconds"], shares["error"]) == (0, 0, None)


def test_the_days_tell_how_things_went(world: World) -> None:
    imported = world.generate(starts_at=days(-10))
    redemption = {"secret": imported["secret"], "advertiser_id": OTHER_ACCOUNT, "effective_at": days(-3)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    launch = campaign("campaign-1", OTHER_ACCOUNT) | {"ends_at": days(25)}
    told(world.client.post(f"/v1/codes/{imported['code_id']}/campaigns", json=launch), 201)
    assert world.client.post("/v1/codes/lookup", json={"secret": "nobody-made-this"}).status_code == 404

    figures = read_days(world, **{"from": day(-11), "to": day(20)})

    assert list(figures) == [day(number) for number in range(-11, 21)]
    states = [next((s for s, n in entry["codes"].items() if n), None) for entry in figures.values()]
    assert states == [None, *["generated"] * 7, *["redeemed"] * 23, "expired"]
    assert figures[day(-10)]["issued"] == 1
    assert figures[day(-3)]["redemptions"] == 1
    assert figures[day(-3)]["issue_to_redemption"] == {
        "count": 1,
        "median_seconds": 8.5 * 24 * 3600,
        "buckets": {str(10 * 24 * 3600): 1},
    }
    assert figures[day(0)]["campaigns"] == {"launched": 1, "stopped": {}}
    assert figures[day(20)]["campaigns"] == {"launched": 0, "stopped": {"window_end": 1}}
    assert figures[day(20)]["windows_ended"] == 1
    assert figures[day(0)]["refused_attempts"] == {"code_unknown": 1}


def test_without_a_range_the_days_are_the_last_thirty_and_today(world: World) -> None:
    assert list(read_days(world)) == [day(number) for number in range(-30, 1)]
    assert list(read_days(world, to=day(-400))) == [day(number) for number in range(-430, -399)]


def test_the_states_of_today_are_those_of_now(world: World) -> None:
    world.generate(starts_at=days(-6.999), days=7)
    assert read_days(world, **{"from": day(0)})[day(0)]["codes"] == NONE | {"generated": 1}


def test_days_are_answered_as_they_were_known(world: World) -> None:
    world.permit(effective_at=days(-9))
    code = world.generate(starts_at=days(-6))
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    query: dict[str, Any] = {"from": day(-7), "to": day(0), "at_least": world.head()}
    now = told(world.client.get("/v1/stats/days", params=query), 200)
    assert now["days"][-1]["codes"] == NONE | {"revoked": 1}
    yesterday = told(world.client.get("/v1/stats/days", params=query | {"as_of": day(-1)}), 200)
    assert [one["codes"] for one in yesterday["days"]] == [NONE] * 8, "nothing was recorded by then"
    assert yesterday["position"] == 0
    for wrong in (day(0), day(1), "2026-3-1", days(-2)):
        asked = world.client.get("/v1/stats/days", params={"as_of": wrong})
        assert refused(asked) == (400, "malformed_query")


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"from": "2026-01-01", "to": "2027-02-05"},
        {"from": "2026-02-30"},
        {"from": "2026-3-1"},
        {"from": "20260301"},
        {"from": "2026-W10-1"},
        {"from": "1999-12-31"},
        {"to": "2100-01-01"},
        {"from": "2026-03-01T00:00:00Z"},
        {"days": "7"},
    ],
)
def test_a_malformed_range_is_refused(world: World, query: dict[str, str]) -> None:
    assert refused(world.client.get("/v1/stats/days", params=query)) == (400, "malformed_query")


def test_four_hundred_days_are_answered(world: World) -> None:
    assert len(read_days(world, **{"from": "2026-01-01", "to": "2027-02-04"})) == 400


def test_another_ledgers_figures_are_hidden(world: World) -> None:
    world.generate()
    figures = told(world.another().client.get("/v1/stats"), 200)
    assert figures["codes"] == NONE


@pytest.mark.parametrize(
    ("buckets", "median"),
    [
        ({}, None),
        ({"60": 1}, 30),
        ({"60": 2, "300": 2}, 60),
        ({"60": 1, "300": 2}, 60 + 240 / 4),
        ({"60": 1, "longer": 2}, 365 * 24 * 3600),
    ],
)
def test_a_median_lies_in_the_bucket_that_halves_them(buckets: dict[str, int], median: float | None) -> None:
    assert median_s(buckets) == median
