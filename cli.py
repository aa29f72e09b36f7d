"""The command line: the one file that wires everything. Exit codes: 0 done, 1 refused or failed, 2 wrong usage."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from infra.processes.terminal import printable, show
from infra.settings import Settings, SettingsError, load_settings, variable

if TYPE_CHECKING:
    from infra.auth.key_commands import FirstKeys
    from infra.crypto.master_keys import KeyProvider
    from infra.jobs.anchor import AnchorFile
    from infra.processes.import_leader import CarriesOut
    from infra.processes.supervisor import Child
    from infra.runtime import Runtime

T = TypeVar("T")

START_S: Final = 60.0
# The children have this long to end; with PostgreSQL after them, everything is down within five seconds.
STOP_S: Final = 2.5
LINE: Final = "sparkledger: "
# Settings with secrets that no process needs once the database is migrated.
ONLY_FOR_MIGRATE: Final = (
    *("admin_key", "migration_database_url", "migration_databases"),
    *("api_password", "worker_password"),
)
# Settings of the master key, which the sealer does not need.
MASTER_KEYS: Final = ("master_key", "master_key_previous", "master_key_file")
# More processes would wait for PostgreSQL, and for each other's counts.
REBUILD_JOBS_MAX: Final = 32
# The part of the worker that runs in a process of its own.
SEAL: Final = "seal"

app = typer.Typer(
    help="Sparkledger records who authorized which TikTok video as an ad, for whom and until when.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="Manage API keys.", no_args_is_help=True)
ledgers = typer.Typer(help="Manage ledgers. Each ledger is the log of one organisation.", no_args_is_help=True)
views = typer.Typer(help="Show the state of views, and skip events that stop them.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(ledgers, name="ledgers")
app.add_typer(views, name="views")
master_keys = typer.Typer(help="Manage the master key, which wraps all other keys.", no_args_is_help=True)
app.add_typer(master_keys, name="master-key")


@dataclass(frozen=True)
class Place:
    """A database as commands reach it: one connection string for each role, and the server's name if it has one."""

    owner: str
    api: str
    worker: str
    name: str = ""


@contextlib.contextmanager
def database(settings: Settings, *, begins: bool = False) -> Iterator[Place]:
    """Reach the configured database; or the embedded one, which is started for as long as it is not running.

    Only what `begins` a database makes one where there is none: nobody looks for keys in an empty folder on purpose.
    """
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        owner = settings.migration_database_url
        worker = settings.worker_database_url
        yield Place(
            owner=owner.get_secret_value() if owner else url,
            api=url,
            worker=worker.get_secret_value() if worker else url,
        )
        return
    from infra.postgres.embedded.server import attach_or_start
    from infra.processes.supervisor import exit_on_signals

    if not begins and not (settings.data_dir / "postgres").exists():
        raise SettingsError(
            f"There is no database in {settings.data_dir.absolute()}. Create one with `sparkledger up`, or set "
            "SPARKLEDGER_DATA_DIR or SPARKLEDGER_DATABASE_URL to an existing one."
        )
    with exit_on_signals(), attach_or_start(settings.data_dir) as cluster:
        yield Place(cluster.dsn(), cluster.dsn("sparkledger_api"), cluster.dsn("sparkledger_worker"))


@contextlib.contextmanager
def servers(settings: Settings, *, begins: bool = False) -> Iterator[list[Place]]:
    """Reach the configured servers: those of SPARKLEDGER_DATABASES, or the only one."""
    if settings.databases is None:
        with database(settings, begins=begins) as place:
            yield [place]
        return
    from infra.servers import read_servers

    api = read_servers(settings.databases)
    owner, worker = (
        api if file is None else read_servers(file)
        for file in (settings.migration_databases, settings.worker_databases)
    )
    yield [Place(owner[name], api[name], worker[name], name) for name in api]


def _home(places: list[Place], ledger: str) -> Place:
    """Return the server of a ledger; if there is only one, nobody is asked."""
    if len(places) == 1:
        return places[0]
    from infra.servers import home_of

    name = home_of({place.name: place.owner for place in places}, ledger)
    return next(place for place in places if place.name == name)


def _in_clear(text: str | None) -> str | None:
    """Refuse a text that is kept in clear, if it contains a code."""
    from domain.pasted import SENTENCES, contains_secret

    if text is not None and contains_secret(text):
        raise typer.BadParameter(SENTENCES["contains_secret"])
    return text


def main() -> None:
    """Run the command line; whatever is wrong becomes one line that says what to do."""
    import psycopg

    from domain.errors import Refused
    from infra.auth.ledger_admin import LedgerExists
    from infra.crypto.envelope import MasterKeyError
    from infra.errors import KeyNotRotatable, Unavailable
    from infra.postgres.embedded.cluster import PostgresError
    from infra.postgres.migrate import MigrationError
    from infra.postgres.server_check import UnsuitableServer
    from infra.process_limits import forbid_core_dumps
    from infra.processes.supervisor import SupervisorError
    from infra.servers import ServersError
    from projections.engine.projector import PoisonEvent
    from projections.engine.rebuild import PartFailed, RebuildInProgress

    forbid_core_dumps()
    try:
        app(standalone_mode=True)
    except (
        *(SettingsError, PostgresError, SupervisorError, MigrationError, UnsuitableServer, MasterKeyError),
        *(ServersError, Unavailable, LedgerExists, KeyNotRotatable, LookupError, Refused),
        *(RebuildInProgress, PartFailed, PoisonEvent),
    ) as error:
        _fail(str(error) or str(error.__doc__))
    except psycopg.OperationalError as error:
        # libpq's own text names host, user and cause, never a password.
        _fail(f"The database cannot be reached: {' '.join(str(error).split())}")


def _fail(message: str) -> None:
    for line in f"{LINE}{message}".split("\n"):
        show(line, err=True)
    sys.exit(1)


@app.command()
def up() -> None:
    """Run everything in the foreground: PostgreSQL, migrations, API, worker and sealer. Ctrl-C stops everything."""
    from infra.postgres.embedded.server import EmbeddedPostgres
    from infra.processes.logs import configure_logs
    from infra.processes.supervisor import exit_on_signals

    settings = load_settings()
    configure_logs()
    if settings.database_url is not None or settings.databases is not None:
        with servers(settings) as places:
            _run_everything(settings, places)
        return
    # Until the supervisor takes the signals over, one that asks for the end still releases PostgreSQL.
    with exit_on_signals(), EmbeddedPostgres(settings.data_dir) as server:
        place = Place(server.dsn(), server.dsn("sparkledger_api"), server.dsn("sparkledger_worker"))
        _run_everything(settings, [place])


