"""Settings from the environment: names, defaults, files of secrets, and errors that name what to do."""

import sys
from pathlib import Path

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.communication_agent.settings import CommunicationSettings
from agents.examination_agent.settings import ExaminationSettings
from agents.llm_agent.settings import LlmSettings
from orchestrator_agent.store.pool import Database
from pantheon.language_model import require_models
from pantheon.runtime.settings import EnvironmentSettings, MeshSettings, load_settings
from protocol.errors import SettingsError


def test_the_defaults_are_the_documented_ones(clean_environment: pytest.MonkeyPatch) -> None:
    settings = MeshSettings.load()
    assert settings.nats_servers == ["nats://127.0.0.1:4222"]
    assert (settings.agent_timeout_seconds, settings.max_retries, settings.no_agent_wait_seconds) == (300, 3, 30)
    assert (settings.agent_orchestrator_port, settings.max_agents, settings.drain_grace_seconds) == (None, 100, 25)
    assert not settings.uses_consul
    assert settings.database_url is None


def test_every_name_of_the_contract_is_read(clean_environment: pytest.MonkeyPatch) -> None:
    values = {
        "NATS_URL": "nats://a:4222, tls://b:4222",
        "DATABASE_URL": "postgresql://u:secret@h/d",
        "REDIS_URL": "redis://h:6379/0",
        "CONSUL_HTTP_ADDR": "127.0.0.1:8500",
        "CONSUL_HTTP_TOKEN": "t0ken",
        "AGENT_ORCHESTRATOR_PORT": "9000",
        "MAX_AGENTS": "7",
        "AGENT_TIMEOUT_SECONDS": "12.5",
        "MAX_RETRIES": "0",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "JSON",
        "STREAM_REPLICAS": "3",
        "MAX_CONCURRENCY": "4",
        "INSTANCE_ID": "one-1",
        "CONSUL_HTTP_SSL": "true",
    }
    for name, value in values.items():
        clean_environment.setenv(name, value)
    settings = MeshSettings.load()
    assert settings.nats_servers == ["nats://a:4222", "tls://b:4222"]
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:secret@h/d"
    assert (settings.uses_consul, settings.stream_replicas, settings.log_level) == (True, 3, "debug")
    assert (settings.max_agents, settings.agent_timeout_seconds, settings.max_concurrency) == (7, 12.5, 4)
    assert "secret" not in repr(settings)
    assert "t0ken" not in repr(settings)


