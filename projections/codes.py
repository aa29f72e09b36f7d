"""Which codes exist, and in which state is each?

Reads every event of a code. Read by the list of codes, by the permission, which counts a creator's live codes here, and
by the authorization, which finds a video's codes here. A code's state depends on the clock: it is computed when it is
asked for, never stored.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

from domain.code import Code
from domain.rights import End, Statement, UsageRights, effective_end
from domain.values import State, state_of
from projections.engine.paging import Keyset
from projections.engine.table import Table
from projections.engine.view import View
from projections.parties import PARTIES, PartyRow, concerns_one_of, party, party_filters

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "codes"
VERSION: Final = 8


@dataclass(slots=True)
class CodeRow:
    """One code after its last event.

    Attributes:
        version: the version that `If-Match` names: the stream version of the last event that changed the code.
        stream_version, position: of the code's last event of any kind.
        generated_position: of its first event; "newest first" means by this, descending.
        starts_at: the start of the window; if nobody stated it (`start_stated`), the first that is known of the code.
        generated_at, revoked_at: effective times.
        rights_until: the end of the usage rights, by the statement of them that took effect last, at `rights_at`.
        rights: what else it says, `platforms` and `edits_allowed`; None before the first.
        superseded_at, superseded_by: from when on which other code has its video; None without one.
        supersedes: the code whose place it took.
        extended_at: the effective time of the extension that set the end; None before the first.
        masked: the masked secret; None as long as the secret is not known.
        brand_ids, advertiser_ids: that it was shared with; the latter also those that redeemed it.
        was_shared, was_redeemed: whether it ever was. The events are not counted, because a share or redemption is
            recorded again if it was earlier than was known.

    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    creator_stream: UUID
    video_id: str
    masked: str | None
    terms_version: str
    starts_at: datetime
    start_stated: bool
    expires_at: datetime
    extended_at: datetime | None
    rights_until: datetime | None
    rights_at: datetime | None
    rights: dict[str, Any] | None
    generated_at: datetime
    generated_position: int
    revoked_at: datetime | None
    superseded_at: datetime | None
    superseded_by: UUID | None
    supersedes: UUID | None
    version: int
    stream_version: int
    position: int
    brand_ids: set[str]
    advertiser_ids: set[str]
    was_shared: bool
    was_redeemed: bool
    refusal_count: int

    def state(self, moment: datetime) -> State:
        """Return the code's state at a moment, by the clock."""
        return state_of(
            revoked=self.revoked_at is not None,
            ended=moment >= self.expires_at,
            superseded=self.superseded_at is not None and self.superseded_at <= moment,
            redeemed=self.was_redeemed,
            shared=self.was_shared,
        )

    @property
    def effective_end(self) -> End:
        """The earlier of the code's end and that of the usage rights."""
        return effective_end(self.expires_at, self.revoked_at, self.rights_until)

    @property
    def usage_rights(self) -> Statement | None:
        """The usage rights, without the contract; None if nobody stated any."""
        if self.rights_at is None or self.rights is None:
            return None
        rights = UsageRights(self.rights_until, self.rights["platforms"], self.rights["edits_allowed"])
        return Statement(self.rights_at, rights)

    def live(self, moment: datetime) -> bool:
        """Return whether the code is unrevoked and inside its window."""
        return self.revoked_at is None and self.starts_at <= moment < self.expires_at


