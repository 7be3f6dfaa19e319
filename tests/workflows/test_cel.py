"""The evaluator of expressions: as Google's, but for what is said here; any size; nothing that ends the process."""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator_agent.workflows.cel.formatting import double_text
from orchestrator_agent.workflows.expression import Environment
from orchestrator_agent.workflows.template import compile_template
from protocol.errors import ExpressionError, InvalidWorkflow
from tests.workflows.cel_expressions import VARIABLES, expressions, outcome_of_the_library, same


def value(text: str, **variables: Any) -> Any:
    return Environment(variables.keys() | {"input"}).compile(text, step="here").evaluate(variables)


def failure(text: str, **variables: Any) -> str:
    with pytest.raises(ExpressionError) as raised:
        value(text, **variables)
    assert len(raised.value.message) < 1000
    return raised.value.message


def mistake(text: str) -> str:
    with pytest.raises(InvalidWorkflow) as raised:
        Environment({"input", "a"}).compile(text, step="here")
    return raised.value.message


# -- as Google's evaluator -------------------------------------------------------------------------------------------


def outcome(text: str) -> tuple[str, Any]:
    try:
        expression = Environment(VARIABLES.keys()).compile(text, step="here")
    except InvalidWorkflow:
        return "refused", None
    try:
        return "value", expression.evaluate(VARIABLES)
    except ExpressionError:
        return "failed", None


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions())
@example("input.nothing == 1 || input.n == 7")
@example("[1, 'a'].exists(e, e > 0)")
@example("['a', 1].all(e, e > 0)")
@example("input.mixed.exists_one(e, e == 1)")
@example("string(1234567.0) + string(1e-7) + string(double(9223372036854775807))")
@example("'%s %d %.3f %e %x %X %o %b %%'.format([[1, {'b': 2.5}], 1, 1.0 / 3.0, 1e10, 'hi', 255, 8, 5])")
@example("input.mixed.map(e, type(e) == int, e)")
@example("each.filter(e, e.id == 2).map(e, {'id': e.id, 't': e.t})")
@example("input.l.map(e, each.map(w, w.id * e))")
@example("timestamp('2024-02-29T23:59:59.5Z') + duration('36h')")
@example("timestamp('2024-03-31T01:30:00Z').getHours('Europe/Berlin')")
def test_an_expression_is_evaluated_as_google_does(text: str) -> None:
    theirs = outcome_of_the_library(text)
    mine = outcome(text)
    assert mine[0] == theirs[0], text
    assert theirs[0] != "value" or same(mine[1], theirs[1]), text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_of_a_double_is_read_as_that_double(number: float) -> None:
    assert float(double_text(number)) == number


# -- other than Google's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["has(input.none.x)", "input.none.?x.hasValue()", "input.?none.?x.?y.hasValue()"])
def test_of_null_nothing_has_a_field(text: str) -> None:
    """The documentation said that `has` and `.?` ask first; they failed where the field before was null."""
    assert value(text, input={"none": None}) is False


def test_a_field_of_null_may_be_asked_for_with_a_default() -> None:
    assert value("input.none.?x.orValue('d')", input={"none": None}) == "d"
    assert value("input.?gone.?x.orValue('d')", input={}) == "d"
    assert value("input.none[?'x'].orValue('d')", input={"none": None}) == "d"


@pytest.mark.parametrize("text", ["has(input.n.x)", "input.n.?x", "has(input.gone.x)"])
def test_a_field_of_what_has_no_fields_is_still_a_mistake(text: str) -> None:
    assert failure(text, input={"n": 1})


def test_a_text_may_be_taken_to_its_end() -> None:
    """The library refuses an end that is the text's own."""
    assert value("'abc'.substring(1, 3)") == "bc"


def test_texts_keep_their_nul_characters() -> None:
    assert value("input.t + '!'", input={"t": "a\0b"}) == "a\0b!"
    assert "NUL" in failure("input.t.matches('a')", input={"t": "a\0b"})


@pytest.mark.parametrize(
    "text",
    [
        "optional.of(1)",
        "optional.none()",
        "[optional.of(1)]",
        "{'a': optional.of(1)}",
        "input.?n",
        "input.l.map(e, optional.of(e))",
        "[[optional.of({'a': 1})]]",
        "input.l.first()",
    ],
)
def test_an_optional_value_is_no_result_and_says_what_to_write(text: str) -> None:
    """Some of these ended the process; others gave a text in the library's own words."""
    assert "orValue" in failure(text, input={"n": 1, "l": [1]})


