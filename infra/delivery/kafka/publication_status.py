"""How far each ledger is published to Kafka: written by the publisher, read by metrics, alarms and the API.

This is a copy for people. The publisher itself resumes from the progress in Kafka, which is written in the same
transactions as the events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from projections.engine.array_columns import Bigints, Ints

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from infra.postgres.pool import Database, LedgerConnection

PublicationState = Literal["publishing", "retrying", "stopped"]

ERROR_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Destination:
    """The topics of one prefix, and the rules by which every ledger finds its own: pairs of a pattern and a prefix."""

    prefix: str
    rules: Sequence[tuple[str, str]]

    @property
    def parameters(self) -> tuple[list[str], list[str], str]:
        """The parameters of `OF_DESTINATION`."""
        return [pattern for pattern, _ in self.rules], [prefix for _, prefix in self.rules], self.prefix


def destinations(ledgers: Sequence[str]) -> list[Destination]:
    """Return the destinations of the setting: pairs `ledger=prefix`, where a ledger may be a pattern, such as `acme-*`.

    Of the pairs that a ledger's name fits, the one that is no pattern counts, and else the first.
    """
    pairs = [(name, prefix) for name, _, prefix in (pair.partition("=") for pair in ledgers)]
    rules = [
        (_regular_expression(name), prefix) for name, prefix in sorted(pairs, key=lambda pair: _is_pattern(pair[0]))
    ]
    return [Destination(prefix, rules) for prefix in dict.fromkeys(prefix for _, prefix in pairs)]


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _regular_expression(pattern: str) -> str:
    """Return a pattern of names as a regular expression of PostgreSQL."""
    signs = {"*": ".*", "?": "."}
    parts = re.findall(r"\[[^\[\]]+\]|.", pattern)
    written = (signs.get(p) or (p.replace("[!", "[^") if len(p) > 1 else re.escape(p)) for p in parts)
    return f"^{''.join(written)}$"


# A condition on the table of ledgers, `l`, with `Destination.parameters`.
OF_DESTINATION: Final = """
    (
        SELECT r.prefix
        FROM unnest(%b::text[], %b::text[]) WITH ORDINALITY AS r (pattern, prefix, number)
        WHERE l.name ~ r.pattern
        ORDER BY r.number
        LIMIT 1
    ) IS NOT DISTINCT FROM %b
"""

_REGISTER: Final = f"""
    INSERT INTO publications AS p (ledger_id, destination, position, state)
    SELECT l.ledger_id, %b, 0, 'publishing'
    FROM ledgers l
    WHERE {OF_DESTINATION}
    ON CONFLICT (ledger_id) DO UPDATE SET destination = excluded.destination, position = 0
    WHERE p.destination <> excluded.destination
"""

_ADVANCE: Final = """
    INSERT INTO publications AS p (ledger_id, destination, position, state)
    SELECT x.ledger_id, %b, x.position, 'publishing'
    FROM unnest(%b, %b) AS x (ledger_id, position)
    ON CONFLICT (ledger_id) DO UPDATE
    SET destination = excluded.destination, position = excluded.position, state = 'publishing', error = NULL,
        changed_at = now()
"""

_MARK_FAILED: Final = """
    UPDATE publications
    SET state = %b, error = %b, errors = errors + 1, changed_at = now()
    WHERE destination = %b
"""

# Also for ledgers of which nothing is published yet.
_MARK_PUBLISHING: Final = """
    UPDATE publications
    SET state = 'publishing', error = NULL, changed_at = now()
    WHERE destination = %b AND state <> 'publishing'
"""

_UNREGISTER: Final = f"""
    DELETE FROM publications p
    USING ledgers l
    WHERE l.ledger_id = p.ledger_id AND p.destination = %b AND NOT ({OF_DESTINATION})
"""


class PublicationStatusWriter:
    """Writes the status of one destination, on the connection of its publisher."""

    def __init__(self, connection: psycopg.Connection[Any], destination: Destination) -> None:
        """Take the connection that holds the publisher's lock."""
        self._connection = connection
        self._destination = destination

    def register_ledgers(self) -> None:
        """Add a row for every ledger that has none, so that its lag shows before anything is published."""
        self._execute(_UNREGISTER, (self._destination.prefix, *self._destination.parameters))
        self._execute(_REGISTER, (self._destination.prefix, *self._destination.parameters))

    def advance(self, positions: Mapping[int, int]) -> None:
        """Write how far ledgers are published."""
        columns = (Ints(list(positions)), Bigints(list(positions.values())))
        self._execute(_ADVANCE, (self._destination.prefix, *columns))

    def mark_publishing(self) -> None:
        """Write that all ledgers are published, and clear their errors."""
        self._execute(_MARK_PUBLISHING, (self._destination.prefix,))

    def mark_failed(self, state: PublicationState, error: str) -> None:
        """Write why nothing is published."""
        self._execute(_MARK_FAILED, (state, error[:ERROR_CHARACTERS_MAX], self._destination.prefix))

    def _execute(self, query: str, parameters: Sequence[Any]) -> None:
        self._connection.execute(query, parameters, binary=True)


@dataclass(frozen=True, slots=True)
class Publication:
    """How far one ledger is published. `oldest` is when the first event that waits was recorded."""

    destination: str
    position: int
    head: int
    oldest: datetime | None
    state: PublicationState
    errors: int
    error: str | None


@dataclass(frozen=True, slots=True)
class DestinationLag:
    """How far all ledgers of one destination are published, together."""

    destination: str
    published: int
    waiting: int
    oldest: datetime | None
    errors: int
    stopped: bool


_OF_LEDGER: Final = """
    SELECT p.destination, p.position, h.head, n.recorded_at, p.state, p.errors, p.error
    FROM publications p
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS head FROM events e WHERE e.ledger_id = p.ledger_id
    ) h
    LEFT JOIN events n ON n.ledger_id = p.ledger_id AND n.position = p.position + 1
    WHERE p.ledger_id = %s
"""


async def publication(database: Database, ledger_id: int) -> Publication | None:
    """Return how far a ledger is published to Kafka; None where it is not published."""

    async def query(connection: LedgerConnection) -> Any:
        return await (await connection.execute(_OF_LEDGER, (ledger_id,))).fetchone()

    row = await database.read(ledger_id, query)
    return None if row is None else Publication(*row)


async def destination_lags(database: Database) -> list[DestinationLag]:
    """Return the lag of every destination. Both database roles may ask."""

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute("SELECT * FROM publication_lag()")).fetchall()

    return [DestinationLag(*row) for row in await database.read(None, query)]
