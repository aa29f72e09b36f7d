"""The settings reach a cluster that asks for a login, with TLS and without; a wrong one is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from infra.delivery.kafka.connection import Producer, client_options
from infra.settings import load_settings
from tests import given
from tests.absent import absent
from tests.infra.delivery.kafka.broker import PASSWORD, USER, Broker, certificate_and_key, token
from tests.infra.delivery.kafka.publishing import events, options, publishing
from tests.infra.delivery.kafka.test_oauth import authorization_server
from tests.infra.opened import Opened
from tests.waiting import until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that was turned away tries again at once."""
    monkeypatch.setattr("infra.delivery.kafka.publisher.RETRY_LONGEST_S", 0.5)


def login(broker: Broker, protocol: str, password: str = PASSWORD) -> dict[str, str]:
    if not broker.tls:
        absent("SPARKLEDGER_TEST_KAFKA names a broker in the clear alone: unset it for one with logins")
    settings = {
        "security_protocol": protocol,
        "sasl_mechanism": "PLAIN",
        "sasl_username": USER,
        "sasl_password": password,
    }
    return settings | ({"ssl_cafile": broker.cafile} if protocol == "SASL_SSL" else {})


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
async def test_events_are_published_to_a_cluster_that_asks_for_a_login(
    kafka: Broker, opened: Opened, prefix: str, protocol: str
) -> None:
    await opened.when(await opened.begin(), given.permission())
    settings = login(kafka, protocol)
    bootstrap = kafka.tls if protocol == "SASL_SSL" else kafka.sasl

    with publishing(opened.database, bootstrap, prefix, **settings), events(kafka.plain, prefix) as topic:
        assert [record.position for record in topic.until(1)] == [1]


async def test_a_wrong_password_shows_in_one_line_that_does_not_repeat_it(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    await opened.when(await opened.begin(), given.permission())

    with publishing(opened.database, kafka.sasl, prefix, **login(kafka, "SASL_PLAINTEXT", "a-wrong-password")):
        until(lambda: opened.sql("SELECT 1 FROM publications WHERE error IS NOT NULL") != [], 60)
        ((error,),) = opened.sql("SELECT error FROM publications")

    assert "SPARKLEDGER_KAFKA_SASL_USERNAME" in error
    assert "a-wrong-password" not in error
    assert "\n" not in error


def test_a_certificate_that_nobody_vouches_for_is_refused(kafka: Broker) -> None:
    settings = login(kafka, "SASL_SSL")
    del settings["ssl_cafile"]

    with pytest.raises(KafkaError):
        Producer(options(kafka.tls, **settings), "nobody")


def test_every_setting_of_a_login_is_handed_to_the_client(tmp_path: Path) -> None:
    certificate, key = certificate_and_key()
    files = {name: str(tmp_path / name) for name in ("ca.pem", "ours.pem", "ours.key")}
    for name, file in files.items():
        Path(file).write_text(key if name == "ours.key" else certificate)
    settings = load_settings(
        {
            "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": "one:9092,two:9093",
            "SPARKLEDGER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "SPARKLEDGER_KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
            "SPARKLEDGER_KAFKA_SASL_USERNAME": "ana",
            "SPARKLEDGER_KAFKA_SASL_PASSWORD": "secret",
            "SPARKLEDGER_KAFKA_SSL_CAFILE": files["ca.pem"],
            "SPARKLEDGER_KAFKA_SSL_CERTFILE": files["ours.pem"],
            "SPARKLEDGER_KAFKA_SSL_KEYFILE": files["ours.key"],
        }
    )

    assert client_options(settings) == {
        "bootstrap_servers": ["one:9092", "two:9093"],
        "client_id": "sparkledger",
        "security_protocol": "SASL_SSL",
        "request_timeout_ms": 10_000,
        "bootstrap_timeout_ms": 5_000,
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "ana",
        "sasl_plain_password": "secret",
        "ssl_cafile": files["ca.pem"],
        "ssl_certfile": files["ours.pem"],
        "ssl_keyfile": files["ours.key"],
    }


def token_login(broker: Broker, url: str) -> dict[str, str]:
    if not broker.oauth:
        absent("SPARKLEDGER_TEST_KAFKA names a broker in the clear alone: unset it for one with tokens")
    return login(broker, "SASL_PLAINTEXT") | {"sasl_mechanism": "OAUTHBEARER", "oauth_token_url": url}


async def test_events_are_published_to_a_cluster_that_asks_for_tokens(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    await opened.when(await opened.begin(), given.permission())
    answer = (200, {"access_token": token(kafka), "expires_in": 600})

    with (
        # Each client of the publisher asks for a token of its own.
        authorization_server(*[answer] * 20) as (url, asked),
        publishing(opened.database, kafka.oauth, prefix, **token_login(kafka, url)),
        events(kafka.plain, prefix) as topic,
    ):
        assert [record.position for record in topic.until(1)] == [1]
    assert asked


@pytest.mark.parametrize("refuses", ["the authorization server", "the broker"])
async def test_a_refused_token_shows_in_one_line_that_does_not_repeat_it(
    kafka: Broker, opened: Opened, prefix: str, refuses: str
) -> None:
    await opened.when(await opened.begin(), given.permission())
    answer: tuple[int, dict[str, object]] = (401, {"error": "invalid_client"})
    refused = token(kafka)[:-8] + "AAAAAAAA"  # its signature is not the one of its text
    if refuses == "the broker":
        answer = (200, {"access_token": refused, "expires_in": 600})

    with (
        authorization_server(*[answer] * 2_000) as (url, _),
        publishing(opened.database, kafka.oauth, prefix, **token_login(kafka, url)),
    ):
        until(lambda: opened.sql("SELECT 1 FROM publications WHERE error IS NOT NULL") != [], 60)
        ((error,),) = opened.sql("SELECT error FROM publications")

    assert "SPARKLEDGER_KAFKA_SASL_USERNAME" in error if refuses == "the broker" else "Check the user name" in error
    assert refused not in error
    assert PASSWORD not in error
    assert "\n" not in error
