"""The server of a witness: two routes, one process, no database and no key of ours. `infra.proof.witness` decides."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from infra.proof.witness import MAX_REQUEST_BYTES, Reply, WitnessError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from infra.proof.witness import Witness

# Requests at the same time; further ones get 503.
MAX_REQUESTS: Final = 256
# How long the body of a request may take.
BODY_S: Final = 10.0
IDLE_S: Final = 5
GRACE_S: Final = 2

log = logging.getLogger(__name__)


def create_witness_app(witness: Witness) -> Starlette:
    """Return the application of a witness."""

    async def add_checkpoint(request: Request) -> Response:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_REQUEST_BYTES:
                        raise HTTPException(413)
        except TimeoutError:
            raise HTTPException(408) from None

        def decide() -> Reply:
            try:
                witness.read_logs()
            except (OSError, WitnessError) as error:
                log.warning("The list of logs is used as it was: %s", error)
            return witness.add_checkpoint(bytes(body))

        return _response(await asyncio.to_thread(decide))

    async def checkpoint(request: Request) -> Response:
        return _response(await asyncio.to_thread(witness.checkpoint, request.path_params["origin_hash"]))

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash}/checkpoint", checkpoint),
        ]
    )


def serve_witness(witness: Witness, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve a witness until SIGINT or SIGTERM; `started` is called with its URL."""
    config = uvicorn.Config(
        create_witness_app(witness),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_REQUESTS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config, started)
    server.run()


class _Server(uvicorn.Server):
    """A server that says when it serves, and where."""

    def __init__(self, config: uvicorn.Config, started: Callable[[str], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # as wide as needed
        """Listen, and say so."""
        await super().startup(sockets)  # type: ignore[arg-type] # as above
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, {"Content-Type": reply.media_type, "Cache-Control": "no-store"})
