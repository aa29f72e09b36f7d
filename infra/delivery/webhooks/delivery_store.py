"""The database side of delivery: which endpoints there are, how far each has come, and which messages wait.

A sender holds an endpoint's advisory lock, and a lease number that grew when it took over. Every write names the lease.
A sender that has lost its lock without noticing therefore changes nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from infra.delivery.webhooks.models import DeliveryProgress, Endpoint, Message, ProgressWrite

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from psycopg import AsyncConnection

    from infra.delivery.webhooks.models import DeliveryAttempt, DisabledReason
    from infra.postgres.pool import Database, LedgerConnection

KEEP_ATTEMPTS: Final = 10_000
KEEP_ATTEMPTS_DAYS: Final = 30
KEEP_DEAD: Final = 10_000
KEEP_DEAD_DAYS: Final = 30
KEEP_REQUESTS_HOURS: Final = 48
# Each is a time series of its own in the metrics. One worker sends to no more than these.
LAGS_MAX: Final = 1_000

_ENDPOINTS: Final = """
    SELECT w.webhook_id, w.ledger_id, l.name, w.revision, w.url, w.types, w.creator_ids, w.secret, w.old_secret,
           w.old_secret_until, w.resumed, w.moved, w.moved_to, w.retried,
           k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()),
           (SELECT h.history FROM histories h WHERE h.ledger_id = w.ledger_id ORDER BY h.generation DESC LIMIT 1),
           CASE WHEN c.ledger_id IS NULL THEN a.ledger_id IS NULL ELSE c.problem IS NULL END
    FROM webhooks w
    JOIN ledgers l ON l.ledger_id = w.ledger_id
    JOIN api_keys k ON k.key_id = w.key_id
    LEFT JOIN anchored_ledgers a ON a.ledger_id = w.ledger_id
    LEFT JOIN history_checks c ON c.ledger_id = w.ledger_id AND c.database = database_identity()
    WHERE w.disabled IS NULL
    ORDER BY w.webhook_id
"""

_TAKE_OVER: Final = """
    UPDATE webhook_progress
    SET lease = lease + 1, written = 0
    WHERE webhook_id = %s
    RETURNING lease, position, paused_until, failures, delivered_at, resumed, moved
"""

_MOVE: Final = "UPDATE webhook_progress SET moved = %s, position = %s WHERE webhook_id = %s"

# What waits is skipped or read again, and so is what is dead beyond the new position.
_DROP_MOVED: Final = """
    DELETE FROM webhook_messages
    WHERE webhook_id = %s
    AND position IS NOT NULL
    AND (NOT dead OR position > %s)
"""

_RESUME: Final = "UPDATE webhook_progress SET resumed = %s, paused_until = NULL, failures = 0 WHERE webhook_id = %s"

# Parked messages start their retries again: what failed at another URL, or before, says nothing about now.
_RESTART_RETRIES: Final = """
    UPDATE webhook_messages
    SET attempts = 0, first_at = NULL, next_at = now()
    WHERE webhook_id = %s
    AND NOT dead
"""

_MESSAGES: Final = """
    SELECT message_id, position, type, lane, dead, attempts, first_at, next_at, replayed
    FROM webhook_messages
    WHERE webhook_id = %s
    AND (NOT dead OR position > %s)
    ORDER BY position NULLS FIRST
"""

_WRITE_PROGRESS: Final = """
    UPDATE webhook_progress
    SET written = %(number)s, position = %(position)s, paused_until = %(paused_until)s, failures = %(failures)s,
        delivered = delivered + %(delivered)s, failed = failed + %(failed)s,
        delivered_at = coalesce(%(delivered_at)s, delivered_at), failed_at = coalesce(%(failed_at)s, failed_at),
        error = coalesce(%(error)s, error)
    WHERE webhook_id = %(webhook_id)s
    AND lease = %(lease)s
    AND written < %(number)s
    AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = webhook_progress.ledger_id) -- that this server serves
