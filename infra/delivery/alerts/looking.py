"""What a rule finds: first among what holds now, and then in each event that it is about.

The expiry clock decides when an end is near (`domain.reminders`) and records it. So a rule about ends reports what was
recorded: an extension sets a new end with reminders of its own, and a code that was recorded late is reported late, and
once. The first look of a rule reports the ends that are near already.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from domain.code import Code
from domain.reminders import reminders
from domain.values import Window
from infra.delivery.alerts.models import Finding
from infra.eventstore.reader import COLUMNS, to_recorded
from infra.eventstore.serialization import UnreadableEvent
from projections import campaigns, codes
from projections.engine.checkpoints import position_reached

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent
    from infra.delivery.alerts.models import ActiveRule, AlertPolicy, Sight
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.postgres.pool import LedgerConnection
    from projections.campaigns import CampaignRow
    from projections.codes import CodeRow
    from projections.engine.paging import Keyset

# The events that rules are about. By name, because the query asks for them by name.
TYPES: Final = tuple(
    event.TOPIC for event in (Code.ExpiryApproaching, Code.CampaignLaunched, Code.RightsStated, Code.RedemptionRefused)
)
_INSTANT: Final = timedelta(microseconds=1)
_BEYOND: Final = 2**62
_PAGE: Final = 200

_EVENTS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b AND e.type = ANY (%b)
    ORDER BY e.position
"""
)


async def look(
    connection: LedgerConnection,
    aggregates: AggregateReader,
    ledger_id: int,
    rules: Sequence[ActiveRule],
    now: datetime,
    policy: AlertPolicy,
) -> list[tuple[ActiveRule, int, list[Finding]]]:
    """Let rules of one ledger look on; return how far each has looked, and what it has found.

    No rule looks further than the views have read, because they say whom a code concerns.
    """
    looked = []
    async with connection.cursor() as cur:
        upto = await position_reached(cur, ledger_id, codes.NAME, campaigns.NAME)
        fresh = [rule for rule in rules if rule.position is None or rule.looked_in != rule.history]
        for rule in fresh:
            creators = await creators_seen(aggregates, ledger_id, rule.sight)
            # An attempt is no state that could be looked at: the events from the rule's beginning on are.
            position = min(rule.since, upto) if rule.kind == "refused_attempts" else upto
            looked.append((rule, position, await _first_look(cur, rule, creators, now, policy)))
        behind = [rule for rule in rules if rule not in fresh and (rule.position or 0) < upto]
        if not behind:
            return looked
        after = min(rule.position or 0 for rule in behind)
        upto = min(upto, after + policy.events)
        events = await _events(connection, ledger_id, after, upto)
        code_ids = {recorded.stream_id for recorded in events}
        rows = await codes.with_ids(cur, ledger_id, code_ids) if code_ids else {}
        # By the position of an event: they are the same for every rule.
        cut: dict[int, Sequence[CampaignRow]] = {}
        for rule in behind:
            ahead = [recorded for recorded in events if recorded.position > (rule.position or 0)]
            looked.append((rule, max(upto, rule.position or 0), await _found(cur, rule, ahead, rows, cut, now)))
    return looked


async def _events(connection: LedgerConnection, ledger_id: int, after: int, upto: int) -> list[RecordedEvent]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_EVENTS, (ledger_id, after, upto, list(TYPES)))
    found = [to_recorded(row) for row in await cursor.fetchall()]
    return [recorded for recorded in found if not isinstance(recorded.event, UnreadableEvent)]


async def _found(
    cur: AsyncCursor[Any],
    rule: ActiveRule,
    events: Sequence[RecordedEvent],
    rows: Mapping[UUID, CodeRow],
    cut: dict[int, Sequence[CampaignRow]],
    now: datetime,
) -> list[Finding]:
    found: list[Finding] = []
    for recorded in events:
        row, event = rows.get(recorded.stream_id), recorded.event
        if row is None or not rule.sight.sees(row.creator_id, row.brand_ids, row.advertiser_ids):
            continue
        match rule.kind, event:
            case "ending", Code.ExpiryApproaching() if event.days_left in rule.days:
                found.append(ending(row, event.expires_at, event.days_left))
            case "campaign_outlives_code", Code.CampaignLaunched() | Code.RightsStated():
                if recorded.position not in cut:
                    # Rights that are stated later can stop any campaign of the code.
                    launched = event.campaign_id if isinstance(event, Code.CampaignLaunched) else None
                    cut[recorded.position] = await campaigns.search(
                        cur,
                        rule.ledger_id,
                        now=now,
                        limit=_PAGE,
                        code_id=row.code_id,
                        campaign_id=launched,
                        is_cut=True,
                        running=True,
                    )
                seen = [one for one in cut[recorded.position] if rule.sight.sees_account(one.advertiser_id)]
                found += [_outlives(one) for one in seen]
            case "refused_attempts", Code.RedemptionRefused() if rule.sight.sees_account(event.advertiser_id):
                found.append(
                    Finding(
                        f"refused:{recorded.position}",
                        code_id=row.code_id,
                        advertiser_id=event.advertiser_id,
                        reason=event.reason,
                        happened_at=recorded.effective_at,
                    )
                )
            case _:
                pass
    return found


