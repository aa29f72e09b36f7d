"""The topics of a destination: created with the right settings, and refused where they have others.

    PREFIX.code-events.v1     every event, for ever: never compacted, never expired
    PREFIX.code-state.v1      the current state of each code, by code: compacted
    PREFIX.code-progress.v1   how far each ledger is published: compacted, one partition, written in the transactions of
                              the events, and by nobody else

Wrong settings lose events silently, days later, so the publisher checks them whenever it starts. Each problem is one
line, with the command that fixes it.
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
# The largest batch that a topic must accept. Ours are far smaller, and the brokers' default is just above it.
MESSAGE_BYTES: Final = 1_000_000
FOREVER_MS: Final = 2**63 - 1


class TopicProblem(Exception):
    """A topic is missing or has wrong settings, and only a person can fix it."""


@dataclass(frozen=True, slots=True)
class Topic:
    """The settings of a topic: required ones, which are checked at every start, and preferred ones."""

    name: str
    partitions: int
    required: Mapping[str, str]
    preferred: Mapping[str, str]

    @property
    def create_command(self) -> str:
        """The command line that creates the topic."""
        configs = " ".join(f"--config {name}={value}" for name, value in (self.required | self.preferred).items())  # type: ignore[operator] # both are dicts
        return f"kafka-topics.sh --create --topic {self.name} --partitions {self.partitions} {configs}"

    def alter_command(self, name: str) -> str:
        """Return the command line that corrects one of the required settings."""
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
        # Publishing a ledger begins with its oldest events.
        "message.timestamp.before.max.ms": str(FOREVER_MS),
    }
    return Topic(f"{prefix}.code-events.v1", PARTITIONS, required, {})


def state_topic(prefix: str) -> Topic:
    """Return the topic of the current state of each code."""
    required = {"cleanup.policy": "compact", "message.timestamp.before.max.ms": str(FOREVER_MS)}
    return Topic(f"{prefix}.code-state.v1", PARTITIONS, required, {})


def progress_topic(prefix: str) -> Topic:
    """Return the topic of each ledger's progress. It is read as a whole at every start, so it is kept short."""
    preferred = {"segment.bytes": str(2**20), "min.cleanable.dirty.ratio": "0.01", "segment.ms": str(3_600_000)}
    return Topic(f"{prefix}.code-progress.v1", 1, {"cleanup.policy": "compact"}, preferred)


class Topics:
    """Checks topics and creates them, over a connection of its own."""

    def __init__(self, admin: KafkaAdminClient, replication_factor: int) -> None:
        """Take a connection, and the number of copies; -1 leaves that to the brokers."""
        self._admin = admin
        self._replication_factor = replication_factor

    def ensure(self, topics: Sequence[Topic], *, missing: str = "") -> None:
        """Create the topics that are missing, and check those that exist.

        Args:
            topics: the topics.
            missing: why missing topics must not be created; empty where they may be.

        Raises:
            TopicProblem: a topic has wrong settings, or is missing and not created.
            KafkaError: the brokers cannot be reached.

        """
        existing = self._partitions([topic.name for topic in topics])
        absent = [topic for topic in topics if topic.name not in existing]
        if absent and missing:
            message = f"Topic {absent[0].name} is missing. {missing}"
            raise TopicProblem(message)
        for topic in absent:
            self._create(topic)
        if absent:
            self._admin.wait_for_topics([topic.name for topic in absent])
            existing = self._partitions([topic.name for topic in topics])
        for topic in topics:
            self._check(topic, existing.get(topic.name, 0))

    def _partitions(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of partitions of those topics that exist.

        Raises:
            TopicProblem: reading a topic's settings is not allowed.
            KafkaError: a broker does not know a topic at the moment, because it is starting or stopping.

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

    def _check(self, topic: Topic, partitions: int) -> None:
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
            # Older brokers do not have every setting.
            actual = described.get(name, {}).get("value", wanted)
            if actual != wanted:
                message = f"Topic {topic.name} has {name}={actual} and must have {wanted}: {topic.alter_command(name)}"
                raise TopicProblem(message)
        largest = int(described.get("max.message.bytes", {}).get("value", MESSAGE_BYTES))
        if largest < MESSAGE_BYTES:
            message = (
                f"Topic {topic.name} accepts messages of at most {largest} bytes and must accept {MESSAGE_BYTES}: "
                f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} "
                f"--add-config max.message.bytes={MESSAGE_BYTES}"
            )
            raise TopicProblem(message)


@contextmanager
def topics(options: Mapping[str, Any], replication_factor: int) -> Iterator[Topics]:
    """Connect to the brokers, to check topics and create them.

    Raises:
        KafkaError: the brokers cannot be reached.

    """
    admin: Any = connected(KafkaAdminClient, options)
    try:
        yield Topics(admin, replication_factor)
    finally:
        with suppress(Exception):
            admin.close()
