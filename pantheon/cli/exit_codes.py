"""ExitCode: what every command's exit status means, so that scripts can distinguish the cases."""

from enum import IntEnum

from protocol.errors import (
    BusError,
    DiscoveryError,
    InvalidRequest,
    NotAccepted,
    PantheonError,
    SettingsError,
    StackError,
    StoreError,
    TaskCancelled,
    TooLarge,
    UnknownTask,
)


class ExitCode(IntEnum):
    """Exit statuses; 124 is that of timeout(1), 130 and 143 are what shells report for SIGINT and SIGTERM."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CANCELLED = 5
    INTERNAL = 70
    TIMEOUT = 124
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the task failed; for checks: mistakes were found",
    ExitCode.USAGE: "wrong arguments, settings or input files",
    ExitCode.UNREACHABLE: "no mesh: not reachable, it did not accept, or it cannot be started",
    ExitCode.NOT_FOUND: "no such task, file or agent",
    ExitCode.CANCELLED: "the task was cancelled",
    ExitCode.INTERNAL: "a mistake of pantheon's own (--debug shows where)",
    ExitCode.TIMEOUT: "--timeout passed; the task goes on",
    ExitCode.INTERRUPTED: "Ctrl-C; a task goes on",
    ExitCode.TERMINATED: "SIGTERM; a task goes on",
}


class CommandError(PantheonError):
    """A command cannot do its work: the reason in one line, and the status to exit with."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_BY_TYPE: tuple[tuple[type[PantheonError], ExitCode], ...] = (
    (TaskCancelled, ExitCode.CANCELLED),
    (UnknownTask, ExitCode.NOT_FOUND),
    (SettingsError, ExitCode.USAGE),
    (InvalidRequest, ExitCode.USAGE),
    (TooLarge, ExitCode.USAGE),
    (NotAccepted, ExitCode.UNREACHABLE),
    (BusError, ExitCode.UNREACHABLE),
    (StoreError, ExitCode.UNREACHABLE),
    (DiscoveryError, ExitCode.UNREACHABLE),
    (StackError, ExitCode.UNREACHABLE),
)
# An error that came over the wire is known by its code alone.
_BY_CODE = {
    "unknown_task": ExitCode.NOT_FOUND,
    "invalid_request": ExitCode.USAGE,
    "too_large": ExitCode.USAGE,
    "cancelled": ExitCode.CANCELLED,
}


def exit_code_of_code(code: str) -> ExitCode:
    """The status for an error that is known by its code alone."""
    return _BY_CODE.get(str(code), ExitCode.FAILED)


def exit_code_of(error: PantheonError) -> ExitCode:
    """The status for an error that a command raised."""
    if isinstance(error, CommandError):
        return error.exit_code
    for kind, code in _BY_TYPE:
        if isinstance(error, kind):
            return code
    if type(error) is PantheonError:
        return exit_code_of_code(error.code)
    return ExitCode.FAILED


def table() -> str:
    """All statuses, a line each, for --help."""
    return "\n".join(f"{code:>3}  {meaning}" for code, meaning in MEANINGS.items())
