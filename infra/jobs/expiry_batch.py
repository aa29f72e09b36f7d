"""Batches of due codes: what the clock records of many codes at once.

Each code is a command of its own, so nothing that is wrong with one, or done to it meanwhile, touches the others. They
are handled together: their streams are read with one query, and their events appended with one commit.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, cast

from domain import commands
from domain.values import CLOCK
from infra.eventstore.command_handler import CommandMetadata, CommandResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from uuid import UUID

    from domain.code import Code
    from domain.commands import Decision, Ledger
    from domain.values import When
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
        outcomes = await asyncio.gather(
            *(self._handler.handle(metadata, partial(_record_due, code_id)) for code_id in code_ids),
            return_exceptions=True,
        )
        return {code_id: self._result(outcome) for code_id, outcome in zip(code_ids, outcomes, strict=True)}

    def _result(self, outcome: CommandResult[Code] | BaseException) -> Result:
        """Count what was recorded of a code, and return what became of it."""
        if isinstance(outcome, Exception):
            return outcome
        if isinstance(outcome, BaseException):
            raise outcome
        code = cast("Code", outcome.aggregate)
        if outcome.appended and code.window.expires_at in code.expiries:
            self.expiries += 1
        elif outcome.appended:
            self.reminders += 1
        return outcome.position


def _record_due(code_id: UUID, ledger: Ledger, when: When) -> Awaitable[Decision[Code]]:
    return commands.record_due(ledger, code_id, when=when)
