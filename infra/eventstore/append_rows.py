"""A batch of appends in PostgreSQL's binary format: the parameters of the function `append`, in `0001_log.sql`.

Most of them are arrays of rows. A row is the number of its fields, and then each field as its type, its length and its
bytes. psycopg could send rows, too, but it would look up how to send each of the sixty fields of a command.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from infra.eventstore.append import Append, EventRow
    from infra.postgres.pool import LedgerConnection
    from infra.postgres.session_tokens import SessionTokens

_INT, _BYTEA, _TEXT, _TIME, _UUID = 23, 17, 25, 1184, 2950
_INTS, _UUIDS, _TEXTS, _BOOLEAN = 1007, 2951, 1009, 16
_TRUE, _FALSE = b"\x01", b"\x00"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_DAY_S: Final = 24 * 60 * 60

_length: Final = struct.Struct(">i").pack
_head: Final = struct.Struct(">ii").pack  # of a field: its type and its length, which is -1 for NULL
_empty: Final = struct.Struct(">iii").pack
_array: Final = struct.Struct(">iiiii").pack  # dimensions, flag for NULLs, type of the elements, length, lower bound
_NULL: Final = _length(-1)
_SIXTEEN: Final = _length(16)
_NO_BYTES, _NO_TEXT, _NO_TIME, _NO_UUID = (_head(oid, -1) for oid in (_BYTEA, _TEXT, _TIME, _UUID))
_NO_KEY: Final = _NO_BYTES + _NO_BYTES
_NOTHING_SEALED: Final = _NO_UUID + _NO_BYTES
_A_UUID: Final = _head(_UUID, 16)
_a_time: Final = struct.Struct(">iiq").pack
_an_int: Final = struct.Struct(">iii").pack
_two_ints: Final = struct.Struct(">8si 8si").pack
_AN_INT: Final = _head(_INT, 4)
# The heads are packed as they are: that takes less than packing their numbers each time.
# A whole expected version, of 3 fields, with its length before them: caller, stream, version.
_read: Final = struct.Struct(">8s8si 8s16s 8si").pack
_READ: Final = _head(3 * 8 + 4 + 4 + 16 + 4, 3)
# An event's first fields, of 20: caller, stream, version, id.
_event: Final = struct.Struct(">4s8si 8s16s 8si 8s16s").pack
_EVENT: Final = _length(20)
# A claim's first fields, of 4: caller, and the head of the claim.
_claim: Final = struct.Struct(">4s8si ii").pack
_CLAIM: Final = _length(4)


class RowTypes(NamedTuple):
    """The ids of the types of rows, and of arrays of them, which differ from database to database."""

    caller: int
    callers: int
    read: int
    reads: int
    event: int
    events: int
    claim: int
    claims: int

    @property
    def parameters(self) -> tuple[int, ...]:
        """The types of the function's parameters."""
        return (_INTS, _UUIDS, _TEXTS, self.callers, self.reads, self.events, self.claims, _BOOLEAN)


async def row_types(connection: LedgerConnection) -> RowTypes:
    """Look the types up; a migration may have replaced them."""
    cursor = await connection.execute(
        "SELECT t.oid::int, t.typarray::int FROM unnest(%s::text[]) WITH ORDINALITY AS n (name, i)"
        " JOIN pg_type t ON t.oid = n.name::regtype ORDER BY n.i",
        ([f"public.append_{name}" for name in ("caller", "read", "event", "claim")],),
    )
    return RowTypes(*(oid for row in await cursor.fetchall() for oid in row))


