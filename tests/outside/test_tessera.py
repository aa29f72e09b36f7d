"""Tessera's fsck and its client, programs of others, check our logs: at every size, while events are recorded.

Needs Go and the Go module proxy, so `make outside` runs it and `make test` does not.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.api.world import World, told
from tests.conftest import TestDatabase
from tests.infra.proof.auditing import RECORD, sql
from tests.serving import LiveServer, Server, Serving, new_ledger, start_live_server
from tests.waiting import until

SOURCE: Final = Path(__file__).parent / "tessera"
# A difference can make Tessera wait for ever, which refuses the log as well.
CHECK_S: Final = 120
BUILD_S: Final = 600


@pytest.fixture(scope="session")
def tessera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built."""
    if shutil.which("go") is None:
        pytest.fail("`make outside` needs Go: https://go.dev/dl")
    program = tmp_path_factory.mktemp("tessera") / "tessera"
    subprocess.run(["go", "build", "-o", program, "."], cwd=SOURCE, check=True, timeout=BUILD_S)
    return program


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    with server.client() as client:
        yield World(server, client)


class Log:
    """A served log as an auditor sees it, who kept the verifier key and the last checkpoint."""

    def __init__(self, tessera: Path, world: World, folder: Path) -> None:
        self._tessera = tessera
        self._url = f"{world.server.url}/log/{world.server.ledger}/1"
        self._kept = folder / "kept.checkpoint"
        self.key = told(world.client.get("/v1/log"), 200)["vkeys"][0]
        self.token = world.server.key("auditor")

    def check(self, key: str | None = None) -> int | str:
        """Return the size of the log if it is right, and continues what was checked before; else what is wrong."""
        command = [self._tessera, "-url", self._url, "-key", key or self.key, "-token", self.token]
        if self._kept.exists():
            command += ["-old", self._kept]
        command += ["-save", self._kept]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S, check=False)
        except subprocess.TimeoutExpired:
            return "it did not end"
        if result.returncode != 0:
            return result.stderr
        return int(result.stdout)


def record(world: World, upto: int) -> None:
    """Let the world's ledger end at a position."""
    database = world.server.database
    [(ledger_id,)] = sql(database, "SELECT ledger_id FROM ledgers WHERE name = %s", world.server.ledger)
    [(head,)] = sql(database, "SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %s", ledger_id)
    sql(database, RECORD, ledger_id, head + 1, upto)


def test_tessera_accepts_our_log_at_every_size(tessera: Path, world: World, tmp_path: Path) -> None:
    world.server.serving.seal()
    log = Log(tessera, world, tmp_path)
    checked = []
    sizes = [0, 1, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000]
    for size in sizes:
        record(world, size)
        world.server.serving.seal()
        checked.append(log.check())
    assert checked == sizes


def test_tessera_accepts_our_log_while_commands_are_recorded(tessera: Path, tmp_path: Path) -> None:
    live = start_live_server(tmp_path / "data")
    headers = {"Authorization": f"Bearer {live.admin_key}"}
    try:
        with httpx.Client(base_url=live.url, headers=headers, trust_env=False) as client:
            check_while_recording(tessera, World(First(live), client), tmp_path)  # type: ignore[arg-type] # as much of a server as this needs
    finally:
        live.stop()


def check_while_recording(tessera: Path, world: World, tmp_path: Path) -> None:
    until(lambda: world.client.get("/v1/log").json()["state"] == "sealing")
    log = Log(tessera, world, tmp_path)
    stop = threading.Event()

    def record_commands() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            world.permit(f"creator-{number}")

    recording = threading.Thread(target=record_commands)
    recording.start()
    try:
        checked: list[int | str] = []
        while len(checked) < 5:
            before = world.client.get("/v1/log").json()["size"]
            until(lambda before=before: world.client.get("/v1/log").json()["size"] > before)  # type: ignore[misc] # mypy infers no lambda with a default
            checked.append(log.check())
    finally:
        stop.set()
        recording.join()
    assert all(isinstance(size, int) for size in checked), checked
    assert checked == sorted(set(checked))


class First:
    """The first ledger of a program that was started as a user starts it."""

    ledger = "main"

    def __init__(self, live: LiveServer) -> None:
        self.url = live.url
        self._key = live.admin_key

    def key(self, _: str) -> str:
        return self._key


FLIP = "UPDATE log_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1) WHERE level = 0 AND index = "
TAMPERED = {
    "a byte of a row": "UPDATE events SET body = '{}' WHERE position = 130",
    "a time": "UPDATE events SET recorded_at = recorded_at - interval '1 day' WHERE position = 7",
    "a row less": "DELETE FROM events WHERE position = 299",
    "a hash of a full tile": FLIP + "0",
    "a hash of the last tile": FLIP + "1",
    "a tile less": "DELETE FROM log_tiles WHERE level = 1",
    "another root": "UPDATE log_trees SET checkpoint = replace(checkpoint, E'\\n300\\n', E'\\n299\\n')",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tessera_refuses_a_log_that_was_changed(
    tessera: Path, database: TestDatabase, tmp_path: Path, what: str
) -> None:
    # A server of its own: what is changed here would stop the sealer for others.
    with Serving(database) as serving:
        server = new_ledger(serving)
        with server.client() as client:
            world = World(server, client)
            record(world, 300)
            serving.seal()
            log = Log(tessera, world, tmp_path)
            assert log.check() == 300
            sql(database, "ALTER TABLE events DISABLE TRIGGER ALL")
            sql(database, TAMPERED[what])
            assert isinstance(log.check(), str)


def test_tessera_refuses_another_key_and_an_older_checkpoint(
    tessera: Path, database: TestDatabase, tmp_path: Path
) -> None:
    with Serving(database) as serving:
        server, other = new_ledger(serving), new_ledger(serving)
        with server.client() as client, other.client() as other_client:
            world = World(server, client)
            record(world, 100)
            serving.seal()
            older = sql(database, "SELECT checkpoint, ledger FROM log_trees")
            record(world, 300)
            serving.seal()
            log = Log(tessera, world, tmp_path)
            assert log.check() == 300
            key = told(other_client.get("/v1/log"), 200)["vkeys"][0]
            assert "failed" in str(log.check(key))
            for checkpoint, ledger in older:
                sql(database, "UPDATE log_trees SET checkpoint = %s WHERE ledger = %s", checkpoint, ledger)
            assert "smaller than the older checkpoint" in str(log.check())
