"""The list of codes as it was: as the ledger knew it at a position or a time, or as it was true at a moment.

Which codes there were by then, and their creators and videos, a view tells: that never changes. How each of them was is
read from its stream, and built with the same functions that build one code. So the list says of a code what the code
itself says with the same `as_of` and `at`, and nothing is stored for it.

A filter by state may pass over most codes. So a page looks at a limited number of them, and may have fewer entries than
were asked for, and a next page nevertheless.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from api.code_answer import code_summary
from api.http.as_of import known_at, upto
from domain.code import Code, effective_as_of, fold_code, replay_code
from domain.values import FOREVER
from infra.eventstore.serialization import UnreadableEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from api.http.caller import Caller
    from domain.recorded import RecordedEvent
    from domain.values import State
    from projections.codes import CodeRow

# Codes that are read at a time, and at most for one page: a tenth of a second of the process.
CODES_AT_ONCE: Final = 100
MAX_CODES_READ: Final = 1_000


@dataclass(frozen=True, slots=True)
class Moment:
    """As of when a list is read.

    Attributes:
        position: what was recorded later counts for nothing.
        at: what took effect later counts for nothing; None if everything that is recorded counts.
        clock: the moment at which states are computed.

    """

    position: int
    at: datetime | None
    clock: datetime


@dataclass(frozen=True, slots=True)
class PastFilters:
    """What a code must have been to be in the list; None for anything."""

    state: State | None = None
    brand_id: str | None = None
    advertiser_id: str | None = None
    expires_before: datetime | None = None
    rights_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class PastCode:
    """A code as it was, and its place in the list."""

    row: CodeRow
    code: Code
    position: int


async def moment_of(caller: Caller, as_of: datetime | int | None, at: datetime | None) -> Moment:
    """Return as of when a list is read.

    Raises:
        Problem: `as_of` lies ahead.

    """
    now = caller.services.now()
    if as_of is None:
        return Moment(await caller.services.events.head(caller.ledger_id), at, at or now)
    position, clock = await known_at(caller, as_of, now)
    return Moment(position, at, at or clock)


async def past_codes(
    caller: Caller,
    moment: Moment,
    filters: PastFilters,
    candidates: Callable[[int, int], Awaitable[list[CodeRow]]],
    *,
    after_key: int | None,
    limit: int,
) -> tuple[list[PastCode], int | None]:
    """Return the codes that pass the filters, newest first, and the place after which the next page begins.

    Args:
        caller: who asks.
        moment: as of when.
        filters: what the codes must have been.
        candidates: reads codes as they are now: so many, those that were generated before a position, newest first.
        after_key: the place after which the page begins.
        limit: how many codes at most.

    """
    key = min(moment.position + 1, after_key if after_key is not None else moment.position + 1)
    found: list[PastCode] = []
    read = 0
    while read < MAX_CODES_READ:
        rows = await candidates(key, CODES_AT_ONCE)
        streams = await caller.services.events.streams(caller.ledger_id, [row.code_id for row in rows])
        for row in rows:
            key, read = row.generated_position, read + 1
            past = _as_it_was(row, streams.get(row.code_id, []), moment)
            if past is not None and _passes(past.code, filters, caller, moment):
                found.append(past)
                if len(found) == limit:
                    return found, key
        if len(rows) < CODES_AT_ONCE:
            return found, None
    return found, key


def past_content(past: PastCode, caller: Caller, moment: Moment) -> dict[str, Any]:
    """Return a code as the list shows it, to a brand with only its own names."""
    code, ours, whole = past.code, caller.key.subjects, caller.role != "brand"
    brand_ids = {share.brand_id for share in code.shares}
    accounts = {share.advertiser_id for share in code.shares if share.advertiser_id is not None} | set(code.redemptions)
    if not whole:
        brand_ids, accounts = brand_ids & ours.brand_ids, accounts & ours.advertiser_ids
    return {
        **code_summary(code, past.row.code_id, code.window, moment.clock, whole=whole),
        "brand_ids": sorted(brand_ids),
        "advertiser_ids": sorted(accounts),
        "version": code.command_version,
        "position": past.position,
    }


def _as_it_was(row: CodeRow, stream: Sequence[RecordedEvent], moment: Moment) -> PastCode | None:
    past = code_as_it_was(stream, moment)
    return None if past is None else PastCode(row, *past)


def code_as_it_was(stream: Sequence[RecordedEvent], moment: Moment) -> tuple[Code, int] | None:
    """Return a code as it was, and the position of its last event by then.

    None if it was not there yet, or if its beginning cannot be read.
    """
    known = upto(list(stream), moment.position)
    if not known or isinstance(known[0].event, UnreadableEvent):
        return None
    if moment.at is None:
        return replay_code(known), known[-1].position
    if moment.at < replay_code(known).begun_at:
        return None
    kept = effective_as_of(known, moment.at)
    return fold_code(kept), kept[-1].position


def _passes(code: Code, filters: PastFilters, caller: Caller, moment: Moment) -> bool:
    brands = {share.brand_id for share in code.shares}
    accounts: Collection[str | None] = {share.advertiser_id for share in code.shares} | code.redemptions.keys()
    if caller.role == "brand" and not caller.is_party_to(brands, accounts):
        return False
    if filters.brand_id is not None and filters.brand_id not in brands:
        return False
    if filters.advertiser_id is not None and filters.advertiser_id not in accounts:
        return False
    if filters.expires_before is not None and code.window.expires_at >= filters.expires_before:
        return False
    rights_until = code.rights_until(FOREVER)
    if filters.rights_before is not None and (rights_until is None or rights_until >= filters.rights_before):
        return False
    return filters.state is None or code.state(moment.clock) == filters.state
