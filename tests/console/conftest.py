"""One browser and one seeded ledger for all tests of the console of a process.

Playwright's plain API keeps an event loop running in its thread, where nothing else can run one. So it has a thread of
its own: tests of this folder run there, and fixtures make what is the browser's there, by `Browsers.run`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)

from tests.absent import absent
from tests.api.world import World
from tests.console.seed import Seeded, seed
from tests.serving import Server, new_ledger

if TYPE_CHECKING:
    from tests.serving import Serving

T = TypeVar("T")
# The same browser without windows takes less than half of the processor's time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
# A page may come late on a busy machine: no time decides a test, but for those that name theirs.
expect.set_options(timeout=15_000)
SIGNED_IN = 303
# What browsers say of answers that are refused on purpose.
EXPECTED_ERRORS = ("Failed to load resource: the server responded with a status of",)


class Browsers:
    """The thread of the browser, and the browser."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="browser")
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def run(self, do: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """Do something in the browser's thread."""
        return self._thread.submit(do, *arguments, **more).result()

    def browser(self) -> Browser:
        """Return the browser, in its thread."""
        if self._browser is None:
            self._playwright = sync_playwright().start()
            self._browser = self._playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        return self._browser

    def close(self) -> None:
        """End the browser."""

        def end() -> None:
            if self._browser is not None and self._playwright is not None:
                self._browser.close()
                self._playwright.stop()

        self.run(end)
        self._thread.shutdown()


@pytest.fixture(scope="session")
def browsers() -> Iterator[Browsers]:
    """The browser of this process."""
    if CHROMIUM is None:
        absent("Tests of the console need a browser: apt-get install chromium-headless-shell")
    running = Browsers()
    yield running
    running.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that has a browser in the browser's thread."""
    browsers = pyfuncitem.funcargs.get("browsers")
    if not isinstance(browsers, Browsers):
        return None
    named = pyfuncitem._fixtureinfo.argnames
    browsers.run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in named})
    return True


@dataclass
class Windows:
    """Windows of the browser on one server, and all that was asked for from them."""

    browsers: Browsers
    server: Server
    contexts: list[BrowserContext] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, key: str | None = None, **options: Any) -> Page:
        """Open a window that shares nothing with others, on no page yet; with a key, signed in."""
        context = self.browsers.browser().new_context(**{"base_url": self.server.url, "timezone_id": "UTC"} | options)
        self.contexts.append(context)
        page = context.new_page()
        context.on("request", self._note)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        if key is not None:
            _signed_in(context, key)
        return page

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED_ERRORS):
            self.errors.append(message.text)

    def elsewhere(self) -> set[str]:
        """Return the hosts that anything was asked of, beside our own."""
        hosts = {urlsplit(url).netloc for url in self.asked if urlsplit(url).scheme in {"http", "https", "ws", "wss"}}
        return {host for host in hosts if urlsplit(f"//{host}").hostname not in {"127.0.0.1", "localhost"}}


def _signed_in(context: BrowserContext, key: str) -> None:
    """Sign a window in without drawing the two pages that `sign_in` goes through."""
    headers = {"Sec-Fetch-Site": "same-origin"}
    answer = context.request.post("/sign-in", form={"key": key}, headers=headers, max_redirects=0)
    assert answer.status == SIGNED_IN


def sign_in(page: Page, key: str, path: str = "/") -> None:
    """Sign in as a person would."""
    page.goto(f"/sign-in?next={path}")
    page.get_by_label("API key").fill(key)
    follow(page.get_by_role("button", name="Sign in"))


def follow(leads: Locator) -> None:
    """Click on what leads to a page, and wait until that page is there as a whole."""
    with leads.page.expect_navigation():
        leads.click()


@pytest.fixture(scope="session")
def seeded_servers() -> dict[str, tuple[Server, Seeded]]:
    """The seeded ledgers of this process, by the address of their server: now and then another takes its place."""
    return {}


@pytest.fixture
def seeded_server(serving: Serving, seeded_servers: dict[str, tuple[Server, Seeded]]) -> tuple[Server, Seeded]:
    """A ledger with something on every page; tests of this folder only read it."""
    if serving.url not in seeded_servers:
        server = new_ledger(serving)
        with server.client() as client:
            seeded_servers[serving.url] = server, seed(client)
    return seeded_servers[serving.url]


@pytest.fixture
def seeded(seeded_server: tuple[Server, Seeded]) -> Seeded:
    """What the ledger has that all tests share."""
    return seeded_server[1]


@pytest.fixture
def seeded_ledger(seeded_server: tuple[Server, Seeded]) -> Server:
    """The server, with the ledger that all tests share."""
    return seeded_server[0]


@pytest.fixture
def windows(browsers: Browsers, seeded_server: tuple[Server, Seeded]) -> Iterator[Windows]:
    """Windows on the ledger that all tests share. No test may ask another host for anything, or break a policy."""
    yield from _windows(browsers, seeded_server[0])


@pytest.fixture
def own_windows(browsers: Browsers, server: Server) -> Iterator[Windows]:
    """Windows on a ledger of the test's own."""
    yield from _windows(browsers, server)


@pytest.fixture
def own_world(server: Server) -> Iterator[World]:
    """The ledger behind `own_windows`, as its administrator's programs see it."""
    with server.client() as client:
        world = World(server, client)
        yield world
        for opened in world.clients:
            opened.close()


def _windows(browsers: Browsers, server: Server) -> Iterator[Windows]:
    windows = Windows(browsers, server)
    yield windows

    def close() -> None:
        for context in windows.contexts:
            context.close()

    browsers.run(close)
    assert windows.elsewhere() == set()
    assert windows.errors == []
