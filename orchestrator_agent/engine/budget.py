"""Budget: what a task's tree may consume. A pure check of a run."""

from orchestrator_agent.engine.state import Role, Run
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo


def budget_error(run: Run) -> ErrorInfo | None:
    """What of the tree's budget is used up, if anything is."""
    budget = run.scopes[run.root_task_id].plan.budget
    if budget is None:
        return None
    usage = run.usage()
    tokens = usage.input_tokens + usage.output_tokens if usage is not None else 0
    cost = usage.cost_usd if usage is not None else 0.0
    tasks = len(run.rows) - 1
    if budget.tasks is not None and tasks > budget.tasks:
        # Signals do not count. While all rows together are within the bound, no step counts thousands of them.
        tasks = sum(1 for row in run.rows.values() if row.role is not Role.SIGNAL) - 1
    checks: list[tuple[str, float, float | None, bool]] = [
        ("tokens", tokens, budget.tokens, budget.tokens is not None and tokens >= budget.tokens),
        ("cost_usd", cost, budget.cost_usd, budget.cost_usd is not None and cost >= budget.cost_usd),
        ("tasks", tasks, budget.tasks, budget.tasks is not None and tasks > budget.tasks),
    ]
    for name, used, limit, exceeded in checks:
        if exceeded:
            return ErrorInfo(
                code=ErrorCode.BUDGET_EXCEEDED,
                message=f"the task's budget of {limit:g} {name} is used up ({used:g})",
                details={"budget": name, "limit": limit, "used": used},
            )
    return None


def depth_error(run: Run, depth: int) -> ErrorInfo | None:
    """Whether a workflow that is nested so deep is beyond the tree's budget."""
    budget = run.scopes[run.root_task_id].plan.budget
    if budget is None or budget.depth is None or depth <= budget.depth:
        return None
    message = f"the task's budget of {budget.depth} nested workflows is used up"
    details = {"budget": "depth", "limit": budget.depth, "used": depth}
    return ErrorInfo(code=ErrorCode.BUDGET_EXCEEDED, message=message, details=details)
