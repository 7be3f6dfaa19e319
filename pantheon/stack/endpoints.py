"""Endpoints: the addresses of a running stack in `endpoints.json`, found by the folder that it was started from.

The file exists exactly while the mesh is up: it is written when everything has been started, kept current with every
process id, and removed at the end. A file that a killed supervisor left behind is recognised by its dead process.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pantheon.stack.errors import NoMeshError
from pantheon.stack.folder import write_atomically
from pantheon.stack.processes.process import is_same_process

ENDPOINTS_FILE = "endpoints.json"
DEFAULT_DATA_FOLDER = ".pantheon"
# The register is removed with the last mesh, maybe while another mesh that starts just then writes into it.
_REGISTER_ATTEMPTS = 5


class Endpoints(BaseModel):
    """Addresses of one running stack and the ids of its processes, as `endpoints.json` holds them.

    `processes` maps `nats`, `postgres`, `valkey`, `consul`, `orchestrator_agent` and each agent's name to its pids.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    nats_url: str
    database_url: str
    redis_url: str
    consul_http_addr: str | None = None
    processes: dict[str, list[int]] = {}
    data: Path
    """The stack's data folder."""
    folder: Path
    """The folder that it was started from."""
    started_at: datetime
    supervisor_pid: int
    supervisor_birth: str | None = None

    def is_alive(self) -> bool:
        """Return whether the supervisor that wrote this still runs."""
        return is_same_process(self.supervisor_pid, self.supervisor_birth)

    def environment(self) -> dict[str, str]:
        """Return the variables by which the mesh's processes and clients find their servers."""
        variables = {"NATS_URL": self.nats_url, "DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}
        if self.consul_http_addr is not None:
            variables["CONSUL_HTTP_ADDR"] = self.consul_http_addr
        return variables

    def write(self) -> None:
        """Write `endpoints.json` into the data folder, whole or not at all; its owner alone reads it (a password)."""
        text = self.model_dump_json(indent=2, exclude_none=True)
        write_atomically(self.data / ENDPOINTS_FILE, text + "\n")


def read_endpoints(data: Path) -> Endpoints:
    """Return the endpoints of the mesh that runs on a data folder; raises NoMeshError when none does."""
    path = data / ENDPOINTS_FILE
    start = f"start one with `pantheon up{'' if data.name == DEFAULT_DATA_FOLDER else f' --data {data}'}`"
    try:
        endpoints = Endpoints.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise NoMeshError(f"no mesh runs on {data}: {start}") from error
    except OSError as error:
        raise NoMeshError(f"cannot read {path} ({error.strerror}): use the account that runs the mesh") from error
    except ValidationError as error:
        raise NoMeshError(f"{path} was not written by this version of `pantheon up`: {start}") from error
    if not endpoints.is_alive():
        raise NoMeshError(f"the mesh on {data} was stopped without saying so (its process is gone): {start}")
    return endpoints


def find_newest(folder: Path) -> Endpoints:
    """Return the mesh that was started last from this folder and still runs, whatever its --data.

    Raises NoMeshError when there is none.
    """
    folder = folder.resolve()
    default = folder / DEFAULT_DATA_FOLDER
    running: list[Endpoints] = []
    default_failure: NoMeshError | None = None
    # The default data folder is found by its path, registered or not.
    for data in {default, *_registered()}:
        try:
            endpoints = read_endpoints(data)
        except NoMeshError as error:
            # A damaged or stale file is a better message than "no mesh".
            if data == default and not isinstance(error.__cause__, FileNotFoundError):
                default_failure = error
            continue
        if data == default or endpoints.folder == folder:
            running.append(endpoints)
    if running:
        return max(running, key=lambda endpoints: endpoints.started_at)
    if default_failure is not None:
        raise default_failure
    raise NoMeshError(
        f"no mesh runs that was started from {folder}: start one with `pantheon up`, "
        "or set NATS_URL and DATABASE_URL to reach another"
    )


def remove_endpoints(data: Path) -> None:
    """Remove `endpoints.json` of this data folder, and its entry in the register."""
    (data / ENDPOINTS_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        entry = _registry_entry(data)
        entry.unlink(missing_ok=True)
        # Fails, as it should, while another mesh is registered.
        entry.parent.rmdir()


def register(data: Path) -> None:
    """Register a data folder for `find_newest` of this account; where that fails, only default folders are found."""
    with contextlib.suppress(OSError):
        entry = _registry_entry(data)
        for _ in range(_REGISTER_ATTEMPTS):
            try:
                entry.parent.mkdir(mode=0o700, exist_ok=True)
                _check_ours(entry.parent)
                write_atomically(entry, f"{data}\n")
            except FileNotFoundError:
                continue
            return


def _registered() -> list[Path]:
    folder = _registry_folder()
    try:
        _check_ours(folder)
        return [Path(entry.read_text().rstrip("\n")) for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return []


def _registry_entry(data: Path) -> Path:
    return _registry_folder() / hashlib.sha256(os.fsencode(data)).hexdigest()[:24]


def _registry_folder() -> Path:
    """Return the account's register, which is removed with the last mesh or, after a crash, at the next start."""
    return Path(tempfile.gettempdir()) / f"pantheon-{os.geteuid()}"


def _check_ours(folder: Path) -> None:
    """Refuse a register made by another account in the shared folder: it could name a mesh of its own."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another account")
