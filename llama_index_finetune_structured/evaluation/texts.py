"""Systems that answer in plain text, judged by LlamaIndex's own evaluators and put in one table."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.evaluation import BaseEvaluator, CorrectnessEvaluator, SemanticSimilarityEvaluator
from llama_index.core.llms.llm import LLM
from pydantic import BaseModel, ConfigDict

from ..background import run_in_background
from ..errors import ConfigurationError, DatasetError, StructuredAnswerError
from ..example import Example, Source
from ..files import write_public_text
from .run.answer_log import Answer
from .run.ask import Answers, AskSettings, ask_all, gather_all
from .run.systems import System, check_askable, question_of
from .run.target import Target
from .run.tracing import tracing

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TextScorecard", "compare_texts"]

WORST = {"correctness": 1.0, "semantic_similarity": 0.0}
"""What no answer at all is worth; correctness is judged from 1 to 5, similarity from 0 to 1."""


class TextAnswer(BaseModel):
    """One text answer. A score is None where the judge gave none; ``feedback`` then says why."""

    model_config = ConfigDict(frozen=True)

    text: str
    error: str | None = None
    scores: dict[str, float | None]
    feedback: dict[str, str]
    sources: tuple[Source, ...] | None = None
    seconds: float = 0.0


class TextRow(BaseModel):
    """One example: the question, the reference answer, each system's answer."""

    model_config = ConfigDict(frozen=True)

    example_id: str
    question: str
    reference: str
    answers: dict[str, TextAnswer]


class TextScore(BaseModel):
    """Means over the judged answers; no answer counts as the worst, an unjudged one is left out."""

    model_config = ConfigDict(frozen=True)

    n: int
    answered: float
    means: dict[str, float | None]
    unjudged: dict[str, int]
    seconds_per_answer: float


