#!/usr/bin/env python3
"""Verify an evidence bundle of Sparkledger. One file; it needs nothing but Python 3.11 or newer.

    python3 -I verify.py BUNDLE --key VKEY              BUNDLE is the ZIP file, or the folder that it was unpacked to

The verifier that came with a bundle was given to you by whoever made the bundle. Take this file from where you trust
it, or read it: it is meant to be read in ten minutes. Nothing in the bundle decides what is checked here.

    1  Ed25519, as RFC 8032 has it            4  the answer to the question, computed from the events
    2  signed notes, checkpoints, the tree    5  the bundle: each check gives one line, a verdict
    3  an event's entry in the tree           6  the command line

Exit codes: 0 every verdict is good, 1 one is not, 2 the command or the bundle cannot be used at all.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # files beside this one must not stand in for Python's own
    del sys.path[0]

import argparse
import base64
import bisect
import csv
import functools
import hashlib
import io
import json
import re
import time
import zipfile
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Event = dict[str, Any]
Point = tuple[int, int, int, int]

# ── 1  Ed25519 (RFC 8032), strict: canonical points and numbers, and the equation without the cofactor, as Go has it.

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1, 1, 0)
KEY_BYTES, SIGNATURE_BYTES = 32, 64


def _recover(encoded: bytes) -> Point | None:
    """Return the point of 32 bytes in extended coordinates, or None if they encode none."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P == P - u:
        x = x * ROOT_OF_MINUS_1 % P
    if v * x * x % P != u or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return (x, y, 1, x * y % P)


def _add(one: Point, other: Point) -> Point:
    (x1, y1, z1, t1), (x2, y2, z2, t2) = one, other
    a, b = (y1 - x1) * (y2 - x2) % P, (y1 + x1) * (y2 + x2) % P
    c, d = 2 * D * t1 * t2 % P, 2 * z1 * z2 % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def _times(number: int, point: Point) -> Point:
    result = NEUTRAL
    while number:
        if number & 1:
            result = _add(result, point)
        point = _add(point, point)
        number >>= 1
    return result


BASE = _recover((4 * pow(5, P - 2, P) % P).to_bytes(32, "little")) or NEUTRAL


def ed25519_verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature is right."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    key, s = _recover(public_key), int.from_bytes(signature[32:], "little")
    if key is None or s >= ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % ORDER
    x, y, z, _ = _add(_times(s, BASE), _times(k, (P - key[0], key[1], key[2], P - key[3])))
    inverse = pow(z, P - 2, P)
    x, y = x * inverse % P, y * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little") == signature[:32]


# ── 2  Signed notes (c2sp.org/signed-note), checkpoints, and the Merkle tree of RFC 6962.

ED25519, COSIGNATURE, ML_DSA = 1, 4, 6
COSIGNATURE_BYTES = 8 + SIGNATURE_BYTES
HASH_BYTES = 32


class Wrong(Exception):
    """Something is not as it must be; the message says what."""


def unbase64(text: str) -> bytes:
    """Decode base64, of which each text has one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if base64.b64encode(data).decode() != text:
        raise Wrong(f"{text[:20]!r} is not base64")
    return data


def unbase64_all(texts: object) -> list[bytes]:
    """Decode a list of base64."""
    if not isinstance(texts, list):
        raise TypeError
    return [unbase64(one) for one in texts]


def whole(number: object) -> int:
    """Return a number, which must be a whole one and neither a truth nor a text."""
    if type(number) is not int:
        raise TypeError
    return number


class Key:
    """A verifier key, `name+id+key`, as it was given to the person who verifies."""

    def __init__(self, vkey: str) -> None:
        self.name, _, rest = vkey.strip().partition("+")
        stated, _, encoded = rest.partition("+")
        key = unbase64(encoded)
        self.kind, self.public = key[0] if key else 0, key[1:]
        self.id = hashlib.sha256(self.name.encode() + b"\n" + key).digest()[:4]
        if self.id.hex() != stated or self.kind not in (ED25519, COSIGNATURE, ML_DSA):
            raise Wrong(f"the verifier key of {self.name} is damaged, or of an unknown kind")

    def checks(self, text: bytes, signature: bytes) -> int | None:
        """Return the time of a cosignature in seconds, 0 for a signature without one, or None if it is wrong."""
        if self.kind == ED25519:
            return 0 if ed25519_verifies(self.public, text, signature) else None
        if self.kind == COSIGNATURE and len(signature) == COSIGNATURE_BYTES:
            at = int.from_bytes(signature[:8], "big")
            signed = b"cosignature/v1\ntime %d\n" % at + text
            return at if ed25519_verifies(self.public, signed, signature[8:]) else None
        return None


class Policy:
    """Which signatures are demanded, as a file of c2sp.org/tlog-policy says it.

    log VKEY                    a log that is trusted
    witness NAME VKEY           a witness, under a name for this file
    group NAME K MEMBER …       K of these witnesses and groups, or `any`, or `all`
    quorum NAME                 what must have signed; `none` demands nothing
    """

    def __init__(self, text: str) -> None:
        self.keys: list[Key] = []
        self.witnesses: dict[str, Key] = {}
        self.groups: dict[str, tuple[int, list[str]]] = {}
        self.quorum: str | None = None
        for line in text.split("\n"):
            match line.split("#")[0].split():
                case []:
                    continue
                case ["log", vkey] | ["log", vkey, _]:
                    self.keys.append(Key(vkey))
                case ["witness", name, vkey] | ["witness", name, vkey, _] if self._is_new(name):
                    self.witnesses[name] = Key(vkey)
                case ["group", name, count, *members] if self._is_new(name) and self._are_known(members):
                    least = {"any": "1", "all": str(len(members))}.get(count, count)
                    if not re.fullmatch(r"[1-9][0-9]{0,3}", least) or int(least) > len(members):
                        raise Wrong(f"the policy demands {count} of the {len(members)} members of {name}")
                    self.groups[name] = int(least), members
                case ["quorum", name] if self.quorum is None and (name == "none" or self._are_known([name])):
                    self.quorum = name
                case _:
                    raise Wrong(f"the policy has a line that cannot be used: {line.strip()[:60]!r}")
        if self.quorum is None:
            raise Wrong("the policy has no line `quorum`")
        if len({key.public for key in self.witnesses.values()}) < len(self.witnesses):
            raise Wrong("the policy has one key under two names")

    def _is_new(self, name: str) -> bool:
        return name != "none" and name not in self.witnesses and name not in self.groups

    def _are_known(self, names: Sequence[str]) -> bool:
        return len(set(names)) == len(names) and all(name in self.witnesses or name in self.groups for name in names)

    def is_met(self, signed: Iterable[bytes], name: str | None = None) -> bool:
        """Tell whether the witnesses with these public keys are enough."""
        name, signed = name or self.quorum or "none", list(signed)
        if name in self.groups:
            least, members = self.groups[name]
            return sum(self.is_met(signed, member) for member in members) >= least
        return name == "none" or self.witnesses[name].public in signed


class Note:
    """A signed note: a text, and signatures by name and key id."""

    def __init__(self, data: bytes) -> None:
        found = re.fullmatch(rb"((?:[^\n]+\n)+)\n((?:\xe2\x80\x94 [^ \n]+ [^ \n]+\n){1,64})", data)
        if found is None:
            raise Wrong("this is not a signed note")
        self.data, self.text, self.signatures = data, found[1], []
        for line in found[2].decode().split("\n")[:-1]:
            _, name, encoded = line.split(" ")
            decoded = unbase64(encoded)
            self.signatures.append((name, decoded[:4], decoded[4:]))

    def verified_by(self, key: Key) -> int | None:
        """Return what `Key.checks` returns, or None if the key did not sign; a wrong signature of it is refused."""
        own = [signature for name, id_, signature in self.signatures if (name, id_) == (key.name, key.id)]
        times = [key.checks(self.text, signature) for signature in own]
        if None in times and key.kind != ML_DSA:
            raise Wrong(f"the signature of {key.name} is wrong")
        return times[0] if times else None


class Checkpoint(Note):
    """The state of a log: its origin, size and root."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        found = re.fullmatch(rb"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([^\n]+)\n", self.text)
        if found is None:
            raise Wrong("this is not a checkpoint")
        self.origin, self.size, self.root = found[1].decode(), int(found[2]), unbase64(found[3].decode())
        if len(self.root) != HASH_BYTES:
            raise Wrong("the root of the checkpoint does not have 32 bytes")

    def __str__(self) -> str:
        return f"{self.origin}, {self.size:,} events, root {base64.b64encode(self.root).decode()}"


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(hashes: list[bytes]) -> bytes:
    """Return the root of the tree that has these leaf hashes."""
    sha256 = hashlib.sha256
    while len(hashes) > 1:
        odd = hashes[-1:] if len(hashes) % 2 else []
        pairs = zip(hashes[::2], hashes[1::2], strict=False)
        hashes = [sha256(b"\1" + left + right).digest() for left, right in pairs] + odd
    return hashes[0] if hashes else hashlib.sha256().digest()


