"""The alert worker: looks, makes messages of what was found, and sends them.

One worker leads, by an advisory lock. It writes on the session that holds the lock, so that one that has lost it writes
nothing more. An attempt is counted before it is made. If the worker dies between the receiver's answer and the record
of it, the message is sent once more, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final

import psycopg
from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import MasterKeyError
from infra.delivery.alerts import alert_store
from infra.delivery.alerts.channels import Attempted, ChatChannel, MailChannel
from infra.delivery.alerts.looking import look
from infra.delivery.alerts.models import AlertPolicy
from infra.delivery.alerts.schedule import send_at
from infra.delivery.alerts.sealing import AlertSealer
from infra.delivery.alerts.texts import Entry, Letterhead, alert_text, trial_text
from infra.delivery.webhooks.http_target import Resolver
from infra.ending import cancelled
from infra.errors import Unavailable
from infra.postgres.pool import SHORT, LedgerConnection, session
from infra.postgres.roles import WORKER
from projections import campaigns, codes
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from infra.delivery.alerts.channels import MailServer
    from infra.delivery.alerts.models import ActiveRule, DueMessage, Finding, MessageState
    from infra.delivery.alerts.texts import AlertText
    from infra.delivery.webhooks.http_target import AllowedNetworks
    from infra.runtime import Runtime

POLL_S: Final = 1.0
AWAY_S: Final = 5.0
# How often it is looked whether anything has stopped, and old rows are deleted.
STOPPED_EVERY_S: Final = 30.0
CLEAN_UP_EVERY_S: Final = 600.0
# Messages that are taken up at a time.
BATCH: Final = 50
# How long a message waits whose address does not open, or whose channel is not set up.
NO_CHANNEL_S: Final = 3_600.0
CHAT_FINDINGS: Final = 40

NO_MAIL: Final = "This server sends no e-mail: SPARKLEDGER_SMTP_URL is not set."
OUR_FAULT: Final = "Something went wrong on our side. It will be tried again."

_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"
_LEDGER: Final = "SELECT name FROM ledgers WHERE ledger_id = %s"
# A view that is being created or rebuilt lacks its table or its newest column for a while.
_NOT_YET: Final = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)

log = logging.getLogger(__name__)


class AlertWorker:
    """Looks and sends, for all ledgers, for as long as it runs."""

    def __init__(
        self,
        opened: Runtime,
        networks: AllowedNetworks,
        *,
        mail: MailServer | None = None,
        ca_file: Path | None = None,
        public_url: str | None = None,
        policy: AlertPolicy | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """Prepare the worker; `run` runs it.

        Args:
            opened: the worker's parts.
            networks: the networks that chats may be in, besides public addresses.
            mail: the server for e-mails; None to send none.
            ca_file: certificates of authorities that chats may have besides the well-known ones.
            public_url: where the console is, if known.
            policy: the limits and pauses.
            now: the clock.

        """
        self._opened = opened
        self._session = session(opened.database.conninfo, WORKER) | {"application_name": "sparkledger alerts"}
        self._policy = policy or AlertPolicy()
        self._public_url = public_url
        self._now = now or opened.handler.now
        self._mail = None if mail is None else MailChannel(mail)
        self._resolver = Resolver()
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(str(ca_file))
        self._chat = ChatChannel(networks, self._resolver, context)
        self._sending: dict[asyncio.Task[Attempted], DueMessage] = {}
        self._stopped_at = self._cleaned_at = float("-inf")

    async def run(self) -> None:
        """Lead until cancelled. While the database is away, try to reach it again and again."""
        try:
            while True:
                try:
                    async with await LedgerConnection.connect(**self._session) as connection:
                        await self._lead(connection)
                except (Unavailable, *SHORT, *_NOT_YET) as error:
                    log.warning("Alerts are delayed: %s", " ".join(str(error).split()))
                await self._abandon()
                await asyncio.sleep(AWAY_S)
        finally:
            await self._abandon()
            self._resolver.close()

    async def _lead(self, connection: LedgerConnection) -> None:
        while not await self.leads(connection):  # noqa: ASYNC110 - PostgreSQL sends no message when a lock becomes free
            await asyncio.sleep(AWAY_S)
        while True:
            await self.step(connection)
            if self._sending:
                await asyncio.wait(self._sending, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(POLL_S)

    async def leads(self, connection: LedgerConnection) -> bool:
        """Return whether this session holds the lock, after an attempt to take it."""
        row = await (await connection.execute(_LEAD, (AdvisoryLock.ALERTS,))).fetchone()
        return row is not None and bool(row[0])

    async def settled(self, connection: LedgerConnection) -> None:
        """Wait for what is being sent, and record what became of it."""
        if self._sending:
            await asyncio.wait(self._sending)
        await self._record(connection)

    async def step(self, connection: LedgerConnection) -> None:
        """Look, make the messages that are due to be made, and begin to send those that are due."""
        await self._record(connection)
        rules = await alert_store.load_rules(connection)
        invalid = [rule.rule_id for rule in rules if not rule.key_valid]
        if invalid:
            await alert_store.disable(connection, invalid)
        rules = [rule for rule in rules if rule.key_valid]
        if rules:
            await self._look(connection, rules)
            await self._make(connection, rules)
            # That a ledger may have lost events is itself something to report.
            sending = {rule.rule_id: rule for rule in rules if rule.whole or rule.kind == "stopped"}
            await self._send(connection, sending)
        if time.monotonic() >= self._cleaned_at + CLEAN_UP_EVERY_S:
            self._cleaned_at = time.monotonic()
            await alert_store.purge(connection, self._now())

    async def _look(self, connection: LedgerConnection, rules: Sequence[ActiveRule]) -> None:
        now = self._now()
        waiting = await alert_store.waiting(connection)
        room = [rule for rule in rules if waiting.get(rule.rule_id, (0, now))[0] < self._policy.waiting]
        following = [rule for rule in room if rule.kind != "stopped" and rule.whole]
        for ledger_id, own in groupby(following, key=lambda rule: rule.ledger_id):
            looked = await look(connection, self._opened.aggregates, ledger_id, list(own), now, self._policy)
            for rule, position, findings in looked:
                await alert_store.record_look(connection, rule, position, findings, now)
        if time.monotonic() >= self._stopped_at + STOPPED_EVERY_S:
            self._stopped_at = time.monotonic()
            for rule in room:
                if rule.kind == "stopped":
                    await alert_store.record_stopped(connection, rule, now)

    async def _make(self, connection: LedgerConnection, rules: Sequence[ActiveRule]) -> None:
        now, waiting = self._now(), await alert_store.waiting(connection)
        for rule in rules:
            count, found_at = waiting.get(rule.rule_id, (0, now))
            if not count:
                continue
            ready_at = again_at = found_at + timedelta(seconds=self._policy.collect_s)
            if rule.made_at is not None:
                again_at = max(ready_at, rule.made_at + timedelta(seconds=self._policy.gap_s))
            # A digest too large for one message goes on after the gap, and not on the next day.
            daily = rule.timing.digest_at is not None
            at = max(send_at(rule.timing, ready_at), again_at) if daily else send_at(rule.timing, again_at)
            if at <= now:
                await alert_store.make_message(connection, rule, self._policy.findings, now)

    async def _send(self, connection: LedgerConnection, rules: dict[UUID, ActiveRule]) -> None:
        now = self._now()
        besides = [message.message_id for message in self._sending.values()]
        busy = Counter(message.rule.ledger_id for message in self._sending.values())
        # A ledger whose receivers hang leaves the batch to the others.
        free = {
            rule_id: rule for rule_id, rule in rules.items() if busy[rule.ledger_id] < self._policy.in_flight_of_ledger
        }
        for message in await alert_store.due(connection, free, now, besides=besides, limit=BATCH):
            ledger_id, timing = message.rule.ledger_id, message.rule.timing
            if len(self._sending) >= self._policy.in_flight:
                break
            if busy[ledger_id] >= self._policy.in_flight_of_ledger:
                continue
            # A digest that is late goes out at once. Quiet hours hold for further attempts, too.
            quiet_until = now if message.test or timing.digest_at is not None else send_at(timing, now)
            if quiet_until > now:
                await alert_store.put_off(connection, message, quiet_until)
            elif await alert_store.claim(connection, message, now, self._pause(message.attempt)):
                busy[ledger_id] += 1
                await self._begin(connection, message, now)

    async def _begin(self, connection: LedgerConnection, message: DueMessage, now: datetime) -> None:
        """Begin to send a message, unless nothing that it would say is true any more."""
        rule = message.rule
        try:
            sealer = AlertSealer(await self._opened.keyring.ledger(rule.ledger_id))
            address = sealer.unseal("address", rule.address, rule.rule_id)
        except (MasterKeyError, InvalidTag) as error:
            reason = str(error) or type(error).__name__
            log.error("Alert rule %s cannot be sent for: %s", rule.rule_id, reason)  # noqa: TRY400 - a traceback adds nothing
            await self._postpone(connection, message, now, OUR_FAULT)
            return
        if rule.channel == "email" and self._mail is None:
            await self._postpone(connection, message, now, NO_MAIL)
            return
        text = await self._text(connection, message, now)
        if text is None:
            await alert_store.settle(connection, message, "void", now)
            return
        if rule.channel == "chat":
            sending = self._chat.send(
                address, text, message.message_id, rule.ledger_id, public_only=rule.sight.is_outsiders
            )
        else:
            assert self._mail is not None  # noqa: S101 - looked at above
            sending = self._mail.send(address, text, message.message_id, message.made_at)
        self._sending[asyncio.create_task(sending, name=f"alert {message.message_id}")] = message

    async def _text(self, connection: LedgerConnection, message: DueMessage, now: datetime) -> AlertText | None:
        rule = message.rule
        row = await (await connection.execute(_LEDGER, (rule.ledger_id,))).fetchone()
        head = Letterhead(rule.rule_id, "" if row is None else row[0], rule.timing.zone, self._public_url)
        if message.test:
            return trial_text(now, head)
        findings = await alert_store.findings_of(connection, message.message_id)
        entries = await self._entries(connection, rule, findings, now)
        most = self._policy.findings if rule.channel == "email" else CHAT_FINDINGS
        return alert_text(rule.kind, entries, now, head, most=most) if entries else None

    async def _entries(
        self, connection: LedgerConnection, rule: ActiveRule, findings: Sequence[Finding], now: datetime
    ) -> list[Entry]:
        """Return those findings that still hold, each code's end once, and none of an erased creator."""
        if rule.kind == "stopped":
            return [Entry(found) for found in findings]
        code_ids = {found.code_id for found in findings if found.code_id is not None}
        async with connection.cursor() as cur:
            rows = await codes.with_ids(cur, rule.ledger_id, code_ids)
            erased = await alert_store.erased(connection, rule.ledger_id, {row.creator_stream for row in rows.values()})
            entries: dict[object, Entry] = {}
            for found in findings:
                row = None if found.code_id is None else rows.get(found.code_id)
                if row is None or row.creator_stream in erased:
                    continue
                if not rule.sight.sees(row.creator_id, row.brand_ids, row.advertiser_ids):
                    continue
                if rule.kind == "ending":
                    superseded = row.superseded_at is not None and row.superseded_at <= now
                    if row.revoked_at is None and not superseded and row.expires_at == found.ends_at:
                        entries[row.code_id] = Entry(found, row)
                elif rule.kind == "refused_attempts":
                    entries[found.finding] = Entry(found, row)
                elif (stops_at := await _stops_early(cur, rule, found, now)) is not None:
                    entries[found.finding] = Entry(replace(found, ends_at=stops_at), row)
        return list(entries.values())

    async def _postpone(self, connection: LedgerConnection, message: DueMessage, now: datetime, error: str) -> None:
        until = now + timedelta(seconds=NO_CHANNEL_S)
        state: MessageState = "waiting" if message.attempt < len(self._policy.retries_s) else "dead"
        await alert_store.settle(connection, message, state, now, error=error, next_at=until)

    async def _record(self, connection: LedgerConnection) -> None:
        """Record what became of the attempts that have ended."""
        now = self._now()
        for task in [task for task in self._sending if task.done()]:
            message = self._sending.pop(task)
            defect = task.exception()
            if defect is not None:
                log.error("A message of alert rule %s failed", message.rule.rule_id, exc_info=defect)
            result = Attempted(OUR_FAULT) if defect is not None else task.result()
            if result.error is None:
                await alert_store.settle(connection, message, "sent", now)
                continue
            last = message.attempt >= len(self._policy.retries_s)
            pause = timedelta(seconds=max(result.retry_after_s or 0.0, self._pause(message.attempt).total_seconds()))
            state: MessageState = "dead" if result.final or last else "waiting"
            await alert_store.settle(connection, message, state, now, error=result.error, next_at=now + pause)

    def _pause(self, attempt: int) -> timedelta:
        """Return the pause after an attempt, which are numbered from 0."""
        pauses = self._policy.retries_s
        return timedelta(seconds=pauses[min(attempt, len(pauses) - 1)])

    async def _abandon(self) -> None:
        """End what is being sent: whether it was accepted is not known, so it is sent once more."""
        tasks = list(self._sending)
        self._sending.clear()
        await cancelled(tasks)


async def _stops_early(
    cur: psycopg.AsyncCursor[object], rule: ActiveRule, found: Finding, now: datetime
) -> datetime | None:
    """Return when the end of the code or of its usage rights stops a campaign; None if neither does."""
    running = await campaigns.search(
        cur,
        rule.ledger_id,
        now=now,
        limit=BATCH,
        code_id=found.code_id,
        campaign_id=found.campaign_id,
        is_cut=True,
        running=True,
    )
    return running[0].stops_at if running else None
