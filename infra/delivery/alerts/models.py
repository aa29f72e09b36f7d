"""The models of alerts: rules, what they find, messages, and what owners are shown of them.

A message *waits* until its channel has accepted it. Then it is *sent*, or *dead* if it is given up, or *void* if
nothing that it would have said was true any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from domain.pasted import creator_name
from domain.values import Role
from infra.auth.api_keys import Subjects
from infra.delivery.alerts.schedule import Timing

AlertKind = Literal["ending", "campaign_outlives_code", "refused_attempts", "stopped"]
Channel = Literal["email", "chat"]
MessageState = Literal["waiting", "sent", "dead", "void"]
RuleDisabled = Literal["asked", "key"]


class RuleNotFound(Exception):
    """The key has no such rule."""


class RuleDisabledNow(Exception):
    """The rule is disabled. Nothing is sent until it is enabled again."""


class TooManyRules(Exception):
    """The ledger, or the key, has reached its limit of rules."""


class RuleKeyInvalid(Exception):
    """The rule cannot be enabled: the key that it belongs to was revoked or has expired."""


class CalendarNotFound(Exception):
    """The key has no such calendar."""


class TooManyCalendars(Exception):
    """The ledger, or the key, has reached its limit of calendars."""


@dataclass(frozen=True, slots=True)
class About:
    """Whose codes something is about: at most one of these; none means all that the key may see."""

    creator_id: str | None = None
    brand_id: str | None = None
    advertiser_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a key may see, restricted to whom something is about.

    Attributes:
        role: the key's role; it decides what the key may see.
        subjects: the key's creators, brands and accounts, for the roles that act for some.
        about: the restriction.

    """

    role: Role
    subjects: Subjects
    about: About

    @property
    def is_outsiders(self) -> bool:
        """Whether the key is a creator's or a brand's, who is no part of the organisation that keeps the ledger."""
        return self.role in {"creator", "brand"}

    def sees(self, creator_id: str, brand_ids: set[str], advertiser_ids: set[str]) -> bool:
        """Return whether a code is seen, by its creator, and by whom it was shared with or redeemed by."""
        ours, about = self.subjects, self.about
        if self.role == "creator" and creator_name(creator_id) not in ours.creator_ids:
            return False
        is_party = not brand_ids.isdisjoint(ours.brand_ids) or not advertiser_ids.isdisjoint(ours.advertiser_ids)
        if self.role == "brand" and not is_party:
            return False
        return (
            (about.creator_id is None or creator_name(creator_id) == creator_name(about.creator_id))
            and (about.brand_id is None or about.brand_id in brand_ids)
            and (about.advertiser_id is None or about.advertiser_id in advertiser_ids)
        )

    def sees_account(self, advertiser_id: str) -> bool:
        """Return whether what an advertiser account did is seen, on a code that is."""
        if self.role == "brand" and advertiser_id not in self.subjects.advertiser_ids:
            return False
        return self.about.advertiser_id in {None, advertiser_id}


@dataclass(frozen=True, slots=True)
class AlertRule:
    """A rule as its owner sees it.

    Attributes:
        days: of the kind `ending`, how many days before the end.
        address: an e-mail address, or the URL of a chat.
        waiting: findings that no message has yet, and messages that are not sent yet.
        dead: messages that were given up.
        sent, failed: attempts in all.

    """

    rule_id: UUID
    key_id: UUID
    kind: AlertKind
    days: Sequence[int]
    about: About
    channel: Channel
    address: str = field(repr=False)
    name: str | None = field(repr=False)
    timing: Timing
    created_at: datetime
    disabled: RuleDisabled | None
    disabled_at: datetime | None
    waiting: int
    dead: int
    sent: int
    failed: int
    sent_at: datetime | None
    failed_at: datetime | None
    error: str | None


@dataclass(frozen=True, slots=True)
class AlertDelivery:
    """A message as its owner sees it."""

    message_id: UUID
    test: bool
    findings: int
    state: MessageState
    made_at: datetime
    attempts: int
    first_at: datetime | None
    last_at: datetime | None
    next_at: datetime
    error: str | None


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to be created."""

    kind: AlertKind
    days: Sequence[int]
    about: About
    channel: Channel
    address: str = field(repr=False)
    name: str | None = field(repr=False)
    timing: Timing
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Calendar:
    """A calendar as its owner sees it."""

    calendar_id: UUID
    key_id: UUID
    about: About
    name: str | None = field(repr=False)
    created_at: datetime
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class ActiveRule:
    """An enabled rule as the worker sees it. Its address is still sealed.

    Attributes:
        position: everything up to here was looked at; None before the first look.
        looked_in: the history that the position is of.
        since: the end of the log when the rule was created or enabled.
        history: the present history of the ledger.
        whole: whether nothing speaks against handing out the ledger's events.
        made_at: when its last message was made.

    """

    rule_id: UUID
    ledger_id: int
    kind: AlertKind
    days: Sequence[int]
    sight: Sight
    channel: Channel
    address: bytes = field(repr=False)
    timing: Timing
    position: int | None
    looked_in: UUID | None
    since: int
    made_at: datetime | None
    key_valid: bool
    history: UUID
    whole: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule has found.

    Attributes:
        finding: what, in a word that is the same whenever it is found again.
        ends_at: the end of the window that it is about.
        reason: of an attempt, why it was refused; of something that has stopped, what.
        happened_at: of an attempt, when.

    """

    finding: str
    code_id: UUID | None = None
    ends_at: datetime | None = None
    campaign_id: str | None = None
    advertiser_id: str | None = None
    reason: str | None = None
    happened_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DueMessage:
    """A message that an attempt is made to send."""

    message_id: UUID
    rule: ActiveRule
    test: bool
    attempt: int
    made_at: datetime


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """The limits and pauses of alerts.

    Attributes:
        collect_s: how long after the first finding a message is made, so that it also has what is found meanwhile.
        gap_s: the least time between two messages of a rule.
        retries_s: the pause before each further attempt, in seconds. After the last one a message is dead.
        in_flight: messages that are sent at the same time, and of one ledger.
        findings: findings in one message; the others are in the next one.
        waiting: findings of a rule that no message has yet; beyond that the rule looks no further.
        events: positions that are looked through at a time.
        first_look: codes that the first look of a rule reports at most, the first to end first.

    """

    collect_s: float = 5.0
    gap_s: float = 60.0
    retries_s: Sequence[float] = (10, 60, 300, 1_800, 7_200, 21_600, 43_200)
    in_flight: int = 16
    in_flight_of_ledger: int = 4
    findings: int = 200
    waiting: int = 2_000
    events: int = 20_000
    first_look: int = 1_000
