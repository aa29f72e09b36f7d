"""Run one benchmark or all of them, print a table, and keep the figures in .bench/results.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench import append, expiry, growth, http, lag, publish, question, rebuild, stream, webhooks

BENCHMARKS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "append": append.run,
    "http": http.run,
    "growth": growth.run,
    "expiry": expiry.run,
    "question": question.run,
    "rebuild": rebuild.run,
    "lag": lag.run,
    "publish": publish.run,
    "stream": stream.run,
    "webhooks": webhooks.run,
}
# Those that `--full` makes larger.
SIZED: Final = frozenset({"growth", "expiry", "question", "rebuild"})
RESULTS: Final = Path(".bench/results.json")


def main(name: str | None, *, as_json: bool, full: bool) -> None:
    """Measure, and show what was measured.

    Raises:
        LookupError: there is no such benchmark.

    """
    if name is not None and name not in BENCHMARKS:
        message = f"There is no benchmark {name}; there are {', '.join(BENCHMARKS)}."
        raise LookupError(message)
    results = {}
    for wanted in [name] if name else list(BENCHMARKS):
        print(f"measuring {wanted} …", file=sys.stderr)  # noqa: T201 - what a benchmark is for, here and below
        results[wanted] = BENCHMARKS[wanted](full=full) if wanted in SIZED else BENCHMARKS[wanted]()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if as_json:
        print(json.dumps(results[name] if name else results, indent=2))  # noqa: T201
        return
    console = Console()
    for wanted, figures in results.items():
        table = Table("figure", "value", title=wanted)
        for figure, value in _flat(figures):
            table.add_row(figure, f"{value:,.2f}" if isinstance(value, float) else str(value))
        console.print(table)


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        rows += _flat(value, f"{prefix}{name} · ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
