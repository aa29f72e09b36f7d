"""Topics are created with their settings; wrong ones, and progress that does not fit the log, stop it with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]

from infra.delivery.kafka.publication_status import destination_lags
from infra.delivery.kafka.topics import Topic, TopicProblem, events_topic, progress_topic, state_topic, topics
from infra.jobs.log_restart import restart
from tests import given
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import events, options, publishing, states
from tests.infra.opened import MASTER_KEY, Opened
from tests.waiting import until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that has stopped looks again at once."""
    monkeypatch.setattr("infra.delivery.kafka.publisher.RETRY_LONGEST_S", 0.5)


@pytest.fixture
def admin(kafka: Broker) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka.plain)
    yield client
    client.close()


def ensure(kafka: Broker, *wanted: Topic, missing: str = "") -> None:
    with topics(options(kafka.plain), -1) as found:
        found.ensure(wanted, missing=missing)


def configured(admin: KafkaAdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, name)
    described = admin.describe_configs([resource], config_filter="all")["topic"][name]
    return {key: value["value"] for key, value in described.items()}


def configure(admin: KafkaAdminClient, name: str, **settings: str) -> None:
    configs = {key.replace("_", "."): value for key, value in settings.items()}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])


def delete(admin: KafkaAdminClient, *names: str) -> None:
    """Delete topics, and wait until they are gone."""
    admin.delete_topics(list(names))
    until(lambda: all(described["error_code"] for described in admin.describe_topics(list(names))))


def why_stopped(opened: Opened) -> str:
    """Wait until publishing has stopped, and return what it says."""
    until(lambda: opened.sql("SELECT 1 FROM publications WHERE state = 'stopped'") != [])
    ((error,),) = opened.sql("SELECT DISTINCT error FROM publications")
    return str(error)


def test_topics_are_created_as_they_must_be(kafka: Broker, prefix: str, admin: KafkaAdminClient) -> None:
    ensure(kafka, events_topic(prefix), state_topic(prefix), progress_topic(prefix))

    partitions = {
        described["name"]: len(described["partitions"])
        for described in admin.describe_topics([f"{prefix}.code-{kind}.v1" for kind in ("events", "state", "progress")])
    }
    assert partitions == {
        f"{prefix}.code-events.v1": 12,
        f"{prefix}.code-state.v1": 12,
        f"{prefix}.code-progress.v1": 1,
    }
    of_events = configured(admin, f"{prefix}.code-events.v1")
    assert of_events["cleanup.policy"] == "delete"
    assert of_events["retention.ms"] == of_events["retention.bytes"] == "-1"
    for kind in ("state", "progress"):
        assert configured(admin, f"{prefix}.code-{kind}.v1")["cleanup.policy"] == "compact"


def test_topics_that_are_right_are_left_alone(kafka: Broker, prefix: str) -> None:
    ensure(kafka, events_topic(prefix))
    ensure(kafka, events_topic(prefix), missing="It must not be created.")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("retention.ms", "604800000"), ("retention.bytes", "1000000"), ("cleanup.policy", "compact")],
)
def test_a_wrong_setting_is_refused_with_the_command_that_mends_it(
    kafka: Broker, prefix: str, admin: KafkaAdminClient, setting: str, value: str
) -> None:
    ensure(kafka, events_topic(prefix))
    configure(admin, f"{prefix}.code-events.v1", **{setting.replace(".", "_"): value})
    right = {"cleanup.policy": "delete"}.get(setting, "-1")

    def refused() -> str:
        try:
            ensure(kafka, events_topic(prefix))
        except TopicProblem as problem:
            return str(problem)
        return ""

    # A broker tells of a new setting a moment after it has accepted it.
    until(lambda: refused() != "")
    assert refused() == (
        f"Topic {prefix}.code-events.v1 has {setting}={value} and must have {right}: kafka-configs.sh --alter "
        f"--entity-type topics --entity-name {prefix}.code-events.v1 --add-config {setting}={right}"
    )


def test_another_number_of_partitions_is_refused(kafka: Broker, prefix: str, admin: KafkaAdminClient) -> None:
    admin.create_topics({f"{prefix}.code-events.v1": {"num_partitions": 3}}, wait_for_metadata=True)

    with pytest.raises(TopicProblem, match=r"has 3 partitions and must have 12.*kafka-topics.sh --create --topic"):
        ensure(kafka, events_topic(prefix))


