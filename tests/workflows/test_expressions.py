"""CEL over JSON values: what names mean, what types come out, what mistakes say."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_agent.workflows.cel.scanner import variables_of, words_of
from orchestrator_agent.workflows.expression import Environment, Expression, shown_names
from protocol.errors import ErrorCode, ExpressionError, InvalidWorkflow
from protocol.names import RESERVED_STEP_NAMES, is_step_name

NAMES = frozenset({"input", "a", "b", "item_of"})


def compiled(text: str, names: frozenset[str] = NAMES) -> Expression:
    return Environment(names).compile(text, step="here")


def value(text: str, **variables: Any) -> Any:
    return compiled(text, NAMES | variables.keys()).evaluate(variables)


def mistake(text: str) -> InvalidWorkflow:
    with pytest.raises(InvalidWorkflow) as raised:
        compiled(text)
    assert raised.value.step == "here"
    assert "step 'here'" in raised.value.message
    assert "\n" not in raised.value.message
    return raised.value


def failure(text: str, **variables: Any) -> ExpressionError:
    with pytest.raises(ExpressionError) as raised:
        value(text, **variables)
    assert raised.value.code == ErrorCode.EXPRESSION_ERROR
    assert "\n" not in raised.value.message
    return raised.value


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input", {"n": 1, "x": 1.5, "t": "é", "none": None, "l": [1, 2], "o": {"a-b": True}, "whole": 1.0}),
        ("input.n", 1),
        (" input.n ", 1),
        ("input.none", None),
        ("input.l", [1, 2]),
        ("input.l[1]", 2),
        ('input["n"]', 1),
        ('input.o["a-b"]', True),
        ("input.o.`a-b`", True),
        ("{'in': 1}.`in`", 1),
        (".input.n", 1),
        ("input.n + 1", 2),
        ("input.x + 1.0", 2.5),
        ("input.t + '!'", "é!"),
        ("size(input.l)", 2),
        ("input.l.size()", 2),
        ("input.l.map(x, x * 2)", [2, 4]),
        ("input.l.filter(x, x > 1)", [2]),
        ("input.l.exists(x, x == 2) && input.l.all(x, x > 0)", True),
        ("has(input.n) && !has(input.nothing)", True),
        ("input.?nothing.orValue('none')", "none"),
        ("input.n == 1 ? 'one' : 'many'", "one"),
        ("'a,b'.split(',')", ["a", "b"]),
        ("math.greatest(1, 2)", 2),
        ("{'k': input.n}", {"k": 1}),
        ("{1: 'int', 2u: 'uint'}", {"1": "int", "2": "uint"}),
        ("{true: 'bool'}", {"true": "bool"}),
        ("[1, 2.0, 'x', null, true]", [1, 2.0, "x", None, True]),
        ("null", None),
        ("true", True),
        ("'plain'", "plain"),
        ("7u", 7),
        ("b'abc'", "YWJj"),
        ("duration('3.5s')", "3.5s"),
        ("timestamp('2026-01-31T12:00:00Z')", "2026-01-31T12:00:00Z"),
        ("1.0 / 0.0", None),  # JSON has no infinity; a run that is read again must see the same
        ("[0.0 / 0.0]", [None]),
        ("input.n // a comment: 'quote\n + 1", 2),
    ],
)
def test_values_are_those_of_cel_as_json(text: str, expected: object) -> None:
    given = {"n": 1, "x": 1.5, "t": "é", "none": None, "l": [1, 2], "o": {"a-b": True}, "whole": 1.0}
    assert value(text, input=given) == expected


@pytest.mark.parametrize(
    ("number", "kind"), [(1, "int"), (-5, "int"), (2**62, "int"), (1.0, "double"), (1e3, "double"), (0.5, "double")]
)
def test_numbers_without_fraction_are_int_and_others_double(number: float, kind: str) -> None:
    assert value(f"type(input.n) == {kind}", input={"n": number}) is True
    assert type(value("input.n", input={"n": number})) is type(number)
    # Through the evaluator as well as along a path.
    assert type(value("[input.n][0]", input={"n": number})) is type(number)


def test_int_and_double_do_not_mix() -> None:
    assert "overload" in failure("input.n + 1.0", input={"n": 1}).message
    assert value("double(input.n) + 1.5", input={"n": 1}) == 2.5
    assert value("input.n == 1.0", input={"n": 1}) is True


def test_an_integer_beyond_64_bits_is_passed_on_but_not_reckoned_with() -> None:
    assert value("input.n", input={"n": 2**70}) == 2**70
    assert "range" in failure("input.n + 1", input={"n": 2**70}).message
    assert "range" in failure("string(input.n)", input={"n": -(2**70)}).message


def test_an_integer_beyond_64_bits_is_in_nobodys_way() -> None:
    """Every expression failed while one was anywhere in what it might have read."""
    given = {"text": "abc", "far": [{"n": 2**70}, 10**400]}
    assert value("size(input.text)", input=given) == 3
    assert value("[input.far[0].n, 1, b'abc']", input=given) == [2**70, 1, "YWJj"]
    assert value("input.far", input=given) == value("{'far': input.far}.far", input=given) == given["far"]


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("input.n", {"input"}),
        ("a.text + b.text", {"a", "b"}),
        ("a['b']", {"a"}),
        ("a[b.key]", {"a", "b"}),
        ("input.a.b", {"input"}),
        ("input . a", {"input"}),
        ("input.?a", {"input"}),
        ("[a][0].b", {"a"}),
        ("'x'.b", set()),
        ("f(a).b", {"a"}),
        (".a.b", {"a"}),
        ("1 + .a.b", {"a"}),
        ("input.x ? a : b", {"input", "a", "b"}),
        ("'a' + \"b\" + '''a''' + r'\\'", set()),
        ('"\\"a" + b', {"b"}),
        ("r'a\\' + b", {"b"}),
        ("input // + a", {"input"}),
        ("input.`a`", {"input"}),
        ("1.0e5 + a", {"a"}),
        ("0xab + b", {"b"}),
        ("{'a': b}", {"b"}),
        ("{a: b}", {"a", "b"}),
        # A macro's own variable hides the step of that name, within the macro only.
        ("input.l.map(a, a.x)", {"input"}),
        ("input.l.map(a, a.x) + a.l", {"input", "a"}),
        ("a.l.map(a, a.x)", {"a"}),
        ("input.l.filter(a, a.x).map(b, b.y)", {"input"}),
        ("input.l.map(a, input.m.map(b, a + b))", {"input"}),
        ("input.l.map(x, a.y + x)", {"input", "a"}),
        ("input.l.exists(a, [1].exists_one(x, x == a))", {"input"}),
        ("optional.of(1).optMap(a, a + 1)", set()),
        ("map(a, b)", {"a", "b"}),
        ("input.map", {"input"}),
    ],
)
def test_a_reference_is_a_name_that_stands_for_a_variable(text: str, names: set[str]) -> None:
    try:
        uses = compiled(text).uses
    except InvalidWorkflow:
        uses = frozenset(name for _, name in variables_of(words_of(text))) & NAMES
    assert uses == names


TYPE_NAMES = "bool bytes double dyn int list map null_type optional_type string type uint google".split()


@pytest.mark.parametrize("name", [*TYPE_NAMES, "size", "has", "all", "exists", "filter", "matches", "duration", "math"])
def test_a_step_may_be_called_like_a_type_or_a_function(name: str) -> None:
    assert is_step_name(name)
    given = {name: {"text": "t", "n": 2, "l": [3]}}
    assert value(f"{name}.text", **given) == "t"
    assert value(f"{name}.n + 1", **given) == 3
    assert value(f"'x' + {name}.text", **given) == "xt"
    assert value(f"[{name}][0].n", **given) == 2
    assert value(f"{name}.l.map({name}, {name} + 1)", **given) == [4]
    assert value(f"size({name}.l) == 1 && has({name}.text)", **given) is True
    assert compiled(f"{name}.n + 1", frozenset({name})).uses == {name}


def test_types_and_functions_are_still_there_beside_steps_of_their_names() -> None:
    given: dict[str, Any] = {"type": {"n": 1}, "int": {"n": 2}, "string": {"n": 3}}
    assert value("int('7') + int.n", **given) == 9
    assert value("string(int.n) + string(string.n)", **given) == "23"
    assert value("type(type.n) == type(1)", **given) is True


@pytest.mark.parametrize("word", sorted(RESERVED_STEP_NAMES - {"input"}))
def test_reserved_words_are_no_names_of_steps(word: str) -> None:
    assert not is_step_name(word)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_expression_is_a_mistake(text: str) -> None:
    assert "empty" in mistake(text).message


@pytest.mark.parametrize(
    "text",
    [
        "nobody.text",
        "nobody",
        "int",
        "nobody + 1",
        "a +",
        "a b",
        "(a",
        "a)",
        "'open",
        "a.b.",
        "1 = 2",
        "unknown(a)",
        "'x' + 1",
        "{'a' 1}",
        "a[",
        "@",
        "9" * 30,
        "if",
        "while.x + 1",
        "input.in",
        "input.null.a",
        "cel.bind(x, 1, x)",
        "a;b",
        "\0",
    ],
)
def test_what_does_not_compile_is_invalid_workflow_naming_step_and_expression(text: str) -> None:
    error = mistake(text)
    assert error.code == ErrorCode.INVALID_WORKFLOW
    assert text.strip() in error.message


def test_an_unknown_name_is_told_what_there_is() -> None:
    assert mistake("nobody.text").message.endswith("there is no 'nobody' here; there is a, b, input, item_of")


def test_of_many_names_some_are_told() -> None:
    assert shown_names(f"s{n}" for n in range(12)) == "s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 2 more"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input.nothing", "'input' has no field 'nothing'"),
        ("input.o.nothing", "'input.o' has no field 'nothing'"),
        ("input.none.text", "'input.none' is null, it has no field 'text'"),
        ("input.n.text", "'input.n' is a number, it has no field 'text'"),
        ("input.t.text", "'input.t' is a string, it has no field 'text'"),
        ("input.l.text", "'input.l' is a list, it has no field 'text'"),
        ("input.yes.text", "'input.yes' is a boolean, it has no field 'text'"),
        ("input['nothing']", "nothing"),
        ("input.l[9]", "index=9 size=1"),
        ("1 / (input.n - 1)", "divide by zero"),
        ("input.n + 'x'", "overload"),
        ("int('x')", "int"),
        ("timestamp('x')", "x"),
        ("9223372036854775807 + input.n", "overflow"),
        ("input.nothing == 1", "nothing"),
    ],
)
def test_what_fails_says_where_and_why(text: str, words: str) -> None:
    given = {"n": 1, "t": "t", "l": [1], "o": {}, "none": None, "yes": True}
    error = failure(text, input=given)
    assert words in error.message
    assert text in error.message
    assert error.details == {"expression": text}


@pytest.mark.parametrize("result", [None, 1, 0, "true", [], {}, 1.5])
def test_a_condition_is_true_or_false_and_nothing_like_it(result: object) -> None:
    assert compiled("input.x").condition({"input": {"x": True}}) is True
    assert compiled("!input.x").condition({"input": {"x": True}}) is False
    with pytest.raises(ExpressionError, match=r"must be true or false, not (null|a|an) ?"):
        compiled("input.x").condition({"input": {"x": result}})


# -- what nobody writes, but somebody sends ----------------------------------------------------------------------------


HOSTILE = {
    "parentheses": "(" * 200_000 + "1" + ")" * 200_000,
    "brackets": "[" * 200_000,
    "negations": "!" * 200_000 + "true",
    "a long sum": "+".join(["input.a"] * 50_000),
    "conditions": "true ? 1 : " * 20_000 + "1",
    "names": "a.b " * 100_000,
    "a quote without end": '"' + '\\"' * 200_000,
    "quotes without end": "'\"" * 100_001,
    "members": "a" + ".b" * 100_000 + "[0]",
    "a macro in a macro": "input.l.map(x, " * 500 + "1" + ")" * 500,
    "dots": "." * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_expression_is_refused_soon_and_in_few_words(text: str) -> None:
    """The orchestrator's loop compiles it: seconds here are seconds for everybody; the error must fit a response."""
    start = time.process_time()
    with pytest.raises((InvalidWorkflow, ExpressionError)) as raised:
        value(text, input={"l": [1], "a": 1}, a={})
    assert time.process_time() - start < 30
    assert len(raised.value.message) + len(str(raised.value.details)) < 2000


