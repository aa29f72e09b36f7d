"""The catalogue of event types, and the schemas that messages name."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from domain.authorization import EFFECTS, Verdict, verdict
from domain.event_types import EVENT_TYPES
from infra.delivery.cloud_events import cloud_event
from infra.delivery.event_schemas import schemas
from tests import given
from tests.api.world import World, told
from tests.generated import examples
from tests.given import ADVERTISER, Story
from tests.infra.delivery.recorded import HISTORY, as_recorded


def test_every_type_is_listed_with_a_schema_that_is_served(world: World) -> None:
    types = told(world.as_role("subscriber").get("/v1/event-types"), 200)["event_types"]

    assert [entry["type"] for entry in types] == list(EVENT_TYPES)
    for entry in types:
        served = httpx.get(f"{world.server.url}{entry['json_schema']}", trust_env=False)
        assert served.headers["content-type"] == "application/schema+json"
        assert served.json() == schemas()[f"{entry['type']}.v{entry['version']}"]


def test_a_schema_that_there_is_not_is_not_found(world: World) -> None:
    assert world.client.get("/schemas/Shared.v99.json").status_code == 404


@pytest.mark.parametrize("name", examples())
def test_a_message_names_a_schema_that_resolves(world: World, name: str) -> None:
    event = cloud_event(as_recorded(examples()[name][0]), "main", HISTORY, public_url=world.server.url)
    served = httpx.get(event.attributes["dataschema"], trust_env=False)

    assert served.json()["properties"]["type"] == {"const": name}
    assert "dataschema" not in cloud_event(as_recorded(examples()[name][0]), "main", HISTORY).attributes


def answered(story: Story) -> Verdict:
    streams = story.ledger.streams
    (creator,) = {recorded.creator_stream for recorded in story.stream()}
    return verdict([story.stream()], {creator: streams[creator]}, ADVERTISER, story.clock())


@pytest.mark.parametrize(
    ("story", "last", "authorized"),
    [
        (given.shared, "Shared", False),
        (given.redeemed, "Redeemed", True),
        (given.running, "CampaignLaunched", True),
        (given.campaign_ended, "CampaignEnded", True),
        (given.permission_off, "PermissionDisabled", True),
        (given.erased, "CreatorErased", True),
        (given.superseded, "CodeGenerated", True),
        (lambda: given.after(given.approaching(), given.record_due()), "ExpiryApproaching", True),
        (lambda: given.after(given.redeemed(), given.reveal()), "CodeRevealed", True),
        (lambda: given.after(given.redeemed(), given.note()), "NoteAdded", True),
        (given.revoked, "Revoked", False),
        (given.expired, "Expired", False),
        (given.revived, "Extended", True),
    ],
)
def test_the_catalogue_says_what_begins_and_ends_an_authorization(
    story: Callable[[], Story], last: str, *, authorized: bool
) -> None:
    now = story()
    assert (now.ledger.events[-1].type, answered(now).authorized) == (last, authorized)
    effect = EFFECTS.get(EVENT_TYPES[last])
    assert (effect == "ends") is (not authorized and last != "Shared")
    assert json.dumps(effect) in {"null", '"begins"', '"changes"', '"ends"'}
