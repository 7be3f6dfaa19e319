"""Agents and handlers as they are declared: what annotations mean, and what is refused at declaration."""

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field

import pantheon
from pantheon import Agent, PantheonError, TaskContext, TaskFailure
from pantheon.worker.context import LocalTaskContext
from pantheon.worker.handler import Handler
from protocol import TaskProgress, TaskRequest, new_id
from protocol.errors import InvalidRequest
from tests.waiting import PATIENCE_SECONDS


class Text(BaseModel):
    text: Annotated[str, Field(min_length=1)]
    at: date | None = None


async def handle(function: Callable[..., Any], payload: dict[str, Any] | None = None) -> Any:
    handler = Handler("work", function)
    return await handler.call(handler.validate(payload or {}), LocalTaskContext("work"))


# -- declarations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "A", "a-b", "a.b", "0a", "a" * 64, "a\n"])
def test_a_name_that_the_wire_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"names match \^|those match"):
        Agent(name)
    with pytest.raises(TypeError, match="task type"):
        Agent("a").task(name)(lambda: None)


def test_an_agent_works_on_one_task_at_least() -> None:
    with pytest.raises(TypeError, match="max_concurrency is 0"):
        Agent("a", max_concurrency=0)


def test_a_task_type_is_served_once() -> None:
    agent = Agent("a")
    agent.task("x")(lambda: None)
    with pytest.raises(TypeError, match="serves 'x' twice"):
        agent.task("x")(lambda: None)
    assert agent.task_types == ("x",)


def test_a_handler_with_two_payloads_is_refused() -> None:
    def both(one: Text, other: Text) -> None: ...

    with pytest.raises(TypeError, match=r"both: a handler takes one payload .* not also other"):
        Handler("work", both)


def test_decorated_functions_stay_what_they_are() -> None:
    agent = Agent("a")

    @agent.task("x")
    async def work(task: Text) -> Text:
        return task

    @agent.on_startup
    @agent.on_shutdown
    async def hook() -> None: ...

    assert asyncio.iscoroutinefunction(work)
    assert asyncio.iscoroutinefunction(hook)


def test_metadata_is_a_mapping_or_made_at_each_use() -> None:
    calls = 0

    def make() -> dict[str, str]:
        nonlocal calls
        calls += 1
        return {"model": f"m{calls}"}

    assert Agent("a").metadata == {}
    assert Agent("a", metadata={"model": "m"}).metadata == {"model": "m"}
    agent = Agent("a", metadata=make)
    assert calls == 0
    assert agent.metadata == {"model": "m1"}


async def test_hooks_are_called_in_order_plain_or_not() -> None:
    agent = Agent("a")
    calls: list[str] = []

    @agent.on_startup
    def first() -> None:
        calls.append("first")

    @agent.on_startup
    async def second() -> None:
        calls.append("second")

    assert agent.has_hooks("startup")
    assert not agent.has_hooks("shutdown")
    await agent.call_hooks("startup")
    await agent.call_hooks("shutdown")
    assert calls == ["first", "second"]


def test_the_package_shows_what_an_author_needs() -> None:
    assert set(pantheon.__all__) == {
        "Agent",
        "Mesh",
        "PantheonError",
        "TaskCancelled",
        "TaskContext",
        "TaskFailed",
        "TaskFailure",
        "__version__",
    }
    for name in pantheon.__all__:
        assert getattr(pantheon, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = pantheon.nothing_such


# -- schemas --------------------------------------------------------------------------------------------------------


def test_annotations_are_the_schemas() -> None:
    def typed(task: Text) -> list[Text]:
        """Publish it.

        At length."""
        return [task]

    handler = Handler("work", typed)
    assert handler.input_schema["required"] == ["text"]
    assert handler.output_schema["type"] == "array"
    assert handler.description == "Publish it."
    assert Handler("work", typed, description="mine").description == "mine"


def test_without_annotations_anything_goes() -> None:
    def untyped(task): ...  # type: ignore[no-untyped-def]
    def nothing() -> None: ...
    def anything(task: Any) -> Any: ...

    assert Handler("work", untyped).input_schema["type"] == "object"
    assert Handler("work", anything).input_schema["type"] == "object"
    assert Handler("work", nothing).input_schema == {"type": "object"}
    assert [Handler("work", function).output_schema for function in (untyped, nothing, anything)] == [{}, {}, {}]


# -- calls ----------------------------------------------------------------------------------------------------------


async def test_payload_and_context_are_found_by_annotation_in_any_order() -> None:
    async def first(ctx: TaskContext, task: Text) -> str:
        return f"{ctx.task_type} {task.text}"

    async def second(task: Text, context: TaskContext, extra: int = 1) -> str:
        return f"{context.task_type} {task.text} {extra}"

    def alone(ctx: TaskContext) -> str:
        return ctx.task_type

    assert await handle(first, {"text": "a"}) == "work a"
    assert await handle(second, {"text": "a"}) == "work a 1"
    assert await handle(alone, {"anything": 1}) == "work"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload.text"),
        ({"text": ""}, "payload.text"),
        ({"text": 7}, "payload.text"),
        ({"text": "a", "at": "x"}, "payload.at"),
    ],
)
def test_a_payload_that_does_not_validate_names_the_field(payload: dict[str, Any], field: str) -> None:
    def work(task: Text) -> None: ...

    with pytest.raises(InvalidRequest) as raised:
        Handler("work", work).validate(payload)
    assert raised.value.field == field


