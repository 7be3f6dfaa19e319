"""Each process without the packages of its extra: one line that says what to install, as a plain installation gives."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("process", "package"),
    [
        ("agents.enhancement_agent", "spellchecker"),
        # Imported at work alone, and asked for at the start all the same: no task should be the first to know.
        ("agents.drafting_agent", "pypandoc"),
        ("agents.drafting_agent", "typst"),
        ("agents.communication_agent", "aiosmtplib"),
        ("orchestrator_agent", "cel_expr_python"),
    ],
)
def test_a_process_without_its_extra_names_it(process: str, package: str) -> None:
    code = f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module({process!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    name = process.rpartition(".")[2]
    assert done.returncode == 1
    assert done.stderr == (
        f"{name}: {package} is not installed, and this needs it: pip install 'pantheon-mesh[{name}]'\n"
    )


def test_a_broken_installation_is_not_taken_for_a_missing_extra() -> None:
    code = "import sys; sys.modules['agents.llm_agent.agent'] = None; import agents.llm_agent.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert "pip install" not in done.stderr
    assert "agents.llm_agent.agent" in done.stderr
