"""The chain on Restate: five calls of another service, or five `ctx.run` in one handler. Run by the Python of its own
environment, in whose folder npm has put the server.

The server is one node with the settings that it has by default, and its telemetry off; handlers are served by granian
over HTTP/2 from two processes, as their documentation advises for more than a try; workflows are begun through the
server's HTTP ingress, which responds when one has ended.

    python program.py server                the server, in this process
    python program.py service               the handlers, for the server to call
    python program.py drive WORKFLOW        `calls` or `runs` (orders on stdin, see benchmarks.conversation)
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import restate  # type: ignore[import-not-found]
from granian.constants import HTTPModes, Interfaces  # type: ignore[import-not-found]
from granian.server import Server  # type: ignore[import-not-found]

from benchmarks.conversation import Order, converse

STEPS = 5
PAYLOAD = {"k": "v" * 100}
AT_ONCE = 100
READY_SECONDS = 60
# Free ports, in the order of these names, and the folder of this round's data.
INGRESS, ADMIN, NODE, SERVICE = (int(port) for port in os.environ["BENCH_PORTS"].split(",")[:4])
FOLDER = Path(os.environ["BENCH_FOLDER"])

steps = restate.Service("Steps")
chains = restate.Service("Chains")


@steps.handler()  # type: ignore[untyped-decorator]
async def echo(ctx: restate.Context, value: dict[str, Any]) -> dict[str, Any]:
    return value


async def echo_here(value: dict[str, Any]) -> dict[str, Any]:
    return value


@chains.handler()  # type: ignore[untyped-decorator]
async def calls(ctx: restate.Context, value: dict[str, Any]) -> dict[str, Any]:
    for _ in range(STEPS):
        value = await ctx.service_call(echo, arg=value)
    return value


@chains.handler()  # type: ignore[untyped-decorator]
async def runs(ctx: restate.Context, value: dict[str, Any]) -> dict[str, Any]:
    for _ in range(STEPS):
        value = await ctx.run_typed("echo", echo_here, value=value)
    return value


app = restate.app([steps, chains])


def run_server() -> None:
    """Becomes the server. npm installs the program of this machine's system alone."""
    programs = sorted((Path(sys.prefix) / "node_modules").glob("@restatedev/restate-server-*/bin/restate-server"))
    if not programs:
        raise SystemExit("npm has installed no Restate server for this system")
    settings = {
        "RESTATE_BASE_DIR": str(FOLDER),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{NODE}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{NODE}/",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{INGRESS}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ADMIN}",
    }
    os.execve(programs[0], [str(programs[0]), "--no-logo"], {**os.environ, **settings})


def run_service() -> None:
    Server(
        "program:app",
        address="127.0.0.1",
        port=SERVICE,
        interface=Interfaces.ASGI,
        http=HTTPModes.http2,
        workers=2,
        log_enabled=False,
    ).serve()


async def register(session: aiohttp.ClientSession) -> None:
    """Register the handlers with the server, as soon as both are there."""
    deployment = {"uri": f"http://127.0.0.1:{SERVICE}", "use_http_11": False}
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            async with session.post(f"http://127.0.0.1:{ADMIN}/deployments", json=deployment) as response:
                text = await response.text()
                if response.status in (200, 201):
                    return
        except aiohttp.ClientError as error:
            text = str(error)
        if time.monotonic() > end:
            raise RuntimeError(f"the server did not take the handlers within {READY_SECONDS} s: {text}")
        await asyncio.sleep(0.1)


async def drive(workflow: str) -> None:
    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector) as session:
        url = f"http://127.0.0.1:{INGRESS}/Chains/{workflow}"

        async def run_one(number: int) -> None:
            payload = {**PAYLOAD, "n": number}
            async with session.post(url, json=payload) as response:
                result = await response.json()
            if response.status != 200 or result != payload:
                raise RuntimeError(f"{response.status}: {result}")

        async def respond(order: Order) -> Order:
            if order["what"] == "load":
                numbers = iter(range(order["workflows"]))

                async def run_some() -> None:
                    for number in numbers:
                        await run_one(number)

                began = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    for _ in range(AT_ONCE):
                        group.create_task(run_some())
                return {"seconds": time.perf_counter() - began}
            took = []
            for number in range(order["workflows"]):
                began = time.perf_counter()
                await run_one(number)
                took.append((time.perf_counter() - began) * 1e3)
            return {"took_ms": took}

        await register(session)
        await converse(respond)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["server"]:
            run_server()
        case ["service"]:
            run_service()
        case ["drive", workflow]:
            asyncio.run(drive(workflow))
        case _:
            raise SystemExit(__doc__)
