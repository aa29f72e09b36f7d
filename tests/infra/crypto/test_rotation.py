"""Putting another master key in the place of the present one while everything runs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain.values import Sealed
from infra.auth.authenticator import CHANNEL
from infra.crypto import rotation
from infra.crypto.envelope import MasterKeyError
from infra.crypto.keyring import Keyring, PresentKeys
from infra.crypto.master_keys import KeyProvider, MasterKey, MasterKeyFile, short_id
from infra.crypto.rotation import WRAPPED, MasterKeyState, require_master_keys, rotate, states
from infra.errors import Unavailable
from infra.postgres.roles import API, WORKER
from infra.runtime import Runtime, runtime
from projections.engine.advisory_locks import AdvisoryLock
from tests import given
from tests.infra.crypto.test_master_keys import BOTH, NEW, NEW_ID, OLD, OLD_ID, THIRD, key_file, text
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.programs import running
from tests.infra.session_tokens import present_all
from tests.keys import EPOCHS, master_key


def told(_: str) -> None:
    """Take what a rotation says, and say nothing."""


@asynccontextmanager
async def process(opened: Opened, keys: KeyProvider, role: str = API) -> AsyncIterator[Runtime]:
    """Open the database as another process does, with master keys of its own."""
    async with runtime(opened.database.dsn(role), role, keys) as other:
        present_all(other.database)
        yield other


async def story(opened: Opened, creators: int = 3) -> Tenant:
    """Record a code with a note for each of some creators."""
    tenant = await opened.begin()
    for number in range(creators):
        await generated(opened.api, tenant, number)
    return tenant


async def generated(api: Runtime, tenant: Tenant, number: int) -> None:
    """Record a code of a creator who had none."""
    code, creator = UUID(int=number + 1), f"creator-{number}"
    secret = Sealed(f"#secret-of-{number}")
    for command in (
        given.permission(creator_id=creator),
        given.generate(code, creator_id=creator, video_id=f"video-{number}", secret=secret),
        given.share(code, note=f"note of {number}"),
    ):
        decide: Any = command
        await api.handler.handle(tenant.request(), decide)


async def reads(api: Runtime, tenant: Tenant, creators: int = 3) -> list[str]:
    """Return every secret, as a process unseals it."""
    return [str(await api.aggregates.secret(tenant.ledger_id, UUID(int=number + 1))) for number in range(creators)]


SECRETS = [f"#secret-of-{number}" for number in range(3)]


class Service:
    """A key management service, added as `master_keys` says: it has the key, and is asked over a wire."""

    key_ids: Sequence[str] = (short_id("arn:key/1"),)
    epochs = EPOCHS

    def __init__(self) -> None:
        self._inside, self.asked = master_key(THIRD), 0

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        assert key_id in self.key_ids
        await asyncio.sleep(0)
        return await self._inside.wrap(self._inside.key_ids[0], key, purpose)

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        assert key_id in self.key_ids
        self.asked += 1
        await asyncio.sleep(0)
        return await self._inside.unwrap(self._inside.key_ids[0], wrapped, purpose)


class Moving(Service):
    """That service, while keys are still wrapped with the master key that stood in the environment."""

    key_ids = (*Service.key_ids, OLD_ID)

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        if key_id == OLD_ID:
            return await MASTER_KEY.unwrap(key_id, wrapped, purpose)
        return await super().unwrap(key_id, wrapped, purpose)


async def test_a_service_takes_the_place_of_a_key_in_the_environment(opened: Opened) -> None:
    tenant = await story(opened)
    assert await rotate(opened.database.dsn(), Moving(), told) == Service.key_ids[0]
    service = Service()
    before = listening(opened)
    async with process(opened, service) as other:
        # A process that begins to listen forgets what may have changed meanwhile.
        await until(lambda: listening(opened) > before)
        assert await reads(other, tenant) == await reads(other, tenant) == SECRETS
    # Once for each creator: what was unwrapped stays in memory.
    assert service.asked == 3


def listening(opened: Opened) -> int:
    """Return how many processes hear of changes of keys."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query = %s"
    return int(opened.sql(query, f"LISTEN {CHANNEL}")[0][0])


