"""The words in which tests tell a story: given a named state, when a command is carried out, then what is recorded.

    story = given.redeemed()
    story.when(given.revoke())
    assert story.told() == "CodeGenerated Shared Redeemed Revoked"

The ledger here keeps everything in memory and never waits, so a story needs no event loop and no database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

from domain import commands
from domain.campaign import Campaign, Share
from domain.code import Code, Ending
from domain.commands import Decision, Ledger
from domain.errors import Refused
from domain.recorded import RecordedEvent
from domain.rights import UsageRights
from domain.values import Actor, Channel, Policy, Sealed, When
from tests.memory_ledger import Decided, MemoryLedger

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
Command = Callable[[Ledger, When], Awaitable[Decided]]

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY: Final = Policy()
OPERATOR: Final = Actor(key_id="key-1", role="operator")

CREATOR: Final = "creator-1"
VIDEO: Final = "video-1"
BRAND: Final = "brand-1"
ADVERTISER: Final = "advertiser-1"
TERMS: Final = "terms-2026"
SECRET: Final = Sealed("#first/secret+of-a-code=A1B2")
CODE: Final = UUID(int=0xC0DE_1)
# A second code, of another secret.
OTHER_CODE: Final = UUID(int=0xC0DE_2)
OTHER_SECRET: Final = Sealed("#other/secret+of-a-code=C3D4")
# It outlives the window of 30 days that `generated` has.
CAMPAIGN: Final = Campaign(
    "campaign-1", ADVERTISER, "500.00", "USD", starts_at=NOW + timedelta(days=1), ends_at=NOW + timedelta(days=90)
)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        """Move on, by what `timedelta` takes."""
        self.now += timedelta(**by)


class Story:
    """What happens to one ledger while a clock runs, told command by command."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.clock = Clock()

    def decide(self, command: Command, *, effective_at: datetime | None = None) -> Decided:
        """Decide a command, without carrying the decision out."""
        return done(command(self.ledger, When(self.clock(), effective_at or self.clock())))

    def when(
        self, command: Command, *, effective_at: datetime | None = None, actor: Actor = OPERATOR
    ) -> list[RecordedEvent]:
        """Carry a command out and return what it recorded; raises what refused it, after recording that."""
        decision = self.decide(command, effective_at=effective_at)
        recorded = self.ledger.append(decision, now=self.clock(), actor=actor)
        if decision is not None and decision.refusal is not None:
            raise decision.refusal
        return recorded

    def outcome(self, command: Command, *, effective_at: datetime | None = None) -> str:
        """Carry a command out and tell what came of it: the types it recorded, then the code of its refusal."""
        before = len(self.ledger.events)
        refusal = []
        try:
            self.when(command, effective_at=effective_at)
        except Refused as refused:
            refusal = [refused.code]
        return " ".join([*types(self.ledger.events[before:]), *refusal]) or "nothing"

    def later(self, **by: float) -> Story:
        """Let time pass, by what `timedelta` takes."""
        self.clock.forward(**by)
        return self

    def code(self, code_id: UUID = CODE) -> Code:
        """Return a code as it stands."""
        return done(self.ledger.code(code_id))

    def stream(self, code_id: UUID = CODE) -> list[RecordedEvent]:
        """Return what is recorded of a code."""
        return self.ledger.streams[code_id]

    def told(self, code_id: UUID = CODE) -> str:
        """Return the types of all that is recorded of a code."""
        return " ".join(types(self.stream(code_id)))


def done(answer: Awaitable[T]) -> T:
    """Return the answer of something that never waits, without an event loop."""
    try:
        answer.__await__().send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("a ledger in memory has nothing to wait for")


def types(recorded: Sequence[RecordedEvent]) -> list[str]:
    """Return the wire names of events."""
    return [r.type for r in recorded]


def body(recorded: RecordedEvent) -> dict[str, Any]:
    """Return what an event says, without its place in the stream, its effective time and what is sealed."""
    beside = {"originator_id", "originator_version", "originator_topic", "timestamp"}
    said = {field.name: getattr(recorded.event, field.name) for field in fields(recorded.event)}
    return {name: value for name, value in said.items() if name not in beside and value is not None}


# The commands, with the values that most stories share.


def anyone(_: Code) -> None:
    """Let everyone change every code: who may is the API's to say."""


