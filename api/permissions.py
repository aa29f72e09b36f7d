"""Permissions: whether a creator's Ad Authorization is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import known_at, upto, wait_for_log
from api.http.caller import Caller, allow
from api.http.command_context import handle_command
from api.http.cursors import MAX_KEY, decode, encode, encode_time
from api.http.dependencies import DatabaseCursor
from api.http.models import Answer, Command
from api.http.pagination import Page, creators_asked, page_answer, page_of, place_after, same_query
from api.http.query_params import LIMIT, AsOf, At, AtLeast, Flag, InTime, Limit, NextCursor, QueryModel
from api.http.responses import answer, command_headers, version_headers
from api.http.route import Operation, Route
from domain import commands
from domain.code import effective_as_of
from domain.commands import Decision, Ledger
from domain.creator import Creator, replay_creator
from domain.pasted import creator_name
from domain.values import FOREVER, When
from infra.eventstore.serialization import UnreadableEvent
from infra.ids import uuid7
from projections import codes, permissions

if TYPE_CHECKING:
    from domain.recorded import RecordedEvent
    from projections.permissions import PermissionRow


class SetPermission(Command):
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.", examples=[True])]


class PermissionAnswer(Answer):
    creator_id: answered.CreatorId
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.")]
    live_codes: Annotated[int, Field(ge=0, description="The number of live codes of the creator.", examples=[2])]
    version: answered.Version
    position: answered.Position


class PermissionReadAnswer(PermissionAnswer):
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]


class PermissionInList(Answer):
    creator_id: answered.CreatorId
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.")]
    since: Annotated[answered.Moment, Field(description="The effective time of the last change.")]
    version: answered.Version
    position: Annotated[answered.EventPosition, Field(description="The position of the event that changed it last.")]


class PermissionsAnswer(Answer):
    permissions: Annotated[list[PermissionInList], Field(description="The permissions, the last changed first.")]
    next: answered.Next
    position: answered.ReadUpto


class PermissionQuery(QueryModel):
    as_of: AsOf = None
    at: At = None
    at_least: AtLeast = None


class PermissionsFilters(InTime):
    """Which permissions are listed."""

    as_of: AsOf = None
    at: At = None
    enabled: Annotated[Flag | None, Field(description="Only permissions that are on, or only those that are off.")] = (
        None
    )


class PermissionsQuery(PermissionsFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route)


@router.put(
    "/v1/creators/{creator_id}/permission",
    response_model=PermissionAnswer,
    tags=["Commands"],
    operation_id="setPermission",
)
@Operation(request_headers=("If-Match",), example={"enabled": True})
async def set_permission(
    creator_id: str, body: SetPermission, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Switch a creator's account-level Ad Authorization on or off. Live codes stay valid when it goes off."""
    creator_id = headers.path_creator(creator_id)
    caller.act_for_creator(creator_id)
    if_match = headers.if_match(caller.request)
    stream_id = uuid7()

    async def decide(ledger: Ledger, when: When) -> Decision[Creator] | None:
        return await commands.set_permission(
            ledger, creator_id, enabled=body.enabled, stream_id=stream_id, if_match=if_match, when=when
        )

    result = await handle_command(caller, body, creator_name(creator_id), decide)
    creator, live_codes = result.aggregate, 0
    if result.creator_stream is not None:
        # Where nothing changed, the last event of the permission may be from before the codes.
        changed = result.appended > 0 or result.replayed
        upto = result.position if changed else await caller.services.events.head(caller.ledger_id)
        live_codes = await caller.services.aggregates.live_codes(
            caller.ledger_id, result.creator_stream, upto=upto, at=result.recorded_at
        )
    version = 0 if creator is None else creator.version
    content = {
        "creator_id": creator_id if creator is None else creator.creator_id,
        "enabled": creator is not None and creator.enabled,
        "live_codes": live_codes,
        "version": version,
        "position": result.position,
    }
    return answer(content, 200, command_headers(result, version))


