"""What every request costs besides its route's own lines, in counts: layers, tasks, and objects left behind."""

from __future__ import annotations

import asyncio
import gc
import sys
from types import FrameType
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from api.http.app import create_app
from api.http.protocol import BoundedProtocol
from domain.errors import Unknown
from tests.api.http.test_middleware import Fake, broken
from tests.wired import services

pytestmark = [
    pytest.mark.anyio,
    # These tests collect what clients of Kafka in other tests of this process have left unclosed, too.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REQUESTS = 50


class Connection(asyncio.Transport):
    """A connection to a server without a network: it keeps what the server sends."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.answered = asyncio.Event()
        self.sent = b""
        self._closing = False
        config = uvicorn.Config(
            app, http=BoundedProtocol, log_config=None, access_log=False, lifespan="off", proxy_headers=False
        )
        config.load()
        self._protocol = BoundedProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        self._protocol.connection_made(self)

    async def ask(self, request: bytes) -> int:
        """Send a request, and return the status of its answer."""
        self.answered.clear()
        self._protocol.data_received(request)
        await self.answered.wait()
        # The task of a request ends after its answer was sent.
        while self._protocol.tasks:  # noqa: ASYNC110 - the server offers nothing to wait for
            await asyncio.sleep(0)
        return int(self.sent[9:12])

    def write(self, data: Any) -> None:
        self.sent = bytes(data)
        self.answered.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def resume_reading(self) -> None:
        """It never stops."""

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._protocol.connection_lost(None)


class Codes:
    """Stands for what finds codes: there are none."""

    def __init__(self) -> None:
        self.stack: list[str] = []

    async def find(self, _ledger_id: int, _code_id: object) -> None:
        frame: FrameType | None = sys._getframe(1)
        self.stack = []
        while frame is not None and frame.f_code.co_name != "run_asgi":
            self.stack.append(frame.f_code.co_qualname)
            frame = frame.f_back
        raise Unknown("code")


def connect() -> tuple[Connection, Codes]:
    app, codes = create_app(services(cast("Any", Fake(broken)))), Codes()
    app.state.current_codes = codes
    return Connection(app), codes


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key\r\n\r\n".encode()


ONE = get("/v1/codes/0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20")


@pytest.mark.parametrize(("request_", "status"), [(get("/livez"), 200), (get("/nowhere"), 404), (ONE, 404)])
async def test_a_request_leaves_no_circle_of_objects_behind(request_: bytes, status: int) -> None:
    connection, _ = connect()
    for _ in range(3):
        assert await connection.ask(request_) == status
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(REQUESTS):
            await connection.ask(request_)
        gc.collect()
        left = len(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        connection.close()
    assert left < REQUESTS, "each request left something for the garbage collector"


async def test_between_the_server_and_a_route_there_are_four_calls() -> None:
    connection, codes = connect()
    await connection.ask(ONE)
    connection.close()
    assert codes.stack == [
        "current_code",
        "read_code",
        "Route._app.<locals>.app",
        "RequestMiddleware._answer",
        "RequestMiddleware.__call__",
        "Application.__call__",
    ]


async def test_a_request_is_one_task() -> None:
    loop = asyncio.get_running_loop()
    tasks: list[object] = []
    connection, _ = connect()
    await connection.ask(ONE)

    def counted(running: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
        tasks.append(coroutine)
        return asyncio.Task(coroutine, loop=running, **more)

    loop.set_task_factory(counted)
    try:
        for _ in range(REQUESTS):
            await connection.ask(ONE)
    finally:
        loop.set_task_factory(None)
        connection.close()
    assert len(tasks) == REQUESTS