def test_loops_within_loops_have_a_budget() -> None:
    start = time.process_time()
    failure("input.l.map(x, input.l.map(y, input.l.map(z, x + y + z)))", input={"l": list(range(500))})
    assert time.process_time() - start < 30


def test_a_failed_expression_over_huge_values_is_told_in_few_words() -> None:
    assert len(failure("input.text + 1", input={"text": "x" * 500_000}).message) < 1000
    assert len(failure(f"input.{'k' * 90_000}", input={}).message) < 1000


@given(st.text(alphabet="ab.[](){}'\"\\`/ \n?:,+1input", max_size=40))
def test_any_text_compiles_or_is_an_invalid_workflow(text: str) -> None:
    try:
        expression = compiled(text)
    except InvalidWorkflow as error:
        assert error.step == "here"  # noqa: PT017
        return
    try:
        expression.evaluate({"input": {"a": 1}, "a": {"b": [1]}, "b": "x"})
    except ExpressionError as error:
        assert error.message  # noqa: PT017


_PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=0, max_size=4)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=12,
)


@given(_JSON, _PATHS)
def test_a_path_walks_to_where_the_evaluator_goes(sample: Any, path: list[str]) -> None:
    """Paths have a shortcut around the evaluator; it must not be told apart from it."""
    text = ".".join(["input", *path])

    def outcome(source: str) -> tuple[str, Any]:
        try:
            return "value", value(source, input=sample)
        except ExpressionError:
            return "error", None

    assert outcome(text) == outcome(f"[{text}][0]")
