"""Apache Kafka for tests: one node in KRaft mode, its jars by Maven, up in seconds on ports and a folder of its own.

It listens five times: in the clear, through whatever a test puts in between, with a login, with a login over TLS, and
with tokens.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[3]
# It takes four on a quiet machine.
START_S: Final = 100.0
HEAP: Final = "384m"
USER: Final = "sparkledger"
PASSWORD: Final = "a-password-of-tests"
# Of the tokens that the broker accepts.
AUDIENCE: Final = "kafka"
KEY_ID: Final = "of-tests"
TOKEN_KEY: Final = "tokens.pem"
JWKS: Final = "jwks.json"
CLUSTER: Final = "MkU3OEVBNTcwNTJENDM2Qg"

OAUTHBEARER: Final = "org.apache.kafka.common.security.oauthbearer"

HOW_TO_GET_IT: Final = (
    "these tests need Apache Kafka: install Java 17 and Maven (Debian: openjdk-17-jre-headless, maven), or name a "
    "broker of your own in SPARKLEDGER_TEST_KAFKA as host:port, such as `docker run -p 9092:9092 apache/kafka:4.1.1`"
)


class NoKafka(Exception):
    """There is no Kafka to test with, and this says how to get it."""


@dataclass(frozen=True)
class Broker:
    """A running broker.

    Attributes:
        plain: host:port in the clear.
        proxied: host:port that it tells clients of `behind` to come back to; nobody listens there but a test's proxy.
        behind: host:port of the listener that such a proxy leads to.
        sasl: host:port with a login, SASL/PLAIN.
        tls: host:port with a login over TLS.
        cafile: the certificate that vouches for `tls`.
        oauth: host:port with tokens, SASL/OAUTHBEARER; `token` makes those that it accepts.
        guard: the process that runs it, and ends it when the tests have ended.

    """

    plain: str
    proxied: str = ""
    behind: str = ""
    sasl: str = ""
    tls: str = ""
    cafile: str = ""
    oauth: str = ""
    directory: str = ""
    guard: int = 0


def token(broker: Broker, **claims: Any) -> str:
    """Return a token as an authorization server gives it, signed by the key that the broker knows."""
    private = (Path(broker.directory) / TOKEN_KEY).read_text()
    now = int(time.time())
    usual = {"sub": USER, "aud": AUDIENCE, "iat": now, "exp": now + 600}
    return jwt.encode(usual | claims, private, algorithm="ES256", headers={"kid": KEY_ID})


def class_path() -> str:
    """Return Kafka's jars, fetched by Maven where that has not been done before.

    Raises:
        NoKafka: Java or Maven is missing, or Maven cannot fetch them.

    """
    if shutil.which("java") is None or shutil.which("mvn") is None:
        raise NoKafka(HOW_TO_GET_IT)
    pom = HERE / "pom.xml"
    known = ROOT / ".venv" / f"kafka-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}.classpath"
    if known.exists() and all(Path(jar).exists() for jar in known.read_text().split(os.pathsep)):
        return known.read_text()
    with tempfile.NamedTemporaryFile("r", dir=known.parent) as file:
        command = ["mvn", "--batch-mode", "--quiet", "--file", str(pom), "dependency:build-classpath"]
        done = subprocess.run(
            [*command, f"-Dmdep.outputFile={file.name}"], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            message = f"Maven could not fetch Apache Kafka: {done.stdout[-500:]}{done.stderr[-500:]}; {HOW_TO_GET_IT}"
            raise NoKafka(message)
        found = file.read().strip()
    known.write_text(found)
    return found


def start(directory: Path, *, owner: int | None = None, lasting: bool = False) -> Broker:
    """Start a broker on a folder, empty or left by one that ran there before, with the same ports.

    Args:
        directory: where it keeps everything.
        owner: the process whose end is the broker's end too; None is this one.
        lasting: it runs long enough for Java's second compiler to pay, as it does not in tests.

    Raises:
        NoKafka: there is none to be had.
        RuntimeError: it did not start.

    """
    jars = class_path()
    settings = directory / "server.properties"
    if not settings.exists():
        _prepare(directory, settings, jars)
    told = json.loads((directory / "broker.json").read_text())
    java = ["java", "-XX:+UseSerialGC", f"-Xmx{HEAP}", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    if not lasting:
        java.append("-XX:TieredStopAtLevel=1")
    java.append(f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={(directory / JWKS).as_uri()}")
    with (directory / "log").open("ab") as log:
        command = [sys.executable, str(HERE / "guard.py"), str(owner or os.getpid()), *java, "-cp", jars]
        guard = int(
            subprocess.run(
                [*command, "kafka.Kafka", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                check=True,
            ).stdout
        )
    broker = Broker(**{**told, "guard": guard})
    deadline = time.monotonic() + START_S
    while not _answers(broker.plain):
        if not _alive(guard) or time.monotonic() > deadline:
            stop(broker)
            message = f"Kafka did not start: {(directory / 'log').read_text(errors='replace')[-2000:]}"
            raise RuntimeError(message)
        time.sleep(0.05)
    return broker


def stop(broker: Broker, number: int = signal.SIGTERM) -> None:
    """End a broker: cleanly, or by SIGKILL as a crash would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(broker.guard, signal.SIGTERM if number == signal.SIGTERM else signal.SIGUSR1)
    deadline = time.monotonic() + START_S
    while _alive(broker.guard) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def _prepare(directory: Path, settings: Path, jars: str) -> None:
    plain, behind, proxied, sasl, tls, oauth, controller = free_ports(7)
    certificate, key = certificate_and_key()
    (directory / "ca.pem").write_text(certificate)
    _make_token_key(directory)
    jaas = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"CLEAR://127.0.0.1:{plain},BEHIND://127.0.0.1:{behind},LOGIN://127.0.0.1:{sasl},"
        f"TLS://127.0.0.1:{tls},OAUTH://127.0.0.1:{oauth},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLEAR://127.0.0.1:{plain},BEHIND://127.0.0.1:{proxied},LOGIN://127.0.0.1:{sasl},"
        f"TLS://127.0.0.1:{tls},OAUTH://127.0.0.1:{oauth}",
        "listener.security.protocol.map": "CLEAR:PLAINTEXT,BEHIND:PLAINTEXT,LOGIN:SASL_PLAINTEXT,TLS:SASL_SSL,"
        "OAUTH:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLEAR",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config": jaas,
        "listener.name.tls.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.tls.plain.sasl.jaas.config": jaas,
        "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.oauth.oauthbearer.sasl.jaas.config": f"{OAUTHBEARER}.OAuthBearerLoginModule required;",
        "listener.name.oauth.oauthbearer.sasl.server.callback.handler.class": (
            f"{OAUTHBEARER}.OAuthBearerValidatorCallbackHandler"
        ),
        # Without the validator's name, the broker looks at a token as a client would, without its signature.
        "sasl.oauthbearer.jwt.validator.class": f"{OAUTHBEARER}.BrokerJwtValidator",
        "sasl.oauthbearer.jwks.endpoint.url": (directory / JWKS).as_uri(),
        "sasl.oauthbearer.expected.audience": AUDIENCE,
        "listener.name.tls.ssl.keystore.type": "PEM",
        "listener.name.tls.ssl.keystore.certificate.chain": certificate.replace("\n", "\\n"),
        "listener.name.tls.ssl.keystore.key": key.replace("\n", "\\n"),
        "log.dirs": str(directory / "data"),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
    }
    settings.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", str(settings)]
    subprocess.run(
        ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", jars, *tool], capture_output=True, check=True
    )
    broker = Broker(
        plain=f"127.0.0.1:{plain}",
        proxied=f"127.0.0.1:{proxied}",
        behind=f"127.0.0.1:{behind}",
        sasl=f"127.0.0.1:{sasl}",
        tls=f"127.0.0.1:{tls}",
        cafile=str(directory / "ca.pem"),
        oauth=f"127.0.0.1:{oauth}",
        directory=str(directory),
    )
    (directory / "broker.json").write_text(json.dumps(asdict(broker)))


