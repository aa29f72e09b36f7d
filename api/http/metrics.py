"""The figures as Prometheus reads them: of this process, and the worker's from the database, for it answers nobody.

They are rendered in a thread, and once a second for all who ask: rendering takes long enough to delay other requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final

import orjson
from prometheus_client import REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from infra.delivery.alerts.alert_store import AlertFigures, alert_figures
from infra.delivery.kafka.publication_status import DestinationLag, destination_lags
from infra.delivery.lag import lag_seconds
from infra.delivery.webhooks.delivery_store import WebhookLag, webhook_lags
from infra.eventstore.histories import stopped_ledgers
from infra.imports.runs import ImportFigures, import_figures
from infra.jobs.expiry_figures import Figures, read_figures
from infra.proof.sealing_status import SealingFigures, sealing_figures
from infra.views.status import ViewStatus, status_in_all_ledgers
from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from api.http.dependencies import Services, SharedPlaces
    from api.http.page_process import PageProcess
    from api.http.places import PlaceFigures

# A database that is away must not keep anybody from this process's own figures.
WAIT_S: Final = 1.0
# Of each kind of place. There may be any number of ledgers.
LEDGERS_SHOWN: Final = 10

log = logging.getLogger(__name__)


class _OfExpiry(Collector):
    """The expiry clock's figures; the same from every process of the API."""

    def __init__(self, figures: Figures, now: datetime) -> None:
        self._figures = figures
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure."""
        known = self._figures
        yield CounterMetricFamily(
            "sparkledger_expiries_recorded", "Expiries recorded by the expiry clock, in all ledgers.", known.expiries
        )
        yield CounterMetricFamily(
            "sparkledger_reminders_recorded",
            "Expiry reminders recorded by the expiry clock, in all ledgers.",
            known.reminders,
        )
        yield CounterMetricFamily(
            "sparkledger_expiry_failures", "Failed attempts of the expiry clock to record an event.", known.failures
        )
        yield GaugeMetricFamily(
            "sparkledger_expiry_failing_codes",
            "Codes that wait for another attempt of the expiry clock.",
            known.failing,
        )
        yield GaugeMetricFamily(
            "sparkledger_expiry_late_seconds",
            "How long the oldest unrecorded expiry or reminder has been due. 0 if none is due.",
            known.late_s(self._now),
        )


class _OfLedgers(Collector):
    """How many ledgers take no commands."""

    def __init__(self, stopped: int) -> None:
        self._stopped = stopped

    def collect(self) -> Iterator[Metric]:
        """Yield the figure."""
        yield GaugeMetricFamily(
            "sparkledger_ledgers_stopped",
            "Ledgers that take no commands, because they may have lost events.",
            self._stopped,
        )


class _OfViews(Collector):
    """How each view is, in all ledgers together."""

    def __init__(self, statuses: Sequence[ViewStatus]) -> None:
        self._views = [status for status in statuses if not status.view.endswith(SHADOW_SUFFIX)]
        self._building = {
            status.view.removesuffix(SHADOW_SUFFIX) for status in statuses if status.view.endswith(SHADOW_SUFFIX)
        }

    def collect(self) -> Iterator[Metric]:
        """Yield each figure, for each view."""
        label = ["view"]
        position = GaugeMetricFamily("sparkledger_view_position", "Events the view has read.", labels=label)
        behind = GaugeMetricFamily("sparkledger_view_lag_events", "Events the view has not read yet.", labels=label)
        behind_s = GaugeMetricFamily(
            "sparkledger_view_lag_seconds",
            "The age of the oldest event not processed yet. 0 if there is none.",
            labels=label,
        )
        stopped = GaugeMetricFamily("sparkledger_view_stopped", "1 if an event has stopped the view.", labels=label)
        building = GaugeMetricFamily("sparkledger_view_rebuilding", "1 while the view is being rebuilt.", labels=label)
        rebuilds = CounterMetricFamily("sparkledger_view_rebuilds", "How often the view was rebuilt.", labels=label)
        for view in self._views:
            position.add_metric([view.view], view.position)
            behind.add_metric([view.view], view.behind_events)
            behind_s.add_metric([view.view], view.behind_s)
            stopped.add_metric([view.view], view.state == "failed")
            building.add_metric([view.view], view.view in self._building)
            rebuilds.add_metric([view.view], view.rebuilds)
        yield from (position, behind, behind_s, stopped, building, rebuilds)


class _OfPublishing(Collector):
    """How far the ledgers of each destination are published to Kafka, all of them together."""

    def __init__(self, destinations: Sequence[DestinationLag], now: datetime) -> None:
        self._destinations = destinations
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure, for each destination."""
        label = ["destination"]
        position = GaugeMetricFamily("sparkledger_kafka_position", "Events published to Kafka.", labels=label)
        behind = GaugeMetricFamily("sparkledger_kafka_lag_events", "Events not published to Kafka yet.", labels=label)
        behind_s = GaugeMetricFamily(
            "sparkledger_kafka_lag_seconds",
            "The age of the oldest event not processed yet. 0 if there is none.",
            labels=label,
        )
        errors = CounterMetricFamily("sparkledger_kafka_errors", "Failed attempts to publish to Kafka.", labels=label)
        stopped = GaugeMetricFamily(
            "sparkledger_kafka_stopped", "1 if publishing has stopped until a person fixes the cause.", labels=label
        )
        for lag in self._destinations:
            position.add_metric([lag.destination], lag.published)
            behind.add_metric([lag.destination], lag.waiting)
            behind_s.add_metric([lag.destination], lag_seconds(lag.oldest, self._now))
            errors.add_metric([lag.destination], lag.errors)
            stopped.add_metric([lag.destination], lag.stopped)
        yield from (position, behind, behind_s, errors, stopped)


