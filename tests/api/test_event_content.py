"""Events as they are read: from a row of the log the same, to the byte, as from the event that was built of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

import orjson
import pytest

from api import event_content as module
from api.event_content import KeyNames, event_content, row_content
from domain.code import Code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from domain.recorded import RecordedEvent
from domain.values import CLOCK, Actor
from infra.errors import Unavailable
from infra.eventstore import serialization
from infra.eventstore.event_rows import Row
from infra.eventstore.serialization import clear_body, event_type, to_event
from tests import given
from tests.generated import examples

KEY = UUID(int=0xA)
EVENTS = {type_: event for type_, (event, _) in examples().items()}


def row_of(recorded: RecordedEvent) -> Row:
    """What the log holds of an event."""
    return (
        recorded.position,
        recorded.event_id,
        recorded.type,
        recorded.type_version,
        recorded.stream_id,
        recorded.stream_version,
        recorded.recorded_at,
        recorded.effective_at,
        None if recorded.actor == CLOCK else KEY,
        recorded.actor.role,
        recorded.actor.subject,
        recorded.source,
        recorded.correlation_id,
        recorded.causation_id,
        recorded.creator_id,
        recorded.video_id,
        clear_body(recorded.event),
    )


def recorded(type_: str, actor: Actor) -> RecordedEvent:
    """An event of a type, as it comes back from the log."""
    event = EVENTS[type_]
    name, version = event_type(event)
    built = to_event(name, version, event.originator_id, event.originator_version, event.timestamp, clear_body(event))
    told = given.permitted().ledger.events[0]
    of_code = isinstance(event, Code.Event)
    return told._replace(
        creator_id="ana.creates" if of_code or isinstance(event, Creator.Event) else None,
        video_id="7312345678901234567" if of_code else None,
        type=name,
        type_version=version,
        stream_id=event.originator_id,
        stream_version=event.originator_version,
        effective_at=event.timestamp,
        actor=actor,
        source=actor.source,
        event=built,
    )


def sent(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_UTC_Z)


@pytest.mark.parametrize("actor", [CLOCK, Actor(str(KEY), "creator", "ana.creates")])
@pytest.mark.parametrize("type_", list(EVENTS))
def test_an_event_reads_the_same_from_its_row(type_: str, actor: Actor) -> None:
    event = recorded(type_, actor)
    names = {str(KEY): "Ana"}
    assert sent(row_content(row_of(event), names)) == sent(event_content(event, names))


def test_every_type_there_is_is_told_of() -> None:
    assert EVENT_TYPES.keys() == EVENTS.keys()


def test_a_row_in_an_older_format_is_read_as_the_event_is(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    event = recorded("Redeemed", CLOCK)
    kind = EVENT_TYPES["Redeemed"]

    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["advertiser_id"] = f"new-{state['advertiser_id']}"

    monkeypatch.setattr(kind, "class_version", 2, raising=False)
    monkeypatch.setattr(kind, "upcast_v1_v2", staticmethod(upcast_v1_v2), raising=False)
    for known in (serialization._stored, serialization._format):
        known.cache_clear()
        request.addfinalizer(known.cache_clear)
    monkeypatch.setitem(module._PRESENT_VERSIONS, "Redeemed", 2)
    row = row_of(event)
    row = (*row[:3], 1, *row[4:16], b'{"advertiser_id":"adv-7001","shared_with_advertiser":true}')

    content = row_content(row, {})

    assert content["body"] == {"advertiser_id": "new-adv-7001", "shared_with_advertiser": True}
    assert content["summary"] == "Advertiser new-adv-7001 redeemed the code."


class Renaming:
    """Stands for a ledger's keys: each look-up finds the next of these names, after what happens meanwhile."""

    def __init__(self, *names: str | None) -> None:
        self.names_to_come = list(names)
        self.meanwhile: Callable[[], None] = lambda: None

    async def names(self, _ledger_id: int) -> dict[str, str | None]:
        self.meanwhile()
        return {str(KEY): self.names_to_come.pop(0)}


async def test_names_are_remembered_until_keys_change() -> None:
    names = KeyNames(cast("Any", Renaming("Ana", None)))
    assert [await names.of(1, [str(KEY)]) for _ in range(2)] == [{str(KEY): "Ana"}] * 2
    names.forget()
    assert [await names.of(1, [str(KEY)]) for _ in range(2)] == [{str(KEY): None}] * 2


async def test_a_name_that_was_read_while_keys_changed_is_read_again() -> None:
    keys = Renaming("Ana", None)
    names = KeyNames(cast("Any", keys))

    def change() -> None:
        keys.meanwhile = lambda: None
        names.forget()

    keys.meanwhile = change
    assert [await names.of(1, [str(KEY)]) for _ in range(2)] == [{str(KEY): None}] * 2


async def test_keys_that_change_faster_than_they_are_read_have_no_names_to_tell() -> None:
    keys = Renaming(*["Ana"] * module.NAMES_ATTEMPTS)
    names = KeyNames(cast("Any", keys))
    keys.meanwhile = names.forget
    with pytest.raises(Unavailable):
        await names.of(1, [str(KEY)])
    assert keys.names_to_come == []
