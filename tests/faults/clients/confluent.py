"""confluent-kafka, which is librdkafka, following the topic of events: a line for each event.

python confluent.py BOOTSTRAP TOPIC
"""

from __future__ import annotations

import json
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

bootstrap, topic = sys.argv[1:]
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": "confluent-kafka",
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "topic.metadata.refresh.interval.ms": 2_000,
    }
)
reached: dict[int, int] = {}


def assigned(_: object, partitions: list[TopicPartition]) -> None:
    """Go on where this process was: a broker that is killed forgets its groups' sessions."""
    for one in partitions:
        one.offset = reached.get(one.partition, OFFSET_BEGINNING)
    consumer.assign(partitions)


consumer.subscribe([topic], on_assign=assigned)
while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        print(record.error(), file=sys.stderr, flush=True)  # noqa: T201 - the process that started this one reads it
        continue
    partition, offset = record.partition(), record.offset()
    assert partition is not None
    assert offset is not None
    reached[partition] = offset + 1
    headers = {name: value.decode() for name, value in dict(record.headers() or ()).items() if isinstance(value, bytes)}
    print(  # noqa: T201 - as above
        json.dumps(
            [int(headers["ce_sequence"]), headers["ce_subject"], headers["ce_id"], int(headers["ce_streamversion"])]
        ),
        flush=True,
    )
