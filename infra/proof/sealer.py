"""The sealer: it adds recorded events to the signed log of their ledger, and signs its checkpoints.

One step of one ledger, in this order, so that a crash at any point loses nothing and nothing signed is contradicted:

    look again     the rows of the last tile must still have the hashes that were sealed
    grow           tiles and size in one transaction, which compares the size before
    keep           the checkpoint is on disk outside the database before it is signed
    sign, publish  a checkpoint has no time, so signing it again after a crash is harmless

One sealer leads: it holds an advisory lock of the primary. Two that believe to lead, because one was paused, still
cannot harm: the size, the checkpoint that was kept and the one that is served only move forward. If anything
contradicts what was signed, sealing of that ledger stops and says why. Commands go on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg

from domain.log_entry import UnencodableEvent, entry_of
from domain.log_tiles import WIDTH, TreeEdge, subtree_hash, tile_of
from domain.merkle import EMPTY_ROOT, complete_subtrees, join, leaf_hash
from infra.eventstore.notifications import CHANNEL
from infra.postgres.pool import SHORT, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from infra.proof.checkpoints import MAX_ORIGIN_BYTES, Checkpoint, LogSigners
from infra.proof.errors import Overtaken, SealingStopped
from infra.proof.last_checkpoint import LastCheckpoint
from infra.proof.log_keys import active_keys, retired_keys
from infra.proof.signing_keys import create_signer, destroy_pairs, load_signer
from infra.proof.tree_store import LedgerLog, TreeStore, last_tile
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from domain.log_entry import StoredEvent

# Events that a step adds at most, so that other ledgers get their turn and checkpoints appear while it catches up.
MAX_EVENTS: Final = 8_192
# The shortest time between two checkpoints of a ledger that has no backlog.
CHECKPOINT_EVERY_S: Final = 0.5
# How often it looks without being notified.
POLL_S: Final = 1.0
# How often a sealer that does not lead tries to.
LEAD_EVERY_S: Final = 1.0
AWAY_S: Final = 1.0
# How often a stopped ledger is looked at from the start: an operator may have restored what was missing.
STOPPED_AGAIN_S: Final = 60.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s), pg_is_in_recovery()"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SealerSettings:
    """What an operator chooses.

    Attributes:
        signing_dir: the directory of the signing keys and the last checkpoints, files for each ledger.
        log_name: the beginning of the origins of logs that begin; None for one that no other installation has.
        public_logs: the names of the ledgers whose log everyone may read.

    """

    signing_dir: Path
    log_name: str | None = None
    public_logs: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Sealed:
    """A log as this sealer has checked and continued it.

    Attributes:
        last: the leaf hashes of the last tile, whose first leaf is `last_first`.
        unpublished: whether the tree is larger than the checkpoint that is served.
        changed: whether something happened to the log itself, so that it must be opened again: to its keys, perhaps.

    """

    signer: LogSigners
    last_signed: LastCheckpoint
    edge: TreeEdge
    last_first: int
    last: list[bytes]
    unpublished: bool
    changed: bool = False


class Sealer:
    """Seals all ledgers, for as long as it runs."""

    def __init__(
        self, conninfo: str, settings: SealerSettings, before_signing: Callable[[], object] = lambda: None
    ) -> None:
        """Take the database, as a login that is or may become the worker's role.

        `before_signing` is called when this sealer begins to lead, and may wait for a moment.
        """
        self._session = session(conninfo, WORKER) | {
            "target_session_attrs": "primary",
            "application_name": "sparkledger sealer",
        }
        self._settings = settings
        self._sealed: dict[tuple[int, int], _Sealed] = {}
        self._stopped: dict[tuple[int, int], float] = {}
        self._differences: dict[tuple[str, tuple[int, int]], str] = {}
        self._before_signing = before_signing

    def differs(self, source: str, log: tuple[int, int], reason: str | None) -> None:
        """Take the reason why a log, by ledger and generation, must not be sealed; None if there is none any more.

        It is also in the database, where others write what they find. Somebody who changes the database can remove it
        there, and not here. Each `source` has a reason of its own.
        """
        if reason is None:
            self._differences.pop((source, log), None)
        else:
            self._differences[source, log] = reason

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Lead and seal, until an exception ends it. While the database is away, it retries."""
        away = False
        while True:
            try:
                with ServerConnection.connect(**self._session) as connection:
                    started()
                    away = False
                    self.lead(connection)
            except (*SHORT, Overtaken) as error:
                if not away:
                    log.warning("The sealer is delayed: %s", str(error).strip())
                away = isinstance(error, SHORT)
                time.sleep(AWAY_S)

    def lead(self, connection: psycopg.Connection) -> None:
        """Become the leader, and seal for as long as the session lasts."""
        while not leads(connection):
            time.sleep(LEAD_EVERY_S)
        # Another sealer may have led meanwhile. A tree of its that is on no standby yet must not be signed.
        connection.execute("SELECT confirm_commits()")
        self._sealed.clear()
        self._stopped.clear()
        self._before_signing()
        connection.execute(f"LISTEN {CHANNEL}")
        store = TreeStore(connection)
        while True:
            began = time.monotonic()
            if self.step(store):
                continue
            _wait_for_events(connection, began)

    def step(self, store: TreeStore) -> bool:
        """Seal up to `MAX_EVENTS` of each ledger; return whether a ledger has more."""
        more = False
        for ledger in store.ledgers():
            key = (ledger.ledger_id, ledger.generation)
            if self._stopped.get(key, 0.0) > time.monotonic():
                continue
            try:
                more |= self._seal(store, ledger)
            except (SealingStopped, OSError) as error:
                self._stop(store, ledger, str(error))
        return more

    def _seal(self, store: TreeStore, ledger: LedgerLog) -> bool:
        key = (ledger.ledger_id, ledger.generation)
        found = [reason for (_, differs), reason in list(self._differences.items()) if differs == key]
        difference = found[0] if found else ledger.difference
        if difference is not None:
            raise SealingStopped(difference)
        known = self._sealed.get(key)
        sealed = known or self._open(store, ledger)
        if ledger.head < sealed.edge.size:
            raise SealingStopped(_lost(ledger, sealed.edge.size))
        if ledger.head > sealed.edge.size:
            # Until it is written, what is in memory is ahead of it.
            self._sealed.pop(key, None)
            self._grow(store, ledger, sealed)
        if sealed.unpublished:
            self._publish(store, ledger, sealed)
        if known is None:
            store.resume(ledger, public=self._is_public(ledger))
            if self._stopped.pop(key, None) is not None:
                log.info("The log of ledger %s is sealed again.", ledger.name)
        if sealed.changed:
            self._sealed.pop(key, None)
        else:
            self._sealed[key] = sealed
        return sealed.changed or ledger.head > sealed.edge.size

    def _grow(self, store: TreeStore, ledger: LedgerLog, sealed: _Sealed) -> None:
        """Add the next events, after looking again at those of the last tile."""
        before = sealed.edge.size
        events = store.events(ledger, sealed.last_first, len(sealed.last) + MAX_EVENTS)
        leaves = _leaves(ledger, events, sealed.last_first)
        for position, (leaf, known) in enumerate(zip(leaves, sealed.last, strict=False), sealed.last_first + 1):
            if leaf != known:
                message = (
                    f"Event {position} of ledger {ledger.name} is not the one that was sealed. Its row was changed, or "
                    "an older state of the database was restored."
                )
                raise SealingStopped(message)
        if len(leaves) < len(sealed.last):
            raise SealingStopped(_lost(ledger, before))
        new = leaves[len(sealed.last) :]
        sealed.changed = any(event.stream_id == ledger.log_id for event in events[len(sealed.last) :])
        tiles = sealed.edge.grow(new)
        store.grow(ledger, before, sealed.edge, tiles)
        size = sealed.edge.size
        first = (size - 1) // WIDTH * WIDTH
        sealed.last = leaves[first - sealed.last_first :]
        sealed.last_first = first
        sealed.unpublished = True

    def _publish(self, store: TreeStore, ledger: LedgerLog, sealed: _Sealed) -> None:
        """Keep, sign and publish the tree as it is now."""
        checkpoint = Checkpoint(sealed.signer.origin, sealed.edge.size, sealed.edge.root)
        sealed.last_signed.advance(checkpoint)
        store.publish(ledger, sealed.signer.sign(checkpoint, int(time.time())), checkpoint.size)
        sealed.unpublished = False

    def _open(self, store: TreeStore, ledger: LedgerLog) -> _Sealed:
        """Check what is stored of a log against the checkpoint that was signed last, or begin the log."""
        last_signed = LastCheckpoint(self._settings.signing_dir, ledger.log_id, ledger.generation)
        tree = store.tree(ledger)
        if tree is None:
            return self._begin(store, ledger, last_signed)
        signed = last_signed.read()
        if signed is None:
            message = (
                f"The file {last_signed.path} with the last checkpoint of ledger {ledger.name} is missing. Without it "
                "nothing shows whether the database is the one that was signed. Restore it."
            )
            raise SealingStopped(message)
        present = load_signer(self._settings.signing_dir, ledger.log_id, tree.origin)
        changes = store.key_changes(ledger, tree.size)
        active = active_keys(tree.verifier_keys, changes, ledger.generation)
        try:
            signer = present.only(active)
        except LookupError:
            message = f"The signing key of ledger {ledger.name} is not the one that its log began with. Restore that."
            raise SealingStopped(message) from None
        if signed.origin != tree.origin:
            message = (
                f"The checkpoint in {last_signed.path} belongs to the log {signed.origin}, and not to {tree.origin}."
            )
            raise SealingStopped(message)
        if signed.size > tree.size:
            raise SealingStopped(_older(ledger, signed.size))
        edge = self._edge(store, ledger, tree.size)
        if edge.root != tree.root or self._root_at(store, ledger, signed.size) != signed.root:
            message = f"The tiles of ledger {ledger.name} do not lead to the root that was signed at {signed.size}."
            raise SealingStopped(message)
        first, last = last_tile(store, ledger, tree.size)
        sealed = _Sealed(signer, last_signed, edge, first, last, tree.checkpoint_size != tree.size)
        if active != tree.verifier_keys:
            self._change_keys(store, ledger, sealed, present, tree.verifier_keys)
        if retired := retired_keys(changes, ledger.generation):
            destroy_pairs(self._settings.signing_dir, ledger.log_id, tree.origin, retired)
        return sealed

    def _change_keys(
        self, store: TreeStore, ledger: LedgerLog, sealed: _Sealed, present: LogSigners, before: list[str]
    ) -> None:
        """Sign the tree with the keys of before and after, so that those who have the old ones can follow."""
        checkpoint = Checkpoint(sealed.signer.origin, sealed.edge.size, sealed.edge.root)
        after = sealed.signer.verifier_keys
        try:
            both = present.only({*before, *after})
        except LookupError:
            message = f"A signing key of ledger {ledger.name} that is to be replaced is missing. Restore it."
            raise SealingStopped(message) from None
        sealed.last_signed.advance(checkpoint)
        at = int(time.time())
        store.change_keys(ledger, before, after, (both.sign(checkpoint, at), sealed.signer.sign(checkpoint, at)))
        sealed.unpublished = False
        log.info("The log of ledger %s is signed by other keys from %s events on.", ledger.name, checkpoint.size)

    def _begin(self, store: TreeStore, ledger: LedgerLog, last_signed: LastCheckpoint) -> _Sealed:
        """Begin a log: key and checkpoint first, so that a tree that is stored always has both."""
        name = self._settings.log_name or f"sparkledger.invalid/{ledger.log_id}"
        origin = f"{name}/{ledger.name}/{ledger.generation}"
        if len(origin.encode()) > MAX_ORIGIN_BYTES:
            message = f"The origin {origin} has more than {MAX_ORIGIN_BYTES} bytes. Shorten SPARKLEDGER_LOG_NAME."
            raise SealingStopped(message)
        signed = last_signed.read()
        directory = self._settings.signing_dir
        if signed is None:
            signer = create_signer(directory, ledger.log_id, origin)
            last_signed.advance(Checkpoint(origin, 0, EMPTY_ROOT))
        else:
            signer = load_signer(directory, ledger.log_id, origin)
        store.begin(ledger, origin, signer.verifier_keys, EMPTY_ROOT, public=self._is_public(ledger))
        if signed is not None and signed.size > 0:
            raise SealingStopped(_older(ledger, signed.size))
        return _Sealed(signer, last_signed, TreeEdge(), 0, [], unpublished=True)

    def _is_public(self, ledger: LedgerLog) -> bool:
        return ledger.name in self._settings.public_logs

    def _edge(self, store: TreeStore, ledger: LedgerLog, size: int) -> TreeEdge:
        try:
            return TreeEdge.from_tiles(size, store.tiles(ledger, TreeEdge.tiles_of(size)))
        except LookupError as error:
            raise SealingStopped(f"The tiles of ledger {ledger.name} are incomplete: {error}.") from error

    def _root_at(self, store: TreeStore, ledger: LedgerLog, size: int) -> bytes:
        subtrees = complete_subtrees(range(size))
        tiles = store.tiles(ledger, {tile_of(subtree)[0] for subtree in subtrees})
        try:
            return join([subtree_hash(subtree, tiles) for subtree in subtrees])
        except LookupError as error:
            raise SealingStopped(f"The tiles of ledger {ledger.name} are incomplete: {error}.") from error

    def _stop(self, store: TreeStore, ledger: LedgerLog, reason: str) -> None:
        key = (ledger.ledger_id, ledger.generation)
        self._sealed.pop(key, None)
        if key not in self._stopped:
            log.error("The log of ledger %s is not sealed any more: %s", ledger.name, reason)
        self._stopped[key] = time.monotonic() + STOPPED_AGAIN_S
        store.stop(ledger, reason)


