"""The routes of API keys: made, listed, rotated and revoked by an administrator of the same ledger."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.answer_models import KeyAnswer, KeysAnswer
from api.http import headers
from api.http.caller import Caller, allow
from api.http.cursors import cursor_of_id, id_of, link_next
from api.http.problems import malformed_body
from api.http.responses import NO_STORE, answer, key_content
from api.http.route import Route
from api.list_queries import KeysQuery
from api.schemas import CreateKey, RotateKey
from domain.errors import Unknown
from infra.auth.access_log import AccessContext
from infra.auth.api_keys import Subjects

router = APIRouter(route_class=Route, tags=["Keys"])


@router.post("/v1/keys", status_code=201, response_model=KeyAnswer, operation_id="createKey")
async def create_key(body: CreateKey, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Make a key for this ledger; the key itself is in this answer alone."""
    if body.expires_at is not None and body.expires_at <= caller.services.now():
        raise malformed_body("/expires_at", "This is past; the key would never work.")
    idempotency_key = headers.idempotency_key(caller.request)
    key, text, replayed = await caller.services.key_admin.create(
        caller.ledger_id,
        role=body.role,
        name=body.name,
        subjects=Subjects() if body.subjects is None else body.subjects.as_known(),
        expires_at=body.expires_at,
        may_reveal=body.may_reveal,
        idempotency_key=idempotency_key,
        request_hash=b"" if idempotency_key is None else caller.request_hash(),
        context=_access_context(caller),
    )
    told = NO_STORE | {"Location": f"/v1/keys/{key.key_id}"} | ({"Idempotent-Replayed": "true"} if replayed else {})
    return answer(key_content(key) | {"key": text}, 201, told)


@router.get("/v1/keys", response_model=KeysAnswer, operation_id="listKeys")
async def list_keys(query: Annotated[KeysQuery, Query()], caller: Annotated[Caller, allow("admin")]) -> Response:
    """List the keys of this ledger, and the bearers of tokens, revoked ones included, newest first."""
    before = None if query.cursor is None else id_of(query.cursor, "keys")
    keys = await caller.services.key_admin.keys(caller.ledger_id, limit=query.limit + 1, before=before)
    following = None
    if len(keys) > query.limit:
        keys = keys[: query.limit]
        following = cursor_of_id(keys[-1].key_id, "keys")
    link = {} if following is None else link_next(caller.request, cursor=following)
    return answer({"keys": [key_content(key) for key in keys], "next": following}, 200, link)


@router.post("/v1/keys/{key_id}/rotation", response_model=KeyAnswer, operation_id="rotateKey")
async def rotate_key(key_id: str, body: RotateKey, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Give a key another text, which is in this answer alone; it stays the same key, and the same actor in the log.

    The text that it has now works on until the overlap ends; one from before that ends at once.
    """
    idempotency_key = headers.idempotency_key(caller.request)
    try:
        key, text, replayed = await caller.services.key_admin.rotate(
            caller.ledger_id,
            headers.path_uuid(key_id, "key"),
            overlap_s=body.overlap_seconds,
            idempotency_key=idempotency_key,
            request_hash=b"" if idempotency_key is None else caller.request_hash(),
            context=_access_context(caller),
        )
    except LookupError:
        raise Unknown("key") from None
    told = NO_STORE | ({"Idempotent-Replayed": "true"} if replayed else {})
    return answer(key_content(key) | {"key": text}, 200, told)


@router.delete("/v1/keys/{key_id}", status_code=204, response_class=Response, operation_id="revokeKey")
async def revoke_key(key_id: str, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Revoke a key, or shut the bearer of tokens out, for good and at once; again answers the same."""
    wanted = headers.path_uuid(key_id, "key")
    if not await caller.services.key_admin.revoke(caller.ledger_id, wanted, context=_access_context(caller)):
        raise Unknown("key")
    return Response(status_code=204)


def _access_context(caller: Caller) -> AccessContext:
    scope = caller.request.scope
    route = f"{scope['method']} {scope['route'].path}"
    return AccessContext(caller.key.key_id, caller.role, route, scope["request_id"])
