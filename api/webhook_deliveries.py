"""Deliveries of webhooks: the attempts, the dead letters, and sending them again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.cursors import decode, encode
from api.http.fields import MAX_POSITION, UUID_PATTERN, Moment
from api.http.models import Answer, Body, absent
from api.http.pagination import page_answer, page_of
from api.http.query_params import LIMIT, EitherCursor, Limit, QueryModel
from api.http.responses import answer, replay_header
from api.http.route import Operation, Route
from api.webhooks import idempotent_request, owner_of, path_webhook, refusals_as_problems
from infra.delivery.webhooks.models import DeliveryOutcome, Replayed, ReplayRange
from infra.delivery.webhooks.signing import payload, payload_of_test
from infra.eventstore.serialization import UnreadableEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from infra.delivery.webhooks.models import DeadLetter, Delivery


MAX_MESSAGES: Final = 1_000
_INSTANT: Final = timedelta(microseconds=1)


class ReplayMessages(Body):
    """Dead letters by id, or all events of a range of positions or of times, delivered ones too."""

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
    after: Annotated[
        Annotated[int, Field(ge=0, le=MAX_POSITION)] | None,
        Field(description="Send the events after this position again, delivered ones too.", examples=[0]),
    ] = None
    upto: Annotated[
        Annotated[int, Field(ge=1, le=MAX_POSITION)] | None,
        Field(description="The last position. Default: as far as the webhook has come.", examples=[100]),
    ] = None
    recorded_from: Annotated[
        Moment | None,
        Field(description="Send the events recorded at this time or later again, delivered ones too."),
    ] = None
    recorded_to: Annotated[Moment | None, Field(description="Only events recorded before this time.")] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_time = self.recorded_from is not None or self.recorded_to is not None
        by_position = self.after is not None or self.upto is not None
        if (self.message_ids is not None, by_position, by_time).count(True) > 1:
            raise PydanticCustomError("one_of", "Send message ids, or positions, or times.")
        if (by_time and self.recorded_from is None) or (by_position and self.after is None):
            raise PydanticCustomError("one_of", "Send the beginning of the range, too: after, or recorded_from.")
        # An empty range is none that ends before it begins: it is what is left when `next` has reached the end.
        if self.after is not None and self.upto is not None and self.upto < self.after:
            raise PydanticCustomError("range", "upto is before after. Send the earlier position as after.")
        if self.recorded_from is not None and self.recorded_to is not None and self.recorded_to < self.recorded_from:
            raise PydanticCustomError("range", "recorded_to is before recorded_from. Send the earlier time first.")
        return self


MessageId = Annotated[UUID, Field(description="The `webhook-id` of the message: the id of the event or of the test.")]
Status = Annotated[int | None, Field(description="The HTTP status of the response, if there was one.", examples=[500])]
Error = Annotated[str | None, Field(description="What went wrong.")]


class TestAnswer(Answer):
    message_id: MessageId


class ReplayAnswer(Answer):
    replayed: Annotated[int, Field(ge=0, description="The number of messages that are sent again.")]
    next: Annotated[
        int | None,
        Field(description="The `after` for the rest of a range that is too long for one request. Null if that is all."),
    ]


class RetryAnswer(Answer):
    retried: Annotated[int, Field(ge=0, description="The number of messages that are retried now.")]


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
    answer: Annotated[
        str | None, Field(description="The first 1,024 bytes of the body of the response, if there was one.")
    ]
    payload: Annotated[
        dict[str, Any] | None,
        Field(description="What was sent, if requested. Null if the event cannot be read any more."),
    ] = Field(default_factory=absent)


class DeliveriesAnswer(Answer):
    deliveries: Annotated[list[DeliveryEntry], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class DeadLettersQuery(QueryModel):
    limit: Limit = LIMIT
    cursor: EitherCursor = None


class DeliveriesQuery(QueryModel):
    outcome: Annotated[DeliveryOutcome | None, Field(description="Only attempts with this outcome.")] = None
    payload: Annotated[bool, Field(description="Whether to show what was sent.")] = False
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
    """List delivery attempts, newest first: the last 10,000 of each webhook, and of the last 30 days.

    Each shows the beginning of the receiver's response, and what was sent if `payload=true`.
    """
    scope = {"of": webhook_id, "outcome": query.outcome}
    before = MAX_POSITION if query.cursor is None else decode(query.cursor, scope)
    with refusals_as_problems():
        found = await caller.services.webhooks.deliveries(
            owner_of(caller), path_webhook(webhook_id), before=before, outcome=query.outcome, limit=query.limit + 1
        )
    page = page_of(found, query.limit, lambda delivery: encode(delivery.attempt_id, scope))
    payloads = await _payloads(caller, UUID(webhook_id), page.rows) if query.payload else None
    return page_answer(caller, "deliveries", page, lambda delivery: _delivery(delivery, payloads))


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
    """Send dead letters again, or every event of a range that the webhook wants, delivered ones too.

    They arrive after newer events, those of one code in order. At most 1,000 events, of 100,000 positions, are sent
    again by one request: `next` says where to continue.
    """
    webhooks, owner, request = caller.services.webhooks, owner_of(caller), idempotent_request(caller)
    wanted = None if body is None else await _range(caller, body)
    with refusals_as_problems():
        if wanted is None:
            named = None if body is None or body.message_ids is None else [UUID(text) for text in body.message_ids]
            messages, again = await webhooks.replay(owner, path_webhook(webhook_id), named, request)
            replayed = Replayed(messages)
        else:
            replayed, again = await webhooks.replay_range(owner, path_webhook(webhook_id), wanted, request)
    return answer({"replayed": replayed.messages, "next": replayed.next}, 202, replay_header(again))


@router.post(
    "/v1/webhooks/{webhook_id}/retries", status_code=202, response_model=RetryAnswer, operation_id="retryWebhook"
)
@Operation(refusals=(409,))
async def retry_webhook(webhook_id: str, caller: Annotated[Caller, allow("subscriber", "admin")]) -> Response:
    """Retry all messages that wait now, also if the receiver has asked for a pause."""
    with refusals_as_problems():
        return answer(
            {"retried": await caller.services.webhooks.retry(owner_of(caller), path_webhook(webhook_id))}, 202
        )


async def _range(caller: Caller, body: ReplayMessages) -> ReplayRange | None:
    """Return the range that is asked for; None where there is none."""
    if body.after is not None:
        return ReplayRange(body.after, MAX_POSITION if body.upto is None else body.upto)
    if body.recorded_from is None:
        return None
    now = caller.services.now()

    async def before(moment: datetime) -> int:
        return await caller.services.events.position_at(caller.ledger_id, min(moment - _INSTANT, now))

    upto = MAX_POSITION if body.recorded_to is None else await before(body.recorded_to)
    return ReplayRange(await before(body.recorded_from), upto)


async def _payloads(caller: Caller, webhook_id: UUID, deliveries: Sequence[Delivery]) -> dict[UUID, dict[str, Any]]:
    """Return what was sent, by message: it is made again from the events."""
    ledger = caller.key.ledger_name
    positions = {delivery.position for delivery in deliveries if delivery.position is not None}
    sent = {
        recorded.event_id: orjson.loads(
            payload(recorded, ledger, caller.history.history, caller.services.settings.public_url)
        )
        for recorded in await caller.services.events.at_positions(caller.ledger_id, sorted(positions))
        if not isinstance(recorded.event, UnreadableEvent)
    }
    for delivery in deliveries:
        if delivery.position is None:
            test = payload_of_test(delivery.message_id, webhook_id, ledger, delivery.at)
            sent[delivery.message_id] = orjson.loads(test)
    return sent


def _delivery(delivery: Delivery, payloads: Mapping[UUID, dict[str, Any]] | None) -> dict[str, Any]:
    shown = {} if payloads is None else {"payload": payloads.get(delivery.message_id)}
    return {
        **shown,
        "message_id": delivery.message_id,
        "position": delivery.position,
        "type": delivery.type,
        "attempt": delivery.attempt,
        "at": delivery.at,
        "outcome": delivery.outcome,
        "status": delivery.status,
        "error": delivery.error,
        "duration_ms": delivery.duration_ms,
        "answer": delivery.answer,
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
