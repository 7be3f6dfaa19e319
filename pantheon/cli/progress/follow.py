"""Follows a task live: feeds events and rows to a TaskTree, and draws it on a terminal or writes lines to a pipe."""

import asyncio
import contextlib
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from uuid import UUID

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from pantheon.cli.progress.tree import Change, TaskTree
from pantheon.cli.progress.view import draw, line_of
from pantheon.cli.render.output import is_live, stderr
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh
    from protocol.messages import TaskRequest, TaskResponse

REFRESH_PER_SECOND = 10
# A pipe gets at most one progress line of a step in this time.
PROGRESS_LINE_SECONDS = 5.0
# Events are published once and may be lost; the rows are the truth. They are read this often while a task is shown.
READ_ROWS_SECONDS = 3.0


class Display(Protocol):
    """Shows a tree that others change."""

    def changed(self, changes: list[Change]) -> None:
        """Called after each change of the tree."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveDisplay:
    """The tree redrawn in place; the last picture stays."""

    def __init__(self, tree: TaskTree, console: Console) -> None:
        self._tree = tree
        self._live = Live(
            self, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=False, redirect_stdout=False
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Room for the head, the bar and two lines of errors: the bar must stay on the screen.
        max_rows = max(4, console.height - 6)
        yield draw(self._tree, datetime.now(UTC), width=options.max_width, max_rows=max_rows)

    def changed(self, changes: list[Change]) -> None:
        """Nothing to do: the picture is redrawn at a fixed rate."""

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


class LineDisplay:
    """A line for each change."""

    def __init__(self, tree: TaskTree, console: Console) -> None:
        self._tree = tree
        self._console = console
        self._last_progress: dict[str, float] = {}

    def changed(self, changes: list[Change]) -> None:
        for change in changes:
            if change.kind == "progress" and not self._is_due(change.node.task_id):
                continue
            now = datetime.now(UTC)
            line = line_of(change, now)
            if line is not None:
                self._console.print(Text(f"{now.astimezone():%H:%M:%S} {line}"), soft_wrap=True)

    def _is_due(self, task_id: str) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._last_progress.get(task_id, now - PROGRESS_LINE_SECONDS - 1) < PROGRESS_LINE_SECONDS:
            return False
        self._last_progress[task_id] = now
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display_on(console: Console, tree: TaskTree) -> Display:
    """A live picture on a terminal, lines otherwise."""
    return LiveDisplay(tree, console) if is_live(console) else LineDisplay(tree, console)


async def follow(mesh: "Mesh", tree: TaskTree, display: Display) -> None:
    """Keep the tree current until the task has ended or this is cancelled; a failed query never fails the caller."""
    task_id = UUID(tree.task_id)

    async def watch() -> None:
        stream = mesh.watch(task_id)
        async with contextlib.aclosing(stream) as messages:  # type: ignore[type-var]
            async for message in messages:
                display.changed(tree.apply_message(message.kind, message.data, datetime.now(UTC)))

    async def read() -> None:
        while True:
            await read_rows(mesh, tree, display)
            if tree.root.ended:
                return
            await asyncio.sleep(READ_ROWS_SECONDS)

    feeds = [asyncio.create_task(watch(), name="watch"), asyncio.create_task(read(), name="read-rows")]
    try:
        await asyncio.wait(feeds, return_when=asyncio.ALL_COMPLETED)
    finally:
        for feed in feeds:
            feed.cancel()
        await asyncio.gather(*feeds, return_exceptions=True)


async def read_rows(mesh: "Mesh", tree: TaskTree, display: Display) -> None:
    """Apply the rows of a task; while no orchestrator responds, the tree stays as it is."""
    try:
        found = await mesh.query("task", {"task_id": tree.task_id, "brief": True})
    except PantheonError:
        return
    display.changed(tree.apply_rows(found.get("tasks", [])))


async def wait_with_progress(
    mesh: "Mesh", request: "TaskRequest", *, steps: list[str], quiet: bool = False, console: Console | None = None
) -> "TaskResponse":
    """Wait for the response of a submitted task and show its progress, on stderr unless a console is passed."""
    if quiet:
        return await mesh.wait(request.task_id)
    tree = TaskTree(str(request.task_id), request.task_type, planned=steps)
    tree.root.started_at = datetime.now(UTC)
    console = console or stderr()
    if not is_live(console):
        console.print(f"{datetime.now().astimezone():%H:%M:%S} {request.task_type} accepted as {tree.task_id}")
    with display_on(console, tree) as display:
        following = asyncio.create_task(follow(mesh, tree, display), name="follow")
        try:
            response = await mesh.wait(request.task_id)
            # Time for the last events to arrive; then the rows supply what was lost.
            await asyncio.wait({following}, timeout=0.5)
            await read_rows(mesh, tree, display)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        if not tree.root.ended:
            data = response.model_dump(mode="json", exclude_none=True)
            display.changed(tree.apply_message(f"task.{response.status}", data, datetime.now(UTC)))
    return response
