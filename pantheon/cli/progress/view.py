"""Draws a TaskTree with rich: steps with status, agent, duration, and a bar; or writes its changes as plain lines."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from pantheon.cli.progress.tree import Change, Node, TaskTree
from pantheon.cli.render.units import clock, duration

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPINNER_FRAMES_PER_SECOND = 10
WAIT_SYMBOL = "◷"
BAR_WIDTH = 34
BAR_TEXT_WIDTH = 36
STEP_BAR_WIDTH = 12
PERCENT_WIDTH = len(" 100% ")
# Fewer cells of a progress message mean nothing.
MESSAGE_MIN_WIDTH = 8
WORD_WIDTH = 9
DURATION_WIDTH = 9
GAP = "  "

# Symbol and style of each status; a running step gets the spinner.
_SYMBOLS = {
    "planned": ("·", "bright_black"),
    "ready": ("○", "yellow"),
    "dispatched": ("", "cyan"),
    "running": ("", "cyan"),
    "waiting": ("↻", "yellow"),
    "paused": ("‖", "yellow"),
    "compensating": ("↶", "yellow"),
    "completed": ("✔", "green"),
    "failed": ("✘", "bold red"),
    "cancelled": ("⊘", "magenta"),
    "skipped": ("-", "bright_black"),
}
_WORDS = {
    "planned": "",
    "ready": "waits",
    "dispatched": "at work",
    "running": "at work",
    "waiting": "retries",
    "compensating": "undoing",
}
_ROLES = {"fallback": "fallback", "compensation": "undo", "signal": "signal", "delegated": "delegated"}
Rows = list[tuple[Node, tuple[bool, ...]]]
_DIMMED = frozenset({"planned", "skipped"})


def symbol_of(status: str, frame: int | None = None) -> tuple[str, str]:
    """The symbol and style of a status; `frame` is the spinner's, None for a picture that is drawn once."""
    symbol, style = _SYMBOLS.get(status, ("?", "white"))
    if not symbol:
        symbol = SPINNER[frame % len(SPINNER)] if frame is not None else "▸"
    return symbol, style


def frame_of(now: datetime) -> int:
    return int(now.timestamp() * SPINNER_FRAMES_PER_SECOND)


def draw(
    tree: TaskTree, now: datetime, *, live: bool = True, width: int = 100, max_rows: int | None = None
) -> RenderableType:
    """The whole picture. `live`: with a bar and spinners; else as a record of what happened."""
    parts: list[RenderableType] = [_head(tree, now, live)]
    steps = _steps(tree, now, live, width, max_rows)
    if steps:
        parts.append(steps)
    if live:
        parts.append(_bar(tree, now, width))
    parts += _errors(tree)
    return Group(*parts)


def _head(tree: TaskTree, now: datetime, live: bool) -> Text:
    symbol, style = symbol_of(tree.root.status, frame_of(now) if live else None)
    head = Text.assemble((symbol, style), " ", (tree.root.task_type or "task", "bold"))
    head.append(f"  {tree.task_id}", style="bright_black")
    seconds = tree.root.seconds(now)
    if not live and seconds is not None:
        head.append(f"  {tree.root.status} in {duration(seconds)}", style=style)
    return head


