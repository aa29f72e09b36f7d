"""Sealed search terms: the words of a search, encrypted in the access log.

Somebody who searches for a person's name, or pastes a secret into the wrong field, leaves it where nobody expects it.
The key comes from the ledger's own. Equal terms have equal ciphertexts, so that equal reads are counted together.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from infra.crypto.envelope import NONCE_BYTES, SealingKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.crypto.envelope import LedgerKeys

_PURPOSE: Final = "words of searches"
_FIELD: Final = "q"
_SEALED: Final = "sealed"


def seal_search_terms(keys: LedgerKeys, query: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a query with its search terms sealed; a query without any is returned as it is."""
    terms = query.get(_FIELD)
    if not isinstance(terms, str):
        return query
    key, text = keys.derived(_PURPOSE), terms.encode()
    # Derived from key and text, so that two different texts never share a nonce, which is all that AES-GCM asks for.
    nonce = hashlib.blake2b(text, digest_size=NONCE_BYTES, key=key, person=b"nonce").digest()
    sealed = base64.b64encode(SealingKey(key).seal(text, None, nonce)).decode()
    return {**query, _FIELD: {_SEALED: sealed}}


def unseal_search_terms(keys: LedgerKeys, query: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a query with its search terms in clear again."""
    terms = query.get(_FIELD)
    if not isinstance(terms, dict):
        return query
    text = SealingKey(keys.derived(_PURPOSE)).unseal(base64.b64decode(terms[_SEALED]), None)
    return {**query, _FIELD: text.decode()}
