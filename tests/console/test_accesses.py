"""Who looked: the access log as its readers see it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from api.console import accesses
from api.console.accesses import FIELDS, ROUTES
from api.console.forms import Field
from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.test_sign_in import new_key
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


def test_it_says_who_read_what_and_who_was_refused(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    auditor = own_world.with_key(new_key(own_world)["key"])
    told(auditor.get(f"/v1/codes/{code['code_id']}/history"), 200)
    assert auditor.post("/v1/codes", json={}).status_code == 403
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/accesses")
    read = page.locator("tbody tr", has_text="Read the history of a code")
    expect(read).to_contain_text("Legal")
    expect(read.get_by_role("link", name="a code")).to_have_attribute("href", f"/codes/{code['code_id']}")
    refused = page.locator("tbody tr", has_text="refused: role not allowed")
    expect(refused).to_contain_text("from 127.0.0.1")
    page.locator(".filters summary").click()
    page.get_by_label("Outcome").select_option(label="Refused")
    follow(page.get_by_role("button", name="Show", exact=True))
    expect(page.locator("tbody tr")).to_have_count(1)


def test_where_an_attempt_came_from_is_the_administrators_to_see(own_windows: Windows, own_world: World) -> None:
    key = new_key(own_world)
    assert own_world.with_key(key["key"]).post("/v1/codes", json={}).status_code == 403
    page = own_windows.open(key["key"])
    page.goto("/accesses?refused=true")
    expect(page.locator("tbody tr")).to_contain_text("refused: role not allowed")
    expect(page.locator("tbody tr")).not_to_contain_text("127.0.0.1")


def test_a_key_leads_to_what_it_read(own_windows: Windows, own_world: World) -> None:
    key = new_key(own_world)
    told(own_world.with_key(key["key"]).get("/v1/events"), 200)
    told(own_world.client.get("/v1/events"), 200)
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/accesses")
    follow(page.get_by_role("link", name="Legal").first)
    expect(page.locator("tbody tr", has_text="Read the audit trail")).to_have_count(1)
    expect(page.locator("tbody tr", has_text="admin")).to_have_count(0)


@pytest.mark.parametrize("one", FIELDS, ids=lambda one: one.name)
def test_every_field_is_a_filter_that_the_api_knows(seeded_ledger: Server, one: Field) -> None:
    texts = {"actor": "machine", "code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20", "video_id": "7312345678901234567"}
    values = [value for value, _ in one.choices] or [
        "2026-03-01T12:00" if one.kind == "time" else texts.get(one.name, "somebody")
    ]
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        found = {value: reader.get("/accesses", params={one.name: value}).status_code for value in values}
    assert set(found.values()) == {200}, found
    assert ROUTES


def test_the_pages_before_and_after_lead_back(seeded_ledger: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesses, "ROWS", 2)
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        for _ in range(3):
            reader.get("/events")
        first = reader.get("/accesses?route=GET+/v1/events")
        older = re.search(r'href="([^"]+)">Older<', first.text)
        assert older is not None
        second = reader.get(older[1].replace("&amp;", "&"))
    assert "route=GET" in older[1]
    assert ">Newer<" in second.text


@pytest.mark.parametrize("role", SUBJECTS)
def test_it_is_for_those_who_guard_the_ledger(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as reader:
        page = reader.get("/accesses", headers={"Accept": "text/html"})
        start = reader.get("/")
    may = role in {"admin", "operator", "auditor"}
    assert (page.status_code, 'href="/accesses"' in start.text) == (200 if may else 403, may)
