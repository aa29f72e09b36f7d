"""Group commit: one writer merges every append that waits into one call of `append` and one commit.

No timer decides a batch: it is what came in while the last one committed. Each caller gets an answer of its own; a
refusal, a replay or a bad row of one never touches another. A connection lost in mid-commit is resolved by looking,
never by guessing: the old session is ended first, then each caller's events are looked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from infra.database import APPENDING, SHORT, LedgerConnection, session
from infra.errors import Unavailable
from infra.log.fate import Backend, end_session, own_backend, recorded
from infra.log.statement import Statement
from projections.arrays import Byteas, Ints, Texts, Times, Uuids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

MAX_WAITING: Final = 2_000
MAX_BATCH_CALLERS: Final = 256
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
# How long the fate of a lost commit is looked for before callers are told that it is unknown.
RESOLVE_WITHIN_S: Final = 15
RECONNECT_EVERY_S: Final = 0.2
# How often a caller is sent again after its connection was lost: it may be what the connection breaks on.
MAX_SENT: Final = 3

FULL: Final = "Too many commands are waiting to be recorded; this one was not. Try again in a moment."
STOPPING: Final = "The server is stopping; nothing was recorded."
REFUSED_WRITE: Final = "The database could not record the command; nothing was. Try again in a moment."
NOT_RECORDED: Final = "The database cannot be reached; nothing was recorded. Try again in a moment."
UNKNOWN_FATE: Final = (
    "The database went away while the command was being recorded, so it is not known whether it was. "
    "Send it again with the same Idempotency-Key: it will be recorded once, whatever happened."
)


log = logging.getLogger(__name__)


class EventRow(NamedTuple):
    """One event, in the order of `append`'s columns; without `effective_at` it takes effect when it is recorded."""

    stream_id: UUID
    version: int
    event_id: UUID
    type: str
    type_version: int
    effective_at: datetime | None
    creator_stream: UUID
    causation_id: UUID | None
    key_id: UUID | None
    commitment: bytes | None
    body: bytes
    sealed: bytes | None


class Appended(NamedTuple):
    """The events stand at these positions, recorded at this moment."""

    first: int
    last: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Replayed:
    """The same request came before; its events stand at these positions."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another writer came first, to a stream or to a claim: decide anew."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The idempotency key belongs to another request."""


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """The API key is no longer valid."""


Outcome = Appended | Replayed | Conflict | Mismatch | KeyRefused
_REFUSED: Final[dict[str, Outcome]] = {
    "conflict": Conflict(),
    "taken": Conflict(),
    "mismatch": Mismatch(),
    "key": KeyRefused(),
}


@dataclass(slots=True)
class Append:
    """What one caller wants appended, whole or not at all."""

    ledger_id: int
    events: Sequence[EventRow]
    # (stream, version it must stand at); 0 for a stream that must not exist yet.
    preconditions: Sequence[tuple[UUID, int]]
    # (keyed hash, who must hold it, who shall hold it).
    claims: Sequence[tuple[bytes, UUID | None, UUID | None]]
    role: str
    source: str
    command_id: UUID
    subject: str | None = None
    api_key: UUID | None = None
    idempotency: bytes | None = None
    request_hash: bytes | None = None
    effective_at: datetime | None = None
    correlation_id: str | None = None
    traceparent: str | None = None
    # What was decided holds only until then: a window's end that a rule relied on.
    before: datetime | None = None
    answer: asyncio.Future[Outcome] = field(init=False)
    sent: int = field(init=False, default=0)

    def touches(self) -> tuple[list[int | bytes], list[int]]:
        """Return what it writes and what it reads; of two callers of a batch neither writes what the other touches.

        Streams by their number (a UUID's own hash is computed in Python); they and the keyed hashes of claims and
        idempotency keys are unique among ledgers too.
        """
        writes: list[int | bytes] = [event.stream_id.int for event in self.events]
        writes.extend(claim[0] for claim in self.claims)
        if self.idempotency is not None:
            writes.append(self.idempotency)
        return writes, [stream.int for stream, _ in self.preconditions]

    def size(self) -> int:
        """Return about how many bytes it adds to a batch."""
        size = 0
        for event in self.events:
            size += 400 + len(event.body)
            if event.sealed is not None:
                size += len(event.sealed)
        return size


