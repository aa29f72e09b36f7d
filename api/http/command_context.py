"""How a route carries a command out: who is recorded as its actor, what is checked first, how often it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from api.http import headers
from api.http.caller import ACTS_FOR_ALL, Caller
from api.http.problems import malformed_body
from domain.errors import NotAllowed, Refused
from domain.values import Policy
from infra.eventstore.command_handler import CommandMetadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from api.http.models import Command
    from domain.code import Code
    from domain.commands import A, Decision, Ledger, When
    from domain.creator import Creator
    from domain.values import Sealed
    from infra.eventstore.command_handler import CommandResult


class Guarded:
    """A ledger as one caller may change it: the code or creator that a command is about is checked before any rule."""

    def __init__(
        self,
        ledger: Ledger,
        code: Callable[[Code], None] | None = None,
        creator: Callable[[Creator | None], None] | None = None,
    ) -> None:
        """Take the ledger, and what raises where a code or a creator is not for the caller."""
        self._ledger = ledger
        self._check_code = code
        self._check_creator = creator

    async def code(self, code_id: UUID) -> Code:
        """Load a code that the caller may change."""
        return self._checked(await self._ledger.code(code_id))

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        """Load a code that the caller may change."""
        code = await self._ledger.code_by_secret(secret)
        return None if code is None else self._checked(code)

    async def code_on_video(self, video_id: str) -> Code | None:
        """Load the code that occupies a video, whosever it is."""
        return await self._ledger.code_on_video(video_id)

    async def holds_video(self, code: Code) -> bool:
        """Tell whether a code is what its video is kept for."""
        return await self._ledger.holds_video(code)

    async def creator(self, creator_id: str) -> Creator | None:
        """Load a creator."""
        creator = await self._ledger.creator(creator_id)
        if self._check_creator is not None:
            self._check_creator(creator)
        return creator

    def fingerprint(self, text: str) -> str:
        """Return the keyed hash of a secret text."""
        return self._ledger.fingerprint(text)

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Return the keyed hash of a note."""
        return await self._ledger.note_mark(creator_id, text)

    def _checked(self, code: Code) -> Code:
        if self._check_code is not None:
            self._check_code(code)
        return code


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
        request_hash=caller.request_hash() if key is not None and once else b"",
        effective_at=body.effective_at,
    )
    try:
        return await caller.services.handler.handle(request, decide)
    except Refused as refusal:
        raise await _without_others(refusal, caller) from None


async def _without_others(refusal: Refused, caller: Caller) -> Refused:
    """Return a refusal that does not tell a creator which code of another creator is in the way."""
    if refusal.code != "live_code_exists" or refusal.conflict_id is None or caller.role in ACTS_FOR_ALL:
        return refusal
    occupant = await load_code(caller, UUID(refusal.conflict_id))
    if occupant.creator_id in caller.key.subjects.creator_ids:
        return refusal
    return Refused(refusal.code, refusal.detail)


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


def owned(ledger: Ledger, caller: Caller) -> Ledger:
    """Return the ledger with the codes alone that the caller's creators own."""
    return (
        ledger if caller.role in ACTS_FOR_ALL else Guarded(ledger, lambda code: caller.act_for_creator(code.creator_id))
    )