def test_a_missing_topic_is_not_created_where_that_would_hide_a_loss(kafka: Broker, prefix: str) -> None:
    with pytest.raises(TopicProblem, match=r"events.v1 is missing. It held events."):
        ensure(kafka, events_topic(prefix), missing="It held events.")


async def test_a_topic_that_takes_too_small_messages_stops_publishing_until_it_is_mended(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient
) -> None:
    await opened.when(await opened.begin(), given.permission())
    ensure(kafka, events_topic(prefix))
    configure(admin, f"{prefix}.code-events.v1", max_message_bytes="200")
    until(lambda: configured(admin, f"{prefix}.code-events.v1")["max.message.bytes"] == "200")

    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        assert why_stopped(opened) == (
            f"has stopped. Topic {prefix}.code-events.v1 accepts messages of at most 200 bytes and must accept "
            f"1000000: kafka-configs.sh --alter --entity-type topics --entity-name {prefix}.code-events.v1 "
            "--add-config max.message.bytes=1000000"
        )
        configure(admin, f"{prefix}.code-events.v1", max_message_bytes="1000000")
        topic.until(1)
        until(lambda: opened.sql("SELECT state, error FROM publications") == [("publishing", None)])


async def test_what_was_mended_no_longer_shows_as_stopped_also_where_nothing_is_to_be_published(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient
) -> None:
    await opened.when(await opened.begin("busy"), given.permission())
    await opened.begin("quiet")
    ensure(kafka, events_topic(prefix))
    configure(admin, f"{prefix}.code-events.v1", cleanup_policy="compact")
    until(lambda: configured(admin, f"{prefix}.code-events.v1")["cleanup.policy"] == "compact")

    with publishing(opened.database, kafka.plain, prefix):
        assert "must have delete" in why_stopped(opened)
        assert [lag.stopped for lag in await destination_lags(opened.api.database)] == [True]
        configure(admin, f"{prefix}.code-events.v1", cleanup_policy="delete")
        until(
            lambda: (
                opened.sql("SELECT position, state, error FROM publications ORDER BY 1")
                == [(0, "publishing", None), (1, "publishing", None)]
            )
        )
    assert [lag.stopped for lag in await destination_lags(opened.api.database)] == [False]


