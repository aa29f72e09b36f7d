"""Copies of a destroyed key, in the write-ahead log, in backups and in old blocks: once carried out, none opens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from infra.auth.access_log import COMMAND_LINE
from infra.crypto import keyring, rotation
from infra.crypto.envelope import CreatorKey, MasterKeyError, associated_data
from infra.crypto.epochs import EpochKeyMissing, EpochKeys
from infra.crypto.keyring import Keyring, creator_key_unwrapped_with, creator_purpose
from infra.crypto.master_keys import MasterKey
from infra.crypto.rotation import change_epoch, require_master_keys, rotate
from infra.errors import Unavailable
from infra.jobs.erasure import REST_SHARE
from infra.postgres.embedded.cluster import binary
from infra.postgres.roles import API, WORKER
from projections.engine.advisory_locks import AdvisoryLock
from tests import given
from tests.given import CREATOR, OTHER_SECRET, SECRET
from tests.infra.crypto.test_master_keys import BOTH, NEW_ID, OLD_ID
from tests.infra.jobs.test_erasure import NOTE, OTHER_CREATOR, REMARK, two_creators, unsealed, until
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.programs import running
from tests.keys import EPOCHS

pytestmark = pytest.mark.long("erasures are killed at each step, and every copy on the disk is searched")

OWN = {2: {"secret": SECRET}, 3: {"note": NOTE}, 5: {"text": REMARK}}
OTHERS = {8: {"secret": OTHER_SECRET}, 9: {"text": REMARK}}


def copies(directory: Path, beginning: bytes, length: int) -> set[bytes]:
    """Return whatever begins like a wrapped key, wherever it stands in the files of a directory."""
    found = set()
    for path in directory.rglob("*"):
        content = b""
        with suppress(OSError):  # a file of another test, which is gone
            content = path.read_bytes() if path.is_file() else b""
        at = content.find(beginning)
        while at >= 0:
            found.add(content[at : at + length])
            at = content.find(beginning, at + 1)
    return found


async def read_by_a_thief(opened: Opened, tenant: Tenant) -> dict[int, dict[str, Any]]:
    """Return what somebody reads who has the whole data directory, the master key and the epoch keys that are left."""
    opened.sql("CHECKPOINT")
    lengths = opened.sql("SELECT coalesce(max(octet_length(wrapped)), 104) FROM creator_keys")
    directory = opened.database.cluster.cluster.data_dir
    stolen = copies(directory, bytes.fromhex(MASTER_KEY.key_ids[0]), int(lengths[0][0]))
    read: dict[int, dict[str, Any]] = {}
    events = opened.sql("SELECT position, stream_id, version, event_id, type, key_id, sealed FROM events")
    for key_id in {event[5] for event in events if event[5] is not None}:
        for wrapped in stolen:
            with suppress(MasterKeyError):
                plain = await creator_key_unwrapped_with(MASTER_KEY, wrapped, creator_purpose(tenant.ledger_id, key_id))
                key = CreatorKey(key_id, plain)
                for position, *place, sealed_with, sealed in events:
                    if sealed_with == key_id:
                        read[position] = key.unseal(sealed, associated_data(tenant.ledger_id, *place))
    return read


async def test_no_copy_of_an_erased_creators_key_opens_although_somebody_has_the_master_key(opened: Opened) -> None:
    tenant = await two_creators(opened)
    ((wrapped,),) = opened.sql("SELECT wrapped FROM creator_keys ORDER BY key_id LIMIT 1")
    assert await read_by_a_thief(opened, tenant) == OWN | OTHERS

    await opened.erase(tenant)

    found = await opened.erasures.of(tenant.ledger_id, CREATOR)
    assert found is not None
    assert found.state == "carried_out"
    assert await read_by_a_thief(opened, tenant) == OTHERS
    directory = opened.database.cluster.cluster.data_dir
    assert bytes(wrapped) in copies(directory, bytes(wrapped)[:8], len(wrapped)), (
        "there are copies, and they are useless"
    )


async def test_other_creators_are_read_and_written_in_the_new_epoch(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await opened.erase(tenant)
    assert await unsealed(opened.api, tenant) == {2: None, 3: None, 5: None} | OTHERS
    fresh = Keyring(opened.worker, MASTER_KEY)
    assert (await fresh.creator(tenant.ledger_id, OTHER_CREATOR)).key_id
    assert (await fresh.creator(tenant.ledger_id, "creator-3")).key_id
    epochs = opened.sql(
        "SELECT DISTINCT encode(substring(wrapped FROM 9 FOR 8), 'hex') FROM creator_keys WHERE wrapped IS NOT NULL"
    )
    assert epochs == opened.sql("SELECT epoch_id FROM key_epochs WHERE present")


async def test_erasures_that_wait_together_end_one_epoch(opened: Opened) -> None:
    tenant = await two_creators(opened)
    for creator in (CREATOR, OTHER_CREATOR):
        await opened.when(tenant, given.erase(creator_id=creator))
    assert await opened.erasures.carry_out_pending() == 2
    assert opened.sql("SELECT count(*) FROM key_epochs") == [(2,)]
    assert opened.sql("SELECT count(*) FROM erasures WHERE carried_out_at IS NULL") == [(0,)]
    assert await read_by_a_thief(opened, tenant) == {}


async def test_a_worker_pauses_after_a_long_change_of_the_epoch_and_finishes_an_interrupted_one_at_once(
    opened: Opened,
) -> None:
    tenant = await two_creators(opened)
    await opened.erase(tenant)
    await opened.when(tenant, given.erase(creator_id=OTHER_CREATOR))
    await opened.erasures.remove(tenant.ledger_id, OTHER_CREATOR, COMMAND_LINE)
    pending = "SELECT count(*) FROM erasures WHERE carried_out_at IS NULL"
    # As if the change before, which ended just now, had taken an hour.
    opened.sql("UPDATE key_epochs SET began_at = began_at - interval '1 hour' WHERE present")
    await opened.erasures.complete(REST_SHARE)
    assert opened.sql(pending) == [(1,)]
    opened.sql("UPDATE key_epochs SET destroyed_at = destroyed_at - interval '10 hours' WHERE NOT present")
    opened.sql("UPDATE key_epochs SET began_at = began_at - interval '10 hours' WHERE present")
    await opened.erasures.complete(REST_SHARE)
    assert opened.sql(pending) == [(0,)]

    opened.sql("UPDATE key_epochs SET began_at = began_at - interval '1 hour' WHERE present")
    opened.sql("UPDATE key_epochs SET destroyed_at = NULL WHERE number = 1")
    opened.sql("UPDATE erasures SET carried_out_at = NULL")
    await opened.erasures.complete(REST_SHARE)
    assert opened.sql(pending) == [(0,)]


async def test_a_creator_who_never_had_a_key_ends_no_epoch(opened: Opened) -> None:
    tenant = await opened.begin(role="admin")
    await opened.when(tenant, given.permission())
    await opened.erase(tenant)
    assert opened.sql("SELECT count(*) FROM key_epochs") == [(1,)]
    assert opened.sql("SELECT count(*) FROM erasures WHERE carried_out_at IS NULL") == [(0,)]


# ── killed between any two steps ──


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from infra.crypto import keyring, rotation
from infra.crypto.epochs import EpochKeys
from infra.jobs.erasure import Erasures
from infra.postgres.roles import WORKER
from infra.runtime import runtime
from tests.infra.opened import MASTER_KEY

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(what):
    def both(*given):
        what(*given)
        die()
    return both

def overwrite(epochs, epoch_id):
    (epochs.directory / f"{epoch_id}.key").write_bytes(bytes(45))

def die_at_the_third(what, calls=[]):
    def counted(*given):
        calls.append(given)
        return die() if len(calls) == 3 else what(*given)
    return counted

rotation.EPOCH_BATCH_ROWS = 1
match sys.argv[2]:
    case "the row is emptied":
        Erasures.complete = die
    case "the key of the next epoch is made":
        EpochKeys.add = then_die(EpochKeys.add)
    case "the next epoch has begun":
        rotation._seal_in = die
    case "two keys are sealed in it":
        rotation.unsealed = die_at_the_third(rotation.unsealed)
    case "every key is sealed in it":
        EpochKeys.destroy = die
    case "the old key is overwritten":
        EpochKeys.destroy = then_die(overwrite)
    case "the old key is destroyed":
        EpochKeys.destroy = then_die(EpochKeys.destroy)

async def carry_out():
    async with runtime(sys.argv[1], WORKER, MASTER_KEY) as worker:
        await Erasures(worker.database, worker.aggregates, worker.key_admin).carry_out_pending()

asyncio.run(carry_out())
"""


