"""Writes what the documentation takes from the code: docs/events.md, and tables of other pages.

    python -m tests.generated --write    refreshes them
    python -m tests.generated --check    fails where one is stale, and names it

A table stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`; what is around it is written by hand.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import sys
import types
from dataclasses import MISSING, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

from eventsourcing.domain import Aggregate
from eventsourcing.utils import get_topic

from api import (
    authorization_batch,
    authorization_lines,
    event_search,
    figures,
    import_run,
    imports,
    query_language,
    sheet_files,
    stats,
    streams,
)
from api.calendars import READS_AT_ONCE
from api.http import fields as fields_
from api.http import limits as limit
from api.http import (
    middleware,
    page_process,
    page_server,
    places,
    protocol,
    query_params,
    route,
    single_flight,
    streaming_download,
    transport,
    turns,
)
from api.http.app import create_app
from api.http.problems import RETRYABLE, STATUSES, statuses_of
from api.http.route import roles_by_route
from domain import pasted
from domain.advertiser import Advertiser
from domain.campaign import Campaign
from domain.code import REFUSAL_REPEAT_AFTER, Code
from domain.creator import Creator
from domain.errors import REFUSALS
from domain.event_types import EVENT_TYPES
from domain.log import Log
from domain.sheet_import import SheetImport
from domain.summaries import summary
from domain.values import Role, Sealed
from domain.video import Video
from infra.auth import access_log, api_keys, denied_attempts, key_admin, oidc
from infra.delivery.alerts import alert_store, calendars
from infra.delivery.alerts import rules as alerts
from infra.delivery.alerts.models import AlertPolicy
from infra.delivery.webhooks import delivery_store, http_target
from infra.delivery.webhooks import subscriptions as webhooks
from infra.delivery.webhooks.models import DeliveryPolicy
from infra.ending import ENDS_WITHIN_S
from infra.eventstore import group_commit, live_subscription
from infra.eventstore.serialization import clear_body, event_type, stored_form
from infra.imports import mappings, runs
from infra.jobs import retention
from infra.settings import settings_table
from infra.views import reader
from projections import VIEWS, index_scan
from projections.engine.view import View
from tests import given
from tests.api import attempts
from tests.generated_schemas import refused, schema_pages
from tests.wired import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from domain.recorded import Event

ROOT: Final = Path(__file__).parent.parent
EVENTS: Final = "docs/events.md"
RECORDING: Final = "docs/recording.md"
ROLES_PAGE: Final = "docs/roles.md"
README: Final = "README.md"
RUNNING: Final = "docs/running.md"
DECISIONS: Final = "docs/decisions"
QUESTIONS: Final = "docs/questions.md"
EVIDENCE: Final = "docs/evidence.md"
VERIFIER_PAGE: Final = "infra/proof/verify.html"
ROLES: Final[tuple[Role, ...]] = get_args(Role)

_INTRODUCTION: Final = """\
# Events

<!-- Written by `python -m tests.generated --write` from the event classes in domain/; edit those. -->

A ledger consists of these events. Their names and versions are stored and published. A name is never changed or reused,
and a new version of an event can read the old ones (`CONTRIBUTING.md` says how).

Every event also has these fields, the same for all types:

| Field | Type | Meaning |
| --- | --- | --- |
| `position` | whole number | the position in the ledger: 1, 2, 3 … without gaps, in commit order |
| `event_id` | UUID | the event's own id |
| `type`, `type_version` | string, whole number | the name and version below |
| `code_id`, `creator_id`, `video_id` | UUID, strings | the code, its creator, its video; for permissions: the creator |
| `advertiser_id` | string | the account, of events of advertiser accounts; events of bindings have `video_id` alone |
| `stream_version` | whole number | the event's number in the stream of what it belongs to: 1, 2, 3 … |
| `recorded_at` | time | when the ledger recorded it; never decreases with the position |
| `effective_at` | time | when it happened in the world |
| `actor` | object | `key_id`, `key_name`, `role`, and the `subject` that the key acted for |
| `source` | string | who reported it: `creator`, `brand`, `operator`, `platform` or `clock` |
| `correlation_id` | string, may be null | the business process that it belongs to, as named by the caller |
| `causation_id` | UUID, may be null | the event that it follows from |
| `summary` | string | a sentence that says what happened, without sealed fields |
| `body` | object | the fields below |

