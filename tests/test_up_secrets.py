"""What the processes of `sparkledger up` hold, and what they leave on the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

import cli
from api.export_files import written_atomically
from tests.absent import absent
from tests.serving import LiveServer


def test_no_process_of_up_leaves_a_core_dump(live_server: LiveServer) -> None:
    if sys.platform != "linux":
        absent("tells the limits of other processes: run the tests on Linux")
    root = psutil.Process(live_server.process.pid)
    processes = [root, *root.children(recursive=True)]
    names = " ".join(" ".join(process.cmdline()) for process in processes)
    assert "cli serve" in names
    assert "cli work" in names
    assert "postgres" in names
    limits = [Path(f"/proc/{process.pid}/limits").read_text().splitlines() for process in processes]
    cores = {line for lines in limits for line in lines if line.startswith("Max core file size")}
    assert [line.split()[4:6] for line in cores] == [["0", "0"]]


@pytest.mark.parametrize("command", ["serve", "work"])
def test_no_child_is_given_what_only_a_migration_needs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, withheld = (
        {"SPARKLEDGER_MASTER_KEY", "SPARKLEDGER_DATABASE_URL"},
        {
            "SPARKLEDGER_ADMIN_KEY",
            "SPARKLEDGER_MIGRATION_DATABASE_URL",
            "SPARKLEDGER_API_PASSWORD",
            "SPARKLEDGER_WORKER_PASSWORD",
        },
    )
    for name in kept | withheld:
        monkeypatch.setenv(name, "secret")
    environment = cli._child("child", command).env
    assert environment is not None
    assert {name for name, value in environment.items() if value == "secret"} == kept


def test_the_sealer_is_given_no_master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPARKLEDGER_MASTER_KEY", "SPARKLEDGER_MASTER_KEY_PREVIOUS", "SPARKLEDGER_MASTER_KEY_FILE"):
        monkeypatch.setenv(name, "secret")
    environment = cli._child("sealer", "work", "--only", cli.SEAL).env
    assert environment is not None
    assert "secret" not in environment.values()


def test_each_child_is_given_its_own_login_of_the_database_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKLEDGER_DATABASE_URL", "postgresql://sparkledger_api@db/sparkledger")
    monkeypatch.setenv("SPARKLEDGER_WORKER_DATABASE_URL", "postgresql://sparkledger_worker@db/sparkledger")
    logins = {}
    for command in ("serve", "work"):
        given = dict(cli._child("child", command).env or {})
        logins[command] = [value for name, value in given.items() if name.endswith("DATABASE_URL")]
    assert logins == {
        "serve": ["postgresql://sparkledger_api@db/sparkledger"],
        "work": ["postgresql://sparkledger_worker@db/sparkledger"],
    }


def test_an_export_is_for_its_owner_alone_from_its_first_byte_on(tmp_path: Path) -> None:
    with written_atomically(tmp_path / "trail.csv") as file:
        file.write(b"position\n")
        (beside,) = tmp_path.iterdir()
        assert beside.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "trail.csv").stat().st_mode & 0o777 == 0o600