@pytest.mark.parametrize(
    "when",
    [
        "the row is emptied",
        "the key of the next epoch is made",
        "the next epoch has begun",
        "two keys are sealed in it",
        "every key is sealed in it",
        "the old key is overwritten",
        "the old key is destroyed",
    ],
)
async def test_an_erasure_that_was_killed_goes_on_where_it_was(opened: Opened, when: str) -> None:
    tenant = await two_creators(opened)
    for number in range(3, 6):
        await opened.keyring.creator(tenant.ledger_id, f"creator-{number}")
    ((before,),) = opened.sql("SELECT epoch_id FROM key_epochs")
    await opened.when(tenant, given.erase())
    with running(KILLED, opened.database.dsn(WORKER), when) as program:
        assert await asyncio.to_thread(program.process.wait, 30) == -9, program.rest()

    found = await opened.erasures.of(tenant.ledger_id, CREATOR)
    assert found is not None
    assert (found.state, found.carried_out_at) == ("carrying_out", None)
    assert await unsealed(opened.api, tenant) == {2: None, 3: None, 5: None} | OTHERS
    async with asyncio.timeout(15):
        while (await opened.erasures.of(tenant.ledger_id, CREATOR) or found).state != "carried_out":
            await opened.erasures.complete()  # as soon as the server has noticed that the session before is gone

    assert not EPOCHS.has(before)
    assert await read_by_a_thief(opened, tenant) == OTHERS
    fresh = Keyring(opened.worker, MASTER_KEY)
    for number in range(2, 6):
        await fresh.creator(tenant.ledger_id, f"creator-{number}")


