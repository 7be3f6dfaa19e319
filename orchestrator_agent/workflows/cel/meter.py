"""What one evaluation may cost, and who must not wait for it.

An evaluation counts its work in units, of about a tenth of a microsecond. It takes them a slice at a time, and at the
end of each slice its meter decides whether it goes on. Each evaluation has a frame: a list that begins with its
counters and holds its variables behind them, so that counting is one subtraction.
"""

import time
from typing import Any

from orchestrator_agent.workflows.cel.values import LimitExceeded

# Positions in a frame: what is left of the slice, of what may be built, of all work; the meter; the first variable.
UNITS, BYTES, ALLOWED, METER, FIRST = range(5)
Frame = list[Any]

# A slice is about 2 ms.
SLICE_UNITS = 20_000
# What nested loops and the like may cost together: some seconds. Loops that are not nested add what they need.
MAX_UNITS = 20_000_000
# What an evaluation may build, values in between included, as the bytes of its JSON: four times the largest payload.
MAX_BUILT_BYTES = 4 * 64 * 1024 * 1024


class LongEvaluation(Exception):
    """The evaluation would keep the event loop for too long. It is to be made again, apart from the loop."""


class Meter:
    """Lets an evaluation go on for as long as its own limits allow: for a process that does nothing else."""

    # What an evaluation begins with.
    first_slice = SLICE_UNITS

    def pause(self) -> None:
        """A slice has been used up."""

    def settle(self, units: int) -> None:
        """An evaluation has ended; it had used so many units of its last slice."""


class ThreadMeter(Meter):
    """For an evaluation in a thread of its own: it gives the interpreter to the event loop after each slice."""

    # Longer than zero: a thread that sleeps for no time takes the interpreter again before the loop can.
    PAUSE_SECONDS = 0.0002

    def __init__(self) -> None:
        self.cancelled = False

    def pause(self) -> None:
        if self.cancelled:
            raise LimitExceeded("it was cancelled")
        time.sleep(self.PAUSE_SECONDS)


def frame(meter: Meter) -> Frame:
    return [meter.first_slice, MAX_BUILT_BYTES, MAX_UNITS, meter]


def spend(f: Frame, units: int) -> None:
    """Count work. Raises LimitExceeded, LongEvaluation."""
    f[UNITS] -= units
    if f[UNITS] < 0:
        next_slice(f)


def next_slice(f: Frame) -> None:
    while f[UNITS] < 0:
        f[ALLOWED] -= SLICE_UNITS
        if f[ALLOWED] < 0:
            raise LimitExceeded("its loops within loops take too many steps")
        f[METER].pause()
        f[UNITS] += SLICE_UNITS


def build(f: Frame, size: int) -> None:
    """Count the bytes of a value that is about to be built. Raises LimitExceeded."""
    f[BYTES] -= size
    if f[BYTES] < 0:
        raise LimitExceeded(f"it builds more than {MAX_BUILT_BYTES} bytes of values")
