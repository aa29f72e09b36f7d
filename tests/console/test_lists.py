"""The lists: what their filters say is what they show."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect

from api.console import lists
from api.console.lists import FIELDS
from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import Seeded, shown
from tests.console.test_start import visitor
from tests.serving import Server

TEXTS = {"video_id": "7312345678901234567"}


@pytest.mark.parametrize("name", ["codes", "campaigns", "redemptions", "shares", "permissions"])
def test_a_list_shows_the_rows_that_the_api_answers(seeded_ledger: Server, seeded: Seeded, name: str) -> None:
    with seeded_ledger.client() as client, visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        rows = told(client.get(f"/v1/{name}"), 200)[name]
        page = reader.get(f"/{name}")
    assert (page.status_code, page.text.count("<tr>")) == (200, len(rows) + 1)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_filter_that_the_api_knows(seeded_ledger: Server, name: str) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        for one in FIELDS[name]:
            values = [value for value, _ in one.choices] or (
                ["2026-03-01T12:00"] if one.kind == "time" else [TEXTS.get(one.name, "somebody")]
            )
            for value in values:
                assert reader.get(f"/{name}", params={one.name: value}).status_code == 200, (one.name, value)


@pytest.mark.parametrize("javascript", [True, False])
def test_what_is_chosen_in_the_form_is_what_is_shown_and_is_in_the_address(
    windows: Windows, seeded: Seeded, javascript: bool
) -> None:
    page = windows.open(windows.server.admin_key, java_script_enabled=javascript)
    page.goto("/codes")
    page.locator(".filters summary").click()
    page.get_by_label("State").select_option("revoked")
    follow(page.get_by_role("button", name="Show", exact=True))
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody")).to_contain_text(seeded.revoked["video_id"])
    expect(page.locator(".lead")).to_have_text("Only where state is Revoked. Show all")
    assert page.url.endswith("/codes?state=revoked")
    follow(page.get_by_role("link", name="Show all"))
    expect(page.locator("tbody tr")).to_have_count(6)


def test_a_filter_that_is_none_is_refused_at_its_field(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/codes?state=nope&live_at=2026-03-01T12:00&creator_id=ana.creates")
    state = page.get_by_label("State")
    expect(state).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#w-state")).to_be_visible()
    expect(page.get_by_label("Creator")).to_have_value("ana.creates")
    expect(page.get_by_label("Live at")).to_have_value(re.compile("^2026-03-01T12:00"))
    page.goto("/codes?colour=red")
    expect(page.get_by_role("alert")).to_contain_text("Unknown parameter.")


def test_the_next_rows_have_the_same_filters(
    seeded_ledger: Server, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "ROWS", 2)
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        first = reader.get("/codes?order=ending")
        following = re.search(r'href="(/codes[?][^"]*cursor=[^"]*)">The next rows', first.text)
        assert following is not None
        second = reader.get(following[1].replace("&amp;", "&"))
    assert "order=ending" in following[1]
    seen = [set(re.findall(r"/codes/([0-9a-f-]{36})", page.text)) for page in (first, second)]
    assert [len(one) for one in seen] == [2, 2]
    assert seen[0] & seen[1] == set()
    assert 'href="/codes?order=ending">To the beginning' in second.text


def test_times_of_a_filter_are_in_utc_as_their_fields_say(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    shown(own_world.client, "codes")
    ends = datetime.fromisoformat(code["expires_at"]).astimezone(UTC)
    page = own_windows.open(own_windows.server.admin_key, timezone_id="Asia/Kolkata")
    page.goto("/codes")
    for seconds, count in ((0, 0), (1, 1)):
        page.locator(".filters summary").click()
        page.get_by_label("Window ends before").fill(f"{ends + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}")
        follow(page.get_by_role("button", name="Show", exact=True))
        page.wait_for_url("**expires_before=**")
        expect(page.locator("tbody tr")).to_have_count(count)


@pytest.mark.parametrize("name", ["codes", "campaigns", "redemptions", "shares", "permissions", "accesses"])
def test_a_list_is_taken_along_with_its_filters_as_the_api_exports_it(
    seeded_ledger: Server, seeded: Seeded, name: str
) -> None:
    asked = "" if name == "accesses" else "&limit=2"
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader, seeded_ledger.client() as client:
        page = reader.get(f"/{name}")
        for format_ in ("csv", "xlsx", "ndjson"):
            file = reader.get(f"/{name}/export?format={format_}{asked}")
            assert (file.status_code, "attachment" in file.headers["content-disposition"]) == (200, True)
            assert f"/{name}/export?format={format_}" in page.text
        lines = reader.get(f"/{name}/export?format=ndjson").text.splitlines()
        rows = told(client.get(f"/v1/{name}"), 200)[name]
    assert len(lines) - 1 >= min(len(rows), 1)


def test_codes_are_listed_as_they_were_known_and_none_counts_as_missing(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    shown(own_world.client, "codes")
    own_world.generate()
    shown(own_world.client, "codes")
    with visitor(own_windows.server, own_windows.server.admin_key) as reader:
        page = reader.get(f"/codes?as_of={code['position']}")
    assert (page.status_code, page.text.count("<tr>"), "not in it yet" in page.text) == (200, 2, False)
