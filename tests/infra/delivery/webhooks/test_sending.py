"""Webhooks: every event to every endpoint at least once, in order for each code, whatever the receivers do."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections import Counter
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from standardwebhooks import Webhook as Verifier

import infra.delivery.webhooks.http_target
import infra.delivery.webhooks.subscriptions
from infra.delivery.cloud_events import cloud_event
from infra.delivery.webhooks import sender, worker
from infra.delivery.webhooks.delivery_store import DeliveryStore
from infra.delivery.webhooks.http_target import AllowedNetworks
from infra.delivery.webhooks.models import (
    DeliveryPolicy,
    Endpoint,
    ProgressWrite,
    Replayed,
    ReplayRange,
    TooManyWebhooks,
)
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.errors import Unavailable
from tests import given
from tests.infra.delivery.webhooks.receiving import HANG, Received, in_order, receiving
from tests.infra.delivery.webhooks.sending import Post, sending
from tests.infra.opened import Opened

pytestmark = pytest.mark.long("receivers hang and fail until time limits have passed")


@pytest.fixture
async def post(opened: Opened) -> Post:
    """A ledger whose events are sent by a subscriber's key."""
    return Post(opened, await opened.begin(role="subscriber"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "POLL_S", 0.02)


# -- What is sent


async def test_every_event_is_sent_once_as_a_signed_cloud_event(post: Post) -> None:
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        (code,) = await post.generate()
        await post.share(code, 3)
        await post.caught_up(webhook_id)

    assert receiver.unverified == []
    assert sorted(receiver.positions) == [1, 2, 3, 4, 5]
    page = await post.opened.events.page(post.tenant.ledger_id)
    history = (await post.opened.api.histories.of(post.tenant.ledger_id)).history
    by_id = {str(recorded.event_id): cloud_event(recorded, "main", history) for recorded in page}
    for received in receiver.received:
        event = received.event
        assert received.headers["content-type"] == "application/cloudevents+json"
        assert received.headers["ledger-history"] == event["ledgerhistory"] == str(history)
        assert event.pop("data") == json.loads(by_id[received.id].data)
        assert event == by_id[received.id].attributes


async def test_no_secret_is_sent(post: Post) -> None:
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        (code,) = await post.generate()
        await post.caught_up(webhook_id)
    assert f"#{code}".encode() not in b"".join(received.body for received in receiver.received)


async def test_events_of_other_types_and_creators_are_left_out(post: Post) -> None:
    async with receiving() as shared, receiving() as other, sending(post.opened):
        by_type = await post.register(shared, types=["Shared"])
        by_creator = await post.register(other, creator_ids=["creator-2"])
        for creator_id in ("creator-1", "creator-2"):
            (code,) = await post.generate(creator_id=creator_id)
            await post.share(code)
        await post.caught_up(by_type)
        await post.caught_up(by_creator)
    assert shared.positions == [3, 6]
    assert sorted(other.positions) == [4, 5, 6]


async def test_a_webhook_begins_after_the_position_that_was_asked_for(post: Post) -> None:
    (code,) = await post.generate()
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver, after=await post.head())
        await post.share(code)
        await post.caught_up(webhook_id)
    assert receiver.positions == [3]


async def test_another_ledgers_events_are_not_sent(post: Post) -> None:
    other = Post(post.opened, await post.opened.begin("other"))
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await other.generate(3)
        await post.generate()
        await post.caught_up(webhook_id)
    assert {received.event["source"] for received in receiver.received} == {"/ledgers/main"}


# -- When it goes wrong


async def test_what_fails_is_sent_again_with_the_same_id_and_another_signature(post: Post) -> None:
    answers = iter([500, 502, 503, 204])
    async with receiving(lambda _: next(answers)) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.opened.when(await post.operator(), given.permission())
        await post.caught_up(webhook_id)

    first, *again = receiver.received
    assert {received.id for received in again} == {first.id}
    assert receiver.unverified == []
    log = await post.attempts(webhook_id)
    assert [(a.attempt, a.outcome, a.status) for a in log] == [
        (1, "failed", 500),
        (2, "failed", 502),
        (3, "failed", 503),
        (4, "delivered", 204),
    ]
    assert [
        received.at - before.at >= pause
        for before, received, pause in zip(receiver.received, again, (0.02, 0.05, 0.1), strict=False)
    ] == [True, True, True]


