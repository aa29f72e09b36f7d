"""A PostgreSQL of a test's own that forgets nothing, and the processes that write to it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.postgres.embedded.cluster import DATABASE
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API
from tests import given
from tests.conftest import TestDatabase
from tests.faults.commands import MARK, Storyteller, Writes
from tests.infra.eventstore.appends import accept
from tests.infra.eventstore.checker import Told, held, problems
from tests.infra.eventstore.notebook import Notebook, noted
from tests.infra.opened import Opened, opening
from tests.infra.programs import Program, running
from tests.infra.session_tokens import present_all
from tests.waiting import until

SHORT: Final = os.environ.get("SPARKLEDGER_FAULTS") == "short"
TELL: Final = "from tests.faults.commands import main; main()"
LEDGERS: Final = 2
TASKS: Final = 32
BEGUN_WITHIN_S: Final = 60.0


@contextmanager
def durable() -> Iterator[TestDatabase]:
    """Run a PostgreSQL with fsync on, and with every migration applied."""
    directory = Path(tempfile.mkdtemp(prefix="sl-faults-"))
    directory.chmod(0o755)
    with EmbeddedPostgres(directory) as server:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        migrate(server.dsn())
        with closing(TestDatabase(server, DATABASE)) as database:
            accept(database, "Tested", "Marked")
            yield database
    shutil.rmtree(directory)


@dataclass(frozen=True)
class Scene:
    """Where a load is put on: a database with ledgers in which codes may be generated, and a place for notebooks."""

    database: TestDatabase
    writes: list[Writes]
    directory: Path

    @property
    def stop(self) -> Path:
        """The file whose existence ends a load."""
        return self.directory / "stop"

    def books(self) -> list[Path]:
        """Return every notebook there is."""
        return sorted(self.directory.glob("*.jsonl"))

    @contextmanager
    def telling(self, name: str) -> Iterator[Program]:
        """Run a process that tells stories until it is killed or stopped, once its first command is written down."""
        notebook = self.directory / f"{name}.jsonl"
        order = {
            "dsn": self.database.dsn(API),
            "writes": [[writes.ledger_id, writes.key_id] for writes in self.writes],
            "notebook": str(notebook),
            "stop": str(self.stop),
            "tasks": TASKS,
        }
        with running(TELL, json.dumps(order)) as program:
            # What it needs before that is asked of a database that must not have been killed yet.
            until(lambda: notebook.exists() and notebook.stat().st_size > 0, BEGUN_WITHIN_S)
            yield program

    def until_acknowledged(self, more: int, within_s: float = 60) -> None:
        """Wait until so many more lines stand in the notebooks, which is about half as many commands."""
        reached = self._lines() + 2 * more
        until(lambda: self._lines() >= reached, within_s)

    def told(self) -> list[Told]:
        """Return what every attempt was told."""
        return [attempt.told for book in self.books() for attempt in noted(book)]

    def problems(self) -> list[str]:
        """Return what is wrong between what callers were told and what the log holds."""
        return problems(self.told(), held(self.database.dsn(), MARK))

    def unacknowledged(self) -> list[dict[str, Any]]:
        """Return the commands of which no attempt was answered."""
        attempts = [attempt for book in self.books() for attempt in noted(book)]
        answered = {attempt.told.mark for attempt in attempts if attempt.told.answer == "recorded"}
        open_ = {attempt.told.mark: attempt for attempt in attempts if attempt.told.mark not in answered}
        return [attempt.what | {"ledger_id": attempt.told.ledger_id} for attempt in open_.values()]

    def send_again(self, commands: list[dict[str, Any]], name: str) -> list[str]:
        """Send commands again, each twice with its own key, and return those that got two answers."""

        async def again() -> list[str]:
            book = Notebook(self.directory / f"{name}.jsonl")
            async with opening(self.database) as opened:
                present_all(opened.api.database)
                storyteller = Storyteller(opened.handler, self.writes, book)
                differing = [what["mark"] for what in commands if not await _one_answer(storyteller, what)]
            book.close()
            return differing

        return asyncio.run(again())

    def _lines(self) -> int:
        return sum(book.read_bytes().count(b"\n") for book in self.books())


async def _one_answer(storyteller: Storyteller, what: dict[str, Any]) -> bool:
    writes = Writes(what["ledger_id"], what["key_id"])
    first, second = [await storyteller.carry_out(writes, what) for _ in range(2)]
    same = (first.position, first.appended, first.recorded_at, first.creator_stream)
    assert second.replayed
    return same == (second.position, second.appended, second.recorded_at, second.creator_stream)


@contextmanager
def scene() -> Iterator[Scene]:
    """Prepare ledgers on a PostgreSQL of its own."""
    directory = Path(tempfile.mkdtemp(prefix="sl-told-"))
    with durable() as database:
        yield Scene(database, asyncio.run(begin(database)), directory)
    shutil.rmtree(directory)


async def begin(database: TestDatabase) -> list[Writes]:
    """Begin the ledgers."""
    async with opening(database) as opened:
        return [await _begin_one(opened, f"ledger-{n}") for n in range(LEDGERS)]


async def _begin_one(opened: Opened, name: str) -> Writes:
    tenant = await opened.begin(name)
    await opened.when(tenant, given.permission())
    return Writes(tenant.ledger_id, str(tenant.key.key_id))
