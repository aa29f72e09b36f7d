"""The question for every line of a file: how many yes, how many no, which lines are wrong?"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import orjson

from api.console.question import ASKS, REASONS
from api.console.visit import Page, read_body
from api.http import headers
from api.http.middleware import MAX_BODY_BYTES
from api.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from api.console.visit import Visit

_BATCH: Final = "/v1/authorizations/batch"
CSV: Final = "text/csv"
LINES: Final = "application/x-ndjson"
# Lines that the page shows; the file has all.
SHOWN_LINES: Final = 100
_BOUNDARY: Final = re.compile(r'multipart/form-data;\s*boundary="?([!-~]{1,70}?)"?')
_FIELD: Final = re.compile(rb'content-disposition:[^\r\n]*?\bname="([^"\r\n]{1,100})"', re.IGNORECASE)
_NO_FILE: Final = "Choose a CSV file first."


async def _ask(visit: Visit) -> Response:
    form = await read_file_form(visit.request)
    content = form.get("file", b"")
    if not content.strip():
        raise Problem("malformed_request", _NO_FILE)
    if form.get("want") == b"file":
        named = {"Content-Disposition": 'attachment; filename="answers.csv"'}
        return visit.passed_on(_BATCH, {}, accept=CSV, method="POST", body=content, media_type=CSV, headers=named)
    reply = await visit.api.call("POST", _BATCH, {}, content, CSV, accept=LINES)
    answers = [orjson.loads(line) for line in reply.content.splitlines()]
    wrong = [one for one in answers if one.get("error")]
    reasons = Counter(one["reason"] for one in answers if not one.get("error"))
    refused = [one for one in answers if not one.get("error") and one["reason"] != "authorized"]
    return visit.page(
        "answers.html",
        lines=len(answers),
        yes=reasons.pop("authorized", 0),
        reasons=[(REASONS[reason][0].removeprefix("No: "), count) for reason, count in reasons.most_common()],
        no=sum(reasons.values()),
        wrong=wrong[:SHOWN_LINES],
        wrong_count=len(wrong),
        refused=refused[:SHOWN_LINES],
        refused_count=len(refused),
    )


async def read_file_form(request: Request) -> dict[str, bytes]:
    """Return the fields of a form with a file (RFC 7578), as browsers send it: at most 1 MiB.

    Raises:
        Problem: it is too large, or no such form.

    """
    boundary = _BOUNDARY.fullmatch(headers.text(request, b"content-type"))
    if boundary is None:
        raise Problem("unsupported_media_type", "Send the form of this page.")
    body = await read_body(request, MAX_BODY_BYTES)
    return dict(_fields(body, b"--" + boundary[1].encode()))


def _fields(body: bytes, delimiter: bytes) -> Iterator[tuple[str, bytes]]:
    # A part ends with the line end before the next delimiter, and the last part is `--` after the last delimiter.
    for part in (b"\r\n" + body).split(b"\r\n" + delimiter)[1:]:
        head, separator, content = part.partition(b"\r\n\r\n")
        name = _FIELD.search(head)
        if separator and name is not None:
            yield name[1].decode("utf-8", "replace"), content


PAGES: Final = (Page("/question/file", _ask, methods=("POST",), roles=ASKS),)
