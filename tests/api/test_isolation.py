"""One ledger tells nothing of another, and a brand or creator nothing of others in its own.

Every route is asked in one ledger about what another ledger has, and in a third, which is just like it, about what
nobody has: the answers are the same, to the byte where something is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from api.http.app import create_app
from api.http.dependencies import Services
from api.http.route import roles_by_route
from infra.ids import uuid7
from infra.settings import load_settings
from tests.api.attempts import ALERT, left_to_the_worker
from tests.api.streaming import following
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    TERMS,
    World,
    campaign,
    days,
    refused,
    told,
)

# Beyond what a fresh ledger has, and within what the other one has.
POSITION = 12


@dataclass(frozen=True)
class Things:
    """The ids of what a ledger has, or of what nobody has: of the same form, so that they are told by nothing else."""

    creator_id: str
    video_id: str
    brand_id: str
    advertiser_id: str
    campaign_id: str
    secret: str
    code_id: str
    key_id: str
    webhook_id: str
    rule_id: str
    calendar_id: str
    import_id: str
    mapping: str
    ledger: str

    def shown(self) -> list[str]:
        """Return the ids that tell whose they are."""
        return [getattr(self, field.name) for field in fields(self)]


def drawn_names() -> tuple[str, str, str, str, str]:
    """Draw ids as callers choose them: of a creator, video, brand, account and campaign."""
    draw = str(uuid4())
    return f"creator-{draw}", f"video-{draw}", f"brand-{draw}", f"account-{draw}", f"campaign-{draw}"


@pytest.fixture
def theirs(world: World) -> Things:
    """A ledger with something of everything, whose ids another ledger is asked about."""
    names = drawn_names()
    creator, video, brand, account, campaign_id = names
    secret = f"#{uuid4()}{uuid4()}"
    code = world.generate(creator, video_id=video, secret=secret)
    world.share(code, brand, account, note="a note of theirs")
    world.redeem(code, account)
    world.launch(code, campaign_id, account)
    for _ in range(POSITION):
        world.generate(creator)
    world.server.serving.seal()
    webhook = told(world.client.post("/v1/webhooks", json={"url": "https://receiver.example/"}), 201)
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]
    rule_id = told(world.client.post("/v1/alerts", json=ALERT | {"enabled": False}), 201)["rule_id"]
    calendar_id = told(world.client.post("/v1/calendars", json={}), 201)["calendar_id"]
    mapping = f"mapping-{uuid4()}"
    told(world.client.put(f"/v1/imports/mappings/{mapping}", json={"columns": {"video_id": "Clip"}}), 200)
    ids = (code["code_id"], key_id, webhook["webhook_id"], rule_id, calendar_id, left_to_the_worker(world))
    return Things(*names, secret, *ids, mapping, world.server.ledger)


def nobodys() -> Things:
    """Return ids of the same form that nothing bears."""
    names = drawn_names()
    secret = f"#{uuid4()}{uuid4()}"
    ledger = f"ledger-{uuid4().hex[:12]}"
    ids = (str(uuid7()), str(uuid7()), str(uuid7()), str(uuid7()), str(uuid7()), str(uuid7()))
    return Things(*names, secret, *ids, f"mapping-{uuid4()}", ledger)


Ask = Callable[[httpx.Client, Things], httpx.Response]


def on_code(method: str, path: str = "", body: dict[str, Any] | None = None, **query: Any) -> Ask:
    """Return a request on a code."""

    def ask(client: httpx.Client, of: Things) -> httpx.Response:
        address = f"/v1/codes/{of.code_id}{path.replace('CAMPAIGN', of.campaign_id)}"
        return client.request(method, address, json=body, params=query)

    return ask


def getting(path: str, *named: str, **query: Any) -> Ask:
    """Return a read that names some of the things in its query."""

    def ask(client: httpx.Client, of: Things) -> httpx.Response:
        return client.get(path, params={**query, **{name: getattr(of, name) for name in named}})

    return ask


def of_creator(path: str) -> Ask:
    return lambda client, of: client.get(f"/v1/creators/{of.creator_id}{path}")


def on_webhook(method: str, path: str = "", body: dict[str, Any] | None = None) -> Ask:
    return lambda client, of: client.request(method, f"/v1/webhooks/{of.webhook_id}{path}", json=body)


def on_alert(method: str, path: str = "", body: dict[str, Any] | None = None) -> Ask:
    return lambda client, of: client.request(method, f"/v1/alerts/{of.rule_id}{path}", json=body)


def on_import(method: str, path: str = "") -> Ask:
    return lambda client, of: client.request(method, f"/v1/imports/{of.import_id}{path}")


def on_log(path: str) -> Ask:
    return lambda client, of: client.get(f"/log/{of.ledger}/1/{path}")


def streaming(client: httpx.Client, of: Things) -> httpx.Response:
    """Ask to go on with a stream after an event that was seen elsewhere."""
    return client.get("/v1/events/stream", params={"code_id": of.code_id}, headers={"Last-Event-ID": str(POSITION)})


def exporting(client: httpx.Client, of: Things) -> httpx.Response:
    return client.get("/v1/exports/events", params={"q": f"code:{of.code_id}"})


def asking_in_bulk(client: httpx.Client, of: Things) -> httpx.Response:
    body = f"video_id,advertiser_id\n{of.video_id},{of.advertiser_id}\n"
    return client.post("/v1/authorizations/batch", content=body, headers={"Content-Type": "text/csv"})


def importing(client: httpx.Client, of: Things) -> httpx.Response:
    sheet = f"creator,video,code,terms,end\n{of.creator_id},{of.video_id},{of.secret},{TERMS},{days(30)[:10]}\n"
    return client.post("/v1/imports", content=sheet, headers={"Content-Type": "text/csv"})


DOSSIERS = {
    "creator": "creator_id",
    "code": "code_id",
    "video": "video_id",
    "brand": "brand_id",
    "advertiser": "advertiser_id",
    "key": "key_id",
}


def dossier(kind: str, name: str) -> Ask:
    return lambda client, of: client.get(f"/v1/dossiers/{kind}s/{getattr(of, name)}")


# Reads come before commands, and what gives the asking ledger things of its own comes last.
ASKED: dict[str, list[Ask]] = {
    "GET /v1/log": [getting("/v1/log")],
    "GET /v1/log/consistency": [getting("/v1/log/consistency", old=POSITION)],
    "GET /v1/events/{position}/proof": [getting(f"/v1/events/{POSITION}/proof")],
    "GET /log/{ledger}/{generation}/checkpoint": [on_log("checkpoint")],
    "GET /log/{ledger}/{generation}/tile/{path:path}": [on_log("tile/0/000.p/1"), on_log("tile/entries/000.p/1")],
    "GET /v1/codes/{code_id}": [
        on_code("GET"),
        on_code("GET", as_of=POSITION),
        on_code("GET", at=days(-1)),
        on_code("GET", version=1),
    ],
    "GET /v1/codes/{code_id}/history": [on_code("GET", "/history")],
    "GET /v1/codes": [getting("/v1/codes", name) for name in ("creator_id", "video_id", "brand_id", "advertiser_id")],
    "GET /v1/shares": [getting("/v1/shares", name) for name in ("code_id", "creator_id", "video_id", "brand_id")],
    "GET /v1/redemptions": [getting("/v1/redemptions", name) for name in ("code_id", "creator_id", "advertiser_id")],
    "GET /v1/campaigns": [getting("/v1/campaigns", name) for name in ("code_id", "campaign_id", "advertiser_id")],
    "GET /v1/permissions": [getting("/v1/permissions")],
    "GET /v1/event-types": [getting("/v1/event-types")],
    "GET /v1/creators/{creator_id}/permission": [of_creator("/permission")],
    "GET /v1/creators/{creator_id}/permission/history": [of_creator("/permission/history")],
    "GET /v1/creators/{creator_id}/erasure": [of_creator("/erasure")],
    "GET /v1/advertisers/{advertiser_id}": [lambda client, of: client.get(f"/v1/advertisers/{of.advertiser_id}")],
    "GET /v1/videos/{video_id}": [lambda client, of: client.get(f"/v1/videos/{of.video_id}")],
    "GET /v1/authorizations": [
        getting("/v1/authorizations", "video_id", "advertiser_id"),
        getting("/v1/authorizations", "video_id", "advertiser_id", as_of=POSITION),
    ],
    "POST /v1/authorizations/batch": [asking_in_bulk],
    "GET /v1/events": [
        *(getting("/v1/events", name) for name in ("code_id", "creator_id", "video_id", "advertiser_id")),
        getting("/v1/events", after=POSITION),
        lambda client, of: client.get("/v1/events", params={"actor": of.key_id}),
    ],
    "GET /v1/events/{position}": [lambda client, _: client.get(f"/v1/events/{POSITION}")],
    "GET /v1/events/stream": [streaming],
    "POST /v1/stream-tokens": [
        lambda client, of: client.post("/v1/stream-tokens", json={"filters": {"creator_id": of.creator_id}})
    ],
    "GET /v1/exports/events": [exporting],
    "GET /v1/exports/codes": [getting("/v1/exports/codes", name) for name in ("creator_id", "brand_id", "video_id")],
    "GET /v1/exports/permissions": [getting("/v1/exports/permissions")],
    "GET /v1/exports/shares": [getting("/v1/exports/shares", name) for name in ("code_id", "brand_id")],
    "GET /v1/exports/redemptions": [getting("/v1/exports/redemptions", name) for name in ("code_id", "creator_id")],
    "GET /v1/exports/campaigns": [getting("/v1/exports/campaigns", name) for name in ("code_id", "campaign_id")],
    "GET /v1/exports/accesses": [getting("/v1/exports/accesses", "code_id")],
    "POST /v1/imports": [importing],
    "GET /v1/accesses": [
        getting("/v1/accesses"),
        *(getting("/v1/accesses", name) for name in ("code_id", "creator_id", "video_id")),
    ],
    **{f"GET /v1/dossiers/{kind}s/{{{name}}}": [dossier(kind, name)] for kind, name in DOSSIERS.items()},
    "GET /v1/stats": [getting("/v1/stats")],
    "GET /v1/stats/figures": [
        getting("/v1/stats/figures", by="creator"),
        *(getting("/v1/stats/figures", name, by="month") for name in ("creator_id", "brand_id", "video_id")),
    ],
    "GET /v1/stats/spend-at-risk": [getting("/v1/stats/spend-at-risk")],
    "GET /v1/exports/figures": [getting("/v1/exports/figures", by="creator")],
    "PUT /v1/codes/{code_id}/usage-rights": [on_code("PUT", "/usage-rights", {"until": days(20)})],
    "GET /v1/stats/days": [getting("/v1/stats/days")],
    "POST /v1/codes/lookup": [lambda client, of: client.post("/v1/codes/lookup", json={"secret": of.secret})],
    "POST /v1/redemptions": [
        lambda client, of: client.post("/v1/redemptions", json={"secret": of.secret, "advertiser_id": of.advertiser_id})
    ],
    "POST /v1/codes/{code_id}/extensions": [on_code("POST", "/extensions", {"days": 60})],
    "POST /v1/codes/{code_id}/shares": [on_code("POST", "/shares", {"brand_id": "acme", "channel": "dm"})],
    "POST /v1/codes/{code_id}/campaigns": [on_code("POST", "/campaigns", campaign())],
    "POST /v1/codes/{code_id}/campaigns/{campaign_id}/end": [on_code("POST", "/campaigns/CAMPAIGN/end")],
    "POST /v1/codes/{code_id}/revocation": [on_code("POST", "/revocation", {"reason": "why", "force": True})],
    "POST /v1/codes/{code_id}/reveals": [on_code("POST", "/reveals", {"reason": "why"})],
    "POST /v1/codes/{code_id}/notes": [on_code("POST", "/notes", {"text": "so"})],
    "GET /v1/webhooks": [getting("/v1/webhooks")],
    "GET /v1/webhooks/{webhook_id}": [on_webhook("GET")],
    "PATCH /v1/webhooks/{webhook_id}": [on_webhook("PATCH", body={"enabled": False})],
    "DELETE /v1/webhooks/{webhook_id}": [on_webhook("DELETE")],
    "POST /v1/webhooks/{webhook_id}/rotation": [on_webhook("POST", "/rotation")],
    "POST /v1/webhooks/{webhook_id}/test": [on_webhook("POST", "/test")],
    "GET /v1/webhooks/{webhook_id}/deliveries": [on_webhook("GET", "/deliveries")],
    "GET /v1/webhooks/{webhook_id}/dead-letters": [on_webhook("GET", "/dead-letters")],
    "POST /v1/webhooks/{webhook_id}/replays": [on_webhook("POST", "/replays")],
    "POST /v1/webhooks/{webhook_id}/retries": [on_webhook("POST", "/retries")],
    "GET /v1/alerts": [getting("/v1/alerts")],
    "GET /v1/alerts/{rule_id}": [on_alert("GET")],
    "PATCH /v1/alerts/{rule_id}": [on_alert("PATCH", body={"enabled": False})],
    "DELETE /v1/alerts/{rule_id}": [on_alert("DELETE")],
    "POST /v1/alerts/{rule_id}/test": [on_alert("POST", "/test")],
    "GET /v1/alerts/{rule_id}/deliveries": [on_alert("GET", "/deliveries")],
    "POST /v1/alerts/{rule_id}/replays": [on_alert("POST", "/replays")],
    "POST /v1/alerts": [
        lambda client, of: client.post("/v1/alerts", json=ALERT | {"creator_id": of.creator_id, "enabled": False}),
        lambda client, of: client.post("/v1/alerts", json=ALERT | {"brand_id": of.brand_id, "enabled": False}),
    ],
    "GET /v1/imports": [getting("/v1/imports")],
    "GET /v1/imports/{import_id}": [on_import("GET")],
    "GET /v1/imports/{import_id}/report": [on_import("GET", "/report")],
    "DELETE /v1/imports/{import_id}": [on_import("DELETE")],
    "GET /v1/imports/mappings": [getting("/v1/imports/mappings")],
    "GET /v1/imports/mappings/{name}": [lambda client, of: client.get(f"/v1/imports/mappings/{of.mapping}")],
    "DELETE /v1/imports/mappings/{name}": [lambda client, of: client.delete(f"/v1/imports/mappings/{of.mapping}")],
    "PUT /v1/imports/mappings/{name}": [
        lambda client, of: client.put(f"/v1/imports/mappings/{of.mapping}", json={"columns": {"video_id": "Clip"}}),
    ],
    "POST /v1/codes/{code_id}/secret": [
        lambda client, of: client.post(f"/v1/codes/{of.code_id}/secret", json={"secret": of.secret}),
    ],
    "GET /v1/calendars": [getting("/v1/calendars")],
    "DELETE /v1/calendars/{calendar_id}": [lambda client, of: client.delete(f"/v1/calendars/{of.calendar_id}")],
    "POST /v1/calendars": [
        lambda client, of: client.post("/v1/calendars", json={"creator_id": of.creator_id}),
        lambda client, of: client.post("/v1/calendars", json={"brand_id": of.brand_id}),
    ],
    "GET /v1/keys": [getting("/v1/keys")],
    "POST /v1/keys/{key_id}/rotation": [
        lambda client, of: client.post(f"/v1/keys/{of.key_id}/rotation", json={"overlap_seconds": 0})
    ],
    "DELETE /v1/keys/{key_id}": [lambda client, of: client.delete(f"/v1/keys/{of.key_id}")],
    "POST /v1/evidence": [
        lambda client, of: client.post("/v1/evidence", json={"kind": "code", "code_id": of.code_id}),
        lambda client, of: client.post("/v1/evidence", json={"kind": "creator", "creator_id": of.creator_id}),
    ],
    "POST /v1/webhooks": [
        lambda client, of: client.post(
            "/v1/webhooks", json={"url": "https://receiver.example/", "creator_ids": [of.creator_id]}
        )
    ],
    "POST /v1/keys": [
        lambda client, of: client.post(
            "/v1/keys", json={"role": "creator", "subjects": {"creator_ids": [of.creator_id]}}
        )
    ],
    "PUT /v1/creators/{creator_id}/permission": [
        lambda client, of: client.put(f"/v1/creators/{of.creator_id}/permission", json={"enabled": True})
    ],
    # The same video and secret as there: what is unique is so within a ledger.
    "POST /v1/codes": [
        lambda client, of: client.post(
            "/v1/codes",
            json={
                "creator_id": of.creator_id,
                "video_id": of.video_id,
                "terms_version": TERMS,
                "secret": of.secret,
            },
        )
    ],
    "PUT /v1/advertisers/{advertiser_id}": [
        lambda client, of: client.put(f"/v1/advertisers/{of.advertiser_id}", json={"brand_id": of.brand_id})
    ],
    "PUT /v1/videos/{video_id}": [
        lambda client, of: client.put(f"/v1/videos/{of.video_id}", json={"creator_id": of.creator_id})
    ],
    "POST /v1/creators/{creator_id}/erasure": [
        lambda client, of: client.post(f"/v1/creators/{of.creator_id}/erasure", json={"reason": "why"})
    ],
}

_VARIES = re.compile(
    r"slk_\w+|slt_[\w-]+|calendar/[\w-]{43}|whsec_[\w+/=]+"  # secrets that are drawn
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z|[0-9]{8}T[0-9]{6}Z"
    r"|[0-9a-f]{64}|[0-9a-f]{32}|ledger-[0-9a-f]{12}"
    r"|…[\w-]{4}|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}"
)
# How long something took, and how far views have come by then.
_TIMELY = re.compile(r'"(position|lag|lag_seconds|after)":[0-9.]+')


def told_of(answer: httpx.Response, of: Things) -> tuple[int, dict[str, str], str]:
    """Return all of an answer but the request's id; where nothing is refused, without the ids that were asked about."""
    headers = {
        name: value for name, value in answer.headers.items() if name not in {"request-id", "date", "ledger-history"}
    }
    text = answer.text.replace(answer.headers["request-id"], "R")
    if answer.is_success and answer.request.url.path == "/v1/accesses":
        # Accesses are told a moment after they happened: how many are listed by now says nothing.
        text = ""
        headers.pop("content-length")
    elif answer.is_success:
        for thing in of.shown():
            text = text.replace(thing, "T")
        text = _TIMELY.sub("", _VARIES.sub("V", text))
        headers = {
            name: _VARIES.sub("V", value)
            for name, value in headers.items()
            if name not in {"content-length", "ledger-position"}
        }
    return answer.status_code, headers, text


