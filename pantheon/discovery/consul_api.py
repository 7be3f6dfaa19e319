"""ConsulApi: the few calls of Consul's HTTP API that the mesh makes; the only module that touches the consul library.

The library builds requests and reads responses; it leaves the transport to subclasses, and this one's is httpx. (Its
own asyncio transport passes arguments that today's aiohttp deprecates, and would add a second HTTP client.)
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import consul.base
import consul.exceptions
import httpx
from pydantic import SecretStr

from pantheon.discovery.errors import DiscoveryDenied, DiscoveryUnavailable
from pantheon.runtime.settings import MeshSettings
from protocol.discovery import CONSUL_TAG, DEREGISTER_AFTER_SECONDS, TTL_SECONDS
from protocol.errors import DiscoveryError, SettingsError

DEFAULT_PORT = 8500
CONNECT_TIMEOUT_SECONDS = 3.0
REQUEST_TIMEOUT_SECONDS = 5.0
# Consul spreads the ends of blocking queries by up to a sixteenth of the wait.
WAIT_JITTER = 17 / 16
MAX_ERROR_CHARS = 200

# Instances' own checks, and the failing nodes: where a dead node's Consul cannot report on its instances, the other
# nodes report the node.
CHECKS_FILTER = f'"{CONSUL_TAG}" in ServiceTags or (ServiceID == "" and Status == "critical")'


class ConsulLost(DiscoveryError):
    """Consul responds that it does not know the check: the instance has to be registered again."""


@dataclass(frozen=True)
class ConsulTls:
    """How to verify Consul, and to prove who this process is."""

    verify: bool = True
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises SettingsError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"Consul's TLS files cannot be used ({error}): see CONSUL_CACERT and its kin"
            ) from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


NO_TLS_FILES = ConsulTls()


@dataclass(frozen=True)
class ConsulAddress:
    """Where Consul is and how to talk to it."""

    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    socket_path: str | None = None
    token: SecretStr | None = None
    tls: ConsulTls = NO_TLS_FILES

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> Self:
        """Read CONSUL_HTTP_ADDR and the variables around it, with their meanings in Consul's own tools."""
        address = settings.consul_http_addr
        if address is None:
            raise SettingsError("CONSUL_HTTP_ADDR is not set: it is host:port, or a URL, of a Consul agent")
        default_scheme = "https" if settings.consul_http_ssl else "http"
        parts = urlsplit(address if "://" in address else f"{default_scheme}://{address}")
        is_socket = parts.scheme == "unix"
        return cls(
            scheme="http" if is_socket else parts.scheme,
            host="localhost" if is_socket else parts.hostname or "127.0.0.1",
            port=parts.port or DEFAULT_PORT,
            socket_path=parts.path if is_socket else None,
            token=settings.consul_http_token,
            tls=ConsulTls(
                verify=settings.consul_http_ssl_verify,
                ca_file=settings.consul_cacert,
                cert_file=settings.consul_client_cert,
                key_file=settings.consul_client_key,
            ),
        )

    def __str__(self) -> str:
        return f"unix://{self.socket_path}" if self.socket_path else f"{self.scheme}://{self.host}:{self.port}"

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """What httpx verifies with; for plain HTTP nothing is loaded. Raises SettingsError."""
        return self.tls.context() if self.scheme == "https" else False


class HttpxTransport(consul.base.HTTPClient):
    """The library's transport over one httpx client; awaited responses go through the library's callbacks."""

    def __init__(self, address: ConsulAddress) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        super().__init__(host, address.port, address.scheme)
        self.results_filtered = False
        pool = httpx.AsyncHTTPTransport(verify=address.verify, uds=address.socket_path, retries=0)
        # A proxy of the environment would cut blocking queries short; Consul's agent is next door.
        self._http = httpx.AsyncClient(transport=pool, trust_env=False)

    async def _send(
        self, method: str, callback: Any, path: str, params: Any, headers: Any, data: str | bytes, read_seconds: float
    ) -> Any:
        timeout = httpx.Timeout(REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS, read=read_seconds)
        response = await self._http.request(
            method, self.uri(path, params), headers=headers, content=data or None, timeout=timeout
        )
        if response.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true":
            self.results_filtered = True
        return callback(consul.base.Response(response.status_code, response.headers, response.text))

    async def get(
        self, callback: Any, path: str, params: Any = None, headers: Any = None, raw: bool = False, **_: Any
    ) -> Any:
        wait = dict(params or ()).get("wait", "0s")
        read_seconds = REQUEST_TIMEOUT_SECONDS + float(str(wait).rstrip("s")) * WAIT_JITTER
        return await self._send("GET", callback, path, params, headers, b"", read_seconds)

    async def put(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = b"", headers: Any = None, **_: Any
    ) -> Any:
        return await self._send("PUT", callback, path, params, headers, data, REQUEST_TIMEOUT_SECONDS)

    async def post(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = b"", headers: Any = None, **_: Any
    ) -> Any:
        return await self._send("POST", callback, path, params, headers, data, REQUEST_TIMEOUT_SECONDS)

    async def delete(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = b"", headers: Any = None, **_: Any
    ) -> Any:
        return await self._send("DELETE", callback, path, params, headers, data, REQUEST_TIMEOUT_SECONDS)

    async def close(self) -> None:
        await self._http.aclose()


