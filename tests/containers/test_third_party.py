"""docs/containers.md, An agent of yours: the page's own file and Dockerfile, built on the kit and put into the mesh."""

import re
from pathlib import Path

import pytest

from tests.containers.engine import REPOSITORY, Project, docker
from tests.mesh.conftest import PlainClient

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

PAGE = (REPOSITORY / "docs" / "containers.md").read_text()
SECTION = PAGE.partition("## An agent of yours")[2].partition("\n## ")[0]


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


async def test_a_third_partys_agent_works_in_the_mesh(
    project: Project, outside: PlainClient, kit_image: str, tmp_path: Path
) -> None:
    (tmp_path / "slug_agent.py").write_text(block("python"))
    (tmp_path / "Dockerfile").write_text(block("dockerfile"))
    assert len(block("dockerfile").splitlines()) <= 10
    assert f"FROM {kit_image}\n" in block("dockerfile")
    image = f"{project.name}-slug-agent"
    container = ""
    try:
        docker("build", "--tag", image, str(tmp_path))
        _, run = block("sh").replace("\\\n", " ").strip().splitlines()
        words = run.replace("pantheon_mesh", f"{project.name}_mesh").replace('"', "").split()
        words = [word.replace("$PWD/docker/secrets", str(project.secrets)) for word in words]
        container = docker(*words[1:-1], "--read-only", image)
        response = await outside.response(await outside.submit("make_slug", {"title": "Größe & Maß: a mesh"}), 90)
        assert (response["status"], response["result"]) == ("completed", {"slug": "grosse-mass-a-mesh"})
    finally:
        if container:
            docker("rm", "--force", container)
        docker("rmi", "--force", image, check=False)
