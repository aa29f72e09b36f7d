"""Entries of the signed log: the worked example of the documents, and that every stored column is in them."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from domain.log_entry import (
    ENTRY_BYTES,
    Bytes,
    StoredEvent,
    UnencodableEvent,
    content,
    creator_tag,
    entry,
    entry_of,
    envelope,
    hashed,
    stream_tag,
)
from domain.merkle import leaf_hash

DOCUMENT = (Path(__file__).parents[2] / "docs" / "proof.md").read_text()


def an_id(last: int) -> UUID:
    return UUID(f"018f0000-0000-7000-8000-{last:012x}")


LOG_ID = an_id(0xAA)
EXAMPLE = StoredEvent(
    position=5,
    stream_id=an_id(1),
    version=4,
    event_id=an_id(5),
    type="Redeemed",
    type_version=1,
    recorded_at=datetime(2026, 3, 3, 12, 0, 0, 1, tzinfo=UTC),
    effective_at=datetime(2026, 3, 3, 12, 0, 0, 1, tzinfo=UTC),
    creator_stream=an_id(0xCC),
    actor_key=an_id(0xDD),
    actor_role="brand",
    actor_subject=None,
    source="brand",
    command_id=an_id(0xEE),
    correlation_id=None,
    causation_id=None,
    traceparent=None,
    creator_id="ana.creates",
    video_id="7312345678901234567",
    key_id=None,
    format=1,
    commitment=None,
    body=hashed(b'{"advertiser_id":"adv-7001","shared_with_advertiser":true}'),
    sealed=None,
)
# Every column has a value, also those that may be absent.
FULL = EXAMPLE._replace(
    actor_subject="adv-7001",
    correlation_id="order-1",
    causation_id=an_id(0xC0),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    key_id=an_id(0xF0),
    commitment=hashlib.sha256(b"salt and plaintext").digest(),
    sealed=hashed(b"ciphertext"),
)


def documented(name: str) -> str:
    """Return a value of the document's worked example, without its line breaks."""
    found = re.search(rf"^{name}, \d+ bytes\n\n```text\n([0-9a-f\n]+)```", DOCUMENT, flags=re.MULTILINE)
    assert found is not None, f"docs/proof.md has no {name}"
    return found[1].replace("\n", "")


def test_the_worked_example_of_the_document_is_what_is_computed() -> None:
    of_content = content(EXAMPLE)
    of_envelope = envelope(LOG_ID, EXAMPLE, hashlib.sha256(of_content).digest())
    of_entry = entry(EXAMPLE, hashlib.sha256(of_envelope).digest())
    assert {
        "Content": of_content.hex(),
        "Envelope": of_envelope.hex(),
        "Entry": of_entry.hex(),
        "Leaf hash": leaf_hash(of_entry).hex(),
    } == {name: documented(name) for name in ("Content", "Envelope", "Entry", "Leaf hash")}
    assert entry_of(LOG_ID, EXAMPLE) == of_entry
    assert len(of_entry) == ENTRY_BYTES


def changed(event: StoredEvent, **columns: Any) -> StoredEvent:
    """Return the event with other values in some columns."""
    return event._replace(**columns)


def others(value: Any) -> list[Any]:
    """Return values that differ from a column's value as little as possible."""
    match value:
        case UUID():
            return [UUID(int=value.int ^ 1)]
        case datetime():
            return [value + timedelta(microseconds=1), value - timedelta(microseconds=1)]
        case Bytes():
            return [value._replace(length=value.length + 1), value._replace(sha256=bytes(32))]
        case bytes():
            return [bytes([value[0] ^ 1]) + value[1:], value[:-1] + bytes([value[-1] ^ 1])]
        case str():
            return [value + " ", value[:-1], ""]
        case int():
            return [value + 1]
        case _:
            raise AssertionError(value)


def entries_of(event: StoredEvent) -> set[bytes]:
    """Return the event's entry; none if it cannot be encoded, which is found, too."""
    try:
        return {entry_of(LOG_ID, event)}
    except UnencodableEvent:
        return set()


@pytest.mark.parametrize("column", StoredEvent._fields)
def test_a_change_of_any_column_changes_the_entry(column: str) -> None:
    others_of = [changed(FULL, **{column: other}) for other in others(getattr(FULL, column))]
    assert entry_of(LOG_ID, FULL) not in set().union(*map(entries_of, others_of))


NULLABLE = [name for name in StoredEvent._fields if getattr(EXAMPLE, name) is None]


@pytest.mark.parametrize("column", NULLABLE)
def test_a_value_that_is_taken_away_changes_the_entry(column: str) -> None:
    assert entry_of(LOG_ID, FULL) not in entries_of(changed(FULL, **{column: None}))


@pytest.mark.parametrize("column", ["actor_subject", "correlation_id", "traceparent"])
def test_an_empty_text_is_not_an_absent_one(column: str) -> None:
    assert entries_of(changed(EXAMPLE, **{column: ""})) != entries_of(EXAMPLE)


def test_a_value_cannot_move_to_the_next_column() -> None:
    one = FULL._replace(actor_role="brand", actor_subject="adv", correlation_id="ab", traceparent="c")
    assert entries_of(one) != entries_of(one._replace(actor_role="branda", actor_subject="dv"))
    assert entries_of(one) != entries_of(one._replace(correlation_id="a", traceparent="bc"))
    moved = FULL._replace(correlation_id=None, traceparent=FULL.correlation_id)
    assert entries_of(moved) != entries_of(FULL._replace(correlation_id=FULL.correlation_id, traceparent=None))


def test_the_same_event_of_another_log_has_another_entry() -> None:
    assert entry_of(an_id(0xAB), FULL) != entry_of(LOG_ID, FULL)


def test_no_two_entries_of_one_stream_share_a_tag() -> None:
    at = range(1, 2_000)
    tags = [tag(id_, position) for tag in (stream_tag, creator_tag) for id_ in (an_id(1), an_id(2)) for position in at]
    assert len(set(tags)) == 4 * len(at)


def test_whoever_knows_an_id_finds_its_entries() -> None:
    found = entry_of(LOG_ID, EXAMPLE)
    assert found[1:17] == stream_tag(EXAMPLE.stream_id, 5)
    assert found[17:33] == creator_tag(EXAMPLE.creator_stream, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"actor_role": "x" * 65_536},
        {"version": -1},
        {"type_version": 65_536},
        {"commitment": b"short"},
        {"key_id": None},
        {"sealed": None},
        {"traceparent": "\ud800"},
    ],
    ids=str,
)
def test_a_row_that_has_no_encoding_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnencodableEvent):
        entry_of(LOG_ID, changed(FULL, **change))


def test_microseconds_are_exact_far_from_the_epoch() -> None:
    moment = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    plain = envelope(LOG_ID, EXAMPLE._replace(recorded_at=moment, effective_at=moment), bytes(32))
    assert plain[-48:-32] == 2 * (253_402_300_799_999_999).to_bytes(8, "big")
