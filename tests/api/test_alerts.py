"""The routes of alerts: whose they are, what is shown and sealed, what is refused; what is sent is tested elsewhere."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.world import OTHER_CREATOR, OWN_CREATOR, World, refused, told

ADDRESS = "nobody.in.particular@brand.example"


def create(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    """Create a rule that sends nothing."""
    body = {"kind": "ending", "channel": "email", "address": ADDRESS, "enabled": False} | asked
    return told(client.post("/v1/alerts", json=body), 201)


def test_a_rule_is_shown_whole_to_its_owner(world: World) -> None:
    client = world.as_role("operator")
    timing = {"zone": "Europe/Berlin", "digest_at": "08:00", "quiet_from": "20:00", "quiet_until": "07:30"}
    rule = create(client, days=[1, 14, 14], creator_id="@Ana.Creates", name="The desk", **timing)
    assert rule | {"rule_id": "", "key_id": "", "created_at": "", "disabled_at": ""} == timing | {
        "rule_id": "",
        "key_id": "",
        "created_at": "",
        "kind": "ending",
        "days": [14, 1],
        "creator_id": "ana.creates",
        "brand_id": None,
        "advertiser_id": None,
        "channel": "email",
        "address": ADDRESS,
        "name": "The desk",
        "enabled": False,
        "disabled": "asked",
        "disabled_at": "",
        "waiting": 0,
        "dead": 0,
        "sent": 0,
        "failed": 0,
        "sent_at": None,
        "failed_at": None,
        "error": None,
    }
    assert told(client.get(f"/v1/alerts/{rule['rule_id']}"), 200) == rule
    assert told(client.get("/v1/alerts"), 200) == {"alerts": [rule]}
    assert told(world.client.get("/v1/alerts"), 200) == {"alerts": [rule]}
    stranger = world.as_role("operator")
    assert told(stranger.get("/v1/alerts"), 200) == {"alerts": []}
    assert refused(stranger.get(f"/v1/alerts/{rule['rule_id']}")) == (404, "alert_unknown")


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"kind": "nonsense"}, "/kind"),
        ({"days": [2]}, "/days"),
        ({"days": []}, "/days"),
        ({"kind": "refused_attempts", "days": [7]}, "/days"),
        ({"creator_id": "a", "brand_id": "b"}, "/brand_id"),
        ({"kind": "stopped", "creator_id": "a"}, "/creator_id"),
        ({"zone": "Nowhere/Land"}, "/zone"),
        ({"zone": "../../etc/passwd"}, "/zone"),
        ({"digest_at": "8:00"}, "/digest_at"),
        ({"digest_at": "24:00"}, "/digest_at"),
        ({"quiet_from": "20:00"}, "/quiet_until"),
        ({"quiet_from": "20:00", "quiet_until": "20:00"}, "/quiet_until"),
        ({"quiet_from": "20:00", "quiet_until": "07:00", "digest_at": "06:00"}, "/digest_at"),
        ({"address": "nobody"}, "/address"),
        ({"address": "a@brand.example, b@brand.example"}, "/address"),
        ({"address": "a@brand.example\r\nBcc: b@brand.example"}, "/address"),
        ({"address": "a b@brand.example"}, "/address"),
        ({"address": "a..b@brand.example"}, "/address"),
        ({"address": "a@elsewhere.example"}, "/address"),
        ({"address": f"{'a' * 250}@brand.example"}, "/address"),
        ({"channel": "chat", "address": "http://chat.example/hook"}, "/address"),
    ],
)
def test_what_cannot_be_reported_or_sent_is_refused(world: World, asked: dict[str, Any], pointer: str) -> None:
    body = {"kind": "ending", "channel": "email", "address": ADDRESS} | asked
    answer = world.client.post("/v1/alerts", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert "elsewhere" not in answer.text


def test_a_key_makes_rules_about_those_it_acts_for(world: World) -> None:
    assert create(world.creator(), creator_id=OWN_CREATOR)["creator_id"] == OWN_CREATOR
    body = {"kind": "ending", "channel": "email", "address": ADDRESS}
    for client, asked in (
        (world.creator(), {"creator_id": OTHER_CREATOR}),
        (world.brand(), {"brand_id": "brand-other"}),
        (world.brand(), {"kind": "stopped"}),
        (world.as_role("subscriber"), {}),
    ):
        assert refused(client.post("/v1/alerts", json=body | asked)) == (403, "not_allowed")


def test_a_change_leaves_alone_what_it_does_not_name(world: World) -> None:
    rule = create(world.client, days=[7], name="Desk", digest_at="08:00", zone="Europe/Berlin")
    path = f"/v1/alerts/{rule['rule_id']}"
    changed = told(world.client.patch(path, json={"name": None, "quiet_from": "20:00", "quiet_until": "07:00"}), 200)
    assert changed == rule | {"name": None, "quiet_from": "20:00", "quiet_until": "07:00"}
    changed = told(world.client.patch(path, json={"digest_at": None, "days": [1], "address": f"x{ADDRESS}"}), 200)
    assert (changed["digest_at"], changed["days"], changed["address"]) == (None, [1], f"x{ADDRESS}")
    inside = world.client.patch(path, json={"digest_at": "23:00"})
    assert refused(inside) == (422, "malformed_body")
    assert refused(world.client.post(f"{path}/test")) == (409, "alert_disabled")
    assert refused(world.client.post(f"{path}/replays")) == (409, "alert_disabled")
    told(world.client.delete(path), 204)
    assert refused(world.client.get(path)) == (404, "alert_unknown")


def test_a_repeated_request_makes_one_rule(world: World) -> None:
    body = {"kind": "ending", "channel": "email", "address": ADDRESS, "enabled": False}
    first, second = (world.client.post("/v1/alerts", json=body, headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert told(first, 201) == told(second, 201)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(told(world.client.get("/v1/alerts"), 200)["alerts"]) == 1


def test_the_access_log_names_the_rule_and_not_its_address(world: World) -> None:
    rule = create(world.client)
    entries = told(world.client.get("/v1/accesses", params={"route": "POST /v1/alerts"}), 200)["accesses"]
    assert [entry["query"] for entry in entries] == [{"rule_id": rule["rule_id"], "kind": "ending"}]
    stored = world.server.database.sql("SELECT address FROM alert_rules WHERE rule_id = %s", (rule["rule_id"],))
    assert ADDRESS.encode() not in bytes(stored[0][0])


def test_deliveries_are_listed_in_pages(world: World) -> None:
    rule = create(world.client, quiet_from="00:00", quiet_until="23:59")
    world.server.database.sql(
        "INSERT INTO alert_messages (message_id, rule_id, ledger_id, findings, state, made_at, next_at)"
        " SELECT gen_random_uuid(), rule_id, ledger_id, n, 'sent', now(), now()"
        " FROM alert_rules, generate_series(1, 5) n WHERE rule_id = %s",
        (rule["rule_id"],),
    )
    path, found, cursor = f"/v1/alerts/{rule['rule_id']}/deliveries", [], None
    while True:
        page = told(world.client.get(path, params={"limit": 2} | ({"cursor": cursor} if cursor else {})), 200)
        found += [delivery["findings"] for delivery in page["deliveries"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert told(world.client.get(path, params={"state": "dead"}), 200)["deliveries"] == []
