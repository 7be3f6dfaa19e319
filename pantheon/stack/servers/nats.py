"""The embedded NATS server with JetStream, its store below the data folder."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path

from pantheon.stack.processes.process import Command
from pantheon.stack.servers.ports import LOOPBACK
from pantheon.stack.servers.programs import find_nats_server
from pantheon.stack.servers.server import Server, server_environment

# Larger payloads go through the object store (docs/protocol.md); nats-server advises against more than this.
_MAX_PAYLOAD_BYTES = 8 * 1024 * 1024


class NatsServer(Server):
    """`nats-server` on a loopback port; the sync interval of JetStream is NATS's own default."""

    name = "nats"
    # SIGTERM makes nats-server write its stream states before it goes, within milliseconds.
    death_signal = signal.SIGTERM

    def __init__(
        self,
        folder: Path,
        *,
        log: Path | None = None,
        port: int | None = None,
        monitor_port: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Take the data folder; `monitor_port` opens NATS's HTTP monitoring, closed by default. `settings` are more of
        the server's own configuration, and win."""
        super().__init__(folder, log=log, port=port)
        self._monitor_port = monitor_port
        self._settings = settings or {}
        # A name per folder: in INFO it shows whether the server behind a port is this one.
        self.server_name = "pantheon-" + hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]

    @property
    def url(self) -> str:
        """`nats://` address."""
        return f"nats://{LOOPBACK}:{self.port}"

    def _command(self, port: int) -> Command:
        settings: dict[str, object] = {
            "server_name": self.server_name,
            "host": LOOPBACK,
            "port": port,
            "max_payload": _MAX_PAYLOAD_BYTES,
            "jetstream": {"store_dir": str(self.folder)},
        }
        if self._monitor_port is not None:
            settings["http"] = f"{LOOPBACK}:{self._monitor_port}"
        settings |= self._settings
        config = self.folder / "nats.conf"
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        return Command(
            self.name,
            (str(find_nats_server()), "-c", str(config)),
            environment=server_environment(self.folder),
            death_signal=self.death_signal,
        )

    async def _is_ready(self, port: int) -> bool:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        try:
            line = await reader.readline()
        finally:
            writer.close()
        if not line.startswith(b"INFO "):
            return False
        info = json.loads(line[5:])
        return bool(info.get("server_name") == self.server_name and info.get("jetstream"))
