"""Keyset pagination of a view's rows, ordered by time and then by position.

If rows of several parties are wanted, each party's page is read from the party's own index, and the first rows of all
of them make the page: no row is read that was not asked for. A page begins after the keyset of a row, so rows that are
added meanwhile shift nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeVar
from uuid import UUID

from psycopg import sql

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from projections.engine.table import Table

R = TypeVar("R")

# What a row is ordered by: its moment, then its position.
Keyset = tuple[datetime, int]

_PAGE: Final = sql.SQL("""
    SELECT t.*
    FROM {table} t
    WHERE t.ledger_id = %(ledger_id)s
    {filters}
    ORDER BY t.{moment} {direction}, t.position {direction}
    LIMIT %(limit)s
""")

_PAGE_OF_EACH: Final = sql.SQL("""
    SELECT page.*
    FROM unnest({ids}) AS x (id)
    CROSS JOIN LATERAL ({page}) page
""")

_FIRST_OF_ALL: Final = sql.SQL("""
    SELECT {columns}
    FROM ({pages}) t
    ORDER BY t.{moment} {direction}, t.position {direction}
    LIMIT %(limit)s
""")


@dataclass(slots=True)
class ListQuery:
    """The query for one page of a list, built up by its filters.

    Attributes:
        table: of the rows, in the schema of views.
        moment: the column of time that they are ordered by.
        ledger_id: the ledger.
        limit: maximum number of rows.
        after: the keyset of the last row of the page before.
        descending: the latest first.
        matches_nothing: a filter was given that no row can pass.

    """

    table: LiteralString
    moment: LiteralString
    ledger_id: int
    limit: int
    after: Keyset | None = None
    descending: bool = True
    matches_nothing: bool = False
    _filters: list[sql.Composable] = field(default_factory=list)
    _any_of: list[Mapping[LiteralString, Collection[Any]]] = field(default_factory=list)
    _parameters: dict[str, Any] = field(default_factory=dict)

    def equal(self, **columns: Any) -> None:
        """Require that columns have these values; None requires nothing."""
        for column, value in columns.items():
            if value is not None:
                self._filters.append(sql.SQL("AND t.{} = {}").format(sql.Identifier(column), sql.Placeholder(column)))
                self._parameters[column] = value

    def between(self, since: datetime | None, until: datetime | None) -> None:
        """Require a moment at or after `since`, and before `until`; None requires nothing."""
        for bound, operator, value in (("since", ">=", since), ("until", "<", until)):
            if value is not None:
                condition = f"AND t.{{}} {operator} %({bound})s"
                self._filters.append(sql.SQL(condition).format(sql.Identifier(self.moment)))
                self._parameters[bound] = value

    def where(self, condition: LiteralString, **parameters: Any) -> None:
        """Require a condition on a row `t`."""
        self._filters.append(sql.SQL("AND ") + sql.SQL(condition))
        self._parameters |= parameters

    def one_of(self, columns: Mapping[LiteralString, Collection[Any] | None]) -> None:
        """Require that any of these columns has one of its ids; all None requires nothing, all empty matches nothing.

        Rows are found by the first call's columns: call it for the narrowest first.
        """
        if all(ids is None for ids in columns.values()):
            return
        given = {column: ids for column, ids in columns.items() if ids}
        if not given:
            self.matches_nothing = True
            return
        i = len(self._any_of)
        self._any_of.append(given)
        self._parameters |= {f"{column}_{i}": list(ids) for column, ids in given.items()}

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the query."""
        given = {"ledger_id": self.ledger_id, "limit": self.limit, **self._parameters}
        if self.after is not None:
            given |= {"after_moment": self.after[0], "after_position": self.after[1]}
        return given

    def statement(self) -> sql.Composed:
        """Return the query for the page's rows, each with all its columns."""
        filters = [*self._filters, *(_any_of(i, columns) for i, columns in enumerate(self._any_of) if i > 0)]
        if not self._any_of:
            return self._page(filters)
        pages = [
            _PAGE_OF_EACH.format(
                ids=_ids(column, 0, ids), page=self._page([_OWN.format(sql.Identifier(column)), *filters])
            )
            for column, ids in self._any_of[0].items()
        ]
        # A row may concern several parties: UNION removes the repeats.
        return _FIRST_OF_ALL.format(columns=sql.SQL("t.*"), pages=sql.SQL(" UNION ").join(pages), **self.order())

    def _page(self, filters: list[sql.Composable]) -> sql.Composed:
        beyond: list[sql.Composable] = []
        if self.after is not None:
            compared = "<" if self.descending else ">"
            keyset = f"AND (t.{{moment}}, t.position) {compared} (%(after_moment)s, %(after_position)s)"
            beyond = [sql.SQL(keyset).format(moment=sql.Identifier(self.moment))]
        return _PAGE.format(
            table=sql.Identifier("views", self.table), filters=sql.SQL(" ").join([*beyond, *filters]), **self.order()
        )

    def order(self) -> dict[str, sql.Composable]:
        """Return the column of time and the direction, to format a query with."""
        return {"moment": sql.Identifier(self.moment), "direction": sql.SQL("DESC" if self.descending else "ASC")}


_OWN: Final = sql.SQL("AND t.{} = x.id")


def _any_of(i: int, columns: Mapping[LiteralString, Collection[Any]]) -> sql.Composed:
    """Return the condition that any of these columns has one of its ids."""
    conditions = [
        sql.SQL("t.{} = ANY ({})").format(sql.Identifier(column), _ids(column, i, ids))
        for column, ids in columns.items()
    ]
    return sql.SQL("AND ({})").format(sql.SQL(" OR ").join(conditions))


def _ids(column: LiteralString, i: int, ids: Collection[Any]) -> sql.Composed:
    kind = sql.SQL("::uuid[]" if isinstance(next(iter(ids)), UUID) else "::text[]")
    return sql.Placeholder(f"{column}_{i}") + kind


async def fetch_page(cur: AsyncCursor[Any], table: Table[R], query: ListQuery) -> list[R]:
    """Return the rows of a page."""
    if query.matches_nothing:
        return []
    ordered = _FIRST_OF_ALL.format(columns=table.select(), pages=query.statement(), **query.order())
    return await table.fetch(cur, ordered, query.parameters())
