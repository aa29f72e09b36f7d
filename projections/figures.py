"""How much happened in each month: in all, and for each creator, brand, advertiser account and video?

Reads the events that begin a code, move its window, share, redeem, reveal or revoke it, refuse its redemption, and
launch or end its campaigns. Read by the figures. Months are of effective time, in UTC.

The row of a code has what its figures follow from, and its figures by month. An event changes the row, and the
difference is added to the sums of the ledger, of the creator, and of the brands and accounts that it concerns. So what
is recorded late counts in its own month, and a report reads sums, however many codes there are. A video has few codes:
its figures are summed from their rows when somebody asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from operator import add
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from domain.campaign import STOP_REASONS, two_decimals
from domain.code import Code
from projections.campaigns import campaign_stop, statements, with_statement
from projections.code_timeline import CodePeriods, move_end, periods_of
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from domain.recorded import RecordedEvent

NAME: Final = "figures"
VERSION: Final = 2

Kind = Literal["ledger", "creator", "brand", "advertiser"]

# What is recorded longer than this after it took effect is counted as late.
LATE: Final = timedelta(days=1)
VERY_LATE: Final = timedelta(days=30)
# How a code's row names a month.
_MONTH: Final = "%Y-%m"


@dataclass(slots=True)
class CodeFiguresRow(CodePeriods):
    """What the figures of one code follow from, in effective times.

    Attributes:
        shared_at, redeemed_at: the first time; None if there was none.
        counted: in RFC 3339, when each share and each redemption took effect, by what identifies it, and when each
            brand and each account was first in a share. What is recorded again, because it was earlier than was known,
            counts once. None without any.
        campaigns: by campaign id: in RFC 3339 its own end, its launch, when somebody ended it, and when its code was
            revoked, if an event said so; then its advertiser account, its planned spend in hundredths, and the currency
            of that. None without campaigns.
        rights: under `stated`, the statements of usage rights in the order in which they took effect: when, and their
            end or None. None without any.
        months: by month, such as `2026-03`: the code's figures, in the order of `FIGURES`.

    """

    creator_id: str
    video_id: str
    shared_at: datetime | None
    redeemed_at: datetime | None
    revoked_at: datetime | None
    counted: dict[str, Any] | None
    campaigns: dict[str, Any] | None
    rights: dict[str, Any] | None
    months: dict[str, Any]


class MonthRow(NamedTuple):
    """The figures of one party in the month that begins at `month` in UTC.

    Attributes:
        kind: `ledger` for the sums over all codes, `creator`, `brand` or `advertiser`.
        party_id: the party's id; empty for the ledger.
        issued: codes that began.
        recorded: of these, codes that TikTok generated and that were recorded here.
        extended: extensions.
        shares: shares.
        codes_shared: codes shared for the first time, of a brand or an account with it.
        redemptions: redemptions.
        codes_redeemed: codes redeemed for the first time, of an account by it.
        redeemed_after_s: the sum of the times from their issue to that, in seconds.
        refused: recorded refusals of redemptions.
        reveals: secrets shown again.
        revoked: codes revoked.
        ended: windows that ended, or will end.
        launched: campaigns launched.
        beyond: of these, campaigns that the end or the revocation of their code stops before their own end.
        late, very_late: facts recorded more than `LATE` and more than `VERY_LATE` after they took effect.

    """

    ledger_id: int
    kind: str
    party_id: str
    month: datetime
    issued: int
    recorded: int
    extended: int
    shares: int
    codes_shared: int
    redemptions: int
    codes_redeemed: int
    redeemed_after_s: int
    refused: int
    reveals: int
    revoked: int
    ended: int
    launched: int
    beyond: int
    late: int
    very_late: int


class SpendRow(NamedTuple):
    """The planned spend, in hundredths of a currency, on the campaigns that a party's codes had launched in a month."""

    ledger_id: int
    kind: str
    party_id: str
    month: datetime
    currency: str
    hundredths: int


CODES: Final = Table(
    "figures",
    CodeFiguresRow,
    key=("ledger_id", "code_id"),
    fixed=(
        "start_stated",
        "creator_id",
        "video_id",
    ),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            code_id         uuid NOT NULL,
            issued_at       timestamptz NOT NULL,
            start_stated    boolean NOT NULL,
            first_end       timestamptz NOT NULL,
            first_set_at    timestamptz,
            expires_at      timestamptz NOT NULL,
            moved           jsonb,
            creator_id      text NOT NULL,
            video_id        text NOT NULL,
            shared_at       timestamptz,
            redeemed_at     timestamptz,
            revoked_at      timestamptz,
            counted         jsonb,
            campaigns       jsonb,
            rights          jsonb,
            months          jsonb NOT NULL,
            PRIMARY KEY (ledger_id, code_id)
        ) WITH (fillfactor = 80) -- no update changes an indexed column: it stays in its block while that has room
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, video_id)",
        "CREATE INDEX ON {table} (ledger_id, creator_id, video_id)",
    ),
)

