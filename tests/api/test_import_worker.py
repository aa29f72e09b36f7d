"""Imports that are left to the worker: sealed until they end, resumed after a kill, and reported afterwards."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import orjson
import psycopg
import pytest

from api import import_run, import_worker, imports
from api.import_worker import ImportWorker
from api.workbooks import WorkbookWriter
from domain import commands
from domain.commands import Decision, Ledger
from domain.creator import Creator
from domain.values import Actor, Policy, When
from infra.auth.access_log import COMMAND_LINE
from infra.crypto.keyring import Keyring
from infra.errors import Unavailable
from infra.eventstore.command_handler import CommandMetadata
from infra.imports import runs
from infra.imports.runs import ImportRuns, import_figures
from infra.jobs.retention import purge
from infra.postgres.roles import API, WORKER
from tests.api.test_imports import HEAD, LATER, events, lines, secret, send, sheet
from tests.api.world import TERMS, World, refused, told
from tests.infra.session_tokens import bound_to
from tests.keys import ERASURE_KEYS
from tests.serving import REPOSITORY
from tests.waiting import until

ROWS = [["ana", f"video-{n}", secret(n), "2026-01-01", LATER] for n in range(6)]
UNCLEAR = ["ana", "video-x", secret(9), "03/04/2026", LATER]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave sheets of more than three rows to the worker, which notes how far it is after each second row."""
    monkeypatch.setattr(imports, "MAX_ROWS_OF_A_REQUEST", 3)
    monkeypatch.setattr(import_run, "AT_ONCE", 1)
    monkeypatch.setattr(import_worker, "AT_ONCE", 1)
    monkeypatch.setattr(import_worker, "NOTED_ROWS", 2)


def later(world: World, *rows: list[str], client: httpx.Client | None = None) -> dict[str, Any]:
    answer = send(world, sheet(*rows), client, record="true", permission="true")
    content = told(answer, 202)
    assert answer.headers["location"] == f"/v1/imports/{content['import_id']}"
    return content


async def leads() -> None:
    """Lead on."""


def work(world: World, sent: dict[str, Any]) -> None:
    """Carry an import out, as the worker of its server does."""

    async def once() -> None:
        worker = world.server.serving.worker
        ledger_id = await ledger_of(world)
        run = await ImportRuns(worker.database, worker.keyring).find(ledger_id, UUID(sent["import_id"]))
        await ImportWorker(worker).carry_out(run, leads)

    world.server.serving.call(once())


async def ledger_of(world: World) -> int:
    return await world.server.serving._ledger_admin.id_of(world.server.ledger)


def state(world: World, sent: dict[str, Any]) -> dict[str, Any]:
    return told(world.client.get(f"/v1/imports/{sent['import_id']}"), 200)


def report(world: World, sent: dict[str, Any]) -> list[dict[str, Any]]:
    return lines(world.client.get(f"/v1/imports/{sent['import_id']}/report"))


def owner(world: World, statement: str, *values: Any) -> list[Any]:
    """Run a statement as the database's owner."""
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def dies_after(world: World, monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any], recorded: int) -> None:
    """Carry an import out until so many rows are recorded, the last one of which is not noted."""
    outcomes = import_run.Import._recorded
    count = 0

    async def dying(self: Any, *given: Any) -> Any:
        nonlocal count
        found = await outcomes(self, *given)
        count += 1
        if count == recorded:
            raise Unavailable("The worker dies after a row was recorded, and before that is noted.")
        return found

    with monkeypatch.context() as until_then:
        until_then.setattr(import_run.Import, "_recorded", dying)
        with pytest.raises(Unavailable):
            work(world, sent)


def alter(world: World, sent: dict[str, Any], table: str = "import_parts", column: str = "sealed") -> None:
    """Alter what is stored of a sheet."""
    altered = f"set_byte({column}, 40, get_byte({column}, 40) # 1)"
    owner(world, f"UPDATE {table} SET {column} = {altered} WHERE import_id = %s", sent["import_id"])


def told_rows(world: World, sent: dict[str, Any]) -> list[str]:
    """Return the fates of the rows that a report has."""
    return [row["fate"] for row in report(world, sent) if "fate" in row]


