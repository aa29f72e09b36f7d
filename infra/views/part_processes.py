"""Processes that fill parts of views at the same time, and are started again when one of them is killed.

Each is given its orders by its standard input, which ends with this process, so none outlives it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import orjson

from projections.engine.parts import Part
from projections.engine.projector import PoisonEvent
from projections.engine.rebuild import PartFailed
from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from infra.eventstore.all_ledgers_reader import AllLedgersReader

# How often a process that died is started again, so that one that always dies does not do so for ever.
RESTARTS_MAX: Final = 3
# What a process says in a line.
LINE_BYTES_MAX: Final = 1 << 20
# An order names the last position of each ledger: there is room for at least a million ledgers.
ORDER_BYTES_MAX: Final = 1 << 26
STOP_WITHIN_S: Final = 5.0

_AGAIN: Final = "Start the rebuild again: it resumes."


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
        ordered = []
        for part, job in zip([Part(number, count) for number in range(1, count + 1)], self._jobs * count, strict=False):
            order = {"view": view, "part": list(part), "upto": list(upto.items())}
            line = orjson.dumps(order) + b"\n"
            if len(line) > ORDER_BYTES_MAX:
                message = f"There are too many ledgers for parts, {len(upto):,}. Rebuild the view without --jobs."
                raise PartFailed(message)
            ordered.append((job, part, job.order((view, *part), line, on_page)))
        outcomes = [outcome for _, _, outcome in ordered]
        try:
            await asyncio.gather(*outcomes)
        except Exception:
            # At once, not when all other parts have come to their end; and nobody fills them when it is tried again.
            for job, part, _ in ordered:
                job.withdraw((view, *part))
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_WITHIN_S):
                    await asyncio.gather(*outcomes, return_exceptions=True)
            raise


class _Job:
    """One process, and what it was ordered to do."""

    def __init__(self, conninfo: str, number: int) -> None:
        self._begin = orjson.dumps({"conninfo": conninfo}) + b"\n"
        self._number = number
        self._orders: dict[tuple[str, int, int], _Order] = {}
        self._process: _Running | None = None
        self._watching: asyncio.Task[None] | None = None
        self._withdrawn: set[tuple[str, int, int]] = set()
        self._restarts = 0
        self._failure: str | None = None

    def order(self, name: tuple[str, int, int], line: bytes, on_page: Callable[[int], None]) -> asyncio.Future[None]:
        """Order a part to be filled, and return what will become of it."""
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            outcome.set_exception(PartFailed(self._failure))
            return outcome
        self._orders[name] = _Order(line, on_page, outcome)
        if self._watching is None:
            self._watching = asyncio.create_task(self._run())
        elif self._process is not None:
            self._process.write(line)
        return outcome

    def withdraw(self, name: tuple[str, int, int]) -> None:
        """Have a part filled no further; its outcome comes when nobody fills it any more."""
        if name not in self._orders:
            return
        self._withdrawn.add(name)
        if self._process is None:
            self._settle_withdrawn()
        else:
            view, *part = name
            self._process.write(orjson.dumps({"view": view, "part": part, "withdrawn": True}) + b"\n")

    async def close(self) -> None:
        """End the process."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _run(self) -> None:
        """Keep the process running, and read what it says; whatever happens, no order stays without an outcome."""
        try:
            while self._restarts <= RESTARTS_MAX:
                code = await self._run_once()
                self._restarts += 1
            how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
            self._fail(f"has ended {self._restarts} times, at last {how}")
        except OSError as error:
            self._fail(f"cannot be started: {error}")
        except Exception as error:  # noqa: BLE001 - those who wait for the outcomes get it
            self._fail(f"cannot be followed: {type(error).__name__}: {error}")

    async def _run_once(self) -> int:
        """Run the process until it ends, and return its exit code."""
        starting = asyncio.ensure_future(_Running.start())
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # One that has been started by half would be left behind.
            with suppress(OSError):
                await _to_its_end((await starting).end())
            raise
        # What is ordered from here on is written by `order`.
        self._process = process
        process.write(b"".join([self._begin, *(order.line for order in self._orders.values())]))
        try:
            while (line := await process.output.readline()).endswith(b"\n"):
                self._heard(orjson.loads(line))
        finally:
            self._process = None
            code = await _to_its_end(process.end())
            self._settle_withdrawn()
        return code

    def _settle_withdrawn(self) -> None:
        for name in self._withdrawn:
            order = self._orders.pop(name, None)
            if order is not None and not order.outcome.done():
                order.outcome.set_result(None)
        self._withdrawn.clear()

    def _heard(self, said: dict[str, Any]) -> None:
        name = (said["view"], *said["part"])
        order = self._orders.get(name)
        if order is None:
            return
        if "positions" in said:
            order.on_page(said["positions"])
            return
        del self._orders[name]
        self._withdrawn.discard(name)
        if order.outcome.done():
            return  # nobody waits for it any more
        match said["outcome"]:
            case "done" | "withdrawn":
                order.outcome.set_result(None)
            case "poison":
                ledger_id, position = said["at"]
                poison = PoisonEvent(said["view"] + SHADOW_SUFFIX, ledger_id, position, said["reason"])
                order.outcome.set_exception(poison)
            case _:
                order.outcome.set_exception(PartFailed(said["reason"]))

    def _fail(self, why: str) -> None:
        """Let all orders fail, and those that come later: nothing starts the process again."""
        self._failure = f"Process {self._number} of the rebuild {why}. {_AGAIN}"
        for order in self._orders.values():
            if not order.outcome.done():
                order.outcome.set_exception(PartFailed(self._failure))
        self._orders.clear()
        self._withdrawn.clear()


async def _to_its_end(doing: Coroutine[Any, Any, int]) -> int:
    """Await something to its end, even if this is cancelled meanwhile."""
    task = asyncio.ensure_future(doing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


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
            # Its code is this process's, and not what may lie in the working directory.
            *(sys.executable, "-P", "-m", "infra.views.part_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
            env={**environment, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
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
                return await self._ended()
        except TimeoutError:
            self.process.kill()
            return await self._ended()

    async def _ended(self) -> int:
        # It may wait until what it says is read.
        while await self.output.read(LINE_BYTES_MAX):
            pass
        return await self.process.wait()
