"""Does a creator allow ads, and since when?

Reads the events of the creator's switch. Read by the permission of a creator and by the list of permissions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

from domain.creator import Creator
from projections.engine import paging
from projections.engine.paging import Keyset, ListQuery
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from collections.abc import Collection

    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "permissions"
VERSION: Final = 6


@dataclass(slots=True)
class PermissionRow:
    """One creator's switch.

    Attributes:
        enabled, since: how it is set, and since when: the effective time of the first of the last switches that all set
            it so. What is recorded late may set it again as it was.
        switches: by effective time, in RFC 3339, how it was set; of the same time, the one that was recorded last.
        version, position: of the last recorded event.

    """

    ledger_id: int
    creator_id: str
    creator_stream: UUID
    enabled: bool
    since: datetime
    switches: dict[str, Any]
    version: int
    position: int


PERMISSIONS: Final = Table(
    "permissions",
    PermissionRow,
    key=("ledger_id", "creator_id"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            creator_id          text NOT NULL,
            creator_stream      uuid NOT NULL,
            enabled             boolean NOT NULL,
            since               timestamptz NOT NULL,
            switches            jsonb NOT NULL,
            version             int NOT NULL,
            position            bigint NOT NULL,
            PRIMARY KEY (ledger_id, creator_id)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, since, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream)",
        # Few creators among many may have it off, or on.
        "CREATE INDEX ON {table} (ledger_id, enabled, since, position)",
    ),
)


def switched(
    ledger_id: int, recorded: RecordedEvent, event: Creator.Enabled | Creator.Disabled | Creator.Erased
) -> PermissionRow:
    """Create the row: the event has all that it holds."""
    return PermissionRow(
        ledger_id=ledger_id,
        creator_id=event.creator_id,
        creator_stream=recorded.stream_id,
        enabled=isinstance(event, Creator.Enabled),
        since=recorded.effective_at,
        switches={recorded.effective_at.isoformat(): isinstance(event, Creator.Enabled)},
        version=recorded.stream_version,
        position=recorded.position,
    )


def switched_again(
    row: PermissionRow, recorded: RecordedEvent, event: Creator.Enabled | Creator.Disabled | Creator.Erased
) -> None:
    """Follow a further switch, which may be recorded late."""
    row.switches = {**row.switches, recorded.effective_at.isoformat(): isinstance(event, Creator.Enabled)}
    latest_first = sorted(((datetime.fromisoformat(at), on) for at, on in row.switches.items()), reverse=True)
    row.enabled = latest_first[0][1]
    row.since = [at for at, _ in itertools.takewhile(lambda switch: switch[1] == row.enabled, latest_first)][-1]
    row.version, row.position = recorded.stream_version, recorded.position


VIEW: Final = View(
    NAME,
    VERSION,
    PERMISSIONS,
    row_of=lambda recorded: recorded.event.creator_id,
    creates={Creator.Enabled: switched, Creator.Disabled: switched},
    updates={Creator.Enabled: switched_again, Creator.Disabled: switched_again, Creator.Erased: switched_again},
)


_ONE: Final = sql.SQL("""
    SELECT {columns}
    FROM views.permissions t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.creator_id = %(creator_id)s
""").format(columns=PERMISSIONS.select())


async def one(cur: AsyncCursor[Any], ledger_id: int, creator_id: str) -> PermissionRow | None:
    """Return a creator's permission; None if it was never switched on, which reads as disabled at version 0."""
    rows = await PERMISSIONS.fetch(cur, _ONE, {"ledger_id": ledger_id, "creator_id": creator_id})
    return rows[0] if rows else None


_BY_STREAM: Final = sql.SQL("""
    SELECT {columns}
    FROM views.permissions t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.creator_stream < %(before)s
    AND (%(creator_ids)s::text[] IS NULL OR t.creator_id = ANY (%(creator_ids)s::text[]))
    ORDER BY t.creator_stream DESC
    LIMIT %(limit)s
""").format(columns=PERMISSIONS.select())


async def newest(
    cur: AsyncCursor[Any], ledger_id: int, *, before: UUID, limit: int, creator_ids: Collection[str] | None = None
) -> list[PermissionRow]:
    """Return permissions by their streams, those that began last first, of any of these creators.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        before: the stream of the last row of the page before.
        limit: maximum number of rows.
        creator_ids: of any of these creators; an empty collection matches nothing.

    """
    asked = {
        "ledger_id": ledger_id,
        "before": before,
        "limit": limit,
        "creator_ids": None if creator_ids is None else list(creator_ids),
    }
    return await PERMISSIONS.fetch(cur, _BY_STREAM, asked)


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    limit: int,
    after: Keyset | None = None,
    enabled: bool | None = None,
    creator_ids: Collection[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[PermissionRow]:
    """Return the permissions that pass every filter, the one switched last first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        limit: maximum number of rows.
        after: `since` and `position` of the last row of the page before.
        enabled: that are on, or that are off.
        creator_ids: of any of these creators; an empty collection matches nothing.
        since: last switched at this moment or later, in effective time.
        until: last switched before this moment.

    """
    query = ListQuery(NAME, "since", ledger_id, limit, after)
    query.one_of({"creator_id": creator_ids})
    query.equal(enabled=enabled)
    query.between(since, until)
    return await paging.fetch_page(cur, PERMISSIONS, query)
