"""Operations as commands against a mesh that `pantheon up` runs: on tasks, workflows, agents, dead letters."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.cli.conftest import Mesh, Running, Shell

# Some of these tests run twenty commands, each a process of its own.
pytestmark = pytest.mark.timeout(900)

UNKNOWN = "00000000-0000-7000-8000-000000000000"
WITHIN_SECONDS = 60.0

# Another agent for a task type of the mesh's own.
SPARE = """
from pantheon import Agent

agent = Agent("spare_agent")

@agent.task("keep")
async def keep(task: dict) -> dict:
    return task
"""

COMPENSATED = {
    "first": {"task": "keep", "with": {"n": 1}, "compensate": {"task": "keep", "with": {"undo": "${result.n}"}}},
    "long": {"task": "slow", "needs": ["first"], "with": {"seconds": 300}},
}
APPROVED = {
    "ok": {"wait_for": {"approval": "release", "from": ["anna"], "timeout": "1h"}},
    "after": {
        "task": "keep",
        "with": {"by": "${ok.by}", "yes": "${ok.approved}", "said": "${ok.?comment.orValue('')}"},
    },
}


@pytest.fixture
def running() -> Iterator[list[Running]]:
    started: list[Running] = []
    yield started
    for each in started:
        each.kill()


def begin(shell: Shell, steps: dict[str, Any], **payload: Any) -> str:
    """Start an inline workflow; its id."""
    values = [f"{key}:={json.dumps(value)}" for key, value in payload.items()]
    done = shell("run", "execute_dag", f"steps:={json.dumps(steps)}", *values, "--detach")
    assert done.code == 0, done.err
    return done.out.strip()


def rows_of(shell: Shell, task_id: str) -> dict[str, dict[str, Any]]:
    """The rows of a task by step, the root's under its id."""
    rows = shell("task", "show", task_id, "--json").json["tasks"]
    return {f"{row.get('step') or task_id}{row.get('role', '')}": row for row in rows}


def until(shell: Shell, task_id: str, seen: Callable[[dict[str, dict[str, Any]]], Any]) -> dict[str, dict[str, Any]]:
    """The rows of a task as soon as they are as wanted."""
    end = time.monotonic() + WITHIN_SECONDS
    while not seen(rows := rows_of(shell, task_id)):
        assert time.monotonic() < end, rows
        time.sleep(0.1)
    return rows


def until_ended(shell: Shell, task_id: str) -> str:
    rows = until(shell, task_id, lambda rows: rows[task_id]["status"] in ("completed", "failed", "cancelled"))
    return str(rows[task_id]["status"])


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_cancel_ends_a_task_compensates_what_it_did_and_is_no_mistake_twice(shell: Shell) -> None:
    task_id = begin(shell, COMPENSATED)
    until(shell, task_id, lambda rows: "long" in rows)
    done = shell("task", "cancel", task_id, "--reason", "changed my mind")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{task_id} is being cancelled: what it did is undone first\n"
    assert until_ended(shell, task_id) == "cancelled"
    rows = rows_of(shell, task_id)
    assert rows[task_id]["error"]["message"] == "changed my mind"
    assert rows["firstcompensation"]["result"] == {"undo": 1}
    shown = shell("task", "show", task_id).out
    assert "✔ first (undo)" in shown
    assert "⊘ long" in shown
    again = shell("task", "cancel", task_id, "--json")
    assert (again.code, again.json) == (0, [{"task_id": task_id, "status": "cancelled", "changed": False}])


def test_cancel_takes_several_and_does_not_stop_at_one_that_is_nobodys(shell: Shell) -> None:
    tasks = [begin(shell, {"w": {"sleep": "1h"}}) for _ in range(2)]
    done = shell("task", "cancel", tasks[0], UNKNOWN, tasks[1])
    assert done.code == 4
    assert done.out.splitlines() == [f"{task_id} is cancelled" for task_id in tasks]
    assert done.err == f"pantheon: there is no task {UNKNOWN}\n"


def test_a_steps_id_stands_for_its_task(shell: Shell) -> None:
    task_id = begin(shell, {"w": {"sleep": "1h"}})
    step = until(shell, task_id, lambda rows: "w" in rows)["w"]["task_id"]
    assert shell("task", "cancel", step).out == f"{task_id} is cancelled\n"


