"""What becomes of each caller of a batch: recorded, refused or told again, and never because of another."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from infra.eventstore.append import Append, Appended, ConcurrencyConflict, KeyRefused, Mismatch, Replayed
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from tests.infra.eventstore.appends import appending, keyed, row, together, writing
from tests.infra.opened import Opened, Tenant


async def recorded(writer: GroupCommitWriter, ledger_id: int, *versions: int, stream: UUID) -> Appended:
    outcome = await writer.append(appending(ledger_id, *(row(stream, version) for version in versions)))
    assert isinstance(outcome, Appended)
    return outcome


async def test_events_appended_together_stand_side_by_side(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        first = await recorded(writer, tenant.ledger_id, 1, 2, 3, stream=uuid7())
        second = await recorded(writer, tenant.ledger_id, 1, stream=uuid7())
    assert [(first.first, first.last), (second.first, second.last)] == [(1, 3), (4, 4)]


async def test_each_caller_of_a_batch_is_told_its_own_positions(opened: Opened) -> None:
    tenant = await opened.begin()
    streams = [uuid7() for _ in range(20)]
    async with writing(opened.database) as writer:
        outcomes = await together(
            writer,
            [
                appending(tenant.ledger_id, *(row(stream, 1 + n) for n in range(size % 3 + 1)))
                for size, stream in enumerate(streams)
            ],
        )
    held = dict(opened.sql("SELECT stream_id, array_agg(position ORDER BY version) FROM events GROUP BY stream_id"))
    told = {
        stream: list(range(outcome.first, outcome.last + 1))
        for stream, outcome in zip(streams, outcomes, strict=True)
        if isinstance(outcome, Appended)
    }
    assert told == held


async def test_a_batch_over_several_ledgers_numbers_each_by_itself(opened: Opened) -> None:
    tenants = [await opened.begin(f"ledger-{n}") for n in range(3)]
    async with writing(opened.database) as writer:
        outcomes = await together(writer, [appending(t.ledger_id, row(uuid7())) for t in (*tenants, *tenants)])
    assert [o.first for o in outcomes if isinstance(o, Appended)] == [1, 1, 1, 2, 2, 2]


async def test_a_batch_over_several_ledgers_keeps_each_key_in_its_own_ledger(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    requests = [
        keyed(tenant.ledger_id, row(uuid7()), row(uuid7()), key=bytes([n] * 16))
        for n, tenant in enumerate([one, two, one, two])
    ]
    async with writing(opened.database) as writer:
        await together(writer, requests)
    kept = opened.sql("SELECT ledger_id, key, first_position, last_position FROM commands ORDER BY key")
    assert kept == [
        (one.ledger_id, bytes([0] * 16), 1, 2),
        (two.ledger_id, bytes([1] * 16), 1, 2),
        (one.ledger_id, bytes([2] * 16), 3, 4),
        (two.ledger_id, bytes([3] * 16), 3, 4),
    ]


async def test_a_stream_that_moved_on_is_a_conflict(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, 2, stream=stream)
        outcome = await writer.append(appending(tenant.ledger_id, row(stream, 2)))
    assert outcome == ConcurrencyConflict()


async def test_a_stream_that_must_not_exist_and_does_is_a_conflict(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, stream=stream)
        outcome = await writer.append(appending(tenant.ledger_id, row(stream, 1)))
    assert outcome == ConcurrencyConflict()


async def test_a_stream_of_another_ledger_is_no_conflict(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    stream = uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, one.ledger_id, 1, stream=stream)
        outcome = await writer.append(appending(two.ledger_id, row(stream, 1)))
    assert isinstance(outcome, Appended)


async def test_a_stream_that_was_only_read_and_moved_on_is_a_conflict(opened: Opened) -> None:
    tenant = await opened.begin()
    read, written = uuid7(), uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, 2, stream=read)
        outcome = await writer.append(
            appending(tenant.ledger_id, row(written), expected_versions=[(written, 0), (read, 1)])
        )
    assert outcome == ConcurrencyConflict()


async def test_of_two_that_wait_together_the_later_sees_what_the_earlier_wrote(opened: Opened) -> None:
    """In one batch, both would be compared with the log as it was before either."""
    tenant = await opened.begin()
    switch, code = uuid7(), uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, stream=switch)
        outcomes = await together(
            writer,
            [
                appending(tenant.ledger_id, row(switch, 2)),
                appending(tenant.ledger_id, row(code), expected_versions=[(code, 0), (switch, 1)]),
            ],
        )
    assert [type(outcome) for outcome in outcomes] == [Appended, ConcurrencyConflict]


async def test_the_same_request_with_the_same_key_is_told_its_first_positions(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    request = keyed(tenant.ledger_id, row(stream, 1), row(stream, 2), key=b"k" * 16)
    again = keyed(tenant.ledger_id, row(stream, 3), key=b"k" * 16)
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, stream=uuid7())
        assert isinstance(await writer.append(request), Appended)
        assert await writer.append(again) == Replayed(2, 3)


async def test_the_same_key_with_another_request_is_a_mismatch(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        await writer.append(keyed(tenant.ledger_id, row(uuid7()), key=b"k" * 16))
        outcome = await writer.append(keyed(tenant.ledger_id, row(uuid7()), key=b"k" * 16, request=b"another"))
    assert outcome == Mismatch()


async def test_twins_with_one_key_that_wait_together_are_recorded_once(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        outcomes = await together(writer, [keyed(tenant.ledger_id, row(uuid7()), key=b"k" * 16) for _ in range(8)])
    assert [type(outcome) for outcome in outcomes] == [Appended, *[Replayed] * 7]


async def test_a_claim_that_another_stream_holds_is_a_conflict(opened: Opened) -> None:
    tenant = await opened.begin()
    first, second = uuid7(), uuid7()
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(first), claims=[(b"slot", None, first)]))
        outcome = await writer.append(appending(tenant.ledger_id, row(second), claims=[(b"slot", None, second)]))
    assert outcome == ConcurrencyConflict()


async def test_of_two_that_claim_a_name_together_one_gets_it(opened: Opened) -> None:
    tenant = await opened.begin()
    streams = [uuid7() for _ in range(8)]
    async with writing(opened.database) as writer:
        outcomes = await together(
            writer, [appending(tenant.ledger_id, row(stream), claims=[(b"slot", None, stream)]) for stream in streams]
        )
    assert [type(outcome) for outcome in outcomes] == [Appended, *[ConcurrencyConflict] * 7]


async def test_a_claim_is_handed_over_by_naming_who_holds_it(opened: Opened) -> None:
    tenant = await opened.begin()
    first, second = uuid7(), uuid7()
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(first), claims=[(b"slot", None, first)]))
        await writer.append(appending(tenant.ledger_id, row(second), claims=[(b"slot", first, second)]))
    assert opened.sql("SELECT claim, stream_id FROM claims") == [(b"slot", second)]


async def test_a_freed_claim_can_be_taken(opened: Opened) -> None:
    tenant = await opened.begin()
    first, second = uuid7(), uuid7()
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(first), claims=[(b"slot", None, first)]))
        await writer.append(appending(tenant.ledger_id, row(first, 2), claims=[(b"slot", first, None)]))
        outcome = await writer.append(appending(tenant.ledger_id, row(second), claims=[(b"slot", None, second)]))
    assert isinstance(outcome, Appended)


@pytest.mark.parametrize("never_minted", [True, False])
async def test_a_key_that_is_revoked_or_unknown_cannot_append(opened: Opened, never_minted: bool) -> None:
    tenant = await opened.begin()
    await opened.key_admin.revoke(tenant.ledger_id, tenant.key.key_id)
    api_key = uuid7() if never_minted else tenant.key.key_id
    async with writing(opened.database) as writer:
        outcome = await writer.append(appending(tenant.ledger_id, row(uuid7()), api_key=api_key))
    assert outcome == KeyRefused()


async def test_a_key_of_another_ledger_cannot_append(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    async with writing(opened.database) as writer:
        outcome = await writer.append(appending(one.ledger_id, row(uuid7()), api_key=two.key.key_id))
    assert outcome == KeyRefused()


@pytest.mark.parametrize(("moment", "told"), [("2020-01-01", ConcurrencyConflict), ("2100-01-01", Appended)])
async def test_what_was_decided_inside_a_window_must_be_recorded_before_its_end(
    opened: Opened, moment: str, told: type
) -> None:
    tenant = await opened.begin()
    before = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    async with writing(opened.database) as writer:
        outcome = await writer.append(appending(tenant.ledger_id, row(uuid7()), valid_until=before))
    assert type(outcome) is told


async def test_refused_callers_leave_no_hole(opened: Opened) -> None:
    tenant = await opened.begin()
    taken = uuid7()
    async with writing(opened.database) as writer:
        await writer.append(keyed(tenant.ledger_id, row(taken), key=b"k" * 16, claims=[(b"slot", None, taken)]))
        outcomes = await together(
            writer,
            [
                *one_of_each_outcome(tenant, taken),
                appending(tenant.ledger_id, row(uuid7())),
            ],
        )
    told = [type(outcome) for outcome in outcomes]
    assert told == [Appended, ConcurrencyConflict, ConcurrencyConflict, Mismatch, KeyRefused, Appended]
    assert opened.sql("SELECT array_agg(position ORDER BY position) FROM events") == [([1, 2, 3],)]


def one_of_each_outcome(tenant: Tenant, taken: UUID) -> list[Append]:
    """Callers that share nothing, so that one batch takes them all."""
    ledger_id = tenant.ledger_id
    return [
        appending(ledger_id, row(uuid7())),
        appending(ledger_id, row(taken, 1)),
        appending(ledger_id, row(uuid7()), claims=[(b"slot", None, uuid7())]),
        keyed(ledger_id, row(uuid7()), key=b"k" * 16, request=b"another"),
        appending(ledger_id, row(uuid7()), api_key=uuid7()),
    ]


async def test_a_row_that_the_database_refuses_never_touches_another_caller(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    async with writing(opened.database) as writer:
        await recorded(writer, tenant.ledger_id, 1, stream=stream)
        # No precondition: the unique key alone finds out, and fails the whole statement.
        bad = appending(tenant.ledger_id, row(stream, 1), expected_versions=[])
        outcomes = await together(writer, [*good(tenant, 5), bad, *good(tenant, 5)])
    assert [type(outcome) for outcome in outcomes] == [
        *[Appended] * 5,
        psycopg.errors.UniqueViolation,
        *[Appended] * 5,
    ]
    assert opened.sql("SELECT count(*), max(position) FROM events") == [(11, 11)]


async def test_a_text_that_cannot_be_encoded_never_touches_another_caller(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        bad = appending(tenant.ledger_id, row(uuid7()), source="\ud800")
        outcomes = await together(writer, [*good(tenant, 2), bad, *good(tenant, 2)])
    assert [type(outcome) for outcome in outcomes] == [*[Appended] * 2, UnicodeEncodeError, *[Appended] * 2]


async def test_a_ledger_that_does_not_exist_never_touches_another_caller(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        outcomes = await together(writer, [*good(tenant, 2), appending(99, row(uuid7())), *good(tenant, 2)])
    assert [type(outcome) for outcome in outcomes] == [
        *[Appended] * 2,
        psycopg.errors.ForeignKeyViolation,
        *[Appended] * 2,
    ]


def good(tenant: Tenant, count: int) -> list[Append]:
    return [appending(tenant.ledger_id, row(uuid7())) for _ in range(count)]


async def test_a_ledgers_lock_that_is_held_too_long_turns_its_callers_away_and_nobody_else(opened: Opened) -> None:
    locked, free = await opened.begin("locked"), await opened.begin("free")
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as other:
        await other.execute("SELECT 1 FROM ledgers WHERE ledger_id = %s FOR UPDATE", (locked.ledger_id,))
        async with writing(opened.database, options=" -c lock_timeout=300") as writer:
            outcomes = await together(writer, [*good(locked, 3), *good(free, 3)])
    assert [type(outcome).__name__ for outcome in outcomes] == [*["Unavailable"] * 3, *["Appended"] * 3]
