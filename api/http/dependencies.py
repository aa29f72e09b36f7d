"""The dependencies of the API, and how a request finds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from api.http.limits import GuessLimit, Limit
from domain.values import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

    from api.http.middleware import Waiting
    from api.http.places import PlaceFigures, Places, UploadBytes
    from api.http.turns import Turns
    from infra.auth.authenticator import Authenticator
    from infra.auth.denied_attempts import DeniedAttempts
    from infra.auth.key_admin import KeyAdmin
    from infra.auth.read_log import ReadLog
    from infra.auth.stream_tokens import StreamTokens
    from infra.crypto.keyring import Keyring
    from infra.delivery.alerts.calendars import Calendars
    from infra.delivery.alerts.rules import AlertRules
    from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.command_handler import CommandHandler
    from infra.eventstore.current_code import CurrentCodes
    from infra.eventstore.histories import Histories
    from infra.eventstore.reader import EventReader
    from infra.imports.mappings import SheetMappings
    from infra.imports.runs import ImportRuns
    from infra.postgres.pool import Database
    from infra.settings import Settings
    from infra.views.reader import ViewReader


# What a view's query is handed: psycopg's cursor, which routes pass on and never touch.
DatabaseCursor = Any


@dataclass(frozen=True)
class Services:
    """Everything outside of this package that a request may need.

    Attributes:
        now: the clock, aware and in UTC.
        on_keys_changed: what is called when keys have changed; what remembers anything of them adds itself.
        server: the name of the database server, where ledgers are on several.

    """

    handler: CommandHandler
    aggregates: AggregateReader
    events: EventReader
    keyring: Keyring
    denied_attempts: DeniedAttempts
    authenticator: Authenticator
    key_admin: KeyAdmin
    reads: ReadLog
    views: ViewReader
    settings: Settings
    now: Callable[[], datetime]
    database: Database
    webhooks: WebhookSubscriptions
    alerts: AlertRules
    calendars: Calendars
    mappings: SheetMappings
    import_runs: ImportRuns
    histories: Histories
    stream_tokens: StreamTokens
    on_keys_changed: list[Callable[[], None]] = field(default_factory=list)
    server: str = ""

    @cached_property
    def policy(self) -> Policy:
        """What the settings decide where TikTok's sources disagree."""
        settings = self.settings
        return Policy(settings.allowed_days, settings.extend_after_expiry, settings.codes_without_secret)


@dataclass(frozen=True, slots=True)
class Limits:
    """The buckets of every key, by key id; those of all requests by its number, which is faster to look up."""

    requests: Limit[int]
    guesses: GuessLimit[UUID] = field(default_factory=GuessLimit)


@dataclass(frozen=True, slots=True)
class SharedPlaces:
    """What all ledgers share of a process, with a share for each ledger and each key.

    Attributes:
        requests: requests that wait for their answers, commands among them.
        pages: histories and pages of the trail that are being read.
        downloads: exports, and batches that are being answered.
        uploads: batches that are being received or answered.
        upload_bytes: what is kept on disk of these.
        streams: event streams.
        turns: the time of the process, for work that takes long.

    """

    requests: Waiting
    pages: Places
    downloads: Places
    uploads: Places
    upload_bytes: UploadBytes
    streams: Places
    turns: Turns

    def figures(self) -> dict[str, PlaceFigures]:
        """Return how each kind is taken."""
        return {
            "requests": self.requests.figures(),
            "pages": self.pages.figures(),
            "exports_and_batches": self.downloads.figures(),
            "uploads": self.uploads.figures(),
            "upload_bytes": self.upload_bytes.figures(),
            "streams": self.streams.figures(),
        }


def services_of(scope: Scope) -> Services:
    """Return the dependencies of the application that serves this request."""
    services: Services = scope["app"].state.services
    return services


def limits_of(scope: Scope) -> Limits:
    """Return the buckets of the application that serves this request."""
    limits: Limits = scope["app"].state.limits
    return limits


def current_codes_of(scope: Scope) -> CurrentCodes:
    """Return what finds codes as they are now."""
    codes: CurrentCodes = scope["app"].state.current_codes
    return codes


def places_of(scope: Scope) -> SharedPlaces:
    """Return the places of the process that serves this request."""
    places: SharedPlaces = scope["app"].state.places
    return places