CODES: Final = Table(
    "codes",
    CodeRow,
    key=("ledger_id", "code_id"),
    fixed=(
        "creator_id",
        "creator_stream",
        "video_id",
        "terms_version",
        "start_stated",
        "generated_at",
        "generated_position",
        "supersedes",
    ),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            code_id             uuid NOT NULL,
            creator_id          text NOT NULL,
            creator_stream      uuid NOT NULL,
            video_id            text NOT NULL,
            masked              text,
            terms_version       text NOT NULL,
            starts_at           timestamptz NOT NULL,
            start_stated        boolean NOT NULL,
            expires_at          timestamptz NOT NULL,
            extended_at         timestamptz,
            rights_until        timestamptz,
            rights_at           timestamptz,
            rights              jsonb,
            generated_at        timestamptz NOT NULL,
            generated_position  bigint NOT NULL,
            revoked_at          timestamptz,
            superseded_at       timestamptz,
            superseded_by       uuid,
            supersedes          uuid,
            version             int NOT NULL,
            stream_version      int NOT NULL,
            position            bigint NOT NULL,
            brand_ids           text[] NOT NULL,
            advertiser_ids      text[] NOT NULL,
            was_shared          boolean NOT NULL,
            was_redeemed        boolean NOT NULL,
            refusal_count       int NOT NULL,
            -- The state of the code before it ends or is superseded, indexed so that codes are found by state.
            stage               text NOT NULL GENERATED ALWAYS AS (
                CASE WHEN was_redeemed THEN 'redeemed' WHEN was_shared THEN 'shared' ELSE 'generated' END
            ) STORED,
            PRIMARY KEY (ledger_id, code_id)
        ) WITH (fillfactor = 80) -- most updates change no indexed column, and stay in their block while it has room
    """,
    # Rows that a filter excludes are passed over in the index, without reading them.
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, generated_position)",
        """
        CREATE INDEX ON {table} (ledger_id, stage, generated_position, expires_at, superseded_at)
        WHERE revoked_at IS NULL
        """,
        "CREATE INDEX ON {table} (ledger_id, creator_id, generated_position)",
        "CREATE INDEX ON {table} (ledger_id, video_id, generated_position)",
        "CREATE INDEX ON {table} (ledger_id, expires_at, generated_position, stage, starts_at, superseded_at)",
        "CREATE INDEX ON {table} (ledger_id, generated_position) WHERE revoked_at IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, generated_position, rights_until) WHERE rights_until IS NOT NULL",
        """
        CREATE INDEX ON {table} (ledger_id, generated_position, expires_at, superseded_at)
        WHERE superseded_at IS NOT NULL AND revoked_at IS NULL
        """,
    ),
)

# Handlers, in the order of a code's life.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeRow:
    return CodeRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        creator_id=event.creator_id,
        creator_stream=recorded.creator_stream,
        video_id=event.video_id,
        masked=event.masked,
        terms_version=event.terms_version,
        starts_at=event.starts_at if event.start_stated else recorded.effective_at,
        start_stated=event.start_stated,
        expires_at=event.expires_at,
        extended_at=None,
        rights_until=None,
        rights_at=None,
        rights=None,
        generated_at=recorded.effective_at,
        generated_position=recorded.position,
        revoked_at=None,
        superseded_at=None,
        superseded_by=None,
        supersedes=None if event.supersedes is None else UUID(event.supersedes),
        version=recorded.stream_version,
        stream_version=recorded.stream_version,
        position=recorded.position,
        brand_ids=set(),
        advertiser_ids=set(),
        was_shared=False,
        was_redeemed=False,
        refusal_count=0,
    )


def happened(row: CodeRow, recorded: RecordedEvent, _event: Code.Event) -> None:
    """Apply an event that does not change the version that `If-Match` names."""
    row.stream_version = recorded.stream_version
    row.position = recorded.position


def changed(row: CodeRow, recorded: RecordedEvent, _event: Code.Event) -> None:
    row.version = row.stream_version = recorded.stream_version
    row.position = recorded.position


def secret_attached(row: CodeRow, recorded: RecordedEvent, event: Code.SecretAttached) -> None:
    changed(row, recorded, event)
    row.masked = event.masked


def known(row: CodeRow, recorded: RecordedEvent, event: Code.Shared | Code.Redeemed) -> None:
    """Apply an event that shows that the code was there: if nobody stated its start, it began no later."""
    changed(row, recorded, event)
    if not row.start_stated:
        row.starts_at = min(row.starts_at, recorded.effective_at)


def extended(row: CodeRow, recorded: RecordedEvent, event: Code.Extended) -> None:
    changed(row, recorded, event)
    if row.extended_at is None or recorded.effective_at >= row.extended_at:
        row.expires_at, row.extended_at = event.expires_at, recorded.effective_at


def rights_stated(row: CodeRow, recorded: RecordedEvent, event: Code.RightsStated) -> None:
    changed(row, recorded, event)
    if row.rights_at is None or recorded.effective_at >= row.rights_at:
        row.rights_until, row.rights_at = event.rights_end_at, recorded.effective_at
        row.rights = {"platforms": event.platforms, "edits_allowed": event.edits_allowed}


def shared(row: CodeRow, recorded: RecordedEvent, event: Code.Shared) -> list[PartyRow]:
    known(row, recorded, event)
    row.was_shared = True
    return [*party(row, "brand", event.brand_id), *party(row, "advertiser", event.advertiser_id)]


def redeemed(row: CodeRow, recorded: RecordedEvent, event: Code.Redeemed) -> list[PartyRow]:
    known(row, recorded, event)
    row.was_redeemed = True
    return party(row, "advertiser", event.advertiser_id)


def redemption_refused(row: CodeRow, recorded: RecordedEvent, event: Code.RedemptionRefused) -> None:
    happened(row, recorded, event)
    row.refusal_count += 1


def superseded(row: CodeRow, recorded: RecordedEvent, event: Code.Superseded) -> None:
    changed(row, recorded, event)
    row.superseded_at, row.superseded_by = event.superseded_at, UUID(event.superseded_by)


def revoked(row: CodeRow, recorded: RecordedEvent, event: Code.Revoked) -> None:
    changed(row, recorded, event)
    row.revoked_at = min(recorded.effective_at, row.revoked_at or recorded.effective_at)


VIEW: Final = View(
    NAME,
    VERSION,
    CODES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Event: happened,
        Code.Changed: changed,
        Code.SecretAttached: secret_attached,
        Code.Extended: extended,
        Code.RightsStated: rights_stated,
        Code.Shared: shared,
        Code.Redeemed: redeemed,
        Code.RedemptionRefused: redemption_refused,
        Code.Superseded: superseded,
        Code.Revoked: revoked,
    },
    secondary=[PARTIES],
)


# Queries.

_NEWEST_FIRST: Final = sql.SQL("""
    SELECT {columns}
    FROM views.codes t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.generated_position < %(after_key)s
    {filters}
    ORDER BY t.generated_position DESC
    LIMIT %(limit)s
