from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

import cli
from infra.delivery.alerts.channels import MailServer, mail_server
from infra.settings import Settings, SettingsError, load_settings, settings_table
from tests.infra.delivery.kafka.broker import certificate_and_key

MASTER_KEY: Final = base64.b64encode(bytes(range(32))).decode()
URL: Final = "postgresql://api:hunter2@db:5432/sparkledger"

# The verifier key of a witness.
WITNESS = "w1.example+6078338f+BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def refusal(**variables: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings({f"SPARKLEDGER_{name}": value for name, value in variables.items()})
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("origin", ["*", "desk.example", "https://desk.example/", "https://Desk.example", "none,none"])
def test_an_origin_is_as_a_browser_sends_it(origin: str) -> None:
    assert load_settings({"SPARKLEDGER_CORS_ORIGINS": "https://a.b,http://c:1"}).cors_origins == (
        *("https://a.b", "http://c:1"),
    )
    assert refusal(CORS_ORIGINS=origin).startswith("SPARKLEDGER_CORS_ORIGINS cannot be")


def test_the_metrics_need_a_port_of_their_own_if_any() -> None:
    assert load_settings({"SPARKLEDGER_METRICS_PORT": "9100"}).metrics_port == 9100
    assert refusal(METRICS_PORT="0").startswith("SPARKLEDGER_METRICS_PORT")
    assert refusal(METRICS_PORT="9100", PORT="9100") == (
        "SPARKLEDGER_METRICS_PORT is the same port as SPARKLEDGER_PORT: give another one, or unset it to have "
        "`/metrics` on the API's port."
    )


def test_an_address_has_at_least_one_connection_and_at_most_all() -> None:
    assert load_settings({"SPARKLEDGER_CONNECTIONS_PER_ADDRESS": "20"}).connections_per_address == 20
    for wrong in ("0", "3001", "many"):
        assert "give a whole number from 1 to 3000" in refusal(CONNECTIONS_PER_ADDRESS=wrong)


def test_without_any_variable_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings({})

    assert settings.model_dump() == {
        "database_url": None,
        "migration_database_url": None,
        "worker_database_url": None,
        "databases": None,
        "migration_databases": None,
        "worker_databases": None,
        "api_password": None,
        "worker_password": None,
        "data_dir": Path(".sparkledger"),
        "anchor_file": None,
        "host": "127.0.0.1",
        "port": 8080,
        "metrics_port": None,
        "admin_key": None,
        "master_key": None,
        "master_key_previous": None,
        "master_key_file": None,
        "erasure_key_dir": None,
        "allowed_days": (7, 30, 60, 365),
        "video_ids": "tiktok",
        "extend_after_expiry": True,
        "codes_without_secret": False,
        "requests_per_second": 100_000,
        "connections_per_address": 1_500,
        "trusted_proxies": ("none",),
        "cors_origins": ("none",),
        "webhook_networks": ("127.0.0.0/8", "::1/128"),
        "webhook_ca_file": None,
        "smtp_url": None,
        "smtp_from": None,
        "smtp_ca_file": None,
        "alert_domains": (),
        "public_url": None,
        "oidc_issuers": (),
        "log_name": None,
        "public_logs": (),
        "witnesses": (),
        "signing_dir": None,
        "tsa_url": None,
        "kafka_bootstrap_servers": (),
        "kafka_security_protocol": "PLAINTEXT",
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": None,
        "kafka_sasl_password": None,
        "kafka_oauth_token_url": None,
        "kafka_oauth_scope": None,
        "kafka_compression": "auto",
        "kafka_ssl_cafile": None,
        "kafka_ssl_certfile": None,
        "kafka_ssl_keyfile": None,
        "kafka_ledgers": ("main=sparkledger",),
        "kafka_replication_factor": -1,
    }


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with a certificate in two files, its key, and what is wrong in a file's place."""
    certificate, key = certificate_and_key()
    _, another = certificate_and_key()
    encrypted = load_pem_private_key(key.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")
    )
    files = {
        "ca.pem": certificate,
        "ours.pem": certificate,
        "ours.key": key,
        "another.key": another,
        "encrypted.key": encrypted.decode(),
        "garbage.pem": "hunter2",
        "empty.pem": "",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "folder.pem").mkdir()
    return tmp_path


