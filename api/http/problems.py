"""Every way the API says no, and its one table of HTTP statuses.

    Problem       what is sent: a stable code, its status, a sentence; never anything that the caller sent
    as_problem    turns whatever was raised (a refusal, a validation error, a routing error) into one

RFC 9457 gives the shape. `type` leads to the list of problems on the documentation page.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.http.validation_messages import fields_at, is_plain_name, message_of
from domain.errors import SENTENCES, Malformed, Refused, StaleVersion, Unknown
from infra.crypto.envelope import MasterKeyError
from infra.errors import (
    IdempotencyMismatch,
    IdempotencyRunning,
    KeyNoLongerValid,
    KeyNotRotatable,
    TokenRefused,
    Unavailable,
    Unreadable,
)
from infra.eventstore.histories import HistoryChanged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

MEDIA_TYPE: Final = "application/problem+json"
# Errors of one body or query that are described; the others are counted.
MAX_ERRORS: Final = 20

STATUSES: Final[dict[str, int]] = {
    "malformed_header": 400,
    "malformed_path": 400,
    "malformed_query": 400,
    "malformed_cursor": 400,
    "malformed_request": 400,
    "unauthenticated": 401,
    "not_allowed": 403,
    "alert_unknown": 404,
    "calendar_unknown": 404,
    "campaign_unknown": 404,
    "code_not_begun": 404,
    "code_unknown": 404,
    "erasure_unknown": 404,
    "event_unknown": 404,
    "key_unknown": 404,
    "import_unknown": 404,
    "log_unknown": 404,
    "mapping_unknown": 404,
    "route_unknown": 404,
    "version_unknown": 404,
    "webhook_unknown": 404,
    "method_not_allowed": 405,
    **dict.fromkeys(SENTENCES, 409),
    "ahead_of_ledger": 409,
    "alert_disabled": 409,
    "alert_key_invalid": 409,
    "too_many_alerts": 409,
    "too_many_calendars": 409,
    "too_many_imports": 409,
    "too_many_mappings": 409,
    "history_changed": 409,
    "key_not_rotatable": 409,
    "idempotency_key_in_use": 409,
    "too_many_webhooks": 409,
    "webhook_disabled": 409,
    "webhook_key_invalid": 409,
    "stale_version": 412,
    "body_too_slow": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "malformed_body": 422,
    "video_id_unusable": 422,
    "idempotency_key_reused": 422,
    "too_many_requests": 429,
    "too_many_unknown_codes": 429,
    "head_too_large": 431,
    "internal_error": 500,
    "proof_failed": 500,
    "timed_out": 503,
    "unavailable": 503,
}
# Where what is wrong is in the address: a path that names an unknown creator, a query with a video id.
_OF_THE_ADDRESS: Final = {"creator_unknown": 404, "video_id_unusable": 400}

# Another version of the program must be started first.
UNREADABLE_RETRY_S: Final = "60"
NO_KEY: Final = "A key that this request needs cannot be opened now. The server's log says which key is missing."
HISTORY_UNKNOWN: Final = (
    "The ledger's history is `history`. What `sent_history` has in common with it is not known: most likely it is a "
    "history of another ledger. Check that this is the right ledger, and read from the beginning."
)
NO_HISTORY_SENT: Final = (
    "The ledger has had several histories, so a position alone is not accepted here. Send its history with it, in "
    "`Ledger-History`, or for a stream as `history:position` in `Last-Event-ID`; or read from the beginning."
)
# The same request may succeed later without anyone changing it.
RETRYABLE: Final = Refused.RETRYABLE | {
    "idempotency_key_in_use",
    "too_many_requests",
    "too_many_unknown_codes",
    "body_too_slow",
    "internal_error",
    "timed_out",
    "unavailable",
}

# What a person reads where the sentence does not depend on the case; refusals of the rules bring their own.
DETAILS: Final[dict[str, str]] = {
    "malformed_body": "The request body is not valid. `errors` says which fields are wrong and why.",
    "video_id_unusable": "This is not the id of a video. `errors` says why, and what to send instead.",
    "malformed_query": "The query is not valid. `errors` says which parameters are wrong and why.",
    "malformed_path": "An id in the path must have 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -",
    "malformed_cursor": "The cursor does not belong to this query. Start again without a cursor.",
    "malformed_request": "The request could not be understood.",
    "unauthenticated": "Send a valid API key or bearer token as `Authorization: Bearer <key>`.",
    "ahead_of_ledger": (
        "The ledger has not reached this position: it ends at `last_position`. The position is from another ledger, or "
        "this one has lost its newest events."
    ),
    "history_changed": (
        "The ledger goes on as another history, `history`, because it has lost events. Positions after "
        "`last_common_position` mean other events than in `sent_history`. Read again from there, or from the beginning."
    ),
    "erasure_unknown": "There is no erasure of this creator in this ledger.",
    "event_unknown": "There is no event at this position in this ledger.",
    "key_unknown": "There is no such key in this ledger.",
    "log_unknown": "There is no such log, or this part of it does not exist yet.",
    "proof_failed": (
        "The stored event or tree does not fit the signed log, so there is no proof of it. Tell the operator of this "
        "server."
    ),
    "key_not_rotatable": (
        "Only a key that is neither revoked nor expired can be rotated. A token identity has no key to rotate."
    ),
    "route_unknown": "There is no such route.",
    "code_not_begun": "The code had not begun at that time: it began at `begun_at`.",
    "version_unknown": "The code does not have this version yet.",
    "alert_unknown": "This key has no such alert rule.",
    "alert_disabled": "This alert rule is disabled, so nothing is sent. Enable it first.",
    "alert_key_invalid": (
        "The API key of this alert rule was revoked or has expired. Create a new rule with a valid key."
    ),
    "too_many_alerts": (
        "This ledger already has 200 alert rules, or this key 40 of them, and that is the maximum. Delete a rule that "
        "you no longer need."
    ),
    "calendar_unknown": "There is no such calendar, or it is no longer valid.",
    "import_unknown": (
        "The worker carries out no such import. Imports are kept for 30 days after their end, and those of up to 2,000 "
        "rows are answered at once."
    ),
    "too_many_imports": "This ledger already has 4 imports under way. Wait until one of them has ended.",
    "mapping_unknown": "No mapping is saved under this name in this ledger.",
    "too_many_mappings": "This ledger already has 200 mappings, and that is the maximum. Delete a mapping first.",
    "too_many_calendars": (
        "This ledger already has 500 calendars, or this key 50 of them, and that is the maximum. Delete a calendar "
        "that you no longer need."
    ),
    "webhook_unknown": "This key has no such webhook.",
    "too_many_webhooks": (
        "This ledger already has 100 webhooks, or this key 50 of them, and that is the maximum. Delete a webhook that "
        "you no longer need."
    ),
    "webhook_disabled": "This webhook is disabled, so nothing is sent to it. Enable it first.",
    "webhook_key_invalid": (
        "The API key of this webhook was revoked or has expired. Create a new webhook with a valid key."
    ),
    "method_not_allowed": "This route does not support this method. `Allow` lists the supported methods.",
    "body_too_large": "The body is larger than 1 MiB.",
    "head_too_large": "The request's headers are too large. Send fewer or shorter ones.",
    "unsupported_media_type": "Send the body as `Content-Type: application/json`, in UTF-8.",
    "idempotency_key_in_use": (
        "The first request with this Idempotency-Key is still in progress. Try again in a moment."
    ),
    "idempotency_key_reused": (
        "This Idempotency-Key was already used for a different request. Use a new key for each new request."
    ),
    "too_many_requests": "This key has sent too many requests. Try again after the number of seconds in Retry-After.",
    "too_many_unknown_codes": (
        "This key has tried too many unknown codes. Try again after the number of seconds in Retry-After."
    ),
    "internal_error": "Something went wrong on our side. Quote the request id when you report it.",
    "body_too_slow": "The body arrived too slowly. Nothing was done. Send the request again.",
    "timed_out": (
        "The request took too long. It is not known whether a command was recorded. Send it again with the "
        "same Idempotency-Key: it is recorded only once."
    ),
}

_STREAM_ENDED: Final = (
    "The stream token was not used within its minute, or has ended, or is none. Create another one with "
    "`POST /v1/stream-tokens`, and open the stream with it."
)
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="sparkledger"'}
# RFC 6750 has the name, so that a client knows to get another token.
_INVALID_TOKEN: Final = {"WWW-Authenticate": 'Bearer realm="sparkledger", error="invalid_token"'}


class Problem(HTTPException):
    """The response to a refused or failed request (RFC 9457)."""

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what is wrong; `members` are fields of this problem beyond those that every problem has."""
        super().__init__(status or STATUSES[code], detail or DETAILS[code], headers)
        self.code = code
        self.members = members or {}

    def response(self, request_id: str) -> Response:
        """Return the answer to send."""
        return Response(self.body(request_id=request_id), self.status_code, self.headers, MEDIA_TYPE)

    def body(self, **members: Any) -> bytes:
        """Return the answer's body; `members` are fields of this answer."""
        content = {
            "type": f"/docs#{self.code}",
            "title": title(self.code),
            "status": self.status_code,
            "detail": self.detail,
            "code": self.code,
            "retryable": self.code in RETRYABLE,
            **members,
            **self.members,
        }
        return orjson.dumps(content)


