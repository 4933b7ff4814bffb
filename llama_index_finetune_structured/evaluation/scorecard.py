"""``Scorecard``: the results of a comparison with its reports: JSON, terminal table, picture, HTML page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ..errors import ConfigurationError
from ..files import write_public_text
from .report.charts import picture_of
from .report.costs import BreakEven, Prices, break_even
from .report.gap import Gap, gaps
from .report.page import page_of
from .report.slices import SliceBy, slices
from .report.text import terminal_table, verdict_of
from .results import ScoredRow, ScoreTable
from .score.metrics import Metrics

__all__ = ["Scorecard"]


class Scorecard(ScoreTable):
    """All systems side by side on the same rows. Rates are from 0 to 1, times in seconds.

    ``systems``: name -> figures; ``rows``: every example with every answer; ``differences``: of every system to
    the first one and to the teacher; ``settings``: facts about the run; ``created``: ISO 8601, UTC.
    """

    def verdict(self) -> str:
        """The main result in a sentence or two, with 95% intervals."""
        return verdict_of(self)

    def slices(self, by: SliceBy | Callable[[ScoredRow], str]) -> dict[str, dict[str, Metrics]]:
        """Slice -> system -> metrics; ``by`` "document", "split", "answer_length" or a function of a row."""
        return slices(self, by)

    def gaps(self) -> dict[str, Gap]:
        """System -> field score on training rows minus that on held-out rows; empty without rows of both."""
        return gaps(self)

    def break_even(self, student: str, prices: Prices) -> BreakEven:
        """The number of queries after which ``student`` has paid for itself; raises ConfigurationError."""
        return break_even(self, student, prices)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON, atomically; returns the path."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
        return write_public_text(Path(path), text + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Scorecard:
        """Read a file that :meth:`to_json` wrote; raises ConfigurationError."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            raise ConfigurationError(
                f"{path}: not a scorecard as Scorecard.to_json writes it: {error.errors()[0]['msg']}"
            ) from error

    def table(self) -> Table:
        """A rich table: one line per system."""
        return terminal_table(self)

    def print(self) -> None:
        """Print the table and the verdict to the terminal."""
        console = Console()
        console.print(self.table())
        console.print(self.verdict(), markup=False, highlight=False)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Scorecard",
        training_log: Sequence[Mapping[str, Any]] = (),
        prices: Prices | None = None,
    ) -> Path:
        """Write one self-contained page; returns the path.

        ``training_log``: rows with step, loss and maybe validation_loss, for the loss curve. With ``prices`` the
        page shows after how many queries the best student has paid for itself.
        """
        return write_public_text(Path(path), page_of(self, title, training_log, prices))

    def to_svg(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture of before and after alone; readable on light and dark backgrounds."""
        return write_public_text(Path(path), picture_of(self))
