"""The routes of alerts: rules that say which people hear of what, and by which way.

A key has rules of its own; an administrator's has all of the ledger's. Another's is unknown. A rule reports what its
key may see, and ends with its key. The bearer of a token makes none: it would be sent messages long after the token has
ended.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.access_log import record_access
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.cursors import MAX_KEY, decode, encode
from api.http.fields import CreatorName, Id, Name
from api.http.models import Answer, Body
from api.http.pagination import page_answer, page_of
from api.http.problems import Problem, malformed_body
from api.http.query_params import LIMIT, EitherCursor, Limit, QueryModel
from api.http.responses import answer, replay_header
from api.http.route import Operation, Route
from api.webhooks import idempotent_request, owner_of
from domain.errors import NotAllowed, Unknown
from domain.reminders import REMINDER_DAYS
from infra.delivery.alerts.channels import PUBLIC_ONLY
from infra.delivery.alerts.models import (
    About,
    AlertKind,
    Channel,
    MessageState,
    NewRule,
    RuleDisabledNow,
    RuleKeyInvalid,
    RuleNotFound,
    TooManyRules,
)
from infra.delivery.alerts.schedule import Timing, is_zone
from infra.delivery.webhooks.http_target import URL_CHARACTERS_MAX, AllowedNetworks, InvalidTarget, check_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from infra.delivery.alerts.models import AlertDelivery, AlertRule

# Those who see the whole desk, and so what has stopped.
OF_THE_DESK: Final = frozenset({"operator", "auditor", "admin"})
# Every domain, in the setting of domains that alerts may be mailed to.
ANY_DOMAIN: Final = "*"
EMAIL_CHARACTERS_MAX: Final = 254
ZONE_CHARACTERS_MAX: Final = 64
# A dot-atom and a host name (RFC 5321), in ASCII.
_EMAIL: Final = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?P<domain>([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)"
)
_TIME: Final = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


def _a_zone(name: str) -> str:
    if not is_zone(name):
        raise PydanticCustomError("zone", "Expected the name of a time zone, such as Europe/Berlin or UTC.")
    return name


def _a_time(text: str) -> str:
    if re.fullmatch(_TIME, text) is None:
        raise PydanticCustomError("time", "Expected a time of day, such as 08:00.")
    return text


def _days(days: list[int]) -> list[int]:
    if not set(REMINDER_DAYS) >= set(days):
        named = ", ".join(map(str, REMINDER_DAYS))
        raise PydanticCustomError("days", cast("Any", f"Expected any of these numbers of days: {named}."))
    return sorted(set(days), reverse=True)


_DAYS: Final = Field(
    description="For the kind `ending`: how many days before the end. Default: 30, 14, 7 and 1.", examples=[[14, 7, 1]]
)
_ADDRESS: Final = Field(
    description="The e-mail address, or the URL of the chat's incoming webhook. It is sealed.",
    examples=["desk@brand.example"],
)
_ZONE: Final = Field(
    description="The time zone of the times of day, and of the times in messages.", examples=["Europe/Berlin"]
)
Days = Annotated[
    list[Annotated[int, Field(json_schema_extra={"enum": list(REMINDER_DAYS)})]],
    Field(min_length=1, max_length=len(REMINDER_DAYS)),
    AfterValidator(_days),
]
Address = Annotated[str, StringConstraints(min_length=1, max_length=URL_CHARACTERS_MAX)]
Zone = Annotated[str, StringConstraints(min_length=1, max_length=ZONE_CHARACTERS_MAX), AfterValidator(_a_zone)]
TimeOfDay = Annotated[str, AfterValidator(_a_time), Field(json_schema_extra={"pattern": _TIME})]
DigestAt = Annotated[
    TimeOfDay | None,
    Field(
        description="When everything is sent together, once a day. Null: each message is sent at once.",
        examples=["08:00"],
    ),
]
QuietFrom = Annotated[
    TimeOfDay | None, Field(description="From when nothing is sent, until `quiet_until`.", examples=["20:00"])
]
QuietUntil = Annotated[
    TimeOfDay | None, Field(description="When what was found in the quiet hours is sent.", examples=["07:00"])
]
# What a rule or a calendar is about.
OfCreator = Annotated[CreatorName | None, Field(description="Only codes of this creator.", examples=["ana.creates"])]
OfBrand = Annotated[Id | None, Field(description="Only codes that were shared with this brand.", examples=["acme"])]
OfAdvertiser = Annotated[
    Id | None,
    Field(description="Only codes that were shared with this account, or redeemed by it.", examples=["adv-7001"]),
]
RuleName = Annotated[Name | None, Field(description="A name for people. It is sealed.", examples=["The desk"])]


class CreateAlert(Body):
    kind: Annotated[
        AlertKind,
        Field(
            description=(
                "`ending`: codes end soon. `campaign_outlives_code`: a campaign is planned beyond the end of its code. "
                "`refused_attempts`: somebody tried to redeem a code and was refused. `stopped`: a view, publishing or "
                "a webhook has stopped."
            )
        ),
    ]
    days: Annotated[Days | None, _DAYS] = None
    creator_id: OfCreator = None
    brand_id: OfBrand = None
    advertiser_id: OfAdvertiser = None
    channel: Annotated[Channel, Field(description="`email`, or `chat` for services that take JSON with a `text`.")]
    address: Annotated[Address, _ADDRESS]
    name: RuleName = None
    zone: Annotated[Zone, _ZONE] = "UTC"
    digest_at: DigestAt = None
    quiet_from: QuietFrom = None
    quiet_until: QuietUntil = None
    enabled: Annotated[bool, Field(description="Whether it looks and sends.", examples=[True])] = True


class ChangeAlert(Body):
    """Absent fields stay as they are."""

    days: Annotated[Days | None, _DAYS] = None
    address: Annotated[Address | None, _ADDRESS] = None
    name: RuleName = None
    zone: Annotated[Zone | None, _ZONE] = None
    digest_at: DigestAt = None
    quiet_from: QuietFrom = None
    quiet_until: QuietUntil = None
    enabled: Annotated[
        bool | None,
        Field(description="Whether it looks and sends. Enabled again, it looks at what holds then.", examples=[True]),
    ] = None


class AlertAnswer(Answer):
    rule_id: Annotated[UUID, Field(description="The rule.")]
    key_id: Annotated[UUID, Field(description="The id of the API key that it belongs to.")]
    kind: Annotated[AlertKind, Field(description="What it reports.")]
    days: Annotated[list[int], Field(description="For the kind `ending`: how many days before the end.")]
    creator_id: Annotated[str | None, Field(description="Only codes of this creator.")]
    brand_id: Annotated[str | None, Field(description="Only codes that were shared with this brand.")]
    advertiser_id: Annotated[str | None, Field(description="Only codes of this advertiser account.")]
    channel: Annotated[Channel, Field(description="The way that messages take.")]
    address: Annotated[str, Field(description="The e-mail address, or the URL of the chat.")]
    name: Annotated[str | None, Field(description="A name for people.")]
    zone: Annotated[str, Field(description="The time zone.")]
    digest_at: Annotated[str | None, Field(description="When everything is sent together, once a day.")]
    quiet_from: Annotated[str | None, Field(description="From when nothing is sent.")]
    quiet_until: Annotated[str | None, Field(description="Until when nothing is sent.")]
    enabled: Annotated[bool, Field(description="Whether it looks and sends.")]
    disabled: Annotated[
        Literal["asked", "key"] | None,
        Field(description="Why it is disabled: on request, or because the API key is no longer valid."),
    ]
    disabled_at: Annotated[answered.Moment | None, Field(description="Since when.")]
    created_at: Annotated[answered.Moment, Field(description="When it was created.")]
    waiting: Annotated[
        int, Field(ge=0, description="What was found and is in no message yet, and messages that are not sent yet.")
    ]
    dead: Annotated[int, Field(ge=0, description="Messages that were given up.")]
    sent: Annotated[int, Field(ge=0, description="The number of messages that were sent.")]
    failed: Annotated[int, Field(ge=0, description="The number of failed attempts.")]
    sent_at: Annotated[answered.Moment | None, Field(description="The time of the last message that was sent.")]
    failed_at: Annotated[answered.Moment | None, Field(description="The time of the last failed attempt.")]
    error: Annotated[str | None, Field(description="Why it failed. Null once a message was sent.")]


class AlertsAnswer(Answer):
    alerts: Annotated[list[AlertAnswer], Field(description="Newest first.")]


MessageId = Annotated[UUID, Field(description="The message; an e-mail's `Message-ID` begins with it.")]


class AlertTestAnswer(Answer):
    message_id: MessageId


class AlertReplayAnswer(Answer):
    replayed: Annotated[int, Field(ge=0, description="The number of messages that are sent again.")]


class AlertDeliveryEntry(Answer):
    message_id: MessageId
    test: Annotated[bool, Field(description="Whether it is a test.")]
    findings: Annotated[int, Field(ge=0, description="How many findings it is about.")]
    state: Annotated[
        MessageState,
        Field(
            description="`waiting`, `sent`, `dead` (given up), or `void`: nothing that it would have said was true any "
            "more."
        ),
    ]
    made_at: Annotated[answered.Moment, Field(description="When it was made.")]
    attempts: Annotated[int, Field(ge=0, description="The number of attempts.")]
    first_at: Annotated[answered.Moment | None, Field(description="The time of the first attempt.")]
    last_at: Annotated[answered.Moment | None, Field(description="The time of the last attempt.")]
    next_at: Annotated[answered.Moment | None, Field(description="The time of the next attempt, if there is one.")]
    error: Annotated[str | None, Field(description="Why the last attempt failed.")]


class AlertDeliveriesAnswer(Answer):
    deliveries: Annotated[list[AlertDeliveryEntry], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class AlertDeliveriesQuery(QueryModel):
    state: Annotated[MessageState | None, Field(description="Only messages in this state.")] = None
    limit: Limit = LIMIT
    cursor: EitherCursor = None


router = APIRouter(route_class=Route, tags=["Alerts"])


@router.post("/v1/alerts", status_code=201, response_model=AlertAnswer, operation_id="createAlert")
@Operation(
    answer_headers=("Location",),
    replays=True,
    refusals=(409,),
    example={"kind": "ending", "days": [14, 7, 1], "channel": "chat", "address": "https://chat.example/hook"},
)
async def create_alert(
    body: CreateAlert, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Create an alert rule. It first reports what holds already. A token cannot create one.

    A rule reports what its key can see, and sends nothing more once the key is no longer valid.
    """
    refuse_token(caller)
    about = About(body.creator_id, body.brand_id, body.advertiser_id)
    named = one_of(caller, body.creator_id, body.brand_id, body.advertiser_id)
    if body.kind == "stopped":
        if caller.role not in OF_THE_DESK:
            raise NotAllowed("Only keys of the roles operator, auditor and admin can be told what has stopped.")
        if named is not None:
            raise malformed_body(f"/{named}", "What has stopped concerns all. Leave this out.")
    if body.days is not None and body.kind != "ending":
        raise malformed_body("/days", "Only rules of the kind `ending` have days. Leave this out.")
    days = list(REMINDER_DAYS) if body.days is None else body.days
    _check_address(caller, body.channel, body.address)
    rule = NewRule(
        body.kind,
        days if body.kind == "ending" else [],
        about,
        body.channel,
        body.address,
        body.name,
        _timing(body.zone, body.digest_at, body.quiet_from, body.quiet_until),
        body.enabled,
    )
    with refusals_as_problems():
        created, again = await caller.services.alerts.create(owner_of(caller), rule, idempotent_request(caller))
    await _record_change(caller, {"rule_id": str(created.rule_id), "kind": created.kind}, again=again)
    return answer(_content(created), 201, {"Location": f"/v1/alerts/{created.rule_id}"} | replay_header(again))