def _run_everything(settings: Settings, places: list[Place]) -> None:
    from infra.processes.supervisor import Supervisor

    generated, notice = _prepare(settings, places)
    if notice is not None:
        show(notice, "")
    if generated is not None:
        # At once: whatever keeps the rest from starting, the key is stored now and will not be shown again.
        show(
            f"  Admin key, shown only once: {generated}",
            "  Lost it? Create another:    .venv/bin/sparkledger keys create --role admin",
            "",
        )
    parts = frozenset({"views", "expiry", "kafka", "webhooks", "alerts", "imports", "anchor"})
    children = [_child("api", "serve")]
    for place in places:
        children += [*_workers(settings, place, parts), _child("sealer", "work", "--only", SEAL, place=place)]
    with Supervisor(children, STOP_S) as supervisor:
        supervisor.start()
        url = supervisor.wait_ready("api", START_S)
        others = children[1:]
        if url is not None and all(supervisor.wait_ready(child.name, START_S) is not None for child in others):
            _welcome(settings, url)
        supervisor.run()


def _child(name: str, *words: str, place: Place | None = None, anchors: Path | None = None) -> Child:
    """Return a command of this program, to be run as a process of its own.

    Args:
        name: of the process.
        words: of the command.
        place: the server that it works for, if there are several: it is given no other.
        anchors: its anchor file, if it is not the one of the settings.

    """
    from infra.processes import supervisor

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:]), "PYTHONUNBUFFERED": "1"}
    for setting in (*ONLY_FOR_MIGRATE, *(MASTER_KEYS if SEAL in words else ())):
        environment.pop(variable(setting), None)
    # Each process is given one login of the database, its own.
    workers = environment.pop(variable("worker_database_url"), None)
    if workers is not None and words[0] == "work":
        environment[variable("database_url")] = workers
    if words[0] == "serve":
        environment.pop(variable("worker_databases"), None)
    if place is not None and place.name:
        for setting in ("databases", "worker_databases"):
            environment.pop(variable(setting), None)
        environment[variable("database_url")] = place.worker
        name = f"{name}@{place.name}"
    if anchors is not None:
        environment[variable("anchor_file")] = str(anchors)
    return supervisor.Child(name, (sys.executable, "-m", "cli", *words), environment)


def _workers(settings: Settings, place: Place, parts: frozenset[str]) -> list[Child]:
    """Return the processes of a worker: deliveries run apart, so that no receiver can cost the rest anything."""
    from infra.processes.worker import DELIVERIES

    anchors = _anchor_file(settings, place) if place.name else None
    named = [("worker", parts - DELIVERIES), ("webhooks", parts & DELIVERIES)]
    return [
        _child(name, "work", "--only", ",".join(sorted(some)), place=place, anchors=anchors)
        for name, some in named
        if some
    ]


def _prepare(settings: Settings, places: list[Place]) -> FirstKeys:
    """Migrate, and make the first ledger and its administrator."""
    import asyncio

    from infra.auth.key_commands import FIRST_LEDGER, first_keys, share_hashing
    from infra.postgres.migrate import migrate as apply
    from infra.processes.worker import create_views

    passwords = {
        role: password.get_secret_value()
        for role, password in (
            ("sparkledger_api", settings.api_password),
            ("sparkledger_worker", settings.worker_password),
        )
        if password is not None
    }
    for place in places:
        apply(place.owner, passwords, [grant for issuer in settings.oidc_issuers for grant in issuer.grants()])
        asyncio.run(create_views(place.owner))
    first = places[0]
    if settings.databases is not None:
        from infra.servers import number_servers

        owners = {place.name: place.owner for place in places}
        number_servers(owners)
        asyncio.run(share_hashing(owners, _master_key(settings)))
        with contextlib.suppress(LookupError):
            first = _home(places, FIRST_LEDGER)
    admin = settings.admin_key.get_secret_value() if settings.admin_key else None
    return asyncio.run(first_keys(first.owner, _master_key(settings), admin))


def _welcome(settings: Settings, url: str) -> None:
    lines = [
        f"Sparkledger is up at {url}   (reference: {url}/docs, ready: {url}/readyz)",
        f"The console: open {url} in a browser, and sign in with a key.",
    ]
    if settings.database_url is None and settings.databases is None:
        lines.append(f"The data is in {settings.data_dir}. Ctrl-C stops everything.")
    show(*lines)


@app.command()
def serve() -> None:
    """Run only the API."""
    from infra.process_limits import importing
    from infra.processes.logs import configure_logs
    from infra.processes.supervisor import announce_ready, die_with_parent

    settings = load_settings()
    die_with_parent()
    configure_logs()
    with servers(settings) as places:
        with importing():
            from api.http.server import run

        apis = {place.name: place.api for place in places}
        run(settings, apis, _master_key(settings), started=announce_ready)


@app.command()
def work(
    only: Annotated[str, typer.Option(help="The parts of the worker to run, separated by commas.")] = "",
) -> None:
    """Run only the worker: views, expiry, Kafka, and webhooks, alerts and large imports in a process of their own.

    The part `expiry` also carries out erasures and deletes what is past its time. `--only seal` runs the sealer of the
    signed logs instead.
    """
    import uvloop

    from infra.processes.logs import configure_logs
    from infra.processes.supervisor import announce_ready, die_with_parent
    from infra.processes.worker import DELIVERIES, PARTS, run

    wanted = frozenset(part.strip() for part in only.split(",") if part.strip()) or frozenset(PARTS)
    if wanted == {SEAL}:
        _seal()
        return
    unknown = wanted - set(PARTS)
    if unknown:
        message = (
            f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}, and {SEAL} by itself"
        )
        raise typer.BadParameter(message, param_hint="--only")
    settings = load_settings()
    publish = "kafka" in wanted and bool(settings.kafka_bootstrap_servers)
    if wanted == {"kafka"} and not publish:
        raise SettingsError("SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS is not set: name the brokers, as host:port.")
    die_with_parent()
    configure_logs()
    with servers(settings) as places:
        if settings.databases is not None or (wanted & DELIVERIES and wanted - DELIVERIES):
            _work_together(settings, places, wanted)
            return
        place = places[0]
        publishers = []
        if publish:
            from infra.delivery.kafka import (
                publisher,  # here, for loading Kafka's client takes longer than all the rest
            )

            publishers = publisher.publishers(place.worker, settings)
        mail = None
        if "alerts" in wanted:
            from infra.delivery.alerts.channels import mail_server

            mail = mail_server(settings)
        uvloop.run(
            run(
                place.worker,
                _master_key(settings),
                wanted,
                publishers=publishers,
                webhook_networks=settings.webhook_networks,
                webhook_ca_file=settings.webhook_ca_file,
                public_url=settings.public_url,
                mail=mail,
                load_imports=_load_imports,
                anchors=_anchors(settings, place),
                started=announce_ready,
            )
        )


