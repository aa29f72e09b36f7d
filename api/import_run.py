"""Imports: each row of a sheet judged against the ledger and, if that is asked for, recorded.

    new        its code is not known
    changed    its code is known, and the row says more of it: a share, a redemption, a revocation, a note
    known      nothing to record
    differs    the row contradicts what is recorded; nothing of it is recorded
    refused    a rule refuses it
    unclear    the row leaves open what it means

What a dry run says of a row is what the commands say of it, after all rows before it. A row is recorded by one append,
whole or not at all, and every event names its import and its row. Rows are judged a few dozen at a time; those that
name the same code or the same video in their order. After an import was stopped, by a person or a failure, the same
sheet is imported again: what is recorded by then is known.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast, get_args
from uuid import UUID

from api.sheet_cells import Reading, Unclear, facts_of
from api.sheet_columns import HEADER_ROWS, Columns, Field, column_letters, find_columns, is_trailer, normal_name
from api.sheet_files import ReadSheets, SheetError, SheetRow
from api.sheet_joins import JoinedRow, SheetJoins
from domain import commands
from domain.errors import Refused
from domain.pasted import creator_name, secret_name
from domain.sheet_import import SheetImport
from domain.sheet_rows import (
    Difference,
    NoStart,
    RowDecision,
    SeveralCodes,
    SheetFacts,
    begin_import,
    end_import,
    note_differences,
    permission_since,
    record_row,
)
from domain.values import Actor, Policy, When
from infra.eventstore.command_handler import CommandMetadata
from infra.eventstore.rehearsal import Pretended, Rehearsal
from infra.eventstore.repository import copied
from infra.ids import uuid7

if TYPE_CHECKING:
    from domain.code import Code
    from domain.commands import Decision, Ledger
    from domain.creator import Creator
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.command_handler import CommandHandler

Fate = Literal["new", "changed", "known", "differs", "refused", "unclear"]
FATES: Final[tuple[Fate, ...]] = get_args(Fate)
# Rows that are judged or recorded at the same time: enough to share commits, and far less than the writer's queue.
AT_ONCE: Final = 64

log = logging.getLogger(__name__)


class RowOutcome(NamedTuple):
    """What became of a row.

    Attributes:
        row: the row.
        fate: see above.
        code_id: its code, if there is one.
        position: of the last event that was recorded for it, if any was.
        field: the field whose cell is the reason.
        column: the letters of that cell's column.
        reason: a stable name of the reason for which it is refused or unclear.
        detail: a sentence.
        conflict_id: what is in the way, if the refusal names it.
        differences: in what it contradicts the ledger.

    """

    row: SheetRow
    fate: Fate
    code_id: UUID | None = None
    position: int | None = None
    field: Field | None = None
    column: str | None = None
    reason: str | None = None
    detail: str | None = None
    conflict_id: str | None = None
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class SheetColumns:
    """A sheet of the file by its name, and its columns; None if no row names any."""

    name: str
    columns: Columns | None


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a sheet is imported.

    Attributes:
        reading: how its cells are read.
        record: whether its rows are recorded; otherwise they are only judged.
        record_differences: whether each difference is recorded on its code, as a note.
        columns: the columns that the caller has named, by field; None leaves a field out.
        header: the number of the row that names the columns, if it is given.
        named: the names that columns have in this source, by field.
        mapping: the name of the saved mapping that says so, if one does.

    """

    reading: Reading
    record: bool = False
    record_differences: bool = False
    columns: Mapping[Field, int | None] = field(default_factory=dict)
    header: int | None = None
    named: Mapping[Field, str] = field(default_factory=dict)
    mapping: str | None = None


