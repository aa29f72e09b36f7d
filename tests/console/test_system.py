"""The system: what lags, what has stopped, and what to do about it."""

from __future__ import annotations

import psycopg
import pytest
from playwright.sync_api import expect

from tests.api.test_webhooks import create, record
from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import Seeded
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


def test_it_says_that_everything_runs_and_how_far_each_view_is(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/system")
    expect(
        page.get_by_role("region", name="How far each view is").locator("tbody tr", has_text="redemptions")
    ).to_be_visible()


def test_a_view_that_stopped_is_named_with_the_commands_that_mend_it(own_windows: Windows, own_world: World) -> None:
    own_world.generate()
    server = own_windows.server
    with psycopg.connect(server.database.dsn(), autocommit=True) as owner:
        ledger_id = owner.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (server.ledger,)).fetchone()
        assert ledger_id is not None
        owner.execute(
            "INSERT INTO view_versions (view, version, state, error, failed_ledger_id, failed_position)"
            " VALUES ('of_the_console', 1, 'failed', 'KeyError: <b>why</b>', %s, 2)",
            ledger_id,
        )
        try:
            page = own_windows.open(server.admin_key)
            page.goto("/system")
            commands = page.get_by_role("region", name="Commands for the view of_the_console")
            expect(commands).to_contain_text("sparkledger rebuild of_the_console")
            expect(commands).to_contain_text(f"--ledger {server.ledger} --position 2")
            expect(page.locator("main")).to_contain_text("KeyError: <b>why</b>")
        finally:
            owner.execute("DELETE FROM view_versions WHERE view = 'of_the_console'")


def test_dead_letters_are_sent_again_by_somebody_who_confirms_it(own_windows: Windows, own_world: World) -> None:
    webhook_id = create(own_world.client, description="The agency")["webhook_id"]
    record(own_world, webhook_id, "messages", 5)
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/system")
    follow(page.get_by_role("link", name="The agency"))
    expect(page.locator("tbody tr")).to_have_count(5)
    page.get_by_role("button", name="Send them again").click()
    expect(page.locator("tbody tr")).to_have_count(5)
    page.get_by_label("Send the oldest 1,000 of them again").check()
    follow(page.get_by_role("button", name="Send them again"))
    expect(page.locator("main").get_by_role("status")).to_have_text("5 messages are sent again.")
    expect(page.get_by_text("There are none.")).to_be_visible()
    assert told(own_world.client.get(f"/v1/webhooks/{webhook_id}"), 200)["waiting"] == 5


@pytest.mark.parametrize("role", SUBJECTS)
def test_it_is_for_those_who_run_or_guard_the_ledger(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/system", headers={"Accept": "text/html"})
    assert page.status_code == (200 if role in {"admin", "operator", "auditor"} else 403)
