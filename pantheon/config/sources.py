"""Sources: layers that change while a process runs, each followed for ever; here a file and a NATS KV bucket."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from pantheon.bus import NatsClient
from pantheon.config.layers import Layer, parse_file, parse_tree
from pantheon.discovery.kv_watch import BucketWatch
from protocol.errors import SettingsError

log = structlog.get_logger(__name__)

KV_BUCKET = "config"
FILE_POLL_SECONDS = 1.0
# Every agent checks for the bucket, and most meshes have none: seldom enough for a thousand agents.
PROBE_SECONDS = 30.0

OnLayer = Callable[[Layer], None]


class Source(Protocol):
    """A layer that changes."""

    @property
    def layer(self) -> str:
        """The layer's name."""

    async def follow(self, on_layer: OnLayer) -> None:
        """Call `on_layer` with the whole layer first, and again whenever it has changed; for ever.

        Where a store cannot be reached the first layer is empty, so that no start waits for it.
        """

    async def close(self) -> None:
        """Release what it holds, after the last `follow`."""


class FileSource:
    """A YAML, TOML or JSON file; checked once a second, which needs nothing of the platform and no descriptor."""

    layer = "file"

    def __init__(self, path: Path, agent: str) -> None:
        self.path = path
        self._agent = agent
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""

    def read(self) -> Layer:
        """The file now; raises SettingsError of one line."""
        try:
            self._stamp = self._stat()
            return parse_file(self.path, self.path.read_bytes(), self._agent)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SettingsError(f"the file of settings {self.path} cannot be read: {reason}") from error

    async def follow(self, on_layer: OnLayer) -> None:
        """See Source.follow. A file that is gone or broken leaves the layer as it was, with one warning."""
        while True:
            await asyncio.sleep(FILE_POLL_SECONDS)
            try:
                layer = await asyncio.to_thread(self._read_if_changed)
            except SettingsError as error:
                if self._problem != error.message:
                    self._problem = error.message
                    log.warning("the settings of a file stay as they were", reason=error.message)
                continue
            if layer is not None:
                self._problem = ""
                on_layer(layer)

    async def close(self) -> None:
        """See Source.close; nothing is held."""

    def _stat(self) -> tuple[int, int, int]:
        found = self.path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read_if_changed(self) -> Layer | None:
        try:
            stamp = self._stat()
        except OSError as error:
            self._stamp = None
            reason = error.strerror or type(error).__name__
            raise SettingsError(f"the file of settings {self.path} cannot be read: {reason}") from error
        return self.read() if stamp != self._stamp else None


class NatsSource:
    """A NATS KV bucket: `<agent>` (an object) and `<agent>.<key>`; a mesh without the bucket has no such layer."""

    layer = "nats"

    def __init__(self, client: NatsClient, agent: str, *, bucket: str = KV_BUCKET) -> None:
        self._agent = agent
        self._tree: dict[str, bytes] = {}
        self._loading: dict[str, bytes] | None = {}
        self._unread: dict[str, str] = {}
        self._on_layer: OnLayer | None = None
        self._watch = BucketWatch(client, bucket, self, probe_seconds=PROBE_SECONDS, retry_max_seconds=PROBE_SECONDS)

    async def follow(self, on_layer: OnLayer) -> None:
        """See Source.follow."""
        self._on_layer = on_layer
        await self._watch.run()

    async def close(self) -> None:
        """See Source.close; nothing is held."""

    # BucketListener

    def value_put(self, key: str, value: bytes, sent_at_ns: int) -> None:
        if not self._is_ours(key):
            return
        if self._loading is not None:
            self._loading[key] = value
        elif self._tree.get(key) != value:
            self._tree[key] = value
            self._publish()

    def value_deleted(self, key: str) -> None:
        if self._loading is not None:
            self._loading.pop(key, None)
        elif self._tree.pop(key, None) is not None:
            self._publish()

    def watch_loaded(self) -> None:
        loaded, self._loading = self._loading or {}, None
        if loaded != self._tree:
            self._tree = loaded
            self._publish()

    def watch_lost(self, reason: str) -> None:
        self._loading = {}
        if not self._tree:
            self._publish()
        log.debug("live settings cannot be followed, the last known ones stay", reason=reason)

    def _is_ours(self, key: str) -> bool:
        return key == self._agent or key.startswith(f"{self._agent}.")

    def _publish(self) -> None:
        layer, unread = parse_tree(self._agent, ".", self._tree)
        warn_of_unread(unread, self._unread)
        self._unread = unread
        if self._on_layer is not None:
            self._on_layer(layer)


def warn_of_unread(unread: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Log of each key that cannot be read why, once."""
    for key, reason in unread.items():
        if key not in known:
            log.warning("a live setting is ignored", key=key, reason=reason)
