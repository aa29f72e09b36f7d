"""Verification of evidence bundles with everything at hand: `verify.py`, and what that file alone cannot do.

Four checks come on top: the signature of ML-DSA-44, time stamps of an authority, of a whole ledger its sealed heads,
and the answer to the question, computed once more by the domain's own code. `verify.py` has code of its own for it, so
a mistake in either shows.
"""

from __future__ import annotations

import json
import os
import zipfile
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

from domain.advertiser import Advertiser
from domain.authorization import verdict
from domain.code import Code
from domain.recorded import RecordedEvent
from infra.eventstore.reader import to_recorded
from infra.proof import verify
from infra.proof.checkpoints import Checkpoint, cosigned
from infra.proof.event_check import Doubtful, SpreadReading
from infra.proof.heads_check import verdict_on_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from cryptography.x509 import Certificate

_NO_STREAM: Final = UUID(int=0)
_TIME_BYTES: Final = 8
_EVENTS: Final = "data/events.ndjson"


# Of a bundle with more, the events are checked by all processors: other processes need half a second to start.
SPREAD_BYTES: Final = 32 << 20
MAX_PROCESSES: Final = 16


def check_bundle(
    path: Path,
    *,
    keys: Sequence[verify.Key],
    authorities: Sequence[Certificate] = (),
    spread_bytes: int = SPREAD_BYTES,
    **options: Any,
) -> verify.Report:
    """Verify a bundle; the options are those of `verify.verify`.

    Args:
        path: the bundle.
        keys: the verifier keys that are trusted.
        authorities: the certificates of time-stamping authorities that are trusted; without any, no stamp is checked.
        spread_bytes: of more bytes of events, the checks are spread over all processors.
        options: all others.

    Raises:
        OSError, zipfile.BadZipFile: the bundle cannot be read.

    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(usable, MAX_PROCESSES)
    spread = processes > 1 and _events_bytes(path) > spread_bytes
    with _executor(processes) if spread else nullcontext() as executor:
        # Counted while the events are checked; what it says counts only if these are right.
        heads = executor.submit(verdict_on_heads, path) if executor is not None and _is_whole(path) else None
        report = _verified(path, executor, processes, keys=keys, **options)
        if not report.good:
            return report
        bundle = verify.Bundle(path)
        policy = options.get("policy")
        _check_ml_dsa(bundle, [*keys, *(policy.keys if policy is not None else ())], report)
        if authorities:
            _check_stamps(bundle, authorities, report)
        stated = json.loads(bundle.read("data/answer.json"))
        match stated["about"]["kind"]:
            case "answer":
                _check_answer(bundle, stated, report)
            case "ledger":
                counted = _counted(path, heads)
                if counted is not None:
                    right, line = counted
                    (report.ok if right else report.no)(line)
    return report


def _counted(path: Path, heads: Future[tuple[bool, str] | None] | None) -> tuple[bool, str] | None:
    if heads is not None:
        with suppress(BrokenExecutor):  # a process was killed, so they are counted here
            return heads.result()
    return verdict_on_heads(path)


def _is_whole(path: Path) -> bool:
    """Tell whether a bundle says that it is of a whole ledger."""
    try:
        return bool(json.loads(verify.Bundle(path).read("data/answer.json"))["about"]["kind"] == "ledger")
    except (OSError, verify.Wrong, zipfile.BadZipFile, *verify.MALFORMED):
        return False


@contextmanager
def _executor(processes: int) -> Iterator[Executor]:
    """Give other processes; what they have not begun when they are no longer needed is dropped."""
    executor = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _events_bytes(path: Path) -> int:
    """Return how many bytes of events a bundle shows; 0 if it cannot be read, which is found out later."""
    try:
        bundle = verify.Bundle(path)
        if bundle.zip is None:
            return (path / _EVENTS).stat().st_size
        return bundle.zip.getinfo(bundle.top + _EVENTS).file_size
    except (OSError, verify.Wrong, zipfile.BadZipFile, *verify.MALFORMED):
        return 0


def _verified(path: Path, executor: Executor | None, processes: int, **options: Any) -> verify.Report:
    """Verify a bundle with other processes, and with `verify.py` alone if these find anything unusual."""
    if executor is not None:
        reading = partial(SpreadReading, executor=executor, processes=processes)
        with suppress(Doubtful):
            return verify.verify(path, reading=reading, **options)
    return verify.verify(path, **options)


def _check_ml_dsa(bundle: verify.Bundle, keys: Sequence[verify.Key], report: verify.Report) -> None:
    note = verify.Checkpoint(bundle.read("data/proof/checkpoint"))
    for key in keys:
        if key.kind != verify.ML_DSA or key.name != note.origin:
            continue
        signed = [signature for name, id_, signature in note.signatures if (name, id_) == (key.name, key.id)]
        for signature in signed:
            at = int.from_bytes(signature[:_TIME_BYTES], "big")
            message = cosigned(key.name, Checkpoint(note.origin, note.size, note.root), at)
            try:
                MLDSA44PublicKey.from_public_bytes(key.public).verify(signature[_TIME_BYTES:], message)
            except (InvalidSignature, ValueError):
                report.no(f"signed: the ML-DSA-44 signature of {key.name} is wrong")
                return
        if signed:
            report.ok(f"signed by {note.origin} with ML-DSA-44, too, with the key that you named")


def _check_stamps(bundle: verify.Bundle, authorities: Sequence[Certificate], report: verify.Report) -> None:
    """Check each time stamp, and that no event which it covers claims to have been recorded later."""
    sizes = verify.stamped_sizes(bundle)
    if not sizes:
        report.no("time stamp: the bundle has none")
    builder = VerifierBuilder()
    for certificate in authorities:
        builder = builder.add_root_certificate(certificate)
    verifier = builder.build()
    for size in sizes:
        data, response = (bundle.read(f"data/proof/stamped/{size}{end}") for end in ("", ".tsr"))
        try:
            decoded = decode_timestamp_response(response)
            verifier.verify_message(decoded, data)
        except (ValueError, VerificationError) as error:
            report.no(f"time stamp: the one of {size:,} events is not of an authority that you named: {error}")
            continue
        at = decoded.tst_info.gen_time.astimezone(UTC)
        late = _recorded_after(bundle, size, at + timedelta(seconds=verify.SKEW_S))
        if late is None:
            report.ok(f"time stamp: events up to {size:,} were recorded no later than {at:%Y-%m-%d %H:%M:%S} UTC")
        else:
            report.no(f"time stamp: event {late} states that it was recorded after the authority had stamped it")


def _recorded_after(bundle: verify.Bundle, size: int, at: datetime) -> int | None:
    """Return the first event up to a position that states a later time of recording."""
    with bundle.open(_EVENTS) as lines:
        for line in lines:
            event = json.loads(line)
            if event["position"] <= size and datetime.fromisoformat(event["recorded_at"]) > at:
                return int(event["position"])
    return None


def _check_answer(bundle: verify.Bundle, stated: dict[str, Any], report: verify.Report) -> None:
    """Compute the answer with the domain's code from the events that were checked already."""
    about, given = stated["about"], stated["answer"]
    found = domain_answer(
        (json.loads(line) for line in bundle.read(_EVENTS).splitlines()),
        about["video_id"],
        about["advertiser_id"],
        datetime.fromisoformat(about["at"]),
    )
    if (found["authorized"], found["reason"], found["code_id"]) != (
        given["authorized"],
        given["reason"],
        given["code_id"],
    ):
        report.no(f"answer: by the program's own code it is {found['reason']}")
    else:
        report.ok("answer: the same, computed by the program's own code")


