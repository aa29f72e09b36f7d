"""Mappings: how the sheets of a source are read, saved once and used by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_access_log import accesses
from tests.api.test_imports import LATER, events, fates, lines, secret, send
from tests.api.world import World, refused, told
from tests.waiting import until

MAPPING = {"columns": {"secret": "Kode", "video_id": "Clip", "expires_at": "Bis", "note": None}, "dates": "dmy"}
SHEET = f"Creator\tClip\tKode\tVon\tBis\tNotes\nana\tvideo-a\t{secret(1)}\t\t{LATER}\tpaid\n"


def save(world: World, name: str = "agency-north", client: Any = None, **body: Any) -> Any:
    return (client or world.client).put(f"/v1/imports/mappings/{name}", json=body or MAPPING)


def test_a_mapping_is_saved_read_replaced_and_deleted(world: World) -> None:
    saved = told(save(world), 200)
    assert (saved["name"], saved["columns"], saved["dates"], saved["days"]) == (
        "agency-north",
        MAPPING["columns"],
        "dmy",
        None,
    )
    told(save(world, "b", days=30), 200)
    assert told(world.client.get("/v1/imports/mappings/agency-north"), 200) == saved
    listed = told(world.client.get("/v1/imports/mappings"), 200)["mappings"]
    assert [one["name"] for one in listed] == ["agency-north", "b"]
    told(save(world, "b", days=60), 200)
    assert told(world.client.get("/v1/imports/mappings/b"), 200)["days"] == 60
    told(world.client.delete("/v1/imports/mappings/b"), 204)
    assert refused(world.client.delete("/v1/imports/mappings/b")) == (404, "mapping_unknown")
    assert refused(world.client.get("/v1/imports/mappings/b")) == (404, "mapping_unknown")


def test_an_import_reads_a_sheet_by_a_saved_mapping_and_its_event_names_it(world: World) -> None:
    told(save(world), 200)
    answer = send(world, SHEET, mapping="agency-north", permission="true", record="true")
    assert fates(answer) == [(2, "new", None)]
    first = lines(answer)[0]["import"]
    assert (first["mapping"], first["sheets"][0]["columns"]) == (
        "agency-north",
        {"creator_id": "A", "video_id": "B", "secret": "C", "expires_at": "E"},
    )
    started = next(event for event in events(world) if event["type"] == "ImportStarted")
    assert (started["body"]["options"]["mapping"], started["body"]["options"]["dates"]) == ("agency-north", "dmy")
    # A mapping that is gone changes nothing of what was recorded with it.
    told(world.client.delete("/v1/imports/mappings/agency-north"), 204)
    again = send(world, SHEET, columns="secret=C,video_id=B,expires_at=E,note=")
    assert fates(again) == [(2, "known", None)]


def test_what_an_import_says_itself_counts_before_its_mapping(world: World) -> None:
    told(save(world, columns=MAPPING["columns"], days=30, permission=True), 200)
    answer = send(world, SHEET, mapping="agency-north", columns="note=F,expires_at=", days="400")
    assert fates(answer) == [(2, "unclear", "no_end")]
    assert lines(answer)[0]["import"]["sheets"][0]["columns"]["note"] == "F"


def test_an_import_by_an_unknown_mapping_is_refused(world: World) -> None:
    assert refused(send(world, SHEET, mapping="nobodys")) == (404, "mapping_unknown")
    assert refused(send(world, SHEET, mapping="no/name")) == (400, "malformed_query")


def test_another_ledger_has_mappings_of_its_own(world: World) -> None:
    told(save(world), 200)
    other = world.another()
    assert told(other.client.get("/v1/imports/mappings"), 200)["mappings"] == []
    assert refused(send(other, SHEET, mapping="agency-north")) == (404, "mapping_unknown")


@pytest.mark.parametrize(
    "body",
    [
        {"columns": {"secrets": "Kode"}},
        {"columns": {"secret": "Kode", "note": "kode "}},
        {"columns": {"secret": "###"}},
        {"columns": {"secret": "x" * 200}},
        {"columns": {"secret": "nul\u0000"}},
        {"columns": {"secret": "#k9/Tz+example+of+a+code+itself=="}},
        {"header": 11},
        {"days": 4000},
        {"dates": "ymd"},
        {"time_zone": "Mars/Olympus"},
        {"terms": ""},
        {"colums": {}},
        {"days": "30"},
    ],
)
def test_a_mapping_that_means_nothing_is_refused(world: World, body: dict[str, Any]) -> None:
    answer = world.client.put("/v1/imports/mappings/wrong", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert "example+of+a+code" not in answer.text


def test_an_empty_mapping_is_refused(world: World) -> None:
    assert refused(world.client.put("/v1/imports/mappings/empty", json={})) == (422, "malformed_body")


def test_who_saved_and_deleted_a_mapping_is_on_record(world: World) -> None:
    told(save(world), 200)
    told(world.client.delete("/v1/imports/mappings/agency-north"), 204)
    routes = [f"{method} /v1/imports/mappings/{{name}}" for method in ("DELETE", "PUT")]
    until(lambda: [a["route"] for a in accesses(world) if "mappings" in a["route"]] == routes)


def test_null_in_a_mapping_is_as_if_it_were_left_out(world: World) -> None:
    body: dict[str, Any] = {
        "time_zone": None,
        "dates": None,
        "header": None,
        "days": None,
        "terms": None,
        "columns": None,
    }
    told(save(world, **body), 200)
    head = "Creator\tVideo\tSpark Code\tEnd\n"
    answer = send(world, f"{head}ana\tvideo-a\t{secret(1)}\t{LATER}\n", mapping="agency-north", permission="true")
    assert fates(answer) == [(2, "new", None)]


def test_a_sheet_without_a_column_that_its_mapping_names_is_refused(world: World) -> None:
    told(save(world), 200)
    other = SHEET.replace("Kode", "Spark Code")
    answer = send(world, other, mapping="agency-north", permission="true")
    assert refused(answer) == (422, "malformed_body")
    assert "`Kode`, which the mapping reads as `secret`" in answer.text
    assert fates(send(world, other, mapping="agency-north", permission="true", columns="secret=C")) == [
        (2, "new", None)
    ]
