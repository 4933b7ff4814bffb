"""``compare``: several systems answer the same examples; every answer is scored field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from ..background import blocking
from ..errors import ConfigurationError, DatasetError
from ..example import Example
from .run.ask import Answers, AskSettings, ask_all
from .run.systems import System, check_askable
from .run.target import target_of
from .run.tracing import tracing
from .score.grading import Plan, grade
from .score.intervals import check_metric
from .score.rules import Comparison, FieldRule, as_rule
from .scorecard import Scorecard

__all__ = ["Questions", "Rules", "acompare", "compare"]

Rules = Mapping[str, FieldRule | Comparison | Callable[[Any, Any], float]]


async def acompare(
    systems: Mapping[str, System],
    dataset: Iterable[Example],
    *,
    output_cls: type[BaseModel] | None = None,
    fields: Rules | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    settings: Mapping[str, JsonValue] | None = None,
    show_progress: bool = True,
) -> Scorecard:
    """Ask every system every example and score the answers against gold.

    ``systems``: name -> LLM (asked the example's messages), query engine (asked ``example.query``),
    Pydantic program, or a function of an Example (sync or async) that returns an object or JSON text.
    ``output_cls``: what a valid answer is; without it each example's ``answer_schema`` (jsonschema).
    ``fields``: path ("year", "author.name", "citations[].desc") -> FieldRule, a comparison's name or a
    function (gold, answer) -> 0..1; without it the schema's types decide.
    ``cache_dir``: answers are kept there as they come in, and a later call asks only what is missing.
    ``settings``: what else is worth knowing about this run; shown on the page, kept in the JSON.
    A call that fails or takes longer than ``timeout_s`` seconds is an invalid answer, recorded with its
    error. Raises ConfigurationError and DatasetError before anything is asked.
    """
    folder = None if cache_dir is None else Path(cache_dir)
    asking = AskSettings(concurrency, timeout_s, folder, show_progress)
    questions = Questions(dataset, output_cls, fields, asking)
    if not systems:
        raise ConfigurationError('nothing to compare: pass systems, such as {"base": llm, "tuned": llm}')
    for name, system in systems.items():
        questions.check(name, system)
    answered = {name: await questions.ask(name, system) for name, system in systems.items()}
    return questions.graded(answered, settings)


compare = blocking(acompare)


class Questions:
    """What every system is asked and scored on."""

    def __init__(
        self,
        dataset: Iterable[Example],
        output_cls: type[BaseModel] | None,
        fields: Rules | None,
        asking: AskSettings,
    ) -> None:
        self._examples = list(dataset)
        if not self._examples:
            raise DatasetError("nothing to compare on: the data set is empty")
        self._targets = [target_of(example, output_cls) for example in self._examples]
        self._plan = Plan(self._targets, {path: as_rule(rule) for path, rule in (fields or {}).items()})
        self._asking = asking

    def check(self, name: str, system: System) -> None:
        """Raises ConfigurationError where the system cannot be asked, before anything is."""
        check_askable(name, system, self._examples, self._targets)

    def check_metric(self, metric: str) -> None:
        """Raises ConfigurationError for a metric that the scorecard will not have."""
        check_metric(metric, self._plan.kinds)

    async def ask(self, name: str, system: System) -> Answers:
        """One system's answers to all examples."""
        with tracing() as tracer:
            return await ask_all(name, system, self._examples, self._targets, self._asking, tracer)

    def graded(self, answered: dict[str, Answers], settings: Mapping[str, JsonValue] | None) -> Scorecard:
        """The scorecard of the systems that have answered."""
        facts: dict[str, JsonValue] = {
            "concurrency": self._asking.concurrency,
            "timeout_s": self._asking.timeout_s,
        }
        return grade(self._examples, self._targets, self._plan, answered, facts | dict(settings or {}))