def stored(world: World, sent: dict[str, Any], what: str = "count(*)") -> Any:
    """Return something of the stored pieces of a sheet."""
    query = f"SELECT {what} FROM import_parts WHERE import_id = %s AND kind = 'sheet'"
    [(found,)] = owner(world, query, sent["import_id"])
    return found


def kinds(world: World) -> dict[str, int]:
    """Return how many events of an import there are, and of codes."""
    found = [event["type"] for event in events(world)]
    return {name: found.count(name) for name in ("ImportStarted", "CodeGenerated", "ImportEnded")}


@pytest.mark.usefixtures("small")
def test_a_large_sheet_is_answered_at_once_and_recorded_by_the_worker(world: World) -> None:
    sent = later(world, *ROWS, UNCLEAR)
    assert (sent["state"], sent["rows"], sent["import"]["rows"], events(world)) == ("waiting", 7, 7, [])
    work(world, sent)
    done = state(world, sent)
    told_of = {name: done[name] for name in ("state", "rows", "rows_done", "new", "unclear", "error")}
    assert told_of == {"state": "ended", "rows": 7, "rows_done": 7, "new": 6, "unclear": 1, "error": None}
    first, *rows, last = report(world, sent)
    assert first["import"]["import_id"] == last["summary"]["import_id"] == sent["import_id"]
    assert [(row["row"], row["fate"]) for row in rows] == [*((n, "new") for n in range(2, 8)), (8, "unclear")]
    started, ended = (next(e for e in events(world) if e["type"] == f"Import{what}") for what in ("Started", "Ended"))
    assert (started["actor"]["key_id"], started["actor"]["role"]) == (sent["key_id"], "admin")
    assert (started["correlation_id"], ended["body"]["new"]) == (f"import:{sent['import_id']}", 6)
    assert [one["import_id"] for one in told(world.client.get("/v1/imports"), 200)["imports"]] == [sent["import_id"]]


@pytest.mark.usefixtures("small")
def test_the_sheet_is_sealed_and_deleted_when_its_import_ends(world: World) -> None:
    sent = later(world, *ROWS)
    sealed = bytes(stored(world, sent, "string_agg(sealed, '')"))
    assert secret(0).encode() not in sealed
    assert b"video-0" not in sealed
    work(world, sent)
    assert stored(world, sent) == 0
    assert secret(0) not in world.client.get(f"/v1/imports/{sent['import_id']}/report").text


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("recorded", [1, 4, 6])
def test_an_import_that_was_interrupted_goes_on_and_records_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, recorded: int
) -> None:
    sent = later(world, *ROWS)
    dies_after(world, monkeypatch, sent, recorded)
    assert state(world, sent)["state"] == "running"
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], done["rows_done"], done["new"], done["known"]) == ("ended", 6, 6, 0)
    assert kinds(world) == {"ImportStarted": 1, "CodeGenerated": 6, "ImportEnded": 1}
    assert [row["fate"] for row in report(world, sent)[1:-1]] == ["new"] * 6


@pytest.mark.usefixtures("small")
def test_only_the_worker_that_began_an_import_last_records(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = later(world, *ROWS)
    outcomes = import_run.Import._recorded
    raced = False

    async def overtaken(self: Any, *given: Any) -> Any:
        nonlocal raced
        if not raced:
            raced = True
            owner(world, "UPDATE import_runs SET starts = starts + 1 WHERE import_id = %s", sent["import_id"])
        return await outcomes(self, *given)

    with monkeypatch.context() as until_then:
        until_then.setattr(import_run.Import, "_recorded", overtaken)
        with pytest.raises(Unavailable):
            work(world, sent)
    assert (state(world, sent)["state"], kinds(world)["CodeGenerated"]) == ("running", 0)
    work(world, sent)
    assert (state(world, sent)["new"], kinds(world)["CodeGenerated"]) == (6, 6)


@pytest.mark.usefixtures("small")
def test_a_worker_begins_an_import_after_what_is_being_recorded(world: World) -> None:
    sent = later(world, *ROWS)
    ledger_id = world.server.serving.call(ledger_of(world))
    waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid)))"
    with psycopg.connect(world.server.database.dsn()) as recording, ThreadPoolExecutor(1) as pool:
        recording.execute("SELECT FROM ledgers WHERE ledger_id = %s FOR NO KEY UPDATE", (ledger_id,))
        carried_out = pool.submit(work, world, sent)
        until(lambda: owner(world, waits, recording.info.backend_pid) == [(True,)], 60)
        begun = state(world, sent)["started_at"]
        recording.rollback()
        carried_out.result()
    assert (begun, state(world, sent)["state"]) == (None, "ended")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("after", [0, 3])
