"""The routes of the signed log: a summary for the caller's ledger, and the log as C2SP's tlog-tiles.

Addresses under `/log/` are those of https://c2sp.org/tlog-tiles, for verifiers that know nothing of this API: they have
their own media types and no place in the API reference. A log is for keys of its ledger, unless it is public.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from api.access_log import record_access
from api.bag import evidence_signer
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.dependencies import services_of
from api.http.media_types import JSON, wanted_format
from api.http.models import Answer
from api.http.problems import Problem, malformed_query, unauthenticated
from api.http.query_params import QueryModel, TreeSize
from api.http.responses import answer
from api.http.route import Operation, Route
from domain.log_tiles import parse_tile_path
from infra.auth.access_log import AccessSubject
from infra.errors import Unavailable
from infra.proof.proofs import ProofFailed, Proofs
from infra.proof.served_log import ServedLogs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from infra.proof.served_log import ServedLog

# The specification names no media type, but that a proof is text.
PROOF_FILE: Final = "text/plain"
_POSITION: Final = re.compile("[1-9][0-9]{0,17}")
_GENERATION: Final = re.compile("[1-9][0-9]{0,8}")
# A tile never changes; a checkpoint is replaced each second.
_TILE_AGE: Final = "max-age=31536000, immutable"


# Reads of public logs without a key, of all strangers together: sessions of the database are for callers first.
MAX_STRANGERS: Final = 2
MAX_STRANGERS_WAITING: Final = 100
_CROWDED: Final = "Too many requests for public logs are already in progress. Try again in a moment."

log = logging.getLogger(__name__)


class Strangers:
    """The turns of those who read public logs without a key, in one process."""

    def __init__(self, most: int = MAX_STRANGERS, most_waiting: int = MAX_STRANGERS_WAITING) -> None:
        """Begin with nobody."""
        self._turns = asyncio.Semaphore(most)
        self._waiting = 0
        self._most_waiting = most_waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the context lasts.

        Raises:
            Unavailable: too many wait already.

        """
        if self._waiting >= self._most_waiting:
            raise Unavailable(_CROWDED)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


class WitnessEntry(Answer):
    name: Annotated[str, Field(description="The witness's name.")]
    vkey: Annotated[
        str | None,
        Field(
            description="Its verifier key. Take it from the witness's operator: from here it proves nothing. Null "
            "until it has cosigned."
        ),
    ]
    size: Annotated[int, Field(ge=0, description="How many events the newest checkpoint covers that it has cosigned.")]
    cosigned_at: Annotated[answered.Moment | None, Field(description="When it cosigned that one, by its own clock.")]


class LogAnswer(Answer):
    log_id: Annotated[UUID, Field(description="The log's id. It is fixed for ever, and in every envelope.")]
    history: Annotated[UUID, Field(description="The id of the ledger's present history, as in Ledger-History.")]
    generation: Annotated[int, Field(ge=1, description="The number of the ledger's present history.")]
    origin: Annotated[
        str | None, Field(description="The log's name for verifiers. Null until the sealer has begun the log.")
    ]
    vkeys: Annotated[
        list[str],
        Field(
            description=(
                "The verifier keys, Ed25519 and ML-DSA-44. Keep your own copy: a key that comes with what it verifies "
                "proves nothing."
            )
        ),
    ]
    size: Annotated[int, Field(ge=0, description="How many events the newest checkpoint covers.")]
    checkpoint: Annotated[str | None, Field(description="The newest checkpoint, a signed note.")]
    evidence_vkey: Annotated[
        str | None, Field(description="The verifier key of the ledger's evidence bundles. It is never a key of a log.")
    ]
    witnesses: Annotated[list[WitnessEntry], Field(description="The witnesses that are asked to cosign checkpoints.")]
    state: Annotated[
        Literal["sealing", "stopped", "not_begun"],
        Field(description="Whether new events are being sealed. `stopped` needs an operator."),
    ]


class EventProofAnswer(Answer):
    position: Annotated[int, Field(ge=1, description="The event's position.")]
    state: Annotated[
        Literal["pending", "sealed"],
        Field(description="Whether a signed checkpoint covers the event. `pending` lasts about a second."),
    ]
    size: Annotated[int, Field(ge=0, description="How many events the newest checkpoint covers.")]
    entry: Annotated[str | None, Field(description="The entry in base64: the leaf of the tree.")]
    envelope: Annotated[str | None, Field(description="The envelope in base64, whose hash is in the entry.")]
    content: Annotated[
        str | None,
        Field(description="The content in base64, whose hash is in the envelope. Null for keys with the role creator."),
    ]
    tlog_proof: Annotated[
        str | None,
        Field(description="The proof that the entry is in the log, with the checkpoint: a file as C2SP's tlog-proof."),
    ]