async def test_what_fails_holds_up_its_own_code_and_no_other(post: Post) -> None:
    refused: list[str] = []

    def answer(received: Received) -> int:
        if received.event["subject"] == f"codes/{post.codes[0]}" and len(refused) < 3:
            refused.append(received.id)
            return 500
        return 204

    await post.generate(5)
    for code in post.codes:
        await post.share(code, 3)
    async with receiving(answer) as receiver, sending(post.opened, retries_s=(0.05, 0.1, 0.2, 0.4)):
        webhook_id = await post.register(receiver)
        webhook = await post.caught_up(webhook_id)

    assert len(set(refused)) == 1
    assert in_order(receiver.received)
    assert Counter(Counter(received.id for received in receiver.received).values()) == {1: 20, 4: 1}
    assert webhook.dead == 0
    # The others did not wait: what was refused came last.
    assert {received.event["subject"] for received in receiver.received[-4:]} == {f"codes/{post.codes[0]}"}


async def test_what_never_succeeds_is_a_dead_letter_and_can_be_sent_again(post: Post) -> None:
    (poisoned, *_) = await post.generate(3)
    await post.share(poisoned)
    broken = True

    def answer(received: Received) -> int:
        return 500 if broken and received.position == 2 else 204

    async with receiving(answer) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        webhook = await post.caught_up(webhook_id)
        (dead,) = await post.webhooks.dead_letters(post.owner, webhook_id, after=0, limit=10)
        assert (webhook.dead, dead.position, dead.type, dead.attempts, dead.status, dead.error) == (
            *(1, 2, "CodeGenerated", 4, 500),
            "The receiver responded with status 500.",
        )
        # What came behind it under its ordering key was sent all the same.
        assert sorted(set(receiver.positions)) == [1, 2, 3, 4, 5]

        broken = False
        assert await post.webhooks.replay(post.owner, webhook_id, [dead.message_id]) == (1, False)
        await post.until(webhook_id, dead=0, waiting=0)
        assert receiver.received[-1].id == str(dead.message_id)


async def test_a_dead_letter_is_forgotten_a_month_after_it_died_also_of_a_disabled_webhook(post: Post) -> None:
    webhooks = [
        (
            await post.webhooks.create(
                post.owner, url="https://receiver.example/", description=None, types=(), creator_ids=(), after=0
            )
        )[0].webhook_id
        for _ in range(2)
    ]
    disabled, _ = webhooks
    await post.webhooks.change(post.owner, disabled, enabled=False)
    for webhook_id in webhooks:
        for position, days in ((1, 31), (2, 29)):
            post.opened.sql(
                "INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, position, type, lane, dead, noted_at)"
                " VALUES (%s, %s, gen_random_uuid(), %s, 'Shared', gen_random_uuid(), true,"
                " now() - make_interval(days => %s))",
                *(webhook_id, post.tenant.ledger_id, position, days),
            )
    async with sending(post.opened):
        for webhook_id in webhooks:
            await post.until(webhook_id, dead=1)
            (left,) = await post.webhooks.dead_letters(post.owner, webhook_id, after=0, limit=10)
            assert left.position == 2


async def test_what_waited_for_long_and_died_now_is_kept_for_a_month_from_now(post: Post) -> None:
    broken = True
    async with receiving(lambda _: 500 if broken else 204) as receiver:
        webhook_id = await post.register(receiver)
        await post.generate()
        async with sending(post.opened, retries_s=(0.02, 3600.0)):
            await post.until(webhook_id, waiting=2, failures=4)
        post.opened.sql("UPDATE webhook_messages SET noted_at = now() - interval '40 days', next_at = now()")
        # Something else got through meanwhile: it is these messages.
        post.opened.sql("UPDATE webhook_progress SET delivered_at = now()")
        async with sending(post.opened, retries_s=(0.02, 0.02)):
            await post.until(webhook_id, dead=2, waiting=0)
    assert post.opened.sql("SELECT count(*) FROM webhook_messages WHERE noted_at < now() - interval '1 day'") == [(0,)]


