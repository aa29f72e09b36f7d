"""One function a command: load what the rules look at, decide, and say what is to be appended.

Every function takes the ledger it reads from, what was asked, and when; it returns a `Decision` or raises `Refused`.
Nothing is written here. Whoever carries a decision out appends its events, expected versions and claims in one
transaction, and asks for a new decision where another writer came first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from domain.campaign import Campaign, Share
from domain.code import Code
from domain.creator import Creator
from domain.errors import Refused, StaleVersion, Unknown
from domain.pasted import secret_name
from domain.values import Policy, Sealed, Window

if TYPE_CHECKING:
    from uuid import UUID

A = TypeVar("A", Code, Creator)
# Raises `NotAllowed` where whoever asks may not change a code; called before any rule speaks of it.
Authorize = Callable[[Code], None]


class Codes(Protocol):
    """What the clock's commands read: one code, and whether its video is kept for it."""

    async def code(self, code_id: UUID) -> Code:
        """Load a code; raises `Unknown` where this ledger has none of that id."""

    async def holds_video(self, code: Code) -> bool:
        """Tell whether a code is what its video is kept for."""


class Ledger(Codes, Protocol):
    """What a command may read. Answers come from the log itself, never from a view, for views lag."""

    async def creator(self, creator_id: str) -> Creator | None:
        """Load a creator, or nothing where the permission was never switched on."""

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        """Load the code that has this secret."""

    async def code_on_video(self, video_id: str) -> Code | None:
        """Load the code that was last known to occupy the video."""

    def fingerprint(self, text: str) -> str:
        """Return the keyed hash under which a secret text is known in this ledger."""

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Return the keyed hash under which a note is known, for as long as its creator's key is there."""


class When(NamedTuple):
    """The moment a command arrived, and the moment it says it is true for: usually the same, never a later one."""

    now: datetime
    at: datetime


class Claim(NamedTuple):
    """A name in the ledger that one stream holds at a time: compared and set in the append's own transaction."""

    kind: Literal["creator", "video", "secret"]
    name: str
    expected: UUID | None
    new: UUID | None


@dataclass(slots=True)
class Decision(Generic[A]):
    """What a command wants appended, whole or not at all.

    Attributes:
        aggregate: what the command changed; its pending events are the ones to append, none for a repeat.
        also_read: what the rules read besides; each must still stand at its version when the events go in.
        claims: names taken, kept or freed with the events.
        refusal: raised after the append: the refusal is itself recorded.
        valid_until: the end of the window that the rules relied on: recorded later, the decision would be another.

    """

    aggregate: A
    also_read: list[Code | Creator] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    refusal: Refused | None = None
    valid_until: datetime | None = None


async def set_permission(
    ledger: Ledger, creator_id: str, *, enabled: bool, stream_id: UUID, if_match: int | None = None, when: When
) -> Decision[Creator] | None:
    """Switch a creator's permission; `None` where an unknown account is switched off, which it is already.

    Raises:
        Refused: `creator_erased`, where it would go on again.

    """
    creator = await ledger.creator(creator_id)
    _refuse_stale(if_match, 0 if creator is None else creator.version)
    if creator is None:
        if not enabled:
            return None
        creator = Creator.enable_first(stream_id, creator_id, when.at)
        return Decision(creator, claims=[Claim("creator", creator_id, expected=None, new=stream_id)])
    creator.switch(enabled=enabled, at=when.at)
    return Decision(creator)


async def erase(
    ledger: Ledger, creator_id: str, reason: str, *, if_match: int | None = None, when: When
) -> Decision[Creator]:
    """Record that a creator is to be erased, whose key is then destroyed.

    Raises:
        Unknown: nothing is recorded of the creator.

    """
    creator = await ledger.creator(creator_id)
    if creator is None:
        raise Unknown("creator")
    _refuse_stale(if_match, creator.version)
    creator.erase(reason, at=when.at)
    return Decision(creator)