The trail, its exports, the [stream, webhooks](subscribing.md) and [Kafka](kafka.md) all show an event with these names.
Messages to Kafka and webhooks leave out `actor.key_name`, because a name can be erased and a message cannot, and
`summary`.

`causation_id` names the event that another one follows from: `CampaignEnded` follows from the `Revoked` or `Expired`
that ended the campaign, `Expired` and `ExpiryApproaching` from the `CodeGenerated` or `Extended` that set the window's
end, `Superseded` from the `CodeGenerated` of the other code. Such an event may have a lower position than its cause, if
one command recorded both. For all other events it is the `Causation-Id` of the command, if it had one.
`GET /v1/events/{position}` follows it both ways: `cause` is the position and the type of the event that is named, and
`effects` are those of the events that name this one.

An event that this version of the program cannot read (an unknown type, a newer version, a malformed body) is shown in
the trail and its exports without its `body`, with `"unreadable": true`. Nothing is concluded without it: views and
Kafka stop before it and name it, a stream ends with `unavailable`, a webhook waits with that code and sends the others,
and what must be computed from it is answered with 503.

**What begins and ends an authorization.** An authorization belongs to an advertiser account, for one code. `Redeemed`
begins it. `Revoked` and `Expired` end it, at their `effective_at`; `Extended` moves the end, and begins it again for
those who had redeemed an expired code. Nothing else does: `PermissionDisabled` stops new codes, shares and extensions,
`CreatorErased` destroys what was sealed, `Superseded` lets no new account redeem the code, and in all three cases the
accounts that redeemed it stay authorized. `Shared` alone authorizes nobody. `GET /v1/event-types` says the same to
machines.

**Order.** Events of one code, one permission or one account arrive in order. Across them, no order is promised outside
the trail and the stream: in Kafka and over webhooks, a `PermissionDisabled` can arrive before the `CodeGenerated` that
was recorded just before it. Anyone who must know which came first compares `position`.

A webhook can also get `sparkledger.Test.v1`, a test that its owner asks for. It is no event of the ledger: it has no
position, and its `data` is `{"webhook_id": "…"}`.

Facts may be recorded late and in any order. Each counts from its `effective_at`, so an event can change what earlier
ones meant, and no event takes them back:

- A share, redemption, launch, campaign end or revocation is recorded again if it was earlier than was known. The
  earliest one counts, once.
- An `Extended` that took effect before an end of the window makes the `Expired` of that end, and each `CampaignEnded`
  that it caused, ineffective. If the new end is past, another `Expired` follows in the same append.
- What took effect after a `Revoked` that is recorded later authorizes nothing.
- `RedemptionRefused`, and `shared_with_advertiser` of `Redeemed`, say what was known when they were recorded.

*Clear* fields are stored as JSON and stay readable. *Sealed* fields are stored encrypted, under a key of their creator.
No event shows a secret. Notes are shown in the history of their code, to those who are allowed to read it. Fields
without a value are left out. Times are RFC 3339 in UTC. An event that *moves the version* makes an earlier `If-Match`
stale. The other events do not, so neither an outsider nor the expiry clock's reminders can disturb the owner.
"""

_ROLES_INTRODUCTION: Final = """\
# Roles, route by route

<!-- Written by `python -m tests.generated --write` from tests/api/attempts.py; edit that. -->

The status of the response to a well-formed request. For keys with the roles `creator` and `brand`, the first status is
for their own subjects, and the one after `others'` for the subjects of others. If there is only one status, as for
lists, the response contains only what belongs to their own subjects. 403 means that the key's role or subjects do not
allow the request. It is decided before any rule, so no refusal reveals the state of somebody else's code. What belongs
to another ledger gets 404, like what does not exist. Without a valid key or token, the status is 401. A token is
treated like a key of its role, except that it cannot create a webhook, an alert or a calendar (403).

The test in `tests/api/http/test_roles.py` sends every request of this table to a running server.