def root_with(leaves: list[bytes], first: int, size: int, others: list[bytes]) -> bytes:
    """Return the root of a tree of which a run of leaves is known, and the hashes of the parts beside it.

    `first` counts from 0. The hashes come from left to right, and all of them must be needed.
    """
    others, end = list(reversed(others)), first + len(leaves)

    def part(low: int, high: int) -> bytes:
        if high <= first or low >= end:
            if not others or len(others[-1]) != HASH_BYTES:
                raise Wrong("the proof of the run of entries is too short")
            return others.pop()
        if first <= low and high <= end:
            return root_of(leaves[low - first : high - first])
        middle = low + (1 << (high - low - 1).bit_length() - 1)
        left = part(low, middle)
        return node_hash(left, part(middle, high))

    if not 0 <= first < end <= size:
        raise Wrong("the run of entries does not fit the checkpoint")
    root = part(0, size)
    if others:
        raise Wrong("the proof of the run of entries is too long")
    return root


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162, 2.1.3.2)."""
    if not 0 <= whole(index) < size or any(len(one) != HASH_BYTES for one in path):
        raise Wrong("the inclusion proof does not fit")
    node, last = index, size - 1
    for sibling in path:
        if last == 0:
            raise Wrong("the inclusion proof is too long")
        if node & 1 or node == last:
            leaf = node_hash(sibling, leaf)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            leaf = node_hash(leaf, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise Wrong("the inclusion proof is too short")
    return leaf


# ── 3  From an event to its entry: 65 bytes, as docs/proof.md of Sparkledger defines them.

EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
ENVELOPE = ("position", "stream_id", "version", "type", "type_version", "recorded_at", "effective_at")
CONTENT = (
    *("event_id", "actor_key", "actor_role", "actor_subject", "source", "command_id", "causation_id"),
    *("correlation_id", "traceparent", "creator_id", "video_id", "body_bytes", "body_sha256", "sealed"),
)
ENTRY_BYTES = 65
SEALED = {"key_id", "commitment", "bytes", "sha256"}
ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HEX = re.compile(r"(?:[0-9a-f]{2})*")
TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
RECORDED = re.compile(r"[^ ]{19}\.[0-9]{6}Z")


@functools.lru_cache(maxsize=8)  # an event has its times twice
def moment(text: str) -> datetime:
    """Return a time, which must have a zone."""
    if TIME.fullmatch(text) is None:
        raise ValueError
    return datetime.fromisoformat(text)


@functools.lru_cache(maxsize=4096)  # ids of streams and keys come again
def _uuid(text: str) -> bytes:
    """Return the bytes of an id, which must be spelled as ids are: streams are told apart by their spelling."""
    if UUID.fullmatch(text) is None:
        raise ValueError
    return bytes.fromhex(text.replace("-", ""))


def _text(text: str | None) -> bytes:
    if text is None:
        return b"\0"
    data = text.encode()
    return b"\1" + len(data).to_bytes(2, "big") + data


def _optional(text: str | None) -> bytes:
    return b"\0" if text is None else b"\1" + _uuid(text)


@functools.lru_cache(maxsize=8)
def _time(text: str) -> bytes:
    if RECORDED.fullmatch(text) is None:
        raise ValueError
    return ((moment(text) - EPOCH) // MICROSECOND).to_bytes(8, "big", signed=True)


def unhex(text: str) -> bytes:
    """Return the bytes of hexadecimal digits, of which each text has one spelling."""
    if HEX.fullmatch(text) is None:
        raise ValueError
    return bytes.fromhex(text)


def _hash(text: str) -> bytes:
    data = unhex(text)
    if len(data) != HASH_BYTES:
        raise ValueError
    return data


def content_of(event: Event) -> bytes:
    """Return who recorded an event and why, with the hashes of what it says."""
    sealed = event["sealed"]
    return b"".join(
        (
            *(b"\1", _uuid(event["event_id"]), _optional(event["actor_key"]), _text(event["actor_role"])),
            *(_text(event["actor_subject"]), _text(event["source"]), _uuid(event["command_id"])),
            *(_optional(event["causation_id"]), _text(event["correlation_id"]), _text(event["traceparent"])),
            *(_text(event["creator_id"]), _text(event["video_id"])),
            *(event["body_bytes"].to_bytes(4, "big"), _hash(event["body_sha256"])),
            *((b"\0",) if sealed is None else (b"\1", _uuid(sealed["key_id"]), _hash(sealed["commitment"]))),
            *(() if sealed is None else (sealed["bytes"].to_bytes(4, "big"), _hash(sealed["sha256"]))),
        )
    )


def envelope_hash(event: Event, log_id: bytes) -> bytes:
    """Return the hash that the entry of an event ends with."""
    if "content_sha256" in event:
        content = _hash(event["content_sha256"])
    else:
        content = hashlib.sha256(content_of(event)).digest()
    return hashlib.sha256(
        b"".join(
            (
                *(b"\1", log_id, event["position"].to_bytes(8, "big"), _uuid(event["stream_id"])),
                *(event["version"].to_bytes(4, "big"), _text(event["type"]), event["type_version"].to_bytes(2, "big")),
                *(_time(event["recorded_at"]), _time(event["effective_at"]), content),
            )
        )
    ).digest()


def tag(kind: bytes, stream: bytes, position: int) -> bytes:
    """Return the tag that the entry of an event of a stream, or of a creator, has at a position."""
    return hashlib.sha256(b"sparkledger/" + kind + b"/v1\n" + stream + position.to_bytes(8, "big")).digest()[:16]


# ── 4  The question: was the video authorized for the advertiser account at that time? As docs/questions.md has it.

# Part of the answer, and deciding nothing: a bundle may leave them out.
NOT_DECIDING = ("permission_enabled", "shared")
PERMISSION = ("PermissionEnabled", "PermissionDisabled")
ENDING = ("CodeGenerated", "Extended", "UsageRightsStated", "Revoked")
DECIDING = ("CodeGenerated", "Extended", "Shared", "Redeemed", "Superseded", "Revoked", "UsageRightsStated")


def _fold(events: Sequence[Event]) -> Event:
    """Return a code as its events make it, in the order of recording."""
    code: Event = {"extensions": [], "rights": [], "shares": {}, "redemptions": {}, "named": {}, "revoked": False}
    for event in events:
        body, at = event["facts"], event["effective"]
        if event["type"] == "CodeGenerated":
            code |= {"generated": at, "starts": moment(body["starts_at"]), "ends": moment(body["expires_at"])}
            code |= {"start_stated": body.get("start_stated", True), "supersedes": body.get("supersedes")}
        elif event["type"] == "Extended":
            code["extensions"].append((at, event["version"], moment(body["expires_at"])))
        elif event["type"] == "UsageRightsStated":
            until = body.get("rights_end_at")
            code["rights"].append((at, event["version"], None if until is None else moment(until)))
        elif event["type"] == "Shared":
            names = ("brand_id", "channel", "advertiser_id", "note_fingerprint")
            code["shares"][tuple(body.get(name) for name in names)] = at
        elif event["type"] == "Redeemed":
            code["redemptions"][body["advertiser_id"]] = at
            code["named"][body["advertiser_id"], at] = body.get("shared_with_advertiser")
        elif event["type"] == "Revoked":
            code["revoked"] = True
    return code


def _last_by(events: Sequence[Event], at: datetime) -> Event | None:
    known = [event for event in events if event["effective"] <= at]
    return max(known, key=lambda event: (event["effective"], event["position"]), default=None)


def _answer_of(
    stream: Sequence[Event],
    uses: Sequence[datetime],
    permissions: Sequence[Event],
    owners: Sequence[Event],
    advertiser_id: str,
    at: datetime,
) -> tuple[Event, tuple[Any, ...]]:
    code = _fold([e for e in stream if e["effective"] <= at or e["type"] == "CodeGenerated"])
    known = _fold(stream)
    starts = known["starts"]
    if not known["start_stated"]:
        starts = min([known["generated"], *uses])
    born = max(at, code["generated"])
    ends = ([known["ends"]] + [end for since, _, end in sorted(known["extensions"]) if since <= born])[-1]
    rights = [until for since, _, until in sorted(known["rights"], key=lambda stated: stated[:2]) if since <= born]
    redeemed_at = code["redemptions"].get(advertiser_id)
    if code["revoked"]:
        reason = "revoked"
    elif at < starts:
        reason = "not_started"
    elif at >= ends:
        reason = "expired"
    elif rights and rights[-1] is not None and at >= rights[-1]:
        reason = "rights_ended"
    else:
        reason = "not_redeemed" if redeemed_at is None else "authorized"
    by = at if redeemed_at is None else min(at, redeemed_at)
    owner = _last_by(owners, by)
    brand = None if owner is None else owner["facts"]["brand_id"]
    made = [share for share, since in code["shares"].items() if since <= by]
    shared: bool | None = any(share[2] == advertiser_id or (brand is not None and share[0] == brand) for share in made)
    shared = shared or bool(code["named"].get((advertiser_id, by)))
    if not shared and brand is None and any(share[2] is None for share in made):
        shared = None
    switch = _last_by([e for e in permissions if e["stream_id"] == stream[0]["creator_stream"]], at)
    answer = {
        "authorized": reason == "authorized",
        "reason": reason,
        "code_id": stream[0]["stream_id"],
        "starts_at": starts,
        "expires_at": ends,
        "permission_enabled": switch is not None and switch["type"] == "PermissionEnabled",
        "shared": shared,
    }
    return answer, (starts, code["generated"], stream[0]["position"], code["supersedes"])


NO_CODE = {"authorized": False, "reason": "no_code", "code_id": None, "starts_at": None, "expires_at": None}


def answer_from(events: Iterable[Event], video_id: str, advertiser_id: str, at: datetime) -> Event:
    """Return the answer that follows from events whose bodies are shown; of others, their type and time can matter."""
    read: list[Event] = []
    uses: dict[str, list[datetime]] = {}
    for e in events:
        effective = moment(e["effective_at"])
        if e["type"] in ("Shared", "Redeemed"):
            uses.setdefault(e["stream_id"], []).append(effective)
        if "body" in e:
            read.append({"creator_stream": None, **e, "facts": json.loads(e["body"]), "effective": effective})
    streams: dict[str, list[Event]] = {}
    for event in read:
        streams.setdefault(event["stream_id"], []).append(event)
    codes = [s for s in streams.values() if s[0]["type"] == "CodeGenerated" and s[0]["video_id"] == video_id]
    permissions = [e for e in read if e["type"] in (*PERMISSION, "CreatorErased")]
    owners = [e for e in read if e["type"] == "AdvertiserNamed" and e["facts"]["advertiser_id"] == advertiser_id]
    answers = [
        _answer_of(code, uses.get(code[0]["stream_id"], []), permissions, owners, advertiser_id, at) for code in codes
    ]
    found = [one for one in answers if one[0]["authorized"]] or [one for one in answers if one[1][0] <= at]
    if not found and answers:
        coming = [one for one in answers if one[0]["reason"] != "revoked"] or answers
        first = min(one[1][0] for one in coming)
        found = [one for one in coming if one[1][0] == first]
    superseded = {one[1][3] for one in found}
    found = [one for one in found if one[0]["code_id"] not in superseded]
    if not found:
        return NO_CODE | {"permission_enabled": False, "shared": False}
    return max(found, key=lambda one: one[1][:3])[0]


# ── 5  The bundle. A verdict is a line: `ok`, `no`, or `--` for what is not claimed and not checked here.

CSV_COLUMNS = (*ENVELOPE, *CONTENT[:-3], "body")
FORMAT, HEADS_FORMAT = "sparkledger evidence 1", 2
# What two clocks may differ by, and how long a new event may take until it is in a checkpoint that a witness is shown.
SKEW_S, LAG_S = 60, 300
# Of so many events the times are listed one by one.
MAX_TIMES = 12
MAX_LINE_BYTES = 4 << 20


# The names of files. Others could be unpacked to another place than the one where they were checked.
FILE_NAME = re.compile(r"([A-Za-z0-9._-]*[A-Za-z0-9_-]/)+[A-Za-z0-9._-]*[A-Za-z0-9_-]")

# What Python raises of files that are not what they must be, or cannot be unpacked.
MALFORMED = (
    *(AttributeError, EOFError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, UnicodeError),
    *(ValueError, zlib.error),
)


class Report:
    """The verdicts, in the order in which they were reached."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def ok(self, text: str) -> None:
        self.lines.append(("ok", text))

    def no(self, text: str) -> None:
        self.lines.append(("no", text))

    def note(self, text: str) -> None:
        self.lines.append(("--", text))

    @property
    def good(self) -> bool:
        return any(mark == "ok" for mark, _ in self.lines) and all(mark != "no" for mark, _ in self.lines)

    def __str__(self) -> str:
        return "".join(f"{mark}  {_visible(text)}\n" for mark, text in self.lines)


