"""The watcher: it keeps looking whether the stored logs are what was signed.

Once a minute, it compares what was sealed since, and the roots. The rest of each minute it goes on with its passes:
each compares every row of a log, from the first on. It rests so long between stretches that it takes a twentieth of a
processor. So a small log is compared once a minute, and one with 10 million events once in about an hour and a half.

The first difference of a log stops its sealer, until a complete pass finds none. It runs in the sealer's process, on a
session of its own. It needs the directory of the sealer, for the checkpoint that was signed last, and no master key.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import psycopg

from domain.merkle import HASH_BYTES
from infra.eventstore.differences import CHECKED, REPORT, RESOLVE, Difference
from infra.postgres.pool import SHORT, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from infra.proof.checkpoints import Checkpoint
from infra.proof.errors import SealingStopped
from infra.proof.last_checkpoint import LastCheckpoint
from infra.proof.log_check import LogCheck, Pass
from infra.proof.signing_keys import load_signer
from infra.proof.tree_store import TreeStore
from infra.proof.verified_tiles import VerifiedTiles
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.eventstore.differences import Part
    from infra.proof.tree_store import LedgerLog

MINUTE_S: Final = 60.0
# How much longer than the work the rest after it is.
REST_SHARE: Final = 19
AWAY_S: Final = 5.0
LEAD_EVERY_S: Final = 5.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"

log = logging.getLogger(__name__)

Key = tuple[int, int]


@dataclass(slots=True)
class _Watched:
    """What is known of a log while this process watches it.

    Attributes:
        new_from: how far rows that were sealed lately have been compared.
        unserved: what had been signed a minute ago and was not served yet; None if all was.
        under_way: the present pass; None between two.
        covered: how far the last complete pass went, and `covered_since` when it began.
        tiles: the hashes of full tiles that were right in a complete pass.
        open: the parts with a difference that no complete pass has found resolved.
        wrong: the part that the last look at what is new has found a difference of; a pass cannot resolve that.

    """

    tiles: bytes
    new_from: int | None = None
    unserved: int | None = None
    under_way: Pass | None = None
    found: bytearray = field(default_factory=bytearray)
    covered: int = 0
    covered_since: datetime | None = None
    open: dict[Part, Difference] = field(default_factory=dict)
    wrong: Part | None = None


class Watcher:
    """Watches all logs, for as long as it runs."""

    def __init__(self, conninfo: str, signing_dir: Path, stop: Callable[[Key, str | None], None]) -> None:
        """Take the database and the sealer's directory.

        Args:
            conninfo: the database, as a login that is or may become the worker's role.
            signing_dir: the directory with the checkpoints that were signed last.
            stop: called with the reason why a log must not be sealed, and with None once there is none any more.

        """
        self._session = session(conninfo, WORKER) | {
            "target_session_attrs": "primary",
            "application_name": "sparkledger watcher",
        }
        self._directory = signing_dir
        self._stop = stop
        self._watched: dict[Key, _Watched] = {}
        self._named: dict[bytes, str | None] = {}

    def run(self) -> None:
        """Watch until the process ends. While the database is away, it retries."""
        while True:
            try:
                with ServerConnection.connect(**self._session) as connection:
                    while not _leads(connection):
                        time.sleep(LEAD_EVERY_S)
                    while True:
                        self.minute(connection, time.sleep)
            except (*SHORT, OSError) as error:
                log.warning("The watcher waits: %s", " ".join(str(error).split()))
                time.sleep(AWAY_S)

    def minute(self, connection: psycopg.Connection, rest: Callable[[float], None]) -> None:
        """Compare what is new, then go on with the passes until the minute is over."""
        ends = time.monotonic() + MINUTE_S
        store = TreeStore(connection)
        check = LogCheck(connection, store, self._named)
        ledgers = [ledger for ledger in store.ledgers() if self._new(connection, store, check, ledger)]
        self._forget_others(ledgers)
        going_on = ledgers
        while going_on and time.monotonic() < ends:
            going_on = [ledger for ledger in going_on if self._go_on(connection, check, ledger, rest)]
        if time.monotonic() < ends:
            rest(ends - time.monotonic())

    def _new(self, connection: psycopg.Connection, store: TreeStore, check: LogCheck, ledger: LedgerLog) -> bool:
        """Compare roots, and the rows that were sealed since; return whether the log has begun."""
        signed = self._last_signed(store, ledger)
        if signed is None:
            return False
        checkpoint, resigned = signed
        known = self._watched.get(_key(ledger))
        if known is None:
            known = self._watched[_key(ledger)] = _Watched(self._verified(ledger).read())
        difference = check.roots(ledger, checkpoint, resigned) or _not_served(store, ledger, known, checkpoint)
        after = checkpoint.size if known.new_from is None else known.new_from
        while difference is None and after < checkpoint.size:
            leaves, difference = check.stretch(ledger, after, checkpoint.size)
            after += len(leaves)
        known.wrong = None if difference is None else difference.part
        if difference is not None:
            self._report(connection, ledger, known, difference)
        known.new_from = after
        if known.under_way is None:
            known.under_way = Pass(checkpoint.size, checkpoint.root, datetime.now(UTC))
            known.found = bytearray()
        return True

    def _go_on(
        self, connection: psycopg.Connection, check: LogCheck, ledger: LedgerLog, rest: Callable[[float], None]
    ) -> bool:
        """Go on with the pass over a log; return whether it is still under way."""
        known = self._watched[_key(ledger)]
        one = known.under_way
        if one is None:
            return False
        began = time.thread_time()
        difference = check.advance(ledger, one, known.found, known.tiles)
        if difference is not None:
            self._report(connection, ledger, known, difference)
            known.under_way = None
        elif one.complete:
            self._completed(connection, ledger, known, one)
        covered_since = known.covered_since
        for part in ("events", "tree", "keys"):
            progress = (ledger.ledger_id, ledger.generation, part, one.began_at, one.edge.size, covered_since)
            connection.execute(CHECKED, progress)
        rest(REST_SHARE * (time.thread_time() - began))
        return known.under_way is not None

    def _completed(self, connection: psycopg.Connection, ledger: LedgerLog, known: _Watched, one: Pass) -> None:
        known.under_way, known.covered, known.covered_since = None, one.size, one.began_at
        if known.found != known.tiles and len(known.found) >= HASH_BYTES:
            known.tiles = bytes(known.found)
            try:
                self._verified(ledger).write(known.tiles)
            except OSError as error:
                log.warning("What was compared of ledger %s cannot be noted: %s", ledger.name, error.strerror)
        for part in ("events", "tree", "keys"):
            if part == known.wrong:
                continue
            known.open.pop(part, None)
            row = connection.execute(RESOLVE, (ledger.ledger_id, ledger.generation, part)).fetchone()
            if row is not None:
                log.warning("Ledger %s is as it was signed again. Before: %s", ledger.name, row[0])
        if not known.open:
            self._stop(_key(ledger), None)

    def _report(
        self, connection: psycopg.Connection, ledger: LedgerLog, known: _Watched, difference: Difference
    ) -> None:
        """Say what was found first, and let the log not be sealed."""
        part, position, place, message = difference
        if part in known.open:
            return
        known.open[part] = difference
        was_right = known.covered_since if position is None or position <= known.covered else None
        row = (ledger.ledger_id, ledger.generation, part, position, place, message, was_right)
        self._stop(_key(ledger), message)
        since = "" if was_right is None else f" It was right at {was_right:%Y-%m-%d %H:%M:%S} UTC."
        log.error("%s%s The log is not sealed until that is resolved.", message, since)
        connection.execute(REPORT, row)

    def _last_signed(self, store: TreeStore, ledger: LedgerLog) -> tuple[Checkpoint, str] | None:
        """Return the checkpoint that was signed last, and its signed note; None where the sealer must look first."""
        tree = store.tree(ledger)
        if tree is None:
            return None
        try:
            signed = LastCheckpoint(self._directory, ledger.log_id, ledger.generation).read()
            if signed is None or signed.size > tree.size or signed.origin != tree.origin:
                return None
            signer = load_signer(self._directory, ledger.log_id, tree.origin)
            return signed, signer.sign(signed, int(time.time()))
        except (SealingStopped, OSError):
            return None

    def _verified(self, ledger: LedgerLog) -> VerifiedTiles:
        return VerifiedTiles(self._directory, ledger.log_id, ledger.generation)

    def _forget_others(self, ledgers: list[LedgerLog]) -> None:
        """Forget logs that are not sealed any more: of earlier generations, and of ledgers that are gone."""
        present = {_key(ledger) for ledger in ledgers}
        for key in self._watched.keys() - present:
            del self._watched[key]


def _not_served(store: TreeStore, ledger: LedgerLog, known: _Watched, signed: Checkpoint) -> Difference | None:
    """Return that an older checkpoint is served than was signed a minute ago: what is signed is published at once."""
    served = store.served(ledger)
    size = -1 if served is None else served[1]
    overdue = known.unserved is not None and size < known.unserved
    known.unserved = signed.size if size < signed.size else None
    if not overdue:
        return None
    message = f"The checkpoint of ledger {ledger.name} that is served is older than the one that was signed last."
    return Difference("tree", None, "log_trees.checkpoint", message)


def _key(ledger: LedgerLog) -> Key:
    return ledger.ledger_id, ledger.generation


def _leads(connection: psycopg.Connection) -> bool:
    row = connection.execute(_LEAD, (AdvisoryLock.WATCHER,)).fetchone()
    return row is not None and bool(row[0])
