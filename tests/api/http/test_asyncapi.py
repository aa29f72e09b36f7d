"""GET /asyncapi.json: a document that the specification's own schema accepts, and that says what is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from jsonschema import Draft7Validator, Draft202012Validator, ValidationError

from api import streams
from api.event_content import EventAnswer
from api.http import asyncapi
from domain.event_types import EVENT_TYPES
from infra.delivery.cloud_events import binary_headers, cloud_event
from infra.delivery.kafka.topics import PARTITIONS, events_topic, state_topic
from infra.delivery.webhooks.signing import payload, payload_of_test
from tests.generated import examples
from tests.given import NOW
from tests.infra.delivery.recorded import HISTORY, as_recorded
from tests.serving import Server

# As the AsyncAPI Initiative publishes it, under the Apache License 2.0.
SPECIFICATION = Path(__file__).parent / "asyncapi-3.0.0.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(json.dumps(asyncapi.document(EventAnswer, streams.ENDINGS)))  # type: ignore[no-any-return]


def test_it_is_served_to_everybody(server: Server, document: dict[str, Any]) -> None:
    answer = httpx.get(f"{server.url}/asyncapi.json", trust_env=False)

    assert answer.status_code == 200
    assert answer.json() == document


def test_the_specifications_own_schema_accepts_it(document: dict[str, Any]) -> None:
    validator = Draft7Validator(json.loads(SPECIFICATION.read_text()))

    assert [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)] == []


def test_that_schema_would_notice_a_mistake(document: dict[str, Any]) -> None:
    validator = Draft7Validator(json.loads(SPECIFICATION.read_text()))
    document = document | {"operations": {"wrong": {"action": "shout", "channel": {"$ref": "#/channels/codeEvents"}}}}

    assert not validator.is_valid(document)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))

    assert references
    for reference in references:
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_every_event_is_a_message_of_the_topic(document: dict[str, Any]) -> None:
    expected = {f"{name}.v{getattr(kind, 'class_version', 1)}" for name, kind in EVENT_TYPES.items()}

    assert document["channels"]["codeEvents"]["messages"].keys() == expected
    names = {document["components"]["messages"][name]["name"] for name in expected}
    assert names == {f"sparkledger.{name}" for name in expected}


@pytest.mark.parametrize("name", examples())
def test_what_is_sent_is_what_is_promised(name: str, document: dict[str, Any]) -> None:
    event = cloud_event(as_recorded(examples()[name][0]), "main", HISTORY, traceparent="00-4bf9-00f0-01")
    message = document["components"]["messages"][event.attributes["type"].removeprefix("sparkledger.")]

    def check(schema: dict[str, Any], instance: Any) -> None:
        Draft202012Validator({**schema, "components": document["components"]}).validate(instance)

    check(message["headers"], {key: value.decode() for key, value in binary_headers(event)})
    check(message["payload"], json.loads(event.data))


def test_the_topics_are_those_that_are_created(document: dict[str, Any]) -> None:
    for channel, topic in (
        ("codeEvents", events_topic("{prefix}")),
        ("codeState", state_topic("{prefix}")),
    ):
        told = document["channels"][channel]
        assert told["address"] == topic.name
        assert told["bindings"]["kafka"]["partitions"] == topic.partitions == PARTITIONS
        configured = told["bindings"]["kafka"]["topicConfiguration"]
        assert configured["cleanup.policy"] == [topic.required["cleanup.policy"]]
        assert str(configured.get("retention.ms", "")) == topic.required.get("retention.ms", "")


def test_what_webhooks_are_sent_is_what_is_promised(document: dict[str, Any]) -> None:
    messages = document["components"]["messages"]

    def check(name: str, body: bytes) -> None:
        schema = {**messages[name]["payload"], "components": document["components"]}
        Draft202012Validator(schema).validate(json.loads(body))

    for event, _ in examples().values():
        check("delivered", payload(as_recorded(event), "main", HISTORY))
    test = payload_of_test(UUID(int=1), UUID(int=2), "main", NOW)
    check("test", test)
    with pytest.raises(ValidationError):
        check("delivered", test)
    assert document["channels"]["webhook"]["messages"].keys() == {"event", "test"}


def test_the_end_of_a_stream_is_one_of_those_that_are_promised(document: dict[str, Any]) -> None:
    payload_ = document["components"]["messages"]["end"]["payload"]
    for code, detail in streams.ENDINGS.items():
        Draft202012Validator(payload_).validate({"code": code, "detail": detail})
    assert document["channels"]["eventStream"]["messages"].keys() == {"event", "end"}


def test_every_channel_has_its_server_and_every_server_its_security(document: dict[str, Any]) -> None:
    servers = {name: channel.get("servers") for name, channel in document["channels"].items()}
    kafka, api = ([{"$ref": f"#/servers/{name}"}] for name in ("kafka", "api"))
    assert servers == {"codeEvents": kafka, "codeState": kafka, "eventStream": api, "webhook": None}
    assert all(server["security"] for server in document["servers"].values())
