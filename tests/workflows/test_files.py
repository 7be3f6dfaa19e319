"""Workflow files: what is read, and every mistake with its line and column."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

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
    ("a cron step beyond its field", "steps: {a: {task: x}}\nschedule:\n  cron: '*/61 * * * *'\n", 3, 3, "ends at 59"),
    ("of a range", "steps: {a: {task: x}}\nschedule:\n  cron: '1 2-9/24 * * *'\n", 3, 3, "ends at 23"),
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
    ("a tag", "steps: !!python/object:os.system x\n", 1, 8, "makes no value of JSON"),
    ("two documents", "steps: {}\n---\nsteps: {}\n", 2, 1, "document"),
    ("a list", "- a\n- b\n", 1, 1, "an object with 'steps'"),
    ("a text", "hello\n", 1, 1, "an object with 'steps'"),
    ("nothing", "", 1, 1, "empty"),
    ("a comment only", "# nothing\n", 1, 1, "empty"),
    ("a key that is no name", "steps: {a: {task: x}}\n? [a, b]\n: c\n", 2, 3, "a key must be a name"),
    ("an alias of itself", "steps: &s\n  a: *s\n", 1, 1, "holds itself"),
    ("a number for a step's name", "steps:\n  7: {task: x}\n", 2, 3, "put '7' in quotes"),
    ("a boolean for a step's name", "steps:\n  true: {task: x}\n", 2, 3, "a key must be a text"),
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
    ("a text that is a boolean", "steps:\n  a: {task: true}\n", 2, 7, "must be a text: put it in quotes"),
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
    ("text", "line", "column", "words"), [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES]
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


# -- values: those of JSON ---------------------------------------------------------------------------------------------


def values(text: str, source: str = "w.yaml") -> Any:
    """The payload of the only step."""
    return read_workflow(text, source=source, default_name="w").steps["a"].payload.render({})


@pytest.mark.parametrize("number", [1e-5, 1e16, 1.5e3, 1e5, -2e-7, 0.1, -0.0, 10**30, 2**63, 5e-324])
@pytest.mark.parametrize("source", ["w.json", "definition"])
def test_a_number_of_json_is_that_number(number: float, source: str) -> None:
    """Read as YAML 1.1, `1e-5` was a text, and what the workflow's agents were given was wrong."""
    text = json.dumps({"steps": {"a": {"task": "x", "with": {"n": number}}}})
    read_number = values(text, source)["n"]
    assert read_number == number
    assert type(read_number) is type(number)


def test_json_writes_an_exponent_in_several_ways() -> None:
    assert values('{"steps":{"a":{"task":"t","with":{"x":1.5e3,"y":1E5,"z":-2e-7}}}}', "w.json") == {
        "x": 1500.0,
        "y": 100_000.0,
        "z": -2e-7,
    }


@pytest.mark.parametrize("source", ["w.json", "definition"])
def test_a_character_that_json_escapes_in_two_halves_is_one_character(source: str) -> None:
    """It became two halves, which no database stores; such a file kept the orchestrator from starting."""
    text = json.dumps({"steps": {"a": {"task": "x", "with": {"t": "hi \U0001f600"}}}})
    assert "\\ud83d" in text
    assert values(text, source) == {"t": "hi \U0001f600"}


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("+5", "+5"),
        (".5", ".5"),
        ("10:30", "10:30"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31 12:00:00", "2026-01-31 12:00:00"),
        ("1.2.3", "1.2.3"),
        ("'1e3'", "1e3"),
        ("=", "="),
        ("inf", "inf"),
        ("!!str 12", "12"),
        ("!!float 3", 3.0),
    ],
)
def test_a_scalar_of_yaml_is_a_value_of_json_or_the_text_that_stands_there(scalar: str, value: Any) -> None:
    made = values(f"steps:\n  a:\n    task: x\n    with:\n      v: {scalar}\n")["v"]
    assert made == value
    assert type(made) is type(value)