"""

_WORDS: Final[dict[Any, str]] = {
    str: "string",
    int: "whole number",
    bool: "true or false",
    datetime: "time",
    Sealed: "string",
    Any: "any JSON",
    dict[str, str]: "object of strings",
    list[str]: "list of strings",
}


# -- docs/events.md


def own_fields(kind: type[Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield what an event says beyond its place: each field's name, its type in words, whether it is sealed."""
    inherited = {field.name for base in (Aggregate.Event, Aggregate.Created) for field in fields(base)}
    annotations = get_type_hints(kind)
    for field in fields(kind):
        if field.name not in inherited:
            words, sealed = _in_words(annotations[field.name])
            yield field.name, words if field.default is MISSING else f"{words}, may be absent", sealed


def _in_words(annotation: Any) -> tuple[str, bool]:
    if get_origin(annotation) in {Union, types.UnionType}:
        (present,) = [part for part in get_args(annotation) if part is not type(None)]
        return _in_words(present)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(annotation)), False
    return _WORDS[annotation], annotation is Sealed


def examples() -> dict[str, tuple[Event, dict[str, str]]]:
    """Tell the whole life of a code in memory; return by wire name the first event of each type, and what it seals."""
    story = given.Story()
    month, account = timedelta(days=30), "adv-7001"
    creator, video = "ana.creates", "7312345678901234567"
    secret = Sealed("#k9/Tz+example+of+a+spark+ad+code==")
    campaign = Campaign(
        campaign_id="spring-sale",
        advertiser_id=account,
        amount="500.00",
        currency="USD",
        starts_at=given.NOW + timedelta(days=1),
        ends_at=given.NOW + 4 * month,
        name="Spring sale",
        targeting={"countries": ["US", "CA"]},
        creative_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    )
    told: tuple[given.Command, ...] = (
        given.permission(creator_id=creator),
        given.generate(creator_id=creator, video_id=video, terms_version="2026-01", secret=secret),
        given.extend(days=60),
        given.share(brand_id="acme", advertiser_id=account, note="For the spring sale"),
        given.redeem(secret, advertiser_id=account),
        given.launch(campaign),
        given.reveal(reason="The brand lost it"),
        given.note(text="Position 4 names the right brand.", about_position=4),
        given.generate(
            given.OTHER_CODE,
            creator_id=creator,
            video_id="7312345678901234575",
            terms_version="2026-01",
            secret=None,
            expires_at=given.NOW + month,
        ),
        given.attach(Sealed("#m2/Xy+another+spark+ad+code=="), given.OTHER_CODE),
    )
    pending: list[Event] = []
    for command in told:
        pending += _decided(story, command)
    pending += _decided(story.later(days=53), given.record_due())
    successor = given.generate(
        UUID(int=0xC0DE_3),
        creator_id=creator,
        video_id=video,
        terms_version="2026-01",
        secret=given.OTHER_SECRET,
        supersedes=given.CODE,
    )
    pending += _decided(story, successor)
    story.later(days=8)
    late: tuple[given.Command, ...] = (
        given.record_due(),
        given.rights(given.NOW, platforms=("tiktok",), edits_allowed=False, contract="C-2026-117"),
        given.redeem(secret, advertiser_id="adv-9999"),
        given.revoke(reason="The agreement ended"),
        given.permission(creator_id=creator, enabled=False),
        given.erase(creator_id=creator, reason="The creator asked for it"),
        given.advertiser(account, brand_id="acme"),
        given.bind("ben.creates", video_id=video),
        given.bind(None, video_id=video),
    )
    for command in late:
        pending += _decided(story, command)
    restarted = Log.begin(
        UUID("0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b00"),
        Log.Restarted,
        at=story.clock(),
        generation=2,
        history="5d0a2b9e-4f3c-4a57-9a43-0f6f6b7a1c02",
        previous_history="c7f4f1a2-8f0e-4d2b-8b55-6a1e0d9c3b01",
        common_position=9_600,
        lost_position=9_721,
        lost_event_id="0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b05",
        reason="Restored from the backup of last night",
    )
    for kind, why in (
        (Log.KeyAdded, "The yearly change of keys"),
        (Log.KeyRetired, "The yearly change of keys"),
        (Log.KeyCompromised, "The disk of the sealer was stolen"),
    ):
        restarted.change(
            kind,
            at=story.clock(),
            generation=2,
            vkey="ledger.acme.example/log/main/2+0a1b2c3d+AZh1sNyLz0m3v3wS0mJrB9QvJYI2hYt5rW6l0nX1b2c3",
            ml_dsa_vkey="ledger.acme.example/log/main/2+4e5f6a7b+BqeQTOHRRSRCFZB0YNITkLSydjzN9x5meov0TM9e",
            reason=why,
        )
    heads = {"generation": 2, "upto": 9_721, "root": "4nL0v1sH2mG0T7mB5mX2Qm7lW2t0d3kq0lZk1tqX1nE=", "keys": 3_204}
    salt = {"video_salt_hash": "mZ0o9WkqX1u5bQ8yHf3TgK2r7cVJdE6aL4sPnNwYxRA="}
    restarted.change(Log.HeadsSealed, at=story.clock(), format=2, **heads, **salt)
    pending += cast("list[Event]", restarted.pending_events)
    imported = SheetImport.begin(
        UUID("0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b40"),
        at=story.clock(),
        file_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        rows=120,
        columns={"1!A": "creator_id", "1!C": "video_id", "1!F": "secret", "1!G": "expires_at"},
        options={"terms": "2026-01", "time_zone": "Europe/Berlin"},
    )
    counts = {"new": 97, "changed": 0, "known": 12, "differs": 3, "refused": 2, "unclear": 6}
    imported.end(complete=True, counts=counts, at=story.clock())
    pending += cast("list[Event]", imported.pending_events)
    first: dict[str, tuple[Event, dict[str, str]]] = {}
    for event in pending:
        first.setdefault(get_topic(type(event)), (event, stored_form(event)[3]))
    return first


