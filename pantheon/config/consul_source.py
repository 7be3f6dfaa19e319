"""ConsulSource: a layer of settings in Consul's KV store, followed by blocking queries."""

import asyncio
import random
from collections.abc import Mapping

import structlog

from pantheon.config.layers import parse_tree
from pantheon.config.sources import OnLayer, warn_of_unread
from pantheon.discovery.consul_api import ConsulApi
from protocol.errors import DiscoveryError

log = structlog.get_logger(__name__)

KV_PREFIX = "config"
WAIT_SECONDS = 30.0
# Between two reads: a client that writes keys in a loop does not make every agent read in a loop.
MIN_INTERVAL_SECONDS = 0.25
RETRY_FIRST_SECONDS = 0.5
RETRY_MAX_SECONDS = 15.0


class ConsulSource:
    """Consul's KV store: `config/<agent>` (an object) and `config/<agent>/<key>`, by blocking queries."""

    layer = "consul"

    def __init__(self, api: ConsulApi, agent: str) -> None:
        """Takes over the api: `close` closes it."""
        self._api = api
        self._prefix = f"{KV_PREFIX}/{agent}"
        self._index = 0

    async def follow(self, on_layer: OnLayer) -> None:
        """See Source.follow. Without Consul the last known values stay."""
        last: Mapping[str, bytes] | None = None
        delay = RETRY_FIRST_SECONDS
        lost = False
        refused: dict[str, str] = {}
        while True:
            try:
                tree = await self._read()
            except DiscoveryError as error:
                if not lost:
                    lost = True
                    log.warning("live settings cannot be followed, the last known ones stay", reason=error.message)
                    if last is None:
                        on_layer({})
                self._index = 0
                await asyncio.sleep(delay * random.uniform(0.75, 1.25))
                delay = min(delay * 2, RETRY_MAX_SECONDS)
                continue
            delay, lost = RETRY_FIRST_SECONDS, False
            if tree != last:
                last = tree
                layer, unread = parse_tree(self._prefix, "/", tree)
                warn_of_unread(unread, refused)
                refused = unread
                on_layer(layer)
            await asyncio.sleep(MIN_INTERVAL_SECONDS)

    async def _read(self) -> Mapping[str, bytes]:
        index, tree = await self._api.read_tree(self._prefix, self._index, WAIT_SECONDS)
        # An index that went back is a Consul made anew: read at once next time.
        self._index = max(index, 1) if index >= self._index else 0
        # The prefix `config/llm_agent` is also one of `config/llm_agent_2`.
        return {key: value for key, value in tree.items() if key == self._prefix or key.startswith(f"{self._prefix}/")}

    async def close(self) -> None:
        """See Source.close."""
        await self._api.close()
