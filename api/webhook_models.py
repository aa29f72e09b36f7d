"""What the routes of webhooks take and answer."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from uuid import UUID

from eventsourcing.utils import get_topic
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from api.answer_models import Answer, Moment
from api.audit_queries import Cursor
from api.http.fields import MAX_POSITION, Id, Name
from api.http.query_params import LIMIT, Limit, Query
from api.schemas import Body
from domain.code import Code
from domain.creator import Creator
from infra.delivery.webhooks.http_target import URL_CHARACTERS_MAX
from infra.delivery.webhooks.models import DeliveryOutcome

MAX_TYPES: Final = 50
MAX_CREATORS: Final = 1_000
MAX_MESSAGES: Final = 1_000
OVERLAP_HOURS: Final = 24
MAX_OVERLAP_HOURS: Final = 168
EXAMPLE_URL: Final = "https://receiver.example/sparkledger"


def event_types() -> frozenset[str]:
    """Return the wire name of every event that can be recorded."""
    kinds = [value for aggregate in (Creator, Code) for value in vars(aggregate).values() if isinstance(value, type)]
    events = [kind for kind in kinds if issubclass(kind, Creator.Event | Code.Event)]
    return frozenset(get_topic(k) for k in events if not any(o is not k and issubclass(o, k) for o in events))


EVENT_TYPES: Final = event_types()


def _known(types: list[str]) -> list[str]:
    if not EVENT_TYPES.issuperset(types):
        raise PydanticCustomError("type", "There is a type here that no event has.")
    return sorted(set(types))


_URL: Final = Field(description="Where events are sent: HTTPS, on this machine also HTTP.", examples=[EXAMPLE_URL])
_DESCRIPTION: Final = Field(description="What people call it.", examples=["The campaign tool"])
_TYPES: Final = Field(description="Events of these types alone; empty: of all.", examples=[["Redeemed"]])
_CREATORS: Final = Field(
    description="Events of these creators' permissions and codes alone; empty: of all.", examples=[["ana.creates"]]
)
Url = Annotated[str, StringConstraints(min_length=1, max_length=URL_CHARACTERS_MAX)]
Types = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": sorted(EVENT_TYPES)})]],
    Field(max_length=MAX_TYPES),
    AfterValidator(_known),
]
CreatorIds = Annotated[list[Id], Field(max_length=MAX_CREATORS), AfterValidator(lambda ids: sorted(set(ids)))]


class CreateWebhook(Body):
    url: Annotated[Url, _URL]
    description: Annotated[Name | None, _DESCRIPTION] = None
    types: Annotated[Types, _TYPES] = Field(default_factory=list)
    creator_ids: Annotated[CreatorIds, _CREATORS] = Field(default_factory=list)
    after: Annotated[
        Annotated[int, Field(ge=0, le=MAX_POSITION)] | None,
        Field(description="Send later positions alone; 0 for everything. Absent: from now on.", examples=[0]),
    ] = None


class ChangeWebhook(Body):
    """What is absent stays as it is."""

    url: Annotated[Url | None, _URL] = None
    description: Annotated[Name | None, _DESCRIPTION] = None
    types: Annotated[Types | None, _TYPES] = None
    creator_ids: Annotated[CreatorIds | None, _CREATORS] = None
    enabled: Annotated[
        bool | None,
        Field(description="Whether anything is sent; enabled again, it goes on where it left off.", examples=[True]),
    ] = None


class RotateSecret(Body):
    overlap_hours: Annotated[
        int,
        Field(ge=0, le=MAX_OVERLAP_HOURS, description="For how long messages are signed with both.", examples=[24]),
    ] = OVERLAP_HOURS


class ReplayMessages(Body):
    message_ids: Annotated[
        list[
            Annotated[
                str,
                StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"),
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


class DeadLettersQuery(Query):
    limit: Limit = LIMIT
    cursor: Cursor = None


class DeliveriesQuery(Query):
    outcome: Annotated[DeliveryOutcome | None, Field(description="Attempts that ended so alone.")] = None
    limit: Limit = LIMIT
    cursor: Cursor = None


MessageId = Annotated[UUID, Field(description="`webhook-id` of the message: the event's id, or a test's own.")]
Status = Annotated[int | None, Field(description="The HTTP status that was answered, if any was.", examples=[500])]
Error = Annotated[str | None, Field(description="What went wrong, in our words.")]


class WebhookAnswer(Answer):
    webhook_id: Annotated[UUID, Field(description="The webhook.")]
    key_id: Annotated[UUID, Field(description="The API key that it belongs to.")]
    url: Annotated[str, Field(description="Where events are sent.", examples=[EXAMPLE_URL])]
    description: Annotated[str | None, Field(description="What people call it.")]
    types: Annotated[list[str], Field(description="The types of events that are sent; empty: all.")]
    creator_ids: Annotated[list[str], Field(description="The creators whose events are sent; empty: all.")]
    enabled: Annotated[bool, Field(description="Whether anything is sent.")]
    disabled: Annotated[
        Literal["asked", "gone", "failing", "key"] | None,
        Field(
            description="Why not: somebody asked, the receiver answered 410, nothing got through for the whole "
            "schedule of retries, or the API key is not valid any more."
        ),
    ]
    disabled_at: Annotated[Moment | None, Field(description="Since when.")]
    created_at: Annotated[Moment, Field(description="When it was created.")]
    old_secret_until: Annotated[Moment | None, Field(description="Until when messages bear the old signature too.")]
    position: Annotated[int, Field(ge=0, description="Everything up to here was delivered, or waits, or is dead.")]
    lag: Annotated[int, Field(ge=0, description="Events beyond that.")]
    lag_seconds: Annotated[float, Field(ge=0, description="How long the oldest of them waits.")]
    waiting: Annotated[int, Field(ge=0, description="Messages that wait for another attempt.")]
    dead: Annotated[int, Field(ge=0, description="Messages that were given up.")]
    failures: Annotated[int, Field(ge=0, description="Attempts that failed since one succeeded.")]
    delivered: Annotated[int, Field(ge=0, description="Attempts that succeeded.")]
    failed: Annotated[int, Field(ge=0, description="Attempts that failed.")]
    delivered_at: Annotated[Moment | None, Field(description="When one last succeeded.")]
    failed_at: Annotated[Moment | None, Field(description="When one last failed.")]
    error: Annotated[str | None, Field(description="Why it failed.")]
    paused_until: Annotated[Moment | None, Field(description="Until when the receiver asked to be left alone.")]


class WebhookSecretAnswer(WebhookAnswer):
    secret: Annotated[
        str,
        Field(
            description="What signatures are made with, shown this once.",
            examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        ),
    ]


class WebhooksAnswer(Answer):
    webhooks: Annotated[list[WebhookAnswer], Field(description="Newest first.")]


class TestAnswer(Answer):
    message_id: MessageId


class ReplayAnswer(Answer):
    replayed: Annotated[int, Field(ge=0, description="How many are sent again.")]


class DeadLetterEntry(Answer):
    message_id: MessageId
    position: Annotated[int, Field(ge=1, description="The event's place in the ledger.")]
    type: Annotated[str, Field(description="The event's type.")]
    attempts: Annotated[int, Field(ge=0, description="How often it was tried.")]
    first_at: Annotated[Moment | None, Field(description="When it was tried first.")]
    status: Status
    error: Error


class DeadLettersAnswer(Answer):
    dead_letters: Annotated[list[DeadLetterEntry], Field(description="In the order of positions.")]
    next: Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]


class DeliveryEntry(Answer):
    message_id: MessageId
    position: Annotated[int | None, Field(description="The event's place in the ledger; null for a test.")]
    type: Annotated[str, Field(description="The event's type, or `Test`.")]
    attempt: Annotated[int, Field(ge=1, description="Which attempt it was.")]
    at: Annotated[Moment, Field(description="When.")]
    outcome: Annotated[
        DeliveryOutcome,
        Field(
            description="`delivered`; `failed`, to be tried again; `dead`, given up; `disabled`, and the webhook too."
        ),
    ]
    status: Status
    error: Error
    duration_ms: Annotated[int, Field(ge=0, description="How long it took.")]


class DeliveriesAnswer(Answer):
    deliveries: Annotated[list[DeliveryEntry], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]
