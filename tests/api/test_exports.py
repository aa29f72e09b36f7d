"""Exports: whole, in both formats, with a trailer that shows what was cut off or changed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from api import exports
from api.event_content import CSV_COLUMNS, ndjson
from api.export_files import ExportError, digest_of, verify
from api.http import streaming_download
from api.http.transport import UNREAD
from tests.api.test_access_log import accesses
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, refused, told
from tests.waiting import until


def exported(world: World, client: Any = None, **query: Any) -> bytes:
    answer = (client or world.client).get("/v1/exports/events", params=query)
    assert answer.status_code == 200, answer.text
    return bytes(answer.content)


def trailer_of(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content.splitlines()[-1])["trailer"]
    return found


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few events be several pages."""
    monkeypatch.setattr(exports, "PAGE_EVENTS", 3)


def test_an_export_is_the_trail_and_a_trailer(world: World) -> None:
    world.running()
    world.generate()
    page = world.client.get("/v1/events", headers={"Accept": "application/x-ndjson"}).content

    answer = world.client.get("/v1/exports/events")
    *events, last = answer.content.splitlines(keepends=True)

    assert b"".join(events) == page
    trailer = json.loads(last)["trailer"]
    assert trailer == {
        "ledger": world.server.ledger,
        "log_id": trailer["log_id"],
        "history": answer.headers["ledger-history"],
        "query": {"format": "ndjson"},
        "events": 6,
        "first": 1,
        "last": 6,
        "head": 6,
        "upto": 6,
        "began_at": trailer["began_at"],
        "sealed": trailer["sealed"],
        "bytes": len(page),
        "sha256": hashlib.sha256(page).hexdigest(),
        "trailer_sha256": digest_of(trailer),
    }
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["ledger-position"] == "6"
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{world.server.ledger}-events-')


def test_a_table_ends_in_a_row_that_holds_its_trailer(world: World) -> None:
    world.running()
    page = world.client.get("/v1/events", headers={"Accept": "text/csv"}).content

    answer = world.client.get("/v1/exports/events", params={"format": "csv"})

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.content.startswith(page)
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert (list(rows[0]), len(rows)) == (list(CSV_COLUMNS), 6)
    assert (rows[-1]["position"], rows[-1]["type"]) == ("end", "trailer")
    trailer = json.loads(rows[-1]["body"])
    assert (trailer["events"], trailer["first"], trailer["last"]) == (5, 1, 5)
    assert (trailer["sha256"], trailer["bytes"]) == (hashlib.sha256(page).hexdigest(), len(page))


def test_an_export_takes_the_filters_of_the_trail(world: World) -> None:
    code = world.running()
    for _ in range(6):
        world.generate()

    def found(**query: Any) -> list[int]:
        return [json.loads(line)["position"] for line in exported(world, **query).splitlines()[:-1]]

    assert found(type="CodeGenerated") == [2, 6, 7, 8, 9, 10, 11]
    assert found(q=f"code:{code['code_id']} -type:Shared") == [2, 4, 5]
    assert found(q="generated", after=2, before=9) == [6, 7, 8]
    assert found(advertiser_id=OWN_ACCOUNT, creator_id=OWN_CREATOR) == [3, 4, 5]
    assert found(type="Expired") == []
    trailer = trailer_of(exported(world, type="Expired", q="a"))
    assert (trailer["events"], trailer["first"], trailer["last"], trailer["head"]) == (0, None, None, 11)
    assert trailer["query"] == {"type": "Expired", "q": "a", "format": "ndjson"}


def test_a_table_may_begin_with_a_byte_order_mark_which_its_hash_covers(world: World, tmp_path: Path) -> None:
    world.running()
    path = tmp_path / "export.csv"
    plain, marked = exported(world, format="csv"), exported(world, format="csv", bom="true")
    path.write_bytes(marked)

    assert marked.startswith("\ufeffposition,".encode())
    assert marked.splitlines()[1:-1] == plain.splitlines()[1:-1]
    assert "…" in marked.decode("utf-8-sig")
    (*_, last) = csv.reader(io.StringIO(marked.decode("utf-8-sig"), newline=""))
    trailer = json.loads(last[-1])
    assert (trailer["query"], trailer["bytes"]) == (
        {"format": "csv", "bom": True},
        len(marked) - len(marked.splitlines(keepends=True)[-1]),
    )
    assert verify(path).events == 5
    path.write_bytes(marked.removeprefix("\ufeff".encode()))
    with pytest.raises(ExportError, match="SHA-256"):
        verify(path)
    assert refused(world.client.get("/v1/exports/events", params={"bom": "true"})) == (400, "malformed_query")


