"""One request for each route of the API, who may send it, and what it answers: what docs/roles.md is written from.

A new route needs a line in ROLES and one in REQUESTS; where it names no creator, brand or advertiser account, one in
WITHOUT_SUBJECT as well. Then `python -m tests.generated --write`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx

from api.imports import MAX_ROWS_OF_A_REQUEST
from domain.values import Role
from tests.api.world import OTHER_BRAND, OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, World, campaign, told

CREATORS = {"creator", "operator", "admin"}
BRANDS = {"brand", "operator", "admin"}
READERS = {"creator", "brand", "operator", "auditor", "admin"}
WEBHOOKS = {"subscriber", "admin"}

ROLES: dict[str, set[str]] = {
    "PUT /v1/creators/{creator_id}/permission": CREATORS,
    "GET /v1/creators/{creator_id}/permission": READERS - {"brand"},
    "POST /v1/codes": CREATORS,
    "POST /v1/codes/{code_id}/secret": CREATORS,
    "POST /v1/codes/{code_id}/extensions": CREATORS,
    "POST /v1/codes/{code_id}/shares": CREATORS,
    "POST /v1/codes/lookup": BRANDS,
    "POST /v1/redemptions": BRANDS,
    "POST /v1/codes/{code_id}/campaigns": BRANDS,
    "POST /v1/codes/{code_id}/campaigns/{campaign_id}/end": BRANDS,
    "POST /v1/codes/{code_id}/revocation": CREATORS,
    "POST /v1/codes/{code_id}/reveals": CREATORS,
    "POST /v1/codes/{code_id}/notes": CREATORS,
    "PUT /v1/codes/{code_id}/usage-rights": CREATORS,
    "GET /v1/codes": READERS,
    "GET /v1/codes/{code_id}": READERS,
    "GET /v1/codes/{code_id}/history": READERS,
    "GET /v1/creators/{creator_id}/permission/history": READERS - {"brand"},
    "GET /v1/permissions": READERS - {"brand"},
    "GET /v1/shares": READERS,
    "GET /v1/redemptions": READERS,
    "GET /v1/campaigns": READERS,
    "GET /v1/authorizations": {"brand", "operator", "auditor", "admin"},
    "POST /v1/authorizations/batch": {"brand", "operator", "auditor", "admin"},
    "GET /v1/exports/events": {"operator", "auditor", "admin"},
    "GET /v1/exports/codes": READERS,
    "GET /v1/exports/permissions": READERS - {"brand"},
    "GET /v1/exports/shares": READERS,
    "GET /v1/exports/redemptions": READERS,
    "GET /v1/exports/campaigns": READERS,
    "GET /v1/exports/figures": READERS,
    "GET /v1/exports/accesses": {"operator", "auditor", "admin"},
    "GET /v1/dossiers/creators/{creator_id}": READERS - {"brand"},
    "GET /v1/dossiers/codes/{code_id}": READERS,
    "GET /v1/dossiers/videos/{video_id}": {"operator", "auditor", "admin"},
    "GET /v1/dossiers/brands/{brand_id}": READERS - {"creator"},
    "GET /v1/dossiers/advertisers/{advertiser_id}": READERS - {"creator"},
    "GET /v1/dossiers/keys/{key_id}": {"auditor", "admin"},
    "POST /v1/evidence": READERS,
    "POST /v1/imports": {"operator", "admin"},
    "GET /v1/imports": {"operator", "auditor", "admin"},
    "GET /v1/imports/{import_id}": {"operator", "auditor", "admin"},
    "DELETE /v1/imports/{import_id}": {"operator", "admin"},
    "GET /v1/imports/{import_id}/report": {"operator", "auditor", "admin"},
    "GET /v1/imports/mappings": {"operator", "auditor", "admin"},
    "GET /v1/imports/mappings/{name}": {"operator", "auditor", "admin"},
    "PUT /v1/imports/mappings/{name}": {"operator", "admin"},
    "DELETE /v1/imports/mappings/{name}": {"operator", "admin"},
    "GET /v1/accesses": {"operator", "auditor", "admin"},
    "GET /v1/log": READERS | {"subscriber"},
    "GET /v1/log/consistency": READERS | {"subscriber"},
    "GET /v1/events/{position}/proof": READERS - {"brand"},
    "GET /log/{ledger}/{generation}/checkpoint": {"operator", "auditor", "admin"},
    "GET /log/{ledger}/{generation}/tile/{path:path}": {"operator", "auditor", "admin"},
    "GET /v1/event-types": READERS | {"subscriber"},
    "GET /v1/events": {"creator", "operator", "auditor", "subscriber", "admin"},
    "GET /v1/events/{position}": READERS - {"brand"},
    "GET /v1/stats": {"operator", "auditor", "admin"},
    "GET /v1/stats/days": {"operator", "auditor", "admin"},
    "GET /v1/stats/figures": READERS,
    "GET /v1/stats/spend-at-risk": READERS,
    "GET /v1/events/stream": {"creator", "operator", "auditor", "subscriber", "admin"},
    "POST /v1/stream-tokens": {"creator", "operator", "auditor", "subscriber", "admin"},
    "POST /v1/webhooks": WEBHOOKS,
    "GET /v1/webhooks": WEBHOOKS,
    "GET /v1/webhooks/{webhook_id}": WEBHOOKS,
    "PATCH /v1/webhooks/{webhook_id}": WEBHOOKS,
    "DELETE /v1/webhooks/{webhook_id}": WEBHOOKS,
    "POST /v1/webhooks/{webhook_id}/rotation": WEBHOOKS,
    "POST /v1/webhooks/{webhook_id}/test": WEBHOOKS,
    "GET /v1/webhooks/{webhook_id}/deliveries": WEBHOOKS,
    "GET /v1/webhooks/{webhook_id}/dead-letters": WEBHOOKS,
    "POST /v1/webhooks/{webhook_id}/replays": WEBHOOKS,
    "POST /v1/webhooks/{webhook_id}/retries": WEBHOOKS,
    "POST /v1/alerts": READERS,
    "GET /v1/alerts": READERS,
    "GET /v1/alerts/{rule_id}": READERS,
    "PATCH /v1/alerts/{rule_id}": READERS,
    "DELETE /v1/alerts/{rule_id}": READERS,
    "POST /v1/alerts/{rule_id}/test": READERS,
    "GET /v1/alerts/{rule_id}/deliveries": READERS,
    "POST /v1/alerts/{rule_id}/replays": READERS,
    "POST /v1/calendars": READERS,
    "GET /v1/calendars": READERS,
    "DELETE /v1/calendars/{calendar_id}": READERS,
    "PUT /v1/advertisers/{advertiser_id}": {"operator", "admin"},
    "GET /v1/advertisers/{advertiser_id}": {"operator", "auditor", "admin"},
    "PUT /v1/videos/{video_id}": {"operator", "admin"},
    "GET /v1/videos/{video_id}": {"operator", "auditor", "admin"},
    "POST /v1/creators/{creator_id}/erasure": {"admin"},
    "GET /v1/creators/{creator_id}/erasure": {"operator", "auditor", "admin"},
    "POST /v1/keys": {"admin"},
    "GET /v1/keys": {"auditor", "admin"},
    "POST /v1/keys/{key_id}/rotation": {"admin"},
    "DELETE /v1/keys/{key_id}": {"admin"},
    "GET /calendar/{secret}.ics": set(),
    "GET /livez": set(),
    "GET /readyz": set(),
    "GET /metrics": set(),
}

SUBJECTS: dict[str, dict[str, list[str]]] = {
    "creator": {"creator_ids": [OWN_CREATOR]},
    "brand": {"brand_ids": [OWN_BRAND], "advertiser_ids": [OWN_ACCOUNT]},
}

Try = Callable[[World, httpx.Client, str, str, str], httpx.Response]


def sealed(world: World, *subjects: str) -> Any:
    """Begin a code that was shared, in a log that is signed."""
    code = shared(world, *subjects)
    world.server.serving.seal()
    return code


def on_fresh(prepare: Callable[..., Any], ask: Callable[..., httpx.Response]) -> Try:
    """Return a request on a code of its own, prepared for a creator, a brand and an account."""

    def attempt(world: World, client: httpx.Client, creator: str, brand: str, account: str) -> httpx.Response:
        return ask(client, prepare(world, creator, brand, account), account)

    return attempt


def generated(world: World, creator: str, _brand: str, _account: str) -> Any:
    return world.generate(creator)


def without_secret(world: World, creator: str, _brand: str, _account: str) -> Any:
    return world.without_secret(creator)


def shared(world: World, creator: str, brand: str, account: str) -> Any:
    code = world.generate(creator)
    world.share(code, brand, account)
    return code


def redeemed(world: World, creator: str, brand: str, account: str) -> Any:
    code = shared(world, creator, brand, account)
    world.redeem(code, account)
    return code


def running(world: World, creator: str, brand: str, account: str) -> Any:
    return world.running(creator, brand, account)


def on_code(path: str, body: dict[str, Any]) -> Callable[..., httpx.Response]:
    return lambda client, code, _account: client.post(f"/v1/codes/{code['code_id']}/{path}", json=body)


def opening(client: httpx.Client, creator: str) -> httpx.Response:
    """Open a stream, and leave it again."""
    request = client.build_request("GET", "/v1/events/stream", params={"creator_id": creator})
    answer = client.send(request, stream=True)
    answer.close()
    return answer


ALERT = {"kind": "ending", "channel": "email", "address": "desk@brand.example"}


def on_alert(method: str, path: str = "", **more: Any) -> Try:
    """Return a request on an alert rule of the caller's own; there is none for whom may have none."""

    def attempt(world: World, client: httpx.Client, *_: str) -> httpx.Response:
        rule_id = client.post("/v1/alerts", json=ALERT).json().get("rule_id", "none")
        return client.request(method, f"/v1/alerts/{rule_id}{path}", **more)

    return attempt


