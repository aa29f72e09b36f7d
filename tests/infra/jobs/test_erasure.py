"""Erasing a creator: nothing sealed is ever read again, in no process, and nothing else breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

import infra.postgres.pool
from domain.errors import Refused, Unknown
from domain.recorded import RecordedEvent
from domain.values import Sealed
from infra.auth.access_log import COMMAND_LINE
from infra.auth.api_keys import ApiKey, Subjects
from infra.auth.denied_attempts import DeniedAttempt
from infra.auth.erasure_lock import all_erased
from infra.auth.key_admin import KeyAdmin
from infra.errors import Unavailable
from infra.ids import uuid7
from infra.jobs.erasure import Erasures, erase
from infra.postgres.roles import API, WORKER
from infra.runtime import Runtime, runtime
from tests import given
from tests.given import CODE, CREATOR, OTHER_CODE, OTHER_SECRET, SECRET, Command
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.programs import running
from tests.infra.session_tokens import present

OTHER_CREATOR = "creator-2"
NOTE, REMARK = "for the birthday of Ana Lopes", "Ana Lopes meant another brand"


async def two_creators(opened: Opened) -> Tenant:
    """Record a code of each of two creators, with notes on the first's."""
    tenant = await opened.begin(role="admin")
    for command in (
        given.permission(),
        given.generate(),
        given.share(note=NOTE),
        given.redeem(),
        given.note(text=REMARK),
        given.reveal(),
        given.permission(creator_id=OTHER_CREATOR),
        given.generate(OTHER_CODE, creator_id=OTHER_CREATOR, video_id="video-2", secret=OTHER_SECRET),
        given.note(OTHER_CODE, text=REMARK),
    ):
        await opened.when(tenant, command)
    return tenant


async def unsealed(api: Runtime, tenant: Tenant) -> dict[int, dict[str, Sealed] | None]:
    """Return what each sealed event of the ledger holds; None where that is erased."""
    return await api.aggregates.unsealed(tenant.ledger_id, await events(api, tenant))


async def events(api: Runtime, tenant: Tenant) -> list[RecordedEvent]:
    return await api.events.page(tenant.ledger_id, limit=1_000)


async def refusal(attempt: Any) -> str:
    """Return what refused an attempt."""
    with pytest.raises(Refused) as refused:
        await attempt
    return refused.value.code


# ── what is erased, and what is not ──


async def test_what_was_sealed_of_an_erased_creator_cannot_be_read(opened: Opened) -> None:
    tenant = await two_creators(opened)
    before = await unsealed(opened.api, tenant)
    assert before == {
        2: {"secret": SECRET},
        3: {"note": NOTE},
        5: {"text": REMARK},
        8: {"secret": OTHER_SECRET},
        9: {"text": REMARK},
    }
    await opened.erase(tenant)
    assert await unsealed(opened.api, tenant) == {**before, 2: None, 3: None, 5: None}
    assert await refusal(opened.aggregates.secret(tenant.ledger_id, CODE)) == "creator_erased"
    assert await opened.aggregates.secret(tenant.ledger_id, OTHER_CODE) == OTHER_SECRET


async def test_every_event_stays_as_it_was(opened: Opened) -> None:
    tenant = await two_creators(opened)
    whole = "SELECT e::text FROM events e ORDER BY position"
    before = opened.sql(whole)
    await opened.erase(tenant)
    *same, (erased,) = opened.sql(whole)
    assert same == before
    assert "CreatorErased" in erased


async def test_an_erasure_says_who_why_and_when(opened: Opened) -> None:
    tenant = await two_creators(opened)
    assert await opened.erasures.of(tenant.ledger_id, CREATOR) is None
    begun = datetime.now(UTC)
    await opened.when(tenant, given.erase("asked for on 3 March"))
    recorded = await opened.erasures.of(tenant.ledger_id, CREATOR)
    assert recorded is not None
    assert (recorded.reason, recorded.carried_out_at) == ("asked for on 3 March", None)
    assert (recorded.recorded.actor, recorded.recorded.position) == (tenant.actor, 10)
    await opened.erasures.carry_out(tenant.ledger_id, CREATOR, COMMAND_LINE)
    carried_out = await opened.erasures.of(tenant.ledger_id, CREATOR)
    assert carried_out is not None
    assert carried_out.carried_out_at is not None
    assert begun < carried_out.recorded.recorded_at < carried_out.carried_out_at


