"""The process of pages: it answers what the API hands over, by the same application.

It is the API without a listener: the same settings, database and keys, with few sessions of its own, and with a lower
priority than programs have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import orjson
import uvloop

from infra.crypto.master_keys import key_provider
from infra.ending import cancelled, end_for_certain
from infra.postgres.roles import API
from infra.process_limits import importing, raise_file_limit, tune_garbage_collector
from infra.processes.logs import configure_logs
from infra.processes.supervisor import die_with_parent
from infra.runtime import runtime
from infra.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI

    from infra.crypto.master_keys import KeyProvider
    from infra.settings import Settings

with importing():
    from api.http.app import create_app
    from api.http.handing_over import Line, answer
    from api.http.metrics import packed_figures
    from api.http.server import services_from

# What it answers when its end is asked for has this long: less than the API has, which waits for it.
GRACE_S: Final = 1.5
# Sessions of the database that it uses at most, and those of them for one ledger at a time.
SESSIONS: Final = 4
SESSIONS_OF_A_LEDGER: Final = 3
# How much less of a busy processor it is given than the others.
NICE: Final = 10


def main(control: socket.socket) -> None:
    """Answer until the API ends, or asks for the end."""
    die_with_parent()
    configure_logs()
    servers: dict[str, str] = orjson.loads(sys.stdin.buffer.read())
    settings = load_settings()
    uvloop.run(_serve(settings, servers, key_provider(settings), control))


class Requests:
    """The requests that are handed over, from the first to the end."""

    def __init__(self, control: socket.socket, app: FastAPI) -> None:
        """Answer what comes through the control socket by the application, from now on."""
        self.end = asyncio.Event()
        self._control = control
        self._app = app
        self._answering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control, self._take)
        control.send(b"\n")

    def _take(self) -> None:
        """Begin to answer a request, whose socket has come."""
        try:
            said, ends, _, _ = socket.recv_fds(self._control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            said, ends = b"", []
        if not said:
            # The API is gone. Without room for another file, there is something said and no socket.
            self._loop.remove_reader(self._control)
            self.begin_to_end()
        for end in ends:
            task = self._loop.create_task(self._answer(socket.socket(fileno=end)))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    def begin_to_end(self) -> None:
        """Have the process end."""
        end_for_certain()
        self.end.set()

    async def _answer(self, end: socket.socket) -> None:
        end.setblocking(False)  # noqa: FBT003 - it takes no name
        await answer(await Line.on(end), self._app, self._figures)

    def _figures(self) -> bytes:
        state = self._app.state
        return packed_figures(state.places, [streams.observe for streams in state.all_streams])

    async def close(self) -> None:
        """Take no more, and give those under way some time."""
        self._loop.remove_reader(self._control)
        # By it the API knows that it answers for itself now.
        self._control.close()
        for streams in self._app.state.all_streams:
            streams.end()
        if self._answering:
            await asyncio.wait(self._answering, timeout=GRACE_S)
        await cancelled(self._answering)


async def _serve(
    settings: Settings, servers: Mapping[str, str], master_key: KeyProvider, control: socket.socket
) -> None:
    tune_garbage_collector()
    raise_file_limit()
    control.setblocking(False)  # noqa: FBT003 - it takes no name
    async with contextlib.AsyncExitStack() as opened:
        services = []
        for name, conninfo in servers.items():
            few = runtime(
                *(conninfo, API, master_key, settings.oidc_issuers),
                sessions=SESSIONS,
                sessions_of_a_ledger=SESSIONS_OF_A_LEDGER,
            )
            services.append(services_from(await opened.enter_async_context(few), settings, name))
        app = create_app(*services, metrics=False)
        # Not before: until it can answer, the API makes the pages.
        with contextlib.suppress(OSError):  # a system with other rules keeps its priority
            os.nice(NICE)
        requests = Requests(control, app)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, requests.begin_to_end)
        await requests.end.wait()
        await requests.close()
        for streams in app.state.all_streams:
            await streams.close()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