def on_calendar(method: str, path: str) -> Try:
    """Return a request on a calendar of the caller's own; there is none for whom may have none."""

    def attempt(_world: World, client: httpx.Client, *_: str) -> httpx.Response:
        made = client.post("/v1/calendars", json={}).json()
        return client.request(method, path.format(made.get("calendar_id", "none")))

    return attempt


def on_webhook(method: str, path: str = "", **more: Any) -> Try:
    """Return a request on a webhook of the caller's own; there is none for whom may have none."""

    def attempt(world: World, client: httpx.Client, *_: str) -> httpx.Response:
        made = client.post("/v1/webhooks", json={"url": "https://receiver.example/"})
        webhook_id = made.json().get("webhook_id", "none")
        return client.request(method, f"/v1/webhooks/{webhook_id}{path}", **more)

    return attempt


def on_log(path: str) -> Try:
    """Return a request on the world's signed log, with one event at least."""

    def attempt(world: World, client: httpx.Client, *_: str) -> httpx.Response:
        world.permit()
        world.server.serving.seal()
        return client.get(f"/log/{world.server.ledger}/1/{path}")

    return attempt


def left_to_the_worker(world: World) -> str:
    """Return the id of an import that waits for the worker; nothing of its sheet can be recorded."""
    if not world.imports:
        rows = "".join(f"v-{number},c\n" for number in range(MAX_ROWS_OF_A_REQUEST + 1))
        headers = {"Content-Type": "text/csv"}
        sent = world.client.post("/v1/imports?record=true", content=f"video,code\n{rows}", headers=headers)
        world.imports.append(told(sent, 202)["import_id"])
    return world.imports[0]


