"""The list of codes, with its filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from api.code_answer import CodeSummary, code_summary
from api.http import answer_fields as answered
from api.http.as_of import wait_for_log
from api.http.caller import Caller, allow
from api.http.cursors import decode, decode_time, encode, encode_time
from api.http.dependencies import DatabaseCursor
from api.http.fields import MAX_POSITION, CreatorName, Id, Moment, State, VideoId
from api.http.models import Answer
from api.http.pagination import Page, creators_asked, page_answer, page_of, same_query
from api.http.problems import malformed_query
from api.http.query_params import (
    LIMIT,
    MAX_CURSOR_CHARACTERS,
    AsOf,
    At,
    AtLeast,
    Exact,
    Limit,
    QueryModel,
    refuse_empty,
)
from api.http.route import Operation, Route
from api.past_codes import PastFilters, moment_of, past_codes, past_content
from domain.values import Window
from projections import codes, statistics

if TYPE_CHECKING:
    from datetime import datetime

    from projections.codes import CodeRow


class CodeInList(CodeSummary):
    brand_ids: Annotated[list[str], Field(description="The brands that it was shared with.")]
    advertiser_ids: Annotated[
        list[str], Field(description="The advertiser accounts that it was shared with or redeemed by.")
    ]
    version: answered.Version
    position: Annotated[answered.Position, Field(description="The position of the code's last event.")]


class CodesAnswer(Answer):
    codes: Annotated[list[CodeInList], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]
    position: Annotated[answered.Position, Field(description="The position up to which the list covers the ledger.")]


def _as_it_was(query: CodesFilters) -> bool:
    return query.as_of is not None or query.at is not None


class CodesFilters(QueryModel):
    """Which codes are listed, and in which order."""

    state: Annotated[State | None, Field(description="Only codes in this state.")] = None
    creator_id: Annotated[CreatorName | None, Field(description="Only codes of this creator.")] = None
    video_id_exact: Exact = None
    video_id: Annotated[VideoId | None, Field(description="Only codes for this video.")] = None
    brand_id: Annotated[Id | None, Field(description="Only codes shared with this brand.", examples=["acme"])] = None
    advertiser_id: Annotated[
        Id | None,
        Field(description="Only codes shared with or redeemed by this advertiser account.", examples=["adv-7001"]),
    ] = None
    expires_before: Annotated[Moment | None, Field(description="Only codes whose window ends before this time.")] = None
    rights_until: Annotated[Moment | None, Field(description="Only codes whose usage rights end before this time.")] = (
        None
    )
    live_at: Annotated[
        Moment | None,
        Field(
            description="Only codes that were live at this effective time, as known now, sorted by the end of "
            "the window. The answer shows each code as it is now."
        ),
    ] = None
    as_of: AsOf = None
    at: At = None
    order: Annotated[
        Literal["newest", "ending"],
        Field(
            description=(
                "`newest` first, or `ending`: codes that are neither expired nor revoked, sorted by the end of the "
                "window."
            )
        ),
    ] = "newest"

    @property
    def ending(self) -> bool:
        """Whether the soonest to end come first."""
        return self.order == "ending" or self.live_at is not None

    @model_validator(mode="after")
    def _newest_first_of_what_was(self) -> Self:
        if self.ending and _as_it_was(self):
            raise malformed_query(
                "live_at" if self.live_at is not None else "order",
                "A list as of an earlier moment has the newest code first. Leave this out, or `as_of` and `at`.",
            )
        return self

    @model_validator(mode="after")
    def _no_other_order_of_what_was_live(self) -> Self:
        if self.live_at is not None and self.order == "newest" and "order" in self.model_fields_set:
            raise malformed_query("order", "`live_at` sorts by the end of the window. Leave out `order`.")
        refuse_empty(self.live_at, self.expires_before, "live_at", "expires_before")
        return self

    @model_validator(mode="after")
    def _no_ended_codes_that_are_yet_to_end(self) -> Self:
        if self.order == "ending" and self.live_at is None and self.state in {"expired", "revoked"}:
            raise malformed_query("state", "`order=ending` lists only codes that are neither expired nor revoked.")
        return self


class CodesQuery(CodesFilters):
    limit: Limit = LIMIT
    cursor: Annotated[
        str | None,
        StringConstraints(max_length=MAX_CURSOR_CHARACTERS),
        Field(description="The `next` of the previous page, with the same filters."),
    ] = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/codes", response_model=CodesAnswer, operation_id="listCodes")
@Operation(answer_headers=("Ledger-Position",))
async def list_codes(
    query: Annotated[CodesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List codes, newest or soonest to end first. Keys of creators and brands see their own.

    With `live_at`, list the codes that were live at that time, even if they were revoked or have expired since. With
    `as_of`, list the codes as the ledger knew them then, and with `at`, as they were true then: each code as it is read
    by itself with the same parameters. Such a page can have fewer entries than `limit` and still have a `next`.
    """
    if _as_it_was(query):
        return await _list_as_it_was(query, caller)
    now, ours = caller.services.now(), caller.key.subjects
    scope = same_query(query)
    caller.check_filters(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    creator_ids = await creators_asked(caller, query.creator_id)
    after_key, ending_after = None, None
    if query.ending:
        ending_after = (
            (query.live_at or now, MAX_POSITION) if query.cursor is None else decode_time(query.cursor, scope)
        )
    elif query.cursor is not None:
        after_key = decode(query.cursor, scope)
    brand = caller.role == "brand"

    async def page(cur: DatabaseCursor) -> list[codes.CodeRow]:
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
            rights_before=query.rights_until,
            live_at=query.live_at,
        )

    also = () if query.live_at is None else (statistics.NAME,)
    rows, position = await caller.services.views.read(
        caller.ledger_id, page, view=codes.NAME, also=also, at_least=query.at_least
    )

    def cursor(row: CodeRow) -> str:
        if query.ending:
            return encode_time(row.expires_at, row.generated_position, scope)
        return encode(row.generated_position, scope)

    found = page_of(rows, query.limit, cursor)
    return page_answer(caller, "codes", found, lambda row: row_content(row, caller, now=now), position)


