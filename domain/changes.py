"""Changes of each event: the values before and after it, with the field names of the API.

Changes are computed in the order of recording. What an event changed when it was recorded does not change later, even
if something earlier is recorded afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from domain.code import Code, let_grow
from domain.rights import UsageRights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from domain.creator import Creator
    from domain.recorded import RecordedEvent

_JUST_BEFORE: Final = timedelta(microseconds=1)
# Numbers of things that also name other brands and accounts.
COUNTS: Final = frozenset({"shares", "redemptions", "campaigns_running"})


@dataclass(frozen=True, slots=True)
class Change:
    """One value before and after an event. None means that there was none."""

    field: str
    before: Any
    after: Any


def changes_of_code(stream: Sequence[RecordedEvent], after: int = 0) -> Iterator[list[Change]]:
    """Yield the changes of each event of a code's stream. Events that only add to the record have none.

    A window ends by the clock before anyone records it, so an expiry changed what was true at the end of the
    window. A code is superseded from a moment on, so that changed what was true at that moment.

    Args:
        stream: the stream from its first event on.
        after: the position after which events are looked at; those before only lead there.

    """
    code: Code | None = None
    for recorded in stream:
        if recorded.position <= after:
            code = recorded.event.mutate(code)
            assert code is not None  # noqa: S101 - an event always leaves an aggregate behind
            if recorded is stream[0]:
                let_grow(code)
            continue
        moment = recorded.effective_at - _JUST_BEFORE
        before = {} if code is None else _of_code(code, moment)
        field, known_at = ("", None) if code is None else code.known_since(recorded.event)
        code = recorded.event.mutate(code)
        assert code is not None  # noqa: S101 - an event always leaves an aggregate behind
        from_then_on = isinstance(recorded.event, Code.Expired | Code.Superseded)
        earlier = [] if known_at is None else [Change(field, known_at, recorded.effective_at)]
        yield _differences(before, _of_code(code, recorded.effective_at if from_then_on else moment)) + earlier
        if recorded is stream[0]:
            let_grow(code)


def changes_of_permission(stream: Sequence[RecordedEvent]) -> Iterator[list[Change]]:
    """Yield the changes of each event of a creator's stream. An unknown account counts as switched off."""
    creator: Creator | None = None
    for recorded in stream:
        before = creator is not None and creator.enabled
        creator = recorded.event.mutate(creator)
        yield _differences({"enabled": before}, {"enabled": creator is not None and creator.enabled})


def _of_code(code: Code, moment: datetime) -> dict[str, Any]:
    rights = UsageRights() if code.usage_rights is None else code.usage_rights.rights
    return {
        "state": code.state(moment),
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "rights_until": rights.until,
        "platforms": rights.platforms,
        "edits_allowed": rights.edits_allowed,
        "superseded_at": code.superseded_at,
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
        # A zero or missing value of a new code is not a change.
        if value != before.get(field) and not (field not in before and value == 0)
    ]
