"""Our witness: it signs what continues, and nothing else, whatever happens at the same time or in between."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from domain.merkle import EMPTY_ROOT
from infra.proof.checkpoints import Checkpoint
from infra.proof.durable_file import write_durably
from infra.proof.notes import MalformedNote, SignedNote, VerifierKey, parse_signatures
from infra.proof.witness import Reply, Witness, WitnessError
from tests.infra.programs import Program, running
from tests.infra.proof.logs import MemoryLog

NOW = 1_764_400_000


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def witness(tmp_path: Path, log: MemoryLog) -> Iterator[Witness]:
    opened = started(tmp_path, log)
    yield opened
    opened.close()


def started(directory: Path, *logs: MemoryLog) -> Witness:
    """Start a witness that knows logs."""
    lines = ["# logs", "", *(key.text for log in logs for key in log.keys)]
    (directory / "logs").write_text("\n".join(lines))
    return Witness(directory, "witness.example/w1", lambda: NOW)


def signed_size(witness: Witness, log: MemoryLog, reply: Reply) -> int:
    """Return the size of the checkpoint that the witness now has, of which the reply has a valid signature."""
    assert reply.status == 200, reply
    kept = SignedNote.parse(witness.checkpoint(log.path.removesuffix(".checkpoint")).body.encode())
    [signature] = SignedNote(kept.checkpoint, parse_signatures(reply.body.encode())).by(witness.key)
    assert witness.key.signed_at(kept.checkpoint, signature) == NOW
    # The signatures of the log stay with it, so that it is evidence against the log.
    assert [key.signed_at(kept.checkpoint, *kept.by(key)) for key in log.keys] == [None, 1_700_000_000]
    return kept.checkpoint.size


def test_it_signs_what_continues(witness: Witness, log: MemoryLog) -> None:
    sizes = [0, 0, 1, 1, 2, 7, 8, 64, 200]
    old = 0
    for size in sizes:
        assert signed_size(witness, log, witness.add_checkpoint(log.request(old, size))) == size
        old = size


def test_it_refuses_by_the_statuses_of_the_protocol(witness: Witness, log: MemoryLog) -> None:
    fork = MemoryLog(signer=log.signer, fork=3)
    stranger = MemoryLog("other.example/log")
    impostor = MemoryLog(log.origin)
    witness.add_checkpoint(log.request(0, 5))
    note, unsigned = log.note(8), log.checkpoint(8).text
    answers = {
        "a log that it does not know": (stranger.request(0, 8), 404),
        "no signature": (log.request(5, 8, f"{unsigned}\n"), 400),
        "a signature by another key": (log.request(5, 8, impostor.note(8)), 403),
        "a wrong signature that names its key": (log.request(5, 8, corrupted(note)), 403),
        "a larger old size": (log.request(9, 8, proof=[]), 400),
        "another old size": (log.request(4, 8), 409),
        "no old size, though it knows one": (log.request(0, 8), 409),
        "a fork": (fork.request(5, 8), 422),
        "the same size with another root": (fork.request(5, 5, proof=[]), 422),
        "no proof": (log.request(5, 8, proof=[]), 422),
        "a proof too long": (log.request(5, 8, proof=[*log.proof(5, 8), b"\0" * 32]), 422),
        "a proof for the same size": (log.request(5, 5, proof=[b"\0" * 32]), 422),
        "no old": (b"new 5\n\n" + note.encode(), 400),
        "a size with a zero before it": (b"old 05\n\n" + note.encode(), 400),
        "a size with a sign": (b"old +5\n\n" + note.encode(), 400),
        "64 hashes": (log.request(5, 8, proof=[b"\0" * 32] * 64), 400),
        "a short hash": (b"old 5\n" + base64.b64encode(b"\0" * 31) + b"\n\n" + note.encode(), 400),
        "no checkpoint": (b"old 5\n\n", 400),
        "an extension line": (log.request(5, 8, note.replace("\n\n", "\nmore\n\n", 1)), 400),
    }
    assert {what: witness.add_checkpoint(request).status for what, (request, _) in answers.items()} == {
        what: status for what, (_, status) in answers.items()
    }
    assert witness.add_checkpoint(log.request(4, 8)) == Reply(409, "5\n", "text/x.tlog.size")
    assert signed_size(witness, log, witness.add_checkpoint(log.request(5, 8))) == 8


def corrupted(note: str) -> str:
    """Return a note whose first signature has one bit changed."""
    head, line, rest = note.partition("\n\n")[0], note.partition("\n\n")[2].split("\n")[0], note.split("\n")[5:]
    dash, name, encoded = line.split(" ")
    raw = bytearray(base64.b64decode(encoded))
    raw[20] ^= 1
    return "\n".join([head, "", f"{dash} {name} {base64.b64encode(raw).decode()}", *rest])


def test_a_log_without_leaves_has_one_root(witness: Witness, log: MemoryLog) -> None:
    false = log.signer.sign(Checkpoint(log.origin, 0, b"\1" * 32), NOW)
    assert witness.add_checkpoint(log.request(0, 0, false)).status == 422
    assert log.checkpoint(0).root == EMPTY_ROOT
    assert witness.add_checkpoint(log.request(0, 0)).status == 200
    assert witness.add_checkpoint(log.request(0, 3, proof=[b"\0" * 32])).status == 422
    assert witness.add_checkpoint(log.request(0, 3)).status == 200


def test_it_goes_on_from_what_it_has_on_disk(witness: Witness, log: MemoryLog, tmp_path: Path) -> None:
    witness.add_checkpoint(log.request(0, 5))
    key = witness.key
    witness.close()
    again = started(tmp_path, log)
    assert again.key == key
    assert again.add_checkpoint(log.request(0, 8)) == Reply(409, "5\n", "text/x.tlog.size")
    again.close()


def test_a_log_that_is_added_is_known_without_a_restart(witness: Witness, tmp_path: Path) -> None:
    other = MemoryLog("other.example/log")
    assert witness.add_checkpoint(other.request(0, 1)).status == 404
    with (tmp_path / "logs").open("a") as file:
        file.write(f"\n{other.keys[0].text}\n")
    witness.read_logs()
    assert witness.add_checkpoint(other.request(0, 1)).status == 200


def test_two_witnesses_do_not_share_a_directory(witness: Witness, tmp_path: Path) -> None:
    with pytest.raises(WitnessError, match="Another witness"):
        Witness(tmp_path, "witness.example/w2", lambda: NOW)


@pytest.mark.parametrize("line", ["log.example", "log.example+00000000+AAAA", "a b+c7b8a2f0+ATpz"])
def test_a_line_that_is_no_key_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "logs").write_text(f"# a log\n{line}\n")
    with pytest.raises(WitnessError, match="Line 2"):
        Witness(tmp_path, "witness.example/w1", lambda: NOW)


def test_a_key_has_one_spelling(log: MemoryLog) -> None:
    text = log.keys[0].text
    assert VerifierKey.parse(text).text == text
    for wrong in (text + "=", text.replace("+", "-", 1), text.upper(), f" {text}", f"{text}\n"):
        with pytest.raises(MalformedNote):
            VerifierKey.parse(wrong)


def test_a_hundred_requests_at_once_never_move_it_back(witness: Witness, log: MemoryLog) -> None:
    requests = [log.request(old, new) for old in range(10) for new in range(old, 10)]
    requests += [log.request(old, 10) for old in range(45)][:45]
    assert len(requests) == 100
    seen: list[int] = []

    def ask(request: bytes) -> None:
        reply = witness.add_checkpoint(request)
        if reply.status == 409:
            seen.append(int(reply.body))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, requests))
    final = int(witness.add_checkpoint(log.request(99, 100, proof=[])).body)
    kept = SignedNote.parse(witness.checkpoint(log.path.removesuffix(".checkpoint")).body.encode())
    assert kept.checkpoint == log.checkpoint(final)
    assert max(seen) <= final


class Crash(BaseException):
    """The process is gone."""


def test_a_kill_before_the_answer_leaves_the_checkpoint_on_disk(
    witness: Witness, log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = write_durably

    def dies(path: Path, content: bytes) -> None:
        writes(path, content)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("infra.proof.witness.write_durably", dies)
        with pytest.raises(Crash):
            witness.add_checkpoint(log.request(0, 5))
    witness.close()
    again = started(tmp_path, log)
    fork = MemoryLog(signer=log.signer, fork=3)
    assert again.add_checkpoint(fork.request(0, 6)).status == 409
    assert again.add_checkpoint(fork.request(5, 6)).status == 422
    again.close()


SERVE = """
import sys
from cli import main
sys.argv[1:] = ["witness", "--name", "witness.example/w1", "--dir", {directory!r}, "--port", "0"]
main()
"""
# It dies when the checkpoint is on disk and the answer is not sent.
DIE = """
import os
from infra.proof import witness
writes = witness.write_durably
def dies(path, content):
    writes(path, content)
    if path.suffix == ".checkpoint":
        os.kill(os.getpid(), 9)
