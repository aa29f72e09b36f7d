"""API keys as the database knows them: ledger, role, subjects and times, but never the text of a key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role

# Of each kind.
MAX_SUBJECTS: Final = 1_000

# The roles whose keys may show a secret again, unless the key was created without that right.
REVEALING: Final[frozenset[Role]] = frozenset({"creator", "operator", "admin"})

# A token identity has a row among the keys, too, but no text of its own.
Kind = Literal["key", "token"]

# What `api_key` reads, from `api_keys k` joined with `ledgers l`.
KEY_COLUMNS: Final = """
    k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids, k.created_at,
    k.expires_at, k.revoked_at, k.kind, k.may_reveal
"""

# False where the text, or a request with this Idempotency-Key, is known already.
MINT_KEY: Final = """
    SELECT mint_key(%(by_key)s, %(by_token)s, %(ledger_id)s, %(key_id)s, %(hash)s, %(kind)s, %(name)s, %(role)s,
                    %(creator_ids)s, %(brand_ids)s, %(advertiser_ids)s, %(expires_at)s, %(sealed_subject)s,
                    %(may_reveal)s, %(idempotency)s, %(request_hash)s)
"""


@dataclass(frozen=True, slots=True)
class Subjects:
    """The creators, brands and advertiser accounts that a key acts for; all empty where the role acts for everyone."""

    creator_ids: frozenset[str] = frozenset()
    brand_ids: frozenset[str] = frozenset()
    advertiser_ids: frozenset[str] = frozenset()

    def columns(self) -> dict[str, list[str]]:
        """Return the subjects by the columns of `api_keys` that hold them, sorted."""
        return {
            "creator_ids": sorted(self.creator_ids),
            "brand_ids": sorted(self.brand_ids),
            "advertiser_ids": sorted(self.advertiser_ids),
        }


def subjects_problem(role: Role, subjects: Subjects) -> str | None:
    """Say why a role cannot have these subjects; None where it can."""
    match role:
        case "creator":
            if not subjects.creator_ids or subjects.brand_ids or subjects.advertiser_ids:
                return "A key with the role creator needs one or more creator_ids, and no other subjects."
        case "brand":
            if subjects.creator_ids or not (subjects.brand_ids or subjects.advertiser_ids):
                return "A key with the role brand needs brand_ids, advertiser_ids or both, and no creator_ids."
        case _:
            if subjects != Subjects():
                return "Only keys with the role creator or brand have subjects. This role acts for everyone."
    return None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key, or one token identity with the rights of the token that was presented.

    Attributes:
        key_id: stays the same when the key's text changes; the actor that the log records.
        expires_at: when the key stops working; for a token identity, when the presented token does.
        kind: `key` for an API key, `token` for a token identity.
        may_reveal: whether the key may show secrets again, where its role may.
        last_used_at: to the minute; set where keys are listed.
        overlap_ends_at: until when the text before the last rotation works, too; set where keys are listed.
        subject: the issuer's name for the bearer of the tokens; set where keys are listed.
        request_key: the key that requests are hashed with, so that nobody can test a guessed request against a stored
            hash; set by the authenticator.
        actor_id: `key_id` as text.

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
    actor_id: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Spell the id, once for all requests."""
        object.__setattr__(self, "actor_id", str(self.key_id))

    @property
    def reveals(self) -> bool:
        """Whether the key may show secrets again."""
        return self.may_reveal and self.role in REVEALING

    def valid(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Authenticated:
    """What was found for one hash.

    Attributes:
        at: when it was looked up, by the monotonic clock.
        key: the key with this hash; None where there is none.
        ends_at: when this text of the key stops working, if it was replaced by a rotation.
        used: whether the key's first use is on record.
        served_by: the server that serves the key's ledger, if it is another one.

    """

    at: float
    key: ApiKey | None = None
    ends_at: datetime | None = None
    used: bool = False
    served_by: str | None = None

    def valid(self, now: datetime) -> bool:
        """Return whether there is a key, and its text is valid at `now`."""
        return self.key is not None and self.key.valid(now) and (self.ends_at is None or now < self.ends_at)


def api_key(row: Any) -> ApiKey:
    """Return the key of a row that begins with `KEY_COLUMNS`."""
    return ApiKey(
        key_id=row[0],
        ledger_id=row[1],
        ledger_name=row[2],
        name=row[3],
        role=row[4],
        subjects=Subjects(frozenset(row[5]), frozenset(row[6]), frozenset(row[7])),
        created_at=row[8],
        expires_at=row[9],
        revoked_at=row[10],
        kind=row[11],
        may_reveal=row[12],
    )