def permission(*, enabled: bool = True, creator_id: str = CREATOR) -> Command:
    stream_id = UUID(bytes=hashlib.sha256(creator_id.encode()).digest()[:16])
    return lambda ledger, when: commands.set_permission(
        ledger, creator_id, enabled=enabled, stream_id=stream_id, when=when
    )


def advertiser(advertiser_id: str = ADVERTISER, brand_id: str = BRAND) -> Command:
    stream_id = UUID(bytes=hashlib.sha256(advertiser_id.encode()).digest()[:16])
    return lambda ledger, when: commands.name_advertiser(
        ledger, advertiser_id, brand_id, stream_id=stream_id, when=when
    )


def bind(creator_id: str | None = CREATOR, *, video_id: str = VIDEO) -> Command:
    stream_id = UUID(bytes=hashlib.sha256(f"video {video_id}".encode()).digest()[:16])
    return lambda ledger, when: commands.bind_video(ledger, video_id, creator_id, stream_id=stream_id, when=when)


def erase(reason: str = "asked for", *, creator_id: str = CREATOR) -> Command:
    return lambda ledger, when: commands.erase(ledger, creator_id, reason, when=when)


def generate(
    code_id: UUID = CODE,
    *,
    creator_id: str = CREATOR,
    video_id: str = VIDEO,
    terms_version: str | None = TERMS,
    days: int = 30,
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
    secret: Sealed | None = SECRET,
    secret_given: bool = False,
    caption_sha256: str | None = None,
    rights: UsageRights | None = None,
    revoked: Ending | None = None,
    supersedes: UUID | None = None,
    if_match: int | None = None,
    policy: Policy = POLICY,
) -> Command:
    return lambda ledger, when: commands.generate(
        ledger,
        policy,
        code_id=code_id,
        creator_id=creator_id,
        video_id=video_id,
        terms_version=terms_version,
        days=days,
        starts_at=starts_at,
        expires_at=expires_at,
        secret=secret,
        secret_given=secret_given,
        caption_sha256=caption_sha256,
        rights=rights,
        revoked=revoked,
        supersedes=supersedes,
        if_match=if_match,
        when=when,
    )


def attach(secret: Sealed = SECRET, code_id: UUID = CODE, *, if_match: int | None = None) -> Command:
    return lambda ledger, when: commands.attach_secret(
        ledger, code_id, secret, if_match=if_match, authorize=anyone, when=when
    )


def extend(
    code_id: UUID = CODE,
    *,
    days: int | None = None,
    add_days: int | None = None,
    expires_at: datetime | None = None,
    if_match: int | None = None,
    policy: Policy = POLICY,
) -> Command:
    return lambda ledger, when: commands.extend(
        ledger,
        policy,
        code_id,
        days=days,
        add_days=add_days,
        expires_at=expires_at,
        if_match=if_match,
        authorize=anyone,
        when=when,
    )


def share(
    code_id: UUID = CODE,
    *,
    brand_id: str = BRAND,
    channel: Channel = "dm",
    advertiser_id: str | None = ADVERTISER,
    note: str | None = None,
    if_match: int | None = None,
) -> Command:
    def decide(ledger: Ledger, when: When) -> Awaitable[Decision[Code]]:
        text = Sealed(note) if note else None
        shared = Share(brand_id, channel, advertiser_id, None)
        return commands.share(ledger, code_id, shared, text, if_match=if_match, authorize=anyone, when=when)

    return decide


def redeem(
    secret: Sealed | None = SECRET,
    *,
    code_id: UUID | None = None,
    advertiser_id: str = ADVERTISER,
    brand_ids: frozenset[str] = frozenset(),
    expected_video_id: str | None = None,
) -> Command:
    return lambda ledger, when: commands.redeem(
        ledger,
        secret,
        advertiser_id,
        brand_ids,
        code_id=code_id,
        expected_video_id=expected_video_id,
        when=when,
    )


def launch(
    campaign: Campaign = CAMPAIGN,
    code_id: UUID = CODE,
    *,
    ended: Ending | None = None,
    if_match: int | None = None,
) -> Command:
    return lambda ledger, when: commands.launch(
        ledger, code_id, campaign, ended=ended, if_match=if_match, authorize=anyone, when=when
    )


def end(
    campaign_id: str = CAMPAIGN.campaign_id,
    code_id: UUID = CODE,
    *,
    reason: str | None = None,
    if_match: int | None = None,
) -> Command:
    return lambda ledger, when: commands.end_campaign(
        ledger, code_id, campaign_id, reason, if_match=if_match, authorize=anyone, when=when
    )


