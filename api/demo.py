"""The guide's story, told against a running server: each step, what it mirrors on TikTok, and what it recorded."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S: Final = 10.0
# A read waits five seconds for its view. A worker that starts on a busy machine may need longer.
READS_AGAIN: Final = 5
CREATIVE: Final = "c" * 64
OTHER_CREATIVE: Final = "d" * 64


class StoryBroke(Exception):
    """A step did not come out as in the story."""


@dataclass
class Story:
    """One run, with a creator, a video and a brand of its own, so that it can be repeated in the same ledger."""

    client: httpx.Client
    say: Callable[[str], None]
    number: int = 0
    tag: str = field(default_factory=lambda: secrets.token_hex(3))

    def step(self, what: str, mirrors: str, method: str, path: str, expected: int, **request: Any) -> dict[str, Any]:
        """Take one step and say what became of it."""
        self.number += 1
        answer = self.client.request(method, path, **request)
        for _ in range(READS_AGAIN if method == "GET" else 0):
            if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            answer = self.client.request(method, path, **request)
        body: dict[str, Any] = answer.json()
        self.say(f"\n{self.number:2}. {what}\n    {mirrors}")
        if answer.status_code != expected:
            message = (
                f"step {self.number} was answered {answer.status_code}, not {expected}: {body.get('detail', body)}"
            )
            raise StoryBroke(message)
        if answer.is_client_error:
            self.say(f"    → refused, {answer.status_code} {body['code']}: {body['detail']}")
        elif method == "GET" or path.endswith("/lookup"):
            self.say("    → answered; a lookup records nothing")
        else:
            self.say(f"    → recorded at position {body['position']}, version {body['version']}")
        return body


def run_demo(url: str, key: str, say: Callable[[str], None]) -> int:
    """Run the story, step by step.

    Args:
        url: where the server is.
        key: an admin key of the ledger to run it in.
        say: takes each line.

    Returns:
        0 if every step came out as in the story, else 1.

    """
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            _tell(Story(client, say))
    except httpx.HTTPError as error:
        say(f"No response from {url}: {error}. Is `make up` running, with the same SPARKLEDGER_PORT?")
        return 1
    except StoryBroke as broke:
        say(f"\nThe demo failed: {broke}")
        return 1
    return 0


def _tell(story: Story) -> None:
    creator, video, advertiser = f"creator-{story.tag}", f"7{int(story.tag, 16):017}7", f"advertiser-{story.tag}"
    code = _issue(story, creator, video, advertiser)
    code_id = code["code_id"]
    _redeem_and_run(story, code, advertiser)
    then = datetime.now(UTC)
    revoked = story.step(
        "The creator revokes the code",
        "the video's Ad authorization, off",
        "POST",
        f"/v1/codes/{code_id}/revocation",
        200,
        json={"reason": "The collaboration has ended"},
    )
    history = story.step(
        "The history of the code",
        "TikTok does not keep this",
        "GET",
        f"/v1/codes/{code_id}/history",
        200,
        params={"at_least": revoked["position"]},
    )
    for event in history["events"]:
        story.say(f"    {event['position']:>5}  {event['type']:<17} {event['summary']}")
    for name, moment in (("while the campaign ran", then), ("now", datetime.now(UTC))):
        answer = story.step(
            f"Was the video authorized for the advertiser {name}?",
            "the question of a compliance team",
            "GET",
            "/v1/authorizations",
            200,
            params={
                "video_id": video,
                "advertiser_id": advertiser,
                "at": moment.isoformat().replace("+00:00", "Z"),
                "at_least": revoked["position"],
            },
        )
        verdict = "yes" if answer["authorized"] else "no"
        evidence = ", ".join(map(str, answer["evidence"]))
        story.say(f"    → {verdict}: {answer['reason']}; evidence: positions {evidence}")


def _issue(story: Story, creator: str, video: str, advertiser: str) -> dict[str, Any]:
    order = {"creator_id": creator, "video_id": video}
    story.step(
        "The creator switches ad authorization on",
        "Settings & Privacy > Creator Tools > Ad Settings > Ad Authorization, on",
        "PUT",
        f"/v1/creators/{creator}/permission",
        200,
        json={"enabled": True},
    )
    story.step(
        "Generating a code without the terms is refused",
        "the advertising terms are not accepted",
        "POST",
        "/v1/codes",
        409,
        json=order,
    )
    code = story.step(
        "The creator accepts the terms and generates a code",
        "the video > … > Ad settings > Ad authorization, on > accept the terms > Generate code",
        "POST",
        "/v1/codes",
        201,
        json={**order, "terms_version": "2026-01"},
    )
    story.say(f"    the code, shown to its owner: {code['masked']} (masked here), until {code['expires_at']}")
    extended = story.step(
        "The creator extends it to 60 days",
        "Extend",
        "POST",
        f"/v1/codes/{code['code_id']}/extensions",
        201,
        json={"days": 60},
    )
    story.say(f"    now until {extended['expires_at']}")
    story.step(
        "The creator sends it to the brand",
        "Copy code, and paste it in a DM",
        "POST",
        f"/v1/codes/{code['code_id']}/shares",
        201,
        json={"brand_id": f"brand-{story.tag}", "channel": "dm", "advertiser_id": advertiser},
    )
    return code


def _redeem_and_run(story: Story, code: dict[str, Any], advertiser: str) -> None:
    code_id, enter = code["code_id"], "TikTok Ads Manager > Spark Ads > Use Authorization Code"
    story.step(
        "A mistyped code is refused",
        enter,
        "POST",
        "/v1/redemptions",
        404,
        json={"secret": "#mistyped", "advertiser_id": advertiser},
    )
    story.step(
        "The brand looks up the code",
        "TikTok does not say this before the code is used",
        "POST",
        "/v1/codes/lookup",
        200,
        json={"secret": code["secret"]},
    )
    story.step(
        "The brand redeems it",
        enter,
        "POST",
        "/v1/redemptions",
        201,
        json={"secret": code["secret"], "advertiser_id": advertiser},
    )
    now = datetime.now(UTC)
    campaign = {
        "campaign_id": f"campaign-{story.tag}",
        "advertiser_id": advertiser,
        "budget": {"amount": "500.00", "currency": "USD"},
        "starts_at": _text(now),
        "ends_at": _text(now + timedelta(days=90)),
        "creative_sha256": CREATIVE,
    }
    campaigns = f"/v1/codes/{code_id}/campaigns"
    launched = story.step(
        "The brand launches a campaign",
        "set budget, targeting, duration > launch",
        "POST",
        campaigns,
        201,
        json=campaign,
    )
    for warning in launched["warnings"]:
        story.say(f"    warning: {warning}")
    story.step(
        "Another creative is refused while the campaign runs",
        "a Spark video cannot be edited once it is live",
        "POST",
        campaigns,
        409,
        json={**campaign, "campaign_id": f"other-{story.tag}", "creative_sha256": OTHER_CREATIVE},
    )
    story.step(
        "Revoking is refused while the campaign runs",
        "a code can only be deleted after its ads",
        "POST",
        f"/v1/codes/{code_id}/revocation",
        409,
        json={"reason": "too early"},
    )
    story.step(
        "The brand ends the campaign",
        "Ads Manager > campaign, off",
        "POST",
        f"{campaigns}/{campaign['campaign_id']}/end",
        200,
        json={"reason": "sold out"},
    )


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
