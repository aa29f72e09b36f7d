"""Sums of figures: by creator, brand, advertiser account, video or month, and in all; and the spend that is at risk.

Whose an account is, and so whose its figures are, is said in the view of advertiser accounts: the figures of a brand
are those of its shares, and those of the accounts that belong to it by what is known now.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from psycopg import sql

from projections.figures import FIGURES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from psycopg import AsyncCursor

By = Literal["creator", "brand", "advertiser", "video"]


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose figures are summed.

    Attributes:
        by: of which kind of party; None for all codes of the ledger.
        ids: of these parties only; None for all.
        creator_ids: with `by` video: of these creators' codes only; None for all.
        accounts: with `by` brand: with the figures of these accounts only; None for all of the brand.
        owned: with `by` brand: whether an account counts only where it is known to belong to the brand.

    """

    by: By | None = None
    ids: Collection[str] | None = None
    creator_ids: Collection[str] | None = None
    accounts: Collection[str] | None = None
    owned: bool = True


@dataclass(frozen=True, slots=True)
class Months:
    """The months from the one that begins at `first` to before the one that begins at `until`."""

    first: datetime
    until: datetime

    def all(self) -> list[datetime]:
        """Return the beginning of each."""
        found = [self.first]
        while (following := _next(found[-1])) < self.until:
            found.append(following)
        return found


@dataclass(slots=True)
class Figures:
    """Sums.

    Attributes:
        key: whose, or of which month; empty for all.
        counts: by the name of the figure.
        spend: planned, in hundredths of each currency.

    """

    key: str
    counts: Mapping[str, int]
    spend: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AtRisk:
    """Planned spend on campaigns that will stop because their code ends.

    Attributes:
        key: of which party.
        campaigns: how many there are.
        first_stops_at: when the first of them stops.
        spend: planned, by currency, as text with two decimals.

    """

    key: str
    campaigns: int
    first_stops_at: datetime
    spend: Mapping[str, str]


def _next(month: datetime) -> datetime:
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


# Whose an account is: what took effect last, by what is known now.
_OWNERS: Final = sql.SQL("""
    SELECT DISTINCT ON (a.advertiser_id) a.advertiser_id, a.brand_id
    FROM views.advertisers a
    WHERE a.ledger_id = %(ledger_id)s
    ORDER BY a.advertiser_id, a.since DESC, a.position DESC
""")

# Each source yields `key`, `month`, and the columns that are summed.
_OF_PARTIES: Final = sql.SQL("""
    SELECT m.party_id AS key, m.month, {columns}
    FROM {table} m
    WHERE m.ledger_id = %(ledger_id)s
    AND m.kind = {kind}
    AND m.month >= %(first)s
    AND m.month < %(until)s
    {ids}
""")

_OF_OWNED_ACCOUNTS: Final = sql.SQL("""
    SELECT o.brand_id AS key, m.month, {columns}
    FROM ({owners}) o
    JOIN {table} m ON m.party_id = o.advertiser_id
    WHERE m.ledger_id = %(ledger_id)s
    AND m.kind = 'advertiser'
    AND m.month >= %(first)s
    AND m.month < %(until)s
    {ids}
""")

_OF_VIDEOS: Final = sql.SQL("""
    SELECT f.video_id AS key, (m.month || '-01T00:00:00Z')::timestamptz AS month, {columns}
    FROM views.figures f
    CROSS JOIN LATERAL jsonb_each(f.months) AS m (month, counts)
    WHERE f.ledger_id = %(ledger_id)s
    AND m.month >= %(first_name)s
    AND m.month < %(until_name)s
    {ids}
""")

_SPEND_OF_VIDEOS: Final = sql.SQL("""
    SELECT f.video_id AS key, date_trunc('month', (c.facts ->> 1)::timestamptz, 'UTC') AS month,
           c.facts ->> 6 AS currency, (c.facts ->> 5)::bigint AS hundredths
    FROM views.figures f
    CROSS JOIN LATERAL jsonb_each(f.campaigns) AS c (campaign_id, facts)
    WHERE f.ledger_id = %(ledger_id)s
    AND f.campaigns IS NOT NULL
    AND (c.facts ->> 1)::timestamptz >= %(first)s
    AND (c.facts ->> 1)::timestamptz < %(until)s
    {ids}
""")