# ── what happens at the same time ──


async def test_a_key_that_was_sealed_just_before_an_epoch_ended_is_not_stored_after_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the key of a creator would be lost with the epoch's."""
    tenant = await two_creators(opened)
    wrapped_with = keyring.creator_key_wrapped_with

    async def then_erased(*arguments: Any) -> bytes:
        wrapped = await wrapped_with(*arguments)
        monkeypatch.setattr(keyring, "creator_key_wrapped_with", wrapped_with)
        await opened.erase(tenant)
        return wrapped

    monkeypatch.setattr(keyring, "creator_key_wrapped_with", then_erased)
    with pytest.raises(Unavailable):
        await opened.keyring.creator(tenant.ledger_id, "creator-late")
    await opened.keyring.creator(tenant.ledger_id, "creator-late")


async def test_a_key_is_made_and_read_although_its_epoch_ends_between_two_steps(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await two_creators(opened)
    key, ended = EpochKeys.key, list[str]()

    def of_an_ended_epoch(epochs: EpochKeys, epoch_id: str) -> Any:
        if not ended:
            ended.append(epoch_id)
            raise EpochKeyMissing
        return key(epochs, epoch_id)

    monkeypatch.setattr(EpochKeys, "key", of_an_ended_epoch)
    assert (await opened.keyring.creator(tenant.ledger_id, "creator-late")).key_id
    ended.clear()
    opened.keyring.forget_creators()
    assert await unsealed(opened.api, tenant) == OWN | OTHERS


async def test_an_epoch_waits_for_whoever_is_storing_a_key(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await opened.when(tenant, given.erase())
    await opened.erasures.remove(tenant.ledger_id, CREATOR, COMMAND_LINE)
    stored = (
        "INSERT INTO creator_keys (ledger_id, key_id, creator, wrapped) SELECT %s, gen_random_uuid(), 'late', wrapped"
        " FROM creator_keys WHERE wrapped IS NOT NULL LIMIT 1"
    )
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as other:
        await other.execute(stored, (tenant.ledger_id,))
        completing = asyncio.create_task(opened.erasures.complete())
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: bool(opened.sql(waiting)))
        await other.rollback()
    await completing
    assert opened.sql("SELECT count(*) FROM erasures WHERE carried_out_at IS NOT NULL") == [(1,)]


async def test_an_erasure_waits_for_a_rotation_and_a_rotation_keeps_to_the_epochs(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await opened.when(tenant, given.erase())
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.MASTER_KEY_ROTATION,))
        await opened.erasures.carry_out_pending()
        found = await opened.erasures.of(tenant.ledger_id, CREATOR)
        assert found is not None
        assert found.state == "carrying_out"
        assert not await change_epoch(opened.database.dsn(WORKER), MASTER_KEY)
    while opened.sql("SELECT 1 FROM erasures WHERE carried_out_at IS NULL"):
        await opened.erasures.complete()
    assert await rotate(opened.database.dsn(), BOTH, lambda _: None) == NEW_ID
    # Opened by the new master key and the epoch's key; a thief who has the old one only has nothing.
    fresh = Keyring(opened.worker, BOTH)
    assert (await fresh.creator(tenant.ledger_id, OTHER_CREATOR)).key_id
    assert OLD_ID not in str(opened.sql("SELECT encode(substring(wrapped FROM 1 FOR 8), 'hex') FROM creator_keys"))


