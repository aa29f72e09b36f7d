"""Heads: what is recorded of them is what anyone computes from the events, and only when something happened."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from domain.heads import NO_EVENTS, VIDEO_SALT, Head, creator_key, head_leaf, heads_stream, stream_key, video_key
from domain.merkle import leaf_hash, root_of, verify_inclusion
from infra.jobs import heads
from infra.jobs.heads import HeadsJob
from infra.postgres.roles import WORKER
from infra.proof.head_blocks import HeadBlocks, ProvenHead
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
    SELECT stream_id, creator_stream, type, video_id
    FROM events WHERE ledger_id = %s AND position <= %s ORDER BY position
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


async def salt_of(opened: Opened, tenant: Tenant) -> bytes:
    """Return by what heads of videos are found, as the worker derives it."""
    async with runtime(opened.database.dsn(WORKER), WORKER, MASTER_KEY) as worker:
        return (await worker.keyring.ledger(tenant.ledger_id)).derived(VIDEO_SALT)


def naive(opened: Opened, tenant: Tenant, upto: int, salt: bytes) -> list[tuple[bytes, int, bytes]]:
    """Return the heads as anyone computes them from all events and entries."""
    found: dict[bytes, Head] = {}
    leaves = Auditor(opened, tenant).leaves(upto)
    for (stream, creator, type_, video), leaf in zip(opened.sql(STREAMS, tenant.ledger_id, upto), leaves, strict=True):
        of_video = [video_key(salt, video)] if type_ == "CodeGenerated" else []
        for key in (stream_key(stream), creator_key(creator), *of_video):
            found[key] = found.get(key, NO_EVENTS).after([leaf])
    return [(key, head.events, head.chain) for key, head in sorted(found.items())]


def stored(opened: Opened, tenant: Tenant) -> list[tuple[bytes, int, bytes]]:
    return [(bytes(key), count, bytes(chain)) for key, count, chain in opened.sql(ROWS, tenant.ledger_id)]


@pytest.mark.parametrize("few", [True, False], ids=["few", "many, sorted first"])
async def test_the_heads_that_are_recorded_are_those_of_the_events(
    few: bool, opened: Opened, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short that a stretch begins and ends within a tile.
    monkeypatch.setattr(heads, "STRETCH", 100)
    monkeypatch.setattr(heads, "FEW_EVENTS", heads.FEW_EVENTS if few else 0)
    monkeypatch.setattr(heads, "ROUND", 200)
    tenant = await opened.begin()
    other = await opened.begin("other")
    for command in (given.permission(), given.generate(), given.share()):
        await opened.when(tenant, command)
    await opened.when(other, given.permission())
    record(opened, tenant, 300)
    seal(opened, settings)
    await seal_heads(opened)
    [(log_id,)] = opened.sql("SELECT log_id FROM ledgers WHERE ledger_id = %s", tenant.ledger_id)
    salt = await salt_of(opened, tenant)
    upto = 300
    for position in (301, 552):
        rows = stored(opened, tenant)
        assert rows == naive(opened, tenant, upto, salt)
        *_, (at, stream, body) = opened.sql(RECORDED, tenant.ledger_id)
        facts: dict[str, Any] = json.loads(bytes(body))
        root = root_of([leaf_hash(head_leaf(key, Head(count, chain))) for key, count, chain in rows])
        assert (at, stream) == (position, heads_stream(log_id))
        assert (facts["upto"], facts["keys"], facts["format"]) == (upto, len(rows), 2)
        assert base64.b64decode(facts["root"]) == root
        assert base64.b64decode(facts["video_salt_hash"]) == hashlib.sha256(salt).digest()
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
    assert stored(opened, tenant) == naive(opened, tenant, 3, b"")


Row = tuple[bytes, int, bytes]


def of_number(number: int) -> bytes:
    """Return the key of the head with a number; between two of them others would fit."""
    return (2 * number).to_bytes(16, "big")


def tree(count: int) -> tuple[HeadBlocks, list[Row], list[bytes]]:
    """Return the blocks of a tree of heads, its heads and their leaf hashes."""
    rows = [(of_number(number), number + 1, bytes(32)) for number in range(count)]
    leaves = [leaf_hash(head_leaf(key, Head(events, chain))) for key, events, chain in rows]
    made = HeadBlocks()
    for begin in range(0, count, 512):
        made.grow([row[0] for row in rows[begin : begin + 512]], leaves[begin : begin + 512])
    return HeadBlocks(made.stored, made.heads), rows, leaves


def proven(blocks: HeadBlocks, rows: list[Row], keys: list[bytes]) -> list[ProvenHead]:
    """Return the proofs from the blocks that they need, and no others."""
    needed = blocks.beginnings(keys)
    assert all(rows[256 * number][0] == first for number, first in needed.items())
    return blocks.proven({number: rows[256 * number : 256 * (number + 1)] for number in needed}, keys)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 512, 513, 1_300])
def test_a_block_or_two_prove_each_head_and_each_absence(count: int) -> None:
    blocks, rows, leaves = tree(count)
    root = root_of(leaves)
    assert (blocks.root, blocks.heads) == (root, count)
    for number in sorted({0, 1, 254, 255, 256, 257, 511, 512, count - 1} & set(range(count))):
        key = of_number(number)
        beside = (key[:-1] + bytes([key[-1] | 1]), key)
        for wanted in beside:
            found = proven(blocks, rows, [wanted])
            places = [number] if wanted == key else [place for place in (number, number + 1) if place < count]
            assert [one.place for one in found] == places
            for one in found:
                verify_inclusion(one.place, count, leaves[one.place], one.hashes, root)
    last = proven(blocks, rows, [b"\xff" * 16, of_number(0)])
    assert [one.place for one in last] == sorted({0, count - 1})


def test_what_is_before_all_heads_has_one_neighbour() -> None:
    rows = [(bytes([number]) * 16, number, bytes(32)) for number in range(1, 9)]
    blocks = HeadBlocks()
    blocks.grow([row[0] for row in rows], [leaf_hash(head_leaf(key, Head(count, chain))) for key, count, chain in rows])
    assert [one.place for one in blocks.proven({0: rows}, [bytes(16)])] == [0]


def test_heads_that_are_not_those_that_were_sealed_are_refused() -> None:
    blocks, rows, _ = tree(300)
    with pytest.raises(ProofFailed):
        proven(blocks, [*rows[:3], (rows[3][0], 5, rows[3][2]), *rows[4:]], [of_number(7)])
    with pytest.raises(ProofFailed):
        proven(blocks, rows[:299], [of_number(280)])