def test_an_import_whose_key_is_revoked_fails_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    sent = later(world, *ROWS, client=world.with_key(key["key"]))
    outcomes = import_run.Import._recorded
    count = 0

    async def revoking(self: Any, *given: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            admin = world.server.serving._key_admin
            await admin.revoke(await ledger_of(world), UUID(key["key_id"]), context=COMMAND_LINE)
        return await outcomes(self, *given)

    monkeypatch.setattr(import_run.Import, "_recorded", revoking)
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], kinds(world)["CodeGenerated"], stored(world, sent)) == ("failed", after, 0)
    assert done["error"] == import_worker.KEY_ENDED
    assert (done["rows_done"], done["new"], told_rows(world, sent)) == (after, after, ["new"] * after)


@pytest.mark.usefixtures("small")
def test_an_import_is_cancelled_before_it_begins_or_at_its_next_note(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, running = later(world, *ROWS), later(world, *ROWS, UNCLEAR)
    path = "/v1/imports/{}"
    told(world.client.delete(path.format(waiting["import_id"])), 204)
    found = state(world, waiting)
    assert (found["state"], found["error"], stored(world, waiting)) == ("cancelled", runs.UNBEGUN, 0)
    assert found["cancelled_by"] == sent_by(world)
    outcomes = import_run.Import._recorded

    async def cancelling(self: Any, *given: Any) -> Any:
        owner(world, "UPDATE import_runs SET cancelled_by = key_id WHERE import_id = %s", running["import_id"])
        return await outcomes(self, *given)

    monkeypatch.setattr(import_run.Import, "_recorded", cancelling)
    work(world, running)
    found = state(world, running)
    assert (found["state"], found["rows_done"], stored(world, running)) == ("cancelled", 2, 0)
    (ended,) = [event for event in events(world) if event["type"] == "ImportEnded"]
    assert (ended["body"]["complete"], ended["body"]["new"]) == (False, 2)
    told(world.client.delete(path.format(running["import_id"])), 204)


@pytest.mark.usefixtures("small")
def test_an_import_that_is_cancelled_between_two_workers_tells_of_each_row_that_was_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = later(world, *ROWS)
    dies_after(world, monkeypatch, sent, 3)
    assert (state(world, sent)["rows_done"], kinds(world)["CodeGenerated"]) == (2, 3)
    told(world.client.delete(f"/v1/imports/{sent['import_id']}"), 204)
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], done["rows_done"], done["new"]) == ("cancelled", 3, 3)
    assert told_rows(world, sent) == ["new"] * 3
    names = ("import_id", "state", "error", "rows", "rows_done", *import_run.FATES)
    assert report(world, sent)[-1] == {"stopped": {name: done[name] for name in names}}
    assert kinds(world) == {"ImportStarted": 1, "CodeGenerated": 3, "ImportEnded": 1}
    (ended,) = [event for event in events(world) if event["type"] == "ImportEnded"]
    assert (ended["body"]["complete"], ended["body"]["new"]) == (False, 3)


@pytest.mark.usefixtures("small")
def test_an_import_whose_sheet_opens_no_more_ends_in_the_trail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = later(world, *ROWS)
    dies_after(world, monkeypatch, sent, 3)
    alter(world, sent)
    work(world, sent)
    assert state(world, sent)["error"] == import_worker.ALTERED
    assert kinds(world) == {"ImportStarted": 1, "CodeGenerated": 3, "ImportEnded": 1}


