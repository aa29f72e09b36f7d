"""A ledger leaves for another server while its log is worked on: what works for all ledgers goes on with the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from infra.proof import sealer, watcher, witness_client
from infra.proof.sealer import Sealer, SealerSettings
from infra.proof.time_stamps import TimeStamps
from infra.proof.watcher import Watcher
from infra.proof.witness_client import WitnessClient
from tests.conftest import TestDatabase


class Ended(Exception):
    """The test has seen enough."""


def refused_once() -> Callable[..., Any]:
    """Return what is refused to write the first time it is called, and ends the loop the second time."""
    refusals = iter([psycopg.errors.ReadOnlySqlTransaction("another server serves the ledger")])

    def work(*_: Any) -> Any:
        raise next(refusals, Ended())

    return work


def test_the_sealer_leads_again(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "AWAY_S", 0.0)
    monkeypatch.setattr(Sealer, "lead", refused_once())
    with pytest.raises(Ended):
        Sealer(database.dsn(), SealerSettings(tmp_path)).run()


def test_the_watcher_goes_on(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "AWAY_S", 0.0)
    monkeypatch.setattr(Watcher, "minute", refused_once())
    with pytest.raises(Ended):
        Watcher(database.dsn(), tmp_path, lambda *_: None).run()


def test_witnesses_are_asked_again(database: TestDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_client, "AWAY_S", 0.0)
    monkeypatch.setattr(WitnessClient, "round", refused_once())
    with pytest.raises(Ended):
        WitnessClient(database.dsn(), tmp_path, [], lambda *_: None, threading.Event()).run()


def test_checkpoints_are_stamped_later(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimeStamps, "round", refused_once())
    with pytest.raises(Ended):
        TimeStamps(database.dsn(), "http://127.0.0.1:9").run(cast("Any", lambda _: None))
