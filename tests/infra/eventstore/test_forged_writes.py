"""What a stolen login of the API can forge: nothing that the database itself can know to be false."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from infra.auth.api_keys import Subjects
from infra.eventstore.append import Append, Appended, KeyRefused, Outcome
from infra.eventstore.group_commit import GroupCommitWriter
from infra.postgres.migrate import migrate
from infra.postgres.roles import API, WORKER
from tests import given
from tests.infra.eventstore.appends import appending, row, together
from tests.infra.opened import Opened, Tenant
from tests.infra.session_tokens import bound_to, present

NOW = datetime.now(UTC)


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    return tenant


@pytest.fixture
async def thief(opened: Opened) -> AsyncIterator[GroupCommitWriter]:
    """A writer with the API's login, to which no key was ever presented."""
    writer = GroupCommitWriter(opened.database.dsn(API), API)
    writer.start()
    yield writer
    await writer.stop()


def forged(tenant: Tenant, key_id: UUID | None, **fields: Any) -> Append:
    facts: dict[str, Any] = {"role": "operator", "source": "operator", "api_key": key_id}
    return appending(tenant.ledger_id, row(uuid4(), **fields.pop("event", {})), **(facts | fields))


async def test_a_key_that_was_presented_writes_in_its_ledger(opened: Opened, tenant: Tenant) -> None:
    outcome: Outcome = await opened.api.writer.append(forged(tenant, tenant.key.key_id))
    assert isinstance(outcome, Appended)


async def test_a_login_without_a_key_writes_nothing(opened: Opened, tenant: Tenant, thief: GroupCommitWriter) -> None:
    for request in (
        forged(tenant, None),  # no key at all
        forged(tenant, tenant.key.key_id),  # a key that was never presented to it
        forged(tenant, uuid4()),  # nobody's key
        forged(tenant, None, role="clock", source="clock"),  # the clock's login is another
    ):
        assert await thief.append(request) == KeyRefused()
    assert opened.sql("SELECT count(*) FROM events") == [(1,)]


async def test_a_key_writes_in_no_other_ledger(opened: Opened, tenant: Tenant) -> None:
    other = await opened.begin("other")
    request = forged(other, tenant.key.key_id)
    assert await opened.api.writer.append(request) == KeyRefused()


async def test_a_key_writes_in_no_other_role(opened: Opened, tenant: Tenant) -> None:
    opened.sql("UPDATE event_types SET roles = '{operator,admin}' WHERE type = 'Tested'")
    request = forged(tenant, tenant.key.key_id, role="admin", source="operator")
    assert await opened.api.writer.append(request) == KeyRefused()


async def test_a_revoked_key_writes_no_more_and_not_by_any_means(opened: Opened, tenant: Tenant) -> None:
    await opened.key_admin.revoke(tenant.ledger_id, tenant.key.key_id)
    assert await opened.api.writer.append(forged(tenant, tenant.key.key_id)) == KeyRefused()


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param({"source": "creator"}, id="a source that does not follow from the role"),
        pytest.param({"event": {"type": "Invented"}}, id="a type of event that there is not"),
        pytest.param({"event": {"type_version": 99}}, id="a version that nobody can read"),
        pytest.param({"event": {"type": "CreatorErased"}}, id="an event that another role records"),
        pytest.param({"event": {"sealed": b"s", "commitment": b"c"}}, id="a sealed part without its key"),
        pytest.param({"event": {"sealed": b"s", "key_id": UUID(int=9)}}, id="a sealed part without its commitment"),
        pytest.param({"event": {"key_id": UUID(int=9)}}, id="a key for no sealed part"),
    ],
)
async def test_no_caller_records_what_the_program_never_would(
    opened: Opened, tenant: Tenant, lie: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await opened.api.writer.append(forged(tenant, tenant.key.key_id, **lie))
    assert opened.sql("SELECT count(*) FROM events") == [(1,)]


@pytest.mark.parametrize(("role", "late"), [("creator", False), ("operator", True), ("admin", True)])
async def test_only_an_operator_and_an_administrator_say_that_something_happened_earlier(
    opened: Opened, tenant: Tenant, role: Any, late: bool
) -> None:
    opened.sql("UPDATE event_types SET roles = '{creator,operator,admin}' WHERE type = 'Tested'")
    subjects = Subjects(creator_ids=frozenset({"ana"})) if role == "creator" else Subjects()
    key, _, _ = await opened.key_admin.create(tenant.ledger_id, role=role, subjects=subjects)
    opened.present(tenant.ledger_id, key.key_id)
    source = "creator" if role == "creator" else "operator"
    event = {"effective_at": NOW - timedelta(days=40)}
    request = forged(tenant, key.key_id, role=role, source=source, event=event)
    if late:
        assert isinstance(await opened.api.writer.append(request), Appended)
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await opened.api.writer.append(request)


async def test_one_callers_lie_costs_nobody_else_in_its_batch_an_event(opened: Opened, tenant: Tenant) -> None:
    honest = [forged(tenant, tenant.key.key_id) for _ in range(2)]
    lie = forged(tenant, tenant.key.key_id, source="creator")
    outcomes = await together(opened.api.writer, [honest[0], lie, honest[1]])
    assert [type(outcome) for outcome in outcomes] == [Appended, psycopg.errors.InsufficientPrivilege, Appended]


# ── reading ──


async def test_a_session_sees_no_ledger_that_it_cannot_prove(opened: Opened, tenant: Tenant) -> None:
    other = await opened.begin("other")
    proven = bound_to(opened.database, tenant.ledger_id)
    token = proven.partition(":")[2]
    with psycopg.connect(opened.database.dsn(API), autocommit=True) as session:

        def seen(setting: str) -> list[Any]:
            session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (setting,))
            return session.execute("SELECT ledger_id FROM ledgers").fetchall()

        assert seen(proven) == [(tenant.ledger_id,)]
        for lie in (str(tenant.ledger_id), f"{tenant.ledger_id}:", f"{other.ledger_id}:{token}", f":{token}", ""):
            assert seen(lie) == []


