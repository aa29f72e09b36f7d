"""Codes whose windows end at one moment, written in bulk as the commands would have recorded them.

Each was shared and redeemed, and on every tenth a campaign runs that would outlive it. Through the commands a hundred
thousand of them would take minutes, in which no end could be a few seconds ahead.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg

from infra.crypto.master_keys import MasterKey
from infra.eventstore.serialization import clear_body
from infra.postgres.roles import WORKER
from infra.runtime import runtime
from tests import given
from tests.given import CAMPAIGN, CODE, Story

CREATORS: Final = 200
CAMPAIGN_EVERY: Final = 10

_EVENTS: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_role, source, command_id, creator_id, video_id, format, body)
SELECT %(ledger)s, %(head)s + row_number() OVER (ORDER BY n, l.version), x.stream_id, l.version, gen_random_uuid(),
       l.type, 1, %(now)s, %(now)s, md5('creator-' || n %% %(creators)s)::uuid, 'operator', 'operator',
       gen_random_uuid(), 'creator-' || n %% %(creators)s, 'video-' || n, 1,
       convert_to(replace(replace(l.body, '"creator-1"', '"creator-' || n %% %(creators)s || '"'), '"video-1"',
                          '"video-' || n || '"'), 'UTF8')
FROM generate_series(1, %(codes)s) AS n
JOIN unnest(%(versions)s::int[], %(types)s::text[], %(bodies)s::text[]) AS l (version, type, body)
     ON l.version <= 3 OR n %% %(campaign_every)s = 0
CROSS JOIN LATERAL (
    SELECT (lpad(to_hex(n), 12, '0') || '70008000' || substr(md5(n::text), 1, 12))::uuid AS stream_id
) x
"""

_STREAMS: Final = """
SELECT DISTINCT stream_id, convert_from(body, 'UTF8')::json ->> 'video_id'
FROM events
WHERE ledger_id = %s AND type = 'CodeGenerated' AND position > %s
"""


async def fill(
    conninfo: str, master: MasterKey, ledger_id: int, codes: int, ends_at: datetime, recorded_at: datetime | None = None
) -> None:
    """Put so many codes into a ledger to which nothing else is appended meanwhile.

    Args:
        conninfo: the database, as its superuser.
        master: the key that the ledger's own are wrapped with.
        ledger_id: the ledger.
        codes: how many.
        ends_at: when every window ends; they began a month earlier.
        recorded_at: when all that was recorded and took effect; now, unless reminders are to be due.

    """
    async with runtime(conninfo, WORKER, master) as opened:
        keys = await opened.keyring.ledger(ledger_id)
    told = [(r.stream_version, r.type, clear_body(r.event).decode()) for r in _story(ends_at).stream(CODE)]
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        head = await _value(connection, "SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %s", ledger_id)
        facts = {
            "ledger": ledger_id,
            "head": head,
            "codes": codes,
            "creators": CREATORS,
            "campaign_every": CAMPAIGN_EVERY,
            "now": recorded_at or datetime.now(UTC),
        }
        versions, types, bodies = map(list, zip(*told, strict=True))
        await connection.execute(_EVENTS, {**facts, "versions": versions, "types": types, "bodies": bodies})
        streams = await (await connection.execute(_STREAMS, (ledger_id, head))).fetchall()
        copying = "COPY claims (ledger_id, claim, stream_id) FROM STDIN"
        async with connection.cursor() as cursor, cursor.copy(copying) as copy:
            for stream_id, video_id in streams:
                await copy.write_row((ledger_id, keys.claim("video", video_id), stream_id))
        await connection.execute("VACUUM ANALYZE events, claims")


def _story(ends_at: datetime) -> Story:
    """Tell what is recorded of one code."""
    month = timedelta(days=30)
    story = Story()
    story.clock.now = ends_at - timedelta(seconds=1)
    campaign = replace(CAMPAIGN, starts_at=ends_at - timedelta(days=20), ends_at=ends_at + month)
    generated = (given.permission(), given.generate(starts_at=ends_at - month))
    return given.after(story, *generated, given.share(), given.redeem(), given.launch(campaign))


async def _value(connection: psycopg.AsyncConnection, query: str, *parameters: object) -> int:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None
    return int(row[0])
