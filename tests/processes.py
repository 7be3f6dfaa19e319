"""The machine's processes, as tests see them: what a stack or a command has left behind."""

import os
from pathlib import Path


def processes_of(folder: Path) -> list[str]:
    """The living processes that have to do with a folder: it is in their arguments, or they work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            works_in = str((process / "cwd").readlink())
        except OSError:
            continue
        # A zombie has no arguments; the test's own process is no leftover.
        if arguments and int(process.name) != os.getpid() and (str(folder) in arguments or str(folder) in works_in):
            found.append(f"{process.name} {arguments}")
    return found