def test_every_setting_is_read_from_its_variable(certificates: Path) -> None:
    settings = load_settings(
        {
            "SPARKLEDGER_DATABASE_URL": URL,
            "SPARKLEDGER_MIGRATION_DATABASE_URL": "host=db user=owner",
            "SPARKLEDGER_WORKER_DATABASE_URL": "host=db user=worker",
            "SPARKLEDGER_API_PASSWORD": "a",
            "SPARKLEDGER_WORKER_PASSWORD": "w",
            "SPARKLEDGER_DATA_DIR": "/nowhere/yet",
            "SPARKLEDGER_HOST": "::1",
            "SPARKLEDGER_PORT": "0",
            "SPARKLEDGER_ADMIN_KEY": "k" * 32,
            "SPARKLEDGER_MASTER_KEY": MASTER_KEY,
            "SPARKLEDGER_ALLOWED_DAYS": "30, 7,7",
            "SPARKLEDGER_VIDEO_IDS": "any",
            "SPARKLEDGER_EXTEND_AFTER_EXPIRY": "false",
            "SPARKLEDGER_CODES_WITHOUT_SECRET": "true",
            "SPARKLEDGER_REQUESTS_PER_SECOND": "5",
            "SPARKLEDGER_LOG_NAME": "ledger.example:8443/log",
            "SPARKLEDGER_PUBLIC_LOGS": "main, other",
            "SPARKLEDGER_WITNESSES": f"{WITNESS} https://w1.example/prefix",
            "SPARKLEDGER_SIGNING_DIR": "/nowhere/signing",
            "SPARKLEDGER_TSA_URL": "http://tsa.example/stamp?policy=1",
            "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": "one:9092, [::1]:9093",
            "SPARKLEDGER_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "SPARKLEDGER_KAFKA_SASL_MECHANISM": "PLAIN",
            "SPARKLEDGER_KAFKA_SASL_USERNAME": "u",
            "SPARKLEDGER_KAFKA_SASL_PASSWORD": "p",
            "SPARKLEDGER_KAFKA_SSL_CAFILE": str(certificates / "ca.pem"),
            "SPARKLEDGER_KAFKA_SSL_CERTFILE": str(certificates / "ours.pem"),
            "SPARKLEDGER_KAFKA_SSL_KEYFILE": str(certificates / "ours.key"),
            "SPARKLEDGER_KAFKA_LEDGERS": "acme=acme, *=others",
            "SPARKLEDGER_KAFKA_REPLICATION_FACTOR": "3",
        }
    )

    assert settings == Settings(
        database_url=SecretStr(URL),
        migration_database_url=SecretStr("host=db user=owner"),
        worker_database_url=SecretStr("host=db user=worker"),
        api_password=SecretStr("a"),
        worker_password=SecretStr("w"),
        data_dir=Path("/nowhere/yet"),
        host="::1",
        port=0,
        admin_key=SecretStr("k" * 32),
        master_key=SecretStr(MASTER_KEY),
        allowed_days=(7, 30),
        extend_after_expiry=False,
        codes_without_secret=True,
        video_ids="any",
        requests_per_second=5,
        log_name="ledger.example:8443/log",
        public_logs=("main", "other"),
        witnesses=(f"{WITNESS} https://w1.example/prefix",),
        signing_dir=Path("/nowhere/signing"),
        tsa_url="http://tsa.example/stamp?policy=1",
        kafka_bootstrap_servers=("one:9092", "[::1]:9093"),
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="PLAIN",
        kafka_sasl_username="u",
        kafka_sasl_password=SecretStr("p"),
        kafka_ssl_cafile=certificates / "ca.pem",
        kafka_ssl_certfile=certificates / "ours.pem",
        kafka_ssl_keyfile=certificates / "ours.key",
        kafka_ledgers=("acme=acme", "*=others"),
        kafka_replication_factor=3,
    )


def test_the_environment_of_the_process_is_what_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKLEDGER_PORT", "8123")

    assert load_settings().port == 8123


