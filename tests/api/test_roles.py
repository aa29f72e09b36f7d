"""Who may do what: the contract's table, route by route and role by role, for their own subjects and for others'."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast, get_args

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.route import roles_by_route
from api.wiring import Services
from domain.values import Role
from infra.settings import load_settings
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    campaign,
    days,
    told,
)

CREATORS = {"creator", "operator", "admin"}
BRANDS = {"brand", "operator", "admin"}
READERS = {"creator", "brand", "operator", "auditor", "admin"}

ROLES: dict[str, set[str]] = {
    "PUT /v1/creators/{creator_id}/permission": CREATORS,
    "GET /v1/creators/{creator_id}/permission": READERS - {"brand"},
    "POST /v1/codes": CREATORS,
    "POST /v1/codes/{code_id}/extensions": CREATORS,
    "POST /v1/codes/{code_id}/shares": CREATORS,
    "POST /v1/codes/lookup": BRANDS,
    "POST /v1/redemptions": BRANDS,
    "POST /v1/codes/{code_id}/campaigns": BRANDS,
    "POST /v1/codes/{code_id}/campaigns/{campaign_id}/end": BRANDS,
    "POST /v1/codes/{code_id}/revocation": CREATORS,
    "POST /v1/codes/{code_id}/reveals": CREATORS,
    "POST /v1/codes/{code_id}/notes": CREATORS,
    "GET /v1/codes": READERS,
    "GET /v1/codes/{code_id}": READERS,
    "GET /v1/codes/{code_id}/history": READERS,
    "GET /v1/authorizations": {"brand", "operator", "auditor", "admin"},
    "GET /v1/events": {"creator", "operator", "auditor", "subscriber", "admin"},
    "GET /v1/events/{position}": READERS - {"brand"},
    "GET /v1/stats": {"operator", "auditor", "admin"},
    "POST /v1/keys": {"admin"},
    "GET /v1/keys": {"admin"},
    "DELETE /v1/keys/{key_id}": {"admin"},
    "GET /livez": set(),
    "GET /readyz": set(),
    "GET /metrics": set(),
}

SUBJECTS: dict[str, dict[str, list[str]]] = {
    "creator": {"creator_ids": [OWN_CREATOR]},
    "brand": {"brand_ids": [OWN_BRAND], "advertiser_ids": [OWN_ACCOUNT]},
}

Try = Callable[[World, httpx.Client, str, str, str], httpx.Response]


def on_fresh(prepare: Callable[..., Any], ask: Callable[..., httpx.Response]) -> Try:
    """Return a request on a code of its own, prepared for a creator, a brand and an account."""

    def attempt(world: World, client: httpx.Client, creator: str, brand: str, account: str) -> httpx.Response:
        return ask(client, prepare(world, creator, brand, account), account)

    return attempt


def generated(world: World, creator: str, _brand: str, _account: str) -> Any:
    return world.generate(creator)


def shared(world: World, creator: str, brand: str, account: str) -> Any:
    code = world.generate(creator)
    world.share(code, brand, account)
    return code


def redeemed(world: World, creator: str, brand: str, account: str) -> Any:
    code = shared(world, creator, brand, account)
    world.redeem(code, account)
    return code


def running(world: World, creator: str, brand: str, account: str) -> Any:
    return world.running(creator, brand, account)


def on_code(path: str, body: dict[str, Any]) -> Callable[..., httpx.Response]:
    return lambda client, code, _account: client.post(f"/v1/codes/{code['code_id']}/{path}", json=body)


# One request for each route, and what it answers to whom it is for.
REQUESTS: dict[str, tuple[Try, int]] = {
    "PUT /v1/creators/{creator_id}/permission": (
        lambda _w, client, creator, _b, _a: client.put(f"/v1/creators/{creator}/permission", json={"enabled": True}),
        200,
    ),
    "GET /v1/creators/{creator_id}/permission": (
        lambda _w, client, creator, _b, _a: client.get(f"/v1/creators/{creator}/permission"),
        200,
    ),
    "POST /v1/codes": (
        lambda world, client, creator, _b, _a: (
            world.permit(creator),
            client.post(
                "/v1/codes",
                json={"creator_id": creator, "video_id": f"v-{datetime.now(UTC).timestamp()}", "terms_version": "1"},
            ),
        )[1],
        201,
    ),
    "POST /v1/codes/{code_id}/extensions": (on_fresh(generated, on_code("extensions", {"days": 60})), 201),
    "POST /v1/codes/{code_id}/shares": (
        on_fresh(generated, on_code("shares", {"brand_id": OTHER_BRAND, "channel": "email"})),
        201,
    ),
    "POST /v1/codes/lookup": (
        on_fresh(generated, lambda client, code, _: client.post("/v1/codes/lookup", json={"secret": code["secret"]})),
        200,
    ),
    "POST /v1/redemptions": (
        on_fresh(
            shared,
            lambda client, code, account: client.post(
                "/v1/redemptions", json={"secret": code["secret"], "advertiser_id": account}
            ),
        ),
        201,
    ),
    "POST /v1/codes/{code_id}/campaigns": (
        on_fresh(
            redeemed,
            lambda client, code, account: client.post(
                f"/v1/codes/{code['code_id']}/campaigns", json=campaign(advertiser_id=account)
            ),
        ),
        201,
    ),
    "POST /v1/codes/{code_id}/campaigns/{campaign_id}/end": (
        on_fresh(running, lambda client, code, _: client.post(f"/v1/codes/{code['code_id']}/campaigns/campaign-1/end")),
        200,
    ),
    "POST /v1/codes/{code_id}/revocation": (on_fresh(generated, on_code("revocation", {"reason": "why"})), 200),
    "POST /v1/codes/{code_id}/reveals": (on_fresh(generated, on_code("reveals", {"reason": "why"})), 200),
    "POST /v1/codes/{code_id}/notes": (on_fresh(generated, on_code("notes", {"text": "so"})), 201),
    "GET /v1/codes": (lambda _w, client, *_: client.get("/v1/codes"), 200),
    "GET /v1/codes/{code_id}": (
        on_fresh(redeemed, lambda client, code, _: client.get(f"/v1/codes/{code['code_id']}")),
        200,
    ),
    "GET /v1/codes/{code_id}/history": (
        on_fresh(shared, lambda client, code, _: client.get(f"/v1/codes/{code['code_id']}/history")),
        200,
    ),
    "GET /v1/authorizations": (
        lambda _w, client, _c, _b, account: client.get(
            "/v1/authorizations", params={"video_id": "v", "advertiser_id": account}
        ),
        200,
    ),
    "GET /v1/events": (lambda _w, client, creator, *_: client.get("/v1/events", params={"creator_id": creator}), 200),
    "GET /v1/events/{position}": (
        on_fresh(generated, lambda client, code, _: client.get(f"/v1/events/{code['position']}")),
        200,
    ),
    "GET /v1/stats": (lambda _w, client, *_: client.get("/v1/stats"), 200),
    "POST /v1/keys": (lambda _w, client, *_: client.post("/v1/keys", json={"role": "auditor"}), 201),
    "GET /v1/keys": (lambda _w, client, *_: client.get("/v1/keys"), 200),
    "DELETE /v1/keys/{key_id}": (
        lambda world, client, *_: client.delete(
            f"/v1/keys/{told(world.client.post('/v1/keys', json={'role': 'auditor'}), 201)['key_id']}"
        ),
        204,
    ),
}

# What these ask for names no subject, so a creator or brand is not turned away for whose it is.
WITHOUT_SUBJECT = {
    "POST /v1/codes/lookup",
    "GET /v1/codes",
    "GET /v1/stats",
    "POST /v1/keys",
    "GET /v1/keys",
    "DELETE /v1/keys/{key_id}",
}


@pytest.fixture
def app() -> FastAPI:
    nothing = cast("Any", None)
    return create_app(Services(nothing, nothing, nothing, load_settings({}), lambda: datetime.now(UTC)))


def test_the_routes_let_in_whom_the_contract_names(app: FastAPI) -> None:
    assert {route: set(roles) for route, roles in roles_by_route(app).items()} == ROLES


def test_every_route_with_roles_is_walked_below() -> None:
    assert REQUESTS.keys() == {route for route, roles in ROLES.items() if roles}


@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_reaches_its_own_and_nobody_elses(world: World, role: str) -> None:
    client = world.as_role(role, **SUBJECTS.get(role, {}))
    bound = role in SUBJECTS

    answered = {
        route: (
            attempt(world, client, OWN_CREATOR, OWN_BRAND, OWN_ACCOUNT).status_code,
            attempt(world, client, OTHER_CREATOR, OTHER_BRAND, OTHER_ACCOUNT).status_code,
        )
        for route, (attempt, _) in REQUESTS.items()
    }

    def expected(route: str, status: int) -> tuple[int, int]:
        if role not in ROLES[route]:
            return 403, 403
        return status, 403 if bound and route not in WITHOUT_SUBJECT else status

    assert answered == {route: expected(route, status) for route, (_, status) in REQUESTS.items()}


def test_without_a_valid_key_every_route_answers_401_before_it_reads_anything(world: World) -> None:
    with httpx.Client(base_url=world.server.url, trust_env=False) as stranger:
        answered = {
            route: stranger.request(
                route.split()[0], route.split()[1].replace("{", "").replace("}", ""), content=b"{", headers=headers
            ).status_code
            for route in REQUESTS
            for headers in ({}, {"Authorization": "Bearer slk_nobody"}, {"Authorization": "Basic YTpi"})
        }
    assert answered == dict.fromkeys(REQUESTS, 401)


def test_a_revoked_key_is_let_in_no_more(world: World) -> None:
    content = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    assert world.client.delete(f"/v1/keys/{content['key_id']}").status_code == 204

    # It was never used, so nothing of it is cached.
    assert world.with_key(content["key"]).get("/v1/codes").status_code == 401


def test_another_ledgers_codes_and_keys_are_unknown(world: World) -> None:
    code = world.generate()
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]

    stranger = world.another().client
    assert stranger.get(f"/v1/codes/{code['code_id']}").status_code == 404
    assert stranger.post("/v1/codes/lookup", json={"secret": code["secret"]}).status_code == 404
    assert stranger.delete(f"/v1/keys/{key_id}").status_code == 404
    assert told(stranger.get("/v1/events"), 200)["events"] == []
    assert told(stranger.get("/v1/codes"), 200)["codes"] == []


def test_only_operators_and_administrators_force_or_date_back(world: World) -> None:
    code = world.running()
    revocation = f"/v1/codes/{code['code_id']}/revocation"
    creator, brand, operator = world.creator(), world.brand(), world.as_role("operator")

    assert creator.post(revocation, json={"reason": "why", "force": True}).status_code == 403
    assert creator.post(revocation, json={"reason": "why", "effective_at": days(-1)}).status_code == 403
    dated = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT, "effective_at": days(0)}
    assert brand.post("/v1/redemptions", json=dated).status_code == 403
    assert operator.post(revocation, json={"reason": "why", "force": True}).status_code == 200


def test_a_key_for_several_creators_is_recorded_as_acting_for_the_one_concerned(world: World) -> None:
    code, other = world.generate(OWN_CREATOR), world.generate(OTHER_CREATOR)
    agency = world.as_role("creator", creator_ids=[OWN_CREATOR, OTHER_CREATOR])

    for one in (code, other):
        assert agency.post(f"/v1/codes/{one['code_id']}/reveals", json={"reason": "why"}).status_code == 200

    subjects = [
        told(world.client.get(f"/v1/codes/{one['code_id']}/history"), 200)["events"][-1]["actor"]["subject"]
        for one in (code, other)
    ]
    assert subjects == [OWN_CREATOR, OTHER_CREATOR]
