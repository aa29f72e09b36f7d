"""A world of its own for each test of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.world import World
from tests.serving import Server


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A fresh ledger, and its administrator's client."""
    with server.client() as client:
        world = World(server, client)
        yield world
        for opened in world.clients:
            opened.close()
