"""Long evaluations: what expressions may take of the event loop, and where they are evaluated when they need more.

Within `bounded()`, an evaluation that would keep the loop raises LongEvaluation, all the way out of the engine; the
caller then drops what was decided so far and decides again with `apart_from_the_loop`. There, long evaluations happen
in a thread, which gives way to the loop all the time, while the engine stands still as in an `await` (it runs in
a greenlet, as SQLAlchemy's ORM does in its asyncio).
"""

import asyncio
import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from greenlet import greenlet

from orchestrator_agent.workflows import evaluation
from orchestrator_agent.workflows.cel.meter import SLICE_UNITS, LongEvaluation, Meter, ThreadMeter
from orchestrator_agent.workflows.evaluation import UNBOUNDED, Evaluable

__all__ = ["LongEvaluation", "apart_from_the_loop", "bounded", "evaluated"]
T = TypeVar("T")

# One after the other: a second thread would only compete with the first, and with the loop, for the interpreter.
_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expression")


class LoopMeter(Meter):
    """Bounds what evaluations take of an event loop together in one of its iterations: some milliseconds."""

    ITERATION_UNITS = 50_000

    def __init__(self) -> None:
        self._left = self.ITERATION_UNITS
        self._renewing = False

    def pause(self) -> None:
        self._renew_soon()
        if self._left < SLICE_UNITS:
            raise LongEvaluation
        self._left -= SLICE_UNITS

    def settle(self, units: int) -> None:
        self._renew_soon()
        self._left -= units
        if self._left < 0:
            # Many short evaluations in a row are as long as one: the next one asks before it goes over anything.
            self.first_slice = 0

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self.renew)

    def renew(self) -> None:
        """An iteration has ended."""
        self._renewing = False
        self._left = self.ITERATION_UNITS
        self.first_slice = SLICE_UNITS


# Of this process: it has one event loop.
LOOP_METER = LoopMeter()


class _Bounded:
    def __enter__(self) -> None:
        evaluation.meter = LOOP_METER

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        evaluation.meter = UNBOUNDED


_BOUNDED = _Bounded()


def bounded() -> _Bounded:
    """A context in which an evaluation that would keep the event loop raises LongEvaluation. Holds no `await`."""
    return _BOUNDED


async def evaluated(decide: Callable[[], T]) -> T:
    """Call `decide` on the loop, or apart from it if that takes long: it may be called twice."""
    try:
        with bounded():
            return decide()
    except LongEvaluation:
        return await apart_from_the_loop(decide)


async def apart_from_the_loop(decide: Callable[[], T]) -> T:
    """Call `decide` in such a way that its long evaluations do not keep the loop. What it raises is raised."""
    return await _Decision(decide).run()


def _evaluate(expression: Evaluable, in_thread: Meter, variables: Mapping[str, Any]) -> Any:
    """Nothing that an expression makes is cyclic, and it may make millions of objects: the collector would go over all
    of them, again and again, and nothing else would run meanwhile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return expression.evaluate_by(in_thread, variables)
    finally:
        if collects:
            gc.enable()


class _Decision(Generic[T]):
    def __init__(self, decide: Callable[[], T]) -> None:
        self._greenlet = greenlet(decide)

    async def run(self) -> T:
        loop = asyncio.get_running_loop()
        step: Any = self._resume(self._greenlet.switch)
        while not self._greenlet.dead:
            expression, variables = step
            in_thread = ThreadMeter()
            try:
                value = await loop.run_in_executor(_threads, _evaluate, expression, in_thread, variables)
            except asyncio.CancelledError:
                in_thread.cancelled = True
                raise
            except Exception as error:
                step = self._resume(partial(self._greenlet.throw, error))
            else:
                step = self._resume(partial(self._greenlet.switch, value))
        result: T = step
        return result

    def _resume(self, switch: Callable[[], Any]) -> Any:
        evaluation.decision = self
        try:
            with bounded():
                return switch()
        finally:
            evaluation.decision = None

    def wait_for(self, expression: Evaluable, variables: Mapping[str, Any]) -> Any:
        """Called within the greenlet: hand the evaluation to `run`, and stand still until it is made."""
        parent = self._greenlet.parent
        assert parent is not None
        return parent.switch((expression, variables))
