"""ConfigManager: one AgentConfig out of layers (defaults < file < environment < Consul or NATS KV), followed live.

A value that is wrong at the start, in the file or the environment, is a SettingsError. A value that is wrong later, or
in a KV store, is refused with a warning that names it, and the old one stays: a typing mistake must not stop an agent.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import structlog
from pydantic import ValidationError

from pantheon.config.agent_config import AgentConfig
from pantheon.config.layers import Layer, Origin, Setting, environment_layer, flat_values, merge, nest, unknown_keys
from pantheon.config.sources import FileSource, Source
from pantheon.runtime.background import end
from pantheon.runtime.settings import shown
from protocol.errors import SettingsError

log = structlog.get_logger(__name__)

DEFAULTS, FILE, ENVIRONMENT = "defaults", "file", "environment"
# How long `start` waits for the first layer of a KV store before it goes on with what it has.
FIRST_LAYER_SECONDS = 2.0
FOLLOW_AGAIN_SECONDS = 2.0

ConfigT = TypeVar("ConfigT", bound=AgentConfig)


@dataclass(frozen=True)
class ConfigChange(Generic[ConfigT]):
    """What changed: both configurations, and the keys (`options.<name>` for options) that differ."""

    old: ConfigT
    new: ConfigT
    changed_keys: frozenset[str]


OnChange = Callable[[ConfigT, ConfigT, frozenset[str]], None]


class ConfigManager(Generic[ConfigT]):
    """Keeps `current` as the layers define it.

    manager = ConfigManager(AgentConfig, name="llm_agent", instance_id="a1", file=Path("mesh.yaml"))
    async with manager:
        async for change in manager.changes():
            if "max_concurrency" in change.changed_keys:
                worker.resize(change.new.max_concurrency)
    """

    def __init__(
        self,
        model: type[ConfigT],
        *,
        name: str,
        instance_id: str,
        defaults: Mapping[str, Any] | None = None,
        file: Path | None = None,
        environ: Mapping[str, str] | None = None,
        live: Source | None = None,
        first_layer_seconds: float = FIRST_LAYER_SECONDS,
    ) -> None:
        """Reads file and environment at once; raises SettingsError, one line, when they are wrong.

        `defaults` are the agent's own, over the model's. `environ` is the process's environment by default.
        """
        self._model = model
        self._fixed = {"name": name, "instance_id": instance_id}
        self._sources: list[Source] = []
        self._live = live
        self._first_layer_seconds = first_layer_seconds
        self._layers: dict[str, Layer] = {
            DEFAULTS: {key: Setting(value, "the agent's code") for key, value in _flat(defaults or {}).items()}
        }
        if file is not None:
            source = FileSource(file, name)
            self._layers[FILE] = source.read()
            self._sources.append(source)
        self._layers[ENVIRONMENT] = environment_layer(model, os.environ if environ is None else environ)
        if live is not None:
            self._layers[live.layer] = {}
            self._sources.append(live)
        self._callbacks: list[OnChange[ConfigT]] = []
        self._queues: set[asyncio.Queue[ConfigChange[ConfigT] | None]] = set()
        self._refused: dict[str, Setting] = {}
        self._first_layer = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        for layer in self._layers.values():
            for key, reason in unknown_keys(model, layer).items():
                raise SettingsError(f"{layer[key].source}: {key!r} is not allowed: {reason}")
        try:
            self._current = self._validate(self._layers)
        except ValidationError as error:
            raise SettingsError(self._describe(error)) from error

    @property
    def current(self) -> ConfigT:
        return self._current

    def explain(self, key: str) -> Origin:
        """Where the value of a key (`max_concurrency`, `options.tone`) came from; KeyError for no such key."""
        values = flat_values(self._current)
        if key not in values:
            raise KeyError(f"there is no setting {key!r}: {', '.join(sorted(values))}")
        if key in self._model.fixed_keys:
            return Origin(key, values[key], "identity", "the agent itself")
        layer, setting = merge(self._layers).get(key, (DEFAULTS, Setting(None, "")))
        return Origin(key, values[key], layer, setting.source)

    def on_change(self, callback: OnChange[ConfigT]) -> Callable[[], None]:
        """Call back with (old, new, changed keys) on every change; returns the function that ends this."""
        self._callbacks.append(callback)

        def forget() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return forget

    def changes(self) -> AsyncIterator[ConfigChange[ConfigT]]:
        """Every change from this call on; ends when the manager is closed."""
        queue: asyncio.Queue[ConfigChange[ConfigT] | None] = asyncio.Queue()
        if self._closed:
            queue.put_nowait(None)
        self._queues.add(queue)
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[ConfigChange[ConfigT] | None]) -> AsyncIterator[ConfigChange[ConfigT]]:
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            self._queues.discard(queue)

    async def start(self) -> None:
        """Follow what changes; waits a moment for a KV store's first layer, so that work begins with it."""
        self._tasks = [
            asyncio.create_task(self._follow(source), name=f"config-{source.layer}") for source in self._sources
        ]
        if self._live is not None:
            try:
                async with asyncio.timeout(self._first_layer_seconds):
                    await self._first_layer.wait()
            except TimeoutError:
                log.debug("no live settings yet, going on without", layer=self._live.layer)

    async def close(self) -> None:
        """Stop following; `current` stays."""
        self._closed = True
        tasks, self._tasks = self._tasks, []
        await end(tasks)
        for source in self._sources:
            await source.close()
        for queue in self._queues:
            queue.put_nowait(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _follow(self, source: Source) -> None:
        while True:
            try:
                await source.follow(lambda layer: self.set_layer(source.layer, layer))
            except Exception:
                log.exception("a layer of settings cannot be followed, trying on", layer=source.layer)
            await asyncio.sleep(FOLLOW_AGAIN_SECONDS)

    def set_layer(self, name: str, layer: Layer) -> None:
        """Replace a layer: what is allowed comes into effect, the rest is refused with a warning."""
        old_layer = self._layers[name]
        new_layer = dict(layer)
        for key, reason in unknown_keys(self._model, new_layer).items():
            self._refuse(new_layer, old_layer, key, reason)
        layers = {**self._layers, name: new_layer}
        while True:
            try:
                new = self._validate(layers)
                break
            except ValidationError as error:
                bad = {key: str(problem["msg"]) for problem in error.errors() if (key := self._key_of(problem))}
                ours = {key: reason for key, reason in bad.items() if new_layer.get(key) != old_layer.get(key)}
                if not ours:
                    log.warning("new settings do not go together, the old ones stay", layer=name, reason=str(error))
                    if name != FILE:
                        self._first_layer.set()
                    return
                for key, reason in ours.items():
                    self._refuse(new_layer, old_layer, key, reason)
        self._layers[name] = new_layer
        if name != FILE:
            self._first_layer.set()
        self._switch(new)

    def _refuse(self, new_layer: dict[str, Setting], old_layer: Layer, key: str, reason: str) -> None:
        setting = new_layer.pop(key, None)
        if setting is not None and self._refused.get(key) != setting:
            self._refused[key] = setting
            log.warning(
                "a live setting is refused, the old value stays",
                key=key,
                value=shown(setting.value),
                source=setting.source,
                reason=reason,
            )
        if key in old_layer:
            new_layer[key] = old_layer[key]

    def _switch(self, new: ConfigT) -> None:
        old, self._current = self._current, new
        before, after = flat_values(old), flat_values(new)
        missing = object()
        changed = frozenset(key for key in before | after if before.get(key, missing) != after.get(key, missing))
        if not changed:
            return
        log.info("settings have changed", changes=[str(self.explain(key)) for key in sorted(changed & after.keys())])
        for queue in self._queues:
            queue.put_nowait(ConfigChange(old, new, changed))
        for callback in tuple(self._callbacks):
            try:
                callback(old, new, changed)
            except Exception:
                log.exception("a callback of changed settings failed", callback=repr(callback))

    def _validate(self, layers: Mapping[str, Layer]) -> ConfigT:
        values = {key: setting.value for key, (_, setting) in merge(layers).items()}
        return self._model.model_validate({**nest(values), **self._fixed})

    def _key_of(self, problem: Mapping[str, Any]) -> str:
        path = problem["loc"]
        if not path:
            return ""
        return ".".join(str(part) for part in path[:2]) if path[0] == "options" and len(path) > 1 else str(path[0])

    def _describe(self, error: ValidationError) -> str:
        merged = merge(self._layers)
        lines = []
        for problem in error.errors(include_url=False):
            key = self._key_of(problem)
            message = str(problem["msg"])
            if key in merged:
                _, setting = merged[key]
                name = setting.source if setting.source.isupper() else f"{setting.source}: {key}"
                lines.append(f"{name}={shown(setting.value)} is not allowed: {message}")
            else:
                lines.append(f"{key}: {message}" if key else message)
        return "; ".join(lines)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "options" and isinstance(value, Mapping):
            flat |= {f"options.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat
