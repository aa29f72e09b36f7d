"""Exports: all that a list or a search has found, as a file that says at its end whether it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from api.console.filters import PLACE
from api.console.visit import PEOPLE, Page
from api.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from api.console.filters import FilterForm
    from api.console.visit import Visit
    from domain.values import Role

NAMES: Final = {"csv": "CSV, for spreadsheets", "xlsx": "Excel workbook", "ndjson": "NDJSON, for programs"}


def export_page(path: str, formats: Sequence[str] = tuple(NAMES), roles: frozenset[Role] = PEOPLE) -> Page:
    """Return the page that passes on the API's export of a list, at `/export` below the list's own address."""

    async def export(visit: Visit) -> Response:
        query = {name: text for name, text in visit.query.items() if name not in PLACE}
        if query.get("format") not in formats:
            raise Problem("malformed_query", f"An export is a file of one of these formats: {', '.join(formats)}.")
        # Without a mark, spreadsheets take a file for an older encoding.
        query |= {"bom": "true"} if query["format"] == "csv" else {}
        return visit.passed_on(f"/v1/exports{path}", query, accept="*/*")

    return Page(f"{path}/export", export, roles=roles)


def export_links(form: FilterForm, formats: Sequence[str] = tuple(NAMES)) -> list[tuple[str, str]]:
    """Return the exports of what a form shows: what each is called, and its address."""
    return [(NAMES[name], form.address(f"{form.path}/export", format=name)) for name in formats]