async def test_a_backup_from_before_an_erasure_is_restored_with_the_keys_that_were_stored_after_it(
    opened: Opened,
) -> None:
    """As docs/keys-and-erasure.md says: else the secrets of all creators would be lost with the ended epoch."""
    tenant = await two_creators(opened)
    tables = ("creator_keys", "key_epochs", "erasures")
    backup = {table: table_of(opened, table) for table in tables}
    await opened.erase(tenant)
    stored_after = {table: table_of(opened, table) for table in tables}

    restore(opened, backup)
    with pytest.raises(MasterKeyError, match=r"The erasure key [0-9a-f]{16} is not in"):
        require_master_keys(opened.database.dsn(API), API, MASTER_KEY)
    restore(opened, stored_after)
    require_master_keys(opened.database.dsn(API), API, MASTER_KEY)
    opened.keyring.forget_creators()
    assert await unsealed(opened.api, tenant) == {2: None, 3: None, 5: None} | OTHERS


def table_of(opened: Opened, table: str) -> bytes:
    """Return the rows of a table, as a dump has them."""
    with psycopg.connect(opened.database.dsn()) as connection:
        rows = connection.cursor().copy(SQL("COPY {} TO STDOUT").format(Identifier(table)))
        with rows as copied:
            return b"".join(bytes(data) for data in copied)


def restore(opened: Opened, dump: dict[str, bytes]) -> None:
    """Put the rows of a dump in the place of those there are, without triggers, as a superuser."""
    with psycopg.connect(opened.database.dsn()) as connection:
        connection.execute("SET session_replication_role = replica")
        for table, rows in dump.items():
            name = Identifier(table)
            connection.execute(SQL("DELETE FROM {}").format(name))
            with connection.cursor().copy(SQL("COPY {} FROM STDIN").format(name)) as copied:
                copied.write(rows)


