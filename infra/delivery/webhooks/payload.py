"""What a webhook carries: the event as a CloudEvent in JSON, with the body that every way out has, and so no secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from infra.delivery.cloud_events import (
    CONTENT_TYPE,
    SPEC_VERSION,
    STRUCTURED_CONTENT_TYPE,
    CloudEvent,
    cloud_event,
    rfc3339,
    source_of,
    structured,
    type_of,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent

HEADERS: Final = {"content-type": STRUCTURED_CONTENT_TYPE, "user-agent": "sparkledger-webhooks/1"}
# The type of a test: no event is ever named so.
TEST: Final = "Test"


def payload(recorded: RecordedEvent, ledger_name: str) -> bytes:
    """Return what is sent for an event of a ledger."""
    return structured(cloud_event(recorded, ledger_name))


def payload_of_test(message_id: UUID, webhook_id: UUID, ledger_name: str, moment: datetime) -> bytes:
    """Return what is sent for a test: it looks like an event, and is of a type of its own."""
    attributes = {
        "specversion": SPEC_VERSION,
        "id": str(message_id),
        "source": source_of(ledger_name),
        "type": type_of(TEST, 1),
        "subject": f"webhooks/{webhook_id}",
        "time": rfc3339(moment),
        "datacontenttype": CONTENT_TYPE,
    }
    return structured(CloudEvent(str(webhook_id), attributes, orjson.dumps({"webhook_id": webhook_id})))
