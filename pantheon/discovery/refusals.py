"""Refusals: entries of the registry that cannot be read, and are ignored."""

from collections.abc import Hashable

import structlog
from pydantic import ValidationError

log = structlog.get_logger(__name__)

# Each is warned of once; a process that writes ever new ones must not make this one grow.
REMEMBERED = 1000


class Refusals:
    """The keys of unreadable entries that have been warned of."""

    def __init__(self) -> None:
        self._keys: set[Hashable] = set()

    def warn(self, key: Hashable, error: ValueError, /, **fields: str) -> None:
        """Log once why an entry is ignored; `fields` name the entry in the warning."""
        if key in self._keys:
            return
        if len(self._keys) >= REMEMBERED:
            self._keys.clear()
        self._keys.add(key)
        problems = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        reason = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in problems[:3])
        log.warning("an entry of the registry is ignored", **fields, reason=reason or str(error))

    def forget(self, key: Hashable) -> None:
        """The entry can be read now: another mistake in it is warned of again."""
        self._keys.discard(key)
