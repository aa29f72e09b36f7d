"""docker-compose.yml is valid, starts in the right order and holds no password; `make .env` makes what it asks for."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
import yaml

from infra.postgres.embedded.cluster import binary
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.settings import load_settings
from tests.infra.delivery.kafka import broker

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
OURS = ("migrate", "api", "worker", "publisher", "sealer")
# ${NAME}, or ${NAME:?what to do when it is missing}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::\?([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(compose["services"])


def make_env_file(folder: Path) -> str:
    """Run `make .env` in a folder that has nothing else, and return what it printed."""
    return subprocess.run(
        ["make", "--no-print-directory", "-f", ROOT / "Makefile", f"PYTHON={sys.executable}", ".env"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def read_env_file(folder: Path) -> dict[str, str]:
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("env")
    make_env_file(folder)
    return read_env_file(folder)


def started_with(service: dict[str, Any], env: dict[str, str]) -> dict[str, str]:
    """Return the service's environment as Compose would set it."""
    return {
        name: VARIABLE.sub(lambda match: env[match[1]], str(value)) for name, value in service["environment"].items()
    }


def make_owner(server: EmbeddedPostgres, compose: dict[str, Any], env: dict[str, str], folder: Path) -> None:
    """Make the tables' owner and its database as the image does: as the superuser, before there is one of ours."""
    script = folder / "owner.sql"
    script.write_text(compose["configs"]["owner"]["content"])
    before = server.dsn(dbname="postgres")
    with psycopg.connect(before, autocommit=True) as connection:
        connection.execute("DROP DATABASE sparkledger WITH (FORCE)")
    subprocess.run(
        [binary("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}", before],
        env=started_with(compose["services"]["postgres"], env),
        check=True,
    )


# -- The file


def test_the_file_is_valid_by_the_compose_specification() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_variable_is_one_that_make_env_writes_and_says_so_when_missing(env: dict[str, str]) -> None:
    asked = VARIABLE.findall(COMPOSE.read_text())

    assert {name for name, _ in asked} == set(env)
    assert {hint for _, hint in asked} == {"run make .env first"}


def test_no_password_is_written_into_the_file(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|KEY|SECRET|TOKEN", name):
                assert VARIABLE.fullmatch(str(value)), name
            for password in re.findall(r"://[^:/]+:(.+)@", str(value)):
                assert VARIABLE.fullmatch(password), name


def test_services_start_in_order(services: dict[str, dict[str, Any]]) -> None:
    migrated = {"migrate": {"condition": "service_completed_successfully"}}

    assert {name: service.get("depends_on", {}) for name, service in services.items()} == {
        "postgres": {},
        "kafka": {},
        "migrate": {"postgres": {"condition": "service_healthy"}},
        "api": migrated,
        "worker": migrated,
        "publisher": migrated | {"kafka": {"condition": "service_healthy"}},
        "sealer": migrated,
    }
    assert {name: services[name]["command"] for name in OURS} == {
        "migrate": ["migrate"],
        "api": ["serve"],
        "worker": ["work"],
        "publisher": ["work", "--only", "kafka"],
        "sealer": ["work", "--only", "seal"],
    }


def test_kafka_is_of_the_version_that_the_tests_start(services: dict[str, dict[str, Any]]) -> None:
    assert services["kafka"]["image"] == f"apache/kafka:{broker.version()}"


def test_every_service_has_a_health_check_or_runs_once(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name == "migrate":
            assert "restart" not in service
        else:
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["restart"] == "unless-stopped", name


@pytest.fixture
def readyz() -> Iterator[ThreadingHTTPServer]:
    """A stand-in for the API that answers what `answer` holds."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = server.answer  # type: ignore[attr-defined]
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [
        (200, {"status": "ready"}, {"api", "worker", "sealer"}),
        (200, {"status": "degraded"}, {"api", "sealer"}),
        (200, {"status": "ready", "degraded": []}, {"api", "worker", "sealer"}),
        (200, {"status": "ready", "degraded": ["codes"]}, {"api", "sealer"}),
        (200, {"status": "degraded", "stopped": ["log"]}, {"api"}),
        (503, {"status": "unavailable"}, set()),
    ],
)
def test_a_stopped_view_is_the_workers_illness_and_not_the_apis(
    services: dict[str, dict[str, Any]],
    readyz: ThreadingHTTPServer,
    status: int,
    body: dict[str, object],
    healthy: set[str],
) -> None:
    readyz.answer = status, body  # type: ignore[attr-defined]

    def passes(name: str) -> bool:
        _, _, *command = services[name]["healthcheck"]["test"]
        there = [re.sub(r"http://[a-z0-9.]+:8080", f"http://127.0.0.1:{readyz.server_port}", part) for part in command]
        return subprocess.run([sys.executable, *there], stderr=subprocess.DEVNULL, check=False).returncode == 0

    assert {name for name in ("api", "worker", "sealer") if passes(name)} == healthy


def test_every_service_can_write_little_gain_nothing_and_take_a_bounded_share(
    services: dict[str, dict[str, Any]],
) -> None:
    for name in OURS:
        assert services[name]["pull_policy"] == "build"
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert not service.get("cap_add"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged", False), name
        assert re.fullmatch(r"[1-9][0-9]*[mg]", service["mem_limit"]), name
        assert 0 < service["pids_limit"] <= 512, name


def test_images_of_others_have_a_version_and_a_reason_for_having_no_digest(services: dict[str, dict[str, Any]]) -> None:
    images = {name: service["image"] for name, service in services.items() if name not in OURS}
    assert all(re.fullmatch(r"[a-z/]+:[0-9.]+", image) for image in images.values()), images
    assert "--resolve-image-digests" in COMPOSE.read_text()


def test_only_the_api_is_published_and_to_this_machine_alone(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8080:8080"]}


def test_the_data_outlives_its_containers(compose: dict[str, Any]) -> None:
    mounted = {name: service["volumes"] for name, service in compose["services"].items() if "volumes" in service}

    shared = ["erasure-keys:/var/lib/sparkledger/erasure-keys"]
    assert mounted == {
        "postgres": ["postgres:/var/lib/postgresql"],
        "kafka": ["kafka:/var/lib/kafka/data"],
        **dict.fromkeys((name for name in OURS if name != "sealer"), shared),
        "worker": [*shared, "anchor:/var/lib/sparkledger/anchor"],
        "sealer": ["signing:/var/lib/sparkledger/signing"],
    }
    assert set(compose["volumes"]) == {"postgres", "kafka", "erasure-keys", "anchor", "signing"}


@pytest.mark.parametrize(
    ("service", "volumes"), [("api", ["erasure-keys"]), ("worker", ["erasure-keys", "anchor"]), ("sealer", ["signing"])]
)
def test_the_volumes_belong_to_the_user_of_the_image(
    service: str, volumes: list[str], services: dict[str, dict[str, Any]]
) -> None:
    """A fresh volume has the owner and the mode of the directory that it takes the place of."""
    image = (ROOT / "Dockerfile").read_text()
    mounted = [volume.partition(":") for volume in services[service]["volumes"]]
    assert [name for name, _, _ in mounted] == volumes
    for _, _, path in mounted:
        assert re.search(rf"install --directory --owner sparkledger .* --mode 0700 \\\n .*{path}( |\n)", image)
        assert f"VOLUME {path}\n" in image


def test_the_worker_notes_the_ends_of_the_logs_in_a_volume_apart_from_the_database(
    services: dict[str, dict[str, Any]], env: dict[str, str]
) -> None:
    file = started_with(services["worker"], env)["SPARKLEDGER_ANCHOR_FILE"]
    assert f"anchor:{file.rpartition('/')[0]}" in services["worker"]["volumes"]


# -- What our services are started with


@pytest.mark.parametrize("name", OURS)
def test_the_program_accepts_the_settings_it_is_given(
    name: str, services: dict[str, dict[str, Any]], env: dict[str, str]
) -> None:
    load_settings(started_with(services[name], env), unseals=name != "sealer")


def test_each_service_logs_in_under_its_own_role(services: dict[str, dict[str, Any]], env: dict[str, str]) -> None:
    given = {name: started_with(services[name], env) for name in OURS}

    def url(role: str, password: str) -> str:
        return f"postgresql://{role}:{env[password]}@postgres:5432/sparkledger"

    assert given["migrate"]["SPARKLEDGER_MIGRATION_DATABASE_URL"] == url(
        "sparkledger_owner", "SPARKLEDGER_OWNER_PASSWORD"
    )
    assert given["api"]["SPARKLEDGER_DATABASE_URL"] == url("sparkledger_api", "SPARKLEDGER_API_PASSWORD")
    assert given["worker"]["SPARKLEDGER_DATABASE_URL"] == url("sparkledger_worker", "SPARKLEDGER_WORKER_PASSWORD")
    for password in ("SPARKLEDGER_API_PASSWORD", "SPARKLEDGER_WORKER_PASSWORD"):
        assert given["migrate"][password] == env[password]


def test_only_who_needs_a_secret_is_given_it(services: dict[str, dict[str, Any]], env: dict[str, str]) -> None:
    holders = {
        name: {
            service
            for service in services
            if any(secret in value for value in started_with(services[service], env).values())
        }
        for name, secret in env.items()
    }

    assert holders == {
        "POSTGRES_PASSWORD": {"postgres"},
        "SPARKLEDGER_OWNER_PASSWORD": {"postgres", "migrate"},
        "SPARKLEDGER_API_PASSWORD": {"migrate", "api"},
        "SPARKLEDGER_WORKER_PASSWORD": {"migrate", "worker", "publisher", "sealer"},
        "SPARKLEDGER_MASTER_KEY": {"migrate", "api", "worker", "publisher"},
        "SPARKLEDGER_ADMIN_KEY": {"migrate"},
    }


def test_the_owner_that_the_file_makes_can_migrate_and_its_roles_can_log_in(
    compose: dict[str, Any], env: dict[str, str], server_path: Path, tmp_path: Path
) -> None:
    with EmbeddedPostgres(server_path / "data") as server:
        make_owner(server, compose, env, tmp_path)

        migrate(
            server.dsn(user="sparkledger_owner"),
            {
                "sparkledger_api": env["SPARKLEDGER_API_PASSWORD"],
                "sparkledger_worker": env["SPARKLEDGER_WORKER_PASSWORD"],
            },
        )

        with psycopg.connect(server.dsn(dbname="postgres")) as connection:
            roles = connection.execute(
                "SELECT rolname, rolcanlogin, rolsuper, rolbypassrls, rolpassword IS NOT NULL FROM pg_authid"
                " WHERE rolname IN ('sparkledger_owner', 'sparkledger_api', 'sparkledger_worker') ORDER BY rolname"
            ).fetchall()
    assert roles == [
        ("sparkledger_api", True, False, False, True),
        ("sparkledger_owner", True, False, False, True),
        ("sparkledger_worker", True, False, False, True),
    ]


# -- make .env


def test_make_env_writes_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    make_env_file(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [".env"]
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_make_env_never_overwrites(tmp_path: Path) -> None:
    make_env_file(tmp_path)
    first = (tmp_path / ".env").read_text()

    make_env_file(tmp_path)

    assert (tmp_path / ".env").read_text() == first


def test_make_env_makes_other_secrets_each_time_and_prints_none(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    printed = "".join(make_env_file(folder) for folder in folders)
    secrets = [secret for folder in folders for secret in read_env_file(folder).values()]

    assert len(set(secrets)) == len(secrets) == 12
    assert not [secret for secret in secrets if secret in printed]


def test_generated_secrets_are_long_and_stand_in_a_url_unquoted(env: dict[str, str]) -> None:
    assert len(base64.b64decode(env["SPARKLEDGER_MASTER_KEY"], validate=True)) == 32
    for name in env.keys() - {"SPARKLEDGER_MASTER_KEY"}:
        assert re.fullmatch(r"[0-9a-f]{48}", env[name]), name


# -- The image


def test_the_image_runs_as_nobody_in_particular_and_installs_by_hash() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()

    assert [line for line in lines if line.startswith(("USER", "ENTRYPOINT"))] == [
        "USER 10001:10001",
        'ENTRYPOINT ["sparkledger"]',
    ]
    assert [line for line in lines if "pip install" in line] == [
        "RUN pip install --require-hashes --requirement requirements.lock",
        "RUN pip install --no-deps --no-build-isolation .",
    ]


def test_the_image_is_built_from_nothing_but_the_program() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == {
        *("LICENSE", "pyproject.toml", "requirements.lock"),
        *("api", "cli.py", "domain", "infra", "projections"),
    }
