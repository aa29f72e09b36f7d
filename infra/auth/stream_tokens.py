"""Stream tokens: what opens a stream for a browser, whose EventSource cannot send an Authorization header.

A token is sealed, and contains the API key that it was made with and the filters of its stream. So it is good as long
as the key is, in every process, and shows nobody the key. It must be used for the first time within a minute. From then
on it is good for one stream at a time: the newest use replaces the one before.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import SealingKey
from infra.ids import uuid7
from projections.engine.array_columns import Uuids

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

PREFIX: Final = "slt_"
USE_WITHIN: Final = timedelta(minutes=1)
# A token that was not used for so long is forgotten, and opens nothing any more.
KEEP_UNUSED_DAYS: Final = 30
_PURPOSE: Final = "stream tokens"

_FIRST_USE: Final = """
    INSERT INTO stream_tokens AS t (ledger_id, token_id, key_id, uses, used_at) VALUES (%s, %s, %s, 1, now())
    ON CONFLICT (ledger_id, token_id) DO UPDATE SET uses = t.uses + 1, used_at = now()
    RETURNING uses
"""
_NEXT_USE: Final = """
    UPDATE stream_tokens SET uses = uses + 1, used_at = now()
    WHERE ledger_id = %s AND token_id = %s AND key_id = %s
    RETURNING uses
"""
_USES: Final = "SELECT token_id, uses FROM stream_tokens WHERE ledger_id = %b AND token_id = ANY (%b)"
PURGE: Final = """
    DELETE FROM stream_tokens WHERE (ledger_id, token_id) IN (
        SELECT ledger_id, token_id FROM stream_tokens WHERE used_at < now() - make_interval(days => %s) LIMIT %s
    )
"""


@dataclass(frozen=True, slots=True)
class StreamToken:
    """What a token says.

    Attributes:
        token_id: of the token.
        presented: the API key that it was made with.
        filters: those of its stream.
        issued_at: when it was made.

    """

    token_id: UUID
    presented: str = field(repr=False)
    filters: Mapping[str, str]
    issued_at: datetime


class StreamTokens:
    """Makes and opens stream tokens, and counts their uses."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take where uses are counted, and whose key seals tokens."""
        self._database = database
        self._keyring = keyring

    async def issue(self, presented: str, filters: Mapping[str, str], now: datetime) -> str:
        """Return a new token for a key and the filters of a stream."""
        content = {"id": uuid7(), "key": presented, "filters": filters, "at": now}
        sealed = (await self._sealing()).seal(orjson.dumps(content, option=orjson.OPT_UTC_Z), None)
        return PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    async def open(self, text: str) -> StreamToken | None:
        """Return what a token says; None if it is no token of ours."""
        try:
            sealed = base64.b64decode(f"{text.removeprefix(PREFIX)}===", altchars=b"-_")
            content: dict[str, Any] = orjson.loads((await self._sealing()).unseal(sealed, None))
        except (InvalidTag, ValueError, binascii.Error):
            return None
        issued_at = datetime.fromisoformat(content["at"]).astimezone(UTC)
        return StreamToken(UUID(content["id"]), content["key"], content["filters"], issued_at)

    async def use(self, ledger_id: int, key_id: UUID, token: StreamToken, now: datetime) -> int | None:
        """Count a use, and return its number; None if the token was not used in time, or not for long.

        Raises:
            Unavailable: the database is away.

        """
        query = _FIRST_USE if now - token.issued_at <= USE_WITHIN else _NEXT_USE
        async with self._database.connection(ledger_id) as connection:
            row = await (await connection.execute(query, (ledger_id, token.token_id, key_id))).fetchone()
        return None if row is None else int(row[0])

    async def uses(self, ledger_id: int, token_ids: Collection[UUID]) -> Mapping[UUID, int]:
        """Return how often tokens were used.

        Raises:
            Unavailable: the database is away.

        """

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_USES, (ledger_id, Uuids(list(token_ids))))
            return await cursor.fetchall()

        return dict(await self._database.read(ledger_id, query))

    async def _sealing(self) -> SealingKey:
        return SealingKey((await self._keyring.hashing()).derived(_PURPOSE))
