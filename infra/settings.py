"""Every setting of Sparkledger: one environment variable each, all of them read here and nowhere else.

A wrong, missing or misspelt variable stops the start with one line that names it, says what is wrong and what
to do. What a variable must look like stands beside it, and the README's table is made from the same texts.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX: Final = "SPARKLEDGER_"
MASTER_KEY_BYTES: Final = 32
ADMIN_KEY: Final = re.compile(r"[!-~]{1,512}")
ADMIN_KEY_MIN_CHARACTERS: Final = 32
ALLOWED_DAYS_MAX: Final = 3650
REQUESTS_PER_SECOND_MAX: Final = 10_000_000

# These share the prefix and are read elsewhere: by the tests, by docker-compose, by a supervised child.
READ_ELSEWHERE: Final = frozenset(f"{PREFIX}{name}" for name in ("FAULTS", "OWNER_PASSWORD", "PARENT_FD", "READY_FD"))
READ_BY_TESTS: Final = f"{PREFIX}TEST_"

_BROKER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_DATABASE: Final = "give a libpq connection string, such as postgresql://sparkledger_api:…@db:5432/sparkledger"


class SettingsError(Exception):
    """One line for whoever starts the program: which variable, what is wrong with it, and what to do."""


def _setting(default: object, description: str, expects: str, **constraints: Any) -> Any:
    """Declare a setting; `expects` finishes the sentence that refuses a wrong value."""
    return Field(default, description=description, json_schema_extra={"expects": expects}, **constraints)


class Settings(BaseSettings):
    """The settings, checked. Make one with `load_settings`, which turns every refusal into one clear line."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )

    database_url: SecretStr | None = _setting(
        None,
        "The API's login to a PostgreSQL 15 or newer. Absent: an embedded one, in `postgres` under the data directory.",
        _DATABASE,
    )
    migration_database_url: SecretStr | None = _setting(
        None, "The login that owns the tables, for `migrate`. Absent: that of the database URL.", _DATABASE
    )
    worker_database_url: SecretStr | None = _setting(
        None, "The worker's login. Absent: that of the database URL.", _DATABASE
    )
    api_password: SecretStr | None = _setting(
        None, "The password that `migrate` gives to the login role `sparkledger_api`.", "give a password"
    )
    worker_password: SecretStr | None = _setting(
        None, "The password that `migrate` gives to the login role `sparkledger_worker`.", "give a password"
    )
    data_dir: Path = _setting(
        Path(".sparkledger"),
        "Where the embedded PostgreSQL and the generated keys live.",
        "name a directory, or a path where one can be made",
    )
    host: str = _setting(
        "127.0.0.1",
        "The address that the API listens on.",
        "give a host name or an IP address",
        pattern=r"^[A-Za-z0-9.:_-]+$",
    )
    port: int = _setting(
        8080,
        "The port that the API listens on; 0 picks a free one.",
        "give a whole number from 0 to 65535",
        ge=0,
        le=65535,
    )
    admin_key: SecretStr | None = _setting(
        None,
        "The administrator's API key, at least 32 characters. Absent: generated on the first start and shown once.",
        f"give a random string of at least {ADMIN_KEY_MIN_CHARACTERS} characters, all visible ASCII and 512 at most, "
        "such as `openssl rand -hex 32` prints",
        min_length=ADMIN_KEY_MIN_CHARACTERS,
    )
    master_key: SecretStr | None = _setting(
        None,
        "The key that wraps every other key: 32 random bytes in base64. "
        "Absent: generated into the data directory; required with a database URL.",
        "give 32 random bytes in base64, such as `openssl rand -base64 32` prints",
    )
    allowed_days: tuple[int, ...] = _setting(
        (7, 30, 60, 365),
        "The lengths that a code's window may have, in days.",
        f"give whole numbers of days from 1 to {ALLOWED_DAYS_MAX}, separated by commas",
    )
    extend_after_expiry: bool = _setting(
        default=True, description="Whether an expired code may be extended.", expects="give true or false"
    )
    requests_per_second: int = _setting(
        100_000,
        "How many requests a second one API key may make.",
        f"give a whole number from 1 to {REQUESTS_PER_SECOND_MAX}",
        ge=1,
        le=REQUESTS_PER_SECOND_MAX,
    )
    kafka_bootstrap_servers: tuple[str, ...] = _setting(
        (),
        "The Kafka brokers to publish to, as host:port, separated by commas. Absent: no Kafka.",
        "give host:port, several separated by commas",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT",
        "How to speak to the brokers: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
        "give PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting(
        "SCRAM-SHA-512",
        "How to log in to the brokers: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
        "give PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    )
    kafka_sasl_username: str | None = _setting(None, "The user that logs in to the brokers.", "give a user name")
    kafka_sasl_password: SecretStr | None = _setting(None, "That user's password.", "give a password")
    kafka_ssl_cafile: Path | None = _setting(
        None,
        "The file with the certificates that vouch for the brokers. Absent: the system's.",
        "name a PEM file",
    )
    kafka_topic: str = _setting(
        "sparkledger.events",
        "The topic that events are published to.",
        "give 1 to 249 letters, digits, dots, underscores or hyphens",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the hook's signature, here and below
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Only what load_settings hands in: no file is read in passing, and a test sees its own variables only.
        return (init_settings,)

    @field_validator("admin_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        # A key that no Authorization header can bring back would lock everybody out.
        if value is not None and ADMIN_KEY.fullmatch(value.get_secret_value()) is None:
            raise ValueError
        return value

    @field_validator("allowed_days", "kafka_bootstrap_servers", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("allowed_days")
    @classmethod
    def _sort_days(cls, days: tuple[int, ...]) -> tuple[int, ...]:
        if not days or not all(1 <= day <= ALLOWED_DAYS_MAX for day in days):
            raise ValueError
        return tuple(sorted(set(days)))

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _check_brokers(cls, brokers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_BROKER.fullmatch(broker) for broker in brokers):
            raise ValueError
        return brokers

    @field_validator("database_url", "migration_database_url", "worker_database_url")
    @classmethod
    def _check_connection_string(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            try:
                conninfo_to_dict(url.get_secret_value())
            except ProgrammingError:
                # libpq's own message may quote the password.
                raise ValueError from None
        return url

    @field_validator("master_key")
    @classmethod
    def _check_master_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(_from_base64(key)) != MASTER_KEY_BYTES:
            raise ValueError
        return key

    @field_validator("data_dir")
    @classmethod
    def _check_data_dir(cls, path: Path) -> Path:
        path = path.expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError
        return path

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.database_url is None:
            for name in ("migration_database_url", "worker_database_url"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{variable(name)} is set, but {variable('database_url')} is not: "
                        "set both, or neither for the embedded PostgreSQL"
                    )
        elif self.master_key is None:
            raise ValueError(
                f"{variable('master_key')} is not set, and {variable('database_url')} is: "
                "give 32 random bytes in base64, such as `openssl rand -base64 32` prints, "
                "and keep them safe, because what is sealed can never be read again without them"
            )
        sasl = self.kafka_security_protocol.startswith("SASL_")
        for name in ("kafka_sasl_username", "kafka_sasl_password"):
            if sasl and getattr(self, name) is None:
                raise ValueError(
                    f"{variable(name)} is not set, and {variable('kafka_security_protocol')} is "
                    f"{self.kafka_security_protocol}: set it, or choose PLAINTEXT or SSL"
                )
            if not sasl and getattr(self, name) is not None:
                raise ValueError(
                    f"{variable(name)} is set, but {variable('kafka_security_protocol')} is "
                    f"{self.kafka_security_protocol}, which never logs in: choose SASL_SSL or SASL_PLAINTEXT"
                )
        return self

    @property
    def worker_login(self) -> SecretStr | None:
        """The connection string that the worker uses; None where PostgreSQL is embedded."""
        return self.worker_database_url or self.database_url

    @property
    def migration_login(self) -> SecretStr | None:
        """The connection string that `migrate` uses; None where PostgreSQL is embedded."""
        return self.migration_database_url or self.database_url

    @property
    def master_key_bytes(self) -> bytes | None:
        """The master key's 32 bytes; None where it is generated into the data directory."""
        return None if self.master_key is None else _from_base64(self.master_key)


def variable(name: str) -> str:
    """Name the environment variable of the setting `name`."""
    return f"{PREFIX}{name.upper()}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environ`, by default this process's; an empty value counts as absent.

    Raises SettingsError at the first thing that is wrong; no message ever holds a secret's value.
    """
    environ = os.environ if environ is None else environ
    _refuse_unknown(environ)
    given = {name: environ[variable(name)] for name in Settings.model_fields if environ.get(variable(name))}
    try:
        return Settings(**given)  # type: ignore[arg-type] # strings, which pydantic turns into what each field is
    except ValidationError as error:
        raise SettingsError(_one_line(error, given)) from None


def settings_table() -> Iterator[tuple[str, str, str]]:
    """Yield (variable, default, description) of every setting, in order; "" stands for no default."""
    for name, field in Settings.model_fields.items():
        yield variable(name), _as_written(field.default), field.description or ""


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name.startswith(READ_BY_TESTS) or name in READ_ELSEWHERE:
            continue
        if name not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
            raise SettingsError(f"{name} is not a setting: did you mean {nearest}? Rename it, or unset it.")


def _one_line(error: ValidationError, given: Mapping[str, str]) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=True)[0]
    if not first["loc"]:
        return f"{first['ctx']['error']}."
    name = str(first["loc"][0])
    field = Settings.model_fields[name]
    # A secret is not shown, and neither is what would break the line or drown it.
    shown = given.get(name, "")
    secret = "SecretStr" in str(field.annotation)
    wrong = "cannot be right (its value is not shown)" if secret else f"cannot be {shown[:60]!r}"
    default = _as_written(field.default)
    otherwise = f", or leave it out for {default}" if default else ""
    return f"{variable(name)} {wrong}: {_expects(field)}{otherwise}."


def _expects(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["expects"]) if isinstance(extra, dict) else ""


def _as_written(value: object) -> str:
    """Write a default as one would write it in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _from_base64(key: SecretStr) -> bytes:
    """Return the bytes, or none at all where the text is not base64: both are the wrong length."""
    try:
        return base64.b64decode(key.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        return b""
