"""What of the log comes to a subscriber of Kafka: every event once, as a CloudEvent, and each code's state."""

from __future__ import annotations

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from domain.values import Sealed
from infra.delivery.cloud_events import cloud_event
from infra.delivery.kafka.publication_status import destination_lags, publication
from infra.delivery.kafka.topics import events_topic, progress_topic, state_topic
from infra.delivery.lag import lag_seconds
from tests import given
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import Topic, events, once_and_in_order, progress, publishing, states
from tests.infra.opened import Opened, Tenant
from tests.waiting import until

SECRET = Sealed("#k9/Tz+a+secret+that+must+never+leave==")
NOTE = "meet Ana at nine"


async def a_life(opened: Opened, tenant: Tenant) -> int:
    """Record six events of one creator and one code; return how many."""
    for command in (
        given.permission(),
        given.generate(secret=SECRET),
        given.share(note=NOTE),
        given.redeem(SECRET),
        given.note(text=NOTE),
        given.extend(days=60),
    ):
        await opened.when(tenant, command, correlation_id="order-66", traceparent="00-4bf9-00f0-01")
    return 6


async def test_every_event_comes_as_a_cloud_event_in_binary_mode(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    count = await a_life(opened, tenant)

    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        received = sorted(topic.until(count), key=lambda record: record.position)

    recorded = await opened.events.page(tenant.ledger_id)
    history = (await opened.api.histories.of(tenant.ledger_id)).history
    expected = [cloud_event(r, "main", history, traceparent="00-4bf9-00f0-01") for r in recorded]
    assert [(record.key, record.headers, record.value) for record in received] == [
        (
            event.key,
            {
                "content-type" if name == "datacontenttype" else f"ce_{name}": value
                for name, value in event.attributes.items()
            },
            orjson.loads(event.data),
        )
        for event in expected
    ]
    assert once_and_in_order(received, range(1, count + 1)) == []


async def test_the_attributes_are_those_that_are_promised(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)

    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        received = sorted(topic.until(6), key=lambda record: record.position)

    ((history,),) = opened.sql("SELECT history FROM histories")
    (shared,) = [record for record in received if record.headers["ce_type"] == "sparkledger.Shared.v1"]
    (recorded,) = await opened.events.at_positions(tenant.ledger_id, [3])
    moment = f"{recorded.recorded_at:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert shared.headers == {
        "ce_specversion": "1.0",
        "ce_id": str(recorded.event_id),
        "ce_source": "/ledgers/main",
        "ce_type": "sparkledger.Shared.v1",
        "ce_subject": f"codes/{given.CODE}",
        "ce_time": moment,
        "content-type": "application/json",
        "ce_sequence": "0000000000000000003",
        "ce_streamversion": "2",
        "ce_recordedtime": moment,
        "ce_authtype": "api_key",
        "ce_authid": str(tenant.key.key_id),
        "ce_correlationid": "order-66",
        "ce_traceparent": "00-4bf9-00f0-01",
        "ce_ledgerhistory": str(history),
    }
    assert shared.key == str(given.CODE)
    assert received[0].key == given.CREATOR


