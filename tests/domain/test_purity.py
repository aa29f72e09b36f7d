"""The domain is pure: time, chance and the outside come to it as arguments, and the check of that can fail."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOMAIN = Path(__file__).parent.parent.parent / "domain"

# Modules of the standard library that reach outside, or that answer differently each time.
IMPURE = {
    *("asyncio", "ctypes", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "shutil"),
    *("signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib"),
}
ALLOWED = (set(sys.stdlib_module_names) - IMPURE) | {"domain"}
# The library's own clock and ids are used where an event is triggered without them.
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "create_timestamp", "open", "print", "input"}
MUST_NAME = {"trigger_event": {"timestamp"}, "_create": {"timestamp", "id"}}


def imports(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, level=level):
            return ["." * level + (module or "")]
        case _:
            return []


def called(node: ast.AST) -> str | None:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
        case _:
            return None


def impurities(source: str) -> Iterator[str]:
    """Name what makes a module impure: imports, calls, and events that would take the library's clock or ids."""
    for node in ast.walk(ast.parse(source)):
        for module in imports(node):
            if module not in {"eventsourcing.domain", "eventsourcing.utils"} and module.split(".")[0] not in ALLOWED:
                yield f"imports {module}"
        name = called(node)
        if name in IMPURE_CALLS:
            yield f"calls {name}"
        if isinstance(node, ast.Call) and name in MUST_NAME:
            for missing in sorted(MUST_NAME[name] - {keyword.arg for keyword in node.keywords if keyword.arg}):
                yield f"{name} without {missing}"


@pytest.mark.parametrize("module", sorted(DOMAIN.rglob("*.py")), ids=lambda path: path.name)
def test_a_module_of_the_domain_is_pure(module: Path) -> None:
    assert list(impurities(module.read_text())) == []


def test_the_domain_has_modules_to_check() -> None:
    assert {"code.py", "commands.py", "creator.py", "recorded.py"} <= {path.name for path in DOMAIN.rglob("*.py")}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import psycopg", "imports psycopg"),
        ("from fastapi import FastAPI", "imports fastapi"),
        ("import eventsourcing.postgres", "imports eventsourcing.postgres"),
        ("from eventsourcing import persistence", "imports eventsourcing"),
        ("from . import code", "imports ."),
        ("import infra.eventstore.command_handler", "imports infra.eventstore.command_handler"),
        ("import time", "imports time"),
        ("from random import choice", "imports random"),
        ("import os.path", "imports os.path"),
        ("datetime.now(UTC)", "calls now"),
        ("datetime.datetime.utcnow()", "calls utcnow"),
        ("date.today()", "calls today"),
        ("uuid.uuid4()", "calls uuid4"),
        ("uuid4()", "calls uuid4"),
        ("def late():\n    import secrets", "imports secrets"),
        ("open('x')", "calls open"),
        ("self.trigger_event(Code.Revealed, reason=reason)", "trigger_event without timestamp"),
        ("cls._create(cls.Enabled, timestamp=at)", "_create without id"),
    ],
)
def test_the_check_names_what_is_impure(source: str, found: str) -> None:
    assert list(impurities(source)) == [found]


@pytest.mark.parametrize(
    "source",
    [
        "from eventsourcing.domain import Aggregate",
        "from datetime import datetime, timedelta",
        "from typing import Any",
        "from domain.code import Code",
        "self.trigger_event(Code.Revealed, timestamp=at, reason=reason)",
        "cls._create(cls.Enabled, id=stream_id, timestamp=at)",
    ],
)
def test_the_check_accepts_what_is_pure(source: str) -> None:
    assert list(impurities(source)) == []
