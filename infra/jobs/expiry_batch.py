"""Batches of due codes: what the clock records of many codes at once.

Each code is a command of its own, so nothing that is wrong with one, or done to it meanwhile, touches the others. The
command handler reads them together, decides them one by one, and appends their events together.
"""

from __future__ import annotations

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
        decides = {code_id: partial(_record_due, code_id) for code_id in code_ids}
        results = await self._handler.handle_many(CommandMetadata(ledger_id, CLOCK), decides)
        return {code_id: self._result(result) for code_id, result in results.items()}

    def _result(self, result: CommandResult[Code] | Exception) -> Result:
        """Count what was recorded of a code, and return what became of it."""
        if isinstance(result, Exception):
            return result
        code = cast("Code", result.aggregate)
        if result.appended and code.window.expires_at in code.expiries:
            self.expiries += 1
        elif result.appended:
            self.reminders += 1
        return result.position


def _record_due(code_id: UUID, ledger: Ledger, when: When) -> Awaitable[Decision[Code]]:
    return commands.record_due(ledger, code_id, when=when)
