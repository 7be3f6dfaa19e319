"""RateLimits: how many tasks a second may go to an agent, and how many may be sent for a requester: token buckets.

With Redis a bucket is shared by all orchestrators, and a process keeps a handful of its tokens in a pocket, because
the router asks in the middle of a transition and cannot wait. Without, each process has its share of the rate.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from orchestrator_agent.dispatch.active_processes import ActiveProcesses
from orchestrator_agent.dispatch.queues import requester_text
from orchestrator_agent.dispatch.redis_state import RedisState
from orchestrator_agent.dispatch.settings import RateLimit, read_rate
from orchestrator_agent.dispatch.signal import DispatchSignal
from orchestrator_agent.engine.decisions import RouteRequest
from pantheon.runtime.background import end
from protocol.discovery import InstanceRecord

log = structlog.get_logger()

METADATA_KEY = "rate_limit"


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """How long tokens of a shared bucket stay in a process's pocket, and when it is asked for more."""

    # A pocket holds what is used up in this time.
    pocket_seconds: float = 0.1
    # What is older goes back, because others may need it: of an agent that was only weighed against another one, no
    # token is used.
    pocket_kept_seconds: float = 1.0
    # An empty bucket is asked again after this time at the latest: others return tokens.
    ask_again_seconds: float = 2.0


class Instances(Protocol):
    def instances(self, agent: str | None = None) -> Sequence[InstanceRecord]: ...


class Bucket:
    """One limit as this process sees it: its own tokens, or those in its pocket.

    Its own are counted all the time: when Redis goes away, or comes back, no requester gets a second burst.
    """

    def __init__(self, name: str, limit: RateLimit, now: float) -> None:
        self.name = name
        self.limit = limit
        self.tokens = float(limit.burst)
        self.at = now
        self.pocket = 0
        self.pocket_at = now
        self.asking = False
        # Tokens of its own were spent since Redis was last asked, which does not know of them.
        self.unreported = False

    def own(self, now: float, processes: int) -> float:
        """The tokens of this process's share of the rate, and of the burst."""
        gained = (now - self.at) * self.limit.per_second / processes
        self.tokens, self.at = min(self._share(processes), self.tokens + gained), now
        return self.tokens

    def used(self, now: float, processes: int) -> int:
        """How much of its share of the burst is used up."""
        return max(0, round(self._share(processes) - self.own(now, processes)))

    def _share(self, processes: int) -> float:
        return max(1.0, self.limit.burst / processes)

    def next_in(self, processes: int) -> float:
        """Seconds until there is a token of its own."""
        return max(0.0, (1 - self.tokens) * processes / self.limit.per_second)


