"""A ledger moves to another server while it is used: nothing is lost or doubled, and no two servers ever serve it."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast
from uuid import UUID

import httpx
import psycopg
import pytest

from api import import_worker
from infra.crypto.epochs import EpochKeyMissing
from infra.crypto.keyring import sheet_purpose
from infra.crypto.rotation import change_epoch
from infra.eventstore.differences import CHECKED, REPORT
from infra.imports.runs import ImportRuns, purge
from infra.jobs import ledger_move
from infra.jobs.ledger_move import STAYS, LedgerMove, Moved, MoveError, Server, forget, tables_of
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import WORKER
from infra.runtime import runtime
from infra.servers import new_ledger_name
from tests.api.attempts import left_to_the_worker
from tests.api.processes import serving_process
from tests.api.streaming import following
from tests.api.world import World, told
from tests.conftest import TestDatabase
from tests.keys import master_key_of
from tests.places import directory
from tests.servers import Installation, command, installation, servers_file, shown
from tests.serving import http_client
from tests.waiting import until

pytestmark = pytest.mark.long("two database servers run, and ledgers move between them")

SIGN_IN = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
# The points at which the command can end, in order.
ALERT = {"kind": "ending", "channel": "chat", "address": "https://chat.example/hook"}
POINTS = ["registered", "log", "changes", "held", "staged", "switching", "switched", "completed"]


class Killed(BaseException):
    """The command is ended here."""


@pytest.fixture(scope="module")
def servers(cluster: EmbeddedPostgres) -> Iterator[Installation]:
    place = directory("moves")
    with installation(cluster, place) as made:
        yield made
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def url(servers: Installation) -> Iterator[str]:
    settings = {"databases": servers.settings["DATABASES"], "database_url": "", "video_ids": "any"}
    with serving_process(servers.a, servers.settings["MASTER_KEY"], **settings) as address:
        yield address


@dataclass
class Ledger:
    """A ledger that begins on server a, and its administrator's client."""

    name: str
    servers: Installation
    url: str
    key: str

    def client(self, key: str | None = None) -> httpx.Client:
        return http_client(self.url, key or self.key)

    @contextmanager
    def world(self) -> Iterator[World]:
        with self.client() as client:
            world = World(cast("Any", self), client)
            yield world
            for one in world.clients:
                one.close()

    def move(self, reached: Callable[[str], None] = lambda _: None, *, back: bool = False) -> Moved:
        """Move it to b as the command does, or back; `reached` hears how far that is."""
        with self._moving(back=back) as move:
            move.reached, move.linger_s = reached, 0.0
            return move.run()

    def undo(self, reached: Callable[[str], None] = lambda _: None) -> None:
        """Undo its move to b as the command does."""
        with self._moving() as move:
            move.reached = reached
            move.undo()

    def _moving(self, *, back: bool = False) -> LedgerMove:
        servers = [Server(name, one.dsn()) for name, one in (("a", self.servers.a), ("b", self.servers.b))]
        source, target = reversed(servers) if back else servers
        key = master_key_of(self.servers.settings["MASTER_KEY"])
        return LedgerMove(self.name, source, target, key, lambda _: None)

    def serving(self) -> list[str]:
        """Return which servers serve it."""
        query = "SELECT 1 FROM ledgers WHERE name = %s AND served_by IS NULL"
        return [name for name, one in self.databases if one.sql(query, (self.name,))]

    @property
    def databases(self) -> list[tuple[str, TestDatabase]]:
        return [("a", self.servers.a), ("b", self.servers.b)]

    def rows(self, database: TestDatabase) -> dict[str, list[Any]]:
        """Return what a server has of it, table by table; keys are wrapped and sealed by each server for itself."""
        with psycopg.connect(database.dsn()) as connection:
            tables = tables_of(connection)
        found = {}
        for table in tables:
            query = (
                f"SELECT to_jsonb(t) - 'wrapped' - 'sealed_key' - 'public' FROM {table.name} t"
                " JOIN ledgers l USING (ledger_id) WHERE l.name = %s ORDER BY 1"
            )
            found[table.name] = database.sql(query, (self.name,))
        return found

    def record(self, account: str) -> int:
        """Record something, as often as it is refused for the moment; return the position."""
        headers = {"Idempotency-Key": account}
        found: list[httpx.Response] = []

        def recorded() -> bool:
            with self.client() as client:
                answer = client.put(f"/v1/advertisers/{account}", json={"brand_id": "acme"}, headers=headers)
            if answer.status_code == 503:
                assert "retry-after" in answer.headers
                return False
            found.append(answer)
            return True

        until(recorded, 60)
        return int(told(found[0], 200)["position"])

    def accounts(self, database: TestDatabase) -> list[str]:
        """Return the accounts of which a server's log has something recorded, in order."""
        query = (
            "SELECT convert_from(e.body, 'UTF8')::jsonb ->> 'advertiser_id'"
            " FROM events e JOIN ledgers l USING (ledger_id)"
            " WHERE l.name = %s AND e.type = 'AdvertiserNamed' ORDER BY e.position"
        )
        return [row[0] for row in database.sql(query, (self.name,))]


