"""The small parts: listings, units, files of a result, statuses, the request of the demo."""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from pantheon.cli import exit_codes
from pantheon.cli.commands.demo import demo_payload, find_example
from pantheon.cli.exit_codes import CommandError, ExitCode, exit_code_of
from pantheon.cli.input.request_folder import read_request
from pantheon.cli.progress.task_rows import awaited, is_wait, paths_of
from pantheon.cli.progress.why import lines_of
from pantheon.cli.render.listing import Cell, Column, fit, print_listing
from pantheon.cli.render.result_files import shortened, write_files
from pantheon.cli.render.units import clock, duration, parse_time, size
from protocol.errors import (
    BusError,
    NotAccepted,
    PantheonError,
    SettingsError,
    StackError,
    TaskCancelled,
    TaskFailed,
    UnknownTask,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0374, "37 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (3599.4, "59:59 min"),
        (3661, "1:01:01 h"),
        (3600 * 48, "2 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_times() -> None:
    assert [size(count) for count in (0, 1023, 1024, 20_000, 3_000_000)] == [
        "0 B",
        "1023 B",
        "1.0 kB",
        "20 kB",
        "2.9 MB",
    ]
    moment = parse_time("2026-01-02T03:04:05Z")
    assert moment == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse_time("2026-01-02T03:04:05") == moment
    assert parse_time("soon") is None
    assert parse_time(3) is None
    assert clock(None) == ""
    assert clock(moment, today=moment) == moment.astimezone().strftime("%H:%M:%S")
    assert clock(moment) == moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


COLUMNS = (
    Column("id"),
    Column("by", weight=1),
    Column("took", weight=2, right=True),
    Column("error", weight=3, flexible=True),
)


def listing(width: int, *, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    rows: list[list[Cell]] = [["i" * 10, "someone", "3 s", "e" * 60], [Text("j" * 10), "\x1b[31mred\n", "12 s", ""]]
    print_listing(console, COLUMNS, rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_pipe_gets_whole_lines_and_nothing_that_steers_a_terminal() -> None:
    lines = listing(40, terminal=False)
    assert lines[1] == f"{'i' * 10}  someone     3 s  {'e' * 60}"
    assert lines[2].startswith(f"{'j' * 10}   [31mred ")
    assert len(lines) == 3


def test_a_terminal_cuts_the_flexible_column_then_drops_others_but_never_the_id() -> None:
    assert max(map(len, listing(60, terminal=True))) <= 60
    assert "…" in listing(60, terminal=True)[1]
    narrow = listing(32, terminal=True)
    assert "someone" not in narrow[1]
    assert all("iiiiiiiiii" in line or "jjjjjjjjjj" in line for line in narrow[1:])
    assert fit(COLUMNS, [10, 5, 5, 60], 5)[0] == [0]
    assert fit((Column("x", flexible=True),), [50], 10) == ([0], [10])
    # A column that nobody fills is not there.
    assert fit(COLUMNS, [10, 0, 5, 0], 80)[0] == [0, 2]


def file_of(name: str, content: bytes = b"x") -> dict[str, str]:
    return {"filename": name, "content_base64": base64.b64encode(content).decode()}


def test_files_of_a_result_stay_in_their_folder(tmp_path: Path) -> None:
    result = {
        "files": [file_of("a.txt", b"1"), file_of("../../a.txt", b"2"), file_of("C:\\x\\.."), file_of("/etc/.hidden")],
        "deep": {"one": file_of("é" * 300 + ".md")},
        "note": "n",
    }
    written, paths = write_files(result, tmp_path / "new" / "out")
    assert [path.parent for path in paths] == [tmp_path / "new" / "out"] * 5
    assert sorted(path.name for path in paths)[:4] == ["a-2.txt", "a.txt", "file", "hidden"]
    assert (tmp_path / "new" / "out" / "a-2.txt").read_bytes() == b"2"
    assert written["files"][0] == {"filename": "a.txt", "path": str(tmp_path / "new" / "out" / "a.txt")}
    assert written["note"] == "n"
    again, _ = write_files(file_of("a.txt", b"3"), tmp_path / "new" / "out")
    assert Path(again["path"]).read_bytes() == b"3"


def test_files_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CommandError, match="cannot write"):
        write_files(file_of("a"), tmp_path / "taken")
    with pytest.raises(CommandError, match="not base64"):
        write_files({"filename": "a", "content_base64": "*"}, tmp_path)


def test_a_person_is_spared_the_contents_of_files() -> None:
    short, long = file_of("a"), file_of("b", b"x" * 100)
    shown = shortened({"files": [short, long], "n": 1})
    assert shown["files"][0] == short
    assert shown["files"][1]["content_base64"].endswith("… (--out DIR writes it)")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandError("x", ExitCode.TIMEOUT), ExitCode.TIMEOUT),
        (TaskFailed("x", code="c", response=None), ExitCode.FAILED),
        (TaskCancelled("x", code="c", response=None), ExitCode.CANCELLED),
        (UnknownTask("x"), ExitCode.NOT_FOUND),
        (SettingsError("x"), ExitCode.USAGE),
        (NotAccepted("x"), ExitCode.UNREACHABLE),
        (BusError("x"), ExitCode.UNREACHABLE),
        (StackError("x"), ExitCode.UNREACHABLE),
        (PantheonError("x"), ExitCode.FAILED),
    ],
)
def test_each_kind_of_error_has_its_status(error: PantheonError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


def test_errors_from_the_wire_are_known_by_their_codes() -> None:
    error = PantheonError("x")
    error.code = "unknown_task"
    assert exit_code_of(error) is ExitCode.NOT_FOUND


def test_every_status_is_documented() -> None:
    assert set(exit_codes.MEANINGS) == set(ExitCode)
    assert "124  --timeout passed" in exit_codes.table()


def test_a_request_takes_its_texts_from_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "one.md").write_text("one")
    (tmp_path / "rules.md").write_text("rules")
    (tmp_path / "request.yaml").write_text(
        "topic: t\nguidelines_file: rules.md\nsources:\n  - {title: One, file: s/one.md}\n  - plain\nfile: kept\n"
    )
    request = {
        "topic": "t",
        "guidelines": "rules",
        "sources": [{"title": "One", "text": "one"}, "plain"],
        "file": "kept",
    }
    assert read_request(tmp_path) == request
    assert read_request(tmp_path / "request.yaml") == request
    (tmp_path / "s" / "one.md").unlink()
    with pytest.raises(CommandError, match=r"one\.md"):
        read_request(tmp_path)
    with pytest.raises(CommandError, match="no such file"):
        read_request(tmp_path / "s")


