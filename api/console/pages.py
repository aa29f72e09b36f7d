"""Every page of the console, and its routes. A new page is one more module in this list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from api.console import (
    accesses,
    alerts,
    assets,
    code,
    commands,
    dossier,
    events,
    figures,
    find,
    give,
    imports,
    keys,
    lists,
    live,
    proof,
    question,
    question_file,
    sign_in,
    sign_in_elsewhere,
    start,
    statistics,
    system,
    use,
    verifier,
)
from api.console.frame import render
from api.console.visit import frame_of, problem_context
from api.http import headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from api.console.visit import Page
    from api.http.problems import Problem

# In the order of the navigation.
MODULES: Final = (
    start,
    find,
    give,
    use,
    question,
    question_file,
    lists,
    code,
    commands,
    dossier,
    events,
    proof,
    statistics,
    figures,
    accesses,
    alerts,
    imports,
    keys,
    system,
)
PAGES: Final[Sequence[Page]] = [page for module in MODULES for page in module.PAGES]
ROUTES: Final[Sequence[Route]] = [
    *(page.route() for page in PAGES),
    *sign_in.ROUTES,
    *sign_in_elsewhere.ROUTES,
    live.ROUTE,
    assets.ROUTE,
    verifier.ROUTE,
]
# Addresses of programs, whose answers are never pages.
_OF_PROGRAMS: Final = ("/v1", "/metrics", "/livez", "/readyz", "/openapi.json", "/asyncapi.json", "/schemas")


def problem_answer(request: Request, problem: Problem) -> Response | None:
    """Return the page for a problem, where a browser asks for a page; None where a program is answered."""
    path = request.scope["path"]
    if "text/html" not in headers.text(request, b"accept") or path.startswith(_OF_PROGRAMS):
        return None
    told = {"code": problem.code, "detail": problem.detail, "request_id": request.scope["request_id"]}
    context = frame_of(None, request) | problem_context(problem.status_code, told)
    return render("problem.html", context, status=problem.status_code, headers=problem.headers)
