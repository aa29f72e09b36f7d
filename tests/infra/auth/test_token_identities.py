"""The bearers of tokens: known by a key of their own, shut out as a key is, named by nobody's name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from domain.errors import NotAllowed
from domain.values import Role
from infra.auth.authenticator import Authenticator
from infra.auth.key_admin import KeyAdmin
from infra.errors import KeyNoLongerValid, TokenRefused, Unavailable
from infra.postgres.migrate import migrate
from tests import given
from tests.conftest import TestDatabase
from tests.infra.auth.issuing import DISCOVERY, KEYS, TestIssuer, issuing, signer
from tests.infra.opened import Opened, Tenant

MAKERS: dict[str, Any] = {
    "role_claim": "role",
    "roles": {"c": "creator", "a": "auditor"},
    "creator_ids_claim": "creators",
}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def issuer(database: TestDatabase) -> Iterator[TestIssuer]:
    with issuing() as running:
        migrate(database.dsn(), issuers=[(running.url, ledger, list(get_args(Role))) for ledger in ("main", "other")])
        yield running


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


@pytest.fixture
def authenticator(opened: Opened, issuer: TestIssuer) -> Authenticator:
    return Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(role="operator")])


async def test_a_bearer_is_one_key_whatever_token_they_come_with(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    first, second, other = [
        await authenticator.authenticate(issuer.token(sub=sub, jti=jti), now())
        for sub, jti in (("ana", "1"), ("ana", "2"), ("ben", "3"))
    ]
    assert first is not None and second is not None and other is not None  # noqa: PT018 - for the type checker
    assert first.key_id == second.key_id != other.key_id
    assert (first.kind, first.ledger_id, first.role) == ("token", tenant.ledger_id, "operator")
    keys = {key.key_id: key for key in await opened.key_admin.keys(tenant.ledger_id)}
    assert (keys[first.key_id].name, keys[first.key_id].subject) == (issuer.url, "ana")
    await authenticator.stop()


async def test_what_the_issuer_calls_a_bearer_is_stored_encrypted(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    await authenticator.authenticate(issuer.token(sub="ana.real.name"), now())
    for table in ("api_keys", "api_key_hashes", "api_key_uses", "accesses"):
        rows = opened.sql(f"SELECT t::text FROM {table} t")
        assert rows
        assert not any("ana.real.name" in row[0] or b"ana.real.name".hex() in row[0] for row in rows)
    await authenticator.stop()


async def test_bearers_of_two_issuers_are_two_though_they_are_called_the_same(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    with issuing() as second:
        authenticator = Authenticator(
            opened.api.database, opened.api.keyring, [issuer.configured(), second.configured()]
        )
        keys = [await authenticator.authenticate(one.token(sub="ana"), now()) for one in (issuer, second)]
        assert len({key.key_id for key in keys if key is not None}) == 2
        await authenticator.stop()


async def test_a_bearer_who_comes_for_the_first_time_many_times_at_once_is_one(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    """As in several processes that have not heard of each other."""
    authenticators = [Authenticator(opened.api.database, opened.api.keyring, [issuer.configured()]) for _ in range(4)]
    keys = await asyncio.gather(
        *(one.authenticate(issuer.token(sub="ana", jti=str(n)), now()) for n in range(4) for one in authenticators)
    )
    assert len({key.key_id for key in keys if key is not None}) == 1
    assert len(await opened.key_admin.keys(tenant.ledger_id)) == 2
    first_uses = [
        row for row in await opened.api.views.access_log.page(tenant.ledger_id, limit=9) if row.route == "first use"
    ]
    assert [row.query for row in first_uses] == [{"kind": "token"}]
    for one in authenticators:
        await one.stop()


async def test_role_and_subjects_are_those_of_the_token_that_is_presented(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(**MAKERS)])
    known = [
        await authenticator.authenticate(issuer.token(**claims), now())
        for claims in ({"role": "c", "creators": ["ana"]}, {"role": "a"}, {"role": "c", "creators": "ben"})
    ]
    assert [(key.role, key.subjects.creator_ids) for key in known if key is not None] == [
        ("creator", frozenset({"ana"})),
        ("auditor", frozenset()),
        ("creator", frozenset({"ben"})),
    ]
    await authenticator.stop()


async def written_down(opened: Opened, tenant: Tenant) -> list[tuple[str, list[str], str | None, bool]]:
    """Return role, creators and name of each bearer as they stand in the list, and whether they are let in."""
    return [
        (key.role, sorted(key.subjects.creator_ids), key.subject, key.revoked_at is None)
        for key in await opened.key_admin.keys(tenant.ledger_id)
        if key.kind == "token"
    ]


async def test_what_is_written_down_of_a_bearer_is_what_their_newest_token_says(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(**MAKERS)])
    both = issuer.token(role="c", creators=["ana", "second-account"])
    alone = issuer.token(role="c", creators=["ana"])
    for token, told in (
        (both, ("creator", ["ana", "second-account"])),
        (alone, ("creator", ["ana"])),
        # The one before is still good, and is not the newest for that.
        (both, ("creator", ["ana"])),
        (issuer.token(role="a"), ("auditor", [])),
    ):
        assert await authenticator.authenticate(token, now()) is not None
        assert await written_down(opened, tenant) == [(*told, "somebody", True)]
    await authenticator.stop()


async def test_no_key_is_given_another_role_as_if_it_were_a_bearer(opened: Opened, tenant: Tenant) -> None:
    (whole,) = opened.sql("SELECT k::text FROM api_keys k")
    asked: tuple[Any, ...] = (tenant.ledger_id, tenant.key.key_id, "admin", [], [], [])
    for ledger_id in (tenant.ledger_id, tenant.ledger_id + 1):
        async with opened.api.database.connection(ledger_id) as connection:
            await connection.execute("SELECT bearer_acts_as(%s, %s, %s, %s, %s, %s)", asked)
    assert opened.sql("SELECT k::text FROM api_keys k") == [whole]


async def test_an_erasure_shuts_out_and_forgets_whoever_acts_for_the_creator_alone_by_now(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    await opened.when(tenant, given.permission())
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(**MAKERS)])
    first: dict[str, Any] = {"role": "c", "creators": [given.CREATOR, "second-account"]}
    now_alone: dict[str, Any] = {"role": "c", "creators": [given.CREATOR]}
    ana, left = issuer.token(sub="ana", **now_alone), issuer.token(sub="left", role="a")
    for token in (issuer.token(sub="ana", **first), ana, issuer.token(sub="left", **now_alone), left):
        assert await authenticator.authenticate(token, now()) is not None
    await opened.erase(tenant)
    authenticator.forget()
    with pytest.raises(TokenRefused, match="was revoked"):
        await authenticator.authenticate(ana, now())
    assert await authenticator.still_opens(left, now())
    assert await written_down(opened, tenant) == [
        ("auditor", [], "left", True),
        ("creator", [given.CREATOR], None, False),
    ]
    await authenticator.stop()


async def test_a_bearer_who_acts_for_erased_creators_alone_is_not_let_in_and_not_written_down(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    for creator_id in (given.CREATOR, "second-account"):
        await opened.when(tenant, given.permission(creator_id=creator_id))
        await opened.erase(tenant, creator_id)
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(**MAKERS)])
    for creators in ([given.CREATOR], [given.CREATOR, "second-account"]):
        with pytest.raises(TokenRefused, match="was erased"):
            await authenticator.authenticate(issuer.token(role="c", creators=creators), now())
    assert await written_down(opened, tenant) == []
    assert await authenticator.still_opens(issuer.token(role="c", creators=[given.CREATOR, "somebody-else"]), now())
    await authenticator.stop()


async def test_a_token_that_was_let_in_ends_with_the_erasure_of_whom_it_acts_for(
    opened: Opened, tenant: Tenant, issuer: TestIssuer
) -> None:
    """Also where the bearer's newest token is another one, so that the bearer goes on."""
    await opened.when(tenant, given.permission())
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured(**MAKERS)])
    alone, newest = (issuer.token(role="c", creators=ids) for ids in ([given.CREATOR], [given.CREATOR, "another"]))
    assert [await authenticator.still_opens(token, now()) for token in (alone, newest)] == [True, True]
    admin = await opened.another_key(tenant.ledger_id, "admin")
    await opened.when(admin, given.erase())
    authenticator.forget()
    assert [await authenticator.still_opens(token, now()) for token in (alone, newest)] == [False, True]
    await authenticator.stop()


