"""What was recorded late: `effective_at` in commands."""

from __future__ import annotations

from tests.api.world import OWN_CREATOR, World, days, refused, told


def test_what_happened_earlier_is_recorded_with_its_own_time(world: World) -> None:
    world.permit()
    world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False, "effective_at": days(-2)})

    events = told(world.client.get("/v1/events"), 200)["events"]

    assert events[-1]["effective_at"] < events[0]["effective_at"]
    assert events[-1]["recorded_at"] > events[0]["recorded_at"]


def test_nothing_takes_effect_in_the_future(world: World) -> None:
    answer = world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True, "effective_at": days(1)})
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"][0]["pointer"] == "/effective_at"
