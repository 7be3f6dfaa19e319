"""What the distribution requires: everything that a mesh on one machine needs; or, for an image, the kit alone.

The extras of pyproject.toml state for whom each requirement is. A build with PANTHEON_REQUIRES=kit requires those of
`kit`, and an image adds the extra of its process; any other build requires those of all extras (ADR 0016).
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "PANTHEON_REQUIRES"
# What only a checkout needs.
TOOLS = "dev"


def required(extras: dict[str, list[str]], extra: str) -> list[str]:
    """The requirements of one extra, or (empty) of all but the tools'. Raises ValueError."""
    if extra and extra not in extras:
        raise ValueError(f"{VARIABLE}={extra}: there is no such extra; there is {', '.join(extras)}")
    named = [extra] if extra else [name for name in extras if name != TOOLS]
    # An extra that names another one: that one is here as well.
    return sorted({entry for name in named for entry in extras[name] if not entry.startswith("pantheon-mesh[")})


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = required(metadata["optional-dependencies"], os.environ.get(VARIABLE, ""))
