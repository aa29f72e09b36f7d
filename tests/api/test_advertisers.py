"""Whose an advertiser account is, as an operator says, and what that makes of shares that name only a brand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.api.world import OTHER_ACCOUNT, OTHER_BRAND, OWN_ACCOUNT, OWN_BRAND, World, refused, told


def name(world: World, brand_id: str, account: str = OWN_ACCOUNT, **more: Any) -> dict[str, Any]:
    return told(world.client.put(f"/v1/advertisers/{account}", json={"brand_id": brand_id} | more), 200)


def redeemed(world: World, code: dict[str, Any], account: str = OWN_ACCOUNT) -> bool | None:
    answer = world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": account})
    assert answer.status_code in {200, 201}, answer.text
    shared: bool | None = answer.json()["shared_with_advertiser"]
    return shared


def shared_with_brand(world: World) -> dict[str, Any]:
    code = world.generate()
    told(
        world.client.post(f"/v1/codes/{code['code_id']}/shares", json={"brand_id": OWN_BRAND, "channel": "dm"}),
        201,
    )
    return code


def test_naming_an_account_records_an_event_of_its_own(world: World) -> None:
    answer = world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": OWN_BRAND})
    named = told(answer, 200)
    event = told(world.client.get(f"/v1/events/{named['position']}"), 200)

    assert named == {"advertiser_id": OWN_ACCOUNT, "brand_id": OWN_BRAND, "version": 1, "position": 1}
    assert (answer.headers["etag"], answer.headers["ledger-position"]) == ('"1"', "1")
    assert {field: event[field] for field in ("type", "advertiser_id", "stream_version", "body", "summary")} == {
        "type": "AdvertiserNamed",
        "advertiser_id": OWN_ACCOUNT,
        "stream_version": 1,
        "body": {"advertiser_id": OWN_ACCOUNT, "brand_id": OWN_BRAND},
        "summary": f"Advertiser account {OWN_ACCOUNT} is of brand {OWN_BRAND}.",
    }
    assert not {"code_id", "creator_id"} & event.keys()


def test_whose_an_account_is_can_be_read(world: World) -> None:
    path = f"/v1/advertisers/{OWN_ACCOUNT}"
    unknown = world.client.get(path)
    name(world, OWN_BRAND)
    name(world, OTHER_BRAND)
    named = world.as_role("auditor").get(path, params={"at_least": 2})

    read = {"advertiser_id": OWN_ACCOUNT, "brand_id": None, "version": 0, "position": 0, "as_of": 0}
    assert told(unknown, 200) == read
    assert told(named, 200) == read | {"brand_id": OTHER_BRAND, "version": 2, "position": 2, "as_of": 2}
    assert (unknown.headers["etag"], named.headers["etag"]) == ('"0"', '"2"')


def test_the_same_again_records_nothing_and_another_brand_takes_over(world: World) -> None:
    first = name(world, OWN_BRAND)

    assert name(world, OWN_BRAND) == first
    assert name(world, OTHER_BRAND) == first | {"brand_id": OTHER_BRAND, "version": 2, "position": 2}


def test_a_statement_about_earlier_does_not_replace_a_later_one(world: World) -> None:
    name(world, OTHER_BRAND)
    assert name(world, OWN_BRAND, effective_at="2026-01-01T00:00:00Z")["brand_id"] == OTHER_BRAND


def test_only_operators_and_admins_name_accounts(world: World) -> None:
    body = {"brand_id": OWN_BRAND}
    assert world.as_role("operator").put(f"/v1/advertisers/{OWN_ACCOUNT}", json=body).status_code == 200
    assert refused(world.brand().put(f"/v1/advertisers/{OWN_ACCOUNT}", json=body)) == (403, "not_allowed")
    assert refused(world.client.put("/v1/advertisers/no%20id", json=body)) == (400, "malformed_path")


def test_a_share_that_names_only_a_brand_is_not_known_to_be_meant_for_an_account(world: World) -> None:
    code = shared_with_brand(world)

    assert redeemed(world, code) is None
    assert redeemed(world, world.generate()) is False


def test_whose_an_account_was_when_it_redeemed_decides(world: World) -> None:
    name(world, OWN_BRAND)
    name(world, OTHER_BRAND, OTHER_ACCOUNT)
    code = shared_with_brand(world)

    assert (redeemed(world, code), redeemed(world, code, OTHER_ACCOUNT)) == (True, False)
    # From now on it is another brand's: that changes nothing about the redemption.
    name(world, OTHER_BRAND)
    assert redeemed(world, code) is True


def test_what_is_said_of_an_account_later_counts_from_when_it_was_so(world: World) -> None:
    early, late = shared_with_brand(world), shared_with_brand(world)
    assert (redeemed(world, early), redeemed(world, late)) == (None, None)

    name(world, OWN_BRAND)
    assert redeemed(world, early) is None

    name(world, OWN_BRAND, effective_at="2026-01-01T00:00:00Z")
    assert (redeemed(world, early), redeemed(world, late)) == (True, True)


def test_a_brands_own_key_says_whose_its_account_is(world: World) -> None:
    code = shared_with_brand(world)
    brand = world.brand()
    body = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
    assert told(brand.post("/v1/redemptions", json=body), 201)["shared_with_advertiser"] is True
    assert redeemed(world, code) is True


def test_a_replay_answers_what_was_known_at_first(world: World) -> None:
    code = shared_with_brand(world)
    body = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
    headers = {"Idempotency-Key": "the-same"}
    first = told(world.client.post("/v1/redemptions", json=body, headers=headers), 201)

    name(world, OWN_BRAND, effective_at="2026-01-01T00:00:00Z")

    assert told(world.client.post("/v1/redemptions", json=body, headers=headers), 201) == first
    assert (first["shared_with_advertiser"], redeemed(world, code)) == (None, True)


def test_the_trail_finds_what_was_said_of_an_account_and_of_a_brand(world: World) -> None:
    position = name(world, OWN_BRAND)["position"]

    def found(**query: Any) -> list[int]:
        events = told(world.client.get("/v1/events", params={"at_least": position} | query), 200)["events"]
        return [event["position"] for event in events]

    assert found(advertiser_id=OWN_ACCOUNT) == [position]
    assert found(q=f"brand:{OWN_BRAND}") == [position]
    assert found(type="AdvertiserNamed") == [position]


def test_a_statement_is_recorded_once_for_each_idempotency_key(world: World) -> None:
    headers = {"Idempotency-Key": "the-same"}
    path = f"/v1/advertisers/{OWN_ACCOUNT}"
    first = world.client.put(path, json={"brand_id": OWN_BRAND}, headers=headers)
    name(world, OTHER_BRAND)

    again = world.client.put(path, json={"brand_id": OWN_BRAND}, headers=headers)
    other = world.client.put(path, json={"brand_id": OTHER_BRAND}, headers=headers)

    assert (told(again, 200), again.headers["idempotent-replayed"]) == (told(first, 200), "true")
    assert refused(other) == (422, "idempotency_key_reused")


def test_a_statement_is_refused_if_the_account_is_not_as_its_caller_knows_it(world: World) -> None:
    def put(version: str, brand_id: str) -> Any:
        headers = {"If-Match": f'"{version}"'}
        return world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": brand_id}, headers=headers)

    assert told(put("0", OWN_BRAND), 200)["version"] == 1
    stale = put("0", OTHER_BRAND)
    assert (refused(stale), stale.json()["current_version"]) == ((412, "stale_version"), 1)
    assert told(put("1", OTHER_BRAND), 200)["version"] == 2
    assert refused(put("x", OWN_BRAND)) == (400, "malformed_header")


def test_statements_that_arrive_together_are_all_recorded_on_one_stream(world: World) -> None:
    brands = [f"brand-{number}" for number in range(8)]
    with ThreadPoolExecutor(len(brands)) as pool:
        versions = sorted(answer["version"] for answer in pool.map(lambda brand: name(world, brand), brands))
    assert versions == list(range(1, len(brands) + 1))
