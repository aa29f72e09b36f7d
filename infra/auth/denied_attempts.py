"""Refused attempts that are not events: counted, and the first of each key, reason and hour told one by one.

Those that are told stand in the log of accesses. Where they came from is sealed under a key of the ledger's, so that
neither a dump of the database nor a reader without the right to it has anyone's address in clear. An erasure takes it
away for the creator's own keys.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.auth.erasure_lock import block_erasures
from infra.crypto.envelope import NONCE_BYTES
from infra.ids import uuid7
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import Ints, Texts, Uuids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from domain.values import Actor
    from infra.auth.access_log import AccessRow
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

# Of one key, reason and hour; what comes after is only counted, so that nobody fills the log by being refused.
TOLD_AN_HOUR: Final = 20
MAX_ORIGIN_CHARACTERS: Final = 256

_COUNT: Final = """
    INSERT INTO refused_attempts AS r (ledger_id, hour, reason, key_id, count)
    SELECT %b, date_trunc('hour', now()), x.reason, x.key_id, x.count
    FROM unnest(%b, %b, %b) AS x (reason, key_id, count)
    ON CONFLICT (ledger_id, hour, reason, key_id) DO UPDATE
    SET count = r.count + excluded.count
    RETURNING reason, key_id, count
"""

# Where a creator's own key was revoked since the door let it in, an erasure may be why: then not from where.
_TELL: Final = """
    INSERT INTO accesses (
        ledger_id, access_id, key_id, role, route, query, format, request_id, row_count, complete, ended_at, refused,
        sealed)
    SELECT %(ledger_id)s, %(access_id)s, %(key_id)s, %(role)s, %(route)s, '{}', '', %(request_id)s, 0, false, now(),
           %(refused)s, CASE
               WHEN %(role)s <> 'creator' OR NOT EXISTS (
                   SELECT 1 FROM api_keys k WHERE k.key_id = %(key_id)s AND k.revoked_at IS NOT NULL
               ) THEN %(sealed)s::bytea
           END
