"""Processes that take one JSON line at a time on stdin and answer one on stdout: load generator, bare loop, peers.

Nothing but the standard library: peers run it in environments of their own.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

Order = dict[str, Any]


async def converse(answer: Callable[[Order], Awaitable[Order]]) -> None:
    """Say that we are ready, then answer each order until stdin ends."""
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say({"ready": os.getpid()})
    while line := await reader.readline():
        try:
            _say(await answer(json.loads(line)))
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}"})


def converse_plainly(answer: Callable[[Order], Order]) -> None:
    """The same for programs without an event loop."""
    _say({"ready": os.getpid()})
    for line in sys.stdin:
        try:
            _say(answer(json.loads(line)))
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}"})


def _say(answer: Order) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