@router.get(
    "/v1/creators/{creator_id}/permission",
    response_model=PermissionReadAnswer,
    tags=["Reads"],
    operation_id="readPermission",
)
@Operation(answer_headers=("ETag", "Ledger-Position"))
async def read_permission(
    creator_id: str,
    query: Annotated[PermissionQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Read whether a creator's Ad Authorization is on now, as the ledger knew it then, or as it was true then."""
    creator_id = headers.path_creator(creator_id)
    caller.act_for_creator(creator_id)
    (creator_id,) = await caller.services.aggregates.shown_creators(caller.ledger_id, {creator_id})
    services, now = caller.services, caller.services.now()
    enabled, version, position, live_codes = False, 0, 0, 0
    if query.as_of is None and query.at is None:

        async def one(cur: DatabaseCursor) -> tuple[permissions.PermissionRow | None, int]:
            row = await permissions.one(cur, caller.ledger_id, creator_id)
            return row, await codes.live_of_creator(cur, caller.ledger_id, creator_id, now)

        (row, live_codes), as_of = await caller.services.views.read(
            caller.ledger_id, one, view=permissions.NAME, also=(codes.NAME,), at_least=query.at_least
        )
        if row is not None:
            enabled, version, position = row.enabled, row.version, row.position
    else:
        clock = query.at or now
        await wait_for_log(caller, query.at_least)
        if query.as_of is None:
            as_of = await services.events.head(caller.ledger_id)
        else:
            as_of, known = await known_at(caller, query.as_of, now)
            clock = query.at or known
        stream = upto(await services.aggregates.creator_stream(caller.ledger_id, creator_id), as_of)
        for last in (stream if query.at is None else effective_as_of(stream, query.at))[-1:]:
            enabled = replay_creator(stream).enabled_by(query.at or FOREVER)
            version, position = last.stream_version, last.position
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
    return answer(content, 200, version_headers(version, as_of))


@router.get("/v1/permissions", response_model=PermissionsAnswer, tags=["Reads"], operation_id="listPermissions")
@Operation(answer_headers=("Ledger-Position",))
async def list_permissions(
    query: Annotated[PermissionsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """List creators by the last change of their Ad Authorization. A creator's key sees its own.

    With `as_of`, list the permissions as the ledger knew them then, and with `at`, as they were true then, the creator
    who became known last first. Such a page can have fewer entries than `limit` and still have a `next`.
    """
    if query.as_of is not None or query.at is not None:
        return await _list_as_it_was(query, caller)
    creator_ids = await creators_asked(caller, None)

    async def page(cur: DatabaseCursor) -> list[PermissionRow]:
        return await permissions.search(
            cur,
            caller.ledger_id,
            limit=query.limit + 1,
            after=place_after(query),
            enabled=query.enabled,
            creator_ids=creator_ids,
            since=query.from_,
            until=query.to,
        )

    found, position = await caller.services.views.read(
        caller.ledger_id, page, view=permissions.NAME, at_least=query.at_least
    )
    page_found = page_of(found, query.limit, lambda row: encode_time(row.since, row.position, same_query(query)))
    return page_answer(caller, "permissions", page_found, _permission, position)


async def _list_as_it_was(query: PermissionsQuery, caller: Caller) -> Response:
    scope, services = same_query(query), caller.services
    creator_ids = await creators_asked(caller, None)
    await wait_for_log(caller, query.at_least)
    if query.as_of is None:
        position = await services.events.head(caller.ledger_id)
    else:
        position, _ = await known_at(caller, query.as_of, services.now())
    before = UUID(int=MAX_KEY if query.cursor is None else decode(query.cursor, scope, MAX_KEY))

    async def page(cur: DatabaseCursor) -> list[PermissionRow]:
        return await permissions.newest(
            cur, caller.ledger_id, before=before, limit=query.limit + 1, creator_ids=creator_ids
        )

    rows, _ = await services.views.read(caller.ledger_id, page, view=permissions.NAME, at_least=position)
    following = None if len(rows) <= query.limit else encode(rows[query.limit - 1].creator_stream.int, scope)
    streams = await services.events.streams(caller.ledger_id, [row.creator_stream for row in rows[: query.limit]])
    found = [
        content
        for row in rows[: query.limit]
        if (content := _as_it_was(upto(streams.get(row.creator_stream, []), position), query)) is not None
    ]
    return page_answer(caller, "permissions", Page(found, following), lambda content: content, position)


def _as_it_was(known: list[RecordedEvent], query: PermissionsQuery) -> dict[str, Any] | None:
    """Return a permission from what was known of it; None if it was not there yet, or a filter leaves it out."""
    kept = known if query.at is None else effective_as_of(known, query.at)
    if not kept or isinstance(known[0].event, UnreadableEvent):
        return None
    creator, moment = replay_creator(known), query.at or FOREVER
    enabled, since = creator.enabled_by(moment), creator.since(moment)
    if since is None or (query.enabled is not None and enabled != query.enabled):
        return None
    if (query.from_ is not None and since < query.from_) or (query.to is not None and since >= query.to):
        return None
    return {
        "creator_id": creator.creator_id,
        "enabled": enabled,
        "since": since,
        "version": kept[-1].stream_version,
        "position": kept[-1].position,
    }


def _permission(row: PermissionRow) -> dict[str, Any]:
    return {
        "creator_id": row.creator_id,
        "enabled": row.enabled,
        "since": row.since,
        "version": row.version,
        "position": row.position,
    }
