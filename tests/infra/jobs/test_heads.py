"""Heads: what is recorded of them is what anyone computes from the events, and only when something happened."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from domain.heads import NO_EVENTS, Head, creator_key, head_leaf, heads_stream, stream_key
from domain.merkle import leaf_hash, root_of
from infra.jobs import heads
from infra.jobs.heads import HeadsJob
from infra.postgres.roles import WORKER
from infra.proof.evidence_log import proven_heads
from infra.proof.proofs import ProofFailed
from infra.proof.sealer import SealerSettings
from infra.runtime import runtime
from tests import given
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.proof.auditing import Auditor, record
from tests.infra.proof.sealing import seal
from tests.waiting import until

pytestmark = pytest.mark.anyio

ROWS = "SELECT key, count, chain FROM log_heads WHERE ledger_id = %s ORDER BY key"
STREAMS = """
    SELECT stream_id, creator_stream FROM events WHERE ledger_id = %s AND position <= %s ORDER BY position
"""
SESSIONS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'sparkledger heads' AND datname = current_database()
"""
RECORDED = (
    "SELECT position, stream_id, body FROM events WHERE ledger_id = %s AND type = 'HeadsSealed' ORDER BY position"
)


@pytest.fixture
def settings(tmp_path: Path) -> SealerSettings:
    return SealerSettings(tmp_path / "signing", "ledger.example/log")


async def seal_heads(opened: Opened, every_s: float = 0.0) -> None:
    """Seal the heads of all logs, as a worker does."""
    async with runtime(opened.database.dsn(WORKER), WORKER, MASTER_KEY) as worker:
        await HeadsJob(worker, every_s).round()
    # The next round would not lead as long as the server has not noticed that this session is over.
    until(lambda: opened.sql(SESSIONS) == [])


def naive(opened: Opened, tenant: Tenant, upto: int) -> list[tuple[bytes, int, bytes]]:
    """Return the heads as anyone computes them from all events and entries."""
    found: dict[bytes, Head] = {}
    leaves = Auditor(opened, tenant).leaves(upto)
    for (stream, creator), leaf in zip(opened.sql(STREAMS, tenant.ledger_id, upto), leaves, strict=True):
        for key in (stream_key(stream), creator_key(creator)):
            found[key] = found.get(key, NO_EVENTS).after([leaf])
    return [(key, head.events, head.chain) for key, head in sorted(found.items())]


def stored(opened: Opened, tenant: Tenant) -> list[tuple[bytes, int, bytes]]:
    return [(bytes(key), count, bytes(chain)) for key, count, chain in opened.sql(ROWS, tenant.ledger_id)]


async def test_the_heads_that_are_recorded_are_those_of_the_events(
    opened: Opened, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short that a stretch begins and ends within a tile.
    monkeypatch.setattr(heads, "STRETCH", 100)
    tenant = await opened.begin()
    other = await opened.begin("other")
    for command in (given.permission(), given.generate(), given.share()):
        await opened.when(tenant, command)
    await opened.when(other, given.permission())
    record(opened, tenant, 300)
    seal(opened, settings)
    await seal_heads(opened)
    [(log_id,)] = opened.sql("SELECT log_id FROM ledgers WHERE ledger_id = %s", tenant.ledger_id)
    upto = 300
    for position in (301, 552):
        rows = stored(opened, tenant)
        assert rows == naive(opened, tenant, upto)
        *_, (at, stream, body) = opened.sql(RECORDED, tenant.ledger_id)
        facts: dict[str, Any] = json.loads(bytes(body))
        root = root_of([leaf_hash(head_leaf(key, Head(count, chain))) for key, count, chain in rows])
        assert (at, stream) == (position, heads_stream(log_id))
        assert (facts["upto"], facts["keys"], facts["format"]) == (upto, len(rows), 1)
        assert base64.b64decode(facts["root"]) == root
        if position == 301:
            await opened.when(tenant, given.redeem())
            record(opened, tenant, 551)
            seal(opened, settings)
            await seal_heads(opened)
            upto = 551
    assert len(opened.sql(RECORDED, other.ledger_id)) == 1


async def test_nothing_is_recorded_where_nothing_happened_or_the_last_heads_are_new(
    opened: Opened, settings: SealerSettings
) -> None:
    tenant = await opened.begin()
    await seal_heads(opened)
    record(opened, tenant, 3)
    await seal_heads(opened)
    assert opened.sql(RECORDED, tenant.ledger_id) == [], "what no checkpoint covers has no heads"
    seal(opened, settings)
    await seal_heads(opened, every_s=3_600)
    assert opened.sql(RECORDED, tenant.ledger_id) == [], "a ledger that began just now has time"
    for _ in range(3):
        await seal_heads(opened)
        seal(opened, settings)
    assert [at for at, _, _ in opened.sql(RECORDED, tenant.ledger_id)] == [4]
    record(opened, tenant, 5)
    seal(opened, settings)
    await seal_heads(opened, every_s=3_600)
    await seal_heads(opened)
    assert [at for at, _, _ in opened.sql(RECORDED, tenant.ledger_id)] == [4, 6]


async def test_heads_whose_event_is_not_recorded_are_not_kept(
    opened: Opened, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await opened.begin()
    record(opened, tenant, 3)
    seal(opened, settings)

    async def fails(*_: object, **__: object) -> int:
        message = "the database is away"
        raise LookupError(message)

    with monkeypatch.context() as broken:
        broken.setattr(heads, "record", fails)
        await seal_heads(opened)
    assert stored(opened, tenant) == []
    await seal_heads(opened)
    assert stored(opened, tenant) == naive(opened, tenant, 3)


def test_heads_that_are_not_those_that_were_sealed_are_refused() -> None:
    rows = [(bytes([number]) * 16, number, bytes(32)) for number in range(1, 9)]
    root = root_of([leaf_hash(head_leaf(key, Head(count, chain))) for key, count, chain in rows])
    assert [one.place for one in proven_heads(rows, [rows[2][0]], root)] == [2]
    assert [one.place for one in proven_heads(rows, [bytes([2]) * 15 + b"\3"], root)] == [1, 2]
    assert [one.place for one in proven_heads(rows, [bytes(16)], root)] == [0]
    assert [one.place for one in proven_heads(rows, [b"\xff" * 16], root)] == [7]
    with pytest.raises(ProofFailed):
        proven_heads([*rows[:3], (rows[3][0], 5, rows[3][2]), *rows[4:]], [], root)
