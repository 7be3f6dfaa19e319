"""Attempts: how they end, by a response or by their time, and which of them are followed by another.

What a row's timer wakes is here too: the wait between two attempts is one of them.
"""

from datetime import timedelta

from orchestrator_agent.engine.assignment import begin_wait_for_agent, route_request_of
from orchestrator_agent.engine.cancellation import end_root
from orchestrator_agent.engine.events import AttemptAbandoned, Due, Expired, ResponseReceived
from orchestrator_agent.engine.failures import no_agent_error, step_failed_error
from orchestrator_agent.engine.progress import assign_again, step_completed, step_failed
from orchestrator_agent.engine.retry import decide_retry
from orchestrator_agent.engine.roots import begin_root, check_deadline
from orchestrator_agent.engine.state import Role, Row, Status
from orchestrator_agent.engine.transition import Transition
from orchestrator_agent.engine.waits import timed_out
from orchestrator_agent.workflows.plan import StepPlan
from protocol.errors import ErrorCode
from protocol.messages import ErrorInfo, json_bytes

# A task that so many processes died on is not given to another one.
MAX_DEATHS = 5


def attempt_responded(t: Transition, response: ResponseReceived) -> None:
    row = t.run.current(response.task_id, response.attempt)
    if row is None:
        return
    row.instance_id = response.instance_id
    if response.usage is not None:
        t.run.consumed(row, response.usage)
    if response.status == "completed":
        step_completed(t, row, response.result, json_bytes(response.result))
        return
    # An agent that keeps the deadline fails when it passes: the deadline decides, as where an attempt expires.
    check_deadline(t)
    if row.status is not Status.DISPATCHED:
        return
    default = ErrorInfo(code=ErrorCode.INTERNAL_ERROR, message="the agent gave no reason")
    _attempt_failed(t, row, response.error or default)


def attempt_expired(t: Transition, expired: Expired) -> None:
    row = t.run.current(expired.task_id, expired.attempt)
    if row is None or row.expires_at is None or row.expires_at > t.now:
        return
    # No attempt outlives the deadline: which of the two is noticed first must not decide how the task ends.
    check_deadline(t)
    if row.status is not Status.DISPATCHED:
        return
    t.builder.stop(row, "its time is over")
    if expired.broker_was_down:
        _attempt_lost(t, row)
        return
    message = f"no answer from {row.agent} within {row.timeout_seconds:g} s"
    _attempt_failed(t, row, ErrorInfo(code=ErrorCode.TIMEOUT, message=message, retryable=True))


def attempt_abandoned(t: Transition, abandoned: AttemptAbandoned) -> None:
    """Another attempt for one that will get no response, where there is an agent for it; else it stays where it is, as
    its agent may come back."""
    row = t.run.current(abandoned.task_id, abandoned.attempt)
    if row is None or row.agent != abandoned.agent:
        return
    check_deadline(t)
    if row.status is not Status.DISPATCHED or not t.directory.responsive(route_request_of(t.run, row)):
        return
    t.builder.stop(row, abandoned.reason)
    if abandoned.process_died:
        row.deaths += 1
        if row.deaths >= MAX_DEATHS:
            why = f"{row.deaths} processes of agents died while they worked on it, the last one of {row.agent}"
            _attempt_failed(t, row, ErrorInfo(code=ErrorCode.POISON, message=why))
            return
    _attempt_lost(t, row)


def row_due(t: Transition, due: Due) -> None:
    """A row's time has come: it may be assigned now, its wait for an agent is over, or its step's own wait."""
    row = t.run.rows.get(due.task_id)
    if row is None:
        return
    # Before any other timer, whichever is noticed first.
    check_deadline(t)
    if row.ended:
        return
    if row is t.run.root:
        begin_root(t)
    elif row.status is Status.READY:
        assign_again(t, row)
        if row.status is Status.READY:
            _check_wait_for_agent(t, row)
    elif row.status is Status.WAITING and row.run_after is not None and row.run_after <= t.now:
        plan = t.run.step_plan(row)
        if plan.waits and row.role is Role.STEP:
            _wait_over(t, row, plan)
        else:
            _make_ready(t, row)


def _attempt_failed(t: Transition, row: Row, error: ErrorInfo) -> None:
    row.failures += 1
    decision = decide_retry(
        t.run.retry_of(row),
        default_max_attempts=t.rules.default_max_attempts,
        failures=row.failures,
        error=error,
        random=t.random,
    )
    if decision.wait_seconds is None:
        step_failed(t, row, step_failed_error(t.run, row, error))
        return
    row.error = error
    row.attempt += 1
    row.become(Status.WAITING)
    row.run_after = t.now + timedelta(seconds=decision.wait_seconds)
    row.expires_at = None
    t.builder.change(row)
    t.builder.wake_at(row.run_after)
    t.builder.step_event(
        "retrying", row, error=error, wait_seconds=round(decision.wait_seconds, 3), attempt=row.attempt - 1
    )


def _attempt_lost(t: Transition, row: Row) -> None:
    """Nothing can be known of an attempt: another one, which is no retry."""
    t.builder.step_event("retrying", row, wait_seconds=0)
    row.attempt += 1
    row.become(Status.WAITING)
    _make_ready(t, row)


def _make_ready(t: Transition, row: Row) -> None:
    """Let a row that waited be assigned; it has the whole wait for an agent again."""
    row.run_after = None
    row.become(Status.READY)
    begin_wait_for_agent(t, row)
    t.builder.change(row)
    assign_again(t, row)


def _wait_over(t: Transition, row: Row, plan: StepPlan) -> None:
    outcome = timed_out(t.run, row, plan)
    if isinstance(outcome, ErrorInfo):
        step_failed(t, row, outcome)
    else:
        step_completed(t, row, outcome, json_bytes(outcome))


def _check_wait_for_agent(t: Transition, row: Row) -> None:
    """A row has no agent: where none serves it, its wait for one begins, or is over."""
    if not t.run.at_work or (row.expires_at is not None and row.expires_at > t.now):
        return
    request = route_request_of(t.run, row)
    if t.directory.served(request):
        return
    if row.expires_at is None:
        t.builder.wake_at(begin_wait_for_agent(t, row))
        t.builder.change(row)
    elif t.run.scopes[t.run.root_task_id].plan.single and row.role is Role.STEP:
        wait = f"{t.rules.no_agent_wait_seconds:g} s"
        message = f"no workflow is called '{row.task_type}', and no agent served it within {wait}"
        end_root(t, Status.FAILED, error=ErrorInfo(code=ErrorCode.UNKNOWN_TASK_TYPE, message=message))
    else:
        step_failed(t, row, no_agent_error(t.run, t.rules, row, t.directory.wait_reasons(request)))
