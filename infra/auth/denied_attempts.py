"""Denied attempts: counted, and the first few of each key, reason and hour recorded one by one in the access log.

The origin of an attempt, which is an address and what was in the path, is sealed under a key of the ledger, so that
neither a dump of the database nor a reader without the right to it shows anyone's address. An erasure removes the
origins of the creator's own keys.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson

from infra.auth.erasure_lock import block_erasures
from infra.crypto.envelope import SealingKey
from infra.ids import uuid7
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import Ints, Texts, Uuids

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from domain.values import Actor
    from infra.auth.access_log import AccessRow
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

# Of one key, reason and hour. Further ones are only counted, so that nobody fills the access log by being denied.
RECORDED_PER_HOUR: Final = 20
MAX_ORIGIN_CHARACTERS: Final = 256

_COUNT: Final = """
    INSERT INTO refused_attempts AS r (ledger_id, hour, reason, key_id, count)
    SELECT %b, date_trunc('hour', now()), x.reason, x.key_id, x.count
    FROM unnest(%b, %b, %b) AS x (reason, key_id, count)
    ON CONFLICT (ledger_id, hour, reason, key_id) DO UPDATE
    SET count = r.count + excluded.count
    RETURNING reason, key_id, count
"""

# A creator's key that was revoked after it was let in may have been revoked by an erasure: then without the origin.
_RECORD: Final = """
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
    """A request that was denied.

    Attributes:
        key_id: the key of the request.
        role: the key's role.
        reason: the problem's stable code.
        route: the template of the address.
        request_id: the id of the request in our logs.
        origin: pairs of a name and a text: the caller's address, the user agent, what was in the path. It is sealed.

    """

    key_id: UUID
    role: str
    reason: str
    route: str
    request_id: str
    origin: tuple[tuple[str, str], ...]


class DeniedAttempts:
    """Counts denied attempts by ledger, hour, reason and API key, and records the first of each."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the database, and the keyring to seal with."""
        self._database = database
        self._keyring = keyring
        self._record_batched = BatchLoader(self._record)

    async def record(self, ledger_id: int, attempt: DeniedAttempt) -> None:
        """Count an attempt, and record it in the access log unless its key, reason and hour have enough of them.

        Attempts that wait at the same time share a transaction.
        """
        await self._record_batched(ledger_id, attempt)

    async def origin(self, ledger_id: int, row: AccessRow) -> Mapping[str, str]:
        """Return the origin of a denied attempt; an empty one of any other access."""
        if row.sealed is None:
            return {}
        return unsealed_origin(await self._keyring.ledger(ledger_id), row.sealed, ledger_id, row.access_id)

    async def count(self, ledger_id: int, actor: Actor, reason: str) -> None:
        """Count one denied attempt, and record nothing else of it."""
        async with self._database.connection(ledger_id) as connection:
            await connection.execute(
                "INSERT INTO refused_attempts AS r (ledger_id, hour, reason, key_id, count)"
                " VALUES (%s, date_trunc('hour', now()), %s, %s, 1)"
                " ON CONFLICT (ledger_id, hour, reason, key_id) DO UPDATE SET count = r.count + 1",
                (ledger_id, reason, UUID(actor.key_id)),
            )

    async def counts(self, ledger_id: int, *, since: datetime) -> dict[str, int]:
        """Return the counts by reason, from the hour of `since` until now."""

        async def query(connection: LedgerConnection) -> dict[str, int]:
            cursor = await connection.execute(
                "SELECT reason, sum(count)::bigint FROM refused_attempts"
                " WHERE ledger_id = %s AND hour >= date_trunc('hour', %s) GROUP BY reason ORDER BY reason",
                (ledger_id, since),
            )
            return {row[0]: row[1] for row in await cursor.fetchall()}

        return await self._database.read(ledger_id, query)

    async def by_day(self, ledger_id: int, *, since: datetime, until: datetime) -> dict[datetime, dict[str, int]]:
        """Return the counts by reason of each day in UTC that has any, from `since` to before `until`."""

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
        keys = await self._keyring.ledger(ledger_id)
        groups: dict[tuple[str, UUID], list[DeniedAttempt]] = defaultdict(list)
        for attempt in attempts:
            groups[attempt.reason, attempt.key_id].append(attempt)
        # In one order everywhere, so that two processes never wait for each other's rows crosswise.
        counted_keys = sorted(groups)
        columns = (
            Texts([reason for reason, _ in counted_keys]),
            Uuids([key_id for _, key_id in counted_keys]),
            Ints([len(groups[key]) for key in counted_keys]),
        )
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await block_erasures(connection, ledger_id)
            counted = await connection.execute(_COUNT, (ledger_id, *columns))
            for reason, key_id, count in await counted.fetchall():
                group = groups[reason, key_id]
                for attempt in group[: max(0, RECORDED_PER_HOUR - (count - len(group)))]:
                    await _record_access(connection, ledger_id, attempt, keys)
        return {}


async def _record_access(
    connection: LedgerConnection, ledger_id: int, attempt: DeniedAttempt, keys: LedgerKeys
) -> None:
    access_id = uuid7()
    origin = {name: text[:MAX_ORIGIN_CHARACTERS] for name, text in attempt.origin}
    fields = {
        "ledger_id": ledger_id,
        "access_id": access_id,
        "key_id": attempt.key_id,
        "role": attempt.role,
        "route": attempt.route,
        "request_id": attempt.request_id,
        "refused": attempt.reason,
        "sealed": sealed_origin(keys, origin, ledger_id, access_id),
    }
    await connection.execute(_RECORD, fields)


def sealed_origin(keys: LedgerKeys, origin: Mapping[str, str], ledger_id: int, access_id: UUID) -> bytes:
    """Seal the origin of a denied attempt, bound to its entry in the access log."""
    return _sealing(keys).seal(orjson.dumps(origin), _associated_data(ledger_id, access_id))


def unsealed_origin(keys: LedgerKeys, sealed: bytes, ledger_id: int, access_id: UUID) -> dict[str, str]:
    """Unseal the origin of a denied attempt."""
    origin: dict[str, str] = orjson.loads(_sealing(keys).unseal(sealed, _associated_data(ledger_id, access_id)))
    return origin


def _sealing(keys: LedgerKeys) -> SealingKey:
    return SealingKey(keys.derived("refused attempts v1"))


def _associated_data(ledger_id: int, access_id: UUID) -> bytes:
    return b"refused attempt\0%d\0%b" % (ledger_id, access_id.bytes)
