"""Alert rules as their owners see and change them, and the list of what each has sent.

The owner of a rule is an API key; an administrator acts for all owners of the ledger. A rule of another owner looks as
if it did not exist. Nothing is looked for or sent here: the worker reads the same tables.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from infra.auth.key_admin import lock_valid_key
from infra.delivery.alerts.models import (
    About,
    AlertDelivery,
    AlertRule,
    RuleDisabledNow,
    RuleKeyInvalid,
    RuleNotFound,
    TooManyRules,
)
from infra.delivery.alerts.schedule import Timing
from infra.delivery.alerts.sealing import AlertSealer
from infra.delivery.webhooks.idempotent_requests import first_answer, remember_answer
from infra.ids import uuid7
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from infra.crypto.keyring import Keyring
    from infra.delivery.alerts.models import MessageState, NewRule
    from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
    from infra.delivery.webhooks.models import Owner
    from infra.postgres.pool import Database, LedgerConnection

MAX_RULES: Final = 200
MAX_RULES_OF_A_KEY: Final = 40
# Test messages that may wait.
MAX_WAITING_TESTS: Final = 5
MAX_REPLAYED: Final = 100

# `key_id` is null for an owner who acts for all of the ledger.
_OWNED: Final = "r.ledger_id = %(ledger_id)s AND (%(key_id)s::uuid IS NULL OR r.key_id = %(key_id)s)"

_SELECT: Final = f"""
    SELECT r.rule_id, r.key_id, r.kind, r.days, r.creator_id, r.brand_id, r.advertiser_id, r.channel, r.address,
           r.name, r.zone, r.digest_at, r.quiet_from, r.quiet_until, r.created_at, r.disabled, r.disabled_at,
           (SELECT count(*) FROM alert_findings f WHERE f.rule_id = r.rule_id AND f.message_id IS NULL)
           + (SELECT count(*) FROM alert_messages m WHERE m.rule_id = r.rule_id AND m.state = 'waiting'),
           (SELECT count(*) FROM alert_messages m WHERE m.rule_id = r.rule_id AND m.state = 'dead'),
           p.sent, p.failed, p.sent_at, p.failed_at, p.error
    FROM alert_rules r
    JOIN alert_progress p ON p.rule_id = r.rule_id
    WHERE {_OWNED}
"""
_LIST: Final = f"{_SELECT} ORDER BY r.rule_id DESC"
_ONE: Final = f"{_SELECT} AND r.rule_id = %(rule_id)s"
_LOCK: Final = f"SELECT disabled FROM alert_rules r WHERE {_OWNED} AND r.rule_id = %(rule_id)s FOR UPDATE"
_EXISTS: Final = f"SELECT 1 FROM alert_rules r WHERE {_OWNED} AND r.rule_id = %(rule_id)s"

# Rules of a ledger are created one after the other, so that their number is right.
_LOCK_COUNT: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_COUNT: Final = "SELECT count(*), count(*) FILTER (WHERE key_id = %s) FROM alert_rules"
_CREATE: Final = """
    INSERT INTO alert_rules (
        rule_id, ledger_id, key_id, kind, days, creator_id, brand_id, advertiser_id, channel, address, name, zone,
        digest_at, quiet_from, quiet_until, disabled, disabled_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, CASE WHEN %s THEN NULL ELSE 'asked' END,
            CASE WHEN %s THEN NULL ELSE now() END)
"""
_CREATE_PROGRESS: Final = """
    INSERT INTO alert_progress (rule_id, ledger_id, since)
    SELECT %(rule_id)s, %(ledger_id)s, coalesce(max(e.position), 0) FROM events e WHERE e.ledger_id = %(ledger_id)s
"""

_CHANGE: Final = """
    UPDATE alert_rules
    SET days = %(days)s, address = %(address)s, name = %(name)s, zone = %(zone)s, digest_at = %(digest_at)s,
        quiet_from = %(quiet_from)s, quiet_until = %(quiet_until)s,
        disabled = CASE WHEN %(enabled)s THEN NULL ELSE coalesce(disabled, 'asked') END,
        disabled_at = CASE WHEN %(enabled)s THEN NULL ELSE coalesce(disabled_at, now()) END
    WHERE rule_id = %(rule_id)s
"""
# What happened meanwhile is no news any more: it looks at what holds now.
_LOOK_AFRESH: Final = """
    UPDATE alert_progress p
    SET position = NULL,
        since = (SELECT coalesce(max(e.position), 0) FROM events e WHERE e.ledger_id = p.ledger_id)
    WHERE rule_id = %s
"""

_WAITING_TESTS: Final = """
    SELECT message_id FROM alert_messages
    WHERE rule_id = %s AND test AND state = 'waiting'
    ORDER BY message_id DESC
    LIMIT %s
