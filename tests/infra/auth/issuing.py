"""An issuer of tokens that a test starts: real HTTP on this machine, real keys, and every way to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from infra.auth.oidc_issuers import Issuer

AUDIENCE: Final = "sparkledger"
DISCOVERY: Final = "/.well-known/openid-configuration"
KEYS: Final = "/keys"

# RSA keys take long to draw: one for all tests.
RSA_KEY: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)

Answer = tuple[int, dict[str, str], bytes]


def in_json(content: Any, status: int = 200) -> Answer:
    """Return an answer in JSON."""
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


@dataclass
class Signer:
    """A private key, and what the issuer tells of it."""

    key_id: str
    algorithm: str
    private: Any

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a key set lists it."""
        write: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[self.algorithm]
        told = write.to_jwk(self.private.public_key(), as_dict=True)
        return {**told, "kid": self.key_id, "use": "sig", "alg": self.algorithm}


def signer(algorithm: str, key_id: str | None = None) -> Signer:
    """Draw a key for an algorithm."""
    draw: dict[str, Callable[[], Any]] = {
        "RS256": lambda: RSA_KEY,
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }
    return Signer(key_id or f"key-{algorithm}", algorithm, draw[algorithm]())


@dataclass
class TestIssuer:
    """The issuer as a test sees it: what it signs with, what it answers, and what it was asked."""

    __test__ = False

    url: str = ""
    signers: list[Signer] = field(default_factory=lambda: [signer("ES256")])
    # By path; what stands here is answered instead.
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    # By path; what answers a query and the form that was posted, with the request's headers.
    handlers: dict[str, Callable[[dict[str, str], Message], Answer]] = field(default_factory=dict)
    # Nothing is answered while this is not set.
    open: threading.Event = field(default_factory=threading.Event)

    def configured(self, **fields: Any) -> Issuer:
        """Return the issuer as the settings have it: by default all its tokens are an auditor's of `main`."""
        known = {"issuer": self.url, "audience": AUDIENCE}
        if "ledger_claim" not in fields:
            known["ledger"] = "main"
        if "role_claim" not in fields:
            known["role"] = "auditor"
        return Issuer(**{**known, **fields})

    def token(self, *, by: Signer | None = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign a token for an hour; a claim of None is left out."""
        by = by or self.signers[0]
        now = int(time.time())
        all_claims = {"iss": self.url, "aud": AUDIENCE, "sub": "somebody", "iat": now, "exp": now + 3600, **claims}
        told = {name: value for name, value in all_claims.items() if value is not None}
        head = {"kid": by.key_id, **(headers or {})}
        return jwt.encode(
            told, by.private, by.algorithm, {name: value for name, value in head.items() if value is not None}
        )

    def answer(self, path: str, headers: Message | None = None) -> Answer:
        """Answer a request for a path, with its query or the form that was posted."""
        self.asked.append(path)
        self.open.wait(30)
        parts = urlsplit(path)
        if parts.path in self.handlers:
            return self.handlers[parts.path](dict(parse_qsl(parts.query)), headers or Message())
        if path in self.answers:
            return self.answers[path]
        if path == DISCOVERY:
            return in_json({"issuer": self.url, "jwks_uri": self.url + KEYS})
        if path == KEYS:
            return in_json({"keys": [one.public for one in self.signers]})
        return in_json({}, 404)


@contextmanager
def issuing() -> Iterator[TestIssuer]:
    """Run an issuer for as long as the block takes."""
    issuer = TestIssuer()
    issuer.open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(issuer.answer(self.path))

        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer(issuer.answer(f"{self.path}?{form}", self.headers))

        def _answer(self, answer: Answer) -> None:
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            # The client may have had enough.
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
