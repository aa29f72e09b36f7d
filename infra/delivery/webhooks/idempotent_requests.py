"""Requests with an Idempotency-Key: a repeated request gets the first answer, and changes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from infra.errors import IdempotencyMismatch

if TYPE_CHECKING:
    from infra.delivery.webhooks.models import Owner
    from infra.postgres.pool import LedgerConnection


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that may be repeated: its Idempotency-Key, and a hash that distinguishes it from another one."""

    key: str
    request_hash: bytes


async def first_answer(connection: LedgerConnection, owner: Owner, request: IdempotentRequest | None) -> Any:
    """Return what the same request was answered the first time; None for a new one, which is then recorded.

    Raises:
        IdempotencyMismatch: the Idempotency-Key was used for another request.

    """
    if request is None:
        return None
    key = _row_key(owner, request)
    cursor = await connection.execute(
        "INSERT INTO webhook_requests (ledger_id, key, request_hash) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (owner.ledger_id, key, request.request_hash),
    )
    if cursor.rowcount == 1:
        return None
    cursor = await connection.execute(
        "SELECT request_hash, told, confirm_commits() FROM webhook_requests WHERE key = %s", (key,)
    )
    row = await cursor.fetchone()
    if row is None or row[0] != request.request_hash:
        raise IdempotencyMismatch
    return row[1]


async def remember_answer(
    connection: LedgerConnection, owner: Owner, request: IdempotentRequest | None, **answer: Any
) -> None:
    """Store what a new request is answered."""
    if request is not None:
        await connection.execute(
            "UPDATE webhook_requests SET told = %s::jsonb WHERE key = %s",
            (orjson.dumps(answer).decode(), _row_key(owner, request)),
        )


def _row_key(owner: Owner, request: IdempotentRequest) -> bytes:
    return hashlib.sha256(f"{owner.key_id}\0{request.key}".encode()).digest()[:16]
