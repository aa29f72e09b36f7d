"""Dossiers: everything about one creator, code, video, brand, advertiser account or API key, in one answer or file.

A dossier is what the lists, histories, the trail and the access log say of one thing, each read as the caller may read
it. A creator's own key gets the creator's dossier: what a person may ask for who is spoken of in the ledger.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api import list_exports
from api.api_keys import key_content
from api.code_answer import code_content
from api.codes import stream_of, subject_of_code
from api.dossier_file import PAGE_ENTRIES, Dossier, Kind, Section
from api.event_content import event_content, names_of, unsealed_notes, visible_to, with_proof
from api.event_search import SearchRange, index_stopped, search_events
from api.histories import events_with_changes, visible_changes
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import wait_for_log
from api.http.caller import ACTS_FOR_ALL, Caller, allow
from api.http.media_types import NDJSON
from api.http.models import Answer
from api.http.query_params import AtLeast, LongLimit, QueryModel
from api.http.route import Operation, Route
from api.query_language import ParsedQuery
from domain.changes import changes_of_permission
from domain.code import replay_code
from domain.errors import Unknown
from domain.values import Role
from infra.auth.access_log import NOTHING, AccessSubject
from infra.eventstore.event_rows import POSITION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from api.list_exports import ListSource
    from domain.changes import Change
    from domain.recorded import RecordedEvent
    from projections.index_scan import Field as IndexField

# Who may read the whole access log.
_READS_ACCESSES: Final[frozenset[Role]] = ACTS_FOR_ALL | {"auditor"}
# What a creator sees of an access: that somebody looked, in which role and at what; not who, nor what they searched.
_SHOWN_TO_CREATORS: Final = ("at", "route", "format", "reads", "rows", "complete", "code_id", "video_id")
_PERMISSION_OF_OTHERS: Final = "A brand’s key cannot read a creator’s permission."
_ACCESSES_OF_OTHERS: Final = "A brand’s key cannot read who else looked."
_NOT_BY_PARTY: Final = {"accesses": "The access log names creators, codes and videos, but no brands and accounts."}
# A search for what is rare looks through so many pages' worth at a time.
_BUDGET: Final = 4.0
_EVERY_LIST: Final = (list_exports.CODES, list_exports.SHARES, list_exports.REDEMPTIONS, list_exports.CAMPAIGNS)
_OF_A_CODE: Final = _EVERY_LIST[1:]
_OF_A_BRAND: Final = _EVERY_LIST[:2]


class DossierQuery(QueryModel):
    format: Annotated[
        Literal["json", "ndjson"],
        Field(
            description="`json`: at most `limit` entries of each section. `ndjson`: all of it as a file, one JSON "
            "object a line, which ends with a trailer."
        ),
    ] = "json"
    limit: Annotated[LongLimit, Field(description="The maximum number of entries of a section, in JSON.")] = 100
    at_least: AtLeast = None


class LeftOut(Answer):
    section: Annotated[str, Field(description="The section.", examples=["accesses"])]
    why: Annotated[str, Field(description="Why this key does not get it.")]


class DossierSection(Answer):
    name: Annotated[
        str,
        Field(
            description="`permission`, `code`, `key`, `codes`, `shares`, `redemptions`, `campaigns`, `events` or "
            "`accesses`.",
            examples=["codes"],
        ),
    ]
    complete: Annotated[bool, Field(description="Whether these are all entries. If not, take the NDJSON.")]
    entries: Annotated[
        list[dict[str, Any]],
        Field(description="As the list of that name has them. Events have their changes, and notes that can be read."),
    ]


class DossierAnswer(Answer):
    kind: Annotated[Kind, Field(description="What it is about.")]
    id: Annotated[str, Field(description="The id of what it is about.", examples=["ana.creates"])]
    ledger: Annotated[str, Field(description="The ledger.", examples=["main"])]
    log_id: Annotated[UUID, Field(description="The id of the ledger’s log.")]
    history: Annotated[UUID, Field(description="The history of the log.")]
    position: Annotated[int, Field(ge=0, description="What was recorded up to this position is in it.", examples=[42])]
    made_at: Annotated[answered.Moment, Field(description="When it was made.")]
    made_for: Annotated[Role, Field(description="The role of the key that it was made for.")]
    left_out: Annotated[list[LeftOut], Field(description="What this key may not read.")]
    evidence: Annotated[
        dict[str, Any] | None,
        Field(
            description="The body with which `POST /v1/evidence` returns the proofs. Null if there is no such bundle."
        ),
    ]
    complete: Annotated[bool, Field(description="Whether every section is complete.")]
    sections: Annotated[list[DossierSection], Field(description="The sections, in a fixed order.")]


router = APIRouter(route_class=Route, tags=["Audit"])
_OPERATION: Final = Operation(
    large=True, trace="recorded", answer_headers=("Ledger-Position",), other_formats=(NDJSON,), streams=True
)


@router.get("/v1/dossiers/creators/{creator_id}", response_model=DossierAnswer, operation_id="readCreatorDossier")
@_OPERATION
async def creator_dossier(
    creator_id: str,
    query: Annotated[DossierQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Read everything about a creator: permission, codes, what was done with them, all events, and who looked.

    It is recorded in the access log as one read, before it is answered. A creator's key gets the dossier of its own
    creator: of accesses it shows when, what and by which route, and not by whom.
    """
    creator_id = headers.path_creator(creator_id)
    caller.act_for_creator(creator_id)
    position = await _begun(caller, query)
    stream = await caller.services.aggregates.creator_stream(caller.ledger_id, creator_id)
    subject = AccessSubject(creator_id=creator_id)
    shown = await caller.services.aggregates.shown_creators(caller.ledger_id, {creator_id})
    sections = [
        Section("permission", _changes(caller, stream, list(changes_of_permission(stream)))),
        *_lists(caller, position, creator_id=creator_id),
        Section("events", _events(caller, position, "creator_id", creator_id)),
        Section("accesses", _accesses(caller, creator_id=creator_id)),
    ]
    evidence = {"kind": "creator", "creator_id": creator_id} if stream else None
    return await _answer(caller, query, "creator", shown.pop(), subject, position, sections, evidence=evidence)


