"""Response reader: messages that agents sent, as run events."""

from typing import NamedTuple

from orchestrator_agent.engine.events import ResponseReceived
from orchestrator_agent.store.availability import read_object
from pantheon.bus import Delivery, Objects
from protocol.errors import ErrorCode, InvalidRequest, PantheonError
from protocol.messages import ErrorInfo, TaskResponse, parse_response, salvage_ids
from protocol.names import is_instance_id


class Arrived(NamedTuple):
    """A response off the wire. `response` is None where it could not be read."""

    delivery: Delivery
    received: ResponseReceived
    response: TaskResponse | None


async def read_response(objects: Objects, delivery: Delivery) -> Arrived:
    """Raises InvalidRequest. It waits for nothing unless the result is by reference, and those responses come alone."""
    response = parse_response(delivery.data)
    result, failure = response.result, response.error
    if response.result_ref is not None and response.status == "completed":
        try:
            result = await read_object(objects, response.result_ref, "result")
        except PantheonError as error:
            code = ErrorCode.INVALID_RESPONSE if isinstance(error, InvalidRequest) else error.code
            failure = ErrorInfo(code=code, message=error.message, retryable=error.retryable)
    return Arrived(delivery, received(response, result, failure), response)


def received(response: TaskResponse, result: object, failure: ErrorInfo | None) -> ResponseReceived:
    """The run event of a response, with the result that it has or refers to. A `failure` outweighs its own word."""
    instance = response.instance_id
    return ResponseReceived(
        root_task_id=response.root_task_id,
        task_id=response.task_id,
        attempt=response.attempt,
        status="failed" if failure is not None and response.status == "completed" else response.status,
        result=result,
        error=failure,
        usage=response.usage,
        instance_id=instance if instance is not None and is_instance_id(instance) else None,
    )


def unread_response(delivery: Delivery, error: InvalidRequest) -> ResponseReceived | None:
    """The run event of a response that cannot be read, where its attempt is known: the attempt has failed."""
    known = salvage_ids(delivery.data)
    if "task_id" not in known or "root_task_id" not in known:
        return None
    return ResponseReceived(
        root_task_id=known["root_task_id"],
        task_id=known["task_id"],
        attempt=known.get("attempt", 1),
        status="failed",
        error=ErrorInfo(code=ErrorCode.INVALID_RESPONSE, message=f"not a TaskResponse: {error.message}"),
    )
