"""Receipts and policies, checked by torchwood: it takes ours, and refuses what a verifier must refuse.

Needs Go and the Go module proxy, which also brings the version of Go that torchwood wants, so `make outside` runs it.
"""

from __future__ import annotations

import base64
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from api.evidence_bundle import policy_of
from infra.proof.notes import Cosigner
from infra.proof.verify import Checkpoint, unbase64
from tests import given
from tests.infra.proof.bundles import AT, Log

SOURCE: Final = Path(__file__).parent / "receipts"
BUILD_S: Final = 900
RUN_S: Final = 60
POSITION: Final = 3


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("receipts") / "receipts"
    # This torchwood needs a newer Go than others of our programs: the go command fetches it.
    newer = {**os.environ, "GOTOOLCHAIN": "auto"}
    subprocess.run(["go", "build", "-o", str(path), "."], cwd=SOURCE, check=True, timeout=BUILD_S, env=newer)
    return path


@pytest.fixture
def log() -> Log:
    log = Log.of(given.running())
    log.witnesses = [Cosigner(f"w{number}.example", Ed25519PrivateKey.generate()) for number in (1, 2)]
    return log


def says(program: Path, folder: Path, policy: str, entry: bytes, receipt: bytes) -> str:
    for name, content in (("policy", policy.encode()), ("entry", entry), ("receipt", receipt)):
        (folder / name).write_bytes(content)
    files = [str(folder / name) for name in ("policy", "entry", "receipt")]
    done = subprocess.run([str(program), *files], capture_output=True, text=True, timeout=RUN_S, check=False)
    return done.stdout.strip() or done.stderr.strip()


def receipt_of(log: Log, note: str) -> bytes:
    """Return the receipt of an event under a checkpoint with other signatures."""
    head, _, _ = log.receipt(POSITION).partition(b"\n\n")
    return head + b"\n\n" + note.encode()


def test_torchwood_takes_our_receipts_and_no_others(program: Path, log: Log, tmp_path: Path) -> None:
    signed, entry = log.signed(), log.entry(POSITION)
    policy, receipt = policy_of(signed), log.receipt(POSITION)
    assert policy.endswith("quorum none\n")
    assert says(program, tmp_path, policy, entry, receipt) == "ok"
    # What the receipt itself brings is enough: its line `extra` is the entry.
    extra = next(line for line in receipt.decode().split("\n") if line.startswith("extra "))
    assert unbase64(extra.removeprefix("extra ")) == entry
    assert "failed" in says(program, tmp_path, policy, log.entry(POSITION + 1), receipt)
    assert "failed" in says(program, tmp_path, policy_of(Log(log.rows).signed()), entry, receipt)
    root = base64.b64encode(signed.checkpoint.root)
    assert "failed" in says(program, tmp_path, policy, entry, receipt.replace(root, b"A" * 43 + b"="))
    assert "failed" in says(program, tmp_path, policy, entry, receipt.replace(b"index 2\n", b"index 1\n"))


def test_torchwood_takes_our_policies_of_witnesses(program: Path, log: Log, tmp_path: Path) -> None:
    signed, entry = log.signed(), log.entry(POSITION)
    both = log.cosign(signed, AT)
    policy = policy_of(replace(signed, witness_keys=[witness.key.text for witness in log.witnesses]))
    assert "quorum witnesses" in policy
    assert says(program, tmp_path, policy, entry, receipt_of(log, both)) == "ok"
    one = signed.note + log.witnesses[0].cosign(signed.checkpoint, AT)
    assert "failed" in says(program, tmp_path, policy, entry, receipt_of(log, one))
    any_of = policy.replace("group witnesses all", "group witnesses any")
    assert says(program, tmp_path, any_of, entry, receipt_of(log, one)) == "ok"
    assert Checkpoint(one.encode()).size == signed.size