def _leaves(ledger: LedgerLog, events: Sequence[StoredEvent], after: int) -> list[bytes]:
    """Return the leaf hashes of events, which must follow on `after` without a gap."""
    leaves: list[bytes] = []
    for position, event in enumerate(events, after + 1):
        if event.position != position:
            raise SealingStopped(f"Event {position} of ledger {ledger.name} is missing.")
        try:
            leaves.append(leaf_hash(entry_of(ledger.log_id, event)))
        except UnencodableEvent as error:
            raise SealingStopped(f"Event {position} of ledger {ledger.name} cannot be sealed: {error}.") from error
    return leaves


def _lost(ledger: LedgerLog, size: int) -> str:
    return (
        f"Ledger {ledger.name} had {size} events when its log was signed, and has lost some. An older state of the "
        "database was restored, or a standby that lacked events was promoted."
    )


def _older(ledger: LedgerLog, size: int) -> str:
    return (
        f"The log of ledger {ledger.name} was signed at {size} events, and the log in the database is older. An older "
        "state of the database was restored, or a standby that lacked events was promoted."
    )


def leads(connection: psycopg.Connection) -> bool:
    """Tell whether the session leads now: it holds the lock of sealers, and its server takes writes."""
    row = connection.execute(_LEAD, (AdvisoryLock.SEALER,)).fetchone()
    return row is not None and row[0] and not row[1]


def _wait_for_events(connection: psycopg.Connection, began: float) -> None:
    """Wait for a notification or the next poll, and at least until the next checkpoint may be made."""
    for _ in connection.notifies(timeout=POLL_S, stop_after=1):
        pass
    time.sleep(max(0.0, began + CHECKPOINT_EVERY_S - time.monotonic()))