def test_an_empty_variable_counts_as_absent() -> None:
    assert load_settings({"SPARKLEDGER_ADMIN_KEY": "", "SPARKLEDGER_PORT": ""}) == load_settings({})


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("PORT", "http", "whole number from 0 to 65535, or leave it out for 8080"),
        ("PORT", "65536", "whole number from 0 to 65535"),
        ("HOST", "a b", "host name or an IP address"),
        ("DATA_DIR", __file__, "directory"),
        ("ALLOWED_DAYS", "7;30", "whole numbers of days from 1 to 3650, separated by commas"),
        ("ALLOWED_DAYS", "0", "whole numbers of days"),
        ("ALLOWED_DAYS", "-7", "whole numbers of days"),
        ("ALLOWED_DAYS", ",", "whole numbers of days"),
        ("EXTEND_AFTER_EXPIRY", "maybe", "give true or false, or leave it out for true"),
        ("REQUESTS_PER_SECOND", "0", "whole number from 1"),
        ("LOG_NAME", "https://ledger.example/log", "host with a path"),
        ("LOG_NAME", "ledger.example/log/", "host with a path"),
        ("LOG_NAME", "ledger+example", "host with a path"),
        ("PUBLIC_LOGS", "main,main", "each once"),
        ("PUBLIC_LOGS", "a b", "names of ledgers"),
        ("WITNESSES", WITNESS, "KEY URL"),
        ("WITNESSES", f"{WITNESS} ftp://w1.example", "https://"),
        ("WITNESSES", f"{WITNESS} https://a.example, {WITNESS} https://b.example", "each witness once"),
        ("SIGNING_DIR", __file__, "directory"),
        ("TSA_URL", "tsa.example", "https:// or http://"),
        ("TSA_URL", "https://user@tsa.example", "without a user name"),
        ("KAFKA_BOOTSTRAP_SERVERS", "broker", "host:port"),
        ("KAFKA_SECURITY_PROTOCOL", "TLS", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI", "SCRAM-SHA-512"),
        ("KAFKA_LEDGERS", "main", "ledger=prefix"),
        ("KAFKA_LEDGERS", "main=a b", "letters, digits"),
        ("KAFKA_LEDGERS", "main=a,main=b", "each ledger once"),
        ("KAFKA_REPLICATION_FACTOR", "0", "from 1 to 32, or -1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_give_instead(name: str, value: str, expects: str) -> None:
    message = refusal(**{name: value})

    assert message.startswith(f"SPARKLEDGER_{name} cannot be {value[:60]!r}: ")
    assert expects in message


@pytest.mark.parametrize(
    ("name", "value", "expects"),
    [
        ("DATABASE_URL", "postgresql+asyncpg://api:hunter2@db/sparkledger?sslmode=require", "connection string"),
        ("MIGRATION_DATABASE_URL", "hunter2", "connection string"),
        ("WORKER_DATABASE_URL", "postgresql://api:hunter2@db:5432/x?nonsense=hunter2", "connection string"),
        ("ADMIN_KEY", "hunter2", "at least 32 characters"),
        ("MASTER_KEY", "hunter2", "32 random bytes in base64"),
        ("MASTER_KEY", base64.b64encode(b"hunter2").decode(), "32 random bytes in base64"),
        ("MASTER_KEY", base64.b64encode(bytes(32)).decode(), "32 random bytes in base64"),
    ],
)
def test_a_wrong_secret_is_refused_without_being_shown(name: str, value: str, expects: str) -> None:
    message = refusal(**{name: value})

    assert message.startswith(f"SPARKLEDGER_{name} is not valid (its value is not shown): ")
    assert expects in message
    assert "hunter2" not in message
    assert value not in message


def test_a_secret_is_not_shown_by_the_settings_themselves() -> None:
    settings = load_settings({"SPARKLEDGER_DATABASE_URL": URL, "SPARKLEDGER_MASTER_KEY": MASTER_KEY})

    assert "hunter2" not in f"{settings!r}{settings}{settings.model_dump_json()}"
    assert MASTER_KEY not in repr(settings)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("SPARKLEDGER_PROT", "SPARKLEDGER_PORT"),
        ("SPARKLEDGER_ALLOWED_DAY", "SPARKLEDGER_ALLOWED_DAYS"),
        ("SPARKLEDGER_KAFKA_BOOTSTRAP", "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS"),
        ("sparkledger_port", "SPARKLEDGER_PORT"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(written: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({written: "hunter2"})

    assert str(refused.value) == f"{written} is not a setting. Did you mean {nearest}? Rename it, or unset it."


def test_variables_that_others_read_are_let_pass() -> None:
    others = ("TEST_KAFKA", "TEST_ANYTHING", "FAULTS", "OWNER_PASSWORD", "PARENT_FD", "READY_FD")

    assert load_settings({f"SPARKLEDGER_{name}": "x" for name in others} | {"PATH": "/bin"}) == load_settings({})


def test_a_database_url_needs_a_master_key() -> None:
    message = refusal(DATABASE_URL=URL)

    assert message.startswith(
        "SPARKLEDGER_DATABASE_URL is set, but SPARKLEDGER_MASTER_KEY is not: give 32 random bytes"
    )
    assert "hunter2" not in message


def test_a_process_that_unseals_nothing_needs_no_master_key() -> None:
    assert load_settings({"SPARKLEDGER_DATABASE_URL": URL}, unseals=False).master_key is None


@pytest.mark.parametrize("name", ["MIGRATION_DATABASE_URL", "WORKER_DATABASE_URL"])
def test_another_login_needs_a_database_url(name: str) -> None:
    assert refusal(**{name: URL}).startswith(f"SPARKLEDGER_{name} is set, but SPARKLEDGER_DATABASE_URL is not: ")


def test_worker_and_migrations_log_in_as_the_api_does_unless_told_otherwise() -> None:
    given = {"SPARKLEDGER_DATABASE_URL": URL, "SPARKLEDGER_MASTER_KEY": MASTER_KEY}
    plain = load_settings(given)
    apart = load_settings(
        given | {"SPARKLEDGER_WORKER_DATABASE_URL": "user=worker", "SPARKLEDGER_MIGRATION_DATABASE_URL": "user=owner"}
    )

    with cli.database(plain) as place:
        assert place == cli.Place(owner=URL, api=URL, worker=URL)
    with cli.database(apart) as place:
        assert place == cli.Place(owner="user=owner", api=URL, worker="user=worker")


def test_a_kafka_login_is_complete_and_is_never_silently_left_out() -> None:
    assert refusal(KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_SASL_USERNAME="u").startswith(
        "SPARKLEDGER_KAFKA_SECURITY_PROTOCOL is SASL_SSL, but SPARKLEDGER_KAFKA_SASL_PASSWORD is not set: "
    )
    unused = refusal(KAFKA_SECURITY_PROTOCOL="SSL", KAFKA_SASL_PASSWORD="hunter2")
    assert unused.startswith("SPARKLEDGER_KAFKA_SASL_PASSWORD is set, but SPARKLEDGER_KAFKA_SECURITY_PROTOCOL is SSL")
    assert "hunter2" not in unused


ISSUER = {"issuer": "https://id.example", "audience": "sparkledger", "ledger": "main", "role": "auditor"}


def test_issuers_are_read_from_a_json_list() -> None:
    settings = load_settings({"SPARKLEDGER_OIDC_ISSUERS": json.dumps([ISSUER])})
    assert [issuer.model_dump(exclude_unset=True) for issuer in settings.oidc_issuers] == [ISSUER]


def test_the_issuers_that_the_documentation_shows_are_taken() -> None:
    page = Path(__file__).parents[2] / "docs/access.md"
    shown = page.read_text().partition("```json\n")[2].partition("```")[0]
    (issuer,) = load_settings({"SPARKLEDGER_OIDC_ISSUERS": shown}).oidc_issuers
    assert (issuer.ledger, issuer.role_claim) == ("main", "realm_access.roles")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("https://id.example", ""),
        (ISSUER, ""),
        ([ISSUER, ISSUER], ""),
        ([ISSUER] * 21, ""),
        ([ISSUER | {"unknown": 1}], "at 0/unknown"),
        ([ISSUER | {"issuer": "http://id.example"}], "at 0/issuer: A URL must start with https://"),
        ([ISSUER | {"issuer": "https://user@id.example"}], "at 0/issuer: A URL must have a host, and neither a user"),
        ([ISSUER | {"jwks_uri": "ftp://id.example/keys"}], "at 0/jwks_uri: A URL must start with https://"),
        ([ISSUER | {"audience": []}], "at 0: It needs an audience."),
        ([ISSUER | {"ledger": None}], "at 0: It needs either ledger, or ledger_claim and ledgers together."),
        ([ISSUER | {"role_claim": "groups"}], "at 0: It needs either role, or role_claim and roles together."),
        ([ISSUER | {"roles": {"a": "admin"}}], "at 0: It needs either role, or role_claim and roles together."),
        ([ISSUER | {"role": "creator"}], "at 0: The role creator needs creator_ids_claim."),
        ([ISSUER | {"role": "brand"}], "at 0: The role brand needs brand_ids_claim"),
    ],
)
def test_a_wrong_issuer_is_refused_with_where_and_why(value: object, where: str) -> None:
    message = refusal(OIDC_ISSUERS=value if isinstance(value, str) else json.dumps(value))
    assert message.startswith("SPARKLEDGER_OIDC_ISSUERS cannot be ")
    assert where in message
    assert message.endswith("give a JSON list of at most 20 issuers, each once, as docs/access.md shows.")


def test_the_table_lists_every_setting_with_a_default_that_reads_back_as_itself() -> None:
    table = list(settings_table())

    assert [row[0] for row in table] == [f"SPARKLEDGER_{name.upper()}" for name in Settings.model_fields]
    assert all(description.endswith(".") for _, _, description in table)
    assert load_settings({name: default for name, default, _ in table}) == load_settings({})


def test_certificates_without_encryption_are_never_silently_left_out() -> None:
    assert refusal(KAFKA_SSL_CAFILE="ca.pem").startswith(
        "SPARKLEDGER_KAFKA_SSL_CAFILE is set, but SPARKLEDGER_KAFKA_SECURITY_PROTOCOL is PLAINTEXT, which"
    )
    assert refusal(KAFKA_SECURITY_PROTOCOL="SSL", KAFKA_SSL_KEYFILE="ours.key").startswith(
        "only one of SPARKLEDGER_KAFKA_SSL_CERTFILE and SPARKLEDGER_KAFKA_SSL_KEYFILE is set"
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"CA": "missing.pem"},
            "SPARKLEDGER_KAFKA_SSL_CAFILE names a file that cannot be read (No such file or direct",
        ),
        (
            {"CA": "folder.pem"},
            "SPARKLEDGER_KAFKA_SSL_CAFILE names a file that cannot be read (Is a directory): name a",
        ),
        (
            {"CA": "garbage.pem"},
            "SPARKLEDGER_KAFKA_SSL_CAFILE names a file without a certificate: name a PEM file.",
        ),
        ({"CA": "empty.pem"}, "SPARKLEDGER_KAFKA_SSL_CAFILE names a file without a certificate: name a PEM file."),
        ({"CERT": "missing.pem"}, "SPARKLEDGER_KAFKA_SSL_CERTFILE names a file that cannot be read (No such file or d"),
        ({"CERT": "garbage.pem"}, "SPARKLEDGER_KAFKA_SSL_CERTFILE names a file without a certificate: name a PEM "),
        ({"CERT": "ours.key"}, "SPARKLEDGER_KAFKA_SSL_CERTFILE names a file without a certificate: name a PEM fil"),
        ({"KEY": "missing.key"}, "SPARKLEDGER_KAFKA_SSL_KEYFILE names a file that cannot be read (No such file or dir"),
        *(
            ({"KEY": name}, "SPARKLEDGER_KAFKA_SSL_KEYFILE names a file without the key of the certificate in SPARKL")
            for name in ("garbage.pem", "empty.pem", "another.key", "encrypted.key", "ours.pem")
        ),
    ],
)
def test_a_file_that_no_connection_can_be_made_with_is_refused_at_the_start(
    certificates: Path, files: dict[str, str], said: str
) -> None:
    named = {"CA": "ca.pem", "CERT": "ours.pem", "KEY": "ours.key"} | files
    variables = {f"KAFKA_SSL_{kind}FILE": str(certificates / name) for kind, name in named.items()}

    message = refusal(KAFKA_SECURITY_PROTOCOL="SSL", **variables)

    assert message.startswith(said)
    assert "hunter2" not in message


