"""Tables for the terminal that show every figure at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ...printable import one_line, printable

__all__ = ["FittedTable", "print_result"]


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
        lines = [self.headings, *self.rows]
        for title, part in zip(_titles(self.title), self._fitting(console, options, lines), strict=False):
            yield _table(title, part)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, _table(self.title, [self.headings, *self.rows]))

    def _fitting(
        self, console: Console, options: ConsoleOptions, lines: Sequence[Sequence[str]]
    ) -> list[list[Sequence[str]]]:
        """The lines as one table where it fits, else with rows and columns exchanged, in one or more parts."""

        def fits(part: Sequence[Sequence[str]]) -> bool:
            needed = Measurement.get(console, options.update(max_width=_ANY_WIDTH), _table("", part))
            return needed.maximum <= options.max_width

        if fits(lines):
            return [list(lines)]
        turned = [list(cells) for cells in zip(*lines, strict=True)]
        parts: list[list[list[str]]] = []
        for column in range(1, len(lines)):
            wider = [[*line, turned[at][column]] for at, line in enumerate(parts[-1])] if parts else []
            if wider and fits(wider):
                parts[-1] = wider
            else:
                parts.append([[line[0], line[column]] for line in turned])
        return [list(part) for part in parts]


_ANY_WIDTH = 1_000_000


def _titles(title: str) -> Iterator[str]:
    yield title
    while True:
        yield ""


def _table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    out = Table(
        box=box.SIMPLE_HEAD,
        title=Text(one_line(title)) if title else None,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    for at, heading in enumerate(lines[0]):
        out.add_column(
            Text(one_line(heading)),
            justify="right" if at else "left",
            style="" if at else "bold",
            overflow="fold",
        )
    for line in lines[1:]:
        out.add_row(*(Text(one_line(cell)) for cell in line))
    return out


def print_result(table: FittedTable, *lines: str) -> None:
    """Print a table and the lines below it, on stdout."""
    console = Console()
    console.print(table)
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