async def test_the_key_itself_is_gone_from_the_database(opened: Opened) -> None:
    tenant = await two_creators(opened)
    keys = "SELECT wrapped FROM creator_keys ORDER BY key_id"
    (ours,), (theirs,) = opened.sql(keys)
    await opened.erase(tenant)
    assert [wrapped is None for (wrapped,) in opened.sql(keys)] == [True, False]
    assert (theirs,) not in opened.sql(keys), "the other creator's key is sealed in a new epoch"
    assert bytes(ours).hex() not in str(opened.sql("SELECT k::text FROM creator_keys k"))


async def test_erasing_again_changes_nothing(opened: Opened) -> None:
    tenant = await two_creators(opened)
    everything = "SELECT k::text, (SELECT string_agg(d::text, ' ') FROM erasures d) FROM creator_keys k ORDER BY 1"
    await opened.erase(tenant)
    before = opened.sql(everything)
    again = await opened.when(tenant, given.erase("for another reason"))
    await opened.erase(tenant)
    assert again.appended == 0
    assert opened.sql(everything) == before
    assert opened.sql("SELECT count(*) FROM events WHERE type = 'CreatorErased'") == [(1,)]


async def test_a_creator_of_whom_nothing_is_recorded_is_not_erased(opened: Opened) -> None:
    tenant = await two_creators(opened)
    with pytest.raises(Unknown):
        await opened.when(tenant, given.erase(creator_id="nobody"))
    assert not await opened.erasures.carry_out(tenant.ledger_id, "nobody", COMMAND_LINE)


async def test_a_creator_who_never_had_a_code_gets_no_key_once_erased(opened: Opened) -> None:
    tenant = await opened.begin(role="admin")
    await opened.when(tenant, given.permission())
    await opened.erase(tenant)
    assert await refusal(opened.keyring.creator(tenant.ledger_id, CREATOR)) == "creator_erased"
    assert opened.sql("SELECT wrapped FROM creator_keys") == [(None,)]