def test_proxies_are_addresses_or_networks() -> None:
    assert load_settings({"SPARKLEDGER_TRUSTED_PROXIES": "10.1.2.3, 10.2.0.0/16"}).trusted_proxies == (
        "10.1.2.3",
        "10.2.0.0/16",
    )
    for wrong in ("*", "proxy.example", "none,10.1.2.3", "10.1.2.3/16"):
        assert "SPARKLEDGER_TRUSTED_PROXIES" in refusal(TRUSTED_PROXIES=wrong)


def test_authorities_that_webhooks_trust_are_read_at_the_start(certificates: Path) -> None:
    named = {"SPARKLEDGER_WEBHOOK_CA_FILE": str(certificates / "ca.pem")}
    assert load_settings(named).webhook_ca_file == certificates / "ca.pem"
    assert refusal(WEBHOOK_CA_FILE=str(certificates / "garbage.pem")).startswith(
        "SPARKLEDGER_WEBHOOK_CA_FILE names a file without a certificate: name a PEM file"
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"KAFKA_COMPRESSION": "snappy"},
            "SPARKLEDGER_KAFKA_COMPRESSION is snappy, but the Python package snappy is not installed",
        ),
        (
            {"KAFKA_OAUTH_TOKEN_URL": "https://login.example/token"},
            "SPARKLEDGER_KAFKA_OAUTH_TOKEN_URL is set, but the login is not OAUTHBEARER",
        ),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
                "KAFKA_SASL_USERNAME": "u",
                "KAFKA_SASL_PASSWORD": "p",
            },
            "SPARKLEDGER_KAFKA_SASL_MECHANISM is OAUTHBEARER, but SPARKLEDGER_KAFKA_OAUTH_TOKEN_URL is not set",
        ),
        ({"KAFKA_OAUTH_TOKEN_URL": "http://login.example/token"}, "SPARKLEDGER_KAFKA_OAUTH_TOKEN_URL"),
    ],
)
def test_what_kafka_cannot_be_reached_with_is_refused_at_the_start(variables: dict[str, str], said: str) -> None:
    assert refusal(**variables).startswith(said)


