"""The grammar of names on the wire (docs/protocol.md, Names): agents, instances, task types, steps."""

import re
from typing import Any

from pydantic import BeforeValidator

AGENT_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}\Z")
INSTANCE_ID = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")
TASK_TYPE = AGENT_NAME
STEP_NAME = AGENT_NAME
# The mesh's own operations carry a dot, so no agent can ever serve one.
MESH_OPERATION = re.compile(r"^mesh\.[a-z][a-z0-9_]{0,62}\Z")

ORCHESTRATOR = "orchestrator_agent"
EXECUTE_DAG = "execute_dag"
MESH_PREFIX = "mesh."

# Words that CEL reserves (language definition, "reserved identifiers"), and `input`, the name of a workflow's own.
RESERVED_STEP_NAMES = frozenset(
    "as break const continue else false for function if import in let loop package namespace null return true var "
    "void while input".split()
)


def null_means(default: Any) -> BeforeValidator:
    """On the wire null and absent mean the same: many languages' clients send null for what is not set."""
    return BeforeValidator(lambda value: default if value is None else value)


def is_agent_name(text: str) -> bool:
    return AGENT_NAME.match(text) is not None


def is_task_type(text: str) -> bool:
    return TASK_TYPE.match(text) is not None


def is_instance_id(text: str) -> bool:
    return INSTANCE_ID.match(text) is not None


def is_step_name(text: str) -> bool:
    return STEP_NAME.match(text) is not None and text not in RESERVED_STEP_NAMES