class Writer:
    """The one writer of a process and database."""

    def __init__(
        self,
        conninfo: str,
        role: str,
        *,
        on_commit: Callable[[], None] = lambda: None,
        resolve_within_s: float = RESOLVE_WITHIN_S,
    ) -> None:
        """Prepare; `start` begins. `on_commit` is called after each batch that recorded something."""
        self._session = session(conninfo, role, more_options=APPENDING)
        self._on_commit = on_commit
        self._resolve_within_s = resolve_within_s
        self._waiting: deque[Append] = deque()
        self._wake = asyncio.Event()
        self._connection: LedgerConnection | None = None
        self._statement: Statement | None = None
        self._backend: Backend | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="writer")

    async def stop(self) -> None:
        """Stop after the batch that is being committed; who still waits is told to come back."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        while self._waiting:
            _settle(self._waiting.popleft(), Unavailable(STOPPING))
        if self._connection is not None:
            await self._connection.close()

    @property
    def obstacle(self) -> str | None:
        """Why no command can be recorded now, as far as this process knows; None where nothing stands in the way."""
        if self._stopping or self._task is None or self._task.done():
            return STOPPING
        return FULL if len(self._waiting) >= MAX_WAITING else None

    async def append(self, request: Append) -> Outcome:
        """Append, and wait until it is committed or refused.

        Cancelling the caller is safe: what has not been sent is dropped, what has been sent is recorded whole.

        Raises:
            Unavailable: the queue is full, or the database is away.

        """
        if self._stopping:
            raise Unavailable(STOPPING)
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(FULL)
        request.answer = asyncio.get_running_loop().create_future()
        self._waiting.append(request)
        self._wake.set()
        return await request.answer

    async def _run(self) -> None:
        while not self._stopping:
            if self._waiting:
                batch = self._take()
                try:
                    await self._commit(batch)
                except Exception as error:
                    log.exception("A defect of the writer; whoever it was writing for is told")
                    for request in batch:
                        _settle(request, error)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _take(self) -> list[Append]:
        """Take callers that do not touch each other, in order; one that must wait makes those behind it wait too."""
        batch: list[Append] = []
        held: list[Append] = []
        written: set[int | bytes] = set()
        read: set[int | bytes] = set()
        size = 0
        while self._waiting and len(batch) < MAX_BATCH_CALLERS and size < MAX_BATCH_BYTES:
            request = self._waiting.popleft()
            if request.answer.done():
                continue  # its caller gave up
            writes, reads = request.touches()
            if written.isdisjoint(writes) and read.isdisjoint(writes) and written.isdisjoint(reads):
                batch.append(request)
                size += request.size()
            else:
                held.append(request)
            written.update(writes)
            read.update(reads)
        self._waiting.extendleft(reversed(held))
        return batch

    async def _commit(self, batch: list[Append]) -> None:
        """Append a batch and answer its callers, whatever happens."""
        if not batch:
            return
        error = await self._attempt(batch)
        if error is None:
            return
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        # One caller's row is at fault: find out one by one. Where the database is short of something, a ledger's lock
        # included, one attempt for each ledger shows that; each of them may take as long as a statement may.
        short: dict[int, Exception] = {}
        for request in batch:
            error = short.get(request.ledger_id) or await self._attempt([request])
            if error is not None:
                _fail(request, error)
            if isinstance(error, SHORT):
                short[request.ledger_id] = error

    async def _attempt(self, batch: list[Append]) -> Exception | None:
        """Append a batch and answer its callers, or return the error for which nothing was recorded."""
        try:
            connection, statement = await self._connected()
        except psycopg.Error as error:
            for request in batch:
                _settle(request, _unavailable(NOT_RECORDED, error))
            return None
        try:
            rows = await _call(statement, batch)
        except Exception as error:  # noqa: BLE001 - also what cannot be encoded: the writer outlives every caller
            if not connection.closed:
                return error
            await self._resolve(batch)
            return None
        if _answer(batch, rows):
            self._on_commit()
        return None

    async def _connected(self) -> tuple[LedgerConnection, Statement]:
        if self._connection is None or self._statement is None or self._connection.closed:
            connection = await LedgerConnection.connect(**self._session)
            statement = Statement(connection, "append", len(_TYPES))
            try:
                self._backend = await own_backend(connection)
                await statement.prepare(_APPEND, _TYPES)
            except BaseException:
                await connection.close()
                raise
            self._connection, self._statement = connection, statement
        return self._connection, self._statement

    async def _resolve(self, batch: list[Append]) -> None:
        """Find out what became of a batch whose connection was lost while it was being committed."""
        try:
            fates = await self._fates(batch)
        except (psycopg.Error, TimeoutError) as error:
            for request in batch:
                _settle(request, _unavailable(UNKNOWN_FATE, error))
            return
        for request, fate in reversed(list(zip(batch, fates, strict=True))):
            if fate is None:
                self._again(request)
            else:
                _settle(request, Appended(*fate))
        if any(fates):
            self._on_commit()

    async def _fates(self, batch: list[Append]) -> list[tuple[int, int, datetime] | None]:
        """Look for each caller's events once the lost session is over, for as long as it takes to reach the database.

        The old session may still be committing: it is ended, and waited for, before anything is looked up. A look-up
        alone would see nothing, and a moment later the events.
        """
        lost = self._backend
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._resolve_within_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    connection, _ = await self._connected()
                    await end_session(connection, lost)
                    return [await recorded(connection, request.ledger_id, request.events) for request in batch]
            except (psycopg.Error, TimeoutError):
                if self._connection is not None:
                    await self._connection.close()  # interrupted, its role may be another
                if self._stopping or loop.time() >= deadline:
                    raise
                await asyncio.sleep(RECONNECT_EVERY_S)

    def _again(self, request: Append) -> None:
        """Put a caller of whom nothing was recorded first in the queue, unless its connection is lost every time."""
        request.sent += 1
        if request.sent < MAX_SENT:
            self._waiting.appendleft(request)
        else:
            _settle(request, Unavailable(REFUSED_WRITE))


async def _call(statement: Statement, batch: list[Append]) -> list[Any]:
    columns = [
        *_of_callers(batch),
        *_of_rows([request.preconditions for request in batch], 2),
        *_of_rows([request.events for request in batch], len(EventRow._fields)),
        *_of_rows([request.claims for request in batch], 3),
    ]
    return await statement.call([array(column) for array, column in zip(_TYPES, columns, strict=True)])


def _of_callers(batch: list[Append]) -> list[list[Any]]:
    counts = [len(request.events) for request in batch]
    return [
        [request.ledger_id for request in batch],
        [request.idempotency for request in batch],
        [request.request_hash for request in batch],
        [request.api_key for request in batch],
        [*accumulate(counts[:-1], initial=1)],
        counts,
        [request.effective_at for request in batch],
        [request.role for request in batch],
        [request.subject for request in batch],
        [request.source for request in batch],
        [request.command_id for request in batch],
        [request.correlation_id for request in batch],
        [request.traceparent for request in batch],
        [request.before for request in batch],
    ]


def _of_rows(rows: list[Sequence[tuple[Any, ...]]], width: int) -> list[Sequence[Any]]:
    """Return the callers' numbers, one a row, and the rows' columns."""
    numbers = [number for number, of_caller in enumerate(rows, 1) for _ in of_caller]
    return [numbers, *(zip(*chain.from_iterable(rows), strict=True) if numbers else [()] * width)]


# The columns of `append`: callers, preconditions, events, claims.
_TYPES: Final = (
    *(Ints, Byteas, Byteas, Uuids, Ints, Ints, Times, Texts, Texts, Texts, Uuids, Texts, Texts, Times),
    *(Ints, Uuids, Ints),
    *(Ints, Uuids, Ints, Uuids, Texts, Ints, Times, Uuids, Uuids, Uuids, Byteas, Byteas, Byteas),
    *(Ints, Byteas, Uuids, Uuids),
)
_APPEND: Final = f"SELECT * FROM append({', '.join(f'${number}' for number in range(1, len(_TYPES) + 1))})"


def _answer(batch: list[Append], rows: list[Any]) -> bool:
    """Tell each caller what became of it; positions follow from the order of those accepted."""
    bases = {ledger: (base, at) for caller, _, base, ledger, _, _, at in rows if caller is None}
    refused = {
        caller: Replayed(first, last) if outcome == "replay" else _REFUSED[outcome]
        for caller, outcome, first, last, _, _, _ in rows
        if caller is not None
    }
    next_position = {ledger: base + 1 for ledger, (base, _) in bases.items()}
    for number, request in enumerate(batch, 1):
        outcome = refused.get(number)
        if outcome is None:
            first = next_position[request.ledger_id]
            last = first + len(request.events) - 1
            next_position[request.ledger_id] = last + 1
            outcome = Appended(first, last, bases[request.ledger_id][1])
        _settle(request, outcome)
    return len(refused) < len(batch)


def _settle(request: Append, outcome: Outcome | BaseException) -> None:
    """Answer a caller, unless it gave up."""
    if request.answer.done():
        return
    if isinstance(outcome, BaseException):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)


def _fail(request: Append, error: Exception) -> None:
    """Tell a caller of an error for which nothing was recorded."""
    _settle(request, _unavailable(REFUSED_WRITE, error) if isinstance(error, SHORT) else error)


def _unavailable(detail: str, cause: BaseException) -> Unavailable:
    unavailable = Unavailable(detail)
    unavailable.__cause__ = cause
    return unavailable
