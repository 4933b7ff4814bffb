"""Tables for the terminal that show every figure at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from ...printable import one_line, printable

__all__ = ["FittedTable", "print_plain", "print_result"]


@dataclass(frozen=True)
class FittedTable:
    """A table whose first column names the rows; printed with rich, it never leaves out or cuts a cell.

    Where the table is wider than the terminal, rows and columns are exchanged; where it is still wider, it is
    divided into several tables below each other, and at the narrowest words are broken.

    Attributes:
        title: Text above the table.
        headings: One for each column.
        rows: The cells, as text.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        title = self.title
        for lines in self._parts(width):
            yield _table(title, lines, width)
            title = ""

    def _parts(self, width: int) -> list[list[Sequence[str]]]:
        """The lines as one table where it fits, else with rows and columns exchanged, in one or more parts."""
        lines: list[Sequence[str]] = [self.headings, *self.rows]
        if _total(_least_widths(lines)) <= width:
            return [lines]
        first, *others = zip(
            *lines, strict=True
        )  # lines of the exchanged table: the cells of one column each
        parts: list[list[Sequence[str]]] = []
        for at in range(1, len(lines)):
            start = at - (len(parts[-1][0]) - 1 if parts else 0)
            wider = [[line[0], *line[start : at + 1]] for line in (first, *others)]
            if parts and _total(_least_widths(wider)) <= width:
                parts[-1] = list(wider)
            else:
                parts.append([[line[0], line[at]] for line in (first, *others)])
        return parts


_GAP = 2  # columns between two cells: rich's padding of 1 on each side, collapsed, and the separator


def _total(widths: Sequence[int]) -> int:
    """Width of a table with columns of these widths."""
    return sum(widths) + _GAP * (len(widths) + 1)


def _least_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Width of each column in which no word of the headings and names is broken and no figure is wrapped."""
    headings, *rows = [[one_line(cell) for cell in line] for line in lines]
    names = max(_longest_word(text) for text in (headings[0], *(row[0] for row in rows)))
    figures = zip(*(row[1:] for row in rows), strict=True)
    least = [_longest_word(heading) for heading in headings[1:]]
    return [names, *(max([low, *map(cell_len, cells)]) for low, cells in zip(least, figures, strict=True))]


def _column_widths(lines: Sequence[Sequence[str]], width: int) -> Sequence[int | None]:
    """Width of each column, which gets of the spare width what it can use; None where words must be broken.

    Rich itself narrows the widest column first, also below its longest word.
    """
    widths = _least_widths(lines)
    spare = width - _total(widths)
    if spare < 0:
        return [None] * len(widths)
    for at, cells in enumerate(zip(*lines, strict=True)):
        more = min(spare, max(cell_len(one_line(cell)) for cell in cells) - widths[at])
        widths[at] += more
        spare -= more
    return widths


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _table(title: str, lines: Sequence[Sequence[str]], width: int) -> Table:
    out = Table(
        box=box.SIMPLE_HEAD,
        title=Text(one_line(title)) if title else None,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    widths = _column_widths(lines, width)
    for at, heading in enumerate(lines[0]):
        out.add_column(
            Text(one_line(heading)),
            justify="right" if at else "left",
            style="" if at else "bold",
            overflow="fold",
            width=widths[at],
        )
    for line in lines[1:]:
        out.add_row(*(Text(one_line(cell)) for cell in line))
    return out


def print_result(table: FittedTable, *lines: str) -> None:
    """Print a table and the lines below it, on stdout."""
    console = Console()
    console.print(table)
    for line in lines:
        print_plain(console, line)


def print_plain(console: Console, text: str) -> None:
    """Print text from data as it is, on lines of any length: no markup, no names of emojis (``:100:``), no control."""
    console.print(Text(printable(text)), highlight=False, soft_wrap=True)