def domain_answer(events: Iterable[dict[str, Any]], video_id: str, advertiser_id: str, at: datetime) -> dict[str, Any]:
    """Return the answer that the domain gives from the events whose bodies are shown."""
    streams: dict[UUID, list[RecordedEvent]] = {}
    for event in events:
        if "body" in event:
            recorded = _recorded(event)
            streams.setdefault(recorded.stream_id, []).append(recorded)
    codes, advertiser = [], list[RecordedEvent]()
    for stream in streams.values():
        first = stream[0].event
        if isinstance(first, Code.Generated) and first.video_id == video_id:
            codes.append(stream)
        elif isinstance(first, Advertiser.Named) and first.advertiser_id == advertiser_id:
            advertiser = stream
    found = verdict(codes, streams, advertiser_id, at, advertiser)
    return {
        "authorized": found.authorized,
        "reason": found.reason,
        "code_id": None if found.code_id is None else str(found.code_id),
        "starts_at": found.starts_at,
        "expires_at": found.expires_at,
        "permission_enabled": found.permission_enabled,
        "shared": found.shared,
    }


def _recorded(event: dict[str, Any]) -> RecordedEvent:
    def uuid(name: str) -> UUID | None:
        return None if event.get(name) is None else UUID(event[name])

    return to_recorded(
        (
            event["position"],
            uuid("event_id"),
            event["type"],
            event["type_version"],
            uuid("stream_id"),
            event["version"],
            uuid("creator_stream") or _NO_STREAM,
            datetime.fromisoformat(event["recorded_at"]),
            datetime.fromisoformat(event["effective_at"]),
            uuid("actor_key"),
            event["actor_role"],
            event["actor_subject"],
            event["source"],
            uuid("command_id"),
            event["correlation_id"],
            uuid("causation_id"),
            event["creator_id"],
            event["video_id"],
            event["body"].encode(),
        )
    )