def _load_imports(opened: Runtime) -> CarriesOut:
    """Return what carries imports out; it loads what no other part of a worker needs."""
    from api.import_worker import load

    return load(opened)


def _work_together(settings: Settings, places: list[Place], parts: frozenset[str]) -> None:
    """Run a worker as several processes, until a signal asks for the end; each works for one server."""
    from infra.crypto.rotation import require_master_keys
    from infra.postgres.migrate import require_migrated
    from infra.postgres.roles import WORKER
    from infra.postgres.server_check import require_suitable_server
    from infra.processes.supervisor import Supervisor, announce_ready

    # Here, so that what is wrong is said once.
    for place in places:
        require_suitable_server(place.worker, WORKER)
        require_migrated(place.worker)
        require_master_keys(place.worker, WORKER, _master_key(settings))
    workers = [worker for place in places for worker in _workers(settings, place, parts)]
    with Supervisor(workers, STOP_S) as supervisor:
        supervisor.start()
        if all(supervisor.wait_ready(worker.name, START_S) is not None for worker in workers):
            announce_ready()
        supervisor.run()


def _seal_together(places: list[Place]) -> None:
    """Run a sealer for each server, until a signal asks for the end."""
    from infra.processes.supervisor import Supervisor, announce_ready

    sealers = [_child("sealer", "work", "--only", SEAL, place=place) for place in places]
    with Supervisor(sealers, STOP_S) as supervisor:
        supervisor.start()
        if all(supervisor.wait_ready(sealer.name, START_S) is not None for sealer in sealers):
            announce_ready()
        supervisor.run()


def _seal() -> None:
    """Run the sealer, which is a process of its own: nothing else has the signing keys, or its memory."""
    from infra.postgres.migrate import require_migrated
    from infra.postgres.roles import WORKER
    from infra.postgres.server_check import require_suitable_server
    from infra.processes.background import run_beside
    from infra.processes.logs import configure_logs
    from infra.processes.supervisor import announce_ready, die_with_parent, exit_on_signals
    from infra.proof.configured_witness import WitnessRefused, configured_witness
    from infra.proof.sealer import Sealer, SealerSettings
    from infra.proof.time_stamps import TimeStamps
    from infra.proof.watcher import Watcher
    from infra.proof.witness_client import FIRST_ROUND_S, WitnessClient

    settings = load_settings(unseals=False)
    signing_dir = settings.signing_dir or settings.data_dir / "signing"
    die_with_parent()
    configure_logs()
    if settings.databases is not None:
        with servers(settings) as places:
            _seal_together(places)
        return
    # A signal that asks for the end is obeyed at any point, and is no failure.
    with database(settings) as place, exit_on_signals(), contextlib.suppress(KeyboardInterrupt, SystemExit):
        require_suitable_server(place.worker, WORKER)
        require_migrated(place.worker)
        chosen = SealerSettings(signing_dir, settings.log_name, frozenset(settings.public_logs))
        asked_all = threading.Event()
        sealer = Sealer(place.worker, chosen, functools.partial(asked_all.wait, FIRST_ROUND_S))
        try:
            witnesses = [configured_witness(text) for text in settings.witnesses]
        except WitnessRefused as error:
            raise SettingsError(f"{variable('witnesses')}: {error}") from error
        stop = functools.partial(sealer.differs, "witnesses")
        run_beside("witnesses", WitnessClient(place.worker, signing_dir, witnesses, stop, asked_all).run)
        if settings.tsa_url is not None:
            run_beside("time stamps", TimeStamps(place.worker, settings.tsa_url).run)
        stop = functools.partial(sealer.differs, "watcher")
        run_beside("watcher", Watcher(place.worker, signing_dir, stop).run)
        sealer.run(announce_ready)


@app.command()
def witness(
    name: Annotated[str, typer.Option(help="The witness's name, as others know it: such as witness.example/w1.")],
    directory: Annotated[Path, typer.Option("--dir", help="The directory of its key, its logs and what it signed.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)] = 7380,
) -> None:
    """Run a witness: it signs checkpoints of the logs in the file DIR/logs, a verifier key in each line.

    A witness has no database. It is worth something only if somebody else than the operator of the ledger runs it.
    """
    import time

    from api.witness import serve_witness
    from infra.processes.logs import configure_logs
    from infra.processes.supervisor import announce_ready, die_with_parent
    from infra.proof.notes import MalformedNote, VerifierKey
    from infra.proof.witness import Witness, WitnessError

    try:
        opened = Witness(directory, name, lambda: int(time.time()))
        VerifierKey.parse(opened.key.text)
    except MalformedNote as error:
        message = "a name has no blank and no +, and at most 255 characters"
        raise typer.BadParameter(message, param_hint="--name") from error
    except (OSError, WitnessError) as error:
        raise SettingsError(str(error)) from error
    die_with_parent()
    configure_logs()

    def started(url: str) -> None:
        show(f"The witness is up at {url}. Its verifier key:", opened.key.text)
        announce_ready()

    serve_witness(opened, host, port, started)


@app.command()
def migrate() -> None:
    """Migrate the database to this version, and create the first ledger and its admin key."""
    settings = load_settings()
    with servers(settings, begins=True) as places:
        generated, notice = _prepare(settings, places)
    show("The database is up to date.", *([notice] if notice else []))
    if generated is not None:
        show(f"Admin key, shown only once: {generated}")


@app.command()
def rebuild(
    view: Annotated[str, typer.Argument(help="The view to rebuild, or `all`.")],
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            max=REBUILD_JOBS_MAX,
            help="How many processes fill the tables, each with the rows of some of the codes. PostgreSQL needs "
            "processors, too.",
        ),
    ] = 1,
) -> None:
    """Rebuild a view in shadow tables, then swap it in. Reads continue meanwhile. An interrupted rebuild resumes."""
    import uvloop

    from infra.views.commands import rebuild as fill
    from infra.views.progress_display import showing
    from projections import VIEWS

    names = [known.name for known in VIEWS]
    if view not in {*names, "all"}:
        message = f"there is no view {view}; the views are {', '.join(names)}, or all of them: all"
        raise typer.BadParameter(message)
    with servers(load_settings()) as places:
        for place in places:
            if place.name:
                show(f"Server {place.name}:")
            with showing(show) as shown:
                uvloop.run(fill(place.worker, names if view == "all" else [view], shown, jobs=jobs))


