"""A cluster of three PostgreSQLs under Patroni, whose etcd each of them reaches by a way of its own, which can be shut.

All of it is on this machine, with short times: a leader that is lost is replaced after about ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import psycopg
import yaml

from infra.postgres.embedded.cluster import User, binary, environment, launch_command
from tests.absent import absent
from tests.places import directory
from tests.test_compose_commands import free_port
from tests.waiting import until

WITHIN_S: Final = 240.0
NODES: Final = 3
# How long a leader is one without being heard of; how often each node looks; how long it asks etcd again.
TTL_S: Final = 10
LOOP_WAIT_S: Final = 1
RETRY_TIMEOUT_S: Final = 3
INSTALL: Final = "apt-get install --no-install-recommends patroni python3-etcd etcd-server"
DATABASE: Final = "sparkledger"


class Gate:
    """A way to a port of this machine, which can be shut: then it takes connections and passes nothing on."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._began = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._began.wait(WITHIN_S)

    async def _serve(self) -> None:
        self._loop, self._opened, self._ended = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = server.sockets[0].getsockname()[1]
        self._began.set()
        await self._ended.wait()
        server.close()
        self._drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A server's task that ends as cancelled is reported as an error by asyncio.
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            await self._opened.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(back):
                ways = {asyncio.create_task(self._pass(*way)) for way in ((reader, back), (there, writer))}
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65_536):
            await self._opened.wait()
            writer.write(content)
            await writer.drain()

    def _drop(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def shut(self) -> None:
        """Pass nothing on."""
        self._loop.call_soon_threadsafe(self._opened.clear)

    def open(self) -> None:
        """Pass new connections on; what was sent while it was shut is lost."""

        def opened() -> None:
            self._drop()
            self._opened.set()

        self._loop.call_soon_threadsafe(opened)

    def close(self) -> None:
        """End."""
        self._loop.call_soon_threadsafe(self._ended.set)


class Node:
    """One PostgreSQL and its Patroni."""

    def __init__(self, number: int, folder: Path, etcd: int, user: User | None, **bootstrap: Any) -> None:
        self.name = f"node{number}"
        self.directory = folder / self.name
        self.directory.mkdir(mode=0o700)
        self.data = self.directory / "data"
        self.port, self.rest = free_port(), free_port()
        self.gate = Gate(etcd)
        self._user = user
        self._log = self.directory / "patroni.log"
        self._configuration = self.directory / "patroni.yml"
        self._configuration.write_text(yaml.safe_dump(self._settings(bootstrap)))
        if user is not None:
            for path in (self.directory, self._configuration):
                os.chown(path, user.uid, user.gid)
        self.process: subprocess.Popen[bytes] | None = None

    def _settings(self, dcs: dict[str, Any]) -> dict[str, Any]:
        trusted = ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
        return {
            "scope": "sparkledger",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.rest}", "connect_address": f"127.0.0.1:{self.rest}"},
            # Otherwise it asks etcd for its address, and goes around the gate.
            "etcd3": {"hosts": [f"127.0.0.1:{self.gate.port}"], "use_proxies": True},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": LOOP_WAIT_S,
                    "retry_timeout": RETRY_TIMEOUT_S,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True},
                }
                | dcs,
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": str(binary("postgres").parent),
                "pgpass": str(self.directory / "pgpass"),
                "pg_hba": trusted,
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
                "parameters": {"unix_socket_directories": str(self.directory), "shared_buffers": "32MB"},
            },
        }

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        patroni = shutil.which("patroni")
        assert patroni is not None
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                launch_command(
                    [self.directory, binary("postgres")], self._user, "SIGTERM", patroni, str(self._configuration)
                ),
                env=environment() | {"HOME": str(self.directory)},
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def dsn(self, user: str = "postgres", dbname: str = DATABASE) -> str:
        """Return how to reach this PostgreSQL, whatever it is at the moment."""
        return f"host=127.0.0.1 port={self.port} user={user} dbname={dbname}"

    def asked(self, query: str, dbname: str = DATABASE) -> Any:
        """Return the first value that this PostgreSQL answers."""
        with psycopg.connect(self.dsn(dbname=dbname), autocommit=True, connect_timeout=10) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def postgres(self) -> list[psutil.Process]:
        """Return the processes of this PostgreSQL, the first one before those that it has started."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.info["name"] == "postgres" and process.cwd() == str(self.data):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid != self._postmaster())

    def _postmaster(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        return 0

    def signal_postgres(self, number: int) -> None:
        """Send a signal to each process of this PostgreSQL."""
        for process in self.postgres():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def signal_patroni(self, number: int) -> None:
        """Send a signal to Patroni."""
        assert self.process is not None
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Let Patroni and PostgreSQL do nothing more, and answer nothing."""
        self.signal_patroni(signal.SIGSTOP)
        self.signal_postgres(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill Patroni and PostgreSQL, frozen or not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WITHIN_S)
            self.process = None
        for process in self.postgres():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: not self.postgres(), WITHIN_S)

    def log(self) -> str:
        """Return the end of what Patroni has written."""
        return self._log.read_text()[-4000:] if self._log.exists() else ""