@pytest.mark.parametrize(
    ("scalar", "words"),
    [
        (".inf", "JSON has no .inf"),
        ("-.INF", "JSON has no -.INF"),
        (".nan", "JSON has no .nan"),
        ("1e999", "not a number of JSON"),
        ("9" * 5000, "not an integer"),
        ("!!int 0x10", "not an integer of JSON"),
        ("!!float .inf", "no .inf"),
        ("!!binary aGk=", "makes no value of JSON"),
        ("!!timestamp 2026-01-31", "makes no value of JSON"),
        ("!!set {b: null}", "makes no value of JSON"),
        ('"\\ud83d"', "half a surrogate pair"),
    ],
)
def test_what_json_has_no_value_for_is_a_mistake_with_its_place(scalar: str, words: str) -> None:
    error = mistake(f"steps:\n  a:\n    task: x\n    with:\n      v: {scalar}\n")
    assert words in error.message
    assert error.line == 5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('{"steps": {"a": {"task": "x", "with": {\n"t": "\\ud83d"}}}}', 2, "half a surrogate pair"),
        ('{"steps": {"a": {"task": "x", "with": {\n"\\udc00": 1}}}}', 1, "half a surrogate pair"),
        ('{"steps": {"a": {"task": "x", "with": {\n"n": NaN}}}}', 2, "no NaN"),
        ('{"steps": {"a": {"task": "x", "with": {\n"n": 1e999}}}}', 2, "no infinity"),
        ('{"steps": {"a": {"task": "x"},\n"a": {"task": "y"}}}', 2, "'a' stands here twice"),
        ('{"steps": {"a": {"task": "x"}},\n}', 2, "not JSON"),
        ('{"steps": {"a": {"task": "x",\n"wiht": 1}}}', 2, "did you mean 'with'"),
        ('{"steps": {"a": {"task": "x", "with": {"n": ' + "9" * 5000 + "}}}}", 1, "not JSON that can be read"),
        ('{"steps": ' + "[" * 100_000, 1, "nested too deep"),
    ],
)
def test_a_mistake_in_json_is_told_with_its_place(text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidWorkflow) as raised:
        read_workflow(text, source="w.json", default_name="w")
    assert words in raised.value.message
    assert raised.value.line == line


def test_a_file_that_cannot_be_stored_is_a_mistake_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"steps": {"a": {"task": "x", "with": {"t": "\\ud83d"}}}}')
    with pytest.raises(InvalidWorkflow, match=r"w\.json:1:\d+: the text holds half a surrogate pair"):
        load_folder(tmp_path)


def test_keys_of_another_object_are_merged() -> None:
    """A merge key failed, with the place of something else."""
    text = """
        steps:
          a: &a {task: x, with: {n: 1}, retry: {max_attempts: 2}}
          b: {<<: *a, with: {n: 2}}
          c: {<<: [*a], task: y}
    """
    plan = read(text)
    assert plan.steps["b"].task_type == "x"
    assert plan.steps["b"].retry.max_attempts == 2
    assert plan.steps["b"].payload.render({}) == {"n": 2}
    assert plan.steps["c"].task_type == "y"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("steps:\n  a: &a {task: x, wiht: 1}\n  b:\n    <<: *a\n", 2, "did you mean 'with'"),
        ("steps:\n  a: {task: x}\n  b:\n    <<: 7\n", 4, "takes an alias of an object"),
        ("steps:\n  a: &a {task: x}\n  b:\n    <<: *a\n    <<: *a\n", 5, "'<<' stands here twice"),
        ("steps:\n  a: &a {task: x, timeout: -1}\n  b:\n    <<: *a\n    task: y\n", 2, "timeout"),
    ],
)
def test_a_mistake_in_what_is_merged_is_told_with_its_place(text: str, line: int, words: str) -> None:
    error = mistake(text)
    assert words in error.message
    assert error.line == line


def test_aliases_that_make_a_file_of_any_size_are_refused() -> None:
    """Ten lines of ten aliases each are ten thousand million values."""
    lines = ["v0: &v0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"v{n}: &v{n} [{', '.join([f'*v{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "more than" in mistake("\n".join(lines)).message


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_all_its_workflow_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("steps: {a: {task: x}}")
    (tmp_path / "a.yml").write_text("steps: {a: {task: x}}")
    (tmp_path / "c.json").write_text('{"steps": {"a": {"task": "x"}}}')
    (tmp_path / "notes.txt").write_text("not a workflow")
    assert [plan.name for plan in load_folder(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("keys", "line", "column"),
    [
        ("    retry: {max_attempts: 2}\n", 4, 5),
        ("    timeout: 5s\n", 4, 5),
        ("    requires: {tags: [eu]}\n", 4, 5),
        ("    sticky: input.x\n", 4, 5),
        ("    compensate:\n      task: other\n      retry: {max_attempts: 2}\n", 6, 7),
    ],
)
def test_a_key_that_does_nothing_on_a_workflow_is_a_mistake_with_its_place(
    tmp_path: Path, keys: str, line: int, column: int
) -> None:
    """`retry`, `timeout`, `requires` and `sticky` were read, and then ignored."""
    (tmp_path / "other.yaml").write_text("steps: {a: {task: x}}")
    (tmp_path / "w.yaml").write_text(f"steps:\n  a:\n    task: other\n{keys}")
    with pytest.raises(InvalidWorkflow, match="would do nothing, as 'other' is a workflow") as raised:
        load_folder(tmp_path)
    assert (raised.value.line, raised.value.column) == (line, column)
    assert load_file(tmp_path / "w.yaml").agent_only
    with pytest.raises(InvalidWorkflow, match="would do nothing"):
        Library([load_file(tmp_path / "w.yaml"), load_file(tmp_path / "other.yaml")])


def test_a_key_that_does_nothing_on_the_workflow_itself_is_a_mistake() -> None:
    """It was taken, and then every task of the workflow refused."""
    with pytest.raises(InvalidWorkflow, match="would do nothing, as 'w' is a workflow"):
        read_workflow("steps: {a: {task: w, when: input.more, timeout: 5s}}", source="w.yaml", default_name="w")


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
