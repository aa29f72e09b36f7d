"""The commands about keys and people, beside a `sparkledger up` that goes on serving."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import places
from tests.api.world import refused, told
from tests.serving import REPOSITORY, LiveServer, start_live_server

pytestmark = pytest.mark.long("the whole program runs, and a dozen commands beside it")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path that PostgreSQL's own user may enter."""
    made = places.directory("keys")
    yield made
    shutil.rmtree(made)


def run(live: LiveServer, *arguments: str, answer: str = "") -> tuple[int, str]:
    """Run a command on the server's data directory, and return its exit code and what it said."""
    command = [sys.executable, "-m", "cli", *arguments]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=live.environment,
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def client(live: LiveServer) -> httpx.Client:
    headers = {"Authorization": f"Bearer {live.admin_key}"}
    return httpx.Client(base_url=live.url, headers=headers, timeout=30, trust_env=False)


def generate(api: httpx.Client, creator: str) -> str:
    """Generate a creator's first code, and return its address."""
    told(api.put(f"/v1/creators/{creator}/permission", json={"enabled": True}), 200)
    asked = {
        "creator_id": creator,
        "video_id": f"video-of-{creator}",
        "terms_version": "1",
        "secret": f"#code-of-{creator}",
    }
    return f"/v1/codes/{told(api.post('/v1/codes', json=asked), 201)['code_id']}"


def revealed(api: httpx.Client, code: str) -> str:
    return str(told(api.post(f"{code}/reveals", json={"reason": "why"}), 200)["secret"])


def test_the_master_key_is_rotated_and_a_creator_erased_beside_a_running_server(directory: Path) -> None:
    live = start_live_server(directory / "data")
    keys = directory / "data" / "master.key"
    try:
        with client(live) as api:
            first = generate(api, "ana")
            code, before = run(live, "master-key", "show")
            assert (code, before.count("present, given")) == (0, 1), before
            code, said = run(live, "master-key", "rotate")
            assert code == 0, said
            assert "creator_keys: 1 keys wrapped again" in said
            assert [revealed(api, generate(api, "ben")), revealed(api, first)] == ["#code-of-ben", "#code-of-ana"]
            _, after = run(live, "master-key", "show")
            assert [line.split()[0] for line in after.splitlines() if "present" in line] != before.split()[:1]

            assert run(live, "erase", "nobody", "--reason", "asked for", "--yes")[0] == 1
            assert run(live, "erase", "ana", "--reason", "asked for", answer="n\n")[0] == 1
            assert revealed(api, first) == "#code-of-ana"
            code, said = run(live, "erase", "ana", "--reason", "asked for", "--yes")
            assert (code, "The key is destroyed" in said) == (0, True), said
            assert refused(api.post(f"{first}/reveals", json={"reason": "why"})) == (409, "creator_erased")
    finally:
        assert live.stop() == 0
    newest, *_ = keys.read_text().splitlines()
    keys.write_text(f"{newest}\n")  # the key before is taken away
    live = start_live_server(directory / "data", admin_key=live.admin_key)
    try:
        with client(live) as api:
            told(api.get("/v1/codes"), 200)
            assert revealed(api, generate(api, "eva")) == "#code-of-eva"
    finally:
        assert live.stop() == 0


def test_a_server_does_not_start_with_another_master_key(directory: Path) -> None:
    live = start_live_server(directory / "data")
    assert live.stop() == 0
    (directory / "data" / "master.key").unlink()
    code, said = run(live, "up")
    assert code == 1
    assert "The database's keys are wrapped with master key" in said
    assert "Traceback" not in said
