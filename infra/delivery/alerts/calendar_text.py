"""Calendars as RFC 5545 (iCalendar) writes them: one event for the end of each code, or of its usage rights if earlier.

An event keeps its UID for as long as its code exists, and its SEQUENCE is the code's version. So a calendar moves the
event when the code is extended, and takes it away when the code is revoked. Nothing is said that opens a code.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from domain.rights import effective_end
from infra.delivery.alerts.texts import video_link

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from projections.codes import CodeRow

# Octets of a line without its end; longer ones go on in the next line (RFC 5545, 3.1).
LINE_OCTETS: Final = 75
# How often calendars are asked to look again.
REFRESH: Final = "PT1H"
# Changes whenever what is written of a code changes, so that an ETag of an older program is none of this one.
_FORMAT: Final = 2


def etag(rows: Sequence[CodeRow], name: str, public_url: str | None) -> str:
    """Return what is the same for as long as the calendar is."""
    digest = hashlib.sha256(f"{_FORMAT}\0{name}\0{public_url}\0".encode())
    for row in rows:
        digest.update(f"{row.code_id}{row.version}{row.expires_at}{row.revoked_at}\0".encode())
    return f'"{digest.hexdigest()[:32]}"'


def calendar_text(rows: Sequence[CodeRow], name: str, log_id: UUID, public_url: str | None) -> bytes:
    """Return a calendar of the ends of codes."""
    lines = [
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//Sparkledger//Ends of Spark codes//EN",
        "CALSCALE:GREGORIAN",
        "METHOD:PUBLISH",
        f"X-WR-CALNAME:{_text(name)}",
        f"REFRESH-INTERVAL;VALUE=DURATION:{REFRESH}",
        f"X-PUBLISHED-TTL:{REFRESH}",
    ]
    for row in rows:
        lines += _event(row, log_id, public_url)
    lines.append("END:VCALENDAR")
    return b"".join(_folded(line) for line in lines)


def _event(row: CodeRow, log_id: UUID, public_url: str | None) -> Iterator[str]:
    changed_at = max(filter(None, (row.generated_at, row.extended_at, row.rights_at, row.revoked_at)))
    revoked = row.revoked_at is not None
    # The event of a revoked code is taken away from where it was.
    end = effective_end(row.expires_at, None, row.rights_until)
    yield "BEGIN:VEVENT"
    yield f"UID:{row.code_id}@{log_id}"
    yield f"DTSTAMP:{_moment(changed_at)}"
    yield f"LAST-MODIFIED:{_moment(changed_at)}"
    yield f"SEQUENCE:{row.version}"
    yield f"STATUS:{'CANCELLED' if revoked else 'CONFIRMED'}"
    yield f"DTSTART:{_moment(end.at)}"
    yield "TRANSP:TRANSPARENT"
    by_rights = end.by == "rights"
    summary = (
        f"{'Usage rights to a ' if by_rights else ''}Spark code of {row.creator_id} {'end' if by_rights else 'ends'}"
    )
    yield f"SUMMARY:{_text(f'Revoked: {summary}' if revoked else summary)}"
    said = [f"Video: {video_link(row)}", f"Ends: {end.at:%Y-%m-%d %H:%M} UTC"]
    if by_rights:
        said.append(f"The code ends later: {row.expires_at:%Y-%m-%d %H:%M} UTC")
    if public_url is not None:
        page = f"{public_url}/codes/{row.code_id}"
        said.append(f"Page: {page}")
        yield f"URL:{page}"
    yield f"DESCRIPTION:{_text(chr(10).join(said))}"
    yield "END:VEVENT"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%SZ}"


def _text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,").replace("\n", "\\n")
    return "".join(character for character in escaped if character >= " " and character != "\x7f")


def _folded(line: str) -> bytes:
    octets = line.encode()
    if len(octets) <= LINE_OCTETS:
        return octets + b"\r\n"
    parts = []
    start, room = 0, LINE_OCTETS
    while start < len(octets):
        end = min(start + room, len(octets))
        # Not within a character: those of several octets go on with 10xxxxxx.
        while end < len(octets) and octets[end] & 0xC0 == 0x80:  # noqa: PLR2004 - the bits of UTF-8
            end -= 1
        parts.append(octets[start:end])
        start, room = end, LINE_OCTETS - 1
    return b"\r\n ".join(parts) + b"\r\n"
