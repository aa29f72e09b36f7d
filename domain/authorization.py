"""The question the product exists for: was this video authorized for this advertiser at this moment?

The reason depends on code, window, revocation and redemption alone. Whether the creator's permission was on and
whether the code had been shared stand beside it: running ads stay valid when a permission goes off, and sharing happens
in chats that nobody may have recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from domain.code import Code, effective_as_of, fold_code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from domain.recorded import RecordedEvent
from domain.values import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

Reason = Literal["authorized", "no_code", "not_redeemed", "not_started", "expired", "revoked"]

_OF_CODES: Final = (Code.Generated, Code.Extended, Code.Shared, Code.Redeemed, Code.Superseded, Code.Revoked)
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


class Answer(NamedTuple):
    """What one code of the video answers, and what it is ranked by: when it began, was generated, was recorded."""

    verdict: Verdict
    began: tuple[datetime, datetime, int]
    supersedes: str | None


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
        The code that authorizes where there is one, of several the one that superseded the others, else what holds for
        the latest code: whose window began last, and
        of several that began together the one generated last. Codes of a backlog are recorded in any order.

    """
    answers = [_of_code(stream, permissions, advertiser_id, at) for stream in codes if stream]
    candidates = [answer for answer in answers if answer.verdict.authorized] or answers
    superseded = {answer.supersedes for answer in candidates}
    candidates = [answer for answer in candidates if str(answer.verdict.code_id) not in superseded]
    return max(candidates, key=attrgetter("began")).verdict if candidates else Verdict("no_code")


def _of_code(
    stream: Sequence[RecordedEvent],
    permissions: Mapping[UUID, Sequence[RecordedEvent]],
    advertiser_id: str,
    at: datetime,
) -> Answer:
    kept = effective_as_of(stream, at)
    code, known = fold_code(kept), fold_code(stream)
    deciding = [recorded for recorded in kept if _decides(recorded, advertiser_id)]
    switches = sorted(effective_as_of(permissions.get(stream[0].creator_stream, ()), at), key=_effective)[-1:]
    named = code.shared_with(advertiser_id) or any(
        isinstance(r.event, Code.Redeemed) and r.event.shared_with_advertiser for r in deciding
    )
    # Where nobody stated the start, what is known of later moments may still say that it lay before this one.
    window = Window(known.window.starts_at, code.window.expires_at)
    answer = Verdict(
        reason=_reason(code, window, advertiser_id, at),
        code_id=code.id,
        starts_at=window.starts_at,
        expires_at=window.expires_at,
        permission_enabled=any(isinstance(switch.event, Creator.Enabled) for switch in switches),
        shared=named,
        evidence=tuple(sorted(r.position for r in [*deciding, *switches])),
    )
    return Answer(answer, (window.starts_at, code.generated_at, stream[0].position), code.supersedes)


def _effective(recorded: RecordedEvent) -> tuple[datetime, int]:
    return recorded.effective_at, recorded.position


def _reason(code: Code, window: Window, advertiser_id: str, at: datetime) -> Reason:
    if code.revoked_at is not None:
        return "revoked"
    if not window.started_by(at):
        return "not_started"
    if window.ended_by(at):
        return "expired"
    return "authorized" if advertiser_id in code.redemptions else "not_redeemed"


def _decides(recorded: RecordedEvent, advertiser_id: str) -> bool:
    """Tell whether an event bears on the answer for this advertiser."""
    match recorded.event:
        case Code.Generated() | Code.Extended() | Code.Revoked():
            return True
        case Code.Redeemed(advertiser_id=redeemer) | Code.Shared(advertiser_id=redeemer):
            return redeemer == advertiser_id
        case _:
            return False