class Patroni:
    """The cluster."""

    def __init__(self, folder: Path, **dcs: Any) -> None:
        """Take a folder that every user may pass through, and what differs from Patroni's settings for all nodes."""
        for program in ("patroni", "etcd"):
            if shutil.which(program) is None:
                absent(f"{program} is not installed: {INSTALL}")
        nobody = pwd.getpwnam("nobody")
        # PostgreSQL refuses to run as root, and its initdb as a user without a name.
        self._user = User(nobody.pw_uid, nobody.pw_gid) if os.geteuid() == 0 else None
        self.folder = folder
        self._port, peer = free_port(), free_port()
        client, peers = f"http://127.0.0.1:{self._port}", f"http://127.0.0.1:{peer}"
        self._etcd_options = [
            *("--name", "etcd", "--data-dir", str(folder / "etcd" / "data"), "--log-level", "error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *(
                "--listen-peer-urls",
                peers,
                "--initial-advertise-peer-urls",
                peers,
                "--initial-cluster",
                f"etcd={peers}",
            ),
        ]
        self.nodes = [Node(number, folder, self._port, self._user, **dcs) for number in range(1, NODES + 1)]

    def start(self) -> None:
        """Start everything; the first node makes the database, and the others copy it."""
        home = self.folder / "etcd"
        home.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(home, self._user.uid, self._user.gid)
        etcd = shutil.which("etcd")
        assert etcd is not None
        with (home / "log").open("ab") as log:
            self._etcd = subprocess.Popen(
                launch_command([home], self._user, "SIGTERM", etcd, *self._etcd_options),
                env=environment(),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        with httpx.Client(trust_env=False) as http:
            until(lambda: _answers(http, f"http://127.0.0.1:{self._port}/health"), WITHIN_S)
        self.nodes[0].start()
        self.until(lambda: self.leader() is self.nodes[0])
        for node in self.nodes[1:]:
            node.start()
        self.until_whole()
        with psycopg.connect(self.nodes[0].dsn(dbname="postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; show what the nodes have written if it does not come to hold."""
        try:
            until(condition, WITHIN_S)
        except AssertionError:
            said = "\n".join(f"--- {node.name}\n{node.log()}" for node in self.nodes)
            raise AssertionError(said) from None

    def members(self) -> list[dict[str, Any]]:
        """Return what Patroni says of its nodes; nothing while none of them answers."""
        for node in self.nodes:
            with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
                asked = httpx.get(f"http://127.0.0.1:{node.rest}/cluster", timeout=2, trust_env=False)
                if asked.is_success:
                    return list(asked.json()["members"])
        return []

    def leader(self) -> Node | None:
        """Return the node that Patroni says leads, and whose PostgreSQL is a primary; None if there is none now."""
        names = [one["name"] for one in self.members() if one["role"] == "leader" and one["state"] == "running"]
        for node in self.nodes:
            if node.name in names:
                with contextlib.suppress(psycopg.Error):
                    if not node.asked("SELECT pg_is_in_recovery()", "postgres"):
                        return node
        return None

    def until_another_leads(self, than: Node) -> Node:
        """Wait until another node leads, and return it."""
        self.until(lambda: self.leader() not in {None, than})
        found = self.leader()
        assert found is not None
        return found

    def until_whole(self) -> Node:
        """Wait until one node leads, and all others follow it; return the one that leads."""

        def whole() -> bool:
            members = self.members()
            lines = {one.get("timeline") for one in members}
            states = sorted(one["state"] for one in members)
            roles = sorted(one["role"] for one in members)
            follows = all(state in {"running", "streaming"} for state in states)
            synchronous = "sync_standby" in roles or not self.synchronous
            return len(members) == NODES and len(lines) == 1 and follows and "leader" in roles and synchronous

        self.until(whole)
        found = self.leader()
        assert found is not None
        return found

    @property
    def synchronous(self) -> bool:
        """Whether commits wait for a standby."""
        settings = yaml.safe_load((self.nodes[0].directory / "patroni.yml").read_text())
        return bool(settings["bootstrap"]["dcs"].get("synchronous_mode"))

    def switch_over(self, leader: Node, candidate: Node) -> None:
        """Have a leader give way to another node, as an operator does for maintenance."""
        asked = httpx.post(
            f"http://127.0.0.1:{leader.rest}/switchover",
            json={"leader": leader.name, "candidate": candidate.name},
            timeout=60,
            trust_env=False,
        )
        assert asked.is_success, asked.text

    def synchronous_standby(self) -> Node:
        """Return the node that has every acknowledged commit."""
        names = [one["name"] for one in self.members() if one["role"] == "sync_standby"]
        return next(node for node in self.nodes if node.name in names)

    def url(self, user: str, *, first: Node | None = None) -> str:
        """Return a database URL that names all nodes, a certain one first."""
        nodes = sorted(self.nodes, key=lambda node: node is not first)
        hosts, ports = ",".join("127.0.0.1" for _ in nodes), ",".join(str(node.port) for node in nodes)
        return f"host={hosts} port={ports} user={user} dbname={DATABASE} target_session_attrs=primary"

    def stop(self) -> None:
        """End everything, each by its id."""
        for node in self.nodes:
            node.kill()
            node.gate.close()
        if hasattr(self, "_etcd"):
            self._etcd.kill()
            self._etcd.wait(WITHIN_S)


def _answers(http: httpx.Client, url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get(url).is_success
    return False


@contextlib.contextmanager
def patroni(**dcs: Any) -> Iterator[Patroni]:
    """Run a cluster for as long as the block takes."""
    folder = directory("patroni")
    cluster = Patroni(folder, **dcs)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
