"""A ledger filled in bulk with the lives of codes, as the commands would have recorded them.

Told once as stories, by the commands themselves, then written by the database many times over with other ids and
days: through the commands a million events would take minutes. What happens to a code stands far from its beginning,
with tens of thousands of other events between, so that a follower finds it neither in the same page nor in the
one before.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol

import psycopg
from psycopg import sql

from infra.eventstore.serialization import clear_body
from tests import given
from tests.given import CODE, NOW, Story

CREATORS: Final = 1_000
BRANDS: Final = 500
# So many codes begin, then so many of them are shared, and so on.
GROUPS: Final = 1_000
CHUNK: Final = 500_000
# A million events are four months.
APART_S: Final = 10

_LIVES: Final = """
CREATE TEMP TABLE lives (
    slot int PRIMARY KEY, code int NOT NULL, version int NOT NULL, type text NOT NULL, body text NOT NULL)
"""

_PERMISSIONS: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_role, actor_subject, source, command_id, creator_id, format, body)
SELECT %(ledger)s, n, md5('creator-' || n)::uuid, 1, gen_random_uuid(), 'PermissionEnabled', 1, x.at, x.at,
       md5('creator-' || n)::uuid, 'creator', 'creator-' || n, 'creator', gen_random_uuid(), 'creator-' || n, 1,
       convert_to('{{"creator_id":"creator-' || n || '"}}', 'UTF8')
FROM generate_series(1, %(creators)s) AS n
CROSS JOIN (SELECT %(now)s - %(upto)s * %(apart)s AS at) x
"""

_EVENTS: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_key, actor_role, source, command_id, creator_id, video_id, key_id, format, commitment, body, sealed)
SELECT %(ledger)s, n,
       (lpad(to_hex(x.code), 12, '0') || '70008000' || substr(md5(x.code::text), 1, 12))::uuid,
       l.version, gen_random_uuid(), l.type, 1, x.at, x.at, x.creator_stream, x.actor, 'operator', 'operator',
       gen_random_uuid(), 'creator-' || x.creator, 'video-' || x.code,
       CASE WHEN l.version = 1 THEN x.creator_stream END, 1,
       CASE WHEN l.version = 1 THEN decode(repeat('ab', 32), 'hex') END,
       convert_to({body}, 'UTF8'),
       CASE WHEN l.version = 1 THEN decode(repeat('ab', 120), 'hex') END
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
CROSS JOIN LATERAL (
    SELECT (n - %(creators)s - 1) / %(block)s AS block, (n - %(creators)s - 1) %% %(block)s AS place
) b
JOIN lives l ON l.slot = b.place / %(groups)s
CROSS JOIN LATERAL (
    SELECT (b.block * %(codes)s + l.code) * %(groups)s + b.place %% %(groups)s AS code,
           n - b.place + l.code * %(groups)s AS generated_position
) c
CROSS JOIN LATERAL (
    SELECT c.code, c.code %% %(creators)s + 1 AS creator, md5('creator-' || c.code %% %(creators)s + 1)::uuid
               AS creator_stream, md5('key-' || c.code %% 50)::uuid AS actor,
           c.code %% %(brands)s + 1 AS brand,
           %(now)s - (%(upto)s - n) * %(apart)s AS at, (%(now)s - (%(upto)s - c.generated_position) * %(apart)s)::date
               AS day
) x
"""


class Database(Protocol):
    """What can be filled."""

    def dsn(self) -> str:
        """Return how to reach it as its owner."""
        ...


def _told() -> list[tuple[int, int, str, str]]:
    """Return what happens to each twenty codes, as (code, version, type, body), in the order in which it happens.

    Not quite half of the events issue a code, the others follow up on one.
    """
    shared = [given.share()]
    redeemed = [*shared, given.redeem()]
    stories: list[Story] = [
        *(given.generated() for _ in range(8)),
        *(given.after(given.generated(), *shared) for _ in range(5)),
        *(given.after(given.generated(), *redeemed) for _ in range(3)),
        given.running(),
        given.campaign_ended(),
        given.after(given.generated(), *redeemed, given.extend(days=60), given.revoke()),
        given.after(given.generated().later(days=31), given.record_due(), given.extend(expires_at=NOW + timedelta(61))),
    ]
    told = [
        (recorded.stream_version, code, recorded.type, clear_body(recorded.event).decode())
        for code, story in enumerate(stories)
        for recorded in story.stream(CODE)
    ]
    return [(code, version, type_, body) for version, code, type_, body in sorted(told)]


def _others(body: str) -> str:
    """Mark what is another for each code: its creator, ids that end in its number, days counted from its own."""
    body = body.replace('"creator-1"', '"creator-@creator@"')
    body = body.replace('"brand-1"', '"brand-@brand@"')
    body = re.sub(r'-1"', '-@code@"', body)
    return re.sub(r"\d{4}-\d\d-\d\d(?=T)", lambda day: f"@{(date.fromisoformat(day[0]) - NOW.date()).days}@", body)


def _body(bodies: list[str]) -> sql.Composed:
    """Return the expression that puts a code's own values in place of the marks."""
    expression: sql.Composable = sql.SQL("l.body")
    for mark in sorted({mark for body in bodies for mark in re.findall(r"@\w+@", body)}):
        value = sql.SQL("x.{}::text").format(sql.Identifier(mark.strip("@")))
        if mark.strip("@").isdigit():
            value = sql.SQL("(x.day + {})::text").format(int(mark.strip("@")))
        expression = sql.SQL("replace({}, {}, {})").format(expression, mark, value)
    return sql.Composed([expression])


def fill(database: Database, ledger_id: int, upto: int, creators: int = CREATORS) -> None:
    """Fill an empty ledger with events up to a position, of so many creators."""
    lives = [(code, version, type_, _others(body)) for code, version, type_, body in _told()]
    counts = {
        "ledger": ledger_id,
        "upto": upto,
        "creators": creators,
        "brands": BRANDS,
        "groups": GROUPS,
        "codes": len({code for code, *_ in lives}),
        "block": GROUPS * len(lives),
        "apart": timedelta(seconds=APART_S),
        "now": datetime.now(UTC),
    }
    events = sql.SQL(_EVENTS).format(body=_body([body for *_, body in lives]))
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        connection.execute(_LIVES)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO lives VALUES (%s, %s, %s, %s, %s)", [(slot, *life) for slot, life in enumerate(lives)]
            )
        connection.execute("ANALYZE lives")
        connection.execute(sql.SQL(_PERMISSIONS).format(), counts)
        for first in range(creators + 1, upto + 1, CHUNK):
            connection.execute(events, {**counts, "first": first, "last": min(first + CHUNK - 1, upto)})
        connection.execute("VACUUM ANALYZE events")
        connection.execute("CHECKPOINT")