# Facts that were recorded again on another day can leave a sum of nothing.
_SOMETHING: Final = sql.SQL(
    "sum(issued + extended + shares + redemptions + refused + reveals + revoked + ended + launched + late) > 0"
)

_GROUPED: Final = sql.SQL("""
    SELECT key, {sums}
    FROM ({source}) s
    {after}
    GROUP BY key
    HAVING {something}
    ORDER BY key
    LIMIT %(limit)s
""")

# Only what decides the order: all figures are then added up for the page alone.
_RANKED: Final = sql.SQL("""
    SELECT key
    FROM ({source}) s
    GROUP BY key
    HAVING {something}
    {after}
    ORDER BY sum({sort}) DESC, key
    LIMIT %(limit)s
""")

_BY_MONTH: Final = sql.SQL("""
    SELECT month, {sums}
    FROM ({source}) s
    GROUP BY month
""")

_IN_ALL: Final = sql.SQL("""
    SELECT {sums}
    FROM ({source}) s
""")

_SPEND: Final = sql.SQL("""
    SELECT {key}, currency, sum(hundredths)::bigint
    FROM ({source}) s
    {keys}
    GROUP BY 1, 2
    HAVING sum(hundredths) > 0
""")

_AT_RISK: Final = sql.SQL("""
    SELECT key, sum(campaigns)::bigint, min(first), jsonb_object_agg(currency, spend::text)
    FROM (
        SELECT {key} AS key, t.currency, count(*) AS campaigns, min(t.stops_at) AS first,
               sum(t.amount::numeric)::numeric(30, 2) AS spend
        FROM views.campaign_stops t
        {owners}
        WHERE t.ledger_id = %(ledger_id)s
        AND t.stop_reason IN ('code_end', 'rights_end')
        AND t.stops_at > %(now)s
        AND t.stops_at < %(until)s
        AND t.ended_at IS NULL
        {filters}
        GROUP BY 1, 2
    ) s
    GROUP BY key
    {after}
    ORDER BY min(first), key
    LIMIT %(limit)s
""")

_SUMS: Final = sql.SQL(", ").join(sql.SQL("coalesce(sum({0}), 0)::bigint").format(sql.Identifier(f)) for f in FIGURES)
_COLUMNS: Final = sql.SQL(", ").join(sql.SQL("m.{0}").format(sql.Identifier(figure)) for figure in FIGURES)
# Of an account, without the shares that name it: they are its brand's already.
_WITHOUT_SHARES: Final = sql.SQL(", ").join(
    sql.SQL("0 AS {0}" if figure in {"shares", "codes_shared"} else "m.{0}").format(sql.Identifier(figure))
    for figure in FIGURES
)
_OF_CODE: Final = sql.SQL(", ").join(
    # Of the types that the table of months has, so that both sources of a sum add up alike.
    sql.SQL("(m.counts ->> {0})::{2} AS {1}").format(
        sql.Literal(i), sql.Identifier(figure), sql.SQL("bigint" if figure == "redeemed_after_s" else "int")
    )
    for i, figure in enumerate(FIGURES)
)
_SPENT: Final = sql.SQL("m.currency, m.hundredths")


def _only(column: str, name: str, ids: Collection[str] | None) -> sql.Composable:
    if ids is None:
        return sql.SQL("")
    return sql.SQL("AND {} = ANY ({}::text[])").format(sql.Identifier(*column.split(".")), sql.Placeholder(name))


