"""The audit trail: pages, filters, formats, and what never stands in it."""

from __future__ import annotations

import csv
import io
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api import event_search
from api.event_content import CSV_COLUMNS
from api.events import EventsQuery
from api.http.cursors import encode_two_way
from api.http.fields import MAX_POSITION
from domain.event_types import EVENT_TYPES
from tests.api.streaming import following
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, days, refused, told
from tests.waiting import until


def positions(answer: httpx.Response) -> list[int]:
    return [event["position"] for event in told(answer, 200)["events"]]


def trail(world: World, client: Any = None, **query: Any) -> list[int]:
    return positions((client or world.client).get("/v1/events", params=query))


def test_an_event_reads_whole(world: World) -> None:
    code = world.generate()
    (event,) = told(world.client.get("/v1/events", params={"after": 1}), 200)["events"]
    (key,) = [key for key in told(world.client.get("/v1/keys"), 200)["keys"] if key["role"] == "admin"]

    assert {**event, "event_id": "", "recorded_at": "", "effective_at": "", "summary": "", "body": {}} == {
        "position": 2,
        "event_id": "",
        "type": "CodeGenerated",
        "type_version": 1,
        "code_id": code["code_id"],
        "creator_id": OWN_CREATOR,
        "video_id": code["video_id"],
        "stream_version": 1,
        "recorded_at": "",
        "effective_at": "",
        "actor": {"key_id": key["key_id"], "key_name": key["name"], "role": "admin", "subject": None},
        "source": "operator",
        "correlation_id": None,
        "causation_id": None,
        "summary": "",
        "body": {},
        "proof": {"state": "pending", "size": None, "witnesses": []},
    }
    assert event["recorded_at"].endswith("Z")
    assert event["body"] == {
        **{
            name: code[name]
            for name in ("creator_id", "video_id", "terms_version", "starts_at", "expires_at", "masked")
        },
        "terms_accepted_at": event["body"]["terms_accepted_at"],
        "fingerprint": event["body"]["fingerprint"],
        "secret_given": False,
        "start_stated": True,
    }
    related: dict[str, Any] = {"cause": None, "effects": [], "more_effects": False}
    assert event | related == told(world.client.get("/v1/events/2"), 200)


def test_a_permissions_event_names_its_creator_instead_of_a_code(world: World) -> None:
    world.permit()
    (event,) = told(world.client.get("/v1/events"), 200)["events"]
    assert (event["creator_id"], "code_id" in event) == (OWN_CREATOR, False)


def test_what_is_committed_is_visible_at_once(world: World) -> None:
    for _ in range(10):
        position = world.generate()["position"]
        assert trail(world, after=position - 1) == [position]
        assert trail(world, after=position - 1, creator_id=OWN_CREATOR) == [position]


def test_pages_of_the_trail_follow_one_another_in_both_directions(world: World) -> None:
    for _ in range(6):
        world.generate()
    for order, expected in (("asc", range(1, 8)), ("desc", range(7, 0, -1))):
        for filters in ({}, {"creator_id": OWN_CREATOR}):
            found: list[int] = []
            asked: dict[str, Any] = {"order": order, "limit": 3} | filters
            answer = world.client.get("/v1/events", params=asked)
            while "next" in answer.links:
                found += positions(answer)
                assert answer.json()["next"] == found[-1]
                answer = world.client.get(answer.links["next"]["url"])
            assert told(answer, 200)["next"] is None
            assert found + positions(answer) == list(expected)