def test_every_route_that_asks_for_a_key_is_walked() -> None:
    nothing = cast("Any", None)
    services = {field.name: nothing for field in fields(Services)} | {
        "settings": load_settings({}),
        "on_keys_changed": [],
    }
    routes = {route for route, roles in roles_by_route(create_app(Services(**services))).items() if roles}
    assert ASKED.keys() == routes


@pytest.mark.long("every route is asked, in two ledgers")
def test_what_another_ledger_has_is_answered_as_what_nobody_has(world: World, theirs: Things) -> None:
    unknown = nobodys()
    about_theirs, about_nobodys = world.another().client, world.another().client
    different = []
    for route, requests in ASKED.items():
        for number, ask in enumerate(requests):
            answers = told_of(ask(about_theirs, theirs), theirs), told_of(ask(about_nobodys, unknown), unknown)
            if answers[0] != answers[1]:
                different.append((route, number, *answers))
    assert different == []


def test_what_takes_an_id_of_another_ledger_is_unknown_there(world: World, theirs: Things) -> None:
    """Otherwise the test above might compare two answers that are wrong alike."""
    stranger = world.another().client
    by_path = {
        route: {ask(stranger, theirs).status_code for ask in requests}
        for route, requests in ASKED.items()
        if "{" in route and not re.search(r"{(creator|advertiser|video|brand)_id}|PUT .*{name}", route)
    }
    assert by_path == {route: {404} for route in by_path}
    assert len(by_path) > 15


