"""Settings: one environment variable each, all of them read here and nowhere else.

A wrong, missing or misspelt variable stops the start with one line that names it, says what is wrong and what to do.
The texts beside each setting make that line, and the table in docs/running.md.
"""

from __future__ import annotations

import base64
import difflib
import importlib.util
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import orjson
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from infra.auth.oidc_issuers import MAX_ISSUERS, Issuer
from infra.servers import read_servers

PREFIX: Final = "SPARKLEDGER_"
MASTER_KEY_BYTES: Final = 32
ADMIN_KEY: Final = re.compile(r"[!-~]{1,512}")
ADMIN_KEY_MIN_CHARACTERS: Final = 32
ALLOWED_DAYS_MAX: Final = 3650
REQUESTS_PER_SECOND_MAX: Final = 10_000_000

# Variables with the prefix that others read: tests, docker-compose, supervised children.
READ_ELSEWHERE: Final = frozenset(f"{PREFIX}{name}" for name in ("FAULTS", "OWNER_PASSWORD", "PARENT_FD", "READY_FD"))
READ_BY_TESTS: Final = f"{PREFIX}TEST_"

# The origin of a log has 255 bytes at most, and ends with the ledger's name and a number.
_LOG_NAME: Final = r"^[a-z0-9.-]{1,64}(:[0-9]{1,5})?(/[A-Za-z0-9._~-]{1,16}){0,3}$"
_BROKER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_LEDGER: Final = r"[A-Za-z0-9._:@-]{1,128}"
# The name of a witness, the rest of its verifier key, and its URL.
_WITNESS: Final = re.compile(r"([^\s+]{1,255})\+[0-9a-f]{8}\+[A-Za-z0-9+/]+={0,2} +https?://\S+")
# As a browser sends it: no path, no slash at the end, lower case.
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_DOMAIN: Final = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SENDER: Final = r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$"
_LEDGER_TO_TOPICS: Final = re.compile(r"([A-Za-z0-9._:@*?\[\]!-]{1,128})=[A-Za-z0-9._-]{1,200}")
_COMPRESSION_PACKAGES: Final = {"zstd": "zstandard", "lz4": "lz4", "snappy": "snappy"}
_CERTIFICATE_FILES: Final = ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile")
_DATABASE: Final = "give a libpq connection string, such as postgresql://sparkledger_api:…@db:5432/sparkledger"


class SettingsError(Exception):
    """One line for the operator: which variable is wrong, why, and what to do."""


def _setting(default: object, description: str, expects: str, **constraints: Any) -> Any:
    """Declare a setting; `expects` ends the sentence that refuses a wrong value."""
    return Field(default, description=description, json_schema_extra={"expects": expects}, **constraints)


# -- Checks of one value. A ValueError refuses it; the message comes from the setting's `expects`.


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _from_json(value: object) -> object:
    return orjson.loads(value) if isinstance(value, str) else value


def _conninfo(url: SecretStr) -> SecretStr:
    try:
        conninfo_to_dict(url.get_secret_value())
    except ProgrammingError:
        # libpq's own message may quote the password.
        raise ValueError from None
    return url


def _master_key(key: SecretStr) -> SecretStr:
    decoded = base64.b64decode(key.get_secret_value(), validate=True)
    if len(decoded) != MASTER_KEY_BYTES or not any(decoded):
        raise ValueError
    return key


def _admin_key(key: SecretStr) -> SecretStr:
    # A key that does not fit an Authorization header would lock everybody out.
    if ADMIN_KEY.fullmatch(key.get_secret_value()) is None:
        raise ValueError
    return key


def _directory(path: Path) -> Path:
    path = path.expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError
    return path


def _days(days: tuple[int, ...]) -> tuple[int, ...]:
    if not days or not all(1 <= day <= ALLOWED_DAYS_MAX for day in days):
        raise ValueError
    return tuple(sorted(set(days)))


def _networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    if networks != ("none",):
        for network in networks:
            ip_network(network)
    if not networks:
        raise ValueError
    return networks


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    if not origins or (origins != ("none",) and not all(_ORIGIN.fullmatch(origin) for origin in origins)):
        raise ValueError
    return origins


