"""Signing in and out, as people do it: in a browser, with and without JavaScript."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect
from starlette.requests import Request

from api.console.cookies import cookie_name
from api.console.origins import refuse_forged
from api.console.visit import local_address
from api.http.headers import by_name
from api.http.limits import Limit
from api.http.problems import Problem
from tests.api.processes import serving_process
from tests.api.world import World, told
from tests.console.conftest import Windows, follow, sign_in
from tests.serving import Server

SIGN_IN = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}


def new_key(world: World, role: str = "auditor", **subjects: Any) -> dict[str, Any]:
    return told(world.client.post("/v1/keys", json={"role": role, "name": "Legal", "subjects": subjects}), 201)


def is_sign_in(page: Page) -> bool:
    return page.get_by_label("API key").count() == 1


def signed_in(client: httpx.Client, key: str, **headers: str) -> httpx.Response:
    return client.post("/sign-in", data={"key": key, "next": "/"}, headers=SIGN_IN | headers)


@pytest.fixture
def browserless(server: Server) -> Any:
    """A client that keeps cookies, and sends what a test says of origins."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as client:
        yield client


@pytest.mark.parametrize("javascript", [True, False])
def test_a_key_signs_in_says_as_whom_and_leads_to_what_was_asked_for(
    own_windows: Windows, own_world: World, javascript: bool
) -> None:
    page = own_windows.open(java_script_enabled=javascript)
    page.goto("/?from=a-mail")
    page.get_by_label("API key").fill(new_key(own_world)["key"])
    follow(page.get_by_role("button", name="Sign in"))
    assert page.url.endswith("/?from=a-mail")
    page.locator("details.who summary").click()
    expect(page.locator("details.who")).to_contain_text("in the role auditor")


@pytest.mark.parametrize("javascript", [True, False])
def test_after_signing_out_the_browser_shows_nothing_of_before(
    own_windows: Windows, own_world: World, javascript: bool
) -> None:
    page = own_windows.open(java_script_enabled=javascript)
    sign_in(page, new_key(own_world)["key"])
    page.locator("details.who summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out.")
    page.go_back()
    assert is_sign_in(page)
    assert page.context.cookies() == []


def test_a_cookie_is_good_no_more_after_signing_out(browserless: httpx.Client, server: Server) -> None:
    signed_in(browserless, server.admin_key)
    kept = dict(browserless.cookies)
    browserless.post("/sign-out", headers=SIGN_IN)
    browserless.cookies.update(kept)
    assert browserless.get("/").headers["location"] == "/sign-in?ended=1"


def test_a_revoked_key_ends_the_page_and_the_session_of_everyone_who_signed_in_with_it(
    own_windows: Windows, own_world: World
) -> None:
    key = new_key(own_world)
    page = own_windows.open(key["key"])
    without = own_windows.open(key["key"], java_script_enabled=False)
    with page.expect_response("**/live"):
        page.goto("/")
    without.goto("/")
    told(own_world.client.delete(f"/v1/keys/{key['key_id']}"), 204)
    # By the live channel: nobody clicks here. Two seconds is what is promised.
    expect(page.get_by_label("API key")).to_be_visible(timeout=2_000)
    expect(page.get_by_role("status")).to_contain_text("Your session has ended")
    without.goto("/")
    assert is_sign_in(without)


def test_signing_out_in_one_tab_ends_the_others(own_windows: Windows, own_world: World) -> None:
    page = own_windows.open(new_key(own_world)["key"])
    page.goto("/")
    other = page.context.new_page()
    with other.expect_response("**/live"):
        other.goto("/")
    page.locator("details.who summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(other.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("slk_wrong", "This key opens nothing here."),
        ("   ", "Paste the key that you were given."),
        ("ключ", "This key opens nothing here."),
    ],
)
def test_a_key_that_opens_nothing_is_told_so(browserless: httpx.Client, key: str, says: str) -> None:
    answer = signed_in(browserless, key)
    assert answer.status_code in {403, 422}
    assert says in answer.text
    assert key.strip() == "" or key not in answer.text
    assert answer.headers.get("set-cookie") is None


def test_the_key_of_a_program_is_told_what_to_ask_for(browserless: httpx.Client, server: Server) -> None:
    answer = signed_in(browserless, server.key("subscriber"))
    assert (answer.status_code, "Ask for a key with the role auditor" in answer.text) == (403, True)


def test_whoever_tries_many_wrong_keys_waits(
    browserless: httpx.Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.serving.console, "wrong_keys", Limit(2, 1e-6))
    answers = [signed_in(browserless, f"slk_wrong{n}").status_code for n in range(3)]
    assert answers == [403, 403, 429]


@pytest.mark.parametrize(
    ("origin", "refused"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://console.example"}, True),
        ({"Origin": "https://console.example"}, False),
        ({"Origin": "http://console.example"}, True),
        ({"Origin": "https://console.example:444"}, True),
        ({"Origin": "null"}, True),
        ({}, True),
    ],
)
def test_only_our_own_pages_change_anything(origin: dict[str, str], refused: bool) -> None:
    assert _is_refused("POST", origin) is refused


@pytest.mark.parametrize(
    ("origin", "refused"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, True),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, True),
    ],
)
def test_other_sites_can_link_to_a_page_and_read_none(origin: dict[str, str], refused: bool) -> None:
    assert _is_refused("GET", origin) is refused


def _is_refused(method: str, origin: dict[str, str]) -> bool:
    try:
        refuse_forged(_request("https", "console.example", method=method, **origin))
    except Problem as problem:
        return problem.code == "not_allowed"
    return False