def test_nothing_of_a_ledger_is_shown_or_changed_by_all_that_is_asked_in_another(world: World, theirs: Things) -> None:
    code, before = {"code_id": theirs.code_id}, world.head()
    stood = world.read(code)
    stranger = world.another().client
    for requests in ASKED.values():
        for ask in requests:
            answer = ask(stranger, theirs)
            # What was asked about may be repeated; what is there alone may not.
            assert "a note of theirs" not in answer.text
            assert world.server.ledger not in answer.text
    assert world.head() == before
    assert world.read(code) == stood
    keys = {key["key_id"]: key for key in told(world.client.get("/v1/keys"), 200)["keys"]}
    assert keys[theirs.key_id]["revoked_at"] is None


def test_a_cursor_is_refused_in_another_ledger(world: World) -> None:
    """A cursor is a place in one history."""
    other = world.another()
    for one in (world, other):
        for _ in range(3):
            one.generate()
    lists = ("/v1/codes", "/v1/events", "/v1/accesses", "/v1/keys", "/v1/permissions", "/v1/shares")
    for path in lists:
        first = told(world.client.get(path, params={"limit": 1}), 200)
        cursor = first.get("next_cursor") or first.get("next")
        if cursor is None:
            continue
        answer = other.client.get(path, params={"limit": 1, "cursor": cursor})
        assert refused(answer) == (409, "history_changed")
        assert world.server.ledger not in answer.text


