"""Other people's software reads what we publish: Confluent's client, and the SDK of CloudEvents."""

from __future__ import annotations

import time
from datetime import UTC
from typing import Any

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from confluent_kafka import Consumer

from infra.delivery.kafka.topics import events_topic
from tests import given
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import WITHIN_S, events, publishing
from tests.infra.opened import Opened


async def test_confluents_client_and_the_sdk_of_cloudevents_read_our_events(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    for command in (given.permission(), given.generate(), given.share(), given.redeem()):
        await opened.when(tenant, command)
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        topic.until(4)

    consumer = Consumer(
        {
            "bootstrap.servers": kafka.plain,
            "group.id": prefix,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([events_topic(prefix).name])
    read: list[Any] = []
    deadline = time.monotonic() + WITHIN_S
    while len(read) < 4:
        assert time.monotonic() < deadline
        message = consumer.poll(0.2)
        if message is not None:
            assert message.error() is None
            headers: dict[str, Any] = dict(message.headers() or ())
            read.append(from_binary_event(KafkaMessage(headers, message.key(), message.value() or b"")))
    consumer.close()

    read.sort(key=lambda event: event.get_extension("sequence"))
    recorded = await opened.events.page(tenant.ledger_id)
    assert [
        (
            event.get_specversion(),
            event.get_id(),
            event.get_source(),
            event.get_type(),
            event.get_time().astimezone(UTC),
            event.get_datacontenttype(),
            event.get_extension("streamversion"),
        )
        for event in read
    ] == [
        (
            "1.0",
            str(r.event_id),
            "/ledgers/main",
            f"sparkledger.{r.type}.v1",
            r.effective_at,
            "application/json",
            str(r.stream_version),
        )
        for r in recorded
    ]
    assert read[1].get_subject() == f"codes/{given.CODE}"
    assert read[1].get_data()["body"]["video_id"] == given.VIDEO