def test_a_mail_server_is_named_with_the_address_that_messages_come_from() -> None:
    given = {
        "SPARKLEDGER_SMTP_URL": "smtp://desk:p%40ss@mail.example",
        "SPARKLEDGER_SMTP_FROM": "Alerts@Ledger.example",
    }
    assert mail_server(load_settings(given)) == MailServer(
        "mail.example", 587, "starttls", "Alerts@Ledger.example", "desk", "p@ss"
    )
    assert load_settings(given).mail_domains == {"ledger.example"}
    assert load_settings(given | {"SPARKLEDGER_ALERT_DOMAINS": "Brand.example,b.example"}).mail_domains == {
        *("brand.example", "b.example")
    }
    assert mail_server(load_settings({})) is None


@pytest.mark.parametrize(
    ("url", "port", "security"),
    [
        ("smtps://mail.example", 465, "tls"),
        ("smtps://mail.example:10465", 10465, "tls"),
        ("smtp://mail.example:25", 25, "starttls"),
        ("smtp://127.0.0.1:2525", 2525, "none"),
        ("smtp://[::1]", 587, "none"),
        ("smtp://localhost", 587, "none"),
        ("smtp://localhost.evil.example", 587, "starttls"),
    ],
)
def test_only_a_mail_server_on_this_machine_is_spoken_to_without_encryption(url: str, port: int, security: str) -> None:
    server = mail_server(load_settings({"SPARKLEDGER_SMTP_URL": url, "SPARKLEDGER_SMTP_FROM": "a@b.example"}))
    assert server is not None
    assert (server.port, server.security) == (port, security)


