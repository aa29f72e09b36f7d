"""A code's dossier: its life as a drawing, and how it stood at one time, as known at another."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import expect

from api.console.lifeline import APART, Axis, axis_of, lanes_of
from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import Seeded
from tests.console.test_start import SUBJECTS, key_of, visitor
from tests.serving import Server


def test_the_drawing_has_the_whole_life_and_every_mark_is_a_named_link(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/codes/{seeded.running['code_id']}")
    names: list[str] = page.locator(".life a").evaluate_all(
        "links => links.map(link => link.getAttribute('aria-label'))"
    )
    assert [name.partition(":")[0].partition(",")[0] for name in names] == [
        "Window",
        "Extended",
        "Code generated",
        names[3].partition(":")[0].partition(",")[0],
        "Shared",
        "Redeemed",
        "Campaign Spring sale",
        "Campaign Spring sale",
    ]
    assert all(str(link.get_attribute("href")).startswith("#event") for link in page.locator(".life a").all())


def test_what_was_recorded_late_is_marked(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/codes/{seeded.revoked['code_id']}")
    expect(page.locator("#events ~ .table tbody tr", has_text="The code was revoked.")).to_contain_text(
        "late by 5 days"
    )


@pytest.mark.parametrize("javascript", [True, False])
def test_it_says_where_todays_knowledge_differs_from_what_was_known_then(
    own_windows: Windows, own_world: World, javascript: bool
) -> None:
    code = own_world.running()
    known = own_world.head()
    asked = {"reason": "Wrong brand", "force": True, "effective_at": code["starts_at"]}
    told(own_world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=asked), 200)
    page = own_windows.open(own_windows.server.admin_key, java_script_enabled=javascript)
    page.goto(f"/codes/{code['code_id']}?as_of={known}")
    expect(page.locator(".stated")).to_contain_text("Redeemed")
    expect(page.locator(".differs")).to_contain_text("Today the ledger knows more about that moment.")
    expect(page.locator(".differs")).to_contain_text("State: then redeemed, today revoked")
    follow(page.locator("fieldset", has_text="As known on").get_by_role("link", name="Now"))
    expect(page.locator(".stated")).to_contain_text("Revoked")
    assert page.locator(".differs").count() == 0
    assert "as_of" not in page.url


def test_a_time_before_it_began_or_was_known_is_said_so(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/codes/{seeded.running['code_id']}?at=2020-01-01T00:00")
    expect(page.locator(".stated")).to_contain_text("At that time the code had not begun.")
    page.goto(f"/codes/{seeded.running['code_id']}?as_of=1")
    expect(page.locator(".stated")).to_contain_text("nothing of this code had been recorded")


def test_moving_the_times_by_keyboard_keeps_the_focus_and_the_place(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/codes/{seeded.running['code_id']}")
    step = page.locator("#step-at-2")
    step.focus()
    scrolled = page.evaluate("scrollY")
    for day in (1, 2):
        with page.expect_response(lambda answer: "/codes/" in answer.url):
            page.keyboard.press("Enter")
        wanted = (datetime.now(UTC) - timedelta(days=day)).strftime("%Y-%m-%d")
        page.wait_for_function("day => document.getElementById('at').value.startsWith(day)", arg=wanted)
        assert page.evaluate("document.activeElement.id") == "step-at-2"
    assert page.evaluate("scrollY") == scrolled


def test_a_hundred_moves_are_one_entry_a_minute(seeded_ledger: Server, seeded: Seeded) -> None:
    key = key_of(seeded_ledger, "auditor")
    path = f"/codes/{seeded.running['code_id']}"
    with visitor(seeded_ledger, key) as client:
        moved = {"HX-Request": "true"}
        for number in range(100):
            at = (seeded.now - timedelta(hours=number)).isoformat()
            assert client.get(path, params={"at": at}, headers=moved).status_code == 200
    serving = seeded_ledger.serving
    serving.call(serving.api.reads.write())
    with seeded_ledger.client() as administrator:
        asked = {"code_id": seeded.running["code_id"], "route": "GET /v1/codes/{code_id}"}
        accesses = told(administrator.get("/v1/accesses", params=asked), 200)["accesses"]
    by_key: dict[str, list[int]] = {}
    for one in accesses:
        by_key.setdefault(one["actor"]["key_id"], []).append(one["reads"])
    (entries,) = [reads for reads in by_key.values() if sum(reads) == 100]
    # One a minute: two or three if the moves took longer than what was left of the first.
    assert len(entries) <= 5


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_role_reads_what_it_may(windows: Windows, seeded: Seeded, role: str) -> None:
    page = windows.open(key_of(windows.server, role))
    page.goto(f"/codes/{seeded.running['code_id']}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("ana.creates")
    page.goto(f"/codes/{seeded.unshared['code_id']}")
    heading = "Not allowed" if role in {"brand", "creator"} else "cleo.cooks"
    expect(page.get_by_role("heading", level=1)).to_contain_text(heading)


def test_hostile_text_is_shown_and_does_nothing(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key)
    page.on("dialog", lambda dialog: windows.errors.append(f"a dialog: {dialog.message}"))
    page.goto(f"/codes/{seeded.hostile['code_id']}")
    note = page.locator("q").last
    expect(note).to_contain_text("<script>alert(1)</script>")
    expect(note.locator(".hidden-character").first).to_have_text("U+202E")
    expect(note).to_contain_text("more characters")
    assert page.locator("main img").count() == 0


def test_a_long_history_shows_few_rows_and_leads_on(own_windows: Windows, own_world: World) -> None:
    code = own_world.generate()
    for number in range(110):
        own_world.share(code, f"brand-{number}", f"account-{number}")
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/codes/{code['code_id']}")
    assert page.locator("tbody tr").count() == 100
    assert page.locator("*").count() < 2_000
    follow(page.get_by_role("link", name="The next events"))
    assert page.locator("tbody tr").count() == 11


def _group(position: int, type_: str, at: datetime) -> dict[str, Any]:
    stated = at.isoformat()
    return {"position": position, "type": type_, "begins": stated, "ends": stated, "count": 1, "late": 0}


def test_marks_that_would_touch_are_one_that_leads_to_the_list() -> None:
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    axis = Axis(begins, begins + timedelta(days=100))
    code: dict[str, Any] = {
        "starts_at": begins.isoformat(),
        "expires_at": (begins + timedelta(days=100)).isoformat(),
        "generated_at": begins.isoformat(),
        "revoked_at": None,
        "campaigns": [],
    }
    spread = [_group(number, "Shared", begins + timedelta(hours=number)) for number in range(1, 2_000)]
    lanes = {lane.name: lane for lane in lanes_of(code, spread, [], axis, lambda position: f"#event-{position}")}
    marks = lanes["Shared"].marks
    assert sum(mark.count for mark in marks) == 1_999
    assert all(later.x - earlier.x >= APART for earlier, later in itertools.pairwise(marks))
    assert marks[0].address == "#event-1"
    assert axis_of(code, spread, begins).begins < begins


def test_a_code_without_its_text_offers_to_attach_it_and_to_redeem_without_it(own_world: World) -> None:
    code = own_world.without_secret()
    path = f"/codes/{code['code_id']}"
    with visitor(own_world.server, own_world.server.admin_key) as reader:
        page = reader.get(path).text
        assert "A code whose text is not known" in page
        assert [f'href="{path}/{name}"' in page for name in ("secret", "redeem", "reveal")] == [True, True, False]
        assert [reader.get(f"{path}/{name}").status_code for name in ("secret", "redeem")] == [200, 200]
