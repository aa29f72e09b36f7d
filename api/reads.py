"""The routes that read codes, permissions and the question."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.answer_models import CodeReadAnswer, CodesAnswer, PermissionReadAnswer
from api.http import headers
from api.http.caller import BOUND, Caller, allow
from api.http.cursors import cursor, cursor_in_time, link_next, place_in_time, place_of
from api.http.dependencies import Cursor
from api.http.fields import MAX_POSITION
from api.http.problems import Problem, malformed_query
from api.http.query_params import CodeQuery, CodesQuery, PermissionQuery
from api.http.responses import answer, code_content, row_content, stands
from api.http.route import Route
from domain.code import effective_as_of, fold_code, replay_code
from domain.creator import Creator
from domain.errors import Unknown
from infra.errors import Unavailable
from projections import codes, permissions, statistics

if TYPE_CHECKING:
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.eventstore.reader import EventReader

router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/codes/{code_id}", response_model=CodeReadAnswer, operation_id="readCode")
async def read_code(
    code_id: str,
    query: Annotated[CodeQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read a code as it stands, as it stood at a version, as the ledger knew it then, or as it was true then."""
    await refuse_ahead(caller, query.at_least)
    stream = await stream_of(caller, headers.path_uuid(code_id, "code"))
    clock = now = caller.services.now()
    as_of = max(stream[-1].position, query.at_least or 0)
    if query.as_of is not None:
        as_of, clock = await known_at(caller, query.as_of, now)
        stream = upto(stream, as_of)
        if not stream:
            raise Unknown("code")
    if query.version is not None:
        if query.version > stream[-1].stream_version:
            raise Problem("version_unknown")
        stream = [recorded for recorded in stream if recorded.stream_version <= query.version]
        clock = stream[-1].recorded_at
    if query.at is None:
        code = replay_code(stream)
    else:
        stream, clock = effective_as_of(stream, query.at), query.at
        code = fold_code(stream)
    content = code_content(code, caller, now=clock, position=stream[-1].position) | {"as_of": as_of}
    return answer(content, 200, stands(code.command_version, as_of))


