"""Webhooks as their owners see and change them: subscriptions, secrets, dead letters and the log of deliveries.

The owner of a webhook is an API key; an administrator acts for all owners of the ledger. A webhook of another owner
looks as if it did not exist. Nothing is sent here: the worker reads the same tables.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from infra.auth.key_admin import lock_valid_key
from infra.delivery.event_schemas import TEST
from infra.delivery.webhooks.idempotent_requests import first_answer, remember_answer
from infra.delivery.webhooks.models import (
    DeadLetter,
    Delivery,
    OwnerKeyInvalid,
    Replayed,
    TooManyWebhooks,
    Webhook,
    WebhookDisabled,
    WebhookNotFound,
)
from infra.delivery.webhooks.signing import (
    SECRET_BYTES,
    WebhookSealer,
    secret_text,
)
from infra.ids import uuid7
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from infra.crypto.keyring import Keyring
    from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
    from infra.delivery.webhooks.models import DeliveryOutcome, Owner, ReplayRange
    from infra.postgres.pool import Database, LedgerConnection

MAX_WEBHOOKS: Final = 100
MAX_WEBHOOKS_OF_A_KEY: Final = MAX_WEBHOOKS // 2
MAX_REPLAYED: Final = 1_000
# Positions that are looked through for one request.
MAX_REPLAY_SCANNED: Final = 100_000
# Test messages that may wait, for example while the receiver has asked for a pause.
MAX_WAITING_TESTS: Final = 10

_COLUMNS: Final = """
    w.webhook_id, w.key_id, w.url, w.description, w.types, w.creator_ids, w.created_at, w.disabled, w.disabled_at,
    w.old_secret_until, CASE WHEN w.moved > p.moved THEN w.moved_to ELSE p.position END, h.head, n.recorded_at,
    m.waiting, m.dead, p.failures, p.delivered, p.failed, p.delivered_at, p.failed_at, p.error, p.paused_until
"""

# OFFSET 0 makes the position a column, which an index is used for (infra/postgres/roles.py says why).
_FROM: Final = """
    FROM webhooks w
    JOIN webhook_progress p ON p.webhook_id = w.webhook_id
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = w.ledger_id
    ) h
    CROSS JOIN LATERAL (
        SELECT CASE WHEN w.moved > p.moved THEN w.moved_to ELSE p.position END + 1 AS position OFFSET 0
    ) due
    CROSS JOIN LATERAL (
        SELECT (
            SELECT e.recorded_at FROM events e WHERE e.ledger_id = w.ledger_id AND e.position = due.position
        ) AS recorded_at
    ) n
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE NOT dead) AS waiting, count(*) FILTER (WHERE dead) AS dead
        FROM webhook_messages m WHERE m.webhook_id = w.webhook_id
    ) m
"""

# `key_id` is null for an owner who acts for all of the ledger.
_OWNED: Final = "w.ledger_id = %(ledger_id)s AND (%(key_id)s::uuid IS NULL OR w.key_id = %(key_id)s)"

_LIST: Final = f"SELECT {_COLUMNS} {_FROM} WHERE {_OWNED} ORDER BY w.webhook_id DESC"
_ONE: Final = f"SELECT {_COLUMNS} {_FROM} WHERE {_OWNED} AND w.webhook_id = %(webhook_id)s"
_EXISTS: Final = f"SELECT 1 FROM webhooks w WHERE {_OWNED} AND w.webhook_id = %(webhook_id)s"
_LOCK: Final = f"SELECT disabled, url FROM webhooks w WHERE {_OWNED} AND w.webhook_id = %(webhook_id)s FOR UPDATE"

# Webhooks of a ledger are created one after the other, so that their number is right.
_LOCK_COUNT: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_CREATE: Final = """
    INSERT INTO webhooks (
        webhook_id, ledger_id, key_id, url, description, types, creator_ids, secret, disabled, disabled_at)
    VALUES (
        %s, %s, %s, %s, %s, %s, %s, %s, CASE WHEN %s THEN NULL ELSE 'asked' END, CASE WHEN %s THEN NULL ELSE now() END)
