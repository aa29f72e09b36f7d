"""A ledger that keeps everything in memory: what commands read from, and what carries their decisions out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from eventsourcing.utils import get_topic

from domain.advertiser import Advertiser, replay_advertiser
from domain.code import Code, replay_code
from domain.commands import Decision, OfVideo, video_claim
from domain.creator import Creator, replay_creator
from domain.errors import Unknown
from domain.pasted import creator_name, secret_name
from domain.recorded import Event, RecordedEvent
from domain.values import Sealed
from domain.video import Video, replay_video

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from domain.commands import Claim
    from domain.values import Actor


Decided = Decision[Code] | Decision[Creator] | Decision[Advertiser] | Decision[Video] | None


class Conflict(Exception):
    """Another writer came first; decide again."""


class MemoryLedger:
    """A ledger in memory: dense positions, expected versions, preconditions, and claims by compare-and-set."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent] = []
        self.streams: dict[UUID, list[RecordedEvent]] = {}
        self.sealed: dict[int, dict[str, Sealed]] = {}
        self.claims: dict[tuple[str, str], UUID] = {}
        self._ids = count(1)

    async def creator(self, creator_id: str) -> Creator | None:
        stream_id = self._holder("creator", creator_name(creator_id))
        return None if stream_id is None else replay_creator(self.streams[stream_id])

    async def code(self, code_id: UUID) -> Code:
        if code_id not in self.streams:
            raise Unknown("code")
        return replay_code(self.streams[code_id])

    async def advertiser(self, advertiser_id: str) -> Advertiser | None:
        stream_id = self._holder("advertiser", advertiser_id)
        return None if stream_id is None else replay_advertiser(self.streams[stream_id])

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        stream_id = self._holder("secret", secret_name(secret))
        return None if stream_id is None else replay_code(self.streams[stream_id])

    async def of_video(self, video_id: str) -> OfVideo:
        holders = (self._holder("video", video_claim(video_id, number)) for number in count(1))
        streams = [self.streams[holder] for holder in takewhile(bool, holders) if holder]
        bindings = [stream for stream in streams if isinstance(stream[0].event, Video.Bound)]
        codes = [replay_code(stream) for stream in streams if stream not in bindings]
        return OfVideo(codes, replay_video(bindings[0]) if bindings else None)

    def fingerprint(self, text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    async def note_mark(self, creator_id: str, text: str) -> str:
        return self.fingerprint(f"{creator_id} {text}")

    def append(self, decision: Decided, *, now: datetime, actor: Actor) -> list[RecordedEvent]:
        """Carry a decision out, whole or not at all, and return what it recorded; a repeat records nothing.

        Raises:
            Conflict: a stream, a precondition or a claim no longer stands as it was decided on.

        """
        if decision is None:
            return []
        expected = {read.id: read.version for read in decision.also_read}
        pending: list[Event] = []
        for changed in (*decision.also_changed, decision.aggregate):
            events = cast("list[Event]", changed.collect_events())
            expected[changed.id] = changed.version - len(events)
            pending += events
        if not pending:
            return []
        if any(len(self.streams.get(stream, ())) != version for stream, version in expected.items()):
            raise Conflict
        if any(self._holder(claim.kind, claim.name) != claim.expected for claim in decision.claims):
            raise Conflict
        for claim in decision.claims:
            self._set(claim)
        return self._record(decision, pending, now, actor)

    def _record(
        self,
        decision: Decision[Code] | Decision[Creator] | Decision[Advertiser] | Decision[Video],
        pending: Sequence[Event],
        now: datetime,
        actor: Actor,
    ) -> list[RecordedEvent]:
        aggregate: Code | Creator | Advertiser | Video = decision.aggregate
        recorded_at = max([now, *(r.recorded_at for r in self.events[-1:])])
        command_id = UUID(int=next(self._ids))
        before = len(self.events)
        ids = {(event.originator_id, event.originator_version): UUID(int=next(self._ids)) for event in pending}
        for event in pending:
            bare, sealed = _unsealed(event)
            recorded = RecordedEvent(
                position=len(self.events) + 1,
                event_id=ids[event.originator_id, event.originator_version],
                type=get_topic(type(event)),
                type_version=1,
                stream_id=event.originator_id,
                stream_version=event.originator_version,
                creator_stream=self._creator_stream(aggregate),
                recorded_at=recorded_at,
                effective_at=event.timestamp,
                actor=actor,
                source=actor.source,
                command_id=command_id,
                correlation_id=None,
                causation_id=self._caused_by(decision.cause_of(event), ids),
                creator_id=aggregate.creator_id if isinstance(aggregate, Code | Creator) else None,
                video_id=aggregate.video_id if isinstance(aggregate, Code) else None,
                event=bare,
            )
            self.events.append(recorded)
            self.streams.setdefault(recorded.stream_id, []).append(recorded)
            if sealed:
                self.sealed[recorded.position] = sealed
        return self.events[before:]

    def _caused_by(self, cause: tuple[UUID, int] | None, ids: Mapping[tuple[UUID, int], UUID]) -> UUID | None:
        if cause is None:
            return None
        stream_id, version = cause
        return ids[cause] if cause in ids else self.streams[stream_id][version - 1].event_id

    def _creator_stream(self, aggregate: Code | Creator | Advertiser | Video) -> UUID:
        if isinstance(aggregate, Advertiser | Video):
            return aggregate.id
        return cast("UUID", self._holder("creator", creator_name(aggregate.creator_id)))

    def _holder(self, kind: str, name: str) -> UUID | None:
        return self.claims.get((kind, self.fingerprint(name)))

    def _set(self, claim: Claim) -> None:
        key = (claim.kind, self.fingerprint(claim.name))
        if claim.new is None:
            self.claims.pop(key, None)
        else:
            self.claims[key] = claim.new


def _unsealed(event: Event) -> tuple[Event, dict[str, Sealed]]:
    """Take what is sealed out of an event."""
    sealed = {name: value for name, value in vars(event).items() if isinstance(value, Sealed)}
    without: dict[str, Any] = dict.fromkeys(sealed)
    return replace(event, **without), sealed
