"""pgbouncer in front of a test's database, as operators put it there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres.embedded.cluster import server_user
from infra.postgres.roles import ROLES
from tests.absent import absent
from tests.conftest import TestDatabase
from tests.places import directory
from tests.waiting import until

PORT: Final = 6432

_CONFIGURATION: Final = """
[databases]
{name} = host={host} port={port} dbname={name}
[pgbouncer]
listen_addr =
listen_port = {own_port}
unix_socket_dir = {directory}
auth_type = trust
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = 4
ignore_startup_parameters = {ignored}
"""


@contextmanager
def pgbouncer(
    database: TestDatabase, mode: Literal["session", "transaction"], *, ignored: str = "options"
) -> Iterator[str]:
    """Run pgbouncer, and yield the connection string of the API's login that leads through it.

    `ignored` names the parameters of a connection that it drops; with others that it does not know, it refuses the
    connection.
    """
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        absent("pgbouncer is not installed: apt-get install pgbouncer")
    place = directory("pgbouncer")
    server = conninfo_to_dict(database.dsn("sparkledger_api"))
    configuration = place / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(
            name=database.name,
            host=server["host"],
            port=server["port"],
            own_port=PORT,
            directory=place,
            mode=mode,
            ignored=ignored,
        )
    )
    (place / "users").write_text("".join(f'"{role}" ""\n' for role in ROLES))
    user = server_user(database.cluster.cluster)
    if user is not None:
        # It does not run as root, and only the server's user passes through the directory in which that listens.
        shutil.chown(place, user.uid, user.gid)
    through = make_conninfo(database.dsn("sparkledger_api"), host=str(place), port=PORT)
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else [],
        )
        try:
            until(lambda: _answers(through))
            yield through
        except AssertionError as error:
            error.add_note((place / "log").read_text()[-2000:])
            raise
        finally:
            process.terminate()
            process.wait(20)
            shutil.rmtree(place)


def _answers(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
