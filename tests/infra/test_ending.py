"""Tasks that are cancelled until they have ended, and processes that end whatever holds them up."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from infra.ending import cancelled
from tests.serving import REPOSITORY


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def run() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await cancelled([task], again_s=0.001)
    assert lost == 2
    assert task.cancelled()


async def test_a_task_has_the_time_until_the_next_cancellation_to_end_in_order() -> None:
    ended = asyncio.Event()

    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.set()

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await cancelled([task])
    assert ended.is_set()


async def test_the_error_of_a_task_is_left_to_who_wants_it() -> None:
    async def run() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            message = "what took the cancellation's place"
            raise OSError(message) from None

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    await cancelled([task])
    with pytest.raises(OSError, match="place"):
        task.result()


def test_a_process_that_does_not_end_says_where_it_hangs_and_ends() -> None:
    program = (
        "import threading; from infra.ending import end_for_certain; end_for_certain(0.1); threading.Event().wait()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "in wait" in ended.stderr
