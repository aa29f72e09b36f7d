"""Events as CloudEvents, for every way out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from domain.values import CLOCK
from infra.delivery.cloud_events import cloud_event, rfc3339, sequence_of, structured
from tests.generated import examples
from tests.infra.delivery.recorded import as_recorded


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2026, 3, 1, tzinfo=UTC), "2026-03-01T00:00:00Z"),
        (datetime(2026, 3, 1, 12, 30, 5, 120, tzinfo=UTC), "2026-03-01T12:30:05.000120Z"),
        (datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2))), "2026-03-01T10:00:00Z"),
    ],
)
def test_times_are_written_in_utc(moment: datetime, written: str) -> None:
    assert rfc3339(moment) == written


def test_sequences_sort_as_positions_do() -> None:
    positions = [1, 9, 10, 99, 2**62]
    assert sorted(map(sequence_of, positions)) == list(map(sequence_of, positions))


@pytest.mark.parametrize("name", examples())
def test_attributes_are_named_as_the_specification_has_it_and_none_lets_a_reader_drop_the_event(name: str) -> None:
    attributes = cloud_event(as_recorded(examples()[name][0]), "main", traceparent="00-4bf9-00f0-01").attributes

    assert all(attribute.isalnum() and attribute == attribute.lower() for attribute in attributes)
    assert "expirytime" not in attributes


@pytest.mark.parametrize("name", examples())
def test_nothing_that_is_sealed_leaves(name: str) -> None:
    event, sealed = examples()[name]
    sent = structured(cloud_event(as_recorded(event), "main")).decode()

    assert [text for text in sealed.values() if text in json.loads(sent)["data"].values() or text in sent] == []


def test_what_the_clock_records_is_not_ascribed_to_a_key() -> None:
    recorded = as_recorded(examples()["Expired"][0])._replace(actor=CLOCK)
    attributes = cloud_event(recorded, "main").attributes

    assert (attributes["authtype"], attributes["authid"]) == ("system", "clock")


def test_one_document_holds_attributes_and_body() -> None:
    event = cloud_event(as_recorded(examples()["Shared"][0]), "main")

    assert json.loads(structured(event)) == {**event.attributes, "data": json.loads(event.data)}
