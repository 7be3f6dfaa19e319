"""Whatever a handler or a hook raises has a response at once: what is no Exception left the attempt without one, and it
ran five times, 30 s apart, until it was poison."""

import asyncio
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from pantheon import Agent, PantheonError, TaskContext
from protocol import TaskResponse
from tests.kit.conftest import Rig


class Panic(BaseException):
    """As the errors of libraries that are written in Rust."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("it has no text")


class Bare(PantheonError):
    """One whose author did not call the base's constructor."""

    def __init__(self) -> None:
        Exception.__init__(self, "nothing else")


def cancel_soon() -> "asyncio.Task[None]":
    inner = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_later(0.01, inner.cancel)
    return inner


def cancel_itself() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()


async def await_cancelled() -> None:
    await cancel_soon()


async def gather_cancelled() -> None:
    await asyncio.gather(cancel_soon(), asyncio.sleep(0))


async def cancel_and_wait() -> None:
    cancel_itself()
    await asyncio.sleep(60)


async def group() -> None:
    async def panic() -> None:
        raise Panic("in a child")

    async with asyncio.TaskGroup() as children:
        children.create_task(panic())


def raising(error: BaseException) -> Callable[[], Any]:
    async def fail() -> None:
        raise error

    return fail


def raising_in_thread(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


async def exit_in_executor() -> None:
    await asyncio.to_thread(sys.exit, 3)


# What a handler does, and words of its error.
RAISED: dict[str, tuple[Callable[[], Any], str]] = {
    "a cancelled task is awaited": (await_cancelled, "awaited a task that was cancelled"),
    "a cancelled task is gathered": (gather_cancelled, "awaited a task that was cancelled"),
    "it cancels itself": (cancel_and_wait, "the handler cancelled itself"),
    "a CancelledError": (raising(asyncio.CancelledError("mine")), "CancelledError: mine"),
    "a CancelledError in a thread": (raising_in_thread(asyncio.CancelledError()), "CancelledError"),
    "a BaseException": (raising(Panic("boom")), "Panic: boom"),
    "a BaseException in a thread": (raising_in_thread(Panic("boom")), "Panic: boom"),
    "a BaseExceptionGroup": (group, "BaseExceptionGroup: unhandled errors in a TaskGroup"),
    "sys.exit": (raising(SystemExit(3)), "SystemExit: 3"),
    "sys.exit in a thread": (raising_in_thread(SystemExit(3)), "SystemExit: 3"),
    "sys.exit in the executor": (exit_in_executor, "SystemExit: 3"),
    "a KeyboardInterrupt": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "a KeyboardInterrupt in a thread": (raising_in_thread(KeyboardInterrupt()), "KeyboardInterrupt"),
    "a GeneratorExit": (raising(GeneratorExit()), "GeneratorExit"),
    "an error without a text": (raising(Mute()), "Mute: <Mute without a text>"),
    "an error of ours without a message": (raising(Bare()), "nothing else"),
}


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


@pytest.mark.parametrize(("handler", "words"), RAISED.values(), ids=RAISED.keys())
async def test_what_a_handler_raises_is_an_internal_error_at_once(
    rig: Rig, agent: Agent, logs: list[MutableMapping[str, Any]], handler: Callable[[], Any], words: str
) -> None:
    agent.task("raise")(handler)
    agent.task("echo")(lambda task: task)
    seen: list[BaseException] = []
    agent.on_error(lambda ctx, error: seen.append(error))
    await rig.worker(agent)
    response = await rig.run("test_agent", "raise")
    assert response.error is not None
    assert (response.status, response.error.code) == ("failed", "internal_error")
    assert words in response.error.message
    assert len(seen) == 1
    if not isinstance(seen[0], PantheonError):
        assert response.error.retryable
        assert [entry["event"] for entry in logs if entry["log_level"] != "info"] == ["task.raised"]
    await rig.until_empty()
    assert (await rig.run("test_agent", "echo", {"a": 1})).result == {"a": 1}
    assert len(rig.responses) == 2


async def test_a_handler_that_cancels_itself_and_ends_well_has_ended_well(rig: Rig, agent: Agent) -> None:
    """The cancellation hit what sent the response."""

    @agent.task("odd")
    async def odd(task: dict[str, Any]) -> dict[str, int]:
        cancel_itself()
        return {"n": 1}

    await rig.worker(agent)
    assert (await rig.run("test_agent", "odd")).result == {"n": 1}
    await rig.until_empty()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1), Panic(), Mute()], ids=repr)
async def test_hooks_change_nothing_whatever_they_raise(rig: Rig, agent: Agent, error: BaseException) -> None:
    @agent.task("echo")
    async def echo(task: dict[str, Any]) -> dict[str, Any]:
        return task

    @agent.after_task
    async def after(ctx: TaskContext, response: TaskResponse) -> None:
        cancel_itself()
        raise error

    @agent.on_error
    async def on_error(ctx: TaskContext, raised: BaseException) -> None:
        cancel_itself()
        raise error

    await rig.worker(agent)
    assert (await rig.run("test_agent", "echo", {"a": 1})).result == {"a": 1}
    unknown = await rig.run("test_agent", "nothing")
    assert unknown.error is not None
    assert unknown.error.code == "unknown_task_type"
    await rig.until_empty()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1)], ids=repr)
async def test_a_hook_before_a_task_ends_it_whatever_it_raises(rig: Rig, agent: Agent, error: BaseException) -> None:
    agent.task("echo")(lambda task: task)

    @agent.before_task
    async def before(ctx: TaskContext) -> None:
        raise error

    await rig.worker(agent)
    response = await rig.run("test_agent", "echo")
    assert response.error is not None
    assert response.error.code == "internal_error"
    await rig.until_empty()
