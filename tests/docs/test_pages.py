"""All pages: links lead somewhere, decisions have their parts, the command line is as documented."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_agent.dispatch import agent_health, router
from orchestrator_agent.engine.state import Role, Status
from pantheon.cli.app import main
from pantheon.cli.exit_codes import MEANINGS
from tests.docs.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples" / "agents").glob("*.md")),
]
ADRS = sorted((REPOSITORY / "docs" / "adr").glob("*.md"))
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}, target


@pytest.mark.parametrize("page", ADRS, ids=name_of)
def test_a_decision_has_all_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.name[:4]}. ")
    parts = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert parts == ["Context", "Decision", "Alternatives considered", "Consequences", "Not covered"]


def test_the_exit_statuses_are_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", OPERATIONS, re.MULTILINE)
    assert rows == [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]


@pytest.mark.parametrize("status", list(Status))
def test_every_status_is_explained(status: Status) -> None:
    assert f"`{status.value}`" in OPERATIONS


@pytest.mark.parametrize("role", [role for role in Role if role.value])
def test_every_role_is_explained(role: Role) -> None:
    assert f"| `{role.value}` |" in OPERATIONS


def test_the_numbers_of_routing_and_circuits_are_the_codes() -> None:
    page = " ".join(OPERATIONS.split())
    assert f"response time in seconds + {router.FAILURE_WEIGHT:g} x failure rate" in page
    assert router.RESPONSE_SCALE_MS == 1000
    assert f"has {router.AVOID_PENALTY:g} added" in page
    assert f"Scores within {router.NEAR:g} of the best" in page
    assert (agent_health.OPEN_AFTER_FAILURES, agent_health.FORGET_HALF_SECONDS) == (5, 60)
    assert "Five retryable failures of an agent in a row" in page
    assert f"it gets nothing for {agent_health.OPEN_SECONDS:g} s" in page


def test_every_documented_command_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"^\| `pantheon ((?:[a-z-]+ ?)+)", OPERATIONS, re.MULTILINE))
    assert len(commands) == 30
    for command in sorted(commands):
        assert main([*command.split(), "--help"]) == 0
        assert f"pantheon {command.strip()}" in capsys.readouterr().out


def test_every_command_is_documented() -> None:
    done = subprocess.run([sys.executable, "-m", "pantheon", "--help"], capture_output=True, text=True, check=True)
    listed = done.stdout.partition("Commands:")[2].partition("Exit status")[0]
    names = re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE)
    assert "up" in names
    for name in names:
        assert f"| `pantheon {name}" in OPERATIONS, name