@views.command("list")
def views_list() -> None:
    """List the views: how far each has read, why any has stopped, and which events were skipped."""
    import asyncio

    from infra.views.commands import overview

    with servers(load_settings()) as places:
        for place in places:
            found = asyncio.run(overview(place.worker))
            show(*([f"Server {place.name}:"] if place.name else []), *found.lines())


@views.command("skip")
def views_skip(
    view: str,
    ledger: Annotated[str, typer.Option(help="The event's ledger.")],
    position: Annotated[int, typer.Option(min=1, help="The event's position, as shown by `views list`.")],
    reason: Annotated[
        str,
        typer.Option(
            help="Why the view can skip the event. Kept permanently, with your user name.", callback=_in_clear
        ),
    ],
    and_later: Annotated[
        bool, typer.Option("--and-later", help="Also skip all later events of the same code or creator.")
    ] = False,
) -> None:
    """Skip the event that stopped a view. Who skipped it, why and when are recorded."""
    import asyncio

    from infra.views.commands import current_user, skip

    if not reason.strip():
        message = "say why the view can skip the event"
        raise typer.BadParameter(message, param_hint="--reason")
    with servers(load_settings()) as places:
        place = _home(places, ledger)
        asyncio.run(skip(place.worker, view, ledger, position, reason.strip(), current_user(), and_later=and_later))
    rest = " and all later events of the same code or creator" if and_later else ""
    show(f"View {view} skips event {position} of ledger {ledger}{rest}. The worker continues within seconds.")


@contextlib.contextmanager
def _progress(*, on_stderr: bool = False) -> Iterator[Callable[[str], None]]:
    """Show how far long work is: in place on a terminal, as plain lines elsewhere."""
    if not (sys.stderr if on_stderr else sys.stdout).isatty():
        yield lambda line: show(line, err=on_stderr)
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=on_stderr)
    last = ""
    with console.status("") as status:

        def say(line: str) -> None:
            nonlocal last
            last = escape(printable(line))
            status.update(last)

        yield say
    console.print(last)


@keys.command("create")
def keys_create(
    role: Annotated[str, typer.Option(help="One of admin, operator, creator, brand, auditor and subscriber.")],
    ledger: Annotated[str, typer.Option(help="The key's ledger.")] = "main",
    name: Annotated[str | None, typer.Option(help="The key's name.", callback=_in_clear)] = None,
    creator_id: Annotated[
        list[str] | None, typer.Option(help="A creator that the key acts for. Can be repeated.")
    ] = None,
    brand_id: Annotated[list[str] | None, typer.Option(help="A brand that the key acts for. Can be repeated.")] = None,
    advertiser_id: Annotated[
        list[str] | None, typer.Option(help="An advertiser account that the key acts for. Can be repeated.")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="The number of days after which the key expires.")
    ] = None,
    no_reveal: Annotated[bool, typer.Option("--no-reveal", help="Do not allow the key to reveal secrets.")] = False,
) -> None:
    """Create an API key and show it once."""
    from datetime import UTC, datetime, timedelta

    from infra.auth.api_keys import Subjects
    from infra.auth.key_commands import create_key

    subjects = Subjects(
        frozenset(_checked_creator(one) for one in creator_id or ()),
        frozenset(_checked_id(one) for one in brand_id or ()),
        frozenset(_checked_id(one) for one in advertiser_id or ()),
    )
    checked = _checked_role(role, subjects)
    ends = None if days is None else datetime.now(UTC) + timedelta(days=days)
    minted, text = _with_database(
        lambda place, key: create_key(
            place.owner, key, ledger, checked, name, subjects, expires_at=ends, may_reveal=not no_reveal
        ),
        ledger,
    )
    show(f"{minted.key_id}  {minted.role}  {ledger}", f"Key, shown only once: {text}")


def _checked_creator(text: str) -> str:
    from domain.pasted import Unusable, canonical_creator_id

    try:
        return canonical_creator_id(text)
    except Unusable as error:
        raise typer.BadParameter(str(error)) from None


def _checked_id(text: str) -> str:
    import re

    from api.http.fields import ID_EXPECTED
    from domain.values import ID_PATTERN

    if re.fullmatch(ID_PATTERN, text) is None:
        raise typer.BadParameter(ID_EXPECTED)
    return text


def _checked_role(role: str, subjects: Any) -> Any:
    from typing import get_args

    from domain.values import Role
    from infra.auth.api_keys import subjects_problem

    if role not in get_args(Role):
        message = f"the role must be one of {', '.join(get_args(Role))}"
        raise typer.BadParameter(message, param_hint="--role")
    problem = subjects_problem(role, subjects)  # type: ignore[arg-type] # it is one of the roles
    if problem:
        raise typer.BadParameter(problem, param_hint="--role")
    return role


@keys.command("list")
def keys_list(ledger: Annotated[str, typer.Option(help="The keys' ledger.")] = "main") -> None:
    """List a ledger's API keys, newest first. The keys themselves are not shown."""
    from infra.auth.key_commands import list_keys

    for key in _with_database(lambda place, master: list_keys(place.owner, master, ledger), ledger):
        state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
        if key.revoked_at is None and key.expires_at is not None:
            state = f"until {key.expires_at:%Y-%m-%d}"
        used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        named = " ".join(filter(None, [key.name, key.subject]))
        line = f"{key.key_id}  {key.role:<10}  {key.created_at:%Y-%m-%d}  {state:<18}  {used:<21}  {named}"
        show(line.rstrip())


@keys.command("rotate")
def keys_rotate(
    key_id: str,
    ledger: Annotated[str, typer.Option(help="Whose key.")] = "main",
    overlap_seconds: Annotated[
        int, typer.Option(min=0, max=30 * 24 * 3600, help="How long the old key still works.")
    ] = 3600,
) -> None:
    """Rotate an API key and show the new one once. The old one works until the overlap ends."""
    from infra.auth.key_commands import rotate_key

    wanted = _checked_key_id(key_id)
    text = _with_database(lambda place, key: rotate_key(place.owner, key, ledger, wanted, overlap_seconds), ledger)
    show(f"Key, shown only once: {text}")


