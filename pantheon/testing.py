"""Test kit for users: run a workflow in a test, with agents that are functions and a clock that the test moves.

    from pantheon.testing import TestMesh, mesh

    async def test_a_greeting(mesh: TestMesh) -> None:
        mesh.agent("greet", lambda payload: {"text": f"Hello, {payload['name']}!"})
        assert await mesh.dag({"hi": {"task": "greet", "with": {"name": "Ada"}}}) == {"hi": {"text": "Hello, Ada!"}}

Only the name is here. The code is `testkit`, because it runs the engine, and the kit must not import
the orchestrator: it does so when one of these names is used, which an agent's process never does. There is no
pytest plugin on purpose: one would import the package before coverage measures it, in every run of every project that
has it installed. docs/testing.md has the rest.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testkit import NO_ANSWER as NO_ANSWER
    from testkit import Call as Call
    from testkit import StepView as StepView
    from testkit import Stuck as Stuck
    from testkit import Task as Task
    from testkit import TestMesh as TestMesh
    from testkit import in_turn as in_turn
    from testkit.fixture import mesh as mesh

__all__ = ["NO_ANSWER", "Call", "StepView", "Stuck", "Task", "TestMesh", "in_turn", "mesh"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pantheon.testing' has no attribute '{name}'")
    if name == "mesh":
        # pytest is the project's that tests, not a dependency of the kit.
        from testkit.fixture import mesh

        return mesh
    import testkit

    return getattr(testkit, name)
