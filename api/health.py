"""The routes that machines ask how we are: alive, ready, and in figures. No key is needed, and nothing is disclosed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from api.http.dependencies import DatabaseCursor
from api.http.models import Answer, absent
from api.http.responses import answer
from api.http.route import Operation, Route
from infra.delivery.kafka.publication_status import destination_lags
from infra.errors import Unavailable
from infra.eventstore.histories import stopped_ledgers
from infra.proof.sealing_status import is_sealing_stopped
from infra.views.status import is_read_only
from projections import codes
from projections.engine import checkpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.http.dependencies import Services


class HealthAnswer(Answer):
    status: Annotated[Literal["alive", "ready", "degraded"], Field(description="The state of the service.")]
    stopped: Annotated[
        list[str],
        Field(
            description="The views that have stopped; `kafka` or `log` if publishing or the sealing of a log has; "
            "`history` if a ledger has lost events and cannot be written to; and `server` if one of several database "
            "servers cannot be used."
        ),
    ] = Field(default=[])
    damage: Annotated[
        str, Field(description="That stored data was found damaged in the last hour, and when. Absent otherwise.")
    ] = Field(default_factory=absent)


LOST: Final = (
    "No ledger can be written to: each has lost events, or was not compared with its anchor yet. Responses to commands "
    "say which, and what to do."
)
READ_ONLY: Final = "The database accepts no writes: it is a standby or read-only. Reads still work."
# The views' states are those of the database, not of a ledger.
_NO_LEDGER: Final = 0

router = APIRouter(route_class=Route, tags=["Health"])
# Apart, because it can be served on a port of its own.
metrics_router = APIRouter(route_class=Route, tags=["Health"])


@router.get("/livez", response_model=HealthAnswer, operation_id="isAlive")
async def is_alive() -> Response:
    """Report that the process responds, whatever the state of the database."""
    return answer({"status": "alive", "stopped": []})


@router.get("/readyz", response_model=HealthAnswer, operation_id="isReady")
@Operation(refusals=(503,))
async def is_ready(request: Request) -> Response:
    """Report whether commands can be served.

    A stopped view or subscriber, or damaged data, makes the state degraded, with status 200.
    """
    servers: Sequence[Services] = request.app.state.servers
    obstacles = [server.handler.obstacle for server in servers]
    if None not in obstacles:
        raise Unavailable(str(obstacles[0]))
    stopped: Sequence[str] = await request.app.state.stopped()
    damage = next((server.database.damage.reason for server in servers if server.database.damage.reason), None)
    content: dict[str, Any] = {"status": "degraded" if stopped or damage else "ready", "stopped": stopped}
    return answer(content if damage is None else content | {"damage": damage})


@metrics_router.get("/metrics", response_class=PlainTextResponse, operation_id="readMetrics")
async def read_metrics(request: Request) -> Response:
    """Return the metrics of this process and of the worker for Prometheus."""
    return Response(await request.app.state.metrics(), 200, {"Content-Type": CONTENT_TYPE_LATEST})


async def stopped_consumers(servers: Sequence[Services]) -> Sequence[str]:
    """Return which views and subscribers have stopped, on any server.

    Raises:
        Unavailable: every database is away, or takes no writes.

    """
    found = await asyncio.gather(*map(_stopped_on, servers), return_exceptions=True)
    stopped: dict[str, None] = {}
    unusable = []
    for one in found:
        if isinstance(one, Unavailable):
            unusable.append(one)
        elif isinstance(one, BaseException):
            raise one
        else:
            stopped |= dict.fromkeys(one)
    if len(unusable) == len(servers):
        raise unusable[0]
    return [*stopped, *(["server"] if unusable else [])]


async def _stopped_on(services: Services) -> list[str]:
    """Return which views and subscribers of one server have stopped.

    Raises:
        Unavailable: the database is away, or takes no writes.

    """

    async def stopped_views(cur: DatabaseCursor) -> list[str]:
        if await is_read_only(cur):
            raise Unavailable(READ_ONLY)
        return [state.view for state in await checkpoints.load_states(cur) if state.stopped]

    stopped, _ = await services.views.read(_NO_LEDGER, stopped_views, view=codes.NAME)
    lost, ledgers = await stopped_ledgers(services.database)
    if lost:
        if lost == ledgers:
            raise Unavailable(LOST)
        stopped.append("history")
    if any(lag.stopped for lag in await destination_lags(services.database)):
        stopped.append("kafka")
    if await is_sealing_stopped(services.database):
        stopped.append("log")
    return stopped
