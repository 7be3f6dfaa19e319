"""Delegation: what a request becomes that an agent sent while it worked on a task: a child in that task's tree.

Functions of values: their caller applies the run event, and reads the tree where it did not take the child.
"""

from orchestrator_agent.engine.events import Delegated
from orchestrator_agent.engine.state import Row, Run, Status
from orchestrator_agent.intake.planner import OPERATIONS
from orchestrator_agent.workflows.library import Library
from protocol.errors import InvalidRequest, PantheonError
from protocol.messages import TaskRequest
from protocol.names import EXECUTE_DAG

# Of the task that delegates: it may run again, and then delegates the same child again.
_BETWEEN_ATTEMPTS = (Status.READY, Status.DISPATCHED, Status.WAITING)


def delegation_of(request: TaskRequest, library: Library) -> Delegated | None:
    """The run event of a request that names the tree and the task which delegate it; None where it is a root of its
    own. Whether the tree takes the child is the engine's decision."""
    root, parent = request.root_task_id, request.parent_task_id
    if root is None or parent is None or root == request.task_id or request.task_type in OPERATIONS:
        return None
    try:
        plan = library.newest(request.task_type) or library.single(request.task_type)
        payload = request.payload
        if request.task_type == EXECUTE_DAG:
            plan, payload = library.inline(request.payload)
    except PantheonError:
        # Planned as a root of its own, it fails with what is wrong.
        return None
    return Delegated(
        root_task_id=root,
        parent_task_id=parent,
        task_id=request.task_id,
        task_type=request.task_type,
        payload=payload,
        plan=plan,
        reply_to=request.reply_to,
        timeout_seconds=request.timeout_seconds if "timeout_seconds" in request.model_fields_set else None,
    )


def known_child(delegated: Delegated, tree: Run) -> Row | None:
    """Of a child that the tree did not take: the row that it has from an earlier request, whose response is published
    again once it has ended; None where the request is to be dropped, because the parent may delegate it again.

    Raises InvalidRequest where the parent can delegate nothing.
    """
    if (known := tree.rows.get(delegated.task_id)) is not None:
        return known
    parent = tree.rows.get(delegated.parent_task_id)
    if parent is not None and not tree.root.ended and parent.status in _BETWEEN_ATTEMPTS:
        # The attempt that delegated is over. With an outcome of its own the request could be no child when the next
        # attempt delegates it again.
        return None
    raise InvalidRequest(
        f"parent_task_id: task {delegated.parent_task_id} of the tree {tree.root_task_id} is with no agent, so it "
        "gives out nothing: a task of its own names no root_task_id",
        field="parent_task_id",
    )
