"""Testing: the engine with agents that are functions and a clock that a test moves; no server, no database.

It lives here, and not in the kit, because it is an orchestrator of its own kind: it composes the same planner, router
and transitions as `service.py` does, around rows in memory. Its public name is `pantheon.testing`.
"""

from testkit.agents import Call
from testkit.handlers import NO_ANSWER, in_turn
from testkit.mesh import TestMesh
from testkit.task import StepView, Stuck, Task

__all__ = ["NO_ANSWER", "Call", "StepView", "Stuck", "Task", "TestMesh", "in_turn"]
