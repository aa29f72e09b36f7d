"""What messages say: plain text, the same for every channel. No secret, no note, and of a code only its mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from infra.delivery.alerts.schedule import zone_named

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from infra.delivery.alerts.models import AlertKind, Finding
    from projections.codes import CodeRow

SUBJECT_CHARACTERS_MAX: Final = 200
# What TikTok's addresses of posts have.
_TIKTOK_VIDEO: Final = re.compile(r"[0-9]{15,20}")
_TIKTOK_HANDLE: Final = re.compile(r"[A-Za-z0-9._]{1,64}")
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_DAYS_FROM: Final = timedelta(hours=36)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

# Of one finding, and of several, the first of which is the most urgent.
_SUBJECTS: Final[dict[AlertKind, tuple[str, str]]] = {
    "ending": ("A Spark code of {creator} ends on {day}", "{count} Spark codes end soon, the first on {day}"),
    "campaign_outlives_code": (
        "A campaign stops early: its Spark code of {creator} ends on {day}",
        "{count} campaigns stop early with their Spark codes, the first on {day}",
    ),
    "refused_attempts": (
        "A refused attempt to use a Spark code of {creator}",
        "{count} refused attempts to use Spark codes",
    ),
    "stopped": ("Stopped: {what}", "Stopped: {what}, and {others} more"),
}
_INTRODUCTIONS: Final[dict[AlertKind, str]] = {
    "ending": "These Spark codes end soon. An ad that runs on a code stops when the code ends.",
    "campaign_outlives_code": (
        "These campaigns are planned beyond the end of their Spark code, or of the usage rights to it. They stop then."
    ),
    "refused_attempts": "Somebody tried to use these Spark codes, and was refused.",
    "stopped": "This has stopped, and what depends on it falls behind:",
}
_ADVICE: Final[dict[AlertKind, str]] = {
    "ending": "If an ad has to run longer, ask the creator to extend the code in TikTok, and record the extension.",
    "campaign_outlives_code": (
        "Ask the creator to extend the code in TikTok and record the extension, or agree on longer rights and state "
        "them, or end the campaign earlier."
    ),
    "refused_attempts": (
        "If the account may use the code, find out what is missing: the reason says it. If not, ask where it has the "
        "code from."
    ),
    "stopped": "Open the page System of the console: it says what to do.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A finding, with the code that it is about."""

    finding: Finding
    code: CodeRow | None = None


@dataclass(frozen=True, slots=True)
class AlertText:
    """A message: a line that says what and when, and the rest."""

    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What every message of a rule says of where it comes from.

    Attributes:
        public_url: where the console is, if that is known.

    """

    rule_id: UUID
    ledger: str
    zone: str
    public_url: str | None


def alert_text(kind: AlertKind, entries: Sequence[Entry], now: datetime, head: Letterhead, *, most: int) -> AlertText:
    """Return the message about some findings, of which it describes so many at most."""
    lines = [_INTRODUCTIONS[kind], ""]
    for number, entry in enumerate(entries[:most], 1):
        lines += _described(number, kind, entry, now, head)
    if len(entries) > most:
        lines += [f"And {len(entries) - most} more: the console lists them.", ""]
    lines += [f"What to do: {_ADVICE[kind]}", "", *_footer(head)]
    return AlertText(_one_line(_subject(kind, entries, head)), "\n".join(lines) + "\n")


def trial_text(now: datetime, head: Letterhead) -> AlertText:
    """Return the message that shows that an address is reached."""
    lines = [f"This is a test, sent on request at {_moment(now, head.zone)}. Alerts reach you.", "", *_footer(head)]
    return AlertText(f"Test of an alert of the ledger {_one_line(head.ledger)}", "\n".join(lines) + "\n")


def _subject(kind: AlertKind, entries: Sequence[Entry], head: Letterhead) -> str:
    first, count = entries[0], len(entries)
    ends_at = first.finding.ends_at
    words = {
        "count": count,
        "others": count - 1,
        "creator": "" if first.code is None else first.code.creator_id,
        "day": "" if ends_at is None else f"{ends_at.astimezone(zone_named(head.zone)):%Y-%m-%d}",
        "what": first.finding.reason,
    }
    of_one, of_several = _SUBJECTS[kind]
    return (of_one if count == 1 else of_several).format_map(words)


def _described(number: int, kind: AlertKind, entry: Entry, now: datetime, head: Letterhead) -> list[str]:
    found, code = entry.finding, entry.code
    if code is None:
        return [f"{number}. {found.reason}", ""]
    named = "Code" if code.masked is None else f"Code {code.masked}"
    lines = [f"{number}. {named} of {code.creator_id}"]
    if found.campaign_id is not None:
        lines.append(f"   Campaign: {found.campaign_id} of account {found.advertiser_id}")
    lines.append(f"   Video:    {video_link(code)}")
    if kind == "refused_attempts":
        lines.append(f"   Account:  {found.advertiser_id}")
        lines.append(f"   Reason:   {(found.reason or '').replace('_', ' ')}")
        if found.happened_at is not None:
            lines.append(f"   When:     {_moment(found.happened_at, head.zone)}")
    elif found.ends_at is not None:
        lines.append(f"   Ends:     {_moment(found.ends_at, head.zone)}, {_distance(found.ends_at - now)}")
    if head.public_url is not None:
        lines.append(f"   Page:     {head.public_url}/codes/{code.code_id}")
    return [*lines, ""]


def _footer(head: Letterhead) -> list[str]:
    change = "" if head.public_url is None else f" To change or stop it: {head.public_url}/alerts"
    return [f"You get this by the alert rule {head.rule_id} of the ledger {head.ledger}.{change}"]


def video_link(code: CodeRow) -> str:
    """Return the link to a code's post; the id of the video where it is none of TikTok's."""
    if _TIKTOK_VIDEO.fullmatch(code.video_id) and _TIKTOK_HANDLE.fullmatch(code.creator_id):
        return f"https://www.tiktok.com/@{code.creator_id}/video/{code.video_id}"
    return code.video_id


def _moment(moment: datetime, zone: str) -> str:
    """Return a moment in UTC, and in a zone if that is another."""
    said = f"{moment:%Y-%m-%d %H:%M} UTC"
    return said if zone == "UTC" else f"{said} ({moment.astimezone(zone_named(zone)):%Y-%m-%d %H:%M} {zone})"


def _distance(left: timedelta) -> str:
    """Return how far a moment is, rounded: a message of seven days before comes a few seconds later."""
    if left <= timedelta(0):
        return "which is over"
    unit, name = (_DAY, "day") if left >= _DAYS_FROM else (_HOUR, "hour")
    count = (left + unit / 2) // unit
    if count == 0:
        return "in less than an hour"
    return f"in {count} {name}" if count == 1 else f"in {count} {name}s"


def _one_line(text: str) -> str:
    """Return a text without line breaks and other control characters: it becomes a header."""
    return _CONTROL.sub(" ", text)[:SUBJECT_CHARACTERS_MAX]