def sent_by(world: World) -> str:
    """Return the id of the administrator's key."""
    keys = told(world.client.get("/v1/keys"), 200)["keys"]
    return str(keys[0]["key_id"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("table", "column"), [("import_parts", "sealed"), ("import_runs", "sealed_key")])
def test_a_stored_sheet_that_was_altered_is_not_imported(world: World, table: str, column: str) -> None:
    sent = later(world, *ROWS)
    alter(world, sent, table, column)
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], done["error"], events(world)) == ("failed", import_worker.ALTERED, [])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("has_key", [True, False])
def test_a_sheet_that_waits_opens_no_more_after_an_erasure_in_its_ledger(world: World, has_key: bool) -> None:
    if has_key:
        world.generate("eve")
    else:
        world.permit("eve")
    another = world.another()
    sent, other = later(world, *ROWS), later(another, *ROWS)
    path = "/v1/creators/eve/erasure"
    told(world.client.post(path, json={"reason": "asked"}), 200)
    until(lambda: told(world.client.get(path), 200)["carried_out_at"] is not None, 60)
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], done["error"], kinds(world)["ImportStarted"]) == ("failed", import_worker.ERASED, 0)
    work(another, other)
    assert state(another, other)["state"] == "ended"


@pytest.mark.usefixtures("small")
def test_a_sheet_that_an_erasure_overtakes_while_it_is_stored_is_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sealed_in_an_ended_epoch(*_: Any) -> bytes:
        return bytes(64)

    with monkeypatch.context() as for_now:
        for_now.setattr(Keyring, "seal_until_erasure", sealed_in_an_ended_epoch)
        answer = send(world, sheet(*ROWS), record="true", permission="true")
    assert refused(answer) == (503, "unavailable")
    later(world, *ROWS)


@pytest.mark.usefixtures("small")
def test_a_sheet_that_is_sealed_again_while_it_is_opened_is_imported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, opens = later(world, *ROWS), Keyring.open_until_erasure
    [(stored_key,)] = owner(world, "SELECT sealed_key FROM import_runs WHERE import_id = %s", sent["import_id"])

    async def overtaken(self: Any, ledger_id: int, stored: bytes, purpose: str) -> bytes:
        if stored == bytes(64):
            owner(world, "UPDATE import_runs SET sealed_key = %s WHERE import_id = %s", stored_key, sent["import_id"])
        return await opens(self, ledger_id, stored, purpose)

    owner(world, "UPDATE import_runs SET sealed_key = %s WHERE import_id = %s", bytes(64), sent["import_id"])
    monkeypatch.setattr(Keyring, "open_until_erasure", overtaken)
    work(world, sent)
    assert state(world, sent)["state"] == "ended"


@pytest.mark.usefixtures("small")
def test_an_import_that_ends_its_worker_again_and_again_is_given_up(world: World) -> None:
    sent = later(world, *ROWS)
    starts = runs.MAX_VAIN_STARTS
    change = "UPDATE import_runs SET state = 'running', starts = %s, vain_starts = %s WHERE import_id = %s"
    owner(world, change, starts, starts, sent["import_id"])
    work(world, sent)
    done = state(world, sent)
    assert (done["state"], done["error"], events(world)) == ("failed", import_worker.DIED, [])


def next_of(world: World) -> str | None:
    """Return the import that is next on the server."""
    worker = world.server.serving.worker
    run = world.server.serving.call(ImportRuns(worker.database, worker.keyring).next())
    return None if run is None else str(run.import_id)


def end_others(world: World) -> None:
    """End the imports that other tests have left open in their ledgers."""
    owner(world, "UPDATE import_runs SET state = 'ended', ended_at = now(), sealed_key = NULL WHERE ended_at IS NULL")


@pytest.mark.usefixtures("small")
def test_an_import_that_cannot_go_on_is_tried_again_later_and_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_others(world)
    another = world.another()
    stuck, other = later(world, *ROWS), later(another, *ROWS)

    async def disk_is_full(*_: Any) -> Any:
        raise OSError

    with monkeypatch.context() as for_now:
        for_now.setattr(import_run.Import, "_row", disk_is_full)
        for _ in range(runs.MAX_VAIN_STARTS + 1):
            with pytest.raises(OSError):  # noqa: PT011 - it has no message
                work(world, stuck)
    assert (state(world, stuck)["state"], next_of(world)) == ("running", other["import_id"])
    work(another, other)
    assert next_of(world) is None
    owner(world, "UPDATE import_runs SET retry_at = now() WHERE import_id = %s", stuck["import_id"])
    assert next_of(world) == stuck["import_id"]
    work(world, stuck)
    assert (state(world, stuck)["state"], state(world, stuck)["new"]) == ("ended", 6)


