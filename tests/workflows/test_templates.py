"""Templates: `${…}` in JSON values, `$${`, interpolation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_agent.workflows.expression import Environment
from orchestrator_agent.workflows.template import Constant, compile_condition, compile_template, split
from protocol.errors import ExpressionError, InvalidWorkflow

INPUT = {"text": "hello", "n": 2, "x": 2.0, "l": [1, "é"], "o": {"k": None}, "yes": True, "none": None, "empty": ""}
ENVIRONMENT = Environment({"input", "shout"})


def rendered(template: Any) -> Any:
    return compile_template(template, ENVIRONMENT).render({"input": INPUT, "shout": {"text": "HELLO"}})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${input.text}", "hello"),
        ("${input.n}", 2),
        ("${input.x}", 2.0),
        ("${input.l}", [1, "é"]),
        ("${input.none}", None),
        ("${ input.yes }", True),
        ("${input.n == 2}", True),
        # Interpolation: strings as they are, other values as JSON.
        ("<${input.text}>", "<hello>"),
        (" ${input.text}", " hello"),
        ("${input.n}!", "2!"),
        ("${input.x}|${input.n}", "2.0|2"),
        ("${input.l}${input.o}", '[1,"é"]{"k":null}'),
        ("is ${input.yes} ${input.none}", "is true null"),
        ("${input.empty}${input.empty}", ""),
        ("${input.text}${shout.text}", "helloHELLO"),
        # Literal dollars.
        ("$", "$"),
        ("$$", "$$"),
        ("$x {y} }", "$x {y} }"),
        ("$${input.text}", "${input.text}"),
        ("$${", "${"),
        ("$$${input.text}", "$${input.text}"),
        ("$${a} ${input.n}", "${a} 2"),
        ("${input.n} $${a}", "2 ${a}"),
        ("costs $5 and ${input.n}", "costs $5 and 2"),
        # Braces and quotes within an expression are its own.
        ("${{'a': {'b': input.n}}}", {"a": {"b": 2}}),
        ("${'}'}", "}"),
        ('${"}" + input.text}', "}hello"),
        ("${'${'}", "${"),
        ("${'it\\'s }'}", "it's }"),
        ("${r'\\d}'}", "\\d}"),
        ("${'''}'}'''}", "}'}"),
        ("${input.l.map(v, {'v': v})}", [{"v": 1}, {"v": "é"}]),
        # CEL has comments, and what is in them ends no expression and opens no string.
        ("${input.n + 1 // plain\n}", 3),
        ("${input.n + 1 // that's all\n}", 3),
        ("${input.n + 1 // the } ends\n}", 3),
        ("${input.n // { \n + 1}", 3),
        ('<${input.n // "\n}> <${input.text}>', "<2> <hello>"),
        ("${'// no comment'}", "// no comment"),
        ("a ${{'k': 1}} b", 'a {"k":1} b'),
        # Structures.
        ({"a": "${input.n}", "b": ["${input.text}", 7, None]}, {"a": 2, "b": ["hello", 7, None]}),
        ({"${input.text}": 1}, {"${input.text}": 1}),
        ([], []),
        (7, 7),
        (None, None),
        ({"deep": [{"er": ["$${x}"]}]}, {"deep": [{"er": ["${x}"]}]}),
    ],
)
def test_rendering(template: Any, expected: Any) -> None:
    made = rendered(template)
    assert made == expected
    assert type(made) is type(expected)


def test_a_template_without_expressions_is_made_once() -> None:
    template = compile_template({"a": ["$${x}", 1, {"b": None}]}, ENVIRONMENT)
    assert template == Constant({"a": ["${x}", 1, {"b": None}]})


@pytest.mark.parametrize(
    ("template", "uses"),
    [
        ("plain", set()),
        ("${input.n}", {"input"}),
        ("${input.n} ${shout.text}", {"input", "shout"}),
        ({"a": ["${shout.text}"], "b": 1}, {"shout"}),
        (["${input.n}", "${shout.text}"], {"input", "shout"}),
    ],
)
def test_a_template_uses_what_its_expressions_read(template: Any, uses: set[str]) -> None:
    assert compile_template(template, ENVIRONMENT).uses == uses


@pytest.mark.parametrize(
    "template",
    [
        "${input.n // a comment to the end }",
        "${",
        "a ${input.text",
        "${'}",
        "${{'a': 1}",
        '${"',
        "x ${input.l.map(v, {'v': v)",
    ],
)
def test_a_hole_without_end_is_a_mistake_of_the_step(template: str) -> None:
    with pytest.raises(InvalidWorkflow, match=r"step 'draft': .*no closing brace") as raised:
        compile_template(template, ENVIRONMENT, step="draft")
    assert raised.value.step == "draft"


def test_a_mistake_deep_in_a_value_is_found_when_it_is_compiled() -> None:
    with pytest.raises(InvalidWorkflow, match="there is no 'nobody' here"):
        compile_template({"a": [{"b": "x ${nobody.text}"}]}, ENVIRONMENT, step="s")


def test_a_failure_when_rendering_says_which_expression() -> None:
    with pytest.raises(ExpressionError, match=r"input\.nothing"):
        rendered({"a": ["fine ${input.n}", "not ${input.nothing}"]})


@pytest.mark.parametrize("text", ["input.n > 1", "${input.n > 1}", " ${ input.n > 1 } ".strip()])
def test_a_condition_stands_with_or_without_its_dollar(text: str) -> None:
    condition = compile_condition(text, ENVIRONMENT, step="s")
    assert condition.condition({"input": INPUT}) is True
    assert condition.uses == {"input"}


@pytest.mark.parametrize("text", ["${input.n} > 1", "${input.yes}${input.yes}", "$${input.yes}", "x ${input.yes}"])
def test_a_condition_is_one_expression(text: str) -> None:
    with pytest.raises(InvalidWorkflow, match="step 's'"):
        compile_condition(text, ENVIRONMENT, step="s")


@given(st.text(alphabet="${}ab'\" ", max_size=30))
def test_any_text_is_split_into_pieces_or_refused(text: str) -> None:
    try:
        pieces = split(text, step="s")
    except InvalidWorkflow as error:
        assert error.step == "s"  # noqa: PT017
        return
    # Put together again, with what stands for a dollar, it is the text.
    shown = (f"${{{each}}}" if is_expression else each.replace("${", "$${") for is_expression, each in pieces)
    assert "".join(shown) == text


@given(st.text())
def test_any_text_can_be_written_as_a_literal(text: str) -> None:
    assert rendered(text.replace("${", "$${")) == text or text.endswith("$") or "$${" in text


# The evaluator's binding (cel-expr-python 0.1) cuts texts at a NUL character; paths, which do not need it, do not.
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=15,
)


@given(_JSON)
def test_a_value_comes_through_one_expression_alone_as_it_is(value: Any) -> None:
    template = compile_template("${input.v}", ENVIRONMENT)
    made = template.render({"input": {"v": value}})
    assert made == value
    through_the_evaluator = compile_template("${[input.v][0]}", ENVIRONMENT).render({"input": {"v": value}})
    assert through_the_evaluator == value
    assert repr(through_the_evaluator) == repr(value) or isinstance(value, dict | list)


def test_an_expression_longer_than_one_may_be_is_refused_at_its_brace() -> None:
    """The whole of a large text was scanned for its end, character by character."""
    with pytest.raises(InvalidWorkflow, match="longer than 100000 characters"):
        compile_template("a ${'" + "x" * 10_000_000 + "'}", Environment({"input"}))
    template = compile_template("$5 " + "x" * 10_000_000 + "${input} $", Environment({"input"}))
    assert template.render({"input": 1}).endswith("x1 $")
