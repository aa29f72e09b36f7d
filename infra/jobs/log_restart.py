"""The restart of a ledger's log as another generation, once an operator has accepted that its newest events are lost.

The event `LogRestarted` says so, and a trigger of the database, `continue_history`, begins the new history in the same
transaction. Those that wait for a decision go on within seconds: the API, the clock, and the worker, which writes the
first anchor of the new history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

from domain.log import Log
from infra.eventstore.histories import read_history
from infra.jobs.log_events import as_command_line, record
from infra.postgres.roles import WORKER
from infra.runtime import runtime

if TYPE_CHECKING:
    from datetime import datetime

    from infra.crypto.master_keys import KeyProvider
    from infra.eventstore.histories import History
    from infra.postgres.pool import LedgerConnection
    from infra.runtime import Runtime

_ANCHORED: Final = """
    SELECT c.anchored_generation, c.anchored_history, c.anchored_position, c.anchored_event_id, c.anchored_at
    FROM history_checks c
    WHERE c.ledger_id = %s AND c.problem IS NOT NULL
"""


class Restarted(NamedTuple):
    """How a log goes on."""

    position: int
    generation: int
    history: UUID
    common_position: int | None


class _Anchored(NamedTuple):
    """What the anchor says of the log as it was; nothing if there is no anchor."""

    generation: int | None
    history: UUID | None
    position: int | None
    event_id: UUID | None
    at: datetime | None


async def restart(conninfo: str, key_provider: KeyProvider, ledger: str, reason: str | None) -> Restarted:
    """Let the log of a ledger go on as another generation, for the command line.

    Raises:
        LookupError: there is no such ledger.

    """
    # Nothing else decides whether the log may be written to: that is what this is for.
    async with (
        runtime(conninfo, WORKER, key_provider, guarded=False) as opened,
        as_command_line(opened, ledger, "sparkledger ledgers restart") as (ledger_id, key_id),
    ):
        return await _append(opened, ledger_id, key_id, reason)


async def _append(opened: Runtime, ledger_id: int, key_id: UUID, reason: str | None) -> Restarted:
    async def query(connection: LedgerConnection) -> tuple[History | None, Any]:
        found = await (await connection.execute(_ANCHORED, (ledger_id,))).fetchone()
        return await read_history(connection, ledger_id), found

    known, row = await opened.database.read(ledger_id, query)
    assert known is not None  # noqa: S101 - the ledger was found by its name
    anchored = _Anchored(*row) if row is not None else None
    common = await _common_position(opened, ledger_id, anchored)
    facts: dict[str, Any] = {
        # Two generations of one number would be taken for each other: that of the anchor may be lost, too.
        "generation": max(known.generation, (anchored and anchored.generation) or 0) + 1,
        "history": str(uuid4()),
        "previous_history": str(known.history),
        "common_position": common,
        "reason": reason,
    }
    if anchored is not None and anchored.position is not None:
        facts |= {"lost_position": anchored.position, "lost_event_id": str(anchored.event_id)}
        if anchored.history != known.history:
            facts["lost_history"] = str(anchored.history)
    position = await record(opened, ledger_id, key_id, known.log_id, [(Log.Restarted, facts)])
    return Restarted(position, facts["generation"], UUID(facts["history"]), common)


async def _common_position(opened: Runtime, ledger_id: int, anchored: _Anchored | None) -> int | None:
    """Return the last position that means the same event in both histories; None if nobody can know it.

    What is left of the lost history was recorded no later than the event of its anchor. What was recorded after the
    loss, before somebody noticed it, was recorded later.
    """
    if anchored is None:
        return await opened.events.head(ledger_id)
    if anchored.at is None:
        return None
    return await opened.events.position_at(ledger_id, anchored.at)