def test_a_paused_task_begins_nothing_until_it_is_resumed(shell: Shell) -> None:
    task_id = begin(shell, {"gate": {"wait_for": {"signal": "go"}}, "after": {"task": "keep", "needs": ["gate"]}})
    assert "is paused" in shell("task", "pause", task_id).out
    assert "is taken" in shell("task", "signal", task_id, "go").out
    until(shell, task_id, lambda rows: rows.get("after", {}).get("status") == "ready")
    assert shell("task", "pause", task_id, "--json").json[0]["changed"] is False
    assert "‖ execute_dag" in shell("task", "show", task_id).out
    assert shell("task", "resume", task_id).out == f"{task_id} goes on\n"
    assert until_ended(shell, task_id) == "completed"
    for command, words in (("pause", "only a running task"), ("resume", "only a paused task")):
        done = shell("task", command, task_id)
        assert (done.code, done.out) == (1, "")
        assert words in done.last_error


def test_a_signal_is_kept_or_taken_and_its_payload_is_checked(shell: Shell, tmp_path: Path) -> None:
    steps = {"go": {"wait_for": {"signal": "go", "schema": {"required": ["n"]}}, "needs": ["nap"]}, "nap": {"sleep": 1}}
    task_id = begin(shell, steps)
    assert "is kept until a step waits for it" in shell("task", "signal", task_id, "other", "x=1").out
    assert "until a step waits for it" in shell("task", "show", task_id).out
    until(shell, task_id, lambda rows: "go" in rows)
    wrong = shell("task", "signal", task_id, "go")
    assert (wrong.code, wrong.out) == (2, "")
    assert '"n" is a required property' in wrong.last_error
    (tmp_path / "in.yaml").write_text("n: 1\nm: 2\n")
    reported = shell("task", "signal", task_id, "go", "m=3", "--input", str(tmp_path / "in.yaml"), "--json").json
    assert reported == {"task_id": task_id, "signal": "go", "taken": True}
    assert until_ended(shell, task_id) == "completed"
    assert rows_of(shell, task_id)["go"]["result"] == {"n": 1, "m": 3}
    text = shell("task", "show", task_id).out
    assert "✔ go (signal)" in text
    assert "not taken" in text
    assert shell("task", "signal", task_id, "go").code == 2


def test_an_approval_is_shown_and_given_by_those_who_may(shell: Shell) -> None:
    task_id = begin(shell, APPROVED)
    until(shell, task_id, lambda rows: "ok" in rows)
    assert "for approval 'release', until" in shell("task", "show", task_id).out
    refused = shell("task", "approve", task_id)
    assert refused.code == 1
    assert "may be given by anna, not by cli" in refused.last_error
    done = shell("task", "approve", task_id, "--requester", "anna", "--comment", "fine")
    assert done.out == f"{task_id} 'release' is taken by the step that waited for it\n"
    assert until_ended(shell, task_id) == "completed"
    assert rows_of(shell, task_id)["after"]["result"] == {"by": "anna", "yes": True, "said": "fine"}
    late = shell("task", "approve", task_id)
    assert (late.code, late.last_error) == (
        2,
        f"pantheon: task {task_id} waits for no approval; name the one that it will",
    )


def test_an_approval_for_a_step_that_has_ended_is_refused(shell: Shell) -> None:
    other = {"wait_for": {"approval": "audit"}}
    task_id = begin(shell, {"ok": {"wait_for": {"approval": "release"}}, "other": other})
    until(shell, task_id, lambda rows: {"ok", "other"} <= rows.keys())
    row_id = rows_of(shell, task_id)["ok"]["task_id"]
    assert shell("task", "approve", task_id, "--waiting", row_id).code == 0
    again = shell("task", "approve", task_id, "release", "--waiting", row_id)
    assert again.code == 2
    assert f"step 'ok' ({row_id}) waits for 'release' no more: it is completed" in again.last_error
    by_itself = shell("task", "approve", task_id, "--waiting", row_id)
    assert f"step {row_id} of task {task_id} waits for no approval" in by_itself.last_error
    assert shell("task", "signal", task_id, "audit", "approved=true", "--waiting", row_id).code == 2
    assert shell("task", "approve", task_id).code == 0
    assert until_ended(shell, task_id) == "completed"


