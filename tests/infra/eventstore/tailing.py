"""A load of two processes with readers that follow it by position, and what must be true of it in the end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.eventstore.notifications import Listener
from infra.eventstore.reader import EventReader
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from tests.conftest import TestDatabase
from tests.infra.eventstore.checker import Held, Told, held, problems, unseen
from tests.infra.eventstore.load import MARK
from tests.infra.eventstore.notebook import noted
from tests.infra.programs import Program, running
from tests.infra.session_tokens import present

WRITE: Final = "from tests.infra.eventstore.load import main; main()"
PAGE: Final = 500

Seen = dict[int, list[tuple[int, UUID]]]


@dataclass(frozen=True)
class Tailed:
    """What the callers were told, what the log holds, and what each reader saw of each ledger."""

    told: list[Told]
    log: list[Held]
    readers: list[Seen]

    def problems(self) -> list[str]:
        """Return what is wrong between callers, log and readers."""
        found = problems(self.told, self.log)
        events: dict[int, list[tuple[int, UUID]]] = defaultdict(list)
        for event in self.log:
            events[event.ledger_id].append((event.position, event.event_id))
        for number, reader in enumerate(self.readers):
            for ledger_id, there in events.items():
                seen = reader.get(ledger_id, [])
                found += [
                    f"reader {number}, ledger {ledger_id}: {problem}"
                    for problem in unseen([position for position, _ in seen], len(there))
                ]
                if seen != there:
                    found.append(f"reader {number}, ledger {ledger_id}: saw other events than there are")
        return found

    def counts(self) -> str:
        """Say how much there was."""
        answers = Counter(told.answer for told in self.told)
        said = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
        return f"{len(self.log)} events; {len(self.told)} attempts: {said}; {len(self.readers)} readers"


async def tailed(
    database: TestDatabase, ledgers: list[int], directory: Path, *, seconds: float, tasks: int = 32
) -> Tailed:
    """Write with two processes for a while, follow that with a reader of each kind, and return what came of it."""
    books = [directory / f"{name}.jsonl" for name in ("one", "two")]
    with ExitStack() as stack:
        writers = [stack.enter_context(_writer(database, ledgers, book, seconds, tasks)) for book in books]
        readers = await _follow(database, ledgers, lambda: all(w.process.poll() is not None for w in writers))
        for writer in writers:
            assert writer.rest() == ["done"], writer.printed
    told = [attempt.told for book in books for attempt in noted(book)]
    return Tailed(told, held(database.dsn(), MARK), readers)


def _writer(
    database: TestDatabase, ledgers: list[int], book: Path, seconds: float, tasks: int
) -> AbstractContextManager[Program]:
    order = {
        "dsn": database.dsn(WORKER),
        "reading_dsn": database.dsn(),
        "ledgers": ledgers,
        "notebook": str(book),
        "seconds": seconds,
        "tasks": tasks,
    }
    return running(WRITE, json.dumps(order))


async def _follow(database: TestDatabase, ledgers: list[int], ended: Callable[[], bool]) -> list[Seen]:
    api, worker = Database(database.dsn(API), API), Database(database.dsn(WORKER), WORKER)
    for ledger_id in ledgers:
        present(api, ledger_id)
    await api.open()
    await worker.open()
    try:
        reading = (
            _by_page(EventReader(api), ledgers, ended),
            _by_all_ledgers_reader(database, AllLedgersReader(worker), ended),
        )
        return list(await asyncio.gather(*reading))
    finally:
        await api.close()
        await worker.close()


async def _by_page(store: EventReader, ledgers: list[int], ended: Callable[[], bool]) -> Seen:
    """Follow ledger by ledger, as a caller of the API does, without pause."""
    seen: Seen = {ledger_id: [] for ledger_id in ledgers}
    while True:
        over = ended()  # asked first: what is there when they have ended is all there is
        found = 0
        for ledger_id, events in seen.items():
            page = await store.page(ledger_id, after=events[-1][0] if events else 0, limit=PAGE)
            events += [(event.position, event.event_id) for event in page]
            found += len(page)
        if over and not found:
            return seen


async def _by_all_ledgers_reader(database: TestDatabase, reader: AllLedgersReader, ended: Callable[[], bool]) -> Seen:
    """Follow all ledgers at once, as views do, woken by each commit."""
    seen: Seen = defaultdict(list)
    woken = asyncio.Event()
    listener = Listener(database.dsn(WORKER), WORKER, woken.set)
    listener.start()
    while True:
        over = ended()
        woken.clear()
        page = await reader.after({ledger_id: events[-1][0] for ledger_id, events in seen.items()}, PAGE)
        for ledger_id, event in page.events:
            seen[ledger_id].append((event.position, event.event_id))
        if over and not page.spans:
            await listener.stop()
            return seen
        if not page.spans:
            try:
                await asyncio.wait_for(woken.wait(), 0.2)
            except TimeoutError:
                continue
