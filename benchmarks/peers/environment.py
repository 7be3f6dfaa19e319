"""Environments of the peers: one folder each, made once, made again when its requirements change."""

import asyncio
import shutil
import sys
from pathlib import Path

from benchmarks.peers.peer import Peer
from benchmarks.rig import REPOSITORY, BenchError

FOLDER = REPOSITORY / ".cache" / "bench-venvs"
MADE_FROM = "made-from.txt"
INSTALL_SECONDS = 600


async def python_of(peer: Peer, folder: Path = FOLDER) -> Path:
    """The Python of a peer's environment, with exactly the pinned versions installed. Raises BenchError."""
    environment = folder / peer.folder
    python, note = environment / "bin" / "python", environment / MADE_FROM
    required = "\n".join((*peer.requirements, *peer.packages)) + "\n"
    if peer.packages and shutil.which("npm") is None:
        raise BenchError(f"{peer.title} is installed by npm, which is not on PATH")
    if python.exists() and note.exists() and note.read_text() == required:
        return python
    await asyncio.to_thread(_clear, environment)
    await _run(peer, sys.executable, "-m", "venv", str(environment))
    await _run(peer, str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements)
    if peer.packages:
        # Without their scripts: one of them would send data about this machine.
        quiet = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--silent")
        await _run(peer, "npm", "install", "--prefix", str(environment), *quiet, *peer.packages)
    note.write_text(required)
    return python


def _clear(environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    environment.parent.mkdir(parents=True, exist_ok=True)


async def _run(peer: Peer, *command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BenchError(f"the environment of {peer.name} was not made within {INSTALL_SECONDS} s") from None
    if process.returncode != 0:
        last = " / ".join(output.decode(errors="replace").strip().splitlines()[-3:])
        raise BenchError(f"the environment of {peer.name} could not be made: {last}")
