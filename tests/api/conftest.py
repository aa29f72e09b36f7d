"""A world of its own for each test of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import api.http.single_flight
from tests.api.world import World
from tests.serving import Server


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the database asked for each look at how the service is."""
    monkeypatch.setattr(api.http.single_flight, "KEEP_S", 0)


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A fresh ledger, and its administrator's client."""
    with server.client() as client:
        world = World(server, client)
        yield world
        for opened in world.clients:
            opened.close()
