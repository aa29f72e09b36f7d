"""JSON Schemas for subscribers: one for each event in each version, as it is sent, and one for a code's state.

They are generated from the event classes. A published schema is never changed in a way that breaks its readers:
`incompatibilities` finds such changes, and they need a new version of the event.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from eventsourcing.domain import Aggregate
from eventsourcing.utils import get_topic

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from domain.rights import EndsBy
from domain.values import Channel, Role, Sealed, Source, State
from domain.video import Video

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CODE_STATE: Final = "CodeState"
TEST: Final = "Test"

_TEXT: Final = {"type": "string"}
_TIME: Final = {"type": "string", "format": "date-time"}
_UUID: Final = {"type": "string", "format": "uuid"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_NUMBER: Final = {"type": "integer", "minimum": 1}
# Records of a code's state from before these were added lack them.
_ADDED_TO_STATE: Final = frozenset({"usage_rights", "ends_at", "ends_by"})

_TYPES: Final[dict[Any, dict[str, Any]]] = {
    str: _TEXT,
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    datetime: _TIME,
    Any: {},
    dict[str, str]: {"type": "object", "additionalProperties": _TEXT},
    list[str]: {"type": "array", "items": _TEXT},
}


def own_fields(kind: type[Any]) -> Iterator[tuple[str, Any, bool, bool]]:
    """Yield each field of an event's body: its name, its type, whether it is sealed, and whether it may be absent."""
    inherited = {field.name for base in (Aggregate.Event, Aggregate.Created) for field in fields(base)}
    annotations = get_type_hints(kind)
    for field in fields(kind):
        if field.name not in inherited:
            present = _required_type(annotations[field.name])
            yield field.name, present, present is Sealed, field.default is not MISSING


def schemas() -> dict[str, dict[str, Any]]:
    """Return every schema by its name, such as `Shared.v1`, `CodeState.v1` for the state, and `Test.v1`."""
    events = [_event_schema(kind) for kind in EVENT_TYPES.values()]
    return {schema["title"]: schema for schema in [*events, code_state_schema(), _test_schema()]}


