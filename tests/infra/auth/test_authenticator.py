"""Authentication: what is presented is found, cached for a second, and forgotten when it changes."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.auth.api_keys import Subjects
from infra.auth.authenticator import CACHE_S, Authenticator
from infra.crypto.envelope import MasterKeyError
from infra.crypto.keyring import Keyring
from tests.infra.opened import Opened
from tests.keys import master_key
from tests.waiting import WITHIN_S

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


async def test_a_presented_key_is_found_with_all_that_is_known_of_it(opened: Opened) -> None:
    ledger_id = await opened.ledger_admin.create("main")
    subjects = Subjects(frozenset({"creator-1", "creator-2"}))
    key, text, again = await opened.key_admin.create(
        ledger_id, role="creator", name="for the app", subjects=subjects, expires_at=LATER
    )
    found = await opened.api.authenticator.authenticate(text, now())
    assert found == key
    assert (key.ledger_name, key.role, key.name, key.subjects) == ("main", "creator", "for the app", subjects)
    assert (key.expires_at, key.revoked_at, again) == (LATER, None, False)


@pytest.mark.parametrize("presented", ["", "slk_unknown", "x" * 513, "\udcff", "slk_" + "é" * 10, "a\0b"])
async def test_what_was_never_minted_is_nobodys(opened: Opened, presented: str) -> None:
    await opened.begin()
    assert await opened.api.authenticator.authenticate(presented, now()) is None


async def test_a_key_is_no_longer_valid_at_the_moment_it_expires(opened: Opened) -> None:
    ledger_id = await opened.ledger_admin.create("main")
    _, text, _ = await opened.key_admin.create(ledger_id, role="admin", expires_at=LATER)
    valid = [
        await opened.api.authenticator.authenticate(text, moment) is not None
        for moment in (LATER - timedelta(microseconds=1), LATER)
    ]
    assert valid == [True, False]


async def test_a_key_that_changed_is_forgotten_within_a_second_though_the_word_of_it_is_lost(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await opened.begin()
    key, text, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    deaf = Authenticator(opened.api.database, opened.api.keyring)
    for _ in range(2):
        assert await deaf.authenticate(text, now()) == key
    assert await opened.key_admin.revoke(tenant.ledger_id, key.key_id)
    assert await deaf.authenticate(text, now()) == key
    started = time.monotonic()
    monkeypatch.setattr("infra.auth.authenticator.monotonic", lambda: started + CACHE_S + 0.1)
    assert await deaf.authenticate(text, now()) is None
    await deaf.stop()


@pytest.mark.parametrize("way", ["revoked", "rotated", "by hand"])
async def test_every_process_hears_of_a_key_that_changed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Time stands still, so nothing that is remembered ever grows too old."""
    tenant = await opened.begin()
    key, text, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    started = time.monotonic()
    monkeypatch.setattr("infra.auth.authenticator.monotonic", lambda: started)
    for _ in range(2):
        assert await opened.api.authenticator.authenticate(text, now()) == key
    if way == "revoked":
        await opened.key_admin.revoke(tenant.ledger_id, key.key_id)
    elif way == "rotated":
        await opened.key_admin.rotate(tenant.ledger_id, key.key_id, overlap_s=0)
    else:
        opened.sql("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", key.key_id)
    async with asyncio.timeout(WITHIN_S):
        while await opened.api.authenticator.authenticate(text, now()) is not None:  # noqa: ASYNC110 - what is waited for
            await asyncio.sleep(0.01)


async def test_what_was_read_while_a_key_changed_is_not_remembered(opened: Opened) -> None:
    tenant = await opened.begin()
    key, text, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    authenticator = Authenticator(opened.api.database, opened.api.keyring)
    await authenticator.authenticate(text, now())
    read = authenticator._database.read

    async def then_revoke(ledger_id: int | None, query: Any) -> Any:
        rows = await read(ledger_id, query)
        await opened.key_admin.revoke(tenant.ledger_id, key.key_id)
        authenticator.forget()  # as a listener would, before the rows are looked at
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authenticator._database, "read", then_revoke)
        assert await authenticator.authenticate(text, now()) == key
    assert await authenticator.authenticate(text, now()) is None
    await authenticator.stop()


async def test_many_that_present_what_nobody_minted_take_one_session(opened: Opened) -> None:
    await opened.begin()
    authenticator = Authenticator(opened.api.database, opened.api.keyring)
    await authenticator.authenticate("a first guess", now())
    queries = 0
    read = authenticator._database.read

    async def counted(ledger_id: int | None, query: Any) -> Any:
        nonlocal queries
        queries += 1
        return await read(ledger_id, query)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authenticator._database, "read", counted)
        found = await asyncio.gather(*(authenticator.authenticate(f"guess-{n}", now()) for n in range(500)))
    assert found == [None] * 500
    assert queries < 20
    await authenticator.stop()


# -- Rotation


async def test_another_master_key_is_told_and_not_taken_for_an_unknown_key(opened: Opened) -> None:
    tenant = await opened.begin()
    _, text, _ = await opened.key_admin.create(tenant.ledger_id, role="admin")
    other = Authenticator(opened.api.database, Keyring(opened.api.database, master_key(b"\xff" * 32)))
    with pytest.raises(MasterKeyError):
        await other.authenticate(text, now())
