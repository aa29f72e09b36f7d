"""How an event reads, as JSON and as a line of CSV, and who may see it."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field

from api.http import answer_fields as answered
from api.http.models import Answer, absent
from api.spreadsheet_cells import csv_lines
from domain.code import Code
from domain.event_types import EVENT_TYPES
from domain.values import CLOCK, Role, Sealed, Source
from infra.errors import Unavailable
from infra.eventstore.event_metadata import event_metadata, row_of, subject_of, summary_of
from infra.eventstore.event_rows import ACTOR_KEY
from infra.eventstore.serialization import UnreadableEvent, to_event
from infra.postgres.batch_loader import BatchLoader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.http.caller import Caller
    from domain.recorded import Event, RecordedEvent
    from infra.auth.key_admin import KeyAdmin
    from infra.eventstore.event_rows import Row
    from infra.proof.sealed_sizes import SealedSize


class ActorEntry(Answer):
    key_id: Annotated[str, Field(description="The id of the API key, or `clock`.")]
    key_name: Annotated[str | None, Field(description="The name of the key.")]
    role: Annotated[Role | Literal["clock"], Field(description="The role in which the key acted.")]
    subject: Annotated[str | None, Field(description="The creator or advertiser account that the key acted for.")]


class ProofStatus(Answer):
    """Whether the signed log covers an event, by its position alone. Nothing is verified here."""

    state: Annotated[
        Literal["pending", "sealed", "witnessed"],
        Field(description="Whether a signed checkpoint covers the event, and whether witnesses have cosigned it."),
    ]
    size: Annotated[
        int | None, Field(description="How many events this checkpoint covers. Null while the event is pending.")
    ]
    witnesses: Annotated[
        list[str], Field(description="The witnesses that have cosigned a checkpoint which covers the event.")
    ]


class SealedUpto(Answer):
    """How far the signed log goes, and how late it is."""

    size: Annotated[int, Field(ge=0, description="How many events the newest signed checkpoint covers.")]
    witnessed_size: Annotated[
        int, Field(ge=0, description="How many events the newest checkpoint covers that witnesses have cosigned.")
    ]
    sealed_at: Annotated[
        answered.Moment | None, Field(description="When the newest checkpoint was signed. Null before the first.")
    ]
    pending_since: Annotated[
        answered.Moment | None,
        Field(
            description="When the oldest event was recorded that no checkpoint covers yet. Null if all are covered. "
            "More than some seconds ago means that sealing is late."
        ),
    ]
    stopped: Annotated[bool, Field(description="Whether sealing has stopped and needs an operator.")]


class EventAnswer(BaseModel):
    """One event.

    Events of codes name the code, its creator and its video, events of permissions the creator, events of advertiser
    accounts the account, events of bindings the video, and events of the ledger itself none of these.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "oneOf": [
                {"required": ["code_id", "creator_id", "video_id"]},
                {"required": ["creator_id"], "properties": {"code_id": False}},
                {"properties": {"creator_id": False}},
            ]
        },
    )

    position: Annotated[int, Field(ge=1, description="The event's position in the ledger.", examples=[42])]
    event_id: Annotated[UUID, Field(description="The event.")]
    type: Annotated[str, Field(description="What happened.", examples=["CodeGenerated"])]
    type_version: Annotated[int, Field(ge=1, description="The version of the event's format.")]
    code_id: answered.CodeId = Field(default_factory=absent)
    creator_id: answered.CreatorId = Field(default_factory=absent)
    video_id: answered.VideoId = Field(default_factory=absent)
    advertiser_id: answered.AdvertiserId = Field(default_factory=absent)
    stream_version: Annotated[
        int, Field(ge=1, description="The event's number in the stream of its code, creator or advertiser account.")
    ]
    recorded_at: Annotated[answered.Moment, Field(description="When the ledger recorded it.")]
    effective_at: Annotated[answered.Moment, Field(description="When it happened in the world.")]
    actor: Annotated[ActorEntry, Field(description="Who did it.")]
    source: Annotated[Source, Field(description="Who reported it.")]
    correlation_id: Annotated[
        str | None, Field(description="The business process that it belongs to, as named by the caller.")
    ]
    causation_id: Annotated[UUID | None, Field(description="The event that caused it.")]
    summary: Annotated[str, Field(description="A sentence that says what happened.")]
    body: Annotated[dict[str, Any], Field(description="The facts, with the names that they have in requests.")] = Field(
        default_factory=absent
    )
    unreadable: Annotated[
        Literal[True],
        Field(description="True if this version of the program cannot read the event. Then there is no `body`."),
    ] = Field(default_factory=absent)
    proof: Annotated[
        ProofStatus,
        Field(description="Whether the signed log covers the event, as of when it was read. Nothing is verified here."),
    ]


