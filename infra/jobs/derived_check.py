"""Checks of what is stored beside the log, against the log: by a worker, which holds the keys that this needs.

    commitments  each sealed part opens with the key of its creator, and is what the event commits to
    claims       each name is claimed by the stream that the log says, and nothing else is claimed
    views        rows of views are what the events make of them

The watcher of the sealer's process compares the log itself with what was signed, and needs no master key. Both write
the first difference of each part to the same table, which stops the sealer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import orjson
import psycopg
from cryptography.exceptions import InvalidTag

from domain.commands import video_claim
from domain.pasted import secret_name
from domain.values import Sealed
from infra.crypto.envelope import MasterKeyError, associated_data
from infra.crypto.epochs import EpochKeyMissing
from infra.errors import Unavailable
from infra.eventstore.differences import CHECKED, REPORT, RESOLVE, Difference
from infra.eventstore.reader import COLUMNS, to_recorded
from infra.postgres.pool import SHORT, LedgerConnection, session
from infra.postgres.roles import WORKER
from projections import VIEWS
from projections.engine import checkpoints
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.array_columns import Byteas, Uuids
from projections.engine.skipped_events import load_skip_rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from infra.crypto.keyring import Keyring
    from infra.eventstore.differences import Part
    from projections.engine.page import Events
    from projections.engine.view import View

MINUTE_S: Final = 60.0
# How much longer than the work the rest after it is.
REST_SHARE: Final = 19
# Events of a stretch, and events of the streams that they belong to: of longer streams, no view is compared.
STRETCH: Final = 250
MAX_STREAM_EVENTS: Final = 5_000
# Claims that are compared at a time, and codes of one video that are looked up at a time.
CLAIMS: Final = 1_000
CODES_OF_VIDEO: Final = 32
AWAY_S: Final = 5.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"

_LEDGERS: Final = """
    SELECT l.ledger_id, l.name, (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = l.ledger_id), coalesce((
        SELECT e.position FROM events e WHERE e.ledger_id = l.ledger_id ORDER BY e.position DESC LIMIT 1
    ), 0)
    FROM ledgers l
    ORDER BY l.ledger_id
"""

_STRETCH: Final = """
    SELECT e.position, e.stream_id, e.version, e.event_id, e.type, e.creator_id, e.video_id, e.body, e.key_id,
           e.commitment, e.sealed, k.wrapped
    FROM events e
    LEFT JOIN creator_keys k ON k.ledger_id = e.ledger_id AND k.key_id = e.key_id
    WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b
    ORDER BY e.position
    LIMIT %b
"""

_SEALED_OF_CREATOR: Final = _STRETCH.replace(
    "WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b",
    """WHERE e.ledger_id = %b AND e.sealed IS NOT NULL AND e.position > %b AND e.stream_id IN (
        SELECT c.stream_id FROM events c
        WHERE c.ledger_id = e.ledger_id AND c.creator_stream = %b AND c.type = 'CodeGenerated'
    )""",
)

_HOLDERS: Final = "SELECT c.claim, c.stream_id FROM claims c WHERE c.ledger_id = %b AND c.claim = ANY (%b)"

# Claims in their order, each with the first event of its stream.
_CLAIMS: Final = """
    SELECT c.claim, e.position, e.type
    FROM (
        SELECT claim, stream_id FROM claims WHERE ledger_id = %b AND claim > %b ORDER BY claim LIMIT %b
    ) c
    LEFT JOIN events e ON e.ledger_id = %b AND e.stream_id = c.stream_id AND e.version = 1
    ORDER BY c.claim
"""

_STREAMS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM unnest(%b) AS x (stream_id)
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.ledger_id = %b AND e.stream_id = x.stream_id ORDER BY e.version
    ) e
    ORDER BY e.position
    LIMIT %b
"""
)

# Secrets that were attached since: their claims may be counted or not.
_ATTACHED_SINCE: Final = """
    SELECT count(*) FROM events e WHERE e.ledger_id = %b AND e.position > %b AND e.type = 'CodeSecretAttached'
"""

# How many names the first event of a stream claims; that of a code its secret besides, if it has it.
_CLAIMED_BY: Final = {
    "PermissionEnabled": 1,
    "PermissionDisabled": 1,
    "AdvertiserNamed": 1,
    "CodeGenerated": 1,
    "VideoBound": 2,
}

log = logging.getLogger(__name__)


class _Row(NamedTuple):
    """An event with what its checks need; `wrapped` is None for a key that is gone, or where nothing is sealed."""

    position: int
    stream_id: UUID
    version: int
    event_id: UUID
    type: str
    creator_id: str | None
    video_id: str | None
    body: bytes
    key_id: UUID | None
    commitment: bytes | None
    sealed: bytes | None
    wrapped: bytes | None