def _visible(text: str) -> str:
    """Return a verdict as it is printed: nothing in it moves the cursor, hides text, or looks like a verdict."""
    first, *more = ("".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in line) for line in text.split("\n"))
    return "\n      ".join([first, *(line.lstrip(" ") for line in more)])


class Bundle:
    """The files of a bundle, from a ZIP file or a folder."""

    def __init__(self, path: Path) -> None:
        self.zip = None if path.is_dir() else zipfile.ZipFile(path)
        self.folder = path
        if self.zip is None:
            files = [p for p in path.rglob("*") if not p.is_dir() or p.is_symlink()]
            self.names = [p.relative_to(path).as_posix() for p in files]
            self.top = ""
        else:
            self.names = self.zip.namelist()
            self.top = self.names[0].partition("/")[0] + "/" if self.names else ""
            if any(not name.startswith(self.top) for name in self.names):
                raise Wrong("the ZIP file holds more than one folder")
            self.names = [name[len(self.top) :] for name in self.names]
            if not all(FILE_NAME.fullmatch(self.top + name) for name in self.names):
                raise Wrong("a file of the ZIP file has a name that no file of a bundle has")
        if len({name.lower() for name in self.names}) != len(self.names):
            raise Wrong("a file is in the bundle twice")

    def open(self, name: str) -> IO[bytes]:
        if name not in self.names:
            raise Wrong(f"{name} is missing")
        if self.zip is None:
            return (self.folder / name).open("rb")
        return io.BufferedReader(self.zip.open(self.top + name), 1 << 16)  # type: ignore[type-var] # it can be read into

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def load(self, name: str) -> Any:
        """Return what is written in a file of JSON, in UTF-8 and no other encoding."""
        return json.loads(self.read(name).decode())

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.open(name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def _manifests(bundle: Bundle) -> dict[str, str]:
    """Return the hash that each file must have."""
    listed: dict[str, str] = {}
    for manifest in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        for line in bundle.read(manifest).decode().split("\n")[:-1]:
            found = re.fullmatch(r"([0-9a-f]{64})  ([^\\]+)", line)
            if found is None or found[2] in listed:
                raise Wrong(f"files: {manifest} is damaged")
            listed[found[2]] = found[1]
    return listed


def _check_files(bundle: Bundle, keys: Sequence[Key], report: Report) -> None:
    """Check the hashes of all files (RFC 8493), and who signed for the whole."""
    listed = _manifests(bundle)
    for name in sorted(set(bundle.names) - {"tagmanifest-sha256.txt", "bag.note"} - listed.keys()):
        report.no(f"files: {name} is in no manifest")
    for name, stated in sorted(listed.items()):
        if name not in bundle.names:
            report.no(f"files: {name} is missing")
        elif bundle.sha256(name) != stated:
            report.no(f"files: {name} was changed after the bundle was made")
    if not report.lines:
        report.ok(f"files: all {len(listed)} are as they were when the bundle was made")
    note = Note(bundle.read("bag.note"))
    said = re.fullmatch(rb"sparkledger evidence bag v1\n([0-9a-f]{64})\n", note.text)
    if said is None or said[1].decode() != bundle.sha256("tagmanifest-sha256.txt"):
        report.no("bundle: its signature is for another bundle")
    elif by := [key.name for key in keys if note.verified_by(key) is not None]:
        report.ok(f"bundle: signed as a whole by {', '.join(by)}")
    else:
        report.note("bundle: signed as a whole, by a key that you did not name; the verdicts below do not rest on it")
        report.note("bundle: so REPORT.html and the words of answer.json may be anybody's; trust what these lines say")


def _check_signatures(
    signed: Checkpoint,
    keys: Sequence[Key],
    introduced: Sequence[tuple[Key, int]],
    enclosed: Sequence[Key],
    report: Report,
    *,
    unpinned: bool,
) -> None:
    """Check who signed the checkpoint."""
    pinned = [key for key in keys if key.name == signed.origin and key.kind == ED25519]
    own = [key for key in enclosed if key.name == signed.origin and key.kind == ED25519]
    if any(signed.verified_by(key) is not None for key in pinned):
        report.ok(f"signed by {signed.origin}, with the key that you named; it covers {signed.size:,} events")
    elif by := [at for key, at in introduced if signed.verified_by(key) is not None]:
        text = f"signed by {signed.origin}, with a key that the one that you named has introduced"
        report.ok(f"{text} in event {by[0]}; it covers {signed.size:,} events")
    elif pinned:
        report.no(f"signed: not by the key of {signed.origin} that you named")
    elif keys:
        report.no(f"signed: the log is {signed.origin}, and you named no Ed25519 key of this log")
    elif not any(signed.verified_by(key) is not None for key in own):
        report.no("signed: not even by the key that came with the bundle")
    elif unpinned:
        report.note(f"signed by {signed.origin}, with the key that came with the bundle: that proves no origin")
    else:
        report.no("signed: by a key that came with the bundle. Name the key that you trust, with --key")
    if any(len(signature) > COSIGNATURE_BYTES for _, _, signature in signed.signatures):
        report.note("signed: ML-DSA-44 signatures are not checked here; `sparkledger verify` checks them")


def _check_log_keys(
    bundle: Bundle, run: Run, log_id: bytes, keys: Sequence[Key], report: Report
) -> list[tuple[Key, int]]:
    """Follow what the log says of its own keys; return those that a key which was named has introduced, and where.

    A new key is introduced by an event of the log, under a checkpoint that a trusted key has signed. Everything that
    the log says of itself is in the stream that bears its id, so that none of it can be left out.
    """
    changes, shown, last = [], set[int](), 0
    if "data/proof/log.ndjson" in bundle.names:
        with bundle.open("data/proof/log.ndjson") as file:
            while line := file.readline(MAX_LINE_BYTES):
                event, level = read_event(line, run, log_id, last)
                last = event["position"]
                shown.add(last)
                if _uuid(event["stream_id"]) != log_id or not event["type"].startswith("LogKey"):
                    continue
                if level < ALL:
                    raise Wrong(f"incomplete: the log's keys: what event {last}, {event['type']}, says is not shown")
                changes.append((last, event["type"], json.loads(event["body"])))
    all_of_them = run.positions(b"stream", log_id)
    if all_of_them is None:
        report.note("keys: what became of the log's keys cannot be told from a part of its entries")
    elif missing := set(all_of_them) - shown:
        report.no(f"incomplete: the log's keys: the event at position {min(missing)}, of the log itself, is not shown")
    for at, type_, body in changes:
        key = Key(body["vkey"])
        if type_ == "LogKeyCompromised" and any(key.public == named.public for named in keys):
            report.no(f"keys: the key {key.name}+{key.id.hex()} that you named is compromised, says event {at}")
        else:
            report.note(f"keys: event {at}, {type_}: {key.name}+{key.id.hex()}")
    return _introduced(bundle, run, keys, changes, report)


def _introduced(
    bundle: Bundle, run: Run, keys: Sequence[Key], changes: Sequence[tuple[int, str, Event]], report: Report
) -> list[tuple[Key, int]]:
    """Return the keys that the log has added under a checkpoint that a trusted key of this log has signed, and where.

    Other keys that were named, such as the one that signs bundles, introduce nobody.
    """
    introduced: list[tuple[Key, int]] = []
    stolen = {Key(body["vkey"]).public for _, type_, body in changes if type_ == "LogKeyCompromised"}
    sizes = [name.rpartition("/")[2] for name in bundle.names if re.fullmatch(r"data/proof/keys/[1-9][0-9]*", name)]
    for size in sorted(map(int, sizes)):
        handover = Checkpoint(bundle.read(f"data/proof/keys/{size}"))
        known = [key for key in (*keys, *(key for key, _ in introduced)) if key.name == run.signed.origin]
        if handover.origin != run.signed.origin or not any(handover.verified_by(key) is not None for key in known):
            continue
        root = run.root_at(handover.size)
        if root is None:
            continue  # these entries do not reach so far back
        if handover.root != root:
            report.no(
                f"FORK: the log was handed to another key in a state that contradicts this one:\n      {handover}"
            )
            continue
        added = [(at, body) for at, type_, body in changes if type_ == "LogKeyAdded" and at <= handover.size]
        found = [(Key(body["vkey"]), at) for at, body in added]
        introduced += [(key, at) for key, at in found if key.name == run.signed.origin and key.public not in stolen]
    return introduced


def _check_witnesses(
    signed: Checkpoint, witnesses: Sequence[Key], quorum: int | None, policy: Policy | None, report: Report
) -> list[int]:
    """Check that as many named witnesses have seen the checkpoint as must have; return the times that they state."""
    named = [*witnesses, *(policy.witnesses.values() if policy is not None else ())]
    times: dict[bytes, int] = {}
    for number, key in enumerate(named):
        at = signed.verified_by(key)
        if at and key.public not in times:  # a witness that is named twice is one
            times[key.public] = at
            report.ok(f"witnessed by {key.name} at {clock(at)} UTC")
        elif not at and number < len(witnesses) and quorum is None:
            report.no(f"witnessed: {key.name} has not cosigned this checkpoint")
        elif not at:
            report.note(f"witnessed: {key.name} has not cosigned this checkpoint")
    if quorum is not None:
        keys = {key.public for key in witnesses}
        text = f"{len(keys & times.keys())} of the {len(keys)} witnesses that you named have cosigned; you demand"
        (report.ok if len(keys & times.keys()) >= quorum > 0 else report.no)(f"quorum: {text} {quorum}")
    if policy is not None and policy.quorum != "none":
        met = policy.is_met(times)
        text = f"quorum: your policy demands {policy.quorum}, and the witnesses above are"
        (report.ok if met else report.no)(f"{text} {'enough' if met else 'not enough'}")
    others = {name for name, _, _ in signed.signatures} - {signed.origin} - {key.name for key in named}
    if others:
        report.note(f"witnessed: signatures of {', '.join(sorted(others))} are not checked; name keys with --witness")
    elif not named:
        report.note("not witnessed: nobody but the log's operator has confirmed this state of the log")
    return list(times.values())


def clock(seconds: float) -> str:
    """Return a time to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


class Run:
    """The contiguous run of entries that a bundle holds: it leads to the signed root."""

    def __init__(self, bundle: Bundle, signed: Checkpoint) -> None:
        proof = bundle.load("data/proof/run.json")
        self.data = bundle.read("data/proof/entries.bin")
        self.first, self.signed = whole(proof["first"]), signed
        self.beside = unbase64_all(proof["hashes"])
        if len(self.data) % ENTRY_BYTES or not self.data:
            raise Wrong("entries: the file is empty or was cut off")
        self.last = self.first + len(self.data) // ENTRY_BYTES - 1
        if self.data[::ENTRY_BYTES].count(1) * ENTRY_BYTES != len(self.data):
            raise Wrong("entries: the format of an entry is not known here")
        sha256, data = hashlib.sha256, self.data
        self.leaves = [sha256(b"\0" + data[i : i + 65]).digest() for i in range(0, len(data), ENTRY_BYTES)]
        root = root_with(self.leaves, self.first - 1, signed.size, self.beside)
        if root != signed.root:
            raise Wrong("entries: they do not lead to the signed root. One was changed, left out or added")

        self.early = dict[int, bytes]()
        self.heads: Heads | None = None

    @property
    def whole(self) -> bool:
        return (self.first, self.last) == (1, self.signed.size)

    def take_heads(self, bundle: Bundle, log_id: bytes) -> None:
        """Take what proves that nothing before the run is left out: sealed heads, and entries that have own proofs."""
        with bundle.open("data/proof/early.ndjson") as file:
            while line := file.readline(MAX_LINE_BYTES):
                one = json.loads(line.decode())
                position, entry = whole(one["position"]), unbase64(one["entry"])
                path = unbase64_all(one["hashes"])
                root = root_by_path(leaf_hash(entry), position - 1, self.signed.size, path)
                if root != self.signed.root or len(entry) != ENTRY_BYTES or entry[0] != 1 or position >= self.first:
                    raise Wrong(f"entries: the one at position {position} does not lead to the signed root")
                self.early[position] = entry
        event, level = read_event(bundle.read("data/proof/heads.ndjson"), self, log_id, 0)
        stream = hashlib.sha256(b"sparkledger/heads/log/v1\n" + log_id).digest()[:16]
        if level < ALL or event["type"] != "HeadsSealed" or _uuid(event["stream_id"]) != stream:
            raise Wrong("heads: the event that is shown does not seal the heads of this log")
        self.heads = Heads(bundle.load("data/proof/heads.json"), json.loads(event["body"]), event["position"])
        if self.heads.upto != self.first - 1 or self.last != self.signed.size:
            raise Wrong("heads: they end elsewhere than the entries begin")

    def positions(self, kind: bytes, stream: bytes) -> list[int] | None:
        """Return the positions of all events of a stream, or of a creator; None if the bundle does not tell.

        Raises:
            Wrong: the entries before the run are not all that the heads say.

        """
        since = self.tagged(kind, stream)
        if self.whole:
            return since
        if self.heads is None:
            return None
        place = 1 if kind == b"stream" else 17
        before = [
            position
            for position, entry in sorted(self.early.items())
            if entry[place : place + 16] == tag(kind, stream, position)
        ]
        self.heads.check(kind, stream, [self.early[position] for position in before])
        return before + since

    @property
    def how(self) -> str:
        """How it is known that nothing is left out."""
        if self.heads is None:
            return f"found by searching all {self.signed.size:,} entries"
        since = self.last - self.first + 1
        return f"by the heads that event {self.heads.position} has sealed, and {since:,} entries since"

    def root_at(self, size: int) -> bytes | None:
        """Return the root that the log had at another size, if these entries show it: every tree contains its past."""
        begin = self.first - 1
        if not begin <= size <= self.last or size == 0:
            return None
        left = self.beside[: begin.bit_count()]  # what is left of the run: a part for each 1 of its size in binary
        if size > begin:
            return root_with(self.leaves[: size - begin], begin, size, left)
        root = left[-1]
        for one in reversed(left[:-1]):
            root = node_hash(one, root)
        return root

    def entry(self, position: int) -> bytes:
        if position in self.early:
            return self.early[position]
        if not self.first <= position <= self.last:
            raise Wrong("its position: the bundle has no entry for it")
        begin = (position - self.first) * ENTRY_BYTES
        return self.data[begin : begin + ENTRY_BYTES]

    def tagged(self, kind: bytes, stream: bytes) -> list[int]:
        """Return the positions of all entries of a stream, or of a creator."""
        prefix, place, sha256 = (
            b"sparkledger/" + kind + b"/v1\n" + stream,
            1 if kind == b"stream" else 17,
            hashlib.sha256,
        )
        data, begin = self.data, place - self.first * ENTRY_BYTES
        return [
            position
            for position in range(self.first, self.last + 1)
            if sha256(prefix + position.to_bytes(8, "big")).digest()[:16]
            == data[begin + position * 65 : begin + position * 65 + 16]
        ]


class Heads:
    """How many events of each stream, creator and video there were, and a chain of them, as an event has sealed it.

    A head is 01, a key, the number of events and the chain: SHA-256 over the chain before and the event's leaf hash.
    The heads, sorted by key, are the leaves of a tree, whose root is in the event. Of a video the codes are counted.
    Its key has a salt in it, which the event commits to, so that heads cannot be tried for videos.
    """

    def __init__(self, shown: Event, sealed: Event, position: int) -> None:
        self.upto, self.keys, self.position = sealed["upto"], sealed["keys"], position
        self.known: dict[bytes, tuple[int, int, bytes]] = {}
        if sealed["format"] != HEADS_FORMAT or shown["keys"] != self.keys:
            raise Wrong("heads: their format is not known here")
        self.salt = unhex(shown.get("video_salt", ""))
        if self.salt and hashlib.sha256(self.salt).digest() != unbase64(sealed["video_salt_hash"]):
            raise Wrong("heads: the salt of videos is not the one that the log has sealed")
        for one in shown["heads"]:
            key, count, chain = unhex(one["key"]), whole(one["count"]), unhex(one["chain"])
            path = unbase64_all(one["hashes"])
            leaf = leaf_hash(b"\1" + key + count.to_bytes(8, "big") + chain)
            root = root_by_path(leaf, one["index"], self.keys, path)
            if (len(key), len(chain)) != (16, HASH_BYTES) or root != unbase64(sealed["root"]):
                raise Wrong("heads: one does not lead to the root that the log has sealed")
            self.known[key] = (one["index"], count, chain)
        if sorted(self.known) != sorted(self.known, key=lambda key: self.known[key][0]):
            raise Wrong("heads: they are not in the order of their keys")

    def check(self, kind: bytes, what: bytes, entries: Sequence[bytes]) -> None:
        """Check that these are all entries of a stream, a creator or a video's codes, of those before the run.

        Raises:
            Wrong: they are not, or nothing proves it.

        """
        count, chain = self._of(kind, what)
        found = bytes(HASH_BYTES)
        for entry in entries:
            found = hashlib.sha256(found + leaf_hash(entry)).digest()
        if (len(entries), found) != (count, chain):
            raise Wrong(f"incomplete: the heads have {count} events up to {self.upto}, and {len(entries)} are here")

    def check_video(self, video: str, entries: Sequence[bytes]) -> None:
        """Check that these are the entries of all codes of a video that were generated before the run."""
        if not self.salt:
            raise Wrong("incomplete: the bundle lacks the salt by which the head of a video is found")
        self.check(b"video", self.salt + video.encode(), entries)

    def _of(self, kind: bytes, what: bytes) -> tuple[int, bytes]:
        """Return the number of events and their chain; that there are none is proven by two neighbours."""
        key = hashlib.sha256(b"sparkledger/heads/" + kind + b"/v1\n" + what).digest()[:16]
        if key in self.known:
            return self.known[key][1:]
        below = max((index for other, (index, _, _) in self.known.items() if other < key), default=-1)
        above = min((index for other, (index, _, _) in self.known.items() if other > key), default=self.keys)
        if above != below + 1:
            raise Wrong("incomplete: nothing proves how many events there were before the entries of this bundle")
        return 0, bytes(HASH_BYTES)


class Times:
    """When witnesses saw the log at which size. What they saw was recorded before, and what they did not see after."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seen: list[tuple[int, int]] = []

    def add(self, size: int, times: Sequence[int]) -> None:
        """Take the times, in seconds, that witnesses state of a checkpoint; of several, none is believed too much."""
        if times:
            at = bisect.bisect_left(self.sizes, size)
            self.sizes.insert(at, size)
            self.seen.insert(at, (min(times), max(times)))

    def of(self, position: int) -> tuple[int | None, int | None]:
        """Return after and before which time the event at a position was recorded, as far as witnesses say."""
        at = bisect.bisect_left(self.sizes, position)
        return (
            self.seen[at - 1][0] if at > 0 else None,
            self.seen[at][1] if at < len(self.sizes) else None,
        )


class Shown:
    """The events of a bundle, as far as they are needed after each was checked against its entry.

    Attributes:
        levels: what is shown of each position, `NOTHING` to `ALL`.
        kept: by position, those events that later checks need.
        versions: of each stream, in the order of the log.

    """

    def __init__(self, last: int) -> None:
        self.levels = bytearray(last + 1)
        self.kept: dict[int, Event] = {}
        self.versions: dict[str, list[int]] = {}
        self.count = self.lacks_creator = 0
        self.out_of_order = self.late = self.early = 0
        self.bounded = self.bounded_above = self.widest = 0

    def missing(self, positions: Iterable[int]) -> int | None:
        """Return the first of these positions of which nothing is shown."""
        return next((p for p in positions if not 0 < p < len(self.levels) or not self.levels[p]), None)

    def gap(self, stream_ids: Iterable[str]) -> str | None:
        """Return a stream whose versions are not 1, 2, 3 …"""
        return next((s for s in stream_ids if self.versions[s] != list(range(1, len(self.versions[s]) + 1))), None)


# What is shown of an event, and the fields that it then has.
NOTHING, JUST_ENVELOPE, CONTENT_TOO, ALL = 0, 1, 2, 3
_FIELDS = {
    JUST_ENVELOPE: {*ENVELOPE, "content_sha256"},
    CONTENT_TOO: {*ENVELOPE, *CONTENT},
    ALL: {*ENVELOPE, *CONTENT, "body"},
}
_MAY = {"creator_stream", "erased_by"}
# Lines are JSON in its one spelling without spaces.
WRITTEN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def level_of(event: Event) -> int:
    """Return what is shown of an event; it must have all fields of that and no others."""
    level = JUST_ENVELOPE if "content_sha256" in event else ALL if "body" in event else CONTENT_TOO
    if event.keys() - _MAY != _FIELDS[level] or bool in map(type, event.values()):
        raise ValueError
    if event.get("sealed") is not None and event["sealed"].keys() != SEALED:
        raise ValueError
    if level == ALL:
        body = event["body"].encode()
        if len(body) != event["body_bytes"] or hashlib.sha256(body).hexdigest() != event["body_sha256"]:
            raise Wrong("what it says")
    return level


def check_event(event: Event, entry: bytes, log_id: bytes) -> None:
    """Compare an event with its entry.

    Raises:
        Wrong: they differ; the message says in what.

    """
    position = event["position"]
    if entry[1:17] != tag(b"stream", _uuid(event["stream_id"]), position):
        raise Wrong("its stream or position")
    if "creator_stream" in event and entry[17:33] != tag(b"creator", _uuid(event["creator_stream"]), position):
        raise Wrong("its creator")
    if entry[33:] != envelope_hash(event, log_id):
        raise Wrong("its times, type, actor or contents")


def read_event(line: bytes, run: Run, log_id: bytes, last: int) -> tuple[Event, int]:
    """Return the event of a line, and what is shown of it.

    Raises:
        Wrong: it is not the one in the signed log; the message says so.

    """
    position = 0
    try:
        text = line.decode()
        event: Event = json.loads(text)
        position = event["position"]
        if WRITTEN(event) + "\n" != text:
            position = 0
        level = level_of(event)
        check_event(event, run.entry(event["position"]), log_id)
    except Wrong as wrong:
        raise Wrong(f"tampered: first at event {position}: it is not the one in the signed log: {wrong}") from None
    except (AttributeError, KeyError, OverflowError, TypeError, UnicodeError, ValueError):
        position = 0
    if position <= 0:
        raise Wrong(f"tampered: first at the line after event {last}, which is not an event")
    if position <= last:
        raise Wrong(f"tampered: first at event {position}, which is shown twice, or not in its order")
    return event, level


def _is_needed(event: Event, level: int, about: Event) -> bool:
    """Tell whether later checks need an event: of a whole ledger they would not fit into memory."""
    if event["type"] == "CreatorErased" or "erased_by" in event:
        return True
    if about["kind"] == "range":
        return event["position"] in (about["first"] - 1, about["first"], about["last"], about["last"] + 1)
    of_video = about["kind"] in ("answer", "video")
    return about["kind"] != "ledger" and (not of_video or level == ALL or event["type"] in DECIDING)


class Reading:
    """Reads the events that are shown, checks each against its entry, and says what is shown of it.

    Attributes:
        same: whether the table says the same, as far as it was read.

    """

    def __init__(self, bundle: Bundle, run: Run, log_id: bytes) -> None:
        self.bundle, self.run, self.log_id = bundle, run, log_id
        self.same = True

    def __iter__(self) -> Iterator[tuple[Event, int]]:
        last = 0
        with self.bundle.open("data/events.ndjson") as file, self.bundle.open("data/events.csv") as table:
            text = io.TextIOWrapper(table, encoding="utf-8", newline="")
            rows = _rows_of(text)
            self.same = next(rows, None) == list(CSV_COLUMNS)
            while line := file.readline(MAX_LINE_BYTES):
                event, level = read_event(line, self.run, self.log_id, last)
                self.same = self.same and _is_row_of(event, next(rows, []))
                last = event["position"]
                yield event, level
            self.same = self.same and next(rows, None) is None


def _check_events(reading: Reading, about: Event, times: Times) -> Shown:
    """Check each event that is shown; return them.

    Raises:
        Wrong: an event was tampered with, or there is none.

    """
    shown, recorded = Shown(reading.run.last), EPOCH
    for event, level in reading:
        at = moment(event["recorded_at"])
        position = event["position"]
        if at < recorded:
            shown.out_of_order = shown.out_of_order or position
        _check_time(position, at, times, shown)
        recorded = at
        shown.levels[position] = level
        shown.count += 1
        shown.versions.setdefault(event["stream_id"], []).append(event["version"])
        shown.lacks_creator += "creator_stream" not in event
        if _is_needed(event, level, about):
            shown.kept[position] = event
    if not shown.count:
        raise Wrong("events: none is shown, so nothing is proven")
    return shown


def _rows_of(table: IO[str]) -> Iterator[list[str]]:
    """Yield the rows of a table. What is not well-formed is an empty row, and ends them."""
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield from csv.reader(table, strict=True)
    except csv.Error:
        yield []


def _is_row_of(event: Event, row: list[str]) -> bool:
    """Tell whether a row of the table shows an event, whatever apostrophes guard its cells."""
    cells = ["" if (value := event.get(name)) is None else str(value) for name in CSV_COLUMNS]
    return row == cells or [cell.replace("'", "") for cell in row] == [cell.replace("'", "") for cell in cells]


def _check_time(position: int, at: datetime, times: Times, shown: Shown) -> None:
    """Compare when an event states that it was recorded with what witnesses had and had not seen."""
    after, before = times.of(position)
    seconds = (at - EPOCH) // MICROSECOND / 1_000_000
    if before is not None and seconds > before + SKEW_S:
        shown.late = shown.late or position
    if after is not None and seconds < after - LAG_S:
        shown.early = shown.early or position
    if before is not None:
        shown.bounded_above += 1
        if after is not None:
            shown.bounded += 1
            shown.widest = max(shown.widest, before - after)


def _check_times(shown: Shown, times: Times, report: Report) -> None:
    """Say when the events were recorded, as far as the clocks of witnesses show it."""
    if shown.out_of_order:
        report.no(f"times: event {shown.out_of_order} was recorded before the event that is shown before it")
    if shown.late:
        report.no(f"times: event {shown.late} states that it was recorded after a witness had seen it")
    if shown.early:
        report.no(f"times: event {shown.early} states that it was recorded before a witness saw the log without it")
    if not shown.bounded_above:
        report.note("recorded between: the times of recording are the log's own word; no clock of others confirms them")
    elif not (shown.late or shown.early):
        report.ok(
            f"recorded between: {shown.bounded_above:,} of {shown.count:,} events no later than a witness saw them; "
            f"{shown.bounded:,} of these also not before it saw the log without them, the widest within "
            f"{timedelta(seconds=shown.widest)}"
        )
        said = [p for p, event in sorted(shown.kept.items()) if shown.levels[p] > JUST_ENVELOPE]
        for position in said if len(said) <= MAX_TIMES else ():
            after, before = times.of(position)
            if before is not None:
                since = "no witness's time before it" if after is None else f"after {clock(after)}"
                text = f"event {position}, {shown.kept[position]['type']}: {since}, before {clock(before)} UTC"
                report.note(f"recorded between: {text}, by witnesses")


def _check_earlier(bundle: Bundle, run: Run, witnesses: Sequence[Key], times: Times, report: Report) -> None:
    """Take the times of earlier checkpoints that the named witnesses have cosigned, once the log contains them.

    A cosignature covers origin, size and root, so it says all that counts here: when the witness saw this state.
    """
    for name in sorted(name for name in bundle.names if name.startswith("data/proof/cosigned/")):
        earlier = Checkpoint(bundle.read(name))
        seen = [at for key in witnesses if (at := earlier.verified_by(key))]
        if not seen:
            continue
        root = run.root_at(earlier.size)
        if earlier.origin != run.signed.origin or root is None:
            report.no(f"cosigned: {name} is of another log, or does not fit the entries of this bundle")
        elif earlier.root != root:
            report.no(f"FORK: a witness has cosigned a state that contradicts this one:\n      {earlier}")
        elif earlier.size != run.signed.size:
            times.add(earlier.size, seen)


def stamped_sizes(bundle: Bundle) -> list[int]:
    """Return the sizes of the checkpoints that have a time stamp of an authority."""
    found = (re.fullmatch(r"data/proof/stamped/([1-9][0-9]{0,18})", name) for name in bundle.names)
    return sorted(int(one[1]) for one in found if one)


def _check_stamps(bundle: Bundle, run: Run, report: Report) -> None:
    """Check that the log contains each checkpoint that was stamped. The stamp itself needs another program."""
    for size in stamped_sizes(bundle):
        data, response = (bundle.read(f"data/proof/stamped/{size}{end}") for end in ("", ".tsr"))
        stamped = Checkpoint(data)
        if (stamped.origin, stamped.size, stamped.root) != (run.signed.origin, size, run.root_at(size)):
            report.no(f"time stamp: the checkpoint of {size:,} events that was stamped is not a state of this log")
        elif hashlib.sha256(data).digest() not in response:
            report.no(f"time stamp: the one of {size:,} events is of another file")
        else:
            report.note(
                f"time stamp: of events up to {size:,}; not checked here. Unpack, go to data/proof/stamped, run:"
            )
            report.note(f"  openssl ts -verify -data {size} -in {size}.tsr -CAfile YOUR-TSA.pem")


def _check_stream(run: Run, shown: Shown, kind: bytes, stream: str, what: str, report: Report) -> bool:
    """Check that every entry of a stream, or of a creator, is shown, with versions 1, 2, 3 … in each stream."""
    tagged = run.positions(kind, _uuid(stream))
    if tagged is None:
        report.no(f"incomplete: {what} needs all {run.signed.size:,} entries of the log, and the bundle lacks some")
        return False
    missing = shown.missing(tagged)
    if missing is not None or not tagged:
        place = "the log has no event of it" if missing is None else f"the event at position {missing} is not shown"
        report.no(f"incomplete: {what}: {place}")
        return False
    broken = shown.gap([stream] if kind == b"stream" else {shown.kept[position]["stream_id"] for position in tagged})
    if broken is not None:
        report.no(f"incomplete: {what}: the versions of stream {broken} have a gap, or one is there twice")
        return False
    report.ok(f"complete for {what}: {len(tagged):,} events, {run.how}")
    return True


def _check_all(run: Run, shown: Shown, what: str, report: Report) -> bool:
    """Check that something is shown of every event of the log."""
    missing = shown.missing(range(1, run.signed.size + 1))
    if missing is not None or not run.whole:
        report.no(f"incomplete: {what}: the event at position {missing or run.last + 1} is not shown")
        return False
    return True


def _check_ledger(run: Run, shown: Shown, report: Report) -> None:
    if not _check_all(run, shown, "the ledger", report):
        return
    if shown.lacks_creator:
        report.no(f"incomplete: the ledger: {shown.lacks_creator} events are shown without their creator's stream")
    elif (broken := shown.gap(shown.versions)) is not None:
        report.no(f"incomplete: the ledger: the versions of stream {broken} have a gap, or one is there twice")
    else:
        report.ok(f"complete for the ledger: all {run.signed.size:,} events, with every stream and tag computed again")
        _note_withheld(shown, report)


def _check_range(run: Run, shown: Shown, about: Event, report: Report) -> None:
    first, last = whole(about["first"]), whole(about["last"])
    missing = shown.missing(range(first, last + 1))
    if missing is not None or last < first:
        report.no(f"incomplete: positions {first} to {last}: the event at position {missing or first} is not shown")
        return
    report.ok(f"complete for positions {first:,} to {last:,}: {last - first + 1:,} events without a gap")
    if "from" not in about:
        return
    since, until, times = moment(about["from"]), moment(about["until"]), {}
    for position, event in shown.kept.items():
        times[position] = moment(event["recorded_at"])
    before, after = times.get(first - 1), times.get(last + 1)
    begins = first == 1 or (before is not None and before < since)
    ends = last == run.signed.size or (after is not None and after >= until)
    if not begins or not ends or times[first] < since or times[last] >= until:
        report.no(f"incomplete: these are not all events from {about['from']} until {about['until']}")
    else:
        report.ok(f"complete from {about['from']} until {about['until']}, by the times of recording")


def _check_code(run: Run, shown: Shown, about: Event, report: Report) -> None:
    code = about["code_id"]
    if not _check_stream(run, shown, b"stream", code, f"code {code}", report):
        return
    if not any(e["type"] == "CodeGenerated" for e in shown.kept.values() if e["stream_id"] == code):
        report.no(f"code {code}: this is the stream of something else")
    # Bundles for brands do not show the permission.
    creators = {e.get("creator_stream") for e in shown.kept.values() if e["stream_id"] == code}
    for permission in sorted({e["stream_id"] for e in shown.kept.values() if e["type"] in PERMISSION}):
        if permission in creators:
            _check_stream(run, shown, b"stream", permission, "the permission that the code rests on", report)
        else:
            report.no(f"code {code}: a permission is shown that is not its creator's")
    if not any(e["type"] in PERMISSION for e in shown.kept.values()):
        report.note("permission: not shown; nothing is claimed of it")
    _note_withheld(shown, report)


def _note_withheld(shown: Shown, report: Report) -> None:
    if withheld := shown.levels.count(JUST_ENVELOPE) + shown.levels.count(CONTENT_TOO):
        report.note(f"withheld: what {withheld} events say; their types and times are shown, and none is left out")


def _check_creator(run: Run, shown: Shown, about: Event, report: Report) -> None:
    stream, creator = about["creator_stream"], about["creator_id"]
    if _check_stream(run, shown, b"creator", stream, f"creator {creator}", report):
        own = [e for e in shown.kept.values() if e["stream_id"] == stream]
        if not own or any(e.get("creator_id") != creator for e in own):
            report.no(f"creator {creator}: the stream that was searched for is not this creator's")
        _note_withheld(shown, report)


def _check_answer(run: Run, shown: Shown, about: Event, stated: Event, report: Report) -> None:
    """Compute the answer again, and check that every event is shown that could have changed it."""
    found = answer_from(shown.kept.values(), about["video_id"], about["advertiser_id"], moment(about["at"]))
    for name, value in found.items():
        given = stated[name]
        given = moment(given) if isinstance(value, datetime) and given is not None else given
        if given != value and not (name in NOT_DECIDING and given is None):
            report.no(f"answer: {name} is {value} by the events, and the bundle states {given}")
            return
    own = (e for e in shown.kept.values() if e["stream_id"] == found["code_id"])
    code = next((e for e in own if "creator_id" in e), None)
    known = {"video_id": about["video_id"], "advertiser_id": about["advertiser_id"], "as_of": run.signed.size}
    known |= {"creator_id": None if code is None else code["creator_id"]}
    for name, value in known.items():
        if stated.get(name, value) != value:
            report.no(f"answer: {name} is {value}, and the bundle states another")
            return
    word = "AUTHORIZED" if found["authorized"] else f"NOT AUTHORIZED ({found['reason']})"
    question = f"video {about['video_id']}, account {about['advertiser_id']}, at {about['at']}"
    report.ok(f"answer: {word}, computed from the events: {question}")
    if found["authorized"]:
        _check_yes(run, shown, found["code_id"], report)
    else:
        video = about["video_id"]
        _check_video(run, shown, video, f"all codes of video {video}, on which a no rests", report)
    if code is not None:
        _check_permission(run, shown, stated, code.get("creator_stream"), report)
        if stated["shared"] is not None:
            text = "by the events that are shown; whether another says whose the account is, was not checked"
            report.note(f"shared: {stated['shared']} {text}. The answer does not rest on it")


def _check_yes(run: Run, shown: Shown, code: str, report: Report) -> None:
    """A yes rests on one code: all its events are there, and all that could end it say what they say."""
    if not _check_stream(run, shown, b"stream", code, f"code {code}, on which a yes rests", report):
        return
    own = [event for event in shown.kept.values() if event["stream_id"] == code]
    for event in own:
        if event["type"] in ENDING and shown.levels[event["position"]] < ALL:
            report.no(f"incomplete: what event {event['position']}, {event['type']}, says is not shown")


def _check_permission(run: Run, shown: Shown, stated: Event, creator: str | None, report: Report) -> None:
    """What is stated of the creator's permission rests on all events of it, and on what each says."""
    what = "the creator's permission"
    if stated["permission_enabled"] is None:
        report.note("permission: not shown; the answer does not rest on it")
    elif creator is None:
        report.no(f"incomplete: {what}: whose code it is, is not shown")
    elif _check_stream(run, shown, b"stream", creator, what, report):
        hidden = [p for p in run.positions(b"stream", _uuid(creator)) or () if shown.levels[p] < ALL]
        if hidden:
            report.no(f"incomplete: {what}: what event {hidden[0]} says is not shown")


def _check_video(run: Run, shown: Shown, video: str, what: str, report: Report) -> None:
    """Check that all codes of a video are shown, and of each all events.

    No tag leads to the codes of a video. So every event is shown by its type and each code by its video, or else only
    those since the heads, of which one counts the codes of the video before.
    """
    missing = shown.missing(range(run.first, run.signed.size + 1))
    if missing is not None or not (run.whole or run.heads):
        report.no(f"incomplete: {what}: the event at position {missing or 1} is not shown")
        return
    codes, unsaid = _codes_of(shown, video)
    if unsaid is not None:
        report.no(f"incomplete: {what}: {unsaid} is not shown")
    elif (broken := shown.gap(codes)) is not None:
        report.no(f"incomplete: {what}: the versions of stream {broken} have a gap, or one is there twice")
    else:
        if run.heads is not None:
            run.heads.check_video(video, [run.early[own[0]] for own in codes.values() if own[0] < run.first])
            for stream, own in codes.items():
                run.heads.check(b"stream", _uuid(stream), [run.early[p] for p in own if p < run.first])
        how = f"found among all {run.signed.size:,} events" if run.whole else f"{run.how}, each shown by its type"
        report.ok(f"complete for {what}: {len(codes)} codes, {how}")


def _codes_of(shown: Shown, video: str) -> tuple[dict[str, list[int]], str | None]:
    """Return the positions of each code of a video, and what must be shown of one and is not."""
    codes: dict[str, list[int]] = {}
    for position, event in shown.kept.items():
        stream, level, type_ = event["stream_id"], shown.levels[position], event["type"]
        if type_ == "CodeGenerated":
            if level == JUST_ENVELOPE:
                return codes, f"the video of the code at position {position}"
            if event["video_id"] == video:
                codes[stream] = []
        if stream in codes:
            codes[stream].append(position)
            if type_ in DECIDING and level < ALL:
                return codes, f"what event {position}, {type_}, says"
    return codes, None


def _check_erased(shown: Shown, report: Report) -> None:
    """Check that each part that is said to be erased was erased on record: by this creator's own erasure."""
    erased = [event for event in shown.kept.values() if "erased_by" in event]
    for event in erased:
        cause = shown.kept.get(event["erased_by"])
        if (
            cause is None
            or cause["type"] != "CreatorErased"
            or event.get("creator_stream") != cause["stream_id"]
            or event.get("sealed") is None
            or cause["position"] < event["position"]
        ):
            report.no(f"missing: the sealed part of event {event['position']}; no erasure of its creator is shown")
            return
    if erased:
        by = sorted({event["erased_by"] for event in erased})
        report.ok(f"erased lawfully: the sealed parts of {len(erased)} events, by the erasures at positions {by}")


def _check_older(run: Run, older: Checkpoint, keys: Sequence[Key], report: Report) -> None:
    """Check that the log continues the checkpoint that the person who verifies has kept."""
    signed = run.signed
    if older.origin != signed.origin or not any(older.verified_by(key) is not None for key in keys):
        report.no("consistent: your checkpoint is of another log, or not signed by a key that you named")
        return
    if older.size > signed.size:
        report.no(f"consistent: your checkpoint is newer ({older.size:,} events) than the bundle; ask for a newer one")
        return
    root = signed.root if older.size == signed.size else older.root if older.size == 0 else run.root_at(older.size)
    if root is None:
        report.no("consistent: cannot be told from the entries of this bundle; ask for one with all entries")
        return
    if root == older.root:
        report.ok(f"consistent with your checkpoint: the log continues the {older.size:,} events that it had")
    else:
        report.no(f"FORK: both are signed, and they contradict each other:\n      {older}\n      {signed}")


def _check_receipt(run: Run, data: bytes, keys: Sequence[Key], report: Report) -> None:
    """Check that the log of the bundle still has the event of a receipt that the person who verifies has kept."""
    signed = run.signed
    head, _, note = data.partition(b"\n\n")
    lines = head.decode().split("\n")
    extra = [line[6:] for line in lines[1:2] if line.startswith("extra ")]
    rest = lines[1 + len(extra) :]
    if lines[0] != "c2sp.org/tlog-proof@v1" or not re.fullmatch(r"index (0|[1-9][0-9]{0,18})", rest[0] if rest else ""):
        raise Wrong("the receipt is not a tlog-proof")
    index, path, then = int(rest[0][6:]), [unbase64(line) for line in rest[1:]], Checkpoint(note)
    position = index + 1
    if not signed.size > index:
        report.no(f"receipt: the bundle ends with {signed.size:,} events, before event {position}; ask for a newer one")
    elif then.origin != signed.origin or not any(then.verified_by(key) is not None for key in keys):
        report.no("receipt: it is of another log, or not signed by a key that you named")
    elif not run.first <= position <= run.last:
        report.no(f"receipt: event {position} is not among the entries of this bundle; ask for one that covers it")
    else:
        kept = unbase64(extra[0]) if extra else run.entry(position)
        if root_by_path(leaf_hash(kept), index, then.size, path) == then.root and kept == run.entry(position):
            report.ok(f"receipt: the log has the event of your receipt, at position {position}")
        elif extra and root_by_path(leaf_hash(kept), index, then.size, path) != then.root:
            report.no("receipt: it is damaged: its proof does not lead to its checkpoint")
        else:
            report.no(f"REFUTED by your receipt: event {position} of this bundle is not the one that was signed then")


def describe(about: Event) -> str:
    """Return in a few words what a bundle is about, as --about expects it."""
    match about["kind"]:
        case "ledger":
            return "ledger"
        case "range":
            return f"range:{about['first']}-{about['last']}"
        case "code":
            return f"code:{about['code_id']}"
        case "creator":
            return f"creator:{about['creator_id']}"
        case "video":
            return f"video:{about['video_id']}"
        case "answer":
            return f"answer:{about['video_id']}/{about['advertiser_id']}/{about['at']}"
    raise Wrong("the bundle is about something that is not known here")


# How what a bundle can be about is spelled. An id that only looks like another has no codes, which would prove nothing.
SPELLED = {"video_id": ID, "advertiser_id": ID, "code_id": UUID, "creator_stream": UUID}
SPELLED |= {"at": TIME, "from": TIME, "until": TIME}


def _stated(bundle: Bundle) -> Event:
    """Return what the bundle says that it shows: a claim, of which there must be one reading."""
    text = bundle.read("data/answer.json").decode()
    stated: Event = json.loads(text)
    if stated.get("format") != FORMAT:
        raise Wrong(f"this bundle is not of the format {FORMAT!r}, which is the only one known here")
    if json.dumps(stated, ensure_ascii=False, indent=2) + "\n" != text:
        raise Wrong("about: answer.json is not in the one spelling of bundles, so others could read something else")
    about = stated["about"]
    for name, form in SPELLED.items():
        if name in about and not (isinstance(about[name], str) and form.fullmatch(about[name])):
            raise Wrong(f"about: {name} is not spelled as a ledger spells it")
    if any(type(about.get(name, 1)) is not int for name in ("first", "last")):
        raise Wrong("about: the positions are not numbers")
    return stated


def verify(
    path: Path,
    *,
    keys: Sequence[Key] = (),
    witnesses: Sequence[Key] = (),
    quorum: int | None = None,
    policy: Policy | None = None,
    unpinned: bool = False,
    older: bytes | None = None,
    receipts: Sequence[bytes] = (),
    max_age_s: float | None = None,
    about: str | None = None,
    now: float | None = None,
    reading: Callable[[Bundle, Run, bytes], Reading] = Reading,
) -> Report:
    """Verify a bundle.

    Raises:
        OSError, zipfile.BadZipFile: the bundle cannot be read.

    """
    report = Report()
    if policy is not None:
        keys = [*keys, *policy.keys]
    try:
        bundle = Bundle(path)
        _check_files(bundle, keys, report)
        stated = _stated(bundle)
        topic, log_id = stated["about"], _uuid(stated["log"]["log_id"])
        if about is not None and about != describe(topic):
            report.no(f"about: the bundle is about {describe(topic)}, and not about {about}")
        else:
            report.note(f"about: {describe(topic)}. Is that what you asked?")
        signed = Checkpoint(bundle.read("data/proof/checkpoint"))
        _check_state(stated["log"], signed, report)
        enclosed = [Key(line) for line in bundle.read("data/keys/log.vkeys").decode().split("\n")[:-1]]
        run = Run(bundle, signed)
        if "data/proof/heads.json" in bundle.names:
            run.take_heads(bundle, log_id)
        introduced = _check_log_keys(bundle, run, log_id, keys, report)
        _check_signatures(signed, keys, introduced, enclosed, report, unpinned=unpinned)
        seen = _check_witnesses(signed, witnesses, quorum, policy, report)
        trusted = [*keys, *(key for key, _ in introduced)] or (enclosed if unpinned else [])
        _check_age(max(seen, default=None), max_age_s, time.time() if now is None else now, report)
        report.ok(f"entries: {run.first:,} to {run.last:,} of {signed.size:,} lead to the signed root")
        times = Times()
        times.add(signed.size, seen)
        _check_earlier(bundle, run, [*witnesses, *(policy.witnesses.values() if policy else ())], times, report)
        events = reading(bundle, run, log_id)
        shown = _check_events(events, topic, times)
        report.ok(f"events: each of the {shown.count:,} that are shown is the one in the signed log")
        if not events.same:
            report.no("events: events.csv does not say what events.ndjson says")
        _check_grain(run, shown, topic, stated, report)
        _check_erased(shown, report)
        _check_times(shown, times, report)
        if older is not None:
            _check_older(run, Checkpoint(older), trusted, report)
        for receipt in receipts:
            _check_receipt(run, receipt, trusted, report)
        _check_stamps(bundle, run, report)
    except Wrong as wrong:
        report.no(str(wrong))
    except MALFORMED as error:
        report.no(f"the bundle is malformed ({type(error).__name__})")
    return report


def _check_state(stated: Event, signed: Checkpoint, report: Report) -> None:
    known = {"origin": signed.origin, "size": signed.size, "root": base64.b64encode(signed.root).decode()}
    if any(stated[name] != value for name, value in known.items()):
        report.no("about: answer.json names another state of the log than the checkpoint")


def _check_age(newest: int | None, max_age_s: float | None, now: float, report: Report) -> None:
    if max_age_s is None:
        since = "this state of the log" if newest is None else f"{clock(newest)} UTC, when a witness saw it"
        report.note(f"age: what was recorded since {since}, such as a revocation, is not here; see --max-age")
    elif newest is None:
        report.no("age: no witness that you named states a time, so the age of the checkpoint is not known")
    elif now - newest > max_age_s:
        report.no(f"age: the newest time of a witness is {(now - newest) / 3600:,.1f} hours ago")
    else:
        report.ok(f"age: {(now - newest) / 3600:,.1f} hours, by a witness")


def _check_grain(run: Run, shown: Shown, about: Event, stated: Event, report: Report) -> None:
    match about["kind"]:
        case "ledger":
            _check_ledger(run, shown, report)
        case "range":
            _check_range(run, shown, about, report)
        case "code":
            _check_code(run, shown, about, report)
        case "creator":
            _check_creator(run, shown, about, report)
        case "video":
            _check_video(run, shown, about["video_id"], f"video {about['video_id']}", report)
        case "answer":
            _check_answer(run, shown, about, stated["answer"], report)


# ── 6  The command line.


def vkeys(values: Sequence[str]) -> list[Key]:
    """Return the keys that were named, each as a verifier key or as a file of them."""
    found = []
    for value in values:
        lines = [value] if "+" in value else Path(value).read_text().split("\n")
        found += [Key(line) for line in lines if line.strip()]
    return found


def conclusion(report: Report) -> str:
    """Return the last line."""
    return "This bundle holds." if report.good else "This bundle does NOT hold: see the lines that begin with no."


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a bundle, print the verdicts, and return the exit code."""
    parser = argparse.ArgumentParser(prog="verify.py", description="Verify an evidence bundle of Sparkledger.")
    parser.add_argument("bundle", type=Path, help="the ZIP file, or the folder that it was unpacked to")
    parser.add_argument(
        "--key", action="append", default=[], help="a verifier key of the log, or a file with such keys"
    )
    parser.add_argument(
        "--witness", action="append", default=[], help="the verifier key of a witness that must have signed"
    )
    parser.add_argument(
        "--quorum", type=int, metavar="K", help="how many of the witnesses must have signed; by default all of them"
    )
    parser.add_argument(
        "--policy", type=Path, help="a file of c2sp.org/tlog-policy: the keys that you trust, and who must have signed"
    )
    parser.add_argument("--unpinned", action="store_true", help="accept the key that came with the bundle")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that you kept: the log must continue it")
    parser.add_argument(
        "--receipt", type=Path, action="append", default=[], help="a receipt: the log must have its event"
    )
    parser.add_argument("--max-age", type=float, metavar="HOURS", help="how old the newest witness's time may be")
    parser.add_argument("--about", help="what the bundle must be about, such as code:ID, creator:ID or ledger")
    given = parser.parse_args(arguments)
    try:
        report = verify(
            given.bundle,
            keys=vkeys(given.key),
            witnesses=vkeys(given.witness),
            quorum=given.quorum,
            policy=given.policy and Policy(given.policy.read_text()),
            unpinned=given.unpinned,
            older=given.checkpoint and given.checkpoint.read_bytes(),
            receipts=[path.read_bytes() for path in given.receipt],
            max_age_s=None if given.max_age is None else given.max_age * 3600,
            about=given.about,
        )
    except (OSError, Wrong, UnicodeError, zipfile.BadZipFile) as error:
        sys.stderr.write(f"verify.py: {error}\n")
        return 2
    sys.stdout.write(f"{report}\n{conclusion(report)}\n")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
