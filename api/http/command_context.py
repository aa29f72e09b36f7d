"""How a route carries a command out: who is recorded as its actor, what is checked first, how often it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

from api.http import headers
from api.http.caller import ACTS_FOR_ALL, Caller
from api.http.problems import malformed_body
from domain.code import Ending
from domain.errors import NotAllowed, Refused
from domain.pasted import creator_name
from infra.eventstore.command_handler import CommandMetadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from domain.code import Code
    from domain.commands import A, Decision, Ledger
    from domain.values import When
    from infra.eventstore.command_handler import CommandResult

# Refusals that name a code as what is in the way.
_NAMES_A_CODE: Final = frozenset({"secret_exists", "live_code_exists", "code_superseded"})


class Dated(Protocol):
    """The body of a command."""

    @property
    def effective_at(self) -> datetime | None:
        """When it happened, if its caller said so."""


class Ended(Protocol):
    """The body of an end that is recorded together with what it ends."""

    @property
    def effective_at(self) -> datetime:
        """When it ended."""

    @property
    def reason(self) -> str | None:
        """Why."""


async def handle_command(
    caller: Caller,
    body: Dated,
    subject: str | None,
    decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
    *,
    once: bool = True,
) -> CommandResult[A]:
    """Carry a command out for the caller; `once` is false for what must happen again each time it is asked for."""
    if body.effective_at is not None:
        _refuse_effective_at(caller, "/effective_at", body.effective_at)
    request = caller.request
    key = headers.idempotency_key(request)
    metadata = CommandMetadata(
        caller.key.ledger_id,
        caller.actor(subject),
        *headers.origins(request),
        idempotency_key=key if once else None,
        request_hash=caller.request_hash if key is not None and once else b"",
        effective_at=body.effective_at,
    )
    return await caller.services.handler.handle(metadata, decide)


def ending(caller: Caller, field: str, sent: Ended | None) -> Ending | None:
    """Return the end that a fact is recorded together with.

    Raises:
        NotAllowed: only an operator or an admin can say when something happened.
        Problem: it lies in the future.

    """
    if sent is None:
        return None
    _refuse_effective_at(caller, f"/{field}/effective_at", sent.effective_at)
    return Ending(sent.effective_at, sent.reason)


async def creator_of(caller: Caller, code_id: UUID) -> str | None:
    """Return the name of the creator whom the caller acts for on a code: its only one, or whose code it is."""
    ours = caller.key.subjects.creator_ids
    if caller.role != "creator" or len(ours) == 1:
        return next(iter(ours), None)
    return creator_name((await load_code(caller, code_id)).creator_id)


async def without_others(refusal: Refused, caller: Caller) -> Refused:
    """Return a refusal that names the code in the way only to a caller who may read that code."""
    if refusal.code not in _NAMES_A_CODE or refusal.conflict_id is None or caller.role in ACTS_FOR_ALL:
        return refusal
    try:
        caller.read_code(await load_code(caller, UUID(refusal.conflict_id)))
    except NotAllowed:
        return Refused(refusal.code, refusal.detail)
    return refusal


async def load_code(caller: Caller, code_id: UUID) -> Code:
    """Load a code as it stands in the log."""
    return await (await caller.services.aggregates.repository(caller.ledger_id)).code(code_id)


def _refuse_effective_at(caller: Caller, pointer: str, moment: datetime) -> None:
    if caller.role not in ACTS_FOR_ALL:
        raise NotAllowed("Only keys with the role operator or admin can send effective_at.")
    if moment > caller.services.now():
        raise malformed_body(pointer, "This time is in the future. Only what has happened can be recorded.")