def _source(whose: Whose, *, spend: bool = False) -> sql.Composable:
    """Return the query of the rows that are summed."""
    table = sql.Identifier("views", "figures_spend" if spend else "figures_months")
    columns: sql.Composable = _SPENT if spend else _COLUMNS
    if whose.by == "video":
        of_videos = [_only("f.video_id", "ids", whose.ids), _only("f.creator_id", "creator_ids", whose.creator_ids)]
        ids = sql.SQL(" ").join(of_videos)
        return _SPEND_OF_VIDEOS.format(ids=ids) if spend else _OF_VIDEOS.format(columns=_OF_CODE, ids=ids)
    own_ids = _only("m.party_id", "ids", whose.ids)
    own = _OF_PARTIES.format(table=table, columns=columns, kind=sql.Literal(whose.by or "ledger"), ids=own_ids)
    if whose.by != "brand":
        return own
    of_account: sql.Composable = _SPENT if spend else _WITHOUT_SHARES
    accounts = _only("m.party_id", "accounts", whose.accounts)
    if whose.owned:
        ids = sql.SQL(" ").join([_only("o.brand_id", "ids", whose.ids), accounts])
        theirs: sql.Composable = _OF_OWNED_ACCOUNTS.format(owners=_OWNERS, table=table, columns=of_account, ids=ids)
    else:
        theirs = _OF_PARTIES.format(table=table, columns=of_account, kind=sql.Literal("advertiser"), ids=accounts)
    return sql.SQL("{} UNION ALL {}").format(own, theirs)


def _parameters(ledger_id: int, whose: Whose, months: Months) -> dict[str, Any]:
    return {
        "ledger_id": ledger_id,
        "first": months.first,
        "until": months.until,
        "first_name": f"{months.first:%Y-%m}",
        "until_name": f"{months.until:%Y-%m}",
        "ids": None if whose.ids is None else list(whose.ids),
        "creator_ids": None if whose.creator_ids is None else list(whose.creator_ids),
        "accounts": None if whose.accounts is None else list(whose.accounts),
    }


async def by_party(
    cur: AsyncCursor[Any],
    ledger_id: int,
    whose: Whose,
    months: Months,
    *,
    limit: int,
    sort: str | None = None,
    after: tuple[int, str] | None = None,
) -> list[Figures]:
    """Return the sums of each party that has any, by its id, or with `sort` those with the most of a figure first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        whose: the parties.
        months: what took effect in them.
        limit: maximum number of parties.
        sort: the name of a figure.
        after: the last party of the page before: its count of the figure, or 0 without one, and its id.

    """
    asked = {"limit": limit} | ({} if after is None else {"after_count": after[0], "after_key": after[1]})
    if sort is not None:
        ranked = await _ranked(cur, whose, _parameters(ledger_id, whose, months) | asked, sort, after)
        found = await by_party(cur, ledger_id, replace(whose, ids=ranked), months, limit=limit) if ranked else []
        return sorted(found, key=lambda figures: ranked.index(figures.key))
    parameters = _parameters(ledger_id, whose, months) | asked
    later = sql.SQL("" if after is None else "WHERE key > %(after_key)s")
    query = _GROUPED.format(sums=_SUMS, source=_source(whose), something=_SOMETHING, after=later)
    await cur.execute(query, parameters)
    by_key = {row[0]: _figures(row[0], row[1:]) for row in await cur.fetchall()}
    await _add_spend(cur, whose, parameters, by_key, sql.SQL("key"))
    return list(by_key.values())


async def _ranked(
    cur: AsyncCursor[Any], whose: Whose, parameters: Mapping[str, Any], sort: str, after: tuple[int, str] | None
) -> list[str]:
    """Return the parties of a page, those with the most of a figure first."""
    column = sql.Identifier(sort)
    later: sql.Composable = sql.SQL("")
    if after is not None:
        beyond = "AND (sum({0}) < %(after_count)s OR (sum({0}) = %(after_count)s AND key > %(after_key)s))"
        later = sql.SQL(beyond).format(column)
    query = _RANKED.format(source=_source(whose), something=_SOMETHING, after=later, sort=column)
    await cur.execute(query, parameters)
    return [key for (key,) in await cur.fetchall()]


