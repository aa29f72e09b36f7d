"""One function a command: load what the rules look at, decide, and say what is to be appended.

Every function takes the ledger it reads from, what was asked, and when; it returns a `Decision` or raises `Refused`.
Nothing is written here. The caller appends a decision's events, expected versions and claims in one
transaction, and asks for a new decision where another writer came first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from domain.advertiser import Advertiser
from domain.campaign import Campaign, Share
from domain.code import Code, Ending
from domain.creator import Creator
from domain.errors import Malformed, Refused, StaleVersion, Unknown
from domain.pasted import creator_name, secret_name
from domain.periods import Extension, overlap
from domain.rights import UsageRights
from domain.sheet_import import SheetImport
from domain.values import Policy, Sealed, When, Window
from domain.video import Video

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.recorded import Event

A = TypeVar("A", Code, Creator, Advertiser, Video, SheetImport)
# Raises `NotAllowed` where the caller may not change a code; called before any rule speaks of it.
Authorize = Callable[[Code], None]

# A code that TikTok generated is recorded with whatever window it has, up to this.
LONGEST_RECORDED: Final = timedelta(days=3_653)
_TOO_MANY_DAYS: Final = 100_000
_AT_LEAST: Final = timedelta(microseconds=1)
_ENDS_EARLIER: Final = (
    "An extension that took effect later is already recorded with an earlier end. It would shorten the window. If its "
    "end is wrong, first record it again at its own effective_at with the right end, then send this one again."
)


class Codes(Protocol):
    """What the clock's commands read: one code."""

    async def code(self, code_id: UUID) -> Code:
        """Load a code; raises `Unknown` where this ledger has none of that id."""


class Advertisers(Protocol):
    """What naming an advertiser account reads."""

    async def advertiser(self, advertiser_id: str) -> Advertiser | None:
        """Load an advertiser account, or nothing where nobody said whose it is."""


class Ledger(Codes, Advertisers, Protocol):
    """What a command may read. Answers come from the log itself, never from a view, for views lag."""

    async def creator(self, creator_id: str) -> Creator | None:
        """Load a creator, however their id is spelled, or nothing where the permission was never switched."""

    async def code_by_secret(self, secret: Sealed) -> Code | None:
        """Load the code that has this secret."""

    async def of_video(self, video_id: str) -> OfVideo:
        """Load every code that the video ever had, in the order of their claims, and the video if it was ever bound."""

    def fingerprint(self, text: str) -> str:
        """Return the keyed hash under which a secret text is known in this ledger."""

    async def note_mark(self, creator_id: str, text: str) -> str:
        """Return the keyed hash under which a note is known, for as long as its creator's key is there."""


class Claim(NamedTuple):
    """A name in the ledger that one stream holds at a time: compared and set in the append's own transaction."""

    kind: Literal["creator", "video", "secret", "advertiser", "binding"]
    name: str
    expected: UUID | None
    new: UUID | None


def video_claim(video_id: str, number: int) -> str:
    """Return the name of a video's claim of some number, counted from 1. Each code takes one, and so does the binding.

    The claims of a video are never freed: to take or compare the next one is to have seen every code of the video, and
    whose it is.
    """
    return video_id if number == 1 else f"{video_id} {number}"  # no id has a blank


class OfVideo(NamedTuple):
    """What holds the claims of a video.

    Attributes:
        codes: every code that it ever had, in the order of their claims.
        video: the video itself, if an operator ever bound it.

    """

    codes: list[Code]
    video: Video | None = None

    @property
    def next_claim(self) -> int:
        """The number of the first claim that nothing holds."""
        return len(self.codes) + (1 if self.video is None else 2)

    def besides(self, *code_ids: UUID | None) -> list[Code]:
        """Return the codes but for some."""
        return [code for code in self.codes if code.id not in code_ids]

    def bound(self) -> list[Video]:
        """Return the video, if it was ever bound: what rests on its binding reads it."""
        return [] if self.video is None else [self.video]


