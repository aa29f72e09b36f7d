"""Sealed heads against the events that they count: for those who are shown a whole ledger, and so can count again.

Short bundles rest on heads. One that counts too few events would let them leave the others out. It stays in the log for
good, and here it is found.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from domain.heads import FORMAT, NO_EVENTS, creator_key, head_leaf_hashes, heads_stream, stream_key, video_key
from domain.log_entry import ENTRY_BYTES
from domain.merkle import leaf_hash, root_of
from infra.proof import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Heads that are hashed at most: of a log in which they were sealed often, the newest times are checked.
MAX_HASHED: Final = 3_000_000
_GENERATED: Final = "CodeGenerated"
_SEALED: Final = "HeadsSealed"


def verdict_on_heads(path: Path) -> tuple[bool, str] | None:
    """Count the events of a whole ledger again, and compare the roots of heads that it has sealed.

    Whether each event is the one in the signed log, and none is missing, is checked by `verify.py`.

    Returns: whether they are right, and a line that says so; None if no heads were sealed.
    """
    bundle = verify.Bundle(path)
    log = json.loads(bundle.read("data/answer.json"))["log"]
    stream = str(heads_stream(UUID(log["log_id"])))
    sealed = [
        orjson.loads(event["body"])
        for event in _events(bundle, _SEALED.encode())
        if event["type"] == _SEALED and event["stream_id"] == stream
    ]
    sealed = [facts for facts in sealed if (facts["generation"], facts["format"]) == (log["generation"], FORMAT)]
    if not sealed:
        return None
    salt = bytes.fromhex(log.get("video_salt") or "")
    if base64.b64encode(hashlib.sha256(salt).digest()).decode() != sealed[-1].get("video_salt_hash"):
        return False, "heads: the salt of videos in the bundle is not the one that the log has sealed last"
    chosen = _newest(sealed)
    wrong = _first_wrong(bundle, salt, chosen)
    if wrong is not None:
        return False, f"heads: those that were sealed up to event {wrong:,} do not count the events that there are"
    counted = f"the newest {len(chosen)} of {len(sealed)} that were sealed"
    return True, f"heads: counted again, {counted}, and they are right"


def _newest(sealed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the newest times that heads were sealed, at least one, with no more heads than are hashed."""
    chosen, hashed = [sealed[-1]], sealed[-1]["keys"]
    for facts in reversed(sealed[:-1]):
        hashed += facts["keys"]
        if hashed > MAX_HASHED:
            break
        chosen.insert(0, facts)
    return chosen


def _first_wrong(bundle: verify.Bundle, salt: bytes, sealed: Sequence[dict[str, Any]]) -> int | None:
    """Return up to which event the first heads go that are not those of the events."""
    heads: dict[bytes, tuple[int, bytes]] = {}  # plain: there are millions of events
    due, sha256 = list(sealed), hashlib.sha256
    with bundle.open("data/proof/entries.bin") as entries:
        for event in _events(bundle):
            leaf = leaf_hash(entries.read(ENTRY_BYTES))
            of_video = (video_key(salt, event["video_id"]),) if event["type"] == _GENERATED else ()
            for key in (*_keys(event["stream_id"], event["creator_stream"]), *of_video):
                count, chain = heads.get(key, NO_EVENTS)
                heads[key] = count + 1, sha256(chain + leaf).digest()
            while due and due[0]["upto"] == event["position"]:
                facts = due.pop(0)
                root = root_of(head_leaf_hashes((key, *heads[key]) for key in sorted(heads)))
                if (len(heads), base64.b64encode(root).decode()) != (facts["keys"], facts["root"]):
                    return int(event["position"])
            if not due:
                return None
    return int(due[0]["upto"])


@functools.lru_cache(maxsize=10_000)
def _keys(stream_id: str, creator_stream: str) -> tuple[bytes, bytes]:
    return stream_key(UUID(stream_id)), creator_key(UUID(creator_stream))


def _events(bundle: verify.Bundle, having: bytes = b"") -> Iterator[dict[str, Any]]:
    """Yield the events in whose lines something is."""
    with bundle.open("data/events.ndjson") as lines:
        while line := lines.readline(verify.MAX_LINE_BYTES):
            if having in line:
                yield orjson.loads(line)
