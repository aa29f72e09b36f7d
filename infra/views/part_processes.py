"""Processes that fill parts of views at the same time, and are started again when one of them is killed.

Each is given its orders by its standard input, which ends with this process, so none outlives it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from projections.engine.parts import Part
from projections.engine.projector import PoisonEvent
from projections.engine.rebuild import PartFailed
from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infra.eventstore.all_ledgers_reader import AllLedgersReader

# How often a process that died is started again, so that one that always dies does not do so for ever.
RESTARTS_MAX: Final = 3
LINE_BYTES_MAX: Final = 1 << 20
STOP_WITHIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """A part of a view to fill: the line that orders it, what hears of its pages, and what became of it."""

    line: bytes
    on_page: Callable[[int], None]
    outcome: asyncio.Future[None]


class Processes:
    """As many processes as there are jobs, started with the first order; a context manager that leaves none behind."""

    def __init__(self, conninfo: str, log: AllLedgersReader, count: int) -> None:
        """Take the database, its log, and how many processes to use."""
        self.count = count
        self._log = log
        self._jobs = [_Job(conninfo, number) for number in range(1, count + 1)]

    async def __aenter__(self) -> Self:
        """Start nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all processes."""
        await asyncio.gather(*(job.close() for job in self._jobs))

    async def heads(self) -> Mapping[int, int]:
        """Return the last position of each ledger that has events."""
        return await self._log.heads()

    async def fill(self, view: str, count: int, upto: Mapping[int, int], on_page: Callable[[int], None]) -> None:
        """Fill all parts of a view, which may be more than there are processes, as `PartProcesses` says."""
        parts = [Part(number, count) for number in range(1, count + 1)]
        outcomes = []
        for part, job in zip(parts, self._jobs * count, strict=False):
            order = {"view": view, "part": list(part), "upto": list(upto.items())}
            outcomes.append(await job.order((view, *part), orjson.dumps(order) + b"\n", on_page))
        for outcome in await asyncio.gather(*outcomes, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


class _Job:
    """One process, and what it was ordered to do."""

    def __init__(self, conninfo: str, number: int) -> None:
        self._begin = orjson.dumps({"conninfo": conninfo}) + b"\n"
        self._number = number
        self._orders: dict[tuple[str, int, int], _Order] = {}
        self._process: _Running | None = None
        self._watching: asyncio.Task[None] | None = None
        self._restarts = 0

    async def order(
        self, name: tuple[str, int, int], line: bytes, on_page: Callable[[int], None]
    ) -> asyncio.Future[None]:
        """Order a part to be filled, and return what will become of it."""
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._orders[name] = _Order(line, on_page, outcome)
        if self._watching is None:
            self._watching = asyncio.create_task(self._run())
        elif self._process is not None:
            self._process.write(line)
        return outcome

    async def close(self) -> None:
        """End the process."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _run(self) -> None:
        """Keep the process running, and read what it says."""
        while True:
            process = await _Running.start()
            # What is ordered from here on is written by `order`.
            self._process = process
            process.write(b"".join([self._begin, *(order.line for order in self._orders.values())]))
            try:
                while (line := await process.output.readline()).endswith(b"\n"):
                    self._heard(orjson.loads(line))
            finally:
                self._process = None
                code = await process.end()
            self._restarts += 1
            if self._restarts > RESTARTS_MAX:
                how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
                self._fail(
                    f"Process {self._number} of the rebuild has ended {self._restarts} times, at last {how}. "
                    "Start the rebuild again: it resumes."
                )
                return

    def _heard(self, said: dict[str, Any]) -> None:
        name = (said["view"], *said["part"])
        order = self._orders.get(name)
        if order is None:
            return
        if "positions" in said:
            order.on_page(said["positions"])
            return
        del self._orders[name]
        if order.outcome.done():
            return  # nobody waits for it any more
        match said["outcome"]:
            case "done":
                order.outcome.set_result(None)
            case "poison":
                ledger_id, position = said["at"]
                poison = PoisonEvent(said["view"] + SHADOW_SUFFIX, ledger_id, position, said["reason"])
                order.outcome.set_exception(poison)
            case _:
                order.outcome.set_exception(PartFailed(said["reason"]))

    def _fail(self, reason: str) -> None:
        for order in self._orders.values():
            if not order.outcome.done():
                order.outcome.set_exception(PartFailed(reason))
        self._orders.clear()


@dataclass(frozen=True, slots=True)
class _Running:
    """A process that runs, and its pipes."""

    process: asyncio.subprocess.Process
    input: asyncio.StreamWriter
    output: asyncio.StreamReader

    @classmethod
    async def start(cls) -> _Running:
        # It is given the one login that it needs, and no setting of the program.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infra.views.part_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        )
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        return cls(process, process.stdin, process.stdout)

    def write(self, lines: bytes) -> None:
        # One that has just died takes nothing; the next one is given all orders.
        self.input.write(lines)

    async def end(self) -> int:
        """Let it end with its input, kill it if it does not, and return its exit code."""
        self.input.close()
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                return await self.process.wait()
        except TimeoutError:
            self.process.kill()
            return await self.process.wait()
