"""How views stand to the log, in figures: of one ledger for its own, of all together for the metrics."""

from __future__ import annotations

import pytest

from infra.postgres.pool import Database
from infra.postgres.roles import API
from infra.views.status import status_in_all_ledgers, status_in_ledger
from projections import VIEWS, codes
from projections.engine.view import SHADOW_SUFFIX
from tests import given
from tests.infra.opened import Opened

NAMES = sorted(view.name for view in VIEWS)


@pytest.fixture
async def api(opened: Opened) -> Database:
    """Sessions of the API's."""
    return opened.api.database


async def test_a_view_that_has_read_all_is_not_behind(opened: Opened, api: Database) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    for tenant in (one, two, one):
        await opened.when(tenant, given.permission(creator_id=str(len(NAMES))))
        await opened.when(tenant, given.permission(creator_id="another"))
    await opened.apply()
    assert [
        (s.view, s.state, s.position, s.head, s.behind_events, s.behind_s) for s in await status_in_ledger(api, 1)
    ] == [(name, "following", 2, 2, 0, 0) for name in NAMES]
    assert [
        (s.view, s.position, s.behind_events, s.behind_s, s.rebuilds) for s in await status_in_all_ledgers(api)
    ] == [(name, 4, 0, 0, 0) for name in NAMES]


async def test_a_view_is_behind_by_what_it_has_not_read_and_since_the_oldest_of_that(
    opened: Opened, api: Database
) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    await opened.when(one, given.permission())
    await opened.apply()
    await opened.when(one, given.permission(creator_id="another"))
    for creator in ("1", "2", "3"):
        await opened.when(two, given.permission(creator_id=creator))
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    opened.sql(
        "UPDATE events SET recorded_at = now() - interval '1 hour', body = 'nobody can read this'"
        " WHERE ledger_id = %s AND position = 1",
        two.ledger_id,
    )

    first = {status.view: status for status in await status_in_ledger(api, one.ledger_id)}
    assert (first["codes"].position, first["codes"].head, first["codes"].behind_events) == (1, 2, 1)
    assert 0 < first["codes"].behind_s < 600
    second = {status.view: status for status in await status_in_ledger(api, two.ledger_id)}
    assert (second["codes"].position, second["codes"].head, second["codes"].behind_events) == (0, 3, 3)
    assert 3600 <= second["codes"].behind_s < 4200
    both = {status.view: status for status in await status_in_all_ledgers(api)}
    assert (both["codes"].position, both["codes"].behind_events) == (1, 4)
    assert 3600 <= both["codes"].behind_s < 4200


async def test_only_the_ledger_whose_event_stopped_a_view_is_told_which_it_was(opened: Opened, api: Database) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    await opened.apply()
    opened.sql(
        "UPDATE view_versions SET state = 'failed', error = 'of ledger one', failed_ledger_id = %s, failed_position = 7"
        " WHERE view = 'codes'",
        one.ledger_id,
    )
    told = {}
    for tenant in (one, two):
        (status,) = [s for s in await status_in_ledger(api, tenant.ledger_id) if s.view == "codes"]
        told[tenant.ledger_id] = (status.state, status.failed_position, status.error)
    assert told == {one.ledger_id: ("failed", 7, "of ledger one"), two.ledger_id: ("failed", None, None)}


async def test_a_rebuild_has_a_status_of_its_own(opened: Opened, api: Database) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.apply()
    opened.sql(
        "INSERT INTO view_versions (view, version, state) VALUES (%s, %s, 'building')",
        "codes" + SHADOW_SUFFIX,
        codes.VERSION + 1,
    )
    (rebuilding,) = [status for status in await status_in_all_ledgers(api) if status.state == "building"]
    assert (rebuilding.view, rebuilding.version, rebuilding.position, rebuilding.behind_events) == (
        *("codes_next", codes.VERSION + 1),
        *(0, 1),
    )


async def test_nobody_but_the_program_may_ask_for_all_ledgers(opened: Opened) -> None:
    assert opened.sql("SELECT has_function_privilege('public', 'views_in_all_ledgers()', 'EXECUTE')") == [(False,)]
    assert opened.sql(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'sparkledger%%'"
        " AND has_function_privilege(oid, 'views_in_all_ledgers()', 'EXECUTE') ORDER BY 1"
    ) == [(API,), ("sparkledger_worker",)]
