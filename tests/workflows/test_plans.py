"""Plans: graphs checked before anything runs, every mistake naming its step; the library of names and versions."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_agent.workflows.compiler import MAX_LISTED_STEPS, compile_workflow
from orchestrator_agent.workflows.files import BUILTIN_FOLDER, load_folder
from orchestrator_agent.workflows.library import INLINE_PLANS, Library
from orchestrator_agent.workflows.plan import Plan
from protocol.errors import InvalidRequest, InvalidWorkflow
from protocol.workflow import MAX_DEPTH, Workflow


def inline(payload: dict[str, Any]) -> Plan:
    return Library().inline(payload)[0]


def refused(payload: dict[str, Any]) -> InvalidWorkflow:
    with pytest.raises(InvalidWorkflow) as raised:
        inline(payload)
    assert raised.value.code == "invalid_workflow"
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 3000
    return raised.value


def steps(**given: Any) -> dict[str, Any]:
    return {"steps": given}


CONTRACT = {
    "input": {"text": "hello"},
    "steps": {
        "shout": {"task": "uppercase", "with": {"text": "${input.text}"}},
        "twice": {"task": "repeat", "with": {"text": "${shout.text}", "times": 2}, "needs": ["shout"]},
    },
    "output": {"text": "${twice.text}"},
}


def test_the_example_of_the_contract_compiles() -> None:
    plan, with_input = Library().inline(CONTRACT)
    assert with_input == {"text": "hello"}
    assert plan.steps["shout"].needs == frozenset()
    assert plan.steps["twice"].needs == {"shout"}
    assert plan.dependants == {"shout": ("twice",), "twice": ()}
    assert plan.output is not None
    assert plan.output.render({"twice": {"text": "HELLO"}}) == {"text": "HELLO"}


@pytest.mark.parametrize(
    "step",
    [
        {"with": {"x": "${a.text}"}},
        {"with": {"x": ["deep", {"er": "text ${a.text} text"}]}},
        {"with": "${a}"},
        {"when": "a.ok"},
        {"when": "${a.ok}"},
        {"with": {"x": "${[1].map(n, n + a.n)}"}},
        {"repeat": {"until": "a.ok && b.ok", "max": 2}},
        {"for_each": "${a.list}"},
        {"for_each": ["${a.one}"]},
        {"needs": ["a"]},
        {"needs": ["a", "a"], "with": {"x": "${a.text}"}},
    ],
)
def test_a_reference_anywhere_in_a_step_is_a_need(step: dict[str, Any]) -> None:
    assert inline(steps(a={"task": "x"}, b={"task": "y", **step})).steps["b"].needs == {"a"}


@pytest.mark.parametrize(
    "text",
    ["plain a.text", "$${a.text}", "${'a.text'}", "${input.a}", "${input.l.map(a, a.text)}", "${input['a']}"],
)
def test_what_only_looks_like_a_reference_is_no_need(text: str) -> None:
    assert inline(steps(a={"task": "x"}, b={"task": "y", "with": {"x": text}})).steps["b"].needs == frozenset()


def test_a_macros_variable_that_is_called_like_its_own_step_makes_no_circle() -> None:
    plan = inline(steps(item={"task": "x", "with": {"ids": "${input.items.map(item, item.id)}"}}))
    assert plan.steps["item"].needs == frozenset()


def test_a_repeated_step_reads_its_last_result_without_needing_itself() -> None:
    step = {
        "task": "x",
        "with": {"last": "${draft}"},
        "when": "draft == null",
        "repeat": {"until": "draft.ok", "max": 3},
    }
    assert inline(steps(draft=step)).steps["draft"].needs == frozenset()


def test_in_a_fan_out_item_and_index_are_the_item_at_hand() -> None:
    each = {"task": "x", "for_each": "${input.l}", "with": {"x": "${item.id}", "at": "${index + 1}"}}
    plan = inline(steps(item={"task": "y"}, index={"task": "y"}, each=each))
    assert plan.steps["each"].needs == frozenset()
    assert "there is no 'item' here" in refused(steps(a={"task": "x", "with": {"x": "${item.id}"}})).message


# -- what ends a task invalid_workflow ---------------------------------------------------------------------------------


def test_no_steps() -> None:
    payloads: list[dict[str, Any]] = [{}, {"steps": {}}, {"steps": None}, {"input": {}, "output": 1}]
    for payload in payloads:
        assert "payload.steps" in refused(payload).message


@pytest.mark.parametrize("wrong", [[], "x", 7, True])
def test_steps_that_are_no_object(wrong: object) -> None:
    assert "payload.steps" in refused({"steps": wrong}).message


@pytest.mark.parametrize("wrong", [[], "x", 7, True])
def test_an_input_that_is_no_object(wrong: object) -> None:
    assert "payload.input" in refused({**CONTRACT, "input": wrong}).message


@pytest.mark.parametrize("name", ["input", "in", "true", "for", "A", "a-b", "", "0", "a" * 64, "é", "a.b", "a b"])
def test_a_name_that_a_step_cannot_have(name: str) -> None:
    error = refused(steps(**{name: {"task": "x"}}))
    assert f"'{name}'" in error.message


def test_an_unknown_step_in_needs_names_both() -> None:
    error = refused(steps(a={"task": "x"}, b={"task": "y", "needs": ["nobody"]}))
    assert error.message == "step 'b' needs 'nobody', which is not a step; there is a"
    assert error.step == "b"
    assert "there is no other step" in refused(steps(b={"task": "y", "needs": ["nobody"]})).message


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"a": {"needs": ["a"]}}, "a -> a"),
        ({"a": {"with": {"x": "${a.text}"}}}, "a -> a"),
        ({"a": {"when": "a.ok"}}, "a -> a"),
        ({"a": {"needs": ["b"]}, "b": {"needs": ["a"]}}, "a -> b -> a"),
        ({"a": {"with": {"x": "${b.x}"}}, "b": {"with": {"x": "${c.x}"}}, "c": {"needs": ["a"]}}, "a -> b -> c -> a"),
        ({"z": {"needs": ["a"]}, "a": {"needs": ["b"]}, "b": {"needs": ["a"]}}, "a -> b -> a"),
        ({"a": {"needs": ["a"], "repeat": {"until": "a.ok", "max": 2}}}, "a -> a"),
    ],
)
def test_a_circle_is_shown(graph: dict[str, Any], words: str) -> None:
    error = refused(steps(**{name: {"task": "x", **step} for name, step in graph.items()}))
    assert words in error.message
    assert error.step in graph


def test_a_circle_of_thousands_is_shown_in_few_words() -> None:
    count = 5000
    graph = {f"s{n}": {"task": "x", "needs": [f"s{(n + 1) % count}"]} for n in range(count)}
    assert refused({"steps": graph}).message.count("->") == MAX_LISTED_STEPS + 1


def test_a_long_chain_is_no_circle() -> None:
    graph = {f"s{n}": {"task": "x", "needs": [f"s{n - 1}"] if n else []} for n in range(5000)}
    assert len(inline({"steps": graph}).steps) == 5000


@pytest.mark.parametrize(
    "step",
    [
        {"with": {"x": "${nobody.text}"}},
        {"with": {"x": "${1 +}"}},
        {"with": {"x": "${"}},
        {"with": {"x": "${}"}},
        {"when": "nobody.ok"},
        {"when": "${input.a} && ${input.b}"},
        {"repeat": {"until": "nobody.ok", "max": 2}},
        {"for_each": "${nobody}"},
    ],
)
def test_an_expression_that_does_not_compile_names_its_step(step: dict[str, Any]) -> None:
    error = refused(steps(a={"task": "x"}, b={"task": "y", **step}))
    assert error.step == "b"
    assert "step 'b'" in error.message


def test_an_output_that_does_not_compile() -> None:
    assert refused({**CONTRACT, "output": "${nobody.text}"}).message.startswith("'output': expression 'nobody.text'")
    error = refused(steps(inner={"steps": {"a": {"task": "x"}}, "output": "${nobody.text}"}))
    assert error.message.startswith("step 'inner': 'output': ")
    assert error.step == "inner"


def test_a_graph_is_no_task_of_a_step() -> None:
    """It waited for an agent that serves `execute_dag`, and there is none."""
    assert "put the steps into 'steps'" in refused(steps(a={"task": "execute_dag"})).message


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({}, "exactly one of"),
        ({"task": None}, "exactly one of"),
        ({"task": "x", "steps": {"i": {"task": "y"}}}, "exactly one of"),
        ({"task": "X"}, "not a task type"),
        ({"task": "mesh.cancel"}, "not a task type"),
        ({"task": 7}, "task"),
        ({"task": "x", "agent": "A"}, "agent"),
        ({"task": "x", "needs": "a"}, "needs"),
        ({"task": "x", "needs": [7]}, "needs"),
        ({"task": "x", "with": []}, "with"),
        ({"task": "x", "with": "text"}, "with"),
        ({"task": "x", "with": "text ${input}"}, "with"),
        ({"task": "x", "with": 7}, "with"),
        ({"task": "x", "timeout": 0}, "timeout"),
        ({"task": "x", "timeout": "5"}, "timeout"),
        ({"task": "x", "timeout": True}, "timeout"),
        ({"task": "x", "when": 7}, "when"),
        ({"task": "x", "repeat": {"until": "true"}}, "max"),
        ({"task": "x", "repeat": {"until": "true", "max": 0}}, "max"),
        ({"task": "x", "repeat": {"until": "true", "max": 1001}}, "max"),
        ({"task": "x", "repeat": {"max": 2}}, "until"),
        ({"task": "x", "retry": {"max_attempts": 0}}, "max_attempts"),
        ({"task": "x", "retry": {"initial_seconds": -1}}, "initial_seconds"),
        ({"task": "x", "retry": {"initial_seconds": "1"}}, "initial_seconds"),
        ({"task": "x", "output": "y"}, "output"),
        ({"task": "x", "concurrency": 2}, "concurrency"),
        ({"task": "x", "for_each": "${input.l}", "concurrency": 0}, "concurrency"),
        ({"steps": {"i": {"task": "y"}}, "agent": "a"}, "agent"),
        ({"steps": {}}, "steps"),
        ("text", "s"),
        (None, "s"),
    ],
)
def test_a_step_that_is_none_is_told_by_name(step: Any, words: str) -> None:
    error = refused(steps(s=step))
    assert words in error.message
    assert "s" in error.message
    assert error.step == "s"


def test_null_in_a_step_means_absent() -> None:
    """Go writes null for an empty list, Java for whatever is not set."""
    names = "steps output description agent needs when with for_each concurrency repeat retry timeout".split()
    whole = steps(s={"task": "x", **dict.fromkeys(names)}, t={"task": "x", "retry": dict.fromkeys(_RETRY)})
    plan = inline({**whole, "input": None, "output": None})
    assert plan.output is None
    assert plan.steps["s"] == inline(steps(s={"task": "x"})).steps["s"]
    assert plan.steps["t"].retry == plan.steps["s"].retry


_RETRY = "max_attempts initial_seconds multiplier max_seconds jitter".split()


def test_unknown_fields_of_an_inline_workflow_are_ignored() -> None:
    assert inline({**steps(s={"task": "x", "colour": "red"}), "title": "x"}).steps["s"].task_type == "x"


def test_sub_workflows_nest_to_a_depth() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"steps": {"s": nested(depth - 1) if depth else {"task": "x"}}}

    assert inline(nested(MAX_DEPTH)).steps
    assert "deeper" in refused(nested(MAX_DEPTH + 1)).message


def test_an_inline_sub_workflow_sees_its_own_names_only() -> None:
    inner = {"steps": {"i": {"task": "x", "with": {"t": "${outer.text}"}}}}
    error = refused(steps(outer={"task": "x"}, sub=inner))
    assert error.step == "i"
    assert "there is no 'outer' here" in error.message


def test_a_mistake_in_one_of_many_steps_is_told_in_few_words() -> None:
    many = {f"step_{'x' * 50}_{n}": {"task": "x"} for n in range(5000)}
    refused({"steps": {**many, "s": {"task": "x", "needs": ["n" * 100_000]}}})
    refused({"steps": {**many, "s": {"task": "x", "with": {"a": "${nobody}"}}}})
    refused({"steps": {**many, "s": {"task": "X" * 100_000}}})
    refused({"steps": {**many, "S" * 100_000: {"task": "x"}}})


@settings(max_examples=60)
@given(st.data())
def test_whatever_needs_whatever_it_is_a_plan_or_a_circle(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    edges = data.draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))))
    graph = {f"s{n}": {"task": "x", "needs": [f"s{b}" for a, b in edges if a == n]} for n in range(count)}

    def reaches(start: int, goal: int, seen: frozenset[int] = frozenset()) -> bool:
        return any(b == goal or (b not in seen and reaches(b, goal, seen | {b})) for a, b in edges if a == start)

    circular = any(reaches(n, n) for n in range(count))
    if circular:
        shown = refused({"steps": graph}).message.split(": ")[1].split(" -> ")
        # What is shown is a circle indeed.
        assert shown[0] == shown[-1]
        assert all(second in graph[first]["needs"] for first, second in itertools.pairwise(shown))
    else:
        plan = inline({"steps": graph})
        assert {(a, need) for a, step in plan.steps.items() for need in step.needs} == {
            (f"s{a}", f"s{b}") for a, b in edges
        }


# -- input -----------------------------------------------------------------------------------------------------------


def with_input(schema: dict[str, Any]) -> Plan:
    workflow = Workflow.model_validate({"input": schema, "steps": {"s": {"task": "x"}}})
    return compile_workflow(workflow, name="w")


def test_defaults_are_filled_in_and_the_rest_is_kept() -> None:
    plan = with_input({"properties": {"style": {"default": "plain"}, "n": {"type": "integer"}}})
    assert plan.read_input({"n": 1, "more": True}) == {"style": "plain", "n": 1, "more": True}
    assert plan.read_input({"style": None}) == {"style": None}


def test_an_input_that_the_schema_refuses_is_invalid_request_naming_the_field() -> None:
    plan = with_input({"properties": {"l": {"items": {"type": "integer"}}}, "required": ["topic"]})
    with pytest.raises(InvalidRequest, match=r"payload\.l\.1"):
        plan.read_input({"topic": "x", "l": [1, "two"]})
    with pytest.raises(InvalidRequest, match="topic"):
        plan.read_input({})
    with pytest.raises(InvalidRequest) as raised:
        plan.read_input({"topic": "x", "l": ["x" * 500_000]})
    assert len(raised.value.message) < 1000


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"properties": []}, {"required": "x"}])
def test_a_schema_that_is_none_is_invalid_workflow(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidWorkflow, match="JSON Schema"):
        with_input(schema)


def test_a_plan_without_a_schema_takes_anything() -> None:
    plan = inline(CONTRACT)
    assert plan.input_schema is None
    assert plan.read_input({"a": 1}) == {"a": 1}


# -- library ---------------------------------------------------------------------------------------------------------


def versioned(name: str, task: str) -> Plan:
    return compile_workflow(Workflow.model_validate({"steps": {"s": {"task": task}}}), name=name, versioned=True)


def test_a_running_task_keeps_the_version_it_began_with() -> None:
    old, new = versioned("w", "x"), versioned("w", "y")
    library = Library([old])
    library.add(new)
    assert old.version != new.version
    assert library.newest("w") is new
    assert library.version(old.version or "") is old
    assert library.names == ("w",)
    assert library.plans == (new,)
    assert library.newest("nobody") is None


def test_a_version_is_what_its_definition_says() -> None:
    assert versioned("w", "x").version == versioned("w", "x").version


def test_an_old_version_is_read_back_from_its_definition() -> None:
    for plan in load_folder(BUILTIN_FOLDER):
        assert plan.version is not None
        assert plan.definition is not None
        library = Library()
        assert not library.has_version(plan.version)
        library.remember(plan.version, plan.name, plan.definition)
        again = library.version(plan.version)
        assert again.version == plan.version
        assert {name: step.needs for name, step in again.steps.items()} == {
            name: step.needs for name, step in plan.steps.items()
        }


def test_a_definition_of_another_orchestrators_language_is_told_and_not_put_in() -> None:
    library = Library()
    definition = {"steps": {"a": {"teleport": "far"}}}
    with pytest.raises(InvalidWorkflow, match=r"workflow w, version 0123\.steps\.a: a step has exactly one of"):
        library.remember("0123", "w", definition)
    assert not library.has_version("0123")


def test_a_version_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(InvalidWorkflow, match="not in the database"):
        Library().version("0123")


def test_an_inline_graph_is_compiled_once_whatever_its_input() -> None:
    library = Library()
    first, with_input = library.inline({**CONTRACT, "input": {"text": "a"}})
    second, other_input = library.inline({**CONTRACT, "input": {"text": "b"}})
    assert first is second
    assert (with_input, other_input) == ({"text": "a"}, {"text": "b"})
    for number in range(INLINE_PLANS):
        library.inline(steps(s={"task": "x", "with": {"n": number}}))
    assert library.inline(CONTRACT)[0] is not first


def test_int_and_double_are_two_graphs() -> None:
    library = Library()
    one, _ = library.inline(steps(s={"task": "x", "with": {"n": 1}}))
    other, _ = library.inline(steps(s={"task": "x", "with": {"n": 1.0}}))
    assert one is not other


@pytest.mark.parametrize(
    ("step", "refused"),
    [
        ({"task": "w", "retry": {"max_attempts": 2}}, True),
        ({"task": "w", "retry": {"max_attempts": 2}, "agent": "orchestrator_agent"}, True),
        ({"steps": {"i": {"task": "w", "timeout": 5}}}, True),
        ({"task": "x", "retry": {"max_attempts": 2}}, False),
        ({"task": "w", "retry": {"max_attempts": 2}, "agent": "words_agent"}, False),
        ({"task": "w", "retry": None}, False),
        ({"task": "w", "compensate": {"task": "x", "timeout": 5}}, False),
    ],
)
def test_keys_of_agents_tasks_are_refused_as_soon_as_their_task_is_known_to_be_a_workflow(
    step: dict[str, Any], refused: bool
) -> None:
    library = Library()
    plan, _ = library.inline(steps(s=step))
    library.refuse_agent_keys(plan)
    library.add(versioned("w", "x"))
    if refused:
        with pytest.raises(InvalidWorkflow, match="'w' is a workflow"):
            library.refuse_agent_keys(plan)
    else:
        library.refuse_agent_keys(plan)


def test_a_single_task_is_a_plan_of_one_step() -> None:
    library = Library()
    plan = library.single("translate")
    assert plan.single
    assert plan is library.single("translate")
    assert plan.steps["translate"].payload.render({"input": {"a": 1}}) == {"a": 1}


@pytest.mark.parametrize("reference", ["file:///etc/passwd", "http://127.0.0.1:9/schema.json"])
def test_a_schema_that_leads_elsewhere_is_refused_and_not_followed(reference: str) -> None:
    """The orchestrator read its own machine's files, and asked servers of its network, for whoever sent a graph."""
    step = {"wait_for": {"signal": "go", "schema": {"$ref": reference}}}
    with pytest.raises(InvalidWorkflow, match="is outside of the schema, and is not fetched"):
        compile_workflow(Workflow.model_validate({"steps": {"a": step}}), name="w")


def test_a_schema_that_leads_to_a_place_in_itself_is_followed() -> None:
    schema = {"$ref": "#/$defs/text", "$defs": {"text": {"required": ["text"]}}}
    plan = compile_workflow(Workflow.model_validate({"input": schema, "steps": {"a": {"task": "x"}}}), name="w")
    with pytest.raises(InvalidRequest, match="text"):
        plan.read_input({})
