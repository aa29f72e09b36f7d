"""Imports that the worker carries out, as they are stored: the sheet, sealed, how far it is, and the report.

A sheet has codes in it. It is sealed in pieces under a key of its own, which no erasure outlives, and deleted in the
transaction that ends its import. The report has none, but ids of creators and videos: it is sealed under a key derived
from the ledger's, and deleted after some days.

    waiting      accepted; no worker has begun it
    running      a worker is at work, or another one will go on with it
    ended        every row was judged, and recorded where it could be
    failed       it cannot go on; `error` says why. What was recorded until then stays.
    cancelled    somebody has stopped it. What was recorded until then stays.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Literal, LiteralString

import orjson
from cryptography.exceptions import InvalidTag

from infra.auth.access_log import record_within
from infra.auth.key_admin import lock_valid_key
from infra.crypto.envelope import SealingKey, fresh_key
from infra.crypto.keyring import KeyErased, StoredKeyAltered, sheet_purpose
from infra.errors import IdempotencyMismatch, KeyNoLongerValid, Unavailable
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.auth.access_log import Access
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

RunState = Literal["waiting", "running", "ended", "failed", "cancelled"]
Kind = Literal["sheet", "report"]
# Of a ledger, at a time. With the largest file, this is what is stored of a ledger's sheets.
MAX_OPEN_RUNS: Final = 4
# Of all ledgers of a server; the database has this limit, in `accept_import`.
MAX_OPEN_MIB: Final = 1024
KEEP_DAYS: Final = 30
# Of a ledger, with their reports: older ones are deleted before their time.
MAX_ENDED_RUNS: Final = 200
# An import that no worker has ended by then fails. The database knows this limit too, in `carries_out_import`.
OPEN_DAYS: Final = 7
PIECE_BYTES: Final = 1024 * 1024
# After so many starts without a row done, an import is given up: it may be what ends the worker.
MAX_VAIN_STARTS: Final = 5
# How long one waits that was interrupted, at first, and at most.
RETRY_FIRST_S: Final = 5
RETRY_MAX_S: Final = 300
# After how long a sheet is sent again for which there was no room.
RETRY_FULL_S: Final = 60
START_BYTES: Final = 4
_REPORTS: Final = "reports of imports v1"
_GONE_ON: Final = "Another worker has gone on with this import, or it has ended."
ERASING: Final = "An erasure began while the sheet was stored, so it was not. Send it again."
FULL: Final = (
    "Too many large sheets wait for the worker of this server. This one was not stored, and nothing of it was "
    "recorded. Send it again later."
)
_INCOMPLETE: Final = "Something of this report is missing: it was deleted meanwhile, or altered."
TOO_OLD: Final = (
    f"No worker has carried this import out within {OPEN_DAYS} days. Start a worker with the part `imports`, and send "
    "the sheet again: rows that are recorded are known."
)

UNBEGUN: Final = "It was cancelled before a worker began it. Nothing was recorded."

_COLUMNS: Final = """
    import_id, ledger_id, key_id, role, asked, file_sha256, rows, state, rows_done, counts, error, starts, vain_starts,
    cancelled_by, requested_at, started_at, ended_at
"""
_ONE: Final = f"SELECT {_COLUMNS} FROM import_runs WHERE ledger_id = %s AND import_id = %s"
_PAGE: Final = f"""
    SELECT {_COLUMNS}
    FROM import_runs
    WHERE ledger_id = %s
    AND import_id < %s
    ORDER BY import_id DESC
    LIMIT %s
"""
# Of the ledger that has waited longest since one of its imports was tried or ended, and of its imports the one that has
# waited longest. So one that cannot go on takes the turns of its own ledger only.
_NEXT: Final = f"""
    SELECT {_COLUMNS}
    FROM import_runs r
    WHERE ended_at IS NULL
    AND (retry_at IS NULL OR retry_at <= now())
    AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = r.ledger_id) -- that this server serves
    ORDER BY greatest(
                 (SELECT max(o.ended_at) FROM import_runs o WHERE o.ledger_id = r.ledger_id),
                 (SELECT max(o.tried_at) FROM import_runs o WHERE o.ledger_id = r.ledger_id AND o.ended_at IS NULL)
             ) NULLS FIRST,
             coalesce(tried_at, requested_at), import_id
    LIMIT 1
