"""The canary: secrets and people's names that go in, and must come out only where they belong.

Real processes, the API and a worker, with every logger at DEBUG and PostgreSQL logging every statement with its values,
are walked through: each command and read, and each address once more with the canaries in every place where a caller
could put them by mistake. Then whatever was said, sent or stored is searched, in clear and in the usual disguises.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import httpx
import psycopg
import pytest

from infra.auth.key_commands import create_ledger
from infra.auth.ledger_admin import LedgerAdmin
from infra.delivery.kafka.publication_status import Destination
from infra.delivery.kafka.records import RecordReader
from infra.delivery.webhooks.signing import payload
from infra.postgres.embedded.cluster import binary
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.runtime import runtime
from tests.api.streaming import following
from tests.api.world import OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, campaign, told
from tests.conftest import TestDatabase, fresh_database
from tests.infra.opened import MASTER_KEY
from tests.keys import ERASURE_KEYS
from tests.serving import REPOSITORY
from tests.waiting import until

# The first test pays for the walk: thousands of requests, each logged with all that there is to say.
pytestmark = pytest.mark.timeout(600)
walks = pytest.mark.long("every route is asked for thousands of times, by programs that log whatever they can")

LEDGER: Final = "canaries"
SECRET: Final = "#cAnary/s3cret+that=TikTok/made==tail"
# A secret that nobody generated: a person who mistypes one types nearly the right one.
MISTYPED: Final = "#mIstyped/cAnary+s3cret=of/somebody==tail"
NOTE: Final = "Zebedina Quackenbush rang, +1 555 0199"
REMARK: Final = "leave Zebedina Quackenbush alone"
# What others give to clients that may post to them, often in the path alone; and what somebody calls that.
HOOK: Final = "T0K3N-of-a-cAnary-in-a-path"
HOOK_URL: Final = f"https://receiver.invalid/hook/{HOOK}?to=channel"
INBOX: Final = "the phone of Zebedina Quackenbush"
BEARER: Final = "slk_a-canary-that-was-never-minted-0123456789"
NAMES: Final = ("Zebedina", "Quackenbush", "555 0199")
# What of each is searched for: the mask shows the last four characters of a secret.
CANARIES: Final = {
    "secret": SECRET[:-4],
    "mistyped": MISTYPED[:-4],
    "hook": HOOK,
    "bearer": BEARER,
    **{name: name for name in NAMES},
}

PROCESS: Final = """
import asyncio, logging, sys
from infra.crypto.master_keys import key_provider
from infra.settings import load_settings
from infra.processes.logs import configure_logs

configure_logs()
logging.getLogger().setLevel(logging.DEBUG)
settings = load_settings()
conninfo = settings.database_url.get_secret_value()
if sys.argv[1] == "api":
    from api.http.server import run
    for name in list(logging.Logger.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)
    run(settings, {"": conninfo}, key_provider(settings), started=lambda url: print("ready", url, flush=True))
else:
    from infra.processes.worker import PARTS, run
    for name in list(logging.Logger.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)
    parts = frozenset(PARTS) - {"kafka"}
    ready = lambda: print("ready", flush=True)
    asyncio.run(run(conninfo, key_provider(settings), parts, started=ready), debug=True)
