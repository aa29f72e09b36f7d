"""An installation on two servers, as its operator makes it. Two databases stand for them: they share nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner

import cli
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from tests.conftest import TestDatabase, fresh_database
from tests.keys import ERASURE_KEYS

MAIN: Final = "main"
OTHER: Final = "other"


@dataclass(frozen=True)
class Installation:
    """Two servers, a with the ledger `main` and b with `other`, and the keys of their administrators."""

    a: TestDatabase
    b: TestDatabase
    settings: dict[str, str]
    keys: dict[str, str]

    def command(self, *words: str, code: int = 0) -> str:
        """Run a command of the program, and return what it shows."""
        return command(self.settings, *words, code=code)


def command(settings: dict[str, str], *words: str, code: int = 0) -> str:
    """Run a command of the program with these settings alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"SPARKLEDGER_{name}", value)
        done = CliRunner().invoke(cli.app, list(words))
    assert done.exit_code == code, f"{done.output}{done.exception!r}"
    return done.output


def servers_file(path: Path, **urls: str) -> Path:
    """Write a file of servers."""
    path.write_text("".join(f"{name} = {url}\n" for name, url in urls.items()))
    path.chmod(0o600)
    return path


def settings_of(directory: Path, **databases: TestDatabase) -> dict[str, str]:
    """Return the settings of an installation on these servers, as its owner."""
    files = {
        "DATABASES": {name: one.dsn(API) for name, one in databases.items()},
        "WORKER_DATABASES": {name: one.dsn(WORKER) for name, one in databases.items()},
        "MIGRATION_DATABASES": {name: one.dsn() for name, one in databases.items()},
    }
    return {
        "MASTER_KEY": base64.b64encode(fresh_key()).decode(),
        "ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "DATA_DIR": str(directory / "data"),
        **{name: str(servers_file(directory / name.lower(), **urls)) for name, urls in files.items()},
    }


@contextmanager
def installation(cluster: EmbeddedPostgres, directory: Path) -> Iterator[Installation]:
    """Make an installation on two servers."""
    with ExitStack() as opened:
        a, b = (opened.enter_context(fresh_database(cluster)) for _ in range(2))
        yield installation_on(directory, a, b)


def installation_on(directory: Path, a: TestDatabase, b: TestDatabase) -> Installation:
    """Make an installation on these two databases, as its operator does."""
    settings = settings_of(directory, a=a, b=b)
    keys = {MAIN: shown(command(settings, "migrate"))}
    keys[OTHER] = shown(command(settings, "ledgers", "create", OTHER, "--server", "b"))
    return Installation(a, b, settings, keys)


def shown(output: str) -> str:
    """Return the key that a command has shown."""
    found = re.search(r"shown only once: (slk_\w+)", output)
    assert found is not None, output
    return found[1]
