"""MicroService: responds to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, so that `nats micro ls` lists an agent (ADR-32).

The library's own micro service would subscribe to its endpoints' subjects, and a core subscription to an agent's tasks
would see every task beside the stream; this one only responds to questions about them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from protocol import subjects

log = structlog.get_logger(__name__)

PREFIX = "$SRV"
# Endpoints of the mesh have one consumer that all instances share: in a micro service's words, a queue group.
QUEUE_GROUP = "q"
LAST_ERROR_MAX_CHARS = 300
SEMANTIC_VERSION = re.compile(
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?\Z"
)
SERVICE_NAME = re.compile(r"^[A-Za-z0-9_-]+\Z")


@dataclass
class Endpoint:
    """One task type: what INFO shows of it and what STATS has counted."""

    task_type: str
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time_ns: int = 0

    def described(self) -> dict[str, str]:
        """Metadata as micro services have it, strings only; schemas as compact JSON."""
        schemas = {"input_schema": self.input_schema, "output_schema": self.output_schema}
        return {
            **self.metadata,
            **{name: _compact(schema) for name, schema in schemas.items() if schema is not None},
        }


class MicroService:
    """An instance's side of the micro-service protocol, over a connection that belongs to the caller."""

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        instance_id: str,
        version: str,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        endpoints: Sequence[Endpoint] = (),
    ) -> None:
        """Raises ValueError for a name or a version that the protocol forbids."""
        if not SERVICE_NAME.match(name):
            raise ValueError(f"{name!r} is no name of a micro service: letters, digits, '_' and '-' only")
        if not SEMANTIC_VERSION.match(version):
            raise ValueError(f"{version!r} is no semantic version: such as 1.0.0 or 2.1.0-rc.1")
        self._client = client
        self._identity = {"name": name, "id": instance_id, "version": version}
        self._metadata = dict(metadata or {})
        self._description = description
        self._subject = subjects.task(name)
        self._endpoints = {endpoint.task_type: endpoint for endpoint in endpoints}
        self._started = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        return self._endpoints

    def describe(self, endpoints: Sequence[Endpoint]) -> None:
        """Replace the endpoints; those that existed before keep their counts."""
        endpoints_now: dict[str, Endpoint] = {}
        for endpoint in endpoints:
            known = self._endpoints.get(endpoint.task_type, endpoint)
            known.input_schema, known.output_schema = endpoint.input_schema, endpoint.output_schema
            endpoints_now[endpoint.task_type] = known
        self._endpoints = endpoints_now

    async def start(self) -> None:
        """Subscribe to `$SRV.<verb>`, `.<name>` and `.<name>.<id>` of each verb."""
        responses = {"PING": self.ping, "INFO": self.info, "STATS": self.stats}
        name, instance_id = self._identity["name"], self._identity["id"]
        self._started = datetime.now(UTC)
        for verb, response in responses.items():

            async def respond(message: Msg, response: Any = response) -> None:
                await self._respond(message, response)

            for scope in ("", f".{name}", f".{name}.{instance_id}"):
                self._subscriptions.append(await self._client.subscribe(f"{PREFIX}.{verb}{scope}", cb=respond))
        # Twice: nats-py writes a flush's PING ahead of what it still buffers, so the first PONG may come before the
        # broker has these subscriptions; by the second it has them.
        await self._client.flush()
        await self._client.flush()

    async def close(self) -> None:
        """Stop responding."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            if self._client.is_closed:
                return
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                # The connection has gone first, and the subscription with it.
                return

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def record(self, task_type: str, seconds: float, error: str | None = None) -> None:
        """Count one attempt at a task: how long it took and, when it failed, the error."""
        endpoint = self._endpoints.get(task_type)
        if endpoint is None:
            return
        endpoint.num_requests += 1
        endpoint.processing_time_ns += max(0, int(seconds * 1e9))
        if error is not None:
            endpoint.num_errors += 1
            endpoint.last_error = " ".join(error.split())[:LAST_ERROR_MAX_CHARS]

    def ping(self) -> dict[str, Any]:
        """The PING response."""
        return {"type": "io.nats.micro.v1.ping_response", **self._identity, "metadata": self._metadata}

    def info(self, *, schemas: bool = True) -> dict[str, Any]:
        """The INFO response: an endpoint for each task type, its schemas in the metadata."""
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity,
            "description": self._description,
            "metadata": self._metadata,
            "endpoints": [
                {**self._endpoint(endpoint), "metadata": endpoint.described() if schemas else dict(endpoint.metadata)}
                for endpoint in self._endpoints.values()
            ],
        }

    def stats(self) -> dict[str, Any]:
        """The STATS response; times are nanoseconds."""
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "metadata": self._metadata,
            # With six digits and a Z: what Go reads as RFC 3339 and nats-py by its fixed pattern.
            "started": self._started.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "endpoints": [
                {
                    **self._endpoint(endpoint),
                    "num_requests": endpoint.num_requests,
                    "num_errors": endpoint.num_errors,
                    "last_error": endpoint.last_error,
                    "processing_time": endpoint.processing_time_ns,
                    "average_processing_time": endpoint.processing_time_ns // max(1, endpoint.num_requests),
                    "data": None,
                }
                for endpoint in self._endpoints.values()
            ],
        }

    def _endpoint(self, endpoint: Endpoint) -> dict[str, str]:
        return {"name": endpoint.task_type, "subject": self._subject, "queue_group": QUEUE_GROUP}

    async def _respond(self, message: Msg, response: Any) -> None:
        if not message.reply:
            return
        try:
            body = _compact(response()).encode()
            if len(body) > self._client.max_payload and response == self.info:
                log.warning("the schemas exceed what the broker carries, INFO goes without", bytes=len(body))
                body = _compact(self.info(schemas=False)).encode()
            await self._client.publish(message.reply, body)
        except nats.errors.Error as error:
            log.debug("a question about this service was not answered", subject=message.subject, error=str(error))


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
