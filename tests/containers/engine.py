"""Docker and its compose as the tests use them: projects of their own names, on ports of their own, removed after."""

import json
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
# Building from nothing downloads every wheel; all else is quicker by far.
COMMAND_SECONDS = 900


def _run(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "DOCKER_BUILDKIT": "1", **(env or {})},
    )


def docker(*arguments: str, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """Run `docker …` and return what it prints; its errors are in the exception."""
    done = _run(arguments, env)
    if check and done.returncode != 0:
        raise AssertionError(f"docker {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def is_well(container: str) -> bool:
    """What a container's health check finds now. The engine's own word of it is as old as its last check, or three."""
    kind, *command = json.loads(docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", container))
    shell = ["/bin/sh", "-c"] if kind == "CMD-SHELL" else []
    return _run(["exec", container, *shell, *command]).returncode == 0


def why_no_engine() -> str:
    """Empty where an engine responds and has compose and buildx; else what is missing."""
    if shutil.which("docker") is None:
        return "there is no docker program on PATH"
    for part in (["version"], ["compose", "version"], ["buildx", "version"]):
        done = subprocess.run(["docker", *part], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            return f"docker {' '.join(part)}: {lines[-1]}"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class State:
    """Of a container: `running`, and `healthy` by its own health check."""

    name: str
    state: str
    health: str


@dataclass(frozen=True)
class Project:
    """A compose project: its files, its name, its environment."""

    files: Sequence[str]
    secrets: Path
    env: Mapping[str, str] = field(default_factory=dict)
    nats_port: int = field(default_factory=free_port)
    name: str = field(default_factory=lambda: f"pantheon-test-{uuid.uuid4().hex[:8]}")

    def __call__(self, *arguments: str, check: bool = True) -> str:
        files = [part for name in self.files for part in ("--file", str(DOCKER / name))]
        env = {
            "PANTHEON_SECRETS": str(self.secrets),
            "NATS_LISTEN": f"127.0.0.1:{self.nats_port}",
            **self.env,
        }
        return docker("compose", "--project-name", self.name, *files, *arguments, check=check, env=env)

    @property
    def nats_urls(self) -> list[str]:
        """Its servers as they are seen from outside."""
        password = (self.secrets / "nats_password").read_text().strip()
        listens = [f"127.0.0.1:{self.nats_port}", *(v for k, v in self.env.items() if k.startswith("NATS_LISTEN_"))]
        return [f"nats://pantheon:{password}@{listen}" for listen in listens]

    def containers(self, service: str) -> list[str]:
        return self("ps", "--all", "--quiet", service).split()

    def states(self) -> list["State"]:
        """Of every container but the one that migrates and ends."""
        rows = [json.loads(line) for line in self("ps", "--all", "--format", "json").splitlines()]
        return [State(row["Name"], row["State"], row["Health"]) for row in rows if row["Service"] != "migrate"]

    def logs(self) -> str:
        return self("logs", "--no-color", "--tail", "40", check=False)


@contextmanager
def running(files: Sequence[str], secrets: Path, **env: str) -> Iterator[Project]:
    """A project that is up and healthy, and gone afterwards with its volumes."""
    subprocess.run([str(DOCKER / "make-secrets"), str(secrets)], check=True)
    project = Project(files, secrets, env)
    try:
        try:
            project("build")
            project("up", "--wait")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{project('ps', '--all', check=False)}\n{project.logs()}") from None
        yield project
    finally:
        project("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