def _make_token_key(directory: Path) -> None:
    """Make the key of an authorization server, and the file in which the broker looks its public part up."""
    key = ec.generate_private_key(ec.SECP256R1())
    (directory / TOKEN_KEY).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    (directory / JWKS).write_text(json.dumps({"keys": [public | {"kid": KEY_ID, "use": "sig", "alg": "ES256"}]}))


def certificate_and_key() -> tuple[str, str]:
    """Return a certificate for 127.0.0.1 that vouches for itself, and its key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@contextlib.contextmanager
def shared(directory: Path, owner: int) -> Iterator[Broker]:
    """Lend one broker to all processes of a test run: the first starts it, the last ends it.

    Args:
        directory: a folder that they all know.
        owner: the process that outlives them.

    """
    directory.mkdir(exist_ok=True)
    state = directory / "shared.json"

    @contextlib.contextmanager
    def held() -> Iterator[dict[str, Any]]:
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = json.loads(state.read_text()) if state.exists() else {"users": 0}
            yield known
            state.write_text(json.dumps(known))

    with held() as known:
        if known["users"] == 0:
            known["broker"] = asdict(start(directory, owner=owner))
        known["users"] += 1
        broker = Broker(**known["broker"])
    try:
        yield broker
    finally:
        with held() as known:
            known["users"] -= 1
            if known["users"] == 0:
                stop(broker)
                # A later process begins a new one.
                (directory / "server.properties").unlink()
                shutil.rmtree(directory / "data", ignore_errors=True)


def version() -> str:
    """Return the version of Kafka that is started here."""
    found = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>([^<]+)<", (HERE / "pom.xml").read_text())
    assert found is not None
    return found[1]
