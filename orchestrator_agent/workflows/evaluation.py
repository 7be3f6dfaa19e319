"""How evaluations are metered now, and whether one that takes long may be waited for.

The engine is synchronous and evaluates expressions in the midst of its transitions. In an orchestrator, an evaluation
that would keep the event loop raises LongEvaluation, all the way out of the engine, or is made in a thread while the
decision stands still (`orchestrator_agent.runtime.evaluations`, which sets both variables here). In the test kit and in
the command line, evaluations take what they need.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator_agent.workflows.cel.meter import LongEvaluation, Meter


class Evaluable(Protocol):
    def evaluate_by(self, meter: Meter, variables: Mapping[str, Any]) -> Any: ...


class Decision(Protocol):
    """One that can stand still."""

    def wait_for(self, expression: Evaluable, variables: Mapping[str, Any]) -> Any: ...


UNBOUNDED = Meter()
# By which evaluations are metered now, and the decision whose evaluations may leave the loop, if one is at work.
meter: Meter = UNBOUNDED
decision: Decision | None = None


def apart(expression: Evaluable, variables: Mapping[str, Any]) -> Any:
    """Evaluate in the thread, where a decision can wait for it. Raises LongEvaluation where none can."""
    if decision is None:
        raise LongEvaluation
    return decision.wait_for(expression, variables)