"""
_ADD_TEST: Final = """
    INSERT INTO alert_messages (message_id, rule_id, ledger_id, test, findings, made_at, next_at)
    VALUES (%s, %s, %s, true, 0, %s, %s)
"""

_REPLAY: Final = """
    UPDATE alert_messages
    SET state = 'waiting', attempts = 0, next_at = %(now)s
    WHERE message_id IN (
        SELECT message_id FROM alert_messages
        WHERE rule_id = %(rule_id)s AND state = 'dead'
        ORDER BY message_id
        LIMIT %(limit)s
    )
"""

_DELIVERIES: Final = """
    SELECT message_id, test, findings, state, made_at, attempts, first_at, last_at, next_at, error
    FROM alert_messages
    WHERE rule_id = %s
    AND message_id < %s
    AND (%s::text IS NULL OR state = %s)
    ORDER BY message_id DESC
    LIMIT %s
"""


class AlertRules:
    """Reads and changes the rules of an owner."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the database, and the keys that addresses and names are sealed with."""
        self._database = database
        self._keyring = keyring

    async def create(
        self, owner: Owner, rule: NewRule, request: IdempotentRequest | None = None
    ) -> tuple[AlertRule, bool]:
        """Create a rule; return it, and whether this request was a repeat.

        Raises:
            TooManyRules: the ledger, or the key, has reached its limit.
            KeyNoLongerValid: the owner's key was revoked in the meantime; here and below.
            IdempotencyMismatch: the Idempotency-Key was used for another request; here and below.

        """
        sealer = await self._sealer(owner)
        async with self._changing(owner) as connection:
            answered = await first_answer(connection, owner, request)
            rule_id = uuid7() if answered is None else UUID(answered["rule_id"])
            if answered is None:
                await connection.execute(_LOCK_COUNT, (AdvisoryLock.ALERT_COUNT, owner.ledger_id))
                row = await (await connection.execute(_COUNT, (owner.key_id,))).fetchone()
                if row is None or row[0] >= MAX_RULES or row[1] >= MAX_RULES_OF_A_KEY:
                    raise TooManyRules
                columns = (
                    *(rule.kind, list(rule.days)),
                    *(rule.about.creator_id, rule.about.brand_id, rule.about.advertiser_id),
                    *(rule.channel, sealer.seal("address", rule.address, rule_id)),
                    sealer.seal_optional("name", rule.name, rule_id),
                    *(rule.timing.zone, rule.timing.digest_at, rule.timing.quiet_from, rule.timing.quiet_until),
                    *(rule.enabled, rule.enabled),
                )
                await connection.execute(_CREATE, (rule_id, owner.ledger_id, owner.key_id, *columns))
                created = {"rule_id": rule_id, "ledger_id": owner.ledger_id}
                await connection.execute(_CREATE_PROGRESS, created)
                await remember_answer(connection, owner, request, rule_id=rule_id)
            return await _one(connection, owner, rule_id, sealer), answered is not None

    async def all(self, owner: Owner) -> list[AlertRule]:
        """Return the rules, newest first."""

        async def query(connection: LedgerConnection) -> list[AlertRule]:
            rows = await (await connection.execute(_LIST, owner.parameters)).fetchall()
            return [_rule(row, sealer) for row in rows]

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def one(self, owner: Owner, rule_id: UUID) -> AlertRule:
        """Return a rule.

        Raises:
            RuleNotFound: the owner has no such rule; here and below.

        """

        async def query(connection: LedgerConnection) -> AlertRule:
            return await _one(connection, owner, rule_id, sealer)

        sealer = await self._sealer(owner)
        return await self._database.read(owner.ledger_id, query)

    async def change(self, owner: Owner, rule_id: UUID, **changes: Any) -> AlertRule:
        """Change the given fields: `days`, `address`, `name`, `timing`, `enabled`.

        A rule that is enabled again looks at what holds now, as a new one does. What it has reported, it does not
        report again.

        Raises:
            RuleKeyInvalid: the rule cannot be enabled, because its key is not valid.

        """
        sealer = await self._sealer(owner)
        async with self._changing(owner) as connection:
            await _lock(connection, owner, rule_id)
            known = await _one(connection, owner, rule_id, sealer)
            given = {name: value for name, value in changes.items() if name != "enabled"}
            rule = replace(known, **given)
            enabled = changes.get("enabled", known.disabled is None)
            if enabled and known.disabled is not None:
                await _require_valid_owner(connection, rule_id)
                await connection.execute(_LOOK_AFRESH, (rule_id,))
            timing = rule.timing
            columns = {
                "rule_id": rule_id,
                "days": list(rule.days),
                "address": sealer.seal("address", rule.address, rule_id),
                "name": sealer.seal_optional("name", rule.name, rule_id),
                "zone": timing.zone,
                "digest_at": timing.digest_at,
                "quiet_from": timing.quiet_from,
                "quiet_until": timing.quiet_until,
                "enabled": enabled,
            }
            await connection.execute(_CHANGE, columns)
            return await _one(connection, owner, rule_id, sealer)

    async def delete(self, owner: Owner, rule_id: UUID) -> None:
        """Delete a rule, with its findings and its list of messages."""
        async with self._changing(owner) as connection:
            await _lock(connection, owner, rule_id)
            await connection.execute("DELETE FROM alert_rules WHERE rule_id = %s", (rule_id,))

    async def test(
        self, owner: Owner, rule_id: UUID, now: datetime, request: IdempotentRequest | None = None
    ) -> tuple[UUID, bool]:
        """Have a test message sent; return its id, and whether this request was a repeat.

        Where too many tests wait already, return the id of the newest one.

        Raises:
            RuleDisabledNow: the rule is disabled.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, rule_id, enabled=True)
            answered = await first_answer(connection, owner, request)
            if answered is not None:
                return UUID(answered["message_id"]), True
            waiting = await (await connection.execute(_WAITING_TESTS, (rule_id, MAX_WAITING_TESTS))).fetchall()
            if len(waiting) < MAX_WAITING_TESTS:
                message_id = uuid7()
                await connection.execute(_ADD_TEST, (message_id, rule_id, owner.ledger_id, now, now))
            else:
                message_id = waiting[0][0]
            await remember_answer(connection, owner, request, message_id=message_id)
            return message_id, False

    async def replay(
        self, owner: Owner, rule_id: UUID, now: datetime, request: IdempotentRequest | None = None
    ) -> tuple[int, bool]:
        """Send the oldest messages again that were given up; return how many, and whether this request was a repeat.

        Raises:
            RuleDisabledNow: the rule is disabled.

        """
        async with self._changing(owner) as connection:
            await _lock(connection, owner, rule_id, enabled=True)
            answered = await first_answer(connection, owner, request)
            if answered is not None:
                return int(answered["replayed"]), True
            asked = {"rule_id": rule_id, "now": now, "limit": MAX_REPLAYED}
            replayed = (await connection.execute(_REPLAY, asked)).rowcount
            await remember_answer(connection, owner, request, replayed=replayed)
            return replayed, False

    async def deliveries(
        self, owner: Owner, rule_id: UUID, *, before: UUID, state: MessageState | None, limit: int
    ) -> list[AlertDelivery]:
        """Return the messages before one of them, the newest first."""

        async def query(connection: LedgerConnection) -> list[AlertDelivery]:
            asked = {**owner.parameters, "rule_id": rule_id}
            if await (await connection.execute(_EXISTS, asked)).fetchone() is None:
                raise RuleNotFound
            cursor = await connection.execute(_DELIVERIES, (rule_id, before, state, state, limit))
            return [AlertDelivery(*row) for row in await cursor.fetchall()]

        return await self._database.read(owner.ledger_id, query)

    async def _sealer(self, owner: Owner) -> AlertSealer:
        return AlertSealer(await self._keyring.ledger(owner.ledger_id))

    @asynccontextmanager
    async def _changing(self, owner: Owner) -> AsyncIterator[LedgerConnection]:
        """Open a transaction that also locks the owner's key, so that a revoked key changes nothing."""
        async with self._database.connection(owner.ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, owner.ledger_id, owner.key_id)
            yield connection


