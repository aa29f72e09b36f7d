"""A ledger moves to another server, while it is served.

    begin     the target gets the ledger's row, as one that the source serves; on the source, triggers note what changes
    copy      the log in pages, then every other table; nothing waits for that
    follow    what was changed meanwhile, until that is little
    switch    one transaction of the source holds everything that writes to the ledger. What is left is copied, the
              target keeps a number for the copy, and the transaction ends with that number and the target's name
    complete  the target is given the number, and serves the ledger

Until the transaction of the switch is committed, the source serves the ledger, and never after it. If the command is
killed before, its session ends, and so does what it holds. If it is killed after, the next request with a key of the
ledger completes the move, or the same command does. So no two servers ever serve the ledger, and one always can. No
transaction is of both: each step can be done again.

Tables with a `ledger_id` move, whatever they are for, but for those that `STAYS` names.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from uuid import UUID, uuid4

import orjson
import psycopg
from psycopg import sql

from infra.crypto.epochs import EpochKeyMissing
from infra.crypto.keyring import (
    creator_key_unwrapped_with,
    creator_key_wrapped_with,
    creator_purpose,
    fingerprint_purpose,
    sheet_purpose,
    unwrapped_with,
    wrapped_with,
)
from infra.postgres.roles import MOVER, WORKER
from infra.postgres.timelines import ServerConnection
from infra.servers import ServersError
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from infra.crypto.master_keys import KeyProvider

PAGE_EVENTS: Final = 10_000
PAGE_CHANGES: Final = 2_000
PAGE_DELETED: Final = 10_000
# What may be left when everything is held, and how often it is tried to get there.
FEW_EVENTS: Final = 200
FEW_CHANGES: Final = 200
ROUNDS: Final = 1_000
SWITCHES: Final = 20
PAUSE_S: Final = 0.5
# How long the switch waits for those who are writing, and how long it may hold them.
LOCK_TIMEOUT_MS: Final = 2_000
HELD_MS: Final = 10_000
CONNECT_TIMEOUT_S: Final = 5
# So much longer the source waits for the command before it ends its session.
IDLE_MS: Final = 5_000
# How often rows are copied again that refer to others which came later, or whose key the target has replaced meanwhile.
TRIES: Final = 5
# For so long after the switch, entries of the access log are copied that came late.
LINGER_S: Final = 3.0

NOTHING: Final = sql.SQL("")
NOBODY: Final = UUID(int=0)
LOG: Final = "events"
SHEETS: Final = "import_runs"
OPEN_SHEETS: Final = sql.SQL(" AND t.sealed_key IS NOT NULL")
# Copied in the switch alone: the signed log ends where the log does, and an erasure must be carried out on the source,
# because the number of its epoch means nothing to the target.
LAST: Final = frozenset({"erasures", "log_trees"})
# Rows of these tables that do not move: what a server has noted of its own copies of keys.
OWN: Final = {"erasures": sql.SQL(" AND t.position > 0")}
# Why tables with a `ledger_id` do not move.
STAYS: Final = {
    "ledgers": "made first, with the key wrapped for the target",
    "view_positions": "views are filled from the log on the target",
    "publications": "the target's publisher reads in Kafka how far the ledger is published",
    "anchored_ledgers": "the target's worker writes an anchor of its own",
    "history_checks": "of one database",
    "departures": "about the move itself",
    "departure_changes": "about the move itself",
    "arrivals": "about the move itself",
}

# What says whose copy of a ledger a server has, in the order in which it can be deleted.
_REGISTERED: Final = ("departures", "arrivals", "ledgers")

_TABLES: Final = """
    SELECT c.relname,
           (SELECT array_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
           (SELECT array_agg(a.attname ORDER BY array_position(i.indkey::int2[], a.attnum)) FROM pg_index i
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = c.oid AND i.indisprimary),
           ARRAY(SELECT DISTINCT f.confrelid::regclass::text FROM pg_constraint f
                 WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid)
    FROM pg_class c
    JOIN pg_attribute l ON l.attrelid = c.oid AND l.attname = 'ledger_id' AND NOT l.attisdropped
    WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
    ORDER BY c.relname
"""
_LEDGER: Final = """
    SELECT l.ledger_id, l.name, l.created_at, l.fingerprint_key, l.log_id, l.served_by
    FROM ledgers l
    WHERE l.name = %s
"""
_NEW_LEDGER: Final = """
    INSERT INTO ledgers (ledger_id, name, created_at, fingerprint_key, log_id, served_by)
    OVERRIDING SYSTEM VALUE VALUES (%s, %s, %s, %s, %s, %s)
"""
_HEAD: Final = "SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %s"
_LAST: Final = "SELECT position, event_id FROM events WHERE ledger_id = %s ORDER BY position DESC LIMIT 1"
_PRESENT: Final = """
    SELECT (SELECT m.master_key_id FROM master_keys m WHERE m.present),
           (SELECT e.epoch_id FROM key_epochs e WHERE e.present)
"""
_TAKE_CHANGES: Final = """
    DELETE FROM departure_changes
    WHERE ctid = ANY (ARRAY(SELECT ctid FROM departure_changes WHERE ledger_id = %s LIMIT %s))
    RETURNING table_name, key
"""
# Equal reads of a minute are one entry. Of those that were answered on both servers, there are two.
_TOGETHER: Final = """
    UPDATE pg_temp.incoming_accesses i SET together = gen_random_uuid()
    WHERE EXISTS (
        SELECT FROM accesses a
        WHERE a.ledger_id = i.ledger_id AND a.together = i.together AND a.access_id <> i.access_id
    )
"""
_ERASING: Final = (
    "SELECT EXISTS (SELECT FROM erasures WHERE ledger_id = %s AND position > 0 AND carried_out_at IS NULL)"
)
# Keys of creators and of sheets that were removed stay in backups: they open no more once the epoch has ended that is
# present afterwards. A statement of its own, after the one that removes them: a worker may seal them again until then.
_END_EPOCH: Final = """
    INSERT INTO erasures (ledger_id, position, creator_stream, epoch)
    SELECT %s, 0, %s, e.number
    FROM key_epochs e
    WHERE e.present
    ON CONFLICT (ledger_id, position) DO UPDATE SET epoch = excluded.epoch, carried_out_at = NULL
"""
_REMOVE_KEYS: Final = """
    WITH removed AS (DELETE FROM creator_keys WHERE ledger_id = %(ledger)s RETURNING wrapped)
    SELECT EXISTS (SELECT FROM removed WHERE wrapped IS NOT NULL)
        OR EXISTS (SELECT FROM import_runs WHERE ledger_id = %(ledger)s)
"""
_ERASED_MEANWHILE: Final = """
    SELECT count(*) FROM pg_temp.incoming_creator_keys i
    JOIN creator_keys k USING (ledger_id, key_id)
    WHERE i.wrapped IS NULL AND k.wrapped IS NOT NULL
"""
# Sheets that opened on the target, and open on the source no more.
_SHEETS_ERASED_MEANWHILE: Final = """
    SELECT count(*) FROM import_runs r
    WHERE r.import_id = ANY (%s) AND r.sealed_key IS NOT NULL
"""
_HAS_COPY: Final = """
    SELECT 1 FROM arrivals a JOIN ledgers l USING (ledger_id)
    WHERE a.ledger_id = %s AND a.arrived_at IS NULL AND l.served_by = %s
"""
_EVENTS_UPTO: Final = "SELECT count(*) FROM events WHERE ledger_id = %s AND position <= %s"


class MoveError(ServersError):
    """The ledger cannot be moved; the message says why, and what to do."""


# Errors with which the switch is tried again: somebody else writes for too long, or it would take too long.
_HELD_UP: Final = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.QueryCanceled,
)
# Errors with which rows are copied again: what they refer to is not here yet, or the target has another master key, or
# another epoch, since they were wrapped.
_AGAIN: Final = (psycopg.errors.ForeignKeyViolation, psycopg.errors.ObjectNotInPrerequisiteState)


class Server(NamedTuple):
    """A server by its name, as the owner of its tables."""

    name: str
    owner: str


class Moved(NamedTuple):
    """What became of a move: the last position on the source, and for how many seconds commands waited."""

    position: int
    held_s: float


@dataclass(frozen=True, slots=True)
class Table:
    """A table of which the rows of a ledger move."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    references: frozenset[str]

    @property
    def list(self) -> sql.Composed:
        """Its columns."""
        return sql.SQL(", ").join(map(sql.Identifier, self.columns))

    def same_key(self, one: str, other: str) -> sql.Composed:
        """Return the condition that two rows have the same key."""
        pairs = (sql.SQL("{} = {}").format(sql.Identifier(one, name), sql.Identifier(other, name)) for name in self.key)
        return sql.SQL(" AND ").join(pairs)

    @property
    def replaces(self) -> sql.Composed:
        """What becomes of a row that is there already; an event never changes."""
        others = [name for name in self.columns if name not in self.key]
        conflict = sql.SQL("ON CONFLICT ({}) DO ").format(sql.SQL(", ").join(map(sql.Identifier, self.key)))
        if self.name == LOG or not others:
            return conflict + sql.SQL("NOTHING")
        pairs = (sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others)
        return conflict + sql.SQL("UPDATE SET ") + sql.SQL(", ").join(pairs)


def tables_of(connection: psycopg.Connection[Any]) -> list[Table]:
    """Return the tables whose rows move, each after those that it refers to."""
    found = {
        row[0]: Table(row[0], tuple(row[1]), tuple(row[2] or ()), frozenset(row[3]))
        for row in connection.execute(_TABLES).fetchall()
        if row[0] not in STAYS
    }
    ordered: dict[str, Table] = {}
    while len(ordered) < len(found):
        ready = [
            table
            for name, table in found.items()
            if name not in ordered and (table.references & found.keys()) <= ordered.keys()
        ]
        ordered |= {table.name: table for table in ready}
    return list(ordered.values())


class LedgerMove:
    """A move of one ledger, as far as it has come; a context manager that holds a session on each server."""

    def __init__(
        self, ledger: str, source: Server, target: Server, key_provider: KeyProvider, say: Callable[[str], None]
    ) -> None:
        """Take the ledger's name, both servers, what opens and wraps keys, and what shows progress."""
        self._ledger = ledger
        self._source, self._target = source, target
        self._key_provider = key_provider
        self._say = say
        self._opened = ExitStack()
        self._ledger_id = 0
        self._tables: list[Table] = []
        self._held_until: float | None = None
        self.linger_s = LINGER_S
        # To be replaced by tests that end the command at any point.
        self.reached: Callable[[str], None] = lambda _: None

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._from = opened.enter_context(_connected(self._source))
            self._to = opened.enter_context(_connected(self._target))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def run(self) -> Moved:
        """Move the ledger, or go on with a move that was interrupted.

        Raises:
            MoveError: it cannot be moved.
            psycopg.OperationalError: a server is away.

        """
        if self._begin():
            return Moved(self._complete(), 0.0)
        self._require_same_log()
        self._note_changes()
        self.reached("began")
        self._copy_log()
        self.reached("log")
        for table in self._tables:
            if table.name not in {LOG, *LAST}:
                self._say(f"{self._ledger}: copying {table.name}")
                self.reached(f"copying {table.name}")
                self._copy(table)
        self.reached("tables")
        self._require_whole_log()
        for _ in range(SWITCHES):
            self._follow()
            self.reached("followed")
            try:
                held_s = self._switch()
            except (*_HELD_UP, *_AGAIN, _NotYet) as error:
                self._say(f"{self._ledger}: {' '.join(str(error).split()) or 'waiting'}; trying again")
                time.sleep(PAUSE_S)
                continue
            self.reached("switched")
            return Moved(self._complete(), held_s)
        message = (
            f"Ledger {self._ledger} could not be held for the last part of its move: it is written to all the time. "
            f"It is served by {self._source.name} as before. Run the command again, or with --undo."
        )
        raise MoveError(message)

    def undo(self) -> None:
        """Give up a move that has not switched: the source serves the ledger as if nothing had been.

        Raises:
            MoveError: there is nothing to undo, or it has moved already.

        """
        row = self._from.execute(_LEDGER, (self._ledger,)).fetchone()
        if row is None or row[5] is not None:
            message = f"Ledger {self._ledger} is not served by {self._source.name}: its move cannot be undone."
            raise MoveError(message)
        self._ledger_id = row[0]
        self._require_alone()
        self._tables = tables_of(self._from)
        self._require_target()
        # First here, so that it cannot be switched any more. Without this row, the triggers do nothing.
        _delete_pages(self._from, "departure_changes", self._ledger_id)
        self._from.execute("DELETE FROM departures WHERE ledger_id = %s AND moved_at IS NULL", (self._ledger_id,))
        self.reached("undoing")
        self._drop_triggers()
        self.reached("undone")
        self._remove_copy()

    # -- begin

    def _begin(self) -> bool:
        """Register the move on both servers; return whether it has switched already."""
        row = self._from.execute(_LEDGER, (self._ledger,)).fetchone()
        if row is None:
            message = f"There is no ledger named {self._ledger} on {self._source.name}."
            raise MoveError(message)
        self._ledger_id, name, created_at, wrapped, log_id, served_by = row
        self._require_alone()
        self._tables = tables_of(self._from)
        if [(table.name, table.columns) for table in self._tables] != [
            (table.name, table.columns) for table in tables_of(self._to)
        ]:
            message = f"The servers {self._source.name} and {self._target.name} have different tables: migrate both."
            raise MoveError(message)
        if served_by is not None:
            if served_by == self._target.name:
                return True
            message = f"Ledger {self._ledger} has moved from {self._source.name} to {served_by}."
            raise MoveError(message)
        self._require_fresh_target()
        if not self._require_target():
            # What was changed after a move was undone, nobody noted.
            self._remove_copy()
        _drop_triggers(self._to, self._tables, self._ledger_id)
        self._from.execute(
            "INSERT INTO departures (ledger_id, target) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (self._ledger_id, self._target.name),
        )
        self.reached("registered")
        number = self._from.execute("SELECT number FROM this_server").fetchone()
        key = asyncio.run(self._fingerprint_key(name, wrapped))
        with self._to.transaction():
            if self._to.execute(_LEDGER, (self._ledger,)).fetchone() is None:
                self._to.execute(_NEW_LEDGER, (self._ledger_id, name, created_at, key, log_id, self._source.name))
                self._to.execute(
                    "INSERT INTO arrivals (ledger_id, source, source_number) VALUES (%s, %s, %s)",
                    (self._ledger_id, self._source.name, number[0] if number else 0),
                )
        return False

    def _require_alone(self) -> None:
        """Keep others from moving the ledger, for as long as this session lives."""
        lock = (AdvisoryLock.LEDGER_MOVE, self._ledger_id)
        row = self._from.execute("SELECT pg_try_advisory_lock(%s, %s)", lock).fetchone()
        if row is None or not row[0]:
            message = f"Ledger {self._ledger} is being moved by another command. Wait for it, or stop it."
            raise MoveError(message)

    def _require_target(self) -> bool:
        """Refuse a ledger that is being moved to another server; return whether it is being moved to this one."""
        row = self._from.execute("SELECT target FROM departures WHERE ledger_id = %s", (self._ledger_id,)).fetchone()
        if row is not None and row[0] != self._target.name:
            message = f"Ledger {self._ledger} is being moved to {row[0]}: finish that, or undo it with --undo."
            raise MoveError(message)
        return row is not None

    def _remove_copy(self) -> None:
        """Remove what the target has of a move that was given up."""
        if self._to.execute(_HAS_COPY, (self._ledger_id, self._source.name)).fetchone() is not None:
            _remove(self._to, self._tables, self._ledger_id, self._say, self.reached)

    def _require_same_log(self) -> None:
        """Refuse to go on with a copy that has an event which the source has lost, by a failover or a restore."""
        row = self._to.execute(_LAST, (self._ledger_id,)).fetchone()
        if row is None:
            return
        same = self._from.execute(
            "SELECT 1 FROM events WHERE ledger_id = %s AND position = %s AND event_id = %s", (self._ledger_id, *row)
        ).fetchone()
        if same is None:
            raise MoveError(self._differs())

    def _require_whole_log(self) -> None:
        """Refuse a copy that lacks events before its last one."""
        upto = self._number(self._to, _HEAD)
        here, there = (one.execute(_EVENTS_UPTO, (self._ledger_id, upto)).fetchone() for one in (self._from, self._to))
        if here != there:
            raise MoveError(self._differs())

    def _differs(self) -> str:
        return f"The copy of ledger {self._ledger} differs from the ledger. Undo the move with --undo, and begin again."

    def _require_fresh_target(self) -> None:
        """Refuse a target that has a copy of the ledger from another time."""
        row = self._to.execute(
            "SELECT l.served_by, a.arrived_at FROM ledgers l LEFT JOIN arrivals a USING (ledger_id) WHERE l.name = %s",
            (self._ledger,),
        ).fetchone()
        began = self._to.execute("SELECT 1 FROM arrivals WHERE ledger_id = %s", (self._ledger_id,)).fetchone()
        if row is not None and (began is None or row[1] is not None or row[0] != self._source.name):
            message = (
                f"Server {self._target.name} still has a copy of ledger {self._ledger} from before it moved away. "
                f"Remove it with `sparkledger ledgers forget {self._ledger} --server {self._target.name}`."
            )
            raise MoveError(message)

    async def _fingerprint_key(self, name: str, wrapped: bytes) -> bytes:
        purpose = fingerprint_purpose(name)
        plain = await unwrapped_with(self._key_provider, wrapped, purpose)
        return await wrapped_with(self._key_provider, self._present()[0], plain, purpose)

    def _present(self) -> tuple[str, str]:
        """Return the target's present master key and epoch."""
        row = self._to.execute(_PRESENT).fetchone()
        if row is None or None in row:
            message = f"Server {self._target.name} has no master key yet: run `sparkledger migrate`."
            raise MoveError(message)
        return row[0], row[1]

    def _note_changes(self) -> None:
        """Have the source note what is changed of the ledger from now on."""
        self._say(f"{self._ledger}: noting changes on {self._source.name}")
        for table in self._tables:
            if table.name != LOG:
                self._alter(*self._triggers(table))

    def _triggers(self, table: Table) -> list[sql.Composed]:
        statements = []
        for suffix, events, row in (("changed", "INSERT OR UPDATE", "NEW"), ("deleted", "DELETE", "OLD")):
            statements.append(
                sql.SQL(
                    "CREATE OR REPLACE TRIGGER {name} AFTER {events} ON {table} FOR EACH ROW"
                    " WHEN ({row}.ledger_id = {ledger} AND current_user <> 'sparkledger_mover')"
                    " EXECUTE FUNCTION note_departure({key})"
                ).format(
                    name=sql.Identifier(self._trigger(suffix)),
                    events=sql.SQL(events),
                    table=sql.Identifier(table.name),
                    row=sql.SQL(row),
                    ledger=sql.Literal(self._ledger_id),
                    key=sql.SQL(", ").join(map(sql.Literal, table.key)),
                )
            )
        return statements

    def _trigger(self, suffix: str) -> str:
        return f"departure_of_{self._ledger_id}_{suffix}"

    def _drop_triggers(self) -> None:
        _drop_triggers(self._from, self._tables, self._ledger_id)

    def _alter(self, *statements: sql.Composed) -> None:
        """Change a table of the source, as its owner, without holding up others for long."""
        _as_owner(self._from, *statements)

    # -- copy

    def _copy_log(self) -> None:
        table = next(table for table in self._tables if table.name == LOG)
        head = self._number(self._from, _HEAD)
        position = self._number(self._to, _HEAD)
        while position < head:
            upto = position + PAGE_EVENTS
            self._copy(table, sql.SQL(" AND position > {} AND position <= {}").format(position, upto))
            position = self._number(self._to, _HEAD)
            head = self._number(self._from, _HEAD)
            self._say(f"{self._ledger}: {position:,} of {head:,} events")
            self.reached("page")

    def _number(self, connection: psycopg.Connection[Any], query: str) -> int:
        row = connection.execute(query, (self._ledger_id,)).fetchone()
        return int(row[0]) if row else 0

    def _copy(self, table: Table, more: sql.Composable = NOTHING) -> None:
        """Copy rows of the ledger; those that are there already are replaced."""
        which = sql.SQL("WHERE t.ledger_id = {}").format(self._ledger_id) + OWN.get(table.name, NOTHING) + more
        for attempt in range(TRIES):
            try:
                with self._to.transaction():
                    self._fetch(table, which)
                    self._store(table)
            except _AGAIN:
                if attempt == TRIES - 1:
                    raise
                self._copy_referred(table.references)
            else:
                return

    def _copy_referred(self, names: frozenset[str]) -> None:
        """Copy the tables that others refer to again: their rows may be newer."""
        for table in self._tables:
            if table.name == LOG and table.name in names:
                self._copy_log()
            elif table.name in names:
                self._copy(table)

    def _fetch(self, table: Table, which: sql.Composable) -> None:
        """Bring rows of the source into a temporary table of the target."""
        self._require_time()
        incoming = _incoming(table)
        self._to.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP").format(incoming, sql.Identifier(table.name))
        )
        columns = sql.SQL(", ").join(sql.Identifier("t", name) for name in table.columns)
        select = sql.SQL("COPY (SELECT {} FROM {} t {}) TO STDOUT (FORMAT binary)").format(
            columns, sql.Identifier(table.name), which
        )
        insert = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(incoming, table.list)
        with self._from.cursor().copy(select) as rows, self._to.cursor().copy(insert) as copied:
            for data in rows:
                copied.write(data)

    def _store(self, table: Table) -> None:
        """Bring rows from the temporary table of the target into their own."""
        erased = 0
        if table.name == "creator_keys":
            asyncio.run(self._seal_again(table))
            erased = (self._to.execute(_ERASED_MEANWHILE).fetchone() or (0,))[0]
        if table.name == SHEETS:
            closed = self._seal_sheets_again(table)
            erased = (self._to.execute(_SHEETS_ERASED_MEANWHILE, (closed,)).fetchone() or (0,))[0]
        if table.name == "accesses":
            self._to.execute(_TOGETHER)
        if table.name == "log_trees":
            # Until the target serves the ledger. `arrivals` says which become public then.
            self._to.execute("UPDATE pg_temp.incoming_log_trees SET public = false")
        self._to.execute(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} {}").format(
                sql.Identifier(table.name), table.list, table.list, _incoming(table), table.replaces
            )
        )
        if erased:
            # The target has stored the key, too, and has it in backups.
            self._to.execute(_END_EPOCH, (self._ledger_id, NOBODY))

    async def _seal_again(self, table: Table) -> None:
        """Wrap keys of creators with the master key of the target, and seal them in its epoch."""
        incoming = _incoming(table)
        rows = self._to.execute(
            sql.SQL("SELECT key_id, wrapped FROM {} WHERE wrapped IS NOT NULL").format(incoming)
        ).fetchall()
        if not rows:
            return
        present = self._present()
        ids, fresh = [], []
        for key_id, stored in rows:
            purpose = creator_purpose(self._ledger_id, key_id)
            plain = await creator_key_unwrapped_with(self._key_provider, stored, purpose)
            ids.append(key_id)
            fresh.append(await creator_key_wrapped_with(self._key_provider, *present, plain, purpose))
        self._to.execute(
            sql.SQL(
                "UPDATE {} k SET wrapped = x.wrapped FROM unnest(%s::uuid[], %s::bytea[]) AS x (key_id, wrapped)"
                " WHERE k.key_id = x.key_id"
            ).format(incoming),
            (ids, fresh),
        )

    def _seal_sheets_again(self, table: Table) -> list[UUID]:
        """Seal the keys of sheets that are imported in the epoch of the target; return the imports whose key is erased.

        Such a key stays as it is, and opens nowhere.
        """
        incoming = _incoming(table)
        epochs = self._key_provider.epochs
        rows = self._to.execute(
            sql.SQL("SELECT import_id, sealed_key FROM {} WHERE sealed_key IS NOT NULL").format(incoming)
        ).fetchall()
        erased = []
        for import_id, stored in rows:
            purpose = sheet_purpose(import_id)
            try:
                key = epochs.unseal(stored, purpose)
            except EpochKeyMissing:
                erased.append(import_id)
                continue
            fresh = epochs.seal(self._present()[1], key, purpose)
            self._to.execute(
                sql.SQL("UPDATE {} SET sealed_key = %s WHERE import_id = %s").format(incoming), (fresh, import_id)
            )
        return erased

    # -- follow

    def _follow(self) -> None:
        """Copy what was changed meanwhile, until that is little."""
        for _ in range(ROUNDS):
            changes = self._copy_changes()
            self._copy_log()
            if changes <= FEW_CHANGES and self._number(self._from, _HEAD) - self._number(self._to, _HEAD) <= FEW_EVENTS:
                return
            self._say(f"{self._ledger}: {changes:,} changes copied")

    def _copy_changes(self) -> int:
        """Copy rows that were changed; they are forgotten on the source once the target has them."""
        for attempt in range(TRIES):
            try:
                # A row and one that it refers to may be in different pages, so the page grows.
                return self._copy_changed_page(PAGE_CHANGES * (attempt + 1) ** 2)
            except _AGAIN:
                if attempt == TRIES - 1:
                    raise
                self._copy_referred(frozenset(name for table in self._tables for name in table.references))
        return 0

    def _copy_changed_page(self, limit: int) -> int:
        self._require_time()
        with self._from.transaction():
            rows = self._from.execute(_TAKE_CHANGES, (self._ledger_id, limit)).fetchall()
            if not rows:
                return 0
            keys: dict[str, list[Any]] = {}
            for table_name, key in rows:
                keys.setdefault(table_name, []).append(key)
            changed = [table for table in self._tables if table.name in keys and table.name not in LAST]
            with self._to.transaction():
                for table in changed:
                    self._fetch(table, _joined(table, keys[table.name]))
                    self._store(table)
                for table in reversed(changed):
                    self._delete(table, keys[table.name])
            self.reached("changes")
        return len(rows)

    def _delete(self, table: Table, keys: Sequence[Any]) -> None:
        """Delete rows of the target that the source has no more."""
        self._to.execute(
            sql.SQL(
                "DELETE FROM {table} t USING jsonb_populate_recordset(NULL::{table}, {keys}) k"
                " WHERE {same} AND NOT EXISTS (SELECT FROM {incoming} i WHERE {there})"
            ).format(
                table=sql.Identifier(table.name),
                keys=_json(keys),
                same=table.same_key("t", "k"),
                incoming=_incoming(table),
                there=table.same_key("i", "t"),
            )
        )

    # -- switch

    def _switch(self) -> float:
        """Hold the ledger, copy the rest, and end its time on the source; return for how long it was held."""
        self._to.execute(sql.SQL("SET statement_timeout = {}").format(HELD_MS))
        try:
            return self._switch_held()
        finally:
            self._held_until = None
            if not self._to.closed:
                self._to.execute("SET statement_timeout = 0")

    def _require_time(self) -> None:
        """Let go of a ledger that was held for long enough."""
        if self._held_until is not None and time.monotonic() >= self._held_until:
            message = f"the last part took more than {HELD_MS / 1000:g} seconds"
            raise _NotYet(message)

    def _switch_held(self) -> float:
        stage = uuid4()
        with self._from.transaction():
            execute = self._from.execute
            execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT_MS))
            execute(sql.SQL("SET LOCAL statement_timeout = {}").format(HELD_MS))
            execute(sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(HELD_MS + IDLE_MS))
            # In the order in which everyone else locks them: appends first, then whatever else is written.
            row = execute(
                "SELECT name, fingerprint_key FROM ledgers WHERE ledger_id = %s FOR NO KEY UPDATE", (self._ledger_id,)
            ).fetchone()
            began_at = time.monotonic()
            self._held_until = began_at + HELD_MS / 1000
            if row is None:
                message = f"There is no ledger named {self._ledger} on {self._source.name} any more."
                raise MoveError(message)
            name, wrapped = row
            leaving = execute("SELECT 1 FROM departures WHERE ledger_id = %s FOR UPDATE", (self._ledger_id,))
            if leaving.fetchone() is None:
                message = f"The move of ledger {self._ledger} was undone."
                raise MoveError(message)
            self.reached("held")
            row = execute(_ERASING, (self._ledger_id,)).fetchone()
            if row is not None and row[0]:
                raise _NotYet("an erasure is being carried out")
            while self._copy_changes():
                pass
            self._copy_log()
            for table in self._tables:
                if table.name in LAST:
                    self._copy(table)
                elif table.name == SHEETS:
                    # Again: an erasure may have closed them since.
                    self._copy(table, OPEN_SHEETS)
            position = self._compare()
            self._advance_sequence()
            # The master key of either server may have been replaced since the move began.
            key = asyncio.run(self._fingerprint_key(name, wrapped))
            self._to.execute("UPDATE ledgers SET fingerprint_key = %s WHERE ledger_id = %s", (key, self._ledger_id))
            public = execute(
                "SELECT coalesce(array_agg(generation), '{}') FROM log_trees WHERE ledger_id = %s AND public",
                (self._ledger_id,),
            ).fetchone()
            self._to.execute(
                "UPDATE arrivals SET stage = %s, position = %s, public_generations = %s WHERE ledger_id = %s",
                (stage, position, public[0] if public else [], self._ledger_id),
            )
            self.reached("staged")
            self._require_time()
            execute("UPDATE ledgers SET served_by = %s WHERE ledger_id = %s", (self._target.name, self._ledger_id))
            execute(
                "UPDATE departures SET stage = %s, position = %s, moved_at = clock_timestamp() WHERE ledger_id = %s",
                (stage, position, self._ledger_id),
            )
            execute("UPDATE log_trees SET public = false WHERE ledger_id = %s AND public", (self._ledger_id,))
            execute("NOTIFY sparkledger_keys")
            self.reached("switching")
        return time.monotonic() - began_at

    def _compare(self) -> int:
        """Return the last position, which both servers must have.

        Raises:
            MoveError: they do not.

        """
        here, there = (one.execute(_LAST, (self._ledger_id,)).fetchone() or (0, None) for one in (self._from, self._to))
        if here != there:
            raise MoveError(self._differs())
        return int(here[0])

    # -- complete

    def _complete(self) -> int:
        """Let the target serve the ledger; return the last position on the source."""
        row = self._from.execute("SELECT target, stage FROM departure_of(%s)", (self._ledger_id,)).fetchone()
        if row is None or row[0] != self._target.name:
            message = f"Ledger {self._ledger} is not known to have moved to {self._target.name}."
            raise MoveError(message)
        done = self._to.execute("SELECT complete_arrival(%s, %s)", (self._ledger_id, row[1])).fetchone()
        if done is None or not done[0]:
            message = (
                f"Server {self._target.name} has no copy of ledger {self._ledger} that its move has finished. Restore "
                "the database that had it."
            )
            raise MoveError(message)
        self.reached("completed")
        # Reads are entered into the access log a moment after they were answered.
        until = time.monotonic() + self.linger_s
        while self._copy_changes() or time.monotonic() < until:
            time.sleep(min(PAUSE_S, self.linger_s))
        return self._number(self._to, _HEAD)

    def _advance_sequence(self) -> None:
        """Let numbers that the target gives come after those that have moved; they never go back."""
        self._to.execute(
            "SELECT setval('webhook_attempts_attempt_id_seq', m.last)"
            " FROM (SELECT max(attempt_id) AS last FROM webhook_attempts WHERE ledger_id = %s) m"
            " WHERE m.last > (SELECT last_value FROM webhook_attempts_attempt_id_seq)",
            (self._ledger_id,),
        )