"""


# ── the search ──


def shapes(text: str) -> set[bytes]:
    """Return how a text may look where somebody stored, logged or sent it."""
    raw = text.encode()
    found = {raw, raw[::-1], text.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {quote(text).encode(), quote(text, safe="").encode(), json.dumps(text)[1:-1].encode()}
    for shift in range(3):
        # The middle of it in base64, whatever stands around: three ways to be divided into threes.
        middle = raw[shift:]
        middle = middle[: len(middle) // 3 * 3]
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(middle))
    return {shape for shape in found if len(shape) >= 6}


def hashes(text: str) -> set[bytes]:
    """Return unkeyed hashes of a text, with which a guess could be compared."""
    digests = {hashlib.new(name, text.encode()).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}
    return {digest[:32].encode() for digest in digests}


def found_in(blob: bytes, wanted: dict[str, set[bytes]]) -> set[str]:
    """Return the names of what is found in some bytes."""
    return {name for name, looks in wanted.items() if any(look in blob for look in looks)}


WANTED: Final = {name: shapes(text) for name, text in CANARIES.items()}
WHOLE: Final = {
    "secret": SECRET,
    "mistyped": MISTYPED,
    "note": NOTE,
    "remark": REMARK,
    "hook": HOOK,
    "hook's URL": HOOK_URL,
    "inbox": INBOX,
}
HASHED: Final = {f"hash of {name}": hashes(text) for name, text in WHOLE.items()}


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize(
    "disguise",
    [
        str.encode,
        lambda text: text.encode().hex().encode(),
        lambda text: base64.b64encode(b"x" + text.encode() + b"yz"),
        lambda text: base64.b64encode(b"xy" + text.encode()),
        lambda text: base64.urlsafe_b64encode(b"..." + text.encode()),
        lambda text: b"/codes?q=" + quote(text, safe="").encode(),
        lambda text: json.dumps({"text": text}).encode(),
        lambda text: text.encode("utf-16-le"),
    ],
)
def test_the_search_finds_a_canary_in_its_disguises(name: str, disguise: Any) -> None:
    assert found_in(b"before " + disguise(CANARIES[name]) + b" after", WANTED) == {name}


def test_the_search_finds_an_unkeyed_hash() -> None:
    assert found_in(b"..." + hashlib.sha256(NOTE.encode()).hexdigest().encode(), HASHED) == {"hash of note"}


# ── the walk ──


@dataclass
class Walk:
    """A walk through the API, and whatever came back on it."""

    client: httpx.Client
    answers: list[tuple[str, bytes, frozenset[str]]] = field(default_factory=list)
    # Keys and webhooks' secrets that were handed out on the way.
    credentials: list[str] = field(default_factory=list)
    # What a code's history and its dossier show: its notes, until its creator is erased.
    noted: tuple[str, ...] = NAMES

    def ask(self, method: str, path: str, *, shows: tuple[str, ...] = (), **more: Any) -> httpx.Response:
        """Send a request, and keep its answer; `shows` names what is rightly in it."""
        client: httpx.Client = more.pop("client", self.client)
        answer = client.request(method, path, **more)
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        label = f"{method} {path} {answer.status_code}"
        if (path.endswith("/history") or path.startswith("/v1/dossiers/codes/")) and answer.status_code == 200:
            shows = (*shows, *self.noted)
        if path.startswith(("/v1/webhooks", "/v1/alerts", "/v1/calendars")) and answer.status_code == 200:
            shows = (*shows, "hook", *NAMES)  # where events and alerts go, to the client that has them sent there
        searched = path == "/v1/exports/events" and "q" in (more.get("params") or {})
        if path in {"/v1/accesses", "/v1/exports/accesses"} or searched:
            shows = tuple(CANARIES)  # who read and exported what: what was searched for is told there
        self.answers.append((label, head.encode() + b"\n\n" + answer.content, frozenset(shows)))
        return answer

    def leaks(self) -> list[tuple[str, set[str]]]:
        """Return the answers that hold what they must not."""
        wanted = WANTED | HASHED | credentials(self.credentials)
        found = [(label, found_in(said, wanted) - shows) for label, said, shows in self.answers]
        return [(label, names) for label, names in found if names]


def credentials(texts: list[str]) -> dict[str, set[bytes]]:
    """Return what to look for of keys: their own characters, without the prefix that they share."""
    return {f"credential {text[:9]}…": {text.partition("_")[2].encode()} for text in texts}


def told_first(walk: Walk) -> dict[str, Any]:
    """Carry out every command, and return the code."""
    ask = walk.ask
    told(ask("PUT", f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}), 200)
    once = {"Idempotency-Key": "canary-once"}
    asked = {"creator_id": OWN_CREATOR, "video_id": "video-1", "terms_version": "1", "secret": SECRET}
    for _ in range(2):
        code = told(ask("POST", "/v1/codes", json=asked, headers=once, shows=("secret",)), 201)
    path = f"/v1/codes/{code['code_id']}"
    assert ask("POST", "/v1/codes", json=asked).status_code == 409  # the secret is known already
    shared = {"brand_id": OWN_BRAND, "channel": "dm", "note": NOTE}
    for headers in ({}, once):
        ask("POST", f"{path}/shares", json=shared, headers=headers)
    told(ask("POST", f"{path}/extensions", json={"days": 60}), 201)
    told(ask("POST", "/v1/codes/lookup", json={"secret": SECRET}), 200)
    for secret, status in ((SECRET, 201), (SECRET, 200), (MISTYPED, 404)):
        told(ask("POST", "/v1/redemptions", json={"secret": secret, "advertiser_id": OWN_ACCOUNT}), status)
    assert ask("POST", "/v1/codes/lookup", json={"secret": MISTYPED}).status_code == 404
    for text in (NOTE, REMARK, REMARK):
        ask("POST", f"{path}/notes", json={"text": text, "about_position": 2}, headers=once)
        ask("POST", f"{path}/notes", json={"text": text})
    told(ask("POST", f"{path}/campaigns", json=campaign()), 201)
    assert ask("POST", f"{path}/revocation", json={"reason": "over"}).status_code == 409
    told(ask("POST", f"{path}/campaigns/campaign-1/end", json={"reason": "over"}), 200)
    told(ask("POST", f"{path}/reveals", json={"reason": "lost"}, shows=("secret",)), 200)
    for role, subjects in (("creator", {"creator_ids": [OWN_CREATOR]}), ("auditor", {}), ("operator", {})):
        key = told(ask("POST", "/v1/keys", json={"role": role, "subjects": subjects}), 201)
        walk.credentials.append(key["key"])
        walk.answers.pop()  # it shows the key, once
    hook: dict[str, Any] = {"url": HOOK_URL, "description": INBOX, "after": 0}
    for headers in ({}, once):
        webhook = told(ask("POST", "/v1/webhooks", json=hook, headers=headers), 201)
        walk.credentials.append(webhook["secret"])
        walk.answers.pop()
    at = f"/v1/webhooks/{webhook['webhook_id']}"
    told(ask("PATCH", at, json={"url": f"{HOOK_URL}s", "description": f"{INBOX} and others"}), 200)
    told(ask("POST", f"{at}/test"), 202)
    for read in (at, f"{at}/deliveries", f"{at}/dead-letters"):
        told(ask("GET", read), 200)
    alert = {"kind": "ending", "channel": "chat", "address": HOOK_URL, "name": INBOX}
    rule = told(ask("POST", "/v1/alerts", json=alert), 201)
    walk.answers.pop()
    at = f"/v1/alerts/{rule['rule_id']}"
    told(ask("PATCH", at, json={"address": f"{HOOK_URL}s", "name": f"{INBOX} and others"}), 200)
    told(ask("POST", f"{at}/test"), 202)
    told(ask("GET", f"{at}/deliveries"), 200)
    calendar = told(ask("POST", "/v1/calendars", json={"name": INBOX}), 201)
    walk.answers.pop()
    walk.credentials.append(f"calendar_{calendar['address'].removeprefix('/calendar/').removesuffix('.ics')}")
    assert ask("GET", calendar["address"], headers={"Authorization": ""}).status_code == 200
    return code


def read_all(walk: Walk, code: dict[str, Any]) -> None:
    """Read whatever there is to read."""
    path, ask = f"/v1/codes/{code['code_id']}", walk.ask
    told(ask("GET", f"{path}/history"), 200)
    for read in (
        *(path, "/v1/codes", "/v1/shares", "/v1/redemptions", "/v1/campaigns", "/v1/permissions", "/v1/stats"),
        *("/v1/events", "/v1/events/3", "/v1/exports/events", "/v1/exports/events?format=csv", "/v1/stats/days"),
        *("/v1/alerts", "/v1/calendars"),
        *("/v1/accesses", "/v1/keys", "/v1/webhooks", "/metrics", "/livez", "/readyz", "/openapi.json", "/docs"),
        f"/v1/authorizations?video_id=video-1&advertiser_id={OWN_ACCOUNT}",
        f"/v1/creators/{OWN_CREATOR}/permission/history",
    ):
        assert ask("GET", read).status_code == 200, read
    for accept in ("text/csv", "application/x-ndjson"):
        ask("GET", "/v1/events", headers={"Accept": accept})


def mistakes(walk: Walk, document: dict[str, Any], code: dict[str, Any]) -> None:
    """Put the canaries wherever a caller could by mistake, at every address there is."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path == "/v1/events/stream":
                continue
            right = re.sub(r"\{code_id\}", code["code_id"], path)
            right = re.sub(r"\{[a-z_]+\}", "nobody", right)
            for canary in (SECRET, MISTYPED, NOTE):
                _mistake(walk, method.upper(), path, right, operation, canary)


