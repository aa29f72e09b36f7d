"""What one attempt at a command reads: from memory where that may be guessed, from the log where it must be known.

An attempt that guesses costs no query. It can only end well or be noticed: whatever it appends is compared with the log
in the append's own transaction, and whatever it would turn down or leave as it is, is decided again from the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

from domain.code import Code, replay_code
from domain.creator import replay_creator
from domain.errors import Unknown
from domain.recorded import RecordedEvent
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.creator import Creator
    from domain.values import Sealed
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.eventstore.reader import EventReader

T = TypeVar("T", "Code", "Creator", "Code | Creator")

# About 3 KB each.
MAX_CACHED_AGGREGATES: Final = 20_000


class Loaded(NamedTuple):
    """An aggregate as it stands in the log; never changed, commands get a copy."""

    aggregate: Code | Creator
    position: int
    creator_stream: UUID


class AggregateCache:
    """Aggregates and claims as this process last saw them: bounded, and possibly out of date."""

    def __init__(self, limit: int = MAX_CACHED_AGGREGATES) -> None:
        """Remember at most so many aggregates."""
        # By a UUID's number: its own hash is computed in Python, at ten times the cost.
        self._loaded: RecentCache[tuple[int, int], Loaded] = RecentCache(limit)
        self._claims: RecentCache[tuple[int, bytes], UUID] = RecentCache(3 * limit)
        # Which session of the writer's it is remembered from.
        self.session = 0

    def begin(self, session: int) -> None:
        """Forget everything: with another session the log may have lost its end, and versions mean other events."""
        self._loaded.clear()
        self._claims.clear()
        self.session = session

    def aggregate(self, ledger_id: int, stream_id: UUID) -> Loaded | None:
        """Return an aggregate as it was last seen."""
        return self._loaded.get((ledger_id, stream_id.int))

    def holder(self, ledger_id: int, claim: bytes) -> UUID | None:
        """Return the stream that was last seen to hold a claim."""
        return self._claims.get((ledger_id, claim))

    def keep(self, ledger_id: int, loaded: Loaded) -> None:
        """Remember an aggregate, unless a later version of it is remembered already."""
        key = (ledger_id, loaded.aggregate.id.int)
        known = self._loaded.get(key)
        if known is None or known.aggregate.version <= loaded.aggregate.version:
            self._loaded.put(key, loaded)

    def keep_claim(self, ledger_id: int, claim: bytes, stream_id: UUID | None) -> None:
        """Remember who holds a claim, or that nobody does."""
        if stream_id is None:
            self._claims.drop((ledger_id, claim))
        else:
            self._claims.put((ledger_id, claim), stream_id)


class Repository:
    """One attempt at one command: what it reads, and what is known of that. Implements `domain.commands.Ledger`."""

    __slots__ = (
        *("_claims", "_allow_stale", "_keyring", "_keys", "_ledger_id", "_memory", "_store"),
        *("began_in", "used_stale", "loaded"),
    )

    def __init__(
        self,
        ledger_id: int,
        store: EventReader,
        keys: LedgerKeys,
        keyring: Keyring,
        memory: AggregateCache,
        *,
        allow_stale: bool,
    ) -> None:
        """Begin with nothing read; `allow_stale` allows answers from memory."""
        self._ledger_id = ledger_id
        self._store = store
        self._keys = keys
        self._keyring = keyring
        self._memory = memory
        self._allow_stale = allow_stale
        # What is remembered changes hands with the writer's sessions; a guess holds within one.
        self.began_in = memory.session
        # Whether any answer was a guess: then only what is appended can be relied on.
        self.used_stale = False
        self.loaded: dict[UUID, Loaded] = {}
        self._claims: dict[tuple[str, str], bytes] = {}

    async def creator(self, creator_id: str) -> Creator | None:
        """Load a creator by claim."""
        return cast("Creator | None", await self._claimed("creator", creator_id, else_read=True))

    async def code(self, code_id: UUID) -> Code:
        """Load a code by its stream."""
        known = self._remembered(code_id)
        if known is None:
            stream = await self._store.stream(self._ledger_id, code_id)
            known = self._keep(stream) if stream else None
        if not isinstance(known, Code):
            raise Unknown("code")
        return known

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        """Load a code by the keyed hash of its secret; guessing, a secret never seen here is taken for a new one."""
        return cast("Code | None", await self._claimed("secret", secret, else_read=False))

    async def code_on_video(self, video_id: str) -> Code | None:
        """Load the code that has the video's slot; guessing, a video never seen here is taken for free."""
        return cast("Code | None", await self._claimed("video", video_id, else_read=False))

    async def holds_video(self, code: Code) -> bool:
        """Tell whether a code has its video's slot."""
        claim = self.claim("video", code.video_id)
        if self._allow_stale and self._memory.holder(self._ledger_id, claim) == code.id:
            self.used_stale = True
            return True
        # That it does not is never guessed: nothing appended would prove it.
        stream = await self._store.claimed(self._ledger_id, claim)
        return stream is not None and stream[:1] != [] and stream[0].stream_id == code.id

    def fingerprint(self, text: str) -> str:
        """Hash a text with the ledger's key."""
        return self._keys.fingerprint(text)

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Hash a note with its creator's key: once that is destroyed, nobody can test a guess at what was noted."""
        return (await self._keyring.creator(self._ledger_id, creator_id)).mark(text)

    def claim(self, kind: str, name: str) -> bytes:
        """Hash a name under which one stream is known, once for the attempt."""
        claim = self._claims.get((kind, name))
        if claim is None:
            claim = self._claims[kind, name] = self._keys.claim(kind, name)
        return claim

    async def _claimed(self, kind: str, name: str, *, else_read: bool) -> Code | Creator | None:
        claim = self.claim(kind, name)
        if self._allow_stale:
            holder = self._memory.holder(self._ledger_id, claim)
            known = self._remembered(holder) if holder is not None else None
            if known is not None or not (else_read or holder is not None):
                self.used_stale = True
                return known
        stream = await self._store.claimed(self._ledger_id, claim)
        if not stream:
            self._memory.keep_claim(self._ledger_id, claim, None)
            return None
        self._memory.keep_claim(self._ledger_id, claim, stream[0].stream_id)
        return self._keep(stream)

    def _remembered(self, stream_id: UUID) -> Code | Creator | None:
        if not self._allow_stale:
            return None
        known = self._memory.aggregate(self._ledger_id, stream_id)
        if known is None:
            return None
        self.used_stale = True
        self.loaded[stream_id] = known
        return copied(known.aggregate)

    def _keep(self, stream: Sequence[RecordedEvent]) -> Code | Creator:
        known = Loaded(replayed(stream), stream[-1].position, stream[-1].creator_stream)
        self.loaded[known.aggregate.id] = known
        self._memory.keep(self._ledger_id, known)
        return copied(known.aggregate)


def replayed(stream: Sequence[RecordedEvent]) -> Code | Creator:
    """Build the aggregate of a stream."""
    return replay_code(stream) if isinstance(stream[0].event, Code.Generated) else replay_creator(stream)


def copied(aggregate: T) -> T:
    """Copy an aggregate for one command: events assign new values, so only its list of pending events is its own."""
    # As copy.copy does it, at a third of the time: the library offers no way of its own.
    fresh = object.__new__(type(aggregate))
    vars(fresh).update(vars(aggregate), _pending_events=[])
    return fresh
