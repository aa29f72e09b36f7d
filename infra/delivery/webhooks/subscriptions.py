"""Webhooks as their owners see and change them: endpoints, secrets, dead letters, the log of deliveries.

Whoever owns a webhook is an API key; an administrator owns all of the ledger's. What is not one's own is not there.
Nothing is sent from here: senders (`infra.delivery.webhooks.worker`) look into the same tables.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from infra.auth.key_admin import lock_valid_key
from infra.delivery.webhooks.models import (
    DeadLetter,
    Delivery,
    OwnerKeyInvalid,
    TooManyWebhooks,
    Webhook,
    WebhookDisabled,
    WebhookNotFound,
)
from infra.delivery.webhooks.signing import (
    SALT_BYTES,
    SECRET_BYTES,
    TEST,
    WebhookSealer,
    repeatable_secret,
    secret_text,
)
from infra.errors import IdempotencyMismatch
from infra.ids import uuid7
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.delivery.webhooks.models import DeliveryOutcome, IdempotentRequest, Owner
    from infra.postgres.pool import Database, LedgerConnection

MAX_WEBHOOKS: Final = 100
MAX_REPLAYED: Final = 1_000
# Tests that wait to be sent, as while a receiver has asked to be left alone.
MAX_TESTS: Final = 10

_COLUMNS: Final = """
    w.webhook_id, w.key_id, w.url, w.description, w.types, w.creator_ids, w.created_at, w.disabled, w.disabled_at,
    w.old_secret_until, p.position, h.head, n.recorded_at, m.waiting, m.dead, p.failures, p.delivered, p.failed,
    p.delivered_at, p.failed_at, p.error, p.paused_until
"""

_FROM: Final = """
    FROM webhooks w
    JOIN webhook_progress p ON p.webhook_id = w.webhook_id
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = w.ledger_id
    ) h
    LEFT JOIN events n ON n.ledger_id = w.ledger_id AND n.position = p.position + 1
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE NOT dead) AS waiting, count(*) FILTER (WHERE dead) AS dead
        FROM webhook_messages m WHERE m.webhook_id = w.webhook_id
    ) m
"""

# `key_id` is null for whoever owns all of the ledger's.
_OWN: Final = "w.ledger_id = %(ledger_id)s AND (%(key_id)s::uuid IS NULL OR w.key_id = %(key_id)s)"

_LIST: Final = f"SELECT {_COLUMNS} {_FROM} WHERE {_OWN} ORDER BY w.webhook_id DESC"
_ONE: Final = f"SELECT {_COLUMNS} {_FROM} WHERE {_OWN} AND w.webhook_id = %(webhook_id)s"
_KNOWN: Final = f"SELECT 1 FROM webhooks w WHERE {_OWN} AND w.webhook_id = %(webhook_id)s"
_LOCK: Final = f"SELECT disabled, url FROM webhooks w WHERE {_OWN} AND w.webhook_id = %(webhook_id)s FOR UPDATE"

# Whoever creates one waits for whoever else does, so that both count right.
_COUNT_ALONE: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_CREATE: Final = """
    INSERT INTO webhooks (webhook_id, ledger_id, key_id, url, description, types, creator_ids, secret)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
_BEGIN: Final = "INSERT INTO webhook_progress (webhook_id, ledger_id, position) VALUES (%s, %s, %s)"

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

_ASK: Final = """
    INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, type, lane)
    VALUES (%s, %s, %s, %s, %s)
"""

_TESTS: Final = """
    SELECT message_id
    FROM webhook_messages
    WHERE webhook_id = %s
    AND NOT dead
    AND position IS NULL
    ORDER BY message_id DESC
    LIMIT %s
"""

_REPLAY: Final = """
    UPDATE webhook_messages
    SET dead = false, attempts = 0, first_at = NULL, next_at = now(), lane = message_id
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

_NOTICE: Final = "UPDATE webhooks SET revision = revision + 1 WHERE webhook_id = %s"

_DEAD: Final = """
    SELECT message_id, position, type, attempts, first_at, status, error
    FROM webhook_messages
    WHERE webhook_id = %s
    AND dead
    AND position > %s
    ORDER BY position
    LIMIT %s
