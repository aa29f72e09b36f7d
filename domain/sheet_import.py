"""The import aggregate: who recorded the rows of a sheet, from which file, read how, and what became of them.

    ImportStarted ──▶ the events of the rows, which name it as their cause ──▶ ImportEnded

The first event is recorded right before the first row that has something to record: a sheet of which everything is
known records nothing. An import that was killed has no end. Importing the same sheet again records what is missing, as
another import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from eventsourcing.domain import Aggregate

from domain.recording import Recording

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class SheetImport(Recording, Aggregate):
    """One import. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "SheetImport"

    class Event(Aggregate.Event):
        """An event of an import. It concerns no code and no creator; the events of its rows do."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Started(Event, Aggregate.Created):
        """An operator began to record the rows of a sheet."""

        TOPIC = "ImportStarted"

        RECORDED_BY = ("operator", "admin")
        file_sha256: str
        rows: int
        columns: dict[str, str]
        options: dict[str, str]

        def apply(self, aggregate: SheetImport) -> None:
            """Remember which file it is."""
            aggregate.file_sha256 = self.file_sha256
            aggregate.ended_at = None

    Created = Started  # otherwise the library adds an event of that name, without a published name

    class Ended(Event):
        """The import ended: `complete` tells whether all rows were looked at, the numbers what became of them."""

        TOPIC = "ImportEnded"

        RECORDED_BY = ("operator", "admin")
        complete: bool
        new: int
        changed: int
        known: int
        differs: int
        refused: int
        unclear: int

        def apply(self, aggregate: SheetImport) -> None:
            """Remember the end."""
            aggregate.ended_at = self.timestamp

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        file_sha256: str
        ended_at: datetime | None

    @classmethod
    def begin(cls, import_id: UUID, *, at: datetime, **facts: Any) -> Self:
        """Begin an import; `facts` are the fields of its first event."""
        return cls._create(cls.Started, id=import_id, timestamp=at, **facts)

    def end(self, *, complete: bool, counts: dict[str, int], at: datetime) -> None:
        """End the import, once; `counts` has the number of rows for each fate."""
        if self.ended_at is None:
            self.trigger_event(SheetImport.Ended, timestamp=at, complete=complete, **counts)