async def published_once(opened: Opened, kafka: Broker, prefix: str) -> Any:
    """Publish a ledger of two events; return its tenant."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate())
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        topic.until(2)
    return tenant


async def test_a_database_taken_back_stops_publishing(kafka: Broker, opened: Opened, prefix: str) -> None:
    await published_once(opened, kafka, prefix)
    opened.sql("ALTER TABLE events DISABLE TRIGGER USER; DELETE FROM events WHERE position = 2")

    with publishing(opened.database, kafka.plain, prefix):
        assert why_stopped(opened) == (
            "has stopped. Ledger main is published up to position 2 but ends at 1. This database was restored to "
            "an earlier state, or it is another database. Restore what is missing. Or publish everything again: under "
            f"another prefix in SPARKLEDGER_KAFKA_LEDGERS, or after deleting {prefix}.code-events.v1, "
            f"{prefix}.code-state.v1, {prefix}.code-progress.v1."
        )


async def test_a_publisher_that_runs_hands_out_nothing_of_a_ledger_that_may_have_lost_events(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant, other = await opened.begin(), await opened.begin("other")
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        await opened.when(tenant, given.permission())
        topic.until(1)
        # Another process records this before the loss is noticed.
        with psycopg.connect(opened.database.dsn()) as connection:
            connection.execute(
                "INSERT INTO history_checks (ledger_id, database, problem) VALUES (%s, database_identity(), 'lost')",
                (tenant.ledger_id,),
            )
            connection.execute(
                "INSERT INTO events SELECT (jsonb_populate_record(e, jsonb_build_object('position', 2, 'version', 2,"
                " 'event_id', gen_random_uuid()))).* FROM events e WHERE ledger_id = %s",
                (tenant.ledger_id,),
            )
        await opened.when(other, given.permission())
        topic.until(2)
        assert [record.headers["ce_source"] for record in topic.received] == ["/ledgers/main", "/ledgers/other"]
        opened.sql("DELETE FROM history_checks")
        topic.until(3)
    assert topic.received[-1].position == 2


async def test_a_publisher_that_runs_stops_where_a_ledger_goes_on_without_what_was_published(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        for name in "abc":
            await opened.when(tenant, given.permission(creator_id=name))
        topic.until(3)
        opened.sql("SET session_replication_role = replica; DELETE FROM events WHERE position > 1")
        await restart(opened.database.dsn(), MASTER_KEY, "main", "a disk broke")
        # Position 2 is the restart, and 4 is beyond what was published.
        for name in "de":
            await opened.when(tenant, given.permission(creator_id=name))
        assert "The event at position 3 of ledger main is not the published one" in why_stopped(opened)
        topic.poll()
    assert [record.position for record in topic.received] == [1, 2, 3]


async def test_another_event_at_the_published_position_stops_publishing(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    await published_once(opened, kafka, prefix)
    opened.sql("ALTER TABLE events DISABLE TRIGGER USER; UPDATE events SET event_id = gen_random_uuid()")

    with publishing(opened.database, kafka.plain, prefix):
        assert "The event at position 2 of ledger main is not the published one" in why_stopped(opened)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("events", "code-events.v1 is missing. "),
        ("state", "code-state.v1 is missing. "),
        ("progress", "code-progress.v1 does not say how far they go. "),
    ],
)
async def test_a_topic_that_vanished_stops_publishing(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient, lost: str, said: str
) -> None:
    await published_once(opened, kafka, prefix)
    delete(admin, f"{prefix}.code-{lost}.v1")

    with publishing(opened.database, kafka.plain, prefix):
        assert said in why_stopped(opened)


@pytest.mark.parametrize(("kind", "topic"), [("events", events_topic), ("state", state_topic)])
async def test_a_topic_that_was_created_anew_stops_publishing_before_a_history_without_its_beginning(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient, kind: str, topic: Callable[[str], Topic]
) -> None:
    tenant = await published_once(opened, kafka, prefix)
    delete(admin, f"{prefix}.code-{kind}.v1")
    ensure(kafka, topic(prefix))
    await opened.when(tenant, given.permission(creator_id="another"))

    with publishing(opened.database, kafka.plain, prefix):
        assert why_stopped(opened).startswith(
            f"has stopped. Topic {prefix}.code-{kind}.v1 is empty, but {prefix}.code-progress.v1 says that it had "
            "records. It was emptied, or deleted and created again. Restore what is missing. Or publish "
        )
    assert opened.sql("SELECT position FROM publications") == [(2,)]


async def test_no_state_is_missed_where_no_code_was_told_of_yet(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient
) -> None:
    tenant = await opened.begin()
    await opened.begin("without-events")
    await opened.when(tenant, given.permission())
    with events(kafka.plain, prefix) as topic, states(kafka.plain, prefix) as told:
        with publishing(opened.database, kafka.plain, prefix):
            topic.until(1)
        await opened.when(tenant, given.generate())
        with publishing(opened.database, kafka.plain, prefix):
            topic.until(2)
            told.until(1)
    # The code changes further on: what is told of it then is all there is to be told.
    delete(admin, state_topic(prefix).name)
    ensure(kafka, state_topic(prefix))
    await opened.when(tenant, given.share())
    with publishing(opened.database, kafka.plain, prefix), states(kafka.plain, prefix) as told:
        assert [record.value["position"] for record in told.until(1)] == [3]


async def test_after_deleting_the_topics_everything_is_published_anew(
    kafka: Broker, opened: Opened, prefix: str, admin: KafkaAdminClient
) -> None:
    await published_once(opened, kafka, prefix)
    delete(admin, *(f"{prefix}.code-{kind}.v1" for kind in ("events", "state", "progress")))

    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        assert sorted(record.position for record in topic.until(2)) == [1, 2]


async def test_an_event_that_cannot_be_read_stops_publishing_behind_those_before_it(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    opened.sql(
        "ALTER TABLE events DISABLE TRIGGER USER; INSERT INTO events SELECT ledger_id, 2, stream_id, 2, "
        "gen_random_uuid(), 'FromTheFuture', 1, recorded_at, effective_at, creator_stream, actor_key, actor_role, "
        "actor_subject, source, command_id, correlation_id, causation_id, traceparent, creator_id, video_id, "
        "key_id, format, commitment, body, sealed FROM events"
    )

    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        topic.until(1)
        assert why_stopped(opened).startswith(
            "has stopped. The event at position 2 of ledger main cannot be read: The type FromTheFuture is not known"
        )
