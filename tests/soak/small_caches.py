"""The program with small caches, which are full after minutes: what still grows then is a leak.

python -m tests.soak.small_caches serve
"""

from __future__ import annotations

from typing import Any, Final, cast

import cli
from infra.crypto import keyring
from infra.delivery.kafka import code_state
from infra.eventstore import aggregate_reader
from infra.eventstore.repository import AggregateCache

# As many as the soak begins in about three minutes. By default there are 10,000 or 20,000.
CACHED: Final = 400

if __name__ == "__main__":
    cast("Any", AggregateCache.__init__).__defaults__ = (CACHED,)
    for module, name in (
        (keyring, "MAX_CREATORS_CACHED"),
        (aggregate_reader, "MAX_CACHED_SPELLINGS"),
        (code_state, "CACHED_MAX"),
    ):
        setattr(module, name, CACHED)
    cli.app()