FIGURES: Final = (
    "issued",
    "recorded",
    "extended",
    "shares",
    "codes_shared",
    "redemptions",
    "codes_redeemed",
    "redeemed_after_s",
    "refused",
    "reveals",
    "revoked",
    "ended",
    "launched",
    "beyond",
    "late",
    "very_late",
)
(
    ISSUED,
    RECORDED,
    EXTENDED,
    SHARES,
    CODES_SHARED,
    REDEMPTIONS,
    CODES_REDEEMED,
    REDEEMED_AFTER_S,
    REFUSED,
    REVEALS,
    REVOKED,
    ENDED,
    LAUNCHED,
    BEYOND,
    LATE_FACTS,
    VERY_LATE_FACTS,
) = range(len(FIGURES))


def _of_the_ledger(key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the key of the ledger's sum to which a creator's is added: each code has one creator."""
    ledger_id, kind, _, *rest = key
    return (ledger_id, "ledger", "", *rest) if kind == "creator" else None


MONTHS: Final = Table(
    "figures_months",
    MonthRow,
    key=("ledger_id", "kind", "party_id", "month"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            kind                text NOT NULL,
            party_id            text NOT NULL,
            month               timestamptz NOT NULL,
            issued              int NOT NULL,
            recorded            int NOT NULL,
            extended            int NOT NULL,
            shares              int NOT NULL,
            codes_shared        int NOT NULL,
            redemptions         int NOT NULL,
            codes_redeemed      int NOT NULL,
            redeemed_after_s    bigint NOT NULL,
            refused             int NOT NULL,
            reveals             int NOT NULL,
            revoked             int NOT NULL,
            ended               int NOT NULL,
            launched            int NOT NULL,
            beyond              int NOT NULL,
            late                int NOT NULL,
            very_late           int NOT NULL,
            PRIMARY KEY (ledger_id, kind, party_id, month)
        ) WITH (fillfactor = 50)
    """,
    adds=FIGURES,
    also=_of_the_ledger,
)

