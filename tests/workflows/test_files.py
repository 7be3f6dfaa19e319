"""Workflow files: what is read, and every mistake with its line and column."""

from pathlib import Path
from textwrap import dedent

import pytest

from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_file, load_folder, read_workflow
from orchestrator_agent.workflows.library import Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import InvalidWorkflow

GOOD = """
name: good
input:
  properties:
    day: {default: 2026-01-31}
steps:
  a: {task: x}
  b:
    task: y
    with: {text: "${a.text}"}
output: ${b}
"""


def read(text: str, name: str | None = "w") -> Plan:
    return read_workflow(dedent(text), source="w.yaml", default_name=name)


def mistake(text: str, name: str | None = "w") -> InvalidWorkflow:
    with pytest.raises(InvalidWorkflow) as raised:
        read(text, name)
    error = raised.value
    assert error.message.startswith(f"w.yaml:{error.line}:{error.column}: ")
    assert "\n" not in error.message
    return error


def test_a_file_is_a_plan() -> None:
    plan = read(GOOD)
    assert plan.name == "good"
    assert plan.steps["b"].needs == {"a"}
    assert plan.version is not None
    assert plan.definition is not None


def test_a_file_without_a_name_is_called_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my_flow.yaml"
    path.write_text("steps: {a: {task: x}}")
    assert load_file(path).name == "my_flow"


def test_two_files_of_one_content_are_two_workflows(tmp_path: Path) -> None:
    """They had one version, which the database knew by the first one's name: to pause the second paused nothing."""
    plans = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("steps: {a: {task: x}}")
        plans.append(load_file(tmp_path / f"{name}.yaml"))
    assert plans[0].version != plans[1].version
    library = Library()
    for plan in plans:
        assert plan.version is not None
        library.remember(plan.version, plan.name, plan.definition or {})
        assert library.version(plan.version).version == plan.version


def test_a_date_in_yaml_is_the_string_that_stands_there() -> None:
    assert read(GOOD).read_input({}) == {"day": "2026-01-31"}
    assert read("steps: {a: {task: x, with: {at: 2026-01-31 12:00:00}}}").steps["a"].payload.render({}) == {
        "at": "2026-01-31 12:00:00"
    }


def test_json_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "flow.json"
    path.write_text('{\n  "steps": {"a": {"task": "x", "with": {"n": 1.0, "t": "\\u00e9"}}}\n}')
    assert load_file(path).steps["a"].payload.render({}) == {"n": 1.0, "t": "é"}


