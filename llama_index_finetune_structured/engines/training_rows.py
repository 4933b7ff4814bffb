"""Training and held-out data of the local engine: rows with their places, read as ``check`` reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..dataset import FinetuneDataset
from ..dataset.checks.rows import as_source, parsed_rows
from ..dataset.checks.run import trainable_rows
from ..dataset.checks.targets import TrainingTarget
from ..example import Example

if TYPE_CHECKING:
    from ..local.model.prompts import TokenRow

__all__ = ["TrainingRows"]


class TrainingRows:
    """Training or held-out data: its rows with their places, read as ``check`` reads them. Raises DatasetError."""

    def __init__(self, data: FinetuneDataset | str | Path | Iterable[Example]) -> None:
        self._source = as_source(data)
        self._rows = parsed_rows(self._source, "local")
        self.examples = [row.content for row in self._rows if isinstance(row.content, Example)]

    def trainable(self, target: TrainingTarget) -> list[TokenRow]:
        """The rows as token ids. Raises DatasetError with every error that ``check`` has for them."""
        from ..local.model.prompts import TokenRow

        rows = trainable_rows(target, self._source, self._rows)
        return [TokenRow(row.prompt, row.answer) for row in rows]
