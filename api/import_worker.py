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
from typing import TYPE_CHECKING, Final

from api.import_run import AT_ONCE, Import
from api.imports import Asked, line, row_content, summary_content
from api.sheet_files import SheetError, read_sheets
from domain.values import Actor
from infra.crypto.envelope import MasterKeyError
from infra.crypto.keyring import KeyErased
from infra.errors import KeyNoLongerValid, Unavailable
from infra.imports.runs import MAX_VAIN_STARTS, Cancelled, ImportRuns, StoredSheetAltered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
        if run.vain_starts >= MAX_VAIN_STARTS:
            await self._runs.stop(run, "failed", DIED, started=False)
            return
        try:
            await self._runs.start(run)
            await self._go_on(run, still_leads)
        except (SheetError, StoredSheetAltered, KeyNoLongerValid, KeyErased) as error:
            said = {KeyNoLongerValid: KEY_ENDED, StoredSheetAltered: ALTERED, KeyErased: ERASED}
            await self._runs.stop(run, "failed", said.get(type(error), str(error)))
        except Cancelled:
            await self._runs.stop(run, "cancelled", f"It was cancelled. {_AGAIN}")
        except (Unavailable, MasterKeyError, OSError, asyncio.CancelledError):
            with contextlib.suppress(Exception):  # what interrupted it is raised, and not this
                await self._runs.interrupted(run)
            raise
        except Exception:
            log.exception("Import %s cannot go on", run.import_id)
            await self._runs.stop(run, "failed", DEFECT)

    async def _go_on(self, run: ImportRun, still_leads: Callable[[], Awaitable[None]]) -> None:
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
                actor=Actor(str(run.key_id), run.role),
                policy=asked.policy,
                file=file,
                file_sha256=run.file_sha256,
                options=asked.options,
                import_id=run.import_id,
            )
            await importing.resume(run.counts, NOTED_ROWS + AT_ONCE)
            done = noted = run.rows_done
            lines: list[bytes] = []
            async with contextlib.aclosing(importing.outcomes(goes_on=True)) as found:
                async for outcomes in found:
                    lines += [line(row_content(outcome)) for outcome in outcomes]
                    done += len(outcomes)
                    if done - noted >= NOTED_ROWS:
                        try:
                            await self._runs.reached(run, noted, done, importing.all_counts(), b"".join(lines))
                        except Cancelled:
                            await importing.end_early()
                            raise
                        lines, noted = [], done
                    await still_leads()
            lines.append(line(summary_content(importing)))
            await self._runs.end(run, importing.all_counts(), noted, done, b"".join(lines))


def load(opened: Runtime) -> Callable[[ImportRun, Callable[[], Awaitable[None]]], Awaitable[None]]:
    """Return what carries imports out."""
    return ImportWorker(opened).carry_out
