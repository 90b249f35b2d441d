"""Print tables in the terminal, whole: columns without room make a further table below, and no figure is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

NAME = 8  # letters of a name, at least: longer ones are folded
LONGEST = 24  # letters of a name that other columns make room for


def print_columns(
    console: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    bad: Sequence[bool] = (),
    name: int = NAME,
) -> None:
    """Print a column of names, which alone may be folded, and further ones; those without room make another table.

    Args:
        console: where to print.
        headers: of all columns, that of the names first. Cells below ``test ...`` and ``measured ...`` are aligned
            left, all others right.
        rows: a name and its cells.
        bad: for each row, whether it is red; empty: none is.
        name: letters that a name has at least before it is folded, as far as the widest column leaves them.
    """
    for columns in _with_room(console.width - name, headers, rows):
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        left = console.width - sum(width_of([headers[column], *(row[column] for row in rows)]) for column in columns)
        # A single column that leaves no room for the least of a name is folded too: it would be cut.
        width = max(console.width - NAME - 1, 1) if left < min(name, NAME) else None
        table.add_column(headers[0], overflow="fold", min_width=min(name, NAME if width else left))
        for header in (headers[column] for column in columns):
            justify: Literal["left", "right"] = "left" if header.startswith(("test ", "measured ")) else "right"
            table.add_column(header, justify=justify, no_wrap=width is None, width=width, overflow="fold")
        for row, red in zip(rows, bad or [False] * len(rows), strict=True):
            shown = [row[0], *(row[column] for column in columns)]
            table.add_row(*map(Text, shown), style="red" if red else None)  # Text: names are no markup
        console.print(table)
        console.print()


def width_of(texts: Sequence[str]) -> int:
    """Return the letters that a column of these texts takes, with the space beside it."""
    return 1 + max(cell_len(line) for text in texts for line in text.split("\n"))


def _with_room(room: int, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Return the columns behind the names, in groups that are at most ``room`` wide."""
    groups: list[list[int]] = [[]]
    left = room
    for column in range(1, len(headers)):
        width = width_of([headers[column], *(row[column] for row in rows)])
        if width > left and groups[-1]:
            groups.append([])
            left = room
        groups[-1].append(column)
        left -= width
    return groups