@pytest.fixture
def ledger(servers: Installation, url: str) -> Ledger:
    name = f"moving-{uuid.uuid4().hex[:8]}"
    return Ledger(name, servers, url, shown(servers.command("ledgers", "create", name)))


class Load:
    """Somebody who records one thing after another, and knows what was acknowledged."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ended = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait(self, more: int) -> None:
        reached = len(self.acknowledged) + more
        until(lambda: len(self.acknowledged) >= reached, 60)

    def _run(self) -> None:
        while not self._ended.is_set():
            account = f"account-{len(self.acknowledged)}"
            self.acknowledged[account] = self._ledger.record(account)


def fill(world: World) -> None:
    """Record something of every kind."""
    world.running()
    world.generate("creator-2")
    told(world.client.post("/v1/webhooks", json={"url": "https://receiver.example/"}), 201)
    told(world.client.post("/v1/alerts", json=ALERT), 201)
    told(world.client.post("/v1/calendars", json={}), 201)
    left_to_the_worker(world)
    world.creator()


def test_nothing_acknowledged_is_lost_or_doubled_while_a_ledger_moves(ledger: Ledger) -> None:
    with ledger.world() as world:
        fill(world)
    with Load(ledger) as load:
        moved = ledger.move()
        load.wait(3)
    assert ledger.serving() == ["b"]
    assert moved.position > 0
    accounts = ledger.accounts(ledger.servers.b)
    assert accounts == list(load.acknowledged)
    positions = ledger.servers.b.sql(
        "SELECT position FROM events JOIN ledgers USING (ledger_id) WHERE name = %s ORDER BY 1", (ledger.name,)
    )
    assert [row[0] for row in positions] == list(range(1, len(positions) + 1))


def test_what_a_server_has_of_a_ledger_moves_whole(ledger: Ledger) -> None:
    with ledger.world() as world:
        fill(world)
        history = world.client.get("/v1/events").headers["ledger-history"]
        ledger.move()
        before, after = (ledger.rows(database) for _, database in ledger.databases)
        assert {name for name, rows in before.items() if rows} >= {
            *("accesses", "alert_rules", "api_keys", "calendars", "claims", "creator_keys", "events", "webhooks"),
            *("webhook_progress", "histories", "import_runs", "import_parts"),
        }
        assert after == before
        answer = world.client.get("/v1/events")
        assert answer.headers["ledger-history"] == history
        # Sealed under keys of creators, and claimed by keyed hashes.
        code = next(event for event in answer.json()["events"] if event["type"] == "CodeGenerated")
        path = f"/v1/codes/{code['code_id']}"
        assert told(world.client.get(path), 200)["code_id"] == code["code_id"]
        assert told(world.client.post(f"{path}/reveals", json={"reason": "asked"}), 200)["secret"]


async def test_an_import_that_waits_is_carried_out_where_its_ledger_has_moved(ledger: Ledger) -> None:
    with ledger.world() as world:
        import_id = UUID(left_to_the_worker(world))
    await asyncio.to_thread(ledger.move)
    waiting, ended = [], []
    for _, database in ledger.databases:
        key = master_key_of(ledger.servers.settings["MASTER_KEY"])
        async with runtime(database.dsn(WORKER), WORKER, key) as worker:
            runs = ImportRuns(worker.database, worker.keyring)
            # Imports of other tests may wait as well.
            while (run := await runs.next()) is not None:
                waiting.append(run.import_id)
                await import_worker.load(worker)(run, leads)
        query = "SELECT state FROM import_runs JOIN ledgers USING (ledger_id) WHERE name = %s AND served_by IS NULL"
        ended += database.sql(query, (ledger.name,))
    assert (waiting.count(import_id), ended) == (1, [("ended",)])


async def test_an_import_that_nobody_carried_out_fails_only_where_its_ledger_has_moved(ledger: Ledger) -> None:
    with ledger.world() as world:
        import_id = UUID(left_to_the_worker(world))
    sent = "UPDATE import_runs SET requested_at = now() - interval '8 days' WHERE import_id = %s RETURNING 1"
    ledger.servers.a.sql(sent, (import_id,))
    await asyncio.to_thread(ledger.move)
    states = []
    for _, database in ledger.databases:
        key = master_key_of(ledger.servers.settings["MASTER_KEY"])
        async with runtime(database.dsn(WORKER), WORKER, key) as worker, worker.database.connection() as connection:
            await purge(connection, 100)
        states += database.sql("SELECT state FROM import_runs WHERE import_id = %s", (import_id,))
    assert states == [("waiting",), ("failed",)]


def end_epoch(database: TestDatabase, master: str, ledger: str) -> None:
    """End the epoch of a server, as an erasure in a ledger does."""
    database.sql(
        "INSERT INTO erasures (ledger_id, position, creator_stream, epoch)"
        " SELECT ledger_id, 0, gen_random_uuid(), number FROM key_epochs, ledgers WHERE present AND name = %s"
        " ON CONFLICT (ledger_id, position) DO UPDATE SET epoch = excluded.epoch, carried_out_at = NULL RETURNING 1",
        (ledger,),
    )
    assert asyncio.run(change_epoch(database.dsn(), master_key_of(master)))


def test_the_sheet_of_an_import_is_sealed_in_the_epoch_of_the_target(ledger: Ledger) -> None:
    with ledger.world() as world:
        left_to_the_worker(world)
    ledger.move()
    sealed = (
        "SELECT sealed_key IS NOT NULL AND substring(sealed_key FROM 1 FOR 8) = decode(epoch_id, 'hex')"
        " FROM import_runs JOIN ledgers USING (ledger_id), key_epochs WHERE name = %s AND present"
    )
    assert [one.sql(sealed, (ledger.name,)) for _, one in ledger.databases] == [[(True,)], [(True,)]]


def test_a_sheet_that_an_erasure_closes_during_the_move_opens_nowhere(ledger: Ledger) -> None:
    with ledger.world() as world:
        left_to_the_worker(world)
    master = ledger.servers.settings["MASTER_KEY"]

    def reached(where: str) -> None:
        if where == "followed":
            end_epoch(ledger.servers.a, master, ledger.name)

    ledger.move(reached)
    of_ledger = "ledger_id = (SELECT ledger_id FROM ledgers WHERE name = %s)"
    # What the target had sealed before opens no more once its epoch has ended.
    ends = f"SELECT epoch = (SELECT number FROM key_epochs WHERE present) FROM erasures WHERE {of_ledger}"
    assert ledger.servers.b.sql(ends, (ledger.name,)) == [(True,)]
    sheet = f"SELECT import_id, sealed_key FROM import_runs WHERE {of_ledger}"
    [(import_id, stored)] = ledger.servers.b.sql(sheet, (ledger.name,))
    with pytest.raises(EpochKeyMissing):
        master_key_of(master).epochs.unseal(stored, sheet_purpose(import_id))


async def leads() -> None:
    """Lead on."""


def test_a_stream_goes_on_at_the_next_position(ledger: Ledger) -> None:
    with ledger.client() as client:
        with following(client) as stream:
            first = ledger.record("before")
            assert [event["position"] for event in stream.take(1)] == [first]
            last_id = stream.last_id
            ledger.move()
            assert stream.ending() == "unavailable"
        second = ledger.record("after")
        with following(client, last_id) as stream:
            assert [event["position"] for event in stream.take(1)] == [second] == [first + 1]


def test_somebody_who_is_signed_in_stays_so(ledger: Ledger) -> None:
    with httpx.Client(base_url=ledger.url, trust_env=False, timeout=20) as client:
        assert client.post("/sign-in", data={"key": ledger.key, "next": "/"}, headers=SIGN_IN).status_code == 303
        ledger.move()
        until(lambda: client.get("/codes").status_code == 200, 60)


@pytest.mark.parametrize("point", POINTS)
def test_a_command_that_is_killed_leaves_one_server_and_can_be_run_again(ledger: Ledger, point: str) -> None:
    for number in range(3):
        ledger.record(f"account-{number}")

    def reached(where: str) -> None:
        if where == "began" and point == "changes":
            ledger.record("account-changed")
        if where == point:
            raise Killed

    with pytest.raises(Killed):
        ledger.move(reached)
    assert len(ledger.serving()) <= 1
    ledger.record("account-between")
    moved_already = point in {"switched", "completed"}
    assert ledger.serving() == (["b"] if moved_already else ["a"])
    ledger.move()
    assert ledger.serving() == ["b"]
    ledger.record("account-after")
    changed = ["account-changed"] if point == "changes" else []
    expected = [*(f"account-{number}" for number in range(3)), *changed, "account-between", "account-after"]
    assert ledger.accounts(ledger.servers.b) == expected


@pytest.mark.parametrize("point", ["registered", "staged"])
def test_a_move_that_was_interrupted_is_undone(ledger: Ledger, point: str) -> None:
    ledger.record("before")

    def reached(where: str) -> None:
        if where == point:
            raise Killed

    with pytest.raises(Killed):
        ledger.move(reached)
    ledger.undo()
    assert ledger.serving() == ["a"]
    assert not any(ledger.rows(ledger.servers.b).values())
    ledger.record("after")
    assert ledger.accounts(ledger.servers.a) == ["before", "after"]
    number = ledger.servers.a.sql("SELECT ledger_id FROM ledgers WHERE name = %s", (ledger.name,))[0][0]
    triggers = "SELECT count(*) FROM pg_trigger WHERE starts_with(tgname, %s)"
    assert ledger.servers.a.sql(triggers, (f"departure_of_{number}_",)) == [(0,)]


def killed_at(point: str) -> Callable[[str], None]:
    def reached(where: str) -> None:
        if where == point:
            raise Killed

    return reached


@pytest.mark.parametrize("point", ["undoing", "keys removed", "removing events"])
def test_an_undo_that_is_killed_leaves_the_ledger_in_use_and_its_next_move_copies_all(
    ledger: Ledger, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_move, "PAGE_DELETED", 2)
    accounts = [f"account-{number}" for number in range(4)]
    for account in accounts:
        ledger.record(account)
    with pytest.raises(Killed):
        ledger.move(killed_at("staged"))
    with pytest.raises(Killed):
        ledger.undo(killed_at(point))
    with ledger.client() as client:
        made = told(client.post("/v1/webhooks", json={"url": "https://receiver.example/"}), 201)
        ledger.move()
        assert ledger.serving() == ["b"]
        assert ledger.accounts(ledger.servers.b) == accounts
        assert ledger.rows(ledger.servers.b) == ledger.rows(ledger.servers.a)
        until(lambda: client.get(f"/v1/webhooks/{made['webhook_id']}").status_code == 200, 60)


def test_a_copy_with_an_event_that_the_source_has_lost_is_refused(ledger: Ledger) -> None:
    ledger.record("before")
    with pytest.raises(Killed):
        ledger.move(killed_at("log"))
    with psycopg.connect(ledger.servers.b.dsn()) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE events SET event_id = gen_random_uuid() FROM ledgers l"
            " WHERE l.ledger_id = events.ledger_id AND l.name = %s",
            (ledger.name,),
        )
    ledger.record("after")
    with pytest.raises(MoveError, match="differs from the ledger"):
        ledger.move()
    ledger.undo()
    ledger.move()
    assert ledger.accounts(ledger.servers.b) == ["before", "after"]


def test_keys_that_a_server_has_no_more_are_sealed_in_an_epoch_that_ends(ledger: Ledger) -> None:
    with ledger.world() as world:
        world.creator()
        world.generate("creator-1")
    number = ledger.servers.a.sql("SELECT ledger_id FROM ledgers WHERE name = %s", (ledger.name,))[0][0]
    ends = "SELECT e.epoch = (SELECT number FROM key_epochs WHERE present) FROM erasures e WHERE ledger_id = %s"
    with pytest.raises(Killed):
        ledger.move(killed_at("tables"))
    ledger.undo()
    assert ledger.servers.b.sql(ends, (number,)) == [(True,)]
    ledger.move()
    forget(ledger.name, Server("a", ledger.servers.a.dsn()), lambda _: None)
    assert ledger.servers.a.sql(ends, (number,)) == [(True,)]


def test_a_key_that_is_erased_after_it_was_copied_is_sealed_in_an_epoch_that_ends_on_the_target(
    ledger: Ledger,
) -> None:
    with ledger.world() as world:
        world.creator()
        world.generate("creator-1")
    with pytest.raises(Killed):
        ledger.move(killed_at("tables"))
    of_ledger = "ledger_id = (SELECT ledger_id FROM ledgers WHERE name = %s)"
    erased = f"UPDATE creator_keys SET wrapped = NULL, erased_at = now() WHERE {of_ledger} RETURNING ledger_id"
    assert ledger.servers.a.sql(erased, (ledger.name,))
    ends = f"SELECT epoch = (SELECT number FROM key_epochs WHERE present) FROM erasures WHERE {of_ledger}"
    assert ledger.servers.b.sql(ends, (ledger.name,)) == []
    ledger.move()
    assert ledger.servers.b.sql(ends, (ledger.name,)) == [(True,)]


def test_what_changes_between_the_copies_of_two_tables_moves(ledger: Ledger) -> None:
    made: list[str] = []

    def reached(where: str) -> None:
        if where == "copying api_key_hashes":
            with ledger.client() as client:
                made.append(told(client.post("/v1/keys", json={"role": "auditor", "name": "late"}), 201)["key"])

    ledger.move(reached)
    with ledger.client(made[0]) as client:
        assert client.get("/v1/events").status_code == 200


def test_a_ledger_that_cannot_be_copied_in_time_is_let_go(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_move, "HELD_MS", 0)
    monkeypatch.setattr(ledger_move, "SWITCHES", 2)
    with pytest.raises(MoveError, match="could not be held"):
        ledger.move()
    assert ledger.serving() == ["a"]
    ledger.record("after")


def test_a_public_log_is_public_on_one_server(ledger: Ledger) -> None:
    ledger.servers.a.sql(
        "INSERT INTO log_trees (ledger_id, generation, ledger, origin, verifier_keys, public, size, root)"
        " SELECT ledger_id, 1, name, name, '{}', true, 0, '' FROM ledgers WHERE name = %s RETURNING 1",
        (ledger.name,),
    )
    public = "SELECT public FROM log_trees WHERE ledger = %s"
    with pytest.raises(Killed):
        ledger.move(killed_at("staged"))
    assert [one.sql(public, (ledger.name,)) for _, one in ledger.databases] == [[(True,)], [(False,)]]
    ledger.move()
    assert [one.sql(public, (ledger.name,)) for _, one in ledger.databases] == [[(False,)], [(True,)]]


def test_the_key_of_a_ledger_is_wrapped_for_the_target_when_it_switches(ledger: Ledger) -> None:
    ledger.record("before")
    with pytest.raises(Killed):
        ledger.move(killed_at("tables"))
    spoilt = (
        "UPDATE ledgers SET fingerprint_key = substring(fingerprint_key FROM 1 FOR 8) || 'spoilt'::bytea"
        " WHERE name = %s RETURNING 1"
    )
    ledger.servers.b.sql(spoilt, (ledger.name,))
    ledger.move()
    ledger.record("after")
    assert ledger.accounts(ledger.servers.b) == ["before", "after"]


def test_a_name_is_taken_while_no_server_serves_the_ledger(ledger: Ledger) -> None:
    with pytest.raises(Killed):
        ledger.move(killed_at("switched"))
    assert ledger.serving() == []
    owners = {name: database.dsn() for name, database in ledger.databases}
    with new_ledger_name(owners, ledger.name) as free:
        assert not free


def test_the_command_moves_a_ledger_while_a_third_server_is_away(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_move, "LINGER_S", 0.0)
    urls = {name: database.dsn() for name, database in ledger.databases} | {"c": "postgresql://127.0.0.1:1/away"}
    file = str(servers_file(tmp_path / "servers", **urls))
    files = dict.fromkeys(["DATABASES", "WORKER_DATABASES", "MIGRATION_DATABASES"], file)
    with pytest.raises(Killed):
        ledger.move(killed_at("tables"))
    assert re.search(rf"{ledger.name} .*, moving to b since \d{{4}}-", ledger.servers.command("ledgers", "list"))
    move = ("ledgers", "move", ledger.name, "--to", "b")
    assert "is on b now" in command(ledger.servers.settings | files, *move)
    assert ledger.serving() == ["b"]
    assert "moving to" not in ledger.servers.command("ledgers", "list").split(ledger.name)[1].splitlines()[0]


def test_a_copy_is_removed_and_the_ledger_can_move_back(ledger: Ledger) -> None:
    with ledger.world() as world:
        fill(world)
    ledger.move()
    with pytest.raises(MoveError, match="ledgers forget"):
        ledger.move(back=True)
    with pytest.raises(MoveError, match="no copy"):
        forget(ledger.name, Server("b", ledger.servers.b.dsn()), lambda _: None)
    forget(ledger.name, Server("a", ledger.servers.a.dsn()), lambda _: None)
    assert ledger.servers.a.sql("SELECT count(*) FROM ledgers WHERE name = %s", (ledger.name,)) == [(0,)]
    ledger.move(back=True)
    assert ledger.serving() == ["a"]
    assert ledger.record("home-again")


def test_a_removal_that_fails_at_its_end_is_run_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record("before")
    ledger.move()
    source = Server("a", ledger.servers.a.dsn())
    with monkeypatch.context() as patch:
        patch.setattr(ledger_move, "_REGISTERED", ("departures", "arrivals", "ledgers", "no_such_table"))
        with pytest.raises(psycopg.errors.UndefinedTable):
            forget(ledger.name, source, lambda _: None)
    forget(ledger.name, source, lambda _: None)
    assert ledger.servers.a.sql("SELECT count(*) FROM ledgers WHERE name = %s", (ledger.name,)) == [(0,)]


def test_the_source_lets_nothing_be_written_to_a_copy(ledger: Ledger) -> None:
    ledger.record("before")
    ledger.move()
    with psycopg.connect(ledger.servers.a.dsn(), autocommit=True) as connection:
        of_ledger = "(SELECT ledger_id FROM ledgers WHERE name = %s)"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute(
                f"INSERT INTO view_skips (ledger_id, view, version, position, error, reason, skipped_by)"
                f" VALUES ({of_ledger}, 'codes', 1, 1, 'x', 'x', 'x')",
                (ledger.name,),
            )


def test_a_worker_ends_epochs_of_a_ledger_that_the_source_does_not_serve(ledger: Ledger) -> None:
    ledger.servers.a.sql(
        "INSERT INTO erasures (ledger_id, position, creator_stream, epoch)"
        " SELECT ledger_id, 0, gen_random_uuid(), 0 FROM ledgers WHERE name = %s RETURNING 1",
        (ledger.name,),
    )
    ledger.move()
    of_ledger = "ledger_id = (SELECT ledger_id FROM ledgers WHERE name = %s)"
    ended = f"UPDATE erasures SET carried_out_at = now() WHERE {of_ledger} RETURNING position"
    assert ledger.servers.a.sql(ended, (ledger.name,)) == [(0,)]
    assert ledger.rows(ledger.servers.b)["erasures"] == []


def test_a_check_that_is_late_reports_nothing_of_a_ledger_that_has_left(ledger: Ledger) -> None:
    """Rows that are removed meanwhile are no difference, and what is reported would stay on the source for ever."""
    number = ledger.servers.a.sql("SELECT ledger_id FROM ledgers WHERE name = %s", (ledger.name,))[0][0]
    report = (number, 1, "events", 1, "events", "Event 1 is missing.", None)
    checked = (number, 1, "events", datetime.now(UTC), 1, None)

    def written(database: TestDatabase) -> list[int]:
        with psycopg.connect(database.dsn(WORKER), autocommit=True) as worker:
            return [worker.execute(REPORT, report).rowcount, worker.execute(CHECKED, checked).rowcount]

    ledger.move()
    forget(ledger.name, Server("a", ledger.servers.a.dsn()), lambda _: None)
    assert [written(one) for _, one in ledger.databases] == [[0, 0], [1, 1]]


def test_numbers_of_deliveries_go_on_after_those_that_moved(ledger: Ledger) -> None:
    with ledger.client() as client:
        told(client.post("/v1/webhooks", json={"url": "https://receiver.example/"}), 201)
    ledger.servers.a.sql("SELECT setval('webhook_attempts_attempt_id_seq', 1000)")
    attempt = (
        "INSERT INTO webhook_attempts (webhook_id, ledger_id, message_id, type, attempt, at, outcome, duration_ms)"
        " SELECT w.webhook_id, ledger_id, gen_random_uuid(), 'x', 1, now(), 'failed', 1"
        " FROM webhooks w JOIN ledgers l USING (ledger_id) WHERE l.name = %s RETURNING attempt_id"
    )
    assert ledger.servers.a.sql(attempt, (ledger.name,)) == [(1001,)]
    # The command does not live to see the switch; any process completes it.
    with pytest.raises(Killed):
        ledger.move(killed_at("switched"))
    assert ledger.servers.b.sql(attempt, (ledger.name,)) == [(1002,)]
    ledger.move()
    assert ledger.servers.b.sql(attempt, (ledger.name,)) == [(1003,)]


def test_every_table_with_a_ledger_moves_or_it_is_said_why_not(database: TestDatabase) -> None:
    """A new table must have a primary key and the rights and policies that the role that copies has on the others."""
    with psycopg.connect(database.dsn()) as connection:
        moving = tables_of(connection)
    names = {
        row[0]
        for row in database.sql(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger_id'"
            " WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
        )
    }
    assert {table.name for table in moving} | STAYS.keys() == names
    for table in moving:
        assert table.key, f"{table.name} has no primary key"
        rights = database.sql(
            "SELECT has_table_privilege('sparkledger_mover', %(name)s, 'SELECT')"
            " AND has_table_privilege('sparkledger_mover', %(name)s, 'INSERT')"
            " AND has_table_privilege('sparkledger_mover', %(name)s, 'DELETE')",
            cast("Any", {"name": table.name}),
        )
        assert rights == [(True,)], f"the role sparkledger_mover cannot copy {table.name}"
        policies = database.sql(
            "SELECT NOT c.relrowsecurity OR (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid"
            " AND 'sparkledger_mover'::regrole = ANY (p.polroles)) = 2 FROM pg_class c WHERE c.relname = %s",
            (table.name,),
        )
        assert policies == [(True,)], f"row-level security hides {table.name} from the role sparkledger_mover"