def _rule(row: Sequence[Any], sealer: AlertSealer) -> AlertRule:
    rule_id = row[0]
    columns: tuple[Any, ...] = (
        *row[:4],
        About(*row[4:7]),
        row[7],
        sealer.unseal("address", row[8], rule_id),
        sealer.unseal_optional("name", row[9], rule_id),
        Timing(*row[10:14]),
        *row[14:],
    )
    return AlertRule(*columns)


async def _one(connection: LedgerConnection, owner: Owner, rule_id: UUID, sealer: AlertSealer) -> AlertRule:
    row = await (await connection.execute(_ONE, {**owner.parameters, "rule_id": rule_id})).fetchone()
    if row is None:
        raise RuleNotFound
    return _rule(row, sealer)


async def _lock(connection: LedgerConnection, owner: Owner, rule_id: UUID, *, enabled: bool = False) -> None:
    row = await (await connection.execute(_LOCK, {**owner.parameters, "rule_id": rule_id})).fetchone()
    if row is None:
        raise RuleNotFound
    if enabled and row[0] is not None:
        raise RuleDisabledNow


async def _require_valid_owner(connection: LedgerConnection, rule_id: UUID) -> None:
    cursor = await connection.execute(
        "SELECT 1 FROM alert_rules r JOIN api_keys k ON k.key_id = r.key_id WHERE r.rule_id = %s"
        " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())",
        (rule_id,),
    )
    if await cursor.fetchone() is None:
        raise RuleKeyInvalid
