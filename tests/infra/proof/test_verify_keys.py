"""Keys that others introduce, to a verifier: only a key of the log does, and only in a state of this log."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from domain.log_entry import hashed
from infra.proof import verify
from infra.proof.checkpoints import LogSigner, LogSigners
from infra.proof.evidence_log import EvidenceRow
from tests import given
from tests.given import CODE
from tests.infra.proof.bundles import AT, LOG_ID, ORIGIN, Log, bad


def signer() -> LogSigner:
    return LogSigner(ORIGIN, Ed25519PrivateKey.generate(), MLDSA44PrivateKey.generate())


def of_the_log(after: EvidenceRow, type_: str, keys: list[str], version: int = 1) -> EvidenceRow:
    """Return an event of the log itself about its keys, right after another event."""
    body = json.dumps({"generation": 1, "vkey": keys[0], "ml_dsa_vkey": keys[1]}).encode()
    event = after.event._replace(
        position=after.event.position + 1,
        stream_id=LOG_ID,
        creator_stream=LOG_ID,
        version=version,
        type=type_,
        type_version=1,
        creator_id=None,
        video_id=None,
        key_id=None,
        commitment=None,
        sealed=None,
        body=hashed(body),
    )
    return EvidenceRow(event, body)


def bundle_of(log: Log) -> dict[str, bytes]:
    return log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))


def with_another_key() -> tuple[Log, LogSigner, LogSigner]:
    """Return a log that has added a key, is signed by it, and was handed over by the key of before; and both keys."""
    old, new = signer(), signer()
    rows = Log.of(given.running()).rows
    log = Log([*rows, of_the_log(rows[-1], "LogKeyAdded", new.verifier_keys)], old)
    size = len(log.rows)
    log.handed_over = {size: LogSigners([old, new]).sign(log.signed().checkpoint, AT)}
    last = of_the_log(log.rows[-1], "LogKeyRetired", old.verifier_keys, version=2)
    return replace(log, rows=[*log.rows, last], signer=new), old, new


@pytest.fixture
def changed() -> tuple[Log, LogSigner, LogSigner]:
    return with_another_key()


def not_by_it(log: Log) -> list[str]:
    return [f"signed: not by the key of {log.signer.origin} that you named"]


def test_a_key_of_the_log_introduces_the_next(changed: tuple[Log, LogSigner, LogSigner], tmp_path: Path) -> None:
    log, old, new = changed
    bundle = bundle_of(log)
    for keys in (old.verifier_keys, new.verifier_keys):
        report = log.verdicts(tmp_path, bundle, keys=verify.vkeys(keys))
        assert report.good, str(report)
    assert bad(log.verdicts(tmp_path, bundle, keys=verify.vkeys(signer().verifier_keys))) == not_by_it(log)


def test_a_key_that_was_introduced_and_then_compromised_counts_for_nothing(
    changed: tuple[Log, LogSigner, LogSigner], tmp_path: Path
) -> None:
    log, old, new = changed
    log = replace(log, rows=[*log.rows, of_the_log(log.rows[-1], "LogKeyCompromised", new.verifier_keys, version=3)])
    assert bad(log.verdicts(tmp_path, bundle_of(log), keys=verify.vkeys(old.verifier_keys))) == not_by_it(log)


def test_the_key_that_signs_bundles_introduces_nobody(
    changed: tuple[Log, LogSigner, LogSigner], tmp_path: Path
) -> None:
    log, old, _ = changed
    # A thief of the bundles' key makes a log, and introduces it by that key.
    size = len(log.rows) - 1
    forged = replace(log, handed_over={size: log.bag_signer.sign(log.signed(size).checkpoint.text)})
    named = verify.vkeys([*old.verifier_keys, log.bag_signer.verifier_key])
    assert bad(log.verdicts(tmp_path, bundle_of(forged), keys=named)) == not_by_it(log)


def test_a_handover_from_before_the_event_or_of_another_state_introduces_nobody(
    changed: tuple[Log, LogSigner, LogSigner], tmp_path: Path
) -> None:
    log, old, new = changed
    keys = verify.vkeys(old.verifier_keys)
    before = len(log.rows) - 2
    early = replace(log, handed_over={before: old.sign(log.signed(before).checkpoint, AT)})
    assert bad(log.verdicts(tmp_path, bundle_of(early), keys=keys)) == not_by_it(log)
    other = Log([log.rows[1], log.rows[0], *log.rows[2:]], old)
    forked = replace(log, handed_over={before + 1: other.signed(before + 1).note})
    verdicts = bad(log.verdicts(tmp_path, bundle_of(forked), keys=keys))
    assert verdicts[0].startswith("FORK: the log was handed to another key in a state that contradicts this one:")
    assert verdicts[1:] == not_by_it(log)
    assert new.origin == old.origin
