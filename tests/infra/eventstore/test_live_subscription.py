"""The end of a ledger's log: read once for all, bounded, and honest to who cannot keep up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import infra.eventstore.live_subscription
from domain.recorded import RecordedEvent
from infra.errors import Unavailable
from infra.eventstore.live_subscription import FellBehind, LiveSubscription, LiveSubscriptions
from infra.eventstore.reader import EventReader
from projections.engine.page import PositionGap
from tests.infra.delivery.webhooks.sending import Post
from tests.infra.opened import Opened


class Encoding:
    """Encodes an event as its position, and remembers which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def __call__(self, ledger_id: int, page: Sequence[RecordedEvent]) -> list[bytes]:
        self.asked += [recorded.position for recorded in page]
        return [b"%d " % recorded.position for recorded in page]


async def taken(subscription: LiveSubscription, after: int, upto: int) -> bytes:
    """Follow a subscription from a position to another."""
    found = b""
    async with asyncio.timeout(15):
        while after < upto:
            entries = subscription.after(after, 3)
            if entries:
                after = entries[-1].recorded.position
                found += b"".join(entry.encoded for entry in entries)
            else:
                await subscription.wait_for_events()
    return found


@pytest.fixture
async def post(opened: Opened) -> Post:
    """A ledger with eleven events."""
    post = Post(opened, await opened.begin())
    await post.generate(10)
    return post


async def test_all_who_follow_a_ledger_share_what_is_read_and_encoded_once(post: Post) -> None:
    encoding = Encoding()
    subscriptions = LiveSubscriptions(post.opened.events, encoding, post.opened.api.database)
    ledger_id = post.tenant.ledger_id
    async with subscriptions.following(ledger_id) as one, subscriptions.following(ledger_id) as other:
        assert one is other
        following = asyncio.gather(taken(one, 0, 16), taken(other, 11, 16))
        await post.share(post.codes[0], 5)
        everything, late = await following
    await subscriptions.close()
    assert everything == b"".join(b"%d " % position for position in range(1, 17))
    assert late == b"12 13 14 15 16 "
    assert encoding.asked == list(range(1, 17))


async def test_a_tail_begins_near_the_end_and_says_what_it_does_not_keep(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "READ_AHEAD_EVENTS", 4)
    subscriptions = LiveSubscriptions(post.opened.events, Encoding())
    async with subscriptions.following(post.tenant.ledger_id) as subscription:
        assert (subscription.position, subscription.keeps(6), subscription.keeps(7)) == (11, False, True)
        assert [entry.recorded.position for entry in subscription.after(7, 100)] == [8, 9, 10, 11]
        with pytest.raises(FellBehind):
            subscription.after(6, 100)
        # Ahead of it, as one is that read the log itself: nothing yet.
        assert subscription.after(12, 100) == []
    await subscriptions.close()


@pytest.mark.parametrize(("events", "size", "kept"), [(5, 10_000, 5), (100, 20, 9)])
async def test_what_is_kept_is_bounded_by_number_and_by_size(
    post: Post, monkeypatch: pytest.MonkeyPatch, events: int, size: int, kept: int
) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_EVENTS", events)
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_EVENTS_LEAST", 1)
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_BYTES", size)
    subscriptions = LiveSubscriptions(post.opened.events, Encoding())
    async with subscriptions.following(post.tenant.ledger_id) as subscription:
        assert len(subscription.after(11 - kept, 100)) == kept
        assert not subscription.keeps(11 - kept - 1)
    await subscriptions.close()


async def test_what_was_forgotten_is_encoded_anew_once_and_for_those_alone_who_ask_for_it(post: Post) -> None:
    encoding = Encoding()
    subscriptions = LiveSubscriptions(post.opened.events, encoding)
    async with subscriptions.following(post.tenant.ledger_id) as subscription:
        held = subscription.after(8, 100)
        subscriptions.forget_encoded()
        assert [entry.encoded for entry in held] == [b""] * 3
        for _ in range(2):
            assert await subscription.encoded(held[1:]) == [b"10 ", b"11 "]
    await subscriptions.close()
    assert encoding.asked == [*range(1, 12), 10, 11]


async def test_what_is_encoded_anew_counts_to_the_size_that_is_kept(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_BYTES", 20)
    subscriptions = LiveSubscriptions(post.opened.events, Encoding(), post.opened.api.database)
    async with subscriptions.following(post.tenant.ledger_id) as subscription:
        for _ in range(3):
            subscriptions.forget_encoded()
            # Together as two readers, of which each has it encoded.
            await asyncio.gather(*(subscription.encoded(subscription.after(3, 100)) for _ in range(2)))
        await post.share(post.codes[0], 2)
        await taken(subscription, 11, 13)
        assert (subscription.keeps(4), subscription.keeps(5)) == (False, True), "from 6 on, they are 20 bytes"
    await subscriptions.close()


async def test_what_all_tails_keep_is_shared_out(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_EVENTS_IN_ALL", 1_000)
    other = await post.opened.begin("other")
    subscriptions = LiveSubscriptions(post.opened.events, Encoding())
    async with subscriptions.following(post.tenant.ledger_id) as one:
        assert one.kept_events == 1_000
        async with subscriptions.following(other.ledger_id) as two:
            assert (one.kept_events, two.kept_events) == (500, 500)
        assert one.kept_events == 1_000
    await subscriptions.close()


async def test_a_tail_that_nobody_follows_ends_and_another_begins_anew(post: Post) -> None:
    subscriptions = LiveSubscriptions(post.opened.events, Encoding())
    async with subscriptions.following(post.tenant.ledger_id) as first:
        pass
    async with subscriptions.following(post.tenant.ledger_id) as second:
        assert second is not first
        assert subscriptions.position(post.tenant.ledger_id) == 11
    assert subscriptions.position(post.tenant.ledger_id) == 0
    await subscriptions.close()


async def test_a_gap_in_the_log_ends_the_tail_loudly(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    subscriptions = LiveSubscriptions(post.opened.events, Encoding(), post.opened.api.database)
    async with subscriptions.following(post.tenant.ledger_id) as subscription:
        post.opened.sql("ALTER TABLE events DISABLE TRIGGER USER")
        post.opened.sql("UPDATE events SET position = 13 WHERE position = 11")
        post.opened.sql("DELETE FROM events WHERE position = 10")
        subscription.position = 9
        subscriptions.wake()
        async with asyncio.timeout(15):
            while subscription.failure is None:
                await subscription.wait_for_events()
    await subscriptions.close()
    assert isinstance(subscription.failure, PositionGap)
    assert "cannot read past position 9" in caplog.text


async def test_a_database_that_is_away_is_told_to_who_begins(post: Post) -> None:
    async def away(*_: object, **__: object) -> int:
        raise Unavailable("away")

    store = post.opened.events
    store.head = away  # type: ignore[method-assign]
    subscriptions = LiveSubscriptions(store, Encoding())
    with pytest.raises(Unavailable):
        async with subscriptions.following(post.tenant.ledger_id):
            raise AssertionError
    await subscriptions.close()


async def test_who_waits_for_a_tail_to_begin_is_told_when_all_are_closed(opened: Opened) -> None:
    tenant = await opened.begin()
    asked = asyncio.Event()
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Stuck(EventReader):
        async def head(self, ledger_id: int) -> int:
            asked.set()
            return await never

    subscriptions = LiveSubscriptions(Stuck(opened.api.database), Encoding())

    async def follow() -> None:
        async with subscriptions.following(tenant.ledger_id):
            raise AssertionError("it has not begun")

    following = asyncio.create_task(follow())
    await asked.wait()
    await subscriptions.close()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(5):
            await following