async def test_an_erasure_keeps_the_old_key_while_a_standby_may_lack_what_was_sealed_again(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the secrets of all creators would be lost if it took over; after five minutes it is not waited for."""
    tenant = await two_creators(opened)
    await opened.when(tenant, given.erase())
    await opened.erasures.remove(tenant.ledger_id, CREATOR, COMMAND_LINE)
    # It stores what it receives, and flushes nothing before the end of a segment.
    command = [str(binary("pg_receivewal")), "--no-loop", f"--directory={tmp_path}", "--dbname", opened.database.dsn()]
    standby = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        await until(lambda: bool(opened.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")))
        assert not await change_epoch(opened.database.dsn(WORKER), MASTER_KEY)
        found = await opened.erasures.of(tenant.ledger_id, CREATOR)
        assert found is not None
        assert found.state == "carrying_out"
        assert await read_by_a_thief(opened, tenant) == OWN | OTHERS
        monkeypatch.setattr(rotation, "STANDBY_S", 0)
        assert await change_epoch(opened.database.dsn(WORKER), MASTER_KEY)
    finally:
        standby.terminate()
        await standby.wait()
    assert await read_by_a_thief(opened, tenant) == OTHERS


# ── the files ──


def test_the_key_of_an_epoch_is_for_its_owner_alone_and_is_overwritten_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = EpochKeys(tmp_path / "keys")
    epoch_id = epochs.add()
    file = tmp_path / "keys" / f"{epoch_id}.key"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    linked = tmp_path / "another name of the same bytes"
    linked.hardlink_to(file)
    before = linked.read_bytes()
    epochs.destroy(epoch_id)
    assert not file.exists()
    assert len(linked.read_bytes()) == len(before)
    assert not set(linked.read_bytes().split()) & set(before.split())
    epochs.destroy(epoch_id)


def test_the_key_of_an_epoch_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    epochs = EpochKeys(tmp_path)
    epoch_id = epochs.add()
    file = tmp_path / f"{epoch_id}.key"
    file.chmod(0o644)
    with pytest.raises(MasterKeyError, match="has mode 0644"):
        epochs.key(epoch_id)
    file.chmod(0o600)
    file.write_text("short\n")
    with pytest.raises(MasterKeyError, match="does not contain an erasure key"):
        epochs.key(epoch_id)


async def test_a_process_without_the_key_of_the_present_epoch_does_not_start_and_says_what_is_missing(
    opened: Opened, tmp_path: Path
) -> None:
    tenant = await two_creators(opened)
    elsewhere = MasterKey(bytes(range(32)), epochs=EpochKeys(tmp_path))
    ((present,),) = opened.sql("SELECT epoch_id FROM key_epochs")
    missing = f"The erasure key {present} is not in {tmp_path}. .* set SPARKLEDGER_ERASURE_KEY_DIR"
    for role in (API, WORKER):
        with pytest.raises(MasterKeyError, match=missing):
            require_master_keys(opened.database.dsn(role), role, elsewhere)
    with pytest.raises(MasterKeyError, match=missing):
        await Keyring(opened.worker, elsewhere).creator(tenant.ledger_id, CREATOR)


async def test_an_erasure_that_cannot_leave_an_epoch_destroys_nothing(opened: Opened, tmp_path: Path) -> None:
    """The old epoch's key is missing here, so that the other creators' keys cannot be sealed again."""
    tenant = await two_creators(opened)
    await opened.when(tenant, given.erase())
    await opened.erasures.remove(tenant.ledger_id, CREATOR, COMMAND_LINE)
    elsewhere = MasterKey(bytes(range(32)), epochs=EpochKeys(tmp_path))
    with pytest.raises(MasterKeyError, match="is not in"):
        await change_epoch(opened.database.dsn(WORKER), elsewhere)
    assert opened.sql("SELECT count(*) FROM key_epochs WHERE destroyed_at IS NOT NULL") == [(0,)]
    assert await unsealed(opened.api, tenant) == {2: None, 3: None, 5: None} | OTHERS