@keys.command("revoke")
def keys_revoke(key_id: str, ledger: Annotated[str, typer.Option(help="Whose key.")] = "main") -> None:
    """Revoke an API key immediately and permanently."""
    from infra.auth.key_commands import revoke_key

    wanted = _checked_key_id(key_id)
    _with_database(lambda place, master: revoke_key(place.owner, master, ledger, wanted), ledger)
    show("Revoked.")


def _checked_key_id(key_id: str) -> Any:
    from uuid import UUID

    try:
        return UUID(key_id)
    except ValueError as error:
        message = "a key's id is a UUID; `sparkledger keys list` shows the ids"
        raise typer.BadParameter(message) from error


@ledgers.command("create")
def ledgers_create(
    name: str,
    server: Annotated[
        str | None, typer.Option(help="Its server, if there are several. Default: the first of the file.")
    ] = None,
) -> None:
    """Create a ledger and show its first admin key once."""
    import re

    from domain.values import ID_PATTERN

    if not re.fullmatch(ID_PATTERN, name):
        message = "a ledger's name must have 1 to 128 of: letters, digits, . _ : @ -"
        raise typer.BadParameter(message)
    from infra.auth.ledger_admin import LedgerExists

    text = _begin_ledger(load_settings(), name, server)
    if text is None:
        raise LedgerExists
    show(f"Ledger {name} was created.", f"Admin key, shown only once: {text}")


def _begin_ledger(settings: Settings, ledger: str, server: str | None = None) -> str | None:
    """Create a ledger, and return its administrator's key; None if there is a ledger of this name on any server."""
    import asyncio

    from infra.auth.key_commands import create_ledger
    from infra.auth.ledger_admin import LedgerExists
    from infra.servers import new_ledger_name

    with servers(settings) as places:
        place = _chosen(places, server)
        with contextlib.ExitStack() as held:
            if len(places) > 1:
                owners = {one.name: one.owner for one in places}
                if not held.enter_context(new_ledger_name(owners, ledger)):
                    return None
            with contextlib.suppress(LedgerExists):
                return asyncio.run(create_ledger(place.owner, _master_key(settings), ledger))
    return None


def _chosen(places: list[Place], server: str | None) -> Place:
    """Return the server that an option names; the first, if it names none."""
    if server is None:
        return places[0]
    found = next((place for place in places if place.name == server), None)
    if found is None:
        known = ", ".join(place.name for place in places if place.name)
        message = f"there is no server {server}; {f'the servers are {known}' if known else 'there is only one'}"
        raise typer.BadParameter(message, param_hint="--server")
    return found


@ledgers.command("list")
def ledgers_list() -> None:
    """List the ledgers: where each is, if there are several servers, and how large."""
    import asyncio

    from infra.auth.key_commands import list_ledgers

    settings = load_settings()
    with servers(settings) as places:
        for place in places:
            where = f"  {place.name:<12}" if place.name else ""
            for found in asyncio.run(list_ledgers(place.owner, _master_key(settings))):
                size = f"{found.events:,} events, about {max(found.bytes / 1e6, 0.1):,.1f} MB"
                moving = ""
                if found.moving_since is not None:
                    moving = f", moving to {found.moving_to} since {found.moving_since:%Y-%m-%d %H:%M} UTC"
                show(f"{found.ledger_id:>6}  {found.name:<20}{where}  {size}{moving}")


@ledgers.command("move")
def ledgers_move(
    ledger: str,
    to: Annotated[str, typer.Option(help="The server that it moves to.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="Give up a move that was interrupted: the ledger stays where it is.")
    ] = False,
) -> None:
    """Move a ledger to another server, while it is served. If interrupted, run it again.

    Commands of the ledger wait for about a second at the end. The server that it has left keeps a copy, which is not
    served: `ledgers forget` removes it.
    """
    from infra.jobs.ledger_move import LedgerMove, Server

    settings = load_settings()
    with servers(settings) as places, _progress() as say:
        target = _chosen(places, to)
        source = _leaves(places, ledger, target)
        given = Server(source.name, source.owner), Server(target.name, target.owner)
        with LedgerMove(ledger, *given, _master_key(settings), say) as move:
            if undo:
                move.undo()
                say(f"Ledger {ledger} stays on {source.name}.")
                return
            moved = move.run()
        say(
            f"Ledger {ledger} is on {to} now, from position {moved.position:,} on. Commands waited for "
            f"{moved.held_s:.2f} seconds. {source.name} keeps a copy that it does not serve: remove it with "
            "`sparkledger ledgers forget`."
        )


def _leaves(places: list[Place], ledger: str, target: Place) -> Place:
    """Return the server that a ledger leaves: its home, or the one that it has left, if its move is not complete."""
    from infra.errors import Unavailable
    from infra.jobs.ledger_move import MoveError
    from infra.servers import leaving

    missing: LookupError | None = None
    try:
        home = _home(places, ledger)
    except LookupError as error:
        missing = error
    else:
        if home.name != target.name:
            return home
    for place in places:
        if place.name == target.name:
            continue
        try:
            if leaving(place.name, place.owner, ledger, target.name):
                return place
        except Unavailable:
            if missing is not None:
                raise
    if missing is not None:
        raise missing
    message = f"Ledger {ledger} is on {target.name} already."
    raise MoveError(message)


@ledgers.command("forget")
def ledgers_forget(
    ledger: str, server: Annotated[str, typer.Option(help="The server that the ledger has moved away from.")]
) -> None:
    """Remove the copy of a ledger that has moved to another server. Reads that began before the move must be over."""
    from infra.jobs import ledger_move

    with servers(load_settings()) as places, _progress() as say:
        place = _chosen(places, server)
        ledger_move.forget(ledger, ledger_move.Server(place.name, place.owner), say)
        say(f"{server} has nothing of ledger {ledger} any more.")


@ledgers.command("restart")
def ledgers_restart(
    ledger: str,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Accept that events which the database has lost are gone.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(help="Why. Kept permanently and unencrypted, so do not name a person.", callback=_in_clear),
    ] = None,
) -> None:
    """Let a ledger that has lost its newest events go on, under a new history. Readers notice."""
    from api.http.fields import MAX_REASON_CHARACTERS
    from infra.jobs import log_restart

    if not accept_loss:
        message = "the events that the database has lost are gone then; say so with --accept-loss"
        raise typer.BadParameter(message, param_hint="--accept-loss")
    if reason is not None and not 1 <= len(reason.strip()) <= MAX_REASON_CHARACTERS:
        message = f"a reason must have 1 to {MAX_REASON_CHARACTERS} characters"
        raise typer.BadParameter(message, param_hint="--reason")
    done = _with_database(
        lambda place, key: _after_check(place, log_restart.restart(place.owner, key, ledger, reason)), ledger
    )
    common = "" if done.common_position is None else f" Events up to position {done.common_position:,} are the same."
    show(
        f"Ledger {ledger} goes on as generation {done.generation}, from position {done.position:,} on.{common}",
        f"Its history is {done.history}. Readers of the one before have to read again.",
    )


