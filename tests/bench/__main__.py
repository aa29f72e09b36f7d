"""Benchmarks: one or all of them run, their figures shown as tables, the latest of each kept in .bench/results.json."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import (
    append,
    console,
    expiry,
    figures,
    growth,
    http,
    lag,
    peers,
    proof,
    publish,
    question,
    rebuild,
    stream,
    webhooks,
)

BENCHMARKS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "append": append.run,
    "http": http.run,
    "growth": growth.run,
    "expiry": expiry.run,
    "question": question.run,
    "console": console.run,
    "figures": figures.run,
    "rebuild": rebuild.run,
    "lag": lag.run,
    "proof": proof.run,
    "publish": publish.run,
    "stream": stream.run,
    "webhooks": webhooks.run,
    "peers": peers.run,
}
# Those that fetch something run only where they are named.
NAMED: Final = frozenset({"peers"})
# Those that `--full` makes larger.
SIZED: Final = frozenset({"growth", "expiry", "figures", "question", "console", "proof", "rebuild"})
ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = Path(".bench/results.json")


def main(name: str | None, *, as_json: bool, full: bool, budget: bool = False, base: Path | None = None) -> None:
    """Measure, and show what was measured; `budget` measures where the time of a command goes, beside `base`.

    Raises:
        LookupError: the figures that are kept cannot be read, so that new ones cannot be added to them.

    """
    results = {}
    for wanted in [name] if name else [known for known in BENCHMARKS if known not in NAMED]:
        kept = _kept()  # before the minutes that a benchmark takes
        print(f"measuring {wanted} …", file=sys.stderr)  # noqa: T201 - what a benchmark is for, here and below
        options: dict[str, Any] = {"full": full} if wanted in SIZED else {}
        if budget:
            options = {"budget": True, "base": base}
        results[wanted] = BENCHMARKS[wanted](**options)
        _keep(
            kept
            | {
                f"{wanted} budget" if budget else wanted: {
                    "measured": _circumstances(full=full and wanted in SIZED),
                    **results[wanted],
                }
            }
        )
    if as_json:
        print(json.dumps(results[name] if name else results, indent=2))  # noqa: T201
        return
    console = Console()
    for wanted, measured in results.items():
        table = Table("figure", "value", title=wanted)
        for figure, value in _flat(measured):
            table.add_row(figure, f"{value:,.2f}" if isinstance(value, float) else str(value))
        console.print(table)


def _kept() -> dict[str, Any]:
    """Return the latest figures of each benchmark."""
    if not RESULTS.exists():
        return {}
    try:
        return dict(json.loads(RESULTS.read_text()))
    except (TypeError, ValueError) as error:
        message = f"{RESULTS} holds no JSON object: move it away, and measure again."
        raise LookupError(message) from error


def _keep(results: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    # Replaced as a whole: an interruption keeps the figures of before.
    written = RESULTS.with_suffix(".new")
    written.write_text(json.dumps(results, indent=2) + "\n")
    written.replace(RESULTS)


def _circumstances(*, full: bool) -> dict[str, Any]:
    """Return what figures can be compared by: the program's commit, the time, the machine and the size."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match", ""]
    try:
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # a copy without its history
    return {
        "commit": commit,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
        "full": full,
    }


def _processor() -> str:
    """Return the processor's name, or its architecture where the system does not say more."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return named[1] if named else platform.machine()


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        rows += _flat(value, f"{prefix}{name} · ") if isinstance(value, dict) else [(prefix + name, value)]
    return rows