class _NotYet(Exception):
    """The ledger cannot be switched at this moment."""


def forget(ledger: str, server: Server, say: Callable[[str], None]) -> None:
    """Remove the copy of a ledger that has moved away from a server.

    Raises:
        MoveError: there is none, or the server serves it.

    """
    with _connected(server) as connection:
        row = connection.execute(_LEDGER, (ledger,)).fetchone()
        moved = connection.execute(
            "SELECT moved_at FROM departures d JOIN ledgers l USING (ledger_id) WHERE l.name = %s", (ledger,)
        ).fetchone()
        if row is None or row[5] is None or moved is None or moved[0] is None:
            message = f"Server {server.name} has no copy of ledger {ledger} that it does not serve."
            raise MoveError(message)
        if connection.execute("SELECT 1 FROM departure_changes WHERE ledger_id = %s LIMIT 1", (row[0],)).fetchone():
            message = (
                f"Not all entries of the access log were copied yet: run `sparkledger ledgers move {ledger} --to "
                f"{row[5]}` again first."
            )
            raise MoveError(message)
        tables = tables_of(connection)
        _drop_triggers(connection, tables, row[0])
        _remove(connection, tables, row[0], say)


def _remove(
    connection: psycopg.Connection[Any],
    tables: Sequence[Table],
    ledger_id: int,
    say: Callable[[str], None],
    reached: Callable[[str], None] = lambda _: None,
) -> None:
    """Delete what a server has of a ledger that it does not serve, and what views made of it.

    What says whose copy it is goes last and at once, so that a command that was interrupted can be run again. Erasures
    stay: the server's worker ends the epoch of the keys that are removed here.
    """
    row = connection.execute("SELECT name FROM ledgers WHERE ledger_id = %s", (ledger_id,)).fetchone()
    if row is None:
        return
    with connection.transaction():
        removed = connection.execute(_REMOVE_KEYS, {"ledger": ledger_id}).fetchone()
        if removed is not None and removed[0]:
            connection.execute(_END_EPOCH, (ledger_id, NOBODY))
    reached("keys removed")
    _remove_views(connection, ledger_id)
    names = [table.name for table in reversed(tables) if table.name != "erasures"]
    for name in [*names, *(name for name in STAYS if name not in {"view_positions", *_REGISTERED})]:
        for _ in _deleted_pages(connection, name, ledger_id):
            say(f"{row[0]}: removing {name}")
            reached(f"removing {name}")
    with connection.transaction():
        for name in _REGISTERED:
            connection.execute(sql.SQL("DELETE FROM {} WHERE ledger_id = {}").format(sql.Identifier(name), ledger_id))


