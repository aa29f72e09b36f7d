"""docker-compose.yml without containers: its commands, its environment and its order, as plain processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from api.demo import run_demo
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.server_check import MAY_LOSE_DATA
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.fixtures import kafka
from tests.infra.delivery.kafka.publishing import events, once_and_in_order
from tests.keys import ERASURE_KEYS
from tests.places import directory
from tests.test_compose import compose, env, make_owner, services, started_with
from tests.waiting import until

__all__ = ["compose", "env", "kafka", "services"]

REPOSITORY = Path(__file__).parent.parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Stack:
    """The file's services as processes, with this machine's places in those of the containers'."""

    def __init__(
        self,
        services: dict[str, dict[str, Any]],
        env: dict[str, str],
        server: EmbeddedPostgres,
        kafka: Broker,
        data_dir: Path,
    ) -> None:
        self.services = services
        self.env = env
        self.server = server
        self.kafka = kafka
        self.port = free_port()
        self.data_dir = data_dir

    def environment(self, name: str) -> dict[str, str]:
        """Return what a service is started with; its database is the test's, reached by its socket, as is its Kafka."""
        given = started_with(self.services[name], self.env)
        socket_dir = psycopg.conninfo.conninfo_to_dict(self.server.dsn())["host"]
        ours = f"@/sparkledger?host={socket_dir}"
        here = {key: value.replace("@postgres:5432/sparkledger", ours) for key, value in given.items()}
        here = {key: value.replace("kafka:9092", self.kafka.plain) for key, value in here.items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SPARKLEDGER_")}
        here = {key: value.replace("/var/lib/sparkledger/anchor", str(self.data_dir)) for key, value in here.items()}
        return {
            **kept,
            **here,
            "SPARKLEDGER_PORT": str(self.port),
            "SPARKLEDGER_DATA_DIR": str(self.data_dir),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        }

    def command(self, name: str) -> list[str]:
        """Return a service's command, after the image's entry point."""
        return [sys.executable, "-m", "cli", *self.services[name]["command"]]

    def once(self, name: str) -> None:
        """Run a service that ends by itself."""
        done = subprocess.run(
            self.command(name), env=self.environment(name), cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a service until the block ends, when it must end cleanly."""
        with subprocess.Popen(self.command(name), env=self.environment(name), cwd=REPOSITORY) as process:
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(20)
        assert code == 0, f"{name} ended with {code}"

    def healthy(self, name: str) -> bool:
        """Ask as the file asks, at the test's port."""
        kind, program, *arguments = self.services[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        here = [argument.replace("127.0.0.1:8080", f"127.0.0.1:{self.port}") for argument in arguments]
        here = [argument.replace("api:8080", f"127.0.0.1:{self.port}") for argument in here]
        return subprocess.run([sys.executable, *here], capture_output=True, check=False).returncode == 0


@pytest.fixture(name="server")
def own_server() -> Iterator[EmbeddedPostgres]:
    place = directory("compose")
    with EmbeddedPostgres(place, {"fsync": "off", MAY_LOSE_DATA: "on"}) as running:
        yield running
    shutil.rmtree(place)


def start_order(services: dict[str, dict[str, Any]]) -> list[str]:
    """Return our own services in the order in which the file lets them start."""
    ours = {name: service for name, service in services.items() if service.get("image") == "sparkledger"}
    order: list[str] = []
    while len(order) < len(ours):
        order += [
            name
            for name, service in ours.items()
            if name not in order and all(other in order for other in service.get("depends_on", {}) if other in ours)
        ]
    return order


@pytest.mark.long("every program of the file starts")
def test_the_files_commands_bring_the_product_up_in_the_files_order(
    services: dict[str, dict[str, Any]],
    env: dict[str, str],
    compose: dict[str, Any],
    server: EmbeddedPostgres,
    kafka: Broker,
    tmp_path: Path,
) -> None:
    make_owner(server, compose, env, tmp_path)
    stack = Stack(services, env, server, kafka, tmp_path)
    first, *others = start_order(services)
    assert first == "migrate"
    stack.once("migrate")
    with ExitStack() as running:
        for name in others:
            running.enter_context(stack.running(name))
            if name == "api":
                until(lambda: stack.healthy("api"), 60)
        for name in ("worker", "publisher"):
            until(partial(stack.healthy, name), 60)
        said: list[str] = []
        assert run_demo(f"http://127.0.0.1:{stack.port}", env["SPARKLEDGER_ADMIN_KEY"], said.append) == 0, "\n".join(
            said
        )
        with psycopg.connect(server.dsn()) as connection, events(kafka.plain, "sparkledger") as topic:
            row = connection.execute("SELECT max(position) FROM events").fetchone()
            assert row is not None
            received = topic.until(row[0], 60)
        assert once_and_in_order(received, range(1, row[0] + 1)) == []