def test_a_refused_approval_and_two_at_once(shell: Shell) -> None:
    steps = {**APPROVED, "other": {"wait_for": {"approval": "audit"}}}
    task_id = begin(shell, steps)
    until(shell, task_id, lambda rows: {"ok", "other"} <= rows.keys())
    assert "waits for several approvals: audit, release; name one" in shell("task", "approve", task_id).last_error
    assert shell("task", "approve", task_id, "release", "--reject", "--requester", "anna").code == 0
    assert shell("task", "approve", task_id, "audit").code == 0
    assert until_ended(shell, task_id) == "completed"
    assert rows_of(shell, task_id)["after"]["result"]["yes"] is False


def test_a_failed_task_is_retried_from_what_failed(shell: Shell) -> None:
    steps = {"good": {"task": "keep", "with": {"n": 1}}, "bad": {"task": "boom", "needs": ["good"]}}
    old = [begin(shell, steps) for _ in range(2)]
    assert [until_ended(shell, task_id) for task_id in old] == ["failed", "failed"]
    first = rows_of(shell, old[0])["good"]
    new = shell("task", "retry", *old)
    assert new.code == 0
    for new_id, old_id in zip(new.out.split(), old, strict=True):
        assert until_ended(shell, new_id) == "failed"
        assert rows_of(shell, new_id)[new_id]["replay_of"] == old_id
    # It was taken over, not done again.
    assert rows_of(shell, new.out.split()[0])["good"]["completed_at"] == first["completed_at"]
    watched = shell("task", "retry", old[0], "--wait")
    assert watched.code == 1
    assert "no way through" in watched.last_error
    assert shell("task", "retry", *old, "--wait").code == 2
    assert {each["status"] for each in shell("task", "retry", *old, "--json").json} == {"accepted"}
    good = begin(shell, {"good": {"task": "keep"}})
    until_ended(shell, good)
    refused = shell("task", "retry", good)
    assert (refused.code, refused.out) == (2, "")
    assert "only a failed or cancelled one can be retried" in refused.last_error


def test_a_replay_with_another_input_is_a_fork(shell: Shell) -> None:
    old = shell("run", "shout_all", "texts=x", "--json").json["task_id"]
    # The workflow's schema says that the one is a list and the other a text.
    fork = shell("replay", old, "--input", "texts=y", "--input", "year=7", "--wait")
    assert fork.json == {"text": "Y+7"}
    # What does not depend on the step is what it was.
    assert shell("replay", old, "--input", "texts=y", "--from", "loud", "--wait").json == {"text": "X+"}
    assert shell("replay", old, "--input", "nothing").code == 2


# -- why ---------------------------------------------------------------------------------------------------------------


def test_show_says_why_an_agent_was_chosen(shell: Shell, running: list[Running]) -> None:
    (shell.folder / "spare.py").write_text(SPARE)
    task_id = begin(shell, {"only": {"task": "keep"}, "pinned": {"task": "keep", "agent": "words_agent"}})
    until_ended(shell, task_id)
    text = shell("task", "show", task_id, "--why").out
    assert "only: words_agent, the only one that served 'keep'" in text
    assert "pinned: words_agent, the step names it" in text
    spare = shell.start("agent", "run", "spare.py")
    running.append(spare)
    spare.wait_for("agent.started")
    end = time.monotonic() + WITHIN_SECONDS
    while not any("routing" in row for row in rows_of(shell, begin(shell, {"either": {"task": "keep"}})).values()):
        assert time.monotonic() < end, "the orchestrator never saw the second agent"
    assert shell("agents", "pause", "spare_agent").out == "agent spare_agent is paused\n"
    task_id = begin(shell, {"either": {"task": "keep", "sticky": "'k'"}})
    until_ended(shell, task_id)
    text = shell("task", "show", task_id, "--full").out
    assert "either: words_agent (always the same for 'k')" in text
    assert "→ words_agent  score" in text
    assert "spare_agent  excluded: it is paused" in text
    assert '"steps"' in text
    assert shell("agents", "resume", "spare_agent").code == 0
    # Cleanly, so that nothing is given to it any more.
    assert spare.end(signal.SIGINT).code == 0
    nothing = begin(shell, {"w": {"sleep": 0}})
    assert "no agent has had a part of it" in shell("task", "show", nothing, "--why").out


# -- workflows and agents ----------------------------------------------------------------------------------------------