async def test_what_is_sent_again_the_moment_it_died_is_sent_although_the_reply_of_that_was_lost(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []
    write = DeliveryStore.write

    async def without_reply(
        store: DeliveryStore, endpoint: Endpoint, lease: int, entry: ProgressWrite, moment: datetime
    ) -> None:
        await write(store, endpoint, lease, entry, moment)
        if not lost and any(message.dead for message in entry.parked.values()):
            lost.append(entry.number)
            assert await post.webhooks.replay(post.owner, endpoint.webhook_id, None) == (1, False)
            raise Unavailable("the reply was lost")

    monkeypatch.setattr(DeliveryStore, "write", without_reply)
    await post.generate(3)
    async with (
        receiving(lambda received: 500 if received.position == 2 and not lost else 204) as receiver,
        sending(post.opened),
    ):
        webhook_id = await post.register(receiver)
        await receiver.until(lambda: bool(lost))
        webhook = await post.until(webhook_id, position=await post.head(), waiting=0, dead=0)
    assert receiver.positions[-1] == 2
    # And each attempt is written down once.
    assert Counter(receiver.positions) == {1: 1, 2: 5, 3: 1, 4: 1}
    assert (webhook.delivered, webhook.failed, len(await post.attempts(webhook_id))) == (4, 4, 8)


async def test_a_receiver_that_is_gone_disables_its_webhook_and_loses_nothing(post: Post) -> None:
    gone = True
    async with receiving(lambda _: 410 if gone else 204) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.generate(3)
        await post.until(webhook_id, disabled="gone")
        seen = len(receiver.received)
        await post.generate(2)
        gone = False
        assert len(receiver.received) == seen

        await post.webhooks.change(post.owner, webhook_id, enabled=True)
        await post.caught_up(webhook_id)
    delivered = [received.position for received in receiver.received[seen:]]
    assert sorted(delivered) == list(range(1, await post.head() + 1))
    first, *_ = await post.attempts(webhook_id)
    assert first.outcome == "disabled"


async def test_a_receiver_that_asks_to_be_left_alone_is_left_alone(post: Post) -> None:
    answers = iter([(429, {"Retry-After": "1"}, b"")])
    async with receiving(lambda _: next(answers, 204)) as receiver, sending(post.opened, in_flight=1):
        webhook_id = await post.register(receiver)
        await post.generate(5)
        paused = await post.until(webhook_id, waiting=1, failures=1)
        assert paused.paused_until is not None
        await post.caught_up(webhook_id)
    pauses = [after.at - before.at for before, after in pairwise(receiver.received)]
    assert pauses[0] >= 0.95
    assert in_order(receiver.received)


async def test_a_receiver_that_is_down_gets_a_probe_now_and_then_and_everything_when_it_is_up(post: Post) -> None:
    down = True
    terms: dict[str, Any] = {"retries_s": (0.05, 3600.0), "failing_after": 3, "probe_s": 0.05, "in_flight": 2}
    async with receiving(lambda _: 503 if down else 204) as receiver, sending(post.opened, **terms):
        webhook_id = await post.register(receiver)
        await post.generate(40)
        await receiver.take(8)
        webhook = await post.status(webhook_id)
        # Most of it is still in the log and was never tried.
        assert webhook.waiting <= 12
        down = False
        seen = len(receiver.received)
        await post.caught_up(webhook_id)
    assert set(receiver.positions[seen:]) | {r.position for r in receiver.received[:seen]} == set(range(1, 42))
    assert len(set(receiver.positions[seen:])) == 41
    assert in_order(receiver.received[seen:])


async def test_a_receiver_that_is_down_gets_one_attempt_at_a_time_whatever_waits(post: Post) -> None:
    terms: dict[str, Any] = {"retries_s": (0.01, 0.01, *[0.3] * 20), "failing_after": 10, "probe_s": 0.3}
    async with receiving(lambda _: 503) as receiver, sending(post.opened, **terms):
        webhook_id = await post.register(receiver)
        await post.generate(40)
        # Up to 15 others were in progress when the tenth failed. The first two probes come soon.
        received = await receiver.take(30)
        pauses = [after.at - before.at for before, after in pairwise(received[27:30])]
        assert min(pauses) > 0.15
        # A test does not wait for the next probe, and is none.
        test_id, _ = await post.webhooks.test(post.owner, webhook_id)
        await receiver.until(lambda: received[-1].id == str(test_id))


async def test_a_receiver_that_is_down_is_sent_what_waits_where_its_owner_asks_for_it(post: Post) -> None:
    terms: dict[str, Any] = {"retries_s": (3600.0, 3600.0), "failing_after": 3, "probe_s": 3600.0, "in_flight": 1}
    async with receiving(lambda _: 503) as receiver, sending(post.opened, **terms):
        webhook_id = await post.register(receiver)
        await post.generate(9)
        await post.until(webhook_id, failures=3)
        # One that is refused does not hold up the others.
        receiver.answer = lambda received: 400 if received.position == 1 else 204
        await post.webhooks.retry(post.owner, webhook_id)
        await post.until(webhook_id, position=10, waiting=1)
    assert set(receiver.positions) == set(range(1, 11))


async def test_when_nothing_gets_through_for_the_whole_schedule_the_webhook_is_disabled(post: Post) -> None:
    down = True
    async with receiving(lambda _: 500 if down else 204) as receiver, sending(post.opened, failing_after=3):
        webhook_id = await post.register(receiver)
        await post.generate(5)
        webhook = await post.until(webhook_id, disabled="failing")
        assert webhook.dead == 0
        down = False
        seen = len(receiver.received)
        await post.webhooks.change(post.owner, webhook_id, enabled=True)
        await post.caught_up(webhook_id)
    assert sorted(receiver.positions[seen:]) == list(range(1, 7))


async def test_a_receiver_that_hangs_delays_no_other(post: Post) -> None:
    async with receiving(lambda _: HANG) as hanging, receiving() as other, sending(post.opened):
        stuck = await post.register(hanging)
        webhook_id = await post.register(other)
        await post.generate(30)
        await hanging.take(1)
        await post.caught_up(webhook_id)
        assert (await post.status(stuck)).position == 0
    assert sorted(other.positions) == list(range(1, 32))


async def test_an_attempt_that_takes_too_long_has_failed(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.http_target, "ATTEMPT_S", 0.1)
    answers = iter([HANG])
    async with receiving(lambda _: next(answers, 204)) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.opened.when(await post.operator(), given.permission())
        await post.caught_up(webhook_id)
    (first, second) = await post.attempts(webhook_id)
    assert (first.outcome, first.status, second.outcome) == ("failed", None, "delivered")
    assert first.duration_ms >= 100


async def test_what_may_wait_is_bounded(post: Post) -> None:
    poisoned = True

    def answer(received: Received) -> int:
        return 500 if poisoned and received.event["subject"].startswith("codes/") else 204

    async with (
        receiving(answer) as receiver,
        sending(post.opened, retries_s=(0.2,) * 100, waiting=5, failing_after=1_000, window=4),
    ):
        webhook_id = await post.register(receiver)
        await post.generate(40)
        await receiver.take(15)
        assert (await post.status(webhook_id)).waiting <= 5 + 4
        poisoned = False
        await post.caught_up(webhook_id)
    assert set(receiver.positions) == set(range(1, 42))


# -- Secrets


async def test_while_secrets_overlap_messages_bear_both_signatures(post: Post) -> None:
    async with receiving() as receiver, sending(post.opened) as senders:
        webhook_id = await post.register(receiver)
        _, secret, _ = await post.webhooks.rotate(post.owner, webhook_id, timedelta(hours=1))
        await post.noticed(senders, webhook_id)
        receiver.secrets.append(secret)
        await post.generate()
        await post.caught_up(webhook_id)
        assert receiver.unverified == []
        assert all(len(received.headers["webhook-signature"].split()) == 2 for received in receiver.received)

        # The next rotation ends the first secret at once.
        _, newest, _ = await post.webhooks.rotate(post.owner, webhook_id, timedelta())
        await post.noticed(senders, webhook_id)
        await post.share(post.codes[0])
        await post.caught_up(webhook_id)
    last = receiver.received[-1]
    assert len(last.headers["webhook-signature"].split()) == 1
    Verifier(newest).verify(last.body, last.headers)
    assert [said.split(":")[0] for said in receiver.unverified] == [last.id, last.id]


async def test_secret_url_and_description_are_not_stored_as_they_are(post: Post) -> None:
    url, description = "https://receiver.example/T0K3N-in-a-path", "the phone of Ana Lopes"
    webhook, told, _ = await post.webhooks.create(
        post.owner, url=url, description=description, types=(), creator_ids=(), after=0
    )
    secret = base64.b64decode(told.removeprefix("whsec_"))
    assert len(secret) == 32
    for _ in range(2):
        ((row, *stored),) = post.opened.sql("SELECT w::text, url, description, secret FROM webhooks w")
        for clear, sealed in zip((url.encode(), description.encode(), secret), stored, strict=True):
            assert len(sealed) == len(clear) + 28
            assert clear not in sealed
            assert clear.hex() not in row
        read = await post.status(webhook.webhook_id)
        assert (read.url, read.description) == (url, description)
        url, description = url + "2", description + "!"
        await post.webhooks.change(post.owner, webhook.webhook_id, url=url, description=description)
    cleared = await post.webhooks.change(post.owner, webhook.webhook_id, description=None)
    assert (cleared.url, cleared.description) == (url, None)


@pytest.mark.parametrize(
    "swapped", ["url = (SELECT url FROM webhooks o WHERE o.webhook_id <> w.webhook_id)", "url = description"]
)
async def test_what_is_stored_of_one_webhook_or_field_opens_as_no_other(post: Post, swapped: str) -> None:
    async with receiving() as receiver, receiving() as other:
        for one in (receiver, other):
            await post.webhooks.create(post.owner, url=one.url, description=one.url, types=(), creator_ids=(), after=0)
        await post.generate()
        post.opened.sql(f"UPDATE webhooks w SET {swapped}")
        async with sending(post.opened) as senders, asyncio.timeout(15):
            while len(senders._failed) < 2:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.01)
    assert receiver.received == other.received == []
    assert post.opened.sql("SELECT DISTINCT error FROM webhook_progress") == [(worker.SENDER_FAILED,)]
    with pytest.raises(InvalidTag):
        await post.webhooks.all(post.owner)


