"""Layers: where configuration comes from (file, environment, what a KV store holds), each as flat keys with a source.

A key is a field's name, or `options.<name>` for one of the free options, so that layers override one option without
the others. Pure functions; files and stores are read in `sources`.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pantheon.config.agent_config import AgentConfig
from pantheon.runtime.settings import one_line
from protocol.errors import SettingsError

OPTIONS = "options"
FILE_SUFFIXES = (".yaml", ".yml", ".toml", ".json")
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Setting:
    """A value and its exact origin: a file, a variable, a key."""

    value: Any
    source: str


Layer = Mapping[str, Setting]


@dataclass(frozen=True)
class Origin:
    """Which layer a value came from; `str()` of it is a line for people."""

    key: str
    value: Any
    layer: str
    source: str

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        return f"{self.key} = {self.value!r} from {self.layer}{source}"


def flatten(values: Mapping[str, Any], source: str) -> dict[str, Setting]:
    """Flat keys of a nested mapping; only `options` is opened, and only one level."""
    layer: dict[str, Setting] = {}
    for key, value in values.items():
        if key == OPTIONS and isinstance(value, Mapping):
            layer |= {f"{OPTIONS}.{name}": Setting(item, source) for name, item in value.items()}
        else:
            layer[str(key)] = Setting(value, source)
    return layer


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that a model validates, from flat keys."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        field, dot, option = key.partition(".")
        if dot:
            nested.setdefault(field, {})[option] = value
        else:
            nested[key] = value
    return nested


def flat_values(config: AgentConfig) -> dict[str, Any]:
    """A configuration's effective values by flat key."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    options = fields.pop(OPTIONS)
    return {**fields, **{f"{OPTIONS}.{name}": value for name, value in options.items()}}


def merge(layers: Mapping[str, Layer]) -> dict[str, tuple[str, Setting]]:
    """For each key, the layer that wins and its setting; later layers win over earlier ones."""
    merged: dict[str, tuple[str, Setting]] = {}
    for name, layer in layers.items():
        merged |= {key: (name, setting) for key, setting in layer.items()}
    return merged


def unknown_keys(model: type[AgentConfig], layer: Layer) -> dict[str, str]:
    """Keys that a layer may not have, with the reason."""
    settable = sorted(set(model.model_fields) - model.fixed_keys)
    reasons: dict[str, str] = {}
    for key in layer:
        field, dot, _ = key.partition(".")
        if field in model.fixed_keys:
            reasons[key] = "it is given by the agent itself"
        elif field not in model.model_fields or (dot and field != OPTIONS):
            reasons[key] = f"there is no such setting (there are: {', '.join(settable)})"
    return reasons


def environment_layer(model: type[AgentConfig], environ: Mapping[str, str]) -> dict[str, Setting]:
    """What the environment sets; empty variables set nothing. Raises SettingsError for options that are not JSON."""
    layer: dict[str, Setting] = {}
    for key in model.model_fields:
        if key in model.fixed_keys:
            continue
        variable = model.variable_of(key)
        text = environ.get(variable, "")
        if not text:
            continue
        if key == OPTIONS:
            layer |= flatten({OPTIONS: _json_object(text, variable)}, variable)
        else:
            layer[key] = Setting(text, variable)
    return layer


def _json_object(text: str, source: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{source}={one_line(repr(text))} is not allowed: it must be a JSON object") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{source}={one_line(repr(text))} is not allowed: it must be a JSON object")
    return value


def parse_file(path: Path, content: bytes, agent: str) -> dict[str, Setting]:
    """A file's settings for an agent: the top level is for all, `agents: {<name>: …}` for one and wins.

    Raises SettingsError, one line, with the position of a syntax error.
    """
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} has {len(content)} bytes: a file of settings has at most {MAX_FILE_BYTES}")
    suffix = path.suffix.lower()
    if suffix not in FILE_SUFFIXES:
        raise SettingsError(f"{path} is no file of settings: its name must end in {', '.join(FILE_SUFFIXES)}")
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".toml":
            document: Any = tomllib.loads(text)
        elif suffix == ".json":
            document = json.loads(text) if text.strip() else {}
        else:
            document = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {one_line(str(error))}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise SettingsError(f"{path} must hold settings by name, not {type(document).__name__}")
    shared = {str(key): value for key, value in document.items() if key != "agents"}
    per_agent = document.get("agents") or {}
    if not isinstance(per_agent, dict) or not all(isinstance(section, dict | None) for section in per_agent.values()):
        raise SettingsError(f"{path}: `agents` must hold a mapping of settings for each agent's name")
    own = {str(key): value for key, value in (per_agent.get(agent) or {}).items()}
    return flatten(shared, str(path)) | flatten(own, f"{path}, agents.{agent}")


def parse_tree(prefix: str, separator: str, tree: Mapping[str, bytes]) -> tuple[dict[str, Setting], dict[str, str]]:
    """A KV store's settings below a prefix, and the keys that cannot be read, with the reason.

    `<prefix>` holds a JSON (or YAML) object; `<prefix>/<key>` one value and wins. A value is JSON where it is JSON,
    else a string; what is not UTF-8 is refused.
    """
    layer: dict[str, Setting] = {}
    refused: dict[str, str] = {}
    for key in sorted(tree):
        path = key.removeprefix(prefix).strip(separator)
        if not path and not tree[key]:
            continue  # the "folder" that Consul's own page makes
        try:
            value = _loose(tree[key].decode("utf-8"))
        except UnicodeDecodeError:
            refused[key] = "it is not UTF-8 text"
            continue
        if path:
            name = path.replace(separator, ".")
            layer |= flatten({name: value}, key)
        elif isinstance(value, dict):
            layer |= flatten({str(name): item for name, item in value.items()}, key)
        else:
            refused[key] = "it must hold a JSON or YAML object"
    return layer, refused


def _loose(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if "\n" not in text.strip() and ":" not in text:
        return text.strip()
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
