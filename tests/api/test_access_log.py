"""The log of who read the trail: every read of it, every question and every export, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from api.http.cursors import encode_two_way
from infra.auth.access_log import AccessFilter, AccessLog
from infra.errors import Unavailable
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, refused, told
from tests.waiting import until

CODE_ID = "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"


def accesses(world: World) -> list[dict[str, Any]]:
    """What was read, newest first; how keys came to be and were first used stands there too, and is others' matter."""
    found = told(world.client.get("/v1/accesses"), 200)["accesses"]
    return [
        access
        for access in found
        if "/v1/" in access["route"] and "keys" not in access["route"] and access["refused"] is None
    ]


def told_of(world: World) -> list[tuple[Any, ...]]:
    """What was asked, with how many rows, oldest first."""
    return [(a["route"], a["query"], a["format"], a["rows"], a["complete"]) for a in accesses(world)[::-1]]


def test_reads_questions_and_exports_are_recorded_with_what_was_asked(world: World) -> None:
    code = world.running()  # positions 1 to 5
    auditor = world.as_role("auditor")
    told(auditor.get("/v1/events", params={"q": "type:Shared", "limit": 7}), 200)
    told(auditor.get("/v1/events/2"), 200)
    told(auditor.get(f"/v1/codes/{code['code_id']}/history", params={"limit": 3, "as_of": 4}), 200)
    told(auditor.get(f"/v1/creators/{OWN_CREATOR}/permission/history"), 200)
    auditor.get("/v1/exports/events", params={"format": "csv", "type": "Redeemed"})
    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT}
    told(auditor.get("/v1/authorizations", params=asked), 200)
    lines = f'{{"video_id": "{code["video_id"]}", "advertiser_id": "a"}}\n' * 3
    auditor.post(
        "/v1/authorizations/batch?as_of=5", content=lines, headers={"Content-Type": "application/x-ndjson"}
    ).raise_for_status()

    one, of = {"code_id": code["code_id"]}, {"creator_id": OWN_CREATOR}
    # How what is streamed ended is told after its last byte.
    until(lambda: all(access["complete"] is not None for access in accesses(world)))
    assert told_of(world) == [
        ("GET /v1/events", {"q": "type:Shared", "limit": 7, "order": "asc"}, "application/json", 1, True),
        ("GET /v1/events/{position}", {"position": 2}, "application/json", 1, True),
        ("GET /v1/codes/{code_id}/history", {**one, "limit": 3, "as_of": 4}, "application/json", 3, True),
        ("GET /v1/creators/{creator_id}/permission/history", {**of, "limit": 1_000}, "application/json", 1, True),
        ("GET /v1/exports/events", {"format": "csv", "type": "Redeemed"}, "text/csv", 1, True),
        ("GET /v1/authorizations", asked, "application/json", 1, True),
        ("POST /v1/authorizations/batch", {"as_of": 5}, "application/x-ndjson", 3, True),
    ]


def test_an_access_says_who_and_when(world: World) -> None:
    world.permit()
    key = told(world.client.post("/v1/keys", json={"role": "auditor", "name": "Ada"}), 201)
    answer = world.with_key(key["key"]).get("/v1/events")
    (access,) = accesses(world)
    assert access == {
        "access_id": access["access_id"],
        "at": access["at"],
        "actor": {"key_id": key["key_id"], "key_name": "Ada", "role": "auditor"},
        "route": "GET /v1/events",
        "query": {"limit": 100, "order": "asc"},
        "format": "application/json",
        "reads": 1,
        "rows": 1,
        "complete": True,
        "ended_at": access["at"],
        "request_id": answer.headers["request-id"],
        **dict.fromkeys(("code_id", "creator_id", "video_id")),
        **dict.fromkeys(("refused", "address", "user_agent", "path")),
    }


def test_what_was_refused_and_what_reads_no_trail_is_no_read(world: World) -> None:
    code = world.running()
    refused(world.client.get("/v1/events", params={"limit": 0}))
    refused(world.client.get("/v1/events/99"))
    refused(world.brand().get(f"/v1/codes/{world.generate()['code_id']}/history"))
    refused(world.client.get(f"/v1/codes/{code['code_id']}/history", params={"cursor": "AAAA"}))
    refused(world.brand().get("/v1/events"))
    refused(world.client.get("/v1/authorizations", params={"video_id": "v"}))
    world.read(code)
    told(world.client.get("/v1/codes"), 200)
    assert accesses(world) == []


