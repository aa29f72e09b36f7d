"""One API process as `sparkledger serve` runs it, saying where it answers."""

from __future__ import annotations

from api.http.server import run
from infra.crypto.master_keys import key_provider
from infra.servers import read_servers
from infra.settings import load_settings


def _say(url: str) -> None:
    print(url, flush=True)  # noqa: T201 - the process that started this one waits for it


if __name__ == "__main__":
    settings = load_settings()
    if settings.databases is not None:
        servers = read_servers(settings.databases)
    else:
        assert settings.database_url is not None
        servers = {"": settings.database_url.get_secret_value()}
    run(settings, servers, key_provider(settings), started=_say)