def test_a_paused_workflow_and_a_paused_agent_get_nothing_new(shell: Shell) -> None:
    for kind, name in (("workflows", "shout_all"), ("agents", "words_agent")):
        assert shell(kind, "pause", name).out == f"{kind[:-1]} {name} is paused\n"
        task_id = shell("run", "shout_all", "texts=held", "--detach").out.strip()
        rows = until(shell, task_id, lambda rows: "joined" in rows)
        assert rows["joined"]["status"] == "ready"
        text = shell("task", "show", task_id).out
        assert "no agent has a free slot for it yet" in text
        why = "words_agent: it is paused" if kind == "agents" else "the workflow 'shout_all' is paused; "
        assert f"○ joined: {why}" in text or f"○ joined: 1 instance of 1 agent serves 'join'; {why}" in text
        assert shell(kind, "resume", name, "--json").json == [{kind[:-1]: name, "paused": False}]
        assert until_ended(shell, task_id) == "completed"


def test_what_is_paused_is_listed(shell: Shell) -> None:
    nothing = shell("pauses")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "nothing is paused\n")
    assert shell("workflows", "pause", "shout_all").code == 0
    task_id = shell("run", "shout_all", "texts=held", "--detach").out.strip()
    assert shell("task", "pause", task_id).code == 0
    assert [(each["kind"], each["name"], each["waiting"]) for each in shell("pauses", "--json").json] == [
        ("task", task_id, 1),
        ("workflow", "shout_all", 1),
    ]
    head, task, workflow = shell("pauses").out.splitlines()
    assert head.split() == ["paused", "name", "type", "since", "by", "waiting"]
    assert [task.split()[index] for index in (0, 1, 2, -2, -1)] == ["task", task_id, "shout_all", "cli", "1"]
    assert workflow.split()[0:2] == ["workflow", "shout_all"]
    assert len(shell("pauses", "-n", "1").out.splitlines()) == 2
    assert shell("workflows", "resume", "shout_all").code == 0
    assert shell("task", "resume", task_id).code == 0
    assert until_ended(shell, task_id) == "completed"


def test_what_is_not_there_may_be_paused_but_is_told(shell: Shell) -> None:
    for kind in ("workflow", "agent"):
        done = shell(f"{kind}s", "pause", "never_heard_of", "--json")
        assert (done.code, done.json) == (0, [{kind: "never_heard_of", "paused": True}])
        assert done.err == f"the mesh has no {kind} 'never_heard_of' now\n"
        assert shell(f"{kind}s", "resume", "never_heard_of").code == 0


