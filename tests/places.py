"""Directories for the servers of tests: in memory where there is room, for they make and drop much in little time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what is made there has a name of its own
PREFIX: Final = "sl-memory-"
# What a whole run takes is a fraction of it.
ROOM_BYTES: Final = 4 * 2**30


def directory(name: str) -> Path:
    """Make a directory that every user may pass through, as pytest's own are not; the caller removes it."""
    if not _roomy(MEMORY):
        made = Path(tempfile.mkdtemp(prefix=f"sl-{name}-"))
    else:
        with _turn():
            made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=MEMORY))
            _hold(made)
    made.chmod(0o755)
    return made


def shared_directory(name: str) -> Path:
    """Make a directory of that very name, or find the one that another process of the test run made."""
    if not _roomy(MEMORY):
        made = Path(tempfile.gettempdir()) / f"sl-{name}"
        made.mkdir(exist_ok=True)
        return made
    made = MEMORY / f"{PREFIX}{name}"
    with _turn():
        made.mkdir(exist_ok=True)
        _hold(made)
    return made


@contextmanager
def _turn() -> Iterator[None]:
    """Remove what killed runs left in memory, and let nobody else do so before this process holds what it makes."""
    with (MEMORY / f"{PREFIX}lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for left in MEMORY.glob(f"{PREFIX}*-*"):
            try:
                opened = os.open(left, os.O_RDONLY)
            except FileNotFoundError:
                continue  # anyone who made it has removed it in between
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(opened)
        yield


def _hold(made: Path) -> None:
    """Lock a directory until this process ends, however it ends."""
    fcntl.flock(os.open(made, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)


def _roomy(place: Path) -> bool:
    if not os.access(place, os.W_OK):
        return False
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC
