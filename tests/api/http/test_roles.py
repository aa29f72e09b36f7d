"""Who may do what: docs/roles.md, route by route and role by role, for their own subjects and for others'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import httpx
import pytest
from fastapi import FastAPI

from api.http.app import create_app
from api.http.route import roles_by_route
from domain.values import Role
from tests.api.attempts import REQUESTS, ROLES, SUBJECTS
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    days,
    told,
)
from tests.wired import services

TABLE = Path(__file__).parents[3] / "docs/roles.md"


@pytest.fixture
def app() -> FastAPI:
    return create_app(services())


def test_the_routes_let_in_whom_the_contract_names(app: FastAPI) -> None:
    assert {route: set(roles) for route, roles in roles_by_route(app).items()} == ROLES


def test_every_route_with_roles_is_walked_below() -> None:
    assert REQUESTS.keys() == {route for route, roles in ROLES.items() if roles}


def documented() -> dict[str, dict[str, tuple[int, int]]]:
    """Read the table as a reader does: by role, then by route, what is answered on one's own and on others'."""
    lines = [line.strip("|").split("|") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    roles = [cell.strip("`") for cell in head[1:]]
    table: dict[str, dict[str, tuple[int, int]]] = {role: {} for role in roles}
    for route, *cells in rows:
        for role, cell in zip(roles, cells, strict=True):
            statuses = [int(status) for status in re.findall("[0-9]{3}", cell)]
            table[role][route.strip("`")] = (statuses[0], statuses[-1])
    return table


def test_the_table_has_every_route_that_asks_for_a_key_and_every_role(app: FastAPI) -> None:
    routes = [route for route, roles in roles_by_route(app).items() if roles]
    assert {role: list(rows) for role, rows in documented().items()} == dict.fromkeys(get_args(Role), routes)


@pytest.mark.long("a role asks for every route, twice")
@pytest.mark.parametrize("role", get_args(Role))
def test_every_route_answers_a_role_what_the_table_says_on_its_own_and_on_others(world: World, role: str) -> None:
    client = world.as_role(role, **SUBJECTS.get(role, {}))
    answered = {
        route: (
            attempt(world, client, OWN_CREATOR, OWN_BRAND, OWN_ACCOUNT).status_code,
            attempt(world, client, OTHER_CREATOR, OTHER_BRAND, OTHER_ACCOUNT).status_code,
        )
        for route, (attempt, _) in REQUESTS.items()
    }
    assert answered == documented()[role]


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
