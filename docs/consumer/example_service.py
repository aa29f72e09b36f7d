"""An example of a service that follows Sparkledger's events: which advertiser may run which video, and until when?

    KAFKA=localhost:9092 DATABASE_URL=postgresql://localhost/ads python example_service.py

It keeps one table. Stop it, kill it, start it twice: the table ends up the same.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import psycopg
from sparkledger_consumer import Consumer, Event

# The lock is for processes that start at the same time: without it, two of them would create the same table.
TABLES = """
SELECT pg_advisory_xact_lock(7290131);
CREATE TABLE IF NOT EXISTS codes (code_id text PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS allowed (
    video_id text, advertiser_id text, until timestamptz NOT NULL, code_id text NOT NULL REFERENCES codes,
    PRIMARY KEY (code_id, advertiser_id));
"""


def handle(cursor: psycopg.Cursor[Any], event: Event) -> None:
    """Update the table by an event; other types are ignored."""
    code_id = event.data.get("code_id")
    match event.type:
        case "sparkledger.CodeGenerated.v1":
            cursor.execute(
                "INSERT INTO codes (code_id, expires_at) VALUES (%s, %s)", (code_id, event.body["expires_at"])
            )
        case "sparkledger.Extended.v1":
            cursor.execute("UPDATE codes SET expires_at = %s WHERE code_id = %s", (event.body["expires_at"], code_id))
            cursor.execute("UPDATE allowed SET until = %s WHERE code_id = %s", (event.body["expires_at"], code_id))
        case "sparkledger.Redeemed.v1":
            cursor.execute(
                "INSERT INTO allowed (video_id, advertiser_id, until, code_id)"
                " SELECT %s, %s, expires_at, code_id FROM codes WHERE code_id = %s",
                (event.data["video_id"], event.body["advertiser_id"], code_id),
            )
        case "sparkledger.Revoked.v1":
            cursor.execute("DELETE FROM allowed WHERE code_id = %s", (code_id,))


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.WARNING)
    database = os.environ["DATABASE_URL"]
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)
    topic = os.environ.get("TOPIC", "sparkledger.code-events.v1")
    consumer = Consumer(database, os.environ["KAFKA"], topic, name="example", handle=handle)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: consumer.stop())
    consumer.run()


if __name__ == "__main__":
    main()
