"""Alerts and calendars: made in a form, seen with their state, and ended."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.test_start import OURS, SUBJECTS, key_of, visitor
from tests.serving import Server

HTML = OURS | {"Accept": "text/html"}
RULE = {"kind": "ending", "days": "7,1", "channel": "email", "address": "desk@brand.example", "zone": "Europe/Berlin"}


@pytest.mark.parametrize("javascript", [True, False])
def test_a_rule_is_made_tested_switched_off_and_deleted(
    own_windows: Windows, own_world: World, javascript: bool
) -> None:
    page = own_windows.open(own_windows.server.admin_key, java_script_enabled=javascript)
    page.goto("/alerts")
    page.locator("summary", has_text="Make a rule").click()
    page.locator("#f-address").fill("desk@elsewhere.example")
    page.locator("#f-name").fill("The desk")
    page.locator("#f-digest_at").fill("08:00")
    follow(page.get_by_role("button", name="Make the rule"))
    expect(page.locator(".wrong")).to_contain_text("Alerts are not mailed to this domain.")
    expect(page.locator("#f-name")).to_have_value("The desk")
    page.locator("#f-address").fill("desk@brand.example")
    follow(page.get_by_role("button", name="Make the rule"))
    expect(page.locator("main")).to_contain_text("once a day at 08:00, UTC")
    follow(page.get_by_role("button", name="Send a test"))
    expect(page.locator("main").get_by_role("status")).to_contain_text("A test is sent.")
    expect(page.locator("tbody tr")).to_contain_text("a test")
    follow(page.get_by_role("button", name="Switch it off"))
    expect(page.locator("main")).to_contain_text("off since")
    page.get_by_label("I mean this rule").check()
    follow(page.get_by_role("button", name="Delete the rule"))
    assert told(own_world.client.get("/v1/alerts"), 200)["alerts"] == []


def test_a_calendar_is_shown_once_opens_without_a_key_and_is_ended(own_windows: Windows, own_world: World) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/alerts")
    page.locator("summary", has_text="Make a calendar").click()
    page.locator("#c-name").fill("My calendar")
    follow(page.get_by_role("button", name="Make the calendar"))
    address = page.locator("#secret").inner_text()
    assert httpx.get(address, trust_env=False).text.startswith("BEGIN:VCALENDAR")
    follow(page.get_by_role("link", name="All alerts and calendars"))
    expect(page.locator("tbody tr", has_text="My calendar")).to_be_visible()
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size({"width": 1280, "height": 740})
    assert address not in page.content()
    row = page.locator("tbody tr", has_text="My calendar")
    expect(row.get_by_role("button")).to_be_hidden()
    row.locator("summary").click()
    follow(row.get_by_role("button", name="End it for good"))
    assert httpx.get(address, trust_env=False).status_code == 404
    assert told(own_world.client.get("/v1/calendars"), 200)["calendars"] == []


def test_a_form_that_is_sent_twice_makes_one(server: Server, own_world: World) -> None:
    with visitor(server, server.admin_key) as client:
        for path in ("/alerts", "/alerts/calendars"):
            form = RULE | {"form_id": f"twice-{path}", "name": "Twice"} if path == "/alerts" else {"form_id": "two"}
            first, second = (client.post(path, data=form, headers=HTML) for _ in range(2))
            assert (first.status_code, second.status_code) in {(303, 303), (201, 201)}
    assert len(told(own_world.client.get("/v1/alerts"), 200)["alerts"]) == 1
    assert len(told(own_world.client.get("/v1/calendars"), 200)["calendars"]) == 1


@pytest.mark.parametrize("role", SUBJECTS)
def test_all_who_can_sign_in_have_alerts_of_their_own(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/alerts", headers=HTML)
        made = client.post("/alerts", data=RULE, headers=HTML)
        rule = client.get(made.headers["location"], headers=HTML)
        gone = client.post(f"{made.headers['location']}/deletion", headers=HTML)
    assert (page.status_code, made.status_code, rule.status_code, gone.status_code) == (200, 303, 200, 303)
    assert "codes that end soon, 7, 1 days before" in rule.text
