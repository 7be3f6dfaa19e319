"""RedisState: what orchestrators remember together for a while, in Redis (or Valkey); the only module that knows its
client.

Nothing here is needed for correctness. Without Redis, or while it is away, each process uses what it knows itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = structlog.get_logger()

T = TypeVar("T")

PREFIX = "pantheon:"

# A bucket's tokens and when they were counted, by Redis's own clock. Returns how many of the requested tokens were
# taken, and after how many milliseconds there will be one more. A negative request returns tokens.
TAKE_TOKENS = """
local now = redis.call('TIME')
now = now[1] * 1000 + now[2] / 1000
local per_ms, burst, requested = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = burst
if kept[1] then
    tokens = math.min(burst, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * per_ms)
end
local taken = math.min(requested, math.floor(tokens))
tokens = math.min(burst, tokens - taken)
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / per_ms) + 1000)
return {taken, math.ceil((1 - (tokens - math.floor(tokens))) / per_ms)}
"""

# A slow process may find that its claim has expired, and is another's by now. An expiry of 0 deletes.
KEEP = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"


@dataclass(frozen=True, slots=True)
class RedisTimes:
    """How long Redis is waited for."""

    # It responds within a millisecond; no caller waits for one that does not.
    response_seconds: float = 0.5
    # How long it is not asked again after it did not respond.
    retry_seconds: float = 1.0


class RedisState:
    """Methods never raise: None means that Redis did not respond."""

    def __init__(self, url: str | None, times: RedisTimes | None = None) -> None:
        self._times = times or RedisTimes()
        self._redis: Redis | None = None
        self._away_until = 0.0
        self._away = False
        if url is None:
            log.warning(
                "shared.none", hint="REDIS_URL is not set: limits and circuits hold for each orchestrator alone"
            )
            return
        self._redis = Redis.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            socket_timeout=self._times.response_seconds,
            socket_connect_timeout=self._times.response_seconds,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._tokens: Any = self._redis.register_script(TAKE_TOKENS)
        self._keep: Any = self._redis.register_script(KEEP)

    @property
    def there(self) -> bool:
        """Whether there is a Redis, and it responded when it was last asked."""
        return self._redis is not None and not self._away

    async def _ask(self, act: Callable[[Any], Awaitable[T]]) -> T | None:
        if self._redis is None or time.monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(2 * self._times.response_seconds):
                response = await act(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._away:
                log.warning("shared.away", error=str(error) or type(error).__name__)
            self._away, self._away_until = True, time.monotonic() + self._times.retry_seconds
            return None
        if self._away:
            log.info("shared.back")
            self._away = False
        return response

    async def note(self, notes: Mapping[str, tuple[str, float]]) -> bool:
        """Keep texts under these names, each for so many seconds; whether that was done."""

        async def act(redis: Any) -> bool:
            async with redis.pipeline(transaction=False) as pipeline:
                for name, (text, seconds) in notes.items():
                    pipeline.set(PREFIX + name, text, px=max(1, int(seconds * 1000)))
                await pipeline.execute()
            return True

        return bool(await self._ask(act))

    async def noted(self, names: Sequence[str]) -> dict[str, tuple[str, float]] | None:
        """What is kept under these names, and for how many seconds more."""

        async def act(redis: Any) -> dict[str, tuple[str, float]]:
            async with redis.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.get(PREFIX + name)
                    pipeline.pttl(PREFIX + name)
                responses = await pipeline.execute()
            texts, left = responses[::2], responses[1::2]
            found = zip(names, texts, left, strict=True)
            return {name: (text, milliseconds / 1000) for name, text, milliseconds in found if text is not None}

        return await self._ask(act)

    async def claim(self, name: str, owner: str, seconds: float) -> bool | None:
        """Reserve a name for an owner, for so many seconds; False where another has it."""

        async def act(redis: Any) -> bool:
            return bool(await redis.set(PREFIX + name, owner, nx=True, px=max(1, int(seconds * 1000))))

        return await self._ask(act)

    async def keep(self, name: str, owner: str, seconds: float) -> None:
        """Extend a claim that the owner still has to so many seconds from now; 0 releases it."""

        async def act(redis: Any) -> None:
            await self._keep(keys=[PREFIX + name], args=[owner, int(seconds * 1000)])

        await self._ask(act)

    async def take_tokens(self, name: str, *, per_second: float, burst: int, count: int) -> tuple[int, float] | None:
        """Take up to `count` tokens of a bucket; returns how many were taken, and the seconds until there is one
        more.

        A negative number returns tokens.
        """

        async def act(redis: Any) -> tuple[int, float]:
            taken, milliseconds = await self._tokens(keys=[PREFIX + name], args=[per_second / 1000, burst, count])
            return int(taken), int(milliseconds) / 1000

        return await self._ask(act)

    async def close(self) -> None:
        if self._redis is not None:
            await self._redis.aclose()
