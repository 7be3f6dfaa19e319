"""ManagedProcess: a child of the stack, its start, log and end, and the proof that a process id still means it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pantheon.stack.errors import StackError
from pantheon.stack.processes import launch

_LAUNCH_SCRIPT = Path(launch.__file__)
# A log is set aside once at a start, so that a folder used for months does not fill the disk.
_LOG_LIMIT_BYTES = 16 * 1024 * 1024
# How much of a log's end is read to find the reason of an end.
_TAIL_BYTES = 64 * 1024
_KILL_WAIT_SECONDS = 10.0
# In a hurry each signal gets this: enough for a server to write its state, too little to notice.
_HURRIED_SECONDS = 1.0
_POLL_SECONDS = 0.02

# Ends that no line of the log explains.
_ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
# An error further up than this has another cause.
_ERROR_LINES = 20

KEEP_IDENTITY = "keep"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and how: `identity` as in launch.py, `death_signal` is what the kernel sends if this process dies."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    identity: str = KEEP_IDENTITY
    death_signal: signal.Signals = signal.SIGKILL

    def launched(self) -> list[str]:
        """Return the arguments that run this command as a child that does not outlive the calling process."""
        script = [sys.executable, "-I", "-S", str(_LAUNCH_SCRIPT)]
        return [*script, str(os.getpid()), str(int(self.death_signal)), self.identity, *self.arguments]


class ManagedProcess:
    """A running child in a session of its own: Ctrl-C on the terminal reaches the supervisor alone, which decides.

    The kernel ties the child to the *thread* that started it, so the event loop's thread must outlive the child.
    """

    def __init__(self, command: Command, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self.command = command
        self.pid = process.pid
        self.birth = process_birth(process.pid)
        self._process = process
        self._log = log
        self._log_start = log_start
        self._group_ended = False

    @classmethod
    async def spawn(cls, command: Command, log: Path, *, stdin: int = subprocess.DEVNULL) -> ManagedProcess:
        """Start the command with its output appended to `log`; raises StackError when that is not possible."""
        try:
            descriptor, log_start = _open_log(log)
        except OSError as error:
            raise StackError(f"cannot write the log {log}: {error.strerror}: make the folder writable") from error
        try:
            process = await asyncio.create_subprocess_exec(
                *command.launched(),
                stdin=stdin,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                env=dict(command.environment),
                cwd=command.folder,
                start_new_session=True,
            )
        except OSError as error:
            raise StackError(f"cannot start {command.name}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)
        return cls(command, process, log, log_start)

    @property
    def returncode(self) -> int | None:
        """Exit status; negative for a signal, None while it runs."""
        return self._process.returncode

    async def feed(self, body: bytes) -> None:
        """Write all of its input, where it was spawned with a pipe for that, and wait for its end."""
        await self._process.communicate(body)

    async def wait(self) -> int:
        """Wait for its end and return the exit status; what it left in its group ends too."""
        code = await self._process.wait()
        self._kill_group()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone; one that has ended gets none."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, steps: Sequence[tuple[signal.Signals, float]], hurry: asyncio.Event | None = None) -> None:
        """Send each signal and wait its seconds, then SIGKILL; `hurry` cuts that to a second each.

        Whatever the process left in its group is killed in the end: a converter that an agent had started does not
        outlive the agent.
        """
        try:
            for number, grace_seconds in steps:
                self.send(number)
                if await self._ended_within(grace_seconds, hurry):
                    return
        finally:
            self._kill_group()
            if self._process.returncode is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_WAIT_SECONDS):
                        await self._process.wait()

    def output(self) -> str:
        """Return (the end of) what this run has written to its log."""
        try:
            with self._log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - _TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def ending(self) -> str:
        """Describe in a few words how it ended, with the last line of its log that means something."""
        code = self._process.returncode
        if code is None:
            how = "still running"
        elif code < 0:
            how = f"killed by {_signal_name(-code)}"
        else:
            how = f"exit status {code}"
        if code in _ENDED_FROM_OUTSIDE:
            return how
        line = last_meaningful_line(self.output())
        return f"{how}: {line}" if line else how

    async def _ended_within(self, seconds: float, hurry: asyncio.Event | None) -> bool:
        ended = asyncio.ensure_future(self._process.wait())
        hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
        try:
            done, _ = await asyncio.wait((ended, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if hurried in done:
                await asyncio.wait((ended,), timeout=min(seconds, _HURRIED_SECONDS))
        finally:
            ended.cancel()
            hurried.cancel()
        return self._process.returncode is not None

    def _kill_group(self) -> None:
        # Once after its end, and soon: later, the number may name another group.
        if self._group_ended:
            return
        self._group_ended = self._process.returncode is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


async def run_to_end(command: Command, log: Path, *, feed: str = "") -> None:
    """Run a command that ends by itself, `feed` on its input.

    Raises StackError where it cannot be started, and with its last line when it fails.
    """
    running = await ManagedProcess.spawn(command, log, stdin=subprocess.PIPE)
    try:
        await running.feed(feed.encode())
    except asyncio.CancelledError:
        await running.stop([])
        raise
    if running.returncode != 0:
        raise StackError(f"{command.name} failed: {running.ending()} (log: {log})")


def process_birth(pid: int) -> str | None:
    """Return a token of when this process began, None when there is no such (living) process.

    A process id alone is no proof, because the kernel reuses it. The same pid with the same birth is the same process.
    """
    if sys.platform != "linux":
        return _birth_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The command's name stands in brackets and may hold spaces and brackets itself.
    state, *fields = stat.rpartition(")")[2].split()
    if state in "ZX":
        return None
    ticks_since_boot = fields[18]
    return f"{boot}:{ticks_since_boot}"


def is_same_process(pid: int, birth: str | None) -> bool:
    """Return whether the process recorded with this birth still lives."""
    return birth is not None and process_birth(pid) == birth


async def end_process(pid: int, birth: str | None, steps: Sequence[tuple[signal.Signals, float]]) -> bool:
    """End a process that is not our child (a leftover of a killed supervisor); True when it is gone."""
    for number, grace_seconds in [*steps, (signal.SIGKILL, _KILL_WAIT_SECONDS)]:
        if not is_same_process(pid, birth):
            return True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        # Not our child: only polling shows that it has ended.
        for _ in range(math.ceil(grace_seconds / _POLL_SECONDS)):
            if not is_same_process(pid, birth):
                return True
            await asyncio.sleep(_POLL_SECONDS)
    return not is_same_process(pid, birth)


_TRIVIAL_LINE = re.compile(r"^\s*(?:$|(?:HINT|DETAIL|CONTEXT|STATEMENT):|\^|~)")
_ERROR_LINE = re.compile(r"FATAL|PANIC|\[FTL\]|\[ERR\]|==> |\berror\b|Error\b|cannot|could not|failed", re.IGNORECASE)
# A refusal of the machine is the cause of every error that a server logs after it.
_CAUSE_LINE = re.compile("No space left|Disk quota|Read-only file system|Permission denied|Cannot allocate memory")
_TIME_STAMP = re.compile(
    r"^(?:.*\.\.\. )?(?:\[?\d+[\]:]?[A-Z]?\s+)?"  # initdb's progress; a process id
    r"\[?\d{4}[-/]\d\d[-/]\d\d[ T][\d:.,]+(?: ?UTC| ?Z|[+-]\d{4})?\]?\s*(?:\[\d+\]\s*)?"
)


def last_meaningful_line(text: str) -> str:
    """Return the line of a log that explains its program's end: the last one about an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if not _TRIVIAL_LINE.match(line)]
    # A database logs "FATAL: ..." and then, on its way out, "database system is shut down".
    errors = [line for line in lines[-_ERROR_LINES:] if _ERROR_LINE.search(line)]
    causes = [line for line in errors if _CAUSE_LINE.search(line)]
    chosen = (causes or errors or lines or [""])[-1]
    return re.sub(r"\s+", " ", _TIME_STAMP.sub("", chosen))[:300]


def _open_log(log: Path) -> tuple[int, int]:
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return descriptor, os.fstat(descriptor).st_size


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _birth_by_ps(pid: int) -> str | None:
    done = subprocess.run(["ps", "-o", "lstart=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    began, _, state = done.stdout.strip().rpartition(" ")
    return began.strip() if done.returncode == 0 and began and "Z" not in state else None
