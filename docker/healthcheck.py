#!/usr/local/bin/python -IS
"""HEALTHCHECK of the images: 0 when this container's process says on HEALTH_PORT that it is ready, else why not.

It runs every few seconds in every container, so it costs little: a socket, because `http.client` takes three times as
long to import, and the standard library alone, without site-packages.
"""

import os
import socket
import sys

# Docker's own timeout for the check is 5 s; this one says what did not answer.
_TIMEOUT_SECONDS = 4


def main() -> int:
    port = os.environ.get("HEALTH_PORT") or "8080"
    if os.environ.get("AGENT") == "orchestrator_agent":
        port = os.environ.get("AGENT_ORCHESTRATOR_PORT") or port
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=_TIMEOUT_SECONDS) as connection:
            # By HTTP/1.0 the answer ends with the connection.
            connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            with connection.makefile("rb") as answer:
                head, _, said = answer.read(4096).partition(b"\r\n\r\n")
    except (OSError, OverflowError, ValueError) as error:
        sys.stdout.write(f"port {port}: {error}")
        return 1
    sys.stdout.write(said.decode(errors="replace"))
    return 0 if head.split(b" ", 2)[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
