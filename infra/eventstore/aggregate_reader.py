"""Reads of aggregates: their streams, repositories for commands, and their sealed fields."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from domain.code import Code, effective_as_of, fold_code, replay_code
from domain.creator import replay_creator
from domain.errors import Refused, Unknown
from domain.pasted import creator_name
from domain.recorded import RecordedEvent
from infra.crypto.envelope import associated_data
from infra.crypto.epochs import EpochKeyMissing
from infra.eventstore.repository import AggregateCache, Repository
from infra.eventstore.serialization import UnreadableEvent
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.values import Sealed
    from infra.crypto.keyring import Keyring
    from infra.eventstore.reader import EventReader

CODES_AT_ONCE: Final = 200
MAX_CACHED_SPELLINGS: Final = 20_000


class AggregateReader:
    """Reads aggregates from the log; what it returns is never older than the last commit."""

    def __init__(self, events: EventReader, keyring: Keyring, cache: AggregateCache) -> None:
        """Take the log, the keys, and the cache that repositories share."""
        self.events = events
        self.keyring = keyring
        self.cache = cache
        # How creators' ids were first spelled, by ledger and canonical form: that never changes.
        self._shown: RecentCache[tuple[int, str], str] = RecentCache(MAX_CACHED_SPELLINGS)

    async def repository(self, ledger_id: int, *, allow_stale: bool = False) -> Repository:
        """Return a repository of a ledger's aggregates; `allow_stale` is for what an append checks again."""
        keys = await self.keyring.ledger(ledger_id)
        return Repository(ledger_id, self.events, keys, self.keyring, self.cache, allow_stale=allow_stale)

    async def code_stream(self, ledger_id: int, code_id: UUID, *, upto: int | None = None) -> list[RecordedEvent]:
        """Read a code's events, up to a position if one is given; none if there is no such code, or none yet.

        Raises:
            Unreadable: its first event cannot be read.

        """
        if upto is None:
            return _of_a_code(await self.events.stream(ledger_id, code_id) or [])
        return _of_a_code(await self.events.stream_upto(ledger_id, code_id, upto))

    async def code_part(self, ledger_id: int, code_id: UUID, *, after: int, count: int) -> list[RecordedEvent]:
        """Read a code's events from the first on, up to `count` events after a position.

        Raises:
            Unreadable: its first event cannot be read.

        """
        return _of_a_code(await self.events.stream_part(ledger_id, code_id, after=after, count=count))

    async def creator_stream(self, ledger_id: int, creator_id: str) -> list[RecordedEvent]:
        """Read a creator's events; none if the permission was never switched."""
        keys = await self.keyring.ledger(ledger_id)
        return await self.events.claimed(ledger_id, keys.claim("creator", creator_id)) or []

    async def shown_creators(self, ledger_id: int, creator_ids: Collection[str]) -> set[str]:
        """Return creators' ids as they were first spelled, which is how views have them; unknown ones as they are."""
        shown = await asyncio.gather(*(self._shown_creator(ledger_id, creator_id) for creator_id in creator_ids))
        return set(shown)

    async def _shown_creator(self, ledger_id: int, creator_id: str) -> str:
        name = (ledger_id, creator_name(creator_id))
        known = self._shown.get(name)
        if known is None:
            stream = await self.creator_stream(ledger_id, creator_id)
            if not stream:
                return creator_id
            known = self._shown.put(name, replay_creator(stream[:1]).creator_id)
        return known

    async def advertiser_stream(self, ledger_id: int, advertiser_id: str) -> list[RecordedEvent]:
        """Read an advertiser account's events; none if nobody said whose it is."""
        keys = await self.keyring.ledger(ledger_id)
        return await self.events.claimed(ledger_id, keys.claim("advertiser", advertiser_id)) or []

    async def live_codes(self, ledger_id: int, creator_stream: UUID, *, upto: int, at: datetime) -> int:
        """Count a creator's codes that were live at a moment, as far as was recorded at a position."""
        codes = await self.events.codes_of_creator(ledger_id, creator_stream, upto)
        live = 0
        # In bounded groups: to read all at once would hold up everybody else whom this process serves.
        for first in range(0, len(codes), CODES_AT_ONCE):
            streams = await self.events.streams(ledger_id, codes[first : first + CODES_AT_ONCE])
            heads = ([r for r in stream if r.position <= upto] for stream in streams.values())
            live += sum(fold_code(effective_as_of(head, at)).live(at) for head in heads)
        return live

    async def secret(self, ledger_id: int, code_id: UUID) -> Sealed | None:
        """Unseal a code's secret; None if it is not known.

        Raises:
            Unknown: there is no such code.
            Refused: `creator_erased`.

        """
        stream = await self.code_stream(ledger_id, code_id)
        if not stream:
            raise Unknown("code")
        version = replay_code(stream).secret_in
        if version is None:
            return None
        recorded = stream[version - 1]
        fields = (await self.unsealed(ledger_id, [recorded]))[recorded.position]
        if fields is None:
            raise Refused("creator_erased")
        return fields["secret"]

    async def unsealed(self, ledger_id: int, recorded: Sequence[RecordedEvent]) -> dict[int, dict[str, Sealed] | None]:
        """Unseal the sealed fields of events, by position.

        Whether a creator is erased is read each time, with the sealed fields: no key that some process still has in
        memory can be used after an erasure was recorded.

        Returns:
            The fields by name, or None for an erased creator; events without sealed fields are absent.

        Raises:
            LookupError: a key is missing although no erasure is recorded.

        """
        try:
            return await self._unsealed(ledger_id, recorded)
        except EpochKeyMissing:  # the epoch ended in between: the keys are sealed in the next one now
            return await self._unsealed(ledger_id, recorded)

    async def notes(self, ledger_id: int, positions: Sequence[int]) -> dict[int, str]:
        """Return the text of the notes at positions, by position; those of creators who were erased are absent."""
        unsealed = await self.unsealed(ledger_id, await self.events.at_positions(ledger_id, positions))
        texts = {position: _note(fields or {}) for position, fields in unsealed.items()}
        return {position: text for position, text in texts.items() if text is not None}

    async def _unsealed(self, ledger_id: int, recorded: Sequence[RecordedEvent]) -> dict[int, dict[str, Sealed] | None]:
        by_position = {r.position: r for r in recorded}
        fields: dict[int, dict[str, Sealed] | None] = {}
        for position, stored in (await self.events.sealed(ledger_id, list(by_position))).items():
            r = by_position[position]
            if stored.erased:
                self.keyring.forget(ledger_id, stored.key_id)
                fields[position] = None
                continue
            if stored.wrapped is None:
                message = f"the key {stored.key_id} of a sealed part is gone, and no erasure of its creator is recorded"
                raise LookupError(message)
            key = await self.keyring.opened(ledger_id, stored.key_id, stored.wrapped)
            where = associated_data(ledger_id, r.stream_id, r.stream_version, r.event_id, r.type)
            fields[position] = key.unseal(stored.sealed, where)
        return fields


def _of_a_code(stream: list[RecordedEvent]) -> list[RecordedEvent]:
    """Return a stream if it is a code's; else nothing."""
    if not stream:
        return []
    first = stream[0].event
    if isinstance(first, UnreadableEvent):
        raise first.error
    return stream if isinstance(first, Code.Generated) else []


def _note(fields: Mapping[str, Sealed]) -> str | None:
    """Return the note among the sealed fields of an event, which are a secret, or a note."""
    return next((str(text) for name, text in fields.items() if name != "secret"), None)
