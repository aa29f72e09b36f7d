"""The system: does everything keep up, what has stopped, and what is to be done about it?

What stops a view is mended with a command on the server, which the page gives to copy. Deliveries that were given up
can be sent again here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.forms import new_form_id
from api.console.visit import Page

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor"})
ADMIN: Final[frozenset[Role]] = frozenset({"admin"})
# Dead letters that the page lists.
ROWS: Final = 100
# More than this behind, a view or subscriber is late.
LATE_S: Final = 5.0


async def _show(visit: Visit) -> Response:
    webhooks: list[dict[str, Any]] = []
    stats, ready = await asyncio.gather(visit.api.get("/v1/stats"), _ready(visit))
    if visit.role in ADMIN:
        webhooks = (await visit.api.get("/v1/webhooks")).json["webhooks"]
    answer = stats.json
    return visit.page(
        "system.html",
        ready=ready,
        stats=answer,
        stopped=[one for one in answer["views"] if one["state"] == "failed"],
        ledger=visit.reader.key.ledger_name,
        webhooks=webhooks,
        late=LATE_S,
    )


async def _ready(visit: Visit) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = (await visit.api.get("/readyz")).json
    except Declined as declined:
        return {"status": "down", "stopped": [], "detail": str(declined)}
    return answer


async def _dead(visit: Visit) -> Response:
    """Show what a webhook's receiver never took, and ask before it is sent again."""
    path = _webhook(visit)
    cursor = visit.query.get("cursor")
    webhook, dead = await asyncio.gather(
        visit.api.get(path), visit.api.get(f"{path}/dead-letters", limit=ROWS, cursor=cursor)
    )
    following = dead.json["next"]
    own = f"/system/webhooks/{quote(visit.path('webhook_id'), safe='')}"
    return visit.page(
        "webhook.html",
        webhook=webhook.json,
        letters=dead.json["dead_letters"],
        more=None if following is None else f"{own}?cursor={quote(following, safe='')}",
        path=own,
        form_id=new_form_id(),
        replayed=visit.query.get("replayed", ""),
    )


async def _replay(visit: Visit) -> Response:
    form = await visit.form()
    reply = await visit.api.call(
        "POST", f"{_webhook(visit)}/replays", {}, orjson.dumps({}), idempotency_key=form.get("form_id")
    )
    own = f"/system/webhooks/{quote(visit.path('webhook_id'), safe='')}"
    return RedirectResponse(f"{own}?replayed={reply.json['replayed']}", 303)


def _webhook(visit: Visit) -> str:
    return f"/v1/webhooks/{quote(visit.path('webhook_id'), safe='')}"


PAGES: Final = (
    Page("/system", _show, more="System", roles=READERS, parts=("/system",)),
    Page("/system/webhooks/{webhook_id}", _dead, roles=ADMIN),
    Page("/system/webhooks/{webhook_id}/replays", _replay, methods=("POST",), roles=ADMIN),
)