class ConsistencyAnswer(Answer):
    old: Annotated[int, Field(ge=1, description="The older size.")]
    new: Annotated[int, Field(ge=1, description="The newer size.")]
    old_root: Annotated[str, Field(description="The root of the older tree, in base64.")]
    new_root: Annotated[str, Field(description="The root of the newer tree, in base64.")]
    hashes: Annotated[list[str], Field(description="The consistency proof of RFC 9162, in base64.")]


class ProofQuery(QueryModel):
    format: Annotated[
        Literal["json", "tlog-proof"] | None,
        Field(description="`tlog-proof` gives the file alone, as `Accept: text/plain` does."),
    ] = None


class ConsistencyQuery(QueryModel):
    old: Annotated[TreeSize, Field(description="The size of the older checkpoint.")]
    new: Annotated[
        TreeSize | None, Field(description="The size of the newer one. Default: that of the newest checkpoint.")
    ] = None


class CheckpointQuery(QueryModel):
    witnessed: Annotated[
        bool, Field(description="Whether to answer the newest checkpoint that witnesses have signed.")
    ] = False


router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/log", response_model=LogAnswer, operation_id="readLog")
@Operation(answer_headers=("Ledger-Position",))
async def read_log(
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Read the state of the ledger's signed log: its name and keys for verifiers, and its newest checkpoint."""
    logs = ServedLogs(caller.services.database)
    summary = await logs.summary(caller.ledger_id)
    witnesses = await logs.witnesses(caller.ledger_id, summary.generation)
    keys = await caller.services.aggregates.keyring.ledger(caller.ledger_id)
    state = "not_begun" if summary.origin is None else "sealing" if summary.stopped is None else "stopped"
    return answer(
        {
            "log_id": summary.log_id,
            "history": summary.history,
            "generation": summary.generation,
            "origin": summary.origin,
            "vkeys": summary.verifier_keys or [],
            "size": summary.size or 0,
            "checkpoint": summary.checkpoint,
            "evidence_vkey": None if summary.origin is None else evidence_signer(keys, summary.origin).verifier_key,
            "witnesses": [
                {"name": one.name, "vkey": one.verifier_key, "size": one.size, "cosigned_at": one.cosigned_at}
                for one in witnesses
            ],
            "state": state,
        },
        200,
        {"Ledger-Position": str(summary.size or 0)},
    )


@router.get("/v1/log/consistency", response_model=ConsistencyAnswer, operation_id="proveConsistency")
@Operation(answer_headers=("Ledger-Position",), refusals=(404,))
async def prove_consistency(
    query: Annotated[ConsistencyQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Prove that the log of the ledger continues an older checkpoint. The proof is verified before it is sent."""
    if query.new is not None and query.old > query.new:
        raise malformed_query("new", "The newer size must not be smaller than the older one, `old`.")
    try:
        proof = await Proofs(caller.services.database).of_consistency(caller.ledger_id, query.old, query.new)
    except ProofFailed as error:
        raise _failed(caller, error) from error
    if proof is None:
        raise Problem("log_unknown")
    return answer(
        {
            "old": proof.old,
            "new": proof.new,
            "old_root": _base64(proof.old_root),
            "new_root": _base64(proof.new_root),
            "hashes": [_base64(one) for one in proof.hashes],
        },
        200,
        {"Ledger-Position": str(proof.new)},
    )


@router.get("/v1/events/{position}/proof", response_model=EventProofAnswer, operation_id="proveEvent")
@Operation(trace="recorded", answer_headers=("Ledger-Position",), other_formats=(PROOF_FILE,))
async def prove_event(
    position: str,
    query: Annotated[ProofQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Prove that an event is in the signed log of the ledger. The proof is verified before it is sent.

    Keep `tlog_proof`: it refutes every later log that lacks the event. `format=tlog-proof` answers with that file
    alone, and 404 (`log_unknown`) while the event is pending.
    """
    accept = headers.text(caller.request, b"accept")
    as_file = query.format == "tlog-proof" or (
        query.format is None and wanted_format(accept, (JSON, PROOF_FILE)) == PROOF_FILE
    )
    number = int(position) if _POSITION.fullmatch(position) else 0
    found = await caller.services.events.at_positions(caller.ledger_id, [number]) if number else []
    if not found:
        raise Problem("event_unknown")
    if caller.role == "creator":
        caller.act_for_creator(found[0].creator_id or "")
    code_id = None if found[0].video_id is None else found[0].stream_id
    subject = AccessSubject(code_id, found[0].creator_id, found[0].video_id)
    await record_access(caller, {"position": number}, rows=1, format=PROOF_FILE if as_file else JSON, subject=subject)
    try:
        proof = await Proofs(caller.services.database).of_event(caller.ledger_id, number)
    except ProofFailed as error:
        raise _failed(caller, error) from error
    size = 0 if proof is None else proof.checkpoint.size
    if as_file:
        if proof is None:
            raise Problem("log_unknown")
        name = f"{caller.key.ledger_name}-{number}.tlog-proof".replace(":", "_")
        file_headers = {
            "Ledger-Position": str(size),
            "Content-Disposition": f'attachment; filename="{name}"',
            "Vary": "Accept",
        }
        return Response(proof.tlog_proof(number), 200, file_headers, f"{PROOF_FILE}; charset=utf-8")
    return answer(
        {
            "position": number,
            "state": "pending" if proof is None else "sealed",
            "size": size,
            "entry": None if proof is None else _base64(proof.entry),
            "envelope": None if proof is None else _base64(proof.envelope),
            "content": None if proof is None or caller.role == "creator" else _base64(proof.content),
            "tlog_proof": None if proof is None else proof.tlog_proof(number),
        },
        200,
        {"Ledger-Position": str(size), "Vary": "Accept"},
    )


@router.get("/log/{ledger}/{generation}/checkpoint", include_in_schema=False)
async def read_checkpoint(
    request: Request,
    ledger: str,
    generation: str,
    caller: Annotated[Caller | None, allow("operator", "auditor", "admin", without_key=True)],
    query: Annotated[CheckpointQuery, Query()],
) -> Response:
    """Return the newest checkpoint of a log, or the newest that witnesses have signed, with their signatures."""
    async with _turn(request, ledger, generation, caller):
        served = await _readable(request, ledger, generation, caller)
        note = await _logs(request).witnessed(served, _reader(caller)) if query.witnessed else served.checkpoint
    if note is None:
        raise Problem("log_unknown")
    return Response(note, 200, _cache(served, "no-cache"), "text/plain; charset=utf-8")


@router.get("/log/{ledger}/{generation}/tile/{path:path}", include_in_schema=False)
async def read_tile(
    request: Request,
    ledger: str,
    generation: str,
    path: str,
    caller: Annotated[Caller | None, allow("operator", "auditor", "admin", without_key=True)],
) -> Response:
    """Return a tile of hashes, or a bundle of entries, of a log."""
    wanted = parse_tile_path(path)
    async with _turn(request, ledger, generation, caller):
        served = await _readable(request, ledger, generation, caller)
        tile = None if wanted is None else await _logs(request).tile(served, wanted, _reader(caller))
    if tile is None:
        raise Problem("log_unknown")
    return Response(tile, 200, _cache(served, _TILE_AGE), "application/octet-stream")


async def _readable(request: Request, ledger: str, generation: str, caller: Caller | None) -> ServedLog:
    """Return a log that the request may read.

    Raises:
        Problem: there is no such log, or it is not public and no key of its ledger was presented.

    """
    served = None
    if _GENERATION.fullmatch(generation):
        served = await _logs(request).find(ledger, int(generation), _reader(caller))
    if served is None and caller is None:
        raise unauthenticated()
    if served is None:
        raise Problem("log_unknown")
    return served


async def _refuse_private(request: Request, ledger: str, generation: str) -> None:
    """Refuse a caller without a key what is not public, without a look-up of its own in the database.

    Raises:
        Problem: there is no such public log; the same answer whether there is such a log or not.

    """
    number = int(generation) if _GENERATION.fullmatch(generation) else 0
    if (ledger, number) not in await request.app.state.public_logs():
        raise unauthenticated()


def _failed(caller: Caller, error: ProofFailed) -> Problem:
    log.error("A proof of ledger %s failed: %s", caller.key.ledger_name, error)
    return Problem("proof_failed")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def _turn(request: Request, ledger: str, generation: str, caller: Caller | None) -> AsyncIterator[None]:
    """Let a read in: with a key at once, for a key has a share of its own already, and without one if it is its turn.

    Raises:
        Problem: there is no key, and no such public log.
        Unavailable: too many wait already.

    """
    if caller is not None:
        yield
        return
    await _refuse_private(request, ledger, generation)
    strangers: Strangers = request.app.state.strangers
    async with strangers.turn():
        yield


def _logs(request: Request) -> ServedLogs:
    return ServedLogs(services_of(request.scope).database)


def _reader(caller: Caller | None) -> int | None:
    """Return the ledger of the key that was presented."""
    return None if caller is None else caller.ledger_id


def _cache(served: ServedLog, age: str) -> dict[str, str]:
    """Return who may keep an answer: only the caller, if a key was needed for it."""
    return {"Cache-Control": f"{'public' if served.public else 'private'}, {age}"}