"""
_LOCK_COUNT: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_COUNT: Final = "SELECT count(*) FROM import_runs WHERE ledger_id = %s AND ended_at IS NULL"
# With the same Idempotency-Key, or the same in every respect while it is open.
_REPEATED: Final = """
    SELECT import_id, asked->>'request' IS NOT DISTINCT FROM %(request)s, file_sha256, asked->'query'
    FROM import_runs
    WHERE ledger_id = %(ledger)s
    AND key_id = %(key)s
    AND role = %(role)s
    AND (asked->>'request' = %(request)s
        OR (ended_at IS NULL AND cancelled_by IS NULL AND file_sha256 = %(sha256)s
            AND asked - 'request' = %(asked)s::jsonb - 'request'))
    ORDER BY (asked->>'request' = %(request)s) DESC NULLS LAST, import_id
    LIMIT 1
"""
_ACCEPT: Final = "SELECT accept_import(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_KEY: Final = "SELECT sealed_key FROM import_runs WHERE ledger_id = %s AND import_id = %s"
_ADD_PART: Final = "INSERT INTO import_parts (import_id, ledger_id, kind, number, sealed) VALUES (%s, %s, %s, %s, %s)"
_PART: Final = """
    SELECT number, sealed
    FROM import_parts
    WHERE ledger_id = %s
    AND import_id = %s
    AND kind = %s
    AND number > %s
    ORDER BY number
    LIMIT 1
"""
_CANCEL: Final = "SELECT cancel_import(%s, %s, %s, %s, %s)"
_START: Final = """
    UPDATE import_runs
    SET state = 'running', started_at = coalesce(started_at, now()), tried_at = now(), starts = starts + 1,
        vain_starts = vain_starts + 1
    WHERE import_id = %s
    AND starts = %s
    AND ended_at IS NULL
"""
_AFTER_APPENDS: Final = "SELECT after_appends(%s)"
# What was away may be away for this import alone, and for days: so each time it waits longer.
_INTERRUPTED: Final = """
    UPDATE import_runs
    SET vain_starts = greatest(vain_starts - 1, 0),
        retry_at = now() + make_interval(secs => least(%s, %s * 2 ^ least(starts - 1, 30)))
    WHERE import_id = %s
    AND starts = %s
    AND ended_at IS NULL
"""
# Compared with the start, because a worker that has lost its lead may still be at work.
_REACHED: Final = """
    UPDATE import_runs
    SET rows_done = %s, counts = %s, vain_starts = 0
    WHERE import_id = %s
    AND starts = %s
    AND ended_at IS NULL
    RETURNING cancelled_by
"""
_END: Final = """
    UPDATE import_runs
    SET state = %s, error = %s, ended_at = now(), sealed_key = NULL
    WHERE import_id = %s
    AND starts = %s
    AND ended_at IS NULL
"""
_DELETE_SHEET: Final = "DELETE FROM import_parts WHERE import_id = %s AND kind = 'sheet'"
_FIGURES: Final = "SELECT * FROM import_figures()"
_GIVE_UP: Final = """
    WITH given_up AS (
        UPDATE import_runs
        SET state = 'failed', error = %s, ended_at = now(), sealed_key = NULL
        WHERE ended_at IS NULL
        AND requested_at < now() - make_interval(days => %s)
        AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = import_runs.ledger_id) -- that this server serves
        RETURNING import_id
    )
    DELETE FROM import_parts WHERE kind = 'sheet' AND import_id IN (SELECT import_id FROM given_up)
