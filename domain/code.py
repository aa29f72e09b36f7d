"""The code aggregate: one authorization code, for one video, in one window of time.

    CodeGenerated ──Shared──▶ ──Redeemed──▶ ──CampaignLaunched──▶ ──CampaignEnded──▶ … Revoked (final)
          └──────────── Extended, again and again ────────────┘           └ Expired (until extended)
          └ ExpiryApproaching, at a few thresholds before each end

Expiry is true by the clock first and an event second: every command compares the moment with the window, whether or
not `Expired` is recorded yet. Commands guard and trigger; events only assign, for they run again on every replay, and
a rule that tightens later must never make an old stream unloadable.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from eventsourcing.domain import Aggregate

from domain.campaign import Campaign, Share
from domain.errors import Refused, Unknown
from domain.reminders import Reminder, reminders
from domain.values import BRAND_SIDE, CREATOR_SIDE, Channel, Sealed, State, Window, masked, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent

# The same refusal of the same advertiser is recorded once in this time; what comes sooner is only counted.
REFUSAL_REPEAT_AFTER = timedelta(hours=1)


class Code(Aggregate):
    """One authorization code. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Code"

    class Event(Aggregate.Event):
        """What happened to the code."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Generated(Event, Aggregate.Created):
        """The creator accepted the terms and got a code; the video's own Ad authorization switch went on with it."""

        TOPIC = "CodeGenerated"

        RECORDED_BY = CREATOR_SIDE
        creator_id: str
        video_id: str
        terms_version: str
        terms_accepted_at: datetime
        starts_at: datetime
        expires_at: datetime
        masked: str
        fingerprint: str
        secret: Sealed | None = None
        caption_sha256: str | None = None

        def apply(self, aggregate: Code) -> None:
            aggregate.creator_id = self.creator_id
            aggregate.video_id = self.video_id
            aggregate.terms_version = self.terms_version
            aggregate.masked = self.masked
            aggregate.fingerprint = self.fingerprint
            aggregate.generated_at = self.timestamp
            aggregate.window = Window(self.starts_at, self.expires_at)
            aggregate.window_set_at = self.timestamp
            aggregate.ends = {self.originator_version: (self.starts_at, self.expires_at)}
            aggregate.shares = {}
            aggregate.redemptions = {}
            aggregate.redeemed_as_shared = frozenset()
            aggregate.campaigns = {}
            aggregate.refusals = {}
            aggregate.notes = frozenset()
            aggregate.caption_sha256 = self.caption_sha256
            aggregate.creative_sha256 = None
            aggregate.revoked_at = None
            aggregate.expiry_recorded = None
            aggregate.reminded = None
            aggregate.command_version = self.originator_version

    Created = Generated  # the library would else add an event of that name, with no wire name of its own

    class Changed(Event):
        """An event that moves the version which `If-Match` speaks of."""

        TOPIC = "CodeChanged"

        def apply(self, aggregate: Code) -> None:
            aggregate.command_version = self.originator_version

    class Extended(Changed):
        """The owner moved the end of the window; recorded late, it undoes an end that came after it took effect."""

        TOPIC = "Extended"

        RECORDED_BY = CREATOR_SIDE
        old_expires_at: datetime
        expires_at: datetime

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.window = Window(aggregate.window.starts_at, self.expires_at)
            aggregate.window_set_at = self.timestamp
            aggregate.ends = {**aggregate.ends, self.originator_version: (self.timestamp, self.expires_at)}
            aggregate.campaigns = {name: c.extended(self.timestamp) for name, c in aggregate.campaigns.items()}

    class Shared(Changed):
        """The creator handed the code to a brand."""

        TOPIC = "Shared"

        RECORDED_BY = CREATOR_SIDE
        brand_id: str
        channel: Channel
        advertiser_id: str | None = None
        note_fingerprint: str | None = None
        note: Sealed | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            share = Share(self.brand_id, self.channel, self.advertiser_id, self.note_fingerprint)
            aggregate.shares = {**aggregate.shares, share: self.timestamp}

    class Redeemed(Changed):
        """An advertiser account entered the code."""

        TOPIC = "Redeemed"

        RECORDED_BY = BRAND_SIDE
        advertiser_id: str
        shared_with_advertiser: bool

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.redemptions = {**aggregate.redemptions, self.advertiser_id: self.timestamp}
            if self.shared_with_advertiser:
                aggregate.redeemed_as_shared = aggregate.redeemed_as_shared | {self.advertiser_id}

    class RedemptionRefused(Event):
        """An advertiser entered the code when it could not be used; no outsider can make the owner's command stale."""

        TOPIC = "RedemptionRefused"

        RECORDED_BY = BRAND_SIDE
        advertiser_id: str
        reason: str

        def apply(self, aggregate: Code) -> None:
            aggregate.refusals = {**aggregate.refusals, (self.advertiser_id, self.reason): self.timestamp}

    class CampaignLaunched(Changed):
        """A brand launched an ad on the code; from now until it ends, caption and creative are locked."""

        TOPIC = "CampaignLaunched"

        RECORDED_BY = BRAND_SIDE
        campaign_id: str
        advertiser_id: str
        budget: dict[str, str]
        starts_at: datetime
        ends_at: datetime
        name: str | None = None
        targeting: Any = None
        caption_sha256: str | None = None
        creative_sha256: str | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            campaign = Campaign(
                campaign_id=self.campaign_id,
                advertiser_id=self.advertiser_id,
                amount=self.budget["amount"],
                currency=self.budget["currency"],
                starts_at=self.starts_at,
                ends_at=self.ends_at,
                name=self.name,
                targeting=self.targeting,
                caption_sha256=self.caption_sha256,
                creative_sha256=self.creative_sha256,
                launched_at=self.timestamp,
            )
            aggregate.campaigns = {**aggregate.campaigns, self.campaign_id: campaign}
            aggregate.caption_sha256 = self.caption_sha256 or aggregate.caption_sha256
            aggregate.creative_sha256 = self.creative_sha256 or aggregate.creative_sha256

    class CampaignEnded(Changed):
        """A campaign stopped before its own end: by the brand, or because the code expired or was revoked."""

        TOPIC = "CampaignEnded"

        RECORDED_BY = (*BRAND_SIDE, "creator", "clock")  # a revocation and the end of a window end campaigns, too
        campaign_id: str
        advertiser_id: str
        cause: str
        reason: str | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            campaign = aggregate.campaigns.get(self.campaign_id)
            if campaign is not None:  # a read "as it was true then" may leave the launch out
                ended = replace(campaign, ended_at=self.timestamp, ended_by=self.cause)
                aggregate.campaigns = {**aggregate.campaigns, self.campaign_id: ended}

    class Revealed(Event):
        """Somebody was shown the secret again, and said why."""

        TOPIC = "CodeRevealed"

        RECORDED_BY = CREATOR_SIDE
        reason: str

    class NoteAdded(Event):
        """Somebody added a remark, perhaps about an earlier position: how a log that nobody edits is corrected."""

        TOPIC = "NoteAdded"

        RECORDED_BY = CREATOR_SIDE
        note_fingerprint: str
        about_position: int | None = None
        text: Sealed | None = None

        def apply(self, aggregate: Code) -> None:
            aggregate.notes = aggregate.notes | {(self.note_fingerprint, self.about_position)}

    class Revoked(Changed):
        """The creator took the code back; the video's own Ad authorization switch went off with it."""

        TOPIC = "Revoked"

        RECORDED_BY = CREATOR_SIDE
        reason: str
        forced: bool = False

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.revoked_at = self.timestamp

    class Expired(Changed):
        """The window ended; recorded by the clock, effective at the window's end. An extended code expires again."""

        TOPIC = "Expired"

        RECORDED_BY = (*CREATOR_SIDE, "clock")  # a late extension records the expiry that has passed since
        expires_at: datetime

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.expiry_recorded = self.expires_at

    class ExpiryApproaching(Event):
        """The end came within 30, 14, 7 or 1 days, after it was set; if several were crossed unseen, the last alone."""

        TOPIC = "ExpiryApproaching"

        RECORDED_BY = ("clock",)
        expires_at: datetime
        days_left: int

        def apply(self, aggregate: Code) -> None:
            aggregate.reminded = (self.expires_at, self.days_left)

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        video_id: str
        terms_version: str
        masked: str
        fingerprint: str
        generated_at: datetime
        window: Window
        window_set_at: datetime
        ends: dict[int, tuple[datetime, datetime]]  # by version: since when, and the end that was set then
        shares: dict[Share, datetime]
        redemptions: dict[str, datetime]
        redeemed_as_shared: frozenset[str]
        campaigns: dict[str, Campaign]
        refusals: dict[tuple[str, str], datetime]
        notes: frozenset[tuple[str, int | None]]
        caption_sha256: str | None
        creative_sha256: str | None
        revoked_at: datetime | None
        expiry_recorded: datetime | None
        reminded: tuple[datetime, int] | None
        command_version: int

    # ── commands: guards in order of precedence, then the event; the same again records nothing ──

    @classmethod
    def generate(
        cls,
        code_id: UUID,
        *,
        creator_id: str,
        video_id: str,
        terms_version: str,
        window: Window,
        secret: Sealed,
        fingerprint: str,
        caption_sha256: str | None,
        at: datetime,
    ) -> Self:
        """Begin a code; the rules that look beyond this one code are `commands.generate`'s."""
        return cls._create(
            cls.Generated,
            id=code_id,
            timestamp=at,
            creator_id=creator_id,
            video_id=video_id,
            terms_version=terms_version,
            terms_accepted_at=at,
            starts_at=window.starts_at,
            expires_at=window.expires_at,
            masked=masked(secret),
            fingerprint=fingerprint,
            secret=secret,
            caption_sha256=caption_sha256,
        )

    def extend(self, new_end: datetime, *, now: datetime, at: datetime) -> None:
        """Move the window's end to a later moment; an expiry that nobody recorded yet is recorded before it.

        Raises:
            Refused: `window_not_longer`, where the new end does not lie after the old one and after now.

        """
        if new_end <= self.window.expires_at or new_end <= now:
            raise Refused("window_not_longer")
        self.expire(now=at)
        self.trigger_event(Code.Extended, timestamp=at, old_expires_at=self.window.expires_at, expires_at=new_end)

    def share(self, share: Share, note: Sealed | None, *, at: datetime) -> None:
        """Record that the code was handed to a brand.

        Raises:
            Refused: `code_revoked`, `code_expired`.

        """
        self.refuse_revoked()
        self.refuse_expired(at)
        if share not in self.shares:
            self.trigger_event(
                Code.Shared,
                timestamp=at,
                brand_id=share.brand_id,
                channel=share.channel,
                advertiser_id=share.advertiser_id,
                note_fingerprint=share.note_fingerprint,
                note=note,
            )

    def redeem(self, advertiser_id: str, brand_ids: frozenset[str], *, at: datetime) -> None:
        """Record that an advertiser account entered the code, whether or not it was shared with it.

        Args:
            advertiser_id: the account that enters the code.
            brand_ids: the brands that whoever enters it is known to act for; a share may name only the brand.
            at: the moment that the window is compared with.

        Raises:
            Refused: `code_revoked`, `code_not_started`, `code_expired`; `refuse_redemption` records it.

        """
        self._refuse_outside_window(at)
        if advertiser_id not in self.redemptions:
            self.trigger_event(
                Code.Redeemed,
                timestamp=at,
                advertiser_id=advertiser_id,
                shared_with_advertiser=self.shared_with(advertiser_id, brand_ids),
            )

    def refuse_redemption(self, advertiser_id: str, reason: str, *, at: datetime) -> None:
        """Record a refused redemption, unless the same was recorded within the last hour."""
        last = self.refusals.get((advertiser_id, reason))
        if last is None or at - last >= REFUSAL_REPEAT_AFTER:
            self.trigger_event(Code.RedemptionRefused, timestamp=at, advertiser_id=advertiser_id, reason=reason)

    def launch(self, campaign: Campaign, *, now: datetime, at: datetime) -> None:
        """Record a campaign; one that would outlive the window is accepted, `stops_at` says when it will stop.

        One that is recorded late was stopped by the first end of the window after it, even if the code was revived.

        Raises:
            Refused: `code_revoked`, `code_not_started`, `code_expired`, `not_redeemed_by_advertiser`,
                `campaign_exists_differently`, `campaign_outside_window`, `creative_locked`.

        """
        self._refuse_outside_window(at)
        # What happens now meets the window as it stands, though clocks may differ by what an extension took effect.
        end = self._end_after(at) if at < now else self.window.expires_at
        if end <= at:
            raise Refused("code_expired")
        if campaign.advertiser_id not in self.redemptions:
            raise Refused("not_redeemed_by_advertiser")
        existing = self.campaigns.get(campaign.campaign_id)
        if existing is not None and not existing.same_as(campaign):
            raise Refused("campaign_exists_differently", conflict_id=campaign.campaign_id)
        if not self.window.contains(campaign.starts_at):
            raise Refused("campaign_outside_window")
        running = self._ran(at)
        if running and (
            _differs(campaign.caption_sha256, self.caption_sha256)
            or _differs(campaign.creative_sha256, self.creative_sha256)
        ):
            raise Refused("creative_locked", conflict_id=running[0].campaign_id)
        if existing is None:
            self.trigger_event(
                Code.CampaignLaunched,
                timestamp=at,
                campaign_id=campaign.campaign_id,
                advertiser_id=campaign.advertiser_id,
                budget={"amount": campaign.amount, "currency": campaign.currency},
                starts_at=campaign.starts_at,
                ends_at=campaign.ends_at,
                name=campaign.name,
                targeting=campaign.targeting,
                caption_sha256=campaign.caption_sha256,
                creative_sha256=campaign.creative_sha256,
            )
            if end < campaign.ends_at and (end < self.window.expires_at or end == self.expiry_recorded):
                # Recorded after the expiry that ended it: it does not run again where the code is revived, or was.
                self._end(self.campaigns[campaign.campaign_id], "code_expired", None, at=end)

    def end_campaign(self, campaign_id: str, reason: str | None, *, at: datetime) -> None:
        """Record that a campaign was stopped; one that no longer ran at that moment stays as it is.

        Raises:
            Unknown: there is no such campaign on this code.

        """
        campaign = self.campaigns.get(campaign_id)
        if campaign is None:
            raise Unknown("campaign")
        if campaign in self._ran(at):
            self._end(campaign, "ended", reason, at=at)

    def revoke(self, reason: str, *, force: bool, at: datetime) -> None:
        """Take the code back for good; forcing ends what still runs first, and a due expiry is recorded first.

        Raises:
            Refused: `campaign_running`, unless forced.

        """
        if self.revoked_at is not None:
            return
        running = self._ran(at)
        if running and not force:
            raise Refused("campaign_running", conflict_id=running[0].campaign_id)
        self.expire(now=at)
        for campaign in running:
            self._end(campaign, "code_revoked", reason, at=at)
        self.trigger_event(Code.Revoked, timestamp=at, reason=reason, forced=force and bool(running))

    def reveal(self, reason: str, *, at: datetime) -> None:
        """Record that the secret is shown again; every reveal is an event of its own."""
        self.trigger_event(Code.Revealed, timestamp=at, reason=reason)

    def add_note(self, text: Sealed, note_fingerprint: str, about_position: int | None, *, at: datetime) -> None:
        """Record a remark; the same remark about the same position stands already."""
        if (note_fingerprint, about_position) not in self.notes:
            self.trigger_event(
                Code.NoteAdded,
                timestamp=at,
                note_fingerprint=note_fingerprint,
                about_position=about_position,
                text=text,
            )

    def expire(self, *, now: datetime) -> None:
        """Record that the window is over, once for each end it had; what still ran ended with it."""
        if not self.expiry_due(now):
            return
        end = self.window.expires_at
        for campaign in self.campaigns.values():
            if campaign.ended_at is None and campaign.ends_at > end:
                self._end(campaign, "code_expired", None, at=end)
        self.trigger_event(Code.Expired, timestamp=end, expires_at=end)

    def remind(self, *, now: datetime) -> None:
        """Record that the window's end approaches: of what is due the most urgent alone, once for each end it had."""
        due = self.reminder_due(now)
        if due is not None:
            end = self.window.expires_at
            self.trigger_event(Code.ExpiryApproaching, timestamp=due.at, expires_at=end, days_left=due.days_left)

    # ── queries ──

    def state(self, moment: datetime) -> State:
        """Return the one word for where the code stands; revoked outranks expired, expired what came before."""
        return state_of(
            revoked=self.revoked_at is not None,
            ended=self.window.ended_by(moment),
            redeemed=bool(self.redemptions),
            shared=bool(self.shares),
        )

    def live(self, moment: datetime) -> bool:
        """Tell whether the code is unrevoked and inside its window."""
        return self.revoked_at is None and self.window.contains(moment)

    def occupies(self, moment: datetime) -> bool:
        """Tell whether the code keeps its video from getting another: unrevoked and not ended, begun or not."""
        return self.revoked_at is None and not self.window.ended_by(moment)

    def expiry_due(self, now: datetime) -> bool:
        """Tell whether the window is over and that is not recorded yet."""
        return self.revoked_at is None and self.window.ended_by(now) and self.expiry_recorded != self.window.expires_at

    def reminder_due(self, now: datetime) -> Reminder | None:
        """Return the most urgent threshold before the end that was crossed and is not recorded, if there is one."""
        end = self.window.expires_at
        if self.revoked_at is not None or self.window.ended_by(now) or self.expiry_recorded == end:
            return None
        last_days = self.reminded[1] if self.reminded is not None and self.reminded[0] == end else None
        crossed = [reminder for reminder in reminders(self.window, self.window_set_at, last_days) if reminder.at <= now]
        return crossed[-1] if crossed else None

    def shared_with(self, advertiser_id: str, brand_ids: frozenset[str] = frozenset()) -> bool:
        """Tell whether a share named this advertiser account, or one of the brands it is known to act for."""
        return any(share.advertiser_id == advertiser_id or share.brand_id in brand_ids for share in self.shares)

    def stops_at(self, campaign: Campaign) -> datetime:
        """Return when a campaign stops: at its own end or the window's, whichever comes first; or stopped, once it has.

        What ended it by a revocation or a window's end is recorded as its end, and stays when the code is extended
        later. An extension that took effect before such an end of the window shows that it was none.
        """
        return campaign.ended_at or min(campaign.ends_at, self.window.expires_at)

    def running(self, moment: datetime) -> list[Campaign]:
        """Return the campaigns that run: launched, even if scheduled, and not ended by anyone or anything."""
        return [
            campaign
            for campaign in self.campaigns.values()
            if self.revoked_at is None and campaign.ended_at is None and moment < self.stops_at(campaign)
        ]

    def _ran(self, moment: datetime) -> list[Campaign]:
        """Return the campaigns that ran at a moment, those included that the window's end stopped after it."""
        return [
            campaign
            for campaign in self.campaigns.values()
            if self.revoked_at is None
            and campaign.ended_by in {None, "code_expired"}
            and moment < self.stops_at(campaign)
        ]

    def _end_after(self, moment: datetime) -> datetime:
        """Return when the window ended first from a moment on, or when it had ended, where it was over by then.

        An end that was moved before it came is none. What is recorded later of the window sets a later end, always.
        """
        end = max(until for since, until in self.ends.values() if since <= moment)
        while (moved := max(until for since, until in self.ends.values() if since < end)) > end:
            end = moved
        return end

    # ── guards ──

    def refuse_before_it_began(self, at: datetime) -> None:
        """Raise `effective_too_early` for what is said to have happened before the code was there at all."""
        if at < min(self.generated_at, self.window.starts_at):
            raise Refused("effective_too_early")

    def refuse_revoked(self) -> None:
        """Raise `code_revoked` where it was."""
        if self.revoked_at is not None:
            raise Refused("code_revoked")

    def refuse_expired(self, at: datetime) -> None:
        """Raise `code_expired` where the window is over by the clock, recorded or not."""
        if self.window.ended_by(at):
            raise Refused("code_expired")

    def _refuse_outside_window(self, at: datetime) -> None:
        self.refuse_revoked()
        if not self.window.started_by(at):
            raise Refused("code_not_started")
        self.refuse_expired(at)

    def _end(self, campaign: Campaign, cause: str, reason: str | None, *, at: datetime) -> None:
        self.trigger_event(
            Code.CampaignEnded,
            timestamp=at,
            campaign_id=campaign.campaign_id,
            advertiser_id=campaign.advertiser_id,
            cause=cause,
            reason=reason,
        )


