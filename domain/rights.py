"""Usage rights of a code: what a contract allows beside the code, and until when.

A code lets an account run a video as an ad. Whether it may is often agreed elsewhere, for a shorter time, for some
platforms, with or without edits. TikTok knows nothing of that, so rights change no state of a code and refuse no fact.
They end what may be done: a campaign is to stop at the earliest of its own end, the end of its code, and the end of the
rights.

Each statement is valid from its effective time until the next one takes effect, in whichever order they are recorded.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from domain.values import FOREVER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What ends the use of a code: its own end or revocation, or the rights.
EndsBy = Literal["code", "rights"]


class UsageRights(NamedTuple):
    """Usage rights, as somebody stated them.

    Attributes:
        until: when they end (excluded); None if no end was agreed.
        platforms: where the video may be used, in alphabetical order; None if nothing was stated.
        edits_allowed: whether the video may be edited; None if nothing was stated.
        contract_fingerprint: the keyed hash of the reference to the contract, whose text is sealed.

    """

    until: datetime | None = None
    platforms: tuple[str, ...] | None = None
    edits_allowed: bool | None = None
    contract_fingerprint: str | None = None


class Statement(NamedTuple):
    """A statement of usage rights: when it took effect, and what it says."""

    at: datetime
    rights: UsageRights


class End(NamedTuple):
    """The earliest end of several, and what it is the end of."""

    at: datetime
    by: EndsBy


def effective_end(expires_at: datetime, revoked_at: datetime | None, rights_until: datetime | None) -> End:
    """Return when a code can be used no longer, and by what; of the same time, by the code."""
    code_end = expires_at if revoked_at is None else min(expires_at, revoked_at)
    if rights_until is not None and rights_until < code_end:
        return End(rights_until, "rights")
    return End(code_end, "code")


def stated_by(statements: Sequence[Statement], moment: datetime) -> Statement | None:
    """Return the statement that was valid at a time; None if there was none."""
    known = [statement for statement in statements if statement.at <= moment]
    return known[-1] if known else None


def in_effect(statements: Mapping[int, Statement]) -> list[Statement]:
    """Return statements, given by version, in the order in which they took effect."""
    return [statement for _, statement in sorted(statements.items(), key=_effective)]


def ended_after(statements: Sequence[Statement], moment: datetime) -> datetime | None:
    """Return the first time, not before a moment, at which rights had ended; None if there is none.

    Args:
        statements: in the order in which they took effect.
        moment: the launch of a campaign, which that end stops for good.

    """
    for i, (at, rights) in enumerate(statements):
        following = statements[i + 1].at if i + 1 < len(statements) else FOREVER
        if rights.until is not None and (ended := max(at, rights.until, moment)) < following:
            return ended
    return None


def _effective(item: tuple[int, Statement]) -> tuple[Any, ...]:
    version, statement = item
    return statement.at, version
