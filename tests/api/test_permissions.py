"""Permissions over HTTP: switched, read as they are and as they were known, and listed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from infra.eventstore.aggregate_reader import AggregateReader
from tests.api.listing import listed
from tests.api.world import OTHER_CREATOR, OWN_CREATOR, World, days, told


def test_a_permission_tells_how_many_codes_stay_live_when_it_goes_off(world: World) -> None:
    world.generate()
    world.generate()

    answer = told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False}), 200)

    assert answer == {"creator_id": OWN_CREATOR, "enabled": False, "live_codes": 2, "version": 2, "position": 4}


def test_a_permission_that_is_on_already_tells_how_many_codes_are_live_now(world: World) -> None:
    world.generate()

    again = told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}), 200)

    assert (again["live_codes"], again["version"], again["position"]) == (1, 1, 1)


def test_switching_off_a_creator_nobody_knows_records_nothing(world: World) -> None:
    answer = told(world.client.put("/v1/creators/nobody/permission", json={"enabled": False}), 200)

    assert answer == {"creator_id": "nobody", "enabled": False, "live_codes": 0, "version": 0, "position": 0}
    assert world.head() == 0


def test_a_permission_reads_as_it_is_and_as_it_was_known(world: World) -> None:
    on = world.permit()
    world.generate()
    off = world.permit(enabled=False)
    path = f"/v1/creators/{OWN_CREATOR}/permission"

    now = told(world.client.get(path, params={"at_least": off["position"]}), 200)
    then = told(world.client.get(path, params={"as_of": on["position"]}), 200)
    before = told(world.client.get(path, params={"as_of": 0}), 200)
    unknown = told(world.client.get("/v1/creators/nobody/permission"), 200)

    assert {**now, "as_of": None} == {**off, "as_of": None}
    assert then == {**on, "as_of": on["position"]}
    assert (before["enabled"], before["version"]) == (False, 0)
    assert (unknown["enabled"], unknown["version"], unknown["live_codes"], unknown["position"]) == (False, 0, 0, 0)


def test_a_permission_counts_the_codes_that_are_live_now_as_it_counts_those_that_were(world: World) -> None:
    world.generate()
    ended = world.generate(starts_at=days(-40))
    revoked = world.generate()
    told(world.client.post(f"/v1/codes/{revoked['code_id']}/revocation", json={"reason": "why"}), 200)
    lapsed = world.generate(starts_at=days(-40), days=60)
    world.generate(OTHER_CREATOR)
    world.share(lapsed)
    path, head = f"/v1/creators/{OWN_CREATOR}/permission", world.head()

    now = told(world.client.get(path, params={"at_least": head}), 200)

    assert now["live_codes"] == 2
    assert now == told(world.client.get(path, params={"as_of": head}), 200) | {"as_of": now["as_of"]}
    assert now == told(world.client.get(path, params={"at": days(0)}), 200) | {"as_of": now["as_of"]}
    assert told(world.client.get(path, params={"as_of": ended["position"]}), 200)["live_codes"] == 1


def test_a_permission_as_it_stands_is_read_without_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.generate()
    path, head = f"/v1/creators/{OWN_CREATOR}/permission", world.head()
    monkeypatch.delattr(AggregateReader, "live_codes")
    assert told(world.client.get(path, params={"at_least": head}), 200)["live_codes"] == 1


def test_permissions_are_listed_by_when_they_were_last_switched(world: World) -> None:
    world.permit(OTHER_CREATOR)
    world.permit(effective_at=days(-10))
    body = {"enabled": False, "effective_at": days(-5)}
    off = told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json=body), 200)

    def found(client: httpx.Client | None = None, **query: Any) -> list[str]:
        return [entry["creator_id"] for entry in listed(world, "permissions", client, **query)]

    (_, own) = listed(world, "permissions")
    assert own == {
        "creator_id": OWN_CREATOR,
        "enabled": False,
        "since": own["since"],
        "version": 2,
        "position": off["position"],
    }
    assert found() == [OTHER_CREATOR, OWN_CREATOR]
    assert (found(enabled="true"), found(enabled="false")) == ([OTHER_CREATOR], [OWN_CREATOR])
    last_week: dict[str, Any] = {"from": days(-6), "to": days(-4)}
    assert found(**last_week) == [OWN_CREATOR]
    assert found(world.creator()) == [OWN_CREATOR]
    first = told(world.client.get("/v1/permissions", params={"limit": 1}), 200)
    rest = told(world.client.get("/v1/permissions", params={"cursor": first["next"]}), 200)
    assert [entry["creator_id"] for entry in rest["permissions"]] == [OWN_CREATOR]
    assert rest["next"] is None
    assert world.brand().get("/v1/permissions").status_code == 403