def saving(client: httpx.Client) -> httpx.Response:
    return client.put("/v1/imports/mappings/agency", json={"dates": "dmy"})


def saved(world: World) -> str:
    """Save a mapping, and return its name."""
    name: str = told(saving(world.client), 200)["name"]
    return name


def known(world: World) -> str:
    """Return a creator of whom something is recorded, and who is nobody's subject."""
    creator = f"creator-{uuid4()}"
    world.permit(creator)
    return creator


def erased(world: World) -> str:
    """Return a creator who was erased."""
    creator = known(world)
    told(world.client.post(f"/v1/creators/{creator}/erasure", json={"reason": "why"}), 200)
    return creator


# One request for each route, and what it answers to whom it is for.
REQUESTS: dict[str, tuple[Try, int]] = {
    "PUT /v1/creators/{creator_id}/permission": (
        lambda _w, client, creator, _b, _a: client.put(f"/v1/creators/{creator}/permission", json={"enabled": True}),
        200,
    ),
    "GET /v1/creators/{creator_id}/permission": (
        lambda _w, client, creator, _b, _a: client.get(f"/v1/creators/{creator}/permission"),
        200,
    ),
    "POST /v1/codes": (
        lambda world, client, creator, _b, _a: (
            world.permit(creator),
            client.post(
                "/v1/codes",
                json={"creator_id": creator, "video_id": f"v-{datetime.now(UTC).timestamp()}", "terms_version": "1"},
            ),
        )[1],
        201,
    ),
    "POST /v1/codes/{code_id}/secret": (
        on_fresh(
            without_secret,
            lambda client, code, _: client.post(
                f"/v1/codes/{code['code_id']}/secret", json={"secret": f"#attached+to={code['code_id']}"}
            ),
        ),
        201,
    ),
    "POST /v1/codes/{code_id}/extensions": (on_fresh(generated, on_code("extensions", {"days": 60})), 201),
    "POST /v1/codes/{code_id}/shares": (
        on_fresh(generated, on_code("shares", {"brand_id": OTHER_BRAND, "channel": "email"})),
        201,
    ),
    "POST /v1/codes/lookup": (
        on_fresh(generated, lambda client, code, _: client.post("/v1/codes/lookup", json={"secret": code["secret"]})),
        200,
    ),
    "POST /v1/redemptions": (
        on_fresh(
            shared,
            lambda client, code, account: client.post(
                "/v1/redemptions", json={"secret": code["secret"], "advertiser_id": account}
            ),
        ),
        201,
    ),
    "POST /v1/codes/{code_id}/campaigns": (
        on_fresh(
            redeemed,
            lambda client, code, account: client.post(
                f"/v1/codes/{code['code_id']}/campaigns", json=campaign(advertiser_id=account)
            ),
        ),
        201,
    ),
    "POST /v1/codes/{code_id}/campaigns/{campaign_id}/end": (
        on_fresh(running, lambda client, code, _: client.post(f"/v1/codes/{code['code_id']}/campaigns/campaign-1/end")),
        200,
    ),
    "POST /v1/codes/{code_id}/revocation": (on_fresh(generated, on_code("revocation", {"reason": "why"})), 200),
    "POST /v1/codes/{code_id}/reveals": (on_fresh(generated, on_code("reveals", {"reason": "why"})), 200),
    "PUT /v1/codes/{code_id}/usage-rights": (
        on_fresh(
            generated,
            lambda client, code, _: client.put(
                f"/v1/codes/{code['code_id']}/usage-rights", json={"platforms": ["tiktok"]}
            ),
        ),
        200,
    ),
    "POST /v1/codes/{code_id}/notes": (on_fresh(generated, on_code("notes", {"text": "so"})), 201),
    "GET /v1/codes": (lambda _w, client, *_: client.get("/v1/codes"), 200),
    "GET /v1/codes/{code_id}": (
        on_fresh(redeemed, lambda client, code, _: client.get(f"/v1/codes/{code['code_id']}")),
        200,
    ),
    "GET /v1/codes/{code_id}/history": (
        on_fresh(shared, lambda client, code, _: client.get(f"/v1/codes/{code['code_id']}/history")),
        200,
    ),
    "GET /v1/creators/{creator_id}/permission/history": (
        lambda _w, client, creator, _b, _a: client.get(f"/v1/creators/{creator}/permission/history"),
        200,
    ),
    "GET /v1/permissions": (lambda _w, client, *_: client.get("/v1/permissions"), 200),
    "GET /v1/shares": (lambda _w, client, *_: client.get("/v1/shares"), 200),
    "GET /v1/redemptions": (lambda _w, client, *_: client.get("/v1/redemptions"), 200),
    "GET /v1/campaigns": (lambda _w, client, *_: client.get("/v1/campaigns"), 200),
    "GET /v1/authorizations": (
        lambda _w, client, _c, _b, account: client.get(
            "/v1/authorizations", params={"video_id": "v", "advertiser_id": account}
        ),
        200,
    ),
    "POST /v1/authorizations/batch": (
        lambda _w, client, _c, _b, account: client.post(
            "/v1/authorizations/batch",
            content=f"video_id,advertiser_id\nv,{account}\n",
            headers={"Content-Type": "text/csv"},
        ),
        200,
    ),
    "GET /v1/exports/events": (lambda _w, client, *_: client.get("/v1/exports/events"), 200),
    "GET /v1/exports/codes": (lambda _w, client, *_: client.get("/v1/exports/codes"), 200),
    "GET /v1/exports/permissions": (lambda _w, client, *_: client.get("/v1/exports/permissions"), 200),
    "GET /v1/exports/shares": (lambda _w, client, *_: client.get("/v1/exports/shares"), 200),
    "GET /v1/exports/redemptions": (lambda _w, client, *_: client.get("/v1/exports/redemptions"), 200),
    "GET /v1/exports/campaigns": (lambda _w, client, *_: client.get("/v1/exports/campaigns"), 200),
    "GET /v1/exports/figures": (lambda _w, client, *_: client.get("/v1/exports/figures"), 200),
    "GET /v1/exports/accesses": (lambda _w, client, *_: client.get("/v1/exports/accesses"), 200),
    "GET /v1/dossiers/creators/{creator_id}": (
        lambda _w, client, creator, *_: client.get(f"/v1/dossiers/creators/{creator}"),
        200,
    ),
    "GET /v1/dossiers/codes/{code_id}": (
        on_fresh(shared, lambda client, code, _: client.get(f"/v1/dossiers/codes/{code['code_id']}")),
        200,
    ),
    "GET /v1/dossiers/videos/{video_id}": (lambda _w, client, *_: client.get("/v1/dossiers/videos/v"), 200),
    "GET /v1/dossiers/brands/{brand_id}": (
        lambda _w, client, _c, brand, _a: client.get(f"/v1/dossiers/brands/{brand}"),
        200,
    ),
    "GET /v1/dossiers/advertisers/{advertiser_id}": (
        lambda _w, client, _c, _b, account: client.get(f"/v1/dossiers/advertisers/{account}"),
        200,
    ),
    "GET /v1/dossiers/keys/{key_id}": (
        lambda world, client, *_: client.get(
            f"/v1/dossiers/keys/{told(world.client.get('/v1/keys'), 200)['keys'][0]['key_id']}"
        ),
        200,
    ),
    "POST /v1/evidence": (
        on_fresh(
            sealed,
            lambda client, code, _: client.post("/v1/evidence", json={"kind": "code", "code_id": code["code_id"]}),
        ),
        200,
    ),
    "POST /v1/imports": (
        lambda _w, client, *_: client.post(
            "/v1/imports", content="video,code\nv,c\n", headers={"Content-Type": "text/csv"}
        ),
        200,
    ),
    "GET /v1/imports": (lambda _w, client, *_: client.get("/v1/imports"), 200),
    "DELETE /v1/imports/{import_id}": (
        lambda world, client, *_: client.delete(f"/v1/imports/{left_to_the_worker(world)}"),
        204,
    ),
    "GET /v1/imports/{import_id}": (
        lambda world, client, *_: client.get(f"/v1/imports/{left_to_the_worker(world)}"),
        200,
    ),
    "GET /v1/imports/{import_id}/report": (
        lambda world, client, *_: client.get(f"/v1/imports/{left_to_the_worker(world)}/report"),
        200,
    ),
    "GET /v1/imports/mappings": (lambda _w, client, *_: client.get("/v1/imports/mappings"), 200),
    "GET /v1/imports/mappings/{name}": (
        lambda world, client, *_: client.get(f"/v1/imports/mappings/{saved(world)}"),
        200,
    ),
    "PUT /v1/imports/mappings/{name}": (lambda _w, client, *_: saving(client), 200),
    "DELETE /v1/imports/mappings/{name}": (
        lambda world, client, *_: client.delete(f"/v1/imports/mappings/{saved(world)}"),
        204,
    ),
    "GET /v1/accesses": (lambda _w, client, *_: client.get("/v1/accesses"), 200),
    "GET /v1/log": (lambda _w, client, *_: client.get("/v1/log"), 200),
    "GET /v1/log/consistency": (
        lambda world, client, *_: (
            world.permit(),
            world.server.serving.seal(),
            client.get("/v1/log/consistency", params={"old": 1}),
        )[2],
        200,
    ),
    "GET /v1/events/{position}/proof": (
        on_fresh(generated, lambda client, code, _: client.get(f"/v1/events/{code['position']}/proof")),
        200,
    ),
    "GET /log/{ledger}/{generation}/checkpoint": (on_log("checkpoint"), 200),
    "GET /log/{ledger}/{generation}/tile/{path:path}": (on_log("tile/0/000.p/1"), 200),
    "GET /v1/event-types": (lambda _w, client, *_: client.get("/v1/event-types"), 200),
    "GET /v1/events": (lambda _w, client, creator, *_: client.get("/v1/events", params={"creator_id": creator}), 200),
    "GET /v1/events/{position}": (
        on_fresh(generated, lambda client, code, _: client.get(f"/v1/events/{code['position']}")),
        200,
    ),
    "GET /v1/stats": (lambda _w, client, *_: client.get("/v1/stats"), 200),
    "GET /v1/stats/days": (lambda _w, client, *_: client.get("/v1/stats/days"), 200),
    "GET /v1/stats/figures": (lambda _w, client, *_: client.get("/v1/stats/figures"), 200),
    "GET /v1/stats/spend-at-risk": (lambda _w, client, *_: client.get("/v1/stats/spend-at-risk"), 200),
    "GET /v1/events/stream": (lambda _w, client, creator, *_: opening(client, creator), 200),
    "POST /v1/stream-tokens": (
        lambda _w, client, creator, *_: client.post("/v1/stream-tokens", json={"filters": {"creator_id": creator}}),
        201,
    ),
    "POST /v1/alerts": (lambda _w, client, *_: client.post("/v1/alerts", json=ALERT), 201),
    "GET /v1/alerts": (lambda _w, client, *_: client.get("/v1/alerts"), 200),
    "GET /v1/alerts/{rule_id}": (on_alert("GET"), 200),
    "PATCH /v1/alerts/{rule_id}": (on_alert("PATCH", json={"enabled": False}), 200),
    "DELETE /v1/alerts/{rule_id}": (on_alert("DELETE"), 204),
    "POST /v1/alerts/{rule_id}/test": (on_alert("POST", "/test"), 202),
    "GET /v1/alerts/{rule_id}/deliveries": (on_alert("GET", "/deliveries"), 200),
    "POST /v1/alerts/{rule_id}/replays": (on_alert("POST", "/replays"), 202),
    "POST /v1/calendars": (lambda _w, client, *_: client.post("/v1/calendars", json={}), 201),
    "GET /v1/calendars": (lambda _w, client, *_: client.get("/v1/calendars"), 200),
    "DELETE /v1/calendars/{calendar_id}": (on_calendar("DELETE", "/v1/calendars/{}"), 204),
    "POST /v1/webhooks": (
        lambda _w, client, *_: client.post("/v1/webhooks", json={"url": "https://receiver.example/"}),
        201,
    ),
    "GET /v1/webhooks": (lambda _w, client, *_: client.get("/v1/webhooks"), 200),
    "GET /v1/webhooks/{webhook_id}": (on_webhook("GET"), 200),
    "PATCH /v1/webhooks/{webhook_id}": (on_webhook("PATCH", json={"enabled": True}), 200),
    "DELETE /v1/webhooks/{webhook_id}": (on_webhook("DELETE"), 204),
    "POST /v1/webhooks/{webhook_id}/rotation": (on_webhook("POST", "/rotation"), 201),
    "POST /v1/webhooks/{webhook_id}/test": (on_webhook("POST", "/test"), 202),
    "GET /v1/webhooks/{webhook_id}/deliveries": (on_webhook("GET", "/deliveries"), 200),
    "GET /v1/webhooks/{webhook_id}/dead-letters": (on_webhook("GET", "/dead-letters"), 200),
    "POST /v1/webhooks/{webhook_id}/replays": (on_webhook("POST", "/replays"), 202),
    "POST /v1/webhooks/{webhook_id}/retries": (on_webhook("POST", "/retries"), 202),
    "PUT /v1/advertisers/{advertiser_id}": (
        lambda _w, client, _c, brand, account: client.put(f"/v1/advertisers/{account}", json={"brand_id": brand}),
        200,
    ),
    "GET /v1/advertisers/{advertiser_id}": (
        lambda _w, client, _c, _b, account: client.get(f"/v1/advertisers/{account}"),
        200,
    ),
    "PUT /v1/videos/{video_id}": (
        lambda _w, client, creator, *_: client.put("/v1/videos/7312345678901234567", json={"creator_id": creator}),
        200,
    ),
    "GET /v1/videos/{video_id}": (
        lambda _w, client, *_: client.get("/v1/videos/7312345678901234567"),
        200,
    ),
    "POST /v1/creators/{creator_id}/erasure": (
        lambda world, client, *_: client.post(f"/v1/creators/{known(world)}/erasure", json={"reason": "why"}),
        200,
    ),
    "GET /v1/creators/{creator_id}/erasure": (
        lambda world, client, *_: client.get(f"/v1/creators/{erased(world)}/erasure"),
        200,
    ),
    "POST /v1/keys": (lambda _w, client, *_: client.post("/v1/keys", json={"role": "auditor"}), 201),
    "GET /v1/keys": (lambda _w, client, *_: client.get("/v1/keys"), 200),
    "POST /v1/keys/{key_id}/rotation": (
        lambda world, client, *_: client.post(
            f"/v1/keys/{told(world.client.post('/v1/keys', json={'role': 'auditor'}), 201)['key_id']}/rotation",
            json={"overlap_seconds": 0},
        ),
        200,
    ),
    "DELETE /v1/keys/{key_id}": (
        lambda world, client, *_: client.delete(
            f"/v1/keys/{told(world.client.post('/v1/keys', json={'role': 'auditor'}), 201)['key_id']}"
        ),
        204,
    ),
}

