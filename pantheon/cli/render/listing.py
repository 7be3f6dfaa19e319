"""Listings: rows in columns that fit a terminal, and go whole into a pipe.

On a terminal that is too narrow, the least important columns are left out and the flexible one is cut, never an id.
In a pipe each row is one whole line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = 2
FLEXIBLE_MIN_CELLS = 16


@dataclass(frozen=True)
class Column:
    """`weight`: columns with a smaller weight are left out first, None never. `flexible`: may be cut, at most one."""

    name: str
    weight: int | None = None
    right: bool = False
    flexible: bool = False
    style: str = ""


Cell = str | Text


def print_listing(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under a head of column names."""
    cells = [[_text(cell, column) for cell, column in zip(row, columns, strict=True)] for row in rows]
    head = [Text(column.name, style="bright_black") for column in columns]
    widths = [max(cell_len(row[index].plain) for row in [head, *cells]) for index in range(len(columns))]
    shown = list(range(len(columns)))
    if console.is_terminal:
        shown, widths = fit(columns, widths, console.width)
    for row in [head, *cells]:
        line = Text()
        for index in shown:
            cell = row[index].copy()
            if cell_len(cell.plain) > widths[index]:
                cell.truncate(widths[index], overflow="ellipsis")
            space = " " * (widths[index] - cell_len(cell.plain))
            line.append_text(Text(space) + cell if columns[index].right else cell + Text(space))
            line.append(" " * GAP)
        line.rstrip()
        console.print(line, soft_wrap=True)


def _text(cell: Cell, column: Column) -> Text:
    text = cell if isinstance(cell, Text) else Text(cell, style=column.style)
    if text.plain.isprintable():
        return text
    # Text from the mesh must neither break the lines nor steer the terminal.
    return Text("".join(char if char.isprintable() else " " for char in text.plain), style=text.style)


def fit(columns: Sequence[Column], widths: Sequence[int], available: int) -> tuple[list[int], list[int]]:
    """Which columns to show, and how wide each is, so that a line has at most `available` cells where that can be."""
    shown = [index for index, width in enumerate(widths) if width > 0]
    fitted = list(widths)

    def total() -> int:
        return sum(fitted[index] for index in shown) + GAP * (len(shown) - 1)

    flexible = next((index for index in shown if columns[index].flexible), None)
    while total() > available:
        over = total() - available
        if flexible is not None and fitted[flexible] - over >= FLEXIBLE_MIN_CELLS:
            fitted[flexible] -= over
            break
        droppable = [index for index in shown if columns[index].weight is not None]
        if not droppable:
            if flexible is not None:
                fitted[flexible] = max(1, fitted[flexible] - over)
            break
        least = min(droppable, key=lambda index: columns[index].weight or 0)
        shown.remove(least)
        if least == flexible:
            flexible = None
    return shown, fitted
