"""Open pages: what they cost, how they come back to what they lost, and what they show while something stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from api.console import live, visit
from domain.code import Code
from infra.errors import Unavailable
from projections import event_index
from tests.api.test_event_search import LEDGER_ID, has_stopped, skip
from tests.api.world import World, told
from tests.console.conftest import Windows
from tests.console.test_start import visitor
from tests.serving import Server
from tests.waiting import until

# Browsers without a window show all tabs, so a test says which are hidden, as a browser with a window does.
HIDE = """
(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  Object.defineProperty(document, "visibilityState", {value: hidden ? "hidden" : "visible", configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}
"""
# Ten tabs on a machine that has other things to do.
SLOW_S = 60
LOOK_EVERY_MS = 200
# By the page's own clock: after so long without a word, and so long after a failure, it asks again.
SILENT_MS = 36_000
LONGEST_WAIT_MS = 20_000
IN_BACKGROUND = """
Object.defineProperty(document, "hidden", {value: true, configurable: true});
Object.defineProperty(document, "visibilityState", {value: "hidden", configurable: true});
"""


def _streams(world: World) -> int:
    places = told(world.client.get("/v1/stats"), 200)["places"]
    return next(int(place["held"]) for place in places if place["place"] == "streams")


def _wait_for_streams(page: Page, world: World, count: int, within_s: float = SLOW_S) -> None:
    """Wait until so many streams are open; between looks the browser goes on, and the server has time for it."""

    def are_there() -> bool:
        page.wait_for_timeout(LOOK_EVERY_MS)
        return _streams(world) == count

    until(are_there, within_s)


def _in_background(context: BrowserContext, path: str) -> Page:
    page = context.new_page()
    page.add_init_script(IN_BACKGROUND)
    page.goto(path)
    return page


@pytest.mark.long("a browser keeps ten pages open")
def test_ten_tabs_work_and_only_the_one_in_front_has_a_connection(own_windows: Windows, own_world: World) -> None:
    front = own_windows.open(own_windows.server.admin_key)
    front.goto("/")
    expect(front.get_by_role("heading", name="Needs attention")).to_be_visible()
    _wait_for_streams(front, own_world, 1)
    others = [_in_background(front.context, path) for path in ("/codes", "/events", "/keys") * 3]
    for page in others:
        expect(page.locator("details.who")).to_be_visible()
    _wait_for_streams(front, own_world, 1)
    front.reload()
    expect(front.get_by_role("heading", name="Needs attention")).to_be_visible()
    front.evaluate(HIDE, arg=True)
    others[4].evaluate(HIDE, arg=False)
    code = own_world.generate()
    expect(others[4].locator("#live a")).to_contain_text("new event", timeout=1_000 * SLOW_S)
    _wait_for_streams(front, own_world, 1)
    assert code["position"] > 0


def test_a_hidden_tab_asks_for_nothing_and_counts_what_it_missed_when_it_is_shown(
    own_windows: Windows, own_world: World
) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    with page.expect_response("**/live"):
        page.goto("/events")
    page.evaluate(HIDE, arg=True)
    _wait_for_streams(page, own_world, 0)
    asked = len(own_windows.asked)
    own_world.generate()
    other = own_windows.open(own_windows.server.admin_key)
    other.goto("/")
    expect(other.get_by_role("heading", name="Needs attention")).to_be_visible()
    assert not [url for url in own_windows.asked[asked:] if "/live" in url and other.url not in url][1:]
    expect(page.locator("#live a")).to_have_count(0)
    page.evaluate(HIDE, arg=False)
    expect(page.locator("#live a")).to_have_text("2 new events", timeout=1_000 * SLOW_S)


def _silence(_: Route) -> None:
    """Leave a request without an answer."""


# What may come in place of the live channel.
FAULTS: dict[str, Callable[[Route], None]] = {
    "a refusal": lambda route: route.fulfill(status=503, content_type="application/problem+json", body="{}"),
    "a page": lambda route: route.fulfill(content_type="text/html", body="<h1>Sign in</h1>"),
    "no connection": lambda route: route.abort(),
    "a channel that is cut": lambda route: route.fulfill(content_type="text/event-stream", body="data: 0\n\n"),
    "silence": _silence,
}
COUNT = """
window.asked = 0;
window.failed = 0;
window.EventSource = class extends EventSource {
  constructor(address) {
    super(address);
    window.asked += 1;
    this.addEventListener("error", () => { window.failed += 1; });
  }
};
"""


def test_a_page_gets_its_live_channel_back_whatever_came_in_its_place(
    own_windows: Windows, own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    left = list(FAULTS.values())
    page.clock.install()
    # Between two steps of this test no time passes, however long they take: the page would ask on its own.
    page.clock.pause_at(datetime.now(UTC) + timedelta(hours=1))
    page.add_init_script(COUNT)
    page.route("**/live", lambda route: left.pop(0)(route) if left else route.continue_())
    page.goto("/events")
    for number, name in enumerate(FAULTS, 1):
        if name == "silence":
            # With the pause after it: to wait longer would be another silence, if the answer is slow.
            page.clock.run_for(SILENT_MS)
        else:
            page.wait_for_function("number => window.failed === number", arg=number)
            page.clock.run_for(LONGEST_WAIT_MS)
        assert page.evaluate("window.asked") == number + 1, name
    _wait_for_streams(page, own_world, 1)
    with monkeypatch.context() as broken:

        async def away(*_: object) -> None:
            raise Unavailable("The database is away.")

        broken.setattr(live, "_look", away)
        page.wait_for_function("number => window.failed === number", arg=len(FAULTS))
    page.clock.run_for(LONGEST_WAIT_MS)
    own_world.generate()
    expect(page.locator("#live a")).to_contain_text("new event", timeout=1_000 * SLOW_S)
    # A browser says of each fault what it was.
    own_windows.errors[:] = [one for one in own_windows.errors if not one.startswith(("Failed to load", "EventSource"))]


def test_a_reader_can_stop_the_counting_and_it_stays_so(own_windows: Windows, own_world: World) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/")
    _wait_for_streams(page, own_world, 1)
    page.get_by_role("button", name="Stop counting new events").click()
    _wait_for_streams(page, own_world, 0)
    page.reload()
    own_world.generate()
    with page.expect_response("**/live"):
        page.get_by_role("button", name="Count new events again").click()
    expect(page.locator("#live a")).to_have_text("2 new events", timeout=1_000 * SLOW_S)


@pytest.fixture
def stopped(own_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger whose history stops at a share, which is its third event."""

    [(own,)] = own_world.server.database.sql(LEDGER_ID, (own_world.server.ledger,))
    indexed, _ = event_index.VIEW._handler(Code.Shared)
    assert indexed is not None

    def broken(ledger_id: int, *event: Any) -> Any:
        if ledger_id == own:
            raise ZeroDivisionError
        # The view may still have to read what a test before this one shared.
        return indexed(ledger_id, *event)

    code = own_world.generate()
    with monkeypatch.context() as broken_view:
        broken_view.setitem(event_index.VIEW.creates, Code.Shared, broken)
        event_index.VIEW._handlers.clear()
        shared = own_world.share(code)
        own_world.generate()
        until(lambda: has_stopped(own_world))
        yield own_world
    event_index.VIEW._handlers.clear()
    asyncio.run(skip(own_world, shared["position"]))
    until(lambda: not has_stopped(own_world))


def test_a_view_that_stopped_under_an_open_page_is_said_and_nothing_looks_whole(
    own_windows: Windows, stopped: World
) -> None:
    with visitor(own_windows.server, own_windows.server.admin_key) as client:
        trail = client.get("/events", params={"type": "CodeGenerated"})
        system = client.get("/system")
    assert (trail.status_code, "has stopped, so later events are missing" in trail.text) == (200, True)
    assert "Something has stopped" in system.text
    assert "sparkledger rebuild history" in system.text
    assert f"--ledger {stopped.server.ledger} --position 3" in system.text


def test_a_list_that_lags_says_how_many_events_are_not_in_it(
    server: Server, own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = own_world.generate()["position"]
    until(lambda: own_world.client.get("/v1/codes", params={"at_least": position}).status_code == 200)

    async def ahead(_: object) -> int:
        return int(position) + 5

    with visitor(server, server.admin_key) as client:
        assert "not in it yet" not in client.get("/codes").text
        monkeypatch.setattr(visit.Visit, "head", ahead)
        page = client.get("/codes")
    assert f"up to event #{position}. 5 newer events are not in it yet" in page.text
