"""Scripts that run as processes of their own, so that a test can kill them, and what they print can be waited for."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from infra.postgres.embedded.cluster import wait_for_end

ROOT: Final = Path(__file__).parents[2]
DEADLINE_SECONDS: Final = 20.0


class Program:
    """A Python script run by the interpreter of the tests, with this repository to import from."""

    def __init__(
        self, script: str, *arguments: str, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", script, *arguments],
            # Buffered, even if the tests are not, so that a line is one write: lines of several processes do not mix.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **(env or {})},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.printed: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, containing: str, within_s: float = DEADLINE_SECONDS) -> str:
        """Return the next line with this in it, however many come before."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            assert line is not None, f"no line with {containing!r}, only {self.printed}"
            self.printed.append(line)
            if containing in line:
                return line

    def rest(self) -> list[str]:
        """Wait for the end of everything that prints, and return every line there was."""
        self.process.wait(DEADLINE_SECONDS)
        while (line := self._lines.get(timeout=DEADLINE_SECONDS)) is not None:
            self.printed.append(line)
        return self.printed

    def end(self) -> None:
        """End the script and what it started, each by its id."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            itself = psutil.Process(self.process.pid)
            family = [*itself.children(recursive=True), itself]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def running(
    script: str, *arguments: str, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> Iterator[Program]:
    """Run a script for as long as the block takes."""
    program = Program(script, *arguments, env=env, before=before)
    try:
        yield program
    finally:
        program.end()


def wait_until_gone(pid: int) -> None:
    """Wait until the process has ended, buried by its parent or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        wait_for_end([process], DEADLINE_SECONDS)
        assert process.status() == psutil.STATUS_ZOMBIE
