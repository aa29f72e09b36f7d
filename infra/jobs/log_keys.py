"""The change of the keys that sign a log, step by step, each an event of the log.

    add          another pair of keys signs beside the present one, which so introduces it to everyone who has the old
    retire       the older pair signs no more, once the newer one has signed
    compromise   the pairs are worth nothing any more: the log goes on as another generation, signed by a new pair

The new private key is in the sealer's file before the event is recorded, and an old one is destroyed after its event
is signed. So a crash between two steps leaves nothing that cannot go on: run the same step again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from uuid import uuid4

from domain.log import Log
from infra.eventstore.histories import read_history
from infra.jobs.log_events import as_command_line, record
from infra.postgres.roles import WORKER
from infra.proof.errors import SealingStopped
from infra.proof.log_keys import KEY_CHANGES, KeyChange, active_keys
from infra.proof.signing_keys import add_pair, load_signer, replace_pairs
from infra.runtime import runtime

if TYPE_CHECKING:
    from pathlib import Path

    from infra.crypto.master_keys import KeyProvider
    from infra.eventstore.histories import History
    from infra.jobs.log_events import Change
    from infra.postgres.pool import LedgerConnection
    from infra.runtime import Runtime

Step = Literal["add", "retire", "compromise"]

_TREE: Final = "SELECT origin, verifier_keys FROM log_trees WHERE ledger_id = %s AND generation = %s"
# An Ed25519 and an ML-DSA-44 key.
_PAIR: Final = 2


class Changed(NamedTuple):
    """What a step has done: the position of its event, the generation after it, and the keys of the newer pair."""

    position: int
    generation: int
    verifier_keys: list[str]


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of a log: those that sign it by what is recorded, and those that the sealer has signed with."""

    history: History
    origin: str
    recorded: list[str]
    signed_with: list[str]


async def change_keys(
    conninfo: str, key_provider: KeyProvider, signing_dir: Path, ledger: str, step: Step, reason: str | None
) -> Changed:
    """Take one step of a change of keys, on the machine that has the sealer's directory.

    Raises:
        LookupError: there is no such ledger, or this is not the next step; the message says what is.

    """
    async with (
        runtime(conninfo, WORKER, key_provider) as opened,
        as_command_line(opened, ledger, "sparkledger ledgers rotate-key") as (ledger_id, key_id),
    ):
        keys = await _keys(opened, ledger_id)
        try:
            changes, new = await _changes(opened, ledger_id, signing_dir, keys, step, reason)
        except SealingStopped as error:
            raise LookupError(str(error)) from error
        position = await record(opened, ledger_id, key_id, keys.history.log_id, changes)
    return Changed(position, keys.history.generation + (step == "compromise"), new)


async def _changes(
    opened: Runtime, ledger_id: int, signing_dir: Path, keys: _Keys, step: Step, reason: str | None
) -> tuple[list[Change], list[str]]:
    """Return the events of a step, and the keys that it leaves; private keys are on disk by then."""
    log_id, generation = keys.history.log_id, keys.history.generation
    pairs = [keys.recorded[at : at + _PAIR] for at in range(0, len(keys.recorded), _PAIR)]
    if step == "retire":
        if len(pairs) < _PAIR:
            raise LookupError("Only one key signs this log. Add another one first: sparkledger ledgers rotate-key")
        if not set(pairs[1]) <= set(keys.signed_with):
            raise LookupError("The sealer has not signed with the new key yet. Start it, and try again in a second.")
        return [_change(Log.KeyRetired, generation, pairs[0], reason)], pairs[1]
    present = load_signer(signing_dir, log_id, keys.origin)
    unused = [one for one in present.signers if set(one.verifier_keys).isdisjoint(keys.recorded)]
    if step == "add":
        if len(pairs) > 1:
            raise LookupError("Two keys sign this log already. Retire the older one first, with --retire-old.")
        new = unused[0] if unused else add_pair(signing_dir, log_id, keys.origin)
        return [_change(Log.KeyAdded, generation, new.verifier_keys, reason)], new.verifier_keys
    # A reader of the file has all its keys, also one that has signed nothing yet.
    replaced = len(unused) == len(present.signers)
    if not replaced:
        replace_pairs(signing_dir, log_id, keys.origin)
    ended = [_change(Log.KeyCompromised, generation, pair, reason) for pair in pairs]
    restarted: dict[str, Any] = {
        "generation": generation + 1,
        "history": str(uuid4()),
        "previous_history": str(keys.history.history),
        "common_position": await opened.events.head(ledger_id),
        "reason": reason,
    }
    # The name of a key is the origin, which has the number of the generation.
    origin = keys.origin.removesuffix(f"/{generation}") + f"/{generation + 1}"
    return [*ended, (Log.Restarted, restarted)], load_signer(signing_dir, log_id, origin).verifier_keys


def _change(kind: type[Log.Changed], generation: int, pair: list[str], reason: str | None) -> Change:
    return kind, {"generation": generation, "vkey": pair[0], "ml_dsa_vkey": pair[1], "reason": reason}


async def _keys(opened: Runtime, ledger_id: int) -> _Keys:
    async def read(connection: LedgerConnection) -> tuple[History | None, Any, list[KeyChange]]:
        history = await read_history(connection, ledger_id)
        if history is None:
            return None, None, []
        row = await (await connection.execute(_TREE, (ledger_id, history.generation))).fetchone()
        changes = await (await connection.execute(KEY_CHANGES, (ledger_id, history.log_id, None))).fetchall()
        return history, row, [KeyChange(*change) for change in changes]

    history, row, changes = await opened.database.read(ledger_id, read)
    if history is None or row is None:
        raise LookupError("The log of this ledger has not begun. Start the sealer, and try again in a second.")
    origin, signed_with = row
    return _Keys(history, origin, active_keys(signed_with, changes, history.generation), signed_with)
