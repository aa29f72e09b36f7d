"""What each event changed: the values before it and after it, under the names that answers have.

Told in the order of recording: what an event changed when the ledger learned it stays what it changed, whatever is
recorded later of an earlier time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from domain.code import Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from domain.creator import Creator
    from domain.recorded import RecordedEvent

_JUST_BEFORE: Final = timedelta(microseconds=1)
# How many there are of something that names other brands and accounts too.
COUNTS: Final = frozenset({"shares", "redemptions", "campaigns_running"})


@dataclass(frozen=True, slots=True)
class Change:
    """One value before and after an event; None is "there was none"."""

    field: str
    before: Any
    after: Any


def changes_of_code(stream: Sequence[RecordedEvent]) -> Iterator[list[Change]]:
    """Yield for each event of a code's stream what it changed; nothing for what only adds to the record.

    A window is over by the clock before anyone records it: an expiry is what changed at the window's end.
    """
    code: Code | None = None
    for recorded in stream:
        moment = recorded.effective_at - _JUST_BEFORE
        before = {} if code is None else _of_code(code, moment)
        code = recorded.event.mutate(code)
        assert code is not None  # noqa: S101 - an event always leaves an aggregate behind
        expired = isinstance(recorded.event, Code.Expired)
        yield _differences(before, _of_code(code, recorded.effective_at if expired else moment))


def changes_of_permission(stream: Sequence[RecordedEvent]) -> Iterator[list[Change]]:
    """Yield for each event of a creator's stream what it changed; an unknown account reads as switched off."""
    creator: Creator | None = None
    for recorded in stream:
        before = creator is not None and creator.enabled
        creator = recorded.event.mutate(creator)
        yield _differences({"enabled": before}, {"enabled": creator is not None and creator.enabled})


def _of_code(code: Code, moment: datetime) -> dict[str, Any]:
    return {
        "state": code.state(moment),
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "revoked_at": code.revoked_at,
        "shares": len(code.shares),
        "redemptions": len(code.redemptions),
        "campaigns_running": len(code.running(moment)),
        "caption_sha256": code.caption_sha256,
        "creative_sha256": code.creative_sha256,
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    return [
        Change(field, before.get(field), value)
        for field, value in after.items()
        # What a new code has none of is no change.
        if value != before.get(field) and not (field not in before and value == 0)
    ]