def test_the_password_in_the_brokers_address_is_not_shown(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("NATS_URL", "nats://user:hunter2@h:4222")
    assert "hunter2" not in repr(MeshSettings.load())
    clean_environment.setenv("NATS_URL", "http://user:hunter2@h:4222")
    with pytest.raises(SettingsError, match="NATS_URL='http://") as caught:
        MeshSettings.load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MAX_RETRIES", "many", "0 to 1000"),
        ("MAX_RETRIES", "-1", "0 to 1000"),
        ("AGENT_ORCHESTRATOR_PORT", "70000", "0 to 65535"),
        ("AGENT_TIMEOUT_SECONDS", "0", "300|seconds"),
        ("AGENT_TIMEOUT_SECONDS", "inf", "finite"),
        ("NATS_URL", "localhost:4222", "nats, tls, ws, wss"),
        ("NATS_URL", "nats://", "no host"),
        ("NATS_URL", "nats://h:port", "[Pp]ort"),
        ("CONSUL_HTTP_ADDR", "ftp://x", "http, https, unix"),
        ("CONSUL_HTTP_ADDR", "unix://", "no path"),
        ("STREAM_REPLICAS", "2", "1, 3 or 5"),
        ("LOG_LEVEL", "loud", "debug, info, warning"),
        ("INSTANCE_ID", "a b", "letters, digits"),
    ],
)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_allowed(
    clean_environment: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    clean_environment.setenv(variable, value)
    with pytest.raises(SettingsError, match=message) as caught:
        MeshSettings.load()
    assert str(caught.value).startswith(f"{variable}={value!r} is not allowed: ")
    assert "allowed: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_secret_is_not_shown(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("DATABASE_URL", "mysql://u:hunter2@h/d")
    with pytest.raises(SettingsError, match=r"DATABASE_URL=\*\*\* .*not 'mysql'") as caught:
        MeshSettings.load()
    assert "hunter2" not in str(caught.value)


def test_an_empty_variable_is_not_set(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("CONSUL_HTTP_ADDR", "")
    clean_environment.setenv("MAX_AGENTS", "")
    settings = MeshSettings.load()
    assert (settings.uses_consul, settings.max_agents) == (False, 100)


def test_a_value_may_stand_in_a_file(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "database_url"
    secret.write_text("postgresql://u:p@h/d\n")
    clean_environment.setenv("DATABASE_URL_FILE", str(secret))
    loaded = MeshSettings.load().database_url
    assert loaded == SecretStr("postgresql://u:p@h/d")
    secret.write_text("mysql://h/d")
    with pytest.raises(SettingsError, match=r"DATABASE_URL_FILE=\*\*\*"):
        MeshSettings.load()


def test_a_file_that_is_no_good_is_an_error_with_the_reason(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clean_environment.setenv("NATS_TOKEN_FILE", str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match=r"NATS_TOKEN_FILE=.*No such file"):
        MeshSettings.load()
    (tmp_path / "absent").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        MeshSettings.load()
    (tmp_path / "absent").write_bytes(b"x" * 100_000)
    with pytest.raises(SettingsError, match="100000 bytes"):
        MeshSettings.load()
    clean_environment.setenv("NATS_TOKEN", "x")
    with pytest.raises(SettingsError, match="both NATS_TOKEN and NATS_TOKEN_FILE"):
        MeshSettings.load()


def test_what_a_command_line_sets_wins(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MAX_AGENTS", "5")
    assert MeshSettings.load(max_agents=6).max_agents == 6
    assert MeshSettings.load(max_agents=None).max_agents == 5


def test_an_agents_own_settings_have_the_same_errors(clean_environment: pytest.MonkeyPatch) -> None:
    class Mine(EnvironmentSettings):
        model_config = SettingsConfigDict(env_prefix="LLM_")
        key: SecretStr
        size: int = Field(default=1, validation_alias="SIZE_OF_IT")

    class Plain(BaseSettings):
        width: int = 3

    with pytest.raises(SettingsError, match="LLM_KEY is not set and has no default"):
        Mine.load()
    clean_environment.setenv("LLM_KEY", "k")
    clean_environment.setenv("SIZE_OF_IT", "x")
    with pytest.raises(SettingsError, match="SIZE_OF_IT='x'"):
        Mine.load()
    clean_environment.setenv("SIZE_OF_IT", "2")
    assert Mine.load().size == 2
    assert load_settings(Plain).width == 3


def test_a_database_may_have_several_hosts(clean_environment: pytest.MonkeyPatch) -> None:
    """A primary and its standby: the driver takes the one that the URL's own options ask for."""
    several = "postgresql://u:p@one:5432,two/d?target_session_attrs=read-write"
    clean_environment.setenv("DATABASE_URL", several)
    assert MeshSettings.load().database_url == SecretStr(several)
    clean_environment.setenv("DATABASE_URL", "postgresql://u:p@one:5432,two:x/d")
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        MeshSettings.load()
    assert Database(several).shown == "one:5432,two:5432/d"


def test_the_agents_secrets_may_stand_in_files(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LLM_API_KEY", "EXAMINATION_API_KEY", "WEBHOOK_SECRET"):
        (tmp_path / name).write_text(f"{name} of a file\n")
        clean_environment.delenv(name, raising=False)
        clean_environment.setenv(f"{name}_FILE", str(tmp_path / name))
    assert LlmSettings.load().api_key == SecretStr("LLM_API_KEY of a file")
    assert CommunicationSettings.load().webhook_secret == SecretStr("WEBHOOK_SECRET of a file")
    assert ExaminationSettings.load().api_key == SecretStr("EXAMINATION_API_KEY of a file")
    clean_environment.delenv("EXAMINATION_API_KEY_FILE")
    assert ExaminationSettings.load().api_key == SecretStr("LLM_API_KEY of a file")
    clean_environment.setenv("EXAMINATION_API_KEY", "its own")
    assert ExaminationSettings.load().api_key == SecretStr("its own")


def test_a_model_without_its_client_is_refused_at_the_start(clean_environment: pytest.MonkeyPatch) -> None:
    require_models("LLM_MODEL")
    clean_environment.setitem(sys.modules, "pydantic_ai", None)
    with pytest.raises(SettingsError, match=r"LLM_MODEL is set, .*pantheon-mesh\[models\]"):
        require_models("LLM_MODEL")
