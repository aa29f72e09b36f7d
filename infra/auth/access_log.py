"""The access log: who read the audit trail, and who changed keys.

An access is recorded before it is answered, and is not answered where it cannot be recorded. Accesses that wait at the
same time share one insert and one commit. An export, which takes longer than one answer, is recorded when it begins and
again when it ends.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self
from uuid import UUID

import orjson

from domain.pasted import creator_name
from infra.ids import first_uuid7, uuid7
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import Bigints, Ints, Texts, Uuids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.values import Role
    from infra.postgres.pool import Database, LedgerConnection

# A year and a month: a yearly audit still finds who audited a year ago.
KEEP_ACCESSES_DAYS: Final = 400
# The role recorded for the command line, which has no key.
MACHINE_ROLE: Final = "machine"
# The role whose equal reads of an hour share one entry: services that poll for new events.
GROUPED_ROLE: Final = "subscriber"

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=2**128 - 1)

_RECORD: Final = """
    INSERT INTO accesses AS a (
        ledger_id, access_id, together, key_id, role, route, query, format, request_id, reads, row_count, complete,
        ended_at, code_id, creator_id, video_id)
    SELECT %b, x.access_id, x.together, x.key_id, x.role, x.route, x.query::jsonb, x.format, x.request_id, x.reads,
           x.row_count, x.complete::boolean, CASE WHEN x.complete IS NOT NULL THEN now() END, x.code_id, x.creator_id,
           x.video_id
    FROM unnest(%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
        AS x (access_id, together, key_id, role, route, query, format, request_id, reads, row_count, complete, code_id,
              creator_id, video_id)
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
           sealed, code_id, creator_id, video_id
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
_DENIED: Final = "AND refused IS NOT NULL"
_ANSWERED: Final = "AND refused IS NULL"
_FOR_REASON: Final = "AND refused = %(reason)s"
_OF_ROUTE: Final = "AND route = %(route)s"
_OF_CODE: Final = "AND code_id = %(code_id)s"
_OF_CREATOR: Final = "AND creator_id = %(creator_id)s"
_OF_VIDEO: Final = "AND video_id = %(video_id)s"
# An id has the time of the process that recorded the access, and `at` that of the database.
_CLOCK_SKEW: Final = timedelta(days=1)

_PURGE: Final = "SELECT purge_accesses(%s, %s)"


class _Subject(NamedTuple):
    code_id: UUID | None
    creator_id: str | None
    video_id: str | None


class AccessSubject(_Subject):
    """The code, the creator and the video that were read or asked for, where each is one.

    A creator is entered in the canonical form of their id, however it is spelled.
    """

    __slots__ = ()

    def __new__(cls, code_id: UUID | None = None, creator_id: str | None = None, video_id: str | None = None) -> Self:
        """Reduce the creator's id."""
        name = None if creator_id is None else creator_name(creator_id.lstrip("@"))
        return super().__new__(cls, code_id, name, video_id)


NOTHING: Final = AccessSubject()


@dataclass(frozen=True, slots=True)
class Access:
    """One access, to be recorded.

    Attributes:
        key_id: the key of the request; None for the command line.
        role: the key's role, or `MACHINE_ROLE`.
        route: the template of the address, or the command.
        query: the parameters of the request, as JSON.
        format: the media type of the answer.
        rows: how many events, or questions, the answer contains; 0 where an export begins.
        complete: whether everything that was asked for was sent; None while an export is running.
        request_id: the id of the request in our logs; it distinguishes accesses that are equal in all else.
        subject: what was read or asked for.

    """

    key_id: UUID | None
    role: str
    route: str
    query: bytes
    format: str
    rows: int
    complete: bool | None
    request_id: str
    subject: AccessSubject = NOTHING


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
    """One entry of the access log; where equal reads of an hour share an entry, `reads` counts them."""

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
    code_id: UUID | None
    creator_id: str | None
    video_id: str | None


@dataclass(frozen=True, slots=True)
class AccessFilter:
    """A filter of accesses; every condition that is given must hold.

    Attributes:
        key_id: only accesses with this key.
        machine: only accesses of the command line.
        since: only accesses at this time or later.
        until: only accesses before this time.
        refused: only denied attempts, or only accesses that were answered.
        reason: only attempts that were denied for this reason.
        route: only accesses through this route.
        subject: only accesses to this code, creator or video.

    """

    key_id: UUID | None = None
    machine: bool = False
    since: datetime | None = None
    until: datetime | None = None
    refused: bool | None = None
    reason: str | None = None
    route: str | None = None
    subject: AccessSubject = NOTHING

    def conditions(self) -> str:
        """Return the SQL conditions that a row must fulfil."""
        given = {
            _WITH_KEY: self.key_id is not None,
            _AT_THE_MACHINE: self.machine,
            _SINCE: self.since is not None,
            _UNTIL: self.until is not None,
            _DENIED: self.refused is True,
            _ANSWERED: self.refused is False,
            _FOR_REASON: self.reason is not None,
            _OF_ROUTE: self.route is not None,
            _OF_CODE: self.subject.code_id is not None,
            _OF_CREATOR: self.subject.creator_id is not None,
            _OF_VIDEO: self.subject.video_id is not None,
        }
        return " ".join(condition for condition, is_given in given.items() if is_given)

    def ids(self) -> tuple[UUID, UUID]:
        """Return an id before the first, and one after the last, that may belong to this time."""
        return (
            FIRST if self.since is None else first_uuid7(self.since - _CLOCK_SKEW),
            LAST if self.until is None else first_uuid7(self.until + _CLOCK_SKEW),
        )


ALL: Final = AccessFilter()


class AccessLog:
    """Records accesses and lists them."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database
        self._record_batched = BatchLoader(self._record)

    async def record(self, ledger_id: int, access: Access) -> UUID:
        """Record an access, and return the id of its entry once that is committed.

        Where this raises, the request must not be answered.
        """
        access_id = await self._record_batched(ledger_id, access)
        assert access_id is not None  # noqa: S101 - every access gets one
        return access_id

    async def end(self, ledger_id: int, access_id: UUID, *, rows: int, complete: bool) -> None:
        """Record the end of an access that was running; where this fails, the entry stays without an end."""

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
        """Return at most `limit` accesses between two ids, newest first; with `backwards`, those nearest to `after`."""
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
            "reason": wanted.reason,
            "route": wanted.route,
            "code_id": wanted.subject.code_id,
            "creator_id": wanted.subject.creator_id,
            "video_id": wanted.subject.video_id,
        }

        async def run(connection: LedgerConnection) -> list[AccessRow]:
            cursor = await connection.execute(query.encode(), parameters)
            return [AccessRow(*row) for row in await cursor.fetchall()]

        rows = await self._database.read(ledger_id, run)
        return rows[::-1] if backwards else rows

    async def _record(self, ledger_id: int, accesses: Sequence[Access]) -> dict[Access, UUID]:
        # Chosen once: where the answer to the first commit was lost, the second attempt adds nothing.
        ids = {access: uuid7() for access in accesses}

        async def run(connection: LedgerConnection) -> dict[Access, UUID]:
            return await _insert(connection, ledger_id, ids)

        return await self._database.read(ledger_id, run)


async def record_within(connection: LedgerConnection, ledger_id: int, access: Access) -> None:
    """Record an access in the transaction of the change that it describes: both are stored, or neither."""
    await _insert(connection, ledger_id, {access: uuid7()})


async def _insert(connection: LedgerConnection, ledger_id: int, ids: Mapping[Access, UUID]) -> dict[Access, UUID]:
    """Insert entries, or add to those that are shared; return the id of the entry of each access."""
    groups = {access: _group_id(access) or access_id for access, access_id in ids.items()}
    merged: dict[UUID, tuple[Access, int]] = {}
    entries: dict[UUID, UUID] = {}
    for access, group in groups.items():
        known, reads = merged.get(group, (replace(access, rows=0), 0))
        merged[group] = (replace(access, rows=known.rows + access.rows), reads + 1)
        entries.setdefault(group, ids[access])
    recorded = [access for access, _ in merged.values()]
    columns = (
        Uuids(list(entries.values())),
        Uuids(list(merged)),
        Uuids([access.key_id for access in recorded]),
        Texts([access.role for access in recorded]),
        Texts([access.route for access in recorded]),
        Texts([access.query.decode() for access in recorded]),
        Texts([access.format for access in recorded]),
        Texts([access.request_id for access in recorded]),
        Ints([reads for _, reads in merged.values()]),
        Bigints([access.rows for access in recorded]),
        Texts([None if access.complete is None else str(access.complete) for access in recorded]),
        Uuids([access.subject.code_id for access in recorded]),
        Texts([access.subject.creator_id for access in recorded]),
        Texts([access.subject.video_id for access in recorded]),
    )
    cursor = await connection.execute(_RECORD, (ledger_id, *columns), prepare=True)
    # An entry that existed has its own id. One that the first attempt of this insert made is not returned again.
    entries.update(await cursor.fetchall())
    return {access: entries[group] for access, group in groups.items()}


async def purge(connection: LedgerConnection, rows: int) -> int:
    """Forget accesses that have been kept long enough, at most so many; needs the worker's rights."""
    row = await (await connection.execute(_PURGE, (KEEP_ACCESSES_DAYS, rows))).fetchone()
    return int(row[0]) if row else 0


def _group_id(access: Access) -> UUID | None:
    """Return an id that equal reads of this hour share; None for accesses that are recorded one by one."""
    if access.role != GROUPED_ROLE:
        return None
    hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    named = orjson.dumps([hour, access.key_id, access.route, access.format, access.query.decode()])
    return UUID(bytes=hashlib.sha256(named).digest()[:16])
