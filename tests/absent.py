"""What a machine lacks for a test: a reason to skip the test, or to fail it where everything must be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(how_to_get_it: str) -> NoReturn:
    """Skip the test with one line that says how to get what is absent; with CI=true, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(how_to_get_it, pytrace=False)
    pytest.skip(how_to_get_it)
