"""What a process does about garbage, each in a process of its own: the collector looks at everything of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRELUDE = """
import asyncio, gc, weakref
from infra import process_limits
from infra.ending import cancelled

class Circle:
    def __init__(self):
        self.itself = self

async def gone(circle):
    while circle() is not None:
        await asyncio.sleep(0.001)

async def main():
    async with asyncio.timeout(30):
        collecting = asyncio.create_task(process_limits.collect_in_small_pieces())
        await test()
        await cancelled([collecting])

process_limits.COLLECT_EVERY_S = 0.001
gc.disable()
"""
SURVIVORS_ARE_NOT_LOOKED_AT_AGAIN = """
async def test():
    kept = [object()]
    await gone(weakref.ref(Circle()))
    while any(one is kept for one in gc.get_objects()):
        await asyncio.sleep(0.001)
"""
GARBAGE_OF_SURVIVORS_IS_FOUND_WITH_ALL_OTHER = """
process_limits.COLLECT_ALL_EVERY_S = 0

async def test():
    circle = Circle()
    circle_is_gone = gone(weakref.ref(circle))
    gc.freeze()
    del circle
    await circle_is_gone
"""


@pytest.mark.parametrize("script", [SURVIVORS_ARE_NOT_LOOKED_AT_AGAIN, GARBAGE_OF_SURVIVORS_IS_FOUND_WITH_ALL_OTHER])
def test_garbage_is_collected_in_small_pieces(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}{script}\nasyncio.run(main())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