@pytest.mark.parametrize("query", [{"format": "xml"}, {"limit": 5}, {"q": "typ:x"}, {"after": 2, "before": 1}])
def test_a_malformed_export_is_refused(world: World, query: dict[str, Any]) -> None:
    answer = world.client.get("/v1/exports/events", params=query)
    assert refused(answer) == (400, "malformed_query")
    assert accesses(world) == []


def test_an_export_beyond_the_end_of_the_ledger_is_refused(world: World) -> None:
    answer = world.client.get("/v1/exports/events", params={"after": 1})
    assert refused(answer) == (409, "ahead_of_ledger")
    assert accesses(world) == []


@pytest.mark.parametrize("name", ["export.ndjson", "export.csv"])
def test_a_whole_export_is_verified_and_any_other_is_not(world: World, tmp_path: Path, name: str) -> None:
    operator = told(world.client.post("/v1/keys", json={"role": "operator", "name": 'two\n-lines;=and "quotes"'}), 201)
    World(world.server, world.with_key(operator["key"])).running()
    content = exported(world, format=name.rpartition(".")[2], q='-";=never said"')
    path = tmp_path / name
    path.write_bytes(content)

    assert str(verify(path)) == "5 events, positions 1 to 5, of a ledger that had reached 5"

    lines = content.splitlines(keepends=True)
    broken = {
        "cut off in the trailer": content[:-1],
        "without its trailer": b"".join(lines[:-1]),
        "without a line": b"".join([*lines[:2], *lines[3:]]),
        "with a line twice": b"".join([*lines[:2], *lines[1:]]),
        "changed": content.replace(OWN_ACCOUNT.encode(), b"account-not", 1),
        "empty": b"",
        "something else": b'{"trailer": 1}\n',
        "no text": b"\xff\xfe\n",
    }
    for what, changed in broken.items():
        path.write_bytes(changed)
        with pytest.raises(ExportError):
            raise AssertionError(f"{what}: {verify(path)}")


@pytest.mark.parametrize("name", ["export.ndjson", "export.csv"])
@pytest.mark.parametrize(
    "changed",
    [
        {"ledger": "another"},
        {"query": {}},
        {"events": 6},
        {"first": 2},
        {"last": 4},
        {"head": 6},
        {"upto": 4},
        {"began_at": "2026-01-01T00:00:00Z"},
        {"bytes": 1},
        {"trailer_sha256": "0" * 64},
        {"more": 1},
    ],
    ids=str,
)
def test_a_trailer_that_was_changed_is_not_verified(
    world: World, tmp_path: Path, name: str, changed: dict[str, Any]
) -> None:
    world.running()
    path = tmp_path / name
    path.write_bytes(exported(world, format=name.rpartition(".")[2], q="-brand:never"))
    verify(path)
    replace_trailer(path, lambda trailer: trailer | changed)
    with pytest.raises(ExportError, match="its trailer is not the original one"):
        verify(path)


@pytest.mark.parametrize("name", ["export.ndjson", "export.csv"])
@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"events": 6}, "contains 5 events, positions 1 to 5, but its trailer says 6 events"),
        ({"first": 2}, "contains 5 events, positions 1 to 5, but its trailer says 5 events, positions 2 to 5"),
        ({"last": 4}, "contains 5 events, positions 1 to 5, but its trailer says 5 events, positions 1 to 4"),
        ({"first": None, "last": None}, "contains 5 events, positions 1 to 5, but its trailer says 5 events."),
        ({"bytes": 1}, "SHA-256"),
        ({"sha256": "0" * 64}, "SHA-256"),
    ],
    ids=str,
)
def test_a_trailer_that_says_other_than_the_file_holds_is_not_verified(
    world: World, tmp_path: Path, name: str, changed: dict[str, Any], problem: str
) -> None:
    world.running()
    path = tmp_path / name
    path.write_bytes(exported(world, format=name.rpartition(".")[2]))
    replace_trailer(path, lambda trailer: trailer | changed | {"trailer_sha256": digest_of(trailer | changed)})
    with pytest.raises(ExportError, match=problem):
        verify(path)


