"""Cells of a sheet, read as facts; or why a row is unclear, and in which cell.

Nothing is guessed: a row that leaves open what it means records nothing, and the sentence says what to add. The
caller can state once, for the whole sheet, what it leaves open: the order of day and month, the time zone, the length
of windows, the terms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from api.http.fields import MAX_PLATFORMS, MAX_REASON_CHARACTERS, MAX_TEXT_CHARACTERS, PLATFORM_PATTERN
from api.sheet_columns import Field
from domain.campaign import Share
from domain.pasted import (
    FIRST_YEAR,
    LAST_YEAR,
    SENTENCES,
    Unusable,
    VideoIds,
    contains_secret,
    creator_name,
    creator_of_link,
    moment,
    recorded_secret,
    shown_creator_id,
    video_id,
)
from domain.sheet_rows import SheetFacts, StatedTime
from domain.values import ID_PATTERN, Channel, Sealed

DateOrder = Literal["dmy", "mdy"]
MAX_TERMS_CHARACTERS: Final = 128
MAX_DAYS: Final = 3_653

_YES: Final = frozenset(
    [
        "✓",
        "✔",
        "☑",
        "✅",
        "●",
        "yes",
        "y",
        "true",
        "x",
        "1",
        "on",
        "ok",
        "ja",
        "si",
        "sí",
        "oui",
        "sim",
        "是",
        "有",
        "はい",
        "granted",
        "enabled",
        "authorized",
    ]
)
_NO: Final = frozenset(
    [
        "✗",
        "✘",
        "✕",
        "☐",
        "❌",
        "no",
        "n",
        "false",
        "0",
        "off",
        "nein",
        "non",
        "não",
        "否",
        "无",
        "いいえ",
        "revoked",
        "disabled",
        "denied",
    ]
)
# Follows a sign that is to be shown as a picture.
_AS_PICTURE: Final = "\ufe0f"
_CHANNELS: Final[Mapping[str, Channel]] = {
    **dict.fromkeys(("dm", "direct message", "tiktok dm", "instagram dm", "ig dm", "message"), "dm"),
    **dict.fromkeys(("email", "e-mail", "mail"), "email"),
    **dict.fromkeys(("text", "sms", "text message", "whatsapp", "wechat"), "text"),
    "other": "other",
}
_MONTHS: Final = {
    **{
        name: i
        for i, name in enumerate(
            ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
        )
    },
    "mär": 3,
    "mai": 5,
    "okt": 10,
    "dez": 12,
    "ene": 1,
    "abr": 4,
    "ago": 8,
    "dic": 12,
    "fév": 2,
    "avr": 4,
    "aoû": 8,
    "déc": 12,
    "fev": 2,
    "set": 9,
    "out": 10,
    "juin": 6,
    "juil": 7,
}
_CLOCK: Final = r"(?:[ T,]+(?P<h>[0-9]{1,2}):(?P<m>[0-9]{2})(?::(?P<s>[0-9]{2}))?(?:\.0+)?)?"
_YEAR_FIRST: Final = re.compile(r"(?P<year>[0-9]{4})[-/.年](?P<month>[0-9]{1,2})[-/.月](?P<day>[0-9]{1,2})日?" + _CLOCK)
_YEAR_LAST: Final = re.compile(r"(?P<a>[0-9]{1,2})(?P<by>[-/.])(?P<b>[0-9]{1,2})(?P=by)(?P<year>[0-9]{4})" + _CLOCK)
_MONTH_FIRST: Final = re.compile(
    r"(?P<name>[^\W\d_]{3,})\.?\s+(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?,?\s+(?P<year>[0-9]{4})" + _CLOCK, re.IGNORECASE
)
_DAY_FIRST: Final = re.compile(
    r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?\.?[\s-]+(?:de\s+)?(?P<name>[^\W\d_]{3,})\.?,?[\s-]+(?:de\s+)?(?P<year>[0-9]{4})"
    + _CLOCK,
    re.IGNORECASE,
)
# Days since the 30th of December 1899, as spreadsheets count them.
_SERIAL: Final = re.compile(r"(?P<days>[3-7][0-9]{4})(?:\.(?P<part>[0-9]+))?")
_SERIAL_EPOCH: Final = datetime(1899, 12, 30)  # noqa: DTZ001 - its time zone is the sheet's
_LENGTH: Final = re.compile(r"(?P<days>[0-9]{1,4})\s*(?P<unit>days?|d|tage?|d[ií]as?|jours?|天|日)?", re.IGNORECASE)
_LAST_MONTH: Final = 12

_SENTENCES: Final = {
    "no_code": "The row has no code. Ask the creator for it. A code whose text is not known is recorded only where "
    "SPARKLEDGER_CODES_WITHOUT_SECRET is true.",
    "several_codes": "Several codes of the video have this window. Add the code or its start.",
    "not_a_code_id": "Expected the id of a code, which is a UUID.",
    "no_video": "The row names no video. Which video a code is for is not guessed: add the link of the post.",
    "no_creator": "The row names no creator, and the link does not either. Add the creator's handle.",
    "whose_code": "The row has no code, and which one of another sheet is its code is not clear. Add the code.",
    "several_names": "Several creators have this name. Add the handle.",
    "link_names_other": "The link names another creator than the row. Check whose video it is.",
    "no_terms": "The row does not say which advertising terms the creator accepted. Add a column, or state the terms "
    "of all rows with `terms`.",
    "no_end": "The row does not say when the code ends. Add its end, or its start and its length in days.",
    "no_start": "The code has ended, and the row does not say when it began. Add its start, its length in days, or the "
    "day on which the row was written.",
    "ends_first": "The code ends before it starts. Check both times.",
    "date_order": "This day can be read in two ways. State the order of day and month with `dates`: dmy or mdy.",
    "not_a_day": "This is not a day or a time that can be read. Write it as YYYY-MM-DD.",
    "in_the_future": "This time is in the future. Only what has happened can be recorded.",
    "not_a_length": f"Expected a number of days from 1 to {MAX_DAYS:,}.",
    "not_yes_or_no": "Expected yes or no.",
    "permission_off": "The row says that the creator's ad authorization is off, so it has no valid code. Check it.",
    "not_an_id": "Expected an id: 1 to 128 letters, digits or . _ : @ - without spaces. Names of brands have none.",
    "not_a_channel": "Expected dm, email, text or other.",
    "no_share_date": "The row does not say when the code was shared, and the code has ended. Add the day.",
    "account_alone": "The row names an advertiser account, and neither a brand that the code was shared with nor when "
    "the account entered the code. Add one of them.",
    "no_account": "The row says when the code was entered, and not by which advertiser account. Add the account.",
    "not_platforms": "Expected names of platforms with commas or spaces between, such as tiktok, instagram.",
    "no_rights": "The row says when or by which contract usage rights were stated, and not which. Add their end.",
    "no_revocation_date": "The row gives a reason for a revocation, and not when the code was revoked. Add the day.",
    "too_long": "This text is too long.",
}


def is_time_zone(name: str) -> bool:
    """Return whether a text is the IANA name of a time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


