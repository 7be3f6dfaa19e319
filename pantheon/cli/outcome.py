"""What a task came to, for the command that waited: nothing where it completed, else its error and an exit status."""

from typing import TYPE_CHECKING

from pantheon.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from protocol.messages import TaskResponse


def more_about(task_id: str) -> str:
    """The command that shows a task in full."""
    return f"pantheon task show {task_id}"


def raise_failure(response: "TaskResponse") -> None:
    """Nothing for a completed task; else CommandError with its error in a line and the way to more."""
    if response.status == "completed":
        return
    error = response.error
    text = f"{error.message} ({error.code})" if error is not None else f"the task ended {response.status}"
    code = ExitCode.CANCELLED if response.status == "cancelled" else ExitCode.FAILED
    raise CommandError(f"{text}; more: {more_about(str(response.task_id))}", code)
