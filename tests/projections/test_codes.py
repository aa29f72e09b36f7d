"""The view of codes: their state, found by every filter, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from psycopg.sql import SQL, Composed, Identifier

from domain.code import Code, effective_as_of, fold_code, replay_code
from domain.values import Sealed
from projections import codes, statistics
from projections.codes import CodeRow
from tests import given
from tests.given import ADVERTISER, BRAND, CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.late import code_streams, recorded_late
from tests.projections.memory_log import MemoryLog, code_row, happening

MONTH = timedelta(days=30)


def row(story: Story, **differs: Any) -> CodeRow:
    """What `given.generated` comes to, but for what differs."""
    first, last = story.stream()[0], story.stream()[-1]
    facts: dict[str, Any] = {
        "ledger_id": 1,
        "code_id": CODE,
        "creator_id": CREATOR,
        "creator_stream": first.creator_stream,
        "video_id": VIDEO,
        "masked": "…B2",
        "terms_version": "terms-2026",
        "starts_at": NOW,
        "start_stated": True,
        "expires_at": NOW + MONTH,
        "extended_at": None,
        "rights_until": None,
        "rights_at": None,
        "rights": None,
        "generated_at": NOW,
        "generated_position": 2,
        "revoked_at": None,
        "superseded_at": None,
        "superseded_by": None,
        "supersedes": None,
        "version": 1,
        "stream_version": len(story.stream()),
        "position": last.position,
        "brand_ids": set(),
        "advertiser_ids": set(),
        "was_shared": False,
        "was_redeemed": False,
        "refusal_count": 0,
    }
    return CodeRow(**(facts | {"masked": first.event.masked} | differs))  # type: ignore[attr-defined]


SHARED = {"brand_ids": {BRAND}, "advertiser_ids": {ADVERTISER}, "was_shared": True}
REDEEMED = {**SHARED, "was_redeemed": True}
CASES: list[tuple[Story, dict[str, Any]]] = [
    (given.generated(), {}),
    (given.shared(), {**SHARED, "version": 2}),
    (given.redeemed(), {**REDEEMED, "version": 3}),
    (given.after(given.redeemed(), given.reveal(), given.note()), {**REDEEMED, "version": 3}),
    (given.running(), {**REDEEMED, "version": 4}),
    (
        given.after(given.generated(), given.rights(NOW + MONTH / 2, platforms=("tiktok",), edits_allowed=True)),
        {
            "rights_until": NOW + MONTH / 2,
            "rights_at": NOW,
            "rights": {"platforms": ["tiktok"], "edits_allowed": True},
            "version": 2,
        },
    ),
    (
        given.campaign_ended(),
        {**REDEEMED, "version": 5},
    ),
    (given.expired(), {**REDEEMED, "version": 6}),
    (
        given.revived(),
        {
            **REDEEMED,
            "version": 7,
            "expires_at": NOW + timedelta(days=61),
            "extended_at": NOW + timedelta(days=31),
        },
    ),
    (given.revoked(), {**REDEEMED, "version": 4, "revoked_at": NOW}),
    (given.without_secret(), {"masked": None, "start_stated": False}),
    (
        given.after(given.without_secret(), given.attach()),
        {"masked": "…A1B2", "start_stated": False, "version": 2},
    ),
    (given.superseded(), {**REDEEMED, "version": 4, "superseded_at": NOW, "superseded_by": OTHER_CODE}),
]


async def test_a_code_is_as_its_events_left_it(follow: Followed, worker: Cursor) -> None:
    stories = [story for story, _ in CASES]
    await follow(codes.VIEW, MemoryLog(*stories))
    found = [await code_row(worker, ledger_id, CODE) for ledger_id in range(1, len(stories) + 1)]
    assert found == [
        row(story, **{"ledger_id": ledger_id, **differs}) for ledger_id, (story, differs) in enumerate(CASES, 1)
    ]


async def test_a_refused_redemption_is_counted_and_makes_nobodys_version_stale(follow: Followed, api: Cursor) -> None:
    story = given.revoked()
    assert story.outcome(given.redeem(advertiser_id="late")) == "RedemptionRefused code_revoked"
    await follow(codes.VIEW, MemoryLog(story))
    assert await code_row(api, 1, CODE) == row(story, **REDEEMED, version=4, revoked_at=NOW, refusal_count=1)


async def test_a_code_recorded_late_was_generated_and_revoked_when_that_was_true(follow: Followed, api: Cursor) -> None:
    story = given.permitted().later(days=10)
    story.when(given.generate(), effective_at=NOW)
    story.when(given.revoke(), effective_at=NOW + timedelta(days=3))
    await follow(codes.VIEW, MemoryLog(story))
    assert await code_row(api, 1, CODE) == row(story, version=2, revoked_at=NOW + timedelta(days=3))


async def test_a_code_of_another_ledger_is_unknown(follow: Followed, api: Cursor) -> None:
    await follow(codes.VIEW, MemoryLog(given.unknown(), given.shared()))
    assert await code_row(api, 1, CODE) is None
    assert await code_row(api, 2, CODE) is None, (
        "row-level security hides it from a caller that asks for the wrong ledger"
    )
    assert await codes.search(api, 2, now=NOW, limit=10, brand_ids=[BRAND]) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@for_all(st.integers(0, 10**6), st.integers(0, 800), st.booleans())
def test_state_and_liveness_are_the_aggregates_own(seed: int, hours: int, late: bool) -> None:
    story = recorded_late(seed, 40) if late else happening(seed, 30)
    moment = NOW + timedelta(hours=hours)
    for stream in story.ledger.streams.values():
        if isinstance(stream[0].event, Code.Generated):
            code, seen = replay_code(stream), codes.generated(1, stream[0], stream[0].event)
            for recorded in stream[1:]:
                _, change = codes.VIEW._handler(type(recorded.event))
                assert change is not None
                change(seen, recorded, recorded.event)
            assert (seen.state(moment), seen.live(moment)) == (code.state(moment), code.live(moment))
            assert (seen.version, seen.stream_version) == (code.command_version, code.version)
            assert seen.advertiser_ids >= code.redemptions.keys()


# Searching: eight codes, one on each video, newest last, in every state.


def code_id(number: int) -> UUID:
    return UUID(int=number)


def shelf() -> Story:
    story = given.unknown()
    for creator in ("creator-a", "creator-b"):
        story.when(given.permission(creator_id=creator))
    for number in range(1, 9):
        story.when(
            given.generate(
                code_id(number),
                creator_id="creator-a" if number % 2 else "creator-b",
                video_id=f"video-{number}",
                secret=Sealed(f"#secret+of+code+number+{number}="),
                days=7 if number == 5 else 30,
            )
        )
    for number, brand, advertiser in [
        (2, "brand-x", "account-x"),
        (3, "brand-y", None),
        (4, "brand-x", None),
        (4, "brand-y", "account-y"),
        (6, "brand-x", "account-x"),
    ]:
        story.when(given.share(code_id(number), brand_id=brand, advertiser_id=advertiser))
    story.when(given.redeem(Sealed("#secret+of+code+number+3="), advertiser_id="account-z"))
    story.when(given.redeem(Sealed("#secret+of+code+number+4="), advertiser_id="account-y"))
    story.when(given.revoke(code_id(6)))
    return story.later(days=8)


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [8, 7, 6, 5, 4, 3, 2, 1]),
    ({"state": "revoked"}, [6]),
    ({"state": "expired"}, [5]),
    ({"state": "redeemed"}, [4, 3]),
    ({"state": "shared"}, [2]),
    ({"state": "generated"}, [8, 7, 1]),
    ({"creator_ids": ["creator-a"]}, [7, 5, 3, 1]),
    ({"creator_ids": ["creator-a", "creator-b"], "state": "redeemed"}, [4, 3]),
    ({"creator_ids": []}, []),
    ({"video_id": "video-4"}, [4]),
    ({"brand_ids": ["brand-x"]}, [6, 4, 2]),
    ({"brand_ids": ["brand-x", "brand-y"]}, [6, 4, 3, 2]),
    ({"brand_ids": []}, []),
    ({"advertiser_ids": ["account-y"]}, [4]),
    ({"advertiser_ids": ["account-z", "account-x"]}, [6, 3, 2]),
    ({"brand_ids": ["brand-x"], "advertiser_ids": ["account-y"]}, [4]),
    ({"brand_ids": ["brand-x"], "state": "shared"}, [2]),
    ({"visible_brands": ["brand-y"], "visible_advertisers": ["account-x"]}, [6, 4, 3, 2]),
    ({"visible_brands": ["brand-y"], "visible_advertisers": []}, [4, 3]),
    ({"visible_brands": ["brand-y"], "brand_ids": ["brand-x"]}, [4]),
    ({"visible_brands": [], "visible_advertisers": []}, []),
    ({"expires_before": NOW + timedelta(days=10)}, [5]),
]


async def test_codes_are_found_newest_first_by_every_filter(follow: Followed, api: Cursor) -> None:
    story = shelf()
    await follow(codes.VIEW, MemoryLog(story))
    found = [(filters, await codes.search(api, 1, now=story.clock(), limit=100, **filters)) for filters, _ in FILTERS]
    assert [(filters, [row.code_id.int for row in rows]) for filters, rows in found] == FILTERS


@pytest.mark.parametrize("filters", [{}, {"visible_brands": ["brand-x", "brand-y"]}, {"creator_ids": ["creator-a"]}])
async def test_pages_of_codes_together_are_the_whole(filters: dict[str, Any], follow: Followed, api: Cursor) -> None:
    story = shelf()
    await follow(codes.VIEW, MemoryLog(story))

    async def page(after_key: int | None, limit: int) -> Sequence[CodeRow]:
        return await codes.search(api, 1, now=NOW, limit=limit, after_key=after_key, **filters)

    whole, paged = await page(None, 100), list(await page(None, 2))
    while following := await page(paged[-1].generated_position, 2):
        paged += following
    assert paged == whole


async def test_codes_are_found_by_when_they_end_the_soonest_first(follow: Followed, api: Cursor) -> None:
    story = shelf()
    story.when(given.extend(code_id(7), days=60))
    await follow(codes.VIEW, MemoryLog(story))

    async def ending(after: tuple[datetime, int], **filters: Any) -> list[int]:
        rows = await codes.search(api, 1, now=NOW, limit=100, ending_after=after, **filters)
        return [row.code_id.int for row in rows]

    assert await ending((NOW, 0)) == [5, 1, 2, 3, 4, 8, 7], "all but the revoked one; equal ends as they were generated"
    assert await ending((story.clock(), 0)) == [1, 2, 3, 4, 8, 7]
    assert await ending((NOW, 0), expires_before=NOW + 31 * timedelta(days=1)) == [5, 1, 2, 3, 4, 8]
    assert await ending((NOW, 0), creator_ids=["creator-a"], state="generated") == [5, 1, 7]
    assert await ending((NOW, 0), visible_brands=["brand-x", "brand-y"], visible_advertisers=["account-x"]) == [2, 3, 4]
    whole, paged = await ending((NOW, 0)), []
    place = (NOW, 0)
    while page := await codes.search(api, 1, now=NOW, limit=2, ending_after=place):
        place = (page[-1].expires_at, page[-1].generated_position)
        paged += [row.code_id.int for row in page]
    assert paged == whole


@pytest.mark.parametrize("seed", range(6))
async def test_codes_that_were_live_at_a_moment_are_those_whose_events_say_so(
    follow: Followed, api: Cursor, seed: int
) -> None:
    story = recorded_late(seed, 90)
    for view in (codes.VIEW, statistics.VIEW):
        await follow(view, MemoryLog(story))
    streams = {stream[0].stream_id: stream for stream in code_streams(story)}
    turns = {recorded.effective_at for stream in streams.values() for recorded in stream}
    turns |= {replay_code(stream).window.expires_at for stream in streams.values()}
    for turn in sorted(turns):
        for at in (turn - timedelta(seconds=1), turn, turn + timedelta(days=5)):
            live = {id_ for id_, stream in streams.items() if fold_code(effective_as_of(stream, at)).live(at)}
            found = await codes.search(api, 1, now=NOW, limit=100, ending_after=(at, 2**62), live_at=at)
            assert (at, {row.code_id for row in found}) == (at, live)
            assert [row.expires_at for row in found] == sorted(row.expires_at for row in found)


async def test_a_code_that_was_extended_after_a_lapse_was_not_live_in_it(follow: Followed, api: Cursor) -> None:
    story = given.after(given.generated().later(days=40), given.extend(days=60))
    for view in (codes.VIEW, statistics.VIEW):
        await follow(view, MemoryLog(story))

    async def live(day: int) -> int:
        at = NOW + timedelta(days=day)
        return len(await codes.search(api, 1, now=NOW, limit=100, ending_after=(at, 2**62), live_at=at))

    assert [await live(day) for day in (-1, 0, 29, 30, 39, 40, 59, 120)] == [0, 1, 1, 0, 0, 1, 1, 0]


async def test_a_superseded_code_is_found_by_that_state_from_the_moment_on_at_which_the_other_begins(
    follow: Followed, api: Cursor
) -> None:
    successor = given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=NOW + timedelta(days=2), supersedes=CODE)
    story = given.after(given.redeemed(), successor)
    await follow(codes.VIEW, MemoryLog(story))

    async def in_state(state: str, day: int, **asked: Any) -> list[UUID]:
        now = NOW + timedelta(days=day)
        return [row.code_id for row in await codes.search(api, 1, now=now, limit=9, state=state, **asked)]  # type: ignore[arg-type]

    assert [await in_state("redeemed", day) for day in (1, 2)] == [[CODE], []]
    assert [await in_state("superseded", day) for day in (1, 2, 29, 30)] == [[], [CODE], [CODE], []]
    assert [await in_state("expired", day) for day in (29, 30, 32)] == [[], [CODE], [OTHER_CODE, CODE]]
    assert await in_state("superseded", 3, ending_after=(NOW, 0)) == [CODE]
    rows = {row.code_id: row for row in await codes.search(api, 1, now=NOW, limit=9)}
    assert (rows[OTHER_CODE].supersedes, rows[CODE].superseded_by) == (CODE, OTHER_CODE)


async def test_a_code_whose_start_nobody_stated_begins_with_the_first_that_is_known_of_it(
    follow: Followed, api: Cursor
) -> None:
    story = given.permitted().later(days=20)
    story.when(given.permission(), effective_at=NOW - timedelta(days=30))
    story.when(given.generate(expires_at=NOW + MONTH, secret_given=True), effective_at=NOW + timedelta(days=9))
    story.when(given.redeem(), effective_at=NOW + timedelta(days=5))
    story.when(given.share(), effective_at=NOW + timedelta(days=4))
    for view in (codes.VIEW, statistics.VIEW):
        await follow(view, MemoryLog(story))
    (found,) = await codes.search(api, 1, now=NOW, limit=9)
    assert (found.start_stated, found.starts_at) == (False, NOW + timedelta(days=4))
    assert found.starts_at == story.code().window.starts_at

    async def live(day: int) -> int:
        at = NOW + timedelta(days=day)
        return len(await codes.search(api, 1, now=NOW, limit=9, ending_after=(at, 2**62), live_at=at))

    assert [await live(day) for day in (3, 4, 29, 30)] == [0, 1, 1, 0]


async def test_all_codes_of_a_video_are_found_oldest_first(follow: Followed, api: Cursor) -> None:
    story = given.after(given.revoked(), given.generate(given.OTHER_CODE, secret=given.OTHER_SECRET))
    await follow(codes.VIEW, MemoryLog(story))
    assert await codes.of_video(api, 1, VIDEO) == [CODE, given.OTHER_CODE]
    assert await codes.of_video(api, 1, "video-2") == []


async def test_what_concerns_a_party_comes_from_an_index_under_row_level_security(
    follow: Followed, api: Cursor, worker: Cursor
) -> None:
    await follow(codes.VIEW, MemoryLog(shelf()))
    await fill(worker, 20_000, like=3)
    for statement in (
        """
        INSERT INTO views.code_parties
        SELECT ledger_id, 'brand', 'brand-' || generated_position % 500, generated_position, code_id FROM views.codes
        """,
        "ANALYZE views.code_parties",
    ):
        await worker.execute(statement.encode())
    query = codes._OF_PARTIES.format(columns=codes.CODES.select(), filters=SQL(""))
    asked = {"kinds_0": ["brand"], "party_ids_0": ["brand-7"], "ledger_id": 1, "after_key": 2**62, "limit": 10}
    await api.execute(SQL("EXPLAIN ") + query, asked)
    plan = "\n".join(line for (line,) in await api.fetchall())
    assert "Seq Scan" not in plan
    assert "(kind = x.kind) AND (party_id = x.party_id) AND (generated_position <" in plan


async def fill(worker: Cursor, number: int, *, like: int) -> None:
    """Add codes like the one that was generated at a position, at positions from 100 on."""
    columns = SQL(", ").join(map(Identifier, codes.CODES.columns))
    many = SQL("""
        INSERT INTO views.codes ({columns})
        SELECT {many} FROM (
            SELECT jsonb_populate_record(c, jsonb_build_object('code_id', gen_random_uuid(), 'generated_position', n)) t
            FROM views.codes c, generate_series(100, 99 + {number}) n
            WHERE c.generated_position = {like}
        ) many
    """)
    of_many = SQL(", ").join(SQL("(t).{}").format(Identifier(column)) for column in codes.CODES.columns)
    await worker.execute(many.format(columns=columns, many=of_many, number=number, like=like))
    await worker.execute("ANALYZE views.codes")


@pytest.mark.parametrize(
    "asked",
    [
        {"state": "redeemed"},
        {"state": "shared"},
        {"state": "superseded"},
        {"state": "expired"},
        {"state": "revoked"},
        {"state": "redeemed", "ending_after": (NOW, 0)},
        {"state": "shared", "ending_after": (NOW, 0)},
        {"expires_before": NOW},
        {"live_at": NOW - MONTH, "ending_after": (NOW - MONTH, 0)},
    ],
    ids=str,
)
async def test_the_few_codes_in_a_state_are_found_without_reading_the_others(
    follow: Followed, api: Cursor, worker: Cursor, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    for view in (codes.VIEW, statistics.VIEW):
        await follow(view, MemoryLog(given.generated()))
    await fill(worker, 5_000, like=2)
    blocks = 0

    async def explained(cur: Cursor, query: Composed, parameters: Any) -> list[CodeRow]:
        nonlocal blocks
        await cur.execute(SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + query, parameters)
        ((((plan,),)),) = await cur.fetchall()
        blocks = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        return []

    monkeypatch.setattr(codes.CODES, "fetch", explained)
    await api.execute("SET enable_seqscan = off")
    await api.execute("SELECT bound_ledger()")  # the first call of a session also reads what the function is
    await codes.search(api, 1, **{"now": NOW, "limit": 100, **asked})
    await worker.execute("SELECT pg_relation_size('views.codes') / current_setting('block_size')::int")
    ((of_all,),) = await worker.fetchall()
    assert 0 < blocks < of_all / 3