# What every event of the library has; all but the stream is beside the body, under our own names.
_BESIDE: Final = frozenset({"originator_id", "originator_version", "originator_topic", "timestamp"})


_PRESENT_VERSIONS: Final = {type_: getattr(kind, "class_version", 1) for type_, kind in EVENT_TYPES.items()}
# Places in a row.
_TYPE: Final = 2
_VERSION: Final = 3
_BODY: Final = 16
# Names are kept so long where no word of a change comes, and looked up so often where one comes in between.
NAMES_FOR_S: Final = 10.0
NAMES_ATTEMPTS: Final = 5
MAX_LEDGERS: Final = 1_000
CSV_COLUMNS: Final = (
    "position",
    "event_id",
    "type",
    "type_version",
    "code_id",
    "creator_id",
    "video_id",
    "advertiser_id",
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
    "proof_state",
    "proof_size",
    "proof_witnesses",
    "body",
)
_RESTLESS: Final = "The names of API keys are changing too quickly. Try again in a moment."


class KeyNames:
    """What people call the keys of a ledger, remembered for a few seconds; a key that is new is looked up at once."""

    def __init__(self, key_admin: KeyAdmin) -> None:
        """Begin with nothing remembered."""
        self._key_admin = key_admin
        self._known: dict[int, tuple[float, Mapping[str, str | None]]] = {}
        self._changes = 0
        self._look_up: BatchLoader[None, Mapping[str, str | None]] = BatchLoader(self._looked_up)

    def forget(self) -> None:
        """Remember no names any more: keys have changed, and a person may have been erased from them."""
        self._changes += 1
        self._known.clear()

    async def of(self, ledger_id: int, key_ids: Iterable[str]) -> Mapping[str, str | None]:
        """Return names by key id, none from before the last `forget`; those of the given keys are there, if they exist.

        Raises:
            Unavailable: the database is away, or keys change faster than they can be looked up.

        """
        known = self._known.get(ledger_id)
        if known is not None and time.monotonic() - known[0] < NAMES_FOR_S and known[1].keys() >= set(key_ids):
            return known[1]
        for _ in range(NAMES_ATTEMPTS):
            changes = self._changes
            names = await self._look_up(ledger_id, None) or {}
            # What was read while a key changed may be of before.
            if changes == self._changes:
                if len(self._known) >= MAX_LEDGERS:
                    self._known.clear()
                self._known[ledger_id] = (time.monotonic(), names)
                return names
        raise Unavailable(_RESTLESS)

    async def _looked_up(self, ledger_id: int, _: Sequence[None]) -> dict[None, Mapping[str, str | None]]:
        return {None: await self._key_admin.names(ledger_id)}


async def names_of(caller: Caller, recorded: Sequence[RecordedEvent]) -> Mapping[str, str | None]:
    """Return the names of the keys that recorded these events."""
    key_ids = {r.actor.key_id for r in recorded} - {CLOCK.key_id}
    names: KeyNames = caller.request.app.state.key_names
    return await names.of(caller.ledger_id, key_ids) if key_ids else {}


async def names_in(names: KeyNames, ledger_id: int, rows: Iterable[Row]) -> Mapping[str, str | None]:
    """Return the names of the keys that recorded what these rows hold."""
    keys = {row[ACTOR_KEY] for row in rows} - {None}
    return await names.of(ledger_id, {str(key) for key in keys}) if keys else {}


