"""What subscribers are promised stays promised: published schemas, and which changes of them are refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from domain.code import replay_code
from infra.delivery.cloud_events import cloud_event
from infra.delivery.event_schemas import incompatibilities, schemas
from infra.delivery.kafka.code_state import ENTRIES_MAX, state_content
from tests import given
from tests.generated import examples
from tests.generated_schemas import FOLDER, refused, schema_pages
from tests.infra.delivery.recorded import HISTORY, as_recorded

ROOT = Path(__file__).parents[3]
PUBLISHED: dict[str, Any] = {
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["a", "b"]},
        "more": {"type": "integer"},
        "inner": {"type": "object", "properties": {"part": {"type": "string"}}, "required": ["part"]},
    },
    "required": ["name", "kind"],
}


def changed(**properties: Any) -> dict[str, Any]:
    """Return the published schema with some properties changed, and without those that are None."""
    schema = deepcopy(PUBLISHED)
    schema["properties"] |= properties
    for name in [name for name, part in schema["properties"].items() if part is None]:
        del schema["properties"][name]
        schema["required"] = [required for required in schema["required"] if required != name]
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (changed(), []),
        (changed(new={"type": "string"}), []),
        (changed(name={"type": "string", "description": "What it is called."}), []),
        (changed(more=None), ["more was removed"]),
        (changed(name=None), ["name was removed", "name may be absent now"]),
        (changed(more={"type": "string"}), ["more is another type now"]),
        (changed(kind={"enum": ["a", "b", "c"]}), ["kind is another type now"]),
        (changed(inner={**PUBLISHED["properties"]["inner"], "required": []}), ["inner.part may be absent now"]),
        (changed(inner={"type": "string"}), ["inner is another type now"]),
        ({**PUBLISHED, "required": ["name"]}, ["kind may be absent now"]),
        (
            {**PUBLISHED, "required": ["name", "kind", "more"]},
            ["more is required now, and older events do not have it"],
        ),
    ],
)
def test_a_schema_changes_only_so_that_its_readers_do_not_stumble(schema: dict[str, Any], why: list[str]) -> None:
    assert incompatibilities(PUBLISHED, schema) == why


def test_no_published_schema_is_broken() -> None:
    assert refused(ROOT) == []


def test_a_broken_one_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = "docs/schemas/Shared.v1.json"
    published = json.loads((ROOT / path).read_text())
    published["properties"]["body"]["properties"]["region"] = {"type": "string"}
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(json.dumps(published))

    assert refused(tmp_path) == [
        f"{path}: body.region was removed. Make it a new version of the event (CONTRIBUTING.md)."
    ]


def published(folder: Path, *names: str) -> Path:
    """Publish schemas of these names; return where."""
    (folder / FOLDER).mkdir(parents=True)
    for name in names:
        (folder / FOLDER / f"{name}.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", ["Handed.v1", "Shared.v2"])
def test_a_published_event_that_is_recorded_no_more_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    (why,) = refused(published(tmp_path, name))
    assert why == (
        f"docs/schemas/{name}.json: no such event is recorded any more. Ledgers and subscribers have it: bring its "
        "class back under this name (CONTRIBUTING.md)."
    )


def test_an_older_version_of_an_event_that_is_recorded_stays_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_today = {"Shared.v2": schemas()["Shared.v1"]}
    monkeypatch.setattr("tests.generated_schemas.schemas", lambda: of_today)

    assert refused(published(tmp_path, "Shared.v1")) == []


def test_every_schema_is_published_as_it_is() -> None:
    for path, text in schema_pages().items():
        assert (ROOT / path).read_text() == text


@pytest.mark.parametrize("name", schemas())
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("name", examples())
def test_every_event_is_as_its_schema_says(name: str) -> None:
    event = cloud_event(as_recorded(examples()[name][0]), "main", HISTORY)
    validator = Draft202012Validator(schemas()[event.attributes["type"].removeprefix("sparkledger.")])

    assert list(validator.iter_errors(json.loads(event.data))) == []


def test_nothing_that_is_sealed_is_in_a_schema() -> None:
    for name, (_, sealed) in examples().items():
        properties = schemas()[f"{name}.v1"]["properties"]
        assert not (properties.keys() | properties["body"]["properties"].keys()) & sealed.keys()


@pytest.mark.parametrize(
    "story",
    [given.generated, given.without_secret, given.shared, given.running, given.campaign_ended, given.revoked],
)
def test_every_state_is_as_its_schema_says(story: Any) -> None:
    stream = story().stream(given.CODE)
    content = state_content(replay_code(stream), "main", stream[-1])
    validator = Draft202012Validator(schemas()["CodeState.v1"])

    assert list(validator.iter_errors(orjson.loads(orjson.dumps(content, option=orjson.OPT_UTC_Z)))) == []
    assert content.keys() == schemas()["CodeState.v1"]["properties"].keys()


def test_a_state_shows_the_newest_entries_and_counts_all() -> None:
    story = given.generated()
    for number in range(ENTRIES_MAX + 5):
        story = given.after(story, given.redeem(advertiser_id=f"adv-{number}"))
    stream = story.stream(given.CODE)
    content = state_content(replay_code(stream), "main", stream[-1])

    assert (content["redemption_count"], content["truncated"]) == (ENTRIES_MAX + 5, True)
    assert not state_content(replay_code(stream[:-5]), "main", stream[-6])["truncated"]
    assert [entry["advertiser_id"] for entry in content["redemptions"]] == [
        f"adv-{number}" for number in range(5, ENTRIES_MAX + 5)
    ]