async def creators_seen(aggregates: AggregateReader, ledger_id: int, sight: Sight) -> Collection[str] | None:
    """Return the creators whose codes are seen, as views name them; None for all."""
    if sight.about.creator_id is not None:
        return await aggregates.shown_creators(ledger_id, {sight.about.creator_id})
    if sight.role == "creator":
        return await aggregates.shown_creators(ledger_id, sight.subjects.creator_ids)
    return None


async def codes_ending(
    cur: AsyncCursor[Any],
    ledger_id: int,
    sight: Sight,
    creators: Collection[str] | None,
    now: datetime,
    *,
    after: Keyset,
    before: datetime,
    limit: int,
) -> list[CodeRow]:
    """Return codes that are seen, not revoked, and end in a stretch of time, the first to end first."""
    about, brand = sight.about, sight.role == "brand"
    return await codes.search(
        cur,
        ledger_id,
        now=now,
        limit=limit,
        ending_after=after,
        creator_ids=creators,
        brand_ids=None if about.brand_id is None else {about.brand_id},
        advertiser_ids=None if about.advertiser_id is None else {about.advertiser_id},
        visible_brands=sight.subjects.brand_ids if brand else None,
        visible_advertisers=sight.subjects.advertiser_ids if brand else None,
        expires_before=before,
    )


async def _first_look(
    cur: AsyncCursor[Any], rule: ActiveRule, creators: Collection[str] | None, now: datetime, policy: AlertPolicy
) -> list[Finding]:
    """Return what holds now: ends that are near, and campaigns that are planned beyond the end of their code."""
    if rule.kind == "ending":
        return await _ends_near(cur, rule, creators, now, policy.first_look)
    if rule.kind == "campaign_outlives_code":
        return await _outliving(cur, rule, creators, now, policy.first_look)
    return []


async def _ends_near(
    cur: AsyncCursor[Any], rule: ActiveRule, creators: Collection[str] | None, now: datetime, most: int
) -> list[Finding]:
    found: list[Finding] = []
    after = (now, _BEYOND)
    before = now + timedelta(days=max(rule.days, default=0)) + _INSTANT
    while len(found) < most:
        page = await codes_ending(
            cur, rule.ledger_id, rule.sight, creators, now, after=after, before=before, limit=_PAGE
        )
        for row in page:
            days = _crossed(row, rule.days, now)
            if days is not None:
                found.append(ending(row, row.expires_at, days))
        if len(page) < _PAGE:
            break
        after = (page[-1].expires_at, page[-1].generated_position)
    return found[:most]


async def _outliving(
    cur: AsyncCursor[Any], rule: ActiveRule, creators: Collection[str] | None, now: datetime, most: int
) -> list[Finding]:
    found: list[Finding] = []
    after, sight = None, rule.sight
    while len(found) < most:
        page = await campaigns.search(
            cur,
            rule.ledger_id,
            now=now,
            limit=_PAGE,
            after=after,
            is_cut=True,
            stops_from=now,
            running=True,
            creator_ids=creators,
            advertiser_id=sight.about.advertiser_id,
            visible_advertisers=sight.subjects.advertiser_ids if sight.role == "brand" else None,
        )
        rows = await codes.with_ids(cur, rule.ledger_id, {one.code_id for one in page}) if page else {}
        for one in page:
            row = rows.get(one.code_id)
            if row is not None and sight.sees(row.creator_id, row.brand_ids, row.advertiser_ids):
                found.append(_outlives(one))
        if len(page) < _PAGE:
            break
        after = (page[-1].stops_at, page[-1].position)
    return found[:most]


def _crossed(row: CodeRow, days: Sequence[int], now: datetime) -> int | None:
    """Return the days of the most urgent reminder of a code's end that is past, as the expiry clock sees it."""
    set_at = row.generated_at if row.extended_at is None else row.extended_at
    past = [one.days_left for one in reminders(Window(row.starts_at, row.expires_at), set_at, None) if one.at <= now]
    wanted = [left for left in past if left in days]
    return min(wanted, default=None)


def ending(row: CodeRow, ends_at: datetime, days: int) -> Finding:
    """Return the finding that a code ends: once for each end, and each of the days before it."""
    return Finding(f"ending:{row.code_id}:{ends_at.isoformat()}:{days}", code_id=row.code_id, ends_at=ends_at)


def _outlives(campaign: CampaignRow) -> Finding:
    return Finding(
        f"outlives:{campaign.position}",
        code_id=campaign.code_id,
        ends_at=campaign.stops_at,
        campaign_id=campaign.campaign_id,
        advertiser_id=campaign.advertiser_id,
    )
