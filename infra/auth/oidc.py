"""Bearer tokens: JSON Web Tokens (RFC 7519) that an issuer of the settings signed for us, checked as RFC 8725 says.

A token is refused unless its issuer is configured, its signature is one of the issuer's own keys by the one algorithm
that goes with that key, and its audience and times are right. Nothing in its head but `alg` and `kid` is looked at.
"""

from __future__ import annotations

import base64
import binascii
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import jwt
import orjson

from infra.auth.jwks import ALGORITHMS, KeySet
from infra.errors import TokenRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.values import Role
    from infra.auth.api_keys import Subjects
    from infra.auth.oidc_issuers import Issuer

MAX_TOKEN_CHARACTERS: Final = 8_192
# Clocks of others may differ from ours by so much.
SKEW: Final = timedelta(seconds=60)
MAX_SUBJECT_CHARACTERS: Final = 255

_PARTS: Final = 3
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_S: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_SIGNED_BY: Final = frozenset(ALGORITHMS.values())
_OPTIONS: Final[Any] = {
    "require": ["iss", "sub", "aud", "exp"],
    # By the clock of the application, below, and again with each request.
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
}
_REASONS: Final[dict[type[Exception], str]] = {
    jwt.InvalidAudienceError: "The token is meant for another audience.",
    jwt.MissingRequiredClaimError: "The token lacks one of the claims iss, sub, aud and exp.",
    jwt.InvalidSignatureError: "The token's signature is not valid.",
}
_MALFORMED: Final = "The token cannot be read."
_UNKNOWN_KEY: Final = "The token names a key that its issuer does not have, or a key for another algorithm."


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token was signed for.

    Attributes:
        issuer: who signed it.
        subject: what the issuer calls its bearer.
        since: when it may be used first, and `until` when no longer, our clocks' difference included.

    """

    issuer: str
    subject: str
    ledger: str
    role: Role
    subjects: Subjects
    since: datetime
    until: datetime

    def refuse_untimely(self, now: datetime) -> None:
        """Raise `TokenRefused` where the token is not valid yet, or no longer."""
        _refuse_untimely(self.since, self.until, now)


class Tokens:
    """Verifies tokens."""

    def __init__(self, issuers: Sequence[Issuer], clock: Callable[[], float] = time.monotonic) -> None:
        """Take those whose tokens count, and the clock by which their keys grow old."""
        self._issuers = {issuer.issuer: (issuer, KeySet(issuer, clock)) for issuer in issuers}

    @property
    def changes(self) -> int:
        """How often the issuers' keys have changed: what was verified before is to be verified again."""
        return sum(keys.changes for _, keys in self._issuers.values())

    def trusts(self, issuer: str) -> bool:
        """Tell whether an issuer's keys are known as they are now, more or less; if not quite, see to it."""
        return self._issuers[issuer][1].trusted()

    async def stop(self) -> None:
        """End what runs beside."""
        for _, keys in self._issuers.values():
            await keys.stop()

    async def verified(self, token: str, now: datetime) -> Grant:
        """Return what a token was signed for.

        Raises:
            TokenRefused: it cannot be trusted.
            NotAllowed: it can, and its claims open nothing here.
            Unavailable: the keys of its issuer cannot be fetched.

        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenRefused(f"The token is longer than {MAX_TOKEN_CHARACTERS:,} characters.")
        header, claimed = _objects(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in _SIGNED_BY:
            raise TokenRefused("The token is not signed with RS256, ES256 or EdDSA.")
        if "crit" in header or not isinstance(key_id, str | None):
            raise TokenRefused(_MALFORMED)
        # Who says to have signed it, so that it is known whose keys to try; believed only once one of them fits.
        said = claimed.get("iss")
        if not isinstance(said, str) or said not in self._issuers:
            raise TokenRefused("Tokens of this issuer are not accepted.")
        issuer, keys = self._issuers[said]
        key = await keys.key(key_id, algorithm)
        if key is None:
            raise TokenRefused(_UNKNOWN_KEY)
        audience = [issuer.audience] if isinstance(issuer.audience, str) else list(issuer.audience)
        try:
            claims = jwt.decode(
                token, key.key, [key.algorithm], options=_OPTIONS, audience=audience, issuer=issuer.issuer
            )
        except (jwt.PyJWTError, RecursionError, ValueError) as error:
            reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), _MALFORMED)
            raise TokenRefused(reason) from None
        return _grant(issuer, claims, now)


def _grant(issuer: Issuer, claims: dict[str, Any], now: datetime) -> Grant:
    subject = claims["sub"]
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise TokenRefused(_MALFORMED)
    begins = [_moment(claims[name]) for name in ("iat", "nbf") if name in claims]
    since, until = max(begins, default=_EPOCH) - SKEW, _moment(claims["exp"]) + SKEW
    _refuse_untimely(since, until, now)
    role = issuer.role_of(claims)
    return Grant(
        issuer=issuer.issuer,
        subject=subject,
        ledger=issuer.ledger_of(claims),
        role=role,
        subjects=issuer.subjects_of(claims, role),
        since=since,
        until=until,
    )


def _refuse_untimely(since: datetime, until: datetime, now: datetime) -> None:
    if now >= until:
        raise TokenRefused("The token has expired. Get a new one from its issuer.")
    if now < since:
        raise TokenRefused("The token is not valid yet.")


def _objects(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read head and claims of a token whose signature nobody has looked at yet."""
    parts = token.split(".")
    try:
        head, claims = (orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (binascii.Error, ValueError):
        raise TokenRefused(_MALFORMED) from None
    if len(parts) != _PARTS or not isinstance(head, dict) or not isinstance(claims, dict):
        raise TokenRefused(_MALFORMED)
    return head, claims


def _moment(seconds: Any) -> datetime:
    """Read a time as tokens write it: seconds since 1970."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LAST_S:
        raise TokenRefused(_MALFORMED)
    return _EPOCH + timedelta(seconds=seconds)