def test_the_demo_asks_for_what_it_promises() -> None:
    assert demo_payload({"topic": "t"}) == {"topic": "t", "formats": ["html", "docx", "pdf"], "channels": ["site"]}
    kept = demo_payload({"formats": ["epub", "pdf"], "channels": [{"type": "site"}]})
    assert kept == {"formats": ["epub", "pdf", "html", "docx"], "channels": [{"type": "site"}]}


def test_the_repositorys_example_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = read_request(find_example(None))
    assert request["topic"]
    assert len(request["sources"]) >= 3
    assert all(source["text"] for source in request["sources"])
    assert find_example(tmp_path) == tmp_path


# -- rows of a task, and why -------------------------------------------------------------------------------------------


def test_a_row_waits_for_what_its_payload_says_unless_it_waits_for_an_attempt() -> None:
    row = {"task_id": "1", "step": "a", "status": "waiting", "attempt": 1, "payload": {"signal": "go"}}
    assert (is_wait(row), awaited(row)) == (True, "signal 'go'")
    for other in ({"attempt": 2}, {"role": "signal"}, {"step": None}, {"status": "completed"}):
        assert (is_wait({**row, **other}), awaited({**row, **other})) == (False, "")
    assert awaited({**row, "payload": None}) == ""


def test_a_compensation_of_an_item_stands_in_its_workflow() -> None:
    rows: list[dict[str, Any]] = [
        {"task_id": "r", "step": None},
        {"task_id": "f", "step": "each", "parent_task_id": "r"},
        {"task_id": "i", "step": "each", "item": 2, "parent_task_id": "f"},
        {"task_id": "u", "step": "each", "item": 2, "parent_task_id": "r", "role": "compensation"},
    ]
    assert paths_of(rows) == {"r": "", "f": "each", "i": "each[2]", "u": "each"}


def test_a_routing_decision_is_told_best_first_with_what_spoke_for_and_against() -> None:
    routing = {
        "chosen": "b_agent",
        "avoided": "slow_agent",
        "candidates": [
            {"agent": "c_agent", "score": 0.0, "excluded": "it is paused"},
            {"agent": "slow_agent", "score": 12.5, "outstanding": 3, "capacity": 4, "failure_rate": 0.25},
            {"agent": "b_agent", "score": 0.3, "outstanding": 0, "capacity": 9, "failure_rate": 0, "response_ms": 7.4},
            "odd",
        ],
    }
    rows: list[dict[str, Any]] = [
        {"task_id": "r", "step": None, "task_type": "flow"},
        {"task_id": "1", "parent_task_id": "r", "step": "x", "agent": "b_agent", "routing": routing},
        {"task_id": "2", "parent_task_id": "r", "step": "y", "agent": "z_agent", "routing": {"candidates": 7}},
    ]
    assert [line.plain for line in lines_of(rows)] == [
        "x: b_agent (rather not slow_agent, where the attempt before failed)",
        "  → b_agent     score 0.300  0 of 9 at work  7 ms  0% failures",
        "    slow_agent  score 12.500  3 of 4 at work  25% failures",
        "    c_agent     excluded: it is paused",
        "y: z_agent",
    ]
