"""The bytes of answers, and the headers that say which version they show and how far they have read."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.eventstore.command_handler import CommandResult


NO_STORE: Final = {"Cache-Control": "no-store"}


@lru_cache(maxsize=256)
def _in_lower_case(name: str) -> bytes:
    """Return the name of a header as it is sent; there are few."""
    return name.lower().encode("latin-1")


class _Json(Response):
    """A response whose body is JSON, always: so its headers need not be looked through for what is missing."""

    media_type = "application/json"
    background = None

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        """Encode the headers, and add those of the body."""
        self.body = body
        self.status_code = status
        self.raw_headers = [(_in_lower_case(name), value.encode("latin-1")) for name, value in headers.items()]
        self.raw_headers += (b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON: times in UTC with Z, ids as text."""
    return _Json(orjson.dumps(content, option=orjson.OPT_UTC_Z), status, headers or {})


def version_headers(version: int, position: int) -> dict[str, str]:
    """Return the headers that say which version an answer shows, and how far into the ledger it has read."""
    return {"ETag": f'"{version}"', "Ledger-Position": str(position)}


def replay_header(replayed: bool) -> dict[str, str]:
    """Return the header that says that an answer is the first one, told again."""
    return {"Idempotent-Replayed": "true"} if replayed else {}


def command_headers(result: CommandResult[Any], version: int) -> dict[str, str]:
    """Return the headers of a command's answer: the version that it left, and whether it is told again."""
    headers = version_headers(version, result.position)
    return headers | replay_header(result.replayed) if result.replayed else headers


def created_or_repeated(result: CommandResult[Any]) -> int:
    """Return 201 where the command recorded something, also when that is told again, and 200 for a repeat."""
    return 201 if result.appended or result.replayed else 200
