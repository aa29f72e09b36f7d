"""The questions of a compliance desk: each is answered by the requests that the documentation names, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.api.world import OTHER_ACCOUNT, OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, World, days, refused, told
from tests.waiting import until

ROOT: Final = Path(__file__).parents[2]
ROW: Final = re.compile(r"^\| (\d+) \| ([^|]+) \| (`.+`) \|$", re.MULTILINE)
VIDEO: Final = "7312345678901234567"


def questions() -> dict[int, tuple[str, list[str]]]:
    """Return the questions of the documentation by number, each with its requests."""
    page = (ROOT / "docs" / "questions.md").read_text()
    return {int(number): (asked.strip(), re.findall(r"`([^`]+)`", cell)) for number, asked, cell in ROW.findall(page)}


class Desk:
    """A ledger in which everything happened that is asked about, as an auditor reads it."""

    def __init__(self, world: World) -> None:
        world.permit(effective_at=days(-60))
        told(world.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": OWN_BRAND}), 200)
        # In this year, on its first days too.
        begins = max(days(-4), f"{datetime.now(UTC).year}-01-01T00:00:00+00:00")
        code = world.generate(video_id=VIDEO, starts_at=begins, days=7)
        world.share(code)
        world.redeem(code)
        world.redeem(code, OTHER_ACCOUNT)
        world.launch(code, ends_at=days(20))
        told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost it"}), 200)
        gone = world.generate(video_id="7312345678901234568")
        told(world.client.post(f"/v1/codes/{gone['code_id']}/revocation", json={"reason": "wrong brand"}), 200)
        redemption = {"secret": gone["secret"], "advertiser_id": OWN_ACCOUNT}
        assert refused(world.client.post("/v1/redemptions", json=redemption)) == (409, "code_revoked")
        assert world.creator().get("/v1/stats").status_code == 403
        world.server.serving.seal()
        now = datetime.now(UTC)
        self.client = world.as_role("auditor")
        self.head = world.head()
        keys = told(world.client.get("/v1/keys"), 200)["keys"]
        self.values = {
            "video_id": VIDEO,
            "advertiser_id": OWN_ACCOUNT,
            "creator_id": OWN_CREATOR,
            "brand_id": OWN_BRAND,
            "code_id": code["code_id"],
            "key_id": next(key["key_id"] for key in keys if key["role"] == "admin"),
            "terms_version": code["terms_version"],
            "time": now.isoformat().replace("+00:00", "Z"),
            "next_week": days(7).replace("+00:00", "Z"),
            "year": str(now.year),
            "yesterday": days(-1)[:10],
        }

    def ask(self, request: str) -> Any:
        """Send a request, and return what it answers, of everything that was recorded."""
        for name, value in self.values.items():
            request = request.replace(f"{{{name}}}", value)
        method, path, *body = request.split(" ", 2)
        joined = f"{path}{'&' if '?' in path else '?'}at_least={self.head}"
        waits = method == "GET" and "/v1/accesses" not in path and "as_of=" not in path
        answer = self.client.request(method, joined if waits else path, json=json.loads(body[0]) if body else None)
        assert answer.status_code == 200, (request, answer.text)
        return answer.json() if "json" in answer.headers["content-type"] else answer.content


def _types(answer: dict[str, Any]) -> set[str]:
    return {event["type"] for event in answer["events"]}


def _sections(answer: dict[str, Any]) -> set[str]:
    return {section["name"] for section in answer["sections"] if section["entries"]}


def _sum(answer: dict[str, Any], figure: str) -> int:
    return sum(int(entry[figure]) for entry in answer["figures"])


# By the number of a question: what is right of the answers to its requests.
RIGHT: Final[dict[int, Callable[..., bool]]] = {
    1: lambda one: one["authorized"] and bool(one["evidence"]),
    2: lambda file: file.startswith(b"PK"),
    3: lambda one: [event["type"] for event in one["events"]] == ["PermissionEnabled"],
    4: lambda one: [row["campaign_id"] for row in one["campaigns"]] == ["campaign-1"],
    5: lambda one: {"codes", "shares", "redemptions", "campaigns"} <= _sections(one),
    6: lambda one: {"codes", "shares"} <= _sections(one),
    7: lambda one: [row["advertiser_id"] for row in one["redemptions"]] == [OTHER_ACCOUNT],
    8: lambda one: sorted(row["state"] for row in one["codes"]) == ["redeemed", "revoked"],
    9: lambda one: "events" in _sections(one),
    10: lambda redemptions, accesses: (
        [row["reason"] for row in redemptions["redemptions"]] == ["code_revoked"]
        and {"role_not_allowed"} <= {row["refused"] for row in accesses["accesses"]}
    ),
    11: lambda one: [row["video_id"] for row in one["codes"]] == [VIDEO],
    12: lambda one: [row["state"] for row in one["codes"]] == ["redeemed"],
    13: lambda one: len(one["figures"]) == 12 and (_sum(one, "issued"), _sum(one, "revoked")) == (2, 1),
    14: lambda one: [(row["key"], row["refusals"]) for row in one["figures"]] == [(OWN_CREATOR, 1)],
    15: lambda one: (
        [(row["key"], row["redemptions"], row["refusals"]) for row in one["figures"]] == [(OWN_BRAND, 1, 1)]
    ),
    16: lambda one: _types(one) == {"CodeRevealed"},
    17: lambda one: "GET /v1/authorizations" in {row["route"] for row in one["accesses"]},
    18: lambda one: _types(one) == {"PermissionEnabled"},
    19: lambda one: _types(one) == {"CodeGenerated"} and len(one["events"]) == 2,
    20: lambda one: [event["body"]["reason"] for event in one["events"]] == ["wrong brand"],
    21: lambda one: [row["campaign_id"] for row in one["campaigns"]] == ["campaign-1"],
    22: lambda one: {"shares", "redemptions", "campaigns"} <= _sections(one),
    23: lambda one: {"redemptions", "campaigns"} <= _sections(one),
    24: lambda one: (
        [(row["key"], row["planned_spend"]) for row in one["spend_at_risk"]] == [(OWN_BRAND, {"USD": "500.00"})]
    ),
    25: lambda one: len(one["days"]) == 31 and not any(sum(day["codes"].values()) for day in one["days"]),
}


def test_every_question_is_answered_by_the_requests_that_are_named(world: World) -> None:
    desk, asked = Desk(world), questions()
    assert asked.keys() == RIGHT.keys()
    # Attempts and reads are written a moment later.
    refusals = {"refused": "true"}
    until(lambda: told(desk.client.get("/v1/accesses", params=refusals), 200)["accesses"])
    wrong = {}
    for number, (question, requests) in asked.items():
        answers = [desk.ask(request) for request in requests]
        if not RIGHT[number](*answers):
            wrong[number, question] = answers
    assert wrong == {}


def test_all_but_one_question_take_one_request() -> None:
    assert [number for number, (_, requests) in questions().items() if len(requests) > 1] == [10]