def test_the_trail_is_filtered_by_what_events_concern(world: World) -> None:
    code = world.running()  # positions 1 to 5
    other = world.generate(OTHER_CREATOR, video_id="video-x")  # 6 and 7
    operator = world.as_role("operator")
    told(operator.post(f"/v1/codes/{other['code_id']}/notes", json={"text": "so"}), 201)  # 8
    key_id = told(world.client.get("/v1/events/8"), 200)["actor"]["key_id"]
    third = told(world.client.get("/v1/events/3"), 200)["recorded_at"]

    assert trail(world, type="CodeGenerated") == [2, 7]
    assert trail(world, code_id=code["code_id"]) == [2, 3, 4, 5]
    assert trail(world, creator_id=OTHER_CREATOR) == [6, 7, 8]
    assert trail(world, video_id="video-x") == [7, 8]
    assert trail(world, advertiser_id=OWN_ACCOUNT) == [3, 4, 5]
    assert trail(world, actor=key_id) == [8]
    assert trail(world, **{"from": third}) == [3, 4, 5, 6, 7, 8]
    assert trail(world, to=third) == [1, 2]
    assert trail(world, q="CAMPAIGN-1") == [5]
    assert trail(world, q='"ad authorization on"') == [1, 6]
    assert trail(world, q="no such words") == []
    assert trail(world, type="CodeGenerated", creator_id=OTHER_CREATOR, order="desc") == [7]
    assert trail(world, after=2, before=5) == [3, 4]
    assert trail(world, after=0, limit=2) == [1, 2]
    assert trail(world, after=8) == []
    assert trail(world, after=4, before=4) == []


def test_a_filter_takes_what_its_qualifier_takes_and_nothing_that_no_event_can_match(world: World) -> None:
    world.share(world.generate())  # positions 1 to 3
    key_id = told(world.client.get("/v1/events/2"), 200)["actor"]["key_id"]

    assert trail(world, type="shared") == trail(world, type="SHARED") == trail(world, q="type:shared") == [3]
    assert trail(world, actor=key_id.upper()) == [1, 2, 3]
    assert trail(world, actor="Clock") == []
    told_types = problem_of(world, type="Foo")
    assert told_types == f"Expected one of {', '.join(EVENT_TYPES)}."
    assert problem_of(world, actor="John") == "Expected the id of a key, or clock."


def problem_of(world: World, **query: Any) -> str:
    answer = world.client.get("/v1/events", params=query)
    assert refused(answer) == (400, "malformed_query")
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"/{next(iter(query))}"
    return str(error["problem"])


def test_words_are_looked_for_page_by_page(world: World) -> None:
    for _ in range(5):
        world.generate()
    found: list[int] = []
    answer = world.client.get("/v1/events", params={"q": "generated code", "limit": 2, "order": "desc"})
    while "next" in answer.links:
        found += positions(answer)
        answer = world.client.get(answer.links["next"]["url"])
    assert found + positions(answer) == [6, 5, 4, 3, 2]


def test_the_trail_is_searched_in_a_small_language(world: World) -> None:
    code = world.running()  # positions 1 to 5
    world.share(code, "brand-x", channel="email")  # 6
    late = {"reason": "why", "force": True, "effective_at": days(0)}
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=late), 200)  # 7 and 8
    refused(world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": "a"}))  # 9
    this_year = days(0)[:4]

    assert trail(world, q="type:Shared") == [3, 6]
    assert trail(world, q="type:shared,redeemed -channel:dm") == [4, 6]
    assert trail(world, q="channel:dm") == [3]
    assert trail(world, q="brand:brand-x") == [6]
    assert trail(world, q=f"brand:brand-x advertiser:{OWN_ACCOUNT}") == [6]
    assert trail(world, q="refused:code_revoked") == [9]
    assert trail(world, q=f"creator:{OWN_CREATOR} -type:Shared -type:CampaignEnded") == [1, 2, 4, 5, 8, 9]
    assert trail(world, q=f"video:{code['video_id']} source:operator type:CodeGenerated") == [2]
    assert trail(world, q=f"code:{code['code_id']} campaign-1") == [5, 7]
    assert trail(world, q=f"code:{code['code_id']} campaign-1 -launched") == [7]
    assert trail(world, q=f"recorded:{this_year} type:CodeGenerated") == [2]
    assert trail(world, q="recorded:..2025") == []
    assert trail(world, q=f"effective:{this_year}.. type:Revoked") == [8]
    assert trail(world, q="type:Shared", type="Redeemed") == []
    assert trail(world, q="-type:Shared", order="desc", limit=3) == [9, 8, 7]
    key_id = told(world.client.get("/v1/events/1"), 200)["actor"]["key_id"]
    assert trail(world, q=f"actor:{key_id} type:Redeemed") == [4]
    assert trail(world, q="actor:clock") == []


def test_a_query_that_is_none_says_at_which_character_and_nothing_of_what_was_sent(world: World) -> None:
    answer = world.client.get("/v1/events", params={"q": "type:Shared  sekret:xyzzy"})
    assert refused(answer) == (400, "malformed_query")
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["offset"]) == ("/q", 13)
    assert error["problem"].startswith("Unknown qualifier. Known qualifiers: actor, advertiser, brand, channel, code, ")
    assert not any(sent in answer.text for sent in ("sekret", "xyzzy"))