""")

# The newest codes of each party from the party's own index, then the newest of all: no code of others is read.
_OF_PARTIES: Final = sql.SQL("""
    SELECT DISTINCT ON (t.generated_position) {columns}
    FROM unnest(%(kinds_0)s::text[], %(party_ids_0)s::text[]) AS x (kind, party_id)
    CROSS JOIN LATERAL (
        SELECT t.*
        FROM views.code_parties p
        JOIN views.codes t ON t.ledger_id = p.ledger_id AND t.code_id = p.code_id
        WHERE p.ledger_id = %(ledger_id)s
        AND p.kind = x.kind
        AND p.party_id = x.party_id
        AND p.generated_position < %(after_key)s
        {filters}
        ORDER BY p.generated_position DESC
        LIMIT %(limit)s
    ) t
    ORDER BY t.generated_position DESC
    LIMIT %(limit)s
""")

_ENDING: Final = sql.SQL("""
    SELECT {columns}
    FROM views.codes t
    WHERE t.ledger_id = %(ledger_id)s
    {filters}
    ORDER BY t.expires_at, t.generated_position
    LIMIT %(limit)s
""")

# A party's codes are few among all that end: they are found by the party, and then sorted.
_ENDING_OF_PARTIES: Final = sql.SQL("""
    SELECT DISTINCT ON (t.expires_at, t.generated_position) {columns}
    FROM unnest(%(kinds_0)s::text[], %(party_ids_0)s::text[]) AS x (kind, party_id)
    JOIN views.code_parties p ON p.ledger_id = %(ledger_id)s AND p.kind = x.kind AND p.party_id = x.party_id
    JOIN views.codes t ON t.ledger_id = p.ledger_id AND t.code_id = p.code_id
    WHERE true
    {filters}
    ORDER BY t.expires_at, t.generated_position
    LIMIT %(limit)s