"""
_PURGE: Final = """
    DELETE FROM import_runs WHERE import_id IN (
        (SELECT import_id FROM import_runs WHERE ended_at < now() - make_interval(days => %(days)s))
        UNION ALL
        (
            SELECT r.import_id
            FROM ledgers l
            CROSS JOIN LATERAL (
                SELECT import_id
                FROM import_runs
                WHERE ledger_id = l.ledger_id
                AND ended_at IS NOT NULL
                ORDER BY ended_at DESC
                OFFSET %(keep)s
            ) r
        )
        LIMIT %(rows)s
    )
"""


class TooManyRuns(Exception):
    """The ledger has as many imports under way as it may have."""


class StoredSheetAltered(Exception):
    """What is stored of a sheet does not open, or is not the file that was sent."""


class RunNotFound(LookupError):
    """There is no such import in this ledger, or not any more."""


class Cancelled(Exception):
    """Somebody has cancelled the import."""


@dataclass(frozen=True, slots=True)
class ImportRun:
    """An import that the worker carries out.

    Attributes:
        import_id: its id, which its events name.
        key_id, role: with which key, and as what, it was sent.
        asked: the parameters of the request, what its mapping said, and what was allowed then.
        rows: how many rows of data it has; `rows_done` of them were judged and recorded.
        counts: how many of these had each fate.
        error: why it failed or was cancelled.
        starts: how often a worker has begun it or gone on with it; `vain_starts` of them since a row was last done.
        cancelled_by: the key that has cancelled it.

    """

    import_id: UUID
    ledger_id: int
    key_id: UUID
    role: Role
    asked: Mapping[str, Any]
    file_sha256: str
    rows: int
    state: RunState
    rows_done: int
    counts: Mapping[str, int]
    error: str | None
    starts: int
    vain_starts: int
    cancelled_by: UUID | None
    requested_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def proof(self) -> bytes:
        """What its worker presents to `append` in place of a key's token, after `start`."""
        return self.import_id.bytes + (self.starts + 1).to_bytes(START_BYTES, "big")


@dataclass(frozen=True, slots=True)
class Progress:
    """How an import went on from a row to another: how many rows had each fate so far, and the report's new lines."""

    before: int
    now: int
    counts: Mapping[str, int]
    lines: bytes


@dataclass(frozen=True, slots=True)
class ImportFigures:
    """How many imports of all ledgers are open, since when the oldest of them is, and how many have failed."""

    open: int
    oldest: datetime | None
    failed: int


