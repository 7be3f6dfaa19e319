"""Real servers, NATS and Consul, on loopback ports of their own, that can be killed, started again and wiped."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import nats
import pytest
from nats.aio.client import Client

from protocol import InstanceRecord
from tests import servers
from tests.servers import pick_own_free
from tests.waiting import PATIENCE_SECONDS


class NatsServer:
    """One nats-server process with JetStream; port and store stay the same over restarts."""

    def __init__(self, folder: Path, *, jetstream: bool = True) -> None:
        self._jetstream = jetstream
        self._store = folder / "store"
        self._log = folder / "nats.log"
        self.port = pick_own_free()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = Path(sys.executable).parent / "nats-server"
        arguments = ["-a", "127.0.0.1", "-p", str(self.port), "-l", str(self._log)]
        if self._jetstream:
            arguments += ["-js", "-sd", str(self._store)]
        self._process = subprocess.Popen([str(program), *arguments])

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(which)

    def wipe(self) -> None:
        shutil.rmtree(self._store, ignore_errors=True)


# A registry that cannot be loaded is returned all the same, after a moment in the place of seconds.
IMPATIENT_SECONDS = 0.1


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


async def quiet(_: Exception) -> None:
    """The client's own words about a broker that a test has killed."""


async def connect(server: NatsServer) -> Client:
    async def connected() -> Client:
        while True:
            try:
                return await nats.connect(
                    server.url,
                    error_cb=quiet,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.1,
                    allow_reconnect=True,
                    connect_timeout=1,
                )
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.05)

    return await asyncio.wait_for(connected(), PATIENCE_SECONDS)


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    connection = await connect(nats_server)
    yield connection
    await connection.close()


@pytest.fixture
async def other_client(nats_server: NatsServer) -> AsyncIterator[Client]:
    connection = await connect(nats_server)
    yield connection
    await connection.close()


@pytest.fixture
async def plain_nats_client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a broker without JetStream."""
    server = NatsServer(tmp_path, jetstream=False)
    server.start()
    try:
        connection = await connect(server)
        yield connection
        await connection.close()
    finally:
        server.stop()


CONSUL_MASTER_TOKEN = "11111111-2222-3333-4444-555555555555"


class ConsulServer:
    """One Consul agent in server mode; its ports and data stay the same over restarts."""

    def __init__(self, program: Path, folder: Path, *, acl: bool = False) -> None:
        self._program = program
        self._data = folder / "consul"
        self._log = folder / "consul.log"
        self.port = pick_own_free()
        rpc = pick_own_free({self.port})
        gossip = pick_own_free({self.port, rpc})
        ports = {"http": self.port, "server": rpc, "serf_lan": gossip}
        config: dict[str, object] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "test",
            "data_dir": str(self._data),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {**ports, **dict.fromkeys(("dns", "grpc", "https", "serf_wan"), -1)},
            "disable_update_check": True,
            "performance": {"raft_multiplier": 1},
        }
        if acl:
            config["acl"] = {"enabled": True, "default_policy": "deny", "tokens": {"master": CONSUL_MASTER_TOKEN}}
        self._config = folder / "consul.json"
        self._config.write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [str(self._program), "agent", "-config-file", str(self._config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._client() as http:
            while not self._has_leader(http):
                assert time.monotonic() < deadline, f"Consul does not start: {self._log.read_text()[-500:]}"
                time.sleep(0.05)

    def _has_leader(self, http: httpx.Client) -> bool:
        try:
            nodes = http.get("/v1/catalog/nodes", headers={"X-Consul-Token": CONSUL_MASTER_TOKEN})
            return nodes.status_code == 200 and bool(nodes.json())
        except (httpx.TransportError, ValueError):
            return False

    def empty(self) -> None:
        """Remove what an earlier test has left; the catalog, which registries read, shows that a moment later."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._client() as http:
            for service_id in http.get("/v1/agent/services").json():
                http.put(f"/v1/agent/service/deregister/{service_id}").raise_for_status()
            http.delete("/v1/kv/?recurse=1").raise_for_status()
            while set(left := http.get("/v1/catalog/services").json()) != {"consul"}:
                assert time.monotonic() < deadline, f"Consul still has {left}"
                time.sleep(0.05)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)


@pytest.fixture(scope="session")
def consul_program() -> Path:
    return asyncio.run(servers.consul_program())


@pytest.fixture(scope="session")
def shared_consul_server(consul_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    server = ConsulServer(consul_program, tmp_path_factory.mktemp("consul"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def consul_server(shared_consul_server: ConsulServer) -> ConsulServer:
    """An empty Consul, for tests that leave it running."""
    shared_consul_server.empty()
    return shared_consul_server


@pytest.fixture
def own_consul_server(consul_program: Path, tmp_path: Path) -> Iterator[ConsulServer]:
    """A Consul of the test's own, to be killed and wiped."""
    server = ConsulServer(consul_program, tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def guarded_consul_server(consul_program: Path, tmp_path: Path) -> Iterator[ConsulServer]:
    """A Consul that wants a token."""
    server = ConsulServer(consul_program, tmp_path, acl=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def record() -> Callable[..., InstanceRecord]:
    """A record with sensible values, any of them replaced."""

    def make(name: str = "llm_agent", instance_id: str = "one", **values: object) -> InstanceRecord:
        fields: dict[str, object] = {
            "name": name,
            "instance_id": instance_id,
            "task_types": ("generate_content",),
            "max_concurrency": 4,
            "version": "1.2.3",
            "metadata": {"model": "none"},
            **values,
        }
        return InstanceRecord.model_validate(fields)

    return make
