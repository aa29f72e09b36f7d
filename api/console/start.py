"""The start page: what needs attention, and where is what one looks for?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from api.console.visit import Page

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit


async def _show(visit: Visit) -> Response:
    return visit.page("start.html")


PAGES: Final = (Page("/", _show, nav="Start"),)
