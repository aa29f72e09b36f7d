"""JSON Web Key Sets (RFC 7517): the public keys of the issuers of tokens, fetched, cached and refreshed.

Anyone who sends a forged token can trigger a fetch, so fetches are bounded in number, time and size. An issuer is asked
over HTTPS, at the configured address or at the one in its discovery document. No redirect is followed, and no address
in a token is used.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK, PyJWTError

from infra.auth.oidc_issuers import advertised_address_problem
from infra.ending import cancelled
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infra.auth.oidc_issuers import Issuer

DISCOVERY: Final = "/.well-known/openid-configuration"

# Keys of the first age are fetched again in the background; keys of the second are no longer trusted.
REFRESH_AFTER_S: Final = 600.0
KEEP_S: Final = 3600.0
# An issuer is asked at most once in this time, whatever keys tokens name; sooner after a failure.
MIN_FETCH_INTERVAL_S: Final = 30.0
RETRY_AFTER_S: Final = 5.0
TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192

# The one algorithm for each kind of key. It does not depend on what a token claims.
ALGORITHMS: Final[Mapping[tuple[str, str | None], str]] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}

log = logging.getLogger(__name__)


class IssuerError(Exception):
    """The issuer did not answer with usable keys."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of an issuer."""

    key_id: str | None
    algorithm: str
    key: PyJWK


class KeySet:
    """The key set of one issuer, cached."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        """Start empty: the keys are fetched when the first token comes. The clock is in seconds."""
        self._issuer = issuer
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._fetched_at = float("-inf")
        self._next_fetch_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        # Counts changes of the keys, so that a token verified with a key that is gone is verified again.
        self.changes = 0

    async def key(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """Return the key with this id, or the only one for the algorithm where a token names no id; None without one.

        Raises:
            Unavailable: the issuer's keys are not known, and cannot be fetched now.

        """
        found = self._matching(key_id, algorithm) if self.trusted() else None
        if found is not None:
            return found
        fetching = self._fetch()
        if fetching is not None:
            # Other requests wait for the same fetch, so a cancelled one must not cancel it.
            await asyncio.shield(fetching)
        if self._clock() - self._fetched_at >= KEEP_S:
            raise Unavailable("The keys of the token's issuer cannot be fetched. Try again in a moment.", 5)
        return self._matching(key_id, algorithm)

    def trusted(self) -> bool:
        """Return whether the keys are recent enough to trust; ageing ones are fetched again in the background."""
        age = self._clock() - self._fetched_at
        if age > REFRESH_AFTER_S:
            self._fetch()
        return age < KEEP_S

    async def stop(self) -> None:
        """Cancel a running fetch."""
        if self._fetching is not None:
            await cancelled([self._fetching])

    def _matching(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((key for key in fitting if key.key_id == key_id), None)

    def _fetch(self) -> asyncio.Task[None] | None:
        """Start fetching the keys, or return the fetch that is running; None where the issuer was asked just now."""
        if self._fetching is None and self._clock() >= self._next_fetch_at:
            self._fetching = asyncio.create_task(self._fetched(), name="jwks fetch")
        return self._fetching

    async def _fetched(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                keys = await fetch_keys(self._issuer)
        except (IssuerError, httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            self._next_fetch_at = self._clock() + RETRY_AFTER_S
            log.warning("The keys of issuer %s cannot be fetched: %s", self._issuer.issuer, _cause(error))
        else:
            self._fetched_at = self._clock()
            self._next_fetch_at = self._fetched_at + MIN_FETCH_INTERVAL_S
            if [_fingerprint(key) for key in keys] != [_fingerprint(key) for key in self._keys]:
                self._keys, self.changes = keys, self.changes + 1
        finally:
            self._fetching = None


async def fetch_keys(issuer: Issuer) -> list[SigningKey]:
    """Fetch an issuer's keys, without those that cannot verify tokens here.

    Raises:
        IssuerError: the answer is not a key set.
        httpx.HTTPError: the issuer cannot be reached.

    """
    async with httpx.AsyncClient(
        follow_redirects=False, trust_env=False, timeout=TIMEOUT_S, verify=ssl.create_default_context()
    ) as client:
        address = issuer.jwks_uri
        if address is None:
            document = await fetch_json(client, issuer.issuer.rstrip("/") + DISCOVERY)
            if document.get("issuer") != issuer.issuer:
                raise IssuerError("its discovery document names another issuer")
            address = str(document.get("jwks_uri"))
            problem = advertised_address_problem(issuer.issuer, address)
            if problem is not None:
                raise IssuerError(f"its jwks_uri is not allowed: {problem}")
        listed = (await fetch_json(client, address)).get("keys")
    if not isinstance(listed, list):
        raise IssuerError("its key set has no keys")
    found = [signing_key(one) for one in listed[:MAX_KEYS] if isinstance(one, dict)]
    return [key for key in found if key is not None]


def signing_key(jwk: Mapping[str, Any]) -> SigningKey | None:
    """Return a key of a key set; None where it cannot verify tokens here."""
    key_id, crv, operations = jwk.get("kid"), jwk.get("crv"), jwk.get("key_ops", ["verify"])
    algorithm = ALGORITHMS.get((str(jwk.get("kty")), crv if isinstance(crv, str) else None))
    if (
        algorithm is None
        or not isinstance(key_id, str | None)
        or jwk.get("alg", algorithm) not in (algorithm, crv)  # RFC 9864 names an algorithm as its curve
        or jwk.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or "d" in jwk  # a private key, published by mistake
    ):
        return None
    try:
        key = PyJWK(dict(jwk), algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(key.key, RSAPublicKey) and not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
        return None
    return SigningKey(key_id, algorithm, key)


async def fetch_json(
    client: httpx.AsyncClient,
    address: str,
    *,
    form: Mapping[str, str] | None = None,
    login: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Fetch one JSON object of at most `MAX_BYTES`, or post a form for it.

    Raises:
        IssuerError: the answer is something else.
        httpx.HTTPError: there is none.

    """
    body = b""
    # Uncompressed, so that a small response cannot become a large one here.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    method = "GET" if form is None else "POST"
    async with client.stream(method, address, headers=headers, data=form, auth=login) as answer:
        if answer.status_code != httpx.codes.OK:
            raise IssuerError(f"{address} responded with status {answer.status_code}")
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > MAX_BYTES:
                raise IssuerError(f"the response of {address} is larger than {MAX_BYTES // 1024} KiB")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise IssuerError(f"the response of {address} is not a JSON object")
    return content


def _fingerprint(key: SigningKey) -> tuple[str | None, str, Any]:
    return key.key_id, key.algorithm, key.key.key


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
