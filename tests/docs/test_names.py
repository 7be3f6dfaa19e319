"""Everything that documentation and comments name exists: files, modules, classes, settings, commands, sections."""

from pathlib import Path

import pytest

from tests.docs.conftest import REPOSITORY
from tests.docs.names import in_code, in_page, mistakes_in, wrong_with
from tests.docs.words import files_of, packages

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples" / "agents").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_everything_that_a_page_names_exists(page: Path) -> None:
    assert [str(mistake) for mistake in in_page(page)] == []


@pytest.mark.parametrize(
    "package",
    [package for package in packages() if any(path.suffix == ".py" for path in files_of(package))],
)
def test_everything_that_comments_name_exists(package: str) -> None:
    assert [str(mistake) for mistake in mistakes_in(package)] == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("docs/protocol.md", True),
        ("docs/nothing.md", False),
        ("orchestrator_agent/engine/advance.py", True),
        ("advance.py", False),
        ("orchestrator_agent.engine.advance", True),
        ("orchestrator_agent.engine.nothing", False),
        ("engine.state.Run", True),
        ("engine.state.Nothing", False),
        ("ReadyQueue", True),
        ("WaitingLine", False),
        ("advance", True),
        ("advance_twice", False),
        ("Mesh.submit(…)", True),
        ("NATS_URL", True),
        ("NATS_ADDRESS", False),
        ("pantheon task show ID --why", True),
        ("pantheon task explain ID", True),  # a word after a command may be an argument
        ("pantheon explain ID", False),
        ("pantheon --help", True),
        ("pantheon task show ID --because", False),
        ("make lint", True),
        ("make tea", False),
        ("agent.<name>.task", True),
        ("mesh.event.task.accepted", True),
    ],
)
def test_what_a_name_in_backticks_may_be(text: str, right: bool) -> None:
    assert (wrong_with(text, REPOSITORY / "docs" / "page.md") is None) is right


def test_a_page_that_names_what_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "operations.md").write_text("## Without …\n")
    page = tmp_path / "page.md"
    page.write_text(
        "See `conductor.py`.\n\n"
        "([operations.md](operations.md), Without) ([operations.md](operations.md), Nowhere)\n\n"
        "```sh\npantheon nothing --at all\n```\n"
    )
    found = [mistake.text for mistake in in_page(page)]
    assert found == ["conductor.py", "pantheon nothing --at all", "operations.md, Nowhere"]


def test_a_comment_that_names_a_page_or_decision_that_is_gone_is_found(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    pages = ("PROTOCOL.md", "ADR 9999", "docs/protocol.md, Nowhere")
    file.write_text('"""See {}, {} ({}), and docs/protocol.md."""\n'.format(*pages))
    assert {mistake.text for mistake in in_code(file)} == set(pages)
