"""Appends as tests make them: the smallest rows that the log takes, for what is tested below the domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg

from infra.eventstore.append import Append, EventRow, Outcome
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from infra.postgres.roles import WORKER
from tests.conftest import TestDatabase
from tests.infra.opened import Tenant


def row(stream_id: UUID, version: int = 1, **fields: Any) -> EventRow:
    """Return an event of a stream."""
    facts: dict[str, Any] = {
        "event_id": uuid7(),
        "type": "Tested",
        "type_version": 1,
        "effective_at": None,
        "creator_stream": stream_id,
        "causation_id": None,
        "key_id": None,
        "commitment": None,
        "body": b"{}",
        "sealed": None,
    }
    return EventRow(stream_id=stream_id, version=version, **(facts | fields))


def appending(ledger_id: int, *rows: EventRow, **fields: Any) -> Append:
    """Return one caller's append; unless told otherwise, each stream must stand right before its first event here."""
    first: dict[UUID, int] = {}
    for event in rows:
        first.setdefault(event.stream_id, event.version - 1)
    facts: dict[str, Any] = {
        "expected_versions": list(first.items()),
        "claims": (),
        "role": "clock",
        "source": "clock",
        "command_id": uuid7(),
    }
    return Append(ledger_id=ledger_id, events=rows, **(facts | fields))


def keyed(ledger_id: int, *rows: EventRow, key: bytes, request: bytes = b"request", **fields: Any) -> Append:
    """Return one caller's append with an idempotency key."""
    return appending(ledger_id, *rows, idempotency=key, request_hash=request, **fields)


def accept(database: TestDatabase, *types: str, version: int = 1) -> None:
    """Let the clock record events that the program does not know."""
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        for type_ in types:
            connection.execute("INSERT INTO event_types VALUES (%s, %s, '{clock}')", (type_, version))


def by(tenant: Tenant, *rows: EventRow, **fields: Any) -> Append:
    """Return the append of a tenant's key, which must have been presented to the process that sends it."""
    facts: dict[str, Any] = {"role": tenant.key.role, "source": "operator", "api_key": tenant.key.key_id}
    return appending(tenant.ledger_id, *rows, **(facts | fields))


def keyed_by(key: bytes, request: bytes = b"request") -> dict[str, bytes]:
    """Return the fields of an append with an idempotency key."""
    return {"idempotency": key, "request_hash": request}


@asynccontextmanager
async def writing(
    database: TestDatabase,
    *,
    user: str = WORKER,
    role: str = WORKER,
    options: str = "",
    on_commit: Callable[[], None] = lambda: None,
    **limits: Any,
) -> AsyncIterator[GroupCommitWriter]:
    """Run a writer on a database; `options` outdo those that its session is opened with."""
    writer = GroupCommitWriter(database.dsn(user), role, on_commit=on_commit, **limits)
    writer._session["options"] += options
    writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


async def together(writer: GroupCommitWriter, requests: Sequence[Append]) -> list[Outcome | BaseException]:
    """Append requests that all wait at once, so that a batch takes what fits, and return what each came to.

    Callers are put into the queue in order before the writer runs again.
    """
    return list(await asyncio.gather(*(writer.append(request) for request in requests), return_exceptions=True))
