"""The pictures of the console in its documentation: each is one that the command takes, and they weigh little."""

from __future__ import annotations

import re

from tests.console.pictures import FOLDER, PICTURES

MAX_BYTES = 100_000
MAX_BYTES_TOGETHER = 300_000


def test_the_documentation_shows_the_pictures_that_are_taken_and_no_others() -> None:
    shown = re.findall(r"\(console/([a-z]+)[.]webp\)", (FOLDER.parent / "console.md").read_text())
    files = {path.stem: path.stat().st_size for path in FOLDER.iterdir()}
    assert sorted(shown) == sorted(PICTURES) == sorted(files)
    assert max(files.values()) <= MAX_BYTES
    assert sum(files.values()) <= MAX_BYTES_TOGETHER
