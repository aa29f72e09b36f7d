"""The program as a user starts it: `make up` publishes too, a part alone, and what it says where Kafka is not set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import events
from tests.infra.programs import ROOT
from tests.serving import LiveServer, start_live_server
from tests.waiting import until


@pytest.fixture
def up(kafka: Broker, prefix: str, server_path: Path) -> Iterator[LiveServer]:
    running = start_live_server(
        server_path / "data", kafka_bootstrap_servers=kafka.plain, kafka_ledgers=f"main={prefix}"
    )
    yield running
    assert running.stop() == 0


@pytest.mark.long("the whole program starts beside a broker")
def test_up_publishes_soon_after_a_command_and_ends_cleanly(up: LiveServer, kafka: Broker, prefix: str) -> None:
    headers = {"Authorization": f"Bearer {up.admin_key}"}
    with (
        httpx.Client(base_url=up.url, headers=headers, trust_env=False) as client,
        events(kafka.plain, prefix) as topic,
    ):
        for number, enabled in enumerate((True, False, True), 1):
            client.put("/v1/creators/ana/permission", json={"enabled": enabled}).raise_for_status()
            received = topic.until(number)
        assert [record.headers["ce_type"] for record in received] == [
            "sparkledger.PermissionEnabled.v1",
            "sparkledger.PermissionDisabled.v1",
            "sparkledger.PermissionEnabled.v1",
        ]

        def shown() -> bool:
            expected = {"subscriber": "kafka", "state": "publishing", "position": 3}
            told = client.get("/v1/stats").json()["subscribers"]
            return bool(told == [{**expected, "lag": 0, "lag_seconds": 0.0, "errors": 0}])

        until(shown)
        figures = client.get("/metrics").text
        assert f'sparkledger_kafka_position{{destination="{prefix}"}} 3.0' in figures
        assert f'sparkledger_kafka_lag_events{{destination="{prefix}"}} 0.0' in figures
        assert f'sparkledger_kafka_stopped{{destination="{prefix}"}} 0.0' in figures


def test_publishing_alone_asks_for_the_brokers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "work", "--only", "kafka"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "SPARKLEDGER_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr == (
        "sparkledger: SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS is not set: name the brokers, as host:port.\n"
    )
