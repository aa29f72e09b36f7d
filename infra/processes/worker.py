"""The worker process: views, the expiry clock, Kafka, webhooks, alerts, imports, erasures and retention."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from infra.crypto.rotation import require_master_keys
from infra.delivery.alerts.worker import AlertWorker
from infra.delivery.webhooks.http_target import AllowedNetworks
from infra.delivery.webhooks.worker import WebhookWorker
from infra.ending import cancelled, end_for_certain
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.eventstore.notifications import Listener
from infra.jobs.anchor import Anchoring
from infra.jobs.derived_check import DerivedCheck
from infra.jobs.erasure import Erasures
from infra.jobs.expiry_clock import ExpiryClock
from infra.jobs.heads import HeadsJob
from infra.jobs.retention import purging
from infra.postgres.migrate import require_migrated
from infra.postgres.roles import WORKER
from infra.postgres.server_check import require_suitable_server
from infra.process_limits import GC_YOUNG_OBJECTS, raise_file_limit, tune_garbage_collector
from infra.processes.import_leader import carry_out
from infra.runtime import runtime
from infra.views.commands import connect
from projections import VIEWS
from projections.engine.runner import Runner, create_missing
from projections.engine.shared_reader import SharedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from infra.crypto.master_keys import KeyProvider
    from infra.delivery.alerts.channels import MailServer
    from infra.delivery.kafka.publisher import Publisher
    from infra.jobs.anchor import AnchorFile
    from infra.postgres.pool import Database
    from infra.processes.import_leader import CarriesOut
    from infra.runtime import Runtime

PARTS: Final = ("views", "expiry", "kafka", "webhooks", "alerts", "imports", "anchor")
# What waits for receivers, and what takes minutes, in a process of its own: neither can hold views or expiries up.
DELIVERIES: Final = frozenset({"webhooks", "alerts", "imports"})
# How long the start waits for the first comparison of the logs with their anchors.
CHECK_WITHIN_S: Final = 5.0
# A publisher that has not ended its transaction after this time leaves it to be aborted by the next publisher.
PUBLISHER_STOP_S: Final = 1.5

log = logging.getLogger(__name__)


async def run(
    conninfo: str,
    master_key: KeyProvider,
    parts: frozenset[str],
    *,
    publishers: Sequence[Publisher] = (),
    webhook_networks: Sequence[str] = (),
    webhook_ca_file: Path | None = None,
    public_url: str | None = None,
    mail: MailServer | None = None,
    load_imports: Callable[[Runtime], CarriesOut] | None = None,
    anchors: AnchorFile | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run until SIGINT or SIGTERM.

    Args:
        conninfo: the database, as a login that is or may become the worker's role.
        master_key: the provider of the key that the database's keys are wrapped with.
        parts: which of `PARTS` to run.
        publishers: the publishers to Kafka; each runs in a thread of its own.
        webhook_networks: networks that webhooks may be sent to, besides public addresses.
        webhook_ca_file: certificates of authorities that webhooks trust besides the well-known ones.
        public_url: where the API is reached, if known; messages name the schemas and pages there.
        mail: the server for alerts by e-mail; None to send none.
        load_imports: returns what carries imports out; None to carry none out.
        anchors: the file of the anchors; None to write none.
        started: called once everything runs.

    Raises:
        UnsuitableServer: the database server would lose or mix up what is recorded.
        MigrationError: the database lacks a migration.
        MasterKeyError: a master key that keys are wrapped with was not given.

    """
    require_suitable_server(conninfo, WORKER)
    require_migrated(conninfo)
    require_master_keys(conninfo, WORKER, master_key)
    tune_garbage_collector(GC_YOUNG_OBJECTS)
    raise_file_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        end_for_certain()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    async with runtime(conninfo, WORKER, master_key) as opened:
        runners, wakes = views_followed(conninfo, opened.database) if "views" in parts else ([], [])
        webhooks = None
        if "webhooks" in parts:
            networks = AllowedNetworks(webhook_networks)
            webhooks = WebhookWorker(conninfo, opened, networks, ca_file=webhook_ca_file, public_url=public_url)
        for publisher in publishers:
            publisher.start()
        listener = Listener(conninfo, WORKER, _waking(wakes, webhooks, publishers))
        listener.start()
        tasks = [loop.create_task(runner.run()) for runner in runners]
        tasks += [loop.create_task(job) for job in jobs(opened, parts, load_imports)]
        if webhooks is not None:
            tasks.append(loop.create_task(webhooks.run()))
        if "alerts" in parts:
            allowed = AllowedNetworks(webhook_networks)
            alerts = AlertWorker(opened, allowed, mail=mail, ca_file=webhook_ca_file, public_url=public_url)
            tasks.append(loop.create_task(alerts.run()))
        if anchors is not None and "anchor" in parts:
            anchoring = Anchoring(conninfo, anchors)
            tasks.append(loop.create_task(anchoring.run()))
            # Until then, the API takes no commands if the database was restarted.
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_WITHIN_S):
                    await anchoring.checked.wait()
        started()
        stopping = loop.create_task(stop.wait())
        # No task ends by itself. If one does, that is a defect: the process ends with it, and is restarted.
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        ending = loop.create_task(cancelled(tasks))
        await asyncio.gather(*(asyncio.to_thread(publisher.stop, PUBLISHER_STOP_S) for publisher in publishers))
        await ending
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await listener.stop()


def jobs(
    opened: Runtime, parts: frozenset[str], load_imports: Callable[[Runtime], CarriesOut] | None = None
) -> list[Coroutine[Any, Any, None]]:
    """Return the jobs of a process with these parts.

    Erasures, retention and checks go with the expiry clock, so that a worker of several processes does them once.
    """
    imports = [carry_out(opened, load_imports)] if load_imports is not None and "imports" in parts else []
    if "expiry" not in parts:
        return imports
    erasures = Erasures(opened.database, opened.aggregates, opened.key_admin)
    check = DerivedCheck(opened.database.conninfo, opened.keyring)
    own = (ExpiryClock(opened).run(), erasures.run(), purging(opened.database), check.run(), HeadsJob(opened).run())
    return [*own, *imports]


def _waking(
    wakes: Sequence[asyncio.Event], webhooks: WebhookWorker | None, publishers: Sequence[Publisher]
) -> Callable[[], None]:
    """Return a callback that wakes everything here that waits for events."""

    def heard() -> None:
        for wake in wakes:
            wake.set()
        if webhooks is not None:
            webhooks.live_subscriptions.wake()
        for publisher in publishers:
            publisher.wake()

    return heard


def views_followed(conninfo: str, database: Database) -> tuple[list[Runner], list[asyncio.Event]]:
    """Return a runner for each view, which share their reads of the log, and the event that wakes each."""
    shared = SharedLog(AllLedgersReader(database))
    wakes = [asyncio.Event() for _ in VIEWS]
    runners = [
        Runner(view, shared.reader(), lambda: connect(conninfo), wake) for view, wake in zip(VIEWS, wakes, strict=True)
    ]
    return runners, wakes


async def create_views(conninfo: str) -> None:
    """Create the views' tables, so that they can be read before a worker has run."""
    await create_missing(lambda: connect(conninfo), VIEWS)