async def _list_as_it_was(query: CodesQuery, caller: Caller) -> Response:
    ours = caller.key.subjects
    scope = same_query(query)
    caller.check_filters(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    creator_ids = await creators_asked(caller, query.creator_id)
    await wait_for_log(caller, query.at_least)
    moment = await moment_of(caller, query.as_of, query.at)
    brand = caller.role == "brand"

    async def candidates(before: int, count: int) -> list[CodeRow]:
        async def page(cur: DatabaseCursor) -> list[CodeRow]:
            return await codes.search(
                cur,
                caller.ledger_id,
                now=moment.clock,
                limit=count,
                after_key=before,
                # What was revoked, or somebody's, still is.
                state="revoked" if query.state == "revoked" else None,
                creator_ids=creator_ids,
                video_id=query.video_id,
                brand_ids=None if query.brand_id is None else {query.brand_id},
                advertiser_ids=None if query.advertiser_id is None else {query.advertiser_id},
                visible_brands=ours.brand_ids if brand else None,
                visible_advertisers=ours.advertiser_ids if brand else None,
            )

        rows, _ = await caller.services.views.read(caller.ledger_id, page, view=codes.NAME, at_least=moment.position)
        return rows

    filters = PastFilters(query.state, query.brand_id, query.advertiser_id, query.expires_before, query.rights_until)
    after_key = None if query.cursor is None else decode(query.cursor, scope)
    found, following = await past_codes(caller, moment, filters, candidates, after_key=after_key, limit=query.limit)
    page_found = Page(found, None if following is None else encode(following, scope))
    return page_answer(caller, "codes", page_found, lambda past: past_content(past, caller, moment), moment.position)


def row_content(row: CodeRow, caller: Caller, *, now: datetime) -> dict[str, Any]:
    """Return a code as the list shows it, to a brand with only its own names."""
    brand_ids, advertiser_ids = row.brand_ids, row.advertiser_ids
    if caller.role == "brand":
        brand_ids = brand_ids & caller.key.subjects.brand_ids
        advertiser_ids = advertiser_ids & caller.key.subjects.advertiser_ids
    window, whole = Window(row.starts_at, row.expires_at), caller.role != "brand"
    return {
        **code_summary(row, row.code_id, window, now, whole=whole),
        "brand_ids": sorted(brand_ids),
        "advertiser_ids": sorted(advertiser_ids),
        "version": row.version,
        "position": row.position,
    }
