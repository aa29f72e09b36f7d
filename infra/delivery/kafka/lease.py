"""The lease of a destination: which publisher leads, in which generation, for as long as it says so.

A publisher that dies loses its session, and with it the advisory lock of its generation: another one takes the lease at
once. A publisher that is frozen keeps its session and says nothing, so its lease ends by time. Anyone who takes the
lease begins the next generation. The publisher before it renews nothing any more, and Kafka, which fences its producer,
takes nothing from it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import psycopg

from infra.postgres.pool import session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from typing import Self

# A lease ends after this time without a renewal, and is renewed so often.
LEASE_S: Final = 8.0
RENEW_S: Final = 2.0

_BEGIN: Final = """
    INSERT INTO publisher_leases (destination, generation, renewed_at)
    VALUES (%s, 0, '-infinity')
    ON CONFLICT DO NOTHING
"""
_LOOK: Final = """
    SELECT generation, renewed_at < clock_timestamp() - make_interval(secs => %s)
    FROM publisher_leases
    WHERE destination = %s
"""
_TAKE: Final = """
    UPDATE publisher_leases
    SET generation = generation + 1, renewed_at = clock_timestamp()
    WHERE destination = %s AND generation = %s
"""
_RENEW: Final = """
    UPDATE publisher_leases
    SET renewed_at = clock_timestamp()
    WHERE destination = %s AND generation = %s
"""
_LOCK: Final = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(%s, hashtext(%s))"


class LeaseLost(Exception):
    """Another publisher leads now, or the session of the lease has ended."""


class Lease:
    """A destination's lease on a session of its own; while it is held, a thread renews it."""

    def __init__(self, conninfo: str, destination: str) -> None:
        """Connect; raises `psycopg.OperationalError` where the database is away."""
        self._connection = ServerConnection.connect(**session(conninfo, WORKER))
        self._destination = destination
        self._generation = 0
        self._ended = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(RENEW_S)
        # The lock of the generation ends with the session, so that another publisher takes over at once.
        self._connection.close()

    def take(self) -> bool:
        """Take the lease if nobody holds it, and begin to renew it.

        Raises:
            psycopg.OperationalError: the database is away.

        """
        execute = self._connection.execute
        execute(_BEGIN, (self._destination,))
        row = execute(_LOOK, (LEASE_S, self._destination)).fetchone()
        assert row is not None  # noqa: S101 - it was there, or was made just now
        generation, expired = row
        left = self._lock(generation)
        # Before the generation is known to anybody: anyone who sees it finds its lock taken.
        if (left or expired) and self._lock(generation + 1):
            if execute(_TAKE, (self._destination, generation)).rowcount == 1:
                self._generation = generation + 1
                self._thread = threading.Thread(target=self._renew, name=f"lease of {self._destination}", daemon=True)
                self._thread.start()
            else:
                self._unlock(generation + 1)
        if left:
            self._unlock(generation)
        return self._generation > 0

    def require(self) -> None:
        """Refuse to go on where another publisher may lead.

        Raises:
            LeaseLost: it may.

        """
        if self._lost:
            raise LeaseLost

    @property
    def held(self) -> bool:
        """Whether no other publisher leads, as far as the last renewal said."""
        return not self._lost

    def _renew(self) -> None:
        try:
            while not self._ended.wait(RENEW_S):
                renewed = self._connection.execute(_RENEW, (self._destination, self._generation)).rowcount
                if renewed != 1:
                    break
        except psycopg.Error:
            pass
        self._lost = not self._ended.is_set()

    def _lock(self, generation: int) -> bool:
        row = self._connection.execute(_LOCK, self._name_of(generation)).fetchone()
        return row is not None and bool(row[0])

    def _unlock(self, generation: int) -> None:
        self._connection.execute(_UNLOCK, self._name_of(generation))

    def _name_of(self, generation: int) -> tuple[int, str]:
        return AdvisoryLock.KAFKA_PUBLISHER, f"{self._destination} {generation}"
