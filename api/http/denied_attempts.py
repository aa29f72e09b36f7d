"""Denied attempts, as the access log records them: who was refused, why, and from where."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal

from api.http import headers
from api.http.dependencies import services_of
from infra.auth.denied_attempts import DeniedAttempt
from infra.errors import Unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

    from api.http.problems import Problem
    from infra.auth.api_keys import ApiKey

# What is told of: a role or subject that does not reach this far, codes and creators that are not there, a creator's
# permission that is switched off. The other refusals are the rules' daily work.
RECORDED_CODES: Final = frozenset(
    {"not_allowed", "code_unknown", "creator_unknown", "permission_disabled", "too_many_unknown_codes"}
)
# Where a code is named by its secret: what is unknown there may be a guess.
BY_SECRET: Final = frozenset({"/v1/redemptions", "/v1/codes/lookup"})

# In the scope of a request: its reader may read what was asked for, which was not known yet at the time asked about.
NOT_KNOWN_YET: Final = "sparkledger.not_known_yet"

# What a denied attempt is recorded as.
DeniedReason = Literal[
    "role_not_allowed",
    "not_allowed",
    "code_unknown",
    "code_id_unknown",
    "creator_unknown",
    "permission_disabled",
    "too_many_unknown_codes",
]

log = logging.getLogger(__name__)


async def record_denied_attempt(request: Request, problem: Problem) -> None:
    """Record a refused attempt, where it is one and its key is known; the refusal stands whether or not that works."""
    key: ApiKey | None = request.scope.get("key")
    if key is None or problem.code not in RECORDED_CODES or NOT_KNOWN_YET in request.scope:
        return
    route = request.scope["route"].path
    path = (("path", value) for value in request.path_params.values())
    attempt = DeniedAttempt(
        key_id=key.key_id,
        role=key.role,
        reason=_reason(problem.code, route, by_role=request.scope.get("refused_by_role", False)),
        route=f"{request.method} {route}",
        request_id=request.scope["request_id"],
        origin=(
            ("address", request.client.host if request.client is not None else ""),
            ("user_agent", headers.text(request, b"user-agent")),
            *path,
        ),
    )
    try:
        await services_of(request.scope).denied_attempts.record(key.ledger_id, attempt)
    except Unavailable:
        log.warning("The denied attempt of request %s could not be recorded.", attempt.request_id)


def _reason(code: str, route: str, *, by_role: bool) -> str:
    if code == "not_allowed" and by_role:
        return "role_not_allowed"
    # An id that nobody knows is a slip; a secret that nobody knows may be a guess, and is counted apart.
    return "code_id_unknown" if code == "code_unknown" and route not in BY_SECRET else code
