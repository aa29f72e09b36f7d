"""The events of an evidence bundle: as much of each as its reader may see, and all that is needed to verify it.

    envelope   which event of which stream, its type and times; of the rest a hash
    content    who recorded it and why, whom it concerns; of what it says a hash
    all        what it says, too, to the byte

A line that shows all is enough to compute the event's entry in the signed log. Nothing here is unproven, so names
of keys and sentences about events are left out.
"""

from __future__ import annotations

import hashlib
from datetime import UTC
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import orjson

from api.spreadsheet_cells import csv_lines
from domain.log_entry import content

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from domain.log_entry import StoredEvent
    from infra.proof.evidence_log import EvidenceRow

CSV_COLUMNS: Final = (
    *("position", "stream_id", "version", "type", "type_version", "recorded_at", "effective_at"),
    *("event_id", "actor_key", "actor_role", "actor_subject", "source", "command_id", "causation_id"),
    *("correlation_id", "traceparent", "creator_id", "video_id", "body"),
)


class Level(IntEnum):
    """How much of an event is shown."""

    ENVELOPE = 1
    CONTENT = 2
    ALL = 3


def event_fields(
    row: EvidenceRow, level: Level, *, with_creator_stream: bool, erased_by: int | None = None
) -> dict[str, Any]:
    """Return what a bundle shows of an event.

    Args:
        row: the event.
        level: how much of it.
        with_creator_stream: whether the reader may know by what to find all events of the creator.
        erased_by: the position of the event that erased the sealed part, if one did.

    """
    event = row.event
    fields: dict[str, Any] = {
        "position": event.position,
        "stream_id": str(event.stream_id),
        "version": event.version,
        "type": event.type,
        "type_version": event.type_version,
        "recorded_at": moment_text(event.recorded_at),
        "effective_at": moment_text(event.effective_at),
    }
    if level is Level.ENVELOPE:
        fields["content_sha256"] = hashlib.sha256(content(event)).hexdigest()
    else:
        fields |= _content_fields(event)
    if level is Level.ALL:
        fields["body"] = row.body.decode()
    if with_creator_stream:
        fields["creator_stream"] = str(event.creator_stream)
    if erased_by is not None and level is not Level.ENVELOPE:
        fields["erased_by"] = erased_by
    return fields


def ndjson_lines(events: Iterable[dict[str, Any]]) -> bytes:
    """Return events, one a line; a verifier expects exactly these bytes."""
    return b"".join([orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events])


def table_lines(events: Iterable[dict[str, Any]]) -> bytes:
    """Return events as rows of a table."""
    return csv_lines([event.get(column) for column in CSV_COLUMNS] for event in events)


def moment_text(moment: datetime) -> str:
    """Return a time to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _content_fields(event: StoredEvent) -> dict[str, Any]:
    sealed = None
    if event.sealed is not None:
        sealed = {
            "key_id": _text(event.key_id),
            "commitment": (event.commitment or b"").hex(),
            "bytes": event.sealed.length,
            "sha256": event.sealed.sha256.hex(),
        }
    return {
        "event_id": str(event.event_id),
        "actor_key": _text(event.actor_key),
        "actor_role": event.actor_role,
        "actor_subject": event.actor_subject,
        "source": event.source,
        "command_id": str(event.command_id),
        "causation_id": _text(event.causation_id),
        "correlation_id": event.correlation_id,
        "traceparent": event.traceparent,
        "creator_id": event.creator_id,
        "video_id": event.video_id,
        "body_bytes": event.body.length,
        "body_sha256": event.body.sha256.hex(),
        "sealed": sealed,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
