"""What a cluster loses whose commits wait for no standby: why docs/running.md asks for `synchronous_mode`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.faults.callers import MARK, Callers
from tests.faults.patroni import WITHIN_S, Node, Patroni, patroni
from tests.faults.test_patroni import COMMANDS, Site
from tests.infra.eventstore.checker import held
from tests.waiting import until

# Less than a standby may lack that Patroni promotes (`maximum_lag_on_failover`, 1 MiB).
BEHIND_BYTES = 500_000
_BEHIND = f"""
    SELECT coalesce(min(pg_current_wal_lsn() - replay_lsn), 0) > {BEHIND_BYTES}
    FROM pg_stat_replication
"""


@contextmanager
def behind(cluster: Patroni, leader: Node) -> Iterator[None]:
    """Let all standbys fall behind; what is on its way to them when the block ends never arrives."""
    followers = [node for node in cluster.nodes if node is not leader]
    receivers = [one for node in followers for one in node.postgres() if "walreceiver" in " ".join(one.cmdline())]
    for one in receivers:
        one.send_signal(signal.SIGSTOP)
    try:
        until(lambda: bool(leader.asked(_BEHIND)), WITHIN_S)
        yield
    finally:
        for one in receivers:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.parametrize("lagging", [False, True], ids=["standbys follow", "standbys are behind"])
def test_a_cluster_that_waits_for_no_standby_loses_what_none_has(lagging: bool) -> None:
    with patroni(synchronous_mode=False) as cluster:
        site = Site(cluster, None)
        with site.running():
            leader = cluster.until_whole()
            callers = Callers(site, "caller", again=True)
            with callers.calling():
                callers.until_recorded(COMMANDS)
                with behind(cluster, leader) if lagging else contextlib.nullcontext():
                    leader.kill()
                following = cluster.until_another_leads(leader)
                if not lagging:
                    callers.until_recorded(COMMANDS)
                # Otherwise the worker may know what is lost, and then the ledger has stopped.
            there = {event.mark for event in held(following.dsn(), MARK)}
    acknowledged = {one.mark for one in callers.told if one.answer == "recorded"}
    lost = acknowledged - there
    what = f"standbys {BEHIND_BYTES:,} bytes behind" if lagging else "standbys that follow"
    sys.stdout.write(f"{what}: {len(lost)} of {len(acknowledged)} acknowledged commands are lost\n")
    if lagging:
        assert lost
