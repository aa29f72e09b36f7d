"""The advertiser aggregate: whose account it is, as somebody stated it.

    unknown ──AdvertiserNamed──▶ of a brand ──AdvertiserNamed──▶ of another …

A share often names only the brand, and an account enters the code of which nobody said whose it is. Until somebody
says so, whether the code was shared with that account is not known. Statements may be recorded late and in any order:
at each moment the last one holds that had taken effect.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.recording import Recording
from domain.values import FOREVER, When

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Ownership(NamedTuple):
    """An account is a brand's: since when, and which brand's."""

    at: datetime
    brand_id: str


class Advertiser(Recording, Aggregate):
    """An advertiser account. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Advertiser"

    class Event(Aggregate.Event):
        """What is known of the account."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Named(Event, Aggregate.Created):
        """Somebody stated which brand the account is of; the first of these also begins the stream."""

        TOPIC = "AdvertiserNamed"

        RECORDED_BY = ("operator", "admin")
        advertiser_id: str
        brand_id: str

        def mutate(self, aggregate: Any) -> Any:
            """Begin the aggregate where there is none yet, else change the present one."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Advertiser) -> None:
            """Add the statement to those that are known."""
            if self.originator_version == 1:
                aggregate.advertiser_id = self.advertiser_id
                aggregate.owners = {}
            owner = Ownership(self.timestamp, self.brand_id)
            aggregate.owners = {**aggregate.owners, self.originator_version: owner}

    Created = Named  # the library would else add an event of that name, with no wire name of its own

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        advertiser_id: str
        owners: dict[int, Ownership]  # by version

    @classmethod
    def begin(cls, stream_id: UUID, advertiser_id: str, brand_id: str, *, at: datetime) -> Self:
        """Begin the stream of an account by stating whose it is."""
        return cls._create(cls.Named, id=stream_id, timestamp=at, advertiser_id=advertiser_id, brand_id=brand_id)

    def name(self, brand_id: str, *, when: When) -> None:
        """State whose the account is; the same again records nothing, late only where it is of the very moment."""
        known = [owner.brand_id for owner in self._in_effect() if not when.late or owner.at == when.at][-1:]
        if known != [brand_id]:
            self.trigger_event(
                Advertiser.Named,
                timestamp=when.at,
                advertiser_id=self.advertiser_id,
                brand_id=brand_id,
                originator_topic=Advertiser.TOPIC,
            )

    @property
    def brand_id(self) -> str | None:
        """Whose the account is, by all that is known."""
        return self.brand_by(FOREVER)

    def brand_by(self, moment: datetime) -> str | None:
        """Return whose the account was, by what had taken effect at a moment; None where nobody had said so."""
        return ([None] + [owner.brand_id for owner in self._in_effect() if owner.at <= moment])[-1]

    def _in_effect(self) -> list[Ownership]:
        """Return the statements in the order in which they took effect, those of one moment as they were recorded."""
        return [owner for _, owner in sorted(self.owners.items(), key=lambda item: (item[1].at, item[0]))]


def replay_advertiser(stream: Sequence[RecordedEvent]) -> Advertiser:
    """Build an advertiser account from its whole stream, or from the head of it."""
    advertiser = None
    for recorded in stream:
        advertiser = recorded.event.mutate(advertiser)
    return cast("Advertiser", advertiser)
