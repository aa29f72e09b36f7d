"""What an evidence bundle shows: which events of the signed log, and how much of each, for whom.

a code, a creator    their events, found by searching all entries, which show that there are no others; with a code
                     the events of the permission that it rests on, for those who may read them
a range              its events and, for a time, its two neighbours
the ledger           all events
a video              all events of all its codes; no tag leads to them, so of each other code its video is shown, and of
                     all other events the type
an answer            a yes rests on one code, a no on all codes of the video

A short bundle has sealed heads in the place of the entries before them. What has no heads yet, or would not be smaller,
is made with all entries, and says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from api.authorizations import about as asked_about
from api.authorizations import authorization_verdict, verdict_content
from api.evidence_bundle import Grounds, Plan, by_position, everything, of_streams, with_erasures
from api.evidence_lines import Level, moment_text
from api.http.fields import CodeIdText, CreatorId, Id, Moment, Position, VideoId
from api.http.models import Body
from api.http.problems import Problem
from domain.code import Code, replay_code
from domain.creator import Creator
from domain.errors import Unknown
from domain.heads import VIDEO_SALT, creator_key, stream_key, video_key
from domain.log_entry import ENTRY_BYTES
from domain.merkle import HASH_BYTES
from infra.crypto.envelope import LedgerKeys
from infra.eventstore.reader import EventReader
from infra.proof.evidence_log import MAX_POSITIONS, MAX_RANGE, EvidenceLog, reaching
from infra.views.reader import ViewReader
from projections import codes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from domain.recorded import RecordedEvent
    from infra.proof.evidence_log import SignedLog

Kind = Literal["answer", "code", "creator", "video", "range", "ledger"]
_FIELDS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "answer": (frozenset({"video_id", "advertiser_id"}), frozenset({"at"})),
    "code": (frozenset({"code_id"}), frozenset()),
    "creator": (frozenset({"creator_id"}), frozenset()),
    "video": (frozenset({"video_id"}), frozenset()),
    "range": (frozenset(), frozenset({"first", "last", "since", "until"})),
    "ledger": (frozenset(), frozenset()),
}
SHORT: Final = frozenset({"code", "creator", "video", "answer"})
# With more events from before the heads, each with a proof, a bundle is only short if all entries would be more bytes.
FEW_PROOFS: Final = 2_000
NO_HEADS: Final = "no heads are sealed yet that this state of the log covers."
NOT_SMALLER: Final = "with a proof for each of {count:,} events it would be larger."
NO_OF_OTHERS: Final = (
    "A bundle that proves that there is no authorization shows codes of other accounts. Ask an auditor of the ledger."
)
NOT_COVERED: Final = "The signed log does not cover this yet. Try again in a second."
# Events of a no whose times are bounded: a video has few codes.
MAX_BOUNDED: Final = 10_000
_MICROSECOND: Final = timedelta(microseconds=1)


class EvidenceRequest(Body):
    """What the evidence is about: `kind`, and the fields that belong to it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "ledger"}]})

    kind: Annotated[
        Kind,
        Field(
            description="`answer` takes video_id, advertiser_id and optionally at; `code` takes code_id; `creator` "
            "takes creator_id; `video` takes video_id; `range` takes first and last, or since and until; "
            "`ledger` takes nothing."
        ),
    ]
    video_id: Annotated[VideoId | None, Field(description="The video.")] = None
    advertiser_id: Annotated[Id | None, Field(description="The advertiser account.", examples=["adv-7001"])] = None
    at: Annotated[Moment | None, Field(description="The time at which the ad ran. Default: now.")] = None
    code_id: Annotated[CodeIdText | None, Field(description="The code.")] = None
    creator_id: Annotated[CreatorId | None, Field(description="The creator's TikTok account.")] = None
    first: Annotated[Position | None, Field(description="The first position.", examples=[1])] = None
    last: Annotated[Position | None, Field(description="The last position.", examples=[42])] = None
    since: Annotated[Moment | None, Field(description="Events recorded at this time or later.")] = None
    until: Annotated[Moment | None, Field(description="Events recorded before this time.")] = None
    short: Annotated[
        bool | None,
        Field(
            description="Of a code, a creator, a video or an answer: prove by the newest sealed heads that nothing is "
            "left out, and show only the entries since then. Such a bundle is small, and cannot be made again to the "
            "byte. If there are no such heads, or it would not be smaller, it has all entries, and its report says why."
        ),
    ] = None
    size: Annotated[
        Position | None,
        Field(
            description="The size of a checkpoint that a bundle was made as of: then this one is the same, to the "
            "byte. Default: the newest checkpoint that witnesses have cosigned, or else the newest."
        ),
    ] = None

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        needed, allowed = _FIELDS[self.kind]
        given = self.model_fields_set - {"kind", "size", "short"}
        given = {name for name in given if getattr(self, name) is not None}
        pair = given in ({"first", "last"}, {"since", "until"})
        if not needed <= given <= needed | allowed or (self.kind == "range" and not pair):
            raise PydanticCustomError("evidence_fields", "These fields do not belong to this kind of evidence.")
        if self.short and self.kind not in SHORT:
            raise PydanticCustomError(
                "evidence_short", "Only evidence of a code, a creator, a video or an answer can be short."
            )
        first, last, since, until = self.first, self.last, self.since, self.until
        if (first and last and first > last) or (since and until and since >= until):
            raise PydanticCustomError("evidence_range", "The range ends before it begins.")
        return self