class Unclear(Exception):
    """Why nothing can be recorded of a row: the field whose cell is the reason, a stable name, and a sentence."""

    def __init__(self, field: Field, reason: str, sentence: str | None = None) -> None:
        """Take the sentence of the reason, unless there is another one."""
        self.field = field
        self.reason = reason
        self.sentence = _SENTENCES[reason] if sentence is None else sentence
        super().__init__(self.sentence)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the cells of a sheet are read, as far as the sheet leaves it open.

    Attributes:
        dates: the order of day and month in days such as 03/04/2026; None refuses such days.
        zone: the time zone of days, and of times without an offset.
        length: the length of every window of which the sheet has only one end.
        terms_version: the terms that the creators of all rows accepted, if a row does not say which.
        permission: whether the ad authorization of all creators was on when their codes were generated.
        video_ids: which ids of videos are accepted.
        codes_without_secret: whether a row without a code is about a code whose text is not known.

    """

    dates: DateOrder | None = None
    zone: tzinfo = UTC
    length: timedelta | None = None
    terms_version: str | None = None
    permission: bool = False
    video_ids: VideoIds = "tiktok"
    codes_without_secret: bool = False


def facts_of(cells: Mapping[Field, str], reading: Reading, now: datetime, *, is_new: bool = True) -> SheetFacts:
    """Return what a row says, from the cells that are not empty.

    Args:
        cells: the cells.
        reading: how they are read.
        now: the time.
        is_new: whether the code is not known. Of a known one that has ended, a row need not say when it began.

    Raises:
        Unclear: it leaves open what it means.

    """
    row = _Cells(cells, reading, now)
    code_id, video = row.code_id(), row.video()
    secret = row.secret(needed=code_id is None and not reading.codes_without_secret)
    starts_at, expires_at, length = row.time("starts_at"), row.end(), row.length()
    noted_at = row.past("noted_at")
    # Of a code that is known, a row need not say everything.
    can_be_new = secret is not None or code_id is None
    if can_be_new and expires_at is None and (starts_at is None or length is None):
        raise Unclear("expires_at", "no_end")
    terms_version = row.text("terms_version", MAX_TERMS_CHARACTERS)
    facts = SheetFacts(
        secret=secret,
        code_id=code_id,
        video_id=video,
        creator_id=row.creator(),
        terms_version=terms_version or reading.terms_version or "",
        terms_stated=terms_version is not None,
        starts_at=starts_at,
        expires_at=expires_at,
        length=length,
        noted_at=noted_at,
        permission=row.permission(),
        share=row.share(),
        shared_at=row.past("shared_at"),
        redeemed_by=row.id("advertiser_id"),
        redeemed_at=row.past("redeemed_at"),
        revoked_at=row.past("revoked_at"),
        reason=row.text("reason", MAX_REASON_CHARACTERS),
        rights_until=row.time("rights_until"),
        platforms=row.platforms(),
        edits_allowed=None if "edits_allowed" not in cells else row.is_yes("edits_allowed"),
        contract_reference=row.sealed("contract_reference"),
        rights_stated_at=row.past("rights_stated_at"),
        note=row.sealed("note"),
    )
    _check_together(facts, now, is_new=is_new)
    return facts


def _check_together(facts: SheetFacts, now: datetime, *, is_new: bool) -> None:
    begins, ends = facts.begins, facts.ends
    if begins is not None and ends is not None and ends <= begins:
        raise Unclear("expires_at", "ends_first")
    if is_new and facts.can_be_new and ends is not None and ends <= facts.generated_by(now):
        raise Unclear("starts_at", "no_start")
    if facts.can_be_new and not facts.terms_version:
        raise Unclear("terms_version", "no_terms")
    if facts.redeemed_at is not None and facts.redeemed_by is None:
        raise Unclear("advertiser_id", "no_account")
    if facts.redeemed_by is not None and facts.redeemed_at is None and facts.share is None:
        raise Unclear("advertiser_id", "account_alone")
    if facts.share is not None and facts.shared_at is None and ends is not None and ends <= facts.shared_by(now):
        raise Unclear("shared_at", "no_share_date")
    if (facts.rights_stated_at or facts.contract_reference) is not None and not facts.states_rights:
        raise Unclear("rights_until", "no_rights")
    if facts.reason is not None and facts.revoked_at is None:
        raise Unclear("revoked_at", "no_revocation_date")


class _Cells:
    """The cells of one row."""

    def __init__(self, cells: Mapping[Field, str], reading: Reading, now: datetime) -> None:
        self._cells = cells
        self._reading = reading
        self._now = now

    def code_id(self) -> UUID | None:
        text = self._cells.get("code_id")
        try:
            return None if text is None else UUID(text)
        except ValueError:
            raise Unclear("code_id", "not_a_code_id") from None

    def secret(self, *, needed: bool) -> Sealed | None:
        text = self._cells.get("secret")
        if text is None:
            if needed:
                raise Unclear("secret", "no_code")
            return None
        try:
            return Sealed(recorded_secret(text))
        except Unusable as error:
            raise Unclear("secret", error.reason, str(error)) from None

    def video(self) -> str:
        text = self._cells.get("video_id")
        if text is None:
            raise Unclear("video_id", "no_video")
        # Of a code that is known, the video is only compared.
        known = "code_id" in self._cells and "secret" not in self._cells
        try:
            return video_id(text, self._reading.video_ids, exact=known)
        except Unusable as error:
            sentence = _ROUNDED if error.reason == "rounded_by_spreadsheet" else str(error)
            raise Unclear("video_id", error.reason, sentence) from None

    def creator(self) -> str:
        text, linked = self._cells.get("creator_id"), creator_of_link(self._cells["video_id"])
        if text is None:
            if linked is None:
                raise Unclear("creator_id", "no_creator")
            return linked
        try:
            creator_id = shown_creator_id(text)
        except Unusable as error:
            raise Unclear("creator_id", error.reason, str(error)) from None
        if linked is not None and linked != creator_name(creator_id):
            raise Unclear("creator_id", "link_names_other")
        return creator_id

    def permission(self) -> bool:
        text = self._cells.get("permission")
        if text is None:
            return self._reading.permission
        if not self.is_yes("permission"):
            raise Unclear("permission", "permission_off")
        return True

    def is_yes(self, field: Field) -> bool:
        text = self._cells[field].removesuffix(_AS_PICTURE).casefold()
        if text not in _YES | _NO:
            raise Unclear(field, "not_yes_or_no")
        return text in _YES

    def platforms(self) -> tuple[str, ...] | None:
        text = self._cells.get("platforms")
        if text is None:
            return None
        names = sorted(
            {name for name in re.split(r"[\s,;/+&]+", unicodedata.normalize("NFKC", text).casefold()) if name}
        )
        if not 1 <= len(names) <= MAX_PLATFORMS or not all(re.fullmatch(PLATFORM_PATTERN, name) for name in names):
            raise Unclear("platforms", "not_platforms")
        return tuple(names)

    def id(self, field: Field) -> str | None:
        text = self._cells.get(field)
        if text is not None and re.fullmatch(ID_PATTERN, text) is None:
            raise Unclear(field, "not_an_id")
        return text

    def share(self) -> Share | None:
        brand_id = self.id("brand_id")
        if brand_id is None:
            return None
        channel = self._cells.get("channel", "other").casefold()
        if channel not in _CHANNELS:
            raise Unclear("channel", "not_a_channel")
        redeemed = "redeemed_at" in self._cells
        return Share(brand_id, _CHANNELS[channel], None if redeemed else self.id("advertiser_id"))

    def text(self, field: Field, most: int) -> str | None:
        text = self._cells.get(field)
        if text is None:
            return None
        if len(text) > most:
            raise Unclear(field, "too_long")
        if contains_secret(text):
            raise Unclear(field, "contains_secret", SENTENCES["contains_secret"])
        return " ".join(text.split())

    def sealed(self, field: Field) -> Sealed | None:
        text = self._cells.get(field)
        if text is not None and len(text) > MAX_TEXT_CHARACTERS:
            raise Unclear(field, "too_long")
        return None if text is None else Sealed(text)

    def length(self) -> timedelta | None:
        text = self._cells.get("days")
        if text is None:
            text = self._cells.get("expires_at", "")
            found = _LENGTH.fullmatch(text)
            if found is None or found["unit"] is None:
                return self._reading.length
        found = _LENGTH.fullmatch(text)
        if found is None or not 1 <= int(found["days"]) <= MAX_DAYS:
            raise Unclear("days", "not_a_length")
        return timedelta(days=int(found["days"]))

    def end(self) -> StatedTime | None:
        found = _LENGTH.fullmatch(self._cells.get("expires_at", ""))
        # Some write `30 days` there.
        return None if found is not None and found["unit"] is not None else self.time("expires_at")

    def time(self, field: Field) -> StatedTime | None:
        text = self._cells.get(field)
        if text is None:
            return None
        stated = stated_time(text, self._reading.dates, self._reading.zone)
        if isinstance(stated, str):
            raise Unclear(field, stated)
        return stated

    def past(self, field: Field) -> StatedTime | None:
        stated = self.time(field)
        if stated is not None and stated.first > self._now:
            raise Unclear(field, "in_the_future")
        return stated


_ROUNDED: Final = "A spreadsheet rounded this number to 15 digits. Put the link of the post, or the id as text."


def stated_time(text: str, dates: DateOrder | None, zone: tzinfo) -> StatedTime | Literal["date_order", "not_a_day"]:
    """Return a time as a cell has it, in one of the ways in which people and programs write it; or why not."""
    try:
        if re.search(r"[0-9](?:Z|[+-][0-9]{2}:[0-9]{2})\Z", text, re.IGNORECASE):
            exact = moment(text)
            return StatedTime(exact, exact)
        serial = _SERIAL.fullmatch(text)
        if serial is not None:
            at = _SERIAL_EPOCH + timedelta(days=float(text))
            return _within(at.replace(microsecond=0), zone, day=not (serial["part"] or "").strip("0"))
        found = _dated(text, dates)
        if isinstance(found, tuple):
            day, clock = found
            return _within(datetime.combine(day, clock or time()), zone, day=clock is None)
    except (ValueError, OverflowError):
        return "not_a_day"
    return found or "not_a_day"


def _dated(text: str, dates: DateOrder | None) -> tuple[date, time | None] | Literal["date_order"] | None:
    """Return the day, and the time if there is one."""
    found = _YEAR_FIRST.fullmatch(text)
    if found is not None:
        return date(int(found["year"]), int(found["month"]), int(found["day"])), _clock(found)
    found = _YEAR_LAST.fullmatch(text)
    if found is not None:
        first, second = int(found["a"]), int(found["b"])
        order = dates
        if found["by"] == "." or (dates is None and first > _LAST_MONTH) or first == second:
            order = "dmy"  # with dots, the day comes first everywhere
        elif dates is None and second > _LAST_MONTH:
            order = "mdy"
        if order is None:
            return "date_order"
        day, month = (first, second) if order == "dmy" else (second, first)
        return date(int(found["year"]), month, day), _clock(found)
    found = _MONTH_FIRST.fullmatch(text) or _DAY_FIRST.fullmatch(text)
    if found is None:
        return None
    name = found["name"].casefold()
    month_named = _MONTHS.get(name[:4]) or _MONTHS.get(name[:3])
    return None if month_named is None else (date(int(found["year"]), month_named, int(found["day"])), _clock(found))


def _clock(found: re.Match[str]) -> time | None:
    return None if found["h"] is None else time(int(found["h"]), int(found["m"]), int(found["s"] or 0))


def _within(local: datetime, zone: tzinfo, *, day: bool) -> StatedTime:
    """Return a local time, or the whole day, in UTC.

    Raises:
        ValueError: its year is none that a ledger has.

    """
    if not FIRST_YEAR <= local.year <= LAST_YEAR:
        raise ValueError
    first = local.replace(tzinfo=zone).astimezone(UTC)
    if not day:
        return StatedTime(first, first)
    return StatedTime(first, (local + timedelta(days=1)).replace(tzinfo=zone).astimezone(UTC))
