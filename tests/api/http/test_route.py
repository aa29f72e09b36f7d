"""What a route does before its own lines: of a body it keeps a model and a hash, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, cast

import orjson
import pytest
from fastapi import APIRouter, Request
from starlette.responses import Response

import api.http.route
from api.http.caller import Caller, allow
from api.http.headers import by_name
from api.http.route import Route
from api.redemptions import RedeemCode
from infra.settings import load_settings

SECRET = "#k9/Tz+example=="
BODY = {"secret": SECRET, "advertiser_id": "adv-7001"}


async def hashed(monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], *, key: bytes = b"k" * 16) -> bytes:
    """Send a request, with an Idempotency-Key, and return what its repeats are known by."""
    seen: list[Request] = []
    router = APIRouter(route_class=Route)

    async def admit(request: Request, _allowed: object) -> Caller:
        return Caller(
            cast("Any", SimpleNamespace(request_key=key)), cast("Any", None), request, "slk_x", cast("Any", None)
        )

    @router.post("/v1/redemptions")
    async def redeem(body: RedeemCode, caller: Annotated[Caller, allow("brand")]) -> Response:
        seen.append(caller.request)
        return Response(body.advertiser_id)

    monkeypatch.setattr(api.http.route, "admit", admit)
    sent = orjson.dumps(body)
    chunks = [sent[:20], sent[20:]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        assert message.get("body", b"adv-7001") == b"adv-7001"

    fields = {b"content-type": b"application/json", b"content-length": b"9", b"idempotency-key": b"a-repeat"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/redemptions",
        "path_params": {},
        "query_string": b"",
        "headers": [*fields.items()],
        "app": SimpleNamespace(state=SimpleNamespace(services=SimpleNamespace(settings=load_settings({})))),
    }
    by_name(scope)
    (route,) = router.routes
    await cast("Route", route).app(scope, receive, send)
    (request,) = seen
    assert SECRET not in repr(vars(request)) + repr(scope)
    return request.scope["request_hash"]  # type: ignore[no-any-return]


async def test_nothing_of_a_body_stays_with_its_request_but_a_keyed_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await hashed(monkeypatch, BODY)
    assert len(first) == 16
    assert await hashed(monkeypatch, dict(reversed(BODY.items()))) == first
    assert await hashed(monkeypatch, BODY | {"secret": "#l0/Uy+example=="}) != first
    assert await hashed(monkeypatch, BODY, key=b"l" * 16) != first