def test_pages_lead_on_and_back_and_keep_the_bounds_that_were_asked_for(world: World) -> None:
    for _ in range(6):
        world.generate()  # 1 permission, 6 codes: positions 1 to 7
    for order, pages in (("asc", [[2, 3], [4, 5], [6]]), ("desc", [[6, 5], [4, 3], [2]])):
        for more in ({}, {"q": f"creator:{OWN_CREATOR}"}, {"q": "generated"}):
            asked: dict[str, Any] = {"order": order, "limit": 2, "after": 1, "before": 7} | more
            first = answer = world.client.get("/v1/events", params=asked)
            assert told(first, 200)["prev_cursor"] is None
            seen = [positions(answer)]
            while "next" in answer.links:
                answer = world.client.get(answer.links["next"]["url"])
                seen.append(positions(answer))
            assert seen == pages
            back = []
            while "prev" in answer.links:
                answer = world.client.get(answer.links["prev"]["url"])
                back.append(positions(answer))
            # The pages before the last are told from its beginning, so that none is shorter than it need be.
            assert back == pages[:-1][::-1]
            assert positions(world.client.get(answer.links["next"]["url"])) == pages[1]


def test_a_page_behind_the_last_event_leads_back_to_it(world: World) -> None:
    world.generate()
    answer = world.client.get("/v1/events", params={"limit": 1})
    cursor = told(answer, 200)["next_cursor"]
    answer = world.client.get("/v1/events", params={"limit": 1, "cursor": cursor})
    assert (positions(answer), answer.json()["next"]) == ([2], None)
    first = world.client.get("/v1/events", params={"limit": 1, "cursor": answer.json()["prev_cursor"]})
    assert (positions(first), first.json()["prev_cursor"], first.json()["next"]) == ([1], None, 1)


def test_a_cursor_of_the_trail_is_good_for_its_own_query_alone(world: World) -> None:
    for _ in range(3):
        world.generate()
    asked: dict[str, Any] = {"limit": 1, "type": "CodeGenerated"}
    cursor = told(world.client.get("/v1/events", params=asked), 200)["next_cursor"]

    assert trail(world, **(asked | {"limit": 2, "cursor": cursor})) == [3, 4]
    others: list[dict[str, Any]] = [{"type": "Shared"}, {"order": "desc"}, {"q": "a"}, {"after": 1}, {"before": 9}]
    for other in others:
        answer = world.client.get("/v1/events", params=asked | {"cursor": cursor} | other)
        assert refused(answer) == (400, "malformed_cursor")
    for changed in ("", "x", cursor[:-1], cursor.replace(".", ".B", 1), cursor + "A", "é"):
        answer = world.client.get("/v1/events", params=asked | {"cursor": changed})
        assert refused(answer) == (400, "malformed_cursor")


@pytest.mark.parametrize("place", [2**62 + 1, 2**63 - 1, 2**63, 2**64, 2**127 - 1])
@pytest.mark.parametrize("back", [False, True])
def test_a_cursor_of_a_place_that_no_ledger_reaches_is_refused(world: World, place: int, back: bool) -> None:
    world.permit()
    for asked in ({"order": "asc"}, {"order": "desc"}, {"q": "type:Shared"}, {"q": "words"}):
        cursor = world.cursor(encode_two_way(place, EventsQuery.model_validate(asked).cursor_scope(), back=back))
        answer = world.client.get("/v1/events", params=asked | {"cursor": cursor})
        assert refused(answer) == (400, "malformed_cursor")