@router.get("/v1/dossiers/codes/{code_id}", response_model=DossierAnswer, operation_id="readCodeDossier")
@_OPERATION
async def code_dossier(
    code_id: str,
    query: Annotated[DossierQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read everything about a code: its state, the permission it rests on, its events and notes, and who looked.

    A brand's key reads what concerns it, as in the code's history.
    """
    found = headers.path_uuid(code_id, "code")
    position = await _begun(caller, query)
    stream = await stream_of(caller, found)
    code = replay_code(stream)
    state = code_content(code, caller, now=caller.services.now(), position=stream[-1].position)
    left_out: dict[str, str] = {}
    sections = [Section("code", _one(state))]
    if caller.role == "brand":
        left_out = {"permission": _PERMISSION_OF_OTHERS, "accesses": _ACCESSES_OF_OTHERS}
    else:
        permission = await caller.services.aggregates.creator_stream(caller.ledger_id, code.creator_id)
        sections.append(Section("permission", _changes(caller, permission, list(changes_of_permission(permission)))))
    visible = visible_changes(caller, stream)
    sections += [
        *_lists(caller, position, _OF_A_CODE, code_id=found),
        Section("events", _changes(caller, [one for one, _ in visible], [changes for _, changes in visible])),
    ]
    if caller.role != "brand":
        sections.append(Section("accesses", _accesses(caller, code_id=found)))
    evidence = {"kind": "code", "code_id": str(found)}
    return await _answer(
        caller, query, "code", str(found), subject_of_code(code), position, sections, left_out, evidence
    )


@router.get("/v1/dossiers/videos/{video_id}", response_model=DossierAnswer, operation_id="readVideoDossier")
@_OPERATION
async def video_dossier(
    video_id: str,
    query: Annotated[DossierQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """Read everything about a video: the codes of all creators, what was done with them, all events, who looked."""
    video_id = headers.path_id(video_id)
    position = await _begun(caller, query)
    sections = [
        *_lists(caller, position, video_id=video_id),
        Section("events", _events(caller, position, "video_id", video_id)),
        Section("accesses", _accesses(caller, video_id=video_id)),
    ]
    return await _answer(caller, query, "video", video_id, AccessSubject(video_id=video_id), position, sections)


@router.get("/v1/dossiers/brands/{brand_id}", response_model=DossierAnswer, operation_id="readBrandDossier")
@_OPERATION
async def brand_dossier(
    brand_id: str,
    query: Annotated[DossierQuery, Query()],
    caller: Annotated[Caller, allow("brand", "operator", "auditor", "admin")],
) -> Response:
    """Read all that a brand was given: the codes that were shared with it, its shares, and the events that name it.

    What its advertiser accounts did is in the dossiers of these accounts.
    """
    brand_id = headers.path_id(brand_id)
    caller.check_filters(creator_id=None, brand_id=brand_id, advertiser_id=None)
    position = await _begun(caller, query)
    sections = [
        *_lists(caller, position, _OF_A_BRAND, brand_id=brand_id),
        Section("events", _events(caller, position, "brand_id", brand_id)),
    ]
    return await _answer(caller, query, "brand", brand_id, NOTHING, position, sections, _NOT_BY_PARTY)


@router.get(
    "/v1/dossiers/advertisers/{advertiser_id}", response_model=DossierAnswer, operation_id="readAdvertiserDossier"
)
@_OPERATION
async def advertiser_dossier(
    advertiser_id: str,
    query: Annotated[DossierQuery, Query()],
    caller: Annotated[Caller, allow("brand", "operator", "auditor", "admin")],
) -> Response:
    """Read everything about an advertiser account: whose it is, its codes, redemptions, refusals, campaigns, events."""
    advertiser_id = headers.path_id(advertiser_id)
    caller.check_filters(creator_id=None, brand_id=None, advertiser_id=advertiser_id)
    position = await _begun(caller, query)
    sections = [
        *_lists(caller, position, advertiser_id=advertiser_id),
        Section("events", _events(caller, position, "advertiser_id", advertiser_id)),
    ]
    return await _answer(caller, query, "advertiser", advertiser_id, NOTHING, position, sections, _NOT_BY_PARTY)


@router.get("/v1/dossiers/keys/{key_id}", response_model=DossierAnswer, operation_id="readKeyDossier")
@_OPERATION
async def key_dossier(
    key_id: str, query: Annotated[DossierQuery, Query()], caller: Annotated[Caller, allow("auditor", "admin")]
) -> Response:
    """Read everything that an API key did: the events that it recorded, what it read, and what it was denied."""
    wanted = headers.path_uuid(key_id, "key")
    keys = await caller.services.key_admin.keys(caller.ledger_id)
    key = next((one for one in keys if one.key_id == wanted), None)
    if key is None:
        raise Unknown("key")
    position = await _begun(caller, query)
    content = key_content(key) | ({} if caller.role == "admin" else {"subject": None})
    sections = [
        Section("key", _one(content)),
        Section("events", _events(caller, position, "actor", str(wanted))),
        Section("accesses", _accesses(caller, actor=str(wanted))),
    ]
    return await _answer(caller, query, "key", str(wanted), NOTHING, position, sections)


async def _begun(caller: Caller, query: DossierQuery) -> int:
    """Return the last position of the ledger: what was recorded by then is in the dossier."""
    caller.history.require_whole()
    await wait_for_log(caller, query.at_least)
    return await caller.services.events.head(caller.ledger_id)


async def _answer(
    caller: Caller,
    query: DossierQuery,
    kind: Kind,
    id_: str,
    subject: AccessSubject,
    position: int,
    sections: Sequence[Section],
    left_out: Mapping[str, str] | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> Response:
    now = caller.services.now()
    dossier = Dossier(caller, kind, id_, subject, position, now, sections, left_out or {}, evidence)
    return await (dossier.file() if query.format == "ndjson" else dossier.answer(query.limit))


async def _one(entry: Mapping[str, Any]) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    yield [entry]


async def _changes(
    caller: Caller, stream: Sequence[RecordedEvent], changes: Sequence[Sequence[Change]]
) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    """Yield events of a stream with what each changed."""
    changed = {recorded.position: one for recorded, one in zip(stream, changes, strict=True)}
    sealed = await caller.request.app.state.sealed_sizes.of(caller.ledger_id)
    for first in range(0, len(stream), PAGE_ENTRIES):
        shown = stream[first : first + PAGE_ENTRIES]
        notes = caller.role != "brand"
        yield with_proof(await events_with_changes(caller, shown, changed, notes=notes), sealed)


def _lists(caller: Caller, position: int, sources: Sequence[ListSource] = _EVERY_LIST, **filters: Any) -> list[Section]:
    return [Section(source.name, _listed(caller, source, at_least=position, **filters)) for source in sources]


async def _listed(caller: Caller, source: ListSource, **asked: Any) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    """Yield the pages of a list, as its route answers them."""
    cursor: str | None = None
    while True:
        page = await source.page(caller, asked, cursor, PAGE_ENTRIES)
        if page.entries:
            yield page.entries
        cursor = page.next
        if cursor is None:
            return


async def _events(
    caller: Caller, position: int, field: IndexField, value: str
) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    """Yield the events up to a position that name something, oldest first, with the notes that the caller may read."""
    services = caller.services
    query = ParsedQuery().among(field, (value,))
    sealed = await caller.request.app.state.sealed_sizes.of(caller.ledger_id)
    low, whole = 0, caller.role != "brand"
    while True:
        within = SearchRange(low, position + 1, at_least=position, budget=_BUDGET)
        found = await search_events(services.views, caller.ledger_id, query, within, PAGE_ENTRIES)
        if found.cut_off:
            raise index_stopped(found.upto or 0)
        recorded = await services.events.at_positions(caller.ledger_id, [row[POSITION] for row in found.rows])
        shown = [one for one in recorded if whole or (one.video_id is not None and visible_to(caller, one))]
        if shown:
            names, texts = await asyncio.gather(names_of(caller, shown), unsealed_notes(caller, shown if whole else ()))
            yield with_proof([event_content(one, names, texts.get(one.position)) for one in shown], sealed)
        if found.stopped_at is not None:
            low = found.stopped_at
        elif len(found.rows) == PAGE_ENTRIES:
            low = found.rows[-1][POSITION]
        else:
            return


async def _accesses(caller: Caller, **asked: Any) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    """Yield who looked, newest first; to a creator, without who it was and what was refused."""
    if caller.role in _READS_ACCESSES:
        async for page in _listed(caller, list_exports.ACCESSES, **asked):
            yield page
        return
    async for page in _listed(caller, list_exports.ACCESSES, refused=False, **asked):
        yield [{name: entry[name] for name in _SHOWN_TO_CREATORS} | {"role": entry["actor"]["role"]} for entry in page]
