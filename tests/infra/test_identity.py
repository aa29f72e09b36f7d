"""API keys and ledgers: minted, presented, told again, revoked."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain.values import Role
from infra.errors import IdempotencyMismatch, KeyNoLongerValid
from infra.identity import ApiKey, Identity, LedgerExists, Subjects, subjects_problem
from infra.vault import MasterKey
from tests.infra.opened import Opened

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


async def test_a_presented_key_is_found_with_all_that_is_known_of_it(opened: Opened) -> None:
    ledger_id = await opened.identity.create_ledger("main")
    subjects = Subjects(frozenset({"creator-1", "creator-2"}))
    key, text, again = await opened.identity.create(
        ledger_id, role="creator", name="for the app", subjects=subjects, expires_at=LATER
    )
    found = await opened.api.identity.authenticate(text, now())
    assert found == key
    assert (key.ledger_name, key.role, key.name, key.subjects) == ("main", "creator", "for the app", subjects)
    assert (key.expires_at, key.revoked_at, again) == (LATER, None, False)


async def test_the_text_of_a_key_is_stored_nowhere(opened: Opened) -> None:
    ledger_id = await opened.identity.create_ledger("main")
    _, text, _ = await opened.identity.create(ledger_id, role="admin")
    (row,) = opened.sql("SELECT k::text FROM api_keys k")
    assert text.removeprefix("slk_") not in row[0]


@pytest.mark.parametrize("presented", ["", "slk_unknown", "x" * 513, "\udcff", "slk_" + "é" * 10, "a\0b"])
async def test_what_was_never_minted_is_nobodys(opened: Opened, presented: str) -> None:
    assert await opened.api.identity.authenticate(presented, now()) is None


async def test_a_key_is_no_longer_valid_at_the_moment_it_expires(opened: Opened) -> None:
    ledger_id = await opened.identity.create_ledger("main")
    _, text, _ = await opened.identity.create(ledger_id, role="admin", expires_at=LATER)
    valid = [
        await opened.api.identity.authenticate(text, moment) is not None
        for moment in (LATER - timedelta(microseconds=1), LATER)
    ]
    assert valid == [True, False]


async def test_a_revoked_key_is_refused_within_a_second(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await opened.begin()
    _, text, _ = await opened.identity.create(tenant.ledger_id, role="admin")
    known = await opened.api.identity.authenticate(text, now())
    assert known is not None
    assert await opened.identity.revoke(tenant.ledger_id, known.key_id)
    started = time.monotonic()
    monkeypatch.setattr("infra.identity.time.monotonic", lambda: started + 1.5)
    assert await opened.api.identity.authenticate(text, now()) is None


async def test_revoking_again_keeps_the_first_moment(opened: Opened) -> None:
    tenant = await opened.begin()
    moments = set()
    for _ in range(2):
        assert await opened.identity.revoke(tenant.ledger_id, tenant.key.key_id)
        moments |= {key.revoked_at for key in await opened.identity.keys(tenant.ledger_id)}
    assert len(moments) == 1
    assert None not in moments


async def test_a_key_of_another_ledger_cannot_be_revoked(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    assert await opened.identity.revoke(one.ledger_id, two.key.key_id) is False


async def test_a_key_that_was_revoked_meanwhile_mints_and_revokes_no_other(opened: Opened) -> None:
    admin = await opened.begin(role="admin")
    other = await opened.another_key(admin.ledger_id)
    await opened.identity.revoke(admin.ledger_id, admin.key.key_id)
    with pytest.raises(KeyNoLongerValid):
        await minted(opened.identity, admin.ledger_id, created_by=admin.key.key_id)
    with pytest.raises(KeyNoLongerValid):
        await opened.identity.revoke(admin.ledger_id, other.key.key_id, by=admin.key.key_id)
    revoked = [key.revoked_at is not None for key in await opened.identity.keys(admin.ledger_id)]
    assert revoked == [False, True]


async def test_keys_are_listed_newest_first_and_only_the_ledgers_own(opened: Opened) -> None:
    one, _ = await opened.begin("one"), await opened.begin("two")
    second = await opened.another_key(one.ledger_id, "auditor")
    keys = await opened.api.identity.keys(one.ledger_id)
    assert [key.key_id for key in keys] == [second.key.key_id, one.key.key_id]


async def test_the_same_minting_again_is_told_the_same_key(opened: Opened) -> None:
    tenant = await opened.begin()
    first, second = [await minted(opened.api.identity, tenant.ledger_id) for _ in range(2)]
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (False, True)
    assert len(await opened.identity.keys(tenant.ledger_id)) == 2


async def test_another_minting_with_the_same_idempotency_key_is_a_mismatch(opened: Opened) -> None:
    tenant = await opened.begin()
    await minted(opened.api.identity, tenant.ledger_id)
    with pytest.raises(IdempotencyMismatch):
        await minted(opened.api.identity, tenant.ledger_id, request_hash=b"another")


async def test_the_same_idempotency_key_of_another_caller_mints_another_key(opened: Opened) -> None:
    one = await opened.begin()
    two = await opened.another_key(one.ledger_id)
    texts = {(await minted(opened.identity, one.ledger_id, created_by=t.key.key_id))[1] for t in (one, two)}
    assert len(texts) == 2


async def minted(identity: Identity, ledger_id: int, **fields: Any) -> tuple[ApiKey, str, bool]:
    facts: dict[str, Any] = {"role": "auditor", "idempotency_key": "key-1", "request_hash": b"request"}
    return await identity.create(ledger_id, **(facts | fields))


async def test_a_key_is_unknown_under_another_master_key(opened: Opened) -> None:
    tenant = await opened.begin()
    _, text, _ = await opened.identity.create(tenant.ledger_id, role="admin")
    other = Identity(opened.api.database, MasterKey(b"\xff" * 32))
    assert await other.authenticate(text, now()) is None


async def test_a_ledgers_name_is_taken_once(opened: Opened) -> None:
    await opened.identity.create_ledger("main")
    with pytest.raises(LedgerExists):
        await opened.identity.create_ledger("main")


async def test_an_unknown_ledger_is_named_in_the_refusal(opened: Opened) -> None:
    with pytest.raises(LookupError, match="no ledger named elsewhere"):
        await opened.identity.ledger_id("elsewhere")


async def test_the_names_of_keys_include_revoked_ones(opened: Opened) -> None:
    tenant = await opened.begin()
    key, _, _ = await opened.identity.create(tenant.ledger_id, role="admin", name="gone")
    await opened.identity.revoke(tenant.ledger_id, key.key_id)
    assert (await opened.identity.names(tenant.ledger_id))[str(key.key_id)] == "gone"


async def test_an_administrators_own_text_is_known_after_it_was_given(opened: Opened) -> None:
    tenant = await opened.begin()
    text = "an-administrators-own-choice-of-a-key"
    before = await opened.identity.known(text)
    await opened.identity.create(tenant.ledger_id, role="admin", text=text)
    assert (before, await opened.identity.known(text)) == (False, True)


SOMEBODY = frozenset({"x"})


@pytest.mark.parametrize(
    ("role", "subjects"),
    [
        ("admin", Subjects()),
        ("auditor", Subjects()),
        ("creator", Subjects(creator_ids=SOMEBODY)),
        ("brand", Subjects(brand_ids=SOMEBODY)),
        ("brand", Subjects(advertiser_ids=SOMEBODY)),
        ("brand", Subjects(brand_ids=SOMEBODY, advertiser_ids=SOMEBODY)),
    ],
)
def test_a_role_may_have_these_subjects(role: Role, subjects: Subjects) -> None:
    assert subjects_problem(role, subjects) is None


@pytest.mark.parametrize(
    ("role", "subjects"),
    [
        ("admin", Subjects(creator_ids=SOMEBODY)),
        ("subscriber", Subjects(brand_ids=SOMEBODY)),
        ("creator", Subjects()),
        ("creator", Subjects(creator_ids=SOMEBODY, brand_ids=SOMEBODY)),
        ("brand", Subjects()),
        ("brand", Subjects(creator_ids=SOMEBODY, brand_ids=SOMEBODY)),
    ],
)
def test_a_role_may_not_have_these_subjects(role: Role, subjects: Subjects) -> None:
    assert subjects_problem(role, subjects) is not None
