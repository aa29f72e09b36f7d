"""What queries may not hold: malformed, repeated, unknown or impossible parameters."""

from __future__ import annotations

import pytest

from tests.api.world import World, days, refused


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"as_of": days(1)}, "malformed_query"),
        ({"as_of": "yesterday"}, "malformed_query"),
        ({"as_of": "-1"}, "malformed_query"),
        ({"as_of": str(10**30)}, "malformed_query"),
        ({"at": "2026-03-01"}, "malformed_query"),
        ({"at": "2026-03-01T12:00:00"}, "malformed_query"),
        ({"at": "1999-12-31T12:00:00Z"}, "malformed_query"),
        ({"version": "0"}, "malformed_query"),
        ({"version": "1.0"}, "malformed_query"),
        ({"version": "1_0"}, "malformed_query"),
        ({"at_least": "-1"}, "malformed_query"),
        ({"as_off": "1"}, "malformed_query"),
    ],
)
def test_a_malformed_query_is_refused(world: World, query: dict[str, str], code: str) -> None:
    known = world.generate()
    answer = world.client.get(f"/v1/codes/{known['code_id']}", params=query)
    assert refused(answer) == (400, code)


@pytest.mark.parametrize(
    ("path", "query", "problem"),
    [
        ("/v1/codes", {"limit": "9" * 20}, "The maximum is 1,000."),
        ("/v1/codes", {"at_least": "9" * 99}, "The maximum is 4,611,686,018,427,387,904."),
        ("/v1/creators/ana/permission", {"as_of": "9" * 20}, "No ledger can have this position."),
        ("/v1/codes", {"limit": "9" * 6_000}, "Expected a whole number, 0 or greater."),
        ("/v1/events", {"code_id": "\N{BLACK HEART SUIT}"}, "Expected the id of a code, which is a UUID."),
        ("/v1/shares", {"code_id": "z"}, "Expected the id of a code, which is a UUID."),
        ("/v1/accesses", {"actor": "ada"}, "Expected the id of a key, or `machine`."),
        (
            "/v1/stats/days",
            {"from": "2099-12-31"},
            "This day is in the future. Send `to` as well. Its default is today.",
        ),
    ],
)
def test_what_is_wrong_with_a_parameter_is_said_without_showing_it(
    world: World, path: str, query: dict[str, str], problem: str
) -> None:
    answer = world.client.get(path, params=query)
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["errors"] == [{"pointer": f"/{next(iter(query))}", "problem": problem}]


def test_a_parameter_sent_twice_is_refused(world: World) -> None:
    known, unknown = (world.client.get(f"/v1/codes?{query}") for query in ("limit=1&limit=2", "sekret=1&sekret=2"))
    assert refused(known) == refused(unknown) == (400, "malformed_query")
    assert known.json()["detail"] == "The parameter `limit` was sent more than once."
    assert unknown.json()["detail"] == "A query parameter was sent more than once."


def test_more_parameters_than_there_are_is_refused(world: World) -> None:
    answer = world.client.get("/v1/codes?" + "&".join(f"p{number}=1" for number in range(51)))
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["detail"] == "The query has more than 50 parameters."


@pytest.mark.parametrize(
    ("path", "query", "pointer", "problem"),
    [
        (
            "/v1/codes",
            {"order": "ending", "state": "revoked"},
            "/state",
            "`order=ending` lists only codes that are neither expired nor revoked.",
        ),
        (
            "/v1/codes",
            {"order": "ending", "state": "expired"},
            "/state",
            "`order=ending` lists only codes that are neither expired nor revoked.",
        ),
        (
            "/v1/redemptions",
            {"refused": "false", "reason": "code_expired"},
            "/reason",
            "Only refused attempts have a reason. Leave out `refused=false`.",
        ),
        (
            "/v1/redemptions",
            {"refused": "true", "shared": "true"},
            "/shared",
            "Only successful redemptions have this. It cannot be combined with filters for refused attempts.",
        ),
        (
            "/v1/redemptions",
            {"reason": "code_expired", "shared": "false"},
            "/shared",
            "Only successful redemptions have this. It cannot be combined with filters for refused attempts.",
        ),
    ],
)
def test_filters_that_nothing_can_meet_together_are_refused(
    world: World, path: str, query: dict[str, str], pointer: str, problem: str
) -> None:
    answer = world.client.get(path, params=query)
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["errors"] == [{"pointer": pointer, "problem": problem}]


RANGES = [
    ("/v1/permissions", "from", "to"),
    ("/v1/shares", "from", "to"),
    ("/v1/redemptions", "from", "to"),
    ("/v1/campaigns", "stops_from", "stops_before"),
    ("/v1/events", "from", "to"),
    ("/v1/exports/events", "from", "to"),
    ("/v1/accesses", "from", "to"),
    ("/v1/codes", "live_at", "expires_before"),
]


@pytest.mark.parametrize(("path", "since", "until"), RANGES)
def test_a_range_that_holds_nothing_is_refused_by_every_list(world: World, path: str, since: str, until: str) -> None:
    for first, end in ((days(-1), days(-2)), (days(-1),) * 2):
        answer = world.client.get(path, params={since: first, until: end})
        problem = f"This must be later than `{since}`: this range is empty."
        assert refused(answer) == (400, "malformed_query")
        assert answer.json()["errors"] == [{"pointer": f"/{until}", "problem": problem}]
