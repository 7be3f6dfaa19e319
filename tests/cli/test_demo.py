"""`pantheon demo`: the whole product from nothing, twice, beside another mesh, and interrupted in the middle."""

import signal
import time
import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import Mesh, Shell
from tests.processes import processes_of

pytestmark = pytest.mark.timeout(400)


def test_a_demo_makes_an_article_and_a_site_and_again_replaces_them(other_shell: Shell, running_mesh: Mesh) -> None:
    first = other_shell("demo")
    assert first.code == 0, first.err
    out = other_shell.folder / "out" / "demo"
    markdown = (out / "article.md").read_text()
    assert markdown.startswith("# ")
    assert (out / "article.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert (out / "article.pdf").read_bytes().startswith(b"%PDF-")
    with zipfile.ZipFile(out / "article.docx") as document:
        assert "word/document.xml" in document.namelist()
    assert (out / "site" / "index.html").is_file()
    assert (out / "site" / "feed.xml").is_file()
    posts = list((out / "site" / "posts").iterdir())
    assert len(posts) == 1
    for words in ("draft/generate completed", "export completed", "publish completed", "out/demo/article.pdf"):
        assert words in first.out
    assert "post, created" in first.out
    assert first.err == ""
    assert not (out / ".mesh").exists()
    assert processes_of(other_shell.folder) == []

    second = other_shell("demo", "--json")
    assert second.code == 0, second.err
    made = second.json
    assert [Path(each).name for each in made["files"]][:2] == ["article.md", "article.html"]
    assert [each["status"] for each in made["publications"]] in (["updated"], ["unchanged"])
    assert list((out / "site" / "posts").iterdir()) == posts
    assert processes_of(other_shell.folder) == []
    # The other mesh has seen nothing of it.
    assert Shell(running_mesh.folder)("tasks", "--type", "create_blog_post", "--json").json == []


@pytest.mark.parametrize(("words", "wait_seconds"), [("starting NATS", 1.0), ("given to", 0.0)])
def test_ctrl_c_in_the_middle_leaves_nothing_running(other_shell: Shell, words: str, wait_seconds: float) -> None:
    running = other_shell.start("demo")
    try:
        running.wait_for(words, stream="stdout")
        # Some way into a start of a few seconds: servers are there, agents are not.
        time.sleep(wait_seconds)
        done = running.end(signal.SIGINT)
        assert done.code == 130
        assert done.last_error == "pantheon: interrupted; everything was stopped"
        assert processes_of(other_shell.folder) == []
    finally:
        running.kill()


def test_a_request_that_fails_says_why_and_keeps_the_logs(other_shell: Shell) -> None:
    (other_shell.folder / "mine").mkdir()
    (other_shell.folder / "mine" / "request.yaml").write_text("topic: x\nsources: []\n")
    done = other_shell("demo", "--input", "mine", "--out", "made")
    assert done.code == 1
    assert "LLM_MODEL" in done.last_error
    logs = Path(done.last_error.rpartition("logs: ")[2])
    assert (logs / "llm_agent.log").is_file()
    assert processes_of(other_shell.folder) == []


def test_two_demos_in_one_folder_are_refused_and_so_is_what_cannot_be_read(other_shell: Shell) -> None:
    running = other_shell.start("demo")
    try:
        running.wait_for("starting NATS", stream="stdout")
        running.wait_for("the mesh is up", stream="stdout")
        # Held, so that it does not come to its end before the second has looked.
        running.process.send_signal(signal.SIGSTOP)
        busy = other_shell("demo")
        assert busy.code == 3
        assert "is in use" in busy.last_error
        running.process.send_signal(signal.SIGCONT)
        running.end(signal.SIGTERM)
    finally:
        running.kill()
    nothing = other_shell("demo", "--input", "nowhere")
    assert (nothing.code, nothing.err) == (
        4,
        "pantheon: nowhere: there is no such file; give a folder with a request.yaml\n",
    )
    (other_shell.folder / "file").write_text("")
    assert other_shell("demo", "--out", "file").code == 3
