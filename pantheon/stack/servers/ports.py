"""Chooses loopback ports that stay free for a server from one start to the next."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path

LOOPBACK = "127.0.0.1"

_FIRST_PORT = 15_000
# Where the kernel's range for outgoing connections begins when it cannot be read.
_USUAL_EPHEMERAL_PORT = 32_768
_PICK_ATTEMPTS = 200


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now (with SO_REUSEADDR, as servers do)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            # Two sockets may be bound with SO_REUSEADDR as long as none listens; listening is the real question.
            probe.listen(1)
        except OSError:
            return False
    return True


def pick_free(taken: Iterable[int] = ()) -> int:
    """Return a free port at random, outside the kernel's range for outgoing connections.

    A port inside that range (what binding port 0 gives) can be occupied by any client while its server is away for a
    restart, even by a client that reconnects to that very port. It is free at this moment only: a server that then
    finds it taken is started again on another one.
    """
    avoid = set(taken)
    below = _first_ephemeral_port()
    # A machine may use nearly all ports for outgoing connections, which leaves no room below them.
    span = range(_FIRST_PORT, below) if below - _FIRST_PORT > 1_000 else range(1_024, 65_536)
    for _ in range(_PICK_ATTEMPTS):
        port = random.choice(span)
        if port not in avoid and is_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_PORT
