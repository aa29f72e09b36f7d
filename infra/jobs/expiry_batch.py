"""What the clock has to say of many codes at once: read together, decided one by one, appended together.

Each code is a caller of its own to the append: what another command did meanwhile, or what is wrong with one stream,
never touches the others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from domain import commands
from domain.code import Code, replay_code
from domain.commands import When
from domain.errors import Unknown
from domain.values import CLOCK
from infra.errors import Unavailable
from infra.eventstore.append import Append, Appended, EventRow
from infra.eventstore.attempt import CommandMetadata
from infra.eventstore.serialization import clear_body, event_type
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from domain.commands import Decision, Ledger
    from domain.recorded import Event, RecordedEvent
    from infra.crypto.envelope import LedgerKeys
    from infra.runtime import Runtime

# What became of a code: the position up to which the log was read or written for it, or why nothing was recorded.
Result = int | Exception


@dataclass(frozen=True, slots=True)
class _Together:
    """Codes that were read together. Implements `domain.commands.Codes`."""

    streams: Mapping[UUID, Sequence[RecordedEvent]]

    async def code(self, code_id: UUID) -> Code:
        """Build a code from what was read."""
        stream = self.streams.get(code_id)
        if not stream or not isinstance(stream[0].event, Code.Generated):
            raise Unknown("code")
        return replay_code(stream)

    async def holds_video(self, _code: Code) -> bool:
        """Guess that it does, as nearly every code does until its expiry is recorded; the append compares it."""
        return True


class Timekeeping:
    """Records expiries and reminders in batches."""

    def __init__(self, opened: Runtime) -> None:
        """Take the parts of a worker."""
        self._handler = opened.handler
        self._events = opened.events
        self._keyring = opened.keyring
        self._writer = opened.writer
        self.expiries = 0
        self.reminders = 0

    @property
    def recorded(self) -> int:
        """Of how many codes something was recorded."""
        return self.expiries + self.reminders

    async def record(self, ledger_id: int, code_ids: Sequence[UUID]) -> dict[UUID, Result]:
        """Record what is due of each of these codes, nothing where nothing is, and tell what became of each.

        Raises:
            Unavailable: they could not be read.

        """
        results, streams = await self._read(ledger_id, code_ids)
        keys = await self._keyring.ledger(ledger_id)
        together = _Together(streams)
        pending: dict[UUID, tuple[Append, Sequence[Event]]] = {}
        for code_id in code_ids:
            if code_id in results:
                continue
            now = self._handler.now()
            try:
                decision = await commands.keep_time(together, code_id, when=When(now, now))
                events = cast("Sequence[Event]", decision.aggregate.collect_events())
                if events:
                    stream = streams[code_id]
                    pending[code_id] = (_append(ledger_id, keys, decision, events, stream[0].creator_stream), events)
                else:
                    results[code_id] = streams[code_id][-1].position
            except Exception as error:  # noqa: BLE001 - one code that cannot be decided must not keep the others
                results[code_id] = error
        outcomes = await asyncio.gather(
            *(self._writer.append(append) for append, _ in pending.values()), return_exceptions=True
        )
        overtaken: list[UUID] = []
        for (code_id, (_, events)), outcome in zip(pending.items(), outcomes, strict=True):
            if isinstance(outcome, Appended):
                self._count(events)
                results[code_id] = outcome.last
            elif isinstance(outcome, Exception):
                results[code_id] = outcome
            else:
                overtaken.append(code_id)
        # A command came first, or another code has taken the video: decide again, from what is true now.
        alone = await asyncio.gather(*(self._alone(ledger_id, code_id) for code_id in overtaken))
        return results | dict(zip(overtaken, alone, strict=True))

    async def _read(
        self, ledger_id: int, code_ids: Sequence[UUID]
    ) -> tuple[dict[UUID, Result], dict[UUID, list[RecordedEvent]]]:
        """Read the codes' streams; where one cannot be read, one by one, to find out which."""
        store = self._events
        try:
            return {}, await store.streams(ledger_id, code_ids)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 - one stream that cannot be read must not keep the others
            if len(code_ids) == 1:
                return {code_ids[0]: error}, {}
        results: dict[UUID, Result] = {}
        streams: dict[UUID, list[RecordedEvent]] = {}
        for code_id in code_ids:
            failed, read = await self._read(ledger_id, [code_id])
            results |= failed
            streams |= read
        return results, streams

    def _count(self, events: Sequence[Event]) -> None:
        self.expiries += sum(isinstance(event, Code.Expired) for event in events)
        self.reminders += sum(isinstance(event, Code.ExpiryApproaching) for event in events)

    async def _alone(self, ledger_id: int, code_id: UUID) -> Result:
        """Record what is due of a code as any other command is carried out."""
        events: Sequence[Event] = ()

        async def decide(ledger: Ledger, when: When) -> Decision[Code]:
            nonlocal events
            decision = await commands.keep_time(ledger, code_id, when=when)
            events = cast("Sequence[Event]", tuple(decision.aggregate.pending_events))
            return decision

        try:
            done = await self._handler.handle(CommandMetadata(ledger_id, CLOCK), decide)
        except Exception as error:  # noqa: BLE001 - the others go on
            return error
        if done.appended:
            self._count(events)
        return done.position


def _append(
    ledger_id: int, keys: LedgerKeys, decision: Decision[Code], events: Sequence[Event], creator_stream: UUID
) -> Append:
    code = decision.aggregate
    return Append(
        ledger_id=ledger_id,
        events=[_row(event, creator_stream) for event in events],
        expected_versions=[(code.id, code.version - len(events))],
        claims=[(keys.claim(claim.kind, claim.name), claim.expected, claim.new) for claim in decision.claims],
        role=CLOCK.role,
        source=CLOCK.source,
        command_id=uuid7(),
        valid_until=decision.valid_until,
    )


def _row(event: Event, creator_stream: UUID) -> EventRow:
    """Make an event's row; whatever the clock records took effect at a moment that the window names."""
    type_, type_version = event_type(event)
    return EventRow(
        stream_id=event.originator_id,
        version=event.originator_version,
        event_id=uuid7(),
        type=type_,
        type_version=type_version,
        effective_at=event.timestamp,
        creator_stream=creator_stream,
        causation_id=None,
        key_id=None,
        commitment=None,
        body=clear_body(event),
        sealed=None,
    )