def test_a_cursor_of_the_last_place_there_can_be_is_taken(world: World) -> None:
    world.permit()
    for asked in ({"order": "asc"}, {"order": "desc"}, {"q": "type:Shared"}, {"q": "words"}):
        for back in (False, True):
            place = encode_two_way(MAX_POSITION, EventsQuery.model_validate(asked).cursor_scope(), back=back)
            cursor = world.cursor(place)
            told(world.client.get("/v1/events", params=asked | {"cursor": cursor}), 200)


def test_a_total_is_estimated_on_request_alone(world: World) -> None:
    for _ in range(6):
        world.generate()
    assert "total" not in told(world.client.get("/v1/events"), 200)

    def total(**query: Any) -> int:
        return int(told(world.client.get("/v1/events", params={"total": "estimate"} | query), 200)["total"])

    assert total() == 7
    assert total(limit=2) == 7
    assert total(limit=2, after=3) == 4
    assert total(limit=2, before=3) == 2
    assert total(type="Shared") == 0
    assert total(q="generated") == 6
    assert total(limit=2, type="CodeGenerated") >= 2
    assert 2 <= total(limit=2, q="generated") <= 7
    assert refused(world.client.get("/v1/events", params={"total": "exact"})) == (400, "malformed_query")


def test_a_search_that_gave_up_says_so_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        world.generate()
    world.permit(enabled=False)
    monkeypatch.setattr(event_search, "_AT_ONCE", 2)
    monkeypatch.setattr(event_search, "MAX_ROWS_SCANNED", 2)
    answer = world.client.get("/v1/events", params={"q": "off"})
    content = told(answer, 200)
    assert (content["events"], content["complete"], content["looked_through"], content["next"]) == ([], False, 2, 2)
    assert (answer.headers["search-complete"], answer.headers["looked-through"]) == ("false", "2")
    found = []
    while "next" in answer.links:
        answer = world.client.get(answer.links["next"]["url"])
        found += positions(answer)
    assert found == [8]
    assert answer.json()["complete"] is True


def test_a_filter_waits_until_the_history_has_read_what_is_committed(world: World) -> None:
    for number in range(5):
        world.permit(f"creator-{number}")
        assert len(trail(world, q="type:PermissionEnabled")) == number + 1


def read_upto(world: World, **query: Any) -> int:
    """How far into the ledger a page has read, by its own word."""
    answer = world.client.get("/v1/events", params=query)
    told(answer, 200)
    return int(answer.headers["ledger-position"])


def test_a_page_says_how_far_into_the_ledger_it_has_read(world: World) -> None:
    assert read_upto(world) == 0
    world.running()  # positions 1 to 5
    for query in (
        {},
        {"limit": 2},
        {"limit": 2, "order": "desc", "before": 4},
        {"after": 5},
        {"type": "Revoked"},
        {"type": "PermissionEnabled"},
        {"q": "type:Shared never-said"},
        {"q": "never-said", "order": "desc"},
        {"type": "Shared", "after": 5},
    ):
        assert read_upto(world, **query) == 5, query


