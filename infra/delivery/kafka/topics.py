"""The topics of a destination: created with their settings, and refused where somebody gave them others.

    PREFIX.code-events.v1     every event, for good: never compacted, never expired
    PREFIX.code-state.v1      each code's current state, by code: compacted
    PREFIX.code-progress.v1   how far each ledger is published: compacted, one partition, written in the transaction
                              of the events themselves; nobody else's to write

Wrong settings lose events silently, days later, hence the look at every start. What is wrong is said in one line, with
the command that mends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from kafka import KafkaAdminClient  # type: ignore[import-untyped] # it has no types
from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from kafka.errors import RetriableError, TopicAlreadyExistsError, for_code  # type: ignore[import-untyped]

from infra.delivery.kafka.connection import connected

PARTITIONS: Final = 12
# The largest batch that a topic must take: ours are far smaller, and the brokers' default is just above it.
MESSAGE_BYTES: Final = 1_000_000
FOREVER_MS: Final = 2**63 - 1


class TopicProblem(Exception):
    """A topic is not as it must be, and nobody but its owner can mend it."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it must be: what it is created with, and which of it is compared at every start."""

    name: str
    partitions: int
    required: Mapping[str, str]
    preferred: Mapping[str, str]

    @property
    def create_command(self) -> str:
        """The command line that creates it."""
        configs = " ".join(f"--config {name}={value}" for name, value in (self.required | self.preferred).items())  # type: ignore[operator] # both are dicts
        return f"kafka-topics.sh --create --topic {self.name} --partitions {self.partitions} {configs}"

    def alter_command(self, name: str) -> str:
        """Return the command line that sets one of its settings right."""
        return (
            f"kafka-configs.sh --alter --entity-type topics --entity-name {self.name} "
            f"--add-config {name}={self.required[name]}"
        )


def events_topic(prefix: str) -> Topic:
    """Return the topic of every event."""
    required = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        # Events of long ago are published too, when a ledger is.
        "message.timestamp.before.max.ms": str(FOREVER_MS),
    }
    return Topic(f"{prefix}.code-events.v1", PARTITIONS, required, {})


def state_topic(prefix: str) -> Topic:
    """Return the topic of each code's current state."""
    required = {"cleanup.policy": "compact", "message.timestamp.before.max.ms": str(FOREVER_MS)}
    return Topic(f"{prefix}.code-state.v1", PARTITIONS, required, {})


def progress_topic(prefix: str) -> Topic:
    """Return the topic of how far each ledger is published: read whole at every start, hence kept short."""
    preferred = {"segment.bytes": str(2**20), "min.cleanable.dirty.ratio": "0.01", "segment.ms": str(3_600_000)}
    return Topic(f"{prefix}.code-progress.v1", 1, {"cleanup.policy": "compact"}, preferred)


class Topics:
    """Looks at topics and creates them, over a connection of its own."""

    def __init__(self, admin: KafkaAdminClient, replication_factor: int) -> None:
        """Take a connection; -1 copies leave their number to the brokers."""
        self._admin = admin
        self._replication_factor = replication_factor

    def ensure(self, topics: Sequence[Topic], *, missing: str = "") -> None:
        """Create what is missing, and compare what is there.

        Args:
            topics: what must be there.
            missing: why a missing one must not be created; empty where it may.

        Raises:
            TopicProblem: a topic is not as it must be, or cannot be created.
            KafkaError: the brokers cannot be reached.

        """
        there = self._partitions([topic.name for topic in topics])
        absent = [topic for topic in topics if topic.name not in there]
        if absent and missing:
            message = f"Topic {absent[0].name} is missing. {missing}"
            raise TopicProblem(message)
        for topic in absent:
            self._create(topic)
        if absent:
            self._admin.wait_for_topics([topic.name for topic in absent])
            there = self._partitions([topic.name for topic in topics])
        for topic in topics:
            self._compare(topic, there.get(topic.name, 0))

    def _partitions(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of partitions of the topics that there are.

        Raises:
            TopicProblem: a topic must not be looked at.
            KafkaError: a broker does not know it yet, or not any more: it has only just begun, or is about to end.

        """
        found = {}
        for described in self._admin.describe_topics(list(names)):
            error = for_code(described["error_code"])
            if error.__name__ == "UnknownTopicOrPartitionError":
                continue
            if issubclass(error, RetriableError):
                raise error(described["name"])
            if described["error_code"] != 0:
                message = f"Topic {described['name']} cannot be described: {error.__name__}. Grant Describe on it."
                raise TopicProblem(message)
            found[described["name"]] = len(described["partitions"])
        return found

    def _create(self, topic: Topic) -> None:
        options = {
            "num_partitions": topic.partitions,
            "replication_factor": self._replication_factor,
            "configs": {**topic.required, **topic.preferred},
        }
        answer = self._admin.create_topics({topic.name: options}, raise_errors=False)
        (created,) = answer["topics"]
        error = for_code(created["error_code"])
        if created["error_code"] != 0 and error is not TopicAlreadyExistsError:
            reason = created.get("error_message") or error.__name__
            message = f"Topic {topic.name} cannot be created: {reason} Create it yourself: {topic.create_command}"
            raise TopicProblem(message)

    def _compare(self, topic: Topic, partitions: int) -> None:
        if partitions != topic.partitions:
            message = (
                f"Topic {topic.name} has {partitions} partitions and must have {topic.partitions}, or events of "
                "one code would be in two partitions. Publish under another prefix, or delete the topic and "
                f"create it again: {topic.create_command}"
            )
            raise TopicProblem(message)
        resource = ConfigResource(ConfigResourceType.TOPIC, topic.name)
        described = self._admin.describe_configs([resource], config_filter="all")["topic"][topic.name]
        for name, wanted in topic.required.items():
            # Brokers from before a setting do not have it.
            there = described.get(name, {}).get("value", wanted)
            if there != wanted:
                message = f"Topic {topic.name} has {name}={there} and must have {wanted}: {topic.alter_command(name)}"
                raise TopicProblem(message)
        largest = int(described.get("max.message.bytes", {}).get("value", MESSAGE_BYTES))
        if largest < MESSAGE_BYTES:
            message = (
                f"Topic {topic.name} accepts messages of at most {largest} bytes and must accept {MESSAGE_BYTES}: "
                f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} --add-config "
                f"max.message.bytes={MESSAGE_BYTES}"
            )
            raise TopicProblem(message)


@contextmanager
def topics(options: Mapping[str, Any], replication_factor: int) -> Iterator[Topics]:
    """Connect, to look at topics and create them.

    Raises:
        KafkaError: the brokers cannot be reached.

    """
    admin: Any = connected(KafkaAdminClient, options)
    try:
        yield Topics(admin, replication_factor)
    finally:
        with suppress(Exception):
            admin.close()
