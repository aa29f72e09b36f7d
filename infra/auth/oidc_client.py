"""Signing people in at an OpenID Connect issuer, as its client: the authorization code flow with PKCE.

    browser → console → issuer → browser → console → issuer: a token
              begin                        finish

As RFC 9700 recommends: a code can be exchanged only by the browser that began (state, PKCE), the ID token is for this
sign-in (nonce), and addresses come from the issuer's own discovery document. What a person may do is decided by the
token, as for programs: the access token if it is one that this server reads, or else the ID token.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import httpx
import orjson

from infra.auth.jwks import DISCOVERY, TIMEOUT_S, IssuerError, fetch_json
from infra.auth.oidc_issuers import advertised_address_problem
from infra.auth.token_identities import is_token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infra.auth.oidc_issuers import Issuer

# An issuer moves rarely; its addresses are looked up again after this time.
KEEP_ADDRESSES_S: Final = 600.0
RANDOM_BYTES: Final = 32
MAX_CODE_CHARACTERS: Final = 4_096

log = logging.getLogger(__name__)


class SignInFailed(Exception):
    """The issuer did not sign anybody in. The message says why, and shows nothing of what was sent."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in that has begun: what must come back, and what only the one who began knows.

    Attributes:
        address: the issuer's, to which the browser goes.
        state: what comes back with the code.
        nonce: what the ID token must have.
        verifier: what proves to the issuer that the code was asked for here.

    """

    address: str
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What the issuer answered: the token that is presented, and what gets a new one once it has expired."""

    token: str = field(repr=False)
    renewal: str | None = field(repr=False)


class OidcClient:
    """The client of one issuer."""

    def __init__(self, issuer: Issuer, clock: Callable[[], float] = time.monotonic) -> None:
        """Take an issuer with a client id; the clock is in seconds."""
        self.issuer = issuer
        self._clock = clock
        self._addresses: Mapping[str, str] = {}
        self._known_until = float("-inf")

    @property
    def name(self) -> str:
        """What the issuer is called where people choose it."""
        return self.issuer.name or self.issuer.issuer

    async def begin(self, redirect_uri: str) -> Begun:
        """Begin to sign somebody in, who comes back to an address.

        Raises:
            SignInFailed: the issuer cannot be reached.

        """
        address = (await self._found())["authorization_endpoint"]
        state, nonce, verifier = (secrets.token_urlsafe(RANDOM_BYTES) for _ in range(3))
        digest = hashlib.sha256(verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self.issuer.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(dict.fromkeys(("openid", *self.issuer.scopes))),
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        separator = "&" if "?" in address else "?"
        return Begun(f"{address}{separator}{urlencode(asked)}", state, nonce, verifier)

    async def finish(self, code: str, *, nonce: str, verifier: str, redirect_uri: str) -> SignedIn:
        """Exchange the code that somebody came back with.

        Raises:
            SignInFailed: the issuer refused, or answered something else.

        """
        if len(code) > MAX_CODE_CHARACTERS:
            raise SignInFailed("The identity provider sent a code that is too long.")
        asked = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        answer = await self._exchange({**asked, "code_verifier": verifier})
        claims = _claims(answer.get("id_token"))
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        # It came from the issuer itself over TLS, which stands for its signature (OpenID Connect Core, 3.1.3.7).
        if (
            claims.get("iss") != self.issuer.issuer
            or self.issuer.client_id not in audiences
            or not secrets.compare_digest(str(claims.get("nonce")).encode(), nonce.encode())
        ):
            raise SignInFailed("The identity provider's answer is not for this sign-in. Begin again.")
        return _signed_in(answer, claims.get("sub"))

    async def renew(self, renewal: str) -> SignedIn:
        """Get a new token for somebody whose old one has expired.

        Raises:
            SignInFailed: the issuer refused, or cannot be reached.

        """
        answer = await self._exchange({"grant_type": "refresh_token", "refresh_token": renewal})
        signed_in = _signed_in(answer, None)
        # Issuers that do not change it leave it out.
        return SignedIn(signed_in.token, signed_in.renewal or renewal)

    async def _exchange(self, asked: Mapping[str, str]) -> dict[str, Any]:
        address = (await self._found())["token_endpoint"]
        assert self.issuer.client_id is not None  # noqa: S101 - there is no client of an issuer without
        if self.issuer.client_secret is None:
            form, login = {**asked, "client_id": self.issuer.client_id}, None
        else:
            # Encoded as in a form, and only then as a name and a password (RFC 6749, 2.3.1).
            secret = self.issuer.client_secret.get_secret_value()
            form, login = dict(asked), (quote(self.issuer.client_id, safe=""), quote(secret, safe=""))
        return await self._asked(address, form, login)

    async def _found(self) -> Mapping[str, str]:
        """Return the issuer's addresses, from its discovery document."""
        if self._clock() < self._known_until:
            return self._addresses
        document = await self._asked(self.issuer.issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self.issuer.issuer:
            raise self._failed("its discovery document names another issuer")
        found = {name: str(document.get(name)) for name in ("authorization_endpoint", "token_endpoint")}
        for name, address in found.items():
            problem = advertised_address_problem(self.issuer.issuer, address)
            if problem is not None:
                raise self._failed(f"its {name} is not allowed: {problem}")
        self._addresses, self._known_until = found, self._clock() + KEEP_ADDRESSES_S
        return found

    async def _asked(
        self, address: str, form: Mapping[str, str] | None = None, login: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(
                follow_redirects=False, trust_env=False, timeout=TIMEOUT_S, verify=ssl.create_default_context()
            ) as client:
                return await fetch_json(client, address, form=form, login=login)
        except (IssuerError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(str(error) or type(error).__name__) from None

    def _failed(self, why: str) -> SignInFailed:
        log.warning("Signing in at %s failed: %s", self.issuer.issuer, why)
        return SignInFailed("The identity provider did not answer as it should. Try again in a moment.")


def _signed_in(answer: Mapping[str, Any], subject: Any) -> SignedIn:
    access, identity, renewal = (answer.get(name) for name in ("access_token", "id_token", "refresh_token"))
    token = next((one for one in (access, identity) if isinstance(one, str) and is_token(one)), None)
    if token is None:
        raise SignInFailed("The identity provider answered without a token that this server can read.")
    if subject is not None and _claims(token).get("sub") != subject:
        raise SignInFailed("The identity provider's tokens name different people.")
    return SignedIn(token, renewal if isinstance(renewal, str) else None)


def _claims(token: Any) -> dict[str, Any]:
    """Return what a token claims. Its signature is not verified."""
    try:
        part = str(token).split(".")[1]
        claims = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        claims = None
    if not isinstance(claims, dict):
        raise SignInFailed("The identity provider answered without a token that can be read.")
    return claims
