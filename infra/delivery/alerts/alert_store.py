"""The database side of alerts, for the worker: which rules there are, what they have found, and which messages are due.

Everything is written on the session that holds the lock of alerts. Who has lost that session changes nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from infra.auth.api_keys import Subjects
from infra.delivery.alerts.models import About, ActiveRule, DueMessage, Finding, Sight
from infra.delivery.alerts.schedule import Timing
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from infra.delivery.alerts.models import MessageState
    from infra.postgres.pool import Database, LedgerConnection

# Longer than the furthest reminder before an end: what was reported of an end is remembered until it is over.
KEEP_FINDINGS_DAYS: Final = 60
KEEP_MESSAGES_DAYS: Final = 60
PURGE_ROWS: Final = 10_000

_RULES: Final = """
    SELECT r.rule_id, r.ledger_id, r.kind, r.days, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids,
           r.creator_id, r.brand_id, r.advertiser_id, r.channel, r.address, r.zone, r.digest_at, r.quiet_from,
           r.quiet_until, p.position, p.history, p.since, p.made_at,
           k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp()),
           (SELECT h.history FROM histories h WHERE h.ledger_id = r.ledger_id ORDER BY h.generation DESC LIMIT 1),
           CASE WHEN c.ledger_id IS NULL THEN a.ledger_id IS NULL ELSE c.problem IS NULL END
    FROM alert_rules r
    JOIN ledgers l ON l.ledger_id = r.ledger_id -- that this server serves
    JOIN alert_progress p ON p.rule_id = r.rule_id
    JOIN api_keys k ON k.key_id = r.key_id
    LEFT JOIN anchored_ledgers a ON a.ledger_id = r.ledger_id
    LEFT JOIN history_checks c ON c.ledger_id = r.ledger_id AND c.database = database_identity()
    WHERE r.disabled IS NULL
    ORDER BY r.ledger_id, r.rule_id
"""

_DISABLE: Final = """
    UPDATE alert_rules SET disabled = 'key', disabled_at = now()
    WHERE rule_id = ANY (%s) AND disabled IS NULL
"""

# Compared, because its owner may have enabled the rule again just now, and so asked for a new look.
_LOOKED: Final = """
    UPDATE alert_progress SET position = %(position)s, history = %(history)s
    WHERE rule_id = %(rule_id)s AND position IS NOT DISTINCT FROM %(before)s
