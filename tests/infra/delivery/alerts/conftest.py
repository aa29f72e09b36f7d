"""A world, and a mailroom for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.world import World
from tests.infra.delivery.alerts.mailroom import Mailroom, mailroom
from tests.serving import Server


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    """A fresh ledger, and its administrator's client."""
    with server.client() as client:
        world = World(server, client)
        yield world
        for opened in world.clients:
            opened.close()


@pytest.fixture
def room(world: World) -> Iterator[Mailroom]:
    """A mailroom that a test lets go on step by step."""
    with mailroom(world) as opened:
        yield opened
