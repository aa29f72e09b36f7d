"""A sealer and a watcher, run step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg

from infra.postgres.roles import WORKER
from infra.proof.sealer import Sealer, SealerSettings
from infra.proof.tree_store import TreeStore
from infra.proof.watcher import Watcher
from tests.infra.opened import Opened


class Sealing:
    """A sealer over a session of its own, step by step."""

    def __init__(self, opened: Opened, settings: SealerSettings) -> None:
        self.connection = psycopg.connect(opened.database.dsn(WORKER), autocommit=True)
        self.store = TreeStore(self.connection)
        self.sealer = Sealer(opened.database.dsn(WORKER), settings)

    def step(self) -> None:
        """Seal all there is."""
        while self.sealer.step(self.store):
            pass


@contextmanager
def sealing(opened: Opened, settings: SealerSettings) -> Iterator[Sealing]:
    """Start a sealer; what it knew is gone when it ends."""
    running = Sealing(opened, settings)
    with running.connection:
        yield running


def seal(opened: Opened, settings: SealerSettings) -> None:
    """Start a sealer, and let it seal all there is."""
    with sealing(opened, settings) as running:
        running.step()


class Watching(Sealing):
    """A sealer and a watcher over one session, step by step."""

    def __init__(self, opened: Opened, settings: SealerSettings) -> None:
        super().__init__(opened, settings)
        self.watcher = Watcher(
            opened.database.dsn(WORKER), settings.signing_dir, partial(self.sealer.differs, "watcher")
        )

    def minute(self) -> None:
        """Let the watcher do what it does in a minute, without its rests."""
        self.watcher.minute(self.connection, lambda _: None)

    def seal_and_look(self) -> None:
        """Seal what there is, then look."""
        self.step()
        self.minute()


@contextmanager
def watching(opened: Opened, settings: SealerSettings) -> Iterator[Watching]:
    """Start a sealer and a watcher; what they knew is gone when they end."""
    running = Watching(opened, settings)
    with running.connection:
        yield running
