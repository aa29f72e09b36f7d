"""Reads that the access log learns of when they are answered: every list, one code, and look-ups that found one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from api.http.app import create_app
from api.http.route import Route
from infra.auth.access_log import ALL, AccessFilter, AccessSubject
from infra.errors import Unavailable
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, refused, told
from tests.conftest import TestDatabase
from tests.wired import services


def noted(world: World, **query: Any) -> list[dict[str, Any]]:
    """What was read, once all of it is written, newest first."""
    serving = world.server.serving
    serving.call(serving.api.reads.write())
    found = told(world.client.get("/v1/accesses", params={"limit": 200} | query), 200)["accesses"]
    return [access for access in found if access["route"].startswith(("GET /v1/", "POST /v1/codes/lookup"))]


def counted(found: list[dict[str, Any]], route: str) -> list[tuple[Any, ...]]:
    """The entries of a route, those of two minutes added up: who, what, how often, how many rows."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for access in found:
        if access["route"] == route:
            named = tuple(access[name] for name in ("code_id", "creator_id", "video_id"))
            of = (access["actor"]["key_id"], str(access["query"]), *named)
            reads = sums.setdefault(of, [0, 0])
            reads[0] += access["reads"]
            reads[1] += access["rows"]
    return sorted([(*of, *reads) for of, reads in sums.items()], key=lambda entry: (-entry[-1], str(entry)))


def test_one_code_is_counted_for_each_key_and_code(world: World) -> None:
    first, second = world.generate(), world.generate()
    for code in (first, first, second, first):
        world.read(code)
    auditor = world.as_role("auditor")
    told(auditor.get(f"/v1/codes/{first['code_id']}", params={"version": 1}), 200)

    found = counted(noted(world), "GET /v1/codes/{code_id}")

    assert {query: (reads, rows) for _, query, *_, reads, rows in found} == {
        str({"code_id": first["code_id"]}): (3, 3),
        str({"code_id": second["code_id"]}): (1, 1),
        str({"code_id": first["code_id"], "version": 1}): (1, 1),
    }
    assert {entry[2:5] for entry in found} == {
        (code["code_id"], OWN_CREATOR, code["video_id"]) for code in (first, second)
    }
    assert len({key_id for key_id, *_ in found}) == 2


def test_a_list_is_counted_by_its_filters_whatever_the_page(world: World) -> None:
    codes = [world.generate() for _ in range(3)]
    page = world.client.get("/v1/codes", params={"creator_id": OWN_CREATOR, "limit": 2, "at_least": world.head()})
    told(world.client.get(page.links["next"]["url"]), 200)
    told(world.client.get("/v1/codes", params={"video_id": codes[0]["video_id"]}), 200)

    found = counted(noted(world), "GET /v1/codes")

    assert [entry[1:] for entry in found] == [
        (str({"creator_id": OWN_CREATOR}), None, OWN_CREATOR, None, 2, 3),
        (str({"video_id": codes[0]["video_id"]}), None, None, codes[0]["video_id"], 1, 1),
    ]


def test_a_look_up_tells_which_code_it_found_and_never_what_was_sent(world: World) -> None:
    code, brand = world.generate(), world.brand()
    for _ in range(2):
        told(brand.post("/v1/codes/lookup", json={"secret": code["secret"]}), 200)
    refused(brand.post("/v1/codes/lookup", json={"secret": "#guess-at-it"}))

    found = noted(world, refused=False)

    ((_, query, *of, reads, rows),) = counted(found, "POST /v1/codes/lookup")
    assert (query, of, reads, rows) == ("{}", [code["code_id"], OWN_CREATOR, code["video_id"]], 2, 2)
    assert code["secret"] not in str(found)


def test_a_look_up_that_finds_a_code_of_another_video_leaves_a_trace(world: World) -> None:
    code, brand = world.generate(), world.brand()
    asked = {"secret": code["secret"], "expected_video_id": "another-video"}
    assert refused(brand.post("/v1/codes/lookup", json=asked)) == (409, "other_video")
    ((_, _, code_id, *_, reads, _),) = counted(noted(world, refused=False), "POST /v1/codes/lookup")
    assert (code_id, reads) == (code["code_id"], 1)