async def test_a_token_cannot_be_made_by_a_login_of_the_program(opened: Opened, tenant: Tenant) -> None:
    for role in (API, WORKER):
        with psycopg.connect(opened.database.dsn(role), autocommit=True) as session:
            for query in ("SELECT * FROM token_secret", "SELECT ledger_token(1)", f"SELECT key_token(1, '{uuid4()}')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(query)


# ── keys and erasure ──


@pytest.mark.parametrize("role", [API, WORKER])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE api_key_hashes SET ends_at = NULL",
        "INSERT INTO api_keys (key_id, ledger_id, role) VALUES (gen_random_uuid(), 1, 'admin')",
        "INSERT INTO api_key_hashes (hash, ledger_id, key_id) SELECT 'x', ledger_id, key_id FROM api_keys",
        "DELETE FROM accesses",
        "UPDATE creator_keys SET wrapped = decode(repeat('00', 104), 'hex')",
        "INSERT INTO creator_keys (ledger_id, key_id, creator, erased_at) VALUES (1, gen_random_uuid(), 'x', now())",
        "UPDATE ledgers SET fingerprint_key = 'x'",
        "UPDATE shared_keys SET wrapped = 'x'",
        "UPDATE master_keys SET present = false",
        "INSERT INTO key_epochs (epoch_id, present) VALUES ('0123456789abcdef', false)",
        "UPDATE erasures SET carried_out_at = now()",
    ],
)
async def test_no_login_writes_what_keys_and_accesses_are(
    opened: Opened, tenant: Tenant, role: str, statement: str
) -> None:
    with psycopg.connect(opened.database.dsn(role), autocommit=True) as session:
        session.execute(
            "SELECT set_config('sparkledger.ledger', %s, false)", (bound_to(opened.database, tenant.ledger_id),)
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(statement)


async def test_a_login_makes_and_revokes_keys_only_for_an_administrator_that_came(
    opened: Opened, tenant: Tenant
) -> None:
    admin = await opened.another_key(tenant.ledger_id, "admin")
    present(opened.api.database, tenant.ledger_id)
    mint = (
        "SELECT mint_key(%s, %s, %s, gen_random_uuid(), 'x', 'key', NULL, 'admin', '{}', '{}', '{}', NULL, NULL, true,"
        " NULL, NULL)"
    )
    token = opened.api.database.tokens.key
    with psycopg.connect(opened.database.dsn(API), autocommit=True) as session:
        session.execute(
            "SELECT set_config('sparkledger.ledger', %s, false)", (bound_to(opened.database, tenant.ledger_id),)
        )
        for by, proof in (
            (None, None),
            (admin.key.key_id, None),
            (admin.key.key_id, token(tenant.key.key_id)),
            (tenant.key.key_id, token(tenant.key.key_id)),  # an operator's
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(mint, (by, proof, tenant.ledger_id))
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT revoke_key(%s, %s, %s, %s)", (by, proof, tenant.ledger_id, tenant.key.key_id))
        assert session.execute(mint, (admin.key.key_id, token(admin.key.key_id), tenant.ledger_id)).fetchone() == (
            True,
        )


async def test_a_login_makes_identities_of_tokens_only_where_an_issuer_is_trusted_and_in_its_roles(
    opened: Opened, tenant: Tenant
) -> None:
    await opened.begin("other")
    migrate(opened.database.dsn(), issuers=[("https://id.example", "main", ["auditor"])])
    identity = uuid4()
    mint = (
        "SELECT mint_key(NULL, NULL, %s, %s, %s, 'token', 'https://id.example', %s, '{}', '{}', '{}', NULL, NULL, true,"
        " NULL, NULL)"
    )
    with psycopg.connect(opened.database.dsn(API), autocommit=True) as session:
        named = "SELECT ledger_id, ledger_token FROM ledger_named(%s)"
        assert session.execute(named, ("other",)).fetchone() == (tenant.ledger_id + 1, None)
        row = session.execute(named, ("main",)).fetchone()
        assert row is not None
        session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (f"{row[0]}:{row[1].hex()}",))
        assert session.execute(mint, (tenant.ledger_id, identity, b"x", "auditor")).fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(mint, (tenant.ledger_id, uuid4(), b"y", "admin"))
        session.execute(
            "SELECT bearer_acts_as(%s, %s, 'operator', '{}', '{}', '{}')", (tenant.ledger_id, identity)
        ).fetchall()
    assert opened.sql("SELECT role FROM api_keys WHERE key_id = %s", identity) == [("auditor",)]
    opened.present(tenant.ledger_id, identity)
    assert await opened.api.writer.append(forged(tenant, identity)) == KeyRefused()


async def test_a_workers_login_writes_as_the_clock_alone_and_makes_no_key(opened: Opened, tenant: Tenant) -> None:
    writer = GroupCommitWriter(opened.database.dsn(WORKER), WORKER)
    writer.start()
    try:
        assert await writer.append(forged(tenant, tenant.key.key_id)) == KeyRefused()
        assert isinstance(await writer.append(appending(tenant.ledger_id, row(uuid4()))), Appended)
    finally:
        await writer.stop()
    with psycopg.connect(opened.database.dsn(WORKER), autocommit=True) as session:
        session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (str(tenant.ledger_id),))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(
                "SELECT mint_key(NULL, NULL, %s, gen_random_uuid(), 'x', 'key', NULL, 'admin', '{}', '{}', '{}', NULL,"
                " NULL, true, NULL, NULL)",
                (tenant.ledger_id,),
            )


