"""The servers of the embedded stack, one module each."""

from pantheon.stack.servers.consul import ConsulServer
from pantheon.stack.servers.nats import NatsServer
from pantheon.stack.servers.postgres import PostgresServer
from pantheon.stack.servers.server import Server
from pantheon.stack.servers.valkey import ValkeyServer

__all__ = ["ConsulServer", "NatsServer", "PostgresServer", "Server", "ValkeyServer"]
