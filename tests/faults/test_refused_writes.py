"""A disk that fills up, and a server that refuses to write: 503, nothing half done, and on again once it can."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from infra.errors import Unavailable
from infra.eventstore.append import Appended, Replayed
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from infra.postgres.roles import WORKER
from tests.absent import absent
from tests.conftest import TestDatabase
from tests.faults.durable import Scene
from tests.infra.eventstore.appends import keyed, row
from tests.infra.eventstore.checker import Told, held, problems

TASKS = 16
BODY_BYTES = 8_000
SMALL_MEGABYTES, LARGE_MEGABYTES = 6, 256
MARK = "convert_from(body, 'UTF8')::jsonb ->> 'mark'"
SHORT_OF_DISK = "could not record the command. Nothing was recorded"


@dataclass
class Sender:
    """Sends events as large as they may be, and remembers what each was told."""

    writer: GroupCommitWriter
    ledger_id: int
    told: list[Told]

    async def send(self, mark: str | None = None) -> Unavailable | None:
        """Send an event, again if it has a mark already; return why it was not taken."""
        mark = mark or uuid7().hex
        body = f'{{"mark":"{mark}","filling":"{os.urandom(BODY_BYTES // 2).hex()}"}}'.encode()
        request = keyed(self.ledger_id, row(uuid7(), body=body), key=bytes.fromhex(mark), request=mark.encode())
        try:
            outcome = await self.writer.append(request)
        except Unavailable as unavailable:
            self.told.append(Told(self.ledger_id, mark, 1, "unknown"))
            return unavailable
        assert isinstance(outcome, Appended | Replayed)
        self.told.append(Told(self.ledger_id, mark, 1, "recorded", outcome.first, outcome.last))
        return None

    async def until_refused(self) -> list[Unavailable]:
        """Send with many tasks until each of them was refused."""

        async def task() -> Unavailable:
            while (refusal := await self.send()) is None:
                pass
            return refusal

        return list(await asyncio.gather(*(task() for _ in range(TASKS))))

    def refused(self) -> list[str]:
        """Return the marks of what was not acknowledged."""
        answered = {told.mark for told in self.told if told.answer == "recorded"}
        return [told.mark for told in self.told if told.mark not in answered]


@contextlib.asynccontextmanager
async def sending(scene: Scene) -> AsyncIterator[Sender]:
    writer = GroupCommitWriter(scene.database.dsn(WORKER), WORKER)
    writer.start()
    try:
        yield Sender(writer, scene.writes[0].ledger_id, [])
    finally:
        await writer.stop()


@pytest.fixture
def small_disk(scene: Scene) -> Iterator[Path]:
    """A disk of a few megabytes that holds the table of events; the log that recovery needs stays elsewhere."""
    directory = Path(tempfile.mkdtemp(prefix="sl-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MEGABYTES}m,mode=0777", "sparkledger-test", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        directory.rmdir()
        how = "a small disk cannot be mounted here: run as root, in a container with CAP_SYS_ADMIN"
        absent(how)
    try:
        place = directory / "events"
        place.mkdir()
        owner = scene.database.cluster.cluster.directory.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        with psycopg.connect(scene.database.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            connection.execute("ALTER TABLE events SET TABLESPACE small")
        yield directory
    finally:
        scene.database.cluster.stop()
        subprocess.run(["umount", str(directory)], check=True)
        directory.rmdir()


async def test_a_full_disk_turns_callers_away_and_takes_them_once_there_is_room(scene: Scene, small_disk: Path) -> None:
    async with sending(scene) as sender:
        refusals = await sender.until_refused()
        assert {str(refusal) for refusal in refusals if SHORT_OF_DISK not in str(refusal)} == set()
        assert all(isinstance(refusal.__cause__, psycopg.errors.DiskFull) for refusal in refusals)
        before = check(scene.database, sender)
        # Still full: nobody is served, and nobody is hurt.
        assert await sender.send() is not None
        enlarge(small_disk)
        await served_again(scene.database, sender, before)


async def test_a_server_that_becomes_read_only_turns_callers_away_until_it_no_longer_is(scene: Scene) -> None:
    async with sending(scene) as sender:
        for _ in range(50):
            assert await sender.send() is None
        refusing = asyncio.create_task(sender.until_refused())
        set_read_only(scene.database, "on")
        refusals = await refusing
        assert {type(refusal.__cause__) for refusal in refusals} == {psycopg.errors.ReadOnlySqlTransaction}
        before = check(scene.database, sender)
        set_read_only(scene.database, "off")
        await served_again(scene.database, sender, before)


def check(database: TestDatabase, sender: Sender) -> int:
    """Check what callers were told, of whom those refused were told that nothing was recorded; count the events."""
    log = held(database.dsn(), MARK)
    assert problems(sender.told, log) == []
    recorded = {event.mark for event in log}
    assert [mark for mark in sender.refused() if mark in recorded] == []
    return sum(event.mark is not None for event in log)


async def served_again(database: TestDatabase, sender: Sender, before: int) -> None:
    """Send again what was refused, and more, until everything is acknowledged."""
    again = sender.refused()
    async with asyncio.timeout(30):
        for mark in again:
            while await sender.send(mark) is not None:
                continue
    for _ in range(50):
        assert await sender.send() is None
    assert sender.refused() == []
    assert problems(sender.told, held(database.dsn(), MARK)) == []
    sys.stdout.write(f"{before} events before; {len(again)} refused and sent again; {len(sender.told)} attempts\n")
    assert len(again) >= TASKS


def enlarge(directory: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGE_MEGABYTES}m", str(directory)], check=True)


def set_read_only(database: TestDatabase, switch: str) -> None:
    with psycopg.connect(database.dsn(), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {switch}")
        connection.execute("SELECT pg_reload_conf()")
