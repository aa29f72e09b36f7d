"""Logs: one line an event, as JSON where nobody looks at a terminal. Never a body, a header or a secret."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs() -> None:
    """Send every log line of this process, the libraries' included, through one renderer to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    # A rich traceback would show local variables, keys and secrets among them.
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # On a terminal the console renderer prints the traceback itself.
            *([] if terminal else [structlog.processors.format_exc_info]),
            renderer,
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    # What goes as planned would bury the messages for people at the start.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("projections.engine.runner").setLevel(logging.WARNING)
    # What Kafka's client meets is logged once, by the code that uses it; at DEBUG it would print what is sent.
    kafka = logging.getLogger("kafka")
    kafka.setLevel(logging.WARNING)
    kafka.propagate = False
    # The pool says every second that a database is away; the commands that meet it say so too.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
