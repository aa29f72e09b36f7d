"""kafka-python, following the topic of events: a line for each event.

python kafka_python.py BOOTSTRAP TOPIC
"""

from __future__ import annotations

import json
import sys

from kafka import KafkaConsumer  # type: ignore[import-untyped]

bootstrap, topic = sys.argv[1:]
consumer = KafkaConsumer(
    topic,
    bootstrap_servers=bootstrap,
    group_id=None,
    isolation_level="read_committed",
    auto_offset_reset="earliest",
    enable_auto_commit=False,
    metadata_max_age_ms=2_000,
)
for record in consumer:
    headers = {name: value.decode() for name, value in record.headers}
    print(  # noqa: T201 - the process that started this one reads it
        json.dumps(
            [int(headers["ce_sequence"]), headers["ce_subject"], headers["ce_id"], int(headers["ce_streamversion"])]
        ),
        flush=True,
    )
