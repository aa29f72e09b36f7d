"""Spectral, with all its rules for AsyncAPI, has nothing to say about our document; needs npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from api import streams
from api.event_content import EventAnswer
from api.http import asyncapi

VERSION: Final = "6.16.3"
INSTALL_S: Final = 600
LINT_S: Final = 300


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, installed by npm."""
    if shutil.which("npm") is None:
        pytest.fail("Spectral needs npm: install Node.js")
    place = tmp_path_factory.mktemp("spectral")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"@stoplight/spectral-cli@{VERSION}"]
    subprocess.run(install, cwd=place, check=True, timeout=INSTALL_S, capture_output=True)
    # We stay at the version whose schema is beside tests/api/http/test_asyncapi.py.
    rules = {"extends": [["spectral:asyncapi", "all"]], "rules": {"asyncapi-latest-version": "off"}}
    (place / "rules.json").write_text(json.dumps(rules))
    return place


def lint(spectral: Path, document: object) -> list[str]:
    """Return the rules that a document breaks, whatever their severity."""
    (spectral / "asyncapi.json").write_text(json.dumps(document))
    command = ["node_modules/.bin/spectral", "lint", "asyncapi.json", "--ruleset", "rules.json", "--format", "json"]
    done = subprocess.run(
        [*command, "--quiet", "--fail-severity", "hint"],
        cwd=spectral,
        capture_output=True,
        text=True,
        check=False,
        timeout=LINT_S,
    )
    assert done.returncode in {0, 1}, done.stderr
    return [f"{one['code']}: {one['message']}" for one in json.loads(done.stdout or "[]")]


def test_spectral_finds_nothing_in_the_asyncapi_document(spectral: Path) -> None:
    document = asyncapi.document(EventAnswer, streams.ENDINGS)
    assert lint(spectral, document) == []

    # It does look.
    del document["info"]["description"]
    assert [rule.partition(":")[0] for rule in lint(spectral, document)] == ["asyncapi-info-description"]