def _decided(story: given.Story, command: given.Command) -> list[Event]:
    """Carry a command out in the story, and return its events with their sealed fields in place."""
    decision = story.decide(command)
    assert decision is not None
    changed = (*decision.also_changed, decision.aggregate)
    pending = cast("list[Event]", [event for one in changed for event in one.pending_events])
    story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR)
    return pending


def events_page() -> str:
    """Return docs/events.md."""
    kinds, told = list(EVENT_TYPES.values()), examples()
    untold = [get_topic(kind) for kind in kinds if get_topic(kind) not in told]
    assert not untold, f"tell of {', '.join(untold)} in tests/generated.py"
    overview = _table(
        ("Event", "Version", "Of a", "Moves the version", "What happened"),
        [
            (
                f"[`{get_topic(kind)}`](#{get_topic(kind).lower()})",
                str(getattr(kind, "class_version", 1)),
                _subject_of(kind),
                "no" if issubclass(kind, Code.Event) and not _moves_version(kind) else "yes",
                _prose(kind),
            )
            for kind in kinds
        ],
    )
    return "\n".join([_INTRODUCTION, overview, *(_section(kind, *told[get_topic(kind)]) for kind in kinds)])


def _section(kind: type[Any], event: Event, sealed: dict[str, str]) -> str:
    name, version = event_type(event)
    rows = [(f"`{field}`", words, "sealed" if secret else "clear") for field, words, secret in own_fields(kind)]
    stored = json.dumps(json.loads(clear_body(event)), indent=2, ensure_ascii=False)
    also = f"\nSealed beside it: {', '.join(f'`{field}`' for field in sealed)}.\n" if sealed else ""
    return f"""\
## {name}

Version {version}. {_prose(kind)}

{_table(("Field", "Type", "Stored"), rows)}
> {summary(event)}

```json
{stored}
```
{also}"""


def _subject_of(kind: type[Any]) -> str:
    if issubclass(kind, Advertiser.Event):
        return "advertiser account"
    if issubclass(kind, Log.Event):
        return "log"
    if issubclass(kind, SheetImport.Event):
        return "sheet"
    if issubclass(kind, Video.Event):
        return "video"
    return "creator" if issubclass(kind, Creator.Event) else "code"


def _moves_version(kind: type[Any]) -> bool:
    return issubclass(kind, Code.Changed | Code.Generated)


def _prose(kind: type[Any]) -> str:
    """Return a docstring as one line, a sentence."""
    text = " ".join((kind.__doc__ or "").split())
    assert text, f"{kind.__qualname__} needs a docstring"
    return text


