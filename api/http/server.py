"""The server: uvicorn on one event loop, with the dependencies of the application."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import uvicorn
import uvloop

from api.http.app import create_app, create_metrics_app
from api.http.dependencies import Services
from api.http.page_process import PageProcess
from api.http.protocol import bounded_by_address
from infra.auth.stream_tokens import StreamTokens
from infra.crypto.rotation import require_master_keys
from infra.delivery.alerts.calendars import Calendars
from infra.delivery.alerts.rules import AlertRules
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.ending import cancelled, end_for_certain
from infra.imports.mappings import SheetMappings
from infra.imports.runs import ImportRuns
from infra.postgres.migrate import require_migrated
from infra.postgres.roles import API
from infra.postgres.server_check import require_suitable_server
from infra.process_limits import collect_in_small_pieces, raise_file_limit, tune_garbage_collector
from infra.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from fastapi import FastAPI

    from infra.crypto.master_keys import KeyProvider
    from infra.runtime import Runtime
    from infra.settings import Settings

# Requests that are being answered when the end is asked for have this long; the supervisor waits a second more.
GRACE_S: Final = 2
BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """uvicorn's server, with the signals left to its caller."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone: uvicorn would raise them again after its own end, in the middle of ours."""
        yield


def run(
    settings: Settings,
    servers: Mapping[str, str],
    master_key: KeyProvider,
    *,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: where to listen, and what the rules leave to configuration.
        servers: the databases by the names of their servers, each as a login that is or may become the API's role.
        master_key: who holds the key that the database's keys are wrapped with.
        started: told the URL once requests are answered.

    Raises:
        UnsuitableServer: the database server would lose or mix up what is recorded.
        MigrationError: the database lacks a migration.
        MasterKeyError: a master key that keys are wrapped with was not given.
        LookupError: the address cannot be listened on.

    """
    for conninfo in servers.values():
        require_suitable_server(conninfo, API)
        require_migrated(conninfo)
        require_master_keys(conninfo, API, master_key)
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(_listen(settings.host, settings.port, "PORT"))
        metrics = None
        if settings.metrics_port is not None:
            metrics = opened.enter_context(_listen(settings.host, settings.metrics_port, "METRICS_PORT"))
        uvloop.run(_serve(settings, servers, master_key, listener, metrics, started))


async def _serve(
    settings: Settings,
    servers: Mapping[str, str],
    master_key: KeyProvider,
    listener: socket.socket,
    metrics: socket.socket | None,
    started: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    tune_garbage_collector()
    raise_file_limit()
    async with contextlib.AsyncExitStack() as opened:
        services = []
        for name, conninfo in servers.items():
            one = await opened.enter_async_context(runtime(conninfo, API, master_key, settings.oidc_issuers))
            services.append(services_from(one, settings, name))
        page_process = PageProcess(servers)
        opened.push_async_callback(page_process.close)
        app = create_app(*services, metrics=metrics is None, page_process=page_process)
        server = _server(app, settings)
        listening = [server]
        beside: list[asyncio.Task[None]] = []
        if metrics is not None:
            listening.append(_server(create_metrics_app(app), settings))
            beside.append(loop.create_task(listening[-1].serve(sockets=[metrics])))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(
                number, _stop, listening, [page_process.begin_to_end, *(one.end for one in app.state.all_streams)]
            )
        opened.push_async_callback(cancelled, [loop.create_task(collect_in_small_pieces())])
        serving = loop.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn offers nothing to wait for
            await asyncio.sleep(0.01)
        if server.started:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            started(f"http://{shown}:{port}")
        await serving
        await asyncio.gather(*beside)
        for streams in app.state.all_streams:
            await streams.close()


def services_from(opened: Runtime, settings: Settings, server: str) -> Services:
    """Return what requests need of one server."""
    return Services(
        handler=opened.handler,
        aggregates=opened.aggregates,
        events=opened.events,
        keyring=opened.keyring,
        denied_attempts=opened.denied_attempts,
        authenticator=opened.authenticator,
        key_admin=opened.key_admin,
        reads=opened.reads,
        views=opened.views,
        settings=settings,
        now=lambda: datetime.now(UTC),
        database=opened.database,
        webhooks=WebhookSubscriptions(opened.database, opened.keyring),
        alerts=AlertRules(opened.database, opened.keyring),
        calendars=Calendars(opened.database, opened.keyring, opened.aggregates),
        mappings=SheetMappings(opened.database),
        import_runs=ImportRuns(opened.database, opened.keyring),
        histories=opened.histories,
        stream_tokens=StreamTokens(opened.database, opened.keyring),
        on_keys_changed=opened.on_keys_changed,
        server=server,
    )


def _server(app: FastAPI, settings: Settings) -> Server:
    proxies = () if settings.trusted_proxies == ("none",) else settings.trusted_proxies
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            backlog=BACKLOG,
            http=bounded_by_address(settings.connections_per_address, proxies),
            **believing(settings.trusted_proxies),
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def believing(proxies: tuple[str, ...]) -> dict[str, Any]:
    """Return uvicorn's options for who is believed about where a request came from; its default is this machine."""
    if proxies == ("none",):
        return {"proxy_headers": False}
    return {"proxy_headers": True, "forwarded_allow_ips": list(proxies)}


def _stop(servers: Sequence[Server], end_streams: Sequence[Callable[[], None]]) -> None:
    end_for_certain()
    for server in servers:
        server.should_exit = True
    # The server waits for answers under way, and these would never be over.
    for end in end_streams:
        end()


def _listen(host: str, port: int, setting: str) -> socket.socket:
    """Listen, before anything else is opened: an address in use is the first thing to know."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        message = (
            f"The API cannot listen on {host}, port {port}: {error.strerror or error}. Set SPARKLEDGER_HOST or "
            f"SPARKLEDGER_{setting} to another value."
        )
        raise LookupError(message) from error
