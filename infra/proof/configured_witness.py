"""Witnesses as an operator configures them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from infra.proof.checkpoints import ED25519
from infra.proof.notes import MalformedNote, VerifierKey


class WitnessRefused(Exception):
    """The configured witness cannot be used."""


@dataclass(frozen=True, slots=True)
class ConfiguredWitness:
    """A witness as it is configured: its verifier key, and the URL before `/add-checkpoint`."""

    key: VerifierKey
    url: str


def configured_witness(text: str) -> ConfiguredWitness:
    """Return the witness of a text such as `w1.example+…+… https://w1.example`.

    Raises:
        WitnessRefused: the key is none of a witness, or the URL has more than a host and a path.

    """
    key, _, url = text.strip().partition(" ")
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment or parts.username:
        raise WitnessRefused(f"The URL of a witness has a host and perhaps a path, and nothing else: {url}")
    try:
        parsed = VerifierKey.parse(key)
    except MalformedNote as error:
        raise WitnessRefused(f"The key {key} is not that of a witness: {error}") from error
    if parsed.kind == ED25519:
        raise WitnessRefused(f"The key {key} is that of a log, and not of a witness.")
    return ConfiguredWitness(parsed, url.strip())