@pytest.mark.usefixtures("small")
def test_an_import_whose_worker_died_goes_on_after_those_of_ledgers_that_have_waited_longer(world: World) -> None:
    end_others(world)
    another = world.another()
    died, other = later(world, *ROWS), later(another, *ROWS)
    begun = (
        "UPDATE import_runs SET state = 'running', starts = 1, vain_starts = 1, tried_at = now() WHERE import_id = %s"
    )
    owner(world, begun, died["import_id"])
    assert next_of(world) == other["import_id"]
    work(another, other)
    assert next_of(world) == died["import_id"]


@pytest.mark.usefixtures("small")
def test_an_error_of_the_program_fails_the_import_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, right = later(world, *ROWS), later(world, *reversed(ROWS))

    async def defect(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as until_then:
        until_then.setattr(import_run.Import, "_row", defect)
        # Not even its end can be recorded then; it ends all the same.
        until_then.setattr(import_run.Import, "end_early", defect)
        work(world, wrong)
    work(world, right)
    assert (state(world, wrong)["error"], state(world, right)["new"]) == (import_worker.DEFECT, 6)


@pytest.mark.usefixtures("small")
def test_rows_that_were_recorded_beside_one_that_fails_are_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_run, "AT_ONCE", 4)
    sent = later(world, *([f"creator-{n}", *row[1:]] for n, row in enumerate(ROWS)))
    judged = import_run.Import._row

    async def defect(self: Any, row: Any, facts: Any) -> Any:
        if facts.video_id == "video-1":
            raise ZeroDivisionError
        return await judged(self, row, facts)

    monkeypatch.setattr(import_run.Import, "_row", defect)
    work(world, sent)
    done = state(world, sent)
    assert (done["error"], done["rows_done"], done["new"]) == (import_worker.DEFECT, 3, 3)
    assert [row["row"] for row in report(world, sent) if "fate" in row] == [2, 4, 5]
    assert kinds(world) == {"ImportStarted": 1, "CodeGenerated": 3, "ImportEnded": 1}


@pytest.mark.usefixtures("small")
def test_a_ledger_has_few_imports_under_way_and_the_same_sheet_records_nothing_again(world: World) -> None:
    sent = [later(world, *ROWS[n:], *ROWS[:n]) for n in range(runs.MAX_OPEN_RUNS)]
    answer = send(world, sheet(*ROWS, UNCLEAR), record="true", permission="true")
    assert refused(answer) == (409, "too_many_imports")
    for one in sent:
        work(world, one)
    assert [state(world, one)["known"] for one in sent] == [0, 6, 6, 6]
    pages = told(world.client.get("/v1/imports", params={"limit": 3}), 200)
    rest = told(world.client.get("/v1/imports", params={"limit": 3, "cursor": pages["next"]}), 200)
    listed = [one["import_id"] for page in (pages, rest) for one in page["imports"]]
    assert (listed, rest["next"]) == ([one["import_id"] for one in reversed(sent)], None)


@pytest.mark.usefixtures("small")
def test_a_sheet_that_is_sent_again_names_the_import_that_is_open(world: World) -> None:
    sent = later(world, *ROWS)
    again = [later(world, *ROWS) for _ in range(runs.MAX_OPEN_RUNS)]
    assert {(one["import_id"], one["import"]["import_id"]) for one in again} == {(sent["import_id"],) * 2}
    others = [
        told(send(world, sheet(*ROWS), record="true", permission="false"), 202),
        later(world, *ROWS, client=world.as_role("operator")),
    ]
    assert len({sent["import_id"], *(one["import_id"] for one in others)}) == 3
    work(world, sent)
    assert later(world, *ROWS)["import_id"] != sent["import_id"]


@pytest.mark.usefixtures("small")
def test_the_same_idempotency_key_names_the_same_import_also_after_its_end(world: World) -> None:
    client = world.with_key(world.server.admin_key)
    client.headers["Idempotency-Key"] = '"sheet-7"'
    first = send(world, sheet(*ROWS), client, record="true", permission="true")
    sent = told(first, 202)
    work(world, sent)
    again = send(world, sheet(*ROWS), client, record="true", permission="true")
    assert (told(again, 202)["import_id"], again.json()["state"]) == (sent["import_id"], "ended")
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    other = send(world, sheet(*ROWS, UNCLEAR), client, record="true", permission="true")
    assert refused(other) == (422, "idempotency_key_reused")
    assert len(told(world.client.get("/v1/imports"), 200)["imports"]) == 1