def test_a_workflow_is_put_into_the_database_and_mistakes_have_their_place(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "put_here.yaml"
    file.write_text("name: put_here\nsteps:\n  a: {task: keep, with: {v: 1}}\n")
    first = shell("workflows", "put", str(file), "--json").json
    assert shell("run", "put_here", "-q").json == {"a": {"v": 1}}
    file.write_text(file.read_text().replace("v: 1", "v: 2"))
    done = shell("workflows", "put", str(file))
    assert done.out.startswith("workflow put_here is version ")
    assert done.out.split()[-1] != first[0]["version"]
    assert shell("run", "put_here", "-q").json == {"a": {"v": 2}}
    assert "put_here" in {each["name"] for each in shell("workflows", "--json").json}
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\nsteps:\n  a:\n    task: keep\n    compensate: {tsk: keep}\n")
    wrong = shell("workflows", "put", str(bad), str(file))
    assert wrong.code == 1
    assert wrong.err.startswith(f"pantheon: {bad}:5:18: 'compensate' has no 'tsk'; did you mean 'task'?")
    assert "put_here" in wrong.out
    ours = tmp_path / "ours.yaml"
    ours.write_text("name: shout_all\nsteps: {a: {task: keep}}\n")
    assert "comes from a file" in shell("workflows", "put", str(ours)).last_error
    assert shell("workflows", "put", str(tmp_path / "none.yaml")).code == 4
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    assert shell("workflows", "put", str(tmp_path / "binary.yaml")).code == 2


def test_the_check_knows_the_whole_language(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(
        "timeout: 1h\nbudget: {tokens: 5}\nconcurrency: {max: 1}\nschedule: {cron: '0 * * * *'}\n"
        "steps:\n  a: {workflow: shout_all}\n  b: {sleep: 5m}\n  c: {until: input.at}\n"
        "  d: {wait_for: {approval: x, from: [y], timeout: 1d}}\n"
        "  e: {task: keep, requires: {tags: [x]}, sticky: input.at, fallback: {result: 1},"
        " compensate: {task: keep, retry: {max_attempts: 2}}}\n"
    )
    assert shell("workflows", "check", str(tmp_path)).code == 0
    for line, message in (
        ("  b: {wait_for: {signl: x}}", "7:18: 'wait_for' has no 'signl'; did you mean 'signal'?"),
        ("  b: {task: x, requires: {modl: x}}", "7:27: 'requires' has no 'modl'; did you mean 'model'?"),
        ("  b: {task: x, compensate: {task: y, retry: {max: 1}}}", "7:46: 'retry' has no 'max'"),
        ("  b: {sleep: soon}", "7:7: steps.b.sleep: 'soon' is not a duration"),
        ("  b: {sleep: 1, task: x}", "7:3: steps.b: a step has exactly one of task, workflow, steps"),
    ):
        lines = (tmp_path / "all.yaml").read_text().splitlines()
        lines[6] = line
        (tmp_path / "wrong.yaml").write_text("\n".join(lines))
        done = shell("workflows", "check", str(tmp_path / "wrong.yaml"))
        assert done.code == 1
        assert f"{tmp_path}/wrong.yaml:{message}" in done.err


# -- dead letters ------------------------------------------------------------------------------------------------------


def publish(mesh: Mesh, body: bytes) -> None:
    async def send() -> None:
        client = await nats.connect(mesh.endpoints["nats_url"])
        await client.jetstream().publish("agent.words_agent.task", body)
        await client.close()

    asyncio.run(send())


def letters(shell: Shell, count: int) -> list[dict[str, Any]]:
    """The dead letters, as soon as there are so many."""
    end = time.monotonic() + WITHIN_SECONDS
    while len(found := shell("dead-letters", "list", "--json").json) != count:
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return list(found)


def test_dead_letters_are_listed_shown_and_sent_again(shell: Shell, running_mesh: Mesh) -> None:
    empty = shell("dead-letters", "list")
    assert (empty.code, empty.out, empty.err) == (0, "", "no dead letters\n")
    for body in (b'{"no": "id"}', b"\xff\xfe", b"plain words"):
        publish(running_mesh, body)
    found = letters(shell, 3)
    assert {each["reason"] for each in found} == {"not a TaskRequest"}
    assert "body_base64" not in found[0]
    text = shell("dead-letters", "list", "--name", "words_agent", "--reason", "TaskRequest").out
    assert text.splitlines()[0].split()[:2] == ["id", "agent"]
    assert all(each["id"] in text for each in found)
    assert shell("dead-letters", "list", "--name", "llm_agent").err == "no dead letters match\n"
    shown = {shell("dead-letters", "show", each["id"][-10:]).out.splitlines()[-1] for each in found}
    assert {"//4=", "plain words", "}"} == shown
    each = found[0]["id"]
    assert shell("dead-letters", "show", each, "--json").json["body_base64"]
    # They are no better for being sent again: each comes back, as another letter.
    assert shell("dead-letters", "redrive", each).out == f"{each}\n"
    letters(shell, 3)
    gone = shell("dead-letters", "redrive", each)
    assert (gone.code, gone.out) == (0, "")
    assert "(any more)" in gone.err
    assert shell("dead-letters", "show", each).code == 4
    everything = shell("dead-letters", "redrive", "--all", "--json").json["redriven"]
    assert len(everything) == 3
    assert not {letter["id"] for letter in letters(shell, 3)} & set(everything)
    assert len(shell("dead-letters", "redrive", "--name", "words_agent").out.split()) == 3
    assert shell("dead-letters", "redrive", "--reason", "no such reason").err == "0 sent again\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("redrive",), 2, "say which"),
        (("redrive", UNKNOWN, "--all"), 2, "say which"),
        (("show", "01"), 2, "too short"),
        (("show", "ffff-ffff"), 4, "has an id like 'ffff-ffff'"),
        (("show", UNKNOWN), 4, "there is no dead letter"),
    ],
)
def test_a_letter_that_is_nobodys_is_said_so(shell: Shell, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = shell("dead-letters", *arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.last_error
