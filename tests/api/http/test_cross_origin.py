"""What pages of other origins may ask: those of configured origins everything that their key may, others nothing."""

from __future__ import annotations

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.http.app import create_app
from api.http.middleware import HANDED_OVER
from infra.settings import load_settings
from tests.wired import services

pytestmark = pytest.mark.anyio

PAGE, STRANGER = "https://desk.example", "https://other.example"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def client(origins: str = PAGE) -> httpx.AsyncClient:
    settings = load_settings({"SPARKLEDGER_CORS_ORIGINS": origins})
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(services(settings=settings))), base_url="http://x"
    )


async def test_a_page_of_a_configured_origin_may_read_answers() -> None:
    async with client(f"{PAGE},http://localhost:3000") as http:
        for origin in (PAGE, "http://localhost:3000"):
            answer = await http.get("/livez", headers={"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "Ledger-History" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "Origin"
        refused = await http.get("/v1/events", headers={"Origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_browser_that_asks_first_is_told_what_may_be_sent() -> None:
    async with client() as http:
        answer = await http.options("/v1/stream-tokens", headers={"Origin": PAGE, **ASKING})
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Last-Event-ID" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", [STRANGER, "null", f"{PAGE}.evil.example", "http://desk.example"])
async def test_a_page_of_another_origin_may_read_nothing(origin: str) -> None:
    async with client() as http:
        for answer in (
            await http.get("/livez", headers={"Origin": origin}),
            await http.options("/v1/stream-tokens", headers={"Origin": origin, **ASKING}),
        ):
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


async def test_without_configured_origins_nothing_is_said_of_them() -> None:
    async with client("none") as http:
        answer = await http.get("/livez", headers={"Origin": PAGE})
    assert not {"access-control-allow-origin", "vary"} & answer.headers.keys()


async def test_a_process_that_is_handed_requests_leaves_it_to_the_one_that_has_the_client() -> None:
    app = create_app(services(settings=load_settings({"SPARKLEDGER_CORS_ORIGINS": PAGE})))

    async def handed_over(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, HANDED_OVER: "07" * 16}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(handed_over), base_url="http://x") as http:
        answer = await http.get("/livez", headers={"Origin": PAGE})
    assert not {"access-control-allow-origin", "vary"} & answer.headers.keys()
