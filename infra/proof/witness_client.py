"""Asks witnesses to sign our checkpoints: https://c2sp.org/tlog-witness.

Every `EVERY_S` seconds, each witness is asked to sign the newest checkpoint of each log. The sealer never waits for
that, but for the first round after its start: what witnesses know is what a restored disk cannot take back. A witness
that has signed more than we know of, or another root, stops the sealing of that log.
"""

from __future__ import annotations

import base64
import http.client
import logging
import re
import ssl
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
from cryptography.exceptions import InvalidSignature

from domain.log_tiles import subtree_hash, tile_of
from domain.merkle import InvalidProof, complete_subtrees, consistency_parts, join, verify_consistency
from infra.eventstore.differences import REPORT, RESOLVE
from infra.postgres.pool import SHORT, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from infra.proof.checkpoints import Checkpoint, MalformedCheckpoint
from infra.proof.errors import SealingStopped
from infra.proof.last_checkpoint import LastCheckpoint
from infra.proof.notes import MalformedNote, SignedNote, parse_signatures
from infra.proof.tree_store import TreeStore
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from infra.proof.configured_witness import ConfiguredWitness
    from infra.proof.tree_store import LedgerLog

# The public network of witnesses asks logs for no more than one request in some seconds.
EVERY_S: Final = 15.0
# One request, and a whole round.
REQUEST_S: Final = 5.0
ROUND_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 65_536
# How long the sealer waits for the first round.
FIRST_ROUND_S: Final = 15.0
# How long a client without witnesses sleeps.
IDLE_S: Final = 3_600.0
AWAY_S: Final = 5.0
# A cosignature may be made by a clock that is so much ahead.
CLOCKS_APART_S: Final = 300
# Checkpoints that are kept besides one an hour: the newest.
KEPT: Final = 100

_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n?")

_KNOWN: Final = """
    SELECT size FROM log_witnesses WHERE ledger_id = %s AND generation = %s AND witness = %s
"""
_COSIGNED: Final = """
    INSERT INTO log_witnesses AS w (ledger_id, generation, witness, size, cosigned_at)
    VALUES (%s, %s, %s, %s, to_timestamp(%s))
    ON CONFLICT (ledger_id, generation, witness) DO UPDATE
    SET size = excluded.size, cosigned_at = excluded.cosigned_at, problem = NULL
"""
_PROBLEM: Final = """
    INSERT INTO log_witnesses AS w (ledger_id, generation, witness, size, problem) VALUES (%s, %s, %s, 0, %s)
    ON CONFLICT (ledger_id, generation, witness) DO UPDATE SET problem = excluded.problem
"""
_KEEP: Final = """
    INSERT INTO witnessed_checkpoints AS c (ledger_id, generation, size, note, witnesses, witnessed_at)
    VALUES (%s, %s, %s, %s, %s, clock_timestamp())
    ON CONFLICT (ledger_id, generation, size) DO UPDATE
    SET note = excluded.note, witnesses = excluded.witnesses, witnessed_at = excluded.witnessed_at
    WHERE c.witnesses <= excluded.witnesses
"""
# The first of each hour stays.
_KEPT_NOTE: Final = "SELECT note FROM witnessed_checkpoints WHERE ledger_id = %s AND generation = %s AND size = %s"
_KEEP_KEY: Final = "INSERT INTO witness_keys (ledger_id, verifier_key) VALUES (%s, %s) ON CONFLICT DO NOTHING"
_PURGE: Final = """
    DELETE FROM witnessed_checkpoints c
    WHERE c.ledger_id = %(ledger)s AND c.generation = %(generation)s
    AND c.size < (
        SELECT x.size FROM witnessed_checkpoints x
        WHERE x.ledger_id = %(ledger)s AND x.generation = %(generation)s
        ORDER BY x.size DESC OFFSET %(kept)s LIMIT 1
    )
    AND EXISTS (
        SELECT FROM witnessed_checkpoints x
        WHERE x.ledger_id = c.ledger_id AND x.generation = c.generation AND x.size < c.size
        AND date_trunc('hour', x.witnessed_at) = date_trunc('hour', c.witnessed_at)
    )
"""
_FORGET: Final = "DELETE FROM log_witnesses WHERE NOT witness = ANY (%s)"
# Nobody contradicts any more.
_RESOLVE_ALL: Final = """
    UPDATE log_differences SET resolved_at = clock_timestamp() WHERE part = 'witnesses' AND resolved_at IS NULL
"""
_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"