def wrapped_with(opened: Opened) -> set[str]:
    """Return the ids of the master keys that anything is wrapped with."""
    return {
        bytes(wrapped)[:8].hex()
        for column in WRAPPED
        for (wrapped,) in opened.sql(f"SELECT {column.column} FROM {column.table}")
    }


async def test_after_a_rotation_the_new_key_alone_opens_everything(opened: Opened) -> None:
    tenant = await story(opened)
    key, key_text, _ = await opened.key_admin.create(tenant.ledger_id, role="auditor")
    assert await rotate(opened.database.dsn(), BOTH, told) == NEW_ID
    assert wrapped_with(opened) == {NEW_ID}
    async with process(opened, master_key(NEW)) as other:
        assert await reads(other, tenant) == SECRETS
        found = await other.authenticator.authenticate(key_text, datetime.now(UTC))
        assert found is not None
        assert found.key_id == key.key_id
        # Found by the keyed hash of its secret, which stayed what it was.
        decide: Any = given.redeem(Sealed(SECRETS[0]))
        assert (await other.handler.handle(tenant.request(), decide)).appended == 1
    async with process(opened, MASTER_KEY) as other:
        with pytest.raises(MasterKeyError, match=f"are wrapped with master key {NEW_ID}, "):
            await reads(other, tenant)


async def test_a_rotation_leaves_every_event_as_it_was(opened: Opened) -> None:
    await story(opened)
    whole = "SELECT md5(string_agg(e::text, '' ORDER BY ledger_id, position)) FROM events e"
    before = opened.sql(whole)
    await rotate(opened.database.dsn(), BOTH, told)
    assert opened.sql(whole) == before


async def test_nothing_in_the_database_is_wrapped_with_the_old_key_after_a_rotation(opened: Opened) -> None:
    """Whichever column it stands in: one that no rotation knows of would be lost with the old key."""
    await story(opened)
    assert set(begun_with(opened, OLD_ID)) == {f"{wrapped.table}.{wrapped.column}" for wrapped in WRAPPED}
    await rotate(opened.database.dsn(), BOTH, told)
    assert begun_with(opened, OLD_ID) == []


def begun_with(opened: Opened, key_id: str) -> list[str]:
    """Return the columns that hold bytes which begin with the id of a master key."""
    columns = opened.sql(
        "SELECT c.oid::regclass::text, a.attname FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND a.atttypid = 'bytea'::regtype"
        " WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('public', 'views')"
    )
    found = []
    for table, column in columns:
        query = f"SELECT 1 FROM {table} WHERE encode(substring({column} FROM 1 FOR 8), 'hex') = %s LIMIT 1"
        if opened.sql(query, key_id):
            found.append(f"{table}.{column}")
    return found


