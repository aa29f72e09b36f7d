"""The routes of webhooks: where events are sent to, by the Standard Webhooks specification.

A subscriber's key has webhooks of its own; an administrator's has all of the ledger's. Another's is unknown. The bearer
of a token makes none: it would be sent events long after the token has ended.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.access_log import record_access
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.fields import MAX_POSITION, CreatorName, Name
from api.http.models import Answer, Body
from api.http.problems import Problem, ahead_of_ledger, malformed_body
from api.http.responses import NO_STORE, answer, replay_header
from api.http.route import Operation, Route
from domain.errors import NotAllowed, Unknown
from domain.event_types import EVENT_TYPES
from infra.delivery.cloud_events import STRUCTURED_CONTENT_TYPE
from infra.delivery.lag import lag_seconds
from infra.delivery.webhooks.http_target import URL_CHARACTERS_MAX, AllowedNetworks, InvalidTarget, check_url
from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
from infra.delivery.webhooks.models import Owner, OwnerKeyInvalid, TooManyWebhooks, WebhookDisabled, WebhookNotFound
from infra.delivery.webhooks.signing import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.delivery.webhooks.models import Webhook


MAX_TYPES: Final = 50
MAX_CREATORS: Final = 1_000
OVERLAP_HOURS: Final = 24
MAX_OVERLAP_HOURS: Final = 168
# As Standard Webhooks has them.
WHSEC: Final = r"^whsec_[A-Za-z0-9+/]{32,88}={0,2}$"
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
EXAMPLE_URL: Final = "https://receiver.example/sparkledger"


def _known(types: list[str]) -> list[str]:
    if not EVENT_TYPES.keys() >= set(types):
        raise PydanticCustomError("type", "Unknown event type.")
    return sorted(set(types))


def _usable_secret(text: str) -> str:
    try:
        length = len(base64.b64decode(text.removeprefix(PREFIX), validate=True)) if text.startswith(PREFIX) else 0
    except ValueError:
        length = 0
    if not MIN_SECRET_BYTES <= length <= MAX_SECRET_BYTES:
        raise PydanticCustomError("secret", "Expected whsec_ and 24 to 64 bytes in base64.")
    return text


_URL: Final = Field(
    description="The URL that events are sent to. HTTPS, or HTTP on this machine.", examples=[EXAMPLE_URL]
)
_DESCRIPTION: Final = Field(description="A name for people.", examples=["The campaign tool"])
_TYPES: Final = Field(description="Only events of these types. Empty: all types.", examples=[["Redeemed"]])
_CREATORS: Final = Field(
    description="Only events of these creators' permissions and codes. Empty: all creators.", examples=[["ana.creates"]]
)
Url = Annotated[str, StringConstraints(min_length=1, max_length=URL_CHARACTERS_MAX)]
Types = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": sorted(EVENT_TYPES)})]],
    Field(max_length=MAX_TYPES),
    AfterValidator(_known),
]
CreatorIds = Annotated[list[CreatorName], Field(max_length=MAX_CREATORS), AfterValidator(lambda ids: sorted(set(ids)))]


class CreateWebhook(Body):
    url: Annotated[Url, _URL]
    description: Annotated[Name | None, _DESCRIPTION] = None
    types: Annotated[Types, _TYPES] = Field(default_factory=list)
    creator_ids: Annotated[CreatorIds, _CREATORS] = Field(default_factory=list)
    after: Annotated[
        Annotated[int, Field(ge=0, le=MAX_POSITION)] | None,
        Field(description="Send only later positions. 0 sends everything. Default: from now on.", examples=[0]),
    ] = None
    enabled: Annotated[
        bool,
        Field(description="Whether events are sent. If not, they wait until the webhook is enabled.", examples=[True]),
    ] = True
    secret: Annotated[
        Annotated[str, AfterValidator(_usable_secret), Field(json_schema_extra={"pattern": WHSEC})] | None,
        Field(
            description="A signing secret of your own, 24 to 64 bytes in base64. Default: a new one is made and shown.",
            examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        ),
    ] = None


class ChangeWebhook(Body):
    """Absent fields stay as they are."""

    url: Annotated[Url | None, _URL] = None
    description: Annotated[Name | None, _DESCRIPTION] = None
    types: Annotated[Types | None, _TYPES] = None
    creator_ids: Annotated[CreatorIds | None, _CREATORS] = None
    enabled: Annotated[
        bool | None,
        Field(
            description="Whether events are sent. When enabled again, the webhook continues where it stopped.",
            examples=[True],
        ),
    ] = None
    after: Annotated[
        Annotated[int, Field(ge=0, le=MAX_POSITION)] | None,
        Field(
            description="Go on after this position: earlier events are sent again, and later ones are skipped. "
            "Messages that wait, and dead letters beyond it, are dropped: they are sent again in their turn.",
            examples=[0],
        ),
    ] = None


class RotateSecret(Body):
    overlap_hours: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_HOURS,
            description="How long messages are signed with both secrets, in hours.",
            examples=[24],
        ),
    ] = OVERLAP_HOURS


class WebhookAnswer(Answer):
    webhook_id: Annotated[UUID, Field(description="The webhook.")]
    key_id: Annotated[UUID, Field(description="The id of the API key that it belongs to.")]
    url: Annotated[str, Field(description="The URL that events are sent to.", examples=[EXAMPLE_URL])]
    description: Annotated[str | None, Field(description="A name for people.")]
    types: Annotated[list[str], Field(description="The types of events that are sent. Empty: all types.")]
    creator_ids: Annotated[list[str], Field(description="The creators whose events are sent. Empty: all creators.")]
    enabled: Annotated[bool, Field(description="Whether events are sent.")]
    disabled: Annotated[
        Literal["asked", "gone", "failing", "key"] | None,
        Field(
            description="Why it is disabled: on request, because the receiver responded with 410, because all "
            "retries failed, or because the API key is no longer valid."
        ),
    ]
    disabled_at: Annotated[answered.Moment | None, Field(description="Since when.")]
    created_at: Annotated[answered.Moment, Field(description="When it was created.")]
    old_secret_until: Annotated[
        answered.Moment | None, Field(description="Until when messages also have a signature with the old secret.")
    ]
    position: Annotated[
        int,
        Field(
            ge=0,
            description="Events up to here were processed: delivered, filtered out, waiting for a retry, or dead.",
        ),
    ]
    lag: Annotated[int, Field(ge=0, description="The number of events after that position.")]
    lag_seconds: Annotated[float, Field(ge=0, description="The age of the oldest of these events, in seconds.")]
    waiting: Annotated[int, Field(ge=0, description="Messages waiting for a retry.")]
    dead: Annotated[int, Field(ge=0, description="Messages that were given up (dead letters).")]
    failures: Annotated[int, Field(ge=0, description="Consecutive failed attempts.")]
    delivered: Annotated[int, Field(ge=0, description="The number of successful attempts.")]
    failed: Annotated[int, Field(ge=0, description="The number of failed attempts.")]
    delivered_at: Annotated[answered.Moment | None, Field(description="The time of the last successful attempt.")]
    failed_at: Annotated[answered.Moment | None, Field(description="The time of the last failed attempt.")]
    error: Annotated[str | None, Field(description="Why the last failed attempt failed.")]
    paused_until: Annotated[
        answered.Moment | None, Field(description="Until when the receiver asked not to be called (Retry-After).")
    ]


class WebhookSecretAnswer(WebhookAnswer):
    secret: Annotated[
        str | None,
        Field(
            description="The secret that messages are signed with, shown only once. Null if the request was repeated, "
            "or had a secret of its own.",
            examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        ),
    ]


class WebhooksAnswer(Answer):
    webhooks: Annotated[list[WebhookAnswer], Field(description="Newest first.")]


router = APIRouter(route_class=Route, tags=["Webhooks"])


@router.post("/v1/webhooks", status_code=201, response_model=WebhookSecretAnswer, operation_id="createWebhook")
@Operation(
    answer_headers=("Location", "Cache-Control"),
    replays=True,
    example={"url": "https://receiver.example/sparkledger", "types": ["Redeemed", "Revoked"]},
)
async def create_webhook(body: CreateWebhook, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Create a webhook. Only this response has the signing secret. A token cannot create a webhook.

    A repeated request with the same `Idempotency-Key` returns `"secret": null`. If the first response was lost, rotate
    the secret.
    """
    if caller.key.kind == "token":
        raise NotAllowed(
            "A webhook needs an API key, not a token, because tokens expire. Create it with a key of the role "
            "subscriber."
        )
    _check(caller, body.url)
    head = await caller.services.events.head(caller.ledger_id)
    if body.after is not None and body.after > head:
        raise ahead_of_ledger(head)
    with refusals_as_problems():
        webhook, secret, again = await caller.services.webhooks.create(
            owner_of(caller),
            url=body.url,
            description=body.description,
            types=body.types,
            creator_ids=body.creator_ids,
            after=head if body.after is None else body.after,
            enabled=body.enabled,
            secret=None if body.secret is None else base64.b64decode(body.secret.removeprefix(PREFIX)),
            request=idempotent_request(caller),
        )
    created = {"webhook_id": str(webhook.webhook_id), "types": webhook.types, "creator_ids": webhook.creator_ids}
    await _record_access(caller, created, again=again)
    answer_headers = NO_STORE | {"Location": f"/v1/webhooks/{webhook.webhook_id}"} | replay_header(again)
    return answer(_content(caller, webhook) | {"secret": secret or None}, 201, answer_headers)