def incompatibilities(published: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    """Return each change that breaks readers of the published schema.

    Only optional fields may be added, and only descriptions may change.
    """
    before, after = published["properties"], changed["properties"]
    nested = {name for name in before if "properties" in before[name] and "properties" in after.get(name, {})}
    return [
        *(f"{name} was removed" for name in before if name not in after),
        *(
            f"{name} is another type now"
            for name in before
            if name in after
            and name not in nested
            and _without_descriptions(before[name]) != _without_descriptions(after[name])
        ),
        *(f"{name}.{why}" for name in before if name in nested for why in incompatibilities(before[name], after[name])),
        *(f"{name} may be absent now" for name in published["required"] if name not in changed["required"]),
        *(
            f"{name} is required now, and older events do not have it"
            for name in changed["required"]
            if name not in published["required"]
        ),
    ]


def _event_schema(kind: type[Any]) -> dict[str, Any]:
    """Return the schema of an event as subscribers get it: its metadata, and its clear body."""
    name, version = get_topic(kind), getattr(kind, "class_version", 1)
    clear = [(field, type_, optional) for field, type_, sealed, optional in own_fields(kind) if not sealed]
    body = _open_object(
        {field: _type_schema(type_) for field, type_, _ in clear},
        [field for field, _, optional in clear if not optional],
    )
    properties = {
        "position": _NUMBER,
        "event_id": _UUID,
        "type": {"const": name},
        "type_version": {"const": version},
        **_subject_schema(kind),
        "stream_version": _NUMBER,
        "recorded_at": _TIME,
        "effective_at": _TIME,
        "actor": _open_object(
            {"key_id": _TEXT, "role": {"enum": [*get_args(Role), "clock"]}, "subject": _or_null(_TEXT)},
            ["key_id", "role", "subject"],
        ),
        "source": {"enum": list(get_args(Source))},
        "correlation_id": _or_null(_TEXT),
        "causation_id": _or_null(_UUID),
        "body": body,
    }
    return _schema(f"{name}.v{version}", " ".join((kind.__doc__ or "").split()), properties, list(properties))


def _test_schema() -> dict[str, Any]:
    about = "A test of a webhook, asked for by its owner. It is no event: no ledger has it, and it has no position."
    return _schema(f"{TEST}.v1", about, {"webhook_id": _UUID}, ["webhook_id"])


def _subject_schema(kind: type[Any]) -> dict[str, Any]:
    """Return the ids that every event of a kind of subject names."""
    if issubclass(kind, Code.Event):
        return {"code_id": _UUID, "creator_id": _TEXT, "video_id": _TEXT}
    if issubclass(kind, Creator.Event):
        return {"creator_id": _TEXT}
    if issubclass(kind, Video.Event):
        return {"video_id": _TEXT}
    return {"advertiser_id": _TEXT} if issubclass(kind, Advertiser.Event) else {}


def code_state_schema() -> dict[str, Any]:
    """Return the schema of `infra.delivery.kafka.code_state.state_content`."""
    share = {
        "brand_id": _TEXT,
        "channel": {"enum": list(get_args(Channel))},
        "advertiser_id": _or_null(_TEXT),
        "shared_at": _TIME,
    }
    campaign = {
        "campaign_id": _TEXT,
        "advertiser_id": _TEXT,
        "budget": {"type": "object", "additionalProperties": _TEXT},
        "starts_at": _TIME,
        "ends_at": _TIME,
        "stops_at": _TIME,
        "launched_at": _TIME,
        "ended_at": _or_null(_TIME),
    }
    rights = {
        "until": _or_null(_TIME),
        "platforms": _or_null({"type": "array", "items": _TEXT}),
        "edits_allowed": _or_null({"type": "boolean"}),
        "stated_at": _TIME,
    }
    properties = {
        "ledger": _TEXT,
        "code_id": _UUID,
        "masked": _or_null(_TEXT),
        "creator_id": _TEXT,
        "video_id": _TEXT,
        "terms_version": _TEXT,
        "generated_at": _TIME,
        "starts_at": _TIME,
        "expires_at": _TIME,
        "usage_rights": _or_null(_object(rights)),
        "ends_at": _TIME,
        "ends_by": {"enum": list(get_args(EndsBy))},
        "revoked_at": _or_null(_TIME),
        "state": {"enum": list(get_args(State))},
        "caption_sha256": _or_null(_TEXT),
        "creative_sha256": _or_null(_TEXT),
        "share_count": _COUNT,
        "shares": {"type": "array", "items": _object(share)},
        "redemption_count": _COUNT,
        "redemptions": {"type": "array", "items": _object({"advertiser_id": _TEXT, "redeemed_at": _TIME})},
        "campaign_count": _COUNT,
        "campaigns": {"type": "array", "items": _object(campaign)},
        "truncated": {"type": "boolean"},
        "erased": {"type": "boolean"},
        "version": _COUNT,
        "stream_version": _COUNT,
        "position": _COUNT,
        "recorded_at": _TIME,
    }
    about = (
        "The state of a code after its event at `position`. It does not change when the code expires by the "
        "clock: compare `ends_at` and `expires_at` with the clock. Lists contain the newest 100 entries, counts count "
        "all, and `truncated` says whether entries were left out. No record is ever deleted: the codes of an erased "
        "creator get another one, with `erased`."
    )
    required = [name for name in properties if name not in _ADDED_TO_STATE]
    return _schema(f"{CODE_STATE}.v1", about, properties, required)


def _schema(title: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "$schema": DIALECT,
        "$id": f"urn:sparkledger:schema:{title}",
        "title": title,
        "description": description,
        **_open_object(properties, required),
    }


def _open_object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    # Later versions may add fields, and readers ignore fields that they do not know.
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": True}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"oneOf": [schema, {"type": "null"}]}


def _required_type(annotation: Any) -> Any:
    """Return the type of a field, without None."""
    if get_origin(annotation) in {Union, types.UnionType}:
        (annotation,) = [part for part in get_args(annotation) if part is not type(None)]
    return annotation


def _type_schema(annotation: Any) -> dict[str, Any]:
    if get_origin(annotation) is Literal:
        return {"enum": list(get_args(annotation))}
    return _TYPES[annotation]


def _without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            name: _without_descriptions(part) for name, part in schema.items() if name not in {"description", "title"}
        }
    if isinstance(schema, list):
        return [_without_descriptions(part) for part in schema]
    return schema
