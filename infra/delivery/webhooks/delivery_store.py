"""What senders of webhooks read and write down: which endpoints there are, how far each has come, what must wait.

A sender holds an endpoint's advisory lock, and a number that was raised when it took over. Everything it writes is
bound to that number: one that lost its place, and does not know it yet, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from infra.delivery.webhooks.models import DeliveryProgress, Endpoint, Message

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from psycopg import AsyncConnection

    from infra.delivery.webhooks.models import DeliveryAttempt, DisabledReason, ProgressWrite
    from infra.postgres.pool import Database, LedgerConnection

KEEP_ATTEMPTS: Final = 10_000
KEEP_DEAD: Final = 10_000
KEEP_DEAD_DAYS: Final = 30
KEEP_REQUESTS_HOURS: Final = 48
# One time series each in the metrics, and more than one worker sends to.
LAGS_MAX: Final = 1_000

_ENDPOINTS: Final = """
    SELECT w.webhook_id, w.ledger_id, l.name, w.revision, w.url, w.types, w.creator_ids, w.secret, w.old_secret,
           w.old_secret_until, w.resumed,
           k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
    FROM webhooks w
    JOIN ledgers l ON l.ledger_id = w.ledger_id
    JOIN api_keys k ON k.key_id = w.key_id
    WHERE w.disabled IS NULL
    ORDER BY w.webhook_id
"""

_TAKE_OVER: Final = """
    UPDATE webhook_progress
    SET lease = lease + 1, written = 0
    WHERE webhook_id = %s
    RETURNING lease, position, paused_until, failures, delivered_at, resumed
"""

_RESUME: Final = "UPDATE webhook_progress SET resumed = %s, paused_until = NULL WHERE webhook_id = %s"

# Their schedule begins anew, too: that it was nearly over elsewhere, or then, says nothing of now.
_RESUME_MESSAGES: Final = """
    UPDATE webhook_messages
    SET attempts = 0, first_at = NULL, next_at = now()
    WHERE webhook_id = %s
    AND NOT dead
"""

_MESSAGES: Final = """
    SELECT message_id, position, type, lane, dead, attempts, first_at, next_at
    FROM webhook_messages
    WHERE webhook_id = %s
    AND (NOT dead OR position > %s)
    ORDER BY position NULLS FIRST
"""

_PROGRESS: Final = """
    UPDATE webhook_progress
    SET written = %(number)s, position = %(position)s, paused_until = %(paused_until)s, failures = %(failures)s,
        delivered = delivered + %(delivered)s, failed = failed + %(failed)s,
        delivered_at = coalesce(%(delivered_at)s, delivered_at), failed_at = coalesce(%(failed_at)s, failed_at),
        error = coalesce(%(error)s, error)
    WHERE webhook_id = %(webhook_id)s
    AND lease = %(lease)s
    AND written < %(number)s
"""

_WRITTEN: Final = """
    SELECT 1
    FROM webhook_progress
    WHERE webhook_id = %(webhook_id)s
    AND lease = %(lease)s
    AND written = %(number)s
"""

_KEEP: Final = """
    INSERT INTO webhook_messages AS m (
        webhook_id, ledger_id, message_id, position, type, lane, dead, attempts, first_at, next_at, status, error)
    SELECT %s, %s, x.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::uuid[], %s::boolean[], %s::int[], %s::timestamptz[],
                %s::timestamptz[], %s::int[], %s::text[]) AS x
    ON CONFLICT (webhook_id, message_id) DO UPDATE
    SET dead = excluded.dead, attempts = excluded.attempts, first_at = excluded.first_at,
        next_at = excluded.next_at, status = excluded.status, error = excluded.error, noted_at = excluded.noted_at
"""

_SETTLE: Final = "DELETE FROM webhook_messages WHERE webhook_id = %s AND message_id = ANY (%s)"

_LOG: Final = """
    INSERT INTO webhook_attempts (
        webhook_id, ledger_id, message_id, position, type, attempt, at, outcome, status, error, duration_ms)
    SELECT %s, %s, x.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::int[],
                %s::text[], %s::int[]) AS x
