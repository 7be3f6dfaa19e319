"""Refusals: entries of the registry that cannot be read, and are ignored."""

from collections.abc import Hashable

import structlog
from pydantic import ValidationError

log = structlog.get_logger(__name__)

# Each is warned of once; whoever puts ever new ones must not grow this process.
REMEMBERED = 1000


class Refusals:
    def __init__(self) -> None:
        self._keys: set[Hashable] = set()

    def warn(self, key: Hashable, error: ValueError, /, **shown: str) -> None:
        """Say once why an entry is ignored; `shown` is how the warning names it."""
        if key in self._keys:
            return
        if len(self._keys) >= REMEMBERED:
            self._keys.clear()
        self._keys.add(key)
        problems = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        reason = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}" for item in problems[:3])
        log.warning("an entry of the registry is ignored", **shown, reason=reason or str(error))

    def forget(self, key: Hashable) -> None:
        """It can be read now: another mistake in it is warned of again."""
        self._keys.discard(key)