# Each mistake with the line and column that it must be told at; the text begins on line 1.
MISTAKES = [
    ("an unknown key", "steps:\n  a:\n    task: x\n    wiht: {}\n", 4, 5, "did you mean 'with'"),
    ("an unknown key of the workflow", "steps: {a: {task: x}}\nouput: 1\n", 2, 1, "did you mean 'output'"),
    (
        "an unknown key far from any",
        "steps: {a: {task: x}}\nqqqq: 1\n",
        2,
        1,
        "there is budget, concurrency, description",
    ),
    ("an unknown key of retry", "steps:\n  a:\n    task: x\n    retry:\n      max: 3\n", 5, 7, "'retry' has no 'max'"),
    (
        "of repeat",
        "steps:\n  a:\n    task: x\n    repeat: {until: 'true', max: 1, x: 1}\n",
        4,
        37,
        "'repeat' has no 'x'",
    ),
    ("in a sub-workflow", "steps:\n  a:\n    steps:\n      i:\n        task: x\n        nedes: []\n", 6, 9, "'needs'"),
    ("a wrong type", "steps:\n  a:\n    task: 7\n", 3, 5, "steps.a.task"),
    ("a wrong value", "steps:\n  a:\n    task: x\n    timeout: -1\n", 4, 5, "steps.a.timeout"),
    ("a wrong task type", "steps:\n  a:\n    task: Up-Case\n", 3, 5, "'Up-Case' is not a task type"),
    ("a reserved name", "steps:\n  a: {task: x}\n  input: {task: x}\n", 3, 3, "'input'"),
    ("both kinds", "steps:\n  ok: {task: x}\n  a:\n    task: x\n    steps: {i: {task: y}}\n", 3, 3, "exactly one of"),
    ("no steps", "name: x\n", 1, 1, "steps"),
    ("empty steps", "name: x\nsteps: {}\n", 2, 1, "steps"),
    (
        "an expression",
        "steps:\n  a:\n    task: x\n    with:\n      deep:\n        - ok\n        - ${1 +}\n",
        7,
        11,
        "1 +",
    ),
    ("an unknown name", "steps:\n  a:\n    task: x\n    with:\n      t: ${nobody.text}\n", 5, 7, "'nobody'"),
    ("a condition", "steps:\n  a:\n    task: x\n    when: nobody.ok\n", 4, 5, "'nobody'"),
    ("an until", "steps:\n  a:\n    task: x\n    repeat:\n      max: 2\n      until: 1 +\n", 6, 7, "1 +"),
    ("an output", "steps:\n  a: {task: x}\noutput:\n  t: ${nobody}\n", 4, 3, "'nobody'"),
    ("an unknown need", "steps:\n  a: {task: x}\n  b:\n    task: x\n    needs: [c]\n", 5, 5, "step 'b' needs 'c'"),
    ("a circle", "steps:\n  z: {task: x}\n  a:\n    task: x\n    needs: [a]\n", 3, 3, "a -> a"),
    ("a hole without end", "steps:\n  a:\n    task: x\n    with:\n      t: ${input\n", 5, 7, "no closing brace"),
    ("a cron that is none", "steps: {a: {task: x}}\nschedule:\n  cron: '61 * * * *'\n", 3, 3, "not a cron"),
    ("no time zone", "steps: {a: {task: x}}\nschedule: {cron: '1 1 * * *', timezone: Mars}\n", 2, 31, "no time zone"),
    ("an input that is no schema", "steps: {a: {task: x}}\ninput:\n  type: [7]\n", 2, 1, "not a JSON Schema"),
    ("a key of nothing", "steps: {a: {task: x}}\nconcurrency:\n  max: 1\n  group_by: a.b\n", 4, 3, "no 'a' here"),
    ("a text that is no key", "steps:\n  a:\n    task: x\n    sticky: input.\n", 4, 5, "does not compile"),
    (
        "a fallback's need",
        "steps:\n  b: {task: x}\n  a:\n    task: x\n    fallback: {result: '${b}'}\n",
        5,
        5,
        "uses b",
    ),
    (
        "a key that is there twice",
        "steps:\n  a: {task: x}\n  b: {task: x}\n  a: {task: y}\n",
        4,
        3,
        "'a' stands here twice",
    ),
    ("a schema that is none", "input: {type: nonsense}\nsteps: {a: {task: x}}\n", 1, 1, "JSON Schema"),
    ("an indent", "steps:\n  a:\n task: x\n", 3, 2, ""),
    ("a tab", "steps:\n\ta: {task: x}\n", 2, 1, ""),
    ("a colon too many", "steps: a: b\n", 1, 9, ""),
    ("an open bracket", "steps: {a: {task: x}\n", 2, 1, ""),
    ("an unknown alias", "steps: *nobody\n", 1, 8, "alias"),
    ("a tag", "steps: !!python/object:os.system x\n", 1, 8, "constructor"),
    ("two documents", "steps: {}\n---\nsteps: {}\n", 2, 1, "document"),
    ("a list", "- a\n- b\n", 1, 1, "an object with 'steps'"),
    ("a text", "hello\n", 1, 1, "an object with 'steps'"),
    ("nothing", "", 1, 1, "empty"),
    ("a comment only", "# nothing\n", 1, 1, "empty"),
    ("a key that is no name", "steps: {a: {task: x}}\n? [a, b]\n: c\n", 2, 3, "a key must be a name"),
    ("an alias of itself", "steps: &s\n  a: *s\n", 1, 1, "holds itself"),
    ("a number for a step's name", "steps:\n  7: {task: x}\n", 2, 3, ""),
    ("a boolean for a step's name", "steps:\n  yes: {task: x}\n", 2, 3, ""),
    (
        "a list that is a text",
        "steps:\n  a:\n    task: x\n    for_each: input.l\n",
        4,
        5,
        "'for_each' must be a list, or one",
    ),
    ("a list in a text", "steps:\n  a:\n    task: x\n    for_each: 'x ${input.l}'\n", 4, 5, "must be a list, or one"),
    ("a list that is an object", "steps:\n  a:\n    task: x\n    for_each: {b: 1}\n", 4, 5, "for_each: must be a list"),
    ("a need that is no list", "steps:\n  a: {task: x}\n  b:\n    task: x\n    needs: a\n", 5, 5, "must be a list"),
    ("steps that are a list", "steps:\n  - task: x\n", 1, 1, "steps: must be an object"),
    ("a key of another kind of step", "steps:\n  a:\n    sleep: 1\n    with: {b: 1}\n", 4, 5, "'with' does not belong"),
    ("a key that is a boolean", "steps:\n  on: {task: x}\n", 2, 3, "must be a text: put it in quotes"),
    (
        "a schedule's input that the workflow refuses",
        "input: {required: [b]}\nsteps: {a: {task: x}}\nschedule:\n  cron: '1 1 * * *'\n  input: {c: 1}\n",
        5,
        3,
        "schedule.input does not fit",
    ),
    ("a name that is taken", "steps: {a: {task: x}}\nname: execute_dag\n", 2, 1, "no workflow can be called"),
    ("a control character", "steps: \x07\n", 1, 1, "not YAML"),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "words"), [one[1:] for one in MISTAKES], ids=[one[0] for one in MISTAKES]
)
def test_a_mistake_is_told_with_its_place(text: str, line: int, column: int, words: str) -> None:
    error = mistake(text)
    assert words in error.message
    assert (error.line, error.column) == (line, column)


