"""API keys: made, listed, rotated and revoked by an administrator of the same ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.cursors import MAX_KEY, decode, encode
from api.http.fields import LATER, CreatorName, Id, Moment, Name
from api.http.models import Answer, Body
from api.http.pagination import page_answer, page_of
from api.http.problems import malformed_body
from api.http.query_params import MAX_LIMIT, LongLimit, NextCursor, QueryModel
from api.http.responses import NO_STORE, answer, replay_header
from api.http.route import Operation, Route
from domain.errors import Unknown
from domain.values import Role
from infra.auth import api_keys
from infra.auth.api_keys import MAX_SUBJECTS, REVEALING, subjects_problem
from infra.auth.api_keys import Subjects as KeySubjects
from infra.auth.key_admin import MAX_OVERLAP_S

if TYPE_CHECKING:
    from infra.auth.api_keys import ApiKey


class Subjects(Body):
    creator_ids: Annotated[
        list[CreatorName],
        Field(max_length=MAX_SUBJECTS, description="The creators that the key acts for.", examples=[["ana.creates"]]),
    ] = Field(default=[])
    brand_ids: Annotated[
        list[Id], Field(max_length=MAX_SUBJECTS, description="The brands that the key acts for.", examples=[["acme"]])
    ] = Field(default=[])
    advertiser_ids: Annotated[
        list[Id],
        Field(
            max_length=MAX_SUBJECTS,
            description="The advertiser accounts that the key acts for.",
            examples=[["adv-7001"]],
        ),
    ] = Field(default=[])

    def as_known(self) -> api_keys.Subjects:
        """Return them as keys have them."""
        return api_keys.Subjects(frozenset(self.creator_ids), frozenset(self.brand_ids), frozenset(self.advertiser_ids))


class CreateKey(Body):
    role: Annotated[Role, Field(description="The key's role.", examples=["creator"])]
    name: Annotated[Name | None, Field(description="A name for people.", examples=["The creator's app"])] = None
    subjects: Annotated[
        Subjects | None,
        Field(
            description="The subjects that the key acts for: creators for the role creator, brands and "
            "advertiser accounts for the role brand. The other roles act for everyone.",
            examples=[{"creator_ids": ["ana.creates"]}],
            validate_default=True,
        ),
    ] = None
    expires_at: Annotated[
        Moment | None, Field(description="When the key expires. Default: never.", examples=[LATER])
    ] = None
    may_reveal: Annotated[
        bool,
        Field(
            description="Whether the key can reveal secrets, for the roles creator, operator and admin. Send "
            "false for keys that do not need this. Keys of the other roles cannot: true is refused for them."
        ),
    ] = True

    @field_validator("may_reveal")
    @classmethod
    def _revealing_role(cls, may_reveal: bool, info: ValidationInfo) -> bool:
        role = info.data.get("role")
        if may_reveal and role is not None and role not in REVEALING:
            raise PydanticCustomError(
                "may_reveal", "Keys with this role cannot reveal secrets. Send false, or nothing."
            )
        return may_reveal

    @field_validator("subjects")
    @classmethod
    def _subjects_of_the_role(cls, subjects: Subjects | None, info: ValidationInfo) -> Subjects | None:
        role, given = info.data.get("role"), subjects or Subjects()
        problem = None if role is None else subjects_problem(role, given.as_known())
        if problem is not None:
            raise PydanticCustomError("subjects", "{problem}", {"problem": problem})
        return subjects


class RotateKey(Body):
    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_S,
            description="How long the old key still works, in seconds, at most 30 days.",
            examples=[3600],
        ),
    ]


class SubjectsEntry(Answer):
    creator_ids: list[str]
    brand_ids: list[str]
    advertiser_ids: list[str]


class KeyEntry(Answer):
    key_id: Annotated[UUID, Field(description="The key's id, not the key itself.")]
    ledger: Annotated[str, Field(description="The ledger that the key belongs to.", examples=["main"])]
    role: Annotated[Role, Field(description="The key's role.")]
    name: Annotated[str | None, Field(description="A name for people.")]
    subjects: Annotated[
        SubjectsEntry, Field(description="The creators, brands and advertiser accounts that the key acts for.")
    ]
    may_reveal: Annotated[bool, Field(description="Whether the key can reveal secrets.")]
    created_at: Annotated[answered.Moment, Field(description="When it was created.")]
    expires_at: Annotated[answered.Moment | None, Field(description="When it expires.")]
    revoked_at: Annotated[answered.Moment | None, Field(description="When it was revoked.")]
    kind: Annotated[
        Literal["key", "token"],
        Field(description="`key`, or `token` for an identity of an OpenID Connect issuer."),
    ]
    subject: Annotated[str | None, Field(description="The issuer's name for the identity. Null for a key.")]
    last_used_at: Annotated[answered.Moment | None, Field(description="When it was last used, to the minute.")]
    overlap_ends_at: Annotated[
        answered.Moment | None,
        Field(description="Until when the key before the last rotation also works. Null if it no longer does."),
    ]


class KeyAnswer(KeyEntry):
    key: Annotated[
        str | None,
        Field(description="The key itself, shown only once. Null if the request was repeated.", examples=["slk_…"]),
    ]


class KeysAnswer(Answer):
    keys: Annotated[list[KeyEntry], Field(description="The keys, newest first, including revoked keys.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class KeysQuery(QueryModel):
    limit: LongLimit = MAX_LIMIT
    cursor: NextCursor = None


router = APIRouter(route_class=Route, tags=["Keys"])


@router.post("/v1/keys", status_code=201, response_model=KeyAnswer, operation_id="createKey")
@Operation(
    answer_headers=("Location", "Cache-Control"),
    replays=True,
    example={"role": "creator", "name": "The creator's app", "subjects": {"creator_ids": ["ana.creates"]}},
)
async def create_key(body: CreateKey, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Create an API key in this ledger. Only this response contains the key itself.

    A repeated request with the same `Idempotency-Key` returns `"key": null`. If the first response was lost, rotate the
    key.
    """
    if body.expires_at is not None and body.expires_at <= caller.services.now():
        raise malformed_body("/expires_at", "This time is in the past. The key would never work.")
    idempotency_key = headers.idempotency_key(caller.request)
    key, text, replayed = await caller.services.key_admin.create(
        caller.ledger_id,
        role=body.role,
        name=body.name,
        subjects=KeySubjects() if body.subjects is None else body.subjects.as_known(),
        expires_at=body.expires_at,
        may_reveal=body.may_reveal,
        idempotency_key=idempotency_key,
        request_hash=b"" if idempotency_key is None else caller.request_hash,
        context=caller.access_context,
    )
    answer_headers = NO_STORE | {"Location": f"/v1/keys/{key.key_id}"} | replay_header(replayed)
    return answer(key_content(key) | {"key": text or None}, 201, answer_headers)


