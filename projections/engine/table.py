"""A table of a view: creates itself, and reads and writes its rows a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import islice
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, LiteralString, TypeVar, get_type_hints

from psycopg import sql

from projections.engine.array_columns import Array, Bigints, array_of, decoder_of

if TYPE_CHECKING:
    from psycopg import AsyncCursor

R = TypeVar("R")

SCHEMA: Final = "views"

# The same access for every view: the API sees the ledger that its session is bound to, workers see all.
_ACCESS: Final = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON {table} TO sparkledger_api
    USING (ledger_id = (SELECT bound_ledger()));
CREATE POLICY every_ledger ON {table} TO sparkledger_worker
    USING (true);
GRANT SELECT ON {table} TO sparkledger_api;
"""

# The lateral join makes the planner look up row by row, whatever its statistics say of a table that is growing quickly.
_LOAD: Final = """
SELECT r.*
FROM unnest(%b, %b) AS x (ledger_id, key)
CROSS JOIN LATERAL (
    SELECT {columns}
    FROM {table} t
    WHERE t.ledger_id = x.ledger_id
    AND t.{key} = x.key
    OFFSET 0
) r
"""

_HAS_INDEXES: Final = """
SELECT
FROM pg_index
WHERE indrelid = %s::regclass
AND NOT indisprimary
"""

_INSERT: Final = """
INSERT INTO {table} AS t ({columns})
SELECT {values}
FROM unnest({parameters}) AS x ({columns})
"""

_OVERWRITE: Final = """
ON CONFLICT ({key}) DO {overwrite}
"""

_UPDATE: Final = """
UPDATE {table} AS t
SET {overwrite}
FROM unnest({parameters}) AS x ({columns})
WHERE {same_key}
"""

# Rows of one statement: PostgreSQL has a column of all of them in memory at once, and so has this program.
STATEMENT_ROWS_MAX: Final = 5_000


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that writes rows, a column of them in each parameter."""

    query: bytes
    columns: Sequence[Array]
    # False: planned each time; None: the plan may be kept.
    prepare: bool | None = None

    def encode(self) -> None:
        """Encode the columns now: the rows may change from here on."""
        for column in self.columns:
            column.encode()

    async def execute(self, cur: AsyncCursor[Any]) -> None:
        """Write the rows, in the caller's transaction."""
        await cur.execute(self.query, self.columns, prepare=self.prepare)


def _statements(
    query: bytes,
    rows: Iterable[Any],
    values: Sequence[Callable[[Any], Any]] | None,
    arrays: Sequence[tuple[type[Array], LiteralString]],
    *,
    prepare: bool | None = None,
) -> Iterator[Statement]:
    """Return statements with these rows; `values` returns a row's value for each column, None if it is a tuple."""
    rows = iter(rows)
    while some := list(islice(rows, STATEMENT_ROWS_MAX)):
        yield Statement(query, _columns(some, values, arrays), prepare)


def _columns(
    rows: Sequence[Any],
    values: Sequence[Callable[[Any], Any]] | None,
    arrays: Sequence[tuple[type[Array], LiteralString]],
) -> list[Array]:
    columns: Iterable[Sequence[Any]]
    columns = zip(*rows, strict=True) if values is None else [[*map(value, rows)] for value in values]
    return [array(column) for (array, _), column in zip(arrays, columns, strict=True)]