def test_a_search_that_gave_up_has_read_as_far_as_it_looked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        world.generate()
    monkeypatch.setattr(event_search, "_AT_ONCE", 2)
    monkeypatch.setattr(event_search, "MAX_ROWS_SCANNED", 2)
    assert read_upto(world, q="never-said") == 2
    assert read_upto(world, q="type:CodeGenerated never-said") == 3
    # Backwards it looked at what is newest.
    assert read_upto(world, q="never-said", order="desc") == 7


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"after": 5, "before": 4},
        {"from": days(-1), "to": days(-2)},
        {"cursor": "x" * 501},
        {"q": "x" * 501},
        {"limit": 1001},
        {"after": -1},
        {"after": "x"},
        {"order": "up"},
        {"code_id": "x"},
        {"type": "a b"},
        {"type": "Foo"},
        {"type": ""},
        {"actor": "John"},
        {"actor": "11111111-1111-1111-1111-11111111111"},
        {"from": "today"},
        {"q": ""},
        {"q": "\0"},
        {"creatorid": "x"},
    ],
)
def test_a_malformed_query_of_the_trail_is_refused(world: World, query: dict[str, Any]) -> None:
    assert refused(world.client.get("/v1/events", params=query)) == (400, "malformed_query")


@pytest.mark.parametrize(
    ("query", "pointer", "problem"),
    [
        (
            "sekret=1&secret=2&cursor=",
            "",
            (
                "Unknown parameter. Known parameters: type, code_id, creator_id, video_id_exact, video_id, "
                "advertiser_id, actor, from, to, q, after, before, history, "
                "positions, order, limit, cursor, total, wait, at_least."
            ),
        ),
        ("advertiser_id=a/b", "/advertiser_id", "Expected an id: 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -"),
        (
            "from=2026-03-01T12:00:00+00:00",
            "/from",
            "In a query, + means a space. Write %2B for the + of an offset, or give the time with Z.",
        ),
        ("q=%ff", "/q", "This is not valid UTF-8, or contains the replacement character U+FFFD."),
        ("q=a%00", "/q", "A string must not contain the NUL character."),
        ("q=", "/q", "This must not be empty."),
        (f"q={'x' * 501}", "/q", "This is longer than 500 characters."),
        ("order=up", "/order", "Expected 'asc' or 'desc'."),
        ("limit=1001", "/limit", "The maximum is 1,000."),
        ("limit=0", "/limit", "The minimum is 1."),
    ],
)
def test_what_is_wrong_with_a_query_is_told_in_a_sentence(world: World, query: str, pointer: str, problem: str) -> None:
    answer = world.client.get(f"/v1/events?{query}")
    assert refused(answer) == (400, "malformed_query")
    why = {"reason": "not_a_time"} if pointer == "/from" else {}
    assert answer.json()["errors"] == [{"pointer": pointer, "problem": problem, **why}]
    assert "sekret" not in answer.text


def test_every_parameter_that_is_wrong_is_told(world: World) -> None:
    answer = world.client.get("/v1/authorizations?advertiser_id=%ff&at=2026-03-01T12:00:00%2B01:00&as_of=x&by=me")
    assert refused(answer) == (400, "malformed_query")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/video_id", "/advertiser_id", "/as_of", ""]


def test_a_creators_key_reads_its_own_events_alone(world: World) -> None:
    world.generate(OTHER_CREATOR)  # 1 and 2
    world.generate(OWN_CREATOR)  # 3 and 4
    creator = world.creator()

    assert trail(world, creator) == [3, 4]
    assert trail(world, creator, creator_id=OWN_CREATOR) == [3, 4]
    assert trail(world, creator, type="CodeGenerated") == [4]
    assert creator.get("/v1/events", params={"creator_id": OTHER_CREATOR}).status_code == 403
    assert creator.get("/v1/events", params={"q": f"creator:{OWN_CREATOR},{OTHER_CREATOR}"}).status_code == 403
    assert trail(world, creator, q=f"creator:{OWN_CREATOR} type:CodeGenerated") == [4]
    assert trail(world, creator, q=f"-creator:{OWN_CREATOR}") == []
    assert trail(world, creator, q=f"-creator:{OTHER_CREATOR}") == [3, 4]
    assert [creator.get(f"/v1/events/{position}").status_code for position in (1, 2, 3, 4)] == [403, 403, 200, 200]


