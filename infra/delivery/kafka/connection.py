"""Kafka as the publisher needs it: transactions in which no lost record passes for a sent one, and reading to the end.

What kafka-python leaves open is closed here, and nowhere else:

- `flush()` and even `commit_transaction()` return normally when a record was lost: every future is looked at first.
- `commit_transaction()` waits without end for a broker that is away: a watchdog gives it up.
- `close()` flushes first, raises where that fails, and would leave its thread behind: abandoning goes around it.
- Where a connection fails, it raises that the brokers cannot be reached and keeps the cause to its log: it is taken
  from there, so that a wrong password is not taken for a broker that is away.
- A client whose constructor raises, for the brokers are away, leaves a thread behind that tries to connect for ever:
  `connected` closes what it began.
- `end_offsets` of committed records is the stable end, behind control records that nobody is shown: one reads until
  the consumer's position is there, and never compares it with the last record's.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # type: ignore[import-untyped] # it has no types
from kafka.errors import (  # type: ignore[import-untyped]
    AuthorizationError,
    IllegalSaslStateError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.partitioner.default import murmur2  # type: ignore[import-untyped]

from infra.postgres.single_thread_executor import SingleThreadExecutor

if TYPE_CHECKING:
    from infra.settings import Settings

T = TypeVar("T")

__all__ = [
    "BrokerRefused",
    "KafkaError",
    "KafkaRecord",
    "KafkaUnresponsive",
    "Producer",
    "classified_errors",
    "client_options",
    "connected",
    "is_empty",
    "last_values",
    "partition_of",
]

_TURNED_AWAY: Final = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)
# A broker that stops hangs up in the midst of a handshake too.
_HUNG_UP: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

# Bytes that a batch for one partition grows to, far below what a topic must accept.
BATCH_BYTES: Final = 512 * 1024
REQUEST_BYTES_MAX: Final = 1_000_000
BOOTSTRAP_S: Final = 5
REQUEST_S: Final = 10
DELIVERY_S: Final = 20
# The brokers abort what nobody commits, so that readers of what is committed do not wait for a dead publisher.
TRANSACTION_S: Final = 60
INIT_S: Final = 20
COMMIT_S: Final = 20
READ_S: Final = 30
# How long a refusal that was heard is the reason of what fails: as long as anything here is waited for.
HEARD_S: Final = 30
# Longer than it takes to hand over a page: its records wait for the flush that sends them, in few large requests.
LINGER_MS: Final = 1_000
# Between two transactions the coordinator is busy for a few milliseconds; with the default this would be 100.
RETRY_BACKOFF_MS: Final = 10


class BrokerRefused(Exception):
    """The brokers are there and turn us away: a person must see to the login, the certificates or the rights."""


class KafkaUnresponsive(KafkaError):  # type: ignore[misc] # its base has no types
    """Kafka did not answer in the time that it was given."""


class _Heard(logging.Handler):
    """Keeps the last telling reason why a connection failed, out of what Kafka's client logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._reason: str | None = None
        self._heard_at = 0.0
        logging.getLogger("kafka.net").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, _TURNED_AWAY) or _untrusted(argument):
                self._reason = " ".join(str(argument).split())
                self._heard_at = time.monotonic()

    def take(self) -> str | None:
        """Return it, unless what has gone on since shows that it was passing; and forget it."""
        reason, self._reason = self._reason, None
        return reason if time.monotonic() - self._heard_at <= HEARD_S else None


def _untrusted(error: object) -> bool:
    """Tell whether a connection failed because one side does not trust the other: the client wraps what TLS raised."""
    cause = error.__context__ if isinstance(error, KafkaError) else None
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, _HUNG_UP)


_heard: Final = _Heard()


@contextmanager
def classified_errors() -> Iterator[None]:
    """Tell a refusal from an outage: around everything that talks to the brokers.

    Raises:
        Refused: the brokers are there and turn us away.
        KafkaError: they cannot be reached, or what was begun with them cannot be known to be done.

    """
    _heard.take()  # what was heard before is no reason of what fails now
    try:
        yield
    except AuthorizationError as error:
        message = (
            f"Kafka denies access ({' '.join(str(error).split())}). Grant SPARKLEDGER_KAFKA_SASL_USERNAME "
            "Describe, DescribeConfigs, Create, Write and Read on the topics of the prefix, Describe and Write "
            "on the transactional id of the prefix, and IdempotentWrite on the cluster."
        )
        raise BrokerRefused(message) from error
    except KafkaError as error:
        reason = _heard.take()
        if reason is None:
            raise
        message = (
            f"Kafka rejects the connection: {reason}. Check SPARKLEDGER_KAFKA_SECURITY_PROTOCOL, "
            "SPARKLEDGER_KAFKA_SASL_MECHANISM, SPARKLEDGER_KAFKA_SASL_USERNAME and its password, and "
            "SPARKLEDGER_KAFKA_SSL_CAFILE."
        )
        raise BrokerRefused(message) from error


