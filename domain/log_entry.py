"""The entry of an event in the signed log: 65 bytes that bind every stored column, and disclose none.

    entry      stream and creator tags, hash of the envelope       for anyone who may scan the log: mirrors, brands
    envelope   what happened, and when; hash of the content        for the parties to a code
    content    who did it, and hashes of both bodies               for auditors

Each layer contains the hash of the next, so that anyone who is shown one layer can check it, and learns nothing of
those below. A tag is a hash of an id together with the position: anyone who knows the id finds its entries, and nobody
else can link two of them. Nothing of this is stored. It is computed from the row; docs/proof.md has it byte by byte.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

# The only format of rows. It is the first byte of each layer.
FORMAT: Final = 1
TAG_BYTES: Final = 16
ENTRY_BYTES: Final = 65
COMMITMENT_BYTES: Final = 32

_STREAM: Final = b"sparkledger/stream/v1\n"
_CREATOR: Final = b"sparkledger/creator/v1\n"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ABSENT: Final = b"\x00"
_PRESENT: Final = b"\x01"
_POSITION: Final = struct.Struct(">Q")
_VERSION: Final = struct.Struct(">I")
_TYPE_VERSION_AND_TIMES: Final = struct.Struct(">Hqq")
_LENGTH: Final = struct.Struct(">I")


class UnencodableEvent(ValueError):
    """The stored event has no entry: its format is unknown, or a value is out of range."""


class Bytes(NamedTuple):
    """Bytes of any length, as they are hashed into an entry."""

    length: int
    sha256: bytes


class StoredEvent(NamedTuple):
    """An event as it is stored: every column but `ledger_id`, in whose place the envelope has the log's id."""

    position: int
    stream_id: UUID
    version: int
    event_id: UUID
    type: str
    type_version: int
    recorded_at: datetime
    effective_at: datetime
    creator_stream: UUID
    actor_key: UUID | None
    actor_role: str
    actor_subject: str | None
    source: str
    command_id: UUID
    correlation_id: str | None
    causation_id: UUID | None
    traceparent: str | None
    creator_id: str | None
    video_id: str | None
    key_id: UUID | None
    format: int
    commitment: bytes | None
    body: Bytes
    sealed: Bytes | None


def content(event: StoredEvent) -> bytes:
    """Return who recorded the event, why, and hashes of its bodies.

    The event's id has 74 random bits, so a short body cannot be guessed from the hash of this.

    Raises:
        UnencodableEvent: the row cannot be encoded.

    """
    try:
        sealed = _ABSENT
        if event.sealed is not None or event.key_id is not None or event.commitment is not None:
            sealed = _PRESENT + _sealed(event)
        return b"".join(
            (
                _format(event),
                event.event_id.bytes,
                _uuid(event.actor_key),
                _text(event.actor_role),
                _text(event.actor_subject),
                _text(event.source),
                event.command_id.bytes,
                _uuid(event.causation_id),
                _text(event.correlation_id),
                _text(event.traceparent),
                _text(event.creator_id),
                _text(event.video_id),
                _LENGTH.pack(event.body.length),
                event.body.sha256,
                sealed,
            )
        )
    except (AttributeError, OverflowError, TypeError, UnicodeEncodeError, struct.error) as error:
        raise UnencodableEvent(str(error)) from error


def envelope(log_id: UUID, event: StoredEvent, content_hash: bytes) -> bytes:
    """Return where in which log the event is, what it is, and when it was recorded and took effect.

    Raises:
        UnencodableEvent: the row cannot be encoded.

    """
    try:
        return b"".join(
            (
                _format(event),
                log_id.bytes,
                _POSITION.pack(event.position),
                event.stream_id.bytes,
                _VERSION.pack(event.version),
                _text(event.type),
                _TYPE_VERSION_AND_TIMES.pack(
                    event.type_version, _microseconds(event.recorded_at), _microseconds(event.effective_at)
                ),
                content_hash,
            )
        )
    except (AttributeError, OverflowError, TypeError, UnicodeEncodeError, struct.error) as error:
        raise UnencodableEvent(str(error)) from error


def entry(event: StoredEvent, envelope_hash: bytes) -> bytes:
    """Return the entry.

    Raises:
        UnencodableEvent: the row cannot be encoded.

    """
    position = event.position
    tags = stream_tag(event.stream_id, position) + creator_tag(event.creator_stream, position)
    return _format(event) + tags + envelope_hash


def entry_of(log_id: UUID, event: StoredEvent) -> bytes:
    """Return the entry of an event, made only from its row.

    Raises:
        UnencodableEvent: the row cannot be encoded.

    """
    content_hash = hashlib.sha256(content(event)).digest()
    return entry(event, hashlib.sha256(envelope(log_id, event, content_hash)).digest())


def hashed(stored: bytes) -> Bytes:
    """Return bytes as they are hashed into an entry."""
    return Bytes(len(stored), hashlib.sha256(stored).digest())


def stream_tag(stream_id: UUID, position: int) -> bytes:
    """Return the tag of a code's or creator's stream at a position; knowing the stream is enough to compute it."""
    return hashlib.sha256(_STREAM + stream_id.bytes + _POSITION.pack(position)).digest()[:TAG_BYTES]


def creator_tag(creator_stream: UUID, position: int) -> bytes:
    """Return the tag of a creator's stream at a position, which the entries of all codes of this creator have."""
    return hashlib.sha256(_CREATOR + creator_stream.bytes + _POSITION.pack(position)).digest()[:TAG_BYTES]


def _sealed(event: StoredEvent) -> bytes:
    if event.sealed is None or event.key_id is None or len(event.commitment or b"") != COMMITMENT_BYTES:
        raise UnencodableEvent("the sealed part is incomplete")
    return b"".join(
        (event.key_id.bytes, event.commitment or b"", _LENGTH.pack(event.sealed.length), event.sealed.sha256)
    )


def _format(event: StoredEvent) -> bytes:
    if event.format != FORMAT:
        message = f"the format {event.format} is unknown"
        raise UnencodableEvent(message)
    return _PRESENT


def _text(text: str | None) -> bytes:
    """Encode a text so that an empty one differs from an absent one."""
    if text is None:
        return _ABSENT
    encoded = text.encode()
    return _PRESENT + len(encoded).to_bytes(2, "big") + encoded


def _uuid(value: UUID | None) -> bytes:
    return _ABSENT if value is None else _PRESENT + value.bytes


def _microseconds(moment: datetime) -> int:
    """Return exact microseconds since 1970; a float of seconds would lose some."""
    return (moment - _EPOCH) // _MICROSECOND