log = logging.getLogger(__name__)


class WitnessAway(Exception):
    """The witness did not answer, or answered nothing that the protocol has."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a witness is asked to sign, and how it can be proven that it continues what it has signed."""

    ledger: LedgerLog
    note: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a witness answered: a signature, the size that it knows, or a refusal."""

    witness: ConfiguredWitness
    line: str | None = None
    at: int = 0
    contradiction: str | None = None
    problem: str | None = None


class WitnessClient:
    """Asks all witnesses, for as long as it runs."""

    def __init__(
        self,
        conninfo: str,
        signing_dir: Path,
        witnesses: Sequence[ConfiguredWitness],
        stop: Callable[[tuple[int, int], str | None], None],
        asked_all: threading.Event,
    ) -> None:
        """Take the database, the sealer's directory, the witnesses, and what stops the sealing of a log.

        `asked_all` is set once every witness was asked for the first time.
        """
        self._session = session(conninfo, WORKER) | {
            "target_session_attrs": "primary",
            "application_name": "sparkledger witnesses",
        }
        self._directory = signing_dir
        self._witnesses = witnesses
        self._stop = stop
        self._busy: dict[str, Future[_Answered]] = {}
        self._begun: set[tuple[str, tuple[int, int]]] = set()
        self._executor = ThreadPoolExecutor(max(1, len(witnesses)), "witness")
        self._tls = ssl.create_default_context()
        self._asked_all = asked_all

    def run(self) -> None:
        """Ask until the process ends. While the database is away, it retries."""
        while True:
            try:
                with ServerConnection.connect(**self._session) as connection:
                    while not self._leads(connection):
                        self._asked_all.set()
                        time.sleep(AWAY_S)
                    connection.execute(_FORGET, ([one.key.name for one in self._witnesses],))
                    if not self._witnesses:
                        connection.execute(_RESOLVE_ALL)
                        self._asked_all.set()
                    while True:
                        began = time.monotonic()
                        self.round(connection)
                        self._asked_all.set()
                        time.sleep(max(0.0, began + EVERY_S - time.monotonic()) if self._witnesses else IDLE_S)
            except (*SHORT, OSError) as error:
                log.warning("Witnesses are asked later: %s", " ".join(str(error).split()))
                time.sleep(AWAY_S)

    def round(self, connection: psycopg.Connection) -> None:
        """Ask each witness to sign the newest checkpoint of each log."""
        store = TreeStore(connection)
        for ledger in store.ledgers() if self._witnesses else []:
            asked = self._newest(store, ledger)
            if asked is not None:
                self._ask_all(connection, asked)

    def _ask_all(self, connection: psycopg.Connection, asked: _Asked) -> None:
        ledger = asked.ledger
        pending: list[Future[_Answered]] = []
        for witness in self._witnesses:
            busy = self._busy.get(witness.key.name)
            if busy is not None and not busy.done():
                continue  # it has not answered the last request yet, which may be of another log
            row = connection.execute(_KNOWN, (ledger.ledger_id, ledger.generation, witness.key.name)).fetchone()
            old = 0 if row is None else int(row[0])
            first = (witness.key.name, (ledger.ledger_id, ledger.generation)) not in self._begun
            if old == asked.checkpoint.size and row is not None and not first:
                continue
            # With a cursor of its own: the thread may still read when the round is over.
            steps = _Steps(TreeStore(connection), ledger, asked.checkpoint.size)
            future = self._executor.submit(self._ask, witness, asked, min(old, asked.checkpoint.size), steps)
            self._busy[witness.key.name] = future
            pending.append(future)
        done, _ = wait(pending, ROUND_S)
        answers = [future.result() for future in done]
        self._note(connection, asked, answers)

    def _note(self, connection: psycopg.Connection, asked: _Asked, answers: Sequence[_Answered]) -> None:
        """Write down what witnesses have signed, and stop the log if one contradicts it."""
        ledger = asked.ledger
        place = (ledger.ledger_id, ledger.generation)
        lines: list[str] = []
        for answer in answers:
            name = answer.witness.key.name
            if answer.line is not None:
                lines.append(answer.line)
                self._begun.add((name, place))
                connection.execute(_COSIGNED, (*place, name, asked.checkpoint.size, answer.at))
                connection.execute(_KEEP_KEY, (ledger.ledger_id, answer.witness.key.text))
                continue
            problem = answer.contradiction or answer.problem
            log.warning("Witness %s has not signed the log of ledger %s: %s", name, ledger.name, problem)
            connection.execute(_PROBLEM, (*place, name, problem))
        contradiction = next((answer.contradiction for answer in answers if answer.contradiction), None)
        if contradiction is not None:
            self._stop(place, contradiction)
            row = (*place, "witnesses", None, "log_trees", contradiction, None)
            if connection.execute(REPORT, row).fetchone() is not None:
                log.error("%s The log is not sealed until that is resolved.", contradiction)
        elif len(lines) == len(self._witnesses):
            self._stop(place, None)
            connection.execute(RESOLVE, (*place, "witnesses"))
        if lines:
            kept = connection.execute(_KEPT_NOTE, (*place, asked.checkpoint.size)).fetchone()
            note, count = _with_cosignatures(asked.note if kept is None else kept[0], lines)
            connection.execute(_KEEP, (*place, asked.checkpoint.size, note, count))
            purge = {"ledger": ledger.ledger_id, "generation": ledger.generation, "kept": KEPT}
            connection.execute(_PURGE, purge)

    def _newest(self, store: TreeStore, ledger: LedgerLog) -> _Asked | None:
        """Return the checkpoint to be signed, which is the one that is served; None before there is one."""
        served = store.served(ledger)
        if served is None:
            return None
        note, size, _ = served
        try:
            checkpoint = Checkpoint.parse(note.partition("\n\n")[0].encode() + b"\n")
        except MalformedCheckpoint:
            return None
        return _Asked(ledger, note, checkpoint) if checkpoint.size == size else None

    def _ask(self, witness: ConfiguredWitness, asked: _Asked, old: int, steps: _Steps) -> _Answered:
        """Ask one witness; whatever is wrong becomes an answer."""
        try:
            return self._asked(witness, asked, old, steps)
        except WitnessAway as error:
            return _Answered(witness, problem=str(error))
        except (OSError, http.client.HTTPException, psycopg.Error) as error:
            return _Answered(witness, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _asked(self, witness: ConfiguredWitness, asked: _Asked, old: int, steps: _Steps) -> _Answered:
        """Ask one witness, and once more if it knows another size than we thought."""
        for _ in range(2):
            proof = steps.proof(old)
            if proof is None:
                raise WitnessAway("Our own tiles do not prove that the log continues.")
            lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof)
            status, body = self._post(witness, f"old {old}\n{lines}\n{asked.note}".encode())
            if status == http.client.OK:
                return self._cosignature(witness, asked.checkpoint, body)
            if status == http.client.UNPROCESSABLE_ENTITY:
                message = (
                    f"Witness {witness.key.name} has signed another log of ledger {asked.ledger.name} with {old} "
                    "events: this one does not continue it."
                )
                return _Answered(witness, contradiction=message)
            size = _SIZE.fullmatch(body)
            if status != http.client.CONFLICT or size is None:
                raise WitnessAway(f"It answered with status {status}.")
            old = int(size[1])
            if old > asked.checkpoint.size:
                return self._larger(witness, asked, old)
        raise WitnessAway("It changes the size that it knows.")

    def _larger(self, witness: ConfiguredWitness, asked: _Asked, size: int) -> _Answered:
        """Return what it means that a witness knows a larger log: nothing, if that was signed a moment ago."""
        ledger = asked.ledger
        try:
            signed = LastCheckpoint(self._directory, ledger.log_id, ledger.generation).read()
        except SealingStopped:
            signed = None
        if signed is not None and signed.size >= size:
            return _Answered(witness, problem=f"It knows {size} events already.")
        message = (
            f"Witness {witness.key.name} has signed the log of ledger {ledger.name} with {size} events, which is more "
            "than was ever signed here. An older state of the database and of the sealer's directory was restored. If "
            "the witness is wrong, remove it from SPARKLEDGER_WITNESSES."
        )
        return _Answered(witness, contradiction=message)

    def _cosignature(self, witness: ConfiguredWitness, checkpoint: Checkpoint, body: bytes) -> _Answered:
        """Return the cosignature of an answer, once it is verified."""
        try:
            signatures = parse_signatures(body)
        except MalformedNote as error:
            return _Answered(witness, problem=f"Its answer is malformed: {error}")
        for signature in SignedNote(checkpoint, signatures).by(witness.key):
            try:
                at = witness.key.signed_at(checkpoint, signature)
            except InvalidSignature:
                return _Answered(witness, problem="Its signature is not valid.")
            if at is None or abs(at - time.time()) > CLOCKS_APART_S:
                return _Answered(witness, problem="The time of its signature is not the present time.")
            return _Answered(witness, line=signature.line, at=at)
        return _Answered(witness, problem="Its answer has no signature of the key that is configured.")

    def _post(self, witness: ConfiguredWitness, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(witness.url)
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(url.netloc, timeout=REQUEST_S, context=self._tls)
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=REQUEST_S)
        try:
            connection.request("POST", f"{url.path.rstrip('/')}/add-checkpoint", body)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES + 1)
            if len(answer) > MAX_ANSWER_BYTES:
                raise WitnessAway("The answer is too long.")
            return response.status, answer
        finally:
            connection.close()

    def _leads(self, connection: psycopg.Connection) -> bool:
        row = connection.execute(_LEAD, (AdvisoryLock.WITNESSES,)).fetchone()
        return row is not None and bool(row[0])


def _with_cosignatures(note: str, lines: Sequence[str]) -> tuple[str, int]:
    """Return a note with more cosignatures, and how many it has then.

    Of each witness the first one stays: the earlier it saw the checkpoint, the better its time bounds that of events.
    """
    parsed = SignedNote.parse(note.encode())
    kept = [one for one in parsed.signatures if one.name != parsed.checkpoint.origin]
    known = {(one.name, one.key_id) for one in kept}
    fresh = [one for one in parse_signatures("".join(lines).encode()) if (one.name, one.key_id) not in known]
    return f"{note}{''.join(one.line for one in fresh)}", len(kept) + len(fresh)


class _Steps:
    """Consistency proofs to one size, from the tiles; each is verified before it is sent."""

    def __init__(self, store: TreeStore, ledger: LedgerLog, size: int) -> None:
        self._store = store
        self._ledger = ledger
        self._size = size

    def proof(self, old: int) -> list[bytes] | None:
        """Return the proof, or None if the tiles do not give one."""
        if old in {0, self._size}:
            return []
        parts = consistency_parts(old, self._size)
        try:
            hashes = [self._hash(part) for part in parts]
            roots = self._hash(range(old)), self._hash(range(self._size))
            verify_consistency(old, self._size, *roots, hashes)
        except (LookupError, InvalidProof):
            return None
        return hashes

    def _hash(self, part: range) -> bytes:
        subtrees = complete_subtrees(part)
        tiles = self._store.tiles(self._ledger, {tile_of(subtree)[0] for subtree in subtrees})
        return join([subtree_hash(subtree, tiles) for subtree in subtrees])