class _OfLogs(Collector):
    """How far the signed logs are, all of them together, and what keeps looking at them has found."""

    def __init__(self, figures: SealingFigures, now: datetime) -> None:
        self._figures = figures
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure."""
        known = self._figures
        yield GaugeMetricFamily("sparkledger_log_sealed_events", "Events that a checkpoint covers.", known.sealed)
        yield GaugeMetricFamily("sparkledger_log_lag_events", "Events that no checkpoint covers yet.", known.waiting)
        yield GaugeMetricFamily(
            "sparkledger_log_lag_seconds",
            "The age of the oldest event that no checkpoint covers yet. 0 if there is none.",
            lag_seconds(known.oldest, self._now),
        )
        yield GaugeMetricFamily("sparkledger_log_stopped", "Logs that are not sealed any more.", known.stopped)
        yield GaugeMetricFamily(
            "sparkledger_log_differences",
            "Differences between what is stored and what was signed that were found and are not resolved.",
            known.differences,
        )
        yield GaugeMetricFamily(
            "sparkledger_log_time_to_find_seconds",
            "How long a change of stored data can stay unnoticed: the time since the oldest complete check began.",
            lag_seconds(known.covered_since, self._now),
        )
        if known.witnessed_at is not None:
            yield GaugeMetricFamily(
                "sparkledger_log_unwitnessed_seconds",
                "How long ago a witness last signed the log whose last such signature is oldest.",
                lag_seconds(known.witnessed_at, self._now),
            )


class _OfWebhooks(Collector):
    """How each webhook stands, by an id that tells nobody whose it is."""

    def __init__(self, webhooks: Sequence[WebhookLag], now: datetime) -> None:
        self._webhooks = webhooks
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure, for each webhook."""
        label = ["webhook"]
        gauges: dict[str, tuple[str, Callable[[WebhookLag], float]]] = {
            "position": (
                "Events the webhook has processed: delivered, filtered out, waiting for a retry, or dead.",
                lambda lag: lag.position,
            ),
            "lag_events": ("Events the webhook has not processed yet.", lambda lag: lag.behind),
            "lag_seconds": (
                "The age of the oldest event not processed yet.",
                lambda lag: lag_seconds(lag.oldest, self._now),
            ),
            "waiting": ("Messages waiting for a retry.", lambda lag: lag.waiting),
            "dead": ("Messages that were given up (dead letters).", lambda lag: lag.dead),
            "failures": ("Consecutive failed attempts.", lambda lag: lag.failures),
            "disabled": ("1 if the webhook is disabled.", lambda lag: lag.disabled),
        }
        for name, (description, value) in gauges.items():
            gauge = GaugeMetricFamily(f"sparkledger_webhook_{name}", description, labels=label)
            for lag in self._webhooks:
                gauge.add_metric([str(lag.webhook_id)], value(lag))
            yield gauge
        attempts = CounterMetricFamily("sparkledger_webhook_attempts", "Delivery attempts.", labels=[*label, "outcome"])
        for lag in self._webhooks:
            attempts.add_metric([str(lag.webhook_id), "delivered"], lag.delivered)
            attempts.add_metric([str(lag.webhook_id), "failed"], lag.failed)
        yield attempts


