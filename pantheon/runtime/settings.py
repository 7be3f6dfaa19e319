"""MeshSettings: what the environment sets for a process of the mesh; read by `MeshSettings.load()`, never at import.

Any variable may be given as `<NAME>_FILE` instead: the path of a file that holds the value, as containers' secrets
come. An empty variable counts as not set. A wrong value is one SettingsError, one line, with the variable's name, the
value (never a secret's) and what is allowed.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pantheon.runtime.urls import nats_servers, redact, split_servers
from protocol.errors import SettingsError
from protocol.large import DEFAULT_MAX_BYTES
from protocol.names import INSTANCE_ID

FILE_SUFFIX = "_FILE"
MAX_SECRET_FILE_BYTES = 64 * 1024
DATABASE_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
REDIS_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
LogFormat = Literal["json", "console", "auto"]
SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def _allowed(text: str) -> dict[str, Any]:
    return {"allowed": text}


_SECONDS = _allowed("a number of seconds above 0, such as 30 or 2.5")


class SecretFileSource(PydanticBaseSettingsSource):
    """Reads `<NAME>_FILE` variables; a variable and its `_FILE` form together are a mistake, not a precedence."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        super().__init__(settings_cls)
        self._environ = {name.upper(): value for name, value in environ.items()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        for variable in variables_of(self.settings_cls, field_name):
            value = self._read(variable)
            if value:
                return value, self._key(field, field_name, variable), False
            if self._environ.get(variable):
                break  # it wins over the variables that come after it, in whichever form
        return None, field_name, False

    @staticmethod
    def _key(field: FieldInfo, field_name: str, variable: str) -> str:
        """The key that the model's validation expects: of several aliases, the one that the value was set by."""
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [alias]
        return next((name for name in names if isinstance(name, str) and name.upper() == variable), field_name)

    def _read(self, variable: str) -> str:
        path = self._environ.get(variable + FILE_SUFFIX, "")
        if not path:
            return ""
        if self._environ.get(variable):
            raise SettingsError(f"both {variable} and {variable}{FILE_SUFFIX} are set: keep one of them")
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SettingsError(
                f"{variable}{FILE_SUFFIX}={path!r} cannot be read ({reason}): it must be the path of a readable file"
            ) from error
        if len(raw) > MAX_SECRET_FILE_BYTES:
            raise SettingsError(
                f"{variable}{FILE_SUFFIX}={path!r} has {len(raw)} bytes: "
                f"the file of a value has at most {MAX_SECRET_FILE_BYTES}"
            )
        try:
            return raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise SettingsError(f"{variable}{FILE_SUFFIX}={path!r} is not UTF-8 text") from error

    def __call__(self) -> dict[str, Any]:
        found = [self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items()]
        return {key: value for value, key, _ in found if value}


class EnvironmentSettings(BaseSettings):
    """A base for settings of one's own, with `_FILE` variants and one-line errors: `Mine.load()`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, SecretFileSource(settings_cls, os.environ), env_settings

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the environment now; `overrides` (by field name, e.g. from a command line) win over it.

        Raises SettingsError, one line, for whatever is wrong.
        """
        return load_settings(cls, **overrides)


def load_settings(cls: type[SettingsT], **overrides: Any) -> SettingsT:
    """Read any pydantic-settings class from the environment now. Raises SettingsError, one line, when it is wrong."""
    try:
        return cls(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(describe(cls, error, os.environ)) from error


class MeshSettings(EnvironmentSettings):
    """The mesh's own settings; each field's name in capitals is its environment variable."""

    nats_url: str = Field(
        default="nats://127.0.0.1:4222",
        repr=False,  # may carry a password
        json_schema_extra=_allowed("one or more URLs nats://host:port (also tls, ws, wss), separated by commas"),
    )
    nats_creds: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a .creds file"))
    nats_user: str | None = None
    nats_password: SecretStr | None = None
    nats_token: SecretStr | None = None
    nats_tls_ca: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))
    nats_tls_cert: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))
    nats_tls_key: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))

    database_url: SecretStr | None = Field(
        default=None,
        json_schema_extra=_allowed(
            "postgresql://user:password@host:port/database, of several hosts host:port,host:port"
        ),
    )
    redis_url: SecretStr | None = Field(default=None, json_schema_extra=_allowed("redis://host:port/0, or rediss://"))

    consul_http_addr: str | None = Field(
        default=None, json_schema_extra=_allowed("host:port, http://host:port, https://host:port or unix:///path")
    )
    consul_http_token: SecretStr | None = None
    consul_http_ssl: bool = Field(default=False, json_schema_extra=_allowed("true or false"))
    consul_http_ssl_verify: bool = Field(default=True, json_schema_extra=_allowed("true or false"))
    consul_cacert: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))
    consul_client_cert: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))
    consul_client_key: Path | None = Field(default=None, json_schema_extra=_allowed("the path of a PEM file"))

    # Not set by default: several orchestrators share a machine, and a port is one process's.
    agent_orchestrator_port: int | None = Field(
        default=None, ge=0, le=65535, json_schema_extra=_allowed("a port, 0 to 65535 (0: any free one)")
    )
    health_port: int | None = Field(
        default=None, ge=0, le=65535, json_schema_extra=_allowed("a port, 0 to 65535 (0: any free one)")
    )
    max_agents: PositiveInt = Field(default=100, json_schema_extra=_allowed("a whole number, 1 or more"))
    agent_timeout_seconds: PositiveFloat = Field(
        default=300.0, allow_inf_nan=False, json_schema_extra=_SECONDS, description="of one attempt of a task"
    )
    max_retries: int = Field(default=3, ge=0, le=1000, json_schema_extra=_allowed("a whole number, 0 to 1000"))
    no_agent_wait_seconds: float = Field(
        default=30.0, ge=0, allow_inf_nan=False, json_schema_extra=_allowed("a number of seconds, 0 or more")
    )
    max_payload_bytes: int = Field(
        default=DEFAULT_MAX_BYTES,
        ge=1024,
        le=512 * 1024 * 1024,  # half of what one value may be in Postgres
        json_schema_extra=_allowed("a number of bytes, 1024 to 536870912"),
        description="of one payload or result, as JSON",
    )
    broker_storage_bytes: int | None = Field(
        default=None,
        ge=16_000_000,
        json_schema_extra=_allowed("a number of bytes, 16000000 or more"),
        description="of JetStream's storage for the mesh's streams, of one copy",
    )
    stream_replicas: Literal[1, 3, 5] = Field(default=1, json_schema_extra=_allowed("1, 3 or 5"))

    instance_id: str | None = Field(
        default=None, json_schema_extra=_allowed("1 to 64 letters, digits, '_' or '-', unique per process")
    )
    max_concurrency: PositiveInt | None = Field(
        default=None, json_schema_extra=_allowed("a whole number, 1 or more; not set: as the agent says")
    )
    # 25 s is 5 s less than what Kubernetes and Compose setups commonly grant between SIGTERM and SIGKILL.
    drain_grace_seconds: float = Field(
        default=25.0, ge=0, allow_inf_nan=False, json_schema_extra=_allowed("a number of seconds, 0 or more")
    )
    config_path: Path | None = Field(
        default=None, json_schema_extra=_allowed("the path of a .yaml, .toml or .json file of agents' settings")
    )

    log_level: LogLevel = Field(default="info", json_schema_extra=_allowed("debug, info, warning, error or critical"))
    log_format: LogFormat = Field(default="auto", json_schema_extra=_allowed("json, console or auto"))

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("stream_replicas", mode="before")
    @classmethod
    def _whole_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.strip().isdecimal() else value

    @field_validator("nats_url")
    @classmethod
    def _check_nats_url(cls, value: str) -> str:
        nats_servers(value, scheme_needed=True)
        return ",".join(split_servers(value))

    @field_validator("database_url", "redis_url")
    @classmethod
    def _check_stores(cls, value: SecretStr | None, info: Any) -> SecretStr | None:
        if value is not None:
            schemes = DATABASE_SCHEMES if info.field_name == "database_url" else REDIS_SCHEMES
            _check_url(value.get_secret_value(), schemes, host_needed=False, several=info.field_name == "database_url")
        return value

    @field_validator("consul_http_addr")
    @classmethod
    def _check_consul_http_addr(cls, value: str | None) -> str | None:
        if value is not None:
            _check_url(value if "://" in value else f"http://{value}", ("http", "https", "unix"))
        return value

    @field_validator("instance_id")
    @classmethod
    def _check_instance_id(cls, value: str | None) -> str | None:
        if value is not None and INSTANCE_ID.match(value) is None:
            raise ValueError("not a name of an instance")
        return value

    @property
    def nats_servers(self) -> list[str]:
        """`nats_url` as the list that a client takes."""
        return self.nats_url.split(",")

    @property
    def uses_consul(self) -> bool:
        """Which of the two discoveries this mesh uses (docs/protocol.md, Discovery)."""
        return self.consul_http_addr is not None