def test_optional_values_work_within_an_expression() -> None:
    assert value("[?input.?n, ?input.?gone, 3]", input={"n": 1}) == [1, 3]
    assert value("{?'a': input.?n, ?'b': input.?gone}", input={"n": 1}) == {"a": 1}
    assert value("input.l.map(e, e.?t.orValue('none'))", input={"l": [{"t": "x"}, {}]}) == ["x", "none"]
    assert value("input.?n.optMap(v, v + 1).orValue(0)", input={"n": 1}) == 2


def test_an_integer_beyond_64_bits_spoils_nothing_beside_it() -> None:
    with_input = {"n": 2**70, "m": 3, "l": [2**70, 1]}
    assert value("input.m + 1", input=with_input) == 4
    assert value("input.l[1] + size(input.l)", input=with_input) == 3
    assert value("input.l.map(e, e)", input=with_input) == [2**70, 1]
    assert value("{'n': input.n, 'm': input.m}", input=with_input) == {"n": 2**70, "m": 3}
    assert value("input.n == input.l[0] && input.n > 1", input=with_input) is True
    assert "range" in failure("input.n - input.n", input=with_input)
    assert "range" in failure("string(input.n)", input=with_input)


@pytest.mark.parametrize(
    "text", ["size(input.l) > 1.5", "1 < 1.5", "double(input.n) >= 2", "1u == 1.0 ? 1 : 2", "[1, 2].size() != 2.0"]
)
def test_an_int_compared_with_a_double_says_what_to_write(text: str) -> None:
    assert "int and double do not mix: write double(…)" in mistake(text)


def test_an_int_added_to_a_double_says_what_to_write() -> None:
    assert "double(…)" in failure("input.n + input.x", input={"n": 1, "x": 1.5})


def test_a_mistake_is_told_where_it_is_in_the_text_that_was_written() -> None:
    assert "at character 15: undeclared reference to 'foo'" in mistake("input.n + a + foo")
    assert "at line 2, character 5: undeclared reference to 'foo'" in mistake("input.n +\na + foo")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("google.protobuf.Int32Value{value: 3}", "makes a message"),
        ("{'a': 1, 'a': 2}", "same key twice"),
        ("input == null ? nothing(1) : [2]", "undeclared reference to 'nothing'"),
        ("input == null ? nobody : [2]", "undeclared reference to 'nobody'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_when_it_is_loaded(text: str, words: str) -> None:
    assert words in mistake(text)


@pytest.mark.parametrize("word", ["pantheon__v0", "pantheon__v9", "sort_pairs__", "group_pairs__"])
@pytest.mark.parametrize("text", ["{}.x + input.n", "[1].map({}, {} + input.n)", "input.{}()"])
def test_names_of_the_checkers_own_are_nobodys(word: str, text: str) -> None:
    """An expression that named one of the pool would have read another variable, or hidden one from itself."""
    assert f"undeclared reference to '{word}'" in mistake(text.replace("{}", word))


# -- any size --------------------------------------------------------------------------------------------------------

MANY = 50_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input.l.map(e, e.n)", list(range(MANY))),
        ("input.l.filter(e, e.n % 2 == 1).size()", MANY // 2),
        ("input.l.map(e, e.n > 10, e.n).size()", MANY - 11),
        ("input.l.all(e, e.n >= 0) && !input.l.exists(e, e.n < 0)", True),
        ("input.l.exists_one(e, e.n == 7)", True),
        ("size(input.l.map(e, e.t).join(','))", 2 * MANY - 1),
        ("size(input.l + input.l)", 2 * MANY),
        ("input.l == input.l", True),
        ("input.l.map(e, [e.n, e.n].map(x, x + 1)[0]).size()", MANY),
    ],
)
def test_a_list_of_any_length_is_gone_over(text: str, expected: Any) -> None:
    """From 10,000 elements on it failed, after all the work whose results it was to gather had been done."""
    assert value(text, input={"l": [{"n": n, "t": "x"} for n in range(MANY)]}) == expected


def test_a_fan_outs_results_are_gathered_in_a_template() -> None:
    template = compile_template({"texts": "${each.map(one, one.t)}", "n": "${size(each)}"}, Environment({"each"}))
    each = [{"t": str(n)} for n in range(20_000)]
    assert template.render({"each": each}) == {"texts": [each["t"] for each in each], "n": 20_000}


