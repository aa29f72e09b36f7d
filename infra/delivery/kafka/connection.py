"""The Kafka clients of the publisher: transactions that cannot lose records unnoticed, and reading topics to the end.

This module works around the gaps of kafka-python, and no other module does:

- `flush()` and even `commit_transaction()` return normally when a record was lost. So every future is checked first.
- `commit_transaction()` waits for ever for a broker that is unavailable. So it runs with a time limit.
- `close()` flushes first, raises where that fails, and would leave its thread running. So `abandon` avoids it.
- When a connection fails, the client raises that no broker can be reached, and only logs the cause. So the cause is
  read from the log, and a wrong password does not look like an outage.
- A client whose constructor raises leaves a thread running that tries to connect for ever. So `connected` closes it.
- `end_offsets` of committed records is the last stable offset, which lies behind control records that consumers never
  see. So a topic is read until the consumer's position is there, not until the last record.
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
from kafka.codec import has_lz4, has_zstd  # type: ignore[import-untyped]
from kafka.errors import (  # type: ignore[import-untyped]
    AuthorizationError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]
from kafka.partitioner.default import murmur2  # type: ignore[import-untyped]

from infra.delivery.kafka.oauth import ClientCredentials, TokenRefused, TokenUnavailable
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

_LOGIN_ERRORS: Final = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)
# A broker that stops closes connections during the handshake too, so these are no refusals.
_CLOSED_BY_PEER: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

# The size of a batch for one partition, far below what a topic must accept.
BATCH_BYTES: Final = 512 * 1024
REQUEST_BYTES_MAX: Final = 1_000_000
BOOTSTRAP_S: Final = 5
REQUEST_S: Final = 10
DELIVERY_S: Final = 20
# The brokers abort a transaction after this time, so that readers do not wait for a dead publisher.
TRANSACTION_S: Final = 60
INIT_S: Final = 20
COMMIT_S: Final = 20
READ_S: Final = 30
# How long a logged cause explains a later failure: as long as the longest wait of this module.
CAUSE_S: Final = 30
# Longer than it takes to hand over a page, so that its records wait for the flush, which sends few large requests.
LINGER_MS: Final = 1_000
# The coordinator is busy for a few milliseconds after each transaction. The default would wait for 100.
RETRY_BACKOFF_MS: Final = 10


class BrokerRefused(Exception):
    """The brokers refuse a connection or an operation: a person must check logins, certificates and permissions."""


class KafkaUnresponsive(KafkaError):  # type: ignore[misc] # its base has no types
    """Kafka did not respond in time."""


class _FailureCause(logging.Handler):
    """The last refusal among the connection failures that Kafka's client has logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._reason: str | None = None
        self._logged_at = 0.0
        logging.getLogger("kafka.net").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, _LOGIN_ERRORS) or _is_distrust(argument):
                self._reason = " ".join(str(argument).split())
                self._logged_at = time.monotonic()

    def take(self) -> str | None:
        """Return the reason and forget it; None where it is too old to explain a failure now."""
        reason, self._reason = self._reason, None
        return reason if time.monotonic() - self._logged_at <= CAUSE_S else None


def _is_distrust(error: object) -> bool:
    """Return whether a connection failed because one side does not trust the other's certificate."""
    # The client wraps the error of TLS.
    cause = error.__context__ if isinstance(error, KafkaError) else None
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, _CLOSED_BY_PEER)


_cause: Final = _FailureCause()


@contextmanager
def classified_errors() -> Iterator[None]:
    """Distinguish refusals from outages in a block that talks to the brokers.

    Raises:
        BrokerRefused: the brokers refuse us.
        KafkaError: they cannot be reached, or it is unknown whether an operation succeeded.

    """
    _cause.take()  # an older cause does not explain a failure in this block
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
        reason = _cause.take()
        if reason is None:
            raise
        message = (
            f"Kafka rejects the connection: {reason}. Check SPARKLEDGER_KAFKA_SECURITY_PROTOCOL, "
            "SPARKLEDGER_KAFKA_SASL_MECHANISM, SPARKLEDGER_KAFKA_SASL_USERNAME and its password, and "
            "SPARKLEDGER_KAFKA_SSL_CAFILE."
        )
        raise BrokerRefused(message) from error


class KafkaRecord(NamedTuple):
    """A record to send. `timestamp_ms` is in milliseconds since 1970."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


class _Tokens(AbstractTokenProvider):  # type: ignore[misc] # its base has no types
    """Tokens for the clients, whose failures are distinguished as those of other logins."""

    def __init__(self, credentials: ClientCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def token(self) -> str:
        try:
            return self._credentials.token()
        except TokenRefused as refused:
            raise SaslAuthenticationFailedError(str(refused)) from refused
        except TokenUnavailable as unavailable:
            raise KafkaConnectionError(str(unavailable)) from unavailable


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the options of every client: the addresses of the brokers, and the login."""
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.kafka_bootstrap_servers),
        "client_id": "sparkledger",
        "security_protocol": protocol,
        "request_timeout_ms": REQUEST_S * 1000,
        "bootstrap_timeout_ms": BOOTSTRAP_S * 1000,
    }
    if protocol.startswith("SASL_") and settings.kafka_sasl_password is not None:
        password = settings.kafka_sasl_password.get_secret_value()
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        if settings.kafka_oauth_token_url is not None:
            credentials = (settings.kafka_sasl_username or "", password, settings.kafka_oauth_scope)
            options["sasl_oauth_token_provider"] = _Tokens(
                ClientCredentials(settings.kafka_oauth_token_url, *credentials)
            )
        else:
            options |= {"sasl_plain_username": settings.kafka_sasl_username, "sasl_plain_password": password}
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(settings, f"kafka_{name}")
        if path is not None:
            options[name] = str(path)
    return options


