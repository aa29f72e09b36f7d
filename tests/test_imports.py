"""The import rule of the house holds, and the check that says so would notice if it did not."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("api", "infra", "projections", "domain")
IN_INFRA = ("auth", "crypto", "delivery", "eventstore", "imports", "jobs", "postgres", "processes", "proof", "views")
FOLDERS = (
    *("api/console", "api/http", "projections/engine", *(f"infra/{name}" for name in IN_INFRA)),
    *("infra/delivery/alerts", "infra/delivery/kafka", "infra/delivery/webhooks"),
)
FILES = (
    *(
        f"infra/{name}.py"
        for name in ("ending", "errors", "ids", "process_limits", "recent_cache", "runtime", "servers", "settings")
    ),
    *(f"api/{file.name}" for file in (ROOT / "api").glob("*.py")),
)


# The program lint-imports, loaded once: each line names a folder to check, and a file for what is said of it.
LINTER = """
import os, sys
from importlinter.cli import lint_imports_command

for line in sys.stdin:
    folder, said = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        with open(said, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        lint_imports_command(["--no-logo", "--no-cache"])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Linted(NamedTuple):
    """What the check ended with, and what it said."""

    returncode: int
    stdout: str


LintImports = Callable[[Path], Linted]


@pytest.fixture(scope="session")
def lint_imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LintImports]:
    """Checks the imports of a folder, in a process of its own."""
    said = tmp_path_factory.mktemp("lint-imports") / "said"
    with subprocess.Popen(
        [sys.executable, "-c", LINTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        reading, writing = process.stdout, process.stdin
        assert reading is not None
        assert writing is not None

        def lint(folder: Path) -> Linted:
            writing.write(f"{folder}\t{said}\n")
            writing.flush()
            return Linted(int(reading.readline()), said.read_text())

        yield lint
        writing.close()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """An empty house with the real rules."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in (*PACKAGES, *FOLDERS):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "cli.py").touch()
    return tmp_path


def test_a_file_of_the_api_that_stands_in_no_layer_is_found(house: Path, lint_imports: LintImports) -> None:
    (house / "api" / "moods.py").touch()
    assert "api.moods" in lint_imports(house).stdout


def test_every_package_imports_to_the_right_only(lint_imports: LintImports) -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_the_check_accepts_what_the_rule_allows(house: Path, lint_imports: LintImports) -> None:
    (house / "cli.py").write_text("import api, infra, projections, domain\n")
    (house / "api" / "http" / "app.py").write_text(
        "import fastapi, starlette, api.codes, infra.delivery.kafka.connection, projections.codes, domain\n"
    )
    (house / "infra" / "delivery" / "kafka" / "connection.py").write_text(
        "import kafka, psycopg, projections.codes, domain\n"
    )
    (house / "projections" / "codes.py").write_text("import psycopg, domain.code\n")
    (house / "domain" / "code.py").write_text("import eventsourcing.domain\n")

    result = lint_imports(house)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "imported", "rule"),
    [
        ("infra/eventstore/append.py", "infra.proof.sealer", "within infra, to lower layers only"),
        ("infra/proof/sealer.py", "infra.crypto.keyring", "the sealer knows no master key"),
        ("domain/code.py", "projections", "api → infra → projections → domain, to the right only"),
        ("domain/code.py", "infra", "api → infra → projections → domain, to the right only"),
        ("domain/code.py", "api", "api → infra → projections → domain, to the right only"),
        ("projections/codes.py", "infra", "api → infra → projections → domain, to the right only"),
        ("projections/codes.py", "api", "api → infra → projections → domain, to the right only"),
        ("infra/processes/worker.py", "api", "api → infra → projections → domain, to the right only"),
        ("api/http/app.py", "cli", "nothing imports cli"),
        ("projections/engine/view.py", "projections.codes", "the engine imports no view"),
        ("infra/postgres/pool.py", "infra.crypto.keyring", "within infra, to lower layers only"),
        ("infra/crypto/keyring.py", "infra.auth.api_keys", "within infra, to lower layers only"),
        ("infra/auth/api_keys.py", "infra.eventstore.append", "within infra, to lower layers only"),
        ("infra/eventstore/append.py", "infra.views.reader", "within infra, to lower layers only"),
        ("infra/eventstore/append.py", "infra.settings", "within infra, to lower layers only"),
        ("infra/views/reader.py", "infra.runtime", "within infra, to lower layers only"),
        ("infra/jobs/retention.py", "infra.processes.worker", "within infra, to lower layers only"),
        ("infra/jobs/retention.py", "infra.delivery.lag", "within infra, to lower layers only"),
        ("api/http/route.py", "api.codes", "within api, to lower layers only"),
        ("api/codes.py", "api.shares", "within api, to lower layers only"),
        ("api/query_language.py", "api.events", "within api, to lower layers only"),
        ("domain/code.py", "pydantic", "domain is pure: no framework but eventsourcing"),
        ("domain/code.py", "psycopg", "domain is pure: no framework but eventsourcing"),
        ("api/http/app.py", "psycopg", "psycopg stays in projections and infra"),
        ("api/http/app.py", "psycopg_pool", "psycopg stays in projections and infra"),
        ("infra/processes/worker.py", "fastapi", "fastapi stays in api"),
        ("projections/codes.py", "starlette", "fastapi stays in api"),
        (
            "infra/processes/worker.py",
            "kafka",
            "kafka stays in infra.delivery.kafka.connection and infra.delivery.kafka.topics",
        ),
        ("api/http/app.py", "kafka", "kafka stays in infra.delivery.kafka.connection and infra.delivery.kafka.topics"),
    ],
)
def test_the_check_names_the_rule_that_an_import_breaks(
    house: Path, lint_imports: LintImports, module: str, imported: str, rule: str
) -> None:
    (house / module).write_text(f"import {imported}\n")
    if imported.partition(".")[0] in PACKAGES and "." in imported:
        (house / f"{imported.replace('.', '/')}.py").touch()

    result = lint_imports(house)

    assert result.returncode == 1
    assert f"{rule} BROKEN" in result.stdout


@pytest.mark.parametrize("folder", ["domain", "projections", "projections/engine", "infra/auth", "api/http"])
def test_the_check_refuses_a_circle(house: Path, lint_imports: LintImports, folder: str) -> None:
    package = folder.replace("/", ".")
    (house / folder / "hen.py").write_text(f"import {package}.egg\n")
    (house / folder / "egg.py").write_text(f"import {package}.hen\n")

    result = lint_imports(house)

    assert result.returncode == 1
    assert "no circle among files or folders BROKEN" in result.stdout


def test_a_new_folder_of_infra_must_be_given_its_layer(house: Path, lint_imports: LintImports) -> None:
    (house / "infra" / "attic").mkdir()
    (house / "infra" / "attic" / "__init__.py").touch()

    result = lint_imports(house)

    assert result.returncode == 1
    assert "within infra, to lower layers only BROKEN" in result.stdout


@pytest.mark.parametrize("line", ["import eventsourcing.postgres", "from eventsourcing import postgres"])
def test_the_librarys_own_postgres_recorder_is_refused(house: Path, line: str) -> None:
    (house / "infra" / "event_store.py").write_text(f"{line}\n")

    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "infra/event_store.py"],
        cwd=house,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    assert "`eventsourcing.postgres` is banned" in result.stdout
