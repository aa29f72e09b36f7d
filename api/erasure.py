"""The routes of erasure: asking for it, and reading its progress."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from api.event_content import ActorEntry, event_content, names_of
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.command_context import handle_command
from api.http.fields import Reason
from api.http.models import Answer, Command
from api.http.problems import Problem
from api.http.responses import answer, command_headers, version_headers
from api.http.route import Operation, Route
from domain import commands
from domain.commands import Decision, Ledger
from domain.creator import Creator
from domain.pasted import creator_name
from domain.values import When
from infra.jobs.erasure import Erasure, Erasures

router = APIRouter(route_class=Route, tags=["Erasure"])


class EraseCreator(Command):
    reason: Annotated[
        Reason,
        Field(
            description="The reason. It is kept permanently and unencrypted, so do not name a person.",
            examples=["Requested on 3 March"],
        ),
    ]


class ErasureAnswer(Answer):
    creator_id: answered.CreatorId
    state: Annotated[
        Literal["recorded", "carrying_out", "carried_out"],
        Field(
            description=(
                "`recorded`: nothing of the creator is unsealed any more, and the key will be destroyed soon. "
                "`carrying_out`: the key is removed, but the write-ahead log and backups may have copies that can be "
                "opened. `carried_out`: the key is destroyed, and copies of it cannot be opened."
            )
        ),
    ]
    reason: Annotated[str, Field(description="The reason that was given.", examples=["Requested on 3 March"])]
    actor: Annotated[ActorEntry, Field(description="Who requested it.")]
    recorded_at: Annotated[answered.Moment, Field(description="When the ledger recorded it.")]
    effective_at: Annotated[answered.Moment, Field(description="The effective time of the request.")]
    carried_out_at: Annotated[
        answered.Moment | None, Field(description="When the key was destroyed, and copies of it became useless.")
    ]
    event_id: Annotated[UUID, Field(description="The id of the event that records it.")]
    position: Annotated[answered.Position, Field(description="The event's position in the ledger.")]


@router.post("/v1/creators/{creator_id}/erasure", response_model=ErasureAnswer, operation_id="eraseCreator")
@Operation(request_headers=("If-Match",), refusals=(404,))
async def erase_creator(creator_id: str, body: EraseCreator, caller: Annotated[Caller, allow("admin")]) -> Response:
    """Erase a creator: permanently destroy the key that seals the secrets and notes of their codes.

    All events stay, so past decisions can still be read and proven. The permission is permanently off. API keys
    that act only for this creator are revoked and lose their names. Nothing that must be sealed can be recorded any
    more. Repeating the request returns the first erasure.
    """
    creator_id = headers.path_creator(creator_id)
    if_match = headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Creator]:
        return await commands.erase(ledger, creator_id, body.reason, if_match=if_match, when=when)

    result = await handle_command(caller, body, creator_name(creator_id), decide)
    # It is recorded, and holds. A worker destroys the key: the API's own login must not be able to.
    found = await _erasures(caller).wait(caller.ledger_id, creator_id)
    assert found is not None  # noqa: S101 - it was recorded just now, or before
    version = 0 if result.aggregate is None else result.aggregate.version
    return answer(await _content(found, caller), 200, command_headers(result, version))


@router.get("/v1/creators/{creator_id}/erasure", response_model=ErasureAnswer, operation_id="readErasure")
@Operation(answer_headers=("ETag", "Ledger-Position"), refusals=(404,))
async def read_erasure(creator_id: str, caller: Annotated[Caller, allow("operator", "auditor", "admin")]) -> Response:
    """Read who erased a creator, why and when, and whether the key is destroyed."""
    creator_id = headers.path_creator(creator_id)
    found = await _erasures(caller).of(caller.ledger_id, creator_id)
    if found is None:
        raise Problem("erasure_unknown")
    return answer(
        await _content(found, caller), 200, version_headers(found.recorded.stream_version, found.recorded.position)
    )


def _erasures(caller: Caller) -> Erasures:
    services = caller.services
    return Erasures(services.database, services.aggregates, services.key_admin)


async def _content(found: Erasure, caller: Caller) -> dict[str, Any]:
    event = event_content(found.recorded, await names_of(caller, [found.recorded]))
    return {
        "creator_id": found.creator_id,
        "state": found.state,
        "reason": found.reason,
        **{name: event[name] for name in ("actor", "recorded_at", "effective_at")},
        "carried_out_at": found.carried_out_at,
        **{name: event[name] for name in ("event_id", "position")},
    }
