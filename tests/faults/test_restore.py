"""A restore from a backup: what `sparkledger up` does then, what an operator does, and what readers are told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import REPOSITORY, LiveServer, start_live_server
from tests.waiting import until


@pytest.fixture
def place(server_path: Path) -> Path:
    return server_path / "data"


def client(running: LiveServer) -> httpx.Client:
    headers = {"Authorization": f"Bearer {running.admin_key}"}
    return httpx.Client(base_url=running.url, headers=headers, timeout=20, trust_env=False)


def permit(http: httpx.Client, creator_id: str) -> httpx.Response:
    return http.put(f"/v1/creators/{creator_id}/permission", json={"enabled": True})


def anchored_position(place: Path) -> int:
    file = place / "anchor.json"
    ledgers: dict[str, Any] = json.loads(file.read_text())["ledgers"] if file.exists() else {}
    return max((anchor["position"] for anchor in ledgers.values()), default=0)


def command(running: LiveServer, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=REPOSITORY,
        env=running.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_restored_database_stops_until_its_loss_is_accepted_and_readers_are_told(place: Path) -> None:
    running = start_live_server(place)
    with client(running) as http:
        assert permit(http, "before").status_code == 200
        assert permit(http, "before-too").status_code == 200
        until(lambda: anchored_position(place) == 2)
    key = running.admin_key
    assert running.stop() == 0
    shutil.copytree(place / "postgres", place.parent / "backup")

    # What is recorded after the backup is lost with the restore.
    running = start_live_server(place, admin_key=key)
    with client(running) as http:
        lost = permit(http, "lost")
        assert (lost.status_code, lost.json()["position"]) == (200, 3)
        history = lost.headers["ledger-history"]
        until(lambda: anchored_position(place) == 3)
    assert running.stop() == 0
    shutil.rmtree(place / "postgres")
    shutil.copytree(place.parent / "backup", place / "postgres")

    running = start_live_server(place, admin_key=key)
    try:
        with client(running) as http:
            refused = permit(http, "after")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert "sparkledger ledgers restart main --accept-loss" in refused.json()["detail"]
            assert refused.headers["retry-after"]
            for feed in ("/v1/events", "/v1/events/stream", "/v1/exports/events"):
                assert http.get(feed).status_code == 503
            assert http.get("/v1/creators/before/permission").status_code == 200

            assert command(running, "ledgers", "restart", "main").returncode == 2
            accepted = command(running, "ledgers", "restart", "main", "--accept-loss", "--reason", "a test")
            assert accepted.returncode == 0, accepted.stderr
            assert "goes on as generation 2, from position 3 on. Events up to position 2 are the same." in (
                accepted.stdout
            )

            until(lambda: permit(http, "after").status_code == 200)
            events = http.get("/v1/events")
            assert [event["type"] for event in events.json()["events"]][2:] == ["LogRestarted", "PermissionEnabled"]
            told = http.get("/v1/events/stream", headers={"Last-Event-ID": f"{history}:3"})
            assert (told.status_code, told.json()["code"]) == (409, "history_changed")
            assert told.json()["last_common_position"] == 2
            assert told.json()["history"] == events.headers["ledger-history"] != history
            bare = http.get("/v1/events/stream", headers={"Last-Event-ID": "3"})
            assert (bare.status_code, bare.json()["code"]) == (409, "history_changed")
    finally:
        assert running.stop() == 0
    # Nothing of this stops the next start.
    running = start_live_server(place, admin_key=key)
    with client(running) as http:
        assert permit(http, "later").status_code == 200
    assert running.stop() == 0