class ImportRuns:
    """Stores imports for the worker, and says how far they are."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the database, and the keys from which those of sheets are derived."""
        self._database = database
        self._keyring = keyring

    async def add(
        self,
        import_id: UUID,
        ledger_id: int,
        *,
        key_id: UUID,
        role: Role,
        asked: Mapping[str, Any],
        file: IO[bytes],
        file_sha256: str,
        rows: int,
        first_line: bytes,
        access: Access,
    ) -> tuple[UUID, bool]:
        """Store an import for the worker, unless it is there already.

        It is there if the same key has sent the same file with the same options, and that import is open. Or if its
        request had the same Idempotency-Key, of which `asked` has a hash as `request`.

        Args:
            import_id: its id.
            ledger_id: the ledger.
            key_id: the key that sent it, whose token this process has.
            role: as what it was sent.
            asked: what it takes to read the sheet as it was asked for.
            file: the sheet as it was sent.
            file_sha256: its SHA-256.
            rows: how many rows of data it has.
            first_line: the first line of its report.
            access: the entry of the access log, which is recorded with it.

        Returns:
            The id of the import, which is another one if it was there already, and whether it was named by the same
            Idempotency-Key.

        Raises:
            IdempotencyMismatch: another file or other options were sent with this Idempotency-Key.
            TooManyRuns: the ledger has reached its limit.
            Unavailable: the server has; or the database is away.
            KeyNoLongerValid: the key was revoked in the meantime.

        """
        reports, key = await self._reports(ledger_id), fresh_key()
        sealed_key = await self._keyring.seal_until_erasure(ledger_id, key, sheet_purpose(import_id))
        text, token, sheets = orjson.dumps(asked).decode(), self._database.tokens.key(key_id), SealingKey(key)
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, ledger_id, key_id)
            await record_within(connection, ledger_id, access)
            await connection.execute(_LOCK_COUNT, (AdvisoryLock.IMPORT_COUNT, ledger_id))
            repeated = {
                "ledger": ledger_id,
                "key": key_id,
                "role": role,
                "request": asked.get("request"),
                "sha256": file_sha256,
                "asked": text,
            }
            row = await (await connection.execute(_REPEATED, repeated)).fetchone()
            if row is not None:
                first_id, is_named, first_sha256, first_query = row
                if (first_sha256, first_query) != (file_sha256, asked["query"]):
                    raise IdempotencyMismatch
                return first_id, is_named and "request" in asked
            row = await (await connection.execute(_COUNT, (ledger_id,))).fetchone()
            if row is None or row[0] >= MAX_OPEN_RUNS:
                raise TooManyRuns
            size = file.seek(0, os.SEEK_END)
            accepting = (key_id, token, ledger_id, role, import_id, text, file_sha256, size, rows, sealed_key)
            row = await (await connection.execute(_ACCEPT, accepting)).fetchone()
            if row is None or row[0] == "key":
                raise KeyNoLongerValid
            if row[0] == "full":
                raise Unavailable(FULL, RETRY_FULL_S)
            if row[0] == "epoch":
                raise Unavailable(ERASING)
            file.seek(0)
            number = 0
            while piece := file.read(PIECE_BYTES):
                number += 1
                sealed = sheets.seal(piece, _place(import_id, "sheet", number))
                await connection.execute(_ADD_PART, (import_id, ledger_id, "sheet", number, sealed))
            sealed = reports.seal(zlib.compress(first_line), _place(import_id, "report", 0))
            await connection.execute(_ADD_PART, (import_id, ledger_id, "report", 0, sealed))
        return import_id, False

    async def find(self, ledger_id: int, import_id: UUID) -> ImportRun:
        """Return an import.

        Raises:
            RunNotFound: there is none with this id.

        """
        rows = await self._rows(ledger_id, _ONE, (ledger_id, import_id))
        if not rows:
            raise RunNotFound
        return ImportRun(*rows[0])

    async def page(self, ledger_id: int, before: UUID, limit: int) -> list[ImportRun]:
        """Return imports of a ledger, newest first, from before one on."""
        return [ImportRun(*row) for row in await self._rows(ledger_id, _PAGE, (ledger_id, before, limit))]

    async def report(self, run: ImportRun) -> AsyncGenerator[bytes]:
        """Yield the lines of an import's report, as far as it is, some at a time.

        Raises:
            Unavailable: something of it is not there, or not any more.

        """
        sealing, number, following = await self._reports(run.ledger_id), -1, 0
        while (part := await self._part(run, "report", number)) is not None:
            number, sealed = part
            if number != following:
                raise Unavailable(_INCOMPLETE)
            lines = zlib.decompress(sealing.unseal(sealed, _place(run.import_id, "report", number)))
            # A piece is numbered by the first of its rows, which are counted from 1.
            following = number + lines.count(b"\n")
            yield lines
        if following <= run.rows_done:
            raise Unavailable(_INCOMPLETE)

    async def cancel(self, ledger_id: int, key_id: UUID, import_id: UUID, access: Access) -> None:
        """Have an import cancelled, if it has not ended: at once, or at the next note of the worker that has begun it.

        The entry of the access log is recorded with that.

        Raises:
            RunNotFound: there is none with this id.
            KeyNoLongerValid: the key was revoked in the meantime.

        """
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, ledger_id, key_id)
            cancelling = (key_id, self._database.tokens.key(key_id), ledger_id, import_id, UNBEGUN)
            row = await (await connection.execute(_CANCEL, cancelling)).fetchone()
            if row is None or row[0] is None:
                raise KeyNoLongerValid
            if not row[0]:
                raise RunNotFound
            await record_within(connection, ledger_id, access)

    async def next(self) -> ImportRun | None:
        """Return the import that is next, of all ledgers of this server; None if none is open."""
        rows = await self._rows(None, _NEXT, ())
        return ImportRun(*rows[0]) if rows else None

    async def start(self, run: ImportRun) -> None:
        """Note that this process carries an import out, and let it record in the name of the key that has sent it.

        What another worker has recorded of it until then is read from then on, and it records no more.

        Raises:
            Unavailable: another worker has gone on with it.
            KeyNoLongerValid: the key was revoked or has expired.
            Cancelled: somebody has cancelled it.

        """
        async with self._changing(run.ledger_id) as connection:
            await connection.execute(_AFTER_APPENDS, (run.ledger_id,))
            if (await connection.execute(_START, (run.import_id, run.starts))).rowcount == 0:
                raise Unavailable(_GONE_ON)
        self._database.tokens.admit_key(run.key_id, run.proof)
        if run.cancelled_by is not None:
            raise Cancelled
        async with self._changing(run.ledger_id) as connection:
            await lock_valid_key(connection, run.ledger_id, run.key_id)

    async def interrupted(self, run: ImportRun) -> None:
        """Note that this process cannot go on with an import for now: this start says nothing against it.

        It is tried again later, and others meanwhile.

        Raises:
            Unavailable: the database is away.

        """
        async with self._changing(run.ledger_id) as connection:
            await connection.execute(_INTERRUPTED, (RETRY_MAX_S, RETRY_FIRST_S, run.import_id, run.starts + 1))

    async def open(self, run: ImportRun, file: IO[bytes]) -> None:
        """Write the sheet of an import into a file.

        Raises:
            StoredSheetAltered: something of it does not open, or is not what was sent.
            KeyErased: an erasure has destroyed the key of the sheet.

        """
        stored, purpose = await self._sealed_key(run), sheet_purpose(run.import_id)
        try:
            key = await self._keyring.open_until_erasure(run.ledger_id, stored, purpose)
        except KeyErased:
            # It may have been sealed again in the next epoch after it was read.
            again = await self._sealed_key(run)
            if again == stored:
                raise
            key = await self._keyring.open_until_erasure(run.ledger_id, again, purpose)
        except StoredKeyAltered:
            raise StoredSheetAltered from None
        sealing = SealingKey(key)
        number, digest = 0, hashlib.sha256()
        try:
            while (part := await self._part(run, "sheet", number)) is not None:
                number, sealed = part
                piece = sealing.unseal(sealed, _place(run.import_id, "sheet", number))
                digest.update(piece)
                file.write(piece)
        except (InvalidTag, ValueError):
            raise StoredSheetAltered from None
        if digest.hexdigest() != run.file_sha256:
            raise StoredSheetAltered
        file.flush()

    async def reached(self, run: ImportRun, progress: Progress) -> None:
        """Note how far an import is, with the lines of its report: both or neither.

        Raises:
            Unavailable: another worker has gone on with it.
            KeyNoLongerValid: the key that has sent it was revoked or has expired. How far it is, is noted.
            Cancelled: somebody has cancelled it. How far it is, is noted.

        """
        async with self._changing(run.ledger_id) as connection:
            cancelled_by = await self._reach(connection, run, progress)
        if cancelled_by is not None:
            raise Cancelled
        async with self._changing(run.ledger_id) as connection:
            await lock_valid_key(connection, run.ledger_id, run.key_id)

    async def end(self, run: ImportRun, progress: Progress) -> None:
        """End an import of which all rows are done, with the last lines of its report, and delete its sheet.

        Raises:
            Unavailable: another worker has gone on with it.

        """
        async with self._changing(run.ledger_id) as connection:
            await self._reach(connection, run, progress)
            await _end(connection, run, "ended", None)

    async def stop(
        self, run: ImportRun, state: Literal["failed", "cancelled"], error: str, progress: Progress | None
    ) -> None:
        """End an import that this process has started and that does not go on, and delete its sheet.

        Args:
            run: the import.
            state: how it ends.
            error: why, and what to do.
            progress: how far it went since the last note, if it did.

        Raises:
            Unavailable: another worker has gone on with it.

        """
        async with self._changing(run.ledger_id) as connection:
            if progress is not None:
                await self._reach(connection, run, progress)
            await _end(connection, run, state, error)

    async def _reach(self, connection: LedgerConnection, run: ImportRun, progress: Progress) -> UUID | None:
        """Note how far an import is; return who has cancelled it."""
        reached = (progress.now, orjson.dumps(progress.counts).decode(), run.import_id, run.starts + 1)
        row = await (await connection.execute(_REACHED, reached)).fetchone()
        if row is None:
            raise Unavailable(_GONE_ON)
        number = progress.before + 1
        sealing = await self._reports(run.ledger_id)
        sealed = sealing.seal(zlib.compress(progress.lines), _place(run.import_id, "report", number))
        await connection.execute(_ADD_PART, (run.import_id, run.ledger_id, "report", number, sealed))
        cancelled_by: UUID | None = row[0]
        return cancelled_by

    async def _rows(self, ledger_id: int | None, query: LiteralString, parameters: Sequence[Any]) -> list[Any]:
        async def rows(connection: LedgerConnection) -> list[Any]:
            return await (await connection.execute(query, parameters)).fetchall()

        return await self._database.read(ledger_id, rows)

    async def _sealed_key(self, run: ImportRun) -> bytes:
        [(stored,)] = await self._rows(run.ledger_id, _KEY, (run.ledger_id, run.import_id))
        if stored is None:
            raise Unavailable(_GONE_ON)
        return bytes(stored)

    async def _part(self, run: ImportRun, kind: Kind, after: int) -> tuple[int, bytes] | None:
        rows = await self._rows(run.ledger_id, _PART, (run.ledger_id, run.import_id, kind, after))
        return (rows[0][0], bytes(rows[0][1])) if rows else None

    async def _reports(self, ledger_id: int) -> SealingKey:
        return SealingKey((await self._keyring.ledger(ledger_id)).derived(_REPORTS))

    @asynccontextmanager
    async def _changing(self, ledger_id: int) -> AsyncIterator[LedgerConnection]:
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            yield connection


