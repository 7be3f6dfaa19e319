"""Operations of the mesh as commands request them: a refusal is one line, and several names are done in order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from pantheon.cli.exit_codes import CommandError, ExitCode, exit_code_of, exit_code_of_code
from pantheon.cli.render.output import problem
from protocol.errors import PantheonError, TaskFailed

T = TypeVar("T")

# An operation takes milliseconds; one that takes longer waits for Postgres or the broker.
OPERATION_SECONDS = 60.0


async def operation(request: Awaitable[T]) -> T:
    """The result of an operation. Raises CommandError with the refusal's own words and the status for its code."""
    try:
        async with asyncio.timeout(OPERATION_SECONDS):
            return await request
    except TaskFailed as error:
        raise CommandError(error.message.removeprefix("payload.task_id: "), exit_code_of_code(error.code)) from None
    except TimeoutError:
        raise CommandError(
            f"accepted, but not done within {OPERATION_SECONDS:g} s; it will be: see pantheon tasks", ExitCode.TIMEOUT
        ) from None


async def each(names: Sequence[str], run: Callable[[str], Awaitable[T]]) -> tuple[list[T], ExitCode]:
    """Run it for each name in order. A failure of one of several is reported, and the others are still done."""
    results: list[T] = []
    status = ExitCode.OK
    for name in names:
        try:
            results.append(await run(name))
        except PantheonError as error:
            if len(names) == 1:
                raise
            problem(error.message)
            status = status or exit_code_of(error)
    return results, status
