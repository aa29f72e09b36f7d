"""No broker there: every client says so, again and again, and leaves nothing behind that goes on trying."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError  # type: ignore[import-untyped]
from sparkledger_consumer import _connected

from infra.delivery.kafka import connection
from infra.delivery.kafka.connection import BrokerRefused, Producer, classified_errors, is_empty, last_values
from infra.delivery.kafka.topics import topics
from tests.infra.delivery.kafka.publishing import options
from tests.waiting import until


@pytest.fixture
def nobody() -> str:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def look_at_topics(reached: dict[str, Any]) -> None:
    with topics(reached, -1):
        pytest.fail("somebody answered")


CLIENTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a producer": lambda reached: Producer(reached, "nobody"),
    "topics": look_at_topics,
    "progress": lambda reached: last_values(reached, "nothing"),
    "a look": lambda reached: is_empty(reached, "nothing"),
    "the consumer": _connected,
}


def threads_of_clients() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("kafka-", "sparkledger"))}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_a_client_that_cannot_connect_leaves_no_thread_behind(
    client: Callable[[dict[str, Any]], object], nobody: str
) -> None:
    before = threads_of_clients()
    for _ in range(3):
        with pytest.raises(KafkaError):
            client({**options(nobody), "bootstrap_timeout_ms": 300})

    until(lambda: threads_of_clients() <= before, 10)


def wrapped(cause: Exception) -> KafkaConnectionError:
    """As the client wraps what a handshake raised."""
    error = KafkaConnectionError(f"Handshake failed: {cause}")
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "refused"),
    [
        (ssl.SSLCertVerificationError("self-signed certificate"), True),
        (ssl.SSLEOFError("EOF occurred in violation of protocol"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
    ids=["nobody vouches for it", "hung up", "reset"],
)
def test_a_broker_that_hangs_up_in_a_handshake_is_away_and_one_that_is_not_trusted_needs_a_person(
    cause: Exception, *, refused: bool
) -> None:
    def fail() -> None:
        with classified_errors():
            logging.getLogger("kafka.net.manager").error("Connection failed: %s", wrapped(cause))
            raise KafkaConnectionError("nothing but that it failed")

    with pytest.raises(BrokerRefused if refused else KafkaConnectionError):
        fail()


def test_why_an_earlier_connection_was_refused_is_no_reason_for_what_fails_later() -> None:
    logger = logging.getLogger("kafka.net.manager")
    logger.error("Connection failed: %s", wrapped(ssl.SSLCertVerificationError("self-signed certificate")))

    def fail() -> None:
        with classified_errors():
            raise KafkaConnectionError("the broker is away")

    with pytest.raises(KafkaConnectionError):
        fail()


@pytest.mark.parametrize(("seconds", "refused"), [(29, True), (31, False)])
def test_a_refusal_is_the_reason_of_what_fails_soon_after_and_not_of_an_outage_days_later(
    seconds: float, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    now = time.monotonic()

    def publish() -> None:
        with classified_errors():
            monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now))
            logger = logging.getLogger("kafka.net.manager")
            logger.error("Connection failed: %s", wrapped(ssl.SSLCertVerificationError("self-signed certificate")))
            monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now + seconds))
            raise KafkaTimeoutError("the broker is away")

    with pytest.raises(BrokerRefused if refused else KafkaTimeoutError):
        publish()