def title(code: str) -> str:
    """Return the short name of a kind of problem."""
    return code.replace("_", " ").capitalize()


def statuses_of(code: str) -> list[int]:
    """Return the HTTP statuses that a kind of problem can have."""
    return sorted({STATUSES[code], _OF_THE_ADDRESS.get(code, STATUSES[code])})


def malformed_body(pointer: str, problem: str) -> Problem:
    """Return the problem of one wrong field, for what only the route can know to be wrong."""
    return Problem("malformed_body", members={"errors": [{"pointer": pointer, "problem": problem}]})


def malformed_query(parameter: str, problem: str) -> Problem:
    """Return the problem of one wrong query parameter."""
    return Problem("malformed_query", members={"errors": [{"pointer": f"/{parameter}", "problem": problem}]})


def malformed(code: str, error: ValidationError, model: Any, left_out: int = 0) -> Problem:
    """Return the problem of what a model refused: where and why, and nothing of what was sent.

    `left_out` counts the errors of what was left out before.
    """
    found = error.errors(include_url=False, include_input=False)
    members: dict[str, Any] = {"errors": [_field_problem(one, model) for one in found[:MAX_ERRORS]]}
    further = max(0, len(found) - MAX_ERRORS) + left_out
    if further:
        members["more_errors"] = further
    if all(one.get("ctx", {}).get("code") == "video_id_unusable" for one in found):
        return Problem("video_id_unusable", status=STATUSES[code], members=members)
    return Problem(code, members=members)


