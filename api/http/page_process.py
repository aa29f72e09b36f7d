"""The process beside the API that answers requests for pages, so that programs do not wait while pages are made.

It is started once the API has made a page for somebody who is signed in, and again when it ends or answers nothing any
more. Until it can answer, and whenever it cannot, pages are made by the API's own process, as all of them would be
without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from api.http.handing_over import BrokenOff, Line, ask_for_a_sign, figures_of, hand_over
from api.http.problems import Problem
from infra.ending import cancelled
from infra.processes.supervisor import PARENT_FD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

# Requests that it answers at the same time, most of them the channels of open pages. Each takes a file of both. What
# comes beyond is answered by the API, so that nobody who keeps as many open keeps others from their pages.
MAX_HANDED_OVER: Final = 1_000
RESTART_S_FIRST: Final = 0.5
RESTART_S_MAX: Final = 30.0
# One that has lived so long is restarted as soon as the first one.
LIVED_LONG_S: Final = 60.0
FIGURES_WITHIN_S: Final = 1.0
# How often it is asked whether it still answers, how long that may take, and after what silence it is killed: in less
# time than a request has, so that what it was given is still answered.
ASKED_EVERY_S: Final = 5.0
ANSWERS_WITHIN_S: Final = 2.0
SILENT_S: Final = 10.0
# From when its end is asked for. It writes what was read to the access log before it ends.
END_WITHIN_S: Final = 2.0
# But at least after the API's own requests have ended, which had as long.
END_WITHIN_S_MIN: Final = 0.3

_IN_DOUBT: Final = (
    "The process that makes pages has ended. It is not known whether the form was carried out. Look whether it was, "
    "and send it again if not."
)
_READY: Final = b"\n"

log = logging.getLogger(__name__)


class NotHandedOver(Exception):
    """The process of pages did not answer a request, and nothing was done that cannot be done again."""


class PageProcess:
    """The process of pages, as the API sees it."""

    def __init__(self, servers: Mapping[str, str]) -> None:
        """Take the databases by the names of their servers, as logins of the API's role."""
        self._servers = dict(servers)
        self._process: asyncio.subprocess.Process | None = None
        # Through it the process is given the end of each request; None while it cannot answer.
        self._control: socket.socket | None = None
        self._keeping: asyncio.Task[None] | None = None
        # When its end was asked for.
        self._end_asked_at: float | None = None
        self._handed_over = 0

    def start(self) -> None:
        """Have it run, from now on."""
        if self._keeping is None and not self._ending:
            self._keeping = asyncio.create_task(self._keep(), name="process of pages")

    @property
    def _ending(self) -> bool:
        return self._end_asked_at is not None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answer a request.

        Raises:
            NotHandedOver: it is not there, or has as many as it may.
            Problem: it ended in the middle of a request that changes something.

        """
        control = self._control
        if control is None or self._handed_over >= MAX_HANDED_OVER:
            raise NotHandedOver
        self._handed_over += 1
        try:
            line = await self._line(control)
            try:
                await hand_over(line, scope, receive, send)
            finally:
                # If it takes nothing any more, what waits to be sent would wait for ever.
                line.abort()
        except BrokenOff:
            if scope["method"] != "GET":
                raise Problem("unavailable", _IN_DOUBT, headers={"Retry-After": "1"}) from None
            raise NotHandedOver from None
        finally:
            self._handed_over -= 1

    async def figures(self) -> list[Any]:
        """Return its figures, as `figures` of the process packs them; none if it is not there."""
        if self._control is None:
            return []
        try:
            line = await self._line(self._control)
        except NotHandedOver:
            return []
        try:
            async with asyncio.timeout(FIGURES_WITHIN_S):
                packed: list[Any] = orjson.loads(await figures_of(line))
        except (EOFError, TimeoutError):
            return []
        finally:
            line.abort()
        return packed

    def begin_to_end(self) -> None:
        """Have it end what it answers; from now on the API answers for itself."""
        self._end_asked_at = self._end_asked_at or time.monotonic()
        self._signal(signal.SIGTERM)

    async def close(self) -> None:
        """Wait until it has ended, not for long."""
        self.begin_to_end()
        if self._keeping is None or self._end_asked_at is None:
            return
        left = self._end_asked_at + END_WITHIN_S - time.monotonic()
        await asyncio.wait({self._keeping}, timeout=max(left, END_WITHIN_S_MIN))
        self._signal(signal.SIGKILL)
        await cancelled([self._keeping])

    async def _answers(self) -> bool:
        """Tell whether it still answers."""
        if self._control is None:
            return False
        try:
            line = await self._line(self._control)
        except NotHandedOver:
            return False
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await ask_for_a_sign(line)
        except (EOFError, TimeoutError):
            return False
        finally:
            line.abort()
        return True

    @staticmethod
    async def _line(control: socket.socket) -> Line:
        """Return the end of a new pair of sockets whose other end the process has."""
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            raise NotHandedOver from None
        with theirs:
            try:
                socket.send_fds(control, [b"\n"], [theirs.fileno()])
            except OSError:
                # It has just ended, or has not taken for long what it was given.
                ours.close()
                raise NotHandedOver from None
        ours.setblocking(False)  # noqa: FBT003 - it takes no name
        return await Line.on(ours)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _keep(self) -> None:
        """Keep it running."""
        pause = RESTART_S_FIRST
        while not self._ending:
            began = time.monotonic()
            try:
                ended = await self._run()
            except OSError as error:
                ended = str(error)
            if self._ending:
                return
            if time.monotonic() - began > LIVED_LONG_S:
                pause = RESTART_S_FIRST
            log.warning(
                "The process of pages ended unexpectedly (%s); restarting it in %.1f s. The API makes pages meanwhile.",
                *(ended, pause),
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, RESTART_S_MAX)

    async def _run(self) -> str:
        """Run it until it ends, and return how."""
        with contextlib.ExitStack() as opened:
            ours, theirs = (opened.enter_context(end) for end in socket.socketpair())
            ours.setblocking(False)  # noqa: FBT003 - it takes no name
            # The end of this pipe tells it that this process is gone, however that ended.
            parent, kept = os.pipe()
            opened.callback(os.close, kept)
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    # Its code is this process's, and not what may lie in the working directory.
                    *(sys.executable, "-P", "-m", "api.http.page_server", str(theirs.fileno())),
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(), parent),
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
                        PARENT_FD: str(parent),
                    },
                )
            finally:
                os.close(parent)
                theirs.close()
            if self._ending:
                self._signal(signal.SIGTERM)
            try:
                assert process.stdin is not None  # noqa: S101 - it is a pipe
                process.stdin.write(orjson.dumps(self._servers))
                process.stdin.close()
                # It says so, or it has ended.
                if await asyncio.get_running_loop().sock_recv(ours, 1) == _READY:
                    self._control = ours
                code = await end_of(process, self._answers)
            finally:
                self._control = None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


async def end_of(
    process: asyncio.subprocess.Process,
    answers: Callable[[], Awaitable[bool]],
    *,
    asked_every_s: float = ASKED_EVERY_S,
    silent_s: float = SILENT_S,
) -> int:
    """Wait until a process has ended, and return its exit code; kill it once it has answered nothing for too long.

    Everything that it was given would wait for it, and everything that comes after that as well.
    """
    heard = time.monotonic()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(asked_every_s):
                return await process.wait()
        if await answers():
            heard = time.monotonic()
        elif time.monotonic() - heard > silent_s and process.returncode is None:
            log.warning("The process of pages has not answered for %.0f s, and is killed.", time.monotonic() - heard)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()