witness.write_durably = dies
"""


@pytest.mark.long("a witness starts, is killed and starts again")
def test_the_process_serves_the_protocol_and_forgets_nothing_when_it_is_killed(tmp_path: Path, log: MemoryLog) -> None:
    (tmp_path / "logs").write_text(log.keys[0].text)
    script = SERVE.format(directory=str(tmp_path))
    with ExitStack() as stack:
        dying = stack.enter_context(running(DIE + script))
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url_of(dying)}/add-checkpoint", content=log.request(0, 5))
        assert dying.process.wait(10) == -9
    with ExitStack() as stack:
        url = url_of(stack.enter_context(running(script)))
        answer = httpx.post(f"{url}/add-checkpoint", content=log.request(0, 6))
        assert (answer.status_code, answer.headers["Content-Type"], answer.text) == (409, "text/x.tlog.size", "5\n")
        assert httpx.post(f"{url}/add-checkpoint", content=log.request(5, 6)).status_code == 200
        kept = httpx.get(f"{url}/{log.path.removesuffix('.checkpoint')}/checkpoint")
        assert SignedNote.parse(kept.content).checkpoint == log.checkpoint(6)
        assert httpx.get(f"{url}/{'0' * 64}/checkpoint").status_code == 404
        assert httpx.post(f"{url}/add-checkpoint", content=b"x" * 200_000).status_code == 413


def url_of(program: Program) -> str:
    """Wait until a witness serves, and return its URL."""
    return program.line("up at ").partition("up at ")[2].partition(". ")[0]
