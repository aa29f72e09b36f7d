"""What surrounds every request: ids, headers, limits, faults, figures. No database is needed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import httpx
import pytest

import api.http.single_flight
from api.http import metrics
from api.http.app import create_app
from api.http.dependencies import Limits
from api.http.limits import MAX_KEYS, UNKNOWN_CODES_AT_ONCE, GuessLimit, Limit, Slots
from api.http.middleware import RequestMiddleware, Waiting
from domain.errors import Unknown
from infra.auth.api_keys import ApiKey, Subjects
from infra.errors import Unavailable
from infra.eventstore.histories import History
from infra.eventstore.repository import AggregateCache
from infra.settings import load_settings
from tests.wired import services

KEY = ApiKey(UUID(int=1), 1, "main", None, "admin", Subjects(), datetime.now(UTC), None, None)


HISTORY = History("main", UUID(int=7), UUID(int=8), 1)


class Fake:
    """Stands for everything outside: a key that is always right, and a ledger that does what it is told."""

    def __init__(self, act: Callable[[], Any], key: ApiKey = KEY) -> None:
        self.act = act
        self.key = key
        self.counted = 0
        self.obstacle: str | None = None
        self.cache = AggregateCache()

    async def authenticate(self, _presented: str, _now: datetime) -> ApiKey:
        return self.key

    async def handle(self, _request: object, _decide: object) -> Any:
        return await self.act()

    async def of(self, _ledger_id: int) -> History:
        return HISTORY

    async def read(self, *_: object, **__: object) -> Any:
        return await self.act()

    async def record(self, *_: object) -> None:
        self.counted += 1


@asynccontextmanager
async def client(
    act: Callable[[], Any], per_second: int = 1000, key: ApiKey = KEY, **limits: Any
) -> AsyncIterator[httpx.AsyncClient]:
    fake = cast("Any", Fake(act, key))
    settings = load_settings({"SPARKLEDGER_REQUESTS_PER_SECOND": str(per_second)})
    transport = httpx.ASGITransport(create_app(services(fake, settings=settings), **limits), raise_app_exceptions=True)
    headers = {"Authorization": "Bearer key"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as opened:
        yield opened


async def broken() -> None:
    message = "the secret #abc is in this message"
    raise RuntimeError(message)


async def away() -> None:
    raise Unavailable("The database is away.", retry_after=7)


async def endless() -> None:
    await asyncio.Event().wait()


async def unknown() -> None:
    raise Unknown("code")


async def redeem(opened: httpx.AsyncClient, secret: str = "#abc-of-nobody") -> httpx.Response:
    return await opened.post("/v1/redemptions", json={"secret": secret, "advertiser_id": "a"})


async def test_a_fault_of_ours_is_answered_as_a_problem_and_logged_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async with client(broken) as opened:
        with caplog.at_level(logging.ERROR):
            answer = await redeem(opened)
    content = answer.json()
    assert (answer.status_code, content["code"], content["retryable"]) == (500, "internal_error", True)
    assert "#abc-of-nobody" not in answer.text
    assert content["request_id"] in caplog.text


async def test_a_database_that_is_away_asks_to_come_back(caplog: pytest.LogCaptureFixture) -> None:
    async with client(away) as opened:
        answer = await redeem(opened)
        ready, alive = await opened.get("/readyz"), await opened.get("/livez")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["code"] == "unavailable"
    assert (ready.status_code, alive.status_code) == (503, 200)


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async with client(endless, max_request_s=0.01) as opened:
        waiting = cast("Any", opened)._transport.app.state.places.requests
        before = waiting.figures()
        answer = await redeem(opened)
        assert waiting.figures() == before, "it has given its place back"
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "timed_out", "1")


async def test_each_request_has_its_time_whatever_became_of_others() -> None:
    async with client(endless, max_request_s=0.02) as opened:
        quick = await opened.get("/livez")
        together = await asyncio.gather(redeem(opened), redeem(opened))
        afterwards = await redeem(opened)
        answers = [quick, *together, afterwards]
    assert [answer.status_code for answer in answers] == [200, 503, 503, 503]
    assert {answer.json()["code"] for answer in answers[1:]} == {"timed_out"}


async def test_a_request_within_a_request_hears_that_the_time_is_up() -> None:
    """So a page of the console asks the API. The server does not stop, which is another reason to be cancelled."""
    inner: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/inner":
            await endless()

        async def collected(message: Any) -> None:
            inner.append(message)

        await edge({**scope, "path": "/inner", "headers": []}, receive, collected)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a page"})

    edge = RequestMiddleware(page, waiting=Waiting(within_s=0.01))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://test") as opened:
        answer = await opened.get("/page")
    assert (answer.status_code, answer.content) == (200, b"a page")
    assert json.loads(inner[-1]["body"])["code"] == "timed_out"


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def streaming(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/endless":
            await endless()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        await going.wait()
        await send({"type": "http.response.body", "body": b"whole"})

    edge = RequestMiddleware(streaming, waiting=Waiting(within_s=0.01))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://test") as opened:
        streamed = asyncio.create_task(opened.get("/stream"))
        await begun.wait()
        late = await opened.get("/endless")
        going.set()
        answer = await streamed
    assert (late.status_code, answer.status_code, answer.content) == (503, 200, b"whole")


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("POST", "/v1/redemptions", "It is not known whether the command was recorded."),
        ("GET", "/v1/permissions", "Send the request again."),
    ],
)
async def test_a_request_that_the_end_of_the_server_cuts_short_is_answered(method: str, path: str, says: str) -> None:
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    body = {"secret": "#abc-of-nobody", "advertiser_id": "a"} if method == "POST" else None
    async with client(endless) as opened:
        asked = asyncio.create_task(opened.request(method, path, json=body))
        await begun.wait()
        asked.cancel()
        answer = await asked
    content = answer.json()
    assert (answer.status_code, content["code"], content["retryable"]) == (503, "unavailable", True)
    assert says in content["detail"]


async def test_a_body_that_does_not_come_is_given_up_as_the_callers_delay() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"Content-Type": "application/json"}
    async with client(broken, max_request_s=0.01) as opened:
        answer = await opened.post("/v1/redemptions", content=slow(), headers=headers)
    assert (answer.status_code, answer.json()["code"], answer.headers["connection"]) == (408, "body_too_slow", "close")


async def test_more_requests_than_may_wait_are_turned_away_at_once() -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def held(_scope: Any, _receive: Any, send: Any) -> None:
        begun.set()
        await going.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    edge = RequestMiddleware(held, waiting=Waiting(most=1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(edge), base_url="http://test") as opened:
        first = asyncio.create_task(opened.get("/"))
        await begun.wait()
        turned_away = await opened.get("/")
        going.set()
        answered = await first
        again = await opened.get("/")
    assert (turned_away.status_code, turned_away.json()["code"]) == (503, "unavailable")
    assert turned_away.headers["retry-after"] == "1"
    assert (answered.status_code, again.status_code) == (204, 204)


@pytest.mark.parametrize("share", ["of_a_key", "of_a_ledger"])
async def test_the_requests_of_one_key_and_of_one_ledger_leave_room_for_others_to_wait(share: str) -> None:
    begun, going = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        begun.set()
        await going.wait()
        raise Unknown("code")

    async def authenticate(presented: str, _now: object) -> ApiKey:
        ledger_id = int(presented) if share == "of_a_ledger" else 1
        return replace(KEY, key_id=UUID(int=int(presented)), ledger_id=ledger_id)

    async with client(held) as opened:
        application = cast("Any", opened._transport).app
        application.state.services.authenticator.authenticate = authenticate
        setattr(application.state.places.requests, share, 1)

        async def ask(key: int) -> tuple[int, str]:
            headers, body = {"Authorization": f"Bearer {key}"}, {"secret": "#abc-of-nobody", "advertiser_id": "a"}
            answer = await opened.post("/v1/redemptions", json=body, headers=headers)
            return answer.status_code, answer.headers.get("retry-after", "")

        first = asyncio.create_task(ask(1))
        await begun.wait()
        turned_away = [await ask(1) for _ in range(2)]
        begun.clear()
        others = asyncio.create_task(ask(2))
        await begun.wait()
        going.set()
        answered = [await first, await others, await ask(1)]
    assert turned_away == [(429, "1")] * 2
    assert answered == [(404, "")] * 3


def test_a_key_that_takes_no_place_is_not_remembered() -> None:
    places: Slots[str] = Slots()
    for _ in range(2):
        places.take("a")
    places.take("b")
    assert (places.taken("a"), places.taken("b"), places.taken("c")) == (2, 1, 0)
    for key in ("a", "b", "a"):
        places.give_back(key)
    assert places.taken("a") == 0
    assert places == {}


async def test_a_body_over_the_limit_is_never_read() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    async with client(broken, max_body_bytes=1000) as opened:
        announced = await opened.post("/v1/redemptions", content=b" " * 1001, headers=headers)
        chunked = await opened.post("/v1/redemptions", content=chunks(), headers=headers)
        inside = await opened.post("/v1/redemptions", content=b" " * 1000, headers=headers)
    assert [answer.status_code for answer in (announced, chunked, inside)] == [413, 413, 422]
    assert announced.headers["connection"] == chunked.headers["connection"] == "close"


async def test_every_answer_bears_an_id_of_its_own_and_the_headers_that_keep_it_safe() -> None:
    async with client(broken) as opened:
        answers = [await opened.get(path) for path in ("/livez", "/nowhere", "/openapi.json", "/docs", "/metrics")]
        answers.append(await redeem(opened))
    assert len({answer.headers["request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


async def test_figures_are_kept_by_route_and_never_by_what_a_stranger_made_up() -> None:
    async with client(broken) as opened:
        await opened.get("/v1/made-up-by-a-stranger")
        await redeem(opened)
        figures = (await opened.get("/metrics")).text
    assert 'method="POST",route="/v1/redemptions",status="500"' in figures
    assert 'method="other",route="none",status="404"' in figures
    assert "made-up" not in figures


async def test_only_the_methods_of_a_route_are_kept_by_route() -> None:
    async with client(broken) as opened:
        routes = cast("Any", opened._transport).app.routes
        known = {(method, route.path) for route in routes for method in route.methods}
        for path in sorted({path for _, path in known}):
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
                if ("GET" if method == "HEAD" else method, path) not in known:
                    assert (await opened.request(method, path)).status_code in {404, 405}
        figures = (await opened.get("/metrics")).text
    kept = set(re.findall(r'^sparkledger_http_\w+\{.*?method="(\w+)",route="([^"]+)"', figures, re.MULTILINE))
    assert kept <= known | {("other", "none")}


async def test_the_figures_are_rendered_once_for_all_who_ask_and_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[threading.Thread] = []
    render: Callable[..., bytes] = cast("Any", metrics).generate_latest

    def watched(*registries: Any) -> bytes:
        rendered.append(threading.current_thread())
        return render(*registries)

    monkeypatch.setattr(metrics, "generate_latest", watched)
    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 3600)
    async with client(broken) as opened:
        answers = [await asyncio.gather(*(opened.get("/metrics") for _ in range(8))) for _ in range(2)]
    assert {answer.status_code for answered in answers for answer in answered} == {200}
    assert len(rendered) == 2, "this process's figures, and the worker's"
    assert threading.current_thread() not in rendered


@pytest.mark.parametrize("path", ["/metric%73", "/%6Detrics", "/v1%2Fkeys", "/v1/%6Beys", "/v1/codes%2flookup"])
async def test_a_route_spelt_in_another_way_is_no_route(path: str) -> None:
    async with client(broken) as opened:
        answer = await opened.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "route_unknown")


async def test_what_is_encoded_in_an_id_is_decoded_and_is_no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    code_id = UUID(int=7)

    async def code_stream(_self: object, _ledger_id: int, asked: UUID) -> None:
        raise Unavailable(str(asked))

    monkeypatch.setattr(Fake, "code_stream", code_stream, raising=False)
    async with client(broken) as opened:
        ids = (f"{code_id}", f"{code_id}".replace("-", "%2D"), f"{code_id}%2Fhistory", "%2E%2E")
        answers = [await opened.get(f"/v1/codes/{sent}") for sent in ids]
    assert [answer.json()["detail"] for answer in answers[:2]] == [str(code_id)] * 2
    assert [answer.json()["code"] for answer in answers[2:]] == ["code_unknown"] * 2


async def test_a_key_that_asks_too_much_is_told_when_to_come_back() -> None:
    async with client(unknown, per_second=5) as opened:
        cast("Any", opened._transport).app.state.limits = Limits(Limit(5, 5, lambda: 0.0))  # time stands still
        answers = [await opened.get("/v1/codes/x") for _ in range(8)]
    assert [answer.status_code for answer in answers[:5]] == [404] * 5
    assert answers[-1].status_code == 429
    assert answers[-1].json()["code"] == "too_many_requests"
    assert answers[-1].headers["retry-after"] == "1"


async def test_guessing_codes_is_stopped_for_redeeming_and_looking_up_alike() -> None:
    brand = replace(KEY, role="brand", subjects=Subjects(advertiser_ids=frozenset({"a"})))
    async with client(unknown, per_second=10_000, key=brand) as opened:
        state = cast("Any", opened._transport).app.state
        # Its clock stands still, so that the bucket does not fill again on a slow machine.
        state.limits = Limits(state.limits.requests, GuessLimit(lambda: 0.0))
        guesses = [await redeem(opened, f"#abc-of-nobody-{n}") for n in range(UNKNOWN_CODES_AT_ONCE + 1)]
        lookup = await opened.post("/v1/codes/lookup", json={"secret": "#abc-of-nobody"})
        elsewhere = await opened.get("/v1/codes/x")
    assert [answer.status_code for answer in guesses] == [404] * UNKNOWN_CODES_AT_ONCE + [429]
    for answer in (guesses[-1], lookup):
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_unknown_codes")
        assert 1 <= int(answer.headers["retry-after"]) <= 3
    assert elsewhere.status_code == 404


def test_a_bucket_fills_again_and_is_never_fuller_than_full() -> None:
    now = 0.0
    limit: Limit[str] = Limit(2, 0.5, lambda: now)

    limit.take("a")
    limit.take("a")
    assert limit.wait_s("a") == 2.0
    assert limit.wait_s("b") == 0.0
    limit.take("a")  # let in together with the others: on credit
    assert limit.wait_s("a") == 4.0
    now = 4.0
    assert limit.wait_s("a") == 0.0
    now = 1000.0
    limit.take("a")
    limit.take("a")
    assert limit.wait_s("a") == 2.0


def test_a_token_that_is_given_back_is_one_that_was_never_taken() -> None:
    limit: Limit[str] = Limit(2, 0.5, lambda: 0.0)
    limit.give_back("a")
    limit.take("a")
    limit.take("a")
    limit.give_back("a")
    assert (limit.wait_s("a"), limit.wait_s("b")) == (0.0, 0.0)
    limit.take("a")
    assert limit.wait_s("a") == 2.0


def test_so_many_missed_codes_are_remembered_and_no_more() -> None:
    limit: GuessLimit[str] = GuessLimit(lambda: 0.0, remembered=2)
    assert [limit.is_new("a", code) for code in ("one", "two", "one", "three")] == [True, True, False, True]
    # The one that was repeated last of all is the one that was forgotten.
    assert [limit.is_new("a", "one"), limit.is_new("a", "two")] == [False, True]
    assert limit.is_new("b", "one")
    assert len(limit._missed) == 2


def test_buckets_are_kept_for_so_many_keys_and_no_more() -> None:
    limit: Limit[int] = Limit(1, 1, lambda: 0.0)
    for key in range(MAX_KEYS + 10):
        limit.take(key)
    assert len(limit._buckets) == MAX_KEYS


async def test_a_key_of_another_role_is_turned_away_before_its_body_is_read() -> None:
    async with client(broken, key=replace(KEY, role="auditor")) as opened:
        answer = await opened.post("/v1/redemptions", content=b"{")
    assert answer.status_code == 403