# What these ask for names no subject, so a creator or brand is not turned away for whose it is.
WITHOUT_SUBJECT = {
    "POST /v1/calendars",
    "GET /v1/calendars",
    "DELETE /v1/calendars/{calendar_id}",
    "POST /v1/alerts",
    "GET /v1/alerts",
    "GET /v1/alerts/{rule_id}",
    "PATCH /v1/alerts/{rule_id}",
    "DELETE /v1/alerts/{rule_id}",
    "POST /v1/alerts/{rule_id}/test",
    "GET /v1/alerts/{rule_id}/deliveries",
    "POST /v1/alerts/{rule_id}/replays",
    "POST /v1/authorizations/batch",  # line by line
    "POST /v1/codes/lookup",
    "GET /v1/codes",
    "GET /v1/permissions",
    "GET /v1/shares",
    "GET /v1/redemptions",
    "GET /v1/campaigns",
    "GET /v1/exports/codes",
    "GET /v1/exports/permissions",
    "GET /v1/exports/shares",
    "GET /v1/exports/redemptions",
    "GET /v1/exports/campaigns",
    "GET /v1/stats",
    "GET /v1/stats/days",
    "GET /v1/stats/figures",
    "GET /v1/stats/spend-at-risk",
    "GET /v1/exports/figures",
    "POST /v1/creators/{creator_id}/erasure",
    "GET /v1/creators/{creator_id}/erasure",
    "GET /v1/event-types",
    "GET /v1/log",
    "GET /v1/log/consistency",
    "POST /v1/keys",
    "GET /v1/keys",
    "POST /v1/keys/{key_id}/rotation",
    "DELETE /v1/keys/{key_id}",
}

# Roles whose keys act for somebody, and so meet what belongs to others.
BOUND: tuple[Role, ...] = ("creator", "brand")


def documented(route: str, role: Role) -> tuple[int, int]:
    """Return what a route answers to a role: on what belongs to its subjects, and on what belongs to others."""
    if role not in ROLES[route]:
        return 403, 403
    status = REQUESTS[route][1]
    return status, 403 if role in BOUND and route not in WITHOUT_SUBJECT else status