""")

_ENDS_BEYOND: Final = sql.SQL("AND (t.expires_at, t.generated_position) > (%(after_end)s, %(after_key)s)")
_NOT_REVOKED: Final = sql.SQL("AND t.revoked_at IS NULL")

# By effective times: the end of the last period that had begun (`code_timeline.move_end`).
_LIVE_AT: Final = sql.SQL("""
    AND t.starts_at <= %(live_at)s
    AND t.expires_at > %(live_at)s
    AND (t.revoked_at IS NULL OR t.revoked_at > %(live_at)s)
    AND coalesce((
        SELECT coalesce(
            (
                SELECT (moved.value ->> 1)::timestamptz
                FROM jsonb_array_elements(s.moved -> 'ends') WITH ORDINALITY AS moved (value, i)
                WHERE (moved.value ->> 0)::timestamptz <= %(live_at)s
                ORDER BY moved.i DESC
                LIMIT 1
            ),
            s.first_end
        )
        FROM views.statistics s
        WHERE s.ledger_id = t.ledger_id
        AND s.code_id = t.code_id
    ), t.expires_at) > %(live_at)s
""")

# The same states as `state_of`, in the same order of precedence.
_OPEN: Final = "AND t.revoked_at IS NULL AND t.expires_at > %(now)s"
_IN_PLACE: Final = f"{_OPEN} AND (t.superseded_at IS NULL OR t.superseded_at > %(now)s)"
_IN_STATE: Final[dict[State, sql.SQL]] = {
    "revoked": sql.SQL("AND t.revoked_at IS NOT NULL"),
    "expired": sql.SQL("AND t.revoked_at IS NULL AND t.expires_at <= %(now)s"),
    "superseded": sql.SQL(f"{_OPEN} AND t.superseded_at <= %(now)s"),
    "redeemed": sql.SQL(f"{_IN_PLACE} AND t.stage = 'redeemed'"),
    "shared": sql.SQL(f"{_IN_PLACE} AND t.stage = 'shared'"),
    "generated": sql.SQL(f"{_IN_PLACE} AND t.stage = 'generated'"),
}

_OF_VIDEO: Final = """
    SELECT code_id
    FROM views.codes
    WHERE ledger_id = %s
    AND video_id = %s
    ORDER BY generated_position
"""

_WITH_IDS: Final = sql.SQL(
    "SELECT {columns} FROM views.codes t WHERE t.ledger_id = %(ledger_id)s AND t.code_id = ANY (%(ids)s)"
)

# The same as `CodeRow.live`.
_LIVE_OF_CREATOR: Final = """
    SELECT count(*)
    FROM views.codes
    WHERE ledger_id = %(ledger_id)s
    AND creator_id = %(creator_id)s
    AND revoked_at IS NULL
    AND starts_at <= %(now)s
    AND expires_at > %(now)s
