"""The routes of webhooks: where events are sent to, by the Standard Webhooks specification.

A subscriber's key has webhooks of its own; an administrator's has all of the ledger's. Another's is unknown. The bearer
of a token makes none: it would be sent events long after the token has ended.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.access_log import enter
from api.http import headers
from api.http.caller import Caller, allow
from api.http.cursors import cursor, link_next, place_of
from api.http.fields import MAX_POSITION
from api.http.problems import Problem, malformed_body
from api.http.responses import NO_STORE, answer
from api.http.route import Route
from api.webhook_models import (
    ChangeWebhook,
    CreateWebhook,
    DeadLettersAnswer,
    DeadLettersQuery,
    DeliveriesAnswer,
    DeliveriesQuery,
    ReplayAnswer,
    ReplayMessages,
    RotateSecret,
    TestAnswer,
    WebhookAnswer,
    WebhooksAnswer,
    WebhookSecretAnswer,
)
from domain.errors import NotAllowed, Unknown
from infra.delivery.cloud_events import STRUCTURED_CONTENT_TYPE
from infra.delivery.lag import lag_seconds
from infra.delivery.webhooks.http_target import AllowedNetworks, InvalidTarget, check_url
from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
from infra.delivery.webhooks.models import (
    Owner,
    OwnerKeyInvalid,
    TooManyWebhooks,
    WebhookDisabled,
    WebhookNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.delivery.webhooks.models import Webhook

router = APIRouter(route_class=Route, tags=["Webhooks"])


@router.post("/v1/webhooks", status_code=201, response_model=WebhookSecretAnswer, operation_id="createWebhook")
async def create_webhook(body: CreateWebhook, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Have events sent to a URL; the secret that they are signed with is in this answer alone. Not with a token."""
    if caller.key.kind == "token":
        raise NotAllowed("A webhook outlives a token. Make it with an API key of the role subscriber.")
    _check(caller, body.url)
    head = await caller.services.events.head(caller.ledger_id)
    if body.after is not None and body.after > head:
        raise malformed_body("/after", "The ledger has not reached this position.")
    with _problems():
        webhook, secret, again = await caller.services.webhooks.create(
            _owner(caller),
            url=body.url,
            description=body.description,
            types=body.types,
            creator_ids=body.creator_ids,
            after=head if body.after is None else body.after,
            request=_asked(caller),
        )
    asked = {"webhook_id": str(webhook.webhook_id), "types": webhook.types, "creator_ids": webhook.creator_ids}
    await _enter(caller, asked)
    told = NO_STORE | {"Location": f"/v1/webhooks/{webhook.webhook_id}"} | _again(again)
    return answer(_content(caller, webhook) | {"secret": secret}, 201, told)


