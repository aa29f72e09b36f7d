"""Keys: made, replaced and revoked by an administrator; a key is shown once, and is nowhere afterwards."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.test_sign_in import is_sign_in, new_key
from tests.console.test_start import OURS, SUBJECTS, key_of, visitor
from tests.serving import Server


def _make(page: Page, name: str, role: str = "auditor", **subjects: str) -> str:
    page.goto("/keys")
    page.locator(".filters summary").click()
    page.locator("#f-role").select_option(role)
    page.locator("#f-name").fill(name)
    for label, text in subjects.items():
        page.get_by_label(label).fill(text)
    follow(page.get_by_role("button", name="Make the key"))
    return page.locator("#secret").inner_text()


@pytest.mark.parametrize("javascript", [True, False])
def test_a_key_is_made_shown_once_and_opens_what_its_role_may(
    own_windows: Windows, own_world: World, javascript: bool
) -> None:
    page = own_windows.open(own_windows.server.admin_key, java_script_enabled=javascript)
    key = _make(page, "Legal", "creator", Creators="ana.creates, bo.dances")
    listed = told(own_world.with_key(key).get("/v1/permissions"), 200)
    assert listed["permissions"] == []
    follow(page.get_by_role("link", name="All keys"))
    expect(page.locator("tbody tr", has_text="Legal")).to_contain_text("ana.creates, bo.dances")
    assert key not in page.content()
    assert all(key not in url for url in own_windows.asked)
    page.go_back()
    assert key not in page.content()


def test_a_form_that_is_sent_twice_makes_one_key(server: Server, own_world: World) -> None:
    form = {"role": "auditor", "name": "Twice", "form_id": "of-this-form"}
    with visitor(server, server.admin_key) as client:
        first, second = (client.post("/keys", data=form, headers=OURS) for _ in range(2))
    assert "slk_" in first.text
    assert ("slk_" in second.text, "This form was sent before" in second.text) == (False, True)
    keys = told(own_world.client.get("/v1/keys"), 200)["keys"]
    assert [key["name"] for key in keys].count("Twice") == 1


def test_what_is_wrong_is_said_and_what_was_entered_stays(own_windows: Windows) -> None:
    page = own_windows.open(own_windows.server.admin_key)
    page.goto("/keys")
    page.locator(".filters summary").click()
    page.locator("#f-role").select_option("creator")
    page.locator("#f-name").fill("Ana")
    follow(page.get_by_role("button", name="Make the key"))
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#f-name")).to_have_value("Ana")
    expect(page.locator("#f-role")).to_have_value("creator")


def test_a_replaced_key_opens_for_the_overlap_and_the_new_one_at_once(own_windows: Windows, own_world: World) -> None:
    old = new_key(own_world)
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/keys/{old['key_id']}")
    page.get_by_label("The old text works for").select_option("1")
    follow(page.get_by_role("button", name="Replace the key"))
    new = page.locator("#secret").inner_text()
    assert new != old["key"]
    for key in (old["key"], new):
        told(own_world.with_key(key).get("/v1/codes"), 200)


def test_a_revoked_key_shuts_out_whoever_uses_it_in_open_pages_too(own_windows: Windows, own_world: World) -> None:
    key = new_key(own_world)
    theirs = own_windows.open(key["key"])
    with theirs.expect_response("**/live"):
        theirs.goto("/")
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/keys/{key['key_id']}")
    page.get_by_label("I mean the key Legal").check()
    follow(page.get_by_role("button", name="Revoke the key"))
    expect(page.locator("tbody tr", has_text="Legal")).to_contain_text("revoked")
    expect(theirs.get_by_label("API key")).to_be_visible()
    assert is_sign_in(theirs)


@pytest.mark.parametrize("role", SUBJECTS)
def test_auditors_see_keys_and_only_administrators_change_them(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/keys", headers={"Accept": "text/html"})
        made = client.post("/keys", data={"role": "auditor"}, headers=OURS | {"Accept": "text/html"})
    assert page.status_code == (200 if role in {"admin", "auditor"} else 403)
    assert ("Make the key" in page.text) is (role == "admin")
    assert made.status_code == (201 if role == "admin" else 403)
