"""docs/configuration.md lists every setting that the code reads, with its default, and no other."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, SecretStr
from pydantic_settings import BaseSettings

from agents.communication_agent.settings import CommunicationSettings
from agents.drafting_agent.settings import DraftingSettings
from agents.enhancement_agent.settings import EnhancementSettings
from agents.examination_agent.settings import ExaminationSettings
from agents.llm_agent.settings import LlmSettings
from orchestrator_agent.dispatch.settings import FlowSettings
from pantheon.config import AgentConfig
from pantheon.config.layers import parse_file
from pantheon.runtime.settings import MeshSettings, is_secret
from tests.docs.conftest import REPOSITORY, blocks

FILE = REPOSITORY / "docs" / "configuration.md"
PAGE = FILE.read_text(encoding="utf-8")
ROWS: dict[str, tuple[str, str]] = {
    name: (default, text)
    for name, default, text in re.findall(r"^\| `([A-Z_]+)` \| (.*?) ?\| (.*?) ?\|$", PAGE, re.MULTILINE)
}
# Read by the orchestrator's own start, not by a settings class.
OTHERS = {"WORKFLOWS_PATH"}


def variable_of(model: type[BaseSettings], name: str) -> str:
    alias = model.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    if isinstance(alias, str):
        return alias
    return f"{model.model_config.get('env_prefix') or ''}{name}".upper()


def shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def settings_of(model: type[BaseSettings]) -> Mapping[str, str]:
    return {
        variable_of(model, name): shown(field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
    }


MODELS = (MeshSettings, FlowSettings, LlmSettings, ExaminationSettings, DraftingSettings, CommunicationSettings)


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_on_the_page_with_its_default(model: type[BaseSettings]) -> None:
    for variable, default in settings_of(model).items():
        assert variable in ROWS, variable
        assert ROWS[variable][0] == default, variable


@pytest.mark.parametrize("model", MODELS)
def test_secrets_are_marked(model: type[BaseSettings]) -> None:
    for name in model.model_fields:
        variable = variable_of(model, name)
        assert ("secret)" in ROWS[variable][1]) == is_secret(model, name), variable


def test_no_row_is_of_a_setting_that_is_not_there() -> None:
    known = {variable for model in MODELS for variable in settings_of(model)}
    assert set(ROWS) == known | OTHERS


def test_what_the_enhancement_agent_reads_is_named() -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith("`enhancement_agent` reads all of these but"))
    left_out = set(re.findall(r"`(LLM_\w+)`", line))
    assert set(settings_of(LlmSettings)) - left_out == set(settings_of(EnhancementSettings))


def test_the_live_settings_are_on_the_page() -> None:
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `([A-Z_]+)`", PAGE, re.MULTILINE))
    settable = set(AgentConfig.model_fields) - AgentConfig.fixed_keys
    assert rows == {key: AgentConfig.variable_of(key) for key in settable}


def test_the_pages_file_is_read_as_described() -> None:
    layer = parse_file(Path("mesh.yaml"), blocks(FILE, "yaml")[0].encode(), "llm_agent")
    values = {key: setting.value for key, setting in layer.items()}
    assert values == {"log_level": "info", "max_concurrency": 4, "options.tone": "friendly"}
