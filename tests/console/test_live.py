"""Open pages: what they cost, what they show while something stops, and that a tab nobody looks at costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from api.console import visit
from domain.code import Code
from projections import event_index
from tests.api.test_event_search import has_stopped, skip
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
RELOADS = 3
IN_BACKGROUND = """
Object.defineProperty(document, "hidden", {value: true, configurable: true});
Object.defineProperty(document, "visibilityState", {value: "hidden", configurable: true});
"""


def _streams(world: World) -> int:
    places = told(world.client.get("/v1/stats"), 200)["places"]
    return next(int(place["held"]) for place in places if place["place"] == "streams")


def _connected(page: Page, world: World) -> None:
    """Wait until the page's live channel is there. A browser that was too busy to begin it gets the page again."""
    for _ in range(RELOADS):
        try:
            _wait_for_streams(page, world, 1, SLOW_S / RELOADS)
        except AssertionError:
            page.reload()
        else:
            return
    _wait_for_streams(page, world, 1)


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


def test_ten_tabs_work_and_only_the_one_in_front_has_a_connection(own_windows: Windows, own_world: World) -> None:
    front = own_windows.open(own_windows.server.admin_key)
    expect(front.get_by_role("heading", name="Needs attention")).to_be_visible()
    _connected(front, own_world)
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
    with page.expect_response("**/live*"):
        page.goto("/events")
    page.evaluate(HIDE, arg=True)
    _wait_for_streams(page, own_world, 0)
    asked = len(own_windows.asked)
    own_world.generate()
    other = own_windows.open(own_windows.server.admin_key)
    expect(other.get_by_role("heading", name="Needs attention")).to_be_visible()
    assert not [url for url in own_windows.asked[asked:] if "/live" in url and other.url not in url][1:]
    expect(page.locator("#live a")).to_have_count(0)
    page.evaluate(HIDE, arg=False)
    expect(page.locator("#live a")).to_have_text("2 new events", timeout=1_000 * SLOW_S)


@pytest.fixture
def stopped(own_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger whose history stops at a share, which is its third event."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

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
