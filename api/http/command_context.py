"""How a route carries a command out: who is recorded as its actor, what is checked first, how often it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from api.http import headers
from api.http.caller import ACTS_FOR_ALL, Caller
from api.http.problems import malformed_body
from domain.errors import NotAllowed
from domain.values import Policy
from infra.eventstore.command_handler import CommandMetadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from api.http.models import Command
    from domain.code import Code
    from domain.commands import A, Decision, Ledger
    from domain.values import When
    from infra.eventstore.command_handler import CommandResult


async def handle_command(
    caller: Caller,
    body: Command,
    subject: str | None,
    decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
    *,
    once: bool = True,
) -> CommandResult[A]:
    """Carry a command out for the caller; `once` is false for what must happen again each time it is asked for."""
    if body.effective_at is not None:
        if caller.role not in ACTS_FOR_ALL:
            raise NotAllowed("Only keys with the role operator or admin can send effective_at.")
        if body.effective_at > caller.services.now():
            raise malformed_body("/effective_at", "This time is in the future. Only what has happened can be recorded.")
    key = headers.idempotency_key(caller.request)
    request = CommandMetadata(
        ledger_id=caller.ledger_id,
        actor=caller.actor(subject),
        correlation_id=headers.correlation_id(caller.request),
        traceparent=headers.traceparent(caller.request),
        idempotency_key=key if once else None,
        request_hash=caller.request_hash if key is not None and once else b"",
        effective_at=body.effective_at,
    )
    return await caller.services.handler.handle(request, decide)


async def creator_of(caller: Caller, code_id: UUID) -> str | None:
    """Return the creator whom the caller acts for on a code: its only one, or whose code it is."""
    ours = caller.key.subjects.creator_ids
    if caller.role != "creator" or len(ours) == 1:
        return next(iter(ours), None)
    return (await load_code(caller, code_id)).creator_id


async def load_code(caller: Caller, code_id: UUID) -> Code:
    """Load a code as it stands in the log."""
    return await (await caller.services.aggregates.repository(caller.ledger_id)).code(code_id)


def policy_of(caller: Caller) -> Policy:
    """Return what the settings decide where TikTok's sources disagree."""
    settings = caller.services.settings
    return Policy(settings.allowed_days, settings.extend_after_expiry)
