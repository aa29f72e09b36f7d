"""Lists, as they are after all that was recorded."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.world import World, told


def listed(world: World, name: str, client: httpx.Client | None = None, **query: Any) -> list[dict[str, Any]]:
    """Return a list as it stands after all that was recorded."""
    head = world.head()
    answer = (client or world.client).get(f"/v1/{name}", params={"at_least": head} | query)
    assert int(answer.headers["ledger-position"]) >= head
    entries: list[dict[str, Any]] = told(answer, 200)[name]
    return entries