@pytest.mark.parametrize(("outer", "inner"), [(100, 100), (1000, 1000)])
def test_loops_within_loops_work(outer: int, inner: int) -> None:
    with_input = {"a": list(range(outer)), "b": list(range(inner))}
    assert value("input.a.map(x, input.b.filter(y, y == x).size()).size()", input=with_input) == outer


def test_loops_within_loops_have_a_bound() -> None:
    text = "input.l.map(x, input.l.map(y, input.l.exists(z, x + y + z < 0)))"
    assert "too many steps" in failure(text, input={"l": list(range(2000))})


def test_no_operator_hides_that_an_evaluation_takes_too_much() -> None:
    text = "input.l.exists(x, input.l.exists(y, input.l.exists(z, x + y + z < 0))) || true"
    assert "too many steps" in failure(text, input={"l": list(range(2000))})


@pytest.mark.parametrize(
    "text",
    [
        "optional.of(input.s)" + ".optMap(v, v + v)" * 8 + ".value().size()",
        "input.s.replace('', input.s).size()",
        "input.l.map(e, input.s).join('').size()",
        "[input.s + input.s].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)[0].size()",
    ],
)
def test_what_an_expression_builds_has_a_bound(text: str) -> None:
    with_input = {"s": "x" * 8_000_000, "l": [0] * 100}
    assert "builds more" in failure(text, input=with_input)


@pytest.mark.parametrize(
    "text",
    [
        "input.l.map(e, input)",
        "optional.of(input)" + ".optMap(v, [v, v, v, v, v, v])" * 8 + ".value()",
        "input.l.map(e, [input, input])",
    ],
)
def test_a_value_that_repeats_a_large_one_is_refused_before_it_is_written(text: str) -> None:
    """It is small in memory, where its parts are one; as text it would not fit into any."""
    assert "same values" in failure(text, input={"l": list(range(1000)), "s": "x" * 1_000_000})


def test_repeating_a_small_value_is_fine() -> None:
    assert value("input.l.map(e, [input.s, input.s])", input={"l": [1, 2], "s": "x"}) == [["x", "x"]] * 2


def test_a_chain_of_optional_macros_is_refused_before_it_is_parsed() -> None:
    """Each repeats what stands before it: twenty took the parser as many seconds."""
    assert "are allowed" in mistake("optional.of(1)" + ".optMap(v, v)" * 20 + ".value()")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(input+" * 200_000, "1400000 characters; 100000 are allowed"),
        ("(input+" * 14_000, "42000 names, numbers and signs"),
        (f"[{','.join('1' * 3000)}]", "6001 names"),
        (f"'{'a' * 100_000}'", "characters"),
    ],
)
def test_a_text_that_the_parser_would_need_long_for_is_refused_before(text: str, words: str) -> None:
    """Texts of a megabyte took minutes, in which the orchestrator did nothing else."""
    began = time.process_time()
    assert words in mistake(text)
    assert time.process_time() - began < 1


def test_a_large_table_is_still_an_expression() -> None:
    table = ", ".join(f"'k{number}': {number}" for number in range(1000))
    assert value(f"{{{table}}}[input.k]", input={"k": "k7"}) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("math.bitNot(input.n)", "range"),
        ("(-9223372036854775807 - 1) % -1", "overflow"),
        ("int(input.many)", "cannot convert"),
        ("parse_json(input.half)", "not JSON"),
        ("parse_json(input.half_key)", "not JSON"),
    ],
)
def test_what_has_no_value_in_64_bits_or_in_unicode_fails_as_an_expression(text: str, words: str) -> None:
    """Some were errors of Python's, and one a text that could not be stored."""
    with_input = {"n": 2**70, "many": "1" * 5000, "half": '"\\ud83d"', "half_key": '{"\\ud83d": 1}'}
    assert words in failure(text, input=with_input)


def test_zeros_before_an_integer_do_not_count() -> None:
    assert value("int(input.t) + int('-007') + int('0')", input={"t": "0" * 5000 + "1"}) == -6
    assert value("parse_json(input.t)", input={"t": '"\\ud83d\\ude00"'}) == "\U0001f600"


def test_an_evaluation_changes_none_of_its_variables() -> None:
    with_input = {"l": [{"n": 1}, {"n": 2}], "o": {"k": [1]}}
    before = json.dumps(with_input)
    value("(input.l + input.l).map(e, {'n': e.n}).filter(e, e.n > 1) + [input.o]", input=with_input)
    assert json.dumps(with_input) == before