def _witnesses(witnesses: tuple[str, ...]) -> tuple[str, ...]:
    names = [found[1] for found in map(_WITNESS.fullmatch, witnesses) if found]
    if len(set(names)) < len(witnesses):
        raise ValueError
    return witnesses


def _issuers(issuers: tuple[Issuer, ...]) -> tuple[Issuer, ...]:
    if len({issuer.issuer for issuer in issuers}) < len(issuers):
        raise ValueError
    return issuers


def _brokers(brokers: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_BROKER.fullmatch(broker) for broker in brokers):
        raise ValueError
    return brokers


def _ledgers(pairs: tuple[str, ...]) -> tuple[str, ...]:
    ledgers = {match[1] for pair in pairs if (match := _LEDGER_TO_TOPICS.fullmatch(pair))}
    if not pairs or len(ledgers) < len(pairs):
        raise ValueError
    return pairs


def _public_logs(ledgers: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(ledgers)) < len(ledgers) or not all(re.fullmatch(_LEDGER, ledger) for ledger in ledgers):
        raise ValueError
    return ledgers


def _public_url(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    return url.rstrip("/")


def _token_url(url: str | None) -> str | None:
    parts = urlsplit(url or "https://x")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}):
        raise ValueError
    if not parts.hostname:
        raise ValueError
    return url