async def unsealed_notes(caller: Caller, recorded: Sequence[RecordedEvent]) -> dict[int, dict[str, str] | None]:
    """Return the text of notes by position: what was sealed for the reader of a code's history, never the secret.

    None for a note of a creator who was erased.
    """
    noted = [
        r
        for r in recorded
        if isinstance(r.event, Code.NoteAdded)
        or (isinstance(r.event, Code.Shared) and r.event.note_fingerprint)
        or (isinstance(r.event, Code.RightsStated) and r.event.contract_fingerprint)
    ]
    if not noted:
        return {}
    return {
        position: None if fields is None else {name: str(text) for name, text in fields.items() if name != "secret"}
        for position, fields in (await caller.services.aggregates.unsealed(caller.ledger_id, noted)).items()
    }


def event_content(
    recorded: RecordedEvent, names: Mapping[str, str | None], notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return an event as it is read; `notes` are texts for those who may read them."""
    body = _body(recorded.event) | dict(notes or {})
    return _content(row_of(recorded), names, recorded.event, recorded.actor.key_id, body)


def row_content(row: Row, names: Mapping[str, str | None]) -> dict[str, Any]:
    """Return an event as it is read, from its row: to the byte what `event_content` returns, in a third of the time."""
    event = row_event(row)
    key = row[ACTOR_KEY]
    # What is stored in clear is what is shown of it, as long as the format is the first and the present one.
    body = orjson.Fragment(row[_BODY]) if _as_stored(row) else _body(event)
    return _content(row, names, event, CLOCK.key_id if key is None else _text(key), body)


def row_event(row: Row) -> Event:
    """Return the event of a row."""
    return to_event(row[_TYPE], row[_VERSION], row[4], row[5], row[7], row[_BODY])


def _as_stored(row: Row) -> bool:
    return row[_VERSION] == 1 and _PRESENT_VERSIONS.get(row[_TYPE]) == 1


def _content(row: Row, names: Mapping[str, str | None], event: Event, key_id: str, body: Any) -> dict[str, Any]:
    subject = subject_of(event, row[4], row[14], row[15])
    content = event_metadata(row, event, subject, key_id)
    content["actor"]["key_name"] = names.get(key_id)
    content["summary"] = summary_of(event)
    if isinstance(event, UnreadableEvent):
        content["unreadable"] = True
    else:
        content["body"] = body
    return content


def _body(event: Event) -> dict[str, Any]:
    """Return the facts of an event that may be shown: all that is not sealed, and not beside the body already."""
    return {
        name: value
        for name, value in vars(event).items()
        if name not in _BESIDE and value is not None and not isinstance(value, Sealed)
    }


@lru_cache(maxsize=10_000)
def _text(key: UUID) -> str:
    return str(key)


def visible_to(caller: Caller, recorded: RecordedEvent) -> bool:
    """Return whether the caller may read an event of a code it may read: a brand not what names only another."""
    if caller.role != "brand":
        return True
    brand_id, advertiser_id = (getattr(recorded.event, name, None) for name in ("brand_id", "advertiser_id"))
    return (brand_id is None and advertiser_id is None) or caller.is_party_to((brand_id,), (advertiser_id,))


def with_proof(contents: list[dict[str, Any]], sealed: SealedSize) -> list[dict[str, Any]]:
    """Say of each event whether the signed log covers it."""
    for content in contents:
        content["proof"] = sealed.status(content["position"])
    return contents


def ndjson(contents: Iterable[dict[str, Any]]) -> bytes:
    """Return one event a line."""
    return b"".join(
        [orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE) for content in contents]
    )


def csv_text(contents: Iterable[dict[str, Any]]) -> bytes:
    """Return one event a line, under a head that `csv_head` gives."""
    return csv_lines(
        [
            *(content.get(column) for column in CSV_COLUMNS[:11]),
            *(content["actor"][column] for column in ("key_id", "key_name", "role", "subject")),
            *(content[column] for column in CSV_COLUMNS[15:19]),
            *(content["proof"][name] for name in ("state", "size")),
            " ".join(content["proof"]["witnesses"]),
            content.get("body"),
        ]
        for content in contents
    )


def csv_head() -> bytes:
    """Return the names of the columns, as a line."""
    return csv_lines([CSV_COLUMNS])