"""
_COUNT: Final = "SELECT count(*), count(*) FILTER (WHERE key_id = %s) FROM webhooks"
_CREATE_PROGRESS: Final = "INSERT INTO webhook_progress (webhook_id, ledger_id, position) VALUES (%s, %s, %s)"

_CHANGE: Final = """
    UPDATE webhooks
    SET url = coalesce(%(url)s, url),
        description = CASE WHEN %(describe)s THEN %(description)s ELSE description END,
        types = coalesce(%(types)s, types),
        creator_ids = coalesce(%(creator_ids)s, creator_ids),
        disabled = CASE %(enabled)s::boolean
            WHEN true THEN NULL
            WHEN false THEN coalesce(disabled, 'asked')
            ELSE disabled
        END,
        disabled_at = CASE %(enabled)s::boolean
            WHEN true THEN NULL
            WHEN false THEN coalesce(disabled_at, now())
            ELSE disabled_at
        END,
        moved = moved + (%(after)s::bigint IS NOT NULL)::int,
        moved_to = coalesce(%(after)s, moved_to),
        revision = revision + 1,
        resumed = resumed + (%(url)s::bytea IS NOT NULL OR disabled IS NOT NULL AND %(enabled)s IS true)::int
    WHERE webhook_id = %(webhook_id)s
"""

_ROTATE: Final = """
    UPDATE webhooks
    SET old_secret = CASE WHEN %(until)s::timestamptz IS NOT NULL THEN secret END,
        old_secret_until = %(until)s,
        secret = %(secret)s,
        revision = revision + 1
    WHERE webhook_id = %(webhook_id)s
"""

_ADD_TEST: Final = """
    INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, type, lane)
    VALUES (%s, %s, %s, %s, %s)
"""

_WAITING_TESTS: Final = """
    SELECT message_id
    FROM webhook_messages
    WHERE webhook_id = %s
    AND NOT dead
    AND position IS NULL
    ORDER BY message_id DESC
    LIMIT %s
"""

_REPLAY: Final = """
    UPDATE webhook_messages m
    SET dead = false, attempts = 0, first_at = NULL, next_at = now(), replayed = true,
        lane = coalesce((
            SELECT md5('replay ' || e.stream_id)::uuid
            FROM events e
            WHERE e.ledger_id = m.ledger_id AND e.position = m.position
        ), m.lane)
    WHERE webhook_id = %(webhook_id)s
    AND message_id IN (
        SELECT message_id
        FROM webhook_messages
        WHERE webhook_id = %(webhook_id)s
        AND dead
        AND (%(message_ids)s::uuid[] IS NULL OR message_id = ANY (%(message_ids)s))
        ORDER BY position
        LIMIT %(limit)s
    )
"""

# Events of a code are replayed in order, in a lane of their own: newer ones do not wait for them. What still waits for
# its first delivery is left alone, and what is dead is revived.
_REPLAY_RANGE: Final = """
    WITH chosen AS MATERIALIZED (
        SELECT e.event_id, e.position, e.type, e.stream_id
        FROM webhooks w
        JOIN webhook_progress p ON p.webhook_id = w.webhook_id
        JOIN events e ON e.ledger_id = w.ledger_id
        WHERE w.webhook_id = %(webhook_id)s
        AND e.position > %(after)s
        AND e.position <= least(%(upto)s, p.position)
        AND (w.types = '{}' OR e.type = ANY (w.types))
        AND (w.creator_ids = '{}' OR lower(e.creator_id) IN (SELECT lower(c) FROM unnest(w.creator_ids) c))
        ORDER BY e.position
        LIMIT %(limit)s
    ), replayed AS (
        INSERT INTO webhook_messages AS m (webhook_id, ledger_id, message_id, position, type, lane, replayed)
        SELECT %(webhook_id)s, %(ledger_id)s, event_id, position, type, md5('replay ' || stream_id)::uuid, true
        FROM chosen
        ON CONFLICT (webhook_id, message_id) DO UPDATE
        SET dead = false, attempts = 0, first_at = NULL, next_at = now(), lane = excluded.lane, replayed = true
        WHERE m.dead
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM replayed), count(*), max(position),
           (SELECT position FROM webhook_progress WHERE webhook_id = %(webhook_id)s)
    FROM chosen
"""

_RETRY_NOW: Final = "UPDATE webhook_messages SET next_at = now() WHERE webhook_id = %s AND NOT dead"
_RETRIED: Final = "UPDATE webhooks SET retried = retried + 1, revision = revision + 1 WHERE webhook_id = %s"

_RAISE_REVISION: Final = "UPDATE webhooks SET revision = revision + 1 WHERE webhook_id = %s"

_DEAD_LETTERS: Final = """
    SELECT message_id, position, type, attempts, first_at, status, error
    FROM webhook_messages
    WHERE webhook_id = %s
    AND dead
    AND position > %s
    ORDER BY position
    LIMIT %s