"""
_FOUND: Final = """
    INSERT INTO alert_findings (
        rule_id, ledger_id, finding, code_id, ends_at, campaign_id, advertiser_id, reason, happened_at, found_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
# What goes on again is news if it stops again.
_GONE: Final = "DELETE FROM alert_findings WHERE rule_id = %s AND finding <> ALL (%s)"

_WAITING: Final = """
    SELECT rule_id, count(*), min(found_at)
    FROM alert_findings
    WHERE message_id IS NULL
    GROUP BY rule_id
"""
_TAKE_FINDINGS: Final = """
    UPDATE alert_findings SET message_id = %(message_id)s
    WHERE rule_id = %(rule_id)s
    AND finding IN (
        SELECT finding FROM alert_findings
        WHERE rule_id = %(rule_id)s AND message_id IS NULL
        ORDER BY ends_at NULLS LAST, happened_at, finding
        LIMIT %(limit)s
    )
"""
_ADD_MESSAGE: Final = """
    INSERT INTO alert_messages (message_id, rule_id, ledger_id, findings, made_at, next_at)
    VALUES (%s, %s, %s, %s, %s, %s)
"""
_MADE: Final = "UPDATE alert_progress SET made_at = %s WHERE rule_id = %s"

_DUE: Final = """
    SELECT message_id, rule_id, test, attempts, made_at
    FROM alert_messages
    WHERE state = 'waiting'
    AND next_at <= %s
    AND rule_id = ANY (%s)
    AND message_id <> ALL (%s)
    ORDER BY next_at, message_id
    LIMIT %s
"""
# Before it is sent: if this process ends in between, the message is sent once more, and that counts as an attempt.
_CLAIM: Final = """
    UPDATE alert_messages
    SET attempts = attempts + 1, first_at = coalesce(first_at, %(now)s), last_at = %(now)s, next_at = %(next_at)s
    WHERE message_id = %(message_id)s
    AND state = 'waiting'
    AND attempts = %(attempts)s
"""
_PUT_OFF: Final = "UPDATE alert_messages SET next_at = %s WHERE message_id = %s AND state = 'waiting'"
_FINDINGS: Final = """
    SELECT finding, code_id, ends_at, campaign_id, advertiser_id, reason, happened_at
    FROM alert_findings
    WHERE message_id = %s
    ORDER BY ends_at NULLS LAST, happened_at, finding
"""
_SETTLE: Final = """
    UPDATE alert_messages SET state = %(state)s, error = %(error)s, next_at = coalesce(%(next_at)s, next_at)
    WHERE message_id = %(message_id)s AND state = 'waiting'
"""
_COUNT_SENT: Final = "UPDATE alert_progress SET sent = sent + 1, sent_at = %s, error = NULL WHERE rule_id = %s"
_COUNT_FAILED: Final = "UPDATE alert_progress SET failed = failed + 1, failed_at = %s, error = %s WHERE rule_id = %s"

_ERASED: Final = """
    SELECT DISTINCT e.stream_id FROM events e
    WHERE e.ledger_id = %s AND e.stream_id = ANY (%s) AND e.type = 'CreatorErased'
"""

_STOPPED: Final = """
    SELECT 'the view ' || v.view FROM view_versions v WHERE v.state = 'failed' AND v.view NOT LIKE '%%\\_next'
    UNION ALL
    SELECT 'publishing to Kafka' WHERE EXISTS (
        SELECT FROM publications p WHERE p.ledger_id = %(ledger_id)s AND p.state = 'stopped'
    )
    UNION ALL
    SELECT 'the signing of the log' WHERE EXISTS (
        SELECT FROM log_trees t WHERE t.ledger_id = %(ledger_id)s AND t.stopped IS NOT NULL
    )
    UNION ALL
    SELECT 'the ledger itself, which may have lost events' WHERE EXISTS (
        SELECT FROM history_checks c WHERE c.ledger_id = %(ledger_id)s AND c.problem IS NOT NULL
    )
    UNION ALL
    SELECT 'the webhook ' || w.webhook_id::text FROM webhooks w
    WHERE w.ledger_id = %(ledger_id)s AND w.disabled IN ('gone', 'failing', 'key')
"""

_PURGE_MESSAGES: Final = """
    DELETE FROM alert_messages WHERE message_id IN (
        SELECT message_id FROM alert_messages
        WHERE state <> 'waiting' AND made_at < %s - make_interval(days => %s)
        LIMIT %s
    )
"""
# Not of what still stands still, which would be reported again.
_PURGE_FINDINGS: Final = """
    DELETE FROM alert_findings f
    USING alert_rules r
    WHERE r.rule_id = f.rule_id AND r.kind <> 'stopped'
    AND f.message_id IS NOT NULL AND f.found_at < %s - make_interval(days => %s)
    AND NOT EXISTS (SELECT FROM alert_messages m WHERE m.message_id = f.message_id AND m.state = 'waiting')
"""


@dataclass(frozen=True, slots=True)
class AlertFigures:
    """How alerts are, in all ledgers.

    Attributes:
        rules: enabled rules.
        waiting, dead: messages that wait, and that were given up.
        sent, failed: attempts in all.
        oldest: when the message was made that has waited longest; None where none waits.

    """

    rules: int
    calendars: int
    waiting: int
    dead: int
    sent: int
    failed: int
    oldest: datetime | None


async def alert_figures(database: Database) -> AlertFigures:
    """Return how alerts are, for metrics. Both database roles may ask."""

    async def query(connection: LedgerConnection) -> Any:
        return await (await connection.execute("SELECT * FROM alert_figures()")).fetchone()

    return AlertFigures(*await database.read(None, query))


async def load_rules(connection: LedgerConnection) -> list[ActiveRule]:
    """Return every rule that is enabled."""
    rows = await (await connection.execute(_RULES)).fetchall()
    return [_active(row) for row in rows]


def _active(row: Sequence[Any]) -> ActiveRule:
    sight = Sight(row[4], Subjects(*map(frozenset, row[5:8])), About(*row[8:11]))
    columns: tuple[Any, ...] = (*row[:4], sight, *row[11:13], Timing(*row[13:17]), *row[17:])
    return ActiveRule(*columns)


async def disable(connection: LedgerConnection, rule_ids: Collection[UUID]) -> None:
    """Disable rules whose key is not valid any more."""
    await connection.execute(_DISABLE, (list(rule_ids),))


async def record_look(
    connection: LedgerConnection, rule: ActiveRule, position: int, findings: Sequence[Finding], now: datetime
) -> None:
    """Record how far a rule has looked and what it has found, both or neither."""
    async with connection.transaction():
        looked = {"rule_id": rule.rule_id, "position": position, "history": rule.history, "before": rule.position}
        if (await connection.execute(_LOOKED, looked)).rowcount == 1:
            await _insert(connection, rule, findings, now)


async def record_stopped(connection: LedgerConnection, rule: ActiveRule, now: datetime) -> None:
    """Record what stands still now, and forget what goes on again."""
    async with connection.transaction():
        rows = await (await connection.execute(_STOPPED, {"ledger_id": rule.ledger_id})).fetchall()
        findings = [Finding(f"stopped:{what}", reason=what, happened_at=now) for (what,) in rows]
        await connection.execute(_GONE, (rule.rule_id, [finding.finding for finding in findings]))
        await _insert(connection, rule, findings, now)


async def _insert(connection: LedgerConnection, rule: ActiveRule, findings: Sequence[Finding], now: datetime) -> None:
    rows = [
        (
            *(rule.rule_id, rule.ledger_id, found.finding, found.code_id, found.ends_at, found.campaign_id),
            *(found.advertiser_id, found.reason, found.happened_at, now),
        )
        for found in findings
    ]
    if rows:
        await connection.cursor().executemany(_FOUND, rows)


async def waiting(connection: LedgerConnection) -> dict[UUID, tuple[int, datetime]]:
    """Return how many findings each rule has that no message has yet, and when the first was found."""
    rows = await (await connection.execute(_WAITING)).fetchall()
    return {rule_id: (count, found_at) for rule_id, count, found_at in rows}


async def make_message(connection: LedgerConnection, rule: ActiveRule, limit: int, now: datetime) -> None:
    """Make a message of the findings that wait, at most so many."""
    message_id = uuid7()
    async with connection.transaction():
        taken = {"message_id": message_id, "rule_id": rule.rule_id, "limit": limit}
        count = (await connection.execute(_TAKE_FINDINGS, taken)).rowcount
        await connection.execute(_ADD_MESSAGE, (message_id, rule.rule_id, rule.ledger_id, count, now, now))
        await connection.execute(_MADE, (now, rule.rule_id))


async def due(
    connection: LedgerConnection, rules: dict[UUID, ActiveRule], now: datetime, *, besides: Collection[UUID], limit: int
) -> list[DueMessage]:
    """Return messages of rules that are due, besides those that are being sent."""
    rows = await (await connection.execute(_DUE, (now, list(rules), list(besides), limit))).fetchall()
    return [
        DueMessage(message_id, rules[rule_id], test, attempts, made_at)
        for message_id, rule_id, test, attempts, made_at in rows
    ]


async def claim(connection: LedgerConnection, message: DueMessage, now: datetime, pause: timedelta) -> bool:
    """Count an attempt, and put the next one off; return false if somebody else did."""
    claimed = {
        "message_id": message.message_id,
        "attempts": message.attempt,
        "now": now,
        "next_at": now + pause,
    }
    return (await connection.execute(_CLAIM, claimed)).rowcount == 1


async def put_off(connection: LedgerConnection, message: DueMessage, until: datetime) -> None:
    """Let a message wait until a moment."""
    await connection.execute(_PUT_OFF, (until, message.message_id))


async def findings_of(connection: LedgerConnection, message_id: UUID) -> list[Finding]:
    """Return what a message is about."""
    return [Finding(*row) for row in await (await connection.execute(_FINDINGS, (message_id,))).fetchall()]


async def erased(connection: LedgerConnection, ledger_id: int, creator_streams: Collection[UUID]) -> set[UUID]:
    """Return the streams of those of these creators who are erased."""
    cursor = await connection.execute(_ERASED, (ledger_id, list(creator_streams)))
    return {row[0] for row in await cursor.fetchall()}


async def settle(
    connection: LedgerConnection,
    message: DueMessage,
    state: MessageState,
    now: datetime,
    *,
    error: str | None = None,
    next_at: datetime | None = None,
) -> None:
    """Record what became of an attempt."""
    async with connection.transaction():
        asked: dict[str, Any] = {"message_id": message.message_id, "state": state, "error": error, "next_at": next_at}
        await connection.execute(_SETTLE, asked)
        if state == "sent":
            await connection.execute(_COUNT_SENT, (now, message.rule.rule_id))
        elif error is not None:
            await connection.execute(_COUNT_FAILED, (now, error, message.rule.rule_id))


async def purge(connection: LedgerConnection, now: datetime) -> None:
    """Delete messages and findings that have been kept long enough."""
    await connection.execute(_PURGE_MESSAGES, (now, KEEP_MESSAGES_DAYS, PURGE_ROWS))
    await connection.execute(_PURGE_FINDINGS, (now, KEEP_FINDINGS_DAYS))
