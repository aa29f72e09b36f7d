"""Erasing a creator in the middle of a generated history: all works on, and nothing of it is ever found again."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.campaign import Campaign
from domain.errors import Refused
from domain.recorded import RecordedEvent
from domain.values import Sealed
from infra.auth.access_log import COMMAND_LINE
from infra.crypto.envelope import associated_data
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from infra.runtime import Runtime, runtime
from infra.views.commands import connect
from projections import VIEWS
from projections.engine.rebuild import rebuild
from tests import given
from tests.given import Command
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.session_tokens import present

NOTE = "for the birthday of Ana Lopes"


async def unsealed(api: Runtime, tenant: Tenant) -> dict[int, dict[str, Sealed] | None]:
    """Return what each sealed event of the ledger holds; None where that is erased."""
    return await api.aggregates.unsealed(tenant.ledger_id, await events(api, tenant))


async def events(api: Runtime, tenant: Tenant) -> list[RecordedEvent]:
    return await api.events.page(tenant.ledger_id, limit=1_000)


async def refusal(attempt: Any) -> str:
    """Return what refused an attempt."""
    with pytest.raises(Refused) as refused:
        await attempt
    return refused.value.code


@dataclass
class History:
    """What was recorded of a ledger, with every text that was sealed, by creator."""

    opened: Opened
    tenant: Tenant
    secrets: dict[UUID, str] = field(default_factory=dict)
    texts: dict[str, set[str]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def tell(self, creator: str, what: str) -> str:
        """Carry out a command on a creator's latest code, and tell what came of it."""
        number = next(self.numbers)
        texts = self.texts.setdefault(creator, set())
        code = max((c for c in self.secrets if c.int % 10 == int(creator[-1])), default=UUID(int=int(creator[-1])))
        text = f"{what} {number} of {creator} in {self.tenant.ledger_id}"
        command = self._commands(creator, code, text)[what]
        try:
            done = await self.opened.when(self.tenant, command)
        except Refused as refused:
            return refused.code
        if done.appended and what in {"generate", "share", "note"}:
            texts.add(text)
        if done.appended and what == "generate":
            assert done.aggregate is not None
            self.secrets[done.aggregate.id] = text
        return "done"

    def _commands(self, creator: str, code: UUID, text: str) -> dict[str, Command]:
        now = datetime.now(UTC)
        fresh = UUID(int=code.int + 10)
        running = Campaign(f"campaign-{text[-4:].strip()}", "advertiser-1", "5.00", "USD", now, now + timedelta(days=9))
        return {
            "permit": given.permission(creator_id=creator),
            "forbid": given.permission(creator_id=creator, enabled=False),
            "generate": given.generate(fresh, creator_id=creator, video_id=f"video-{fresh}", secret=Sealed(text)),
            "extend": given.extend(code, days=60),
            "share": given.share(code, brand_id=f"brand-{text[-1]}", note=text),
            "redeem": given.redeem(Sealed(self.secrets.get(code, "none"))),
            "launch": given.launch(running, code),
            "end": given.end(running.campaign_id, code),
            "revoke": given.revoke(code, force=True),
            "reveal": given.reveal(code),
            "note": given.note(code, text=text),
            "erase": given.erase(creator_id=creator),
        }


WHATS = ["generate", "generate", "share", "share", "note", "note", "redeem", "launch", "end", "extend", "reveal"]
steps = st.tuples(
    st.sampled_from(["creator-1", "creator-2", "creator-3"]),
    st.sampled_from([*WHATS * 2, "revoke", "permit", "forbid"]),
)


