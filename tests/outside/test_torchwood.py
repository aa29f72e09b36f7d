"""Witnesses and clients of others: torchwood's litewitness signs our logs, and programs of others ask our witness.

Needs Go and the Go module proxy, so `make outside` runs it and `make test` does not. litewitness wants an ssh-agent.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Event
from typing import Final

import httpx
import pytest

from infra.proof.checkpoints import ED25519
from infra.proof.configured_witness import ConfiguredWitness
from infra.proof.notes import ED25519_COSIGNATURE, VerifierKey
from infra.proof.sealer import SealerSettings
from infra.proof.witness import Witness
from infra.proof.witness_client import WitnessClient
from tests.conftest import TestDatabase
from tests.infra.opened import Opened, opening
from tests.infra.programs import running
from tests.infra.proof.auditing import record, stopped
from tests.infra.proof.sealing import watching
from tests.waiting import until

SOURCE: Final = Path(__file__).parent / "torchwood"
BUILD_S: Final = 600
RUN_S: Final = 120


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the programs, built: `torchwood` and `litewitness`."""
    for program, where in (("go", "https://go.dev/dl"), ("ssh-agent", "the package openssh-client")):
        if shutil.which(program) is None:
            pytest.fail(f"`make outside` needs {program}: {where}")
    directory = tmp_path_factory.mktemp("torchwood")
    for program, package in (("torchwood", "."), ("litewitness", "filippo.io/torchwood/cmd/litewitness")):
        command = ["go", "build", "-o", str(directory / program), package]
        subprocess.run(command, cwd=SOURCE, check=True, timeout=BUILD_S)
    return directory


def go(programs: Path, *arguments: str) -> str:
    """Run the program of others' libraries, and return what it prints."""
    command = [str(programs / "torchwood"), *arguments]
    result: subprocess.CompletedProcess[str]
    result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    return result.stdout.strip() if result.returncode == 0 else result.stderr


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Opened]:
    async with opening(database) as found:
        yield found


class LiteWitness:
    """torchwood's witness, started, that knows the logs of a database."""

    def __init__(self, programs: Path, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        key = directory / "k"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        agent = f"{directory}/s"
        stack.callback(end, subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.DEVNULL))
        until(lambda: Path(agent).exists())
        subprocess.run(["ssh-add", "-q", key], env={"SSH_AUTH_SOCK": agent}, check=True)
        public = base64.b64decode(key.with_suffix(".pub").read_text().split()[1])
        fingerprint = base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")
        self.key = VerifierKey("witness.example/lite", ED25519_COSIGNATURE, public[-32:])
        port = free_port()
        command = [str(programs / "litewitness"), "-db", str(directory / "w.db"), "-name", self.key.name]
        command += ["-ssh-agent", agent]
        command += ["-key", f"SHA256:{fingerprint}", "-listen", f"127.0.0.1:{port}"]
        stack.callback(end, subprocess.Popen(command, stderr=subprocess.DEVNULL))
        self.url = f"http://127.0.0.1:{port}"
        until(lambda: answers(self.url))

    def know(self, keys: list[str]) -> None:
        """Let it know logs, as its own command does."""
        with closing(sqlite3.connect(self._directory / "w.db")) as connection:
            for key in keys:
                origin = VerifierKey.parse(key).name
                root = base64.b64encode(hashlib.sha256().digest()).decode()
                connection.execute("INSERT INTO log VALUES (?, 0, ?)", (origin, root))
                connection.execute("INSERT INTO key VALUES (?, ?)", (origin, key))
            connection.commit()


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