"""


@dataclass(frozen=True, slots=True)
class DeniedAttempt:
    """A request that was turned away, by whom, why, and from where.

    Attributes:
        key_id: whose key.
        role: the key's.
        reason: the problem's stable code.
        route: the template of the address.
        request_id: as in our logs.
        origin: of names to texts: the address it came from, the user agent, what stood in the path. It is sealed.

    """

    key_id: UUID
    role: str
    reason: str
    route: str
    request_id: str
    origin: tuple[tuple[str, str], ...]


class DeniedAttempts:
    """Counts by ledger, hour, reason and API key, and tells the first of each."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the sessions to count with, and the keys to seal with."""
        self._database = database
        self._keyring = keyring
        self._recorded = BatchLoader(self._record)

    async def record(self, ledger_id: int, attempt: DeniedAttempt) -> None:
        """Count an attempt, and tell it in the log of accesses where its key has few of this reason in this hour.

        Attempts that wait together are one transaction.

        Raises:
            Unavailable: the database is away.

        """
        await self._recorded(ledger_id, attempt)

    async def origin(self, ledger_id: int, row: AccessRow) -> Mapping[str, str]:
        """Return where a refused attempt came from; of anything else, nothing.

        Raises:
            Unavailable: the ledger's key cannot be read.

        """
        if row.sealed is None:
            return {}
        cipher = await self._cipher(ledger_id)
        opened = cipher.decrypt(row.sealed[:NONCE_BYTES], row.sealed[NONCE_BYTES:], _place(ledger_id, row.access_id))
        origin: dict[str, str] = orjson.loads(opened)
        return origin

    async def count(self, ledger_id: int, actor: Actor, reason: str) -> None:
        """Count one refused attempt.

        Raises:
            Unavailable: the database is away.

        """
        async with self._database.connection(ledger_id) as connection:
            await connection.execute(
                "INSERT INTO refused_attempts AS r (ledger_id, hour, reason, key_id, count)"
                " VALUES (%s, date_trunc('hour', now()), %s, %s, 1)"
                " ON CONFLICT (ledger_id, hour, reason, key_id) DO UPDATE SET count = r.count + 1",
                (ledger_id, reason, UUID(actor.key_id)),
            )

    async def counts(self, ledger_id: int, *, since: datetime) -> dict[str, int]:
        """Return the counts by reason since an hour."""

        async def query(connection: LedgerConnection) -> dict[str, int]:
            cursor = await connection.execute(
                "SELECT reason, sum(count)::bigint FROM refused_attempts"
                " WHERE ledger_id = %s AND hour >= date_trunc('hour', %s) GROUP BY reason ORDER BY reason",
                (ledger_id, since),
            )
            return {row[0]: row[1] for row in await cursor.fetchall()}

        return await self._database.read(ledger_id, query)

    async def by_day(self, ledger_id: int, *, since: datetime, until: datetime) -> dict[datetime, dict[str, int]]:
        """Return the counts by reason of each day that had any, from `since` until before `until`, days in UTC."""

        async def query(connection: LedgerConnection) -> dict[datetime, dict[str, int]]:
            cursor = await connection.execute(
                "SELECT date_trunc('day', hour, 'UTC'), reason, sum(count)::bigint FROM refused_attempts"
                " WHERE ledger_id = %s AND hour >= %s AND hour < %s GROUP BY 1, 2 ORDER BY 1, 2",
                (ledger_id, since, until),
            )
            days: dict[datetime, dict[str, int]] = {}
            for day, reason, count in await cursor.fetchall():
                days.setdefault(day, {})[reason] = count
            return days

        return await self._database.read(ledger_id, query)

    async def _record(self, ledger_id: int, attempts: Sequence[DeniedAttempt]) -> dict[DeniedAttempt, None]:
        cipher = await self._cipher(ledger_id)
        groups: dict[tuple[str, UUID], list[DeniedAttempt]] = defaultdict(list)
        for attempt in attempts:
            groups[attempt.reason, attempt.key_id].append(attempt)
        # In one order everywhere, so that two processes never wait for each other's rows crosswise.
        keys = sorted(groups)
        columns = (
            Texts([reason for reason, _ in keys]),
            Uuids([key_id for _, key_id in keys]),
            Ints([len(groups[key]) for key in keys]),
        )
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await block_erasures(connection, ledger_id)
            counted = await connection.execute(_COUNT, (ledger_id, *columns))
            for reason, key_id, count in await counted.fetchall():
                group = groups[reason, key_id]
                for attempt in group[: max(0, TOLD_AN_HOUR - (count - len(group)))]:
                    await _tell(connection, ledger_id, attempt, cipher)
        return {}

    async def _cipher(self, ledger_id: int) -> AESGCM:
        return AESGCM((await self._keyring.ledger(ledger_id)).derived("refused attempts v1"))


async def _tell(connection: LedgerConnection, ledger_id: int, attempt: DeniedAttempt, cipher: AESGCM) -> None:
    access_id, nonce = uuid7(), os.urandom(NONCE_BYTES)
    origin = {name: text[:MAX_ORIGIN_CHARACTERS] for name, text in attempt.origin}
    sealed = nonce + cipher.encrypt(nonce, orjson.dumps(origin), _place(ledger_id, access_id))
    told = {
        "ledger_id": ledger_id,
        "access_id": access_id,
        "key_id": attempt.key_id,
        "role": attempt.role,
        "route": attempt.route,
        "request_id": attempt.request_id,
        "refused": attempt.reason,
        "sealed": sealed,
    }
    await connection.execute(_TELL, told)


def _place(ledger_id: int, access_id: UUID) -> bytes:
    """Return what a sealed origin is bound to: moved to another row, it does not open."""
    return b"refused attempt\0%d\0%b" % (ledger_id, access_id.bytes)
