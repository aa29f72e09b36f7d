"""Witnesses as an operator configures them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from infra.proof.checkpoints import ED25519
from infra.proof.notes import VerifierKey


@dataclass(frozen=True, slots=True)
class ConfiguredWitness:
    """A witness as it is configured: its verifier key, and the URL before `/add-checkpoint`."""

    key: VerifierKey
    url: str


def configured_witness(text: str) -> ConfiguredWitness:
    """Return the witness of a text such as `w1.example+…+… https://w1.example`.

    Raises:
        ValueError: it is none.

    """
    key, _, url = text.strip().partition(" ")
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment or parts.username:
        raise ValueError
    parsed = VerifierKey.parse(key)
    if parsed.kind == ED25519:
        raise ValueError  # the key of a log, which signs no time
    return ConfiguredWitness(parsed, url.strip())
