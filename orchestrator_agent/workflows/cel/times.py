"""Timestamps and durations: read from text, shown as text, taken apart."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from orchestrator_agent.workflows.cel.values import CelError, Duration, Timestamp, no_overload

SECOND = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The years 1 to 9999.
_FIRST_NANOS = -62_135_596_800 * SECOND
_LAST_NANOS = 253_402_300_800 * SECOND - 1
# google.protobuf.Duration: about 10,000 years.
_LONGEST_NANOS = 315_576_000_000 * SECOND + SECOND - 1

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})[Tt](\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|ms|h|m|s)", re.ASCII)
_UNIT_NANOS = {"h": 3600 * SECOND, "m": 60 * SECOND, "s": SECOND, "ms": SECOND // 1000, "us": 1000, "ns": 1}
_OFFSET = re.compile(r"([+-]?)(\d+):(\d+)", re.ASCII)


def checked_timestamp(nanos: int) -> Timestamp:
    if not _FIRST_NANOS <= nanos <= _LAST_NANOS:
        raise CelError("timestamp overflow: timestamps are of the years 1 to 9999")
    return Timestamp(nanos)


def checked_duration(nanos: int) -> Duration:
    if not -_LONGEST_NANOS <= nanos <= _LONGEST_NANOS:
        raise CelError("duration out of range")
    return Duration(nanos)


def parse_timestamp(text: str) -> Timestamp:
    """RFC 3339."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise CelError(f"'{text[:60]}' is no timestamp such as 2030-01-31T08:00:00Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    nanos = int((match[7] or "0")[:9].ljust(9, "0"))
    leap = second == 60
    try:
        moment = datetime(year, month, day, hour, minute, 59 if leap else second, tzinfo=UTC)
    except ValueError as error:
        raise CelError(f"'{text}' is no timestamp: {error}") from None
    since = moment - _EPOCH
    seconds = since.days * 86400 + since.seconds + (1 if leap else 0)
    if match[8] not in "Zz":
        offset = int(match[8][1:3]) * 3600 + int(match[8][4:6]) * 60
        seconds -= offset if match[8][0] == "+" else -offset
    return checked_timestamp(seconds * SECOND + nanos)


def parse_duration(text: str) -> Duration:
    """Numbers with units, such as `1h30m` or `-1.5s`."""
    wrong = CelError(f"'{text[:60]}' is no duration such as 90s or 1h30m")
    sign, rest = 1, text
    if rest[:1] in ("-", "+"):
        sign, rest = -1 if rest[0] == "-" else 1, rest[1:]
    if rest == "0":
        return Duration(0)
    total = position = 0
    while position < len(rest):
        match = _DURATION_PART.match(rest, position)
        if match is None or not (match[1] or match[2]) or len(match[1]) > 18:
            raise wrong
        unit = _UNIT_NANOS[match[3]]
        fraction = (match[2] or "")[:18]
        total += int(match[1] or 0) * unit + int(fraction or 0) * unit // 10 ** len(fraction)
        position = match.end()
    if position == 0:
        raise wrong
    return checked_duration(sign * total)


def _fraction(nanos: int) -> str:
    """As the JSON mapping of protocol buffers writes it: 0, 3, 6 or 9 digits."""
    if nanos == 0:
        return ""
    digits = f"{nanos:09d}"
    return "." + (digits[:3] if digits.endswith("000000") else digits[:6] if digits.endswith("000") else digits)


def _short_fraction(nanos: int) -> str:
    return f".{nanos:09d}".rstrip("0") if nanos else ""


def _timestamp_text(value: Timestamp, fraction: str) -> str:
    moment = _EPOCH + timedelta(seconds=value.nanos // SECOND)
    return f"{moment.year:04d}-{moment:%m-%dT%H:%M:%S}{fraction}Z"


def timestamp_text(value: Timestamp) -> str:
    return _timestamp_text(value, _fraction(value.nanos % SECOND))


def short_timestamp_text(value: Timestamp) -> str:
    """Without zeros at the end of the fraction."""
    return _timestamp_text(value, _short_fraction(value.nanos % SECOND))


def duration_text(value: Duration) -> str:
    seconds, nanos = divmod(abs(value.nanos), SECOND)
    return f"{'-' if value.nanos < 0 else ''}{seconds}{_fraction(nanos)}s"


def short_duration_text(value: Duration) -> str:
    """Without zeros at the end of the fraction: `3.5s`."""
    seconds, nanos = divmod(abs(value.nanos), SECOND)
    return f"{'-' if value.nanos < 0 else ''}{seconds}{_short_fraction(nanos)}s"


def _civil(value: Timestamp, zone: str | None) -> datetime:
    seconds = value.nanos // SECOND
    moment = _EPOCH + timedelta(seconds=seconds)
    if not zone:
        return moment
    try:
        return moment.astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    except OverflowError:
        raise CelError("timestamp overflow: timestamps are of the years 1 to 9999") from None
    match = _OFFSET.fullmatch(zone)
    if match is None or len(zone) > 8:
        raise CelError(f"there is no time zone '{zone[:60]}'")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    try:
        return (moment + (-offset if match[1] == "-" else offset)).astimezone(UTC)
    except OverflowError:
        raise CelError("timestamp overflow: timestamps are of the years 1 to 9999") from None


def _truncated(nanos: int, unit: int) -> int:
    return abs(nanos) // unit * (-1 if nanos < 0 else 1)


# Of a timestamp in a time zone, counted as CEL counts: months, days of the month, year and week (Sunday first) from 0,
# `getDate` from 1.
_OF_TIMESTAMP: dict[str, Callable[[datetime], int]] = {
    "getFullYear": lambda moment: moment.year,
    "getMonth": lambda moment: moment.month - 1,
    "getDayOfYear": lambda moment: moment.timetuple().tm_yday - 1,
    "getDayOfMonth": lambda moment: moment.day - 1,
    "getDate": lambda moment: moment.day,
    "getDayOfWeek": lambda moment: moment.isoweekday() % 7,
    "getHours": lambda moment: moment.hour,
    "getMinutes": lambda moment: moment.minute,
    "getSeconds": lambda moment: moment.second,
}
_OF_DURATION: dict[str, Callable[[int], int]] = {
    "getHours": lambda nanos: _truncated(nanos, 3600 * SECOND),
    "getMinutes": lambda nanos: _truncated(nanos, 60 * SECOND),
    "getSeconds": lambda nanos: _truncated(nanos, SECOND),
    "getMilliseconds": lambda nanos: _truncated(nanos, SECOND // 1000) - _truncated(nanos, SECOND) * 1000,
}
PARTS = (*_OF_TIMESTAMP, "getMilliseconds")


def part_of(name: str) -> Callable[..., int]:
    """The function that takes one part of a timestamp, in a time zone if one is named, or of a duration."""

    def run(f: Any, value: Any, zone: Any = None) -> int:
        if type(value) is Timestamp and (zone is None or type(zone) is str):
            if name == "getMilliseconds":
                _civil(value, zone)
                return value.nanos % SECOND // 1_000_000
            return _OF_TIMESTAMP[name](_civil(value, zone))
        if type(value) is Duration and zone is None and name in _OF_DURATION:
            return _OF_DURATION[name](value.nanos)
        raise no_overload(name, *([value] if zone is None else [value, zone]))

    return run
