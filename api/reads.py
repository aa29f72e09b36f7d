"""The routes that read codes, permissions, the question and the figures."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import headers
from api.answer_models import (
    AuthorizationAnswer,
    CodeReadAnswer,
    CodesAnswer,
    HistoryAnswer,
    PermissionReadAnswer,
    StatsAnswer,
)
from api.answers import answer, code_content, row_content, stands
from api.auth import BOUND, Caller, allow
from api.cursors import cursor, link_next, place_of
from api.problems import Problem, malformed_query
from api.queries import AuthorizationQuery, CodeQuery, CodesQuery, HistoryQuery, PermissionQuery
from api.route import Route
from api.trail import event_content, names_of, shown_to, unsealed_notes
from api.wiring import Cursor
from domain.authorization import verdict
from domain.errors import Unknown
from domain.recorded import fold_code, replay_code, replay_creator, true_at
from infra.errors import Unavailable
from projections import codes, expiring, permissions, redemptions, view

if TYPE_CHECKING:
    from uuid import UUID

    from domain.recorded import Recorded

EXPIRING_WITHIN_DAYS: Final = (7, 14, 30)
STATS_SINCE: Final = timedelta(hours=24)

router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/codes/{code_id}", response_model=CodeReadAnswer, operation_id="readCode")
async def read_code(
    code_id: str,
    query: Annotated[CodeQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read a code as it stands, as it stood at a version, as the ledger knew it then, or as it was true then."""
    await refuse_ahead(caller, query.at_least)
    stream = await _stream(caller, headers.path_uuid(code_id, "code"))
    clock = now = caller.services.now()
    as_of = max(stream[-1].position, query.at_least or 0)
    if query.as_of is not None:
        as_of, clock = await known_at(caller, query.as_of, now)
        stream = _upto(stream, as_of)
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
        stream, clock = true_at(stream, query.at), query.at
        code = fold_code(stream)
    content = code_content(code, caller, now=clock, position=stream[-1].position) | {"as_of": as_of}
    return answer(content, 200, stands(code.command_version, as_of))


