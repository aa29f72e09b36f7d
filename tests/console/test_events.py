"""The trail and one event: found by a query, read to the end, and taken along."""

from __future__ import annotations

import hashlib
import re

import httpx
import orjson
import psycopg
import pytest
from playwright.sync_api import expect

from api.console import events
from api.console.events import EXAMPLES, FIELDS
from api.console.wording import indented
from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import VIDEO, Seeded
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server
from tests.waiting import until

ROW = re.compile(r'href="/events/(\d+)">#')


def _positions(page: httpx.Response) -> list[int]:
    assert page.status_code == 200, page.text
    return [int(position) for position in ROW.findall(page.text)]


def _address(page: httpx.Response, name: str) -> str:
    found = re.search(rf'href="([^"]+)">{name}', page.text)
    assert found is not None, name
    return found[1].replace("&amp;", "&")


@pytest.mark.parametrize("query", [written for _, written in EXAMPLES])
def test_every_example_of_a_search_is_understood(seeded_ledger: Server, seeded: Seeded, query: str) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        assert reader.get("/events", params={"q": query}).status_code == 200


def test_every_field_is_a_filter_that_the_api_knows(seeded_ledger: Server, seeded: Seeded) -> None:
    values = {"video_id": VIDEO, "code_id": seeded.running["code_id"]}
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        for one in FIELDS:
            chosen = one.choices[0][0] if one.choices else "2026-03-01T12:00" if one.kind == "time" else "somebody"
            asked = {one.name: values.get(one.name, chosen)}
            assert reader.get("/events", params=asked).status_code == 200, one.name


@pytest.mark.parametrize(
    ("query", "character", "marked"),
    [("type:Nope", 6, "N"), ("type:Shared channel:", 21, "␣"), ('"open', 6, "␣"), ("a  AND b", 4, "A")],
)
def test_an_error_of_a_query_is_shown_at_its_character(
    windows: Windows, query: str, character: int, marked: str
) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/events")
    page.get_by_label("Search the trail").fill(query)
    follow(page.get_by_role("button", name="Search"))
    expect(page.get_by_role("alert")).to_contain_text(f"It goes wrong at character {character}:")
    expect(page.locator("mark")).to_have_text(marked)
    expect(page.get_by_label("Search the trail")).to_have_value(query)
    expect(page.get_by_label("Search the trail")).to_have_attribute("aria-invalid", "true")


def test_a_secret_that_was_searched_for_is_not_shown_again(seeded_ledger: Server, seeded: Seeded) -> None:
    secret = "#k9/Tz+example+of+a+spark+ad+code=="
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        page = reader.get("/events", params={"q": secret})
    assert (page.status_code, 'role="alert"' in page.text, "spark+ad" in page.text) == (400, True, False)


def test_the_pages_before_and_after_have_the_same_filters_and_no_event_twice(
    seeded_ledger: Server, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ROWS", 4)
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        first = reader.get("/events", params={"q": "type:Shared,Redeemed"})
        second = reader.get(_address(first, "Older events"))
        again = reader.get(_address(second, "Newer events"))
    assert len(_positions(first)) == 4
    assert _positions(second)[0] < _positions(first)[-1]
    assert _positions(again) == _positions(first)
    assert "Only where" in second.text


def test_a_search_that_gave_up_says_so_and_goes_on(
    seeded_ledger: Server, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.event_search.MAX_ROWS_SCANNED", 5)
    monkeypatch.setattr("api.event_search._AT_ONCE", 5)
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        page = reader.get("/events", params={"q": "nothingsaysthis"})
    assert page.status_code == 200
    assert re.search(r"The search looked through [\d,]+ events and stopped", page.text)
    assert "Nothing was found so far." in page.text
    assert "Go on searching" in page.text


@pytest.mark.parametrize("format_", ["csv", "ndjson"])
def test_what_a_search_found_is_taken_along_as_a_file_that_says_whether_it_is_whole(
    windows: Windows, seeded: Seeded, format_: str
) -> None:
    page = windows.open(windows.server.admin_key, java_script_enabled=False)
    page.goto("/events?q=type:Shared")
    count = page.locator("tbody tr").count()
    with page.expect_download() as downloading:
        page.get_by_role("link", name=format_.upper()).click()
    download = downloading.value
    assert download.suggested_filename.endswith(f".{format_}")
    lines = download.path().read_text().splitlines()
    if format_ == "ndjson":
        trailer = orjson.loads(lines[-1])["trailer"]
        assert (len(lines) - 1, trailer["events"]) == (count, count)
    else:
        assert (len(lines) - 2, lines[-1].startswith("end,")) == (count, True)


def test_an_export_that_is_refused_is_a_page(seeded_ledger: Server, seeded: Seeded) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as reader:
        wrong = reader.get("/events/export?format=csv&q=type:Nope", headers={"Accept": "text/html"})
        none = reader.get("/events/export?format=pdf", headers={"Accept": "text/html"})
    for page in (wrong, none):
        assert (page.status_code, page.headers["content-type"]) == (400, "text/html; charset=utf-8")
    assert "content-disposition" not in wrong.headers


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_role_reads_the_trail_as_far_as_it_may(seeded_ledger: Server, seeded: Seeded, role: str) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, role)) as reader:
        page = reader.get("/events", headers={"Accept": "text/html"})
        event = reader.get(f"/events/{seeded.running['position']}", headers={"Accept": "text/html"})
    if role == "brand":
        assert (page.status_code, event.status_code) == (403, 403)
    else:
        assert (page.status_code, event.status_code) == (200, 200)
        assert ("Take them along" in page.text) is (role != "creator")