@router.get("/v1/webhooks", response_model=WebhooksAnswer, operation_id="listWebhooks")
async def list_webhooks(caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """List webhooks and their state, newest first. There are at most 100."""
    found = await caller.services.webhooks.all(owner_of(caller))
    return answer({"webhooks": [_content(caller, webhook) for webhook in found]})


@router.get("/v1/webhooks/{webhook_id}", response_model=WebhookAnswer, operation_id="readWebhook")
async def read_webhook(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Read a webhook and its state."""
    with refusals_as_problems():
        return answer(_content(caller, await caller.services.webhooks.one(owner_of(caller), path_webhook(webhook_id))))


@router.patch("/v1/webhooks/{webhook_id}", response_model=WebhookAnswer, operation_id="changeWebhook")
@Operation(refusals=(409,), example={"enabled": True})
async def change_webhook(
    webhook_id: str, body: ChangeWebhook, caller: Annotated[Caller, allow("subscriber", "admin")]
) -> Response:
    """Change a webhook, enable or disable it, or move it. When enabled again, it continues where it stopped."""
    if body.url is not None:
        _check(caller, body.url)
    if body.after is not None and body.after > (head := await caller.services.events.head(caller.ledger_id)):
        raise ahead_of_ledger(head)
    given = body.model_dump(exclude_unset=True)
    changes = {name: value for name, value in given.items() if value is not None or name == "description"}
    with refusals_as_problems():
        webhook = await caller.services.webhooks.change(owner_of(caller), path_webhook(webhook_id), **changes)
    await _record_access(caller, {"webhook_id": webhook_id, "changed": sorted(changes)})
    return answer(_content(caller, webhook))


@router.delete("/v1/webhooks/{webhook_id}", status_code=204, response_class=Response, operation_id="deleteWebhook")
async def delete_webhook(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Delete a webhook, its dead letters and its list of deliveries."""
    with refusals_as_problems():
        await caller.services.webhooks.delete(owner_of(caller), path_webhook(webhook_id))
    await _record_access(caller, {"webhook_id": webhook_id})
    return Response(status_code=204)


@router.post(
    "/v1/webhooks/{webhook_id}/rotation",
    status_code=201,
    response_model=WebhookSecretAnswer,
    operation_id="rotateWebhookSecret",
)
@Operation(answer_headers=("Cache-Control",), replays=True, example={"overlap_hours": 24})
async def rotate_webhook_secret(
    webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")], body: RotateSecret | None = None
) -> Response:
    """Create a new signing secret, shown only in this response. Both sign messages until the overlap ends.

    A repeated request with the same `Idempotency-Key` returns `"secret": null`.
    """
    overlap = timedelta(hours=(body or RotateSecret()).overlap_hours)
    with refusals_as_problems():
        webhook, secret, again = await caller.services.webhooks.rotate(
            owner_of(caller), path_webhook(webhook_id), overlap, idempotent_request(caller)
        )
    await _record_access(caller, {"webhook_id": webhook_id}, again=again)
    return answer(_content(caller, webhook) | {"secret": secret or None}, 201, NO_STORE | replay_header(again))


def owner_of(caller: Caller) -> Owner:
    return Owner(caller.ledger_id, caller.key.key_id, all=caller.role == "admin")


def idempotent_request(caller: Caller) -> IdempotentRequest | None:
    key = headers.idempotency_key(caller.request)
    return None if key is None else IdempotentRequest(key, caller.request_hash)


def path_webhook(text: str) -> UUID:
    try:
        return headers.path_uuid(text, "webhook")
    except Unknown:
        raise WebhookNotFound from None


async def _record_access(caller: Caller, parameters: Mapping[str, Any], *, again: bool = False) -> None:
    """Record in the access log who had events sent; the URL may hold a secret, and is left out."""
    repeated = {"replayed": True} if again else {}
    await record_access(caller, {**parameters, **repeated}, rows=0, format=STRUCTURED_CONTENT_TYPE)


def _check(caller: Caller, url: str) -> None:
    try:
        check_url(url, AllowedNetworks(caller.services.settings.webhook_networks))
    except InvalidTarget as bad:
        raise malformed_body("/url", str(bad)) from None


@contextmanager
def refusals_as_problems() -> Iterator[None]:
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