"""

_DISABLE: Final = """
    UPDATE webhooks
    SET disabled = %s, disabled_at = now(), revision = revision + 1
    WHERE webhook_id = %s
    AND disabled IS NULL
"""

_FORGET_ATTEMPTS: Final = """
    DELETE FROM webhook_attempts
    WHERE webhook_id = %(webhook_id)s
    AND attempt_id <= (
        SELECT attempt_id
        FROM webhook_attempts
        WHERE webhook_id = %(webhook_id)s
        ORDER BY attempt_id DESC
        OFFSET %(keep)s
        LIMIT 1
    )
"""

_FORGET_DEAD: Final = """
    DELETE FROM webhook_messages
    WHERE webhook_id = %(webhook_id)s
    AND dead
    AND (
        noted_at < now() - make_interval(days => %(days)s)
        OR position <= (
            SELECT position
            FROM webhook_messages
            WHERE webhook_id = %(webhook_id)s
            AND dead
            ORDER BY position DESC NULLS LAST
            OFFSET %(keep)s
            LIMIT 1
        )
    )
"""

# Nobody sends to these: each worker looks after all of them.
_FORGET_DEAD_OF_DISABLED: Final = """
    DELETE FROM webhook_messages
    WHERE webhook_id IN (SELECT webhook_id FROM webhooks WHERE disabled IS NOT NULL)
    AND dead
    AND noted_at < now() - make_interval(days => %s)
"""

_FORGET_REQUESTS: Final = "DELETE FROM webhook_requests WHERE recorded_at < now() - make_interval(hours => %s)"


@dataclass(frozen=True, slots=True)
class WebhookLag:
    """How far one webhook is behind its ledger.

    Attributes:
        behind: events that it has not looked at yet.
        oldest: when the oldest of those was recorded.

    """

    webhook_id: UUID
    disabled: bool
    position: int
    behind: int
    oldest: datetime | None
    waiting: int
    dead: int
    failures: int
    delivered: int
    failed: int

    def behind_s(self, now: datetime) -> float:
        """Return how long the oldest event waits, in seconds; 0 where none does."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


class LeaseLost(Exception):
    """Another sender has taken the endpoint over, or it was deleted."""


