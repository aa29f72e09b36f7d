"""Witnesses of our logs: what they have signed is kept, one that is away holds nothing up, and one that knows better
stops the sealer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.proof.notes import SignedNote
from infra.proof.sealer import SealerSettings
from infra.proof.witness import Reply
from tests.infra.opened import Opened, Tenant
from tests.infra.proof.auditing import record, stopped, tamper
from tests.infra.proof.sealing import watching
from tests.infra.proof.witnessing import Served, client, serving

pytestmark = pytest.mark.long("witnesses answer over HTTP, and logs of hundreds of events are sealed")

KEPT = "SELECT size, note, witnesses FROM witnessed_checkpoints ORDER BY size"
WITNESSES = "SELECT witness, size, problem FROM log_witnesses ORDER BY witness"


@pytest.fixture
def settings(tmp_path: Path) -> SealerSettings:
    return SealerSettings(tmp_path / "signing", "ledger.example/log")


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "w1", "w1.example", lambda: int(time.time())) as served:
        yield served


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path / "w2", "w2.example", lambda: int(time.time())) as served:
        yield served


async def test_what_witnesses_have_signed_is_kept_with_their_signatures(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served, another: Served
) -> None:
    with watching(opened, settings) as running:
        ask = client(running, opened, settings.signing_dir, [witness, another])
        for size in (0, 3, 300, 300, 700):
            record(opened, tenant, size)
            running.step()
            witness.know(opened)
            another.know(opened)
            ask()
    kept = opened.sql(KEPT)
    assert [(size, count) for size, _, count in kept] == [(0, 2), (3, 2), (300, 2), (700, 2)]
    for size, note, _ in kept:
        parsed = SignedNote.parse(note.encode())
        assert parsed.checkpoint.size == size
        assert len(parsed.signatures) == 4
        for served in (witness, another):
            [signature] = parsed.by(served.witness.key)
            at = served.witness.key.signed_at(parsed.checkpoint, signature)
            assert at is not None
            assert abs(at - time.time()) < 100
    assert opened.sql(WITNESSES) == [("w1.example", 700, None), ("w2.example", 700, None)]
    assert len(witness.requests) == 4, "what is signed is not asked for again"


async def test_a_witness_that_is_away_or_does_not_know_the_log_holds_nothing_up(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served, another: Served
) -> None:
    record(opened, tenant, 300)
    witness.url = "http://127.0.0.1:1"
    with watching(opened, settings) as running:
        running.step()
        ask = client(running, opened, settings.signing_dir, [witness, another])
        ask()
        record(opened, tenant, 301)
        running.step()
        assert stopped(opened, tenant) is None
        [(_, _, away), (_, _, unknown)] = opened.sql(WITNESSES)
        assert ("ConnectionRefusedError" in away, unknown) == (True, "It answered with status 404.")
        another.know(opened)
        ask()
    assert [(size, count) for size, _, count in opened.sql(KEPT)] == [(301, 1)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("no signature\n", "malformed"),
        ("", "no signature of the key"),
        ("— w1.example " + "A" * 100 + "\n", "no signature of the key"),
    ],
)
async def test_an_answer_that_is_no_signature_of_the_witness_is_not_kept(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served, body: str, problem: str
) -> None:
    witness.answer = lambda _: Reply(200, body)
    with watching(opened, settings) as running:
        running.step()
        client(running, opened, settings.signing_dir, [witness])()
    assert opened.sql(KEPT) == []
    assert problem in opened.sql(WITNESSES)[0][2]


async def test_a_signature_of_another_time_is_not_kept(
    opened: Opened, tenant: Tenant, settings: SealerSettings, tmp_path: Path
) -> None:
    with (
        serving(tmp_path / "w3", "w3.example", lambda: int(time.time()) - 3_600) as late,
        watching(opened, settings) as running,
    ):
        running.step()
        late.know(opened)
        client(running, opened, settings.signing_dir, [late])()
    assert "not the present time" in opened.sql(WITNESSES)[0][2]


async def test_a_witness_that_knows_less_than_we_thought_is_brought_up_to_date(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served
) -> None:
    record(opened, tenant, 300)
    with watching(opened, settings) as running:
        running.step()
        witness.know(opened)
        client(running, opened, settings.signing_dir, [witness])()
        opened.sql("UPDATE log_witnesses SET size = 200")
        record(opened, tenant, 400)
        running.step()
        client(running, opened, settings.signing_dir, [witness])()
    assert opened.sql(WITNESSES) == [("w1.example", 400, None)]


SAVED = ("events", "log_trees", "log_tiles", "log_witnesses", "witnessed_checkpoints")


def save(opened: Opened, settings: SealerSettings) -> None:
    """Copy the database's log and the sealer's directory, as a copy of the whole disk does."""
    for table in SAVED:
        opened.sql(f"CREATE TABLE saved_{table} AS SELECT * FROM {table}")
    shutil.copytree(settings.signing_dir, settings.signing_dir.with_name("saved"))


def restore(opened: Opened, settings: SealerSettings) -> None:
    """Bring the copy back."""
    tamper(opened, "SELECT 1")
    for table in SAVED:
        opened.sql(f"DELETE FROM {table}")
        opened.sql(f"INSERT INTO {table} SELECT * FROM saved_{table}")
    shutil.rmtree(settings.signing_dir)
    shutil.copytree(settings.signing_dir.with_name("saved"), settings.signing_dir)


async def test_only_a_witness_notices_that_the_whole_disk_was_rolled_back(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served
) -> None:
    record(opened, tenant, 300)
    with watching(opened, settings) as running:
        running.seal_and_look()
        witness.know(opened)
        client(running, opened, settings.signing_dir, [witness])()
        save(opened, settings)
        record(opened, tenant, 400)
        running.step()
        client(running, opened, settings.signing_dir, [witness])()
    restore(opened, settings)
    with watching(opened, settings) as alone:
        record(opened, tenant, 310)
        alone.seal_and_look()
        assert stopped(opened, tenant) is None, "nothing here shows it"
    restore(opened, settings)
    with watching(opened, settings) as running:
        # As at the start of the process: the sealer waits for the first round.
        client(running, opened, settings.signing_dir, [witness])()
        record(opened, tenant, 310)
        running.step()
        assert "w1.example has signed the log of ledger main with 400 events" in str(stopped(opened, tenant))
        assert opened.sql("SELECT checkpoint_size FROM log_trees") == [(300,)]


async def test_only_a_witness_notices_that_whoever_has_the_keys_signs_a_second_history(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served
) -> None:
    record(opened, tenant, 300)
    with watching(opened, settings) as running:
        running.seal_and_look()
        witness.know(opened)
        client(running, opened, settings.signing_dir, [witness])()
    first = opened.sql("SELECT checkpoint FROM log_trees")
    tamper(opened, "UPDATE events SET body = '{}' WHERE position = 7")
    opened.sql("TRUNCATE log_trees, log_tiles")
    for path in (*settings.signing_dir.glob("*.signed"), *settings.signing_dir.glob("*.tiles")):
        path.unlink()
    with watching(opened, settings) as running:
        running.seal_and_look()
        assert stopped(opened, tenant) is None, "the second history is right in itself"
        second = opened.sql("SELECT checkpoint FROM log_trees")
        assert first != second
        client(running, opened, settings.signing_dir, [witness])()
        running.step()
        assert "w1.example has signed another log of ledger main with 300 events" in str(stopped(opened, tenant))


async def test_a_witness_that_signs_again_lets_the_log_be_sealed_again(
    opened: Opened, tenant: Tenant, settings: SealerSettings, witness: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.proof.sealer.STOPPED_AGAIN_S", 0)
    record(opened, tenant, 300)
    with watching(opened, settings) as running:
        running.step()
        witness.know(opened)
        ask = client(running, opened, settings.signing_dir, [witness])
        witness.answer = lambda _: Reply(409, "500\n", "text/x.tlog.size")
        ask()
        running.step()
        assert "with 500 events" in str(stopped(opened, tenant))
        witness.answer = witness.witness.add_checkpoint
        ask()
        running.step()
        assert stopped(opened, tenant) is None
