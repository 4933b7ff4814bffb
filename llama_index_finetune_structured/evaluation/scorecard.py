"""The scorecard: what every system answered and how good that was; as JSON, table, picture and page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..errors import ConfigurationError
from ..example import Usage
from ..files import write_public_text
from .report.costs import BreakEven, Prices, break_even
from .report.gap import Gap, gaps
from .score.intervals import Difference, Resamples, check_metric
from .score.metrics import Metrics, ScoredAnswer, SystemScore
from .score.slices import SliceBy, sliced

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "Scorecard"]


class Row(BaseModel):
    """One example: the question, the gold answer, each system's answer; ``usage``: gold's token counts."""

    model_config = ConfigDict(frozen=True)

    example_id: str
    question: str
    gold: JsonValue
    document_id: str | None = None
    split: str | None = None
    usage: Usage | None = None
    answers: dict[str, ScoredAnswer]


class Scorecard(BaseModel):
    """All systems side by side on the same rows. Rates are from 0 to 1, times in seconds."""

    model_config = ConfigDict(frozen=True)

    systems: dict[str, SystemScore]
    differences: tuple[Difference, ...] = ()
    rows: tuple[Row, ...]
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def difference(self, system: str, against: str, metric: str = "field_score") -> Difference:
        """``system`` minus ``against`` on the same rows, paired, with its 95% interval.

        ``metric``: "schema_valid", "exact_match", "field_score" or "fields.<path>". Raises
        ConfigurationError for a name that is not in the scorecard.
        """
        kinds = self.field_kinds
        for name in (system, against):
            if name not in self.systems:
                raise ConfigurationError(f"no system {name!r}; there are: {', '.join(self.systems)}")
        check_metric(metric, kinds)
        for found in self.differences:
            if (found.system, found.against, found.metric) == (system, against, metric):
                return found
        return Resamples(self.rows, kinds).difference(system, against, metric)

    @property
    def field_kinds(self) -> dict[str, str]:
        """Field path -> "value", "text" or "list"."""
        first = next(iter(self.systems.values()))
        return {path: field.kind for path, field in first.fields.items()}

    def verdict(self) -> str:
        """What the scorecard says in a sentence or two, with 95% intervals."""
        from .report.verdict import verdict_of

        return verdict_of(self)

    def slices(self, by: SliceBy | Callable[[Row], str]) -> dict[str, dict[str, Metrics]]:
        """Slice -> system -> metrics; ``by`` "document", "split", "answer_length" or a function of a row."""
        return sliced(self.rows, self.field_kinds, by)

    def gaps(self) -> dict[str, Gap]:
        """System -> field score on training rows less that on held-out rows, where there are both."""
        return gaps(self)

    def break_even(self, student: str, prices: Prices) -> BreakEven:
        """After how many queries ``student`` has paid for itself; raises ConfigurationError."""
        return break_even(self, student, prices)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON, whole or not at all; returns the path."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False)
        return write_public_text(Path(path), text + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Scorecard:
        """Read what :meth:`to_json` wrote; raises ConfigurationError."""
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
        from .report.table import table_of

        return table_of(self)

    def print(self) -> None:
        """Print the table and the verdict to the terminal."""
        from rich.console import Console

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
        """Write one self-contained page.

        ``training_log`` rows have step, loss and maybe validation_loss; with ``prices`` the page tells
        when the best student has paid for itself.
        """
        from .report.page import page_of

        return write_public_text(Path(path), page_of(self, title, training_log, prices))

    def to_svg(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture of before and after alone; readable on light and dark backgrounds."""
        from .report.charts import picture_of

        return write_public_text(Path(path), picture_of(self))
