"""Tokens for brokers that want OAUTHBEARER: got with the client's own credentials (RFC 6749, section 4.4), and kept."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import quote, urlencode

TIMEOUT_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 64 * 1024
# A token is replaced so long before it ends, and one that does not say when it ends is kept so long.
BEFORE_END_S: Final = 30.0
UNSAID_S: Final = 60.0
_NOTHING: Final = "The authorization server of Kafka answers without a token. Check SPARKLEDGER_KAFKA_OAUTH_TOKEN_URL."


class TokenRefused(Exception):
    """The authorization server gives no token: a person must check the settings."""


class TokenUnavailable(Exception):
    """The authorization server cannot be reached."""


class ClientCredentials:
    """Gets tokens from an authorization server, and gives the same one to every client until it is about to end."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str | None) -> None:
        """Take the server's token endpoint, the client's name and secret, and the scope to ask for."""
        credentials = f"{quote(client_id, safe='')}:{quote(client_secret, safe='')}".encode()
        self._request = urllib.request.Request(  # noqa: S310 - the settings allow only http and https
            url,
            urlencode({"grant_type": "client_credentials"} | ({} if scope is None else {"scope": scope})).encode(),
            {
                "Authorization": f"Basic {base64.b64encode(credentials).decode()}",
                "Content-Type": "application/x-www-form-urlencoded",
                "Accept": "application/json",
            },
        )
        self._one_at_a_time = threading.Lock()
        self._token = ""
        self._until = 0.0

    def token(self) -> str:
        """Return a token that is valid for a while.

        Raises:
            TokenRefused: the authorization server refuses the client, or answers what is no token.
            TokenUnavailable: it cannot be reached.

        """
        with self._one_at_a_time:
            if time.monotonic() >= self._until:
                answer = self._answer()
                token, lifetime_s = answer.get("access_token"), answer.get("expires_in", UNSAID_S)
                if not isinstance(token, str) or not isinstance(lifetime_s, int | float):
                    raise TokenRefused(_NOTHING)
                self._token = token
                self._until = time.monotonic() + max(0.0, lifetime_s - BEFORE_END_S)
            return self._token

    def _answer(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self._request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
                answer = json.loads(response.read(ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as error:
            message = (
                f"The authorization server of Kafka answers {error.code}. Check the user name, password and scope."
            )
            raise TokenRefused(message) from error
        except (OSError, ValueError) as error:
            message = f"The authorization server of Kafka cannot be reached ({type(error).__name__})."
            raise TokenUnavailable(message) from error
        if not isinstance(answer, dict):
            raise TokenRefused(_NOTHING)
        return answer