def encoded(batch: Sequence[Append], tokens: SessionTokens, types: RowTypes) -> list[bytes]:
    """Return the parameters of `append`."""
    ledgers = [_array(1, 0, _INT, len(batch), 1)]
    keys = [_array(1, 1, _UUID, len(batch), 1)]
    roles = [_array(1, 0, _TEXT, len(batch), 1)]
    callers: list[bytes] = []
    reads: list[bytes] = []
    events: list[bytes] = []
    claims: list[bytes] = []
    changing = False
    first = 1
    for number, request in enumerate(batch, 1):
        count = len(request.events)
        ledgers.append(_head(4, request.ledger_id))
        key = request.api_key
        keys.append(_NULL if key is None else _SIXTEEN + key.int.to_bytes(16))
        roles.append(_known(request.role)[4:])  # as an element, it does not bear its type
        callers.append(_caller(request, tokens, first, count))
        first += count
        for stream, version in request.expected_versions:
            reads.append(_read(_READ, _AN_INT, number, _A_UUID, stream.int.to_bytes(16), _AN_INT, version))
        shared = _shared(request)
        events += [_event_row(number, event, shared) for event in request.events]
        for claim, expected, new in request.claims:
            changing = changing or (expected is not None and new != expected)
            head = _claim(_CLAIM, _AN_INT, number, _BYTEA, len(claim))
            row = b"".join((
                head,
                claim,
                _NO_UUID if expected is None else _uuid(expected),
                _NO_UUID if new is None else _uuid(new),
            ))  # fmt: skip
            claims.append(_length(len(row)) + row)
    return [
        b"".join(ledgers),
        b"".join(keys),
        b"".join(roles),
        _rows(types.caller, callers),
        _rows(types.read, reads),
        _rows(types.event, events),
        _rows(types.claim, claims),
        _TRUE if changing else _FALSE,
    ]


# A field that is mostly absent is looked at before the call that would encode it: calls are what takes time here.


def _caller(request: Append, tokens: SessionTokens, first: int, count: int) -> bytes:
    key = request.idempotency
    token = tokens.key(request.api_key)
    until = request.valid_until
    row = b"".join((
        b"\x00\x00\x00\x06",
        _NO_KEY if key is None else _bytes(key) + _bytes(request.request_hash),
        _NO_BYTES if token is None else _bytes(token),
        _NO_TIME if until is None else _time(until),
        _two_ints(_AN_INT, first, _AN_INT, count),
    ))  # fmt: skip
    return _length(len(row)) + row


def _shared(request: Append) -> bytes:
    """Return the last fields of each event of a request."""
    subject, correlation, trace = request.subject, request.correlation_id, request.traceparent
    creator, video = request.creator_id, request.video_id
    return b"".join((
        _NO_TEXT if subject is None else _text(subject),
        _known(request.source),
        _A_UUID,
        request.command_id.int.to_bytes(16),
        _NO_TEXT if correlation is None else _text(correlation),
        _NO_TEXT if trace is None else _text(trace),
        _NO_TEXT if creator is None else _text(creator),
        _NO_TEXT if video is None else _text(video),
    ))  # fmt: skip


def _event_row(number: int, event: EventRow, shared: bytes) -> bytes:
    stream, version, id_, type_, type_version, effective, creator, causation, key_id, commitment, body, sealed = event
    stream_id, event_id = stream.int.to_bytes(16), id_.int.to_bytes(16)
    row = b"".join((
        _event(_EVENT, _AN_INT, number, _A_UUID, stream_id, _AN_INT, version, _A_UUID, event_id),
        _of_type(type_, type_version),
        _NO_TIME if effective is None else _time(effective),
        _A_UUID,
        creator.int.to_bytes(16),
        _NO_UUID if causation is None else _uuid(causation),
        _NOTHING_SEALED if key_id is None else _uuid(key_id) + _bytes(commitment),
        _head(_BYTEA, len(body)),
        body,
        _NO_BYTES if sealed is None else _bytes(sealed),
        shared,
    ))  # fmt: skip
    return _length(len(row)) + row


def _rows(oid: int, rows: list[bytes]) -> bytes:
    if not rows:
        return _empty(0, 0, oid)
    return _array(1, 0, oid, len(rows), 1) + b"".join(rows)


def _uuid(value: UUID) -> bytes:
    return _A_UUID + value.int.to_bytes(16)


def _bytes(value: bytes | None) -> bytes:
    return _NO_BYTES if value is None else _head(_BYTEA, len(value)) + value


def _time(value: datetime) -> bytes:
    # To divide by a microsecond is the same, and takes ten times as long.
    since = value - _EPOCH
    return _a_time(_TIME, 8, (since.days * _DAY_S + since.seconds) * 1_000_000 + since.microseconds)


def _text(value: str) -> bytes:
    text = value.encode()
    return _head(_TEXT, len(text)) + text


@lru_cache(maxsize=256)
def _known(text: str) -> bytes:
    """Encode a role or a source, of which there are few."""
    return _text(text)


@lru_cache(maxsize=256)
def _of_type(type_: str, version: int) -> bytes:
    """Encode an event's type and its version, of which there are few."""
    return _text(type_) + _an_int(_INT, 4, version)