def test_what_was_refused_is_no_read(world: World) -> None:
    code, creator = world.generate(OTHER_CREATOR), world.creator()
    refused(creator.get(f"/v1/codes/{code['code_id']}"))
    refused(world.client.get("/v1/codes", params={"limit": 0}))
    refused(world.brand().get("/v1/permissions"))
    assert noted(world, refused=False) == []


def test_accesses_are_found_by_code_creator_video_and_route(world: World) -> None:
    ours, theirs = world.generate(), world.generate(OTHER_CREATOR)
    for code in (ours, theirs):
        world.read(code)
        told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)
    told(world.client.get("/v1/events", params={"q": f"code:{ours['code_id']} -type:Shared"}), 200)
    told(world.client.get("/v1/events", params={"creator_id": OTHER_CREATOR}), 200)
    told(
        world.client.get("/v1/authorizations", params={"video_id": ours["video_id"], "advertiser_id": OWN_ACCOUNT}),
        200,
    )
    told(world.client.get("/v1/events/2"), 200)
    told(world.client.get(f"/v1/creators/{OWN_CREATOR}/permission"), 200)

    def routes(**query: Any) -> list[str]:
        return sorted(access["route"].removeprefix("GET /v1/") for access in noted(world, **query))

    assert routes(code_id=ours["code_id"]) == [
        "codes/{code_id}",
        "codes/{code_id}/history",
        "events",
        "events/{position}",
    ]
    assert routes(code_id=theirs["code_id"]) == ["codes/{code_id}", "codes/{code_id}/history"]
    assert routes(creator_id=OWN_CREATOR) == [
        "codes/{code_id}",
        "codes/{code_id}/history",
        "creators/{creator_id}/permission",
        "events/{position}",
    ]
    assert routes(creator_id=OTHER_CREATOR) == ["codes/{code_id}", "codes/{code_id}/history", "events"]
    assert routes(video_id=ours["video_id"]) == [
        "authorizations",
        "codes/{code_id}",
        "codes/{code_id}/history",
        "events/{position}",
    ]
    assert set(routes(route="GET /v1/codes/{code_id}")) == {"codes/{code_id}"}
    assert routes(route="GET /v1/codes/{code_id}", code_id=ours["code_id"]) == ["codes/{code_id}"]
    assert routes(route="sparkledger export") == []
    for unknown in ("GET /v1/nowhere", "Zebedina", ""):
        answer = world.client.get("/v1/accesses", params={"route": unknown})
        assert (refused(answer), answer.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/route")


def test_denied_attempts_are_found_by_their_reason(world: World) -> None:
    refused(world.as_role("subscriber").get("/v1/keys"))
    refused(world.brand().post("/v1/codes/lookup", json={"secret": "#guess-at-it"}))
    for reason in ("role_not_allowed", "code_unknown"):
        (found,) = noted(world, reason=reason)
        assert found["refused"] == reason
    assert noted(world, reason="permission_disabled") == []
    both = world.client.get("/v1/accesses", params={"reason": "code_unknown", "refused": False})
    assert (refused(both), both.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/reason")
    assert refused(world.client.get("/v1/accesses", params={"reason": "nothing"})) == (400, "malformed_query")


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (AccessFilter(subject=AccessSubject(code_id=UUID(int=7))), "accesses_code"),
        (AccessFilter(subject=AccessSubject(creator_id="ana")), "accesses_creator"),
        (AccessFilter(subject=AccessSubject(video_id="7")), "accesses_video"),
        (AccessFilter(route="GET /v1/codes/{code_id}"), "accesses_route"),
        (AccessFilter(reason="code_unknown"), "accesses_reason"),
        (ALL, "accesses_pkey"),
    ],
)
def test_each_is_found_by_an_index_of_its_own(database: TestDatabase, wanted: AccessFilter, index: str) -> None:
    # Many reads of many codes, and a few of each kind that is asked for. In a database of its own: the rows of other
    # tests would change the plan.
    with psycopg.connect(database.dsn()) as connection:
        connection.execute(
            "INSERT INTO accesses (ledger_id, access_id, role, route, query, format, row_count, refused, code_id,"
            " creator_id, video_id) SELECT 1, gen_random_uuid(), 'admin', 'GET /v1/other/' || n % 50, '{}', 'json', 1,"
            " CASE WHEN n % 100 = 0 THEN 'reason ' || n % 700 END, gen_random_uuid(), 'creator ' || n, 'video ' || n"
            " FROM generate_series(1, 20000) n"
        )
        connection.execute("ANALYZE accesses")
        parameters = {
            "route": wanted.route,
            "reason": wanted.reason,
            "code_id": wanted.subject.code_id,
            "creator_id": wanted.subject.creator_id,
            "video_id": wanted.subject.video_id,
        }
        query = (
            f"EXPLAIN SELECT 1 FROM accesses WHERE ledger_id = 1 {wanted.conditions()} ORDER BY access_id DESC LIMIT 10"
        )
        plan = "\n".join(str(row[0]) for row in connection.execute(query.encode(), parameters))
    assert f"using {index} on" in plan, plan


