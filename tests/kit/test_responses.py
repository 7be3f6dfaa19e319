"""A spliced response has the bytes of its TaskResponse; an attempt's timeout is `asyncio.timeout`, faster."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pantheon.worker.attempt import Completed
from pantheon.worker.attempt_timeout import AttemptTimeout
from pantheon.worker.response_form import ResponseForm
from protocol import TaskRequest, new_id
from protocol.messages import Usage, parse_response, to_bytes

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# No earlier than what the contract takes.
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
usages = st.none() | st.builds(Usage, input_tokens=st.integers(0, 9), cost_usd=st.floats(0, 9))


@given(result=values, usage=usages, started_at=moments, completed_at=moments, delegated=st.booleans())
def test_a_spliced_response_is_the_same_bytes_as_its_model(
    result: Any, usage: Usage | None, started_at: datetime, completed_at: datetime, delegated: bool
) -> None:
    form = ResponseForm("an_agent", 'host-1-"ü"')
    request = TaskRequest(task_id=new_id(), root_task_id=new_id() if delegated else None, task_type="work", attempt=3)
    completed = Completed(result, usage, started_at, completed_at)
    body = form.completed_bytes(request, completed)
    assert body == to_bytes(form.completed(request, completed))
    parse_response(body)


class Standard:
    """`asyncio.timeout`, as it is used here."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: Any) -> None:
        await self._timeout.__aexit__(*raised)


class Ours:
    def __init__(self, seconds: float) -> None:
        self._timeout = AttemptTimeout(seconds)

    async def __aenter__(self) -> None:
        self._timeout.__enter__()

    async def __aexit__(self, *raised: Any) -> None:
        self._timeout.__exit__(*raised)


async def ends() -> str:
    return "ended"


async def hangs() -> str:
    await asyncio.Event().wait()
    return "never"


async def swallows() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "swallowed"
    return "never"


async def fails_at_its_end() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise KeyError("cleaning up") from None
    return "never"


async def cancels_itself() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return "never"


async def waits_within() -> str:
    try:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    except TimeoutError:
        return "its own"
    return "never"


@pytest.mark.parametrize("does", [ends, hangs, swallows, fails_at_its_end, cancels_itself, waits_within])
@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.02])
async def test_an_attempts_timeout_ends_as_asyncios_does(does: Callable[[], Awaitable[str]], seconds: float) -> None:
    async def outcome(kind: type[Standard | Ours]) -> Any:
        async def work() -> Any:
            try:
                async with kind(seconds):
                    return await does()
            except TimeoutError as error:
                task = asyncio.current_task()
                assert task is not None
                return "over", type(error.__cause__), task.cancelling()

        return (await asyncio.gather(asyncio.create_task(work()), return_exceptions=True))[0]

    ours, theirs = repr(await outcome(Ours)), repr(await outcome(Standard))
    assert ours == theirs
