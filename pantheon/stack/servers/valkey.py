"""The embedded Valkey server, append-only file below the data folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pantheon.stack.processes.process import Command
from pantheon.stack.servers.ports import LOOPBACK
from pantheon.stack.servers.programs import find_valkey_server
from pantheon.stack.servers.server import Server, server_environment


class ValkeyServer(Server):
    """`valkey-server` on a loopback port.

    The append-only file is written before each response and synced every second: a killed server comes back with its
    data, a lost machine loses a second, which is all that the mesh asks of it.
    """

    name = "valkey"

    def __init__(self, folder: Path, *, log: Path | None = None, port: int | None = None) -> None:
        """Take the data folder."""
        super().__init__(folder, log=log, port=port)

    @property
    def url(self) -> str:
        """`redis://` address of database 0."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def _command(self, port: int) -> Command:
        options = {
            "port": str(port),
            "bind": LOOPBACK,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "daemonize": "no",
        }
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        return Command(
            self.name,
            (str(find_valkey_server()), *arguments),
            environment=server_environment(self.folder),
            folder=self.folder,
            death_signal=self.death_signal,
        )

    async def _is_ready(self, port: int) -> bool:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        try:
            writer.write(b"INFO server\r\n")
            header = await reader.readline()
            # An error line ("-LOADING ...") while the append-only file is being read.
            if not header.startswith(b"$"):
                return False
            body = await reader.readexactly(int(header[1:]))
        finally:
            writer.close()
        return f"process_id:{self.pid}".encode() in body.split(b"\r\n")