SPEND: Final = Table(
    "figures_spend",
    SpendRow,
    key=("ledger_id", "kind", "party_id", "month", "currency"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            kind            text NOT NULL,
            party_id        text NOT NULL,
            month           timestamptz NOT NULL,
            currency        text NOT NULL,
            hundredths      bigint NOT NULL,
            PRIMARY KEY (ledger_id, kind, party_id, month, currency)
        ) WITH (fillfactor = 50)
    """,
    adds=("hundredths",),
    also=_of_the_ledger,
)


def month_of(moment: datetime) -> datetime:
    """Return the beginning, in UTC, of a moment's month."""
    return _beginning_of(moment.year, moment.month)


@lru_cache(maxsize=4_096)
def _beginning_of(year: int, month: int) -> datetime:
    """Return the beginning of a month, always as the same object, because it is hashed again and again."""
    return datetime(year, month, 1, tzinfo=UTC)


Party = tuple[Kind, str]
Sum = MonthRow | SpendRow
# A quarter of the time of calling the class.
_month: Final[Callable[[tuple[Any, ...]], MonthRow]] = partial(tuple.__new__, MonthRow)


class _Changes:
    """What an event adds to the figures of its code, and to those of the brands and accounts that it concerns."""

    __slots__ = ("_code", "_parties", "_spend")

    def __init__(self) -> None:
        self._code: dict[datetime, list[int]] = {}
        self._parties: dict[tuple[str, str, datetime], list[int]] = {}
        self._spend: dict[tuple[str, str, datetime, str], int] = {}

    def of_code(self, figure: int, at: datetime, count: int) -> None:
        month = _beginning_of(at.year, at.month)
        counts = self._code.get(month)
        if counts is None:
            counts = self._code[month] = [0] * len(FIGURES)
        counts[figure] += count

    def of_party(self, kind: Kind, party_id: str, figure: int, at: datetime, count: int) -> None:
        key = (kind, party_id, _beginning_of(at.year, at.month))
        counts = self._parties.get(key)
        if counts is None:
            counts = self._parties[key] = [0] * len(FIGURES)
        counts[figure] += count

    def move(
        self, figure: int, before: datetime | None, at: datetime, *, code: bool, parties: Iterable[Party] = ()
    ) -> None:
        """Count what is counted once at a moment, and no longer at the later one at which it was counted before."""
        if before is not None and before <= at:
            return
        for moment, count in ((at, 1),) if before is None else ((before, -1), (at, 1)):
            if code:
                self.of_code(figure, moment, count)
            for kind, party_id in parties:
                self.of_party(kind, party_id, figure, moment, count)

    def spend(self, kind: Kind, party_id: str, currency: str, at: datetime, hundredths: int) -> None:
        key = (kind, party_id, _beginning_of(at.year, at.month), currency)
        self._spend[key] = self._spend.get(key, 0) + hundredths

    def late(self, recorded: RecordedEvent, *parties: Party) -> None:
        """Count a fact that was recorded long after it took effect."""
        delay = recorded.recorded_at - recorded.effective_at
        for figure in () if delay <= LATE else (LATE_FACTS,) if delay <= VERY_LATE else (LATE_FACTS, VERY_LATE_FACTS):
            self.of_code(figure, recorded.effective_at, 1)
            for kind, party_id in parties:
                self.of_party(kind, party_id, figure, recorded.effective_at, 1)

    def apply(self, row: CodeFiguresRow) -> list[Sum]:
        """Add the changes to the code's own figures, and return what they add to the sums."""
        ledger_id, creator_id, known = row.ledger_id, row.creator_id, row.months
        rows: list[Sum] = []
        for month, counts in self._code.items():
            name = _name_of(month)
            before = known.get(name)
            known[name] = counts if before is None else [*map(add, before, counts)]
            rows.append(_month((ledger_id, "creator", creator_id, month, *counts)))
        for (kind, party_id, month), counts in self._parties.items():
            rows.append(_month((ledger_id, kind, party_id, month, *counts)))
        for spent, hundredths in self._spend.items():
            rows.append(SpendRow(ledger_id, *spent, hundredths))
        return rows


@lru_cache(maxsize=4_096)
def _name_of(month: datetime) -> str:
    return month.strftime(_MONTH)


# What follows from several facts of a code, and is subtracted before one of them changes and added again after it.


def _count_issue(row: CodeFiguresRow, changes: _Changes, count: int, *, was_recorded: bool) -> None:
    """Count the issue of a code, and the times from it to each redemption."""
    changes.of_code(ISSUED, row.issued_at, count)
    if was_recorded:
        changes.of_code(RECORDED, row.issued_at, count)


def _count_times(row: CodeFiguresRow, changes: _Changes, count: int) -> None:
    """Count the times from the issue of a code to its redemptions."""
    if row.redeemed_at is not None:
        changes.of_code(REDEEMED_AFTER_S, row.redeemed_at, count * _seconds(row.redeemed_at - row.issued_at))
    for key, text in (row.counted or {}).items():
        what, _, party_id = key.partition(" ")
        if what == "redemption":
            at = datetime.fromisoformat(text)
            changes.of_party("advertiser", party_id, REDEEMED_AFTER_S, at, count * _seconds(at - row.issued_at))


def _seconds(passed: timedelta) -> int:
    return passed // timedelta(seconds=1)


def _count_ends(row: CodeFiguresRow, changes: _Changes, count: int) -> None:
    """Count the ends of a code's window, unless it was revoked by then."""
    if row.moved is None:  # most codes have one end
        if _counts_as_end(row, row.first_end):
            changes.of_code(ENDED, row.first_end, count)
        return
    open_in = periods_of(row)
    begun = {period.starts_at for period in open_in[1:]}
    for period in open_in:
        if period.expires_at not in begun and _counts_as_end(row, period.expires_at):
            changes.of_code(ENDED, period.expires_at, count)


def _counts_as_end(row: CodeFiguresRow, end: datetime) -> bool:
    return end > row.issued_at and (row.revoked_at is None or end < row.revoked_at)


def _count_beyond(row: CodeFiguresRow, changes: _Changes, count: int) -> None:
    """Count the campaigns that their code stops before their own end, in the months of their launches."""
    if not row.campaigns:
        return
    open_in = periods_of(row)
    rights = () if row.rights is None else statements(row.rights["stated"])
    for ends_at, launched_at, ended_at, revoked_at, advertiser_id, *_ in row.campaigns.values():
        launch = datetime.fromisoformat(launched_at)
        stop = campaign_stop(
            datetime.fromisoformat(ends_at),
            launch,
            None if ended_at is None else datetime.fromisoformat(ended_at),
            None if revoked_at is None else datetime.fromisoformat(revoked_at),
            open_in=open_in,
            revoked_at=row.revoked_at,
            rights=rights,
        )
        if STOP_REASONS[stop.by] == "code_end":
            changes.of_code(BEYOND, launch, count)
            changes.of_party("advertiser", advertiser_id, BEYOND, launch, count)


def _moved(row: CodeFiguresRow, key: str, at: datetime) -> datetime | None:
    """Note when something took effect if that was earlier than was known, and return when it was known to."""
    known = row.counted or {}
    text = known.get(key)
    before = None if text is None else datetime.fromisoformat(text)
    if before is None or at < before:
        row.counted = {**known, key: at.isoformat()}
    return before


def _was_known_at(row: CodeFiguresRow, changes: _Changes, at: datetime) -> None:
    """Move the issue of a code of which nobody stated the start to the first that is known of it."""
    if row.start_stated or at >= row.issued_at:
        return
    was_recorded = any(counts[RECORDED] for counts in row.months.values())
    _count_issue(row, changes, -1, was_recorded=was_recorded)
    _count_times(row, changes, -1)
    row.issued_at = at
    _count_issue(row, changes, 1, was_recorded=was_recorded)
    _count_times(row, changes, 1)


# Handlers, in the order of a code's life.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeFiguresRow:
    return CodeFiguresRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        issued_at=min(recorded.effective_at, event.starts_at) if event.start_stated else recorded.effective_at,
        start_stated=event.start_stated,
        first_end=event.expires_at,
        first_set_at=None,
        expires_at=event.expires_at,
        moved=None,
        creator_id=event.creator_id,
        video_id=event.video_id,
        shared_at=None,
        redeemed_at=None,
        revoked_at=None,
        counted=None,
        campaigns=None,
        rights=None,
        months={},
    )


