"""Processes that read JSON lines on stdin and write a reply to each on stdout: load generator, bare loop, peers.

Nothing but the standard library: peers run it in environments of their own.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Order = dict[str, Any]


async def converse(respond: Callable[[Order], Awaitable[Order]]) -> None:
    """Write that the process is ready, then reply to each order until stdin ends."""
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _write({"ready": os.getpid()})
    while line := await reader.readline():
        try:
            _write(await respond(json.loads(line)))
        except Exception as error:
            _write({"error": f"{type(error).__name__}: {error}"})


def converse_plainly(respond: Callable[[Order], Order]) -> None:
    """The same for programs without an event loop."""
    _write({"ready": os.getpid()})
    for line in sys.stdin:
        try:
            _write(respond(json.loads(line)))
        except Exception as error:
            _write({"error": f"{type(error).__name__}: {error}"})


def _write(reply: Order) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