@pytest.mark.parametrize(
    "command",
    [
        given.permission(),
        given.generate(OTHER_CODE, video_id="video-3", secret=Sealed("#another")),
        given.extend(days=60),
        given.share(brand_id="brand-2"),
        given.share(brand_id="brand-2", note=NOTE),
        given.reveal(),
        given.note(text="another"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
async def test_nothing_new_is_recorded_for_an_erased_creator(opened: Opened, command: Command, fresh: bool) -> None:
    tenant = await two_creators(opened)
    await opened.erase(tenant)
    before = opened.sql("SELECT count(*) FROM events")
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as other:
        present(other.database, tenant.ledger_id, tenant.key.key_id)
        decide: Any = command
        handler = other.handler if fresh else opened.handler
        assert await refusal(handler.handle(tenant.request(), decide)) == "creator_erased"
    assert opened.sql("SELECT count(*) FROM events") == before


async def test_codes_of_an_erased_creator_are_still_redeemed_and_revoked(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await opened.erase(tenant)
    for command in (given.redeem(advertiser_id="advertiser-2"), given.revoke()):
        assert (await opened.when(tenant, command)).appended == 1


async def test_other_creators_are_not_touched(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await opened.erase(tenant)
    for command in (
        given.share(OTHER_CODE, note=NOTE),
        given.reveal(OTHER_CODE),
        given.generate(UUID(int=3), creator_id=OTHER_CREATOR, video_id="video-3", secret=Sealed("#third")),
    ):
        assert (await opened.when(tenant, command)).appended == 1
    assert list((await unsealed(opened.api, tenant)).values())[3:] == [
        *({"secret": OTHER_SECRET}, {"text": REMARK}, {"note": NOTE}, {"secret": "#third"}),
    ]


async def test_the_same_creator_id_in_another_ledger_is_another_creator(opened: Opened) -> None:
    one, other = await two_creators(opened), await opened.begin("other", "admin")
    for command in (given.permission(), given.generate()):
        await opened.when(other, command)
    await opened.erase(one)
    assert await opened.aggregates.secret(other.ledger_id, CODE) == SECRET


async def test_a_guess_at_an_erased_note_cannot_be_tested(opened: Opened) -> None:
    """By its mark in the clear body, with every key that is left."""
    tenant = await two_creators(opened)
    noted = [r.event for r in await events(opened.api, tenant) if r.type in {"Shared", "NoteAdded"}]
    marks = {vars(event)["note_fingerprint"] for event in noted}
    assert (await opened.keyring.creator(tenant.ledger_id, CREATOR)).mark(NOTE) in marks
    await opened.erase(tenant)
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as other:
        present(other.database, tenant.ledger_id, tenant.key.key_id)
        keyring = other.keyring
        ours = await keyring.ledger(tenant.ledger_id)
        left = [await keyring.creator(tenant.ledger_id, OTHER_CREATOR)]
        hashed = {ours.fingerprint(NOTE), ours.claim("note", NOTE).hex(), *(key.mark(NOTE) for key in left)}
    assert marks.isdisjoint(hashed)


async def test_a_key_that_is_lost_and_was_not_erased_is_told_loudly(opened: Opened) -> None:
    tenant = await two_creators(opened)
    opened.sql("DELETE FROM creator_keys")
    with pytest.raises(LookupError, match="is gone, and no erasure of its creator is recorded"):
        await opened.aggregates.secret(tenant.ledger_id, CODE)


# ── API keys of the person ──


async def test_keys_for_the_creator_alone_are_revoked_and_lose_their_names(opened: Opened) -> None:
    tenant = await two_creators(opened)

    async def mint(*creators: str, name: str = "the phone of Ana Lopes", role: Any = "creator") -> UUID:
        subjects = Subjects(frozenset(creators))
        key, _, _ = await opened.key_admin.create(tenant.ledger_id, role=role, name=name, subjects=subjects)
        return key.key_id

    async def stand(*minted: UUID) -> list[tuple[str | None, bool]]:
        keys = {key.key_id: (key.name, key.revoked_at is None) for key in await opened.key_admin.keys(tenant.ledger_id)}
        return [keys[key_id] for key_id in minted]

    minted = (
        await mint(CREATOR),
        await mint(CREATOR),
        await mint(CREATOR, OTHER_CREATOR, name="agency"),
        await mint(OTHER_CREATOR, name="other"),
    )
    await opened.erase(tenant)
    assert await stand(*minted) == [(None, False), (None, False), ("agency", True), ("other", True)]
    # Nobody is left for whom the agency's could act.
    await opened.erase(tenant, OTHER_CREATOR)
    assert await stand(*minted) == [(None, False)] * 4


async def test_no_key_is_made_for_erased_creators_alone(opened: Opened) -> None:
    tenant = await two_creators(opened)

    async def mint(key_admin: KeyAdmin, *creators: str) -> ApiKey:
        subjects = Subjects(frozenset(creators))
        key, _, _ = await key_admin.create(tenant.ledger_id, role="creator", name="Ana Lopes", subjects=subjects)
        return key

    await opened.when(tenant, given.erase())  # the deed is not done yet
    for key_admin in (opened.key_admin,):
        assert await refusal(mint(key_admin, CREATOR)) == "creator_erased"
        assert (await mint(key_admin, CREATOR, OTHER_CREATOR)).subjects.creator_ids == {CREATOR, OTHER_CREATOR}
    await opened.erase(tenant, OTHER_CREATOR)
    assert await refusal(mint(opened.key_admin, CREATOR, OTHER_CREATOR)) == "creator_erased"
    assert (await mint(opened.key_admin, "creator-3")).name == "Ana Lopes"


async def test_a_key_that_is_being_made_while_its_creator_is_erased_loses_its_name(opened: Opened) -> None:
    """It was looked whether the creator is erased, and only then the event came; the deed waits for the key."""
    tenant = await two_creators(opened)
    key_id = uuid7()
    async with opened.worker.connection(tenant.ledger_id) as connection:
        async with connection.transaction():
            keys = await opened.keyring.ledger(tenant.ledger_id)
            assert not await all_erased(connection, tenant.ledger_id, keys, [CREATOR])
            await opened.when(tenant, given.erase())
            carrying_out = asyncio.create_task(opened.erasures.carry_out(tenant.ledger_id, CREATOR, COMMAND_LINE))
            waiting = """
                SELECT count(*)
                FROM pg_locks l
                JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
                WHERE l.locktype = 'advisory' AND NOT l.granted
            """
            await until(lambda: opened.sql(waiting) == [(1,)])
            await connection.execute(
                "SELECT mint_key(NULL, NULL, %s, %s, 'hash', 'key', 'Ana Lopes', 'creator', %s, '{}', '{}', NULL, NULL,"
                " false, NULL, NULL)",
                (tenant.ledger_id, key_id, [CREATOR]),
            )
        assert await carrying_out
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NULL") == [(1,)]
    key = next(key for key in await opened.key_admin.keys(tenant.ledger_id) if key.key_id == key_id)
    assert (key.name, key.revoked_at is None) == (None, False)


async def test_where_refused_attempts_of_the_creators_own_keys_came_from_is_forgotten(opened: Opened) -> None:
    tenant = await two_creators(opened)
    refusals, accesses = opened.api.denied_attempts, opened.api.views.access_log

    async def attempt(key: ApiKey) -> None:
        origin = (("address", "203.0.113.7"), ("user_agent", "Anas-Phone/1.0"))
        attempted = DeniedAttempt(key.key_id, key.role, "not_allowed", "GET /v1/keys", str(uuid7()), origin)
        await refusals.record(tenant.ledger_id, attempted)

    async def origins(*keys: ApiKey) -> list[list[Mapping[str, str]]]:
        page = await accesses.page(tenant.ledger_id, limit=100)
        found = [(row.key_id, await refusals.origin(tenant.ledger_id, row)) for row in page if row.refused is not None]
        return [[origin for key_id, origin in found if key_id == key.key_id] for key in keys]

    keys = [
        (await opened.key_admin.create(tenant.ledger_id, role="creator", subjects=Subjects(frozenset(creators))))[0]
        for creators in ([CREATOR], [CREATOR, OTHER_CREATOR], [OTHER_CREATOR])
    ]
    for key in (*keys, tenant.key):
        await attempt(key)
    from_there = {"address": "203.0.113.7", "user_agent": "Anas-Phone/1.0"}
    assert await origins(*keys, tenant.key) == [[from_there]] * 4
    await opened.erase(tenant)
    # One that the door let in just before, and that is told after the deed.
    await attempt(keys[0])
    assert await origins(*keys, tenant.key) == [[{}, {}], *[[from_there]] * 3]
    # That they were refused, why and when, stays.
    told = [row for row in await accesses.page(tenant.ledger_id, limit=100) if row.key_id == keys[0].key_id]
    assert [(row.refused, row.role, row.route) for row in told] == [("not_allowed", "creator", "GET /v1/keys")] * 2


# ── an event first and a deed second ──


async def test_nothing_is_unsealed_once_the_erasure_is_recorded_though_the_key_is_there(opened: Opened) -> None:
    tenant = await two_creators(opened)
    await unsealed(opened.api, tenant)
    await opened.when(tenant, given.erase())
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NOT NULL") == [(2,)]
    assert [position for position, fields in (await unsealed(opened.api, tenant)).items() if fields is None] == [
        2,
        3,
        5,
    ]
    assert await refusal(opened.aggregates.secret(tenant.ledger_id, CODE)) == "creator_erased"


async def test_a_worker_carries_out_what_was_recorded_and_not_carried_out(opened: Opened) -> None:
    tenant = await two_creators(opened)
    for creator in (CREATOR, OTHER_CREATOR):
        await opened.when(tenant, given.erase(creator_id=creator))
    async with runtime(opened.database.dsn(WORKER), WORKER, MASTER_KEY) as worker:
        erasures = Erasures(worker.database, worker.aggregates, worker.key_admin)
        assert [await erasures.carry_out_pending() for _ in range(2)] == [2, 0]
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NOT NULL") == [(0,)]


async def test_an_erasure_whose_event_has_a_malformed_body_is_carried_out_and_holds_up_no_other(opened: Opened) -> None:
    tenant = await two_creators(opened)
    for creator in (CREATOR, OTHER_CREATOR):
        await opened.when(tenant, given.erase(creator_id=creator))
    opened.sql("ALTER TABLE events DISABLE TRIGGER USER")
    opened.sql("UPDATE events SET body = 'no JSON' WHERE position = 10 AND type = 'CreatorErased'")
    async with runtime(opened.database.dsn(WORKER), WORKER, MASTER_KEY) as worker:
        erasures = Erasures(worker.database, worker.aggregates, worker.key_admin)
        assert [await erasures.carry_out_pending() for _ in range(2)] == [2, 0]
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NOT NULL") == [(0,)]


KILLED = """
import asyncio, os, signal, sys
from infra.jobs import erasure
from infra.postgres.roles import WORKER
from tests.infra.opened import MASTER_KEY

async def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

erasure.Erasures.carry_out = die
asyncio.run(erasure.erase(sys.argv[1], MASTER_KEY, "main", "creator-1", "asked for"))
"""


async def test_an_erasure_whose_process_was_killed_in_between_is_carried_out_by_a_worker(opened: Opened) -> None:
    tenant = await two_creators(opened)
    with running(KILLED, opened.database.dsn()) as program:
        assert await asyncio.to_thread(program.process.wait, 30) == -9, program.rest()
    assert opened.sql("SELECT count(*) FROM events WHERE type = 'CreatorErased'") == [(1,)]
    assert opened.sql("SELECT count(*) FROM erasures") == [(0,)]
    assert await refusal(opened.aggregates.secret(tenant.ledger_id, CODE)) == "creator_erased"
    async with runtime(opened.database.dsn(WORKER), WORKER, MASTER_KEY) as worker:
        carrying_out = asyncio.create_task(Erasures(worker.database, worker.aggregates, worker.key_admin).run())
        await until(lambda: opened.sql("SELECT count(*) FROM erasures") == [(1,)])
        carrying_out.cancel()
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NOT NULL") == [(1,)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_the_command_line_erases_and_leaves_no_key_behind(opened: Opened) -> None:
    tenant = await two_creators(opened)
    found = await erase(opened.database.dsn(), MASTER_KEY, "main", CREATOR, "asked for")
    assert (found.recorded.type, found.reason, found.recorded.actor.role) == ("CreatorErased", "asked for", "admin")
    assert found.carried_out_at is not None
    assert await unsealed(opened.api, tenant) == {
        2: None,
        3: None,
        5: None,
        8: {"secret": OTHER_SECRET},
        9: {"text": REMARK},
    }
    keys = await opened.key_admin.keys(tenant.ledger_id)
    assert [key.name for key in keys if key.revoked_at is not None] == ["command line"]
    with pytest.raises(LookupError, match="Ledger main has no events of this creator"):
        await erase(opened.database.dsn(), MASTER_KEY, "main", "nobody", "asked for")


async def test_no_role_of_the_program_destroys_a_key_that_the_log_does_not_give_up(opened: Opened) -> None:
    one, two = await two_creators(opened), await opened.begin("other", "admin")
    await opened.when(one, given.erase())
    claim = (await opened.keyring.ledger(one.ledger_id)).claim
    ours, theirs = claim("creator", CREATOR), claim("creator", OTHER_CREATOR)
    for role in (WORKER,):
        with psycopg.connect(opened.database.dsn(role), autocommit=True) as session:

            def carried_out(bound: Tenant, named: Tenant, creator: bytes) -> Any:
                session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (str(bound.ledger_id),))
                return session.execute("SELECT carry_out_erasure(%s, %s)", (named.ledger_id, creator)).fetchall()

            assert carried_out(one, one, theirs) == [(None,)]  # not erased
            assert carried_out(two, one, ours) == [(None,)]  # of another ledger
            assert carried_out(two, two, ours) == [(None,)]
            for statement in (
                "UPDATE creator_keys SET wrapped = NULL, erased_at = now()",
                "DELETE FROM creator_keys",
                "INSERT INTO erasures (ledger_id, position, creator_stream) VALUES (1, 1, gen_random_uuid())",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)
    assert opened.sql("SELECT count(*) FROM creator_keys WHERE wrapped IS NULL") == [(0,)]


# ── every process ──


READER = """
import asyncio, sys, time
from uuid import UUID
from domain.errors import Refused
from infra.postgres.roles import API
from infra.runtime import runtime
from tests.given import CODE
from tests.infra.opened import MASTER_KEY
from tests.infra.session_tokens import present

async def read():
    async with runtime(sys.argv[1], API, MASTER_KEY) as opened:
        present(opened.database, int(sys.argv[2]))
        while True:
            begun = time.monotonic()
            try:
                told = str(await opened.aggregates.secret(int(sys.argv[2]), CODE))
            except Refused as refused:
                told = refused.code
            print(begun, told, flush=True)
            await asyncio.sleep(0.001)

asyncio.run(read())
"""


@pytest.mark.long("a server starts")
async def test_a_process_that_has_the_key_in_memory_does_not_use_it_after_an_erasure(opened: Opened) -> None:
    """Two processes unseal without a pause, and no read succeeds that begins after the erasure was recorded."""
    tenant = await two_creators(opened)
    arguments = (opened.database.dsn(API), str(tenant.ledger_id))
    with running(READER, *arguments) as one, running(READER, *arguments) as other:
        for program in (one, other):
            for _ in range(20):
                await asyncio.to_thread(program.line, str(SECRET))
        await opened.when(tenant, given.erase())  # the key is still there: the deed is not done yet
        recorded = time.monotonic()
        lines = []
        for program in (one, other):
            await asyncio.to_thread(program.line, "creator_erased")
            for _ in range(20):
                await asyncio.to_thread(program.line, "")
            lines.append([line.split(" ", 1) for line in program.printed])
    for told in lines:
        after = [answer for begun, answer in told if float(begun) > recorded]
        assert set(after) == {"creator_erased"}
        assert [answer for begun, answer in told if float(begun) < recorded].count(str(SECRET)) >= 20


async def test_another_process_lets_go_of_the_key_once_it_is_destroyed(opened: Opened) -> None:
    tenant = await two_creators(opened)
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as other:
        present(other.database, tenant.ledger_id, tenant.key.key_id)
        assert await other.aggregates.secret(tenant.ledger_id, CODE) == SECRET
        kept = other.keyring._by_id
        assert len(kept._young) == 1
        await opened.erase(tenant)
        await until(lambda: not kept._young and not kept._old)


@pytest.mark.parametrize("command", [given.note(text="late"), given.share(brand_id="brand-2", note="late")])
async def test_what_was_sealed_just_before_an_erasure_is_not_appended_after_it(
    opened: Opened, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has the key and the creator in memory, and has sealed already: the append notices."""
    tenant = await two_creators(opened)
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as other:
        present(other.database, tenant.ledger_id, tenant.key.key_id)
        decide: Any = command
        remembered: Any = given.note(text="now it remembers")
        await other.handler.handle(tenant.request(), remembered)
        sealed = asyncio.Event()
        append = other.writer.append

        async def then_erased(*arguments: Any) -> Any:
            if not sealed.is_set():
                sealed.set()
                await opened.erase(tenant)
            return await append(*arguments)

        monkeypatch.setattr(other.writer, "append", then_erased)
        assert await refusal(other.handler.handle(tenant.request(), decide)) == "creator_erased"
    assert sealed.is_set()
    assert opened.sql("SELECT type FROM events ORDER BY position DESC LIMIT 1") == [("CreatorErased",)]


async def test_an_erasure_waits_for_a_database_that_is_away(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.postgres.pool, "POOL_WAIT_S", 0.1)
    async with runtime("host=127.0.0.1 port=1 dbname=away", WORKER, MASTER_KEY) as worker:
        with pytest.raises(Unavailable):
            await Erasures(worker.database, worker.aggregates, worker.key_admin).carry_out_pending()
