"""The question the product exists for: was this video authorized for this advertiser at this moment?

The reason depends on code, window, revocation and redemption alone. Whether the creator's permission was on and
whether the code had been shared stand beside it: running ads stay valid when a permission goes off, and sharing happens
in chats that nobody may have recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Literal, cast

from domain.code import Code, effective_as_of, fold_code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from domain.recorded import RecordedEvent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

Reason = Literal["authorized", "no_code", "not_redeemed", "not_started", "expired", "revoked"]

_OF_CODES: Final = (Code.Generated, Code.Extended, Code.Shared, Code.Redeemed, Code.Revoked, Code.Expired)
# The types of events that bear on the answer. A stream may be relieved of all others before it is asked.
BEARING: Final = tuple(
    name for name, kind in EVENT_TYPES.items() if kind in _OF_CODES or issubclass(kind, Creator.Event)
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and the positions of the events that it rests on, in ascending order."""

    reason: Reason
    code_id: UUID | None = None
    starts_at: datetime | None = None
    expires_at: datetime | None = None
    permission_enabled: bool = False
    shared: bool = False
    evidence: tuple[int, ...] = ()

    @property
    def authorized(self) -> bool:
        """Whether the video was authorized."""
        return self.reason == "authorized"


def verdict(
    codes: Sequence[Sequence[RecordedEvent]],
    permissions: Mapping[UUID, Sequence[RecordedEvent]],
    advertiser_id: str,
    at: datetime,
) -> Verdict:
    """Answer from the streams of the video's codes and of their creators, as far as the asker lets them be known.

    Args:
        codes: the streams of all codes of the video, each whole or cut off at the position asked for.
        permissions: the streams of their creators by stream id, cut off likewise.
        advertiser_id: the advertiser account that ran the ad.
        at: the moment it ran.

    Returns:
        The code that authorizes where there is one, else what holds for the latest code: whose window began last, and
        of several that began together the one generated last. Codes of a backlog are recorded in any order.

    """
    answers = [(_beginning(stream), _of_code(stream, permissions, advertiser_id, at)) for stream in codes if stream]
    candidates = [answer for answer in answers if answer[1].authorized] or answers
    return max(candidates, key=itemgetter(0))[1] if candidates else Verdict("no_code")


def _beginning(stream: Sequence[RecordedEvent]) -> tuple[datetime, int]:
    """Return when a code's window began, and its place among those that began together."""
    return cast("Code.Generated", stream[0].event).starts_at, stream[0].position


def _of_code(
    stream: Sequence[RecordedEvent],
    permissions: Mapping[UUID, Sequence[RecordedEvent]],
    advertiser_id: str,
    at: datetime,
) -> Verdict:
    kept = effective_as_of(stream, at)
    code = fold_code(kept)
    deciding = [recorded for recorded in kept if _decides(recorded, advertiser_id)]
    switches = effective_as_of(permissions.get(stream[0].creator_stream, ()), at)[-1:]
    named = code.shared_with(advertiser_id) or any(
        isinstance(r.event, Code.Redeemed) and r.event.shared_with_advertiser for r in deciding
    )
    return Verdict(
        reason=_reason(code, advertiser_id, at),
        code_id=code.id,
        starts_at=code.window.starts_at,
        expires_at=code.window.expires_at,
        permission_enabled=any(isinstance(switch.event, Creator.Enabled) for switch in switches),
        shared=named,
        evidence=tuple(sorted(r.position for r in [*deciding, *switches])),
    )


def _reason(code: Code, advertiser_id: str, at: datetime) -> Reason:
    if code.revoked_at is not None:
        return "revoked"
    if not code.window.started_by(at):
        return "not_started"
    if code.window.ended_by(at):
        return "expired"
    return "authorized" if advertiser_id in code.redemptions else "not_redeemed"


def _decides(recorded: RecordedEvent, advertiser_id: str) -> bool:
    """Tell whether an event bears on the answer for this advertiser."""
    match recorded.event:
        case Code.Generated() | Code.Extended() | Code.Revoked() | Code.Expired():
            return True
        case Code.Redeemed(advertiser_id=redeemer) | Code.Shared(advertiser_id=redeemer):
            return redeemer == advertiser_id
        case _:
            return False
