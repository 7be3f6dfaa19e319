"""Logs: one pipe, JSON or console, ids bound, odd values survived."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pantheon.runtime.logs import bind_task, configure_logging, parse_traceparent, plain, set_level

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_carries_event_level_time_logger_and_what_is_bound() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    structlog.contextvars.bind_contextvars(agent="llm_agent")
    with bind_task("t1", "r1", traceparent=TRACEPARENT, attempt=2):
        structlog.get_logger("mine").info("a step has ended", seconds=1.5)
    structlog.get_logger("mine").info("outside")
    inside, outside = lines_of(stream)
    assert inside["event"] == "a step has ended"
    assert (inside["level"], inside["logger"], inside["seconds"]) == ("info", "mine", 1.5)
    assert (inside["task_id"], inside["root_task_id"], inside["attempt"]) == ("t1", "r1", 2)
    assert inside["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert inside["span_id"] == "b7ad6b7169203331"
    assert inside["timestamp"].endswith("Z")
    assert "task_id" not in outside
    assert outside["agent"] == "llm_agent"


def test_the_standard_librarys_lines_take_the_same_way_with_the_same_ids() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    with bind_task("t1"):
        logging.getLogger("library").warning("%s is slow", "it", extra={"count": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = lines_of(stream)
    assert (first["event"], first["count"], first["task_id"], first["logger"]) == ("it is slow", 3, "t1", "library")
    assert "DeprecationWarning" in second["event"]


def test_setting_up_twice_doubles_nothing_and_the_level_can_change() -> None:
    stream = io.StringIO()
    log = structlog.get_logger("early")
    configure_logging("info", "json", stream)
    configure_logging("info", "json", stream)
    log.debug("hidden")
    log.info("once")
    set_level("debug")
    log.debug("shown")
    assert [line["event"] for line in lines_of(stream)] == ["once", "shown"]


async def test_tasks_that_run_together_keep_their_ids_apart() -> None:
    stream = io.StringIO()
    configure_logging("info", "json", stream)

    async def work(task_id: str) -> None:
        with bind_task(task_id):
            await asyncio.sleep(0)
            structlog.get_logger().info(task_id)

    await asyncio.gather(*(work(f"t{number}") for number in range(5)))
    assert all(line["task_id"] == line["event"] for line in lines_of(stream))


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("style", ["json", "console"])
def test_odd_values_are_written_and_raise_nothing(style: Any) -> None:
    logging.getLogger().handlers.clear()  # pytest's own, which raise what a line raises
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    configure_logging("info", style, stream)
    log = structlog.get_logger()
    loop: list[Any] = []
    loop.append(loop)
    odd = {
        "b": b"\xff\x00",
        "s": "\ud800",
        "r": Rude(),
        "l": loop,
        "n": float("nan"),
        "d": {b"\xff": {1, 2}, Rude(): 1},
    }
    log.info("é \udcff", **odd)
    logging.getLogger("x").error("%s %d", "wrong number of arguments")
    try:
        raise ValueError("\udcff")
    except ValueError:
        log.exception("failed")
    text = raw.getvalue().decode("ascii")
    assert "cannot be shown" in text
    assert "ValueError" in text
    if style == "json":
        events = [json.loads(line)["event"] for line in text.splitlines()]
        assert events[0] == "é \\udcff"
        assert "could not be formed" in events[1]


def test_long_texts_are_cut_and_a_closed_stream_is_survived() -> None:
    assert len(plain("x" * 100_000)) < 10_100
    assert plain([[[[[[[1]]]]]]])[0][0][0][0][0][0] == "[1]"
    stream = io.StringIO()
    configure_logging("info", "auto", stream)
    stream.close()
    structlog.get_logger().info("to nobody")


def test_lines_go_to_the_stderr_of_the_moment_as_json_where_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "auto")
    structlog.get_logger().info("hello")
    captured = capsys.readouterr()
    assert json.loads(captured.err)["event"] == "hello"
    assert captured.out == ""


def test_a_terminal_gets_a_console() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure_logging("info", "auto", stream)
    structlog.get_logger().info("hello")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (TRACEPARENT, True),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-later", True),  # a version to come
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more", False),  # version 00 ends there
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),  # forbidden version
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),  # upper case
        ("rubbish", False),
        ("", False),
        (None, False),
    ],
)
def test_traceparent_is_read_as_the_specification_demands(header: str | None, valid: bool) -> None:
    trace = parse_traceparent(header)
    assert (trace is not None) is valid
    if trace is not None:
        assert trace.sampled is (header == TRACEPARENT)
