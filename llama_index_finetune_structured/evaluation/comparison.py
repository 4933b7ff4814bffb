"""``compare``: systems answer the same examples, and every answer is scored field by field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue

from ..background import blocking
from ..example import Example
from ..local.schema.bounds import schema_key
from .results import ScoredRow, differences_of, refusal_scores, resamples_of, system_scores, trust_scores
from .run.answer_classes import tell_absent_classes, with_classes
from .run.ask import AskSettings, SystemAnswers, ask_systems
from .run.systems import System, question_of
from .run.target import AnswerTarget
from .run.usable_rows import LeftOut, usable_targets
from .score.grading import FieldPlan, grade
from .score.rules import Rules
from .score.trust_probabilities import with_probabilities
from .scorecard import Scorecard

__all__ = ["acompare", "compare", "score_rows", "summarise"]


async def acompare(
    systems: Mapping[str, System],
    dataset: Iterable[Example],
    *,
    output_cls: type[BaseModel] | None = None,
    fields: Rules | None = None,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    cache_dir: str | Path | None = None,
    notes: Mapping[str, JsonValue] | None = None,
    show_progress: bool = True,
) -> Scorecard:
    """Ask every system every example and score the answers against gold.

    A call that fails or exceeds ``timeout_s`` is an invalid answer, recorded with its error; only a missing
    package ends the run. An example whose own answer is not valid is not asked; the scorecard counts it with
    the reason. The systems are asked one after the other.

    Args:
        systems: Name -> LLM (asked the example's messages), query engine (asked ``example.query``), Pydantic
            program, or a function of an Example (sync or async) that returns an object or JSON text. The
            first one is the baseline that the others are compared with, and so is one named "teacher".
        dataset: The examples; their answers are the gold.
        output_cls: Class of a valid answer: gold and answers are validated by it and compared as it writes them,
            so normalising validators apply. None: the class that each example names (``Example.answer_class``), or a
            system for the example's schema (``LoraLLM.answer_classes``), where its module is imported, else its
            ``answer_schema``, judged as Pydantic judges, with a logged warning that names the class.
        fields: Field path ("year", "author.name", "citations[].desc") -> FieldRule, a comparison's name or a
            function (gold, answer) -> 0..1. Fields without a rule are compared as the schema's types suggest.
        concurrency: Most calls at once.
        timeout_s: Seconds that one call may take.
        cache_dir: Folder where answers are stored as they arrive; a later run asks only for the missing ones.
        notes: Facts about this run that are shown on the page and stored in the JSON (as ``settings``).
        show_progress: Whether to show a progress bar for each system.

    Raises:
        ConfigurationError: Before the first call: there are no systems, one cannot be asked these examples, a
            comparison is unknown, ``fields`` has a path that is in no schema, a number is not positive, or
            ``cache_dir`` cannot be written. Later: an answer cannot be written to ``cache_dir`` (a full disk).
        DatasetError: Before the first call: there are no examples, or none has a valid answer of its own.
        MissingDependencyError: A system's package is not installed.
    """
    asking = AskSettings(concurrency, timeout_s, cache_dir, show_progress)
    examples = dataset if output_cls else with_classes(dataset, systems.values())
    targets, left_out = usable_targets(examples, output_cls)
    tell_absent_classes(targets)
    plan = FieldPlan(targets, fields)
    answers = await ask_systems(systems, targets, asking)
    rows = score_rows(targets, answers, plan)
    facts = {"answers judged by": _judges(targets)} | dict(notes or {})
    return summarise(rows, answers, plan, asking, facts, left_out)


compare = blocking(acompare)


def _judges(targets: Sequence[AnswerTarget]) -> str:
    """The classes that decide which answers are valid, and whether JSON schemas do; for readers."""
    names = {target.judge for target in targets}
    return ", ".join(sorted(names))


def score_rows(
    targets: Sequence[AnswerTarget], answers: Mapping[str, SystemAnswers], plan: FieldPlan
) -> list[ScoredRow]:
    """One row per target, with every system's answer scored against the target's gold answer."""
    documents = [target.example.document_id for target in targets]
    schemas = [None if target.schema is None else schema_key(target.schema) for target in targets]
    scored = {
        name: with_probabilities(
            [grade(answer, target, plan) for answer, target in zip(system.answers, targets, strict=True)],
            documents,
            schemas,
        )
        for name, system in answers.items()
    }
    return [
        ScoredRow(
            example_id=target.example.id,
            question=question_of(target.example),
            gold=target.gold,
            document_id=target.example.document_id,
            split=target.example.split,
            usage=target.example.usage,
            answers={name: graded[at] for name, graded in scored.items()},
        )
        for at, target in enumerate(targets)
    ]


def summarise(
    rows: Sequence[ScoredRow],
    answers: Mapping[str, SystemAnswers],
    plan: FieldPlan,
    asking: AskSettings,
    notes: Mapping[str, JsonValue] | None,
    left_out: tuple[LeftOut, ...],
) -> Scorecard:
    """The scorecard of the scored rows: every system's figures and the differences between systems."""
    resamples = resamples_of(rows, plan.kinds)
    wall_seconds = {name: system.wall_seconds for name, system in answers.items()}
    facts: dict[str, JsonValue] = {"concurrency": asking.concurrency, "timeout_s": asking.timeout_s}
    return Scorecard(
        systems=system_scores(rows, plan.kinds, wall_seconds, resamples),
        differences=tuple(differences_of(list(answers), plan.kinds, resamples)),
        rows=tuple(rows),
        trust=trust_scores(rows),
        refusals=refusal_scores(rows),
        left_out=left_out,
        settings=facts | dict(notes or {}),
    )
