"""The servers of the embedded stack, one module each: NATS, Postgres, Valkey, and Consul where it is installed.

    server     what they share: a port that stays, and a start that returns when the server is ready
    nats, postgres, valkey, consul
    identity   under which account Postgres runs: it refuses uid 0
    ports      loopback ports that stay free for a server from one start to the next
    programs   where the programs are: Python packages that carry them, or the machine's own

States: stopped, starting, ready; `async with` brings a server up and takes it down again. A server that does not become
ready in its time is ended, and the error has the last lines of its log.

Invariants: all data lies below the folder that a server was made with, so that deleting it deletes the server; each
listens on loopback alone; settings are those that survive a crash (fsync on); passwords are made on first use and kept
in files that only the owner reads.

Called by `pantheon.stack.up`, tests and benchmarks. It imports `pantheon.stack.processes`, never the orchestrator.
"""

from pantheon.stack.servers.consul import ConsulServer
from pantheon.stack.servers.nats import NatsServer
from pantheon.stack.servers.postgres import PostgresServer
from pantheon.stack.servers.server import Server
from pantheon.stack.servers.valkey import ValkeyServer

__all__ = ["ConsulServer", "NatsServer", "PostgresServer", "Server", "ValkeyServer"]