async def test_no_secret_and_no_note_is_in_any_topic(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        topic.until(6)

    seen = b""
    consumer = KafkaConsumer(bootstrap_servers=kafka.plain, enable_auto_commit=False, consumer_timeout_ms=1000)
    for name in (events_topic(prefix).name, state_topic(prefix).name, progress_topic(prefix).name):
        partitions = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        for record in consumer:
            seen += record.key + record.value + b"".join(value for _, value in record.headers)
    consumer.close(autocommit=False)

    assert "…ve==".encode() in seen
    assert str(SECRET).encode() not in seen
    assert NOTE.encode() not in seen


async def test_the_state_topic_ends_with_each_code_as_it_stands(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix), states(kafka.plain, prefix) as topic:
        until(lambda: bool(topic.poll()) and topic.received[-1].value["position"] == 6)
        await opened.when(tenant, given.revoke(reason="over"))
        until(lambda: bool(topic.poll()) and topic.received[-1].value["position"] == 7)

    last = topic.received[-1]
    (stream,) = (await opened.events.streams(tenant.ledger_id, [given.CODE])).values()
    generated, shared, redeemed, _, extended, revoked = stream
    assert last.key == str(given.CODE)
    assert last.value == orjson.loads(
        orjson.dumps(
            {
                "ledger": "main",
                "code_id": given.CODE,
                "masked": "…ve==",
                "creator_id": given.CREATOR,
                "video_id": given.VIDEO,
                "terms_version": generated.event.terms_version,  # type: ignore[attr-defined]
                "generated_at": generated.effective_at,
                "starts_at": generated.event.starts_at,  # type: ignore[attr-defined]
                "expires_at": extended.event.expires_at,  # type: ignore[attr-defined]
                "usage_rights": None,
                "ends_at": revoked.effective_at,
                "ends_by": "code",
                "revoked_at": revoked.effective_at,
                "state": "revoked",
                "caption_sha256": None,
                "creative_sha256": None,
                "share_count": 1,
                "shares": [
                    {
                        "brand_id": given.BRAND,
                        "channel": "dm",
                        "advertiser_id": given.ADVERTISER,
                        "shared_at": shared.effective_at,
                    }
                ],
                "redemption_count": 1,
                "redemptions": [{"advertiser_id": given.ADVERTISER, "redeemed_at": redeemed.effective_at}],
                "campaign_count": 0,
                "campaigns": [],
                "truncated": False,
                "erased": False,
                "version": 6,
                "stream_version": 6,
                "position": 7,
                "recorded_at": revoked.recorded_at,
            },
            option=orjson.OPT_UTC_Z,
        )
    )


async def test_what_is_committed_wakes_the_publisher_which_goes_on_where_it_was(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    with events(kafka.plain, prefix) as topic:
        with publishing(opened.database, kafka.plain, prefix) as publisher:
            await opened.when(tenant, given.permission())
            publisher.wake()
            topic.until(1)
        await opened.when(tenant, given.generate())
        with publishing(opened.database, kafka.plain, prefix):
            received = topic.until(2)
            until(lambda: not topic.poll())

        assert [record.position for record in received] == [1, 2]


async def test_each_ledger_goes_where_the_setting_says(kafka: Broker, opened: Opened, prefix: str) -> None:
    for name in ("acme", "globex", "another"):
        await opened.when(await opened.begin(name), given.permission(creator_id=name))

    with (
        publishing(opened.database, kafka.plain, f"{prefix}-a", "acme"),
        publishing(opened.database, kafka.plain, f"{prefix}-g", "globex,another"),
        events(kafka.plain, f"{prefix}-a") as acme,
        events(kafka.plain, f"{prefix}-g") as others,
    ):
        assert [record.headers["ce_source"] for record in acme.until(1)] == ["/ledgers/acme"]
        assert {record.headers["ce_source"] for record in others.until(2)} == {"/ledgers/globex", "/ledgers/another"}


async def test_how_far_a_ledger_is_published_shows_with_its_lag(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix), events(kafka.plain, prefix) as topic:
        topic.until(6)
        until(lambda: opened.sql("SELECT position FROM publications") == [(6,)])
    await opened.when(tenant, given.revoke())

    (recorded,) = await opened.events.at_positions(tenant.ledger_id, [7])
    shown = await publication(opened.api.database, tenant.ledger_id)
    assert shown is not None
    assert (shown.destination, shown.position, shown.head, shown.oldest) == (prefix, 6, 7, recorded.recorded_at)
    assert (shown.state, shown.errors, shown.error) == ("publishing", 0, None)
    (lag,) = await destination_lags(opened.api.database)
    assert (lag.destination, lag.published, lag.waiting, lag.oldest) == (prefix, 6, 1, recorded.recorded_at)
    assert lag_seconds(lag.oldest, recorded.recorded_at) == 0.0


async def test_progress_names_the_last_event_of_each_ledger(kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)

    with publishing(opened.database, kafka.plain, prefix), progress(kafka.plain, prefix) as topic:
        (first,) = topic.until(1)[:1]

    (last,) = await opened.events.at_positions(tenant.ledger_id, [6])
    ((history,),) = opened.sql("SELECT history FROM histories")
    told = {"position": 6, "event_id": str(last.event_id), "history": str(history)}
    assert (first.key, first.value) == ("main", told)


@pytest.mark.parametrize("remembered", [0, 1])
async def test_codes_that_are_not_remembered_are_read_again(
    kafka: Broker, opened: Opened, prefix: str, remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.delivery.kafka.code_state.CACHED_MAX", remembered)
    tenant = await opened.begin()
    await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix) as publisher, states(kafka.plain, prefix) as topic:
        until(lambda: bool(topic.poll()) and topic.received[-1].value["position"] == 6)
        await opened.when(tenant, given.revoke())
        publisher.wake()
        until(lambda: bool(topic.poll()) and topic.received[-1].value["position"] == 7)

    assert _summary(topic) == ("revoked", 1, 1)


def _summary(topic: Topic) -> tuple[str, int, int]:
    last = topic.received[-1].value
    return last["state"], last["share_count"], last["redemption_count"]


@pytest.mark.parametrize("how", ["gzip", "lz4", "zstd"])
async def test_what_is_compressed_is_read_as_anything_else(
    kafka: Broker, opened: Opened, prefix: str, how: str
) -> None:
    tenant = await opened.begin()
    count = await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix, compression=how), events(kafka.plain, prefix) as topic:
        received = topic.until(count)
    assert once_and_in_order(received, range(1, count + 1)) == []


async def test_the_codes_of_an_erased_creator_get_a_state_that_says_so(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    await a_life(opened, tenant)
    with publishing(opened.database, kafka.plain, prefix), states(kafka.plain, prefix) as topic:
        topic.until(1)
        await opened.erase(tenant)
        until(lambda: bool(topic.poll()) and topic.received[-1].value["erased"])
        await opened.when(tenant, given.revoke(reason="over"))
        until(lambda: bool(topic.poll()) and topic.received[-1].value["state"] == "revoked")

    told = [(record.value["position"], record.value["erased"]) for record in topic.received[-3:]]
    assert told == [(6, False), (6, True), (8, True)]
