"""Events are recorded as the library records them, only sooner."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.domain import Aggregate

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.log import Log
from domain.recording import Recording

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _classes(aggregate: type[Any]) -> list[Any]:
    return [kind for kind in vars(aggregate).values() if isinstance(kind, type) and issubclass(kind, Aggregate.Event)]


EVENTS = [
    pytest.param(aggregate, kind, id=kind.__qualname__)
    for aggregate in (Code, Creator, Advertiser, Log)
    for kind in dict.fromkeys(_classes(aggregate))
    if "RECORDED_BY" in vars(kind) and kind.__name__ != "Event"
]


class Plain:
    """An aggregate that takes any event, and remembers nothing."""

    def __init__(self, id_: UUID) -> None:
        self._id, self._version, self._modified_on, self._pending_events = id_, 1, NOW, []  # type: ignore[var-annotated]


def _facts(kind: Any) -> dict[str, Any]:
    """Return a value for each field that the event must have, besides those that the aggregate gives it."""
    given = {"originator_id", "originator_version", "timestamp"}
    return {
        field.name: f"the {field.name}"
        for field in dataclasses.fields(kind)
        if field.name not in given and field.default is dataclasses.MISSING
    }


@pytest.mark.parametrize(("aggregate", "kind"), EVENTS)
def test_an_event_is_the_one_that_the_library_would_make(
    aggregate: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del aggregate
    monkeypatch.setattr(kind, "apply", lambda _self, _aggregate: None)
    plain: Any = Plain(uuid4())
    Recording.trigger_event(plain, kind, timestamp=NOW, **_facts(kind))
    (recorded,) = plain._pending_events
    made = kind(originator_id=plain._id, originator_version=2, timestamp=NOW, **_facts(kind))
    assert (type(recorded), vars(recorded)) == (type(made), vars(made))
    assert (plain._version, plain._modified_on) == (2, NOW)


@pytest.mark.parametrize(("aggregate", "kind"), EVENTS)
def test_an_event_with_a_field_too_few_or_too_many_is_refused(aggregate: Any, kind: Any) -> None:
    del aggregate
    plain: Any = Plain(uuid4())
    facts = _facts(kind)
    for name in facts:
        with pytest.raises(TypeError, match=name):
            Recording.trigger_event(plain, kind, timestamp=NOW, **{n: v for n, v in facts.items() if n != name})
    with pytest.raises(TypeError, match="invented"):
        Recording.trigger_event(plain, kind, timestamp=NOW, **facts, invented=1)
    with pytest.raises(TypeError, match="timestamp"):
        Recording.trigger_event(plain, kind, **facts)
    assert (plain._version, plain._pending_events) == (1, [])


def test_an_aggregate_begins_as_its_replay_begins() -> None:
    creator = Creator.begin(uuid4(), "ana", enabled=True, at=NOW)
    (event,) = creator.collect_events()
    assert event.originator_topic == Creator.TOPIC
    assert vars(event.mutate(None)) == vars(creator)
    assert creator.collect_events() == []


def test_an_aggregate_without_an_id_is_refused() -> None:
    with pytest.raises(TypeError, match="id"):
        Creator._create(Creator.Enabled, timestamp=NOW, creator_id="ana")