@router.get("/v1/webhooks", response_model=WebhooksAnswer, operation_id="listWebhooks")
async def list_webhooks(caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """List webhooks and how they stand, newest first; there are 100 at most."""
    found = await caller.services.webhooks.all(_owner(caller))
    return answer({"webhooks": [_content(caller, webhook) for webhook in found]})


@router.get("/v1/webhooks/{webhook_id}", response_model=WebhookAnswer, operation_id="readWebhook")
async def read_webhook(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Read a webhook and how it stands."""
    with _problems():
        return answer(_content(caller, await caller.services.webhooks.one(_owner(caller), _id(webhook_id))))


@router.patch("/v1/webhooks/{webhook_id}", response_model=WebhookAnswer, operation_id="changeWebhook")
async def change_webhook(
    webhook_id: str, body: ChangeWebhook, caller: Annotated[Caller, allow("subscriber", "admin")]
) -> Response:
    """Change where, what, or whether events are sent; enabled again, a webhook goes on where it left off."""
    if body.url is not None:
        _check(caller, body.url)
    given = body.model_dump(exclude_unset=True)
    changes = {name: value for name, value in given.items() if value is not None or name == "description"}
    with _problems():
        webhook = await caller.services.webhooks.change(_owner(caller), _id(webhook_id), **changes)
    await _enter(caller, {"webhook_id": webhook_id, "changed": sorted(changes)})
    return answer(_content(caller, webhook))


@router.delete("/v1/webhooks/{webhook_id}", status_code=204, response_class=Response, operation_id="deleteWebhook")
async def delete_webhook(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Delete a webhook, its dead letters and its log of deliveries."""
    with _problems():
        await caller.services.webhooks.delete(_owner(caller), _id(webhook_id))
    await _enter(caller, {"webhook_id": webhook_id})
    return Response(status_code=204)


@router.post(
    "/v1/webhooks/{webhook_id}/rotation",
    status_code=201,
    response_model=WebhookSecretAnswer,
    operation_id="rotateWebhookSecret",
)
async def rotate_webhook_secret(
    webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")], body: RotateSecret | None = None
) -> Response:
    """Make a new secret, shown in this answer alone; until the overlap ends, messages bear both signatures."""
    overlap = timedelta(hours=(body or RotateSecret()).overlap_hours)
    with _problems():
        webhook, secret, again = await caller.services.webhooks.rotate(
            _owner(caller), _id(webhook_id), overlap, _asked(caller)
        )
    await _enter(caller, {"webhook_id": webhook_id})
    return answer(_content(caller, webhook) | {"secret": secret}, 201, NO_STORE | _again(again))


@router.post("/v1/webhooks/{webhook_id}/test", status_code=202, response_model=TestAnswer, operation_id="testWebhook")
async def send_test(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Have a test sent, once; the log of deliveries tells how it went."""
    with _problems():
        message_id, again = await caller.services.webhooks.test(_owner(caller), _id(webhook_id), _asked(caller))
    return answer({"message_id": message_id}, 202, _again(again))


@router.get("/v1/webhooks/{webhook_id}/deliveries", response_model=DeliveriesAnswer, operation_id="listDeliveries")
async def list_deliveries(
    webhook_id: str,
    query: Annotated[DeliveriesQuery, Query()],
    caller: Annotated[Caller, allow("subscriber", "admin")],
) -> Response:
    """List attempts to deliver, newest first: the last 10,000 of each webhook, and nothing of what was sent."""
    same = {"of": webhook_id, "outcome": query.outcome}
    before = MAX_POSITION if query.cursor is None else place_of(query.cursor, same)
    with _problems():
        found = await caller.services.webhooks.deliveries(
            _owner(caller), _id(webhook_id), before=before, outcome=query.outcome, limit=query.limit + 1
        )
    shown = found[: query.limit]
    following = cursor(shown[-1].attempt_id, same) if len(found) > query.limit else None
    entries = [
        {
            "message_id": delivery.message_id,
            "position": delivery.position,
            "type": delivery.type,
            "attempt": delivery.attempt,
            "at": delivery.at,
            "outcome": delivery.outcome,
            "status": delivery.status,
            "error": delivery.error,
            "duration_ms": delivery.duration_ms,
        }
        for delivery in shown
    ]
    return answer({"deliveries": entries, "next": following}, 200, _link(caller, following))


@router.get("/v1/webhooks/{webhook_id}/dead-letters", response_model=DeadLettersAnswer, operation_id="listDeadLetters")
async def list_dead_letters(
    webhook_id: str,
    query: Annotated[DeadLettersQuery, Query()],
    caller: Annotated[Caller, allow("subscriber", "admin")],
) -> Response:
    """List messages that were given up, in the order of positions; they are kept for 30 days."""
    same = {"of": f"dead {webhook_id}"}
    after = 0 if query.cursor is None else place_of(query.cursor, same)
    with _problems():
        found = await caller.services.webhooks.dead_letters(
            _owner(caller), _id(webhook_id), after=after, limit=query.limit + 1
        )
    shown = found[: query.limit]
    following = cursor(shown[-1].position, same) if len(found) > query.limit else None
    entries = [
        {
            "message_id": letter.message_id,
            "position": letter.position,
            "type": letter.type,
            "attempts": letter.attempts,
            "first_at": letter.first_at,
            "status": letter.status,
            "error": letter.error,
        }
        for letter in shown
    ]
    return answer({"dead_letters": entries, "next": following}, 200, _link(caller, following))


@router.post(
    "/v1/webhooks/{webhook_id}/replays",
    status_code=202,
    response_model=ReplayAnswer,
    operation_id="replayDeadLetters",
)
async def replay_dead_letters(
    webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")], body: ReplayMessages | None = None
) -> Response:
    """Send dead letters again, each by itself: they come after what was sent since, and no more in order."""
    named = None if body is None or body.message_ids is None else [UUID(text) for text in body.message_ids]
    with _problems():
        replayed, again = await caller.services.webhooks.replay(_owner(caller), _id(webhook_id), named, _asked(caller))
    return answer({"replayed": replayed}, 202, _again(again))


def _owner(caller: Caller) -> Owner:
    return Owner(caller.ledger_id, caller.key.key_id, all=caller.role == "admin")


def _asked(caller: Caller) -> IdempotentRequest | None:
    key = headers.idempotency_key(caller.request)
    return None if key is None else IdempotentRequest(key, caller.request_hash())


def _id(text: str) -> UUID:
    try:
        return headers.path_uuid(text, "webhook")
    except Unknown:
        raise WebhookNotFound from None


async def _enter(caller: Caller, asked: Mapping[str, Any]) -> None:
    """Record in the log of accesses who had events sent; the URL may hold a secret, and is left out."""
    await enter(caller, asked, rows=0, format=STRUCTURED_CONTENT_TYPE)


def _again(again: bool) -> dict[str, str]:
    return {"Idempotent-Replayed": "true"} if again else {}


def _link(caller: Caller, following: str | None) -> Mapping[str, str]:
    return {} if following is None else link_next(caller.request, cursor=following)


def _check(caller: Caller, url: str) -> None:
    try:
        check_url(url, AllowedNetworks(caller.services.settings.webhook_networks))
    except InvalidTarget as bad:
        raise malformed_body("/url", str(bad)) from None


@contextmanager
def _problems() -> Iterator[None]:
    """Turn what the store refuses into problems."""
    try:
        yield
    except WebhookNotFound:
        raise Problem("webhook_unknown") from None
    except WebhookDisabled:
        raise Problem("webhook_disabled") from None
    except OwnerKeyInvalid:
        raise Problem("webhook_key_invalid") from None
    except TooManyWebhooks:
        raise Problem("too_many_webhooks") from None


def _content(caller: Caller, webhook: Webhook) -> dict[str, Any]:
    return {
        "webhook_id": webhook.webhook_id,
        "key_id": webhook.key_id,
        "url": webhook.url,
        "description": webhook.description,
        "types": webhook.types,
        "creator_ids": webhook.creator_ids,
        "enabled": webhook.disabled is None,
        "disabled": webhook.disabled,
        "disabled_at": webhook.disabled_at,
        "created_at": webhook.created_at,
        "old_secret_until": webhook.old_secret_until,
        "position": webhook.position,
        "lag": webhook.lag,
        "lag_seconds": lag_seconds(webhook.oldest, caller.services.now()),
        "waiting": webhook.waiting,
        "dead": webhook.dead,
        "failures": webhook.failures,
        "delivered": webhook.delivered,
        "failed": webhook.failed,
        "delivered_at": webhook.delivered_at,
        "failed_at": webhook.failed_at,
        "error": webhook.error,
        "paused_until": webhook.paused_until,
    }