@router.get("/v1/codes", response_model=CodesAnswer, operation_id="listCodes")
async def list_codes(
    query: Annotated[CodesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List the codes that pass every filter, newest first; a creator's or brand's key sees its own."""
    now, ours = caller.services.now(), caller.key.subjects
    same_query = query.model_dump(exclude={"cursor", "limit", "at_least"})
    caller.ask_by_names(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    creator_ids = ours.creator_ids if caller.role == "creator" else None
    if query.creator_id is not None:
        creator_ids = frozenset({query.creator_id})
    brand = caller.role == "brand"

    async def page(cur: Cursor) -> list[codes.CodeRow]:
        return await codes.search(
            cur,
            caller.ledger_id,
            now=now,
            limit=query.limit + 1,
            after_key=None if query.cursor is None else place_of(query.cursor, same_query),
            state=query.state,
            creator_ids=creator_ids,
            video_id=query.video_id,
            brand_ids=None if query.brand_id is None else {query.brand_id},
            advertiser_ids=None if query.advertiser_id is None else {query.advertiser_id},
            visible_brands=ours.brand_ids if brand else None,
            visible_advertisers=ours.advertiser_ids if brand else None,
            expires_before=query.expires_before,
        )

    rows, position = await caller.services.views.read(caller.ledger_id, page, view=codes.NAME, at_least=query.at_least)
    following = None
    if len(rows) > query.limit:
        rows = rows[: query.limit]
        following = cursor(rows[-1].generated_position, same_query)
    content = {"codes": [row_content(row, caller, now=now) for row in rows], "next": following, "position": position}
    link = {} if following is None else link_next(caller.request, cursor=following)
    return answer(content, 200, {"Ledger-Position": str(position), **link})


@router.get("/v1/codes/{code_id}/history", response_model=HistoryAnswer, operation_id="readHistory")
async def read_history(
    code_id: str,
    query: Annotated[HistoryQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read all that happened to a code, oldest first, with the text of its notes; a brand reads what concerns it."""
    await refuse_ahead(caller, query.at_least)
    stream = await _stream(caller, headers.path_uuid(code_id, "code"))
    position = max(stream[-1].position, query.at_least or 0)
    version = replay_code(stream).command_version
    shown = [recorded for recorded in stream if shown_to(caller, recorded)]
    notes = {} if caller.role == "brand" else await unsealed_notes(caller, shown)
    names = await names_of(caller, shown)
    content = {"events": [event_content(r, names, notes.get(r.position)) for r in shown]}
    return answer(content, 200, stands(version, position))


@router.get("/v1/creators/{creator_id}/permission", response_model=PermissionReadAnswer, operation_id="readPermission")
async def read_permission(
    creator_id: str,
    query: Annotated[PermissionQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Read whether a creator's Ad Authorization is on, now or as the ledger knew then; unknown reads as off."""
    headers.path_id(creator_id)
    caller.act_for_creator(creator_id)
    ledgers, now = caller.services.ledgers, caller.services.now()
    enabled, version, position, stream_id, clock = False, 0, 0, None, now
    if query.as_of is None:

        async def one(cur: Cursor) -> permissions.PermissionRow | None:
            return await permissions.one(cur, caller.ledger_id, creator_id)

        row, as_of = await caller.services.views.read(
            caller.ledger_id, one, view=permissions.NAME, at_least=query.at_least
        )
        if row is not None:
            enabled, version, position, stream_id = row.enabled, row.version, row.position, row.creator_stream
    else:
        as_of, clock = await known_at(caller, query.as_of, now)
        stream = _upto(await ledgers.creator_stream(caller.ledger_id, creator_id), as_of)
        if stream:
            creator = replay_creator(stream)
            enabled, version, position, stream_id = creator.enabled, creator.version, stream[-1].position, creator.id
    live_codes = 0
    if stream_id is not None:
        live_codes = await ledgers.live_codes(caller.ledger_id, stream_id, upto=as_of, at=clock)
    content = {
        "creator_id": creator_id,
        "enabled": enabled,
        "live_codes": live_codes,
        "version": version,
        "position": position,
        "as_of": as_of,
    }
    return answer(content, 200, stands(version, as_of))


@router.get("/v1/authorizations", response_model=AuthorizationAnswer, operation_id="askAuthorization")
async def ask_authorization(
    query: Annotated[AuthorizationQuery, Query()],
    caller: Annotated[Caller, allow("brand", "operator", "auditor", "admin")],
) -> Response:
    """Answer the question: was this video authorized for this advertiser at this moment, and what proves it?"""
    caller.act_for_advertiser(query.advertiser_id)
    ledgers, now = caller.services.ledgers, caller.services.now()
    at, at_least, as_of = query.at or now, query.at_least, None
    if query.as_of is not None:
        as_of, clock = await known_at(caller, query.as_of, now)
        at, at_least = query.at or clock, max(as_of, query.at_least or 0)

    async def of_video(cur: Cursor) -> list[UUID]:
        return await codes.of_video(cur, caller.ledger_id, query.video_id)

    found, position = await caller.services.views.read(caller.ledger_id, of_video, view=codes.NAME, at_least=at_least)
    # What the view has not read yet is left out of the log too: the answer is that of one position, and stays so.
    as_of = position if as_of is None else as_of
    streams = await ledgers.store.streams(caller.ledger_id, found) if found else {}
    known = [stream for stream in (_upto(streams[code_id], as_of) for code_id in found) if stream]
    creators = {stream[0].creator_stream for stream in known}
    switches = await ledgers.store.streams(caller.ledger_id, list(creators)) if creators else {}
    told = verdict(known, {id_: _upto(stream, as_of) for id_, stream in switches.items()}, query.advertiser_id, at)
    content = {
        "authorized": told.authorized,
        "reason": told.reason,
        "video_id": query.video_id,
        "advertiser_id": query.advertiser_id,
        "at": at,
        "as_of": as_of,
        "code_id": told.code_id,
        "starts_at": told.starts_at,
        "expires_at": told.expires_at,
        "permission_enabled": told.permission_enabled,
        "shared": told.shared,
        "evidence": told.evidence,
    }
    return answer(content, 200, {"Ledger-Position": str(as_of)})


@router.get("/v1/stats", response_model=StatsAnswer, operation_id="readStats")
async def read_stats(caller: Annotated[Caller, allow("operator", "auditor", "admin")]) -> Response:
    """Count codes by state, expiries ahead and refusals, and tell how far every view has read."""
    ledger_id, now, services = caller.ledger_id, caller.services.now(), caller.services
    head = await services.ledgers.store.head(ledger_id)

    async def figures(cur: Cursor) -> dict[str, Any]:
        states = {status.view: status.state for status in await view.statuses(cur)}
        positions = {read.view: read.position for read in await view.positions(cur, ledger_id)}
        return {
            "codes": await codes.count_by_state(cur, ledger_id, now),
            "expiring": {
                f"within_{days}_days": await expiring.count_ahead(
                    cur, ledger_id, now=now, until=now + timedelta(days=days)
                )
                for days in EXPIRING_WITHIN_DAYS
            },
            "redemptions": await redemptions.count(cur, ledger_id),
            "refusals": await redemptions.count_by_reason(cur, ledger_id),
            "views": [
                {
                    "view": name,
                    "state": state,
                    "position": positions.get(name, 0),
                    "lag": max(0, head - positions.get(name, 0)),
                }
                for name, state in states.items()
            ],
        }

    counted, position = await services.views.read(ledger_id, figures, view=codes.NAME)
    attempts = await services.ledgers.refusals.counts(ledger_id, since=now - STATS_SINCE)
    content = {"position": head, **counted, "refused_attempts": attempts, "subscribers": []}
    return answer(content, 200, {"Ledger-Position": str(position)})


async def known_at(caller: Caller, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Turn `as_of` into the position that it speaks of, and the moment that state is computed with.

    Raises:
        Problem: it lies ahead, where nothing is known yet and the answer would change.

    """
    store = caller.services.ledgers.store
    if isinstance(as_of, datetime):
        if as_of > now:
            raise malformed_query("as_of", "This lies in the future; what the ledger will know is not known.")
        return await store.position_at(caller.ledger_id, as_of), as_of
    if as_of == 0:
        return 0, now
    recorded = await store.at_positions(caller.ledger_id, [as_of])
    if not recorded:
        raise malformed_query("as_of", "The ledger has not reached this position.")
    return as_of, recorded[0].recorded_at


async def refuse_ahead(caller: Caller, at_least: int | None) -> None:
    """Refuse to read the log for a position that it has not reached; whatever is committed, a read of it sees.

    Raises:
        Unavailable: nothing is recorded at this position yet.

    """
    if at_least is not None and at_least > await caller.services.ledgers.store.head(caller.ledger_id):
        raise Unavailable("The ledger has not reached this position yet. Ask again in a moment.")


async def _stream(caller: Caller, code_id: UUID) -> list[Recorded]:
    """Load the events of a code that the caller may read."""
    stream = await caller.services.ledgers.code_stream(caller.ledger_id, code_id)
    if not stream:
        raise Unknown("code")
    if caller.role in BOUND:
        caller.read_code(replay_code(stream))
    return stream


def _upto(stream: list[Recorded], position: int) -> list[Recorded]:
    return [recorded for recorded in stream if recorded.position <= position]
