"""What tests share: a real PostgreSQL for each worker of the test run, and a fresh migrated database for each test."""

from __future__ import annotations

import gc
import itertools
import os
import select
import shutil
import ssl
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import psutil
import psycopg
import pytest
from psycopg import sql
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped] # it has no types

from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.server_check import MAY_LOSE_DATA
from tests.places import directory

if TYPE_CHECKING:
    from tests.serving import LiveServer, Server, Serving

TEMPLATE = "template_migrated"
# What takes seconds to start, and the tests that share it: one process runs them all.
TOGETHER = {
    "walk": ("tests/test_canary.py",),
    "verifiers": tuple(
        f"tests/console/test_verifier_page.py::test_{browser}_says" for browser in ("chromium", "firefox", "webkit")
    ),
    "provider": ("tests/console/test_sign_in_elsewhere.py",),
    "issuer": ("tests/api/http/test_bearer_tokens.py",),
    "linter": ("tests/test_imports.py",),
    "recipes": ("tests/test_recipes.py",),
    "kafka": ("tests/infra/delivery/kafka/test_outages.py",),
    "up": (
        "tests/api/http/test_page_process.py",
        "tests/api/http/test_protocol.py::test_a_head_that_does_not_end_is_refused_and_the_connection_closed",
        "tests/api/http/test_protocol.py::test_a_usual_head_is_answered",
        "tests/infra/processes/test_worker_processes.py",
        "tests/test_documents.py::test_the_readmes_blocks_run_in_order_and_print_what_it_says",
        "tests/test_story.py::test_the_demo_runs_against_a_program_that_is_up",
        "tests/test_up_secrets.py",
    ),
}
# Nothing is asked of the disk, and the log stays small, since it may be kept in memory.
FORGETFUL = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "128MB",
    "max_connections": "200",
    # Databases of tests are small; each that is made or dropped is looked for in every buffer.
    "shared_buffers": "24MB",
    # It would visit each server's tables every minute; tests that need statistics gather them themselves.
    "autovacuum": "off",
    # Otherwise no process would start on it.
    MAY_LOSE_DATA: "on",
}
TESTS_OF_A_SERVER = 100
# The fixtures that start programs which people install beside Python: brokers of Kafka, and Chromium.
PROGRAMS = frozenset({"browsers", "kafka", "own_kafka"})
# How many tests were left out because they are of another tier.
LEFT_OUT = pytest.StashKey[int]()


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # as above
    """Each test goes to the process that is free, but for those that share what is costly to start.

    xdist's own groups have no effect with this pytest: it no longer heeds what xdist appends to a test's id.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((shared for shared, tests in TOGETHER.items() if nodeid.startswith(tests)), nodeid)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Forget what is done: else all of it is counted again after each test."""
        nodeid = self.registered_collections[node][item_index]
        scope = self._split_scope(nodeid)
        work = self.assigned_work[node]
        work[scope][nodeid] = True
        if all(work[scope].values()):
            del work[scope]
        self._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Take the place of whatever --dist names."""
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are cores, since tests wait a good part of their time; each has its servers.

    Continuous integration runs as many as there are cores: that takes longer, and nothing waits for a core until it is
    late.
    """
    cores = psutil.cpu_count() or 1
    return min(cores if os.environ.get("CI") else cores + 1, 5)


def pytest_configure() -> None:
    """Look for no garbage while modules are imported and tests collected: nothing of it is any."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from here on, but not among all that, again and again, nor after each few hundred objects."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test` and `make long` each run their tier; without the option, pytest runs all that it is asked to."""
    parser.addoption("--tier", choices=("test", "long"), help="run only the tests of this tier")


def is_long(item: pytest.Item) -> bool:
    """Tell whether a test is marked as long, or needs a broker or a browser, which take seconds to start."""
    needs_program = not PROGRAMS.isdisjoint(getattr(item, "fixturenames", ()))
    return needs_program or item.get_closest_marker("long") is not None


@pytest.hookimpl(trylast=True)  # what `-k` leaves out is not counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the tier, and begin with what takes longest: begun last, other processes would be idle."""
    tier = config.getoption("tier")
    if tier is not None:
        # Who names a file or a test wants it, however long it takes.
        named = _named_files(config) if tier == "test" else set()
        kept = {item: is_long(item) == (tier == "long") or item.path in named for item in items}
        left_out = [item for item in items if not kept[item]]
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = len(left_out)
        items[:] = [item for item in items if kept[item]]
    first = tuple(itertools.chain.from_iterable(TOGETHER.values()))
    items.sort(key=lambda item: not (is_long(item) or item.nodeid.startswith(first)))


def _named_files(config: pytest.Config) -> set[Path]:
    paths = (config.invocation_params.dir / argument.partition("::")[0] for argument in config.args)
    return {path.resolve() for path in paths if path.is_file()}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the process that sums up know how many tests this one left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each process collects the same tests, and leaves the same ones out."""
    left_out = getattr(node, "workeroutput", {}).get("left out", 0)  # one that crashed says nothing
    node.config.stash[LEFT_OUT] = max(left_out, node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what did not run, and how it would."""
    if config.getoption("tier") == "test" and (count := config.stash.get(LEFT_OUT, 0)):
        terminalreporter.write_line(f"{count} long tests were left out. `make long` runs them, with the same ARGS.")