@ledgers.command("rotate-key")
def ledgers_rotate_key(
    ledger: str,
    retire_old: Annotated[
        bool, typer.Option("--retire-old", help="The second step: the older key signs no more, and is destroyed.")
    ] = False,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="Somebody else may have the key: begin a generation with another one.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(help="Why. Kept permanently and unencrypted, so do not name a person.", callback=_in_clear),
    ] = None,
) -> None:
    """Let another key sign the log of a ledger. Run it where the sealer's directory is, and then with --retire-old."""
    from api.http.fields import MAX_REASON_CHARACTERS
    from infra.jobs.log_keys import Step, change_keys

    if retire_old and compromised:
        raise typer.BadParameter("a compromised key is not retired, it ends at once", param_hint="--compromised")
    if reason is not None and not 1 <= len(reason.strip()) <= MAX_REASON_CHARACTERS:
        message = f"a reason must have 1 to {MAX_REASON_CHARACTERS} characters"
        raise typer.BadParameter(message, param_hint="--reason")
    settings = load_settings()
    signing_dir = settings.signing_dir or settings.data_dir / "signing"
    step: Step = "compromise" if compromised else "retire" if retire_old else "add"
    done = _with_database(
        lambda place, key: _after_check(place, change_keys(place.owner, key, signing_dir, ledger, step, reason)), ledger
    )
    said = {
        "add": f"Another key signs the log of {ledger} from event {done.position:,} on, beside the present one. Give "
        "it to witnesses and to everyone who verifies. Then run this with --retire-old.",
        "retire": f"The older key signs the log of {ledger} no more from event {done.position:,} on. This one remains:",
        "compromise": f"Ledger {ledger} goes on as generation {done.generation}, from event {done.position:,} on, with "
        "another key. Tell everyone who has the old one, and witnesses: what it alone has signed counts for nothing.",
    }
    show(said[step], *done.verifier_keys)


def _anchors(settings: Settings, place: Place) -> AnchorFile:
    from infra.jobs.anchor import AnchorFile

    return AnchorFile(_anchor_file(settings, place))


def _anchor_file(settings: Settings, place: Place) -> Path:
    """Return the anchor file of a server: each has its own."""
    file = settings.anchor_file or settings.data_dir / "anchor.json"
    return file.with_name(f"{file.stem}-{place.name}{file.suffix}") if place.name else file


async def _after_check(place: Place, action: Coroutine[Any, Any, T]) -> T:
    """Run what appends to a log once the logs were compared with their anchors: perhaps no worker runs that does it."""
    from infra.jobs.anchor import check_once

    await check_once(place.owner, _anchors(load_settings(), place))
    return await action


@master_keys.command("show")
def master_key_show() -> None:
    """Show the configured master keys by short id, and how many keys each one wraps."""
    import asyncio

    from infra.crypto import rotation

    settings = load_settings()
    with servers(settings) as places:
        for place in places:
            where = f"  {place.name:<12}" if place.name else ""
            for state in asyncio.run(rotation.states(place.owner, _master_key(settings))):
                words = ["present" if state.present else "", "given" if state.given else "not given"]
                show(f"{state.key_id}{where}  {state.keys:>8,} keys  {', '.join(word for word in words if word)}")


@master_keys.command("rotate")
def master_key_rotate() -> None:
    """Wrap every key with a new master key, while everything runs. If interrupted, run it again."""
    import asyncio

    from infra.crypto import rotation

    settings, new = load_settings(), None
    with _progress() as say, servers(settings) as places:
        for place in places:
            new = asyncio.run(rotation.rotate(place.owner, _master_key(settings), say)) or new
    if new is None:
        show(
            "There is nothing to do: every key is already wrapped with SPARKLEDGER_MASTER_KEY. To change the "
            "master key, set SPARKLEDGER_MASTER_KEY to the new key and SPARKLEDGER_MASTER_KEY_PREVIOUS to the "
            "old one in every process."
        )
        return
    show(
        f"Every key is now wrapped with master key {new}. Backups made until today still need the old master "
        "key: keep it as long as you keep them, in another place, and remove it from this program's "
        "configuration."
    )