@pytest.mark.parametrize("position", ["0", "99", "-1", "x", "1.0", "01", "٣", str(10**30)])
def test_a_position_without_an_event_is_unknown(world: World, position: str) -> None:
    world.permit()
    answer = world.client.get(f"/v1/events/{position}")
    assert refused(answer) == (404, "event_unknown")


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
        ("text/csv", "text/csv; charset=utf-8"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/csv;q=0.2, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("text/csv;q=0, application/json", "application/json"),
        ("text/csv;q=x", "text/csv; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_that_is_wanted_most(world: World, accept: str, given: str) -> None:
    world.permit()
    answer = world.client.get("/v1/events", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, given)
    assert answer.headers["vary"] == "Accept"


def test_every_format_tells_the_same(world: World) -> None:
    world.running()
    events = told(world.client.get("/v1/events"), 200)["events"]

    lines = world.client.get("/v1/events", headers={"Accept": "application/x-ndjson"}).text.splitlines()
    table = world.client.get("/v1/events", headers={"Accept": "text/csv"}).text

    assert [json.loads(line) for line in lines] == events
    rows = list(csv.DictReader(io.StringIO(table)))
    assert list(rows[0]) == list(CSV_COLUMNS)
    assert [int(row["position"]) for row in rows] == [event["position"] for event in events]
    assert [row["recorded_at"] for row in rows] == [event["recorded_at"] for event in events]
    assert [json.loads(row["body"]) for row in rows] == [event["body"] for event in events]


def test_no_cell_of_a_table_is_a_formula(world: World) -> None:
    told(world.client.post("/v1/keys", json={"role": "operator", "name": "=cmd|' /C calc'!A0"}), 201)
    world.permit("-2")
    named = {"enabled": True}
    told(world.client.put("/v1/creators/y/permission", json=named, headers={"Correlation-Id": "@SUM"}), 200)
    key = told(world.client.post("/v1/keys", json={"role": "operator", "name": "=1+1"}), 201)["key"]
    world.with_key(key).put("/v1/creators/x/permission", json={"enabled": True})

    table = world.client.get("/v1/events", headers={"Accept": "text/csv"}).text

    cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    assert [cell for cell in cells if cell[:1] in {"=", "+", "-", "@", "\t", "\r"}] == []
    assert {"'-2", "'@SUM", "'=1+1"} <= set(cells)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_cell_of_a_table_is_a_formula_wherever_a_spreadsheet_separates(world: World, delimiter: str) -> None:
    evil = "x;=A1; \"-2;';\"\"@SUM;=cmd|' /C calc'!A0"
    key = told(world.client.post("/v1/keys", json={"role": "operator", "name": "a\n=1+1\r\t +2;-3"}), 201)["key"]
    code = World(world.server, world.with_key(key)).generate(terms_version=evil)
    world.share(code)
    world.redeem(code)
    world.launch(code, targeting={"a;=b": ['c;"+d', {"e": ";@"}]})

    query = {"q": '-";=A1" -";=never said"'}
    table = world.client.get("/v1/events", headers={"Accept": "text/csv"}).text
    exported = world.client.get("/v1/exports/events", params={"format": "csv"}).text
    asked = world.client.get("/v1/exports/events", params={"format": "csv", **query}).text

    for text in (table, exported, asked):
        cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) for cell in row]
        assert [cell for cell in cells if cell.lstrip(' "\t\r\n')[:1] in {"=", "+", "-", "@"}] == []


def test_no_cell_begins_with_a_formula_in_wide_letters_or_behind_what_nobody_sees(world: World) -> None:
    evil = ["\uff1d1+1", "\uff20SUM", "\u200b=1+1", '\ufeff"-2', "x;\u2060\uff0b1"]
    for name in evil:
        key = told(world.client.post("/v1/keys", json={"role": "operator", "name": name}), 201)["key"]
        told(world.with_key(key).put(f"/v1/creators/x-{evil.index(name)}/permission", json={"enabled": True}), 200)

    table = world.client.get("/v1/events", headers={"Accept": "text/csv"}).text

    names = [row["actor_key_name"] for row in csv.DictReader(io.StringIO(table, newline=""))]
    assert names == ["'\uff1d1+1", "'\uff20SUM", "\u200b'=1+1", "\ufeff\"'-2", "x;\u2060'\uff0b1"]