# -- functions of our own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[].sum()", 0),
        ("input.costs.sum()", 3.5),
        ("[1.0, 2.0].sum()", 3.0),
        ("input.each.map(e, e.n).max() - [3, 1, 2].min()", 2),
        ("input.each.map(e, e.n).avg()", 2.0),
        ("['b', 'a'].min() + ['b', 'a'].max()", "ab"),
        ("[timestamp(5), timestamp(3)].min()", "1970-01-01T00:00:03Z"),
        ("input.each.sort_by(e, e.n).map(e, e.t)", ["a", "c", "b"]),
        ("input.each.sort_by(e, e.t)[0].n", 1),
        # Equals stay in the order in which they came.
        ("input.each.sort_by(e, e.k).map(e, e.t)", ["b", "a", "c"]),
        ("input.each.sort_by(e, -e.n).sort_by(e, e.k).map(e, e.n)", [3, 1, 2]),
        ("[[3, 1], [2]].sort_by(l, l.sort_by(x, x)[0]).flatten()", [3, 1, 2]),
        ("input.each.group_by(e, e.k).map(k, k)", ["x", "y"]),
        ("input.each.group_by(e, e.k)['x'].size()", 2),
        ("input.each.group_by(e, e.n > 1)", None),
        ("[1, 2, 3].group_by(x, x % 2)", {"1": [1, 3], "0": [2]}),
        ("[].group_by(x, x)", {}),
        ("[].sort_by(x, x)", []),
        ("[1, [2, [3, [4]]]].flatten(0)", [1, [2, [3, [4]]]]),
        ("[1, [2, [3, [4]]]].flatten(9)", [1, 2, 3, 4]),
        ("input.mixed.unique()", [1, True, "1", None, [1], {"a": 1}]),
        ("to_json({'b': [1, 2.5, null], 't': timestamp(0)})", '{"b":[1,2.5,null],"t":"1970-01-01T00:00:00Z"}'),
        ("parse_json(to_json(input.each)) == input.each", True),
        ("parse_json('1e3')", 1000.0),
    ],
)
def test_functions_of_our_own(text: str, expected: Any) -> None:
    each = [{"n": 3, "t": "b", "k": "x"}, {"n": 1, "t": "a", "k": "x"}, {"n": 2, "t": "c", "k": "y"}]
    mixed = [1, True, 1.0, "1", None, [1], [1.0], {"a": 1}, {"a": 1.0}, None, 1]
    made = value(text, input={"each": each, "costs": [1, 2.5], "mixed": mixed})
    if expected is None:
        expected = {"true": [each[0], each[2]], "false": [each[1]]}
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input.l.sum()", "sum is of numbers"),
        ("[].avg()", "avg of an empty list"),
        ("[].min()", "min of an empty list"),
        ("input.l.max()", "several types"),
        ("input.l.sort_by(e, e)", "several types"),
        ("[null].sort_by(e, e)", "null has no order"),
        ("[[1]].group_by(e, e)", "a key is a string"),
        ("[1].flatten(-1)", "a depth is"),
        ("[9223372036854775807, 1].sum()", "overflow"),
        ("[0.0 / 0.0, 1.0].sort_by(e, e)", "NaN has no order"),
        ("input.s.sum()", "of a list"),
        ("parse_json('{')", "not JSON"),
        ("parse_json('NaN')", "no NaN"),
        ("parse_json('1e999')", "too large"),
        ("to_json(optional.of(1))", "orValue"),
        ("input.l.sort_by(e, e.gone)", "no field 'gone'"),
    ],
)
def test_functions_of_our_own_say_what_is_wrong(text: str, words: str) -> None:
    assert words in failure(text, input={"l": [1, "a"], "s": "x"})


def test_macros_of_our_own_hide_a_step_of_their_variables_name() -> None:
    expression = Environment({"input", "a", "b"}).compile("input.l.sort_by(a, a.n + b.n).group_by(b, b.n)", step=None)
    assert expression.uses == {"input", "b"}


def test_a_mistake_in_a_macro_of_our_own_is_told_where_it_is() -> None:
    assert "at character 20: undeclared reference to 'foo'" in mistake("input.l.sort_by(e, foo)")
    assert "undeclared reference to 'sort_by'" in mistake("input.l.sort_by(1)")


def test_long_lists_are_sorted_and_written_in_pieces() -> None:
    numbers = [(n * 7919) % MANY for n in range(MANY)]
    with_input = {"l": [{"n": n} for n in numbers]}
    assert value("input.l.sort_by(e, e.n).map(e, e.n)", input=with_input) == sorted(numbers)
    assert json.loads(value("to_json(input.l)", input=with_input)) == with_input["l"]
