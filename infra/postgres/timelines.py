"""Which of several servers is the primary, and that no session stays with one that was.

A standby that is promoted begins a new timeline, whose number is greater. The primary before it may come back and not
know: it was frozen, or nobody could reach it to stop it. It still says that it is the primary, and may be the first one
that a database URL names. So a process remembers the newest timeline that it has seen on any of its servers, and uses
no primary with an older one.

    Place     what a server says of itself: its cluster, its timeline, whether it is a standby
    Servers   the servers that a database URL names; a thread asks each of them once a second

Where a URL names several servers, a new session goes straight to the newest primary, and sessions with an older one are
cut within about a second. What an old primary acknowledges in that second, only synchronous replication prevents: its
commits then wait for a standby that it does not have.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

# How often each server is asked, and how long it may take to answer.
ASK_EVERY_S: Final = 1.0
ANSWER_WITHIN_S: Final = 3.0
# How long the first session of a process waits until every server has answered, or has failed to.
FIRST_ANSWERS_WITHIN_S: Final = 3.0
# How long a new session waits for a primary, before its caller hears that there is none.
PRIMARY_WITHIN_S: Final = 2.0
LOOK_EVERY_S: Final = 0.05
# Servers that nobody has had a session with for so long are not asked any more, until the next session.
UNUSED_S: Final = 10.0

# For a connection to ask what server it has reached. A standby knows of a new timeline before it is promoted itself, as
# soon as it follows a primary that was.
PLACE: Final = """
    (pg_control_system()).system_identifier,
    greatest(
        (pg_control_checkpoint()).timeline_id,
        (pg_control_recovery()).min_recovery_end_timeline,
        CASE
            WHEN NOT pg_is_in_recovery()
                THEN ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer
        END
    ),
    pg_is_in_recovery()
"""
# Values of `target_session_attrs` for which only a standby will do.
_ONLY_A_STANDBY: Final = frozenset({"read-only", "standby"})
# What names servers in a database URL, each perhaps a list.
_LISTS: Final = ("host", "hostaddr", "port")
ERROR_CHARACTERS_MAX: Final = 300

_LATE: Final = "the server has not answered in time"
_FORMER: Final = (
    "The server is a former primary: it has timeline {old}, and another one was promoted to timeline {new}. Nothing is "
    "read or recorded there. Stop it, or let it follow the new primary (pg_rewind). If it is to be the primary again, "
    "restart this process."
)
_NONE: Final = "None of the servers in the database URL is {wanted}: {what}"
_UNEVEN: Final = (
    "The database URL names {counts}, which do not belong together. Name as many of each as there are servers, or one "
    "port for all."
)


class FormerPrimary(psycopg.OperationalError):
    """Another server was promoted in this one's place."""


class NoPrimary(psycopg.OperationalError):
    """No server that a URL names can be used."""


class Place(NamedTuple):
    """What a server says of itself.

    Attributes:
        system: the identifier that a primary and its standbys share.
        timeline: the newest that the server knows of.
        standby: whether it takes no writes.

    """

    system: int
    timeline: int
    standby: bool


log = logging.getLogger(__name__)

# The newest timeline of each cluster that this process has seen.
_newest: dict[int, int] = {}
_lock = threading.Lock()


def note(place: Place) -> bool:
    """Remember a timeline; return whether it is newer than what was known."""
    with _lock:
        newer = place.timeline > _newest.get(place.system, 0)
        if newer:
            _newest[place.system] = place.timeline
        return newer


def require_newest(place: Place) -> None:
    """Refuse a primary in whose place another one was promoted.

    Raises:
        FormerPrimary: it is one.

    """
    note(place)
    newest = _newest[place.system]
    if not place.standby and place.timeline < newest:
        raise FormerPrimary(_FORMER.format(old=place.timeline, new=newest))


class _Cuttable(Protocol):
    """A session that can be cut from the thread that watches servers."""

    place: Place | None

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    def cut(self) -> None:
        """Let its user find that the connection is lost."""


