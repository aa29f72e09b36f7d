"""Parties of codes: brands that a code was shared with, accounts that it was shared with or that redeemed it.

A secondary table of the view of codes, with one row for each code and party. It replaces an index over arrays of ids,
which PostgreSQL would never use for the API: under row-level security it applies the policy before any operator that
might leak, and the operators of arrays might.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from uuid import UUID

from psycopg import sql

from projections.engine.table import Table

Kind = Literal["brand", "advertiser"]


@dataclass(frozen=True, slots=True)
class PartyRow:
    """A code and one of its parties; `generated_position` is the code's, and orders the rows of a party."""

    ledger_id: int
    kind: str
    party_id: str
    generated_position: int
    code_id: UUID


PARTIES: Final = Table(
    "code_parties",
    PartyRow,
    key=("ledger_id", "kind", "party_id", "generated_position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            kind                text NOT NULL,
            party_id            text NOT NULL,
            generated_position  bigint NOT NULL,
            code_id             uuid NOT NULL,
            PRIMARY KEY (ledger_id, kind, party_id, generated_position)
        )
    """,
)


class _Code(Protocol):
    ledger_id: int
    code_id: UUID
    generated_position: int
    brand_ids: set[str]
    advertiser_ids: set[str]


def party(code: _Code, kind: Kind, party_id: str | None) -> list[PartyRow]:
    """Add a party, unless it is None, to a code's parties, and return its row if it is new."""
    known = code.brand_ids if kind == "brand" else code.advertiser_ids
    if party_id is None or party_id in known:
        return []
    known.add(party_id)
    return [PartyRow(code.ledger_id, kind, party_id, code.generated_position, code.code_id)]


@dataclass(frozen=True, slots=True)
class PartyFilter:
    """Parties, of which a code must have at least one."""

    brand_ids: Collection[str] = ()
    advertiser_ids: Collection[str] = ()

    def parameters(self, i: int) -> dict[str, list[str]]:
        """Return the parties as query parameters `kinds_i` and `party_ids_i`."""
        return {
            f"kinds_{i}": ["brand"] * len(self.brand_ids) + ["advertiser"] * len(self.advertiser_ids),
            f"party_ids_{i}": [*self.brand_ids, *self.advertiser_ids],
        }


def concerns_one_of(i: int) -> sql.Composed:
    """Return the condition that a code `t` passes the filter whose parameters end in `i`."""
    return sql.SQL("""
        AND EXISTS (
            SELECT
            FROM unnest({kinds}::text[], {party_ids}::text[]) AS x (kind, party_id)
            JOIN views.code_parties p ON p.kind = x.kind AND p.party_id = x.party_id
            WHERE p.ledger_id = t.ledger_id
            AND p.generated_position = t.generated_position
        )
    """).format(kinds=sql.Placeholder(f"kinds_{i}"), party_ids=sql.Placeholder(f"party_ids_{i}"))


def party_filters(
    brand_ids: Collection[str] | None,
    advertiser_ids: Collection[str] | None,
    visible_brands: Collection[str] | None,
    visible_advertisers: Collection[str] | None,
) -> list[PartyFilter]:
    """Return the filters that a code must pass for `codes.search`, the narrowest by nature first."""
    filters = []
    if visible_brands is not None or visible_advertisers is not None:
        filters.append(PartyFilter(visible_brands or (), visible_advertisers or ()))
    if brand_ids is not None:
        filters.append(PartyFilter(brand_ids=brand_ids))
    if advertiser_ids is not None:
        filters.append(PartyFilter(advertiser_ids=advertiser_ids))
    return filters
