"""Processes that fill parts of views, and what becomes of orders when one of them fails; others play their part."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.postgres.roles import WORKER
from infra.views import part_processes
from infra.views.part_processes import Processes
from projections.engine.projector import PoisonEvent
from projections.engine.rebuild import PartFailed
from tests.conftest import TestDatabase

ROOT = Path(__file__).parents[3]
# It answers as a test says, in `answers(order)`, and ends with its input.
PLAYED = """#!{python} -S
import json, os, sys
sys.stdin.readline()
def say(order, **what):
    print(json.dumps({{"view": order["view"], "part": order["part"], **what}}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    number = order["part"][0]
    {answer}
"""
DONE = "say(order, outcome='done')"


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a program of a few lines play each process."""

    def play(answer: str) -> None:
        program = tmp_path / "played"
        program.write_text(PLAYED.format(python=sys.executable, answer=answer))
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))

    return play


def fill(
    *views: str,
    upto: dict[int, int] | None = None,
    on_page: Callable[[int], None] = lambda _: None,
    within_s: float = 60,
) -> list[BaseException | None]:
    """Fill views by two processes, one after the other, and return what became of each."""

    async def filling() -> list[BaseException | None]:
        found: list[BaseException | None] = []
        log: Any = None  # its heads are given
        async with asyncio.timeout(60), Processes("", log, 2) as processes:
            for view in views:
                found += await asyncio.gather(processes.fill(view, 2, upto or {1: 10}, on_page), return_exceptions=True)
        return found

    return asyncio.run(filling())


def test_parts_that_are_done_fill_a_view(played: Callable[[str], None]) -> None:
    pages: list[int] = []
    played("say(order, positions=7); say(order, outcome='done')")
    assert fill("codes", "history", on_page=pages.append) == [None, None]
    assert pages == [7, 7, 7, 7]


@pytest.mark.parametrize("answer", ["print('no JSON', flush=True)", "print('x' * 3_000_000, flush=True)"])
def test_a_process_that_says_what_nobody_can_read_fails_the_rebuild(played: Callable[[str], None], answer: str) -> None:
    played(answer)
    (failed,) = fill("codes")
    assert isinstance(failed, PartFailed)
    assert "of the rebuild cannot be followed: " in str(failed)
    assert str(failed).endswith("Start the rebuild again: it resumes.")


def test_a_process_that_cannot_be_started_fails_this_order_and_each_later_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    failed = fill("codes", "history")
    assert [type(one) for one in failed] == [PartFailed, PartFailed]
    assert all("cannot be started: [Errno 2] No such file" in str(one) for one in failed)


def test_a_failure_to_show_progress_fails_the_rebuild(played: Callable[[str], None]) -> None:
    def on_page(_: int) -> None:
        raise ZeroDivisionError

    played("say(order, positions=7)")
    (failed,) = fill("codes", on_page=on_page)
    assert isinstance(failed, PartFailed)
    assert "ZeroDivisionError" in str(failed)


WITHDRAWN = "number == 2 and 'withdrawn' in order and say(order, outcome='withdrawn')"
DIES = "number == 2 and 'withdrawn' in order and os._exit(1)"


@pytest.mark.parametrize("then", [WITHDRAWN, DIES])
def test_an_event_that_stops_a_part_is_told_at_once_and_the_other_parts_are_withdrawn(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    # So that it is not this time that ends the wait for the second part, which never comes to its end.
    monkeypatch.setattr(part_processes, "STOP_WITHIN_S", 600.0)
    played(f"number == 1 and say(order, outcome='poison', at=[1, 5], reason='it'); {then}")
    (stopped,) = fill("codes")
    assert isinstance(stopped, PoisonEvent)
    assert stopped.at == (1, 5)


def test_an_order_that_is_withdrawn_ends_in_the_process(database: TestDatabase) -> None:
    order = {"view": "codes", "part": [1, 2]}
    lines = [{"conninfo": database.dsn(WORKER)}, {**order, "upto": [[1, 10]]}, {**order, "withdrawn": True}]
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "infra.views.part_process"],
        input=b"".join(orjson.dumps(line) + b"\n" for line in lines),
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert orjson.loads(ended.stdout) == {**order, "outcome": "withdrawn"}


def test_orders_name_a_hundred_thousand_ledgers_and_no_more_than_fit(
    played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    played(DONE)
    ledgers = dict.fromkeys(range(1, 100_001), 1_000_000_000)
    assert fill("codes", upto=ledgers) == [None]
    monkeypatch.setattr(part_processes, "ORDER_BYTES_MAX", 1 << 20)
    (refused,) = fill("codes", upto=ledgers)
    assert "too many ledgers for parts, 100,000. Rebuild the view without --jobs." in str(refused)


def test_a_process_runs_this_program_and_not_what_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "__init__.py").write_text("print('another program', flush=True)")
    monkeypatch.chdir(tmp_path)

    async def said() -> bytes:
        process = await part_processes._Running.start()
        try:
            process.write(b"{}\n")  # without what it needs, it ends with a KeyError
            return await process.output.read()
        finally:
            await process.end()

    assert asyncio.run(said()) == b""
