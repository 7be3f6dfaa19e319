"""Durations, times and sizes as people read them."""

from datetime import UTC, datetime
from typing import Any

_KIB = 1024


def duration(seconds: float) -> str:
    """`37 ms`, `2.3 s`, `42 s`, `3:07 min`, `2:03:07 h`, `5 d`: short enough for a column."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d} h"
    return f"{whole // 86400} d"


def size(count: int) -> str:
    """Bytes as `812 B`, `14 kB`, `1.2 MB` (of 1024)."""
    if count < _KIB:
        return f"{count} B"
    if count < 10 * _KIB:
        return f"{count / _KIB:.1f} kB"
    if count < _KIB * _KIB:
        return f"{count / _KIB:.0f} kB"
    return f"{count / _KIB / _KIB:.1f} MB"


def parse_time(value: Any) -> datetime | None:
    """A time of the wire (RFC 3339), None for what is none."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def clock(moment: datetime | None, *, today: datetime | None = None) -> str:
    """A time in the reader's own zone: `14:03:07`, with the date unless it is today's."""
    if moment is None:
        return ""
    local = moment.astimezone()
    reference = (today or datetime.now(UTC)).astimezone()
    return local.strftime("%H:%M:%S" if local.date() == reference.date() else "%Y-%m-%d %H:%M:%S")
