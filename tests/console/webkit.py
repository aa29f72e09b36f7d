"""Debian's WebKit, the engine of Safari, driven by WebDriver: its own small browser on a screen that nobody sees."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx

from tests.infra.delivery.kafka.broker import free_ports
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DRIVER: Final = shutil.which("WebKitWebDriver")
SCREEN: Final = shutil.which("Xvfb")
START_S: Final = 60.0
ANSWER_S: Final = 300.0


class Refused(Exception):
    """WebKit did not do what it was told."""


class Tab:
    """The window of one session (W3C WebDriver 2)."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        # Scripts run for as long as a page may be busy.
        asked = {"alwaysMatch": {"timeouts": {"script": int(ANSWER_S * 1000)}}}
        self._session = self._command("POST", "/session", capabilities=asked)["sessionId"]

    def go(self, url: str) -> None:
        """Open an address."""
        self._command("POST", f"/session/{self._session}/url", url=url)

    def call(self, function: str, *arguments: Any) -> Any:
        """Return what a function of the page's language returns."""
        script = f"return ({function})(...arguments)"
        return self._command("POST", f"/session/{self._session}/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        """Click an element."""
        self._command("POST", f"/session/{self._session}/element/{self._element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field; into one for files, the path of a file."""
        self._command("POST", f"/session/{self._session}/element/{self._element(selector)}/value", text=text)

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""
        has = "(selector, text) => (document.querySelector(selector)?.innerText ?? '').includes(text)"
        until(lambda: bool(self.call(has, selector, text)), START_S)

    def _element(self, selector: str) -> str:
        found = self._command("POST", f"/session/{self._session}/element", using="css selector", value=selector)
        (reference,) = found.values()
        return str(reference)

    def close(self) -> None:
        """End the session, and the browser with it."""
        self._command("DELETE", f"/session/{self._session}")

    def _command(self, method: str, path: str, **body: Any) -> Any:
        value = self._client.request(method, path, json=body if method == "POST" else None).json()["value"]
        if isinstance(value, dict) and "error" in value:
            raise Refused(f"{value['error']}: {value.get('message')}")
        return value


@contextmanager
def webkit(folder: Path) -> Iterator[Tab]:
    """Run WebKit with a home of its own, and open a window."""
    assert DRIVER is not None
    assert SCREEN is not None
    with _screen() as display, _driver(folder, display) as url, httpx.Client(base_url=url, timeout=ANSWER_S) as client:
        until(lambda: _is_ready(client), START_S)
        tab = Tab(client)
        try:
            yield tab
        finally:
            tab.close()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/status").json()["value"]["ready"])
    except httpx.TransportError:
        return False


@contextmanager
def _screen() -> Iterator[str]:
    """A screen, whose number the X server chooses."""
    reading, writing = os.pipe()
    command = [str(SCREEN), "-displayfd", str(writing), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as process:
        os.close(writing)
        try:
            with os.fdopen(reading) as number:
                yield f":{number.readline().strip()}"
        finally:
            process.terminate()
            process.wait(START_S)


@contextmanager
def _driver(folder: Path, display: str) -> Iterator[str]:
    [port] = free_ports(1)
    environment = {**os.environ, "DISPLAY": display, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    environment |= {"LIBGL_ALWAYS_SOFTWARE": "1", "WEBKIT_DISABLE_COMPOSITING_MODE": "1", "GDK_BACKEND": "x11"}
    command = [str(DRIVER), f"--port={port}"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(START_S)
