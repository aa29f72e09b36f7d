"""Pages of rows in the order of time, then of position: all there are, or those that concern one of several parties.

Each party's page comes from the party's own index, and the first of them all together are the page: nothing is read
that nobody asked for. A page begins after a row's place, its moment and position, so rows that come in meanwhile shift
nothing.
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

# Where a row stands among all of them: its moment, and its position among those of the same moment.
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
    """What a page is asked for.

    Attributes:
        table: of the rows, in the schema of views.
        moment: the column of time that they are ordered by.
        ledger_id: the ledger.
        limit: rows at most.
        after: the place of the last row of the page before.
        descending: the latest first.
        impossible: some demand was made that nothing can meet.

    """

    table: LiteralString
    moment: LiteralString
    ledger_id: int
    limit: int
    after: Keyset | None = None
    descending: bool = True
    impossible: bool = False
    _filters: list[sql.Composable] = field(default_factory=list)
    _demands: list[Mapping[LiteralString, Collection[Any]]] = field(default_factory=list)
    _parameters: dict[str, Any] = field(default_factory=dict)

    def equal(self, **columns: Any) -> None:
        """Demand that columns have values; None is no demand."""
        for column, value in columns.items():
            if value is not None:
                self._filters.append(sql.SQL("AND t.{} = {}").format(sql.Identifier(column), sql.Placeholder(column)))
                self._parameters[column] = value

    def between(self, since: datetime | None, until: datetime | None) -> None:
        """Demand a moment not before `since`, and before `until`."""
        for bound, operator, value in (("since", ">=", since), ("until", "<", until)):
            if value is not None:
                condition = f"AND t.{{}} {operator} %({bound})s"
                self._filters.append(sql.SQL(condition).format(sql.Identifier(self.moment)))
                self._parameters[bound] = value

    def where(self, condition: LiteralString, **parameters: Any) -> None:
        """Demand a condition on a row `t`."""
        self._filters.append(sql.SQL("AND ") + sql.SQL(condition))
        self._parameters |= parameters

    def one_of(self, columns: Mapping[LiteralString, Collection[Any] | None]) -> None:
        """Demand that some column holds one of its ids; all None is no demand, all empty one that nothing meets.

        What is demanded first is what rows are found by: demand the narrowest first.
        """
        if all(ids is None for ids in columns.values()):
            return
        given = {column: ids for column, ids in columns.items() if ids}
        if not given:
            self.impossible = True
            return
        i = len(self._demands)
        self._demands.append(given)
        self._parameters |= {f"{column}_{i}": list(ids) for column, ids in given.items()}

    def parameters(self) -> dict[str, Any]:
        """Return what the query is to be given."""
        given = {"ledger_id": self.ledger_id, "limit": self.limit, **self._parameters}
        if self.after is not None:
            given |= {"after_moment": self.after[0], "after_position": self.after[1]}
        return given

    def query(self) -> sql.Composed:
        """Return the query for the page's rows, each with all its columns."""
        filters = [*self._filters, *(_meets(i, demand) for i, demand in enumerate(self._demands) if i > 0)]
        if not self._demands:
            return self._page(filters)
        pages = [
            _PAGE_OF_EACH.format(
                ids=_ids(column, 0, ids), page=self._page([_OWN.format(sql.Identifier(column)), *filters])
            )
            for column, ids in self._demands[0].items()
        ]
        # A row may concern several parties: UNION leaves one of it.
        return _FIRST_OF_ALL.format(columns=sql.SQL("t.*"), pages=sql.SQL(" UNION ").join(pages), **self.order())

    def _page(self, filters: list[sql.Composable]) -> sql.Composed:
        beyond: list[sql.Composable] = []
        if self.after is not None:
            compared = "<" if self.descending else ">"
            place = f"AND (t.{{moment}}, t.position) {compared} (%(after_moment)s, %(after_position)s)"
            beyond = [sql.SQL(place).format(moment=sql.Identifier(self.moment))]
        return _PAGE.format(
            table=sql.Identifier("views", self.table), filters=sql.SQL(" ").join([*beyond, *filters]), **self.order()
        )

    def order(self) -> dict[str, sql.Composable]:
        """Return the column of time and the direction, as queries are formatted with."""
        return {"moment": sql.Identifier(self.moment), "direction": sql.SQL("DESC" if self.descending else "ASC")}


_OWN: Final = sql.SQL("AND t.{} = x.id")


def _meets(i: int, demand: Mapping[LiteralString, Collection[Any]]) -> sql.Composed:
    """Return the condition that a row meets a demand."""
    met = [
        sql.SQL("t.{} = ANY ({})").format(sql.Identifier(column), _ids(column, i, ids))
        for column, ids in demand.items()
    ]
    return sql.SQL("AND ({})").format(sql.SQL(" OR ").join(met))


def _ids(column: LiteralString, i: int, ids: Collection[Any]) -> sql.Composed:
    kind = sql.SQL("::uuid[]" if isinstance(next(iter(ids)), UUID) else "::text[]")
    return sql.Placeholder(f"{column}_{i}") + kind


async def page(cur: AsyncCursor[Any], table: Table[R], asked: ListQuery) -> list[R]:
    """Return the rows of the page that is asked for."""
    if asked.impossible:
        return []
    query = _FIRST_OF_ALL.format(columns=table.select(), pages=asked.query(), **asked.order())
    return await table.fetch(cur, query, asked.parameters())
