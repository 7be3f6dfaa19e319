"""The test kit: a whole mesh in a test, without a server or a database. Its public name is `pantheon.testing`.

It replaces what surrounds the orchestrator, and nothing of the orchestrator itself. Production's own code plans
requests and replays (`intake`), decides (`engine`), routes (`dispatch.router`, `dispatch.agent_health`), reads
responses and writes messages (`runtime.response_reader`, `runtime.wire`), starts schedules (`maintenance`), and maps
rows to columns and back (`store.records`, `store.run_builder`). What the kit has of its own:

- `orchestrator`: applies one run event at a time and delivers what was decided, instead of the loops around NATS;
- `table`: the rows of one task in memory, instead of Postgres; it checks what constraints and locks would;
- `agents` and `handlers`: agents that are functions, instead of processes, discovery and the broker;
- `clock`: a time that stands still until the test moves it;
- `mesh` and `task`: the face for tests, which drives the others; `tracked_run` and `explain` behind it.

Invariants:
- The clock moves only when nothing else can happen: every agent waits for the mesh, or has responded.
- Every transition is written to the table as the store would write it. `restart` drops all that is in memory; runs
  that are read back go on as before.
- What is due is decided by `engine.due`, which the reconciler's statement is compared with; what depends on chance is
  drawn from the mesh's seed.
- Messages between the orchestrator and agents go through bytes, so that a test finds what cannot be sent.

Tests call it through `pantheon.testing`, which loads it only when one of its names is used: an agent's process never
loads the orchestrator. It lives outside of the product's packages because it depends on all of them.
"""

from testkit.agents import Call
from testkit.handlers import NO_ANSWER, in_turn
from testkit.mesh import TestMesh
from testkit.task import StepView, Stuck, Task

__all__ = ["NO_ANSWER", "Call", "StepView", "Stuck", "Task", "TestMesh", "in_turn"]
