"""Group commit: one writer merges all appends that wait into one call of `append` and one commit.

No timer makes a batch: a batch is of what arrived while the last one committed, as `_batch_limit` says. Each append
gets an outcome of its own; a refusal, a replay or a faulty row of one does not affect the others. If the connection is
lost during a commit, the writer finds out what was committed: it ends the old session first, then looks for the events
of each append, and waits until a failover cannot lose what it found.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Final

import psycopg

from infra.ending import cancelled
from infra.errors import Unavailable
from infra.eventstore.append import Append, Appended, ConcurrencyConflict, Outcome
from infra.eventstore.append_statement import AppendStatement
from infra.eventstore.in_doubt_commit import Backend, end_session, own_backend, recorded
from infra.postgres.damage import Damage
from infra.postgres.pool import APPENDING, SHORT, LedgerConnection, session
from infra.postgres.session_tokens import SessionTokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from infra.eventstore.histories import HistoryGuard

MAX_WAITING: Final = 2_000
MAX_BATCH_CALLERS: Final = 256
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
# From so many callers on, half of them go into one batch: the database commits it while the others decide. With fewer,
# a second commit would take longer than what is decided meanwhile.
HALVED_FROM: Final = 6
# While another process appends to the same ledger, a batch waits for those who were just answered and may be back soon,
# until so many turns of the event loop in a row have brought nobody.
QUIET_TURNS: Final = 6
# How long the events of a lost commit are looked for before callers are told that its outcome is unknown.
RESOLVE_WITHIN_S: Final = 15
RECONNECT_EVERY_S: Final = 0.2
# How long a new session may take until it can append; the server's own limits only begin with the session.
SESSION_WITHIN_S: Final = 15
# How long a batch may take. The server itself limits a statement to 10 seconds, but not the wait for its standby, and
# one that is frozen limits nothing. Together with the look-up it is less than a request has.
ANSWER_WITHIN_S: Final = 12
WATCH_EVERY_S: Final = 0.5
# How often an append is sent again after its connection was lost: it may itself be the cause.
MAX_SENT: Final = 3
# After so many ledgers in a row for which the database is short of something, the rest of the batch is given up.
MAX_SHORT: Final = 2
# The cause of refused commands is logged at most this often.
WARN_EVERY_S: Final = 10

FULL: Final = "Too many commands are waiting to be recorded. This one was not recorded. Try again in a moment."
STOPPING: Final = "The server is stopping. Nothing was recorded."
REFUSED_WRITE: Final = "The database could not record the command. Nothing was recorded. Try again in a moment."
NOT_RECORDED: Final = "The database cannot be reached. Nothing was recorded. Try again in a moment."
IN_DOUBT: Final = (
    "The database connection was lost while the command was being recorded. It is not known whether it "
    "was recorded. Send it again with the same Idempotency-Key: it is recorded only once."
)

NO_ANSWER: Final = "the server has not answered in time"

# `append` was replaced while a session had it prepared.
_OUTDATED: Final = (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName)

log = logging.getLogger(__name__)


class _Unconfirmed(Exception):
    """The server has warned of something with a batch: its commit may not have waited for its standby."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__("the wait for the standby was cancelled")
        self.outcomes = outcomes


