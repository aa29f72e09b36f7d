"""Evidence bundles, checked by programs of others: `sha256sum`, and the Library of Congress's `bagit.py`.

`bagit.py` is fetched from the Python package index, so `make outside` runs this and `make test` does not.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests import given
from tests.infra.proof.bundles import Log

BAGIT: Final = "bagit==1.9.0"
CHECK_S: Final = 120


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A bundle, unpacked as its reader would."""
    log = Log.of(given.running())
    path = tmp_path / "evidence.zip"
    path.write_bytes(log.zipped(log.plan({"kind": "ledger"})))
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        bundle.extractall(tmp_path)
    [folder] = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    return folder


def accepts(folder: Path, *command: str | Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=CHECK_S, check=False)
    return done.returncode == 0


def sha256sum_accepts(folder: Path) -> bool:
    manifests = ("manifest-sha256.txt", "tagmanifest-sha256.txt")
    return all(accepts(folder, "sha256sum", "--strict", "--check", manifest) for manifest in manifests)


def bagit_accepts(folder: Path) -> bool:
    uv = Path(sys.executable).with_name("uv")
    return accepts(folder, uv, "tool", "run", "--quiet", "--from", BAGIT, "bagit.py", "--validate", ".")


def test_others_accept_a_bundle_and_refuse_one_that_was_changed(unpacked: Path) -> None:
    assert sha256sum_accepts(unpacked)
    assert bagit_accepts(unpacked)
    with (unpacked / "data/events.csv").open("ab") as file:
        file.write(b"1\r\n")
    assert not sha256sum_accepts(unpacked)
    assert not bagit_accepts(unpacked)


def test_a_file_more_is_refused(unpacked: Path) -> None:
    (unpacked / "data/more.txt").write_text("more")
    assert not bagit_accepts(unpacked)