def _steps(tree: TaskTree, now: datetime, live: bool, width: int, max_rows: int | None) -> Text:
    """The steps in columns. A long progress message is cut; it never makes the other columns narrower."""
    rows = list(tree.walk())
    hidden = 0
    if max_rows is not None:
        rows, hidden = shorten(rows, max_rows)
    frame = frame_of(now) if live else None
    names = [_name(node, lasts, frame) for node, lasts in rows]
    name_width = max(min(24, width // 3), min(max(map(len, names), default=0), width * 2 // 5))
    agent_width = min(max((len(node.agent or "") for node, _ in rows), default=0), width // 4)
    # On a narrow terminal the symbol alone shows the status: the duration has no other column.
    columns = name_width + agent_width + WORD_WIDTH + DURATION_WIDTH + 3 * len(GAP)
    worded = columns <= width
    room = width - columns - len(GAP)
    lines: list[Text] = []
    for (node, _), name in zip(rows, names, strict=True):
        seconds = node.seconds(now)
        dim = "bright_black" if node.ended else ""
        line = _fitted(name, name_width)
        line.append_text(_fitted(Text(node.agent or "", style=dim), agent_width))
        if worded:
            line.append_text(_fitted(Text(_word(node), style=symbol_of(node.status)[1]), WORD_WIDTH))
        line.append(f"{duration(seconds) if seconds is not None else '':>{DURATION_WIDTH}}{GAP}", style=dim)
        if room >= PERCENT_WIDTH:
            line.append_text(_detail(node, tree, room))
        # Trailing spaces go first, or an ellipsis would stand for nothing.
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if hidden:
        lines.append(Text(f"   … {hidden} more", style="bright_black"))
    return Text("\n").join(lines)


def _word(node: Node) -> str:
    """The status in a word; a kept signal, and a step that waits for a signal, have words of their own."""
    if node.role == "signal":
        return {"waiting": "kept", "completed": "taken", "skipped": "not taken"}.get(node.status, node.status)
    if node.status == "waiting" and node.waits:
        return "waits"
    return _WORDS.get(node.status, node.status)


def _fitted(text: Text, width: int) -> Text:
    """Exactly `width` cells and a gap."""
    text = text.copy()
    text.truncate(width, overflow="ellipsis", pad=True)
    return text.append(GAP)


def shorten(rows: Rows, limit: int) -> tuple[Rows, int]:
    """The rows that fit into `limit`, and how many do not: children of ended steps go first, then ended items."""
    total = len(rows)
    if total > limit:
        ended = {node.task_id for node, _ in rows if node.ended}
        rows = [row for row in rows if row[0].parent_id not in ended]
    if len(rows) > limit:
        rows = [(node, lasts) for node, lasts in rows if not (node.is_item and node.ended)]
    # A line is needed for the number of hidden rows.
    return (rows, total - len(rows)) if len(rows) <= limit else (rows[: limit - 1], total - limit + 1)


def _name(node: Node, lasts: tuple[bool, ...], frame: int | None) -> Text:
    guide = "".join("   " if last else "│  " for last in lasts[:-1]) + ("└─ " if lasts[-1] else "├─ ")
    symbol, style = symbol_of(node.status, frame)
    if node.status == "waiting" and (node.waits or node.role == "signal"):
        # It neither works nor has failed.
        symbol = WAIT_SYMBOL
    text = Text.assemble((guide, "bright_black"), (symbol, style), " ")
    text.append(node.name, style="bright_black" if node.status in _DIMMED else "bold" if not node.ended else "")
    if node.iteration:
        text.append(f" (round {node.iteration + 1})", style="bright_black")
    if node.role:
        text.append(f" ({_ROLES.get(node.role, node.role)})", style="bright_black")
    return text


def _detail(node: Node, tree: TaskTree, room: int) -> Text:
    """What is shown of a step beside its columns; its bar is as long as `room` allows, never cut."""
    if node.ended:
        return Text(f"attempt {node.attempt}" if node.attempt > 1 else "", style="yellow")
    text = Text()
    if node.percent is not None and node.status == "dispatched":
        cells = max(0, min(STEP_BAR_WIDTH, room - PERCENT_WIDTH))
        done = round(node.percent / 100 * cells)
        text.append("━" * done, style="cyan").append("━" * (cells - done), style="bright_black")
        text.append(f" {node.percent:3.0f}% ")
        if node.attempt == 1 and room - text.cell_len < MESSAGE_MIN_WIDTH:
            return text
    if node.attempt > 1 and node.status in ("dispatched", "ready"):
        text.append(f"attempt {node.attempt} ", style="yellow")
    ended, begun = tree.items(node)
    if begun:
        text.append(f"{ended} done, {begun - ended} at work", style="bright_black")
    elif node.message:
        text.append(node.message, style="bright_black")
    elif node.streamed_chars:
        text.append(f"{node.streamed_chars:,} characters so far", style="bright_black")
    elif node.status == "waiting" and node.role == "signal":
        text.append("until a step waits for it", style="bright_black")
    elif node.status == "waiting" and node.waits:
        text.append(_wait(node), style="yellow")
    elif node.status == "compensating":
        text.append("what it did is undone", style="yellow")
    elif node.status == "waiting":
        text.append(f"attempt {node.attempt - 1} failed: {node.error}", style="yellow")
        if node.retry_at is not None:
            text.append(f"; next at {clock(node.retry_at)}", style="yellow")
    elif node.status == "ready":
        text.append("no agent has a free slot for it yet", style="yellow")
    return text


def _wait(node: Node) -> str:
    """`for approval 'release', until 14:03:07`; `until 14:03:07`."""
    until = f"until {clock(node.waits_until)}" if node.waits_until is not None else ""
    what = f"for {node.waits_for}" if node.waits_for else ""
    return ", ".join(part for part in (what, until) if part) or ("for a signal" if node.task_type == "wait_for" else "")


def _bar(tree: TaskTree, now: datetime, width: int) -> Text:
    ended, total = tree.counts()
    style = {"completed": "green", "failed": "red", "cancelled": "magenta"}.get(tree.root.status, "cyan")
    seconds = tree.root.seconds(now)
    words = f"{tree.fraction() * 100:3.0f}%"
    if total:
        words += f"   {ended} of {total} step{'s' if total != 1 else ''}"
    if seconds is not None:
        words += f"   {duration(seconds)}"
    cells = max(4, min(BAR_WIDTH, width - BAR_TEXT_WIDTH))
    halves = round(tree.fraction() * cells * 2)
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, style), ("━" * (cells - len(done)), "bright_black"), "  ", (words, style))


def _errors(tree: TaskTree) -> list[RenderableType]:
    """The errors of failed steps in full, below the tree, where there is room for them."""
    shown: list[RenderableType] = []
    for node, _ in tree.walk():
        if node.status == "failed" and node.error:
            code = f" ({node.error_code})" if node.error_code else ""
            shown.append(Text.assemble((f"✘ {node.path}{code}: ", "bold red"), node.error))
    if tree.root.status == "failed" and tree.root.error and not shown:
        code = f" ({tree.root.error_code})" if tree.root.error_code else ""
        shown.append(Text.assemble((f"✘{code} ", "bold red"), tree.root.error))
    return shown


def line_of(change: Change, now: datetime) -> str | None:
    """A change as a line for a log or a pipe; None for a change that is not shown."""
    node = change.node
    if not node.path:
        if change.kind == "compensating":
            return f"task {node.task_id} undoes what it did: {node.error}"
        if change.kind in ("paused", "resumed"):
            return f"task {node.task_id} {change.kind}"
        if change.kind == "signalled":
            return f"task {node.task_id}: {change.text}"
        if not node.ended:
            return None
        seconds = node.seconds(now)
        took = f" in {duration(seconds)}" if seconds is not None else ""
        # Its error is on the line of the failed step, or in the command's last line.
        return f"task {node.task_id} {node.status}{took}"
    role = f" ({_ROLES.get(node.role, node.role)})" if node.role else ""
    name = node.path + role + (f" (round {node.iteration + 1})" if node.iteration else "")
    again = f", attempt {node.attempt}" if node.attempt > 1 else ""
    seconds = node.seconds(now)
    took = f" in {duration(seconds)}" if seconds is not None else ""
    match change.kind:
        case "ready":
            return f"{name} waits for an agent"
        case "dispatched":
            return f"{name} given to {node.agent or 'an agent'}{again}"
        case "waiting" if node.role == "signal":
            return f"{name} is kept until a step waits for it"
        case "waiting" if node.waits:
            return f"{name} waits {_wait(node)}".rstrip()
        case "compensating":
            return f"{name} undoes what it did"
        case "waiting":
            return f"{name} failed, attempt {node.attempt - 1}: {node.error}; tries again"
        case "completed" | "cancelled":
            return f"{name} {change.kind}{took}{again}"
        case "failed":
            return f"{name} failed{took}{again}: {node.error}"
        case "skipped":
            return f"{name} skipped"
        case "progress":
            percent = f"{node.percent:.0f}%" if node.percent is not None else ""
            progress = ", ".join(part for part in (percent, change.text) if part)
            return f"{name}: {progress}" if progress else None
    return None
