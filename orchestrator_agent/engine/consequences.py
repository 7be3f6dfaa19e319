"""Consequences: what follows from what a function of the engine has done. Values, which `progress` acts on.

A row that is set to work may have ended at once; a workflow that ends, ends the step that it runs. The modules that
find this out return it, so that none of them needs to know what happens then.
"""

from typing import Any, NamedTuple

from orchestrator_agent.engine.state import Row, Scope
from protocol.messages import ErrorInfo


class StepCompleted(NamedTuple):
    """A task, a sub-workflow, a fan-out or a wait ended well."""

    row: Row
    result: Any
    result_json: bytes


class StepFailed(NamedTuple):
    """A row will not be tried again."""

    row: Row
    error: ErrorInfo


class ScopeBegun(NamedTuple):
    """A workflow is at work, and its first steps are to begin."""

    scope: Scope


class ScopeFailed(NamedTuple):
    """A workflow ends, whatever its steps have come to."""

    scope: Scope
    error: ErrorInfo


# None: nothing follows by itself.
Consequence = StepCompleted | StepFailed | ScopeBegun | ScopeFailed | None
