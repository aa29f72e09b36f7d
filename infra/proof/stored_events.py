"""Reads of events with every stored column, as entries of the signed log are computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from domain.log_entry import Bytes, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

    from infra.postgres.pool import LedgerConnection

# Bodies are hashed where they are: one may have a MiB.
_HASHED: Final = {name: f"octet_length(e.{name}), sha256(e.{name})" for name in ("body", "sealed")}
_ROWS: Final = f"""
    SELECT {", ".join(_HASHED.get(name, f"e.{name}") for name in StoredEvent._fields)}
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b
    ORDER BY e.position
    LIMIT %b
"""


def stored_events(cursor: psycopg.Cursor[Any], ledger_id: int, after: int, limit: int) -> Iterator[StoredEvent]:
    """Yield a ledger's events after a position, oldest first; the cursor must be binary."""
    yield from map(_stored, cursor.execute(_ROWS, (ledger_id, after, limit), prepare=True))


async def stored_event(connection: LedgerConnection, ledger_id: int, position: int) -> StoredEvent | None:
    """Return the event at a position, or None if there is none."""
    cursor = connection.cursor(binary=True)
    await cursor.execute(_ROWS, (ledger_id, position - 1, 1), prepare=True)
    row = await cursor.fetchone()
    event = None if row is None else _stored(row)
    return event if event is not None and event.position == position else None


def _stored(row: Sequence[Any]) -> StoredEvent:
    body_length, body_hash, sealed_length, sealed_hash = row[-4:]
    sealed = None if sealed_length is None else Bytes(sealed_length, sealed_hash)
    return StoredEvent._make((*row[:-4], Bytes(body_length, body_hash), sealed))