@dataclass(frozen=True, slots=True)
class Viewer:
    """For whom evidence is made, and what it is read with.

    Attributes:
        role: as the bundle states it.
        may_read_code: raises if the viewer may not read a code.
        may_see: whether the viewer may see what an event of such a code says.
        may_read_creator: raises if the viewer may not read all of a creator.
        acts_for_advertiser: raises if the viewer may not ask for an advertiser account.
        sees_all: whether the viewer may read the whole ledger.
        sees_creators: whether the viewer may know by what to find all events of a creator.

    """

    ledger_id: int
    role: str
    events: EventReader
    views: ViewReader
    keys: LedgerKeys
    source: EvidenceLog
    may_read_code: Callable[[Code], None]
    may_see: Callable[[RecordedEvent], bool]
    may_read_creator: Callable[[str], None]
    acts_for_advertiser: Callable[[str], None]
    readable: Callable[[Sequence[RecordedEvent]], bool]
    sees_all: bool
    sees_creators: bool


async def plan_of(viewer: Viewer, request: EvidenceRequest, log: SignedLog, now: datetime) -> Plan:
    """Return what a bundle shows.

    Raises:
        NotAllowed: the viewer may not see this.
        Problem: there is no such thing, or the checkpoint does not cover it.
        Unknown: there is no such code.
        Unavailable: the view of codes has not read as far as the checkpoint.

    """
    match request.kind:
        case "code":
            plan = await _of_code(viewer, UUID(request.code_id), log)
        case "creator":
            plan = await _of_creator(viewer, request.creator_id or "", log)
        case "video":
            plan = await _of_video(viewer, request.video_id or "", log)
        case "answer":
            plan = await _of_answer(viewer, request, log, now)
        case _:
            return await _of_ledger(viewer, request, log, now)
    return await _shortened(viewer, plan, log) if request.short else plan


async def _of_ledger(viewer: Viewer, request: EvidenceRequest, log: SignedLog, now: datetime) -> Plan:
    if not viewer.sees_all:
        raise Problem("not_allowed", "Only operators, auditors and admins may read a whole ledger or a part of it.")
    if request.kind == "ledger":
        salt = viewer.keys.derived(VIDEO_SALT)
        whole = range(1, log.size + 1)
        return Plan({"kind": "ledger"}, whole, (1, log.size), everything, viewer.role, video_salt=salt)
    return await _of_range(viewer, request, log, now)


async def _shortened(viewer: Viewer, plan: Plan, log: SignedLog) -> Plan:
    """Return the same plan with the heads in the place of all entries before them, or with why it is not."""
    grounds = plan.grounds
    assert grounds is not None  # noqa: S101 - all of SHORT have
    heads = await viewer.source.heads(log, [stream_key(log.log_id), *grounds.keys])
    if heads is None:
        return replace(plan, not_short=NO_HEADS)
    early = [position for position in grounds.positions if position <= heads.upto]
    proof_bytes = (ENTRY_BYTES + HASH_BYTES * log.size.bit_length()) * 4 // 3  # in base64
    if len(early) > FEW_PROOFS and len(early) * proof_bytes > heads.upto * ENTRY_BYTES:
        return replace(plan, not_short=NOT_SMALLER.format(count=len(early)))
    run = (heads.upto + 1, log.size)
    if grounds.video_salt is None:
        since: Sequence[int] = [position for position in grounds.positions if position > heads.upto]
    else:
        since = range(run[0], run[1] + 1)
    heads = replace(heads, video_salt=grounds.video_salt)
    return replace(plan, wanted=[*early, *since], run=run, heads=heads)