def _differs(given: str | None, recorded: str | None) -> bool:
    """Tell whether a hash contradicts the recorded one; an absent one contradicts nothing."""
    return given is not None and recorded is not None and given != recorded


# ── the fold: a stream of recorded events becomes a code again, now or as it was then ──


def replay_code(stream: Sequence[RecordedEvent]) -> Code:
    """Build a code from its whole stream, or from the head of it."""
    code = None
    for recorded in stream:
        code = recorded.event.mutate(code)
    return cast("Code", code)


def effective_as_of(stream: Sequence[RecordedEvent], at: datetime) -> list[RecordedEvent]:
    """Keep what was true at a moment: the beginning of a code, and all that had taken effect.

    A code recorded late began in the world before the ledger heard of it, so its first event always stays and its
    window decides. Everything else counts from its effective time.
    """
    return [r for r in stream if r.effective_at <= at or isinstance(r.event, Code.Generated)]


def fold_code(kept: Sequence[RecordedEvent]) -> Code:
    """Build a code from a stream with events left out: versions then have gaps, which replay refuses."""
    code = cast("Code", kept[0].event.mutate(None))
    for recorded in kept[1:]:
        recorded.event.apply(code)
        code.version = recorded.stream_version
        code.modified_on = recorded.event.timestamp
    return code
