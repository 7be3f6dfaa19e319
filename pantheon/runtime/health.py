"""Health: `/healthz` and `/readyz` over HTTP, for probes that cannot speak NATS."""

from collections.abc import Awaitable, Callable
from typing import Self

import structlog
from aiohttp import web

from protocol.errors import SettingsError

log = structlog.get_logger()


class Health:
    """Alive: the process responds. Ready: `missing`, called at each probe, returns an empty list.

    `variable` is the setting that the port came from. Raises SettingsError from `start` when the port is taken.
    """

    def __init__(
        self,
        missing: Callable[[], Awaitable[list[str]]],
        *,
        port: int,
        variable: str,
        host: str = "0.0.0.0",  # noqa: S104 - probes come from outside the container
    ) -> None:
        self._missing = missing
        self._host = host
        self._port = port
        self._variable = variable
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
                f"{self._variable}={self._port} cannot be listened on ({error.strerror or error}): "
                "choose another, or leave it out where several processes share a machine"
            ) from error
        log.info("health.listening", port=self.port)

    async def _alive(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, request: web.Request) -> web.Response:
        missing = await self._missing()
        return web.json_response(
            {"status": "not ready" if missing else "ok", "missing": missing}, status=503 if missing else 200
        )

    async def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