async def generate(
    ledger: Ledger,
    policy: Policy,
    *,
    code_id: UUID,
    creator_id: str,
    video_id: str,
    terms_version: str | None,
    days: int,
    starts_at: datetime | None,
    secret: Sealed,
    caption_sha256: str | None,
    when: When,
) -> Decision[Code]:
    """Begin a code for a video.

    Raises:
        Refused: `creator_erased`, `permission_disabled`, `terms_not_accepted`, `duration_not_allowed`,
            `secret_exists`, `live_code_exists`, in this order.

    """
    creator = await _permitted(ledger, creator_id)
    if not terms_version:
        raise Refused("terms_not_accepted")
    if days not in policy.allowed_days:
        raise Refused("duration_not_allowed", _allowed(policy))
    begins = starts_at or when.at
    if begins > when.now + policy.longest:
        # Else a window that begins in a hundred years would keep its video until it is revoked.
        raise Refused("duration_not_allowed", f"A window must start within {policy.longest.days} days from now.")
    if await ledger.code_by_secret(secret) is not None:
        raise Refused("secret_exists")
    window = Window(begins, begins + timedelta(days=days))
    also_read: list[Code | Creator] = [creator]
    claims = [Claim("secret", secret_name(secret), expected=None, new=code_id)]
    if not window.ended_by(when.now):  # one that has ended already, recorded late, occupies nothing
        occupant = await _free_video(ledger, video_id, when.now)
        if occupant is not None:
            also_read.append(occupant)
        claims.append(Claim("video", video_id, expected=occupant.id if occupant else None, new=code_id))
    code = Code.generate(
        code_id,
        creator_id=creator_id,
        video_id=video_id,
        terms_version=terms_version,
        window=window,
        secret=secret,
        fingerprint=ledger.fingerprint(secret),
        caption_sha256=caption_sha256,
        at=when.at,
    )
    return Decision(code, also_read, claims)