def compression(settings: Settings) -> str | None:
    """Return how a producer compresses; None for not at all."""
    match settings.kafka_compression:
        case "none":
            return None
        case "auto":
            return "zstd" if has_zstd() else "lz4" if has_lz4() else None
        case chosen:
            return chosen


def connected(kind: Callable[..., T], options: Mapping[str, Any]) -> T:
    """Create a client; where that fails, end the thread that its constructor started.

    Raises:
        KafkaError: the brokers cannot be reached, or refuse us.

    """
    started: list[Any] = []

    def client(**settings: Any) -> Any:
        started.append(KafkaNetClient(**settings))
        return started[-1]

    try:
        return kind(**options, kafka_client=client)
    except BaseException:
        for left in started:
            left.close()
        raise


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key as Kafka's own clients do, so that others can join our topics with theirs."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


class Producer:
    """A transactional producer, used until its first failure and then abandoned."""

    def __init__(self, options: Mapping[str, Any], transactional_id: str, compression: str | None = None) -> None:
        """Connect, and fence all older producers with this id, which can commit nothing more.

        Raises:
            KafkaError: the brokers cannot be reached, or refuse us.

        """
        settings = {
            "transactional_id": transactional_id,
            "compression_type": compression,
            "transaction_timeout_ms": TRANSACTION_S * 1000,
            # Set explicitly, because the client silently drops the default where another setting conflicts with it.
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
        self._executor = SingleThreadExecutor("kafka transactions")
        try:
            self._call(self._producer.init_transactions, INIT_S)
        except BaseException:
            self.abandon()
            raise

    def commit(self, records: Sequence[KafkaRecord]) -> None:
        """Send records in one transaction. On return, `read_committed` readers see all of them.

        Raises:
            KafkaError: it is unknown whether they were committed. Abandon this producer, and read what was.

        """
        producer = self._producer
        producer.begin_transaction()
        send = producer.send
        sent = [
            send(topic, value, key, headers, partition, timestamp_ms)
            for topic, partition, key, value, headers, timestamp_ms in records
        ]
        producer.flush(DELIVERY_S)
        for future in sent:
            if not future.succeeded():
                raise future.exception or KafkaUnresponsive("A record was neither accepted nor rejected.")
        self._call(producer.commit_transaction, COMMIT_S)

    def _call(self, call: Callable[[], None], limit_s: float) -> None:
        """Make a call that may never return; in that case its thread is left behind."""
        try:
            self._executor.begin(call).result(limit_s)
        except TimeoutError:
            message = f"Kafka did not respond to {call.__name__} within {limit_s:.0f} s."
            raise KafkaUnresponsive(message) from None

    def abandon(self) -> None:
        """Give the producer up in any state. Its open transaction is aborted by the next producer with this id."""
        self._executor.leave()
        # Once its thread is forced to close, it fails the records in flight, and close() no longer raises half-way.
        sender = self._producer._sender  # noqa: SLF001 - no public call ends the thread in every case
        sender.force_close()
        sender.join(1)
        with suppress(Exception):
            self._producer.close(timeout=0)


@contextmanager
def _consumer(options: Mapping[str, Any], topic: str) -> Iterator[tuple[Any, list[Any]]]:
    """Open a `read_committed` consumer of every partition of a topic, at its beginning."""
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


def _committed_records(consumer: Any, partitions: Sequence[Any]) -> Iterator[Any]:
    """Yield every committed record up to the present last stable offsets."""
    ends = consumer.end_offsets(partitions, timeout_ms=REQUEST_S * 1000)
    deadline = time.monotonic() + READ_S
    # The position moves past control records and aborted records too, which are never returned.
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
    """Return the last committed value of each key of a compacted topic.

    Raises:
        KafkaError: the topic cannot be read to its end.

    """
    with _consumer(options, topic) as (consumer, partitions):
        values: dict[bytes, bytes] = {}
        for record in _committed_records(consumer, partitions):
            if record.value is None:
                values.pop(record.key, None)
            else:
                values[record.key] = record.value
        return values


def is_empty(options: Mapping[str, Any], topic: str) -> bool:
    """Return whether a topic contains no committed record; control records and aborted records do not count.

    Raises:
        KafkaError: the topic cannot be read.

    """
    with _consumer(options, topic) as (consumer, partitions):
        return next(_committed_records(consumer, partitions), None) is None
