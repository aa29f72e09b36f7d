"""Deliveries of webhooks: the attempts, the dead letters, and sending them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.cursors import decode, encode
from api.http.fields import MAX_POSITION, UUID_PATTERN
from api.http.models import Answer, Body
from api.http.pagination import page_answer, page_of
from api.http.query_params import LIMIT, EitherCursor, Limit, QueryModel
from api.http.responses import answer, replay_header
from api.http.route import Operation, Route
from api.webhooks import idempotent_request, owner_of, path_webhook, refusals_as_problems
from infra.delivery.webhooks.models import DeliveryOutcome

if TYPE_CHECKING:
    from infra.delivery.webhooks.models import DeadLetter, Delivery


MAX_MESSAGES: Final = 1_000


class ReplayMessages(Body):
    message_ids: Annotated[
        list[
            Annotated[
                str,
                StringConstraints(pattern=UUID_PATTERN),
                Field(json_schema_extra={"format": "uuid"}),
            ]
        ]
        | None,
        Field(
            min_length=1,
            max_length=MAX_MESSAGES,
            description=f"The dead letters to send again. Absent: the oldest {MAX_MESSAGES:,}.",
            examples=[["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b22"]],
        ),
    ] = None


MessageId = Annotated[UUID, Field(description="The `webhook-id` of the message: the id of the event or of the test.")]
Status = Annotated[int | None, Field(description="The HTTP status of the response, if there was one.", examples=[500])]
Error = Annotated[str | None, Field(description="What went wrong.")]


class TestAnswer(Answer):
    message_id: MessageId


class ReplayAnswer(Answer):
    replayed: Annotated[int, Field(ge=0, description="The number of messages that are sent again.")]


class DeadLetterEntry(Answer):
    message_id: MessageId
    position: Annotated[int, Field(ge=1, description="The event's position in the ledger.")]
    type: Annotated[str, Field(description="The event's type.")]
    attempts: Annotated[int, Field(ge=0, description="The number of attempts.")]
    first_at: Annotated[answered.Moment | None, Field(description="The time of the first attempt.")]
    status: Status
    error: Error


class DeadLettersAnswer(Answer):
    dead_letters: Annotated[list[DeadLetterEntry], Field(description="Sorted by position.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class DeliveryEntry(Answer):
    message_id: MessageId
    position: Annotated[int | None, Field(description="The event's position in the ledger. Null for a test.")]
    type: Annotated[str, Field(description="The event's type, or `Test`.")]
    attempt: Annotated[int, Field(ge=1, description="The number of the attempt.")]
    at: Annotated[answered.Moment, Field(description="When.")]
    outcome: Annotated[
        DeliveryOutcome,
        Field(
            description=(
                "`delivered`, `failed` (retried later), `dead` (given up), or `disabled` (the webhook was "
                "disabled too)."
            )
        ),
    ]
    status: Status
    error: Error
    duration_ms: Annotated[int, Field(ge=0, description="The duration of the attempt.")]


class DeliveriesAnswer(Answer):
    deliveries: Annotated[list[DeliveryEntry], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class DeadLettersQuery(QueryModel):
    limit: Limit = LIMIT
    cursor: EitherCursor = None


class DeliveriesQuery(QueryModel):
    outcome: Annotated[DeliveryOutcome | None, Field(description="Only attempts with this outcome.")] = None
    limit: Limit = LIMIT
    cursor: EitherCursor = None


router = APIRouter(route_class=Route, tags=["Webhooks"])


@router.post("/v1/webhooks/{webhook_id}/test", status_code=202, response_model=TestAnswer, operation_id="testWebhook")
@Operation(replays=True)
async def send_test(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Send a test message once. The list of deliveries shows the result."""
    with refusals_as_problems():
        message_id, again = await caller.services.webhooks.test(
            owner_of(caller), path_webhook(webhook_id), idempotent_request(caller)
        )
    return answer({"message_id": message_id}, 202, replay_header(again))


@router.get("/v1/webhooks/{webhook_id}/deliveries", response_model=DeliveriesAnswer, operation_id="listDeliveries")
async def list_deliveries(
    webhook_id: str,
    query: Annotated[DeliveriesQuery, Query()],
    caller: Annotated[Caller, allow("subscriber", "admin")],
) -> Response:
    """List delivery attempts, newest first: the last 10,000 of each webhook, without the content of the messages."""
    scope = {"of": webhook_id, "outcome": query.outcome}
    before = MAX_POSITION if query.cursor is None else decode(query.cursor, scope)
    with refusals_as_problems():
        found = await caller.services.webhooks.deliveries(
            owner_of(caller), path_webhook(webhook_id), before=before, outcome=query.outcome, limit=query.limit + 1
        )
    page = page_of(found, query.limit, lambda delivery: encode(delivery.attempt_id, scope))
    return page_answer(caller, "deliveries", page, _delivery)


@router.get("/v1/webhooks/{webhook_id}/dead-letters", response_model=DeadLettersAnswer, operation_id="listDeadLetters")
async def list_dead_letters(
    webhook_id: str,
    query: Annotated[DeadLettersQuery, Query()],
    caller: Annotated[Caller, allow("subscriber", "admin")],
) -> Response:
    """List messages that were given up, by position. They are kept for 30 days."""
    scope = {"of": f"dead {webhook_id}"}
    after = 0 if query.cursor is None else decode(query.cursor, scope)
    with refusals_as_problems():
        found = await caller.services.webhooks.dead_letters(
            owner_of(caller), path_webhook(webhook_id), after=after, limit=query.limit + 1
        )
    page = page_of(found, query.limit, lambda letter: encode(letter.position, scope))
    return page_answer(caller, "dead_letters", page, _dead_letter)


@router.post(
    "/v1/webhooks/{webhook_id}/replays",
    status_code=202,
    response_model=ReplayAnswer,
    operation_id="replayDeadLetters",
)
@Operation(replays=True, example={"message_ids": ["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b22"]})
async def replay_dead_letters(
    webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")], body: ReplayMessages | None = None
) -> Response:
    """Send dead letters again. They arrive after newer events, in no guaranteed order."""
    named = None if body is None or body.message_ids is None else [UUID(text) for text in body.message_ids]
    with refusals_as_problems():
        replayed, again = await caller.services.webhooks.replay(
            owner_of(caller), path_webhook(webhook_id), named, idempotent_request(caller)
        )
    return answer({"replayed": replayed}, 202, replay_header(again))


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
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


def _dead_letter(letter: DeadLetter) -> dict[str, Any]:
    return {
        "message_id": letter.message_id,
        "position": letter.position,
        "type": letter.type,
        "attempts": letter.attempts,
        "first_at": letter.first_at,
        "status": letter.status,
        "error": letter.error,
    }
