from __future__ import annotations

import contextlib
import logging
import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import psycopg
import pytest

from infra.postgres.embedded import cluster
from infra.postgres.embedded import server as postgres
from infra.postgres.embedded.cluster import Cluster, PostgresError, User, launch_command, stop_leftovers
from infra.postgres.embedded.server import DataDirectoryInUse, EmbeddedPostgres, attach_or_start
from tests.absent import absent
from tests.infra.programs import DEADLINE_SECONDS, running, wait_until_gone
from tests.places import directory

pytestmark = pytest.mark.long("database servers are made, killed and started again")

AS_ROOT: Final = os.geteuid() == 0
NOBODY: Final = pwd.getpwnam("nobody")
DAEMON: Final = User(pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("daemon").pw_gid)
ON_LINUX: Final = sys.platform == "linux"

only_for_root = pytest.mark.usefixtures("root")
only_on_linux = pytest.mark.usefixtures("linux")

# Runs the server until it is told to stop, or killed.
SERVE: Final = """
import signal, sys
from pathlib import Path
from infra.postgres.embedded.server import EmbeddedPostgres

with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print("serving", server.pid, flush=True)
    signal.pause()
"""

# The same, as on a platform that tells no child of its parent's death: that signal is one that changes nothing.
SERVE_UNTIED: Final = f"""
from infra.postgres.embedded import server as postgres
tied = postgres.launch_command
postgres.launch_command = lambda reach, user, _, *command: tied(reach, user, "SIGCONT", *command)
{SERVE}"""


def a_place() -> Path:
    """Make a directory that every user may pass through and none may list."""
    path = directory("embedded")
    path.chmod(0o711)
    return path


@pytest.fixture
def root() -> None:
    """The superuser, who alone can run programs as others."""
    if not AS_ROOT:
        absent("tells what root does: run the tests as root")


@pytest.fixture
def linux() -> None:
    """A kernel that knows capabilities and signals a child at its parent's death."""
    if not ON_LINUX:
        absent("tells what Linux does: run the tests on Linux")


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """A cluster to copy, because most tests are not about how one is made."""
    path = a_place()
    with EmbeddedPostgres(path / "d"):
        pass
    yield path / "d" / "postgres"
    shutil.rmtree(path)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for data directories; whatever still runs below it is ended afterwards."""
    path = a_place()
    yield path
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "postgres" and process.cwd().startswith(f"{path}/"):
                process.kill()
    shutil.rmtree(path)


@pytest.fixture
def ready(place: Path, made_once: Path) -> Path:
    """A data directory whose cluster has run before; where root runs the tests, the copy is root's."""
    (place / "d").mkdir(mode=0o755)
    shutil.copytree(made_once, place / "d" / "postgres")
    return place / "d"


@pytest.fixture(scope="module")
def server(made_once: Path) -> Iterator[EmbeddedPostgres]:
    """A server for the tests that change nothing that another would notice."""
    path = a_place()
    (path / "d").mkdir(mode=0o755)
    shutil.copytree(made_once, path / "d" / "postgres")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPARKLEDGER_MASTER_KEY", "hunter2")
        with EmbeddedPostgres(path / "d") as server:
            yield server
    shutil.rmtree(path)


