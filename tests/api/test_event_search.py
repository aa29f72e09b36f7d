"""The trail while the view that it is searched by has stopped: what is told, and how far."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api import offline
from api.export_files import verify
from domain.code import Code
from projections import event_index
from projections.engine import skipped_events
from tests.api.test_access_log import accesses
from tests.api.test_offline import where
from tests.api.world import OWN_ACCOUNT, World, told
from tests.waiting import until

# A read that waited for the view would take five.
AT_ONCE_S = 2.5
LEDGER_ID = "SELECT ledger_id FROM ledgers WHERE name = %s"


def has_stopped(world: World) -> bool:
    with psycopg.connect(world.server.database.dsn()) as connection:
        row = connection.execute("SELECT state = 'failed' FROM view_versions WHERE view = 'history'").fetchone()
    return row is not None and bool(row[0])


async def skip(world: World, position: int) -> None:
    """Let the history go on without the event that stopped it."""
    async with await psycopg.AsyncConnection.connect(world.server.database.dsn()) as owner:
        cur = owner.cursor()
        await cur.execute(LEDGER_ID, (world.server.ledger,))
        (ledger_id,) = await cur.fetchone() or (0,)
        await skipped_events.record_skip(cur, event_index.VIEW, ledger_id, position, "the test is over", "the test")


@pytest.fixture
def stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A ledger of which the history takes in positions 1 to 4, and not 5, a share; the log goes on to 6."""

    with psycopg.connect(world.server.database.dsn()) as connection:
        (own,) = connection.execute(LEDGER_ID, (world.server.ledger,)).fetchone() or (0,)
    indexed, _ = event_index.VIEW._handler(Code.Shared)
    assert indexed is not None

    def broken(ledger_id: int, *event: Any) -> Any:
        if ledger_id == own:
            raise ZeroDivisionError
        # The view may still have to read what a test before this one shared.
        return indexed(ledger_id, *event)

    codes = [world.generate() for _ in range(3)]
    with monkeypatch.context() as broken_view:
        broken_view.setitem(event_index.VIEW.creates, Code.Shared, broken)
        event_index.VIEW._handlers.clear()
        world.share(codes[0])
        world.generate()
        until(lambda: has_stopped(world))
        yield world
    event_index.VIEW._handlers.clear()
    asyncio.run(skip(world, 5))
    until(lambda: not has_stopped(world))


def read(world: World, path: str = "/v1/events", **query: Any) -> Any:
    began = time.monotonic()
    answer = world.client.get(path, params=query)
    assert time.monotonic() - began < AT_ONCE_S
    return answer


def page(world: World, **query: Any) -> tuple[list[int], bool, int | None, str]:
    answer = read(world, **query)
    content = told(answer, 200)
    found = [event["position"] for event in content["events"]]
    return found, content["complete"], content["next"], answer.headers["ledger-position"]


def test_the_trail_is_searched_as_far_as_the_history_has_come(stopped: World) -> None:
    assert page(stopped, type="CodeGenerated") == ([2, 3, 4], False, 4, "4")
    assert page(stopped, type="Shared") == ([], False, 4, "4")
    assert page(stopped, q="type:CodeGenerated generated") == ([2, 3, 4], False, 4, "4")
    assert page(stopped, type="CodeGenerated", order="desc") == ([4, 3, 2], False, None, "4")
    assert page(stopped, q="type:CodeGenerated generated", order="desc") == ([4, 3, 2], False, None, "4")
    assert page(stopped, type="CodeGenerated", order="desc", limit=2) == ([4, 3], False, 3, "4")
    assert page(stopped, type="CodeGenerated", order="desc", before=3) == ([2], True, None, "4")
    assert page(stopped, type="CodeGenerated", limit=2) == ([2, 3], True, 3, "4")
    assert page(stopped, type="CodeGenerated", before=5) == ([2, 3, 4], True, None, "4")


def test_what_the_log_alone_answers_is_whole_though_the_history_has_stopped(stopped: World) -> None:
    assert page(stopped) == ([1, 2, 3, 4, 5, 6], True, None, "6")
    assert page(stopped, q="generated") == ([2, 3, 4, 6], True, None, "6")
    assert len(read(stopped, "/v1/exports/events").content.splitlines()) == 7


@pytest.mark.parametrize("query", [{"after": 4}, {"after": 5, "order": "desc"}, {"after": 4, "q": "creator"}])
@pytest.mark.parametrize("path", ["/v1/events", "/v1/exports/events"])
def test_a_search_beyond_where_the_history_has_stopped_is_refused_at_once(
    stopped: World, path: str, query: dict[str, Any]
) -> None:
    asked = query if path == "/v1/events" else {name: query[name] for name in query.keys() - {"order"}}
    answer = read(stopped, path, type="CodeGenerated", **asked)
    problem = told(answer, 503)
    assert problem["detail"] == "View history has stopped. It can be searched up to position 4: retry with before=5."
    assert (problem["code"], answer.headers["retry-after"]) == ("unavailable", "60")
    assert page(stopped, type="CodeGenerated", before=5)[1] is True


@pytest.mark.parametrize("format_", ["ndjson", "csv"])
def test_an_export_says_how_far_was_searched(stopped: World, tmp_path: Path, format_: str) -> None:
    answer = read(stopped, "/v1/exports/events", type="CodeGenerated", format=format_)
    trailer = json.loads(
        answer.content.splitlines()[-1]
        if format_ == "ndjson"
        else list(csv.DictReader(io.StringIO(answer.text)))[-1]["body"]
    )
    trailer = trailer.get("trailer", trailer)
    assert (trailer["events"], trailer["last"], trailer["head"], trailer["upto"]) == (3, 4, 6, 4)
    assert answer.headers["ledger-position"] == "4"
    until(lambda: accesses(stopped)[0]["complete"] is False)

    path = tmp_path / f"out.{format_}"
    path.write_bytes(answer.content)
    assert str(verify(path)).endswith("of a ledger that had reached 6 and was searched up to 4")

    whole = trailer_of(read(stopped, "/v1/exports/events", type="CodeGenerated", before=5).content)
    assert (whole["events"], whole["head"], whole["upto"]) == (3, 6, 6)


def trailer_of(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content.splitlines()[-1])["trailer"]
    return found


def test_the_command_line_says_how_far_was_searched(stopped: World, tmp_path: Path) -> None:
    path, said = tmp_path / "out.ndjson", list[str]()
    asyncio.run(offline.export(where(stopped.server), offline.export_query("type:Shared", path), path, said.append))
    assert (
        said[-1]
        == "This export is incomplete: it covers events up to position 4 of 6, where the view history has stopped."
    )
    assert (verify(path).events, verify(path).upto) == (0, 4)


def test_a_read_that_asks_for_more_than_a_view_that_has_stopped_is_refused_at_once(world: World) -> None:
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as owner:
        owner.execute("UPDATE view_versions SET state = 'failed', error = 'E: it broke' WHERE view = 'codes'")
        try:
            question = {"video_id": "v", "advertiser_id": OWN_ACCOUNT, "at_least": 999}
            for path, query in (("/v1/codes", {"at_least": 999}), ("/v1/authorizations", question)):
                answer = read(world, path, **query)
                assert told(answer, 503)["detail"] == (
                    "View codes has stopped. It can be read up to position 0. "
                    "Retry without at_least, or with a smaller value."
                )
        finally:
            owner.execute("UPDATE view_versions SET state = 'following', error = NULL WHERE view = 'codes'")
