"""The anchor: outside the database, the last event of each log, by which a lost end of a log is noticed.

    AnchorFile   a small file, replaced whole and synced
    Anchoring    compares each log with its anchor, writes down what it found, and moves the anchors on

A database cannot know by itself that it lost events: a restored backup and a standby that lagged behind look whole. So
the position and the id of the last event of each log are written to a file, at most once a second, and only once the
event is safely on the database's disk: an anchor is never ahead of what is durable. At the start, in every new session
and each time before an anchor is moved, the log must still have the event that the anchor names. If not, the worker
says so in `history_checks`, and nothing is recorded or handed out until an operator decides.

A log that was never anchored is new. One that was, and has no anchor now, may have lost anything, and stops as well.
Every worker keeps an anchor file of its own. The one that leads writes the checks. A worker that starts beside it, with
no file yet, relies on what the leader found.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import psycopg

from infra.eventstore.histories import REMEDY
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import WORKER
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.array_columns import Bigints, Uuids

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TICK_S: Final = 1.0
# Between two looks whether an event is on the database's disk.
FLUSH_POLL_S: Final = 0.05
# The log says again why no anchor can be written at most so often.
WARN_EVERY_S: Final = 60.0

MISSING: Final = (
    "The anchor of this ledger is missing. It was anchored before, so its newest events may have been lost. If the "
    "anchor file was moved, put it back."
)
UNREADABLE: Final = "The anchor file cannot be read ({reason}). Mend or restore it."
LOST: Final = (
    "The ledger has lost events. Its anchor names event {event_id} at position {position}, and the database {instead}."
)
UNKNOWN: Final = (
    "The ledger has lost events. Its anchor is of generation {generation}, which this database has never had."
)

_LEAD: Final = "SELECT pg_try_advisory_lock(%s)"

_LOGS: Final = """
    SELECT l.ledger_id, l.name, l.log_id,
           h.history, h.generation,
           ARRAY(SELECT x.history FROM histories x WHERE x.ledger_id = l.ledger_id)
           || ARRAY(SELECT x.continues FROM histories x WHERE x.ledger_id = l.ledger_id AND x.continues IS NOT NULL),
           a.ledger_id IS NOT NULL, coalesce(c.database = database_identity(), false), c.problem,
           e.position, e.event_id, e.recorded_at,
           (SELECT x.event_id FROM events x WHERE x.ledger_id = l.ledger_id AND x.position = known.position)
    FROM ledgers l
    CROSS JOIN LATERAL (
        SELECT * FROM histories x WHERE x.ledger_id = l.ledger_id ORDER BY x.generation DESC LIMIT 1
    ) h
    LEFT JOIN anchored_ledgers a ON a.ledger_id = l.ledger_id
    LEFT JOIN history_checks c ON c.ledger_id = l.ledger_id
    LEFT JOIN LATERAL (
        SELECT * FROM events x WHERE x.ledger_id = l.ledger_id ORDER BY x.position DESC LIMIT 1
    ) e ON true
    LEFT JOIN unnest(%b, %b) AS known (log_id, position) ON known.log_id = l.log_id
    ORDER BY l.ledger_id
"""

_CHECKED: Final = """
    INSERT INTO history_checks AS c (
        ledger_id, database, problem, anchored_generation, anchored_history, anchored_position, anchored_event_id,
        anchored_at)
    VALUES (%s, database_identity(), %s, %s, %s, %s, %s, %s)
    ON CONFLICT (ledger_id) DO UPDATE
    SET database = excluded.database, problem = excluded.problem, anchored_generation = excluded.anchored_generation,
        anchored_history = excluded.anchored_history, anchored_position = excluded.anchored_position,
        anchored_event_id = excluded.anchored_event_id, anchored_at = excluded.anchored_at,
        checked_at = clock_timestamp()
"""

_ANCHORED: Final = "INSERT INTO anchored_ledgers (ledger_id) SELECT unnest(%s::int[]) ON CONFLICT DO NOTHING"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last event of a log that is known to be durable."""

    ledger: str
    history: UUID
    generation: int
    position: int
    event_id: UUID
    recorded_at: datetime


