"""A client of the event stream: reads frames as they come, by the rules of Server-Sent Events."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx

WITHIN_S: Final = 15.0


@dataclass(frozen=True)
class Frame:
    """What stood between two empty lines."""

    id: str | None
    event: str | None
    data: str | None
    comments: tuple[str, ...]

    @property
    def position(self) -> int | None:
        """The position in its id."""
        return None if self.id is None else int(self.id.rpartition(":")[2])


class Following:
    """An open stream, read by a thread."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.frames: list[Frame] = []
        self.last_id: str | None = None
        self._frames: queue.Queue[Frame | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            lines: list[str] = []
            for line in self.response.iter_lines():
                if line:
                    lines.append(line)
                else:
                    self._frames.put(_frame(lines))
                    lines = []
        except (httpx.StreamError, httpx.TransportError):
            pass  # closed by the test, or by the server in mid-sentence
        self._frames.put(None)

    def frame(self) -> Frame | None:
        """Return the next frame, None at the end."""
        found = self._frames.get(timeout=WITHIN_S)
        if found is not None:
            self.frames.append(found)
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield events up to the end."""
        while (frame := self.frame()) is not None:
            if frame.data is not None and frame.event is None:
                self.last_id = frame.id
                event: dict[str, Any] = json.loads(frame.data)
                assert frame.id == f"{self.response.headers['ledger-history']}:{event['position']}"
                yield event

    def take(self, number: int) -> list[dict[str, Any]]:
        """Return the next events."""
        events = self.events()
        return [next(events) for _ in range(number)]

    def ending(self) -> str | None:
        """Wait for the end, and return the reason that it gave, if any."""
        told = None
        while (frame := self.frame()) is not None:
            if frame.event == "end" and frame.data is not None:
                told = json.loads(frame.data)["code"]
        return told


def _frame(lines: list[str]) -> Frame:
    fields: dict[str, str] = {}
    comments = []
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        else:
            comments.append(value.strip())
    return Frame(fields.get("id"), fields.get("event"), fields.get("data"), tuple(comments))


@contextmanager
def following(client: httpx.Client, seen: int | str | None = None, **query: Any) -> Iterator[Following]:
    """Follow the stream for as long as the block takes; `seen` is the last id that was seen."""
    headers = {} if seen is None else {"Last-Event-ID": str(seen)}
    with client.stream("GET", "/v1/events/stream", params=query, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        try:
            yield Following(response)
        finally:
            # The thread waits in the socket, which closing alone would not end.
            with suppress(OSError):
                response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
