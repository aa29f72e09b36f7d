"""Events as CloudEvents, for every way out."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest

from api.event_content import event_content
from domain.advertiser import Advertiser
from domain.code import Code
from domain.log import Log
from domain.sheet_import import SheetImport
from domain.values import CLOCK
from domain.video import Video
from infra.delivery.cloud_events import cloud_event, rfc3339, sequence_of, structured
from tests.generated import examples
from tests.infra.delivery.recorded import HISTORY, as_recorded


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
    attributes = cloud_event(
        as_recorded(examples()[name][0]), "main", HISTORY, traceparent="00-4bf9-00f0-01"
    ).attributes

    assert all(attribute.isalnum() and attribute == attribute.lower() for attribute in attributes)
    assert "expirytime" not in attributes


@pytest.mark.parametrize("name", examples())
def test_nothing_that_is_sealed_leaves(name: str) -> None:
    event, sealed = examples()[name]
    sent = structured(cloud_event(as_recorded(event), "main", HISTORY)).decode()

    assert [text for text in sealed.values() if text in json.loads(sent)["data"].values() or text in sent] == []


def test_what_the_clock_records_is_not_ascribed_to_a_key() -> None:
    recorded = as_recorded(examples()["Expired"][0])._replace(actor=CLOCK)
    attributes = cloud_event(recorded, "main", HISTORY).attributes

    assert (attributes["authtype"], attributes["authid"]) == ("system", "clock")


def test_one_document_holds_attributes_and_body() -> None:
    event = cloud_event(as_recorded(examples()["Shared"][0]), "main", HISTORY)

    assert json.loads(structured(event)) == {**event.attributes, "data": json.loads(event.data)}


@pytest.mark.parametrize("name", examples())
def test_a_message_says_what_the_trail_says_with_the_same_names(name: str) -> None:
    recorded = as_recorded(examples()[name][0])
    trail = json.loads(orjson.dumps(event_content(recorded, {}), option=orjson.OPT_UTC_Z))
    del trail["summary"], trail["actor"]["key_name"]

    assert json.loads(cloud_event(recorded, "main", HISTORY).data) == trail


@pytest.mark.parametrize("name", examples())
def test_a_message_stands_by_itself(name: str) -> None:
    recorded = as_recorded(examples()[name][0])
    event = cloud_event(recorded, "main", HISTORY)
    data = json.loads(event.data)

    assert data["actor"]["role"] == "operator"
    assert data["source"] == "operator"
    ids = {id_: data[id_] for id_ in ("code_id", "creator_id", "video_id") if id_ in data}
    if isinstance(recorded.event, Code.Event):
        assert event.attributes["subject"] == f"codes/{recorded.stream_id}"
        assert ids == {
            "code_id": str(recorded.stream_id),
            "creator_id": "ana.creates",
            "video_id": "7312345678901234567",
        }
    elif isinstance(recorded.event, Advertiser.Event):
        assert (event.key, event.attributes["subject"]) == ("adv-7001", "advertisers/adv-7001")
        assert (ids, data["advertiser_id"]) == ({}, "adv-7001")
    elif isinstance(recorded.event, Video.Event):
        assert (event.key, event.attributes["subject"]) == ("7312345678901234567", "videos/7312345678901234567")
        assert ids == {"video_id": "7312345678901234567"}
    elif isinstance(recorded.event, Log.Event | SheetImport.Event):
        assert (event.attributes["subject"], ids) == ("ledger", {})
    else:
        assert event.attributes["subject"] == "creators/ana.creates"
        assert ids == {"creator_id": "ana.creates"}
