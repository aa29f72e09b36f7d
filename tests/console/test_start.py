"""The start page: what one holds is found, and what needs attention is counted as the lists have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from tests.api.world import told
from tests.console.conftest import Windows
from tests.console.seed import ACCOUNT, BRAND, CREATOR, OTHER_CREATOR, VIDEO, Seeded
from tests.serving import Server

OURS = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
SUBJECTS: dict[str, dict[str, list[str]]] = {
    "admin": {},
    "operator": {},
    "auditor": {},
    "brand": {"brand_ids": [BRAND], "advertiser_ids": [ACCOUNT]},
    "creator": {"creator_ids": [CREATOR]},
}


def key_of(server: Server, role: str, name: str = "A person") -> str:
    """Return a fresh key of a role, for the subjects of the seeded ledger."""
    with server.client() as client:
        made = client.post("/v1/keys", json={"role": role, "name": name, "subjects": SUBJECTS[role]})
        return str(told(made, 201)["key"])


@contextmanager
def visitor(server: Server, key: str) -> Iterator[httpx.Client]:
    """Open a client without JavaScript that is signed in."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        assert client.post("/sign-in", data={"key": key}, headers=OURS).status_code == 303
        yield client


def _find(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/find", data={"q": text}, headers=OURS)


def test_whatever_one_holds_is_found_in_one_step(seeded_ledger: Server, seeded: Seeded) -> None:
    code = f"/codes/{seeded.running['code_id']}"
    leads: dict[str, str] = {
        seeded.running["code_id"]: code,
        seeded.running["code_id"].upper(): code,
        VIDEO: code,
        f"https://www.tiktok.com/@{CREATOR}/video/{VIDEO}?is_from_webapp=1": code,
        seeded.running["secret"]: code,
        CREATOR: f"/codes?creator_id={CREATOR}",
        f"@{CREATOR.upper()}": f"/codes?creator_id={CREATOR}",
        f"https://www.tiktok.com/@{CREATOR}": f"/codes?creator_id={CREATOR}",
        ACCOUNT: f"/codes?advertiser_id={ACCOUNT}",
        BRAND: f"/codes?brand_id={BRAND}",
        "spring-sale": "/campaigns?campaign_id=spring-sale",
        "12": "/events/12",
        "#1,204": "/events/1204",
    }
    with visitor(seeded_ledger, seeded_ledger.admin_key) as client:
        found = {text: _find(client, text).headers.get("location") for text in leads}
    assert found == leads


@pytest.mark.parametrize("text", ["nobody.knows", "9" * 19, "#a/secret+that=nobody/knows==", "f" * 32, "<script>"])
def test_what_is_not_found_is_said_without_repeating_it(seeded_ledger: Server, text: str) -> None:
    with visitor(seeded_ledger, seeded_ledger.admin_key) as client:
        answer = _find(client, text)
    assert (answer.status_code, "Nothing found" in answer.text, f">{text}<" in answer.text) == (404, True, False)


def test_a_role_that_cannot_look_up_is_told_so_and_the_secret_is_looked_up_nowhere(
    seeded_ledger: Server, seeded: Seeded
) -> None:
    with visitor(seeded_ledger, key_of(seeded_ledger, "auditor")) as client:
        answer = _find(client, seeded.running["secret"])
    assert (answer.status_code, "cannot be looked up by its secret" in answer.text) == (403, True)
    assert seeded.running["secret"] not in answer.text


@pytest.mark.parametrize("role", SUBJECTS)
def test_each_count_leads_to_the_list_of_exactly_so_many(windows: Windows, seeded_ledger: Server, role: str) -> None:
    key = key_of(seeded_ledger, role)
    page = windows.open(key, java_script_enabled=False)
    page.goto("/")
    expect(page.get_by_role("heading", name="Needs attention")).to_be_visible()
    counted = {
        str(link.get_attribute("href")): str(link.locator("b").text_content()) for link in page.locator("a.count").all()
    }
    with seeded_ledger.client(key) as client:
        listed = {address: str(_rows(client, address)) for address in counted}
    assert counted == listed


def _rows(client: httpx.Client, address: str) -> int:
    parts = urlsplit(address)
    answer: dict[str, Any] = told(client.get(f"/v1{parts.path}", params=dict(parse_qsl(parts.query))), 200)
    return len(answer[parts.path.strip("/")])


def test_opening_it_is_one_entry_for_each_list(seeded_ledger: Server) -> None:
    key = key_of(seeded_ledger, "auditor", "Counted")
    with visitor(seeded_ledger, key) as client:
        for _ in range(5):
            assert client.get("/").status_code == 200
    seeded_ledger.serving.call(seeded_ledger.serving.api.reads.write())
    with seeded_ledger.client() as administrator:
        accesses = told(administrator.get("/v1/accesses", params={"limit": 500}), 200)["accesses"]
    ours = [one for one in accesses if one["actor"]["key_name"] == "Counted" and one["route"].startswith("GET /v1/")]
    reads = [(one["route"], str(one["query"])) for one in ours]
    # Two minutes, where one ended meanwhile.
    assert len(set(reads)) == 5
    assert len(reads) <= 10


def test_names_that_several_things_have_are_a_choice(own_windows: Windows, server: Server) -> None:
    with server.client() as client:
        told(client.put(f"/v1/creators/{OTHER_CREATOR}/permission", json={"enabled": True}), 200)
        asked = {"creator_id": OTHER_CREATOR, "video_id": VIDEO, "terms_version": "1"}
        code = told(client.post("/v1/codes", json=asked), 201)
        share = {"brand_id": OTHER_CREATOR, "channel": "dm"}
        position = told(client.post(f"/v1/codes/{code['code_id']}/shares", json=share), 201)["position"]
        told(client.get("/v1/codes", params={"at_least": position}), 200)
    page = own_windows.open(server.admin_key)
    page.goto("/")
    page.get_by_role("search").get_by_role("textbox").fill(OTHER_CREATOR)
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", name="Several things have this name")).to_be_visible()
    assert page.locator(".choices a").count() == 2