"""

_ATTEMPTS: Final = """
    SELECT attempt_id, message_id, position, type, attempt, at, outcome, status, error, duration_ms, answer
    FROM webhook_attempts
    WHERE webhook_id = %s
    AND attempt_id < %s
    AND (%s::text IS NULL OR outcome = %s)
    ORDER BY attempt_id DESC
    LIMIT %s
"""


class WebhookSubscriptions:
    """Reads and changes the webhooks of an owner."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the database, and the keys that secrets, URLs and descriptions are sealed with."""
        self._database = database
        self._keyring = keyring

    async def create(
        self,
        owner: Owner,
        *,
        url: str,
        description: str | None,
        types: Sequence[str],
        creator_ids: Sequence[str],
        after: int,
        enabled: bool = True,
        secret: bytes | None = None,
        request: IdempotentRequest | None = None,
    ) -> tuple[Webhook, str, bool]:
        """Create a webhook whose first event is the one after a position; without a secret of the owner's, one is made.

        Returns:
            The webhook, its secret, and whether this request was a repeat. The secret is empty for a repeat, and where
            the owner has given it.

        Raises:
            TooManyWebhooks: the ledger, or the key, has reached its limit.
            KeyNoLongerValid: the owner's key was revoked in the meantime; here and below.
            IdempotencyMismatch: the Idempotency-Key was used for another request; here and below.

        """
        sealer = await self._sealer(owner)
        made = None if secret is not None else os.urandom(SECRET_BYTES)
        async with self._changing(owner) as connection:
            answered = await first_answer(connection, owner, request)
            webhook_id = uuid7() if answered is None else UUID(answered["webhook_id"])
            if answered is None:
                await connection.execute(_LOCK_COUNT, (AdvisoryLock.WEBHOOK_COUNT, owner.ledger_id))
                row = await (await connection.execute(_COUNT, (owner.key_id,))).fetchone()
                if row is None or row[0] >= MAX_WEBHOOKS or row[1] >= MAX_WEBHOOKS_OF_A_KEY:
                    raise TooManyWebhooks
                columns = (
                    sealer.seal("url", url.encode(), webhook_id),
                    _sealed_description(sealer, description, webhook_id),
                    list(types),
                    list(creator_ids),
                    sealer.seal("secret", secret or made or b"", webhook_id),
                    *(enabled, enabled),
                )
                await connection.execute(_CREATE, (webhook_id, owner.ledger_id, owner.key_id, *columns))
                await connection.execute(_CREATE_PROGRESS, (webhook_id, owner.ledger_id, after))
                await remember_answer(connection, owner, request, webhook_id=webhook_id)
            webhook = await _one(connection, owner, webhook_id, sealer)
        shown = "" if made is None or answered is not None else secret_text(made)
        return webhook, shown, answered is not None

    async def all(self, owner: Owner) -> list[Webhook]:
        """Return the webhooks, newest first."""

        async def query(connection: LedgerConnection) -> list[Webhook]:
            rows = await (await connection.execute(_LIST, owner.parameters)).fetchall()
            return [_webhook(row, sealer) for row in rows]

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def one(self, owner: Owner, webhook_id: UUID) -> Webhook:
        """Return a webhook.

        Raises:
            WebhookNotFound: the owner has no such webhook; here and below.

        """

        async def query(connection: LedgerConnection) -> Webhook:
            return await _one(connection, owner, webhook_id, sealer)

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def change(self, owner: Owner, webhook_id: UUID, **changes: Any) -> Webhook:
        """Change the given fields: `url`, `description`, `types`, `creator_ids`, `enabled`, `after`.

        With `after`, the sender goes on after this position, and what was waiting or dead beyond it is read again.

        Raises:
            OwnerKeyInvalid: the webhook cannot be enabled, because its key is not valid.

        """
        sealer = await self._sealer(owner)
        given = dict.fromkeys(("url", "description", "types", "creator_ids", "enabled", "after")) | changes
        describe = "description" in changes
        if describe:
            given["description"] = _sealed_description(sealer, given["description"], webhook_id)
        async with self._changing(owner) as connection:
            sealed_url = await _lock(connection, owner, webhook_id)
            if changes.get("enabled"):
                await _require_valid_owner(connection, webhook_id)
            if given["url"] is not None:
                url = given["url"].encode()
                # The same URL sealed again would look like another one, and void the pause that its receiver asked for.
                is_same = url == sealer.unseal("url", sealed_url, webhook_id)
                given["url"] = None if is_same else sealer.seal("url", url, webhook_id)
            await connection.execute(_CHANGE, {**given, "describe": describe, "webhook_id": webhook_id})
            return await _one(connection, owner, webhook_id, sealer)

    async def rotate(
        self, owner: Owner, webhook_id: UUID, overlap: timedelta, request: IdempotentRequest | None = None
    ) -> tuple[Webhook, str, bool]:
        """Replace a webhook's secret; messages bear both signatures until the overlap ends.

        Returns:
            The webhook, the new secret, and whether this request was a repeat, whose secret is empty.

        """
        sealer = await self._sealer(owner)
        secret = os.urandom(SECRET_BYTES)
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id)
            answered = await first_answer(connection, owner, request)
            if answered is None:
                sealed = sealer.seal("secret", secret, webhook_id)
                until = datetime.now(UTC) + overlap if overlap else None
                await connection.execute(_ROTATE, {"webhook_id": webhook_id, "secret": sealed, "until": until})
                await remember_answer(connection, owner, request, webhook_id=webhook_id)
            webhook = await _one(connection, owner, webhook_id, sealer)
        return webhook, secret_text(secret) if answered is None else "", answered is not None

    async def delete(self, owner: Owner, webhook_id: UUID) -> None:
        """Delete a webhook, its messages and its log of deliveries."""
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id)
            await connection.execute("DELETE FROM webhooks WHERE webhook_id = %s", (webhook_id,))

    async def test(self, owner: Owner, webhook_id: UUID, request: IdempotentRequest | None = None) -> tuple[UUID, bool]:
        """Have a test message sent; return its id, and whether this request was a repeat.

        Where too many tests wait already, return the id of the newest one.

        Raises:
            WebhookDisabled: the webhook is disabled.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            answered = await first_answer(connection, owner, request)
            if answered is not None:
                return UUID(answered["message_id"]), True
            waiting = await (await connection.execute(_WAITING_TESTS, (webhook_id, MAX_WAITING_TESTS))).fetchall()
            if len(waiting) < MAX_WAITING_TESTS:
                message_id = uuid7()
                await connection.execute(_ADD_TEST, (webhook_id, owner.ledger_id, message_id, TEST, message_id))
                await connection.execute(_RAISE_REVISION, (webhook_id,))
            else:
                message_id = waiting[0][0]
            await remember_answer(connection, owner, request, message_id=message_id)
            return message_id, False

    async def replay(
        self,
        owner: Owner,
        webhook_id: UUID,
        message_ids: Sequence[UUID] | None,
        request: IdempotentRequest | None = None,
    ) -> tuple[int, bool]:
        """Replay the named dead letters, or the oldest; return how many, and whether this request was a repeat.

        Raises:
            WebhookDisabled: the webhook is disabled.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            answered = await first_answer(connection, owner, request)
            if answered is not None:
                return int(answered["replayed"]), True
            named = None if message_ids is None else list(message_ids)
            cursor = await connection.execute(
                _REPLAY, {"webhook_id": webhook_id, "message_ids": named, "limit": MAX_REPLAYED}
            )
            await connection.execute(_RAISE_REVISION, (webhook_id,))
            await remember_answer(connection, owner, request, replayed=cursor.rowcount)
            return cursor.rowcount, False

    async def replay_range(
        self, owner: Owner, webhook_id: UUID, wanted: ReplayRange, request: IdempotentRequest | None = None
    ) -> tuple[Replayed, bool]:
        """Send the events of a range again that the webhook wants, delivered or dead; and recognise a repeated request.

        Raises:
            WebhookDisabled: the webhook is disabled.

        """
        upto = min(wanted.upto, wanted.after + MAX_REPLAY_SCANNED)
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            answered = await first_answer(connection, owner, request)
            if answered is not None:
                return Replayed(int(answered["replayed"]), answered["next"]), True
            asked = {"webhook_id": webhook_id, "ledger_id": owner.ledger_id, "after": wanted.after, "upto": upto}
            cursor = await connection.execute(_REPLAY_RANGE, {**asked, "limit": MAX_REPLAYED})
            messages, chosen, last, reached = await cursor.fetchone() or (0, 0, None, 0)
            further = last if chosen == MAX_REPLAYED else upto if upto < min(wanted.upto, reached) else None
            replayed = Replayed(messages, further)
            await connection.execute(_RAISE_REVISION, (webhook_id,))
            await remember_answer(connection, owner, request, replayed=replayed.messages, next=replayed.next)
            return replayed, False

    async def retry(self, owner: Owner, webhook_id: UUID) -> int:
        """Make all messages that wait due now, whatever pause the receiver asked for; return how many.

        Raises:
            WebhookDisabled: the webhook is disabled.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            cursor = await connection.execute(_RETRY_NOW, (webhook_id,))
            await connection.execute(_RETRIED, (webhook_id,))
            return cursor.rowcount

    async def dead_letters(self, owner: Owner, webhook_id: UUID, *, after: int, limit: int) -> list[DeadLetter]:
        """Return the dead letters beyond a position, in order."""

        async def query(connection: LedgerConnection) -> list[DeadLetter]:
            await _require_webhook(connection, owner, webhook_id)
            cursor = await connection.execute(_DEAD_LETTERS, (webhook_id, after, limit))
            return [DeadLetter(*row) for row in await cursor.fetchall()]

        return await self._database.read(owner.ledger_id, query)

    async def deliveries(
        self, owner: Owner, webhook_id: UUID, *, before: int, outcome: DeliveryOutcome | None, limit: int
    ) -> list[Delivery]:
        """Return the attempts before one of them, the newest first."""

        async def query(connection: LedgerConnection) -> list[Delivery]:
            await _require_webhook(connection, owner, webhook_id)
            cursor = await connection.execute(_ATTEMPTS, (webhook_id, before, outcome, outcome, limit))
            return [_delivery(row, sealer, webhook_id) for row in await cursor.fetchall()]

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def _sealer(self, owner: Owner) -> WebhookSealer:
        return WebhookSealer(await self._keyring.ledger(owner.ledger_id))

    @asynccontextmanager
    async def _changing(self, owner: Owner) -> AsyncIterator[LedgerConnection]:
        """Open a transaction that also locks the owner's key, so that a revoked key changes nothing."""
        async with self._database.connection(owner.ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, owner.ledger_id, owner.key_id)
            yield connection


