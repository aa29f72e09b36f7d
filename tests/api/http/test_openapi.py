"""The API reference: complete, true, and good enough for a machine to test us by."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Query
from pydantic import Field

import api.http
from api.http import openapi
from api.http.app import create_app
from api.http.caller import Caller, allow
from api.http.models import Command
from api.http.problems import STATUSES
from api.http.query_params import QueryModel
from api.http.route import Operation, Route
from domain.errors import REFUSALS
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, told
from tests.wired import services

# It sends thousands of requests: a minute or two on a quiet machine.
SCHEMATHESIS_S = 580
HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return create_app(services()).openapi()


def operations(reference: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in reference["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_every_operation_is_named_and_described(reference: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(reference)]
    assert reference["openapi"].startswith("3.1")
    assert len(names) == len(set(names))
    for route, operation in operations(reference):
        assert operation["description"], route
        assert operation["tags"], route


def test_every_operation_declares_the_problems_it_can_answer(reference: dict[str, Any]) -> None:
    for route, operation in operations(reference):
        answers = operation["responses"]
        assert "500" in answers, route
        if " /v1/" in route:
            assert {"400", "401", "403", "429", "503"} <= answers.keys(), route
            assert operation["security"] == [{"apiKey": []}], route
        if "requestBody" in operation:
            assert {"413", "415", "422"} <= answers.keys(), route
        for status, answer in answers.items():
            assert "Request-Id" in answer["headers"], (route, status)
            if int(status) >= 400:
                assert answer["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }, (route, status)


def test_what_the_reference_says_of_a_route_stands_at_the_route() -> None:
    router = APIRouter(route_class=Route)

    @router.post("/v1/codes/{code_id}/moods", status_code=201, operation_id="setMood")
    @Operation(request_headers=("If-Match",), answer_headers=("Location",), refusals=(415,), example={"mood": "good"})
    async def set_mood(code_id: str, body: Mood, caller: Annotated[Caller, allow("creator")]) -> None:
        """Say how a code feels."""

    @router.get("/v1/moods", operation_id="listMoods")
    async def list_moods(query: Annotated[Moods, Query()], caller: Annotated[Caller, allow("admin")]) -> None:
        """List how codes feel."""

    app = FastAPI()
    app.router.routes.extend(router.routes)
    paths = openapi.reference(app)["paths"]

    mood, moods = paths["/v1/codes/{code_id}/moods"]["post"], paths["/v1/moods"]["get"]
    parameters = ["code_id", "Idempotency-Key", "If-Match", "Ledger-History", "Correlation-Id", "Causation-Id", "wait"]
    assert [one["name"] for one in mood["parameters"]] == parameters
    assert mood["requestBody"]["content"]["application/json"]["example"] == {"mood": "good"}
    assert {int(status) for status in mood["responses"]} == (
        {201, 400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 429, 500, 503}
    )
    assert [*mood["responses"]["201"]["headers"]] == [
        *("Request-Id", "ETag", "Ledger-Position", "Ledger-History", "Location", "Idempotent-Replayed"),
    ]
    assert {int(status) for status in moods["responses"]} == {200, 400, 401, 403, 409, 429, 500, 503}
    assert [*moods["responses"]["200"]["headers"]] == ["Request-Id", "Ledger-History", "Link"]


class Mood(Command):
    mood: Annotated[str, Field(description="How it feels.")]


class Moods(QueryModel):
    cursor: str | None = None


def test_what_http_needs_knows_no_route_by_its_name(reference: dict[str, Any]) -> None:
    names = {operation["operationId"] for _, operation in operations(reference)}
    said = {
        node.value
        for path in Path(api.http.__path__[0]).glob("*.py")
        if path.stem != "asyncapi"  # which has operations of its own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert names & said == set()


def test_every_read_of_what_the_log_holds_says_how_far_it_has_read(reference: dict[str, Any]) -> None:
    # Keys and webhooks are set up beside the log.
    for route, operation in operations(reference):
        if route.startswith("GET /v1/") and {"Reads", "Audit", "Erasure"} & {*operation["tags"]}:
            assert "Ledger-Position" in operation["responses"]["200"]["headers"], route
    questions = (ROOT / "docs" / "questions.md").read_text()
    named = {f"GET {path}" for path in re.findall(r"`GET (/v1/[a-z_/{}-]+)", questions)}
    assert {"GET /v1/accesses", "GET /v1/stats/days"} <= named
    assert named <= {
        route
        for route, o in operations(reference)
        if "Ledger-Position" in o["responses"].get("200", {}).get("headers", {})
    }


def test_every_field_that_can_be_sent_is_described_and_has_an_example(reference: dict[str, Any]) -> None:
    schemas = reference["components"]["schemas"]
    bodies = {
        ref.rsplit("/", 1)[1]
        for _, operation in operations(reference)
        if "requestBody" in operation
        for ref in re.findall(r"#/components/schemas/\w+", str(operation["requestBody"]))
    } | {"Budget", "Subjects"}
    for name in bodies:
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description") or "$ref" in schema, f"{name}.{field}"
            shown = str(schema)
            assert any(word in shown for word in ("examples", "const", "enum", "boolean", "$ref")), f"{name}.{field}"
    for route, operation in operations(reference):
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (route, parameter["name"])


def test_every_field_that_is_answered_is_described(reference: dict[str, Any]) -> None:
    for name, schema in reference["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            if name != "SubjectsEntry":
                assert described.get("description") or "$ref" in str(described), f"{name}.{field}"


def test_every_refusal_of_the_rules_has_its_status() -> None:
    assert {code for codes in REFUSALS.values() for code in codes} <= {
        code for code, status in STATUSES.items() if status == 409
    }


def test_the_documentation_page_needs_nothing_from_elsewhere_and_explains_every_problem(world: World) -> None:
    page = world.client.get("/docs")
    assert page.status_code == 200
    assert re.findall(r"(?:src|href)=\"(?!#|/openapi.json)", page.text) == []
    assert "<script" not in page.text
    for code in STATUSES:
        assert f'id="{code}"' in page.text
    assert "style-src 'sha256-" in page.headers["content-security-policy"]


def test_the_reference_is_served(world: World) -> None:
    answer = world.client.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["info"]["title"] == "Sparkledger"


@pytest.mark.long("Schemathesis makes thousands of requests, to every route")
@pytest.mark.timeout(SCHEMATHESIS_S + 20)
def test_schemathesis_finds_nothing(world: World, tmp_path: Path) -> None:
    # Something to find: the ids that the reference gives as examples.
    world.permit("ana.creates")
    code = world.generate("ana.creates", video_id="7312345678901234567")
    world.share(code, "acme", "adv-7001")
    told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}), 200)
    world.redeem(code, OWN_ACCOUNT)

    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{world.server.url}/openapi.json", "--header", f"Authorization: Bearer {world.server.admin_key}"),
        *("--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "15"),
        *("--warnings", "off", "--no-color"),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.api.http.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SCHEMATHESIS_S
    )

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
