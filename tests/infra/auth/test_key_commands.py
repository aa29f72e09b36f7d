"""The administrator's key at a start: made, chosen by a setting, and replaced by another setting."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from infra.auth.api_keys import ApiKey
from infra.auth.key_commands import FirstKeys, first_keys
from tests.infra.opened import MASTER_KEY, Opened

ONE: Final = "the-first-choice-of-an-administrator"
OTHER: Final = "the-second-choice-of-an-administrator"


async def start(opened: Opened, admin_key: str | None = None) -> FirstKeys:
    return await first_keys(opened.database.dsn(), MASTER_KEY, admin_key)


async def key_of(opened: Opened, text: str) -> ApiKey | None:
    opened.api.authenticator.forget()
    return await opened.api.authenticator.authenticate(text, datetime.now(UTC))


async def test_the_first_start_makes_a_key_and_the_next_one_does_not(opened: Opened) -> None:
    first, second = [await start(opened) for _ in range(2)]
    assert first.generated is not None
    assert first.notice is None
    assert second == FirstKeys()
    key = await key_of(opened, first.generated)
    assert key is not None
    assert (key.role, key.name) == ("admin", "administrator")


async def test_another_setting_replaces_the_key_of_the_first_start_which_is_told_and_recorded(opened: Opened) -> None:
    generated = (await start(opened)).generated
    assert generated is not None
    first = await key_of(opened, generated)
    assert first is not None
    for before, text in ((generated, ONE), (ONE, OTHER)):
        told = await start(opened, text)
        assert told.generated is None
        assert told.notice is not None
        assert f"it replaces the first admin key ({first.key_id})" in told.notice
        assert text not in told.notice
        assert await key_of(opened, before) is None
        assert await key_of(opened, text) == first
        assert await start(opened, text) == FirstKeys()

    accesses = await opened.api.views.access_log.page(first.ledger_id, limit=10)
    rotated = {"key_id": str(first.key_id), "overlap_seconds": 0}
    recorded = [(row.role, row.route, row.query) for row in accesses if "overlap_seconds" in row.query]
    assert recorded == [("machine", "sparkledger migrate", rotated)] * 2


async def test_a_setting_that_was_given_up_does_not_come_back_and_the_start_says_so(opened: Opened) -> None:
    for text in (ONE, OTHER):
        await start(opened, text)
    told = await start(opened, ONE)
    assert told.notice is not None
    assert "It does not work: choose another" in told.notice
    assert await key_of(opened, ONE) is None
    assert await key_of(opened, OTHER) is not None


async def test_keys_that_administrators_made_are_not_replaced(opened: Opened) -> None:
    await start(opened, ONE)
    first = await key_of(opened, ONE)
    assert first is not None
    made = await opened.key_admin.create(first.ledger_id, role="admin", name="a colleague")
    await opened.key_admin.revoke(first.ledger_id, first.key_id)
    assert await start(opened, OTHER) == FirstKeys()
    assert await key_of(opened, made.text) is not None
    other = await key_of(opened, OTHER)
    assert other is not None
    assert other.key_id not in {first.key_id, made.key.key_id}
