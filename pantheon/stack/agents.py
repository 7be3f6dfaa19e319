"""What the stack runs beside its servers: the orchestrator, the five built-in agents, third parties' agents."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pantheon.stack.errors import AgentLoadError
from pantheon.stack.processes.process import Command, last_meaningful_line

ORCHESTRATOR_NAME = "orchestrator_agent"

_LOAD_SECONDS = 60.0
_AGENT_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
# Loaded in a process of its own: an agent's module may do anything at import. The marks distinguish our lines from its
# prints.
_NAME_MARK = "agent name: "
_REASON_MARK = "agent not loaded: "
_PRINT_NAME = f"""
import sys
from pantheon.process.loading import load_agent
from protocol.errors import PantheonError
try:
    print("\\n{_NAME_MARK}" + load_agent(sys.argv[1]).name, flush=True)
except PantheonError as error:
    sys.exit("\\n{_REASON_MARK}" + str(error).removeprefix(sys.argv[1] + ": "))
"""


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent to run: its name on the wire, the command line of a process of it, and how many processes."""

    name: str
    arguments: tuple[str, ...]
    instances: int = 1

    @classmethod
    def of_module(cls, module: str, *, name: str | None = None, instances: int = 1) -> AgentSpec:
        """Return the spec of an agent that runs by `python -m MODULE`, named like the module unless `name` is set."""
        return cls(name or module.rpartition(".")[2], (sys.executable, "-m", module), instances)


def orchestrator(instances: int = 1) -> AgentSpec:
    """Return the spec of the orchestrator."""
    return AgentSpec.of_module(ORCHESTRATOR_NAME, instances=instances)


def built_in_agents() -> tuple[AgentSpec, ...]:
    """Return the five agents that come with Pantheon."""
    names = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")
    return tuple(AgentSpec.of_module(f"agents.{name}") for name in names)


async def find_agent(
    target: str,
    *,
    environment: Mapping[str, str] | None = None,
    instances: int = 1,
    load_seconds: float = _LOAD_SECONDS,
) -> AgentSpec:
    """Return the spec of a third party's agent: a module or a Python file with an `Agent` in it.

    `target` is what `load_agent` takes, and the name is that of the Agent found there. It is run by the command line's
    `agent run`, so that a module without a `__main__` part works too. Raises AgentLoadError with the reason when the
    module does not load.
    """
    process = await asyncio.create_subprocess_exec(
        *Command("agent", (sys.executable, "-c", _PRINT_NAME, target)).launched(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(environment) if environment is not None else None,
    )  # fmt: skip
    try:
        async with asyncio.timeout(load_seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        raise AgentLoadError(target, f"importing it took longer than {load_seconds:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise AgentLoadError(target, _reason(errors.decode(errors="replace"), process.returncode))
    name = output.decode(errors="replace").rpartition(_NAME_MARK)[2].partition("\n")[0]
    if not _AGENT_NAME.fullmatch(name):
        raise AgentLoadError(target, f"its name {name!r} is no agent name")
    return AgentSpec(name, (sys.executable, "-m", "pantheon", "agent", "run", target), instances)


def _reason(errors: str, status: int | None) -> str:
    """Return why loading failed: the loader's reason, else the last log line of a module that ended the process."""
    _, mark, reason = errors.rpartition(_REASON_MARK)
    return (" ".join(reason.split()) if mark else last_meaningful_line(errors)) or f"exit status {status}"