@router.get("/v1/alerts", response_model=AlertsAnswer, operation_id="listAlerts")
async def list_alerts(caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]) -> Response:
    """List alert rules and their state, newest first. There are at most 200."""
    found = await caller.services.alerts.all(owner_of(caller))
    return answer({"alerts": [_content(rule) for rule in found]})


@router.get("/v1/alerts/{rule_id}", response_model=AlertAnswer, operation_id="readAlert")
async def read_alert(
    rule_id: str, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Read an alert rule and its state."""
    with refusals_as_problems():
        return answer(_content(await caller.services.alerts.one(owner_of(caller), _path_rule(rule_id))))


@router.patch("/v1/alerts/{rule_id}", response_model=AlertAnswer, operation_id="changeAlert")
@Operation(refusals=(409,), example={"digest_at": "08:00", "zone": "Europe/Berlin"})
async def change_alert(
    rule_id: str,
    body: ChangeAlert,
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Change an alert rule. Null ends a digest, quiet hours and a name."""
    given = body.model_dump(exclude_unset=True)
    with refusals_as_problems():
        known = await caller.services.alerts.one(owner_of(caller), _path_rule(rule_id))
        if body.days is not None and known.kind != "ending":
            raise malformed_body("/days", "Only rules of the kind `ending` have days. Leave this out.")
        if body.address is not None:
            _check_address(caller, known.channel, body.address)
        changes: dict[str, Any] = {
            name: value
            for name, value in given.items()
            if name in {"days", "address", "name", "enabled"} and (value is not None or name == "name")
        }
        before = known.timing
        times = {name: _shown(getattr(before, name)) for name in ("digest_at", "quiet_from", "quiet_until")}
        times |= {name: given[name] for name in times if name in given}
        changes["timing"] = _timing(given.get("zone") or before.zone, **times)
        rule = await caller.services.alerts.change(owner_of(caller), known.rule_id, **changes)
    await _record_change(caller, {"rule_id": rule_id, "changed": sorted(given)})
    return answer(_content(rule))


@router.delete("/v1/alerts/{rule_id}", status_code=204, response_class=Response, operation_id="deleteAlert")
async def delete_alert(
    rule_id: str, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Delete an alert rule and its list of messages."""
    with refusals_as_problems():
        await caller.services.alerts.delete(owner_of(caller), _path_rule(rule_id))
    await _record_change(caller, {"rule_id": rule_id})
    return Response(status_code=204)


@router.post("/v1/alerts/{rule_id}/test", status_code=202, response_model=AlertTestAnswer, operation_id="testAlert")
@Operation(replays=True, refusals=(409,))
async def send_test_alert(
    rule_id: str, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Send a test message. The list of deliveries shows the result."""
    with refusals_as_problems():
        message_id, again = await caller.services.alerts.test(
            owner_of(caller), _path_rule(rule_id), caller.services.now(), idempotent_request(caller)
        )
    return answer({"message_id": message_id}, 202, replay_header(again))


@router.get("/v1/alerts/{rule_id}/deliveries", response_model=AlertDeliveriesAnswer, operation_id="listAlertDeliveries")
async def list_alert_deliveries(
    rule_id: str,
    query: Annotated[AlertDeliveriesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List the messages of an alert rule, newest first: those of the last 60 days."""
    scope = {"of": f"alert {rule_id}", "state": query.state}
    before = UUID(int=MAX_KEY if query.cursor is None else decode(query.cursor, scope, MAX_KEY))
    with refusals_as_problems():
        found = await caller.services.alerts.deliveries(
            owner_of(caller), _path_rule(rule_id), before=before, state=query.state, limit=query.limit + 1
        )
    page = page_of(found, query.limit, lambda delivery: encode(delivery.message_id.int, scope))
    return page_answer(caller, "deliveries", page, _delivery)


@router.post(
    "/v1/alerts/{rule_id}/replays", status_code=202, response_model=AlertReplayAnswer, operation_id="replayAlerts"
)
@Operation(replays=True, refusals=(409,))
async def replay_alerts(
    rule_id: str, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Send the oldest 100 messages again that were given up. What is not true any more is left out of them."""
    with refusals_as_problems():
        replayed, again = await caller.services.alerts.replay(
            owner_of(caller), _path_rule(rule_id), caller.services.now(), idempotent_request(caller)
        )
    return answer({"replayed": replayed}, 202, replay_header(again))


def refuse_token(caller: Caller) -> None:
    """Refuse the bearer of a token: what is made here works long after the token has ended."""
    if caller.key.kind == "token":
        raise NotAllowed(
            "Alerts and calendars need an API key, not a token, because tokens expire. Create them with a key."
        )


def one_of(caller: Caller, creator_id: str | None, brand_id: str | None, advertiser_id: str | None) -> str | None:
    """Return which of these is given, if one is.

    Raises:
        Problem: there are several.
        NotAllowed: the key does not act for it.

    """
    given = {"creator_id": creator_id, "brand_id": brand_id, "advertiser_id": advertiser_id}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise malformed_body(f"/{named[1]}", "Send only one of creator_id, brand_id and advertiser_id.")
    caller.check_filters(**given)
    return named[0] if named else None


def _path_rule(text: str) -> UUID:
    try:
        return headers.path_uuid(text, "alert")
    except Unknown:
        raise RuleNotFound from None


async def _record_change(caller: Caller, parameters: Mapping[str, Any], *, again: bool = False) -> None:
    """Record in the access log who had messages sent; the address is a person's, and is left out."""
    repeated = {"replayed": True} if again else {}
    await record_access(caller, {**parameters, **repeated}, rows=0, format="text/plain")


def _check_address(caller: Caller, channel: Channel, address: str) -> None:
    settings = caller.services.settings
    if channel == "chat":
        try:
            of_the_desk = caller.role in OF_THE_DESK
            check_url(address, AllowedNetworks(settings.webhook_networks) if of_the_desk else PUBLIC_ONLY)
        except InvalidTarget as bad:
            raise malformed_body("/address", str(bad)) from None
        return
    if settings.smtp_url is None:
        raise malformed_body("/channel", "This server sends no e-mail: SPARKLEDGER_SMTP_URL is not set.")
    found = _EMAIL.fullmatch(address) if len(address) <= EMAIL_CHARACTERS_MAX else None
    if found is None:
        raise malformed_body("/address", "Expected an e-mail address, such as desk@brand.example, in ASCII.")
    allowed = settings.mail_domains
    if ANY_DOMAIN not in allowed and found["domain"].lower() not in allowed:
        raise malformed_body(
            "/address", "Alerts are not mailed to this domain. SPARKLEDGER_ALERT_DOMAINS lists those that are allowed."
        )


def _timing(zone: str, digest_at: str | None, quiet_from: str | None, quiet_until: str | None) -> Timing:
    if (quiet_from is None) != (quiet_until is None):
        missing = "quiet_from" if quiet_from is None else "quiet_until"
        raise malformed_body(f"/{missing}", "Quiet hours need both quiet_from and quiet_until.")
    if quiet_from is not None and quiet_from == quiet_until:
        raise malformed_body("/quiet_until", "Quiet hours must end at another time than they begin.")
    times = (None if text is None else time.fromisoformat(text) for text in (digest_at, quiet_from, quiet_until))
    timing = Timing(zone, *times)
    if timing.digest_at is not None and timing.is_quiet(timing.digest_at):
        raise malformed_body("/digest_at", "This is within the quiet hours. Send the digest at another time.")
    return timing


def _shown(at: time | None) -> str | None:
    return None if at is None else f"{at:%H:%M}"


@contextmanager
def refusals_as_problems() -> Iterator[None]:
    """Turn what the store refuses into problems."""
    try:
        yield
    except RuleNotFound:
        raise Problem("alert_unknown") from None
    except RuleDisabledNow:
        raise Problem("alert_disabled") from None
    except RuleKeyInvalid:
        raise Problem("alert_key_invalid") from None
    except TooManyRules:
        raise Problem("too_many_alerts") from None


def _content(rule: AlertRule) -> dict[str, Any]:
    return {
        "rule_id": rule.rule_id,
        "key_id": rule.key_id,
        "kind": rule.kind,
        "days": list(rule.days),
        "creator_id": rule.about.creator_id,
        "brand_id": rule.about.brand_id,
        "advertiser_id": rule.about.advertiser_id,
        "channel": rule.channel,
        "address": rule.address,
        "name": rule.name,
        "zone": rule.timing.zone,
        "digest_at": _shown(rule.timing.digest_at),
        "quiet_from": _shown(rule.timing.quiet_from),
        "quiet_until": _shown(rule.timing.quiet_until),
        "enabled": rule.disabled is None,
        "disabled": rule.disabled,
        "disabled_at": rule.disabled_at,
        "created_at": rule.created_at,
        "waiting": rule.waiting,
        "dead": rule.dead,
        "sent": rule.sent,
        "failed": rule.failed,
        "sent_at": rule.sent_at,
        "failed_at": rule.failed_at,
        "error": rule.error,
    }


def _delivery(delivery: AlertDelivery) -> dict[str, Any]:
    return {
        "message_id": delivery.message_id,
        "test": delivery.test,
        "findings": delivery.findings,
        "state": delivery.state,
        "made_at": delivery.made_at,
        "attempts": delivery.attempts,
        "first_at": delivery.first_at,
        "last_at": delivery.last_at,
        "next_at": delivery.next_at if delivery.state == "waiting" else None,
        "error": delivery.error,
    }