def issued(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.Generated) -> list[Sum]:
    changes = _Changes()
    _count_issue(row, changes, 1, was_recorded=event.was_recorded)
    _count_ends(row, changes, 1)
    changes.late(recorded)
    return changes.apply(row)


def extended(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.Extended) -> list[Sum]:
    changes = _Changes()
    changes.of_code(EXTENDED, recorded.effective_at, 1)
    _count_ends(row, changes, -1)
    _count_beyond(row, changes, -1)
    move_end(row, recorded.effective_at, event.expires_at)
    _count_ends(row, changes, 1)
    _count_beyond(row, changes, 1)
    changes.late(recorded)
    return changes.apply(row)


def rights_stated(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.RightsStated) -> list[Sum]:
    changes = _Changes()
    _count_beyond(row, changes, -1)
    known = () if row.rights is None else row.rights["stated"]
    row.rights = {"stated": with_statement(known, recorded, event)}
    _count_beyond(row, changes, 1)
    changes.late(recorded)
    return changes.apply(row)


def shared(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.Shared) -> list[Sum]:
    changes, at = _Changes(), recorded.effective_at
    _was_known_at(row, changes, at)
    brand: Party = ("brand", event.brand_id)
    parties: tuple[Party, ...] = (brand,)
    if event.advertiser_id is not None:
        parties = (brand, ("advertiser", event.advertiser_id))
    key = f"share {event.brand_id} {event.channel} {event.advertiser_id or ''} {event.note_fingerprint or ''}"
    before = _moved(row, key, at)
    changes.move(SHARES, before, at, code=True, parties=parties)
    for party in parties:
        changes.move(CODES_SHARED, _moved(row, " ".join(party), at), at, code=False, parties=(party,))
    if row.shared_at is None or at < row.shared_at:
        changes.move(CODES_SHARED, row.shared_at, at, code=True)
        row.shared_at = at
    # A share that names an account is the brand's fact: counted for both, it would count twice for the brand.
    changes.late(recorded, brand)
    return changes.apply(row)