def _webhook(row: Sequence[Any], sealer: WebhookSealer) -> Webhook:
    webhook_id, key_id, url, description, *columns = row
    return Webhook(
        webhook_id,
        key_id,
        sealer.unseal("url", url, webhook_id).decode(),
        None if description is None else sealer.unseal("description", description, webhook_id).decode(),
        *columns,
    )


def _delivery(row: Sequence[Any], sealer: WebhookSealer, webhook_id: UUID) -> Delivery:
    *columns, answer = row
    text = None if answer is None else sealer.unseal("answer", answer, webhook_id).decode("utf-8", "replace")
    return Delivery(*(*columns, text))


def _sealed_description(sealer: WebhookSealer, description: str | None, webhook_id: UUID) -> bytes | None:
    return None if description is None else sealer.seal("description", description.encode(), webhook_id)


async def _one(connection: LedgerConnection, owner: Owner, webhook_id: UUID, sealer: WebhookSealer) -> Webhook:
    row = await (await connection.execute(_ONE, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound
    return _webhook(row, sealer)


async def _require_webhook(connection: LedgerConnection, owner: Owner, webhook_id: UUID) -> None:
    row = await (await connection.execute(_EXISTS, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound


async def _lock(connection: LedgerConnection, owner: Owner, webhook_id: UUID, *, enabled: bool = False) -> bytes:
    """Lock a webhook for a change, and return its sealed URL."""
    row = await (await connection.execute(_LOCK, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound
    if enabled and row[0] is not None:
        raise WebhookDisabled
    return bytes(row[1])


async def _require_valid_owner(connection: LedgerConnection, webhook_id: UUID) -> None:
    cursor = await connection.execute(
        "SELECT 1 FROM webhooks w JOIN api_keys k ON k.key_id = w.key_id WHERE w.webhook_id = %s"
        " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())",
        (webhook_id,),
    )
    if await cursor.fetchone() is None:
        raise OwnerKeyInvalid