class Servers:
    """The servers that a database URL names, and the sessions of this process with them."""

    _of: Final[dict[str, Servers]] = {}

    def __init__(self, servers: list[str]) -> None:
        """Take how to reach each server."""
        self._servers = servers
        self._places: list[Place | None] = [None] * len(servers)
        # Why each server has not answered, if it has not.
        self._errors: list[str | None] = [None] * len(servers)
        self._asked: set[int] = set()
        self._changed = threading.Condition()
        self._sessions: weakref.WeakSet[_Cuttable] = weakref.WeakSet()
        self._watch_thread: threading.Thread | None = None
        self._began = self._used = 0.0

    @classmethod
    def named(cls, conninfo: str) -> Servers | None:
        """Return the servers that a URL names, each process's own; None if it names one.

        Raises:
            psycopg.ProgrammingError: the numbers of hosts and ports do not belong together.

        """
        whole = _with_lists_of_the_environment(conninfo)
        if not any("," in whole.get(name, "") for name in _LISTS):
            return None
        with _lock:
            found = cls._of.get(conninfo)
            if found is None:
                found = cls._of[conninfo] = cls(split(conninfo))
            return found

    def choose(self, wanted: str) -> str:
        """Return how to reach the newest primary or a standby, as `target_session_attrs` wants it.

        Waits a moment if there is none.

        Raises:
            NoPrimary: there is none.

        """
        with self._changed:
            self._use()
            self._changed.wait_for(self._all_asked, max(0.0, self._began + FIRST_ANSWERS_WITHIN_S - time.monotonic()))
            self._changed.wait_for(lambda: self._chosen(wanted) is not None, PRIMARY_WITHIN_S)
            return self._found(wanted)

    async def choose_async(self, wanted: str) -> str:
        """As `choose`, without blocking, and without a thread: many sessions may wait at the same time."""
        with self._changed:
            self._use()
            began = self._began
        # The answers come in another thread, which knows nothing of this loop.
        while not self._all_asked() and time.monotonic() < began + FIRST_ANSWERS_WITHIN_S:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK_EVERY_S)
        until = time.monotonic() + PRIMARY_WITHIN_S
        while self._chosen(wanted) is None and time.monotonic() < until:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK_EVERY_S)
        return self._found(wanted)

    def _found(self, wanted: str) -> str:
        chosen = self._chosen(wanted)
        if chosen is None:
            what = "a standby" if wanted in _ONLY_A_STANDBY else "the newest primary"
            raise NoPrimary(_NONE.format(wanted=what, what=self._said()))
        return chosen

    def keep(self, session: _Cuttable) -> None:
        """Cut a session as soon as its server is a former primary."""
        with self._changed:
            self._sessions.add(session)

    def _use(self) -> None:
        """Begin to ask the servers, unless they are being asked; the lock is held.

        Raises:
            NoPrimary: the process cannot start a thread.

        """
        self._used = time.monotonic()
        if self._watch_thread is not None:
            return
        self._began = self._used
        self._asked.clear()
        thread = threading.Thread(target=self._run_watch, name="watch of servers", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            message = f"The servers in the database URL cannot be asked: {error}"
            raise NoPrimary(message) from error
        # It looks at this only while it has the lock.
        self._watch_thread = thread

    def _all_asked(self) -> bool:
        return len(self._asked) == len(self._servers)

    def _chosen(self, wanted: str) -> str | None:
        primary = standby = None
        for server, place in zip(self._servers, self._places, strict=True):
            if place is None:
                continue
            if place.standby:
                standby = standby or server
            elif place.timeline == _newest.get(place.system):
                primary = primary or server
        all_asked = self._all_asked()
        if wanted in _ONLY_A_STANDBY:
            return standby
        if wanted == "prefer-standby":
            return standby or (primary if all_asked else None)
        if wanted == "any":
            # Not while it is unknown who else there is: the primary is better.
            return primary or (standby if all_asked else None)
        return primary

    def _said(self) -> str:
        said, errors = [], []
        for server, place, error in zip(self._servers, self._places, self._errors, strict=True):
            one = conninfo_to_dict(server)
            name = f"{one.get('host') or one.get('hostaddr')}:{one.get('port') or 5432}"
            if place is None:
                said.append(f"{name} does not answer")
                if error is not None:
                    errors.append(f"{name}: {error}")
            elif place.standby:
                said.append(f"{name} is a standby")
            elif place.timeline == _newest.get(place.system):
                said.append(f"{name} is the newest primary")
            else:
                said.append(f"{name} is a former primary, of timeline {place.timeline}")
        return "; ".join(said) + (f". Errors: {'; '.join(errors)}" if errors else "")

    def _run_watch(self) -> None:
        """Ask the servers while they are used; if that fails, the next session begins to ask again."""
        try:
            asyncio.run(self._watch())
        except Exception:
            log.exception("The servers in the database URL are no longer asked; the next session begins again")
        finally:
            with self._changed:
                if self._watch_thread is threading.current_thread():
                    self._watch_thread = None
                    self._places = [None] * len(self._servers)

    async def _watch(self) -> None:
        asking = [asyncio.create_task(self._ask(number)) for number in range(len(self._servers))]
        while self._in_use():  # noqa: ASYNC110 - it is time that ends the use
            await asyncio.sleep(ASK_EVERY_S)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _in_use(self) -> bool:
        with self._changed:
            if any(not session.closed for session in list(self._sessions)):
                self._used = time.monotonic()
            in_use = time.monotonic() < self._used + UNUSED_S
            if not in_use:
                # A session that comes from here on is served by a thread of its own.
                self._watch_thread = None
            return in_use

    async def _ask(self, number: int) -> None:
        """Ask a server again and again."""
        while True:
            try:
                await self._ask_in_a_session(number)
            except (psycopg.Error, OSError) as error:
                self._note(number, None, _without_secrets(error, self._servers[number]))
            except Exception as error:  # a mistake of ours must not leave the last answer as if it were true
                if self._errors[number] != type(error).__name__:
                    log.exception("A server in the database URL cannot be asked")
                self._note(number, None, type(error).__name__)
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask_in_a_session(self, number: int) -> None:
        """Ask a server as long as it answers.

        Raises:
            psycopg.OperationalError: it does not.

        """
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                connection = await psycopg.AsyncConnection.connect(
                    self._servers[number],
                    autocommit=True,
                    connect_timeout=int(ANSWER_WITHIN_S),
                    application_name="sparkledger watch",
                    target_session_attrs="any",
                )
        except TimeoutError:
            raise psycopg.OperationalError(_LATE) from None
        try:
            while True:
                self._note(number, await _place(connection))
                await asyncio.sleep(ASK_EVERY_S)
        finally:
            await connection.close()

    def _note(self, number: int, place: Place | None, error: str | None = None) -> None:
        """Take what a server said of itself, or why it did not answer; cut the sessions of former primaries."""
        if place is not None:
            note(place)
        with self._changed:
            self._places[number], self._errors[number] = place, error
            self._asked.add(number)
            self._changed.notify_all()
            sessions = [session for session in self._sessions if not session.closed and _is_former(session.place)]
            # Each is cut once: one that nobody uses is found lost only when somebody does.
            self._sessions.difference_update(sessions)
        if sessions:
            log.warning("%d sessions with a former primary are cut: another server was promoted", len(sessions))
        for session in sessions:
            session.cut()


async def _place(connection: psycopg.AsyncConnection[Any]) -> Place:
    """Ask a server what it is.

    Raises:
        psycopg.OperationalError: it does not answer, or not in time.

    """
    asking = asyncio.create_task(connection.execute(f"SELECT {PLACE}"))
    await asyncio.wait({asking}, timeout=ANSWER_WITHIN_S)
    if not asking.done():
        # Cancelling would ask the server to stop, and wait for its answer, which may be frozen.
        shut_down(connection.fileno())
    row = await (await asking).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without a FROM answers one row
    return Place(*row)


def _is_former(place: Place | None) -> bool:
    return place is not None and not place.standby and place.timeline < _newest.get(place.system, 0)


def _without_secrets(error: Exception, server: str) -> str:
    """Return an error in a line, without the password."""
    line = " ".join(str(error).split()) or type(error).__name__
    password = conninfo_to_dict(server).get("password")
    if password:
        line = line.replace(str(password), "***")
    return line[:ERROR_CHARACTERS_MAX]


def wanted_server(conninfo: str, settings: Mapping[str, Any]) -> str:
    """Return which server a session wants, as a value of `target_session_attrs`."""
    wanted = settings.get("target_session_attrs") or conninfo_to_dict(conninfo).get("target_session_attrs") or "any"
    return str(wanted)


def _with_lists_of_the_environment(conninfo: str) -> dict[str, str]:
    """Return what a URL says, and the lists that libpq takes from PGHOST, PGHOSTADDR and PGPORT.

    What a `service` in the URL says is known to libpq alone.
    """
    whole = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    if "service" not in whole and not all(name in whole for name in _LISTS):
        for option in psycopg.pq.Conninfo.get_defaults():
            name = option.keyword.decode()
            if name in _LISTS and option.val is not None and b"," in option.val:
                whole.setdefault(name, option.val.decode())
    return whole


def split(conninfo: str) -> list[str]:
    """Return how to reach each of the servers that a URL names.

    Raises:
        psycopg.ProgrammingError: the numbers of hosts and ports do not belong together.

    """
    whole = _with_lists_of_the_environment(conninfo)
    lists = {name: whole[name].split(",") for name in _LISTS if name in whole}
    count = max(len(values) for values in lists.values())
    if any(len(values) not in {1, count} for values in lists.values()):
        counts = " and ".join(f"{len(values)} in `{name}`" for name, values in lists.items())
        raise psycopg.ProgrammingError(_UNEVEN.format(counts=counts))
    return [
        make_conninfo(
            "", **(whole | {name: values[number if len(values) > 1 else 0] for name, values in lists.items()})
        )
        for number in range(count)
    ]


def shut_down(descriptor: int) -> None:
    """End both ways of a connection whose descriptor somebody else has, who then finds it lost."""
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)