def test_an_event_says_what_it_changed_and_leads_to_its_neighbours(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto("/events?q=type:Extended")
    follow(page.locator("tbody a.id").first)
    expect(page.get_by_role("heading", name="What it changed")).to_be_visible()
    row = page.locator("tbody tr", has_text="Expires at")
    expect(row.locator("td")).to_have_count(2)
    assert len(set(row.locator("td").all_inner_texts())) == 2
    position = int(page.url.rpartition("/")[2])
    follow(page.get_by_role("link", name=f"Event #{position + 1}"))
    expect(page.locator(".kicker")).to_contain_text(f"#{position + 1}")


def test_the_proof_of_an_event_is_a_file_once_the_log_covers_it(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    own_windows.server.serving.seal()
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/events/{code['position']}")
    expect(page.get_by_text("yes, signed")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Proof", exact=True).click()
    proof = downloading.value.path().read_text()
    asked = {"format": "tlog-proof"}
    assert proof == own_world.client.get(f"/v1/events/{code['position']}/proof", params=asked).text


def test_new_events_are_counted_and_nothing_moves_until_somebody_clicks(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    page = own_windows.open(own_windows.server.admin_key)
    with page.expect_response("**/live"):
        page.goto("/events")
    page.set_viewport_size({"width": 700, "height": 300})
    box = page.get_by_label("Search the trail")
    box.focus()
    page.evaluate("scrollTo(0, 120)")
    before = page.evaluate("[scrollY, document.querySelectorAll('tbody tr').length]")
    for number in range(100):
        own_world.share(code, f"brand-{number}", f"account-{number}")
    pill = page.locator("#live a")
    expect(pill).to_have_text("100 new events", timeout=60_000)
    assert page.evaluate("[scrollY, document.querySelectorAll('tbody tr').length]") == before
    assert page.evaluate("document.activeElement.id") == "query"
    follow(pill)
    expect(page.locator("tbody tr")).to_have_count(100)
    accesses = told(own_world.client.get("/v1/accesses", params={"route": "GET /v1/events"}), 200)["accesses"]
    assert len([one for one in accesses if one["query"].get("order") == "desc" and one["rows"] in {2, 100}]) == 2


def test_an_event_shows_its_cause_its_effects_and_its_stored_bytes(own_windows: Windows, own_world: World) -> None:
    code = own_world.running()
    asked = {"reason": "why", "force": True}
    position = told(own_world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=asked), 200)["position"]
    searched = {"at_least": position, "q": "type:Revoked"}
    until(lambda: own_world.client.get("/v1/events", params=searched).is_success)
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/events/{position}")
    effects = page.get_by_role("region", name="What followed from it")
    expect(effects.get_by_role("listitem")).to_have_text([f"#{position - 1} Campaign ended"])
    with psycopg.connect(own_world.server.database.dsn()) as connection:
        query = "SELECT e.body FROM events e JOIN ledgers l USING (ledger_id) WHERE l.name = %s AND e.position = %s"
        row = connection.execute(query, (own_world.server.ledger, position)).fetchone()
    assert row is not None
    stored = page.get_by_role("region", name="The stored body")
    expect(stored).to_have_text(row[0].decode())
    expect(page.get_by_text(hashlib.sha256(row[0]).hexdigest())).to_be_visible()
    follow(effects.get_by_role("link"))
    expect(page.locator(".facts")).to_contain_text(f"Because ofRevoked #{position}")


def test_numbers_and_order_of_json_stay_as_they_were_written() -> None:
    text = '{"b":123456789012345678901,"a":[1.50,{}, []],"c":"x\\"{,:","d":{"e":-0.0,"f":null}}'
    assert indented(text) == (
        '{\n  "b": 123456789012345678901,\n  "a": [\n    1.50,\n    {},\n    []\n  ],\n  "c": "x\\"{,:",\n  "d": {\n'
        '    "e": -0.0,\n    "f": null\n  }\n}'
    )
