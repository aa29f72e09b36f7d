"""What the command line prints: nothing that a name holds acts on the terminal."""

from __future__ import annotations

import ast
import asyncio
import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.processes.terminal import printable
from tests.conftest import TestDatabase
from tests.keys import ERASURE_KEYS, master_key_of

ROOT = Path(__file__).parent.parent

HOSTILE = "key\x1b[2J\u202eevil\nadmin  valid"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("Ana’s app – 花子", "Ana’s app – 花子"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("a\u200bb\u2028c", "a\\u200bb\\u2028c"),
        ("a\x7fb\x9bc", "a\\x7fb\\x9bc"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, printed: str) -> None:
    assert printable(text) == printed


def test_a_hostile_name_of_a_key_stays_in_its_line_and_acts_on_nothing(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = base64.b64encode(fresh_key()).decode()
    monkeypatch.setenv("SPARKLEDGER_DATABASE_URL", database.dsn())
    monkeypatch.setenv("SPARKLEDGER_MASTER_KEY", text)
    monkeypatch.setenv("SPARKLEDGER_ERASURE_KEY_DIR", str(ERASURE_KEYS))
    master = master_key_of(text)
    asyncio.run(create_ledger(database.dsn(), master, "main"))
    asyncio.run(create_key(database.dsn(), master, "main", "auditor", HOSTILE))

    done = CliRunner().invoke(cli.app, ["keys", "list"])

    lines = done.output.splitlines()
    assert len(lines) == 2, "one line for each key"
    assert lines[0].endswith("key\\x1b[2J\\u202eevil\\nadmin  valid")


def test_the_command_line_prints_through_one_function() -> None:
    tree = ast.parse((ROOT / "cli.py").read_text())
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ways_around = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"}
    assert ways_around.isdisjoint(called)
    assert called.count("show") > 10
