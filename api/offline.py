"""The commands that need no server: export events to a file, check such a file, answer a file of authorizations.

It reads as the API does, with the same rights, and is entered into the access log as the machine itself.
"""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import orjson
from pydantic import ValidationError

from api.authorization_lines import BatchError, BatchQuery, answer_lines, batch_context, read_lines
from api.bag import evidence_signer
from api.event_content import KeyNames
from api.event_search import with_key_ids
from api.evidence import ZIP, machine_viewer, software
from api.evidence_bundle import Bundle
from api.evidence_plans import EvidenceRequest, plan_of
from api.export_files import written_atomically
from api.exports import MEDIA_TYPES as EXPORTED
from api.exports import Export, ExportQuery
from api.http.fields import VideoIdPolicy
from api.http.problems import Problem, malformed
from infra.auth.access_log import MACHINE_ROLE, Access
from infra.auth.key_admin import KeyAdmin
from infra.auth.key_commands import find_ledger
from infra.crypto.keyring import Keyring
from infra.crypto.sealed_terms import seal_search_terms
from infra.eventstore.aggregate_reader import AggregateReader
from infra.eventstore.histories import Histories
from infra.eventstore.reader import EventReader
from infra.eventstore.repository import AggregateCache
from infra.postgres.pool import Database
from infra.postgres.roles import API
from infra.proof.evidence_log import EvidenceLog
from infra.proof.proofs import ProofFailed
from infra.proof.sealed_sizes import SealedSizes
from infra.views.reader import ViewReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path
    from uuid import UUID

    from api.authorization_lines import Format
    from domain.pasted import VideoIds
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.master_keys import KeyProvider
    from infra.eventstore.histories import History

SAY_EVERY_S: Final = 0.5
SESSIONS: Final = 3


class OfflineError(LookupError):
    """What was asked for cannot be done; the message says why, and what to do."""


class LogSource(Protocol):
    """A database as the command line reaches it."""

    @property
    def owner(self) -> str:
        """As a login that may look every ledger up."""

    @property
    def api(self) -> str:
        """As a login that is or may become the API's role."""


@dataclass(frozen=True, slots=True)
class LedgerAddress:
    """A ledger by its name, in a database, under a master key."""

    place: LogSource
    master_key: KeyProvider
    ledger: str


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """A ledger, open for reading."""

    ledger_id: int
    database: Database
    views: ViewReader
    store: EventReader
    names: KeyNames
    keyring: Keyring
    keys: LedgerKeys
    history: History

    async def record_access(self, command: str, parameters: Mapping[str, Any], media_type: str) -> UUID:
        """Record what is about to be read."""
        query = orjson.dumps(seal_search_terms(self.keys, parameters), option=orjson.OPT_SORT_KEYS)
        access = Access(None, MACHINE_ROLE, command, query, media_type, 0, None, secrets.token_hex(16))
        return await self.views.access_log.record(self.ledger_id, access)


@asynccontextmanager
async def open_ledger(where: LedgerAddress) -> AsyncIterator[OpenLedger]:
    """Open a ledger.

    Raises:
        LookupError: there is no such ledger.

    """
    ledger_id, token = await find_ledger(where.place.owner, where.master_key, where.ledger)
    database = Database(where.place.api, API, size=SESSIONS)
    database.tokens.admit_ledger(ledger_id, token)
    await database.open()
    try:
        keyring = Keyring(database, where.master_key)
        names = KeyNames(KeyAdmin(database, keyring))
        keys = await keyring.ledger(ledger_id)
        history = await Histories(database).of(ledger_id)
        yield OpenLedger(
            ledger_id, database, ViewReader(database), EventReader(database), names, keyring, keys, history
        )
    finally:
        await database.close()


def export_query(q: str | None, file: Path, *, bom: bool = False, video_ids: VideoIds = "tiktok") -> ExportQuery:
    """Return what to export: a table if the file is named so, with a byte order mark if wanted.

    Raises:
        ValueError: it is no query; the message points at the character.

    """
    try:
        given = {"q": q, "format": _format(file), "bom": "true" if bom else None}
        sent = {name: value for name, value in given.items() if value is not None}
        return ExportQuery.model_validate(sent, context=VideoIdPolicy(video_ids))
    except ValidationError as error:
        raise ValueError(said(malformed("malformed_query", error, ExportQuery), q or "")) from None
    except Problem as problem:
        raise ValueError(said(problem, q or "")) from None


