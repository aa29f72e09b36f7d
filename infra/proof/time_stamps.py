"""Asks a time-stamping authority (RFC 3161) to stamp our checkpoints, so that their time is not our word alone.

Each log is stamped once an hour, if it has grown: the newest checkpoint that witnesses have cosigned, or else the
newest. The sealer never waits for that. Whether the authority is to be trusted is for those who verify: here only is
checked that the response is about what was asked.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psycopg
from rfc3161_client import HashAlgorithm, TimestampRequestBuilder, decode_timestamp_response

from infra.postgres.pool import SHORT, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable

STAMP_EVERY_S: Final = 3_600
# How often logs are looked at, and how long one that failed waits.
EVERY_S: Final = 60.0
AWAY_S: Final = 5.0
REQUEST_S: Final = 15.0
MAX_RESPONSE_BYTES: Final = 65_536
_GRANTED: Final = frozenset({0, 1})

# The logs of present generations that have grown since their last stamp, which was long enough ago.
_DUE: Final = """
    SELECT t.ledger_id, t.generation, coalesce(w.size, t.checkpoint_size), coalesce(w.note, t.checkpoint), t.ledger
    FROM log_trees t
    JOIN ledgers l ON l.ledger_id = t.ledger_id -- that this server serves
    LEFT JOIN LATERAL (
        SELECT w.size, w.note FROM witnessed_checkpoints w
        WHERE w.ledger_id = t.ledger_id AND w.generation = t.generation
        ORDER BY w.size DESC
        LIMIT 1
    ) w ON true
    LEFT JOIN LATERAL (
        SELECT s.size, s.stored_at FROM stamped_checkpoints s
        WHERE s.ledger_id = t.ledger_id AND s.generation = t.generation
        ORDER BY s.size DESC
        LIMIT 1
    ) s ON true
    WHERE t.checkpoint IS NOT NULL AND coalesce(w.size, t.checkpoint_size) > coalesce(s.size, 0)
    AND (s.stored_at IS NULL OR s.stored_at <= clock_timestamp() - make_interval(secs => %s))
    AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = t.ledger_id)
    ORDER BY t.ledger_id
"""
_STORE: Final = """
    INSERT INTO stamped_checkpoints (ledger_id, generation, size, note, response, stamped_at)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"

log = logging.getLogger(__name__)


class NotStamped(Exception):
    """The authority did not answer with a time stamp of what it was asked to stamp."""


class TimeStamps:
    """Has checkpoints stamped, for as long as it runs."""

    def __init__(self, conninfo: str, url: str, every_s: float = STAMP_EVERY_S) -> None:
        """Take the database, the authority's URL, and the seconds between two stamps of a log."""
        self._session = session(conninfo, WORKER) | {
            "target_session_attrs": "primary",
            "application_name": "sparkledger time stamps",
        }
        self._url = url
        self._every_s = every_s
        self._tls = ssl.create_default_context()

    def run(self, rest: Callable[[float], None] = time.sleep) -> None:
        """Have checkpoints stamped until the process ends. While the database is away, it retries."""
        while True:
            try:
                with ServerConnection.connect(**self._session) as connection:
                    while not self._leads(connection):
                        rest(AWAY_S)
                    while True:
                        self.round(connection)
                        rest(EVERY_S)
            except (*SHORT, OSError) as error:
                log.warning("Checkpoints are stamped later: %s", " ".join(str(error).split()))
                rest(AWAY_S)

    def round(self, connection: psycopg.Connection) -> None:
        """Have each log stamped whose last stamp is old."""
        for ledger_id, generation, size, note, name in connection.execute(_DUE, (self._every_s,)).fetchall():
            try:
                response, at = self._stamped(note.encode())
            except (NotStamped, OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split())[:200]
                log.warning("The log of ledger %s has no new time stamp: %s", name, reason)
                return  # the others would wait for the same authority
            connection.execute(_STORE, (ledger_id, generation, size, note, response, at))

    def _stamped(self, data: bytes) -> tuple[bytes, datetime]:
        """Return the authority's response over some bytes, and the time that it states."""
        builder = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256)
        asked = builder.nonce(nonce=True).cert_request(cert_request=True).build()
        response = self._post(asked.as_bytes())
        try:
            decoded = decode_timestamp_response(response)
            granted = decoded.status in _GRANTED
            stamp = decoded.tst_info if granted else None
        except ValueError as error:
            raise NotStamped("The answer of the authority is not a time stamp.") from error
        if stamp is None:
            raise NotStamped(f"The authority refused, with status {decoded.status}.")
        if stamp.message_imprint.message != hashlib.sha256(data).digest() or stamp.nonce != asked.nonce:
            raise NotStamped("The authority has stamped something else.")
        return response, stamp.gen_time.replace(tzinfo=UTC) if stamp.gen_time.tzinfo is None else stamp.gen_time

    def _post(self, request: bytes) -> bytes:
        url = urlsplit(self._url)
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(url.netloc, timeout=REQUEST_S, context=self._tls)
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=REQUEST_S)
        try:
            place = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
            connection.request("POST", place, request, {"Content-Type": "application/timestamp-query"})
            answer = connection.getresponse()
            body = answer.read(MAX_RESPONSE_BYTES + 1)
        finally:
            connection.close()
        if answer.status != http.client.OK or len(body) > MAX_RESPONSE_BYTES:
            raise NotStamped(f"The authority answered with status {answer.status} and {len(body)} bytes.")
        return body

    def _leads(self, connection: psycopg.Connection) -> bool:
        row = connection.execute(_LEAD, (AdvisoryLock.TIME_STAMPS,)).fetchone()
        return row is not None and bool(row[0])
