"""Callers of the API that note what they were told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Final, Literal

import httpx

from tests.faults.standbys import WITHIN_S
from tests.faults.test_lost_ends import Ledger
from tests.infra.eventstore.checker import Told
from tests.waiting import until

CALLERS: Final = 4

# By what their commands are known in the log.
MARK: Final = "creator_id"


class Callers:
    """Callers that switch on the permission of one creator after another, and note what they were told."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ended = threading.Event()
        self.told: list[Told] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the block ends."""
        with ThreadPoolExecutor(CALLERS) as callers:
            calls = [callers.submit(self._call, number) for number in range(CALLERS)]
            try:
                yield
            finally:
                self._ended.set()
        for call in calls:
            call.result()

    def until_recorded(self, more: int) -> None:
        """Wait until so many more commands are acknowledged."""
        reached = self.recorded() + more
        until(lambda: self.recorded() >= reached, WITHIN_S)

    def recorded(self) -> int:
        """Return how many commands are acknowledged."""
        return sum(told.answer == "recorded" for told in self.told)

    def _call(self, caller: int) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            creator_id, began = f"creator-{caller}-{number}", monotonic()
            answer: Literal["recorded", "unknown"] = "unknown"
            position = 0
            try:
                response = self._ledger.permit(creator_id)
            except httpx.TransportError:
                pass
            else:
                if response.is_success:
                    answer, position = "recorded", response.json()["position"]
            self.told.append(Told(1, creator_id, 1, answer, position, position, began=began, ended=monotonic()))