async def test_commands_and_reads_go_on_during_a_rotation(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes work, creators appear and are read, while every batch of keys is wrapped again."""
    monkeypatch.setattr(rotation, "BATCH_ROWS", 2)
    tenant = await story(opened, 12)
    numbers, stop, failed = itertools.count(12), asyncio.Event(), []

    async def work(api: Runtime) -> int:
        while not stop.is_set():
            number = next(numbers)
            try:
                await generated(api, tenant, number)
                assert await reads(api, tenant) == SECRETS
            except Exception as error:  # noqa: BLE001 - all of them are told below
                failed.append(error)
        return number

    async with process(opened, BOTH) as one, process(opened, BOTH) as other:
        workers = [asyncio.create_task(work(api)) for api in (one, other)]
        for _ in range(3):
            for keys in (BOTH, master_key(OLD, NEW)):
                assert await rotate(opened.database.dsn(), keys, told) == keys.key_ids[0]
        assert await rotate(opened.database.dsn(), BOTH, told) == NEW_ID
        stop.set()
        last = max(await asyncio.gather(*workers))
    # A key that was wrapped just as the present one changed is refused, to be asked for again; nothing else fails.
    assert [error for error in failed if not isinstance(error, Unavailable)] == []
    assert wrapped_with(opened) == {NEW_ID}
    assert last > 12
    async with process(opened, master_key(NEW)) as later:
        assert await reads(later, tenant) == SECRETS


KILLED = """
import asyncio, sys, time
from infra.crypto import rotation
from tests.keys import master_key
rotation.BATCH_ROWS = 5
def say(line):
    print(line, flush=True)
    if line.startswith("creator_keys"):
        time.sleep(60)  # the test kills it here
asyncio.run(rotation.rotate(sys.argv[1], master_key(bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])), say))
"""


async def test_a_rotation_that_was_killed_is_finished_by_the_next(opened: Opened) -> None:
    tenant = await story(opened, 12)
    with running(KILLED, opened.database.dsn(), NEW.hex(), OLD.hex()) as program:
        await asyncio.to_thread(program.line, "creator_keys: 5 keys wrapped again")
        program.process.kill()
    assert wrapped_with(opened) == {OLD_ID, NEW_ID}
    async with process(opened, BOTH) as between:
        assert await reads(between, tenant) == SECRETS
    with pytest.raises(MasterKeyError, match=OLD_ID):
        require_master_keys(opened.database.dsn(), WORKER, master_key(NEW))
    assert await until_free(opened) == NEW_ID
    assert wrapped_with(opened) == {NEW_ID}
    require_master_keys(opened.database.dsn(), WORKER, master_key(NEW))


async def until_free(opened: Opened) -> str | None:
    """Rotate as soon as the server has noticed that the session before is gone."""
    held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
    await until(lambda: not opened.sql(held, AdvisoryLock.MASTER_KEY_ROTATION))
    return await rotate(opened.database.dsn(), BOTH, told)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_two_rotations_do_not_run_at_once(opened: Opened) -> None:
    await story(opened)
    with psycopg.connect(opened.database.dsn()) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.MASTER_KEY_ROTATION,))
        with pytest.raises(MasterKeyError, match="Another rotation of the master key is in progress"):
            await rotate(opened.database.dsn(), BOTH, told)


async def test_a_rotation_again_has_nothing_to_do(opened: Opened) -> None:
    await story(opened)
    assert [await rotate(opened.database.dsn(), BOTH, told) for _ in range(2)] == [NEW_ID, None]
    assert await rotate(opened.database.dsn(), master_key(NEW), told) is None


async def test_a_rotation_without_the_old_key_changes_nothing(opened: Opened) -> None:
    tenant = await story(opened)
    with pytest.raises(
        MasterKeyError,
        match=rf"with master key {OLD_ID}, but the given master key is {NEW_ID}\. Set SPARKLEDGER_MASTER_KEY",
    ):
        await rotate(opened.database.dsn(), master_key(NEW), told)
    assert wrapped_with(opened) == {OLD_ID}
    assert await reads(opened.api, tenant) == SECRETS


async def test_a_process_that_knows_the_old_key_alone_stores_none_once_a_rotation_began(opened: Opened) -> None:
    """Else the key of a creator would be lost with the old master key."""
    tenant = await story(opened)
    await rotate(opened.database.dsn(), BOTH, told)
    with pytest.raises(MasterKeyError, match=f"with master key {NEW_ID}, but the given master key is {OLD_ID}"):
        await generated(opened.api, tenant, 3)
    assert wrapped_with(opened) == {NEW_ID}


async def test_a_key_that_was_wrapped_just_before_a_rotation_is_not_stored_after_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await story(opened)
    present = Keyring._present

    async def then_rotated(self: Keyring) -> PresentKeys:
        found = await present(self)
        await rotate(opened.database.dsn(), BOTH, told)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Keyring, "_present", then_rotated)
        async with process(opened, BOTH) as other:
            with pytest.raises(Unavailable):
                await other.keyring.creator(tenant.ledger_id, "creator-late")
    async with process(opened, BOTH) as other:
        await other.keyring.creator(tenant.ledger_id, "creator-late")
    assert wrapped_with(opened) == {NEW_ID}


async def test_a_rotation_waits_for_whoever_is_storing_a_key(opened: Opened) -> None:
    tenant = await story(opened)
    stored = (
        "INSERT INTO creator_keys (ledger_id, key_id, creator, wrapped) SELECT %s, gen_random_uuid(), 'late', wrapped"
    )
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as other:
        await other.execute(f"{stored} FROM creator_keys LIMIT 1", (tenant.ledger_id,))
        rotating = asyncio.create_task(rotate(opened.database.dsn(), BOTH, told))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: bool(opened.sql(waiting)))
        await other.rollback()
    assert await rotating == NEW_ID
    assert wrapped_with(opened) == {NEW_ID}


async def test_a_rotation_brings_no_destroyed_key_back(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the key is destroyed between its being read and its being written."""
    tenant = await story(opened)

    class Slow(MasterKey):
        async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
            if purpose.startswith("creator"):
                await opened.erase(tenant, "creator-0")
            return await super().unwrap(key_id, wrapped, purpose)

    await rotate(opened.database.dsn(), Slow(NEW, OLD, epochs=EPOCHS), told)
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NULL") == [(1,)]
    assert begun_with(opened, OLD_ID) == []


