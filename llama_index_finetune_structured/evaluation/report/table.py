"""The scorecard as a rich table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from ..scorecard import Scorecard

__all__ = ["headline_fields", "percent", "table_of"]


def table_of(card: Scorecard) -> Table:
    """One line per system: valid, exact, each field, time an answer. Words are never broken."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{len(card.rows)} examples",
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("system", style="bold", min_width=_longest_word([*card.systems]))
    paths = headline_fields(card)
    for heading in ["valid", "exact", *_headings(card, paths), "time"]:
        table.add_column(heading, justify="right", min_width=_longest_word([heading]))
    for name, score in card.systems.items():
        fields = [_field(card, name, path) for path in paths]
        rates = [percent(score.schema_valid), percent(score.exact_match)]
        table.add_row(name, *rates, *fields, f"{score.seconds_per_answer:.1f} s")
    return table


def _longest_word(texts: list[str]) -> int:
    return max(len(word) for text in texts for word in text.split())


def headline_fields(card: Scorecard) -> list[str]:
    """The fields of the answer itself, without the parts of list items."""
    first = next(iter(card.systems.values()))
    return [path for path in first.fields if "[]" not in path]


def percent(rate: float) -> str:
    """A rate as a whole percentage; never rounded up to 100 or down to 0."""
    if 0.99 < rate < 1 or 0 < rate < 0.01:
        return f"{rate:.1%}" if 0.0005 <= rate <= 0.9995 else (">99.9%" if rate > 0.5 else "<0.1%")
    return f"{rate:.0%}"


def _headings(card: Scorecard, paths: list[str]) -> list[str]:
    first = next(iter(card.systems.values()))
    return [f"{path} F1" if first.fields[path].f1 is not None else path for path in paths]


def _field(card: Scorecard, name: str, path: str) -> str:
    return percent(card.systems[name].fields[path].headline)