"""

_ATTEMPTS: Final = """
    SELECT attempt_id, message_id, position, type, attempt, at, outcome, status, error, duration_ms
    FROM webhook_attempts
    WHERE webhook_id = %s
    AND attempt_id < %s
    AND (%s::text IS NULL OR outcome = %s)
    ORDER BY attempt_id DESC
    LIMIT %s
"""


class WebhookSubscriptions:
    """The webhooks of all ledgers, one ledger at a time."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the sessions, and the keys under which secrets, URLs and descriptions are sealed."""
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
        asked: IdempotentRequest | None = None,
    ) -> tuple[Webhook, str, bool]:
        """Begin a webhook, whose first event is the one after a position.

        Returns:
            It, its secret, which is told once, and whether it was created before by the same request.

        Raises:
            TooManyWebhooks: the ledger has as many as it may.
            KeyNoLongerValid: the key that asks was revoked meanwhile; here and below.
            IdempotencyMismatch: the Idempotency-Key was used for another request; here and below.
            Unavailable: the database is away; here and below.

        """
        keys = await self._keyring.ledger(owner.ledger_id)
        sealing = WebhookSealer(keys)
        async with self._changing(owner) as connection:
            told = await self._told(connection, owner, asked)
            secret, salt = _secret(keys, owner, asked, told)
            webhook_id = uuid7() if told is None else UUID(told["webhook_id"])
            if told is None:
                await connection.execute(_COUNT_ALONE, (AdvisoryLock.WEBHOOK_COUNT, owner.ledger_id))
                row = await (await connection.execute("SELECT count(*) FROM webhooks")).fetchone()
                if row is None or row[0] >= MAX_WEBHOOKS:
                    raise TooManyWebhooks
                given = (
                    sealing.seal("url", url.encode(), webhook_id),
                    _sealed_description(sealing, description, webhook_id),
                    list(types),
                    list(creator_ids),
                    sealing.seal("secret", secret, webhook_id),
                )
                await connection.execute(_CREATE, (webhook_id, owner.ledger_id, owner.key_id, *given))
                await connection.execute(_BEGIN, (webhook_id, owner.ledger_id, after))
                await self._tell(connection, owner, asked, webhook_id=webhook_id, salt=salt)
            found = await _one(connection, owner, webhook_id, sealing)
        return found, secret_text(secret), told is not None

    async def all(self, owner: Owner) -> list[Webhook]:
        """Return the webhooks, newest first."""

        async def query(connection: LedgerConnection) -> list[Webhook]:
            rows = await (await connection.execute(_LIST, owner.parameters)).fetchall()
            return [_webhook(row, sealing) for row in rows]

        sealing = await self._sealing(owner)
        return await self._database.read(owner.ledger_id, query)

    async def one(self, owner: Owner, webhook_id: UUID) -> Webhook:
        """Return a webhook.

        Raises:
            WebhookUnknown: there is none; here and below.

        """

        async def query(connection: LedgerConnection) -> Webhook:
            return await _one(connection, owner, webhook_id, sealing)

        sealing = await self._sealing(owner)
        return await self._database.read(owner.ledger_id, query)

    async def change(self, owner: Owner, webhook_id: UUID, **changes: Any) -> Webhook:
        """Change what is given: `url`, `description`, `types`, `creator_ids`, `enabled`.

        Raises:
            OwnerInvalid: it cannot be enabled, for its key is not valid.

        """
        sealing = await self._sealing(owner)
        given = dict.fromkeys(("url", "description", "types", "creator_ids", "enabled")) | changes
        describe = "description" in changes
        if describe:
            given["description"] = _sealed_description(sealing, given["description"], webhook_id)
        async with self._changing(owner) as connection:
            sealed_url = await _lock(connection, owner, webhook_id)
            if changes.get("enabled"):
                await _check_owner(connection, webhook_id)
            if given["url"] is not None:
                url = given["url"].encode()
                # Sealed anew, the same would look like another one, and what its receiver asked for would be forgotten.
                same = url == sealing.unseal("url", sealed_url, webhook_id)
                given["url"] = None if same else sealing.seal("url", url, webhook_id)
            await connection.execute(_CHANGE, {**given, "describe": describe, "webhook_id": webhook_id})
            return await _one(connection, owner, webhook_id, sealing)

    async def rotate(
        self, owner: Owner, webhook_id: UUID, overlap: timedelta, asked: IdempotentRequest | None = None
    ) -> tuple[Webhook, str, bool]:
        """Give a webhook another secret; messages are signed with both for as long as they overlap.

        Returns:
            The webhook, the new secret, which is told once, and whether the same request rotated it before.

        """
        keys = await self._keyring.ledger(owner.ledger_id)
        sealing = WebhookSealer(keys)
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id)
            told = await self._told(connection, owner, asked)
            secret, salt = _secret(keys, owner, asked, told)
            if told is None:
                sealed = sealing.seal("secret", secret, webhook_id)
                until = datetime.now(UTC) + overlap if overlap else None
                await connection.execute(_ROTATE, {"webhook_id": webhook_id, "secret": sealed, "until": until})
                await self._tell(connection, owner, asked, webhook_id=webhook_id, salt=salt)
            return await _one(connection, owner, webhook_id, sealing), secret_text(secret), told is not None

    async def delete(self, owner: Owner, webhook_id: UUID) -> None:
        """Delete a webhook, with everything that is known of it."""
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id)
            await connection.execute("DELETE FROM webhooks WHERE webhook_id = %s", (webhook_id,))

    async def test(self, owner: Owner, webhook_id: UUID, asked: IdempotentRequest | None = None) -> tuple[UUID, bool]:
        """Have a test sent; return its message id, and whether the same request asked for it before.

        Where as many as may wait already, the newest of them is the one that is asked for.

        Raises:
            WebhookDisabled: nothing is sent to it.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            told = await self._told(connection, owner, asked)
            if told is not None:
                return UUID(told["message_id"]), True
            waiting = await (await connection.execute(_TESTS, (webhook_id, MAX_TESTS))).fetchall()
            if len(waiting) < MAX_TESTS:
                message_id = uuid7()
                await connection.execute(_ASK, (webhook_id, owner.ledger_id, message_id, TEST, message_id))
                await connection.execute(_NOTICE, (webhook_id,))
            else:
                message_id = waiting[0][0]
            await self._tell(connection, owner, asked, message_id=message_id)
            return message_id, False

    async def replay(
        self, owner: Owner, webhook_id: UUID, message_ids: Sequence[UUID] | None, asked: IdempotentRequest | None = None
    ) -> tuple[int, bool]:
        """Have dead letters sent again, those named or the oldest; return how many, and whether that was asked before.

        Raises:
            WebhookDisabled: nothing is sent to it.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, webhook_id, enabled=True)
            told = await self._told(connection, owner, asked)
            if told is not None:
                return int(told["replayed"]), True
            wanted = None if message_ids is None else list(message_ids)
            cursor = await connection.execute(
                _REPLAY, {"webhook_id": webhook_id, "message_ids": wanted, "limit": MAX_REPLAYED}
            )
            await connection.execute(_NOTICE, (webhook_id,))
            await self._tell(connection, owner, asked, replayed=cursor.rowcount)
            return cursor.rowcount, False

    async def dead_letters(self, owner: Owner, webhook_id: UUID, *, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters past a position, in order."""

        async def query(connection: LedgerConnection) -> list[DeadLetter]:
            await _known(connection, owner, webhook_id)
            cursor = await connection.execute(_DEAD, (webhook_id, after, limit))
            return [DeadLetter(*row) for row in await cursor.fetchall()]

        return await self._database.read(owner.ledger_id, query)

    async def deliveries(
        self, owner: Owner, webhook_id: UUID, *, before: int, outcome: DeliveryOutcome | None, limit: int
    ) -> list[Delivery]:
        """Return attempts before one of them, the newest first."""

        async def query(connection: LedgerConnection) -> list[Delivery]:
            await _known(connection, owner, webhook_id)
            cursor = await connection.execute(_ATTEMPTS, (webhook_id, before, outcome, outcome, limit))
            return [Delivery(*row) for row in await cursor.fetchall()]

        return await self._database.read(owner.ledger_id, query)

    async def _sealing(self, owner: Owner) -> WebhookSealer:
        return WebhookSealer(await self._keyring.ledger(owner.ledger_id))

    @asynccontextmanager
    async def _changing(self, owner: Owner) -> AsyncIterator[LedgerConnection]:
        """Open a transaction for a change, and hold the key that asks until its end: a revoked one changes nothing."""
        async with self._database.connection(owner.ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, owner.key_id)
            yield connection

    async def _told(self, connection: LedgerConnection, owner: Owner, asked: IdempotentRequest | None) -> Any:
        """Return what the same request was answered before; nothing where it is new, which is noted."""
        if asked is None:
            return None
        key = _request_key(owner, asked)
        cursor = await connection.execute(
            "INSERT INTO webhook_requests (ledger_id, key, request_hash) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (owner.ledger_id, key, asked.request_hash),
        )
        if cursor.rowcount == 1:
            return None
        cursor = await connection.execute("SELECT request_hash, told FROM webhook_requests WHERE key = %s", (key,))
        row = await cursor.fetchone()
        if row is None or row[0] != asked.request_hash:
            raise IdempotencyMismatch
        return row[1]

    async def _tell(
        self, connection: LedgerConnection, owner: Owner, asked: IdempotentRequest | None, **told: Any
    ) -> None:
        if asked is not None:
            await connection.execute(
                "UPDATE webhook_requests SET told = %s::jsonb WHERE key = %s",
                (orjson.dumps(told).decode(), _request_key(owner, asked)),
            )


def _secret(keys: LedgerKeys, owner: Owner, asked: IdempotentRequest | None, told: Any) -> tuple[bytes, str]:
    """Return a new secret, or the one that the same request got before; and the salt to be told with it."""
    salt = os.urandom(SALT_BYTES).hex() if told is None else str(told["salt"])
    if asked is None:
        return os.urandom(SECRET_BYTES), salt
    return repeatable_secret(keys, owner.key_id, asked.key, salt), salt


def _request_key(owner: Owner, asked: IdempotentRequest) -> bytes:
    return hashlib.sha256(f"{owner.key_id}\0{asked.key}".encode()).digest()[:16]


def _webhook(row: Sequence[Any], sealing: WebhookSealer) -> Webhook:
    webhook_id, key_id, url, description, *others = row
    return Webhook(
        webhook_id,
        key_id,
        sealing.unseal("url", url, webhook_id).decode(),
        None if description is None else sealing.unseal("description", description, webhook_id).decode(),
        *others,
    )


def _sealed_description(sealing: WebhookSealer, description: str | None, webhook_id: UUID) -> bytes | None:
    return None if description is None else sealing.seal("description", description.encode(), webhook_id)


async def _one(connection: LedgerConnection, owner: Owner, webhook_id: UUID, sealing: WebhookSealer) -> Webhook:
    row = await (await connection.execute(_ONE, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound
    return _webhook(row, sealing)


async def _known(connection: LedgerConnection, owner: Owner, webhook_id: UUID) -> None:
    row = await (await connection.execute(_KNOWN, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound


async def _lock(connection: LedgerConnection, owner: Owner, webhook_id: UUID, *, enabled: bool = False) -> bytes:
    """Lock a webhook for a change, and return its URL as it is stored."""
    row = await (await connection.execute(_LOCK, {**owner.parameters, "webhook_id": webhook_id})).fetchone()
    if row is None:
        raise WebhookNotFound
    if enabled and row[0] is not None:
        raise WebhookDisabled
    return bytes(row[1])


async def _check_owner(connection: LedgerConnection, webhook_id: UUID) -> None:
    cursor = await connection.execute(
        "SELECT 1 FROM webhooks w JOIN api_keys k ON k.key_id = w.key_id WHERE w.webhook_id = %s"
        " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())",
        (webhook_id,),
    )
    if await cursor.fetchone() is None:
        raise OwnerKeyInvalid
