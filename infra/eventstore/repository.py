"""The repository of one attempt at a command, and the cache of aggregates that repositories share.

An attempt that may read stale state finds what it needs in the cache, without a query. That is safe: the append
compares all that was read with the log in its own transaction, and what would append nothing is decided again from the
log.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from domain.advertiser import Advertiser, replay_advertiser
from domain.code import Code, replay_code
from domain.commands import OfVideo, video_claim
from domain.creator import Creator, replay_creator
from domain.errors import Unknown
from domain.pasted import secret_name
from domain.recorded import RecordedEvent
from domain.sheet_import import SheetImport
from domain.video import Video, replay_video
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from uuid import UUID

    from domain.values import Sealed
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.eventstore.reader import EventReader

AnyAggregate = Code | Creator | Advertiser | Video | SheetImport
T = TypeVar("T", Code, Creator, SheetImport, AnyAggregate)

# About 2 KB each.
MAX_CACHED_AGGREGATES: Final = 20_000
# Few videos ever have more codes than are looked for together.
CODES_AT_ONCE: Final = 4


class Loaded(NamedTuple):
    """An aggregate as the log has it. It is never changed: commands get a copy."""

    aggregate: AnyAggregate
    position: int
    creator_stream: UUID
    event_ids: Sequence[UUID]  # by version, from 1


class AggregateCache:
    """A bounded cache of aggregates and claims as this process last saw them; they may be out of date."""

    def __init__(self, limit: int = MAX_CACHED_AGGREGATES) -> None:
        """Keep at most `limit` aggregates, and three times as many claims."""
        # By a UUID's number: its own hash is computed in Python, at ten times the cost.
        self._loaded: RecentCache[tuple[int, int], Loaded] = RecentCache(limit)
        self._claims: RecentCache[tuple[int, bytes], UUID] = RecentCache(3 * limit)
        # The number of the writer's session during which everything here was seen.
        self.writer_session = 0

    def reset(self, writer_session: int) -> None:
        """Drop everything: after a failover the log may have lost its end, and versions may mean other events."""
        self._loaded.clear()
        self._claims.clear()
        self.writer_session = writer_session

    def aggregate(self, ledger_id: int, stream_id: UUID) -> Loaded | None:
        """Return an aggregate as it was last seen, if it is cached."""
        return self._loaded.get((ledger_id, stream_id.int))

    def holder(self, ledger_id: int, claim: bytes) -> UUID | None:
        """Return the stream that was last seen to hold a claim, if it is cached."""
        return self._claims.get((ledger_id, claim))

    def keep(self, ledger_id: int, loaded: Loaded) -> None:
        """Cache an aggregate, unless a later version of it is cached already."""
        key = (ledger_id, loaded.aggregate.id.int)
        known = self._loaded.get(key)
        if known is None or known.aggregate.version <= loaded.aggregate.version:
            self._loaded.put(key, loaded)

    def keep_claim(self, ledger_id: int, claim: bytes, stream_id: UUID | None) -> None:
        """Cache which stream holds a claim; one that no stream holds is dropped."""
        if stream_id is None:
            self._claims.drop((ledger_id, claim))
        else:
            self._claims.put((ledger_id, claim), stream_id)


class Repository:
    """What one attempt at a command reads. Implements `domain.commands.Ledger`.

    Attributes:
        cached_in: the number of the writer's session during which everything in the cache was seen.
        used_stale: whether any answer may be out of date: then only an append can confirm it.
        loaded: the aggregates that were read, by the number of their stream, as the log or the cache has them.

    """

    __slots__ = (
        *("_allow_stale", "_cache", "_claims", "_events", "_keyring", "_keys", "_ledger_id"),
        *("cached_in", "loaded", "used_stale"),
    )

    def __init__(
        self,
        ledger_id: int,
        events: EventReader,
        keys: LedgerKeys,
        keyring: Keyring,
        cache: AggregateCache,
        *,
        allow_stale: bool,
    ) -> None:
        """Begin with nothing read; `allow_stale` allows answers that may be out of date."""
        self._ledger_id = ledger_id
        self._events = events
        self._keys = keys
        self._keyring = keyring
        self._cache = cache
        self._allow_stale = allow_stale
        self.cached_in = cache.writer_session
        self.used_stale = False
        self.loaded: dict[int, Loaded] = {}
        self._claims: dict[tuple[str, str], bytes] = {}

    def creator(self, creator_id: str) -> Coroutine[Any, Any, Creator | None]:
        """Load a creator by claim."""
        # Nothing else claims a creator.
        return self._claimed("creator", creator_id, else_read=True)  # type: ignore[return-value]

    async def advertiser(self, advertiser_id: str) -> Advertiser | None:
        """Load an advertiser account by claim."""
        return cast("Advertiser | None", await self._claimed("advertiser", advertiser_id, else_read=True))

    async def prefetch(self, stream_ids: Sequence[UUID]) -> None:
        """Load aggregates together, with one query; `code` then finds them without one.

        One that cannot be read is not loaded: anyone who reads it by itself gets its error.

        Raises:
            Unavailable: the database is away, or too busy.

        """
        streams = await self._events.streams(self._ledger_id, stream_ids)
        for stream_id, stream in streams.items():
            with suppress(Exception):
                self.loaded[stream_id.int] = loaded(stream)

    async def code(self, code_id: UUID) -> Code:
        """Load a code by its stream."""
        prefetched = self.loaded.get(code_id.int)
        known = self._cached(code_id) if prefetched is None else copied(prefetched.aggregate)
        if known is None:
            stream = await self._events.stream(self._ledger_id, code_id)
            known = self._keep(stream) if stream else None
        if not isinstance(known, Code):
            raise Unknown("code")
        return known

    def code_by_secret(self, secret: Sealed) -> Coroutine[Any, Any, Code | None]:
        """Load a code by the keyed hash of what its secret means, however it was pasted.

        A stale answer takes a secret never seen here for a new one.
        """
        return self._claimed("secret", secret_name(secret), else_read=False)  # type: ignore[return-value] # as above

    async def of_video(self, video_id: str) -> OfVideo:
        """Load what holds a video's claims; a stale answer leaves out what was never seen here."""
        holders: list[AnyAggregate] = []
        while True:
            number = len(holders) + 1
            if self._allow_stale:  # one by one: in the cache there is nothing to wait for
                found = [await self._claimed("video", video_claim(video_id, number), else_read=False)]
            else:
                names = [video_claim(video_id, n) for n in range(number, number + CODES_AT_ONCE)]
                found = await asyncio.gather(*(self._claimed("video", name, else_read=False) for name in names))
            for holder in found:
                if holder is None:
                    return _of_video(holders)
                holders.append(holder)

    def fingerprint(self, text: str) -> str:
        """Hash a text with the ledger's key."""
        return self._keys.fingerprint(text)

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Hash a note with its creator's key: once the key is destroyed, nobody can test what a note was."""
        return (await self._keyring.creator_by_claim(self._ledger_id, self.claim("creator", creator_id))).mark(text)

    def claim(self, kind: str, name: str) -> bytes:
        """Hash a name that one stream can claim; each is hashed once."""
        claim = self._claims.get((kind, name))
        if claim is None:
            claim = self._claims[kind, name] = self._keys.claim(kind, name)
        return claim

    async def _claimed(self, kind: str, name: str, *, else_read: bool) -> AnyAggregate | None:
        claim = self.claim(kind, name)
        if self._allow_stale:
            holder = self._cache.holder(self._ledger_id, claim)
            if holder is not None:
                known = self._cached(holder)
                if known is not None:
                    return known
            elif not else_read:
                self.used_stale = True
                return None
        stream = await self._events.claimed(self._ledger_id, claim)
        if not stream:
            self._cache.keep_claim(self._ledger_id, claim, None)
            return None
        self._cache.keep_claim(self._ledger_id, claim, stream[0].stream_id)
        return self._keep(stream)

    def _cached(self, stream_id: UUID) -> AnyAggregate | None:
        if not self._allow_stale:
            return None
        known = self._cache.aggregate(self._ledger_id, stream_id)
        if known is None:
            return None
        self.used_stale = True
        self.loaded[stream_id.int] = known
        return copied(known.aggregate)

    def _keep(self, stream: Sequence[RecordedEvent]) -> AnyAggregate:
        known = loaded(stream)
        self.loaded[known.aggregate.id.int] = known
        self._cache.keep(self._ledger_id, known)
        return copied(known.aggregate)


def _of_video(holders: list[AnyAggregate]) -> OfVideo:
    if not holders:
        return OfVideo([])
    codes = [holder for holder in holders if isinstance(holder, Code)]
    return OfVideo(codes, next((holder for holder in holders if isinstance(holder, Video)), None))


def loaded(stream: Sequence[RecordedEvent]) -> Loaded:
    """Build the aggregate of a stream, with its place in the log."""
    last = stream[-1]
    return Loaded(replayed(stream), last.position, last.creator_stream, tuple(r.event_id for r in stream))


def replayed(stream: Sequence[RecordedEvent]) -> AnyAggregate:
    """Build the aggregate of a stream."""
    match stream[0].event:
        case Code.Generated():
            return replay_code(stream)
        case Advertiser.Named():
            return replay_advertiser(stream)
        case Video.Bound():
            return replay_video(stream)
        case _:
            return replay_creator(stream)


def copied(aggregate: T) -> T:
    """Copy an aggregate for one command. Events only assign, so everything but the list of pending events is shared."""
    # This takes a third of the time of copy.copy.
    fresh = object.__new__(type(aggregate))
    fresh.__dict__ = {**vars(aggregate), "_pending_events": []}
    return fresh
