"""Ledgers on several servers: each key is answered by the server of its ledger, whatever it shows the key in."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql

from api.http.homes import Homes
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import WORKER
from infra.proof.sealer import Sealer, SealerSettings
from infra.proof.tree_store import TreeStore
from tests.api.processes import serving_process
from tests.api.streaming import following
from tests.conftest import TestDatabase
from tests.infra.auth.issuing import issuing
from tests.infra.auth.provider import SECRET, Provider
from tests.places import directory
from tests.servers import MAIN, OTHER, Installation, installation
from tests.serving import http_client
from tests.waiting import until

pytestmark = pytest.mark.long("two database servers run, with a ledger each")

ACCOUNT = "/v1/advertisers/6900000000000000001"
SIGN_IN = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """An identity provider, whose tokens name the ledger."""
    with issuing() as issuer:
        yield Provider(issuer)


@pytest.fixture(scope="module")
def servers(cluster: EmbeddedPostgres, provider: Provider) -> Iterator[Installation]:
    place = directory("servers")
    configured = provider.configured(
        role_claim="groups",
        roles={"legal": "auditor"},
        ledger_claim="ledger",
        ledgers={MAIN: MAIN, OTHER: OTHER},
    )
    issuer = configured.model_dump(mode="json", exclude_unset=True) | {"client_secret": SECRET}
    with installation(cluster, place) as made:
        made.settings["OIDC_ISSUERS"] = json.dumps([issuer])
        made.command("migrate")
        yield made
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def url(servers: Installation) -> Iterator[str]:
    """One API process for both servers."""
    settings = {
        "databases": servers.settings["DATABASES"],
        "database_url": "",
        "oidc_issuers": servers.settings["OIDC_ISSUERS"],
    }
    with serving_process(servers.a, servers.settings["MASTER_KEY"], **settings) as address:
        yield address


def named(url: str, key: str, brand: str) -> int:
    """Record whose an account is, and return the position."""
    with http_client(url, key) as client:
        answer = client.put(ACCOUNT, json={"brand_id": brand})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["position"])


def brand_of(url: str, key: str) -> str:
    with http_client(url, key) as client:
        answer = client.get(ACCOUNT)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["brand_id"])


def test_commands_and_reads_go_to_the_server_of_the_keys_ledger(servers: Installation, url: str) -> None:
    for ledger in (MAIN, OTHER):
        named(url, servers.keys[ledger], f"brand-of-{ledger}")
    assert {ledger: brand_of(url, servers.keys[ledger]) for ledger in (MAIN, OTHER)} == {
        MAIN: f"brand-of-{MAIN}",
        OTHER: f"brand-of-{OTHER}",
    }
    ids = [one.sql("SELECT DISTINCT ledger_id FROM events") for one in (servers.a, servers.b)]
    assert ids == [[(1,)], [(1_000_001,)]]


def test_a_key_that_no_server_knows_opens_nothing(url: str) -> None:
    with http_client(url, "slk_unknown") as client:
        assert client.get(ACCOUNT).status_code == 401


async def test_a_server_that_fails_does_not_hide_what_another_one_knows() -> None:
    def app(server: str) -> FastAPI:
        made = FastAPI()
        made.state.services = SimpleNamespace(server=server)
        return made

    failing, knowing = app("failing"), app("knowing")

    async def knows(asked: FastAPI, _: str) -> bool:
        if asked is failing:
            raise psycopg.errors.ForeignKeyViolation
        return True

    assert await Homes([failing, knowing]).find("shown", knows) is knowing


def test_a_key_that_is_created_over_http_is_of_its_creators_ledger(servers: Installation, url: str) -> None:
    with http_client(url, servers.keys[OTHER]) as client:
        made = client.post("/v1/keys", json={"role": "operator", "name": "desk"})
    named(url, made.json()["key"], "brand-by-the-new-key")
    assert brand_of(url, servers.keys[OTHER]) == "brand-by-the-new-key"


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_a_stream_follows_its_ledger_wherever_that_is(servers: Installation, url: str, ledger: str) -> None:
    with http_client(url, servers.keys[ledger]) as client, following(client) as stream:
        position = named(url, servers.keys[ledger], f"streamed-of-{ledger}")
        assert [event["position"] for event in stream.take(1)] == [position]


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_the_token_of_a_stream_leads_to_its_ledger(servers: Installation, url: str, ledger: str) -> None:
    with http_client(url, servers.keys[ledger]) as client:
        history = client.get(ACCOUNT).headers["ledger-history"]
        token = client.post("/v1/stream-tokens", json={"filters": {}}).json()["token"]
    with http_client(url) as client, client.stream("GET", "/v1/events/stream", params={"token": token}) as answer:
        assert (answer.status_code, answer.headers["ledger-history"]) == (200, history)


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_somebody_signs_in_to_the_console_of_their_ledger(servers: Installation, url: str, ledger: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
        answer = client.post("/sign-in", data={"key": servers.keys[ledger], "next": "/"}, headers=SIGN_IN)
        assert answer.status_code == 303, answer.text
        page = client.get("/codes")
        assert page.status_code == 200, page.text
        assert client.post("/sign-out", headers=SIGN_IN).headers["location"] == "/sign-in?out=1"
    database = servers.a if ledger == MAIN else servers.b
    assert database.sql("SELECT count(*) FROM accesses WHERE route = 'POST /sign-in'") == [(1,)]


def of(servers: Installation, ledger: str) -> TestDatabase:
    """Return the server of a ledger."""
    return servers.a if ledger == MAIN else servers.b


def history_of(servers: Installation, ledger: str) -> str:
    query = "SELECT history::text FROM histories JOIN ledgers USING (ledger_id) WHERE name = %s"
    return str(of(servers, ledger).sql(query, (ledger,))[0][0])


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_a_bearer_token_leads_to_the_ledger_that_it_names(
    servers: Installation, provider: Provider, url: str, ledger: str
) -> None:
    token = provider.issuer.token(sub="lea@legal.example", groups=["legal"], ledger=ledger)
    with http_client(url, token) as client:
        answer = client.get("/v1/events")
    assert (answer.status_code, answer.headers["ledger-history"]) == (200, history_of(servers, ledger))


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_somebody_signs_in_by_a_provider_to_the_console_of_their_ledger(
    servers: Installation, provider: Provider, url: str, ledger: str
) -> None:
    provider.claims = {"sub": "lea@legal.example", "groups": ["legal"], "ledger": ledger}
    with httpx.Client(base_url=url, follow_redirects=True, trust_env=False, timeout=20) as browser:
        page = browser.get("/sign-in/with/0", params={"next": "/codes"})
        assert page.status_code == 200, page.text
        assert browser.get("/codes", follow_redirects=False).status_code == 200
    entered = "SELECT count(*) FROM accesses WHERE route = 'GET /sign-in/done'"
    assert of(servers, ledger).sql(entered) == [(1,)]


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_the_address_of_a_calendar_leads_to_its_ledger(servers: Installation, url: str, ledger: str) -> None:
    with http_client(url, servers.keys[ledger]) as client:
        made = client.post("/v1/calendars", json={})
    assert made.status_code == 201, made.text
    with http_client(url) as anybody:
        calendar = anybody.get(made.json()["address"])
    assert (calendar.status_code, calendar.headers["content-type"]) == (200, "text/calendar; charset=utf-8")


@pytest.mark.parametrize("ledger", [MAIN, OTHER])
def test_the_public_log_of_a_ledger_is_read_where_the_ledger_is(
    servers: Installation, url: str, tmp_path: Path, ledger: str
) -> None:
    named(url, servers.keys[ledger], f"sealed-of-{ledger}")
    worker = of(servers, ledger).dsn(WORKER)
    sealer = Sealer(worker, SealerSettings(tmp_path, "ledger.example/log", frozenset({ledger})))
    with psycopg.connect(worker, autocommit=True) as connection:
        store = TreeStore(connection)
        while sealer.step(store):
            pass
    with http_client(url) as anybody:
        until(lambda: anybody.get(f"/log/{ledger}/1/checkpoint").status_code == 200)
        origin = anybody.get(f"/log/{ledger}/1/checkpoint").text.splitlines()[0]
    assert of(servers, ledger).sql("SELECT origin FROM log_trees") == [(origin,)]


def test_health_and_figures_are_those_of_all_servers(url: str) -> None:
    with http_client(url) as client:
        assert client.get("/livez").json()["status"] == "alive"
        assert client.get("/readyz").json() == {"status": "ready", "stopped": []}
        figures = client.get("/metrics").text
    assert 'sparkledger_ledgers_stopped{server="a"} 0.0' in figures
    assert 'sparkledger_ledgers_stopped{server="b"} 0.0' in figures
    assert figures.count("# TYPE sparkledger_view_position gauge") == 1


def test_the_command_line_finds_a_ledger_and_lists_where_each_is(servers: Installation) -> None:
    assert "other" in servers.command("keys", "create", "--ledger", OTHER, "--role", "auditor")
    listed = [line.split()[:3] for line in servers.command("ledgers", "list").splitlines()]
    assert listed == [["1", MAIN, "a"], ["1000001", OTHER, "b"]]


@pytest.mark.parametrize("server", ["a", "b"])
def test_a_name_is_taken_on_every_server(servers: Installation, server: str) -> None:
    servers.command("ledgers", "create", OTHER, "--server", server, code=1)
    for database in (servers.a, servers.b):
        assert database.sql("SELECT count(*) FROM ledgers") == [(1,)]


def test_a_server_that_there_is_not_is_wrong_usage(servers: Installation) -> None:
    assert "the servers are a, b" in servers.command("ledgers", "create", "third", "--server", "c", code=2)


def test_migrating_again_changes_nothing(servers: Installation) -> None:
    assert servers.command("migrate") == "The database is up to date.\n"
    numbers = [one.sql("SELECT name, number FROM this_server") for one in (servers.a, servers.b)]
    assert numbers == [[("a", 0)], [("b", 1)]]


@contextmanager
def away(servers: Installation) -> Iterator[None]:
    """Let nobody reach server b meanwhile."""
    name = sql.Identifier(servers.b.name)
    servers.b.close()
    with psycopg.connect(servers.b.cluster.dsn(dbname="postgres"), autocommit=True) as operator:
        operator.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (servers.b.name,)
            )
            yield
        finally:
            operator.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


def test_a_server_that_is_away_stops_its_own_ledgers_alone(servers: Installation, url: str) -> None:
    with away(servers):
        with http_client(url, servers.keys[OTHER]) as client:
            assert client.put(ACCOUNT, json={"brand_id": "late"}).status_code == 503
        named(url, servers.keys[MAIN], "meanwhile")
        with http_client(url) as client:
            until(lambda: client.get("/readyz").json() == {"status": "degraded", "stopped": ["server"]}, 60)


def makes_pages_beside(client: httpx.Client) -> bool:
    return 'process="pages"' in client.get("/metrics").text


def test_the_process_of_pages_shows_each_reader_their_own_ledger(servers: Installation, url: str) -> None:
    for ledger in (MAIN, OTHER):
        named(url, servers.keys[ledger], f"shown-of-{ledger}")
        with http_client(url) as person:
            person.headers["Sec-Fetch-Site"] = "same-origin"
            assert person.post("/sign-in", data={"key": servers.keys[ledger]}).status_code == 303
            assert person.get("/events").status_code == 200
            until(functools.partial(makes_pages_beside, person), 60)
            shown = {other: f"shown-of-{other}" in person.get("/events").text for other in (MAIN, OTHER)}
        assert shown == {one: one == ledger for one in (MAIN, OTHER)}
