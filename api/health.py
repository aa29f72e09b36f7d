"""The routes that machines ask how we are: alive, ready, and in figures. No key is needed, and nothing is told."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

from api.answer_models import HealthAnswer
from api.answers import answer
from api.route import Route
from api.wiring import Cursor, services_of
from projections import codes, view

# The views' states are those of the database, not of a ledger.
_NO_LEDGER: Final = 0

router = APIRouter(route_class=Route, tags=["Health"])


@router.get("/livez", response_model=HealthAnswer, operation_id="isAlive")
async def is_alive() -> Response:
    """Tell that the process answers, whatever the database does."""
    return answer({"status": "alive", "stopped": []})


@router.get("/readyz", response_model=HealthAnswer, operation_id="isReady")
async def is_ready(request: Request) -> Response:
    """Tell whether commands can be served; a view that has stopped makes the answer degraded, and it stays 200."""

    async def stopped_views(cur: Cursor) -> list[str]:
        return [status.view for status in await view.statuses(cur) if status.state == "failed"]

    stopped, _ = await services_of(request.scope).views.read(_NO_LEDGER, stopped_views, view=codes.NAME)
    return answer({"status": "degraded" if stopped else "ready", "stopped": stopped})


@router.get("/metrics", response_class=PlainTextResponse, operation_id="readMetrics")
async def read_metrics() -> Response:
    """Return the figures of this process for Prometheus."""
    return Response(generate_latest(), 200, {"Content-Type": CONTENT_TYPE_LATEST})