def replace_trailer(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Put another trailer into an export."""
    *lines, last = path.read_bytes().splitlines(keepends=True)
    if path.suffix == ".csv":
        row = next(csv.reader([last.decode()]))
        text = io.StringIO(newline="")
        csv.writer(text).writerow([*row[:-1], json.dumps(change(json.loads(row[-1])))])
        last = text.getvalue().encode()
    else:
        last = json.dumps({"trailer": change(json.loads(last)["trailer"])}).encode() + b"\n"
    path.write_bytes(b"".join([*lines, last]))


def with_trailer(content: bytes, **differs: Any) -> bytes:
    """Return events with a trailer that is true of them, but for what differs."""
    facts = {"events": 0, "first": None, "last": None, "head": 0, "upto": 0, "bytes": len(content)}
    trailer = facts | {"sha256": hashlib.sha256(content).hexdigest()} | differs
    text = json.dumps(trailer | {"trailer_sha256": digest_of(orjson.loads(json.dumps(trailer)))})
    quoted = text.replace('"', '""')
    return content + (f'end,"{quoted}"\n' if content else f'{{"trailer": {text}}}\n').encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"events": "x"},
        {"events": 0.0},
        {"events": True},
        {"first": "a"},
        {"last": []},
        {"first": 1},
        {"last": 1},
        {"head": None},
        {"sha256": 1},
        {"bytes": None},
        {"upto": -1},
        {"head": 10**30},
    ],
)
def test_a_trailer_of_other_types_is_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "export.ndjson"
    path.write_bytes(with_trailer(b""))
    assert str(verify(path)) == "0 events, of a ledger that had reached 0"

    path.write_bytes(with_trailer(b"", **changed))
    with pytest.raises(ExportError, match="has no trailer"):
        verify(path)


def test_a_table_with_a_cell_longer_than_any_is_no_export(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    rows = f"position,body\n1,{'x' * (129 << 10)}\n"
    path.write_bytes(with_trailer(rows.encode(), events=1, first=1, last=1))
    with pytest.raises(ExportError, match="too long for an export"):
        verify(path)
    path.write_text(f'{rows}end,"{"x" * (200 << 10)}"\n')
    with pytest.raises(ExportError):
        verify(path)


def test_an_export_holds_what_was_there_when_it_began(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        world.generate()
    monkeypatch.setattr(exports, "PAGE_EVENTS", 1)
    with world.client.stream("GET", "/v1/exports/events") as answer:
        lines = answer.iter_lines()
        first = json.loads(next(lines))
        world.generate()
        rest = [json.loads(line) for line in lines]
    assert [first["position"], *(line["position"] for line in rest[:-1])] == [1, 2, 3, 4, 5, 6, 7]
    assert rest[-1]["trailer"]["head"] == 7


@pytest.fixture
def held(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A ledger whose exports are made of pieces larger than any buffer on the way: a client can hold them up."""
    world.running()
    monkeypatch.setattr(exports, "PAGE_EVENTS", 1)
    monkeypatch.setattr(exports, "ndjson", lambda contents: ndjson(contents) + b" " * (12 << 20) + b"\n")
    return world


def test_an_export_whose_client_leaves_ends_and_is_recorded_as_incomplete(held: World) -> None:
    with held.client.stream("GET", "/v1/exports/events") as answer:
        assert answer.status_code == 200
        next(answer.iter_raw())
    until(lambda: accesses(held)[0]["complete"] is not None)
    (access,) = accesses(held)
    assert (access["complete"], access["rows"] < 5) == (False, True)


def busy_sessions(world: World) -> int:
    """How many of the API's sessions do anything, or hold a transaction open."""
    with psycopg.connect(world.server.database.dsn()) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = 'sparkledger_api' AND state <> 'idle'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_client_that_takes_nothing_holds_no_session_of_the_database(held: World) -> None:
    with held.client.stream("GET", "/v1/exports/events"):
        until(lambda: busy_sessions(held) == 0)
        assert accesses(held)[0]["complete"] is None
    until(lambda: accesses(held)[0]["complete"] is False)


def test_a_client_that_takes_nothing_for_long_is_dropped(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_download.StreamingDownload.__init__, "__kwdefaults__", {"stalled_s": 0.3})
    with held.client.stream("GET", "/v1/exports/events") as answer:
        until(lambda: accesses(held)[0]["complete"] is False)
        with pytest.raises(httpx.TransportError):
            for _ in answer.iter_raw():
                pass


def test_there_is_room_for_a_few_exports_at_once(held: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held.server.serving.places.downloads, "most", 1)
    monkeypatch.setattr(held.server.serving.places.downloads, "wait_s", 0)
    with held.client.stream("GET", "/v1/exports/events") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        second = held.another().client.get("/v1/exports/events")
        assert refused(second) == (503, "unavailable")
        assert int(second.headers["retry-after"]) >= 1
    until(lambda: accesses(held)[0]["complete"] is False)
    assert len(accesses(held)) == 1


def test_one_key_leaves_room_for_the_exports_and_batches_of_others(
    held: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held.server.serving.places.downloads, "of_a_key", 1)
    one, other = held.as_role("auditor"), held.as_role("auditor")
    batch: dict[str, Any] = {"content": "", "headers": {"Content-Type": "application/x-ndjson"}}
    with one.stream("GET", "/v1/exports/events") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        for more in (one.get("/v1/exports/events"), one.post("/v1/authorizations/batch", **batch)):
            assert refused(more) == (429, "too_many_requests")
            assert int(more.headers["retry-after"]) >= 1
        assert other.post("/v1/authorizations/batch", **batch).status_code == 200
    # What has ended makes room.
    until(lambda: one.post("/v1/authorizations/batch", **batch).status_code == 200)


def test_one_ledger_leaves_room_for_the_exports_and_batches_of_others(
    held: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = held.server.serving.places.downloads
    monkeypatch.setattr(places, "of_a_ledger", 2)
    monkeypatch.setattr(places, "wait_s", 0)
    one, two, three = (held.as_role("auditor") for _ in range(3))
    batch: dict[str, Any] = {"content": "", "headers": {"Content-Type": "application/x-ndjson"}}
    with one.stream("GET", "/v1/exports/events") as first, two.stream("GET", "/v1/exports/events") as second:
        pieces = [answer.iter_raw() for answer in (first, second)]
        assert all(map(next, pieces))
        for more in (three.get("/v1/exports/events"), three.post("/v1/authorizations/batch", **batch)):
            assert refused(more) == (429, "too_many_requests")
            assert int(more.headers["retry-after"]) >= 1
        assert held.another().client.post("/v1/authorizations/batch", **batch).status_code == 200
        (shown,) = [place for place in told(held.client.get("/v1/stats"), 200)["places"] if place["held"] == 2]
        assert shown == {"place": "exports_and_batches", "held": 2, "share": 2, "waiting": 0}


def test_what_waits_for_a_client_is_counted_for_its_ledger(held: World) -> None:
    known = {connection.owner for connection in UNREAD._connections}
    other = held.another()
    other.running()
    with held.client.stream("GET", "/v1/exports/events"), other.client.stream("GET", "/v1/exports/events"):
        until(lambda: len({connection.owner for connection in UNREAD._connections} - known) == 2)
        owners = {connection.owner for connection in UNREAD._connections} - known
        assert owners == set(held.server.serving.places.downloads.figures().held)


def test_who_waits_for_a_place_gets_the_next_one(held: World) -> None:
    one, two, three = (held.as_role("auditor") for _ in range(3))
    batch: dict[str, Any] = {"content": "", "headers": {"Content-Type": "application/x-ndjson"}}
    pieces: list[Iterator[bytes]] = []
    with ExitStack() as open_exports, ThreadPoolExecutor(1) as beside:
        for client in (one, one, two, two):
            pieces.append(open_exports.enter_context(client.stream("GET", "/v1/exports/events")).iter_raw())
            next(pieces[-1])
        waiting = beside.submit(three.post, "/v1/authorizations/batch", **batch)
        until(lambda: sum(held.server.serving.places.downloads.figures().waiting.values()) == 1)
        open_exports.close()
        assert waiting.result().status_code == 200


def test_an_export_ends_when_its_key_is_revoked(held: World) -> None:
    key = told(held.client.post("/v1/keys", json={"role": "auditor"}), 201)
    with held.with_key(key["key"]).stream("GET", "/v1/exports/events") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert held.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        with pytest.raises(httpx.TransportError):
            for _ in pieces:
                pass
    until(lambda: accesses(held)[0]["complete"] is False)