def _delete_pages(connection: psycopg.Connection[Any], name: str, ledger_id: int) -> None:
    for _ in _deleted_pages(connection, name, ledger_id):
        pass


def _deleted_pages(connection: psycopg.Connection[Any], name: str, ledger_id: int) -> Iterator[int]:
    """Delete a ledger's rows of a table in pages, and yield after each."""
    delete = sql.SQL(
        "DELETE FROM {0} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {0} WHERE ledger_id = {1} LIMIT {2}))"
    ).format(sql.Identifier(name), ledger_id, PAGE_DELETED)
    while count := connection.execute(delete).rowcount:
        yield count


def _remove_views(connection: psycopg.Connection[Any], ledger_id: int) -> None:
    """Delete what views made of a ledger, with the rights of their owner."""
    names = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger_id'"
        " WHERE c.relkind = 'r' AND c.relnamespace = 'views'::regnamespace"
    ).fetchall()
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(WORKER)))
    with connection.transaction():
        # Anyone who fills a view compares its position in the same transaction.
        connection.execute("DELETE FROM view_positions WHERE ledger_id = %s", (ledger_id,))
        for (name,) in names:
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE ledger_id = {}").format(sql.Identifier("views", name), ledger_id)
            )
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(MOVER)))


def _drop_triggers(connection: psycopg.Connection[Any], tables: Sequence[Table], ledger_id: int) -> None:
    names = [f"departure_of_{ledger_id}_{suffix}" for suffix in ("changed", "deleted")]
    there = {
        (row[0], row[1])
        for row in connection.execute(
            "SELECT c.relname, g.tgname FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid"
            " WHERE g.tgname = ANY (%s)",
            (names,),
        ).fetchall()
    }
    for table in tables:
        drops = [
            sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(name), sql.Identifier(table.name))
            for name in names
            if (table.name, name) in there
        ]
        if drops:
            _as_owner(connection, *drops)


