"""Publishing that has stopped shows where people and alarms look, and keeps no command from being served."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import psycopg
import pytest

from tests.serving import Server
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("unkept")


@pytest.fixture
def stopped(server: Server) -> Iterator[Server]:
    """A server whose ledger cannot be published until a person mends something, after an event was recorded."""
    with server.client() as client:
        client.put("/v1/creators/ana/permission", json={"enabled": True}).raise_for_status()
    with psycopg.connect(server.database.dsn(), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO publications (ledger_id, destination, position, state, errors, error)"
            " SELECT ledger_id, 'acme', 0, 'stopped', 3, 'a topic is missing' FROM ledgers WHERE name = %s",
            (server.ledger,),
        )
        yield server
        connection.execute("DELETE FROM publications")


def test_the_ledgers_figures_tell_how_far_it_is_published(stopped: Server) -> None:
    with stopped.client() as client:
        (subscriber,) = client.get("/v1/stats").json()["subscribers"]

    late = subscriber.pop("lag_seconds")
    assert subscriber == {"subscriber": "kafka", "state": "stopped", "position": 0, "lag": 1, "errors": 3}
    assert late > 0


def test_another_ledgers_figures_do_not(stopped: Server) -> None:
    with stopped.another().client() as client:
        assert client.get("/v1/stats").json()["subscribers"] == []


def test_metrics_tell_the_lag_of_each_destination(stopped: Server) -> None:
    figures = httpx.get(f"{stopped.url}/metrics", trust_env=False).text

    assert 'sparkledger_kafka_lag_events{destination="acme"} 1.0' in figures
    assert 'sparkledger_kafka_errors_total{destination="acme"} 3.0' in figures
    assert 'sparkledger_kafka_stopped{destination="acme"} 1.0' in figures


def test_readiness_is_degraded_and_commands_are_served(stopped: Server) -> None:
    answer = httpx.get(f"{stopped.url}/readyz", trust_env=False)

    assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "stopped": ["kafka"]})
    with stopped.client() as client:
        assert client.put("/v1/creators/ana/permission", json={"enabled": False}).status_code == 200


def test_the_figures_of_a_ledger_that_may_have_lost_events_say_that_publishing_has_stopped(server: Server) -> None:
    with psycopg.connect(server.database.dsn(), autocommit=True) as connection, server.client() as client:
        [ledger_id] = connection.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (server.ledger,)).fetchone()  # type: ignore[misc] # the ledger is there
        connection.execute("INSERT INTO publications VALUES (%s, 'acme', 0, 'publishing', 0, NULL)", (ledger_id,))

        def state() -> str:
            (subscriber,) = client.get("/v1/stats").json()["subscribers"]
            return str(subscriber["state"])

        assert state() == "publishing"
        connection.execute(
            "INSERT INTO history_checks (ledger_id, database, problem) VALUES (%s, database_identity(), 'lost')"
            " ON CONFLICT (ledger_id) DO UPDATE SET problem = excluded.problem, database = excluded.database",
            (ledger_id,),
        )
        try:
            until(lambda: state() == "stopped")
        finally:
            connection.execute("DELETE FROM publications")
            connection.execute("DELETE FROM history_checks WHERE ledger_id = %s", (ledger_id,))