def test_a_table_holds_the_same_bodies_though_no_formula_stands_in_them(world: World) -> None:
    code = world.generate(terms_version=';=A1; "-2')
    world.share(code)
    world.redeem(code)
    world.launch(code, targeting={"a;=b": ['c;"+d', {"e": ";@"}]})

    table = world.client.get("/v1/events", headers={"Accept": "text/csv"}).text

    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    events = told(world.client.get("/v1/events"), 200)["events"]
    assert [json.loads(row["body"]) for row in rows] == [event["body"] for event in events]
    assert "\\u003dA1" in table
    assert "accepted terms ;'=A1; \"'-2 and" in rows[1]["summary"]


def test_no_secret_and_no_note_stands_in_the_trail(world: World) -> None:
    code = world.generate(secret="#a-secret-that-tiktok-made+/=")
    world.share(code, note="a note on sharing")
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "a remark of mine"}), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"}), 200)

    for accept in ("application/json", "application/x-ndjson", "text/csv"):
        text = world.client.get("/v1/events", headers={"Accept": accept}).text
        for hidden in ("a-secret-that-tiktok-made", "a note on sharing", "a remark of mine"):
            assert hidden not in text


def test_a_position_beyond_the_end_is_told_apart_from_an_empty_page(world: World) -> None:
    world.running()
    assert trail(world, after=5) == []
    beyond: tuple[dict[str, Any], ...] = ({"after": 6}, {"after": 99999999, "type": "Shared"}, {"after": 6, "wait": 5})
    for query in beyond:
        answer = world.client.get("/v1/events", params=query)
        assert refused(answer) == (409, "ahead_of_ledger")
        assert answer.json()["last_position"] == 5


def test_at_least_waits_for_its_position(world: World) -> None:
    with waiting(world, at_least=1) as answers:
        world.permit()
        assert positions(answers.get(timeout=10)) == [1]


# -- Long polls


@contextmanager
def waiting(world: World, client: httpx.Client | None = None, **query: Any) -> Iterator[queue.Queue[httpx.Response]]:
    """Ask for a page in a thread of its own, and go on when the server has begun to answer."""
    answers: queue.Queue[httpx.Response] = queue.Queue()
    asking = threading.Thread(
        target=lambda: answers.put((client or world.client).get("/v1/events", params=query)), daemon=True
    )
    asking.start()
    if "wait" in query:
        until(lambda: followers(world) == 1)
    yield answers
    asking.join(30)


def followers(world: World) -> int:
    return world.server.serving.streams.polls


def test_a_long_poll_answers_when_its_event_is_recorded(world: World) -> None:
    world.generate()
    with waiting(world, after=2, wait=20) as answers:
        world.permit(OTHER_CREATOR)
        answer = answers.get(timeout=15)
    assert (positions(answer), answer.json()["next"]) == ([3], 3)


def test_a_long_poll_with_filters_goes_past_what_it_does_not_show(world: World) -> None:
    with waiting(world, after=0, wait=20, type="Shared") as answers:
        world.share(world.generate())
        answer = answers.get(timeout=15)
    assert (positions(answer), answer.json()["next"]) == ([3], 3)


def test_a_poller_keeps_next_alone_and_reads_every_event_once(world: World) -> None:
    world.running()
    found: list[int] = []
    after = 0
    for _ in range(8):
        answer = world.client.get("/v1/events", params={"after": after, "wait": 0, "limit": 2})
        found += positions(answer)
        after = answer.json()["next"]
        assert f"after={after}&wait=0&limit=2&history=" in answer.links["next"]["url"]
        if len(found) == 5:
            world.permit(OTHER_CREATOR)
    assert found == [1, 2, 3, 4, 5, 6]
    # What does not match is not searched again.
    answer = world.client.get("/v1/events", params={"after": 0, "wait": 0, "type": "Revoked"})
    assert (positions(answer), answer.json()["next"]) == ([], 6)