async def test_litewitness_signs_our_logs_and_refuses_a_second_history(
    programs: Path, opened: Opened, tmp_path: Path
) -> None:
    tenant = await opened.begin()
    settings = SealerSettings(tmp_path / "signing", "ledger.example/log")
    with ExitStack() as stack:
        lite = LiteWitness(programs, tmp_path, stack)
        running_ = stack.enter_context(watching(opened, settings))
        running_.step()
        [(keys,)] = opened.sql("SELECT verifier_keys FROM log_trees")
        lite.know(keys[:1])
        stop = partial(running_.sealer.differs, "witnesses")
        witnesses = [ConfiguredWitness(lite.key, lite.url)]
        client = WitnessClient(opened.database.dsn(), settings.signing_dir, witnesses, stop, Event())
        notes = []
        for size in (1, 255, 256, 257, 5_000):
            record(opened, tenant, size)
            running_.step()
            client.round(running_.connection)
            [(note,)] = opened.sql("SELECT note FROM witnessed_checkpoints WHERE size = %s", size)
            notes.append(tmp_path / f"{size}.note")
            notes[-1].write_text(note)
        sizes = go(programs, "verify", keys[0], lite.key.text, *map(str, notes))
        assert sizes.split() == ["1", "255", "256", "257", "5000"]
        # Negative controls of the program: another witness's key, and a changed size.
        other = VerifierKey(lite.key.name, ED25519_COSIGNATURE, bytes(32)).text
        assert "signatures are valid" in go(programs, "verify", keys[0], other, str(notes[0]))
        notes[0].write_text(notes[0].read_text().replace("\n1\n", "\n2\n"))
        assert "failed" in go(programs, "verify", keys[0], lite.key.text, str(notes[0]))
        # The same origin and keys, and another history.
        opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
        opened.sql("UPDATE events SET body = '{}' WHERE position = 7")
        opened.sql("TRUNCATE log_trees, log_tiles")
        for path in settings.signing_dir.glob("*.signed"):
            path.unlink()
        with watching(opened, settings) as forger:
            forger.step()
            stop = partial(forger.sealer.differs, "witnesses")
            WitnessClient(opened.database.dsn(), settings.signing_dir, witnesses, stop, Event()).round(
                forger.connection
            )
            forger.step()
            assert "has signed another log" in str(stopped(opened, tenant))


SERVE = """
import sys
from cli import main
sys.argv[1:] = ["witness", "--name", "witness.example/ours", "--dir", {directory!r}, "--port", "0"]
main()
"""


def test_a_client_of_others_is_served_by_our_witness(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text(go(programs, "key"))
    with running(SERVE.format(directory=str(tmp_path))) as program:
        url = program.line("up at ").partition("up at ")[2].partition(". ")[0]
        key = program.line("witness.example/ours+")
        assert go(programs, "drive", url, key) == "1000"
        other = VerifierKey("witness.example/ours", ED25519_COSIGNATURE, bytes(32)).text
        assert "failed" in go(programs, "drive", url, other)


REQUEST: Final = re.compile(r"POST \S+\n```\n(.*?)```\nHTTP (\d+)\n", re.DOTALL)


def test_our_witness_answers_torchwoods_own_requests_as_torchwood_does(tmp_path: Path) -> None:
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "filippo.io/torchwood"]
    found = subprocess.run(command, cwd=SOURCE, check=True, capture_output=True, text=True, timeout=BUILD_S)
    testdata = Path(found.stdout.strip()) / "cmd/litewitness/testdata/litewitness.txt"
    text = testdata.read_text()
    public = re.search(r"add-sigsum-log -key=([0-9a-f]{64})", text)
    origin = re.search(r"^(sigsum.org/v1/tree/\S+)$", text, re.MULTILINE)
    assert public is not None
    assert origin is not None
    (tmp_path / "logs").write_text(VerifierKey(origin[1], ED25519, bytes.fromhex(public[1])).text)
    witness = Witness(tmp_path, "example.com/witness", lambda: int(time.time()))
    requests = REQUEST.findall(text)
    expected = [int(status) for _, status in requests]
    assert len(expected) == 9
    # The specification of today says 404 for a log that is not known, and torchwood 403.
    unknown = next(i for i, (body, _) in enumerate(requests) if origin[1] not in body)
    expected[unknown] = 404
    # A signature whose base64 is not canonical is none for us, and an invalid one for torchwood.
    assert expected[1] == 403
    expected[1] = 400
    assert [witness.add_checkpoint(body.encode()).status for body, _ in requests] == expected
    witness.close()