def _as_owner(connection: psycopg.Connection[Any], *statements: sql.Composed) -> None:
    """Run statements on one table as its owner, without holding up others for long."""
    connection.execute("RESET ROLE")
    try:
        for attempt in range(SWITCHES):
            try:
                with connection.transaction():
                    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT_MS))
                    for statement in statements:
                        connection.execute(statement)
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                if attempt == SWITCHES - 1:
                    raise
                time.sleep(PAUSE_S)
    finally:
        if not connection.closed:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(MOVER)))


def _incoming(table: Table) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"incoming_{table.name}")


def _json(keys: Sequence[Any]) -> sql.Composed:
    return sql.SQL("{}::jsonb").format(sql.Literal(orjson.dumps(keys).decode()))


def _joined(table: Table, keys: Sequence[Any]) -> sql.Composed:
    """Return what limits a selection of the table `t` to the rows with these keys."""
    return sql.SQL("JOIN (SELECT DISTINCT {} FROM jsonb_populate_recordset(NULL::{}, {})) k ON {}").format(
        sql.SQL(", ").join(map(sql.Identifier, table.key)),
        sql.Identifier(table.name),
        _json(keys),
        table.same_key("t", "k"),
    )


def _connected(server: Server) -> psycopg.Connection[Any]:
    connection: psycopg.Connection[Any] = ServerConnection.connect(
        server.owner,
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="sparkledger move",
        options="-c statement_timeout=0 -c timezone=UTC",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
    )
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(MOVER)))
    return connection