@pytest.mark.parametrize(
    "url",
    ["mail.example", "http://mail.example", "smtp://", "smtp://user@mail.example", "smtp://m.example:x", "smtp://m/x"],
)
def test_a_mail_server_is_a_url_and_its_password_is_never_shown(url: str) -> None:
    said = refusal(SMTP_URL=url, SMTP_FROM="a@b.example")
    assert said.startswith("SPARKLEDGER_SMTP_URL is not valid (its value is not shown): give smtps://")


def test_what_alerts_are_mailed_by_is_set_together_and_well_formed(tmp_path: Path) -> None:
    assert refusal(SMTP_FROM="a@b.example").startswith("SPARKLEDGER_SMTP_FROM is set, but SPARKLEDGER_SMTP_URL is not")
    assert refusal(SMTP_URL="smtp://localhost").startswith("SPARKLEDGER_SMTP_URL is set, but SPARKLEDGER_SMTP_FROM")
    assert refusal(SMTP_FROM="a@b\nBcc: c@d").startswith("SPARKLEDGER_SMTP_FROM cannot be")
    assert refusal(ALERT_DOMAINS="*,brand.example").startswith("SPARKLEDGER_ALERT_DOMAINS cannot be")
    assert refusal(SMTP_CA_FILE=str(tmp_path / "none")).startswith("SPARKLEDGER_SMTP_CA_FILE names a file")
