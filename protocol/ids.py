"""Ids: version 7 UUIDs for new tasks, and the derived id of a step's task."""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

# Makes an id of its text or its 16 bytes, where a process has a faster class than `uuid.UUID`.
_made_fast: Callable[[Any], UUID] | None = None


def use_fast_ids(kind: Callable[[Any], UUID]) -> None:
    """Make the ids that this process reads and derives by `kind`, a subclass of UUID that is equal to it in every way.
    An orchestrator makes, hashes, compares and writes some dozens for each step."""
    global _made_fast
    _made_fast = kind


def id_of(text: str) -> UUID | str:
    """An id of its canonical text; or the text, where the caller's validator makes the id of it."""
    return text if _made_fast is None else _made_fast(text)


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, then 74 random bits.

    Ids made later sort later, to the millisecond: rows of one time lie together in an index.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & ((1 << 48) - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def step_task_id(parent_task_id: UUID, step: str, iteration: int, item: int) -> UUID:
    """The id of the task that runs one step of one workflow: a UUID of version 8 (RFC 9562, 5.8).

    It is derived, not drawn, so the table's primary key itself makes (parent, step, iteration, item) unique: two
    processes that plan the same step plan the same row.
    """
    seed = f"{parent_task_id.hex}/{step}/{iteration}/{item}".encode()
    value = bytearray(hashlib.blake2b(seed, digest_size=16).digest())
    value[6] = value[6] & 0x0F | 0x80
    value[8] = value[8] & 0x3F | 0x80
    return UUID(bytes=bytes(value)) if _made_fast is None else _made_fast(bytes(value))
