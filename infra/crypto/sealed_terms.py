"""The words that somebody searched the trail for, as the log of accesses keeps them: encrypted, whatever they are.

Who looks for a person's name, or pastes a secret into the wrong field, leaves it where nobody expects it. The key is
the ledger's own, and equal words look alike, so that reads which are told together are known to be the same.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.crypto.envelope import LedgerKeys

_PURPOSE: Final = "words of searches"
_FIELD: Final = "q"
_SEALED: Final = "sealed"
_NONCE_BYTES: Final = 12


def seal_search_terms(keys: LedgerKeys, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was asked with its words encrypted; the same where it has none."""
    words = asked.get(_FIELD)
    if not isinstance(words, str):
        return asked
    key, text = keys.derived(_PURPOSE), words.encode()
    # Made of key and text: two different texts never share one, and AES-GCM asks for no more than that.
    nonce = hashlib.blake2b(text, digest_size=_NONCE_BYTES, key=key, person=b"nonce").digest()
    sealed = base64.b64encode(nonce + AESGCM(key).encrypt(nonce, text, None)).decode()
    return {**asked, _FIELD: {_SEALED: sealed}}


def unseal_search_terms(keys: LedgerKeys, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was asked with its words in clear again."""
    words = asked.get(_FIELD)
    if not isinstance(words, dict):
        return asked
    sealed = base64.b64decode(words[_SEALED])
    text = AESGCM(keys.derived(_PURPOSE)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    return {**asked, _FIELD: text.decode()}
