"""The log of who read the trail: written before an answer is given, so that no read goes unrecorded.

Accesses that wait together are one insert and one commit. What hands out more than one answer holds, an export, is
recorded when it begins and once more when it ends. What cannot be recorded is not answered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

import orjson

from infra.ids import first_uuid7, uuid7
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import Bigints, Ints, Texts, Uuids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.values import Role
    from infra.postgres.pool import Database, LedgerConnection

# A year and a month: who audits once a year still finds who audited a year ago.
KEEP_ACCESSES_DAYS: Final = 400
# The role of whoever sits at the machine and uses the command line, with no key.
MACHINE_ROLE: Final = "machine"
# Whose reads of an hour are one entry: services that ask again and again for what is new.
TOLD_TOGETHER: Final = "subscriber"

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=2**128 - 1)

_RECORD: Final = """
    INSERT INTO accesses AS a (
        ledger_id, access_id, together, key_id, role, route, query, format, request_id, reads, row_count, complete,
        ended_at)
    SELECT %b, x.access_id, x.together, x.key_id, x.role, x.route, x.query::jsonb, x.format, x.request_id, x.reads,
           x.row_count, x.complete::boolean, CASE WHEN x.complete IS NOT NULL THEN now() END
    FROM unnest(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
        AS x (access_id, together, key_id, role, route, query, format, request_id, reads, row_count, complete)
    ON CONFLICT (ledger_id, together) DO UPDATE
    SET reads = a.reads + excluded.reads,
        row_count = a.row_count + excluded.row_count,
        complete = excluded.complete,
        ended_at = excluded.ended_at
    WHERE a.role = 'subscriber'
    RETURNING a.together, a.access_id
"""

_END: Final = """
    UPDATE accesses
    SET row_count = %b, complete = %b, ended_at = now()
    WHERE ledger_id = %b
    AND access_id = %b
    AND ended_at IS NULL
"""

_PAGE: Final = """
    SELECT access_id, at, key_id, role, route, query, format, request_id, reads, row_count, complete, ended_at, refused,
           sealed
    FROM accesses
    WHERE ledger_id = %(ledger_id)s
    AND access_id < %(before)s
    AND access_id > %(after)s
    {further}
    ORDER BY access_id {direction}
    LIMIT %(limit)s
"""
_WITH_KEY: Final = "AND key_id = %(key_id)s"
_AT_THE_MACHINE: Final = "AND key_id IS NULL"
_SINCE: Final = "AND at >= %(since)s"
_UNTIL: Final = "AND at < %(until)s"
# An id tells when by the clock of the process that recorded it, `at` by the database's.
_CLOCKS_APART: Final = timedelta(days=1)

_PURGE: Final = """
    DELETE FROM accesses
    WHERE (ledger_id, access_id) IN (
        SELECT ledger_id, access_id
        FROM accesses
        WHERE at < now() - make_interval(days => %s)
        LIMIT %s
    )
"""


@dataclass(frozen=True, slots=True)
class Access:
    """One access, to be recorded.

    Attributes:
        key_id: whose key; None for the command line.
        role: the key's, or `MACHINE_ROLE`.
        route: the template of the address, or the command.
        query: what was asked, as JSON.
        format: of the answer, as a media type.
        rows: events, or questions, that the answer holds; what an export begins with is 0.
        complete: whether all that was asked for was handed out; None while that is under way.
        request_id: as in our logs; it tells two accesses apart that are the same in all else.

    """

    key_id: UUID | None
    role: str
    route: str
    query: bytes
    format: str
    rows: int
    complete: bool | None
    request_id: str


@dataclass(frozen=True, slots=True)
class AccessContext:
    """Who accesses or changes something, through which route; by default, the command line.

    Attributes:
        key_id: the key of the request; None for the command line.
        role: the key's role.
        route: the template of the address, or the command.
        request_id: the id of the request in our logs.

    """

    key_id: UUID | None = None
    role: Role | Literal["machine"] = "machine"
    route: str = "sparkledger keys"
    request_id: str = ""


COMMAND_LINE: Final = AccessContext()


@dataclass(frozen=True, slots=True)
class AccessRow:
    """One access as it stands in the log: `reads` of it in one hour, where they are told together."""

    access_id: UUID
    at: datetime
    key_id: UUID | None
    role: str
    route: str
    query: Mapping[str, Any]
    format: str
    request_id: str | None
    reads: int
    rows: int
    complete: bool | None
    ended_at: datetime | None
    refused: str | None
    sealed: bytes | None


@dataclass(frozen=True, slots=True)
class AccessFilter:
    """Which accesses are asked for; all that is given must hold.

    Attributes:
        key_id: those with this key alone.
        machine: those of the command line alone.
        since: at this moment or later.
        until: before this moment.

    """

    key_id: UUID | None = None
    machine: bool = False
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> str:
        """Return what a row must fulfil."""
        given = {
            _WITH_KEY: self.key_id is not None,
            _AT_THE_MACHINE: self.machine,
            _SINCE: self.since is not None,
            _UNTIL: self.until is not None,
        }
        return " ".join(condition for condition, is_given in given.items() if is_given)

    def ids(self) -> tuple[UUID, UUID]:
        """Return the ids before the first and after the last that may be of this time."""
        return (
            FIRST if self.since is None else first_uuid7(self.since - _CLOCKS_APART),
            LAST if self.until is None else first_uuid7(self.until + _CLOCKS_APART),
        )


ALL: Final = AccessFilter()


class AccessLog:
    """Records accesses, and reads them."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to write and read with."""
        self._database = database
        self._recorded = BatchLoader(self._record)

    async def record(self, ledger_id: int, access: Access) -> UUID:
        """Record an access, and return its id once that is committed.

        Raises:
            Unavailable: it could not be recorded; then nothing must be answered.

        """
        access_id = await self._recorded(ledger_id, access)
        assert access_id is not None  # noqa: S101 - every access gets one
        return access_id

    async def end(self, ledger_id: int, access_id: UUID, *, rows: int, complete: bool) -> None:
        """Record how an access that was under way ended.

        Raises:
            Unavailable: the database is away; the access then stands as one whose end is not known.

        """

        async def run(connection: LedgerConnection) -> None:
            await connection.execute(_END, (rows, complete, ledger_id, access_id))

        await self._database.read(ledger_id, run)

    async def page(
        self,
        ledger_id: int,
        wanted: AccessFilter = ALL,
        *,
        limit: int,
        before: UUID = LAST,
        after: UUID = FIRST,
        backwards: bool = False,
    ) -> list[AccessRow]:
        """Return accesses between two ids, newest first; backwards, those nearest to `after`.

        Raises:
            Unavailable: the database is away.

        """
        first, last = wanted.ids()
        query = _PAGE.format(further=wanted.conditions(), direction="ASC" if backwards else "DESC")
        parameters = {
            "ledger_id": ledger_id,
            "before": min(before, last),
            "after": max(after, first),
            "limit": limit,
            "key_id": wanted.key_id,
            "since": wanted.since,
            "until": wanted.until,
        }

        async def run(connection: LedgerConnection) -> list[AccessRow]:
            cursor = await connection.execute(query.encode(), parameters)
            return [AccessRow(*row) for row in await cursor.fetchall()]

        rows = await self._database.read(ledger_id, run)
        return rows[::-1] if backwards else rows

    async def _record(self, ledger_id: int, accesses: Sequence[Access]) -> dict[Access, UUID]:
        # Made once: where the first attempt's commit got lost on its way back, the second adds nothing.
        ids = {access: uuid7() for access in accesses}

        async def run(connection: LedgerConnection) -> dict[Access, UUID]:
            return await _insert(connection, ledger_id, ids)

        return await self._database.read(ledger_id, run)


async def record_within(connection: LedgerConnection, ledger_id: int, access: Access) -> None:
    """Record an access in a transaction that is under way: it stands if, and only if, what it tells of does."""
    await _insert(connection, ledger_id, {access: uuid7()})


async def _insert(connection: LedgerConnection, ledger_id: int, ids: Mapping[Access, UUID]) -> dict[Access, UUID]:
    """Insert or add to entries; return the entry of each access."""
    shared = {access: _shared(access) or access_id for access, access_id in ids.items()}
    together: dict[UUID, tuple[Access, int]] = {}
    entries: dict[UUID, UUID] = {}
    for access, common in shared.items():
        known, reads = together.get(common, (replace(access, rows=0), 0))
        together[common] = (replace(access, rows=known.rows + access.rows), reads + 1)
        entries.setdefault(common, ids[access])
    told = [access for access, _ in together.values()]
    columns = (
        Uuids(list(entries.values())),
        Uuids(list(together)),
        Uuids([access.key_id for access in told]),
        Texts([access.role for access in told]),
        Texts([access.route for access in told]),
        Texts([access.query.decode() for access in told]),
        Texts([access.format for access in told]),
        Texts([access.request_id for access in told]),
        Ints([reads for _, reads in together.values()]),
        Bigints([access.rows for access in told]),
        Texts([None if access.complete is None else str(access.complete) for access in told]),
    )
    cursor = await connection.execute(_RECORD, (ledger_id, *columns), prepare=True)
    # Of one that was there already its own id; an entry that its first attempt made is not told again.
    entries.update(await cursor.fetchall())
    return {access: entries[common] for access, common in shared.items()}


async def purge(connection: LedgerConnection, rows: int) -> int:
    """Forget accesses that have been kept long enough, at most so many; needs the worker's rights."""
    return (await connection.execute(_PURGE, (KEEP_ACCESSES_DAYS, rows))).rowcount


def _shared(access: Access) -> UUID | None:
    """Return what accesses that are told together have in common: their hour, key, route and query."""
    if access.role != TOLD_TOGETHER:
        return None
    hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    named = orjson.dumps([hour, access.key_id, access.route, access.format, access.query.decode()])
    return UUID(bytes=hashlib.sha256(named).digest()[:16])