class GroupCommitWriter:
    """The writer of a process: it appends for all of the process's commands, over one session."""

    def __init__(
        self,
        conninfo: str,
        role: str,
        *,
        tokens: SessionTokens | None = None,
        guard: HistoryGuard | None = None,
        on_commit: Callable[[], None] = lambda: None,
        on_session: Callable[[int], None] = lambda _: None,
        damage: Damage | None = None,
        answer_within_s: float = ANSWER_WITHIN_S,
        resolve_within_s: float = RESOLVE_WITHIN_S,
    ) -> None:
        """Prepare; `start` starts it.

        Args:
            conninfo: the database, as a login that is or may become the role.
            role: whose rights it appends with.
            tokens: what proves, for each caller, that its key was presented to this process; a worker needs none.
            guard: asked before an append whether the log may have lost events; None to append whatever happened.
            on_commit: called after each batch that recorded something.
            on_session: called with the number of each new session. After a failover the log may have lost its end, so
                caches of the log must be dropped.
            damage: notes what the database finds damaged.
            answer_within_s: how long a batch may take, in seconds, before its session is given up as lost.
            resolve_within_s: how long the events of a lost commit are looked for, in seconds.

        """
        # A standby can neither append nor show what was committed.
        self._session = session(conninfo, role, more_options=APPENDING) | {"target_session_attrs": "primary"}
        self._tokens = tokens or SessionTokens()
        self._guard = guard
        self._on_commit = on_commit
        self._on_session = on_session
        self._damage = damage or Damage()
        # The number of the session. A decision on what was cached during another session is made again.
        self._sessions = 0
        self._warned_at = -math.inf
        self._answer_within_s = answer_within_s
        self._resolve_within_s = resolve_within_s
        self._waiting: deque[Append] = deque()
        self._wake = asyncio.Event()
        self._connection: LedgerConnection | None = None
        self._statement: AppendStatement | None = None
        self._backend: Backend | None = None
        # A session that was given up and may not have ended: nothing more is sent before it has, so that there is one.
        self._lost: Backend | None = None
        self._task: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        # Whether a batch is under way, or the task is at work: then what arrives waits.
        self._busy = True
        # Whether the next batch is to be sent in the loop's next turn, with all that arrives until then.
        self._called = False
        # How many callers the last batch had; and while the next one is taken, how many were just answered, and may
        # send their next command.
        self._last = self._answered = 0
        # Up to where the last batch appended to each ledger, and whether another process had appended there meanwhile.
        self._ends: dict[int, int] = {}
        self._shared = False
        # If so: how many callers the next batch waits for, how many there are, and in how many turns of the loop since
        # then nobody came.
        self._expected = self._seen = self._quiet = 0
        # The batch that was sent without the task; and one that failed so, with the error, for the task to look into.
        self._sent: list[Append] | None = None
        self._failed: tuple[list[Append], Exception] | None = None

    def start(self) -> None:
        """Start to write."""
        self._task = asyncio.create_task(self._run(), name="writer")
        self._watching = asyncio.create_task(self._watch(), name="watch of the writer")

    async def stop(self) -> None:
        """Stop after the batch that is being committed; appends that still wait are refused as unavailable."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._watching is not None:
            await cancelled([self._watching])
        while self._waiting:
            _resolve(self._waiting.popleft(), Unavailable(STOPPING))
        if self._connection is not None:
            await self._connection.close()

    @property
    def obstacle(self) -> str | None:
        """Why no command can be recorded now, as far as this process knows; None if nothing prevents it."""
        if self._stopping or self._task is None or self._task.done():
            return STOPPING
        return FULL if self._full() else None

    def _full(self) -> bool:
        """Tell whether the queue is full; appends whose caller gave up do not count."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting = deque(request for request in self._waiting if not request.answer.done())
        return len(self._waiting) >= MAX_WAITING

    async def append(self, request: Append) -> Outcome:
        """Append, and return the outcome once it is committed or refused.

        Cancelling is safe: an append that was not sent yet is dropped, one that was sent is recorded whole.

        Raises:
            Unavailable: the queue is full, or the database is away.

        """
        if self._stopping:
            raise Unavailable(STOPPING)
        if len(self._waiting) >= MAX_WAITING and self._full():
            raise Unavailable(FULL)
        loop = asyncio.get_running_loop()
        request.answer = loop.create_future()
        self._waiting.append(request)
        if not (self._busy or self._called):
            self._called = True
            loop.call_soon(self._send)
        return await request.answer

    def _send(self) -> None:
        """Send the next batch, without the task where nothing speaks against that."""
        self._called = False
        if self._busy or not self._waiting:
            return
        if self._shared and self._others_may_come():
            self._called = True
            asyncio.get_running_loop().call_soon(self._send)
            return
        self._busy = True
        statement = self._ready_statement()
        if statement is None:
            self._wake.set()
            return
        batch = self._next_batch()
        try:
            batch = self._still_known(batch)
            if batch:
                self._sent = batch
                statement.send(batch, self._tokens, self._landed)
                return
        except Exception as error:  # noqa: BLE001 - also rows that cannot be encoded: the writer must survive every append
            self._sent, self._failed = None, (batch, error)
        self._wake.set()

    def _others_may_come(self) -> bool:
        """Tell whether a batch had better wait, now that it has to wait for the other process's commit anyway."""
        waiting = len(self._waiting)
        if waiting > self._seen:
            self._seen, self._quiet = waiting, 0
        else:
            self._quiet += 1
        if waiting < self._expected and self._quiet < QUIET_TURNS:
            return True
        self._seen = self._quiet = 0
        return False

    def _ready_statement(self) -> AppendStatement | None:
        """Return the statement to append with; None if something must be done before, for which the task is there."""
        if self._stopping or self._statement is None or self._connection is None or self._connection.closed:
            return None
        if self._lost is not None:
            return None
        guard = self._guard
        if guard is not None and not all(map(guard.knows, {request.ledger_id for request in self._waiting})):
            return None
        return self._statement

    def _landed(self, outcomes: list[Outcome], error: Exception | None) -> None:
        """Answer a batch that was sent without the task, and send the next one; or leave it to the task."""
        batch, self._sent = self._sent or [], None
        if error is None:
            error = self._unconfirmed(outcomes)
        if error is not None:
            self._failed = (batch, error)
            self._wake.set()
            return
        try:
            self._answer(batch, outcomes)
        except Exception as defect:  # noqa: BLE001 - as in `_defended`
            _tell(batch, defect)
        self._busy = False
        if self._stopping:
            self._wake.set()
        else:
            self._answered = len(batch)
            self._expected = min(MAX_BATCH_CALLERS, len(self._waiting) + len(batch))
            self._send()
            self._answered = 0

    def _unconfirmed(self, outcomes: list[Outcome]) -> _Unconfirmed | None:
        """Return the error for a batch whose commit may not have waited for its standby; None if it has."""
        connection = self._connection
        return _Unconfirmed(outcomes) if connection is not None and connection.unconfirmed else None

    async def _confirmed(self) -> bool:
        """Tell whether a standby has what was committed; otherwise the session is closed."""
        assert self._connection is not None  # noqa: S101 - something was committed on it
        try:
            async with asyncio.timeout(self._resolve_within_s):
                await self._connection.confirm()
        except (psycopg.Error, TimeoutError):
            await self._connection.close()
            return False
        return True

    def _answer(self, batch: list[Append], outcomes: list[Outcome]) -> None:
        """Resolve a batch with what became of it."""
        first: dict[int, int] = {}
        last: dict[int, tuple[int, UUID]] = {}
        for request, outcome in zip(batch, outcomes, strict=True):
            if type(outcome) is Appended:
                ledger_id = request.ledger_id
                if ledger_id not in first:
                    first[ledger_id] = outcome.first
                last[ledger_id] = outcome.last, request.events[-1].event_id
            if not request.answer.done():  # as `_resolve` does, without a call for each
                request.answer.set_result(outcome)
        if not last:
            return
        ends = {}
        for ledger_id, (position, event_id) in last.items():
            ends[ledger_id] = position
            if self._guard is not None:
                self._guard.acknowledge(ledger_id, position, event_id)
        # Positions that are missing between our batches are another process's.
        known = first.keys() & self._ends.keys()
        self._shared = any(first[ledger_id] != self._ends[ledger_id] + 1 for ledger_id in known)
        self._ends = ends
        self._on_commit()

    async def _run(self) -> None:
        """Do what takes more than to send a batch: connect, ask whether a log is whole, and look into errors."""
        while True:
            failed, self._failed = self._failed, None
            if failed is not None:
                await self._defended(failed[0], self._after(failed[0], self._excused(*failed)))
            elif self._waiting and not self._stopping and self._sent is None:
                batch = self._next_batch()
                await self._defended(batch, self._commit(batch))
            if self._sent is None:
                if self._stopping:
                    return
                self._busy = False
                self._send()
            await self._wake.wait()
            self._wake.clear()

    async def _watch(self) -> None:
        """Give a session up that does not answer. One task looks at all batches, so that none needs a timer."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                if self._statement is not None:
                    self._statement.give_up(self._answer_within_s)
            except Exception:  # without the watch, a frozen server would hold every command up
                log.exception("The session of the group commit could not be given up")

    async def _defended(self, batch: list[Append], work: Awaitable[None]) -> None:
        """Answer a batch with an error if there is a defect in the writer itself, which goes on."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever is wrong, the next callers are served
            _tell(batch, error)

    def _next_batch(self) -> list[Append]:
        """Take appends that do not touch each other, in order. What touches one that must wait, waits too."""
        batch: list[Append] = []
        held: list[Append] = []
        written: set[int | bytes] = set()
        read: set[int | bytes] = set()
        size = 0
        limit = self._batch_limit()
        if len(self._waiting) > limit:
            self._waiting = _in_turn(self._waiting)
        while self._waiting and len(batch) < limit and size < MAX_BATCH_BYTES:
            request = self._waiting.popleft()
            if request.answer.done():
                continue  # its caller gave up
            writes, reads, own_size = request.footprint()
            if written.isdisjoint(writes) and read.isdisjoint(writes) and written.isdisjoint(reads):
                batch.append(request)
                size += own_size
            else:
                held.append(request)
            written.update(writes)
            read.update(reads)
        self._waiting.extendleft(reversed(held))
        self._last = len(batch)
        return batch

    def _batch_limit(self) -> int:
        """Return how many callers the next batch may have.

        If it took all that wait, there would at some point be one batch of everybody, or it would alternate with one of
        very few; and this process would only wait while the large one is committed. After a pause, all go together. So
        they do while another process appends, too: their batch waits for its commit, and the machine has enough to do.
        """
        taking_part = len(self._waiting) + self._answered
        if self._shared or taking_part < HALVED_FROM or (self._answered == 0 and self._last < HALVED_FROM):
            return MAX_BATCH_CALLERS
        return min(MAX_BATCH_CALLERS, (taking_part + 1) // 2)

    async def _commit(self, batch: list[Append]) -> None:
        """Append a batch, and resolve all of it, whatever happens."""
        if batch:
            await self._after(batch, self._attempt(batch))

    async def _after(self, batch: list[Append], attempt: Awaitable[Exception | None]) -> None:
        """Resolve what an attempt leaves: nothing, or the error because of which nothing was recorded."""
        error = await attempt
        if error is None:
            return
        if isinstance(error, SHORT):
            await self._by_ledger(batch, error)
        elif len(batch) == 1:
            self._fail(batch, error)
        else:
            # One append is at fault: find out which.
            for request in batch:
                await self._commit([request])

    async def _by_ledger(self, batch: list[Append], error: Exception) -> None:
        """Append a batch again, ledger by ledger, after the database was short of something: it may be one lock.

        Each attempt may take as long as a statement may. So there is one for each ledger, and none for the rest once
        several in a row have failed.
        """
        by_ledger: dict[int, list[Append]] = {}
        for request in batch:
            by_ledger.setdefault(request.ledger_id, []).append(request)
        if len(by_ledger) == 1:
            self._fail(batch, error)
            return
        short = 0
        for requests in by_ledger.values():
            again = error if short >= MAX_SHORT else await self._attempt(requests)
            if again is None:
                short = 0
            elif isinstance(again, SHORT):
                short += 1
                self._fail(requests, again)
            else:
                for request in requests:
                    await self._commit([request])

    async def _attempt(self, batch: list[Append], *, prepared_again: bool = False) -> Exception | None:
        """Append a batch and resolve it, or return the error because of which nothing was recorded."""
        opened = await self._opened(batch)
        batch = self._still_known(batch)
        if opened is None or not batch:
            return None
        connection, statement = opened
        try:
            batch = await self._of_whole_logs(connection, batch)
            outcomes = await statement.call(batch, self._tokens) if batch else []
            unconfirmed = self._unconfirmed(outcomes)
            if unconfirmed is not None:
                raise unconfirmed  # noqa: TRY301 - what follows is the same as for an error of the database
        except Exception as error:  # noqa: BLE001 - also rows that cannot be encoded: the writer must survive every append
            return await self._excused(batch, error, prepared_again=prepared_again)
        self._answer(batch, outcomes)
        return None

    async def _excused(
        self, batch: list[Append], error: Exception, *, prepared_again: bool = False
    ) -> Exception | None:
        """Look into an error: resolve the batch if it may be recorded nevertheless, otherwise return the error."""
        if self._connection is None:
            return error
        if isinstance(error, _OUTDATED):
            # `append` was replaced while this session had it prepared.
            if prepared_again:
                return error
            await self._connection.close()
            return await self._attempt(batch, prepared_again=True)
        if isinstance(error, _Unconfirmed) and await self._confirmed():
            self._answer(batch, error.outcomes)
            return None
        if not self._connection.closed:
            return error
        self._warn(error, "It is not known whether an append was committed; looking it up")
        await self._resolve_in_doubt(batch)
        return None

    async def _opened(self, batch: list[Append]) -> tuple[LedgerConnection, AppendStatement] | None:
        """Return the session to append with; if there is none, resolve the batch as unavailable."""
        try:
            connection, statement = await self._connected()
            await self._end_lost(connection)
            return connection, statement
        except (psycopg.Error, TimeoutError) as error:
            self._warn(error)
            for request in batch:
                _resolve(request, _unavailable(NOT_RECORDED, error))
            return None

    async def _connected(self) -> tuple[LedgerConnection, AppendStatement]:
        if self._connection is None or self._statement is None or self._connection.closed:
            connection = await LedgerConnection.connect(**self._session)
            statement = AppendStatement(connection)
            try:
                async with asyncio.timeout(SESSION_WITHIN_S):
                    self._backend = await own_backend(connection)
                    await statement.prepare()
            except BaseException:
                await connection.close()
                raise
            self._connection, self._statement = connection, statement
            self._sessions += 1
            if self._guard is not None:
                self._guard.new_session()
            self._on_session(self._sessions)
        return self._connection, self._statement

    async def _end_lost(self, connection: LedgerConnection) -> None:
        """End the session that was given up. It may hold the locks of its ledgers for as long as a standby is away."""
        if self._lost is None:
            return
        try:
            async with asyncio.timeout(self._answer_within_s):
                await end_session(connection, self._lost)
        except TimeoutError:
            await connection.close()  # it may have been interrupted in another role
            raise psycopg.OperationalError(NO_ANSWER) from None
        self._lost = None

    async def _of_whole_logs(self, connection: LedgerConnection, batch: list[Append]) -> list[Append]:
        """Return the appends to logs that have lost nothing; the others are resolved as unavailable."""
        if self._guard is None:
            return batch
        refused: dict[int, Exception] = {}
        try:
            async with asyncio.timeout(self._answer_within_s):
                for ledger_id in {request.ledger_id for request in batch}:
                    try:
                        await self._guard.require_whole(connection, ledger_id)
                    except Unavailable as error:
                        refused[ledger_id] = error
        except TimeoutError:
            raise psycopg.OperationalError(NO_ANSWER) from None
        for request in batch:
            if request.ledger_id in refused:
                _resolve(request, refused[request.ledger_id])
        return [request for request in batch if request.ledger_id not in refused]

    def _still_known(self, batch: list[Append]) -> list[Append]:
        """Return the appends whose decisions relied on nothing that was cached during another session.

        The others are resolved as conflicts, to be decided again: after a failover the log may have lost its end and
        given the same versions to other events, so comparing versions would not be enough.
        """
        known = []
        for request in batch:
            if request.cached_in is None or request.cached_in == self._sessions:
                known.append(request)
            else:
                _resolve(request, ConcurrencyConflict())
        return known

    async def _resolve_in_doubt(self, batch: list[Append]) -> None:
        """Resolve a batch whose connection was lost while it was being committed."""
        try:
            found = await self._found(batch)
        except (psycopg.Error, TimeoutError) as error:
            self._warn(error)
            for request in batch:
                _resolve(request, _unavailable(IN_DOUBT, error))
            return
        for request, positions in reversed(list(zip(batch, found, strict=True))):
            if positions is None:
                self._again(request)
            else:
                _resolve(request, Appended(*positions))
        if any(found):
            self._on_commit()

    async def _found(self, batch: list[Append]) -> list[tuple[int, int, datetime] | None]:
        """Look for the events of each append, and retry while the database cannot be reached.

        The old session may still be committing, so it is ended before anything is looked up. A look-up alone might find
        nothing, and a moment later the events would be there. What is found is confirmed on the session that found it:
        another one may be on another server.
        """
        self._lost = lost = self._backend
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._resolve_within_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    connection, _ = await self._connected()
                    await end_session(connection, lost)
                    self._lost = None
                    found = [
                        await recorded(connection, request.ledger_id, request.events, self._tokens) for request in batch
                    ]
                    if any(found):
                        await connection.confirm()
                    return found
            except (psycopg.Error, TimeoutError):
                if self._connection is not None:
                    await self._connection.close()  # it may have been interrupted in another role
                if self._stopping or loop.time() >= deadline:
                    raise
                await asyncio.sleep(RECONNECT_EVERY_S)

    def _again(self, request: Append) -> None:
        """Put an append of which nothing was recorded first in the queue, unless it was sent too often."""
        request.sent += 1
        if request.sent < MAX_SENT:
            self._waiting.appendleft(request)
        else:
            _resolve(request, Unavailable(REFUSED_WRITE))

    def _fail(self, batch: list[Append], error: Exception) -> None:
        """Resolve a batch with an error because of which nothing was recorded."""
        error = self._damage.found(error) or error
        short = isinstance(error, SHORT)
        if short:
            self._warn(error)
        for request in batch:
            _resolve(request, _unavailable(REFUSED_WRITE, error) if short else error)

    def _warn(self, error: Exception, what: str = "Commands are being refused") -> None:
        """Log why commands are refused or delayed, but not for each of them."""
        now = asyncio.get_running_loop().time()
        if now >= self._warned_at + WARN_EVERY_S:
            self._warned_at = now
            # The server's details may quote a row; its primary message never does.
            said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
            log.warning("%s: %s", what, " ".join((said or str(error)).split()) or type(error).__name__)


def _in_turn(waiting: deque[Append]) -> deque[Append]:
    """Return appends in an order in which ledgers take turns, and those of each ledger keep theirs.

    So a ledger with many waiting appends delays the others by no more than its share of a batch.
    """
    by_ledger: dict[int, list[Append]] = {}
    for request in waiting:
        by_ledger.setdefault(request.ledger_id, []).append(request)
    if len(by_ledger) == 1:
        return waiting
    rounds = itertools.zip_longest(*by_ledger.values())
    return deque(request for turn in rounds for request in turn if request is not None)


def _resolve(request: Append, outcome: Outcome | BaseException) -> None:
    """Set the outcome of an append, unless its caller gave up."""
    if request.answer.done():
        return
    if isinstance(outcome, BaseException):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)


def _tell(batch: list[Append], defect: Exception) -> None:
    """Answer a batch with an error of the writer's own."""
    log.error("The group commit writer failed; the affected commands are answered with an error", exc_info=defect)
    for request in batch:
        _resolve(request, defect)


def _unavailable(detail: str, cause: BaseException) -> Unavailable:
    unavailable = Unavailable(detail)
    unavailable.__cause__ = cause
    return unavailable
