"""Events to rows and back, and an event of an older format brought up to the present one."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import orjson
import pytest
from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from domain.code import Code, replay_code
from domain.creator import Creator, replay_creator
from domain.event_types import EVENT_TYPES
from domain.recorded import Event
from domain.values import Sealed
from infra.errors import Unreadable
from infra.eventstore.serialization import UnreadableEvent, clear_body, event_type, stored_form, to_event
from infra.ids import uuid7
from tests import given
from tests.infra.eventstore.appends import accept, appending, row, writing
from tests.infra.opened import Opened

STORIES = {
    "running": given.running,
    "campaign_ended": given.campaign_ended,
    "revived": given.revived,
    "revoked": given.revoked,
    "permission_off": given.permission_off,
}


def through_a_row(event: Event) -> Event:
    """Store an event and load it, as the log does."""
    type_, type_version = event_type(event)
    return to_event(
        type_, type_version, event.originator_id, event.originator_version, event.timestamp, clear_body(event)
    )


@pytest.mark.parametrize("story", STORIES)
def test_a_stream_that_went_through_rows_is_replayed_to_the_same_aggregate(story: str) -> None:
    told = STORIES[story]()
    for stream in told.ledger.streams.values():
        replay = replay_creator if isinstance(stream[0].event, Creator.Enabled) else replay_code
        again = [recorded._replace(event=through_a_row(recorded.event)) for recorded in stream]
        assert vars(replay(again)) == vars(replay(stream))


@pytest.mark.parametrize("story", STORIES)
def test_every_type_of_event_loses_nothing_but_what_is_sealed(story: str) -> None:
    for recorded in STORIES[story]().ledger.events:
        assert without_absent(vars(through_a_row(recorded.event))) == without_absent(vars(recorded.event))


def without_absent(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def test_a_body_is_always_the_same_bytes() -> None:
    event = given.generated().ledger.events[1].event
    shuffled = object.__new__(type(event))
    vars(shuffled).update(dict(reversed(vars(event).items())))
    assert clear_body(shuffled) == clear_body(event)


def event_of(kind: Any, **fields: Any) -> Any:
    return kind(originator_id=UUID(int=1), originator_version=2, timestamp=given.NOW, **fields)


def test_a_body_is_plain_json_with_sorted_names_and_without_what_stands_in_columns() -> None:
    event = event_of(Code.Extended, old_expires_at=given.NOW, expires_at=given.NOW + timedelta(microseconds=1))
    assert clear_body(event) == (
        b'{"expires_at":"2026-03-01T12:00:00.000001Z","old_expires_at":"2026-03-01T12:00:00Z"}'
    )


def test_what_is_sealed_is_not_in_the_body() -> None:
    event = event_of(Code.NoteAdded, note_fingerprint="ab", text=Sealed("for nobody else"))
    assert orjson.loads(clear_body(event)) == {"note_fingerprint": "ab"}
    assert stored_form(event)[3] == {"text": "for nobody else"}


@pytest.mark.parametrize(
    "hidden",
    [Sealed("for nobody else"), [Sealed("for nobody else")], {"in": {"here": Sealed("for nobody else")}}],
    ids=["as the field", "in a list", "in an object"],
)
def test_what_is_sealed_is_never_written_in_clear(hidden: Any) -> None:
    event = event_of(Code.NoteAdded, note_fingerprint=hidden)
    with pytest.raises(TypeError) as refused:
        clear_body(event)
    assert "for nobody else" not in str(refused.value)


def test_what_can_be_absent_or_sealed_can_be_left_out() -> None:
    fields = [field for kind in EVENT_TYPES.values() for field in dataclasses.fields(kind)]
    concerned = [field for field in fields if "None" in str(field.type) or "Sealed" in str(field.type)]
    assert [field.name for field in concerned if field.default is not None] == []


def test_text_of_any_alphabet_survives_the_body() -> None:
    reason = '#/+= "quoted" \\ ünïcödé 日本語 🎬 \u2028'
    assert vars(through_a_row(event_of(Code.Revoked, reason=reason)))["reason"] == reason


def test_the_stored_name_of_an_event_is_its_published_one() -> None:
    event = given.generated().ledger.events[1].event
    assert event_type(event) == ("CodeGenerated", 1)


# ── upcasting: how an event whose format changes later stays readable ──


class Parcel(Aggregate):
    """An aggregate of tests alone, one of whose events got a new format."""

    class Weighed(Aggregate.Event):
        """At first in pounds; since version 2 in grams, and it says by whom."""

        TOPIC = "ParcelWeighed"
        class_version: ClassVar[int] = 2
        grams: int
        weighed_by: str

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            state["grams"] = round(state.pop("pounds") * 453.59237)
            state.setdefault("weighed_by", "unknown")


register_topic("ParcelWeighed", Parcel.Weighed)


def test_a_new_event_is_stored_in_the_present_format() -> None:
    event = event_of(Parcel.Weighed, grams=500, weighed_by="the scales")
    assert event_type(event) == ("ParcelWeighed", 2)
    assert orjson.loads(clear_body(event)) == {"class_version": 2, "grams": 500, "weighed_by": "the scales"}


async def test_a_row_of_the_old_format_is_loaded_in_the_present_one(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    old = row(stream, 1, type="ParcelWeighed", type_version=1, body=b'{"pounds":2}')
    present = clear_body(event_of(Parcel.Weighed, grams=500, weighed_by="the scales"))
    new = row(stream, 2, type="ParcelWeighed", type_version=2, body=present)
    for version in (1, 2):
        accept(opened.database, "ParcelWeighed", version=version)
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, old, new))

    first, second = await opened.events.stream(tenant.ledger_id, stream) or []
    loaded: list[Any] = [first.event, second.event]
    assert [(event.grams, event.weighed_by) for event in loaded] == [(907, "unknown"), (500, "the scales")]
    assert [first.type_version, second.type_version] == [1, 2]
    # The log keeps what was hashed when it was recorded.
    assert opened.sql("SELECT body FROM events WHERE position = 1") == [(b'{"pounds":2}',)]


# ── what cannot be read ──


def unreadable(type_: str, version: int, body: bytes) -> str:
    """Return why an event cannot be read."""
    event = to_event(type_, version, UUID(int=1), 2, given.NOW, body)
    assert isinstance(event, UnreadableEvent)
    return event.reason


@pytest.mark.parametrize(
    ("type_", "version", "body", "reason"),
    [
        ("NobodyKnowsThis", 1, b"{}", "The type NobodyKnowsThis is not known here."),
        ("domain.code:Code", 1, b"{}", "The type domain.code:Code is not known here."),
        ("Revoked", 99, b'{"reason":"r"}', "Version 99 of Revoked is not known here. The newest known is 1."),
        ("Revoked", 0, b'{"reason":"r"}', "Version 0 of Revoked is not known here. The newest known is 1."),
        ("ParcelWeighed", 2, b'{"pounds":2}', "Its body has another version than its row."),
        ("Revoked", 1, b"no JSON", "Its body is malformed (JSONDecodeError)."),
        ("Revoked", 1, b"[1]", "Its body is malformed (TypeError)."),
        ("Expired", 1, b'{"expires_at":"soon"}', "Its body is malformed (ValueError)."),
        ("Revoked", 1, b"{}", "Its body lacks reason."),
    ],
)
def test_what_cannot_be_read_is_never_read_as_something_else(
    type_: str, version: int, body: bytes, reason: str
) -> None:
    assert unreadable(type_, version, body) == reason


def test_no_aggregate_is_built_without_an_event_that_cannot_be_read() -> None:
    stream = given.redeemed().stream()
    future = to_event("Redeemed", 2, given.CODE, 3, given.NOW, clear_body(stream[2].event))
    with pytest.raises(Unreadable, match=f"Event 3 of stream {given.CODE} cannot be read: Version 2 of Redeemed"):
        replay_code([*stream[:2], stream[2]._replace(event=future)])