async def extend(
    ledger: Ledger,
    policy: Policy,
    code_id: UUID,
    *,
    days: int | None,
    expires_at: datetime | None,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Move the window's end: to `days` counted from its start, or to the moment `expires_at`.

    Raises:
        Refused: `creator_erased`, `permission_disabled`, `code_revoked`, `duration_not_allowed`, `code_expired` (only
            where the policy forbids reviving), `live_code_exists`, `window_not_longer`, in this order.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _permitted(ledger, code.creator_id)
    code.refuse_revoked()
    if days is not None:
        if days not in policy.allowed_days:
            raise Refused("duration_not_allowed", _allowed(policy))
        new_end = code.window.starts_at + timedelta(days=days)
    elif expires_at is not None and expires_at <= when.now + policy.longest:
        new_end = expires_at
    else:
        raise Refused("duration_not_allowed", f"A window must end within {policy.longest.days} days from now.")
    if not policy.extend_after_expiry:
        code.refuse_expired(when.now)
    also_read: list[Code | Creator] = [creator]
    occupant = None
    if code.occupies(when.now):
        # Still compared on append: were the window to end in between, another code may have taken the video.
        claims = [Claim("video", code.video_id, expected=code.id, new=code.id)]
    else:
        occupant = await _free_video(ledger, code.video_id, when.now)
        if occupant is not None and occupant.id != code.id:
            also_read.append(occupant)
        claims = [Claim("video", code.video_id, expected=occupant.id if occupant else None, new=code.id)]
    code.extend(new_end, now=when.now, at=when.at)
    return Decision(code, also_read, claims)


async def share(
    ledger: Ledger,
    code_id: UUID,
    share: Share,
    note: Sealed | None,
    *,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Record that the code was handed to a brand; `share` is without the mark of its note.

    Raises:
        Refused: `creator_erased`, `permission_disabled`, `code_revoked`, `code_expired`, in this order.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _permitted(ledger, code.creator_id)
    if note is not None:
        share = replace(share, note_fingerprint=await ledger.note_mark(code.creator_id, note))
    code.share(share, note, at=when.at)
    return Decision(code, [creator], valid_until=code.window.expires_at)


async def redeem(
    ledger: Ledger,
    secret: Sealed,
    advertiser_id: str,
    brand_ids: frozenset[str],
    *,
    if_match: int | None = None,
    when: When,
) -> Decision[Code]:
    """Record that an advertiser entered a code; a known one that cannot be used records the refusal.

    Raises:
        Unknown: no code of this ledger has the secret.

    """
    code = await ledger.code_by_secret(secret)
    if code is None:
        raise Unknown("code")
    _refuse_stale(if_match, code.command_version)
    try:
        code.redeem(advertiser_id, brand_ids, at=when.at)
    except Refused as refusal:
        code.refuse_redemption(advertiser_id, refusal.code, at=when.at)
        return Decision(code, refusal=refusal)
    return Decision(code, valid_until=code.window.expires_at)


async def launch(
    ledger: Ledger,
    code_id: UUID,
    campaign: Campaign,
    *,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Record a campaign on a redeemed code; its refusals are those of `Code.launch`."""
    # No moment: launching compares it with the window itself.
    code = await _matching(ledger, code_id, authorize, if_match, None)
    code.launch(campaign, now=when.now, at=when.at)
    return Decision(code, valid_until=code.window.expires_at)


async def end_campaign(
    ledger: Ledger,
    code_id: UUID,
    campaign_id: str,
    reason: str | None,
    *,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Record that a campaign was stopped."""
    code = await _matching(ledger, code_id, authorize, if_match, when)
    code.end_campaign(campaign_id, reason, at=when.at)
    return Decision(code)


async def revoke(
    ledger: Ledger,
    code_id: UUID,
    reason: str,
    *,
    force: bool,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Take a code back for good, and free its video."""
    code = await _matching(ledger, code_id, authorize, if_match, when)
    code.revoke(reason, force=force, at=when.at)
    return Decision(code, claims=await _freed(ledger, code))


async def reveal(
    ledger: Ledger, code_id: UUID, reason: str, *, if_match: int | None, authorize: Authorize, when: When
) -> Decision[Code]:
    """Record that the secret is shown again.

    Raises:
        Refused: `creator_erased`, where there is nothing left to show.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _not_erased(ledger, code.creator_id)
    code.reveal(reason, at=when.at)
    return Decision(code, [creator])


async def add_note(
    ledger: Ledger,
    code_id: UUID,
    text: Sealed,
    about_position: int | None,
    *,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Record a remark on a code.

    Raises:
        Refused: `creator_erased`, where there is no key to seal it with.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _not_erased(ledger, code.creator_id)
    code.add_note(text, await ledger.note_mark(code.creator_id, text), about_position, at=when.at)
    return Decision(code, [creator])


async def record_due(ledger: Codes, code_id: UUID, *, when: When) -> Decision[Code]:
    """Record what the clock makes due of a code: that it expired, which frees its video, or that its end approaches."""
    code = await ledger.code(code_id)
    if code.expiry_due(when.now):
        code.expire(now=when.now)
        return Decision(code, claims=await _freed(ledger, code))
    code.remind(now=when.now)
    return Decision(code, valid_until=code.window.expires_at)


async def _matching(
    ledger: Ledger, code_id: UUID, authorize: Authorize, if_match: int | None, when: When | None
) -> Code:
    """Load a code that the caller may change and has seen as it stands, and that was there when this happened."""
    code = await ledger.code(code_id)
    authorize(code)
    _refuse_stale(if_match, code.command_version)
    if when is not None and when.at < when.now:  # a clock that steps back is no statement about the past
        code.refuse_before_it_began(when.at)
    return code


def _refuse_stale(if_match: int | None, version: int) -> None:
    """Refuse a command that was decided on another version than the one that stands."""
    if if_match is not None and if_match != version:
        raise StaleVersion(version)


async def _permitted(ledger: Ledger, creator_id: str) -> Creator:
    """Load a creator whose permission is on."""
    creator = await ledger.creator(creator_id)
    if creator is not None:
        creator.refuse_erased()
    if creator is None or not creator.enabled:
        raise Refused("permission_disabled")
    return creator


async def _not_erased(ledger: Ledger, creator_id: str) -> Creator:
    """Load the creator of a code whose key is still there; what is sealed with it then rests on that."""
    creator = await ledger.creator(creator_id)
    if creator is None:
        raise Unknown("creator")  # a code begins with its creator's permission, so there is none without
    creator.refuse_erased()
    return creator


async def _free_video(ledger: Ledger, video_id: str, now: datetime) -> Code | None:
    """Return who last held a video that is free now: one that ended or was revoked, if there is any."""
    occupant = await ledger.code_on_video(video_id)
    if occupant is not None and occupant.occupies(now):
        raise Refused("live_code_exists", conflict_id=str(occupant.id))
    return occupant


async def _freed(ledger: Codes, code: Code) -> list[Claim]:
    """Free the video that a code holds; where another holds it by now, there is nothing to free."""
    if not await ledger.holds_video(code):
        return []
    return [Claim("video", code.video_id, expected=code.id, new=None)]


def _allowed(policy: Policy) -> str:
    lengths = ", ".join(str(days) for days in policy.allowed_days)
    return f"The window's length in days must be one of: {lengths}."
