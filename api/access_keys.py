"""The routes of API keys: made, listed and revoked by an administrator of the same ledger."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response

from api import headers
from api.answer_models import KeyAnswer, KeysAnswer
from api.answers import NO_STORE, answer, key_content
from api.auth import Caller, allow
from api.problems import Problem, malformed_body
from api.route import Route
from api.schemas import CreateKey
from domain.errors import Unknown
from infra.identity import Subjects

router = APIRouter(route_class=Route, tags=["Keys"])


@router.post("/v1/keys", status_code=201, response_model=KeyAnswer, operation_id="createKey")
async def create_key(body: CreateKey, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Make a key for this ledger; the key itself is in this answer alone."""
    if body.expires_at is not None and body.expires_at <= caller.services.now():
        raise malformed_body("/expires_at", "This is past; the key would never work.")
    idempotency_key = headers.idempotency_key(caller.request)
    subjects = Subjects()
    if body.subjects is not None:
        subjects = Subjects(
            frozenset(body.subjects.creator_ids),
            frozenset(body.subjects.brand_ids),
            frozenset(body.subjects.advertiser_ids),
        )
    key, text, replayed = await caller.services.identity.create(
        caller.ledger_id,
        role=body.role,
        name=body.name,
        subjects=subjects,
        expires_at=body.expires_at,
        idempotency_key=idempotency_key,
        request_hash=b"" if idempotency_key is None else caller.request_hash(),
        created_by=caller.key.key_id,
    )
    told = NO_STORE | {"Location": f"/v1/keys/{key.key_id}"} | ({"Idempotent-Replayed": "true"} if replayed else {})
    return answer(key_content(key) | {"key": text}, 201, told)


@router.get("/v1/keys", response_model=KeysAnswer, operation_id="listKeys")
async def list_keys(caller: Annotated[Caller, allow("admin")]) -> Response:
    """List the keys of this ledger, revoked ones included, newest first."""
    return answer({"keys": [key_content(key) for key in await caller.services.identity.keys(caller.ledger_id)]})


@router.delete("/v1/keys/{key_id}", status_code=204, response_class=Response, operation_id="revokeKey")
async def revoke_key(key_id: str, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Revoke a key for good; again answers the same."""
    try:
        found = await caller.services.identity.revoke(
            caller.ledger_id, headers.path_uuid(key_id, "key"), by=caller.key.key_id
        )
    except Unknown:
        found = False
    if not found:
        raise Problem("key_unknown")
    return Response(status_code=204)