# -- Tables of other pages


def settings() -> str:
    """Return the table of settings."""
    rows = [
        (f"`{name}`", f"`{default}`" if default else "", description) for name, default, description in settings_table()
    ]
    return _table(("Variable", "Default", "Meaning"), rows)


def roles_page() -> str:
    """Return docs/roles.md: what every route answers to every role."""
    app = create_app(services())

    def cell(route: str, role: Role) -> str:
        own, others = attempts.documented(route, role)
        return f"{own}" if own == others else f"{own}, others' {others}"

    routes = [route for route, allowed in roles_by_route(app).items() if allowed]
    rows = [(f"`{route}`", *(cell(route, role) for role in ROLES)) for route in routes]
    return _ROLES_INTRODUCTION + _table(("Route", *(f"`{role}`" for role in ROLES)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def problems() -> str:
    """Return the table of what is answered where something is refused, by HTTP status."""
    by_status: dict[int, list[str]] = {}
    for code in STATUSES:
        for status in statuses_of(code):
            by_status.setdefault(status, []).append(f"`{code}`" + ("*" if code in RETRYABLE else ""))
    table = _table(("Status", "`code`"), [(str(status), ", ".join(codes)) for status, codes in by_status.items()])
    return f"{table}\n\\* `retryable`\n"


def refusals() -> str:
    """Return the table of refusals by command, in their order of precedence."""
    rows = [(command, ", ".join(f"`{code}`" for code in codes) or "none") for command, codes in REFUSALS.items()]
    return _table(("Command", "Refusals"), rows)


def limits() -> str:
    """Return the table of limits."""
    kib = 1024
    policy, alerting = DeliveryPolicy(), AlertPolicy()
    rows: list[tuple[str, str]] = [
        ("a request's body", f"{middleware.MAX_BODY_BYTES // kib:,} KiB"),
        ("an id", "1 to 128 characters of `A-Z a-z 0-9 . _ : @ -`"),
        ("a secret", f"{pasted.MIN_SECRET_CHARACTERS} to {pasted.MAX_SECRET_CHARACTERS} characters"),
        ("a reason", f"{fields_.MAX_REASON_CHARACTERS} characters"),
        ("a note", f"{fields_.MAX_TEXT_CHARACTERS:,} characters"),
        (
            "a campaign's targeting",
            f"{fields_.MAX_TARGETING_BYTES // kib} KiB of JSON, {fields_.MAX_TARGETING_DEPTH} levels",
        ),
        ("a time", f"the years {pasted.FIRST_YEAR} to {pasted.LAST_YEAR}"),
        (
            "a page",
            (
                f"{query_params.LIMIT} entries, at most {query_params.MAX_LIMIT:,}; "
                f"of a history or of keys, {query_params.MAX_LIMIT:,}"
            ),
        ),
        ("statistics by day", f"{stats.MAX_STATISTICS_DAYS} days"),
        ("figures", f"{figures.MAX_MONTHS} months"),
        ("spend at risk", f"codes that end within {figures.MAX_DAYS_AHEAD} days"),
        (
            "a query of the audit trail (`q`)",
            f"{query_params.MAX_Q_CHARACTERS} characters, {query_language.MAX_TERMS} terms",
        ),
        (
            "a search of the audit trail, for each page",
            (
                f"{index_scan.MAX_ROWS_SCANNED:,} events ({event_search.MAX_ROWS_SCANNED:,} for words), "
                f"{index_scan.MAX_SECONDS} s"
            ),
        ),
        (
            "questions in bulk",
            (
                f"{authorization_lines.MAX_LINES:,} lines of {authorization_lines.MAX_LINE_BYTES:,} bytes, "
                f"{middleware.MAX_BATCH_BYTES // kib**2} MiB in total"
            ),
        ),
        (
            "sheets that are imported",
            (
                f"{sheet_files.MAX_ROWS:,} rows of {sheet_files.MAX_COLUMNS} columns, "
                f"{sheet_files.MAX_CELL_CHARACTERS:,} characters in a cell, {sheet_files.MAX_SHEETS} sheets; "
                f"{middleware.MAX_BATCH_BYTES // kib**2} MiB, on the command line "
                f"{sheet_files.MAX_FILE_BYTES // kib**2} MiB; unpacked {sheet_files.MAX_UNPACKED_BYTES // kib**2} MiB"
            ),
        ),
        (
            "the process that reads a sheet",
            f"{sheet_files.MAX_READER_MEMORY_BYTES // kib**2:,} MiB of memory, {sheet_files.MAX_READER_S} s",
        ),
        (
            "rows of an import that is answered while it runs",
            f"{imports.MAX_ROWS_OF_A_REQUEST:,}; larger ones are left to the worker",
        ),
        (
            "imports that are left to the worker",
            (
                f"{runs.MAX_OPEN_RUNS} of a ledger at a time, one of a server at work; open for at most "
                f"{runs.OPEN_DAYS} days, and kept for {runs.KEEP_DAYS} days with their reports, the newest "
                f"{runs.MAX_ENDED_RUNS} of a ledger"
            ),
        ),
        ("sheets that wait for the worker of a server, together", f"{runs.MAX_OPEN_MIB} MiB"),
        ("saved mappings of imports", f"{mappings.MAX_MAPPINGS} of a ledger, of 16 KiB each"),
        ("rows of an import that are recorded at the same time", f"{import_run.AT_ONCE}"),
        (
            "exports and batches, for each API process",
            (
                f"{streaming_download.MAX_AT_ONCE} at once, {streaming_download.MAX_AT_ONCE_OF_A_LEDGER} of one "
                f"ledger, {streaming_download.MAX_AT_ONCE_OF_A_KEY} of one key"
            ),
        ),
        (
            "batches that are received or answered, for each API process",
            (
                f"{authorization_batch.MAX_UPLOADS} at once, {authorization_batch.MAX_UPLOADS_OF_A_LEDGER} of one "
                f"ledger, {authorization_batch.MAX_UPLOADS_OF_A_KEY} of one key; "
                f"{authorization_batch.MAX_UPLOAD_BYTES // kib**2} MiB, "
                f"{authorization_batch.MAX_UPLOAD_BYTES_OF_A_LEDGER // kib**2} MiB of one ledger"
            ),
        ),
        ("the end of a process that is asked to end", f"{ENDS_WITHIN_S} s"),
        (
            "the work of all batches, for each API process",
            f"{turns.TURN_S * 1000:.0f} ms at a time; then other requests have {turns.PAUSE_S * 1000:.0f} ms",
        ),
        (
            "a page of the console that is being made",
            f"{turns.SHORT_TURN_S * 1000:.2f} ms at a time; then come other requests",
        ),
        (
            "pages that are being made beside an API process, with the channels of open ones",
            (
                f"{page_process.MAX_HANDED_OVER:,}, with {page_server.SESSIONS} sessions of the database, "
                f"{page_server.SESSIONS_OF_A_LEDGER} of them for one ledger; the API makes more by itself"
            ),
        ),
        (
            "histories and pages of the trail that are being read, for each API process",
            f"{places.MAX_PAGES} at once, {places.MAX_PAGES_OF_A_LEDGER} of one ledger; more wait",
        ),
        ("a request that finds all places of its kind taken", f"waits for one for at most {places.WAIT_S:.0f} s"),
        ("an export or a batch whose client reads nothing", f"disconnected after {streaming_download.STALLED_S:.0f} s"),
        ("the access log", f"kept for {access_log.KEEP_ACCESSES_DAYS} days"),
        ("a key's subjects", f"{api_keys.MAX_SUBJECTS:,} of each kind"),
        ("a rotation's overlap", f"{key_admin.MAX_OVERLAP_S // 86_400} days"),
        ("a token", f"{oidc.MAX_TOKEN_CHARACTERS:,} characters"),
        (
            "a request",
            f"answered within {middleware.MAX_REQUEST_S:.0f} s; its headers within {protocol.HEAD_WITHIN_S:.0f} s",
        ),
        ("the fields and entries of a body", f"{route.MAX_VALUES:,}"),
        ("a request's headers", f"{protocol.MAX_HEAD_BYTES // 1024} KiB, {protocol.MAX_HEADERS}"),
        (
            "answers that clients have not read, for each API process",
            (
                f"{transport.MAX_UNREAD_BYTES // kib**2} MiB; then the ledger with most of them loses its oldest "
                "such connection"
            ),
        ),
        (
            "connections, and requests in progress, for each API process",
            (
                f"{protocol.MAX_CONNECTIONS:,} and {middleware.MAX_WAITING:,}, "
                f"{middleware.MAX_WAITING_OF_A_LEDGER:,} of them of one ledger, "
                f"{middleware.MAX_WAITING_OF_A_KEY:,} of one key"
            ),
        ),
        (
            "`/readyz`, `/metrics`, and which logs are public",
            f"looked up once in {single_flight.KEEP_S:.0f} s for all requests",
        ),
        (
            "denied attempts in the access log, for each key, reason and hour",
            f"{denied_attempts.RECORDED_PER_HOUR}",
        ),
        ("`at_least`", f"waits for at most {reader.AT_LEAST_WAIT_S:.0f} s"),
        (
            "attempts with unknown codes, for each key and API process, not for operators and admins",
            (
                f"{limit.UNKNOWN_CODES_AT_ONCE} distinct ones at once, then one in "
                f"{1 / limit.UNKNOWN_CODES_PER_SECOND:.0f} s; the last {limit.MAX_REMEMBERED_CODES:,} of all keys are "
                "remembered, and cost nothing when they are repeated"
            ),
        ),
        ("commands waiting to be recorded, for each API process", f"{group_commit.MAX_WAITING:,}"),
        ("an `Idempotency-Key`", f"kept for {retention.KEEP_IDEMPOTENCY_HOURS} hours"),
        (
            "the same refused redemption",
            f"recorded once in {REFUSAL_REPEAT_AFTER.seconds // 3600} h, then only counted",
        ),
        (
            "streams, for each API process",
            (
                f"{streams.MAX_STREAMS:,}, {streams.MAX_STREAMS_OF_A_LEDGER:,} of one ledger, "
                f"{streams.MAX_STREAMS_OF_A_KEY} of one key"
            ),
        ),
        (
            "how far a stream's client can be behind",
            f"{live_subscription.KEPT_EVENTS:,} events, {live_subscription.KEPT_BYTES // kib // kib} MiB",
        ),
        ("a stream whose client reads nothing", f"disconnected after {streams.STALLED_S:.0f} s"),
        ("a ledger's webhooks", f"{webhooks.MAX_WEBHOOKS}, {webhooks.MAX_WEBHOOKS_OF_A_KEY} of one key"),
        (
            "a webhook's messages",
            f"{policy.in_flight} in progress, {policy.waiting:,} waiting, {delivery_store.KEEP_DEAD:,} dead",
        ),
        ("a webhook's dead letters", f"kept for {delivery_store.KEEP_DEAD_DAYS} days"),
        ("a webhook's list of deliveries", f"{delivery_store.KEEP_ATTEMPTS:,} attempts"),
        ("a delivery attempt", f"{http_target.ATTEMPT_S:.0f} s"),
        ("a ledger's alert rules", f"{alerts.MAX_RULES}, {alerts.MAX_RULES_OF_A_KEY} of one key"),
        (
            "an alert rule's messages",
            f"one every {alerting.gap_s:.0f} s, each with {alerting.findings} findings; {alerting.waiting:,} waiting",
        ),
        ("an alert's attempts", f"{len(alerting.retries_s) + 1}, over {sum(alerting.retries_s) / 3600:.0f} h"),
        ("a ledger's calendars", f"{calendars.MAX_CALENDARS}, {calendars.MAX_CALENDARS_OF_A_KEY} of one key"),
        (
            "a calendar",
            (
                f"{calendars.MAX_EVENTS:,} ends, from {calendars.PAST.days} days ago to {calendars.AHEAD.days} days "
                f"ahead, and {calendars.MAX_CANCELLED} revoked codes; {READS_AT_ONCE} reads at once, then one a minute"
            ),
        ),
        ("an alert rule's list of messages", f"kept for {alert_store.KEEP_MESSAGES_DAYS} days"),
    ]
    return _table(("What", "Limit"), rows)


def decisions() -> str:
    """Return the table of decisions: each one's title, and the line to quote."""
    rows = []
    for path in sorted((ROOT / DECISIONS).glob("[0-9]*.md")):
        text = path.read_text()
        quoted = " ".join(" ".join(re.findall(r"^> ?(.*)$", text, flags=re.MULTILINE)).split())
        title = text.split("\n", 1)[0].removeprefix("# ")
        rows.append((f"[{title}]({path.name})", quoted))
    return _table(("Decision", "In one line"), rows)


def _module_of(view: View[Any]) -> types.ModuleType:
    """Return the module in which a view is defined: a file may have another name than the stored view."""
    return next(
        module
        for name, module in sys.modules.items()
        if name.startswith("projections.") and getattr(module, "VIEW", None) is view
    )


def views_table() -> str:
    """Return the table of views: each one's name, its question, and what of it reads and is read."""
    rows = []
    for view in VIEWS:
        question, _, rest = (_module_of(view).__doc__ or "").partition("\n\n")
        reads = re.split(r"(?<=\.)\s", rest.strip())[:2]  # what it reads, and by what it is read
        rows.append((f"`{view.name}`", " ".join(question.split()), " ".join(" ".join(reads).split())))
    return _table(("View", "Question", "Reads, and is read by"), rows)


def verifier_page() -> str:
    """Return verify.html with a policy that lets exactly its own script and style run."""
    text = (ROOT / VERIFIER_PAGE).read_text()
    for part in ("script", "style"):
        (content,) = re.findall(f"<{part}>(.*?)</{part}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        text, replaced = re.subn(f"({part}-src) 'sha256-[^']+'", rf"\1 'sha256-{digest}'", text)
        assert replaced == 1, f"the policy of {VERIFIER_PAGE} has {replaced} hashes of its {part}"
    return text


def verifiers() -> str:
    """Return the table of verifiers that are one file, each with its hash."""
    contents = {VERIFIER_PAGE: verifier_page(), "infra/proof/verify.py": (ROOT / "infra/proof/verify.py").read_text()}
    rows = [(f"`{path}`", f"`{hashlib.sha256(text.encode()).hexdigest()}`") for path, text in contents.items()]
    return _table(("File", "SHA-256"), rows)


TABLES: Final[dict[str, dict[str, Callable[[], str]]]] = {
    EVIDENCE: {"verifiers": verifiers},
    QUESTIONS: {"views": views_table},
    README: {"problems": problems},
    RECORDING: {"refusals": refusals},
    RUNNING: {"settings": settings, "limits": limits},
    f"{DECISIONS}/README.md": {"decisions": decisions},
}


def with_tables(page: str) -> str:
    """Return a page with every table in it as the code has it now."""
    text = (ROOT / page).read_text()
    for name, table in TABLES[page].items():
        before, begins, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, ends, after = rest.partition(f"<!-- end of {name} -->")
        assert begins, f"{page} has no place for the table {name}"
        assert ends, f"{page} does not say where the table {name} ends"
        text = f"{before}{begins}\n{table()}\n{ends}{after}"
    return text


# -- Both


def pages() -> dict[str, str]:
    """Return every page that holds something generated, as it should be."""
    written = {EVENTS: events_page(), ROLES_PAGE: roles_page(), VERIFIER_PAGE: verifier_page(), **schema_pages()}
    return {**written, **{page: with_tables(page) for page in TABLES}}


def stale() -> dict[str, str]:
    """Return the pages that are not as they should be, as they should be."""
    return {
        page: text for page, text in pages().items() if not (ROOT / page).exists() or (ROOT / page).read_text() != text
    }


def main() -> int:
    """Check or write; 0 where nothing is stale any more."""
    parser = argparse.ArgumentParser(prog="python -m tests.generated", description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="fail where a page is stale")
    what.add_argument("--write", action="store_true", help="refresh what is stale")
    write = parser.parse_args().write
    problems = refused(ROOT)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if problems:
        return 1
    found = stale()
    for page, text in found.items():
        if write:
            (ROOT / page).parent.mkdir(exist_ok=True)
            (ROOT / page).write_text(text)
            sys.stdout.write(f"wrote {page}\n")
        else:
            sys.stderr.write(f"{page} is stale: run `.venv/bin/python -m tests.generated --write`\n")
    return 1 if found and not write else 0


if __name__ == "__main__":
    sys.exit(main())
