"""Commands as processes against a mesh that `pantheon up` runs: responses, streams, exit statuses."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pantheon.cli.app import main
from tests.cli.conftest import AGENT, COMMAND_SECONDS, REPOSITORY, Mesh, Running, Shell, command, environment

# Some of these tests run twenty commands, each a process of its own.
pytestmark = pytest.mark.timeout(900)

UNREACHABLE = "nats://127.0.0.1:9"


@pytest.fixture
def running() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for each in started:
        each.kill()


def id_in(text: str) -> str:
    """The task id in what a run said."""
    return next(word for word in text.split() if len(word) == 36 and word.count("-") == 4)


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_responds_with_the_result_on_stdout_and_progress_on_stderr(shell: Shell) -> None:
    done = shell("run", "shout_all", "texts=a", "texts=b", "year=2026")
    assert done.code == 0
    # One of the arguments is a number, and the workflow wants it as a text.
    assert done.json == {"text": "A+B+2026"}
    assert "shout_all accepted as" in done.err
    assert "joined completed" in done.err
    assert "loud completed" in done.err
    assert f"task {id_in(done.err)} completed" in done.err


def test_run_makes_a_list_of_one_where_the_workflow_wants_a_list(shell: Shell) -> None:
    (shell.folder / "one.md").write_text("only")
    assert shell("run", "shout_all", "texts=@one.md", "-q").json == {"text": "ONLY+"}


def test_run_takes_the_payload_from_a_file_and_from_stdin(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text("texts: [x]\nyear: '1'\n")
    done = shell("run", "shout_all", "--input", str(tmp_path / "in.yaml"), "year=2", "--quiet")
    assert (done.json, done.err) == ({"text": "X+2"}, "")
    assert shell("run", "uppercase", "-i", "-", "-q", stdin='{"text": "in"}').json == {"text": "IN"}


def test_on_a_terminal_the_tree_is_drawn_and_stdout_has_the_result_alone(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    env = environment({"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"})
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
        done = subprocess.run(
            command("run", "shout_all", "texts=x"), cwd=shell.folder, env=env, stdout=-1, stderr=theirs, check=False
        )
        os.close(theirs)
        drawn = b""
        # The end of a terminal whose other side is closed is an error on Linux.
        with contextlib.suppress(OSError):
            while piece := terminal.read(65536):
                drawn += piece
    assert json.loads(done.stdout) == {"text": "X+"}
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert "├─ ✔ joined" in text
    assert "100%   2 of 2 steps" in text


def test_run_with_json_prints_the_response_and_nothing_else(shell: Shell) -> None:
    done = shell("run", "uppercase", "text=hi", "--json", "--session", "s-1", "--requester", "tester")
    assert done.code == 0
    assert done.json["status"] == "completed"
    assert done.json["result"] == {"text": "HI"}
    listed = shell("tasks", "--session", "s-1", "--requester", "tester", "--json").json
    assert [each["task_id"] for each in listed] == [done.json["task_id"]]


def test_run_says_what_happens_between_attempts(shell: Shell) -> None:
    done = shell("run", "flaky")
    assert done.json == {"attempt": 2}
    assert "flaky failed, attempt 1: not at the first attempt; tries again" in done.err
    assert "attempt 2" in done.err


def test_a_failed_task_is_one_line_and_status_1(shell: Shell) -> None:
    done = shell("run", "boom")
    assert done.code == 1
    assert done.out == ""
    assert done.last_error.startswith("pantheon: step 'boom' failed: no way through (step_failed); more: pantheon task")
    as_json = shell("run", "boom", "--json")
    assert as_json.code == 1
    assert as_json.json["error"]["code"] == "step_failed"


def test_a_task_type_that_nobody_serves_fails_with_a_hint(shell: Shell) -> None:
    done = shell("run", "shout_al")
    assert done.code == 1
    assert "did you mean 'shout_all'?" in done.err
    assert "unknown_task_type" in done.last_error


def test_run_gives_up_waiting_while_the_task_goes_on(shell: Shell) -> None:
    # Long enough to be accepted in, and far from as long as the task takes.
    done = shell("run", "slow", "seconds=20", "--timeout", "3")
    assert done.code == 124
    assert "the task goes on: pantheon task show" in done.last_error
    rows = shell("tasks", "--type", "slow", "--status", "running", "--status", "completed", "--json").json
    assert id_in(done.last_error) in [row["task_id"] for row in rows]


def test_a_deadline_ends_the_task_itself(shell: Shell) -> None:
    done = shell("run", "slow", "seconds=30", "--deadline", "0.5")
    assert done.code == 1
    assert "deadline" in done.last_error


def test_detached_a_run_prints_the_id_alone(shell: Shell) -> None:
    done = shell("run", "uppercase", "text=x", "--detach")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.strip()) == 36
    assert shell("run", "uppercase", "text=x", "-d", "--json").json["status"] == "accepted"


def test_a_key_makes_two_runs_one(shell: Shell) -> None:
    first = shell("run", "uppercase", "text=first", "--idempotency-key", "k-1", "-q")
    second = shell("run", "uppercase", "text=second", "--idempotency-key", "k-1", "-q")
    assert first.json == second.json == {"text": "FIRST"}


def test_ctrl_c_says_how_to_look_at_the_task_which_goes_on(shell: Shell, running: list[Running]) -> None:
    run = shell.start("run", "slow", "seconds=6")
    running.append(run)
    run.wait_for("slow given to")
    done = run.end(signal.SIGINT)
    assert done.code == 130
    task_id = id_in(done.err)
    assert done.last_error == f"pantheon: interrupted; the task goes on: pantheon task show {task_id}"
    again = shell("replay", task_id, "--input", "seconds=0.1", "--wait")
    assert again.json == {"slept": 0.1}
    shown = shell("task", "show", task_id, "--json").json
    assert shown["tasks"][-1]["root_task_id"] == task_id


def test_sigterm_has_a_status_of_its_own(shell: Shell, running: list[Running]) -> None:
    run = shell.start("run", "slow", "seconds=20")
    running.append(run)
    run.wait_for("accepted as")
    assert run.end(signal.SIGTERM).code == 143


def test_files_in_the_result_are_written_where_asked_and_nowhere_else(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    done = shell("run", "file", "text=content", "--out", str(folder))
    assert done.json["files"] == [{"filename": "../../escape.txt", "path": str(folder / "escape.txt")}]
    assert (folder / "escape.txt").read_text() == "content"
    assert f"wrote {folder / 'escape.txt'}" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    task_id = id_in(done.err)
    shown = shell("task", "show", task_id, "--out", str(tmp_path / "again"), "--full")
    assert (tmp_path / "again" / "escape.txt").read_text() == "content"
    assert '"note": "with a file"' in shown.out
    assert '"text": "content"' in shown.out


def test_a_folder_for_all_results_gets_one_for_each_task(shell: Shell, tmp_path: Path) -> None:
    done = shell("run", "file", "text=content", env={"PANTHEON_OUT": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    assert folder.name == id_in(done.err)
    assert done.json["files"][0]["path"] == str(folder / "escape.txt")
    named = shell("run", "file", "text=x", "--out", str(tmp_path / "named"), env={"PANTHEON_OUT": str(tmp_path)})
    assert named.json["files"][0]["path"] == str(tmp_path / "named" / "escape.txt")


def test_a_package_that_is_not_installed_is_named(other_shell: Shell, tmp_path: Path) -> None:
    """The kit alone carries no orchestrator: what is missing is said, and how to have it."""
    migrate = "main(['migrate', '--database-url', 'postgresql://x/y'])"
    (tmp_path / "without.py").write_text(
        f"import sys\nfrom pantheon.cli.app import main\nsys.modules['alembic'] = None\nsys.exit({migrate})\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "without.py")],
        cwd=other_shell.folder, env=environment({"PYTHONPATH": str(REPOSITORY)}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == "pantheon: alembic is not installed, and this needs it: pip install 'pantheon-mesh[all]'\n"


def test_a_wrong_request_is_not_sent(shell: Shell) -> None:
    done = shell("run", "Not A Type")
    assert done.code == 2
    assert done.last_error.startswith("pantheon: task_type: must match")


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_tasks_are_listed_newest_first_and_filtered(shell: Shell) -> None:
    ids = [shell("run", "shout_all", "texts=x", "-d").out.strip() for _ in range(2)]
    shell("run", "boom", "-q")
    rows = shell("tasks", "--type", "shout_all", "-n", "2", "--json").json
    assert [row["task_id"] for row in rows] == ids[::-1]
    failed = shell("tasks", "--status", "failed", "--status", "cancelled", "--type", "boom", "--json").json
    assert {row["status"] for row in failed} == {"failed"}
    text = shell("tasks", "--limit", "3").out
    assert text.splitlines()[0].split()[:3] == ["id", "type", "status"]
    assert ids[0] in text
    assert "step 'boom' failed: no way through" in text
    nothing = shell("tasks", "--type", "never_heard_of")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no tasks match\n")
    assert shell("tasks", "--type", "never_heard_of", "--json").json == []


def test_task_show_draws_the_tree_with_times_attempts_and_errors(shell: Shell) -> None:
    task_id = shell("run", "shout_all", "texts=x", "--json").json["task_id"]
    text = shell("task", "show", task_id).out
    assert f"✔ shout_all  {task_id}  completed in" in text
    assert "├─ ✔ joined" in text
    assert "└─ ✔ loud" in text
    assert "words_agent" in text
    assert "requester  cli" in text
    failed = shell("run", "boom", "--json").json["task_id"]
    assert "✘ boom (step_failed): step 'boom' failed: no way through" in shell("task", "show", failed).out or (
        "✘ boom (bad_thing): no way through" in shell("task", "show", failed).out
    )
    retried = shell("run", "flaky", "--json").json["task_id"]
    assert "attempt 2" in shell("task", "show", retried).out


def test_a_part_of_an_id_is_enough_where_it_is_unique(shell: Shell) -> None:
    task_id = shell("run", "uppercase", "text=x", "-d").out.strip()
    for part in (task_id[-14:], task_id[:-1], task_id.upper()):
        assert shell("task", "show", part, "--json").json["task_id"] == task_id


@pytest.mark.parametrize(
    ("part", "code", "words"),
    [
        ("ffffffff-0000", 4, "has an id like 'ffffffff-0000'"),
        ("00000000-0000-7000-8000-000000000000", 4, "there is no task 00000000-0000-7000-8000-000000000000"),
        ("01", 2, "too short"),
        ("hello", 2, "no task's id"),
    ],
)
def test_an_id_that_is_nobodys_is_said_so(shell: Shell, part: str, code: int, words: str) -> None:
    for arguments in (("task", "show", part), ("task", "cancel", part), ("replay", part)):
        done = shell(*arguments)
        assert (done.code, done.out) == (code, "")
        assert words in done.last_error


def test_an_id_that_fits_several_names_them(shell: Shell) -> None:
    first = shell("run", "uppercase", "text=x", "-d").out.strip()
    second = shell("run", "uppercase", "text=x", "-d").out.strip()
    common = next(first[:length] for length in range(len(first), 0, -1) if first[:length] == second[:length])
    done = shell("task", "show", common[:4])
    assert done.code == 2
    assert "tasks: " in done.last_error


def test_a_wrong_filter_is_told_with_what_is_allowed(shell: Shell) -> None:
    done = shell("tasks", "--status", "done")
    assert done.code == 2
    assert "status: must be among" in done.last_error


# -- replay ------------------------------------------------------------------------------------------------------------


def test_replay_is_a_new_task_that_names_the_old_one(shell: Shell) -> None:
    old = shell("run", "shout_all", "texts=x", "--json").json["task_id"]
    done = shell("replay", old, "--from", "loud", "--wait")
    assert done.json == {"text": "X+"}
    replays = [row for row in shell("tasks", "--json").json if row.get("replay_of") == old]
    assert len(replays) == 1
    assert f"replay of  {old}" in shell("task", "show", replays[0]["task_id"]).out
    detached = shell("replay", old)
    assert (detached.code, len(detached.out.strip())) == (0, 36)
    assert shell("replay", old, "--json").json["status"] == "accepted"
    assert shell("replay", old, "--wait", "--json").json["result"] == {"text": "X+"}


def test_replay_refuses_a_step_that_is_not_there(shell: Shell) -> None:
    old = shell("run", "shout_all", "texts=x", "--json").json["task_id"]
    done = shell("replay", old, "--from", "nowhere")
    assert (done.code, done.out) == (2, "")
    assert "there is no step 'nowhere'" in done.last_error


def test_replay_of_what_fails_again_fails(shell: Shell) -> None:
    old = shell("run", "boom", "--json").json["task_id"]
    done = shell("replay", old, "--wait")
    assert done.code == 1
    assert "no way through" in done.last_error


def test_replay_gives_up_waiting(shell: Shell) -> None:
    old = shell("run", "slow", "seconds=20", "-d").out.strip()
    assert shell("replay", old, "--wait", "--timeout", "0.5").code == 124


# -- agents, workflows, schema, versions -----------------------------------------------------------------------------


def listed_with(shell: Shell, field: str, *command: str) -> dict[str, dict[str, Any]]:
    """The agents by name, as soon as words_agent is listed with a field."""
    end = time.monotonic() + COMMAND_SECONDS
    while True:
        rows = {row["name"]: row for row in shell(*command, "--json").json}
        if rows["words_agent"].get(field) is not None:
            return rows
        assert time.monotonic() < end, rows


def test_agents_are_listed_from_discovery(shell: Shell) -> None:
    shell("run", "uppercase", "text=x", "-q")
    # Whoever does not say within a moment what it has done is shown without.
    rows = listed_with(shell, "tasks_done", "agents")
    assert set(rows) == {"orchestrator_agent", "words_agent"}
    agent = rows["words_agent"]
    assert (agent["version"], agent["status"], agent["max_concurrency"]) == ("1.2.3", "ready", 10)
    assert "uppercase" in agent["task_types"]
    assert agent["tasks_done"] >= 1
    assert "shout_all" in rows["orchestrator_agent"]["task_types"]
    text = shell("agents").out
    assert "words_agent" in text
    assert "uppercase, join, slow" in text


def test_agents_tell_their_load(shell: Shell) -> None:
    rows = listed_with(shell, "heartbeat", "agents", "--load")
    assert rows["words_agent"]["heartbeat"]["max_concurrency"] == 10


def test_workflows_are_listed(shell: Shell) -> None:
    rows = {row["name"]: row for row in shell("workflows", "--json").json}
    assert {"create_blog_post", "research_brief", "shout_all"} <= set(rows)
    assert rows["shout_all"]["steps"] == ["joined", "loud"]
    text = shell("workflows").out
    assert "texts*, year" in text
    assert "Joins texts, then shouts." in text


def test_workflow_files_are_checked_with_line_and_column(shell: Shell, tmp_path: Path) -> None:
    right = shell("workflows", "check", "flows")
    assert (right.code, right.err) == (0, "")
    assert "workflow 'shout_all' is right (joined, loud)" in right.out
    (tmp_path / "bad.yaml").write_text("steps:\n  a:\n    tsk: uppercase\n")
    (tmp_path / "twin.yaml").write_text("name: same\nsteps: {a: {task: uppercase}}\n")
    (tmp_path / "twin2.yaml").write_text("name: same\nsteps: {a: {task: uppercase}}\n")
    wrong = shell("workflows", "check", str(tmp_path), "flows/shout_all.yaml", "--json")
    assert wrong.code == 1
    assert wrong.json[0]["error"]["line"] == 3
    assert f"{tmp_path}/bad.yaml:3:5: a step has no 'tsk'; did you mean 'task'?" in wrong.err
    assert "is also in twin.yaml" in wrong.err
    assert "2 of 4 files wrong" in wrong.last_error
    assert shell("workflows", "check", "nowhere.yaml").code == 4
    (tmp_path / "empty").mkdir()
    assert shell("workflows", "check", str(tmp_path / "empty")).code == 4


def test_the_schema_is_printed_and_written(other_shell: Shell) -> None:
    documents = other_shell("schema").json
    assert any("asyncapi" in name for name in documents)
    assert other_shell("schema", "task-request").json["type"] == "object"
    written = other_shell("schema", "--out", "made")
    assert sorted(written.out.split()) == sorted(f"made/{name}" for name in documents)
    assert json.loads((other_shell.folder / "made" / "task-request.schema.json").read_text()) or documents
    assert other_shell("schema", "--out", "made", "--json").json
    unknown = other_shell("schema", "nothing")
    assert unknown.code == 4
    assert "there is task-request" in unknown.last_error or "task-request" in unknown.last_error
    (other_shell.folder / "file").write_text("")
    assert other_shell("schema", "--out", "file").code == 2


def test_the_version(other_shell: Shell) -> None:
    assert other_shell("version").out.count(".") == 2
    assert other_shell("version", "--json").json["version"] == other_shell("version").out.strip()


def test_migrate_finds_the_database_and_does_nothing_twice(shell: Shell, running_mesh: Mesh) -> None:
    assert "already" in shell("migrate").out
    url = running_mesh.endpoints["database_url"]
    done = shell("migrate", "--json", "--database-url", url)
    assert done.json["before"] == done.json["after"]
    assert shell("migrate", env={"DATABASE_URL": url}).code == 0
    # The password of a database that is not there is nobody's business.
    away = shell("migrate", "--database-url", "postgresql://u:secret@127.0.0.1:9/x")
    assert away.code == 3
    assert "secret" not in away.err
    assert shell("migrate", "--database-url", "mysql://x").code == 2


# -- agents of one's own ---------------------------------------------------------------------------------------------


def test_a_new_agent_runs_as_it_is_written(shell: Shell, running: list[Running]) -> None:
    done = shell("agent", "new", "echo_agent")
    assert done.out == "echo_agent.py\n"
    assert "pantheon run echo_text text=hello" in done.err
    agent = shell.start("agent", "run", "echo_agent.py")
    running.append(agent)
    agent.wait_for("agent.started")
    assert shell("run", "echo_text", "text=hello", "-q").json == {"text": "HELLO"}
    assert shell("run", "echo_text", "text= ", "-q").code == 1
    assert agent.end(signal.SIGINT).code == 0
    assert shell("agent", "new", "echo_agent").code == 2
    assert shell("agent", "new", "Echo").code == 2
    assert shell("agent", "new", "x_agent", "--in", "/proc/nowhere").code == 2


def test_an_agent_that_does_not_load_is_one_line(shell: Shell) -> None:
    done = shell("agent", "run", "nowhere.py")
    assert (done.code, done.last_error) == (4, "pantheon: nowhere.py: there is no such file")


def test_another_orchestrator_joins(shell: Shell, running: list[Running]) -> None:
    process = shell.start("orchestrator", "--workflows", "flows")
    running.append(process)
    process.wait_for("agent.started")
    assert sum(row["name"] == "orchestrator_agent" for row in shell("agents", "--json").json) == 2
    assert process.end(signal.SIGTERM).code == 0
    assert shell("orchestrator", "--workflows", "nowhere").code == 4


# -- where the mesh is -----------------------------------------------------------------------------------------------


def test_the_mesh_is_found_by_url_and_by_the_environment(other_shell: Shell, running_mesh: Mesh) -> None:
    url = running_mesh.endpoints["nats_url"]
    assert other_shell("run", "uppercase", "text=x", "-q", "--url", url).json == {"text": "X"}
    assert other_shell("tasks", "--json", env={"NATS_URL": url}).code == 0
    (other_shell.folder / "url").write_text(url)
    assert other_shell("agents", env={"NATS_URL_FILE": str(other_shell.folder / "url")}).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x"),
        ("tasks",),
        ("task", "show", "01a1f752"),
        ("agents",),
        ("workflows",),
        ("replay", "01a1f752"),
        ("task", "cancel", "01a1f752"),
        ("task", "approve", "01a1f752"),
        ("agents", "pause", "x_agent"),
        ("dead-letters", "list"),
        ("migrate",),
        ("orchestrator",),
        ("agent", "run", "x.py"),
    ],
)
def test_without_a_mesh_every_command_says_how_to_get_one(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "pantheon up" in err
    assert err.count("\n") == 1


def test_a_mesh_that_does_not_respond_is_status_3(other_shell: Shell) -> None:
    done = other_shell("tasks", "--url", UNREACHABLE)
    assert done.code == 3
    assert "no NATS server answers at nats://127.0.0.1:9" in done.last_error


def test_a_broker_without_an_orchestrator_is_status_3_or_a_timeout(other_shell: Shell, broker: Any) -> None:
    done = other_shell("tasks", "--url", broker.url)
    assert done.code == 3
    assert "is an orchestrator running?" in done.last_error
    waiting = other_shell("run", "x", "--url", broker.url, "--timeout", "0.5")
    assert waiting.code == 124
    assert "the task may still be accepted" in waiting.last_error


def test_wrong_settings_name_the_variable(other_shell: Shell) -> None:
    done = other_shell("tasks", env={"NATS_URL": "http://x"})
    assert done.code == 2
    assert done.last_error.startswith("pantheon: NATS_URL='http://x' is not allowed")


# -- the command line itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "pantheon: No such command 'nope' (see pantheon --help)"),
        (("run",), "pantheon run: Missing argument 'WORKFLOW' (see pantheon run --help)"),
        (("run", "x", "y"), "pantheon: 'y' is no key=value, key=@file, key:=json or key:=@file.json"),
        (("tasks", "--limit", "0"), "pantheon tasks: Invalid value for '--limit'"),
        (("tasks", "--what"), "pantheon tasks: No such option: --what"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_help_documents_the_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "124  --timeout passed" in text
    for name in ("up", "run", "tasks", "task", "agents", "workflows", "replay", "dead-letters", "migrate", "schema"):
        assert f"\n  {name} " in text
    assert main(["run", "--help"]) == 0
    assert "key=@file" in capsys.readouterr().out


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: pantheon" in out + err


def test_a_mistake_of_its_own_is_one_line_unless_debugged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr("protocol.documents.documents", broken)
    assert main(["schema"]) == 70
    err = capsys.readouterr().err
    assert err == "pantheon: RuntimeError: odd thing (a mistake of pantheon's own; --debug shows where)\n"
    with pytest.raises(RuntimeError):
        main(["schema", "--debug"])
    monkeypatch.setenv("PANTHEON_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["schema"])


@pytest.mark.parametrize("group", [[], ["task"], ["agent"], ["dead-letters"]])
def test_a_group_without_a_command_shows_its_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(group) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(" ".join(["Usage: pantheon", *group]))
    assert any(line.strip().startswith("-h, --help") for line in lines)


def test_a_reader_that_has_enough_is_no_error(other_shell: Shell) -> None:
    line = f"set -o pipefail; {shlex.join(command('schema'))} | head -c 10"
    done = subprocess.run(
        ["bash", "-c", line], cwd=other_shell.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 10, "")


GONE = (["schema"], ["version"], ["schema", "task-request", "--json"], ["--help"], ["workflows", "check", "one.yaml"])


@pytest.mark.parametrize("arguments", GONE)
def test_a_reader_that_has_gone_already_is_no_error(other_shell: Shell, arguments: list[str]) -> None:
    """As `| head` may have, on a busy machine."""
    (other_shell.folder / "one.yaml").write_text("name: one\nsteps:\n  a: {task: b}\n")
    gone, answers = os.pipe()
    os.close(gone)
    try:
        done = subprocess.run(
            command(*arguments), cwd=other_shell.folder, env=environment(), stdout=answers, stderr=subprocess.PIPE,
            check=False,
        )  # fmt: skip
    finally:
        os.close(answers)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_agent_of_these_tests_is_one(tmp_path: Path) -> None:
    from pantheon.process.loading import load_agent

    (tmp_path / "words.py").write_text(AGENT)
    assert set(load_agent(str(tmp_path / "words.py")).task_types) >= {"uppercase", "file"}