async def _of_code(viewer: Viewer, code_id: UUID, log: SignedLog) -> Plan:
    stream = await viewer.events.stream(viewer.ledger_id, code_id) or []
    if not stream or not isinstance(stream[0].event, Code.Generated):
        raise Unknown("code")
    viewer.may_read_code(replay_code(stream))
    known = _covered(stream, log)
    about = {"kind": "code", "code_id": str(code_id)}
    plan = await _of_found(viewer, about, log, known)
    if not viewer.sees_creators:
        return plan
    # The erasure of the creator is among them.
    creator = known[0].creator_stream
    permission = await viewer.source.positions(log, [creator])
    positions = sorted({*plan.wanted, *permission})
    levels = {r.position: Level.ALL if viewer.may_see(r) else Level.ENVELOPE for r in known}
    return replace(
        plan,
        wanted=positions,
        level=by_position(levels | dict.fromkeys(permission, Level.ALL)),
        grounds=Grounds([stream_key(code_id), stream_key(creator)], positions),
    )


async def _of_creator(viewer: Viewer, creator_id: str, log: SignedLog) -> Plan:
    viewer.may_read_creator(creator_id)
    own = await viewer.events.claimed(viewer.ledger_id, viewer.keys.claim("creator", creator_id)) or []
    if not own or not isinstance(own[0].event, Creator.Switched):
        raise Problem("creator_unknown", "There is no such creator in this ledger.", status=404)
    stream_id = _covered(own, log)[0].stream_id
    streams = [stream_id, *await viewer.events.codes_of_creator(viewer.ledger_id, stream_id, log.size)]
    positions = await viewer.source.positions(log, streams)
    if len(positions) >= MAX_POSITIONS:
        raise Problem("not_allowed", f"This creator has more than {MAX_POSITIONS:,} events. Ask for the ledger.")
    shown_as = own[0].event.creator_id
    about = {"kind": "creator", "creator_id": shown_as, "creator_stream": str(stream_id)}
    grounds = Grounds([creator_key(stream_id)], positions)
    return Plan(about, positions, (1, log.size), everything, viewer.role, grounds=grounds)


async def _of_video(viewer: Viewer, video_id: str, log: SignedLog) -> Plan:
    if not viewer.sees_all:
        raise Problem("not_allowed", "A video can have codes of several creators. Ask for a code, or ask an auditor.")
    await viewer.views.wait(viewer.ledger_id, codes.NAME, log.size)
    evidence = await viewer.views.evidence.of_video(viewer.ledger_id, video_id)
    about = {"kind": "video", "video_id": video_id}
    return await _of_codes(viewer, about, log, video_id, evidence.codes, frozenset(evidence.codes))


async def _of_codes(
    viewer: Viewer,
    about: dict[str, Any],
    log: SignedLog,
    video_id: str,
    of_video: Mapping[UUID, Sequence[RecordedEvent]],
    shown: frozenset[UUID],
    answer: dict[str, Any] | None = None,
) -> Plan:
    """Return the plan of a bundle about all codes of a video, which shows these streams in full."""
    salt = viewer.keys.derived(VIDEO_SALT)
    # The permission that is stated with an answer rests on all of its own events.
    keys = [video_key(salt, video_id), *(stream_key(stream) for stream in shown.union(of_video))]
    positions = await viewer.source.positions(log, sorted(shown))
    of_codes = sorted(one.position for stream in of_video.values() for one in stream if one.position <= log.size)
    return Plan(
        about,
        range(1, log.size + 1),
        (1, log.size),
        of_streams(shown),
        viewer.role,
        answer,
        bounded=of_codes[:MAX_BOUNDED],
        grounds=Grounds(keys, positions, salt),
    )


