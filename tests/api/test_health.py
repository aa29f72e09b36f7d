"""How the service says that it is: ready, degraded, or not; and how each view is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import psycopg
import pytest

import api.http.single_flight
from api.health import LOST, READ_ONLY
from api.http.app import create_app
from api.http.single_flight import SingleFlight
from infra.errors import Unavailable
from infra.eventstore.group_commit import FULL, MAX_WAITING, STOPPING, GroupCommitWriter
from infra.postgres.pool import Database, LedgerConnection
from infra.postgres.roles import API
from infra.views.reader import ViewReader
from projections import VIEWS
from tests.api.world import World
from tests.conftest import TestDatabase
from tests.waiting import until
from tests.wired import services

pytestmark = pytest.mark.usefixtures("unkept")

FIGURE = re.compile(r'^sparkledger_view_(\w+)\{view="(\w+)"\} (\S+)$', re.MULTILINE)


@asynccontextmanager
async def served(database: Database, obstacle: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """An API whose writer is in this state, on this database."""
    nobody = cast("Any", SimpleNamespace(obstacle=obstacle))
    parts = services(nobody, views=ViewReader(database), database=database)
    transport = httpx.ASGITransport(create_app(parts))
    await database.open()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await database.close()


async def test_a_log_that_is_not_sealed_any_more_is_named(database: TestDatabase) -> None:
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO log_trees (ledger_id, generation, ledger, origin, verifier_keys, public, size, root, stopped)"
            " VALUES (1, 1, 'main', 'origin', '{}', false, 0, '', 'Event 7 of ledger main is missing.')"
        )
    async with served(Database(database.dsn(API), API)) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "stopped": ["log"]})


async def test_ledgers_that_may_have_lost_events_are_told(database: TestDatabase) -> None:
    with psycopg.connect(database.dsn(), autocommit=True) as owner:
        for name in ("one", "two"):
            owner.execute("INSERT INTO ledgers (name, fingerprint_key) VALUES (%s, '')", (name,))
        owner.execute("INSERT INTO anchored_ledgers SELECT ledger_id FROM ledgers WHERE name = 'one'")
        async with served(Database(database.dsn(API), API)) as client:
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "stopped": ["history"]})
        owner.execute("INSERT INTO anchored_ledgers SELECT ledger_id FROM ledgers WHERE name = 'two'")
        async with served(Database(database.dsn(API), API)) as client:
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, LOST)
        owner.execute(
            "INSERT INTO history_checks (ledger_id, database) SELECT ledger_id, database_identity() FROM ledgers"
        )
        async with served(Database(database.dsn(API), API)) as client:
            answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")


async def test_whoever_can_record_is_ready(database: TestDatabase) -> None:
    async with served(Database(database.dsn(API), API)) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "stopped": []})


async def test_all_who_ask_at_once_or_soon_after_take_one_session(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Database(database.dsn(API), API) for _ in range(2))
    lent: list[int | None] = []
    connection = Database.connection

    @asynccontextmanager
    async def counted(self: Database, ledger_id: int | None = None) -> AsyncIterator[LedgerConnection]:
        if self in {one, two}:  # a server of other tests may run in this process
            lent.append(ledger_id)
        async with connection(self, ledger_id) as session:
            yield session

    monkeypatch.setattr(Database, "connection", counted)
    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 3600)
    async with served(one) as client:
        for path in ("/readyz", "/metrics"):
            lent.clear()
            assert (await client.get(path)).status_code == 200
            alone = len(lent)
            answers = await asyncio.gather(*(client.get(path) for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}
            assert len(lent) == alone > 0
    async with served(two) as client:
        lent.clear()
        await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
        assert len(lent) == 4, "the views' states, the histories', Kafka's and the sealer's"


async def test_a_look_up_is_shared_and_its_answer_or_failure_kept_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, begun, going = 0, asyncio.Event(), asyncio.Event()

    async def look() -> int:
        nonlocal looks
        looks += 1
        begun.set()
        await going.wait()
        if looks == 2:
            raise Unavailable("away")
        return looks

    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 3600)
    kept = SingleFlight(look)
    leaving = asyncio.create_task(kept())
    await begun.wait()
    leaving.cancel()
    going.set()
    assert [*await asyncio.gather(kept(), kept()), await kept()] == [1, 1, 1]

    kept = SingleFlight(look)
    assert [type(error) for error in await asyncio.gather(kept(), kept(), return_exceptions=True)] == [Unavailable] * 2
    with pytest.raises(Unavailable):
        await kept()
    assert looks == 2

    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 0)
    kept = SingleFlight(look)
    assert [await kept(), await kept()] == [3, 4]


@pytest.mark.parametrize("obstacle", [FULL, STOPPING])
async def test_whoever_cannot_record_is_not_ready_and_says_why(database: TestDatabase, obstacle: str) -> None:
    async with served(Database(database.dsn(API), API), obstacle) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, obstacle)
    assert answer.headers["retry-after"] == "1"


async def test_a_writer_is_in_the_way_while_it_does_not_run_or_is_full(database: TestDatabase) -> None:
    writer = GroupCommitWriter(database.dsn(API), API)
    assert writer.obstacle == STOPPING
    writer.start()
    assert writer.obstacle is None
    for gave_up, obstacle in ((True, None), (False, FULL)):
        waiting = SimpleNamespace(answer=SimpleNamespace(done=lambda gave_up=gave_up: gave_up))
        writer._waiting.extend(cast("Any", [waiting] * MAX_WAITING))
        assert writer.obstacle == obstacle
    writer._waiting.clear()
    await writer.stop()
    assert writer.obstacle == STOPPING


async def test_a_database_that_takes_no_writes_is_not_ready(database: TestDatabase) -> None:
    with psycopg.connect(database.dsn(), autocommit=True) as owner:
        owner.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    async with served(Database(database.dsn(API), API)) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, READ_ONLY)


@contextmanager
def stopped(world: World, view: str) -> Iterator[None]:
    """A view that has stopped, as its runner writes it down."""
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as owner:
        owner.execute("UPDATE view_versions SET state = 'failed', error = 'E: it broke' WHERE view = %s", (view,))
        try:
            yield
        finally:
            owner.execute("UPDATE view_versions SET state = 'following', error = NULL WHERE view = %s", (view,))


def test_a_view_that_has_stopped_makes_us_degraded_and_no_less_ready(world: World) -> None:
    with stopped(world, "shares"):
        ready, figures = world.client.get("/readyz"), views_figures(world)
    assert (ready.status_code, ready.json()) == (200, {"status": "degraded", "stopped": ["shares"]})
    assert {view for view in figures["stopped"] if figures["stopped"][view]} == {"shares"}
    assert world.client.get("/readyz").json() == {"status": "ready", "stopped": []}


def test_a_rebuild_that_has_stopped_leaves_us_ready(world: World) -> None:
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as owner:
        owner.execute("INSERT INTO view_versions (view, version, state) VALUES ('shares_next', 9, 'failed')")
        try:
            ready, figures = world.client.get("/readyz").json(), views_figures(world)
        finally:
            owner.execute("DELETE FROM view_versions WHERE view = 'shares_next'")
    assert ready == {"status": "ready", "stopped": []}
    assert {view for view in figures["rebuilding"] if figures["rebuilding"][view]} == {"shares"}


def views_figures(world: World) -> dict[str, dict[str, float]]:
    """Return the figures of all views, by figure and view."""
    figures: dict[str, dict[str, float]] = {}
    for name, view, value in FIGURE.findall(world.client.get("/metrics").text):
        figures.setdefault(name, {})[view] = float(value)
    return figures


def test_the_metrics_tell_of_each_view_how_far_it_is(world: World) -> None:
    world.running()
    names = {view.name for view in VIEWS}
    until(lambda: not any(views_figures(world)["lag_events"].values()))
    figures = views_figures(world)
    assert set(figures) == {"position", "lag_events", "lag_seconds", "stopped", "rebuilding", "rebuilds_total"}
    assert all(set(of_each) == names for of_each in figures.values())
    assert figures["position"] == dict.fromkeys(names, sum_of_positions(world))
    assert figures["lag_seconds"] == figures["stopped"] == figures["rebuilds_total"] == dict.fromkeys(names, 0)


def sum_of_positions(world: World) -> int:
    with psycopg.connect(world.server.database.dsn()) as owner:
        return int(owner.execute("SELECT count(*) FROM events").fetchone()[0])  # type: ignore[index]
