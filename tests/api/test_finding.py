"""What people search the trail by when they hold no id: positions, lateness, terms, reasons, notes, names of keys."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import httpx
import pytest

from api import offline
from tests.api.test_events import trail
from tests.api.test_offline import where
from tests.api.world import OTHER_CREATOR, OWN_CREATOR, World, days, refused, told


@pytest.fixture
def story(world: World) -> World:
    """A ledger with 1 a permission, 2 a code of old terms, 3 its share with a note, 4 its revocation, 5 a late code."""
    world.permit(effective_at=days(-60))
    code = world.generate(terms_version="2025-11")
    world.share(code, note="Ana asked for Straße 7 in the cut")
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "The agreement ended"}), 200)
    world.generate(secret="#late+code/of+tiktok+4711==", starts_at=days(-40), days=365, effective_at=days(-40))
    return world


REMEMBERED = {
    "position:2,4": [2, 4],
    "position:2..4 -position:3": [2, 4],
    "position:3..900 type:Revoked": [4],
    "late:>30d type:CodeGenerated": [5],
    "-late:>50d type:CodeGenerated": [2, 5],
    "terms:2025-11": [2],
    "terms:2025": [],
    "terms:2026-01,2025-11": [2, 5],
    'reason:"agreement ended"': [4],
    "reason:agree": [],
    "note:straße": [3],
    "note:STRASSE": [3],
    "note:code": [],
    '-note:"in the cut" type:Shared': [],
}


def test_events_are_found_by_what_people_remember_of_them(story: World) -> None:
    assert {query: trail(story, q=query) for query in REMEMBERED} == REMEMBERED
    backwards = {query: found[::-1] for query, found in REMEMBERED.items()}
    assert {query: trail(story, q=query, order="desc") for query in REMEMBERED} == backwards


def test_the_evidence_of_an_answer_is_read_in_one_request(story: World) -> None:
    assert trail(story, positions="5,1,3,3") == [1, 3, 5]
    assert trail(story, positions="5,1,3", limit=2, order="desc") == [5, 3]
    assert trail(story, positions="5,1,3", type="Shared") == [3]


def test_pages_of_listed_positions_together_are_all_of_them(story: World) -> None:
    first = told(story.client.get("/v1/events", params={"positions": "1,2,4,5", "limit": 3}), 200)
    assert trail(story, positions="1,2,4,5", limit=3, cursor=first["next_cursor"]) == [5]


def test_positions_that_no_event_has_are_refused(world: World) -> None:
    for positions in ("0", "1,", "1, 2", "a", ",".join(["1"] * 201), "99999999999999999999"):
        assert refused(world.client.get("/v1/events", params={"positions": positions})) == (400, "malformed_query")


def test_positions_beyond_the_end_are_no_empty_page(story: World) -> None:
    assert refused(story.client.get("/v1/events", params={"positions": "1,9"})) == (409, "ahead_of_ledger")


def test_a_creator_reads_only_its_own_events_by_position(story: World) -> None:
    other = story.as_role("creator", creator_ids=[OTHER_CREATOR])
    assert trail(story, other, positions="1,2,3") == []
    assert trail(story, story.as_role("creator", creator_ids=[OWN_CREATOR]), positions="1,3") == [1, 3]


def keyed(world: World, name: str) -> httpx.Client:
    made = told(world.client.post("/v1/keys", json={"role": "operator", "name": name}), 201)
    return world.with_key(made["key"])


def test_events_of_a_key_are_found_by_its_name(story: World) -> None:
    for name in ("Acme, desk", "Other"):
        told(keyed(story, name).put(f"/v1/creators/{name[:4]}/permission", json={"enabled": True}), 200)
    assert trail(story, q='key:"acme, DESK"') == [6]
    assert trail(story, q='key:"Acme, desk",Other') == [6, 7]
    assert trail(story, q='-key:"Acme, desk" position:6..7') == [7]


def test_a_name_that_no_key_has_is_refused(story: World) -> None:
    answer = story.client.get("/v1/events", params={"q": "key:nobody"})
    assert refused(answer) == (400, "malformed_query")
    assert "nobody" not in answer.text


def test_a_key_that_cannot_read_notes_cannot_search_them(story: World) -> None:
    subscriber = story.as_role("subscriber")
    assert refused(subscriber.get("/v1/events", params={"q": "note:cut"})) == (403, "not_allowed")
    assert trail(story, story.as_role("auditor"), q="note:cut") == [3]


def test_a_stream_cannot_be_filtered_by_notes(story: World) -> None:
    answer = story.client.get("/v1/events/stream", params={"q": "note:cut"})
    assert refused(answer) == (400, "malformed_query")


def test_notes_of_an_erased_creator_are_found_no_more(story: World) -> None:
    told(story.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked"}), 200)
    assert trail(story, q="note:cut") == []


async def test_exports_are_searched_in_the_same_ways(story: World, tmp_path: Path) -> None:
    told(keyed(story, "Acme").put("/v1/creators/acme/permission", json={"enabled": True}), 200)
    for query, found in (("note:cut", ["3"]), ("key:acme", ["6"]), ("late:>30d -position:1", ["5"])):
        answer = story.client.get("/v1/exports/events", params={"format": "csv", "q": query})
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row["position"] for row in rows] == [*found, "end"]
        path = tmp_path / f"{found[0]}.csv"
        await offline.export(where(story.server), offline.export_query(query, path), path, lambda _: None)
        assert [row["position"] for row in csv.DictReader(io.StringIO(path.read_text()))] == [*found, "end"]


async def test_the_command_line_says_that_no_key_has_a_name(story: World, tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    with pytest.raises(LookupError, match="No key has the name"):
        await offline.export(where(story.server), offline.export_query("key:nobody", path), path, lambda _: None)