class _OfAlerts(Collector):
    """How alerts are, in all ledgers."""

    def __init__(self, figures: AlertFigures, now: datetime) -> None:
        self._figures = figures
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure."""
        known = self._figures
        gauges = {
            "rules": ("Alert rules that are enabled.", known.rules),
            "calendars": ("Calendars.", known.calendars),
            "waiting": ("Messages of alerts that are not sent yet.", known.waiting),
            "dead": ("Messages of alerts that were given up.", known.dead),
            "lag_seconds": ("The age of the oldest message that waits.", lag_seconds(known.oldest, self._now)),
        }
        for name, (description, value) in gauges.items():
            yield GaugeMetricFamily(f"sparkledger_alerts_{name}", description, value)
        attempts = CounterMetricFamily("sparkledger_alerts_attempts", "Attempts to send.", labels=["outcome"])
        attempts.add_metric(["sent"], known.sent)
        attempts.add_metric(["failed"], known.failed)
        yield attempts


class _OfImports(Collector):
    """How imports are that were left to the worker, in all ledgers."""

    def __init__(self, figures: ImportFigures, now: datetime) -> None:
        self._figures = figures
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield each figure."""
        known = self._figures
        yield GaugeMetricFamily("sparkledger_imports_open", "Imports that wait for the worker, or run.", known.open)
        yield GaugeMetricFamily(
            "sparkledger_imports_oldest_seconds",
            "How long ago the oldest of them was sent. 0 if there is none.",
            lag_seconds(known.oldest, self._now),
        )
        yield GaugeMetricFamily(
            "sparkledger_imports_failed", "Imports that have failed, as long as their reports are kept.", known.failed
        )


class _OfPlaces(Collector):
    """Who holds what all ledgers share of this process: the ledgers that hold most, by their numbers."""

    def __init__(self, places: Mapping[str, PlaceFigures]) -> None:
        self._places = places

    def collect(self) -> Iterator[Metric]:
        """Yield each figure, for each kind of place."""
        label = ["place"]
        limit = GaugeMetricFamily("sparkledger_places", "Places that all ledgers share, by kind.", labels=label)
        share = GaugeMetricFamily("sparkledger_places_share", "Places that one ledger can take.", labels=label)
        waiting = GaugeMetricFamily("sparkledger_places_waiting", "Requests that wait for a place.", labels=label)
        held = GaugeMetricFamily(
            "sparkledger_places_held",
            f"Places taken, by ledger: the {LEDGERS_SHOWN} that hold most, and all others.",
            labels=[*label, "ledger"],
        )
        for place, figures in self._places.items():
            limit.add_metric([place], figures.places)
            share.add_metric([place], figures.share)
            waiting.add_metric([place], sum(figures.waiting.values()))
            ledgers = sorted(figures.held, key=lambda ledger_id: -figures.held[ledger_id])
            for ledger_id in ledgers[:LEDGERS_SHOWN]:
                held.add_metric([place, str(ledger_id)], figures.held[ledger_id])
            held.add_metric([place, "other"], sum(figures.held[ledger_id] for ledger_id in ledgers[LEDGERS_SHOWN:]))
        yield from (limit, share, waiting, held)


