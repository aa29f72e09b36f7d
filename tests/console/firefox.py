"""Debian's Firefox, driven by WebDriver BiDi as people use it: by clicks and keys.

Playwright drives only a Firefox of its own, so this is the little of BiDi that a walk through the pages needs
(W3C WebDriver BiDi, 7).
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from websockets.sync.client import ClientConnection, connect

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARY: Final = shutil.which("firefox-esr") or shutil.which("firefox")
START_S: Final = 60.0
ANSWER_S: Final = 60.0
ENTER: Final = "\ue007"
# Nothing that the browser does on its own: a test looks at what pages ask for.
_PREFERENCES: Final = {
    "app.normandy.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.active-protocols": 1,
}
_LISTENING: Final = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


class Refused(Exception):
    """Firefox did not do what it was told."""


class Tab:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        self._command("session.new", capabilities={})
        self._command("session.subscribe", events=["log.entryAdded"])
        self._context: str = self._command("browsingContext.create", type="tab")["context"]

    def go(self, url: str) -> None:
        """Open an address."""
        self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def back(self) -> None:
        """Go back by one."""
        self._command("browsingContext.traverseHistory", context=self._context, delta=-1)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, of a text, a number or a truth."""
        target = {"context": self._context}
        done = self._command("script.evaluate", expression=expression, target=target, awaitPromise=True)
        if done["type"] != "success":
            raise Refused(done["exceptionDetails"]["text"])
        return done["result"].get("value")

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element has a text."""

        def is_there() -> bool:
            wanted = f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(text)})"
            try:
                return bool(self.evaluate(wanted))
            except Refused:
                # The page is being left.
                return False

        until(is_there, START_S)

    def click(self, selector: str) -> None:
        """Click an element, where it is on the screen; once more if the page moved under the pointer."""
        locator = {"type": "css", "value": selector}
        found = f"document.querySelector({json.dumps(selector)})"

        def is_clicked() -> bool:
            self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
            self.evaluate(
                f"window.wasClicked = false, {found}.addEventListener('click',"
                " () => window.wasClicked = true, {capture: true, once: true}), true"
            )
            (node, *_) = self._command("browsingContext.locateNodes", context=self._context, locator=locator)["nodes"]
            origin = {"type": "element", "element": {"sharedId": node["sharedId"]}}
            self._act(
                "pointer",
                {"type": "pointerMove", "x": 0, "y": 0, "origin": origin},
                {"type": "pointerDown", "button": 0},
                {"type": "pointerUp", "button": 0},
            )
            try:
                return self.evaluate("window.wasClicked") is not False
            except Refused:
                # The page is being left.
                return True

        until(is_clicked, START_S)

    def type(self, selector: str, text: str) -> None:
        """Click a field, and type a text."""
        self.click(selector)
        self._act("key", *({"type": kind, "value": one} for one in text for kind in ("keyDown", "keyUp")))

    def pick(self, selector: str, path: Path) -> None:
        """Have a field for files hold one."""
        locator = {"type": "css", "value": selector}
        (node, *_) = self._command("browsingContext.locateNodes", context=self._context, locator=locator)["nodes"]
        element = {"sharedId": node["sharedId"]}
        self._command("input.setFiles", context=self._context, element=element, files=[str(path)])

    def _act(self, kind: str, *actions: dict[str, Any]) -> None:
        source = {"type": kind, "id": kind, "actions": list(actions)}
        self._command("input.performActions", context=self._context, actions=[source])

    def _command(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(ANSWER_S))
            if message.get("method") == "log.entryAdded" and message["params"]["level"] == "error":
                self.errors.append(str(message["params"]["text"]))
            if message.get("id") == number:
                if message["type"] == "error":
                    raise Refused(f"{message['error']}: {message['message']}")
                return message["result"]


@contextmanager
def firefox(profile: Path) -> Iterator[Tab]:
    """Run Firefox with a profile of its own, and open a tab."""
    assert BINARY is not None
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _PREFERENCES.items())
    (profile / "user.js").write_text("\n".join(lines))
    command = [BINARY, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            found = next(found for line in process.stderr if (found := _LISTENING.search(line)) is not None)
            with connect(f"{found[1]}/session", open_timeout=START_S, max_size=None, origin=None) as connection:
                yield Tab(connection)
        finally:
            process.terminate()
            process.wait(START_S)
