"""An embedded Consul: a server agent on loopback, for discovery where a `consul` program is installed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

from pantheon.stack.errors import ProgramMissingError
from pantheon.stack.processes.process import Command, run_to_end
from pantheon.stack.servers.ports import LOOPBACK, is_free, pick_free
from pantheon.stack.servers.server import Server, server_environment

_HTTP_SECONDS = 1.0
_OFF = -1
# From this version on a server opens a TLS port for gRPC by default; older ones refuse the setting.
_FIRST_WITH_GRPC_TLS = (1, 14)
# A machine's proxy settings must not apply to loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ConsulServer(Server):
    """`consul agent -server` of one node; HTTP, RPC and LAN gossip on free loopback ports, everything else closed."""

    name = "consul"
    # As a server agent it leaves its cluster only when asked to; a signal just ends it.
    stop_steps = ((signal.SIGTERM, 5.0),)

    def __init__(self, folder: Path, program: Path, *, log: Path | None = None, port: int | None = None) -> None:
        """Take the data folder and the `consul` program (`find_consul`)."""
        super().__init__(folder, log=log, port=port)
        self._program = program
        self._version: tuple[int, ...] = ()
        self._inner_ports: tuple[int, int] | None = None
        self.node_name = "pantheon-" + hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]

    @property
    def url(self) -> str:
        """`http://` address of the HTTP API."""
        return f"http://{LOOPBACK}:{self.port}"

    async def _prepare(self) -> None:
        if self._version:
            return
        log = self.folder / "version.log"
        log.unlink(missing_ok=True)
        command = Command(
            "consul version", (str(self._program), "version"), environment=server_environment(self.folder)
        )
        await run_to_end(command, log)
        found = re.search(r"Consul v(\d+)\.(\d+)", log.read_text(errors="replace"))
        if found is None:
            raise ProgramMissingError(f"{self._program} does not answer as Consul: give the path of a `consul` binary")
        self._version = (int(found[1]), int(found[2]))

    def _command(self, port: int) -> Command:
        server_port, gossip_port = self._choose_inner_ports(port)
        ports = {"http": port, "server": server_port, "serf_lan": gossip_port}
        ports |= dict.fromkeys(("dns", "grpc", "https", "serf_wan"), _OFF)
        if self._version >= _FIRST_WITH_GRPC_TLS:
            ports["grpc_tls"] = _OFF
        settings = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": self.node_name,
            "data_dir": str(self.folder / "data"),
            "bind_addr": LOOPBACK,
            "client_addr": LOOPBACK,
            "ports": ports,
            "disable_update_check": True,
            # The default allows for slow links between servers and elects after several seconds.
            "performance": {"raft_multiplier": 1},
        }
        config = self.folder / "consul.json"
        config.write_text(json.dumps(settings, indent=2) + "\n")
        return Command(
            self.name,
            (str(self._program), "agent", "-config-file", str(config)),
            environment=server_environment(self.folder),
            death_signal=self.death_signal,
        )

    async def _is_ready(self, port: int) -> bool:
        agent = await asyncio.to_thread(_get, f"http://{LOOPBACK}:{port}/v1/agent/self")
        if agent.get("Config", {}).get("NodeName") != self.node_name:
            return False
        # The node stands in the catalog once a leader is elected and has written for the first time.
        node = await asyncio.to_thread(_get, f"http://{LOOPBACK}:{port}/v1/catalog/node/{self.node_name}")
        return bool(node)

    def _choose_inner_ports(self, http_port: int) -> tuple[int, int]:
        """Return the ports for RPC and gossip: those of the last start, so that the stored raft peers stay true."""
        file = self.folder / "inner-ports"
        try:
            first, second = (int(word) for word in file.read_text().split())
            if is_free(first) and is_free(second):
                return first, second
        except (OSError, ValueError, OverflowError):
            pass
        first = pick_free((http_port,))
        second = pick_free((http_port, first))
        file.write_text(f"{first} {second}\n")
        return first, second


def _get(url: str) -> dict[str, Any]:
    with _DIRECT.open(url, timeout=_HTTP_SECONDS) as response:
        return json.load(response) or {}
