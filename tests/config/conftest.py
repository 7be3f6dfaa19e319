"""A Consul and a NATS server come from the discovery tests' fixtures, which are the same servers."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "discovery_servers", Path(__file__).resolve().parents[1] / "discovery" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_servers = importlib.util.module_from_spec(_spec)
sys.modules["discovery_servers"] = _servers
_spec.loader.exec_module(_servers)

client = _servers.client
consul_program = _servers.consul_program
own_consul_server = _servers.own_consul_server
eventually = _servers.eventually
nats_server = _servers.nats_server
