"""A byte on the disk that flipped: the answer says so, and so does the state of the service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from infra.postgres.embedded.server import EmbeddedPostgres
from tests.api.world import World, refused, told
from tests.conftest import TestDatabase
from tests.serving import Server, Serving, new_ledger


@contextmanager
def flipped(cluster: EmbeddedPostgres, healthy: TestDatabase) -> Iterator[TestDatabase]:
    """A copy of a database in which every page of the events has a wrong byte."""
    name = f"{healthy.name}_flipped"
    with psycopg.connect(cluster.dsn(dbname="postgres"), autocommit=True) as owner:
        # Copied by the file, and not through the memory in which all pages are whole.
        owner.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(healthy.name)
            )
        )
        (oid, directory), *_ = owner.execute(
            "SELECT oid, current_setting('data_directory') FROM pg_database WHERE datname = %s", (name,)
        ).fetchall()
        with psycopg.connect(healthy.dsn()) as connection:
            (path,), *_ = connection.execute("SELECT pg_relation_filepath('events')").fetchall()
        file = Path(directory, "base", str(oid), Path(path).name)
        content = bytearray(file.read_bytes())
        assert content
        for page in range(0, len(content), 8192):
            content[page + 8100] ^= 1
        file.write_bytes(content)
        with closing(TestDatabase(cluster, name)) as damaged:
            yield damaged
        owner.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_flipped_byte_is_said_by_the_answer_and_by_readyz(
    cluster: EmbeddedPostgres, database: TestDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    with Serving(database) as healthy:
        server = new_ledger(healthy)
        with server.client() as client:
            world = World(server, client)
            code = world.generate()
            assert told(client.get("/readyz"), 200)["status"] == "ready"
    with flipped(cluster, database) as damaged:
        serving = Serving(damaged)
        serving.master_key = healthy.master_key
        with serving, Server(serving, server.ledger, server.admin_key).client() as client:
            answers = [
                client.get(f"/v1/codes/{code['code_id']}"),
                client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "over"}),
            ]
            ready = client.get("/readyz")
    for answer in answers:
        assert refused(answer) == (503, "unavailable")
        assert answer.headers["retry-after"] == "60"
        assert answer.json()["detail"].startswith("Stored data is damaged")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["damage"].startswith("Stored data is damaged. The database reports XX001, at ")
    assert "invalid page in block" in caplog.text
