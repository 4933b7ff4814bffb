"""``Scorecard``: the results of a comparison with its reports: JSON, terminal table, picture, HTML page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_frames import data_frame
from ..files import PUBLIC, write_text
from ..llms.prices import Prices
from ..notebook_html import escape, folded
from ..printable import one_line
from .report.answer_rows import ANSWER_COLUMNS, answer_rows, errors_csv
from .report.card import PrintedCard
from .report.charts import picture_of
from .report.costs import BreakEven, break_even
from .report.gap import Gap, gaps
from .report.html_tables import field_tables, metrics_table
from .report.page import page_of
from .report.slices import SliceBy, slices
from .report.terminal import FittedTable
from .report.text import terminal_table, verdict_of
from .results import ScoredRow, ScoreTable
from .score.metrics import Metrics

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Scorecard"]


class Scorecard(ScoreTable, PrintedCard):
    """All systems side by side on the same rows. Rates are from 0 to 1, times in seconds.

    Attributes:
        systems: Name -> figures: ``schema_valid``, ``exact_match``, ``field_score``, ``fields`` (by path),
            ``intervals`` (by metric), ``seconds_per_answer``, ``errors`` (kind -> count) and others.
        differences: Of every system to the first one and to the teacher, in every metric.
        rows: Every example with every system's answer.
        trust: System -> how far the probabilities of its answers can be trusted, for systems that give any.
        refusals: System -> how well it says that a text is of another kind (an answer of null, or without any value),
            where gold answers do: ``precision`` and ``recall``.
        left_out: The examples that were not asked, since their own answer is not valid, each with the reason.
        settings: Facts about the run, for readers: ``concurrency``, ``timeout_s`` and ``compare``'s notes.
        created: Time of the comparison, ISO 8601, UTC.
    """

    def verdict(self) -> str:
        """The main result in a sentence or two, with 95% intervals."""
        return verdict_of(self)

    def slices(self, by: SliceBy | Callable[[ScoredRow], str]) -> dict[str, dict[str, Metrics]]:
        """Slice -> system -> metrics, over parts of the rows.

        Args:
            by: "document", "split", "answer_length" (thirds by the characters of the gold answer), or a
                function of a row that returns the name of its slice.

        Returns:
            Slices in the order of their first row; lengths from short to long.
        """
        return slices(self, by)

    def gaps(self) -> dict[str, Gap]:
        """System -> field score on training rows minus that on held-out rows; empty without rows of both."""
        return gaps(self)

    def break_even(self, student: str, prices: Prices) -> BreakEven:
        """The number of queries after which ``student`` has paid for itself.

        The teacher's cost comes from the token counts of the gold answers (``Example.usage``).

        Args:
            student: Name of a system.
            prices: Prices of teacher and student.

        Raises:
            ConfigurationError: No row has token counts, or there is no such system.
        """
        return break_even(self, student, prices)

    def save_errors(self, path: str | os.PathLike[str]) -> Path:
        """Write the wrong fields of all systems' answers as CSV, atomically, for a spreadsheet; one field a line.

        Columns: example, document, question, system, field, kind ("wrong", "missing", "invented"; for a whole answer
        "invalid" or "failed"), gold, answer, error, and the answer's probability. Values that are no text are JSON.
        A text that a spreadsheet would take for a formula begins with an apostrophe.

        Args:
            path: The CSV file; one that exists is replaced.

        Returns:
            ``path``.
        """
        return write_text(Path(path), errors_csv(self))

    def to_pandas(self) -> DataFrame:
        """A DataFrame with a row for each example and system; column ``right.<field>``: whether a field is right.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        columns = [*ANSWER_COLUMNS, *(f"right.{path}" for path in self.field_kinds)]
        return data_frame(answer_rows(self), columns)

    def _repr_html_(self) -> str:
        """Verdict and figures, for notebooks."""
        more = folded("field by field", field_tables(self))
        problems = "".join(f"<p>{escape(problem)}</p>" for problem in self.problems())
        return f"<p>{escape(self.verdict())}</p>{metrics_table(self)}{problems}{more}"

    def table(self) -> FittedTable:
        """A table for rich: one line per system, or one per figure where that is too wide for the terminal."""
        return terminal_table(self)

    def __repr__(self) -> str:
        return one_line(
            f"<Scorecard of {len(self.rows)} examples: {', '.join(self.systems)}; print() shows it>"
        )

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Scorecard",
        training_log: Sequence[Mapping[str, Any]] = (),
        prices: Prices | None = None,
    ) -> Path:
        """Write one self-contained page.

        Args:
            path: The HTML file; one that exists is replaced.
            title: Heading of the page.
            training_log: Rows with step, loss and maybe validation_loss, for the loss curve. Empty: no curve.
            prices: With them the page shows after how many queries the best student has paid for itself.

        Returns:
            ``path``.

        Raises:
            ConfigurationError: ``prices`` are passed, but no row has token counts.
        """
        return write_text(Path(path), page_of(self, title, training_log, prices))

    def to_svg(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture of before and after alone; readable on light and dark backgrounds.

        Args:
            path: The SVG file; one that exists is replaced.

        Returns:
            ``path``.
        """
        return write_text(Path(path), picture_of(self), mode=PUBLIC)