def revoke(
    code_id: UUID = CODE, *, reason: str = "wrong brand", force: bool = False, if_match: int | None = None
) -> Command:
    return lambda ledger, when: commands.revoke(
        ledger, code_id, reason, force=force, if_match=if_match, authorize=anyone, when=when
    )


def reveal(code_id: UUID = CODE, *, reason: str = "lost it", if_match: int | None = None) -> Command:
    return lambda ledger, when: commands.reveal(ledger, code_id, reason, if_match=if_match, authorize=anyone, when=when)


def note(
    code_id: UUID = CODE,
    *,
    text: str = "meant for another brand",
    about_position: int | None = None,
    if_match: int | None = None,
) -> Command:
    return lambda ledger, when: commands.add_note(
        ledger, code_id, Sealed(text), about_position, if_match=if_match, authorize=anyone, when=when
    )


def rights(
    until: datetime | None = None,
    code_id: UUID = CODE,
    *,
    platforms: tuple[str, ...] | None = None,
    edits_allowed: bool | None = None,
    contract: str | None = None,
    if_match: int | None = None,
) -> Command:
    return lambda ledger, when: commands.state_rights(
        ledger,
        code_id,
        UsageRights(until, platforms, edits_allowed),
        None if contract is None else Sealed(contract),
        if_match=if_match,
        authorize=anyone,
        when=when,
    )


def record_due(code_id: UUID = CODE) -> Command:
    return lambda ledger, when: commands.record_due(ledger, code_id, when=when)


# The named states, each reached by the commands alone; `CODE` is the code that they speak of.


def unknown() -> Story:
    """Nothing is recorded yet."""
    return Story()


def permitted() -> Story:
    """The creator's permission is on, and there is no code."""
    return after(unknown(), permission())


def generated(**facts: Any) -> Story:
    """A code whose window began now and lasts 30 days, or what `generate` is told."""
    return after(permitted(), generate(**facts))


def not_started() -> Story:
    """A code whose window begins in five days."""
    return generated(starts_at=NOW + timedelta(days=5))


def without_secret() -> Story:
    """A code that TikTok generated, whose secret nobody has brought."""
    return generated(secret=None, expires_at=NOW + timedelta(days=30))


def shared() -> Story:
    """The code was handed to a brand, for one advertiser account."""
    return after(generated(), share())


def redeemed() -> Story:
    """That advertiser entered the code."""
    return after(shared(), redeem())


def running() -> Story:
    """A campaign runs on the code, and would outlive it."""
    return after(redeemed(), launch())


def campaign_ended() -> Story:
    """The brand ended its campaign."""
    return after(running(), end())


def approaching() -> Story:
    """The window of a redeemed code ends in ten days, and nobody has recorded that it approaches."""
    return redeemed().later(days=20)


def window_over() -> Story:
    """The window ended a day ago, and nobody has recorded it."""
    return redeemed().later(days=31)


def cut_off() -> Story:
    """The window ended a day ago under a campaign, and nobody has recorded it."""
    return running().later(days=31)


def expired() -> Story:
    """The window ended a day ago under a campaign, and both ends are recorded."""
    return after(cut_off(), record_due())


def revived() -> Story:
    """The code was extended after its expiry, until 30 days from now."""
    return after(expired(), extend(expires_at=NOW + timedelta(days=61)))


def revoked() -> Story:
    """The creator took a redeemed code back."""
    return after(redeemed(), revoke())


def permission_off() -> Story:
    """The creator switched the permission off while the code was redeemed."""
    return after(redeemed(), permission(enabled=False))


def bound() -> Story:
    """The video of a code was bound to its creator."""
    return after(generated(), bind())


def bound_elsewhere() -> Story:
    """The video of a code was bound to another creator."""
    return after(generated(), bind("creator-2"))


def erased() -> Story:
    """The creator was erased while the code was redeemed."""
    return after(redeemed(), erase())


def superseded() -> Story:
    """A second code took a redeemed one's place."""
    return after(redeemed(), generate(OTHER_CODE, secret=OTHER_SECRET, supersedes=CODE))


def after(story: Story, *told: Command) -> Story:
    """Carry commands out, and return the story."""
    for command in told:
        story.when(command)
    return story
