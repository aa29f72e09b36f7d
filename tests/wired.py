"""Services for tests of the API that need few of them."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from api.http.dependencies import Services
from infra.settings import Settings


def services(default: Any = None, **parts: Any) -> Services:
    """Return services of these parts; `default` stands for every other part but the settings and the clock."""
    every = {field.name: default for field in fields(Services)}
    fixed = {"settings": Settings(), "now": lambda: datetime.now(UTC), "on_keys_changed": []}
    return Services(**(every | fixed | parts))