@router.get("/v1/keys", response_model=KeysAnswer, operation_id="listKeys")
async def list_keys(
    query: Annotated[KeysQuery, Query()], caller: Annotated[Caller, allow("auditor", "admin")]
) -> Response:
    """List the API keys and token identities of this ledger, newest first, including revoked ones.

    The keys themselves are not in the list: nobody can read them again. `subject`, which is sealed, is shown only to
    administrators.
    """
    before = None if query.cursor is None else UUID(int=decode(query.cursor, "keys", MAX_KEY))
    keys = await caller.services.key_admin.keys(caller.ledger_id, limit=query.limit + 1, before=before)
    page = page_of(keys, query.limit, lambda key: encode(key.key_id.int, "keys"))
    return page_answer(caller, "keys", page, key_content if caller.role == "admin" else _without_subject)


@router.post("/v1/keys/{key_id}/rotation", response_model=KeyAnswer, operation_id="rotateKey")
@Operation(answer_headers=("Cache-Control",), replays=True, example={"overlap_seconds": 3600})
async def rotate_key(key_id: str, body: RotateKey, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Rotate an API key. Only this response contains the new key. Its id and its actor in the log stay the same.

    The current key works until the overlap ends. A key from before an earlier rotation stops working immediately.
    A repeated request with the same `Idempotency-Key` returns `"key": null`.
    """
    idempotency_key = headers.idempotency_key(caller.request)
    try:
        key, text, replayed = await caller.services.key_admin.rotate(
            caller.ledger_id,
            headers.path_uuid(key_id, "key"),
            overlap_s=body.overlap_seconds,
            idempotency_key=idempotency_key,
            request_hash=b"" if idempotency_key is None else caller.request_hash,
            context=caller.access_context,
        )
    except LookupError:
        raise Unknown("key") from None
    answer_headers = NO_STORE | replay_header(replayed)
    return answer(key_content(key) | {"key": text or None}, 200, answer_headers)


@router.delete("/v1/keys/{key_id}", status_code=204, response_class=Response, operation_id="revokeKey")
async def revoke_key(key_id: str, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Revoke an API key or a token identity, immediately and permanently. Repeating it returns the same response."""
    wanted = headers.path_uuid(key_id, "key")
    if not await caller.services.key_admin.revoke(caller.ledger_id, wanted, context=caller.access_context):
        raise Unknown("key")
    return Response(status_code=204)


def key_content(key: ApiKey) -> dict[str, Any]:
    """Return what may be known of a key: everything but its text."""
    return {
        "key_id": key.key_id,
        "ledger": key.ledger_name,
        "role": key.role,
        "name": key.name,
        "subjects": {
            "creator_ids": sorted(key.subjects.creator_ids),
            "brand_ids": sorted(key.subjects.brand_ids),
            "advertiser_ids": sorted(key.subjects.advertiser_ids),
        },
        "may_reveal": key.reveals,
        "kind": key.kind,
        "subject": key.subject,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "overlap_ends_at": key.overlap_ends_at,
    }


def _without_subject(key: ApiKey) -> dict[str, Any]:
    return key_content(key) | {"subject": None}
