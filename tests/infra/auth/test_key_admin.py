"""Administration of keys: creating, rotating, revoking and listing them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.auth.access_log import AccessContext
from infra.auth.key_admin import KeyAdmin, NewKey
from infra.errors import IdempotencyMismatch, KeyNoLongerValid, KeyNotRotatable
from tests.infra.opened import Opened


def now() -> datetime:
    return datetime.now(UTC)


async def test_the_text_of_a_key_is_stored_nowhere(opened: Opened) -> None:
    ledger_id = await opened.ledger_admin.create("main")
    _, text, _ = await opened.key_admin.create(ledger_id, role="admin")
    (row,) = opened.sql("SELECT k::text FROM api_keys k")
    assert text.removeprefix("slk_") not in row[0]


async def test_a_rotated_key_is_the_same_key_with_another_text(opened: Opened) -> None:
    tenant = await opened.begin()
    key, old, _ = await opened.key_admin.create(tenant.ledger_id, role="admin", name="app")
    rotated, new, again = await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=60)
    assert (replace(rotated, overlap_ends_at=None), again) == (key, False)
    assert rotated.overlap_ends_at is not None
    assert new != old
    assert [await opened.api.authenticator.authenticate(text, now()) for text in (new, old)] == [key, key]


async def test_the_text_before_a_rotation_ends_with_the_overlap(opened: Opened) -> None:
    tenant = await opened.begin()
    key, old, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    rotated, new, _ = await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=60)
    ends_at = rotated.overlap_ends_at
    assert ends_at is not None
    assert timedelta(seconds=55) < ends_at - now() <= timedelta(seconds=60)
    moments = (ends_at - timedelta(microseconds=1), ends_at)
    for text, works in ((old, [True, False]), (new, [True, True])):
        assert [await opened.api.authenticator.authenticate(text, at) is not None for at in moments] == works


async def test_no_more_than_two_texts_of_a_key_work(opened: Opened) -> None:
    tenant = await opened.begin()
    key, first, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    rotated = [await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=60) for _ in range(2)]
    texts = [first, *(text for _, text, _ in rotated)]
    works = [await opened.api.authenticator.authenticate(text, now()) is not None for text in texts]
    assert works == [False, True, True]


async def test_the_same_rotation_again_is_the_same_key_without_a_text(opened: Opened) -> None:
    tenant = await opened.begin()
    key, _, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    facts: dict[str, Any] = {"overlap_s": 60, "idempotency_key": "key-1", "request_hash": b"request"}
    first, second = [await opened.key_admin.rotate(tenant.ledger_id, key.key_id, **facts) for _ in range(2)]
    assert second == (first.key, "", True)
    assert (first.text != "", first.replayed) == (True, False)
    with pytest.raises(IdempotencyMismatch):
        await opened.key_admin.rotate(tenant.ledger_id, key.key_id, **(facts | {"request_hash": b"another"}))


async def test_a_rotation_that_is_repeated_gives_no_text_back_that_was_given_up(opened: Opened) -> None:
    tenant = await opened.begin()
    key, _, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    facts: dict[str, Any] = {"overlap_s": 0, "idempotency_key": "key-1"}
    _, given_up, _ = await opened.key_admin.rotate(tenant.ledger_id, key.key_id, **facts)
    _, present, _ = await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=0)
    again = await opened.key_admin.rotate(tenant.ledger_id, key.key_id, **facts)
    assert (again.text, again.replayed) == ("", True)
    found = [await opened.api.authenticator.authenticate(text, now()) for text in (given_up, present)]
    assert [key is not None for key in found] == [False, True]


async def test_whoever_knows_every_key_and_an_idempotency_key_cannot_make_the_text_of_an_api_key(
    opened: Opened,
) -> None:
    """The text is random and not derived: two keys of equal requests differ once the first request is forgotten."""
    tenant = await opened.begin()
    first = await minted(opened.key_admin, tenant.ledger_id)
    opened.sql("UPDATE api_key_hashes SET idempotency = NULL")
    second = await minted(opened.key_admin, tenant.ledger_id)
    assert (second.replayed, second.text != first.text) == (False, True)


async def test_a_key_that_is_no_longer_valid_is_not_rotated(opened: Opened) -> None:
    tenant = await opened.begin()
    revoked = await opened.another_key(tenant.ledger_id)
    await opened.key_admin.revoke(tenant.ledger_id, revoked.key.key_id)
    expired = await opened.another_key(tenant.ledger_id)
    opened.sql("UPDATE api_keys SET expires_at = now() WHERE key_id = %s", expired.key.key_id)
    for key in (revoked.key, expired.key):
        with pytest.raises(KeyNotRotatable):
            await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=0)


async def test_a_key_of_another_ledger_cannot_be_rotated(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    with pytest.raises(LookupError):
        await opened.api.key_admin.rotate(one.ledger_id, two.key.key_id, overlap_s=0)


# -- Uses, and what is recorded of keys


async def test_the_life_of_a_key_stands_in_the_log_of_accesses(opened: Opened) -> None:
    admin = await opened.begin(role="admin")
    context = AccessContext(admin.key.key_id, "admin", "POST /v1/keys", "request-1")
    key, text, _ = await opened.api.key_admin.create(admin.ledger_id, role="auditor", context=context)
    for _ in range(3):
        await opened.api.authenticator.authenticate(text, now())
    await opened.api.key_admin.rotate(admin.ledger_id, key.key_id, overlap_s=60, context=context)
    for _ in range(2):
        await opened.api.key_admin.revoke(admin.ledger_id, key.key_id, context=context)

    rows = (await opened.api.views.access_log.page(admin.ledger_id, limit=100))[::-1]
    by, of = str(admin.key.key_id), str(key.key_id)
    assert [(str(row.key_id), row.role, row.route, row.query) for row in rows[1:]] == [
        (by, "admin", "POST /v1/keys", {"key_id": of, "role": "auditor"}),
        (of, "auditor", "first use", {"kind": "key"}),
        (by, "admin", "POST /v1/keys", {"key_id": of, "overlap_seconds": 60}),
        (by, "admin", "POST /v1/keys", {"key_id": of}),
    ]
    assert (rows[0].key_id, rows[0].role, rows[0].query["key_id"]) == (None, "machine", by)


async def test_revoking_again_keeps_the_first_moment(opened: Opened) -> None:
    tenant = await opened.begin()
    moments = set()
    for _ in range(2):
        assert await opened.key_admin.revoke(tenant.ledger_id, tenant.key.key_id)
        moments |= {key.revoked_at for key in await opened.key_admin.keys(tenant.ledger_id)}
    assert len(moments) == 1
    assert None not in moments


async def test_a_key_of_another_ledger_cannot_be_revoked(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    assert await opened.key_admin.revoke(one.ledger_id, two.key.key_id) is False


async def test_a_key_that_was_revoked_meanwhile_mints_and_revokes_no_other(opened: Opened) -> None:
    admin = await opened.begin(role="admin")
    other = await opened.another_key(admin.ledger_id)
    await opened.key_admin.revoke(admin.ledger_id, admin.key.key_id)
    with pytest.raises(KeyNoLongerValid):
        await minted(opened.key_admin, admin.ledger_id, context=AccessContext(admin.key.key_id))
    with pytest.raises(KeyNoLongerValid):
        await opened.key_admin.revoke(admin.ledger_id, other.key.key_id, context=AccessContext(admin.key.key_id))
    revoked = [key.revoked_at is not None for key in await opened.key_admin.keys(admin.ledger_id)]
    assert revoked == [False, True]


async def test_keys_are_listed_newest_first_and_only_the_ledgers_own(opened: Opened) -> None:
    one, _ = await opened.begin("one"), await opened.begin("two")
    second = await opened.another_key(one.ledger_id, "auditor")
    keys = await opened.api.key_admin.keys(one.ledger_id)
    assert [key.key_id for key in keys] == [second.key.key_id, one.key.key_id]


async def test_the_same_creation_again_is_the_same_key_without_its_text(opened: Opened) -> None:
    tenant = await opened.begin()
    first, second = [await minted(opened.key_admin, tenant.ledger_id) for _ in range(2)]
    assert second == (first.key, "", True)
    assert (first.text != "", first.replayed) == (True, False)
    assert len(await opened.key_admin.keys(tenant.ledger_id)) == 2


async def test_another_minting_with_the_same_idempotency_key_is_a_mismatch(opened: Opened) -> None:
    tenant = await opened.begin()
    await minted(opened.key_admin, tenant.ledger_id)
    with pytest.raises(IdempotencyMismatch):
        await minted(opened.key_admin, tenant.ledger_id, request_hash=b"another")


async def test_the_same_idempotency_key_of_another_caller_mints_another_key(opened: Opened) -> None:
    one = await opened.begin()
    two = await opened.another_key(one.ledger_id)
    texts = {
        (await minted(opened.key_admin, one.ledger_id, context=AccessContext(t.key.key_id))).text for t in (one, two)
    }
    assert len(texts - {""}) == 2


async def minted(key_admin: KeyAdmin, ledger_id: int, **fields: Any) -> NewKey:
    facts: dict[str, Any] = {"role": "auditor", "idempotency_key": "key-1", "request_hash": b"request"}
    return await key_admin.create(ledger_id, **(facts | fields))


async def test_the_names_of_keys_include_revoked_ones(opened: Opened) -> None:
    tenant = await opened.begin()
    key, _, _ = await opened.key_admin.create(tenant.ledger_id, role="admin", name="gone")
    await opened.key_admin.revoke(tenant.ledger_id, key.key_id)
    assert (await opened.key_admin.names(tenant.ledger_id))[str(key.key_id)] == "gone"


async def test_a_text_of_the_administrators_own_works_once_it_was_given_and_until_it_is_given_up(
    opened: Opened,
) -> None:
    tenant = await opened.begin()
    text = "an-administrators-own-choice-of-a-key"
    before = await opened.key_admin.works(text)
    key, _, _ = await opened.key_admin.create(tenant.ledger_id, role="admin", text=text)
    given = await opened.key_admin.works(text)
    await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=0)
    assert (before, given, await opened.key_admin.works(text)) == (None, True, False)