class _Library(consul.base.Consul):
    def __init__(self, address: ConsulAddress) -> None:
        self._address = address
        super().__init__(host=address.host, port=address.port, scheme=address.scheme)
        # The library would let CONSUL_HTTP_TOKEN of the environment win over its argument.
        self.token = address.token.get_secret_value() if address.token else None

    def http_connect(self, *_: Any, **__: Any) -> HttpxTransport:
        return HttpxTransport(self._address)


class ConsulApi:
    """Calls of Consul's API, their errors mapped: DiscoveryUnavailable, DiscoveryDenied, ConsulLost."""

    def __init__(self, address: ConsulAddress) -> None:
        self.address = address
        self._consul: Any = _Library(address)

    @property
    def results_filtered(self) -> bool:
        """Whether Consul has reported that the token does not show everything (Consul 1.11 and later report it)."""
        return bool(self._consul.http.results_filtered)

    async def register(self, name: str, service_id: str, tags: list[str], meta: dict[str, str], notes: str) -> None:
        """Register a service with its TTL check, passing from the start; registering again replaces it."""
        check = {
            "CheckID": f"service:{service_id}",
            "Name": "alive",
            "Notes": notes,
            "TTL": f"{TTL_SECONDS}s",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": f"{DEREGISTER_AFTER_SECONDS}s",
        }
        async with self._mapped("register an instance"):
            await self._consul.agent.service.register(name, service_id, tags=tags, meta=meta, check=check)

    async def pass_check(self, service_id: str) -> None:
        """Report that the instance is alive; always without a note, since a new one would wake every watcher."""
        try:
            async with self._mapped("pass the TTL check"):
                known = await self._consul.agent.check.ttl_pass(f"service:{service_id}")
        except DiscoveryDenied:
            raise
        except DiscoveryUnavailable as error:
            # Old versions respond 500 for a check they do not know.
            if "TTL" in error.message or "Unknown check" in error.message:
                raise ConsulLost(error.message) from error
            raise
        if not known:
            raise ConsulLost(f"Consul does not know the check of {service_id}")

    async def set_maintenance(self, service_id: str, enabled: bool) -> None:
        """Switch a service's maintenance mode on or off: how a draining instance is marked."""
        async with self._mapped("set maintenance mode"):
            known = await self._consul.agent.service.maintenance(service_id, "true" if enabled else "false", "draining")
        if not known:
            raise ConsulLost(f"Consul does not know the service {service_id}")

    async def deregister(self, service_id: str) -> None:
        """Remove a service; one that does not exist is no error."""
        async with self._mapped("deregister an instance"):
            await self._consul.agent.service.deregister(service_id)

    async def mesh_checks(self, index: int, wait_seconds: float) -> tuple[int, list[dict[str, Any]]]:
        """Every check of every agent and every failing node, in one blocking query; index 0 returns at once."""
        async with self._mapped("watch the checks"):
            found, checks = await self._consul.health.state(
                "any", index=str(index) if index else None, wait=f"{wait_seconds:g}s", filter_expr=CHECKS_FILTER
            )
            return int(found), checks or []

    async def services(self, name: str) -> list[dict[str, Any]]:
        """The instances of one service, with tags and metadata, healthy or not."""
        async with self._mapped("read a service"):
            _, found = await self._consul.catalog.service(name, tag=CONSUL_TAG)
            return found or []

    async def read_tree(self, prefix: str, index: int, wait_seconds: float) -> tuple[int, Mapping[str, bytes]]:
        """All keys below a prefix of the KV store, as a blocking query; no keys are an empty tree."""
        async with self._mapped("read the KV store"):
            found, entries = await self._consul.kv.get(
                prefix, index=str(index) if index else None, recurse=True, wait=f"{wait_seconds:g}s"
            )
            return int(found), {entry["Key"]: entry["Value"] or b"" for entry in entries or []}

    async def close(self) -> None:
        """Close the connections."""
        await self._consul.http.close()

    @asynccontextmanager
    async def _mapped(self, doing: str) -> AsyncIterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise DiscoveryUnavailable(f"Consul at {self.address} cannot be reached to {doing}: {reason}") from error
        except (consul.exceptions.ACLPermissionDenied, consul.exceptions.ACLDisabled) as error:
            raise DiscoveryDenied(
                f"Consul at {self.address} refuses to {doing} ({_short(error)}): "
                "CONSUL_HTTP_TOKEN needs service:write for the agents and service:read, node:read for all"
            ) from error
        except (consul.exceptions.ConsulException, httpx.HTTPError, ValueError) as error:
            raise DiscoveryUnavailable(f"Consul at {self.address} cannot {doing}: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_ERROR_CHARS] or type(error).__name__
