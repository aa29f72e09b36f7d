"""Servers that follow another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from infra.postgres.embedded.cluster import Cluster, binary, server_user
from infra.postgres.embedded.server import EmbeddedPostgres
from tests.waiting import until

WITHIN_S: Final = 300.0

_FOLLOWED: Final = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"


def make_standby(primary: EmbeddedPostgres, standby: Cluster) -> None:
    """Copy a running server for another one to follow it."""
    reached = make_conninfo(primary.dsn(dbname="postgres"), hostaddr=None)
    copy = [
        str(binary("pg_basebackup")),
        "--dbname",
        reached,
        "--pgdata",
        str(standby.directory),
        "--checkpoint=fast",
        "-R",
    ]
    subprocess.run(copy, check=True, timeout=WITHIN_S)
    # Nobody else passes through the directory in which the primary listens.
    give(standby.directory, primary.cluster)


def give(directory: Path, cluster: Cluster) -> None:
    """Give a directory that somebody else has made to the user that a cluster's server runs as."""
    user = server_user(cluster)
    if user is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user.uid, user.gid)


def wait_for_a_standby(primary: EmbeddedPostgres) -> None:
    """Have every commit of a server wait for a standby, once there is one that follows."""
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        until(lambda: connection.execute(_FOLLOWED).fetchone() is not None, WITHIN_S)
