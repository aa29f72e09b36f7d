"""The document of what is handed on as it happens, AsyncAPI 3.0: the topics of Kafka, the live stream, the webhooks."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import models_json_schema

from infra.delivery import cloud_events
from infra.delivery.event_schemas import CODE_STATE, TEST, schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

VERSION: Final = "3.0.0"
# Kept as a fact of its own in infra.delivery.kafka.topics, whose import would load Kafka's client into the API.
PARTITIONS: Final = 12
_TEXT: Final = {"type": "string"}
_ATTRIBUTES: Final[dict[str, dict[str, Any]]] = {
    "specversion": {"const": cloud_events.SPEC_VERSION},
    "id": {
        **_TEXT,
        "format": "uuid",
        "description": "The id of the event. It is unique together with `source`.",
    },
    "source": {**_TEXT, "format": "uri-reference", "description": "The ledger, such as `/ledgers/main`."},
    "type": {**_TEXT, "description": "The event's type and the version of its format."},
    "subject": {
        **_TEXT,
        "description": (
            "The code, creator, advertiser account or video that it belongs to: `codes/{code_id}`, "
            "`creators/{creator_id}`, `advertisers/{advertiser_id}` or "
            "`videos/{video_id}`. It is `log` for an event of the log itself."
        ),
    },
    "time": {**_TEXT, "format": "date-time", "description": "When it happened in the world."},
    "ledgerhistory": {
        **_TEXT,
        "format": "uuid",
        "description": "The history of the ledger. `sequence` names an event only within one history.",
    },
    "sequence": {**_TEXT, "pattern": "^[0-9]{19}$", "description": "The position in the ledger, padded with zeros."},
    "streamversion": {**_TEXT, "pattern": "^[1-9][0-9]*$", "description": "1, 2, 3 … for each subject, without gaps."},
    "recordedtime": {**_TEXT, "format": "date-time", "description": "When the ledger recorded it."},
    "authtype": {"enum": ["api_key", "system"], "description": "The kind of `authid`."},
    "authid": {**_TEXT, "description": "The id of the key that recorded it, or `clock`."},
    "correlationid": {**_TEXT, "description": "The business process that it belongs to, as named by the caller."},
    "causationid": {**_TEXT, "format": "uuid", "description": "The event that caused it."},
    "traceparent": {**_TEXT, "description": "The trace of the request that recorded it (W3C)."},
    "dataschema": {
        **_TEXT,
        "format": "uri",
        "description": "The JSON Schema of the data, if SPARKLEDGER_PUBLIC_URL is set.",
    },
}
_OPTIONAL: Final = {"correlationid", "causationid", "traceparent", "dataschema"}
_TAGS: Final = [
    {"name": "kafka", "description": "Topics of Kafka."},
    {"name": "stream", "description": "The live stream over HTTP."},
    {"name": "webhooks", "description": "Deliveries to URLs of subscribers."},
]


def document(streamed_event: type[BaseModel], endings: Mapping[Any, str]) -> dict[str, Any]:
    """Return the document; it is the same for every installation, so the names of servers are variables.

    Args:
        streamed_event: the model of an event as the live stream has it.
        endings: why the server ends a stream, with a sentence for each.

    """
    published = schemas()
    events = {name: schema for name, schema in published.items() if not name.startswith((CODE_STATE, TEST))}
    streamed = models_json_schema([(streamed_event, "serialization")], ref_template="#/components/schemas/{model}")[1]
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "Sparkledger",
            "version": importlib.metadata.version("sparkledger"),
            "description": (
                "Every event of a ledger, once and in order. Readers must ignore types and fields that they do "
                "not know: these are added without a new version. No event contains a secret or a note."
            ),
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            # Anyone who runs an installation is not known here; the domain is one that nobody has (RFC 2606).
            "contact": {
                "name": "The operators of this installation",
                "url": "https://sparkledger.invalid/",
                "email": "operators@sparkledger.invalid",
            },
            "tags": _TAGS,
        },
        "servers": {
            "api": {
                "host": "{host}",
                "protocol": "https",
                "description": "The API, which streams events. Behind a proxy, the proxy speaks TLS.",
                "variables": {"host": {"default": "127.0.0.1:8080", "description": "Where the API is reached."}},
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
                "tags": [{"name": "stream"}],
            },
            "kafka": {
                "host": "{brokers}",
                "protocol": "kafka-secure",
                "description": "The brokers of SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS.",
                "variables": {
                    "brokers": {"default": "127.0.0.1:9092", "description": "Where the brokers are reached."}
                },
                "security": [
                    {"$ref": f"#/components/securitySchemes/{name}"} for name in ("scram", "plain", "certificate")
                ],
                "tags": [{"name": "kafka"}],
            },
        },
        "defaultContentType": cloud_events.CONTENT_TYPE,
        "channels": {
            "codeEvents": _topic(
                "code-events", "Every event, kept permanently.", events, ["delete"], {"retention.ms": -1}
            ),
            "codeState": _topic(
                "code-state",
                "The current state of each code. The topic is compacted by code.",
                ["codeState"],
                ["compact"],
            ),
            "eventStream": {
                "address": "/v1/events/stream",
                "title": "Live stream",
                "description": (
                    "Server-Sent Events whose `id` is the history and the position. With `Last-Event-ID`, no event is "
                    "lost or repeated. Filters and permissions are those of `GET /v1/events`."
                ),
                "servers": [{"$ref": "#/servers/api"}],
                "messages": {
                    "event": {"$ref": "#/components/messages/streamed"},
                    "end": {"$ref": "#/components/messages/end"},
                },
                "bindings": {"http": {}},
            },
            "webhook": {
                "address": None,
                "title": "Webhooks",
                "description": "Created with `POST /v1/webhooks`. Signed by the Standard Webhooks specification.",
                "messages": {
                    "event": {"$ref": "#/components/messages/delivered"},
                    "test": {"$ref": "#/components/messages/test"},
                },
                "bindings": {"http": {}},
            },
        },
        "operations": {
            "publishEvents": _sends(
                "codeEvents", "kafka", "Publish every event, exactly once for `read_committed` readers."
            ),
            "publishStates": _sends(
                "codeState", "kafka", "Publish the state of a code, in the same transaction as its event."
            ),
            "streamEvents": _sends("eventStream", "stream", "Send events as they are recorded, and say why it ends."),
            "deliverEvents": _sends("webhook", "webhooks", "Deliver each event to each webhook, with retries."),
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a token."},
                "scram": {"type": "scramSha512", "description": "A login of the brokers."},
                "plain": {"type": "plain", "description": "A login of the brokers, over TLS."},
                "certificate": {"type": "X509", "description": "A client certificate."},
            },
            "messages": {
                **{name: _event(name, schema) for name, schema in events.items()},
                "codeState": _state(published[f"{CODE_STATE}.v1"]),
                "streamed": _streamed(streamed_event),
                "end": _end(endings),
                "delivered": _delivered(
                    "delivered",
                    "An event as one CloudEvent in JSON.",
                    [
                        {"$ref": "#/components/schemas/attributes"},
                        {
                            "properties": {"data": {"oneOf": [{"$ref": f"#/components/schemas/{n}"} for n in events]}},
                            "required": ["data"],
                        },
                    ],
                ),
                "test": _delivered("test", "A test, sent once for `POST /v1/webhooks/{webhook_id}/test`.", [_test()]),
            },
            "schemas": {
                **{name: _payload(schema) for name, schema in published.items()},
                **{name: _without_examples(schema) for name, schema in streamed["$defs"].items()},
                "attributes": _attributes(""),
                "headers": _attributes("ce_"),
            },
        },
    }


def _topic(
    name: str, description: str, messages: Iterable[str], cleanup: list[str], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "address": f"{{prefix}}.{name}.v1",
        "title": name,
        "description": f"{description} In Kafka; read it with `isolation.level=read_committed`.",
        "servers": [{"$ref": "#/servers/kafka"}],
        "parameters": {
            "prefix": {
                "default": "sparkledger",
                "description": "The prefix of the ledger in SPARKLEDGER_KAFKA_LEDGERS.",
            }
        },
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": {
            "kafka": {
                "partitions": PARTITIONS,
                "topicConfiguration": {"cleanup.policy": cleanup, **(more or {})},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _sends(channel: str, tag: str, summary: str) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "title": channel,
        "summary": summary,
        "description": summary,
        "tags": [{"name": tag}],
    }


def _event(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{cloud_events.TYPE_PREFIX}{name}",
        "title": name,
        "summary": schema["description"],
        "description": (
            "A CloudEvent in binary mode: its attributes are headers with the prefix `ce_`, its body is the value."
        ),
        "contentType": cloud_events.CONTENT_TYPE,
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {
            "kafka": {
                "key": {
                    "type": "string",
                    "description": (
                        "The id of the code, or of the creator, advertiser account or video for their events."
                    ),
                },
                "bindingVersion": "0.5.0",
            }
        },
    }


def _state(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": "codeState",
        "title": "State of a code",
        "summary": schema["description"],
        "contentType": cloud_events.CONTENT_TYPE,
        "payload": {"$ref": f"#/components/schemas/{CODE_STATE}.v1"},
        "bindings": {"kafka": {"key": {"type": "string", "description": "The code's id."}, "bindingVersion": "0.5.0"}},
    }


def _streamed(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": "streamed",
        "title": "Event of the live stream",
        "summary": "An event, as in `GET /v1/events`.",
        "contentType": cloud_events.CONTENT_TYPE,
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _end(endings: Mapping[Any, str]) -> dict[str, Any]:
    return {
        "name": "end",
        "title": "End of the live stream",
        "summary": "The last event of a stream that the server ends, named `end`. Its id is where to go on.",
        "contentType": cloud_events.CONTENT_TYPE,
        "payload": {
            "type": "object",
            "properties": {
                "code": {
                    "type": "string",
                    "enum": sorted(endings),
                    "description": " ".join(f"`{code}`: {sentence}" for code, sentence in endings.items()),
                },
                "detail": {**_TEXT, "description": "What happened, and what to do."},
            },
            "required": ["code", "detail"],
        },
    }


def _delivered(name: str, summary: str, payload: list[dict[str, Any]]) -> dict[str, Any]:
    signed = {"webhook-id", "webhook-timestamp", "webhook-signature"}
    return {
        "name": name,
        "title": "Delivery of a webhook" if name == "delivered" else "Test of a webhook",
        "summary": summary,
        "contentType": cloud_events.STRUCTURED_CONTENT_TYPE,
        "headers": {"type": "object", "properties": dict.fromkeys(sorted(signed), _TEXT), "required": sorted(signed)},
        "payload": {"type": "object", "allOf": payload},
    }


def _test() -> dict[str, Any]:
    """Return the schema of a test: of the attributes of an event, those that it has without being one."""
    attributes = {name: _ATTRIBUTES[name] for name in ("specversion", "id", "source", "time")}
    properties = {
        **attributes,
        "type": {"const": cloud_events.type_of(TEST, 1)},
        "subject": {**_TEXT, "pattern": "^webhooks/", "description": "The webhook: `webhooks/{webhook_id}`."},
        "datacontenttype": {"const": cloud_events.CONTENT_TYPE},
        "data": {"$ref": f"#/components/schemas/{TEST}.v1"},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _attributes(before: str) -> dict[str, Any]:
    """Return the schema of the attributes, as headers or as fields."""
    content_type = "content-type" if before else "datacontenttype"
    return {
        "type": "object",
        "properties": {
            **{f"{before}{name}": schema for name, schema in _ATTRIBUTES.items()},
            content_type: {"const": cloud_events.CONTENT_TYPE},
        },
        "required": [*(f"{before}{name}" for name in _ATTRIBUTES if name not in _OPTIONAL), content_type],
    }


def _payload(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema as a part of this document, which has a dialect of its own."""
    return {name: part for name, part in schema.items() if name not in {"$schema", "$id"}}


def _without_examples(schema: Any) -> Any:
    """Leave out what OpenAPI has and this document's schemas have not."""
    if isinstance(schema, dict):
        return {name: _without_examples(part) for name, part in schema.items() if name != "examples"}
    if isinstance(schema, list):
        return [_without_examples(part) for part in schema]
    return schema
