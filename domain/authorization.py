"""The authorization question: was this video authorized for this advertiser at this time?

The reason depends only on code, window, revocation, usage rights and redemption. The creator's permission and the
shares are part of the answer, but do not decide it: running ads stay valid when a permission goes off, and codes are
shared in chats that nobody may have recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from domain.advertiser import Advertiser
from domain.code import Code, effective_as_of, fold_code
from domain.creator import Creator
from domain.event_types import EVENT_TYPES
from domain.pasted import creator_name
from domain.recorded import Event, RecordedEvent
from domain.rights import End, effective_end
from domain.values import Window
from domain.video import Video

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

Reason = Literal["authorized", "no_code", "not_redeemed", "not_started", "expired", "revoked", "rights_ended"]

_DECIDING: Final = (
    Code.Generated,
    Code.Extended,
    Code.RightsStated,
    Code.Shared,
    Code.Redeemed,
    Code.Superseded,
    Code.Revoked,
)
# The types of events that decide the answer. All others can be left out of a stream before the question is asked.
BEARING: Final = tuple(
    name
    for name, kind in EVENT_TYPES.items()
    if kind in _DECIDING or issubclass(kind, Creator.Event | Advertiser.Event | Video.Event)
)

Effect = Literal["begins", "changes", "ends"]
# What an event does to an authorization, which is an account's for a code: a redemption begins it, and the end of the
# window or a revocation ends it. Neither a permission that goes off does, nor an erasure, nor another code.
EFFECTS: Final[Mapping[type[Event], Effect]] = {
    Code.Redeemed: "begins",
    Code.Extended: "changes",
    Code.RightsStated: "changes",
    Code.Revoked: "ends",
    Code.Expired: "ends",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and the positions of the events that prove it, in ascending order.

    `shared` is None if the code was shared only with brands, and it was not known whose the account was.
    """

    reason: Reason
    code_id: UUID | None = None
    starts_at: datetime | None = None
    expires_at: datetime | None = None
    rights_until: datetime | None = None
    permission_enabled: bool = False
    shared: bool | None = False
    evidence: tuple[int, ...] = ()
    asked_about: datetime | None = field(default=None, compare=False)
    events: tuple[RecordedEvent, ...] = field(default=(), compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def authorized(self) -> bool:
        """Whether the video was authorized."""
        return self.reason == "authorized"

    @property
    def end(self) -> End | None:
        """When the code could be used no longer, and by what; None without a code."""
        if self.expires_at is None:
            return None
        revoked = (r.effective_at for r in self.events if isinstance(r.event, Code.Revoked))
        return effective_end(self.expires_at, min(revoked, default=None), self.rights_until)

    @property
    def creator_id(self) -> str | None:
        """Whose the code is."""
        return next((r.event.creator_id for r in self.events if isinstance(r.event, Code.Generated)), None)

    @property
    def start_stated(self) -> bool:
        """Whether anybody stated when the window began."""
        return all(r.event.start_stated for r in self.events if isinstance(r.event, Code.Generated))

    @property
    def permission_known(self) -> bool:
        """Whether anything is recorded of the creator's permission at that time."""
        return any(isinstance(r.event, Creator.Event) for r in self.events)

    @property
    def evidence_recorded_at(self) -> datetime | None:
        """When the last of the evidence was recorded."""
        return max((r.recorded_at for r in self.events), default=None)

    @property
    def recorded_late(self) -> bool:
        """Whether any of the evidence was recorded after the moment that was asked about."""
        return any(self.asked_about is not None and r.recorded_at > self.asked_about for r in self.events)

    @property
    def backdated(self) -> bool:
        """Whether any of the evidence took effect, as its caller said, before it was recorded."""
        return any(r.effective_at < r.recorded_at for r in self.events)


class Answer(NamedTuple):
    """The answer for one code of the video, and its rank: when it began, was generated and was recorded."""

    verdict: Verdict
    began: tuple[datetime, datetime, int]
    supersedes: str | None


def verdict(
    codes: Sequence[Sequence[RecordedEvent]],
    permissions: Mapping[UUID, Sequence[RecordedEvent]],
    advertiser_id: str,
    at: datetime,
    advertiser: Sequence[RecordedEvent] = (),
) -> Verdict:
    """Answer from the streams of the video's codes and of their creators.

    Args:
        codes: the streams of all codes of the video, each complete or cut off at the position in question.
        permissions: the streams of their creators by stream id, cut off in the same way.
        advertiser_id: the advertiser account that ran the ad.
        at: the time at which the ad ran.
        advertiser: the stream of that account, which says whose it is; empty if nobody said so.

    Returns:
        The answer for the code that authorizes. If several do, for the code that superseded the others. If none does,
        for the code whose window began last by that time, and of several that began together, the one generated last:
        the codes of a backlog are recorded in any order. If none had begun, for the code that begins first.

    """
    answers = [_of_code(stream, permissions, advertiser_id, at, advertiser) for stream in codes if stream]
    begun = [answer for answer in answers if answer.began[0] <= at]
    candidates = [answer for answer in answers if answer.verdict.authorized] or begun or _first(answers)
    superseded = {answer.supersedes for answer in candidates}
    candidates = [answer for answer in candidates if str(answer.verdict.code_id) not in superseded]
    return max(candidates, key=attrgetter("began")).verdict if candidates else Verdict("no_code")


def creators_of(codes: Sequence[Sequence[RecordedEvent]]) -> list[str]:
    """Return the creators of codes, given by their streams, each creator once, as one of the codes spells them."""
    began = [stream[0].event for stream in codes]
    return sorted({creator_name(e.creator_id): e.creator_id for e in began if isinstance(e, Code.Generated)}.values())


def _first(answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers for the codes that begin first, leaving out revoked ones if there are others."""
    coming = [answer for answer in answers if answer.verdict.reason != "revoked"] or answers
    first = min((answer.began[0] for answer in coming), default=None)
    return [answer for answer in coming if answer.began[0] == first]


def _of_code(
    stream: Sequence[RecordedEvent],
    permissions: Mapping[UUID, Sequence[RecordedEvent]],
    advertiser_id: str,
    at: datetime,
    advertiser: Sequence[RecordedEvent],
) -> Answer:
    kept = effective_as_of(stream, at)
    code, known = fold_code(kept), fold_code(stream)
    shared_by = min(at, code.redemptions.get(advertiser_id, at))
    owner = sorted((r for r in advertiser if r.effective_at <= shared_by), key=_effective)[-1:]
    brand_id = next((r.event.brand_id for r in owner if isinstance(r.event, Advertiser.Named)), None)
    brand_ids = frozenset() if brand_id is None else frozenset({brand_id})
    # Asked about a time before it was generated, its window and rights are what they were then.
    born = max(at, code.generated_at)
    set_then = Code.Extended | Code.RightsStated
    further = [r for r in effective_as_of(stream, born) if r not in kept and isinstance(r.event, set_then)]
    deciding = [recorded for recorded in [*kept, *further] if _decides(recorded, advertiser_id, brand_id)]
    switches = sorted(effective_as_of(permissions.get(stream[0].creator_stream, ()), at), key=_effective)[-1:]
    # Anyone who entered the code may have been known to act for the brand.
    redeemed = [r for r in deciding if isinstance(r.event, Code.Redeemed) and r.effective_at == shared_by]
    named = any(isinstance(r.event, Code.Redeemed) and r.event.shared_with_advertiser for r in redeemed)
    # If nobody stated the start, later events can still show that it was before this time.
    window = Window(known.window.starts_at, known.end_at(born))
    # Whose the account is makes a difference only to what was shared.
    owner = owner if any(shared_at <= shared_by for shared_at in code.shares.values()) else []
    rights_until = known.rights_until(born)
    events = tuple(sorted([*deciding, *switches, *owner], key=attrgetter("position")))
    answer = Verdict(
        reason=_reason(code, window, rights_until, advertiser_id, at),
        code_id=code.id,
        starts_at=window.starts_at,
        expires_at=window.expires_at,
        rights_until=rights_until,
        permission_enabled=any(isinstance(switch.event, Creator.Enabled) for switch in switches),
        shared=named or code.was_shared_with(advertiser_id, brand_ids, by=shared_by),
        evidence=tuple(r.position for r in events),
        asked_about=at,
        events=events,
    )
    return Answer(answer, (window.starts_at, code.generated_at, stream[0].position), code.supersedes)


def _effective(recorded: RecordedEvent) -> tuple[datetime, int]:
    return recorded.effective_at, recorded.position


def _reason(code: Code, window: Window, rights_until: datetime | None, advertiser_id: str, at: datetime) -> Reason:
    if code.revoked_at is not None:
        return "revoked"
    if not window.started_by(at):
        return "not_started"
    if window.ended_by(at):
        return "expired"
    if rights_until is not None and rights_until <= at:
        return "rights_ended"
    return "authorized" if advertiser_id in code.redemptions else "not_redeemed"


def _decides(recorded: RecordedEvent, advertiser_id: str, brand_id: str | None) -> bool:
    """Return whether an event decides the answer for this advertiser; a share does if it may have been meant for it."""
    match recorded.event:
        case Code.Generated() | Code.Extended() | Code.RightsStated() | Code.Revoked():
            return True
        case Code.Redeemed(advertiser_id=redeemer):
            return redeemer == advertiser_id
        case Code.Shared(advertiser_id=named, brand_id=with_brand):
            return named == advertiser_id or with_brand == brand_id or (named is None and brand_id is None)
        case _:
            return False