def _smtp_url(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    # `port` refuses what is no number.
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError
    if parts.path not in {"", "/"} or (parts.username is None) != (parts.password is None):
        raise ValueError
    return url


def _domains(domains: tuple[str, ...]) -> tuple[str, ...]:
    domains = tuple(domain.lower() for domain in domains)
    if domains != ("*",) and not all(_DOMAIN.fullmatch(domain) for domain in domains):
        raise ValueError
    return domains


def _tsa_url(url: str | None) -> str | None:
    # A stamp is signed, so that it may travel in clear.
    parts = urlsplit(url or "https://x")
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or parts.fragment:
        raise ValueError
    return url


def _copies(copies: int) -> int:
    if copies == 0:
        raise ValueError
    return copies


_Conninfo = Annotated[SecretStr, AfterValidator(_conninfo)]
_MasterKey = Annotated[SecretStr, AfterValidator(_master_key)]
_Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
_Networks = Annotated[_Texts, AfterValidator(_networks)]


class Settings(BaseModel):
    """The settings, checked. Make them with `load_settings`, which turns every refusal into one clear line."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    database_url: _Conninfo | None = _setting(
        None,
        (
            "The API's connection to PostgreSQL 15 or newer. Default: an embedded PostgreSQL in `postgres` under "
            "the data directory."
        ),
        _DATABASE,
    )
    migration_database_url: _Conninfo | None = _setting(
        None, "The table owner's connection, for `migrate`. Default: the database URL.", _DATABASE
    )
    worker_database_url: _Conninfo | None = _setting(
        None, "The worker's connection. Default: the database URL.", _DATABASE
    )
    databases: Path | None = _setting(
        None,
        "Instead of the database URL: a file with the servers of an installation that has several, a line "
        "`name = URL` for each. Only its owner may have access. Each ledger is on one of them; `main` begins on the "
        "first.",
        "name a file that this program can read, with one server a line",
    )
    migration_databases: Path | None = _setting(
        None,
        "The same for the table owner's connections. Default: those of SPARKLEDGER_DATABASES.",
        "name a file that this program can read, with one server a line",
    )
    worker_databases: Path | None = _setting(
        None,
        "The same for the worker's connections. Default: those of SPARKLEDGER_DATABASES.",
        "name a file that this program can read, with one server a line",
    )
    api_password: SecretStr | None = _setting(
        None, "The password that `migrate` sets for the role `sparkledger_api`.", "give a password"
    )
    worker_password: SecretStr | None = _setting(
        None, "The password that `migrate` sets for the role `sparkledger_worker`.", "give a password"
    )
    data_dir: Annotated[Path, AfterValidator(_directory)] = _setting(
        Path(".sparkledger"),
        "The directory of the embedded PostgreSQL and of generated keys.",
        "name a directory, or a path where one can be created",
    )
    anchor_file: Path | None = _setting(
        None,
        "The file in which the worker notes the last event of each ledger, to notice if the database loses events. "
        "Default: `anchor.json` in the data directory. Keep it apart from the database's backups.",
        "name a file that the worker can write",
    )
    host: str = _setting(
        "127.0.0.1",
        "The address that the API listens on.",
        "give a host name or an IP address",
        pattern=r"^[A-Za-z0-9.:_-]+$",
    )
    port: int = _setting(
        8080,
        "The port that the API listens on. 0 picks a free port.",
        "give a whole number from 0 to 65535",
        ge=0,
        le=65535,
    )
    metrics_port: int | None = _setting(
        None,
        "A port for `/metrics` only, on the same address. Default: `/metrics` is on the API's port.",
        "give a whole number from 1 to 65535",
        ge=1,
        le=65535,
    )
    admin_key: Annotated[SecretStr, AfterValidator(_admin_key)] | None = _setting(
        None,
        "The administrator's API key, at least 32 characters. Default: generated on the first start and shown once. "
        "Another value replaces it, also a generated one.",
        f"give a random string of at least {ADMIN_KEY_MIN_CHARACTERS} characters, all visible ASCII and 512 at most, "
        "such as `openssl rand -hex 32` prints",
        min_length=ADMIN_KEY_MIN_CHARACTERS,
    )
    master_key: _MasterKey | None = _setting(
        None,
        "The key that wraps all other keys: 32 random bytes in base64. Default: generated in the data "
        "directory. With a database URL, this or SPARKLEDGER_MASTER_KEY_FILE is required.",
        "give 32 random bytes in base64, such as `openssl rand -base64 32` prints",
    )
    master_key_previous: _MasterKey | None = _setting(
        None,
        "The previous master key, needed until `sparkledger master-key rotate` is done.",
        "give the previous SPARKLEDGER_MASTER_KEY, 32 bytes in base64",
    )
    master_key_file: Path | None = _setting(
        None,
        (
            "A file with the master key, used instead of SPARKLEDGER_MASTER_KEY. Only its owner may have access. "
            "Previous master keys follow, one a line."
        ),
        "name a file that this program can read, with one key a line",
    )
    erasure_key_dir: Annotated[Path, AfterValidator(_directory)] | None = _setting(
        None,
        (
            "The directory of the erasure keys, without which no secret or note can be read. API, workers and commands "
            "must share it, and it must survive restarts. Default: `erasure-keys` in the data directory."
        ),
        "name a directory, or a path where one can be created",
    )
    allowed_days: Annotated[tuple[int, ...], BeforeValidator(_split), AfterValidator(_days)] = _setting(
        (7, 30, 60, 365),
        "The allowed lengths of a code's window, in days.",
        f"give whole numbers of days from 1 to {ALLOWED_DAYS_MAX}, separated by commas",
    )
    extend_after_expiry: bool = _setting(
        default=True, description="Whether an expired code can be extended.", expects="give true or false"
    )
    codes_without_secret: bool = _setting(
        default=False,
        description="Whether imports record a code whose secret is not known, from a row with a video and an end.",
        expects="give true or false",
    )
    video_ids: Literal["tiktok", "any"] = _setting(
        "tiktok",
        "Which video ids are accepted: `tiktok` for 15 to 20 digits, or `any` for ids of other platforms too. Links to "
        "TikTok posts are always reduced to the id.",
        "give tiktok or any",
    )
    requests_per_second: int = _setting(
        100_000,
        "How many requests per second one API key can make.",
        f"give a whole number from 1 to {REQUESTS_PER_SECOND_MAX}",
        ge=1,
        le=REQUESTS_PER_SECOND_MAX,
    )
    connections_per_address: int = _setting(
        1_500,
        "How many of the 3,000 connections of an API process one address, or one /64 network of IPv6, can have. The "
        "addresses of SPARKLEDGER_TRUSTED_PROXIES have no limit of their own.",
        "give a whole number from 1 to 3000",
        ge=1,
        le=3_000,
    )
    trusted_proxies: _Networks = _setting(
        ("none",),
        "The proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted, for the addresses in the "
        "access log, or `none`. List only proxies that overwrite these headers.",
        "give addresses or networks such as 10.1.2.3 or 10.1.0.0/16, several separated by commas, or none",
    )
    cors_origins: Annotated[_Texts, AfterValidator(_origins)] = _setting(
        ("none",),
        "The origins whose pages can send requests and read the responses in a browser (CORS), or `none`.",
        "give origins such as https://desk.example or http://localhost:3000, several separated by commas, or none",
    )
    webhook_networks: _Networks = _setting(
        ("127.0.0.0/8", "::1/128"),
        "The networks, besides public addresses, that webhooks and alerts can be sent to, or `none`. List only "
        "networks of your own receivers: everyone with a key, but creators and brands, can cause requests to them.",
        "give networks such as 10.1.0.0/16 or 10.1.2.3/32, several separated by commas, or none",
    )
    public_url: Annotated[str | None, AfterValidator(_public_url)] = _setting(
        None,
        "The URL at which others reach the API, such as https://ledger.example. Then messages name the JSON Schema of "
        "their data, which the API serves there.",
        "give an http or https URL without a query",
    )
    webhook_ca_file: Path | None = _setting(
        None,
        "A file with the CA certificates that webhooks trust besides the well-known ones, in PEM, for receivers with "
        "certificates of your own authority.",
        "name a readable file with certificates in PEM",
    )
    smtp_url: Annotated[SecretStr, AfterValidator(_smtp_url)] | None = _setting(
        None,
        "The mail server that alerts are handed to: `smtps://user:password@host` with TLS from the beginning (port "
        "465), or `smtp://user:password@host` with STARTTLS (port 587), which only a server on this machine can do "
        "without. Default: alerts are not sent by e-mail.",
        "give smtps://user:password@host:port or smtp://user:password@host:port, with what is special in a password "
        "percent-encoded",
    )
    smtp_from: str | None = _setting(
        None,
        "The address that e-mails come from.",
        "give an e-mail address, such as alerts@ledger.example",
        pattern=_SENDER,
        max_length=254,
    )
    smtp_ca_file: Path | None = _setting(
        None,
        "A PEM file with the CA certificates that the mail server may have besides the well-known ones.",
        "name a readable file with certificates in PEM",
    )
    alert_domains: Annotated[_Texts, AfterValidator(_domains)] = _setting(
        (),
        "The domains that alerts can be mailed to, or `*` for all. Everyone with a key can have alerts mailed there. "
        "Default: the domain of SPARKLEDGER_SMTP_FROM.",
        "give domains such as brand.example, several separated by commas, or *",
    )
    oidc_issuers: Annotated[tuple[Issuer, ...], BeforeValidator(_from_json), AfterValidator(_issuers)] = _setting(
        (),
        "The OpenID Connect issuers whose bearer tokens are accepted, and the meaning of their claims: a "
        "JSON list, as shown in `docs/access.md`. Default: only API keys are accepted.",
        f"give a JSON list of at most {MAX_ISSUERS} issuers, each once, as docs/access.md shows",
        max_length=MAX_ISSUERS,
    )
    log_name: str | None = _setting(
        None,
        "The beginning of the names of signed logs for verifiers: where they are served, without the scheme. A log "
        "keeps the name that it began with. Default: a name that no other installation has.",
        "give a host with a path, such as ledger.example/log",
        pattern=_LOG_NAME,
    )
    public_logs: Annotated[_Texts, AfterValidator(_public_logs)] = _setting(
        (),
        "The ledgers whose signed log everyone can read, without a key. Everyone then sees how many events they have, "
        "and nothing else of them. The sealer reads this setting. Default: only keys of the ledger can.",
        "give the names of ledgers, separated by commas, each once",
    )
    signing_dir: Annotated[Path, AfterValidator(_directory)] | None = _setting(
        None,
        "The sealer's directory: the signing keys of logs, and which checkpoint of each it has signed last. A copy of "
        "the database must not bring it back, so it is best on another disk. Default: `signing` under the data "
        "directory.",
        "name a directory, or a path where one can be created",
    )
    witnesses: Annotated[_Texts, AfterValidator(_witnesses)] = _setting(
        (),
        "The witnesses that the sealer asks to sign checkpoints: the verifier key of each and its URL, separated by a "
        "blank. Default: no witness signs.",
        "give KEY URL, several separated by commas, each witness once; a key has the form name+id+key, and the URL "
        "begins with https:// or http://",
    )
    tsa_url: Annotated[str | None, AfterValidator(_tsa_url)] = _setting(
        None,
        "The URL of the time-stamping authority (RFC 3161) that stamps a checkpoint of each log once an hour. Evidence "
        "bundles have the stamps. Default: none.",
        "give a URL that begins with https:// or http://, without a user name",
    )
    kafka_bootstrap_servers: Annotated[_Texts, AfterValidator(_brokers)] = _setting(
        (),
        "The Kafka brokers to publish to, as host:port, separated by commas. Default: nothing is published to Kafka.",
        "give host:port, several separated by commas",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT",
        "The protocol for the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
        "give PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = _setting(
        "SCRAM-SHA-512",
        "The login mechanism for the brokers: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.",
        "give PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER",
    )
    kafka_sasl_username: str | None = _setting(
        None, "The user name for the brokers; for OAUTHBEARER the client's id.", "give a user name"
    )
    kafka_sasl_password: SecretStr | None = _setting(
        None, "The password for the brokers; for OAUTHBEARER the client's secret.", "give a password"
    )
    kafka_oauth_token_url: Annotated[str | None, AfterValidator(_token_url)] = _setting(
        None,
        "For OAUTHBEARER: where tokens come from, by the client credentials grant.",
        "give an https URL, or an http URL of this machine",
    )
    kafka_oauth_scope: str | None = _setting(
        None, "For OAUTHBEARER: the scope of the tokens, if they need one.", "give the name of a scope"
    )
    kafka_compression: Literal["auto", "none", "gzip", "snappy", "lz4", "zstd"] = _setting(
        "auto",
        "The compression of what is published: none, gzip, snappy, lz4, zstd, or auto: zstd or lz4 if its Python "
        "package (`zstandard`, `lz4`) is installed, otherwise none.",
        "give auto, none, gzip, snappy, lz4 or zstd",
    )
    kafka_ssl_cafile: Path | None = _setting(
        None,
        "A PEM file with the CA certificates of the brokers. Default: the system's CA certificates.",
        "name a PEM file",
    )
    kafka_ssl_certfile: Path | None = _setting(
        None, "A PEM file with the client certificate, for brokers that require one.", "name a PEM file"
    )
    kafka_ssl_keyfile: Path | None = _setting(
        None, "A PEM file with the client certificate's unencrypted key.", "name a PEM file"
    )
    kafka_ledgers: Annotated[_Texts, AfterValidator(_ledgers)] = _setting(
        ("main=sparkledger",),
        "The ledgers to publish, and the prefix of their topics: `main=sparkledger` publishes the ledger "
        "`main` to `sparkledger.code-events.v1` and its companion topics, `*=…` every ledger that is not "
        "listed. A name can be a pattern with `*`, `?` and `[…]`, such as `acme-*=acme`; names come before "
        "patterns, and the first pattern counts. Readers of a topic see all its ledgers, so use one prefix for "
        "each organisation.",
        "give ledger=prefix, several separated by commas, each ledger once; a prefix is 1 to 200 letters, digits, "
        "dots, underscores or hyphens",
    )
    kafka_replication_factor: Annotated[int, AfterValidator(_copies)] = _setting(
        -1,
        "The replication factor of created topics. -1 uses the brokers' default.",
        "give a whole number from 1 to 32, or -1",
        ge=-1,
        le=32,
    )

    @property
    def mail_domains(self) -> frozenset[str]:
        """The domains that alerts can be mailed to."""
        own = () if self.smtp_from is None else (self.smtp_from.rpartition("@")[2].lower(),)
        return frozenset(self.alert_domains or own)

    @model_validator(mode="after")
    def _check_together(self, info: ValidationInfo) -> Self:
        for problem in _problems_together(self, unseals=(info.context or {}).get("unseals", True)):
            raise ValueError(problem)
        return self


def variable(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return f"{PREFIX}{name.upper()}"


def load_settings(environ: Mapping[str, str] | None = None, *, unseals: bool = True) -> Settings:
    """Read the settings from `environ`, by default this process's. An empty value counts as absent.

    Args:
        environ: the variables.
        unseals: whether the process needs the master key.

    Raises:
        SettingsError: something is wrong; the message names the first problem, and never contains a secret.

    """
    environ = os.environ if environ is None else environ
    _refuse_unknown(environ)
    given = {name: environ[variable(name)] for name in Settings.model_fields if environ.get(variable(name))}
    try:
        return Settings.model_validate(given, context={"unseals": unseals})
    except ValidationError as error:
        raise SettingsError(_one_line(error, given)) from None


def settings_table() -> Iterator[tuple[str, str, str]]:
    """Yield variable, default and description of every setting, in order; the default is "" where there is none."""
    for name, field in Settings.model_fields.items():
        yield variable(name), _as_written(field.default), field.description or ""


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name.startswith(READ_BY_TESTS) or name in READ_ELSEWHERE:
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
            raise SettingsError(f"{name} is not a setting. Did you mean {nearest}? Rename it, or unset it.")


def _one_line(error: ValidationError, given: Mapping[str, str]) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=True)[0]
    if not first["loc"]:
        return f"{first['ctx']['error']}."
    name = str(first["loc"][0])
    field = Settings.model_fields[name]
    # A secret is not shown, nor anything that would break the line or flood it.
    shown = given.get(name, "")
    secret = "SecretStr" in str(field.annotation)
    wrong = "is not valid (its value is not shown)" if secret else f"cannot be {shown[:60]!r}"
    if name == "oidc_issuers" and first["loc"][1:]:
        # A list of objects is too long to search for the mistake, so the message says where it is.
        wrong += f" (at {'/'.join(map(str, first['loc'][1:]))}: {first['msg'].removeprefix('Value error, ')})"
    expects = field.json_schema_extra["expects"] if isinstance(field.json_schema_extra, dict) else ""
    default = _as_written(field.default)
    otherwise = f", or leave it out for {default}" if default else ""
    return f"{variable(name)} {wrong}: {expects}{otherwise}."


def _problems_together(settings: Settings, *, unseals: bool) -> Iterator[str]:
    """Yield what is wrong with settings that depend on each other, the most important problem first."""
    if settings.metrics_port is not None and settings.metrics_port == settings.port:
        yield (
            f"{variable('metrics_port')} is the same port as {variable('port')}: give another one, or unset it to have "
            "`/metrics` on the API's port"
        )
    if (settings.smtp_url is None) != (settings.smtp_from is None):
        given, absent = ("smtp_url", "smtp_from") if settings.smtp_from is None else ("smtp_from", "smtp_url")
        yield f"{variable(given)} is set, but {variable(absent)} is not: set both, or neither to send no e-mail"
    yield from _servers_problems(settings)
    yield from _login_problems(settings, unseals=unseals)
    yield from _master_key_problems(settings)
    yield from _kafka_problems(settings)
    yield from _certificate_problems(settings)


def _login_problems(settings: Settings, *, unseals: bool) -> Iterator[str]:
    url, key = variable("database_url"), variable("master_key")
    for name in ("migration_database_url", "worker_database_url"):
        if getattr(settings, name) is not None and settings.database_url is None:
            yield (f"{variable(name)} is set, but {url} is not: set both, or neither to use the embedded PostgreSQL")
    given = settings.master_key is not None or settings.master_key_file is not None
    at = url if settings.databases is None else variable("databases")
    if (settings.database_url is not None or settings.databases is not None) and unseals and not given:
        yield (
            f"{at} is set, but {key} is not: give 32 random bytes in base64, such as `openssl rand -base64 32` "
            "prints, and keep them safe, because sealed data can never be read without them"
        )


def _servers_problems(settings: Settings) -> Iterator[str]:
    databases = variable("databases")
    for name in ("database_url", "migration_database_url", "worker_database_url"):
        if settings.databases is not None and getattr(settings, name) is not None:
            yield f"{databases} and {variable(name)} are both set: set only one of them"
    servers: list[str] | None = None
    for name in ("databases", "migration_databases", "worker_databases"):
        path = getattr(settings, name)
        if path is None:
            continue
        if settings.databases is None:
            yield f"{variable(name)} is set, but {databases} is not: set both"
        try:
            found = list(read_servers(path))
        except ValueError as error:
            yield f"{variable(name)} {error}"
            continue
        if servers is not None and found != servers:
            yield f"{variable(name)} names other servers than {databases}, or in another order: name the same ones"
        servers = servers or found


def _master_key_problems(settings: Settings) -> Iterator[str]:
    key = variable("master_key")
    if settings.master_key is not None and settings.master_key_file is not None:
        yield f"{key} and {variable('master_key_file')} are both set: set only one of them"
    if settings.master_key_previous is not None and settings.master_key is None:
        yield (
            f"{variable('master_key_previous')} is set, but {key} is not: set both. In a master key file, previous "
            "keys follow the current one"
        )


def _kafka_problems(settings: Settings) -> Iterator[str]:
    protocol = f"{variable('kafka_security_protocol')} is {settings.kafka_security_protocol}"
    login = settings.kafka_security_protocol.startswith("SASL_")
    encryption = settings.kafka_security_protocol.endswith("SSL")
    for name in ("kafka_sasl_username", "kafka_sasl_password"):
        given = getattr(settings, name) is not None
        if login and not given:
            yield f"{protocol}, but {variable(name)} is not set: set it, or choose PLAINTEXT or SSL"
        if given and not login:
            yield f"{variable(name)} is set, but {protocol}, which has no login: choose SASL_SSL or SASL_PLAINTEXT"
    wants_tokens = login and settings.kafka_sasl_mechanism == "OAUTHBEARER"
    token_url = variable("kafka_oauth_token_url")
    if wants_tokens and settings.kafka_oauth_token_url is None:
        yield f"{variable('kafka_sasl_mechanism')} is OAUTHBEARER, but {token_url} is not set: set it"
    if settings.kafka_oauth_token_url is not None and not wants_tokens:
        yield f"{token_url} is set, but the login is not OAUTHBEARER: choose that mechanism, or do not set it"
    package = _COMPRESSION_PACKAGES.get(settings.kafka_compression)
    if package is not None and importlib.util.find_spec(package) is None:
        yield (
            f"{variable('kafka_compression')} is {settings.kafka_compression}, but the Python package {package} is "
            "not installed: install it, or choose gzip or none"
        )
    for name in _CERTIFICATE_FILES:
        if getattr(settings, name) is not None and not encryption:
            yield f"{variable(name)} is set, but {protocol}, which has no encryption: choose SSL or SASL_SSL"
    if (settings.kafka_ssl_certfile is None) != (settings.kafka_ssl_keyfile is None):
        certificate, key = variable("kafka_ssl_certfile"), variable("kafka_ssl_keyfile")
        yield f"only one of {certificate} and {key} is set: set both, or neither"


def _certificate_problems(settings: Settings) -> Iterator[str]:
    """Yield the files that no connection can be made with; later they would look like brokers or receivers away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificate, key = settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile
    for name in (*_CERTIFICATE_FILES, "webhook_ca_file", "smtp_ca_file"):
        path = getattr(settings, name)
        try:
            if path is not None:
                path.read_bytes()
                if name != "kafka_ssl_keyfile":
                    context.load_verify_locations(path)
        except ssl.SSLError:
            yield f"{variable(name)} names a file without a certificate: name a PEM file"
        except OSError as error:
            yield (
                f"{variable(name)} names a file that cannot be read ({error.strerror}): name a PEM file that this "
                "program can read"
            )
    try:
        if certificate is not None and key is not None:
            # Without a password of ours, OpenSSL would ask the terminal for one.
            context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError:
        yield (
            f"{variable('kafka_ssl_keyfile')} names a file without the key of the certificate in "
            f"{variable('kafka_ssl_certfile')}, or with an encrypted key: name a PEM file with the unencrypted key"
        )


def _as_written(value: object) -> str:
    """Return a default as it would be written in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