class TextScorecard(BaseModel):
    """Systems side by side on the same questions, answered in text."""

    model_config = ConfigDict(frozen=True)

    systems: dict[str, TextScore]
    rows: tuple[TextRow, ...]

    def table(self) -> Table:
        """A rich table in the form of LlamaIndex's ``get_results_df``: names, then one mean per metric."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=f"{len(self.rows)} questions", title_justify="left")
        metrics = list(next(iter(self.systems.values())).means)
        for heading in ("names", *metrics, "answered", "unjudged", "s/answer"):
            table.add_column(heading, justify="left" if heading == "names" else "right")
        for name, score in self.systems.items():
            means = [_figure(score.means[metric]) for metric in metrics]
            unjudged = str(sum(score.unjudged.values()))
            table.add_row(name, *means, f"{score.answered:.0%}", unjudged, f"{score.seconds_per_answer:.2f}")
        return table

    def print(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console

        Console().print(self.table())

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write everything as JSON, whole or not at all; returns the path."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        return write_public_text(Path(path), text + "\n")


def compare_texts(
    systems: Mapping[str, System],
    dataset: Iterable[Example],
    *,
    judge: LLM | None = None,
    embed_model: BaseEmbedding | None = None,
    settings: AskSettings | None = None,
) -> TextScorecard:
    """Ask every system every example and judge its text against the example's answer.

    ``judge``: an LLM for LlamaIndex's CorrectnessEvaluator (1 to 5); ``embed_model``: an embedding model
    for its SemanticSimilarityEvaluator; at least one of them. Query engines are asked ``example.query``,
    LLMs the messages. Raises ConfigurationError and DatasetError before anything is asked.
    """
    evaluators: dict[str, BaseEvaluator] = {}
    if judge is not None:
        evaluators["correctness"] = CorrectnessEvaluator(llm=judge, parser_function=read_judgement)
    if embed_model is not None:
        evaluators["semantic_similarity"] = SemanticSimilarityEvaluator(embed_model=embed_model)
    if not evaluators:
        raise ConfigurationError("nothing to judge with: pass judge=llm, embed_model=..., or both")
    examples = list(dataset)
    if not examples or not systems:
        raise DatasetError("nothing to compare: the data set or the systems are empty")
    return run_in_background(_compare(systems, examples, evaluators, settings or AskSettings()))


async def _compare(
    systems: Mapping[str, System],
    examples: Sequence[Example],
    evaluators: Mapping[str, BaseEvaluator],
    settings: AskSettings,
) -> TextScorecard:
    targets = [Target(None, None, example.answer_text(), is_text=True) for example in examples]
    for name, system in systems.items():
        check_askable(name, system, examples, targets)
    judged: dict[str, list[TextAnswer]] = {}
    spent: dict[str, float] = {}
    with tracing() as tracer:
        for name, system in systems.items():
            answers = await ask_all(name, system, examples, targets, settings, tracer)
            spent[name] = answers.wall_seconds
            judged[name] = await _judge_all(answers, examples, targets, evaluators, settings)
    rows = [
        TextRow(
            example_id=example.id,
            question=question_of(example),
            reference=example.answer_text(),
            answers={name: answers[at] for name, answers in judged.items()},
        )
        for at, example in enumerate(examples)
    ]
    scores = {name: _score(answers, evaluators, spent[name]) for name, answers in judged.items()}
    return TextScorecard(systems=scores, rows=tuple(rows))


async def _judge_all(
    answers: Answers,
    examples: Sequence[Example],
    targets: Sequence[Target],
    evaluators: Mapping[str, BaseEvaluator],
    settings: AskSettings,
) -> list[TextAnswer]:
    slots = asyncio.Semaphore(settings.concurrency)
    out: dict[int, TextAnswer] = {}

    async def one(at: int) -> None:
        async with slots:
            out[at] = await _judge(answers.answers[at], examples[at], targets[at], evaluators)

    await gather_all([one(at) for at in range(len(examples))])
    return [out[at] for at in range(len(examples))]


async def _judge(
    answer: Answer, example: Example, target: Target, evaluators: Mapping[str, BaseEvaluator]
) -> TextAnswer:
    error, text = answer.error, answer.text
    if error is None:
        try:
            text = target.read(answer.text)
        except StructuredAnswerError as unfit:
            error = str(unfit)
    scores: dict[str, float | None] = {}
    feedback: dict[str, str] = {}
    for metric, evaluator in evaluators.items():
        scores[metric], feedback[metric] = (
            (WORST[metric], "no answer")
            if error is not None
            else await _evaluate(evaluator, question_of(example), text, target.gold)
        )
    return TextAnswer(
        text=text,
        error=error,
        scores=scores,
        feedback=feedback,
        sources=answer.sources,
        seconds=answer.seconds,
    )


async def _evaluate(
    evaluator: BaseEvaluator, question: str, text: str, reference: str
) -> tuple[float | None, str]:
    try:
        result = await evaluator.aevaluate(query=question, response=text, reference=reference)
    except Exception as error:
        return None, f"the judge failed: {type(error).__name__}: {error}"[:500]
    return result.score, result.feedback or ""


def read_judgement(reply: str) -> tuple[float | None, str | None]:
    """(score, reasoning) of a judge's reply; the first number from 1 to 5, on one line or several.

    LlamaIndex's own parser raises where the reply is a single line.
    """
    found = re.search(r"(?<![\d.])([1-5](?:\.\d+)?)(?![\d.]*\d)", reply)
    score = None if found is None else float(found[1])
    return (score if score is None or score <= 5 else None), reply.strip()


def _score(answers: Sequence[TextAnswer], evaluators: Iterable[str], wall_seconds: float) -> TextScore:
    means: dict[str, float | None] = {}
    unjudged: dict[str, int] = {}
    for metric in evaluators:
        scores = [score for answer in answers if (score := answer.scores[metric]) is not None]
        means[metric] = sum(scores) / len(scores) if scores else None
        unjudged[metric] = len(answers) - len(scores)
    return TextScore(
        n=len(answers),
        answered=sum(answer.error is None for answer in answers) / len(answers),
        means=means,
        unjudged=unjudged,
        seconds_per_answer=wall_seconds / len(answers),
    )


def _figure(mean: float | None) -> str:
    return "–" if mean is None else f"{mean:.3f}"
