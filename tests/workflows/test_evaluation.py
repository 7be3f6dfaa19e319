"""Long evaluations leave the event loop to the others, and end where they are wanted no more."""

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from orchestrator_agent.runtime.evaluations import LOOP_METER, apart_from_the_loop, bounded, evaluated
from orchestrator_agent.workflows import evaluation
from orchestrator_agent.workflows.cel.meter import SLICE_UNITS, LongEvaluation
from orchestrator_agent.workflows.expression import Environment, Expression
from protocol.errors import ExpressionError

LONG = Environment({"input"}).compile("input.l.map(e, e + 1)", step=None)
SHORT = Environment({"input"}).compile("input.l[0] + 1", step=None)
FAILING = Environment({"input"}).compile("input.l.map(e, e + 1).map(e, e + 1)[5] + input.s", step=None)
VARIABLES: dict[str, Any] = {"input": {"l": list(range(300_000)), "s": "x"}}


@pytest.fixture(autouse=True)
def _a_rested_loop() -> Iterator[None]:
    LOOP_METER.renew()
    yield
    assert evaluation.meter is evaluation.UNBOUNDED


async def test_an_evaluation_on_the_loop_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(LongEvaluation), bounded():
        LONG.evaluate(VARIABLES)
    with bounded():
        assert SHORT.evaluate(VARIABLES) == 1


async def test_many_evaluations_share_what_they_may_take_of_the_loop() -> None:
    """Each of thousands of items may be short, and all of them together keep everybody."""
    medium = {"input": {"l": list(range(SLICE_UNITS // 5))}}

    def evaluate_all() -> None:
        with bounded():
            for _ in range(1000):
                LONG.evaluate(medium)

    with pytest.raises(LongEvaluation):
        evaluate_all()
    await asyncio.sleep(0)
    with bounded():
        # The others have had their turn.
        assert len(LONG.evaluate(medium)) == SLICE_UNITS // 5


def test_where_nobody_else_waits_an_evaluation_takes_what_it_needs() -> None:
    assert len(LONG.evaluate(VARIABLES)) == 300_000


async def test_apart_from_the_loop_others_go_on_meanwhile() -> None:
    shares = 0
    done = asyncio.Event()

    async def other() -> None:
        nonlocal shares
        while not done.is_set():
            shares += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    order: list[Any] = []

    def decide() -> int:
        order.append(SHORT.evaluate(VARIABLES))
        before = shares
        order.append(len(LONG.evaluate(VARIABLES)))
        # The decision stood still in the midst, and the others did not.
        assert shares > before
        order.append(SHORT.evaluate(VARIABLES))
        return 7

    assert await apart_from_the_loop(decide) == 7
    done.set()
    await beside
    assert order == [1, 300_000, 1]


async def test_two_decisions_apart_from_the_loop_keep_their_own_values() -> None:
    def decide(count: int) -> Any:
        return lambda: [len(LONG.evaluate({"input": {"l": list(range(count))}})) for _ in range(3)]

    both = await asyncio.gather(apart_from_the_loop(decide(200_000)), apart_from_the_loop(decide(100_000)))
    assert list(both) == [[200_000] * 3, [100_000] * 3]


async def test_what_fails_apart_from_the_loop_fails_in_the_decision() -> None:
    def decide() -> str:
        try:
            FAILING.evaluate(VARIABLES)
        except ExpressionError as error:
            return error.message
        return ""

    assert "no matching overload" in await apart_from_the_loop(decide)

    def wrong() -> None:
        LONG.evaluate(VARIABLES)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await apart_from_the_loop(wrong)


async def test_a_decision_is_made_apart_from_the_loop_only_where_it_takes_long() -> None:
    times = 0

    def decide(expression: Expression) -> Any:
        nonlocal times
        times += 1
        return expression.evaluate(VARIABLES)

    assert await evaluated(partial(decide, SHORT)) == 1
    assert times == 1
    assert len(await evaluated(partial(decide, LONG))) == 300_000
    assert times == 3


async def test_a_decision_that_is_cancelled_ends_its_evaluation() -> None:
    nested = Environment({"input"}).compile("input.l.map(x, input.l.exists(y, x + y < 0)).size()", step=None)

    def decide() -> None:
        nested.evaluate({"input": {"l": list(range(2000))}})

    task = asyncio.create_task(apart_from_the_loop(decide))
    # It is in the thread as soon as it has had a turn.
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The thread is free again.
    assert await apart_from_the_loop(lambda: len(LONG.evaluate(VARIABLES))) == 300_000