def cut_in_loop(loop: asyncio.AbstractEventLoop, cut: Callable[[], None]) -> None:
    """Have a session cut in the thread that uses it, where nobody closes it meanwhile."""
    with suppress(RuntimeError):  # the loop has ended, and the session with it
        loop.call_soon_threadsafe(cut)


class ServerConnection(psycopg.Connection[Any]):
    """A session of a thread with the newest primary."""

    place: Place | None = None
    # A copy of the connection's descriptor: the thread that watches may use it while this one closes the session.
    _copy: socket.socket | None = None
    _guard: threading.Lock

    @classmethod
    def connect(cls, conninfo: str = "", **settings: Any) -> Self:
        """Connect to the newest primary.

        Raises:
            FormerPrimary: in the place of the only one that answers, another one was promoted.
            NoPrimary: none of the servers that are named can be used.

        """
        servers = Servers.named(conninfo)
        if servers is not None:
            conninfo = servers.choose(wanted_server(conninfo, settings))
        connection = super().connect(conninfo, **settings)
        try:
            connection.place = connection.ask()
            require_newest(connection.place)
            if servers is not None:
                connection.keep_in(servers)
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self) -> Place:
        """Ask the server what it is.

        Raises:
            psycopg.OperationalError: it does not answer in time.

        """
        # A server that is frozen would hold this thread for ever.
        giving_up = threading.Timer(ANSWER_WITHIN_S, shut_down, (self.fileno(),))
        giving_up.daemon = True
        giving_up.start()
        try:
            row = self.execute(f"SELECT {PLACE}").fetchone()
            if not self.autocommit:
                self.commit()
        finally:
            # Afterwards the descriptor may be another's.
            giving_up.cancel()
            giving_up.join()
        assert row is not None  # noqa: S101 - as above
        return Place(*row)

    def keep_in(self, servers: Servers) -> None:
        """Have the session cut as soon as its server is a former primary."""
        self._guard = threading.Lock()
        self._copy = socket.socket(fileno=os.dup(self.fileno()))
        servers.keep(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the transaction, and close the session; psycopg leaves out what it finds lost."""
        try:
            super().__exit__(kind, error, trace)
        finally:
            self.close()

    def close(self) -> None:
        """Close the session."""
        super().close()
        if self._copy is not None:
            with self._guard:
                self._copy.close()

    def cut(self) -> None:
        """Have the thread that uses the session find it lost."""
        if self._copy is not None:
            with self._guard, suppress(OSError):
                self._copy.shutdown(socket.SHUT_RDWR)
