"""What infra/deploy has for operators: its units, rules and dashboard are valid, and name only what there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

import api.http.middleware
import api.streams
from api.http import metrics
from infra.delivery.alerts.alert_store import AlertFigures
from infra.imports.runs import ImportFigures
from infra.jobs.expiry_figures import Figures
from infra.proof.sealing_status import SealingFigures
from tests.absent import absent
from tests.test_documents import commands

ROOT: Final = Path(__file__).parent.parent
DEPLOY: Final = ROOT / "infra/deploy"
ALERTS: Final = DEPLOY / "prometheus/alerts.yml"
UNITS: Final = sorted((DEPLOY / "systemd").iterdir())
NOW: Final = datetime.now(UTC)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def metric_names() -> set[str]:
    """Return the name of every figure that `/metrics` can have, as Prometheus stores it."""
    assert api.http.middleware
    assert api.streams
    collectors: list[Collector] = [
        metrics._OfExpiry(Figures(), NOW),
        metrics._OfLedgers(0),
        metrics._OfViews([]),
        metrics._OfPublishing([], NOW),
        metrics._OfLogs(SealingFigures(0, 0, None, 0, 0, NOW, NOW), NOW),
        metrics._OfWebhooks([], NOW),
        metrics._OfAlerts(AlertFigures(0, 0, 0, 0, 0, 0, NOW), NOW),
        metrics._OfImports(ImportFigures(0, NOW, 0), NOW),
        metrics._OfPlaces({}),
    ]
    families = [family for collector in (REGISTRY, *collectors) for family in collector.collect()]
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes.get(family.type, ("",))}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bsparkledger_[a-z_]+", text))


def test_alerts_name_only_figures_that_there_are() -> None:
    assert {name for rule in rules() for name in named(rule["expr"])} <= metric_names()


def test_the_dashboard_names_only_figures_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana/sparkledger.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for expression in expressions for name in named(expression)} <= metric_names()
    # A panel is in a place of its own, and says what it shows.
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["title"] and panel["description"] for panel in panels)


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    assert [rule["alert"] for rule in rules()] == sections
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("call", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(call: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        absent("promtool is not installed: apt-get install prometheus")
    ended = subprocess.run(
        [promtool, *call], cwd=ALERTS.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_is_shown_to_fire() -> None:
    cases = [
        case
        for test in yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {rule["alert"] for rule in rules()} == {case["alertname"] for case in cases if case["exp_alerts"]}


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_command_that_there_is(unit: Path) -> None:
    (start,) = settings_of(unit)["ExecStart"]
    program, command, *options = shlex.split(start)
    assert program == "/opt/sparkledger/bin/sparkledger"
    known = {option for parameter in commands()[command].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= known


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        absent("systemd-analyze is not installed: apt-get install systemd")
    for one in UNITS:
        # The program is not installed here.
        (tmp_path / one.name).write_text(one.read_text().replace("/opt/sparkledger/bin/sparkledger", "/bin/true"))
    name = unit.name.replace("@.", "@8080.")
    (tmp_path / name).write_text((tmp_path / unit.name).read_text())
    ended = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