"""

# Beyond any position.
_END: Final = 2**62


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    now: datetime,
    limit: int,
    after_key: int | None = None,
    ending_after: Keyset | None = None,
    state: State | None = None,
    creator_ids: Collection[str] | None = None,
    video_id: str | None = None,
    brand_ids: Collection[str] | None = None,
    advertiser_ids: Collection[str] | None = None,
    visible_brands: Collection[str] | None = None,
    visible_advertisers: Collection[str] | None = None,
    expires_before: datetime | None = None,
    rights_before: datetime | None = None,
    live_at: datetime | None = None,
) -> list[CodeRow]:
    """Return the codes that pass every filter, newest first, or with `ending_after` the first to end first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        now: the moment at which states are computed.
        limit: maximum number of rows.
        after_key: the `generated_position` of the last row of the page before.
        ending_after: in the order of `expires_at` and `generated_position`, after these; without `live_at`, only codes
            that are not revoked.
        state: in this state.
        creator_ids: of any of these creators; an empty collection matches nothing, here and below.
        video_id: of this video.
        brand_ids: shared with any of these brands.
        advertiser_ids: shared with or redeemed by any of these accounts.
        visible_brands: with `visible_advertisers`, the codes that a brand's key may see: those shared with any of these
            brands or accounts, or redeemed by any of the accounts. Both None: all codes.
        visible_advertisers: see `visible_brands`.
        expires_before: with a window that ends before this moment.
        rights_before: with usage rights that end before this moment.
        live_at: live at this moment of effective time, by what is known now. The view of statistics, which knows of
            lapses, must have read as far as this one.

    """
    filters: list[sql.Composable] = []
    parameters: dict[str, Any] = {
        "ledger_id": ledger_id,
        "now": now,
        "limit": limit,
        "after_key": _END if after_key is None else after_key,
    }
    if state is not None:
        filters.append(_IN_STATE[state])
    if creator_ids is not None:
        filters.append(sql.SQL("AND t.creator_id = ANY (%(creator_ids)s)"))
        parameters["creator_ids"] = list(creator_ids)
    if video_id is not None:
        filters.append(sql.SQL("AND t.video_id = %(video_id)s"))
        parameters["video_id"] = video_id
    if expires_before is not None:
        filters.append(sql.SQL("AND t.expires_at < %(expires_before)s"))
        parameters["expires_before"] = expires_before
    if rights_before is not None:
        filters.append(sql.SQL("AND t.rights_until < %(rights_before)s"))
        parameters["rights_before"] = rights_before
    if ending_after is not None:
        filters += [_ENDS_BEYOND] if live_at is not None else [_ENDS_BEYOND, _NOT_REVOKED]
        parameters |= {"after_end": ending_after[0], "after_key": ending_after[1]}
    if live_at is not None:
        filters.append(_LIVE_AT)
        parameters["live_at"] = live_at
    of_parties = party_filters(brand_ids, advertiser_ids, visible_brands, visible_advertisers)
    for i, party_filter in enumerate(of_parties):
        parameters |= party_filter.parameters(i)
        if i > 0:  # codes are found by the first
            filters.append(concerns_one_of(i))
    newest_first = _OF_PARTIES if of_parties else _NEWEST_FIRST
    ending = _ENDING_OF_PARTIES if of_parties else _ENDING
    query = newest_first if ending_after is None else ending
    return await CODES.fetch(cur, query.format(columns=CODES.select(), filters=sql.SQL(" ").join(filters)), parameters)


async def of_video(cur: AsyncCursor[Any], ledger_id: int, video_id: str) -> list[UUID]:
    """Return every code that a video ever had, oldest first."""
    await cur.execute(_OF_VIDEO, (ledger_id, video_id))
    return [row[0] for row in await cur.fetchall()]


async def with_ids(cur: AsyncCursor[Any], ledger_id: int, code_ids: Collection[UUID]) -> dict[UUID, CodeRow]:
    """Return codes by id; one that the view has not read yet is absent."""
    query = _WITH_IDS.format(columns=CODES.select())
    rows = await CODES.fetch(cur, query, {"ledger_id": ledger_id, "ids": list(code_ids)})
    return {row.code_id: row for row in rows}


async def live_of_creator(cur: AsyncCursor[Any], ledger_id: int, creator_id: str, now: datetime) -> int:
    """Count a creator's codes that are live."""
    await cur.execute(_LIVE_OF_CREATOR, {"ledger_id": ledger_id, "creator_id": creator_id, "now": now})
    row = await cur.fetchone()
    return 0 if row is None else int(row[0])
