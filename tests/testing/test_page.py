"""docs/testing.md: its tests, run as they stand on the page; nothing of the test kit is missing there."""

import re
import subprocess
import sys
from pathlib import Path

from pantheon import testing
from testkit import StepView, Task, TestMesh
from tests.docs.conftest import REPOSITORY, blocks

PAGE = REPOSITORY / "docs" / "testing.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    conftest, *tests = blocks(PAGE, "python")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "publish.yaml").write_text(blocks(PAGE, "yaml")[0], encoding="utf-8")
    for number, code in enumerate(tests):
        (tmp_path / f"test_page_{number}.py").write_text(code, encoding="utf-8")
    expected = sum(code.count("async def test_") for code in tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(tmp_path), "-o", "asyncio_mode=auto", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert f"{expected} passed" in done.stdout
    assert expected >= 8


def test_the_page_names_all_of_the_kit() -> None:
    named = set(re.findall(r"\w+", TEXT))
    members = {name for kind in (TestMesh, Task, StepView) for name in vars(kind) if not name.startswith("_")}
    internal = {"operate", "run_again", "until_ended", "now", "task_id", "close"}
    assert members - internal - named == set()
    assert set(testing.__all__) - {"Call", "StepView"} <= named


def test_the_kit_is_not_loaded_before_it_is_asked_for() -> None:
    code = "import sys, pantheon.testing; assert not any(name.startswith('orchestrator_agent') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)