def redeemed(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.Redeemed) -> list[Sum]:
    changes, at = _Changes(), recorded.effective_at
    _was_known_at(row, changes, at)
    _count_times(row, changes, -1)
    account: Party = ("advertiser", event.advertiser_id)
    before = _moved(row, f"redemption {event.advertiser_id}", at)
    changes.move(REDEMPTIONS, before, at, code=True, parties=(account,))
    changes.move(CODES_REDEEMED, before, at, code=False, parties=(account,))
    if row.redeemed_at is None or at < row.redeemed_at:
        changes.move(CODES_REDEEMED, row.redeemed_at, at, code=True)
        row.redeemed_at = at
    _count_times(row, changes, 1)
    changes.late(recorded, account)
    return changes.apply(row)


def redemption_refused(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.RedemptionRefused) -> list[Sum]:
    changes = _Changes()
    changes.of_code(REFUSED, recorded.effective_at, 1)
    changes.of_party("advertiser", event.advertiser_id, REFUSED, recorded.effective_at, 1)
    return changes.apply(row)


def revealed(row: CodeFiguresRow, recorded: RecordedEvent, _event: Code.Revealed) -> list[Sum]:
    changes = _Changes()
    changes.of_code(REVEALS, recorded.effective_at, 1)
    return changes.apply(row)


def campaign_launched(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.CampaignLaunched) -> list[Sum]:
    changes, at = _Changes(), recorded.effective_at
    known = row.campaigns or {}
    ends: list[Any] = [None, None]
    _count_beyond(row, changes, -1)
    if event.campaign_id in known:  # launched earlier than was known
        _, launched_at, *ends, account, hundredths, currency = known[event.campaign_id]
        _count_launch(row, changes, (account, hundredths, currency), datetime.fromisoformat(launched_at), -1)
    spent = (event.advertiser_id, _hundredths(event.budget["amount"]), event.budget["currency"])
    _count_launch(row, changes, spent, at, 1)
    row.campaigns = {**known, event.campaign_id: [event.ends_at.isoformat(), at.isoformat(), *ends, *spent]}
    _count_beyond(row, changes, 1)
    changes.late(recorded, ("advertiser", event.advertiser_id))
    return changes.apply(row)


def _count_launch(
    row: CodeFiguresRow, changes: _Changes, spent: tuple[str, int, str], at: datetime, count: int
) -> None:
    account, hundredths, currency = spent
    changes.of_code(LAUNCHED, at, count)
    changes.of_party("advertiser", account, LAUNCHED, at, count)
    parties: tuple[Party, ...] = (("creator", row.creator_id), ("advertiser", account))
    for kind, party_id in parties:
        changes.spend(kind, party_id, currency, at, count * hundredths)


def _hundredths(amount: str) -> int:
    return int(two_decimals(amount).replace(".", ""))


def campaign_ended(row: CodeFiguresRow, recorded: RecordedEvent, event: Code.CampaignEnded) -> list[Sum]:
    if event.cause == "code_expired":
        return []  # the window says so, if it is true
    changes = _Changes()
    known = row.campaigns or {}
    _count_beyond(row, changes, -1)
    ends_at, launched_at, ended_at, revoked_at, *spent = known[event.campaign_id]
    if event.cause == "ended":
        ended_at = recorded.effective_at.isoformat()
        changes.late(recorded, ("advertiser", event.advertiser_id))
    else:  # its revocation is a fact of its own
        revoked_at = recorded.effective_at.isoformat()
    row.campaigns = {**known, event.campaign_id: [ends_at, launched_at, ended_at, revoked_at, *spent]}
    _count_beyond(row, changes, 1)
    return changes.apply(row)


def revoked(row: CodeFiguresRow, recorded: RecordedEvent, _event: Code.Revoked) -> list[Sum]:
    changes, at = _Changes(), recorded.effective_at
    if row.revoked_at is None or at < row.revoked_at:
        _count_ends(row, changes, -1)
        _count_beyond(row, changes, -1)
        if row.revoked_at is not None:
            changes.of_code(REVOKED, row.revoked_at, -1)
        row.revoked_at = at
        changes.of_code(REVOKED, at, 1)
        _count_ends(row, changes, 1)
        _count_beyond(row, changes, 1)
    changes.late(recorded)
    return changes.apply(row)


VIEW: Final = View(
    NAME,
    VERSION,
    CODES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Generated: issued,
        Code.Extended: extended,
        Code.RightsStated: rights_stated,
        Code.Shared: shared,
        Code.Redeemed: redeemed,
        Code.RedemptionRefused: redemption_refused,
        Code.Revealed: revealed,
        Code.CampaignLaunched: campaign_launched,
        Code.CampaignEnded: campaign_ended,
        Code.Revoked: revoked,
    },
    secondary=[MONTHS, SPEND],
)
