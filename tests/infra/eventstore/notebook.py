"""What a process under load asks for and is told, written down so that a killed process has told it all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal

import orjson

from infra.errors import Unavailable
from infra.eventstore.group_commit import FULL, NOT_RECORDED, REFUSED_WRITE, STOPPING
from tests.infra.eventstore.checker import Told

# What callers are told of whom nothing is recorded; of others who got no answer that is not known.
_NOTHING: Final = frozenset({FULL, STOPPING, NOT_RECORDED, REFUSED_WRITE})


def untold(error: Unavailable) -> Literal["refused", "unknown"]:
    """Return what an attempt was told that could not be carried out."""
    return "refused" if str(error) in _NOTHING else "unknown"


class Notebook:
    """Two lines for each attempt, one before it is sent and one when it is answered, each in one write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._attempts = 0

    def close(self) -> None:
        os.close(self._file)

    def sends(self, ledger_id: int, mark: str, events: int, what: Any = None) -> int:
        """Note an attempt, and return its number; `what` is all it takes to send it again."""
        self._attempts += 1
        self._write([self._attempts, ledger_id, mark, events, monotonic(), what])
        return self._attempts

    def told(
        self,
        attempt: int,
        answer: Literal["recorded", "refused", "unknown"],
        first: int = 0,
        last: int = 0,
        version: int | None = None,
    ) -> None:
        """Note the answer to an attempt."""
        self._write([attempt, answer, first, last, version, monotonic()])

    def _write(self, line: list[Any]) -> None:
        os.write(self._file, orjson.dumps(line) + b"\n")


@dataclass(frozen=True)
class Noted:
    """An attempt that a notebook tells of, and all it takes to send it again."""

    told: Told
    what: Any


def noted(path: Path) -> Iterator[Noted]:
    """Read a notebook; an attempt without an answer is `unknown`."""
    sent: dict[int, list[Any]] = {}
    answers: dict[int, list[Any]] = {}
    for line in path.read_bytes().splitlines():
        fields = orjson.loads(line)
        (answers if isinstance(fields[1], str) else sent)[fields[0]] = fields
    for attempt, (_, ledger_id, mark, events, began, what) in sent.items():
        _, answer, first, last, version, ended = answers.get(attempt, [attempt, "unknown", 0, 0, None, 0.0])
        yield Noted(Told(ledger_id, mark, events, answer, first, last, version, began, ended), what)
