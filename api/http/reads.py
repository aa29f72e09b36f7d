"""Reads as the access log counts them: by key, route, query and what was read.

Routes that record a read themselves, before they answer it, say so: `Operation(trace="recorded")`. Every other route
that reads is noted here when it answers.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from infra.auth.access_log import NOTHING, AccessSubject
from infra.auth.read_log import Read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.http.caller import Caller
    from api.http.query_params import QueryModel

# What differs from one page of a read to the next.
PLACE: Final = frozenset({"after", "before", "cursor", "limit", "at_least"})


# In the scope of a request: parameters that do not set its read apart from others.
TOGETHER: Final = "sparkledger.together"


def reading(caller: Caller, *, rows: int = 1, subject: AccessSubject = NOTHING) -> None:
    """Say what is read: how many entries, and of what, if the address and the query do not say so."""
    caller.request.scope["reading"] = rows, subject


def note_read(caller: Caller, query: QueryModel | None) -> None:
    """Note what is about to be answered.

    Raises:
        Unavailable: it cannot be recorded, and must not be answered.

    """
    scope = caller.request.scope
    parameters: dict[str, Any] = {**scope["path_params"]}
    if query is not None and scope["query_string"]:
        parameters |= query.model_dump(
            mode="json", by_alias=True, exclude_unset=True, exclude=PLACE | scope.get(TOGETHER, PLACE)
        )
    rows, subject = scope.get("reading", (1, NOTHING))
    if subject is NOTHING:
        subject = subject_of(parameters)
    read = Read(
        caller.key.key_id,
        caller.key.role,
        f"{scope['method']} {scope['route'].path}",
        orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS),
        subject.code_id,
        subject.creator_id,
        subject.video_id,
    )
    caller.services.reads.note(caller.ledger_id, read, rows, scope["request_id"])


def subject_of(parameters: Mapping[str, Any]) -> AccessSubject:
    """Return what the parameters of a request name."""
    code_id, creator_id, video_id = (parameters.get(name) for name in ("code_id", "creator_id", "video_id"))
    code = None
    if code_id is not None:
        with suppress(ValueError):
            code = UUID(str(code_id))
    return AccessSubject(code, creator_id, video_id) if code or creator_id or video_id else NOTHING
