"""``learning_curve``: one model per training-set size, all scored on the same held-out rows."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, JsonValue

from ..background import run_in_background
from ..dataset import FinetuneDataset
from ..dataset.splits import unit_hash
from ..errors import ConfigurationError
from ..example import Example
from ..files import PUBLIC, write_text
from ..printable import one_line
from .comparison import score_rows, summarise
from .report.charts import learning_picture
from .report.terminal import FittedTable, print_result
from .report.text import signed
from .run.ask import AskSettings, SystemAnswers, ask_systems
from .run.usable_rows import usable_targets
from .score.grading import FieldPlan
from .score.intervals import Difference, check_metric
from .score.metrics import Interval
from .score.rules import Rules
from .scorecard import Scorecard

__all__ = ["Engine", "LearningCurve", "learning_curve"]


class Engine(Protocol):
    """Any fine-tuning engine of this package."""

    def finetune(self) -> None: ...

    def get_finetuned_model(self) -> Any:
        """The tuned model; a hosted engine waits for its job."""


class LearningCurve(BaseModel):
    """One tuned model per size, scored on the same rows.

    Attributes:
        sizes: Numbers of training rows, ascending.
        metric: The metric that ``points`` and the verdict are about.
        scorecard: The models as systems "N rows".
    """

    model_config = ConfigDict(frozen=True)

    sizes: tuple[int, ...]
    metric: str
    scorecard: Scorecard

    @property
    def points(self) -> list[tuple[int, Interval]]:
        """(rows trained on, metric with its 95% interval), smallest first."""
        systems = self.scorecard.systems
        return [(size, systems[_name(size)].intervals[self.metric]) for size in self.sizes]

    @property
    def last_step(self) -> Difference:
        """The metric at the largest size minus that at the one before, paired on the same held-out rows."""
        before, last = self.sizes[-2:]
        return self.scorecard.difference(_name(last), _name(before), self.metric)

    def verdict(self) -> str:
        """Whether more rows of this kind are likely to help, with the gain of the last step and its interval."""
        gain, (before, last) = self.last_step, self.sizes[-2:]
        silent = {_name(before), _name(last)} & set(self.scorecard.unanswered)
        if silent:
            return f"There is no result: every call failed after training on {' and '.join(sorted(silent))}."
        points, low, high = (signed(100 * rate) for rate in (gain.difference, gain.low, gain.high))
        step = f"From {before} to {last} rows: {points} points (95% interval {low} to {high}). "
        if not gain.is_clear:
            held_out = len(self.scorecard.rows)
            return f"{step}No clear gain: more rows may not help, or {held_out} held-out rows are too few to tell."
        if gain.difference < 0:
            return f"{step}More rows made it worse: check the later rows for errors."
        return f"{step}Still rising: more rows of this kind are worth it."

    def table(self) -> FittedTable:
        """A table for rich: one line per size."""
        return self.scorecard.table()

    def print(self) -> None:
        """Print the table, the verdict and what failed to the terminal."""
        print_result(self.table(), self.verdict(), *self.scorecard.problems())

    def __repr__(self) -> str:
        return one_line(
            f"<LearningCurve of {', '.join(map(str, self.sizes))} rows in {self.metric}; print() shows it>"
        )

    __str__ = __repr__

    def to_svg(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture: the metric over the rows trained on, with its intervals.

        Args:
            path: The SVG file; one that exists is replaced.

        Returns:
            ``path``.
        """
        return write_text(Path(path), learning_picture(self.points, self.metric), mode=PUBLIC)


def learning_curve(
    engine_factory: Callable[[FinetuneDataset], Engine],
    train: Iterable[Example],
    validation: Iterable[Example],
    *,
    sizes: Sequence[int] | None = None,
    metric: str = "field_score",
    seed: int = 0,
    output_cls: type[BaseModel] | None = None,
    fields: Rules | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> LearningCurve:
    """Tune one model per size with ``engine_factory(rows)`` and score each on ``validation``.

    A larger part contains the smaller ones. A stopped run is resumed where the engine resumes, and with
    ``cache_dir`` asks only for missing answers.

    Args:
        engine_factory: Engine class, or a function of a FinetuneDataset that returns an engine.
        train: The rows to select from.
        validation: The held-out rows that every model is scored on.
        sizes: Numbers of rows, at least two different ones. None: an eighth, a quarter, half and all of
            ``train``.
        metric: As in ``Scorecard.difference``.
        seed: Selects the rows of each size.
        output_cls: Class of a valid answer, as in ``compare``.
        fields: Rules by field path, as in ``compare``.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        cache_dir: Folder where answers are stored as they arrive.
        show_progress: Whether to show a progress bar for the answers of each model.

    Raises:
        ConfigurationError: Before anything is trained: ``sizes`` are out of range, there is no such
            ``metric``, or ``fields`` or a number is invalid. Later: a model cannot be asked, or ``cache_dir``
            not be written.
        DatasetError: Before anything is trained: no held-out rows, or none with a valid answer.
    """
    rows = sorted(train, key=lambda example: (unit_hash(seed, example.id), example.id))
    chosen = _sizes(sizes, len(rows))
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    targets, left_out = usable_targets(validation, output_cls)
    plan = FieldPlan(targets, fields)
    check_metric(metric, plan.kinds)
    answers: dict[str, SystemAnswers] = {}
    for size in chosen:
        engine = engine_factory(FinetuneDataset(rows[:size]))
        engine.finetune()
        model = engine.get_finetuned_model()
        answers |= run_in_background(ask_systems({_name(size): model}, targets, asking))
        del engine, model
        gc.collect()  # frees a local model's memory before the next one is trained
    scored = score_rows(targets, answers, plan)
    notes: dict[str, JsonValue] = {"sizes": list(chosen), "seed": seed}
    card = summarise(scored, answers, plan, asking, notes, left_out)
    return LearningCurve(sizes=chosen, metric=metric, scorecard=card)


def _sizes(sizes: Sequence[int] | None, rows: int) -> tuple[int, ...]:
    """The sizes to train on, ascending and different; raises ConfigurationError."""
    asked = [rows // 8, rows // 4, rows // 2, rows] if sizes is None else sizes
    # by default of few rows an eighth is 0, which is left out; a 0 that was passed is refused
    chosen = tuple(sorted(set(asked) - ({0} if sizes is None else set())))
    if len(chosen) < 2 or chosen[0] < 1 or chosen[-1] > rows:
        raise ConfigurationError(
            f"sizes={list(asked)}: expected at least two different numbers from 1 to {rows}, the rows in train"
        )
    return chosen


def _name(size: int) -> str:
    return f"{size} rows"
