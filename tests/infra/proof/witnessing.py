"""Witnesses over HTTP in threads of the test, and a client that asks them when the test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from infra.proof.configured_witness import ConfiguredWitness
from infra.proof.notes import VerifierKey
from infra.proof.witness import Reply, Witness
from infra.proof.witness_client import WitnessClient
from tests.infra.opened import Opened
from tests.infra.proof.sealing import Watching


class Served:
    """A witness that is served; a test may put another answer in its place."""

    def __init__(self, witness: Witness, directory: Path) -> None:
        self.witness = witness
        self.answer: Callable[[bytes], Reply] = witness.add_checkpoint
        self.requests: list[bytes] = []
        self.url = ""
        self._logs = directory / "logs"

    @property
    def configured(self) -> ConfiguredWitness:
        """The witness as the sealer's operator configures it."""
        return ConfiguredWitness(self.witness.key, self.url)

    def know(self, opened: Opened) -> None:
        """Let the witness know every log of a database."""
        self.know_keys([keys[0] for (keys,) in opened.sql("SELECT verifier_keys FROM log_trees")])

    def know_keys(self, keys: Sequence[str]) -> None:
        """Let the witness know logs by their verifier keys."""
        self._logs.write_text("\n".join(VerifierKey.parse(key).text for key in keys))
        self.witness.read_logs()


@contextmanager
def serving(directory: Path, name: str, now: Callable[[], int]) -> Iterator[Served]:
    """Serve a witness."""
    directory.mkdir(exist_ok=True)
    witness = Witness(directory, name, now)
    served = Served(witness, directory)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is the library's
            request = self.rfile.read(int(self.headers["Content-Length"]))
            served.requests.append(request)
            reply = served.answer(request)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.media_type)
            self.end_headers()
            self.wfile.write(reply.body.encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        witness.close()


def client(running: Watching, opened: Opened, signing_dir: Path, witnesses: Sequence[Served]) -> Callable[[], None]:
    """Return what asks the witnesses once for each log; a fresh one is a process that has just started."""
    stop = partial(running.sealer.differs, "witnesses")
    configured = [one.configured for one in witnesses]
    asking = WitnessClient(opened.database.dsn(), signing_dir, configured, stop, threading.Event())
    return lambda: asking.round(running.connection)