class DeliveryStore:
    """The tables of webhooks, with the worker's rights."""

    def __init__(self, database: Database) -> None:
        """Take sessions that see every ledger."""
        self._database = database

    async def endpoints(self, connection: AsyncConnection[Any]) -> list[Endpoint]:
        """Return every endpoint that is not disabled."""
        return [Endpoint(*row) for row in await (await connection.execute(_ENDPOINTS)).fetchall()]

    async def take_over(self, endpoint: Endpoint) -> DeliveryProgress:
        """Begin to send to an endpoint; whoever did before can write nothing more.

        What its receiver asked for, and how often it failed, is void where it was enabled again or has another URL.

        Raises:
            Overtaken: it was deleted.
            Unavailable: the database is away; here and below.

        """
        async with self._database.connection() as connection, connection.transaction():
            row = await (await connection.execute(_TAKE_OVER, (endpoint.webhook_id,))).fetchone()
            if row is None:
                raise LeaseLost
            *standing, resumed = row
            found = DeliveryProgress(*standing)
            # Not where it is more alone: a worker that knew an older endpoint may have been here in between.
            if resumed != endpoint.resumed:
                await connection.execute(_RESUME, (endpoint.resumed, endpoint.webhook_id))
                await connection.execute(_RESUME_MESSAGES, (endpoint.webhook_id,))
                found.paused_until = None
        return found

    async def messages(self, webhook_id: UUID, beyond: int) -> list[Message]:
        """Return the messages that wait, in order, and among them the dead ones beyond a position."""

        async def query(connection: LedgerConnection) -> list[Any]:
            return await (await connection.execute(_MESSAGES, (webhook_id, beyond))).fetchall()

        return [
            Message(
                message_id=row[0],
                position=row[1],
                type=row[2],
                lane=row[3],
                due=row[7].timestamp(),
                kept=True,
                dead=row[4],
                attempts=row[5],
                first_at=row[6],
            )
            for row in await self._database.read(None, query)
        ]

    async def write(self, endpoint: Endpoint, lease: int, entry: ProgressWrite, moment: datetime) -> None:
        """Write down what happened, whole or not at all, and once: what was written under its number stays as it is.

        Raises:
            Overtaken: another sender has taken over.

        """
        webhook_id = endpoint.webhook_id
        failed = [a for a in entry.attempts if a.outcome != "delivered"]
        progress = {
            "webhook_id": webhook_id,
            "lease": lease,
            "number": entry.number,
            "position": entry.position,
            "paused_until": entry.paused_until,
            "failures": entry.failures,
            "delivered": len(entry.attempts) - len(failed),
            "failed": len(failed),
            "delivered_at": moment if len(failed) < len(entry.attempts) else None,
            "failed_at": moment if failed else None,
            "error": failed[-1].error if failed else None,
        }
        async with self._database.connection() as connection, connection.transaction():
            if (await connection.execute(_PROGRESS, progress)).rowcount != 1:
                if await (await connection.execute(_WRITTEN, progress)).fetchone() is None:
                    raise LeaseLost
                return
            both = (webhook_id, endpoint.ledger_id)
            if entry.keep:
                await connection.execute(_KEEP, (*both, *_kept(entry.keep.values())))
            if entry.settle:
                await connection.execute(_SETTLE, (webhook_id, entry.settle))
            if entry.attempts:
                await connection.execute(_LOG, (*both, *_logged(entry.attempts)))
            if entry.disable is not None:
                await connection.execute(_DISABLE, (entry.disable, webhook_id))

    async def disable(self, webhook_id: UUID, why: DisabledReason) -> None:
        """Send nothing more to an endpoint, until somebody enables it again."""
        async with self._database.connection() as connection:
            await connection.execute(_DISABLE, (why, webhook_id))

    async def complain(self, webhook_id: UUID, error: str) -> None:
        """Tell the endpoint's owner what keeps it from being sent to, where that is none of the receiver's doing."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE webhook_progress SET error = %s, failed_at = now() WHERE webhook_id = %s", (error, webhook_id)
            )

    async def forget(self, webhook_id: UUID) -> None:
        """Drop what is too old, or too much, of an endpoint's attempts and dead letters."""
        async with self._database.connection() as connection:
            await connection.execute(_FORGET_ATTEMPTS, {"webhook_id": webhook_id, "keep": KEEP_ATTEMPTS})
            dead = {"webhook_id": webhook_id, "keep": KEEP_DEAD, "days": KEEP_DEAD_DAYS}
            await connection.execute(_FORGET_DEAD, dead)

    async def forget_unattended(self) -> None:
        """Drop what is too old and no sender looks after: dead letters of disabled webhooks, and Idempotency-Keys."""
        async with self._database.connection() as connection:
            await connection.execute(_FORGET_DEAD_OF_DISABLED, (KEEP_DEAD_DAYS,))
            await connection.execute(_FORGET_REQUESTS, (KEEP_REQUESTS_HOURS,))


def _kept(messages: Collection[Message]) -> list[list[Any]]:
    """Return the columns of `_KEEP`."""
    rows = [
        (
            *(m.message_id, m.position, m.type, m.lane, m.dead, m.attempts, m.first_at),
            *(datetime.fromtimestamp(m.due, UTC), m.status, m.error),
        )
        for m in messages
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _logged(attempts: Sequence[DeliveryAttempt]) -> list[list[Any]]:
    """Return the columns of `_LOG`."""
    rows = [
        (a.message_id, a.position, a.type, a.attempt, a.at, a.outcome, a.status, a.error, a.duration_ms)
        for a in attempts
    ]
    return [list(column) for column in zip(*rows, strict=True)]


async def webhook_lags(database: Database) -> list[WebhookLag]:
    """Return the lag of every webhook in every ledger, for metrics; the ids reveal nothing about their owners.

    Both database roles may call it.
    """

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute("SELECT * FROM webhook_lag(%s)", (LAGS_MAX,))).fetchall()

    return [WebhookLag(*row) for row in await database.read(None, query)]
