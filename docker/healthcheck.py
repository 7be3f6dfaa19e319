#!/usr/local/bin/python -IS
"""HEALTHCHECK of the images: 0 when this container's process says on HEALTH_PORT that it is ready, else why not.

The standard library alone, without site-packages: it runs every few seconds in every container.
"""

import http.client
import os
import sys


def main() -> int:
    port = os.environ.get("HEALTH_PORT") or "8080"
    if os.environ.get("AGENT") == "orchestrator_agent":
        port = os.environ.get("AGENT_ORCHESTRATOR_PORT") or port
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=4)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read(4096).decode(errors="replace")
    except OSError as error:
        said, status = f"port {port}: {error}", 0
    else:
        status = answer.status
    sys.stdout.write(said)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
