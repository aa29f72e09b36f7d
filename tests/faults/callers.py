"""Callers of the API that note what they were told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic
from typing import Final, Literal, Protocol

import httpx

from tests.faults.standbys import WITHIN_S
from tests.infra.eventstore.checker import Told
from tests.waiting import until

CALLERS: Final = 4

# By what their commands are known in the log.
MARK: Final = "creator_id"


class Permits(Protocol):
    """Where the permission of a creator is switched on."""

    def permit(self, creator_id: str) -> httpx.Response: ...


class Callers:
    """Callers that switch on the permission of one creator after another, and note what they were told.

    Attributes:
        told: what each attempt was told.
        answers: how many attempts had which status; `none` where there was no answer.

    """

    def __init__(self, ledger: Permits, name: str = "creator", *, again: bool = False) -> None:
        """Take where to call, how the creators' names begin, and whether to repeat what was not recorded."""
        self._ledger = ledger
        self._name = name
        self._again = again
        self._ended = threading.Event()
        self.told: list[Told] = []
        self.answers: Counter[str] = Counter()

    def silent_s(self, since: float) -> float:
        """Return the longest time without an acknowledgement since a moment of the clock that never jumps."""
        moments = [since, *sorted(one.ended for one in self.told if one.answer == "recorded" and one.ended > since)]
        return max((later - earlier for earlier, later in pairwise(moments)), default=0.0)

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
            while not self._attempt(f"{self._name}-{caller}-{number}") and self._again and not self._ended.is_set():
                pass

    def _attempt(self, creator_id: str) -> bool:
        began = monotonic()
        answer: Literal["recorded", "unknown"] = "unknown"
        status, position = "none", 0
        try:
            response = self._ledger.permit(creator_id)
        except httpx.TransportError:
            pass
        else:
            status = str(response.status_code)
            if response.is_success:
                answer, position = "recorded", response.json()["position"]
        self.answers[status] += 1
        self.told.append(Told(1, creator_id, 1, answer, position, position, began=began, ended=monotonic()))
        return answer == "recorded"
