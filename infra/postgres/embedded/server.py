"""The server of the embedded PostgreSQL: a child of this process that does not outlive it.

    EmbeddedPostgres     runs the server on a data directory that only it uses, and restarts the server when it dies
    attach_or_start      for commands: uses the server that `up` runs, or runs one while the command takes

A thread starts the child and waits for it. On Linux the kernel signals the child when that thread ends, however this
process ends. Elsewhere the next start stops what a killed run left.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import psycopg
from psycopg import sql

from infra.postgres.embedded.cluster import (
    CHOOSE_ANOTHER,
    DATABASE,
    PORT,
    Cluster,
    PostgresError,
    User,
    binary,
    environment,
    failure,
    launch_command,
    prepare,
    server_user,
    stop_leftovers,
)

READY_SECONDS_MAX: Final = 60  # recovery after a crash may read max_wal_size of log
READY_POLL_SECONDS: Final = 0.02
READY_POLL_SECONDS_MAX: Final = 0.25
CONNECT_SECONDS_MAX: Final = 5
STOP_SECONDS: Final = 2.0
RESTART_SECONDS_FIRST: Final = 0.2
RESTART_SECONDS_MAX: Final = 5.0
LIVED_LONG_SECONDS: Final = 30
ATTACH_SECONDS_MAX: Final = 60
LOG_BYTES_MAX: Final = 5_000_000

# Explicit, so that neither a file in the cluster nor a new version of PostgreSQL changes them.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "jit": "off",  # compiling takes longer than our short queries
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    # Statements, parameters and failing rows may contain secrets or personal data. The log says only what went wrong.
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
}

_log = logging.getLogger(__name__)


class DataDirectoryInUse(PostgresError):
    """Another process uses the data directory."""


class EmbeddedPostgres:
    """A PostgreSQL server on `data_dir`, as a child of this process; as a context manager, from start to stop."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        """Take the data directory, which is created if need be, and server settings that differ from `SETTINGS`."""
        self.cluster = Cluster(data_dir)
        self._settings = {**SETTINGS, **(settings or {})}
        self._user: User | None = None
        self._lock: int | None = None
        self._keeper: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._launch_error: Exception | None = None
        self._log_from = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def dsn(self, user: str = "postgres", dbname: str = DATABASE) -> str:
        """Return the libpq connection string of a login role and a database."""
        return self.cluster.dsn(user, dbname)

    def start(self) -> None:
        """Lock the data directory, create a cluster there if there is none, start the server and wait until it answers.

        What a killed run left is stopped first. It usually takes less than a second, and after a crash at most
        `READY_SECONDS_MAX`. Raises DataDirectoryInUse or PostgresError, and then leaves nothing running.
        """
        if self._lock is not None:
            raise PostgresError("This embedded PostgreSQL was already started.")
        try:
            self._lock = _take_data_directory(self.cluster)
            self._user = server_user(self.cluster)
            stop_leftovers(self.cluster)
            prepare(self.cluster, self._user)
            self._start_log()
            self._stopping.clear()
            self._ready.clear()
            self._process, self._launch_error = None, None
            self._keeper = threading.Thread(target=self._keep, name="embedded-postgres", daemon=True)
            self._keeper.start()
            self._wait_until_ready()
        except OSError as error:
            self.stop()
            raise PostgresError(
                f"The embedded PostgreSQL cannot use {error.filename or self.cluster.data_dir}: "
                f"{error.strerror or error}. Make it writable, or {CHOOSE_ANOTHER}."
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop the server cleanly within `seconds`, or else immediately; it then recovers at its next start."""
        self._stopping.set()
        for number, timeout in ((signal.SIGINT, seconds), (signal.SIGQUIT, 2), (signal.SIGKILL, 2)):
            if self._keeper is None:
                break
            with self._starting:
                process = self._process
            if process is not None:
                process.send_signal(number)
            self._keeper.join(timeout)
            if not self._keeper.is_alive():
                self._keeper = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _keep(self) -> None:
        """Run the server, and restart it whenever it dies; the kernel ends the server when this thread ends."""
        pause = RESTART_SECONDS_FIRST
        while True:
            started_at = time.monotonic()
            ended = self._run_once()
            if self._stopping.is_set() or not self._ready.is_set():
                return
            if time.monotonic() - started_at > LIVED_LONG_SECONDS:
                pause = RESTART_SECONDS_FIRST
            _log.warning("PostgreSQL ended unexpectedly (%s); restarting it in %.1f s", ended, pause)
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, RESTART_SECONDS_MAX)

    def _run_once(self) -> str:
        """Run the server until it ends; return how it ended, for the log."""
        try:
            if self._ready.is_set():
                # Backends outlive a killed postmaster for a moment, and a new one does not start while they run.
                stop_leftovers(self.cluster)
            with self._starting:
                if self._stopping.is_set():
                    return "stopped"
                self._process = self._launch()
        except (OSError, PostgresError) as error:
            self._launch_error = error
            return str(error)
        return f"code {self._process.wait()}"

    def _launch(self) -> subprocess.Popen[bytes]:
        cluster = self.cluster
        postgres = binary("postgres")
        settings = {**self._settings, "unix_socket_directories": str(cluster.socket_dir)}
        options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        reach = [postgres, cluster.directory, cluster.socket_dir]
        command = launch_command(reach, self._user, "SIGINT", str(postgres), "-D", str(cluster.directory), *options)
        with cluster.log_file.open("ab") as log:
            self._log_from = log.tell()
            # A session of its own keeps Ctrl-C in the terminal from it: it is stopped after its clients.
            return subprocess.Popen(
                command,
                env=environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        dsn = self.dsn(dbname="postgres")
        pause = READY_POLL_SECONDS
        while (connection := _try_connect(dsn)) is None:
            if self._ended_within(pause) or time.monotonic() > deadline:
                raise self._start_failure()
            pause = min(1.5 * pause, READY_POLL_SECONDS_MAX)
        try:
            with connection:
                _make_database(connection)
        except psycopg.Error as error:
            raise PostgresError(
                f"The embedded PostgreSQL in {self.cluster.data_dir} started, but cannot be used: {error}"
            ) from error
        self._ready.set()
        if self._ended_within(0):
            raise self._start_failure()

    def _ended_within(self, seconds: float) -> bool:
        if self._keeper is not None:
            self._keeper.join(seconds)
        return self._keeper is None or not self._keeper.is_alive()

    def _start_failure(self) -> Exception:
        if self._launch_error is not None:
            return self._launch_error
        with self.cluster.log_file.open("rb") as log:
            log.seek(self._log_from)
            said = log.read(LOG_BYTES_MAX).decode(errors="replace")
        returncode = self._process.returncode if self._process is not None else None
        ended = "did not start" if self._ended_within(0) else f"did not respond within {READY_SECONDS_MAX} seconds"
        what = f"The embedded PostgreSQL (log: {self.cluster.log_file.name}) {ended}"
        return failure(what, self.cluster, returncode, said)

    def _start_log(self) -> None:
        log_file = self.cluster.log_file
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
            log_file.replace(log_file.with_suffix(".log.old"))
        os.close(_open_private(log_file))


@contextlib.contextmanager
def attach_or_start(data_dir: Path, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Use the server that another process runs on `data_dir`, or else run one until the block ends.

    The `settings` are for a server that is started here. Other commands can use it, too, and the block does not end
    before they do. Raises PostgresError, for example where a running server does not answer in `ATTACH_SECONDS_MAX`.
    """
    deadline = time.monotonic() + ATTACH_SECONDS_MAX
    while True:
        server = EmbeddedPostgres(data_dir, settings)
        try:
            server.start()
        except DataDirectoryInUse as error:
            with _attached(server.cluster) as running:
                if running is not None:
                    yield running
                    return
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"{error} It uses the data directory, but its PostgreSQL does not respond."
                ) from None
            time.sleep(READY_POLL_SECONDS)
        else:
            try:
                yield server.cluster
            finally:
                _stop_when_alone(server)
            return


def _take_data_directory(cluster: Cluster) -> int:
    """Lock the data directory, created if need be, for this process; return the lock's file descriptor."""
    if not cluster.data_dir.exists():
        # PostgreSQL does not run as root and must be able to pass through; each file inside is private.
        cluster.data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    lock = _open_private(cluster.lock_file)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise DataDirectoryInUse(
            f"{cluster.data_dir} is in use by process {holder or 'unknown'}. Stop that process first, or "
            f"{CHOOSE_ANOTHER}."
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _open_private(path: Path) -> int:
    """Open a file of the data directory, created if need be, private to the owner of the directory."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


@contextlib.contextmanager
def _attached(cluster: Cluster) -> Iterator[Cluster | None]:
    """Yield the running server's cluster, and keep it running until the block ends; None if it does not answer."""
    attached = _open_private(cluster.attached_file)
    try:
        try:
            fcntl.flock(attached, fcntl.LOCK_SH | fcntl.LOCK_NB)
            postmaster = cluster.postmaster()
            # The process that started it may have another directory for temporary files than this one.
            running = Cluster(cluster.data_dir, postmaster.socket_dir if postmaster else None)
            connection = _try_connect(running.dsn())
            if connection is not None:
                connection.close()
        except BlockingIOError:
            connection = None
        except PermissionError as error:
            raise PostgresError(
                f"{error.filename} belongs to another user. Run as the user that runs `up`, or {CHOOSE_ANOTHER}."
            ) from error
        yield None if connection is None else running
    finally:
        os.close(attached)


def _stop_when_alone(server: EmbeddedPostgres) -> None:
    attached = None
    try:
        attached = _open_private(server.cluster.attached_file)
        try:
            fcntl.flock(attached, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for other commands that use this PostgreSQL")
            fcntl.flock(attached, fcntl.LOCK_EX)
    finally:
        # Still locked, so that no command attaches to a server that is stopping.
        server.stop()
        if attached is not None:
            os.close(attached)


def _try_connect(dsn: str) -> psycopg.Connection | None:
    """Connect; return None where nothing answers, or a server that is starting or stopping."""
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_SECONDS_MAX)
    except psycopg.OperationalError:
        return None


def _make_database(connection: psycopg.Connection) -> None:
    made = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
    if made is None:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
