"""A code or key that a person types into a text which is kept in clear is refused, and not repeated or recorded.

The fields are found in the reference: a new one is tried too. It must refuse both, or be one that takes secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import httpx
import psycopg
import pytest

from tests.api.world import OWN_CREATOR, World, refused, told

CODE: Final = "#cAnary/s3cret+that=TikTok/made==tail"
KEY: Final = "slk_a-canary-that-was-never-minted-0123456789"
VIDEO: Final = "7312345678901234567"
# The fields that take secrets, and seal or hash them.
TAKE_SECRETS: Final = {
    ("POST /v1/codes", "/secret"),
    ("POST /v1/codes/lookup", "/secret"),
    ("POST /v1/codes/{code_id}/secret", "/secret"),
    ("POST /v1/redemptions", "/secret"),
    ("POST /v1/webhooks", "/secret"),
    # A URL often is a credential. It is sealed.
    ("POST /v1/webhooks", "/url"),
    ("PATCH /v1/webhooks/{webhook_id}", "/url"),
    ("POST /v1/alerts", "/address"),
    ("PATCH /v1/alerts/{rule_id}", "/address"),
}


def resolved(schema: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = reference
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def texts(schema: dict[str, Any], reference: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all strings in a schema, `*` for the entries of an array or a free object."""
    schema = resolved(schema, reference)
    for part in [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]:
        yield from texts(part, reference, path)
    if schema.get("type") == "string" and "enum" not in schema and "const" not in schema:
        yield path
    for name, part in schema.get("properties", {}).items():
        if isinstance(part, dict):
            yield from texts(part, reference, (*path, name))
    if "items" in schema:
        yield from texts(schema["items"], reference, (*path, "*"))
    if schema.get("type") == "object" and "properties" not in schema:
        yield (*path, "**")


def body_with(path: tuple[str, ...], text: str) -> Any:
    """Return a body with nothing but a text, at a path."""
    if not path:
        return text
    name, *rest = path
    if name == "*":
        return [body_with(tuple(rest), text)]
    if name == "**":
        return {"a": [{"b": text}], "c": 1}
    return {name: body_with(tuple(rest), text)}


def pointer_of(path: tuple[str, ...]) -> str:
    return "".join(f"/{0 if part == '*' else part}" for part in path if part != "**")


def address(path: str) -> str:
    """Fill the places of a path with ids that exist nowhere."""
    ids = {"code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20", "creator_id": OWN_CREATOR, "video_id": VIDEO}
    return re.sub(r"{(\w+)[^}]*}", lambda found: ids.get(found[1], "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"), path)


def reason_at(answer: httpx.Response, pointer: str) -> str | None:
    """Return why a value, or a part of it, was refused; `another` if the error has no reason, None if there is none."""
    errors = answer.json().get("errors", [])
    of_it = [error for error in errors if f"{error['pointer']}/".startswith(f"{pointer}/")]
    return next((error.get("reason", "another") for error in of_it), None)


def stored(world: World) -> str:
    """Return what the ledger's events and accesses have in clear."""
    with psycopg.connect(world.server.database.dsn()) as connection:
        events = connection.execute("SELECT convert_from(body, 'UTF8') FROM events").fetchall()
        accesses = connection.execute("SELECT route, query::text FROM accesses").fetchall()
    return repr((events, accesses))


@pytest.mark.parametrize("text", [CODE, KEY], ids=["code", "key"])
def test_no_text_of_a_body_takes_a_secret_but_those_that_are_for_one(world: World, text: str) -> None:
    reference = told(world.client.get("/openapi.json"), 200)
    tried, taken = 0, []
    for path, methods in reference["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}) if isinstance(operation, dict) else {}
            if "application/json" not in content:
                continue
            route = f"{method.upper()} {path}"
            for where in set(texts(content["application/json"]["schema"], reference)):
                pointer = pointer_of(where)
                if (route, pointer) in TAKE_SECRETS or (text == KEY and re.search(r"_ids?(/0)?$", pointer)):
                    continue  # an id may look like anything of its letters
                answer = world.client.request(method, address(path), json=body_with(where, text))
                tried += 1
                assert text not in answer.text
                if answer.status_code != 422 or reason_at(answer, pointer) is None:
                    taken.append((route, pointer, answer.status_code))
    assert taken == []
    assert tried > 40
    assert text[:-4] not in stored(world)


def test_the_texts_that_people_write_say_why_they_are_refused(world: World) -> None:
    code = world.generate()
    path = f"/v1/codes/{code['code_id']}"
    told_it = f"They sent {CODE} to the wrong brand"
    refusals = [
        (world.client.post(f"{path}/revocation", json={"reason": told_it}), "/reason"),
        (world.client.post(f"{path}/reveals", json={"reason": told_it}), "/reason"),
        (world.client.post(f"{path}/notes", json={"text": told_it}), "/text"),
        (world.client.post(f"{path}/shares", json={"brand_id": "b", "channel": "dm", "note": told_it}), "/note"),
        (
            world.client.post("/v1/codes", json={"creator_id": "c", "video_id": "v", "terms_version": CODE}),
            "/terms_version",
        ),
        (world.client.post("/v1/keys", json={"role": "auditor", "name": told_it}), "/name"),
        (world.client.post("/v1/webhooks", json={"url": "https://r.example/", "description": told_it}), "/description"),
        (world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": told_it}), "/reason"),
    ]
    for answer, pointer in refusals:
        assert refused(answer) == (422, "malformed_body")
        assert reason_at(answer, pointer) == "contains_secret"
        assert CODE[:-4] not in answer.text
    assert CODE[:-4] not in stored(world)


def test_no_parameter_takes_a_secret_and_none_reaches_the_access_log(world: World) -> None:
    reference = told(world.client.get("/openapi.json"), 200)
    tried = set()
    for path, methods in reference["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", ()):
            found = resolved(parameter, reference)
            if found["in"] != "query" or not list(texts(found["schema"], reference)):
                continue
            answer = world.client.get(address(path), params={found["name"]: CODE})
            tried.add(found["name"])
            assert (path, found["name"], answer.status_code) == (path, found["name"], 400)
            assert CODE[:-4] not in answer.text
    assert "q" in tried
    assert len(tried) > 8
    assert CODE[:-4] not in stored(world)


def test_a_search_for_a_code_says_where_codes_are_looked_up(world: World) -> None:
    for ask in (
        world.client.get("/v1/events", params={"q": f"type:Redeemed {CODE}"}),
        world.client.get("/v1/exports/events", params={"q": CODE}),
        world.client.get("/v1/events/stream", params={"q": CODE}),
        world.client.post("/v1/stream-tokens", json={"filters": {"q": CODE}}),
    ):
        assert refused(ask) in {(400, "malformed_query"), (422, "malformed_body")}
        (error,) = ask.json()["errors"]
        assert error["reason"] == "contains_secret"
        assert "look it up" in error["problem"]


def test_targeting_is_looked_through_to_its_depth(world: World) -> None:
    code = world.generate()
    targeting = {"audience": [{"name": "ok"}, {CODE: [1]}]}
    body = {"campaign_id": "c", "advertiser_id": "a", "targeting": targeting}
    answer = world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=body)
    assert reason_at(answer, "/targeting") == "contains_secret"