@app.command()
def erase(
    creator_id: str,
    reason: Annotated[
        str,
        typer.Option(
            help="Why. Kept permanently and unencrypted, so do not name a person.", prompt=True, callback=_in_clear
        ),
    ],
    ledger: Annotated[str, typer.Option(help="Whose creator.")] = "main",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Erase a creator: permanently destroy the key that seals their secrets and notes."""
    from api.http.fields import MAX_REASON_CHARACTERS
    from infra.jobs import erasure

    if not 1 <= len(reason.strip()) <= MAX_REASON_CHARACTERS:
        message = f"a reason must have 1 to {MAX_REASON_CHARACTERS} characters"
        raise typer.BadParameter(message, param_hint="--reason")
    creator_id = _checked_creator(creator_id)
    if not yes:
        typer.confirm(f"After this, nobody can read the secrets and notes of {creator_id}. Erase?", abort=True)
    found = _with_database(
        lambda place, key: _after_check(place, erasure.erase(place.owner, key, ledger, creator_id, reason)), ledger
    )
    done = "The key is destroyed." if found.carried_out_at else "A worker destroys the key as soon as it can."
    show(f"Erased. The event is at position {found.recorded.position:,}. {done}")


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="The file to write. CSV if its name ends in .csv, else NDJSON.")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="A query that selects events, like `q` of GET /v1/events.")
    ] = None,
    ledger: Annotated[str, typer.Option(help="Whose events.")] = "main",
    bom: Annotated[
        bool, typer.Option("--bom", help="Begin a CSV with a byte order mark, so that Excel reads it as UTF-8.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Verify this export instead.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Export the audit trail to a file, or verify an export. The file appears only when it is complete."""
    from api import export_files, offline
    from api.http.query_params import MAX_Q_CHARACTERS

    if verify is not None and file is None:
        show(f"{verify} is complete: {export_files.verify_export(verify)}.")
        return
    if file is None or verify is not None:
        raise typer.BadParameter("name the file to write, or the file to --verify")
    # What is not in UTF-8 comes with surrogates in its place.
    sent = "" if query is None else query.encode(errors="ignore").decode()
    if query is not None and (sent != query or not 1 <= len(query) <= MAX_Q_CHARACTERS):
        message = f"a query must have 1 to {MAX_Q_CHARACTERS} characters, in UTF-8"
        raise typer.BadParameter(message, param_hint="--query")
    checked = functools.partial(offline.export_query, bom=bom, video_ids=load_settings().video_ids)
    asked = _wanted(checked, query, file)
    with _progress() as say:
        _with_database(
            lambda place, key: offline.export(offline.LedgerAddress(place, key, ledger), asked, file, say), ledger
        )


@app.command()
def authorizations(
    file: Annotated[
        Path,
        typer.Argument(
            help="Lines with video_id, advertiser_id and optionally at. CSV if its name ends in .csv, else NDJSON.",
            exists=True,
        ),
    ],
    as_of: Annotated[str | None, typer.Option(help="Answer as the ledger knew at this time or position.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write. Default: print the answers.")] = None,
    ledger: Annotated[str, typer.Option(help="Whose codes.")] = "main",
) -> None:
    """For each line of a file, answer whether a video was authorized for an advertiser at a given time, and why."""
    from api import offline

    asked = _wanted(offline.batch_query, as_of)
    with _progress(on_stderr=output is None) as say:
        _with_database(
            lambda place, key: offline.ask(
                offline.LedgerAddress(place, key, ledger), asked, file, output, say, video_ids=load_settings().video_ids
            ),
            ledger,
        )


@app.command("import")
def import_sheet(
    file: Annotated[Path, typer.Argument(help="The sheet: a CSV or TSV in UTF-8, or an XLSX workbook.", exists=True)],
    record: Annotated[bool, typer.Option("--record", help="Record the rows. Default: only say what would be.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the same sheet with two columns added: what becomes of each row, and why."),
    ] = None,
    dates: Annotated[str | None, typer.Option(help="The order in days such as 03/04/2026: dmy or mdy.")] = None,
    time_zone: Annotated[str | None, typer.Option(help="The time zone of days and times. Default: UTC.")] = None,
    days: Annotated[
        int | None, typer.Option(help="The length of every window of which a row states only one end.")
    ] = None,
    terms: Annotated[
        str | None, typer.Option(help="The terms that the creators accepted, for rows that do not say which.")
    ] = None,
    permission: Annotated[
        bool, typer.Option("--permission", help="State that all ad authorizations were on when codes were generated.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option(help="Which column is what, such as secret=F,video_id=C; note= is not read.")
    ] = None,
    header: Annotated[int | None, typer.Option(help="The row that names the columns. Default: it is found.")] = None,
    mapping: Annotated[
        str | None, typer.Option(help="The name of a saved mapping. Other options count before it.")
    ] = None,
    record_differences: Annotated[
        bool, typer.Option("--record-differences", help="Record on codes in what their rows differ, as notes.")
    ] = False,
    ledger: Annotated[str, typer.Option(help="Whose codes.")] = "main",
) -> None:
    """Import a sheet of codes. Without --record, say what would become of each row, and record nothing.

    Importing the same sheet again records nothing. Exits with 1 if rows differ, are refused or are unclear.
    """
    from api import offline, offline_import
    from domain.values import Policy

    settings = load_settings()
    given = {"record": record, "dates": dates, "time_zone": time_zone, "days": days, "terms": terms}
    given |= {"permission": permission, "columns": columns, "header": header, "record_differences": record_differences}
    given |= {"mapping": mapping}
    asked = _wanted(functools.partial(offline_import.import_query, **given))
    policy = Policy(settings.allowed_days, settings.extend_after_expiry, settings.codes_without_secret)

    async def imported(place: Place, key: KeyProvider) -> Any:
        where = offline.LedgerAddress(place, key, ledger)
        action = offline_import.import_sheet(
            where, asked, file, report, say, policy=policy, video_ids=settings.video_ids
        )
        return await (_after_check(place, action) if record else action)

    with _progress() as say:
        run, described = _with_database(imported, ledger)
    show(*described, *offline_import.summary(run))
    raise typer.Exit(1 if run.counts["differs"] + run.counts["refused"] + run.counts["unclear"] else 0)


@app.command()
def evidence(
    file: Annotated[Path, typer.Argument(help="The ZIP file to write.")],
    kind: Annotated[str, typer.Option(help="answer, code, creator, video, range or ledger.")] = "ledger",
    video: Annotated[str | None, typer.Option(help="For an answer or a video: the video.")] = None,
    advertiser: Annotated[str | None, typer.Option(help="For an answer: the advertiser account.")] = None,
    at: Annotated[str | None, typer.Option(help="For an answer: the time at which the ad ran. Default: now.")] = None,
    code: Annotated[str | None, typer.Option(help="For a code: its id.")] = None,
    creator: Annotated[str | None, typer.Option(help="For a creator: the account.")] = None,
    first: Annotated[int | None, typer.Option(help="For a range: the first position.")] = None,
    last: Annotated[int | None, typer.Option(help="For a range: the last position.")] = None,
    since: Annotated[str | None, typer.Option(help="For a range: recorded at this time or later.")] = None,
    until: Annotated[str | None, typer.Option(help="For a range: recorded before this time.")] = None,
    size: Annotated[int | None, typer.Option(help="As of the checkpoint with so many events. Default: newest.")] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Prove by sealed heads, and show only the entries since then.")
    ] = False,
    ledger: Annotated[str, typer.Option(help="Whose events.")] = "main",
) -> None:
    """Make an evidence bundle, which others verify without trusting this server."""
    from api import offline

    given = {"kind": kind, "video_id": video, "advertiser_id": advertiser, "at": at, "code_id": code}
    given |= {"creator_id": creator, "since": since, "until": until}
    numbers = {"first": first, "last": last, "size": size, "short": short or None}
    read = functools.partial(offline.evidence_request, load_settings().video_ids, **given, **numbers)
    asked = _wanted(read)
    with _progress() as say:
        _with_database(
            lambda place, key: offline.evidence(offline.LedgerAddress(place, key, ledger), asked, file, say), ledger
        )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The ZIP file, or the folder that it was unpacked to.")],
    key: Annotated[
        list[str] | None, typer.Option(help="A verifier key of the log that you trust, or a file with such keys.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(help="The verifier key of a witness that must have signed, or a file.")
    ] = None,
    quorum: Annotated[
        int | None, typer.Option(help="How many of the witnesses must have signed. Default: all.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A tlog-policy file: keys that you trust, and who must have signed.", exists=True),
    ] = None,
    unpinned: Annotated[bool, typer.Option("--unpinned", help="Accept the key that came with the bundle.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint that you kept: the log must continue it.", exists=True)
    ] = None,
    receipt: Annotated[
        list[Path] | None, typer.Option(help="A receipt: the log must still have its event.", exists=True)
    ] = None,
    max_age: Annotated[float | None, typer.Option(help="How many hours old a witness's time may be.")] = None,
    about: Annotated[str | None, typer.Option(help="What it must be about, such as code:ID or ledger.")] = None,
    tsa: Annotated[
        Path | None, typer.Option(help="Certificates of time-stamping authorities that you trust (PEM).", exists=True)
    ] = None,
) -> None:
    """Verify an evidence bundle. Needs no database and no network. Each line is a verdict; 1 if one is not good."""
    import zipfile

    from cryptography.x509 import load_pem_x509_certificates

    from infra.proof import verify as verifier
    from infra.proof.bundle_check import check_bundle

    try:
        report = check_bundle(
            bundle,
            keys=verifier.vkeys(key or []),
            witnesses=verifier.vkeys(witness or []),
            quorum=quorum,
            policy=None if policy is None else verifier.Policy(policy.read_text()),
            unpinned=unpinned,
            older=None if checkpoint is None else checkpoint.read_bytes(),
            receipts=[path.read_bytes() for path in receipt or []],
            max_age_s=None if max_age is None else max_age * 3600,
            about=about,
            authorities=[] if tsa is None else load_pem_x509_certificates(tsa.read_bytes()),
        )
    except (OSError, ValueError, verifier.Wrong, zipfile.BadZipFile) as error:
        message = f"This cannot be used: {error}."
        raise typer.BadParameter(message) from error
    show(*str(report).splitlines(), "", verifier.conclusion(report))
    raise typer.Exit(0 if report.good else 1)


def _wanted(read: Callable[..., Any], *given: Any) -> Any:
    """Read what an option says; what is wrong with it is wrong usage."""
    try:
        return read(*given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def demo() -> None:
    """Walk through the whole life of a code on a running server, and show what each step recorded."""
    from infra.auth.key_commands import create_key, revoke_key

    settings = load_settings()
    if settings.databases is not None:
        _begin_ledger(settings, "demo")
    minted, key = _with_database(
        lambda place, master: create_key(place.owner, master, "demo", "admin", "demo", create=True), "demo", settings
    )
    from api.demo import run_demo

    try:
        url = f"http://{settings.host}:{settings.port}"
        outcome = run_demo(url, key, lambda text: show(*text.split("\n")))
        if outcome == 0:
            show("", f"To look at this ledger, make a key and sign in with it at {url}:")
            show("    .venv/bin/sparkledger keys create --ledger demo --role auditor")
    finally:
        # The key was only for this run.
        _with_database(lambda place, master: revoke_key(place.owner, master, "demo", minted.key_id), "demo", settings)
    raise typer.Exit(outcome)


# Named here and not beside the benchmarks: those come only with a checkout, and `--help` names them everywhere.
BENCHMARKS: Final = {
    "append": "commands per second of one process, compared with plain PostgreSQL and the eventsourcing library",
    "http": "requests per second of one and of two API processes, compared with an empty FastAPI route",
    "growth": "the cost of an append and of a load with many events, compared with few",
    "expiry": "many codes that expire in the same second, and the effect on commands",
    "question": "the authorization question, a page of the audit trail and an export, with a long log",
    "console": "how soon the console's pages show something, what they cost, and the effect on the API; needs Chromium",
    "figures": "sums by party and month, and lists of the past, with many codes",
    "rebuild": "events per second when views are rebuilt from a long log",
    "lag": "the time from the response to a command until a view has it",
    "proof": "the signed log: sealing, proofs, lag, heads, bundles and their verifiers, and commands beside the sealer",
    "publish": "events per second to Kafka, and the time from commit to consumer; needs Java 17 and Maven",
    "stream": "the time from recording an event until 100 and 1,000 stream clients have it",
    "webhooks": "events per second delivered to one receiver",
    "peers": "appends of other event stores; only by name, because some are fetched from npm and PyPI",
}


def _benchmark(name: str | None) -> str | None:
    if name is not None and name not in BENCHMARKS:
        raise typer.BadParameter(f"There is no benchmark {name!r}. The benchmarks are {', '.join(BENCHMARKS)}.")
    return name


@app.command(
    help="Run benchmarks on a temporary database. Needs a checkout and `make install`.\n\nThe latest figures of "
    "each benchmark are in .bench/results.json.",
    epilog="\n\n".join(f"{name}: {what}" for name, what in BENCHMARKS.items()),
)
def bench(
    name: Annotated[
        str | None, typer.Argument(callback=_benchmark, help="The benchmark to run, from the list below. Default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Use the full sizes: 10 million events, a million codes, 100,000 expiries.")
    ] = False,
    budget: Annotated[
        bool,
        typer.Option(
            "--budget",
            help="append and rebuild: show where the processor's time goes, by layer; of append by statement.",
        ),
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(help="With --budget: another checkout, with its .venv, to measure in turns with this one."),
    ] = None,
) -> None:
    if (budget or base is not None) and (name not in {"append", "rebuild"} or not budget):
        raise typer.BadParameter("--budget is for `bench append` and `bench rebuild`, and --base for --budget.")
    try:
        from tests.bench.__main__ import main as measure
    except ImportError as error:
        message = f"Benchmarks need a checkout with everything installed (`make install`): {error}."
        raise LookupError(message) from error
    measure(name, as_json=as_json, full=full, budget=budget, base=base)


@app.command()
def version() -> None:
    """Show the version."""
    show(installed_version("sparkledger"))


def _with_database(action: Any, ledger: str, settings: Settings | None = None) -> Any:
    """Run one asynchronous action on the database of a ledger, as its owner."""
    import asyncio

    settings = settings or load_settings()
    with servers(settings) as places:
        return asyncio.run(action(_home(places, ledger), _master_key(settings)))


def _master_key(settings: Settings) -> KeyProvider:
    from infra.crypto.master_keys import key_provider

    return key_provider(settings)


if __name__ == "__main__":
    main()