async def test_results_become_json() -> None:
    class Out(BaseModel):
        at: datetime
        named: Annotated[int, Field(serialization_alias="shown")]

    moment = datetime(2026, 1, 31, tzinfo=UTC)

    def model() -> Out:
        return Out(at=moment, named=1)

    def unsaid():  # type: ignore[no-untyped-def]
        return {"at": moment, "id": UUID(int=1), "set": {1}}

    def listed() -> list[Out]:
        return [Out(at=moment, named=1)]

    def nothing() -> None: ...

    assert await handle(model) == {"at": "2026-01-31T00:00:00Z", "shown": 1}
    assert await handle(unsaid) == {"at": "2026-01-31T00:00:00Z", "id": str(UUID(int=1)), "set": [1]}
    assert await handle(listed) == [{"at": "2026-01-31T00:00:00Z", "shown": 1}]
    assert await handle(nothing) == {}


async def test_a_plain_function_runs_beside_the_loop_with_the_callers_context_variables() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")

    from_the_loop = threading.Event()

    def work(task: dict[str, Any]) -> list[Any]:
        return [
            threading.current_thread() is threading.main_thread(),
            variable.get(),
            from_the_loop.wait(PATIENCE_SECONDS),
        ]

    running = asyncio.create_task(handle(work))
    await asyncio.sleep(0.05)
    assert not running.done()
    from_the_loop.set()
    assert await running == [False, "mine", True]


async def test_a_plain_functions_error_is_its_own() -> None:
    def fail() -> None:
        raise TaskFailure("no", "no")

    with pytest.raises(TaskFailure):
        await handle(fail)