@dataclass(slots=True)
class Decision(Generic[A]):
    """What a command wants appended, whole or not at all.

    Attributes:
        aggregate: what the command changed; its pending events are the ones to append, none for a repeat.
        also_changed: what it changed besides; those events go in before the aggregate's.
        also_read: what the rules read besides; each must still be at its version when the events go in.
        claims: names taken, kept or freed with the events.
        refusal: raised after the append: the refusal is itself recorded.
        valid_until: the end of the window that the rules relied on: recorded later, the decision would be another.

    """

    aggregate: A
    also_read: Sequence[Code | Creator | Video] = ()
    claims: Sequence[Claim] = ()
    refusal: Refused | None = None
    valid_until: datetime | None = None
    also_changed: Sequence[Code] = ()

    def cause_of(self, event: Event) -> tuple[UUID, int] | None:
        """Return the stream and the version of the event that one of these events follows from, if there is one.

        It may be before or after that event, or have been recorded long ago.
        """
        if not isinstance(event, Code.Event):
            return None
        return event.follows_from(self.aggregate)  # type: ignore[arg-type] # it is of a code


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
        if not enabled and not when.late:
            return None
        creator = Creator.begin(stream_id, creator_id, enabled=enabled, at=when.at)
        return Decision(creator, claims=[Claim("creator", creator_name(creator_id), expected=None, new=stream_id)])
    creator.switch(enabled=enabled, when=when)
    return Decision(creator)


async def name_advertiser(
    ledger: Advertisers,
    advertiser_id: str,
    brand_id: str,
    *,
    stream_id: UUID,
    if_match: int | None = None,
    when: When,
) -> Decision[Advertiser]:
    """State which brand an advertiser account is of, and since when.

    Raises:
        StaleVersion: somebody has said something else of it.

    """
    advertiser = await ledger.advertiser(advertiser_id)
    _refuse_stale(if_match, 0 if advertiser is None else advertiser.version)
    if advertiser is None:
        advertiser = Advertiser.begin(stream_id, advertiser_id, brand_id, at=when.at)
        return Decision(advertiser, claims=[Claim("advertiser", advertiser_id, expected=None, new=stream_id)])
    advertiser.name(brand_id, when=when)
    return Decision(advertiser)


