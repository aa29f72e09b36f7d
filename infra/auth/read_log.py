"""Reads that leave a trace without being held up by it: lists, one code, look-ups.

What somebody read is noted when it is answered, and written to the access log within a second: one entry for each key,
route and subject a minute, with the number of reads. A process that is killed loses what it noted in the last second.
Reads of the trail, of histories, of answers to the question, and exports are recorded by `access_log` before they are
answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import psycopg

from infra.errors import Unavailable
from infra.ids import uuid7
from projections.engine.array_columns import Bigints, Ints, Texts, Uuids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.postgres.pool import Database

# Reads within this time are written together.
GATHER_S: Final = 0.7
# Entries that wait to be written, of all ledgers. If they cannot be written, no more reads are answered.
MAX_PENDING: Final = 50_000
MAX_ROWS: Final = 2_000
# At the end of a process, what was noted last must be written within this time.
LAST_WITHIN_S: Final = 1.0
_MINUTE_S: Final = 60

_WRITE: Final = """
    INSERT INTO accesses AS a (
        ledger_id, access_id, together, key_id, role, route, query, format, request_id, reads, row_count, complete,
        ended_at, counted, code_id, creator_id, video_id)
    SELECT %b, x.access_id, x.together, x.key_id, x.role, x.route, x.query::jsonb, 'application/json', x.request_id,
           x.reads, x.row_count, true, now(), true, x.code_id, x.creator_id, x.video_id
    FROM unnest(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
        AS x (access_id, together, key_id, role, route, query, request_id, reads, row_count, code_id, creator_id,
              video_id)
    ON CONFLICT (ledger_id, together) DO UPDATE
    SET reads = a.reads + excluded.reads,
        row_count = a.row_count + excluded.row_count,
        ended_at = excluded.ended_at
    WHERE a.counted
"""

_CANNOT_RECORD: Final = "Reads cannot be recorded now, so they are not answered. Try again in a moment."

log = logging.getLogger(__name__)


class Read(NamedTuple):
    """What equal reads of a minute have in common.

    Attributes:
        key_id: the key of the request.
        role: the key's role.
        route: the template of the address.
        query: what was asked, as JSON.
        code_id: the code that was read, if it was one.
        creator_id: the creator whose code or permission was read, or who was asked for.
        video_id: the video whose code was read, or that was asked for.

    """

    key_id: UUID
    role: str
    route: str
    query: bytes
    code_id: UUID | None
    creator_id: str | None
    video_id: str | None


class _Count:
    """How often something was read."""

    __slots__ = ("read", "reads", "request_id", "rows")

    def __init__(self, read: Read, request_id: str) -> None:
        self.read = read
        self.reads = 0
        self.rows = 0
        self.request_id = request_id


class ReadLog:
    """Notes reads, and writes them to the access log."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database
        self._pending: dict[int, dict[tuple[object, ...], _Count]] = {}
        self._entries = 0
        self._writing: asyncio.Task[None] | None = None
        # One write at a time: the next one returns only when what the one before has taken is written.
        self._one_write = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._failed = False

    def note(self, ledger_id: int, read: Read, rows: int, request_id: str) -> None:
        """Note a read that is about to be answered.

        Args:
            ledger_id: the ledger.
            read: who reads what.
            rows: how many entries the answer has.
            request_id: the id of the request in our logs; the entry has that of its first read.

        Raises:
            Unavailable: too much that was noted could not be written.

        """
        if self._entries >= MAX_PENDING:
            raise Unavailable(_CANNOT_RECORD)
        self._count(ledger_id, read, rows, request_id)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="read log")

    async def stop(self) -> None:
        """Write what was noted, and stop."""
        self._stopping.set()
        if self._writing is not None:
            await self._writing

    async def write(self) -> None:
        """Write what was noted until now; what cannot be written is kept."""
        async with self._one_write:
            await self._write_pending()

    async def _write_pending(self) -> None:
        pending, self._pending, self._entries = self._pending, {}, 0
        left = [
            (ledger_id, list(counts.values())[first : first + MAX_ROWS])
            for ledger_id, counts in pending.items()
            for first in range(0, len(counts), MAX_ROWS)
        ]
        try:
            while left:
                await self._write_part(*left[-1])
                left.pop()
            self._failed = False
        except (Unavailable, psycopg.Error) as error:
            if not self._failed:
                log.warning("Reads cannot be written to the access log now: %s", error)
            self._failed = True
        finally:
            # Also what was cut off by the end of the process, to be counted as lost.
            for ledger_id, part in left:
                for count in part:
                    self._count(ledger_id, count.read, count.rows, count.request_id, count.reads)

    def _count(self, ledger_id: int, read: Read, rows: int, request_id: str, reads: int = 1) -> None:
        counts = self._pending.setdefault(ledger_id, {})
        # By the numbers of ids: a UUID's own hash and comparison are computed in Python.
        key_id, *more, code_id, creator_id, video_id = read
        same = (key_id.int, *more, None if code_id is None else code_id.int, creator_id, video_id)
        count = counts.get(same)
        if count is None:
            count = counts[same] = _Count(read, request_id)
            self._entries += 1
        count.reads += reads
        count.rows += rows

    async def _write(self) -> None:
        while self._pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._stopping.wait()
            if self._stopping.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WITHIN_S):
                        await self.write()
                if self._entries:
                    log.warning("%d entries of the access log were lost: they could not be written.", self._entries)
                return
            await self.write()

    async def _write_part(self, ledger_id: int, part: Sequence[_Count]) -> None:
        # The minute in which it is written: an entry is never added to long after it was made.
        minute = b"%d" % (time.time() // _MINUTE_S)
        # In one order everywhere, so that two processes never wait for each other's rows crosswise.
        rows = sorted(((_group(minute, count.read), count.read, count) for count in part), key=itemgetter(0))
        columns = (
            Uuids([uuid7() for _ in rows]),
            Uuids([UUID(bytes=group) for group, _, _ in rows]),
            Uuids([read.key_id for _, read, _ in rows]),
            Texts([read.role for _, read, _ in rows]),
            Texts([read.route for _, read, _ in rows]),
            Texts([read.query.decode() for _, read, _ in rows]),
            Texts([count.request_id for _, _, count in rows]),
            Ints([count.reads for _, _, count in rows]),
            Bigints([count.rows for _, _, count in rows]),
            Uuids([read.code_id for _, read, _ in rows]),
            Texts([read.creator_id for _, read, _ in rows]),
            Texts([read.video_id for _, read, _ in rows]),
        )
        async with self._database.connection(ledger_id) as connection:
            await connection.execute(_WRITE, (ledger_id, *columns), prepare=True)


def _group(minute: bytes, read: Read) -> bytes:
    """Return the 16 bytes that equal reads of a minute share, in every process."""
    parts = (
        minute,
        read.key_id.bytes,
        read.route.encode(),
        read.query,
        b"" if read.code_id is None else read.code_id.bytes,
        (read.creator_id or "").encode(),
        (read.video_id or "").encode(),
    )
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
