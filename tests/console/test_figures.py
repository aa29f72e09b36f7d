"""Figures: the page says what the API answers, and leads from a name to its months and to a file."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from api.console.figures import COLUMNS, FIELDS
from tests.api.world import told
from tests.console.conftest import Windows, follow
from tests.console.seed import CREATOR, Seeded
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


def test_it_says_what_the_api_answers_and_leads_to_months_and_a_file(windows: Windows, seeded: Seeded) -> None:
    with windows.server.client() as client:
        figures = told(client.get("/v1/stats/figures", params={"by": "creator", "limit": 100}), 200)
    page = windows.open(windows.server.admin_key)
    page.goto("/figures")
    follow(page.get_by_role("link", name="Creator", exact=True))
    row = page.locator("tbody tr", has=page.get_by_role("link", name=CREATOR, exact=True))
    (entry,) = [one for one in figures["figures"] if one["key"] == CREATOR]
    cells = row.locator("td")
    expect(cells).to_have_count(len(COLUMNS) + 2)
    for number, name in enumerate(COLUMNS):
        expect(cells.nth(number)).to_have_text(f"{entry[name]:,}")
    expect(page.locator("tfoot td").first).to_have_text(f"{figures['totals']['issued']:,}")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="CSV, for spreadsheets").click()
    assert len(downloading.value.path().read_text().splitlines()) == len(figures["figures"]) + 2
    follow(row.get_by_role("link", name=CREATOR))
    expect(page.locator("table").first.locator("tbody tr")).to_have_count(12)
    assert seeded


def test_what_cannot_be_summed_is_said_at_its_field(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/figures?by=creator&from=2026-3")
    expect(page.locator("#w-from")).to_contain_text("Expected a month")


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_reader_sees_the_figures_that_are_their_own(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/figures", headers={"Accept": "text/html"})
        other = client.get(
            f"/figures?by={'brand' if role == 'creator' else 'creator'}", headers={"Accept": "text/html"}
        )
    if role == "subscriber":
        assert page.status_code == 403
        return
    assert page.status_code == 200
    assert ('class="number">Codes that began' in page.text) == (role != "brand")
    assert other.status_code == (403 if role in {"creator", "brand"} else 200)


def test_every_field_is_a_filter_that_the_api_knows(seeded_ledger: Server) -> None:
    texts = {"video_id": "7312345678901234567", "from": "2026-01", "to": "2026-12"}
    with seeded_ledger.client() as client:
        for one in FIELDS:
            text = one.choices[0][0] if one.choices else texts.get(one.name, "machine")
            told(client.get("/v1/stats/figures", params={one.name: text}), 200)
