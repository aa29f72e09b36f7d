"""Receipts: a command that was sent with `?wait=checkpoint` waits for the signed log, and its answer carries the proof.

A receipt refutes every later log that lacks the event. A command without `wait` costs nothing here, and
none fails because of the wait: it is recorded by then, and its answer says that the receipt is pending.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol
from urllib.parse import parse_qsl

import orjson
from pydantic import Field

from api.http.models import Answer
from api.http.problems import malformed_query
from infra.errors import Unavailable
from infra.proof.proofs import ProofFailed, Proofs

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from api.http.caller import Caller
    from infra.proof.proofs import EventProof

MAX_WAIT_S: Final = 8.0
POLL_S: Final = 0.25
# Of one process: each takes a little memory, and looks at what all that wait for one ledger share.
MAX_WAITING: Final = 500
# The whole request must end before its time is up, however long the command itself had to wait.
MAX_REQUEST_WITH_WAIT_S: Final = 20.0

CHECKPOINT: Final = "checkpoint"
WAIT_DESCRIPTION: Final = (
    f"`checkpoint` waits up to {MAX_WAIT_S:.0f} seconds until the signed log covers what was recorded. Then the "
    "response has a `receipt` with the proof. The command is recorded in any case."
)
_PENDING: Final = (
    "The command is recorded, and the signed log does not cover it yet. Get the proof later, from "
    "GET /v1/events/{position}/proof."
)
_FAILED: Final = "The command is recorded, but its event does not fit the signed log. Tell the operator of this server."

log = logging.getLogger(__name__)


class ReceiptEntry(Answer):
    """The proof that what a command recorded is in the signed log. Keep it."""

    position: Annotated[int, Field(ge=1, description="The position of the last event that the command recorded.")]
    state: Annotated[
        Literal["pending", "sealed"], Field(description="Whether the signed log covers it. `pending` has no proof.")
    ]
    tlog_proof: Annotated[
        str | None,
        Field(description="A file as C2SP's tlog-proof: the entry, its proof and the checkpoint. Keep it as it is."),
    ]
    detail: Annotated[str | None, Field(description="Why there is no proof yet.")]


class Waiting:
    """How many wait in one process, and when they stop: a server that ends keeps nobody waiting."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self.count = 0


class _Streams(Protocol):
    closing: bool


def wants_receipt(request: Request) -> bool:
    """Tell whether a command's query asks for a receipt.

    Raises:
        Problem: it asks to wait for something else.

    """
    values = [value for name, value in _query(request) if name == "wait"]
    if values not in ([], [CHECKPOINT]):
        raise malformed_query("wait", "A command can only wait for `checkpoint`.")
    return bool(values)


async def add_receipt(caller: Caller, answer: Response, began_at: float) -> None:
    """Wait until the signed log covers what a command recorded, and add the receipt to its answer.

    Args:
        caller: who sent the command.
        answer: the command's answer, which has JSON and `Ledger-Position`.
        began_at: when the request began, by the clock of the event loop.

    """
    position = int(answer.headers.get("ledger-position", "0"))
    if position < 1:
        return
    proof, detail = None, _PENDING
    try:
        proof = await _wait(caller, position, began_at)
    except ProofFailed as error:
        log.error("The receipt of event %d of ledger %s failed: %s", position, caller.key.ledger_name, error)  # noqa: TRY400 - its traceback says no more
        detail = _FAILED
    except Unavailable as error:
        log.warning("A receipt is given later: %s", error)
    content: dict[str, Any] = orjson.loads(answer.body)
    content["receipt"] = {
        "position": position,
        "state": "pending" if proof is None else "sealed",
        "tlog_proof": None if proof is None else proof.tlog_proof(position),
        "detail": detail if proof is None else None,
    }
    answer.body = orjson.dumps(content)
    answer.headers["content-length"] = str(len(answer.body))


async def _wait(caller: Caller, position: int, began_at: float) -> EventProof | None:
    """Return the proof of an event once there is one, or None if that takes too long."""
    state = caller.request.app.state
    waiting: Waiting = state.receipts
    streams: _Streams = state.streams
    now = asyncio.get_running_loop().time
    until = min(now() + MAX_WAIT_S, began_at + MAX_REQUEST_WITH_WAIT_S)
    if waiting.count >= MAX_WAITING:
        return None
    waiting.count += 1
    try:
        while (await state.sealed_sizes.of(caller.ledger_id)).size < position:
            if now() + POLL_S > until or streams.closing:
                return None
            await asyncio.sleep(POLL_S)
    finally:
        waiting.count -= 1
    return await Proofs(caller.services.database).of_event(caller.ledger_id, position)


def _query(request: Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise malformed_query("", "The query has too many parameters.") from None