def test_a_file_without_any_name() -> None:
    assert "no 'name'" in mistake("steps: {a: {task: x}}", name=None).message


def test_a_mistake_within_a_sub_workflow_is_told_at_the_step_inside() -> None:
    error = mistake(
        "steps:\n  outer:\n    steps:\n      ok: {task: x}\n      inner:\n        task: x\n        needs: [nobody]\n"
    )
    assert (error.line, error.column, error.step) == (7, 9, "inner")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_all_its_workflow_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("steps: {a: {task: x}}")
    (tmp_path / "a.yml").write_text("steps: {a: {task: x}}")
    (tmp_path / "c.json").write_text('{"steps": {"a": {"task": "x"}}}')
    (tmp_path / "notes.txt").write_text("not a workflow")
    assert [plan.name for plan in load_folder(tmp_path)] == ["a", "b", "c"]


def test_a_name_twice_in_a_folder_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: w\nsteps: {a: {task: x}}")
    (tmp_path / "two.yaml").write_text("name: w\nsteps: {a: {task: x}}")
    with pytest.raises(InvalidWorkflow, match=r"two\.yaml: the workflow 'w' is also in one\.yaml"):
        load_folder(tmp_path)


def test_what_cannot_be_read_is_an_invalid_workflow(tmp_path: Path) -> None:
    with pytest.raises(InvalidWorkflow, match="no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(InvalidWorkflow, match="cannot be read"):
        load_file(tmp_path / "nobody.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(InvalidWorkflow, match="cannot be read"):
        load_folder(tmp_path)


def test_the_built_in_workflows_load() -> None:
    assert {"create_blog_post", "research_brief"} <= {plan.name for plan in load_folder(BUILTIN_FOLDER)}
