"""A time-stamping authority of the test: `openssl ts` behind HTTP."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from cryptography.x509 import Certificate, load_pem_x509_certificates

from tests.absent import absent

RUN_S: Final = 60
CONFIGURATION: Final = """
[req]
distinguished_name = name
prompt = no
[name]
CN = Authority of the test
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[stamping]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[tsa]
default_tsa = only
[only]
serial = serial
signer_cert = tsa.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""


class Authority:
    """An authority with keys of its own; a test may put another answer in its place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        self.answer: Callable[[bytes], tuple[int, bytes]] = lambda query: (200, self.stamp(query))
        self.requests: list[bytes] = []
        self._lock = threading.Lock()
        directory.mkdir(parents=True)
        (directory / "tsa.cnf").write_text(CONFIGURATION)
        (directory / "serial").write_text("01\n")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "tsa.cnf")
        self.openssl("req", "-x509", *key, "-extensions", "root", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem")
        self.openssl("req", *key, "-subj", "/CN=stamps", "-keyout", "tsa.key", "-out", "tsa.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30")
        extensions = ("-extfile", "tsa.cnf", "-extensions", "stamping")
        self.openssl("x509", "-req", "-in", "tsa.csr", *signed, *extensions, "-out", "tsa.pem")

    @property
    def certificates(self) -> list[Certificate]:
        """What those who trust it have."""
        return load_pem_x509_certificates((self.directory / "ca.pem").read_bytes())

    def openssl(self, *arguments: str) -> bytes:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.directory, capture_output=True, timeout=RUN_S, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def stamp(self, query: bytes) -> bytes:
        """Return the response to a query."""
        with self._lock:
            (self.directory / "query").write_bytes(query)
            self.openssl("ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply")
            return (self.directory / "reply").read_bytes()

    def stamp_of(self, data: bytes) -> bytes:
        """Return a response over some bytes."""
        (self.directory / "data").write_bytes(data)
        return self.stamp(self.openssl("ts", "-query", "-data", "data", "-sha256", "-cert"))

    def accepts(self, data: bytes, response: bytes) -> bool:
        """Tell whether openssl takes a response for a stamp of this authority over some bytes."""
        (self.directory / "data").write_bytes(data)
        (self.directory / "response").write_bytes(response)
        command = ["openssl", "ts", "-verify", "-data", "data", "-in", "response", "-CAfile", "ca.pem"]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, timeout=RUN_S, check=False)
        return done.returncode == 0


def new_authority(directory: Path) -> Authority:
    """Return an authority that is not served; without openssl there is none."""
    if shutil.which("openssl") is None:
        absent("time stamps are tested with openssl: apt-get install openssl")
    return Authority(directory)


@contextmanager
def serving(directory: Path) -> Iterator[Authority]:
    """Serve an authority."""
    authority = new_authority(directory)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is the library's
            assert self.headers["Content-Type"] == "application/timestamp-query"
            query = self.rfile.read(int(self.headers["Content-Length"]))
            authority.requests.append(query)
            status, body = authority.answer(query)
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority.url = f"http://127.0.0.1:{server.server_port}/stamp"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield authority
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