"""

_ALREADY_WRITTEN: Final = """
    SELECT confirm_commits()
    FROM webhook_progress
    WHERE webhook_id = %(webhook_id)s
    AND lease = %(lease)s
    AND written = %(number)s
"""

_PARK: Final = """
    INSERT INTO webhook_messages AS m (
        webhook_id, ledger_id, message_id, position, type, lane, dead, attempts, first_at, next_at, status, error)
    SELECT %s, %s, x.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::uuid[], %s::boolean[], %s::int[], %s::timestamptz[],
                %s::timestamptz[], %s::int[], %s::text[]) AS x
    ON CONFLICT (webhook_id, message_id) DO UPDATE
    SET dead = excluded.dead, attempts = excluded.attempts, first_at = excluded.first_at,
        next_at = excluded.next_at, status = excluded.status, error = excluded.error, noted_at = excluded.noted_at
"""

_ACK: Final = "DELETE FROM webhook_messages WHERE webhook_id = %s AND message_id = ANY (%s)"

_LOG_ATTEMPTS: Final = """
    INSERT INTO webhook_attempts (
        webhook_id, ledger_id, message_id, position, type, attempt, at, outcome, status, error, duration_ms, answer)
    SELECT %s, %s, x.*
    FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::int[],
                %s::text[], %s::int[], %s::bytea[]) AS x
"""

_DISABLE: Final = """
    UPDATE webhooks
    SET disabled = %s, disabled_at = now(), revision = revision + 1
    WHERE webhook_id = %s
    AND disabled IS NULL
"""

_DELETE_OLD_ATTEMPTS: Final = """
    DELETE FROM webhook_attempts
    WHERE webhook_id = %(webhook_id)s
    AND (
        at < now() - make_interval(days => %(days)s)
        OR attempt_id <= (
            SELECT attempt_id
            FROM webhook_attempts
            WHERE webhook_id = %(webhook_id)s
            ORDER BY attempt_id DESC
            OFFSET %(keep)s
            LIMIT 1
        )
    )
"""

_DELETE_OLD_DEAD: Final = """
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

# A disabled webhook has no sender, so every worker deletes these.
_DELETE_OLD_DEAD_OF_DISABLED: Final = """
    DELETE FROM webhook_messages
    WHERE webhook_id IN (SELECT webhook_id FROM webhooks WHERE disabled IS NOT NULL)
    AND dead
    AND noted_at < now() - make_interval(days => %s)
"""

_DELETE_OLD_REQUESTS: Final = "DELETE FROM webhook_requests WHERE recorded_at < now() - make_interval(hours => %s)"


class LeaseLost(Exception):
    """Another sender has taken the endpoint over, maybe on another server, or the webhook was deleted."""


