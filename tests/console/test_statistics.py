"""Statistics: each drawing has its table and its file, and all say the same."""

from __future__ import annotations

import csv
import io
import re

import pytest
from playwright.sync_api import expect

from api.console.statistics import LINES, SERIES, chart_of
from tests.api.world import told
from tests.console.conftest import Windows, follow
from tests.console.seed import Seeded
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


def test_drawing_table_and_file_say_what_the_api_answers(seeded_ledger: Server, seeded: Seeded) -> None:
    with seeded_ledger.client() as client, visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        page = reader.get("/statistics?days=90")
        file = reader.get(str(re.search(r'href="(/statistics/file[^"]+)"', page.text)[1]).replace("&amp;", "&"))  # type: ignore[index]
        rows = list(csv.DictReader(io.StringIO(file.text.removeprefix("\ufeff"))))
        days = told(client.get("/v1/stats/days", params={"from": rows[0]["day"], "to": rows[-1]["day"]}), 200)["days"]
    assert len(rows) == len(days) == 90
    for name, title, value in SERIES:
        total = sum(value(day) for day in days)
        assert sum(int(row[name]) for row in rows) == total, name
        assert f"{title}: {total:,} in all" in page.text
    assert page.text.count('<th scope="row" class="day">') == 90
    assert sum(value(day) for _, _, value in SERIES for day in days) > 0


def test_it_is_complete_without_javascript_and_days_are_chosen_by_a_form(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key, java_script_enabled=False)
    page.goto("/statistics")
    expect(page.locator("figure")).to_have_count(len(SERIES))
    page.locator("#from").fill("2026-01-01")
    page.locator("#to").fill("2026-01-07")
    follow(page.get_by_role("button", name="Show", exact=True))
    expect(page.locator("tbody tr")).to_have_count(7)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="CSV of these 7 days").click()
    assert len(downloading.value.path().read_text().splitlines()) == 8


def test_days_that_cannot_be_asked_for_are_said_at_their_field(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/statistics?from=2026-02-01&to=2026-01-01")
    expect(page.locator("#w-to")).to_contain_text("before")
    expect(page.locator("#to")).to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize("most", [0, 1, 3, 4, 5, 9, 77, 1_000, 123_456])
def test_the_lines_of_a_drawing_are_round_and_no_bar_is_higher_than_it(most: int) -> None:
    chart = chart_of("issued", "Codes", [("2026-01-01", most), ("2026-01-02", 0)])
    assert chart.top >= max(most, LINES)
    assert chart.top % LINES == 0
    assert all(0 <= bar.height <= 100 for bar in chart.bars)
    assert [value for _, value in chart.lines][-1] == chart.top
    assert chart.total == most


@pytest.mark.parametrize("role", SUBJECTS)
def test_figures_are_for_those_who_see_the_whole_ledger(seeded_ledger: Server, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as client:
        page = client.get("/statistics", headers={"Accept": "text/html"})
    assert page.status_code == (200 if role in {"admin", "operator", "auditor"} else 403)