def batch_query(as_of: str | None) -> BatchQuery:
    """Return as of when to answer.

    Raises:
        ValueError: it is neither a time nor a position.

    """
    try:
        return BatchQuery.model_validate({} if as_of is None else {"as_of": as_of})
    except ValidationError as error:
        raise ValueError("; ".join(found["msg"] for found in error.errors())) from None


async def export(where: LedgerAddress, query: ExportQuery, path: Path, say: Callable[[str], None]) -> Export:
    """Export to a file, which is there whole or not at all.

    Raises:
        OfflineError: the file is there already, or cannot be written.
        LookupError: there is no such ledger.
        Unavailable: the database is away, or the history has not been read so far.

    """
    refuse_taken(path)
    async with open_ledger(where) as opened:
        try:
            parsed = with_key_ids(query.parsed(), await opened.names.of(opened.ledger_id, ()))
        except Problem as problem:
            raise LookupError(said(problem, query.q or "")) from None
        exported = Export(
            ledger_id=opened.ledger_id,
            ledger=where.ledger,
            history=opened.history,
            query=parsed,
            parameters=query.parameters(),
            format=query.format,
            head=await opened.store.head(opened.ledger_id),
            began_at=datetime.now(UTC),
            sealed=await SealedSizes(opened.database).of(opened.ledger_id),
            bom=query.bom is True,
            notes=AggregateReader(opened.store, opened.keyring, AggregateCache()).notes,
        )
        await exported.reach(opened.views)
        media_type = EXPORTED[query.format].partition(";")[0]
        access_id = await opened.record_access("sparkledger export", exported.parameters, media_type)
        progress, complete = Progress(say, "events"), False
        try:
            with written_file(path) as file:
                async for piece in exported.pieces(opened.views, opened.names):
                    file.write(piece)
                    progress.reached(exported.events)
            complete = exported.complete
        finally:
            await opened.views.access_log.end(opened.ledger_id, access_id, rows=exported.events, complete=complete)
    progress.last()
    if not exported.complete:
        say(
            f"This export is incomplete: it covers events up to position {exported.upto:,} of {exported.head:,}, "
            "where the view history has stopped."
        )
    return exported


async def ask(
    where: LedgerAddress,
    query: BatchQuery,
    path: Path,
    output: Path | None,
    say: Callable[[str], None],
    *,
    video_ids: VideoIds,
) -> None:
    """Answer a file of questions, into another file or as output.

    Raises:
        OfflineError: some lines are no questions, though the others are answered; or the table does not name its
            columns, `as_of` lies ahead, or a file cannot be read or written.
        LookupError: there is no such ledger.
        Unavailable: the database is away, or the view of codes has not read so far.

    """
    if output is not None:
        refuse_taken(output)
    async with open_ledger(where) as opened:
        try:
            context = await batch_context(
                opened.views, opened.store, opened.ledger_id, opened.keys, query, datetime.now(UTC)
            )
        except Problem as problem:
            raise OfflineError(said(problem)) from None
        format_ = _format(output or path)
        parameters = query.model_dump(mode="json", exclude_none=True) | {"as_of": context.as_of}
        access_id = await opened.record_access(
            "sparkledger authorizations", parameters, EXPORTED[format_].partition(";")[0]
        )
        progress, complete, wrong = Progress(say, "lines"), False, 0
        try:
            with (
                opened_file(path) as source,
                nullcontext(sys.stdout.buffer) if output is None else written_file(output) as file,
            ):
                async for piece, lines in answer_lines(
                    read_lines(source, _format(path), video_ids), opened.views.evidence, context, format_
                ):
                    file.write(piece)
                    wrong += sum(line.request is None for line in lines)
                    progress.reached(progress.count + len(lines))
            complete = True
        except BatchError as error:
            raise OfflineError(str(error)) from None
        finally:
            await opened.views.access_log.end(opened.ledger_id, access_id, rows=progress.count, complete=complete)
    progress.last()
    if wrong:
        raise OfflineError(f"Invalid lines: {wrong:,}. Their answers say why. All other lines are answered.")


