"""One API process as `sparkledger serve` runs it, saying where it answers."""

from __future__ import annotations

from api.server import run
from infra.keys.custody import custodian
from infra.settings import load_settings


def _say(url: str) -> None:
    print(url, flush=True)  # noqa: T201 - whoever started this process waits for it


if __name__ == "__main__":
    settings = load_settings()
    assert settings.database_url is not None
    run(settings, settings.database_url.get_secret_value(), custodian(settings), started=_say)