class _Ledger(NamedTuple):
    """A ledger, and where its events end."""

    ledger_id: int
    name: str
    generation: int
    head: int


@dataclass(slots=True)
class _Pass:
    """A pass over a ledger: first its events, then its claims.

    Attributes:
        head: how far it goes.
        upto: the last event that was compared.
        expected, counted: how many claims the events make, and how many there are.
        claim: the last claim that was compared.
        found: the parts with a difference.

    """

    head: int
    began_at: datetime
    upto: int = 0
    expected: int = 0
    counted: int = 0
    claim: bytes = b""
    events_done: bool = False
    complete: bool = False
    found: set[Part] = field(default_factory=set)


class DerivedCheck:
    """Compares what is derived from the logs with them, as a worker."""

    def __init__(self, conninfo: str, keyring: Keyring) -> None:
        """Take the database, as a login that is or may become the worker's role, and the keys."""
        self._session = session(conninfo, WORKER) | {"target_session_attrs": "primary"}
        self._keyring = keyring
        self._passes: dict[int, _Pass] = {}
        self._open: set[tuple[int, int, Part]] = set()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            try:
                async with await LedgerConnection.connect(**self._session) as connection:
                    while not await _leads(connection):  # noqa: ASYNC110 - the lock is the database's
                        await asyncio.sleep(AWAY_S)
                    while True:
                        await self.minute(connection, asyncio.sleep)
            except (Unavailable, MasterKeyError, LookupError, *SHORT) as error:
                log.warning("Checks of keys, claims and views are delayed: %s", " ".join(str(error).split()))
                await asyncio.sleep(MINUTE_S)

    async def minute(self, connection: LedgerConnection, rest: Callable[[float], Awaitable[None]]) -> None:
        """Begin a pass over each ledger that has none, and go on with all until the minute is over."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + MINUTE_S
        cursor = connection.cursor(binary=True)
        ledgers = [_Ledger(*row) for row in await (await cursor.execute(_LEDGERS)).fetchall()]
        for ledger in ledgers:
            self._passes.setdefault(ledger.ledger_id, _Pass(ledger.head, datetime.now(UTC)))
        going_on = ledgers
        while going_on and loop.time() < ends:
            for ledger in going_on:
                began = loop.time()
                await self._go_on(connection, ledger, self._passes[ledger.ledger_id])
                await rest(REST_SHARE * (loop.time() - began))
            going_on = [ledger for ledger in going_on if not self._passes[ledger.ledger_id].complete]
        for ledger in ledgers:
            if self._passes[ledger.ledger_id].complete:
                del self._passes[ledger.ledger_id]
        await rest(max(0.0, ends - loop.time()))

    async def before_erasure(self, connection: LedgerConnection, ledger_id: int, creator_stream: UUID) -> None:
        """Compare every sealed part of a creator, whose key is about to be destroyed, and write down what differs.

        Afterwards nobody can find out. The erasure does not wait for an explanation.
        """
        cursor = connection.cursor(binary=True)
        ledgers = [_Ledger(*row) for row in await (await cursor.execute(_LEDGERS)).fetchall()]
        ledger = next((one for one in ledgers if one.ledger_id == ledger_id), None)
        if ledger is None:
            return  # it has moved to another server, whose worker carries the erasure out
        after = 0
        while True:
            place = (ledger_id, after, creator_stream, STRETCH)
            rows = [_Row(*row) for row in await (await cursor.execute(_SEALED_OF_CREATOR, place)).fetchall()]
            if not rows:
                return
            for row in rows:
                _, difference = await self._opened(ledger, row)
                if difference is not None:
                    await self._report(connection, ledger, difference)
                    return
            after = rows[-1].position

    async def _go_on(self, connection: LedgerConnection, ledger: _Ledger, one: _Pass) -> None:
        if not one.events_done:
            await self._stretch(connection, ledger, one)
        else:
            await self._claims(connection, ledger, one)
        parts: tuple[Part, ...] = ("commitments", "claims", "views")
        place = (ledger.ledger_id, ledger.generation)
        for part in parts:
            covered = one.began_at if one.complete else None
            await connection.execute(CHECKED, (*place, part, one.began_at, one.upto, covered))
            if one.complete and part not in one.found:
                self._open.discard((*place, part))
                row = await (await connection.execute(RESOLVE, (*place, part))).fetchone()
                if row is not None:
                    log.warning("Ledger %s is as its log says again. Before: %s", ledger.name, row[0])

    async def _stretch(self, connection: LedgerConnection, ledger: _Ledger, one: _Pass) -> None:
        cursor = connection.cursor(binary=True)
        place = (ledger.ledger_id, one.upto, one.head, STRETCH)
        rows = [_Row(*row) for row in await (await cursor.execute(_STRETCH, place)).fetchall()]
        for difference in await self._differences(connection, ledger, rows):
            one.found.add(difference.part)
            await self._report(connection, ledger, difference)
        for row in rows:
            one.expected += _CLAIMED_BY.get(row.type, 0) if row.version == 1 else 0
            one.expected += _has_secret(row)
        one.upto = rows[-1].position if rows else one.head
        one.events_done = one.upto >= one.head or not rows

    async def _differences(
        self, connection: LedgerConnection, ledger: _Ledger, rows: Sequence[_Row]
    ) -> list[Difference]:
        found: list[Difference] = []
        claims: list[tuple[_Row, str, bytes]] = []
        keys = await self._keyring.ledger(ledger.ledger_id)
        for row in rows:
            fields, difference = await self._opened(ledger, row)
            if difference is not None:
                found.append(difference)
            if _has_secret(row) and "secret" in fields:
                claims.append((row, "its secret", keys.claim("secret", secret_name(fields["secret"]))))
            if row.version != 1:
                continue
            if row.type in {"PermissionEnabled", "PermissionDisabled"} and row.creator_id is not None:
                claims.append((row, "its creator", keys.claim("creator", row.creator_id)))
            elif row.type == "AdvertiserNamed":
                claims.append((row, "its account", keys.claim("advertiser", orjson.loads(row.body)["advertiser_id"])))
            elif row.type == "VideoBound":
                claims.append(
                    (row, "the binding of its video", keys.claim("binding", orjson.loads(row.body)["video_id"]))
                )
        found += await self._claimed(connection, ledger, claims)
        found += await self._videos(connection, ledger, [row for row in rows if row.type == "CodeGenerated"])
        view = await self._views(connection, ledger, rows)
        return found if view is None else [*found, view]

    async def _opened(self, ledger: _Ledger, row: _Row) -> tuple[dict[str, Sealed], Difference | None]:
        """Open the sealed part of an event, if its key is there, and compare it with the commitment."""
        if row.sealed is None or row.key_id is None or row.wrapped is None:
            return {}, None
        try:
            key = await self._keyring.opened(ledger.ledger_id, row.key_id, row.wrapped)
        except EpochKeyMissing:
            return {}, None  # an erasure ended the epoch just now; the next pass reads the key as it is then
        except MasterKeyError as error:
            message = (
                f"The key of the sealed part of event {row.position} of ledger {ledger.name} does not open: {error}"
            )
            return {}, Difference("commitments", row.position, "creator_keys.wrapped", message)
        where = associated_data(ledger.ledger_id, row.stream_id, row.version, row.event_id, row.type)
        problem, place, fields = None, "events.sealed", dict[str, Sealed]()
        try:
            commitment, fields = key.open_with_commitment(row.sealed, where)
        except (InvalidTag, ValueError):
            problem = "does not open with the key of its creator"
        else:
            if commitment != row.commitment:
                problem, place = "is not what the event commits to", "events.commitment"
        if problem is None:
            return fields, None
        message = f"The sealed part of event {row.position} of ledger {ledger.name} {problem}."
        return {}, Difference("commitments", row.position, place, message)

    async def _claimed(
        self, connection: LedgerConnection, ledger: _Ledger, claims: Sequence[tuple[_Row, str, bytes]]
    ) -> list[Difference]:
        """Compare claims with the streams that must hold them."""
        holders = await _holders(connection, ledger, [claim for _, _, claim in claims])
        for row, name, claim in claims:
            if holders.get(claim) != row.stream_id:
                what = "is not claimed" if claim not in holders else "is claimed by another stream"
                message = f"Event {row.position} of ledger {ledger.name} and claims differ: {name} {what}."
                return [Difference("claims", row.position, "claims.stream_id", message)]
        return []

    async def _videos(self, connection: LedgerConnection, ledger: _Ledger, codes: Sequence[_Row]) -> list[Difference]:
        """Compare that each code is once among the numbered claims of its video."""
        keys = await self._keyring.ledger(ledger.ledger_id)
        for video_id in dict.fromkeys(row.video_id for row in codes if row.video_id is not None):
            numbered: list[UUID] = []
            while len(numbered) % CODES_OF_VIDEO == 0:
                first = len(numbered) + 1
                names = [video_claim(video_id, number) for number in range(first, first + CODES_OF_VIDEO)]
                claims = [keys.claim("video", name) for name in names]
                holders = await _holders(connection, ledger, claims)
                held = [holders[claim] for claim in claims if claim in holders]
                numbered += held
                if not held:
                    break
            for row in codes:
                if row.video_id == video_id and numbered.count(row.stream_id) != 1:
                    message = (
                        f"Event {row.position} of ledger {ledger.name} and claims differ: its video is not claimed by "
                        "its code, or not once."
                    )
                    return [Difference("claims", row.position, "claims.stream_id", message)]
        return []

    async def _views(self, connection: LedgerConnection, ledger: _Ledger, rows: Sequence[_Row]) -> Difference | None:
        """Compare the rows of views that the streams of some events lead to."""
        streams = list(dict.fromkeys(row.stream_id for row in rows))
        if not streams:
            return None
        async with connection.transaction():
            # Rows, positions and events of one moment.
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor = connection.cursor(binary=True)
            found = await cursor.execute(_STREAMS, (Uuids(streams), ledger.ledger_id, MAX_STREAM_EVENTS))
            events = [(ledger.ledger_id, to_recorded(row)) for row in await found.fetchall()]
            if len(events) == MAX_STREAM_EVENTS:
                return None
            for view in VIEWS:
                difference = await self._view(cursor, ledger, view, events)
                if difference is not None:
                    return difference
        return None

    async def _view(
        self, cursor: psycopg.AsyncCursor[Any], ledger: _Ledger, view: View[Any], events: Events
    ) -> Difference | None:
        state = await checkpoints.load_state(cursor, view.name)
        if state is None or state.state != "following" or state.version != view.version:
            return None
        upto = (await checkpoints.load_positions(cursor, view.name, view.version)).get(ledger.ledger_id, 0)
        skips = await load_skip_rules(cursor, view.name, view.version)
        if any(ledger_id == ledger.ledger_id for ledger_id, _ in skips.events):
            return None  # an operator has let it leave out events, and what follows from them
        changes = await view.fold(cursor, [event for event in events if event[1].position <= upto])
        made = {view.table.key_of(row): row for row in [*changes.created, *changes.updated]}
        if not made:
            return None
        stored = {view.table.key_of(row): row for row in await view.table.load(cursor, list(made))}
        for key, row in made.items():
            if key not in stored:
                message = f"View {view.name} of ledger {ledger.name} has no row {key[1]}, which the log leads to."
                return Difference("views", None, f"views.{view.table.name}", message)
            for column in view.table.columns:
                if getattr(row, column) != getattr(stored[key], column):
                    message = (
                        f"View {view.name} of ledger {ledger.name} differs from the log: column {column} of row "
                        f"{key[1]}. Rebuild it with `sparkledger rebuild {view.name}`."
                    )
                    position = getattr(row, "position", None)
                    return Difference("views", position, f"views.{view.table.name}.{column}", message)
        return None

    async def _claims(self, connection: LedgerConnection, ledger: _Ledger, one: _Pass) -> None:
        """Compare the claims in their order: each belongs to a stream, and there are as many as the events make."""
        cursor = connection.cursor(binary=True)
        place = (ledger.ledger_id, one.claim, CLAIMS, ledger.ledger_id)
        rows = await (await cursor.execute(_CLAIMS, place)).fetchall()
        difference = None
        for _, position, _ in rows:
            if position is None:
                difference = "There is a claim of a stream that the log does not have."
            elif position <= one.head:
                one.counted += 1
        if rows:
            one.claim = rows[-1][0]
        if len(rows) < CLAIMS:
            one.complete = True
            surplus = one.counted - one.expected
            if surplus > 0:
                found = await (await cursor.execute(_ATTACHED_SINCE, (ledger.ledger_id, one.head))).fetchone()
                surplus = max(0, surplus - found[0]) if found is not None else surplus
            if difference is None and surplus != 0:
                difference = f"There are {one.counted} claims, and the events make {one.expected}."
        if difference is not None:
            one.found.add("claims")
            message = f"Claims of ledger {ledger.name} differ from the log: {difference}"
            await self._report(connection, ledger, Difference("claims", None, "claims", message))

    async def _report(self, connection: LedgerConnection, ledger: _Ledger, difference: Difference) -> None:
        part, position, place, message = difference
        if (ledger.ledger_id, ledger.generation, part) in self._open:
            return
        self._open.add((ledger.ledger_id, ledger.generation, part))
        row = (ledger.ledger_id, ledger.generation, part, position, place, message, None)
        if await (await connection.execute(REPORT, row)).fetchone() is not None:
            log.error("%s The log is not sealed until that is resolved.", message)


def _has_secret(row: _Row) -> bool:
    """Return whether an event brings the secret of a code, which is then claimed."""
    return row.type == "CodeSecretAttached" or (row.type == "CodeGenerated" and "fingerprint" in orjson.loads(row.body))


async def _holders(connection: LedgerConnection, ledger: _Ledger, claims: Sequence[bytes]) -> dict[bytes, UUID]:
    cursor = connection.cursor(binary=True)
    found = await cursor.execute(_HOLDERS, (ledger.ledger_id, Byteas(list(claims))))
    return dict(await found.fetchall())


async def _leads(connection: LedgerConnection) -> bool:
    row = await (await connection.execute(_LEAD, (AdvisoryLock.SEALED_CHECK,))).fetchone()
    return row is not None and bool(row[0])