class DeliveryStore:
    """Reads and writes the tables of webhooks with the worker's role."""

    def __init__(self, database: Database) -> None:
        """Take a database whose connections see every ledger."""
        self._database = database

    async def endpoints(self, connection: AsyncConnection[Any]) -> list[Endpoint]:
        """Return every endpoint that is not disabled."""
        return [Endpoint(*row) for row in await (await connection.execute(_ENDPOINTS)).fetchall()]

    async def take_over(self, endpoint: Endpoint) -> DeliveryProgress:
        """Take an endpoint's lease, so that its earlier sender can write nothing more.

        Where the webhook was enabled again or has another URL, its pause and its failures are void. Where its owner
        moved it, it goes on from there, and what was waiting or dead beyond is read again.

        Raises:
            LeaseLost: the webhook was deleted.

        """
        async with self._database.connection() as connection, connection.transaction():
            row = await (await connection.execute(_TAKE_OVER, (endpoint.webhook_id,))).fetchone()
            if row is None:
                raise LeaseLost
            *columns, resumed, moved = row
            progress = DeliveryProgress(*columns)
            # Not by a worker with an older copy of the endpoint.
            if moved < endpoint.moved and endpoint.moved_to is not None:
                await connection.execute(_MOVE, (endpoint.moved, endpoint.moved_to, endpoint.webhook_id))
                await connection.execute(_DROP_MOVED, (endpoint.webhook_id, endpoint.moved_to))
                progress.position = endpoint.moved_to
            # Compared by `!=`, not `<`: a worker with an older copy of the endpoint may have been here in between.
            if resumed != endpoint.resumed:
                await connection.execute(_RESUME, (endpoint.resumed, endpoint.webhook_id))
                await connection.execute(_RESTART_RETRIES, (endpoint.webhook_id,))
                progress.paused_until, progress.failures = None, 0
        return progress

    async def messages(self, webhook_id: UUID, beyond: int) -> list[Message]:
        """Return the parked messages in order, and the dead ones beyond a position."""

        async def query(connection: LedgerConnection) -> list[Any]:
            return await (await connection.execute(_MESSAGES, (webhook_id, beyond))).fetchall()

        return [
            Message(
                message_id=row[0],
                position=row[1],
                type=row[2],
                ordering_key=row[3],
                due=row[7].timestamp(),
                parked=True,
                dead=row[4],
                attempts=row[5],
                first_at=row[6],
                replayed=row[8],
            )
            for row in await self._database.read(None, query)
        ]

    async def write(self, endpoint: Endpoint, lease: int, entry: ProgressWrite, moment: datetime) -> None:
        """Write progress in one transaction. A number that is already written is not written again.

        Raises:
            LeaseLost: another sender has taken over.

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
            if (await connection.execute(_WRITE_PROGRESS, progress)).rowcount != 1:
                if await (await connection.execute(_ALREADY_WRITTEN, progress)).fetchone() is None:
                    raise LeaseLost
                return
            ids = (webhook_id, endpoint.ledger_id)
            if entry.parked:
                await connection.execute(_PARK, (*ids, *_message_columns(entry.parked.values())))
            if entry.acked:
                await connection.execute(_ACK, (webhook_id, entry.acked))
            if entry.attempts:
                await connection.execute(_LOG_ATTEMPTS, (*ids, *_attempt_columns(entry.attempts)))
            if entry.disable is not None:
                await connection.execute(_DISABLE, (entry.disable, webhook_id))

    async def disable(self, webhook_id: UUID, reason: DisabledReason) -> None:
        """Disable a webhook until its owner enables it again."""
        async with self._database.connection() as connection:
            await connection.execute(_DISABLE, (reason, webhook_id))

    async def show_error(self, webhook_id: UUID, error: str) -> None:
        """Show an error of our own to the webhook's owner."""
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE webhook_progress SET error = %s, failed_at = now() WHERE webhook_id = %s", (error, webhook_id)
            )

    async def delete_old(self, webhook_id: UUID) -> None:
        """Delete the attempts and dead messages of a webhook that are beyond their limits of age and number."""
        async with self._database.connection() as connection:
            attempts = {"webhook_id": webhook_id, "keep": KEEP_ATTEMPTS, "days": KEEP_ATTEMPTS_DAYS}
            await connection.execute(_DELETE_OLD_ATTEMPTS, attempts)
            dead = {"webhook_id": webhook_id, "keep": KEEP_DEAD, "days": KEEP_DEAD_DAYS}
            await connection.execute(_DELETE_OLD_DEAD, dead)

    async def delete_old_without_sender(self) -> None:
        """Delete old rows that no sender deletes: dead messages of disabled webhooks, and Idempotency-Keys."""
        async with self._database.connection() as connection:
            await connection.execute(_DELETE_OLD_DEAD_OF_DISABLED, (KEEP_DEAD_DAYS,))
            await connection.execute(_DELETE_OLD_REQUESTS, (KEEP_REQUESTS_HOURS,))