async def bind_video(
    ledger: Ledger,
    video_id: str,
    creator_id: str | None,
    *,
    stream_id: UUID,
    if_match: int | None = None,
    when: When,
) -> Decision[Video] | None:
    """State whose video it is, or lift that; `None` where a video that was never bound is released.

    Raises:
        StaleVersion: somebody has bound or released it.
        Refused: `creator_erased`.

    """
    known = await ledger.of_video(video_id)
    _refuse_stale(if_match, 0 if known.video is None else known.video.version)
    if creator_id is None:
        if known.video is None:
            return None
        known.video.release(at=when.at)
        return Decision(known.video)
    creator = await ledger.creator(creator_id)
    also_read: list[Code | Creator | Video] = []
    if creator is not None:
        creator.refuse_erased()
        creator_id = creator.creator_id  # as it was first spelled
        also_read.append(creator)
    if known.video is None:
        claims = [
            Claim("binding", video_id, expected=None, new=stream_id),
            Claim("video", video_claim(video_id, known.next_claim), expected=None, new=stream_id),
        ]
        return Decision(Video.begin(stream_id, video_id, creator_id, at=when.at), also_read, claims)
    known.video.bind(creator_id, at=when.at)
    return Decision(known.video, also_read)


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
    days: int = 30,
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
    secret: Sealed | None,
    secret_given: bool = False,
    caption_sha256: str | None = None,
    rights: UsageRights | None = None,
    contract_reference: Sealed | None = None,
    revoked: Ending | None = None,
    supersedes: UUID | None = None,
    if_match: int | None = None,
    authorize: Authorize = lambda _superseded: None,
    when: When,
) -> Decision[Code]:
    """Begin a code for a video: issue one, or record one that TikTok generated, whose window is what it is.

    The window lasts `days` from `starts_at`, which is when the code was generated unless somebody says otherwise. Where
    the secret is given, `expires_at` may name its end instead; without a start, nobody stated when it began. A code
    that TikTok generated can be recorded without its secret (None), which may be attached later.

    With usage rights, these are stated in the same append, as of the same moment.

    A code that was revoked before another one took its video is recorded with its revocation where that other one is on
    record already: by itself it would keep the other's time, and it could not be revoked before it is there.

    A code that takes another one's place names it in `supersedes`, and `if_match` is that one's version: it may begin
    while the other occupies the video, which then takes no new account, share or extension.

    Raises:
        Malformed: the window ends before it begins, or before it is said to be generated.
        Unknown: the code to be superseded.
        StaleVersion: it has changed.
        Refused: `creator_unknown`, `creator_erased`, `permission_disabled`, `terms_not_accepted`,
            `duration_not_allowed`, `secret_exists`, `other_creator`, `other_video`, `code_revoked`, `code_expired`,
            `code_superseded`, `video_of_other_creator`, `live_code_exists`, in this order.

    """
    old = None if supersedes is None else await _matching(ledger, supersedes, authorize, if_match, when)
    creator = await ledger.creator(creator_id)
    if creator is None:
        raise Refused("creator_unknown")
    _refuse_forbidden(creator, when)
    if not terms_version:
        raise Refused("terms_not_accepted")
    recorded = secret_given or secret is None
    window = _window(policy, days, starts_at, expires_at, when, was_recorded=recorded)
    existing = None if secret is None else await ledger.code_by_secret(secret)
    if existing is not None:
        raise Refused("secret_exists", conflict_id=str(existing.id))
    if old is not None:
        _refuse_another(old, creator, video_id)
        old.supersede(code_id, max(when.at, window.starts_at), when=when)
    known = await ledger.of_video(video_id)
    codes = known.besides(supersedes)
    if known.video is not None:
        known.video.refuse_another_creator(creator_id)
    code = Code.generate(
        code_id,
        creator_id=creator.creator_id,  # as it was first spelled
        video_id=video_id,
        terms_version=terms_version,
        window=window,
        start_stated=starts_at is not None or expires_at is None,
        secret=secret,
        secret_given=secret_given,
        fingerprint=None if secret is None else ledger.fingerprint(secret),
        caption_sha256=caption_sha256,
        supersedes=supersedes,
        at=when.at,
    )
    if rights is not None:
        rights = await _marked(ledger, code.creator_id, rights, contract_reference)
        code.state_rights(rights, contract_reference, when=when)
    if revoked is not None:
        revoked_when = When(when.now, revoked.at)
        code.refuse_before_it_began(revoked_when)
        code.revoke(revoked.reason or "", force=False, when=revoked_when)
    if codes:
        _refuse_occupied(code, code.occupation(), codes)
    claims = [
        *_claimed_secret(secret, code_id),
        Claim("video", video_claim(video_id, known.next_claim), expected=None, new=code_id),
    ]
    also_read: list[Code | Creator | Video] = [creator, *codes, *known.bound()]
    if old is None:
        return Decision(code, also_read, claims)
    return Decision(code, also_read, claims, valid_until=old.window.expires_at, also_changed=[old])