def ahead_of_ledger(last_position: int) -> Problem:
    """Return the problem of a position that the ledger has not reached; an empty page would hide a lost end."""
    return Problem("ahead_of_ledger", members={"last_position": last_position})


def history_changed(error: HistoryChanged) -> Problem:
    """Return the problem of another history: an earlier one of this ledger, one that it does not know, or none."""
    detail = None
    if error.sent is None:
        detail = NO_HISTORY_SENT
    elif error.common_position is None:
        detail = HISTORY_UNKNOWN
    return Problem("history_changed", detail, members=history_members(error))


def history_members(error: HistoryChanged) -> dict[str, Any]:
    """Return both histories, where there are two, and the last position that they have in common, where it is known."""
    members = {
        "history": str(error.current),
        "sent_history": None if error.sent is None else str(error.sent),
        "last_common_position": error.common_position,
    }
    return {name: value for name, value in members.items() if value is not None}


def too_many(code: str, wait_s: float, policy: tuple[int, int]) -> Problem:
    """Return the problem of a caller that must wait; seconds are rounded up, to at least one.

    `policy` is how many are let through in how many seconds. Beside Retry-After stand the two fields of
    draft-ietf-httpapi-ratelimit-headers-10: what the policy is, that nothing remains of it, and until when.
    """
    wait = max(1, -int(-wait_s // 1))
    quota, window_s = policy
    return Problem(
        code,
        headers={
            "Retry-After": str(wait),
            "RateLimit-Policy": f'"{code}";q={quota};w={window_s}',
            "RateLimit": f'"{code}";r=0;t={wait}',
        },
    )


def as_problem(error: Exception) -> Problem:  # noqa: C901, PLR0911, PLR0912 - one line for each kind of error
    """Turn what was raised into what is sent."""
    match error:
        case Problem():
            return error
        case StaleVersion():
            return Problem(
                error.code,
                error.detail,
                headers={"ETag": f'"{error.current}"'},
                members={"current_version": error.current},
            )
        case Malformed():
            return malformed_body(error.pointer, error.detail)
        case Unknown():
            # What a path or a secret names is not found; whom a rule needs and nobody knows is a conflict.
            return Problem(error.code, error.detail, status=http.HTTPStatus.NOT_FOUND)
        case Refused():
            conflict = {"conflict_id": error.conflict_id} if error.conflict_id else {}
            return Problem(error.code, error.detail, members=conflict)
        case HistoryChanged():
            return history_changed(error)
        case IdempotencyMismatch():
            return Problem("idempotency_key_reused", members={"errors": []})
        case IdempotencyRunning():
            return Problem("idempotency_key_in_use", headers={"Retry-After": "1"})
        case KeyNoLongerValid():
            return Problem("unauthenticated", headers=_CHALLENGE)
        case TokenRefused():
            return Problem("unauthenticated", error.detail, headers=_INVALID_TOKEN)
        case KeyNotRotatable():
            return Problem("key_not_rotatable")
        case Unavailable():
            return Problem("unavailable", error.detail, headers={"Retry-After": str(error.retry_after)})
        case Unreadable():
            return Problem("unavailable", error.detail, headers={"Retry-After": UNREADABLE_RETRY_S})
        case MasterKeyError():
            return Problem("unavailable", NO_KEY, headers={"Retry-After": UNREADABLE_RETRY_S})
        case HTTPException():
            return _of_status(error)
        case _:
            return Problem("internal_error")


def unauthenticated(*, by_stream_token: bool = False) -> Problem:
    """Return the problem of a caller without a valid key; `by_stream_token` if a stream token was sent instead."""
    return Problem("unauthenticated", _STREAM_ENDED if by_stream_token else None, headers=_CHALLENGE)


def _of_status(error: HTTPException) -> Problem:
    """Name the problems that the framework raises."""
    codes = {404: "route_unknown", 405: "method_not_allowed", 413: "body_too_large"}
    if error.status_code in codes:
        return Problem(codes[error.status_code], headers=error.headers)
    if error.status_code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return Problem("malformed_request")
    return Problem("internal_error")


def _field_problem(error: ErrorDetails, model: Any) -> dict[str, Any]:
    """Return where a model is wrong and why, with the stable reason of what was pasted and cannot be used."""
    reason = {name: found for name, found in error.get("ctx", {}).items() if name in {"reason", "offset"}}
    return {"pointer": _pointer(error), "problem": message_of(error, fields_at(model, error["loc"][:-1])), **reason}


def _pointer(error: ErrorDetails) -> str:
    """Return the JSON Pointer (RFC 6901) of a field: of one that the client named only where its name is plain."""
    path = error["loc"]
    if error["type"] == "extra_forbidden" and not is_plain_name(str(path[-1])):
        path = path[:-1]
    return "".join(f"/{part}" for part in path)
