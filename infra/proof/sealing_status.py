"""Whether the signed logs are being sealed, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from infra.postgres.pool import Database, LedgerConnection

_FIGURES: Final = """
    SELECT sealed, waiting, oldest, stopped, differences, covered_since, witnessed_at FROM log_figures()
"""


@dataclass(frozen=True, slots=True)
class SealingFigures:
    """The figures of all logs together, in their present generations.

    Attributes:
        sealed: events that a checkpoint covers.
        waiting: events that none covers yet; the oldest of them was recorded at `oldest`.
        stopped: logs that are not sealed any more.
        differences: what checks have found and is not resolved.
        covered_since: since when everything was compared at least once; None before there is a log.
        witnessed_at: when the log that no witness has signed for longest was signed; None without witnesses.

    """

    sealed: int
    waiting: int
    oldest: datetime | None
    stopped: int
    differences: int
    covered_since: datetime | None
    witnessed_at: datetime | None


async def sealing_figures(database: Database) -> SealingFigures:
    """Return the figures of the signed logs."""

    async def query(connection: LedgerConnection) -> SealingFigures:
        row = await (await connection.execute(_FIGURES)).fetchone()
        assert row is not None  # noqa: S101 - a function answers one row
        return SealingFigures(*row)

    return await database.read(None, query)


async def is_sealing_stopped(database: Database) -> bool:
    """Tell whether the log of any ledger is not sealed any more, or differs from what was signed."""

    async def query(connection: LedgerConnection) -> bool:
        row = await (await connection.execute("SELECT is_sealing_stopped()")).fetchone()
        return bool(row and row[0])

    return await database.read(None, query)