class KafkaRecord(NamedTuple):
    """A record to be sent; `timestamp_ms` counts from 1970."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


def client_options(settings: Settings) -> dict[str, Any]:
    """Return what every client is made with: where the brokers are, and how to speak to them."""
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.kafka_bootstrap_servers),
        "client_id": "sparkledger",
        "security_protocol": protocol,
        "request_timeout_ms": REQUEST_S * 1000,
        "bootstrap_timeout_ms": BOOTSTRAP_S * 1000,
    }
    if protocol.startswith("SASL_") and settings.kafka_sasl_password is not None:
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(settings, f"kafka_{name}")
        if path is not None:
            options[name] = str(path)
    return options


def connected(kind: Callable[..., T], options: Mapping[str, Any]) -> T:
    """Make a client, and nothing else: one that cannot be made ends the thread that it began.

    Raises:
        KafkaError: the brokers cannot be reached, or refuse us.

    """
    begun: list[Any] = []

    def client(**settings: Any) -> Any:
        begun.append(KafkaNetClient(**settings))
        return begun[-1]

    try:
        return kind(**options, kafka_client=client)
    except BaseException:
        for left in begun:
            left.close()
        raise


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key: that of Kafka's own clients, so that others can join our topics with theirs."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Producer:
    """A transactional producer that is used until the first failure, and then abandoned."""

    def __init__(self, options: Mapping[str, Any], transactional_id: str) -> None:
        """Connect, and fence whoever used the id before: from here on nothing of theirs can be committed any more.

        Raises:
            KafkaError: the brokers cannot be reached, or refuse us.

        """
        settings = {
            "transactional_id": transactional_id,
            "transaction_timeout_ms": TRANSACTION_S * 1000,
            # Where another setting conflicts with it, an unspoken default would be dropped without a word.
            "enable_idempotence": True,
            "acks": "all",
            "allow_auto_create_topics": False,
            "batch_size": BATCH_BYTES,
            "linger_ms": LINGER_MS,
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "delivery_timeout_ms": DELIVERY_S * 1000,
            "max_block_ms": REQUEST_S * 1000,
            "max_request_size": REQUEST_BYTES_MAX,
            "metrics_enabled": False,
        }
        self._producer: Any = connected(KafkaProducer, {**options, **settings})
        self._hands = SingleThreadExecutor("kafka transactions")
        try:
            self._do(self._producer.init_transactions, INIT_S)
        except BaseException:
            self.abandon()
            raise

    def commit(self, messages: Sequence[KafkaRecord]) -> None:
        """Send messages as one transaction; on return readers of what is committed see all of them.

        Raises:
            KafkaError: it is not known what became of them. Abandon this producer, and ask what was committed.

        """
        producer = self._producer
        producer.begin_transaction()
        send = producer.send
        sent = [
            send(topic, value, key, headers, partition, timestamp_ms)
            for topic, partition, key, value, headers, timestamp_ms in messages
        ]
        producer.flush(DELIVERY_S)
        for future in sent:
            if not future.succeeded():
                raise future.exception or KafkaUnresponsive("A record was neither accepted nor refused.")
        self._do(producer.commit_transaction, COMMIT_S)

    def _do(self, call: Callable[[], None], limit_s: float) -> None:
        """Call what may never return; where it does not, its thread stays with it."""
        try:
            self._hands.begin(call).result(limit_s)
        except TimeoutError:
            message = f"Kafka did not respond to {call.__name__} within {limit_s:.0f} s."
            raise KafkaUnresponsive(message) from None

    def abandon(self) -> None:
        """Leave it behind, whatever state it is in; what it had begun is aborted by the next of its id."""
        self._hands.leave()
        # Asked to close at once, its thread fails what is on its way; only then does close() not raise and stop short.
        sender = self._producer._sender  # noqa: SLF001 - nothing public ends the thread whatever happens
        sender.force_close()
        sender.join(1)
        with suppress(Exception):
            self._producer.close(timeout=0)


@contextmanager
def _reading(options: Mapping[str, Any], topic: str) -> Iterator[tuple[Any, list[Any]]]:
    """Lend a consumer of every partition of a topic, at its beginning, which is shown what is committed alone."""
    settings = {
        "group_id": None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "earliest",
        "allow_auto_create_topics": False,
        "max_poll_records": 5_000,
        "metrics_enabled": False,
    }
    consumer: Any = connected(KafkaConsumer, {**options, **settings})
    try:
        numbers = consumer.partitions_for_topic(topic) or ()
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        if not partitions:
            message = f"Topic {topic} has no readable partition."
            raise KafkaTimeoutError(message)
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        yield consumer, partitions
    finally:
        with suppress(Exception):
            consumer.close(autocommit=False)


def _until_stable_end(consumer: Any, partitions: Sequence[Any]) -> Iterator[Any]:
    """Yield every committed record up to the stable ends of now."""
    ends = consumer.end_offsets(partitions, timeout_ms=REQUEST_S * 1000)
    deadline = time.monotonic() + READ_S
    # A position moves over control and aborted records too, which a record's own offset would never show.
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        records = consumer.poll(timeout_ms=200)
        for of_partition in records.values():
            yield from of_partition
        if records:
            deadline = time.monotonic() + READ_S
        elif time.monotonic() > deadline:
            message = f"Kafka returned nothing more of topic {partitions[0].topic} for {READ_S} s, before its end."
            raise KafkaUnresponsive(message)


def last_values(options: Mapping[str, Any], topic: str) -> dict[bytes, bytes]:
    """Return the last committed value of each key of a compacted topic, read from its beginning to its stable end.

    Raises:
        KafkaError: it cannot be read to its end.

    """
    with _reading(options, topic) as (consumer, partitions):
        found: dict[bytes, bytes] = {}
        for record in _until_stable_end(consumer, partitions):
            if record.value is None:
                found.pop(record.key, None)
            else:
                found[record.key] = record.value
        return found


def is_empty(options: Mapping[str, Any], topic: str) -> bool:
    """Tell whether nothing committed stands in a topic; control and aborted records do not count.

    Raises:
        KafkaError: it cannot be read.

    """
    with _reading(options, topic) as (consumer, partitions):
        return next(_until_stable_end(consumer, partitions), None) is None