class Import:
    """One import of one file.

    Attributes:
        import_id: its id; the first event has it as its stream if anything is recorded.
        sheets: the sheets of the file, with their columns.
        rows: the number of rows of data.
        counts: how many rows had each fate so far.
        started: the aggregate, once something was to be recorded.
        left: what became of rows of the chunk in which the import could not go on; `counts` has them.

    """

    def __init__(
        self,
        aggregates: AggregateReader,
        handler: CommandHandler,
        *,
        ledger_id: int,
        actor: Actor,
        policy: Policy,
        file: ReadSheets,
        file_sha256: str,
        options: ImportOptions,
        import_id: UUID | None = None,
    ) -> None:
        """Take a file that was read, and find its columns.

        Args:
            aggregates: what reads the ledger.
            handler: what records.
            ledger_id: the ledger.
            actor: who imports.
            policy: what is allowed here.
            file: the file as it was read.
            file_sha256: the SHA-256 of the file itself.
            options: how it is imported.
            import_id: the id of the import, where it was given one before.

        Raises:
            SheetError: no sheet of it has columns that are known, or one that the mapping names.

        """
        self.import_id = uuid7() if import_id is None else import_id
        self.counts: Counter[Fate] = Counter()
        self.started: SheetImport | None = None
        self.left: Sequence[RowOutcome] = ()
        self._aggregates = aggregates
        self._handler = handler
        self._ledger_id = ledger_id
        self._actor = actor
        self._policy = policy
        self._file = file
        self._file_sha256 = file_sha256
        reading = replace(options.reading, codes_without_secret=policy.codes_without_secret)
        self._options = replace(options, reading=reading)
        self._pretended = Pretended()
        self._begins = asyncio.Lock()
        self._cause: UUID | None = None
        # Whether most rows of late were new, and were recorded.
        self._mostly_new = False
        # Rows that were done before the import was resumed, and from which row on none was recorded then.
        self._rows_before = self._sure_from = 0
        # Why nothing more is recorded.
        self._stops: Exception | None = None
        self.sheets = _sheets(file, options)
        if not any(sheet.columns for sheet in self.sheets):
            raise SheetError(
                f"No row names columns that are known: among the first {HEADER_ROWS} rows, one must name at least two, "
                "such as `Spark Code` and `Video`. Or say which column is what, with `columns`."
            )

        for name in options.named:
            wanted = normal_name(options.named[name])
            if not any(sheet.columns is not None and sheet.columns.titles.get(name) == wanted for sheet in self.sheets):
                raise SheetError(
                    f"No sheet has a column named `{options.named[name]}`, which the mapping reads as `{name}`. "
                    f"Correct the mapping, or say which one it is: `columns={name}=LETTERS`, or `{name}=` for none."
                )
        self._joins = SheetJoins(file, [sheet.columns for sheet in self.sheets], self._is_below_names)
        # Counted now, because the rows are read from one place at a time.
        self.rows = sum(map(self._is_data, file))

    @property
    def mapping(self) -> str | None:
        """The name of the mapping by which the sheet is read."""
        return self._options.mapping

    @property
    def not_used(self) -> Mapping[int, int]:
        """How many rows of each roster, by its index, are neither joined with any row nor judged."""
        return {sheet: self._joins.not_used[sheet] for sheet in self._joins.rosters}

    @property
    def recording(self) -> bool:
        """Whether rows are recorded, and not only judged."""
        return self._options.record

    def _is_data(self, row: SheetRow) -> bool:
        return self._is_below_names(row) and self._joins.is_judged(row)

    def _is_below_names(self, row: SheetRow) -> bool:
        columns = self.sheets[row.sheet].columns
        return columns is not None and row.number > columns.header and not is_trailer(row.cells)

    async def resume(self, counts: Mapping[str, int], unsure: int, stops: Exception | None = None) -> None:
        """Go on where an import was when its process ended.

        Args:
            counts: how many rows had each fate.
            unsure: how many rows after those may have been recorded as well. Their events name this import, so they
                are distinguished from rows that were known before.
            stops: why nothing more is recorded, if that is so. Only those rows are judged then, so that the report has
                them, and this is raised.

        """
        self._stops = stops
        self.counts.update({fate: counts.get(fate, 0) for fate in FATES})
        self._rows_before = self.counts.total()
        self.started, self._cause = await _stored(self._aggregates, self._ledger_id, self.import_id)
        if self.started is not None:
            self._sure_from = self._rows_before + unsure

    async def end_early(self) -> None:
        """Record that the import ended before all rows were judged."""
        if self.started is not None:
            await self._end(complete=False)

    async def outcomes(self, *, goes_on: bool = False) -> AsyncGenerator[Sequence[RowOutcome]]:
        """Yield what becomes of the rows, in their order, and end the import.

        Args:
            goes_on: whether an import that is left before its end goes on later, so that its end is not recorded.

        Raises:
            Unavailable: the database is away; the import can be repeated.
            KeyNoLongerValid: the key was revoked meanwhile.

        """
        complete = False
        try:
            data = itertools.islice((row for row in self._file if self._is_data(row)), self._rows_before, None)
            while chunk := [row for _, row in zip(range(AT_ONCE), data, strict=False)]:
                if self._stops is not None and self.counts.total() >= self._sure_from:
                    raise self._stops
                outcomes = await self._chunk(chunk)
                self.counts.update(outcome.fate for outcome in outcomes)
                new = sum(outcome.fate == "new" for outcome in outcomes)
                self._mostly_new = self.started is not None and self._stops is None and 2 * new > len(outcomes)
                yield outcomes
            complete = True
        finally:
            if self.started is not None and (complete or not goes_on):
                await asyncio.shield(self._end(complete=complete))

    async def _chunk(self, rows: Sequence[SheetRow]) -> list[RowOutcome]:
        """Judge some rows at the same time: one that names what an earlier one names waits for that one."""
        last: dict[str, asyncio.Task[RowOutcome]] = {}
        tasks: list[asyncio.Task[RowOutcome]] = []
        try:
            for row in rows:
                now = self._handler.now()
                facts = self._facts(row, now)
                if isinstance(facts, RowOutcome):
                    tasks.append(asyncio.create_task(_at_once(facts)))
                    continue
                names = _names(facts)
                earlier = [last[name] for name in names if name in last]
                task = asyncio.create_task(self._after(earlier, row, facts))
                tasks.append(task)
                last.update(dict.fromkeys(names, task))
            return list(await asyncio.gather(*tasks))
        except Exception:
            # What the other rows record counts, so they are not cut off.
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            self.left = [outcome for outcome in ended if isinstance(outcome, RowOutcome)]
            self.counts.update(outcome.fate for outcome in self.left)
            raise
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _facts(self, row: SheetRow, now: datetime) -> SheetFacts | RowOutcome:
        joined = self._joins.joined(row)
        if joined.unclear is not None:
            return self._unclear(row, Unclear(*joined.unclear), joined)
        try:
            # Whether the code is known is for the ledger to say.
            return facts_of(joined.cells, self._options.reading, now, is_new=False)
        except Unclear as unclear:
            return self._unclear(row, unclear, joined)

    def _unclear(self, row: SheetRow, unclear: Unclear, joined: JoinedRow | None = None) -> RowOutcome:
        columns = self.sheets[row.sheet].columns
        index = None if columns is None else columns.fields.get(unclear.field)
        place = None if joined is None else joined.taken.get(unclear.field)
        said = ""
        if place is not None:
            said = f" It is from row {place.number} of sheet {place.sheet + 1}."
        elif joined is not None:
            said = joined.left_open.get(unclear.field, "")
        return RowOutcome(
            row,
            "unclear",
            field=unclear.field,
            column=None if index is None or place is not None else column_letters(index),
            reason=unclear.reason,
            detail=f"{unclear.sentence}{said}",
        )

    async def _after(self, earlier: Sequence[asyncio.Task[RowOutcome]], row: SheetRow, facts: SheetFacts) -> RowOutcome:
        for task in earlier:
            await task
        try:
            return await self._row(row, facts)
        except Refused as refusal:
            return RowOutcome(
                row,
                "refused",
                reason=refusal.code,
                detail=refusal.detail,
                conflict_id=refusal.conflict_id,
            )
        except SeveralCodes:
            return self._unclear(row, Unclear("secret", "several_codes"))
        except NoStart:
            return self._unclear(row, Unclear("starts_at", "no_start"))

    async def _row(self, row: SheetRow, facts: SheetFacts) -> RowOutcome:
        code_id = uuid7()
        if self._mostly_new and await self._permission_is_known(facts):
            # One append says whether it is new. If it is not, that costs more than to judge it first.
            outcome = await self._recorded(row, facts, code_id, None)
            return outcome if outcome.position is not None else await self._unrecorded(row, outcome)
        # Judged first as if it were recorded, so that nothing of a row is recorded that is then refused.
        pretended = self._pretended if not self._options.record else Pretended()
        ledger = Rehearsal(await self._aggregates.repository(self._ledger_id), pretended)
        now = self._handler.now()
        since = await permission_since(ledger, facts, now)
        before: Decision[Creator] | None = None
        if since is not None:
            before = await commands.set_permission(
                ledger, facts.creator_id, enabled=True, stream_id=uuid7(), when=When(now, since)
            )
        judged = Rehearsal(ledger, Pretended()) if before is None else _after_permission(ledger, before)
        found = await record_row(judged, self._policy, code_id, facts, when=When(now, now))
        if not self._options.record:
            if before is not None and not found.differences:
                pretended.keep(ledger, before)
            return _outcome(row, found, pretended.keep(ledger, found.decision, facts.secret))
        events = len(found.decision.aggregate.pending_events)
        if not events:
            return await self._unrecorded(row, _outcome(row, found, events))
        await self._begin()
        return await self._recorded(row, facts, code_id, since)

    async def _permission_is_known(self, facts: SheetFacts) -> bool:
        """Tell whether no switch of the permission is to be recorded before a row, as far as this process knows."""
        if not facts.permission:
            return True
        # A switch that was recorded stays, so what was cached is good enough.
        repository = await self._aggregates.repository(self._ledger_id, allow_stale=True)
        creator = await repository.creator(facts.creator_id)
        at = facts.generated_by(self._handler.now())
        return creator is not None and any(switch.at <= at for switch in creator.switches.values())

    async def _unrecorded(self, row: SheetRow, outcome: RowOutcome) -> RowOutcome:
        """Return what became of a row of which nothing is to be recorded, but perhaps in what it differs.

        A row that this import recorded before it was resumed is not just known.
        """
        if outcome.fate == "differs" and self._options.record_differences:
            return await self._note(row, outcome)
        if self.counts.total() >= self._sure_from or outcome.fate != "known" or outcome.code_id is None:
            return outcome
        named = self._metadata(row).correlation_id
        stream = await self._aggregates.code_stream(self._ledger_id, outcome.code_id)
        own = [recorded for recorded in stream if recorded.correlation_id == named]
        if not own:
            return outcome
        return outcome._replace(fate="new" if own[0] is stream[0] else "changed", position=own[-1].position)

    async def _recorded(self, row: SheetRow, facts: SheetFacts, code_id: UUID, since: datetime | None) -> RowOutcome:
        """Record a row; what was recorded since it was judged counts."""
        if since is not None:
            now = self._handler.now()

            async def switch(ledger: Ledger, when: When) -> Decision[Creator] | None:
                return await commands.set_permission(
                    ledger, facts.creator_id, enabled=True, stream_id=uuid7(), when=when
                )

            await self._handler.handle(self._metadata(row, since if since < now else None), switch)
        found: RowDecision | None = None

        async def decide(ledger: Ledger, when: When) -> Decision[Code]:
            nonlocal found
            found = await record_row(ledger, self._policy, code_id, facts, when=when)
            return found.decision

        result = await self._handler.handle(self._metadata(row), decide)
        assert found is not None  # noqa: S101 - it was decided
        outcome = _outcome(row, found, result.appended)
        return outcome._replace(position=result.position if result.appended else None)

    async def _note(self, row: SheetRow, outcome: RowOutcome) -> RowOutcome:
        """Record on a code in what a row contradicts it."""
        code_id = outcome.code_id
        assert code_id is not None  # noqa: S101 - only what is known can be contradicted

        async def decide(ledger: Ledger, when: When) -> Decision[Code]:
            return await note_differences(ledger, code_id, self._file_sha256, outcome.differences, when=when)

        repository = await self._aggregates.repository(self._ledger_id)
        now = self._handler.now()
        if not (await decide(repository, When(now, now))).aggregate.pending_events:
            return outcome
        await self._begin()
        result = await self._handler.handle(self._metadata(row), decide)
        return outcome._replace(position=result.position if result.appended else None)

    async def _begin(self) -> None:
        """Record that the import begins, before the first row that has something to record."""
        if self._stops is not None:
            raise self._stops
        async with self._begins:
            if self.started is not None:
                return
            facts = {
                "file_sha256": self._file_sha256,
                "rows": self.rows,
                "columns": self._columns_read(),
                "options": _said_options(self._options),
            }

            async def decide(_: Ledger, when: When) -> Decision[SheetImport]:
                return begin_import(self.import_id, when=when, **facts)

            result = await self._handler.handle(self._metadata(None), decide)
            recorded = await self._aggregates.events.event(self._ledger_id, result.position)
            self._cause = None if recorded is None else recorded.event_id
            self.started = result.aggregate

    async def _end(self, *, complete: bool) -> None:
        started = self.started
        assert started is not None  # noqa: S101 - otherwise nothing was recorded
        metadata = self._metadata(None)
        self.started = await _record_end(self._handler, metadata, started, self.all_counts(), complete=complete)

    def all_counts(self) -> dict[str, int]:
        """Return how many rows had each fate, also those that none had."""
        return {fate: self.counts[fate] for fate in FATES}

    def _columns_read(self) -> dict[str, str]:
        """Return which column of which sheet, counted from 1, was read as what. Names may be anything, and stay out."""
        return {
            f"{number}!{column_letters(index)}": name
            for number, sheet in enumerate(self.sheets, 1)
            if sheet.columns is not None
            for name, index in sorted(sheet.columns.fields.items(), key=lambda item: item[1])
        }

    def _metadata(self, row: SheetRow | None, effective_at: datetime | None = None) -> CommandMetadata:
        place = "" if row is None else f":{row.sheet + 1}:{row.number}"
        return CommandMetadata(
            ledger_id=self._ledger_id,
            actor=self._actor,
            correlation_id=f"import:{self.import_id}{place}",
            causation_id=self._cause,
            effective_at=effective_at,
        )


