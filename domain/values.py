"""The small values that events and commands are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

Role = Literal["admin", "operator", "creator", "brand", "auditor", "subscriber"]
# The roles whose keys act for a creator, and for a brand. An event says by `RECORDED_BY` which roles record it, and the
# database refuses it from any other; the clock is a role of its own.
CREATOR_SIDE = ("creator", "operator", "admin")
BRAND_SIDE = ("brand", "operator", "admin")
Source = Literal["creator", "brand", "operator", "platform", "clock"]
Channel = Literal["dm", "email", "text", "other"]
State = Literal["generated", "shared", "redeemed", "superseded", "expired", "revoked"]

# Ids are opaque to us; whoever calls us chooses them. The alphabet keeps them safe in paths, headers and logs; `.` and
# `..` are no ids, for every client takes them out of a path.
ID_PATTERN = (
    r"^([A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}|\.[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,126}|\.\.[A-Za-z0-9._:@-]{1,126})$"
)

# Short secrets are masked whole: four visible characters of twelve would be a third of the secret.
MASK_WHOLE_BELOW_CHARACTERS = 16


class Sealed(str):
    """Text that leaves the process only encrypted: a code's secret, a note.

    The type decides: whatever field of an event holds a `Sealed` goes to the sealed body, never to the clear one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the text wherever a value is shown by its repr, as in an event or a frame; `str` gives the text."""
        return "Sealed('…')"


def state_of(*, revoked: bool, ended: bool, redeemed: bool, shared: bool, superseded: bool = False) -> State:
    """Return the state of a code: of those that hold, the first of revoked, expired, superseded, redeemed, shared."""
    if revoked:
        return "revoked"
    if ended:
        return "expired"
    if superseded:
        return "superseded"
    if redeemed:
        return "redeemed"
    return "shared" if shared else "generated"


def masked(secret: str) -> str:
    """Return what may be shown of a secret: the last four characters of a long one, nothing of a short one."""
    return "…" if len(secret) < MASK_WHOLE_BELOW_CHARACTERS else f"…{secret[-4:]}"


# After whatever may be recorded.
FOREVER: Final = datetime.max.replace(tzinfo=UTC)


class When(NamedTuple):
    """The moment a command arrived, and the moment it says it is true for: usually the same, never a later one."""

    now: datetime
    at: datetime

    @property
    def late(self) -> bool:
        """Whether somebody says that it happened earlier than it is recorded."""
        return self.at < self.now

    @property
    def horizon(self) -> datetime:
        """The last effective time that counts: what happens now meets all that is known, though clocks may differ."""
        return self.at if self.late else FOREVER


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open interval [starts_at, expires_at) in which a code is valid; both aware, in UTC."""

    starts_at: datetime
    expires_at: datetime

    def contains(self, moment: datetime) -> bool:
        """Tell whether the moment lies inside: the first instant does, the last does not."""
        return self.starts_at <= moment < self.expires_at

    def started_by(self, moment: datetime) -> bool:
        """Tell whether the window has begun at the moment."""
        return moment >= self.starts_at

    def ended_by(self, moment: datetime) -> bool:
        """Tell whether the window is over at the moment."""
        return moment >= self.expires_at


@dataclass(frozen=True, slots=True)
class Policy:
    """What TikTok's sources disagree on, and therefore is configuration.

    Lengths of 7, 30, 60 and 365 days stand in its API; 180 also appears in two clients of it. Whether an expired code
    can be revived is answered with yes by its error table and with no by one platform.
    """

    allowed_days: tuple[int, ...] = (7, 30, 60, 365)
    extend_after_expiry: bool = True

    @property
    def longest(self) -> timedelta:
        """The longest allowed window."""
        return timedelta(days=max(self.allowed_days))


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something: pseudonymous ids alone, a person's name lives with the key and can be erased there."""

    key_id: str
    role: Role | Literal["clock"]
    subject: str | None = None

    @property
    def source(self) -> Source:
        """Who thereby asserts the fact: it follows the role."""
        match self.role:
            case "creator" | "brand" | "clock":
                return self.role
            case _:
                return "operator"


CLOCK = Actor(key_id="clock", role="clock")