def test_a_long_poll_ends_empty_after_its_time(world: World) -> None:
    world.permit()
    answer = world.client.get("/v1/events", params={"after": 1, "wait": 1})
    assert (positions(answer), answer.json()["next"]) == ([], 1)
    assert answer.elapsed.total_seconds() >= 1


def test_a_long_poll_ends_with_its_connection(world: World) -> None:
    with pytest.raises(httpx.ReadTimeout):
        world.client.get("/v1/events", params={"wait": 20}, timeout=0.3)
    until(lambda: followers(world) == 0)


def test_a_long_poll_shows_nothing_to_a_key_that_was_revoked_meanwhile(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    with waiting(world, world.with_key(key["key"]), wait=20) as answers:
        assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        world.permit()
        assert refused(answers.get(timeout=15)) == (401, "unauthenticated")


def test_long_polls_and_streams_of_a_key_share_their_places(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.server.serving.places.streams, "of_a_key", 1)
    with following(world.client):
        answer = world.client.get("/v1/events", params={"wait": 20})
        assert refused(answer) == (429, "too_many_requests")


@pytest.mark.parametrize(
    "query", [{"wait": 21}, {"wait": -1}, {"wait": 1, "order": "desc"}, {"wait": 1, "before": 9}, {"wait": "1s"}]
)
def test_what_cannot_wait_is_refused(world: World, query: dict[str, Any]) -> None:
    assert refused(world.client.get("/v1/events", params=query)) == (400, "malformed_query")


def test_a_time_that_lies_ahead_matches_nothing_yet(world: World) -> None:
    world.permit()
    assert trail(world, **{"from": days(1)}) == []


def test_an_event_leads_to_its_cause_and_its_effects(world: World) -> None:
    running = world.running()
    asked = {"reason": "why", "force": True}
    revoked = told(world.client.post(f"/v1/codes/{running['code_id']}/revocation", json=asked), 200)["position"]
    cause = told(world.client.get(f"/v1/events/{revoked}"), 200)
    other = world.generate("another.creator", video_id="another")
    header = {"Causation-Id": cause["event_id"]}
    told(world.client.post(f"/v1/codes/{other['code_id']}/notes", json={"text": "so"}, headers=header), 201)
    until(lambda: world.client.get("/v1/events", params={"at_least": world.head(), "q": "type:Revoked"}).is_success)

    def related(position: int, client: httpx.Client) -> tuple[Any, Any, bool]:
        event = told(client.get(f"/v1/events/{position}"), 200)
        return event["cause"], event["effects"], event["more_effects"]

    ended: dict[str, Any] = {"position": revoked - 1, "type": "CampaignEnded"}
    noted: dict[str, Any] = {"position": world.head(), "type": "NoteAdded"}
    by = {"position": revoked, "type": "Revoked"}
    assert related(revoked, world.client) == (None, [ended, noted], False)
    assert related(ended["position"], world.client) == (by, [], False)
    # Of another stream, found by the time that its id begins with.
    assert related(noted["position"], world.client) == (by, [], False)
    # A creator sees what concerns their own codes.
    assert related(revoked, world.creator()) == (None, [ended], False)
    theirs = world.as_role("creator", creator_ids=["another.creator"])
    assert related(noted["position"], theirs) == (None, [], False)


def test_a_cause_that_is_nowhere_is_not_made_up(world: World) -> None:
    code = world.generate()
    beyond_the_year_9999 = "ffffffff-ffff-7fff-bfff-ffffffffffff"
    for unknown in (
        "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20",
        "8c5f8e0e-1d5e-4f0e-9c3e-2f6a0f9b7d11",
        beyond_the_year_9999,
    ):
        header = {"Causation-Id": unknown}
        path = f"/v1/codes/{code['code_id']}/notes"
        told(world.client.post(path, json={"text": unknown}, headers=header), 201)
        event = told(world.client.get(f"/v1/events/{world.head()}"), 200)
        assert (event["causation_id"], event["cause"]) == (unknown, None)
