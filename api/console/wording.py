"""How values read on a page: times, spans of time, numbers, and text that somebody wrote."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

from markupsafe import Markup, escape

# What nobody sees, and what turns text around: control and format characters, separators of lines, and the fillers that
# look like nothing (Unicode 16, categories Cc, Cf, Zl, Zp, and a few letters).
_FILLERS: Final = frozenset("\u115f\u1160\u3164\uffa0\u034f\u2800")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co"})
# As browsers send a date and a time that have no zone: in UTC, as their field says.
_WITHOUT_ZONE: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d(?:\.\d+)?)?")
_WORD: Final = re.compile(r"[_-]+|(?<=[a-z])(?=[A-Z])")
# A text, a sign, or a word such as a number.
_PART: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')
_MONTHS: Final = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Sums of markup and text, which take a fifth of the time of `Markup.format`.
_TIME: Final = Markup('<time datetime="')
_SAID: Final = Markup('">')
_SAID_EXACTLY: Final = Markup('" data-exact>')
_TIME_OVER: Final = Markup("</time>")
_ISOLATED: Final = Markup("<bdi>")
_ISOLATED_OVER: Final = Markup("</bdi>")
# Text is shown so far; the rest is counted.
MAX_SHOWN_CHARACTERS: Final = 2_000


def moment(value: str | datetime) -> datetime:
    """Return a time of an answer, in UTC."""
    read = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return read.astimezone(UTC)


def time(value: str | datetime | None) -> Markup:
    """Return a time to the minute, labelled UTC."""
    if value is None:
        return Markup("–")
    if type(value) is str and value[19:20] in {"Z", "."} and value.endswith("Z"):
        # As answers have it: what is shown is cut out of it, in a quarter of the time.
        said = f"{int(value[8:10])} {_MONTHS[int(value[5:7])]} {value[:4]}, {value[11:16]} UTC"
        return _TIME + value + _SAID + said + _TIME_OVER
    at = moment(value)
    return _TIME + stated(at) + _SAID + f"{at.day} {at:%b %Y, %H:%M} UTC" + _TIME_OVER


def exact(value: str | datetime | None) -> Markup:
    """Return a time with all that is known of it, labelled UTC."""
    if value is None:
        return Markup("–")
    at = moment(value)
    fraction = f".{at.microsecond:06}".rstrip("0") if at.microsecond else ""
    return _TIME + stated(at) + _SAID_EXACTLY + f"{at.day} {at:%b %Y, %H:%M:%S}{fraction} UTC" + _TIME_OVER


def stated(value: str | datetime) -> str:
    """Return a time as addresses have it."""
    return moment(value).isoformat().replace("+00:00", "Z")


def in_utc(text: str) -> str:
    """Return a time of a form or an address as the API takes it; what is no time is returned as it is."""
    text = text.strip()
    found = _WITHOUT_ZONE.fullmatch(text)
    # Browsers leave out seconds that are zero.
    return text if found is None else f"{found[1]}{found[2] or ':00'}Z"


def field(value: str | None) -> str:
    """Return a time as the field for one has it, in UTC; nothing for what is no time."""
    try:
        # Digits alone are a position, though Python reads some as a date.
        return moment(in_utc(value)).strftime("%Y-%m-%dT%H:%M:%S") if value and not value.isdigit() else ""
    except ValueError:
        return ""


def span(value: timedelta) -> str:
    """Return a length of time in its largest unit, as people say it."""
    seconds = abs(int(value.total_seconds()))
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = seconds // length
        # Two days and more are days: "in 47 hours" makes people count.
        if count >= (2 if unit == "day" else 1):
            return f"{count:,} {unit}{'s' if count != 1 else ''}"
    return "less than a minute"


def number(value: int) -> str:
    """Return a whole number with its thousands set apart."""
    return f"{value:,}"


def words(value: str) -> str:
    """Return a name of the program's as words: `code_end` and `CodeGenerated`."""
    return _WORD.sub(" ", value).strip().capitalize()


def indented(text: str) -> str:
    """Return JSON with each value on a line of its own. No value is read, so each number stays as it was written."""
    lines, depth, empty = [""], 0, False
    for part in _PART.findall(text):
        if part in "]}":
            depth -= 1
            if not empty:
                lines.append("  " * depth)
        elif empty:
            lines.append("  " * depth)
        empty = part in "[{"
        depth += empty
        lines[-1] += ": " if part == ":" else part
        if part == ",":
            lines.append("  " * depth)
    return "\n".join(lines)


def plain(value: object, most: int = MAX_SHOWN_CHARACTERS) -> Markup:
    """Return text that somebody wrote, with each character that nobody would see, or that turns others around, named.

    It is isolated, so that it cannot change the order of what stands beside it.
    """
    text = str(value)
    kept, left = text[:most], len(text) - most
    if kept.isascii() and kept.isprintable():  # as nearly all are
        shown = escape(kept)
        if left <= 0:
            return _ISOLATED + shown + _ISOLATED_OVER
    else:
        shown = Markup().join(_named(c) if _is_hidden(c) else escape(c) for c in kept)
    more = Markup(' <span class="note">… and {} more characters</span>').format(number(left)) if left > 0 else ""
    return Markup("<bdi>{}</bdi>{}").format(shown, more)


def _is_hidden(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _FILLERS or unicodedata.category(character) in _INVISIBLE


def _named(character: str) -> Markup:
    name = unicodedata.name(character, "control character").lower()
    return Markup('<span class="hidden-character" title="{}">U+{:04X}</span>').format(name, ord(character))
