"""The tree of a task: what events, progress and rows make of it in any order, and how it is drawn."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from pantheon.cli.progress.tree import Change, Node, TaskTree
from pantheon.cli.progress.view import draw, frame_of, line_of, shorten, symbol_of

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROOT = "root"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def step(name: str, *, task_id: str | None = None, parent: str = ROOT, **more: Any) -> dict[str, Any]:
    return {
        "root_task_id": ROOT,
        "task_id": task_id or name,
        "parent_task_id": parent,
        "step": name,
        "task_type": f"{name}_type",
        "iteration": 0,
        "attempt": 1,
        **more,
    }


def row(name: str | None, status: str, *, task_id: str | None = None, parent: str | None = ROOT, **more: Any) -> Any:
    return {
        "root_task_id": ROOT,
        "task_id": task_id or name or ROOT,
        "parent_task_id": parent if name else None,
        "step": name,
        "item": -1,
        "task_type": name or "flow",
        "status": status,
        "attempt": 1,
        "created_at": "2026-01-02T03:04:05Z",
        **more,
    }


def statuses(tree: TaskTree) -> dict[str, str]:
    return {node.path: node.status for node, _ in tree.walk()}


def drawn(tree: TaskTree, seconds: float = 10, *, live: bool = True, width: int = 100, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, legacy_windows=False, color_system=None)
    console.print(draw(tree, at(seconds), live=live, width=width, **options))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_a_step_goes_through_its_life() -> None:
    tree = TaskTree(ROOT, "flow", planned=["a", "b"])
    assert statuses(tree) == {"a": "planned", "b": "planned"}
    tree.apply_message("step.ready", step("a"), at(0))
    tree.apply_message("step.dispatched", step("a", agent="x_agent"), at(1))
    tree.apply_message("progress", {"task_id": "a", "percent": 50, "message": "half\nway", "text": "abc"}, at(2))
    node = tree.nodes["a"]
    assert (node.agent, node.percent, node.message, node.streamed_chars) == ("x_agent", 50.0, "half way", 3)
    assert tree.counts() == (0, 2)
    assert tree.fraction() == 0.25
    tree.apply_message("step.completed", step("a", agent="x_agent"), at(3))
    assert statuses(tree) == {"a": "completed", "b": "planned"}
    assert node.seconds(at(99)) == 3.0
    assert tree.fraction() == 0.5
    tree.apply_message("task.completed", {"task_id": ROOT, "task_type": "flow"}, at(4))
    assert tree.root.ended
    assert tree.fraction() == 1.0


def test_what_is_late_or_said_twice_changes_nothing() -> None:
    tree = TaskTree(ROOT)
    tree.apply_message("step.completed", step("a", attempt=2), at(5))
    for late in (step("a"), step("a", attempt=2)):
        assert tree.apply_message("step.dispatched", late, at(6)) == []
    assert tree.apply_message("step.completed", step("a", attempt=2), at(7)) == []
    assert tree.apply_message("progress", {"task_id": "a", "percent": 3}, at(8)) == []
    assert tree.nodes["a"].status == "completed"
    assert tree.nodes["a"].ended_at == at(5)


def test_an_attempt_that_failed_waits_for_the_next_and_its_error_goes_with_success() -> None:
    tree = TaskTree(ROOT)
    tree.apply_message("step.dispatched", step("a", agent="x_agent"), at(0))
    error = {"code": "busy", "message": "come\nback"}
    tree.apply_message("step.retrying", step("a", attempt=1, error=error), at(1))
    node = tree.nodes["a"]
    assert (node.status, node.attempt, node.error) == ("waiting", 2, "come back")
    assert "attempt 1 failed: come back" in drawn(tree)
    tree.apply_message("step.dispatched", step("a", attempt=2, agent="x_agent"), at(2))
    assert (node.status, node.error) == ("dispatched", "")
    assert "attempt 2" in drawn(tree)


def test_rows_repair_what_was_lost_and_events_that_are_older_do_not_revert_it() -> None:
    tree = TaskTree(ROOT)
    changes = tree.apply_rows([row(None, "running"), row("a", "dispatched", agent="x_agent", attempt=3)])
    assert [(change.node.path, change.kind) for change in changes] == [("a", "dispatched")]
    assert tree.apply_message("step.retrying", step("a", attempt=1), at(1)) == []
    assert tree.apply_message("step.dispatched", step("a", attempt=3), at(1)) == []
    ended = row("a", "completed", attempt=3, completed_at="2026-01-02T03:04:07Z")
    changes = tree.apply_rows([row(None, "completed", completed_at="2026-01-02T03:04:08Z"), ended])
    assert [(change.node.path, change.kind) for change in changes] == [("a", "completed"), ("", "completed")]
    assert tree.nodes["a"].seconds(at(99)) == 2.0
    assert tree.root.seconds(at(99)) == 3.0
    assert tree.apply_rows([row("a", "dispatched", attempt=3)]) == []


def test_a_row_that_waits_and_the_event_of_its_wait_are_the_same() -> None:
    tree = TaskTree(ROOT)
    tree.apply_rows([row("a", "waiting", attempt=2, run_after="2026-01-02T03:05:00Z", error={"message": "no"})])
    assert tree.apply_message("step.retrying", step("a", attempt=1), at(1)) == []
    assert "next at" in drawn(tree)
    assert len(tree.apply_message("step.dispatched", step("a", attempt=2), at(2))) == 1


def test_a_sub_workflow_that_no_event_began_is_there_with_its_first_step() -> None:
    tree = TaskTree(ROOT, planned=["draft", "export"])
    tree.apply_message("step.dispatched", step("draft/review", task_id="r", parent="d"), at(0))
    assert statuses(tree) == {"draft": "running", "draft/review": "dispatched", "export": "planned"}
    tree.apply_message("step.completed", step("draft/review", task_id="r", parent="d"), at(1))
    # More of its steps may come.
    assert 0 < tree.fraction() < 0.5
    tree.apply_message("step.completed", step("draft", task_id="d"), at(2))
    assert tree.fraction() == 0.5
    text = drawn(tree)
    assert "├─ ✔ draft" in text
    assert "│  └─ ✔ review" in text
    assert "└─ · export" in text


def test_rounds_of_a_repeated_step_are_told_apart() -> None:
    tree = TaskTree(ROOT, planned=["draft"])
    tree.apply_message("step.completed", step("draft", task_id="d1"), at(1))
    tree.apply_message("step.dispatched", step("draft", task_id="d2", iteration=1), at(2))
    assert tree.counts() == (0, 1)
    assert "draft (round 2)" in drawn(tree)


def test_items_of_a_fan_out_are_below_their_step() -> None:
    rows = [
        row(None, "running"),
        row("notes", "running"),
        row("notes", "completed", task_id="n0", parent="notes", item=0),
        row("notes", "running", task_id="n1", parent="notes", item=1),
        row("sum", "dispatched", task_id="s1", parent="n1", agent="llm_agent"),
    ]
    by_rows = TaskTree(ROOT)
    by_rows.apply_rows(rows)
    assert list(statuses(by_rows)) == ["notes", "notes[0]", "notes[1]", "notes[1]/sum"]
    assert by_rows.items(by_rows.nodes["notes"]) == (1, 2)
    assert "1 done, 1 at work" in drawn(by_rows)
    by_events = TaskTree(ROOT)
    by_events.apply_message("step.dispatched", step("notes[1]/sum", task_id="s1", parent="n1"), at(0))
    by_events.apply_message("step.completed", step("notes[1]", task_id="n1", parent="notes", item=1), at(1))
    assert by_events.nodes["notes"].path == "notes"
    assert by_events.nodes["n1"].path == "notes[1]"


def test_a_failure_is_told_in_the_agents_own_words_where_its_step_is_named() -> None:
    tree = TaskTree(ROOT)
    error = {"code": "step_failed", "message": "step 'a' failed: no", "details": {"code": "bad", "message": "no"}}
    changes = tree.apply_message("step.failed", step("a", error=error), at(1))
    changes += tree.apply_message("task.failed", {"task_id": ROOT, "error": error}, at(1))
    assert tree.root.error == "step 'a' failed: no"
    text = drawn(tree)
    assert "✘ a (bad): no" in text
    assert [line_of(change, at(1)) for change in changes] == ["a failed: no", f"task {ROOT} failed"]


def test_a_refused_task_shows_its_own_error() -> None:
    tree = TaskTree(ROOT)
    tree.apply_rows([row(None, "failed", error={"code": "invalid_request", "message": "payload: no"})])
    assert "✘ (invalid_request) payload: no" in drawn(tree, live=False)


def test_what_is_not_about_the_task_is_left_alone() -> None:
    tree = TaskTree(ROOT)
    for kind, data in (
        ("task.completed", {"task_id": "other"}),
        ("agent.registered", {"agent": "x"}),
        ("step.unheard", step("a")),
        ("step.ready", {"no": "id"}),
        ("progress", {"task_id": "nobody", "percent": 1}),
    ):
        assert tree.apply_message(kind, data, at(0)) == []
    assert tree.apply_message("task.started", {"task_id": ROOT, "task_type": "flow"}, at(3)) == []
    assert (tree.root.task_type, tree.root.started_at, tree.root.ended) == ("flow", at(3), False)


def test_odd_rows_do_no_harm() -> None:
    tree = TaskTree(ROOT)
    loop = [row("a", "ready", task_id="1", parent="2"), row("b", "ready", task_id="2", parent="1")]
    tree.apply_rows([row(None, "running", created_at="soon"), *loop])
    assert tree.nodes["1"].status == "ready"
    assert drawn(tree)


def test_the_live_picture_has_a_bar_and_the_record_has_none() -> None:
    tree = TaskTree(ROOT, "flow", planned=["a", "b"])
    tree.apply_message("step.completed", step("a"), at(1))
    live = drawn(tree)
    assert "━" in live
    assert "50%" in live
    assert "1 of 2 steps" in live
    tree.apply_rows([row(None, "completed", task_type="flow", completed_at="2026-01-02T03:04:35Z")])
    record = drawn(tree, live=False)
    assert "━" not in record
    assert "completed in 30 s" in record


def test_the_picture_fits_narrow_terminals_and_low_ones() -> None:
    tree = TaskTree(ROOT, "flow")
    tree.apply_message("step.dispatched", step("many", task_id="m"), at(0))
    for number in range(50):
        event = "step.completed" if number < 45 else "step.dispatched"
        tree.apply_message(event, step(f"many[{number}]", task_id=str(number), parent="m", agent="some_agent"), at(1))
    text = drawn(tree, width=40, max_rows=4)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert "… 48 more" in text
    assert "0 of 1 step" in text
    rows = list(tree.walk())
    assert shorten(rows, 100) == (rows, 0)
    assert shorten(rows, 6)[1] == 45
    closed = TaskTree(ROOT)
    closed.apply_message("step.completed", step("a/b", task_id="b", parent="a"), at(0))
    closed.apply_message("step.completed", step("a", task_id="a"), at(1))
    closed.apply_message("step.dispatched", step("c"), at(1))
    assert [node.path for node, _ in shorten(list(closed.walk()), 2)[0]] == ["a", "c"]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        # The bar gives way first, then all beside the columns, then the status's word; never a part of a column.
        (100, "examination_agent at work 10 s ━━━━━━━━━━━━ 39% reading"),
        (80, "examination_agent at work 10 s ━━━━━━━ 39%"),
        (68, "examination_agent at work 10 s"),
        (50, "examination… 10 s"),
    ],
)
def test_a_step_at_work_is_drawn_whole_at_every_width(width: int, shown: str) -> None:
    tree = TaskTree(ROOT, "flow")
    tree.apply_message("step.dispatched", step("review", agent="examination_agent"), at(0))
    tree.apply_message("progress", {"task_id": "review", "percent": 39, "message": "reading"}, at(1))
    line = next(line for line in drawn(tree, width=width).splitlines() if "review" in line)
    assert " ".join(line.split()).endswith(f"review {shown}")


def test_each_status_has_a_look_and_the_spinner_turns() -> None:
    assert symbol_of("completed") == ("✔", "green")
    assert symbol_of("from_the_future") == ("?", "white")
    assert symbol_of("running", frame_of(at(0)))[0] != symbol_of("running", frame_of(at(0.1)))[0]
    assert symbol_of("running")[0] == "▸"


def test_lines_say_what_happened() -> None:
    def line(kind: str, text: str = "", **fields: Any) -> str | None:
        return line_of(Change(Node("1", "a/b", **{"status": kind, **fields}), kind, text), at(2))

    assert line("ready") == "a/b waits for an agent"
    assert line("dispatched", agent="x_agent", attempt=2) == "a/b given to x_agent, attempt 2"
    assert line("waiting", attempt=2, error="busy") == "a/b failed, attempt 1: busy; tries again"
    assert line("completed", started_at=at(0), ended_at=at(1), iteration=1) == "a/b (round 2) completed in 1.0 s"
    assert line("skipped") == "a/b skipped"
    assert line("cancelled") == "a/b cancelled"
    assert line("progress", "reading", percent=12.4) == "a/b: 12%, reading"
    assert line("progress") is None
    assert line("unheard") is None
    assert line_of(Change(Node(ROOT, "", status="running"), "running"), at(0)) is None


def test_streamed_text_is_counted() -> None:
    tree = TaskTree(ROOT)
    tree.apply_message("step.dispatched", step("a"), at(0))
    tree.apply_message("progress", {"task_id": "a", "text": "x" * 1234}, at(1))
    assert "1,234 characters so far" in drawn(tree)


def test_a_step_without_an_agent_says_so() -> None:
    tree = TaskTree(ROOT)
    tree.apply_message("step.ready", step("a"), at(0))
    assert "no agent has a free slot for it yet" in drawn(tree)


# -- waits, roles, pauses ----------------------------------------------------------------------------------------------


def test_a_step_that_waits_says_for_what_and_until_when() -> None:
    tree = TaskTree(ROOT, planned=["ok", "nap"])
    changes = tree.apply_message("step.waiting", step("ok", task_type="wait_for", waits_for="release"), at(0))
    changes += tree.apply_message("step.waiting", step("nap", task_type="sleep"), at(0))
    assert [line_of(change, at(0)) for change in changes] == ["ok waits for 'release'", "nap waits"]
    assert "for 'release'" in drawn(tree)
    until = {"run_after": "2026-01-02T05:00:00Z"}
    payload = {"approval": "release"}
    tree.apply_rows(
        [row(None, "running"), row("ok", "waiting", payload=payload, **until), row("nap", "waiting", **until)]
    )
    text = drawn(tree)
    assert "for approval 'release', until " in text
    assert text.count("until ") == 2
    assert "failed" not in text
    tree.apply_message("step.completed", step("ok"), at(3))
    assert statuses(tree)["ok"] == "completed"
    plain = TaskTree(ROOT)
    plain.apply_rows([row(None, "running"), row("ok", "waiting", task_type="wait_for")])
    assert "for a signal" in drawn(plain)


def test_what_is_beside_the_steps_is_told_apart_stands_behind_and_does_not_count() -> None:
    tree = TaskTree(ROOT, planned=["a", "go"])
    tree.apply_rows(
        [
            row(None, "compensating"),
            row("a", "failed", error={"code": "bad", "message": "no"}),
            row("a", "completed", task_id="f", role="fallback"),
            row("a", "dispatched", task_id="c", role="compensation", item=3),
            row("go", "waiting", task_id="s", role="signal", task_type="signal"),
            row("loud", "running", task_id="d", parent="f", role="delegated"),
        ]
    )
    lines = [line.strip() for line in drawn(tree).splitlines()]
    order = ["a ", "a (fallback)", "loud (delegated)", "go", "a (undo)", "go (signal)"]
    positions = [next(index for index, line in enumerate(lines) if f" {name}" in line) for name in order]
    assert positions == sorted(positions)
    assert "kept" in lines[positions[-1]]
    assert tree.counts() == (1, 2)
    assert tree.nodes["c"].path == "a"
    taken = TaskTree(ROOT)
    taken.apply_rows([row(None, "completed"), row("go", "completed", task_id="s", role="signal")])
    assert "taken" in drawn(taken, live=False)


def test_the_task_itself_pauses_goes_on_is_signalled_and_compensates() -> None:
    tree = TaskTree(ROOT, "flow")
    task = {"task_id": ROOT, "task_type": "flow"}
    changes = tree.apply_message("task.paused", task, at(0))
    assert tree.root.status == "paused"
    assert "‖ flow" in drawn(tree)
    changes += tree.apply_message("task.resumed", task, at(1))
    assert tree.root.status == "running"
    changes += tree.apply_message("task.signalled", {**task, "signal": "go", "by": "anna"}, at(2))
    changes += tree.apply_message("task.signalled", {**task, "signal": "go", "by": None}, at(2))
    changes += tree.apply_message(
        "task.compensating", {**task, "error": {"code": "cancelled", "message": "enough"}}, at(3)
    )
    assert tree.root.status == "compensating"
    assert [line_of(change, at(3)) for change in changes] == [
        f"task {ROOT} paused",
        f"task {ROOT} resumed",
        f"task {ROOT}: 'go' given by anna",
        f"task {ROOT}: 'go' given",
        f"task {ROOT} undoes what it did: enough",
    ]
    tree.apply_message("task.cancelled", task, at(4))
    assert tree.apply_message("task.paused", task, at(5)) == []


def test_a_sub_workflow_that_compensates_and_the_roles_that_events_tell() -> None:
    tree = TaskTree(ROOT)
    tree.apply_message("step.dispatched", step("sub/x", task_id="x", parent="sub"), at(0))
    changes = tree.apply_message("step.compensating", step("sub", task_id="sub", error={"message": "no"}), at(1))
    assert "what it did is undone" in drawn(tree)
    changes += tree.apply_message(
        "step.dispatched", step("sub/x", task_id="u", parent="sub", role="compensation"), at(2)
    )
    changes += tree.apply_rows([row(None, "running"), row("go", "waiting", task_id="s", role="signal")])
    assert [line_of(change, at(2)) for change in changes] == [
        "sub undoes what it did",
        "sub/x (undo) given to an agent",
        "go (signal) is kept until a step waits for it",
    ]
