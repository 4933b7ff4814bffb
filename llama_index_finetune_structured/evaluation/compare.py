"""``compare``: several systems answer the same examples; every answer is scored field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from ..dataset.background import run_in_background
from ..errors import ConfigurationError, DatasetError
from ..example import Example
from .asking import Answers, AskSettings, ask_all
from .grading import Plan, grade
from .rules import Comparison, FieldRule, as_rule
from .scorecard import Scorecard
from .systems import System, check_askable
from .target import target_of
from .tracing import tracing

__all__ = ["acompare", "compare"]

Rules = Mapping[str, FieldRule | Comparison | Callable[[Any, Any], float]]


def compare(
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
    """Ask every system every example and score the answers against gold; also inside a running loop.

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
    return run_in_background(
        acompare(
            systems,
            dataset,
            output_cls=output_cls,
            fields=fields,
            concurrency=concurrency,
            timeout_s=timeout_s,
            cache_dir=cache_dir,
            settings=settings,
            show_progress=show_progress,
        )
    )


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
    """:func:`compare` for a caller that is async itself."""
    examples = list(dataset)
    if not examples:
        raise DatasetError("nothing to compare on: the data set is empty")
    if not systems:
        raise ConfigurationError('nothing to compare: pass systems, such as {"base": llm, "tuned": llm}')
    if concurrency < 1 or timeout_s <= 0:
        raise ConfigurationError(f"concurrency={concurrency}, timeout_s={timeout_s}: both must be positive")
    targets = [target_of(example, output_cls) for example in examples]
    plan = Plan(targets, {path: as_rule(rule) for path, rule in (fields or {}).items()})
    for name, system in systems.items():
        check_askable(name, system, examples, targets)
    folder = None if cache_dir is None else Path(cache_dir)
    asking = AskSettings(concurrency, timeout_s, folder, show_progress)
    answered: dict[str, Answers] = {}
    with tracing() as tracer:
        for name, system in systems.items():
            answered[name] = await ask_all(name, system, examples, targets, asking, tracer)
    facts: dict[str, JsonValue] = {"concurrency": concurrency, "timeout_s": timeout_s}
    return grade(examples, targets, plan, answered, facts | dict(settings or {}))
