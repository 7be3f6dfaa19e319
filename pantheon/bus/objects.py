"""Objects: payloads and results that are too large for a message, in the JetStream object store (`protocol.large`)."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from nats.errors import Error as NatsError
from nats.js.api import StorageType
from nats.js.errors import NotFoundError, ObjectNotFoundError
from nats.js.object_store import OBJ_STREAM_TEMPLATE, ObjectStore

from pantheon.bus.connection import Bus
from pantheon.bus.storage import USED_SHARE, StorageBudget, StorageRefused, is_refusal
from protocol.errors import BusError, ObjectMissing, TooLarge
from protocol.large import BUCKET, BUCKET_MAX_AGE_SECONDS, DEFAULT_MAX_BYTES, INLINE_MAX_BYTES, ref_of
from protocol.messages import ObjectRef
from protocol.streams import OBJECTS_SHARE

log = structlog.get_logger()

OBJECTS_STREAM = OBJ_STREAM_TEMPLATE.format(bucket=BUCKET)
# Room for the rest of a message beside its payload or result: ids, names, headers.
MESSAGE_ROOM_BYTES = 16 * 1024
# Values up to this size go with their message whatever the broker carries. Most do, and need not ask for the limit.
SURELY_SMALL_BYTES = 8 * 1024
# A transfer that is slower than this has stopped: the client library would wait for ever for a chunk that is gone.
TRANSFER_SECONDS = 10.0
TRANSFER_BYTES_PER_SECOND = 1024 * 1024
# An object that another process is writing, or that is read while it is written a second time, is there soon.
GET_TRIES = 3
GET_AGAIN_SECONDS = 0.5


class Objects:
    """The bucket of large values. `max_bytes` bounds one value, as JSON, that this process writes or reads."""

    def __init__(self, bus: Bus, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._bus = bus
        self.max_bytes = max_bytes
        self._store = ObjectStore(BUCKET, OBJECTS_STREAM, bus.js)

    @property
    def inline_max_bytes(self) -> int:
        """The largest value that goes into a message; less than the contract's bound where the broker carries less."""
        return min(INLINE_MAX_BYTES, self._bus.max_payload - MESSAGE_ROOM_BYTES)

    def is_large(self, value: bytes) -> bool:
        return len(value) > SURELY_SMALL_BYTES and len(value) > self.inline_max_bytes

    async def put(self, root_task_id: UUID, value: bytes) -> ObjectRef:
        """Put a value of a tree into the store; a value that is there already is not sent again.

        Raises TooLarge beyond `max_bytes`, BusError when the store does not take it.
        """
        if len(value) > self.max_bytes:
            raise TooLarge(f"a value of {len(value)} bytes exceeds the mesh's limit of {self.max_bytes} bytes")
        ref = ref_of(root_task_id, value)
        async with self._transfer(f"put {ref.name}", len(value)):
            try:
                there = await self._store.get_info(ref.name)
                if there.size == ref.size_bytes:
                    return ref
            except ObjectNotFoundError:
                pass
            await self._store.put(ref.name, value)
        return ref

    def ref(self, root_task_id: UUID, value: bytes | None) -> ObjectRef | None:
        """The reference to a payload or result of a tree on the wire; None where it goes into the message itself."""
        return ref_of(root_task_id, value) if value is not None and self.is_large(value) else None

    async def put_large(self, root_task_id: UUID, value: bytes | None) -> ObjectRef | None:
        """Put a value into the store if it is large, and return its reference. Raises as `put` does."""
        return await self.put(root_task_id, value) if value is not None and self.is_large(value) else None

    async def get(self, ref: ObjectRef) -> bytes:
        """The bytes that a reference stands for, unchecked: `parse_value` compares them with the reference.

        Raises TooLarge beyond `max_bytes`, ObjectMissing, BusError when the store does not respond.
        """
        if ref.size_bytes > self.max_bytes:
            raise TooLarge(f"a value of {ref.size_bytes} bytes exceeds the mesh's limit of {self.max_bytes} bytes")
        for try_number in range(1, GET_TRIES + 1):
            try:
                return await self._get(ref)
            except BusError as error:
                if try_number == GET_TRIES or not error.retryable:
                    raise
                log.debug("object.again", name=ref.name, error=str(error))
                await asyncio.sleep(GET_AGAIN_SECONDS)
        raise AssertionError("unreachable")

    async def _get(self, ref: ObjectRef) -> bytes:
        async with self._transfer(f"get {ref.name}", ref.size_bytes):
            try:
                info = await self._store.get_info(ref.name)
                if (info.size or 0) > self.max_bytes:
                    raise TooLarge(f"object {ref.name} has {info.size} bytes, the mesh's limit is {self.max_bytes}")
                # Not the library's own buffer, which it copies whole for each chunk.
                written = io.BytesIO()
                await self._store.get(ref.name, writeinto=written)
            except NotFoundError:
                raise ObjectMissing(f"there is no object {ref.name} in the object store's bucket '{BUCKET}'") from None
        return written.getvalue()

    async def names(self) -> list[str]:
        """The names of all objects. Raises BusError."""
        async with self._transfer("list", 0):
            try:
                return [str(info.name) for info in await self._store.list(ignore_deletes=True)]
            except NotFoundError:
                return []

    async def remove(self, name: str) -> None:
        """Remove an object; one that does not exist is no error. Raises BusError."""
        async with self._transfer(f"remove {name}", 0):
            try:
                await self._store.delete(name)
            except NotFoundError:
                return

    @asynccontextmanager
    async def _transfer(self, what: str, size_bytes: int) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TRANSFER_SECONDS + size_bytes / TRANSFER_BYTES_PER_SECOND):
                yield
        except (TimeoutError, NatsError, OSError) as error:
            raise BusError(f"object store, {what}: {error or type(error).__name__}") from error


async def ensure_objects(bus: Bus, *, replicas: int, budget: StorageBudget) -> None:
    """Make the bucket, or bring it to its settings; safe from several processes at once. Raises BusError."""
    bound = int(budget.total * USED_SHARE * OBJECTS_SHARE)
    try:
        try:
            info = await bus.js.stream_info(OBJECTS_STREAM)
        except NotFoundError:
            await bus.js.create_object_store(
                BUCKET,
                description="payloads and results that are too large for a message",
                ttl=BUCKET_MAX_AGE_SECONDS,
                max_bytes=bound,
                storage=StorageType.FILE,
                replicas=replicas,
            )
            log.info("bucket.made", bucket=BUCKET, replicas=replicas, max_bytes=bound)
            return
        config = info.config
        before = config.max_bytes or -1
        if not budget.exact and 0 < before < bound:
            bound = before
        bound = max(bound, min(info.state.bytes * 5 // 4, budget.total))
        required = config.evolve(num_replicas=replicas, max_age=BUCKET_MAX_AGE_SECONDS, max_bytes=bound)
        if (config.num_replicas or 1, config.max_age, before) != (replicas, BUCKET_MAX_AGE_SECONDS, bound):
            await bus.js.update_stream(required)
            log.info("bucket.updated", bucket=BUCKET, replicas=replicas, max_bytes=bound)
    except (TimeoutError, NatsError, OSError) as error:
        if is_refusal(error):
            raise StorageRefused(f"no room for {bound} bytes of the bucket {BUCKET} ({error})") from error
        raise BusError(f"cannot make the object store's bucket '{BUCKET}': {error or type(error).__name__}") from error