class _OfServers(Collector):
    """The figures of several servers, each with the name of its server."""

    def __init__(self, servers: Mapping[str, CollectorRegistry]) -> None:
        self._servers = servers

    def collect(self) -> Iterator[Metric]:
        """Yield each figure, for each server."""
        families: dict[str, Metric] = {}
        for name, registry in self._servers.items():
            for family in registry.collect():
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    known.add_sample(sample.name, {"server": name} | sample.labels, sample.value)
        yield from families.values()


class _WithPageProcess(Collector):
    """The figures of this process, and those of the process of pages, which have the label `process`."""

    def __init__(self, own: Sequence[CollectorRegistry], packed: Sequence[Any]) -> None:
        self._own = own
        self._packed = packed

    def collect(self) -> Iterator[Metric]:
        """Yield each figure."""
        families: dict[str, Metric] = {}
        for family in itertools.chain.from_iterable(registry.collect() for registry in self._own):
            # Some collectors yield the same object every time.
            known = families[family.name] = Metric(family.name, family.documentation, family.type)
            known.samples = list(family.samples)
        for name, documentation, kind, samples in self._packed:
            known = families.setdefault(name, Metric(name, documentation, kind))
            for sample, labels, value in samples:
                known.add_sample(sample, {**labels, "process": "pages"}, value)
        yield from families.values()


def packed_figures(places: SharedPlaces, observe: Sequence[Callable[[], None]]) -> bytes:
    """Return the figures of this process, for the one that is asked for them."""
    for figures in observe:
        figures()
    families = itertools.chain(REGISTRY.collect(), _OfPlaces(places.figures()).collect())
    return orjson.dumps(
        [
            (one.name, one.documentation, one.type, [(s.name, s.labels, s.value) for s in one.samples])
            for one in families
        ]
    )


async def render_metrics(
    servers: Sequence[Services],
    places: SharedPlaces,
    observe: Sequence[Callable[[], None]],
    page_process: PageProcess | None = None,
) -> bytes:
    """Return all figures; each of `observe` brings some of this process up to date."""
    found = await asyncio.gather(*map(_worker_metrics, servers))
    packed = [] if page_process is None else await page_process.figures()
    for figures in observe:
        figures()
    further = found[0]
    if len(servers) > 1:
        further = CollectorRegistry(auto_describe=False)
        names = [services.server for services in servers]
        further.register(_OfServers(dict(zip(names, found, strict=True))))
    further.register(_OfPlaces(places.figures()))
    return await asyncio.to_thread(_render, further, packed)


def _render(further: CollectorRegistry, packed: Sequence[Any]) -> bytes:
    if packed:
        joined = CollectorRegistry(auto_describe=False)
        joined.register(_WithPageProcess((REGISTRY, further), packed))
        return generate_latest(joined)
    return generate_latest() + generate_latest(further)


async def _worker_metrics(services: Services) -> CollectorRegistry:
    """Return the worker's figures; none if the database cannot be asked now."""
    registry = CollectorRegistry(auto_describe=False)
    try:
        async with asyncio.timeout(WAIT_S):
            figures = await read_figures(services.database)
            statuses = await status_in_all_ledgers(services.database)
            published = await destination_lags(services.database)
            webhooks = await webhook_lags(services.database)
            alerts = await alert_figures(services.database)
            imports = await import_figures(services.database)
            sealing = await sealing_figures(services.database)
            stopped, _ = await stopped_ledgers(services.database)
    except Exception as error:  # noqa: BLE001 - the process's own figures are wanted most when something is wrong
        log.debug("The worker's metrics cannot be read: %s", error)
        return registry
    registry.register(_OfExpiry(figures, services.now()))
    registry.register(_OfLedgers(stopped))
    registry.register(_OfViews(statuses))
    registry.register(_OfLogs(sealing, services.now()))
    registry.register(_OfAlerts(alerts, services.now()))
    registry.register(_OfImports(imports, services.now()))
    if published:
        registry.register(_OfPublishing(published, services.now()))
    if webhooks:
        registry.register(_OfWebhooks(webhooks, services.now()))
    return registry
