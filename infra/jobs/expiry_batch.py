"""Batches of due codes: what the clock records of many codes at once.

Each code is a command of its own, so nothing that is wrong with one, or done to it meanwhile, touches the others. They
are handled together: their streams are read with one query, and their events appended with one commit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from domain import commands
from domain.values import CLOCK
from infra.eventstore.command_handler import CommandMetadata, CommandResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.code import Code
    from infra.runtime import Runtime

# What became of a code: the position up to which the log was read or written for it, or why nothing was recorded.
Result = int | Exception


class ExpiryRecorder:
    """Records expiries and reminders in batches.

    Attributes:
        expiries: how many codes' expiries were recorded.
        reminders: how many codes' reminders were recorded.

    """

    def __init__(self, opened: Runtime) -> None:
        """Take the parts of a worker."""
        self._handler = opened.handler
        self._aggregates = opened.aggregates
        self.expiries = 0
        self.reminders = 0

    @property
    def recorded(self) -> int:
        """Of how many codes something was recorded."""
        return self.expiries + self.reminders

    async def record(self, ledger_id: int, code_ids: Sequence[UUID]) -> dict[UUID, Result]:
        """Record what is due of each of these codes, and return what became of each.

        Raises:
            MasterKeyError: the ledger's keys do not open, which is no code's fault.
            Unavailable: they could not be read.

        """
        await self._aggregates.keyring.ledger(ledger_id)
        await self._aggregates.prefetch(ledger_id, code_ids)
        metadata = CommandMetadata(ledger_id, CLOCK)
        results = await asyncio.gather(*(self._record(metadata, code_id) for code_id in code_ids))
        return dict(zip(code_ids, results, strict=True))

    async def _record(self, metadata: CommandMetadata, code_id: UUID) -> Result:
        try:
            result: CommandResult[Code] = await self._handler.handle(
                metadata, lambda ledger, when: commands.record_due(ledger, code_id, when=when)
            )
        except Exception as error:  # noqa: BLE001 - one code of which nothing can be recorded must not keep the others
            return error
        if result.appended and result.aggregate is not None:
            if result.aggregate.expiry_recorded == result.aggregate.window.expires_at:
                self.expiries += 1
            else:
                self.reminders += 1
        return result.position