class Table(Generic[R]):
    """A table in schema `views`.

    Attributes:
        name: of the table that is read; a shadow table has a suffix.
        row: the class of its rows, whose fields are its columns in order: a dataclass, or a named tuple for rows that
            are only made and written, as those of a table of counts.
        key: its primary key: `ledger_id`, and the columns that name a row within its ledger.

    """

    def __init__(
        self,
        name: str,
        row: type[R],
        *,
        key: Sequence[str],
        ddl: LiteralString,
        indexes: Sequence[LiteralString] = (),
        fixed: Sequence[str] = (),
        adds: Sequence[str] = (),
        also: Callable[[Any], Any] | None = None,
    ) -> None:
        """Derive the statements from the row's fields.

        `ddl` creates `{table}`. Each of `indexes` creates an index without naming it, because two versions of the table
        exist during a rebuild. `fixed` names columns, besides those of the key, that no update changes: they are not
        sent again. In a table of counts, `adds` names the columns whose values are added, not overwritten:
        all that are not in the key, after those of the key; its rows are named tuples. `also` then returns the key of a
        wider sum to which what is added to a key is added as well, or None.
        """
        self.name = name
        self.row = row
        self.key = tuple(key)
        self.columns = list(getattr(row, "_fields", ())) or [column.name for column in fields(row)]  # type: ignore[arg-type] # a row is a dataclass
        self._ddl: Final = ddl
        self._indexes: Final = tuple(indexes)
        self._adds: Final = frozenset(adds)
        # Most tables of counts have one: numbers are then added, and not rows of them.
        self._one_count: Final = len(self._adds) == 1
        self._also: Final = also
        types = get_type_hints(row)
        self._arrays = [array_of(types[column]) for column in self.columns]
        self._decoders = [(i, decode) for i, c in enumerate(self.columns) if (decode := decoder_of(types[c]))]
        # Of a row, the value of each column: a tuple has them already.
        self._values = None if issubclass(row, tuple) else [*map(attrgetter, self.columns)]
        self._updated = [column for column in self.columns if column not in fixed]
        self._updated_values = [*map(attrgetter, self._updated)]
        self._updated_arrays = [
            array for array, column in zip(self._arrays, self.columns, strict=True) if column in self._updated
        ]
        self.key_of = attrgetter(*self.key)
        self._load = cache(self._load_statement)
        self._insert = cache(self._insert_statement)
        self._write = cache(self._write_statement)
        self._update = cache(self._update_statement)

    def identifier(self, suffix: str = "") -> sql.Identifier:
        """Return the qualified name."""
        return sql.Identifier(SCHEMA, self.name + suffix)

    def select(self, alias: LiteralString = "t") -> sql.Composed:
        """Return the columns as a SELECT lists them, for rows that `fetch` is to build."""
        return sql.SQL(", ").join(sql.Identifier(alias, column) for column in self.columns)

    async def fetch(self, cur: AsyncCursor[Any], query: sql.Composed, parameters: Mapping[str, Any]) -> list[R]:
        """Run a query that lists `select`, and return its rows; the cursor's rows must be tuples."""
        await cur.execute(query, parameters)
        return [self._from_record(record) for record in await cur.fetchall()]

    async def fetch_with(
        self, cur: AsyncCursor[Any], query: sql.Composed, parameters: Mapping[str, Any]
    ) -> list[tuple[R, Sequence[Any]]]:
        """Run a query that lists `select` and then more, and return its rows, each with what more there is."""
        await cur.execute(query, parameters)
        own = len(self.columns)
        return [(self._from_record(record[:own]), record[own:]) for record in await cur.fetchall()]

    async def load(self, cur: AsyncCursor[Any], keys: Iterable[tuple[int, Any]], suffix: str = "") -> list[R]:
        """Return the rows that there are of these `(ledger_id, key)`."""
        ledger_ids, names = zip(*keys, strict=True)
        key_array, _ = self._arrays[self.columns.index(self.key[1])]
        # Planned each time: a plan made while the table was empty may take any index that begins with the ledger, and
        # would be kept while the table grows.
        await cur.execute(self._load(suffix), [Bigints(ledger_ids), key_array(names)], prepare=False)
        return [self._from_record(record) for record in await cur.fetchall()]

    async def write(self, cur: AsyncCursor[Any], rows: Iterable[R], suffix: str = "") -> None:
        """Insert rows, overwriting those with the same key."""
        for statement in self.writes(rows, suffix):
            await statement.execute(cur)

    def writes(self, rows: Iterable[R], suffix: str = "") -> Iterator[Statement]:
        """Return the statements that insert rows, overwriting those with the same key."""
        return _statements(self._write(suffix), rows, self._values, self._arrays)

    def inserts(self, rows: Iterable[R], suffix: str = "") -> Iterator[Statement]:
        """Return the statements that insert rows, none of which may be there yet: they take half the time of `writes`.

        If one is there, they raise `UniqueViolation`.
        """
        return _statements(self._insert(suffix), rows, self._values, self._arrays)

    def updates(self, rows: Iterable[R], suffix: str = "") -> Iterator[Statement]:
        """Return the statements that overwrite rows, all of which are there: `writes` would lock each row first."""
        # Shadow tables have no index but that of their key while they are filled. In others, the plan is as in `load`.
        prepare = None if suffix else False
        return _statements(self._update(suffix), rows, self._updated_values, self._updated_arrays, prepare=prepare)

    def merge(self, merged: dict[Any, Any], rows: Iterable[Any]) -> None:
        """Add rows to others, by key: of each key the last row counts, or in a table of counts the sum."""
        if not self._adds:
            key_of = self.key_of
            for row in rows:
                merged[key_of(row)] = row
            return
        key_columns = len(self.key)
        if self._one_count:
            for row in rows:
                key = row[:key_columns]
                merged[key] = merged.get(key, 0) + row[key_columns]
            return
        for row in rows:
            key, counts = row[:key_columns], row[key_columns:]
            known = merged.get(key)
            merged[key] = counts if known is None else [*map(add, known, counts)]

    def merged(self, rows: Iterable[Any]) -> Iterable[Any]:
        """Return one row a key, as a statement requires: the last one, or in a table of counts the sum."""
        merged: dict[Any, Any] = {}
        self.merge(merged, rows)
        return self.merged_rows(merged)

    def merged_rows(self, merged: dict[Any, Any]) -> Iterable[Any]:
        """Return what `merge` has merged as rows.

        Sums are in the order of their keys: otherwise processes that add to the same counts could wait for each other
        in a circle.
        """
        if not self._adds:
            return merged.values()
        if (also := self._also) is not None:
            wider = [(also(key), counts) for key, counts in merged.items()]
            self.merge(merged, [self._sum(key, counts) for key, counts in wider if key is not None])
        # A sum of zero is written too: otherwise the rows would depend on where pages end.
        return [self._sum(key, counts) for key, counts in sorted(merged.items())]

    def _sum(self, key: Sequence[Any], counts: Any) -> Any:
        # Without the call that a named tuple's own constructor is.
        return tuple.__new__(self.row, (*key, counts) if self._one_count else (*key, *counts))  # type: ignore[type-var] # it is one

    async def create(self, cur: AsyncCursor[Any], suffix: str = "") -> None:
        """Create the table, with its row-level security and without indexes."""
        await cur.execute(sql.SQL(self._ddl).format(table=self.identifier(suffix)))
        # In text, because several statements at once cannot have binary results.
        await cur.execute(sql.SQL(_ACCESS).format(table=self.identifier(suffix)), binary=False)

    async def create_indexes(self, cur: AsyncCursor[Any], suffix: str = "") -> None:
        """Create the indexes in the caller's transaction, unless they are there.

        It is quicker after most rows were written.
        """
        await cur.execute(_HAS_INDEXES, (self.identifier(suffix).as_string(),))
        if await cur.fetchone():
            return
        for index in self._indexes:
            await cur.execute(sql.SQL(index).format(table=self.identifier(suffix)))

    async def drop(self, cur: AsyncCursor[Any], suffix: str = "") -> None:
        """Drop the table if it is there."""
        await cur.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self.identifier(suffix)))

    async def swap_in(self, cur: AsyncCursor[Any], suffix: str) -> None:
        """Replace the table that is read with the one that has this suffix."""
        await self.drop(cur)
        await cur.execute(
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(self.identifier(suffix), sql.Identifier(self.name))
        )

    async def analyze(self, cur: AsyncCursor[Any], suffix: str = "") -> None:
        """Update the planner's statistics of the table."""
        await cur.execute(sql.SQL("ANALYZE {}").format(self.identifier(suffix)))

    def _from_record(self, record: Sequence[Any]) -> R:
        if self._decoders:
            values = list(record)
            for i, decode in self._decoders:
                values[i] = decode(values[i])
            return self.row(*values)
        return self.row(*record)

    def _load_statement(self, suffix: str) -> bytes:
        return (
            sql.SQL(_LOAD)
            .format(columns=self.select(), table=self.identifier(suffix), key=sql.Identifier(self.key[1]))
            .as_bytes()
        )

    def _insert_statement(self, suffix: str) -> bytes:
        comma = sql.SQL(", ")
        return (
            sql.SQL(_INSERT)
            .format(
                table=self.identifier(suffix),
                columns=comma.join(map(sql.Identifier, self.columns)),
                values=comma.join(
                    sql.SQL(expression).format(sql.Identifier("x", column))
                    for (_, expression), column in zip(self._arrays, self.columns, strict=True)
                ),
                parameters=comma.join([sql.SQL("%b")] * len(self.columns)),
            )
            .as_bytes()
        )

    def _write_statement(self, suffix: str) -> bytes:
        comma = sql.SQL(", ")
        overwritten = [
            sql.SQL("{0} = t.{0} + excluded.{0}" if column in self._adds else "{0} = excluded.{0}").format(
                sql.Identifier(column)
            )
            for column in self.columns
            if column not in self.key
        ]
        overwrite = sql.SQL(_OVERWRITE).format(
            key=comma.join(map(sql.Identifier, self.key)),
            overwrite=sql.SQL("UPDATE SET {}").format(comma.join(overwritten)) if overwritten else sql.SQL("NOTHING"),
        )
        return self._insert(suffix) + overwrite.as_bytes()

    def _update_statement(self, suffix: str) -> bytes:
        comma = sql.SQL(", ")
        decoded = {
            column: expression for (_, expression), column in zip(self._updated_arrays, self._updated, strict=True)
        }
        return (
            sql.SQL(_UPDATE)
            .format(
                table=self.identifier(suffix),
                columns=comma.join(map(sql.Identifier, self._updated)),
                overwrite=comma.join(
                    sql.SQL("{} = {}").format(
                        sql.Identifier(column), sql.SQL(decoded[column]).format(sql.Identifier("x", column))
                    )
                    for column in self._updated
                    if column not in self.key
                ),
                parameters=comma.join([sql.SQL("%b")] * len(self._updated)),
                same_key=sql.SQL(" AND ").join(
                    sql.SQL("t.{0} = x.{0}").format(sql.Identifier(column)) for column in self.key
                ),
            )
            .as_bytes()
        )
