"""Runs a command in the background for as long as another process lives: guard.py PID COMMAND…

It prints its own process id and leaves its parent behind. SIGTERM ends the command cleanly, SIGUSR1 at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

LOOK_EVERY_S = 1.0
CLEANLY_S = 15.0


def main() -> int:
    """Start the command, and end it when it is time."""
    owner = int(sys.argv[1])
    child = os.fork()
    if child:
        sys.stdout.write(f"{child}\n")
        return 0
    os.setsid()
    os.dup2(2, 1)
    process = subprocess.Popen(sys.argv[2:])
    signal.signal(signal.SIGUSR1, lambda *_: process.kill())
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                process.kill()
                return process.wait(CLEANLY_S)


if __name__ == "__main__":
    sys.exit(main())
