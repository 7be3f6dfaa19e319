"""The files of docker/ without an engine: they parse, name every part, and keep to what an old BuildKit reads."""

import ast
import re
import stat
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from pantheon.runtime.health import Health
from tests.containers.engine import why_no_engine

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
AGENTS = ("llm_agent", "enhancement_agent", "examination_agent", "drafting_agent", "communication_agent")
SERVICES = {"nats", "postgres", "valkey", "consul", "migrate", "orchestrator_agent", *AGENTS}
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def compose(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return made


# -- the Dockerfile ----------------------------------------------------------------------------------------------------


def test_the_dockerfile_needs_no_newer_frontend() -> None:
    """Engine 20.10's own BuildKit: no syntax line (which would be pulled), no heredoc, no COPY --link."""
    assert not re.search(r"^\s*#\s*syntax\s*=", DOCKERFILE, re.MULTILINE | re.IGNORECASE)
    assert "<<" not in DOCKERFILE
    assert "--link" not in DOCKERFILE
    assert "--start-interval" not in DOCKERFILE


def test_every_image_runs_as_a_number_that_is_not_root() -> None:
    """A number, because Kubernetes cannot see that a name is not root's."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    finals = {re.match(r"\S+ AS (\w+)", stage)[1]: stage for stage in stages}  # type: ignore[index]
    assert set(finals) == {"wheels", "project", "base", "kit", "orchestrator_agent", "agent"}
    assert "STOPSIGNAL" in finals["base"]
    assert "HEALTHCHECK" in finals["base"]
    for name in ("kit", "orchestrator_agent", "agent"):
        assert re.findall(r"^USER (.*)$", finals[name], re.MULTILINE) == ["10001:10001"]
        assert "org.opencontainers.image.title" in finals[name]


def test_the_version_of_the_images_is_the_projects() -> None:
    version = PYPROJECT["project"]["version"]
    assert set(re.findall(r"^ARG VERSION=(.*)$", DOCKERFILE, re.MULTILINE)) == {version}
    assert set(re.findall(r"PANTHEON_VERSION:-([^}]*)", (DOCKER / "compose.yml").read_text())) == {version}


def test_where_no_engine_responds_the_reason_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert why_no_engine()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_no_engine() == "there is no docker program on PATH"


# -- what an image carries ---------------------------------------------------------------------------------------------


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


@cache
def carried(extra: str) -> frozenset[str]:
    """The distributions that an image of this extra has: its own, those of the extras in it, and the kit's."""
    found: set[str] = set()
    for requirement in PYPROJECT["project"]["optional-dependencies"][extra]:
        inner = re.match(r"pantheon-mesh\[(.*)\]", requirement)
        found |= set().union(*map(carried, inner[1].split(","))) if inner else {normal(requirement)}
    return frozenset(found) if extra == "kit" else frozenset(found) | carried("kit")


def imported(folder: str) -> set[str]:
    """The distributions that the modules of a folder import, wherever in them; not for type checkers alone."""
    names: set[str] = set()
    for path in (REPOSITORY / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for checking in [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]:
            checking.body = [ast.Pass()]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    own = {"protocol", "pantheon", "orchestrator_agent", "agents", "migrations"}
    distributions = packages_distributions()
    return {
        normal(distributions[name][0]) for name in names - own - set(sys.stdlib_module_names) if name in distributions
    }


# Imported where they may be absent (models at the first use of one, pytest by pytest itself), or a part of another.
LATE = {"pydantic-ai-slim", "pytest", "pydantic-core"}


@pytest.mark.parametrize(
    ("extra", "folders"),
    [
        ("kit", ["protocol"]),
        ("orchestrator_agent", ["orchestrator_agent", "migrations"]),
        *((name, [f"agents/{name}"]) for name in AGENTS),
    ],
)
def test_an_extra_names_all_that_its_folder_imports(extra: str, folders: list[str]) -> None:
    assert set().union(*map(imported, folders)) - LATE <= carried(extra)


def test_the_kit_alone_imports_nothing_of_an_extra() -> None:
    assert imported("pantheon") - LATE - carried("stack") <= carried("kit")


def test_all_is_everything() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"]) - {"dev", "all"}
    assert carried("all") == frozenset().union(*map(carried, extras))
    assert "pydantic-ai-slim" not in set().union(*(carried(name) for name in extras - {"llm_agent", "models"}))


# -- compose -----------------------------------------------------------------------------------------------------------


def test_every_part_is_a_service_of_its_own_name() -> None:
    assert set(compose("compose.yml")["services"]) == SERVICES
    assert set(compose("compose.cluster.yml")["services"]) == {*SERVICES, "nats_2", "nats_3", "postgres_standby"}


@pytest.mark.parametrize("name", ["compose.yml", "compose.cluster.yml"])
def test_a_file_needs_no_other_and_no_newer_compose(name: str) -> None:
    """What these do with `depends_on` and with lists is not the same in Compose 2.24.6, 2.26 and 2.32."""
    text = (DOCKER / name).read_text()
    assert not re.search(r"^\s*(extends|include|develop|models)\s*:", text, re.MULTILINE)
    assert not re.search(r":\s*!(override|reset)", text)


# What a service has another value of in the cluster's file. All else is the same in both.
CLUSTERS_OWN = {
    "nats": {"command", "environment", "healthcheck", "secrets", "stop_grace_period", "stop_signal", "volumes"},
    "postgres": {"command", "entrypoint", "environment", "secrets", "user", "volumes"},
    "migrate": {"environment", "secrets"},
    "orchestrator_agent": {"depends_on", "deploy", "environment", "secrets"},
    **{name: {"depends_on", "deploy", "environment"} for name in AGENTS},
}
CLUSTERS_ENVIRONMENT = {"DATABASE_URL_FILE", "FIRST", "NATS_SERVER_NAME", "NATS_URL", "OTHER", "STREAM_REPLICAS"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_the_same_in_the_cluster(name: str) -> None:
    one, other = (compose(file)["services"][name] for file in ("compose.yml", "compose.cluster.yml"))
    differ = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differ == CLUSTERS_OWN.get(name, set())
    assert one["deploy"]["resources"] == other["deploy"]["resources"]
    assert one.get("depends_on", {}).items() <= other.get("depends_on", {}).items()
    mine, theirs = (service.get("environment", {}) for service in (one, other))
    assert {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)} <= CLUSTERS_ENVIRONMENT


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_restarts_is_bounded_and_reports_its_health(name: str) -> None:
    service = compose("compose.yml")["services"][name]
    assert service["restart"] == ("on-failure" if name == "migrate" else "unless-stopped")
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["logging"]["options"]["max-size"]
    if name in ("nats", "postgres", "valkey", "consul"):
        assert service["healthcheck"]["test"]
        assert not service["image"].endswith("latest")
    else:
        assert service["read_only"] is True
        assert service["build"]["dockerfile"] == "docker/Dockerfile"
        assert service["depends_on"]
        # The image's own health check holds.
        assert "healthcheck" not in service or name == "migrate"


@pytest.mark.parametrize("file", ["compose.yml", "compose.cluster.yml"])
def test_who_starts_waits_for_whom_it_needs(file: str) -> None:
    for name, service in compose(file)["services"].items():
        for other, wait in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if other == "migrate" else "service_healthy"
            assert wait["condition"] == condition, (name, other)


@pytest.mark.parametrize("name", ["compose.yml", "compose.cluster.yml"])
def test_secrets_come_as_files_and_are_all_made(name: str, tmp_path: Path) -> None:
    made = compose(name)
    subprocess.run([str(DOCKER / "make-secrets"), str(tmp_path)], check=True)
    for secret, where in made["secrets"].items():
        assert where["file"].endswith(f"/{secret}")
        assert (tmp_path / secret).exists(), secret
    for service in made["services"].values():
        for variable, value in (service.get("environment") or {}).items():
            secret = re.search(r"PASSWORD|KEY|TOKEN|DATABASE_URL|REDIS_URL", variable)
            assert not secret or variable.endswith("_FILE"), variable
            if variable.endswith("_FILE"):
                assert Path(value).name in made["secrets"], variable


def test_secrets_that_are_there_stay(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    subprocess.run([str(DOCKER / "make-secrets"), str(folder)], check=True)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "redis_url").unlink()
    subprocess.run([str(DOCKER / "make-secrets"), str(folder)], check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


# -- the health check --------------------------------------------------------------------------------------------------


async def ended(port: int, **environment: str) -> tuple[int, str]:
    import asyncio

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-IS", str(DOCKER / "healthcheck.py"),
        env={"HEALTH_PORT": str(port), **environment}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_health_check_names_what_is_missing() -> None:
    missing: list[str] = []

    async def lacks() -> list[str]:
        return missing

    async with Health(lacks, port=0, variable="HEALTH_PORT", host="127.0.0.1") as health:
        assert (await ended(health.port))[0] == 0
        missing.append("NATS is not connected")
        code, logged = await ended(health.port)
        assert code == 1
        assert "NATS is not connected" in logged
        # An orchestrator's own port counts in its own container alone.
        other_port = {"AGENT_ORCHESTRATOR_PORT": str(health.port)}
        missing.clear()
        assert (await ended(1, AGENT="orchestrator_agent", **other_port))[0] == 0
        assert (await ended(health.port, AGENT="llm_agent", AGENT_ORCHESTRATOR_PORT="1"))[0] == 0
        port = health.port
    code, logged = await ended(port)
    assert code == 1
    assert f"port {port}" in logged
