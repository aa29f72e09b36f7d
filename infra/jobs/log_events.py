"""Events of a ledger's own log, recorded by an operator at the command line, or by the clock."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

from domain.log import Log, replay_log
from infra.auth.access_log import AccessContext
from infra.auth.ledger_admin import LedgerAdmin
from infra.eventstore.append import Append, Appended, EventRow
from infra.eventstore.serialization import clear_body, event_type
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from domain.recorded import Event
    from infra.runtime import Runtime

Change = tuple[type[Log.Changed], dict[str, Any]]


@asynccontextmanager
async def as_command_line(opened: Runtime, ledger: str, command: str) -> AsyncIterator[tuple[int, UUID]]:
    """Yield a ledger, by its name, and a key to act with.

    An event must name a key as its actor, so a key is created for it and revoked afterwards.

    Raises:
        LookupError: there is no such ledger.

    """
    ledger_id = await LedgerAdmin(opened.database, opened.keyring).id_of(ledger)
    context = AccessContext(route=command)
    key, _, _ = await opened.key_admin.create(ledger_id, role="admin", name="command line", context=context)
    try:
        yield ledger_id, key.key_id
    finally:
        await opened.key_admin.revoke(ledger_id, key.key_id, context=context)


async def record(
    opened: Runtime,
    ledger_id: int,
    key_id: UUID | None,
    log_id: UUID,
    changes: Sequence[Change],
    *,
    role: Literal["admin", "clock"] = "admin",
) -> int:
    """Record what happened to a log, and return the position of the last event.

    Args:
        opened: what it is recorded with.
        ledger_id: whose log.
        key_id: the key of an admin; None for the clock.
        log_id: the stream.
        changes: the events and their fields.
        role: who records them.

    Raises:
        LookupError: something else was recorded of the log at the same moment.

    """
    stream = (await opened.events.streams(ledger_id, [log_id])).get(log_id, [])
    at = opened.handler.now()
    log = replay_log(stream) if stream else None
    for kind, facts in changes:
        if log is None:
            log = Log.begin(log_id, kind, at=at, **facts)
        else:
            log.change(kind, at=at, **facts)
    assert log is not None  # noqa: S101 - there is at least one change
    events = cast("list[Event]", list(log.collect_events()))
    rows = []
    for version, event in enumerate(events, len(stream) + 1):
        type_, type_version = event_type(event)
        rows.append(
            EventRow(
                stream_id=log_id,
                version=version,
                event_id=uuid7(),
                type=type_,
                type_version=type_version,
                effective_at=None,
                creator_stream=log_id,
                causation_id=None,
                key_id=None,
                commitment=None,
                body=clear_body(event),
                sealed=None,
            )
        )
    append = Append(
        ledger_id=ledger_id,
        events=rows,
        expected_versions=[(log_id, len(stream))],
        claims=[],
        role=role,
        source="clock" if role == "clock" else "operator",
        command_id=uuid7(),
        api_key=key_id,
    )
    match await opened.writer.append(append):
        case Appended(last=position):
            return position
        case _:
            message = "Something else was recorded of this log just now. Look at it before you try again."
            raise LookupError(message)