async def attach_secret(
    ledger: Ledger, code_id: UUID, secret: Sealed, *, if_match: int | None, authorize: Authorize, when: When
) -> Decision[Code]:
    """Record the secret of a code that was recorded without it, once. The same secret again records nothing.

    Raises:
        Refused: `creator_erased`, where there is no key to seal it with; `secret_known`, `secret_exists`, in this
            order.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _not_erased(ledger, code.creator_id)
    existing = await ledger.code_by_secret(secret)
    if existing is not None and existing.id == code.id:
        return Decision(code)
    code.refuse_known_secret()
    if existing is not None:
        raise Refused("secret_exists", conflict_id=str(existing.id))
    code.attach_secret(secret, ledger.fingerprint(secret), at=when.at)
    return Decision(code, [creator], _claimed_secret(secret, code.id))


async def extend(
    ledger: Ledger,
    policy: Policy,
    code_id: UUID,
    *,
    days: int | None = None,
    add_days: int | None = None,
    expires_at: datetime | None = None,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Move the window's end: to `days` from its start, `add_days` from its end at that time, or to `expires_at`.

    Raises:
        Refused: `creator_erased`, `permission_disabled`, `code_revoked`, `code_superseded`, `start_unknown`,
            `later_extension`, `duration_not_allowed`, `code_expired` (only where the policy forbids reviving),
            `video_of_other_creator`, `live_code_exists`, `window_not_longer`, in this order.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _permitted(ledger, code, when)
    code.refuse_revoked(when)
    code.refuse_superseded(when)
    new_end = _new_end(policy, code, days, add_days, expires_at, when)
    if not policy.extend_after_expiry:
        code.refuse_expired(when)
    known = await ledger.of_video(code.video_id)
    others = known.besides(code.id)
    if known.video is not None:
        known.video.refuse_another_creator(code.creator_id)
    # An end that is no longer one is refused as that, unless another code has the very moment.
    revived = Extension(when.at, max(new_end, when.at + _AT_LEAST))
    _refuse_occupied(code, code.occupation(revived), others)
    code.extend(new_end, when=when)
    return Decision(code, [creator, *others, *known.bound()], [_no_further_code(code.video_id, known)])


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
        Refused: `creator_erased`, `permission_disabled`, `code_revoked`, `code_expired`, `code_superseded`, in this
            order.

    """
    code = await _matching(ledger, code_id, authorize, if_match, None)
    if code.start_stated:
        code.refuse_before_it_began(when)
    creator = await _permitted(ledger, code, when)
    if note is not None:
        share = replace(share, note_fingerprint=await ledger.note_mark(code.creator_id, note))
    others, claims = await _before_its_start(ledger, code, when)
    code.share(share, note, when=when)
    return Decision(code, [creator, *others], claims, valid_until=code.window.expires_at)


async def redeem(
    ledger: Ledger,
    secret: Sealed | None,
    advertiser_id: str,
    brand_ids: frozenset[str],
    *,
    code_id: UUID | None = None,
    expected_video_id: str | None = None,
    if_match: int | None = None,
    when: When,
) -> Decision[Code]:
    """Record that an advertiser entered a code; a known one that cannot be used records the refusal.

    The code is named by its secret, or by its id where the secret is not known to the caller. The caller may say which
    video it is meant for; a code of another one is refused.

    Raises:
        Unknown: no code of this ledger has the secret, or the id.

    """
    code = await (_named(ledger, code_id) if secret is None else ledger.code_by_secret(secret))
    if code is None:
        raise Unknown("code")
    _refuse_stale(if_match, code.command_version)
    try:
        code.refuse_other_video(expected_video_id)
        others, claims = await _before_its_start(ledger, code, when)
        code.redeem(advertiser_id, brand_ids, when=when)
    except Refused as refusal:
        code.refuse_redemption(advertiser_id, refusal.code, when=when)
        return Decision(code, refusal=refusal)
    return Decision(code, [*others], claims, valid_until=code.window.expires_at)


async def _named(ledger: Ledger, code_id: UUID | None) -> Code | None:
    return None if code_id is None else await ledger.code(code_id)


