"""The code aggregate: one authorization code, for one video, in one window of time.

    CodeGenerated ──Shared──▶ ──Redeemed──▶ ──CampaignLaunched──▶ ──CampaignEnded──▶ … Revoked (final)
          └──────────── Extended, again and again ────────────┘           └ Expired (until extended)
          │                └ Superseded, by another code of the same video
          ├ UsageRightsStated, again and again: what a contract allows beside the code
          ├ CodeSecretAttached, once: the secret of a code that was recorded without it
          └ ExpiryApproaching, at a few thresholds before each end

Facts may be recorded late and in any order. So events only add what they say, and whatever follows from several facts
(the window, the periods in which it was open, when each campaign stopped) is worked out when it is asked for: the same
facts give the same answers, whichever was recorded first. `Expired`, and a `CampaignEnded` that an expiry caused, tell
readers what the clock made true by what was known; they count for nothing here.

Expiry is true by the clock first and an event second: every command compares the moment with the window, whether or
not `Expired` is recorded yet. Commands guard and trigger; events only assign, for they run again on every replay, and
a rule that tightens later must never make an old stream unloadable.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, TypeVar, cast
from uuid import UUID

from eventsourcing.domain import Aggregate

from domain.campaign import Campaign, CampaignStop, Share, first_stop
from domain.errors import Refused, Unknown
from domain.periods import Extension, Period, end_by, in_effect, lapse_after, overlap, periods, until
from domain.recording import Recording
from domain.reminders import Reminder, reminders
from domain.rights import End, Statement, UsageRights, effective_end, ended_after, stated_by
from domain.rights import in_effect as rights_in_effect
from domain.values import BRAND_SIDE, CREATOR_SIDE, FOREVER, Channel, Sealed, State, When, Window, masked, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.recorded import RecordedEvent

K = TypeVar("K")
V = TypeVar("V")
# The same refusal of the same advertiser is recorded once in this time; what comes sooner is only counted.
REFUSAL_REPEAT_AFTER = timedelta(hours=1)


# Nobody can add to it in place: it is what all codes begin with.
_NONE_YET: Final[Mapping[Any, Any]] = MappingProxyType({})


class Ending(NamedTuple):
    """Something was ended by somebody: when, and why."""

    at: datetime
    reason: str | None


class Code(Recording, Aggregate):
    """One authorization code. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Code"

    class Event(Aggregate.Event):
        """What happened to the code."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

        def follows_from(self, code: Code) -> tuple[UUID, int] | None:  # noqa: ARG002 - most follow from no event
            """Return the stream and the version of the event that this one, of a code, follows from, if it does.

            What the clock makes true follows from what set the window's end.
            """
            return None

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
        masked: str | None = None
        fingerprint: str | None = None
        secret: Sealed | None = None
        caption_sha256: str | None = None
        secret_given: bool = False
        start_stated: bool = True
        supersedes: str | None = None

        def apply(self, aggregate: Code) -> None:
            aggregate.creator_id = self.creator_id
            aggregate.video_id = self.video_id
            aggregate.terms_version = self.terms_version
            aggregate.masked = self.masked
            aggregate.secret_in = None if self.masked is None else self.originator_version
            aggregate.first_window = Window(self.starts_at, self.expires_at)
            aggregate.was_recorded = self.was_recorded
            aggregate.start_stated = self.start_stated
            aggregate.supersedes = self.supersedes
            aggregate.first_caption_sha256 = self.caption_sha256
            aggregate.command_version = self.originator_version

        @property
        def was_recorded(self) -> bool:
            """Whether TikTok generated the code, and it was only recorded here."""
            return self.secret_given or self.masked is None

    Created = Generated  # the library would else add an event of that name, with no wire name of its own

    class Changed(Event):
        """An event that moves the version which `If-Match` speaks of."""

        TOPIC = "CodeChanged"

        def apply(self, aggregate: Code) -> None:
            aggregate.command_version = self.originator_version

    class SecretAttached(Changed):
        """Somebody brought the secret of a code that was recorded without it; there is one of these at most."""

        TOPIC = "CodeSecretAttached"

        RECORDED_BY = CREATOR_SIDE
        masked: str
        fingerprint: str
        secret: Sealed | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.masked = self.masked
            aggregate.secret_in = self.originator_version

    class Extended(Changed):
        """The owner moved the end of the window; recorded late, it undoes an end that came after it took effect."""

        TOPIC = "Extended"

        RECORDED_BY = CREATOR_SIDE
        old_expires_at: datetime
        expires_at: datetime

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            extension = Extension(self.timestamp, self.expires_at)
            aggregate.extensions = _with(aggregate.extensions, self.originator_version, extension)

    class Shared(Changed):
        """The creator handed the code to a brand; the same again is recorded only where it was earlier."""

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
            aggregate.shares = _with(aggregate.shares, share, self.timestamp)

    class Redeemed(Changed):
        """An advertiser account entered the code; the same again is recorded only where it was earlier."""

        TOPIC = "Redeemed"

        RECORDED_BY = BRAND_SIDE
        advertiser_id: str
        shared_with_advertiser: bool | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.redemptions = _with(aggregate.redemptions, self.advertiser_id, self.timestamp)
            known, shared = aggregate.shared_when_redeemed, self.shared_with_advertiser
            aggregate.shared_when_redeemed = _with(known, self.advertiser_id, shared)

    class RedemptionRefused(Event):
        """An advertiser entered the code when it could not be used; no outsider can make the owner's command stale."""

        TOPIC = "RedemptionRefused"

        RECORDED_BY = BRAND_SIDE
        advertiser_id: str
        reason: str

        def apply(self, aggregate: Code) -> None:
            aggregate.refusals = _with(aggregate.refusals, (self.advertiser_id, self.reason), self.timestamp)

    class CampaignLaunched(Changed):
        """A brand launched an ad on the code; while it runs, caption and creative are locked."""

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
            aggregate.launches = _with(aggregate.launches, self.campaign_id, campaign)

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
            key = (self.campaign_id, self.cause)
            aggregate.recorded_stops = _with(aggregate.recorded_stops, key, self.timestamp)

        def follows_from(self, code: Code) -> tuple[UUID, int] | None:
            causes = {"code_revoked": code.revoked_in, "code_expired": code.expiries.get(self.timestamp)}
            version = causes.get(self.cause)
            return None if version is None else (self.originator_id, version)

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
            aggregate.notes = _with(aggregate.notes, (self.note_fingerprint, self.about_position), None)

    class RightsStated(Changed):
        """Somebody stated the usage rights that a contract gives beside the code; this takes the place of what was."""

        TOPIC = "UsageRightsStated"

        RECORDED_BY = CREATOR_SIDE
        rights_end_at: datetime | None = None
        platforms: list[str] | None = None
        edits_allowed: bool | None = None
        contract_fingerprint: str | None = None
        contract_reference: Sealed | None = None

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            statement = Statement(self.timestamp, self.rights)
            aggregate.statements = {**aggregate.statements, self.originator_version: statement}

        @property
        def rights(self) -> UsageRights:
            """The rights that are stated."""
            platforms = None if self.platforms is None else tuple(self.platforms)
            return UsageRights(self.rights_end_at, platforms, self.edits_allowed, self.contract_fingerprint)

    class Superseded(Changed):
        """Another code took over the video: no new account redeems this one, and it is not shared or extended."""

        TOPIC = "Superseded"

        RECORDED_BY = CREATOR_SIDE
        superseded_by: str
        superseded_at: datetime

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.superseded_at = self.superseded_at
            aggregate.superseding_at = self.timestamp
            aggregate.superseded_by = self.superseded_by

        def follows_from(self, code: Code) -> tuple[UUID, int] | None:  # noqa: ARG002 - it is of another code
            return UUID(self.superseded_by), 1

    class Revoked(Changed):
        """The creator took the code back, for good; recorded again only where it was earlier."""

        TOPIC = "Revoked"

        RECORDED_BY = CREATOR_SIDE
        reason: str
        forced: bool = False

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.revoked_at = self.timestamp
            aggregate.revoked_in = self.originator_version

    class Expired(Changed):
        """The window ended; recorded by the clock, effective at the window's end. An extended code expires again."""

        TOPIC = "Expired"

        RECORDED_BY = (*CREATOR_SIDE, "clock")  # a late extension records the expiry that has passed since
        expires_at: datetime

        def apply(self, aggregate: Code) -> None:
            super().apply(aggregate)
            aggregate.expiries = _with(aggregate.expiries, self.expires_at, self.originator_version)

        def follows_from(self, code: Code) -> tuple[UUID, int] | None:
            return self.originator_id, code.end_set_in(self.expires_at)

    class ExpiryApproaching(Event):
        """The end came within 30, 14, 7 or 1 days, after it was set; if several were crossed unseen, only the last."""

        TOPIC = "ExpiryApproaching"

        RECORDED_BY = ("clock",)
        expires_at: datetime
        days_left: int

        def apply(self, aggregate: Code) -> None:
            aggregate.reminded = (self.expires_at, self.days_left)

        def follows_from(self, code: Code) -> tuple[UUID, int] | None:
            return self.originator_id, code.end_set_in(self.expires_at)

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        video_id: str
        terms_version: str
        masked: str | None  # None as long as the secret is not known
        secret_in: int | None  # the version of the event that has the secret
        first_window: Window
        was_recorded: bool
        start_stated: bool
        supersedes: str | None
        first_caption_sha256: str | None
        extensions: Mapping[int, Extension]  # by version
        statements: Mapping[int, Statement]  # of usage rights, by version
        shares: Mapping[Share, datetime]
        redemptions: Mapping[str, datetime]
        shared_when_redeemed: Mapping[str, bool | None]  # as far as it was known when it was recorded
        launches: Mapping[str, Campaign]
        recorded_stops: Mapping[tuple[str, str], datetime]  # by campaign and cause
        refusals: Mapping[tuple[str, str], datetime]
        notes: Mapping[tuple[str, int | None], None]
        revoked_at: datetime | None
        revoked_in: int | None  # the version
        superseded_at: datetime | None
        superseding_at: datetime | None  # when it was said: the successor may begin later
        superseded_by: str | None
        expiries: Mapping[datetime, int]  # the version by the end
        reminded: tuple[datetime, int] | None
        command_version: int

    # What a code begins with. It stands here, so that no code bears what most codes never get.
    extensions = statements = shares = redemptions = shared_when_redeemed = launches = _NONE_YET
    recorded_stops = refusals = notes = expiries = _NONE_YET
    revoked_at = revoked_in = superseded_at = superseding_at = superseded_by = reminded = None

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
        start_stated: bool,
        secret: Sealed | None,
        secret_given: bool,
        fingerprint: str | None,
        caption_sha256: str | None,
        supersedes: UUID | None,
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
            masked=None if secret is None else masked(secret),
            fingerprint=fingerprint,
            secret=secret,
            caption_sha256=caption_sha256,
            secret_given=secret_given,
            start_stated=start_stated,
            supersedes=None if supersedes is None else str(supersedes),
        )

    def attach_secret(self, secret: Sealed, fingerprint: str, *, at: datetime) -> None:
        """Record the secret of a code that was recorded without it."""
        self.trigger_event(
            Code.SecretAttached, timestamp=at, masked=masked(secret), fingerprint=fingerprint, secret=secret
        )

    def extend(self, new_end: datetime, *, when: When) -> None:
        """Move the window's end to a later moment; an expiry that nobody recorded yet is recorded before it.

        Recorded late, the new end may be over too: that expiry is recorded with it.

        Raises:
            Refused: `window_not_longer`, where the new end does not lie after the old one and after the moment.

        """
        old_end = self.end_at(when.horizon)
        if new_end <= old_end or new_end <= when.at:
            raise Refused("window_not_longer")
        self.expire(now=when.at)
        self.trigger_event(Code.Extended, timestamp=when.at, old_expires_at=old_end, expires_at=new_end)
        if when.late:
            self.expire(now=when.now)

    def share(self, share: Share, note: Sealed | None, *, when: When) -> None:
        """Record that the code was handed to a brand.

        Raises:
            Refused: `code_revoked`, `code_expired`, `code_superseded`.

        """
        self.refuse_revoked(when)
        self.refuse_expired(when)
        self.refuse_superseded(when)
        if not _known(self.shares.get(share), when):
            self.trigger_event(
                Code.Shared,
                timestamp=when.at,
                brand_id=share.brand_id,
                channel=share.channel,
                advertiser_id=share.advertiser_id,
                note_fingerprint=share.note_fingerprint,
                note=note,
            )

    def redeem(self, advertiser_id: str, brand_ids: frozenset[str], *, when: When) -> None:
        """Record that an advertiser account entered the code, whether or not it was shared with it.

        Args:
            advertiser_id: the account that enters the code.
            brand_ids: the brands that the caller is known to act for; a share may name only the brand.
            when: the moment that the window is compared with.

        Raises:
            Refused: `code_revoked`, `code_not_started`, `code_expired`, `code_superseded`; `refuse_redemption` records
                it.

        """
        self._refuse_outside_window(when)
        if _known(self.redemptions.get(advertiser_id), when):
            return
        if advertiser_id not in self.redemptions:
            self.refuse_superseded(when)
        self.trigger_event(
            Code.Redeemed,
            timestamp=when.at,
            advertiser_id=advertiser_id,
            shared_with_advertiser=self.was_shared_with(advertiser_id, brand_ids, by=when.horizon),
        )

    def refuse_redemption(self, advertiser_id: str, reason: str, *, when: When) -> None:
        """Record a refused redemption, unless the same was recorded within the last hour.

        One that is said to have happened earlier is not recorded: what was known here then is not what was true.
        """
        last = self.refusals.get((advertiser_id, reason))
        if not when.late and (last is None or when.at - last >= REFUSAL_REPEAT_AFTER):
            self.trigger_event(Code.RedemptionRefused, timestamp=when.at, advertiser_id=advertiser_id, reason=reason)

    def launch(self, campaign: Campaign, ended: Ending | None = None, *, when: When) -> None:
        """Record a campaign; one that would outlive the window is accepted, `stops_at` says when it will stop.

        Recorded after what ended it, its end is recorded with it. Where somebody ended it before another one with
        another creative began, and that one is on record already, `ended` is recorded with it too: it could be recorded
        neither before its launch nor after it.

        Raises:
            Refused: `code_revoked`, `code_not_started`, `code_expired`, `not_redeemed_by_advertiser`,
                `campaign_exists_differently`, `campaign_outside_window`, `creative_locked`.

        """
        self._refuse_outside_window(when)
        if not _known(self.redemptions.get(campaign.advertiser_id), when):
            raise Refused("not_redeemed_by_advertiser")
        existing = self.launches.get(campaign.campaign_id)
        if existing is not None and not existing.same_as(campaign):
            raise Refused("campaign_exists_differently", conflict_id=campaign.campaign_id)
        if not Window(self.window.starts_at, self.end_at(when.horizon)).contains(campaign.starts_at):
            raise Refused("campaign_outside_window")
        self._refuse_another_creative(replace(campaign, launched_at=when.at), ended)
        if existing is not None and _known(existing.launched_at, when):
            return
        self.trigger_event(
            Code.CampaignLaunched,
            timestamp=when.at,
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
        stop = self.stop(campaign)
        over = stop.by == "code_revoked" or (stop.by == "code_expired" and stop.at in self.expiries)
        if over and self.recorded_stops.get((campaign.campaign_id, stop.by)) != stop.at:
            self._end(campaign, stop.by, None, at=stop.at)

        if ended is not None:
            self.end_campaign(campaign.campaign_id, ended.reason, when=When(when.now, ended.at))

    def end_campaign(self, campaign_id: str, reason: str | None, *, when: When) -> None:
        """Record that a campaign was stopped; one that no longer ran at that moment stays as it is.

        What is recorded late is recorded also where the window had ended by then: an extension that nobody recorded yet
        may show that it had not.

        Raises:
            Unknown: there is no such campaign on this code.
            Refused: `effective_too_early`, where the campaign was launched later.

        """
        campaign = self.launches.get(campaign_id)
        if campaign is None:
            raise Unknown("campaign")
        if _launched_at(campaign) > when.horizon:
            raise Refused(
                "effective_too_early",
                "The effective_at is before the campaign was launched. Send a later effective_at, or first record that "
                "the launch was earlier.",
            )
        known = _known(self.recorded_stops.get((campaign_id, "ended")), when)
        # Nobody but people stops an ad whose rights have ended: when they did is worth recording.
        if not known and when.at < self._stop(campaign, lapsing=not when.late, rights=False).at:
            self._end(campaign, "ended", reason, at=when.at)

    def state_rights(self, rights: UsageRights, contract_reference: Sealed | None, *, when: When) -> None:
        """Record the usage rights that are agreed beside the code. A repeat records nothing.

        If it is recorded late, it is a repeat only if the same was stated for exactly that moment: between two known
        statements, there may have been others.
        """
        last = stated_by(rights_in_effect(self.statements), when.at if when.late else FOREVER)
        if last is not None and last.rights == rights and (not when.late or last.at == when.at):
            return
        self.trigger_event(
            Code.RightsStated,
            timestamp=when.at,
            rights_end_at=rights.until,
            platforms=None if rights.platforms is None else list(rights.platforms),
            edits_allowed=rights.edits_allowed,
            contract_fingerprint=rights.contract_fingerprint,
            contract_reference=contract_reference,
        )

    def supersede(self, successor_id: UUID, superseded_at: datetime, *, when: When) -> None:
        """Record that another code takes over the video from a moment on.

        Raises:
            Refused: `code_revoked`, `code_expired`, `code_superseded`.

        """
        self.refuse_revoked(when)
        if self.end_at(when.horizon) <= superseded_at:  # by what is known of the window when this is decided
            raise Refused("code_expired")
        if self.superseded_by is not None:
            raise Refused("code_superseded", conflict_id=self.superseded_by)
        self.trigger_event(
            Code.Superseded, timestamp=when.at, superseded_by=str(successor_id), superseded_at=superseded_at
        )

    def revoke(self, reason: str, *, force: bool, when: When) -> None:
        """Take the code back for good; what still runs ends first, and a due expiry is recorded first.

        Recorded late, it may lie before another revocation, and before campaigns that were launched.

        Raises:
            Refused: `campaign_running`, unless forced: only campaigns launched by then count.

        """
        if _known(self.revoked_at, when):
            return
        unended = [c for c in self.launches.values() if max(when.at, _launched_at(c)) < self._stop(c, revoked=False).at]
        running = [c for c in unended if _launched_at(c) <= when.horizon]
        if running and not force:
            raise Refused("campaign_running", conflict_id=running[0].campaign_id)
        self.expire(now=when.at)
        for campaign in unended:
            self._end(campaign, "code_revoked", reason, at=max(when.at, _launched_at(campaign)))
        self.trigger_event(Code.Revoked, timestamp=when.at, reason=reason, forced=force and bool(running))

    def reveal(self, reason: str, *, at: datetime) -> None:
        """Record that the secret is shown again; every reveal is an event of its own.

        Raises:
            Refused: `secret_unknown`.

        """
        if self.masked is None:
            raise Refused("secret_unknown")
        self.trigger_event(Code.Revealed, timestamp=at, reason=reason)

    def add_note(self, text: Sealed, note_fingerprint: str, about_position: int | None, *, at: datetime) -> None:
        """Record a remark; the same remark about the same position is recorded once."""
        if (note_fingerprint, about_position) not in self.notes:
            self.trigger_event(
                Code.NoteAdded,
                timestamp=at,
                note_fingerprint=note_fingerprint,
                about_position=about_position,
                text=text,
            )

    def expire(self, *, now: datetime) -> None:
        """Record that the window ended, once for each end it came to; what still ran ended with it."""
        for end in self.expiries_due(now):
            for campaign in self.launches.values():
                recorded = self.recorded_stops.get((campaign.campaign_id, "code_expired"))
                if self.stop(campaign) == (end, "code_expired") and recorded != end:
                    self._end(campaign, "code_expired", None, at=end)
            self.trigger_event(Code.Expired, timestamp=end, expires_at=end)

    def remind(self, *, now: datetime) -> None:
        """Record that the window's end approaches: of what is due only the most urgent, once for each end it had."""
        due = self.reminder_due(now)
        if due is not None:
            end = self.window.expires_at
            self.trigger_event(Code.ExpiryApproaching, timestamp=due.at, expires_at=end, days_left=due.days_left)

    # ── queries ──

    @property
    def generated_at(self) -> datetime:
        """When the code was generated."""
        return self._created_on

    @property
    def window(self) -> Window:
        """The window by all that is known: from its start to the end that took effect last."""
        if self.start_stated and not self.extensions:
            return self.first_window
        return Window(self._starts_at, self.end_at(None))

    @property
    def window_set_at(self) -> datetime:
        """When what set the window's end took effect."""
        set_by = in_effect(self.extensions)
        return set_by[-1].at if set_by else self.generated_at

    @property
    def usage_rights(self) -> Statement | None:
        """The statement of usage rights that took effect last; None if there is none."""
        return stated_by(rights_in_effect(self.statements), FOREVER) if self.statements else None

    def rights_until(self, moment: datetime) -> datetime | None:
        """Return the end of the usage rights as of a moment; None if nobody stated one."""
        stated = stated_by(rights_in_effect(self.statements), moment) if self.statements else None
        return None if stated is None else stated.rights.until

    @property
    def effective_end(self) -> End:
        """The earlier of the code's end and that of the usage rights, by all that is known."""
        return effective_end(self.window.expires_at, self.revoked_at, self.rights_until(FOREVER))

    @property
    def begun_at(self) -> datetime:
        """The first moment at which the code was there: it was generated, or its window began."""
        return min(self.generated_at, self.window.starts_at)

    @property
    def campaigns(self) -> dict[str, Campaign]:
        """The campaigns by id, each with its end where that is recorded and holds."""
        return {campaign.campaign_id: self._with_end(campaign) for campaign in self.launches.values()}

    @property
    def caption_sha256(self) -> str | None:
        """The caption that was stated last: with a campaign, or else with the code."""
        return _stated(self.launches, None, "caption_sha256", self.first_caption_sha256)

    @property
    def creative_sha256(self) -> str | None:
        """The creative that was stated last, with a campaign."""
        return _stated(self.launches, None, "creative_sha256", None)

    def occupation(self, extension: Extension | None = None) -> list[Window]:
        """Return the periods in which the code keeps its video from others: open, not revoked, not superseded.

        With an extension: what they would be if it were recorded too.
        """
        ends = [moment for moment in (self.revoked_at, self.superseded_at) if moment is not None]
        return until(self._periods(extension), min(ends, default=None))

    @property
    def recorded_after_revocation(self) -> int:
        """How many facts are on record as of the revocation's own time or later: they count for nothing.

        A revocation that is recorded late may lie before them.
        """
        revoked_at = self.revoked_at
        if revoked_at is None:
            return 0
        launched = (_launched_at(campaign) for campaign in self.launches.values())
        extended = (extension.at for extension in self.extensions.values())
        superseded = () if self.superseding_at is None else (self.superseding_at,)
        moments = [*self.shares.values(), *self.redemptions.values(), *launched, *extended, *superseded]
        return sum(moment >= revoked_at for moment in moments)

    def end_at(self, moment: datetime | None) -> datetime:
        """Return the window's end as of a moment, or by all that is known."""
        if not self.extensions:
            return self.first_window.expires_at
        if moment is None:
            return in_effect(self.extensions)[-1].expires_at
        return end_by(moment, self.first_window.expires_at, self.extensions)

    def extended_after(self, moment: datetime) -> bool:
        """Return whether an extension that took effect later is on record."""
        return any(extension.at > moment for extension in self.extensions.values())

    def ends_earlier_after(self, moment: datetime, end: datetime) -> bool:
        """Return whether the next extension on record that took effect after a moment has an earlier end."""
        later = [extension.at for extension in self.extensions.values() if extension.at > moment]
        return bool(later) and self.end_at(min(later)) < end

    def state(self, moment: datetime) -> State:
        """Return the one word for the code's state: the first that holds of those that `state_of` names."""
        return state_of(
            revoked=self.revoked_at is not None,
            ended=self.window.ended_by(moment),
            superseded=self.superseded_at is not None and self.superseded_at <= moment,
            redeemed=bool(self.redemptions),
            shared=bool(self.shares),
        )

    def live(self, moment: datetime) -> bool:
        """Return whether the code is unrevoked and inside its window."""
        return self.revoked_at is None and self.window.contains(moment)

    def expiries_due(self, now: datetime) -> list[datetime]:
        """Return the ends that the window has come to and that are not recorded yet."""
        ends = [period.expires_at for period in self._periods()]
        last = now if self.revoked_at is None else min(now, self.revoked_at)
        return [end for end in ends if end <= last and end not in self.expiries]

    def expiry_due(self, now: datetime) -> bool:
        """Return whether the window is over and that is not recorded yet."""
        return self.revoked_at is None and bool(self.expiries_due(now))

    def end_set_in(self, end: datetime) -> int:
        """Return the version of the event that set an end of the window."""
        return max((version for version, set_by in self.extensions.items() if set_by.expires_at == end), default=1)

    def known_since(self, event: Aggregate.Event) -> tuple[str, datetime | None]:
        """Return the time of an event's share, redemption or launch as it was known before, if it is not the first."""
        match event:
            case Code.Shared(brand_id=brand_id, channel=channel, advertiser_id=advertiser_id, note_fingerprint=note):
                return "shared_at", self.shares.get(Share(brand_id, channel, advertiser_id, note))
            case Code.Redeemed(advertiser_id=redeemer):
                return "redeemed_at", self.redemptions.get(redeemer)
            case Code.CampaignLaunched(campaign_id=campaign_id) if campaign_id in self.launches:
                return "launched_at", self.launches[campaign_id].launched_at
            case _:
                return "", None

    def reminder_due(self, now: datetime) -> Reminder | None:
        """Return the most urgent threshold before the end that was crossed and is not recorded, if there is one."""
        window = self.window
        end = window.expires_at
        if self.revoked_at is not None or window.ended_by(now) or end in self.expiries:
            return None
        last_days = self.reminded[1] if self.reminded is not None and self.reminded[0] == end else None
        crossed = [reminder for reminder in reminders(window, self.window_set_at, last_days) if reminder.at <= now]
        return crossed[-1] if crossed else None

    def was_shared_with(self, advertiser_id: str, brand_ids: frozenset[str], *, by: datetime) -> bool | None:
        """Return whether the code had been shared with an account by a moment, as far as that is known.

        Args:
            advertiser_id: the account.
            brand_ids: the brands it was known to be of at that moment; none where nobody had said so.
            by: the moment: that of the redemption, where there is one.

        Returns:
            True where a share names the account, or its brand; None where shares name only brands, and whose the
            account was is not known; else False.

        """
        made = [share for share, shared_at in self.shares.items() if shared_at <= by]
        if any(share.advertiser_id == advertiser_id or share.brand_id in brand_ids for share in made):
            return True
        unsaid = not brand_ids and any(share.advertiser_id is None for share in made)
        return None if unsaid else False

    def was_shared_when_redeemed(self, advertiser_id: str, brand_ids: frozenset[str]) -> bool | None:
        """Return whether the code had been shared with an account by the time at which it redeemed the code.

        True also where anyone who entered the code was known to act for the brand that it was shared with.
        """
        if self.shared_when_redeemed.get(advertiser_id):
            return True
        return self.was_shared_with(advertiser_id, brand_ids, by=self.redemptions[advertiser_id])

    def stop(self, campaign: Campaign) -> CampaignStop:
        """Return when a campaign stops or stopped, and by what, by all that is known."""
        return self._stop(self.launches[campaign.campaign_id])

    def stops_at(self, campaign: Campaign) -> datetime:
        """Return when a campaign stops or stopped.

        A window that ended stopped it for good, also where the code was revived later. An extension that took effect
        before such an end shows that it was none.
        """
        return self.stop(campaign).at

    def running(self, moment: datetime) -> list[Campaign]:
        """Return the campaigns that run: launched, even if scheduled, and not ended by anyone or anything."""
        if not self.launches:
            return []
        return [c for c in self.campaigns.values() if c.ended_at is None and moment < self.stops_at(c)]

    @property
    def _starts_at(self) -> datetime:
        """When the window began; where nobody stated it, with the first thing that is known of the code."""
        if self.start_stated:
            return self.first_window.starts_at
        return min([self.generated_at, *self.shares.values(), *self.redemptions.values()])

    def _periods(self, extension: Extension | None = None) -> list[Period]:
        extensions = self.extensions if extension is None else {**self.extensions, self.version + 1: extension}
        return periods(Window(self._starts_at, self.first_window.expires_at), extensions)

    def _stop(
        self, campaign: Campaign, *, lapsing: bool = True, revoked: bool = True, rights: bool = True
    ) -> CampaignStop:
        """Return what stops a campaign first, without regard to some causes on request."""
        name, launched_at = campaign.campaign_id, _launched_at(campaign)
        revoked_at = self.recorded_stops.get((name, "code_revoked"))
        if self.revoked_at is not None:
            by_now = max(launched_at, self.revoked_at)
            revoked_at = by_now if revoked_at is None else min(revoked_at, by_now)
        return first_stop(
            campaign.ends_at,
            ended_at=self.recorded_stops.get((name, "ended")),
            lapses_at=lapse_after(self._periods(), launched_at) if lapsing else None,
            revoked_at=revoked_at if revoked else None,
            rights_end_at=self._rights_end_after(launched_at) if rights else None,
        )

    def _rights_end_after(self, moment: datetime) -> datetime | None:
        return ended_after(rights_in_effect(self.statements), moment) if self.statements else None

    def _with_end(self, campaign: Campaign) -> Campaign:
        at, by = self._stop(campaign)
        if self.recorded_stops.get((campaign.campaign_id, by)) != at:
            return campaign
        return replace(campaign, ended_at=at, ended_by=by)

    # ── guards ──

    def refuse_before_it_began(self, when: When) -> None:
        """Raise `effective_too_early` for what is said to have happened before the code was there at all."""
        if when.late and when.at < self.begun_at:
            raise Refused("effective_too_early")

    def refuse_other_video(self, expected_video_id: str | None) -> None:
        """Raise `other_video` where the code is meant for another video than somebody expects."""
        if expected_video_id is not None and expected_video_id != self.video_id:
            raise Refused("other_video")

    def refuse_known_secret(self) -> None:
        """Raise `secret_known` where the secret of the code is recorded."""
        if self.masked is not None:
            raise Refused("secret_known")

    def refuse_revoked(self, when: When) -> None:
        """Raise `code_revoked` where it was by then."""
        if self.revoked_at is not None and self.revoked_at <= when.horizon:
            raise Refused("code_revoked")

    def refuse_expired(self, when: When) -> None:
        """Raise `code_expired` where the window was over by then, recorded or not."""
        if self.end_at(when.horizon) <= when.at:
            raise Refused("code_expired")

    def refuse_superseded(self, when: When) -> None:
        """Raise `code_superseded` where another code had taken over by then."""
        if self.superseded_at is not None and self.superseded_at <= when.at:
            raise Refused("code_superseded", conflict_id=self.superseded_by)

    def _refuse_outside_window(self, when: When) -> None:
        self.refuse_revoked(when)
        if self.start_stated and not self.window.started_by(when.at):
            raise Refused("code_not_started")
        self.refuse_expired(when)

    def _refuse_another_creative(self, campaign: Campaign, ended: Ending | None) -> None:
        """Raise `creative_locked` where a campaign with another caption or creative runs at the same time."""
        if campaign.caption_sha256 is None and campaign.creative_sha256 is None:
            return  # a campaign that states nothing contradicts nothing
        launched_at = _launched_at(campaign)
        rights_end = self._rights_end_after(launched_at)
        others = [None if ended is None else ended.at, rights_end]
        ends = [campaign.ends_at, lapse_after(self._periods(), launched_at), *(m for m in others if m is not None)]
        run = Window(max(campaign.starts_at, launched_at), min(ends))
        for other in self.launches.values():
            other_run = Window(max(other.starts_at, _launched_at(other)), self._stop(other).at)
            if other.campaign_id == campaign.campaign_id or not overlap([run], [other_run]):
                continue
            # One that states nothing shows what was stated before it; launched later, it took whatever it found.
            before = launched_at >= _launched_at(other)
            caption = _stated(self.launches, other, "caption_sha256", self.first_caption_sha256) if before else None
            creative = _stated(self.launches, other, "creative_sha256", None) if before else None
            if _differs(campaign.caption_sha256, other.caption_sha256 or caption) or _differs(
                campaign.creative_sha256, other.creative_sha256 or creative
            ):
                raise Refused("creative_locked", conflict_id=other.campaign_id)

    def _end(self, campaign: Campaign, cause: str, reason: str | None, *, at: datetime) -> None:
        self.trigger_event(
            Code.CampaignEnded,
            timestamp=at,
            campaign_id=campaign.campaign_id,
            advertiser_id=campaign.advertiser_id,
            cause=cause,
            reason=reason,
        )


def _known(moment: datetime | None, when: When) -> bool:
    """Return whether something is on record that took effect by the moment that a command speaks of."""
    return moment is not None and moment <= when.horizon


def _launched_at(campaign: Campaign) -> datetime:
    return cast("datetime", campaign.launched_at)


def _stated(launches: Mapping[str, Campaign], before: Campaign | None, name: str, first: str | None) -> str | None:
    """Return the hash of a name that was stated last with a campaign, by the launch of another if that is given."""
    if not launches:
        return first
    stated = [c for c in launches.values() if getattr(c, name) is not None]
    if before is not None:
        stated = [c for c in stated if _launched_at(c) <= _launched_at(before)]
    last = max(enumerate(stated), key=lambda numbered: (_launched_at(numbered[1]), numbered[0]), default=None)
    return first if last is None else cast("str", getattr(last[1], name))


def _differs(given: str | None, recorded: str | None) -> bool:
    """Return whether a hash contradicts the recorded one; an absent one contradicts nothing."""
    return given is not None and recorded is not None and given != recorded


class _Growing(dict[Any, Any]):
    """A dict of a code that is being replayed. Nobody else has it yet, so what is added is added in place."""


# What a code has more of with each event.
_GROWS: Final = (
    "extensions",
    "shares",
    "redemptions",
    "shared_when_redeemed",
    "launches",
    "recorded_stops",
    "refusals",
    "notes",
    "expiries",
)
# From so many events on, copies of all that grows would take longer than the events themselves.
LONG: Final = 64


def _with(known: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    """Return a dict with one entry more: a copy, because other copies of the code may share it."""
    if type(known) is _Growing:
        known[key] = value
        return known
    return {**known, key: value}


def let_grow(code: Code) -> None:
    """Have the events that follow add to what a code has in place. Nobody else may have the code yet."""
    vars(code).update({name: _Growing(getattr(code, name)) for name in _GROWS})


def grown(code: Code) -> Code:
    """Return a code that grew in place, from now on with copies for each event."""
    for name in _GROWS:
        known = vars(code).pop(name)
        if known:
            setattr(code, name, dict(known))
    return code


def replay_code(stream: Sequence[RecordedEvent]) -> Code:
    """Build a code from its whole stream, or from the head of it."""
    code = None
    for recorded in stream[:1]:
        code = recorded.event.mutate(code)
    if len(stream) >= LONG:
        let_grow(cast("Code", code))
    for recorded in stream[1:]:
        code = recorded.event.mutate(code)
    return grown(cast("Code", code)) if len(stream) >= LONG else cast("Code", code)


def effective_as_of(stream: Sequence[RecordedEvent], at: datetime) -> list[RecordedEvent]:
    """Keep what was true at a moment: the beginning of a code, and all that had taken effect.

    A code recorded late began in the world before the ledger heard of it, so its first event always stays and its
    window decides. Everything else counts from its effective time.
    """
    return [r for r in stream if r.effective_at <= at or isinstance(r.event, Code.Generated)]


def fold_code(kept: Sequence[RecordedEvent]) -> Code:
    """Build a code from a stream with events left out: versions then have gaps, which replay refuses."""
    code = cast("Code", kept[0].event.mutate(None))
    if len(kept) >= LONG:
        let_grow(code)
    for recorded in kept[1:]:
        recorded.event.apply(code)
        code.version = recorded.stream_version
        code.modified_on = recorded.event.timestamp
    return grown(code) if len(kept) >= LONG else code
