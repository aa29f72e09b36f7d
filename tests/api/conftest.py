"""A world of its own for each test of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import api.http.as_of
import api.http.single_flight
import infra.auth.read_log
import infra.views.reader
from tests.api.world import World
from tests.serving import Server


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the database asked for each look at how the service is."""
    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 0)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have reads written to the access log when a test says so, and not beside what it compares."""
    monkeypatch.setattr(infra.auth.read_log, "GATHER_S", 3600)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a read that waits for what nobody records give up at once."""
    for module in (infra.views.reader, api.http.as_of):
        monkeypatch.setattr(module, "AT_LEAST_WAIT_S", 0.1)


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A fresh ledger, and its administrator's client."""
    with server.client() as client:
        world = World(server, client)
        yield world
        for opened in world.clients:
            opened.close()
