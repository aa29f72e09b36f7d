"""Damage: stored data that cannot be read back as it was written, after a flipped bit or a lost file.

The caller's answer says that it is unavailable, and `/readyz` says for an hour that the service is degraded.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson
import psycopg
from cryptography.exceptions import InvalidTag

from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN_S: Final = 3600.0
RETRY_AFTER_S: Final = 60
# What the database says of a page whose checksum is wrong, of a broken index or value, and of a file that is gone.
OF_THE_DATABASE: Final = (
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
    psycopg.errors.InternalError_,
    psycopg.errors.IoError,
    psycopg.errors.UndefinedFile,
)
# What a value is read with that the database did not notice. What callers send is not read by these, or is caught.
_OF_A_VALUE: Final = (InvalidTag, UnicodeDecodeError, orjson.JSONDecodeError)

_DETAIL: Final = (
    "Stored data is damaged, so this cannot be answered. Nothing was recorded. The operator must check the database "
    "and restore it from a backup."
)

log = logging.getLogger(__name__)


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that stored data is damaged."""
    return isinstance(error, OF_THE_DATABASE + _OF_A_VALUE)


class Damaged(Unavailable):
    """Stored data cannot be read back."""


class Damage:
    """What a process has found damaged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self._clock = clock
        self._found: tuple[float, str] | None = None

    def found(self, error: BaseException) -> Damaged | None:
        """Return the error for the caller, if an error is damage; it is noted and logged."""
        if isinstance(error, psycopg.Error) and isinstance(error, OF_THE_DATABASE):
            # The server's details may quote a row; its primary message never does.
            what = f"the database reports {error.sqlstate}: {error.diag.message_primary}"
            shown = f"The database reports {error.sqlstate}"
        elif isinstance(error, _OF_A_VALUE):
            what = shown = "A stored value cannot be decoded"
        else:
            return None
        log.error("Stored data is damaged: %s", what)
        self._found = (self._clock(), f"Stored data is damaged. {shown}, at {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC.")
        return Damaged(_DETAIL, RETRY_AFTER_S)

    @property
    def reason(self) -> str | None:
        """What `/readyz` says of damage that was found within the last hour; None if there was none."""
        if self._found is None or self._clock() - self._found[0] > SHOWN_S:
            return None
        return self._found[1]
