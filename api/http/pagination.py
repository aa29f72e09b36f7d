"""Pages of lists: what the next page is asked for by, and the answer that a page makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.responses import Response

from api.http.caller import Caller
from api.http.cursors import decode_time, encode_time, link_next
from api.http.responses import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from projections.engine.paging import Keyset


R = TypeVar("R")


class ListQuery(Protocol):
    """The query of a list: its filters, and the page of what passes them."""

    @property
    def limit(self) -> int:
        """The maximum number of entries in a page."""

    @property
    def cursor(self) -> str | None:
        """The cursor of the page; None for the first."""

    def model_dump(self, *, exclude: set[str]) -> dict[str, Any]:
        """Return all parameters but some."""


def creators_asked(caller: Caller, creator_id: str | None) -> Collection[str] | None:
    """Return the creators whose codes are asked for: the one that is named, or those that the key acts for."""
    if creator_id is not None:
        return {creator_id}
    return caller.key.subjects.creator_ids if caller.role == "creator" else None


def same_query(query: ListQuery) -> dict[str, Any]:
    """Return what must be the same for the next page."""
    return query.model_dump(exclude={"cursor", "limit", "at_least"})


def place_after(query: ListQuery) -> Keyset | None:
    return None if query.cursor is None else decode_time(query.cursor, same_query(query))


def page_answer(
    caller: Caller,
    query: ListQuery,
    name: str,
    found: Sequence[R],
    position: int,
    content: Callable[[R], dict[str, Any]],
    place: Callable[[R], Keyset],
) -> Response:
    """Answer a page: one more than it holds was looked for, which tells whether another follows."""
    following = None
    if len(found) > query.limit:
        found = found[: query.limit]
        following = encode_time(*place(found[-1]), same_query(query))
    link = {} if following is None else link_next(caller.request, cursor=following)
    contents = {name: [content(one) for one in found], "next": following, "position": position}
    return answer(contents, 200, {"Ledger-Position": str(position), **link})
