"""The process that makes pages beside the API: it is there for people, and nobody notices when it is not."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
import psutil
import pytest
from starlette.types import Scope

from api.http.app import create_app
from api.http.page_process import NotHandedOver, end_of
from tests.api.http.test_middleware import Fake, broken
from tests.api.processes import started_process
from tests.serving import LiveServer, Server
from tests.waiting import until
from tests.wired import services

pytestmark = pytest.mark.long("a process of pages starts, hangs and is killed")

OURS = {"Sec-Fetch-Site": "same-origin"}
# It loads as much as the API does, with less of the processor.
START_S = 60.0


def page_processes(parent: int) -> list[psutil.Process]:
    """Return the processes of pages below a process."""
    children = psutil.Process(parent).children(recursive=True)
    return [one for one in children if one.is_running() and "api.http.page_server" in one.cmdline()]


@contextmanager
def browser(url: str, key: str) -> Iterator[httpx.Client]:
    """Open a browser on a server, signed in."""
    with httpx.Client(base_url=url, headers=OURS, timeout=30, trust_env=False) as client:
        assert client.post("/sign-in", data={"key": key}).status_code == 303
        yield client


def began(client: httpx.Client) -> str:
    """Return when the process of pages began that answers now; nothing where none does."""
    shown = re.search(r'^process_start_time_seconds{process="pages"} (.+)$', client.get("/metrics").text, re.MULTILINE)
    return "" if shown is None else shown[1]


@pytest.fixture
def person(live_server: LiveServer) -> Iterator[httpx.Client]:
    """Somebody who is signed in, whose pages are made by the process of pages."""
    with browser(live_server.url, live_server.admin_key) as client:
        assert client.get("/codes").status_code == 200
        until(lambda: began(client) != "", START_S)
        yield client


def figure(client: httpx.Client, *labels: str) -> float:
    """Return how many requests were answered with these labels."""
    lines = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("sparkledger_http_requests_total")
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels))


class Absent:
    """Stands for a process of pages that is not there."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, scope: Scope, *_: object) -> None:
        self.asked.append(scope["path"])
        raise NotHandedOver

    async def figures(self) -> list[object]:
        return []


@pytest.mark.anyio
@pytest.mark.parametrize("servers", [1, 2])
async def test_it_is_asked_for_pages_of_people_who_are_signed_in_and_for_nothing_else(servers: int) -> None:
    absent = Absent()
    app = create_app(*(services(cast("Any", Fake(broken))) for _ in range(servers)), page_process=cast("Any", absent))
    asked = [
        *(("GET", path) for path in ("/", "/codes", "/codes/1", "/live", "/statistics")),
        *(("GET", path) for path in ("/v1/codes", "/sign-in", "/docs", "/livez", "/nowhere", "/assets/app.css")),
        *(("POST", path) for path in ("/sign-in", "/sign-out", "/find")),
    ]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    for cookies, expected in (
        ({}, []),
        ({"sparkledger-80": "x" * 43}, ["/", "/codes", "/codes/1", "/live", "/statistics", "/find"]),
    ):
        absent.asked.clear()
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", cookies=cookies) as client:
            for method, path in asked:
                await client.request(method, path, headers=OURS)
        assert absent.asked == expected


def test_pages_are_made_by_a_process_of_their_own_with_less_of_the_processor(
    live_server: LiveServer, person: httpx.Client
) -> None:
    (pages,) = page_processes(live_server.process.pid)
    assert pages.nice() > psutil.Process(live_server.process.pid).nice()
    made = figure(person, 'process="pages"', 'route="/v1/events"')
    answer = person.get("/events")
    assert (answer.status_code, answer.headers.get_list("request-id")) == (200, [answer.headers["request-id"]])
    until(lambda: figure(person, 'process="pages"', 'route="/v1/events"') == made + 1)


def test_an_attempt_is_recorded_with_the_address_and_the_browser_of_the_person(
    live_server: LiveServer, person: httpx.Client
) -> None:
    admin = {"Authorization": f"Bearer {live_server.admin_key}"}
    order = {"role": "auditor", "name": "curious"}
    auditor = person.post("/v1/keys", json=order, headers=admin).raise_for_status().json()["key"]
    with browser(live_server.url, auditor) as curious:
        curious.headers["User-Agent"] = "a browser of its own"
        assert curious.post("/give/permission", data={"creator_id": "ana", "form_id": "one"}).status_code == 403
    refused = person.get("/v1/accesses?refused=true", headers=admin).json()["accesses"][0]
    assert (refused["address"], refused["user_agent"]) == ("127.0.0.1", "a browser of its own")


def test_a_form_is_carried_out_unless_another_site_sends_it(live_server: LiveServer, person: httpx.Client) -> None:
    given = {"creator_id": "from-a-page", "enabled": "true", "form_id": "one"}
    assert person.post("/give/permission", data=given, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert person.post("/give/permission", data=given).status_code == 303
    admin = {"Authorization": f"Bearer {live_server.admin_key}"}
    until(lambda: person.get("/v1/creators/from-a-page/permission", headers=admin).json()["enabled"] is True)


def test_a_session_that_ends_in_one_process_has_ended_in_the_other(person: httpx.Client) -> None:
    with person.stream("GET", "/live") as live:
        said = live.iter_lines()
        assert next(said).startswith("data: ")
        assert person.post("/sign-out").status_code == 303
        assert "event: ended" in list(said)
    assert person.get("/codes").headers["location"].startswith("/sign-in")


def test_pages_are_still_answered_when_the_process_is_killed_and_it_comes_back(
    live_server: LiveServer, person: httpx.Client
) -> None:
    (pages,) = page_processes(live_server.process.pid)
    first = began(person)
    with person.stream("GET", "/live") as live:
        assert live.headers["content-type"].startswith("text/event-stream")
        pages.kill()
        # The channel breaks off, and the browser opens it again.
        with pytest.raises(httpx.RemoteProtocolError):
            live.read()
    assert person.get("/events").status_code == 200
    until(lambda: began(person) not in {"", first}, START_S)


@pytest.mark.anyio
async def test_one_that_answers_nothing_any_more_is_killed_and_no_other() -> None:
    asked = 0

    async def never() -> bool:
        return False

    async def until_it_ends() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            sleeping.terminate()
        return True

    for answers, ends_by in ((until_it_ends, signal.SIGTERM), (never, signal.SIGKILL)):
        sleeping = await asyncio.create_subprocess_exec("sleep", "600")
        assert await end_of(sleeping, answers, asked_every_s=0.01, silent_s=0.0) == -ends_by
    assert asked >= 3


def test_nobody_starts_it_who_is_not_signed_in(server: Server) -> None:
    with started_process(server.database, server.serving.master_key_text) as (url, process):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as stranger:
            assert stranger.get("/").status_code == 303
            stranger.cookies.set(f"sparkledger-{url.rpartition(':')[2]}", "x" * 43)
            assert stranger.get("/codes").headers["location"].endswith("ended=1")
        assert page_processes(process.pid) == []
        with browser(url, server.admin_key) as person:
            assert person.get("/codes").status_code == 200
            until(lambda: began(person) != "", START_S)
            (pages,) = page_processes(process.pid)
            os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs([pages], timeout=START_S)
    assert not pages.is_running()