async def test_an_async_function_behind_a_plain_decorator_is_awaited() -> None:
    def logged(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Awaitable[Any]:
            return function(*arguments, **named)

        return wrapper

    @logged
    async def work(task: Text) -> str:
        await asyncio.sleep(0)
        return task.text

    assert await handle(work, {"text": "a"}) == "a"


async def test_a_thread_whose_caller_has_gone_ends_quietly() -> None:
    go_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(PATIENCE_SECONDS)
        ended.set()

    running = asyncio.create_task(handle(work))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    assert await asyncio.to_thread(ended.wait, PATIENCE_SECONDS)
    await asyncio.sleep(0.05)


def test_a_thread_that_outlives_the_loop_does_not_hold_up_the_process() -> None:
    go_on = threading.Event()

    async def main() -> None:
        running = asyncio.create_task(handle(lambda: go_on.wait(PATIENCE_SECONDS)))
        await asyncio.sleep(0.05)
        running.cancel()

    start = time.perf_counter()
    asyncio.run(main())
    assert time.perf_counter() - start < PATIENCE_SECONDS / 2
    go_on.set()


# -- contexts -------------------------------------------------------------------------------------------------------


async def test_a_context_has_what_the_request_has() -> None:
    task_id, root = new_id(), new_id()
    request = TaskRequest(
        task_id=task_id,
        root_task_id=root,
        task_type="x",
        attempt=2,
        session_id="s",
        deadline=datetime(2030, 1, 1, tzinfo=UTC),
        metadata={"a": "b"},
    )

    async def ignore(progress: TaskProgress) -> None: ...

    context = TaskContext(request, agent="a", publish_progress=ignore)
    assert (context.task_id, context.root_task_id, context.task_type, context.attempt) == (task_id, root, "x", 2)
    assert (context.session_id, context.metadata) == ("s", {"a": "b"})
    assert context.deadline == request.deadline
    assert context.idempotency_key == f"{root}:{task_id}"
    assert not context.cancelled
    context.raise_if_cancelled()
    context.cancelled = True
    with pytest.raises(asyncio.CancelledError):
        context.raise_if_cancelled()
    with pytest.raises(PantheonError, match="no mesh"):
        await context.run("y")


async def test_delegations_have_the_same_ids_in_every_attempt() -> None:
    task_id = new_id()
    sent: list[TaskRequest] = []

    async def ignore(progress: TaskProgress) -> None: ...

    async def delegate(context: TaskContext, request: TaskRequest) -> str:
        sent.append(request)
        return "done"

    for attempt in (1, 2):
        request = TaskRequest(task_id=task_id, task_type="x", attempt=attempt, tenant="t", priority=7, session_id="s")
        context = TaskContext(request, agent="a", publish_progress=ignore, delegate=delegate)
        assert await context.run("y", {"n": 1}) == "done"
        assert await context.run("y", timeout_seconds=5) == "done"
    first, second, first_again, second_again = sent
    assert first.task_id != second.task_id
    assert (first.task_id, second.task_id) == (first_again.task_id, second_again.task_id)
    assert (first.requester, first.tenant, first.priority, first.session_id) == ("a", "t", 7, "s")
    assert (first.parent_task_id, first.root_task_id, first.payload) == (task_id, task_id, {"n": 1})
    assert second.timeout_seconds == 5


async def test_a_local_context_records_what_was_reported() -> None:
    context = LocalTaskContext("x", metadata={"step": "draft"})
    await context.progress(10, "begun")
    await context.stream("a")
    await context.stream("b")
    context.report_usage(1, 2, 0.5)
    assert [(progress.percent, progress.message, progress.step) for progress in context.progress_messages] == [
        (10, "begun", "draft")
    ]
    assert context.streamed == "ab"
    assert context.usage.output_tokens == 2


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    who: UUID
    pair: tuple[int, int]


def test_a_strict_model_is_read_by_the_rules_of_json() -> None:
    """The text of a time, and a list for a tuple, were refused: JSON has nothing else for them."""

    async def work(task: Strict) -> Strict:
        return task

    who = "00000000-0000-0000-0000-000000000001"
    payload = Handler("work", work).validate({"at": "2026-01-01T00:00:00Z", "who": who, "pair": [1, 2]})
    assert (payload.at.year, str(payload.who), payload.pair) == (2026, who, (1, 2))
    with pytest.raises(InvalidRequest, match=r"payload\.pair\.0: Input should be a valid integer"):
        Handler("work", work).validate({"at": "2026-01-01T00:00:00Z", "who": who, "pair": ["1", 2]})


def test_constraints_of_an_annotation_hold_and_are_in_the_schema() -> None:
    async def work(task: Annotated[dict[str, int], Field(min_length=1)]) -> Annotated[int, Field(ge=10)]:
        return len(task)

    handler = Handler("work", work)
    assert handler.input_schema["minProperties"] == 1
    assert handler.output_schema["minimum"] == 10
    with pytest.raises(InvalidRequest, match="at least 1 item"):
        handler.validate({})


def test_a_generator_of_anything_but_text_is_refused_when_it_is_declared() -> None:
    async def work(task: dict[str, Any]) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"streams text: annotate it AsyncIterator\[str\]"):
        Handler("work", work)


def test_the_schema_of_a_generators_result_is_text() -> None:
    async def work(task: dict[str, Any]) -> AsyncIterator[str]:
        yield "a"

    assert Handler("work", work).output_schema == {"type": "string"}


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    text: str = Field(alias="the_text")


class More(Aliased):
    more: int = 1


async def unannotated(task: dict[str, Any]):  # type: ignore[no-untyped-def]
    return Aliased(text="a")


async def annotated(task: dict[str, Any]) -> Aliased:
    return More(text="a")


async def as_values(task: dict[str, Any]) -> Aliased:
    return {"the_text": "a"}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (unannotated, {"the_text": "a"}),
        (annotated, {"the_text": "a", "more": 1}),
        (as_values, {"the_text": "a"}),
    ],
)
async def test_a_model_is_written_by_its_aliases_whatever_the_annotation(
    function: Callable[..., Any], result: dict[str, Any]
) -> None:
    assert await Handler("work", function).call({}, LocalTaskContext()) == result
