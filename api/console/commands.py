"""What somebody does to a code: extend, share or revoke it, show or attach its secret, note something, run a campaign.

Each is a form of its own, at an address below the code's. A refusal is a sentence at the form, and what was entered
stays. A form that is sent twice is carried out once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.forms import Field, new_form_id, problems_of
from api.console.visit import Page, not_offered
from api.console.wording import in_utc, moment
from domain.values import Channel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

# Whose keys give codes, and whose use them.
GIVES: Final[frozenset[Role]] = frozenset({"creator", "operator", "admin"})
USES: Final[frozenset[Role]] = frozenset({"brand", "operator", "admin"})
# Who may say that something happened earlier than it is recorded.
RECORDS_LATE: Final[frozenset[Role]] = frozenset({"operator", "admin"})
EFFECTIVE_AT: Final = Field("effective_at", "When it happened", "time", hint="UTC; empty: now")
CURRENCIES: Final = ("USD", "EUR", "GBP")


@dataclass(frozen=True, slots=True)
class Command:
    """Something that can be done to a code.

    Attributes:
        name: the last part of its address.
        route: below the code's address in the API; or an address of its own, to which the code's id is sent.
        title: what it does, as a heading and on its button.
        explained: what follows from it, and what cannot be undone.
        fields: what is entered.
        roles: whose keys may do it.
        body: makes the body of the API's request out of what was entered.
        is_final: whether it cannot be taken back.
        method: of the API's request.

    """

    name: str
    route: str
    title: str
    explained: str
    fields: Sequence[Field]
    roles: frozenset[Role]
    body: Callable[[dict[str, str]], dict[str, Any]]
    is_final: bool = False
    method: str = "POST"


def _entered(form: dict[str, str], *names: str) -> dict[str, Any]:
    """Return what was entered in fields of text, without those left empty."""
    return {name: form[name].strip() for name in names if form.get(name, "").strip()}


def _extension(form: dict[str, str]) -> dict[str, Any]:
    if form.get("expires_at"):
        return {"expires_at": in_utc(form["expires_at"])}
    return {"days": int(form["days"])} if form.get("days", "").isdecimal() else {}


def _rights(form: dict[str, str]) -> dict[str, Any]:
    body = _entered(form, "contract_reference")
    if form.get("until"):
        body["until"] = in_utc(form["until"])
    if platforms := [one.strip().lower() for one in form.get("platforms", "").split(",") if one.strip()]:
        body["platforms"] = platforms
    if form.get("edits_allowed") in {"true", "false"}:
        body["edits_allowed"] = form["edits_allowed"] == "true"
    return body


def _revocation(form: dict[str, str]) -> dict[str, Any]:
    return _entered(form, "reason") | ({"force": True} if form.get("force") else {})


def campaign_body(form: dict[str, str]) -> dict[str, Any]:
    """Return the body of a launch."""
    return {
        **_entered(form, "campaign_id", "advertiser_id", "name"),
        "budget": _entered(form, "amount", "currency"),
        **{name: in_utc(form[name]) for name in ("starts_at", "ends_at") if form.get(name)},
    }


COMMANDS: Final = (
    Command(
        "extend",
        "extensions",
        "Extend the window",
        "The brand can run ads until the new end. An extension cannot be taken back, but a code can be revoked.",
        (
            Field("days", "Length of the whole window", "choice", hint="from its start"),
            Field("expires_at", "Or its new end", "time", hint="UTC"),
        ),
        GIVES,
        _extension,
    ),
    Command(
        "share",
        "shares",
        "Record a share",
        "Say to whom the code was handed over, and how. If an account that is not named here redeems it, that stands "
        "out.",
        (
            Field("brand_id", "Brand", is_required=True),
            Field("advertiser_id", "Advertiser account", hint="if you know it"),
            Field(
                "channel",
                "How it was handed over",
                "choice",
                (("dm", "direct message"), ("email", "e-mail"), ("text", "text message"), ("other", "otherwise")),
                is_required=True,
            ),
            Field("note", "Note", "long", hint="stored encrypted"),
        ),
        GIVES,
        lambda form: _entered(form, "brand_id", "advertiser_id", "channel", "note"),
    ),
    Command(
        "rights",
        "usage-rights",
        "State the usage rights",
        "What the contract allows beside the code. If the rights end before the code, ads must stop then. This takes "
        "the place of what was stated before.",
        (
            Field("until", "Rights end", "time", hint="UTC; empty: no end was agreed"),
            Field("platforms", "Platforms", hint="with commas between, such as tiktok, instagram"),
            Field("edits_allowed", "Edits", "choice", (("true", "allowed"), ("false", "not allowed"))),
            Field("contract_reference", "Contract", hint="its number or place; stored encrypted; enter it each time"),
        ),
        GIVES,
        _rights,
        method="PUT",
    ),
    Command(
        "revoke",
        "revocation",
        "Revoke the code",
        "At once and for good: nobody can redeem it any more, and ads that use it stop. For the same video, a new code "
        "can be generated.",
        (
            Field("reason", "Why", is_required=True),
            Field("force", "Even if a campaign runs: end it", "check", hint="Only for operators and administrators."),
        ),
        GIVES,
        _revocation,
        is_final=True,
    ),
    Command(
        "reveal",
        "reveals",
        "Show the code again",
        "Anyone who has the code can use it. That you had it shown, and why, is an event of the trail.",
        (Field("reason", "Why", is_required=True),),
        GIVES,
        lambda form: _entered(form, "reason"),
    ),
    Command(
        "secret",
        "secret",
        "Attach the code’s text",
        "The code was recorded without its text. By entering it here, you say that this is its text. It can be "
        "attached once, and is never replaced.",
        (Field("secret", "The code", "secret", is_required=True),),
        GIVES,
        # As it was pasted: what surrounds it is the API's to judge.
        lambda form: {"secret": form.get("secret", "")},
        is_final=True,
    ),
    Command(
        "redeem",
        "/v1/redemptions",
        "Record a redemption",
        "An advertiser account entered the code in TikTok Ads Manager. Its text is not known here, so that is recorded "
        "without it.",
        (Field("advertiser_id", "Advertiser account", is_required=True),),
        RECORDS_LATE,
        lambda form: _entered(form, "advertiser_id"),
    ),
    Command(
        "note",
        "notes",
        "Add a note",
        "Events are never changed. A note says what was wrong with one, or what else is known.",
        (Field("text", "Note", "long", hint="stored encrypted", is_required=True),),
        GIVES,
        lambda form: _entered(form, "text"),
    ),
    Command(
        "launch",
        "campaigns",
        "Plan a campaign",
        "It can begin while the window is open, and stops when the window ends, even if it is planned for longer.",
        (
            Field("campaign_id", "Campaign id", hint="as in TikTok Ads Manager", is_required=True),
            Field("name", "Name", hint="for people"),
            Field("advertiser_id", "Advertiser account", hint="that redeemed the code", is_required=True),
            Field("amount", "Budget", hint="such as 500.00", is_required=True),
            Field("currency", "Currency", hint="such as USD", is_required=True),
            Field("starts_at", "Begins", "time", hint="UTC", is_required=True),
            Field("ends_at", "Planned end", "time", hint="UTC", is_required=True),
        ),
        USES,
        campaign_body,
    ),
    Command(
        "end",
        "campaigns/{campaign_id}/end",
        "End a campaign",
        "Say that it was ended in TikTok Ads Manager before its planned end. The code stays good.",
        (
            Field("campaign_id", "Campaign", "choice", is_required=True),
            Field("reason", "Why"),
        ),
        USES,
        lambda form: _entered(form, "reason"),
    ),
)


def _fields(command: Command, visit: Visit, code: dict[str, Any]) -> Sequence[Field]:
    """Return the fields of a command for a reader, with what can be chosen."""
    choices = {
        "days": lengths_of(visit),
        "campaign_id": tuple(
            (one["campaign_id"], one["name"] or one["campaign_id"]) for one in code["campaigns"] if one["running"]
        ),
    }
    late = visit.role in RECORDS_LATE and command.name != "reveal"
    fields = [
        replace(one, choices=choices.get(one.name, ())) if one.kind == "choice" and not one.choices else one
        for one in command.fields
        if one.name != "force" or visit.role in RECORDS_LATE
    ]
    return [*fields, EFFECTIVE_AT] if late else fields


def lengths_of(visit: Visit) -> tuple[tuple[str, str], ...]:
    """Return the lengths that a window can have here."""
    return tuple((str(days), f"{days} days") for days in visit.lengths)


def _shows(command: Command) -> Callable[[Visit], Awaitable[Response]]:
    async def show(visit: Visit) -> Response:
        path = f"/v1/codes/{quote(visit.path('code_id'), safe='')}"
        code = (await visit.api.get(path)).json
        if visit.request.method == "GET" and visit.role not in command.roles:
            return not_offered(visit)
        if visit.request.method == "GET":
            return _form(visit, command, code, _first(visit, command, code), {})
        form = await visit.form()
        if command.name == "launch" and not form.get("launch"):
            return _form(visit, command, code, form, {}, plan=_plan(form, code))
        body = command.body(form)
        if form.get("effective_at") and visit.role in RECORDS_LATE:
            body["effective_at"] = in_utc(form["effective_at"])
        route = f"{path}/{command.route.format(campaign_id=quote(form.get('campaign_id', ''), safe=''))}"
        if command.route.startswith("/"):
            route, body["code_id"] = command.route, code["code_id"]
        try:
            reply = await visit.api.call(
                command.method, route, {}, orjson.dumps(body), idempotency_key=form.get("form_id")
            )
        except Declined as declined:
            if declined.status not in {400, 409, 422}:
                raise
            return _form(visit, command, code, form, problems_of(declined), status=declined.status)
        if command.name == "reveal":
            return visit.page("given.html", code=reply.json, is_new=False)
        return RedirectResponse(f"/codes/{code['code_id']}", 303)

    return show


def _form(
    visit: Visit,
    command: Command,
    code: dict[str, Any],
    given: dict[str, str],
    errors: dict[str, str],
    *,
    status: int = 200,
    plan: dict[str, Any] | None = None,
) -> Response:
    fields = _fields(command, visit, code)
    known = {one.name for one in fields}
    return visit.page(
        "command.html",
        status=status,
        command=command,
        code=code,
        fields=fields,
        given=given,
        errors=errors,
        wrong=[text for name, text in errors.items() if name not in known],
        plan=plan,
        form_id=given.get("form_id") or new_form_id(),
    )


def _first(visit: Visit, command: Command, code: dict[str, Any]) -> dict[str, str]:
    """Return what a form begins with: what is known, so that nobody types it again."""
    if command.name == "launch":
        accounts = [one["advertiser_id"] for one in code["redemptions"]]
        # The next whole minute, for the window may have begun within this one.
        begins = max(visit.now, moment(code["starts_at"])).replace(second=0, microsecond=0) + timedelta(minutes=1)
        return {
            "advertiser_id": accounts[0] if len(accounts) == 1 else "",
            "currency": CURRENCIES[0],
            "starts_at": begins.isoformat(),
        }
    if command.name == "extend":
        return {"days": "60"}
    if command.name == "rights" and (known := code["usage_rights"]) is not None:
        edits = {True: "true", False: "false"}.get(known["edits_allowed"], "")
        return {
            "until": known["until"] or "",
            "platforms": ", ".join(known["platforms"] or ()),
            "edits_allowed": edits,
        }
    return {"channel": get_args(Channel)[0]}


def _plan(form: dict[str, str], code: dict[str, Any]) -> dict[str, Any] | None:
    """Return when a campaign will stop, and whether that is before its planned end; None if that cannot be read."""
    try:
        planned, ends = moment(in_utc(form["ends_at"])), moment(code["ends_at"])
        begins = moment(in_utc(form["starts_at"]))
    except (KeyError, ValueError):
        return None
    return {"stops_at": min(planned, ends), "planned": planned, "is_cut": ends < planned, "begins": begins}


PAGES: Final = tuple(
    Page(f"/codes/{{code_id}}/{one.name}", _shows(one), methods=("GET", "POST"), roles=one.roles) for one in COMMANDS
)
