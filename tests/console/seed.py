"""A ledger with something on every page: what the tests of the console look at, and what its pictures show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.waiting import until

VIDEO = "7312345678901234567"
OTHER_VIDEO = "7312345678901234568"
CREATOR, OTHER_CREATOR, QUIET_CREATOR = "ana.creates", "bo.dances", "cleo.cooks"
BRAND, ACCOUNT, STRANGER = "acme", "adv-7001", "adv-9999"
# Markup, text that runs backwards, characters without a width, and length.
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;\u202egnp.exe\u202c z\u200bero"


@dataclass
class Seeded:
    """What was recorded, by what it is for."""

    now: datetime
    running: dict[str, Any]
    revoked: dict[str, Any]
    ended: dict[str, Any]
    ending: dict[str, Any]
    hostile: dict[str, Any]
    unshared: dict[str, Any]


def told(answer: httpx.Response) -> dict[str, Any]:
    """Return what was answered, where it was not refused."""
    assert answer.status_code < 300, f"{answer.status_code}: {answer.text}"
    content: dict[str, Any] = answer.json()
    return content


def shown(client: httpx.Client, view: str, **query: str) -> None:
    """Wait until a list shows all that was recorded."""
    events = told(client.get("/v1/events", params={"order": "desc", "limit": 1}))["events"]
    asked = {"at_least": events[0]["position"]} | query
    until(lambda: client.get(f"/v1/{view}", params=asked).status_code == 200, 60)


def seed(client: httpx.Client, now: datetime | None = None) -> Seeded:
    """Tell a ledger a story, as its administrator."""
    now = (now or datetime.now(UTC)).replace(microsecond=0)

    def days(number: float) -> str:
        return (now + timedelta(days=number)).isoformat()

    def post(path: str, **body: Any) -> dict[str, Any]:
        return told(client.post(path, json=body))

    def permit(creator_id: str, *, enabled: bool = True, **more: Any) -> None:
        told(client.put(f"/v1/creators/{creator_id}/permission", json={"enabled": enabled, **more}))

    def generate(creator_id: str, video_id: str, begins: float, ends: float, **more: Any) -> dict[str, Any]:
        secret = f"#seeded/{creator_id}/{video_id}/{begins}=="
        return post(
            "/v1/codes",
            creator_id=creator_id,
            video_id=video_id,
            terms_version="2026-01",
            secret=secret,
            starts_at=days(begins),
            expires_at=days(ends),
            effective_at=days(begins),
            **more,
        ) | {"secret": secret}

    def share(code: dict[str, Any], at: float, **more: Any) -> None:
        fields = {"brand_id": BRAND, "advertiser_id": ACCOUNT, "channel": "dm"} | more
        post(f"/v1/codes/{code['code_id']}/shares", effective_at=days(at), **fields)

    def redeem(code: dict[str, Any], at: float, account: str = ACCOUNT) -> None:
        post("/v1/redemptions", secret=code["secret"], advertiser_id=account, effective_at=days(at))

    def launch(code: dict[str, Any], campaign_id: str, at: float, begins: float, ends: float, **more: Any) -> None:
        post(
            f"/v1/codes/{code['code_id']}/campaigns",
            campaign_id=campaign_id,
            advertiser_id=ACCOUNT,
            budget={"amount": "500.00", "currency": "USD"},
            starts_at=days(begins),
            ends_at=days(ends),
            effective_at=days(at),
            **more,
        )

    told(client.put(f"/v1/advertisers/{ACCOUNT}", json={"brand_id": BRAND, "effective_at": days(-100)}))
    for creator in (CREATOR, OTHER_CREATOR, QUIET_CREATOR):
        permit(creator, effective_at=days(-100))
    running = generate(CREATOR, VIDEO, -20, 10)
    share(running, -19.5)
    redeem(running, -19)
    launch(running, "spring-sale", -18, -17, 40, name="Spring sale")
    post(f"/v1/codes/{running['code_id']}/extensions", expires_at=days(25), effective_at=days(-2))
    post(f"/v1/codes/{running['code_id']}/notes", text="The brand asked for three more weeks by mail.")
    revoked = generate(OTHER_CREATOR, OTHER_VIDEO, -40, 20)
    share(revoked, -39)
    redeem(revoked, -38)
    reason = "Shared with the wrong brand"
    post(f"/v1/codes/{revoked['code_id']}/revocation", reason=reason, effective_at=days(-5), force=True)
    ended = generate(QUIET_CREATOR, "7312345678901234569", -60, -30)
    share(ended, -59)
    refused = {"secret": ended["secret"], "advertiser_id": ACCOUNT}
    assert client.post("/v1/redemptions", json=refused).status_code == 409
    ending = generate(OTHER_CREATOR, "7312345678901234570", -27, 3)
    share(ending, -26)
    unshared = generate(QUIET_CREATOR, "7312345678901234571", -10, 50)
    redeem(unshared, -9, STRANGER)
    hostile = generate(QUIET_CREATOR, "7312345678901234572", -3, 27)
    share(hostile, -2, note=HOSTILE)
    redeem(hostile, -1)
    launch(hostile, "hostile", -1, 0, 20, name=HOSTILE.replace("\u200b", "")[:100])
    post(f"/v1/codes/{hostile['code_id']}/notes", text=HOSTILE + "x" * 3000)
    permit(OTHER_CREATOR, enabled=False)
    for view in ("codes", "campaigns", "redemptions", "shares", "permissions"):
        shown(client, view)
    shown(client, "stats/figures", by="creator")
    shown(client, "stats/days")
    shown(client, "events", type="CodeGenerated")
    return Seeded(now, running, revoked, ended, ending, hostile, unshared)