async def import_figures(database: Database) -> ImportFigures:
    """Return how imports are, for metrics. Both database roles may ask."""

    async def figures(connection: LedgerConnection) -> ImportFigures:
        row: Any = await (await connection.execute(_FIGURES)).fetchone()
        return ImportFigures(*row)

    return await database.read(None, figures)


async def purge(connection: LedgerConnection, rows: int) -> int:
    """Give up imports that have been open for too long, and delete old ones with their reports; return how many.

    Old is one that ended days ago, or before many others of its ledger.
    """
    await connection.execute(_GIVE_UP, (TOO_OLD, OPEN_DAYS))
    limits = {"days": KEEP_DAYS, "keep": MAX_ENDED_RUNS, "rows": rows}
    return (await connection.execute(_PURGE, limits)).rowcount


async def _end(connection: LedgerConnection, run: ImportRun, state: RunState, error: str | None) -> None:
    if (await connection.execute(_END, (state, error, run.import_id, run.starts + 1))).rowcount == 0:
        raise Unavailable(_GONE_ON)
    await connection.execute(_DELETE_SHEET, (run.import_id,))


def _place(import_id: UUID, kind: Kind, number: int) -> bytes:
    """Return what a piece is bound to, so that it is not taken for another one."""
    return f"{kind} {number}".encode() + b"\0" + import_id.bytes
