"""OpenID Connect tokens: JSON Web Tokens (RFC 7519) of configured issuers, verified as RFC 8725 recommends.

A token is refused unless its issuer is configured, one of the issuer's own keys signed it with the one algorithm for
that kind of key, and its audience and times are right. Of its header, only `alg`, `kid` and `crit` are read.
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
# How far the issuers' clocks may differ from ours.
SKEW: Final = timedelta(seconds=60)
MAX_SUBJECT_CHARACTERS: Final = 255

_PARTS: Final = 3
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_S: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_SIGNED_BY: Final = frozenset(ALGORITHMS.values())
_OPTIONS: Final[Any] = {
    "require": ["iss", "sub", "aud", "exp"],
    # Times are checked below, by the application's clock, and again with each request.
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
    """The rights that a token grants.

    Attributes:
        issuer: who signed the token.
        subject: the issuer's name for the bearer.
        ledger: the name of the ledger that the token opens.
        role: the role that the bearer acts in.
        subjects: whom the bearer acts for.
        since: when the token becomes valid, less `SKEW`.
        until: when it stops being valid, plus `SKEW`.

    """

    issuer: str
    subject: str
    ledger: str
    role: Role
    subjects: Subjects
    since: datetime
    until: datetime

    def refuse_untimely(self, now: datetime) -> None:
        """Raise `TokenRefused` where the token is not valid yet, or has expired."""
        _refuse_untimely(self.since, self.until, now)


class Tokens:
    """Verifies the tokens of the configured issuers."""

    def __init__(self, issuers: Sequence[Issuer], clock: Callable[[], float] = time.monotonic) -> None:
        """Take the issuers, and the clock in seconds by which their keys age."""
        self._issuers = {issuer.issuer: (issuer, KeySet(issuer, clock)) for issuer in issuers}

    @property
    def changes(self) -> int:
        """How often the issuers' keys have changed; a token verified before a change must be verified again."""
        return sum(keys.changes for _, keys in self._issuers.values())

    def trusts(self, issuer: str) -> bool:
        """Return whether an issuer's keys are recent enough to trust; ageing ones are fetched again meanwhile."""
        return self._issuers[issuer][1].trusted()

    async def stop(self) -> None:
        """Stop the background tasks."""
        for _, keys in self._issuers.values():
            await keys.stop()

    async def verified(self, token: str, now: datetime) -> Grant:
        """Return the rights that a token grants.

        Raises:
            TokenRefused: the token cannot be trusted.
            NotAllowed: its claims open nothing here.
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
        # The claimed issuer says whose keys to try. It is believed only once one of those keys fits.
        claimed_issuer = claimed.get("iss")
        if not isinstance(claimed_issuer, str) or claimed_issuer not in self._issuers:
            raise TokenRefused("Tokens of this issuer are not accepted.")
        issuer, keys = self._issuers[claimed_issuer]
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
    """Return header and claims of a token whose signature is not verified yet."""
    parts = token.split(".")
    try:
        head, claims = (orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (binascii.Error, ValueError):
        raise TokenRefused(_MALFORMED) from None
    if len(parts) != _PARTS or not isinstance(head, dict) or not isinstance(claims, dict):
        raise TokenRefused(_MALFORMED)
    return head, claims


def _moment(seconds: Any) -> datetime:
    """Return the time that a token gives in seconds since 1970."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LAST_S:
        raise TokenRefused(_MALFORMED)
    return _EPOCH + timedelta(seconds=seconds)