class RateLimits:
    """Admission's Tokens. `limits` are the settings'; agents may bring their own as metadata (`rate_limit`). `signal`
    is set when there are tokens again that were asked for."""

    def __init__(
        self,
        limits: dict[str, dict[str, RateLimit]],
        registry: Instances,
        shared: RedisState,
        *,
        active: ActiveProcesses | None = None,
        signal: DispatchSignal | None = None,
        times: TokenTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agents = dict(limits.get("agents", {}))
        self._requesters = dict(limits.get("requesters", {}))
        self._registry = registry
        self._shared = shared
        self._active = active or ActiveProcesses()
        self._signal = signal or DispatchSignal()
        self._times = times or TokenTimes()
        self._clock = clock
        self._own: dict[str, RateLimit] = {}
        self._buckets: dict[str, Bucket] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._closed = False
        self.active = False
        self.learn()

    def learn(self) -> None:
        """Read the limits that agents bring; to be called when the registry has changed."""
        self._own = {}
        for record in self._registry.instances():
            text = record.metadata.get(METADATA_KEY)
            if text is None or record.name in self._agents:
                continue
            try:
                self._own[record.name] = read_rate(text)
            except ValueError as error:
                log.warning("limit.unreadable", agent=record.name, error=str(error))
        self.active = bool(self._agents or self._requesters or self._own)

    def of_agent(self, agent: str) -> int | None:
        limit = self._agents.get(agent) or self._own.get(agent)
        return None if limit is None else self._tokens(self._bucket(f"agent:{agent}", limit))

    def of_requester(self, limited: str) -> int | None:
        tenant, requester = json.loads(limited)
        limit = self._limit_of(tenant, requester)
        return None if limit is None else self._tokens(self._bucket(f"requester:{limited}", limit))

    def limited(self, request: RouteRequest) -> str:
        if not self._requesters or self._limit_of(request.tenant, request.requester or "") is None:
            return ""
        return requester_text(request.tenant, request.requester)

    def _limit_of(self, tenant: str, requester: str) -> RateLimit | None:
        for name in (f"{tenant}/{requester}", requester, "*"):
            if (limit := self._requesters.get(name)) is not None:
                return limit
        return None

    def spend(self, request: RouteRequest, agent: str) -> None:
        names = [f"agent:{agent}"]
        if limited := self.limited(request):
            names.append(f"requester:{limited}")
        for name in names:
            if (bucket := self._buckets.get(name)) is not None:
                tokens = bucket.own(self._clock(), self._active.count) - 1
                if self._shared.there:
                    bucket.pocket -= 1
                    # While Redis is there, it evens out the shares.
                    bucket.tokens = max(0.0, tokens)
                else:
                    bucket.tokens, bucket.unreported = tokens, True

    def _bucket(self, name: str, limit: RateLimit) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[name] = Bucket(name, limit, self._clock())
        return bucket

    def _tokens(self, bucket: Bucket) -> int:
        now = self._clock()
        if self._shared.there:
            if bucket.pocket <= 0 and not bucket.asking:
                bucket.asking = True
                self._go_ask(self._ask(bucket), "ask-for-tokens")
            return max(0, bucket.pocket)
        processes = self._active.count
        tokens = bucket.own(now, processes)
        if tokens < 1 and not bucket.asking:
            bucket.asking = True
            asyncio.get_running_loop().call_later(bucket.next_in(processes), self._again, bucket)
        return math.floor(tokens)

    def _go_ask(self, asking: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(asking, name=name)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _again(self, bucket: Bucket) -> None:
        bucket.asking = False
        self._signal.set()

    async def _ask(self, bucket: Bucket) -> None:
        limit = bucket.limit
        needed = min(limit.burst, max(1, math.ceil(limit.per_second * self._times.pocket_seconds)))
        unreported = bucket.used(self._clock(), self._active.count) if bucket.unreported else 0
        response = await self._take(bucket, unreported + needed)
        if response is not None:
            taken, wait = response
            bucket.unreported = False
            if taken > unreported:
                bucket.pocket, bucket.pocket_at = max(0, bucket.pocket) + taken - unreported, self._clock()
                asyncio.get_running_loop().call_later(
                    self._times.pocket_kept_seconds, self._return, bucket, bucket.pocket_at
                )
            else:
                await asyncio.sleep(min(wait, self._times.ask_again_seconds))
        # Without a response Redis is away, and the tokens are this process's own.
        self._again(bucket)

    async def _take(self, bucket: Bucket, count: int) -> tuple[int, float] | None:
        limit = bucket.limit
        return await self._shared.take_tokens(bucket.name, per_second=limit.per_second, burst=limit.burst, count=count)

    def _return(self, bucket: Bucket, pocket_at: float) -> None:
        """Return the tokens that have been in the pocket since then."""
        if bucket.pocket_at == pocket_at and bucket.pocket > 0 and not self._closed:
            left, bucket.pocket = bucket.pocket, 0
            self._go_ask(self._return_tokens(bucket, left), "return-tokens")

    async def _return_tokens(self, bucket: Bucket, count: int) -> None:
        await self._take(bucket, -count)

    async def start(self) -> None:
        """Nothing to start: buckets ask for tokens when they are empty."""

    async def stop(self) -> None:
        self._closed = True
        await end(list(self._asking))
