"""Events as CloudEvents 1.0, the same for Kafka and for webhooks, without secrets and without notes.

`cloud_event(recorded, ledger_name, history)` turns an event of the log into a `CloudEvent`: its attributes as strings,
its data as JSON bytes, and its ordering key. `binary_headers` is the binary mode of the Kafka binding; `structured` is
the JSON format (`application/cloudevents+json`), which is one document.

The data is the event as `GET /v1/events` shows it, with the same names: its metadata, and as `body` its clear body as
it is stored. What is sealed is not in it by construction, and a code's secret is in it only masked. Two things are left
out: the name of the actor's key, which can be erased while messages cannot, and the summary. Attribute names consist of
lowercase letters and digits, as the specification requires.

    id              the event's id; together with `source` it is unique for ever, so deduplicate by both
    source          the ledger, `/ledgers/main`
    type            the type of the event and the version of its format, `sparkledger.Shared.v1`
    subject         what it happened to: `codes/{code_id}`, `creators/{creator_id}`, `advertisers/{advertiser_id}`, or
                    `ledger` for the ledger itself
    time            when it was true in the world (its effective time)
    recordedtime    when the ledger recorded it; never decreases with `sequence`
    sequence        the position in the ledger, padded with zeros so that strings sort like numbers
    ledgerhistory   the history of the ledger: `sequence` names an event only within it
    streamversion   the event's number among those of its subject: 1, 2, 3 … without gaps
    authtype        `api_key`, or `system` for the clock
    authid          the id of the key that recorded it, or `clock`
    dataschema      the JSON Schema of the data, where the API's public URL is known
    correlationid, causationid, traceparent: where the command had them

There is no `expirytime`: consumers may drop an event that has one, and a code's expiry is no reason to.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from functools import cache
from typing import TYPE_CHECKING, Final

import orjson

from domain.values import CLOCK
from infra.eventstore.event_metadata import event_metadata, row_of, subject_of
from infra.eventstore.serialization import UnreadableEvent, clear_body, event_type

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent

SPEC_VERSION: Final = "1.0"
CONTENT_TYPE: Final = "application/json"
STRUCTURED_CONTENT_TYPE: Final = "application/cloudevents+json"
TYPE_PREFIX: Final = "sparkledger."
SEQUENCE_DIGITS: Final = 19  # the digits of the largest position


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event for subscribers.

    Attributes:
        key: the ordering key: the id of the code, of the creator for a permission, of the advertiser account, of the
            video for its binding, or of the log.
        attributes: all context attributes by name, as strings, with `specversion` and `datacontenttype`.
        data: the event as JSON.

    """

    key: str
    attributes: Mapping[str, str]
    data: bytes


def cloud_event(
    recorded: RecordedEvent,
    ledger_name: str,
    history: UUID,
    *,
    traceparent: str | None = None,
    stored: bytes | None = None,
    public_url: str | None = None,
) -> CloudEvent:
    """Return an event of a ledger as a CloudEvent, in the current format of its type.

    Args:
        recorded: the event.
        ledger_name: its ledger.
        history: the present history of the ledger.
        traceparent: the `traceparent` of its command, if known. `RecordedEvent` does not contain it.
        stored: its clear body as it is stored, if available. It need not be serialized again then.
        public_url: where the API is reached, if known; it serves the schemas.

    Raises:
        Unreadable: this version of the program cannot read it.

    """
    event = recorded.event
    if isinstance(event, UnreadableEvent):
        raise event.error
    name, version = event_type(event)
    subject = subject_of(event, recorded.stream_id, recorded.creator_id, recorded.video_id)
    attributes = {
        "specversion": SPEC_VERSION,
        "id": str(recorded.event_id),
        "source": source_of(ledger_name),
        "type": type_of(name, version),
        "subject": subject.path,
        "time": rfc3339(recorded.effective_at),
        "datacontenttype": CONTENT_TYPE,
        "ledgerhistory": str(history),
        "sequence": sequence_of(recorded.position),
        "streamversion": str(recorded.stream_version),
        "recordedtime": rfc3339(recorded.recorded_at),
        "authtype": "system" if recorded.actor.key_id == CLOCK.key_id else "api_key",
        "authid": recorded.actor.key_id,
    }
    if recorded.correlation_id is not None:
        attributes["correlationid"] = recorded.correlation_id
    if recorded.causation_id is not None:
        attributes["causationid"] = str(recorded.causation_id)
    if public_url is not None:
        attributes["dataschema"] = public_url + schema_path(name, version)
    if traceparent is not None:
        attributes["traceparent"] = traceparent
    body = stored if stored is not None and recorded.type_version == version else clear_body(event)
    content = event_metadata(row_of(recorded), event, subject, recorded.actor.key_id)
    content["body"] = orjson.Fragment(body)
    return CloudEvent(subject.key, attributes, orjson.dumps(content, option=orjson.OPT_UTC_Z))


def source_of(ledger_name: str) -> str:
    """Return the `source` of a ledger's events. Names of ledgers need no escape in a URI reference."""
    return f"/ledgers/{ledger_name}"


def type_of(name: str, version: int) -> str:
    """Return the `type` of an event from its published name and the version of its format."""
    return f"{TYPE_PREFIX}{name}.v{version}"


def schema_path(name: str, version: int) -> str:
    """Return where the API serves the schema of an event's data."""
    return f"/schemas/{name}.v{version}.json"


def sequence_of(position: int) -> str:
    """Return a position as a string that sorts like the number."""
    return f"{position:0{SEQUENCE_DIGITS}}"


def rfc3339(moment: datetime) -> str:
    """Return a time in UTC, with Z; it must have a time zone."""
    text = moment.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else rfc3339(moment.astimezone(UTC))


def binary_headers(event: CloudEvent) -> list[tuple[str, bytes]]:
    """Return the headers of a Kafka record in binary mode: `ce_` and the name, except for the content type."""
    return [(_header_name(name), value.encode()) for name, value in event.attributes.items()]


@cache
def _header_name(attribute: str) -> str:
    return "content-type" if attribute == "datacontenttype" else f"ce_{attribute}"


def structured(event: CloudEvent) -> bytes:
    """Return attributes and data as one JSON document, the format `application/cloudevents+json`."""
    return orjson.dumps({**event.attributes, "data": orjson.Fragment(event.data)})