@router.get("/v1/codes", response_model=CodesAnswer, operation_id="listCodes")
async def list_codes(
    query: Annotated[CodesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List the codes that pass every filter, newest or soonest to end first; creators and brands see their own.

    With `live_at` those that were live at a moment, such as 3 March: what has been revoked or has expired since too.
    """
    now, ours = caller.services.now(), caller.key.subjects
    same_query = query.model_dump(exclude={"cursor", "limit", "at_least"})
    caller.ask_by_names(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    creator_ids = ours.creator_ids if caller.role == "creator" else None
    if query.creator_id is not None:
        creator_ids = frozenset({query.creator_id})
    after_key, ending_after = None, None
    if query.ending:
        ending_after = (
            (query.live_at or now, MAX_POSITION) if query.cursor is None else place_in_time(query.cursor, same_query)
        )
    elif query.cursor is not None:
        after_key = place_of(query.cursor, same_query)
    brand = caller.role == "brand"

    async def page(cur: Cursor) -> list[codes.CodeRow]:
        return await codes.search(
            cur,
            caller.ledger_id,
            now=now,
            limit=query.limit + 1,
            after_key=after_key,
            ending_after=ending_after,
            state=query.state,
            creator_ids=creator_ids,
            video_id=query.video_id,
            brand_ids=None if query.brand_id is None else {query.brand_id},
            advertiser_ids=None if query.advertiser_id is None else {query.advertiser_id},
            visible_brands=ours.brand_ids if brand else None,
            visible_advertisers=ours.advertiser_ids if brand else None,
            expires_before=query.expires_before,
            live_at=query.live_at,
        )

    also = () if query.live_at is None else (statistics.NAME,)
    rows, position = await caller.services.views.read(
        caller.ledger_id, page, view=codes.NAME, also=also, at_least=query.at_least
    )
    following = None
    if len(rows) > query.limit:
        rows = rows[: query.limit]
        last = rows[-1]
        following = cursor(last.generated_position, same_query)
        if query.ending:
            following = cursor_in_time(last.expires_at, last.generated_position, same_query)
    content = {"codes": [row_content(row, caller, now=now) for row in rows], "next": following, "position": position}
    link = {} if following is None else link_next(caller.request, cursor=following)
    return answer(content, 200, {"Ledger-Position": str(position), **link})


@router.get("/v1/creators/{creator_id}/permission", response_model=PermissionReadAnswer, operation_id="readPermission")
async def read_permission(
    creator_id: str,
    query: Annotated[PermissionQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Read whether a creator's Ad Authorization is on: now, as the ledger knew then, or as it was true then."""
    headers.path_id(creator_id)
    caller.act_for_creator(creator_id)
    services, now = caller.services, caller.services.now()
    enabled, version, position, live_codes = False, 0, 0, 0
    if query.as_of is None and query.at is None:

        async def one(cur: Cursor) -> tuple[permissions.PermissionRow | None, int]:
            row = await permissions.one(cur, caller.ledger_id, creator_id)
            return row, await codes.live_of_creator(cur, caller.ledger_id, creator_id, now)

        (row, live_codes), as_of = await caller.services.views.read(
            caller.ledger_id, one, view=permissions.NAME, also=(codes.NAME,), at_least=query.at_least
        )
        if row is not None:
            enabled, version, position = row.enabled, row.version, row.position
    else:
        clock = query.at or now
        await refuse_ahead(caller, query.at_least)
        if query.as_of is None:
            as_of = await services.events.head(caller.ledger_id)
        else:
            as_of, known = await known_at(caller, query.as_of, now)
            clock = query.at or known
        stream = upto(await services.aggregates.creator_stream(caller.ledger_id, creator_id), as_of)
        # Each event says whether the switch is on, so the last that had taken effect is the answer.
        for last in (stream if query.at is None else effective_as_of(stream, query.at))[-1:]:
            enabled, version, position = isinstance(last.event, Creator.Enabled), last.stream_version, last.position
        if stream:
            live_codes = await services.aggregates.live_codes(
                caller.ledger_id, stream[0].stream_id, upto=as_of, at=clock
            )
    content = {
        "creator_id": creator_id,
        "enabled": enabled,
        "live_codes": live_codes,
        "version": version,
        "position": position,
        "as_of": as_of,
    }
    return answer(content, 200, stands(version, as_of))


async def known_at(caller: Caller, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Turn `as_of` into the position that it speaks of, and the moment that state is computed with.

    Raises:
        Problem: it lies ahead, where nothing is known yet and the answer would change.

    """
    return await known_in(caller.services.events, caller.ledger_id, as_of, now)


async def known_in(store: EventReader, ledger_id: int, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Do what `known_at` does, for a ledger that no key was shown for."""
    if isinstance(as_of, datetime):
        if as_of > now:
            raise malformed_query("as_of", "This lies in the future; what the ledger will know is not known.")
        return await store.position_at(ledger_id, as_of), as_of
    if as_of == 0:
        return 0, now
    recorded = await store.at_positions(ledger_id, [as_of])
    if not recorded:
        raise malformed_query("as_of", "The ledger has not reached this position.")
    return as_of, recorded[0].recorded_at


async def refuse_ahead(caller: Caller, at_least: int | None) -> None:
    """Refuse to read the log for a position that it has not reached; whatever is committed, a read of it sees.

    Raises:
        Unavailable: nothing is recorded at this position yet.

    """
    if at_least is not None and at_least > await caller.services.events.head(caller.ledger_id):
        raise Unavailable("The ledger has not reached this position yet. Ask again in a moment.")


async def stream_of(caller: Caller, code_id: UUID) -> list[RecordedEvent]:
    """Load the events of a code that the caller may read."""
    stream = await caller.services.aggregates.code_stream(caller.ledger_id, code_id)
    if not stream:
        raise Unknown("code")
    if caller.role in BOUND:
        caller.read_code(replay_code(stream))
    return stream


def upto(stream: list[RecordedEvent], position: int) -> list[RecordedEvent]:
    """Keep what was recorded at or before a position."""
    return [recorded for recorded in stream if recorded.position <= position]