def evidence_request(video_ids: VideoIds = "tiktok", **given: Any) -> EvidenceRequest:
    """Return what evidence is to be about.

    Raises:
        ValueError: these options do not belong together.

    """
    sent = {name: value for name, value in given.items() if value is not None}
    try:
        return EvidenceRequest.model_validate(sent, context=VideoIdPolicy(video_ids))
    except ValidationError as error:
        raise ValueError("; ".join(found["msg"] for found in error.errors(include_input=False))) from None


async def evidence(where: LedgerAddress, request: EvidenceRequest, path: Path, say: Callable[[str], None]) -> Bundle:
    """Make an evidence bundle, which is there whole or not at all.

    Raises:
        OfflineError: the file is there already or cannot be written, there is no such thing, or what is stored does not
            fit the signed log.
        LookupError: there is no such ledger.
        Unavailable: the database is away.

    """
    refuse_taken(path)
    async with open_ledger(where) as opened:
        source = EvidenceLog(opened.database)
        signed = await source.keep(opened.ledger_id, request.size)
        if signed is None or signed.size == 0:
            raise OfflineError(
                "The signed log of this ledger has no such checkpoint yet. Start the sealer and try again."
            )
        viewer = machine_viewer(opened.ledger_id, opened.store, opened.views, opened.keys, source)
        try:
            plan = await plan_of(viewer, request, signed, datetime.now(UTC))
        except Problem as problem:
            raise OfflineError(said(problem)) from None
        bundle = Bundle(signed, plan, source, evidence_signer(opened.keys, signed.origin), software())
        parameters = request.model_dump(mode="json", exclude_none=True) | {"size": signed.size}
        access_id = await opened.record_access("sparkledger evidence", parameters, ZIP)
        progress, complete = Progress(say, "events"), False
        try:
            with written_file(path) as file:
                async for piece in bundle.pieces():
                    file.write(piece)
                    progress.reached(bundle.shown)
            complete = True
        except ProofFailed as error:
            raise OfflineError(f"There is no evidence: {error}. Find out who changed the database.") from error
        finally:
            await opened.views.access_log.end(opened.ledger_id, access_id, rows=bundle.shown, complete=complete)
    progress.last()
    return bundle


def _format(path: Path) -> Format:
    return "csv" if path.suffix.lower() == ".csv" else "ndjson"


def refuse_taken(path: Path) -> None:
    """Refuse to write over a file: before anything is entered as read, and once more when it is written."""
    if path.exists():
        raise OfflineError(f"{path} already exists. Name another file, or move that one away.")


@contextmanager
def written_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there whole or not at all, and was not there before.

    Raises:
        OfflineError: it is there already, or cannot be written.

    """
    refuse_taken(path)
    try:
        with written_atomically(path) as file:
            yield file
    except OSError as error:
        raise OfflineError(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def opened_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading.

    Raises:
        OfflineError: it cannot be read.

    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise OfflineError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        yield file


def said(problem: Problem, text: str = "") -> str:
    """Say what is wrong with what was asked; where it is in a query, with the character pointed at."""
    lines = []
    for error in problem.members.get("errors", ()):
        lines.append(error["problem"])
        if "offset" in error:
            lines += [f"  {text}", f"  {' ' * error['offset']}^"]
    return "\n".join(lines) or str(problem.detail)


class Progress:
    """Says how far something is, now and then."""

    def __init__(self, say: Callable[[str], None], what: str, total: int | None = None) -> None:
        self.count = 0
        self._say = say
        self._what = what if total is None else f"of {total:,} {what}"
        self._began = self._said = time.monotonic()

    def reached(self, count: int) -> None:
        self.count = count
        if time.monotonic() - self._said >= SAY_EVERY_S:
            self.last()

    def last(self) -> None:
        self._said = time.monotonic()
        seconds = max(self._said - self._began, 1e-6)
        self._say(f"{self.count:,} {self._what} in {seconds:.1f} s ({self.count / seconds:,.0f} a second)")
