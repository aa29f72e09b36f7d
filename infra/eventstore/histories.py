"""The history of each ledger's log, and whether this database still has all of it.

    History       the identities of a log, and what speaks against appending to it and reading it
    Histories     the histories of a process's ledgers, each looked up at most once a second
    HistoryGuard  what the writer asks before it appends: the same, on its own session

Positions name events only within one history. After a restore or a failover that lost events, they may mean others. A
worker compares each log with an anchor outside the database (`infra.jobs.anchor`), and writes down what it found, for
the database in which it looked. A database that nobody has looked at is not written to: unless the log was never
anchored, or the last event that this very process has appended is still there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from infra.errors import MOVED, Unavailable
from infra.postgres.batch_loader import BatchLoader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infra.postgres.pool import Database, LedgerConnection
    from infra.postgres.session_tokens import SessionTokens

# The longest that a change is not noticed if its notification was lost.
CACHE_S: Final = 1.0
RETRY_AFTER_S: Final = 2

REMEDY: Final = (
    "Nothing is recorded, and events are not handed out, until somebody decides. Restore the newer database, or accept "
    "the loss with `sparkledger ledgers restart {ledger} --accept-loss`."
)
UNCHECKED: Final = (
    "The database was restarted or replaced, and the worker has not compared it with the anchor yet. Try again in a "
    "moment. If this stays, start a worker."
)
GONE_BACK: Final = (
    "The ledger has lost events: position {position}, which was recorded, is not there any more or is another event. "
)

_HISTORY: Final = """
    SELECT l.name, l.log_id, l.served_by, c.problem,
           c.ledger_id IS NOT NULL AS checked, a.ledger_id IS NOT NULL AS anchored,
           ARRAY(SELECT h.history FROM histories h WHERE h.ledger_id = l.ledger_id ORDER BY h.generation),
           ARRAY(SELECT h.generation FROM histories h WHERE h.ledger_id = l.ledger_id ORDER BY h.generation),
           ARRAY(SELECT h.common_position FROM histories h WHERE h.ledger_id = l.ledger_id ORDER BY h.generation),
           ARRAY(SELECT h.continues FROM histories h WHERE h.ledger_id = l.ledger_id ORDER BY h.generation),
           (SELECT e.event_id FROM events e WHERE e.ledger_id = l.ledger_id AND e.position = %b)
    FROM ledgers l
    LEFT JOIN anchored_ledgers a ON a.ledger_id = l.ledger_id
    -- A standby is no database of its own: what holds for the primary holds for it.
    LEFT JOIN history_checks c
        ON c.ledger_id = l.ledger_id AND (pg_is_in_recovery() OR c.database = database_identity())
    WHERE l.ledger_id = %b
"""


class HistoryChanged(Exception):
    """A request names another history of the log than the present one.

    Attributes:
        sent: the history that it names; None if it names a position without one, and the log has had several.
        current: the present history.
        common_position: the last position that both have in common; None if that is not known.

    """

    def __init__(self, sent: UUID | None, current: UUID, common_position: int | None) -> None:
        super().__init__("This position is of another history of the ledger.")
        self.sent = sent
        self.current = current
        self.common_position = common_position


@dataclass(frozen=True, slots=True)
class History:
    """A log's identities, and why it can be neither written nor handed out, if so.

    Attributes:
        ledger: the name of the ledger.
        log_id: of the log, for ever.
        history: the present history.
        generation: its number, from 1.
        common: by each earlier history, the last position that it has in common with the present one.
        problem: why the log is not to be trusted; None if nothing speaks against it.
        checked: whether it is known to be whole in this database, or was never anchored.
        served_by: the server that serves the ledger, if it is another one.

    """

    ledger: str
    log_id: UUID
    history: UUID
    generation: int
    common: Mapping[UUID, int] = field(default_factory=dict)
    problem: str | None = None
    checked: bool = True
    served_by: str | None = None

    def require(self, sent: UUID | None) -> None:
        """Refuse another history than the present one.

        Raises:
            HistoryChanged: it is another.

        """
        if sent != self.history:
            raise HistoryChanged(sent, self.history, None if sent is None else self.common.get(sent))

    def require_common(self, position: int) -> None:
        """Refuse a position that means different events in the histories of the log, if nobody said which is meant.

        Raises:
            HistoryChanged: it is after the last position that all of them have in common.

        """
        all_known = len(self.common) == self.generation - 1
        if self.generation > 1 and position > (min(self.common.values()) if all_known else 0):
            raise HistoryChanged(None, self.history, None)

    def require_whole(self) -> None:
        """Refuse to append to the log, or to hand out its events, if it may have lost some.

        Raises:
            Unavailable: it has, or nobody has looked yet.

        """
        if self.served_by is not None:
            raise Unavailable(MOVED)
        if self.problem is not None:
            raise Unavailable(f"{self.problem} {REMEDY.format(ledger=self.ledger)}", RETRY_AFTER_S)
        if not self.checked:
            raise Unavailable(UNCHECKED, RETRY_AFTER_S)


class Acknowledged(NamedTuple):
    """The last event of a ledger that this process has appended."""

    history: UUID
    position: int
    event_id: UUID


class Histories:
    """The histories of a process's ledgers."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database
        self._known: dict[int, tuple[float, History]] = {}
        self._changes = 0
        self._load = BatchLoader(self._loaded)

    async def of(self, ledger_id: int) -> History:
        """Return the history of a ledger.

        Raises:
            Unavailable: the database is away.

        """
        known = self._known.get(ledger_id)
        if known is not None and monotonic() - known[0] <= CACHE_S:
            return known[1]
        found = await self._load(ledger_id, 0)
        if found is None:
            message = f"there is no ledger {ledger_id}"
            raise LookupError(message)
        return found

    def forget(self) -> None:
        """Look everything up again: something has changed."""
        self._changes += 1
        self._known.clear()

    async def _loaded(self, ledger_id: int, _: Sequence[int]) -> dict[int, History]:
        changes, at = self._changes, monotonic()

        async def query(connection: LedgerConnection) -> History | None:
            return await read_history(connection, ledger_id)

        found = await self._database.read(ledger_id, query)
        if found is None:
            return {}
        if changes == self._changes:
            self._known[ledger_id] = (at, found)
        return {0: found}