@dataclass(frozen=True)
class TestDatabase:
    """One database of the test cluster, gone after the test."""

    __test__ = False
    cluster: EmbeddedPostgres
    name: str
    _kept: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False, compare=False)

    def dsn(self, user: str = "postgres") -> str:
        """Return how to reach it as a user: postgres, sparkledger_api or sparkledger_worker."""
        return self.cluster.dsn(user, self.name)

    def sql(self, query: Any, parameters: Sequence[Any] | None = None) -> list[Any]:
        """Ask the database itself, as its superuser, as in a session of its own.

        The session is kept and reset, since to begin one takes longer than most questions.
        """
        session = self._session()
        try:
            cursor = session.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []
        finally:
            if not session.closed:
                session.execute("DISCARD ALL")

    def _session(self) -> psycopg.Connection[Any]:
        # What an idle session hears unasked is that it has ended.
        if self._kept and (self._kept[0].closed or select.select([self._kept[0]], [], [], 0)[0]):
            self.close()
        if not self._kept:
            self._kept.append(psycopg.connect(self.dsn(), autocommit=True, prepare_threshold=None))
        return self._kept[0]

    def close(self) -> None:
        """End the session that is kept."""
        while self._kept:
            self._kept.pop().close()


@pytest.fixture(scope="session", autouse=True)
def no_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust no public authority in this process, but for one: nothing here asks the internet.

    To read the certificates of all of them is most of what a client of HTTP costs, and tests make thousands of clients.
    """
    end = "-----END CERTIFICATE-----"
    one = tmp_path_factory.mktemp("authorities") / "one.pem"
    one.write_text(Path(certifi.where()).read_text().partition(end)[0] + end + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
        patch.setattr(certifi, "where", lambda: str(one))
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this test process; it forgets on a crash, which the tests of crashes do not."""
    place = directory("cluster")
    with EmbeddedPostgres(place, FORGETFUL) as server:
        with psycopg.connect(server.dsn(dbname="postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate(server.dsn(dbname=TEMPLATE))
        with psycopg.connect(server.dsn(dbname=TEMPLATE), autocommit=True) as connection:
            # What tests below the domain record, as the clock or as an operator.
            connection.execute(
                "INSERT INTO event_types VALUES ('Tested', 1, '{clock,operator}'), ('Marked', 1, '{clock}')"
            )
        yield server
    shutil.rmtree(place)


@contextmanager
def fresh_database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    """Make a database with every migration applied and nothing in it."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.dsn(dbname="postgres"), autocommit=True) as connection:
        connection.execute(
            # Copied by the file: writing each page to the log, the default, is dearer where nothing is flushed.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE)
            )
        )
        database = TestDatabase(cluster, name)
        yield database
        database.close()
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    """A fresh database with every migration applied and nothing in it."""
    with fresh_database(cluster) as fresh:
        yield fresh


@pytest.fixture
def server_path() -> Iterator[Path]:
    """As tmp_path, for what a server keeps: in memory where there is room, and any user may pass through it."""
    place = directory("server")
    yield place
    shutil.rmtree(place)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


class Servers:
    """The server of this test process, on a database of its own; from time to time, another takes its place.

    It would become slower with each test: all views together follow all of its ledgers.
    """

    def __init__(self, cluster: EmbeddedPostgres) -> None:
        self._cluster = cluster
        self._opened = ExitStack()
        self._running: Serving | None = None
        self._tests = 0

    def for_a_test(self) -> Serving:
        """Return the server for one test, which makes its own ledger on it."""
        from tests.serving import Serving

        self._tests += 1
        if self._running is None or self._tests > TESTS_OF_A_SERVER:
            self.close()
            database = self._opened.enter_context(fresh_database(self._cluster))
            self._running, self._tests = self._opened.enter_context(Serving(database)), 1
        return self._running

    def close(self) -> None:
        """Stop the server, and drop its database."""
        self._opened.close()
        self._running = None


@pytest.fixture(scope="session")
def servers(cluster: EmbeddedPostgres) -> Iterator[Servers]:
    """The servers of this test process, one after another."""
    found = Servers(cluster)
    yield found
    found.close()


@pytest.fixture
def serving(servers: Servers) -> Serving:
    """A running server that other tests use too."""
    return servers.for_a_test()


@pytest.fixture
def server(serving: Serving) -> Server:
    """A running server, and a fresh ledger on it."""
    from tests.serving import new_ledger

    return new_ledger(serving)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """`sparkledger up`, started as a user starts it; shared by the tests of this process."""
    from tests.serving import start_live_server

    place = directory("up")
    running = start_live_server(place / "data")
    try:
        yield running
    finally:
        assert running.stop() == 0, "sparkledger up did not end cleanly"
        shutil.rmtree(place)