def _mistake(walk: Walk, method: str, path: str, right: str, operation: dict[str, Any], canary: str) -> None:
    if "{" in path:
        walk.ask(method, re.sub(r"\{[a-z_]+\}", quote(canary, safe=""), path), json={})
    parameters = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
    for name in [*parameters, "unknown"]:
        walk.ask(method, right, params={name: canary})
    walk.ask(method, right, params={canary: canary})
    quoted = quote(canary)
    for header in ("If-Match", "Idempotency-Key", "Accept", "Last-Event-ID", "User-Agent", "Content-Type", "Cookie"):
        walk.ask(method, right, headers={header: quoted}, content=b"" if header == "Content-Type" else None)
    walk.ask(method, right, headers={"Traceparent": quoted, "Correlation-Id": canary})
    walk.ask(method, right, headers={"Authorization": f"Bearer {canary}".encode()})
    walk.ask(method, right, headers={"Authorization": f"Bearer {BEARER}"})
    for body in (
        *(canary, [canary], {canary: canary}, {"secret": [canary]}, {"secret": canary, "advertiser_id": canary}),
        *({"text": canary, "about_position": canary}, {"text": canary * 200}, {"note": canary, "brand_id": canary}),
        *({"secret": canary, "creator_id": canary}, {"days": canary}, {"effective_at": canary, "enabled": canary}),
        *({"reason": {canary: canary}}, {"url": canary}, {"subjects": {canary: [canary]}, "role": canary}),
    ):
        walk.ask(method, right, json=body)
    broken = json.dumps({"secret": canary, "text": canary})
    for content, kind in (
        *((broken[:-1], "application/json"), (broken + broken, "application/json"), (broken, "text/plain")),
        *((broken.encode("utf-16"), "application/json"), (f"video_id,advertiser_id\n{canary},{canary}\n", "text/csv")),
        (f'{{"video_id": "{canary}"}}\n{canary}\n', "application/x-ndjson"),
    ):
        walk.ask(method, right, content=content, headers={"Content-Type": kind})


