"""What schemathesis cannot know: what is waited for.

A position that nobody has reached is answered with 503 in the end, and where nothing is sealed every receipt is late.
"""

from __future__ import annotations

import gc
from typing import Any

import schemathesis

REACHED = 1

# It keeps most of what it makes: to look for garbage after each few hundred objects is a good part of its work.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# Questions in bulk come as lines: to a machine that tests they are any text.
schemathesis.serializer.alias(["application/x-ndjson", "text/csv", "text/tab-separated-values"], "text/plain")


@schemathesis.hook
def before_call(_context: Any, case: Any, _options: Any) -> None:
    """Ask to wait for a position that there is, and for no checkpoint."""
    query = case.query or {}
    if query.get("wait") == "checkpoint":
        del query["wait"]
    if str(query.get("at_least", "")).isdecimal() and int(query["at_least"]) > REACHED:
        query["at_least"] = REACHED