# -- Changes


async def test_a_test_is_sent_once_and_its_outcome_is_logged(post: Post) -> None:
    answers = iter([500])
    async with receiving(lambda _: next(answers, 204)) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        first, _ = await post.webhooks.test(post.owner, webhook_id)
        await post.until(webhook_id, failed=1, waiting=0)
        second, _ = await post.webhooks.test(post.owner, webhook_id)
        await post.until(webhook_id, delivered=1, waiting=0)
    assert receiver.unverified == []
    assert [received.id for received in receiver.received] == [str(first), str(second)]
    assert receiver.received[0].event["type"] == "sparkledger.Test.v1"
    log = await post.attempts(webhook_id)
    assert [(a.message_id, a.position, a.type, a.outcome) for a in log] == [
        (first, None, "Test", "failed"),
        (second, None, "Test", "delivered"),
    ]


async def test_a_changed_url_is_sent_to_from_then_on(post: Post) -> None:
    async with receiving() as before, receiving() as after, sending(post.opened) as senders:
        webhook_id = await post.register(before)
        await post.generate()
        await post.caught_up(webhook_id)
        await post.webhooks.change(post.owner, webhook_id, url=after.url)
        await post.noticed(senders, webhook_id)
        await post.generate(2)
        await post.caught_up(webhook_id)
    assert (sorted(before.positions), sorted(after.positions)) == ([1, 2], [3, 4])