def _check_url(url: str, schemes: tuple[str, ...], *, host_needed: bool = True, several: bool = False) -> str:
    if several:
        for server in one_host_urls(url):
            _check_url(server, schemes, host_needed=host_needed)
        return url
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        raise ValueError(f"the scheme must be one of {', '.join(schemes)}, not {parts.scheme!r}")
    _ = parts.port  # raises ValueError for a port that is none
    if host_needed and not parts.hostname and parts.scheme != "unix":
        raise ValueError("there is no host in it")
    if parts.scheme == "unix" and not parts.path:
        raise ValueError("there is no path in it")
    return url


def one_host_urls(url: str) -> list[str]:
    """A URL of one or more hosts (`postgresql://user@one:5432,two:5432/name`) as one URL for each of them."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [url]
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]


def variables_of(cls: type[BaseSettings], field_name: str) -> list[str]:
    """The environment variables of a field, the one that wins first, without a `_FILE`."""
    alias = cls.model_fields[field_name].validation_alias
    if isinstance(alias, AliasChoices):
        return [choice.upper() for choice in alias.choices if isinstance(choice, str)]
    if isinstance(alias, str):
        return [alias.upper()]
    return [f"{cls.model_config.get('env_prefix') or ''}{field_name}".upper()]


def variable_of(cls: type[BaseSettings], field_name: str) -> str:
    """The environment variable of a field, without a `_FILE`; of several, the first."""
    return variables_of(cls, field_name)[0]


def is_secret(cls: type[BaseModel], field_name: str) -> bool:
    """Whether the value of a field must not be shown."""
    annotation = cls.model_fields[field_name].annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return SecretStr in members


def describe(cls: type[BaseSettings], error: ValidationError, environ: Mapping[str, str]) -> str:
    """A ValidationError of a settings class as one line: each variable, its value, what is allowed."""
    upper = {name.upper(): value for name, value in environ.items()}
    return "; ".join(_describe_one(cls, dict(problem), upper) for problem in error.errors(include_url=False))


def _describe_one(cls: type[BaseSettings], problem: dict[str, Any], environ: Mapping[str, str]) -> str:
    message = one_line(str(problem["msg"]).removeprefix("Value error, "))
    field_name = str(problem["loc"][0]) if problem["loc"] else ""
    by_alias = {
        variable: name
        for name, field in cls.model_fields.items()
        if field.validation_alias is not None
        for variable in variables_of(cls, name)
    }
    field_name = by_alias.get(field_name, field_name)
    if field_name not in cls.model_fields:
        return f"{field_name}: {message}" if field_name else message
    variable = variable_of(cls, field_name)
    if problem["type"] == "missing":
        return f"{variable} is not set and has no default{_allowed_text(cls.model_fields[field_name])}"
    source = variable if environ.get(variable) or not environ.get(variable + FILE_SUFFIX) else variable + FILE_SUFFIX
    value = "***" if is_secret(cls, field_name) else shown(environ.get(source, problem.get("input")))
    return f"{source}={value} is not allowed: {message}{_allowed_text(cls.model_fields[field_name])}"


def _allowed_text(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    allowed = extra.get("allowed") if isinstance(extra, dict) else None
    return f" (allowed: {allowed})" if allowed else ""


def shown(value: Any) -> str:
    """A value for a message of one line, without the secrets of a URL."""
    return one_line(redact(repr(value)))


def one_line(text: str, limit: int = 200) -> str:
    """Text for a message of one line, however it came."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[:limit]}…"
