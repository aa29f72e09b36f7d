"""Evidence for authorization decisions: the events of videos and their codes, of creators and of advertiser accounts.

One query reads all parts as of one moment: the position of the view of codes, the codes that it has of the videos, and
the events of these codes, of their creators and of the accounts from the log. Requests that wait together share one
query.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.advertiser import Advertiser
from domain.authorization import BEARING
from domain.code import Code
from domain.event_types import EVENT_TYPES
from domain.recorded import RecordedEvent
from domain.video import Video
from infra.eventstore.reader import COLUMNS, to_recorded
from infra.eventstore.serialization import UnreadableEvent
from infra.postgres.batch_loader import BatchLoader
from projections import codes
from projections.engine.array_columns import Byteas, Texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infra.postgres.pool import Database, LedgerConnection

# How long events are read at a stretch while other requests wait.
TURN_S: Final = 0.002
_NOT_BEARING: Final = sorted(EVENT_TYPES.keys() - set(BEARING))

_EVIDENCE: Final = (
    """
    WITH known AS MATERIALIZED (
        SELECT c.code_id, c.creator_stream
        FROM unnest(%b) AS x (video_id)
        CROSS JOIN LATERAL (
            SELECT * FROM views.codes c WHERE c.ledger_id = %b AND c.video_id = x.video_id OFFSET 0
        ) c
    )
    SELECT p.position,"""
    + COLUMNS
    + """
    FROM (SELECT coalesce(min(position), 0) AS position FROM view_positions WHERE view = %b AND ledger_id = %b) p
    LEFT JOIN (
        SELECT e.*
        FROM (
            SELECT code_id AS stream_id FROM known
            UNION
            SELECT creator_stream FROM known
            UNION
            SELECT a.stream_id
            FROM unnest(%b) AS x (claim)
            CROSS JOIN LATERAL (
                SELECT stream_id FROM claims c WHERE c.ledger_id = %b AND c.claim = x.claim LIMIT 1
            ) a
        ) s
        CROSS JOIN LATERAL (
            SELECT * FROM events e WHERE e.ledger_id = %b AND e.stream_id = s.stream_id ORDER BY e.version
        ) e
        -- What is not known here may matter for the decision.
        WHERE e.type <> ALL (%b)
    ) e ON true
"""
)


class Asked(NamedTuple):
    """What is asked about: a video and an advertiser account, with the keyed hashes that their streams claim."""

    video_id: str
    advertiser_id: str
    claim: bytes
    binding: bytes


@dataclass(frozen=True, slots=True)
class AuthorizationEvidence:
    """The evidence for one video and one advertiser account.

    Attributes:
        position: the position of the view of codes when it was read; a code that was generated later may be missing.
        codes: the events of each of its codes that bear on the decision, by stream, oldest first.
        permissions: the same events of their creators.
        advertiser: the same events of the account; empty if nobody said whose it is.
        binding: the events that bind the video to a creator; empty if nobody ever bound it.

    """

    position: int
    codes: dict[UUID, list[RecordedEvent]] = field(default_factory=dict)
    permissions: Mapping[UUID, Sequence[RecordedEvent]] = field(default_factory=dict)
    advertiser: Sequence[RecordedEvent] = ()
    binding: Sequence[RecordedEvent] = ()


class EvidenceReader:
    """Reads the evidence of authorization decisions."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database
        self._one = BatchLoader(self.of_all)

    async def of(self, ledger_id: int, asked: Asked) -> AuthorizationEvidence:
        """Return the evidence for one question."""
        return await self._one(ledger_id, asked) or AuthorizationEvidence(0)

    async def of_video(self, ledger_id: int, video_id: str) -> AuthorizationEvidence:
        """Return the evidence for a video, without regard to who asks."""
        return await self.of(ledger_id, Asked(video_id, "", b"", b""))

    async def of_all(self, ledger_id: int, asked: Sequence[Asked]) -> Mapping[Asked, AuthorizationEvidence]:
        """Return the evidence for each of some questions, all as of the same position.

        Raises:
            Unreadable: an event cannot be read that may bear on the decision.

        """
        video_ids = list({one.video_id for one in asked})
        claims = list({claim for one in asked for claim in (one.claim, one.binding)})

        async def run(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            wanted = (Texts(video_ids), ledger_id, codes.NAME, ledger_id, Byteas(claims), *[ledger_id] * 2)
            await cursor.execute(_EVIDENCE, (*wanted, _NOT_BEARING), prepare=True)
            return await cursor.fetchall()

        rows = await self._database.read(ledger_id, run)
        streams: dict[UUID, list[RecordedEvent]] = {}
        turn_began = time.perf_counter()
        for row in rows:
            if time.perf_counter() - turn_began > TURN_S:
                await asyncio.sleep(0)  # a batch may have thousands of events, and others wait meanwhile
                turn_began = time.perf_counter()
            if row[1] is not None:
                recorded = to_recorded(row[1:])
                if isinstance(recorded.event, UnreadableEvent):
                    raise recorded.event.error
                streams.setdefault(recorded.stream_id, []).append(recorded)
        of_video: dict[str, dict[UUID, list[RecordedEvent]]] = {video_id: {} for video_id in video_ids}
        of_advertiser: dict[str, list[RecordedEvent]] = {}
        bindings: dict[str, list[RecordedEvent]] = {}
        for stream_id, stream in streams.items():
            stream.sort(key=lambda recorded: recorded.stream_version)
            first = stream[0].event
            if isinstance(first, Code.Generated):
                of_video[first.video_id][stream_id] = stream
            elif isinstance(first, Advertiser.Named):
                of_advertiser[first.advertiser_id] = stream
            elif isinstance(first, Video.Bound):
                bindings[first.video_id] = stream
        return {
            one: AuthorizationEvidence(
                rows[0][0],
                of_video[one.video_id],
                streams,
                of_advertiser.get(one.advertiser_id, ()),
                bindings.get(one.video_id, ()),
            )
            for one in asked
        }