async def by_month(cur: AsyncCursor[Any], ledger_id: int, whose: Whose, months: Months) -> list[Figures]:
    """Return the sums of each month, the oldest first, those of nothing included."""
    parameters = _parameters(ledger_id, whose, months)
    await cur.execute(_BY_MONTH.format(sums=_SUMS, source=_source(whose)), parameters)
    counted = {month: counts for month, *counts in await cur.fetchall()}
    nothing = [0] * len(FIGURES)
    found = {f"{month:%Y-%m}": _figures(f"{month:%Y-%m}", counted.get(month, nothing)) for month in months.all()}
    name = sql.SQL("to_char(month AT TIME ZONE 'UTC', 'YYYY-MM')")
    await _add_spend(cur, whose, parameters, found, name)
    return list(found.values())


async def in_all(cur: AsyncCursor[Any], ledger_id: int, whose: Whose, months: Months) -> Figures:
    """Return the sums over all parties and months."""
    parameters = _parameters(ledger_id, whose, months)
    await cur.execute(_IN_ALL.format(sums=_SUMS, source=_source(whose)), parameters)
    found = {"": _figures("", (await cur.fetchall())[0])}
    await _add_spend(cur, whose, parameters, found, sql.SQL("''"))
    return found[""]


async def at_risk(
    cur: AsyncCursor[Any],
    ledger_id: int,
    by: By,
    *,
    now: datetime,
    until: datetime,
    limit: int,
    ids: Collection[str] | None = None,
    creator_ids: Collection[str] | None = None,
    accounts: Collection[str] | None = None,
    after: tuple[datetime, str] | None = None,
    together: bool = False,
) -> list[AtRisk]:
    """Return the planned spend on running campaigns that stop before a moment because their code ends.

    The party whose first campaign stops soonest comes first. An account of which nobody said whose it is belongs to no
    brand.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        by: of which kind of party.
        now: which campaigns run.
        until: the moment.
        limit: maximum number of parties.
        ids: of these parties only.
        creator_ids: on codes of these creators only.
        accounts: of these accounts only.
        after: when the first campaign of the last party of the page before stops, and the party's id.
        together: as one entry, with an empty key.

    """
    brand = by == "brand"
    key = sql.Identifier("o", "brand_id") if brand else sql.Identifier("t", f"{by}_id")
    filters = [
        sql.SQL("") if ids is None else sql.SQL("AND {} = ANY (%(ids)s::text[])").format(key),
        _only("t.creator_id", "creator_ids", creator_ids),
        _only("t.advertiser_id", "accounts", accounts),
    ]
    owners = sql.SQL("JOIN ({}) o ON o.advertiser_id = t.advertiser_id").format(_OWNERS) if brand else sql.SQL("")
    later = "" if after is None else "HAVING (min(first), key) > (%(after_at)s, %(after_key)s)"
    query = _AT_RISK.format(
        key=sql.SQL("''") if together else key, owners=owners, filters=sql.SQL(" ").join(filters), after=sql.SQL(later)
    )
    parameters: dict[str, Any] = {
        "ledger_id": ledger_id,
        "now": now,
        "until": until,
        "limit": limit,
        "ids": None if ids is None else list(ids),
        "creator_ids": None if creator_ids is None else list(creator_ids),
        "accounts": None if accounts is None else list(accounts),
    }
    if after is not None:
        parameters |= {"after_at": after[0], "after_key": after[1]}
    await cur.execute(query, parameters)
    return [AtRisk(*row) for row in await cur.fetchall()]


def _figures(key: str, counts: Sequence[int]) -> Figures:
    return Figures(key, dict(zip(FIGURES, counts, strict=True)))


async def _add_spend(
    cur: AsyncCursor[Any],
    whose: Whose,
    parameters: Mapping[str, Any],
    found: Mapping[str, Figures],
    key: sql.Composable,
) -> None:
    """Add the planned spend to figures that were found, by the expression of their key."""
    if not any(figures.counts["launched"] for figures in found.values()):
        return
    keys = sql.SQL("WHERE {} = ANY (%(keys)s::text[])").format(key)
    await cur.execute(
        _SPEND.format(key=key, source=_source(whose, spend=True), keys=keys), {**parameters, "keys": list(found)}
    )
    for name, currency, hundredths in await cur.fetchall():
        found[name].spend[currency] = hundredths
