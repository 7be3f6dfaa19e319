"""An orchestrator that dies of what it decides on: `python -m tests.mesh.mortal_orchestrator MOMENT`.

No input is known that ends an orchestrator; here the process ends itself where a value has `deadly` in it: `decide`,
when a transition has such a row; `plan`, when a request has it.
"""

import os
import signal
import sys
from typing import Any

import orchestrator_agent.runtime.transitions as transitions
from orchestrator_agent.__main__ import main
from orchestrator_agent.engine.advance import advance
from orchestrator_agent.intake.planner import Planner

_plan = Planner.plan


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly_advance(run: Any, *arguments: Any, **more: Any) -> Any:
    decisions = advance(run, *arguments, **more)
    if any(b"deadly" in (row.payload or b"") and row is not run.root for row in run.rows.values()):
        die()
    return decisions


def deadly_plan(self: Planner, request: Any, **more: Any) -> Any:
    if "deadly" in str(request.payload):
        die()
    return _plan(self, request, **more)


if sys.argv.pop() == "decide":
    vars(transitions)["advance"] = deadly_advance
else:
    Planner.plan = deadly_plan  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