async def test_the_states_tell_how_much_is_wrapped_with_which_key(opened: Opened) -> None:
    await story(opened)
    assert await states(opened.database.dsn(), BOTH) == [
        MasterKeyState(OLD_ID, present=True, given=True, keys=5),
        MasterKeyState(NEW_ID, present=False, given=True, keys=0),
    ]
    await rotate(opened.database.dsn(), BOTH, told)
    assert await states(opened.database.dsn(), master_key(THIRD)) == [
        MasterKeyState(NEW_ID, present=True, given=False, keys=5),
        MasterKeyState(master_key(THIRD).key_ids[0], present=False, given=True, keys=0),
    ]


async def test_a_process_does_not_begin_without_the_present_key(opened: Opened) -> None:
    dsn = opened.database.dsn()
    require_master_keys(dsn, API, master_key(NEW))  # an empty database takes whichever key is given
    await story(opened)
    require_master_keys(dsn, API, MASTER_KEY)
    require_master_keys(dsn, API, BOTH)
    with pytest.raises(MasterKeyError, match=f"with master key {OLD_ID}, but the given master key is {NEW_ID}"):
        require_master_keys(dsn, API, master_key(NEW))
    require_master_keys("host=127.0.0.1 port=1 dbname=away", API, master_key(NEW))


async def test_a_file_gets_a_fresh_key_while_a_process_runs_on_it(opened: Opened, tmp_path: Path) -> None:
    file = key_file(tmp_path, OLD)
    tenant = await story(opened)
    async with process(opened, MasterKeyFile(file, EPOCHS)) as running:
        assert await reads(running, tenant) == SECRETS
        fresh = await rotate(opened.database.dsn(), MasterKeyFile(file, EPOCHS), told)
        assert fresh not in {None, OLD_ID}
        await generated(running, tenant, 3)
        assert await reads(running, tenant, 4) == [*SECRETS, "#secret-of-3"]
    assert wrapped_with(opened) == {fresh}
    lines = file.read_text().splitlines()
    assert lines[1:] == [text(OLD)]
    file.write_text(f"{lines[0]}\n")
    async with process(opened, MasterKeyFile(file, EPOCHS)) as later:
        assert await reads(later, tenant) == SECRETS


async def test_a_rotation_of_a_file_that_was_killed_makes_no_third_key(opened: Opened, tmp_path: Path) -> None:
    await story(opened)
    held = MasterKeyFile(key_file(tmp_path, OLD), EPOCHS)
    added = held.add()  # killed before the database heard of it
    assert await rotate(opened.database.dsn(), MasterKeyFile(held.path, EPOCHS), told) == added
    assert len(held.path.read_text().splitlines()) == 2


def test_the_keys_of_a_file_are_shown_nowhere(tmp_path: Path) -> None:
    file = key_file(tmp_path, OLD, NEW)
    shown = [
        repr(MasterKeyFile(file, EPOCHS)),
        repr(BOTH),
        json.dumps(BOTH.key_ids),
        str(vars(MasterKeyFile(file, EPOCHS))),
    ]
    assert [one for one in shown if text(OLD) in one or text(NEW) in one or OLD.hex() in one] == []
