"""The sealer: what it signs is the log, it never contradicts itself whatever stops it, and it stops where it would."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.log_entry import entry_of
from infra.postgres.roles import WORKER
from infra.proof.checkpoints import Checkpoint, LogSigner
from infra.proof.errors import Overtaken
from infra.proof.last_checkpoint import LastCheckpoint
from infra.proof.sealer import MAX_EVENTS, SealerSettings, leads
from infra.proof.stored_events import stored_events
from infra.proof.tree_store import TreeStore
from tests import given
from tests.infra.opened import Opened, Tenant
from tests.infra.proof.auditing import Auditor, entries, record, stopped, tamper
from tests.infra.proof.sealing import seal, sealing


@pytest.fixture
def settings(tmp_path: Path) -> SealerSettings:
    return SealerSettings(tmp_path / "signing", "ledger.example/log")


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


async def test_what_is_signed_is_the_log_at_every_size(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    auditor = Auditor(opened, tenant)
    with sealing(opened, settings) as running:
        for size in (0, 1, 2, 255, 256, 257, 512, 600, MAX_EVENTS + 700):
            record(opened, tenant, size)
            running.step()
            assert auditor.check() == size
    assert {checkpoint.origin for checkpoint in auditor.seen} == {"ledger.example/log/main/1"}


async def test_a_sealer_that_starts_again_continues(opened: Opened, tenant: Tenant, settings: SealerSettings) -> None:
    auditor = Auditor(opened, tenant)
    for size in (0, 3, 3, 256, 256, 300, 600):
        record(opened, tenant, size)
        seal(opened, settings)
        assert auditor.check() == size


async def test_the_database_computes_the_entries_that_are_sealed(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    await opened.when(tenant, given.permission(), correlation_id="größer")
    await opened.when(tenant, given.generate(), traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    await opened.when(tenant, given.share())
    record(opened, tenant, 300)
    [(log_id,)] = opened.sql("SELECT log_id FROM ledgers")
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        events = list(stored_events(connection.cursor(binary=True), tenant.ledger_id, 0, 256))
    assert any(event.sealed is not None for event in events)
    assert entries(opened, tenant, 1, 256) == (0, b""), "what is not sealed is not served"
    seal(opened, settings)
    assert entries(opened, tenant, 1, 256) == (256, b"".join(b"\x00\x41" + entry_of(log_id, event) for event in events))


async def test_every_ledger_has_a_log_and_a_key_of_its_own(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    other = await opened.begin("Main")
    record(opened, tenant, 10)
    record(opened, other, 20)
    seal(opened, settings)
    assert [Auditor(opened, one).check() for one in (tenant, other)] == [10, 20]
    keys = list(settings.signing_dir.glob("*.key"))
    assert len(keys) == 2
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert settings.signing_dir.stat().st_mode & 0o777 == 0o700
    assert len({path.read_bytes() for path in keys}) == 2


async def test_without_a_log_name_no_two_ledgers_share_an_origin(
    opened: Opened, tenant: Tenant, tmp_path: Path
) -> None:
    seal(opened, SealerSettings(tmp_path))
    [(origin, log_id)] = opened.sql("SELECT t.origin, l.log_id FROM log_trees t JOIN ledgers l USING (ledger_id)")
    assert origin == f"sparkledger.invalid/{log_id}/main/1"


async def test_another_log_name_does_not_rename_a_log_that_has_begun(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    auditor = Auditor(opened, tenant)
    seal(opened, settings)
    auditor.check()
    record(opened, tenant, 5)
    seal(opened, SealerSettings(settings.signing_dir, "renamed.example/log"))
    assert auditor.check() == 5
    assert {checkpoint.origin for checkpoint in auditor.seen} == {"ledger.example/log/main/1"}


class Crash(BaseException):
    """The process is gone."""


STEPS: dict[str, tuple[type, str]] = {
    "before the tiles": (TreeStore, "grow"),
    "before it is kept": (LastCheckpoint, "advance"),
    "before the signature": (LogSigner, "sign"),
    "before it is published": (TreeStore, "publish"),
}


@pytest.mark.parametrize("after", [False, True], ids=["", "just after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_sealer_that_dies_at_any_step_leaves_nothing_that_contradicts_the_next(
    opened: Opened,
    tenant: Tenant,
    settings: SealerSettings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: bool,
) -> None:
    owner, name = STEPS[step]
    works = getattr(owner, name)

    def dies(*arguments: Any, **named: Any) -> None:
        if after:
            works(*arguments, **named)
        raise Crash

    auditor = Auditor(opened, tenant)
    seal(opened, settings)
    auditor.check()
    for size in (200, 300, 700):
        record(opened, tenant, size)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            with pytest.raises(Crash):
                seal(opened, settings)
        auditor.check()
        seal(opened, settings)
        assert auditor.check() == size


@pytest.mark.parametrize("step", ["before it is kept", "before it is published"])
async def test_a_sealer_that_dies_while_a_log_begins_lets_the_next_begin_it(
    opened: Opened, tenant: Tenant, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        raise Crash

    record(opened, tenant, 5)
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], dies)
        with pytest.raises(Crash):
            seal(opened, settings)
    seal(opened, settings)
    assert Auditor(opened, tenant).check() == 5


async def test_only_one_of_two_sealers_leads(opened: Opened, settings: SealerSettings) -> None:
    dsn = opened.database.dsn(WORKER)
    with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as other:
        assert (leads(one), leads(other)) == (True, False)
        one.close()
        while not leads(other):
            pass


async def test_a_paused_sealer_that_wakes_does_no_harm(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    auditor = Auditor(opened, tenant)
    with sealing(opened, settings) as paused, sealing(opened, settings) as leader:
        record(opened, tenant, 100)
        paused.step()
        auditor.check()
        record(opened, tenant, 300)
        leader.step()
        assert auditor.check() == 300
        record(opened, tenant, 400)
        with pytest.raises(Overtaken):
            paused.step()
        assert auditor.check() == 300
        leader.step()
        assert auditor.check() == 400


@pytest.mark.parametrize("step", ["before it is kept", "before it is published"])
async def test_a_sealer_that_pauses_within_a_step_does_not_let_the_served_size_fall(
    opened: Opened, tenant: Tenant, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner, name = STEPS[step]
    works = getattr(owner, name)
    auditor = Auditor(opened, tenant)

    def pauses(*arguments: Any, **named: Any) -> None:
        patch.undo()
        record(opened, tenant, 600)
        seal(opened, settings)
        assert auditor.check() == 600
        works(*arguments, **named)

    with sealing(opened, settings) as paused, monkeypatch.context() as patch:
        record(opened, tenant, 300)
        paused.step()
        assert auditor.check() == 300
        record(opened, tenant, 400)
        patch.setattr(owner, name, pauses)
        with suppress(Overtaken):
            paused.step()
    assert auditor.check() == 600


async def test_a_missing_last_checkpoint_stops_the_sealer_until_it_is_restored(
    opened: Opened, tenant: Tenant, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.proof.sealer.STOPPED_AGAIN_S", 0)
    record(opened, tenant, 10)
    seal(opened, settings)
    [file] = settings.signing_dir.glob("*.signed")
    kept = file.read_bytes()
    assert Checkpoint.parse(kept).size == 10
    file.unlink()
    record(opened, tenant, 20)
    with sealing(opened, settings) as running:
        running.step()
        assert "is missing" in str(stopped(opened, tenant))
        assert Auditor(opened, tenant).check() == 10
        file.write_bytes(kept)
        running.step()
        assert stopped(opened, tenant) is None
    assert Auditor(opened, tenant).check() == 20


@pytest.mark.parametrize("content", [b"", b"another file\n", b"ledger.example/log/main/1\n10\nAAAA\n"])
async def test_a_last_checkpoint_that_is_none_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings, content: bytes
) -> None:
    record(opened, tenant, 10)
    seal(opened, settings)
    [file] = settings.signing_dir.glob("*.signed")
    file.write_bytes(content)
    seal(opened, settings)
    assert "cannot be used" in str(stopped(opened, tenant))


async def test_a_key_that_is_missing_open_to_others_or_another_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    seal(opened, settings)
    [key] = settings.signing_dir.glob("*.key")
    kept = key.read_bytes()
    key.chmod(0o640)
    seal(opened, settings)
    assert "chmod 600" in str(stopped(opened, tenant))
    key.unlink()
    seal(opened, settings)
    assert "cannot be read" in str(stopped(opened, tenant))
    other = await opened.begin("other")
    seal(opened, settings)
    [another] = settings.signing_dir.glob("*.key")
    key.write_bytes(another.read_bytes())
    key.chmod(0o600)
    seal(opened, settings)
    assert "not the one that its log began with" in str(stopped(opened, tenant))
    key.write_bytes(b"no key")
    seal(opened, settings)
    assert "does not contain signing keys" in str(stopped(opened, tenant))
    key.write_bytes(kept)
    record(opened, tenant, 3)
    seal(opened, settings)
    assert Auditor(opened, tenant).check() == 3
    assert Auditor(opened, other).check() == 0


COLUMNS = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'events'"


async def test_a_row_of_the_last_tile_that_was_changed_stops_its_ledger_and_no_other(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    other = await opened.begin("other")
    record(opened, tenant, 300)
    record(opened, other, 300)
    with sealing(opened, settings) as running:
        running.step()
        tamper(opened, f"UPDATE events SET body = '{{}}' WHERE ledger_id = {tenant.ledger_id} AND position = 270")
        record(opened, tenant, 301)
        record(opened, other, 301)
        running.step()
    assert "Event 270 of ledger main" in str(stopped(opened, tenant))
    assert stopped(opened, other) is None
    assert Auditor(opened, other).check() == 301


async def test_a_tail_that_was_cut_stops_the_sealer(opened: Opened, tenant: Tenant, settings: SealerSettings) -> None:
    record(opened, tenant, 300)
    with sealing(opened, settings) as running:
        running.step()
        tamper(opened, "DELETE FROM events WHERE position > 280")
        running.step()
    assert "has lost some" in str(stopped(opened, tenant))


async def test_a_tail_that_was_cut_and_has_grown_again_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 300)
    with sealing(opened, settings) as running:
        running.step()
        tamper(opened, "DELETE FROM events WHERE position > 299")
        record(opened, tenant, 310)
        running.step()
    assert "Event 300 of ledger main is not the one that was sealed" in str(stopped(opened, tenant))


async def test_an_event_that_is_missing_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 300)
    tamper(opened, "DELETE FROM events WHERE position = 7")
    seal(opened, settings)
    assert stopped(opened, tenant) == "Event 7 of ledger main is missing."


async def test_an_older_tree_than_the_last_checkpoint_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 300)
    seal(opened, settings)
    older = opened.sql("SELECT size, root, checkpoint_size, checkpoint FROM log_trees")[0]
    record(opened, tenant, 400)
    seal(opened, settings)
    opened.sql("UPDATE log_trees SET size = %s, root = %s, checkpoint_size = %s, checkpoint = %s", *older)
    seal(opened, settings)
    assert "was signed at 400 events, and the log in the database is older" in str(stopped(opened, tenant))


async def test_a_log_that_is_gone_while_its_last_checkpoint_is_not_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 3)
    seal(opened, settings)
    opened.sql("TRUNCATE log_trees, log_tiles")
    for _ in range(2):
        seal(opened, settings)
        assert "was signed at 3 events, and the log in the database is older" in str(stopped(opened, tenant))
        assert opened.sql("SELECT size, checkpoint FROM log_trees") == [(0, None)]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE log_trees SET root = sha256('')", "do not lead to the root"),
        ("DELETE FROM log_tiles WHERE level = 1", "incomplete"),
        ("UPDATE log_tiles SET hashes = sha256('') || substring(hashes FROM 33) WHERE level = 1", "do not lead"),
        ("UPDATE log_tiles SET hashes = substring(hashes FROM 33) WHERE index = 1", "incomplete"),
    ],
)
async def test_a_tree_that_was_changed_stops_a_sealer_that_starts(
    opened: Opened, tenant: Tenant, settings: SealerSettings, statement: str, reason: str
) -> None:
    record(opened, tenant, 300)
    seal(opened, settings)
    opened.sql(statement)
    seal(opened, settings)
    assert reason in str(stopped(opened, tenant))


async def test_a_tile_that_was_changed_is_not_written_over(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 300)
    with sealing(opened, settings) as running:
        running.step()
        opened.sql(
            "UPDATE log_tiles SET hashes = sha256('') || substring(hashes FROM 33) WHERE level = 0 AND index = 1"
        )
        record(opened, tenant, 301)
        running.step()
    assert "A stored tile of ledger main has other hashes" in str(stopped(opened, tenant))
    assert opened.sql("SELECT size FROM log_trees") == [(300,)]


async def test_a_new_generation_has_a_log_of_its_own_and_the_old_one_stays(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    first, second = Auditor(opened, tenant), Auditor(opened, tenant, generation=2)
    record(opened, tenant, 300)
    with sealing(opened, settings) as running:
        running.step()
        tamper(opened, "DELETE FROM events WHERE position > 280")
        running.step()
        assert "has lost some" in str(stopped(opened, tenant))
        assert opened.sql("SELECT is_sealing_stopped()") == [(True,)]
        opened.sql(
            "INSERT INTO histories (ledger_id, generation, common_position) VALUES (%s, 2, 280)", tenant.ledger_id
        )
        record(opened, tenant, 400)
        running.step()
    assert second.check() == 400
    [old, new] = opened.sql("SELECT origin, checkpoint_size FROM log_trees ORDER BY generation")
    assert (old, new) == (("ledger.example/log/main/1", 300), ("ledger.example/log/main/2", 400))
    # What both have in common is the same in both, and what was signed of the lost events is still there.
    assert first.tile_hashes()[:280] == second.tile_hashes()[:280]
    assert len(first.tile_hashes()) == 300
    # At the positions of lost events there are others now, which are not served as entries of the old log.
    assert entries(opened, tenant, 257, 280)[0] == 24
    assert entries(opened, tenant, 257, 281) == (0, b"")
    assert opened.sql("SELECT is_sealing_stopped()") == [(False,)]
    assert len(list(settings.signing_dir.glob("*.key"))) == 1
