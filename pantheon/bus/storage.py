"""Storage: how much of the broker's file store each of the mesh's streams may take, and how full they are.

JetStream stops every stream of an account when one of them has used up the account's storage, also those that have
reserved bytes. So every stream has a bound, and all bounds together are less than there is: final responses and events
give way to newer ones, requests are refused while theirs is full.
"""

from dataclasses import dataclass

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from pantheon.bus.connection import Bus
from protocol.errors import BusError
from protocol.streams import StreamSpec

log = structlog.get_logger()

# Where the account has no limit, and nothing is set: what the mesh's streams take together, of one copy.
DEFAULT_BYTES = 8_000_000_000
# Less does not hold a message of the largest size in each stream.
LEAST_BYTES = 16_000_000
# What is left for the buckets of discovery and settings, which are small.
USED_SHARE = 0.95
# A server has a limit of its own, which accounts do not see: it refuses what is beyond, and less is tried.
REDUCE = 0.8
# ADR-1 of NATS: no storage left for a stream, the account's or the server's limit would be exceeded.
REFUSALS = {10002, 10023, 10028, 10047}


class StorageRefused(BusError):
    """The broker has no room for a stream of this size."""


@dataclass(frozen=True)
class StorageBudget:
    """`total` bytes of one copy. `exact`: by a setting or the account's limit; else streams keep the bounds that they
    have."""

    total: int
    exact: bool

    def bound(self, spec: StreamSpec) -> int:
        share = int(self.total * USED_SHARE * spec.share)
        return share if spec.max_bytes < 0 else min(share, spec.max_bytes)

    def reduced(self) -> "StorageBudget":
        return StorageBudget(int(self.total * REDUCE), self.exact)


async def storage_budget(bus: Bus, *, replicas: int, storage_bytes: int | None) -> StorageBudget:
    """What the mesh's streams may take: `storage_bytes` where that is set, within what the account has.

    Raises BusError, also where that is too little.
    """
    limit = await account_limit(bus, replicas=replicas)
    amounts = [amount for amount in (storage_bytes, limit) if amount is not None]
    budget = StorageBudget(min(amounts, default=DEFAULT_BYTES), bool(amounts))
    if budget.total < LEAST_BYTES:
        raise BusError(
            f"the mesh's streams may take {budget.total} bytes of JetStream's storage, and need {LEAST_BYTES}: raise "
            "the account's max_file in the broker's configuration, or BROKER_STORAGE_BYTES"
        )
    return budget


async def account_limit(bus: Bus, *, replicas: int) -> int | None:
    """The bytes on disk that the account may use, of one copy; None: no limit. Raises BusError."""
    try:
        info = await bus.js.account_info()
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(
            f"cannot read the account's limits: {error or type(error).__name__} (is JetStream on?)"
        ) from error
    # Limits by tier count one copy, others all of them.
    if info.tiers and (tier := info.tiers.get(f"R{replicas}")) is not None:
        limit = tier.limits.max_storage
        return limit if limit > 0 else None
    limit = info.limits.max_storage
    return limit // replicas if limit > 0 else None


async def storage_used(bus: Bus) -> int:
    """The bytes on disk that the account uses, of all copies. Raises BusError."""
    try:
        info = await bus.js.account_info()
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot read what the account uses: {error or type(error).__name__}") from error
    return int(info.storage)


def is_refusal(error: Exception) -> bool:
    """Whether the broker has no storage for a stream of this size."""
    return isinstance(error, APIError) and error.err_code in REFUSALS


@dataclass(frozen=True)
class StreamFill:
    """How full a stream is; `max_bytes` None: without a bound."""

    name: str
    messages: int
    used_bytes: int
    max_bytes: int | None
    discards_old: bool

    @property
    def share(self) -> float:
        """0 to 1."""
        return 0.0 if not self.max_bytes else self.used_bytes / self.max_bytes


async def stream_fill(bus: Bus, name: str) -> StreamFill | None:
    """None where there is no such stream. Raises BusError."""
    try:
        info = await bus.js.stream_info(name)
    except NotFoundError:
        return None
    except (TimeoutError, NatsError, OSError) as error:
        raise BusError(f"cannot read the stream {name}: {error or type(error).__name__}") from error
    bound = info.config.max_bytes or -1
    discards_old = str(getattr(info.config.discard, "value", info.config.discard)) == "old"
    return StreamFill(name, info.state.messages, info.state.bytes, bound if bound > 0 else None, discards_old)
