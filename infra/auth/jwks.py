"""The public keys of issuers of tokens: fetched from them, remembered, and fetched again when they change.

Whoever sends a token that nobody signed can make us fetch, so that is bounded in every way: how often, how long, how
much. An issuer is asked over HTTPS at the address that was configured, or that it names itself in its discovery
document; no redirect is followed, and no address in a token is ever looked at.
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

from infra.auth.oidc_issuers import told_problem
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infra.auth.oidc_issuers import Issuer

DISCOVERY: Final = "/.well-known/openid-configuration"

# Keys of this age are asked for anew, beside; those of this age are no longer trusted.
REFRESH_AFTER_S: Final = 600.0
KEEP_S: Final = 3600.0
# An issuer is asked once in so many seconds, whatever keys tokens name; or again so long after a failure.
ASK_EVERY_S: Final = 30.0
ASK_AGAIN_S: Final = 5.0
WITHIN_S: Final = 5.0
MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192

# The one algorithm for each kind of key: what a token says of itself does not decide.
ALGORITHMS: Final[Mapping[tuple[str, str | None], str]] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}

log = logging.getLogger(__name__)


class IssuerError(Exception):
    """The issuer did not answer with keys."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of an issuer's."""

    key_id: str | None
    algorithm: str
    key: PyJWK


class KeySet:
    """The keys of one issuer."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        """Begin with none; they are fetched when the first token comes."""
        self._issuer = issuer
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._fetched_at = float("-inf")
        self._ask_from = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        # Counts the changes, so that what was verified with a key which is gone is verified again.
        self.changes = 0

    async def key(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        """Return the key of an id, or the only one that fits where a token names none; `None` if there is no such key.

        Raises:
            Unavailable: the issuer's keys are not known, and it does not tell them now.

        """
        found = self._matching(key_id, algorithm) if self.trusted() else None
        if found is not None:
            return found
        fetching = self._fetch()
        if fetching is not None:
            # Others wait for the same; who gives up does not end it.
            await asyncio.shield(fetching)
        if self._clock() - self._fetched_at >= KEEP_S:
            raise Unavailable("The keys of the token's issuer cannot be fetched. Try again in a moment.", 5)
        return self._matching(key_id, algorithm)

    def trusted(self) -> bool:
        """Tell whether the keys are young enough; those that grow old are fetched beside."""
        age = self._clock() - self._fetched_at
        if age > REFRESH_AFTER_S:
            self._fetch()
        return age < KEEP_S

    async def stop(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _matching(self, key_id: str | None, algorithm: str) -> SigningKey | None:
        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if key_id is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((key for key in fitting if key.key_id == key_id), None)

    def _fetch(self) -> asyncio.Task[None] | None:
        """Begin to fetch the keys, or join who does; `None` where the issuer was asked just now."""
        if self._fetching is None and self._clock() >= self._ask_from:
            self._fetching = asyncio.create_task(self._fetched(), name="keys of an issuer")
        return self._fetching

    async def _fetched(self) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                keys = await fetch_keys(self._issuer)
        except (IssuerError, httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            self._ask_from = self._clock() + ASK_AGAIN_S
            log.warning("The keys of issuer %s cannot be fetched: %s", self._issuer.issuer, _cause(error))
        else:
            self._fetched_at = self._clock()
            self._ask_from = self._fetched_at + ASK_EVERY_S
            if [_identity(key) for key in keys] != [_identity(key) for key in self._keys]:
                self._keys, self.changes = keys, self.changes + 1
        finally:
            self._fetching = None


async def fetch_keys(issuer: Issuer) -> list[SigningKey]:
    """Ask an issuer for its keys; those that are of no use here are left out.

    Raises:
        IssuerError: its answer is not what it should be.
        httpx.HTTPError: it cannot be reached.

    """
    async with httpx.AsyncClient(
        follow_redirects=False, trust_env=False, timeout=WITHIN_S, verify=ssl.create_default_context()
    ) as client:
        address = issuer.jwks_uri
        if address is None:
            told = await _json(client, issuer.issuer.rstrip("/") + DISCOVERY)
            if told.get("issuer") != issuer.issuer:
                raise IssuerError("its discovery document names another issuer")
            address = str(told.get("jwks_uri"))
            problem = told_problem(issuer.issuer, address)
            if problem is not None:
                raise IssuerError(f"its jwks_uri is not allowed: {problem}")
        listed = (await _json(client, address)).get("keys")
    if not isinstance(listed, list):
        raise IssuerError("its key set has no keys")
    found = [signing_key(one) for one in listed[:MAX_KEYS] if isinstance(one, dict)]
    return [key for key in found if key is not None]


def signing_key(jwk: Mapping[str, Any]) -> SigningKey | None:
    """Return a key of a key set, if signatures of ours can be verified with it."""
    key_id, crv, operations = jwk.get("kid"), jwk.get("crv"), jwk.get("key_ops", ["verify"])
    algorithm = ALGORITHMS.get((str(jwk.get("kty")), crv if isinstance(crv, str) else None))
    if (
        algorithm is None
        or not isinstance(key_id, str | None)
        or jwk.get("alg", algorithm) not in (algorithm, crv)  # RFC 9864 names an algorithm as its curve
        or jwk.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or "d" in jwk  # a private key, which nobody was meant to see
    ):
        return None
    try:
        key = PyJWK(dict(jwk), algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(key.key, RSAPublicKey) and not MIN_RSA_BITS <= key.key.key_size <= MAX_RSA_BITS:
        return None
    return SigningKey(key_id, algorithm, key)


async def _json(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    """Fetch one JSON object, of a bounded size."""
    body = b""
    # Not compressed: what is small on the wire must not become large here.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with client.stream("GET", address, headers=headers) as answer:
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


def _identity(key: SigningKey) -> tuple[str | None, str, Any]:
    return key.key_id, key.algorithm, key.key.key


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__
