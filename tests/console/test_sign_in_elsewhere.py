"""Signing in at an identity provider: who comes back is who was signed in there, and the access log names them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from infra.auth.key_commands import create_ledger
from infra.auth.oidc_client import OidcClient, SignedIn, SignInFailed
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.processes.worker import create_views
from tests.api.processes import serving_process
from tests.api.world import World, told
from tests.conftest import fresh_database
from tests.console.conftest import Browsers, follow
from tests.console.test_sign_in import new_key
from tests.infra.auth.issuing import issuing
from tests.infra.auth.provider import SECRET, Provider
from tests.keys import master_key_of
from tests.serving import Server

pytestmark = pytest.mark.long("a server starts, and an identity provider")


@dataclass(frozen=True)
class Place:
    """A process at which people sign in by a provider, and its administrator's key."""

    url: str
    provider: Provider
    admin_key: str


@pytest.fixture(scope="module")
def shared_place(cluster: EmbeddedPostgres) -> Iterator[Place]:
    """One for all tests of this module, since a process is costly to start."""
    with fresh_database(cluster) as database, issuing() as issuer:
        master = base64.b64encode(fresh_key()).decode()
        asyncio.run(create_views(database.dsn()))
        admin = asyncio.run(create_ledger(database.dsn(), master_key_of(master), "main"))
        provider = Provider(issuer)
        configured = provider.configured(role_claim="groups", roles={"legal": "auditor", "feeds": "subscriber"})
        issuers = json.dumps([configured.model_dump(mode="json", exclude_unset=True) | {"client_secret": SECRET}])
        migrate(database.dsn(), issuers=configured.grants())
        with serving_process(database, master, oidc_issuers=issuers) as url:
            yield Place(url, provider, admin)


@pytest.fixture
def place(shared_place: Place) -> Place:
    shared_place.provider.claims, shared_place.provider.declines = {}, False
    return shared_place


def test_a_person_signs_in_without_javascript_and_the_access_log_names_them(place: Place, browsers: Browsers) -> None:
    place.provider.claims = {"sub": "lea@legal.example", "groups": ["legal"]}
    context = browsers.browser().new_context(base_url=place.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/codes?state=revoked")
    follow(page.get_by_role("link", name="Sign in with Acme ID"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Codes")
    assert page.url == f"{place.url}/codes?state=revoked"
    page.locator("details.who summary").click()
    expect(page.locator("details.who")).to_contain_text("in the role auditor")
    cookies = context.cookies()
    assert [cookie["httpOnly"] for cookie in cookies] == [True]
    assert all("begun" not in cookie["name"] for cookie in cookies)
    context.close()
    with httpx.Client(base_url=place.url, headers={"Authorization": f"Bearer {place.admin_key}"}) as admin:
        asked = {"route": "GET /sign-in/done"}
        (access,) = told(admin.get("/v1/accesses", params=asked), 200)["accesses"]
        keys = told(admin.get("/v1/keys"), 200)["keys"]
    named = {key["key_id"]: key["subject"] for key in keys}
    assert named[access["actor"]["key_id"]] == "lea@legal.example"


@pytest.mark.parametrize(
    ("claims", "declines", "says"),
    [
        ({"groups": []}, False, "your account opens nothing here"),
        ({"groups": ["feeds"]}, False, "which is for programs"),
        ({"groups": ["legal"]}, True, "did not sign you in"),
    ],
)
def test_who_cannot_read_here_is_told_why(place: Place, claims: dict[str, Any], declines: bool, says: str) -> None:
    place.provider.claims, place.provider.declines = claims, declines
    with httpx.Client(base_url=place.url, follow_redirects=True, trust_env=False, timeout=20) as browser:
        page = browser.get("/sign-in/with/0")
        assert (page.status_code, says in page.text) == (403, True)
        assert browser.get("/codes", follow_redirects=False).status_code == 303


def test_a_link_signs_nobody_in_who_did_not_begin(place: Place) -> None:
    place.provider.claims = {"groups": ["legal"]}
    with (
        httpx.Client(base_url=place.url, trust_env=False, timeout=20) as attacker,
        httpx.Client(base_url=place.url, trust_env=False, timeout=20) as victim,
    ):
        there = attacker.get(attacker.get("/sign-in/with/0").headers["location"])
        victim.get("/sign-in/with/0")
        page = victim.get(there.headers["location"])
        assert (page.status_code, "began in another browser" in page.text) == (403, True)
        assert victim.get(there.headers["location"]).status_code == 403
        assert attacker.get("/sign-in/with/1").status_code == 404


class Renewing:
    """Stands for the client of an identity provider that renews tokens, as often as it is let."""

    def __init__(self, client: OidcClient, token: str) -> None:
        self.issuer = client.issuer
        self.name = client.name
        self.token = token
        self.asked: list[str] = []
        self.refuses = False

    async def renew(self, renewal: str) -> SignedIn:
        self.asked.append(renewal)
        if self.refuses:
            raise SignInFailed("no")
        return SignedIn(self.token, f"{renewal}+")


def test_a_token_that_expired_is_renewed_once_for_all_pages_and_the_session_ends_with_the_account(
    server: Server, own_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_key(own_world)
    with issuing() as issuer:
        client = OidcClient(Provider(issuer).configured())
    renewing = Renewing(client, made["key"])
    console = server.serving.console
    monkeypatch.setattr(console, "clients", [renewing])

    async def begin() -> str:
        key = await server.serving.api.authenticator.authenticate(made["key"], server.clock())
        assert key is not None
        return await console.sessions.begin(key, "ey.of.before", (client.issuer.issuer, "r"))

    name = f"sparkledger-{server.url.rpartition(':')[2]}"
    cookies = {name: server.serving.call(begin())}
    with httpx.Client(base_url=server.url, cookies=cookies, trust_env=False, timeout=20) as browser:
        assert [browser.get("/").status_code for _ in range(3)] == [200, 200, 200]
        assert renewing.asked == ["r"]
        told(own_world.client.delete(f"/v1/keys/{made['key_id']}"), 204)
        renewing.refuses = True
        assert browser.get("/").headers["location"] == "/sign-in?ended=1"
        assert renewing.asked == ["r", "r+"]
