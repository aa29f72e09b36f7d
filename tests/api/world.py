"""A ledger with something in it, told in few words: what the tests of the API begin from."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from api.http.cursors import with_history
from api.http.problems import statuses_of
from tests.serving import Server

OWN_CREATOR, OTHER_CREATOR = "creator-own", "creator-other"
OWN_BRAND, OTHER_BRAND = "brand-own", "brand-other"
OWN_ACCOUNT, OTHER_ACCOUNT = "account-own", "account-other"
TERMS = "2026-01"


def days(number: float) -> str:
    """Return the moment so many days from now, in RFC 3339."""
    return (datetime.now(UTC) + timedelta(days=number)).isoformat()


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return an answer's content, where it has the status that was expected."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    content: dict[str, Any] = answer.json() if answer.content else {}
    return content


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a problem, whose shape is checked on the way."""
    content = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "retryable", "request_id"} <= content.keys()
    assert content["type"] == f"/docs#{content['code']}"
    assert content["status"] in statuses_of(content["code"])
    assert (content["status"], content["request_id"]) == (answer.status_code, answer.headers["request-id"])
    return answer.status_code, content["code"]


@dataclass
class World:
    """One ledger, its administrator's client, and commands whose details do not matter to the test."""

    server: Server
    client: httpx.Client
    clients: list[httpx.Client] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def as_role(self, role: str, **subjects: list[str]) -> httpx.Client:
        """Return a client with a fresh key of a role."""
        return self.with_key(told(self.client.post("/v1/keys", json={"role": role, "subjects": subjects}), 201)["key"])

    def with_key(self, key: str) -> httpx.Client:
        """Return a client with a key; it is closed with the world."""
        self.clients.append(self.server.client(key))
        return self.clients[-1]

    def another(self) -> World:
        """Begin another ledger on the same server."""
        server = self.server.another()
        self.clients.append(server.client())
        return World(server, self.clients[-1], self.clients)

    def creator(self) -> httpx.Client:
        """Return a client that acts for the creator `OWN_CREATOR`."""
        return self.as_role("creator", creator_ids=[OWN_CREATOR])

    def brand(self) -> httpx.Client:
        """Return a client that acts for `OWN_BRAND` and its account."""
        return self.as_role("brand", brand_ids=[OWN_BRAND], advertiser_ids=[OWN_ACCOUNT])

    def permit(self, creator_id: str = OWN_CREATOR, *, enabled: bool = True, **more: Any) -> dict[str, Any]:
        """Switch a creator's permission."""
        return told(self.client.put(f"/v1/creators/{creator_id}/permission", json={"enabled": enabled} | more), 200)

    def generate(self, creator_id: str = OWN_CREATOR, **facts: Any) -> dict[str, Any]:
        """Generate a code for a video of its own, unless told which."""
        self.permit(creator_id)
        asked = {"creator_id": creator_id, "video_id": f"video-{next(self._numbers)}", "terms_version": TERMS} | facts
        return told(self.client.post("/v1/codes", json=asked), 201)

    def without_secret(self, creator_id: str = OWN_CREATOR) -> dict[str, Any]:
        """Import a code whose secret is not known."""
        self.permit(creator_id)
        row = f"creator_id,video_id,expires_at\n{creator_id},video-{next(self._numbers)},{days(30)}\n"
        asked = {"record": "true", "terms": TERMS}
        answer = self.client.post("/v1/imports", content=row, headers={"Content-Type": "text/csv"}, params=asked)
        _, imported, _ = map(json.loads, answer.text.splitlines())
        return self.read(imported)

    def share(
        self, code: dict[str, Any], brand_id: str = OWN_BRAND, advertiser_id: str = OWN_ACCOUNT, **more: Any
    ) -> dict[str, Any]:
        """Share a code."""
        asked = {"brand_id": brand_id, "advertiser_id": advertiser_id, "channel": "dm"} | more
        return told(self.client.post(f"/v1/codes/{code['code_id']}/shares", json=asked), 201)

    def redeem(self, code: dict[str, Any], advertiser_id: str = OWN_ACCOUNT) -> dict[str, Any]:
        """Redeem a code."""
        asked = {"secret": code["secret"], "advertiser_id": advertiser_id}
        return told(self.client.post("/v1/redemptions", json=asked), 201)

    def launch(
        self, code: dict[str, Any], campaign_id: str = "campaign-1", advertiser_id: str = OWN_ACCOUNT, **more: Any
    ) -> dict[str, Any]:
        """Launch a campaign on a redeemed code."""
        asked = campaign(campaign_id, advertiser_id) | more
        return told(self.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=asked), 201)

    def running(self, creator_id: str = OWN_CREATOR, brand_id: str = OWN_BRAND, account: str = OWN_ACCOUNT) -> Any:
        """Return a code that was shared and redeemed, and on which a campaign runs."""
        code = self.generate(creator_id)
        self.share(code, brand_id, account)
        self.redeem(code, account)
        self.launch(code, advertiser_id=account)
        return code

    def read(self, code: dict[str, Any], **query: Any) -> dict[str, Any]:
        """Read a code."""
        return told(self.client.get(f"/v1/codes/{code['code_id']}", params=query), 200)

    def cursor(self, text: str) -> str:
        """Return a cursor as the ledger would hand it out."""
        history = UUID(self.client.get("/v1/stats").headers["ledger-history"])
        return str(with_history(history, {"cursor": text})["cursor"])

    def head(self) -> int:
        """Return the ledger's last position."""
        events = told(self.client.get("/v1/events", params={"order": "desc", "limit": 1}), 200)["events"]
        return int(events[0]["position"]) if events else 0


def campaign(campaign_id: str = "campaign-1", advertiser_id: str = OWN_ACCOUNT) -> dict[str, Any]:
    """Return what launches a campaign inside a window of 30 days from now."""
    return {
        "campaign_id": campaign_id,
        "advertiser_id": advertiser_id,
        "budget": {"amount": "500.00", "currency": "USD"},
        "starts_at": days(1),
        "ends_at": days(20),
    }