@pytest.mark.long("a long history is erased, and everything is searched for what is left")
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@for_all(before=st.lists(steps, min_size=8, max_size=25), after=st.lists(steps, min_size=2, max_size=10))
async def test_after_an_erasure_everything_works_and_nothing_of_it_is_found(
    opened: Opened, before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    ((ledgers,),) = opened.sql("SELECT count(*) FROM ledgers")
    history = History(opened, await opened.begin(f"ledger-{ledgers}", "admin"))
    tenant = history.tenant
    for creator in ("creator-1", "creator-2", "creator-3"):
        assert await history.tell(creator, "permit") == "done"
        assert await history.tell(creator, "generate") == "done"
    for step in before:
        await history.tell(*step)
    sealed_before = await unsealed(opened.api, tenant)
    assert await history.tell("creator-1", "erase") == "done"
    await opened.erasures.carry_out(tenant.ledger_id, "creator-1", COMMAND_LINE)
    erased = history.texts["creator-1"].copy()
    for creator, what in after:
        outcome = await history.tell(creator, what)
        assert (outcome == "creator_erased") <= (creator == "creator-1")
        if creator == "creator-1" and what in {"generate", "share", "note", "reveal", "extend", "permit"}:
            assert outcome == "creator_erased"
    assert history.texts["creator-1"] == erased
    await check(history, erased, sealed_before)


async def check(history: History, erased: set[str], before: dict[int, dict[str, Sealed] | None]) -> None:
    opened, tenant = history.opened, history.tenant
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as fresh:
        present(fresh.database, tenant.ledger_id)
        recorded = {r.position: r for r in await events(fresh, tenant)}
        told = await fresh.aggregates.unsealed(tenant.ledger_id, list(recorded.values()))
        ours = [position for position, r in recorded.items() if "creator-1" in str(await creator_of(fresh, tenant, r))]
        assert {position: told[position] for position in told if position not in ours} == {
            position: fields
            for position, fields in (before | {p: f for p, f in told.items() if p not in before}).items()
            if position not in ours
        }
        assert {told[position] is None for position in ours if position in told} == {True}
        for code, secret in history.secrets.items():
            if secret in erased:
                assert await refusal(fresh.aggregates.secret(tenant.ledger_id, code)) == "creator_erased"
            else:
                assert await fresh.aggregates.secret(tenant.ledger_id, code) == secret
        await no_key_opens(fresh, opened, tenant, [recorded[position] for position in ours if position in told])
    await opened.apply()
    rows = view_rows(opened, tenant)
    await rebuilt(opened)
    assert view_rows(opened, tenant) == rows
    assert in_clear(opened, erased) == []


async def creator_of(api: Runtime, tenant: Tenant, r: RecordedEvent) -> str:
    (stream,) = (await api.events.streams(tenant.ledger_id, [r.creator_stream])).values()
    return str(stream[0].event.creator_id)  # type: ignore[attr-defined] # a creator's stream begins with a permission


async def no_key_opens(api: Runtime, opened: Opened, tenant: Tenant, erased: list[RecordedEvent]) -> None:
    """Try every key that is left on every sealed part of an erased creator."""
    keys = opened.sql(
        "SELECT key_id, wrapped FROM creator_keys WHERE ledger_id = %s AND wrapped IS NOT NULL", tenant.ledger_id
    )
    left = [await api.keyring.opened(tenant.ledger_id, *key) for key in keys]
    assert left
    stored = await api.events.sealed(tenant.ledger_id, [r.position for r in erased])
    for r in erased:
        where = associated_data(tenant.ledger_id, r.stream_id, r.stream_version, r.event_id, r.type)
        for key in left:
            with pytest.raises(InvalidTag):
                key.unseal(stored[r.position].sealed, where)


def view_rows(opened: Opened, tenant: Tenant) -> dict[str, list[Any]]:
    """Return the rows of every view, of one ledger."""
    return {
        table.name: opened.sql(
            f"SELECT t::text FROM views.{table.name} t WHERE ledger_id = %s ORDER BY 1", tenant.ledger_id
        )
        for view in VIEWS
        for table in view.tables
    }


async def rebuilt(opened: Opened) -> None:
    """Rebuild every view."""
    async with AsyncExitStack() as stack:
        database = Database(opened.database.dsn(WORKER), WORKER, size=1)
        await database.open()
        stack.push_async_callback(database.close)
        for view in VIEWS:
            await rebuild(view, AllLedgersReader(database), lambda: connect(opened.database.dsn(WORKER)))


def in_clear(opened: Opened, texts: set[str]) -> list[str]:
    """Look for texts in every row of every table, as text and as bytes."""
    tables = opened.sql(
        "SELECT c.oid::regclass::text FROM pg_class c"
        " WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('public', 'views')"
    )
    shapes = [shape for text in texts for shape in (text, text.encode().hex())]
    where = "EXISTS (SELECT 1 FROM unnest(%s::text[]) x (shape) WHERE position(shape IN t::text) > 0)"
    return [table for (table,) in tables if opened.sql(f"SELECT 1 FROM {table} t WHERE {where} LIMIT 1", shapes)]


async def test_the_search_for_what_was_erased_can_find_it(opened: Opened) -> None:
    opened.sql("CREATE TABLE leak (as_text text, as_bytes bytea)")
    opened.sql("INSERT INTO leak VALUES (%s, NULL)", NOTE)
    assert in_clear(opened, {NOTE}) == ["leak"]
    opened.sql("UPDATE leak SET as_text = NULL, as_bytes = %s", NOTE.encode())
    assert in_clear(opened, {NOTE}) == ["leak"]