def test_an_idempotency_key_is_of_its_own_key_and_ledger(world: World) -> None:
    """The same key, request and header in another ledger, or with another API key, is another request."""
    asked: dict[str, Any] = {
        "json": {"creator_id": OWN_CREATOR, "video_id": "video-1", "terms_version": TERMS},
        "headers": {"Idempotency-Key": "the-same"},
    }
    other = world.another()
    world.permit()
    other.permit()
    first = told(world.client.post("/v1/codes", **asked), 201)
    elsewhere = other.client.post("/v1/codes", **asked)
    assert told(elsewhere, 201)["code_id"] != first["code_id"]
    assert "idempotent-replayed" not in elsewhere.headers
    colleague = world.as_role("operator").post("/v1/codes", **asked)
    assert refused(colleague) == (409, "live_code_exists")


def test_a_stream_that_goes_on_with_the_id_of_another_ledger_shows_its_own_events(world: World) -> None:
    other = world.another()
    for one in (world, other):
        one.generate()
        one.generate()
    with following(other.client, seen=world.head() - 1) as stream:
        (event,) = stream.take(1)
    mine = told(other.client.get("/v1/events", params={"order": "desc", "limit": 1}), 200)["events"][0]
    assert event["event_id"] == mine["event_id"]


# -- Within a ledger: how a code of others stands is not told by refusals either


