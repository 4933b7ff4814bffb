"""``learning_curve``: is more data worth it? Tune on ever more of the rows, score on the same held-out ones."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from ..background import run_in_background
from ..dataset import FinetuneDataset
from ..dataset.splits import unit_hash
from ..errors import ConfigurationError
from ..example import Example
from ..files import write_public_text
from .comparison import Questions, Rules
from .report.verdict import signed
from .run.ask import AskSettings
from .score.intervals import Difference
from .score.metrics import Interval
from .scorecard import Scorecard

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Engine", "LearningCurve", "learning_curve"]


class Engine(Protocol):
    """Any of this package's engines; one that submits jobs is waited for."""

    def finetune(self) -> None: ...
    def get_finetuned_model(self) -> Any: ...


class LearningCurve(BaseModel):
    """One tuned model per size, scored on the same rows; ``scorecard`` has them as systems "N rows"."""

    model_config = ConfigDict(frozen=True)

    sizes: tuple[int, ...]
    metric: str
    scorecard: Scorecard

    @property
    def points(self) -> list[tuple[int, Interval]]:
        """(rows trained on, the metric with its 95% interval), smallest first."""
        systems = self.scorecard.systems
        return [(size, systems[_name(size)].intervals[self.metric]) for size in self.sizes]

    @property
    def last_step(self) -> Difference:
        """The largest size less the one before it, paired on the same held-out rows."""
        before, last = self.sizes[-2:]
        return self.scorecard.difference(_name(last), _name(before), self.metric)

    def verdict(self) -> str:
        """Whether more rows of this kind are worth it, with the interval that says so."""
        found, (before, last) = self.last_step, self.sizes[-2:]
        points, low, high = (signed(100 * rate) for rate in (found.difference, found.low, found.high))
        step = f"From {before} to {last} rows: {points} points (95% interval {low} to {high}). "
        if not found.is_clear:
            held_out = len(self.scorecard.rows)
            return f"{step}No clear gain: more rows may not help, or {held_out} held-out rows cannot show it."
        if found.difference < 0:
            return f"{step}More rows made it worse: look at what the later ones teach."
        return f"{step}Still rising: more rows of this kind are worth it."

    def table(self) -> Table:
        """A rich table: one line per size."""
        from .report.table import table_of

        return table_of(self.scorecard)

    def print(self) -> None:
        """Print the table and the verdict to the terminal."""
        from rich.console import Console

        console = Console()
        console.print(self.table())
        console.print(self.verdict(), markup=False, highlight=False)

    def to_svg(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture: the metric over the rows trained on, with its intervals."""
        from .report.charts import learning_picture

        return write_public_text(Path(path), learning_picture(self.points, self.metric))


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

    ``sizes``: numbers of rows; without them an eighth, a quarter, half and all of ``train``. A larger part
    holds the smaller ones; ``seed`` decides which rows they are. ``metric``: as in Scorecard.difference.
    ``output_cls``, ``fields``, ``concurrency``, ``timeout_s`` and ``cache_dir``: as in :func:`compare`.
    A run that was stopped goes on where the engine goes on, and with ``cache_dir`` asks only what is
    missing. Raises ConfigurationError for sizes that cannot be had, before anything is trained.
    """
    rows = sorted(train, key=lambda example: (unit_hash(seed, example.id), example.id))
    wanted = _sizes(sizes, len(rows))
    folder = None if cache_dir is None else Path(cache_dir)
    questions = Questions(
        validation, output_cls, fields, AskSettings(concurrency, timeout_s, folder, show_progress)
    )
    questions.check_metric(metric)
    answered = {}
    for size in wanted:
        engine = engine_factory(FinetuneDataset(rows[:size]))
        engine.finetune()
        model = engine.get_finetuned_model()
        questions.check(_name(size), model)
        answered[_name(size)] = run_in_background(questions.ask(_name(size), model))
        del engine, model
        gc.collect()  # a model on this machine goes before the next one comes
    card = questions.graded(answered, {"sizes": list(wanted), "seed": seed})
    return LearningCurve(sizes=wanted, metric=metric, scorecard=card)


def _sizes(sizes: Sequence[int] | None, rows: int) -> tuple[int, ...]:
    given = [rows // 8, rows // 4, rows // 2, rows] if sizes is None else sizes
    wanted = tuple(sorted(set(given) - ({0} if sizes is None else set())))
    if len(wanted) < 2 or wanted[0] < 1 or wanted[-1] > rows:
        raise ConfigurationError(
            f"sizes={list(given)}: expected at least two different numbers from 1 to {rows}, the rows in train"
        )
    return wanted


def _name(size: int) -> str:
    return f"{size} rows"