async def launch(
    ledger: Ledger,
    code_id: UUID,
    campaign: Campaign,
    *,
    ended: Ending | None = None,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """Record a campaign on a redeemed code, perhaps with its end; its refusals are those of `Code.launch`."""
    # No moment: launching compares it with the window itself.
    code = await _matching(ledger, code_id, authorize, if_match, None)
    code.launch(campaign, ended, when=when)
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
    code.end_campaign(campaign_id, reason, when=when)
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
    """Take a code back for good, which frees its video from then on."""
    code = await _matching(ledger, code_id, authorize, if_match, when)
    code.revoke(reason, force=force, when=when)
    return Decision(code)


async def reveal(
    ledger: Ledger, code_id: UUID, reason: str, *, if_match: int | None, authorize: Authorize, when: When
) -> Decision[Code]:
    """Record that the secret is shown again.

    Raises:
        Refused: `creator_erased`, where there is nothing left to show; then `secret_unknown`.

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


async def state_rights(
    ledger: Ledger,
    code_id: UUID,
    rights: UsageRights,
    contract_reference: Sealed | None,
    *,
    if_match: int | None,
    authorize: Authorize,
    when: When,
) -> Decision[Code]:
    """State the usage rights of a code; `rights` are without the mark of the contract's reference.

    Raises:
        Refused: `creator_erased`, where there is no key to seal the reference with.

    """
    code = await _matching(ledger, code_id, authorize, if_match, when)
    creator = await _not_erased(ledger, code.creator_id)
    code.state_rights(await _marked(ledger, code.creator_id, rights, contract_reference), contract_reference, when=when)
    return Decision(code, [creator])


async def _marked(
    ledger: Ledger, creator_id: str, rights: UsageRights, contract_reference: Sealed | None
) -> UsageRights:
    """Return usage rights with the mark by which the reference to their contract is known."""
    if contract_reference is None:
        return rights
    return rights._replace(contract_fingerprint=await ledger.note_mark(creator_id, contract_reference))


async def record_due(ledger: Codes, code_id: UUID, *, when: When) -> Decision[Code]:
    """Record what the clock makes due of a code: that it expired, or that its end approaches."""
    code = await ledger.code(code_id)
    if code.expiry_due(when.now):
        code.expire(now=when.now)
        return Decision(code)
    code.remind(now=when.now)
    return Decision(code, valid_until=code.window.expires_at)


async def _matching(
    ledger: Ledger, code_id: UUID, authorize: Authorize, if_match: int | None, when: When | None
) -> Code:
    """Load a code that the caller may change and has seen as it is now, and that was there when this happened."""
    code = await ledger.code(code_id)
    authorize(code)
    _refuse_stale(if_match, code.command_version)
    if when is not None:
        code.refuse_before_it_began(when)
    return code


def _refuse_stale(if_match: int | None, version: int) -> None:
    """Refuse a command that was decided on another version than the present one."""
    if if_match is not None and if_match != version:
        raise StaleVersion(version)


async def _permitted(ledger: Ledger, code: Code, when: When) -> Creator:
    """Load the creator of a code, whose permission was on."""
    creator = await ledger.creator(code.creator_id)
    if creator is None:
        raise Refused("permission_disabled")
    _refuse_forbidden(creator, when)
    return creator


def _refuse_forbidden(creator: Creator, when: When) -> None:
    """Raise `creator_erased`, or `permission_disabled` where the permission was off."""
    creator.refuse_erased()
    if not creator.enabled_by(when.horizon):
        raise Refused("permission_disabled")


async def _not_erased(ledger: Ledger, creator_id: str) -> Creator:
    """Load the creator of a code whose key is still there; what is sealed with it then rests on that."""
    creator = await ledger.creator(creator_id)
    if creator is None:
        raise Unknown("creator")  # a code begins with its creator's permission, so there is none without
    creator.refuse_erased()
    return creator


def _window(
    policy: Policy,
    days: int,
    starts_at: datetime | None,
    expires_at: datetime | None,
    when: When,
    *,
    was_recorded: bool,
) -> Window:
    """Return a new code's window, if it is of a length that is allowed."""
    begins = starts_at or when.at
    if not was_recorded:
        if days not in policy.allowed_days:
            raise Refused("duration_not_allowed", _allowed(policy))
        if begins > when.now + policy.longest:
            # Else a window that begins in a hundred years would keep its video until it is revoked.
            raise Refused("duration_not_allowed", f"A window must start within {policy.longest.days} days from now.")
        return Window(begins, begins + timedelta(days=days))
    if expires_at is not None and expires_at <= max(begins, when.at):
        raise Malformed("/expires_at", "A code must end after it begins, and after it was generated.")
    ends = expires_at or begins + _bounded(days)
    if not begins < ends <= begins + LONGEST_RECORDED or ends > when.now + LONGEST_RECORDED:
        raise Refused(
            "duration_not_allowed",
            "A code that TikTok generated can last at most ten years, and must end within ten years.",
        )
    return Window(begins, ends)


def _new_end(
    policy: Policy,
    code: Code,
    days: int | None,
    add_days: int | None,
    expires_at: datetime | None,
    when: When,
) -> datetime:
    """Return what an extension makes the window's end, if that is allowed."""
    if days is not None and not code.start_stated:
        raise Refused("start_unknown")
    if expires_at is None and when.late and code.extended_after(when.at):
        raise Refused("later_extension")
    if expires_at is not None and code.ends_earlier_after(when.at, expires_at):
        raise Refused("later_extension", _ENDS_EARLIER)
    longest = LONGEST_RECORDED if code.was_recorded else policy.longest
    if days is not None:
        if not code.was_recorded and days not in policy.allowed_days:
            raise Refused("duration_not_allowed", _allowed(policy))
        new_end = code.window.starts_at + _bounded(days)
        if not code.was_recorded:
            return new_end
    elif add_days is not None:
        new_end = code.end_at(when.horizon) + _bounded(add_days)
    else:
        assert expires_at is not None  # noqa: S101 - a caller says exactly one of the three
        new_end = expires_at
    if new_end > when.now + longest:
        raise Refused("duration_not_allowed", f"A window must end within {longest.days} days from now.")
    return new_end


def _bounded(days: int) -> timedelta:
    """Return a number of days, as many as a time can be moved by: more are refused just the same."""
    return timedelta(days=max(-_TOO_MANY_DAYS, min(days, _TOO_MANY_DAYS)))


def _refuse_another(old: Code, creator: Creator, video_id: str) -> None:
    """Raise `other_creator` or `other_video` where a code that is to be superseded is not of the same two."""
    if old.creator_id != creator.creator_id:
        raise Refused("other_creator")
    if old.video_id != video_id:
        raise Refused("other_video", conflict_id=old.video_id)


def _refuse_occupied(code: Code, occupation: Sequence[Window], codes: Sequence[Code]) -> None:
    """Raise `live_code_exists` where a code of the video has a part of the time, save one that replaced the other."""
    for other in codes:
        replaced = str(other.id) == code.supersedes or str(code.id) == other.supersedes
        if other.id != code.id and not replaced and overlap(occupation, other.occupation()):
            raise Refused("live_code_exists", conflict_id=str(other.id))


def _claimed_secret(secret: Sealed | None, code_id: UUID) -> list[Claim]:
    """Return the claim by which a code is found by its secret, if it has one."""
    return [] if secret is None else [Claim("secret", secret_name(secret), expected=None, new=code_id)]


def _no_further_code(video_id: str, known: OfVideo) -> Claim:
    """Return the claim that compares that a video has no codes but these, and takes nothing."""
    return Claim("video", video_claim(video_id, known.next_claim), expected=None, new=None)


async def _before_its_start(ledger: Ledger, code: Code, when: When) -> tuple[list[Code], list[Claim]]:
    """Let a fact move the start of a code whose start nobody stated, but never into another code's time.

    Returns:
        What it rests on: the other codes of the video, and that there are no more. Nothing, where no start is moved.

    Raises:
        Refused: `code_not_started`, where another code has the time.

    """
    if code.start_stated or not when.late or when.at >= code.window.starts_at:
        return [], []
    known = await ledger.of_video(code.video_id)
    others = known.besides(code.id)
    try:
        _refuse_occupied(code, [Window(when.at, code.window.starts_at)], others)
    except Refused:
        raise Refused("code_not_started") from None
    return others, [_no_further_code(code.video_id, known)]


def _allowed(policy: Policy) -> str:
    lengths = ", ".join(str(days) for days in policy.allowed_days)
    return f"The window's length in days must be one of: {lengths}."