def revoked(world: World, code: dict[str, Any]) -> None:
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)


def launched(world: World, code: dict[str, Any]) -> None:
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT)
    world.redeem(code, OTHER_ACCOUNT)
    world.launch(code, advertiser_id=OTHER_ACCOUNT)


# How a code of others may stand; each is refused for something else by the rules.
STANDS: dict[str, tuple[dict[str, Any], Callable[[World, dict[str, Any]], object]]] = {
    "generated": ({}, lambda _w, _c: None),
    "shared with others": ({}, lambda world, code: world.share(code, OTHER_BRAND, OTHER_ACCOUNT)),
    "in a campaign": ({}, launched),
    "revoked": ({}, revoked),
    "expired": ({"starts_at": days(-8), "days": 7}, lambda _w, _c: None),
    "not started": ({"starts_at": days(8)}, lambda _w, _c: None),
}
REASONS = {
    "generated": "not_redeemed",
    "shared with others": "not_redeemed",
    "in a campaign": "not_redeemed",
    "revoked": "revoked",
    "expired": "expired",
    "not started": "not_started",
}
OF_BRANDS = (
    on_code("GET"),
    on_code("GET", version=99),
    on_code("GET", "/history"),
    on_code("POST", "/campaigns", campaign()),
    on_code("POST", "/campaigns", campaign() | {"starts_at": days(300), "ends_at": days(301)}),
    on_code("POST", "/campaigns/CAMPAIGN/end"),
    on_code("POST", "/campaigns/campaign-1/end"),
)
OF_CREATORS = (
    on_code("GET"),
    on_code("GET", version=99),
    on_code("GET", "/history"),
    on_code("POST", "/extensions", {"days": 60}),
    on_code("POST", "/extensions", {"days": 1}),
    on_code("POST", "/shares", {"brand_id": "acme", "channel": "dm"}),
    on_code("POST", "/revocation", {"reason": "why"}),
    on_code("POST", "/reveals", {"reason": "why"}),
    on_code("POST", "/notes", {"text": "so"}),
)


