"""Threads beside the main one of a process."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


def run_beside(name: str, target: Callable[[], None]) -> None:
    """Run something for as long as the process runs. If it fails, the process ends, and its supervisor restarts it.

    A part that is silently missing would be worse than a restart.
    """

    def run() -> None:
        try:
            target()
        except Exception:
            log.exception("The %s has failed. This process ends.", name)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=run, name=name, daemon=True).start()
