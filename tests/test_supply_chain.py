"""Dependencies come by hash, containers can write nothing, and the threat model names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[a-z0-9,-]+\])?==([0-9][A-Za-z0-9.!+]*)( ; [^\\]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(lock: str) -> list[list[str]]:
    """Return each requirement's lines, continuations joined."""
    text = (ROOT / lock).read_text().replace("\\\n", "\n")
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith((" ", "#")) and line.strip():
            found.append([line.strip()])
        elif line.strip() and not line.lstrip().startswith("#"):
            found[-1].append(line.strip())
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_one_version_of_known_bytes(lock: str) -> None:
    found = entries(lock)
    assert len(found) > 20
    for requirement, *hashes in found:
        assert PINNED.fullmatch(requirement), requirement
        assert hashes, requirement
        assert all(HASH.fullmatch(line) for line in hashes), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_a_registry_a_file_or_an_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for word in ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "://", "-e ", "@ "):
        assert word not in text, word


def test_what_tests_need_agrees_with_what_the_program_runs_on() -> None:
    def versions(lock: str) -> set[str]:
        return {line[0].partition(" ")[0] for line in entries(lock)}

    assert versions("requirements.lock") <= versions("requirements-dev.lock")


def test_every_way_to_install_checks_the_hashes() -> None:
    for name in ("Makefile", "Dockerfile"):
        text = (ROOT / name).read_text()
        for line in text.splitlines():
            if "install" in line and "--requirement" in line:
                assert "--require-hashes" in line, line
            elif re.search(r"pip\)? install|\$\(PIP\) install", line):
                # The program itself, from this folder, with nothing fetched for it.
                assert "--no-deps --no-build-isolation" in line, line


def test_the_audit_reads_both_locks_and_is_not_part_of_the_check() -> None:
    text = (ROOT / "Makefile").read_text()
    rules = dict(re.findall(r"^(\w+):[^\n]*\n((?:\t[^\n]*\n)+)", text, re.MULTILINE))
    assert all(lock in rules["audit"] for lock in LOCKS)
    # Without --strict it calls clean what it could not look up.
    assert {"--require-hashes", "--strict"} <= set(rules["audit"].split())
    assert "audit" not in rules["check"]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def test_our_containers_have_no_root_and_write_only_to_a_small_tmp_and_their_keys(services: dict[str, Any]) -> None:
    for name in ("migrate", "api", "worker"):
        assert services[name]["read_only"] is True, name
        assert services[name]["tmpfs"] == ["/tmp:size=64m,mode=1777"], name  # noqa: S108 - inside the container
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["security_opt"] == ["no-new-privileges:true"], name
        mounted = [volume.partition(":")[2] for volume in services[name]["volumes"]]
        assert all(path.startswith("/var/lib/sparkledger/") for path in mounted), name
        assert not {"user", "cap_add", "privileged", "network_mode"} & services[name].keys(), name


def test_the_image_ends_as_a_user_that_owns_nothing_else() -> None:
    final = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    users = re.findall(r"^USER (.+)$", final, re.MULTILINE)
    assert users == ["10001:10001"]
    assert "USER" not in final.partition("USER 10001:10001")[2]
    assert not re.search(r"(?i)^ENV .*(PASSWORD|SECRET|TOKEN|_KEY)", final, re.MULTILINE)


def test_images_of_others_are_of_a_named_version(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" not in service:
            assert re.fullmatch(r"[a-z0-9./-]+:[0-9][0-9.]*", service["image"]), name


# -- The threat model


def test_every_test_that_the_threat_model_names_is_there_and_tests_something() -> None:
    named = set(re.findall(r"`(tests/[a-z_/]+\.py)`", (ROOT / "docs" / "threat-model.md").read_text()))
    assert len(named) > 20
    tests = re.compile(r"^\s*(async )?def test_", re.MULTILINE)
    assert [path for path in sorted(named) if not tests.search((ROOT / path).read_text())] == []


def test_every_threat_that_is_defended_names_what_shows_it() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    table = text.partition("## Defences")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"`tests/[a-z_/]+\.py` \|$", row)] == []


def test_the_threat_model_says_what_is_not_defended() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    assert "superuser" in text.partition("## What is not defended")[2]
