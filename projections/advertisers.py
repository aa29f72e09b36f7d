"""Whose is an advertiser account, and since when?

Reads every statement of whose an account is. Read by the list of redemptions, for codes that were shared only with
brands: of the statements that had taken effect by a redemption, the last one says which brand the account was of.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from domain.advertiser import Advertiser
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from domain.recorded import RecordedEvent

NAME: Final = "advertisers"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class OwnershipRow:
    """One statement that an account is a brand's; `since` is the effective time, `position` is the event's."""

    ledger_id: int
    position: int
    advertiser_id: str
    brand_id: str
    since: datetime


OWNERSHIPS: Final = Table(
    "advertisers",
    OwnershipRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            position        bigint NOT NULL,
            advertiser_id   text NOT NULL,
            brand_id        text NOT NULL,
            since           timestamptz NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=("CREATE INDEX ON {table} (ledger_id, advertiser_id, since, position)",),
)


def named(ledger_id: int, recorded: RecordedEvent, event: Advertiser.Named) -> OwnershipRow:
    return OwnershipRow(
        ledger_id=ledger_id,
        position=recorded.position,
        advertiser_id=event.advertiser_id,
        brand_id=event.brand_id,
        since=recorded.effective_at,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    OWNERSHIPS,
    row_of=lambda recorded: recorded.position,
    creates={Advertiser.Named: named},
)