def run(cluster: Cluster | EmbeddedPostgres, statement: str, user: str = "postgres") -> list[tuple[object, ...]]:
    with psycopg.connect(cluster.dsn(user), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def remember(cluster: Cluster | EmbeddedPostgres) -> None:
    run(cluster, "CREATE TABLE remembered AS SELECT 42 AS answer")


def remembers(cluster: Cluster | EmbeddedPostgres) -> bool:
    return run(cluster, "SELECT answer FROM remembered") == [(42,)]


def answers(cluster: EmbeddedPostgres) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        return run(cluster, "SELECT 1") == [(1,)]
    return False


# -- Starting and stopping


def test_a_second_start_finds_the_same_rows_within_a_second(ready: Path) -> None:
    with EmbeddedPostgres(ready) as first:
        remember(first)
        pid = first.pid
    assert pid is not None
    assert not psutil.pid_exists(pid)

    began = time.monotonic()
    with EmbeddedPostgres(ready) as second:
        took = time.monotonic() - began
        assert remembers(second)

    # A whole second on a machine of its own; the tests share theirs.
    assert took < 5
    assert "was not properly shut down" not in (ready / "postgres.log").read_text()


def test_it_listens_on_a_private_socket_alone_and_keeps_what_it_commits(place: Path) -> None:
    with EmbeddedPostgres(place / "d", {"shared_buffers": "16MB"}) as server:
        names = (
            *("listen_addresses", "fsync", "synchronous_commit", "full_page_writes", "data_checksums", "timezone"),
            *("server_encoding", "max_connections", "max_wal_size", "jit", "shared_buffers"),
        )
        shown = {name: run(server, f"SHOW {name}")[0][0] for name in names}
        sockets = server.cluster.socket_dir.stat()
        sorting = run(server, "SELECT datcollate, datlocale FROM pg_database WHERE datname = 'sparkledger'")

    assert shown == {
        "listen_addresses": "",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "timezone": "UTC",
        "server_encoding": "UTF8",
        "max_connections": "100",
        "max_wal_size": "2GB",
        "jit": "off",
        "shared_buffers": "16MB",
    }
    assert sorting == [("C", "C.UTF-8")]
    assert stat.S_IMODE(sockets.st_mode) == 0o700


def test_a_login_role_is_held_to_its_grants(server: EmbeddedPostgres) -> None:
    remember(server)
    run(server, "CREATE ROLE visitor LOGIN")

    assert run(server, "SELECT current_user::text", user="visitor") == [("visitor",)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run(server, "SELECT answer FROM remembered", user="visitor")


def test_another_server_named_in_the_environment_is_not_reached(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATABASE", "elsewhere")

    assert run(server, "SELECT current_database()::text") == [("sparkledger",)]


@only_on_linux
def test_the_server_sees_nothing_of_our_environment_and_no_ctrl_c(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    assert os.environ["SPARKLEDGER_MASTER_KEY"] == "hunter2"
    assert psutil.Process(server.pid).environ().keys() <= {"PATH", "LC_ALL", "TZ"}
    assert os.getsid(server.pid) == server.pid


def test_a_start_that_fails_says_why_and_leaves_the_directory_free(ready: Path) -> None:
    with pytest.raises(PostgresError) as refused:
        EmbeddedPostgres(ready, {"shared_buffers": "plenty"}).start()

    message = str(refused.value)
    assert message.startswith(f"The embedded PostgreSQL (log: postgres.log) did not start in {ready}: ")
    assert 'invalid value for parameter "shared_buffers": "plenty"' in message
    assert "\n" not in message
    with EmbeddedPostgres(ready):
        pass


def test_a_data_directory_that_is_a_file_is_refused_with_what_to_do(place: Path) -> None:
    (place / "file").touch()

    with pytest.raises(PostgresError, match="choose another directory with SPARKLEDGER_DATA_DIR"):
        EmbeddedPostgres(place / "file").start()


def test_a_cluster_of_another_version_is_left_alone(ready: Path) -> None:
    (ready / "postgres" / "PG_VERSION").write_text("16\n")

    with pytest.raises(
        PostgresError, match=r"was written by PostgreSQL 16, but this program contains version 18\. Move the"
    ):
        EmbeddedPostgres(ready).start()


def test_a_log_that_has_grown_is_put_aside_at_the_next_start(ready: Path) -> None:
    (ready / "postgres.log").write_bytes(b"x" * (postgres.LOG_BYTES_MAX + 1))

    with EmbeddedPostgres(ready) as server:
        assert server.cluster.log_file.stat().st_size < 10_000
        assert (ready / "postgres.log.old").stat().st_size == postgres.LOG_BYTES_MAX + 1


def test_below_a_deep_directory_it_listens_in_a_short_one(place: Path) -> None:
    deep = place / ("d" * 120)

    with EmbeddedPostgres(deep) as server:
        sockets = server.cluster.socket_dir
        remember(server)
        with attach_or_start(deep) as attached:
            assert remembers(attached)
    sockets.rmdir()

    assert sockets.parent == Path(tempfile.gettempdir())


@pytest.mark.parametrize("trap", ["open to others", "a link"])
def test_a_short_directory_that_others_prepared_is_refused(place: Path, trap: str) -> None:
    server = EmbeddedPostgres(place / ("d" * 120))
    sockets = server.cluster.socket_dir
    if trap == "a link":
        sockets.symlink_to(place)
    else:
        sockets.mkdir()
        sockets.chmod(0o777)

    try:
        with pytest.raises(PostgresError, match=r"is not a private directory of the user that runs it\. Remove it"):
            server.start()
    finally:
        if trap == "a link":
            sockets.unlink()
        else:
            sockets.rmdir()


# -- Kills


def test_a_killed_server_is_started_again_with_everything_that_was_committed(
    ready: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres(ready) as server:
        remember(server)
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        deadline = time.monotonic() + DEADLINE_SECONDS
        while server.pid in {pid, None} or not answers(server):
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        assert remembers(server)

    assert "PostgreSQL ended unexpectedly (code -9); restarting it in 0.2 s" in caplog.messages


@only_on_linux
def test_when_the_parent_is_killed_the_server_ends_too_and_the_next_start_finds_the_same_rows(ready: Path) -> None:
    with running(SERVE, str(ready)) as program:
        pid = int(program.line("serving").split()[-1])
        remember(Cluster(ready))
        program.process.kill()
        wait_until_gone(pid)

    with EmbeddedPostgres(ready) as server:
        assert remembers(server)


@pytest.mark.parametrize("what_is_left", ["a server", "a busy backend"])
def test_what_a_killed_run_left_running_is_stopped_by_the_next_start(ready: Path, what_is_left: str) -> None:
    with running(SERVE_UNTIED, str(ready)) as program:
        pid = int(program.line("serving").split()[-1])
        cluster = Cluster(ready)
        remember(cluster)
        with contextlib.closing(psycopg.connect(cluster.dsn(), autocommit=True)) as busy:
            # Nothing tells a backend in the middle of a computation that its postmaster is gone.
            busy.pgconn.send_query(b"SELECT count(*) FROM (SELECT generate_series(1, 1000000000000)) AS endless")
            program.process.kill()
            program.process.wait(DEADLINE_SECONDS)
            if what_is_left == "a busy backend":
                os.kill(pid, signal.SIGKILL)
                wait_until_gone(pid)
            left = cluster.processes()
            assert left

            with EmbeddedPostgres(ready) as server:
                assert server.pid != pid
                assert remembers(server)
            for process in left:
                wait_until_gone(process.pid)


def test_a_kill_in_the_middle_of_initdb_leaves_nothing_half_done(place: Path) -> None:
    script = f"""
import os, signal
from infra.postgres.embedded import cluster as postgres_cluster
postgres_cluster.Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{SERVE}"""
    with running(script, str(place / "d")) as program:
        assert program.process.wait(DEADLINE_SECONDS) == -signal.SIGKILL
    assert not (place / "d" / "postgres").exists()
    assert list((place / "d").glob("postgres.new-*"))

    with EmbeddedPostgres(place / "d") as server:
        remember(server)

    assert not list((place / "d").glob("postgres.new-*"))


def test_a_stale_note_is_removed_only_where_another_program_has_its_process_id(place: Path) -> None:
    cluster = Cluster(place / "d")
    cluster.directory.mkdir(parents=True)
    note = cluster.directory / "postmaster.pid"

    note.write_text(f"{os.getpid()}\n")
    stop_leftovers(cluster)
    assert not note.exists()

    note.write_text("999999999\n")
    stop_leftovers(cluster)
    assert note.exists()


# -- One holder, many users


def test_a_second_holder_is_refused_with_the_process_id_of_the_first(server: EmbeddedPostgres) -> None:
    with pytest.raises(DataDirectoryInUse) as refused:
        EmbeddedPostgres(server.cluster.data_dir).start()
    with pytest.raises(PostgresError, match="was already started"):
        server.start()

    assert run(server, "SELECT 1") == [(1,)]
    assert str(refused.value) == (
        f"{server.cluster.data_dir} is in use by process {os.getpid()}. Stop that process first, "
        "or choose another directory with SPARKLEDGER_DATA_DIR."
    )


def test_a_command_uses_the_server_that_runs_and_leaves_it_running(ready: Path) -> None:
    with running(SERVE, str(ready)) as program:
        pid = int(program.line("serving").split()[-1])
        with attach_or_start(ready) as cluster:
            remember(cluster)
            noted = cluster.postmaster()
            assert noted is not None
            assert noted.pid == pid
        assert remembers(cluster)


def test_a_command_runs_a_server_of_its_own_where_none_runs(ready: Path) -> None:
    with attach_or_start(ready) as cluster:
        remember(cluster)
        noted = cluster.postmaster()

    assert noted is not None
    assert not psutil.pid_exists(noted.pid)
    with attach_or_start(ready) as cluster:
        assert remembers(cluster)


def test_a_command_that_started_the_server_waits_for_those_that_use_it_too(ready: Path) -> None:
    started, may_end, waits = threading.Event(), threading.Event(), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("waiting for other commands"):
                waits.set()

    def first() -> None:
        with attach_or_start(ready):
            started.set()
            assert may_end.wait(DEADLINE_SECONDS)

    listener = Listener()
    log = logging.getLogger(postgres.__name__)
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    thread = threading.Thread(target=first)
    try:
        thread.start()
        assert started.wait(DEADLINE_SECONDS)
        with attach_or_start(ready) as second:
            may_end.set()
            assert waits.wait(DEADLINE_SECONDS)
            remember(second)
            assert remembers(second)
            noted = second.postmaster()
        thread.join(DEADLINE_SECONDS)
    finally:
        may_end.set()
        log.removeHandler(listener)
        log.setLevel(logging.NOTSET)

    assert noted is not None
    assert not psutil.pid_exists(noted.pid)


# -- Root


@only_for_root
@pytest.mark.parametrize("owner", ["root", "daemon", "a user without a name"])
def test_root_runs_it_as_an_unprivileged_user_and_changes_no_parent(place: Path, owner: str) -> None:
    parent = place / "parent"
    (parent / "d").mkdir(mode=0o755, parents=True)
    if owner == "daemon":
        os.chown(parent / "d", DAEMON.uid, DAEMON.gid)
    elif owner == "a user without a name":
        os.chown(parent / "d", 54321, 54321)
    before = [(path.stat().st_mode, path.stat().st_uid) for path in (place, parent, parent / "d")]

    with EmbeddedPostgres(parent / "d") as server:
        assert server.pid is not None
        uid = psutil.Process(server.pid).uids().real
        assert psutil.Process(server.pid).uids() == (uid, uid, uid)
        assert (uid == DAEMON.uid) is (owner == "daemon")
        if ON_LINUX:
            assert capabilities(server.pid) == 0

    assert [(path.stat().st_mode, path.stat().st_uid) for path in (place, parent, parent / "d")] == before
    assert (parent / "d" / "postgres").stat().st_uid == uid
    assert (parent / "d" / "postgres.log").stat().st_uid == (parent / "d").stat().st_uid


@only_for_root
@only_on_linux
def test_root_runs_each_cluster_as_a_user_that_nothing_else_runs_as(place: Path) -> None:
    script = """
import sys
import psycopg
try:
    psycopg.connect(sys.argv[1])
    print("let in")
except psycopg.OperationalError as error:
    print("kept out")
"""
    reach = [Path(sys.executable).resolve(), Path(postgres.__file__).parent]
    users = set()
    for name in ("one", "other"):
        with EmbeddedPostgres(place / name) as server:
            assert server.pid is not None
            process = psutil.Process(server.pid)
            uid = process.uids().effective
            users.add((uid, process.gids().effective))
            with pytest.raises(KeyError):
                pwd.getpwuid(uid)
            with running(script, server.dsn(), before=launch_command(reach, nobody(), "SIGKILL")) as program:
                assert program.rest() == ["kept out"]
        files = {path.lstat().st_uid for path in (place / name / "postgres").rglob("*")}
        assert files == {uid}
    assert len(users) == 2


@only_for_root
@only_on_linux
def test_where_a_container_has_few_user_ids_root_runs_it_as_nobody(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_is_mapped", lambda uid: uid < 65_536)
    with EmbeddedPostgres(place / "d") as server:
        assert server.pid is not None
        assert psutil.Process(server.pid).uids().real == NOBODY.pw_uid


def nobody() -> User:
    return User(NOBODY.pw_uid, NOBODY.pw_gid)


@only_for_root
@only_on_linux
def test_root_keeps_one_capability_where_a_parent_is_closed_and_none_may_be_kept_elsewhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    search = 1 << 2
    if not capabilities(os.getpid()) & search:
        how = "this container took CAP_DAC_READ_SEARCH away; give it back to see it kept"
        absent(how)

    with EmbeddedPostgres(closed / "d") as server:
        assert server.pid is not None
        assert capabilities(server.pid) == search
        remember(server)

    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@only_for_root
@only_on_linux
def test_where_that_capability_cannot_be_kept_the_closed_directory_is_named(tmp_path: Path) -> None:
    closed = tmp_path.resolve() / "closed"
    closed.mkdir(mode=0o700)
    drop_from_the_bounding_set = """
import ctypes
PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH = 24, 2
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0)
import sys
from pathlib import Path
from infra.postgres.embedded.cluster import PostgresError
from infra.postgres.embedded.server import EmbeddedPostgres
try:
    EmbeddedPostgres(Path(sys.argv[1])).start()
except PostgresError as error:
    print("refused:", error)
"""
    with running(drop_from_the_bounding_set, str(closed / "d")) as program:
        lines = program.rest()

    assert len(lines) == 1
    blocked = next(path for path in (*reversed(closed.parents), closed) if not path.stat().st_mode & 0o001)
    assert f"the user with id {NOBODY.pw_uid} has no access to the directory {blocked}. " in lines[0]
    assert "choose another directory with SPARKLEDGER_DATA_DIR" in lines[0]


@only_for_root
def test_any_other_user_runs_it_as_themselves(place: Path) -> None:
    (place / "home").mkdir(mode=0o700)
    os.chown(place / "home", DAEMON.uid, DAEMON.gid)
    script = """
import os, sys
from pathlib import Path
import psutil
from infra.postgres.embedded.server import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    print("runs as", os.geteuid(), psutil.Process(server.pid).uids().effective, flush=True)
"""
    # The interpreter and this repository may lie where only root may go: what the launcher keeps for PostgreSQL
    # serves here as well.
    reach = [Path(sys.executable).resolve(), Path(postgres.__file__).parent]
    before = launch_command(reach, DAEMON, "SIGKILL")
    with running(script, str(place / "home" / "d"), before=before) as program:
        assert program.rest() == [f"runs as {DAEMON.uid} {DAEMON.uid}"]

    assert stat.S_IMODE((place / "home" / "d").stat().st_mode) == 0o700


@only_for_root
def test_the_cluster_of_another_user_is_refused(ready: Path) -> None:
    with EmbeddedPostgres(ready):
        pass
    os.chown(ready, DAEMON.uid, DAEMON.gid)
    for name in ("up.lock", "postgres.log"):
        os.chown(ready / name, DAEMON.uid, DAEMON.gid)
    script = """
import sys
from pathlib import Path
from infra.postgres.embedded.cluster import PostgresError
from infra.postgres.embedded.server import EmbeddedPostgres
try:
    EmbeddedPostgres(Path(sys.argv[1])).start()
except PostgresError as error:
    print("refused:", error)
"""
    reach = [Path(sys.executable).resolve(), Path(postgres.__file__).parent]
    before = launch_command(reach, DAEMON, "SIGKILL")
    owner = (ready / "postgres").stat().st_uid
    with running(script, str(ready), before=before) as program:
        refusal = program.rest()[-1]

    assert refusal == (
        f"refused: {ready}/postgres belongs to the user with id {owner}. Run as that user, "
        "or choose another directory with SPARKLEDGER_DATA_DIR."
    )


def capabilities(pid: int) -> int:
    """Return the set of capabilities in effect for a process, from Linux's own account of it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


# -- With the supervisor

UP: Final = """
import sys
from pathlib import Path
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.processes.supervisor import Child, Supervisor

child = '''
import os, signal
from infra.processes.supervisor import announce_ready, die_with_parent
die_with_parent()
announce_ready(str(os.getpid()))
while True:
    signal.pause()
'''
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    with Supervisor([Child(name, [sys.executable, "-c", child]) for name in ("api", "worker")]) as up:
        up.start()
        print("up", server.pid, up.wait_ready("api", 20), up.wait_ready("worker", 20), flush=True)
        up.run()
print("down", flush=True)
"""


@only_on_linux
def test_after_a_kill_of_everything_at_its_root_a_second_up_finds_the_same_rows_and_stops_cleanly(ready: Path) -> None:
    with running(UP, str(ready)) as program:
        pids = [int(pid) for pid in program.line("up ").split()[1:]]
        remember(Cluster(ready))
        program.process.kill()
        for pid in pids:
            wait_until_gone(pid)

    with running(UP, str(ready)) as program:
        pids = [int(pid) for pid in program.line("up ").split()[1:]]
        assert remembers(Cluster(ready))
        began = time.monotonic()
        program.process.send_signal(signal.SIGTERM)
        program.line("down")
        assert program.process.wait(DEADLINE_SECONDS) == 0
        assert time.monotonic() - began < 5
        assert not any(psutil.pid_exists(pid) for pid in pids)