async def end_unread(
    aggregates: AggregateReader,
    handler: CommandHandler,
    *,
    ledger_id: int,
    actor: Actor,
    import_id: UUID,
    counts: Mapping[str, int],
) -> None:
    """Record that an import ended early whose sheet cannot be read any more, if it was begun."""
    started, cause = await _stored(aggregates, ledger_id, import_id)
    if started is not None:
        metadata = CommandMetadata(
            ledger_id=ledger_id, actor=actor, correlation_id=f"import:{import_id}", causation_id=cause
        )
        said: dict[str, int] = {fate: counts.get(fate, 0) for fate in FATES}
        await _record_end(handler, metadata, started, said, complete=False)


async def _stored(
    aggregates: AggregateReader, ledger_id: int, import_id: UUID
) -> tuple[SheetImport | None, UUID | None]:
    """Return an import as far as it is recorded, and the id of its first event."""
    stream = await aggregates.events.stream(ledger_id, import_id) or []
    started: SheetImport | None = None
    for recorded in stream:
        started = cast("SheetImport", recorded.event.mutate(started))
    return started, stream[0].event_id if stream else None


async def _record_end(
    handler: CommandHandler,
    metadata: CommandMetadata,
    started: SheetImport,
    counts: dict[str, int],
    *,
    complete: bool,
) -> SheetImport:
    """Record what became of the rows; where that fails, the import has no end, and its rows stay recorded."""

    async def decide(_: Ledger, when: When) -> Decision[SheetImport]:
        return end_import(copied(started), complete=complete, counts=counts, when=when)

    try:
        result = await handler.handle(metadata, decide)
    except Exception as error:  # noqa: BLE001 - what ended the import is raised, and not this
        log.warning("The end of import %s could not be recorded: %s", started.id, error)
        return started
    return started if result.aggregate is None else result.aggregate