@pytest.mark.usefixtures("small")
def test_an_import_that_cannot_be_put_on_record_is_neither_accepted_nor_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = later(world, *ROWS)

    async def away(*_: Any) -> None:
        raise Unavailable("The database is away.")

    monkeypatch.setattr(runs, "record_within", away)
    assert refused(send(world, sheet(*ROWS, UNCLEAR), record="true", permission="true"))[0] == 503
    assert refused(world.client.delete(f"/v1/imports/{sent['import_id']}"))[0] == 503
    (one,) = told(world.client.get("/v1/imports"), 200)["imports"]
    assert (one["import_id"], one["state"]) == (sent["import_id"], "waiting")


@pytest.mark.usefixtures("small")
def test_imports_that_failed_are_counted(world: World) -> None:
    worker = world.server.serving.worker

    def figures() -> tuple[int, int]:
        found = world.server.serving.call(import_figures(worker.database))
        return found.open, found.failed

    end_others(world)
    before = figures()[1]
    sent = later(world, *ROWS)
    assert figures() == (1, before)
    owner(world, "UPDATE import_parts SET sealed = '' WHERE import_id = %s", sent["import_id"])
    work(world, sent)
    assert figures() == (0, before + 1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_report_of_which_something_is_missing_breaks_off(world: World, number: int) -> None:
    sent = later(world, *ROWS)
    work(world, sent)
    missing = "DELETE FROM import_parts WHERE import_id = %s AND kind = 'report' AND number >= %s AND number < %s + 2"
    owner(world, missing, sent["import_id"], number, number)
    with pytest.raises(httpx.RemoteProtocolError):
        report(world, sent)


@pytest.mark.usefixtures("small")
def test_titles_of_sheets_are_answered_and_not_stored(world: World) -> None:
    file = io.BytesIO()
    with WorkbookWriter(file) as book:
        book.begin_sheet("Ana Muster", HEAD)
        for row in ROWS:
            book.write(row)
    asked = {"terms": TERMS, "permission": "true", "record": "true"}
    answer = world.client.post(
        "/v1/imports", content=file.getvalue(), headers={"Content-Type": imports.XLSX}, params=asked
    )
    sent = told(answer, 202)
    assert [one["name"] for one in sent["import"]["sheets"]] == ["Ana Muster"]
    (first,) = report(world, sent)
    [sheet_read] = sent["import"]["sheets"]
    assert first["import"]["sheets"] == [{name: sheet_read[name] for name in sheet_read if name != "name"}]
    assert first["import"].keys() == sent["import"].keys() - {"hidden"}


STORED = {
    "version": 1,
    "query": {"record": "true", "terms": "2026-01", "permission": "true", "days": "30", "mapping": "north"},
    "mapping": {"columns": {"secret": "Kode", "note": None}, "dates": "dmy"},
    "policy": {"allowed_days": [7, 30], "extend_after_expiry": True, "codes_without_secret": False},
    "video_ids": "any",
    "request": "7f3a",
}


def test_what_was_stored_of_a_request_is_read_as_it_was_asked() -> None:
    asked = imports.Asked.read(STORED)
    assert orjson.loads(orjson.dumps(asked.stored())) == STORED
    options = asked.options
    assert (options.record, options.mapping, options.reading.dates) == (True, "north", "dmy")
    assert (options.reading.length, asked.policy) == (timedelta(days=30), Policy((7, 30)))


def test_what_a_newer_version_has_stored_waits_for_a_worker_of_that_version() -> None:
    with pytest.raises(Unavailable, match="newer version"):
        imports.Asked.read(STORED | {"version": 2})


@pytest.mark.usefixtures("small")
def test_what_is_wrong_with_a_large_sheet_is_said_at_once(world: World) -> None:
    assert refused(send(world, "1,2\n3,4\n" * 9, record="true")) == (422, "malformed_body")


@pytest.mark.usefixtures("small")
def test_another_ledger_and_another_role_see_nothing_of_an_import(world: World) -> None:
    sent = later(world, *ROWS)
    another, creator = world.another(), world.creator()
    for path in ("", "/report"):
        address = f"/v1/imports/{sent['import_id']}{path}"
        assert refused(another.client.get(address)) == (404, "import_unknown")
        assert refused(creator.get(address)) == (403, "not_allowed")
        assert refused(world.client.get(f"/v1/imports/none{path}")) == (404, "import_unknown")
    assert refused(another.client.delete(f"/v1/imports/{sent['import_id']}")) == (404, "import_unknown")
    assert state(world, sent)["cancelled_by"] is None


@pytest.mark.usefixtures("small")
def test_old_imports_are_deleted_and_those_that_nobody_carried_out_fail(world: World) -> None:
    old, forgotten = later(world, *ROWS), later(world, *reversed(ROWS))
    work(world, old)
    days = "make_interval(days => %s)"
    owner(world, f"UPDATE import_runs SET ended_at = now() - {days} WHERE import_id = %s", 31, old["import_id"])
    change = f"UPDATE import_runs SET requested_at = now() - {days} WHERE import_id = %s"
    owner(world, change, 8, forgotten["import_id"])
    serving = world.server.serving
    serving.call(purge(serving.worker.database))
    assert refused(world.client.get(f"/v1/imports/{old['import_id']}")) == (404, "import_unknown")
    done = state(world, forgotten)
    assert (done["state"], done["error"], stored(world, forgotten)) == ("failed", runs.TOO_OLD, 0)


@pytest.mark.usefixtures("small")
def test_the_newest_imports_of_a_ledger_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_ENDED_RUNS", 2)
    end_others(world)
    sent = []
    for _ in range(3):
        sent.append(later(world, *ROWS))
        told(world.client.delete(f"/v1/imports/{sent[-1]['import_id']}"), 204)
    open_one = later(world, *ROWS)
    serving = world.server.serving
    serving.call(purge(serving.worker.database))
    listed = [one["import_id"] for one in told(world.client.get("/v1/imports"), 200)["imports"]]
    assert listed == [one["import_id"] for one in (open_one, sent[2], sent[1])]


@pytest.mark.usefixtures("small")
def test_the_sheets_that_wait_of_all_ledgers_have_a_limit(world: World) -> None:
    end_others(world)
    sent = later(world, *ROWS)
    assert owner(world, "SELECT bytes FROM import_runs WHERE import_id = %s", sent["import_id"])[0][0] == len(
        sheet(*ROWS)
    )
    full = runs.MAX_OPEN_MIB * 1024 * 1024
    owner(world, "UPDATE import_runs SET bytes = %s WHERE import_id = %s", full, sent["import_id"])
    another = world.another()
    answer = send(another, sheet(*ROWS), record="true", permission="true")
    assert (refused(answer), answer.headers["retry-after"]) == ((503, "unavailable"), str(runs.RETRY_FULL_S))
    told(world.client.delete(f"/v1/imports/{sent['import_id']}"), 204)
    later(another, *ROWS)


@pytest.mark.usefixtures("small")
def test_a_worker_records_with_no_key_but_that_of_an_open_import(world: World) -> None:
    sent = later(world, *ROWS)
    serving = world.server.serving

    def proves(presented: bytes, key_id: str = sent["key_id"], role: str = "admin") -> bool:
        with psycopg.connect(serving.database.dsn(WORKER), autocommit=True) as worker:
            row = worker.execute(
                "SELECT carries_out_import(%s, %s, %s, %s)", (serving.call(ledger_of(world)), key_id, role, presented)
            ).fetchone()
        assert row is not None
        return bool(row[0])

    run = UUID(sent["import_id"]).bytes
    begun = run + bytes(4)
    assert proves(begun)
    assert not proves(run + b"\0\0\0\1")
    assert not proves(begun, role="operator")
    assert not proves(begun, key_id=sent["import_id"])
    work(world, sent)
    assert not proves(run + b"\0\0\0\1")
    with psycopg.connect(serving.database.dsn(WORKER), autocommit=True) as worker:
        change = "UPDATE import_runs SET state = 'running', ended_at = NULL, sealed_key = '' WHERE import_id = %s"
        assert worker.execute(change, (sent["import_id"],)).rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            worker.execute("INSERT INTO import_runs SELECT * FROM import_runs")


@pytest.mark.usefixtures("small")
def test_a_login_of_the_api_changes_no_import_but_by_a_key_that_was_presented_to_it(world: World) -> None:
    sent, other = later(world, *ROWS), later(world.another(), *ROWS)
    ledger_id = world.server.serving.call(ledger_of(world))
    bound = bound_to(world.server.database, ledger_id)
    cancelling = "SELECT cancel_import(%s, %s, %s, %s, 'x')"
    adding = "INSERT INTO import_parts (import_id, ledger_id, kind, number, sealed) VALUES (%s, %s, 'report', 513, '')"
    with psycopg.connect(world.server.database.dsn(API), autocommit=True) as connection:
        connection.execute("SELECT set_config('sparkledger.ledger', %s, false)", (bound,))
        for token in (None, bytes(16)):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(cancelling, (sent["key_id"], token, ledger_id, sent["import_id"]))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE import_runs SET cancelled_by = key_id")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(adding, (other["import_id"], ledger_id))
    assert state(world, sent)["state"] == "waiting"


@pytest.mark.usefixtures("small")
def test_a_worker_erases_nobody_in_the_name_of_a_key_whose_import_it_carries_out(world: World) -> None:
    world.permit("eve")
    sent = later(world, *ROWS)

    async def erase(ledger: Ledger, when: When) -> Decision[Creator] | None:
        return await commands.erase(ledger, "eve", "asked", when=when)

    async def once() -> None:
        worker = world.server.serving.worker
        ledger_id = await ledger_of(world)
        stored_runs = ImportRuns(worker.database, worker.keyring)
        run = await stored_runs.find(ledger_id, UUID(sent["import_id"]))
        await stored_runs.start(run)
        await worker.handler.handle(CommandMetadata(ledger_id, Actor(str(run.key_id), run.role)), erase)

    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="a worker records no erasure"):
        world.server.serving.call(once())