async def _of_range(viewer: Viewer, request: EvidenceRequest, log: SignedLog, now: datetime) -> Plan:
    if request.since is not None and request.until is not None:
        since, until = request.since, request.until
        first = await viewer.events.position_at(viewer.ledger_id, min(since - _MICROSECOND, now)) + 1
        last = min(await viewer.events.position_at(viewer.ledger_id, min(until - _MICROSECOND, now)), log.size)
        run = (max(first - 1, 1), min(last + 1, log.size))
        about: dict[str, Any] = {"kind": "range", "first": first, "last": last}
        about |= {"from": moment_text(since), "until": moment_text(until)}
    else:
        first, last = request.first or 1, request.last or 1
        run, about = (first, last), {"kind": "range", "first": first, "last": last}
    if last > log.size:
        raise Problem("log_unknown", NOT_COVERED)
    if last < first:
        raise Problem("event_unknown", "No event that the signed log covers was recorded at this time.")
    if last - first >= MAX_RANGE and (first, last) != (1, log.size):
        raise Problem("not_allowed", f"A range can have {MAX_RANGE:,} events. Ask for several, or for the ledger.")
    levels = dict.fromkeys(range(first, last + 1), Level.ALL)
    shown = range(run[0], run[1] + 1)
    run = reaching(await viewer.source.cosigned_sizes(log), run)
    return Plan(about, shown, run, by_position(levels), viewer.role)


async def _of_answer(viewer: Viewer, request: EvidenceRequest, log: SignedLog, now: datetime) -> Plan:
    video_id, advertiser_id = request.video_id or "", request.advertiser_id or ""
    viewer.acts_for_advertiser(advertiser_id)
    at = request.at or now
    asked = asked_about(viewer.keys, video_id, advertiser_id)
    await viewer.views.wait(viewer.ledger_id, codes.NAME, log.size)
    evidence = await viewer.views.evidence.of(viewer.ledger_id, asked)
    found = authorization_verdict(evidence, log.size, advertiser_id, at, viewer.readable)
    about = {"kind": "answer", "video_id": video_id, "advertiser_id": advertiser_id, "at": moment_text(at)}
    answer = verdict_content(found, video_id, advertiser_id, at, log.size)
    answer |= {"starts_at": _text(found.starts_at), "expires_at": _text(found.expires_at)}
    answer |= {"rights_until": _text(found.rights_until), "ends_at": found.end and _text(found.end.at)}
    if not viewer.sees_all:
        if not found.authorized or found.code_id is None:
            raise Problem("not_allowed", NO_OF_OTHERS)
        # Neither rests on what this viewer may see.
        answer |= {"permission_enabled": None, "shared": None}
        stream = await viewer.events.stream(viewer.ledger_id, found.code_id) or []
        return await _of_found(viewer, about, log, _covered(stream, log), answer)
    owners = [recorded.stream_id for recorded in evidence.advertiser[:1]]
    if found.authorized and found.code_id is not None:
        creator = evidence.codes[found.code_id][0].creator_stream
        positions = await viewer.source.positions(log, [found.code_id, creator, *owners])
        grounds = Grounds([stream_key(found.code_id), stream_key(creator)], positions)
        return Plan(about, positions, (1, log.size), everything, viewer.role, answer, grounds=grounds)
    creators = {stream[0].creator_stream for stream in evidence.codes.values() if stream}
    shown = frozenset({*evidence.codes, *creators, *owners})
    return await _of_codes(viewer, about, log, video_id, evidence.codes, shown, answer)


async def _of_found(
    viewer: Viewer,
    about: dict[str, Any],
    log: SignedLog,
    known: Sequence[RecordedEvent],
    answer: dict[str, Any] | None = None,
) -> Plan:
    """Return the plan of a bundle about one code: all its events, each as far as the viewer may see it."""
    levels = {r.position: Level.ALL if viewer.may_see(r) else Level.ENVELOPE for r in known}
    positions: Sequence[int] = list(levels)
    if viewer.sees_creators:
        erasures = await viewer.source.erasures(log, [known[0].creator_stream])
        positions = with_erasures(positions, erasures)
        levels |= dict.fromkeys(erasures.values(), Level.ALL)
    return Plan(
        about,
        positions,
        (1, log.size),
        by_position(levels),
        viewer.role,
        answer,
        with_creator_stream=viewer.sees_creators,
        grounds=Grounds([stream_key(known[0].stream_id)], positions),
    )


def _covered(stream: Sequence[RecordedEvent], log: SignedLog) -> list[RecordedEvent]:
    known = [recorded for recorded in stream if recorded.position <= log.size]
    if not known:
        raise Problem("log_unknown", NOT_COVERED)
    return known


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment_text(moment.astimezone(UTC))
