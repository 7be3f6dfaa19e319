"""Following a task live: its events and rows into a TaskTree, the tree onto a terminal or as lines into a pipe."""

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
from pantheon.cli.render.output import is_live
from protocol.errors import PantheonError

if TYPE_CHECKING:
    from pantheon.client.mesh import Mesh

REFRESH_PER_SECOND = 10
# A pipe gets no more than this of what an agent says on its way.
PROGRESS_LINE_SECONDS = 5.0
# Events are said once and may be lost; the rows are the truth. Looked at this often while somebody watches.
READ_ROWS_SECONDS = 3.0


class Display(Protocol):
    """Shows a tree that others change."""

    def changed(self, changes: list[Change]) -> None:
        """The tree is different."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LiveDisplay:
    """A picture that is drawn over and over in place, and stays when it is done."""

    def __init__(self, tree: TaskTree, console: Console) -> None:
        self._tree = tree
        self._live = Live(
            self, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=False, redirect_stdout=False
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Head, bar, a line of an error or two: the bar must never be what falls off the screen.
        max_rows = max(4, console.height - 6)
        yield draw(self._tree, datetime.now(UTC), width=options.max_width, max_rows=max_rows)

    def changed(self, changes: list[Change]) -> None:
        """Nothing to do: the picture is drawn anew all the time."""

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


class LineDisplay:
    """A line for each thing that happens."""

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
    """A picture where there is a terminal, lines elsewhere."""
    return LiveDisplay(tree, console) if is_live(console) else LineDisplay(tree, console)


async def follow(mesh: "Mesh", tree: TaskTree, display: Display) -> None:
    """Keep the tree current until cancelled or the task has ended; never fails for what only shows."""
    task_id = UUID(tree.task_id)

    async def watch() -> None:
        stream = mesh.watch(task_id)
        async with contextlib.aclosing(stream) as seen_ones:  # type: ignore[type-var]
            async for seen in seen_ones:
                display.changed(tree.see(seen.kind, seen.data, datetime.now(UTC)))

    async def read() -> None:
        while True:
            await read_rows(mesh, tree, display)
            if tree.root.ended:
                return
            await asyncio.sleep(READ_ROWS_SECONDS)

    parts = [asyncio.create_task(watch(), name="watch"), asyncio.create_task(read(), name="read-rows")]
    try:
        await asyncio.wait(parts, return_when=asyncio.ALL_COMPLETED)
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)


async def read_rows(mesh: "Mesh", tree: TaskTree, display: Display) -> None:
    """Take the rows of a task; where nobody answers just now, what is shown stays as it is."""
    try:
        answer = await mesh.query("task", {"task_id": tree.task_id, "brief": True})
    except PantheonError:
        return
    display.changed(tree.read(answer.get("tasks", [])))
