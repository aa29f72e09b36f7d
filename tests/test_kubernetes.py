"""What infra/deploy/kubernetes has: manifests that Kubernetes knows, with settings and commands that there are."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import api.health
from infra.processes.worker import PARTS
from infra.settings import load_settings
from tests.test_documents import commands

ROOT: Final = Path(__file__).parent.parent
KUBERNETES: Final = ROOT / "infra/deploy/kubernetes"


def manifests() -> list[dict[str, Any]]:
    files = sorted(file for file in KUBERNETES.iterdir() if file.name != "kustomization.yaml")
    return [one for file in files for one in yaml.safe_load_all(file.read_text())]


MANIFESTS: Final = manifests()
PODS: Final = {
    one["metadata"]["name"]: one["spec"]["template"] for one in MANIFESTS if "template" in one.get("spec", {})
}


def model(manifest: dict[str, Any]) -> Any:
    """Return the class of a kind in the models of Kubernetes' own description of its API."""
    # They belong to a client, whose classes for objects they are made of. Those of Python say all that is asked here.
    schema = types.ModuleType("lightkube.core.schema")
    schema.__dict__.update(dataclass=dataclasses.dataclass, field=dataclasses.field, DictMixin=object)
    sys.modules.setdefault("lightkube.core", types.ModuleType("lightkube.core"))
    sys.modules.setdefault(schema.__name__, schema)
    group, _, version = manifest["apiVersion"].rpartition("/")
    module = f"lightkube.models.{group.split('.')[0] or 'core'}_{version}"
    return getattr(importlib.import_module(module), manifest["kind"])


def misfits(value: Any, expected: Any, place: str) -> Iterator[str]:
    """Yield what Kubernetes would not know in a manifest, misses there, or would have of another type."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in {typing.Union, types.UnionType}:
        found = [list(misfits(value, one, place)) for one in arguments if one is not type(None)]
        if all(found):
            yield from found[0]
    elif origin is list:
        if not isinstance(value, list):
            yield f"{place} is no list"
            return
        for number, one in enumerate(value):
            yield from misfits(one, arguments[0], f"{place}[{number}]")
    elif dataclasses.is_dataclass(expected):
        yield from misfits_of_object(value, expected, place)
    elif not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        yield f"{place} is no {expected.__name__}"


def misfits_of_object(value: Any, expected: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place} is no object"
        return
    hints = typing.get_type_hints(expected)
    fields = {str(one.metadata.get("json", one.name)): one for one in dataclasses.fields(expected)}
    yield from (f"{place}.{name} is unknown" for name in value.keys() - fields.keys())
    for name, one in fields.items():
        if name in value:
            yield from misfits(value[name], hints[one.name], f"{place}.{name}")
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            yield f"{place}.{name} is missing"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_knows_every_field_of_a_manifest(manifest: dict[str, Any]) -> None:
    assert list(misfits(manifest, model(manifest), manifest["kind"])) == []


def test_a_wrong_manifest_is_noticed() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"prot": 80}], "selector": "api"}}
    assert sorted(misfits(wrong, model(wrong), "Service")) == [
        "Service.spec.ports[0].port is missing",
        "Service.spec.ports[0].prot is unknown",
        "Service.spec.selector is no dict",
    ]


def test_the_kustomization_names_every_manifest() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files = {file.name for file in KUBERNETES.iterdir()} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files
    assert {one["metadata"].get("namespace") for one in MANIFESTS if one["kind"] != "Namespace"} == {"sparkledger"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined(name: str) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    image_user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert image_user is not None
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (10001, 10001)
    assert image_user.groups() == ("10001", "10001")
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec["automountServiceAccountToken"]
    # Its variables for services would begin with SPARKLEDGER_, and be refused.
    assert not spec["enableServiceLinks"]
    assert {"requests", "limits"} <= container["resources"].keys()


def environment(name: str) -> dict[str, str]:
    """Return what a container gets, with something of its kind in the place of each secret."""
    secrets = {
        "database-url": "postgresql://someone@postgres/sparkledger",
        "master-key": base64.b64encode(bytes(range(32))).decode(),
        "admin-key": 40 * "x",
        "bootstrap-servers": "kafka:9092",
    }
    (container,) = PODS[name]["spec"]["containers"]
    (shared,) = [one["data"] for one in MANIFESTS if one["kind"] == "ConfigMap"]
    assert container["envFrom"] == [{"configMapRef": {"name": "sparkledger"}}]
    found = dict(shared)
    for one in container["env"]:
        if "value" in one:
            # What is secret comes from a Secret.
            assert not re.search("PASSWORD|MASTER_KEY|ADMIN_KEY|URL$", one["name"])
            found[one["name"]] = one["value"]
        else:
            found[one["name"]] = secrets.get(one["valueFrom"]["secretKeyRef"]["key"], "x")
    return found


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_settings_that_there_are_and_runs_a_command_that_there_is(name: str) -> None:
    load_settings(environment(name), unseals=name != "sealer")
    (container,) = PODS[name]["spec"]["containers"]
    command, *options = container["args"]
    assert command in commands()
    if options:
        assert options[0] == "--only"
        assert set(options[1].split(",")) <= {*PARTS, "seal"}


def test_all_parts_of_a_worker_run_somewhere() -> None:
    parts = [
        pod["spec"]["containers"][0]["args"][2].split(",")
        for pod in PODS.values()
        if len(pod["spec"]["containers"][0]["args"]) > 1
    ]
    assert sorted(part for some in parts for part in some) == sorted([*PARTS, "seal"])


def test_probes_ask_what_the_api_answers() -> None:
    (container,) = PODS["api"]["spec"]["containers"]
    paths = {route.path for route in api.health.router.routes}  # type: ignore[attr-defined] # all of them have a path
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    probes = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["path"] for probe in probes.values()} <= paths
    assert probes["readinessProbe"]["path"] == "/readyz"
    assert probes["livenessProbe"]["path"] == "/livez"
    assert ports["http"] == load_settings({}).port
    assert str(ports["metrics"]) == environment("api")["SPARKLEDGER_METRICS_PORT"]


def test_selectors_select_pods_that_there_are() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    for one in MANIFESTS:
        spec = one.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if one["kind"] == "PersistentVolumeClaim" or selector is None:
            continue
        wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
        assert any(wanted.items() <= has.items() for has in labels), one["metadata"]["name"]
        for expression in selector.get("matchExpressions", ()):
            assert set(expression["values"]) <= {has[expression["key"]] for has in labels}
