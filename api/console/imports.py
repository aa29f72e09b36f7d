"""Imports: what would become of each row of a sheet, how far is one that the worker records, and what became of it?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.forms import Field, problems_of
from api.console.question_file import read_file_form
from api.console.visit import Page
from api.import_run import FATES
from api.import_runs import NDJSON
from api.imports import MEDIA_TYPES, XLSX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor"})
SENDERS: Final[frozenset[Role]] = frozenset({"admin", "operator"})
# Imports, and rows of a report, that a page lists.
ROWS: Final = 100
_ZIP: Final = b"PK"
_EMPTY: Final = "The sheet is empty. Choose another one."
FIELDS: Final = (
    Field("terms", "Terms accepted", hint="where rows do not say"),
    Field("dates", "03/04/2026 is", "choice", (("dmy", "3 April"), ("mdy", "4 March"))),
    Field("time_zone", "Time zone", hint="such as Europe/Berlin; empty: UTC"),
    Field("days", "Length of windows", hint="in days, where rows have one end"),
    Field("mapping", "Saved mapping", "choice"),
    Field("columns", "Columns", hint="such as secret=F,note="),
)
# What a mapping says beside its columns, and what that is called.
OPTIONS: Final = {
    "header": "names in row",
    "dates": "days as",
    "time_zone": "time zone",
    "days": "days of windows",
    "terms": "terms",
    "permission": "authorizations were on",
}
# What is said of a row by its fate.
WORDS: Final = {
    "new": "new",
    "changed": "known, with more to record",
    "known": "known already",
    "differs": "different from what is recorded",
    "refused": "refused by a rule",
    "unclear": "unclear",
}
# What the API calls its parameters, as the form does.
_AT_THE_FORM: Final = {
    "with `dates`: dmy or mdy": "at “03/04/2026 is”",
    "with `terms`": "at “Terms accepted”",
    "with `columns`": "at “Columns”",
}
_STATE_IT: Final = " Or state below that every creator’s ad authorization was on."
OPEN: Final = frozenset({"waiting", "running"})


async def _list(visit: Visit) -> Response:
    return await _page(visit)


async def _mappings(visit: Visit) -> list[dict[str, Any]]:
    mappings: list[dict[str, Any]] = (await visit.api.get("/v1/imports/mappings")).json["mappings"]
    return mappings


def _fields(mappings: Sequence[dict[str, Any]]) -> list[Field]:
    """Return the fields of the form, without what nobody can choose."""
    choices = tuple((one["name"], one["name"]) for one in mappings)
    shown = [one for one in FIELDS if one.name != "mapping" or choices]
    return [replace(one, choices=choices) if one.name == "mapping" else one for one in shown]


async def _page(
    visit: Visit, given: dict[str, str] | None = None, errors: dict[str, str] | None = None, status: int = 200
) -> Response:
    cursor = visit.query.get("cursor")
    found = (await visit.api.get("/v1/imports", limit=ROWS, cursor=cursor)).json
    mappings = await _mappings(visit)
    return visit.page(
        "imports.html",
        status=status,
        imports=found["imports"],
        more=None if found["next"] is None else f"/imports?cursor={quote(found['next'], safe='')}",
        mappings=mappings,
        options=OPTIONS,
        sends=visit.role in SENDERS,
        fields=_fields(mappings),
        given=given or {},
        errors=errors or {},
    )


async def _send(visit: Visit) -> Response:
    form = await read_file_form(visit.request)
    content = form.pop("file", b"")
    given = {name: text.decode("utf-8", "replace").strip() for name, text in form.items()}
    if not content.strip():
        return await _page(visit, given, {"": _EMPTY}, 400)
    query = {field.name: given.get(field.name, "") for field in FIELDS}
    query |= {name: "true" for name in ("permission", "record") if given.get(name) == "true"}
    media_type = XLSX if content.startswith(_ZIP) else MEDIA_TYPES[1]
    try:
        reply = await visit.api.call("POST", "/v1/imports", query, content, media_type, accept=NDJSON)
    except Declined as declined:
        if declined.status not in {400, 404, 409, 422}:
            raise
        return await _page(visit, given, problems_of(declined), declined.status)
    if reply.status == 202:  # noqa: PLR2004 - left to the worker
        return RedirectResponse(f"/imports/{reply.json['import_id']}", 303)
    first, *rows, last = map(orjson.loads, reply.content.splitlines())
    wrong = [row | {"detail": _at_the_form(row)} for row in rows if row["fate"] in {"differs", "refused", "unclear"}]
    return visit.page(
        "import_rows.html",
        read=first["import"],
        summary=last["summary"],
        fates=[(WORDS[fate], last["summary"][fate]) for fate in FATES],
        wrong=wrong[:ROWS],
        wrong_count=len(wrong),
        several=len(first["import"]["sheets"]) > 1,
        fields=_fields(await _mappings(visit)),
        given=given,
        errors={},
        sends=True,
    )


def _at_the_form(row: dict[str, Any]) -> str:
    """Return why a row is not recorded, and what to do about it on this page."""
    detail: str = row.get("detail", "")
    for said, here in _AT_THE_FORM.items():
        detail = detail.replace(said, here)
    return f"{detail}{_STATE_IT}" if row.get("reason") == "creator_unknown" else detail


async def _remove_mapping(visit: Visit) -> Response:
    await visit.api.call("DELETE", f"/v1/imports/mappings/{quote(visit.path('name'), safe='')}", {})
    return RedirectResponse("/imports#mappings", 303)


async def _one(visit: Visit) -> Response:
    run: dict[str, Any] = (await visit.api.get(_api_path(visit))).json
    return visit.page(
        "import.html",
        run=run,
        fates=[(WORDS[fate], run[fate]) for fate in FATES],
        is_open=run["state"] in OPEN,
        path=f"/imports/{run['import_id']}",
        cancels=visit.role in SENDERS,
    )


async def _report(visit: Visit) -> Response:
    name = f'attachment; filename="import-{visit.path("import_id")}.ndjson"'
    return visit.passed_on(f"{_api_path(visit)}/report", {}, accept=NDJSON, headers={"Content-Disposition": name})


async def _cancel(visit: Visit) -> Response:
    await visit.api.call("DELETE", _api_path(visit), {})
    return RedirectResponse(f"/imports/{quote(visit.path('import_id'), safe='')}", 303)


def _api_path(visit: Visit) -> str:
    return f"/v1/imports/{quote(visit.path('import_id'), safe='')}"


PAGES: Final = (
    Page("/imports", _list, more="Imports", roles=READERS, parts=("/imports",)),
    Page("/imports", _send, methods=("POST",), roles=SENDERS),
    Page("/imports/mappings/{name}/deletion", _remove_mapping, methods=("POST",), roles=SENDERS),
    Page("/imports/{import_id}", _one, roles=READERS),
    Page("/imports/{import_id}/report", _report, roles=READERS),
    Page("/imports/{import_id}/cancellation", _cancel, methods=("POST",), roles=SENDERS),
)
