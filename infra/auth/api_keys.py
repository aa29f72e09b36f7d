"""What is known of a key: whose it is, in which role, for which subjects; never its text, which only its holder has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role

# Of each kind.
MAX_SUBJECTS: Final = 1_000

# The roles that may show secrets again, each key unless that was withheld from it.
REVEALING: Final[frozenset[Role]] = frozenset({"creator", "operator", "admin"})

# A token's bearer is known by a key as well, which has no text of its own.
Kind = Literal["key", "token"]


@dataclass(frozen=True, slots=True)
class Subjects:
    """Whom a key acts for; empty sets for roles that act for nobody in particular."""

    creator_ids: frozenset[str] = frozenset()
    brand_ids: frozenset[str] = frozenset()
    advertiser_ids: frozenset[str] = frozenset()


def subjects_problem(role: Role, subjects: Subjects) -> str | None:
    """Say what is wrong with a role's subjects: creators and brands act for somebody, the others for everyone."""
    match role:
        case "creator":
            if not subjects.creator_ids or subjects.brand_ids or subjects.advertiser_ids:
                return "A creator's key names one or more creator_ids, and nothing else."
        case "brand":
            if subjects.creator_ids or not (subjects.brand_ids or subjects.advertiser_ids):
                return "A brand's key names brand_ids, advertiser_ids or both, and no creator_ids."
        case _:
            if subjects != Subjects():
                return "Only keys of creators and brands have subjects; this role acts for everyone."
    return None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is known.

    Attributes:
        key_id: names it for good, also when its text changes; the actor in the log.
        expires_at: when it stops working; for a token's bearer, when this token does.
        kind: whether it is presented itself, or stands for the bearer of tokens.
        may_reveal: whether it may show secrets again, where its role may.
        last_used_at: to the minute; where keys are listed.
        overlap_ends_at: until when the text before the last rotation works too; where keys are listed.
        subject: what the issuer calls a token's bearer; where keys are listed.
        request_key: what its requests are hashed with, so that no guess at one can be tested against its hash; where it
            was presented.

    """

    key_id: UUID
    ledger_id: int
    ledger_name: str
    name: str | None
    role: Role
    subjects: Subjects
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    kind: Kind = "key"
    may_reveal: bool = True
    last_used_at: datetime | None = None
    overlap_ends_at: datetime | None = None
    subject: str | None = None
    request_key: bytes = field(default=b"", repr=False, compare=False)

    @property
    def reveals(self) -> bool:
        """Whether it shows secrets again: its role may, and it was not withheld from this key."""
        return self.may_reveal and self.role in REVEALING

    def valid(self, now: datetime) -> bool:
        """Tell whether the key may be used at a moment."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
