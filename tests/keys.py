"""Master keys for tests, with a directory of erasure keys that every process of the test run shares."""

from __future__ import annotations

from typing import Final

from infra.crypto.envelope import fresh_key
from infra.crypto.epochs import EpochKeys
from infra.crypto.master_keys import MasterKey
from tests.places import shared_directory

# Each database has epochs of its own in it, by random ids.
ERASURE_KEYS: Final = shared_directory("erasure-keys")
EPOCHS: Final = EpochKeys(ERASURE_KEYS)


def master_key(*keys: bytes) -> MasterKey:
    """Return a provider of these master keys, the present one first, or of a new one."""
    return MasterKey(*(keys or (fresh_key(),)), epochs=EPOCHS)


def master_key_of(*texts: str) -> MasterKey:
    """Return a provider of the master keys with these texts."""
    return MasterKey.from_text(*texts, epochs=EPOCHS)
