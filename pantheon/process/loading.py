"""load_agent: the Agent in a module or file, by the name that a person typed."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from pantheon.agent import Agent
from protocol.errors import PantheonError

DEFAULT_ATTRIBUTE = "agent"


class AgentNotLoaded(PantheonError):
    """`target` names no Agent; the message is the reason, in one line."""

    def __init__(self, target: str, why: str) -> None:
        super().__init__(f"{target}: {why}")
        self.target = target


def load_agent(target: str) -> Agent:
    """The Agent that `target` names: `package.module`, `package.module:attribute` or `path/to/file.py[:attribute]`.

    Without an attribute it is the module's `agent`, else its only Agent; a package's is also searched in its module
    `agent`. The module is imported, and the current folder is importable, as with `python -m`. Raises AgentNotLoaded.
    """
    source, attribute = _split(target)
    if not source:
        raise AgentNotLoaded(target, "give a module's name, module:attribute, or the path of a .py file")
    module = _import_file(target, Path(source)) if source.endswith(".py") else _import_module(target, source)
    found = _find(target, module, attribute)
    if found is None and hasattr(module, "__path__") and attribute is None:
        inner = f"{module.__name__}.agent"
        if _is_there(inner):
            module = _import_module(target, inner)
            found = _find(target, module, None)
    if found is None:
        missing = f"no attribute '{attribute}'" if attribute else "no Agent in it"
        raise AgentNotLoaded(target, f'the module has {missing}: write agent = Agent("…") at its top level')
    return found


def _split(target: str) -> tuple[str, str | None]:
    source, colon, attribute = target.rpartition(":")
    # A drive's colon (C:\agent.py) and a path's own are not separators: attributes are identifiers.
    if colon and attribute.isidentifier() and source:
        return source, attribute
    return target, None


def _import_file(target: str, path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        raise AgentNotLoaded(target, "there is no such file")
    # Files beside it are importable, as when it is run as a script.
    _make_importable(path.parent)
    # Not its own name alone: a file called json.py must not replace the standard library's module.
    name = f"agent_file_{path.stem}" if path.stem.isidentifier() else "agent_file"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    _run(target, lambda: loader.exec_module(module))
    return module


def _import_module(target: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise AgentNotLoaded(target, "is neither a module's name nor the path of a .py file")
    _make_importable(Path.cwd())
    imported: list[ModuleType] = []
    try:
        _run(target, lambda: imported.append(importlib.import_module(name)))
    except AgentNotLoaded as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and _within(name, missing.name):
            raise AgentNotLoaded(target, f"there is no module '{missing.name}' (looked in {Path.cwd()} too)") from None
        raise
    return imported[0]


def _within(name: str, missing: str) -> bool:
    return name == missing or name.startswith(f"{missing}.")


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _run(target: str, importing: Callable[[], None]) -> None:
    """Import an author's module: what it raises becomes one line with the position in the author's file."""
    try:
        importing()
    except SyntaxError as error:
        position = f"{Path(error.filename).name}:{error.lineno}: " if error.filename else ""
        raise AgentNotLoaded(target, f"{position}{error.msg}") from error
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split()) or "no message"
        raise AgentNotLoaded(target, f"importing it raised {type(error).__name__}: {text}{_position(error)}") from error


def _position(error: BaseException) -> str:
    """Where in the author's code an import failed: the innermost frame that is not the import machinery's."""
    position = ""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith("<") and name != __file__ and "importlib" not in name:
            position = f" ({Path(name).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return position


def _find(target: str, module: ModuleType, attribute: str | None) -> Agent | None:
    if attribute is not None:
        value = getattr(module, attribute, None)
        if value is not None and not isinstance(value, Agent):
            raise AgentNotLoaded(target, f"'{attribute}' is {type(value).__name__}, not an Agent")
        return value
    default = getattr(module, DEFAULT_ATTRIBUTE, None)
    if isinstance(default, Agent):
        return default
    agents = {name: value for name, value in vars(module).items() if isinstance(value, Agent)}
    distinct = {id(value): value for value in agents.values()}
    if len(distinct) > 1:
        names = ", ".join(sorted(agents))
        raise AgentNotLoaded(
            target, f"the module has several Agents ({names}): say which, as in {target}:{min(agents)}"
        )
    return next(iter(distinct.values()), None)