def _sheets(file: ReadSheets, options: ImportOptions) -> list[SheetColumns]:
    first: list[list[tuple[int, list[str]]]] = [[] for _ in file.names]
    for row in file:
        if len(first[row.sheet]) < HEADER_ROWS:
            first[row.sheet].append((row.number, row.cells))
    return [
        SheetColumns(name, find_columns(rows, options.columns, options.header, options.named))
        for name, rows in zip(file.names, first, strict=True)
    ]


def _names(facts: SheetFacts) -> list[str]:
    """Return what a row names: of two rows that name the same, the later one waits for the earlier one."""
    names = [f"video {facts.video_id}"]
    if facts.secret is not None:
        names.append(f"secret {secret_name(facts.secret)}")
    if facts.code_id is not None:
        names.append(f"code {facts.code_id}")
    # Only a row that may switch the permission must not meet another one of its creator.
    if facts.permission:
        names.append(f"creator {creator_name(facts.creator_id)}")
    return names


async def _at_once(outcome: RowOutcome) -> RowOutcome:
    return outcome


def _after_permission(ledger: Rehearsal, before: Decision[Creator]) -> Rehearsal:
    """Return a ledger in which the permission is switched, without a trace in the other one."""
    pretended = Pretended()
    pretended.creators[creator_name(before.aggregate.creator_id)] = before.aggregate
    return Rehearsal(ledger, pretended)


def _outcome(row: SheetRow, found: RowDecision, events: int) -> RowOutcome:
    code_id = found.decision.aggregate.id
    if found.differences:
        named = ", ".join(one.field for one in found.differences)
        return RowOutcome(
            row,
            "differs",
            code_id,
            detail=f"The code is known with another {named}. Nothing was changed. Check which is right.",
            differences=found.differences,
        )
    if not found.existing:
        return RowOutcome(row, "new", code_id)
    return RowOutcome(row, "changed" if events else "known", code_id)


def _said_options(options: ImportOptions) -> dict[str, str]:
    reading = options.reading
    said = {
        "mapping": options.mapping,
        "dates": reading.dates,
        "time_zone": str(reading.zone),
        "days": None if reading.length is None else str(reading.length.days),
        "terms": reading.terms_version,
        "permission": "true" if reading.permission else None,
        "record_differences": "true" if options.record_differences else None,
    }
    return {name: value for name, value in said.items() if value is not None}
