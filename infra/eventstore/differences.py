"""Differences between what is stored and what was signed: what was found first, and since when everything was compared.

Each check of a log is a part with a name of its own. While a difference of any part is open, the log is not sealed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

Part = Literal["events", "tree", "keys", "claims", "commitments", "views", "witnesses"]

# The first difference of a part stays until a complete pass has found none. What is missing of a ledger that has moved
# to another server meanwhile is no difference.
REPORT: Final = """
    INSERT INTO log_differences AS d (ledger_id, generation, part, position, place, message, right_at, found_at)
    SELECT l.ledger_id, x.generation, x.part, x.position, x.place, x.message, x.right_at, clock_timestamp()
    FROM (VALUES (%s::int, %s::int, %s::text, %s::bigint, %s::text, %s::text, %s::timestamptz))
        AS x (ledger_id, generation, part, position, place, message, right_at)
    JOIN ledgers l ON l.ledger_id = x.ledger_id
    ON CONFLICT (ledger_id, generation, part) DO UPDATE
    SET position = excluded.position, place = excluded.place, message = excluded.message,
        right_at = excluded.right_at, found_at = excluded.found_at, resolved_at = NULL
    WHERE d.resolved_at IS NOT NULL
    RETURNING found_at
"""

RESOLVE: Final = """
    UPDATE log_differences SET resolved_at = clock_timestamp()
    WHERE ledger_id = %s AND generation = %s AND part = %s AND resolved_at IS NULL
    RETURNING message
"""

CHECKED: Final = """
    INSERT INTO log_checks AS c (ledger_id, generation, part, began_at, upto, covered_since)
    SELECT l.ledger_id, x.generation, x.part, x.began_at, x.upto, x.covered_since
    FROM (VALUES (%s::int, %s::int, %s::text, %s::timestamptz, %s::bigint, %s::timestamptz))
        AS x (ledger_id, generation, part, began_at, upto, covered_since)
    JOIN ledgers l ON l.ledger_id = x.ledger_id
    ON CONFLICT (ledger_id, generation, part) DO UPDATE
    SET began_at = excluded.began_at, upto = excluded.upto,
        covered_since = coalesce(excluded.covered_since, c.covered_since)
"""


class Difference(NamedTuple):
    """Where something stored is not what was signed.

    Attributes:
        position: of the event, if it is one event's.
        place: the table, and the column if it is known.

    """

    part: Part
    position: int | None
    place: str
    message: str


class Found(NamedTuple):
    """What a part of a check has found in one ledger, as it is kept in memory.

    Attributes:
        right_at: when the same was compared before and was right, if it was.

    """

    difference: Difference
    right_at: datetime | None
