"""Health: `/healthz` and `/readyz` over HTTP, on AGENT_ORCHESTRATOR_PORT, for probes that cannot speak NATS."""

import asyncio
from typing import Self

import structlog
from aiohttp import web

from orchestrator_agent.store.pool import Database, ProcessLock
from pantheon.bus import Bus
from protocol.errors import SettingsError, StoreError

log = structlog.get_logger()

# A probe that waits longer counts as failed with whoever asks.
ASK_POSTGRES_SECONDS = 2.0


class Health:
    """Alive: the process answers. Ready: NATS and Postgres can be reached, and this process's lock is held.

    Raises SettingsError from `start` when the port is taken.
    """

    def __init__(self, bus: Bus, database: Database, lock: ProcessLock, *, port: int, host: str = "0.0.0.0") -> None:  # noqa: S104 - probes come from outside the container
        self._bus = bus
        self._database = database
        self._lock = lock
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where 0 asked for any."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/healthz", self._alive), web.get("/readyz", self._ready)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.close()
            raise SettingsError(
                f"AGENT_ORCHESTRATOR_PORT={self._port} cannot be listened on ({error.strerror or error}): "
                "choose another, or leave it out where several orchestrators share a machine"
            ) from error
        log.info("health.listening", port=self.port)

    async def _alive(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        missing = await self.missing()
        return web.json_response(
            {"status": "not ready" if missing else "ok", "missing": missing}, status=503 if missing else 200
        )

    async def missing(self) -> list[str]:
        """What this process lacks to take and settle tasks, in words."""
        missing = [] if self._bus.connected else ["NATS is not connected"]
        try:
            async with asyncio.timeout(ASK_POSTGRES_SECONDS):
                await self._database.fetch("select 1")
        except (StoreError, TimeoutError) as error:
            missing.append(f"Postgres does not answer: {error or 'in time'}")
        else:
            if not self._lock.held:
                missing.append("the process's lock is not held")
        return missing

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