class HistoryGuard:
    """Asks, before appends, whether the logs are whole: in every new session, and once a second."""

    def __init__(self, tokens: SessionTokens) -> None:
        """Take what binds a session to a ledger."""
        self._tokens = tokens
        self._acknowledged: dict[int, Acknowledged] = {}
        self._passed: dict[int, tuple[float, History]] = {}

    def new_session(self) -> None:
        """Trust nothing that was found in another session: it may be another database."""
        self._passed.clear()

    def acknowledge(self, ledger_id: int, position: int, event_id: UUID) -> None:
        """Remember the last event of a ledger that was appended here; a database that lacks it has lost it."""
        passed = self._passed.get(ledger_id)
        if passed is not None:
            self._acknowledged[ledger_id] = Acknowledged(passed[1].history, position, event_id)

    def knows(self, ledger_id: int) -> bool:
        """Tell whether the log was found whole just now, so that `require_whole` asks nothing."""
        passed = self._passed.get(ledger_id)
        return passed is not None and monotonic() - passed[0] <= CACHE_S

    async def require_whole(self, connection: LedgerConnection, ledger_id: int) -> None:
        """Refuse to append to a log that may have lost events.

        Raises:
            Unavailable: it has, or nobody has looked yet.

        """
        if self.knows(ledger_id):
            return
        at = monotonic()
        await connection.bind(ledger_id, self._tokens)
        found = await read_history(connection, ledger_id, self._acknowledged.get(ledger_id))
        if found is not None:
            found.require_whole()
            self._passed[ledger_id] = (at, found)


async def stopped_ledgers(database: Database) -> tuple[int, int]:
    """Return how many ledgers cannot be written to, because they may have lost events, and how many there are.

    Raises:
        Unavailable: the database is away.

    """

    async def query(connection: LedgerConnection) -> Any:
        return await (await connection.execute("SELECT stopped, ledgers FROM stopped_ledgers()")).fetchone()

    stopped, ledgers = await database.read(None, query)
    return stopped, ledgers


async def read_history(
    connection: LedgerConnection, ledger_id: int, acknowledged: Acknowledged | None = None
) -> History | None:
    """Read a ledger's history in a session that sees it; None if there is no such ledger.

    Args:
        connection: the session.
        ledger_id: the ledger.
        acknowledged: the last event that this process has appended; if the log still has it, nobody else need look.

    """
    cursor = connection.cursor(binary=True)
    await cursor.execute(_HISTORY, (None if acknowledged is None else acknowledged.position, ledger_id), prepare=True)
    row: Any = await cursor.fetchone()
    if row is None:
        return None
    name, log_id, served_by, problem, checked, anchored, histories, generations, commons, continues, event_id = row
    if acknowledged is not None and acknowledged.history == histories[-1]:
        if event_id == acknowledged.event_id:
            checked = True
        elif problem is None:
            problem = GONE_BACK.format(position=acknowledged.position).strip()
    common: dict[UUID, int] = {}
    least = math.inf
    for number in range(len(histories) - 1, 0, -1):
        if commons[number] is None:
            break  # of what lies before, nobody knows how far it is the same
        least = min(least, commons[number])
        common |= {histories[number - 1]: int(least), continues[number]: int(least)}
    return History(name, log_id, histories[-1], generations[-1], common, problem, checked or not anchored, served_by)
