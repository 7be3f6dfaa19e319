"""Testing: the engine with agents that are functions and a clock that a test moves; no server, no database.

It lives here, and not in the kit, because it is an orchestrator of its own kind: it composes the same planner, router
and transitions as `service.py` does, around rows in memory. Its public name is `pantheon.testing`.
"""

from orchestrator_agent.testing.agents import NO_ANSWER, Call, in_turn
from orchestrator_agent.testing.mesh import TestMesh
from orchestrator_agent.testing.task import StepView, Stuck, Task

__all__ = ["NO_ANSWER", "Call", "StepView", "Stuck", "Task", "TestMesh", "in_turn"]
