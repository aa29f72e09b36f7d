"""The question: a verdict with its reason and evidence, at an address that keeps all three."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.api.world import World, told
from tests.console.conftest import Windows, follow
from tests.console.seed import ACCOUNT, OTHER_VIDEO, VIDEO, Seeded
from tests.console.test_start import key_of, visitor
from tests.serving import Server
from tests.waiting import until


def _ask(page: Page, video_id: str, advertiser_id: str) -> None:
    follow(page.get_by_role("link", name="Ask the question"))
    page.get_by_label("Video").fill(video_id)
    page.get_by_label("Advertiser account").fill(advertiser_id)
    follow(page.get_by_role("button", name="Ask"))


def _told(page: Page) -> tuple[str, list[str]]:
    """Return the verdict and the evidence of a page."""
    heading = page.get_by_role("heading", level=1).inner_text()
    rows = page.locator("#evidence ~ .table tbody tr").all_inner_texts()
    return heading, [re.sub(r"\s+", " ", row) for row in rows]


@pytest.mark.long("a browser goes through every answer")
def test_it_says_yes_or_no_why_and_what_proves_it_without_javascript(windows: Windows) -> None:
    page = windows.open(key_of(windows.server, "auditor"), java_script_enabled=False)
    page.goto("/")
    _ask(page, f"https://www.tiktok.com/@ana.creates/video/{VIDEO}", ACCOUNT)
    heading, evidence = _told(page)
    assert heading == "Yes, it was authorized"
    assert any("Advertiser adv-7001 redeemed the code." in row for row in evidence)
    page.goto("/")
    _ask(page, OTHER_VIDEO, ACCOUNT)
    assert _told(page)[0] == "No: the code was revoked"
    page.goto("/")
    _ask(page, "7312345678901234999", ACCOUNT)
    assert _told(page) == ("No: no code is recorded", [])


def test_its_address_gives_the_same_answer_after_later_events(own_windows: Windows, own_world: World) -> None:
    code = own_world.running()
    # The form has whole seconds.
    until(lambda: datetime.now(UTC).replace(microsecond=0) > datetime.fromisoformat(code["starts_at"]))
    page = own_windows.open(own_windows.server.admin_key)
    page.goto(f"/question?video_id={code['video_id']}&advertiser_id=account-own")
    before, address = _told(page), page.url
    assert before[0] == "Yes, it was authorized"
    asked = {"reason": "Wrong brand", "force": True, "effective_at": code["starts_at"]}
    told(own_world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=asked), 200)
    page.goto(address)
    assert _told(page) == before
    follow(page.get_by_role("button", name="Ask again, as known now"))
    assert _told(page)[0] == "No: the code was revoked"


def test_a_time_of_the_form_is_in_utc_with_or_without_seconds(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(windows.server.admin_key, timezone_id="Asia/Kolkata")
    page.goto("/question")
    for entered, asked in (
        ("2026-03-01T12:00", "2026-03-01T12:00:00Z"),
        ("2026-03-01T12:00:30", "2026-03-01T12:00:30Z"),
    ):
        page.get_by_label("Video").fill(VIDEO)
        page.get_by_label("Advertiser account").fill(ACCOUNT)
        page.get_by_label("When").fill(entered)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator(".kicker time")).to_have_attribute("datetime", asked)


def test_it_is_recorded_once(seeded_ledger: Server) -> None:
    key = key_of(seeded_ledger, "operator", "One who asks")
    with visitor(seeded_ledger, key) as client:
        answer = client.get(f"/question?video_id={VIDEO}&advertiser_id={ACCOUNT}", follow_redirects=True)
    assert "Yes, it was authorized" in answer.text
    with seeded_ledger.client() as administrator:
        asked = {"route": "GET /v1/authorizations", "limit": "100"}
        accesses = told(administrator.get("/v1/accesses", params=asked), 200)["accesses"]
    assert len([one for one in accesses if one["actor"]["key_name"] == "One who asks"]) == 1


def test_a_question_that_cannot_be_asked_says_what_is_wrong_at_its_field(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/question?video_id={VIDEO}&advertiser_id=not+an+id&at=2026-03-01T12:00")
    expect(page.get_by_role("alert")).to_contain_text("Advertiser account:")
    expect(page.get_by_label("Video")).to_have_value(VIDEO)


def test_a_verdict_prints_on_one_page(windows: Windows) -> None:
    page = windows.open(windows.server.admin_key)
    page.goto(f"/question?video_id={VIDEO}&advertiser_id={ACCOUNT}")
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1


def test_a_brand_sees_its_own_evidence_and_no_more_than_the_reason_of_others(windows: Windows, seeded: Seeded) -> None:
    page = windows.open(key_of(windows.server, "brand"))
    page.goto(f"/question?video_id={VIDEO}&advertiser_id={ACCOUNT}")
    assert _told(page)[0] == "Yes, it was authorized"
    page.goto(f"/question?video_id={seeded.unshared['video_id']}&advertiser_id={ACCOUNT}")
    assert _told(page) == ("No: this account had not redeemed the code", [])


@pytest.mark.long("ten thousand questions are answered")
def test_a_file_of_ten_thousand_lines_comes_back_with_counts_and_its_wrong_lines(
    seeded_ledger: Server,
) -> None:
    lines = [f"{VIDEO},{ACCOUNT},", f"{OTHER_VIDEO},{ACCOUNT},", "no video,adv,"] + [f"{VIDEO},{ACCOUNT},"] * 9_997
    file = ("agency.csv", "\n".join(["video_id,advertiser_id,at", *lines]), "text/csv")
    with visitor(seeded_ledger, seeded_ledger.admin_key) as client:
        counts = _send(client, file, "counts")
        answers = _send(client, file, "file")
        nothing = _send(client, ("empty.csv", "", "text/csv"), "counts")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", counts.text))
    assert "9,998 of 10,000 were authorized" in text
    assert "No 1 Lines with an error 1" in text
    assert re.search(r"What is wrong 4 ", text)
    assert answers.headers["content-disposition"] == 'attachment; filename="answers.csv"'
    assert len(answers.text.splitlines()) == 10_001
    assert nothing.status_code == 400


def _send(client: httpx.Client, file: tuple[str, str, str], want: str) -> httpx.Response:
    headers = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
    return client.post("/question/file", files={"file": file}, data={"want": want}, headers=headers)
