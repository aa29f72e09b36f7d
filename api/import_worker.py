"""What carries out imports in a worker: those that are too large for one request.

One import at a time is carried out on each server. It records as the key that has sent it, and ends once that key is
not valid any more. How far it is, and what became of its rows, is noted every few hundred rows. If the process ends,
another one goes on from there: rows that were recorded after the last note are known by their events, which name the
import.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from typing import TYPE_CHECKING, Final, Literal

from api.import_run import AT_ONCE, Import, end_unread
from api.imports import Asked, line, row_content, summary_content
from api.sheet_files import SheetError, read_sheets
from domain.values import Actor
from infra.crypto.envelope import MasterKeyError
from infra.crypto.keyring import KeyErased
from infra.errors import KeyNoLongerValid, Unavailable
from infra.imports.runs import MAX_VAIN_STARTS, Cancelled, ImportRuns, Progress, StoredSheetAltered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from api.import_run import RowOutcome
    from infra.imports.runs import ImportRun
    from infra.runtime import Runtime

# Rows between two notes of how far an import is. Those since the last one are judged again after a kill.
NOTED_ROWS: Final = 512
_AGAIN: Final = "What was recorded until then stays. Send the sheet again: rows that are recorded are known."
KEY_ENDED: Final = f"The key that sent this import was revoked or has expired. {_AGAIN}"
ALTERED: Final = "What is stored of this sheet was altered, so nothing more of it is recorded. Send it again."
ERASED: Final = f"An erasure has destroyed the key of the stored sheet, because a row may be the person's. {_AGAIN}"
DIED: Final = f"The worker ended {MAX_VAIN_STARTS} times while it carried this import out. {_AGAIN}"
DEFECT: Final = f"The worker met an error of the program, which its log has. {_AGAIN}"

log = logging.getLogger(__name__)


class ImportWorker:
    """Carries out imports, one after another."""

    def __init__(self, opened: Runtime) -> None:
        """Take a worker's runtime."""
        self._opened = opened
        self._runs = ImportRuns(opened.database, opened.keyring)

    async def carry_out(self, run: ImportRun, still_leads: Callable[[], Awaitable[None]]) -> None:
        """Carry an import out, or go on with it.

        Raises:
            Unavailable: the database is away, or another worker leads; the import goes on later.
            MasterKeyError: a key is missing here; the same.
            OSError: something of this machine is away, or full; the same.

        """
        under_way = _UnderWay(run)
        try:
            stops = await self._start(run)
            if run.vain_starts >= MAX_VAIN_STARTS:
                await self._stop(under_way, "failed", DIED)
                return
            await self._go_on(under_way, still_leads, stops)
        except (SheetError, StoredSheetAltered, KeyNoLongerValid, KeyErased) as error:
            said = {KeyNoLongerValid: KEY_ENDED, StoredSheetAltered: ALTERED, KeyErased: ERASED}
            await self._stop(under_way, "failed", said.get(type(error), str(error)))
        except Cancelled:
            await self._stop(under_way, "cancelled", f"It was cancelled. {_AGAIN}")
        except (Unavailable, MasterKeyError, OSError, asyncio.CancelledError):
            with contextlib.suppress(Exception):  # what interrupted it is raised, and not this
                await self._runs.interrupted(run)
            raise
        except Exception:
            log.exception("Import %s cannot go on", run.import_id)
            await self._stop(under_way, "failed", DEFECT)

    async def _start(self, run: ImportRun) -> Exception | None:
        """Begin with an import; return why nothing more of it is recorded, if another worker has begun it before."""
        try:
            await self._runs.start(run)
        except (Cancelled, KeyNoLongerValid) as error:
            if run.starts == 0:
                raise
            return error
        return None

    async def _go_on(
        self, under_way: _UnderWay, still_leads: Callable[[], Awaitable[None]], stops: Exception | None
    ) -> None:
        run = under_way.run
        with tempfile.TemporaryFile() as stored:
            await self._runs.open(run, stored)
            file = await read_sheets(stored)
        with file:
            asked = Asked.read(run.asked)
            importing = await asyncio.to_thread(
                Import,
                self._opened.aggregates,
                self._opened.handler,
                ledger_id=run.ledger_id,
                actor=under_way.actor,
                policy=asked.policy,
                file=file,
                file_sha256=run.file_sha256,
                options=asked.options,
                import_id=run.import_id,
            )
            await importing.resume(run.counts, NOTED_ROWS + AT_ONCE, stops)
            under_way.importing = importing
            async with contextlib.aclosing(importing.outcomes(goes_on=True)) as found:
                async for outcomes in found:
                    under_way.add(outcomes)
                    if under_way.done - under_way.noted >= NOTED_ROWS:
                        await self._runs.reached(run, under_way.take(importing))
                    await still_leads()
            under_way.lines.append(line(summary_content(importing)))
            await self._runs.end(run, under_way.take(importing))

    async def _stop(self, under_way: _UnderWay, state: Literal["failed", "cancelled"], error: str) -> None:
        """End an import that does not go on: with what was recorded of it, and in the trail while its key is valid."""
        run, importing = under_way.run, under_way.importing
        progress = None
        if importing is not None:
            under_way.add(importing.left)
            if under_way.lines:
                progress = under_way.take(importing)
        try:
            if error != KEY_ENDED:
                await self._end_in_trail(under_way)
        except (Unavailable, MasterKeyError, OSError, asyncio.CancelledError):
            raise
        except KeyNoLongerValid:
            pass  # since a moment ago: then nothing can be recorded
        except Exception:
            # It ends all the same: begun again and again, it would end this worker each time.
            log.exception("The end of import %s cannot be recorded", run.import_id)
        await self._runs.stop(run, state, error, progress)

    async def _end_in_trail(self, under_way: _UnderWay) -> None:
        run = under_way.run
        if under_way.importing is not None:
            await under_way.importing.end_early()
            return
        await end_unread(
            self._opened.aggregates,
            self._opened.handler,
            ledger_id=run.ledger_id,
            actor=under_way.actor,
            import_id=run.import_id,
            counts=run.counts,
        )


class _UnderWay:
    """An import that is carried out: what was done of it since the last note.

    Attributes:
        run: the import as it is stored.
        importing: what judges its rows, once the sheet is read.
        done: how many rows are done; `noted` of them as of the last note.
        lines: the lines of the report since.

    """

    def __init__(self, run: ImportRun) -> None:
        self.run = run
        self.importing: Import | None = None
        self.done = self.noted = run.rows_done
        self.lines: list[bytes] = []

    @property
    def actor(self) -> Actor:
        """Who has sent it."""
        return Actor(str(self.run.key_id), self.run.role)

    def add(self, outcomes: Sequence[RowOutcome]) -> None:
        """Take what became of some rows."""
        self.lines += [line(row_content(outcome)) for outcome in outcomes]
        self.done += len(outcomes)

    def take(self, importing: Import) -> Progress:
        """Return what is to be noted, once."""
        progress = Progress(self.noted, self.done, importing.all_counts(), b"".join(self.lines))
        self.noted, self.lines = self.done, []
        return progress


def load(opened: Runtime) -> Callable[[ImportRun, Callable[[], Awaitable[None]]], Awaitable[None]]:
    """Return what carries imports out."""
    return ImportWorker(opened).carry_out
