"""The log of a ledger as an aggregate: what happened to the log itself, in a stream that bears the log's id.

    generation 1 ──LogRestarted──▶ generation 2 ──LogRestarted──▶ …
    one signing key ──LogKeyAdded──▶ two ──LogKeyRetired──▶ one; LogKeyCompromised ends a key at once

After a restore from a backup, or a failover that lost events, positions may mean other events than before. Readers
must not go on silently, so the log goes on as another generation, under another history id, and says so in an event.
What becomes of the keys that sign the log is in the log, too: it is signed by the key of before, and cannot be hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Log(Recording, Aggregate):
    """The log of one ledger. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Log"

    class Event(Aggregate.Event):
        """An event of the log itself. It concerns no code and no creator."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Changed(Event, Aggregate.Created):
        """Something happened to the log. The first of these events also begins the stream."""

        TOPIC = "LogChanged"

        def mutate(self, aggregate: Any) -> Any:
            """Begin the aggregate if there is none yet, otherwise change it."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Log) -> None:
            """Remember nothing: what became of the keys is read from the events."""

    class Restarted(Changed):
        """The log goes on as another generation, because a loss of its newest events was accepted."""

        TOPIC = "LogRestarted"

        RECORDED_BY = ("admin",)
        generation: int
        history: str
        previous_history: str
        common_position: int | None = None
        lost_history: str | None = None
        lost_position: int | None = None
        lost_event_id: str | None = None
        reason: str | None = None

        def apply(self, aggregate: Log) -> None:
            """Remember the generation and its history."""
            aggregate.generation = self.generation
            aggregate.history = self.history

    class KeyAdded(Changed):
        """Another pair of keys signs the log from now on, beside the one before."""

        TOPIC = "LogKeyAdded"

        RECORDED_BY = ("admin",)
        generation: int
        vkey: str
        ml_dsa_vkey: str
        reason: str | None = None

    class KeyRetired(Changed):
        """A pair of keys signs the log no more, because another one has taken over."""

        TOPIC = "LogKeyRetired"

        RECORDED_BY = ("admin",)
        generation: int
        vkey: str
        ml_dsa_vkey: str
        reason: str | None = None

    class KeyCompromised(Changed):
        """Somebody else may have a pair of keys: what it alone has signed counts for nothing."""

        TOPIC = "LogKeyCompromised"

        RECORDED_BY = ("admin",)
        generation: int
        vkey: str
        ml_dsa_vkey: str
        reason: str | None = None

    class HeadsSealed(Changed):
        """How many events each stream and creator, and codes each video, had up to a position: the root of a tree."""

        TOPIC = "HeadsSealed"

        RECORDED_BY = ("clock",)
        generation: int
        upto: int
        root: str
        keys: int
        format: int
        video_salt_hash: str | None = None  # absent in format 1, which had no heads of videos

    Created = Restarted  # otherwise the library adds an event of that name, without a published name

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        generation: int
        history: str

    @classmethod
    def begin(cls, log_id: UUID, kind: type[Changed], *, at: datetime, **facts: Any) -> Self:
        """Begin the stream of a log by its first event; `facts` are the fields of the event."""
        return cls._create(kind, id=log_id, timestamp=at, **facts)

    def change(self, kind: type[Changed], *, at: datetime, **facts: Any) -> None:
        """Record what happened to the log; `facts` are the fields of the event."""
        self.trigger_event(kind, timestamp=at, originator_topic=Log.TOPIC, **facts)


def replay_log(stream: Sequence[RecordedEvent]) -> Log:
    """Build a log from its whole stream."""
    log = None
    for recorded in stream:
        log = recorded.event.mutate(log)
    return cast("Log", log)