@pytest.mark.parametrize("how", ["another URL", "enabled again"])
async def test_a_changed_or_enabled_webhook_is_sent_to_at_once_whatever_was_asked_before(post: Post, how: str) -> None:
    away = [True]

    def answer(_: Received) -> Any:
        return (503, {"Retry-After": "86400"}, b"") if away else 204

    async with receiving(answer) as before, receiving() as after, sending(post.opened, in_flight=1):
        webhook_id = await post.register(before)
        (code,) = await post.generate()
        await post.share(code)
        await before.take(1)
        await post.until(webhook_id, waiting=1, failures=1)
        assert (await post.status(webhook_id)).paused_until is not None
        away.clear()
        if how == "another URL":
            await post.webhooks.change(post.owner, webhook_id, url=after.url)
        else:
            await post.webhooks.change(post.owner, webhook_id, enabled=False)
            await post.webhooks.change(post.owner, webhook_id, enabled=True)
        webhook = await post.caught_up(webhook_id)
    sent_to = after if how == "another URL" else before
    assert sorted(received.position for received in sent_to.received[-3:]) == [1, 2, 3]
    assert webhook.paused_until is None


async def test_what_was_asked_stands_where_a_change_is_of_something_else(post: Post) -> None:
    answers = iter([(503, {"Retry-After": "86400"}, b"")])
    async with receiving(lambda _: next(answers, 204)) as receiver, sending(post.opened) as senders:
        webhook_id = await post.register(receiver)
        await post.opened.when(await post.operator(), given.permission())
        paused = await post.until(webhook_id, waiting=1, failures=1)
        changes = {"url": receiver.url, "enabled": True, "types": ["PermissionEnabled"]}
        await post.webhooks.change(post.owner, webhook_id, **changes)
        await post.noticed(senders, webhook_id)
        webhook = await post.status(webhook_id)
    assert (webhook.waiting, webhook.paused_until) == (1, paused.paused_until)
    assert len(receiver.received) == 1


