"""Accepted answers with rejected ones to the same prompts, as rows of preference training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataset import FinetuneDataset
from ..dataset.checks.lines import LineReader
from ..dataset.checks.targets import TrainingTarget
from ..errors import DatasetError
from ..example import Example, content_hash
from ..formats.preferences import preference_pairs, read_rejects
from ..local.model.prompts import TokenRow, TrainingRow
from ..printable import package_logger
from .training_rows import TrainingRows

__all__ = ["PreferenceData", "rows_of"]

_log = package_logger(__name__)


class PreferenceData(TrainingRows):
    """Those of the rows whose prompt has a rejected answer, and these answers.

    ``rejects``: Examples, or the path of a capture's rejects. Raises DatasetError where there is no pair, or the file
    cannot be read.
    """

    def __init__(
        self, data: FinetuneDataset | str | Path | Iterable[Example], rejects: str | Path | Iterable[Example]
    ) -> None:
        given = read_rejects(Path(rejects)) if isinstance(rejects, str | Path) else rejects
        reader = LineReader("local")
        read = [example for each in given for example in reader.read_row(each, torn=False)[0]]
        accepted = TrainingRows(data).examples
        pairs = list(preference_pairs(accepted, read))
        chosen = {example.id: example for example, _ in pairs}
        super().__init__(chosen.values())
        numbers = {key: number for number, key in enumerate(chosen)}
        # The prompt is the accepted answer's: a reject may have been asked with another form of the schema.
        self._rejected = [
            (numbers[example.id], Example(**{**dict(example), "answer": other.answer}))
            for example, other in pairs
        ]
        if alone := len(accepted) - len(chosen):
            _log.warning("%d rows without a rejected answer to their prompt are left out", alone)

    @property
    def identity(self) -> dict[str, str]:
        """What these rows are beside the accepted answers."""
        return {"rejects": content_hash([(number, example.id) for number, example in self._rejected])}

    def add(self, place: str, rows: Iterable[Example]) -> None:
        """Nothing: the loss itself keeps the answers near those of the model that training began with."""

    def windows(self, target: TrainingTarget, wanted: bool | None, seed: int) -> list[TokenRow]:
        """None: only whole answers were rejected."""
        return []

    def counterfactuals(self, target: TrainingTarget, wanted: bool | None) -> list[TokenRow]:
        """None: no answers to other texts were rejected."""
        return []

    def trainable(
        self, target: TrainingTarget, known: Sequence[Mapping[str, Any]] | None = None
    ) -> list[TrainingRow]:
        """The pairs as token ids.

        Rejected answers that are too long, or the same tokens as the accepted one, are left out with a logged warning.
        Raises DatasetError where none is left, or as for other rows.
        """
        from ..local.train.preference import PreferenceRow

        chosen = [row for each in super().trainable(target, known) for row in each.parts]
        pairs = [
            PreferenceRow(own := chosen[number], _rejected_row(own, example, target))
            for number, example in self._rejected
        ]
        most = target.max_length
        kept: list[TrainingRow] = [
            pair
            for pair in pairs
            if pair.chosen.answer != pair.rejected.answer and (most is None or len(pair.rejected) <= most)
        ]
        if left_out := len(pairs) - len(kept):
            reason = "longer than training takes, or written as the accepted one"
            if not kept:
                raise DatasetError(
                    f"no rejected answer is left to train on: all {left_out} are {reason}; "
                    "raise max_length, or give rejected answers that say something else"
                )
            _log.warning("%d rejected answers are left out: %s", left_out, reason)
        return kept


def _rejected_row(chosen: TokenRow, example: Example, target: TrainingTarget) -> TokenRow:
    """A rejected answer behind the prompt of the accepted one; text that is not even JSON as it is."""
    try:
        row = target.tokenise(example)
    except DatasetError:
        row = target.tokenise(Example(**{**dict(example), "answer_schema": None, "transport": "text"}))
    return TokenRow(chosen.prompt, row.answer, row.reasoning)


def rows_of(
    data: FinetuneDataset | str | Path | Iterable[Example], rejects: str | Path | Sequence[Example] | None
) -> TrainingRows:
    """The rows to train on: pairs where there are rejected answers."""
    return TrainingRows(data) if rejects is None else PreferenceData(data, rejects)