class ProgressBuffer:
    """The progress that a sender has not written yet.

    Writes are numbered. Where the database gave no reply it is unknown whether it has the write, so the same write is
    repeated before any other, and the database ignores a number that it has.
    """

    def __init__(self, store: DeliveryStore, endpoint: Endpoint, progress: DeliveryProgress, write_s: float) -> None:
        """Begin at the progress of an endpoint; a change is written `write_s` seconds later at the latest."""
        self._store = store
        self._endpoint = endpoint
        self._lease = progress.lease
        self._write_s = write_s
        self._written_position = progress.position
        self._numbers = itertools.count(1)
        self._pending = ProgressWrite()
        self._in_doubt: ProgressWrite | None = None
        # When the next write is due, in seconds since 1970.
        self.due = math.inf

    @property
    def in_doubt(self) -> bool:
        """Whether the last write has had no reply."""
        return self._in_doubt is not None

    @property
    def attempts(self) -> int:
        """The number of attempts that are not written yet."""
        return len(self._pending.attempts)

    def is_written(self, position: int) -> bool:
        """Return whether everything is written, and this position too."""
        return self._in_doubt is None and self._pending.is_empty and position == self._written_position

    def advance(self, position: int) -> None:
        """Take note of a position, to be written soon."""
        if position != self._written_position:
            self._write_soon()

    def park(self, message: Message) -> None:
        """Store a message that is parked or dead, as it will be when it is written."""
        self._pending.parked[message.message_id] = message
        self._write_soon()

    def ack(self, message: Message) -> None:
        """Remove a parked message."""
        self._pending.parked.pop(message.message_id, None)
        self._pending.acked.append(message.message_id)

    def log(self, attempt: DeliveryAttempt) -> None:
        """Add an attempt to the log of deliveries."""
        self._pending.attempts.append(attempt)
        self._write_soon()

    def disable(self, reason: DisabledReason) -> None:
        """Disable the webhook."""
        self._pending.disable = reason

    async def write(self, position: int, failures: int, paused_until: float) -> set[UUID]:
        """Write what is pending, or repeat the write in doubt; return the messages that are parked no longer.

        Raises:
            LeaseLost: another sender has taken over.

        """
        if self.is_written(position):
            self.due = math.inf
            return set()
        if self._in_doubt is None:
            self._in_doubt = self._next(position, failures, paused_until)
        entry = self._in_doubt
        await self._store.write(self._endpoint, self._lease, entry, datetime.now(UTC))
        self._in_doubt = None
        self._written_position = entry.position
        return {*entry.acked, *(id_ for id_, message in entry.parked.items() if message.dead)}

    def _next(self, position: int, failures: int, paused_until: float) -> ProgressWrite:
        entry, self._pending, self.due = self._pending, ProgressWrite(), math.inf
        entry.number, entry.position, entry.failures = next(self._numbers), position, failures
        entry.paused_until = datetime.fromtimestamp(paused_until, UTC) if paused_until else None
        # Copies, because the messages change while they are written.
        entry.parked = {message_id: replace(message) for message_id, message in entry.parked.items()}
        return entry

    def _write_soon(self) -> None:
        self.due = min(self.due, time.time() + self._write_s)


@dataclass(frozen=True, slots=True)
class WebhookLag:
    """How far one webhook is behind its ledger.

    Attributes:
        behind: the number of events beyond its position.
        oldest: when the first of those was recorded; None where there is none.

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


async def webhook_lags(database: Database) -> list[WebhookLag]:
    """Return the lag of every webhook in every ledger, for metrics. Both database roles may ask.

    The ids of webhooks do not reveal their owners.
    """

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute("SELECT * FROM webhook_lag(%s)", (LAGS_MAX,))).fetchall()

    return [WebhookLag(*row) for row in await database.read(None, query)]


def _message_columns(messages: Collection[Message]) -> list[list[Any]]:
    """Return the columns of `_PARK`."""
    rows = [
        (
            *(m.message_id, m.position, m.type, m.ordering_key, m.dead, m.attempts, m.first_at),
            *(datetime.fromtimestamp(m.due, UTC), m.status, m.error),
        )
        for m in messages
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _attempt_columns(attempts: Sequence[DeliveryAttempt]) -> list[list[Any]]:
    """Return the columns of `_LOG_ATTEMPTS`."""
    rows = [
        (a.message_id, a.position, a.type, a.attempt, a.at, a.outcome, a.status, a.error, a.duration_ms, a.answer)
        for a in attempts
    ]
    return [list(column) for column in zip(*rows, strict=True)]
