"""The command line: keys are made, listed, rotated and revoked; where there is no data, nothing is begun."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from infra.auth.api_keys import ApiKey
from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.crypto.master_keys import MasterKey
from infra.postgres.roles import API
from infra.runtime import runtime
from tests.conftest import TestDatabase
from tests.infra.programs import ROOT
from tests.keys import ERASURE_KEYS, master_key_of
from tests.test_compose_commands import free_port

Run = Callable[..., str]
Find = Callable[[str], ApiKey | None]


@pytest.fixture
def master(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> MasterKey:
    """A database with the ledger `main`, which the settings lead to."""
    text = base64.b64encode(fresh_key()).decode()
    monkeypatch.setenv("SPARKLEDGER_DATABASE_URL", database.dsn())
    monkeypatch.setenv("SPARKLEDGER_MASTER_KEY", text)
    monkeypatch.setenv("SPARKLEDGER_ERASURE_KEY_DIR", str(ERASURE_KEYS))
    master = master_key_of(text)
    asyncio.run(create_ledger(database.dsn(), master, "main"))
    return master


@pytest.fixture
def run(master: MasterKey) -> Run:
    def command(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli.app, ["keys", *words])
        assert done.exit_code == code, done.output
        return done.output

    return command


@pytest.fixture
def find(database: TestDatabase, master: MasterKey) -> Find:
    async def present(text: str) -> ApiKey | None:
        async with runtime(database.dsn(API), API, master) as opened:
            return await opened.authenticator.authenticate(text, datetime.now(UTC))

    return lambda text: asyncio.run(present(text))


def shown(output: str) -> str:
    found = re.search(r"shown only once: (slk_\w+)", output)
    assert found is not None
    return found[1]


@pytest.mark.usefixtures("master")
def test_a_demo_that_reaches_no_program_says_that_alone_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("SPARKLEDGER_PORT", str(port))
    done = CliRunner().invoke(cli.app, ["demo"])
    assert done.exit_code == 1
    assert f"No response from http://127.0.0.1:{port}" in done.output
    assert "To look at this ledger" not in done.output


def test_a_key_is_made_listed_rotated_and_revoked(run: Run, find: Find) -> None:
    created = run("create", "--role", "creator", "--creator-id", "ana", "--name", "app", "--days", "30")
    first = shown(created)
    key = find(first)
    assert key is not None
    assert (key.role, key.name, key.subjects.creator_ids) == ("creator", "app", frozenset({"ana"}))
    assert key.expires_at is not None
    assert 29 <= (key.expires_at - datetime.now(UTC)).days <= 30

    line = next(line for line in run("list").splitlines() if str(key.key_id) in line)
    assert re.search(r"creator .* until \d{4}-\d\d-\d\d .* used \d{4}-\d\d-\d\d \d\d:\d\d +app$", line)
    assert first not in line

    second = shown(run("rotate", str(key.key_id), "--overlap-seconds", "60"))
    assert find(first) == find(second) == key
    third = shown(run("rotate", str(key.key_id), "--overlap-seconds", "0"))
    assert [find(text) for text in (first, second, third)] == [None, None, key]

    run("revoke", str(key.key_id))
    assert find(third) is None
    assert "revoked" in run("list")


def test_a_key_without_the_subjects_of_its_role_is_not_made(run: Run) -> None:
    assert "A key with the role brand needs brand_ids" in " ".join(run("create", "--role", "brand", code=2).split())


def test_what_is_no_key_of_the_ledger_is_neither_rotated_nor_revoked(run: Run) -> None:
    for command in ("rotate", "revoke"):
        assert "a key's id is a UUID" in " ".join(run(command, "x", code=2).split())
        run(command, "01a2047d-e22d-7479-9309-83e7d9fc9f1d", code=1)


@pytest.mark.parametrize("words", [("keys", "list"), ("export", "events.ndjson"), ("rebuild", "codes"), ("work",)])
def test_nothing_is_begun_where_there_is_no_data(words: tuple[str, ...], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"There is no database in {tmp_path / '.sparkledger'}. Create one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_contains_a_code_is_refused_without_repeating_it(run: Run) -> None:
    code = "#cAnary/s3cret+that=TikTok/made==tail"
    said = run("create", "--role", "auditor", "--name", f"for {code}", code=2)
    assert "code_id" in said
    assert "s3cret" not in said
