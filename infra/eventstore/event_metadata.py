"""What is said of every event beside its body, in one shape: feed, streams, Kafka and webhooks name a field the same.

Each event is complete. One of a code names the code, its creator and its video, one of a permission the creator, one
of an advertiser account the account, one of a video's binding the video, and one of the ledger itself none of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.advertiser import Advertiser
from domain.code import Code
from domain.summaries import summary
from domain.video import Video
from infra.eventstore.serialization import UnreadableEvent, event_type

if TYPE_CHECKING:
    from domain.recorded import Event, RecordedEvent
    from infra.eventstore.event_rows import Row


UNREADABLE: Final = "This version of the program cannot read this event."


class Subject(NamedTuple):
    """What an event happened to.

    Attributes:
        path: its kind and its id, as a relative reference.
        key: only its id: events of one key are handed on in order.
        ids: the ids that the event names.

    """

    path: str
    key: str
    ids: dict[str, UUID | str | None]


def subject_of(event: Event, stream_id: UUID, creator_id: str | None, video_id: str | None) -> Subject:
    """Return what an event happened to."""
    if video_id is not None or isinstance(event, Code.Event):
        code_id = str(stream_id)
        return Subject(
            f"codes/{code_id}", code_id, {"code_id": code_id, "creator_id": creator_id, "video_id": video_id}
        )
    if creator_id is not None:
        return Subject(f"creators/{creator_id}", creator_id, {"creator_id": creator_id})
    if isinstance(event, Advertiser.Named):
        return Subject(
            f"advertisers/{event.advertiser_id}", event.advertiser_id, {"advertiser_id": event.advertiser_id}
        )
    if isinstance(event, Video.Bound | Video.Released):
        return Subject(f"videos/{event.video_id}", event.video_id, {"video_id": event.video_id})
    return Subject("ledger", str(stream_id), {})


def event_metadata(row: Row, event: Event, subject: Subject, key_id: str) -> dict[str, Any]:
    """Return what is said of an event beside its body.

    Args:
        row: its row, whose body and whose actor's key are not looked at.
        event: the event itself.
        subject: what it happened to.
        key_id: the id of its actor's key.

    """
    position, event_id, type_, _, _, stream_version, recorded_at, effective_at, _, role, acts_for, source = row[:12]
    return {
        "position": position,
        "event_id": event_id,
        "type": type_,
        "type_version": row[3] if isinstance(event, UnreadableEvent) else event_type(event)[1],
        **subject.ids,
        "stream_version": stream_version,
        "recorded_at": recorded_at,
        "effective_at": effective_at,
        "actor": {"key_id": key_id, "role": role, "subject": acts_for},
        "source": source,
        "correlation_id": row[12],
        "causation_id": row[13],
    }


def summary_of(event: Event) -> str:
    """Say in one sentence what happened, or that nobody can say it here."""
    return UNREADABLE if isinstance(event, UnreadableEvent) else summary(event)


def row_of(recorded: RecordedEvent) -> Row:
    """Return the row of an event, without its body and its actor's key."""
    actor = recorded.actor
    return (
        *recorded[:6],
        *recorded[7:9],
        None,
        actor.role,
        actor.subject,
        recorded.source,
        *recorded[12:16],
        b"",
    )
