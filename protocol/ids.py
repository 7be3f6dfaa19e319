"""Ids: version 7 UUIDs for new tasks, and the derived id of a step's task."""

import hashlib
import os
import time
from uuid import UUID


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
    value = int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest(), "big")
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
