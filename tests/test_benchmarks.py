"""The benchmark command: what it names, which figures it keeps, and how its client paces requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

import cli
from tests.bench import __main__ as benchmarks
from tests.bench import client


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Two quick benchmarks, and where their figures are kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"append": lambda: {"a": 1}, "growth": lambda *, full: {"g": full}})
    return lambda: json.loads((tmp_path / ".bench" / "results.json").read_text())


def figures(results: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in kept.items() if key != "measured"} for name, kept in results.items()}


# -- The command


def test_help_names_every_benchmark_and_what_it_measures() -> None:
    done = CliRunner().invoke(cli.app, ["bench", "--help"])

    assert list(cli.BENCHMARKS) == list(benchmarks.BENCHMARKS)
    said = re.sub(r"\s+", " ", done.output)
    assert [name for name, what in cli.BENCHMARKS.items() if f"{name}: {what}" not in said] == []


def test_a_benchmark_that_does_not_exist_is_wrong_usage_and_the_answer_lists_those_that_do() -> None:
    done = CliRunner().invoke(cli.app, ["bench", "nope"])

    assert done.exit_code == 2
    said = re.sub(r"[\s│]+", " ", done.output)
    assert f"There is no benchmark 'nope'. The benchmarks are {', '.join(benchmarks.BENCHMARKS)}." in said


# -- The figures


def test_a_run_replaces_its_own_figures_and_keeps_those_of_the_others(kept: Callable[[], dict[str, Any]]) -> None:
    benchmarks.main("append", as_json=True, full=False)
    benchmarks.main("growth", as_json=True, full=False)
    assert figures(kept()) == {"append": {"a": 1}, "growth": {"g": False}}

    benchmarks.main("growth", as_json=True, full=True)

    assert figures(kept()) == {"append": {"a": 1}, "growth": {"g": True}}


def test_figures_come_with_the_commit_the_time_the_machine_and_the_size(kept: Callable[[], dict[str, Any]]) -> None:
    benchmarks.main(None, as_json=False, full=True)

    measured = {name: results["measured"] for name, results in kept().items()}
    assert {name: circumstances["full"] for name, circumstances in measured.items()} == {
        "append": False,
        "growth": True,
    }
    for circumstances in measured.values():
        assert circumstances.keys() == {"commit", "at", "machine", "full"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", circumstances["at"])
        assert circumstances["commit"] is None or re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", circumstances["commit"])
        assert circumstances["machine"].keys() == {"processor", "cores", "memory_gb", "system", "python"}


def test_a_benchmark_that_fails_leaves_what_was_measured_before_it(
    kept: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*, full: bool) -> dict[str, Any]:
        raise TimeoutError

    benchmarks.main("growth", as_json=True, full=True)
    monkeypatch.setitem(benchmarks.BENCHMARKS, "growth", fail)

    with pytest.raises(TimeoutError):
        benchmarks.main(None, as_json=True, full=False)

    assert figures(kept()) == {"append": {"a": 1}, "growth": {"g": True}}


@pytest.mark.usefixtures("kept")
def test_kept_figures_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".bench").mkdir()
    broken = tmp_path / ".bench" / "results.json"
    broken.write_text('{"append":')

    with pytest.raises(LookupError, match="move it away, and measure again"):
        benchmarks.main("append", as_json=True, full=False)

    assert broken.read_text() == '{"append":'


# -- The client's pace


@dataclass
class Loop:
    """An event loop whose time passes only where a test says so."""

    now: float = 0.0
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    create_future: Callable[[], Any] = lambda: SimpleNamespace(done=lambda: True)

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.later.append((self.now + delay, call))

    def next(self) -> None:
        """Let the time pass until the next call is due, and make it."""
        self.now, call = self.later.pop(0)
        call()


def test_a_slow_answer_delays_no_request_but_those_that_fall_due_while_it_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop()
    monkeypatch.setattr(client, "time", SimpleNamespace(perf_counter=lambda: loop.now))
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    sent: list[float] = []
    transport = SimpleNamespace(write=lambda request: sent.append(loop.now))
    connection = client._Connection(client.Figures(), lambda: b"", pause_s=1.0, due=0.25, end=100.0)

    connection.connection_made(cast("Any", transport))
    for answered_in in (0.125, 2.5, 0.125, 0.125, 0.125):
        loop.next()
        loop.now += answered_in
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    loop.next()

    # The second answer took until 3.75: what was due at 2.25 and 3.25 is made up for, and 4.25 is met again.
    assert sent == [0.25, 1.25, 3.75, 3.875, 4.25, 5.25]
