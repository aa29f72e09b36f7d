"""Calendars as their owners make and end them, and as programs read them by a secret address.

Programs that show calendars send no bearer. So the address holds 256 random bits, which are shown once and stored as a
keyed hash. A calendar shows what its key may see, and nothing once the key is not valid any more.
"""

from __future__ import annotations

import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from infra.auth.api_keys import Subjects
from infra.auth.key_admin import lock_valid_key
from infra.delivery.alerts.alert_store import erased
from infra.delivery.alerts.looking import codes_ending, creators_seen
from infra.delivery.alerts.models import About, Calendar, CalendarNotFound, Sight, TooManyCalendars
from infra.delivery.alerts.sealing import AlertSealer
from infra.delivery.webhooks.idempotent_requests import first_answer, remember_answer
from infra.ids import uuid7
from projections import codes
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from domain.values import Role
    from infra.crypto.keyring import Keyring
    from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
    from infra.delivery.webhooks.models import Owner
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.postgres.pool import Database, LedgerConnection
    from projections.codes import CodeRow

MAX_CALENDARS: Final = 500
MAX_CALENDARS_OF_A_KEY: Final = 50
SECRET_BYTES: Final = 32
SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
# What a calendar has: ends from so long ago until so far ahead, the first to end first, and the newest revoked codes.
PAST: Final = timedelta(days=30)
AHEAD: Final = timedelta(days=400)
MAX_EVENTS: Final = 1_000
MAX_CANCELLED: Final = 200
_BEYOND: Final = 2**62
_PURPOSE: Final = "calendars"

