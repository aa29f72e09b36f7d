"""Time stamps of an authority: asked for once an hour, kept only if they are of what was asked, checked in bundles."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from infra.proof import verify
from infra.proof.bundle_check import check_bundle
from infra.proof.evidence_log import MAX_STAMPED, covering
from infra.proof.sealer import SealerSettings
from infra.proof.time_stamps import TimeStamps
from tests import given
from tests.given import CODE
from tests.infra.opened import Opened, Tenant
from tests.infra.proof.auditing import record
from tests.infra.proof.authority import Authority, new_authority, serving
from tests.infra.proof.bundles import Log, bad
from tests.infra.proof.sealing import sealing

STAMPED = "SELECT size, note, response FROM stamped_checkpoints ORDER BY size"


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with serving(tmp_path / "authority") as served:
        yield served


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


async def test_a_log_that_has_grown_is_stamped_when_its_last_stamp_is_old(
    opened: Opened, tenant: Tenant, tmp_path: Path, authority: Authority
) -> None:
    hourly, always = (TimeStamps(opened.database.dsn(), authority.url, every_s) for every_s in (3_600, 0))
    with sealing(opened, SealerSettings(tmp_path / "signing", "ledger.example/log")) as running:
        record(opened, tenant, 3)
        running.step()
        hourly.round(running.connection)
        [(size, note, response)] = opened.sql(STAMPED)
        assert (size, authority.accepts(note.encode(), response)) == (3, True)
        assert not authority.accepts(note.encode() + b"\n", response)
        always.round(running.connection)
        assert len(authority.requests) == 1, "a log that has not grown is not stamped again"
        record(opened, tenant, 5)
        running.step()
        hourly.round(running.connection)
        assert len(authority.requests) == 1, "the last stamp is not an hour old"
        always.round(running.connection)
    assert [size for size, _, _ in opened.sql(STAMPED)] == [3, 5]


@pytest.mark.parametrize("wrong", ["garbage", "another", "refused", "failed", "away"])
async def test_what_is_no_stamp_of_the_checkpoint_is_not_kept(
    opened: Opened, tenant: Tenant, tmp_path: Path, authority: Authority, wrong: str
) -> None:
    # An answer that refuses: status 2, and nothing else.
    refused = bytes.fromhex("30053003020102")
    answers = {
        "garbage": lambda _: (200, b"no stamp"),
        "another": lambda _: (200, authority.stamp_of(b"something else")),
        "refused": lambda _: (200, refused),
        "failed": lambda query: (500, authority.stamp(query)),
        "away": lambda _: (200, b""),
    }
    authority.answer = answers[wrong]
    url = "http://127.0.0.1:1/" if wrong == "away" else authority.url
    with sealing(opened, SealerSettings(tmp_path / "signing", "ledger.example/log")) as running:
        record(opened, tenant, 3)
        running.step()
        TimeStamps(opened.database.dsn(), url).round(running.connection)
    assert opened.sql(STAMPED) == []


# -- In bundles


def stamped(log: Log, authority: Authority, size: int) -> dict[str, bytes]:
    """Return the bundle about the code, with a stamp over an earlier checkpoint."""
    note = log.signed(size).note
    log.stamps = {size: (note, authority.stamp_of(note.encode()))}
    return log.bundle(log.plan({"kind": "code", "code_id": str(CODE)}, [CODE]))


def test_a_stamp_in_a_bundle_is_checked_against_the_authority_that_is_trusted(tmp_path: Path) -> None:
    authority, other = (new_authority(tmp_path / name) for name in ("one", "other"))
    log = Log.of(given.running())
    size = len(log.rows) - 1
    bundle = stamped(log, authority, size)
    path = log.written(tmp_path, bundle)
    alone = verify.verify(path, keys=log.keys)
    assert alone.good, str(alone)
    assert any(mark == "--" and text.startswith(f"time stamp: of events up to {size}") for mark, text in alone.lines)
    trusted = check_bundle(path, keys=log.keys, authorities=authority.certificates)
    assert trusted.good, str(trusted)
    assert any(mark == "ok" and f"events up to {size} were recorded no later than" in t for mark, t in trusted.lines)
    [verdict] = bad(check_bundle(path, keys=log.keys, authorities=other.certificates))
    assert verdict.startswith(f"time stamp: the one of {size} events is not of an authority that you named")
    without = log.written(tmp_path, {name: c for name, c in bundle.items() if "stamped" not in name})
    assert bad(check_bundle(without, keys=log.keys, authorities=authority.certificates)) == [
        "time stamp: the bundle has none"
    ]


def test_a_stamp_of_something_else_is_refused(tmp_path: Path) -> None:
    authority = new_authority(tmp_path / "authority")
    log = Log.of(given.running())
    bundle = stamped(log, authority, 4)
    name = "data/proof/stamped/4"
    other = {**bundle, f"{name}.tsr": authority.stamp_of(b"something else")}
    assert bad(log.verdicts(tmp_path, other)) == ["time stamp: the one of 4 events is of another file"]
    # The authority has stamped it, and it is no state of this log.
    forged = Log([*log.rows[:1], log.rows[2], log.rows[1], *log.rows[3:]], log.signer).signed(4).note.encode()
    forked = {**bundle, name: forged, f"{name}.tsr": authority.stamp_of(forged)}
    assert bad(log.verdicts(tmp_path, forked)) == [
        "time stamp: the checkpoint of 4 events that was stamped is not a state of this log"
    ]
    assert bad(log.verdicts(tmp_path, {n: c for n, c in bundle.items() if not n.endswith(".tsr")})) == [
        f"{name}.tsr is missing"
    ]


def test_an_event_that_claims_to_be_later_than_its_stamp_is_flagged(tmp_path: Path) -> None:
    authority = new_authority(tmp_path / "authority")
    log = Log.of(given.running())
    row = log.rows[-1]
    ahead = row.event.recorded_at + timedelta(days=36_500)
    log.rows[-1] = row._replace(event=row.event._replace(recorded_at=ahead))
    path = log.written(tmp_path, stamped(log, authority, len(log.rows)))
    assert bad(check_bundle(path, keys=log.keys, authorities=authority.certificates)) == [
        f"time stamp: event {len(log.rows)} states that it was recorded after the authority had stamped it"
    ]


def test_a_bundle_has_the_first_stamp_that_covers_each_event_and_a_bounded_number() -> None:
    assert covering([2, 5, 9], [1, 2, 3, 6], (1, 20)) == [2, 5, 9]
    assert covering([2, 5, 9], [10], (1, 20)) == []
    assert covering([2, 5, 9], [3], (6, 20)) == [9]
    many = covering(range(1, 500), range(1, 500), (1, 500))
    assert (len(many) <= MAX_STAMPED + 1, many[0], many[-1]) == (True, 1, 499)
