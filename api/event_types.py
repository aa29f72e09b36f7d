"""The catalogue of event types, for readers that are machines; docs/events.md is the one for people."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from api.http.caller import Caller, allow
from api.http.models import Answer
from api.http.responses import answer
from api.http.route import Route
from domain.authorization import EFFECTS, Effect
from domain.code import Code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from infra.delivery.cloud_events import schema_path, type_of


class EventTypeEntry(Answer):
    type: Annotated[str, Field(description="The name of the type.", examples=["Redeemed"])]
    version: Annotated[int, Field(ge=1, description="The newest version of its format.")]
    cloudevents_type: Annotated[str, Field(description="Its name in messages.", examples=["sparkledger.Redeemed.v1"])]
    subject: Annotated[Literal["code", "creator", "advertiser"], Field(description="What such an event happens to.")]
    authorization: Annotated[
        Effect | None,
        Field(
            description="Whether it begins or ends an authorization, or changes when it ends. Null if it does neither, "
            "such as a permission that is switched off, or an erasure."
        ),
    ]
    description: Annotated[str, Field(description="What happened.")]
    json_schema: Annotated[
        str, Field(description="The path of the JSON Schema.", examples=["/schemas/Redeemed.v1.json"])
    ]


class EventTypesAnswer(Answer):
    event_types: Annotated[list[EventTypeEntry], Field(description="In the order of a code's life.")]


router = APIRouter(route_class=Route, tags=["Webhooks"])


@router.get("/v1/event-types", response_model=EventTypesAnswer, operation_id="listEventTypes")
async def list_event_types(
    _: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """List all types of events, with their JSON Schemas, and whether they begin or end an authorization."""
    return answer({"event_types": _TYPES})


def _entry(name: str, kind: type[Any]) -> dict[str, Any]:
    version = getattr(kind, "class_version", 1)
    subject = "code" if issubclass(kind, Code.Event) else "creator" if issubclass(kind, Creator.Event) else "advertiser"
    return {
        "type": name,
        "version": version,
        "cloudevents_type": type_of(name, version),
        "subject": subject,
        "authorization": EFFECTS.get(kind),
        "description": " ".join((kind.__doc__ or "").split()),
        "json_schema": schema_path(name, version),
    }


_TYPES: Final = [_entry(name, kind) for name, kind in EVENT_TYPES.items()]