@pytest.mark.parametrize(("role", "requests"), [("brand", OF_BRANDS), ("creator", OF_CREATORS)])
def test_whoever_holds_the_id_of_others_code_is_told_the_same_however_it_stands(
    world: World, role: str, requests: tuple[Ask, ...]
) -> None:
    client = world.brand() if role == "brand" else world.creator()
    blank = nobodys()
    answers: dict[tuple[int, str], set[tuple[int, str]]] = {}
    for facts, happens in STANDS.values():
        code = world.generate(OTHER_CREATOR, **facts)
        happens(world, code)
        of = Things(**{**vars(blank), "code_id": code["code_id"]})
        for number, ask in enumerate(requests):
            for match in ("", '"1"', '"99"'):
                client.headers["If-Match"] = match or "*"
                status, _, text = told_of(ask(client, of), of)
                answers.setdefault((number, match), set()).add((status, text))
    assert {status for found in answers.values() for status, _ in found} == {403}
    assert [key for key, found in answers.items() if len(found) != 1] == []


def test_a_brand_is_told_why_it_is_not_authorized_and_nothing_more_of_codes_it_may_not_read(world: World) -> None:
    """Which code it is, and what it rests on, is for those it was given to."""
    brand = world.brand()
    reasons = {}
    for name, (facts, happens) in STANDS.items():
        code = world.generate(OTHER_CREATOR, **facts)
        happens(world, code)
        query = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": str(world.head())}
        content = told(brand.get("/v1/authorizations", params=query), 200)
        batch = brand.post(
            "/v1/authorizations/batch",
            content=f"video_id,advertiser_id\n{code['video_id']},{OWN_ACCOUNT}\n",
            headers={"Content-Type": "text/csv", "Accept": "application/x-ndjson"},
        ).json()
        hidden = ("reason", "code_id", "starts_at", "expires_at", "shared", "evidence")
        assert [content[field] for field in hidden] == [batch[field] for field in hidden]
        reasons[name] = [content[field] for field in hidden]
    assert {name: told for name, (_, *told) in reasons.items()} == {
        name: [None, None, None, False, []] for name in STANDS
    }
    assert {name: reason for name, (reason, *_) in reasons.items()} == REASONS

    given = world.generate(OTHER_CREATOR)
    world.share(given, OWN_BRAND, OWN_ACCOUNT)
    query = {"video_id": given["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": str(world.head())}
    content = told(brand.get("/v1/authorizations", params=query), 200)
    assert (content["reason"], content["code_id"]) == ("not_redeemed", given["code_id"])


def test_a_brand_is_not_told_of_others_campaigns_on_a_code_it_shares(world: World) -> None:
    code = world.generate(OTHER_CREATOR)
    world.share(code, OWN_BRAND, OWN_ACCOUNT)
    launched(world, code)
    ends = [
        world.brand().post(f"/v1/codes/{code['code_id']}/campaigns/{campaign_id}/end")
        for campaign_id in ("campaign-1", "campaign-2")
    ]
    texts = {answer.text.replace(answer.headers["request-id"], "R") for answer in ends}
    assert [refused(answer) for answer in ends] == [(404, "campaign_unknown")] * 2
    assert len(texts) == 1


def test_a_creator_is_not_told_which_code_of_others_is_in_the_way(world: World) -> None:
    theirs = world.generate(OTHER_CREATOR, video_id="video-of-both")
    world.permit(OWN_CREATOR)
    asked = {"creator_id": OWN_CREATOR, "video_id": "video-of-both", "terms_version": TERMS}
    answer = world.creator().post("/v1/codes", json=asked)
    assert refused(answer) == (409, "live_code_exists")
    assert theirs["code_id"] not in answer.text
    # Those who may read it are told.
    assert world.client.post("/v1/codes", json=asked).json()["conflict_id"] == theirs["code_id"]
    own = world.generate(OWN_CREATOR, video_id="video-of-its-own")
    answer = world.creator().post("/v1/codes", json=asked | {"video_id": "video-of-its-own"})
    assert answer.json()["conflict_id"] == own["code_id"]


def test_a_key_without_subjects_that_slipped_in_opens_nothing(world: World) -> None:
    """None can be made; should one stand in the database all the same, it acts for nobody and not for everybody."""
    code = world.generate()
    world.share(code)
    for role, subjects in (("creator", {"creator_ids": [OWN_CREATOR]}), ("brand", {"brand_ids": [OWN_BRAND]})):
        made = told(world.client.post("/v1/keys", json={"role": role, "subjects": subjects}), 201)
        world.server.serving.call(_without_subjects(world, made["key_id"]))
        client = world.with_key(made["key"])
        for path in ("codes", "shares", "redemptions", "campaigns"):
            assert told(client.get(f"/v1/{path}", params={"at_least": world.head()}), 200)[path] == []
        assert client.get(f"/v1/codes/{code['code_id']}").status_code == 403
        if role == "creator":
            assert told(client.get("/v1/events"), 200)["events"] == []
            assert client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}).status_code == 403


async def _without_subjects(world: World, key_id: str) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(world.server.database.dsn(), autocommit=True) as connection:
        await connection.execute(
            "UPDATE api_keys SET creator_ids = '{}', brand_ids = '{}', advertiser_ids = '{}' WHERE key_id = %s",
            (key_id,),
        )
