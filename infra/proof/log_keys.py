"""Which keys sign a log, by what is recorded of them in the log itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What was recorded of the keys of a log, up to a position or in all.
KEY_CHANGES: Final = """
    SELECT e.type, convert_from(e.body, 'UTF8')::jsonb
    FROM events e
    WHERE e.ledger_id = %s AND e.stream_id = %s AND e.type IN ('LogKeyAdded', 'LogKeyRetired')
    AND e.position <= coalesce(%s::bigint, e.position)
    ORDER BY e.version
"""


class KeyChange(NamedTuple):
    """An event that adds or retires a pair of keys: its type and its body."""

    type: str
    body: dict[str, Any]


def active_keys(known: Sequence[str], changes: Iterable[KeyChange], generation: int) -> list[str]:
    """Return the verifier keys that sign a log, the oldest pair first.

    Args:
        known: those that have signed it so far; changes that they have followed already change nothing.
        changes: what was recorded of its keys, in order.
        generation: of the log.

    """
    keys = list(known)
    for change in changes:
        body = change.body
        if body["generation"] != generation:
            continue
        pair = [body["vkey"], body["ml_dsa_vkey"]]
        if change.type == "LogKeyAdded":
            keys += [key for key in pair if key not in keys]
        else:
            keys = [key for key in keys if key not in pair]
    return keys


def retired_keys(changes: Iterable[KeyChange], generation: int) -> list[str]:
    """Return the verifier keys that have signed a log and do so no more."""
    own = [
        change.body for change in changes if change.body["generation"] == generation and change.type != "LogKeyAdded"
    ]
    return [body[name] for body in own for name in ("vkey", "ml_dsa_vkey")]
