"""What the repository promises about itself: its layout, its locks, its Makefile, and what must never be in it."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.absent import absent
from tests.conftest import LEFT_OUT, TOGETHER, pytest_collection_modifyitems

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-dev.lock")


# Under `make test`, a make that a test starts would take itself for a part of that one, and say so.
OUTSIDE_MAKE = {name: value for name, value in os.environ.items() if not re.fullmatch("MAKE.*|MFLAGS|LONG", name)}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    return subprocess.run(command, cwd=cwd, env=OUTSIDE_MAKE, capture_output=True, text=True, check=True).stdout


def locked(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Return name → (version, hashes) of a lock's entries."""
    entries = re.findall(
        r"^([a-z0-9._-]+)==([^ ]+)(?: ;[^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
        (ROOT / lock).read_text(),
        flags=re.MULTILINE,
    )
    return {name: (version, re.findall("sha256:([0-9a-f]{64})", hashes)) for name, version, hashes in entries}


def direct(lock: str) -> list[Requirement]:
    """Return what pyproject.toml asks for and the lock must hold."""
    asked = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["build"]]
    if lock == "requirements-dev.lock":
        asked += PYPROJECT["project"]["optional-dependencies"]["dev"]
    return [Requirement(line) for line in asked]


def files_in_git() -> list[Path]:
    """Return every file that is committed, or would be by `git add --all`."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


# -- Layout


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
        *("Makefile", "pyproject.toml", *LOCKS, "docker-compose.yml", "Dockerfile", ".ci/run", "cli.py"),
        *("domain/__init__.py", "projections/__init__.py", "infra/__init__.py", "api/__init__.py"),
        *("infra/postgres/migrations", "docs", "tests/faults"),
    ],
)
def test_the_house_has(name: str) -> None:
    assert (ROOT / name).exists()


def test_ci_runs_as_a_program() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_runs_every_step_once_although_one_fails_and_then_fails(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    for place in (programs, tmp_path / ".ci", tmp_path / ".venv" / "bin"):
        place.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    # In place of everything that takes time, or that is looked for and would be installed: what was called, and that
    # `make test` failed.
    script = (ROOT / ".ci" / "run").read_text()
    needed = re.findall(r"(\S+):\S+", script[script.index("NEEDED=(") + len("NEEDED=(") : script.index(")\n\nfailed=")])
    called = '#!/bin/sh\necho "$(basename "$0") $* CI=$CI" >> "$CALLED"\n[ "$*" != "test LONG=1" ]\n'
    for program in (
        *(programs / name for name in (*needed, "apt-get", "sudo")),
        tmp_path / ".venv/bin/python",
    ):
        program.write_text(called)
        program.chmod(0o755)

    done = subprocess.run(
        [tmp_path / ".ci" / "run"],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "CALLED": str(tmp_path / "called")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: make test, with make long"
    calls = (tmp_path / "called").read_text().splitlines()
    assert [call for call in calls if call.startswith(("apt-get", "sudo"))] == []
    makes = [call for call in calls if call.startswith("make")]
    targets = ("install", "check", "test LONG=1", "outside ARGS=tests/outside/test_go_consumer.py", "faults")
    assert makes == [f"make {target} CI=true" for target in targets]


def test_ci_runs_the_tiers_test_long_and_faults() -> None:
    steps = re.findall(r'^step ".+" make (test|long|faults)\b(.*)$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    # As `--dry-run` shows below, with LONG=1 the long tests run along.
    ran = [tier for target, more in steps for tier in [target, *(["long"] if "LONG=1" in more else [])]]
    assert ran == ["test", "long", "faults"]


def test_nothing_is_long_where_neither_make_test_nor_make_long_looks() -> None:
    for folder, has_tests in (("faults", True), ("outside", True), ("bench", False), ("soak", False)):
        texts = [file.read_text() for file in (ROOT / "tests" / folder).rglob("test_*.py")]
        assert bool(texts) == has_tests
        assert [text for text in texts if "mark.long" in text] == []


@dataclass(eq=False)
class Found:
    """A test as pytest collects it, as far as tiers look at it."""

    nodeid: str
    long: bool

    @property
    def path(self) -> Path:
        return ROOT / self.nodeid.partition("::")[0]

    def get_closest_marker(self, name: str) -> object:
        return name if self.long and name == "long" else None


@pytest.mark.parametrize(
    ("tier", "named", "kept", "left_out"),
    [
        (None, "tests", {"quick", "long", "long elsewhere"}, 0),
        ("test", "tests", {"quick"}, 2),
        ("long", "tests", {"long", "long elsewhere"}, 1),
        # Who names a file or a test wants it.
        ("test", "tests/test_canary.py", {"quick", "long"}, 1),
        ("test", "tests/test_canary.py::long", {"quick", "long"}, 1),
        ("long", "tests/test_canary.py", {"long", "long elsewhere"}, 1),
    ],
)
def test_a_tier_keeps_its_own_tests_and_all_that_are_named(
    tier: str | None, named: str, kept: set[str], left_out: int
) -> None:
    found = [
        Found("tests/test_canary.py::quick", long=False),
        Found("tests/test_canary.py::long", long=True),
        Found("tests/console/test_firefox.py::long elsewhere", long=True),
    ]
    config: Any = SimpleNamespace(
        stash=pytest.Stash(),
        getoption=lambda _name: tier,
        args=[named],
        invocation_params=SimpleNamespace(dir=ROOT),
        hook=SimpleNamespace(pytest_deselected=lambda items: None),
    )
    items: Any = found
    pytest_collection_modifyitems(config, items)

    assert {item.nodeid.partition("::")[2] for item in found} == kept
    assert config.stash.get(LEFT_OUT, 0) == left_out


def test_every_long_test_says_why() -> None:
    marks = [
        (file.name, why)
        for file in (ROOT / "tests").rglob("*.py")
        if file != Path(__file__)
        for why in re.findall(r"mark\.long\b(.*)", file.read_text())
    ]
    assert [mark for mark in marks if not re.match(r'\("[^"]{10,}"\)', mark[1])] == []
    assert marks


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception), (None, pytest.skip.Exception)]
)
def test_what_is_absent_fails_a_test_in_ci_and_skips_it_elsewhere(
    monkeypatch: pytest.MonkeyPatch, ci: str | None, outcome: type[Exception]
) -> None:
    monkeypatch.delenv("CI", raising=False) if ci is None else monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install it"):
        absent("install it")


def test_the_license_is_apache_2() -> None:
    lines = [line.strip() for line in (ROOT / "LICENSE").read_text().splitlines() if line.strip()]
    assert lines[:2] == ["Apache License", "Version 2.0, January 2004"]
    assert "END OF TERMS AND CONDITIONS" in lines


@pytest.mark.long("the program is built as for an installation")
def test_an_installation_carries_every_migration_and_static_file(tmp_path: Path) -> None:
    # Built from a copy: the build writes beside its source.
    source = tmp_path / "source"
    packages = ("api", "domain", "infra", "projections")
    for package in packages:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, source)
    expected = {
        path.relative_to(source).as_posix()
        for package in packages
        for path in (source / package).rglob("*")
        if path.is_file()
    }

    run(
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"),
        *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, source),
    )

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert carried == expected | {"cli.py"}


# -- Locks


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_version_or_its_hash(lock: str) -> None:
    entries = locked(lock)
    lines = (ROOT / lock).read_text().splitlines()

    assert all(hashes for _, hashes in entries.values())
    # Nothing is left over: no address, no path, no option, and no entry without a hash.
    assert len(lines) == len(entries) + sum(len(hashes) for _, hashes in entries.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_every_direct_dependency_within_its_range(lock: str) -> None:
    entries = locked(lock)
    for requirement in direct(lock):
        name = canonicalize_name(requirement.name)
        assert name in entries, f"{name} is not in {lock}: run make lock"
        assert requirement.specifier.contains(entries[name][0]), f"{name} in {lock}: run make lock"


def test_both_locks_agree() -> None:
    runtime, everything = (locked(lock) for lock in LOCKS)
    assert runtime.items() <= everything.items()


def test_the_locks_pin_what_the_build_asks_for() -> None:
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]


# -- Rules and their reasons


def test_every_ignored_rule_has_its_reason_beside_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:ignore|\"[^\"]+\"|DEP\d+) = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert len(lists) == 1 + len(PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]) + 1

    unexplained = [line for block in lists for line in block.splitlines() if not re.search(r",\s+# \w", line)]
    assert unexplained == []


# -- Makefile


def test_make_help_lists_every_target_and_is_the_default() -> None:
    listed = run("make", "help")

    assert set(re.findall(r"^make (\S+) +\S", listed, flags=re.MULTILINE)) == {
        *("up", "demo", "test", "long", "faults", "outside", "soak", "check", "audit", "bench"),
        *(".env", "install", "lock", "clean", "help"),
    }
    assert run("make") == listed


@pytest.mark.long("make starts pytest, which collects")
@pytest.mark.parametrize(
    ("target", "args", "expected"),
    [
        ("test", "tests/domain/test_values.py", {"tests/domain/test_values.py"}),
        ("faults", "tests/faults/test_clock.py", {"tests/faults/test_clock.py"}),
        ("outside", "tests/outside/test_tessera.py", {"tests/outside/test_tessera.py"}),
    ],
)
def test_a_target_runs_the_tests_that_args_name_and_no_others(target: str, args: str, expected: set[str]) -> None:
    # The environment of this run is taken for installed, however it was made.
    args = f"{args} --collect-only --quiet -p no:cacheprovider"
    listed = run("make", "--old-file", ".venv/.dev", target, f"ARGS={args}")

    assert set(re.findall(r"^(\S+\.py)::", listed, flags=re.MULTILINE)) == expected


@pytest.mark.parametrize("name", [*itertools.chain(*TOGETHER.values())])
def test_what_the_distribution_of_tests_names_is_there(name: str) -> None:
    module, _, test = name.partition("::")
    assert f"def {test}" in (ROOT / module).read_text()


def test_all_tests_of_the_program_that_is_up_run_in_one_process() -> None:
    using = {
        f"{file.relative_to(ROOT)}::{name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        if "faults" not in file.parts and "outside" not in file.parts
        for name in re.findall(r"def (test_\w+)\((?=[^)]*\blive_server\b)", file.read_text())
    }
    assert [test for test in using if not test.startswith(TOGETHER["up"])] == []


def test_without_args_each_target_runs_its_own_tests() -> None:
    def commands(*words: str) -> str:
        return run("make", "--dry-run", "--old-file", ".venv/.dev", *words)

    for target, tier in (("test", "--tier test"), ("long", "--tier long"), ("test LONG=1", "")):
        told = commands(*target.split())
        assert "--ignore tests/faults --ignore tests/bench" in told
        assert re.findall(r"--tier \w+", told) == [tier] * bool(tier)
    assert PYPROJECT["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]
    assert "--override-ini testpaths=tests/faults" in commands("faults")


def test_a_python_that_is_too_old_or_missing_gets_one_clear_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)

    result = subprocess.run(
        ["make", "install", "PYTHON=no-such-python"],
        cwd=tmp_path,
        env=OUTSIDE_MAKE,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode != 0
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert said == [
        "Python 3.11 or newer is needed, and 'no-such-python' is not one; name another: make PYTHON=python3.13"
    ]
    assert not (tmp_path / ".venv").exists()


# -- What must not be in it


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    # A folder directly under / may be named for other reasons, as in a Dockerfile.
    here = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 2 or path == Path("/root")]
    place = re.compile("|".join([*(re.escape(path) + r"(?![\w-])" for path in here), r"/(?:home|Users)/\w"]))

    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files_in_git()
        if path != Path(__file__)
        for match in place.finditer(path.read_bytes().decode(errors="replace"))
    ]
    assert found == []


def test_nothing_that_is_made_or_secret_is_in_git() -> None:
    made = re.compile(r"(^|/)(\.env.*|\.venv|\.sparkledger|\.bench|__pycache__|[^/]+\.(pyc|key|pem|egg-info))(/|$)")
    assert [name for path in files_in_git() if made.search(name := path.relative_to(ROOT).as_posix())] == []
