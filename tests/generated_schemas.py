"""The published schemas, one file each under docs/schemas, none of them ever changed so that a reader stumbles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from infra.delivery.event_schemas import incompatibilities, schemas

FOLDER: Final = "docs/schemas"


def schema_pages() -> dict[str, str]:
    """Return every schema's file by its path; those of versions that are no longer recorded stay as they are."""
    return {
        f"{FOLDER}/{name}.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


def refused(root: Path) -> list[str]:
    """Return which published schemas the events no longer keep, with why and what to do."""
    problems = []
    for path, text in schema_pages().items():
        if (root / path).exists():
            reasons = incompatibilities(json.loads((root / path).read_text()), json.loads(text))
            problems += [f"{path}: {why}. Make it a new version of the event (CONTRIBUTING.md)." for why in reasons]
    newest = dict(_name_and_version(path) for path in schema_pages())
    for published in sorted((root / FOLDER).glob("*.json")):
        name, version = _name_and_version(published.name)
        # Of a name that is still recorded, older versions stay; a newer one than that was promised as well.
        if newest.get(name, 0) < version:
            problems.append(
                f"{FOLDER}/{published.name}: no such event is recorded any more. Ledgers and subscribers have it: "
                "bring its class back under this name (CONTRIBUTING.md)."
            )
    return problems


def _name_and_version(path: str) -> tuple[str, int]:
    name, _, version = Path(path).stem.rpartition(".v")
    return name, int(version)
