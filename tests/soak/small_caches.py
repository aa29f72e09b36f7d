"""The program with a cache of few aggregates, which is full after minutes: what still grows then is a leak.

python -m tests.soak.small_caches serve
"""

from __future__ import annotations

from typing import Any, Final, cast

import cli
from infra.eventstore.repository import AggregateCache

# As many as the soak begins in about three minutes. By default there are 20,000.
CACHED_AGGREGATES: Final = 400

if __name__ == "__main__":
    cast("Any", AggregateCache.__init__).__defaults__ = (CACHED_AGGREGATES,)
    cli.app()
