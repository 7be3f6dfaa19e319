"""What the distribution requires: everything that a mesh on one machine needs; or, for an image, the kit alone.

The extras of pyproject.toml say for whom each requirement is. A build with PANTHEON_REQUIRES=kit requires those of
`kit`, and an image adds the extra of its process; any other build requires those of all extras (ADR 0016).
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "PANTHEON_REQUIRES"
# What only a checkout needs.
TOOLS = "dev"


def required(extras: dict[str, list[str]], wanted: str) -> list[str]:
    """The requirements of the extra that is `wanted`, or (empty) of all but the tools'. Raises ValueError."""
    if wanted and wanted not in extras:
        raise ValueError(f"{VARIABLE}={wanted}: there is no such extra; there is {', '.join(extras)}")
    named = [wanted] if wanted else [name for name in extras if name != TOOLS]
    # An extra that names another one: that one is here as well.
    return sorted({one for name in named for one in extras[name] if not one.startswith("pantheon-mesh[")})


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = required(metadata["optional-dependencies"], os.environ.get(VARIABLE, ""))