class AnchorFile:
    """The anchors of a worker, by the id of the log."""

    def __init__(self, path: Path) -> None:
        """Take where the file is."""
        self.path = path

    def read(self) -> dict[UUID, Anchor]:
        """Return the anchors; none if there is no file.

        Raises:
            OSError, ValueError: it cannot be read.

        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            found: Mapping[str, Any] = json.loads(text)["ledgers"]
            return {UUID(log_id): _anchor(**fields) for log_id, fields in found.items()}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            message = f"it is malformed: {type(error).__name__}"
            raise ValueError(message) from error

    def write(self, anchors: Mapping[UUID, Anchor]) -> None:
        """Replace the file by one with these anchors, which is on the disk when this returns.

        Raises:
            OSError: it cannot be written; the file is as it was.

        """
        content = {"ledgers": {str(log_id): asdict(anchor) for log_id, anchor in anchors.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        with open(fresh, "w", encoding="utf-8", opener=_private) as file:
            json.dump(content, file, default=str, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _anchor(*, ledger: str, history: str, generation: int, position: int, event_id: str, recorded_at: str) -> Anchor:
    return Anchor(
        ledger, UUID(history), int(generation), int(position), UUID(event_id), datetime.fromisoformat(recorded_at)
    )


class _Log(NamedTuple):
    """A log as the database has it, and the event that it has where the anchor names one."""

    ledger_id: int
    ledger: str
    log_id: UUID
    history: UUID
    generation: int
    earlier: list[UUID]
    anchored: bool
    checked: bool
    problem: str | None
    position: int | None
    event_id: UUID | None
    recorded_at: datetime | None
    event_at_anchor: UUID | None


class Anchoring:
    """What a worker does about anchors."""

    def __init__(self, conninfo: str, file: AnchorFile, tick_s: float = TICK_S) -> None:
        """Prepare; `run` runs it.

        Args:
            conninfo: the database, as a login that is or may become the worker's role.
            file: the anchor file of this worker.
            tick_s: the time between two anchors, in seconds.

        """
        # A standby may lag behind, and takes no checks.
        self._session = session(conninfo, WORKER) | {"target_session_attrs": "primary"}
        self._file = file
        self._tick_s = tick_s
        self._anchors: dict[UUID, Anchor] = {}
        self._unreadable: str | None = None
        self._leads = False
        self._warned_at = float("-inf")
        self.checked = asyncio.Event()

    async def run(self) -> None:
        """Compare and anchor until cancelled."""
        while True:
            try:
                async with await LedgerConnection.connect(**self._session) as connection:
                    self._leads = False
                    await asyncio.to_thread(self.read_file)
                    while True:
                        await self.tick(connection)
                        await asyncio.sleep(self._tick_s)
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
                log.warning("Anchors wait for the database: %s", " ".join(str(error).split()))
                await asyncio.sleep(self._tick_s)

    async def lead(self, connection: LedgerConnection) -> bool:
        """Return whether this worker writes the checks, after an attempt to."""
        if not self._leads:
            row = await (await connection.execute(_LEAD, (AdvisoryLock.ANCHOR,))).fetchone()
            self._leads = bool(row and row[0])
        return self._leads

    async def tick(self, connection: LedgerConnection) -> None:
        """Compare every log with its anchor, write down what has changed, and move on the anchors of whole logs."""
        await self.lead(connection)
        known = (Uuids(list(self._anchors)), Bigints([anchor.position for anchor in self._anchors.values()]))
        cursor = connection.cursor(binary=True)
        await cursor.execute(_LOGS, known)
        logs = [_Log(*row) for row in await cursor.fetchall()]
        problems = {one.ledger_id: self._problem(one) for one in logs}
        if self._leads:
            await self._write_checks(connection, logs, problems)
        whole = [one for one in logs if problems[one.ledger_id] is None and one.position is not None]
        moved = {one.log_id: anchor for one in whole if (anchor := _anchor_of(one)) != self._anchors.get(one.log_id)}
        # A file that cannot be read may hold anchors that somebody still needs.
        if moved and (self._unreadable is None or not any(problems.values())):
            await _flushed(connection)
            await self._write_file(moved)
        # Only then: if this ends in between, the next start finds an anchor, and not the lack of one.
        fresh = [one.ledger_id for one in whole if not one.anchored and one.log_id in self._anchors]
        if fresh and self._leads:
            await connection.execute(_ANCHORED, (fresh,))
        self.checked.set()

    def _problem(self, one: _Log) -> str | None:
        """Return why a log is not the one that was anchored; None if it is, or was never anchored."""
        anchor = self._anchors.get(one.log_id)
        if anchor is None:
            relies = not self._leads and one.checked and one.problem is None
            if not one.anchored or relies:
                return None
            return MISSING if self._unreadable is None else UNREADABLE.format(reason=self._unreadable)
        if anchor.history != one.history:
            # It was accepted that what an earlier history had is lost.
            return None if anchor.history in one.earlier else UNKNOWN.format(generation=anchor.generation)
        if one.event_at_anchor == anchor.event_id:
            return None
        ends = one.position or 0
        instead = f"ends at position {ends}" if ends < anchor.position else "has another event there"
        return LOST.format(event_id=anchor.event_id, position=anchor.position, instead=instead)

    async def _write_checks(
        self, connection: LedgerConnection, logs: list[_Log], problems: Mapping[int, str | None]
    ) -> None:
        changed = [one for one in logs if not one.checked or one.problem != problems[one.ledger_id]]
        for one in changed:
            problem, anchor = problems[one.ledger_id], self._anchors.get(one.log_id)
            if problem is not None and one.problem != problem:
                log.error("Ledger %s: %s %s", one.ledger, problem, REMEDY.format(ledger=one.ledger))
            of_anchor: tuple[Any, ...] = (None,) * 5
            if anchor is not None:
                of_anchor = (
                    *(anchor.generation, anchor.history, anchor.position, anchor.event_id),
                    anchor.recorded_at,
                )
            await connection.execute(_CHECKED, (one.ledger_id, problem, *of_anchor))
        if changed:
            # Anyone who remembers anything of keys or histories looks it up again.
            await connection.execute("NOTIFY sparkledger_keys")

    def read_file(self) -> None:
        """Read the anchors that were written last."""
        try:
            self._anchors, self._unreadable = self._file.read(), None
        except (OSError, ValueError) as error:
            self._anchors, self._unreadable = {}, str(error)

    async def _write_file(self, moved: Mapping[UUID, Anchor]) -> None:
        anchors = {**self._anchors, **moved}
        try:
            await asyncio.to_thread(self._file.write, anchors)
        except OSError as error:
            # The anchors of before still hold: they only notice the loss of less.
            now = asyncio.get_running_loop().time()
            if now >= self._warned_at + WARN_EVERY_S:
                self._warned_at = now
                log.error("No anchor can be written to %s: %s", self._file.path, error.strerror)  # noqa: TRY400 - a traceback adds nothing
        else:
            self._anchors = anchors


def _anchor_of(one: _Log) -> Anchor:
    assert one.position is not None  # noqa: S101 - the log has an event
    assert one.event_id is not None  # noqa: S101
    assert one.recorded_at is not None  # noqa: S101
    return Anchor(one.ledger, one.history, one.generation, one.position, one.event_id, one.recorded_at)


async def check_once(conninfo: str, file: AnchorFile) -> None:
    """Compare every log with its anchor, for a command that records something, unless a worker does so already."""
    anchoring = Anchoring(conninfo, file)
    async with await LedgerConnection.connect(**session(conninfo, WORKER)) as connection:
        if await anchoring.lead(connection):
            anchoring.read_file()
            await anchoring.tick(connection)


async def _flushed(connection: LedgerConnection) -> None:
    """Wait until all that can be seen now is on the database's disk: a commit can be seen before that."""
    row = await (await connection.execute("SELECT pg_current_wal_insert_lsn()::text")).fetchone()
    seen = row[0] if row else None
    while True:
        cursor = await connection.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", (seen,))
        row = await cursor.fetchone()
        if row is None or row[0]:
            return
        await asyncio.sleep(FLUSH_POLL_S)
