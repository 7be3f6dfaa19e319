"""Finding the mesh a command speaks to: `--url`, the environment, or the newest `pantheon up` of this folder."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pantheon.runtime.settings import FILE_SUFFIX, MeshSettings

if TYPE_CHECKING:
    from pantheon.bus import Bus
    from pantheon.client.mesh import Mesh
    from pantheon.stack import Endpoints

REQUESTER = "cli"
# A person waits for this; a server that is there answers within milliseconds.
CONNECT_SECONDS = 5.0

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="NATS of the mesh; else NATS_URL, else the newest 'pantheon up' of this folder.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable on stdout, nothing else there.")]


@dataclass(frozen=True)
class FoundMesh:
    """Where the mesh is; `endpoints` only when it is a `pantheon up` of this machine."""

    settings: MeshSettings
    endpoints: "Endpoints | None" = None

    def environment(self) -> dict[str, str]:
        """The variables that a process of this mesh needs beside the ones it has already."""
        if self.endpoints is None:
            return {"NATS_URL": self.settings.nats_url}
        return self.endpoints.environment()


def says(environ: Mapping[str, str], variable: str) -> bool:
    """Whether the environment gives a variable, directly or as a file."""
    return bool(environ.get(variable) or environ.get(variable + FILE_SUFFIX))


def find_mesh(url: str | None = None, *, variable: str = "NATS_URL") -> FoundMesh:
    """The mesh that `url`, `variable`, or a running `pantheon up` names. Raises SettingsError, NoMeshError."""
    if url is not None or says(os.environ, variable):
        return FoundMesh(MeshSettings.load(nats_url=url))
    from pantheon.stack.endpoints import find_newest

    endpoints = find_newest(Path.cwd())
    settings = MeshSettings.load(nats_url=endpoints.nats_url)
    # Its discovery is what it was started with, whatever this shell has set for another mesh.
    return FoundMesh(settings.model_copy(update={"consul_http_addr": endpoints.consul_http_addr}), endpoints)


@contextlib.asynccontextmanager
async def open_mesh(url: str | None, *, requester: str = REQUESTER) -> AsyncIterator["Mesh"]:
    """A client of the mesh. Raises BusError, SettingsError, NoMeshError."""
    found = find_mesh(url)
    from pantheon.client.mesh import Mesh

    async with Mesh(found.settings.nats_url, requester=requester, connect_seconds=CONNECT_SECONDS) as mesh:
        yield mesh


@contextlib.asynccontextmanager
async def open_bus(found: FoundMesh, *, wait_seconds: float = CONNECT_SECONDS) -> AsyncIterator["Bus"]:
    """A bare connection, for what the client has no words for."""
    from pantheon.bus import Bus
    from pantheon.bus.credentials import nats_options

    options = nats_options(found.settings)
    bus = await Bus.connect(found.settings.nats_url, name=REQUESTER, wait_seconds=wait_seconds, options=options)
    async with bus:
        yield bus
