"""Profiles: where the processor time of a mesh's processes goes while a load runs."""

import asyncio
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rig import BenchError, Process

SAMPLES_PER_SECOND = 250
TOP = 40
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]*?)(:(?P<line>\d+))?\)$")


@dataclass(frozen=True)
class Profile:
    """Samples by function: in it alone, and in it or anything that it called."""

    samples: int
    alone: Counter[str]
    within: Counter[str]


def read_stacks(lines: Iterable[str]) -> Profile:
    """Collapsed stacks, `outer;inner;innermost count` a line, as py-spy's raw format has them."""
    total, alone, within = 0, Counter[str](), Counter[str]()
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = [_short(frame) for frame in stack.split(";")]
        total += int(count)
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    return Profile(total, alone, within)


def _short(frame: str) -> str:
    """`function (last two parts of the file)`: lines of one function are one."""
    found = _FRAME.match(frame)
    if found is None:
        return frame
    return f"{found['function']} ({'/'.join(Path(found['file']).parts[-2:])})"


def find_sampler() -> str:
    """The py-spy of this environment or of PATH. Raises BenchError."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise BenchError("profiles are made by py-spy, which is not installed: pip install py-spy")
    return found


class Sampling:
    """py-spy attached to a process; `stop` ends it and reads what it saw."""

    def __init__(self, process: Process, sampler: asyncio.subprocess.Process, file: Path) -> None:
        self.process = process
        self._sampler = sampler
        self._file = file

    @classmethod
    async def start(cls, process: Process, folder: Path) -> "Sampling":
        file = folder / f"{process.name}.stacks"
        arguments = ("record", "--format", "raw", "--rate", str(SAMPLES_PER_SECOND), "--duration", "unlimited")
        sampler = await asyncio.create_subprocess_exec(
            find_sampler(),
            *arguments,
            "--output",
            str(file),
            "--pid",
            str(process.pid),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process, sampler, file)

    async def stop(self) -> Profile:
        if self._sampler.returncode is None:
            # As from the keyboard: it then writes its file.
            self._sampler.send_signal(2)
        output, _ = await self._sampler.communicate()
        if not self._file.exists():
            raise BenchError(f"py-spy saw nothing of {self.process.name}: {output.decode(errors='replace').strip()}")
        return read_stacks(self._file.read_text().splitlines())


def lines_of(name: str, profile: Profile, top: int = TOP) -> list[str]:
    """A profile for people: shares of all samples, the largest first."""
    if profile.samples == 0:
        return [f"{name}: no samples"]
    made = [f"{name}: {profile.samples} samples"]
    for title, counter in (("in it alone", profile.alone), ("with what it calls", profile.within)):
        made.append(f"  {title}:")
        made += [f"    {count / profile.samples:6.1%}  {frame}" for frame, count in counter.most_common(top)]
    return made
