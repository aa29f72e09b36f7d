"""The routes of the figures: what is true now, and what happened on each day."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.dependencies import DatabaseCursor, places_of
from api.http.fields import State
from api.http.models import Answer
from api.http.problems import malformed_query
from api.http.query_params import AtLeast, QueryModel
from api.http.responses import answer
from api.http.route import Operation, Route
from domain.pasted import FIRST_YEAR, LAST_YEAR
from infra.delivery.kafka.publication_status import publication
from infra.delivery.lag import lag_seconds
from infra.delivery.webhooks.models import Owner
from infra.views.status import status_in_ledger
from projections import statistics
from projections.code_timeline import BUCKETS_S, LONGER, day_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.delivery.webhooks.models import Webhook
    from projections.statistics import Day


class ViewEntry(Answer):
    view: Annotated[str, Field(description="The view.")]
    state: Annotated[str, Field(description="One of following, building and failed.")]
    position: Annotated[int, Field(ge=0, description="The position up to which it has read this ledger.")]
    lag: Annotated[int, Field(ge=0, description="The number of events it has not read yet.")]
    lag_seconds: Annotated[float, Field(ge=0, description="The age of the oldest event not processed yet.")]
    error: Annotated[str | None, Field(description="The error that stopped it, if an event of this ledger did.")]
    stopped_before: Annotated[int | None, Field(description="The position of the event that stopped it.")]


class SubscriberEntry(Answer):
    subscriber: Annotated[str, Field(description="`kafka`, or `webhook` with the webhook's id.")]
    state: Annotated[
        str, Field(description="One of publishing, retrying, and stopped (until somebody fixes the cause).")
    ]
    position: Annotated[int, Field(ge=0, description="The position up to which events were delivered.")]
    lag: Annotated[int, Field(ge=0, description="The number of events not delivered yet.")]
    lag_seconds: Annotated[float, Field(ge=0, description="The age of the oldest event not processed yet.")]
    errors: Annotated[int, Field(ge=0, description="The number of failed attempts.")]


class PlaceEntry(Answer):
    place: Annotated[
        str,
        Field(
            description=(
                "`requests` that wait for their answers, `pages` (histories and pages of the trail), "
                "`exports_and_batches`, `uploads` (batches that are received or answered), `upload_bytes` (what is "
                "kept of these) or `streams`."
            )
        ),
    ]
    held: Annotated[answered.Count, Field(description="How many this ledger holds.")]
    share: Annotated[answered.Count, Field(description="How many a ledger can hold.")]
    waiting: Annotated[answered.Count, Field(description="How many requests of this ledger wait for one.")]


class StatsAnswer(Answer):
    position: Annotated[answered.Position, Field(description="The ledger's last position.")]
    codes: Annotated[dict[State, int], Field(description="The number of codes by state.")]
    expiring: Annotated[
        dict[str, int], Field(description="The number of codes that expire within this number of days.")
    ]
    redemptions: Annotated[int, Field(ge=0, description="Redemptions recorded.")]
    refusals: Annotated[dict[str, int], Field(description="Recorded refused redemptions, by reason.")]
    refused_attempts: Annotated[
        dict[str, int],
        Field(description="Attempts of the last 24 hours that were counted but not recorded, by reason."),
    ]
    views: Annotated[list[ViewEntry], Field(description="The progress of each view.")]
    subscribers: Annotated[list[SubscriberEntry], Field(description="The progress of each subscriber.")]
    places: Annotated[
        list[PlaceEntry],
        Field(description="What this ledger holds of what all ledgers share, in the API process that answers."),
    ]


class DurationEntry(Answer):
    count: Annotated[answered.Count, Field(description="The number of codes redeemed for the first time.")]
    median_seconds: Annotated[float | None, Field(description="The median, estimated from the buckets.")]
    buckets: Annotated[
        dict[str, int],
        Field(
            description="The number of codes by upper bound in seconds. `longer` has no bound.",
            examples=[{"3600": 12, "86400": 3}],
        ),
    ]


class CampaignFigures(Answer):
    launched: Annotated[answered.Count, Field(description="The number of campaigns launched on this day.")]
    stopped: Annotated[
        dict[str, int],
        Field(
            description=(
                "The number of campaigns that stop on this day, by `campaign_end`, `window_end` (the code's "
                "window ends before the campaign's planned end), `rights_end` (the usage rights do) or `revocation`."
            ),
            examples=[{"campaign_end": 4, "window_end": 1}],
        ),
    ]


class DayEntry(Answer):
    day: Annotated[str, WithJsonSchema({"type": "string", "format": "date"}), Field(description="The day, in UTC.")]
    codes: Annotated[
        dict[State, int],
        Field(
            description=(
                "The number of codes by state at the end of the day. For today: now. For future days: if "
                "nothing else happens."
            )
        ),
    ]
    issued: Annotated[answered.Count, Field(description="The number of codes that started.")]
    windows_ended: Annotated[answered.Count, Field(description="The number of windows that end on this day.")]
    shares: Annotated[answered.Count, Field(description="Shares.")]
    redemptions: Annotated[answered.Count, Field(description="Redemptions.")]
    issue_to_redemption: Annotated[
        DurationEntry, Field(description="The time from the issue of a code to its first redemption.")
    ]
    refusals: Annotated[
        dict[str, int],
        Field(description="Recorded refused redemptions, by reason.", examples=[{"code_expired": 2}]),
    ]
    refused_attempts: Annotated[
        dict[str, int],
        Field(
            description=(
                "Attempts that were counted but not recorded, by reason: unknown codes, and repeats within an hour."
            ),
            examples=[{"code_unknown": 7}],
        ),
    ]
    campaigns: Annotated[CampaignFigures, Field(description="The campaigns launched and stopped.")]


class DaysAnswer(Answer):
    days: Annotated[list[DayEntry], Field(description="All days of the range, oldest first.")]
    position: answered.ReadUpto


MAX_STATISTICS_DAYS: Final = 400
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _utc_day(value: object) -> datetime:
    """Read a day as RFC 3339 has it, and return its beginning in UTC."""
    try:
        day = date.fromisoformat(value) if isinstance(value, str) and _DAY.fullmatch(value) else None
    except ValueError:  # a day that does not exist
        day = None
    if day is None or not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise PydanticCustomError(
            "day", f"Expected a day such as 2026-03-01, in the years {FIRST_YEAR} to {LAST_YEAR}."
        )
    return datetime.combine(day, time(), UTC)


UtcDay = Annotated[
    datetime,
    BeforeValidator(_utc_day),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2026-03-01"]}),
]


class StatsQuery(QueryModel):
    at_least: AtLeast = None


class DaysQuery(QueryModel):
    from_: Annotated[UtcDay | None, Field(alias="from", description="The first day, in UTC. Default: 30 days ago.")] = (
        None
    )
    to: Annotated[UtcDay | None, Field(description="The last day, in UTC. Default: today.")] = None
    as_of: Annotated[
        UtcDay | None,
        Field(description="Answer as the ledger knew at the end of this day, in UTC, which must be over."),
    ] = None
    at_least: AtLeast = None


EXPIRING_WITHIN_DAYS: Final = (7, 14, 30)
STATS_SINCE: Final = timedelta(hours=24)
# The range of days that is not asked for by its first.
DAYS: Final = 30

router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/stats", response_model=StatsAnswer, operation_id="readStats")
@Operation(answer_headers=("Ledger-Position",))
async def read_stats(
    query: Annotated[StatsQuery, Query()], caller: Annotated[Caller, allow("operator", "auditor", "admin")]
) -> Response:
    """Count codes by state, upcoming expiries and refusals, and show the progress of every view."""
    ledger_id, now, services = caller.ledger_id, caller.services.now(), caller.services
    head = await services.events.head(ledger_id)

    async def figures(cur: DatabaseCursor) -> dict[str, Any]:
        redemptions = await statistics.totals(cur, ledger_id, "redemptions")
        return {
            "codes": await statistics.count_by_state(cur, ledger_id, now),
            "expiring": {
                f"within_{days}_days": await statistics.count_ahead(
                    cur, ledger_id, now=now, until=now + timedelta(days=days)
                )
                for days in EXPIRING_WITHIN_DAYS
            },
            "redemptions": sum(redemptions.values()),
            "refusals": await statistics.totals(cur, ledger_id, "refused"),
        }

    counted, position = await services.views.read(ledger_id, figures, view=statistics.NAME, at_least=query.at_least)
    attempts = await services.denied_attempts.counts(ledger_id, since=now - STATS_SINCE)
    subscribers = await _subscribers(caller, now)
    views = await _views(caller)
    content = {
        "position": head,
        **counted,
        "refused_attempts": attempts,
        "views": views,
        "subscribers": subscribers,
        "places": _places(caller),
    }
    return answer(content, 200, {"Ledger-Position": str(position)})


@router.get("/v1/stats/days", response_model=DaysAnswer, operation_id="readDays")
@Operation(answer_headers=("Ledger-Position",))
async def read_days(
    query: Annotated[DaysQuery, Query()], caller: Annotated[Caller, allow("operator", "auditor", "admin")]
) -> Response:
    """Show for each day the states of codes, the time to redemption, refusals, and what stopped campaigns.

    At most 400 days, in UTC and effective time. With `as_of`, the answer is what was known at the end of that day, and
    never changes.
    """
    now = caller.services.now()
    at_least = query.at_least
    if query.as_of is not None:
        if query.as_of >= day_of(now):
            raise malformed_query("as_of", "This day is not over. What the ledger will know then is not known.")
        known = await caller.services.events.position_at(caller.ledger_id, _last_moment(query.as_of))
        at_least = max(known, at_least or 0)
    last = query.to or day_of(now)
    first = query.from_ or last - timedelta(days=DAYS)
    if first > last:
        if query.to is None:
            raise malformed_query("from", "This day is in the future. Send `to` as well. Its default is today.")
        raise malformed_query("to", "This is before `from`: this range is empty.")
    if (last - first).days >= MAX_STATISTICS_DAYS:
        raise malformed_query("to", f"The range has more than {MAX_STATISTICS_DAYS} days.")

    async def figures(cur: DatabaseCursor) -> list[Day]:
        return await statistics.by_day(cur, caller.ledger_id, first=first, last=last, now=now, known=query.as_of)

    days, position = await caller.services.views.read(
        caller.ledger_id, figures, view=statistics.NAME, at_least=at_least
    )
    if query.as_of is not None:
        position = known
    counted = await caller.services.denied_attempts.by_day(
        caller.ledger_id, since=first, until=min(last, query.as_of or last) + timedelta(days=1)
    )
    content = {"days": [_day(day, counted.get(day.day, {})) for day in days], "position": position}
    return answer(content, 200, {"Ledger-Position": str(position)})


def _last_moment(day: datetime) -> datetime:
    return day + timedelta(days=1) - timedelta(microseconds=1)


def _places(caller: Caller) -> list[dict[str, Any]]:
    return [
        {
            "place": place,
            "held": figures.held.get(caller.ledger_id, 0),
            "share": figures.share,
            "waiting": figures.waiting.get(caller.ledger_id, 0),
        }
        for place, figures in places_of(caller.request.scope).figures().items()
    ]


async def _subscribers(caller: Caller, now: datetime) -> list[dict[str, Any]]:
    published = await publication(caller.services.database, caller.ledger_id)
    webhooks = await caller.services.webhooks.all(Owner(caller.ledger_id, caller.key.key_id, all=True))
    # Nothing of a ledger that may have lost events is handed out, whatever the state of its subscribers was before.
    lost = caller.history.problem is not None
    found: list[dict[str, Any]] = [
        {
            "subscriber": f"webhook {webhook.webhook_id}",
            "state": "stopped" if lost else _state_of(webhook),
            "position": webhook.position,
            "lag": webhook.lag,
            "lag_seconds": lag_seconds(webhook.oldest, now),
            "errors": webhook.failed,
        }
        for webhook in webhooks
    ]
    if published is not None:
        kafka = {
            "subscriber": "kafka",
            "state": "stopped" if lost else published.state,
            "position": published.position,
            "lag": max(0, published.head - published.position),
            "lag_seconds": lag_seconds(published.oldest, now),
            "errors": published.errors,
        }
        found.insert(0, kafka)
    return found


def _state_of(webhook: Webhook) -> str:
    if webhook.disabled is not None:
        return "stopped"
    return "retrying" if webhook.failures or webhook.waiting else "publishing"


async def _views(caller: Caller) -> list[dict[str, Any]]:
    """Return how far each view has read this ledger, for how long the next event waits for it, and what stopped it."""
    return [
        {
            "view": status.view,
            "state": status.state,
            "position": status.position,
            "lag": status.behind_events,
            "lag_seconds": status.behind_s,
            "error": status.error,
            "stopped_before": status.failed_position,
        }
        for status in await status_in_ledger(caller.services.database, caller.ledger_id)
    ]


def median_s(buckets: Mapping[str, int]) -> float | None:
    """Return the median of what fell into buckets of time, in seconds, as if spread evenly within each."""
    half = sum(buckets.values()) / 2
    if not half:
        return None
    below, lower = 0, 0
    for bound in BUCKETS_S:
        count = buckets.get(str(bound), 0)
        if count and below + count >= half:
            return lower + (bound - lower) * (half - below) / count
        below, lower = below + count, bound
    return float(lower)


def _day(day: Day, counted: Mapping[str, int]) -> dict[str, Any]:
    return {
        "day": day.day.date(),
        "codes": day.codes,
        "issued": day.issued,
        "windows_ended": day.ended,
        "shares": day.shares,
        "redemptions": day.redemptions,
        "issue_to_redemption": {
            "count": sum(day.redeemed_after.values()),
            "median_seconds": median_s(day.redeemed_after),
            "buckets": {
                label: day.redeemed_after[label]
                for label in (*map(str, BUCKETS_S), LONGER)
                if label in day.redeemed_after
            },
        },
        "refusals": day.refused,
        "refused_attempts": counted,
        "campaigns": {"launched": day.launched, "stopped": day.stopped},
    }