async def test_a_bearer_who_was_shut_out_stays_out_with_any_token(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    token = issuer.token(sub="ana")
    key = await authenticator.authenticate(token, now())
    assert key is not None
    await KeyAdmin(opened.worker, opened.api.keyring, authenticator.forget).revoke(tenant.ledger_id, key.key_id)
    for presented in (token, issuer.token(sub="ana", jti="another")):
        with pytest.raises(TokenRefused, match="was revoked"):
            await authenticator.authenticate(presented, now())
        assert await authenticator.still_opens(presented, now()) is False
    with pytest.raises(KeyNoLongerValid):
        await opened.when(Tenant(tenant.ledger_id, key), given.permission())
    await authenticator.stop()


async def test_a_token_that_is_remembered_expires_all_the_same(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    token, moment = issuer.token(), now()
    assert await authenticator.still_opens(token, moment)
    assert await authenticator.still_opens(token, moment + timedelta(seconds=3600 + 50))
    assert not await authenticator.still_opens(token, moment + timedelta(seconds=3600 + 61))
    assert issuer.asked == [DISCOVERY, KEYS]
    await authenticator.stop()


async def test_a_token_that_is_remembered_is_verified_again_when_the_issuers_keys_change(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    token = issuer.token()
    assert await authenticator.still_opens(token, now())
    issuer.signers = [signer("ES256", "another")]
    assert authenticator._token_identities is not None
    keys = authenticator._token_identities._tokens._issuers[issuer.url][1]
    keys._next_fetch_at = float("-inf")
    with pytest.raises(TokenRefused):
        await authenticator.authenticate(issuer.token(headers={"kid": "unknown"}), now())
    assert not await authenticator.still_opens(token, now())
    await authenticator.stop()


async def test_a_token_that_leads_to_no_ledger_is_turned_away(opened: Opened, issuer: TestIssuer) -> None:
    await opened.begin("another")
    authenticator = Authenticator(opened.api.database, opened.api.keyring, [issuer.configured()])
    with pytest.raises(NotAllowed, match="a ledger that does not exist"):
        await authenticator.authenticate(issuer.token(), now())
    await authenticator.stop()


async def test_a_token_makes_no_key_on_a_server_that_its_ledger_has_left(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    await authenticator.authenticate(issuer.token(sub="ana"), now())
    opened.sql("UPDATE ledgers SET served_by = 'other' WHERE ledger_id = %s RETURNING 1", tenant.ledger_id)
    with pytest.raises(NotAllowed):
        await authenticator.authenticate(issuer.token(sub="ben"), now())
    await authenticator.stop()


async def test_a_role_that_the_database_was_not_told_of_is_turned_away_until_migrate_tells_it(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    migrate(opened.database.dsn(), issuers=[(issuer.url, "main", ["auditor"])])
    with pytest.raises(Unavailable, match="Run `sparkledger migrate`"):
        await authenticator.authenticate(issuer.token(), now())
    migrate(opened.database.dsn(), issuers=[(issuer.url, "main", ["operator"])])
    key = await authenticator.authenticate(issuer.token(), now())
    assert key is not None
    assert (key.ledger_id, key.role) == (tenant.ledger_id, "operator")
    await authenticator.stop()


async def test_a_bearer_has_no_key_that_could_be_presented(
    opened: Opened, tenant: Tenant, issuer: TestIssuer, authenticator: Authenticator
) -> None:
    key = await authenticator.authenticate(issuer.token(), now())
    assert key is not None
    (row,) = opened.sql("SELECT hash FROM api_key_hashes WHERE key_id = %s", key.key_id)
    # A key's hash is longer, so that none can ever be that of a bearer.
    assert len(row[0]) == 16
    assert {
        len(other[0]) for other in opened.sql("SELECT hash FROM api_key_hashes WHERE key_id <> %s", key.key_id)
    } == {32}
    await authenticator.stop()