@contextmanager
def importing(world: World) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker's process that carries out imports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
    environment |= {
        "SPARKLEDGER_DATABASE_URL": world.server.database.dsn(WORKER),
        "SPARKLEDGER_MASTER_KEY": world.server.serving.master_key_text,
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
    }
    command = [sys.executable, "-m", "cli", "work", "--only", "imports"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(20)


@pytest.mark.long("two workers start, one after the other was killed")
def test_an_import_whose_worker_was_killed_goes_on_in_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * import_worker.NOTED_ROWS
    monkeypatch.setattr(imports, "MAX_ROWS_OF_A_REQUEST", import_worker.NOTED_ROWS)
    end_others(world)
    sent = later(world, *(["ana", f"video-{n}", secret(n), "2026-01-01", LATER] for n in range(count)))
    with psycopg.connect(world.server.database.dsn()) as holding, ExitStack() as worker:
        # It records, and cannot note it.
        holding.execute("LOCK TABLE import_parts IN SHARE MODE")
        first = worker.enter_context(importing(world))
        until(lambda: recorded(world).get("CodeGenerated", 0) > 0, 60)
        first.kill()
        first.wait(20)
    assert state(world, sent)["state"] == "running"
    starts = "SELECT starts, vain_starts FROM import_runs WHERE import_id = %s"
    assert owner(world, starts, sent["import_id"]) == [(1, 1)]
    with importing(world):
        until(lambda: state(world, sent)["state"] != "running", 60)
    done = state(world, sent)
    told_of = {name: done[name] for name in ("state", "rows_done", "new", "known", "error")}
    assert told_of == {"state": "ended", "rows_done": count, "new": count, "known": 0, "error": None}
    assert recorded(world) == {"PermissionEnabled": 1, "ImportStarted": 1, "CodeGenerated": count, "ImportEnded": 1}


def recorded(world: World) -> dict[str, int]:
    """Return how many events of each type a ledger has, however many there are."""
    ledger_id = world.server.serving.call(ledger_of(world))
    return dict(owner(world, "SELECT type, count(*) FROM events WHERE ledger_id = %s GROUP BY type", ledger_id))
