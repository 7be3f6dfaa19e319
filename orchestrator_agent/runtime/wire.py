"""Wire: the orchestrator's own messages as bytes, spliced around JSON that is text already: none is dumped twice."""

from datetime import datetime

from orchestrator_agent.engine.state import RootFacts, Row, Run
from protocol.messages import DEFAULT_PRIORITY, DEFAULT_TENANT, ObjectRef, json_bytes, time_text
from protocol.names import ORCHESTRATOR


def _value(name: str, value: bytes, ref: ObjectRef | None) -> tuple[bytes, bytes]:
    if ref is not None:
        name, value = f"{name}_ref", ref.model_dump_json().encode()
    return f'"{name}":'.encode(), value


def attempt_id(row: Row) -> str:
    """`Nats-Msg-Id` of an attempt: what stops it from being in the queue twice."""
    return f"{row.text}:{row.attempt}"


def task_request(run: Run, row: Row, payload_ref: ObjectRef | None = None) -> bytes:
    """The TaskRequest of a row's current attempt; `payload_ref` stands for its payload, where that is large."""
    facts = run.facts
    parts = [
        f'{{"task_id":"{row.text}","root_task_id":"{run.root.text}","parent_task_id":"{run.parent_text(row)}",'
        f'"task_type":"{row.task_type}","attempt":{row.attempt},"timeout_seconds":{row.timeout_seconds},'
        f'"requester":"{ORCHESTRATOR}",'.encode(),
        *_value("payload", row.payload or b"{}", payload_ref),
    ]
    rest: dict[str, object] = {"metadata": {"step": run.path(row)}}
    if facts.tenant != DEFAULT_TENANT:
        rest["tenant"] = facts.tenant
    if facts.priority != DEFAULT_PRIORITY:
        rest["priority"] = facts.priority
    if facts.session_id is not None:
        rest["session_id"] = facts.session_id
    if facts.deadline_at is not None and not run.compensates(row):
        rest["deadline"] = time_text(facts.deadline_at)
    if row.dispatched_at is not None:
        rest["created_at"] = time_text(row.dispatched_at)
    parts += [b",", json_bytes(rest)[1:]]
    return b"".join(parts)


def request_headers(run: Run, row: Row, now: datetime) -> dict[str, str]:
    """The attempt's headers: what is left of its time as TTL, and the trace it belongs to."""
    left = (row.expires_at - now).total_seconds() if row.expires_at is not None else row.timeout_seconds
    # Whole seconds, and 1 at least, is what the broker takes.
    headers = {"Nats-TTL": f"{max(1, int(left))}s"}
    if run.facts.traceparent is not None:
        # The same trace, with a span of the task's own (W3C Trace Context, traceparent).
        version, trace, _, flags = ([*run.facts.traceparent.split("-"), "", "", "", ""])[:4]
        if len(trace) == 32:
            headers["traceparent"] = f"{version}-{trace}-{row.task_id.hex[-16:]}-{flags}"
        if run.facts.tracestate is not None:
            headers["tracestate"] = run.facts.tracestate
    return headers


def final_response(root: Row, facts: RootFacts, result_ref: ObjectRef | None = None) -> bytes:
    """A root's TaskResponse, `result_ref` instead of a large result. A function of its row alone, so that it is the
    same bytes whichever process makes it, whenever."""
    parts = [
        f'{{"task_id":"{root.task_id}","root_task_id":"{root.root_task_id}","task_type":"{root.task_type}",'
        f'"agent":"{ORCHESTRATOR}","attempt":{root.attempt},"status":"{root.status.value}"'.encode()
    ]
    if root.result is not None:
        parts += [b",", *_value("result", root.result, result_ref)]
    if root.error is not None:
        parts += [b',"error":', root.error.model_dump_json(exclude_none=True).encode()]
    if root.usage is not None:
        parts += [b',"usage":', root.usage.model_dump_json().encode()]
    if root.created_at is not None:
        parts.append(f',"started_at":"{time_text(root.created_at)}"'.encode())
    if root.completed_at is not None:
        parts.append(f',"completed_at":"{time_text(root.completed_at)}"'.encode())
    if facts.duplicate_of is not None:
        parts.append(f',"duplicate_of":"{facts.duplicate_of}"'.encode())
    parts.append(b"}")
    return b"".join(parts)
