"""Which events concern a code, creator, video, brand, advertiser or actor, and when were they recorded?

Reads every event. Read by the audit trail, which searches here for positions (`index_scan.py`) and reads the events
themselves from the log; and by the read of one event, which finds here what followed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.log import Log
from domain.pasted import creator_name
from domain.sheet_import import SheetImport
from domain.video import Video
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import Event, RecordedEvent

NAME: Final = "history"
VERSION: Final = 6

# An event that is recorded longer than this after it took effect is indexed as late. The clock's own events are seconds
# late.
LATE_AFTER: Final = timedelta(hours=1)


@dataclass(slots=True)
class EventIndexRow:
    """One event, with all that it may be searched by.

    `creator_id`, in its canonical form, and `video_id` are set only if the event itself names them. The other events of
    a creator or of a video's codes are found by `creator_stream` and `code_id`: repeating the ids would double the
    largest index of all. `code_id` is the stream of a code, or of a video's binding, and None for other events; `actor`
    is a key's id, or "clock"; `channel` is a share's, `refused` the reason of a refused redemption; `late` tells that
    the event was recorded long after it took effect; `causation_id` is the event that it follows from.
    """

    ledger_id: int
    position: int
    type: str
    code_id: UUID | None
    creator_stream: UUID
    creator_id: str | None
    video_id: str | None
    brand_id: str | None
    advertiser_id: str | None
    channel: str | None
    refused: str | None
    actor: str
    source: str
    recorded_at: datetime
    effective_at: datetime
    late: bool
    causation_id: UUID | None


EVENT_INDEX: Final = Table(
    "history",
    EventIndexRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            position            bigint NOT NULL,
            type                text NOT NULL,
            code_id             uuid,
            creator_stream      uuid NOT NULL,
            creator_id          text,
            video_id            text,
            brand_id            text,
            advertiser_id       text,
            channel             text,
            refused             text,
            actor               text NOT NULL,
            source              text NOT NULL,
            recorded_at         timestamptz NOT NULL,
            effective_at        timestamptz NOT NULL,
            late                boolean NOT NULL,
            causation_id        uuid,
            PRIMARY KEY (ledger_id, position)
        ) WITH (autovacuum_vacuum_insert_scale_factor = 0.01)
    """,
    # The events of one creator, actor, brand or advertiser lie far apart, so each takes the read of a block. The type,
    # which is most often searched for together with them, is therefore in the index: no block is read for events of
    # another type, as long as the table is vacuumed often (hence the scale factor above).
    # recorded_at has no index: it never decreases with position, so a binary search turns a time into a position.
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, code_id, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream, position) INCLUDE (type)",
        "CREATE INDEX ON {table} (ledger_id, creator_id) WHERE type IN ('PermissionEnabled', 'PermissionDisabled')",
        "CREATE INDEX ON {table} (ledger_id, video_id) WHERE type IN ('CodeGenerated', 'VideoBound')",
        "CREATE INDEX ON {table} (ledger_id, brand_id, position) INCLUDE (type) WHERE brand_id IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, position) INCLUDE (type) WHERE advertiser_id IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, channel, position) WHERE channel IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, refused, position) WHERE refused IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, actor, position) INCLUDE (type)",
        "CREATE INDEX ON {table} (ledger_id, type, position)",
        "CREATE INDEX ON {table} (ledger_id, source, position)",
        "CREATE INDEX ON {table} (ledger_id, position) WHERE late",
        "CREATE INDEX ON {table} (ledger_id, causation_id, position) WHERE causation_id IS NOT NULL",
    ),
)


def indexed(ledger_id: int, recorded: RecordedEvent, event: Event) -> EventIndexRow:
    named = vars(event).get
    return EventIndexRow(
        ledger_id=ledger_id,
        position=recorded.position,
        type=recorded.type,
        code_id=recorded.stream_id if isinstance(event, Code.Event | Video.Event) else None,
        creator_stream=recorded.creator_stream,
        creator_id=None if (creator_id := named("creator_id")) is None else creator_name(creator_id),
        video_id=named("video_id"),
        brand_id=named("brand_id"),
        advertiser_id=named("advertiser_id"),
        channel=named("channel"),
        refused=event.reason if isinstance(event, Code.RedemptionRefused) else None,
        actor=recorded.actor.key_id,
        source=recorded.source,
        recorded_at=recorded.recorded_at,
        effective_at=recorded.effective_at,
        late=recorded.recorded_at - recorded.effective_at > LATE_AFTER,
        causation_id=recorded.causation_id,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    EVENT_INDEX,
    row_of=lambda recorded: recorded.position,
    creates=dict.fromkeys(
        (Creator.Event, Code.Event, Advertiser.Event, Video.Event, SheetImport.Event, Log.Event), indexed
    ),
)

_EFFECTS: Final = """
SELECT h.position, h.type
FROM views.history h
WHERE h.ledger_id = %s AND h.causation_id = %s AND (%s::uuid IS NULL OR h.creator_stream = %s)
ORDER BY h.position
LIMIT %s
"""


async def effects(
    cur: AsyncCursor[Any], ledger_id: int, event_id: UUID, creator_stream: UUID | None, limit: int
) -> list[tuple[int, str]]:
    """Return the position and the type of what followed from an event, oldest first; of one creator's, if given."""
    await cur.execute(_EFFECTS, (ledger_id, event_id, creator_stream, creator_stream, limit))
    return await cur.fetchall()