@contextmanager
def process(kind: str, dsn: str, log: IO[bytes]) -> Iterator[Path]:
    """Run the API or a worker, with all that it says in a file."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
    environment |= {
        "SPARKLEDGER_VIDEO_IDS": "any",
        "SPARKLEDGER_DATABASE_URL": dsn,
        "SPARKLEDGER_MASTER_KEY": base64.b64encode(bytes(range(32))).decode(),
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "SPARKLEDGER_PORT": "0",
    }
    command = [sys.executable, "-c", PROCESS, kind]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log) as running:
        try:
            yield Path(log.name)
        finally:
            running.terminate()
            running.wait(30)


def ready(log: Path) -> str:
    """Wait until a process says that it is ready, and return what it says besides."""
    until(lambda: b"\nready" in b"\n" + log.read_bytes(), 40)
    return next(line for line in log.read_text().splitlines() if line.startswith("ready")).removeprefix("ready ")


@dataclass(frozen=True)
class Walked:
    """All that is left after the walk."""

    walk: Walk
    frames: bytes
    logs: dict[str, bytes]
    dump: bytes
    files: dict[str, bytes]
    messages: bytes
    admin_key: str


@pytest.fixture(scope="module")
def walked(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    """Walk once, before and after an erasure; what is left is searched by the tests below."""
    directory = tmp_path_factory.mktemp("canary")
    with fresh_database(cluster) as database:
        with psycopg.connect(database.dsn(), autocommit=True) as owner:
            for name, value in (("log_statement", "all"), ("log_min_error_statement", "debug5")):
                owner.execute(f'ALTER DATABASE "{database.name}" SET {name} = {value!r}')
            owner.execute(f'ALTER DATABASE "{database.name}" SET log_error_verbosity = verbose')
        said_before = cluster.cluster.log_file.stat().st_size
        asyncio.run(create_views(database.dsn()))
        admin_key = asyncio.run(create_ledger(database.dsn(), MASTER_KEY, LEDGER))
        logs = {kind: directory / f"{kind}.log" for kind in ("api", "worker")}
        with (
            logs["api"].open("wb") as api_log,
            logs["worker"].open("wb") as worker_log,
            process("api", database.dsn(API), api_log),
            process("worker", database.dsn(WORKER), worker_log),
        ):
            ready(logs["worker"])
            headers = {"Authorization": f"Bearer {admin_key}"}
            with httpx.Client(base_url=ready(logs["api"]), headers=headers, timeout=30, trust_env=False) as client:
                walk = Walk(client)
                frames = walked_through(walk)
        yield Walked(
            walk=walk,
            frames=frames,
            logs={kind: log.read_bytes() for kind, log in logs.items()}
            | {"postgres": cluster.cluster.log_file.read_bytes()[said_before:]},
            dump=dumped(database),
            files=files_of(database),
            messages=messages_of(database),
            admin_key=admin_key,
        )


def walked_through(walk: Walk) -> bytes:
    """Walk, and return what a stream of events said meanwhile."""
    document = told(walk.ask("GET", "/openapi.json"), 200)
    with following(walk.client, after=0) as stream:
        code = told_first(walk)
        read_all(walk, code)
        mistakes(walk, document, code)
        told(walk.ask("POST", f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked for"}), 200)
        walk.noted = ()
        read_all(walk, code)
        wanted = walk.client.get("/v1/events", params={"order": "desc", "limit": 1}).json()["events"][0]["position"]
        stream.take(wanted)
        return repr(stream.frames).encode()


def dumped(database: TestDatabase) -> bytes:
    """Return the whole database as `pg_dump` writes it."""
    command = [str(binary("pg_dump")), "--dbname", database.dsn()]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def files_of(database: TestDatabase) -> dict[str, bytes]:
    """Return the files that PostgreSQL keeps the database in, and its write-ahead log."""
    with psycopg.connect(database.dsn(), autocommit=True) as owner:
        owner.execute("CHECKPOINT")
        ((home, oid),) = owner.execute(
            "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
        ).fetchall()
    paths = [*(Path(home) / "base" / str(oid)).iterdir(), *(Path(home) / "pg_wal").glob("0*")]
    return {path.name: path.read_bytes() for path in paths}


def messages_of(database: TestDatabase) -> bytes:
    """Return whatever would be sent to Kafka and to webhooks, and as what."""
    everyone = Destination("canary", [("", "canary")])
    with psycopg.connect(database.dsn(WORKER), autocommit=True) as connection:
        messages = RecordReader(connection, everyone).page({}).records
    return b"\n".join([*(repr(message).encode() for message in messages), *asyncio.run(_payloads(database))])


async def _payloads(database: TestDatabase) -> list[bytes]:
    """Return the body of each webhook's request."""
    async with runtime(database.dsn(WORKER), WORKER, MASTER_KEY) as opened:
        ledger_id = await LedgerAdmin(opened.database, opened.keyring).id_of(LEDGER)
        history = (await opened.histories.of(ledger_id)).history
        return [payload(recorded, LEDGER, history) for recorded in await opened.events.page(ledger_id, limit=1_000)]


