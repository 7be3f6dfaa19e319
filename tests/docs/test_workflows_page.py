"""docs/workflows.md against the code: its files compile, its table is true, nothing of the language is missing."""

import json
import re
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from orchestrator_agent.workflows.expression import Environment
from orchestrator_agent.workflows.files import read_workflow
from orchestrator_agent.workflows.template import compile_template
from protocol.errors import ExpressionError
from protocol.names import RESERVED_STEP_NAMES
from protocol.workflow import (
    DEFAULT_CONCURRENCY,
    MAX_DEPTH,
    MAX_ITERATIONS,
    MAX_STEPS,
    MAX_WAIT_SECONDS,
    Budget,
    Compensation,
    Concurrency,
    Fallback,
    Requires,
    Retry,
    Schedule,
    Step,
    WaitFor,
    Workflow,
)
from tests.docs.conftest import REPOSITORY, blocks

FILE = REPOSITORY / "docs" / "workflows.md"
PAGE = FILE.read_text(encoding="utf-8")
WORKFLOWS = blocks(FILE, "yaml")
INPUT: dict[str, Any] = json.loads(blocks(FILE, "json")[0])
TEMPLATES = re.findall(r"^\| `(.*)` \| `(.*)` \|$", PAGE.partition("| template |")[2], re.MULTILINE)


@pytest.mark.parametrize("text", WORKFLOWS)
def test_a_workflow_of_the_page_compiles(text: str) -> None:
    plan = read_workflow(text, source="page.yaml", default_name="page")
    assert set(plan.steps) == set(yaml.safe_load(text)["steps"])


@pytest.mark.parametrize(("template", "value"), TEMPLATES)
def test_a_template_of_the_page_gives_its_value(template: str, value: str) -> None:
    variables = {"input": INPUT, "skipped": None, "each": [{"t": "x"}, {"t": "y"}]}
    made = compile_template(template, Environment(set(variables))).render(variables)
    assert json.dumps(made, ensure_ascii=False) == value
    assert type(made) is type(json.loads(value))


def test_int_and_double_do_not_mix_as_described() -> None:
    with pytest.raises(ExpressionError):
        compile_template("${input.n + input.f}", Environment({"input"})).render({"input": INPUT})


def part(heading: str) -> str:
    """The text below a heading, to the next one."""
    return re.split(r"^##", PAGE.partition(f"{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("model", "heading"),
    [
        (Workflow, "## A workflow"),
        (Budget, "### budget"),
        (Concurrency, "### concurrency"),
        (Schedule, "### schedule"),
        (Step, "## A step"),
        (Requires, "### requires and sticky"),
        (Retry, "### retry"),
        (Fallback, "### fallback and on_error"),
        (Compensation, "### compensate"),
        (WaitFor, "### wait_for"),
    ],
)
def test_the_page_explains_every_key(model: type[BaseModel], heading: str) -> None:
    rows = "".join(line for line in part(heading).splitlines() if line.startswith("| `"))
    for name, field in model.model_fields.items():
        assert f"`{field.alias or name}`" in rows


def test_the_pages_numbers_are_the_codes() -> None:
    assert f"1 to {MAX_STEPS:,}" in PAGE
    assert f"default {DEFAULT_CONCURRENCY} " in PAGE
    assert f"(1 to {MAX_ITERATIONS})" in PAGE
    assert f"nest {MAX_DEPTH} deep" in PAGE
    assert f"at most {MAX_WAIT_SECONDS // 86400} days" in PAGE
    retry = Retry()
    for name in ("initial_seconds", "multiplier", "max_seconds", "jitter"):
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith(f"| {getattr(retry, name):g} |")


def test_the_page_lists_the_reserved_words() -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE.partition("a word that CEL reserves (")[2].partition(")")[0]))
    assert listed == RESERVED_STEP_NAMES - {"input"}
