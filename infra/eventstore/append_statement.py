"""The statement that appends a batch: the function `append` of `0001_log.sql`, prepared in one session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from infra.eventstore.append import ConcurrencyConflict, KeyRefused, Mismatch, Replayed, appended
from infra.eventstore.append_rows import encoded, row_types
from infra.postgres.prepared_statement import Statement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from infra.eventstore.append import Append, Outcome
    from infra.eventstore.append_rows import RowTypes
    from infra.postgres.pool import LedgerConnection
    from infra.postgres.session_tokens import SessionTokens

_REFUSED: Final[dict[str, Outcome]] = {
    "conflict": ConcurrencyConflict(),
    "taken": ConcurrencyConflict(),
    "mismatch": Mismatch(),
    "key": KeyRefused(),
}
TEXT: Final = "SELECT caller, outcome, a, b, stream, actual, at FROM append($1, $2, $3, $4, $5, $6, $7, $8)"


class AppendStatement:
    """The function `append`, prepared in one session."""

    def __init__(self, connection: LedgerConnection) -> None:
        """Take the session; `prepare` is next."""
        self._connection = connection
        self._statement = Statement(connection, "append", 8)
        self._types: RowTypes | None = None

    async def prepare(self) -> None:
        """Have the database parse the statement.

        Raises:
            psycopg.Error: the database refuses it, or is away.

        """
        self._types = await row_types(self._connection)
        await self._statement.prepare(TEXT, self._types.parameters)

    def give_up(self, after_s: float) -> None:
        """Close the session if a batch has had no answer for so long."""
        self._statement.give_up(after_s)

    async def call(self, batch: Sequence[Append], tokens: SessionTokens) -> list[Outcome]:
        """Append a batch, and return the outcomes, in the order of the batch.

        Raises:
            psycopg.Error: nothing was appended; or, if the session is closed now, it is not known what was.

        """
        answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

        def done(outcomes: list[Outcome], error: Exception | None) -> None:
            if answer.done():
                return  # who called has gone
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(outcomes)

        self.send(batch, tokens, done)
        return await answer

    def send(
        self,
        batch: Sequence[Append],
        tokens: SessionTokens,
        done: Callable[[list[Outcome], Exception | None], None],
    ) -> None:
        """Append a batch, and call back with the outcomes, or with an error as `call` raises it.

        Raises:
            psycopg.Error: as `call` raises it.

        """
        assert self._types is not None  # noqa: S101 - `prepare` comes first

        def read(rows: list[Any], error: Exception | None) -> None:
            done([] if error is not None else _outcomes(batch, rows), error)

        self._statement.send(encoded(batch, tokens, self._types), read)


def _outcomes(batch: Sequence[Append], rows: list[Any]) -> list[Outcome]:
    """Return the outcomes; positions follow from the order of the appends that were accepted."""
    times = {ledger: at for caller, _, _, ledger, _, _, at in rows if caller is None}
    ends = {ledger: base for caller, _, base, ledger, _, _, _ in rows if caller is None}
    refused = {
        caller: _refused(outcome, first, last, at)
        for caller, outcome, first, last, _, _, at in rows
        if caller is not None
    }
    outcomes: list[Outcome] = []
    for number, request in enumerate(batch, 1):
        if number in refused:
            outcomes.append(refused[number])
            continue
        ledger = request.ledger_id
        before = ends[ledger]
        ends[ledger] = last = before + len(request.events)
        outcomes.append(appended((before + 1, last, times[ledger])))
    return outcomes


def _refused(outcome: str, first: int, last: int, at: datetime | None) -> Outcome:
    if outcome == "replay":
        return Replayed(first, last)
    return _REFUSED[outcome] if at is None else ConcurrencyConflict(at)
