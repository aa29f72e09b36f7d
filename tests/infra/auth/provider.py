"""An identity provider that a test starts: an issuer that also signs people in, by authorization code with PKCE."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final
from urllib.parse import urlencode

from infra.auth.oidc_issuers import Issuer
from tests.infra.auth.issuing import DISCOVERY, KEYS, Answer, TestIssuer, in_json

CLIENT: Final = "console"
SECRET: Final = "a secret: with + and %"
AUTHORIZE: Final = "/authorize"
TOKEN: Final = "/token"


@dataclass
class Provider:
    """The provider as a test sees it.

    Attributes:
        claims: what its access tokens claim.
        identity: what its ID tokens claim in place of what is right.
        declines: whether it signs nobody in.
        opaque: whether its access tokens are no JSON Web Tokens.
        renewed: how often a token was renewed.

    """

    issuer: TestIssuer
    claims: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    declines: bool = False
    opaque: bool = False
    renewed: int = 0
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        url = self.issuer.url
        document = {
            "issuer": url,
            "jwks_uri": url + KEYS,
            "authorization_endpoint": url + AUTHORIZE,
            "token_endpoint": url + TOKEN,
        }
        self.issuer.answers[DISCOVERY] = in_json(document)
        self.issuer.handlers |= {AUTHORIZE: self._authorize, TOKEN: self._token}

    def configured(self, **fields: Any) -> Issuer:
        """Return the provider as the settings have it."""
        known = {"client_id": CLIENT, "client_secret": SECRET, "name": "Acme ID"}
        return self.issuer.configured(**{**known, **fields})

    def _authorize(self, query: dict[str, str], _: Message) -> Answer:
        """Sign somebody in, as if they had entered their password."""
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = f"code-{len(self._codes)}"
        self._codes[code] = query
        back = {"error": "access_denied"} if self.declines else {"code": code}
        address = f"{query['redirect_uri']}?{urlencode({**back, 'state': query['state'], 'iss': self.issuer.url})}"
        return 303, {"Location": address}, b""

    def _token(self, form: dict[str, str], headers: Message) -> Answer:
        name = base64.b64encode(f"{CLIENT}:a%20secret%3A%20with%20%2B%20and%20%25".encode()).decode()
        if headers["Authorization"] != f"Basic {name}":
            return in_json({"error": "invalid_client"}, 401)
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] != f"renewal-{self.renewed}":
                return in_json({"error": "invalid_grant"}, 400)
            self.renewed += 1
            return in_json(self._tokens({}))
        asked = self._codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return in_json({"error": "invalid_grant"}, 400)
        identity = {"aud": CLIENT, "nonce": asked["nonce"], "sub": self.claims.get("sub", "somebody"), **self.identity}
        return in_json(self._tokens(identity))

    def _tokens(self, identity: dict[str, Any]) -> dict[str, Any]:
        answer = {
            "token_type": "Bearer",
            "access_token": "opaque" if self.opaque else self.issuer.token(**self.claims),
            "refresh_token": f"renewal-{self.renewed}",
        }
        return answer | ({"id_token": self.issuer.token(**identity)} if identity else {})
