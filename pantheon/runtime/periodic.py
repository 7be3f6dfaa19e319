"""PeriodicTask: a background task that makes one call again and again, spread in time, until it is stopped."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from pantheon.runtime.background import end

log = structlog.get_logger()


class PeriodicTask:
    """Makes `call` every `seconds`, counted from the end of one call to the start of the next.

    Each pause is spread evenly over ±`jitter` of itself, so that processes that were started together do not act
    together. `call` may return another pause, in seconds, for this once; it is spread as well. `wake` ends a pause; a
    wake that comes during a call makes the next one follow at once. The first call comes at the start, or, with
    `at_start=False`, after one pause.

    An error that `call` raises is logged, and the next call comes all the same: a mistake in one call must not end what
    recovers everything else. Expected errors belong in `call`, which knows what to log of them.

    `woken` is set by who wakes it, where that must exist before the call does.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], Awaitable[float | None]],
        *,
        seconds: float,
        jitter: float = 0.25,
        at_start: bool = True,
        woken: asyncio.Event | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name = name
        self._call = call
        self._seconds = seconds
        self._jitter = jitter
        self._at_start = at_start
        self._uniform = uniform
        self._woken = woken or asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Have the next call made now; before `start`, the first one."""
        self._woken.set()

    async def stop(self) -> None:
        """Cancel a call under way, and wait for its end. A task that was never started is stopped already."""
        task, self._task = self._task, None
        if task is not None:
            await end([task])

    async def _run(self) -> None:
        if not self._at_start:
            await self._rest(self._seconds)
        while True:
            self._woken.clear()
            pause: float | None = None
            try:
                pause = await self._call()
            except Exception:
                log.exception("periodic.failed", task=self._name)
            await self._rest(self._seconds if pause is None else pause)

    async def _rest(self, seconds: float) -> None:
        pause = jittered(seconds, self._jitter, self._uniform) if self._jitter else seconds
        try:
            async with asyncio.timeout(pause):
                await self._woken.wait()
        except TimeoutError:
            return


def jittered(seconds: float, jitter: float = 0.25, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """A pause spread evenly over ±`jitter` of itself, so that many processes do not act together."""
    return seconds * uniform(1 - jitter, 1 + jitter)