def test_denied_attempts_are_listed_by_themselves_or_left_out(world: World) -> None:
    world.permit()
    told(world.client.get("/v1/events"), 200)
    refused(world.brand().get("/v1/events"))

    def routes(**query: Any) -> list[tuple[str, str | None]]:
        found = told(world.client.get("/v1/accesses", params=query), 200)["accesses"]
        return [(access["route"], access["refused"]) for access in found if "/v1/events" in access["route"]]

    answered, denied = ("GET /v1/events", None), ("GET /v1/events", "role_not_allowed")
    assert sorted(routes(), key=str) == [denied, answered]
    assert routes(refused=True) == [denied]
    assert routes(refused=False) == [answered]
    wrong = world.client.get("/v1/accesses", params={"refused": "role_not_allowed"})
    assert (refused(wrong), wrong.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/refused")


def test_the_list_of_accesses_says_how_far_the_ledger_had_come(world: World) -> None:
    assert world.client.get("/v1/accesses").headers["ledger-position"] == "0"
    world.running()
    assert world.client.get("/v1/accesses").headers["ledger-position"] == str(world.head())


def test_no_access_is_ever_an_event(world: World) -> None:
    world.permit()
    for _ in range(3):
        assert [event["position"] for event in told(world.client.get("/v1/events"), 200)["events"]] == [1]


def test_accesses_are_paged_both_ways_newest_first(world: World) -> None:
    world.permit()
    for limit in range(1, 8):
        told(world.client.get("/v1/events", params={"limit": limit}), 200)

    def page(answer: Any) -> list[str]:
        return [access["access_id"] for access in told(answer, 200)["accesses"]]

    whole = page(world.client.get("/v1/accesses"))
    assert [access["query"]["limit"] for access in accesses(world)] == [7, 6, 5, 4, 3, 2, 1]
    answer = world.client.get("/v1/accesses", params={"limit": 3})
    assert answer.json()["prev_cursor"] is None
    seen = [page(answer)]
    while "next" in answer.links:
        answer = world.client.get(answer.links["next"]["url"])
        seen.append(page(answer))
    assert [access_id for ids in seen for access_id in ids] == whole
    assert {len(ids) for ids in seen[:-1]} == {3}
    back = []
    while "prev" in answer.links:
        answer = world.client.get(answer.links["prev"]["url"])
        back.append(page(answer))
    assert back == seen[:-1][::-1]
    assert answer.json()["prev_cursor"] is None

    cursor = answer.json()["next_cursor"]
    world.permit("another")
    of_events = told(world.client.get("/v1/events?limit=1"), 200)["next_cursor"]
    for changed in ("", "x", cursor[:-1], cursor.replace(".", ".B", 1), of_events):
        answer = world.client.get("/v1/accesses", params={"cursor": changed})
        assert refused(answer) == (400, "malformed_cursor")


def test_accesses_of_one_key_and_of_the_machine_are_told_apart(world: World) -> None:
    world.permit()
    first, second = (told(world.client.post("/v1/keys", json={"role": "auditor", "name": n}), 201) for n in "ab")
    for key in (first, second, first):
        told(world.with_key(key["key"]).get("/v1/events"), 200)

    def of(actor: str) -> list[tuple[str, str]]:
        listed = told(world.client.get("/v1/accesses", params={"actor": actor}), 200)["accesses"]
        return [(access["actor"]["key_id"], access["route"]) for access in listed]

    read = "GET /v1/events"
    assert {key_id for key_id, _ in of(first["key_id"])} == {first["key_id"]}
    assert of(first["key_id"]).count((first["key_id"], read)) == 2
    assert of(second["key_id"].upper()).count((second["key_id"], read)) == 1
    assert of(CODE_ID) == []
    # The ledger's first key was made at the command line.
    assert {key_id for key_id, _ in of("machine")} == {None}


def test_accesses_of_a_time_are_found(world: World) -> None:
    world.permit()
    for limit in (1, 2, 3):
        told(world.client.get("/v1/events", params={"limit": limit}), 200)
    third, second, first = [access["at"] for access in accesses(world)]

    def limits(**filters: str) -> list[int]:
        listed = told(world.client.get("/v1/accesses", params=filters), 200)["accesses"]
        return [access["query"]["limit"] for access in listed if access["route"] == "GET /v1/events"]

    assert limits(**{"from": second}) == [3, 2]
    assert limits(to=second) == [1]
    assert limits(**{"from": second, "to": third}) == [2]
    assert limits(to="2000-01-01T00:00:00Z") == []
    assert limits(**{"from": "2000-01-01T00:00:00Z", "to": "2099-12-31T00:00:00Z"}) == [3, 2, 1]
    for end in (first, third):
        empty = world.client.get("/v1/accesses", params={"from": third, "to": end})
        assert (refused(empty), empty.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/to")


def test_accesses_of_a_time_are_looked_for_among_the_ids_of_that_time_alone() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    first, last = AccessFilter(since=noon, until=noon + timedelta(hours=1)).ids()
    of_the_hour = uuid7_at(noon), uuid7_at(noon + timedelta(hours=1))
    # An id is of the clock of a process, which may differ from the database's.
    assert uuid7_at(noon - timedelta(days=2)) < first < of_the_hour[0]
    assert of_the_hour[1] < last < uuid7_at(noon + timedelta(days=2))
    assert AccessFilter().ids() == (UUID(int=0), UUID(int=2**128 - 1))


def uuid7_at(moment: datetime) -> UUID:
    return UUID(int=int(moment.timestamp() * 1000) << 80 | 0x7FFF << 64)


@pytest.mark.parametrize("actor", ["", "ada", "machines", f"{{{CODE_ID}}}", CODE_ID.replace("-", "")])
def test_what_is_no_reader_is_refused(world: World, actor: str) -> None:
    assert refused(world.client.get("/v1/accesses", params={"actor": actor})) == (400, "malformed_query")


def test_a_cursor_of_other_accesses_is_refused(world: World) -> None:
    for _ in range(3):
        told(world.client.get("/v1/events"), 200)
    cursor = told(world.client.get("/v1/accesses", params={"limit": 1}), 200)["next_cursor"]
    told(world.client.get("/v1/accesses", params={"cursor": cursor}), 200)
    other = world.client.get("/v1/accesses", params={"cursor": cursor, "actor": "machine"})
    assert refused(other) == (400, "malformed_cursor")


def test_a_cursor_of_no_accesss_place_is_refused_and_of_the_last_one_taken(world: World) -> None:
    told(world.client.get("/v1/events"), 200)
    for back in (False, True):
        answers = [
            world.client.get("/v1/accesses", params={"cursor": world.cursor(cursor)})
            for cursor in (encode_two_way(place, {"of": "accesses"}, back=back) for place in (2**127 - 2, 2**127 - 1))
        ]
        told(answers[0], 200)
        assert refused(answers[1]) == (400, "malformed_cursor")


def test_a_subscribers_reads_of_an_hour_are_one_entry(world: World) -> None:
    for number in range(3):
        world.permit(f"creator-{number}")
    subscriber = world.as_role("subscriber")
    for after in range(4):
        told(subscriber.get("/v1/events", params={"after": after}), 200)
    told(subscriber.get("/v1/events", params={"type": "PermissionEnabled"}), 200)

    found = [(access["reads"], access["rows"], access["query"]) for access in accesses(world)]
    plain = [entry for entry in found if "type" not in entry[2]]
    assert (sum(reads for reads, _, _ in plain), sum(rows for _, rows, _ in plain)) == (4, 3 + 2 + 1 + 0)
    assert {tuple(query) for _, _, query in found} == {("order",), ("type", "order")}
    # Two entries each, where the hour struck in between.
    assert len(found) <= 4


def test_the_entry_of_an_hour_stands_where_its_first_read_was(world: World) -> None:
    world.permit()
    auditor, subscriber = world.as_role("auditor"), world.as_role("subscriber")
    for reader in (auditor, subscriber, auditor, subscriber):
        told(reader.get("/v1/events"), 200)

    reads = [access for access in accesses(world) if access["route"] == "GET /v1/events"]
    assert [access["actor"]["role"] for access in reads][:3] == ["auditor", "subscriber", "auditor"]
    assert [access["at"] for access in reads] == sorted((access["at"] for access in reads), reverse=True)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/events",
        "/v1/events/1",
        "/v1/exports/events",
        "/v1/authorizations?video_id=v&advertiser_id=a",
        f"/v1/creators/{OWN_CREATOR}/permission/history",
        "/v1/codes/{code_id}/history",
    ],
)
def test_what_cannot_be_recorded_is_not_answered(world: World, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    code = world.generate()
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "Ana rang"}), 201)

    async def full(*_: Any) -> Any:
        raise Unavailable("The disk is full.")

    monkeypatch.setattr(AccessLog, "record", full)
    answer = world.client.get(path.format(**code))
    assert refused(answer) == (503, "unavailable")
    assert OWN_CREATOR not in answer.text
    assert "Ana" not in answer.text


def test_another_ledgers_accesses_are_hidden(world: World) -> None:
    told(world.client.get("/v1/events"), 200)
    assert accesses(world.another()) == []