# ── what is found ──


@walks
def test_the_walk_went_everywhere(walked: Walked) -> None:
    """A canary that was never let out is not found, either."""
    document = json.loads(
        next(said for label, said, _ in walked.walk.answers if "openapi" in label).partition(b"\n\n")[2]
    )
    asked = {label.rpartition(" ")[0].partition("?")[0] for label, _, _ in walked.walk.answers}
    assert len(asked) > 2 * sum(map(len, document["paths"].values()))
    statuses = {label.rpartition(" ")[2] for label, _, _ in walked.walk.answers}
    assert {"200", "201", "400", "401", "404", "409", "415", "422"} <= statuses
    assert not statuses & {"500", "503"}
    shown = {name for _, said, shows in walked.walk.answers for name in found_in(said, WANTED) & shows}
    # What was searched for is in the export of the access log, which is whole.
    assert shown == {"secret", "hook", "mistyped", *NAMES}


@walks
def test_answers_show_a_canary_only_where_it_belongs(walked: Walked) -> None:
    assert walked.walk.leaks() == []


@walks
def test_no_stream_shows_a_canary(walked: Walked) -> None:
    assert b"CreatorErased" in walked.frames
    assert found_in(walked.frames, WANTED | HASHED) == set()


@walks
@pytest.mark.parametrize("who", ["api", "worker", "postgres"])
def test_no_log_has_a_canary_or_a_credential(walked: Walked, who: str) -> None:
    said = walked.logs[who]
    assert {"api": b'"level": "debug"', "worker": b'"level": "debug"', "postgres": b"LOG:"}[who] in said
    wanted = WANTED | HASHED | credentials([*walked.walk.credentials, walked.admin_key])
    assert (
        found_in(said, wanted | {"master key": {bytes(range(32)).hex().encode(), base64.b64encode(bytes(range(32)))}})
        == set()
    )


@walks
def test_a_dump_of_the_database_has_no_canary_and_no_credential(walked: Walked) -> None:
    assert b"COPY public.events" in walked.dump
    assert OWN_CREATOR.encode().hex().encode() in walked.dump
    wanted = WANTED | HASHED | credentials([*walked.walk.credentials, walked.admin_key])
    assert found_in(walked.dump, wanted) == set()


@walks
def test_the_files_of_the_database_have_no_canary_and_no_credential(walked: Walked) -> None:
    assert any(OWN_CREATOR.encode() in content for content in walked.files.values())
    wanted = WANTED | HASHED | credentials([*walked.walk.credentials, walked.admin_key])
    assert [(name, found) for name, content in walked.files.items() if (found := found_in(content, wanted))] == []


@walks
def test_nothing_that_is_sent_has_a_canary(walked: Walked) -> None:
    assert all(kind in walked.messages for kind in (b"code-events", b"code-state", b"CreatorErased"))
    assert found_in(walked.messages, WANTED | HASHED) == set()