_OWNED: Final = "c.ledger_id = %(ledger_id)s AND (%(key_id)s::uuid IS NULL OR c.key_id = %(key_id)s)"
_SELECT: Final = f"""
    SELECT c.calendar_id, c.key_id, c.creator_id, c.brand_id, c.advertiser_id, c.name, c.created_at, c.read_at
    FROM calendars c
    WHERE {_OWNED}
"""
_LIST: Final = f"{_SELECT} ORDER BY c.calendar_id DESC"
_ONE: Final = f"{_SELECT} AND c.calendar_id = %(calendar_id)s"
_LOCK_COUNT: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_COUNT: Final = "SELECT count(*), count(*) FILTER (WHERE key_id = %s) FROM calendars"
_CREATE: Final = """
    INSERT INTO calendars (calendar_id, ledger_id, key_id, hash, creator_id, brand_id, advertiser_id, name)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
_DELETE: Final = f"DELETE FROM calendars c WHERE {_OWNED} AND c.calendar_id = %(calendar_id)s"
_FIND: Final = "SELECT * FROM calendar_of(%s)"
_READ: Final = "UPDATE calendars SET read_at = now() WHERE calendar_id = %s"


@dataclass(frozen=True, slots=True)
class FoundCalendar:
    """A calendar whose secret was presented; `unread` if it is to be noted that it is read."""

    calendar_id: UUID
    ledger_id: int
    log_id: UUID
    ledger: str
    key_id: UUID
    role: Role
    sight: Sight
    unread: bool

    @property
    def shown_name(self) -> str:
        """What programs call it: whose codes it has."""
        about = self.sight.about
        whose = about.creator_id or about.brand_id or about.advertiser_id or self.ledger
        return f"Spark codes: {whose}"


class Calendars:
    """Makes, ends and reads calendars."""

    def __init__(self, database: Database, keyring: Keyring, aggregates: AggregateReader) -> None:
        """Take the database, the keys that hash and seal, and what knows how creators are spelled."""
        self._database = database
        self._keyring = keyring
        self._aggregates = aggregates

    async def create(
        self, owner: Owner, about: About, name: str | None, request: IdempotentRequest | None = None
    ) -> tuple[Calendar, str, bool]:
        """Create a calendar; return it, the secret of its address, and whether this request was a repeat.

        The secret is empty for a repeat.

        Raises:
            TooManyCalendars: the ledger, or the key, has reached its limit.
            KeyNoLongerValid: the owner's key was revoked in the meantime; here and below.
            IdempotencyMismatch: the Idempotency-Key was used for another request.

        """
        sealer = await self._sealer(owner)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        hashed = await self._hash(secret)
        async with self._changing(owner) as connection:
            answered = await first_answer(connection, owner, request)
            calendar_id = uuid7() if answered is None else UUID(answered["calendar_id"])
            if answered is None:
                await connection.execute(_LOCK_COUNT, (AdvisoryLock.ALERT_COUNT, owner.ledger_id))
                row = await (await connection.execute(_COUNT, (owner.key_id,))).fetchone()
                if row is None or row[0] >= MAX_CALENDARS or row[1] >= MAX_CALENDARS_OF_A_KEY:
                    raise TooManyCalendars
                columns = (
                    *(owner.key_id, hashed, about.creator_id, about.brand_id, about.advertiser_id),
                    sealer.seal_optional("calendar", name, calendar_id),
                )
                await connection.execute(_CREATE, (calendar_id, owner.ledger_id, *columns))
                await remember_answer(connection, owner, request, calendar_id=calendar_id)
            asked = {**owner.parameters, "calendar_id": calendar_id}
            found = await (await connection.execute(_ONE, asked)).fetchone()
            if found is None:
                raise CalendarNotFound
            return _calendar(found, sealer), "" if answered is not None else secret, answered is not None

    async def all(self, owner: Owner) -> list[Calendar]:
        """Return the calendars, newest first."""

        async def query(connection: LedgerConnection) -> list[Calendar]:
            rows = await (await connection.execute(_LIST, owner.parameters)).fetchall()
            return [_calendar(row, sealer) for row in rows]

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def delete(self, owner: Owner, calendar_id: UUID) -> None:
        """End a calendar: its address leads nowhere from now on.

        Raises:
            CalendarNotFound: the owner has no such calendar.

        """
        async with self._changing(owner) as connection:
            asked = {**owner.parameters, "calendar_id": calendar_id}
            if (await connection.execute(_DELETE, asked)).rowcount == 0:
                raise CalendarNotFound

    async def find(self, secret: str) -> FoundCalendar | None:
        """Return the calendar with this secret; None if there is none, or its key is not valid any more.

        Raises:
            Unavailable: the database is away.

        """
        if SECRET.fullmatch(secret) is None:
            return None
        hashed = await self._hash(secret)

        async def query(connection: LedgerConnection) -> Any:
            return await (await connection.execute(_FIND, (hashed,), prepare=True)).fetchone()

        row = await self._database.read(None, query)
        if row is None:
            return None
        calendar_id, ledger_id, token, log_id, ledger, key_id, role, *more = row
        self._database.tokens.admit_ledger(ledger_id, bytes(token))
        sight = Sight(role, Subjects(*map(frozenset, more[:3])), About(*more[3:6]))
        return FoundCalendar(calendar_id, ledger_id, log_id, ledger, key_id, role, sight, more[6])

    async def codes(self, found: FoundCalendar, now: datetime) -> list[CodeRow]:
        """Return the codes that a calendar has, without those of erased creators.

        Raises:
            Unavailable: the database is away.

        """
        sight, ledger_id = found.sight, found.ledger_id
        creators = await creators_seen(self._aggregates, ledger_id, sight)

        async def query(connection: LedgerConnection) -> list[CodeRow]:
            if found.unread:
                await connection.execute(_READ, (found.calendar_id,))
            async with connection.cursor() as cur:
                after, before = (now - PAST, _BEYOND), now + AHEAD
                rows = await codes_ending(
                    cur, ledger_id, sight, creators, now, after=after, before=before, limit=MAX_EVENTS
                )
                by_rights = [
                    row
                    for row in await _with_rights(cur, found, creators, now)
                    if row.revoked_at is None and row.expires_at >= before and (row.rights_until or now) > now - PAST
                ]
                rows += by_rights[: MAX_EVENTS - len(rows)]
                rows += [
                    row
                    for row in await _revoked(cur, found, creators, now)
                    if row.expires_at > now - PAST and sight.sees(row.creator_id, row.brand_ids, row.advertiser_ids)
                ]
                gone = await erased(connection, ledger_id, {row.creator_stream for row in rows})
            return [row for row in rows if row.creator_stream not in gone]

        return await self._database.read(ledger_id, query)

    async def _sealer(self, owner: Owner) -> AlertSealer:
        return AlertSealer(await self._keyring.ledger(owner.ledger_id))

    async def _hash(self, secret: str) -> bytes:
        return (await self._keyring.hashing()).hash(f"{_PURPOSE} {secret}")

    @asynccontextmanager
    async def _changing(self, owner: Owner) -> AsyncIterator[LedgerConnection]:
        async with self._database.connection(owner.ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, owner.ledger_id, owner.key_id)
            yield connection


async def _with_rights(cur: Any, found: FoundCalendar, creators: Any, now: datetime) -> list[CodeRow]:
    """Return the newest codes whose usage rights end soon: their own end may be years ahead."""
    return await _seen(cur, found, creators, now, limit=MAX_EVENTS, rights_before=now + AHEAD)


async def _revoked(cur: Any, found: FoundCalendar, creators: Any, now: datetime) -> list[CodeRow]:
    """Return the newest codes that are revoked: calendars that have them must take them away."""
    return await _seen(cur, found, creators, now, limit=MAX_CANCELLED, state="revoked")


async def _seen(cur: Any, found: FoundCalendar, creators: Any, now: datetime, **more: Any) -> list[CodeRow]:
    """Return the newest codes that a calendar's key sees."""
    sight, about = found.sight, found.sight.about
    brand = sight.role == "brand"
    return await codes.search(
        cur,
        found.ledger_id,
        now=now,
        creator_ids=creators,
        brand_ids=None if about.brand_id is None else {about.brand_id},
        advertiser_ids=None if about.advertiser_id is None else {about.advertiser_id},
        visible_brands=sight.subjects.brand_ids if brand else None,
        visible_advertisers=sight.subjects.advertiser_ids if brand else None,
        **more,
    )


def _calendar(row: Sequence[Any], sealer: AlertSealer) -> Calendar:
    return Calendar(row[0], row[1], About(*row[2:5]), sealer.unseal_optional("calendar", row[5], row[0]), *row[6:])