async def test_a_workers_login_writes_over_no_key_that_creators_ledgers_and_hashes_depend_on(
    opened: Opened, tenant: Tenant
) -> None:
    """Not even in the form of a key that is wrapped again: that is the owner's, or needs an erasure."""
    await opened.keyring.creator(tenant.ledger_id, "creator-1")
    every = "SELECT fingerprint_key, wrapped FROM ledgers, creator_keys UNION ALL SELECT wrapped, NULL FROM shared_keys"
    before = opened.sql(every)
    ((ledger_id, key_id, wrapped),) = opened.sql("SELECT ledger_id, key_id::text, wrapped FROM creator_keys")
    garbage = wrapped[:16] + bytes(len(wrapped) - 16)
    with psycopg.connect(opened.database.dsn(WORKER), autocommit=True) as session:
        rewrap = "SELECT rewrap_keys(%s, %s, %s, %s, %s)"
        given = ([ledger_id], [key_id], [wrapped], [garbage])
        assert session.execute(rewrap, ("creator_keys", *given)).fetchone() == (0,)
        for table in ("ledgers", "shared_keys"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(rewrap, (table, *given))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT name_master_key('0123456789abcdef')")
        present = session.execute("SELECT epoch_id FROM key_epochs").fetchall()
        assert session.execute("SELECT begin_key_epoch('0123456789abcdef')").fetchall() == present
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            session.execute("SELECT end_key_epochs(%s)", ([present[0][0]],))
    assert opened.sql(every) == before


async def test_only_a_worker_carries_an_erasure_out(opened: Opened, tenant: Tenant) -> None:
    with (
        psycopg.connect(opened.database.dsn(API), autocommit=True) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        session.execute("SELECT carry_out_erasure(%s, %s)", (tenant.ledger_id, b"x"))


async def test_nothing_by_a_key_is_recorded_later_than_its_revocation(opened: Opened, tenant: Tenant) -> None:
    await opened.api.writer.append(forged(tenant, tenant.key.key_id))
    await opened.key_admin.revoke(tenant.ledger_id, tenant.key.key_id)
    ((after,),) = opened.sql(
        "SELECT count(*) FROM events e JOIN api_keys k ON k.key_id = e.actor_key WHERE e.recorded_at > k.revoked_at"
    )
    assert after == 0
