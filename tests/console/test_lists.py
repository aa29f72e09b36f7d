"""The lists and the trail: what their filters say is what they show."""

from __future__ import annotations

import pytest

from tests.api.world import told
from tests.console.seed import Seeded
from tests.console.test_start import visitor
from tests.serving import Server


@pytest.mark.parametrize("name", ["codes", "campaigns", "redemptions", "shares", "permissions"])
def test_a_list_shows_the_rows_that_the_api_answers(seeded_ledger: Server, name: str) -> None:
    with seeded_ledger.client() as client, visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        rows = told(client.get(f"/v1/{name}"), 200)[name]
        page = reader.get(f"/{name}")
    assert (page.status_code, page.text.count("<tr>")) == (200, len(rows) + 1)


def test_a_filter_that_is_none_is_refused_as_a_page(seeded_ledger: Server) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        page = reader.get("/codes?state=nope", headers={"Accept": "text/html"})
    assert (page.status_code, "Malformed query" in page.text) == (400, True)


def test_an_event_is_shown_and_a_wrong_query_of_the_trail_is_said_on_it(seeded_ledger: Server, seeded: Seeded) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        event = reader.get(f"/events/{seeded.running['position']}")
        wrong = reader.get("/events?q=type:Nope")
    assert (event.status_code, seeded.running["code_id"] in event.text) == (200, True)
    assert (wrong.status_code, 'role="alert"' in wrong.text) == (400, True)
