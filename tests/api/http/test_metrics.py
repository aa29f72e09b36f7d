"""What `/metrics` says of the worker, which answers nobody itself."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.api.world import World, days
from tests.serving import start_live_server
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("unkept")

NAMES = [
    "sparkledger_expiries_recorded_total",
    "sparkledger_reminders_recorded_total",
    "sparkledger_expiry_failures_total",
    "sparkledger_expiry_failing_codes",
    "sparkledger_expiry_late_seconds",
]


def figures(world: World) -> dict[str, float]:
    """Return the figures of the expiry clock."""
    lines = [line.split() for line in world.client.get("/metrics").text.splitlines()]
    return {line[0]: float(line[1]) for line in lines if line and line[0] in NAMES}


def test_an_expiry_is_counted_once_the_clock_has_recorded_it(world: World) -> None:
    before = figures(world)
    assert list(before) == NAMES
    world.generate(starts_at=days(-40))
    until(lambda: figures(world)["sparkledger_expiries_recorded_total"] > before["sparkledger_expiries_recorded_total"])
    assert figures(world)["sparkledger_expiry_failing_codes"] == 0


def test_an_answer_is_counted_by_its_route_and_status_and_by_its_time(world: World) -> None:
    labels, unknown = 'method="GET",route="/v1/codes/{code_id}"', "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"

    def counted() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in world.client.get("/metrics").text.splitlines() if labels in line]
        return {name.replace(labels, "…"): float(value) for name, value in lines}

    before, refused = counted(), 'sparkledger_http_requests_total{…,status="404"}'
    world.client.get(f"/v1/codes/{unknown}")
    # An answer is counted once it is sent: its reader may ask first, and so may the reader of an earlier one.
    until(lambda: counted().get(refused, 0) > before.get(refused, 0))
    after = counted()
    count, within = after["sparkledger_http_request_seconds_count{…}"], "sparkledger_http_request_seconds_bucket"
    assert 1 <= after[refused] <= count
    assert after["sparkledger_http_request_seconds_sum{…}"] > 0
    buckets = [value for name, value in after.items() if name.startswith(within)]
    assert buckets == sorted(buckets)
    assert after[within + '{le="+Inf",…}'] == count


@pytest.mark.long("the whole program starts with another setting")
def test_on_a_port_of_their_own_the_figures_are_there_alone_and_alone_there(server_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = start_live_server(server_path / "data", metrics_port=str(port))
    try:
        apart = urlsplit(running.url)._replace(netloc=f"127.0.0.1:{port}").geturl()
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{running.url}/livez").status_code == 200
            assert client.get(f"{running.url}/metrics").status_code == 404
            figures = client.get(f"{apart}/metrics")
            elsewhere = [client.get(f"{apart}{path}").status_code for path in ("/livez", "/v1/codes", "/docs", "/")]
        assert figures.status_code == 200
        assert 'sparkledger_http_requests_total{method="GET",route="/livez",status="200"}' in figures.text
        assert "sparkledger_view_position" in figures.text
        assert elsewhere == [404] * 4
    finally:
        assert running.stop() == 0
