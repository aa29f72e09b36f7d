"""Appends to UmaDB: one new stream with one event each, by as many threads as asked for.

`python umadb_appends.py URL THREADS SECONDS` prints appends a second. `peers` fetches the client and runs this.
"""

from __future__ import annotations

import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import uuid4

# By its name only when this runs: it is no dependency of ours, so nothing that checks imports knows it.
umadb: Final[Any] = importlib.import_module("umadb")
DATA: Final = b'{"video_id": "7301234567890123456", "creator_id": "creator-123", "days": 30}'


def _append(client: Any) -> None:
    stream = f"code-{uuid4()}"
    new = umadb.AppendCondition(fail_if_events_match=umadb.Query(items=[umadb.QueryItem(tags=[stream])]))
    client.append([umadb.Event(event_type="CodeGenerated", data=DATA, tags=[stream], uuid=uuid4())], condition=new)


def main(url: str, threads: int, seconds: float) -> float:
    """Return appends a second."""
    client = umadb.Client(url)
    _append(client)
    began = time.perf_counter()

    def appends() -> int:
        done = 0
        while time.perf_counter() < began + seconds:
            _append(client)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(future.result() for future in [pool.submit(appends) for _ in range(threads)])
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))}\n")