def test_every_route_that_reads_with_a_key_leaves_a_trace() -> None:
    reads = {
        f"{method} {route.path}": route
        for route in create_app(services()).routes
        if isinstance(route, Route) and route.roles
        for method in route.methods or ()
        if method == "GET"
    }
    recorded_first = {name for name, route in reads.items() if route.operation.trace == "recorded"}
    assert recorded_first == {
        "GET /v1/events",
        "GET /v1/events/{position}",
        "GET /v1/events/{position}/proof",
        "GET /v1/events/stream",
        "GET /v1/imports/{import_id}/report",
        "GET /v1/exports/events",
        "GET /v1/exports/codes",
        "GET /v1/exports/permissions",
        "GET /v1/exports/shares",
        "GET /v1/exports/redemptions",
        "GET /v1/exports/campaigns",
        "GET /v1/exports/accesses",
        "GET /v1/exports/figures",
        "GET /v1/dossiers/creators/{creator_id}",
        "GET /v1/dossiers/codes/{code_id}",
        "GET /v1/dossiers/videos/{video_id}",
        "GET /v1/dossiers/brands/{brand_id}",
        "GET /v1/dossiers/advertisers/{advertiser_id}",
        "GET /v1/dossiers/keys/{key_id}",
        "GET /v1/authorizations",
        "GET /v1/codes/{code_id}/history",
        "GET /v1/creators/{creator_id}/permission/history",
    }
    assert {name for name, route in reads.items() if not route.notes_reads} == recorded_first


def test_what_cannot_be_noted_is_not_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    code = world.generate()

    def full(*_: Any) -> None:
        raise Unavailable("Reads cannot be recorded now.")

    monkeypatch.setattr(world.server.serving.api.reads, "note", full)
    answer = world.client.get(f"/v1/codes/{code['code_id']}")
    assert refused(answer) == (503, "unavailable")
    assert OWN_CREATOR not in answer.text


def test_another_ledgers_reads_are_hidden(world: World) -> None:
    world.read(world.generate())
    assert noted(world.another()) == []
    assert noted(world) != []


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/openapi.json", "/docs", "/v1/codes", "/v1/codes/CODE", "/v1/codes/nobodys", "/v1/log"],
)
def test_head_is_answered_as_get_without_the_body(world: World, path: str) -> None:
    path = path.replace("CODE", world.generate()["code_id"])
    told(world.client.get("/v1/codes", params={"at_least": world.head()}), 200)
    read, asked = world.client.get(path), world.client.head(path)
    own = {"request-id", "date"}
    assert asked.status_code == read.status_code
    assert {name: value for name, value in asked.headers.items() if name not in own} == {
        name: value for name, value in read.headers.items() if name not in own
    }
    assert (asked.content, int(asked.headers["content-length"])) == (b"", len(read.content))
    # The connection is at the next request, and not within a body.
    assert world.client.get("/livez").status_code == 200


def test_head_leaves_the_trace_of_a_read(world: World) -> None:
    code = world.generate()
    assert world.client.head(f"/v1/codes/{code['code_id']}").status_code == 200
    assert [one["route"] for one in noted(world, code_id=code["code_id"])] == ["GET /v1/codes/{code_id}"]


@pytest.mark.parametrize("path", ["/v1/events/stream", "/v1/exports/events"])
def test_what_is_made_while_it_is_sent_has_no_head(world: World, path: str) -> None:
    answer = world.client.head(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_the_methods_of_a_read_include_head(world: World) -> None:
    answer = world.client.put("/v1/codes/somebodys")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
