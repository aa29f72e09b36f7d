"""Pages of lists: what the next page is asked for by, and the answer that a page makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from starlette.responses import Response

from api.http.caller import Caller
from api.http.cursors import decode_time, link_header, with_history
from api.http.reads import reading
from api.http.responses import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

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


async def creators_asked(caller: Caller, creator_id: str | None) -> Collection[str] | None:
    """Return the creators whose codes are asked for: the one that is named, or those that the key acts for.

    Their ids are as views have them.
    """
    if creator_id is None and caller.role != "creator":
        return None
    asked = caller.key.subjects.creator_ids if creator_id is None else {creator_id}
    return await caller.services.aggregates.shown_creators(caller.ledger_id, asked)


def same_query(query: ListQuery) -> dict[str, Any]:
    """Return what must be the same for the next page."""
    return query.model_dump(exclude={"cursor", "limit", "at_least"})


def place_after(query: ListQuery) -> Keyset | None:
    return None if query.cursor is None else decode_time(query.cursor, same_query(query))


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """A page of a list, and the cursor of the next; None on the last."""

    rows: Sequence[R]
    next: str | None


def page_of(found: Sequence[R], limit: int, cursor: Callable[[R], str]) -> Page[R]:
    """Return a page of what was found: one more than it holds was looked for, and says whether another follows.

    Args:
        found: at most one more than the page holds.
        limit: how many it holds.
        cursor: returns the cursor of a page that ends with a row.

    """
    if len(found) <= limit:
        return Page(found, None)
    rows = found[:limit]
    return Page(rows, cursor(rows[-1]))


def page_answer(
    caller: Caller,
    name: str,
    page: Page[R],
    content: Callable[[R], dict[str, Any]],
    position: int | None = None,
    *,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """Answer a page under a name, and the position up to which the list has read the ledger, where it reads that.

    `more` is what the answer says besides.
    """
    cursors = with_history(caller.history.history, {"next": page.next})
    contents = {name: [content(row) for row in page.rows], **(more or {}), **cursors}
    reading(caller, rows=len(page.rows))
    link = link_header(caller.request, **cursors)
    if position is None:
        return answer(contents, 200, link)
    return answer(contents | {"position": position}, 200, {"Ledger-Position": str(position), **link})
