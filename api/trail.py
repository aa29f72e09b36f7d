"""How an event reads, as JSON and as a line of CSV, and who may see it."""

from __future__ import annotations

import csv
import io
import time
from typing import TYPE_CHECKING, Any, Final

import orjson

from domain.code import Code
from domain.creator import Creator
from domain.summaries import summary
from domain.values import CLOCK, Sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.auth import Caller
    from domain.recorded import Recorded
    from infra.identity import Identity

# What every event of the library bears; all but the stream stands beside the body, under our own names.
_BESIDE: Final = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})

NAMES_FOR_S: Final = 10.0
MAX_LEDGERS: Final = 1_000

CSV_COLUMNS: Final = (
    "position",
    "event_id",
    "type",
    "type_version",
    "code_id",
    "creator_id",
    "stream_version",
    "recorded_at",
    "effective_at",
    "actor_key_id",
    "actor_key_name",
    "actor_role",
    "actor_subject",
    "source",
    "correlation_id",
    "causation_id",
    "summary",
    "body",
)
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


class KeyNames:
    """What people call the keys of a ledger, remembered for a few seconds; a key that is new is looked up at once."""

    def __init__(self, identity: Identity) -> None:
        """Begin with nothing remembered."""
        self._identity = identity
        self._known: dict[int, tuple[float, Mapping[str, str | None]]] = {}

    async def of(self, ledger_id: int, key_ids: Iterable[str]) -> Mapping[str, str | None]:
        """Return names by key id; those of the given keys are all there, if they exist."""
        known = self._known.get(ledger_id)
        if known is not None and time.monotonic() - known[0] < NAMES_FOR_S and known[1].keys() >= set(key_ids):
            return known[1]
        if len(self._known) >= MAX_LEDGERS:
            self._known.clear()
        names = await self._identity.names(ledger_id)
        self._known[ledger_id] = (time.monotonic(), names)
        return names


async def names_of(caller: Caller, recorded: Sequence[Recorded]) -> Mapping[str, str | None]:
    """Return the names of the keys that recorded these events."""
    key_ids = {r.actor.key_id for r in recorded} - {CLOCK.key_id}
    names: KeyNames = caller.request.app.state.key_names
    return await names.of(caller.ledger_id, key_ids) if key_ids else {}


async def unsealed_notes(caller: Caller, recorded: Sequence[Recorded]) -> dict[int, dict[str, str]]:
    """Return the text of notes by position: what was sealed for the reader of a code's history, never the secret."""
    noted = [
        r
        for r in recorded
        if isinstance(r.event, Code.NoteAdded) or (isinstance(r.event, Code.Shared) and r.event.note_fingerprint)
    ]
    if not noted:
        return {}
    return {
        position: {name: str(text) for name, text in fields.items() if name != "secret"}
        for position, fields in (await caller.services.ledgers.unsealed(caller.ledger_id, noted)).items()
    }


def event_content(
    recorded: Recorded, names: Mapping[str, str | None], notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return an event as it is read; `notes` are texts for whoever may read them."""
    event, actor = recorded.event, recorded.actor
    about = (
        {"creator_id": event.creator_id}
        if isinstance(event, Creator.Enabled | Creator.Disabled)
        else {"code_id": recorded.stream_id}
    )
    return {
        "position": recorded.position,
        "event_id": recorded.event_id,
        "type": recorded.type,
        "type_version": recorded.type_version,
        **about,
        "stream_version": recorded.stream_version,
        "recorded_at": recorded.recorded_at,
        "effective_at": recorded.effective_at,
        "actor": {
            "key_id": actor.key_id,
            "key_name": names.get(actor.key_id),
            "role": actor.role,
            "subject": actor.subject,
        },
        "source": recorded.source,
        "correlation_id": recorded.correlation_id,
        "causation_id": recorded.causation_id,
        "summary": summary(event),
        "body": {
            name: value
            for name, value in vars(event).items()
            if name not in _BESIDE and value is not None and not isinstance(value, Sealed)
        }
        | dict(notes or {}),
    }


def shown_to(caller: Caller, recorded: Recorded) -> bool:
    """Tell whether the caller may read an event of a code it may read: a brand not what names another alone."""
    if caller.role != "brand":
        return True
    brand_id, advertiser_id = (getattr(recorded.event, name, None) for name in ("brand_id", "advertiser_id"))
    return (brand_id is None and advertiser_id is None) or caller.names_us((brand_id,), (advertiser_id,))


def ndjson(contents: Iterable[dict[str, Any]]) -> bytes:
    """Return one event a line."""
    return b"".join(orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE) for content in contents)


def csv_text(contents: Iterable[dict[str, Any]]) -> str:
    """Return a table with a head; no cell of it is a formula to a spreadsheet."""
    table = io.StringIO(newline="")
    lines = csv.writer(table)
    lines.writerow(CSV_COLUMNS)
    for content in contents:
        cells = content | {f"actor_{name}": value for name, value in content["actor"].items()}
        cells["body"] = _json(content["body"])
        lines.writerow([_cell(cells.get(column)) for column in CSV_COLUMNS])
    return table.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    # As in JSON, so that a time reads the same in both; what JSON quotes is text already.
    text = value if isinstance(value, str) else _json(value).strip('"')
    return f"'{text}" if text.startswith(_FORMULA) else text


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