def _request(scheme: str, host: str, method: str = "GET", **headers: str) -> Request:
    given = [(name.lower().encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    scope: dict[str, Any] = {"type": "http", "scheme": scheme, "method": method, "headers": given}
    by_name(scope)
    return Request(scope)


@pytest.mark.parametrize(
    ("scheme", "host", "name"),
    [
        ("https", "console.example", "__Host-sparkledger"),
        ("https", "127.0.0.1:8443", "__Host-sparkledger"),
        ("http", "127.0.0.1:8080", "sparkledger-8080"),
        ("http", "127.8.9.1:8081", "sparkledger-8081"),
        ("http", "[::1]:8080", "sparkledger-8080"),
        ("http", "localhost", "sparkledger-80"),
        ("http", "console.example", None),
        ("http", "10.0.0.7:8080", None),
        ("http", "127.0.0.1.example:8080", None),
        ("http", "localhost.example", None),
        ("http", "", None),
    ],
)
def test_how_the_console_is_reached_decides_the_cookie(scheme: str, host: str, name: str | None) -> None:
    assert cookie_name(_request(scheme, host)) == name


def test_on_this_machine_the_cookie_bears_the_port_and_no_script_reads_it(
    browserless: httpx.Client, server: Server
) -> None:
    answer = signed_in(browserless, server.admin_key)
    name, _, attributes = answer.headers["set-cookie"].partition("=")
    assert name == f"sparkledger-{server.url.rpartition(':')[2]}"
    assert attributes.partition("; ")[2] == "HttpOnly; Path=/; SameSite=lax"


def test_over_plain_http_from_elsewhere_nobody_signs_in(browserless: httpx.Client, server: Server) -> None:
    elsewhere = {"Host": "console.example"}
    page = browserless.get("/sign-in", headers=elsewhere)
    assert ('name="key"' in page.text, "SPARKLEDGER_TRUSTED_PROXIES" in page.text) == (False, True)
    answer = signed_in(browserless, server.admin_key, **elsewhere)
    assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None)


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/codes?limit=5", "/codes?limit=5"),
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/v1/codes", "/"),
        ("/a\r\nb", "/"),
        ("", "/"),
    ],
)
def test_signing_in_leads_to_no_other_site(wanted: str, leads_to: str) -> None:
    assert local_address(wanted) == leads_to


def test_a_cookie_opens_nothing_of_the_api(browserless: httpx.Client, server: Server) -> None:
    signed_in(browserless, server.admin_key)
    assert browserless.get("/").status_code == 200
    assert browserless.get("/v1/codes").status_code == 401


def test_the_access_log_says_who_signed_in_and_out(browserless: httpx.Client, server: Server, own_world: World) -> None:
    key = new_key(own_world)
    signed_in(browserless, key["key"])
    browserless.post("/sign-out", headers=SIGN_IN)
    accesses = told(own_world.client.get("/v1/accesses", params={"actor": key["key_id"]}), 200)["accesses"]
    assert [one["route"] for one in accesses if "sign" in one["route"]] == ["POST /sign-out", "POST /sign-in"]
    filtered = told(own_world.client.get("/v1/accesses", params={"route": "POST /sign-in"}), 200)["accesses"]
    assert [one["actor"]["key_name"] for one in filtered] == ["Legal"]


def test_pages_may_load_nothing_from_elsewhere_and_run_no_script_but_ours(
    browserless: httpx.Client, server: Server
) -> None:
    signed_in(browserless, server.admin_key)
    policies = [browserless.get("/").headers for _ in range(2)]
    nonces = {headers["content-security-policy"].partition("'nonce-")[2].partition("'")[0] for headers in policies}
    assert len(nonces) == 2
    policy = policies[0]["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert policies[0].get_list("referrer-policy") == ["same-origin"]
    assert policies[0]["cache-control"] == "no-store"


@pytest.mark.long("three servers start")
def test_two_servers_on_two_ports_keep_two_sessions_and_a_restart_keeps_them(
    own_windows: Windows, own_world: World, server: Server
) -> None:
    here, there = new_key(own_world), new_key(own_world)
    master = server.serving.master_key_text
    page = own_windows.open(here["key"])
    page.goto("/")
    with serving_process(server.database, master) as url:
        other = page.context.new_page()
        other.goto(f"{url}/sign-in")
        other.get_by_label("API key").fill(there["key"])
        other.get_by_role("button", name="Sign in").click()
        expect(other.locator("details.who")).to_be_visible()
    port = url.rpartition(":")[2]
    with serving_process(server.database, master, port=port):
        other.reload()
        expect(other.locator("details.who")).to_be_visible()
        other.locator("details.who summary").click()
        other.get_by_role("button", name="Sign out").click()
        page.reload()
        expect(page.locator("details.who")).to_be_visible()


def test_a_browser_is_answered_with_a_page_and_a_program_with_json(
    own_windows: Windows, browserless: httpx.Client
) -> None:
    page = own_windows.open()
    answer = page.goto("/nowhere")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading")).to_have_text("Route unknown")
    assert browserless.get("/nowhere").headers["content-type"] == "application/problem+json"
    asked = {"Accept": "text/html"}
    assert browserless.get("/v1/nowhere", headers=asked).headers["content-type"] == "application/problem+json"


def test_an_idle_session_ends(browserless: httpx.Client, server: Server) -> None:
    signed_in(browserless, server.admin_key)
    with psycopg.connect(server.database.dsn(), autocommit=True) as owner:
        owner.execute("UPDATE console_sessions SET used_at = now() - interval '31 minutes'")
    assert browserless.get("/").headers["location"] == "/sign-in?ended=1"