async def test_webhooks_that_are_created_at_once_keep_within_their_number(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_WEBHOOKS", 3)

    async def create(webhooks: WebhookSubscriptions) -> None:
        await webhooks.create(
            post.owner, url="https://receiver.example/", description=None, types=(), creator_ids=(), after=0
        )

    # Sessions are there already: what is connected first must not be done before the others begin.
    webhooks = post.webhooks
    await asyncio.gather(*(webhooks.all(post.owner) for _ in range(10)))
    outcomes = await asyncio.gather(*(create(webhooks) for _ in range(10)), return_exceptions=True)
    assert Counter(map(type, outcomes)) == {type(None): 3, TooManyWebhooks: 7}
    assert len(await webhooks.all(post.owner)) == 3


async def test_nothing_is_sent_for_a_key_that_is_not_valid(post: Post) -> None:
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.generate()
        await post.caught_up(webhook_id)
        await post.opened.key_admin.revoke(post.tenant.ledger_id, post.tenant.key.key_id)
        webhook = await post.until(webhook_id, disabled="key")
        other = Post(post.opened, await post.opened.another_key(post.tenant.ledger_id), post.codes)
        await other.share(post.codes[0], 3)
        assert (await post.status(webhook_id)).position == webhook.position == 2
    assert sorted(receiver.positions) == [1, 2]


async def test_a_deleted_webhook_is_sent_nothing_more(post: Post) -> None:
    async with receiving() as receiver, receiving() as other, sending(post.opened) as senders:
        webhook_id = await post.register(receiver)
        stays = await post.register(other)
        await post.generate()
        await post.caught_up(webhook_id)
        await post.webhooks.delete(post.owner, webhook_id)
        await post.noticed(senders, webhook_id)
        await post.generate(3)
        await post.caught_up(stays)
    assert sorted(receiver.positions) == [1, 2]


async def test_an_address_that_is_not_allowed_is_not_sent_to(post: Post) -> None:
    async with receiving() as receiver, sending(post.opened, AllowedNetworks(["none"]), retries_s=(60.0,)):
        webhook_id = await post.register(receiver)
        await post.generate()
        webhook = await post.until(webhook_id, failures=2)
        assert webhook.error == "The host name resolves to an address that webhooks must not use."
    assert receiver.connections == 0


# -- Ends and beginnings


async def test_a_worker_that_ends_in_order_leaves_nothing_to_be_sent_twice(post: Post) -> None:
    async with receiving() as receiver:
        webhook_id = await post.register(receiver)
        for _ in range(4):
            async with sending(post.opened):
                seen = len(receiver.received)
                await post.generate(10)
                await receiver.take(seen + 3)
        async with sending(post.opened):
            await post.caught_up(webhook_id)
    assert sorted(receiver.positions) == list(range(1, await post.head() + 1))


async def test_of_two_workers_one_sends_and_the_other_takes_over(post: Post) -> None:
    async with receiving() as receiver:
        webhook_id = await post.register(receiver)
        async with sending(post.opened) as second:
            async with sending(post.opened) as first:
                await post.generate(20)
                await post.caught_up(webhook_id)
                assert len(first._running) + len(second._running) == 1
            await post.generate(20)
            await post.caught_up(webhook_id)
    assert sorted(receiver.positions) == list(range(1, 42))


async def test_a_sender_that_was_overtaken_writes_nothing_more(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.generate()
        await post.caught_up(webhook_id)
        post.opened.sql("UPDATE webhook_progress SET lease = lease + 1")
        await post.share(post.codes[0], 3)
        await post.caught_up(webhook_id)
    # It noticed, let go, and began again: at least once.
    assert set(receiver.positions) == {1, 2, 3, 4, 5}
    assert in_order(receiver.received)
    assert "taken over" in caplog.text


async def test_what_waits_is_known_to_the_next_worker(post: Post) -> None:
    broken = True

    def answer(received: Received) -> int:
        return 500 if broken and received.position == 2 else 204

    (code, *_) = await post.generate(3)
    await post.share(code, 2)
    async with receiving(answer) as receiver:
        webhook_id = await post.register(receiver)
        async with sending(post.opened, retries_s=(60.0,)):
            await post.until(webhook_id, position=await post.head(), waiting=3)
        broken = False
        post.opened.sql("UPDATE webhook_messages SET next_at = now()")
        async with sending(post.opened):
            await post.caught_up(webhook_id)
    assert receiver.positions[-3:] == [2, 5, 6]
    assert Counter(receiver.positions) == {1: 1, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1}


async def test_nothing_secret_is_logged(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with receiving(lambda _: (500, {}, b"what the receiver says")) as receiver, sending(post.opened):
        receiver.url += "?token=of-the-receiver"
        webhook_id = await post.register(receiver)
        await post.generate()
        await post.until(webhook_id, disabled="failing")
    logged: Any = caplog.text + str(post.opened.sql("SELECT * FROM webhook_attempts"))
    logged += str((await post.status(webhook_id)).error)
    for secret in ("of-the-receiver", "what the receiver says", receiver.secrets[0].removeprefix("whsec_")):
        assert secret not in logged


async def test_an_event_that_cannot_be_read_waits_with_its_code_and_others_go_on(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "UNREADABLE_RETRY_S", 0.05)
    one, other = await post.generate(2)
    await post.share(one, 2)
    await post.share(other)
    post.opened.sql("ALTER TABLE events DISABLE TRIGGER USER")
    post.opened.sql("UPDATE events SET type_version = 99 WHERE position = 4")
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        webhook = await post.until(webhook_id, position=6, waiting=2)
        assert (sorted(receiver.positions), webhook.failures, webhook.dead) == ([1, 2, 3, 6], 0, 0)
        assert webhook.error is not None
        assert "Version 99 of Shared is not known here." in webhook.error

        post.opened.sql("UPDATE events SET type_version = 1 WHERE position = 4")
        await post.caught_up(webhook_id)
    assert receiver.positions[-2:] == [4, 5]


# -- Again, from elsewhere, and at once


async def a_life(post: Post) -> None:
    """Record seven events: a permission, two codes, and two shares of each."""
    one, other = await post.generate(2)
    await post.share(one, 2)
    await post.share(other, 2)


async def test_dead_letters_of_a_code_are_sent_again_in_order(post: Post) -> None:
    await a_life(post)
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver, after=await post.head())
        post.opened.sql(
            "INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, position, type, lane, dead)"
            " SELECT %s, ledger_id, event_id, position, type, stream_id, true FROM events ORDER BY random()",
            webhook_id,
        )
        assert await post.webhooks.replay(post.owner, webhook_id, None) == (7, False)
        await post.until(webhook_id, dead=0, waiting=0)
    assert sorted(receiver.positions) == [1, 2, 3, 4, 5, 6, 7]
    assert in_order(receiver.received)


async def test_a_range_is_sent_again_in_order_whether_it_was_delivered_or_not(post: Post) -> None:
    await a_life(post)
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver, types=["Shared"], creator_ids=[given.CREATOR])
        await post.caught_up(webhook_id)
        assert await post.webhooks.replay_range(post.owner, webhook_id, ReplayRange(4, 100)) == (Replayed(3), False)
        await receiver.take(7)
        await post.until(webhook_id, waiting=0)
    assert sorted(receiver.positions[:4]) == [4, 5, 6, 7]
    assert sorted(receiver.positions[4:]) == [5, 6, 7]
    assert receiver.positions[4:].index(6) < receiver.positions[4:].index(7)


async def test_a_range_that_is_too_long_says_where_to_continue(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_life(post)
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.caught_up(webhook_id)
        monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_REPLAYED", 2)
        whole = ReplayRange(0, 7)
        assert await post.webhooks.replay_range(post.owner, webhook_id, whole) == (Replayed(2, next=2), False)
        monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_REPLAYED", 10)
        monkeypatch.setattr(infra.delivery.webhooks.subscriptions, "MAX_REPLAY_SCANNED", 3)
        assert await post.webhooks.replay_range(post.owner, webhook_id, ReplayRange(2, 7)) == (
            Replayed(3, next=5),
            False,
        )
        await receiver.take(12)
    assert sorted(receiver.positions[7:]) == [1, 2, 3, 4, 5]


async def test_a_webhook_that_is_moved_back_sends_what_it_sent_once_more(post: Post) -> None:
    await a_life(post)
    async with receiving() as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.caught_up(webhook_id)
        assert (await post.webhooks.change(post.owner, webhook_id, after=4)).position == 4
        await receiver.take(10)
        await post.caught_up(webhook_id)
    assert sorted(receiver.positions[7:]) == [5, 6, 7]


async def test_a_webhook_that_is_moved_on_forgets_what_was_waiting(post: Post) -> None:
    await a_life(post)
    async with receiving(lambda _: 500) as receiver, sending(post.opened, retries_s=(3600.0,)) as senders:
        webhook_id = await post.register(receiver)
        await post.until(webhook_id, waiting=7)
        receiver.answer = lambda _: 204
        await post.webhooks.change(post.owner, webhook_id, after=6)
        await post.noticed(senders, webhook_id)
        await post.caught_up(webhook_id)
    assert receiver.received[-1].position == 7


async def test_what_waits_is_retried_at_once_where_the_owner_asks_for_it(post: Post) -> None:
    await post.generate()
    later = {"Retry-After": "3600"}
    async with (
        receiving(lambda _: (503, later, b"closed")) as receiver,
        sending(post.opened, retries_s=(3600.0,)),
    ):
        webhook_id = await post.register(receiver)
        await post.until(webhook_id, waiting=2, position=2)
        receiver.answer = lambda _: 204
        assert await post.webhooks.retry(post.owner, webhook_id) == 2
        await post.caught_up(webhook_id)
    assert sorted(receiver.positions[-2:]) == [1, 2]


async def test_the_log_shows_the_beginning_of_what_was_answered(post: Post) -> None:
    await post.generate()
    said = "déjà vu ".encode() * 200
    async with receiving(lambda _: (200, {}, said)) as receiver, sending(post.opened):
        webhook_id = await post.register(receiver)
        await post.caught_up(webhook_id)
    assert [attempt.answer for attempt in await post.attempts(webhook_id)] == [
        said[:1024].decode("utf-8", "replace")
    ] * 2
    (stored,) = post.opened.sql("SELECT answer FROM webhook_attempts LIMIT 1")
    assert b"vu" not in stored[0]


async def test_the_log_forgets_what_is_older_than_a_month(post: Post) -> None:
    await post.generate()
    async with receiving() as receiver:
        webhook_id = await post.register(receiver)
        async with sending(post.opened):
            await post.caught_up(webhook_id)
        post.opened.sql("UPDATE webhook_attempts SET at = now() - interval '31 days' WHERE position = 1")
        async with sending(post.opened), asyncio.timeout(15):
            while len(await post.attempts(webhook_id)) > 1:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.01)


async def test_a_webhook_that_was_created_disabled_sends_once_it_is_enabled(post: Post) -> None:
    await post.generate()
    secret = "whsec_" + base64.b64encode(bytes(range(24))).decode()
    async with receiving() as receiver, sending(post.opened):
        receiver.secrets.append(secret)
        webhook_id = await post.register(receiver, enabled=False, secret=bytes(range(24)))
        await post.share(post.codes[0])
        assert (await post.status(webhook_id)).disabled == "asked"
        await post.webhooks.change(post.owner, webhook_id, enabled=True)
        await post.caught_up(webhook_id)
    assert (sorted(receiver.positions), receiver.unverified) == ([1, 2, 3], [])


@pytest.mark.parametrize("jitter", [-1, 0, 1])
def test_a_receiver_that_was_away_for_less_than_a_minute_gets_its_events_within_a_minute(jitter: int) -> None:
    policy = DeliveryPolicy()
    attempts = list(accumulate(pause * (1 + jitter * policy.jitter) for pause in policy.retries_s))
    for away_s in range(60):
        next_attempt = next(at for at in attempts if at >= away_s)
        assert next_attempt - away_s <= 60, away_s
