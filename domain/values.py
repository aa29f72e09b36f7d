"""Small values of which events and commands consist."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final, Literal, NamedTuple, cast

Role = Literal["admin", "operator", "creator", "brand", "auditor", "subscriber"]
# The roles whose keys act for a creator, and for a brand. `RECORDED_BY` of an event names the roles that can record it,
# and the database refuses it from any other role. The clock is a role of its own.
CREATOR_SIDE = ("creator", "operator", "admin")
BRAND_SIDE = ("brand", "operator", "admin")
Source = Literal["creator", "brand", "operator", "platform", "clock"]
Channel = Literal["dm", "email", "text", "other"]
State = Literal["generated", "shared", "redeemed", "superseded", "expired", "revoked"]

# The caller chooses the ids. The alphabet keeps them safe in paths, headers and logs. `.` and `..` are not ids, because
# every client removes them from a path.
ID_PATTERN = (
    r"^([A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,127}|\.[A-Za-z0-9_:@-][A-Za-z0-9._:@-]{0,126}|\.\.[A-Za-z0-9._:@-]{1,126})$"
)

# Short secrets are masked completely: four of twelve characters would be a third of the secret.
MASK_WHOLE_BELOW_CHARACTERS = 16


class Sealed(str):
    """Text that leaves the process only encrypted, such as the secret of a code, or a note.

    The type decides: every field of an event with this type goes into the sealed body, never into the unsealed one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the text where a value is printed by its repr, as in an event or a stack frame. `str` returns it."""
        return "Sealed('…')"


def state_of(*, revoked: bool, ended: bool, redeemed: bool, shared: bool, superseded: bool = False) -> State:
    """Return the state of a code: the first of revoked, expired, superseded, redeemed and shared that is true."""
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
    """Return what may be shown of a secret: the last four characters of a long secret, nothing of a short one."""
    return "…" if len(secret) < MASK_WHOLE_BELOW_CHARACTERS else f"…{secret[-4:]}"


# Later than everything that can be recorded.
FOREVER: Final = datetime.max.replace(tzinfo=UTC)


class When(NamedTuple):
    """When a command arrived (`now`), and when it happened (`at`): usually the same, and never later."""

    now: datetime
    at: datetime

    @property
    def late(self) -> bool:
        """Whether it happened earlier than it is recorded."""
        return self.at < self.now

    @property
    def horizon(self) -> datetime:
        """The last effective time that counts: what happens now meets all that is known, even if clocks differ."""
        return self.at if self.late else FOREVER


class Window(NamedTuple):
    """The half-open interval [starts_at, expires_at) in which a code is valid. Both times are aware, in UTC."""

    starts_at: datetime
    expires_at: datetime

    def contains(self, moment: datetime) -> bool:
        """Return whether the time is inside the window: the start is, the end is not."""
        return self.starts_at <= moment < self.expires_at

    def started_by(self, moment: datetime) -> bool:
        """Return whether the window has started at the time."""
        return moment >= self.starts_at

    def ended_by(self, moment: datetime) -> bool:
        """Return whether the window has ended at the time."""
        return moment >= self.expires_at


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules on which TikTok's sources disagree, and which are therefore configurable.

    Its API has lengths of 7, 30, 60 and 365 days; two clients of it also have 180. Its error table says that an
    expired code can be revived, and one platform says that it cannot. Whether a code may be recorded whose secret is
    not known is for those to say who answer for the record.
    """

    allowed_days: tuple[int, ...] = (7, 30, 60, 365)
    extend_after_expiry: bool = True
    codes_without_secret: bool = False

    @property
    def longest(self) -> timedelta:
        """The longest allowed window."""
        return _longest(self.allowed_days)


# Each new code is compared with it, and the policy stays the same.
@cache
def _longest(allowed_days: tuple[int, ...]) -> timedelta:
    return timedelta(days=max(allowed_days))


class Actor(NamedTuple):
    """The author of an event, by pseudonymous ids. A person's name is stored with the key and can be erased there."""

    key_id: str
    role: Role | Literal["clock"]
    subject: str | None = None

    @property
    def source(self) -> Source:
        """Who reports the fact. It follows from the role."""
        return "operator" if self.role not in {"creator", "brand", "clock"} else cast("Source", self.role)


CLOCK = Actor(key_id="clock", role="clock")
