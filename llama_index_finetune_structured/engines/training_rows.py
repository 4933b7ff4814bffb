"""Training and held-out data of the local engine: rows with their places, read as ``check`` reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..dataset import FinetuneDataset
from ..dataset.checks.counterfactuals import counterfactual_rows
from ..dataset.checks.rows import SourceRow, as_source, parsed_rows
from ..dataset.checks.run import trainable_rows
from ..dataset.checks.targets import TrainingTarget
from ..dataset.windows import bare_examples, window_rows, window_size
from ..errors import ConfigurationError
from ..example import Example
from ..local.model.prompts import TokenRow, TrainingRow
from ..local.schema.list_items import ListRules, learn_list_rules
from ..printable import package_logger

__all__ = ["TrainingRows"]

_log = package_logger(__name__)


class TrainingRows:
    """Training or held-out data: its rows with their places, read as ``check`` reads them. Raises DatasetError."""

    def __init__(self, data: FinetuneDataset | str | Path | Iterable[Example]) -> None:
        self._source = as_source(data)
        self._rows = parsed_rows(self._source)
        self.examples = [row.content for row in self._rows if isinstance(row.content, Example)]

    def add(self, place: str, rows: Iterable[Example]) -> None:
        """Add rows behind the others. ``place``: what errors call them."""
        more = [SourceRow(place, number, row) for number, row in enumerate(rows, start=1)]
        self._rows += tuple(more)
        self.examples += [row.content for row in more if isinstance(row.content, Example)]

    @property
    def identity(self) -> dict[str, str]:
        """What these rows are beside their Examples."""
        return {}

    def trainable(
        self, target: TrainingTarget, known: Sequence[Mapping[str, Any]] | None = None
    ) -> list[TrainingRow]:
        """The rows as token ids. Raises DatasetError with every error that ``check`` has for them.

        ``known``: as of ``trainable_rows``.
        """
        rows = trainable_rows(target, self._source, self._rows, known)
        return [TokenRow(row.prompt, row.answer, row.reasoning) for row in rows]

    def windows(self, target: TrainingTarget, wanted: bool | None, seed: int) -> list[TokenRow]:
        """Rows of windows of the rows' texts, as token ids; ``trainable`` has found the rows without error.

        ``wanted`` and ``seed``: as in ``LoraSettings``. Raises ConfigurationError where windows are wanted and there
        can be none.
        """
        if not _may_be_made(target, wanted):
            return []
        made = window_rows(self._bare, self.list_rules, seed=seed)
        if wanted and not made:
            raise ConfigurationError(
                "windows: no rows of windows can be made: expected answers that are lists of 20 items or more in all, "
                "whose values stand in the prompts, and texts of several sentences; leave windows out"
            )
        if made:
            _log.info("%d rows of windows are added to %d rows", len(made), len(self.examples))
        return _token_rows(target, made)

    def counterfactuals(self, target: TrainingTarget, wanted: bool | None) -> list[TokenRow]:
        """Rows that differ from these in one field, as token ids; those that are too long are left out.

        ``wanted``: as in ``LoraSettings``. Raises ConfigurationError where they are wanted and there can be none.
        """
        if not _may_be_made(target, wanted):
            return []
        made = _token_rows(target, counterfactual_rows(self.examples))
        most = target.max_length
        kept = [row for row in made if most is None or len(row) <= most]
        if wanted and not kept:
            raise ConfigurationError(
                "counterfactuals: no such rows can be made: expected 1,000 rows or fewer whose answers are copied from "
                "their texts, and an optional field that some answers leave out and whose values stand in lines of "
                "their own, behind a label; leave it out"
            )
        if kept:
            _log.info("%d rows that differ in one field are added to %d rows", len(kept), len(self.examples))
        return kept

    @property
    def window_size(self) -> int:
        """Sentences of the windows by which texts are best read; 0: they are read whole."""
        return window_size(self._bare, self.list_rules)

    @cached_property
    def list_rules(self) -> dict[str, ListRules]:
        """The rules by which lists are read window by window, by ``schema_key``."""
        return learn_list_rules(self._bare)

    @cached_property
    def _bare(self) -> list[Example]:
        return bare_examples(self.examples)


def _may_be_made(target: TrainingTarget, wanted: bool | None) -> bool:
    """Whether rows may be made of others: reasoning about a whole text is not about a part of it."""
    return not target.reasons if wanted is None else wanted


def _token_rows(target: TrainingTarget, examples: Iterable[Example]) -> list[TokenRow]:
    return [TokenRow(row.prompt, row.answer, row.reasoning) for row in map(target.tokenise, examples)]
